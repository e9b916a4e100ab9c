"""Whether a release's files are those that its manifest describes, and which of its engines a machine can run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .contract import MAX_ROWS, Manifest, ManifestError, sha256_file
from .engine_plan import EnginePlan

TOOLKITS = ("tensorrt", "tensorrt-rtx")
"""What builds and runs engine files."""

NOT_ON_CPU = ("bf16",)
"""Precisions that ONNX Runtime has no CPU kernels for."""


class ReleaseError(ManifestError):
    """A release cannot be served as asked: the message says why and what to do."""


def changed_files(release: Path, manifest: Manifest) -> list[str]:
    """Every file of a release that is missing or not what it was when the manifest was written.

    Parameters
    ----------
    release : Path
        The folder.
    manifest : Manifest
        Its manifest.

    Returns
    -------
    list of str
        One line a file: its path below the release, and what is wrong.
    """
    problems = []
    for name, expected in manifest.files.items():
        path = release / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif (found := sha256_file(path)) != expected:
            problems.append(f"{name}: sha256 is {found}, the manifest says {expected}")
    return problems


def check_files(release: Path, manifest: Manifest) -> None:
    """Refuse a release with a file that is missing, truncated or swapped.

    Raises
    ------
    ReleaseError
        Names every such file.
    """
    problems = changed_files(release, manifest)
    if problems:
        raise ReleaseError(f"{release}: {'; '.join(problems)}; a release never changes: copy or export it anew")


def find_plan(
    manifest: Manifest, toolkit: str, *, compute_capabilities: Sequence[str], version: str | None = None
) -> EnginePlan:
    """The engine of a release that runs on one of a machine's GPUs.

    Parameters
    ----------
    manifest : Manifest
    toolkit : str
        One of ``TOOLKITS``.
    compute_capabilities : sequence of str
        Those of the machine's GPUs, e.g. ``["8.9"]``.
    version : str, optional
        Of the toolkit that will run it; not looked at by default.

    Raises
    ------
    ReleaseError
        If there is none, if it was built by another version, or takes fewer rows than a request may have.
    """
    build = "build one on the machine that serves: m2ost build-engine RELEASE --out NEW_RELEASE"
    ours = [plan for plan in manifest.engines if plan.toolkit == toolkit]
    if not ours:
        raise ReleaseError(f"the release has no {toolkit} engine; {build} --engine {toolkit}")
    fitting = [plan for plan in ours if plan.compute_capability in compute_capabilities]
    if not fitting:
        has = ", ".join(plan.compute_capability for plan in ours)
        here = f"have {', '.join(compute_capabilities)}" if compute_capabilities else "cannot be found (no CUDA driver)"
        raise ReleaseError(
            f"the release's {toolkit} engines are for compute capability {has}, the GPUs of this machine {here}; "
            f"{build} --engine {toolkit}"
        )
    plan = fitting[0]
    if version is not None and plan.version != version:
        raise ReleaseError(
            f"{plan.file} was built by {toolkit} {plan.version} and runs with no other, here is {version}; {build} "
            f"--engine {toolkit}"
        )
    if plan.rows[2] < MAX_ROWS:
        raise ReleaseError(f"{plan.file} takes at most {plan.rows[2]} rows, a request may have {MAX_ROWS}; {build}")
    return plan


def check_servable(release: Path, manifest: Manifest, profile: str, *, compute_capabilities: Sequence[str]) -> None:
    """Refuse what would only fail, or be wrong, once a server runs.

    Parameters
    ----------
    release : Path
        The folder.
    manifest : Manifest
        Its manifest.
    profile : str
        Triton's ``--model-config-name``.
    compute_capabilities : sequence of str
        Those of the machine's GPUs.

    Raises
    ------
    ReleaseError
        If a file is not the manifest's, or the profile has no engine that this machine can run.
    """
    check_files(release, manifest)
    if profile == "cpu" and manifest.engine.precision in NOT_ON_CPU:
        raise ReleaseError(
            f"{release}: ONNX Runtime has no {manifest.engine.precision} kernels on a CPU; serve it with a GPU "
            "profile, or export with --precision fp16 or fp32"
        )
    if profile == "tensorrt":
        find_plan(manifest, "tensorrt", compute_capabilities=compute_capabilities)
