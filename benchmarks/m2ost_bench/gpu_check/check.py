"""All parts of the check, in order: each uses what the ones before it found."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from m2ost.shipped import CHECKPOINT
from m2ost_preprocess.decoder import Decoder

from .device import Device, Pace, describe, has_gpu
from .inputs import FreshSlide, choose_slide, grids_on, load_network, spots_on
from .networks import Networks
from .parts import WRONG, Outcome, Skip, run_part
from .rates import measure_rates
from .served import Work, measure_end_to_end, measure_served
from .tiling import check_resize, check_tiler

SHIPPED = Path(__file__).parents[3] / "model" / "m2ost" / "checkpoints" / CHECKPOINT


RUN_SPOTS = {"cuda": 4096, "cpu": 64}
"""By device."""


@dataclass(frozen=True)
class Options:
    """What is checked, and how long.

    Parameters
    ----------
    slides : tuple of Path
        Candidates; the first that can be read here is taken.
    device : {"cuda", "cpu"}
        A GPU, or the processor in its place.
    gpu : int
        Which GPU.
    checkpoint : Path
        The weights.
    releases : tuple of Path
        Releases of these weights.
    profile : str
        What the server is started with.
    spots : int
        Spots that are compared.
    batch_rows : int
        Spots a batch where speed is measured.
    run_spots : int or None
        Most spots of a run from the file on; by default ``RUN_SPOTS``.
    pace : Pace
        How long speeds are measured.
    """

    slides: tuple[Path, ...]
    device: str = "cuda"
    gpu: int = 0
    checkpoint: Path = SHIPPED
    releases: tuple[Path, ...] = ()
    profile: str = "python-gpu"
    spots: int = 64
    batch_rows: int = 64
    run_spots: int | None = None
    pace: Pace = field(default_factory=Pace)


class Check:
    """One run of all parts.

    Parameters
    ----------
    options : Options
    tell : callable
        Is given each part as it ends.
    """

    def __init__(self, options: Options, tell: Callable[[Outcome], None] = lambda outcome: None) -> None:
        self.options = options
        self.no_gpu = has_gpu(options.gpu) if options.device == "cuda" else ""
        self.device = Device("cpu" if self.no_gpu else options.device, options.gpu)
        self._tell = tell
        self._found: dict[str, Any] = {}
        self._outcomes: list[Outcome] = []

    def run(self) -> tuple[dict[str, Any], int]:
        """Run all parts.

        Returns
        -------
        report : dict
            JSON can hold it.
        status : int
            The exit status.
        """
        with tempfile.TemporaryDirectory(prefix="gpu_check_") as folder, Decoder(threads=0) as decoder:
            self._run_parts(Path(folder), decoder)
        status = 2 if self.no_gpu else 0
        if any(outcome.status == WRONG for outcome in self._outcomes):
            status = 1
        report = {
            "machine": describe(self.device),
            "device": self.device.kind,
            "no_gpu": self.no_gpu,
            "status": status,
            "parts": [vars(outcome) for outcome in self._outcomes],
        }
        return report, status

    def _run_parts(self, folder: Path, decoder: Decoder) -> None:
        options, device, pace = self.options, self.device, self.options.pace
        self._part("slide", lambda outcome: self._keep("slide", choose_slide(outcome, options.slides, decoder)))
        self._part("resize", lambda outcome: check_resize(outcome, device, self._get("slide"), pace))
        self._part("rates", lambda outcome: self._keep("rates", measure_rates(outcome, device, pace)))
        self._part("tiler", self._tiler)
        self._part("weights", lambda outcome: self._keep("network", load_network(outcome, options.checkpoint)))
        self._part("networks", partial(self._networks, folder))
        self._part("speed of networks", self._speed)
        self._part("runs from the file", partial(self._plan_work, folder / "slide"))
        self._part("end to end", self._end_to_end)
        to_serve = [(release, options.profile) for release in options.releases]
        if "networks" in self._found:
            to_serve += [(release, f"python-{toolkit}") for release, toolkit in self._found["networks"].built]
        for release, profile in to_serve:
            self._part(f"served {release.name}", partial(self._served, release, profile))
        if not to_serve:
            self._part("served", self._nothing_served)

    def _part(self, name: str, part: Callable[[Outcome], None]) -> None:
        self._add(run_part(name, part))

    def _add(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        self._tell(outcome)

    def _keep(self, name: str, value: Any) -> None:
        self._found[name] = value

    def _get(self, name: str) -> Any:
        if name not in self._found:
            raise Skip(f"there is no {name}; see the parts above")
        return self._found[name]

    def _tiler(self, outcome: Outcome) -> None:
        rates = self._found.get("rates", {})
        check_tiler(outcome, self.device, self._get("slide"), self.options.spots, rates, self.options.pace)

    def _networks(self, folder: Path, outcome: Outcome) -> None:
        slide, model = self._get("slide"), self._get("network")
        centers = spots_on(slide.size, self.options.spots)
        networks = Networks(model, self.device, self.options.releases, slide.path, centers, folder)
        for part in networks.outcomes:
            self._add(part)
        outcome.figures["right"] = sorted(networks.scorers)
        self._keep("networks", networks)

    def _speed(self, outcome: Outcome) -> None:
        from m2ost.complexity import count

        networks = self._get("networks")
        flop = count(networks.model.config).flop
        networks.measure(outcome, self.options.batch_rows, flop, self._found.get("rates", {}), self.options.pace)

    def _plan_work(self, folder: Path, outcome: Outcome) -> None:
        slide, networks = self._get("slide"), self._get("networks")
        grids = grids_on(slide.size, self.options.run_spots or RUN_SPOTS[self.device.kind])
        outcome.figures["spots"] = {name: len(centers) for name, centers in grids.items()}
        self._keep("work", Work(FreshSlide(slide.path, folder), networks.centers, grids))

    def _end_to_end(self, outcome: Outcome) -> None:
        networks, work, options = self._get("networks"), self._get("work"), self.options
        measure_end_to_end(outcome, networks, self.device, work, options.batch_rows, options.pace)

    def _served(self, release: Path, profile: str, outcome: Outcome) -> None:
        networks, work = self._get("networks"), self._get("work")
        measure_served(outcome, networks, release, profile, work, self.options.pace)

    def _nothing_served(self, outcome: Outcome) -> None:
        raise Skip("no --release was given")
