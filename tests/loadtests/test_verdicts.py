"""The gate's decision, and what it writes."""

import json
import math
from dataclasses import replace

import pytest
from m2ost_loadtests.errors import BaselineError, ThresholdsError
from m2ost_loadtests.gate.measure import GateOptions, read_speedups
from m2ost_loadtests.gate.report import BIGGER, SMALLER, write_results
from m2ost_loadtests.gate.thresholds import Limit, Thresholds
from m2ost_loadtests.gate.verdicts import Baseline, Measurement, Status, check_measurable, judge, status_of

MEASURED = Measurement(
    served_over_bare={"median": 0.93, "min": 0.915, "max": 0.939},
    requests_per_batch=3.0,
    rows_per_batch=24.0,
    bytes_per_spot=60.0,
    p95_over_p50=1.2,
    failures={},
    speedups={"stock": {"median": 200.0, "min": 190.0, "max": 210.0}},
    rates={"bare": 30.0, "served": 28.0},
    latencies={"closed load, p50": 900.0},
    workload={"slide": "a.svs", "spots": 60},
    fingerprint={"processor": "P", "cores": 2},
)
THRESHOLDS = Thresholds(
    served_over_bare=Limit(0.8, "why bare"),
    requests_per_batch=Limit(2, "why batches"),
    bytes_per_spot=Limit(100, "why bytes"),
    p95_over_p50=Limit(3, "why tails"),
    failed_requests=Limit(0, "why failures"),
    speedup_over_istar={"stock": Limit(100, "why stock")},
    baseline_tolerance=Limit(0.25, "why a quarter"),
)


def verdicts_of(baseline=None, asked=False, thresholds=THRESHOLDS, **changes):
    return judge(replace(MEASURED, **changes), thresholds, baseline=baseline, asked_for_baseline=asked)


def status(*arguments, **options):
    return status_of(verdicts_of(*arguments, **options))


def test_a_good_run_passes():
    verdicts = verdicts_of()
    assert [v.name for v in verdicts] == [
        "served ÷ bare",
        "speed-up over iStar, stock",
        "requests in a batch",
        "bytes per spot",
        "p95 ÷ p50",
        "failed requests",
    ]
    assert status_of(verdicts) == 0
    assert status_of([]) == 0


def around(median):
    return {"median": median, "min": 0.0, "max": 1e9}


@pytest.mark.parametrize(
    ("name", "change", "at_the_limit"),
    [
        ("served ÷ bare", {"served_over_bare": around(0.79)}, {"served_over_bare": around(0.8)}),
        ("speed-up over iStar, stock", {"speedups": {"stock": around(99)}}, {"speedups": {"stock": around(100)}}),
        ("requests in a batch", {"requests_per_batch": 1.9}, {"requests_per_batch": 2.0}),
        ("requests in a batch", {"requests_per_batch": None}, {"requests_per_batch": 2.0}),
        ("bytes per spot", {"bytes_per_spot": 100.1}, {"bytes_per_spot": 100.0}),
        ("p95 ÷ p50", {"p95_over_p50": 3.1}, {"p95_over_p50": 3.0}),
        ("p95 ÷ p50", {"p95_over_p50": math.nan}, {"p95_over_p50": 3.0}),
        ("p95 ÷ p50", {"p95_over_p50": None}, {"p95_over_p50": 3.0}),
    ],
)
def test_a_threshold_that_is_missed_is_named_with_its_reason(name, change, at_the_limit):
    (missed,) = [v for v in verdicts_of(**change) if v.status is not Status.PASSED]
    assert (missed.name, missed.status) == (name, 3)
    assert f"{name}: " in str(missed)
    assert f"MISSED. {missed.because}" in str(missed)
    assert status(**change) == 3
    assert status(**at_the_limit) == 0


def test_failures_come_before_thresholds_and_thresholds_before_a_missing_baseline():
    slow, failed = {"served_over_bare": around(0.5)}, {"failures": {"UNAVAILABLE: full": 2}}
    assert status(**failed) == 1
    assert status(asked=True, **failed, **slow) == 1
    assert status(asked=True, **slow) == 3
    assert status(asked=True) == 4
    assert status(asked=False) == 0


