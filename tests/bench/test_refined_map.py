"""What a map with a tolerance needs and is worth, on predictions that are made up, and by the records that are kept."""

import json

import numpy as np
import pytest
from m2ost_bench.istar.comparison_report import to_markdown as comparison_words
from m2ost_bench.istar.refined_map import EVERYWHERE, TISSUE, read_maps, refine, to_markdown
from m2ost_bench.istar.speedups import with_tolerances
from m2ost_loadtests.errors import LoadTestError
from m2ost_preprocess.slides.dense_grid import DenseGrid

from tests.support.data import REPOSITORY


def test_predictions_are_counted_and_the_map_is_compared_at_every_place():
    y, x = np.mgrid[:33, :25].astype(np.float32)
    exact = np.stack([np.sin(x / 9), np.cos(y / 7), (x + y > 30)], axis=-1).astype(np.float32)
    grid, mask = DenseGrid.over((25 * 16, 33 * 16), 16), np.zeros((33, 25), bool)
    mask[4:30, 3:20] = True
    loose, all_of_it = (refine(exact, grid, mask, sd, everywhere=True) for sd in (0.3, 0.0))
    assert all_of_it["predictions"] == all_of_it["places"] == 33 * 25
    assert all_of_it["r_per_gene"] == {"median": pytest.approx(1), "lowest": pytest.approx(1)}
    check = loose["refinement"]["check"]
    only_checked = check["places"] - check["of_them_computed"]
    assert loose["predictions"] == loose["refinement"]["computed"] + only_checked < 0.6 * 33 * 25
    assert loose["places_per_prediction"] == 33 * 25 / loose["predictions"]
    assert 0.9 < loose["r_per_gene"]["lowest"] < loose["r_per_gene"]["median"] < 1
    tissue = refine(exact, grid, mask, 0.3, everywhere=False)
    assert tissue["places"] == mask.sum()


def a_map(places_per_prediction, other_s):
    r = {"median": 0.999, "lowest": 0.99}
    return {"places": 1000, "places_per_prediction": places_per_prediction, "other_s": other_s, "r_per_gene": r}


def test_the_ratio_counts_predictions_and_all_else():
    report = {
        "systems": {"m2ost": {"seconds": {"median": 5.0}, "places": 50}},
        "dense": {"istar stock": {"median": 0.2, "min": 0.1, "max": 0.3}, "istar tissue": {"median": 0.01}},
    }
    maps = {"slide": "a.tif", "region": None, "pitch_px": 16}
    maps["maps"] = {EVERYWHERE: {"0.5": a_map(5, 0.0), "1": a_map(10, 10.0)}, TISSUE: {"0.5": a_map(2, 0.0)}}
    half, whole, tissue = with_tolerances(report, maps)["rows"]
    assert half["ratio"] == {"median": pytest.approx(1), "min": pytest.approx(0.5), "max": pytest.approx(1.5)}
    # A prediction takes 0.1 s: of each place 0.01 s for a tenth of one, and as much for all else.
    assert whole["ratio"]["median"] == pytest.approx(0.2 / 0.2)
    assert (tissue["system"], tissue["cells"]) == ("istar tissue", TISSUE)
    assert tissue["ratio"] == {"median": pytest.approx(0.02)}


def test_a_file_that_is_no_report_is_said(tmp_path):
    file = tmp_path / "istar.json"
    for text in ("[]", "{", '{"maps": {}}'):
        file.write_text(text)
        with pytest.raises(LoadTestError, match="not a report of `m2ost bench dense`"):
            read_maps(file)


def test_the_records_say_what_maps_with_a_tolerance_are_worth():
    maps = read_maps(REPOSITORY / "benchmarks" / "dense-intel-xeon-2-cores.json")
    assert "| everywhere | 0 sd | 2,401 | 2,401 | 1.00 | 1.0000 | 1.0000 |" in to_markdown(maps)
    report = json.loads((REPOSITORY / "benchmarks" / "istar-intel-xeon-2-cores.json").read_text())
    text = comparison_words({**report, "refined": with_tolerances(report, maps)})
    assert "| istar stock | everywhere | 0.5 sd | " in text
    assert text.count("| istar tissue | tissue | ") == len(maps["maps"][TISSUE])
