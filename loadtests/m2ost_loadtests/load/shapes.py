"""A step load: more users step by step, to find where throughput ends and queues begin."""

from __future__ import annotations

from locust import LoadTestShape

from .session import now


class StepShape(LoadTestShape):
    """Adds ``step_users`` every ``step_s`` seconds, ``steps`` times; then the test ends.

    Parameters
    ----------
    step_users : int
        Users added with every step.
    step_s : float
        Length of a step in seconds.
    steps : int
        Number of steps.
    spawn_rate : float
        Users started per second.
    """

    abstract = True  # Locust would otherwise run it whenever a locustfile imports it; --step-users chooses it

    def __init__(self, *, step_users: int, step_s: float, steps: int, spawn_rate: float) -> None:
        super().__init__()
        self._step_users, self._step_s, self._steps, self._spawn_rate = step_users, step_s, steps, spawn_rate
        self._began: list[tuple[int, float]] = []

    def tick(self) -> tuple[int, float] | None:
        """Users wanted now, and how fast to start them; None when the last step is over."""
        step = int(self.get_run_time() // self._step_s)
        if step >= self._steps:
            self._began.append((0, now()))
            return None
        users = (step + 1) * self._step_users
        if not self._began or self._began[-1][0] != users:
            self._began.append((users, now()))
        return users, self._spawn_rate

    def stages(self) -> list[tuple[int, float, float]]:
        """``(users, since, until)`` of the steps so far, in seconds since the epoch."""
        ends = [at for _, at in self._began[1:]] + [now()]
        return [(users, at, end) for (users, at), end in zip(self._began, ends, strict=True) if users]
