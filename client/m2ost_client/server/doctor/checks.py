"""What the facts come to. No function here looks at the machine; remedies name where this package came from."""

from __future__ import annotations

import re
from collections.abc import Sequence

from m2ost_contract import (
    CHOICES,
    ONNXRUNTIME_CPU,
    OPENVINO_CPU,
    EngineError,
    Manifest,
    plan_for,
    requirement,
    supports_version,
    why_no_bf16,
)

from .facts import Gpu, HostFacts, Profile, ServerFacts
from .findings import Finding, error, ok, warning

_MIB = 1 << 20
_DRIVER_FOR_CUDA = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
"""Major version of CUDA → the oldest driver that runs it (minor-version compatibility, CUDA's release notes)."""

NOT_ON_CPU = ("bf16",)
"""Precisions that no engine here runs on a CPU: ONNX Runtime has no kernels for them."""

OPEN_FILES, THREADS, ADDRESS_SPACE_BYTES = 256, 256, 4 << 30
"""Least limits under which a server is started. On two cores one that is idle holds 70 files, and one more for every
connection; it and its models run 200 threads; and each of its processes maps 1.5 GB. Short of them Triton waits for
itself for ever, without a word."""

USUAL_OPEN_FILES = 4096
"""With fewer, a few hundred connections that nobody uses keep everybody else from the server."""

WORTHWHILE_GAIN = 1.25
"""In bfloat16 a product must be so many times as fast as in float32 to be worth other values: on Intel's processors
with avx512_bf16 and without AMX it is not."""

_ONNXRUNTIME_GPU = "onnxruntime-gpu[cuda,cudnn]==1.24.4"
"""The last that is built for CUDA 12, as is the CuPy of the server's environment."""


def check_identity(manifest: Manifest, profile: Profile) -> list[Finding]:
    """Manifest and configs are of one release."""
    found, expected = profile.release_sha256, manifest.engine.release_sha256
    if found != expected:
        message = f"the configs are of release {found[:12]}, the manifest of {expected[:12]}: two releases are mixed"
        return [error("release", message, "m2ost export CHECKPOINT --out NEW_RELEASE")]
    trained = "" if manifest.engine.trained else ", UNTRAINED"
    return [ok("release", f"{found[:12]}, {manifest.engine.precision}, {len(manifest.engine.genes)} genes{trained}")]


def check_precision(manifest: Manifest, profile: Profile) -> list[Finding]:
    """The release's precision runs on a CPU where the profile runs it there."""
    if profile.engine not in (ONNXRUNTIME_CPU, OPENVINO_CPU) or manifest.engine.precision not in NOT_ON_CPU:
        return []
    message = f"{profile.engine} has no {manifest.engine.precision} kernels on a CPU"
    return [error("precision", message, "serve it with a GPU's profile, or m2ost export … --precision fp16 or fp32")]


def check_backends(profile: Profile, backends: Sequence[str]) -> list[Finding]:
    """The tritonserver at hand has the backends that the profile needs."""
    missing = sorted(set(profile.backends) - set(backends))
    if not missing:
        return [ok("backends", ", ".join(profile.backends))]
    found = ", ".join(backends) or "none"
    return [
        error(
            "backends",
            f"profile {profile.name!r} needs the backend {', '.join(missing)}; this tritonserver has: {found}",
            "serve in NGC's image, or with --profile cpu or python-gpu",
        )
    ]


