"""What ``slide_info`` does with requests: each waits for a lane, and is answered. Knows nothing of Triton."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from m2ost_preprocess.decoder import Decoder, SlideInfo
from m2ost_preprocess.decoder.child import Limits
from m2ost_preprocess.errors import answered
from m2ost_preprocess.slides import RootedSlide, SlideRoots

from .lanes import Lanes, decoder_environment
from .queueing import why_dropped
from .stalls import Stalls

BUDGET_S = 300.0
"""Longest time for describing a slide, in seconds, where its client names no limit."""

MOST_WAITING = 256


class Reply(Protocol):
    """The way back to a request's client; see :class:`m2ost_serving.replies.Reply`."""

    answered: bool

    def is_cancelled(self) -> bool:
        """Whether the client has gone."""

    def found(self, found: SlideInfo | str) -> bool:
        """Answer by what a slide is, or by its fingerprint."""

    def error(self, error: Exception) -> bool:
        """Answer by an error."""


@dataclass(eq=False)
class Description:
    """A request for what a slide is.

    Parameters
    ----------
    reply : Reply
        Answered once.
    slide : RootedSlide
        The slide.
    fingerprint : bool
        Whether its content's identity alone is asked for.
    pitch_um, mpp : float, optional
        See :meth:`m2ost_preprocess.decoder.Decoder.describe`.
    background : bool
        Whether other work goes first.
    sender : str
        Whose it is.
    budget_s : float
        Longest time for it in seconds, once it has its turn.
    """

    reply: Reply
    slide: RootedSlide
    fingerprint: bool = False
    pitch_um: float | None = None
    mpp: float | None = None
    background: bool = False
    sender: str = ""
    budget_s: float = BUDGET_S
    arrived: float = field(default_factory=time.monotonic)
    together: None = None
    rows: int = 1

    @property
    def root(self) -> str:
        """Name of the slide's root."""
        return self.slide.root

    def drop(self) -> bool:
        """See :meth:`m2ost_serving.lanes.Task.drop`."""
        error = why_dropped(self.slide.shown, cancelled=self.reply.is_cancelled(), arrived=self.arrived)
        if error is not None:
            self.reply.error(error)
        return self.reply.answered

    def fail(self, error: Exception) -> None:
        """Answer by an error."""
        self.reply.error(answered(self.slide.name, error))


class _Describer:
    """Describes the slides of a lane."""

    def __init__(self, decoder: Decoder, stalls: Stalls) -> None:
        self._decoder, self._stalls = decoder, stalls
        self._decoder.start()

    def do(self, tasks: list[Description]) -> None:
        """Describe one slide."""
        for task in tasks:
            if task.drop():
                continue
            limits = Limits(task.budget_s)
            try:
                self._stalls.check(task.slide)
                found: Any = (
                    self._decoder.fingerprint(task.slide, limits=limits)
                    if task.fingerprint
                    else self._decoder.describe(task.slide, pitch_um=task.pitch_um, mpp=task.mpp, limits=limits)
                )
            except Exception as error:
                self._stalls.note(task.slide, error)
                task.fail(error)
            else:
                task.reply.found(found)

    def close(self) -> None:
        """End the decoder."""
        self._decoder.close()


def _decoder(background: bool) -> Decoder:
    return Decoder(threads=0, environment=decoder_environment(background))


class Describing:
    """Takes requests at once, or refuses them; answers them in turn.

    Parameters
    ----------
    roots : SlideRoots
        Where slides are.
    decoder : callable
        Makes the decoder of a lane, given whether it does background work. By default one that cuts nothing, and keeps
        no tiles to read along.
    tell_waiting : callable
        See :class:`m2ost_serving.lanes.Lanes`.
    """

    def __init__(
        self,
        roots: SlideRoots,
        decoder: Callable[[bool], Decoder] = _decoder,
        *,
        tell_waiting: Callable[[int], None] = lambda tasks: None,
    ) -> None:
        self._roots, self._stalls = roots, Stalls()
        self._lanes: Lanes[Description] = Lanes(
            lambda background, number: _Describer(decoder(background), self._stalls),
            rows=1,
            most_waiting=MOST_WAITING,
            tell_waiting=tell_waiting,
        )

    def locate(self, name: str) -> RootedSlide:
        """The slide of a name.

        Raises
        ------
        SlideNotFound
            If there can be no such slide.
        SlideTimeout
            If it, or its root, gave no answer a moment ago.
        """
        slide = self._roots.locate(name)
        self._stalls.check(slide)
        return slide

    def put(self, task: Description) -> None:
        """Take on a request.

        Raises
        ------
        QueueFull
            If as many wait as may.
        """
        self._lanes.put([task])

    def close(self) -> None:
        """End it after what is being described."""
        self._lanes.close()
