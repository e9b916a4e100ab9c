"""A dense map out of few predictions: which places are computed, what is interpolated, and what is said of errors."""

import numpy as np
import pytest
from m2ost_client import dense_store
from m2ost_client.dense import DenseOptions
from m2ost_client.dense_levels import RefinedMap
from m2ost_client.dense_store import DenseStore
from m2ost_client.errors import InputError
from m2ost_client.refinement import (
    GeneScales,
    MapCheck,
    drawn_for_check,
    error_sd,
    is_missed,
    level_of,
    midpoints,
    parse_tolerance,
    steps_of,
    to_compute,
)
from m2ost_contract import RowStatus
from m2ost_preprocess.slides.dense_grid import NOT_ASKED, DenseGrid

GENES = ("flat", "wave", "edge")


def test_a_tolerance_has_its_unit():
    assert [parse_tolerance(text) for text in ("0.5sd", "0sd", " .25sd", "2sd")] == [0.5, 0, 0.25, 2]
    for text in ("0.5", "-1sd", "sd", "nansd", "1e3sd", "0.5 px", ""):
        with pytest.raises(InputError, match=r"such as 0\.5sd"):
            parse_tolerance(text)


@pytest.mark.parametrize(
    ("pitch_px", "steps"), [(1, (8, 4, 2, 1)), (15, (8, 4, 2, 1)), (16, (8, 4, 2, 1)), (48, (2, 1)), (64, (2, 1))]
)
def test_a_map_begins_128_px_or_8_cells_apart(pitch_px, steps):
    assert steps_of(pitch_px) == steps


@pytest.mark.parametrize(("pitch_px", "tolerance_sd"), [(65, 0.5), (16, -0.1), (16, float("nan")), (16, float("inf"))])
def test_tolerances_that_cannot_be(pitch_px, tolerance_sd):
    with pytest.raises(InputError, match=r"64 px at most|from 0 on"):
        DenseOptions(pitch_px=pitch_px, tolerance_sd=tolerance_sd)
    assert DenseOptions(pitch_px=pitch_px).tolerance_sd is None


def test_midpoints_of_a_bilinear_field_are_its_own():
    y, x = np.mgrid[:9, :7].astype(np.float32)
    field = np.stack([2 * x - y, x * y, np.full_like(x, 3)], axis=-1)
    assert (midpoints(field[::2, ::2]) == field[:-1, :-1]).all()


def test_nothing_is_interpolated_beyond_places_with_values():
    coarse = np.ones((3, 3), np.float32)
    coarse[1, 1] = np.nan
    missing = np.isnan(midpoints(coarse))
    asked, known = np.ones((4, 4), bool), np.pad(~np.isnan(coarse), ((1, 0), (1, 0)))
    chosen = to_compute(asked, known, np.zeros((4, 4), bool))
    missing[2, 2] = False  # not a midpoint
    assert (chosen == missing).all()
    assert chosen.sum() == 8
    asked[0, 1] = asked[1, 1] = False
    assert (to_compute(asked, known, np.zeros((4, 4), bool)) == (missing & asked)).all()


def test_only_squares_at_a_missed_corner_are_refined():
    missed = np.zeros((6, 6), bool)
    missed[3, 2] = True  # the place at row 2, column 1 of the block
    chosen = to_compute(np.ones((8, 8), bool), np.ones((6, 6), bool), missed)
    around = np.zeros((8, 8), bool)
    around[2:7, 0:5] = True
    around[::2, ::2] = False
    assert (chosen == around).all()
    of_a_neighbour = np.zeros((6, 6), bool)
    of_a_neighbour[0, 0] = True
    assert np.argwhere(to_compute(np.ones((8, 8), bool), np.ones((6, 6), bool), of_a_neighbour)).tolist() == []
    of_a_neighbour[0, 1] = True
    found = np.argwhere(to_compute(np.ones((8, 8), bool), np.ones((6, 6), bool), of_a_neighbour)).tolist()
    assert found == [[0, 1]], "the side of a square above"


def test_a_place_is_missed_at_the_tolerance_or_where_nothing_could_be_measured():
    error = np.full((4, 4), 0.1, np.float32)
    error[0, 0], error[1, 0], error[0, 1], error[1, 1] = 0.5, np.nan, 0.4, 9
    computed = np.ones((4, 4), bool)
    assert np.argwhere(is_missed(computed, error, 0.5)).tolist() == [[0, 0], [1, 0]]
    assert not is_missed(~computed, error, 0.5).any()
    assert is_missed(computed, np.zeros((4, 4), np.float32), 0).sum() == 12, "all that came with the level"


