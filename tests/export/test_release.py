"""Export: parity decides, and a release is complete or absent."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from m2ost.checkpoint import load, save
from m2ost_contract import (
    BODY_FILE,
    MAX_ROWS,
    ONNX_FILE,
    TAIL_FILE,
    EngineInfo,
    Manifest,
    ViewGeometry,
    sha256_file,
)
from m2ost_export import release as release_module
from m2ost_export.errors import ExportError
from m2ost_export.graph import measure_parity
from m2ost_export.probes import probe_views
from m2ost_export.release import build_release
from m2ost_serving.repository import parse_config
from tritonclient.grpc import model_config_pb2

from tests.support.data import REPOSITORY

from .networks import small_network

OTHER_SIZES = {
    "of other sizes": {"levels": (0, 2), "image_px": 96, "depth": 2, "dim": 24, "head_dim": 8},
    "without modules": {"without": ("dpe", "itmm", "ctmm")},
}


def checkpoint(folder, **sizes):
    model, card = small_network(**sizes)
    return model, save(folder, model, card)


@pytest.fixture(params=["with body and tail", *OTHER_SIZES], scope="module")
def release(request, split_release, tmp_path_factory):
    if request.param == "with body and tail":
        return *load(split_release.parent / "checkpoint"), split_release
    tmp_path = tmp_path_factory.mktemp("release")
    model, card = checkpoint(tmp_path / "checkpoint", **OTHER_SIZES[request.param])
    build_release(model, card, tmp_path / "release")
    return model, card, tmp_path / "release"


def test_a_release_serves_what_the_network_computes_at_any_batch(release):
    model, _, folder = release
    session = ort.InferenceSession(folder / "m2ost" / "1" / "model.onnx")
    assert {i.shape[0] for i in session.get_inputs()} == {"batch"}
    assert {i.type for i in session.get_inputs()} == {"tensor(uint8)"}
    for batch in (1, 3, 33):
        views = probe_views(model.config.views, batch, seed=99)
        (found,) = session.run(None, dict(zip(model.config.views.names, views, strict=True)))
        with torch.inference_mode():
            expected = model(*(torch.from_numpy(v) for v in views)).numpy()
        assert np.abs(found - expected).max() <= 1e-4


def test_every_config_parses_and_fits_the_engine(release):
    model, card, folder = release
    manifest = Manifest.read(folder)
    assert manifest.parity["max_abs_diff"].keys() == {"1", "2", "7", "32"}
    configs = sorted(folder.glob("*/config.pbtxt")) + sorted(folder.glob("*/configs/*.pbtxt"))
    templates = REPOSITORY / "model_repository"
    expected = {*templates.glob("*/config.pbtxt"), *templates.glob("*/configs/*.pbtxt")}
    assert {path.relative_to(folder) for path in configs} == {path.relative_to(templates) for path in expected}
    for path in configs:
        config = parse_config(path.read_text())
        assert config.max_batch_size == (0 if config.name == "slide_info" else MAX_ROWS)
        assert path.read_text().startswith("# "), "the reasons are lost"
        for tensor in [*config.input, *config.output]:
            if tensor.name.startswith("VIEW"):
                assert tuple(tensor.dims) == model.config.views.shape
            if tensor.name == "EXPRESSION":
                assert list(tensor.dims) == [6]
        views = [t.name for t in [*config.input, *config.output] if t.name.startswith("VIEW")]
        assert not views or tuple(views) == model.config.views.names
    provider = parse_config((folder / "m2ost" / "configs" / "onnxruntime-tensorrt.pbtxt").read_text())
    accelerator, cuda = provider.optimization.execution_accelerators.gpu_execution_accelerator
    shape = "x".join(map(str, model.config.views.shape))
    assert accelerator.parameters["trt_profile_max_shapes"].split(",") == [
        f"{name}:{MAX_ROWS}x{shape}" for name in model.config.views.names
    ]
    assert accelerator.parameters["precision_mode"] == "FP32", "TensorRT would choose types at any other"
    assert (cuda.name, dict(cuda.parameters)) == ("cuda", {"use_tf32": "0"})
    engine = parse_config((folder / "m2ost" / "config.pbtxt").read_text())
    info = EngineInfo.from_parameters({k: v.string_value for k, v in engine.parameters.items()})
    assert info == manifest.engine
    assert (info.genes, info.checkpoint_sha256, info.trained) == (card.genes, card.sha256, False)


def test_an_engine_on_a_gpu_gets_its_views_from_there(release):
    *_, folder = release
    profiles = {path.stem for path in (folder / "m2ost" / "configs").glob("*.pbtxt")} - {"cpu-openvino", "cpu-bf16"}
    tilers = {path.stem: path.read_text() for path in (folder / "slide_tiler" / "configs").glob("*.pbtxt")}
    assert profiles == set(tilers)
    assert len(set(tilers.values())) == 1
    for text in tilers.values():
        config = parse_config(text)
        assert [group.kind for group in config.instance_group] == [model_config_pb2.ModelInstanceGroup.KIND_GPU]
        assert {k: config.parameters[k].string_value for k in ("cut", "decode")} == {"cut": "cupy", "decode": "auto"}


def test_the_manifest_accounts_for_every_file(release):
    *_, folder = release
    manifest = Manifest.read(folder)
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {"manifest.json"}
    assert set(manifest.files) == files
    assert all(sha256_file(folder / name) == digest for name, digest in manifest.files.items())
    graphs = {ONNX_FILE, BODY_FILE, TAIL_FILE} if "split" in manifest.parity else {ONNX_FILE}
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.onnx")} == graphs
    assert all((model / "1").is_dir() for model in folder.iterdir() if model.is_dir())


@pytest.mark.usefixtures("heavy")
def test_the_identity_follows_the_weights_and_what_they_are_said_to_predict_and_repeats(tmp_path):
    identities = []
    for name, seed, target in (("a", 0, "counts"), ("b", 0, "counts"), ("c", 1, "counts"), ("d", 0, "log1p")):
        model, card = small_network(seed, n_levels=1)
        card = save(tmp_path / f"checkpoint-{name}", model, replace(card, target=target))
        engine = build_release(model, card, tmp_path / name).engine
        assert engine.target == target
        identities.append(engine.release_sha256)
    assert identities[0] == identities[1]
    assert len(set(identities)) == 3


def test_a_graph_that_differs_is_refused_and_nothing_is_left(split_release, tmp_path, monkeypatch):
    model, card = checkpoint(tmp_path / "checkpoint")

    def damaged(network, path):
        graph = onnx.load(split_release / ONNX_FILE)
        for tensor in graph.graph.initializer:
            if tensor.name.endswith("head.bias"):
                tensor.raw_data = (onnx.numpy_helper.to_array(tensor) + np.float32(2e-4)).tobytes()
        onnx.save(graph, path)
        return graph

    monkeypatch.setattr(release_module, "export_onnx", damaged)
    with pytest.raises(ExportError, match="no release was written"):
        build_release(model, card, tmp_path / "release")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint"]


def test_a_network_that_yields_nan_is_refused(tmp_path):
    model, card = checkpoint(tmp_path / "checkpoint", n_levels=1)
    with torch.no_grad():
        model.head.bias[0] = float("nan")
    with pytest.raises(ExportError, match=r"weight head\.bias is not finite"):
        build_release(model, card, tmp_path / "release")
    assert not (tmp_path / "release").exists()


def test_a_release_is_never_overwritten(tmp_path):
    model, card = checkpoint(tmp_path / "checkpoint", n_levels=1)
    (tmp_path / "release").mkdir()
    with pytest.raises(FileExistsError):
        build_release(model, card, tmp_path / "release")


def test_probe_views_span_the_range():
    black_white = probe_views(ViewGeometry(), 7, 0)
    for view in black_white:
        assert not view[2].any()
        assert view[3].min() == 255
        assert view[0].std() > 30


def test_parity_compares_at_the_batches_asked_for(split_release):
    parity = measure_parity(small_network()[0], split_release / ONNX_FILE, batches=(2, 5))
    assert set(parity.max_abs_diff) == {2, 5}
    assert parity.passed


def test_a_folder_that_is_no_release(tmp_path):
    with pytest.raises(FileNotFoundError, match="m2ost export"):
        Manifest.read(tmp_path)
