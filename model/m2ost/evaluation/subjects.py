"""What can be judged: a checkpoint, a release or ``.onnx`` file, an ``.h5ad`` of ``m2ost predict``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from m2ost_contract import EXPRESSION, Release, ViewGeometry
from m2ost_contract.slide_level import SLIDE, SPOT

from ..data.errors import DataError
from ..data.section import TARGETS, Section
from ..data.splits import Split
from ..data.views import ViewCache
from .prediction import Facts, Prediction, Subject

ONNX_ROWS = 32

AS_A_WHOLE = (
    "predicts a slide as a whole, from places on an array; score it with `m2ost predict SLIDE --spots FILE` and "
    "judge that .h5ad"
)

MODEL_MPP = "model"
"""In place of a number: at what the network was trained at."""


def open_subject(
    path: Path,
    cache: ViewCache,
    genes: Sequence[str] | None = None,
    target: str | None = None,
    view_mpp: float | str | None = None,
) -> Subject:
    """Open whatever ``path`` is.

    Parameters
    ----------
    path : Path
        A checkpoint or release folder, an ``.onnx`` file, or an ``.h5ad`` that ``m2ost predict`` wrote.
    cache : ViewCache
        For the views of sections.
    genes : sequence of str, optional
        The panel of a bare ``.onnx`` file.
    target : str, optional
        What its values are, one of :data:`m2ost.data.section.TARGETS`, where it does not say so itself: a bare
        ``.onnx`` file, or an ``.h5ad`` that another program wrote.

    view_mpp : float or str, optional
        µm a pixel of the finest view that a network is given; ``model`` for those that it was trained at. By default as
        a checkpoint's training had it, else the images' own pixels.

    Raises
    ------
    DataError
        If it is none of these, does not fit the panel, or its target is unknown, not given, or another than is given.
    CheckpointError, ManifestError
        If the folder is damaged.
    """
    if (path / "model.json").is_file():
        return CheckpointSubject(path, cache, target, view_mpp)
    if path.is_dir():
        release = Release.open(path)
        if release.engine.level != SPOT:
            raise DataError(f"{path}: {AS_A_WHOLE}")
        facts = Facts(
            name=f"{path.name} ({release.engine.release_sha256[:12]})",
            genes=release.engine.genes,
            target=_target(path, release.engine.target, target),
        )
        return OnnxSubject(release.onnx, facts, cache, _view_mpp(path, view_mpp, release.engine.mpp))
    if path.suffix == ".onnx":
        if genes is None:
            raise DataError(f"{path}: an .onnx file has no gene names; give its panel with --panel")
        facts = Facts(name=path.name, genes=tuple(genes), target=_target(path, None, target))
        return OnnxSubject(path, facts, cache, _view_mpp(path, view_mpp, None))
    if path.suffix == ".h5ad":
        return ResultSubject(path, target)
    raise DataError(f"{path}: not a checkpoint or release folder, an .onnx file or an .h5ad")


def _target(path: Path, stated: str | None, given: str | None) -> str:
    """What the values are: as stated, or as given where nothing is."""
    if stated is None and given is None:
        raise DataError(f"{path}: does not say what its values are; give it with --target, {' or '.join(TARGETS)}")
    if stated is not None and given not in (None, stated):
        raise DataError(f"{path}: its values are {stated}, not {given}; leave --target out")
    target = stated or given or ""
    if target not in TARGETS:
        raise DataError(f"{path}: unknown target {target!r}; there are {' and '.join(TARGETS)}")
    return target


def _view_mpp(path: Path, asked: float | str | None, trained_at: float | None) -> float | None:
    """µm a view pixel, as a number where ``model`` was asked for."""
    if asked != MODEL_MPP:
        return None if asked is None else float(asked)
    if trained_at is None:
        raise DataError(f"{path}: does not say at how many µm/px it was trained; give a number for --view-mpp")
    return trained_at


class CheckpointSubject:
    """A checkpoint, run by PyTorch in float32."""

    def __init__(
        self, folder: Path, cache: ViewCache, target: str | None = None, view_mpp: float | str | None = None
    ) -> None:
        from ..checkpoint import load
        from ..symmetries import with_test_time

        network, card = load(folder)
        self._model = with_test_time(network, card.test_time).eval()
        training = card.provenance.get("training", {})
        split = training.get("split")
        if view_mpp is None:
            view_mpp = training.get("config", {}).get("data", {}).get("view_mpp")
        self._view_mpp = _view_mpp(folder, view_mpp, card.mpp)
        self.facts = Facts(
            name=f"{folder.name} ({card.sha256[:12]})",
            genes=card.genes,
            target=_target(folder, card.target, target),
            split=Split(**{part: tuple(names) for part, names in split.items()}) if split else None,
        )
        self._cache = cache

    def predict(self, section: Section) -> Prediction:
        """See :class:`Subject`."""
        from ..training.loop import predict
        from ..training.spots import SpotSet, known_places

        model, nothing = self._model.config, np.zeros((len(section), 0), np.float32)
        places = known_places(section, model) if model.level == SLIDE else None
        views = self._cache.views(section, model.views, self._view_mpp)
        return Prediction(self.facts.genes, predict(self._model, SpotSet([views], nothing, places, nothing)))


class OnnxSubject:
    """An exported network, run by ONNX Runtime on the CPU: inputs VIEW0 … of uint8, output EXPRESSION."""

    def __init__(self, onnx: Path, facts: Facts, cache: ViewCache, view_mpp: float | None = None) -> None:
        import onnxruntime as ort

        self.facts, self._cache, self._view_mpp = facts, cache, view_mpp
        try:
            self._session: Any = ort.InferenceSession(onnx, providers=["CPUExecutionProvider"])
            self._inputs = [node.name for node in self._session.get_inputs()]
            size_px = int(self._session.get_inputs()[0].shape[1])
            outputs = self._session.get_outputs()[0].shape[1]
        except Exception as error:  # onnxruntime raises a kind of its own for each cause
            raise DataError(f"{onnx}: not an exported network: {error}") from error
        self._geometry = ViewGeometry(size_px, tuple(2**i for i in range(len(self._inputs))))
        if outputs != len(facts.genes):
            raise DataError(f"{onnx}: has {outputs} outputs and the panel {len(facts.genes)} genes; give its own panel")

    def predict(self, section: Section) -> Prediction:
        """See :class:`Subject`."""
        views, parts = self._cache.views(section, self._geometry, self._view_mpp), []
        for first in range(0, len(section), ONNX_ROWS):
            rows = views[first : first + ONNX_ROWS]
            feed = {name: np.ascontiguousarray(rows[:, i]) for i, name in enumerate(self._inputs)}
            parts.append(np.asarray(self._session.run([EXPRESSION], feed)[0], np.float32))
        return Prediction(self.facts.genes, np.concatenate(parts))


class ResultSubject:
    """What ``m2ost predict`` wrote for one section; spots are matched by name."""

    def __init__(self, path: Path, target: str | None = None) -> None:
        import anndata

        try:
            self._table = anndata.read_h5ad(path)
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{path}: cannot read the prediction: {error}") from error
        stated = self._table.uns.get("m2ost", {}).get("target")
        self.facts = Facts(
            name=path.name,
            genes=tuple(str(gene) for gene in self._table.var_names),
            target=_target(path, None if stated is None else str(stated), target),
        )
        self._path = path

    def predict(self, section: Section) -> Prediction:
        """See :class:`Subject`; a spot that the file lacks is NaN."""
        row_of = {str(name): i for i, name in enumerate(self._table.obs_names)}
        rows = np.array([row_of.get(name, -1) for name in section.spot_names])
        if (rows < 0).all():
            raise DataError(
                f"{self._path}: holds no spot of section {section.name} (it has {', '.join(list(row_of)[:3])} …); "
                "predict the section's own spots, with --spots"
            )
        values = np.asarray(self._table.X, np.float32)[rows]
        values[rows < 0] = np.nan
        return Prediction(self.facts.genes, values)
