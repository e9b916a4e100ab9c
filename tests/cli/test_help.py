"""What `--help` shows of every command."""

import subprocess
import sys

import pytest
import typer
from m2ost_cli.bench_commands import bench
from m2ost_cli.main import COMMANDS, app

from tests.support.command import m2ost

GROUPS = {"m2ost": app, "bench": bench}


def commands():
    for name, group in GROUPS.items():
        for command, found in typer.main.get_command(group).commands.items():
            if (name, command) not in (("m2ost", "bench"), ("bench", "gpu-check")):  # a group; reads its own options
                yield (*(("bench",) if name == "bench" else ()), command), found


LISTED = list(commands())


def options(command):
    return [p for p in command.params if p.param_type_name == "option" and p.name != "help"]


@pytest.mark.parametrize(
    ("name", "command"), LISTED, ids=lambda part: " ".join(part) if isinstance(part, tuple) else ""
)
def test_every_command_and_option_is_described_in_whole_sentences(name, command):
    summary = command.help.split("\n\n")[0]
    assert summary.endswith(".")
    assert len(summary) <= 110
    for parameter in command.params:
        if parameter.name != "help":
            assert parameter.help.endswith((".", "…")), parameter.name


@pytest.mark.parametrize(
    ("name", "command"), LISTED, ids=lambda part: " ".join(part) if isinstance(part, tuple) else ""
)
def test_out_is_o_and_a_name_means_one_thing(name, command):
    named = {p.opts[0]: p for p in options(command)}
    if "--out" in named:
        assert named["--out"].opts == ["--out", "-o"]
    assert "--genes" not in named
    if "--panel" in named:
        assert named["--panel"].help.lower().startswith("gene panel")
    if "--map" in named:
        assert named["--map"].help.startswith("Draw")
    if "--gene" in named:
        assert "keep only this gene" in named["--gene"].help


@pytest.mark.parametrize(
    ("name", "command"), LISTED, ids=lambda part: " ".join(part) if isinstance(part, tuple) else ""
)
def test_a_long_command_groups_its_options(name, command):
    if len(options(command)) > 10:
        assert len({p.rich_help_panel for p in options(command)}) >= 2


def test_commands_are_grouped_with_predict_and_serve_first():
    headings = list(COMMANDS)
    assert headings == ["Predict", "Serve", "Archive", "Release", "Checkpoint"]
    status, output, _ = m2ost("--help")
    assert status == 0
    places = [output.index(f"─ {heading} ─") for heading in (*headings, "Bench")]
    assert places == sorted(places)
    assert "--install-completion" in output
    status, output, _ = m2ost("bench", "--help")
    assert "─ Speed of what is served ─" in output
    assert "─ Truth on data sets ─" in output


def test_a_shell_completes_commands_and_options():
    for words, expected in (("m2ost pre", "predict"), ("m2ost predict --vie", "--view-mpp")):
        environment = {"_M2OST_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        script = "import sys; sys.argv[0] = 'm2ost'; from m2ost_cli.main import main; main()"
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert expected in done.stdout.split(), done.stderr
