"""The table of systems: one protocol for all, gone on with after a kill, and words for every record that is kept."""

import json
import re
import shutil

import numpy as np
import pytest
from m2ost.config import M2OSTConfig
from m2ost.data.errors import DataError
from m2ost_bench.systems import training
from m2ost_bench.systems.article import ABLATIONS
from m2ost_bench.systems.contestants import BY_COST, ablations, all_systems
from m2ost_bench.systems.folds import make_folds
from m2ost_bench.systems.measure import measure
from m2ost_bench.systems.report import to_markdown
from m2ost_bench.systems.taken import take
from m2ost_bench.systems.training import PANEL, RESULT, SystemsOptions, settings

from tests.model.sections import GENES, write_section

TINY = """
optim: {epochs: 2, batch_size: 16, warmup_epochs: 0, precision: fp32, ema: 0.5}
systems:
  m2ost: {model: {image_px: 32, depth: 1, dim: 12, heads: 1, head_dim: 12, ffn_dim: 8, channel_dim: 8}}
  histogene: {model: {image_px: 14, heads: 1, depth: 1, dim: 16, hidden: 8}}
"""
INNER, OUTER = ("A1", "A2", "A3"), ("B1",)


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "ROUNDS", 20)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("systems")
    for seed, name in enumerate((*INNER, *OUTER, "B2")):
        write_section(root, name, seed)
    (root / "tiny.yaml").write_text(TINY)
    return root


def test_every_system_has_its_turn():
    assert [one.name for one in all_systems()] == list(BY_COST)
    assert [one.name for one in all_systems(["vit", "stnet"])] == ["stnet", "vit"]


def test_ablations_are_the_articles_and_each_module_by_itself():
    built = {one.name: M2OSTConfig.from_dict(one.model) for one in ablations()}
    assert next(iter(built)) == "m2ost"
    for row in ABLATIONS:
        kind, _, what = row["network"].partition(" ")
        what = what.lower().replace(", ", "-")
        assert row["network"] == "levels 0+1+2" or f"m2ost-{kind}-{what}" in built
    for name, config in built.items():
        if "levels" in name:
            assert name == f"m2ost-levels-{'+'.join(map(str, config.used_levels))}"
        elif "without" in name:
            assert name == f"m2ost-without-{'-'.join(config.without)}"
    assert len({str(config) for config in built.values()}) == 1 + 6 + 4 + 3


class _Section:
    def __init__(self, name):
        self.name, self.patient = name, name[0]


def test_no_section_is_judged_that_chose_or_was_trained_on():
    folds = make_folds([_Section(name) for name in ("C2", "C3", "C4", "C5", "B4")], ["C2", "C3", "C4", "C5"], ["B4"])
    assert [(fold.name, fold.split.test, fold.kind) for fold in folds] == [
        *((name, (name,), "by section") for name in ("C2", "C3", "C4", "C5")),
        ("B4", ("B4",), "by patient"),
    ]
    assert folds[3].split.train == ("C3", "C4")
    assert (folds[4].split.train, folds[4].split.validation) == (("C2", "C3", "C4"), ("C5",))
    whole = make_folds(
        [_Section(name) for name in ("C2", "C3", "C4", "C5", "B4")], ["C2", "C3", "C4", "C5"], ["B4"], validate=False
    )
    assert [(fold.split.train, fold.split.validation, fold.split.test) for fold in whole[-2:]] == [
        (("C2", "C3", "C4"), (), ("C5",)),
        (("C2", "C3", "C4", "C5"), (), ("B4",)),
    ]
    with pytest.raises(DataError, match="section C6: sections of its patient C are trained on"):
        make_folds([_Section(f"C{i}") for i in range(2, 7)], ["C2", "C3", "C4", "C5"], ["C6"])


@pytest.fixture(scope="module")
def found(heavy, data, tmp_path_factory):
    """A run that was killed after a few epochs, then the same command again, and what it said."""
    out, said = tmp_path_factory.mktemp("out") / "systems", []
    options = SystemsOptions(data=data, out=out, recipe=str(data / "tiny.yaml"), counts=data)

    def run(say, **changes):
        whole = {"inner": INNER, "outer": OUTER, "say": say, **changes}
        return measure(all_systems(["m2ost", "histogene"]), options, GENES, **whole)

    class Killed(BaseException):
        pass

    def die(words):
        said.append(words)
        if words.startswith("m2ost, fold A2: epoch 1 of 2"):
            raise Killed

    with pytest.raises(Killed):
        run(die)
    return run(said.append), said, run, options


def test_a_killed_run_goes_on_where_it_stopped(found):
    report, said, run, options = found
    epochs = [words.partition(", loss")[0] for words in said if ": epoch" in words]
    assert len(epochs) == len(set(epochs)) == 2 * 4 * 2
    assert all(set(row["folds"]) == {*INNER, *OUTER} for row in report["systems"].values())
    again = []
    assert run(again.append)["systems"] == report["systems"]
    assert again == []
    assert not list(options.out.rglob("last.safetensors"))


