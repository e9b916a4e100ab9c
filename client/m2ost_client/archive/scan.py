"""Folders and patterns searched for slides: every file that is met is a slide, part of one, or named with a reason.

A file is a slide by its ending or by its content. Links to files are followed. Links to folders are followed where a
pattern spells them out, or where it is asked for; no folder is searched twice, so that loops end.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from m2ost_preprocess.errors import SlideNotFound
from m2ost_preprocess.readers import primary_file
from m2ost_preprocess.readers.dicom_series import series_uid

from ..errors import InputError
from .content import (
    DICOM_SUFFIX,
    SLIDE_SUFFIXES,
    companions,
    is_dicom,
    is_slide,
    read_head,
    suffix_of,
    without_ending,
)

HIDDEN = "hidden"
NOT_A_SLIDE = "not a slide by content"
NOTHING_BEHIND = "a link to nothing"
LINKED_FOLDER = "a link to a folder elsewhere; --follow-links searches it"
SEARCHED_ALREADY = "the same as what is searched already"
NO_FILE = "a pipe, socket or device"
OWN_RESULTS = "results of an archive"
ZARR = "a Zarr store"
NO_SERIES = "DICOM that names no series"
LINKED_SERIES = "a DICOM series of links beside others; name the folder that its files lie in"
FOLDER_WITHOUT_SLIDES = "a folder; give it instead of a pattern, or a pattern with **"

_STATE, _OWN_FOLDERS = "state.sqlite", ("results", "cache")
_ZARR_MARKS = {"zarr.json", ".zgroup", ".zattrs"}


@dataclass(frozen=True)
class LeftOut:
    """Something that was met and is not scored.

    Parameters
    ----------
    path : str
    reason : str
        The same for all of a kind.
    problem : bool
        Whether it is a slide, or may hide some: a run that leaves it out is not complete.
    """

    path: str
    reason: str
    problem: bool = False


@dataclass(frozen=True)
class Found:
    """What a search comes to.

    Parameters
    ----------
    slides : list of (str, str)
        Path of each slide, and what its id is made of: its path without the ending.
    left_out : list of LeftOut
    """

    slides: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def add(self, path: Path, name: Path | None = None) -> None:
        """Note a slide."""
        named = path.with_name(without_ending(path.name)) if name is None else name
        self.slides.append((path.as_posix(), named.as_posix()))

    def leave(self, path: Path, reason: str, *, problem: bool = False) -> None:
        """Note what is not scored."""
        self.left_out.append(LeftOut(path.as_posix(), reason, problem))

    def in_order(self) -> Found:
        """The same, sorted by folder and name."""
        return Found(
            sorted(self.slides, key=lambda slide: slide[0].split("/")),
            sorted(set(self.left_out), key=lambda left: left.path.split("/")),
        )


def search_folder(root: Path, *, follow_links: bool) -> Found:
    """The slides in a folder and below.

    Parameters
    ----------
    root : Path
        Absolute, without links.
    follow_links : bool
        Search linked folders too.

    Raises
    ------
    InputError
        If the folder cannot be listed. One below it that cannot is left out.
    """
    found = Found()
    for folder, files in _walk(root, found, follow_links=follow_links):
        _classify(folder, [file for file in files if _is_regular(file, found)], found)
    return found.in_order()


def search_pattern(pattern: Path, *, follow_links: bool) -> Found:
    """The slides among what a pattern matches.

    Parameters
    ----------
    pattern : Path
        Absolute; ``**`` stands for any folders. A folder that it matches is a slide if DICOM files lie in it.
    follow_links : bool
        ``**`` stands for linked folders too.
    """
    found = Found()
    paths = set(_matches(pattern, found, follow_links=follow_links))
    found.left_out[:] = [left for left in found.left_out if left.reason != HIDDEN]
    files: dict[Path, list[Path]] = {}
    folders: list[Path] = []
    seen: set[str] = set()
    # The shortest way to a file first: a linked folder may lead to it again.
    for path in sorted(paths, key=lambda path: (len(path.parts), path)):
        is_folder = path.is_dir()
        real = os.path.realpath(path) if is_folder else os.path.join(os.path.realpath(path.parent), path.name)
        if real in seen:
            found.leave(path, SEARCHED_ALREADY)
        elif is_folder:
            folders.append(path)
        elif _is_regular(path, found):
            files.setdefault(path.parent, []).append(path)
        seen.add(real)
    parts = {part for inside in files.values() for part in companions(inside)}
    for folder, inside in files.items():
        _classify(folder, [file for file in inside if file not in parts], found)
    ways = {way for folder in files for way in (folder, *folder.parents)} | {w for f in folders for w in f.parents}
    real_ways = {os.path.realpath(way) for way in ways}
    for folder in folders:
        if folder in files or folder in parts:
            continue
        if folder.is_symlink() and os.path.realpath(folder) in real_ways:
            found.leave(folder, SEARCHED_ALREADY)
        else:
            _sort_out_folder(folder, found, is_way=folder in ways)
    return found.in_order()


def single(file: Path) -> Found:
    """A file that was named itself; one that is no slide is left out."""
    found = Found()
    if _is_regular(file, found):
        _classify(file.parent, [file], found, whole_folder=False)
    return found


def _walk(root: Path, found: Found, *, follow_links: bool) -> Iterator[tuple[Path, list[Path]]]:
    """Every folder from a root on, once, with what is no folder in it; hidden things and parts of slides left out."""
    searched: set[tuple[int, int]] = set()
    folders, links = [root], list[Path]()
    while folders or links:
        # Links last, so that a slide is called by its own folder.
        folder = folders.pop() if folders else links.pop(0)
        try:
            identity = _identity(folder)
            if identity in searched:
                found.leave(folder, SEARCHED_ALREADY)
                continue
            if folder.is_symlink() and folder != root and not follow_links:
                found.leave(folder, LINKED_FOLDER, problem=True)
                continue
            searched.add(identity)
            entries = sorted(folder.iterdir())
        except OSError as error:
            if folder == root:
                raise InputError(f"{folder}: cannot list the folder: {error.strerror}") from error
            found.leave(folder, f"cannot be listed: {error.strerror}", problem=True)
            continue
        names = {entry.name for entry in entries}
        if folder != root and (folder.suffix.lower() == ".zarr" or names & _ZARR_MARKS):
            found.leave(folder, ZARR)
            continue
        parts = companions(entries)
        files = []
        for entry in entries:
            if entry in parts:
                continue
            if entry.name.startswith("."):
                found.leave(entry, HIDDEN)
            elif not entry.is_dir():
                files.append(entry)
            elif _STATE in names and entry.name in _OWN_FOLDERS:
                found.leave(entry, OWN_RESULTS)
            else:
                (links if entry.is_symlink() else folders).append(entry)
        yield folder, files


def _matches(pattern: Path, found: Found, *, follow_links: bool) -> Iterator[Path]:
    """What a pattern matches. The standard library's ``**`` follows links, and a loop of them without end."""
    if "**" not in pattern.parts:
        yield from map(Path, glob.glob(str(pattern)))
        return
    at = pattern.parts.index("**")
    before, after = Path(*pattern.parts[:at]), pattern.parts[at + 1 :]
    for root in map(Path, glob.glob(str(before))):
        if not root.is_dir():
            continue
        for folder, files in _walk(root, found, follow_links=follow_links):
            if after:
                yield from _matches(Path(glob.escape(str(folder)), *after), found, follow_links=follow_links)
            else:
                yield from (folder, *files)


