"""Several things measured in turn, in one run: what changes the pace of the machine changes it for all of them.

A speed is told as a ratio of two figures of the same round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar

from m2ost_contract.progress import tell

from .machine import describe_machine

T = TypeVar("T")
U = TypeVar("U")


class Spread(TypedDict):
    """Median of several rounds, with their range."""

    median: float
    min: float
    max: float


def spread(values: Sequence[float]) -> Spread:
    """Median with its range."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def spread_text(value: Spread, figure: str = ".3g", unit: str = "") -> str:
    """``median [min … max]``, each by the format ``figure``."""
    return f"{value['median']:{figure}}{unit} [{value['min']:{figure}} … {value['max']:{figure}}]"


class Seconds(NamedTuple):
    """What a run took: by the clock, and processor time of all threads of this process.

    Other programs on the machine hardly lengthen the latter.
    """

    clock: float
    processor: float


def timed(run: Callable[[], T]) -> tuple[T, Seconds]:
    """What ``run`` returns, and what it took."""
    clock, processor = time.perf_counter(), time.process_time()
    value = run()
    return value, Seconds(time.perf_counter() - clock, time.process_time() - processor)


def seconds_of(run: Callable[[], object]) -> Seconds:
    """What one run takes."""
    return timed(run)[1]


@dataclass(frozen=True)
class Rounds(Generic[T]):
    """What things gave that were measured in turn.

    Parameters
    ----------
    found : mapping of str to sequence
        Name → what it gave, one entry a round; in the order in which the first round went.
    """

    found: Mapping[str, Sequence[T]]

    def facts(self) -> dict[str, Any]:
        """For a report: ``machine``, ``rounds``, and ``order``, that of the first round; see :func:`interleave`."""
        rounds = len(next(iter(self.found.values())))
        return {"machine": describe_machine(), "rounds": rounds, "order": list(self.found)}

    def map(self, figure: Callable[[T], U]) -> Rounds[U]:
        """The same rounds with ``figure`` of everything that was given."""
        return Rounds({name: [figure(value) for value in values] for name, values in self.found.items()})

    def ratio(self: Rounds[float], name: str, other: str) -> Spread:
        """Figures of ``name`` over those of ``other`` in the same rounds."""
        return spread([a / b for a, b in zip(self.found[name], self.found[other], strict=True)])

    def ratios(self: Rounds[float], reference: str) -> dict[str, Spread]:
        """Figures of ``reference`` over those of each: of seconds, how many times as fast as it each is."""
        return {name: self.ratio(reference, name) for name in self.found}

    def spreads(self: Rounds[float]) -> dict[str, Spread]:
        """Median and range of each."""
        return {name: spread(values) for name, values in self.found.items()}


def interleave(measures: Mapping[str, Callable[[], T]], rounds: int) -> Rounds[T]:
    """Measure each thing once a round; every round begins with another one, so that none always runs first.

    Parameters
    ----------
    measures : mapping of str to callable
        Name → measures once, and gives what was found. What a first run loads is the caller's to load before.
    rounds : int
        Positive.
    """
    names = list(measures)
    found: dict[str, list[T]] = {name: [] for name in names}
    runs = rounds * len(names)
    for index in range(rounds):
        first = index % len(names)
        for place, name in enumerate((*names[first:], *names[:first])):
            tell(name, index * len(names) + place, runs)
            found[name].append(measures[name]())
    tell("done", runs, runs)
    return Rounds(found)


def time_in_turn(runs: Mapping[str, Callable[[], object]], rounds: int) -> Rounds[Seconds]:
    """Time each run once a round, as :func:`interleave` does."""
    return interleave({name: partial(seconds_of, run) for name, run in runs.items()}, rounds)
