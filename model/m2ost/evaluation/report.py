"""Reports as people and programs read them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from .. import metrics
from .judge import SectionReport

TITLES = {
    "r_spot_mean": "r per spot",
    "r_gene_mean": "r per gene",
    "r_gene_median": "median r per gene",
    "r_gene_top50_mean": "r per gene, 50 most variable",
    "rmse": "RMSE",
}


def to_markdown(subject: str, reports: Sequence[SectionReport], trained_on: Sequence[str]) -> str:
    """The table that people read."""
    lines = [f"# {subject}", ""]
    lines += [f"Trained on {', '.join(trained_on)}." if trained_on else "Training sections unknown.", ""]
    for report in reports:
        left_out = "; ".join(f"{n} {reason}" for reason, n in report.left_out.items())
        lines += [f"## {report.section}: {report.spots} spots" + (f" ({left_out} left out)" if left_out else ""), ""]
        names = list(metrics.MEASURES)
        lines += ["| | " + " | ".join(TITLES[name] for name in names) + " |", "|---" * (len(names) + 1) + "|"]
        cells = [
            f"**{report.scores[n]:.3f}** [{report.intervals[n][0]:.3f}, {report.intervals[n][1]:.3f}]" for n in names
        ]
        lines.append("| this | " + " | ".join(cells) + " |")
        for control, scores in report.controls.items():
            lines.append(f"| {control} | " + " | ".join(f"{scores[n]:.3f}" for n in names) + " |")
        best = ", ".join(f"{gene} {r:.2f}" for gene, r in report.best_genes(10))
        lines += ["", f"Best genes: {best}.", ""]
    lines += [
        "r per spot is taken across genes, r per gene across spots; brackets: 95 % bootstrap over spots. A constant",
        "has no r per gene and counts as 0. Shuffled spots: the same predictions against the labels of other spots.",
    ]
    return "\n".join(lines) + "\n"


def to_json(subject: str, reports: Sequence[SectionReport], trained_on: Sequence[str]) -> str:
    """All figures, by name."""
    whole = {
        "subject": subject,
        "trained_on": list(trained_on),
        "sections": [{**vars(report), "best_genes": dict(report.best_genes())} for report in reports],
    }
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
