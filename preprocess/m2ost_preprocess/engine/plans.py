"""Which of a release's plans runs here."""

from __future__ import annotations

from collections.abc import Sequence

from ..engine_plan import EnginePlan
from .base import EngineError


def plan_for(engines: Sequence[EnginePlan], runtime: str, compute_capability: str) -> EnginePlan:
    """The plan for one kind of GPU.

    Parameters
    ----------
    engines : sequence of EnginePlan
        Those of the release.
    runtime : str
        ``tensorrt`` or ``tensorrt-rtx``.
    compute_capability : str
        Of the GPU at hand, e.g. ``8.9``.

    Raises
    ------
    EngineError
        If the release has none; says for which GPUs it has.
    """
    built = [engine for engine in engines if engine.toolkit == runtime]
    for engine in built:
        if engine.compute_capability == compute_capability:
            return engine
    found = ", ".join(sorted(engine.compute_capability for engine in built)) or "no GPU at all"
    raise EngineError(
        f"this GPU has compute capability {compute_capability}; the release has a {runtime} engine for {found}. "
        f"Build one on this machine: m2ost build-engine RELEASE --engine {runtime} --out NEW_RELEASE"
    )


def supports_version(built_with: str, found: str) -> bool:
    """Whether a runtime reads a plan: a plan is tied to the version that built it, up to the build's number."""
    return built_with.split(".")[:3] == found.split(".")[:3]
