"""Slides made to do harm: small on disk, written in less than a second each.

``escapes`` writes slides whose readers would open files outside a folder, ``blockers`` such that would wait for ever,
``bombs`` such that claim more than a machine holds, ``truncations`` such that end too early.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
from PIL import Image

from tests.compat.dicom_files import write_dicom

VMS = "[Virtual Microscope Specimen]\nNoJpegColumns=1\nNoJpegRows=1\nNoLayers=1\nImageFile={}\nMapFile={}\n"
SLIDEDAT = (
    "[GENERAL]\nSLIDE_ID = 1\nIMAGENUMBER_X = 1\nIMAGENUMBER_Y = 1\n[HIERARCHICAL]\nINDEXFILE = {}\n"
    "HIER_COUNT = 1\nHIER_0_NAME = Slide zoom level\nHIER_0_COUNT = 1\nHIER_0_VAL_0_SECTION = LEVEL0\n"
    "NONHIER_COUNT = 0\n[DATAFILE]\nFILE_COUNT = 1\nFILE_0 = {}\n[LEVEL0]\nIMAGE_CONCAT_FACTOR = 0\nOVERLAP_X = 0\n"
    "OVERLAP_Y = 0\nMICROMETER_PER_PIXEL_X = 0.5\nMICROMETER_PER_PIXEL_Y = 0.5\nIMAGE_FILL_COLOR_BGR = 0\n"
    "DIGITIZER_WIDTH = 64\nDIGITIZER_HEIGHT = 64\nIMAGE_FORMAT = JPEG\n"
)
DICOM_SERIES = "1.2.3"


def jpeg(path: Path, colour: tuple[int, int, int] = (200, 30, 90), side: int = 64) -> None:
    """A JPEG with restart markers, as VMS has them."""
    noise = np.random.default_rng(0).integers(0, 30, (side, side, 3), np.uint8)
    image = Image.fromarray(noise + np.array(colour, np.uint8))
    image.save(path, "JPEG", restart_marker_blocks=4, quality=90, subsampling=0)


def vms(path: Path, image: str = "image.jpg", map_file: str = "map.jpg", *, text: str = VMS) -> Path:
    """A slide of Hamamatsu's, with the files that it names beside it where they are plain names."""
    path.write_bytes(text.format(image, map_file).encode())
    for name in (image, map_file):
        if "/" not in name and name not in ("", ".", ".."):
            jpeg(path.with_name(name), side=64 if name == image else 32)
    return path


def mrxs(path: Path, index: str = "Index.dat", data: str = "Data0000.dat", *, slidedat: str = SLIDEDAT) -> Path:
    """A slide of 3DHistech's, without pixels."""
    path.touch()
    folder = path.with_suffix("")
    folder.mkdir()
    (folder / "Slidedat.ini").write_text(slidedat.format(index, data), newline="")
    for name in ("Index.dat", "Data0000.dat"):
        (folder / name).write_bytes(b"01.02" + b"1".ljust(32, b"\0") + bytes(64))
    return path


def dicom(path: Path, *, before: int = 0) -> None:
    """A slide of one tile, with that many bytes before its header says of which series it is."""
    frame = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 90)).save(frame, "JPEG")
    syntax = "1.2.840.10008.1.2.4.50"
    options = {"tile": 64, "syntax": syntax, "photometric": "YBR_FULL_422", "series": DICOM_SERIES}
    write_dicom(path, (64, 64), [frame.getvalue()], **options)
    if before:
        instance = pydicom.dcmread(path)
        instance.add_new(0x00091010, "OB", bytes(before))
        instance.save_as(path)


def _dicom_beside(folder: Path, beside: Callable[[Path], object], *, before: int = 0) -> Path:
    dicom(folder / "a.dcm", before=before)
    beside(folder)
    return folder / "a.dcm"


