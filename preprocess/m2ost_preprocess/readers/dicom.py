"""What DICOM slides need beside OpenSlide: which files belong together, and a known defect.

The files of one slide share a SeriesInstanceUID, whatever they are called.

The defect: JPEG frames that are YCbCr under a header that says RGB. Some converters write them, and OpenSlide takes the
header at its word, so the slide comes out in false colours. The frames themselves tell: RGB JPEG has neither a JFIF
marker nor subsampled chroma.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np

from .base import Pixels

_HEADER_BYTES = 1 << 22
_SERIES_BYTES = 1 << 16  # the groups up to 0020 hold neither frames nor profiles
_PHOTOMETRIC_INTERPRETATION = b"\x28\x00\x04\x00CS"  # (0028,0004), explicit VR, little endian
_JFIF, _FIRST_SOF, _LAST_SOF, _SCAN = 0xE0, 0xC0, 0xC3, 0xDA

_TRANSFER_SYNTAX, _SERIES, _ITEM_END, _SEQUENCE_END = 0x0002_0010, 0x0020_000E, 0xFFFE_E00D, 0xFFFE_E0DD
_META_GROUP, _ITEM_GROUP = 0x0002, 0xFFFE
_IMPLICIT_VR = b"1.2.840.10008.1.2"
_LONG_VRS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_UNDEFINED_LENGTH = 0xFFFF_FFFF


def series_uid(path: Path) -> bytes | None:
    """SeriesInstanceUID of a DICOM file, which the files of one slide share.

    Source: DICOM PS3.5, section 7; PS3.10, section 7.

    Parameters
    ----------
    path : Path
        A regular file.

    Returns
    -------
    bytes or None
        None where it is not a DICOM file; empty where its header cannot be followed.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    with path.open("rb") as file:
        if file.read(132)[128:] != b"DICM":
            return None
        stream = io.BytesIO(file.read(_SERIES_BYTES))
    depth, implicit = 0, False
    while len(head := stream.read(8)) == 8:
        group = int.from_bytes(head[:2], "little")
        tag = group << 16 | int.from_bytes(head[2:4], "little")
        if group == _ITEM_GROUP or (implicit and group != _META_GROUP):
            length = int.from_bytes(head[4:], "little")
        elif head[4:6] in _LONG_VRS:
            length = int.from_bytes(stream.read(4), "little")
        else:
            length = int.from_bytes(head[6:], "little")
        if tag in (_ITEM_END, _SEQUENCE_END):
            depth -= 1
        elif length == _UNDEFINED_LENGTH:
            depth += 1  # a sequence or item that ends with a mark; what it holds is not about this file
        elif depth == 0 and tag >= _SERIES:
            return stream.read(length).strip(b" \0") if tag == _SERIES else b""
        elif tag == _TRANSFER_SYNTAX:
            implicit = stream.read(length).strip(b" \0") == _IMPLICIT_VR
        else:
            stream.seek(length, os.SEEK_CUR)
    return b""


def frames_contradict_header(path: Path) -> bool:
    """Whether a DICOM file says RGB while its first JPEG frame is YCbCr.

    Parameters
    ----------
    path : Path
        A DICOM file.

    Returns
    -------
    bool

    Raises
    ------
    OSError
        If it cannot be read.
    """
    with path.open("rb") as stream:
        head = stream.read(_HEADER_BYTES)
    tag = head.find(_PHOTOMETRIC_INTERPRETATION)
    if tag < 0:
        return False
    length = int.from_bytes(head[tag + 6 : tag + 8], "little")
    says_rgb = head[tag + 8 : tag + 8 + length].strip(b" \0") == b"RGB"
    return says_rgb and _first_frame_is_ycbcr(head)


def _first_frame_is_ycbcr(head: bytes) -> bool:
    at = head.find(b"\xff\xd8\xff") + 2
    if at < 2:
        return False  # not JPEG frames
    while at + 4 <= len(head) and head[at] == 0xFF:
        marker, length = head[at + 1], int.from_bytes(head[at + 2 : at + 4], "big")
        body = head[at + 4 : at + 2 + length]
        if marker == _JFIF and body.startswith(b"JFIF"):
            return True
        if _FIRST_SOF <= marker <= _LAST_SOF:
            sampling = set(body[7::3])  # one byte a component, after 6 bytes of frame header
            return len(sampling) > 1
        if marker == _SCAN:
            break
        at += 2 + length
    return False


def ycbcr_to_rgb(pixels: Pixels) -> Pixels:
    """Full-range YCbCr to RGB in the 16-bit fixed point of JPEG decoders.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (..., 3)
        YCbCr.

    Returns
    -------
    ndarray of uint8, shape (..., 3)
        RGB.
    """
    y = pixels[..., 0].astype(np.int32)
    cb = pixels[..., 1].astype(np.int32) - 128
    cr = pixels[..., 2].astype(np.int32) - 128
    half = 1 << 15
    red = y + ((91881 * cr + half) >> 16)
    green = y + ((-22554 * cb - 46802 * cr + half) >> 16)
    blue = y + ((116130 * cb + half) >> 16)
    return np.stack([red, green, blue], axis=-1).clip(0, 255).astype(np.uint8)
