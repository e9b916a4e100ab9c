"""What the doctor decides on stated facts, and what it collects here for real."""

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from m2ost_client.errors import ServerStartError
from m2ost_client.server.command import ServerOptions
from m2ost_client.server.doctor import Level, check_start, errors, examine
from m2ost_client.server.doctor import checks as doctor
from m2ost_client.server.doctor.collect import CannotAsk, host_facts, read_nvidia_smi, server_facts
from m2ost_client.server.doctor.examine import check_folders, check_ports
from m2ost_client.server.doctor.facts import Gpu, HostFacts, ServerFacts
from m2ost_client.server.doctor.profile import read_profile
from m2ost_client.server.doctor.release import check_files, extra_files, files_served
from m2ost_client.server.host import SHM, Ports
from m2ost_client.server.installation import Installation
from m2ost_contract import (
    BODY_FILE,
    TAIL_FILE,
    Manifest,
    ManifestError,
    Release,
    ViewGeometry,
    install_command,
    sha256_file,
)
from m2ost_serving.repository import write_repository

from tests.support.releases import ENGINE, engine_plan

L4 = Gpu("NVIDIA L4", "8.9", 24 << 30)
H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", 80 << 30)
ROOM = HostFacts(shm_bytes=1 << 30, memory_bytes=16 << 30, driver="550.54.15", gpus=(L4,))
SERVER = ServerFacts(
    python="/venv/bin/python",
    version="3.11",
    packages={
        "numpy": "1.26.4",
        "m2ost-triton": "0.1.0",
        "openslide-python": "1.4.7",
        "cucim-cu12": "26.6.0",
        "cupy-cuda12x": "13.6.0",
        "onnxruntime-gpu": "1.24.4",
        "openvino": "2026.4.1",
    },
    probed=True,
    providers=("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
    onnxruntime_cuda="12.8",
    tensorrt="10.13.2.6",
    nvinfer="10.13.2.6",
    cuda_driver=12040,
    gpus=(L4,),
    bf16_instructions="avx512_bf16",
    bf16_gain=1.9,
)
PLANS = (
    engine_plan(),
    engine_plan(toolkit="tensorrt-rtx", file="m2ost/1/model-rtx-sm89.plan", version="1.7.1.116", inspected=False),
)
PROFILES = {
    # name: (backend, engine parameter, needs a GPU, runtime of its plan)
    "cpu": ("python", "onnxruntime-cpu", False, ""),
    "cpu-openvino": ("python", "openvino-cpu", False, ""),
    "cpu-bf16": ("python", "openvino-cpu-bf16", False, ""),
    "onnxruntime": ("onnxruntime", "", True, ""),
    "onnxruntime-tensorrt": ("onnxruntime", "", True, ""),
    "tensorrt": ("tensorrt", "", True, "tensorrt"),
    "python-gpu": ("python", "onnxruntime-cuda", True, ""),
    "python-tensorrt": ("python", "tensorrt", True, "tensorrt"),
    "python-tensorrt-rtx": ("python", "tensorrt-rtx", True, "tensorrt-rtx"),
}


@pytest.fixture
def release(tmp_path):
    """A release of real configs; its graph and plans are files that nobody runs here."""
    folder = tmp_path / "release"
    folder.mkdir()
    write_repository(folder, ENGINE)
    for name in ("model.onnx", *(Path(plan.file).name for plan in PLANS)):
        (folder / "m2ost" / "1" / name).write_bytes(f"{name} ".encode() * 1000)
    files = {str(p.relative_to(folder)): sha256_file(p) for p in folder.rglob("*") if p.is_file()}
    plans = tuple(replace(plan, sha256=files[plan.file]) for plan in PLANS)
    Manifest(ENGINE, {}, {}, {}, files, engines=plans).write(folder)
    return folder


@pytest.fixture
def manifest(release):
    return Manifest.read(release)


@pytest.fixture
def served(release):
    """Profiles of the release, by name."""
    return {name: read_profile(release, name) for name in PROFILES}


def only_error(findings):
    (finding,) = errors(findings)
    assert finding.remedy, finding
    return str(finding)


def fits(findings):
    assert findings
    assert not errors(findings), [str(f) for f in findings]


@pytest.mark.parametrize("name", PROFILES)
def test_what_a_profile_asks_for_is_read_from_its_configs(served, name):
    profile = served[name]
    assert (profile.backend, profile.engine, profile.needs_gpu, profile.runtime) == PROFILES[name]
    assert profile.max_rows == 256
    assert set(profile.backends) == {"python", profile.backend}
    assert profile.release_sha256 == ENGINE.release_sha256


def test_shared_memory_follows_from_the_views(served, tmp_path):
    views = 1.5 * 3 * 224 * 224 * 3
    # Out of the tiler and, in Python, into the engine; the rest is names, statuses, and what four models start with.
    assert 0 <= served["cpu"].shm_bytes - 2 * 256 * views < 10 << 20
    assert 0 <= served["cpu"].usual_shm_bytes - 2 * 32 * views < 10 << 20
    assert 0 <= served["onnxruntime"].shm_bytes - 256 * views < 10 << 20
    assert served["cpu"].queue_bytes == (64 + 32 + 1024) * (3 * 224 * 224 * 3 + 4 + 8)
    write_repository(tmp_path, replace(ENGINE, views=ViewGeometry(512, (1, 2))))
    larger = read_profile(tmp_path, "cpu").shm_bytes
    assert 0 <= larger - 1.5 * 2 * 256 * 2 * 512 * 512 * 3 < 10 << 20


def test_configs_that_cannot_be_read(release):
    config = release / "m2ost" / "configs" / "tensorrt.pbtxt"
    config.write_text(config.read_text()[:-40])
    with pytest.raises(ManifestError, match=r"tensorrt\.pbtxt: cannot be read .*export"):
        read_profile(release, "tensorrt")
    (release / "slide_tiler" / "config.pbtxt").unlink()
    with pytest.raises(ManifestError, match="no config for m2ost or slide_tiler"):
        read_profile(release, "cpu")


@pytest.mark.parametrize("name", PROFILES)
def test_a_machine_that_fits(served, manifest, name):
    server = replace(SERVER, tensorrt_rtx="1.7.1")
    profile = served[name]
    fits(doctor.check_identity(manifest, profile))
    fits(doctor.check_backends(profile, ("onnxruntime", "python", "tensorrt")))
    fits(doctor.check_environment(profile, server, "0.1.0"))
    fits(doctor.check_gpu(profile, ROOM, server))
    fits(doctor.check_memory(profile, ROOM))
    assert not errors(doctor.check_onnxruntime(profile, server) + doctor.check_engine_choice(profile))
    assert not errors(doctor.check_engine(profile, manifest, (L4,), server))


def test_a_backend_that_the_embedded_server_lacks(served):
    words = only_error(doctor.check_backends(served["tensorrt"], ("python",)))
    assert "needs the backend tensorrt; this tritonserver has: python" in words
    assert "NGC" in words


def test_no_gpu_where_one_is_asked_for(served):
    bare = HostFacts(shm_bytes=1 << 30, memory_bytes=1 << 34, gpu_error="no nvidia-smi, hence no NVIDIA driver")
    server = replace(SERVER, gpus=(), cuda_driver=0, gpu_error="cudaErrorInsufficientDriver")
    for name in ("python-gpu", "onnxruntime", "tensorrt"):
        words = only_error(doctor.check_gpu(served[name], bare, server))
        assert "needs a GPU and this machine has none (no nvidia-smi" in words
        assert "--profile cpu" in words
    fits(doctor.check_gpu(served["cpu"], bare, server))


def test_a_gpu_that_is_hidden_from_the_server(served):
    server = replace(SERVER, gpus=(), gpu_error="cudaErrorNoDevice")
    words = only_error(doctor.check_gpu(served["python-gpu"], replace(ROOM, visible_devices=""), server))
    assert "NVIDIA L4 is hidden from the server: CUDA_VISIBLE_DEVICES=''" in words
    assert "cudaErrorNoDevice" in only_error(doctor.check_gpu(served["python-gpu"], ROOM, server))


@pytest.mark.parametrize(
    ("driver", "supported", "built_for", "oldest"),
    [
        ("535.161.08", 12020, "13.0", "580.65.06"),
        ("470.82.01", 11040, "12.8", "525.60.13"),
        ("550.54.15", 0, "13.0", "580.65.06"),  # where CUDA itself could not be asked
    ],
)
def test_a_driver_that_is_too_old(served, driver, supported, built_for, oldest):
    server = replace(SERVER, cuda_driver=supported, onnxruntime_cuda=built_for)
    words = only_error(doctor.check_gpu(served["python-gpu"], replace(ROOM, driver=driver), server))
    assert f"the driver is {driver}" in words
    assert f"built for CUDA {built_for[:2]}" in words
    assert f"install driver {oldest} or later" in words


@pytest.mark.parametrize(
    ("driver", "cuda"),
    [("", 0), ("440.33", 0), ("450.80.02", 11), ("525.60.12", 11), ("525.60.13", 12), ("580.65.06", 13), ("600.1", 13)],
)
def test_the_cuda_that_a_driver_runs(driver, cuda):
    assert doctor.cuda_of_driver(driver) == cuda


def test_cuda_that_the_libraries_of_a_profile_need(served):
    gpu, rtx = served["python-gpu"], served["python-tensorrt-rtx"]
    both = replace(SERVER, packages={**SERVER.packages, "tensorrt-rtx-cu13-libs": "1.7.1"})
    assert (doctor.required_cuda(gpu, both), doctor.required_cuda(rtx, both)) == (12, 13)
    newer = replace(SERVER, onnxruntime_cuda="13.0")
    assert (doctor.required_cuda(gpu, newer), doctor.required_cuda(rtx, newer)) == (13, 12)
    assert doctor.required_cuda(rtx, replace(SERVER, packages={})) == 0


def test_onnx_runtime_that_would_run_on_the_cpu(served):
    profile = served["python-gpu"]
    cpu_only = replace(SERVER, providers=("AzureExecutionProvider", "CPUExecutionProvider"))
    words = only_error(doctor.check_onnxruntime(profile, cpu_only))
    assert "no CUDAExecutionProvider in the server's environment, only AzureExecutionProvider" in words
    assert "pip uninstall -y onnxruntime && /venv/bin/python -m pip install 'onnxruntime-gpu" in words
    broken = replace(SERVER, provider_error="libcublasLt.so.12: cannot open shared object file")
    assert "cannot be loaded: libcublasLt.so.12" in only_error(doctor.check_onnxruntime(profile, broken))
    fits(doctor.check_onnxruntime(served["cpu"], broken))
    assert doctor.check_onnxruntime(served["tensorrt"], cpu_only) == []


def with_split(manifest, instructions="avx512_bf16"):
    """The manifest of a release with body and tail, which passed their gate."""
    files = {**manifest.files, BODY_FILE: "a" * 64, TAIL_FILE: "b" * 64}
    return replace(manifest, files=files, parity={"split": {"gate": {"instructions": instructions}}})


def test_bfloat16_where_processor_and_release_have_it(served, manifest):
    fits(doctor.check_bf16(served["cpu-bf16"], with_split(manifest), SERVER))
    for name in ("cpu", "cpu-openvino"):
        assert doctor.check_bf16(served[name], manifest, replace(SERVER, bf16_instructions="")) == []
    slow = replace(SERVER, bf16_gain=0.66)
    (finding,) = doctor.check_bf16(served["cpu-bf16"], with_split(manifest), slow)
    assert finding.level is Level.WARNING
    assert "a product takes 1/0.66 of its time in float32: float32 is as fast here" in str(finding)


def test_bfloat16_that_the_processor_lacks(served, manifest):
    without = replace(SERVER, bf16_instructions="", bf16_error="OpenVINO 2026.4.1 does not compute in bfloat16 …")
    words = only_error(doctor.check_bf16(served["cpu-bf16"], with_split(manifest), without))
    assert "does not compute in bfloat16" in words
    assert "--profile cpu-openvino" in words


def test_bfloat16_that_the_release_is_not_gated_for(served, manifest):
    for found, expected in (
        (manifest, "no m2ost/1/body.onnx, which bfloat16 is for: its gate was not run"),
        (replace(manifest, engine=replace(manifest.engine, precision="fp16")), "it is not in fp32"),
        (with_split(manifest, "amx_bf16"), "passed the gate of bfloat16 with amx_bf16, here is avx512_bf16"),
    ):
        words = only_error(doctor.check_bf16(served["cpu-bf16"], found, SERVER))
        assert expected in words
        assert "on this machine: m2ost export CHECKPOINT --gate-slide SLIDE" in words


def test_the_servers_interpreter_is_asked_for_bfloat16_only_where_it_matters():
    here = Installation(Path("tritonserver"), {"PATH": f"{Path(sys.executable).parent}"})
    assert server_facts(here, probe=False).bf16_gain == 0
    facts = server_facts(here, probe=False, bf16=True)
    assert bool(facts.bf16_instructions) != bool(facts.bf16_error)
    assert bool(facts.bf16_instructions) == (facts.bf16_gain > 0)


def test_openvino_that_is_missing(served):
    without = {name: version for name, version in SERVER.packages.items() if name != "openvino"}
    words = only_error(doctor.check_openvino(served["cpu-openvino"], replace(SERVER, packages=without)))
    assert "/venv/bin/python has no openvino, which the profile 'cpu-openvino' runs on" in words
    assert f"{install_command('openvino')} 'numpy<2'; or serve with --profile cpu" in words
    fits(doctor.check_openvino(served["cpu-openvino"], SERVER))
    assert doctor.check_openvino(served["cpu"], replace(SERVER, packages=without)) == []


def test_a_gpu_that_cupy_cannot_compile_for(served):
    server = replace(SERVER, kernel_error="RuntimeError: CuPy failed to load libnvrtc.so.12")
    words = only_error(doctor.check_gpu(served["python-gpu"], ROOM, server))
    assert "CuPy cannot compile for the GPU, which cuts the views: RuntimeError: CuPy failed to load" in words
    assert f"/venv/bin/python -m {install_command('cuda')}" in words


def test_a_driver_that_tritons_python_backend_does_not_find(served):
    server = replace(SERVER, libcuda_error="libcuda.so: cannot open shared object file")
    words = only_error(doctor.check_gpu(served["tensorrt"], ROOM, server))
    assert "take views through the host's memory: libcuda.so: cannot open" in words
    assert "ln -s libcuda.so.1 libcuda.so" in words
    fits(doctor.check_gpu(served["cpu"], ROOM, server))


def test_tritons_own_backend_takes_the_library_and_not_the_module(served, manifest):
    server = replace(SERVER, tensorrt="10.14.1.48")
    fits(doctor.check_engine(served["tensorrt"], manifest, (L4,), server))
    server = replace(SERVER, nvinfer="")
    assert "no tensorrt in the server's environment" in only_error(
        doctor.check_engine(served["tensorrt"], manifest, (L4,), server)
    )
    fits(doctor.check_engine(served["python-tensorrt"], manifest, (L4,), server))


def test_a_release_built_for_another_gpu(served, manifest):
    words = only_error(doctor.check_engine(served["tensorrt"], manifest, (L4, H100, H100), SERVER))
    assert "compute capability 9.0; the release has a tensorrt engine for 8.9" in words
    assert "--engine tensorrt" in words


def test_a_release_built_with_another_tensorrt(served, manifest):
    server = replace(SERVER, tensorrt="10.14.1.48")
    words = only_error(doctor.check_engine(served["python-tensorrt"], manifest, (L4,), server))
    assert "was built with tensorrt 10.13.2.6; here is 10.14.1.48" in words
    assert "no tensorrt-rtx" in only_error(doctor.check_engine(served["python-tensorrt-rtx"], manifest, (L4,), SERVER))


def test_a_batch_above_the_plans_profile(served, manifest):
    small = replace(manifest, engines=(replace(PLANS[0], rows=(1, 32, 64)),))
    words = only_error(doctor.check_engine(served["tensorrt"], small, (L4,), SERVER))
    assert "takes batches up to 64 rows, the profile serves 256" in words


def test_an_engine_that_was_never_inspected_says_so(served, manifest):
    server = replace(SERVER, tensorrt_rtx="1.7.1.116")
    (finding,) = doctor.check_engine(served["python-tensorrt-rtx"], manifest, (L4,), server)
    assert (finding.level, "never read on a GPU" in finding.message) == (Level.OK, True)


@pytest.mark.parametrize(("mib", "level"), [(1024, Level.OK), (64, Level.WARNING), (16, Level.ERROR)])
def test_shared_memory_that_is_too_small(served, mib, level):
    shm, _ = doctor.check_memory(served["cpu"], replace(ROOM, shm_bytes=mib << 20))
    assert shm.level is level
    if level is not Level.OK:
        assert "--shm-size 384M" in shm.remedy


@pytest.mark.parametrize(
    ("limit", "few", "words"),
    [
        ("open_files", 255, "may have 255 of open files, a server needs 256 → ulimit -n"),
        ("threads_left", 100, "may have 100 of threads, a server needs 256 → ulimit -u"),
        ("address_space_bytes", 1 << 30, "may have 1,073,741,824 bytes of address space, a server needs 4,294,967,296"),
    ],
)
def test_limits_that_are_too_low(limit, few, words):
    assert words in only_error(doctor.check_limits(replace(ROOM, **{limit: few})))
    fits(doctor.check_limits(replace(ROOM, **{limit: 4 << 30})))
    fits(doctor.check_limits(ROOM))


def test_few_files_are_warned_of_for_each_connection_is_one():
    (finding,) = doctor.check_limits(replace(ROOM, open_files=1024))
    assert (finding.level, "one for every connection" in finding.message) == (Level.WARNING, True)


LIMITED = """
import resource
from m2ost_client.server.doctor.collect import host_facts
for kind, value in ((resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_AS, 3 << 30)):
    resource.setrlimit(kind, (value, value))
host = host_facts(ask_driver=False)
print(host.open_files, host.address_space_bytes)
"""


def test_the_limits_of_a_process_are_read():
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["64", str(3 << 30)]


def test_a_server_is_not_started_under_limits_that_are_too_low(release, monkeypatch):
    monkeypatch.setattr(doctor, "OPEN_FILES", 1 << 40)
    with pytest.raises(ServerStartError, match="of open files, a server needs"):
        check_start(ServerOptions(release=release), [Release.open(release)], Installation(release, {}, (release,)))


def test_little_memory_for_what_may_wait(served):
    _, memory = doctor.check_memory(served["cpu"], replace(ROOM, memory_bytes=30 << 20))
    assert memory.level is Level.WARNING


@pytest.mark.parametrize(
    ("packages", "words"),
    [
        ({"numpy": "2.4.6"}, "numpy 2.4.6 corrupts .* → /venv/bin/python -m pip install 'numpy<2'"),
        ({"numpy": ""}, "no numpy"),
        ({"m2ost-triton": ""}, "no m2ost-triton"),
        ({"onnxruntime-gpu": ""}, "no onnxruntime"),
        ({"openslide-python": ""}, "no openslide-python"),
    ],
)
def test_an_environment_that_cannot_serve(served, packages, words):
    left = {name: version for name, version in {**SERVER.packages, **packages}.items() if version}
    findings = doctor.check_environment(served["cpu"], replace(SERVER, packages=left), "0.1.0")
    assert re.search(words, only_error(findings))


def test_an_environment_that_serves_with_a_reservation(served):
    left = {name: version for name, version in SERVER.packages.items() if not name.startswith("cucim")}
    findings = doctor.check_environment(served["cpu"], replace(SERVER, packages=left), "0.2.0")
    assert [f.level for f in findings] == [Level.WARNING, Level.WARNING]
    assert "m2ost-triton 0.1.0, this command is of 0.2.0" in findings[0].message


def test_releases_that_are_mixed(served, manifest):
    other = replace(manifest, engine=replace(ENGINE, release_sha256="d" * 64))
    assert "two releases are mixed" in only_error(doctor.check_identity(other, served["cpu"]))
    odd = replace(served["cpu"], engine="cuda")
    assert "'cuda', not one of" in only_error(doctor.check_engine_choice(odd))


@pytest.mark.parametrize("damage", ["truncated", "swapped", "missing", "extra"])
def test_files_that_are_not_those_of_the_release(release, manifest, damage):
    plan = release / PLANS[0].file
    if damage == "truncated":
        plan.write_bytes(plan.read_bytes()[:-1])
    elif damage == "swapped":
        plan.write_bytes((release / PLANS[1].file).read_bytes())
    elif damage == "missing":
        plan.unlink()
    else:
        plan.with_name("model.sm90.plan").touch()
        (plan.parent / "__pycache__").mkdir()
        (plan.parent / "__pycache__" / "model.cpython-311.pyc").touch()
    findings = check_files(release, manifest.files)
    if damage == "extra":
        fits(findings)
        (finding,) = extra_files(release, manifest)
        assert (finding.level, "model.sm90.plan is not in the manifest" in finding.message) == (Level.WARNING, True)
        return
    words = only_error(findings)
    assert str(plan) in words
    assert ("No such file" if damage == "missing" else "truncated, changed or swapped") in words
    assert extra_files(release, manifest) == []


def test_only_the_files_that_are_served_are_read_before_a_start(manifest, served):
    engines = {"m2ost/1/model.onnx", *(plan.file for plan in PLANS)}
    for name, expected in (
        ("cpu", {"m2ost/1/model.onnx"}),
        ("onnxruntime", {"m2ost/1/model.onnx"}),
        ("tensorrt", {PLANS[0].file}),
        ("python-tensorrt-rtx", {PLANS[1].file}),
    ):
        files = files_served(manifest, served[name], (L4, H100))
        assert set(files) & engines == expected
        assert set(files) - engines == set(manifest.files) - engines


def test_the_answer_of_nvidia_smi():
    table = "NVIDIA L4, 8.9, 23034, 550.54.15\nNVIDIA GB10, 12.1, [N/A], 550.54.15\n"
    gpus, driver = read_nvidia_smi(table)
    assert gpus == (Gpu("NVIDIA L4", "8.9", 23034 << 20), Gpu("NVIDIA GB10", "12.1", 0))
    assert driver == "550.54.15"
    assert read_nvidia_smi("") == ((), "")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'NVIDIA L4, 8.9, 23034, 550.54.15'", ""),
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", "version mismatch"),
        ("sleep 30", "does not answer: .*timed out"),
        (None, "no nvidia-smi"),
    ],
)
def test_a_driver_that_fails_or_hangs_is_a_finding(tmp_path, monkeypatch, script, words):
    if script == "sleep 30":
        monkeypatch.setattr("m2ost_client.server.doctor.collect.NVIDIA_SMI_TIMEOUT_S", 0.5)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin" if script else str(tmp_path))
    if script:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    host = host_facts(ask_driver=True)
    assert host.gpus == (() if words else (Gpu("NVIDIA L4", "8.9", 23034 << 20),))
    assert re.fullmatch(f".*{words}.*" if words else "", host.gpu_error)


