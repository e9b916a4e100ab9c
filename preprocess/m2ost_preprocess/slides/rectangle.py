"""A rectangle of a slide, in level-0 pixels: what a run is restricted to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import SpotError

_FORM = re.compile(r"(\d+),(\d+),(\d+),(\d+)")


@dataclass(frozen=True)
class Rectangle:
    """A rectangle, in level-0 pixels.

    Parameters
    ----------
    left, top : int
        Its first pixel.
    width, height : int
        Its sides; positive.

    Raises
    ------
    SpotError
        If it is empty, or begins left of or above the slide.
    """

    left: int
    top: int
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise SpotError(f"region {self}: empty; its width and height must be 1 pixel at least")
        if self.left < 0 or self.top < 0:
            raise SpotError(f"region {self}: X and Y must not be negative")

    def __str__(self) -> str:
        return f"{self.left},{self.top},{self.width},{self.height}"

    @classmethod
    def parse(cls, text: str) -> Rectangle:
        """Read ``X,Y,W,H``.

        Raises
        ------
        SpotError
            If ``text`` is not of this form, or the rectangle is empty.
        """
        found = _FORM.fullmatch(text.replace(" ", ""))
        if found is None:
            raise SpotError(f"region {text!r}: write X,Y,W,H in whole level-0 pixels, such as 4096,2048,2048,2048")
        return cls(*map(int, found.groups()))

    def within(self, size: tuple[int, int]) -> Rectangle:
        """The part of it that lies on a slide.

        Parameters
        ----------
        size : (int, int)
            Width and height of the slide in level-0 pixels.

        Raises
        ------
        SpotError
            If no part does.
        """
        width, height = min(self.left + self.width, size[0]), min(self.top + self.height, size[1])
        if self.left >= width or self.top >= height:
            raise SpotError(f"region {self}: outside the slide, which has {size[0]}×{size[1]} pixels")
        return Rectangle(self.left, self.top, width - self.left, height - self.top)

    def holds(self, centers: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which positions lie in it.

        Parameters
        ----------
        centers : array_like, shape (n, 2)
            x, y in level-0 pixels.

        Returns
        -------
        ndarray of bool, shape (n,)
        """
        offsets = np.floor(np.asarray(centers, np.float64).reshape(-1, 2)) - (self.left, self.top)
        inside = (offsets >= 0) & (offsets < (self.width, self.height))
        return np.logical_and(inside[:, 0], inside[:, 1])
