"""iStar as one immutable folder with its networks and models, which Triton loads beside a release."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from m2ost_contract import EXPRESSION, MAX_ROWS, complete_folder, sha256_file
from m2ost_export.assemble import file_hashes, sha256_json, tool_versions
from m2ost_export.errors import ExportError
from m2ost_export.graph import Parity, compare, write_graph
from m2ost_export.onnx_files import GraphTensor
from m2ost_serving.repository import finish_config, parse_config, write_models

from .geometry import VARIANTS
from .manifest import (
    CLS,
    FEATURES,
    GRID,
    MAX_HEAD_ROWS,
    NETWORK_MODELS,
    PATCH,
    REGION,
    TOKENS,
    IStarInfo,
    IStarManifest,
)
from .networks.istar import IStar
from .sizes import PATCH_PX, Sizes
from .sizes import TOKENS as TOKENS_A_PATCH

TEMPLATES = "m2ost_istar.repository"
ONNX_FILE = "model.onnx"

PATCH_BATCHES, HEAD_BATCHES = (1, 2, 7), (1, 2, 301)
REGION_GRIDS = ((1, 1), (2, 9), (14, 14), (23, 16))
_FLOAT = onnx.TensorProto.FLOAT


def build_istar(model: IStar, genes: tuple[str, ...], destination: Path, *, variant: str = "tissue") -> IStarManifest:
    """Export iStar's networks and write their folder; nothing is left behind unless every gate passes.

    Parameters
    ----------
    model : IStar
        In eval mode, float32.
    genes : tuple of str
        Names of the head's outputs.
    destination : Path
        The folder; must not exist.
    variant : str
        What ``istar_slide`` does: one of ``VARIANTS``.

    Returns
    -------
    IStarManifest

    Raises
    ------
    ExportError
        If a graph differs from its network by more than 1e-4, or genes or variant do not fit.
    FileExistsError
        If ``destination`` exists: an exported folder is immutable.
    """
    if variant not in VARIANTS:
        raise ExportError(f"the variant must be one of {', '.join(VARIANTS)}, not {variant!r}")
    if len(genes) != model.sizes.n_genes or len(set(genes)) != len(genes):
        raise ExportError(f"{model.sizes.n_genes} different genes are needed, {len(set(genes))} are given")
    with complete_folder(destination) as scratch:
        graphs = {network: scratch / name / "1" / ONNX_FILE for network, name in NETWORK_MODELS.items()}
        parity = {}
        for network, path in graphs.items():
            path.parent.mkdir(parents=True)
            parity[network] = _export(network, model, path)
            if not parity[network].passed:
                raise ExportError(
                    f"refused: the {network} network on ONNX Runtime differs from PyTorch by "
                    f"{parity[network].max_abs_diff} (batch: max |Δ|), tolerance {parity[network].tolerance:g}; "
                    "nothing was written"
                )
        info = IStarInfo(
            genes=genes,
            sizes=model.sizes,
            variant=variant,
            pretrained=model.pretrained,
            head_trained=False,
            precision="fp32",
            weights=model.weights,
            onnx_sha256={network: sha256_file(path) for network, path in graphs.items()},
            folder_sha256="",
        )
        _write(scratch, info)
        # The identity is that of every file as it stands without the identity itself, which the configs carry.
        info = replace(info, folder_sha256=sha256_json(file_hashes(scratch)))
        _write(scratch, info)
        manifest = IStarManifest(
            info=info,
            flop={"patch": model.sizes.patch_flop, "head": model.sizes.head_flop},
            parity={
                network: {"tolerance": p.tolerance, "max_abs_diff": {str(b): d for b, d in p.max_abs_diff.items()}}
                for network, p in parity.items()
            },
            tools=tool_versions(),
            files=file_hashes(scratch),
        )
        manifest.write(scratch)
    return manifest


def _export(network: str, model: IStar, path: Path) -> Parity:
    export = {"patch": _export_patch, "region": _export_region, "head": _export_head}[network]
    return export(model, path)


def _export_patch(model: IStar, path: Path) -> Parity:
    shape, dim = (PATCH_PX, PATCH_PX, 3), model.sizes.patch_dim
    write_graph(
        model.vit256,
        path,
        example=(torch.zeros(2, *shape, dtype=torch.uint8),),
        inputs=[GraphTensor(PATCH, onnx.TensorProto.UINT8, ("batch", *shape))],
        outputs=[GraphTensor(CLS, _FLOAT, ("batch", dim)), GraphTensor(TOKENS, _FLOAT, ("batch", TOKENS_A_PATCH, dim))],
        dynamic_shapes={"pixels": {0: torch.export.Dim("batch", min=1, max=MAX_ROWS)}},
    )
    return compare(model.vit256, path, {n: {PATCH: probe_patches(n, seed=n)} for n in PATCH_BATCHES})


def _export_region(model: IStar, path: Path) -> Parity:
    dim = model.sizes.patch_dim
    write_graph(
        model.vit4k,
        path,
        example=(torch.zeros(3, 5, dim),),
        inputs=[GraphTensor(GRID, _FLOAT, ("rows", "columns", dim))],
        outputs=[GraphTensor(REGION, _FLOAT, ("rows", "columns", model.sizes.region_dim))],
        dynamic_shapes={"grid": {0: torch.export.Dim("rows", min=1), 1: torch.export.Dim("columns", min=1)}},
    )
    grids = {h * w: {GRID: _normal((h, w, dim), seed=h * w)} for h, w in REGION_GRIDS}
    return compare(model.vit4k, path, grids)


def _export_head(model: IStar, path: Path) -> Parity:
    dim = model.sizes.feature_dim
    write_graph(
        model.head,
        path,
        example=(torch.zeros(2, dim),),
        inputs=[GraphTensor(FEATURES, _FLOAT, ("rows", dim))],
        outputs=[GraphTensor(EXPRESSION, _FLOAT, ("rows", model.sizes.n_genes))],
        dynamic_shapes={"features": {0: torch.export.Dim("rows", min=1, max=MAX_HEAD_ROWS)}},
    )
    return compare(model.head, path, {n: {FEATURES: _normal((n, dim), seed=n)} for n in HEAD_BATCHES})


def probe_patches(batch: int, *, seed: int) -> Any:
    """Patches over the full range of inputs: noise over steps, and, from the third row on, black and white."""
    random = np.random.default_rng(seed)
    steps = random.integers(0, 256, (batch, 8, 8, 3)).repeat(PATCH_PX // 8, axis=1).repeat(PATCH_PX // 8, axis=2)
    patches = (steps + random.integers(-20, 21, steps.shape)).clip(0, 255).astype(np.uint8)
    patches[2:3], patches[3:4] = 0, 255
    return patches


def _normal(shape: tuple[int, ...], *, seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _write(folder: Path, info: IStarInfo) -> None:
    write_models(folder, lambda template: fit_istar_config(template, info), TEMPLATES)


def fit_istar_config(template: str, info: IStarInfo) -> str:
    """One of the configs fitted to the networks; all carry the folder's identity as parameters."""
    config = parse_config(template)
    for tensor in (*config.input, *config.output):
        for axis, length in _widths(info.sizes).get(tensor.name, {}).items():
            tensor.dims[axis] = length
    for key, value in info.to_parameters().items():
        config.parameters[key].string_value = value
    return finish_config(config, template)


def _widths(sizes: Sizes) -> Mapping[str, Mapping[int, int]]:
    return {
        CLS: {-1: sizes.patch_dim},
        TOKENS: {-1: sizes.patch_dim},
        GRID: {-1: sizes.patch_dim},
        REGION: {-1: sizes.region_dim},
        FEATURES: {-1: sizes.feature_dim},
        EXPRESSION: {-1: sizes.n_genes},
    }
