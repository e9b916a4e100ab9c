"""What `m2ost rescore` and `m2ost status` refuse before anything starts."""

import pytest
from m2ost_cli.common import UserError
from m2ost_cli.main import app
from m2ost_client import ClientError
from typer.testing import CliRunner

ADDRESS = "127.0.0.1:9"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("here.csv", "--send-pixels"), "give --server"),
        (("here.csv", "--tls-ca", "ca.pem"), "are for a server elsewhere; give --server"),
        (("here.csv", "--server", ADDRESS, "--tls-ca", "ca.pem"), "ca.pem: cannot be read: No such file"),
        (("here.csv", "--ray", ADDRESS), "give --server ADDRESS, as workers see it"),
        (("far.csv", "--ray", ADDRESS, "--server", ADDRESS, "--send-pixels"), "give --cache, a folder that every node"),
        (("here.csv", "--server", ADDRESS, "--release", "."), "serves a release in its own way"),
        (("here.csv", "--server", ADDRESS, "--profile", "cpu"), "serves a release in its own way"),
        (("here.csv", "--shard", "2/2"), "--shard 2/2: of 2 shards the first is 0, the last 1"),
        ((".", "--server", ADDRESS), "named by a manifest"),
        (("far.csv", "--server", ADDRESS), "does not see copies that are made here; give --send-pixels"),
        (("here.csv", "--server", ADDRESS, "--retry-for-s", "0"), "no server has answered"),
        (("here.csv", "--out", "here.csv/out"), "choose another --out"),
    ],
)
def test_what_cannot_be_is_told(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "far.csv").write_text("slide_id,path\na,s3://bucket/a.svs\n")
    (tmp_path / "here.csv").write_text("slide_id,path\na,root/a.svs\n")
    out = () if "--out" in arguments else ("--out", "out")
    done = CliRunner().invoke(app, ["rescore", *arguments, *out])
    assert isinstance(done.exception, (UserError, ClientError)), done.exception
    assert words in str(done.exception)


def test_no_archive_has_no_status(tmp_path):
    done = CliRunner().invoke(app, ["status", str(tmp_path)])
    assert isinstance(done.exception, ClientError)
    assert "make one with `m2ost rescore" in str(done.exception)
