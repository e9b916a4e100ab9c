"""Which reader serves which file: decided by what the file is, never by its name alone."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from ..errors import SlideNotFound, UnreadableSlide
from . import image as plain
from .base import SlideReader

READERS = ("auto", "cucim", "openslide", "image")

CUCIM_VENDORS = ("aperio", "philips", "generic-tiff")
"""OpenSlide's names of the formats that cuCIM decodes too."""


@dataclass(frozen=True)
class SlideFormat:
    """What a file is and who reads it.

    Parameters
    ----------
    vendor : str
        OpenSlide's vendor name (``aperio``, ``dicom`` …), or ``jpeg``, ``png``, ``tiff`` for plain images.
    reader : str
        ``cucim``, ``openslide`` or ``image``.
    reason : str
        Why this reader.
    """

    vendor: str
    reader: str
    reason: str


def primary_file(path: Path) -> Path:
    """The file to open for a slide.

    Parameters
    ----------
    path : Path
        A file, or a folder of DICOM instances.

    Returns
    -------
    Path
        The file itself, or the first ``.dcm`` file of the folder, by name.

    Raises
    ------
    SlideNotFound
        If there is no such file, or a folder without ``.dcm`` files.
    """
    if path.is_dir():
        instances = sorted(file for file in path.iterdir() if file.suffix.lower() == ".dcm" and file.is_file())
        if not instances:
            raise SlideNotFound(path.name, "is a folder without .dcm files; name the slide file itself")
        return instances[0]
    if not path.is_file():
        raise SlideNotFound(path.name, "no such file")
    return path


def identify(path: Path) -> SlideFormat:
    """Recognise a slide by its content.

    Parameters
    ----------
    path : Path
        A file, or a folder of DICOM instances.

    Returns
    -------
    SlideFormat

    Raises
    ------
    SlideNotFound
        If there is no such file.
    UnreadableSlide
        If no reader recognises it.
    """
    path = primary_file(path)
    if importlib.util.find_spec("openslide") is None:
        return _without_openslide(path)
    import openslide

    try:
        vendor = openslide.OpenSlide.detect_format(str(path))
    except openslide.OpenSlideError as error:
        raise UnreadableSlide(path.name, f"damaged: {error}") from error
    if vendor is None:
        kind = plain.probe(path)
        if kind is None:
            raise UnreadableSlide(
                path.name, "no reader recognises the file: not a slide or image, or truncated; fetch it anew"
            )
        return SlideFormat(kind.lower(), "image", "a plain image")
    if vendor not in CUCIM_VENDORS:
        return SlideFormat(vendor, "openslide", f"cuCIM does not read {vendor}")
    if importlib.util.find_spec("cucim") is None:
        return SlideFormat(vendor, "openslide", "cuCIM is not installed here")
    return SlideFormat(vendor, "cucim", f"cuCIM reads {vendor}")


def _without_openslide(path: Path) -> SlideFormat:
    """JPEG and PNG can be nothing else; whether a TIFF is a slide, only OpenSlide tells."""
    kind = plain.probe(path)
    if kind not in ("JPEG", "PNG"):
        raise UnreadableSlide(
            path.name,
            "OpenSlide, which recognises slides, is not installed here; pip install openslide-python openslide-bin",
        )
    return SlideFormat(kind.lower(), "image", "a plain image")


def open_slide(path: Path, reader: str = "auto") -> SlideReader:
    """Open a slide.

    Parameters
    ----------
    path : Path
        A file, or a folder of DICOM instances.
    reader : {"auto", "cucim", "openslide", "image"}
        An explicit choice is used as it is: where that reader cannot serve, the call fails.

    Returns
    -------
    SlideReader

    Raises
    ------
    SlideNotFound
        If there is no such file.
    UnreadableSlide
        If the reader cannot open it.
    ValueError
        If ``reader`` is not a reader's name.
    """
    if reader not in READERS:
        raise ValueError(f"reader must be one of {', '.join(READERS)}, not {reader!r}")
    chosen = identify(path).reader if reader == "auto" else reader
    path = primary_file(path)
    if chosen == "cucim":
        try:
            from .cucim import CuCimReader
        except ImportError as error:
            raise UnreadableSlide(
                path.name, f"cuCIM was asked for and cannot be imported ({error}); pip install cucim-cu12"
            ) from error
        return CuCimReader(path)
    if chosen == "openslide":
        from .openslide import OpenSlideReader

        return OpenSlideReader(path)
    return plain.ImageReader(path)
