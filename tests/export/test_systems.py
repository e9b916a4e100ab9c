"""Every spot-level system leaves as a graph that computes what it does; what is M2OST's alone says so."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from m2ost.checkpoint import initialise, save
from m2ost.symmetries import Symmetries
from m2ost_contract import Manifest
from m2ost_export.errors import ExportError
from m2ost_export.forms import comparable_views, engine_form
from m2ost_export.graph import compare, export_onnx
from m2ost_export.probes import probe_views
from m2ost_export.release import build_release
from m2ost_export.torchserve import write_archive
from m2ost_serving.repository import parse_config

from tests.support.systems import N_GENES, SPOT_LEVEL, small

GENES = tuple(f"g{i}" for i in range(N_GENES))


def fresh(name, **changes):
    """With outputs of trained size: a fresh network hardly tells two spots apart."""
    network, card = initialise(small(name, **changes), GENES)
    if name == "bleep":
        with torch.no_grad():
            network.image_projection.projection.weight.mul_(30)
    return network, card


def feed(geometry, rows, seed=5):
    return dict(zip(geometry.names, probe_views(geometry, rows, seed), strict=True))


@pytest.mark.usefixtures("heavy")
@pytest.mark.parametrize("name", [name for name in SPOT_LEVEL if name not in ("stnet", "bleep")])
def test_a_graph_computes_what_its_network_does(name, tmp_path):
    changes = {"crossvit": {"stages": 1, "depths": (1, 1)}, "resnet50": {"layers": (1,)}}
    network, card = fresh(name, **changes.get(name, {}))
    export_onnx(engine_form(network, "fp32"), tmp_path / "model.onnx")
    geometry = card.architecture.views
    parity = compare(network, tmp_path / "model.onnx", {rows: feed(geometry, rows) for rows in (1, 5)})
    assert parity.passed, parity


@pytest.mark.usefixtures("heavy")
def test_a_release_of_an_st_net_that_averages_the_symmetries_in_its_graph(tmp_path):
    network, card = fresh("stnet")
    card = save(tmp_path / "checkpoint", network, replace(card, test_time="dihedral8"))
    build_release(network, card, tmp_path / "release")
    manifest = Manifest.read(tmp_path / "release")
    assert manifest.architecture["name"] == "stnet"
    assert (manifest.graph["test_time"], manifest.graph["head"]) == ("dihedral8", {"type": "regression"})
    session = ort.InferenceSession(tmp_path / "release" / "m2ost" / "1" / "model.onnx")
    views = feed(card.architecture.views, 5)
    with torch.inference_mode():
        pixels = torch.from_numpy(views["VIEW0"])
        plain, averaged = network(pixels).numpy(), Symmetries(network)(pixels).numpy()
    np.testing.assert_allclose(session.run(None, views)[0], averaged, rtol=0, atol=1e-5)
    assert np.abs(plain - averaged).max() > 1e-3
    for path in (tmp_path / "release").glob("*/config.pbtxt"):
        tensors = [*parse_config(path.read_text()).input, *parse_config(path.read_text()).output]
        named = [tensor for tensor in tensors if tensor.name.startswith("VIEW")]
        assert {(tensor.name, tuple(tensor.dims)) for tensor in named} <= {("VIEW0", (64, 64, 3))}


@pytest.mark.usefixtures("heavy")
def test_a_release_of_bleep_looks_up_what_a_numpy_search_finds(tmp_path):
    network, card = fresh("bleep", bank_rows=300, neighbours=50)
    network.fill(torch.randn(300, N_GENES))
    assert card.head["holds"].startswith("random values")
    card = save(tmp_path / "checkpoint", network, replace(card, trained=True))
    manifest = build_release(network, card, tmp_path / "release")
    assert manifest.graph["head"]["bank_sha256"] == card.bank_sha256
    assert manifest.graph["head"]["holds"].startswith("measured expression")
    graph = onnx.load(tmp_path / "release" / "m2ost" / "1" / "model.onnx")
    held = [onnx.numpy_helper.to_array(w) for w in graph.graph.initializer]
    assert sum(np.array_equal(w, network.bank.expression.numpy()) for w in held) == 1
    assert not any("spot_projection" in w.name for w in graph.graph.initializer)
    views = comparable_views(network)(card.architecture.views, 12, 7)
    with torch.inference_mode():
        query = network.embed(network.pixels(torch.from_numpy(views[0]))).numpy().astype(np.float64)
        bank = network.spot_projection(network.bank.expression).numpy().astype(np.float64)
    cosine = (query / np.linalg.norm(query, axis=1)[:, None]) @ (bank / np.linalg.norm(bank, axis=1)[:, None]).T
    nearest = np.argsort(-cosine, axis=1)[:, :50]
    assert len({tuple(sorted(rows)) for rows in nearest}) > 3, "all spots had the same neighbours"
    expected = np.stack([network.bank.expression.numpy()[rows].mean(axis=0) for rows in nearest])
    session = ort.InferenceSession(graph.SerializeToString())
    np.testing.assert_allclose(session.run(None, {"VIEW0": views[0]})[0], expected, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("heavy")
def test_reduced_precision_leaves_pixels_head_and_bank_in_float32(tmp_path):
    network, _ = fresh("bleep")
    form = engine_form(network, "fp16").network
    assert form.image_encoder.model.conv1.weight.dtype == torch.float16
    assert form.image_projection.part.fc.weight.dtype == torch.float32
    assert torch.equal(form.bank.embedding, network.bank.embedding)
    assert torch.equal(form.normalise.factor, network.normalise.factor)
    network, card = fresh("vit")
    manifest = build_release(network, save(tmp_path / "vit", network, card), tmp_path / "release", precision="fp16")
    assert manifest.graph["weight_bytes"]["FLOAT16"] > 20 * manifest.graph["weight_bytes"]["FLOAT"]
    assert all(row["min_r_gene"] >= 0.9999 for row in manifest.parity["gate"]["measured"])


def test_rows_that_rounding_can_turn_are_left_out_of_a_comparison():
    network, card = fresh("bleep")
    geometry = card.architecture.views
    made = probe_views(geometry, 7, 3)
    network.decided = lambda view: torch.tensor([False, True, False, True, True, True, True])
    (found,) = comparable_views(network)(geometry, 7, 3)
    np.testing.assert_array_equal(found, made[0][[1, 1, 1, 3, 4, 5, 6]])


def test_a_tie_is_not_decided():
    network, card = fresh("bleep", bank_rows=4, neighbours=2)
    views = torch.from_numpy(probe_views(card.architecture.views, 3, 0)[0])
    with torch.inference_mode():
        network.bank.embedding.copy_(torch.eye(8)[[0, 1, 1, 2]])
        network.embed = lambda pixels: torch.tensor([[9.0, 5, 1], [9, 1, 5], [1, 5, 3]]) @ torch.eye(8)[:3]
        assert network.decided(views).tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet50", {"precision": "bf16"}, "batch norms are folded in float32"),
    ],
)
def test_what_a_system_cannot_be_exported_as_is_said(name, options, words, tmp_path):
    network, card = fresh(name)
    with pytest.raises(ExportError, match=words):
        build_release(network, card, tmp_path / "release", **options)
    with pytest.raises(ExportError, match="a TorchServe archive is M2OST's alone"):
        write_archive(network, card, tmp_path / "archive.mar")
    assert not list(tmp_path.iterdir())


def test_m2osts_own_form_does_not_average(tmp_path):
    from .networks import small_network

    with pytest.raises(ExportError, match="dihedral8 is for the other systems"):
        build_release(*small_network(), tmp_path / "release", test_time="dihedral8")
