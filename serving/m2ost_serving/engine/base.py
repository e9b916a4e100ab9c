"""The interface of an engine, and its threads on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from m2ost_contract import RUNS_PARAMETER, SPINNING_PARAMETER, THREADS_PARAMETER, EngineError, ViewGeometry
from m2ost_preprocess.control_groups import cpus

from ..devices import Device

KEEP_MEMORY_ROWS = 32
"""On the CPU a run of more rows gives its memory back: a row takes 28 MiB in ONNX Runtime, 13 MiB in OpenVINO, and a
full request has 256."""

Expression = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class CpuThreads:
    """Threads of an engine on the CPU.

    Parameters
    ----------
    count : int
        How many; by default one for each CPU that this process may keep busy.
    spinning : bool
        Whether they spin while they wait, where the runtime can be told (ONNX Runtime).
    runs : int
        Batches that are run at a time, each on its share of the threads: there is no more of them than threads.
    """

    count: int = field(default_factory=cpus)
    spinning: bool = False
    runs: int = 1

    @property
    def a_run(self) -> int:
        """Threads of one run."""
        return self.count // self.runs

    @property
    def in_words(self) -> str:
        """For an engine's description."""
        return f"{self.count} threads" + (f", {self.runs} runs at a time" if self.runs > 1 else "")

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> CpuThreads:
        """As a config asks for.

        Raises
        ------
        EngineError
            If a parameter has no such value.
        """
        count, spinning = parameters.get(THREADS_PARAMETER, "all"), parameters.get(SPINNING_PARAMETER, "0")
        if count != "all" and not (count.isdecimal() and int(count)):
            raise EngineError(f"the config's parameter {THREADS_PARAMETER!r} is {count!r}, not 1, 2, … or all")
        if spinning not in ("0", "1"):
            raise EngineError(f"the config's parameter {SPINNING_PARAMETER!r} is {spinning!r}, not 0 or 1")
        runs = parameters.get(RUNS_PARAMETER, "1")
        if not (runs.isdecimal() and int(runs)):
            raise EngineError(f"the config's parameter {RUNS_PARAMETER!r} is {runs!r}, not 1, 2, …")
        chosen = cls(spinning=spinning == "1") if count == "all" else cls(int(count), spinning == "1")
        return replace(chosen, runs=min(int(runs), chosen.count))


class Engine(Protocol):
    """A network that is ready to run.

    Attributes
    ----------
    device : Device
        Where it takes its batches.
    description : str
        Runtime, its version and device, for the log.
    runs : int
        How many threads may call :meth:`run` at a time.
    """

    device: Device
    description: str
    runs: int

    def run(self, batch: Mapping[str, Any]) -> Expression:
        """Score spots.

        Parameters
        ----------
        batch : mapping of str to array of uint8, each shape (n, size_px, size_px, 3)
            Every view by its name, on ``device``, C-contiguous.

        Returns
        -------
        ndarray of float32, shape (n, G)
            In the host's memory: at 1 KB a spot the only thing that leaves the GPU.

        Raises
        ------
        ValueError
            If the batch is not of this form, or has more rows than the engine takes.
        """


def check_batch(batch: Mapping[str, Any], geometry: ViewGeometry, max_rows: int) -> int:
    """The number of rows of a batch.

    Engines take addresses, behind which an array of another form would be read as if it had this one.

    Raises
    ------
    ValueError
        If a view is missing, not uint8, of another shape, not contiguous, or there are more than ``max_rows`` rows.
    """
    if set(batch) != set(geometry.names):
        raise ValueError(f"the engine takes {', '.join(geometry.names)}, not {', '.join(batch)}")
    rows = len(batch[geometry.names[0]])
    for name, array in batch.items():
        if array.shape != (rows, *geometry.shape) or array.dtype != np.uint8 or not array.flags.c_contiguous:
            raise ValueError(
                f"{name}: expected a contiguous uint8 array of shape {(rows, *geometry.shape)}, "
                f"not {array.dtype} {array.shape}"
            )
    if not 0 < rows <= max_rows:
        raise ValueError(f"{rows} rows in a batch; this engine takes 1 to {max_rows}")
    return rows
