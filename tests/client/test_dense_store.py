"""A dense map on disk: whole under its final name or absent, and gone on with after a kill."""

import json

import numpy as np
import pytest
import zarr
from m2ost_client.dense import check_new
from m2ost_client.dense_store import DenseStore, empty_block
from m2ost_client.errors import OutputError
from m2ost_preprocess.slides.dense_grid import DenseGrid
from m2ost_preprocess.slides.rectangle import Rectangle

GENES = ("DDX5", "B2M")
GRID = DenseGrid.over((1200, 1700), 16, Rectangle(30, 0, 1100, 1100))
MASK = np.random.default_rng(0).random((170, 120)) < 0.7
BLOCKS = list(GRID.blocks(MASK))


def open_store(folder, genes=GENES, **facts):
    return DenseStore(folder, "slide.dense", GRID, genes, {"release_sha256": "c" * 64, **facts})


def store_block(store, block):
    expression, status = empty_block(block, len(GENES)), block.empty_status()
    rows, columns = block.cells.T
    for gene in range(len(GENES)):
        expression[gene, rows, columns] = block.number + gene / 10
    store.write(block, expression, status)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_map_reads_gene_by_gene_and_says_where_it_lies(tmp_path):
    with open_store(tmp_path, mpp=0.5) as store:
        for block in BLOCKS:
            store_block(store, block)
            assert names(tmp_path) == [".slide.dense.part"], "no final name before the map is whole"
        files = store.finish({"finished": True})
    assert [file.name for file in files] == ["slide.dense.json", "slide.dense.zarr"]
    assert names(tmp_path) == ["slide.dense.json", "slide.dense.zarr"]
    assert json.loads(files[0].read_text()) == {"finished": True}
    group = zarr.open_group(files[1], mode="r")
    assert dict(group.attrs) == {"release_sha256": "c" * 64, "mpp": 0.5, "genes": list(GENES)}
    expression, tissue, status = (group[name] for name in ("expression", "tissue", "status"))
    assert expression.shape == (2, *GRID.shape)
    assert expression.chunks == (1, 64, 64), "a gene is read without the others"
    assert expression.metadata.dimension_names == ("gene", "y", "x")
    assert (np.isfinite(expression[:]) == tissue[:]).all()
    assert ((status[:] == 0) == tissue[:]).all()
    assert tissue[:].sum() == sum(len(block.cells) for block in BLOCKS)
    block = BLOCKS[3]
    assert np.nanmax(np.abs(expression[1][block.area] - 3.1)) < 1e-6
    assert (group["x"][:] == GRID.axis_px(1)).all()
    assert (group["y"][:] == GRID.axis_px(0)).all()


def test_a_run_that_was_killed_is_gone_on_with(tmp_path):
    with open_store(tmp_path) as store:
        for block in BLOCKS[:2]:
            store_block(store, block)
    part = tmp_path / ".slide.dense.part"
    with (part / "blocks").open("a") as journal:
        journal.write('{"block": 2, "by_')  # killed while it wrote
    (part / "map.zarr" / "expression" / "c" / "0.ab.partial").write_bytes(b"half a chunk")
    with open_store(tmp_path) as store:
        assert store.done == {block.number: {"OK": len(block.cells)} for block in BLOCKS[:2]}
        store_block(store, BLOCKS[2])
    with open_store(tmp_path) as store:
        assert list(store.done) == [0, 1, 2]
        for block in BLOCKS[3:]:
            store_block(store, block)
        _, path = store.finish({})
    assert not list(path.rglob("*.partial"))
    expression = zarr.open_group(path, mode="r")["expression"][0]
    for block in BLOCKS:
        assert np.nanmean(expression[block.area]) == block.number


def test_a_map_is_never_overwritten_nor_mixed_with_another(tmp_path):
    with open_store(tmp_path) as store:
        with pytest.raises(OutputError, match="another run is at work"):
            open_store(tmp_path)
        store_block(store, BLOCKS[0])
    for other in ({"release_sha256": "d" * 64}, {"genes": GENES[:1]}):
        with pytest.raises(OutputError, match="a part of another map"):
            open_store(tmp_path, **other)
    with open_store(tmp_path) as store:
        store.finish({})
    with pytest.raises(OutputError, match="exists and is never overwritten"):
        check_new(tmp_path, "root/slide.svs")
    with pytest.raises(OutputError, match="exists and is never overwritten"):
        open_store(tmp_path)
