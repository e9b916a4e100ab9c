"""Commands on checkpoints: ``init``, ``convert``, ``info``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import UserError, needs, read_genes

if TYPE_CHECKING:
    from m2ost.complexity import Complexity

Genes = Annotated[Path | None, typer.Option("--genes", help="Gene panel: one name a line, in output order.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to create; never overwritten.")]


def init(
    out: Out,
    genes: Genes = None,
    outputs: Annotated[int, typer.Option(help="Number of outputs, where no panel is given.")] = 250,
    depth: Annotated[int, typer.Option(help="Encoder blocks.")] = 4,
    dim: Annotated[int, typer.Option(help="Width of a token.")] = 192,
    levels: Annotated[int, typer.Option(help="Nested views.")] = 3,
    image_px: Annotated[int, typer.Option(help="Side of a view in pixels.")] = 224,
    seed: Annotated[int, typer.Option(help="One seed gives one set of weights.")] = 0,
) -> None:
    """Make a freshly initialised checkpoint, marked untrained, to try the serving path with."""
    with needs("export"):
        from m2ost.checkpoint import initialise, save
        from m2ost.config import M2OSTConfig
    panel = read_genes(genes, outputs)
    try:
        config = M2OSTConfig(n_genes=len(panel), depth=depth, dim=dim, n_levels=levels, image_px=image_px)
    except ValueError as error:
        raise UserError(str(error)) from error
    card = save(out, *initialise(config, panel, seed=seed))
    print(f"{out}: UNTRAINED checkpoint, {len(panel)} outputs, sha256 {card.sha256[:12]}")


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A .pth of the authors' code.")],
    genes: Annotated[Path, typer.Option("--genes", help="Its gene panel: one name a line, in output order.")],
    out: Out,
    mpp: Annotated[float | None, typer.Option(help="µm/px of its training images.")] = None,
) -> None:
    """Convert a checkpoint of the authors' code. Only weights are read; code in the file is never run."""
    with needs("export"):
        from m2ost.checkpoint import save
        from m2ost.convert import convert as convert_file
    model, card = convert_file(checkpoint, read_genes(genes, 0), mpp=mpp)
    card = save(out, model, card)
    print(f"{out}: {card.architecture}, sha256 {card.sha256[:12]}")


def info(
    checkpoint: Annotated[Path | None, typer.Argument(help="A checkpoint; by default the paper's model.")] = None,
) -> None:
    """Print parameters and floating-point operations beside published figures."""
    with needs("export"):
        from m2ost.checkpoint import load
        from m2ost.complexity import PAPER, count, joint_attention
        from m2ost.config import M2OSTConfig
        from m2ost.systems.registry import SYSTEMS
    config = load(checkpoint)[1].architecture if checkpoint else M2OSTConfig()
    print(f"{'':36}{'parameters':>12}{'GFLOP a spot':>14}")
    if not isinstance(config, M2OSTConfig):
        for row in (count(config), count(M2OSTConfig())):
            print(_row(row))
        return
    ours, joint = count(config), joint_attention(config)
    for row in (ours, joint, PAPER, *(count(s.config()) for s in SYSTEMS.values() if s.config is not M2OSTConfig)):
        print(_row(row))
    more = 100 * (ours.flop / joint.flop - 1)
    print(
        f"\nDecoupling intra- from cross-level mixing costs {more:+.0f} % against joint attention: both look at the\n"
        "same pairs of tokens, so it saves no attention; it projects every token twice, with weights for each level."
    )


def _row(row: Complexity) -> str:
    parameters = f"{row.parameters:,}" if row.parameters else "–"
    return f"{row.name:36}{parameters:>12}{row.flop / 1e9:>14.3f}  {row.note}"


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    for command in (init, convert, info):
        app.command()(command)
