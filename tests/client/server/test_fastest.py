"""``--profile auto``: the fastest profile that runs here and that the release passed the gate of."""

import json
import re
from pathlib import Path

import pytest
from m2ost_cli.archive_commands import rescore
from m2ost_cli.common import UserError
from m2ost_client.server.doctor import fastest, fastest_profile
from m2ost_contract import BODY_FILE, TAIL_FILE, Manifest
from m2ost_serving.repository import write_repository

from tests.support.releases import ENGINE

SERVER = {
    "python": "python3",
    "version": "3.11",
    "packages": {"openvino": "2026.4.1"},
    "bf16_instructions": "avx512_bf16",
    "bf16_gain": 1.9,
}


@pytest.fixture
def release(tmp_path):
    """One whose body and tail passed their gate with avx512_bf16."""
    folder = tmp_path / "release"
    folder.mkdir()
    write_repository(folder, ENGINE, bf16_instructions="avx512_bf16")
    split = {"split": {"gate": {"instructions": "avx512_bf16"}}}
    Manifest(ENGINE, {}, split, {}, {BODY_FILE: "a", TAIL_FILE: "b"}).write(folder)
    return folder


@pytest.fixture
def on(tmp_path, monkeypatch):
    """Let the server's interpreter say what is given of another machine, as a program that prints it."""

    def machine(**facts):
        program = tmp_path / "bin" / "python3"
        program.parent.mkdir(exist_ok=True)
        answer = json.dumps({k: v for k, v in {**SERVER, **facts}.items() if k != "python"})
        program.write_text(f"#!/bin/sh\necho '{answer}'\n")
        program.chmod(0o755)
        (program.parent / "tritonserver").touch(mode=0o755)
        monkeypatch.delenv("M2OST_SERVER_ENV", raising=False)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")

    return machine


@pytest.mark.parametrize(
    ("facts", "expected", "words"),
    [
        ({}, "cpu-bf16", []),
        ({"bf16_gain": 0.66}, "cpu-openvino", ["float32 is as fast here"]),
        ({"bf16_instructions": "", "bf16_error": "no bfloat16"}, "cpu-openvino", ["cpu-bf16: no bfloat16"]),
        ({"bf16_instructions": "amx_bf16"}, "cpu-openvino", ["with avx512_bf16, here is amx_bf16"]),
        ({"packages": {}}, "cpu", ["cpu-bf16: .* has no openvino", "cpu-openvino: .* has no openvino"]),
    ],
)
def test_the_fastest_that_runs_here(release, on, facts, expected, words):
    on(**facts)
    name, reasons = fastest_profile(release)
    assert name == expected
    assert len(reasons) == len(words)
    for reason, word in zip(reasons, words, strict=True):
        assert re.search(word, reason), reason


def test_a_release_that_never_passed_the_gate(release, on):
    on()
    Manifest(ENGINE, {}, {}, {}, {}).write(release)
    name, (reason,) = fastest_profile(release)
    assert name == "cpu-openvino"
    assert "its gate was not run" in reason
    for config in release.glob(f"*/configs/{fastest.FASTER[0]}.pbtxt"):
        config.unlink()
    name, (reason,) = fastest_profile(release)
    assert (name, reason) == ("cpu-openvino", "cpu-bf16: the release has no such profile; export the checkpoint anew")


def test_an_archive_names_its_profile(tmp_path):
    with pytest.raises(UserError, match="scored on one engine"):
        rescore(str(tmp_path), out=Path(tmp_path / "out"), profile="auto")
