"""A TorchServe archive: unpacked as TorchServe does, its handler called with real request bodies."""

import importlib.util
import io
import json
import zipfile

import numpy as np
import pytest
import torch
from m2ost.checkpoint import initialise, save
from m2ost.config import M2OSTConfig
from m2ost_cli.release_commands import export
from m2ost_contract import sha256_file
from m2ost_export.graph import ExportError, probe_views
from m2ost_export.torchserve import write_archive

NARROW = M2OSTConfig(
    n_genes=6, depth=1, dim=12, heads=1, head_dim=12, ffn_dim=8, channel_dim=8, image_px=64, n_levels=2
)


class Context:
    """What a handler is given of ``ts.context.Context``."""

    def __init__(self, folder):
        self.system_properties = {"model_dir": str(folder), "gpu_id": None}
        self.statuses, self.types = {}, {}

    def set_response_status(self, code, phrase, idx):
        self.statuses[idx] = code

    def set_response_content_type(self, idx, value):
        self.types[idx] = value


@pytest.fixture(scope="module")
def model():
    return initialise(NARROW, tuple(f"gene {i}" for i in range(6)))


@pytest.fixture(scope="module")
def served(heavy, model, tmp_path_factory):
    """The folder that TorchServe would unpack, and its handler, made ready as by its model loader."""
    folder = tmp_path_factory.mktemp("archive")
    assert write_archive(*model, folder / "m2ost.mar") <= 1e-5
    with zipfile.ZipFile(folder / "m2ost.mar") as archive:
        archive.extractall(folder / "unpacked")
    manifest = json.loads((folder / "unpacked" / "MAR-INF" / "MANIFEST.json").read_text())["model"]
    spec = importlib.util.spec_from_file_location("handler", folder / "unpacked" / manifest["handler"])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    classes = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == "handler"]
    assert len(classes) == 1, "TorchServe takes a module with one class"
    handler = classes[0]()
    handler.initialize(Context(folder / "unpacked"))
    return handler, folder / "unpacked"


def body(views, **others):
    stream = io.BytesIO()
    np.savez(stream, **{f"VIEW{i}": view for i, view in enumerate(views)}, **others)
    return stream.getvalue()


def answer(content):
    with np.load(io.BytesIO(content)) as arrays:
        return arrays["EXPRESSION"], arrays["GENES"].tolist()


def test_requests_of_a_batch_get_what_the_network_computes(model, served):
    handler, folder = served
    context, network = Context(folder), model[0]
    batches = [probe_views(NARROW.views, rows, seed) for rows, seed in ((1, 5), (7, 6))]
    answers = handler.handle([{"body": body(batches[0])}, {"data": bytearray(body(batches[1]))}], context)
    for content, views in zip(answers, batches, strict=True):
        expression, genes = answer(content)
        with torch.inference_mode():
            expected = network(*(torch.from_numpy(view) for view in views)).numpy()
        np.testing.assert_allclose(expression, expected, rtol=0, atol=1e-5)
        assert genes == [f"gene {i}" for i in range(6)]
    assert context.statuses == {}
    assert set(context.types) == {0, 1}


def test_a_bad_request_is_answered_and_costs_the_others_nothing(served):
    handler, folder = served
    context, good = Context(folder), probe_views(NARROW.views, 1, 0)
    bad = {
        b"": "not a request",
        b"\x89PNG": "not a request",
        body(good)[:5000]: "not a request",
        body(good[:1]): "its arrays are ['VIEW0']",
        body(good, extra=np.zeros(1)): "extra",
        body([view.astype(np.float32) for view in good]): "float32",
        body([good[0], good[1][:, :10]]): "VIEW1 is uint8 (1, 10, 64, 3)",
        body([view[:0] for view in good]): "0 rows",
        body([np.array([{"a": 1}], dtype=object)] * 2): "allow_pickle",
    }
    answers = handler.handle([*({"body": content} for content in bad), {"body": body(good)}], context)
    for index, (said, words) in enumerate(zip(answers, bad.values(), strict=False)):
        assert context.statuses[index] == 400
        assert words in said
    expression, _ = answer(answers[-1])
    assert np.isfinite(expression).all()
    assert len(bad) not in context.statuses


def test_a_body_that_unpacks_to_more_than_a_request_is_not_unpacked(served):
    handler, folder = served
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("VIEW0.npy", "w") as member:
        for _ in range(120):
            member.write(bytes(1 << 20))
    context = Context(folder)
    (said,) = handler.handle([{"body": stream.getvalue()}], context)
    assert (context.statuses, "more than 256 rows" in said) == ({0: 400}, True)


def test_requests_that_together_exceed_the_programs_batch(served):
    handler, folder = served
    views = [np.repeat(view, 130, axis=0) for view in probe_views(NARROW.views, 1, 0)]
    answers = handler.handle([{"body": body(views)}] * 2, Context(folder))
    first, second = (answer(content)[0] for content in answers)
    assert first.shape == (130, 6)
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("heavy")
def test_the_command_says_what_the_archive_holds(model, tmp_path, capsys):
    save(tmp_path / "checkpoint", *model)
    export(tmp_path / "checkpoint", tmp_path / "m2ost.mar", engine="torchserve")
    assert "UNTRAINED, fp32, 6 genes" in capsys.readouterr().out
    with zipfile.ZipFile(tmp_path / "m2ost.mar") as archive:
        card = json.loads(archive.read("card.json"))
    assert card["checkpoint_sha256"] == sha256_file(tmp_path / "checkpoint" / "model.safetensors")


@pytest.mark.usefixtures("heavy")
def test_an_archive_is_complete_or_absent(model, tmp_path):
    network, card = initialise(NARROW, model[1].genes)
    with torch.no_grad():
        network.head.bias[0] = float("nan")
    with pytest.raises(ExportError, match=r"differs from the network by nan"):
        write_archive(network, card, tmp_path / "m2ost.mar")
    with pytest.raises(ExportError, match=r"NAME\.mar"):
        write_archive(*model, tmp_path / "m2ost.zip")
    (tmp_path / "m2ost.mar").touch()
    with pytest.raises(FileExistsError, match="never overwritten"):
        write_archive(*model, tmp_path / "m2ost.mar")
    assert [path.name for path in tmp_path.iterdir()] == ["m2ost.mar"]
