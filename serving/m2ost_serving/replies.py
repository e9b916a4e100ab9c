"""The way back to a request's client, which any thread may take, and one does."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any


class Reply(ABC):
    """Answers a request once, by whichever thread is first; nothing here raises.

    Triton frees a request once it is answered. Whoever asks then whether its client has gone reads freed memory, and is
    told anything. So whether it is answered is looked at under the same lock.

    Parameters
    ----------
    warn : callable
        Told why an answer was lost, or a client could not be asked for.

    Attributes
    ----------
    answered : bool
        Whether an answer was given.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn, self._lock = warn, threading.Lock()
        self.answered = False

    def is_cancelled(self) -> bool:
        """Whether the client has gone; False once the request is answered."""
        with self._lock:
            if self.answered:
                return False
            try:
                return self._has_gone()
            except Exception as error:
                self._warn(f"whether a client has gone is unknown: {error!r}")
                return False

    def error(self, error: Exception) -> bool:
        """Answer by an error; False where the request is answered already."""
        return self.answer(lambda: error)

    def answer(self, make: Callable[[], Any]) -> bool:
        """Answer by what ``make`` returns, or by the error that it ends with.

        Returns
        -------
        bool
            False where the request is answered already.
        """
        with self._lock:
            if self.answered:
                return False
            try:
                answer = make()
            except Exception as error:
                answer = error
            self.answered = True
            try:
                self._send(answer)
            except Exception as error:
                self._warn(f"an answer was lost: {error!r}")
            return True

    @abstractmethod
    def _has_gone(self) -> bool:
        """Ask whether the client has gone."""

    @abstractmethod
    def _send(self, answer: Any) -> None:
        """Send an answer, or an exception; called once."""
