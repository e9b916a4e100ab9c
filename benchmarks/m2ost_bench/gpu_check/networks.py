"""The network in every form that runs here: true to PyTorch in float32 on the CPU, and then how fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from m2ost.metrics import pearson
from m2ost_contract import Manifest
from m2ost_preprocess.decoder import decoded_slide

from .device import Device, Pace, clocks, time_on, times_as_fast
from .engines import TOOLKITS, Scorer, build_with, load_scorer, onnxruntime_scorer
from .parts import RIGHT, Outcome, need, run_part

R_AT_LEAST = 0.9999
"""Least Pearson r of a gene across spots that an engine may have with the network."""

REFERENCE = "torch-eager-fp32"

TORCH_FP16 = "torch-compiled-fp16"
"""Every layer in float16 as PyTorch does it. No engine of ours: its r is reported and held to nothing."""


class Networks:
    """The forms of one network, each right, wrong or skipped, and the views that they are compared on.

    Parameters
    ----------
    model : M2OST
        On the CPU, float32.
    device : Device
    releases : sequence of Path
        Releases of the same weights.
    slide : Path
    centers : ndarray of int32, shape (n, 2)
        Spots that all are compared on.
    folder : Path
        Receives releases with engines that are built here.

    Attributes
    ----------
    centers : ndarray of int32, shape (n, 2)
        Spots that all are compared on.
    outcomes : list of Outcome
        One a form.
    scorers, precision : dict
        The forms that are right, and their precision, by name.
    fastest : str
        The fastest of them, once they were timed.
    built : list of (Path, str)
        Releases with an engine that was built here, and the toolkit.
    """

    def __init__(
        self, model: Any, device: Device, releases: Sequence[Path], slide: Path, centers: Any, folder: Path
    ) -> None:
        torch = need("torch", install="pip install torch")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.model, self.device, self.centers, self.folder = model, device, centers, folder
        with decoded_slide(slide, geometry=model.config.views, threads=0) as source:
            self.views = source.views(centers)
        with torch.inference_mode():
            parts = [
                model(*(torch.from_numpy(view[i : i + 16]) for view in self.views)) for i in range(0, len(centers), 16)
            ]
        self.expected = torch.cat(parts).numpy()
        self.scorers: dict[str, Scorer] = {}
        self.precision: dict[str, str] = {}
        self.fastest = REFERENCE
        self.built: list[tuple[Path, str]] = []
        self.outcomes = [
            run_part(f"network {name}", partial(self._check, name, precision, make))
            for name, precision, make in self._forms(releases)
        ]

    def _forms(self, releases: Sequence[Path]) -> list[tuple[str, str, Callable[[Outcome], Scorer]]]:
        """Name, precision and maker of every form."""
        forms: list[tuple[str, str, Callable[[Outcome], Scorer]]] = [
            (REFERENCE, "fp32", self._eager),
            (TORCH_FP16, "fp16", self._compiled),
        ]
        for release in releases:
            precision = Manifest.read(release).engine.precision
            forms.append((f"onnxruntime-{precision}", precision, partial(self._onnxruntime, release)))
            forms += [(f"{name}-{precision}", precision, partial(self._tensorrt, release, name)) for name in TOOLKITS]
        return forms

    def _onnxruntime(self, release: Path, outcome: Outcome) -> Scorer:
        return onnxruntime_scorer(release, self.device)

    def _tensorrt(self, release: Path, toolkit: str, outcome: Outcome) -> Scorer:
        built = self.folder / f"{release.name}-{toolkit}"
        build_with(toolkit, release, built, self.device, outcome)
        self.built.append((built, toolkit))
        return load_scorer(built, toolkit, self.device)

    def _eager(self, outcome: Outcome) -> Scorer:
        return self._by_torch(deepcopy(self.model).to(self.device.torch))

    def _compiled(self, outcome: Outcome) -> Scorer:
        import torch

        backend = "inductor" if self.device.kind == "cuda" else "eager"
        outcome.figures["compiled_by"] = backend
        return self._by_torch(torch.compile(deepcopy(self.model).to(self.device.torch).half(), backend=backend))

    def _by_torch(self, model: Any) -> Scorer:
        import torch.utils.dlpack

        def score(views: Sequence[Any]) -> Any:
            with torch.inference_mode():
                tensors = [torch.utils.dlpack.from_dlpack(view).to(self.device.torch) for view in views]
                return model(*tensors).float().cpu().numpy()

        return score

    def on_device(self, first: int, rows: int) -> list[Any]:
        """Views of ``rows`` spots from the ``first`` on, repeated where there are fewer; tensors on the device."""
        import torch

        wanted = np.arange(first, first + rows) % len(self.expected)
        return [torch.from_numpy(view[wanted]).to(self.device.torch) for view in self.views]

    def _check(self, name: str, precision: str, make: Callable[[Outcome], Scorer], outcome: Outcome) -> None:
        scorer = make(outcome)
        found = scorer(self.on_device(0, len(self.expected)))
        compare(outcome, found, self.expected, r_at_least=-1.0 if name == TORCH_FP16 else R_AT_LEAST)
        if outcome.status == RIGHT:
            self.scorers[name], self.precision[name] = scorer, precision

    def measure(self, outcome: Outcome, batch_rows: int, flop: float, rates: dict[str, Any], pace: Pace) -> None:
        """Time every form that is right, in turn: views on the device → expression on the host.

        Parameters
        ----------
        outcome : Outcome
            Receives spots/s, ratios, and shares of the device's matrix rate.
        batch_rows : int
            Spots a batch.
        flop : float
            Floating-point operations a spot.
        rates : dict
            As :func:`~.rates.measure_rates` left them; may be empty.
        pace : Pace
        """
        views = self.on_device(0, batch_rows)
        runs = {name: partial(scorer, views) for name, scorer in self.scorers.items()}
        seconds = time_on(self.device, runs, pace)
        outcome.figures["gpu_afterwards"] = clocks(self.device)
        speeds = {name: batch_rows / median(values) for name, values in seconds.found.items()}
        self.fastest = max(speeds, key=lambda name: speeds[name], default=REFERENCE)
        outcome.figures.update(batch_rows=batch_rows, gflop_per_spot=flop / 1e9, spots_per_s=speeds)
        if REFERENCE in seconds.found:
            outcome.figures[f"times_as_fast_as_{REFERENCE}"] = times_as_fast(seconds, REFERENCE)
        for name, speed in speeds.items():
            rate = rates.get(f"matmul_{self.precision[name]}_tflop_per_s")
            if rate is not None:
                shares = outcome.figures.setdefault("share_of_matrix_rate", {})
                shares[name] = speed * flop / 1e12 / rate
            copy = rates.get("copy_device_to_device_gb_per_s")
            if copy is not None:
                read = sum(view.numel() for view in views) / batch_rows
                outcome.figures.setdefault("views_share_of_copy_rate", {})[name] = speed * read / 1e9 / copy


def compare(
    outcome: Outcome, found: Any, expected: Any, what: str = "EXPRESSION", *, r_at_least: float = R_AT_LEAST
) -> None:
    """Compare an expression with the network's: r per gene, largest difference, values that are not finite.

    Parameters
    ----------
    outcome : Outcome
        Keeps the worst of all that are compared for it.
    found, expected : ndarray of float32, shape (spots, genes)
    what : str
        What was found, for the reason.
    r_at_least : float
        Least r of a gene that is right.
    """
    finite = bool(np.isfinite(found).all())
    outcome.expect(finite, f"{what}: {np.count_nonzero(~np.isfinite(found))} values are not finite")
    if not finite:
        return
    r, difference = float(np.nanmin(pearson(expected, found, 0))), float(np.abs(found - expected).max())
    figures = outcome.figures
    figures["spots"] = len(expected)
    figures["max_abs_diff"] = max(difference, figures.get("max_abs_diff", 0.0))
    figures["min_r_per_gene"] = min(r, figures.get("min_r_per_gene", 1.0))
    outcome.expect(r >= r_at_least, f"{what}: r of a gene is {r:.6f}, below {r_at_least}")
