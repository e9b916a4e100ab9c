"""Which reader serves which file, the pixels and µm/px they give, and what bad files become."""

import importlib.util
import io
import shutil
import subprocess
import sys

import numpy as np
import psutil
import pytest
import tifffile
from m2ost_contract import RowStatus, ViewGeometry
from m2ost_preprocess.decoder import Decoder
from m2ost_preprocess.errors import SlideNotFound, UnreadableSlide
from m2ost_preprocess.readers import Resolution, base, open_slide
from m2ost_preprocess.readers import image as image_reader
from m2ost_preprocess.readers.cucim_first import check_agreement
from PIL import Image, TiffImagePlugin


@pytest.mark.parametrize(
    ("source", "vendor", "reader", "size", "resolution"),
    [
        ("svs", "aperio", "cucim", (2220, 2967), Resolution(0.499, "aperio.MPP")),
        ("dicom", "dicom", "openslide", (2220, 2967), Resolution(0.499, "openslide.mpp")),
        ("pyramid", "generic-tiff", "cucim", (9274, 9911), Resolution(0.688, "tiff.resolution")),
        ("section", "jpeg", "image", (9274, 9911), None),
    ],
)
def test_the_content_decides_which_reader_serves(request, source, vendor, reader, size, resolution):
    slide = open_slide(request.getfixturevalue(source))
    assert (slide.vendor, slide.name, slide.size, slide.resolution) == (vendor, reader, size, resolution)


def test_a_slide_under_a_foreign_name_is_still_what_it_is(svs, tmp_path):
    renamed = tmp_path / "slide.jpg"
    shutil.copy(svs, renamed)
    slide = open_slide(renamed)
    assert (slide.vendor, slide.name) == ("aperio", "openslide")
    assert "cuCIM opens names that end in .svs, .tif, .tiff alone" in slide.reason
    np.testing.assert_array_equal(slide.read(700, 900, 300, 200), open_slide(svs).read(700, 900, 300, 200))


@pytest.mark.parametrize("source", ["svs", "pyramid"])
def test_cucim_and_openslide_give_the_same_level_0_pixels(request, source):
    path = request.getfixturevalue(source)
    cucim, openslide = open_slide(path, "cucim"), open_slide(path, "openslide")
    width, height = cucim.size
    for left, top in ((-100, -50), (width // 2 - 511, height // 2 + 3), (width - 900, height - 800)):
        expected = openslide.read_padded(left, top, 1023, 1001)
        np.testing.assert_array_equal(cucim.read_padded(left, top, 1023, 1001), expected)


def test_dicom_frames_mislabelled_as_rgb_come_out_in_the_slides_colours(svs, dicom):
    # The DICOM pyramid was made from this SVS with JPEG anew: pixels differ by compression, mean colours do not.
    reference, converted = open_slide(svs), open_slide(dicom)
    assert any("YCbCr" in note for note in converted.notes)
    for left, top in ((1000, 1000), (700, 2300), (100, 100)):
        expected, found = (s.read(left, top, 400, 400).mean(axis=(0, 1)) for s in (reference, converted))
        np.testing.assert_allclose(found, expected, atol=2)


def test_the_dicom_correction_is_the_jpeg_decoders_own(dicom):
    # Pillow decodes the first frame with its colour conversion; the reader must give exactly that.
    instance = sorted(dicom.glob("*.dcm"))[0]
    data = instance.read_bytes()
    frame = data[data.index(b"\xff\xd8\xff") :]
    with Image.open(io.BytesIO(frame), formats=["JPEG"]) as image:
        expected = np.asarray(image.convert("RGB"))
    height, width = expected.shape[:2]
    np.testing.assert_array_equal(open_slide(instance).read(0, 0, width, height), expected)


def test_plain_tiff_carries_its_resolution_only_in_physical_units(tmp_path):
    pixels = Image.new("RGB", (64, 48), (200, 100, 150))
    for name, unit, density, expected in (
        ("scanner", 3, 20000.0, Resolution(0.5, "tiff.resolution")),
        ("unitless", 1, 20000.0, None),
        ("screen", 2, 72.0, None),
    ):
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[TiffImagePlugin.RESOLUTION_UNIT] = unit
        tags[TiffImagePlugin.X_RESOLUTION] = tags[TiffImagePlugin.Y_RESOLUTION] = density
        pixels.save(tmp_path / f"{name}.tif", tiffinfo=tags)
        slide = open_slide(tmp_path / f"{name}.tif")
        assert (slide.name, slide.resolution) == ("image", expected)


@pytest.mark.parametrize(
    ("unit", "density", "expected"),
    [("centimeter", 10_000, 1.0), ("inch", 25_400, 1.0), ("centimeter", 20_000, 0.5), ("none", 10_000, None)],
)
def test_readers_agree_on_the_resolution_of_a_tiled_tiff(tmp_path, unit, density, expected):
    path = tmp_path / "tiled.tif"
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib"}
    pixels = np.zeros((512, 512, 3), np.uint8)
    tifffile.imwrite(path, pixels, resolution=(density, density), resolutionunit=unit, **options)
    found = [open_slide(path, reader).resolution for reader in ("cucim", "openslide")]
    assert [resolution and resolution.mpp for resolution in found] == [expected] * 2


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("RGB", (180, 90, 140)),
        ("RGBA", (180, 90, 140)),
        ("CMYK", (180, 90, 140)),
        ("P", (180, 90, 140)),
        ("L", (123, 123, 123)),
        ("LA", (123, 123, 123)),
    ],
)
def test_plain_images_of_every_mode_become_rgb_of_the_same_colour(tmp_path, mode, expected):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image = Image.new("RGB", (32, 20), (180, 90, 140))
    image.convert(mode, palette=Image.Palette.ADAPTIVE).save(path)
    with Image.open(path) as saved:
        assert saved.mode == mode
    pixels = open_slide(path).read(0, 0, 32, 20)
    np.testing.assert_array_equal(pixels, np.full((20, 32, 3), expected, np.uint8))


