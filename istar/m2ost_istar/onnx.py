"""The networks of an exported folder on ONNX Runtime, configured as M2OST's engine is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2ost_contract import EXPRESSION, sha256_file
from m2ost_serving.engine.base import KEEP_MEMORY_ROWS
from m2ost_serving.engine.onnx import cpu_session, give_memory_back

from .manifest import (
    CLS,
    FEATURES,
    GRID,
    MAX_HEAD_ROWS,
    NETWORK_MODELS,
    PATCH,
    REGION,
    TOKENS,
    IStarInfo,
    IStarManifest,
)

OpenSession = Callable[[Path], Any]


@dataclass(frozen=True)
class Tensors:
    """What a network takes and gives.

    Parameters
    ----------
    taken : str
    given : tuple of str
    batched : bool
        Whether the first axis is a batch.
    keep_memory_rows : int
        A run of more rows gives its memory back.
    """

    taken: str
    given: tuple[str, ...]
    batched: bool
    keep_memory_rows: int


NETWORKS = {
    "patch": Tensors(PATCH, (CLS, TOKENS), True, KEEP_MEMORY_ROWS),
    # The attention of ViT-4K grows with the square of a slide's area: nothing of it is kept.
    "region": Tensors(GRID, (REGION,), False, 0),
    "head": Tensors(FEATURES, (EXPRESSION,), True, MAX_HEAD_ROWS),
}


class OnnxNetwork:
    """One of the networks.

    Parameters
    ----------
    path : Path
        Its graph.
    network : str
        ``patch``, ``region`` or ``head``.
    info : IStarInfo
        Of the folder that the graph is from.
    open_session : callable
        Graph → session of ONNX Runtime; by default on the CPU.

    Raises
    ------
    RuntimeError
        If the graph is not that of the folder.
    """

    def __init__(self, path: Path, network: str, info: IStarInfo, open_session: OpenSession = cpu_session) -> None:
        found, expected = sha256_file(path), info.onnx_sha256[network]
        if found != expected:
            raise RuntimeError(f"{path}: sha256 is {found}, its folder's manifest says {expected}; export it anew")
        self.tensors = NETWORKS[network]
        self._session = open_session(path)
        # A GPU's memory is the session's own.
        self._large = give_memory_back() if self._session.get_providers()[0].startswith("CPU") else None

    def run(self, array: Any) -> Sequence[Any]:
        """Run the network once; returns its outputs."""
        options = self._large if len(array) > self.tensors.keep_memory_rows else None
        outputs: Sequence[Any] = self._session.run(list(self.tensors.given), {self.tensors.taken: array}, options)
        return outputs


class OnnxNetworks:
    """An exported folder's networks in this process: ``pipeline.Networks``.

    Parameters
    ----------
    folder : Path
        A folder that ``m2ost export-istar`` made.
    open_session : callable
        Graph → session of ONNX Runtime; by default on the CPU.

    Raises
    ------
    FileNotFoundError, ManifestError
        If it is none.
    """

    def __init__(self, folder: Path, open_session: OpenSession = cpu_session) -> None:
        self.info = IStarManifest.read(folder).info
        self.sizes = self.info.sizes
        self._networks = {
            network: OnnxNetwork(folder / model / "1" / "model.onnx", network, self.info, open_session)
            for network, model in NETWORK_MODELS.items()
        }

    def patch(self, pixels: Any) -> tuple[Any, Any]:
        """ViT-256 on uint8 (n, 256, 256, 3)."""
        cls, tokens = self._networks["patch"].run(pixels)
        return cls, tokens

    def region(self, cls_grid: Any) -> Any:
        """ViT-4K on float32 (h, w, dim)."""
        return self._networks["region"].run(cls_grid)[0]

    def head(self, features: Any) -> Any:
        """The head on float32 (n, feature_dim)."""
        return self._networks["head"].run(features)[0]
