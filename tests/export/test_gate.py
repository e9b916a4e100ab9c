"""A reduced precision becomes a release only if it changes next to nothing."""

import numpy as np
import onnxruntime as ort
import pytest
import torch
from m2ost.checkpoint import save
from m2ost_contract import Manifest, ViewGeometry
from m2ost_export.errors import ExportError
from m2ost_export.gate import Agreement, Gate, measure_gate
from m2ost_export.onnx_files import as_float32, load_checked
from m2ost_export.probes import N_EXTREMES, probe_views, slide_views, smooth_rows
from m2ost_export.release import build_release
from m2ost_preprocess.errors import SpotError
from onnx import TensorProto, numpy_helper, save_model

from .networks import GENES, SMALL, small_network


def test_without_a_slide_made_views_decide(small_release):
    manifest = Manifest.read(small_release)
    assert manifest.parity["gate"]["decided_on"] == "made"
    graph = load_checked(small_release / "m2ost" / "1" / "model.onnx", SMALL.views).graph
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert weights["embeddings.0.0.bias"] == TensorProto.FLOAT16
    assert weights["patch_norms.0.bias"] == weights["head.bias"] == TensorProto.FLOAT


@pytest.mark.usefixtures("heavy")
def test_a_step_beyond_float16_is_refused_though_onnx_runtime_hides_it_on_a_cpu(tmp_path):
    model, card = small_network(n_levels=1)
    with torch.no_grad():
        model.blocks[0].intra.feed_forward[1].weight.mul_(6e4)
        model.blocks[0].intra.feed_forward[3].weight.div_(6e4)
    card = save(tmp_path / "checkpoint", model, card)
    with pytest.raises(ExportError, match=r"refused: fp16.*\n  arithmetic, .* not finite\n  graph, .* apart"):
        build_release(model, card, tmp_path / "release", precision="fp16")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.usefixtures("heavy")
def test_bf16_is_refused_with_its_figures(tmp_path):
    model, card = small_network(n_levels=1)
    card = save(tmp_path / "checkpoint", model, card)
    with pytest.raises(ExportError, match=r"bf16 changes .* 0\.9999 .*\n  arithmetic, 42 spots \(made\): r per gene"):
        build_release(model, card, tmp_path / "release", precision="bf16")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.usefixtures("heavy")
def test_a_weight_beyond_float16_is_named(tmp_path):
    model, card = small_network()
    with torch.no_grad():
        model.blocks[0].intra.out[1].bias[3] = 1e5
    card = save(tmp_path / "checkpoint", model, card)
    with pytest.raises(ExportError, match=r"weight blocks\.0\.self_out\.1\.bias is not finite in float16"):
        build_release(model, card, tmp_path / "release", precision="fp16")


def test_a_nan_in_an_onnx_file_is_named(small_fp16, tmp_path):
    graph = type(small_fp16.graph)()
    graph.CopyFrom(small_fp16.graph)
    bias = next(w for w in graph.graph.initializer if w.name == "embeddings.1.2.bias")
    values = numpy_helper.to_array(bias).copy()
    values[0] = np.nan
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    save_model(graph, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=r"weight embeddings\.1\.2\.bias of model\.onnx is not finite"):
        load_checked(tmp_path / "model.onnx", SMALL.views)
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match="not a valid ONNX file"):
        load_checked(tmp_path / "model.onnx", SMALL.views)


def test_the_float32_twin_is_the_same_program(small_fp16):
    twin = as_float32(small_fp16.graph)
    assert {w.data_type for w in twin.graph.initializer} <= {TensorProto.FLOAT, TensorProto.INT64}
    views = probe_views(SMALL.views, 3, seed=0)
    session = ort.InferenceSession(twin.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, dict(zip(SMALL.views.names, views, strict=True)))
    with torch.inference_mode():
        expected = small_fp16.model(*(torch.from_numpy(v) for v in views)).numpy()
    assert np.abs(found - expected).max() < 5e-3


@pytest.mark.parametrize(
    ("r", "difference", "passes"),
    [(0.9999, 0.1, True), (0.99989, 0.0, False), (float("nan"), 0.0, False), (1.0, float("nan"), False)],
)
def test_what_passes(r, difference, passes):
    real = Agreement("graph", "slide", 9, difference, r, "g0")
    made = Agreement("graph", "made", 9, 0.1, 0.5, "g0")
    assert Gate((made, real), decided_on="slide").passed is passes


def test_another_networks_graph_does_not_pass(small_fp16):
    other, _ = small_network(seed=1)
    gate = measure_gate(other, small_fp16.fused, small_fp16.graph, GENES)
    assert not gate.passed


def test_made_views_span_the_range():
    for view in probe_views(ViewGeometry(), 32, 0):
        extremes = view[~smooth_rows(32)]
        assert len(extremes) == N_EXTREMES
        assert len({tuple(row[0, 0]) for row in extremes[:8]}) == 8, "black, white and six saturated colours"
        assert set(np.unique(extremes[:8])) == set(np.unique(extremes[9])) == {0, 255}
        assert len(np.unique(extremes[8])) == 256


def test_real_views_come_from_any_slide(svs, section, selection):
    geometry = ViewGeometry()
    from_grid = slide_views(svs, geometry, most=5)
    assert [v.shape for v in from_grid] == [(5, 224, 224, 3)] * 3
    from_file = slide_views(section, geometry, spots=selection, most=3)
    assert [len(v) for v in from_file] == [3, 3, 3]
    assert all(view.std() > 5 for view in [*from_grid, *from_file])


def test_spots_of_another_slide_are_named(svs, selection, tmp_path):
    with pytest.raises(SpotError, match=r"C2_selection.tsv: pixel_x, pixel_y .* of 2220×2967 px: \d+ of 187 spots"):
        slide_views(svs, ViewGeometry(), spots=selection)
    (tmp_path / "spots.csv").write_text("name,x,y\nin,800,900\nout,-5,900\n")
    with pytest.raises(SpotError, match=r"CMU-1.*spot out at \[-5, 900\]: .*outside"):
        slide_views(svs, ViewGeometry(), spots=tmp_path / "spots.csv")


def test_places_on_an_array_are_no_spots_of_a_gate(svs, tmp_path):
    (tmp_path / "spots.csv").write_text("x,y\n" + "".join(f"{x},{y}\n" for x in range(1, 34) for y in range(1, 36)))
    with pytest.raises(SpotError, match=r"spots.csv: x, y .*places on an array"):
        slide_views(svs, ViewGeometry(), spots=tmp_path / "spots.csv")
