"""A wrong value of any option is answered in a sentence that names the option, with status 1 or 2."""

import typing

import pytest
from m2ost_cli.bench_commands import bench
from m2ost_cli.main import app

from tests.support.command import m2ost


def commands():
    """Names of each command, and its function."""
    for group, prefix in ((app, ()), (bench, ("bench",))):
        for command in group.registered_commands:
            name = command.name or command.callback.__name__.replace("_", "-")
            if name != "gpu-check":  # reads its own options
                yield (*prefix, name), command.callback


def parts(hint):
    """The types that a type is made of."""
    for part in typing.get_args(hint):
        yield from (part, *parts(part))


def options():
    """Command, option and type of its value, of all options that take one and are no paths."""
    for name, function in commands():
        for parameter, hint in typing.get_type_hints(function, include_extras=True).items():
            if typing.get_origin(hint) is not typing.Annotated:
                continue
            value, info = typing.get_args(hint)[:2]
            if type(info).__name__ != "OptionInfo":
                continue
            kinds = {kind for kind in (value, *parts(value)) if kind in (str, float, int)}
            named = [d for d in (info.default, *(info.param_decls or ())) if str(d).startswith("--")]
            flag = named[0] if named else f"--{parameter.replace('_', '-')}"
            if kinds:
                yield name, flag, kinds.pop()


OPTIONS = list(options())
NUMBERS = [(name, flag, kind) for name, flag, kind in OPTIONS if kind is not str]

FREE = {
    *("--map", "--gene", "--section", "--train-section", "--patient-section", "--folds"),  # names in data
    *("--name", "--model", "--host", "--server", "--ray", "--metrics-url", "--served-as"),  # names elsewhere
    *("--target", "--gpu-source"),  # words that are recorded
    *("--profile", "--only"),  # what the release or the engines have
}
"""Text of which nobody can say that it is wrong before the work has begun."""

RECEIVER = "no address of a receiver of OTLP over HTTP"

