"""What readers of data sets share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from m2ost_preprocess.slides.spots import Spots

from .errors import DataError


def find_one(root: Path, name: str, what: str, patterns: Sequence[str]) -> Path:
    """The first of ``patterns`` (with ``{name}``) that exists below ``root``.

    Raises
    ------
    DataError
        If none does; lists them.
    """
    candidates = [root / pattern.format(name=name) for pattern in patterns]
    for path in candidates:
        if path.is_file():
            return path
    tried = ", ".join(str(path.relative_to(root)) for path in candidates)
    raise DataError(f"{root}: section {name} has no {what}; looked for {tried}")


def choose(root: Path, found: Sequence[str], names: Sequence[str] | None) -> Sequence[str]:
    """The sections to read: ``names``, or all that were found.

    Raises
    ------
    DataError
        If there is none, or one of ``names`` is not among them.
    """
    if not found:
        raise DataError(f"{root}: no section found")
    for name in names or ():
        if name not in found:
            raise DataError(f"{root}: no section {name!r}; there are {', '.join(found)}")
    return found if names is None else names


def find_single(folder: Path, name: str, what: str, patterns: Sequence[str], remedy: str) -> Path:
    """The one file in ``folder`` that matches any of ``patterns`` (globs).

    Raises
    ------
    DataError
        If there is none, or more than one; lists what was looked for or found, and says ``remedy``.
    """
    found = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{folder}: section {name} has {len(found)} files that may be its {what} "
            f"({', '.join(path.name for path in found)}); {remedy}"
        )
    raise DataError(f"{folder}: section {name} has no {what}; looked for {', '.join(patterns)}; {remedy}")


def array_mpp(spots: Spots, pitch_um: float) -> float | None:
    """µm/px from spots named ``{column}x{row}`` of an array with a known pitch.

    From a straight line through all spots: they lie where they were printed, off the lattice, and the median distance
    to the nearest neighbour comes out 6 % short of the pitch.

    Returns
    -------
    float or None
        None for fewer than two columns or rows.
    """
    if len(spots) < 2:
        return None
    index = np.array([name.split("x") for name in spots.names], np.float64)
    spread = index - index.mean(axis=0)
    squares = (spread * spread).sum(axis=0)
    if not (squares > 0).all():
        return None
    slopes = (spread * spots.centers).sum(axis=0) / squares
    return float(pitch_um / np.abs(slopes).mean())