def test_what_this_machine_has():
    host = host_facts(ask_driver=False)
    room = os.statvfs(SHM)
    assert 0 < host.shm_bytes <= room.f_blocks * room.f_frsize
    assert 1 << 20 < host.memory_bytes < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert (host.driver, host.gpus, host.gpu_error) == ("", (), "")


def test_what_this_interpreter_says_of_itself(tmp_path):
    (tmp_path / "python3").symlink_to(sys.executable)
    here = Installation(tmp_path / "tritonserver", {"PATH": str(Path(sys.executable).parent)})
    facts = server_facts(here, probe=True)
    assert facts.version == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert facts.packages["m2ost-triton"] == "0.1.0"
    assert "CPUExecutionProvider" in facts.providers
    assert server_facts(here, probe=False).providers == ()


@pytest.mark.parametrize(("script", "words"), [("exit 3", "ended with status 3"), (None, "no python3 on PATH")])
def test_an_interpreter_that_does_not_answer(tmp_path, script, words):
    if script:
        program = tmp_path / "python3"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    with pytest.raises(CannotAsk, match=words):
        server_facts(Installation(tmp_path / "tritonserver", {"PATH": str(tmp_path)}), probe=False)


def test_a_server_refuses_to_start_in_the_doctors_words(release, tmp_path, monkeypatch):
    # A tritonserver with all backends and a driver whose only GPU the release has no plan for.
    for folder in ("bin", *(f"backends/{name}" for name in ("python", "onnxruntime", "tensorrt"))):
        (tmp_path / "opt" / folder).mkdir(parents=True)
    smi = tmp_path / "opt" / "bin" / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 9.0, 81559, 580.95.05'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{smi.parent}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that a GPU of this machine changes nothing
    installation = Installation(tmp_path / "opt" / "bin" / "tritonserver")
    with pytest.raises(ServerStartError, match=r"(?s)profile 'tensorrt':.*capability 9\.0; the release has .* 8\.9"):
        check_start(ServerOptions(release=release, profile="tensorrt"), [Release.open(release)], installation)
    check_start(ServerOptions(release=release), [Release.open(release)], installation)
    onnx = release / "m2ost" / "1" / "model.onnx"
    onnx.write_bytes(onnx.read_bytes()[:-1])
    with pytest.raises(ServerStartError, match="truncated, changed or swapped"):
        check_start(ServerOptions(release=release), [Release.open(release)], installation)


