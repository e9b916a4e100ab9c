"""What predicts the expression of a section, and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..data.section import Section
from ..data.splits import Split

Array = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Prediction:
    """Predicted expression of one section's spots.

    Parameters
    ----------
    genes : tuple of str
        Columns.
    values : ndarray of float32, shape (n, genes)
        Rows as the section's spots; NaN where there is no prediction.
    """

    genes: tuple[str, ...]
    values: Array


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a subject says of itself.

    Parameters
    ----------
    name : str
        For the report.
    genes : tuple of str
        What it predicts.
    target : str
        In which units; see :data:`m2ost.data.section.TARGETS`.
    split : Split or None
        What it was trained on, where it says so.
    """

    name: str
    genes: tuple[str, ...]
    target: str
    split: Split | None = None


class Subject(Protocol):
    """Something that predicts the expression of a section's spots."""

    facts: Facts

    def predict(self, section: Section) -> Prediction:
        """Predict every spot of ``section``, or raise a ``DataError``."""
