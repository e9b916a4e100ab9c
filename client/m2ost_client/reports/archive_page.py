"""The index over an archive of results: a page that is one file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..files import REPORT_SUFFIX
from .pictures import THUMBNAIL_PX, slide_picture
from .stored import read_facts
from .templating import render

_QUALITY = 50


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A slide that has no result.

    Parameters
    ----------
    slide : str
        The slide as the caller knows it.
    reason : str
        Why.
    """

    slide: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """What the index says of one result.

    Parameters
    ----------
    name : str
        Path of the result below the archive, without its suffix.
    page : str or None
        Relative address of its report, quoted; None where it has none.
    slide : str
        The slide as the caller knew it.
    spots, valid : int
        Spots in all, and those that have a value.
    mpp : float or None
        µm per level-0 pixel.
    mpp_source : str or None
        Who says so.
    tissue : float
        Share of the slide that is tissue.
    spots_per_s : float or None
    finished : str or None
        ISO 8601.
    release : str
        sha256 of the release.
    trained : bool
    thumbnail : str
        ``data:`` address of a picture at most ``THUMBNAIL_PX`` wide and high.
    """

    name: str
    page: str | None
    slide: str
    spots: int
    valid: int
    mpp: float | None
    mpp_source: str | None
    tissue: float
    spots_per_s: float | None
    finished: str | None
    release: str
    trained: bool
    thumbnail: str


def read_row(table: Path, archive: Path) -> Row:
    """The index's row of a result on disk; its expression is not read.

    Parameters
    ----------
    table : Path
        ``<name>.h5ad``.
    archive : Path
        The folder that the index lies in, above ``table``.

    Raises
    ------
    InputError
        If the table cannot be read or is not a result of `m2ost predict`.
    """
    metadata, thumbnail = read_facts(table)
    page = report_path(table)
    return row_of(
        metadata,
        thumbnail,
        name=table.relative_to(archive).with_suffix("").as_posix(),
        page=quote(page.relative_to(archive).as_posix()) if page.exists() else None,
    )


def row_of(metadata: Mapping[str, Any], thumbnail: Any, *, name: str, page: str | None) -> Row:
    """The index's row of a result.

    Parameters
    ----------
    metadata : mapping
        As in ``<name>.json``.
    thumbnail : ndarray of uint8, shape (h, w, 3)
    name, page
        As in :class:`Row`.
    """
    slide, spots = metadata["slide_facts"], metadata["spots"]
    return Row(
        name=name,
        page=page,
        slide=metadata["slide"],
        spots=spots["count"],
        valid=spots["by_status"].get("OK", 0),
        mpp=slide.get("mpp"),
        mpp_source=slide.get("mpp_source"),
        tissue=slide["tissue_fraction"],
        spots_per_s=metadata.get("spots_per_s"),
        finished=metadata.get("finished"),
        release=metadata["release_sha256"],
        trained=metadata["trained"],
        thumbnail=slide_picture(thumbnail, THUMBNAIL_PX, _QUALITY)[0],
    )


def report_path(table: Path) -> Path:
    """Where the report of a result lies."""
    return table.with_name(f"{table.stem}{REPORT_SUFFIX}")


def archive_page(title: str, rows: Iterable[Row], failures: Iterable[Failure] = ()) -> str:
    """The HTML index over an archive: thumbnails, a search, and columns that sort.

    Parameters
    ----------
    title : str
    rows : iterable of Row
    failures : iterable of Failure
        Slides that have no result; shown among the others, with their reason.

    Returns
    -------
    str
        HTML in one file: about a kilobyte or two a slide, and at most a hundred slides shown at a time.
    """
    rows, failures = list(rows), list(failures)
    records = [_record(row) for row in rows] + [
        {"name": failure.slide, "state": "failed", "reason": failure.reason} for failure in failures
    ]
    return render(
        "index",
        title=title,
        slides=len(records),
        failed=len(failures),
        partial=sum(row.valid < row.spots for row in rows),
        spots=sum(row.spots for row in rows),
        untrained=sum(not row.trained for row in rows),
        releases=len({row.release for row in rows}),
        records=records,
    )


def _record(row: Row) -> dict[str, Any]:
    missing = row.spots - row.valid
    record: dict[str, Any] = {
        "name": row.name,
        "slide": row.slide,
        "state": "incomplete" if missing else "complete",
        "spots": row.spots,
        "missing": missing,
        "mpp": row.mpp,
        "mpp_source": row.mpp_source,
        "tissue": round(100 * row.tissue, 1),
        "speed": None if row.spots_per_s is None else round(row.spots_per_s, 1),
        "finished": row.finished,
        "release": row.release[:12],
        "untrained": not row.trained,
        "picture": row.thumbnail,
        "page": row.page,
    }
    return {key: value for key, value in record.items() if value is not None and value is not False}
