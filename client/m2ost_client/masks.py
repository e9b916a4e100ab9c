"""Masks of slides: images over a whole slide, of which everything that is not black is scored.

A mask is read only where its file leaves one way to read it; whatever else there is to it is refused, with the words to
convert it by. A grid that covers the wrong half of a slide looks like a right one.

===================================  ===========================================================================
form, PNG or TIFF                    scored
===================================  ===========================================================================
grey of 1, 2, 4 or 8 bits            what is not 0
integers of 16 or 32 bits (labels)   what is not 0
RGB whose channels agree             as grey
a palette of greys, its first black  as grey
any of 8 bits with an alpha channel  as without it, if all that is transparent is black
===================================  ===========================================================================

Refused: fractions, for where a probability becomes tissue is the user's to say; TIFFs that store white as 0, for some
programs write tissue as white in them and some as 1; transparency over white, for tissue may be what is white or what
is opaque; colours, for one of them may be the background; JPEG, for it leaves specks in the black; several images in a
file; a turned image.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import IO

import numpy as np
from m2ost_preprocess.slides.tissue import Mask
from PIL import Image, ImageFile, PngImagePlugin, TiffImagePlugin

from .errors import InputError

MAX_PIXELS = 1 << 28
"""Most pixels of a mask: laying a grid on so many takes 2 GiB."""

_ASPECT_TOLERANCE = 0.02
_STRIP_PIXELS = 1 << 24
_ONE_AT_A_TIME = threading.Lock()  # slides are planned side by side, and their masks would add up

_PNG, _JPEG = b"\x89PNG", b"\xff\xd8\xff"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_INTEGERS = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_GREY_OR_RGB = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
_ORIENTATION, _UPRIGHT = 274, 1
_NEW_SUBFILE_TYPE, _REDUCED = 254, 1
_SIGNED = 2

_CONVERT = "save it as 8-bit grey, 255 where spots are to be scored and 0 elsewhere, as PNG or TIFF without JPEG"
_FROM_ARRAY = "tifffile.imwrite('mask.tif', {}.astype('uint8'))"


def read_mask(path: Path, slide_size: tuple[int, int]) -> Mask:
    """Read a mask.

    Parameters
    ----------
    path : Path
        PNG or TIFF, in one of the forms above.
    slide_size : (int, int)
        Width and height of the slide in pixels; the mask has its shape, at any size.

    Returns
    -------
    ndarray of bool, shape (h, w)
        What is to be scored.

    Raises
    ------
    InputError
        If the file cannot be read, is of another form or another shape, has over ``MAX_PIXELS`` pixels (told by its
        header), or is black throughout. Says how to convert it.
    """
    try:
        with path.open("rb") as stream, _ONE_AT_A_TIME:
            image = _opened(path, stream)
            _check_header(path, image, slide_size)
            mask = _not_black(path, image)
    except InputError:
        raise
    except Exception as error:  # Pillow has no kind of its own for what is damaged
        raise InputError(f"{path}: cannot read the mask: {error or type(error).__name__}; {_CONVERT}") from error
    if not mask.any():
        raise InputError(f"{path}: the mask is black throughout, so that no spot is scored; {_CONVERT}")
    return mask


def _opened(path: Path, stream: IO[bytes]) -> ImageFile.ImageFile:
    """The header alone. By its own class, for Image.open refuses sizes below ours."""
    head = stream.read(4)
    stream.seek(0)
    if head.startswith(_PNG):
        return PngImagePlugin.PngImageFile(stream)
    if head in _TIFF:
        try:
            return TiffImagePlugin.TiffImageFile(stream)
        except SyntaxError as error:
            raise _refused(path, f"damaged, or fractions or numbers of 64 bits ({error})") from error
    if head.startswith(_JPEG):
        raise _refused(path, "a JPEG has specks where it was black", f"apply a threshold, then {_CONVERT}")
    raise _refused(path, "neither PNG nor TIFF")


def _check_header(path: Path, image: ImageFile.ImageFile, slide_size: tuple[int, int]) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _refused(
            path,
            f"{width} × {height} px are over {MAX_PIXELS:,}",
            "make it smaller, by nearest neighbour; its shape must be the slide's, not its size",
        )
    if abs(width / height * slide_size[1] / slide_size[0] - 1) > _ASPECT_TOLERANCE:
        shape = f"{width} × {height} px is not the shape of the slide, {slide_size[0]} × {slide_size[1]}"
        raise _refused(path, shape, "a mask covers the whole slide")
    tiff = image if isinstance(image, TiffImagePlugin.TiffImageFile) else None
    if tiff and tiff.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
        raise _refused(
            path,
            "the TIFF stores white as 0 (MINISWHITE, tifffile's form of a bool array): tissue may be what is 1 or "
            "what is white",
            f"of an array: {_FROM_ARRAY.format('mask')}; else {_CONVERT}",
        )
    if image.mode == "F":
        raise _refused(
            path,
            "fractions: from which on a pixel is tissue is not in the file",
            f"choose it: {_FROM_ARRAY.format('(probability >= 0.5)')}",
        )
    if str(image.info.get("compression")) in ("jpeg", "tiff_jpeg", "webp"):
        raise _refused(path, "compressed with losses, which leaves specks in the black")
    if image.mode not in (*_INTEGERS, *_GREY_OR_RGB) or (image.mode not in _INTEGERS and ";16" in repr(image.tile)):
        raise _refused(path, f"pixels of another kind ({image.mode}, {image.tile[0].args})")
    if image.mode in _INTEGERS and "transparency" in image.info:
        raise _refused(path, "transparency in an image of 16 bits")
    if image.getexif().get(_ORIENTATION, _UPRIGHT) != _UPRIGHT:
        raise _refused(path, "its orientation tag turns it", "turn the pixels and remove the tag")
    _check_single(path, image)


def _check_single(path: Path, image: Image.Image) -> None:
    """Further images may be the first one's pyramid."""
    pages = getattr(image, "n_frames", 1)
    for page in range(1, pages):
        image.seek(page)
        tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
        if not tags.get(_NEW_SUBFILE_TYPE, 0) & _REDUCED:
            raise _refused(path, f"{pages} images in one file", "save the one that is the mask")
    image.seek(0)


