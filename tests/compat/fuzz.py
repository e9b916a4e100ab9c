"""Files cut off and bits flipped, by chance: what is served of them is what they hold, or an error names the slide.

``make fuzz`` makes the long run.

Of a damaged file every block of pixels is asked for. It may be refused. It may be what it was before the damage. If it
is neither, the damage must be one that nobody can notice: another library decodes the same pixels from the damaged
tile, and does so without a warning.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import openslide
import pydicom
import simplejpeg
import tifffile
from m2ost.data.errors import DataError
from m2ost.data.section import Section
from m2ost.data.views import ViewCache
from m2ost_contract import RowStatus
from m2ost_export.probes import slide_views
from m2ost_preprocess.decoder import Decoder
from m2ost_preprocess.errors import SlideError, SpotError
from scipy.sparse import csr_matrix

from tests.compat import cells
from tests.compat.dicom_files import tiles_of, write_dicom

EVERY = 10
"""Of so many files one is read in every way: some of them start a process each."""

KINDS = ("truncated", "flipped", "flipped in pixels")


@dataclass(frozen=True)
class Source:
    """A sound file that is damaged.

    Parameters
    ----------
    name : str
    path : Path
    size : (int, int)
        Width and height in pixels.
    block : int
        Side of its tiles.
    pixels : list of (int, int)
        Offset and length of its compressed tiles, row by row.
    decode : callable
        What another library makes of a tile's bytes: pixels, or an exception where they are damaged.
    """

    name: str
    path: Path
    size: tuple[int, int]
    block: int
    pixels: list[tuple[int, int]]
    decode: Callable[[Path, int], np.ndarray]


def sources(folder: Path, slide: Path, dicom: Path) -> Iterator[Source]:
    """Two real slides, and tiled TIFFs of several compressions and DICOM slides made of one of them."""
    yield tiff_source("Aperio SVS, real", slide)
    yield dicom_source("DICOM, real", dicom)
    picture = np.asarray(openslide.OpenSlide(slide).read_region((900, 1100), 0, cells.SIZE).convert("RGB"))
    for compression in ("none", "LZW", "Deflate", "JPEG"):
        for cell in cells.tiff_cells(folder, picture):
            if cell.name == f"tiles, {compression}, RGB":
                yield tiff_source(f"tiled TIFF, {compression}", cell.path)
    for cell in cells.single_cells(folder, picture):
        if cell.name == "Aperio, JPEG 2000 of RGB":
            yield tiff_source("Aperio SVS, JPEG 2000", cell.path)
    parts = tiles_of(picture, cells.TILE)
    for name, syntax, frames in (
        (
            "DICOM, JPEG",
            "1.2.840.10008.1.2.4.50",
            [imagecodecs.jpeg8_encode(p, level=90, outcolorspace="rgb") for p in parts],
        ),
        (
            "DICOM, JPEG 2000",
            "1.2.840.10008.1.2.4.90",
            [imagecodecs.jpeg2k_encode(p, level=0, codecformat="J2K", mct=False) for p in parts],
        ),
    ):
        path = folder / name.replace(", ", "_").replace(" ", "_") / "slide.dcm"
        write_dicom(path, cells.SIZE, frames, tile=cells.TILE, syntax=syntax, photometric="RGB")
        yield dicom_source(name, path)


def tiff_source(name: str, path: Path) -> Source:
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        size, block = (page.imagewidth, page.imagelength), page.tilewidth
    return Source(name, path, size, block, places, decode_tiff_tile)


def decode_tiff_tile(path: Path, number: int) -> np.ndarray:
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        file.filehandle.seek(page.dataoffsets[number])
        data = file.filehandle.read(page.databytecounts[number])
        if page.compression == 7:
            tables = page.jpegtables
            simplejpeg.decode_jpeg(tables[:-2] + data[2:] if tables else data)  # warns by an error
        tile, _, shape = page.decode(data, number, jpegtables=page.jpegtables)
        if tile is None:
            raise ValueError("no data")
        return tile[0, : shape[1], : shape[2]]


def dicom_source(name: str, path: Path) -> Source:
    instance = pydicom.dcmread(path)
    data = path.read_bytes()
    frames = list(pydicom.encaps.generate_frames(instance.PixelData, number_of_frames=instance.NumberOfFrames))
    size = instance.TotalPixelMatrixColumns, instance.TotalPixelMatrixRows
    places = [(data.index(frame), len(frame)) for frame in frames]
    return Source(name, path, size, instance.Rows, places, decode_dicom_frame)


def decode_dicom_frame(path: Path, number: int) -> np.ndarray:
    instance = pydicom.dcmread(path)
    frames = pydicom.encaps.generate_frames(instance.PixelData, number_of_frames=instance.NumberOfFrames)
    frame = list(frames)[number]
    if frame.startswith(b"\xff\xd8"):
        return simplejpeg.decode_jpeg(frame)
    return imagecodecs.jpeg2k_decode(frame)


def damaged(source: Source, kind: str, random: np.random.Generator, path: Path) -> None:
    """Write a copy of a file, damaged in a way that the generator chooses."""
    data = bytearray(source.path.read_bytes())
    if kind == "truncated":
        data = data[: random.integers(1, len(data))]
    for _ in range(0 if kind == "truncated" else random.integers(1, 4)):
        first, count = source.pixels[random.integers(len(source.pixels))] if kind != "flipped" else (0, len(data))
        data[first + random.integers(count)] ^= 1 << random.integers(8)
    path.write_bytes(data)


def outcome(decoder: Decoder, source: Source, path: Path, whole: np.ndarray) -> str:
    """What became of a damaged file: one of the words below, of which the last two are faults."""
    size = source.size
    try:
        size = decoder.describe(path).size
    except SlideError as error:
        if "did not answer" in str(error):
            return "hung"
        if path.name not in str(error):
            return f"an error of no slide: {error}"
    if size != source.size:
        return "served, of another size"
    seen = set()
    columns = -(-size[0] // source.block)
    data, sound = path.read_bytes(), source.path.read_bytes()
    # Tiles far from the damage are the same bytes: two of them stand for all.
    changed = [i for i, (at, count) in enumerate(source.pixels) if data[at : at + count] != sound[at : at + count]]
    for number in [*changed[:6], 0, len(source.pixels) - 1]:
        row, column = divmod(number, columns)
        left, top = column * source.block, row * source.block
        width, height = min(source.block, size[0] - left), min(source.block, size[1] - top)
        expected = whole[top : top + height, left : left + width]
        try:
            found = decoder.read(path, left, top, width, height)
        except SlideError as error:
            if "did not answer" in str(error):
                return "hung"
            seen.add("refused")
            continue
        if np.array_equal(found, expected):
            seen.add("served as it was")
            continue
        try:
            other = source.decode(path, number)[:height, :width]
        except Exception as error:
            return f"INVENTED at {left}, {top}: {error}"
        seen.add("served as the damaged file says")
        if other.shape != found.shape or np.abs(other.astype(int) - found).max() > 1:
            return f"INVENTED at {left}, {top}: another library decodes other pixels"
    return next(word for word in ("refused", "served as the damaged file says", "served as it was") if word in seen)


def check_every_way(decoder: Decoder, path: Path, size: tuple[int, int]) -> str | None:
    """Ask for one spot by every way that leads to pixels; what is wrong, or None.

    The server, one slide and archives ask a decoder for views, as here; training and evaluation keep them in a cache;
    the export's gate takes them from a slide and a file of spots.
    """
    center, geometry = (size[0] // 2, size[1] // 2), decoder.geometry
    views = [np.ones((1, *geometry.shape), np.uint8) for _ in geometry.names]
    try:
        status = decoder.cut_views(path, np.array([center], np.int32), np.ones(1, np.float32), views)[0]
    except SlideError:
        status = RowStatus.SLIDE_UNAVAILABLE
    if status == RowStatus.DECODE_FAILED and any(view.any() for view in views):
        return "pixels under a status"
    spots = path.parent / "spots.csv"
    spots.write_text("pixel_x,pixel_y\n" + "{},{}\n".format(*center) * 2)
    section = Section(
        name="a", patient="a", image=path, spot_names=("a",), centers=np.array([center], float), genes=("a",),
        counts=csr_matrix(np.ones((1, 1))),
    )  # fmt: skip
    found = []
    try:
        found.append(np.asarray(ViewCache(path.parent / "cache").views(section, geometry))[0])
    except (SlideError, DataError):
        found.append(None)
    try:
        found.append(np.stack([view[0] for view in slide_views(path, geometry, spots=spots)]))
    except (SlideError, SpotError):
        found.append(None)
    for made in found:
        if made is not None and (status != RowStatus.OK or not np.array_equal(made, np.stack(views)[:, 0])):
            return "training or the gate sees what is not served"
    return None


def run(slide: Path, dicom: Path, count: int, seed: int) -> tuple[dict[str, Counter[str]], list[str]]:
    """Damage files ``count`` times, in turn.

    Returns
    -------
    dict of str to Counter
        Kind of damage and file → how often it ended in which way.
    list of str
        Faults, each with what repeats it.
    """
    random, counts, faults = np.random.default_rng(seed), {}, []
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        with Decoder(threads=0) as decoder:
            known = [(s, decoder.read(s.path.resolve(), 0, 0, *s.size)) for s in sources(folder, slide, dicom)]
            for number in range(count):
                source, whole = known[number % len(known)]
                kind = KINDS[number // len(known) % len(KINDS)]
                path = folder / str(number) / source.path.name
                path.parent.mkdir()
                damaged(source, kind, random, path)
                ended = outcome(decoder, source, path, whole)
                counts.setdefault(f"{source.name}, {kind}", Counter())[ended.split(" at ")[0].split(": ")[0]] += 1
                if ended.startswith(("INVENTED", "hung", "an error of no slide")):
                    faults.append(f"seed {seed}, number {number}: {source.name}, {kind}: {ended}")
                wrong = check_every_way(decoder, path, source.size) if number % EVERY == 0 else None
                if wrong:
                    faults.append(f"seed {seed}, number {number}: {source.name}, {kind}: {wrong}")
                shutil.rmtree(path.parent)
    finally:
        shutil.rmtree(folder)
    return counts, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slide", type=Path, required=True)
    parser.add_argument("--dicom", type=Path, required=True, help="one DICOM file of a slide")
    parser.add_argument("--count", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    counts, faults = run(given.slide.resolve(), given.dicom.resolve(), given.count, given.seed)
    record = {
        "what": "files damaged by chance, and what became of them",
        "seed": given.seed,
        "files": given.count,
        "faults": faults,
        "outcomes": {name: dict(sorted(counter.items())) for name, counter in sorted(counts.items())},
        "versions": {
            name: module.__version__
            for name, module in (
                ("tifffile", tifffile),
                ("openslide-python", openslide),
                ("imagecodecs", imagecodecs),
                ("pydicom", pydicom),
            )
        },
    }
    given.out.write_text(json.dumps(record, indent=2) + "\n")
    sys.exit("\n".join(faults) or 0)


if __name__ == "__main__":
    main()
