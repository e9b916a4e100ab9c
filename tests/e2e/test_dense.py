"""Dense maps through a real Triton."""

import asyncio
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import zarr
from m2ost_cli.common import UserError
from m2ost_cli.main import app
from m2ost_client import dense, dense_store
from m2ost_client.dense import DenseOptions, predict_dense
from m2ost_client.errors import InputError, OutputError
from m2ost_client.options import PredictOptions
from m2ost_client.stream import StreamOptions
from m2ost_preprocess.errors import SpotError, UnknownTissue
from m2ost_preprocess.slides.rectangle import Rectangle
from PIL import Image
from typer.testing import CliRunner

from tests.support.command import m2ost

from .releases import by_pytorch
from .servers import metrics_of

SLIDE = "wsi/CMU-1-Small-Region.svs"
REGION = Rectangle(300, 350, 900, 800)
TILED = "m2ost_tiler_spots_total{slide_tiler}"
WINDOW = 3


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 4 × 4 cells: many of them without many positions."""
    monkeypatch.setattr("m2ost_preprocess.slides.dense_grid.BLOCK_CELLS", 4)
    monkeypatch.setattr(dense_store, "BLOCK_CELLS", 4)


def options_for(out, **more):
    stream = StreamOptions(batch_rows=8, window=WINDOW)
    return PredictOptions(**{"slide": SLIDE, "out": out, "region": REGION, "stream": stream, **more})


def run(server, out, pitch_px=48, on_progress=None, **more):
    kept = {key: more.pop(key) for key in ("genes", "everywhere", "tolerance_sd") if key in more}
    job = predict_dense(
        server.address, options_for(out, **more), DenseOptions(pitch_px=pitch_px, **kept), on_progress=on_progress
    )
    return asyncio.run(job)


def read(report):
    return zarr.open_group(report.files[-1], mode="r")


def scored(group):
    """Expression (n, genes) and positions (n, 2) of the cells with a value."""
    rows, columns = np.nonzero(group["status"][:] == 0)
    positions = np.stack([group["x"][:][columns], group["y"][:][rows]], axis=1)
    return group["expression"][:][:, rows, columns].T, positions


def test_the_command_maps_a_region(narrow_release, svs, tmp_path):
    release, out = narrow_release, tmp_path / "out"
    arguments = (svs, "--release", release, "--out", out)
    where = ("--dense", "16px", "--region", "600,350,420,120")
    status, output, errors = m2ost("predict", *arguments, *where, "--tolerance", "0.001sd")
    assert status == 0, errors
    assert "UNTRAINED" in output
    stem = "CMU-1-Small-Region.dense"
    assert sorted(p.name for p in out.iterdir()) == [f"{stem}.json", f"{stem}.zarr"]
    group = zarr.open_group(out / f"{stem}.zarr", mode="r")
    expression, positions = scored(group)
    assert len(positions) > 32, "more than one request"
    computed = group["computed"][:][group["status"][:] == 0]
    assert f"{computed.sum():,} of {len(positions):,} cells computed; " in output
    expected = by_pytorch(release, svs, positions[computed])
    np.testing.assert_allclose(expression[computed], expected, rtol=0, atol=1e-4)
    facts = json.loads((out / f"{stem}.json").read_text())
    manifest = json.loads((release / "manifest.json").read_text())
    assert facts["release_sha256"] == group.attrs["release_sha256"] == manifest["engine"]["release_sha256"]
    assert facts["spots"]["by_status"] == {"OK": len(positions)}
    assert group.attrs["grid"] == {"pitch_px": 16, "pitch_um": pytest.approx(7.984), "origin_px": [592, 352]}
    again = CliRunner().invoke(app, ["predict", *map(str, arguments), "--dense", "16px"])
    assert "exists and is never overwritten" in str(again.exception), "told before a server is started"


def test_memory_is_a_few_blocks_whatever_the_map(narrow_server, narrow_release, svs, tmp_path, small_blocks):
    before = metrics_of(narrow_server)[TILED]
    report = run(narrow_server, tmp_path, genes=("untrained_004", "untrained_001"))
    group = read(report)
    expression, positions = scored(group)
    block_of = (positions - group.attrs["grid"]["origin_px"]) // (4 * 48)
    alone = (np.unique(block_of, axis=0, return_counts=True)[1] == 1).sum()
    assert metrics_of(narrow_server)[TILED] - before == len(positions) + alone, "of a single one its values twice"
    assert len(positions) == report.metadata["spots"]["count"]
    blocks = [path for path in (report.files[-1] / "status" / "c").rglob("*") if path.is_file()]
    assert len(blocks) > 2 * WINDOW
    assert 1 <= report.most_open_blocks <= WINDOW + 1
    assert report.complete
    assert group.attrs["genes"] == ["untrained_004", "untrained_001"]
    expected = by_pytorch(narrow_release, svs, positions)[:, [4, 1]]
    np.testing.assert_allclose(expression, expected, rtol=0, atol=1e-4)


KILLED = """
import asyncio, json, os, signal, sys
from pathlib import Path
from m2ost_client import dense_store
from m2ost_client.dense import DenseOptions, predict_dense
from m2ost_client.options import PredictOptions
from m2ost_client.stream import StreamOptions
from m2ost_preprocess.slides import dense_grid
from m2ost_preprocess.slides.rectangle import Rectangle
from PIL import Image

