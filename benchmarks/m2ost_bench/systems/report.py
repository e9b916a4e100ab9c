"""The one table: every system on the same folds, beside what sees no image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from m2ost import metrics
from m2ost.complexity import SLIDE_SPOTS, count
from m2ost.systems.registry import M2OST_NAME, find, from_dict

from . import article
from .contestants import Contestant
from .folds import BY_PATIENT, BY_SECTION, Fold

COLUMNS = {
    "r_gene_mean": "r per gene",
    "r_gene_median": "median",
    "r_gene_top50_mean": "50 most variable",
    "r_spot_mean": "r per spot",
    "rmse": "RMSE",
}

INTERVALS = (
    "Brackets: 95 % bootstrap over the spots of each section, which are drawn apart and alike for every row; where "
    "several sections are averaged, of their mean. Neighbouring spots resemble each other, so they are rather too "
    "narrow, and they say nothing of another training: there is one of each."
)
PANEL_NOTE = (
    "The panel is fixed and the same for all: the 250 genes of HER2+ that M2OST's authors chose, on all sections, "
    "these included."
)


def assemble(
    contestants: Sequence[Contestant],
    folds: Sequence[Fold],
    results: Mapping[str, Mapping[str, Any]],
    constants: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Rows of the table out of what folds gave.

    Parameters
    ----------
    contestants, folds : sequence
    results : mapping
        Contestant → fold → what :func:`m2ost_bench.systems.training.run_fold` gave; those that are missing are not
        done yet, and a mean over sections is only there where all are.
    constants : mapping
        Fold → predictor that sees no image → its scores.

    Returns
    -------
    dict
        For JSON: ``folds``, ``systems`` and ``no_image``.
    """
    rows = {}
    for one in contestants:
        done = results.get(one.name, {})
        if not done:
            continue
        first = next(iter(done.values()))
        architecture = from_dict(first["settings"]["model"])
        if hasattr(architecture, "training_heads"):
            architecture = architecture.resized(training_heads=False)
        cost = count(architecture)
        rows[one.name] = {
            "title": find(one.system).title,
            "level": architecture.level,
            "parameters": cost.parameters,
            "gflop_a_spot": cost.flop / 1e9,
            f"gflop_a_slide_of_{SLIDE_SPOTS}": cost.flop * SLIDE_SPOTS / 1e9,
            "pretrained": first["pretrained"],
            "settings": {k: v for k, v in first["settings"].items() if k not in ("split", "pretrained")},
            "folds": {
                name: {key: found[key] for key in ("spots", "scores", "best_epoch", "sha256", "training_s")}
                for name, found in done.items()
            },
            **_by_kind(folds, done),
        }
        if one.name != M2OST_NAME and M2OST_NAME in results:
            rows[one.name]["beside_m2ost"] = _beside(folds, done, results[M2OST_NAME])
    kinds = sorted({name for by_name in constants.values() for name in by_name})
    blind = {
        kind: _by_kind(folds, {fold: found[kind] for fold, found in constants.items() if kind in found})
        for kind in kinds
    }
    return {"folds": [fold.to_dict() for fold in folds], "systems": rows, "no_image": blind}


def _by_kind(folds: Sequence[Fold], done: Mapping[str, Any]) -> dict[str, Any]:
    """Means over the sections of each kind of split, with intervals and the lowest and highest section."""
    found = {}
    for kind in (BY_SECTION, BY_PATIENT):
        names = [fold.name for fold in folds if fold.kind == kind]
        if names and all(name in done for name in names):
            found[kind] = {
                measure: {
                    **_interval([done[name]["draws"][measure] for name in names]),
                    "mean": float(np.mean([done[name]["scores"][measure] for name in names])),
                    "sections": [done[name]["scores"][measure] for name in names],
                }
                for measure in metrics.MEASURES
            }
    return found


def _interval(draws: Sequence[Sequence[float]]) -> dict[str, float]:
    """95 % of the means over sections, draw by draw."""
    low, high = np.percentile(np.mean(draws, axis=0), [2.5, 97.5])
    return {"low": float(low), "high": float(high)}


def _beside(folds: Sequence[Fold], done: Mapping[str, Any], m2ost: Mapping[str, Any]) -> dict[str, Any]:
    """r per gene above M2OST's, on the same draws."""
    found = {}
    for kind in (BY_SECTION, BY_PATIENT):
        names = [fold.name for fold in folds if fold.kind == kind]
        if names and all(name in done and name in m2ost for name in names):
            drawn = [
                np.subtract(done[name]["draws"]["r_gene_mean"], m2ost[name]["draws"]["r_gene_mean"]) for name in names
            ]
            scores = [done[n]["scores"]["r_gene_mean"] - m2ost[n]["scores"]["r_gene_mean"] for n in names]
            found[kind] = {**_interval([list(d) for d in drawn]), "mean": float(np.mean(scores))}
    return found


