"""The article's own table, and what it measures."""

from __future__ import annotations

from typing import Any

NOTE = (
    "PCC in % and RMSE over the 250 genes of a spot, 70/30 or 60/10/30 by section, a panel chosen with the test "
    "sections. Params and FLOPs are what the profiler thop counts: multiply-accumulates, without attention that it "
    "does not see, and of HisToGene and Hist2ST of a whole slide (about 718 spots, views of 224 px) beside a spot of "
    "all others."
)

COLUMNS = ("hbc_pcc", "hbc_rmse", "her2_pcc", "her2_rmse", "cscc_pcc", "cscc_rmse", "params_m", "flops_g")

_ROWS = {
    "ResNet-50": (47.10, 3.17, 43.33, 3.04, 49.34, 3.60, 24.02, 4.11),
    "ViT-B/16": (46.67, 3.17, 43.78, 3.09, 49.01, 3.77, 57.45, 11.27),
    "Swin-T": (44.52, 3.29, 37.67, 3.57, 48.83, 3.74, 19.02, 2.96),
    "ConvNeXt-T": (47.25, 3.16, 43.56, 3.07, 50.08, 3.49, 27.99, 4.46),
    "CrossViT": (47.46, 3.16, 43.90, 3.04, 49.51, 3.55, 26.27, 4.85),
    "DeepSpaCE": (46.01, 3.19, 42.57, 3.17, 48.99, 3.73, 135.29, 15.48),
    "ST-Net": (47.78, 3.16, 43.01, 3.07, 49.37, 3.58, 7.21, 2.87),
    "HisToGene": (44.76, 3.20, 36.97, 3.62, 45.71, 3.93, 187.99, 135.07),
    "Hist2ST": (45.00, 3.18, 40.02, 3.06, 46.71, 3.88, 675.50, 1063.23),
    "BLEEP": (47.02, 3.17, 43.53, 3.05, 49.60, 3.59, 24.18, 4.19),
    "HIPT / iStar": (47.60, 3.16, 43.92, 3.01, 49.73, 3.52, 24.59, 5.13),
    "M2OST": (48.07, 3.16, 44.17, 2.87, 50.50, 3.45, 6.81, 2.24),
}

MAIN: list[dict[str, Any]] = [{"system": name, **dict(zip(COLUMNS, row, strict=True))} for name, row in _ROWS.items()]
"""Wang et al., AAAI 2025, the main table."""


_PCC = ("HBC PCC", "HER2+ PCC", "cSCC PCC")

ABLATIONS: list[dict[str, Any]] = [
    {"network": name, **dict(zip(_PCC, row, strict=True))}
    for name, row in {
        "levels 0": (46.92, 43.12, 49.31),
        "levels 1": (45.23, 42.56, 48.27),
        "levels 2": (41.04, 40.01, 45.29),
        "levels 0+1": (47.32, 43.31, 50.02),
        "levels 0+2": (46.94, 42.98, 49.73),
        "levels 1+2": (45.62, 42.67, 49.11),
        "levels 0+1+2": (48.07, 44.17, 50.50),
        "without DPE": (47.13, 43.10, 49.35),
        "without DPE, ITMM": (47.03, 42.99, 49.48),
        "without DPE, ITMM, CTMM": (46.34, 42.57, 48.81),
        "without DPE, ITMM, CTMM, CCMM": (46.12, 42.55, 48.66),
    }.items()
]
"""Its two tables of ablations."""

ABLATIONS_NOTE = (
    "What the article puts in a module's place it does not tell. Here: for DPE an embedding of 16-px patches for each "
    "level, for ITMM an ordinary transformer block for each level, for CTMM and CCMM nothing; parameters are then the "
    "article's to 0.3 %, but for its last row, which has as many as the one before."
)


def ablations_to_markdown() -> list[str]:
    """The tables of ablations in lines."""
    rows = [f"| {row['network']} | " + " | ".join(f"{row[name]:.2f}" for name in _PCC) + " |" for row in ABLATIONS]
    return ["| the article | " + " | ".join(_PCC) + " |", "|---|---|---|---|", *rows, "", ABLATIONS_NOTE]


def to_markdown() -> list[str]:
    """The main table in lines."""
    head = "| the article | HBC PCC | RMSE | HER2+ PCC | RMSE | cSCC PCC | RMSE | Params, M | “FLOPs”, G |"
    rows = [f"| {row['system']} | " + " | ".join(f"{row[name]:.2f}" for name in COLUMNS) + " |" for row in MAIN]
    return [head, "|---" * (len(COLUMNS) + 1) + "|", *rows, "", NOTE]