def test_rows_are_means_over_sections_with_intervals_around_them(found):
    report, *_ = found
    row = report["systems"]["m2ost"]
    scores = [row["folds"][name]["scores"] for name in INNER]
    cell = row["by section"]["rmse"]
    assert cell["mean"] == pytest.approx(np.mean([s["rmse"] for s in scores]))
    assert cell["low"] < cell["mean"] < cell["high"]
    beside = report["systems"]["histogene"]["beside_m2ost"]["by patient"]
    by_patient = [r["folds"]["B1"]["scores"]["r_gene_mean"] for r in report["systems"].values()]
    assert beside["mean"] == pytest.approx(by_patient[0] - by_patient[1])
    assert "beside_m2ost" not in row
    blind = report["no_image"]
    assert set(blind) == {"training mean", "same-patient mean"}
    assert blind["training mean"]["by section"]["r_gene_mean"]["mean"] == 0
    assert blind["same-patient mean"]["by patient"]["rmse"]["mean"] > 0, "B2 has counts"


def test_the_table_has_every_row_twice_and_what_it_cost(found):
    report, *_ = found
    text = to_markdown(report)
    for words in ("| by section: A1, A2, A3 |", "| by patient: B1 |", "| *training mean* | 0.000 [0.000, 0.000] |"):
        assert words in text
    (cost,) = (line for line in text.splitlines() if line.startswith("| histogene | HisToGene |"))
    assert "from scratch" in cost
    assert "1063.23" in text


def test_ablations_stand_beside_the_whole_network_and_the_articles(found):
    report, *_, options = found
    (fold, *_) = report["folds"]
    contestants = [one for one in ablations() if one.name in ("m2ost", "m2ost-levels-1")]
    changed = {"inner": INNER, "outer": OUTER, "only": [fold["name"]], "say": lambda words: None}
    text = to_markdown(measure(contestants, options, GENES, **changed))
    assert re.search(r"\| m2ost-levels-1 \| A1 -?0\.\d{3} so far \|", text), "one section of three is no mean"
    assert "| without DPE, ITMM | 47.03 | 42.99 | 49.48 |" in text
    assert "1063.23" not in text


def test_a_checkpoint_that_is_taken_is_judged_only_where_it_has_seen_nothing(found, tmp_path):
    report, *_, options = found
    checkpoint = options.out / "m2ost" / "B1" / "checkpoint"  # of A1, A2, and A3 to choose the epoch
    again = measure([take("mine", checkpoint)], options, GENES, inner=INNER, outer=OUTER, say=print)
    row = again["systems"]["mine"]
    assert set(row["folds"]) == {"B1"}
    assert row["by patient"] == report["systems"]["m2ost"]["by patient"]
    assert "| mine | nothing so far |" in to_markdown(again)
    other = SystemsOptions(data=options.data, out=tmp_path, recipe=options.recipe)
    with pytest.raises(DataError, match="predicts another panel or target"):
        measure([take("mine", checkpoint)], other, GENES[:2], inner=INNER, outer=OUTER, say=print)


def test_other_settings_are_not_mixed_in(found, data):
    _, _, run, options = found
    with pytest.raises(DataError, match="no fold A9; there are A1, A2, A3, B1"):
        run(print, only=["A9"])
    other = SystemsOptions(data=data, out=options.out, recipe=options.recipe, epochs=1, counts=data)
    with pytest.raises(DataError, match=rf"{RESULT}: was made with other settings"):
        measure(all_systems(["m2ost"]), other, GENES, inner=INNER, outer=OUTER, say=print)
    with pytest.raises(DataError, match="another panel was used there"):
        measure(all_systems(["m2ost"]), options, GENES[:2], inner=INNER, outer=OUTER, say=print)


def test_results_alone_give_the_same_table_in_other_folders_and_of_no_other_panel(found, data, tmp_path):
    report, *_, options = found
    moved = tmp_path / "data"
    shutil.copytree(data, moved)
    results = tmp_path / "results"
    for result in options.out.rglob(RESULT):
        assert str(tmp_path.parent) not in result.read_text()
        copy = results / result.relative_to(options.out)
        copy.parent.mkdir(parents=True)
        shutil.copy(result, copy)
    there = SystemsOptions(data=moved, out=results, recipe=str(moved / "tiny.yaml"), counts=moved)
    both = all_systems(["m2ost", "histogene"])
    again = measure(both, there, GENES, inner=INNER, outer=OUTER, train=False, say=print)
    assert again["systems"] == report["systems"]
    (results / PANEL).unlink()
    with pytest.raises(DataError, match=rf"{RESULT}: was made with other settings"):
        measure(both, there, GENES[:2], inner=INNER, outer=OUTER, train=False, say=print)


def test_each_trains_by_its_own_recipe_where_that_is_asked_for(tmp_path):
    options = SystemsOptions(data=tmp_path, out=tmp_path, recipe="published")
    (fold, *_) = make_folds([_Section(name) for name in ("C2", "C3", "C4")], ["C2", "C3", "C4"], [])
    rates = {one.name: settings(one, fold, options).optim.learning_rate for one in all_systems(["stnet", "hist2st"])}
    assert rates == {"stnet": 3.2e-5, "hist2st": 1e-5}
    assert json.dumps(settings(all_systems(["deepspace"])[0], fold, options).data.view_mpp) == "1.116"