def test_sixteen_bit_images_are_refused_not_squeezed(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((20, 20), 40000, np.uint16)).save(path)
    with pytest.raises(UnreadableSlide, match=r"samples of 16 bits.*vips linear 'deep\.png'"):
        open_slide(path)


def test_a_plain_image_over_the_limit_is_refused_before_decoding(section, monkeypatch):
    monkeypatch.setattr(image_reader, "MAX_IMAGE_PX", 10_000_000)
    with pytest.raises(UnreadableSlide, match="tiled TIFF"):
        open_slide(section)


def test_bad_files_are_named_with_what_to_do(truncated_svs, text_svs, tmp_path):
    for path in (truncated_svs, text_svs):
        with pytest.raises(UnreadableSlide, match=f"{path.name}: .*(truncated|damaged|cannot)"):
            open_slide(path)
    with pytest.raises(SlideNotFound, match=r"absent\.svs: no such file"):
        open_slide(tmp_path / "absent.svs")
    with pytest.raises(SlideNotFound, match="without DICOM files"):
        open_slide(tmp_path)
    empty = tmp_path / "empty.svs"
    empty.touch()
    with pytest.raises(UnreadableSlide):
        open_slide(empty)


def test_truncated_jpeg_is_refused_not_filled_with_grey(section, tmp_path):
    path = tmp_path / "half.jpg"
    data = section.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UnreadableSlide, match=r"half\.jpg"):
        open_slide(path)


def test_an_explicit_reader_is_used_as_it_is(dicom, svs):
    assert open_slide(svs, "openslide").name == "openslide"
    with pytest.raises(UnreadableSlide):
        open_slide(dicom, "cucim")
    with pytest.raises(ValueError, match="reader must be one of"):
        open_slide(svs, "vips")


