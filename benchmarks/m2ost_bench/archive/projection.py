"""What an archive takes on so many servers, from what the stages of one slide cost.

Every stage of a slide overlaps with those of others, so the slowest sets the pace:

- **tiling**: describing the slide, decoding and cutting its views, in so many decoder processes a server;
- **inference**: one engine a server, at a given rate; without a GPU, ONNX Runtime on the cores that also tile, one
  after the other;
- **writing**: one client for the whole archive, one result at a time.

Not in it: fetching slides, a storage or network that is slower than these, the end of the archive, when servers run out
of slides, and failures.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

DAY_S = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds of the stages, each on its own.

    Parameters
    ----------
    describe_s : float
        Opening a slide, its tissue and its grid; of one slide.
    decode_s, cut_s : float
        In one decoder without helping threads, of one spot: out of the file, and from there to views in shared memory
        and out of it.
    infer_s : float
        On all cores, of one spot.
    write_s : float
        Of one result.
    """

    describe_s: float
    decode_s: float
    cut_s: float
    infer_s: float
    write_s: float


@dataclass(frozen=True, kw_only=True)
class Archive:
    """What is to be scored.

    Parameters
    ----------
    slides : int
    spots_a_slide : int
    """

    slides: int
    spots_a_slide: int


@dataclass(frozen=True, kw_only=True)
class Server:
    """What each server has.

    Parameters
    ----------
    decoders : int
        Processes that decode and cut, each on a core of its own.
    gpu_spots_per_s : float, optional
        What its engine does; None where the CPU computes.
    """

    decoders: int = 1
    gpu_spots_per_s: float | None = None

    def slides_per_s(self, costs: Costs, spots: int) -> dict[str, float]:
        """Slides/s that each stage allows one server."""
        tiling_s = (costs.describe_s + spots * (costs.decode_s + costs.cut_s)) / self.decoders
        if self.gpu_spots_per_s is None:
            return {"tiling and inference": 1 / (tiling_s + spots * costs.infer_s)}
        return {"tiling": 1 / tiling_s, "inference": self.gpu_spots_per_s / spots}


def project(costs: Costs, archive: Archive, server: Server, servers: Iterable[int]) -> list[dict[str, Any]]:
    """Slides a day, and days for the archive, by number of servers.

    Returns
    -------
    list of dict
        ``servers``, ``slides_per_day``, ``days``, and ``bound_by``: the stage that sets the pace.
    """
    rows = []
    for n in servers:
        rates = {stage: n * rate for stage, rate in server.slides_per_s(costs, archive.spots_a_slide).items()}
        rates["writing"] = 1 / costs.write_s
        bound_by = min(rates, key=lambda stage: rates[stage])
        per_day = rates[bound_by] * DAY_S
        rows.append({"servers": n, "slides_per_day": per_day, "days": archive.slides / per_day, "bound_by": bound_by})
    return rows
