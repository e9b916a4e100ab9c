"""A server that lies gets no wrong result out of a client: an error in words, in time, and nothing half-written."""

import asyncio
import csv
import json
import signal

import numpy as np
import pytest
from m2ost_client import ClientError, SpotStream, StreamOptions
from m2ost_client.archive import EndpointOptions, Servers
from m2ost_client.archive.ray_runner import _seat, score_unit
from m2ost_client.archive.score import SpotRange
from typer.testing import CliRunner

from tests.attack import liar
from tests.attack.liar import FACTS, GRID, Liar, Wire
from tests.support.releases import ENGINE

pytestmark = pytest.mark.usefixtures("heavy")

DEADLINE_S, RETRY_FOR_S = 0.5, 0.5
PATIENCE_S = 60.0
"""Far beyond what the deadlines here come to, however often a request is sent again."""

LIES, DESCRIPTIONS, CONFIGS = liar.lies(), liar.descriptions(), liar.configs()
SLIDE = "root/a.png"


@pytest.fixture
def short_deadlines(monkeypatch):
    """The commands have no options for these."""
    for options in (StreamOptions, EndpointOptions):
        monkeypatch.setitem(options.__init__.__kwdefaults__, "deadline_s", DEADLINE_S)
    for module in ("stream", "archive.access"):
        monkeypatch.setattr(f"m2ost_client.{module}.DESCRIBE_DEADLINE_S", DEADLINE_S)


lied_to = pytest.mark.usefixtures("short_deadlines")


class Hung(BaseException):
    """Nothing of a client's takes it for one of its own errors."""


