"""Small data sets in their owners' layouts: six spots, four genes, an image."""

import gzip
import json

import h5py
import numpy as np
import pandas as pd
from anndata.io import write_elem
from m2ost.data.section import Section
from PIL import Image
from scipy import sparse
from scipy.io import mmwrite

ARRAY = [(2, 3), (3, 3), (4, 3), (2, 4), (3, 4), (4, 4)]
NAMES = tuple(f"{x}x{y}" for x, y in ARRAY)
GENES = ("ACTB", "ERBB2", "GAPDH", "CD3E")
COUNTS = np.array([[5, 0, 3, 1], [0, 2, 0, 0], [7, 1, 0, 2], [0, 0, 4, 1], [1, 1, 1, 1], [9, 0, 2, 0]])
PITCH_PX = 40
CENTERS = [(x * PITCH_PX + 0.5, y * PITCH_PX) for x, y in ARRAY]
SIZE = (240, 220)


def image(path, size=SIZE, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, format="PNG" if path.suffix == ".png" else None)
    return path


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


def counts_tsv(path, counts=COUNTS, genes=GENES, names=NAMES):
    rows = ["\t".join([name, *map(str, row)]) for name, row in zip(names, counts, strict=True)]
    return text(path, "\n".join(["\t".join(["", *genes]), *rows]) + "\n")


def selection_tsv(path, names=NAMES, centers=CENTERS):
    rows = [
        "\t".join(map(str, [*name.split("x"), *name.split("x"), x, y, 1]))
        for name, (x, y) in zip(names, centers, strict=True)
    ]
    return text(path, "\n".join(["x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected", *rows]) + "\n")


def her2(root, name="A1", **counts):
    image(root / "images" / f"{name}.jpg")
    counts_tsv(root / "counts" / f"{name}.tsv.gz", **counts)
    selection_tsv(root / "spots" / f"{name}_selection.tsv")
    return root


def visium_hd_spatial(folder, *, mpp=8 / PITCH_PX):
    """Positions and scale factors of bins of 8 µm; of one bin more, which is not under tissue."""
    rows = [(b, 1, y, x, cy, cx) for b, (x, y), (cx, cy) in zip(NAMES, ARRAY, CENTERS, strict=True)]
    rows.append(("OUTSIDE-1", 0, 0, 0, 5, 5))
    columns = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]
    (folder / "spatial").mkdir(parents=True)
    pd.DataFrame(rows, columns=columns).to_parquet(folder / "spatial" / "tissue_positions.parquet", index=False)
    factors = {"spot_diameter_fullres": 8 / mpp, "bin_size_um": 8.0, "microns_per_pixel": mpp}
    text(folder / "spatial" / "scalefactors_json.json", json.dumps(factors))


def visium_spatial(folder, *, header=True, diameter_px=65 * PITCH_PX / 100, barcodes=NAMES):
    """Positions and scale factors; of one spot more, which is not under tissue."""
    rows = [f"{b},1,{y},{x},{cy},{cx}" for b, (x, y), (cx, cy) in zip(barcodes, ARRAY, CENTERS, strict=True)]
    rows.append("OUTSIDE-1,0,0,0,5,5")
    if header:
        rows.insert(0, "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres")
    name = "tissue_positions.csv" if header else "tissue_positions_list.csv"
    text(folder / "spatial" / name, "\n".join(rows) + "\n")
    factors = {"spot_diameter_fullres": diameter_px, "tissue_hires_scalef": 0.1}
    text(folder / "spatial" / "scalefactors_json.json", json.dumps(factors))


FEATURES = (
    ("ENSG1", "ENSG2", "ENSG3", "ENSG4", "AB1"),
    ("ACTB", "TWIN", "TWIN", "CD3E", "CD3"),
    ("Gene Expression",) * 4 + ("Antibody Capture",),
)
FEATURE_COUNTS = np.concatenate([COUNTS, COUNTS[:, :1]], axis=1)


def visium_h5(path, counts=FEATURE_COUNTS, barcodes=NAMES):
    matrix = sparse.csr_matrix(counts)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(barcodes, "S")
        group["data"], group["indices"], group["indptr"] = matrix.data, matrix.indices, matrix.indptr
        group["shape"] = matrix.shape[::-1]
        for column, values in zip(("id", "name", "feature_type"), FEATURES, strict=True):
            group[f"features/{column}"] = np.array(values, "S")
    return path


def visium_mtx(folder):
    folder.mkdir(parents=True)
    mmwrite(folder / "matrix.mtx", sparse.coo_matrix(FEATURE_COUNTS.T))
    text(folder / "matrix.mtx.gz", (folder / "matrix.mtx").read_text())
    (folder / "matrix.mtx").unlink()
    text(folder / "barcodes.tsv.gz", "\n".join(NAMES) + "\n")
    text(folder / "features.tsv.gz", "\n".join("\t".join(row) for row in zip(*FEATURES, strict=True)) + "\n")


def h5ad(path, x=COUNTS, *, counts=None, raw=None, genes=GENES, ids=None, spatial=CENTERS):
    """By hand: the elements that are read, and no other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    var = pd.DataFrame({"gene_ids": ids} if ids else {}, index=pd.Index(list(genes), dtype=object))
    with h5py.File(path, "w") as file:
        write_elem(file, "X", sparse.csr_matrix(np.asarray(x, np.float32)))
        write_elem(file, "obs", pd.DataFrame(index=pd.Index(list(NAMES), dtype=object)))
        write_elem(file, "var", var)
        if spatial is not None:
            write_elem(file, "obsm", {"spatial": np.asarray(spatial, np.float64)})
        if counts is not None:
            write_elem(file, "layers", {"counts": np.asarray(counts, np.float32)})
        if raw is not None:
            write_elem(file, "raw/X", sparse.csr_matrix(np.asarray(raw, np.float32)))
            write_elem(file, "raw/var", var)
    return path


def old_h5ad(path, x=COUNTS):
    """As anndata 0.6 wrote it: tables are compound datasets."""
    with h5py.File(path, "w") as file:
        file["X"] = np.asarray(x, np.float32)
        file["obs"] = np.array([(name,) for name in NAMES], [("index", "S8")])
        file["var"] = np.array([(gene,) for gene in GENES], [("index", "S8")])
        file["obsm"] = np.array([(center,) for center in CENTERS], [("spatial", "f8", (2,))])
    return path


def hest(root, name="TENX1", metadata=None):
    h5ad(root / "st" / f"{name}.h5ad")
    image(root / "wsis" / f"{name}.tif")
    raw = {"dataset_title": "Lung", "patient": "Patient 1", "pixel_size_um_estimated": 0.52}
    text(root / "metadata" / f"{name}.json", json.dumps({**raw, **(metadata or {})}))
    return root


def section(counts, *, name="S1", patient="P1", genes=None, path=None):
    counts = sparse.csr_matrix(np.asarray(counts, np.float32))
    n = counts.shape[0]
    return Section(
        name=name,
        patient=patient,
        image=path,
        spot_names=tuple(map(str, range(n))),
        centers=np.full((n, 2), 100.0) + np.arange(n)[:, None] * 7,
        genes=tuple(genes or [f"G{i}" for i in range(counts.shape[1])]),
        counts=counts,
    )
