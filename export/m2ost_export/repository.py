"""The templates of ``model_repository``, fitted to one engine."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from m2ost_preprocess.contract import EXPRESSION, MODEL_ENGINE, MODEL_TILER, EngineInfo, ViewGeometry
from m2ost_preprocess.engine_plan import EnginePlan
from tritonclient.grpc import model_config_pb2

_VIEW = re.compile(r"VIEW\d+$")


def parse_config(text: str) -> Any:
    """A ``config.pbtxt`` as a ``ModelConfig`` message."""
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def template_sha256() -> str:
    """sha256 over the templates, by which a release made by another version of this package is told."""
    digest = hashlib.sha256()
    with as_file(files("m2ost_repository")) as templates:
        for path in sorted(p for p in templates.rglob("*") if p.suffix in (".py", ".pbtxt")):
            digest.update(str(path.relative_to(templates)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


TENSORRT = "tensorrt"
"""Name of the toolkit, of Triton's backend and of the profile that serves its plans."""


def write_repository(destination: Path, info: EngineInfo, plans: Sequence[EnginePlan] = ()) -> None:
    """Write every served model but the engine's own files.

    Parameters
    ----------
    destination : Path
        An existing folder; receives a folder a model, each at version 1. Configs already there are rewritten.
    info : EngineInfo
        Fits the configs: views, number of genes, and the parameters that clients read.
    plans : sequence of EnginePlan
        The release's engines. Without one of TensorRT the profile ``tensorrt`` is left out.
    """
    files_by_capability = {p.compute_capability: Path(p.file).name for p in plans if p.toolkit == TENSORRT}
    with as_file(files("m2ost_repository")) as templates:
        for config in sorted(templates.glob("*/config.pbtxt")):
            source, target = config.parent, destination / config.parent.name
            (target / "1").mkdir(parents=True, exist_ok=True)
            if (source / "1" / "model.py").is_file():
                shutil.copyfile(source / "1" / "model.py", target / "1" / "model.py")
            for profile in [config, *sorted((source / "configs").glob("*.pbtxt"))]:
                if profile.stem == TENSORRT and not files_by_capability:
                    continue
                fitted = target / profile.relative_to(source)
                fitted.parent.mkdir(exist_ok=True)
                text = fit_config(profile.read_text(encoding="utf-8"), info, files_by_capability)
                fitted.write_text(text, encoding="utf-8")


def fit_config(template: str, info: EngineInfo, plan_files: Mapping[str, str] | None = None) -> str:
    """One config fitted to an engine. The comment block at its head, which states the reasons, is kept.

    Parameters
    ----------
    template : str
        Text of a ``config.pbtxt`` for the paper's model.
    info : EngineInfo
        The engine to serve.
    plan_files : mapping of str to str, optional
        Compute capability → file name of a TensorRT plan.
    """
    config = parse_config(template)
    for tensors in (config.input, config.output):
        _fit_tensors(tensors, info)
    for step in config.ensemble_scheduling.step:
        for mapping in (step.input_map, step.output_map):
            _fit_map(mapping, info.views)
    if config.name in (MODEL_ENGINE, MODEL_TILER):
        for key, value in info.to_parameters().items():
            config.parameters[key].string_value = value
    if config.backend == TENSORRT:
        for capability, file in (plan_files or {}).items():
            config.cc_model_filenames[capability] = file
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
    for name in info.views.names if views else ():
        tensor = type(views[0])()
        tensor.CopyFrom(views[0])
        tensor.name = name
        tensor.dims[:] = info.views.shape
        fitted.append(tensor)
    for tensor in others:
        if tensor.name == EXPRESSION:
            tensor.dims[:] = [len(info.genes)]
    copies = [*fitted, *others]
    del tensors[:]
    tensors.extend(copies)


def _fit_map(mapping: Any, views: ViewGeometry) -> None:
    present = [name for name in mapping if _VIEW.match(name)]
    for name in present:
        del mapping[name]
    for name in views.names if present else ():
        mapping[name] = name


def _head(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if not line.startswith("#"):
            return
        yield line
