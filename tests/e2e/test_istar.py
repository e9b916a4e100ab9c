"""iStar beside a release in one real Triton, asked by slide name as M2OST is."""

import json
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
from m2ost_client import ServerOptions, TritonServer
from m2ost_client.requests import tensor
from m2ost_contract import RowStatus
from m2ost_istar.export import build_istar
from m2ost_istar.geometry import VARIANTS
from m2ost_istar.manifest import IStarManifest
from m2ost_istar.networks.istar import build
from m2ost_istar.pipeline import predict_slide
from m2ost_loadtests.load.closed_load import run_closed_load
from m2ost_loadtests.load.workload import Load
from m2ost_preprocess.readers import open_slide
from tritonclient.utils import InferenceServerException

from tests.istar.narrow import NARROW, TorchNetworks
from tests.support.machine import wait_for

from .servers import by_server, metrics_of, process_of

SLIDE = "wsi/CMU-1-Small-Region.svs"
CENTERS = np.array([(800, 900), (0, 0), (2219, 2966), (-1, 3), (1500, 2000), (2220, 0)], np.int32)
GENES = tuple(f"g{i}" for i in range(6))
SIZES = replace(NARROW, patch_dim=192, patch_heads=3)
"""A patch network that is slower than the reading of its patches, as the paper's is: else no queue, and no batches."""


@pytest.fixture(scope="module")
def model():
    return build(SIZES)


@pytest.fixture(scope="module")
def server(model, narrow_release, roots, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "istar"
    build_istar(model, GENES, folder)
    options = ServerOptions(release=narrow_release, beside=(folder,), roots=roots, probe_interval_s=0.5)
    with TritonServer(options) as server:
        yield server


def ask(server, slide=SLIDE, centers=CENTERS, **numbers):
    inputs = [tensor("SLIDE", np.array([slide], dtype=object)), tensor("CENTER", centers)]
    numbers = {"SPOT_DIAMETER_UM": 100.0, **numbers}
    inputs += [tensor(name, np.array([value])) for name, value in numbers.items() if value is not None]
    with triton.InferenceServerClient(server.address) as client:
        answer = client.infer("istar_slide", inputs, client_timeout=120)
    return answer.as_numpy("EXPRESSION"), answer.as_numpy("STATUS"), json.loads(answer.as_numpy("INFO")[0])


def answers(server):
    """Whether a server is up; once it is, nothing but a value will do."""
    try:
        return ask(server)[1][0] == RowStatus.OK
    except InferenceServerException as error:
        if "UNAVAILABLE" in str(error.status()):
            return False
        raise


def in_process(model, slide, mpp):
    expression, _ = predict_slide(
        open_slide(slide),
        CENTERS,
        mpp=mpp,
        spot_diameter_um=100,
        networks=TorchNetworks(model),
        variant=VARIANTS["tissue"],
        batch_rows=32,
    )
    return expression


def test_locusts_users_drive_it_as_they_drive_m2ost(server):
    load = Load(spots=4, spot_diameter_um=100.0, deadline_s=60)
    report = run_closed_load(
        server.address,
        [SLIDE],
        users=2,
        seconds=4,
        load=load,
        user_class="IstarUser",
        metrics_url=server.metrics_url,
    )
    assert report.all["failures"] == {}
    assert report.all["spots"] == 4 * report.all["requests"] > 0
    assert report.models["istar_patch"]["rows_per_execution"] > 1, "patches of two users were hardly joined"


def test_what_is_served_is_what_the_pipeline_computes(server, model, svs):
    expression, status, info = ask(server)
    out = RowStatus.OUTSIDE_SLIDE
    assert status.tolist() == [[0], [0], [0], [out], [0], [out]]
    expected = in_process(model, svs, 0.499)
    np.testing.assert_allclose(expression, expected, rtol=0, atol=1e-4, equal_nan=True)
    assert np.isnan(expression[[3, 5]]).all()
    assert np.nanstd(expected, axis=0).max() > 100 * 1e-4, "spots without contrast would pass by luck"
    assert (info["variant"], info["mpp"], info["mpp_source"]) == ("tissue", 0.499, "aperio.MPP")
    assert (info["pretrained"], info["head_trained"], info["spots"]) == (False, False, 6)
    assert info["superpixels"] > 300
    assert info["folder_sha256"] == IStarManifest.read(server.options.beside[0]).info.folder_sha256
    assert {"read", "patch", "region", "features", "head"} <= set(info["seconds"])
    assert by_server(server.address, SLIDE, [(800, 800)])[1].tolist() == [0], "M2OST answers beside it"


def test_a_resolution_that_is_given_is_used(server, model, svs):
    expression, _, info = ask(server, MPP=0.25)
    np.testing.assert_allclose(expression, in_process(model, svs, 0.25), rtol=0, atol=1e-4, equal_nan=True)
    assert info["mpp_source"] == "given"


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"slide": "wsi/absent.svs"}, "NOT_FOUND", "wsi/absent.svs"),
        ({"slide": "wsi/../her2st/C2.jpg"}, "NOT_FOUND", "C2.jpg"),
        ({"slide": "half/truncated.svs"}, "INVALID_ARGUMENT", "truncated.svs"),
        ({"centers": np.zeros((0, 2), np.int32)}, "INVALID_ARGUMENT", f"{SLIDE}: no spots"),
        ({"SPOT_DIAMETER_UM": None}, "INVALID_ARGUMENT", "SPOT_DIAMETER_UM"),
        ({"SPOT_DIAMETER_UM": -1.0}, "INVALID_ARGUMENT", f"{SLIDE}: a spot's diameter"),
        ({"SPOT_DIAMETER_UM": float("nan")}, "INVALID_ARGUMENT", f"{SLIDE}: a spot's diameter"),
        ({"MPP": 0.0}, "INVALID_ARGUMENT", "µm/px"),
        ({"slide": "her2st/C2.jpg"}, "INVALID_ARGUMENT", "give it as MPP"),
        ({"MPP": 20.0}, "INVALID_ARGUMENT", "memory_limit_gib"),
    ],
    ids=str,
)
def test_what_cannot_be_answered_is_an_error_by_name(server, change, status, words):
    with pytest.raises(InferenceServerException, match=words) as error:
        ask(server, **change)
    assert error.value.status().endswith(status)