def to_markdown(report: Mapping[str, Any]) -> str:
    """The tables in words."""
    lines = []
    for kind in (BY_SECTION, BY_PATIENT):
        folds = [fold for fold in report["folds"] if fold["kind"] == kind]
        if folds:
            lines += [*_scores_table(report, kind, folds), ""]
    told = article.ablations_to_markdown() if report["ablations"] else article.to_markdown()
    lines += [*_cost_table(report), "", *_notes(report), "", *told]
    return "\n".join(lines) + "\n"


def _scores_table(report: Mapping[str, Any], kind: str, folds: Sequence[Mapping[str, Any]]) -> list[str]:
    sections = ", ".join(fold["name"] for fold in folds)
    titles = [*COLUMNS.values(), "r per gene above M2OST's"]
    lines = [f"| {kind}: {sections} | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for name, row in [*report["systems"].items(), *report["no_image"].items()]:
        italic = "*" if name in report["no_image"] else ""
        if kind not in row:
            done = {fold["name"]: row["folds"][fold["name"]] for fold in folds if fold["name"] in row.get("folds", {})}
            told = ", ".join(f"{fold} {found['scores']['r_gene_mean']:.3f}" for fold, found in done.items())
            lines.append(f"| {italic}{name}{italic} | {told or 'nothing'} so far |" + " |" * (len(titles) - 1))
            continue
        cells = [_cell(row[kind][measure]) for measure in COLUMNS]
        beside = row.get("beside_m2ost", {}).get(kind)
        lines.append(
            f"| {italic}{name}{italic} | " + " | ".join([*cells, _cell(beside, "+") if beside else "–"]) + " |"
        )
    return lines


def _cell(found: Mapping[str, Any], sign: str = "") -> str:
    return f"{found['mean']:{sign}.3f} [{found['low']:{sign}.3f}, {found['high']:{sign}.3f}]"


def _cost_table(report: Mapping[str, Any]) -> list[str]:
    speed = report.get("speed")
    titles = ["network", "parameters", "GFLOP a spot", f"GFLOP a slide of {SLIDE_SPOTS}", "spots/s through Triton"]
    lines = ["| | " + " | ".join([*titles, "pretrained", "epochs"]) + " |", "|---" * 8 + "|"]
    for name, row in report["systems"].items():
        rate = speed and speed["spots_per_s"].get(name)
        told = row["pretrained"]
        cells = [
            row["title"],
            f"{row['parameters']:,}",
            f"{row['gflop_a_spot']:.3f}",
            f"{row[f'gflop_a_slide_of_{SLIDE_SPOTS}']:,.0f}",
            f"{rate['median']:.2f} [{rate['min']:.2f} … {rate['max']:.2f}]" if rate else "–",
            told if isinstance(told, str) else f"{told['file']} ({told['sha256'][:12]})",
            str(row["settings"]["optim"]["epochs"]),
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _notes(report: Mapping[str, Any]) -> list[str]:
    spots = {name: found["spots"] for row in report["systems"].values() for name, found in row["folds"].items()}
    judged = ", ".join(f"{n} of {name}" for name, n in spots.items())
    chosen = any(fold["validation"] for fold in report["folds"])
    notes = [
        f"Recipe `{report['recipe']}`, seed {report['seed']}; spots judged: {judged}. "
        + (
            "In each fold one section more is held back, by which the epoch is chosen; the others are trained on. "
            if chosen
            else "The other sections are trained on, and the last epoch is kept. "
        )
        + "GFLOP "
        "are 2 × multiply-accumulate with attention; what a network shares between the spots of a slide is counted for "
        f"{SLIDE_SPOTS} of them.",
        f"{PANEL_NOTE} The same-patient mean is of all other sections of the patient, also of those without images and "
        f"of the one that chooses the epoch. {INTERVALS}",
    ]
    if report.get("speed"):
        speed = report["speed"]
        notes.append(
            f"Speed: {speed['spots']} spots of {speed['slide']}, {speed['rounds']} interleaved rounds on one server, "
            f"fp32, {speed['machine']['processor']}, {speed['machine']['cores']} cores; random weights."
        )
    return notes