def _identity(folder: Path) -> tuple[int, int]:
    facts = folder.stat()
    return facts.st_dev, facts.st_ino


def _is_regular(file: Path, found: Found) -> bool:
    """Whether it can be looked into; what cannot is noted, as a slide that will fail where its ending says slide."""
    is_named_so = suffix_of(file.name) in SLIDE_SUFFIXES
    try:
        mode = file.stat().st_mode
    except OSError:
        if is_named_so:
            found.add(file)
        else:
            found.leave(file, NOTHING_BEHIND)
        return False
    if not stat.S_ISREG(mode):
        found.leave(file, NO_FILE, problem=is_named_so)
        return False
    return True


def _classify(folder: Path, files: Sequence[Path], found: Found, *, whole_folder: bool = True) -> None:
    """Note the regular files of a folder as slides, or as left out."""
    series: dict[bytes, list[Path]] = {}
    for file in files:
        suffix = suffix_of(file.name)
        if suffix in SLIDE_SUFFIXES and suffix != DICOM_SUFFIX:
            found.add(file)
            continue
        try:
            head = read_head(file)
            uid = series_uid(file) if is_dicom(head) else None
        except OSError as error:
            found.leave(file, f"cannot be read: {error.strerror}", problem=True)
            continue
        if uid:
            series.setdefault(uid, []).append(file)
        elif suffix == DICOM_SUFFIX or (uid is None and is_slide(head)):
            found.add(file)
        elif uid is None:
            found.leave(file, NOT_A_SLIDE)
        else:
            found.leave(file, NO_SERIES, problem=file.name.upper() != "DICOMDIR")
    for instances in series.values():
        if whole_folder and len(series) == 1 and _first_instance(folder) in instances:
            found.add(folder, folder)
        elif len(instances) > 1 and any(file.is_symlink() for file in instances):
            # The decoder looks for a series beside the file that a link leads to.
            found.leave(instances[0], LINKED_SERIES, problem=True)
        else:
            found.add(instances[0])


def _first_instance(folder: Path) -> Path | None:
    """What a decoder opens that is given the folder."""
    try:
        return primary_file(folder)
    except SlideNotFound:
        return None


def _sort_out_folder(folder: Path, found: Found, *, is_way: bool) -> None:
    """Note a folder that a pattern matches, and no file in it: its DICOM slides, or that it is left out."""
    try:
        inside = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
        files = [entry for entry in inside if entry.is_file()]
        instances = [file for file in files if suffix_of(file.name) == DICOM_SUFFIX or is_dicom(read_head(file))]
    except OSError as error:
        found.leave(folder, f"cannot be read: {error.strerror}", problem=True)
        return
    if instances:
        _classify(folder, instances, found)
    elif files or (inside and not is_way):
        found.leave(folder, FOLDER_WITHOUT_SLIDES, problem=True)
