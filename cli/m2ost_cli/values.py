"""Values that a command line gives as text: each is read here, or refused in a sentence with an example."""

from __future__ import annotations

import math
import re

import typer

from .common import UserError
from .numeric import positive

_SIZE = re.compile(r"([0-9]*\.?[0-9]+) *(MiB|GiB)")


def view_mpp(text: str | None) -> float | str | None:
    """``--view-mpp``: a number of µm/px, or ``model``.

    Raises
    ------
    UserError
        If it is neither.
    """
    if text in (None, "model"):
        return text
    try:
        return positive(str(text))
    except typer.BadParameter as error:
        raise UserError(f"--view-mpp {text}: give µm/px as a number above 0, such as 0.5, or the word model") from error


def capabilities(text: str) -> tuple[str, ...]:
    """``--compute-capability``: numbers such as 8.9 with commas between them.

    Raises
    ------
    UserError
        If one of them is none.
    """
    found = tuple(names(text))
    if not all(re.fullmatch(r"\d+\.\d", one) for one in found):
        raise UserError(f"--compute-capability {text}: write numbers with commas between them, such as 8.0,8.9")
    return found


def triple(option: str, text: str) -> tuple[float, ...]:
    """Three finite numbers with commas between them.

    Raises
    ------
    UserError
        If ``text`` is anything else.
    """
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise UserError(f"{option} {text}: give three numbers, such as 0.5,0.5,0.5")
    return numbers


def size_bytes(option: str, text: str) -> int:
    """A size with its unit, MiB or GiB.

    Raises
    ------
    UserError
        If ``text`` is none.
    """
    found = _SIZE.fullmatch(text)
    if found is None or not float(found[1]):
        raise UserError(f"{option} {text}: give a size with its unit, such as 512MiB or 4GiB")
    return int(float(found[1]) * (1 << (20 if found[2] == "MiB" else 30)))


def names(text: str) -> list[str]:
    """Names with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def named_files(option: str, given: list[str]) -> dict[str, str]:
    """``NAME=FILE`` of an option that may be repeated.

    Raises
    ------
    UserError
        If one reads otherwise, or a name comes twice.
    """
    found: dict[str, str] = {}
    for one in given:
        name, equals, file = one.partition("=")
        if not (name and equals and file):
            raise UserError(f"{option} {one}: write NAME=FILE")
        if name in found:
            raise UserError(f"{option} {one}: {name} is given twice")
        found[name] = file
    return found
