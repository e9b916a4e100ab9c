"""The nested views of a spot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ViewGeometry:
    """The nested views of one spot.

    Parameters
    ----------
    size_px : int
        Side of every view, in view pixels (224 in the paper).
    factors : tuple of int
        Side of each view's window in units of ``size_px``, fine to coarse ((1, 2, 4) in the paper).

    Raises
    ------
    ValueError
        If the size is not even and positive, or the factors do not start at 1 and double from view to view.
    """

    size_px: int = 224
    factors: tuple[int, ...] = (1, 2, 4)

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", tuple(int(f) for f in self.factors))
        if self.size_px <= 0 or self.size_px % 2:
            raise ValueError(f"view size must be even and positive, not {self.size_px}")
        if self.factors != tuple(2**i for i in range(len(self.factors))) or not self.factors:
            raise ValueError(f"view factors must be 1, 2, 4, …, not {self.factors}")

    @property
    def n_views(self) -> int:
        """Number of views."""
        return len(self.factors)

    @property
    def names(self) -> tuple[str, ...]:
        """Tensor names VIEW0, VIEW1, …, fine to coarse."""
        return tuple(f"VIEW{i}" for i in range(self.n_views))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one view: (size_px, size_px, 3), RGB."""
        return (self.size_px, self.size_px, 3)

    def window_px(self, view: int, scale: float = 1.0) -> int:
        """Side of the square that ``view`` covers, in level-0 pixels, at ``scale`` level-0 px per view px."""
        return max(1, math.floor(self.size_px * self.factors[view] * scale + 0.5))

    def windows(self, center: tuple[int, int], scale: float = 1.0) -> list[tuple[int, int, int]]:
        """``(left, top, side)`` of every view's window in level-0 pixels; may reach outside the slide."""
        x, y = center
        sides = [self.window_px(i, scale) for i in range(self.n_views)]
        return [(x - side // 2, y - side // 2, side) for side in sides]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"size_px": self.size_px, "factors": list(self.factors)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ViewGeometry:
        """Inverse of :meth:`to_dict`."""
        return cls(size_px=int(raw["size_px"]), factors=tuple(raw["factors"]))
