"""A checkpoint as a release: one immutable folder that is a whole Triton model repository, with its manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from m2ost.architecture import NOTHING
from m2ost.card import ModelCard
from m2ost.module import Network
from m2ost.network import M2OST
from m2ost.symmetries import with_test_time
from m2ost.systems.histogene import SlideNetwork
from m2ost.systems.registry import system_of, to_dict
from m2ost_contract import (
    BODY_FILE,
    ONNX_FILE,
    SEQUENCE_FILE,
    TAIL_FILE,
    EngineInfo,
    Manifest,
    SlideLevel,
    check_name,
    complete_folder,
    sha256_file,
)
from m2ost_contract.progress import tell
from m2ost_serving.engine.mixed import bf16_instructions

from .assemble import assemble, engine_folder, tool_versions
from .engines import EngineOptions, build_plans, find_targets
from .errors import ExportError
from .forms import PlainNetwork, comparable_views, engine_form, only_m2ost
from .fused import FusedM2OST
from .gate import MIN_R_GENE, measure_gate
from .graph import Parity, check_weights, export_onnx, measure_parity
from .onnx_files import describe
from .probes import Views
from .split import export_split, measure_split_parity
from .split_gate import measure_split_gate
from .stages import (
    export_patch_stage,
    export_slide_stage,
    measure_parity_of_stages,
    measure_patch_parity,
    slide_level,
)

_STAGES = 3
"""Of an export: the graph, its gate, and what is built and written."""


def build_release(
    model: Network,
    card: ModelCard,
    destination: Path,
    *,
    precision: str = "fp32",
    spots: tuple[str, Views] | None = None,
    slides: Sequence[tuple[str, Views]] = (),
    gated: Mapping[str, Any] | None = None,
    engines: EngineOptions | None = None,
    test_time: str | None = None,
    name: str = "",
) -> Manifest:
    """Export a checkpoint and write its release; nothing is left behind unless every gate passes.

    Parameters
    ----------
    model : Network
        In eval mode, float32.
    card : ModelCard
        Its card, with the sha256 of the saved weights.
    destination : Path
        The release folder; must not exist.
    precision : str
        ``fp32``, ``fp16`` or ``bf16``.
    spots : (str, list of ndarray), optional
        Name and views of real spots for the gate of a reduced precision; without them it looks at made ones.
    slides : sequence of (str, list of ndarray)
        Names and views of real spots for the gate of bfloat16, in ``fp32`` only. Without them, and without ``gated``,
        the release has no body and tail, and is not served in bfloat16.
    gated : mapping, optional
        What that gate measured of these weights before, as :func:`~m2ost_export.split_gate.measured_gate` reads it.
    engines : EngineOptions, optional
        Engines to build from the graph.
    test_time : str, optional
        What is averaged inside the graph, one of :data:`m2ost.architecture.TEST_TIMES`; by default as the card says.
    name : str
        What the release is called on a server of several; by default as its architecture.

    Returns
    -------
    Manifest

    Raises
    ------
    ExportError
        If a weight is not finite; if a float32 graph differs from the network by more than 1e-4 at any batch size; if
        another precision, or body and tail in bfloat16, fail their gate; if an engine cannot be built; or if the system
        has no such form.
    EngineError
        If body and tail are to be measured, and this machine does not compute in bfloat16.
    ServedNameError
        If a release cannot be called so.
    FileExistsError
        If ``destination`` exists: a release is immutable.
    """
    check_weights(model)
    if name:
        check_name(name)
    if slides and precision != "fp32":
        raise ExportError(f"refused: body and tail are made of a network in fp32, not {precision}")
    if slides:
        only_m2ost(model, "the profile cpu-bf16")
        bf16_instructions()
    if engines:
        find_targets(engines)
    test_time = test_time or card.test_time
    if isinstance(model, SlideNetwork):
        return _build_slide_level(model, card, destination, precision, engines, test_time, name)
    form, reference = engine_form(model, precision, test_time), with_test_time(model, test_time)
    with complete_folder(destination) as scratch:
        engine_folder(scratch).mkdir(parents=True)
        onnx_path = scratch / ONNX_FILE
        tell("the graph", 0, _STAGES)
        graph = export_onnx(form, onnx_path)
        tell("its gate", 1, _STAGES)
        if precision == "fp32":
            parity = _check_parity(measure_parity(reference, onnx_path, views=comparable_views(reference)))
            if (slides or gated) and isinstance(model, M2OST) and isinstance(form, FusedM2OST):
                parity["split"] = _write_split(model, form, scratch, card, slides, gated)
        else:
            parity = _check_gate(reference, form, graph, card, spots)
        info = _describe(model, card, onnx_path, precision)
        tell("engines" if engines else "the folder", 2, _STAGES)
        plans = build_plans(onnx_path, info, engines) if engines else ()
        return assemble(
            scratch,
            info,
            architecture=to_dict(model.config),
            parity=parity,
            graph={**describe(graph), "test_time": test_time, "head": card.head},
            tools=tool_versions(),
            plans=plans,
            name=name,
        )


def _build_slide_level(
    model: SlideNetwork,
    card: ModelCard,
    destination: Path,
    precision: str,
    engines: EngineOptions | None,
    test_time: str,
    name: str,
) -> Manifest:
    """Write the release of a network that predicts a slide as a whole: its two stages, in float32."""
    title = system_of(model.config).title
    for asked, what in (
        (precision != "fp32", precision),
        (engines, "a TensorRT engine"),
        (test_time != NOTHING, test_time),
    ):
        if asked:
            raise ExportError(
                f"refused: {title} predicts a slide as a whole and is exported in fp32 alone, not as {what}"
            )
    with complete_folder(destination) as scratch:
        onnx_path, sequence_path = scratch / ONNX_FILE, scratch / SEQUENCE_FILE
        for path in (onnx_path, sequence_path):
            path.parent.mkdir(parents=True)
        patches, sequence = export_patch_stage(model, onnx_path), export_slide_stage(model, sequence_path)
        parity = _check_parity(measure_patch_parity(model, onnx_path), "the stage for patches on ONNX Runtime differs")
        parity["sequence"] = _check_parity(
            measure_parity_of_stages(model, onnx_path, sequence_path), "both stages on ONNX Runtime differ"
        )
        return assemble(
            scratch,
            _describe(model, card, onnx_path, precision, slide_level(model)),
            architecture=to_dict(model.config),
            parity=parity,
            graph={**describe(patches), "sequence": describe(sequence), "test_time": test_time, "head": card.head},
            tools=tool_versions(),
            name=name,
        )


def _describe(
    model: Network, card: ModelCard, onnx_path: Path, precision: str, slide_level: SlideLevel | None = None
) -> EngineInfo:
    """What a release says of itself, but for its own identity."""
    return EngineInfo(
        genes=card.genes,
        views=model.config.views,
        mpp=card.mpp,
        target=card.target,
        trained=card.trained,
        precision=precision,
        checkpoint_sha256=card.sha256,
        onnx_sha256=sha256_file(onnx_path),
        release_sha256="",
        slide_level=slide_level,
    )


def _check_parity(parity: Parity, what: str = "ONNX Runtime differs") -> dict[str, Any]:
    if not parity.passed:
        raise ExportError(
            f"refused: {what} from PyTorch by {parity.max_abs_diff} (batch: max |Δ|), "
            f"tolerance {parity.tolerance:g}; no release was written"
        )
    return {
        "tolerance": parity.tolerance,
        "max_abs_diff": {str(batch): diff for batch, diff in parity.max_abs_diff.items()},
    }


def _write_split(
    model: M2OST,
    fused: FusedM2OST,
    scratch: Path,
    card: ModelCard,
    slides: Sequence[tuple[str, Views]],
    gated: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Write body and tail; what was measured of them."""
    body, tail = scratch / BODY_FILE, scratch / TAIL_FILE
    export_split(fused, body, tail)
    parity = _check_parity(measure_split_parity(model, body, tail), "body and tail on ONNX Runtime differ")
    if slides:
        parity["gate"] = _check_split_gate(model, body, tail, card, slides)
    elif gated:
        parity["gate"] = dict(gated)
    return parity


def _check_split_gate(
    model: M2OST, body: Path, tail: Path, card: ModelCard, slides: Sequence[tuple[str, Views]]
) -> dict[str, Any]:
    gate = measure_split_gate(model, body, tail, card.genes, slides)
    if not gate.passed:
        raise ExportError(
            f"refused: bfloat16 changes the outputs too much (r per gene must be {MIN_R_GENE} at least on every slide, "
            f"and every output finite); no release was written, without --gate-slide one is\n{gate.in_words()}"
        )
    return gate.to_dict()


def _check_gate(
    model: Network,
    form: FusedM2OST | PlainNetwork,
    graph: onnx.ModelProto,
    card: ModelCard,
    spots: tuple[str, Views] | None,
) -> dict[str, Any]:
    gate = measure_gate(model, form, graph, card.genes, spots=spots)
    if not gate.passed:
        raise ExportError(
            f"refused: {form.precision} changes the outputs too much (r per gene must be {MIN_R_GENE} at least on "
            f"{gate.decided_on}, and every output finite); no release was written\n{gate.in_words()}"
        )
    return {"gate": gate.to_dict()}
