"""The names and shapes of checkpoints of the authors' M2OST.

Source of the key names: state dicts of the public repository ``Dootmaan/M2OST`` (commit 60fd90a), saved from
``nn.DataParallel``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor

from .config import M2OSTConfig
from .weights import CheckpointError, in_words, key_problems

_LEVELS, _HEAD_DIM, _PATCH_PX = 3, 64, 16

# Left: their key. Right: ours, with {n} the block and {l} the level that counts from 0 here.
# Their levels count from 1 in some names and from 0 in others.
_FROM_ONE = {
    "pos_embedding{l}": "embed.positions.{l}",
    "to_patch_embedding{l}.1.*": "embed.embeddings.{l}.0.*",
    "to_patch_embedding{l}.2.*": "embed.embeddings.{l}.1.*",
    "to_patch_embedding{l}.4.*": "embed.embeddings.{l}.3.*",
    "to_patch_embedding{l}.5.*": "embed.embeddings.{l}.4.*",
    "transformer.layers.{n}.0.to_qkv{l}.*": "blocks.{n}.intra.qkv.{l}.*",
    "transformer.layers.{n}.0.to_out{l}.0.*": "blocks.{n}.intra.out.{l}.*",
}
_FROM_ZERO = {
    "transformer.layers.{n}.2.to_q{l}.*": "blocks.{n}.cross.q.{l}.*",
    "transformer.layers.{n}.2.to_k{l}.*": "blocks.{n}.cross.k.{l}.*",
    "transformer.layers.{n}.2.to_v{l}.*": "blocks.{n}.cross.v.{l}.*",
    "transformer.layers.{n}.2.to_out{l}.0.*": "blocks.{n}.cross.out.{l}.*",
}
_WITHOUT_LEVEL = {
    "cls_token": "embed.cls_token",
    "transformer.norm.*": "norm.*",
    "mlp_head.*": "head.*",
    "transformer.layers.{n}.0.norm.*": "blocks.{n}.intra.unused_norm.*",
    "transformer.layers.{n}.1.split_mlp.0.*": "blocks.{n}.intra.feed_forward.0.*",
    "transformer.layers.{n}.1.split_mlp.1.*": "blocks.{n}.intra.feed_forward.1.*",
    "transformer.layers.{n}.1.split_mlp.4.*": "blocks.{n}.intra.feed_forward.3.*",
    "transformer.layers.{n}.2.norm.*": "blocks.{n}.cross.norm.*",
    "transformer.layers.{n}.3.net.0.*": "blocks.{n}.channel.excite.0.*",
    "transformer.layers.{n}.3.net.1.*": "blocks.{n}.channel.excite.1.*",
    "transformer.layers.{n}.3.net.4.*": "blocks.{n}.channel.excite.3.*",
}


def key_map(depth: int) -> dict[str, str]:
    """Official key (without ``module.``) → our key, for a three-level network of ``depth`` blocks.

    A ``.*`` in the tables above stands for ``.weight`` and, but for the bias-free projections, ``.bias``.
    """
    pairs = dict(_WITHOUT_LEVEL)
    for level in range(_LEVELS):
        for table, first in ((_FROM_ONE, 1), (_FROM_ZERO, 0)):
            for theirs, ours in table.items():
                pairs[theirs.replace("{l}", str(level + first))] = ours.replace("{l}", str(level))
    keys: dict[str, str] = {}
    for theirs, ours in pairs.items():
        bias_free = re.search(r"to_(qkv|q|k|v)\d\.\*$", theirs)
        leaves = [""] if not theirs.endswith("*") else ["weight"] if bias_free else ["weight", "bias"]
        blocks = range(depth) if "{n}" in theirs else [0]
        for n in blocks:
            for leaf in leaves:
                name = theirs.replace("{n}", str(n)).removesuffix("*") + leaf
                keys[name] = ours.replace("{n}", str(n)).removesuffix("*") + leaf
    return keys


def infer_config(state: Mapping[str, Tensor], source: str) -> M2OSTConfig:
    """Read the architecture off the shapes of an official state dict.

    Raises
    ------
    CheckpointError
        If a tensor that the sizes are read from is missing or has an impossible shape.
    """

    def shape(key: str, dims: int) -> tuple[int, ...]:
        if key not in state:
            raise CheckpointError(f"{source}: not a checkpoint of the authors' M2OST: missing {key}")
        if state[key].ndim != dims:
            raise CheckpointError(f"{source}: {key} has shape {tuple(state[key].shape)}, expected {dims} dimensions")
        return tuple(state[key].shape)

    blocks = [int(m.group(1)) for k in state if (m := re.match(r"transformer\.layers\.(\d+)\.", k))]
    if not blocks:
        raise CheckpointError(f"{source}: not a checkpoint of the authors' M2OST: missing transformer.layers.0.*")
    _, length, dim = shape("pos_embedding1", 3)
    grid = math.isqrt(length - 1)
    inner = shape("transformer.layers.0.0.to_qkv1.weight", 2)[0] // 3
    if grid * grid != length - 1 or inner % _HEAD_DIM:
        raise CheckpointError(f"{source}: {length} positions and an attention width of {inner} fit no M2OST")
    try:
        return M2OSTConfig(
            n_genes=shape("mlp_head.weight", 2)[0],
            n_levels=_LEVELS,
            image_px=grid * _PATCH_PX,
            patch_px=_PATCH_PX,
            dim=dim,
            depth=max(blocks) + 1,
            heads=inner // _HEAD_DIM,
            head_dim=_HEAD_DIM,
            ffn_dim=shape("transformer.layers.0.1.split_mlp.1.weight", 2)[0],
            channel_dim=shape("transformer.layers.0.3.net.1.weight", 2)[0],
        )
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error


def own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under our names, whether it has these or the authors'."""
    return translate(state, "the file")[1] if "pos_embedding1" in state else dict(state)


def translate(state: Mapping[str, Tensor], source: str) -> tuple[M2OSTConfig, dict[str, Tensor]]:
    """Architecture and weights under our names, out of an official state dict (without ``module.``).

    Raises
    ------
    CheckpointError
        If it is no such checkpoint, or a key is missing or unexpected (each is named).
    """
    config = infer_config(state, source)
    names = key_map(config.depth)
    problems = key_problems(names, state)
    if problems:
        raise CheckpointError(f"{source}: keys are not those of the authors' M2OST: {in_words(problems)}")
    return config, {ours: state[theirs] for theirs, ours in names.items()}
