"""A release with engines, out of a release: to be run on the machine and in the image that serve. No torch."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from m2ost_contract import GRAPHS, ONNX_FILE, Manifest, Release, complete_folder

from .assemble import assemble, engine_folder
from .engines import EngineOptions, build_plans, find_targets
from .errors import ExportError
from .onnx_files import load_checked


def cached_engines(release: Path, cache: Path, options: EngineOptions) -> Path:
    """A release with engines for the GPUs at hand out of a cache, built there if it has none yet.

    Machines may share the cache: what an engine depends on is in its folder's name, and a folder under its final name
    is complete. Whoever builds what another has just built takes the other's.

    Parameters
    ----------
    release : Path
        The release to start from.
    cache : Path
        Folder of releases with engines.
    options : EngineOptions
        What to build.

    Returns
    -------
    Path
        The release with engines, below ``cache``; its files are those that its manifest describes.

    Raises
    ------
    As :func:`add_engines`.
    """
    toolkit, _, capabilities = find_targets(options)
    identity = Release.open(release).engine.release_sha256
    words = (identity[:16], toolkit.name, toolkit.version, *(f"sm{c}" for c in capabilities), f"rows{options.opt_rows}")
    destination = cache / "-".join(words)
    if not destination.exists():
        with suppress(FileExistsError):
            add_engines(release, destination, options)
    Release.open(destination).check()
    return destination


def add_engines(release: Path, destination: Path, options: EngineOptions) -> Manifest:
    """Write a new release: the graph of another, the engines it has, and engines built here.

    A release is immutable, and a TensorRT engine belongs to the machine and the version that built it. So engines are
    added by making a release out of a release, where it will be served; nothing but the ONNX file has to travel.

    Parameters
    ----------
    release : Path
        The release to start from.
    destination : Path
        The folder of the new one; must not exist.
    options : EngineOptions
        What to build. An engine of the same toolkit and compute capability is replaced, others are kept.

    Returns
    -------
    Manifest

    Raises
    ------
    ReleaseError
        If a file of ``release`` is not what its manifest says.
    ExportError
        If its graph has a weight that is not finite, or it predicts a slide as a whole.
    EngineBuildError
        If an engine cannot be built or came out in another precision; no release is written then.
    FileExistsError
        If ``destination`` exists.
    """
    source = Release.open(release)
    source.check()
    manifest = source.manifest
    if manifest.engine.slide_level:
        raise ExportError(f"{release}: predicts a slide as a whole, in two graphs, for which no engine is built")
    load_checked(source.onnx, manifest.engine.views)
    with complete_folder(destination) as scratch:
        engine_folder(scratch).mkdir(parents=True)
        for name in GRAPHS:
            if name in manifest.files:
                shutil.copyfile(release / name, scratch / name)
        built = build_plans(scratch / ONNX_FILE, manifest.engine, options)
        replaced = {(plan.toolkit, plan.compute_capability) for plan in built}
        kept = [p for p in manifest.engines if (p.toolkit, p.compute_capability) not in replaced]
        for plan in kept:
            shutil.copyfile(release / plan.file, scratch / plan.file)
        return assemble(
            scratch,
            manifest.engine,
            architecture=manifest.architecture,
            parity=manifest.parity,
            graph=manifest.graph,
            tools=manifest.tools,
            plans=[*kept, *built],
            name=manifest.name,
        )
