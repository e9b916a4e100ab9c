"""A decoder process: the same bytes as in-process, and a crash costs only the slide that caused it."""

import contextlib
import gc
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import openslide
import psutil
import pytest
import tifffile
from m2ost_contract import RowStatus, ViewGeometry
from m2ost_preprocess.decoder import Decoder, decoded_slide, worker
from m2ost_preprocess.decoder.control import Control, new_control
from m2ost_preprocess.decoder.protocol import Describe
from m2ost_preprocess.errors import SlideNotFound, SlideTimeout, SpotError, UnknownResolution, UnreadableSlide
from m2ost_preprocess.readers import open_slide
from m2ost_preprocess.tiling.threads import Helpers
from m2ost_preprocess.tiling.tiles import TileCache, TilingCounts
from m2ost_preprocess.tiling.views import cut_views

from tests.compat import evil
from tests.preprocess.test_readers import damaged_tile

GEOMETRY = ViewGeometry()
CENTERS = np.array([[800, 900], [1500, 2000], [5, 5]], np.int32)
SCALES = np.ones(3, np.float32)


@pytest.fixture
def decoder():
    with Decoder(GEOMETRY) as decoder:
        yield decoder


def buffers(rows):
    return [np.zeros((rows, *GEOMETRY.shape), np.uint8) for _ in GEOMETRY.names]


def test_the_child_gives_the_same_views(decoder, svs):
    expected, found, counts = buffers(3), buffers(5), TilingCounts()
    cut_views(open_slide(svs), CENTERS, SCALES, GEOMETRY, expected)
    statuses = decoder.cut_views(svs, CENTERS, SCALES, found, rows=np.array([4, 0, 2]), counts=counts)
    assert statuses.tolist() == [0, 0, 0]
    assert counts.spots == 3
    for want, have in zip(expected, found, strict=True):
        np.testing.assert_array_equal(have[[4, 0, 2]], want)
        assert not have[[1, 3]].any()


def test_the_child_gives_the_same_pixels_of_any_rectangle(svs):
    reader = open_slide(svs)
    # A buffer of 2 MiB: the last rectangle takes several jobs.
    with Decoder(ViewGeometry(2, (1,))) as decoder:
        assert decoder._jobs.buffer_bytes == 2 << 20
        for left, top, width, height in [(0, 0, 17, 61), (2219, 2966, 1, 1), (100, 200, 2000, 900)]:
            found = decoder.read(svs, left, top, width, height)
            np.testing.assert_array_equal(found, reader.read(left, top, width, height))
        with pytest.raises(ValueError, match="does not fit"):
            decoder.read(svs, 0, 0, 700_000, 1)


def test_a_region_that_cannot_be_decoded_is_an_error_that_names_the_slide(truncated_svs, svs, tmp_path):
    with Decoder() as decoder:
        with pytest.raises(UnreadableSlide, match=truncated_svs.name):
            decoder.read(truncated_svs, 0, 0, 10, 10)
        with pytest.raises(SlideNotFound):
            decoder.read(tmp_path / "absent.svs", 0, 0, 10, 10)
        assert decoder.read(svs, 0, 0, 10, 10).shape == (10, 10, 3)


@pytest.mark.parametrize(
    ("source", "facts"),
    [
        ("svs", ((2220, 2967), 0.499, "cucim", (240, 240))),
        ("pyramid", ((9274, 9911), 0.688, "cucim", (256, 256))),
        ("section", ((9274, 9911), None, "image", None)),
    ],
)
def test_what_is_known_of_an_opened_slide(source, facts, request):
    with decoded_slide(request.getfixturevalue(source), threads=0) as slide:
        assert (slide.size, slide.mpp, slide.reader, slide.tile) == facts


def test_a_slide_behind_a_decoder_has_the_pixels_and_views_of_its_reader(svs, monkeypatch):
    reader, few = open_slide(svs), buffers(3)
    cut_views(reader, CENTERS, SCALES / 2, GEOMETRY, few)
    monkeypatch.setattr("m2ost_preprocess.decoder.slide.MAX_ROWS", 2)  # the last spot takes a second job
    with decoded_slide(svs) as slide:
        np.testing.assert_array_equal(slide.read(700, 900, 300, 200), reader.read(700, 900, 300, 200))
        np.testing.assert_array_equal(slide.thumbnail(300), reader.thumbnail(300))
        for have, want in zip(slide.views(CENTERS, 0.5), few, strict=True):
            np.testing.assert_array_equal(have, want)
        with pytest.raises(SpotError, match=r"Region\.svs: spot at x 2220, y 7: the spot's centre lies outside"):
            slide.views(np.array([[5, 5], [9, 9], [2220, 7]], np.int32))


