"""What must hold before and after CuPy fails: its compiler is found, and a GPU's error costs no more than it must."""

import os
import shutil
import socket
import subprocess
import sys
import types
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import tifffile
from m2ost_contract import ViewGeometry
from m2ost_preprocess.decoder import Decoder, Decoding, gpu, regions
from m2ost_preprocess.decoder.child import ChildLost
from m2ost_preprocess.decoder.control import Control, new_control
from m2ost_preprocess.decoder.gpu import GpuMemory, choose_decoding
from m2ost_preprocess.decoder.protocol import Describe, ReadRegions
from m2ost_preprocess.errors import UnreadableSlide, UnsupportedRequest
from m2ost_preprocess.readers import native_errors, open_slide
from m2ost_preprocess.tiling.spans import Spans
from m2ost_preprocess.tiling.tiles import CachedReader, TileCache
from m2ost_preprocess.tiling.views import Region
from m2ost_serving.devices import CudaDevice
from PIL import Image

GEOMETRY = ViewGeometry()
CENTERS = np.array([[800, 900], [820, 940]], np.int32)
SCALES = np.ones(2, np.float32)
REGION = Region(np.arange(1), 0, 0, 100, 100, np.array([(0, 0, 100)]))


class Receiver:
    """Keeps the pixels of every region."""

    def __init__(self):
        self.regions = {}

    def open_slots(self, slots):
        raise AssertionError("no GPU here")

    def take(self, strip, pixels):
        if strip.top == 0:
            self.regions[strip.region.left, strip.region.top] = []
        self.regions[strip.region.left, strip.region.top].append(pixels.copy())


def python(code, **environment):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)


@pytest.fixture
def deadly_cupy(tmp_path):
    """A folder with a CuPy that ends the process which turns to a GPU. (cuCIM imports CuPy, too.)"""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "cupy.py").write_text(
        "import os, signal, types\n"
        "cuda = types.SimpleNamespace(Device=lambda index: os.kill(os.getpid(), signal.SIGSEGV))\n"
    )
    return folder


def test_the_compiler_that_pip_installed_is_loaded_before_cupy_looks_for_it(tmp_path):
    # Any library of a wheel: the system's loader does not find it by its name, as CuPy looks for NVRTC.
    library = next((Path(Image.__file__).parent.parent / "pillow.libs").glob("libzstd-*.so*"))
    folder = tmp_path / "nvidia" / "cuda_nvrtc" / "lib"
    folder.mkdir(parents=True)
    (tmp_path / "nvidia" / "__init__.py").touch()
    (folder / "libnvrtc.so.98").write_bytes(b"no library")
    (tmp_path / "cupy.py").write_text(f"import ctypes\nctypes.CDLL({library.name!r})\n")
    code = "from m2ost_preprocess.cuda import import_cupy; import_cupy()"
    assert "cannot open shared object file" in python(code, PYTHONPATH=str(tmp_path)).stderr
    shutil.copy(library, folder / "libnvrtc.so.99")
    done = python(code, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_a_slide_on_which_a_gpus_decoder_dies_is_left_to_the_cpu(svs, deadly_cupy, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(deadly_cupy), prepend=os.pathsep)
    found, expected = Receiver(), Receiver()
    with Decoder(GEOMETRY, threads=0) as decoder:
        decoder.read_regions(svs, CENTERS, SCALES, expected)
        before = decoder.pid
        statuses, decoding = decoder.read_regions(svs, CENTERS, SCALES, found, decode="auto", gpu=0)
        after = decoder.pid
        assert after != before
        _, again = decoder.read_regions(svs, CENTERS, SCALES, found, decode="auto", gpu=0)
        assert decoder.pid == after, "it was tried again"
        with pytest.raises(ChildLost, match="crashed"):
            decoder.read_regions(svs, CENTERS, SCALES, found, decode="gpu", gpu=0)
    assert statuses.tolist() == [0, 0]
    assert decoding == again
    assert decoding.device == "cpu"
    assert "SIGSEGV" in decoding.reason
    assert found.regions.keys() == expected.regions.keys()
    for place, strips in expected.regions.items():
        np.testing.assert_array_equal(np.concatenate(found.regions[place]), np.concatenate(strips))


FAILING_WORKER = """
import sys, types
from m2ost_preprocess.decoder import worker

class CUDARuntimeError(RuntimeError):
    pass

cuda = types.SimpleNamespace(runtime=types.SimpleNamespace(CUDARuntimeError=CUDARuntimeError))
sys.modules["cupy"] = types.SimpleNamespace(cuda=cuda)
errors = [ValueError("of one slide"), CUDARuntimeError("illegal memory access")]

def fail(*_):
    raise errors.pop(0)

worker.answer_job = fail
worker.main()
"""


def test_a_process_whose_cuda_failed_ends_and_no_other_does():
    ours, theirs = socket.socketpair()
    buffer = os.memfd_create("buffer")
    os.ftruncate(buffer, 1 << 20)
    numbers = theirs.fileno(), buffer, new_control()
    child = subprocess.Popen([sys.executable, "-c", FAILING_WORKER, *map(str, numbers), "0"], pass_fds=numbers)
    theirs.close()
    for memory in numbers[1:]:
        os.close(memory)
    with Connection(ours.detach()) as pipe:
        pipe.send(Describe(slide=Path("a.svs")))
        assert "of one slide" in str(pipe.recv())
        pipe.send(Describe(slide=Path("a.svs")))
        with pytest.raises(EOFError):
            pipe.recv()
        assert child.wait(10) == 1


def test_memory_that_a_gpu_gives_but_cannot_share_is_given_back(monkeypatch):
    taken, freed = iter((11, 12)), []

    class Runtime:
        malloc = staticmethod(lambda size: next(taken))
        free = staticmethod(freed.append)

        @staticmethod
        def ipcGetMemHandle(pointer):
            raise RuntimeError("cudaErrorNotSupported")

    monkeypatch.setattr(gpu, "_cupy", lambda index: types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=Runtime)))
    with pytest.raises(RuntimeError, match="NotSupported"):
        GpuMemory(0, 1 << 20)
    assert freed == [11, 12]


