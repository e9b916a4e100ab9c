"""What an archive holds: a table of slides, a folder, or a pattern."""

from __future__ import annotations

import csv
import glob
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from .storage import is_url, matches

COLUMNS = ("slide_id", "path", "mpp", "spots", "mask", "pitch_um")
"""Columns that are used; a table may have others."""

_REQUIRED = ("slide_id", "path")
_MAX_ID_BYTES = 150  # what a file name may have, less the longest ending of a map
_BAD_ID = re.compile(r"[/\\\x00-\x1f\x7f]|^[.\s]|\s$|^$")
_NAN = {"", "nan", "na", "none", "null"}

Records = list[tuple[str, Mapping[Any, Any]]]
"""Where a record stands, for errors; and its cells by column."""

SLIDE_SUFFIXES = frozenset(
    ("svs", "tif", "tiff", "ndpi", "mrxs", "scn", "bif", "vms", "vmu", "svslide", "jpg", "jpeg", "png"),
)
"""Endings of the files that a folder is searched for; a folder with ``.dcm`` files is one slide."""


@dataclass(frozen=True)
class SlideRow:
    """One slide of an archive.

    Parameters
    ----------
    slide_id : str
        Unique; stem of its result's files.
    path : str
        Absolute path, URL, or name under a server's roots.
    mpp : float, optional
        µm/px, in place of what the file says.
    spots : str, optional
        File of spots to score, in place of a grid.
    mask : str, optional
        Image over the whole slide; the grid covers what is not black, in place of what is taken for tissue.
    pitch_um : float, optional
        Pitch of the grid in µm, in place of the archive's.
    """

    slide_id: str
    path: str
    mpp: float | None = None
    spots: str | None = None
    mask: str | None = None
    pitch_um: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


@dataclass(frozen=True)
class SlideList:
    """The slides of an archive.

    Parameters
    ----------
    rows : tuple of SlideRow
        In the manifest's order.
    unused : tuple of str
        Columns of the manifest that nothing reads.
    """

    rows: tuple[SlideRow, ...]
    unused: tuple[str, ...] = ()


def read_slides(source: str, *, names_on_server: bool = False) -> SlideList:
    """The slides that a manifest, a folder or a pattern names.

    Parameters
    ----------
    source : str
        A ``.csv``, ``.tsv`` or ``.parquet`` with the columns ``slide_id`` and ``path`` and, where wanted, ``mpp``,
        ``spots``, ``mask`` and ``pitch_um``, paths relative to it; or a folder, searched to the bottom; or a pattern
        (``slides/**/*.svs``, ``s3://bucket/*.svs``). In the last two a slide is called by its path below the folder or
        the pattern's fixed part, without the ending, ``/`` as ``__``.
    names_on_server : bool
        ``path`` of a manifest is a name under a server's roots (``root/relative/path``): it is taken as it is.

    Raises
    ------
    InputError
        If there is nothing, a column is missing, a value cannot be used, or two slides have one id. Names file, row,
        column, and what to do.
    """
    path = Path(source).expanduser()
    suffix = path.suffix.lower()
    if not is_url(source) and suffix in (".csv", ".tsv", ".parquet") and not path.is_dir():
        records, header = _read_parquet(path) if suffix == ".parquet" else _read_text(path)
        found = SlideList(
            tuple(_row(path, place, record, names_on_server) for place, record in records),
            tuple(column for column in header if column not in COLUMNS),
        )
    elif names_on_server:
        raise InputError(
            f"{source}: slides on a server are named by a manifest (.csv, .tsv or .parquet with slide_id and "
            "path=root/relative/path); a folder or pattern needs --send-pixels"
        )
    elif path.is_dir():
        root = path.resolve()
        found = SlideList(tuple(_named(root.as_posix(), (p.as_posix() for p in _slides_below(root)))))
    else:
        found = SlideList(tuple(_match(source)))
    if not found.rows:
        raise InputError(f"{source}: no slides; give a manifest, a folder of slides, or a pattern in quotes")
    _check_unique(source, found.rows)
    return found