def check_environment(profile: Profile, server: ServerFacts, client_version: str) -> list[Finding]:
    """The server's environment has what the models import, in versions that work together."""
    pip, packages = f"{server.python} -m pip", server.packages
    findings = []
    numpy = packages.get("numpy", "")
    if not numpy or int(numpy.split(".")[0]) >= 2:
        words = f"numpy {numpy} corrupts the tensors of Triton's Python backend" if numpy else "no numpy"
        findings.append(error("numpy", f"{server.python}: {words}", f"{pip} install 'numpy<2'"))
    ours = packages.get("m2ost-triton", "")
    if not ours:
        message = f"{server.python} has no m2ost-triton, which the models import"
        findings.append(error("environment", message, f"{pip} install {requirement('server')}"))
    elif ours != client_version:
        message = f"{server.python} has m2ost-triton {ours}, this command is of {client_version}"
        findings.append(warning("environment", message, f"{pip} install {requirement('server')}"))
    if not any(name.startswith("openslide-python") for name in packages):
        message = f"{server.python} has no openslide-python, which reads slides"
        findings.append(error("environment", message, f"{pip} install {requirement('server')}"))
    if not any(name.startswith("cucim") for name in packages):
        message = f"{server.python} has no cuCIM; OpenSlide reads its slides"
        findings.append(warning("environment", message, f"{pip} install {requirement('server')}"))
    if profile.uses_onnxruntime and not any(name.startswith("onnxruntime") for name in packages):
        message = f"{server.python} has no onnxruntime, which the profile {profile.name!r} runs on"
        findings.append(error("environment", message, _onnxruntime_remedy(profile, server)))
    if not findings:
        findings.append(ok("environment", f"Python {server.version}, numpy {numpy}, m2ost-triton {ours}"))
    return findings


def check_onnxruntime(profile: Profile, server: ServerFacts) -> list[Finding]:
    """ONNX Runtime has the provider that the profile asks for: without it, it would run on the CPU."""
    if not profile.uses_onnxruntime:
        return []
    if profile.engine not in CHOICES:
        return []
    provider = "CUDAExecutionProvider" if profile.engine.endswith("cuda") else "CPUExecutionProvider"
    if provider not in server.providers:
        have = ", ".join(server.providers) or server.provider_error
        message = f"no {provider} in the server's environment, only {have}"
        return [error("onnxruntime", message, _onnxruntime_remedy(profile, server))]
    if provider.startswith("CUDA") and server.provider_error:
        message = f"{provider} cannot be loaded: {server.provider_error}"
        return [error("onnxruntime", message, _onnxruntime_remedy(profile, server))]
    return [ok("onnxruntime", provider)]


def check_openvino(profile: Profile, server: ServerFacts) -> list[Finding]:
    """The server's environment has OpenVINO where the profile asks for it."""
    if not profile.uses_openvino:
        return []
    if "openvino" not in server.packages:
        message = f"{server.python} has no openvino, which the profile {profile.name!r} runs on"
        remedy = f"{server.python} -m pip install {requirement('openvino')} 'numpy<2'; or serve with --profile cpu"
        return [error("openvino", message, remedy)]
    return [ok("openvino", server.packages["openvino"])]


def check_bf16(profile: Profile, manifest: Manifest | None, server: ServerFacts) -> list[Finding]:
    """Where the profile computes in bfloat16: the processor has it, and the release passed its gate with it."""
    if not profile.uses_bf16 or "openvino" not in server.packages:
        return []
    if not server.bf16_instructions:
        return [error("bfloat16", server.bf16_error, "--profile cpu-openvino, or --profile cpu")]
    problem = why_no_bf16(manifest, server.bf16_instructions) if manifest is not None else ""
    if problem:
        what, _, remedy = problem.partition(", on this machine: ")
        return [error("bfloat16", what, f"on this machine: {remedy}; or serve with --profile cpu-openvino")]
    message = f"{server.bf16_instructions}, a product takes 1/{server.bf16_gain:.2f} of its time in float32"
    if server.bf16_gain < WORTHWHILE_GAIN:
        return [warning("bfloat16", f"{message}: float32 is as fast here", "--profile cpu-openvino, or --profile cpu")]
    return [ok("bfloat16", message)]


def _onnxruntime_remedy(profile: Profile, server: ServerFacts) -> str:
    pip = f"{server.python} -m pip"
    if profile.engine.endswith("cuda"):
        return f"{pip} uninstall -y onnxruntime && {pip} install '{_ONNXRUNTIME_GPU}' 'numpy<2'"
    return f"{pip} install {requirement('server')}"


