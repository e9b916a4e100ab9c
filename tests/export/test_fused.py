"""The form made for engines is the same network."""

import pytest
import torch
from m2ost.checkpoint import initialise, load
from m2ost.config import M2OSTConfig
from m2ost.shipped import shipped_checkpoint
from m2ost_export.fused import FusedM2OST
from m2ost_export.onnx_files import describe
from m2ost_export.probes import probe_views, slide_views

from .networks import SMALL

ROUNDING = 1e-5


def tensors(views):
    return [torch.from_numpy(view) for view in views]


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"n_levels": 1},
        {"n_levels": 2, "depth": 3},
        {"n_levels": 4, "heads": 3},
        {"image_px": 96, "head_dim": 8},
        {"levels": (0, 2), "depth": 2},
        {"levels": (2,)},
        {"n_levels": 2, "levels": (1,)},
    ],
    ids=str,
)
def test_the_same_outputs_to_rounding_at_every_size(sizes):
    config = M2OSTConfig(**{**SMALL.to_dict(), **sizes})
    model, _ = initialise(config, tuple(f"g{i}" for i in range(6)))
    views = tensors(probe_views(config.views, 14, seed=5))
    with torch.inference_mode():
        expected, found = model(*views), FusedM2OST(model).eval()(*views)
    assert expected.std(dim=0).min() > 100 * ROUNDING, "outputs without contrast would agree by luck"
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING)


def test_the_same_outputs_of_the_shipped_checkpoint_on_real_spots(section, selection):
    with shipped_checkpoint() as checkpoint:
        model, _ = load(checkpoint)
    views = tensors(slide_views(section, model.config.views, spots=selection, most=3))
    with torch.inference_mode():
        expected, found = model(*views), FusedM2OST(model).eval()(*views)
    torch.testing.assert_close(found, expected, rtol=0, atol=2 * ROUNDING)


def test_a_reduced_form_keeps_norms_and_head_in_float32(small_fp16):
    wide = {name for name, weight in small_fp16.fused.state_dict().items() if weight.dtype == torch.float32}
    assert {name for name in wide if "norm" not in name and not name.startswith("embeddings.")} == {
        "head.weight",
        "head.bias",
    }
    assert small_fp16.fused.blocks[0].cross_qkv[0].project.weight.dtype == torch.float16


def test_the_graph_has_no_shape_arithmetic_and_every_merge(small_fp16):
    facts = describe(small_fp16.graph)
    operators = facts["operators"]
    assert not operators.keys() & {"Shape", "Gather", "Expand", "Range", "ConstantOfShape", "Where", "Squeeze", "Div"}
    levels, pairs = 3, 6
    # Patch MLPs by patch size; q·k·v and output of ITMM, and of CTMM, by level; two feed-forwards; two of CCMM;
    # two multiplications for each attention. The head is a Gemm.
    assert operators["MatMul"] == 2 * levels + 2 * levels + 2 * levels + 2 + 2 + 2 * (levels + pairs)
    assert operators["Gemm"] == 1
    assert operators["Softmax"] == levels + pairs
    # Two for each patch size; feed-forward, CTMM and CCMM; cls of each level.
    assert operators["LayerNormalization"] == 2 * levels + 3 + levels
