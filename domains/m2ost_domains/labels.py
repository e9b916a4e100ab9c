"""Labels of spots, and how well domains agree with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import pandas as pd
from sklearn.metrics import adjusted_rand_score

from .errors import DomainsError

NO_CLASS = "undetermined"
"""A label that says that there is none."""


@dataclass(frozen=True)
class Agreement:
    """How well domains agree with labels.

    Parameters
    ----------
    ari : float
        Adjusted Rand index: 1 for the same groups, 0 on average for groups drawn by chance.
    spots : int
        That have a domain and a label.
    labels : int
        Different ones among them.
    """

    ari: float
    spots: int
    labels: int


def read_labels(path: Path) -> dict[str, str]:
    """Labels by spot.

    Parameters
    ----------
    path : Path
        An ``.h5ad`` with ``obs["domain"]``, as ``m2ost domains`` writes it, or a table (``.csv``; else separated by
        tabs) with the column ``label`` and either ``spot``, its name, or ``x, y``, its place on the array, which is
        rounded. Rows without a label or place, and those labelled ``undetermined``, are left out.

    Raises
    ------
    DomainsError
        If it cannot be read, has no label at all, or two for a spot.
    """
    try:
        if path.suffix == ".h5ad":
            column = anndata.read_h5ad(path, backed="r").obs["domain"].dropna()
            spots, labels = list(map(str, column.index)), list(map(str, column))
        else:
            spots, labels = _of_table(pd.read_csv(path, sep="," if path.suffix == ".csv" else "\t"))
    except KeyError as error:
        raise DomainsError(
            f"{path}: has no column {error}; labels are a table with label and spot, or label, x and y, or an .h5ad "
            'with obs["domain"]'
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise DomainsError(f"{path}: cannot read the labels: {error}") from error
    found = {spot: label for spot, label in zip(spots, labels, strict=True) if label != NO_CLASS}
    if not found:
        raise DomainsError(f"{path}: labels no spot")
    if len(set(spots)) < len(spots):
        raise DomainsError(f"{path}: spot {next(s for s in spots if spots.count(s) > 1)} has several labels; leave one")
    return found


def _of_table(table: Any) -> tuple[list[str], list[str]]:
    if "spot" in table:
        table = table.dropna(subset=["spot", "label"])
        return list(map(str, table["spot"])), list(map(str, table["label"]))
    table = table.dropna(subset=["x", "y", "label"])
    places = zip(table["x"].round().astype(int), table["y"].round().astype(int), strict=True)
    return [f"{x}x{y}" for x, y in places], list(map(str, table["label"]))


def agreement(spot_names: Sequence[str], domains: Sequence[int], labels: Mapping[str, str]) -> Agreement:
    """Compare domains with labels over the spots that have both.

    Parameters
    ----------
    spot_names : sequence of str
        m names.
    domains : sequence of int
        Their domains.
    labels : mapping of str to str
        Labels by spot.

    Raises
    ------
    DomainsError
        If fewer than two spots have both; shows names of either side.
    """
    both = [(domain, labels[name]) for name, domain in zip(spot_names, domains, strict=True) if name in labels]
    if len(both) < 2:
        raise DomainsError(
            f"{len(both)} of the {len(labels)} labelled spots ({', '.join(list(labels)[:3])} …) have a domain (spots: "
            f"{', '.join(spot_names[:3])} …); labels and expression must name their spots alike"
        )
    found, truth = zip(*both, strict=True)
    return Agreement(float(adjusted_rand_score(truth, found)), len(both), len(set(truth)))
