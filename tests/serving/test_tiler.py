"""The GPU's tiler, run with NumPy: the same views as Pillow's, from regions that a child process streams."""

import mmap
import multiprocessing
import os
import signal
import sys
import threading
import types

import numpy as np
import pytest
from m2ost_contract import RowStatus, ViewGeometry
from m2ost_preprocess.decoder import Decoder, Decoding, regions
from m2ost_preprocess.decoder.control import Control, new_control
from m2ost_preprocess.decoder.gpu import choose_decoding, decide, read_padded_on_gpu
from m2ost_preprocess.decoder.protocol import Acknowledged, GpuSlots, ReadRegions, RegionsRead
from m2ost_preprocess.errors import SlideNotFound, SlideTimeout, UnreadableSlide, UnsupportedRequest
from m2ost_preprocess.readers import open_slide
from m2ost_preprocess.tiling.spans import Spans
from m2ost_preprocess.tiling.tiles import CachedReader, TileCache, TilingCounts
from m2ost_preprocess.tiling.views import Region
from m2ost_serving.devices import CudaDevice, DeviceUnavailable, HostDevice
from m2ost_serving.tiler import ArrayTiler, PillowTiler, _Cutter, _Slots, make_tiler

from tests.preprocess.test_readers import damaged_tile

GEOMETRY = ViewGeometry()
ONE_SPOT = np.array([[800, 900]], np.int32), np.ones(1, np.float32)


class GpuLike(np.ndarray):
    """An array that, like CuPy's, never mixes with NumPy's: what is not brought over on purpose is an error."""

    @staticmethod
    def check(*operands):
        for operand in operands:
            if isinstance(operand, tuple):
                GpuLike.check(*operand)
            elif isinstance(operand, np.ndarray) and not isinstance(operand, GpuLike):
                raise TypeError("a NumPy array meets one of the GPU")

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **options):
        self.check(*inputs, *out)
        plain = [i.view(np.ndarray) if isinstance(i, GpuLike) else i for i in inputs]
        if out:
            options["out"] = tuple(o.view(np.ndarray) for o in out)
        return np.asarray(getattr(ufunc, method)(*plain, **options)).view(GpuLike)

    def __getitem__(self, index):
        self.check(index)
        return super().__getitem__(index)

    def __setitem__(self, index, value):
        self.check(index, value)
        super().__setitem__(index, value)


def on_gpu(function):
    return lambda *args, **options: np.asarray(function(*args, **options)).view(GpuLike)


def take(array, indices, axis):
    GpuLike.check(array, indices)
    return np.take(array, indices, axis=axis).view(GpuLike)


class GpuLikeArrays(HostDevice):
    """NumPy's arithmetic behind CuPy's rules; only what the tiler needs of the module is there."""

    xp = types.SimpleNamespace(**{name: on_gpu(getattr(np, name)) for name in ("empty", "zeros", "asarray")}, take=take)

    def upload(self, target, pixels):
        assert target.flags.c_contiguous
        assert pixels.flags.c_contiguous
        target[...] = pixels.view(GpuLike)


@pytest.fixture(scope="module")
def pillow():
    tiler = PillowTiler(GEOMETRY, threads=0)
    yield tiler
    tiler.close()


@pytest.fixture(scope="module")
def decodings():
    return []


@pytest.fixture(scope="module")
def tiler(decodings):
    tiler = ArrayTiler(GEOMETRY, GpuLikeArrays(), on_decoding=lambda *told: decodings.append(told))
    yield tiler
    tiler.close()


def cut(tiler, path, centers, scales, n_buffers=None, rows=slice(None)):
    counts = TilingCounts()
    out = tiler.buffers(n_buffers or len(centers))
    statuses = tiler.cut_views(path, centers, scales, out, rows, counts)
    return [np.asarray(view) for view in out], statuses.tolist(), counts


def assert_same(found, expected):
    for have, want in zip(found[0], expected[0], strict=True):
        np.testing.assert_array_equal(have, want)
    assert found[1:] == expected[1:]


