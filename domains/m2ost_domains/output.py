"""Files of domains: a table, a map and a record, complete under their names or absent."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from m2ost_client.maps import add_scale_bar
from m2ost_contract import complete_file
from m2ost_preprocess.slides.spots import median_pitch_px
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import RegularPolygon

from .expression import Expression
from .methods import Groups

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
"""Told apart by the colour-blind (Okabe and Ito)."""
CORNERS, MARKERS = (32, 4, 3, 6), ("o", "D", "^", "H")
"""Shape of the marks of the first eight domains, of the next eight …"""


def write_domains(expression: Expression, domains: Groups, record: dict[str, Any], folder: Path) -> tuple[Path, ...]:
    """Write ``<name>.domains.h5ad``, ``.png`` and ``.json``, in place of earlier ones.

    All are complete before the first gets its final name, and the table gets it last.

    Parameters
    ----------
    expression : Expression
    domains : ndarray of int, shape (m,)
        From 1 on.
    record : dict
        For the JSON and the table's ``uns["m2ost_domains"]``; without nulls.
    folder : Path
        Made where it is absent.

    Returns
    -------
    tuple of Path
        The files. ``obs["domain"]`` of the table is a category, missing where a spot has no value.

    Raises
    ------
    OSError
        If they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = tuple(folder / f"{expression.name}.domains.{suffix}" for suffix in ("h5ad", "png", "json"))
    column = np.full(expression.table.n_obs, None, object)
    column[expression.rows] = [str(domain) for domain in domains]
    names = [str(domain) for domain in range(1, int(domains.max()) + 1)]
    table = expression.table.copy()
    table.obs["domain"] = pd.Categorical(column, categories=names)
    table.uns["m2ost_domains"] = record
    with ExitStack() as stack:  # left in reverse, so that the table is put last
        table_file, map_file, record_file = [stack.enter_context(complete_file(path)) for path in paths]
        table.write_h5ad(table_file)
        draw(expression, domains, f"{expression.name} · {record['method']}, k = {record['k']}", map_file)
        record_file.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return paths


def draw(expression: Expression, domains: Groups, title: str, path: Path) -> None:
    """Draw the map of domains (m,) as PNG, spots without a value as open circles."""
    centers = np.asarray(expression.table.obsm["spatial"], np.float64)
    radius_px = 0.45 * (median_pitch_px(centers) or 1.0)
    low, high = centers.min(axis=0) - 4 * radius_px, centers.max(axis=0) + 4 * radius_px
    figure = Figure(figsize=(7.5, 6.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(high[1], low[1])
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.set_title(title, fontsize=9)
    handles = []
    for domain in range(1, int(domains.max()) + 1):
        colour = COLOURS[(domain - 1) % len(COLOURS)]
        shape = (domain - 1) // len(COLOURS) % len(CORNERS)
        at = centers[expression.rows[domains == domain]]
        marks = [RegularPolygon(tuple(place), CORNERS[shape], radius=radius_px) for place in at]
        axes.add_collection(PatchCollection(marks, facecolors=colour, edgecolors="none"))
        label = f"{domain} ({len(at)})"
        handles.append(Line2D([], [], color=colour, marker=MARKERS[shape], linestyle="none", label=label))
    empty = np.setdiff1d(np.arange(len(centers)), expression.rows)
    if len(empty):
        marks = [RegularPolygon(tuple(centers[row]), CORNERS[0], radius=radius_px) for row in empty]
        axes.add_collection(PatchCollection(marks, facecolors="none", edgecolors="grey", linewidths=0.5))
    figure.legend(handles=handles, loc="outside right center", title="domain (spots)", fontsize=8, title_fontsize=8)
    add_scale_bar(axes, float(high[0] - low[0]), expression.mpp)
    figure.savefig(path, format="png")
