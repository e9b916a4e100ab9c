"""Which reader serves which file: decided by what the file is and whether a reader gives its pixels, never by its name.

=====================================  ==============================================================================
pixels                                 what every reader makes of them
=====================================  ==============================================================================
never scanned, or left out of a file   white
transparent                            white, as far as they are
turned by an orientation tag           left as stored: positions are those of the stored pixels, and a note says so
8-bit RGB, grey, palette, CMYK         RGB
any others                             refused, in words that name a command which converts them
damaged                                an error of the region
several images of one size             refused: which one is the slide cannot be told
=====================================  ==============================================================================
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from m2ost_contract import ENV_ALLOWED_FORMATS, READERS

from ..errors import SlideNotFound, UnreadableSlide
from . import image as plain
from . import resolution as mpp
from .base import TILED_TIFF, Segments, SlideReader, words_of
from .companions import KNOWN_VENDORS
from .dicom import DicomVolume
from .dicom_series import series_files, slides_of_folder
from .tiff import TiffLayout, read_layout
from .trust import cucim_obstacle, openslide_obstacle

TIFF_VENDORS = ("aperio", "philips", "generic-tiff")
"""OpenSlide's names of the formats that are tiled TIFFs, which cuCIM and Pillow may decode too."""

_SHOWN = {"cucim": "cuCIM", "openslide": "OpenSlide", "image": "Pillow"}
_INSTALL = {
    "cucim": "cuCIM is not installed here; pip install cucim-cu12",
    "openslide": "OpenSlide is not installed here; pip install openslide-python openslide-bin",
}


@dataclass(frozen=True)
class _File:
    """A slide's file, and what it says of itself."""

    path: Path
    vendor: str
    layout: TiffLayout | None
    volume: DicomVolume | None

    @property
    def segments(self) -> Segments | None:
        return self.layout or self.volume


def primary_file(path: Path) -> Path:
    """The file to open for a slide.

    Parameters
    ----------
    path : Path
        A file, or a folder of DICOM instances.

    Returns
    -------
    Path
        The file itself, or of a folder the first DICOM file, by name, that holds pixels of the slide.

    Raises
    ------
    SlideNotFound
        If there is no such file, or the folder holds no DICOM slide, or several.
    """
    if path.is_dir():
        slides = slides_of_folder(path)
        if not slides:
            raise SlideNotFound(path.name, "is a folder without DICOM files; name the slide file itself")
        if len(slides) > 1:
            names = ", ".join(file.name for file in slides[:5])
            raise SlideNotFound(path.name, f"holds {len(slides)} DICOM slides; name a file of one: {names}")
        return slides[0]
    if not path.is_file():
        raise SlideNotFound(path.name, "no such file")
    return path


def open_slide(path: Path, reader: str = "auto", *, without: tuple[str, ...] = ()) -> SlideReader:
    """Open a slide.

    Parameters
    ----------
    path : Path
        A file, or a folder of DICOM instances.
    reader : {"auto", "cucim", "openslide", "image"}
        An explicit choice is used as it is: where that reader cannot serve, the call fails. ``auto`` takes the first
        that is trusted with the file, in this order, and opens it: cuCIM only where OpenSlide makes the same of a tile.
    without : tuple of str
        Readers that ``auto`` passes over, because they failed on this file before.

    Returns
    -------
    SlideReader

    Raises
    ------
    SlideNotFound
        If there is no such file.
    UnreadableSlide
        If nobody can read it, or what its pixels are cannot be told; says why for each reader.
    ValueError
        If ``reader`` is not a reader's name.
    """
    if reader not in READERS:
        raise ValueError(f"reader must be one of {', '.join(READERS)}, not {reader!r}")
    file = _look_at(primary_file(path))
    if reader != "auto":
        return _finished(file, *_OPEN[reader](file), "asked for")
    why: list[str] = []
    # What kept a reader from the file goes into the reason for another one, or into the refusal.
    for name, obstacle in _candidates(file, without):
        if obstacle is None:
            try:
                opened = _open_cucim_beside_openslide(file) if name == "cucim" else _OPEN[name](file)
                return _finished(file, *opened, "; ".join([*why, f"{_SHOWN[name]} reads {file.vendor}"]))
            except UnreadableSlide as error:
                obstacle = error.message
        why.append(obstacle)
    if file.vendor not in ("jpeg", "png", "tiff"):
        why.append(f"fetch it anew, or convert it where it can be read: vips copy '{file.path.name}' {TILED_TIFF}")
    raise UnreadableSlide(file.path.name, "; ".join(why))


def _look_at(path: Path) -> _File:
    """What a file is, or a refusal."""
    vendor = _vendor(path)
    if vendor == "dicom":
        return _File(path, vendor, None, DicomVolume(path, series_files(path)))
    layout = read_layout(path) if vendor in (None, *TIFF_VENDORS) else None
    refusal = layout.refusal() if layout else None
    if refusal is not None:
        raise UnreadableSlide(path.name, refusal)
    if vendor is None:
        kind = plain.probe(path)
        if kind is None:
            raise UnreadableSlide(
                path.name, "no reader recognises the file: not a slide or image, or truncated; fetch it anew"
            )
        vendor = kind.lower()
    return _File(path, vendor, layout, None)


