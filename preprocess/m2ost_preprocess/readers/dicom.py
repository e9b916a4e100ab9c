"""A known defect of DICOM slides: JPEG frames that are YCbCr under a header that says RGB.

Some converters write them, and OpenSlide takes the header at its word, so the slide comes out in false colours. The
frames themselves tell: RGB JPEG has neither a JFIF marker nor subsampled chroma.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .base import Pixels

_HEADER_BYTES = 1 << 22
_PHOTOMETRIC_INTERPRETATION = b"\x28\x00\x04\x00CS"  # (0028,0004), explicit VR, little endian
_JFIF, _FIRST_SOF, _LAST_SOF, _SCAN = 0xE0, 0xC0, 0xC3, 0xDA


def frames_contradict_header(path: Path) -> bool:
    """Whether a DICOM file says RGB while its first JPEG frame is YCbCr."""
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
    """Full-range YCbCr to RGB in the 16-bit fixed point of JPEG decoders: uint8 in, uint8 out, same shape."""
    y = pixels[..., 0].astype(np.int32)
    cb = pixels[..., 1].astype(np.int32) - 128
    cr = pixels[..., 2].astype(np.int32) - 128
    half = 1 << 15
    red = y + ((91881 * cr + half) >> 16)
    green = y + ((-22554 * cb - 46802 * cr + half) >> 16)
    blue = y + ((116130 * cb + half) >> 16)
    return np.stack([red, green, blue], axis=-1).clip(0, 255).astype(np.uint8)