def test_errors_cost_others_nothing_and_patches_of_concurrent_slides_are_batched(server):
    expected, _, info = ask(server)
    requests = 3 * -(-info["forwards"] // 16)  # of 16 rows

    def all_counted(before):
        """Rows and executions since, once the rows of three slides are among them."""
        after = metrics_of(server)
        rows, executions = (
            after[f"{name}{{istar_patch}}"] - before[f"{name}{{istar_patch}}"]
            for name in ("nv_inference_count", "nv_inference_exec_count")
        )
        return (rows, executions) if rows >= 3 * info["forwards"] else None

    def scored_together():
        """Executions for slides that were asked for at once."""
        before, found = metrics_of(server), []
        good = [threading.Thread(target=lambda: found.append(ask(server)[0])) for _ in range(3)]
        for thread in good:
            thread.start()
        with pytest.raises(InferenceServerException):
            ask(server, slide="wsi/absent.svs")
        for thread in good:
            thread.join()
        assert len(found) == 3
        for expression in found:
            np.testing.assert_allclose(expression, expected, rtol=0, atol=1e-5, equal_nan=True)
        # Triton counts an execution a moment after it has answered it.
        rows, executions = wait_for(lambda: all_counted(before), "count of every patch")
        probes = rows - 3 * info["forwards"]  # the supervisor's, of one row, at any time
        assert probes <= 60
        return executions - probes

    # On a busy machine requests may come one at a time; without batches they always do.
    assert any(scored_together() <= 0.8 * requests for _ in range(5)), "requests of 16 rows were hardly joined"


def test_a_dead_model_of_it_is_noticed_and_the_server_restarted(server):
    restarts = server.restarts
    process_of(server, "/istar_slide/1/model.py").send_signal(signal.SIGSEGV)
    wait_for(lambda: server.restarts == restarts + 1, "restart")
    wait_for(lambda: answers(server), "answer of the new server")


def ended(process):
    """Whether a process is gone, or waits for its parent to notice: its threads have ended too."""
    try:
        threads = list(Path(f"/proc/{process.pid}/task").iterdir())
        return process.status() == psutil.STATUS_ZOMBIE and len(threads) == 1
    except (psutil.NoSuchProcess, FileNotFoundError):
        return True


def test_a_decoder_that_died_is_replaced_without_the_server(server):
    restarts = server.restarts
    children = psutil.Process(server.pid).children(recursive=True)
    decoders = [child for child in children if "m2ost_preprocess.decoder.worker" in child.cmdline()]
    assert len(decoders) == 4, "of the tiler, of the slide information, and of two instances of istar_slide"
    for decoder in decoders:
        decoder.send_signal(signal.SIGKILL)
    # A request that reaches a decoder while it dies is refused, and names its slide; one after that finds a new one.
    wait_for(lambda: all(ended(decoder) for decoder in decoders), "end of the decoders")
    assert ask(server)[1][0] == RowStatus.OK
    assert server.restarts == restarts