def test_a_setting_of_the_child_alone(svs):
    def decoded_twice(decoder):
        counts = TilingCounts()
        for _ in range(2):
            decoder.cut_views(svs, CENTERS, SCALES, buffers(3), counts=counts)
        return counts.decoded_tiles

    with Decoder() as keeping, Decoder(environment={"M2OST_TILE_CACHE_MIB": "0"}) as forgetting:
        assert decoded_twice(forgetting) == 2 * decoded_twice(keeping) > 0


def test_describe_a_real_slide(decoder, svs):
    info = decoder.describe(svs, pitch_um=100)
    assert (info.size, info.mpp, info.mpp_source, info.reader) == ((2220, 2967), 0.499, "aperio.MPP", "cucim")
    assert len(info.names) == len(info.centers) > 30
    assert info.pitch_px == pytest.approx(100 / 0.499)
    assert max(info.thumbnail.shape[:2]) == 1024


def test_a_slide_without_resolution_needs_it_only_for_a_physical_pitch(decoder, section):
    assert decoder.describe(section).mpp is None
    with pytest.raises(UnknownResolution, match="--mpp"):
        decoder.describe(section, pitch_um=200)
    info = decoder.describe(section, pitch_um=200, mpp=0.688)
    assert info.mpp_source == "given"
    assert info.pitch_px == pytest.approx(200 / 0.688)


def test_errors_cross_the_pipe_whole(decoder, truncated_svs, text_svs, svs, tmp_path):
    for bad in (truncated_svs, text_svs):
        with pytest.raises(UnreadableSlide) as error:
            decoder.describe(bad)
        assert error.value.slide == bad.name
        with pytest.raises(UnreadableSlide):
            decoder.cut_views(bad, CENTERS, SCALES, buffers(3))
    with pytest.raises(SlideNotFound):
        decoder.describe(tmp_path / "absent.svs")
    assert decoder.describe(svs).reader == "cucim"


def once_sent(decoder, act):
    """Do something when the child has its next job and the parent begins to wait for the answer."""
    pipe = decoder._jobs.child._pipe
    poll = pipe.poll
    pipe.poll = lambda timeout_s: (act(), poll(timeout_s))[1]


def end_by(decoder, number):
    """Have the child die by a signal while it has its next job."""
    first = decoder.pid
    os.kill(first, signal.SIGSTOP)
    once_sent(decoder, lambda: (os.kill(first, number), os.kill(first, signal.SIGCONT)))
    return first


def test_a_slide_on_which_a_reader_crashes_is_read_without_cucim(decoder, svs):
    expected, found = buffers(3), buffers(3)
    decoder.cut_views(svs, CENTERS, SCALES, expected)
    first = end_by(decoder, signal.SIGSEGV)
    assert decoder.cut_views(svs, CENTERS, SCALES, found).tolist() == [0, 0, 0]
    assert decoder.pid != first
    for have, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(have, want)
    info = decoder.describe(svs)
    assert (info.reader, info.reader_reason) == ("openslide", "cuCIM failed on it before; OpenSlide reads aperio")
    end_by(decoder, signal.SIGSEGV)
    with pytest.raises(UnreadableSlide, match=r"CMU-1-Small-Region\.svs: its reader crashed \(SIGSEGV\)"):
        decoder.cut_views(svs, CENTERS, SCALES, found)
    assert decoder.cut_views(svs, CENTERS, SCALES, found).tolist() == [0, 0, 0]


def test_a_reader_that_is_killed_does_not_tell_of_the_file(decoder, svs):
    decoder.describe(svs)
    first = end_by(decoder, signal.SIGKILL)
    with pytest.raises(UnreadableSlide, match=r"its reader was lost \(killed, by somebody or for want of memory\)"):
        decoder.cut_views(svs, CENTERS, SCALES, buffers(3))
    assert decoder.describe(svs).reader == "cucim"
    assert decoder.pid != first


