"""A memory cap is kept by processes that really hold the memory, and the largest batch under it is found."""

import os
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import psutil
import pytest
from m2ost_bench.istar.memory import HEADROOM, PRECISION, largest_batch
from m2ost_bench.istar.workers import CappedProcess
from m2ost_bench.process_memory import MIB
from m2ost_loadtests.errors import MemoryCapExceeded, SystemDied

pytestmark = pytest.mark.usefixtures("heavy")

ROW_MIB = 10


@dataclass(frozen=True)
class Holds:
    """Fills ten MiB a row at every run."""

    rows: int

    def open(self):
        return self._run

    def _run(self):
        return int(np.ones(self.rows * ROW_MIB * MIB, np.uint8).sum())


@dataclass(frozen=True)
class Dies:
    def open(self):
        return self._run

    def _run(self):
        os._exit(9)


@dataclass(frozen=True)
class HoldsBeside:
    """Has a process of its own that fills 300 MiB, as a decoder holds tiles, and waits for its end or does not."""

    wait: bool

    def open(self):
        fill = f"input(); held = bytearray(b'x') * {300 * MIB}; print(flush=True); import time; time.sleep(3)"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        beside = subprocess.Popen([sys.executable, "-c", fill], **pipes)

        def run():
            beside.stdin.write(b"\n")
            beside.stdin.flush()
            beside.stdout.readline()
            return beside.wait() if self.wait else None

        return run


def test_a_run_says_what_it_did_and_what_it_took():
    with CappedProcess(Holds(20)) as process:
        run = process.run()
    assert run.result == 20 * ROW_MIB * MIB
    assert 200 * MIB < run.peak_bytes < 600 * MIB


def test_a_process_that_outgrows_its_cap_is_ended():
    with CappedProcess(Holds(60), cap_bytes=400 * MIB) as process:
        pid = process._process.pid
        with pytest.raises(MemoryCapExceeded, match="the cap is 400 MiB"):
            process.run()
    assert not psutil.pid_exists(pid)


def test_what_a_system_starts_counts_in_its_peak():
    with CappedProcess(HoldsBeside(wait=False)) as process:
        assert 300 * MIB < process.run().peak_bytes < 600 * MIB


def test_a_system_is_ended_as_soon_as_what_it_started_outgrows_its_cap():
    exceeded = pytest.raises(MemoryCapExceeded, match="the cap is 290 MiB")
    with CappedProcess(HoldsBeside(wait=True), cap_bytes=290 * MIB) as process, exceeded:
        process.run()


def test_a_process_that_dies_is_an_error_and_not_a_hang():
    with CappedProcess(Dies()) as process, pytest.raises(SystemDied, match="died"):
        process.run()


def test_the_largest_batch_is_found_to_within_its_precision():
    cap_bytes = 600 * MIB
    found = largest_batch(Holds, cap_bytes=cap_bytes, most=1000)
    with CappedProcess(Holds(0)) as process:
        base_bytes = process.run().peak_bytes
    fitting = (HEADROOM * cap_bytes - base_bytes) / (ROW_MIB * MIB)
    assert fitting * (1 - 2 / PRECISION) - 1 <= found.batch <= fitting + 1
    assert found.peak_bytes[found.batch] <= cap_bytes
    assert len(found.peak_bytes) <= 8, "a line through two points should soon be right"


def test_the_largest_batch_is_no_larger_than_makes_sense():
    assert largest_batch(Holds, cap_bytes=2000 * MIB, most=5).batch == 5


def test_a_cap_too_small_for_one_row_says_so():
    with pytest.raises(MemoryCapExceeded, match=r"100 MiB is too small for a batch of 1.*--memory-cap"):
        largest_batch(lambda batch: Holds(batch + 20), cap_bytes=100 * MIB, most=8)
