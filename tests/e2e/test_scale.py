"""A spot costs the same whether a large slide has few or many."""

import json

from tests.support.command import m2ost


def test_each_tile_is_decoded_once_and_each_spot_predicted_once(narrow_release, svs, tmp_path):
    spots = ("--spots", 25, "--spots", 100)
    status, output, errors = m2ost("bench", "scale", narrow_release, svs, "--side-px", 3000, *spots, "--out", tmp_path)
    assert status == 0, output + errors
    report = json.loads((tmp_path / "scale.json").read_text())
    assert [(run["spots"], run["answered"], run["restarts"]) for run in report["runs"]] == [(25, 25, 0), (100, 100, 0)]
    for run in report["runs"]:
        # Some tiles at the corner were decoded before; while it ran, the supervisor has asked for a row now and then.
        assert 0.8 < run["decoded_over_needed"] <= 1.0
        assert run["spots"] <= run["rows"] <= run["spots"] * 1.05
    assert not (tmp_path / "mosaic.tif").exists()
