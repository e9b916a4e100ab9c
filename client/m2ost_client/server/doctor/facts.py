"""What is known of a machine and of the environment that serves: plain values, gathered once, decided on elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from m2ost_contract import OPENVINO_CPU_BF16


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Parameters
    ----------
    name : str
    compute_capability : str
        E.g. ``8.9``.
    memory_bytes : int
        All of its memory.
    """

    name: str
    compute_capability: str
    memory_bytes: int = 0


@dataclass(frozen=True)
class HostFacts:
    """The machine.

    Parameters
    ----------
    shm_bytes, memory_bytes : int
        Room left in /dev/shm, and main memory that is available.
    driver : str
        NVIDIA's driver, e.g. ``550.54.15``; empty where there is none.
    gpus : tuple of Gpu
        Those of the machine, by its driver.
    gpu_error : str
        Why the driver named none.
    visible_devices : str or None
        ``CUDA_VISIBLE_DEVICES``, which the server inherits.
    open_files, threads_left, address_space_bytes : int or None
        What a process that is started here may open, what this user or container may start beside what runs, and what
        a process may map; None where there is no limit.
    cpus : int
        How many CPUs its processes can keep busy.
    """

    shm_bytes: int
    memory_bytes: int
    driver: str = ""
    gpus: tuple[Gpu, ...] = ()
    gpu_error: str = ""
    visible_devices: str | None = None
    open_files: int | None = None
    threads_left: int | None = None
    address_space_bytes: int | None = None
    cpus: int = 1


@dataclass(frozen=True)
class ServerFacts:
    """The environment that the models run in, by its own interpreter.

    Parameters
    ----------
    python : str
        The interpreter.
    version : str
        Of Python, e.g. ``3.11``.
    packages : mapping of str to str
        Distribution → version of those that matter and are installed.
    probed : bool
        Whether the libraries were loaded and asked; what follows is known only then.
    providers : tuple of str
        Of ONNX Runtime.
    provider_error : str
        Why the CUDA provider that ONNX Runtime lists cannot be loaded.
    onnxruntime_cuda : str
        CUDA version that ONNX Runtime was built for; empty for a build without CUDA.
    tensorrt, tensorrt_rtx : str
        Versions of the runtimes' Python modules; empty where there is none.
    nvinfer : str
        Version of TensorRT's library on the loader's path, which Triton's own backend takes; empty where there is none.
    cuda_driver : int
        CUDA version that the driver supports, as 12040 for 12.4; 0 where there is none.
    gpus : tuple of Gpu
        Those that CUDA offers a process of this environment.
    gpu_error : str
        Why it offers none.
    kernel_error : str
        Why CuPy cannot compile for them.
    bf16_instructions : str
        By which OpenVINO computes in bfloat16 there; known only where it was asked.
    bf16_error : str
        Why it does not.
    bf16_gain : float
        How many times as fast it computes a product as in float32, in processor time.
    libcuda_error : str
        Why the driver cannot be opened as ``libcuda.so``, which is what Triton's Python backend calls it.
    """

    python: str
    version: str
    packages: Mapping[str, str] = field(default_factory=dict)
    probed: bool = False
    providers: tuple[str, ...] = ()
    provider_error: str = ""
    onnxruntime_cuda: str = ""
    tensorrt: str = ""
    tensorrt_rtx: str = ""
    nvinfer: str = ""
    cuda_driver: int = 0
    gpus: tuple[Gpu, ...] = ()
    gpu_error: str = ""
    kernel_error: str = ""
    bf16_instructions: str = ""
    bf16_error: str = ""
    bf16_gain: float = 0.0
    libcuda_error: str = ""


@dataclass(frozen=True)
class Profile:
    """What the configs of a release ask for under one profile.

    Parameters
    ----------
    name : str
        Triton's ``--model-config-name``.
    backends : tuple of str
        Of all its models.
    backend : str
        Of the engine.
    engine : str
        The parameter ``engine``, for the Python backend.
    accelerators : tuple of str
        Execution accelerators of the engine.
    needs_gpu : bool
        Whether a model's instances are to be on a GPU.
    max_rows : int
        Largest batch of the engine.
    shm_bytes, usual_shm_bytes : int
        What the largest batches take in /dev/shm, and what those of ``usual_rows`` do: inputs and outputs of every
        model of the Python backend.
    usual_rows : int
        Rows of a request where its sender did not choose.
    queue_bytes : int
        What the requests that may wait hold in main memory.
    release_sha256 : str
        The release's identity, as the engine's config has it.
    """

    name: str
    backends: tuple[str, ...]
    backend: str
    engine: str
    accelerators: tuple[str, ...]
    needs_gpu: bool
    max_rows: int
    shm_bytes: int
    usual_shm_bytes: int
    usual_rows: int
    queue_bytes: int
    release_sha256: str

    @property
    def uses_onnxruntime(self) -> bool:
        """Whether the Python backend runs the ONNX."""
        return self.backend == "python" and self.engine.startswith("onnxruntime")

    @property
    def uses_openvino(self) -> bool:
        """Whether the Python backend runs the ONNX on OpenVINO."""
        return self.backend == "python" and self.engine.startswith("openvino")

    @property
    def uses_bf16(self) -> bool:
        """Whether OpenVINO is to compute in bfloat16."""
        return self.backend == "python" and self.engine == OPENVINO_CPU_BF16

    @property
    def runtime(self) -> str:
        """The runtime of the plan that is served: ``tensorrt``, ``tensorrt-rtx``, or empty for the ONNX itself."""
        if self.backend == "tensorrt":
            return "tensorrt"
        runs_onnx = self.uses_onnxruntime or self.uses_openvino
        return "" if self.backend != "python" or runs_onnx else self.engine
