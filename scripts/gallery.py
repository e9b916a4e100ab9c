"""Make the pictures of `docs/gallery.md` that no command writes.

Usage: python scripts/gallery.py dense DENSE.zarr GENE OUT.png
       python scripts/gallery.py systems SYSTEMS.json OUT.png
       python scripts/gallery.py page PAGE.html OUT.png
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import zarr
from m2ost_client.maps import add_scale_bar
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from playwright.sync_api import sync_playwright

BROWSER = Path("build/browser")
WIDTH_PX, HEIGHT_PX = 1280, 800


def dense(store: str, gene: str, destination: str) -> None:
    """One gene of a map with a tolerance, where it was predicted, and what interpolation missed there."""
    group = zarr.open_group(store, mode="r")
    genes = list(group.attrs["genes"])  # type: ignore[arg-type]
    x, y = group["x"][:], group["y"][:]  # type: ignore[index]
    pitch = float(x[1] - x[0])
    extent = (x[0] - pitch / 2, x[-1] + pitch / 2, y[-1] + pitch / 2, y[0] - pitch / 2)
    values = group["expression"][genes.index(gene)]  # type: ignore[index]
    panels = (
        (values, "cividis", f"{gene}, predicted or interpolated", f"{gene} ({group.attrs['target']})"),
        (group["computed"][:], "gray_r", "black: predicted", ""),  # type: ignore[index]
        (group["error"][:], "cividis", "what interpolation missed", "standard deviations, 95th percentile of genes"),  # type: ignore[index]
    )
    figure = Figure(figsize=(12, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (data, colours, title, unit) in zip(figure.subplots(1, 3), panels, strict=True):
        shown = axis.imshow(np.asarray(data, np.float64), cmap=colours, extent=extent, interpolation="nearest")
        axis.set_axis_off()
        axis.set_title(title, fontsize=9)
        add_scale_bar(axis, extent[1] - extent[0], float(group.attrs["mpp"]))  # type: ignore[arg-type]
        if unit:
            figure.colorbar(shown, ax=axis, shrink=0.8, label=unit)
    figure.savefig(destination)


def systems(record: str, destination: str) -> None:
    """r per gene of every system, with intervals, out of a record of `m2ost bench systems`."""
    report = json.loads(Path(record).read_text(encoding="utf-8"))
    figure = Figure(figsize=(9, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (kind, marker) in zip(figure.subplots(1, 2), (("by section", "o"), ("by patient", "s")), strict=True):
        rows = [(name, row[kind]["r_gene_mean"]) for name, row in report["systems"].items() if kind in row]
        rows.sort(key=lambda row: row[1]["mean"])
        means = np.array([found["mean"] for _, found in rows])
        bounds = np.array([[found["low"], found["high"]] for _, found in rows]).reshape(-1, 2)
        axis.errorbar(means, range(len(rows)), xerr=np.abs(bounds.T - means), fmt=marker, color="black", capsize=3)
        axis.set_yticks(range(len(rows)), [name for name, _ in rows])
        axis.axvline(0, color="grey", linestyle="dashed", linewidth=1)
        left_out = ", ".join(fold["name"] for fold in report["folds"] if fold["kind"] == kind)
        axis.set_title(f"{kind}: {left_out}", fontsize=9)
        axis.set_xlabel("r per gene, mean of genes; dashed: sees no image")
    figure.savefig(destination)


def page(file: str, destination: str) -> None:
    """A page as a browser shows it."""
    libraries = ":".join(filter(None, (str(BROWSER / "lib"), os.environ.get("LD_LIBRARY_PATH"))))
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=BROWSER / "chromium",
            chromium_sandbox=False,
            args=["--no-zygote", "--disable-gpu"],
            env={**os.environ, "LD_LIBRARY_PATH": libraries},
        )
        shown = chromium.new_page(viewport={"width": WIDTH_PX, "height": HEIGHT_PX})
        shown.goto(Path(file).resolve().as_uri())
        shown.screenshot(path=destination)


PICTURES = {"dense": (dense, 3), "systems": (systems, 2), "page": (page, 2)}
"""What each is made by, and of how many arguments."""

if __name__ == "__main__":
    name, *arguments = sys.argv[1:] or [""]
    if name not in PICTURES or len(arguments) != PICTURES[name][1]:
        sys.exit((__doc__ or "").strip())
    PICTURES[name][0](*arguments)
