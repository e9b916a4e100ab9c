"""``model.json``: all that must be known about weights to serve them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .architecture import NOTHING, TEST_TIMES, Architecture
from .systems.registry import M2OST_NAME, from_dict, system_of
from .weights import CheckpointError

FORMAT = 2
"""Format 1 knew M2OST alone: its architecture has no name, and what follows from it is not written."""


@dataclass(frozen=True)
class ModelCard:
    """``model.json``: all that must be known about weights to serve them.

    Parameters
    ----------
    architecture : Architecture
        Sizes of the network; level, views, normalisation, head, positions and most spots of a slide follow from it.
    genes : tuple of str
        The panel, in output order.
    trained : bool
        False for a freshly initialised network; every output made with it says so.
    mpp : float or None
        µm per view pixel of the finest view in training; None where unknown.
    target : str
        What an output means: ``log1p_cpm_panel`` is log1p(1e6 · count / panel total of the spot).
    provenance : dict
        Where the weights come from: training data, metrics, pretrained weights, or the converted file.
    sha256 : str
        Of ``model.safetensors``; filled in when the checkpoint is written.
    test_time : str
        What is averaged at inference, one of ``TEST_TIMES``, where an export does not say otherwise.
    bank_sha256 : str
        Of what a retrieving head looks up, and of the panel that it is of; filled in when the checkpoint is written.
    """

    architecture: Architecture
    genes: tuple[str, ...]
    trained: bool
    mpp: float | None = None
    target: str = "log1p_cpm_panel"
    provenance: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    test_time: str = NOTHING
    bank_sha256: str = ""

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
        if self.test_time not in TEST_TIMES:
            raise CheckpointError(f"test_time must be {' or '.join(TEST_TIMES)}, not {self.test_time!r}")

    @property
    def head(self) -> dict[str, Any]:
        """How the network comes to its outputs."""
        head = self.architecture.head
        if self.bank_sha256:
            head["bank_sha256"] = self.bank_sha256
        if "holds" in head and not self.trained:
            head["holds"] = "random values: the network is untrained"
        return head

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        raw = {k: getattr(self, k) for k in self.__dataclass_fields__ if k not in ("architecture", "bank_sha256")}
        return {"format": FORMAT, **self._of_architecture(), **raw, "genes": list(self.genes)}

    def _of_architecture(self) -> dict[str, Any]:
        """The sizes, and what follows from them."""
        sizes = {"name": system_of(self.architecture).name, **self.architecture.to_dict()}
        normalisation = sizes.pop("normalisation", asdict(self.architecture.normalisation))
        return {
            "architecture": sizes,
            "level": self.architecture.level,
            "views": self.architecture.views.to_dict(),
            "normalisation": normalisation,
            "head": self.head,
            "positions": self.architecture.positions,
            "max_spots": self.architecture.max_spots,
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ModelCard:
        """Inverse of :meth:`to_dict`; reads format 1 too.

        Raises
        ------
        KeyError, TypeError, ValueError, CheckpointError
            If it is no such card, or contradicts itself.
        """
        if raw.get("format") not in (1, FORMAT):
            raise ValueError(f"format {raw.get('format')!r}, this version reads 1 and {FORMAT}")
        kept = ("genes", "trained", "mpp", "target", "provenance", "sha256")
        values = {k: raw[k] for k in kept} | {"genes": tuple(raw["genes"])}
        if raw["format"] == 1:
            return cls(from_dict(raw["architecture"]), **values)
        sizes = dict(raw["architecture"])
        if sizes["name"] != M2OST_NAME:
            sizes["normalisation"] = raw["normalisation"]
        values |= {"test_time": raw["test_time"], "bank_sha256": raw["head"].get("bank_sha256", "")}
        card = cls(from_dict(sizes), **values)
        for name, value in card._of_architecture().items():
            if json.loads(json.dumps(value)) != raw[name]:
                raise ValueError(f"{name} is {raw[name]}, and follows from the architecture as {value}")
        return card
