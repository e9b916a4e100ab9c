"""What DICOM slides need beside OpenSlide: what colours their frames are in, and whether these are whole.

OpenSlide takes JPEG frames for what the header says, and JPEG 2000 frames for RGB. Some converters write other frames
than the header says. Where the frames themselves tell that they are YCbCr under a header that says RGB, the colours are
corrected. Where header and frames contradict each other in a way that leaves open which is right, the slide is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UnreadableSlide
from .base import Pixels, Size
from .dicom_series import is_volume
from .limits import MAX_TILE_BYTES, MAX_TILES
from .sound import jpeg_2000_damage, jpeg_damage

if TYPE_CHECKING:
    from pydicom import Dataset

# pydicom loads much, OpenSSL among it, which Locust wants to load first: it is imported where a DICOM file is read.

JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")

_ELEMENT_BYTES, _ITEM_BYTES = 12, 8
_PIXEL_DATA = b"\xe0\x7f\x10\x00"
_JFIF, _ADOBE, _FIRST_SOF, _LAST_SOF, _SCAN = 0xE0, 0xEE, 0xC0, 0xCF, 0xDA
_NO_SOF = (0xC4, 0xC8, 0xCC)
_J2K_CODING_STYLE = b"\xff\x52"
_CONVERT = "convert the slide anew, with frames and header that agree"


@dataclass(frozen=True)
class Instance:
    """One DICOM file of a slide's volume: a level, or a part of one."""

    path: Path

    @cached_property
    def header(self) -> Dataset:
        """Everything but the pixels."""
        import pydicom

        return pydicom.dcmread(self.path, stop_before_pixels=True)

    @property
    def size(self) -> Size:
        """Width and height of its level in pixels."""
        return int(self.header.TotalPixelMatrixColumns), int(self.header.TotalPixelMatrixRows)

    @property
    def syntax(self) -> str:
        """UID of its transfer syntax."""
        return str(self.header.file_meta.TransferSyntaxUID)

    @property
    def is_compressed(self) -> bool:
        """Whether its frames are JPEG or JPEG 2000."""
        return self.syntax == JPEG_BASELINE or self.syntax in JPEG_2000

    @cached_property
    def frames(self) -> list[list[tuple[int, int]]]:
        """Offset and length in bytes of the fragments of every frame.

        Raises ``ValueError`` where frames and fragments do not fit together.
        """
        import pydicom
        from pydicom.encaps import parse_basic_offsets, parse_fragments

        count = int(self.header.get("NumberOfFrames", 1))
        with self.path.open("rb") as stream:
            pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=[])
            if stream.read(_ELEMENT_BYTES)[:4] != _PIXEL_DATA:
                raise ValueError("no pixel data")
            # Where frames begin, counted from the first fragment; may be empty.
            begins = parse_basic_offsets(stream)
            first = stream.tell()
            _, offsets = parse_fragments(stream)
            fragments = []
            for offset in offsets:
                stream.seek(offset + 4)
                fragments.append((offset + _ITEM_BYTES, int.from_bytes(stream.read(4), "little")))
        # Which fragments make a frame: one each, all of the only one, or by the table of offsets.
        if len(fragments) == count:
            return [[fragment] for fragment in fragments]
        if count == 1:
            return [fragments]
        if len(begins) != count:
            raise ValueError(f"{len(fragments)} fragments for {count} frames")
        number = np.searchsorted(begins, [offset - _ITEM_BYTES - first for offset, _ in fragments], side="right") - 1
        return [[f for f, n in zip(fragments, number, strict=True) if n == i] for i in range(count)]

    def frame(self, number: int) -> bytes:
        """A frame, compressed."""
        with self.path.open("rb") as stream:
            parts = []
            for offset, length in self.frames[number]:
                stream.seek(offset)
                parts.append(stream.read(length))
        return b"".join(parts)

    @cached_property
    def places(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Left and top of every frame, in pixels of the level, shape (frames, 2)."""
        header = self.header
        # Frames that say where they lie, counted from 1; else they fill the level row by row.
        if header.get("DimensionOrganizationType") != "TILED_FULL" and "PerFrameFunctionalGroupsSequence" in header:
            positions = [group.PlanePositionSlideSequence[0] for group in header.PerFrameFunctionalGroupsSequence]
            names = "ColumnPositionInTotalImagePixelMatrix", "RowPositionInTotalImagePixelMatrix"
            return np.array([[int(position[name].value) - 1 for name in names] for position in positions])
        first = int(header.get("ConcatenationFrameOffsetNumber", 0))
        row, column = np.divmod(
            first + np.arange(int(header.get("NumberOfFrames", 1))), -(-self.size[0] // self.tile[0])
        )
        return np.stack([column * self.tile[0], row * self.tile[1]], axis=1)

    @property
    def tile(self) -> Size:
        """Width and height of a frame in pixels."""
        return int(self.header.Columns), int(self.header.Rows)

    @cached_property
    def _verdicts(self) -> dict[int, str | None]:
        return {}

    def damage(self, number: int) -> str | None:
        """What is wrong with a frame; looked at once."""
        if number not in self._verdicts:
            check = jpeg_damage if self.syntax == JPEG_BASELINE else jpeg_2000_damage
            self._verdicts[number] = check(self.frame(number))
        return self._verdicts[number]


class DicomVolume:
    """The instances that hold a slide's pixels, of all files of the slide; ``path`` is one of them, for messages.

    Raises ``UnreadableSlide`` where none holds pixels of the slide, or what their colours are cannot be decided.
    """

    def __init__(self, path: Path, files: list[Path]) -> None:
        self.path = path
        try:
            self.instances = [Instance(file) for file in files if is_volume(file)]
            if not self.instances:
                raise UnreadableSlide(path.name, "none of its DICOM files says VOLUME: labels and overviews alone")
            self._sizes = {instance.size for instance in self.instances}
            for instance in self.instances:
                _check_paths(instance)
                _check_claims(instance)
            corrected = {_is_ycbcr_under_rgb(instance) for instance in self.instances}
        except (AttributeError, ValueError, TypeError, KeyError, IndexError, ArithmeticError) as error:
            raise UnreadableSlide(path.name, f"its DICOM header is damaged: {error}; fetch it anew") from error
        if len(corrected) > 1:
            raise UnreadableSlide(path.name, f"some of its levels are YCbCr under a header that says RGB; {_CONVERT}")
        self.is_ycbcr = corrected.pop()

    def check(self, size: Size, left: int, top: int, width: int, height: int) -> None:
        """See :class:`~.base.Segments`."""
        for instance in self.instances:
            if instance.size != size or not instance.is_compressed:
                continue
            first, last = instance.places, instance.places + instance.tile
            touched = (first < (left + width, top + height)).all(axis=1) & (last > (left, top)).all(axis=1)
            for number in np.flatnonzero(touched).tolist():
                words = instance.damage(number)
                if words is not None:
                    x, y = instance.places[number].tolist()
                    raise UnreadableSlide(
                        self.path.name,
                        f"{instance.path.name}: damaged at x {x}, y {y} of {size[0]}×{size[1]} px: {words}",
                    )


def _check_paths(instance: Instance) -> None:
    """Refuse what has several pictures of one place."""
    for tag, what in (("TotalPixelMatrixFocalPlanes", "focal planes"), ("NumberOfOpticalPaths", "optical paths")):
        count = int(instance.header.get(tag) or 1)
        if count > 1:
            raise UnreadableSlide(
                instance.path.name,
                f"holds {count} {what}, and which is the slide cannot be told; write one of them alone",
            )


def _check_claims(instance: Instance) -> None:
    """Refuse tiles and numbers of them that nobody should decode or list."""
    (width, height), count = instance.tile, int(instance.header.get("NumberOfFrames", 1))
    tiles = math.prod(-(-full // tile) for full, tile in zip(instance.size, instance.tile, strict=True))
    words = None
    if 3 * width * height > MAX_TILE_BYTES:
        words = f"frames of {width}×{height} px are over {MAX_TILE_BYTES >> 20} MiB each"
    elif tiles > MAX_TILES:
        words = f"{tiles} tiles of a level are over {MAX_TILES}"
    elif count > instance.path.stat().st_size:
        words = f"{count} frames in {instance.path.stat().st_size} bytes; fetch it anew"
    if words is not None:
        raise UnreadableSlide(instance.path.name, words)


def _is_ycbcr_under_rgb(instance: Instance) -> bool:
    """Whether a level's colours must be corrected; raises where that cannot be decided."""
    says = str(instance.header.PhotometricInterpretation)
    if instance.syntax == JPEG_BASELINE:
        is_ycbcr = jpeg_is_ycbcr(instance.frame(0))
        if is_ycbcr is False and says.startswith("YBR"):
            raise UnreadableSlide(
                instance.path.name, f"its header says {says}, its JPEG frames say that they are RGB; {_CONVERT}"
            )
        return says == "RGB" and is_ycbcr is True
    if instance.syntax in JPEG_2000 and says in ("YBR_ICT", "YBR_RCT") and not _has_component_transform(instance):
        raise UnreadableSlide(
            instance.path.name,
            f"its header says {says}, its JPEG 2000 frames lack that transform: they may be YCbCr or RGB; {_CONVERT}",
        )
    return False


def jpeg_is_ycbcr(frame: bytes) -> bool | None:
    """Whether a JPEG stream of three components says that they are YCbCr; None where it does not say.

    True for JFIF, Adobe's transform 1 or subsampled chroma; False for Adobe's transform 0 or components called R, G, B.
    Source: ITU-T T.81 annex B, T.871 (JFIF), T.872 (Adobe's marker).
    """
    at = 2
    # Marker by marker, from behind the start of the image up to the first scan.
    while at + 4 <= len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        body = frame[at + 4 : at + 2 + length]
        if marker == _JFIF and body.startswith(b"JFIF"):
            return True
        if marker == _ADOBE and body.startswith(b"Adobe") and len(body) >= 12:
            return body[11] != 0
        if _FIRST_SOF <= marker <= _LAST_SOF and marker not in _NO_SOF:
            # Of each component: its name, its sampling and its table, after 6 bytes of frame header.
            if len(set(body[7::3])) > 1:
                return True
            return False if body[6::3][:3] == b"RGB" else None
        if marker == _SCAN:
            break
        at += 2 + length
    return None


def _has_component_transform(instance: Instance) -> bool:
    """Whether JPEG 2000 frames were transformed from RGB, which a decoder undoes (ISO/IEC 15444-1, A.6.1)."""
    frame = instance.frame(0)
    at = frame.find(_J2K_CODING_STYLE)
    return at >= 0 and frame[at + 8] == 1


def ycbcr_to_rgb(pixels: Pixels) -> Pixels:
    """Full-range YCbCr to RGB, uint8 of shape (..., 3), in the 16-bit fixed point of JPEG decoders."""
    y = pixels[..., 0].astype(np.int32)
    cb = pixels[..., 1].astype(np.int32) - 128
    cr = pixels[..., 2].astype(np.int32) - 128
    half = 1 << 15
    red = y + ((91881 * cr + half) >> 16)
    green = y + ((-22554 * cb - 46802 * cr + half) >> 16)
    blue = y + ((116130 * cb + half) >> 16)
    return np.stack([red, green, blue], axis=-1).clip(0, 255).astype(np.uint8)
