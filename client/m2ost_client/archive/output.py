"""What an archive's run leaves: a result a slide, one table of all, and a summary of the run.

Results and table hold nothing that differs between two runs: no times, no counts of retries, no addresses. Those are in
the summary and in the state.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from m2ost_contract import EngineInfo, complete_file

from ..errors import OutputError
from ..exports import Exports
from ..files import read_metadata, write_result
from ..metadata import SpotsScored, level_metadata, result_metadata
from ..results import SlideResult
from .plan import SlidePlan
from .scan import LeftOut
from .state import CHANGED, DONE, FAILED, Part, SlideRecord

if TYPE_CHECKING:
    import pandas as pd

RESULTS = "results"
TABLE = "archive.parquet"
SUMMARY = "summary.json"

COLUMNS: dict[str, Any] = {
    "slide_id": "string",
    "path": "string",
    "state": "string",
    "reason": "string",
    "spots": "Int64",
    "spots_without_value": "Int64",
    "mpp": "Float64",
    "mpp_source": "string",
    "width_px": "Int64",
    "height_px": "Int64",
    "vendor": "string",
    "reader": "string",
    "note": "string",
    "tissue_fraction": "Float64",
    "fingerprint": "string",
    "release_sha256": "string",
    "result": "string",
    "result_bytes": "Int64",
    "result_sha256": "string",
}
"""Of the table."""


def assemble(plan: SlidePlan, engine: EngineInfo, scored: Part) -> SlideResult:
    """The result of a slide, its spots in their own order.

    Parameters
    ----------
    plan : SlidePlan
    engine : EngineInfo
    scored : Part
        Of all its spots, in the order of scoring.
    """
    n_spots = len(plan.spots)
    expression = np.full((n_spots, len(engine.genes)), np.nan, np.float32)
    status = np.zeros(n_spots, np.int32)
    if n_spots:
        expression[plan.order], status[plan.order] = scored.expression, scored.status
    return SlideResult(plan.row.slide_id, plan.slide, engine, plan.spots, expression, status)


def write_slide(
    plan: SlidePlan,
    result: SlideResult,
    out: Path,
    genes: Sequence[str] | None,
    *,
    exports: Exports,
    pixels_sent: bool,
) -> dict[str, Any]:
    """Write a slide's files, durably and whole, and return what the state and the table keep of it.

    Parameters
    ----------
    plan : SlidePlan
    result : SlideResult
    out : Path
        The archive's folder.
    genes : sequence of str, optional
        Draw maps of these, and the overview; None draws none.
    exports : Exports
        Further files.
    pixels_sent : bool
        Whether views were cut on this host.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    folder = out / RESULTS
    metadata = result_metadata(
        result.slide,
        result.engine,
        spots=SpotsScored(len(result.spots), result.spots.source, result.counts_by_status()),
        name=plan.row.path,
        served_as=None,
        scale=plan.scale,
        pixels_sent_by_client=pixels_sent,
    )
    metadata |= level_metadata(result.engine, result.spots) | {"slide_id": plan.row.slide_id, "result_key": plan.key}
    metadata |= {"region": plan.row.region} if plan.row.region else {}
    metadata |= {"lower_levels": True} if plan.pyramid else {}
    further = {}
    if exports.any:
        from ..reports import writers  # what draws takes seconds to import

        further = writers(exports, result, metadata, genes or ())
    *_, table = write_result(result, metadata, genes, folder, further)
    slide = plan.slide
    data = table.read_bytes()
    return {
        "spots": len(result.spots),
        "spots_without_value": int(np.count_nonzero(result.status)),
        "mpp": slide.mpp,
        "mpp_source": slide.mpp_source,
        "width_px": slide.size[0],
        "height_px": slide.size[1],
        "vendor": slide.vendor,
        "reader": slide.reader,
        "note": slide.note,
        "unlike_training": metadata["views"]["warning"],
        "tissue_fraction": slide.tissue_fraction,
        "fingerprint": slide.fingerprint,
        "release_sha256": result.engine.release_sha256,
        "result": f"{RESULTS}/{table.name}",
        "result_bytes": len(data),
        "result_sha256": hashlib.sha256(data).hexdigest(),
    }


