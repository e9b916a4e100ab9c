"""ONNX → engine files of TensorRT and TensorRT-RTX, by one code path."""

from .plans import EngineOptions, build_plans

__all__ = ["EngineOptions", "build_plans"]
