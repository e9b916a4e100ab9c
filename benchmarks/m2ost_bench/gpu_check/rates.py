"""What the device can do at most: multiply matrices, and copy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from .device import Device, Pace, time_on
from .parts import Outcome, need

MATRIX = {"cuda": 8192, "cpu": 512}
COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 24}


def measure_rates(outcome: Outcome, device: Device, pace: Pace) -> dict[str, Any]:
    """Fill in, and return, TFLOP/s of square matrix products (fp32 without TF32, and fp16 on a GPU) and GB/s of copies.

    A copy on the device is counted once, not as a read and a write.
    """
    torch = need("torch", install="pip install torch")
    torch.backends.cuda.matmul.allow_tf32 = False
    n, size = MATRIX[device.kind], COPY_BYTES[device.kind]
    runs: dict[str, Callable[[], object]] = {}
    for name, dtype in {"fp32": torch.float32, **({"fp16": torch.float16} if device.kind == "cuda" else {})}.items():
        a, b, c = (torch.randn(n, n, device=device.torch).to(dtype) for _ in range(3))
        runs[f"matmul_{name}_tflop_per_s"] = partial(torch.mm, a, b, out=c)
    here, there = (torch.zeros(size, dtype=torch.uint8, device=device.torch) for _ in range(2))
    runs["copy_device_to_device_gb_per_s"] = lambda: there.copy_(here)
    if device.kind == "cuda":
        pageable = torch.zeros(size, dtype=torch.uint8)
        pinned = pageable.pin_memory()
        runs["copy_host_to_device_gb_per_s"] = lambda: there.copy_(pageable)
        runs["copy_pinned_to_device_gb_per_s"] = lambda: there.copy_(pinned, non_blocking=True)
    seconds = time_on(device, runs, pace)
    for name, values in seconds.found.items():
        work = 2 * n**3 / 1e12 if name.startswith("matmul") else size / 1e9
        outcome.figures[name] = work / median(values)
    outcome.figures["matrix_side"], outcome.figures["copied_bytes"] = n, size
    return outcome.figures
