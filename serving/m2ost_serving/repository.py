"""The files that Triton loads: the templates of ``model_repository`` fitted to one engine."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from m2ost_contract import (
    ENGINE_PARAMETER,
    EXPRESSION,
    FEATURES,
    INSTRUCTIONS_PARAMETER,
    MODEL_ENGINE,
    MODEL_INFO,
    MODEL_SLIDE,
    MODEL_TILER,
    OPENVINO_CPU_BF16,
    SERVED_PARAMETER,
    EngineInfo,
    EnginePlan,
    Manifest,
    ModelNames,
    Release,
    complete_folder,
)
from tritonclient.grpc import model_config_pb2

_VIEW = re.compile(r"VIEW\d+$")
_PROFILE = re.compile(r"trt_profile_(min|opt|max)_shapes$")

TEMPLATES = "m2ost_repository"
"""The package that holds the templates of a release's models."""

SLIDE_LEVEL = f"{TEMPLATES}.slide_level"
"""The package of those that a slide-level release has beside them, or in place of one of the same name."""


def parse_config(text: str) -> Any:
    """A ``config.pbtxt`` as a ``ModelConfig`` message."""
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def template_sha256(package: str = TEMPLATES) -> str:
    """sha256 over the templates in a package, by which an export made by another version of it is told."""
    digest = hashlib.sha256()
    with as_file(files(package)) as templates:
        for folder in _models(templates):
            for path in sorted(p for p in folder.rglob("*") if p.suffix in (".py", ".pbtxt")):
                digest.update(str(path.relative_to(templates)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def models_sha256(info: EngineInfo) -> str:
    """:func:`template_sha256` of the models of a release."""
    own = template_sha256()
    return (
        own
        if info.slide_level is None
        else hashlib.sha256(f"{own} {template_sha256(SLIDE_LEVEL)}".encode()).hexdigest()
    )


def template_profiles(package: str = TEMPLATES) -> set[str]:
    """Names of the profiles that the templates in a package have, beside the default."""
    with as_file(files(package)) as templates:
        return {config.stem for folder in _models(templates) for config in folder.glob("configs/*.pbtxt")}


MODELS_TOOL = "models"
"""Among the tools of a release's manifest: :func:`models_sha256` of the models that it holds."""

TENSORRT = "tensorrt"
"""Name of the toolkit, of Triton's backend and of the profile that serves its plans."""


def write_repository(
    destination: Path,
    info: EngineInfo,
    plans: Sequence[EnginePlan] = (),
    *,
    bf16_instructions: str = "",
    parameters: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Write every served model but the engine's own files.

    Parameters
    ----------
    destination : Path
        An existing folder; receives a folder a model, each at version 1. Configs already there are rewritten.
    info : EngineInfo
        Fits the configs: views, number of genes, the names of the models, and the parameters that clients read.
    plans : sequence of EnginePlan
        The release's engines.
    bf16_instructions : str
        See :attr:`m2ost_contract.Manifest.bf16_instructions`.
    parameters : mapping, optional
        Further parameters of a model's config, by the model's name in a release that is served alone.
    """
    plan_files = {p.compute_capability: Path(p.file).name for p in plans if p.toolkit == TENSORRT}
    for package in (TEMPLATES,) if info.slide_level is None else (TEMPLATES, SLIDE_LEVEL):
        write_models(
            destination,
            lambda template: fit_config(
                template, info, plan_files, bf16_instructions=bf16_instructions, parameters=parameters
            ),
            package,
            served_as=info.names.of,
        )


def write_again(destination: Path, release: Release, parameters: Mapping[str, Mapping[str, str]] | None = None) -> None:
    """Write the models of a release as this version of the package has them.

    Parameters
    ----------
    destination, parameters
        See :func:`write_repository`.
    release : Release
    """
    manifest = release.manifest
    write_repository(
        destination,
        release.engine,
        manifest.engines,
        bf16_instructions=manifest.bf16_instructions,
        parameters=served_alone(manifest.served_name) if parameters is None else parameters,
    )


def served_alone(name: str) -> dict[str, dict[str, str]]:
    """Parameters of the models of a release that is served alone, for clients that ask for it by its name."""
    return {} if name == MODEL_ENGINE else {MODEL_INFO: {SERVED_PARAMETER: json.dumps({name: MODEL_ENGINE})}}


def current_models(release: Release, parent: Path) -> Path:
    """A release's models as this version of the package has them: what they import is this version's too.

    Parameters
    ----------
    release : Release
    parent : Path
        Where a folder is made if the release was exported with other models: its engines under those of this version.
        Its name is of this release where it lies, and of this version.

    Returns
    -------
    Path
        The release's own folder, or one in ``parent``.
    """
    models = models_sha256(release.engine)
    if release.manifest.tools.get(MODELS_TOOL) == models:
        return release.folder
    key = f"{release.folder.resolve()}\0{models}".encode("utf-8", "surrogateescape")
    folder = parent / f"release-{hashlib.sha256(key).hexdigest()[:16]}"
    if not folder.exists():
        with complete_folder(folder) as scratch:
            write_again(scratch, release)
            for name in (*release.manifest.files, Manifest.FILENAME):
                link = scratch / name
                if Path(name).suffix not in (".py", ".pbtxt"):
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to((release.folder / name).resolve())
    return folder


def write_models(
    destination: Path,
    fit: Callable[[str], str],
    package: str = TEMPLATES,
    *,
    served_as: Callable[[str], str] = str,
) -> None:
    """Write the models of a package of templates.

    Parameters
    ----------
    destination : Path
        An existing folder; receives a folder a model, each at version 1. Configs already there are rewritten.
    fit : callable
        Text of a template's config → text of the config.
    package : str
        Import name of the package that holds them, a folder a model.
    served_as : callable
        Name of a template → name of its model.
    """
    with as_file(files(package)) as templates:
        for source in _models(templates):
            target = destination / served_as(source.name)
            (target / "1").mkdir(parents=True, exist_ok=True)
            if (source / "1" / "model.py").is_file():
                shutil.copyfile(source / "1" / "model.py", target / "1" / "model.py")
            for profile in [source / "config.pbtxt", *sorted((source / "configs").glob("*.pbtxt"))]:
                fitted = target / profile.relative_to(source)
                fitted.parent.mkdir(exist_ok=True)
                fitted.write_text(fit(profile.read_text(encoding="utf-8")), encoding="utf-8")


def _models(folder: Path) -> list[Path]:
    return sorted(config.parent for config in folder.glob("*/config.pbtxt"))


def fit_config(
    template: str,
    info: EngineInfo,
    plan_files: Mapping[str, str] | None = None,
    *,
    bf16_instructions: str = "",
    parameters: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """One config fitted to an engine. The comment block at its head, which states the reasons, is kept.

    Parameters
    ----------
    template : str
        Text of a ``config.pbtxt`` for the paper's model.
    info : EngineInfo
        The engine to serve.
    plan_files : mapping of str to str, optional
        Compute capability → file name of a TensorRT plan.
    bf16_instructions : str
        What the engine in bfloat16 may run on.
    parameters : mapping, optional
        See :func:`write_repository`.
    """
    config = parse_config(template)
    for tensors in (config.input, config.output):
        _fit_tensors(tensors, info)
    for step in config.ensemble_scheduling.step:
        for mapping in (step.input_map, step.output_map):
            _fit_map(mapping, info)
    whole = config.name == MODEL_SLIDE and info.slide_level is not None
    if config.name in (MODEL_ENGINE, MODEL_TILER) or whole:
        for key, value in info.to_parameters().items():
            config.parameters[key].string_value = value
    named = ENGINE_PARAMETER in config.parameters
    if named and config.parameters[ENGINE_PARAMETER].string_value == OPENVINO_CPU_BF16:
        config.parameters[INSTRUCTIONS_PARAMETER].string_value = bf16_instructions
    if config.backend == TENSORRT:
        for capability, file in (plan_files or {}).items():
            config.cc_model_filenames[capability] = file
    for accelerator in config.optimization.execution_accelerators.gpu_execution_accelerator:
        _fit_accelerator(accelerator.parameters, info)
    for key, value in (parameters or {}).get(config.name, {}).items():
        config.parameters[key].string_value = value
    _fit_names(config, info.names)
    return finish_config(config, template)


def finish_config(config: Any, template: str) -> str:
    """A fitted config as text: warm-ups sent zeros of every input, and the template's head kept."""
    for warmup in config.model_warmup:
        for tensor in config.input:
            spec = warmup.inputs[tensor.name]
            spec.data_type, spec.zero_data = tensor.data_type, True
            spec.dims.extend(tensor.dims)
    fitted: str = text_format.MessageToString(config, as_utf8=True)
    return "".join(f"{line}\n" for line in _head(template)) + fitted


def _fit_tensors(tensors: Any, info: EngineInfo) -> None:
    views = [t for t in tensors if _VIEW.match(t.name)]
    others = [t for t in tensors if not _VIEW.match(t.name)]
    fitted = []
    gives, values = info.gives
    for name in info.views.names if views else ():
        tensor = type(views[0])()
        tensor.CopyFrom(views[0])
        tensor.name = name
        tensor.dims[:] = info.views.shape
        fitted.append(tensor)
    for tensor in others:
        whole = len(tensor.dims) == 2  # all spots of a slide, of any number
        if tensor.name == EXPRESSION and whole:
            tensor.dims[1] = len(info.genes)
        elif tensor.name == EXPRESSION:
            tensor.name, tensor.dims[:] = gives, [values]
        elif tensor.name == FEATURES:
            tensor.dims[-1] = values
    copies = [*fitted, *others]
    del tensors[:]
    tensors.extend(copies)


def _fit_map(mapping: Any, info: EngineInfo) -> None:
    views, gives = info.views, info.gives[0]
    if gives not in mapping and mapping.get(EXPRESSION) == EXPRESSION:
        del mapping[EXPRESSION]
        mapping[gives] = gives
    present = [name for name in mapping if _VIEW.match(name)]
    for name in present:
        del mapping[name]
    for name in views.names if present else ():
        mapping[name] = name


def _fit_names(config: Any, names: ModelNames) -> None:
    config.name = names.of(config.name)
    for step in config.ensemble_scheduling.step:
        step.model_name = names.of(step.model_name)
    for key in config.parameters:
        if key.endswith("_model"):
            config.parameters[key].string_value = names.of(config.parameters[key].string_value)


def _fit_accelerator(parameters: Any, info: EngineInfo) -> None:
    """Optimisation profile of ONNX Runtime's TensorRT provider; the template gives its rows."""
    for key in [key for key in parameters if _PROFILE.match(key)]:
        rows = parameters[key].partition(":")[2].partition("x")[0]
        shape = "x".join(map(str, (rows, *info.views.shape)))
        parameters[key] = ",".join(f"{name}:{shape}" for name in info.views.names)


def _head(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if not line.startswith("#"):
            return
        yield line
