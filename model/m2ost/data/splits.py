"""Which sections to train on, to select by, and to judge on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .errors import DataError


@dataclass(frozen=True, kw_only=True)
class Split:
    """Names of sections.

    Parameters
    ----------
    train, validation, test : tuple of str
        Disjoint. ``validation`` chooses the epoch, and where it is empty the last one is kept; ``test`` is not looked
        at in training.

    Raises
    ------
    ValueError
        If a section stands in two parts, or ``train`` is empty.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        if not self.train:
            raise ValueError("split.train names no section")
        names = [section for part in parts.values() for section in part]
        for section in names:
            if names.count(section) > 1:
                raise ValueError(f"section {section} stands twice in the split")

    def to_dict(self) -> dict[str, list[str]]:
        """YAML form."""
        return {part: list(names) for part, names in asdict(self).items()}

    def write(self, path: Path) -> None:
        """Write as YAML, as ``m2ost train --split`` reads it."""
        path.write_text(yaml.safe_dump(self.to_dict(), sort_keys=False), encoding="utf-8")


def read_split(path: Path) -> Split:
    """Inverse of :meth:`Split.write`.

    Raises
    ------
    DataError
        If the file is no split.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Split(**{part: tuple(map(str, names)) for part, names in raw.items()})
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{path}: no split (lists train, validation, test of section names): {error}") from error


def split_sections(
    sections: Sequence[Any], *, by: str = "section", shares: Sequence[float] = (0.6, 0.1, 0.3), seed: int = 0
) -> Split:
    """Split at random; the article splits by section 60/10/30.

    Parameters
    ----------
    sections : sequence of Section
        Only ``name`` and ``patient`` are used.
    by : str
        ``section``, or ``patient``: a patient's sections stay together.
    shares : three floats
        Of train, validation and test, in numbers of sections; each part gets at least one group.
    seed : int

    Raises
    ------
    DataError
        If there are fewer than three groups.
    """
    groups = _groups(sections, by)
    if len(groups) < 3:
        raise DataError(f"{len(groups)} {by}s cannot be split in three; a split by {by} needs three or more")
    order = np.random.default_rng(seed).permutation(len(groups))
    names = list(groups)
    bounds = np.cumsum(np.asarray(shares) / sum(shares))[:-1] * len(names)
    first = int(np.clip(round(bounds[0]), 1, len(names) - 2))
    second = int(np.clip(round(bounds[1]), first + 1, len(names) - 1))
    parts = [order[:first], order[first:second], order[second:]]
    return Split(
        **{
            part: tuple(sorted(section for i in chosen for section in groups[names[i]]))
            for part, chosen in zip(("train", "validation", "test"), parts, strict=True)
        }
    )


def leave_one_out(sections: Sequence[Any], *, by: str = "section") -> Iterator[Split]:
    """One split a group: that group is the test, the next one the validation, the others train.

    Raises
    ------
    DataError
        If there are fewer than three groups.
    """
    groups = list(_groups(sections, by).values())
    if len(groups) < 3:
        raise DataError(f"{len(groups)} {by}s: leaving one out needs three or more")
    for i, test in enumerate(groups):
        validation = groups[(i + 1) % len(groups)]
        train = tuple(s for group in groups if group is not test and group is not validation for s in group)
        yield Split(train=train, validation=tuple(validation), test=tuple(test))


def _groups(sections: Sequence[Any], by: str) -> dict[str, list[str]]:
    if by not in ("section", "patient"):
        raise DataError(f"a split is by section or by patient, not by {by!r}")
    groups: dict[str, list[str]] = {}
    for section in sections:
        groups.setdefault(section.name if by == "section" else section.patient, []).append(section.name)
    return groups
