"""Several systems on one server: each under its name, with one tiler for those whose views are the same."""

import json

import numpy as np
import pytest
from m2ost.systems.stnet import StNetConfig
from m2ost_bench.systems.speed import time_in_turn
from m2ost_client import InputError, ServerOptions, TritonServer
from m2ost_client.archive import SlideRow
from m2ost_client.errors import RequestRejected
from m2ost_contract import Manifest, ServedNameError
from m2ost_loadtests.load.load_report import LoadReport
from m2ost_loadtests.runners import grid_of_spots
from m2ost_preprocess.readers import open_slide

from tests.support.command import error_of, m2ost

from . import archives
from .releases import by_pytorch, make_release
from .servers import by_server, metrics_of
from .test_loads import locust

SLIDE = "wsi/CMU-1-Small-Region.svs"
FIRST_STNET = StNetConfig(n_genes=4, layers=(1, 1), growth=4, stem=8)


@pytest.fixture(scope="module")
def releases(narrow_release, stnet_release, histogene_release, tmp_path_factory):
    """An M2OST, two networks of one view of 224 px, and a slide-level one of 56 px."""
    return {
        "m2ost": narrow_release,
        "stnet": make_release(tmp_path_factory.mktemp("several"), FIRST_STNET),
        "second_stnet": stnet_release,
        "histogene": histogene_release,
    }


@pytest.fixture(scope="module")
def server(releases, roots):
    first, *others = releases.values()
    with TritonServer(ServerOptions(release=first, others=tuple(others), roots=roots)) as running:
        yield running


@pytest.fixture(scope="module")
def centers(svs):
    return np.random.default_rng(2).integers((0, 0), open_slide(svs).size, (12, 2))


@pytest.mark.parametrize("name", ["m2ost", "stnet", "second_stnet"])
def test_each_answers_under_its_name_as_its_own_network(server, releases, centers, svs, name):
    expression, status = by_server(server.address, SLIDE, centers, model=name)
    assert not status.any()
    expected = by_pytorch(releases[name], svs, centers)
    np.testing.assert_allclose(expression, expected, rtol=0, atol=1e-4)
    assert expected.std(axis=0).min() > 1e-2, "a map without contrast would pass by luck"


def test_a_client_that_names_none_or_an_absent_one_learns_which_there_are(server, centers):
    with pytest.raises(RequestRejected, match="m2ost, stnet, second_stnet, histogene: say which with --model"):
        by_server(server.address, SLIDE, centers)
    with pytest.raises(RequestRejected, match="it serves no model 'st_net'; there is m2ost, stnet, second_stnet"):
        by_server(server.address, SLIDE, centers, model="st_net")


def test_a_server_of_one_release_keeps_its_names_and_knows_its_own(narrow_server, centers):
    by_server(narrow_server.address, SLIDE, centers[:2], model="m2ost")
    with pytest.raises(RequestRejected, match="it serves no model 'stnet'; there is m2ost"):
        by_server(narrow_server.address, SLIDE, centers[:2], model="stnet")


def test_two_releases_of_one_name_are_refused(releases, tmp_path):
    twice = (releases["stnet"], releases["stnet"])
    with pytest.raises(ServedNameError, match=r"two releases are called stnet: .*--name NAME.*\(stnet in "):
        TritonServer(ServerOptions(release=twice[0], others=twice[1:]))


def test_locust_asks_the_release_that_is_named(server, tmp_path):
    arguments = ("--slide", SLIDE, "--spots", 2, "-u", 2, "-t", "1s")
    for more, words in (
        ((), "it serves m2ost, stnet, second_stnet, histogene: say which with --model"),
        (("--model", "none"), "it serves no model 'none'; there is m2ost, stnet"),
        (("--model", "histogene"), "predicts slides as a whole"),
    ):
        status, output = locust(server.address, *arguments, *more)
        assert status == 1
        assert words in output
    told = ("--stop-timeout", 30, "--csv", tmp_path / "load")
    status, output = locust(server.address, *arguments, *told, "--model", "second_stnet")
    assert status == 0, output
    assert set(LoadReport.read(tmp_path / "load_spots.json").by_name) == {"second_stnet_slide interactive"}