@pytest.mark.parametrize("reader", ["cucim", "openslide"])
def test_the_reader_that_is_asked_for_reads(svs, reader, monkeypatch):
    monkeypatch.setenv("M2OST_READER", reader)
    with Decoder() as decoder:
        info = decoder.describe(svs)
    assert (info.reader, info.reader_reason) == (reader, "asked for")
    with Decoder(reader="auto") as decoder:
        assert decoder.describe(svs).reader == "cucim"
    with pytest.raises(ValueError, match="must be one of auto, cucim, openslide, image, not 'vips'"):
        Decoder(reader="vips")


def test_a_reader_that_hangs_is_stopped(svs):
    with Decoder(GEOMETRY, timeout_s=0.4, describe_timeout_s=0.5) as decoder:
        decoder.start()
        os.kill(decoder.pid, signal.SIGSTOP)
        with pytest.raises(SlideTimeout, match=r"did not answer within 0\.5 s"):
            decoder.describe(svs)
        decoder.start()
        os.kill(decoder.pid, signal.SIGSTOP)
        with pytest.raises(SlideTimeout, match=r"did not answer within 0\.4 s"):
            decoder.cut_views(svs, CENTERS, SCALES, buffers(3))


class Interrupted(BaseException):
    """Stands for KeyboardInterrupt, which would end the test run where it is not caught."""


def test_after_an_interrupt_the_next_job_gets_its_own_answer(decoder, svs, pyramid):
    def interrupt(number, frame):
        raise Interrupted

    decoder.describe(svs)
    first = decoder.pid
    os.kill(first, signal.SIGSTOP)  # the job is under way when the interrupt comes
    before = signal.signal(signal.SIGALRM, interrupt)
    once_sent(decoder, lambda: signal.raise_signal(signal.SIGALRM))
    try:
        with pytest.raises(Interrupted):
            decoder.describe(svs)
    finally:
        signal.signal(signal.SIGALRM, before)
    with contextlib.suppress(ProcessLookupError):
        os.kill(first, signal.SIGCONT)
    assert decoder.describe(pyramid).size == (9274, 9911)
    assert decoder.pid != first


def test_a_child_that_cannot_be_killed_holds_nobody_up(svs):
    class Undying:
        pid, kills = 0, 0

        def poll(self):
            return None

        def kill(self):
            self.kills += 1

        def wait(self, timeout):
            raise subprocess.TimeoutExpired("decoder", timeout)

    decoder = Decoder(GEOMETRY)
    decoder._jobs.child._process = undying = Undying()
    assert decoder._jobs.child.stop() is None
    assert undying.kills == 1
    with decoder:
        assert decoder.describe(svs).reader == "cucim"


def test_the_child_goes_when_its_parent_dies_during_a_decode(tmp_path):
    slide = evil.blank_tiff(tmp_path / "takes minutes.tif", 1 << 16)
    code = "import sys; from pathlib import Path; from m2ost_preprocess.decoder import Decoder; " + (
        "decoder = Decoder(); decoder.start(); print(decoder.pid, flush=True); decoder.describe(Path(sys.argv[1]))"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(slide)], stdout=subprocess.PIPE, text=True) as parent:
        try:
            child = psutil.Process(int(parent.stdout.readline()))
            while not any(file.path == str(slide) for file in child.open_files()):
                time.sleep(0.05)
            time.sleep(0.2)
            assert child.is_running()
        finally:
            parent.kill()
    child.wait(10)


def test_a_slide_replaced_on_disk_is_opened_anew(decoder, svs, tmp_path):
    from PIL import Image

    path = tmp_path / "slide.png"
    for colour in (10, 200):
        Image.new("RGB", (64, 64), (colour, colour, colour)).save(path)
        out = buffers(1)
        decoder.cut_views(path, np.array([[32, 32]], np.int32), SCALES[:1], out)
        assert out[0][0, 112, 112].tolist() == [colour] * 3
        time.sleep(0.02)


def test_a_slide_is_opened_anew_once_any_of_its_files_has_changed(dicom, tmp_path):
    slide = shutil.copytree(dicom, tmp_path / "slide")
    slides = worker.OpenSlides(TileCache(), Helpers(), Control(new_control()))
    job = Describe(slide=slide)
    first = slides.get(job)
    assert slides.get(job) is first
    os.utime(sorted(slide.iterdir())[-1], ns=(0, 0))
    assert slides.get(job) is not first


