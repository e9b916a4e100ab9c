"""The graph for dense maps is the same network; what is shared between windows changes nothing beyond rounding."""

import numpy as np
import pytest
import torch
from m2ost.checkpoint import load, save
from m2ost.config import M2OSTConfig
from m2ost.shipped import shipped_checkpoint
from m2ost_bench.engines.patch_sharing import Operations, busiest_region
from m2ost_contract import ONNXRUNTIME_CPU_DENSE, EngineError, Release
from m2ost_export.dense import DenseM2OST, export_dense, measure_dense_parity, patch_geometry
from m2ost_export.errors import ExportError
from m2ost_export.fused import FusedM2OST
from m2ost_export.release import build_release
from m2ost_preprocess.readers import open_slide
from m2ost_preprocess.tiling.views import cut_views
from m2ost_serving.engine import load_engine
from m2ost_serving.engine.dense import DenseOnnxEngine
from m2ost_serving.engine.patches import share

from .networks import small_network

ROUNDING = 1e-5


def windows(slide, geometry, rows=2, columns=4):
    """Views of positions 16 px apart on tissue, by name."""
    centers = [(5608 + 16 * column, 5608 + 16 * row) for row in range(rows) for column in range(columns)]
    views = [np.empty((len(centers), *geometry.shape), np.uint8) for _ in geometry.names]
    scales = np.ones(len(centers), np.float32)
    assert not cut_views(open_slide(slide), np.array(centers, np.int32), scales, geometry, views).any()
    return dict(zip(geometry.names, views, strict=True))


@pytest.mark.usefixtures("heavy")
def test_the_graph_agrees_with_the_network_on_real_windows(pyramid, tmp_path):
    model, _ = small_network()
    export_dense(DenseM2OST(FusedM2OST(model).eval()), tmp_path / "dense.onnx")
    parity = measure_dense_parity(model, tmp_path / "dense.onnx")
    assert list(parity.max_abs_diff) == [1, 2, 7, 32]
    assert parity.passed
    views = windows(pyramid, model.config.views)
    engine = DenseOnnxEngine(tmp_path / "dense.onnx", model.config.views, model.config.patch_px)
    shared = engine.run(views)
    with torch.inference_mode():
        expected = model(*map(torch.from_numpy, views.values())).numpy()
    assert np.ptp(expected, axis=0).max() > 100 * ROUNDING, "the windows differ"
    assert np.abs(shared - expected).max() <= ROUNDING
    assert 0 < engine.embedded < 0.7 * engine.patches
    alone = engine.run({name: view[:1] for name, view in views.items()})
    assert alone.shape == (1, model.config.n_genes)
    assert np.abs(alone - expected[:1]).max() <= ROUNDING


def test_the_trained_network_with_shared_patches_on_real_windows(pyramid):
    with shipped_checkpoint() as checkpoint:
        model, _ = load(checkpoint)
    fused, geometry = FusedM2OST(model).eval(), patch_geometry(model.config)
    views = list(windows(pyramid, model.config.views, rows=1, columns=3).values())
    feed = share(views, geometry).to_feed(geometry)
    with torch.inference_mode():
        shared = DenseM2OST(fused)(*map(torch.from_numpy, feed.values()))
        fresh = fused(*map(torch.from_numpy, views))
    assert (shared - fresh).abs().max() <= ROUNDING


def test_a_reduced_precision_has_no_graph_for_a_cpu(tmp_path):
    model, card = small_network()
    card = save(tmp_path / "checkpoint", model, card)
    with pytest.raises(ExportError, match="in fp32, not fp16"):
        build_release(model, card, tmp_path / "fp16", precision="fp16", dense=True)
    assert not (tmp_path / "fp16").exists()


def test_an_engine_asked_of_a_release_without_the_graph(small_release):
    with pytest.raises(EngineError, match="m2ost export --dense"):
        load_engine(Release.open(small_release), ONNXRUNTIME_CPU_DENSE)


def test_operations_are_counted_exactly():
    operations = Operations.of(M2OSTConfig())
    # Linear layers of a patch's MLP, 2 x multiply-accumulate.
    p16, p8, p4 = (2 * (p * p * 3 * h + h * 192) for p, h in ((16, 576), (8, 288), (4, 144)))
    assert operations.patch == (p16, p8, p16, p4, p8, p16)
    assert operations.projection == 2 * 1179 * 192 * 576
    share_of_embedding = operations.embedding([196] * 6) / operations.position
    assert 0.08 < share_of_embedding < 0.10


def test_the_region_with_most_tissue():
    mask = np.zeros((100, 100), bool)
    mask[60:, 55:] = True
    region = busiest_region((8192, 8192), mask)
    assert (region.width, region.height) == (2048, 2048)
    assert region.left >= 4506
    assert region.top >= 4915
