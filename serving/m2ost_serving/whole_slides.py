"""What ``m2ost_slide`` of a slide-level release does: a slide's spots through both stages. Knows nothing of Triton."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from m2ost_contract import MAX_ROWS, QUEUE_FULL, EngineInfo, PositionsError, RowStatus, spans
from m2ost_preprocess.errors import (
    SlideChanged,
    SlideError,
    SlideNotFound,
    SlideTimeout,
    UnreadableSlide,
    UnsupportedRequest,
)
from m2ost_preprocess.slides import RootedSlide, SlideRoots
from m2ost_preprocess.tiling.views import Centers, Statuses, spatial_order

from .queueing import Cancelled, FairQueue, why_dropped
from .tiling import TICKET_LOST
from .triton import Asked

SPOTS_MODEL, SEQUENCE_MODEL = "spots_model", "sequence_model"
PART_ROWS, PARTS_IN_FLIGHT, SLIDES_AT_ONCE = "part_rows", "parts_in_flight", "slides_at_once"
"""Parameters of the config: the models of the two stages; spots that the first is asked for at once, by how many
requests at a time, of how many slides."""

MOST_WAITING = 64
"""Slides that may wait. They hold coordinates alone."""

BUDGET_S = 3600.0
"""Longest time for a slide, in seconds, where its client names no limit."""

AGAIN_S = 0.25
"""Pause before a stage that is full is asked again, in seconds."""

_AGAIN = (QUEUE_FULL, TICKET_LOST)
"""Words of a stage that is full, or was too slow: it is asked again."""

_MEANT: tuple[tuple[str, type[SlideError]], ...] = (
    ("no such slide on the server", SlideNotFound),
    ("leads out of its slide root", SlideNotFound),
    ("was replaced while it was read", SlideChanged),
    ("gave no answer a moment ago", SlideTimeout),
    ("its reader did not answer within", SlideTimeout),
    ("its turn did not come within", SlideTimeout),
    ("not all of its spots were cut within", SlideTimeout),
)
"""By which words an error of a stage is known again: Triton's Python backend passes its words on, and not its code."""

_ENSEMBLE = re.compile(r"^in ensemble '[^']*', ")

Features = np.ndarray[Any, np.dtype[np.float32]]


class Reply(Protocol):
    """The way back to a request's client; see :class:`m2ost_serving.replies.Reply`."""

    answered: bool

    def is_cancelled(self) -> bool:
        """Whether the client has gone."""

    def scored(self, expression: Any, statuses: Any, facts: dict[str, Any]) -> bool:
        """Answer: float32 (n, G), int32 (n,), and what the log tells of it."""

    def error(self, error: Exception) -> bool:
        """Answer by an error."""


class StageError(Exception):
    """What a stage answered in place of values, in its own words."""


class Stages(Protocol):
    """The two stages of a network. Both end with a :class:`StageError` where they refuse."""

    def features(
        self, slide: str, centers: Centers, scale: float, asked: Asked, request_id: str, timeout_s: float
    ) -> tuple[Features, Statuses]:
        """Features (k, d) of up to 256 spots, and statuses (k, 1); safe to call from several threads."""

    def expression(
        self, features: Features, positions: Any, asked: Asked, request_id: str, timeout_s: float
    ) -> Features:
        """Expression (n, G) of all spots of a slide."""


@dataclass(eq=False)
class WholeSlide:
    """A slide to score.

    Parameters
    ----------
    reply : Reply
        Answered once.
    name : str
        The slide, as the client names it.
    centers : ndarray of int32, shape (n, 2)
        x, y: floor of a spot's centre in level-0 pixels.
    positions : ndarray of int32, shape (n, 2)
        x, y of the spots on the array.
    scale : float
        Level-0 pixels per view pixel of the finest view.
    asked : Asked
        What the request says beside its tensors.
    """

    reply: Reply
    name: str
    centers: Centers
    positions: Any
    scale: float
    asked: Asked
    arrived: float = field(default_factory=time.monotonic)
    until: float = math.inf
    located: RootedSlide | None = None
    together: None = None

    @property
    def shown(self) -> str:
        """Its name for messages, cut where it is long."""
        return self.located.shown if self.located else ""

    @property
    def rows(self) -> int:
        """Spots of it."""
        return len(self.centers)

    @property
    def sender(self) -> str:
        """Whose it is."""
        return self.asked.sender

    @property
    def background(self) -> bool:
        """Whether other work goes first."""
        return self.asked.background

    def drop(self) -> bool:
        """Whether nobody waits for it any more; it is answered then."""
        error = why_dropped(self.shown, cancelled=self.reply.is_cancelled(), arrived=self.arrived)
        if error is not None:
            self.reply.error(error)
        return self.reply.answered

    def left_s(self) -> float:
        """What is left of the time for it, in seconds.

        Raises
        ------
        SlideTimeout, Cancelled
            If nothing is, or its client has gone.
        """
        if self.reply.is_cancelled():
            raise Cancelled("cancelled")
        left_s = self.until - time.monotonic()
        if left_s <= 0:
            raise SlideTimeout(
                self.shown, f"its {self.rows:,} spots were not scored in time; allow more, or ask for fewer"
            )
        return left_s


