"""No library reports to its maker: each leaves a mark in the home folder as it sets about it."""

import importlib.util
import os
import subprocess
import sys

import pytest

SWITCHES = ("ORT_DISABLE_TELEMETRY", "CI", "TF_BUILD", "JENKINS_URL", "XDG_CACHE_HOME", "XDG_STATE_HOME")
"""What would keep a library from it here and not where a person runs it, or lead its mark elsewhere."""

SCRIPTS = {
    "onnxruntime": "import m2ost_preprocess, onnxruntime",
    "openvino": "from m2ost_serving.engine.openvino import import_openvino; import_openvino()",
}


def marks(script, home):
    """What an interpreter leaves in a home and in a folder for temporary files that are its own."""
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    environment |= {"HOME": str(home), "TMPDIR": str(home)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True)
    return sorted(str(path.relative_to(home)) for path in home.rglob("*"))


@pytest.mark.parametrize("library", SCRIPTS)
def test_a_library_that_reports_to_its_maker_is_kept_from_it(tmp_path, library):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"no {library} in this environment")
    if not marks(f"import {library}", tmp_path / "alone"):
        pytest.skip(f"this version of {library} reports nothing that could be seen")
    assert marks(SCRIPTS[library], tmp_path / "ours") == []
