"""Numbers with bounds that typer's own types cannot express; none of them takes `nan`."""

from __future__ import annotations

import math

import typer


def positive(text: str | float) -> float:
    """A number above 0.

    Raises
    ------
    typer.BadParameter
        If it is none; typer names the option.
    """
    number = _number(text)
    if not 0 < number < math.inf:
        raise typer.BadParameter(f"{text!r} is not a number above 0.")
    return number


def not_negative(text: str | float) -> float:
    """A number from 0 on, ``inf`` included.

    Raises
    ------
    typer.BadParameter
        If it is none; typer names the option.
    """
    number = _number(text)
    if not number >= 0:
        raise typer.BadParameter(f"{text!r} is not a number from 0 on.")
    return number


def _number(text: str | float) -> float:
    """What the text says; ``nan``, which no bound holds of, where it says no number."""
    try:
        return float(text)
    except ValueError:
        return math.nan