def test_a_slide_is_recognised_once(svs, monkeypatch):
    detect, asked = openslide.OpenSlide.detect_format, []
    monkeypatch.setattr(openslide.OpenSlide, "detect_format", lambda path: asked.append(path) or detect(path))
    assert (
        worker.describe(worker.OpenSlides(TileCache(), Helpers(), Control(new_control())), Describe(slide=svs)).vendor
        == "aperio"
    )
    assert asked == [str(svs)]


def test_the_child_goes_when_its_parent_closes(svs):
    decoder = Decoder(GEOMETRY)
    decoder.start()
    child = psutil.Process(decoder.pid)
    decoder.close()
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_damaged_tile_is_noticed_although_cucim_does_not_raise(decoder, svs, tmp_path):
    damaged = damaged_tile(svs, tmp_path)
    for _ in range(2):
        statuses = decoder.cut_views(damaged, np.array([[100, 100], [2100, 2900]], np.int32), SCALES[:2], buffers(2))
        assert statuses.tolist() == [RowStatus.DECODE_FAILED, RowStatus.OK]
    with pytest.raises(UnreadableSlide, match=r"damaged\.svs: damaged at x 0, y 0 of"):
        decoder.describe(damaged)


def test_a_damaged_tile_costs_the_same_spots_in_any_batch(decoder, svs, tmp_path):
    damaged = damaged_tile(svs, tmp_path)
    centers = np.random.default_rng(2).integers(0, 1200, (32, 2)).astype(np.int32)
    scales = np.ones(32, np.float32)
    together = decoder.cut_views(damaged, centers, scales, buffers(32))
    alone = [decoder.cut_views(damaged, centers[[i]], scales[[i]], buffers(1))[0] for i in range(32)]
    touches = (centers - 448 < 240).all(axis=1)
    assert 4 < touches.sum() < 28
    expected = np.where(touches, RowStatus.DECODE_FAILED, RowStatus.OK)
    assert together.tolist() == alone == expected.tolist()


def test_tiles_that_threads_find_damaged_at_once_are_never_taken_for_pixels(svs, tmp_path):
    columns = -(-open_slide(svs).size[0] // 240)
    damaged = damaged_tile(svs, tmp_path, [row * columns for row in range(8)])
    centers = np.array([(x, y) for x in (240 + 447, 240 + 448, 1400) for y in range(100, 1900, 300)], np.int32)
    decoder = Decoder(threads=3)
    for _ in range(3):
        statuses = decoder.cut_views(damaged, centers, np.ones(18, np.float32), buffers(18))
        assert statuses.tolist() == [RowStatus.DECODE_FAILED] * 6 + [RowStatus.OK] * 12
    decoder.close()


def test_what_one_slides_decoder_prints_is_not_held_against_the_next(decoder, svs, tmp_path):
    bad = tmp_path / "bad.tif"
    noise = np.random.default_rng(0).integers(0, 255, (512, 512, 3), np.uint8)
    tifffile.imwrite(bad, noise, photometric="rgb", compression="zlib")
    with tifffile.TiffFile(bad) as tiff:
        offset, count = tiff.pages[0].dataoffsets[0], tiff.pages[0].databytecounts[0]
    data = bytearray(bad.read_bytes())
    data[offset + 10 : offset + count] = b"\xff" * (count - 10)
    bad.write_bytes(data)
    for _ in range(2):
        with pytest.raises(UnreadableSlide, match=r"bad\.tif"):
            decoder.cut_views(bad, CENTERS, SCALES, buffers(3))
        assert decoder.cut_views(svs, CENTERS, SCALES, buffers(3)).tolist() == [0, 0, 0]


def test_more_spots_than_the_buffer_holds(decoder, svs):
    with pytest.raises(ValueError, match="at most 256"):
        decoder.cut_views(svs, np.zeros((257, 2), np.int32), np.ones(257, np.float32), [])


def test_a_closed_decoder_gives_its_memory_back():
    gc.collect()  # what other tests left is not to go in between
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        with Decoder(GEOMETRY) as decoder:
            decoder.start()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_closed_decoder_says_so(svs):
    decoder = Decoder(GEOMETRY)
    held = np.frombuffer(decoder._jobs.buffer, np.uint8, 1)
    decoder.close()
    decoder.close()
    for use in (decoder.start, lambda: decoder.describe(svs), lambda: decoder.cut_views(svs, CENTERS, SCALES, [])):
        with pytest.raises(RuntimeError, match="decoder is closed"):
            use()
    assert held.tolist() == [0]
