"""Checkpoint → ONNX → engine → a Triton model repository, each step with its parity gate."""

import m2ost_contract  # noqa: F401 - before any library that would report to its maker
