"""Commands on checkpoints: ``init``, ``convert``, ``info``."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import UserError, needs, read_genes

if TYPE_CHECKING:
    from m2ost.architecture import Architecture
    from m2ost.complexity import Complexity
    from m2ost.systems.system import System

SYSTEM_NAMES = "m2ost, stnet, resnet50, vit, crossvit, deepspace, bleep, histogene, hist2st"

Genes = Annotated[Path | None, typer.Option("--genes", help="Gene panel: one name a line, in output order.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to create; never overwritten.")]
Mpp = Annotated[float | None, typer.Option(help="µm/px of its training images.")]
SpotUm = Annotated[
    float | None, typer.Option(help="In place of --mpp, DeepSpaCE's spot diameter in µm: a view covers 2.5 of them.")
]
Triple = Annotated[str | None, typer.Option(help="Of the normalised pixels, three numbers: 0.5,0.5,0.5.")]
ChannelOrder = Annotated[str | None, typer.Option(help="RGB or BGR: in which order the weights take channels.")]
TestTime = Annotated[
    str, typer.Option(help="none or dihedral8: averaged at inference, over eight turns and flips; eightfold cost.")
]


def init(
    out: Out,
    system: Annotated[str, typer.Option(help=f"One of {SYSTEM_NAMES}.")] = "m2ost",
    variant: Annotated[
        str | None, typer.Option(help="Of vit b16, s16; of crossvit tiny, 9, small, 15, 18, base; of histogene 4, 8.")
    ] = None,
    genes: Genes = None,
    outputs: Annotated[int, typer.Option(help="Number of outputs, where no panel is given.")] = 250,
    depth: Annotated[int | None, typer.Option(help="Encoder blocks.")] = None,
    dim: Annotated[int | None, typer.Option(help="Width of a token.")] = None,
    levels: Annotated[int | None, typer.Option(help="Nested views, of M2OST.")] = None,
    image_px: Annotated[int | None, typer.Option(help="Side of a view in pixels.")] = None,
    pretrained: Annotated[
        Path | None,
        typer.Option(help="Weights of its trunk, such as torchvision's or timm's: .safetensors, or .pth, never run."),
    ] = None,
    mean: Triple = None,
    std: Triple = None,
    channel_order: ChannelOrder = None,
    mpp: Mpp = None,
    spot_um: SpotUm = None,
    test_time: TestTime = "none",
    seed: Annotated[int, typer.Option(help="One seed gives one set of weights.")] = 0,
) -> None:
    """Make a freshly initialised checkpoint, marked untrained, to try the serving path with."""
    with needs("export"):
        from m2ost.checkpoint import initialise, save
        from m2ost.pretrained import FROM_SCRATCH, load_pretrained
        from m2ost.systems.registry import find
    chosen = find(system)
    panel = read_genes(genes, outputs)
    given = {"depth": depth, "dim": dim, "n_levels": levels, "image_px": image_px}
    config = _sizes(chosen, variant, {"n_genes": len(panel), **{k: v for k, v in given.items() if v is not None}})
    config = config.resized(**_settings(config, mean, std, channel_order))
    network, card = initialise(config, panel, seed=seed)
    told = load_pretrained(network, pretrained) if pretrained else FROM_SCRATCH
    provenance = {**card.provenance, "pretrained": told}
    view_mpp = _view_mpp(chosen, config, mpp, spot_um)
    card = save(out, network, replace(card, mpp=view_mpp, test_time=test_time, provenance=provenance))
    print(f"{out}: UNTRAINED {chosen.title}, {len(panel)} outputs, sha256 {card.sha256[:12]}")


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Weights under public names: a .pth, or .safetensors.")],
    genes: Annotated[Path, typer.Option("--genes", help="Its gene panel: one name a line, in output order.")],
    out: Out,
    system: Annotated[str | None, typer.Option(help=f"One of {SYSTEM_NAMES}; by default told by the weights.")] = None,
    target: Annotated[str | None, typer.Option(help="What its outputs are; by default as published.")] = None,
    bank: Annotated[
        Path | None, typer.Option(help="Of BLEEP: its training spots' measured expression, an .h5ad.")
    ] = None,
    mean: Triple = None,
    std: Triple = None,
    channel_order: ChannelOrder = None,
    mpp: Mpp = None,
    spot_um: SpotUm = None,
    test_time: TestTime = "none",
) -> None:
    """Convert somebody's weights of any system. Only weights are read; code in the file is never run."""
    with needs("export"):
        from m2ost.checkpoint import save
        from m2ost.convert import convert as convert_file
        from m2ost.systems.registry import system_of
    network, card = convert_file(checkpoint, read_genes(genes, 0), system=system, target=target, bank=bank)
    settings = _settings(card.architecture, mean, std, channel_order)
    if settings:
        card = replace(card, architecture=card.architecture.resized(**settings))
    chosen = system_of(card.architecture)
    view_mpp = _view_mpp(chosen, card.architecture, mpp, spot_um)
    card = save(out, network, replace(card, mpp=view_mpp, test_time=test_time))
    print(f"{out}: {chosen.title}, {card.architecture}, sha256 {card.sha256[:12]}")


def _sizes(system: System, variant: str | None, sizes: dict[str, Any]) -> Architecture:
    """The architecture with the sizes that were asked for."""
    if variant is not None and variant not in system.variants:
        known = ", ".join(system.variants) or "none"
        raise UserError(f"--variant {variant}: {system.title} has {known}")
    known_fields = {f.name for f in fields(system.config)}  # type: ignore[arg-type] # each is a dataclass
    for name in sizes:
        if name not in known_fields:
            raise UserError(f"--{name.removeprefix('n_').replace('_', '-')}: {system.title} has no such size")
    try:
        return system.config(**{**system.variants.get(variant or "", {}), **sizes})
    except ValueError as error:
        raise UserError(str(error)) from error


def _settings(config: Architecture, mean: str | None, std: str | None, order: str | None) -> dict[str, Any]:
    """The normalisation, where it was given another than the system's."""
    given: dict[str, Any] = {"mean": mean and _triple("--mean", mean), "std": std and _triple("--std", std)}
    changes = {name: value for name, value in {**given, "channel_order": order}.items() if value}
    if not changes:
        return {}
    if "normalisation" not in {f.name for f in fields(config)}:  # type: ignore[arg-type]
        raise UserError("--mean, --std and --channel-order: M2OST takes pixels divided by 255")
    try:
        return {"normalisation": replace(config.normalisation, **changes)}
    except ValueError as error:
        raise UserError(str(error)) from error


def _triple(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"{option} {text}: three numbers are needed, such as 0.5,0.5,0.5") from error


def _view_mpp(system: System, config: Architecture, mpp: float | None, spot_um: float | None) -> float | None:
    """µm per view pixel, as given or as DeepSpaCE's spots have it."""
    from m2ost.systems.deepspace import DeepSpaceConfig, view_mpp

    if spot_um is None:
        return mpp
    if mpp is not None or not isinstance(config, DeepSpaceConfig):
        raise UserError(f"--spot-um is DeepSpaCE's, and stands for --mpp; of {system.title} give --mpp alone")
    return view_mpp(spot_um, config.image_px)


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
    if not isinstance(config, M2OSTConfig) or config.without:
        for row in (count(config), count(M2OSTConfig())):
            print(_row(row))
        return
    ours, joint = count(config), joint_attention(config)
    others = [count(system.config()) for system in SYSTEMS.values() if system.config is not M2OSTConfig]
    for row in (ours, joint, PAPER, *others):
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
