"""What is known of an archive's slides: one SQLite database, written by one process at a time.

A slide is ``pending``, ``running``, ``done``, ``failed`` or ``changed``. What a killed run was working on is
``running`` in the database of a folder that nobody has locked: the lock is the operating system's and ends with its
process, so that no clock decides whether a worker lives.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..answers import Expression, Statuses
from ..errors import InputError, OutputError
from .slide_list import SlideRow

FILENAME = "state.sqlite"
LOCK = "state.lock"
FORMAT = 1

PENDING, RUNNING, DONE, FAILED, CHANGED = "pending", "running", "done", "failed", "changed"
LEFT_OUT = "left_out"
"""Name of the value that holds what lies among the slides and is not scored."""

_LOCK_TRIES, _LOCK_PAUSE_S = 10, 0.05
"""`m2ost status` holds the lock for a moment to see whether it is free."""

STATES = (DONE, RUNNING, PENDING, FAILED, CHANGED)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS archive (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS slides (
    slide_id TEXT PRIMARY KEY,
    position INTEGER,              -- in the slide list; NULL: no longer in it
    path TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT,                   -- of FAILED and CHANGED
    key TEXT,                      -- of what its result, or its parts, were made from
    spots INTEGER,
    facts TEXT,                    -- of a result, JSON
    attempts INTEGER NOT NULL DEFAULT 0,
    run INTEGER                    -- that claimed it last
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS slides_by_state ON slides (state);
CREATE TABLE IF NOT EXISTS parts (
    slide_id TEXT NOT NULL,
    first INTEGER NOT NULL,        -- position in the slide's order of scoring
    spots INTEGER NOT NULL,
    status BLOB NOT NULL,          -- int32, little-endian
    expression BLOB NOT NULL,      -- float32, little-endian, row by row
    PRIMARY KEY (slide_id, first)
);
CREATE TABLE IF NOT EXISTS runs (
    run INTEGER PRIMARY KEY,
    pid INTEGER NOT NULL,
    host TEXT NOT NULL,
    spots INTEGER NOT NULL DEFAULT 0,
    seconds REAL NOT NULL DEFAULT 0,
    ended TEXT                     -- how; NULL while it runs, or if it was killed
);
"""


@dataclass(frozen=True)
class Part:
    """Results of neighbouring spots of a slide, in its order of scoring.

    Parameters
    ----------
    first : int
        Position of the first.
    expression : ndarray of float32, shape (n, G)
    status : ndarray of int32, shape (n,)
    """

    first: int
    expression: Expression
    status: Statuses


@dataclass(frozen=True)
class SlideRecord:
    """What the database says of a slide; see the schema."""

    slide_id: str
    path: str
    state: str
    reason: str | None
    key: str | None
    spots: int | None
    facts: dict[str, Any] | None
    attempts: int