def check_engine_choice(profile: Profile) -> list[Finding]:
    """The engine's config names an engine of the Python backend, where that is its backend."""
    if profile.backend != "python" or profile.engine in CHOICES:
        return []
    message = f"the config's parameter 'engine' is {profile.engine!r}, not one of {', '.join(CHOICES)}"
    return [error("engine", message, "m2ost export CHECKPOINT --out NEW_RELEASE")]


def check_gpu(profile: Profile, host: HostFacts, server: ServerFacts) -> list[Finding]:
    """There is a GPU where the profile needs one, the server sees it, and its driver is young enough."""
    if not profile.needs_gpu:
        named = ", ".join(gpu.name for gpu in host.gpus) or "none"
        return [ok("gpu", f"{named}; the profile {profile.name!r} needs none")]
    if not host.gpus and not server.gpus:
        reason = host.gpu_error or server.gpu_error
        message = f"the profile {profile.name!r} needs a GPU and this machine has none ({reason})"
        return [error("gpu", message, "serve with --profile cpu, or give a container its GPUs: docker run --gpus all")]
    findings = []
    needed = required_cuda(profile, server)
    supported = server.cuda_driver // 1000 or cuda_of_driver(host.driver)
    driver = f"{host.driver or 'of unknown version'}, CUDA {supported or 'unknown'}"
    if needed and supported and supported < needed:
        oldest = _DRIVER_FOR_CUDA.get(needed, "a later one")
        message = f"the driver is {driver}; the server's libraries are built for CUDA {needed}"
        findings.append(error("driver", message, f"install driver {oldest} or later: apt-get install cuda-drivers"))
    else:
        findings.append(ok("driver", driver))
    if server.gpus and server.libcuda_error:
        message = f"Triton's Python backend would take views through the host's memory: {server.libcuda_error}"
        findings.append(error("driver", message, "ln -s libcuda.so.1 libcuda.so where `ldconfig -p` has the first"))
    if server.kernel_error:
        message = f"CuPy cannot compile for the GPU, which cuts the views: {server.kernel_error}"
        findings.append(error("cupy", message, f"{server.python} -m pip install {requirement('cuda')}"))
    if server.gpus:
        findings += [ok("gpu", f"{g.name}, compute capability {g.compute_capability}") for g in server.gpus]
    elif host.visible_devices is not None and host.visible_devices.strip() in ("", "-1", "NoDevFiles"):
        message = f"{host.gpus[0].name} is hidden from the server: CUDA_VISIBLE_DEVICES={host.visible_devices!r}"
        findings.append(error("gpu", message, "unset CUDA_VISIBLE_DEVICES"))
    elif server.gpu_error:
        message = f"CUDA offers the server none of this machine's GPUs ({host.gpus[0].name}): {server.gpu_error}"
        findings.append(error("gpu", message, "nvidia-smi; a container needs --gpus all, a new driver a reboot"))
    else:
        findings += [ok("gpu", f"{g.name}, compute capability {g.compute_capability}") for g in host.gpus]
    return findings


def required_cuda(profile: Profile, server: ServerFacts) -> int:
    """Major version of CUDA that the libraries need which a profile loads; 0 where none is known."""
    loaded = [name for name in server.packages if profile.runtime or not name.startswith("tensorrt")]
    majors = [int(match[1]) for name in loaded if (match := re.search(r"-cu(?:da)?(\d\d)", name))]
    if server.onnxruntime_cuda and profile.uses_onnxruntime:
        majors.append(int(server.onnxruntime_cuda.split(".")[0]))
    return max(majors, default=0)


