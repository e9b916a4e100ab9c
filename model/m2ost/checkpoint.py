"""A checkpoint: a folder with ``model.safetensors`` and ``model.json``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from m2ost_contract import complete_folder, sha256_file
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .architecture import Architecture
from .card import ModelCard
from .module import Network
from .systems.registry import build
from .weights import CheckpointError, as_float32, load_weights

WEIGHTS, CARD = "model.safetensors", "model.json"


def save(folder: Path, model: Network, card: ModelCard, *, half: bool = False) -> ModelCard:
    """Write a checkpoint.

    Parameters
    ----------
    folder : Path
        Created.
    model : Network
    card : ModelCard
    half : bool
        Store the weights as float16, in half the space; they are float32 again when read. What is no weight (running
        means, a bank) keeps its type.

    Returns
    -------
    ModelCard
        ``card`` with the sha256 of the weights and of the bank.

    Raises
    ------
    FileExistsError
        If ``folder`` exists.
    """
    with complete_folder(folder) as scratch:
        dtype = torch.float16 if half else torch.float32
        trained = {name for name, _ in model.named_parameters()}
        stored = {k: v.detach().to(dtype) if k in trained else v for k, v in model.state_dict().items()}
        save_file({k: v.contiguous() for k, v in stored.items()}, scratch / WEIGHTS)
        card = replace(card, sha256=sha256_file(scratch / WEIGHTS), bank_sha256=model.bank_sha256(card.genes))
        (scratch / CARD).write_text(json.dumps(card.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return card


def load(folder: Path) -> tuple[Network, ModelCard]:
    """Read a checkpoint.

    Returns
    -------
    model : Network
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
    model = build(card.architecture)
    load_weights(model, as_float32(weights), str(weights_path))
    if model.bank_sha256(card.genes) != card.bank_sha256:
        raise CheckpointError(f"{folder}: the bank is not the one of this card and panel; make the checkpoint anew")
    return model.eval(), card


def initialise(config: Architecture, genes: tuple[str, ...], *, seed: int = 0) -> tuple[Network, ModelCard]:
    """A freshly initialised network with its card, marked untrained. One seed gives one set of weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(config).eval()
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
