"""Domains of one section, from its file to the files that are written."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .expression import Expression
from .labels import agreement, read_labels
from .methods import DomainOptions, Groups, find_domains
from .output import write_domains


@dataclass(frozen=True)
class Domains:
    """What was found and written.

    Parameters
    ----------
    domains : ndarray of int, shape (m,)
        Of the spots that have a value.
    record : dict
        What the JSON says.
    files : tuple of Path
    """

    domains: Groups
    record: dict[str, Any]
    files: tuple[Path, ...]


def run(expression: Expression, options: DomainOptions, out: Path, *, labels: Path | None = None) -> Domains:
    """Find the domains of a section, compare them with labels where there are any, and write them.

    Parameters
    ----------
    expression : Expression
    options : DomainOptions
    out : Path
        Folder.
    labels : Path, optional
        As :func:`m2ost_domains.labels.read_labels` reads them.

    Raises
    ------
    DomainsError
        If domains cannot be found, or no label is that of a spot; nothing is written then.
    OSError
        If they cannot be written.
    """
    known = read_labels(labels) if labels else None
    domains = find_domains(expression.values, expression.centers, options)
    sizes = np.bincount(domains)[1:]
    record: dict[str, Any] = {
        **asdict(options),
        "found": len(sizes),
        "spots": len(domains),
        "left_out": expression.left_out,
        "sizes": [int(size) for size in sizes],
    }
    if known is not None:
        record["agreement"] = {
            "with": str(labels),
            **asdict(agreement(expression.spot_names, domains.tolist(), known)),
        }
    return Domains(domains, record, write_domains(expression, domains, record, out))
