"""Exports and an index for results that lie in a folder."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ClientError, InputError
from ..exports import Exports
from ..files import INDEX, add_exports, write_file
from .archive_page import Failure, Row, archive_page, read_row
from .stored import read_stored
from .writers import writers


@dataclass(frozen=True)
class Reported:
    """What a call made.

    Parameters
    ----------
    results : int
        Results that were found.
    files : tuple of Path
        Files written, an index last.
    problems : tuple of Failure
        Results that could not be read, or of which a file could not be made.
    """

    results: int
    files: tuple[Path, ...]
    problems: tuple[Failure, ...]


def find_results(folder: Path) -> Iterator[Path]:
    """Tables of results in a folder and below, by name; what is hidden is left out."""
    for path in sorted(folder.rglob("*.h5ad")):
        if not any(part.startswith(".") or part.endswith(".zarr") for part in path.relative_to(folder).parts):
            yield path


def export_stored(table: Path, exports: Exports, genes: Sequence[str] = ()) -> tuple[Path, ...]:
    """Write further files beside the table of a result.

    Parameters
    ----------
    table : Path
        ``<name>.h5ad``.
    exports : Exports
    genes : sequence of str
        As :meth:`Exports.writers` takes them.

    Raises
    ------
    InputError
        If the table is not a result of `m2ost predict`, or a gene is not in its panel.
    OutputError
        If a file cannot be written.
    """
    result, metadata = read_stored(table)
    return add_exports(result.name, writers(exports, result, metadata, genes), table.parent)


def write_index(folder: Path, failures: Iterable[Failure] = (), *, title: str | None = None) -> Path:
    """Write ``index.html`` over the results in a folder and below.

    Parameters
    ----------
    folder : Path
    failures : iterable of Failure
        Slides that have no result. A table that cannot be read is added to them.
    title : str, optional
        By default the folder's name.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    rows, failed = _rows(folder)
    return _write_index(folder, rows, [*failures, *failed.values()], title)


def report(
    target: Path,
    exports: Exports,
    *,
    genes: Sequence[str] = (),
    failures: Iterable[Failure] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> Reported:
    """Write further files of one result, or of every result in a folder and an index over them.

    Parameters
    ----------
    target : Path
        A table, or a folder.
    exports : Exports
    genes : sequence of str
        As :meth:`Exports.writers` takes them.
    failures : iterable of Failure
        Slides that have no result, for the index.
    on_progress : callable, optional
        Called with (results done, results in all).

    Returns
    -------
    Reported
        A folder's results that fail cost the others nothing.

    Raises
    ------
    InputError
        If the target does not exist, an extra is missing, or a single table cannot be read.
    OutputError
        If the index, or a file of a single table, cannot be written.
    """
    exports.check_installed()
    if target.is_file():
        return Reported(1, export_stored(target, exports, genes), ())
    if not target.is_dir():
        raise InputError(f"{target}: no such file or folder")
    tables = list(find_results(target))
    files: list[Path] = []
    problems: dict[Path, Failure] = {}
    for done, table in enumerate(tables, 1):
        if exports != Exports():
            try:
                files += export_stored(table, exports, genes)
            except ClientError as error:
                problems[table] = _failure(table, target, error)
        if on_progress:
            on_progress(done, len(tables))
    rows, unreadable = _rows(target)
    files.append(_write_index(target, rows, [*failures, *unreadable.values()], None))
    return Reported(len(tables), tuple(files), tuple({**problems, **unreadable}.values()))


def read_failures(path: Path) -> list[Failure]:
    """Slides that failed, from a CSV file with the columns ``slide`` and ``reason``.

    Raises
    ------
    InputError
        If it cannot be read or lacks a column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return [Failure(slide=row["slide"], reason=row["reason"] or "") for row in csv.DictReader(stream)]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
        what = f"no column {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path}: {what}; give a CSV file with the columns slide,reason") from error


def _rows(folder: Path) -> tuple[list[Row], dict[Path, Failure]]:
    rows, failed = [], {}
    for table in find_results(folder):
        try:
            rows.append(read_row(table, folder))
        except ClientError as error:
            failed[table] = _failure(table, folder, error)
    return rows, failed


def _failure(table: Path, folder: Path, error: ClientError) -> Failure:
    return Failure(slide=table.relative_to(folder).with_suffix("").as_posix(), reason=str(error))


def _write_index(folder: Path, rows: list[Row], failures: list[Failure], title: str | None) -> Path:
    path = folder / INDEX
    write_file(path, archive_page(title or folder.resolve().name, rows, failures))
    return path
