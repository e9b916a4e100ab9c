"""The alerts, by promtool: each fires, does not fire, resolves, and is in the runbook."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support.containers import need_programs
from tests.support.data import REPOSITORY

RULES = REPOSITORY / "deploy" / "chart" / "rules" / "m2ost.yaml"
CASES = Path(__file__).with_name("rules.yaml")
ALERTS = {
    rule["alert"]: rule
    for group in yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
}


def promtool(*arguments: object) -> subprocess.CompletedProcess:
    need_programs("promtool")
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)


def test_every_alert_passes_its_cases():
    for done in (promtool("check", "rules", RULES), promtool("test", "rules", CASES)):
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        {"expr": "vector(1) == 2"},
        {"for": "0m"},
        {"for": "2h"},
        {"keep_firing_for": "2h"},
        {"labels": {"severity": "info"}},
        {"annotations": {"summary": "?"}},
    ],
    ids=lambda wrong: "-".join(wrong),
)
def test_the_cases_see_whatever_is_wrong_with_an_alert(wrong, tmp_path):
    rules = yaml.safe_load(RULES.read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule.update(wrong if "alert" in rule else {})
    (tmp_path / "m2ost.yaml").write_text(yaml.safe_dump(rules))
    cases = yaml.safe_load(CASES.read_text())
    (tmp_path / "cases.yaml").write_text(yaml.safe_dump({**cases, "rule_files": ["m2ost.yaml"]}))
    done = promtool("test", "rules", tmp_path / "cases.yaml")
    assert done.returncode == 1
    assert set(re.findall(r"alertname: (\w+)", done.stdout + done.stderr)) == set(ALERTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_has_a_case_in_which_it_fires_and_resolves_and_one_in_which_it_does_not(alert):
    of_groups = []
    for group in yaml.safe_load(CASES.read_text())["tests"]:
        tests = [test for test in group["alert_rule_test"] if test["alertname"] == alert]
        if tests:
            of_groups.append([bool(test.get("exp_alerts")) for test in tests])
    assert [False, True, False] in of_groups
    assert any(len(fires) >= 3 and not any(fires) for fires in of_groups)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_what_is_the_matter_how_bad_it_is_and_where_to_read_on(alert):
    rule = ALERTS[alert]
    assert rule["for"]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"]
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    headings = [line[3:] for line in (REPOSITORY / page).read_text().splitlines() if line.startswith("## ")]
    assert alert in headings
    assert anchor == alert.lower()


def test_the_runbook_has_no_section_of_an_alert_that_is_not():
    page = (REPOSITORY / "docs" / "runbook.md").read_text()
    assert {line[3:] for line in page.splitlines() if line.startswith("## ")} == set(ALERTS)