@pytest.mark.parametrize("slide", ["svs", "dicom", "pyramid"])
def test_views_equal_pillows_on_real_slides(tiler, pillow, slide, request):
    path = request.getfixturevalue(slide)
    width, height = open_slide(path).size
    random = np.random.default_rng(5)
    inside = random.integers((width // 3, height // 3), (width // 3 + 900, height // 3 + 900), (5, 2))
    corners = [(0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1)]
    outside = [(-1, 7), (width, 9)]
    centers = np.array([*inside, *corners, *outside], np.int32)
    scales = np.ones(len(centers), np.float32)
    scales[[1, 5]], scales[2] = 0.37, np.nan
    found, expected = cut(tiler, path, centers, scales), cut(pillow, path, centers, scales)
    assert_same(found, expected)
    assert sorted(set(found[1])) == [RowStatus.OK, RowStatus.OUTSIDE_SLIDE, RowStatus.BAD_SCALE]


def test_a_damaged_tile_costs_the_same_rows(tiler, pillow, svs, tmp_path):
    damaged = damaged_tile(svs, tmp_path)
    centers = np.random.default_rng(2).integers(0, 1200, (12, 2)).astype(np.int32)
    scales = np.ones(len(centers), np.float32)
    alone = ArrayTiler(GEOMETRY, GpuLikeArrays(), threads=0)
    found, expected = cut(alone, damaged, centers, scales), cut(pillow, damaged, centers, scales)
    alone.close()
    assert_same(found, expected)
    assert {RowStatus.OK, RowStatus.DECODE_FAILED} == set(found[1])
    # With threads the counts depend on which of them meets the damage first.
    assert_same(cut(tiler, damaged, centers, scales)[:2], expected[:2])


def test_lower_levels_are_for_the_tiler_that_has_them(tiler, pillow, pyramid):
    out, counts = pillow.buffers(1), TilingCounts()
    assert pillow.cut_views(pyramid, *ONE_SPOT, out, slice(None), counts, pyramid=True).tolist() == [RowStatus.OK]
    assert not np.array_equal(out[2], cut(pillow, pyramid, *ONE_SPOT)[0][2])
    with pytest.raises(UnsupportedRequest, match="by the profile cpu alone"):
        tiler.cut_views(pyramid, *ONE_SPOT, tiler.buffers(1), slice(None), counts, pyramid=True)


def test_rows_go_where_they_belong(tiler, pillow, svs):
    centers, rows = np.array([[800, 900], [1500, 2000], [5, 5]], np.int32), np.array([4, 0, 2])
    found = cut(tiler, svs, centers, np.ones(3, np.float32), 5, rows)
    assert_same(found, cut(pillow, svs, centers, np.ones(3, np.float32), 5, rows))
    assert not found[0][0][[1, 3]].any()


def test_where_a_slide_is_decoded_is_told_once(tiler, decodings, svs):
    decodings.clear()
    tiler._told.clear()
    for _ in range(2):
        cut(tiler, svs, *ONE_SPOT)
    [(path, decoding)] = decodings
    assert (path, decoding.device, decoding.reason) == (svs, "cpu", "views are cut on the CPU")


def test_a_region_larger_than_a_slot_comes_in_strips(svs):
    geometry = ViewGeometry(64, (1,))
    random = np.random.default_rng(2)
    centers = random.integers(0, 2048, (40, 2)).astype(np.int32)
    scales = np.ones(40, np.float32)
    strips = []

    class Receiver:
        def take(self, strip, pixels):
            strips.append(strip)
            first = strip.region.top + strip.top
            expected = reader.read_padded(strip.region.left, first, *pixels.shape[1::-1])
            for left, top, side in strip.region.windows.tolist():
                window = (
                    slice(max(top - first, 0), max(top + side - first, 0)),
                    slice(left - strip.region.left, left - strip.region.left + side),
                )
                np.testing.assert_array_equal(pixels[window], expected[window])

    reader = open_slide(svs)
    with Decoder(geometry) as decoder:
        statuses, _ = decoder.read_regions(svs, centers, scales, Receiver())
    assert not statuses.any()
    assert len(strips) > 4
    assert [strip.last for strip in strips] == [False] * (len(strips) - 1) + [True]
    assert sum(strip.height for strip in strips) == strips[0].region.height
    array, pillow = ArrayTiler(geometry, HostDevice()), PillowTiler(geometry, threads=0)
    found, expected = cut(array, svs, centers, scales), cut(pillow, svs, centers, scales)
    # Two strips share a row of tiles, which is found the second time.
    assert found[2].cached_tiles > expected[2].cached_tiles == 0
    found[2].cached_tiles = 0
    assert_same(found, expected)
    array.close()
    pillow.close()


def test_bad_slides_are_named(tiler, truncated_svs, tmp_path, svs):
    with pytest.raises(UnreadableSlide, match=truncated_svs.name):
        cut(tiler, truncated_svs, *ONE_SPOT)
    with pytest.raises(SlideNotFound):
        cut(tiler, tmp_path / "absent.svs", *ONE_SPOT)
    assert cut(tiler, svs, *ONE_SPOT)[1] == [RowStatus.OK]


def test_a_crash_between_two_strips_is_named_and_the_next_job_whole(svs):
    far_apart = np.array([[300, 300], [300, 2500]], np.int32), np.ones(2, np.float32)

    class Killer:
        def take(self, strip, pixels):
            if (pid := decoder.pid) is not None:  # two strips may have come before it dies
                os.kill(pid, signal.SIGSEGV)

    class Broken:
        def take(self, strip, pixels):
            raise ZeroDivisionError

    class Collector:
        def __init__(self):
            self.strips = []

        def take(self, strip, pixels):
            self.strips.append(strip)

    with Decoder(GEOMETRY) as decoder:
        with pytest.raises(UnreadableSlide, match=rf"{svs.name}: its reader crashed \(SIGSEGV\)"):
            decoder.read_regions(svs, *far_apart, Killer())
        with pytest.raises(ZeroDivisionError):
            decoder.read_regions(svs, *far_apart, Broken())
        collector = Collector()
        statuses, _ = decoder.read_regions(svs, *far_apart, collector)
        assert statuses.tolist() == [0, 0]
        assert len(collector.strips) == 2


def test_a_reader_that_hangs_between_two_strips_is_stopped(svs):
    far_apart = np.array([[300, 300], [300, 2500]], np.int32), np.ones(2, np.float32)

    class Stopper:
        def take(self, strip, pixels):
            os.kill(decoder.pid, signal.SIGSTOP)

    with Decoder(GEOMETRY, timeout_s=0.5) as decoder:
        decoder.describe(svs)  # started, so that the time is the job's alone
        with pytest.raises(SlideTimeout, match=r"did not answer within 0\.5 s"):
            # Once a strip is taken the child may have another ready: it is asked for the end, which cannot come.
            decoder.read_regions(svs, *far_apart, Stopper())


def test_decoding_is_where_it_is_faster_and_true():
    assert decide("auto", 2.0, 1.0, 1).device == "gpu"
    assert decide("auto", 1.0, 2.0, 0).device == "cpu"
    wrong = decide("auto", 2.0, 1.0, 2)
    assert (wrong.device, wrong.max_abs_diff, wrong.cpu_s, wrong.gpu_s) == ("cpu", 2, 2.0, 1.0)
    assert "2 grey levels" in wrong.reason
    assert decide("gpu", 1.0, 2.0, 0).device == "gpu"


def cached(path):
    return CachedReader(open_slide(path), TileCache(), "a")


def test_decoding_on_a_gpu_is_refused_by_name_where_it_is_insisted_on(svs, dicom):
    region = Region(np.arange(1), 0, 0, 100, 100, np.array([(0, 0, 100)]))
    with pytest.raises(UnsupportedRequest, match=r"CMU-1.*insists on decoding on the GPU.*cut on the CPU.*auto or cpu"):
        choose_decoding(cached(svs), region, "gpu", None)
    with pytest.raises(UnsupportedRequest, match="openslide has no decoder for GPUs of such tiles"):
        choose_decoding(cached(dicom), region, "gpu", 0)
    reason = choose_decoding(cached(dicom), region, "auto", 0).reason
    assert reason == "openslide has no decoder for GPUs of such tiles"
    absent = choose_decoding(cached(svs), region, "auto", 99)
    assert absent.device == "cpu"
    assert absent.reason.startswith("decoding on GPU 99 failed: ")
    with pytest.raises(UnreadableSlide, match="openslide has no decoder for GPUs"):
        open_slide(dicom).read_on_gpu(0, 0, 10, 10)


def test_what_a_gpu_decodes_is_padded_like_what_a_cpu_does(svs):
    reader = open_slide(svs)
    reader.read_on_gpu = reader.read  # the same pixels, as a decoder for GPUs would leave them there
    width, height = reader.size
    for left, top in ((-30, -20), (width - 40, height - 60), (500, -7), (300, 400), (width + 5, 3)):
        found = read_padded_on_gpu(np, reader, left, top, 96, 80)
        np.testing.assert_array_equal(found, reader.read_padded(left, top, 96, 80))


class HostMemoryAsGpus:
    """The child's slots on a GPU, in the host's memory: what is decoded into them and how is the real code's."""

    on_gpu = True

    def __init__(self, gpu, slot_bytes):
        self.slot_bytes = slot_bytes
        self.memory = [np.zeros(slot_bytes, np.uint8) for _ in range(2)]
        self.slots = GpuSlots((b"first", b"second"), slot_bytes)

    def fill(self, slot, reader, region, top, height):
        pixels = read_padded_on_gpu(np, reader, region.left, region.top + top, region.width, height)
        self.memory[slot][: pixels.size] = pixels.ravel()


def test_strips_in_gpu_memory_become_the_same_views(svs, pillow, monkeypatch):
    made = []
    monkeypatch.setattr(regions, "choose_decoding", lambda *_: Decoding("gpu", "for this test"))
    monkeypatch.setattr(regions, "GpuMemory", lambda *given: made.append(HostMemoryAsGpus(*given)) or made[-1])
    centers = np.array([[300, 300], [310, 303], [300, 2500], [2100, 40], [2219, 2966]], np.int32)
    scales = np.ones(len(centers), np.float32)
    plain = open_slide(svs)
    plain.read_on_gpu = plain.read
    reader = CachedReader(plain, TileCache(), "a")
    ours, theirs = multiprocessing.Pipe()
    # A megabyte a slot: every region comes in several strips.
    streams = regions.RegionStreams(theirs, mmap.mmap(-1, 2 << 20), Spans(), Control(new_control()))
    out = [np.zeros((len(centers), *GEOMETRY.shape), np.uint8) for _ in GEOMETRY.names]
    job = ReadRegions(slide=svs, centers=centers, scales=scales, geometry=GEOMETRY, decode="gpu", gpu=0)
    child = threading.Thread(target=lambda: theirs.send(streams.read(reader, job)))
    child.start()

    class Arrays(HostDevice):
        def open_slots(self, slots):
            assert slots.handles == (b"first", b"second")
            return made[-1].memory

    slots = _Slots(Arrays())
    cutter = _Cutter(Arrays(), slots, GEOMETRY, centers, scales, out, np.arange(len(centers)))
    strips = 0
    while not isinstance(answer := ours.recv(), RegionsRead):
        if isinstance(answer, GpuSlots):
            cutter.open_slots(answer)
        else:
            assert answer.on_gpu
            cutter.take(answer, None)
            strips += 1
        ours.send(Acknowledged())
    child.join()
    assert answer.decoding.device == "gpu"
    assert len(made) == 1
    assert strips > 2 * answer.counts.regions
    expected, statuses, counts = cut(pillow, svs, centers, scales)
    assert answer.statuses.tolist() == statuses
    assert (answer.counts.spots, answer.counts.regions) == (counts.spots, counts.regions)
    assert answer.counts.decoded_px > 5 * 896 * 896 / 4
    for have, want in zip(out, expected, strict=True):
        np.testing.assert_array_equal(have, want)


def test_without_a_gpu_the_gpus_tiler_does_not_start():
    with pytest.raises(DeviceUnavailable, match=r"GPU 99 cannot be used: .*a profile for the CPU"):
        make_tiler({"cut": "cupy"}, GEOMETRY, 99, print)


def test_without_cupy_the_gpus_tiler_does_not_start(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceUnavailable, match=r"CuPy cannot be imported.*\[server-gpu\]"):
        CudaDevice(0)


@pytest.mark.parametrize(
    ("parameters", "gpu", "message"),
    [
        ({"cut": "torch"}, None, "cut of slide_tiler must be one of pillow, cupy, numpy, not 'torch'"),
        ({"cut": "cupy", "decode": "fast"}, 0, "decode of slide_tiler must be one of auto, cpu, gpu, not 'fast'"),
        ({"threads": "some"}, None, "threads of slide_tiler must be 0, 1, 2, … or all, not 'some'"),
        ({"cut": "cupy"}, None, "'cupy' of slide_tiler does not fit KIND_CPU"),
        ({}, 0, "'pillow' of slide_tiler does not fit KIND_GPU"),
    ],
)
def test_a_config_that_fits_nothing_is_refused(parameters, gpu, message):
    with pytest.raises(ValueError, match=message):
        make_tiler(parameters, GEOMETRY, gpu, print)
