"""Whether compressed pixels are whole, told from the compressed bytes themselves.

OpenSlide and Pillow fill what a damaged JPEG lacks with grey, what a damaged Deflate stream lacks with what it begins
with, and say nothing. So the tiles that they are asked for are looked at first, by decoders that say everything:
libjpeg-turbo with its warnings as errors, zlib with its checksum. Where a format has no means to tell (raw pixels, bits
that changed inside an LZW or JPEG 2000 stream), what the file says is what is served.
"""

from __future__ import annotations

import zlib

import simplejpeg

from .limits import MAX_TILE_BYTES
from .native_errors import raise_if_out_of_memory

RAW, LZW, JPEG, ADOBE_DEFLATE, DEFLATE = 1, 5, 7, 8, 32946
APERIO_JP2K_YCBCR, APERIO_JP2K_RGB, JPEG_2000 = 33003, 33005, 34712
PACKBITS, ZSTANDARD = 32773, 50000
"""TIFF's numbers of compressions."""

DECODABLE = (RAW, LZW, JPEG, ADOBE_DEFLATE, DEFLATE, PACKBITS, ZSTANDARD, APERIO_JP2K_YCBCR, APERIO_JP2K_RGB)
"""Those that one of the readers decodes."""

_J2K_START, _J2K_END, _J2K_TILE_PART = b"\xff\x4f\xff\x51", b"\xff\xd9", b"\xff\x90"
_PIECE_BYTES = 1 << 20
_SMALLEST = 8
"""The least of a JPEG that is transformed: each of its bits is decoded nevertheless."""


def jpeg_damage(data: bytes, max_px: int = MAX_TILE_BYTES // 3) -> str | None:
    """What libjpeg-turbo has to say of a whole JPEG stream, tables included, or that it claims over ``max_px`` pixels.

    None where there is none of these. Raises ``MemoryError`` where memory ran out.
    """
    try:
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        if height * width > max_px:
            return f"a JPEG of {width}×{height} px, over {max_px}"
        simplejpeg.decode_jpeg(data, "GRAY", min_factor=_SMALLEST)
    except ValueError as error:
        raise_if_out_of_memory(str(error))
        return str(error) or type(error).__name__
    return None


def jpeg_2000_damage(data: bytes) -> str | None:
    """What is wrong with a JPEG 2000 codestream; what follows its end does not count.

    None where each tile-part ends where the next begins and the last at the end's mark, and for the file format around
    a codestream, whose decoder knows its lengths. Source: ISO/IEC 15444-1, annex A.
    """
    if data.startswith(b"\0\0\0\x0cjP  "):
        return None
    if not data.startswith(_J2K_START):
        return "not a JPEG 2000 codestream"
    at = 2
    # The main header: markers with a length each, up to the first tile-part.
    while data[at : at + 2] not in (_J2K_TILE_PART, b""):
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    while data[at : at + 2] == _J2K_TILE_PART:
        length = int.from_bytes(data[at + 6 : at + 10], "big")
        if length == 0:  # up to the end, wherever that is
            return None if data.rstrip(b"\0").endswith(_J2K_END) else "the codestream has no end"
        if length < len(_J2K_TILE_PART):
            return "a tile-part has no length"
        at += length
    return None if data[at : at + 2] == _J2K_END else "the codestream has no end"


def deflate_damage(data: bytes, expected_bytes: int) -> str | None:
    """What is wrong with a zlib stream: zlib's error, a checksum that does not fit, or another length than expected.

    ``expected_bytes`` is the length of what it holds; what follows the stream's end does not count.
    """
    stream, found = zlib.decompressobj(), 0
    try:
        for at in range(0, len(data), _PIECE_BYTES):
            piece = data[at : at + _PIECE_BYTES]
            # Piece by piece, and no further than expected: a few bytes may claim to hold gigabytes.
            while piece and not stream.eof and found <= expected_bytes:
                found += len(stream.decompress(piece, _PIECE_BYTES))
                piece = stream.unconsumed_tail
    except zlib.error as error:
        return str(error)
    if found > expected_bytes:
        return f"more than the {expected_bytes} bytes that there should be"
    if not stream.eof:
        return "the Deflate stream has no end"
    return None if found == expected_bytes else f"{found} bytes of {expected_bytes}"


def damage(data: bytes, compression: int, expected_bytes: int, tables: bytes | None = None) -> str | None:
    """What is wrong with one tile or strip of a TIFF; None where nothing is, or where nobody can tell.

    ``data`` is it as the file has it, ``compression`` TIFF's number, ``expected_bytes`` its length once it is decoded,
    and ``tables`` are TIFF's JPEGTables.
    """
    if compression == JPEG:
        return jpeg_damage(_with_tables(data, tables), max(expected_bytes, MAX_TILE_BYTES // 3))
    if compression in (ADOBE_DEFLATE, DEFLATE):
        return deflate_damage(data, expected_bytes)
    if compression in (APERIO_JP2K_YCBCR, APERIO_JP2K_RGB, JPEG_2000):
        return jpeg_2000_damage(data)
    if compression == RAW and len(data) < expected_bytes:
        return f"{len(data)} bytes of {expected_bytes}"
    return None


def _with_tables(data: bytes, tables: bytes | None) -> bytes:
    """An abbreviated stream with its tables, which lie between the marks for start and end of a stream of their own."""
    if not tables or not data.startswith(b"\xff\xd8"):
        return data
    return tables.rstrip(b"\0")[:-2] + data[2:]