def test_those_with_the_same_views_share_a_tiler_and_the_slide_is_decoded_and_cut_once(server, svs):
    spots = np.random.default_rng(9).integers((300, 300), (1900, 2600), (40, 2))
    counted = ("spots", "kept_spots", "decoded_px")

    def counts():
        found = metrics_of(server)
        return {what: found[f"m2ost_tiler_{what}_total{{slide_tiler_2}}"] for what in counted}

    by_server(server.address, SLIDE, spots[:8], model="m2ost")  # by the tiler of three views
    before, grown = counts(), []
    for name in ("stnet", "second_stnet"):
        by_server(server.address, SLIDE, spots, model=name)
        grown.append({what: count - before[what] for what, count in counts().items()})
    once, twice = grown
    assert once["spots"] == twice["spots"] == len(spots)
    assert (once["kept_spots"], twice["kept_spots"]) == (0, len(spots))
    assert once["decoded_px"] == twice["decoded_px"] <= np.prod(open_slide(svs).size)


def test_each_is_timed_in_turn_on_spots_of_its_own(server, svs):
    spots, mpp = grid_of_spots(svs, 400)
    scales = {"stnet": 1.0, "histogene": 1.0, "m2ost": 2 * mpp}
    told = time_in_turn(server.address, scales, SLIDE, spots, 2)
    assert (told["order"], told["rounds"], told["spots"]) == (list(scales), 2, len(spots))
    for rate in told["spots_per_s"].values():
        assert 0 < rate["min"] <= rate["median"] <= rate["max"]


def test_the_command_scores_a_slide_and_an_archive_by_the_model_it_names(server, releases, svs, tmp_path):
    arguments = ("--server", server.address, "--out", tmp_path / "one", "--model", "histogene", "--pitch-um", 400)
    status, _, errors = m2ost("predict", SLIDE, *arguments)
    assert status == 0, errors
    manifest = Manifest.read(releases["histogene"])
    facts = json.loads((tmp_path / "one" / "CMU-1-Small-Region.json").read_text())
    assert facts["release_sha256"] == manifest.engine.release_sha256
    rows = tmp_path / "slides.csv"
    rows.write_text(f"slide_id,path\nonly,{SLIDE}\n")
    arguments = ("--server", server.address, "--out", tmp_path / "all", "--model", "second_stnet", "--pitch-um", 400)
    status, _, errors = m2ost("rescore", rows, *arguments)
    assert status == 0, errors
    facts = json.loads((tmp_path / "all" / "results" / "only.json").read_text())
    assert facts["release_sha256"] == Manifest.read(releases["second_stnet"]).engine.release_sha256
    assert "--model is for a server of several releases" in error_of("predict", svs, "--out", tmp_path, "--model", "m")


def test_an_archive_goes_on_under_the_old_name_beside_a_new_one_and_refuses_the_new(narrow_server, server, tmp_path):
    rows, runs = [SlideRow(f"pitch{pitch}", SLIDE, pitch_um=float(pitch)) for pitch in (200, 100, 110)], []
    begun = archives.rescore(
        rows, tmp_path, [narrow_server], control=runs.append, on_progress=lambda done: done.slides and runs[0].drain()
    )
    assert begun.summary["left"]
    with pytest.raises(InputError, match=r"release_sha256 was .*; go back to that to go on"):
        archives.rescore(rows, tmp_path, [server], model="second_stnet")
    assert archives.rescore(rows, tmp_path, [server], model="m2ost").complete
    archives.rescore(rows, tmp_path / "undisturbed", [narrow_server])
    assert archives.results(tmp_path) == archives.results(tmp_path / "undisturbed")