address, slide, out, region, most, dense = sys.argv[1:]
dense_grid.BLOCK_CELLS = dense_store.BLOCK_CELLS = 4

def die(done, total):
    if done > int(most):
        os.kill(os.getpid(), signal.SIGKILL)

options = PredictOptions(
    slide=slide, out=Path(out), region=Rectangle.parse(region), stream=StreamOptions(batch_rows=8, window=3)
)
asyncio.run(predict_dense(address, options, DenseOptions(**json.loads(dense)), on_progress=die))
"""


def run_and_kill(server, out, region, most, **dense):
    """A run in a process that is killed once it has scored ``most`` positions."""
    command = [sys.executable, "-c", KILLED, server.address, SLIDE, str(out), str(region), str(most), json.dumps(dense)]
    assert subprocess.run(command, timeout=120).returncode == -signal.SIGKILL
    assert [path.name for path in out.iterdir()] == [".CMU-1-Small-Region.dense.part"]


def test_a_killed_run_leaves_no_map_and_is_gone_on_with(narrow_server, tmp_path, small_blocks):
    whole = run(narrow_server, tmp_path / "whole")
    out = tmp_path / "killed"
    count = whole.metadata["spots"]["count"]
    run_and_kill(narrow_server, out, REGION, count // 2, pitch_px=48)
    journal = (out / ".CMU-1-Small-Region.dense.part" / "blocks").read_text().splitlines()
    stored = sum(json.loads(line)["by_status"]["OK"] for line in journal)
    assert 0 < stored < count
    progress = []
    report = run(narrow_server, out, on_progress=lambda *done: progress.append(done))
    assert (progress[0], progress[-1]) == ((stored, count), (count, count)), "what was stored is not scored again"
    assert report.metadata["spots"] == whole.metadata["spots"]
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in (tmp_path / "whole").iterdir())
    for name in ("expression", "status", "tissue"):
        np.testing.assert_allclose(read(report)[name][:], read(whole)[name][:], rtol=0, atol=1e-5)


def test_a_map_with_a_tolerance_is_the_exact_one_where_it_was_computed(narrow_server, tmp_path, small_blocks):
    small = {"pitch_px": 32, "region": Rectangle(500, 1900, 420, 320), "everywhere": True}
    exact, all_computed, refined = (
        read(run(narrow_server, tmp_path / str(tolerance_sd), tolerance_sd=tolerance_sd, **small))
        for tolerance_sd in (None, 0.0, 0.5)
    )
    assert "computed" not in exact
    arrays = {name: exact[name][:] for name in ("expression", "status", "tissue")}
    for name, values in arrays.items():
        np.testing.assert_array_equal(all_computed[name][:], values)
    for name in ("status", "tissue"):
        np.testing.assert_array_equal(refined[name][:], arrays[name])
    computed, expression = refined["computed"][:], refined["expression"][:]
    np.testing.assert_array_equal(expression[:, computed], arrays["expression"][:, computed])
    facts = json.loads((tmp_path / "0.5" / "CMU-1-Small-Region.dense.json").read_text())
    refinement = facts["dense"]["refinement"]
    assert refined.attrs["refinement"] == refinement
    assert [level["pitch_px"] for level in refinement["levels"]] == [128, 64, 32]
    assert refinement["computed"] == computed.sum() < refinement["places"] == facts["spots"]["count"]
    assert (np.isfinite(expression).all(axis=0) == (arrays["status"] == 0)).all()

    whole, out = tmp_path / "0.5", tmp_path / "killed"
    coarsest, next_to_it, _ = (level["computed"] for level in refinement["levels"])
    most = coarsest + next_to_it // 2
    run_and_kill(narrow_server, out, small["region"], most, pitch_px=32, everywhere=True, tolerance_sd=0.5)
    with pytest.raises(OutputError, match="a part of another map"):
        run(narrow_server, out, tolerance_sd=0.25, **small)
    run(narrow_server, out, tolerance_sd=0.5, **small)
    stored = {path.relative_to(whole): path.read_bytes() for path in whole.rglob("*.zarr/**/*") if path.is_file()}
    assert len(stored) > 20
    assert stored == {path: (out / path).read_bytes() for path in stored}
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in whole.iterdir())


def test_a_map_off_the_tissue_and_beyond_the_slides_edge(narrow_server, tmp_path):
    report = run(narrow_server, tmp_path, region=Rectangle(2100, 2900, 500, 500), everywhere=True, pitch_px=40)
    group = read(report)
    assert group["status"].shape == (2, 3), "positions of 40-px cells: x 2100 to 2219, y 2900 to 2966"
    assert not group["status"][:].any()
    assert not group["tissue"][:].any()
    assert np.isfinite(group["expression"][:]).all()


@pytest.mark.parametrize(
    ("more", "kind", "words"),
    [
        ({"region": Rectangle(2220, 0, 9, 9)}, SpotError, "outside the slide, which has 2220×2967 pixels"),
        ({"region": Rectangle(0, 0, 9, 9)}, SpotError, "holds no position"),
        (
            {"region": Rectangle(2100, 2900, 500, 500)},
            InputError,
            "no cell .* is at least half tissue in it; tissue was",
        ),
        ({"genes": ("TP53",)}, InputError, "gene 'TP53' is not in the panel"),
    ],
)
def test_maps_that_cannot_be(narrow_server, tmp_path, more, kind, words):
    with pytest.raises(kind, match=words):
        run(narrow_server, tmp_path, **more)
    assert list(tmp_path.iterdir()) == []


def test_a_map_of_a_slide_whose_tissue_nobody_can_tell_is_refused_unless_of_all_of_it(
    narrow_server, section, text_svs, tmp_path
):
    Image.open(section).reduce(64).convert("L").save(text_svs.parent / "grey.png")
    all_of_it = {"slide": "text/grey.png", "region": None, "pitch_px": 48}
    with pytest.raises(UnknownTissue, match=r"^text/grey\.png: the picture has no colour"):
        run(narrow_server, tmp_path, **all_of_it)
    assert list(tmp_path.iterdir()) == []
    report = run(narrow_server, tmp_path, everywhere=True, **all_of_it)
    assert report.complete
    assert "no colour" in report.metadata["slide_facts"]["note"]


def test_a_server_that_answers_short_is_an_error(narrow_server, tmp_path, monkeypatch):
    async def take_and_answer_nothing(stream, slide, blocks, **cutting):
        list(blocks)
        return
        yield

    monkeypatch.setattr(dense.SpotStream, "predict_blocks", take_and_answer_nothing)
    with pytest.raises(OutputError, match="did not come back whole"):
        run(narrow_server, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".CMU-1-Small-Region.dense.part"]


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (["--dense", "15"], SpotError, "with the unit, such as 16px"),
        (["--dense", "16px", "--map", "DDX5"], UserError, "leave --spots, --mask, --map and --send-pixels out"),
        (["--dense", "16px", "--region", "0,0,0,5"], SpotError, "empty"),
        (["--region", "0,0,5"], SpotError, "write X,Y,W,H"),
        (["--everywhere"], UserError, "give --dense 16px"),
        (["--tolerance", "0.5sd"], UserError, "give --dense 16px"),
        (["--dense", "16px", "--tolerance", "0.5"], InputError, "such as 0.5sd"),
        (["--dense", "16px", "--tolerance", "-1sd"], InputError, "such as 0.5sd"),
        (["--dense", "99px", "--tolerance", "1sd"], InputError, "choose a pitch of 64 px at most"),
        (["--gene", "DDX5"], UserError, "give --dense 16px"),
    ],
)
def test_options_that_cannot_be(tmp_path, arguments, kind, words):
    command = ["predict", SLIDE, "--server", "127.0.0.1:9", "--out", str(tmp_path), *arguments]
    error = CliRunner().invoke(app, command).exception
    assert isinstance(error, kind)
    assert words in str(error)


def test_a_region_restricts_a_grid_of_spots(narrow_server, tmp_path):
    from m2ost_client.predict import predict_slide

    whole = asyncio.run(predict_slide(narrow_server.address, options_for(tmp_path / "whole", region=None)))
    part = asyncio.run(predict_slide(narrow_server.address, options_for(tmp_path / "part")))
    inside = REGION.holds(whole.result.spots.centers)
    assert 0 < inside.sum() < len(inside)
    assert list(part.result.spots.names) == [n for n, i in zip(whole.result.spots.names, inside, strict=True) if i]
    assert part.metadata["region"] == str(REGION)
    np.testing.assert_allclose(part.result.expression, whole.result.expression[inside], rtol=0, atol=1e-5)
