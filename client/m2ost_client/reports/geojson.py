"""Spots as GeoJSON that QuPath imports."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..results import SlideResult

_CLASS_RGB = (86, 114, 184)
_UNTRAINED_RGB = (150, 150, 150)


def write_geojson(result: SlideResult, path: Path, genes: Sequence[str] = ()) -> None:
    """Write the spots that have a value as a GeoJSON ``FeatureCollection``, one feature a line.

    Each is a QuPath detection: a square of the spot's true size in level-0 pixels, as in the maps, named after the
    spot, with the expression as its measurements. Equal results give equal bytes: a feature's UUID follows from the
    slide's fingerprint and the spot's name. Spots without a value are left out; the member ``m2ost`` of the collection
    counts them, by status, and says what the measurements are.

    Parameters
    ----------
    result : SlideResult
    path : Path
    genes : sequence of str
        Genes to write; by default all.

    Raises
    ------
    InputError
        If a gene is not in the panel.
    """
    with path.open("w", encoding="utf-8") as stream:
        stream.write('{"type": "FeatureCollection",\n')
        stream.write(f'"m2ost": {_json(summary(result))},\n"features": [')
        for i, feature in enumerate(features(result, genes)):
            stream.write(f"{',' if i else ''}\n{_json(feature)}")
        stream.write("\n]}\n")


def summary(result: SlideResult) -> dict[str, Any]:
    """What the collection says of itself."""
    left_out = result.counts_by_status()
    return {
        "spots": left_out.pop("OK", 0),
        "left_out": left_out,
        "measurements": result.engine.target,
        "trained": result.engine.trained,
        "release_sha256": result.engine.release_sha256,
    }


def features(result: SlideResult, genes: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The spots with a value as QuPath's features.

    Parameters
    ----------
    result : SlideResult
    genes : sequence of str
        Genes to tell of; by default all.

    Yields
    ------
    dict
        A GeoJSON ``Feature``; exterior rings run counterclockwise, as RFC 7946 asks.

    Raises
    ------
    InputError
        If a gene is not in the panel.
    """
    check_genes(result, genes)
    panel = {gene: column for column, gene in enumerate(result.engine.genes)}
    chosen = tuple(genes) or result.engine.genes
    columns = [panel[gene] for gene in chosen]
    half = result.spot_diameter_px / 2
    namespace = uuid.uuid5(uuid.NAMESPACE_OID, f"{result.slide.fingerprint} {result.engine.release_sha256}")
    trained = result.engine.trained
    # QuPath reads a class only where it has a colour.
    classification = {
        "name": "M2OST spot" if trained else "M2OST spot, UNTRAINED",
        "color": list(_CLASS_RGB if trained else _UNTRAINED_RGB),
    }
    for row in (result.status == 0).nonzero()[0]:
        x, y = (float(c) for c in result.spots.centers[row])
        name = result.spots.names[row]
        # A float32's shortest decimal form: nothing is lost, and nothing invented.
        values = result.expression[row, columns].astype(str)
        yield {
            "type": "Feature",
            "id": str(uuid.uuid5(namespace, name)),
            "geometry": {"type": "Polygon", "coordinates": [_square(x, y, half)]},
            "properties": {
                "objectType": "detection",
                "name": name,
                "classification": classification,
                "measurements": {gene: float(value) for gene, value in zip(chosen, values, strict=True)},
            },
        }


def check_genes(result: SlideResult, genes: Sequence[str]) -> None:
    """Whether all genes are in a result's panel.

    Raises
    ------
    InputError
        If not.
    """
    unknown = [gene for gene in genes if gene not in result.engine.genes]
    if unknown:
        raise InputError(f"not in the gene panel of {result.name}: {', '.join(unknown)}")


def _square(x: float, y: float, half: float) -> list[list[float]]:
    left, right, top, bottom = (round(c, 3) for c in (x - half, x + half, y - half, y + half))
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
