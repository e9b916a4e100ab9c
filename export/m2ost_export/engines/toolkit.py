"""TensorRT or TensorRT-RTX: found on demand, and what each can build for."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from m2ost_contract import TENSORRT, TENSORRT_RTX, install_command, requirement

from ..errors import EngineBuildError
from .gpu import Driver

OLDEST_TENSORRT = (10, 13)

_MODULES = {TENSORRT: "tensorrt", TENSORRT_RTX: "tensorrt_rtx_bindings"}


@dataclass(frozen=True)
class Toolkit:
    """A library that builds engines.

    Parameters
    ----------
    name : str
        ``tensorrt`` or ``tensorrt-rtx``.
    trt : module
        The library.
    """

    name: str
    trt: Any

    @property
    def version(self) -> str:
        """Its version."""
        return str(self.trt.__version__)

    @property
    def ahead_of_time(self) -> bool:
        """Whether it builds for GPUs that are not at hand, without a driver even."""
        return self.name == "tensorrt-rtx"

    def offered(self) -> dict[str, Any]:
        """Compute capability → the library's own name of it, where it builds ahead of time."""
        found = {}
        for name, value in self.trt.ComputeCapability.__members__.items():
            if match := re.fullmatch(r"SM(\d+)(\d)", name):
                found[f"{match[1]}.{match[2]}"] = value
        return found

    def targets(self, asked: Sequence[str], driver: Driver) -> tuple[str, ...]:
        """The compute capabilities to build for.

        Parameters
        ----------
        asked : sequence of str
            E.g. ``["8.0", "8.9"]``; empty for the GPUs at hand.
        driver : Driver
            This machine's.

        Raises
        ------
        EngineBuildError
            If the library cannot build for one of them; names those that it can.
        """
        here = tuple(dict.fromkeys(gpu.compute_capability for gpu in driver.gpus))
        if self.ahead_of_time:
            possible, where = tuple(sorted(self.offered(), key=_as_numbers)), f"{self.name} {self.version} builds for"
        else:
            if not here:
                raise EngineBuildError(
                    f"{self.name} builds an engine on the GPU that will run it, and there is no CUDA driver or no GPU "
                    "here; run `m2ost build-engine RELEASE --engine tensorrt --out NEW_RELEASE` on the machine and in "
                    "the image that serve"
                )
            possible, where = here, "the GPUs of this machine have"
        targets = tuple(dict.fromkeys(asked)) or here
        wrong = [capability for capability in targets if capability not in possible]
        if wrong or not targets:
            what = f"compute capability {', '.join(wrong)}" if wrong else "no GPU here, and no compute capability given"
            raise EngineBuildError(f"{what}: {where} {', '.join(possible)}; choose with --compute-capability")
        return targets


def load_toolkit(name: str) -> Toolkit:
    """Import a toolkit.

    Raises
    ------
    EngineBuildError
        If there is no such toolkit, it is not installed, or is too old; says how to install it.
    """
    if name not in _MODULES:
        raise EngineBuildError(f"there is no engine {name!r}; it is one of {', '.join(_MODULES)}")
    try:
        trt = importlib.import_module(_MODULES[name])
    except ImportError as error:
        raise EngineBuildError(f"{name} is not installed here ({error}): {_how_to_install(name)}") from error
    version = tuple(int(part) for part in re.findall(r"\d+", str(trt.__version__))[:2])
    if name == "tensorrt" and version < OLDEST_TENSORRT:
        oldest = ".".join(map(str, OLDEST_TENSORRT))
        raise EngineBuildError(f"TensorRT {trt.__version__} is too old, {oldest} is needed: {_how_to_install(name)}")
    return Toolkit(name, trt)


def _how_to_install(name: str) -> str:
    if name != TENSORRT:
        return install_command(name)
    return (
        f"pip install --extra-index-url https://pypi.nvidia.com {requirement(name)}, with the version of TensorRT that "
        "the server has (NGC's images: the same image, tensorrt==VERSION)"
    )


def _as_numbers(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))