def escapes(folder: Path, outside: Path) -> list[Path]:
    """Slides that lead out of their folder, each in its own way.

    Parameters
    ----------
    folder : Path
        Receives them.
    outside : Path
        A folder beside ``folder``, which receives the files that they lead to: ``canary.jpg``, ``canary.dcm`` …
    """
    jpeg(outside / "canary.jpg")
    dicom(outside / "canary.dcm")
    (outside / "canary.dat").write_bytes(bytes(500))
    up = f"../{outside.name}/canary.jpg"
    slides = [
        vms(folder / "up.vms", image=up),
        vms(folder / "absolute.vms", image=str(outside / "canary.jpg")),
        vms(folder / "map.vms", map_file=up),
        vms(folder / "macro.vms", text=VMS + f"MacroImage={up}\n"),
        vms(folder / "optimisation.vms", text=VMS + f"OptimisationFile={up}\n"),
        vms(folder / "returns.vms", image=up, text=VMS.replace("\n", "\r\n")),
        vms(folder / "blanks.vms", image=up, text=VMS.replace("=", " \t=\t ")),
        vms(folder / "escaped.vms", image=f"\\s{up}"),
        vms(folder / "uncompressed.vmu", image=up, text=VMS.replace("[", "[Uncompressed ")),
        vms(folder / "plain.txt", image=up),
        vms(folder / "sub.vms", image="link/canary.jpg"),
        mrxs(folder / "index.mrxs", index=f"../../{outside.name}/canary.dat"),
        mrxs(folder / "data.mrxs", data=f"../../{outside.name}/canary.dat"),
        mrxs(folder / "mended.mrxs", slidedat=SLIDEDAT.replace("FILE_0", f"=\rFILE_0 = ../{up}\nFILE_0")),
        _dicom_beside(folder / "same series", lambda at: (at / "b").symlink_to(outside / "canary.dcm")),
        _dicom_beside(folder / "late series", lambda at: (at / "b").symlink_to(outside / "canary.dcm"), before=70_000),
        _dicom_beside(folder / "no dicom", lambda at: (at / "b").symlink_to(outside / "canary.dat")),
        _dicom_beside(folder / "folder", lambda at: (at / "b").symlink_to(outside)).parent,
    ]
    (folder / "link").symlink_to(outside)
    linked = vms(folder / "linked.vms", image="linked.jpg")
    (folder / "linked.jpg").unlink()
    (folder / "linked.jpg").symlink_to(outside / "canary.jpg")
    companion = mrxs(folder / "companion.mrxs")
    (folder / "companion").rename(outside / "companion")
    (folder / "companion").symlink_to(outside / "companion")
    nameless = folder / "nameless"
    nameless.mkdir()
    mrxs(nameless / "x.mrxs").rename(nameless / ".mrxs")
    for file in (nameless / "x").iterdir():
        file.rename(nameless / file.name)
    (nameless / "x").rmdir()
    (nameless / "Data0001.dat").symlink_to(outside / "canary.dat")
    trestle = folder / "trestle.tif"
    Image.new("RGB", (64, 64)).save(trestle)
    (folder / "trestle.Full").symlink_to(outside / "canary.jpg")
    database = folder / "database.svslide"
    database.write_bytes(b"SQLite format 3\0" + bytes(4080))
    (folder / "database.svslide-wal").symlink_to(outside / "canary.dat")
    (folder / "a.png-journal").symlink_to(outside / "canary.dat")
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    return [*slides, linked, companion, nameless / ".mrxs", trestle, database, folder / "a.png"]


def blockers(folder: Path) -> list[Path]:
    """Slides with a pipe where their reader would open a file."""
    image = vms(folder / "pipe.vms", image="pipe.jpg")
    (folder / "pipe.jpg").unlink()
    os.mkfifo(folder / "pipe.jpg")
    slidedat = mrxs(folder / "pipe.mrxs")
    (folder / "pipe" / "Slidedat.ini").unlink()
    os.mkfifo(folder / "pipe" / "Slidedat.ini")
    data = mrxs(folder / "data.mrxs")
    os.mkfifo(folder / "data" / "Data0001.dat")
    picture = folder / "journal.png"
    Image.new("RGB", (64, 64)).save(picture)
    os.mkfifo(folder / "journal.png-journal")
    series = _dicom_beside(folder / "dicom", lambda at: os.mkfifo(at / "b"))
    os.mkfifo(folder / "alone.svs")
    return [image, slidedat, data, picture, series, series.parent, folder / "alone.svs"]


