"""The report of one slide: a page that is one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m2ost_contract import RowStatus

from ..maps import scale_bar
from ..results import SlideResult
from .gene_maps import map_data
from .pictures import SLIDE_PX, component_colours, overlay, slide_picture
from .templating import render

_QUALITY = 80
Facts = list[tuple[str, str]]


def write_report(result: SlideResult, metadata: Mapping[str, Any], path: Path, genes: Sequence[str] = ()) -> None:
    """Write :func:`slide_page`."""
    path.write_text(slide_page(result, metadata, genes), encoding="utf-8")


def slide_page(result: SlideResult, metadata: Mapping[str, Any], genes: Sequence[str] = ()) -> str:
    """The HTML report of a slide.

    Maps over the slide's overview with a choice of gene, its histogram, spots by status, and where everything came
    from. Without JavaScript it still shows the overview with the principal components, the spots and the facts.

    Parameters
    ----------
    result : SlideResult
    metadata : mapping
        As in ``<name>.json``; facts that it lacks are left out.
    genes : sequence of str
        Genes that the page offers in any case; the first is shown when it opens.

    Returns
    -------
    str
        HTML in one file.
    """
    picture, size = slide_picture(result.slide.thumbnail, SLIDE_PX, _QUALITY)
    data = map_data(result, genes)
    bar_px, bar_label = scale_bar(result.slide.size[0], result.slide.mpp)
    valid = int((result.status == 0).sum())
    return render(
        "slide",
        name=result.name,
        trained=result.engine.trained,
        target=result.engine.target,
        picture=picture,
        overlay=overlay(result, component_colours(result), size),
        size=size,
        bar_px=round(bar_px * size[0] / result.slide.size[0], 1),
        bar_label=bar_label,
        spots=len(result.spots),
        valid=valid,
        statuses=_statuses(result),
        panel=len(result.engine.genes),
        offered=len(data["genes"]),
        variable=data["variable"],
        names=sorted((gene["name"], i) for i, gene in enumerate(data["genes"])),
        data={**data, "open": genes[0] if genes else None},
        tables=[(title, rows) for title, rows in _tables(result, metadata).items() if rows],
    )


def _statuses(result: SlideResult) -> list[dict[str, Any]]:
    most = max(result.counts_by_status().values(), default=1)
    return [
        {
            "name": name,
            "count": count,
            "share": round(100 * count / most, 1),
            "reason": RowStatus[name].reason if name in RowStatus.__members__ else "only a newer client can say",
        }
        for name, count in sorted(result.counts_by_status().items(), key=lambda item: -item[1])
    ]


def _tables(result: SlideResult, metadata: Mapping[str, Any]) -> dict[str, Facts]:
    slide, engine = result.slide, result.engine
    views, timings = metadata.get("views", {}), metadata.get("timings", {})
    return {
        "Slide": _facts(
            ("File", metadata.get("slide")),
            ("Size", f"{slide.size[0]:,} × {slide.size[1]:,} px"),
            ("Resolution", f"{slide.mpp:g} µm/px ({slide.mpp_source})" if slide.mpp else "µm/px unknown"),
            ("Tissue", f"{100 * slide.tissue_fraction:.1f} %"),
            ("Format", slide.vendor),
            ("Read by", slide.reader),
            ("Because", slide.reader_reason),
            ("Note", slide.note),
            ("Fingerprint", slide.fingerprint),
        ),
        "Network": _facts(
            ("State", "trained" if engine.trained else "UNTRAINED"),
            ("Predicts", f"{engine.target}, {len(engine.genes):,} genes"),
            ("Precision", engine.precision),
            ("Views", f"{engine.views.size_px} px, × {', '.join(f'{f:g}' for f in engine.views.factors)}"),
            ("Cut at", _mpp(views.get("mpp"))),
            ("Trained at", _mpp(engine.mpp)),
            ("Checkpoint", engine.checkpoint_sha256),
            ("Release", engine.release_sha256),
        ),
        "Run": _facts(
            ("Finished", metadata.get("finished", "").replace("T", " ").replace("+00:00", " UTC")),
            ("Spots", result.spots.source),
            ("Spot size", f"{result.spot_diameter_px:.1f} px"),
            ("Speed", _number(metadata.get("spots_per_s"), " spots/s")),
            ("Requests sent again", metadata.get("retries")),
            ("Server", metadata.get("server")),
            ("Views cut by", "client" if metadata.get("pixels_sent_by_client") else "server"),
            *((f"Time to {name.removesuffix('_s')}", _number(s, " s")) for name, s in timings.items()),
        ),
        "Versions": _facts(*metadata.get("versions", {}).items()),
    }


def _facts(*rows: tuple[str, Any]) -> Facts:
    return [(label, str(value)) for label, value in rows if value not in (None, "")]


def _mpp(value: float | None) -> str | None:
    return None if value is None else f"{value:g} µm/px"


def _number(value: float | None, unit: str) -> str | None:
    return None if value is None else f"{value:,.1f}{unit}"
