"""The commands of the documentation, run as they stand: page by page, in a folder as the page supposes it."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from m2ost.shipped import shipped_checkpoint

from tests.support.data import shared_file
from tests.support.machine import in_namespaces

from .blocks import pages

SCRIPT = """
import os, signal, subprocess, sys
with open(sys.argv[3], "w+") as said:
    shell = subprocess.Popen(["bash", "-e", "-c", sys.argv[1]], cwd=sys.argv[2], stdin=subprocess.DEVNULL, stdout=said,
                             stderr=subprocess.STDOUT, start_new_session=True)
    print(shell.wait())
try:
    os.killpg(shell.pid, signal.SIGTERM)  # what a failed block left running
except ProcessLookupError:
    pass
"""


@pytest.fixture
def folder(svs, shipped_cache, paper_release, tmp_path):
    """Where the pages' commands are typed: with a folder of slides."""
    (tmp_path / "slides").mkdir()
    shutil.copy(svs, tmp_path / "slides")
    return tmp_path


def give(what, folder, narrow_release):
    """Put what a block supposes to be there."""
    if what == "my-checkpoint":
        with shipped_checkpoint() as checkpoint:
            shutil.copytree(checkpoint, folder / what)
    elif what == "my-release":
        shutil.copytree(narrow_release, folder / what)
    elif what == "her2st":
        (folder / what).symlink_to(shared_file("her2st"))


def run(blocks, folder, narrow_release, shipped_cache):
    binaries = str(Path(sys.executable).parent)
    variables = {"XDG_CACHE_HOME": str(shipped_cache), "PATH": os.pathsep.join([binaries, os.environ["PATH"]])}
    for block in blocks:
        if block.given:
            give(block.given, folder, narrow_release)
        said = folder.with_suffix(".txt")
        (status,) = in_namespaces(SCRIPT, block.text, folder, said, network=True, **variables)
        assert int(status) in {0, block.status}, f"{block}: {said.read_text()[-3000:]}"


def ids(blocks):
    return blocks[0].page.name


@pytest.mark.usefixtures("heavy")
@pytest.mark.parametrize("blocks", pages("fast"), ids=ids)
def test_quick_commands(blocks, folder, narrow_release, shipped_cache):
    run(blocks, folder, narrow_release, shipped_cache)


@pytest.mark.docs_slow
@pytest.mark.parametrize("blocks", pages("slow"), ids=ids)
def test_slow_commands(blocks, folder, narrow_release, shipped_cache):
    run(blocks, folder, narrow_release, shipped_cache)
