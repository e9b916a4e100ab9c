"""What a page needs to draw the map and the histogram of a gene by itself."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..results import SlideResult
from .pictures import colour_table, component_colours

MAP_BYTES = 2 << 20
"""Most bytes of a page's gene maps: one byte a spot and gene."""
BINS = 24
"""Bars of a histogram."""
LEVELS = 255
"""Steps of a gene's colour, from its 1st to its 99th percentile."""
MOST_VARIABLE = 12
"""Genes that a page offers at one click."""


def ranked_genes(result: SlideResult) -> list[int]:
    """Columns of the panel, those whose expression varies most across the valid spots first."""
    values = result.expression[result.status == 0].astype(np.float64)
    if not len(values):
        return list(range(len(result.engine.genes)))
    return [int(column) for column in np.argsort(-values.var(axis=0), kind="stable")]


def map_data(result: SlideResult, genes: Sequence[str] = (), *, budget_bytes: int = MAP_BYTES) -> dict[str, Any]:
    """Positions, colours and levels of the valid spots, for JSON.

    Parameters
    ----------
    result : SlideResult
    genes : sequence of str
        Genes that are wanted in any case.
    budget_bytes : int
        Most bytes for the levels of all genes: as many as fit are there, the most variable first.

    Returns
    -------
    dict
        ``size`` (level-0 pixels), ``side`` (of a spot's square, level-0 pixels), ``centers`` (base64 of little-endian
        float32, n × 2, level-0 pixels), ``components`` (base64 of uint8, n × 3), ``colours`` (base64 of uint8,
        255 × 3), ``levels`` (base64 of uint8, genes × n), ``variable`` (the most variable genes) and ``genes``: name,
        ``low`` and ``high`` (the values of the first and the last level), ``min``, ``max``, ``mean`` and ``counts``
        (spots in ``BINS`` equal bins from min to max).
    """
    valid = result.status == 0
    count = int(valid.sum())
    panel, ranked = result.engine.genes, ranked_genes(result)
    wanted = [panel.index(gene) for gene in genes]
    room = max(budget_bytes // count, len(wanted), 1) if count else 0
    columns = list(dict.fromkeys([*wanted, *ranked]))[:room]
    values = result.expression[valid][:, columns].astype(np.float64)
    levels = np.zeros((len(columns), count), np.uint8)
    described = []
    for i, column in enumerate(columns):
        gene = values[:, i]
        low, high = np.percentile(gene, [1, 99])
        if high > low:
            levels[i] = np.round(((gene - low) / (high - low)).clip(0, 1) * (LEVELS - 1))
        described.append(
            {
                "name": panel[column],
                **{k: _rounded(v) for k, v in (("low", low), ("high", high), ("mean", gene.mean()))},
                **{k: _rounded(v) for k, v in (("min", gene.min()), ("max", gene.max()))},
                "counts": np.histogram(gene, BINS)[0].tolist(),
            }
        )
    return {
        "size": list(result.slide.size),
        "side": result.spot_diameter_px,
        "centers": _base64(result.spots.centers[valid].astype("<f4")),
        "components": _base64(component_colours(result)),
        "colours": _base64(colour_table()),
        "levels": _base64(levels),
        "genes": described,
        "variable": [panel[c] for c in ranked if c in set(columns)][:MOST_VARIABLE],
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _base64(array: Any) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
