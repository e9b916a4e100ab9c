"""Slides and roots that did not answer, remembered for a while: whoever asks for them meanwhile need not wait."""

from __future__ import annotations

import threading
import time

from m2ost_preprocess.decoder.child import ChildStalled, FilesStalled
from m2ost_preprocess.errors import SlideTimeout
from m2ost_preprocess.slides import RootedSlide

REMEMBER_S = 60.0
"""For how long they are refused, in seconds; afterwards one request finds out whether they answer again."""


class Stalls:
    """What did not answer; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until: dict[RootedSlide | str, float] = {}

    def note(self, slide: RootedSlide, error: Exception) -> None:
        """Remember what an error says of a slide or of its root."""
        if isinstance(error, ChildStalled):
            with self._lock:
                now = time.monotonic()
                self._until = {what: until for what, until in self._until.items() if until > now}
                self._until[slide.root if isinstance(error, FilesStalled) else slide] = now + REMEMBER_S

    def check(self, slide: RootedSlide) -> None:
        """Refuse a slide that did not answer, or whose root did not.

        Raises
        ------
        SlideTimeout
            Says when it will be tried again.
        """
        with self._lock:
            until, now = self._until, time.monotonic()
            left_s = max(until.get(slide, now), until.get(slide.root, now)) - now
        if left_s > 0:
            what = f"slide root {slide.root!r}" if slide.root in until else "it"
            raise SlideTimeout(slide.shown, f"{what} gave no answer a moment ago; tried again in {left_s:.0f} s")
