"""Slide-level systems of the article's widths: parity of both graphs, and the memory of a slide of 5,000 spots."""

import json
import subprocess
import sys

import pytest
from m2ost.systems.registry import build, find
from m2ost_export.stages import export_patch_stage, export_slide_stage, measure_parity_of_stages

DEPTH = 2
"""Blocks of the transformer: what the first took must be given back for the second. All are alike."""

MOST_GIB = 2.0
"""As `docs/systems.md` says, of the whole process."""

SCORE = """
import json, re, sys
from pathlib import Path
import numpy as np
from m2ost_serving.engine.onnx import cpu_session, give_memory_back

session, spots = cpu_session(sys.argv[1]), 5000
places = np.stack(np.unravel_index(np.arange(spots), (128, 128)), axis=1).astype(np.int32)
features = np.random.default_rng(0).normal(size=(spots, 1024)).astype(np.float32)
(found,) = session.run(None, {"FEATURES": features, "POSITION": places}, give_memory_back())
# Not by getrusage, which counts the parent too, as it was at the fork.
peak_gib = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**20
print(json.dumps({"peak_gib": peak_gib, "spots": len(found), "finite": bool(np.isfinite(found).all())}))
"""


@pytest.mark.usefixtures("heavy")
@pytest.mark.parametrize("name", ["histogene", "hist2st"])
def test_both_graphs_compute_what_the_network_does_and_5000_spots_fit_into_memory(name, tmp_path):
    network = build(find(name).config(table=128, depth=DEPTH)).eval()
    patches, sequence = tmp_path / "patches.onnx", tmp_path / "sequence.onnx"
    export_patch_stage(network, patches)
    export_slide_stage(network, sequence)
    found = measure_parity_of_stages(network, patches, sequence, spots=(1, 64))
    assert found.passed, found
    assert set(found.max_abs_diff) == {1, 64}
    del network
    command = [sys.executable, "-c", SCORE, str(sequence)]
    scored = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert (scored["spots"], scored["finite"]) == (5000, True)
    assert scored["peak_gib"] < MOST_GIB
