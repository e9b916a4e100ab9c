"""Checkpoint → ONNX → engine → a Triton model repository, each step with its parity gate."""