def test_absolute_figures_are_held_against_a_baseline_of_this_machine_only():
    then = Baseline.of(MEASURED)
    assert status(then, asked=True) == 0
    assert status(then, asked=True, rates={"bare": 30.0, "served": 21.01}) == 0
    (slower,) = [v for v in verdicts_of(then, asked=True, rates={"bare": 30.0, "served": 20.9}) if v.status]
    assert (slower.name, slower.status) == ("served (baseline less 25%)", 3)
    assert status(then, asked=True, latencies={"closed load, p50": 1126.0}) == 3
    assert status(then, asked=False, rates={"bare": 1.0, "served": 1.0}) == 0
    (elsewhere,) = [v for v in verdicts_of(then, asked=True, fingerprint={"processor": "Q", "cores": 2}) if v.status]
    assert elsewhere.status == 4
    assert "another machine (processor 'P', now 'Q')" in str(elsewhere)
    (other,) = [v for v in verdicts_of(then, asked=True, workload={"slide": "a.svs", "spots": 61}) if v.status]
    assert other.status == 4
    assert "another workload (spots 60, now 61)" in str(other)
    assert "--write-baseline" in str(verdicts_of(None, asked=True)[-1])
    with pytest.raises(ThresholdsError, match="baseline_tolerance"):
        verdicts_of(then, asked=True, thresholds=Thresholds())


def test_a_baseline_is_written_whole_and_read_back(tmp_path):
    file = tmp_path / "deep" / "baseline.json"
    assert Baseline.read(file) is None
    Baseline.of(MEASURED).write(file)
    assert Baseline.read(file) == Baseline.of(MEASURED)
    assert [p.name for p in file.parent.iterdir()] == ["baseline.json"]
    for damaged in ("{", "[]", "{}", '{"rates": {"a": "x"}, "latencies": {}, "workload": {}, "fingerprint": {}}'):
        file.write_text(damaged)
        with pytest.raises(BaselineError, match="--write-baseline"):
            Baseline.read(file)


def test_what_the_thresholds_ask_for_must_be_measured():
    check_measurable(THRESHOLDS, ["stock", "other"], has_metrics=True)
    check_measurable(Thresholds(), [], has_metrics=False)
    with pytest.raises(ThresholdsError, match=r"'stock', which is not measured \(none was given\).*--speedups FILE"):
        check_measurable(THRESHOLDS, [], has_metrics=True)
    with pytest.raises(ThresholdsError, match=r"it holds no shift"):
        check_measurable(THRESHOLDS, ["no shift"], has_metrics=True)
    with pytest.raises(ThresholdsError, match="--metrics-url"):
        check_measurable(THRESHOLDS, ["stock"], has_metrics=False)


def test_speedups_from_a_file(tmp_path):
    file = tmp_path / "istar.json"
    file.write_text(json.dumps({"speedups": MEASURED.speedups, "more": 1}))
    assert read_speedups(file) == MEASURED.speedups
    for wrong in ("{}", '{"speedups": {"stock": {"median": 1}}}', '{"speedups": 3}', "{"):
        file.write_text(wrong)
        with pytest.raises(ThresholdsError, match="m2ost bench istar"):
            read_speedups(file)
    with pytest.raises(ThresholdsError, match="m2ost bench istar"):
        read_speedups(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("option", "value"), [("rounds", 0), ("users", 0), ("load_s", 0), ("spots", 0), ("pitch_um", 0), ("mpp", -1)]
)
def test_gate_options_out_of_range_are_named(tmp_path, option, value):
    with pytest.raises(ValueError, match="--" + option.replace("_", "-")):
        GateOptions(release=tmp_path, slide=tmp_path / "a.svs", **{option: value})


def test_results_for_programs_people_and_github_action_benchmark(tmp_path):
    slow = replace(MEASURED, served_over_bare=around(0.7))
    verdicts = judge(slow, THRESHOLDS, baseline=None, asked_for_baseline=True)
    files = write_results(slow, verdicts, tmp_path / "out")
    assert all(file.exists() for file in files)
    result = json.loads((tmp_path / "out" / "gate.json").read_text())
    assert (result["status"], result["verdicts"][0]["status"]) == (3, "MISSED")
    assert result["measurement"]["rates"] == MEASURED.rates
    table = (tmp_path / "out" / "gate.md").read_text()
    assert "| served ÷ bare | 0.7 | ≥ 0.8 | **MISSED**: why bare |" in table
    assert "exit status 3" in table
    assert "processor P" in table
    for name, expected in (
        (BIGGER, {"served ÷ bare": 0.7, "speed-up over iStar, stock": 200, "bare": 30, "requests in a batch": 3}),
        (SMALLER, {"bytes per spot": 60, "p95 ÷ p50": 1.2, "closed load, p50": 900, "failed requests": 0}),
    ):
        entries = json.loads((tmp_path / "out" / name).read_text())
        assert {e["name"]: e["value"] for e in entries}.items() >= expected.items()
        for entry in entries:
            assert set(entry) <= {"name", "value", "unit", "range", "extra"}
            assert all(isinstance(v, str) for k, v in entry.items() if k != "value")
            assert isinstance(entry["value"], (int, float))
