"""What a container may use of its machine is read from its control groups, of both versions."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from m2ost_preprocess.control_groups import available_memory_bytes, cpus, memory_bytes, tasks_left
from m2ost_preprocess.tiling.tiles import TileCache

GIB = 1 << 30
V1 = Path("/sys/fs/cgroup")


def machine(folder, groups, mounts, files):
    """A folder as /proc of a process in these groups, on a machine of 64 GiB."""
    (folder / "self").mkdir()
    (folder / "meminfo").write_text(f"MemTotal: {64 << 20} kB\nMemFree: 1 kB\nMemAvailable: {48 << 20} kB\n")
    (folder / "self" / "cgroup").write_text(groups)
    lines = (f"30 23 0:2{i} {root} {folder / at} rw - {kind}\n" for i, (root, at, kind) in enumerate(mounts))
    (folder / "self" / "mountinfo").write_text("".join(lines))
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


V2_FILES = {
    "cg/pod/cpu.max": "150000 100000",
    "cg/pod/memory.max": "max",
    "cg/pod/box/cpu.max": "max 100000",
    "cg/pod/box/memory.max": str(2 * GIB),
    "cg/pod/box/memory.current": str(GIB),
    "cg/pod/box/memory.stat": f"anon 5\ninactive_file {GIB // 4}\nslab_reclaimable 3",
    "cg/pod/box/pids.max": "100",
    "cg/pod/box/pids.current": "60",
}
V1_FILES = {
    "cpu/cpu.cfs_quota_us": "150000",
    "cpu/cpu.cfs_period_us": "100000",
    "memory/memory.limit_in_bytes": str(2 * GIB),
    "memory/memory.usage_in_bytes": str(GIB),
    "memory/memory.stat": f"total_cache 7\ntotal_inactive_file {GIB // 4}",
    "pids/pids.max": "100",
    "pids/pids.current": "60",
}


@pytest.mark.parametrize(
    ("groups", "mounts", "files"),
    [
        pytest.param("0::/pod/box\n", [("/", "cg", "cgroup2 cgroup2 rw")], V2_FILES, id="version 2, from outside"),
        pytest.param(
            "0::/\n",
            [("/", "cg", "cgroup2 cgroup2 rw")],
            {name.replace("/pod/box", "").replace("/pod", ""): text for name, text in V2_FILES.items()}
            | {"cg/cpu.max": "150000 100000", "cg/memory.max": str(2 * GIB)},
            id="version 2, in a namespace of its own",
        ),
        pytest.param(
            "4:memory:/docker/12ab\n3:pids:/docker/12ab\n2:cpu,cpuacct:/docker/12ab\n0::/\n",
            [("/docker/12ab", name, f"cgroup cgroup rw,{name}") for name in ("memory", "pids")]
            + [("/docker/12ab", "cpu", "cgroup cgroup rw,cpu,cpuacct")],
            V1_FILES,
            id="version 1, its own group mounted",
        ),
    ],
)
def test_the_narrowest_group_counts(tmp_path, monkeypatch, groups, mounts, files):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(16))
    proc = machine(tmp_path, groups, mounts, files)
    assert cpus(proc) == 2, "one and a half"
    assert memory_bytes(proc) == 2 * GIB
    assert available_memory_bytes(proc) == GIB + GIB // 4, "files that were read can be read again"
    assert tasks_left(proc) == 40


def test_without_groups_the_machine_is_all_there_is(tmp_path):
    proc = machine(tmp_path, "", [], {})
    assert (cpus(proc), memory_bytes(proc)) == (len(os.sched_getaffinity(0)), 64 * GIB)
    assert (available_memory_bytes(proc), tasks_left(proc)) == (48 * GIB, None)


def test_tiles_take_an_eighth_of_a_small_containers_memory(monkeypatch):
    monkeypatch.delenv("M2OST_TILE_CACHE_MIB", raising=False)
    for there, kept in ((GIB, GIB // 8), (64 * GIB, GIB // 2)):
        monkeypatch.setattr("m2ost_preprocess.tiling.tiles.memory_bytes", lambda there=there: there)
        assert TileCache.from_environment().capacity_bytes == kept


def test_linux_tells_the_limits_of_a_real_group():
    """Of version 1, where this machine has that and lets its user make groups."""
    groups = [V1 / controller / f"m2ost-test-{os.getpid()}" for controller in ("cpu", "memory")]
    made = []
    try:
        for group in groups:
            group.mkdir()
            made.append(group)
        (groups[0] / "cpu.cfs_quota_us").write_text("100000")
        (groups[1] / "memory.limit_in_bytes").write_text(str(GIB))
        join = "".join(f"open('{group / 'cgroup.procs'}', 'w').write('0'); " for group in groups)
        script = f"{join}from m2ost_preprocess.control_groups import cpus, memory_bytes; print(cpus(), memory_bytes())"
        said = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    except OSError as error:
        pytest.skip(f"no control group of version 1 can be made here: {error}")
    finally:
        for group in made:
            group.rmdir()
    assert said.split() == ["1", str(GIB)]