def tiff(
    path: Path,
    size: tuple[int, int],
    tile: tuple[int, int] | None,
    parts: list[bytes],
    compression: int = 8,
    *,
    shared: int = 0,
    samples: int = 3,
    description: bytes = b"",
    images: int = 1,
) -> Path:
    """A TIFF with these tiles, or strips of the whole width; the last part stands for so many more."""
    width, height = size
    offsets, data = [], bytearray(8)
    for part in parts:
        offsets.append(len(data))
        data += part + b"\0" * (len(part) % 2)
    counts = [len(part) for part in parts]
    offsets += offsets[-1:] * shared
    counts += counts[-1:] * shared

    def put(content: bytes) -> int:
        at = len(data)
        data.extend(content + b"\0" * (len(content) % 2))
        return at

    def array(values: list[int], kind: str) -> bytes:
        content = np.array(values, kind).tobytes()
        return content.ljust(4, b"\0") if len(content) <= 4 else put(content).to_bytes(4, "little")

    entries = [(256, 4, [width]), (257, 4, [height]), (258, 3, [8] * samples), (259, 3, [compression])]
    entries += [(262, 3, [2 if samples == 3 else 1]), (277, 3, [samples]), (284, 3, [1])]
    if tile is None:
        entries += [(273, 4, offsets), (278, 4, [-(-height // len(offsets))]), (279, 4, counts)]
    else:
        entries += [(322, 4, [tile[0]]), (323, 4, [tile[1]]), (324, 4, offsets), (325, 4, counts)]
    tags = [
        (number, kind, len(values), array(values, "<u2" if kind == 3 else "<u4")) for number, kind, values in entries
    ]
    if description:
        tags.append((270, 2, len(description), put(description).to_bytes(4, "little")))
    listed = b"".join(
        number.to_bytes(2, "little") + kind.to_bytes(2, "little") + count.to_bytes(4, "little") + value
        for number, kind, count, value in sorted(tags)
    )
    at = 4
    for _ in range(images):
        data[at : at + 4] = len(data).to_bytes(4, "little")
        data += len(tags).to_bytes(2, "little") + listed
        at = len(data)
        data += bytes(4)
    data[:4] = b"II*\0"
    path.write_bytes(data)
    return path


def blank_tiff(path: Path, side: int, tile: int = 256) -> Path:
    """A square of one colour without a pyramid, in Deflate tiles that are all there."""
    blank = zlib.compress(bytes([200]) * (3 * tile * tile), 9)
    return tiff(path, (side, side), (tile, tile), [blank] * (-(-side // tile)) ** 2)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def png(path: Path, side: int, bits: int = 8, colour: int = 0) -> Path:
    """A blank PNG: grey, or with ``colour`` 3 a palette, with so many bits a pixel."""
    packer, row = zlib.compressobj(9), bytes(1 + -(-side * bits // 8))
    content = b"".join([packer.compress(row * 64) for _ in range(-(-side // 64))])
    header = side.to_bytes(4, "big") * 2 + bytes([bits, colour, 0, 0, 0])
    palette = _chunk(b"PLTE", bytes([250, 250, 250] * 2)) if colour == 3 else b""
    chunks = _chunk(b"IHDR", header) + palette + _chunk(b"IDAT", content + packer.flush()) + _chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def claiming_jpeg(width: int, height: int, *, progressive: bool = False) -> bytes:
    """A small JPEG stream whose header claims another size."""
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 90)).save(stream, "JPEG", progressive=progressive)
    data = bytearray(stream.getvalue())
    at = data.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 5
    data[at : at + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


def bombs(folder: Path) -> list[Path]:
    """Files of up to 12 MB that claim far more than they hold. All must be refused, by headers alone or nearly so."""
    blank = zlib.compress(bytes(256 * 256 * 3), 9)
    slides = [
        png(folder / "palette.png", 23_000, 1, 3),
        png(folder / "grey.png", 20_000),
        tiff(folder / "million.tif", (10**6, 10**6), (1024, 1024), [blank], shared=977**2 - 1),
        tiff(folder / "few tiles.tif", (10**6, 10**6), (256, 256), [blank] * 4),
        tiff(folder / "many tiles.tif", (10**6, 10**6), (16, 16), [blank]),
        tiff(folder / "no pyramid.tif", (10**5, 10**5), (256, 256), [blank], shared=391**2 - 1),
        tiff(folder / "wide.tif", (2**31 - 1, 16), (256, 256), [blank]),
        tiff(folder / "giant tile.tif", (65_536, 65_536), (65_536, 65_536), [blank]),
        tiff(folder / "samples.tif", (256, 256), (256, 256), [blank], samples=4000),
        tiff(folder / "strip.tif", (60_000, 60_000), None, [blank]),
        tiff(folder / "strips.tif", (30_000, 30_000), None, [blank], 5),
        tiff(folder / "images.tif", (256, 256), (256, 256), [blank], images=9000),
        tiff(folder / "lists.tif", (256 * 500, 256 * 500), (256, 256), [blank], shared=500**2 - 1, images=400),
        tiff(folder / "descriptions.tif", (256, 256), (256, 256), [blank], description=b"a" * 10**6, images=1000),
    ]
    loop = tiff(folder / "loop.tif", (256, 256), (256, 256), [blank])
    data = bytearray(loop.read_bytes())
    data[-4:] = data[4:8]
    loop.write_bytes(data)
    slides.append(loop)
    for name, progressive in (("baseline", False), ("progressive", True)):
        path = folder / f"{name}.jpg"
        path.write_bytes(claiming_jpeg(65_000, 65_000, progressive=progressive))
        tile = claiming_jpeg(65_000, 65_000, progressive=progressive)
        slides += [path, tiff(folder / f"{name}.tif", (256, 256), (256, 256), [tile], 7)]
    slides += [_huge_dicom(folder / "frame.dcm", Rows=60_000, Columns=60_000)]
    slides += [_huge_dicom(folder / "matrix.dcm", TotalPixelMatrixColumns=10**9, TotalPixelMatrixRows=10**9)]
    slides += [_huge_dicom(folder / "frames.dcm", NumberOfFrames=2**31 - 1)]
    return slides


def _huge_dicom(path: Path, **claims: int) -> Path:
    path = path.with_suffix("") / path.name
    dicom(path)
    instance = pydicom.dcmread(path)
    for name, value in claims.items():
        setattr(instance, name, value)
    instance.save_as(path)
    return path


def compressed_bombs(folder: Path) -> list[Path]:
    """TIFFs of one tile that unpacks to far more than a tile. A reader may refuse them, or take the tile's own part."""
    zeros = bytes(100 << 20)
    packed = {
        5: imagecodecs.lzw_encode(zeros),
        8: zlib.compress(zeros, 9),
        50000: imagecodecs.zstd_encode(zeros),
        33005: imagecodecs.jpeg2k_encode(np.zeros((4096, 4096, 3), np.uint8), level=0, codecformat="J2K", mct=False),
    }
    return [tiff(folder / f"packed {kind}.tif", (256, 256), (256, 256), [part], kind) for kind, part in packed.items()]


def truncations(folder: Path, slide: Path) -> list[Path]:
    """A slide's file, cut at eight places."""
    data, paths = slide.read_bytes(), []
    for eighth in range(8):
        paths.append(folder / f"cut {eighth}{slide.suffix}")
        paths[-1].write_bytes(data[: len(data) * eighth // 8])
    return paths
