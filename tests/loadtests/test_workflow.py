"""The workflows name targets, options and files that exist."""

import re
import shlex
import subprocess

import pytest
import yaml
from m2ost_cli.main import app
from m2ost_loadtests.gate.report import BIGGER, SMALLER
from typer.testing import CliRunner

from tests.support.data import REPOSITORY

WORKFLOWS = {file.stem: yaml.safe_load(file.read_text()) for file in (REPOSITORY / ".github" / "workflows").iterdir()}
WORKFLOW = WORKFLOWS["benchmark"]
STEPS = {step.get("name", step.get("uses")): step for step in WORKFLOW["jobs"]["gate"]["steps"]}


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_targets_are_the_makefiles(workflow):
    runs = [step.get("run", "") for job in WORKFLOWS[workflow]["jobs"].values() for step in job["steps"]]
    targets = [target for run in runs if run.startswith("make ") for target in shlex.split(run)[1:]]
    database = subprocess.run(["make", "-pnq"], cwd=REPOSITORY, capture_output=True, text=True).stdout
    assert targets
    assert all(re.search(rf"^{re.escape(target)}:", database, re.MULTILINE) for target in targets)


def test_its_command_takes_these_options():
    program, *arguments = shlex.split(STEPS["Gate"]["run"])
    assert program == ".venv/bin/m2ost"
    made = shlex.split(STEPS["Set up"]["run"])
    assert set(arguments[2:4]) <= set(made)
    done = CliRunner().invoke(app, [*arguments, "--thresholds", "absent.yaml"])
    assert "absent.yaml: cannot be read" in str(done.exception)


@pytest.mark.parametrize(
    ("step", "tool", "file"),
    [
        ("What should grow", "customBiggerIsBetter", BIGGER),
        ("What should shrink", "customSmallerIsBetter", SMALLER),
    ],
)
def test_the_series_go_to_the_tool_that_reads_them(step, tool, file):
    given = STEPS[step]["with"]
    assert given["tool"] == tool
    assert given["output-file-path"] == f"build/gate/{file}"
