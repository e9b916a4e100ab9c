"""Learning rate by step."""

from __future__ import annotations

import math

SCHEDULES = ("cosine", "constant", "steps")
"""After the warm-up: half a cosine down to 0, no change, or a factor every so many epochs."""


def warmup_cosine(step: int, *, warmup_steps: int, total_steps: int, floor: float = 0.0) -> float:
    """Factor on the peak learning rate: linear warm-up, then half a cosine down to ``floor``.

    Parameters
    ----------
    step : int
        0 for the first.
    warmup_steps, total_steps : int
    floor : float
        Factor at the last step.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def warmup_steps_down(step: int, *, warmup_steps: int, steps_a_drop: int, factor: float) -> float:
    """Factor on the peak learning rate: linear warm-up, then multiplied by ``factor`` every ``steps_a_drop`` steps.

    Parameters
    ----------
    step : int
        0 for the first.
    warmup_steps, steps_a_drop : int
        Drops are counted from the first step on.
    factor : float
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return float(factor ** (step // steps_a_drop))
