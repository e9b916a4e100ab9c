"""What runs the network inside Triton's Python backend: one interface, a module a runtime."""

from .base import CpuThreads, Engine
from .load import load_engine

__all__ = ["CpuThreads", "Engine", "load_engine"]
