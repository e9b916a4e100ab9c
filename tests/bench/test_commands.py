"""``m2ost bench``: one order of arguments, and words for every record that is kept."""

import json
from importlib import import_module

import pytest
import typer
from m2ost_cli.bench_commands import bench
from typer.testing import CliRunner

from tests.support.data import REPOSITORY

COMMANDS = typer.main.get_command(bench).commands

WITHOUT_A_RELEASE = {"domains", "no-image", "systems"}
"""Commands that measure on data alone."""


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"gpu-check", *WITHOUT_A_RELEASE}))
def test_the_release_comes_first_then_the_slide_then_options(name):
    arguments = [p.name for p in COMMANDS[name].params if p.param_type_name == "argument"]
    assert arguments == ["release", "slide"]
    (out,) = [p for p in COMMANDS[name].params if p.name == "out"]
    assert out.required
    assert out.opts == ["--out", "-o"]


@pytest.mark.parametrize("options", [["--help"], ["--slide", "a.svs", "--out", "out", "--rounds", "0"]])
def test_the_gpu_check_reads_its_own_options(options):
    done = CliRunner().invoke(bench, ["gpu-check", *options])
    assert done.exit_code == (0 if options == ["--help"] else 64)
    assert "usage: gpu_check" in done.output


RECORDS = {
    "served_vs_bare-amd-epyc-2-cores": ("served.served_vs_bare", "- served/bare: 0."),
    "served_vs_bare-amd-epyc-bf16-2-cores": ("served.served_vs_bare", "- served/authors, processor time: 4."),
    "served_vs_bare-intel-xeon-no-amx-2-cores": ("served.served_vs_bare", "- served/served cpu, processor time: 0."),
    "served_vs_bare-intel-xeon-2-cores": ("served.served_vs_bare", "- served/bare, processor time: 0."),
    "engines-intel-xeon-no-amx-2-cores": ("engines.speed", "| openvino-cpu-bf16 | "),
    "soak-amd-epyc-2-cores": ("served.soak", "Growth of the peak from the first to the second half: client "),
    "engines-intel-xeon-2-cores": ("engines.speed", "| openvino-cpu | "),
    "engine-threads-intel-xeon-2-cores": ("engines.threads", "| cpu, 2 thread(s), tiler all | "),
    "engine-runs-intel-xeon-2-cores": ("engines.threads", "| cpu, 2 thread(s), 2 runs at a time, tiler all | "),
    "dense-intel-xeon-2-cores": ("istar.refined_map", "| everywhere | 0.5 sd | "),
    "archive-intel-xeon-2-cores": ("archive.speed_report", "- rescore/predict: **"),
    "archive-soak-intel-xeon-2-cores": ("archive.soak", "- growth of the peak, last run: client "),
    "load-amd-epyc-2-cores": ("load.report", "- goodput ÷ capacity at 4 times the capacity: **"),
    "tiler-intel-xeon-2-cores": ("tiler.report", "| 200 µm grid | "),
    "istar-intel-xeon-2-cores": ("istar.comparison_report", "| istar stock | "),
}


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_that_is_kept_is_put_into_words(record):
    module, words = RECORDS[record]
    report = json.loads((REPOSITORY / "benchmarks" / f"{record}.json").read_text())
    assert words in import_module(f"m2ost_bench.{module}").to_markdown(report)
