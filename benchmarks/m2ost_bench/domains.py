"""How well domains of measured expression agree with a pathologist's labels, method by method, with defaults alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from m2ost.data.counts import CountTable
from m2ost.data.errors import DataError
from m2ost.data.her2 import read_without_images
from m2ost_domains.expression import as_table, counted
from m2ost_domains.labels import agreement, read_labels
from m2ost_domains.methods import METHODS, DomainOptions, find_domains
from m2ost_loadtests.machine import describe_machine, versions

PACKAGES = ("numpy", "scikit-learn", "igraph", "leidenalg", "torch")
SUFFIX = "_labeled_coordinates.tsv"


def measure(root: Path, say: Callable[[str], None], *, seed: int = 0) -> dict[str, Any]:
    """Find domains on every labelled section of HER2+, as many as it has labels, and compare.

    Domains are found on all spots with counts, and compared over those that have a label.

    Parameters
    ----------
    root : Path
        With ``labels/<section>_labeled_coordinates.tsv`` beside counts and spots.
    say : callable
        Told of each section.
    seed : int

    Returns
    -------
    dict
        For JSON: the adjusted Rand index by section and method.

    Raises
    ------
    DataError
        If there are no labels.
    """
    names = sorted(path.name.removesuffix(SUFFIX) for path in (root / "labels").glob(f"*{SUFFIX}"))
    if not names:
        raise DataError(f"{root}: no labels/*{SUFFIX}")
    sections: dict[str, Any] = {}
    for name in names:
        say(f"section {name}")
        (section,) = read_without_images(root, [name])
        labels = read_labels(root / "labels" / f"{name}{SUFFIX}")
        counts = CountTable(section.spot_names, section.genes, section.counts, root)
        expression = counted(name, as_table(counts, section.centers), counts)
        k = len({labels[spot] for spot in expression.spot_names if spot in labels})
        sections[name] = {"k": k, "spots": len(expression.rows), "methods": {}}
        for method in METHODS:
            domains = find_domains(expression.values, expression.centers, DomainOptions(k=k, method=method, seed=seed))
            agreed = agreement(expression.spot_names, domains.tolist(), labels)
            sections[name]["labelled"] = agreed.spots
            sections[name]["methods"][method] = {"ari": agreed.ari, "found": len(np.unique(domains))}
    return {
        "machine": describe_machine(),
        "versions": versions(PACKAGES),
        "seed": seed,
        "sections": sections,
        "mean": {m: float(np.mean([s["methods"][m]["ari"] for s in sections.values()])) for m in METHODS},
    }


def to_markdown(report: dict[str, Any]) -> str:
    """The table in words."""
    methods = list(report["mean"])
    lines = ["| section | k | labelled spots | " + " | ".join(methods) + " |", "|---" * (3 + len(methods)) + "|"]
    for name, section in report["sections"].items():
        cells = [f"{section['methods'][method]['ari']:.3f}" for method in methods]
        lines.append(f"| {name} | {section['k']} | {section['labelled']} | " + " | ".join(cells) + " |")
    lines.append("| mean | | | " + " | ".join(f"**{report['mean'][method]:.3f}**" for method in methods) + " |")
    odd = [
        f"{method} found {found['found']} on {name}"
        for name, section in report["sections"].items()
        for method, found in section["methods"].items()
        if found["found"] != section["k"]
    ]
    return "\n".join([*lines, "", f"Seed {report['seed']}. " + ("; ".join(odd) or "Every method found k.")]) + "\n"
