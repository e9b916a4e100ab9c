"""What runs the network inside Triton's Python backend: one interface, a module a runtime."""

from .base import (
    CHOICES,
    ENGINE_PARAMETER,
    TENSORRT,
    TENSORRT_RTX,
    CpuThreads,
    CudaDevice,
    Device,
    Engine,
    EngineError,
    HostDevice,
)
from .load import load_engine
from .plans import plan_for, supports_version

__all__ = [
    "CHOICES",
    "ENGINE_PARAMETER",
    "TENSORRT",
    "TENSORRT_RTX",
    "CpuThreads",
    "CudaDevice",
    "Device",
    "Engine",
    "EngineError",
    "HostDevice",
    "load_engine",
    "plan_for",
    "supports_version",
]
