"""The matrix of files: forms in which a slide may be stored, made of one real picture, with the pixels that are right.

A cell is a file and what is in it. The truth is the picture itself where the form keeps it, and what another library
(tifffile with imagecodecs) decodes from the file where it does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from tests.compat.dicom_files import tiles_of, write_dicom

TILE = 128
SIZE = (336, 272)
"""Three by three tiles, the last ones cut."""

CM = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER", "metadata": None}
COMPRESSIONS = {
    "none": {},
    "LZW": {"compression": "lzw"},
    "LZW, predictor": {"compression": "lzw", "predictor": True},
    "Deflate": {"compression": "zlib"},
    "Deflate, predictor": {"compression": "zlib", "predictor": True},
    "PackBits": {"compression": "packbits"},
    "Zstandard": {"compression": "zstd"},
    "JPEG": {"compression": "jpeg", "compressionargs": {"level": 95}},
    "JPEG 2000": {"compression": "jpeg2000", "compressionargs": {"level": 0}},
}
COLOURS = ("RGB", "RGB in planes", "RGBA", "grey", "grey, 0 white", "palette", "CMYK")
LAYOUTS = ("tiles", "strips")

Pixels = np.ndarray


@dataclass(frozen=True)
class Cell:
    """A form of file.

    Parameters
    ----------
    name : str
        What it is, for people.
    path : Path
    truth : ndarray of uint8, shape (h, w, 3), or None
        Its pixels; None where nobody can say what they are, so that the file must be refused.
    loss : float
        Grey levels by which the mean may differ from the truth, for forms that readers decode in their own ways.
    """

    name: str
    path: Path
    truth: Pixels | None
    loss: float = 0.0


def stored(picture: Pixels, colours: str) -> tuple[Pixels, dict, Pixels]:
    """How a picture is handed to tifffile, with which options, and what it is as RGB."""
    grey = picture[..., 1]
    if colours == "RGB":
        return picture, {"photometric": "rgb"}, picture
    if colours == "RGB in planes":
        return np.moveaxis(picture, -1, 0).copy(), {"photometric": "rgb", "planarconfig": "separate"}, picture
    if colours == "RGBA":
        alpha = np.full(picture.shape[:2], 255, np.uint8)
        alpha[:, : picture.shape[1] // 2] = 0
        on_white = np.where(alpha[..., None] > 0, picture, 255).astype(np.uint8)
        return np.dstack([picture, alpha]), {"photometric": "rgb", "extrasamples": ["unassalpha"]}, on_white
    if colours == "grey":
        return grey.copy(), {"photometric": "minisblack"}, np.dstack([grey] * 3)
    if colours == "grey, 0 white":
        return 255 - grey, {"photometric": "miniswhite"}, np.dstack([grey] * 3)
    if colours == "palette":
        table = np.stack([np.arange(256), np.arange(256)[::-1], np.full(256, 100)]).astype(np.uint8)
        return grey.copy(), {"photometric": "palette", "colormap": table.astype(np.uint16) * 257}, table.T[grey]
    assert colours == "CMYK"
    ink = np.dstack([255 - picture, np.zeros(picture.shape[:2], np.uint8)])
    return ink, {"photometric": "separated"}, picture


def parts_of(data: Pixels, where: dict) -> Iterator[Pixels]:
    """Tiles, the last ones filled up, or strips."""
    if "rowsperstrip" in where:
        step = where["rowsperstrip"]
        yield from (np.ascontiguousarray(data[y : y + step]) for y in range(0, len(data), step))
        return
    padding = [(0, -side % TILE) for side in data.shape[:2]] + [(0, 0)] * (data.ndim - 2)
    padded = np.pad(data, padding)
    for y in range(0, len(padded), TILE):
        for x in range(0, padded.shape[1], TILE):
            yield np.ascontiguousarray(padded[y : y + TILE, x : x + TILE])


def write_encoded(path: Path, data: Pixels, where: dict, parts: list[bytes], compression: int = 7, **options) -> None:
    """A TIFF of tiles or strips that are compressed already."""
    options = {**CM, "photometric": "rgb" if data.ndim == 3 else "minisblack", **options}
    with tifffile.TiffWriter(path) as file:
        file.write(iter(parts), shape=data.shape, dtype=np.uint8, compression=compression, **where, **options)


def tiff_cells(folder: Path, picture: Pixels) -> Iterator[Cell]:
    """Layout × compression × colours, 8 bits."""
    for layout in LAYOUTS:
        for compression, options in COMPRESSIONS.items():
            for colours in COLOURS:
                if compression in ("JPEG", "JPEG 2000") and colours not in ("RGB", "grey"):
                    continue  # nobody writes them
                if colours == "palette" and "predictor" in compression:
                    continue
                data, more, truth = stored(picture, colours)
                where = {"tile": (TILE, TILE)} if layout == "tiles" else {"rowsperstrip": 64}
                path = folder / f"{layout} {compression} {colours}.tif".replace(" ", "_").replace(",", "")
                if compression == "JPEG" and colours == "grey":
                    # tifffile hands its encoder three dimensions, which of grey pictures that refuses.
                    write_encoded(
                        path, data, where, [imagecodecs.jpeg8_encode(part, level=95) for part in parts_of(data, where)]
                    )
                else:
                    tifffile.imwrite(path, data, **CM, **options, **more, **where)
                if compression == "JPEG":
                    decoded = tifffile.imread(path)
                    truth = decoded if decoded.ndim == 3 else np.dstack([decoded] * 3)
                yield Cell(f"{layout}, {compression}, {colours}", path, truth)


def single_cells(folder: Path, picture: Pixels) -> Iterator[Cell]:
    """One form each: what a directory, a header or a name may say."""
    tiles = {"tile": (TILE, TILE), "photometric": "rgb", **CM}
    strips = {"rowsperstrip": 64, "photometric": "rgb", **CM}

    def tiff(name: str, data: Pixels, options: dict, truth: Pixels | None, suffix: str = ".tif") -> Cell:
        path = folder / f"{name}{suffix}".replace(" ", "_").replace(",", "")
        tifffile.imwrite(path, data, **options)
        return Cell(name, path, truth)

    for suffix in (".TIF", ".tiff", ".TIFF", ".btf", ".qptiff", ".SVS", ".jpg", ""):
        yield tiff(f"name ending in {suffix or 'nothing'}", picture, tiles, picture, suffix)
    yield tiff("BigTIFF", picture, {**tiles, "bigtiff": True}, picture)
    yield tiff("big-endian", picture, {**tiles, "byteorder": ">"}, picture)
    for layout, options in (("tiles", tiles), ("strips", strips)):
        for orientation in range(2, 9):
            tags = [(274, 3, 1, orientation, False)]
            yield tiff(f"{layout}, orientation {orientation}", picture, {**options, "extratags": tags}, picture)
        for compression in ("none", "LZW", "JPEG", "Deflate"):
            sparse, truth = without_parts(
                tiff(
                    f"{layout}, {compression}, parts left out", picture, {**options, **COMPRESSIONS[compression]}, None
                ).path,
                picture,
                layout,
            )
            yield Cell(f"{layout}, {compression}, parts left out", sparse, truth)
        yield tiff(f"{layout}, 16 bits", picture.astype(np.uint16) * 257, options, None)
        yield tiff(f"{layout}, 12 bits in 16", picture.astype(np.uint16) * 16, options, None)
        yield tiff(f"{layout}, floating", picture.astype(np.float32) / 255, options, None)
        planes = np.moveaxis(picture, -1, 0).copy()
        ome = {**options, "photometric": "minisblack", "metadata": {"axes": "CYX"}}
        yield tiff(f"{layout}, OME-TIFF of three planes", planes, ome, None, ".ome.tif")
        yield tiff(f"{layout}, two slides in one file", np.stack([picture, picture[::-1]]), options, None)
    for name, first, then in (
        ("macro image behind", picture, picture[::4, ::4]),
        ("thumbnail before", picture[::4, ::4], picture),
    ):
        for layout, options in (("tiles", tiles), ("strips", strips)):
            path = folder / f"{name} {layout}.tif".replace(" ", "_")
            with tifffile.TiffWriter(path) as file:
                file.write(first.copy(), **options)
                file.write(then.copy(), **{**strips, "rowsperstrip": 16})
            yield Cell(f"{layout}, {name}", path, picture)
    pyramid = folder / "pyramid.tif"
    with tifffile.TiffWriter(pyramid) as file:
        for step in (1, 2, 4):
            file.write(picture[::step, ::step].copy(), subfiletype=int(step > 1), **tiles)
    yield Cell("pyramid", pyramid, picture)
    for number, ycc, name in ((33003, True, "YCbCr"), (33005, False, "RGB")):
        path = folder / f"aperio{number}.svs"
        frames = [
            imagecodecs.jpeg2k_encode(to_ycbcr(part) if ycc else part, level=0, codecformat="J2K", mct=False)
            for part in parts_of(picture, {})
        ]
        write_encoded(path, picture, {"tile": (TILE, TILE)}, frames, number, description=APERIO)
        yield Cell(f"Aperio, JPEG 2000 of {name}", path, picture, loss=1.0 if ycc else 0.0)
    path = folder / "philips.tiff"
    frames = [imagecodecs.jpeg8_encode(part, level=95) for part in parts_of(picture, {})]
    write_encoded(
        path,
        picture,
        {"tile": (TILE, TILE)},
        frames,
        photometric="ycbcr",
        subsampling=(2, 2),
        software="Philips DP v1.0",
        description=PHILIPS,
    )
    yield Cell("Philips", path, tifffile.imread(path))


APERIO = "Aperio Image Library v11.2.1 \r\n336x272 [0,0 336x272] (128x128) J2K/YUV16 Q=70|AppMag = 20|MPP = 0.4990"
_SPACING = (
    '<Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028" Element="0x0030" PMSVR="IDoubleArray">'
    "&quot;0.0005&quot; &quot;0.0005&quot;</Attribute>"
)
PHILIPS = (
    '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport"><Attribute Name="DICOM_MANUFACTURER" '
    'Group="0x0008" Element="0x0070" PMSVR="IString">PHILIPS</Attribute><Attribute Name="PIM_DP_SCANNED_IMAGES" '
    'Group="0x301D" Element="0x1003" PMSVR="IDataObjectArray"><Array><DataObject ObjectType="DPScannedImage">'
    '<Attribute Name="PIM_DP_IMAGE_TYPE" Group="0x301D" Element="0x1004" PMSVR="IString">WSI</Attribute>'
    + _SPACING
    + "<Attribute "
    'Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE" Group="0x1001" Element="0x8B01" PMSVR="IDataObjectArray"><Array>'
    '<DataObject ObjectType="PixelDataRepresentation">' + _SPACING + "<Attribute "
    'Name="PIIM_PIXEL_DATA_REPRESENTATION_NUMBER" Group="0x1001" Element="0x8B02" PMSVR="IUInt16">0</Attribute>'
    "</DataObject></Array></Attribute></DataObject></Array></Attribute></DataObject>"
)


def to_ycbcr(picture: Pixels) -> Pixels:
    """RGB to full-range YCbCr (ITU-T T.871)."""
    red, green, blue = np.moveaxis(picture.astype(float), -1, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    both = (blue - luma) / 1.772 + 128, (red - luma) / 1.402 + 128
    return np.stack([luma, *both], axis=-1).round().clip(0, 255).astype(np.uint8)


def without_parts(path: Path, picture: Pixels, layout: str) -> tuple[Path, Pixels]:
    """The file with two of its tiles or strips left out, and what it shows then."""
    with tifffile.TiffFile(path, mode="r+") as file:
        page = file.pages[0]
        counts, offsets = list(page.databytecounts), list(page.dataoffsets)
        decoded = tifffile.imread(path)
        for number in (1, 4):
            counts[number] = offsets[number] = 0
        kind = "Tile" if layout == "tiles" else "Strip"
        page.tags[f"{kind}ByteCounts"].overwrite(counts)
        page.tags[f"{kind}Offsets"].overwrite(offsets)
    truth = decoded.copy()
    for number in (1, 4):
        if layout == "tiles":
            row, column = divmod(number, -(-picture.shape[1] // TILE))
            truth[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE] = 255
        else:
            truth[number * 64 : (number + 1) * 64] = 255
    return path, truth


def plain_cells(folder: Path, picture: Pixels) -> Iterator[Cell]:
    """JPEG and PNG."""
    height, width = picture.shape[:2]
    image = Image.fromarray(picture)
    alpha = np.full((height, width), 255, np.uint8)
    alpha[:, : width // 2] = 0
    erased = np.where(alpha[..., None] > 0, picture, 255).astype(np.uint8)

    def png(name: str, made: Image.Image, truth: Pixels | None) -> Cell:
        path = folder / f"{name}.png".replace(" ", "_").replace(",", "")
        made.save(path)
        return Cell(name, path, truth)

    yield png("PNG, RGB", image, picture)
    yield png("PNG, RGBA half erased", Image.fromarray(np.dstack([picture, alpha])), erased)
    grey = Image.fromarray(picture[..., 1])
    yield png("PNG, grey", grey, np.dstack([picture[..., 1]] * 3))
    palette = image.quantize(64)
    yield png("PNG, palette", palette, np.asarray(palette.convert("RGB")))
    yield png("PNG, 1 bit", grey.convert("1"), None)
    path = folder / "deep.png"
    path.write_bytes(imagecodecs.png_encode(picture.astype(np.uint16) * 257))
    yield Cell("PNG, 16 bits", path, None)
    for name, options in (
        ("JPEG", {}),
        ("JPEG, progressive", {"progressive": True}),
        ("JPEG, 4:4:4", {"subsampling": 0}),
    ):
        path = folder / f"{name}.jpg".replace(" ", "_").replace(",", "").replace(":", "")
        image.save(path, quality=95, **options)
        yield Cell(name, path, imagecodecs.jpeg8_decode(path.read_bytes()))
    exif = Image.Exif()
    exif[274] = 6
    path = folder / "turned.jpg"
    image.save(path, quality=95, exif=exif)
    yield Cell("JPEG, orientation 6", path, imagecodecs.jpeg8_decode(path.read_bytes()))
    path = folder / "grey.jpg"
    grey.save(path, quality=95)
    yield Cell("JPEG, grey", path, np.dstack([imagecodecs.jpeg8_decode(path.read_bytes())] * 3))


def dicom_cells(folder: Path, picture: Pixels) -> Iterator[Cell]:
    """Frames and what the header says of them."""
    size = picture.shape[1], picture.shape[0]
    parts = tiles_of(picture, TILE)
    jpeg, j2k = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.91"
    rgb = [imagecodecs.jpeg8_encode(part, level=95, outcolorspace="rgb") for part in parts]
    ycc = [imagecodecs.jpeg8_encode(part, level=95, subsampling="422") for part in parts]
    plain = [imagecodecs.jpeg2k_encode(part, level=0, codecformat="J2K", mct=False) for part in parts]
    transformed = [imagecodecs.jpeg2k_encode(part, level=0, codecformat="J2K", mct=True) for part in parts]
    coloured = [imagecodecs.jpeg2k_encode(to_ycbcr(part), level=0, codecformat="J2K", mct=False) for part in parts]
    decoded = {
        id(frames): untiled([imagecodecs.jpeg8_decode(frame) for frame in frames], size) for frames in (rgb, ycc)
    }
    forms = (
        ("JPEG of RGB under RGB", rgb, jpeg, "RGB", decoded[id(rgb)], 0.0),
        ("JPEG of YCbCr under YBR_FULL_422", ycc, jpeg, "YBR_FULL_422", decoded[id(ycc)], 0.0),
        ("JPEG of YCbCr under RGB", ycc, jpeg, "RGB", decoded[id(ycc)], 0.0),
        ("JPEG of RGB under YBR_FULL_422", rgb, jpeg, "YBR_FULL_422", None, 0.0),
        ("JPEG 2000 of RGB under RGB", plain, j2k, "RGB", picture, 0.0),
        ("JPEG 2000 of RGB under YBR_RCT", transformed, j2k, "YBR_RCT", picture, 0.0),
        ("JPEG 2000 of RGB, transformed, under RGB", transformed, j2k, "RGB", picture, 0.0),
        ("JPEG 2000 of YCbCr under YBR_ICT", coloured, j2k, "YBR_ICT", None, 0.0),
        ("JPEG 2000 of YCbCr under YBR_FULL", coloured, j2k, "YBR_FULL", None, 0.0),
    )
    for number, (name, frames, syntax, photometric, truth, loss) in enumerate(forms):
        path = folder / f"dicom{number}" / "slide.dcm"
        write_dicom(path, size, frames, tile=TILE, syntax=syntax, photometric=photometric)
        yield Cell(f"DICOM, {name}", path, truth, loss)
    folder = folder / "labelled"
    series = write_dicom(folder / "z.dcm", size, rgb, tile=TILE, syntax=jpeg, photometric="RGB")
    label = imagecodecs.jpeg8_encode(np.full((TILE, TILE, 3), (200, 190, 180), np.uint8), level=90)
    write_dicom(
        folder / "a.dcm", (TILE, TILE), [label], tile=TILE, syntax=jpeg, photometric="RGB", kind="LABEL", series=series
    )
    yield Cell("DICOM, a label of other colours before it", folder, decoded[id(rgb)])


def untiled(parts: list[Pixels], size: tuple[int, int]) -> Pixels:
    """Tiles as one picture, cut to its size."""
    columns = -(-size[0] // TILE)
    rows = [np.concatenate(parts[i : i + columns], axis=1) for i in range(0, len(parts), columns)]
    return np.concatenate(rows)[: size[1], : size[0]]