def _not_black(path: Path, image: Image.Image) -> Mask:
    """What is not black, in strips: Pillow's arrays are copies."""
    image.load()
    width, height = image.size
    mask = np.empty((height, width), np.bool_)
    rows = max(1, _STRIP_PIXELS // width)
    signed_bytes = isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(
        TiffImagePlugin.SAMPLEFORMAT
    ) == (_SIGNED,)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        if image.mode in _INTEGERS or (signed_bytes and image.mode == "L"):
            values = np.asarray(strip)
            if (values.view(np.int8) if values.dtype == np.uint8 else values).min() < 0:
                raise _refused(path, "numbers below 0")
            mask[top : top + rows] = values != 0
        else:
            mask[top : top + rows] = _grey_not_black(path, strip)
    return mask


def _grey_not_black(path: Path, strip: Image.Image) -> Mask:
    red, green, blue, alpha = np.moveaxis(np.asarray(strip.convert("RGBA")), 2, 0)
    if not (np.array_equal(red, green) and np.array_equal(red, blue)):
        raise _refused(path, "colours: which of them is tissue is not in the file")
    found: Mask = red != 0
    if (found & (alpha < 255)).any():
        raise _refused(path, "transparency over what is not black: tissue may be what is opaque or what is not black")
    if strip.mode in ("P", "PA"):
        index = np.asarray(strip if strip.mode == "P" else strip.getchannel(0))
        if not np.array_equal(index != 0, found):
            raise _refused(path, "a palette whose first entry is not its only black")
    return found


def _refused(path: Path, what: str, convert: str = _CONVERT) -> InputError:
    return InputError(f"{path}: cannot use the mask: {what}; {convert}")