_RECORD = "slide_id, path, state, reason, key, spots, facts, attempts"


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold an archive's folder against any other process, on this machine or another that locks over its file system.

    Raises
    ------
    InputError
        If another holds it; says who.
    """
    with (folder / LOCK).open("a+", encoding="utf-8") as stream:
        for patience in range(_LOCK_TRIES, -1, -1):
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                time.sleep(_LOCK_PAUSE_S)
                if patience:
                    continue
                stream.seek(0)
                owner = stream.read().strip() or "another process"
                raise InputError(
                    f"{folder}: {owner} is working on this archive; wait for it, see `m2ost status`, or choose another "
                    "--out"
                ) from error
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {os.uname().nodename}")
        stream.flush()
        yield


def is_locked(folder: Path) -> bool:
    """Whether a process is working on an archive."""
    try:
        with (folder / LOCK).open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise OutputError(
            f"{path}: {error}; free space or mend the file system, then run the same command again"
        ) from error


class State:
    """The database of an archive, for its one writer.

    Every change is one transaction. With ``synchronous=NORMAL`` a crash of the machine may take back the last of them,
    never a part of one: that costs work, and no result.

    Parameters
    ----------
    folder : Path
        The archive's; must be locked (:func:`exclusive`).

    Raises
    ------
    OutputError
        If it cannot be written.
    InputError
        If it is of another version of this program.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILENAME
        self.run = 0
        with _disk_errors(self.path):
            self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
        found = self.setting("format")
        if found not in (None, FORMAT):
            self.close()
            raise InputError(f"{self.path}: written by another version (format {found}, this one has {FORMAT})")
        self.set("format", FORMAT)

    def close(self) -> None:
        """End it."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with _disk_errors(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk may have rolled it back already
                    self._db.execute("ROLLBACK")
                raise

    def setting(self, name: str) -> Any:
        """A value kept for the whole archive, or None."""
        with _disk_errors(self.path):
            row = self._db.execute("SELECT value FROM archive WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def set(self, name: str, value: Any) -> None:
        """Keep a value for the whole archive."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO archive VALUES (?, ?)", (name, json.dumps(value)))

    def begin_run(self) -> None:
        """Note that a run begins, and take back what an earlier one had claimed."""
        with self._transaction() as db:
            cursor = db.execute("INSERT INTO runs (pid, host) VALUES (?, ?)", (os.getpid(), os.uname().nodename))
            self.run = int(cursor.lastrowid or 0)
            db.execute("UPDATE slides SET state = ? WHERE state = ?", (PENDING, RUNNING))

    def note_run(self, *, spots: int, seconds: float, ended: str | None = None) -> None:
        """Note how far the run is."""
        with self._transaction() as db:
            values = (spots, round(seconds, 3), ended, self.run)
            db.execute("UPDATE runs SET spots = ?, seconds = ?, ended = ? WHERE run = ?", values)

    def list_slides(self, rows: Iterable[SlideRow]) -> None:
        """Take in a manifest: new slides are pending, those it no longer names are no longer counted."""
        with self._transaction() as db:
            db.execute("UPDATE slides SET position = NULL")
            db.executemany(
                "INSERT INTO slides (slide_id, position, path, state) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (slide_id) DO UPDATE SET position = excluded.position, path = excluded.path",
                ((row.slide_id, n, row.path, PENDING) for n, row in enumerate(rows)),
            )

    def slides(self) -> list[SlideRecord]:
        """The manifest's slides, in its order."""
        with _disk_errors(self.path):
            return read_records(self._db)

    def slide(self, slide_id: str) -> SlideRecord:
        """One slide."""
        with _disk_errors(self.path):
            return _record(self._db.execute(f"SELECT {_RECORD} FROM slides WHERE slide_id = ?", (slide_id,)).fetchone())

    def claim(self, slide_id: str) -> bool:
        """Take a slide for a worker of this run; False where another has it."""
        with self._transaction() as db:
            values = (RUNNING, self.run, slide_id, RUNNING)
            taken = db.execute(
                "UPDATE slides SET state = ?, run = ?, reason = NULL, attempts = attempts + 1 "
                "WHERE slide_id = ? AND state <> ?",
                values,
            )
        return taken.rowcount == 1

    def put_back(self, slide_id: str) -> None:
        """Give up a claim; the slide is pending, its parts stay. A slide that was not claimed is what it was."""
        with self._transaction() as db:
            values = (PENDING, slide_id, RUNNING)
            db.execute("UPDATE slides SET state = ? WHERE slide_id = ? AND state = ?", values)

    def begin(self, slide_id: str, key: str, spots: int) -> list[Part]:
        """Note what a claimed slide is to be made from; returns the parts of it that an earlier run made.

        Parts that were made from anything else go, and no longer count.
        """
        with self._transaction() as db:
            known = db.execute("SELECT key FROM slides WHERE slide_id = ?", (slide_id,)).fetchone()[0]
            if known != key:
                db.execute("DELETE FROM parts WHERE slide_id = ?", (slide_id,))
            db.execute("UPDATE slides SET key = ?, spots = ? WHERE slide_id = ?", (key, spots, slide_id))
            found = db.execute(
                "SELECT first, spots, status, expression FROM parts WHERE slide_id = ? ORDER BY first", (slide_id,)
            ).fetchall()
        return [
            Part(first, np.frombuffer(expression, "<f4").reshape(n, -1), np.frombuffer(status, "<i4"))
            for first, n, status, expression in found
        ]

    def keep(self, slide_id: str, parts: Iterable[Part]) -> None:
        """Keep parts of a slide's result."""
        with self._transaction() as db:
            db.executemany(
                "INSERT OR IGNORE INTO parts VALUES (?, ?, ?, ?, ?)",
                (
                    (
                        slide_id,
                        p.first,
                        len(p.status),
                        p.status.astype("<i4").tobytes(),
                        p.expression.astype("<f4").tobytes(),
                    )
                    for p in parts
                ),
            )

    def finish(self, slide_id: str, key: str, facts: Mapping[str, Any]) -> None:
        """Note that a slide's result lies complete under its final name."""
        with self._transaction() as db:
            text = json.dumps(facts, ensure_ascii=False)
            values = (DONE, key, facts["spots"], text, slide_id)
            db.execute(
                "UPDATE slides SET state = ?, reason = NULL, key = ?, spots = ?, facts = ? WHERE slide_id = ?", values
            )
            db.execute("DELETE FROM parts WHERE slide_id = ?", (slide_id,))

    def fail(self, slide_id: str, reason: str) -> None:
        """Note why a slide has no result."""
        self._settle(slide_id, FAILED, reason)

    def note_changed(self, slide_id: str, reason: str) -> None:
        """Note that a result is of what a slide no longer is."""
        self._settle(slide_id, CHANGED, reason)

    def note_unchanged(self, slide_id: str) -> None:
        """Note that a result is of what its slide is (again)."""
        self._settle(slide_id, DONE)

    def reset(self, slide_id: str) -> None:
        """Forget what was made of a slide."""
        with self._transaction() as db:
            db.execute("DELETE FROM parts WHERE slide_id = ?", (slide_id,))
            values = (PENDING, slide_id)
            db.execute(
                "UPDATE slides SET state = ?, reason = NULL, key = NULL, spots = NULL, facts = NULL WHERE slide_id = ?",
                values,
            )

    def _settle(self, slide_id: str, state: str, reason: str | None = None) -> None:
        with self._transaction() as db:
            db.execute("UPDATE slides SET state = ?, reason = ? WHERE slide_id = ?", (state, reason, slide_id))


def read_records(db: sqlite3.Connection) -> list[SlideRecord]:
    """The manifest's slides, in its order."""
    found = db.execute(f"SELECT {_RECORD} FROM slides WHERE position IS NOT NULL ORDER BY position")
    return [_record(row) for row in found]


def _record(row: tuple[Any, ...]) -> SlideRecord:
    slide_id, path, state, reason, key, spots, facts, attempts = row
    return SlideRecord(
        slide_id, path, state, reason, key, spots, None if facts is None else json.loads(facts), attempts
    )
