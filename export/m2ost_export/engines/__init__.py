"""ONNX → engine files of TensorRT and TensorRT-RTX, by one code path."""

from .plans import EngineOptions, build_plans, find_targets

__all__ = ["EngineOptions", "build_plans", "find_targets"]