@pytest.mark.parametrize("mode", ["auto", "gpu"])
def test_without_memory_to_share_the_cpu_decodes_unless_the_gpu_is_insisted_on(svs, mode, monkeypatch):
    def refuse(*_):
        raise RuntimeError("cudaErrorMemoryAllocation")

    monkeypatch.setattr(regions, "choose_decoding", lambda *_: Decoding("gpu", "for this test"))
    monkeypatch.setattr(regions, "GpuMemory", refuse)
    ours, theirs = Pipe()
    streams = regions.RegionStreams(theirs, bytearray(64 << 20), Spans(), Control(new_control()))
    reader = CachedReader(open_slide(svs), TileCache(), "a")
    job = ReadRegions(slide=svs, centers=CENTERS, scales=SCALES, geometry=GEOMETRY, decode=mode, gpu=0)
    for _ in range(9):
        ours.send("acknowledged")
    if mode == "auto":
        decoding = streams.read(reader, job).decoding
        assert decoding.device == "cpu"
        assert decoding.reason == "GPU 0 gives no memory to share: RuntimeError: cudaErrorMemoryAllocation"
    else:
        with pytest.raises(
            UnsupportedRequest, match=r"CMU-1.*insists on decoding on the GPU, but GPU 0 gives no memory"
        ):
            streams.read(reader, job)


def test_tiles_that_are_no_jpeg_are_never_given_to_a_gpus_decoder(svs, tmp_path):
    pixels = open_slide(svs).read(0, 0, 600, 600)
    for compression, decodes in (("zlib", False), (None, False)):
        path = tmp_path / f"{compression}.tif"
        tifffile.imwrite(
            path,
            pixels,
            tile=(256, 256),
            photometric="rgb",
            compression=compression,
            resolution=(2e4, 2e4),
            resolutionunit="CENTIMETER",
        )
        reader = CachedReader(open_slide(path, "cucim"), TileCache(), "a")
        assert reader.decodes_on_gpu is decodes
        assert choose_decoding(reader, REGION, "auto", 0).reason == "cucim has no decoder for GPUs of such tiles"
    assert open_slide(svs, "cucim").decodes_on_gpu
    path.write_bytes(b"no TIFF any more")
    assert not reader.decodes_on_gpu


def test_what_cucim_calls_an_error_where_it_goes_on_is_none(svs):
    native_errors.install()
    reader, read = open_slide(svs, "cucim"), []

    class Noisy:
        def __init__(self, image, line):
            self._image, self._line = image, line

        def read_region(self, *args, **options):
            os.write(2, self._line)
            return self._image.read_region(*args, **options)

    image = reader._image
    for line, fails in (
        (b"[Error] cuFileHandleRegister fd: 9, status: x. Would work with cuCIM's compatibility mode.\n", False),
        (b"[Error] Failed to read the tile\n", True),
    ):
        reader._image = Noisy(image, line)
        try:
            reader.read(0, 0, 64, 64)
            read.append(False)
        except UnreadableSlide:
            read.append(True)
        assert read[-1] is fails
    reader._image = image


def test_a_cold_reader_decodes_again(svs):
    warm = CachedReader(open_slide(svs), TileCache(), "a")
    warm.read(0, 0, 300, 300)
    first = warm.take_counts()
    cold = warm.cold()
    np.testing.assert_array_equal(cold.read(0, 0, 300, 300), warm.read(0, 0, 300, 300))
    assert cold.take_counts().decoded_px == first.decoded_px > 0
    assert warm.take_counts().decoded_px == 0


class FakeCuPy:
    """CuPy's places: arrays that know their GPU, of which the current one copies those of others."""

    def __init__(self):
        self.gpu, self.copied = 0, []
        self.cuda = types.SimpleNamespace(Device=self.device)

    def device(self, index):
        outer = self

        class Device:
            def __enter__(self):
                self.before, outer.gpu = outer.gpu, index

            def __exit__(self, *exc):
                outer.gpu = self.before

        return Device()

    def from_dlpack(self, tensor):
        assert tensor.__dlpack_device__()[1] == self.gpu, "opened on another GPU than it lies on"
        return types.SimpleNamespace(gpu=self.gpu, tensor=tensor)

    def asarray(self, array):
        if array.gpu != self.gpu:
            self.copied.append(array.tensor)
        return types.SimpleNamespace(gpu=self.gpu, tensor=array.tensor)


def test_a_tensor_of_another_gpu_is_copied_to_the_engines():
    device, cupy = CudaDevice.__new__(CudaDevice), FakeCuPy()
    device.index, device._cupy = 1, cupy
    tensors = [types.SimpleNamespace(__dlpack_device__=lambda index=index: (2, index)) for index in (0, 1)]
    with cupy.device(1):
        adopted = [device._adopt(tensor) for tensor in tensors]
    assert [array.gpu for array in adopted] == [1, 1]
    assert cupy.copied == tensors[:1]
