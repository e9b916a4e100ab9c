"""What a network asks for that predicts all spots of a slide together: a place on the array for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np

from .errors import M2OSTError

SPOT, SLIDE = "spot", "slide"
"""A spot-level network predicts each spot by itself; a slide-level one all spots of a slide together."""

ARRAY_OR_GRID = "array"
"""Where positions come from: the place on the array that the file of spots gives, else column and row of the grid over
the tissue, counted from the first that have a spot."""


class PositionsError(M2OSTError, ValueError):
    """The spots of a slide, or their places on the array, are not such that a slide-level network takes them."""


@dataclass(frozen=True)
class SlideLevel:
    """What a slide-level release asks of the spots of a slide.

    Parameters
    ----------
    features : int
        Numbers of a spot that pass from the stage for patches to the stage for slides.
    table : int
        Places on the array that the network knows along each axis: 0 … table − 1.
    max_spots : int
        Most spots of a slide: the memory of the stage for slides grows with their square.
    positions : str
        Where positions come from: ``ARRAY_OR_GRID``.
    """

    features: int
    table: int
    max_spots: int
    positions: str = ARRAY_OR_GRID

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`; what a later version adds is left out.

        Raises
        ------
        ValueError, KeyError, TypeError
            If it is not that.
        """
        level = cls(**{field.name: raw[field.name] for field in fields(cls)})
        numbers = (level.features, level.table, level.max_spots)
        if not all(type(number) is int and number > 0 for number in numbers) or level.positions != ARRAY_OR_GRID:
            raise ValueError(f"slide_level {dict(raw)!r} is of no network that this version serves")
        return level

    def check(self, positions: np.ndarray[Any, Any], spots: int, *, whose: str) -> None:
        """Refuse positions that the network does not know, before a pixel is read.

        ONNX Runtime would take those from −table to −1 for others, without a word.

        Parameters
        ----------
        positions : ndarray of integers
            x and y on the array; shape (spots, 2).
        spots : int
            How many spots the slide has.
        whose : str
            The slide, for messages.

        Raises
        ------
        PositionsError
            If there are no spots or too many, positions of another number, one outside the table, or two alike.
        """
        if not 0 < spots <= self.max_spots:
            raise PositionsError(
                f"{whose}: {spots:,} spots; this network predicts a slide as a whole, of 1 to {self.max_spots:,} "
                "spots; score a part of the slide, or spots further apart"
            )
        if positions.shape != (spots, 2):
            shown = " × ".join(map(str, positions.shape))
            raise PositionsError(f"{whose}: positions of {shown} for {spots:,} spots; x and y of each are needed")
        outside = np.flatnonzero(((positions < 0) | (positions >= self.table)).any(axis=1))
        if len(outside):
            row = int(outside[0])
            raise PositionsError(
                f"{whose}: spot {row} has array position {positions[row].tolist()}, outside the {self.table} that the "
                f"network was made for (0 to {self.table - 1}), as {len(outside):,} of {spots:,} spots have"
            )
        places = positions[:, 0].astype(np.int64) * self.table + positions[:, 1]
        _, first, count = np.unique(places, return_index=True, return_counts=True)
        if len(first) < spots:
            row = int(first[count > 1][0])
            raise PositionsError(
                f"{whose}: {count.max()} spots have the array position {positions[row].tolist()}; no two may share one"
            )
