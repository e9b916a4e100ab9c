"""Slides made to do harm: small on disk, written in less than a second each.

``escapes`` writes slides whose readers would open files outside a folder, ``blockers`` such that would wait for ever,
``bombs`` such that claim more than a machine holds, ``truncations`` such that end too early.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

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
