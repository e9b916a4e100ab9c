"""The other engine for a CPU: served by profile, and the same expression."""

import numpy as np
from m2ost_client import ServerOptions, TritonServer

from .conftest import by_pytorch, by_server

CENTERS = [[1100, 1500], [900, 800], [40, 60], [1500, 2000]]


def test_a_slide_scored_on_openvino_is_what_pytorch_computes(narrow_release, roots, svs):
    log = []
    options = ServerOptions(release=narrow_release, roots=roots, profile="cpu-openvino")
    with TritonServer(options, on_log=log.append) as server:
        expression, status = by_server(server.address, f"wsi/{svs.name}", CENTERS)
    assert not status.any()
    np.testing.assert_allclose(expression, by_pytorch(narrow_release, svs, CENTERS), rtol=0, atol=1e-5)
    (loaded,) = [record for record in log if record.get("event") == "engine_loaded"]
    assert loaded["engine"] == "openvino-cpu"
    assert "OpenVINO" in loaded["runs_on"]
