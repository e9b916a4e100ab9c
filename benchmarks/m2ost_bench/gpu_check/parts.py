"""Parts of a check: each ends as right, wrong or skipped for a reason, and none takes another with it."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

RIGHT, WRONG, SKIPPED = "right", "wrong", "skipped"


class Skip(Exception):
    """A part cannot run here; the message says what is missing and what would bring it."""


@dataclass
class Outcome:
    """How a part ended.

    Attributes
    ----------
    name : str
        The part.
    status : str
        ``right``, ``wrong`` or ``skipped``.
    reason : str
        Why, unless it is right.
    figures : dict
        What it measured; JSON can hold it.
    """

    name: str
    status: str = RIGHT
    reason: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    def expect(self, holds: bool, reason: str) -> None:
        """Note that something is wrong unless ``holds``."""
        if not holds:
            self.status = WRONG
            self.reason = "; ".join(filter(None, (self.reason, reason)))


def need(module: str, *, install: str) -> Any:
    """A library, or the part is skipped.

    Parameters
    ----------
    module : str
        To import.
    install : str
        What would bring it.

    Raises
    ------
    Skip
        If it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Skip(f"{module} cannot be imported ({error}); {install}") from error


def run_part(name: str, part: Callable[[Outcome], None]) -> Outcome:
    """Run a part, whatever happens in it.

    Parameters
    ----------
    name : str
        Its name.
    part : callable
        Fills in the outcome that it is given; raises :class:`Skip` where it cannot run here.

    Returns
    -------
    Outcome
        An exception is ``wrong``: it names the error and where it came from.
    """
    outcome = Outcome(name)
    try:
        part(outcome)
    except Skip as skip:
        outcome.status, outcome.reason = SKIPPED, str(skip)
    except Exception as error:  # one part's surprise must not cost the others their figures
        frame = traceback.extract_tb(error.__traceback__)[-1]
        outcome.expect(False, f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})")
    return outcome