def test_ports_and_slide_roots(release, tmp_path):
    (tmp_path / "empty").mkdir()
    roots = {"gone": tmp_path / "gone", "empty": tmp_path / "empty", "slides": release}
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        taken = sock.getsockname()[1]
        findings = examine(
            release, release=release, profile="cpu", roots=roots, host="127.0.0.1", ports=Ports(http=taken)
        )
    said = {(f.subject, f.level) for f in findings}
    assert {("slides gone", Level.ERROR), ("slides empty", Level.WARNING), ("slides slides", Level.OK)} <= said
    (ports,) = [f for f in findings if f.subject == "ports"]
    assert f"cannot listen on 127.0.0.1:{taken} for http" in ports.message
    assert str(taken) in ports.remedy
    assert all(f.remedy for f in findings if f.level is not Level.OK)


def test_a_host_that_is_not_this_machine():
    assert "192.0.2.7 is not an address of this machine" in only_error(check_ports("192.0.2.7", Ports()))
    fits(check_ports("localhost", Ports()))


def test_no_folder_that_a_server_could_write_to(monkeypatch):
    fits(check_folders())
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    shm, temporary = errors(check_folders())
    assert "/dev/shm cannot be written to by this user" in shm.message
    assert "set TMPDIR" in temporary.message


def test_one_port_for_two_services():
    (finding,) = check_ports("127.0.0.1", Ports(grpc=8001, http=8001))
    assert finding.level is Level.ERROR
    assert "a port of its own" in finding.message
    assert "--http-port" in finding.remedy


def test_a_service_that_is_off_needs_no_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert errors(check_ports("127.0.0.1", Ports(http=taken.getsockname()[1])))
    (finding,) = check_ports("127.0.0.1", Ports(http=None))
    assert finding.message == "grpc any, metrics any"


def test_a_folder_that_is_no_release_still_has_its_machine_examined(tmp_path):
    arguments = {"profile": "cpu", "roots": {}, "host": "127.0.0.1", "ports": Ports()}
    findings = examine(tmp_path, release=tmp_path, **arguments)
    assert "not a release" in str(errors(findings)[0])
    assert {"tritonserver", "ports"} <= {f.subject for f in findings}


def test_json_for_a_program():
    command = [Path(sys.executable).with_name("m2ost"), "doctor", "--json", "--profile", "absent"]
    done = subprocess.run(
        [*command, *(["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"])], capture_output=True
    )
    report = json.loads(done.stdout)
    assert (done.returncode, report["fits"], report["release"]) == (1, False, None)
    assert [f for f in report["findings"] if f["subject"] == "profile" and "'absent'" in f["message"]]