def cuda_of_driver(driver: str) -> int:
    """Major version of CUDA that a driver runs; 0 where the driver's version is unknown."""

    def key(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", version))

    return max((cuda for cuda, oldest in _DRIVER_FOR_CUDA.items() if driver and key(driver) >= key(oldest)), default=0)


def check_engine(profile: Profile, manifest: Manifest, gpus: Sequence[Gpu], server: ServerFacts) -> list[Finding]:
    """The release has a plan for every GPU here, which the runtime here can read, for batches as large as served."""
    runtime = profile.runtime
    if not runtime:
        return []
    export = f"m2ost build-engine RELEASE --engine {runtime} --out NEW_RELEASE"
    version = server.tensorrt if runtime == "tensorrt" else server.tensorrt_rtx
    if profile.backend == "tensorrt":
        version = server.nvinfer
    findings = []
    if not version:
        remedy = (
            f"{server.python} -m pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings"
            if runtime == "tensorrt-rtx"
            else "serve in NGC's image, or install TensorRT from NVIDIA's package index"
        )
        findings.append(error("engine", f"no {runtime} in the server's environment", remedy))
    for capability in sorted({gpu.compute_capability for gpu in gpus}):
        try:
            plan = plan_for(manifest.engines, runtime, capability)
        except EngineError as problem:
            findings.append(error("engine", str(problem).rstrip(), export))
            continue
        if version and not supports_version(plan.version, version):
            message = f"{plan.file} was built with {runtime} {plan.version}; here is {version}, which cannot read it"
            findings.append(error("engine", message, f"on this machine: {export}"))
        elif plan.max_rows < profile.max_rows:
            message = f"{plan.file} takes batches up to {plan.max_rows} rows, the profile serves {profile.max_rows}"
            findings.append(error("engine", message, export))
        else:
            unseen = "" if plan.inspected else "; its layers were never read on a GPU"
            findings.append(ok("engine", f"{plan.file}, {runtime} {plan.version}, {plan.precision}{unseen}"))
    return findings


def check_limits(host: HostFacts) -> list[Finding]:
    """What this user's processes are allowed is enough for a server."""
    limits = (
        ("open files", host.open_files, OPEN_FILES, "ulimit -n 4096; for a container docker run --ulimit nofile=4096"),
        ("threads", host.threads_left, THREADS, "ulimit -u 4096, or end other programs; docker run --pids-limit 4096"),
        ("address space", host.address_space_bytes, ADDRESS_SPACE_BYTES, "ulimit -v unlimited"),
    )
    findings = []
    for name, allowed, needed, remedy in limits:
        if allowed is not None and allowed < needed:
            unit = " bytes" if needed == ADDRESS_SPACE_BYTES else ""
            message = f"a process started here may have {allowed:,}{unit} of {name}, a server needs {needed:,}"
            findings.append(error("limits", message, remedy))
    if host.open_files is not None and OPEN_FILES <= host.open_files < USUAL_OPEN_FILES:
        message = f"a server may open {host.open_files:,} files, one for every connection: idle ones may shut all out"
        findings.append(warning("limits", message, "ulimit -Hn 65536; docker run --ulimit nofile=65536"))
    told = [f"CPUs {host.cpus}", *(f"{name} {allowed or 'any'}" for name, allowed, *_ in limits)]
    return findings or [ok("limits", ", ".join(told))]


def check_memory(profile: Profile, host: HostFacts) -> list[Finding]:
    """/dev/shm holds batches of the usual size, better the largest; and main memory what may wait."""
    free = host.shm_bytes / _MIB
    usual, largest = profile.usual_shm_bytes / _MIB, profile.shm_bytes / _MIB
    size = f"{-(-largest // 64) * 64:.0f}M"
    mend = f"mount -o remount,size={size} /dev/shm; for a container docker run --shm-size {size}"
    message = (
        f"{free:.0f} MiB free; batches of {profile.usual_rows} rows take {usual:.0f} MiB, "
        f"the largest, of {profile.max_rows}, {largest:.0f} MiB"
    )
    if free < usual:
        findings = [error("/dev/shm", message, mend)]
    else:
        findings = [ok("/dev/shm", message) if free >= largest else warning("/dev/shm", message, mend)]
    waiting, free = profile.queue_bytes / _MIB, host.memory_bytes / _MIB
    message = f"{free:.0f} MiB available; requests of {profile.usual_rows} rows that may wait hold {waiting:.0f} MiB"
    mend = "more memory for the machine or container, or a smaller --window for its clients"
    findings.append(ok("memory", message) if free >= waiting else warning("memory", message, mend))
    return findings
