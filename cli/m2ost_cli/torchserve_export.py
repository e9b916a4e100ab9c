"""``m2ost export --engine torchserve``: a model archive in place of a release."""

from __future__ import annotations

from pathlib import Path

from .common import needs


def export_torchserve(checkpoint: Path, out: Path) -> None:
    """Write ``NAME.mar`` of a checkpoint, and say what it holds."""
    with needs("export"):
        from m2ost.checkpoint import load
        from m2ost_export.torchserve import write_archive
    model, card = load(checkpoint)
    worst = write_archive(model, card, out)
    trained = "" if card.trained else "UNTRAINED, "
    print(f"{out}: {trained}fp32, {len(card.genes)} genes; the program against the network at most {worst:.1e} apart")
