"""What a slide-level release says of itself, and what it refuses; a spot-level one says nothing new."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from m2ost_contract import EngineInfo, Manifest, ManifestError, PositionsError, Release, SlideLevel

from .test_release import ENGINE

LEVEL = SlideLevel(features=16, table=8, max_spots=40)
WHOLE = replace(ENGINE, slide_level=LEVEL)


def test_a_spot_level_manifest_and_config_are_what_they_were_before_there_were_levels(tmp_path):
    Manifest(ENGINE, {"depth": 4}, {"tolerance": 1e-4}, {"numpy": "2"}, {"a": "b"}).write(tmp_path)
    written = (tmp_path / "manifest.json").read_bytes()
    # Of the version before.
    assert hashlib.sha256(written).hexdigest() == "53a8779163b876451ff0f7e1680343c23395ae7d6441a122c271ae9fe99f28ad"
    assert set(ENGINE.to_parameters()) == {
        *("genes", "views", "mpp", "target", "trained", "precision"),
        *("checkpoint_sha256", "onnx_sha256", "release_sha256"),
    }
    assert (ENGINE.level, ENGINE.gives) == ("spot", ("EXPRESSION", 1))
    assert Release.open(tmp_path).sequence is None


def test_a_slide_level_release_says_its_level_its_most_spots_and_where_positions_come_from(tmp_path):
    Manifest(WHOLE, {}, {}, {}).write(tmp_path)
    engine = json.loads((tmp_path / "manifest.json").read_text())["engine"]
    assert engine["level"] == "slide"
    assert engine["slide_level"] == {"features": 16, "table": 8, "max_spots": 40, "positions": "array"}
    assert Manifest.read(tmp_path).engine == WHOLE
    assert Release.open(tmp_path).sequence == tmp_path / "m2ost_sequence/1/model.onnx"
    assert EngineInfo.from_parameters(WHOLE.to_parameters()) == WHOLE != ENGINE
    assert (WHOLE.level, WHOLE.gives) == ("slide", ("FEATURES", 16))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"level": "cell"}, "level 'cell'"),
        ({"slide_level": {"features": 16, "table": 8}}, "max_spots"),
        ({"slide_level": {**LEVEL.to_dict(), "table": 0}}, "of no network that this version serves"),
        ({"slide_level": {**LEVEL.to_dict(), "positions": "graph"}}, "of no network that this version serves"),
    ],
)
def test_a_level_that_this_version_does_not_know_is_refused(tmp_path, change, words):
    Manifest(WHOLE, {}, {}, {}).write(tmp_path)
    raw = json.loads((tmp_path / "manifest.json").read_text())
    raw["engine"] |= change
    (tmp_path / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(ManifestError, match=words):
        Manifest.read(tmp_path)
    told = {k: v if isinstance(v, str) else json.dumps(v) for k, v in change.items()}
    with pytest.raises((ValueError, KeyError), match=words):
        EngineInfo.from_parameters(WHOLE.to_parameters() | told)


PLACES = np.stack(np.unravel_index(np.arange(41), (8, 8)), axis=1).astype(np.int32)


@pytest.mark.parametrize(
    ("positions", "words"),
    [
        (PLACES[:0], "slides/a.svs: 0 spots"),
        (PLACES, "slides/a.svs: 41 spots; this network predicts a slide as a whole, of 1 to 40 spots"),
        (
            [(0, 0), (3, -1)],
            r"spot 1 has array position \[3, -1\], outside the 8 that the network was made for \(0 to 7\)",
        ),
        ([(0, 0), (8, 1)], r"spot 1 has array position \[8, 1\]"),
        ([(4, 5), (1, 0), (4, 5)], r"2 spots have the array position \[4, 5\]"),
    ],
)
def test_positions_that_the_network_does_not_know_are_refused(positions, words):
    positions = np.asarray(positions, np.int32)
    with pytest.raises(PositionsError, match=words):
        LEVEL.check(positions, len(positions), whose="slides/a.svs")


def test_positions_on_the_whole_table_are_taken_and_another_number_of_them_is_not():
    LEVEL.check(PLACES[:40], 40, whose="a")
    LEVEL.check(np.array([(7, 0), (0, 7), (0, 0), (7, 7)]), 4, whose="a")
    with pytest.raises(PositionsError, match="positions of 40 × 2 for 39 spots"):
        LEVEL.check(PLACES[:40], 39, whose="a")