class WholeSlides:
    """Takes slides at once, or refuses them; scores them in turn, in threads of its own.

    Parameters
    ----------
    roots : SlideRoots
        Where slides are; a name that is none is refused here already.
    info : EngineInfo
        Of the release; slide-level.
    stages : Stages
    part_rows, parts_in_flight, slides_at_once : int
        Spots that the first stage is asked for at once; by how many requests at a time; of how many slides.
    """

    def __init__(
        self,
        roots: SlideRoots,
        info: EngineInfo,
        stages: Stages,
        *,
        part_rows: int,
        parts_in_flight: int,
        slides_at_once: int,
    ) -> None:
        if info.slide_level is None:
            raise ValueError("the release predicts each spot by itself; export it anew")
        self._roots, self._info, self._level, self._stages = roots, info, info.slide_level, stages
        self._part_rows, self._in_flight = min(part_rows, MAX_ROWS), parts_in_flight
        self._queue: FairQueue[WholeSlide] = FairQueue(MOST_WAITING, unit="slides")
        self._changed, self._closed = threading.Condition(), False
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(slides_at_once)]
        for thread in self._threads:
            thread.start()

    def put(self, slide: WholeSlide) -> None:
        """Take on a slide, which is answered later. No pixel of it has been read when this refuses it.

        Raises
        ------
        SlideNotFound
            If its name is none.
        UnsupportedRequest
            If there are too many spots, or the network does not know their positions.
        QueueFull
            If as many wait as may.
        """
        slide.located = self._roots.locate(slide.name)
        try:
            self._level.check(slide.positions, slide.rows, whose=slide.shown)
        except PositionsError as error:
            raise UnsupportedRequest(str(error)) from error
        # Copies: the tensors' memory is Triton's again when this returns.
        slide.centers, slide.positions = slide.centers.copy(), slide.positions.copy()
        slide.until = slide.arrived + (slide.asked.timeout_s or BUDGET_S)
        with self._changed:
            self._queue.put([slide])
            self._changed.notify()

    def close(self) -> None:
        """End it after what is being scored. Slides that still wait are answered by nobody."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        with ThreadPoolExecutor(self._in_flight, "part") as pool:
            while (slide := self._next()) is not None:
                try:
                    slide.reply.scored(*self._score(slide, pool))
                except Exception as error:  # without an answer its client would wait for ever
                    slide.reply.error(error)

    def _next(self) -> WholeSlide | None:
        with self._changed:
            while not self._closed:
                self._queue.remove(lambda slide: slide.drop())
                taken = self._queue.take(lambda slide: slide.rows, lambda slide: True)
                if taken:
                    return taken[0]
                self._changed.wait()
            return None

    def _score(self, slide: WholeSlide, pool: ThreadPoolExecutor) -> tuple[Features, Statuses, dict[str, Any]]:
        began = time.monotonic()
        views = self._info.views
        order = spatial_order(slide.centers, window_px=views.window_px(views.n_views - 1))
        # In parts of one row the values would have other last bits: see `spans`.
        parts = [order[span] for span in spans(slide.rows, self._part_rows, MAX_ROWS)]
        features = np.full((slide.rows, self._level.features), np.nan, np.float32)
        statuses = np.zeros(slide.rows, np.int32)
        stop = threading.Event()

        def first_stage(number: int) -> None:
            if stop.is_set():
                return
            rows = parts[number]
            request_id = f"{slide.asked.request_id}-{number}"
            try:
                found, status = self._ask(
                    slide,
                    lambda left_s: self._stages.features(
                        slide.name, slide.centers[rows], slide.scale, slide.asked, request_id, left_s
                    ),
                )
            except BaseException:
                stop.set()
                raise
            features[rows], statuses[rows] = found, status.reshape(-1)

        asked = [pool.submit(first_stage, number) for number in range(len(parts))]
        failures = [error for part in asked if (error := part.exception()) is not None]
        if failures:
            raise failures[0]
        features_s = time.monotonic() - began
        expression = np.full((slide.rows, len(self._info.genes)), np.nan, np.float32)
        good = np.flatnonzero(statuses == RowStatus.OK)
        if len(good):
            expression[good] = self._ask(
                slide,
                lambda left_s: self._stages.expression(
                    features[good], slide.positions[good], slide.asked, slide.asked.request_id, left_s
                ),
            )
        facts = {
            "rows": slide.rows,
            "rows_without_value": slide.rows - len(good),
            "waited_s": round(began - slide.arrived, 4),
            "features_s": round(features_s, 4),
            "sequence_s": round(time.monotonic() - began - features_s, 4),
        }
        return expression, statuses, facts

    def _ask(self, slide: WholeSlide, ask: Callable[[float], Any]) -> Any:
        """Ask a stage, again and again while it is full and somebody waits."""
        while True:
            try:
                return ask(slide.left_s())
            except StageError as error:
                words = _ENSEMBLE.sub("", str(error))
                if not any(again in words for again in _AGAIN):
                    raise _meant(slide, words) from error
            time.sleep(AGAIN_S)


def _meant(slide: WholeSlide, words: str) -> Exception:
    """A stage's error as that which it was there: one about the slide begins with its name, with its root or not."""
    names = (slide.shown, slide.located.name if slide.located else "")
    for name in names:
        if words.startswith(f"{name}: "):
            message = words.removeprefix(f"{name}: ")
            kind = next((kind for known, kind in _MEANT if known in message), UnreadableSlide)
            return kind(slide.shown, message)
    return StageError(f"{slide.shown}: {words}")