def is_there(record: SlideRecord, out: Path) -> bool:
    """Whether the result that the state tells of lies there, in its size."""
    if record.facts is None:
        return False
    try:
        size = (out / record.facts["result"]).stat().st_size
        return bool(size == record.facts["result_bytes"])
    except OSError:
        return False


def remove_result(slide_id: str, out: Path) -> None:
    """Remove a slide's files, the table first: where it is, the others are."""
    folder = out / RESULTS
    metadata = read_metadata(folder, slide_id)
    further = [str(name) for name in (*(metadata.get("maps") or ()), *(metadata.get("exports") or ()))]
    own = [name for name in further if name.startswith(f"{slide_id}.") and "/" not in name]
    for path in (folder / name for name in (f"{slide_id}.h5ad", f"{slide_id}.json", *own)):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_table(records: Iterable[SlideRecord], out: Path) -> None:
    """Write ``archive.parquet``: one row a slide of the manifest, in its order.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    import pandas as pd

    rows = [
        {
            **(r.facts or {} if r.state == DONE else {}),
            "slide_id": r.slide_id,
            "path": r.path,
            "state": r.state,
            "reason": r.reason,
        }
        for r in records
    ]
    write_frame(pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS), out)


def write_frame(table: pd.DataFrame, out: Path) -> None:
    """Write ``archive.parquet`` of a table with ``COLUMNS``.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    _replace(out / TABLE, lambda part: table.to_parquet(part, index=False))


def summarise(
    records: Sequence[SlideRecord],
    *,
    skipped: int,
    run: dict[str, Any],
    left_out: Sequence[LeftOut] = (),
    shard: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of ``summary.json``.

    Parameters
    ----------
    records : sequence of SlideRecord
    skipped : int
        Slides whose result was there and of what they are.
    run : dict
        What is told of the run: ``spots`` scored in it, ``seconds``, servers, settings.
    left_out : sequence of LeftOut
        What lies among the slides and is not scored.
    shard : mapping, optional
        Which share of a list the slides are.
    """
    finished = [r.facts for r in records if r.state == DONE and r.facts is not None]
    seconds = run["seconds"]
    return {
        "slides": len(records),
        "done": len(finished),
        "of_them_skipped": skipped,
        "failed": [
            {"slide_id": r.slide_id, "path": r.path, "reason": r.reason}
            for r in records
            if r.state in (FAILED, CHANGED)
        ],
        "left": sum(r.state not in (DONE, FAILED, CHANGED) for r in records),
        "spots": sum(f["spots"] for f in finished),
        "spots_without_value": sum(f["spots_without_value"] for f in finished),
        "without_spots": [
            r.slide_id for r in records if r.state == DONE and r.facts is not None and not r.facts["spots"]
        ],
        "unlike_training": [
            r.slide_id for r in records if r.state == DONE and r.facts is not None and r.facts.get("unlike_training")
        ],
        "left_out": {
            "by_reason": dict(Counter(left.reason for left in left_out)),
            "files": [asdict(left) for left in left_out],
        },
        "mpp_sources": dict(Counter(f["mpp_source"] or "unknown" for f in finished)),
        "run": {**run, "spots_per_s": run["spots"] / seconds if seconds and run["spots"] else None},
        **({"shard": dict(shard)} if shard else {}),
    }


def write_pages(records: Iterable[SlideRecord], out: Path) -> None:
    """Write ``index.html`` over the archive; slides that failed are in it, with the reason.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    from ..reports import Failure, write_index

    failed = [r for r in records if r.state in (FAILED, CHANGED)]
    write_index(out, [Failure(slide=r.slide_id, reason=r.reason or "") for r in failed])


def write_summary(summary: dict[str, Any], out: Path) -> None:
    """Write ``summary.json``.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    _replace(out / SUMMARY, lambda part: part.write_text(text, encoding="utf-8"))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    try:
        with complete_file(path) as scratch:
            write(scratch)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error}); free space, then run the same command again"
        ) from error
