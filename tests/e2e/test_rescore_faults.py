"""Whatever happens to a run over an archive: good slides come once and right, bad ones are named."""

import asyncio
import os
import signal
import time
from dataclasses import replace

import pandas as pd
import pytest
import tritonclient.grpc as triton
from m2ost_client import InputError, ServerOptions, ServerUnavailable, SpotStream, StreamOptions, TritonServer
from m2ost_client.archive import SlideRow, read_status
from m2ost_client.requests import info_inputs
from m2ost_contract import MODEL_INFO
from m2ost_preprocess.slides import SlideRoots
from m2ost_serving.lanes import BACKGROUND_NICE
from m2ost_serving.queueing import BACKGROUND_TURNS
from m2ost_serving.tiling import MOST_WAITING
from tritonclient.utils import InferenceServerException

from .archives import MPP, rescore, rescore_apart, results
from .servers import Held, raw_request, tiler_decoder, tiler_decoders


def serve(release, folder, **options):
    roots = SlideRoots({"archive": folder})
    return TritonServer(ServerOptions(release=release, roots=roots, probe_interval_s=0.5, **options))


@pytest.fixture
def slides(archive_slides):
    return archive_slides


@pytest.fixture
def server(archive_server):
    return archive_server


@pytest.fixture
def expected(undisturbed):
    """What every run must come to in the end."""
    return results(undisturbed)


class Once:
    """Does something once, when so many spots are scored, or something else is true."""

    def __init__(self, when, action):
        self.when, self.action, self.done = when, action, False

    def __call__(self, progress):
        due = self.when() if callable(self.when) else progress.spots >= self.when
        if due and not self.done:
            self.done = True
            self.action()


def test_kill_9_of_tritonserver_and_its_restart(narrow_release, slides, expected, tmp_path):
    with serve(narrow_release, slides[0]) as victim:
        kill = Once(8, lambda: os.kill(victim.pid, signal.SIGKILL))
        report = rescore(slides[1], tmp_path / "out", [victim], on_progress=kill)
        assert victim.restarts == 1
    (counts,) = report.summary["run"]["servers"]
    assert (counts["ejections"], counts["returns"]) == (1, 1)
    assert report.summary["run"]["retries"] > 0
    assert report.complete
    assert results(tmp_path / "out") == expected


def test_one_of_two_servers_gone(narrow_release, slides, server, expected, tmp_path):
    runs = []
    # There is to be work left when the victim has answered.
    with serve(narrow_release, slides[0], max_restarts=0) as victim, Held(server) as held:

        def harm():
            os.kill(victim.pid, signal.SIGKILL)
            held.release()

        kill = Once(lambda: runs[0].pool.endpoints[1].spots, harm)
        options = {"on_progress": kill, "control": runs.append}
        report = rescore(slides[1], tmp_path / "out", [server, victim], **options)
    here, gone = report.summary["run"]["servers"]
    assert min(here["spots"], gone["spots"]) > 0
    assert here["spots"] + gone["spots"] == report.summary["run"]["spots"]
    assert (here["ejections"], gone["ejections"], gone["healthy"]) == (0, 1, False)
    assert report.complete
    assert results(tmp_path / "out") == expected


def test_no_server_left_ends_the_run_which_another_takes_up(narrow_release, slides, server, expected, tmp_path):
    with pytest.raises(ServerUnavailable, match=r"no server has answered .*run the same command again"):
        rescore(slides[1], tmp_path / "out", ["127.0.0.1:9"], retry_for_s=0.5)
    with serve(narrow_release, slides[0], max_restarts=0) as victim:
        stop = Once(8, lambda: os.kill(victim.pid, signal.SIGKILL))
        with pytest.raises(ServerUnavailable, match=f"{victim.address}: .*the same command again"):
            rescore(slides[1], tmp_path / "out", [victim], on_progress=stop, retry_for_s=0.5)
    status = read_status(tmp_path / "out")
    assert (status.running, status.last_run["ended"]) == (False, "failed")
    assert 8 <= status.spots_done == status.last_run["spots"]
    report = rescore(slides[1], tmp_path / "out", [server])
    assert report.summary["run"]["spots"] == report.summary["spots"] - status.spots_done
    assert results(tmp_path / "out") == expected


