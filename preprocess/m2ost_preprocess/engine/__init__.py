"""What runs the network inside Triton's Python backend: one interface, a module a runtime."""

from .base import CpuThreads, CudaDevice, Device, Engine, HostDevice
from .load import load_engine

__all__ = ["CpuThreads", "CudaDevice", "Device", "Engine", "HostDevice", "load_engine"]
