"""`m2ost rescore` and `m2ost status` as a person uses them: exit status, words, Ctrl-C."""

import functools
import http.server
import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import tifffile
from m2ost_client import InputError
from m2ost_client.archive import read_status
from m2ost_preprocess.readers import open_slide

from tests.support.machine import wait_for

from .archives import MPP, make_slides, rescore, results
from .releases import by_pytorch
from .servers import heed_ctrl_c, metrics_of, tiler_decoders

M2OST = Path(sys.executable).with_name("m2ost")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def m2ost(*arguments):
    done = subprocess.run([M2OST, *map(str, arguments)], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_a_manifest_with_slides_here_and_elsewhere_and_a_bad_one(narrow_release, svs, text_svs, tmp_path):
    near, far, out = tmp_path / "near", tmp_path / "far", tmp_path / "out"
    make_slides(svs, near, 1)
    make_slides(svs, far, 1, side=640)
    handler = functools.partial(Quiet, directory=str(far))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        manifest = tmp_path / "slides.csv"
        manifest.write_text(
            "slide_id,path,mpp,batch\n"
            f"near,near/s00.png,{MPP},7\n"
            f"far,http://127.0.0.1:{server.server_port}/s00.png,{MPP},7\n"
            f"notes,{text_svs},,7\n"
        )
        status, output, errors = m2ost(
            "rescore", manifest, "--out", out, "--release", narrow_release, "--map", "untrained_002"
        )
        server.shutdown()
    assert status == 3, errors
    assert "2 of 3 slides done (0 before this run), 1 failed, 0 left" in output
    assert "notes: notes.svs: no reader recognises the file" in output
    assert "nothing reads the columns batch" in errors
    for name, path in (("near", near), ("far", far)):
        adata = anndata.read_h5ad(out / "results" / f"{name}.h5ad")
        assert len(adata) > 0
        expected = by_pytorch(narrow_release, path / "s00.png", adata.obsm["spatial"])
        np.testing.assert_allclose(adata.X, expected, rtol=0, atol=1e-4)
        assert (out / "results" / f"{name}.untrained_002.png").exists()
    assert list((out / "cache").iterdir()) == []
    status, output, errors = m2ost("status", out)
    assert status == 0, errors
    assert "not running; the last run came to its end" in output
    assert "notes: notes.svs: no reader" in output


def test_what_a_folder_holds_beside_slides_is_named(archive_server, svs, tmp_path):
    folder, out = tmp_path / "slides", tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    pixels = open_slide(svs).read(200, 300, 520, 520)
    for name in ("one.tif", "sub/deep.tif"):
        tifffile.imwrite(
            folder / name, pixels, tile=(256, 256), resolution=(1e4 / MPP, 1e4 / MPP), resolutionunit="CENTIMETER"
        )
    (folder / "notes.txt").touch()
    command = ("--out", out, "--server", archive_server.address, "--send-pixels")
    status, output, errors = m2ost("rescore", folder, *command)
    assert status == 0, errors
    assert "2 of 2 slides done" in output
    assert f"left out: 1 not a slide by content: {folder}/notes.txt" in output
    (folder / "linked").symlink_to(svs.parent)
    status, output, _ = m2ost("rescore", folder, *command)
    assert status == 3
    assert "2 of 2 slides done (2 before this run), 0 failed, 0 left" in output
    assert "left out, and may be a slide: 1 a link to a folder elsewhere; --follow-links searches it: " in output
    left_out = json.loads((out / "summary.json").read_text())["left_out"]
    assert set(left_out["by_reason"].values()) == {1}
    assert [(Path(left["path"]).name, left["problem"]) for left in left_out["files"]] == [
        ("linked", True),
        ("notes.txt", False),
    ]
    assert read_status(out).left_out == left_out["files"]


def spots_done(out):
    try:
        return read_status(out).spots_done
    except InputError:  # not begun
        return 0


def suspend(processes):
    for process in processes:
        process.suspend()


def resume(processes):
    for process in processes:
        process.resume()


def test_ctrl_c_once_drains_and_twice_stops_and_the_same_command_ends_it(archive_server, archive_slides, tmp_path):
    server, out, manifest = archive_server, tmp_path / "out", tmp_path / "slides.parquet"
    rows = [archive_slides[1][1], replace(archive_slides[1][0], pitch_um=40.0)]
    pd.DataFrame([row.to_dict() for row in rows]).to_parquet(manifest)
    command = ["rescore", manifest, "--out", out, "--server", server.address, "--batch-rows", 4]

    def interrupt(times, due):
        """Run the command until something is true and the tiler stands still, then press Ctrl-C."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen([M2OST, *map(str, command)], text=True, preexec_fn=heed_ctrl_c, **pipes)
        wait_for(due, "work that can be interrupted", 60)
        process.send_signal(signal.SIGINT)
        said = []
        for line in process.stderr:
            said.append(line)
            if "once more stops at once" in line:
                break
        time.sleep(0.3)
        assert process.poll() is None, "it waits for what is under way"
        if times > 1:
            process.send_signal(signal.SIGINT)
        else:
            resume(tiler_decoders(server))
        output, errors = process.communicate(timeout=60)
        errors = "".join(said) + errors
        assert process.returncode == 130, errors
        assert "once more stops at once" in errors
        assert "Traceback" not in errors
        return output

    def in_the_second_slide():
        """Holds the tiler up once it has cut more spots than the first slide has."""
        if metrics_of(server)[tiled] < before + 20:
            return False
        suspend(tiler_decoders(server))
        return spots_done(out) > 0

    def asked():
        """Requests that the tiler has taken so far, or refused."""
        return metrics_of(server)["nv_inference_exec_count{slide_tiler}"]

    def at_work():
        # The supervisor's probes are among them: one in five seconds.
        return read_status(out).slides["running"] and asked() >= before_this + 3

    tiled = "m2ost_tiler_spots_total{slide_tiler}"
    before = metrics_of(server)[tiled]
    try:
        assert "the same command goes on from here" in interrupt(1, in_the_second_slide)
        status, output, _ = m2ost("status", out, "--json")
        found = json.loads(output)
        assert (status, found["running"], found["complete"]) == (0, False, False)
        assert (found["last_run"]["ended"], found["last_run"]["spots"]) == ("drained", found["spots_done"])
        suspend(tiler_decoders(server))  # what is sent from now on is something to wait for
        before_this = asked()
        interrupt(2, at_work)
    finally:
        resume(tiler_decoders(server))
    assert read_status(out).last_run["ended"] == "stopped"
    status, output, errors = m2ost(*command)
    assert status == 0, errors
    rescore(rows, tmp_path / "undisturbed", [server])
    assert results(out) == results(tmp_path / "undisturbed")


def test_shards_in_runs_of_their_own_are_the_same_archive(archive_server, archive_slides, undisturbed, tmp_path):
    manifest, out = tmp_path / "slides.csv", tmp_path / "out"
    rows = archive_slides[1]
    pd.DataFrame([row.to_dict() for row in reversed(rows)]).to_csv(manifest, index=False)
    of = len(rows) + 1  # one has no slide
    command = ("rescore", manifest, "--out", out, "--server", archive_server.address, "--batch-rows", 4)
    for index in reversed(range(of)):
        status, output, errors = m2ost(*command, "--shard", f"{index}/{of}")
        assert status == 0, errors
        assert ("shards are not at their end" in output) == (index > 0)
    assert f"{len(rows)} of {len(rows)} slides done, 0 failed, 0 left" in output
    whole = pd.read_parquet(undisturbed / "archive.parquet").sort_values("slide_id", ignore_index=True)
    joined = pd.read_parquet(out / "archive.parquet")
    assert joined.result.str.partition("/")[2].tolist() == whole.result.tolist()
    pd.testing.assert_frame_equal(joined.drop(columns="result"), whole.drop(columns="result"))
    made = {path.name: path.read_bytes() for path in out.glob("shard-*/results/*")}
    assert made == {path.name: path.read_bytes() for path in (undisturbed / "results").iterdir()}
    status, output, errors = m2ost(*command)
    assert status == 1
    assert f"holds an archive in {of} shards" in errors
    status, output, errors = m2ost("join", out)
    assert status == 0, errors
