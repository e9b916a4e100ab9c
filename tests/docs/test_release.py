"""A release: one version wherever it is stated, and a tag that is of it."""

import re
import subprocess
import sys
from importlib import import_module, metadata

import pytest
import yaml

from tests.support.data import REPOSITORY

SCRIPT = REPOSITORY / "scripts" / "release_notes.py"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return import_module(SCRIPT.stem)


def test_one_version_stands_everywhere(script):
    version = script.project_version()
    chart = yaml.safe_load((REPOSITORY / "deploy" / "chart" / "Chart.yaml").read_text())
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    named = re.findall(r"m2ost_triton-([\d.]+)-py3", (REPOSITORY / "docs" / "install.md").read_text())
    assert {metadata.version("m2ost-triton"), chart["version"], chart["appVersion"], citation["version"], *named} == {
        version
    }


def test_the_notes_are_the_section_of_the_version(script):
    changes = "# Changes\n\n## Unreleased\n\n- new\n\n## 0.2.0 (2026-12-01)\n\n- two\n- lines\n\n## 0.1.0\n\n- old\n"
    assert script.notes("v0.2.0", "0.2.0", changes) == "- two\n- lines"
    assert script.notes("v0.1.0", "0.1.0", changes) == "- old"
    with pytest.raises(ValueError, match=r"tag v0.2.0: the package is of version 0.1.0"):
        script.notes("v0.2.0", "0.1.0", changes)
    with pytest.raises(ValueError, match=r"nothing under `## 0.3.0`"):
        script.notes("v0.3.0", "0.3.0", changes)


def test_a_tag_of_another_version_ends_the_release_with_the_reason():
    done = subprocess.run([sys.executable, SCRIPT, "v99.0.0"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: tag v99.0.0: the package is of version ")
