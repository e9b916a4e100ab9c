"""``m2ost export-istar``: the paper's networks as a folder, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from m2ost_cli.main import app
from m2ost_istar.manifest import IStarManifest
from m2ost_istar.networks.istar import build
from m2ost_istar.sizes import Sizes
from typer.testing import CliRunner

from .narrow import NARROW


def run(*arguments):
    return CliRunner().invoke(app, ["export-istar", *map(str, arguments)])


@pytest.mark.usefixtures("heavy")
def test_the_papers_networks_become_a_folder_that_says_it_is_random(tmp_path, monkeypatch):
    asked = []

    def narrow(sizes, **options):
        asked.append(sizes)
        return build(replace(NARROW, n_genes=sizes.n_genes), **options)

    monkeypatch.setattr("m2ost_istar.networks.istar.build", narrow)
    panel = tmp_path / "panel.txt"
    panel.write_text("DDX5\nB2M\n")
    done = run("--out", tmp_path / "istar", "--panel", panel, "--variant", "no_shift")
    assert done.exit_code == 0, done.output
    assert "RANDOM weights" in done.output
    info = IStarManifest.read(tmp_path / "istar").info
    assert (info.genes, info.variant, info.pretrained) == (("DDX5", "B2M"), "no_shift", False)
    assert asked == [Sizes(n_genes=2)], "the defaults are the paper's"


def test_half_of_hipt_an_unknown_variant_and_a_foreign_file_are_refused(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    for arguments, words in [
        (("--vit256", tmp_path / "a.pth"), "give both"),
        (("--vit256", tmp_path / "a.pth", "--vit4k", tmp_path / "a.pth"), "does not fit"),
        (("--variant", "fast"), "stock, no_shift, tissue"),
    ]:
        done = run("--out", tmp_path / "istar", *arguments)
        assert done.exit_code == 1
        assert words in str(done.exception)
        assert not (tmp_path / "istar").exists()
