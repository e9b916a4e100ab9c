"""What an archive holds: a table of slides, a folder, or a pattern."""

from __future__ import annotations

import csv
import glob
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m2ost_contract import install_command
from m2ost_preprocess.errors import SpotError
from m2ost_preprocess.home import NoHomeFolder, expanded
from m2ost_preprocess.slides.rectangle import Rectangle

from ..errors import InputError
from .patience import PATIENCE, Patience
from .scan import Found, LeftOut, search_folder, search_pattern, single
from .storage import is_url, sort_out_urls

COLUMNS = ("slide_id", "path", "mpp", "spots", "mask", "pitch_um", "region")
"""Columns that are used; a table may have others."""

_REQUIRED = ("slide_id", "path")
_MANIFESTS = (".csv", ".tsv", ".parquet")
_MAX_ID_BYTES = 150  # what a file name may have, less the longest ending of a map
_BAD_ID = re.compile(r"[/\\\x00-\x1f\x7f]|^[.\s]|\s$|^$")
_NAN = {"", "nan", "na", "none", "null"}

Records = list[tuple[str, Mapping[Any, Any]]]
"""Where a record stands, for errors; and its cells by column."""


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
    region : str, optional
        ``X,Y,W,H`` in level-0 pixels: only spots in it are scored.
    """

    slide_id: str
    path: str
    mpp: float | None = None
    spots: str | None = None
    mask: str | None = None
    pitch_um: float | None = None
    region: str | None = None

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
    left_out : tuple of LeftOut
        What a folder or a pattern holds beside them.
    shard : dict, optional
        Where these are a share of a list (:meth:`~m2ost_client.archive.shards.Shard.of_list`): which, of how many, and
        of which list.
    """

    rows: tuple[SlideRow, ...]
    unused: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    shard: Mapping[str, Any] | None = None


def read_slides(
    source: str, *, names_on_server: bool = False, follow_links: bool = False, patience: Patience = PATIENCE
) -> SlideList:
    """The slides that a manifest, a folder or a pattern names.

    Parameters
    ----------
    source : str
        A ``.csv``, ``.tsv`` or ``.parquet`` with the columns ``slide_id`` and ``path`` and, where wanted, ``mpp``,
        ``spots``, ``mask``, ``pitch_um`` and ``region``, paths relative to it; or a folder, searched to the bottom;
        or a pattern (``slides/**/*.svs``, ``s3://bucket/*.svs``); or one slide. In a folder and a pattern a slide is
        called by its path below the folder or the pattern's fixed part, without the ending, ``/`` as ``__``. A DICOM
        series is one slide, called by its folder where it is the only one there, else by its first file.
    names_on_server : bool
        ``path`` of a manifest is a name under a server's roots (``root/relative/path``): it is taken as it is.
    follow_links : bool
        Search linked folders too; links to files are followed in any case.
    patience : Patience
        With a storage, of a file whose name does not tell whether it is a slide.

    Raises
    ------
    InputError
        If there is nothing, a column is missing, a value cannot be used, or two slides have one id. Names file, row,
        column, and what to do.
    NoHomeFolder
        If ``source`` begins with a ``~`` that this machine does not know.
    """
    if is_url(source):
        path, suffix = Path(source), ""
    else:
        path = expanded(source)
        suffix = path.suffix.lower()
    if suffix in _MANIFESTS and not path.is_dir():
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
    elif is_url(source):
        found = _listed(sort_out_urls(source, patience))
    elif path.is_dir():
        root = path.resolve()
        found = _listed(search_folder(root, follow_links=follow_links), root.as_posix())
    elif path.exists():
        found = _listed(_single(path))
    else:
        pattern = path if path.is_absolute() else Path(glob.escape(os.getcwd()), path)
        matched = search_pattern(pattern, follow_links=follow_links) if glob.has_magic(source) else Found()
        if not (matched.slides or matched.left_out):
            raise InputError(f"{source}: no such manifest, folder or slide, and no file matches it")
        found = _listed(matched)
    if not found.rows:
        raise InputError(
            f"{source}: no slides{_told_left_out(found.left_out)}; give a manifest, a folder of slides, or a "
            "pattern in quotes"
        )
    _check_unique(source, found.rows)
    return found


def _told_left_out(left_out: Sequence[LeftOut]) -> str:
    """How many were left out, by reason, to be put behind something; empty for none."""
    counts = Counter(left.reason for left in left_out).most_common()
    return f" (left out: {', '.join(f'{count:,} {reason}' for reason, count in counts)})" if counts else ""


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
        raise InputError(f"{path}: Parquet needs pyarrow ({error}): {install_command('client')}") from error
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
    if text["region"]:
        try:
            Rectangle.parse(text["region"])
        except SpotError as error:
            raise InputError(f"{path}, {place}, column 'region': {error}") from error
    files = {column: _beside(path, place, column, text[column]) for column in ("spots", "mask")}
    for column, file in files.items():
        if file is not None and not Path(file).is_file():
            raise InputError(
                f"{path}, {place}, column {column!r}: {file}: no such file; mend the path or leave it empty"
            )
    resolved = location if names_on_server else _beside(path, place, "path", location)
    assert resolved is not None
    return SlideRow(slide_id, resolved, mpp, files["spots"], files["mask"], pitch_um, text["region"])


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


def _beside(path: Path, place: str, column: str, location: str | None) -> str | None:
    """A location of a manifest, relative to where that lies."""
    if location is None or is_url(location):
        return location
    try:
        return str(path.resolve().parent / expanded(location))
    except NoHomeFolder as error:
        raise InputError(f"{path}, {place}, column {column!r}: {error}") from error


def _problem_of_id(slide_id: str) -> str | None:
    if _BAD_ID.search(slide_id):
        return "cannot name files (no slash, no control character, no leading dot or space)"
    if len(slide_id.encode("utf-8", "replace")) > _MAX_ID_BYTES:
        return f"is longer than {_MAX_ID_BYTES} bytes"
    return None


def _single(path: Path) -> Found:
    """An archive of one slide."""
    found = single(path.absolute())
    if found.left_out:
        raise InputError(
            f"{path}: it is there, but neither a manifest (.csv, .tsv or .parquet) nor a slide: "
            f"{found.left_out[0].reason}; if it is a table with slide_id and path, call it .csv; a list of paths needs "
            "that header too"
        )
    return found


def _fixed_part(paths: list[str]) -> str:
    """The folder that all paths lie in."""
    folders = [path.rsplit("/", 1)[0].split("/") for path in paths]
    shared: list[str] = []
    for parts in zip(*folders, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "/".join(shared)


def _listed(found: Found, root: str | None = None) -> SlideList:
    """What was found, under ids made of paths below ``root`` or below the folder that all lie in."""
    root = _fixed_part([name for _, name in found.slides]) if root is None else root
    return SlideList(tuple(_named(root, found)), left_out=tuple(found.left_out))


def _named(root: str, found: Found) -> Iterator[SlideRow]:
    for path, name in found.slides:
        relative = name.removeprefix(root).strip("/") or root.rsplit("/", 1)[-1]
        slide_id = relative.replace("/", "__")
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