def test_an_error_is_the_95th_percentile_over_genes():
    exact = np.zeros((2, 20), np.float32)
    found = np.tile(np.arange(20, dtype=np.float32), (2, 1))
    found[1, 3] = np.nan
    error = error_sd(exact, found, np.full(20, 2.0))
    assert error[0] == 9.5
    assert np.isnan(error[1])
    assert error_sd(exact[:1], exact[:1], np.zeros(20)) == 0
    assert error_sd(exact[:1], found[:1] + 1, np.zeros(20)) == np.inf


def test_scales_in_parts_are_those_of_the_whole():
    values = np.random.default_rng(0).normal(5, 3, (50, 4)).astype(np.float32)
    scales = GeneScales.over(iter([values[:7], values[7:7], values[7:]]), 4)
    np.testing.assert_allclose(scales.mean, values.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(scales.sd, values.std(axis=0), rtol=1e-6)
    assert np.isnan(GeneScales.over(iter([]), 4).sd).all()


def test_the_check_tells_r_and_errors():
    random = np.random.default_rng(0)
    exact = random.normal(4, [1, 2, 0.1], (300, 3)).astype(np.float32)
    found = exact + random.normal(0, [0.1, 0.2, 0.1], (300, 3)).astype(np.float32)
    found[:100] = exact[:100]
    check = MapCheck(GeneScales.over([exact], 3))
    for part in (slice(0, 120), slice(120, 300)):
        check.add(exact[part], found[part], np.arange(300)[part] < 100)
    facts = check.facts()
    r = [np.corrcoef(exact[:, gene].astype(float), found[:, gene])[0, 1] for gene in range(3)]
    assert facts["r_per_gene"] == {"median": pytest.approx(np.median(r)), "lowest": pytest.approx(min(r))}
    rmse = np.sqrt(((exact - found) ** 2).mean(axis=0)) / exact.std(axis=0)
    assert facts["rmse_sd"] == {
        "median": pytest.approx(np.median(rmse), rel=1e-5),
        "max": pytest.approx(rmse.max(), rel=1e-5),
    }
    assert (facts["places"], facts["of_them_computed"]) == (300, 100)
    errors = error_sd(exact, found, exact.std(axis=0))
    assert facts["error_sd"]["max"] == pytest.approx(errors.max(), rel=1e-5)
    empty = MapCheck(GeneScales.over([exact], 3)).facts()
    assert (empty["places"], empty["r_per_gene"], empty["error_sd"]["max"]) == (0, None, None)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("m2ost_preprocess.slides.dense_grid.BLOCK_CELLS", 16)
    monkeypatch.setattr(dense_store, "BLOCK_CELLS", 16)


class Field:
    """Three genes on a map of 61 × 45 cells: one that hardly varies, a wave, and an edge."""

    grid = DenseGrid.over((45 * 16, 61 * 16), 16)

    def __init__(self):
        y, x = np.mgrid[:61, :45].astype(np.float64)
        edge = 1 / (1 + np.exp(-(x + y - 50)))
        self.values = np.stack([0.01 * edge + x / 500, np.sin(x / 9) * np.cos(y / 11), edge], axis=-1).astype(
            np.float32
        )
        self.status = np.zeros((61, 45), np.int8)
        self.mask = np.ones((61, 45), bool)

    def blocks(self):
        return self.grid.blocks(self.mask)

    def run(self, folder, tolerance_sd, *, stop_after=10**9):
        """Score a map as a server would; the arrays of the map, its facts, and the cells that were asked for."""
        folder.mkdir(exist_ok=True)
        asked = []
        with DenseStore(folder, "field.dense", self.grid, GENES, {"tolerance_sd": tolerance_sd}, refined=True) as store:
            made = RefinedMap(self.grid, self.blocks, store, len(GENES), tolerance_sd)
            for level in range(made.begin(), len(made.steps)):
                for block, cells in made.waiting(level):
                    at = tuple((cells + np.array([block.row, block.column])).T)
                    ok = self.status[at] == RowStatus.OK
                    predicted = np.where(ok[:, None], self.values[at], np.float32(np.nan))
                    made.store(level, block, cells, predicted, self.status[at])
                    asked += list(zip(*at, strict=True))
                    if len(asked) > stop_after:
                        return None
                made.end(level)
            facts = made.facts()["refinement"]
            files = store.finish({})
        import zarr

        group = zarr.open_group(files[-1], mode="r")
        arrays = {name: group[name][:] for name in ("expression", "status", "computed", "error")}
        arrays["expression"] = np.moveaxis(arrays["expression"], 0, -1)
        return arrays, facts, asked


@pytest.fixture
def field(small_blocks):
    return Field()


def test_a_tolerance_of_zero_computes_everything(field, tmp_path):
    arrays, facts, asked = field.run(tmp_path, 0.0)
    assert len(asked) == len(set(asked)) == 61 * 45 == facts["computed"] == facts["places"]
    assert (arrays["expression"] == field.values).all()
    assert arrays["computed"].all()
    assert facts["check"]["r_per_gene"] == {"median": pytest.approx(1), "lowest": pytest.approx(1)}


def test_computed_places_are_exact_and_the_others_within_reach_of_the_tolerance(field, tmp_path):
    arrays, facts, asked = field.run(tmp_path, 0.05)
    assert len(asked) == len(set(asked)), "no place is asked for twice"
    computed, error = arrays["computed"], arrays["error"]
    assert (arrays["expression"][computed] == field.values[computed]).all()
    assert not arrays["status"].any()
    assert np.isfinite(arrays["expression"]).all()
    assert facts["computed"] == computed.sum() < 0.6 * 61 * 45
    checked = ~computed & np.isfinite(error)
    assert len(asked) == computed.sum() + checked.sum()
    assert 0.5 * 0.01 < facts["check"]["places"] / (61 * 45) < 2 * 0.01
    rows, columns = np.ogrid[:61, :45]
    for level, step in zip(facts["levels"], (8, 4, 2, 1), strict=True):
        here = level_of(step, (8, 4, 2, 1), rows, columns)
        assert (level["pitch_px"], level["places"]) == (16 * step, here.sum())
        assert level["computed"] == (here & computed).sum()
        measured = error[here & computed & np.isfinite(error)]
        assert level["error_sd"]["max"] == (measured.max() if len(measured) else None)
        assert level["missed"] == (measured >= 0.05).sum()
    assert facts["levels"][0]["computed"] == facts["levels"][0]["places"]
    assert facts["levels"][1]["computed"] == facts["levels"][1]["places"], "every first midpoint"
    whole = error_sd(field.values.reshape(-1, 3), arrays["expression"].reshape(-1, 3), field.values.std(axis=(0, 1)))
    assert np.percentile(whole, 99) < 0.05
    coarser, finer = (field.run(tmp_path / str(t), t)[1]["computed"] for t in (0.2, 0.01))
    assert coarser < facts["computed"] < finer


def test_a_map_does_not_depend_on_its_blocks(field, tmp_path, monkeypatch):
    small = field.run(tmp_path / "small", 0.05)
    for module in ("m2ost_preprocess.slides.dense_grid", "m2ost_client.dense_store"):
        monkeypatch.setattr(f"{module}.BLOCK_CELLS", 64)
    large = field.run(tmp_path / "large", 0.05)
    for name in ("expression", "computed", "status"):
        np.testing.assert_array_equal(small[0][name], large[0][name])


def test_at_the_tissues_edge_and_around_failures_places_are_computed(field, tmp_path):
    y, x = np.mgrid[:61, :45]
    field.mask = ((x - 20) ** 2 + (y - 25) ** 2 < 300) & ((x + y) % 13 > 0)
    field.status[22:30, 18:22] = RowStatus.DECODE_FAILED
    arrays, facts, _ = field.run(tmp_path, 1e9)
    assert ((arrays["status"] == NOT_ASKED) == ~field.mask).all()
    assert (arrays["status"] == field.status)[arrays["computed"]].all()
    assert (arrays["status"] == RowStatus.DECODE_FAILED).any()
    assert np.isnan(arrays["expression"][~field.mask]).all()
    assert (np.isfinite(arrays["expression"]).all(axis=-1) == (arrays["status"] == 0)).all()
    assert facts["places"] == field.mask.sum()
    exact = arrays["computed"] & (arrays["status"] == 0)
    assert (arrays["expression"][exact] == field.values[exact]).all()
    for row, column in np.argwhere(field.mask & ~arrays["computed"]):
        step = next(step for step in (4, 2, 1) if not (row % step or column % step))
        rows, columns = ({at - at % (2 * step), at + at % (2 * step)} for at in (row, column))
        between = [(r, c) for r in rows for c in columns]
        values = [arrays["expression"][place] for place in between]
        np.testing.assert_allclose(arrays["expression"][row, column], np.mean(values, axis=0), rtol=1e-6)


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(field, tmp_path):
    whole = field.run(tmp_path / "whole", 0.05)
    for stop_after in (1, 60, 100, 300):  # of those that are left then
        assert field.run(tmp_path / "killed", 0.05, stop_after=stop_after) is None
    _, facts, asked = field.run(tmp_path / "killed", 0.05)
    assert facts == whole[1]
    assert 0 < len(asked) < len(whole[2]) - 300
    files = {path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file()}
    assert files == {
        path.relative_to(tmp_path / "killed") for path in (tmp_path / "killed").rglob("*") if path.is_file()
    }
    for file in files:
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_the_places_of_the_check_are_those_of_the_seed():
    drawn = drawn_for_check(5, (64, 64))
    assert (drawn == drawn_for_check(5, (64, 64))).all()
    assert (drawn != drawn_for_check(6, (64, 64))).any()
    assert 20 < drawn.sum() < 70
