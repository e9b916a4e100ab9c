"""A panel is scanpy's choice, and comes back from its file."""

import anndata
import numpy as np
import pytest
import scanpy
from m2ost.checkpoint import read_panel
from m2ost.data.errors import DataError
from m2ost.data.panels import select_panel, write_panel

from .files import section


@pytest.fixture(scope="module")
def counts():
    random = np.random.default_rng(3)
    rates = np.exp(random.normal(0, 1.5, 300)) * random.gamma(1 / random.uniform(0.05, 2, 300), 1, (120, 300))
    return random.poisson(rates)


def test_the_panel_is_that_of_scanpy(counts):
    kept = (counts > 0).mean(axis=0) >= 0.1
    adata = anndata.AnnData(counts.astype(np.float64))
    scanpy.pp.normalize_total(adata, target_sum=1e6)
    scanpy.pp.log1p(adata)
    adata = adata[:, kept].copy()
    scanpy.pp.highly_variable_genes(adata, flavor="seurat", n_top_genes=40)
    scores = adata.var["dispersions_norm"].sort_values(ascending=False)
    panel = select_panel([section(counts[:70]), section(counts[70:], name="S2")], 40)
    assert panel == tuple(f"G{gene}" for gene in scores.index[:40])


def test_order_of_genes_and_sections_does_not_matter(counts):
    names = [f"G{i}" for i in range(300)]
    turned = [section(counts[70:, ::-1], genes=names[::-1]), section(counts[:70], genes=names)]
    assert select_panel(turned, 25) == select_panel([section(counts[:70]), section(counts[70:])], 25)


def test_genes_that_not_all_sections_measure_are_not_chosen(counts):
    sections = [section(counts), section(counts[:, :100])]
    assert {int(gene[1:]) for gene in select_panel(sections, 50)} <= set(range(100))


def test_rare_genes_and_empty_spots_do_not_count(counts):
    bursts = np.zeros((121, 2))
    bursts[0] = 10_000
    noisy = np.column_stack([np.vstack([counts, np.zeros(300)]), bursts])
    assert not {"G300", "G301"} & set(select_panel([section(noisy)], 40))


def test_too_few_genes(counts):
    with pytest.raises(DataError, match=r"of the 300 genes that all 1 sections measure.*a panel of 301"):
        select_panel([section(counts)], 301)
    with pytest.raises(DataError, match="there is none"):
        select_panel([])


def test_a_panel_comes_back_from_its_file(tmp_path, counts):
    panel = (*select_panel([section(counts)], 5), "HLA-A", "µ gene")
    write_panel(tmp_path / "panel.txt", panel)
    assert read_panel(tmp_path / "panel.txt") == panel


@pytest.mark.parametrize("gene", ["", " ", "A ", "A\nB", "A\u2028B"])
def test_a_name_that_would_not_come_back_is_refused(tmp_path, gene):
    with pytest.raises(DataError, match="cannot be a line"):
        write_panel(tmp_path / "panel.txt", ["ACTB", gene])
    assert not (tmp_path / "panel.txt").exists()
