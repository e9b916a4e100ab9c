"""The other engine for a CPU: chosen by profile, and the same expression."""

import json

import anndata
import numpy as np

from .releases import by_pytorch
from .test_command_line import predict


def test_a_slide_scored_on_openvino_is_what_pytorch_computes(narrow_release, svs, tmp_path):
    log = tmp_path / "log"
    arguments = ("--profile", "cpu-openvino", "--pitch-um", 200, "--server-log", log)
    status, _, errors = predict(svs, narrow_release, tmp_path, *arguments)
    assert status == 0, errors
    adata = anndata.read_h5ad(tmp_path / "CMU-1-Small-Region.h5ad")
    assert len(adata) > 4
    expected = by_pytorch(narrow_release, svs, adata.obsm["spatial"])
    np.testing.assert_allclose(adata.X, expected, rtol=0, atol=1e-5)
    (loaded,) = (json.loads(line) for line in log.read_text().splitlines() if "engine_loaded" in line)
    assert loaded["engine"] == "openvino-cpu"
    assert "OpenVINO" in loaded["runs_on"]


def test_a_profile_that_the_release_lacks_is_an_error_that_names_those_it_has(narrow_release, svs, tmp_path):
    status, _, errors = predict(svs, narrow_release, tmp_path, "--profile", "fastest")
    assert status == 1
    assert "has no profile 'fastest'; it has cpu, cpu-bf16, cpu-openvino" in errors
