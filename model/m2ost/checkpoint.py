"""A checkpoint: a folder with ``model.safetensors`` and ``model.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from m2ost_contract import M2OSTError, complete_folder, sha256_file
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .config import M2OSTConfig
from .network import M2OST

WEIGHTS, CARD = "model.safetensors", "model.json"
FORMAT = 1


class CheckpointError(M2OSTError):
    """A checkpoint cannot be read, written or converted; the message says where and what to do."""


@dataclass(frozen=True)
class ModelCard:
    """``model.json``: all that must be known about weights to serve them.

    Parameters
    ----------
    architecture : M2OSTConfig
        Sizes of the network.
    genes : tuple of str
        The panel, in output order.
    trained : bool
        False for a freshly initialised network; every output made with it says so.
    mpp : float or None
        µm per view pixel of the finest view in training; None where unknown.
    target : str
        What an output means: ``log1p_cpm_panel`` is log1p(1e6 · count / panel total of the spot).
    provenance : dict
        Where the weights come from: training data, metrics, or the converted file.
    sha256 : str
        Of ``model.safetensors``; filled in when the checkpoint is written.
    """

    architecture: M2OSTConfig
    genes: tuple[str, ...]
    trained: bool
    mpp: float | None = None
    target: str = "log1p_cpm_panel"
    provenance: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""

    def __post_init__(self) -> None:
        if len(self.genes) != self.architecture.n_genes:
            raise CheckpointError(
                f"the panel has {len(self.genes)} genes and the network {self.architecture.n_genes} outputs"
            )
        seen: set[str] = set()
        for gene in self.genes:
            if not gene.strip() or "\n" in gene or gene in seen:
                raise CheckpointError(f"gene {gene!r} is empty or appears twice in the panel")
            seen.add(gene)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        raw = {k: getattr(self, k) for k in self.__dataclass_fields__}
        return {
            "format": FORMAT,
            **raw,
            "architecture": self.architecture.to_dict(),
            "genes": list(self.genes),
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ModelCard:
        """Inverse of :meth:`to_dict`."""
        if raw.get("format") != FORMAT:
            raise ValueError(f"format {raw.get('format')!r}, this version reads {FORMAT}")
        values = {k: raw[k] for k in cls.__dataclass_fields__}
        values["architecture"] = M2OSTConfig.from_dict(values["architecture"])
        values["genes"] = tuple(values["genes"])
        return cls(**values)


def save(folder: Path, model: M2OST, card: ModelCard, *, half: bool = False) -> ModelCard:
    """Write a checkpoint.

    Parameters
    ----------
    folder : Path
        Created.
    model : M2OST
    card : ModelCard
    half : bool
        Store the weights as float16, in half the space; they are float32 again when read.

    Returns
    -------
    ModelCard
        ``card`` with the sha256 of the weights.

    Raises
    ------
    FileExistsError
        If ``folder`` exists.
    """
    with complete_folder(folder) as scratch:
        dtype = torch.float16 if half else torch.float32
        save_file({k: v.detach().to(dtype).contiguous() for k, v in model.state_dict().items()}, scratch / WEIGHTS)
        card = ModelCard(**{**vars(card), "sha256": sha256_file(scratch / WEIGHTS)})
        (scratch / CARD).write_text(json.dumps(card.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return card


def load(folder: Path) -> tuple[M2OST, ModelCard]:
    """Read a checkpoint.

    Returns
    -------
    model : M2OST
        In eval mode, float32, on the CPU.
    card : ModelCard

    Raises
    ------
    CheckpointError
        If a file is missing or damaged, or the weights are not those that the card describes.
    """
    card_path, weights_path = folder / CARD, folder / WEIGHTS
    for path in (card_path, weights_path):
        if not path.is_file():
            raise CheckpointError(f"{folder}: not a checkpoint (no {path.name}); see `m2ost convert` and `m2ost init`")
    try:
        card = ModelCard.from_dict(json.loads(card_path.read_text(encoding="utf-8")))
    except (KeyError, TypeError, ValueError, CheckpointError) as error:
        raise CheckpointError(f"{card_path}: not a valid model card: {error!r}") from error
    found = sha256_file(weights_path)
    if found != card.sha256:
        raise CheckpointError(f"{weights_path}: sha256 is {found}, the card says {card.sha256}; fetch the folder anew")
    try:
        weights = load_file(weights_path)
    except SafetensorError as error:
        raise CheckpointError(f"{weights_path}: {error}") from error
    model = M2OST(card.architecture)
    load_weights(model, {k: v.to(torch.float32) for k, v in weights.items()}, str(weights_path))
    return model.eval(), card


def load_weights(model: M2OST, weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Load ``weights`` into ``model``, naming every key that is missing, unexpected or of another shape.

    Raises
    ------
    CheckpointError
        If the two do not match exactly.
    """
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    problems = [f"missing {k}" for k in expected if k not in weights]
    problems += [f"unexpected {k}" for k in weights if k not in expected]
    problems += [
        f"{k} has shape {tuple(v.shape)}, expected {expected[k]}"
        for k, v in weights.items()
        if k in expected and tuple(v.shape) != expected[k]
    ]
    if problems:
        raise CheckpointError(f"{source} does not fit the network: " + "; ".join(problems))
    model.load_state_dict(dict(weights))


def unpickle_weights(path: Path, *, remedy: str, allowed: Sequence[type] = ()) -> Any:
    """What a foreign ``.pth`` holds; nothing in it is ever run.

    Parameters
    ----------
    path : Path
    remedy : str
        What to do about a file that is refused.
    allowed : sequence of type
        Harmless classes that may stand in it beside tensors and plain containers.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged, or asks for code to be run.
    """
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except Exception as error:  # torch raises whatever a damaged pickle leads it to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: refused: not a plain file of weights ({reason}). Only tensors are read, code in a checkpoint is "
            f"never run; {remedy}"
        ) from error


def initialise(config: M2OSTConfig, genes: tuple[str, ...], *, seed: int = 0) -> tuple[M2OST, ModelCard]:
    """A freshly initialised network with its card, marked untrained. One seed gives one set of weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = M2OST(config).eval()
    return model, ModelCard(config, genes, trained=False, provenance={"initialised_with_seed": seed})


def read_panel(path: Path) -> tuple[str, ...]:
    """Gene names, one a line, in output order; blank lines are skipped.

    Raises
    ------
    CheckpointError
        If the file cannot be read as text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot read the gene panel: {error}") from error
    return tuple(line.strip() for line in lines if line.strip())