WRONG = {
    ("predict", "--trace-otlp"): (("a.svs", "--trace-otlp", "collector:4318"), RECEIVER),
    ("rescore", "--trace-otlp"): (("a.csv", "--trace-otlp", "collector:4318"), RECEIVER),
    ("serve", "--trace-otlp"): (("r", "--slides", "s", "--trace-otlp", "collector:4318"), RECEIVER),
    ("predict", "--view-mpp"): (("a.svs", "--view-mpp", "fine"), "--view-mpp fine: give µm/px as a number"),
    ("predict", "--region"): (("a.svs", "--region", "all"), "write X,Y,W,H in whole level-0 pixels"),
    ("predict", "--dense"): (("a.svs", "--dense", "16"), "with the unit, such as 16px"),
    ("predict", "--tolerance"): (("a.svs", "--dense", "16px", "--tolerance", "half"), "such as 0.5sd"),
    ("predict", "--reader"): (("a.svs", "--reader", "magic"), "--reader must be one of auto, cucim"),
    ("rescore", "--shard"): (("a.csv", "--shard", "half"), "must read K/N, such as 0/4"),
    ("rescore", "--view-mpp"): (("a.csv", "--view-mpp", "-1"), "--view-mpp -1: give µm/px as a number"),
    ("rescore", "--reader"): (("a.csv", "--reader", "magic"), "--reader must be one of"),
    ("serve", "--slides"): (("release", "--slides", "a=1", "--slides", "a=2"), "two slide roots are called 'a'"),
    ("serve", "--log-level"): (("release", "--slides", ".", "--log-level", "loud"), "--log-level must be one of"),
    ("serve", "--reader"): (("release", "--slides", ".", "--reader", "magic"), "--reader must be one of"),
    ("doctor", "--slides"): (("--slides", "a=1", "--slides", "a=2"), "two slide roots are called 'a'"),
    ("domains", "--method"): (("a.h5ad", "--k", "3", "--method", "magic"), "unknown method 'magic'; there are gmm"),
    ("export", "--precision"): (("checkpoint", "--precision", "fp8"), "--precision must be one of fp32"),
    ("export", "--engine"): (("checkpoint", "--engine", "warp"), "--engine must be one of tensorrt"),
    ("export", "--compute-capability"): (
        ("checkpoint", "--engine", "tensorrt-rtx", "--compute-capability", "ada"),
        "--compute-capability ada: write",
    ),
    ("export", "--test-time"): (("checkpoint", "--test-time", "twice"), "--test-time must be one of none"),
    ("build-engine", "--engine"): (("release", "--engine", "warp"), "--engine must be one of tensorrt"),
    ("build-engine", "--compute-capability"): (
        ("release", "--engine", "tensorrt-rtx", "--compute-capability", "8.9;9"),
        "--compute-capability 8.9;9: write",
    ),
    ("fetch", "--sha256"): (("s3://bucket/release", "--sha256", "abc"), "--sha256 abc: give"),
    ("export-istar", "--variant"): (("--variant", "magic"), "--variant must be one of stock"),
    ("train", "--set"): (("run.yaml", "--set", "epochs"), "epochs"),
    ("train", "--recipe"): (("run.yaml", "--recipe", "comon"), "the nearest is common"),
    ("train", "--device"): (("run.yaml", "--device", "tpu"), "--device must be one of cpu, cuda"),
    ("evaluate", "--layout"): (("checkpoint", "--data", ".", "--layout", "flat"), "--layout must be one of auto"),
    ("evaluate", "--view-mpp"): (("checkpoint", "--data", ".", "--view-mpp", "fine"), "--view-mpp fine: give"),
    ("split", "--layout"): (("--data", ".", "--layout", "flat"), "--layout must be one of auto"),
    ("split", "--by"): (("--data", ".", "--by", "gene"), "--by must be one of section, patient"),
    ("split", "--shares"): (("--data", ".", "--shares", "1,2"), "--shares 1,2: give three numbers"),
    ("panel", "--layout"): (("--data", ".", "--split", "s.yaml", "--layout", "flat"), "--layout must be one of auto"),
    ("ship", "--layout"): (("checkpoint", "--data", ".", "--layout", "flat"), "--layout must be one of auto"),
    ("convert", "--system"): (("a.pth", "--panel", "panel.txt", "--system", "stnett"), "nearest known one is stnet"),
    ("convert", "--mean"): (("a.pth", "--panel", "panel.txt", "--mean", "0.5"), "--mean 0.5: give three numbers"),
    ("convert", "--std"): (("a.pth", "--panel", "panel.txt", "--std", "a,b,c"), "--std a,b,c: give three numbers"),
    ("convert", "--channel-order"): (
        ("a.pth", "--panel", "panel.txt", "--channel-order", "GBR"),
        "must be one of RGB, BGR",
    ),
    ("convert", "--test-time"): (("a.pth", "--panel", "panel.txt", "--test-time", "twice"), "--test-time must be one"),
    ("init", "--system"): (("--system", "stnett"), "nearest known one is stnet"),
    ("init", "--variant"): (("--system", "vit", "--variant", "l16"), "--variant l16: ViT has b16, s16"),
    ("init", "--mean"): (("--system", "vit", "--mean", "nan,1,1"), "--mean nan,1,1: give three numbers"),
    ("init", "--std"): (("--system", "vit", "--std", "1,2"), "--std 1,2: give three numbers"),
    ("init", "--channel-order"): (("--system", "vit", "--channel-order", "GBR"), "must be one of RGB, BGR"),
    ("init", "--test-time"): (("--test-time", "twice"), "--test-time must be one of none"),
    ("bench", "istar", "--memory-cap"): (("r", "a.svs", "--memory-cap", "much"), "--memory-cap much: give a size"),
    ("bench", "istar", "--variant"): (("r", "a.svs", "--variant", "magic"), "--variant must be one of"),
    ("bench", "istar", "--device"): (("r", "a.svs", "--device", "tpu"), "--device must be one of cpu, cuda"),
    ("bench", "dense", "--region"): (("r", "a.svs", "--region", "1,2,3"), "write X,Y,W,H"),
    ("bench", "dense", "--dense"): (("r", "a.svs", "--dense", "-16px"), "with the unit, such as 16px"),
    ("bench", "dense", "--tolerance"): (("r", "a.svs", "--tolerance", "0.5"), "such as 0.5sd"),
    ("bench", "systems", "--systems"): ((".", "--systems", "stnett"), "stnett"),
    ("bench", "systems", "--pretrained"): ((".", "--pretrained", "stnet"), "--pretrained stnet: write NAME=FILE"),
    ("bench", "systems", "--take"): ((".", "--take", "=file"), "--take =file: write NAME=FILE"),
    ("bench", "systems", "--recipe"): ((".", "--recipe", "comon"), "comon"),
}
"""Arguments with one wrong value, which is found before the files beside it are looked for; and words of the answer."""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "panel.txt").write_text("A\nB\n")
    (tmp_path / "run.yaml").write_text("data: {root: nowhere, panel: p.txt}\nsplit: {train: [A], validation: [B]}\n")
    return tmp_path


def test_every_option_that_takes_text_is_looked_at():
    text = {(*name, flag) for name, flag, kind in OPTIONS if kind is str and flag not in FREE}
    assert text == set(WRONG)


@pytest.mark.parametrize("case", sorted(WRONG), ids=" ".join)
def test_text_that_means_nothing(case, folder):
    arguments, words = WRONG[case]
    out = () if case[0] in ("serve", "doctor") else ("--out", "out")
    status, output, errors = m2ost(*case[:-1], *arguments, *out)
    assert status in (1, 2), (output, errors)
    assert words in errors
    assert "Traceback" not in errors
    assert not (folder / "out").exists()


@pytest.mark.parametrize(("name", "flag", "kind"), NUMBERS, ids=lambda part: part if isinstance(part, str) else None)
@pytest.mark.parametrize("value", ["fine", "nan"])
def test_a_number_that_is_none(name, flag, kind, value):
    status, _, errors = m2ost(*name, flag, value)
    assert status == 2
    assert f"Invalid value for '{flag}'" in errors


BELOW_NOTHING = [
    (name, flag) for name, flag, _ in NUMBERS if flag not in ("--depth", "--dim", "--levels", "--image-px")
]


@pytest.mark.parametrize(("name", "flag"), BELOW_NOTHING, ids=lambda part: part if isinstance(part, str) else None)
def test_a_number_below_nothing(name, flag):
    status, _, errors = m2ost(*name, flag, "-1")
    assert status == 2
    assert f"Invalid value for '{flag}'" in errors


@pytest.mark.parametrize("flag", ["--depth", "--dim", "--levels", "--image-px"])
def test_a_network_of_no_size(flag, folder):
    status, _, errors = m2ost("init", flag, "-1", "--outputs", "2", "--out", "out")
    assert status == 1
    assert "error: " in errors
    assert not (folder / "out").exists()
