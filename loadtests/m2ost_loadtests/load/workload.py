"""What a load asks for: which slide next, and which of its spots. Pure and seeded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from m2ost_contract import MAX_ROWS
from m2ost_preprocess.tiling.views import spatial_order

INTERACTIVE, ARCHIVE = "interactive", "archive"
"""Classes of traffic: someone waits for the answer, or an archive is scored again in the background."""

PRIORITY = {INTERACTIVE: 1, ARCHIVE: 2}
"""Their Triton priority levels; 1 goes first."""


@dataclass(frozen=True)
class SlideSpots:
    """A slide and the spots to ask for.

    Parameters
    ----------
    slide : str
        ``root/relative/path``.
    centers : ndarray of int32, shape (n, 2)
        x, y in level-0 pixels; n > 0.
    """

    slide: str
    centers: np.ndarray[Any, np.dtype[np.int32]]


def zipf_weights(n: int, exponent: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Popularity of ``n`` slides, most popular first: proportional to 1 / rank ** exponent, and 1 in sum.

    With exponent 0 all are equally popular.
    """
    weights: np.ndarray[Any, np.dtype[np.float64]] = np.arange(1, n + 1, dtype=np.float64) ** -exponent
    weights /= weights.sum()
    return weights


class Draw:
    """An endless, seeded sequence of requests.

    Parameters
    ----------
    slides : sequence of SlideSpots
        The most popular first.
    exponent : float
        Of their Zipf-distributed popularity.
    seed : sequence of int
        Two draws with one seed are the same.
    """

    def __init__(self, slides: Sequence[SlideSpots], *, exponent: float, seed: Sequence[int]) -> None:
        self._slides = [SlideSpots(s.slide, s.centers[spatial_order(s.centers)]) for s in slides]
        self._weights = zipf_weights(len(slides), exponent)
        self._random = np.random.default_rng(list(seed))

    def request(self, spots: int) -> SlideSpots:
        """The next request: ``spots`` neighbouring spots of one slide, as a client that scores a slide asks for them.

        Starts anywhere and goes round at the end, so that every request has that many even on a small slide.
        """
        chosen = self._slides[self._random.choice(len(self._slides), p=self._weights)]
        rows = (self._random.integers(len(chosen.centers)) + np.arange(spots)) % len(chosen.centers)
        return SlideSpots(chosen.slide, chosen.centers[rows])

    def exponential(self) -> float:
        """An exponentially distributed number with mean 1: the gap between two arrivals of a Poisson process."""
        return float(self._random.exponential())

    def uniform(self) -> float:
        """A number of [0, 1), any as likely as another."""
        return float(self._random.random())


def traffic_class(ordinal: int, archive_share: float) -> str:
    """Class of the ``ordinal``-th user, from 0: of the first n, ``archive_share`` · n (rounded down) are archive."""
    archive = int((ordinal + 1) * archive_share + 1e-9) > int(ordinal * archive_share + 1e-9)
    return ARCHIVE if archive else INTERACTIVE


@dataclass(frozen=True, kw_only=True)
class Load:
    """What the users of a load do.

    Parameters
    ----------
    spots : int
        Spots a request of interactive users.
    archive_spots : int
        Spots a request of archive users.
    archive_share : float
        Share of the users that are archive, 0 to 1.
    zipf_exponent : float
        Of the slides' popularity; 0 makes all equally popular.
    arrival_rate : float
        Requests/s that every user sends whether or not earlier ones were answered (open load); 0: the next request
        waits for the answer to the last (closed load).
    poisson : bool
        Open load: exponentially distributed gaps in place of equal ones.
    max_in_flight : int
        Open load: a user with this many requests unanswered sends no more, and each that was due counts as a failure.
    think_s : float
        Closed load: pause after an answer, in seconds.
    pitch_um : float
        Pitch of the grid that ``slide_info`` lays over the tissue, in µm.
    mpp : float or None
        µm/px of the slides, in place of what their files say.
    spot_diameter_um : float
        ``istar_slide``: diameter of a spot, in µm.
    deadline_s : float
        Deadline of a request in seconds.
    seed : int

    Raises
    ------
    ValueError
        If a value is out of range; names the option.
    """

    spots: int = 8
    archive_spots: int = 64
    archive_share: float = 0.0
    zipf_exponent: float = 1.0
    arrival_rate: float = 0.0
    poisson: bool = False
    max_in_flight: int = 1000
    think_s: float = 0.0
    pitch_um: float = 100.0
    mpp: float | None = None
    spot_diameter_um: float = 55.0
    deadline_s: float = 120.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("--spots", self.spots), ("--archive-spots", self.archive_spots)):
            if not 1 <= value <= MAX_ROWS:
                raise ValueError(f"{name} must be 1 to {MAX_ROWS}, not {value}: a request of no spots measures nothing")
        if not 0 <= self.archive_share <= 1:
            raise ValueError(f"--archive-share must be 0 to 1, not {self.archive_share}")
        positive = {
            "--max-in-flight": self.max_in_flight,
            "--pitch-um": self.pitch_um,
            "--spot-diameter-um": self.spot_diameter_um,
            "--deadline-s": self.deadline_s,
        }
        if self.mpp is not None:
            positive["--mpp"] = self.mpp
        for name, number in positive.items():
            if not 0 < number < float("inf"):
                raise ValueError(f"{name} must be a positive number, not {number}")
        not_negative = {
            "--arrival-rate": self.arrival_rate,
            "--think-s": self.think_s,
            "--zipf-exponent": self.zipf_exponent,
        }
        for name, number in not_negative.items():
            if not 0 <= number < float("inf"):
                raise ValueError(f"{name} must not be negative, and finite; not {number}")

    def spots_of(self, traffic: str) -> int:
        """Spots a request of a class of traffic."""
        return self.archive_spots if traffic == ARCHIVE else self.spots

    def first_s(self, draw: Draw) -> float:
        """Seconds to the first arrival of a user of an open load: not all users at once. 0 in a closed load."""
        if not self.arrival_rate:
            return 0.0
        return self.gap_s(draw) if self.poisson else draw.uniform() / self.arrival_rate

    def gap_s(self, draw: Draw) -> float:
        """Seconds from one arrival to the next of an open load."""
        return (draw.exponential() if self.poisson else 1.0) / self.arrival_rate
