"""How long a storage is waited for, and how often it is asked again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TypeVar

from ..errors import ClientError

Answer = TypeVar("Answer")

_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ImportError, NotImplementedError)
_BUSY_STATUSES = (408, 425, 429)
"""HTTP's answers of 400 to 499 that another try may change."""


class Interrupted(Exception):
    """What was to come did not, or not all of it; the words say so."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a storage is waited for, whichever it is.

    Parameters
    ----------
    timeout_s : float
        Longest wait for one answer, or for one block of a file, in seconds.
    pauses_s : tuple of float
        Before the second try, the third and so on, in seconds.
    """

    timeout_s: float = 60.0
    pauses_s: tuple[float, ...] = (1.0, 2.0, 4.0)

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s must be positive, not {self.timeout_s}")

    def once(self, call: Callable[[], Answer]) -> Answer:
        """What a call returns or raises.

        It runs in a thread of its own. One that stalls is left behind with it, and does not keep the process alive.

        Raises
        ------
        Interrupted
            If it does not end within ``timeout_s``.
        """
        future: Future[Answer] = Future()

        def run() -> None:
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, name="m2ost-storage", daemon=True).start()
        if not wait([future], self.timeout_s).done:
            raise Interrupted(f"nothing came for {self.timeout_s:g} s")
        return future.result()

    def persist(
        self,
        attempt: Callable[[], Answer],
        give_up: Callable[[Exception, int], Exception],
        progress: Callable[[], int] = lambda: 0,
    ) -> Answer:
        """What an attempt returns, made again after each failure that may pass.

        Parameters
        ----------
        attempt : callable
            An error of the client's own ends it at once.
        give_up : callable
            Makes the error to raise, of the last failure and the number of attempts since there was progress.
        progress : callable
            How far the attempts are; after one that came farther, the tries are counted anew.
        """
        failures, reached = 0, progress()
        while True:
            try:
                return attempt()
            except ClientError:
                raise
            except Exception as error:
                if progress() > reached:
                    failures, reached = 0, progress()
                if failures == len(self.pauses_s) or _is_final(error):
                    raise give_up(error, failures + 1) from error
            time.sleep(self.pauses_s[failures])
            failures += 1


PATIENCE = Patience()
"""With which a storage is met that nobody says more of."""


def _is_final(error: Exception) -> bool:
    """Whether no further try helps: absent, forbidden, or asked in a way that the storage refuses."""
    statuses = [getattr(error, name, None) for name in ("status", "status_code", "code")]
    refused = (isinstance(status, int) and 400 <= status < 500 and status not in _BUSY_STATUSES for status in statuses)
    return isinstance(error, _FINAL) or any(refused)
