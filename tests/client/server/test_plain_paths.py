"""Folders with names that a shell would take apart."""

import os
from pathlib import Path

import pytest
from m2ost_client.errors import ServerStartError
from m2ost_client.server.command import ServerOptions, build_command
from m2ost_client.server.host import Ports
from m2ost_client.server.installation import Installation
from m2ost_client.server.plain_paths import is_plain, plain_path, temporary_parent

from .beside import folder_beside

ODD = ["my release", "müller", "R&D", "a;b", "$HOME", "it's", "(2024)", "a\nb", "*"]


@pytest.mark.parametrize("name", ODD)
def test_a_folder_that_a_shell_takes_apart_is_reached_by_a_link(tmp_path, name):
    folder, runtime = tmp_path / name / "r", tmp_path / "runtime"
    folder.mkdir(parents=True)
    path = plain_path(folder, runtime)
    assert is_plain(path)
    assert path.parent == runtime
    assert path.resolve() == folder
    assert plain_path(folder, runtime) == path, "a server that is started anew finds its link"
    assert plain_path(folder.parent, runtime) != path


def test_a_plain_folder_is_its_own_path(tmp_path):
    assert plain_path(tmp_path, tmp_path / "runtime") == tmp_path
    assert not (tmp_path / "runtime").exists()


def test_triton_is_given_plain_paths_of_all_that_is_served(tmp_path):
    (tmp_path / "my release").mkdir()
    other = folder_beside(tmp_path / "my other")
    command = build_command(
        ServerOptions(release=tmp_path / "my release", beside=(other,)),
        Installation(Path("/bin/tritonserver")),
        ports=Ports(1, 2, 3),
        shm_prefix="m2ost-test-",
        runtime=tmp_path / "runtime",
    )
    given = [Path(a.partition("=")[2]) for a in command.arguments if a.startswith("--model-repository=")]
    assert [path.resolve().name for path in given] == ["my release", "my other"]
    assert all(map(is_plain, given))


def test_a_folder_for_temporary_files_that_is_not_plain_is_passed_over(tmp_path, monkeypatch):
    odd = tmp_path / "my tmp"
    odd.mkdir()
    for folder, expected in ((tmp_path, tmp_path), (odd, Path("/tmp"))):
        monkeypatch.setattr("tempfile.tempdir", str(folder))
        assert temporary_parent() == expected
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) == odd)
    with pytest.raises(ServerStartError, match=r"tried .*/my tmp, /tmp, /var/tmp, /dev/shm; set TMPDIR to one"):
        temporary_parent()
