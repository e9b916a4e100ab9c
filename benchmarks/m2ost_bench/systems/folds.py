"""What is trained on what, and judged on what: the same for every system."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from m2ost.data.errors import DataError
from m2ost.data.section import Section
from m2ost.data.splits import Split, leave_one_out

BY_SECTION, BY_PATIENT = "by section", "by patient"


@dataclass(frozen=True)
class Fold:
    """One training, and the section that it is judged on.

    Parameters
    ----------
    name : str
        Of the section.
    kind : str
        ``by section``, where other sections of its patient are trained on, or ``by patient``.
    split : Split
        The validation section chooses the epoch, where there is one.
    """

    name: str
    kind: str
    split: Split

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"name": self.name, "kind": self.kind, **self.split.to_dict()}


def make_folds(
    sections: Sequence[Section], inner: Sequence[str], outer: Sequence[str], *, validate: bool = True
) -> list[Fold]:
    """One fold a section: of ``inner`` each is left out, ``outer`` are of patients that are never trained on.

    Parameters
    ----------
    sections : sequence of Section
        Only ``name`` and ``patient`` are used.
    inner : sequence of str
        At least three. Of each fold the next one is the validation; for ``outer`` the last one.
    outer : sequence of str
    validate : bool
        False: all sections of ``inner`` but the one left out are trained on, and the last epoch is kept.

    Raises
    ------
    DataError
        If a name is unknown, stands twice, or is of ``outer`` and its patient trained on.
    """
    patients = {section.name: section.patient for section in sections}
    names = [*inner, *outer]
    odd = [name for name in names if name not in patients or names.count(name) > 1]
    if odd:
        raise DataError(f"section {odd[0]}: is not there, or is named twice; there are {', '.join(patients)}")
    known = {patients[name] for name in inner}
    seen = [name for name in outer if patients[name] in known]
    if seen:
        raise DataError(f"section {seen[0]}: sections of its patient {patients[seen[0]]} are trained on")
    by_name = {section.name: section for section in sections}
    splits = [(BY_SECTION, split) for split in leave_one_out([by_name[name] for name in inner])]
    rest = tuple(inner[:-1])
    splits += [(BY_PATIENT, Split(train=rest, validation=(inner[-1],), test=(name,))) for name in outer]
    return [Fold(split.test[0], kind, split if validate else _all_trained_on(split)) for kind, split in splits]


def _all_trained_on(split: Split) -> Split:
    """The same where no section chooses the epoch."""
    return Split(train=tuple(sorted(split.train + split.validation)), validation=(), test=split.test)
