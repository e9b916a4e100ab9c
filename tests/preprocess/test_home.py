"""Home folders that this machine does not know are an error in words."""

import pwd
from pathlib import Path

import pytest
from m2ost_preprocess.home import NoHomeFolder, expanded, user_cache


def nobody(_):
    raise KeyError


def test_a_home_folder_is_written_out_or_refused(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/slides") == Path("/home/me/slides")
    assert expanded("a/~b.svs") == Path("a/~b.svs")
    with pytest.raises(NoHomeFolder, match=r"^~nosuchuser/a\.svs: this machine knows no home folder ~nosuchuser;"):
        expanded("~nosuchuser/a.svs")


def test_caches_lie_in_the_home_folder_or_where_they_are_told_to(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert user_cache() == Path("/home/me/.cache")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    assert user_cache() == Path("/scratch")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)  # a container that runs under a number without a name
    with pytest.raises(NoHomeFolder, match="set XDG_CACHE_HOME"):
        user_cache()
