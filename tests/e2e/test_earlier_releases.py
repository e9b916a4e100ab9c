"""What an earlier version of this package exported is served by this one."""

import json
import shutil

import numpy as np
import pytest
from m2ost_client import ServerOptions, TritonServer
from m2ost_client.errors import ServerStartError

from .releases import reseal
from .servers import by_server

SLIDE, CENTERS = "wsi/CMU-1-Small-Region.svs", [(640, 2000), (801, 903), (1333, 2500)]


def test_a_release_with_the_models_of_an_earlier_version_is_served_by_those_of_this_one(
    narrow_release, narrow_server, roots, tmp_path
):
    release, events = tmp_path / "release", []
    shutil.copytree(narrow_release, release)
    for model in release.glob("*/1/model.py"):
        model.write_text("import m2ost_preprocess.of_an_earlier_version\n")
    (release / "of_an_earlier_version" / "1").mkdir(parents=True)
    (release / "of_an_earlier_version" / "config.pbtxt").write_text('backend: "python"\n')
    config = (release / "m2ost" / "config.pbtxt").read_text()
    graph, profile = "m2ost/1/dense.onnx", "m2ost/configs/cpu-dense.pbtxt"  # an engine that is no more
    (release / graph).write_bytes(b"a graph for dense maps")
    (release / profile).write_text(config.replace('"onnxruntime-cpu"', '"onnxruntime-cpu-dense"'))
    manifest = json.loads((release / "manifest.json").read_text())
    manifest["files"] |= {graph: "", profile: ""}
    manifest["parity"]["dense"] = {"tolerance": 1e-4, "max_abs_diff": {"1": 0.0}}
    del manifest["tools"]["models"]
    (release / "manifest.json").write_text(json.dumps(manifest))
    reseal(release)
    with TritonServer(ServerOptions(release=release, roots=roots), on_log=events.append) as server:
        found, status = by_server(server.address, SLIDE, CENTERS)
    assert not status.any()
    np.testing.assert_array_equal(found, by_server(narrow_server.address, SLIDE, CENTERS)[0])
    (renewed,) = [event for event in events if event.get("event") == "models_renewed"]
    assert renewed["release"] == str(release)
    with pytest.raises(ServerStartError, match=r"onnxruntime-cpu-dense|no profile 'cpu-dense'"):
        TritonServer(ServerOptions(release=release, roots=roots, profile="cpu-dense")).__enter__()
