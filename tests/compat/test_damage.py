"""Damaged tiles: no reader's filling is ever taken for pixels, and what is whole beside them is served."""

from __future__ import annotations

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from m2ost_contract import RowStatus, ViewGeometry
from m2ost_preprocess.decoder import Decoder
from m2ost_preprocess.errors import UnreadableSlide

from tests.compat import cells, fuzz
from tests.compat.dicom_files import tiles_of, write_dicom

pytestmark = pytest.mark.usefixtures("heavy")

GEOMETRY = ViewGeometry(64, (1, 2))
SIZE = (900, 700)
DAMAGED = 9
"""The tile that is damaged: third column, second row."""

EACH_ONCE = 9 * len(fuzz.KINDS)
"""Every file that :func:`fuzz.sources` makes, damaged in every way."""

CENTERS = np.array([[320, 192], [450, 192], [64, 600], [320, 600], [800, 100]], np.int32)
TOUCHES = np.array([True, False, False, False, False])


@pytest.fixture(scope="module")
def picture(svs):
    return np.asarray(openslide.OpenSlide(svs).read_region((700, 900), 0, SIZE).convert("RGB"))


@pytest.fixture(scope="module")
def decoders():
    with Decoder(GEOMETRY, threads=2) as with_cucim, Decoder(GEOMETRY, threads=0, without=("cucim",)) as without:
        yield with_cucim, without


def half_zero(data):
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


def all_zero(data):
    return bytes(len(data))


def one_bit(data):
    at = len(data) * 2 // 3
    return data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]


