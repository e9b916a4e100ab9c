"""How far an archive is, read beside a run or after it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from .state import CHANGED, DONE, FAILED, FILENAME, LEFT_OUT, STATES, is_locked, read_records


@dataclass(frozen=True)
class ArchiveStatus:
    """How far an archive is.

    Parameters
    ----------
    folder : Path
    running : bool
        Whether a process works on it now.
    slides : dict of str to int
        Slides by state.
    spots_done : int
        Spots of finished slides, and of parts of others.
    spots_known : int
        Spots of all slides that have been looked at so far.
    problems : dict of str to str
        Slides without a result of what they are now → why.
    last_run : dict
        ``pid``, ``host``, ``spots`` scored, ``seconds``, ``ended`` (how; None where it runs, or was killed).
    settings : dict
        What all results have in common.
    left_out : list of dict
        What lies among the slides and is not scored: ``path``, ``reason``, and ``problem``, whether it may be or hide a
        slide.
    """

    folder: Path
    running: bool
    slides: dict[str, int]
    spots_done: int
    spots_known: int
    problems: dict[str, str]
    last_run: dict[str, Any]
    settings: dict[str, Any]
    left_out: list[dict[str, Any]]

    @property
    def complete(self) -> bool:
        """Whether every slide has its result."""
        return self.slides[DONE] == sum(self.slides.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**vars(self), "folder": str(self.folder), "complete": self.complete}


def read_status(folder: Path) -> ArchiveStatus:
    """Read how far an archive is. Changes nothing and waits for nobody.

    Raises
    ------
    InputError
        If there is no archive in the folder, or its database is damaged.
    """
    path = folder / FILENAME
    if not path.is_file():
        raise InputError(f"{folder}: no archive (no {FILENAME}); make one with `m2ost rescore MANIFEST --out {folder}`")
    running = is_locked(folder)
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=10)) as db:
            records = read_records(db)
            parts = dict(db.execute("SELECT slide_id, SUM(spots) FROM parts GROUP BY slide_id").fetchall())
            run = db.execute("SELECT pid, host, spots, seconds, ended FROM runs ORDER BY run DESC LIMIT 1").fetchone()
            values = dict(db.execute("SELECT name, value FROM archive").fetchall())
    except sqlite3.Error as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    counts = {state: sum(record.state == state for record in records) for state in STATES}
    done = sum(record.spots or 0 for record in records if record.state == DONE)
    return ArchiveStatus(
        folder=folder,
        running=running,
        slides=counts,
        spots_done=done + sum(parts.get(record.slide_id, 0) for record in records),
        spots_known=sum(record.spots or 0 for record in records),
        problems={r.slide_id: r.reason or "" for r in records if r.state in (FAILED, CHANGED)},
        last_run=dict(zip(("pid", "host", "spots", "seconds", "ended"), run, strict=True)) if run else {},
        settings=json.loads(values.get("settings", "{}")),
        left_out=json.loads(values.get(LEFT_OUT, "[]")),
    )