@pytest.fixture(autouse=True)
def patience():
    """End a test that hangs."""

    def give_up(number, frame):
        raise Hung(f"no end within {PATIENCE_S:g} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def stream(address, *, describe=False, retry_for_s=RETRY_FOR_S):
    """What a stream of nine spots in three requests comes to."""

    async def run():
        options = StreamOptions(batch_rows=4, window=2, retry_for_s=retry_for_s)
        async with SpotStream(address, options) as client:
            if describe:
                return await client.slide_info(SLIDE)
            found = np.full((len(GRID), len(ENGINE.genes)), np.nan, np.float32)
            async for batch in client.predict(SLIDE, GRID):
                found[batch.rows] = batch.expression
            return found

    return asyncio.run(run())


def command(*arguments):
    """Exit status and words of a command, run in this process: one of its own takes seconds."""
    from m2ost_cli.main import app
    from m2ost_contract import M2OSTError

    done = CliRunner().invoke(app, [*map(str, arguments), "--retry-for-s", str(RETRY_FOR_S)])
    if done.exception is None or isinstance(done.exception, SystemExit):
        return done.exit_code, done.output
    assert isinstance(done.exception, M2OSTError | OSError), repr(done.exception)
    return 1, str(done.exception)


def predict(address, out):
    return command("predict", SLIDE, "--server", address, "--out", out, "--batch-rows", 4)


def rescore(address, folder):
    manifest = folder / "slides.csv"
    with manifest.open("w", newline="") as stream:
        csv.writer(stream).writerows([("slide_id", "path"), ("a", SLIDE), ("b", "root/b.png")])
    return command("rescore", manifest, "--server", address, "--out", folder / "out", "--batch-rows", 4)


def assert_nothing_written(out):
    assert [path for path in out.rglob("*") if path.suffix in (".h5ad", ".png", ".json", ".zarr")] == []


def assert_no_result_but_a_reason(code, words, folder):
    """An archive's run that failed: either as a whole, in words, or each of its slides by name."""
    assert list((folder / "out").glob("results/*")) == []
    assert code in (1, 3), words
    if code == 3:
        failed = json.loads((folder / "out" / "summary.json").read_text())["failed"]
        assert [slide["slide_id"] for slide in failed] == ["a", "b"]
        assert all(slide["reason"] and "unexpected" not in slide["reason"] for slide in failed), failed
    else:
        assert len(words) > 20


def test_without_a_lie_every_client_has_its_result(tmp_path):
    with Liar(ENGINE) as server:
        np.testing.assert_array_equal(stream(server.address), liar.true_values(GRID, len(ENGINE.genes)))
        assert stream(server.address, describe=True).size == tuple(FACTS["size"])
        code, words = predict(server.address, tmp_path / "one")
        assert code == 0, words
        assert (tmp_path / "one" / "a.h5ad").exists()
        code, words = rescore(server.address, tmp_path)
        assert code == 0, words
        assert {path.name for path in (tmp_path / "out" / "results").glob("*.h5ad")} == {"a.h5ad", "b.h5ad"}
        assert (score_by_ray(server.address) == liar.true_values(GRID, len(ENGINE.genes))).all()


def score_by_ray(address):
    """What a task of the Ray runner returns, its body run in this process."""
    servers = Servers(addresses=(address,), retry_for_s=RETRY_FOR_S)
    try:
        return score_unit(servers, ENGINE, SpotRange(SLIDE, 0, GRID, 1.0), 4).part.expression
    finally:
        if _seat.cache_info().currsize:
            seat = _seat(servers)
            seat.loop.run(seat.pool.__aexit__())
            seat.decoder.close()
            seat.loop.close()
            _seat.cache_clear()


@lied_to
@pytest.mark.parametrize("lie", LIES)
def test_a_lie_about_spots_is_an_error_of_the_stream(lie):
    with Liar(ENGINE, LIES[lie]) as server, pytest.raises(ClientError) as error:
        stream(server.address)
    assert len(str(error.value)) > 5


@lied_to
@pytest.mark.parametrize("lie", LIES)
def test_a_lie_about_spots_leaves_no_file(lie, tmp_path):
    with Liar(ENGINE, LIES[lie]) as server:
        code, words = predict(server.address, tmp_path)
    assert (code, len(words) > 5) == (1, True)
    assert_nothing_written(tmp_path)


@lied_to
@pytest.mark.parametrize("lie", LIES)
def test_a_lie_about_spots_is_a_failed_slide_of_an_archive(lie, tmp_path):
    with Liar(ENGINE, LIES[lie]) as server:
        code, words = rescore(server.address, tmp_path)
    assert_no_result_but_a_reason(code, words, tmp_path)


@lied_to
@pytest.mark.parametrize("lie", LIES)
def test_a_lie_about_spots_is_an_error_of_a_task_on_ray(lie):
    with Liar(ENGINE, LIES[lie]) as server, pytest.raises(ClientError):
        score_by_ray(server.address)


def assert_no_client_believes(address, tmp_path, **asked):
    """A stream, ``predict`` and ``rescore`` each end in an error, and none leaves a result."""
    with pytest.raises(ClientError):
        stream(address, **asked)
    code, words = predict(address, tmp_path / "one")
    assert (code, len(words) > 5) == (1, True)
    assert_nothing_written(tmp_path / "one")
    code, words = rescore(address, tmp_path)
    assert_no_result_but_a_reason(code, words, tmp_path)


@lied_to
@pytest.mark.parametrize("lie", DESCRIPTIONS)
def test_a_lie_about_a_slide_leaves_no_result(lie, tmp_path):
    with Liar(ENGINE, DESCRIPTIONS[lie], model="slide_info") as server:
        assert_no_client_believes(server.address, tmp_path, describe=True)


@lied_to
@pytest.mark.parametrize("lie", CONFIGS)
def test_a_lie_about_the_release_is_an_error(lie, tmp_path):
    with Liar(ENGINE, config=CONFIGS[lie]) as server:
        assert_no_client_believes(server.address, tmp_path)


@lied_to
@pytest.mark.parametrize(
    "wire",
    [
        {},
        {"says": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"},
        {"says": b"\0" * 1000},
        {"says": b"\xff" * 100_000},
        {"pause_s": 0.5},
        {"closes_after": 200},
    ],
    ids=lambda wire: ", ".join(f"{name} {str(value)[:12]}" for name, value in wire.items()) or "says nothing",
)
def test_a_line_that_says_nothing_or_nonsense_ends_in_time(wire, tmp_path):
    with Liar(ENGINE) as server, Wire(behind=None if "says" in wire or not wire else server.address, **wire) as line:
        with pytest.raises(ClientError):
            stream(line.address)
        code, words = predict(line.address, tmp_path / "one")
        assert (code, len(words) > 5) == (1, True)
        assert_nothing_written(tmp_path / "one")
        code, words = rescore(line.address, tmp_path)
    assert_no_result_but_a_reason(code, words, tmp_path)


def test_a_line_that_breaks_off_again_and_again_costs_time_alone():
    with Liar(ENGINE) as server, Wire(behind=server.address, closes_after=3000) as line:
        found = stream(line.address, retry_for_s=PATIENCE_S)
    np.testing.assert_array_equal(found, liar.true_values(GRID, len(ENGINE.genes)))