def _read_text(path: Path) -> tuple[Records, list[str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        lines = text.splitlines()
        table = csv.DictReader(lines, delimiter="\t" if "\t" in (lines or [""])[0] else ",", strict=True)
        header = [name.strip() for name in table.fieldnames or ()]
        table.fieldnames = header
        records: Records = [(f"row {table.line_num}", record) for record in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot read the manifest: {error}") from error
    _check_header(path, header)
    for place, record in records:
        if None in record or None in record.values():
            raise InputError(f"{path}, {place}: it has not the header's {len(header)} fields; quote what holds commas")
    return records, header


def _read_parquet(path: Path) -> tuple[Records, list[str]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pq.read_table(path)
    except ImportError as error:
        raise InputError(f"{path}: Parquet needs pyarrow ({error}): pip install 'm2ost-triton[client]'") from error
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot read the manifest: {error}") from error
    header = list(table.column_names)
    _check_header(path, header)
    return [(f"row {n}", record) for n, record in enumerate(table.to_pylist(), 1)], header


def _check_header(path: Path, header: list[str]) -> None:
    for column in _REQUIRED:
        if column not in header:
            has = ", ".join(header) or "none"
            raise InputError(f"{path}: no column {column!r} (it has {has}); the header must hold slide_id and path")
    twice = next((column for column in header if header.count(column) > 1), None)
    if twice is not None:
        raise InputError(f"{path}: column {twice!r} appears twice; rename one")


def _row(path: Path, place: str, record: Mapping[str, Any], names_on_server: bool) -> SlideRow:
    text = {column: _text(record.get(column)) for column in COLUMNS}
    slide_id, location = text["slide_id"], text["path"]
    if slide_id is None or location is None:
        column = "slide_id" if slide_id is None else "path"
        raise InputError(f"{path}, {place}, column {column!r}: empty; every slide needs one")
    problem = _problem_of_id(slide_id)
    if problem:
        raise InputError(f"{path}, {place}, column 'slide_id': {slide_id!r} {problem}; choose another")
    mpp, pitch_um = (_positive(path, place, column, text[column]) for column in ("mpp", "pitch_um"))
    if text["spots"] and (text["mask"] or pitch_um):
        raise InputError(
            f"{path}, {place}, column 'spots': with a file of spots there is no grid; leave mask and pitch_um empty"
        )
    files = {column: _beside(path, text[column]) for column in ("spots", "mask")}
    for column, file in files.items():
        if file is not None and not Path(file).is_file():
            raise InputError(
                f"{path}, {place}, column {column!r}: {file}: no such file; mend the path or leave it empty"
            )
    resolved = location if names_on_server else _beside(path, location)
    assert resolved is not None
    return SlideRow(slide_id, resolved, mpp, files["spots"], files["mask"], pitch_um)


def _text(value: Any) -> str | None:
    """A cell; None where it is empty."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    text = str(value).strip()
    return None if text.lower() in _NAN else text


def _positive(path: Path, place: str, column: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise InputError(
            f"{path}, {place}, column {column!r}: {text!r} is not a positive number; mend it or leave it empty"
        )
    return value


def _beside(path: Path, location: str | None) -> str | None:
    """A location of a manifest, relative to where that lies."""
    if location is None or is_url(location):
        return location
    return str(path.resolve().parent / Path(location).expanduser())


def _problem_of_id(slide_id: str) -> str | None:
    if _BAD_ID.search(slide_id):
        return "cannot name files (no slash, no control character, no leading dot or space)"
    if len(slide_id.encode("utf-8", "replace")) > _MAX_ID_BYTES:
        return f"is longer than {_MAX_ID_BYTES} bytes"
    return None


def _slides_below(root: Path) -> Iterator[Path]:
    """Files that are slides by their ending, and folders of DICOM instances, sorted."""
    try:
        entries = sorted(root.iterdir())
    except OSError as error:
        raise InputError(f"{root}: cannot list the folder: {error.strerror}") from error
    if any(entry.suffix.lower() == ".dcm" and entry.is_file() for entry in entries):
        yield root
        return
    companions = {entry.with_suffix("") for entry in entries if entry.suffix.lower() == ".mrxs"}
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and entry not in companions and not entry.is_symlink():
            yield from _slides_below(entry)
        elif entry.suffix.lower().lstrip(".") in SLIDE_SUFFIXES and entry.is_file():
            yield entry


def _match(pattern: str) -> Iterator[SlideRow]:
    if is_url(pattern):
        paths = sorted(matches(pattern))
    else:
        absolute = str(Path(pattern).expanduser().absolute())
        paths = sorted(glob.glob(absolute, recursive=True)) if glob.has_magic(pattern) else []
        if not paths:
            raise InputError(f"{pattern}: no such manifest or folder, and no file matches it")
    return _named(_fixed_part(paths), paths)


def _fixed_part(paths: list[str]) -> str:
    """The folder that all paths lie in."""
    folders = [path.rsplit("/", 1)[0].split("/") for path in paths]
    shared: list[str] = []
    for parts in zip(*folders, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "/".join(shared)


def _named(root: str, paths: Iterable[str]) -> Iterator[SlideRow]:
    for path in paths:
        relative = path.removeprefix(root).strip("/") or root.rsplit("/", 1)[-1]
        folder, separator, name = relative.rpartition("/")
        stem = name.rpartition(".")[0] or name
        slide_id = f"{folder}{separator}{stem}".replace("/", "__")
        problem = _problem_of_id(slide_id)
        if problem:
            raise InputError(f"{path}: its id {slide_id!r} {problem}; write a manifest with ids of your own")
        yield SlideRow(slide_id, path)


def _check_unique(source: str, rows: tuple[SlideRow, ...]) -> None:
    seen: dict[str, SlideRow] = {}
    for row in rows:
        other = seen.setdefault(row.slide_id, row)
        if other is not row:
            raise InputError(
                f"{source}, column 'slide_id': {row.slide_id!r} is the id of {other.path} and of {row.path}; ids must "
                "be unique: write a manifest with ids of your own"
            )