def test_most_of_a_slide_is_not_a_plain_tiff(svs, tmp_path):
    path = tmp_path / "most.svs"
    data = svs.read_bytes()
    path.write_bytes(data[: len(data) * 9 // 10])
    with pytest.raises(UnreadableSlide):
        open_slide(path)


def damaged_tile(svs, tmp_path, tiles=(0,)):
    """The slide with the JPEG data of its first tile, or of others, overwritten."""
    data = bytearray(svs.read_bytes())
    with tifffile.TiffFile(svs) as tiff:
        for tile in tiles:
            offset, count = tiff.pages[0].dataoffsets[tile], tiff.pages[0].databytecounts[tile]
            data[offset : offset + count] = bytes(count)
    path = tmp_path / "damaged.svs"
    path.write_bytes(data)
    return path


def test_openslide_recovers_from_a_damaged_tile(svs, tmp_path):
    reader = open_slide(damaged_tile(svs, tmp_path), "openslide")
    with pytest.raises(UnreadableSlide, match=r"damaged at x 0, y 0 of 2220×2967 px: .*JPEG"):
        reader.read(0, 0, 240, 240)
    np.testing.assert_array_equal(reader.read(1000, 1000, 50, 50), open_slide(svs).read(1000, 1000, 50, 50))


def test_what_is_printed_is_heard_by_all_who_read_and_then_passed_on():
    script = """
import os
from m2ost_preprocess.readers import native_errors
assert (native_errors.mark(), native_errors.since(0)) == (0, "")
native_errors.install()
first = native_errors.mark()
os.write(1, b"one")
second = native_errors.mark()
os.write(2, b"two")
assert (native_errors.since(first), native_errors.since(second), native_errors.since(6)) == ("onetwo", "two", "")
native_errors.pass_on()
assert native_errors.mark() == 0
native_errors.pass_on()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "onetwo")


def test_nothing_is_lost_of_what_threads_print_at_once():
    script = """
import os, threading
from m2ost_preprocess.readers import native_errors
native_errors.install()
threads = [threading.Thread(target=lambda fd=fd: [os.write(fd, b"line") for _ in range(20000)]) for fd in (1, 2, 1, 2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert native_errors.since(0) == "line" * 80000, len(native_errors.since(0))
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("reader", ["cucim", "openslide"])
def test_a_thumbnail_is_the_same_in_one_piece_or_in_strips(svs, reader, monkeypatch):
    slide = open_slide(svs, reader)
    whole = slide.thumbnail(500)
    monkeypatch.setattr(base, "STRIP_PIXELS", 2220 * 100)
    np.testing.assert_array_equal(slide.thumbnail(500), whole)


def test_without_openslide_images_are_read_and_slides_refused_by_name(svs, tmp_path, monkeypatch):
    image = tmp_path / "crop.png"
    Image.fromarray(open_slide(svs).read(0, 0, 300, 200)).save(image)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openslide" else find(name))
    assert open_slide(image).size == (300, 200)
    with pytest.raises(UnreadableSlide, match=r"CMU-1-Small-Region\.svs: OpenSlide.*openslide-python openslide-bin"):
        open_slide(svs)


def test_cucim_reads_only_what_openslide_makes_the_same_of(svs):
    def altered(change):
        reader = open_slide(svs, "openslide")
        read = reader.read_at
        reader.read_at = lambda *where: change(read(*where))
        return reader

    cucim = open_slide(svs, "cucim")
    check_agreement(cucim, open_slide(svs, "openslide"))
    with pytest.raises(UnreadableSlide, match=r"Region\.svs: cuCIM's pixels differ .* by up to 1 grey levels"):
        check_agreement(cucim, altered(lambda pixels: np.where(pixels == pixels[0, 0, 0], pixels ^ 1, pixels)))
    shorter = open_slide(svs, "openslide")
    shorter._levels = [(2220, 2966)]
    with pytest.raises(UnreadableSlide, match="finds levels of"):
        check_agreement(cucim, shorter)


def test_once_cucim_has_failed_on_a_file_it_is_not_asked_again(svs, tmp_path):
    with Decoder(threads=0) as decoder:
        damaged = damaged_tile(svs, tmp_path)
        assert decoder.read(damaged, 1000, 1000, 50, 50).shape == (50, 50, 3)
        with pytest.raises(UnreadableSlide, match="damaged at x 0, y 0"):
            decoder.read(damaged, 0, 0, 10, 10)
        found = decoder.read(damaged, 1000, 1000, 50, 50)
    np.testing.assert_array_equal(found, open_slide(svs).read(1000, 1000, 50, 50))
    reader = open_slide(svs)
    assert reader.failed_readers == ()
    reader._cucim.read_at = None  # whoever asks it ends in a TypeError
    reader._go_on_with_other(UnreadableSlide("a", "it failed"))
    assert (reader.name, reader.failed_readers) == ("openslide", ("cucim",))
    np.testing.assert_array_equal(reader.read(1000, 1000, 50, 50), found)


def test_a_damaged_slide_that_is_asked_for_again_and_again_takes_no_memory(svs, tmp_path):
    pixels = open_slide(svs).read(0, 0, 1536, 1536)
    path = tmp_path / "damaged.tif"
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", compression="zlib")
    with tifffile.TiffFile(path) as tiff, path.open("r+b") as file:
        for offset, count in list(zip(tiff.pages[0].dataoffsets, tiff.pages[0].databytecounts, strict=True))[::2]:
            file.seek(offset + count // 2)
            file.write(bytes(count - count // 2))
    centers, scales = np.full((8, 2), 700, np.int32), np.ones(8, np.float32)
    views = [np.empty((8, 64, 64, 3), np.uint8) for _ in range(2)]
    with Decoder(ViewGeometry(64, (1, 2)), threads=0) as decoder:

        def ask(times):
            for _ in range(times):
                assert set(decoder.cut_views(path, centers, scales, views)) == {RowStatus.DECODE_FAILED}
            return psutil.Process(decoder.pid).memory_info().rss

        before = ask(200)
        # cuCIM alone would keep some 10 MiB of each request.
        assert ask(800) - before < 32 << 20
