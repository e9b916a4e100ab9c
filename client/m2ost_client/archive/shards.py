"""An archive in shards: several runs, each with a share of the slides and a folder of its own, and what joins them."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import INDEX
from .options import ArchiveReport
from .output import COLUMNS, SUMMARY, TABLE, write_frame, write_summary
from .slide_list import SlideList
from .state import FILENAME

_TEXT = re.compile(r"(\d{1,5})/(\d{1,5})")
_FOLDER = re.compile(r"shard-(\d+)-of-(\d+)")
_ADDED_UP = ("slides", "done", "of_them_skipped", "left", "spots", "spots_without_value")
_IN_A_ROW = ("failed", "without_spots", "unlike_training")
_ALIKE = ("release_sha256", "engine", "pitch_um", "view_mpp")
"""What the summaries of all shards must say alike of their runs."""


@dataclass(frozen=True)
class Shard:
    """One share of an archive's slides.

    Parameters
    ----------
    index : int
        Which, from 0.
    of : int
        How many there are.

    Raises
    ------
    InputError
        If there is no such share.
    """

    index: int
    of: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.of:
            raise InputError(
                f"--shard {self.index}/{self.of}: of {self.of} shards the first is 0, the last {self.of - 1}"
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Of ``K/N``, K from 0 to N - 1.

        Raises
        ------
        InputError
            If the text does not read so.
        """
        found = _TEXT.fullmatch(text)
        if found is None:
            raise InputError(f"--shard {text}: must read K/N, such as 0/4, the first of four")
        return cls(int(found[1]), int(found[2]))

    def folder(self, out: Path) -> Path:
        """Where its run works, below the archive's folder."""
        return out / f"shard-{self.index}-of-{self.of}"

    def of_list(self, slides: SlideList) -> SlideList:
        """Its share of a list: of the slides, sorted by their ids, every ``of``-th from the ``index``-th.

        Shares are disjoint, together they are the list, and they do not depend on its order. One may be empty. What was
        left out of the list is told by the first alone.
        """
        rows = sorted(slides.rows, key=lambda row: row.slide_id)
        sha256 = hashlib.sha256("\n".join(row.slide_id for row in rows).encode()).hexdigest()
        return replace(
            slides,
            rows=tuple(rows[self.index :: self.of]),
            left_out=slides.left_out if self.index == 0 else (),
            shard={**asdict(self), "of_slides": len(rows), "list_sha256": sha256},
        )


def shards_in(out: Path) -> list[Shard]:
    """The shards that have a folder in the archive's."""
    found = (_FOLDER.fullmatch(path.name) for path in sorted(out.glob("shard-*-of-*")) if path.is_dir())
    return sorted((Shard(int(m[1]), int(m[2])) for m in found if m), key=lambda shard: (shard.of, shard.index))


def folder_of_run(shard: Shard | None, out: Path) -> Path:
    """Where a run over the archive in ``out`` works; what joins its shards is removed, for it is of before this run.

    Raises
    ------
    InputError
        If the archive there is shared out otherwise.
    """
    other = next((there.of for there in shards_in(out) if shard is None or there.of != shard.of), None)
    if other is not None:
        raise InputError(f"{out}: holds an archive in {other} shards; give --shard K/{other}, or choose another --out")
    if shard is None:
        return out
    if (out / FILENAME).exists():
        raise InputError(f"{out}: holds an archive that is not in shards; leave --shard out, or choose another --out")
    for name in (TABLE, SUMMARY, INDEX):
        (out / name).unlink(missing_ok=True)
    return shard.folder(out)


def unfinished(out: Path) -> list[Shard]:
    """The shards that have not come to their end, or whose run is under way now.

    Raises
    ------
    InputError
        If there are none in the folder, or of several ways to share an archive out.
    """
    there = shards_in(out)
    counts = sorted({shard.of for shard in there})
    if not counts:
        raise InputError(f"{out}: no shards; make them with `m2ost rescore MANIFEST --shard K/N --out {out}`")
    if len(counts) > 1:
        raise InputError(f"{out}: holds archives in {' and in '.join(map(str, counts))} shards; remove the wrong ones")
    shards = [Shard(index, counts[0]) for index in range(counts[0])]
    return [shard for shard in shards if (summary := _summary(shard, out)) is None or summary["run"]["ended"] != "done"]


def _summary(shard: Shard, out: Path) -> dict[str, Any] | None:
    """What a shard's last run came to; None where there was none, or one is under way."""
    try:
        found: dict[str, Any] = json.loads((shard.folder(out) / SUMMARY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found


def join_shards(out: Path) -> ArchiveReport:
    """Write the table and the summary of the whole archive, and an index where every shard has one.

    They lie in the archive's folder, and depend on the shards' results alone: whoever joins them, and when.

    Parameters
    ----------
    out : Path
        The archive's folder.

    Raises
    ------
    InputError
        If a shard is missing or not at its end, or if shards are of different lists, releases, engines or settings.
    OutputError
        If a file cannot be written.
    """
    missing = unfinished(out)
    if missing:
        names = ", ".join(f"{shard.index}/{shard.of}" for shard in missing)
        raise InputError(f"{out}: shards without an end: {names}; run `m2ost rescore … --shard K/N` for each")
    shards = shards_in(out)
    summaries = [summary for shard in shards if (summary := _summary(shard, out))]
    _check_alike(out, summaries)
    import pandas as pd

    tables = []
    for shard in shards:
        folder = shard.folder(out)
        table = pd.read_parquet(folder / TABLE)
        table["result"] = f"{folder.name}/" + table["result"].astype("string")
        tables.append(table)
    joined = pd.concat(tables, ignore_index=True).astype(COLUMNS).sort_values("slide_id", ignore_index=True)
    if joined["slide_id"].duplicated().any() or len(joined) != summaries[0]["shard"]["of_slides"]:
        raise InputError(f"{out}: the shards' tables are not the list's slides, each once; run every shard again")
    summary = _joined(summaries)
    write_frame(joined, out)
    write_summary(summary, out)
    if all((shard.folder(out) / INDEX).is_file() for shard in shards):
        from ..reports import Failure, write_index

        write_index(
            out, [Failure(slide=slide["slide_id"], reason=slide["reason"] or "") for slide in summary["failed"]]
        )
    return ArchiveReport(summary, drained=False)


def _check_alike(out: Path, summaries: Sequence[dict[str, Any]]) -> None:
    first = summaries[0]
    for summary in summaries:
        whose = f"shard {summary['shard']['index']}"
        if summary["shard"]["list_sha256"] != first["shard"]["list_sha256"]:
            raise InputError(
                f"{out}: {whose} is of another list of slides than shard 0; run every shard on the same list"
            )
        for name in _ALIKE:
            there, here = first["run"][name], summary["run"][name]
            if here != there:
                raise InputError(
                    f"{out}: shards were scored otherwise: {name} of shard 0 is {there}, of {whose} {here}; run those "
                    "that are wrong again, with --rescore-changed"
                )


def _joined(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """As the summary of one run, but with every shard's run in place of the one."""
    summed: dict[str, Any] = {name: sum(summary[name] for summary in summaries) for name in _ADDED_UP}
    rows = {name: [one for summary in summaries for one in summary[name]] for name in _IN_A_ROW}
    sources: Counter[str] = sum((Counter(summary["mpp_sources"]) for summary in summaries), Counter())
    shards = [{**s["shard"], "slides": s["slides"], "run": s["run"]} for s in summaries]
    return {**summed, **rows, "left_out": summaries[0]["left_out"], "mpp_sources": dict(sources), "shards": shards}
