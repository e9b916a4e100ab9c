"""What is served beside a release is found, checked and probed by its configs and its manifest alone."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import numpy as np
import pytest
from m2ost_client import ServerOptions
from m2ost_client.errors import ServerStartError
from m2ost_client.server.doctor import check_start
from m2ost_client.server.installation import Installation
from m2ost_client.server.probe import probe
from m2ost_client.server.served_models import OWN_MODELS, models_beside
from m2ost_contract import PROBE_SLIDE, Manifest, ModelNames, Release
from m2ost_serving.repository import write_repository
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.support.releases import ENGINE

from .beside import NETWORK, folder_beside

UNKNOWN = f"no slide {PROBE_SLIDE}"
DEAD = "Stub process is not healthy."


class Models(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers every request, or refuses it in the words that its model is given here."""

    def __init__(self, words):
        self.words, self.requests = words, {}

    def ModelInfer(self, request, context):
        self.requests[request.model_name] = request
        if request.model_name in self.words:
            context.abort(grpc.StatusCode.INTERNAL, self.words[request.model_name])
        return service_pb2.ModelInferResponse()


@pytest.fixture
def release(tmp_path):
    (tmp_path / "release").mkdir()
    write_repository(tmp_path / "release", ENGINE)
    Manifest(ENGINE, {}, {}, {}).write(tmp_path / "release")
    return tmp_path / "release"


def probed(beside, engines=(ENGINE,), at_work=(), **words):
    """What a probe finds of a server whose models refuse in some words, and the requests that it sent."""
    models = Models(words)
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(models, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            return probe(f"127.0.0.1:{port}", engines, beside, at_work=at_work), models.requests
        finally:
            server.stop(None).wait()


@pytest.fixture
def beside(release, tmp_path):
    return models_beside([Release.open(release)], (folder_beside(tmp_path / "other"),), "cpu")


def test_what_stands_beside_is_every_model_with_a_process_of_the_folders_beside(release, tmp_path):
    found = models_beside([Release.open(release)], (folder_beside(tmp_path / "other"),), "onnxruntime")
    assert found.keys() == {"other_network", "other_slides", "other_hurried", "other_long"}
    assert {path.parent.name for path in release.glob("*/config.pbtxt")} == OWN_MODELS
    assert (found["other_network"].backend, found["other_slides"].backend) == ("onnxruntime", "python")


def test_an_engine_that_works_is_not_asked_for_a_row(beside):
    _, requests = probed(beside, at_work=("m2ost", "slide_tiler", "other_network"))
    assert "m2ost_patches" not in requests
    assert {"slide_tiler", "row_guard", "slide_info", "other_network"} <= requests.keys()


def test_of_several_releases_each_engine_guard_and_tiler_is_asked(beside):
    names = ModelNames("m2ost", "slide_tiler", "m2ost_guard"), ModelNames("vit", "slide_tiler_2", "vit_guard")
    _, requests = probed({}, engines=[replace(ENGINE, names=own) for own in names], at_work=("vit",))
    asked = {"m2ost_patches", "slide_tiler", "m2ost_guard", "slide_tiler_2", "vit_guard", "slide_info"}
    assert requests.keys() == asked


def test_every_model_is_asked_for_one_row_of_zeros_and_a_slide_that_cannot_exist(beside):
    health, requests = probed(beside)
    assert health.ready
    assert beside.keys() <= requests.keys()
    own = {name for name in requests if name not in beside}
    assert own == {"m2ost_patches", "row_guard", "slide_tiler", "slide_info"}

    def inputs(model):
        request = requests[model]
        return {
            tensor.name: (tensor.datatype, list(tensor.shape), content)
            for tensor, content in zip(request.inputs, request.raw_input_contents, strict=True)
        }

    assert inputs("other_network") == {
        "PIXELS": ("UINT8", [1, 8, 1, 3], bytes(24)),
        "WEIGHT": ("FP64", [1, 1], bytes(8)),
    }
    slide = len(PROBE_SLIDE).to_bytes(4, "little") + PROBE_SLIDE.encode()
    assert inputs("other_slides") == {
        "SLIDE": ("BYTES", [1], slide),
        "CENTER": ("INT32", [1, 2], np.zeros(2, np.int32).tobytes()),
        "NOTE": ("BYTES", [1], bytes(4)),
    }


def test_a_refusal_that_names_the_slide_is_life_and_a_dead_stub_is_death(beside):
    health, _ = probed(beside, other_slides=UNKNOWN, slide_tiler=UNKNOWN, other_long=DEAD, other_hurried="busy")
    assert (health.dead, health.silent, health.words) == (("other_long",), ("other_hurried",), "busy")
    assert not health.ready
    assert probed(beside, m2ost_patches=DEAD)[0].dead == ("m2ost",), "an ensemble has no process"


def test_a_model_that_may_take_long_is_never_overdue(beside):
    health, _ = probed(beside, **dict.fromkeys([*beside, "m2ost_patches"], "busy"))
    assert set(health.silent) == {*beside, "m2ost"}
    assert set(health.overdue) == {"m2ost", "other_network", "other_hurried"}


def test_two_folders_with_a_model_of_one_name_are_refused(release, tmp_path):
    with pytest.raises(ServerStartError, match="both hold a model slide_tiler"):
        models_beside([Release.open(release)], (folder_beside(tmp_path / "other", {"slide_tiler": NETWORK}),), "cpu")


@pytest.mark.parametrize("damage", ["changed", "missing", "no manifest", "damaged manifest"])
def test_a_folder_whose_files_are_not_those_of_its_manifest_is_not_served(release, tmp_path, damage):
    other = folder_beside(tmp_path / "other")
    (tmp_path / "backends" / "python").mkdir(parents=True)
    installation = Installation(tmp_path / "bin" / "tritonserver")
    options = ServerOptions(release=release, beside=(other,))
    check_start(options, [Release.open(release)], installation)
    config = other / "other_slides" / "config.pbtxt"
    if damage == "changed":
        config.write_text(NETWORK)
    elif damage == "missing":
        config.unlink()
    elif damage == "no manifest":
        (other / "manifest.json").unlink()
    else:
        (other / "manifest.json").write_text('{"files": []}')
    words = {"changed": "other_slides/config.pbtxt: truncated, changed or swapped", "missing": "No such file"}
    with pytest.raises(ServerStartError, match=words.get(damage, damage.replace("no manifest", "no manifest.json"))):
        check_start(options, [Release.open(release)], installation)