def _vendor(path: Path) -> str | None:
    """OpenSlide's name of a format; None where it knows none. Whether a TIFF is a slide, only OpenSlide tells."""
    if importlib.util.find_spec("openslide") is None:
        if plain.probe(path) in ("JPEG", "PNG"):
            return None
        raise UnreadableSlide(path.name, _INSTALL["openslide"])
    import openslide

    try:
        vendor: str | None = openslide.OpenSlide.detect_format(str(path))
    except openslide.OpenSlideError as error:
        raise UnreadableSlide(path.name, f"damaged: {words_of(error, path)}") from error
    if vendor is not None and vendor not in {*KNOWN_VENDORS, *os.environ.get(ENV_ALLOWED_FORMATS, "").split(",")}:
        raise UnreadableSlide(
            path.name,
            f"which other files OpenSlide opens for the format {vendor} is not known here, and they may lead out of "
            f"the slide root; where they cannot, allow it: {ENV_ALLOWED_FORMATS}={vendor}",
        )
    return vendor


def _candidates(file: _File, without: tuple[str, ...]) -> Iterator[tuple[str, str | None]]:
    """Readers in the order in which they are tried, and why one is not."""
    if file.vendor in ("jpeg", "png", "tiff"):
        yield "image", None
        return
    names = ("cucim", "openslide", "image") if file.layout else ("openslide",)
    for name in names:
        obstacle = None
        if name in without:
            obstacle = f"{_SHOWN[name]} failed on it before"
        elif name in _INSTALL and importlib.util.find_spec(name) is None:
            obstacle = _INSTALL[name]
        elif file.layout is not None and name == "cucim":
            obstacle = cucim_obstacle(file.layout)
        elif file.layout is not None and name == "openslide":
            obstacle = openslide_obstacle(file.layout)
        yield name, obstacle


Opened = tuple[SlideReader, Mapping[str, str]]
"""A reader, and OpenSlide's properties of the file where it was asked."""


def _open_cucim(file: _File) -> Opened:
    if file.layout is None:
        raise UnreadableSlide(file.path.name, f"cuCIM does not read {file.vendor}")
    try:
        from .cucim import CuCimReader
    except ImportError as error:
        raise UnreadableSlide(file.path.name, f"{_INSTALL['cucim']} ({error})") from error
    return CuCimReader(file.path, file.layout), {}


def _open_cucim_beside_openslide(file: _File) -> Opened:
    """By cuCIM, once OpenSlide has made the same pixels of a tile, and with it to ask where cuCIM fails."""
    from .cucim_first import CuCimFirst, check_agreement

    cucim, _ = _open_cucim(file)
    other, properties = _open_openslide(file)
    try:
        check_agreement(cucim, other)
    except UnreadableSlide:
        cucim.close()
        raise
    finally:
        other.close()
    return CuCimFirst(cucim, lambda: _open_openslide(file)[0]), properties


def _open_openslide(file: _File) -> Opened:
    try:
        from .openslide import OpenSlideReader
    except ImportError as error:
        raise UnreadableSlide(file.path.name, f"{_INSTALL['openslide']} ({error})") from error
    reader = OpenSlideReader(file.path, file.segments, is_ycbcr=file.volume is not None and file.volume.is_ycbcr)
    if file.layout is not None and reader.size != file.layout.main.size:
        reader.close()
        raise UnreadableSlide(
            file.path.name,
            f"OpenSlide takes an image of {reader.size[0]}×{reader.size[1]} px for the slide, the largest has "
            f"{file.layout.main.size[0]}×{file.layout.main.size[1]}",
        )
    return reader, reader.properties


def _open_image(file: _File) -> Opened:
    return plain.ImageReader(file.path, file.layout), {}


_OPEN: Mapping[str, Callable[[_File], Opened]] = {
    "cucim": _open_cucim,
    "openslide": _open_openslide,
    "image": _open_image,
}


def _finished(file: _File, reader: SlideReader, properties: Mapping[str, str], reason: str) -> SlideReader:
    """A reader that knows what its file says of itself."""
    stated: list[mpp.Stated] = []
    if file.layout is not None:
        first, main = file.layout.images[0], file.layout.main
        stated = mpp.of_tiff((first.description, main.description), main.resolution)
    # OpenSlide mostly repeats what the file's own headers say.
    repeated = [(source.x, source.y) for source in stated]
    stated += [source for source in mpp.of_properties(properties) if (source.x, source.y) not in repeated]
    found = mpp.choose(stated)
    reader.vendor, reader.reason, reader.resolution = file.vendor, reason, found.resolution
    reader.notes = (*_notes(file, reader), *found.notes)
    return reader


def _notes(file: _File, reader: SlideReader) -> Iterator[str]:
    if file.volume is not None and file.volume.is_ycbcr:
        yield "colours corrected: the DICOM header says RGB, its JPEG frames are YCbCr"
    orientation = file.layout.main.orientation if file.layout else 1
    if isinstance(reader, plain.ImageReader):
        orientation = reader.orientation
    if orientation != 1:
        yield f"the file asks to be turned (orientation {orientation}) and is not: positions are of pixels as stored"
    if file.layout and len(file.layout.images) > 1 and file.layout.main is not file.layout.images[0]:
        yield f"the slide is image {file.layout.main.index} of the file, its largest"
