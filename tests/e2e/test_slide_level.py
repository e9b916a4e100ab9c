"""Systems that predict a slide as a whole: what is served of real slides is what PyTorch computes of all its spots."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from m2ost.checkpoint import load
from m2ost_client import ServerOptions, SpotStream, TritonServer
from m2ost_client.archive import Settings, SlideRow
from m2ost_client.errors import InputError, RequestRejected
from m2ost_client.requests import whole_slide_inputs
from m2ost_contract import MODEL_SLIDE, PositionsError, RowStatus, as_centers
from m2ost_preprocess.decoder import Decoder
from m2ost_preprocess.readers import open_slide
from m2ost_preprocess.slides.spots import read_spots
from m2ost_preprocess.tiling.views import cut_views
from tritonclient.utils import InferenceServerException

from tests.support.command import m2ost
from tests.support.machine import wait_for
from tests.support.once import made_once

from . import archives
from .releases import HIST2ST, make_release
from .servers import Held, metrics_of
from .test_loads import locust

SLIDE, SECTION = "wsi/CMU-1-Small-Region.svs", "her2st/C2.jpg"


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    return made_once(tmp_path_factory, "hist2st", lambda folder: make_release(folder, HIST2ST)) / "release"


@pytest.fixture(scope="module")
def log() -> list[dict]:
    return []


@pytest.fixture(scope="module")
def server(release, roots, log):
    with TritonServer(ServerOptions(release=release, roots=roots), on_log=log.append) as running:
        yield running


@pytest.fixture(scope="module")
def spots(selection):
    """Those of a real section, with their places on the array."""
    return read_spots(selection)


def ask(server, slide, centers, places, **options):
    """Expression and status of all spots of a slide."""

    async def stream():
        async with SpotStream(server.address) as client:
            (batch,) = [batch async for batch in client.predict_whole(slide, centers, places, **options)]
        assert batch.rows.tolist() == list(range(len(centers)))
        return batch.expression, batch.status

    return asyncio.run(stream())


def ask_raw(server, slide, centers, places, **options):
    """As a client without our library, which checks nothing before it sends."""
    inputs = whole_slide_inputs(slide, np.asarray(centers, np.int32), np.asarray(places, np.int32), 1.0)
    with triton.InferenceServerClient(server.address) as client:
        return client.infer(MODEL_SLIDE, inputs, **options)


def by_pytorch(release, slide, centers, places):
    network, _ = load(release.parent / "checkpoint")
    geometry, centers = network.config.views, as_centers(centers)
    views = [np.empty((len(centers), *geometry.shape), np.uint8)]
    statuses = cut_views(open_slide(slide), centers, np.ones(len(centers), np.float32), geometry, views)
    assert not statuses.any()
    with torch.inference_mode():
        return network.eval().slide(network.patches(torch.from_numpy(views[0])), torch.from_numpy(places)).numpy()


def cells(count, pitch_px=100, seed=0):
    """Spots on the demo slide, and their places: cells of a grid, by chance."""
    places = np.stack(np.unravel_index(np.random.default_rng(seed).choice(18 * 18, count, replace=False), (18, 18)), 1)
    return places * pitch_px + 300, places.astype(np.int32)


def test_a_real_section_is_scored_as_pytorch_scores_it_in_any_order_of_its_spots(server, release, section, spots):
    expression, status = ask(server, SECTION, spots.centers, spots.places())
    assert not status.any()
    expected = by_pytorch(release, section, spots.centers, spots.places())
    np.testing.assert_allclose(expression, expected, rtol=0, atol=1e-4)
    assert expected.std(axis=0).min() > 1e-3, "a map without contrast would pass by luck"
    order = np.random.default_rng(0).permutation(len(spots))
    permuted, _ = ask(server, SECTION, spots.centers[order], spots.places()[order])
    np.testing.assert_allclose(permuted, expression[order], rtol=0, atol=1e-5)
    moved, _ = ask(server, SECTION, spots.centers, spots.places()[:, ::-1])
    assert np.abs(moved - expression).max() > 1e-3, "positions change nothing"


def test_a_spot_that_fails_is_left_out_of_the_sequence(server):
    centers, places = cells(40)
    whole, _ = ask(server, SLIDE, centers, places)
    centers[[3, 20]] = (-700, 50), (90_000, 10)
    expression, status = ask(server, SLIDE, centers, places)
    lost = np.isin(np.arange(40), [3, 20])
    assert (status[lost] == RowStatus.OUTSIDE_SLIDE).all()
    assert not status[~lost].any()
    assert np.isnan(expression[lost]).all()
    without, _ = ask(server, SLIDE, centers[~lost], places[~lost])
    np.testing.assert_allclose(expression[~lost], without, rtol=0, atol=1e-6)
    assert np.abs(expression[~lost] - whole[~lost]).max() > 1e-4, "the others do not hear of the spots that failed"


def test_no_spot_left_is_a_slide_of_nan_and_its_statuses(server):
    _, places = cells(3)
    expression, status = ask(server, SLIDE, [(-700, 50)] * 3, places)
    assert np.isnan(expression).all()
    assert (status == RowStatus.OUTSIDE_SLIDE).all()


def test_a_lone_spot_is_a_number(server):
    expression, status = ask(server, SLIDE, [(800, 900)], [(63, 0)])
    assert np.isfinite(expression).all()
    assert status.tolist() == [RowStatus.OK]
    centers, places = cells(10)
    expression, _ = ask(server, SLIDE, [*centers, (900, 900)], [*places, (60, 60)])
    assert np.isfinite(expression).all()


def test_a_slide_is_more_than_a_request_of_spots_may_be_and_slides_are_scored_side_by_side(server, release, svs):
    centers, places = cells(280)
    expected = by_pytorch(release, svs, centers, places)
    found = {}

    def score(number):
        found[number], _ = ask(server, SLIDE, centers[number:], places[number:])

    threads = [threading.Thread(target=score, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-4)
    for number in range(1, 4):
        expected = by_pytorch(release, svs, centers[number:], places[number:])
        np.testing.assert_allclose(found[number], expected, rtol=0, atol=1e-4)


PLACES = np.stack(np.unravel_index(np.arange(301), (18, 18)), axis=1)


@pytest.mark.parametrize(
    ("slide", "places", "code", "words"),
    [
        (SLIDE, [(0, 0), (5, -1)], "INVALID_ARGUMENT", r"spot 1 has array position \[5, -1\], outside the 64"),
        (SLIDE, [(0, 0), (64, 1)], "INVALID_ARGUMENT", r"spot 1 has array position \[64, 1\], outside the 64"),
        (SLIDE, [(1, 1), (1, 1)], "INVALID_ARGUMENT", "no two may share one"),
        (SLIDE, PLACES, "INVALID_ARGUMENT", "301 spots; this network predicts a slide as a whole, of 1 to 300 spots"),
        (SLIDE, PLACES[:0], "INVALID_ARGUMENT", "0 spots"),
        ("wsi/absent.svs", PLACES[:4], "NOT_FOUND", "no such slide on the server"),
        ("wsi/../her2st/C2.jpg", PLACES[:4], "NOT_FOUND", "not a slide name"),
        ("/etc/passwd", PLACES[:4], "NOT_FOUND", "not a slide name"),
        ("nowhere/a.svs", PLACES[:4], "NOT_FOUND", "unknown slide root"),
        ("wsi/\u0000", PLACES[:4], "NOT_FOUND", "wsi/"),
        ("half/truncated.svs", PLACES[:4], "INVALID_ARGUMENT", "truncated.svs"),
        ("text/notes.svs", PLACES[:4], "INVALID_ARGUMENT", "notes.svs"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name_before_a_pixel_is_read(server, slide, places, code, words):
    before = metrics_of(server)
    with pytest.raises(InferenceServerException, match=words) as error:
        ask_raw(server, slide, np.asarray(places) * 50 + 300, places)
    assert error.value.status() == f"StatusCode.{code}"
    assert slide.strip("\0") in error.value.message()
    after = metrics_of(server)
    for counter in ("spots", "regions", "decoded_tiles"):
        name = f"m2ost_tiler_{counter}_total{{slide_tiler}}"
        assert after[name] == before[name]


def test_a_request_without_positions_or_with_too_few_is_refused(server):
    centers, places = cells(4)
    inputs = whole_slide_inputs(SLIDE, centers.astype(np.int32), places, 1.0)
    without = [given for given in inputs if given.name() != "POSITION"]
    with (
        triton.InferenceServerClient(server.address) as client,
        pytest.raises(InferenceServerException, match="POSITION"),
    ):
        client.infer(MODEL_SLIDE, without)
    with pytest.raises(InferenceServerException, match="positions of 3 × 2 for 4 spots"):
        ask_raw(server, SLIDE, centers, places[:3])
    with pytest.raises(InferenceServerException, match="this server serves release"):
        ask_raw(server, SLIDE, centers, places, parameters={"release": "0" * 64})
    assert not ask(server, SLIDE, centers, places)[1].any()


def test_the_stream_says_what_a_slide_level_release_does_not_do(server, svs):
    centers, places = cells(3)

    async def stream():
        async with SpotStream(server.address) as client:
            with Decoder(client.info.views) as decoder:
                for answers in (
                    client.predict(SLIDE, centers),
                    client.predict_blocks(SLIDE, [centers]),
                    client.predict_local(svs, centers, decoder),
                ):
                    with pytest.raises(InputError, match="predicts a slide as a whole"):
                        await anext(answers)
            with pytest.raises(PositionsError, match="outside the 64"):
                await anext(client.predict_whole(SLIDE, centers, places + 64))
            assert [batch async for batch in client.predict_whole(SLIDE, [], [])] == []

    asyncio.run(stream())


def test_a_load_is_not_sent_to_what_predicts_slides_as_a_whole(server):
    status, output = locust(server.address, "--slide", SLIDE, "-u", 1, "-t", "1s")
    assert status == 1
    assert "predicts slides as a whole; a load is of spots that are predicted each" in output


def test_a_spot_level_release_refuses_a_slide_as_a_whole(narrow_server):
    with pytest.raises(InputError, match="predicts each spot by itself"):
        ask(narrow_server, SLIDE, *cells(2))
    with pytest.raises(InferenceServerException, match="POSITION"):
        ask_raw(narrow_server, SLIDE, *cells(2))


def test_an_archive_is_scored_slide_by_slide_and_one_without_places_is_named(
    server, release, svs, section, spots, selection, tmp_path
):
    table = tmp_path / "bare.csv"
    table.write_text("pixel_x,pixel_y\n" + "".join(f"{x},{y}\n" for x, y in spots.centers))
    rows = [
        SlideRow("section", SECTION, spots=str(selection)),
        SlideRow("grid", SLIDE, pitch_um=100.0),
        SlideRow("bare", SECTION, spots=str(table)),
        SlideRow("dense", SLIDE, pitch_um=20.0),
    ]
    out = tmp_path / "out"
    report = archives.rescore(rows, out, [server], settings=Settings())
    assert not report.complete
    reasons = {row["slide_id"]: row["reason"] for row in report.summary["failed"]}
    assert set(reasons) == {"bare", "dense"}
    assert "needs places on the array as whole numbers" in reasons["bare"]
    assert "of 1 to 300 spots" in reasons["dense"]
    found = anndata.read_h5ad(out / "results" / "section.h5ad")
    expected, _ = ask(server, SECTION, spots.centers, spots.places())
    np.testing.assert_allclose(found.X, expected, rtol=0, atol=1e-6)
    assert found.uns["m2ost"]["level"] == "slide"
    assert found.uns["m2ost"]["positions"] == "places on the array of the file of spots"
    grid = anndata.read_h5ad(out / "results" / "grid.h5ad")
    named = np.array([[int(part) for part in name.split("x")] for name in grid.obs_names])
    expected = by_pytorch(release, svs, grid.obsm["spatial"], (named - named.min(axis=0)).astype(np.int32))
    np.testing.assert_allclose(grid.X, expected, rtol=0, atol=1e-4)
    before = metrics_of(server)["m2ost_tiler_spots_total{slide_tiler}"]
    again = archives.rescore([replace(row) for row in rows[:2]], tmp_path / "out", [server], settings=Settings())
    assert again.complete
    assert metrics_of(server)["m2ost_tiler_spots_total{slide_tiler}"] == before
    with pytest.raises(InputError, match="predicts a slide as a whole, where its server reads the slide"):
        archives.rescore(rows[:1], tmp_path / "sent", [server], settings=Settings(), send_pixels=True)


def test_the_command_scores_a_slide_with_histogene(histogene_release, section, selection, tmp_path):
    release, out = histogene_release, tmp_path / "out"
    arguments = ("--release", release, "--out", out, "--spots", selection)
    status, output, errors = m2ost("predict", section, *arguments)
    assert status == 0, errors
    assert "UNTRAINED" in output
    found, spots = anndata.read_h5ad(out / "C2.h5ad"), read_spots(selection)
    expected = by_pytorch(release, section, spots.centers, spots.places())
    np.testing.assert_allclose(found.X, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--spots", "bare.csv"),
            "file bare.csv: this network predicts a slide as a whole and needs places on the array",
        ),
        (("--dense", "64px"), "this release predicts a slide as a whole"),
    ],
)
def test_the_command_says_what_a_slide_level_release_lacks(server, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bare.csv").write_text("pixel_x,pixel_y\n900,900\n1200,1300\n")
    where = ("--server", server.address, "--out", "out")
    status, _, errors = m2ost("predict", SLIDE, *where, *arguments)
    assert status == 1, errors
    assert words in " ".join(errors.split())
    assert not list((tmp_path / "out").glob("*.h5ad"))


def test_a_slide_whose_client_has_gone_is_given_up(server, log):
    centers, places = cells(280)
    with Held(server), pytest.raises(InferenceServerException, match="Deadline Exceeded"):
        ask_raw(server, SLIDE, centers, places, request_id="gone-1", client_timeout=1)

    def given_up():
        lines = [line for line in log if line.get("request_id") == "gone-1"]
        return [line for line in lines if (line["event"], line.get("error")) == ("slide_refused", "cancelled")]

    wait_for(given_up, "the slide to be given up")
    assert not ask(server, SLIDE, centers[:9], places[:9])[1].any()


def test_a_request_that_is_refused_costs_another_nothing(server):
    centers, places = cells(60)
    expected, _ = ask(server, SLIDE, centers, places)
    refused = []

    def trouble():
        for slide, given in ((SLIDE, places - 5), ("wsi/absent.svs", places), ("half/truncated.svs", places)) * 3:
            with pytest.raises((InferenceServerException, RequestRejected)):
                ask_raw(server, slide, centers, given)
            refused.append(slide)

    thread = threading.Thread(target=trouble)
    thread.start()
    for _ in range(5):
        found, status = ask(server, SLIDE, centers, places)
        assert not status.any()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    thread.join()
    assert len(refused) == 9