def all_but_the_end(data):
    return data[: len(data) * 19 // 20]


def swap_bytes(path, place, damage):
    at, count = place
    data = bytearray(path.read_bytes())
    data[at : at + count] = damage(bytes(data[at : at + count]))
    path.write_bytes(data)


def views(decoder, path):
    out = [np.full((len(CENTERS), *GEOMETRY.shape), 7, np.uint8) for _ in GEOMETRY.names]
    return decoder.cut_views(path, CENTERS, np.ones(len(CENTERS), np.float32), out), out


def check(decoders, sound, damaged):
    """The spots that touch the damage have a status and black views; the others are as in the sound file."""
    _, expected = views(decoders[0], sound)
    for decoder in decoders:
        for _ in range(2):  # what was found out about a tile is remembered
            statuses, found = views(decoder, damaged)
            assert statuses.tolist() == np.where(TOUCHES, RowStatus.DECODE_FAILED, RowStatus.OK).tolist()
            for have, want in zip(found, expected, strict=True):
                np.testing.assert_array_equal(have[~TOUCHES], want[~TOUCHES])
                assert not have[TOUCHES].any()
        with pytest.raises(UnreadableSlide, match=rf"{damaged.name}: .*damaged at x 256, y 128"):
            decoder.read(damaged, 256, 128, 10, 10)
        with pytest.raises(UnreadableSlide, match=damaged.name):
            decoder.describe(damaged)


@pytest.mark.parametrize(
    ("compression", "damage"),
    [
        ("JPEG", all_zero),
        ("JPEG", half_zero),
        ("Deflate", half_zero),
        ("Deflate", one_bit),
        ("Deflate, predictor", half_zero),
    ],
)
def test_a_damaged_tile_of_a_tiff_costs_the_spots_that_need_it(decoders, picture, tmp_path, compression, damage):
    sound, path = tmp_path / "sound.tif", tmp_path / "damaged.tif"
    for file in (sound, path):
        options = {**cells.CM, "photometric": "rgb", "tile": (128, 128), **cells.COMPRESSIONS[compression]}
        tifffile.imwrite(file, picture, **options)
    with tifffile.TiffFile(path) as tiff:
        place = tiff.pages[0].dataoffsets[DAMAGED + 1], tiff.pages[0].databytecounts[DAMAGED + 1]
    swap_bytes(path, place, damage)
    check(decoders, sound, path)


@pytest.mark.parametrize("compression", ["LZW", "LZW, predictor"])
def test_a_damaged_lzw_tile_is_noticed_by_both_libraries(decoders, picture, tmp_path, compression):
    path = tmp_path / "damaged.tif"
    options = {**cells.CM, "photometric": "rgb", "tile": (128, 128), **cells.COMPRESSIONS[compression]}
    tifffile.imwrite(path, picture, **options)
    with tifffile.TiffFile(path) as tiff:
        place = tiff.pages[0].dataoffsets[DAMAGED + 1], tiff.pages[0].databytecounts[DAMAGED + 1]
    swap_bytes(path, place, half_zero)
    for decoder in decoders:
        statuses, _ = views(decoder, path)
        assert statuses.tolist() == np.where(TOUCHES, RowStatus.DECODE_FAILED, RowStatus.OK).tolist()


@pytest.mark.parametrize("damage", [all_zero, half_zero])
def test_a_damaged_jpeg_2000_tile_of_an_svs_costs_the_spots_that_need_it(decoders, picture, tmp_path, damage):
    sound, path = tmp_path / "sound.svs", tmp_path / "damaged.svs"
    parts = [
        imagecodecs.jpeg2k_encode(part, level=0, codecformat="J2K", mct=False)
        for part in cells.parts_of(picture, {"tile": (128, 128)})
    ]
    for file in (sound, path):
        cells.write_encoded(file, picture, {"tile": (128, 128)}, parts, 33005, description=cells.APERIO)
    with tifffile.TiffFile(path) as tiff:
        place = tiff.pages[0].dataoffsets[DAMAGED + 1], tiff.pages[0].databytecounts[DAMAGED + 1]
    swap_bytes(path, place, damage)
    check(decoders, sound, path)


@pytest.mark.parametrize(("kind", "damage"), [("JPEG", half_zero), ("JPEG 2000", half_zero), ("JPEG 2000", all_zero)])
def test_a_damaged_frame_of_a_dicom_slide_costs_the_spots_that_need_it(decoders, picture, tmp_path, kind, damage):
    parts = tiles_of(picture, 128)
    if kind == "JPEG":
        syntax = "1.2.840.10008.1.2.4.50"
        frames = [imagecodecs.jpeg8_encode(part, level=90, outcolorspace="rgb") for part in parts]
    else:
        syntax = "1.2.840.10008.1.2.4.90"
        frames = [imagecodecs.jpeg2k_encode(part, level=0, codecformat="J2K", mct=False) for part in parts]
    paths = tmp_path / "sound" / "slide.dcm", tmp_path / "damaged" / "slide.dcm"
    for path in paths:
        write_dicom(path, SIZE, frames, tile=128, syntax=syntax, photometric="RGB")
    source = fuzz.dicom_source(kind, paths[1])
    swap_bytes(paths[1], source.pixels[DAMAGED + 1], damage)
    check(decoders, *paths)


@pytest.mark.parametrize(("suffix", "options"), [("jpg", {"quality": 90}), ("png", {})])
@pytest.mark.parametrize("damage", [half_zero, all_but_the_end])
def test_a_damaged_plain_image_is_refused(decoders, picture, tmp_path, suffix, options, damage):
    from PIL import Image

    path = tmp_path / f"damaged.{suffix}"
    Image.fromarray(picture).save(path, **options)
    path.write_bytes(damage(path.read_bytes()))
    for decoder in decoders:
        with pytest.raises(UnreadableSlide, match=rf"damaged\.{suffix}: the image cannot be decoded"):
            decoder.read(path, 0, 0, 10, 10)


@pytest.mark.parametrize("compression", ["none", "LZW", "JPEG", "Deflate"])
def test_a_damaged_strip_of_a_tiff_is_refused(decoders, picture, tmp_path, compression):
    path = tmp_path / "damaged.tif"
    tifffile.imwrite(path, picture, rowsperstrip=64, photometric="rgb", **cells.CM, **cells.COMPRESSIONS[compression])
    with tifffile.TiffFile(path, mode="r+") as tiff:
        page = tiff.pages[0]
        place, counts = (page.dataoffsets[2], page.databytecounts[2]), list(page.databytecounts)
        counts[2] //= 2
        if compression == "none":
            page.tags["StripByteCounts"].overwrite(counts)
    if compression != "none":
        swap_bytes(path, place, half_zero)
    with pytest.raises(UnreadableSlide, match=r"damaged\.tif: "):
        decoders[0].read(path, 0, 0, 10, 10)


def test_files_damaged_by_chance_are_served_as_what_they_hold_or_refused(svs, dicom):
    counts, faults = fuzz.run(svs, dicom / "level-0-frames-0-30.dcm", EACH_ONCE, seed=7)
    assert not faults, "\n".join(faults)
    assert {name: sum(counter.values()) for name, counter in counts.items()} == dict.fromkeys(counts, 1)
    assert len(counts) == EACH_ONCE
    # It looks at files of both kinds: some that must be refused, some that are served.
    words = {word for counter in counts.values() for word in counter}
    assert {"refused", "served as the damaged file says"} <= words