def test_requests_of_others_go_first(server, slides, expected, tmp_path):
    """While others wait, one turn of the engine's in eight is the archive's; and its slides' reader gives way."""
    seen, answered, nice = [], 0, set()

    async def beside_others():
        nonlocal answered
        run = asyncio.ensure_future(
            asyncio.to_thread(
                rescore, slides[1], tmp_path / "out", [server], batch_rows=1, window=1, on_progress=seen_by
            )
        )
        async with SpotStream(server.address, StreamOptions(batch_rows=32, window=8)) as others:
            # A request of the most rows that are cut at once is a turn of its own.
            async for _ in others.predict("archive/large.png", [(800, 800)] * 32 * 40):
                answered += 1
        return await run

    def seen_by(progress):
        if 0 < answered < 34:
            seen.append((progress.spots, answered))
            nice.update(decoder.nice() for decoder in tiler_decoders(server))

    report = asyncio.run(beside_others())
    assert report.complete
    assert seen, "both are at work at a time"
    (first, others_before), (last, others_after) = seen[0], seen[-1]
    assert last - first <= (others_after - others_before) * 32 / (BACKGROUND_TURNS - 1) + 2
    assert nice == {0, BACKGROUND_NICE}
    assert results(tmp_path / "out") == expected


def test_a_full_queue_is_waited_out(server, slides, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("m2ost_client.archive.endpoint.LIVE_TIMEOUT_S", 30.0)  # whether it lives, 32 ask at a time
    out, runs, tasks = tmp_path / "out", [], []
    with triton.InferenceServerClient(server.address) as client:

        def flood():
            for _ in range(2 * MOST_WAITING):
                client.async_infer("m2ost_slide", raw_request(["archive/s01.png"], [(9, 9)]), lambda **answer: None)

        async def keep_full():
            deadline = time.monotonic() + 60
            while not runs[0].pool.retries and time.monotonic() < deadline:
                await asyncio.to_thread(flood)

        def begin():
            tasks.append(asyncio.ensure_future(keep_full()))

        options = {"batch_rows": 1, "window": 32, "on_progress": Once(8, begin), "control": runs.append}
        report = rescore(slides[1], out, [server], **options)
    assert report.summary["run"]["retries"] > 0
    assert report.summary["run"]["servers"][0]["ejections"] == 0, "full is not gone"
    assert results(out) == expected


def test_what_a_client_that_is_gone_had_asked_is_not_looked_up(server, slides, archive_log):
    decoder = tiler_decoder(server, MODEL_INFO)
    archive_log.clear()
    decoder.suspend()
    try:
        with triton.InferenceServerClient(server.address) as client:
            for _ in range(4):
                inputs = info_inputs("archive/s01.png", pitch_um=None, mpp=None)
                with pytest.raises(InferenceServerException, match="Deadline"):
                    client.infer(MODEL_INFO, inputs, client_timeout=0.2)
            time.sleep(1)  # until the server knows of the last one too
            decoder.resume()
            client.infer(MODEL_INFO, info_inputs("archive/s02.png", pitch_um=None, mpp=None))
    finally:
        decoder.resume()
    deadline = time.monotonic() + 10
    while "archive/s02.png" not in (
        looked_at := [r["slide"] for r in list(archive_log) if r.get("event") == "slide_info"]
    ):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert looked_at == ["archive/s01.png", "archive/s02.png"], "only what was under way"


def test_bad_slides_are_named_and_cost_nobody_else_anything(
    server, slides, expected, truncated_svs, text_svs, tmp_path
):
    folder, rows = slides
    for bad in (truncated_svs, text_svs):
        (folder / bad.name).write_bytes(bad.read_bytes())
    (folder / "going.png").write_bytes((folder / "large.png").read_bytes())
    bad = [
        *(SlideRow(n, f"archive/{n}.svs") for n in ("truncated", "notes", "absent")),
        SlideRow("no-mpp", "archive/s01.png"),
        SlideRow("elsewhere", "nowhere/s01.png", mpp=MPP),
        replace(rows[0], slide_id="going", path="archive/going.png"),
    ]
    runs, tasks, decoders = [], [], []

    def harm():
        decoders.append(tiler_decoders(server)[-1])  # the latest reads for background work
        decoders[0].suspend()
        (folder / "going.png").unlink()
        tasks.append(asyncio.ensure_future(kill_at_work()))

    async def kill_at_work():
        """Kill the reader with a request, of whichever slide: what needs no reader is refused long before."""
        polls = 0
        while polls < 20:
            polls = polls + 1 if runs[0].pool.endpoints[0].in_flight else 0
            await asyncio.sleep(0.05)
        decoders[0].send_signal(signal.SIGKILL)
        decoders[0].resume()

    options = {"on_progress": Once(1, harm), "control": runs.append, "window": 1}
    report = rescore([*bad, *rows], tmp_path / "out", [server], **options)
    assert not report.complete
    reasons = {failed["slide_id"]: failed["reason"] for failed in report.summary["failed"]}
    (hit,) = [slide_id for slide_id, reason in reasons.items() if "its reader was lost" in reason]
    words_of = {
        "truncated": "truncated.svs: ",
        "notes": "notes.svs: no reader recognises the file",
        "absent": "no such slide on the server",
        "no-mpp": "needs µm/px",
        "elsewhere": "unknown slide root 'nowhere'",
        "going": "going.png: no such ",
        hit: f"{hit}.png: its reader was lost (killed, by somebody or for want of memory)",
    }
    assert set(reasons) == set(words_of)
    for slide_id, words in words_of.items():
        assert words in reasons[slide_id], reasons[slide_id]
    files = results(tmp_path / "out")
    table = pd.read_parquet(tmp_path / "out" / "archive.parquet").set_index("slide_id")
    assert table.reason.dropna().to_dict() == reasons
    del files["archive.parquet"]
    good = {name: data for name, data in expected.items() if name != "archive.parquet"}
    assert files == {name: data for name, data in good.items() if not name.startswith(f"results/{hit}.")}
    assert rescore(rows, tmp_path / "out", [server]).complete, "the reader was replaced"
    assert {name: data for name, data in results(tmp_path / "out").items() if name in good} == good


@pytest.mark.parametrize("file_bytes", [70_000, 400_000], ids=["state", "results"])
def test_a_full_disk_ends_the_run_and_the_next_goes_on(server, slides, expected, tmp_path, file_bytes):
    out = tmp_path / "out"
    process = rescore_apart(slides[1], out, server, file_bytes=file_bytes)
    process.join(60)
    assert process.exitcode == 1
    assert [f for f in (out / "results").iterdir() if f.suffix not in (".h5ad", ".json")] == []
    assert rescore(slides[1], out, [server]).complete
    assert results(out) == expected


def test_a_second_run_on_a_folder_is_refused_while_the_first_works(server, slides, expected, tmp_path):
    out = tmp_path / "out"
    with Held(server):  # the first is not to end before the second asks
        first = rescore_apart(slides[1], out, server)
        with pytest.raises(InputError, match=rf"process {first.pid} on .* is working on this archive"):
            rescore(slides[1], out, [server])
    first.join(60)
    assert first.exitcode == 0
    assert results(out) == expected


def test_a_clock_that_goes_back_changes_nothing(server, slides, expected, tmp_path, monkeypatch):
    ticks = iter(range(2_000_000_000, 0, -86_400))
    monkeypatch.setattr("time.time", lambda: float(next(ticks)))
    runs = []
    drain = Once(8, lambda: runs[0].drain())
    assert rescore(slides[1], tmp_path / "out", [server], on_progress=drain, control=runs.append).drained
    report = rescore(slides[1], tmp_path / "out", [server])
    assert report.complete
    assert report.summary["run"]["seconds"] > 0
    assert results(tmp_path / "out") == expected
