"""Expression maps over the slide: PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

from .results import SlideResult

Rgb = np.ndarray[Any, np.dtype[np.float64]]

_SCALE_BARS_UM = (50, 100, 200, 500, 1000, 2000, 5000, 10000)


def pca_rgb(expression: Any) -> Rgb:
    """The first three principal components of the expression, as RGB.

    Parameters
    ----------
    expression : array_like, shape (n, G)
        Without NaN.

    Returns
    -------
    ndarray of float, shape (n, 3)
        In [0, 1]: each component clipped at its 1st and 99th percentile. A component's sign is that in which its
        largest gene weight is positive, so that equal inputs give equal colours. Components that do not exist are 0.5.
    """
    values = np.asarray(expression, np.float64)
    colours = np.full((len(values), 3), 0.5)
    if len(values) < 2:
        return colours
    u, s, vt = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    for i in range(min(3, int((s > s[0] * 1e-9).sum()))):
        component = u[:, i] * np.sign(vt[i, np.abs(vt[i]).argmax()])
        low, high = np.percentile(component, [1, 99])
        if high > low:
            colours[:, i] = ((component - low) / (high - low)).clip(0, 1)
    return colours


def draw_pca(result: SlideResult, path: Path) -> None:
    """Map of :func:`pca_rgb` over the thumbnail, the slide beside it."""
    valid = result.status == 0
    figure, (slide_axes, map_axes) = _figure(result, 2)
    slide_axes.set_title(result.title, fontsize=9)
    _draw_spots(map_axes, result, valid, pca_rgb(result.expression[valid]))
    map_axes.set_title(f"predicted expression, PCA as RGB · {int(valid.sum())} spots", fontsize=9)
    figure.savefig(path)


def draw_gene(result: SlideResult, gene: str, path: Path) -> None:
    """Map of one gene's predicted expression over the thumbnail, with a colour bar.

    Raises
    ------
    KeyError
        If the gene is not in the panel.
    """
    if gene not in result.engine.genes:
        raise KeyError(gene)
    valid = result.status == 0
    values = result.expression[valid, result.engine.genes.index(gene)]
    figure, (axes,) = _figure(result, 1)
    low, high = np.percentile(values, [1, 99]) if len(values) else (0.0, 1.0)
    colours = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(low, high if high > low else low + 1), "magma")
    _draw_spots(axes, result, valid, colours.to_rgba(values))
    axes.set_title(f"{gene} · {result.title}", fontsize=9)
    figure.colorbar(colours, ax=axes, shrink=0.7, label=f"predicted {gene} ({result.engine.target})")
    figure.savefig(path)


def _figure(result: SlideResult, panels: int) -> tuple[Figure, list[Axes]]:
    height, width = result.slide.thumbnail.shape[:2]
    panel_height = 6.0
    panel_width = max(2.5, panel_height * width / height)
    figure = Figure(figsize=(panel_width * panels + 1.2, panel_height + 0.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for axis in axes:
        axis.imshow(result.slide.thumbnail, extent=(0, result.slide.size[0], result.slide.size[1], 0))
        axis.autoscale(False)
        axis.set_axis_off()
        add_scale_bar(axis, result.slide.size[0], result.slide.mpp)
    return figure, axes


def scale_bar(width_px: float, mpp: float | None) -> tuple[float, str]:
    """Length of a scale bar in level-0 pixels and its label.

    Parameters
    ----------
    width_px : float
        Width of the picture in level-0 pixels; where µm/px is known, the bar is at most a quarter of it.
    mpp : float or None
        µm/px of level 0.
    """
    if not mpp:
        length_px = float(10 ** int(np.log10(max(width_px, 1) / 2)))
        return length_px, f"{length_px:g} px (µm/px unknown)"
    length_um = max([b for b in _SCALE_BARS_UM if b <= width_px * mpp / 4], default=_SCALE_BARS_UM[0])
    label = f"{length_um} µm" if length_um < 1000 else f"{length_um // 1000} mm"
    return length_um / mpp, label


def add_scale_bar(axis: Axes, width_px: float, mpp: float | None) -> None:
    """Draw :func:`scale_bar` into a picture whose axes are level-0 pixels."""
    length_px, label = scale_bar(width_px, mpp)
    axis.add_artist(
        AnchoredSizeBar(axis.transData, length_px, label, "lower right", frameon=True, size_vertical=width_px / 150)
    )


def _draw_spots(axis: Axes, result: SlideResult, valid: Any, colours: Any) -> None:
    side = result.spot_diameter_px
    corners = result.spots.centers[valid] - side / 2
    patches = [Rectangle((x, y), side, side) for x, y in corners]
    axis.add_collection(PatchCollection(patches, facecolors=colours, edgecolors="none", alpha=0.85))
