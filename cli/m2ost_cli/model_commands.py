"""Commands that make checkpoints: ``init`` and ``convert``."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import panels
from .common import UserError, needs, one_of, read_genes
from .numeric import positive
from .values import triple

if TYPE_CHECKING:
    from m2ost.architecture import Architecture
    from m2ost.systems.system import System

CHANNEL_ORDERS = ("RGB", "BGR")
SYSTEM_NAMES = "m2ost, stnet, resnet50, vit, crossvit, deepspace, bleep, histogene, hist2st"

Panel = Annotated[
    Path | None, typer.Option("--panel", help="Gene panel, one name a line, in the order of the outputs.")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to create. It is never overwritten.")]
Mpp = Annotated[
    float | None,
    typer.Option(parser=positive, metavar="UM", help="µm/px of its training images.", rich_help_panel=panels.PIXELS),
]
SpotUm = Annotated[
    float | None,
    typer.Option(
        parser=positive,
        metavar="UM",
        help="For DeepSpaCE, in place of --mpp: diameter of a spot in µm. A view covers 2.5 of them.",
        rich_help_panel=panels.PIXELS,
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        metavar="R,G,B",
        help="Mean that is subtracted from a pixel, three numbers such as 0.5,0.5,0.5.",
        rich_help_panel=panels.PIXELS,
    ),
]
Std = Annotated[
    str | None,
    typer.Option(
        metavar="R,G,B",
        help="Standard deviation that a pixel is divided by, three numbers such as 0.5,0.5,0.5.",
        rich_help_panel=panels.PIXELS,
    ),
]
ChannelOrder = Annotated[
    str | None,
    typer.Option(help="RGB or BGR: the order in which the weights take channels.", rich_help_panel=panels.PIXELS),
]
TestTime = Annotated[
    str,
    typer.Option(
        help="dihedral8 averages predictions over eight turns and flips, at eight times the cost; none does not.",
        rich_help_panel=panels.PIXELS,
    ),
]


def init(
    out: Out,
    system: Annotated[str, typer.Option(help=f"One of {SYSTEM_NAMES}.", rich_help_panel=panels.NETWORK)] = "m2ost",
    variant: Annotated[
        str | None,
        typer.Option(
            help="Size by name. vit: b16, s16; crossvit: tiny, 9, small, 15, 18, base; histogene: 4, 8.",
            rich_help_panel=panels.NETWORK,
        ),
    ] = None,
    depth: Annotated[int | None, typer.Option(help="Number of encoder blocks.", rich_help_panel=panels.NETWORK)] = None,
    dim: Annotated[int | None, typer.Option(help="Width of a token.", rich_help_panel=panels.NETWORK)] = None,
    levels: Annotated[
        int | None, typer.Option(help="Number of nested views, of M2OST.", rich_help_panel=panels.NETWORK)
    ] = None,
    image_px: Annotated[
        int | None, typer.Option(help="Side of a view in pixels.", rich_help_panel=panels.NETWORK)
    ] = None,
    pretrained: Annotated[
        Path | None,
        typer.Option(
            help="Pretrained weights of its trunk, .safetensors or .pth, such as torchvision's or timm's. Code in the "
            "file is never run.",
            rich_help_panel=panels.NETWORK,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="The same seed gives the same weights.", rich_help_panel=panels.NETWORK)
    ] = 0,
    panel: Panel = None,
    outputs: Annotated[int, typer.Option(min=1, help="Number of outputs, if no panel is given.")] = 250,
    mean: Mean = None,
    std: Std = None,
    channel_order: ChannelOrder = None,
    mpp: Mpp = None,
    spot_um: SpotUm = None,
    test_time: TestTime = "none",
) -> None:
    """Make an untrained checkpoint, to try export and serving with."""
    with needs("export"):
        from m2ost.architecture import TEST_TIMES
        from m2ost.checkpoint import initialise, save
        from m2ost.pretrained import FROM_SCRATCH, load_pretrained
        from m2ost.systems.registry import find
    one_of("--test-time", test_time, TEST_TIMES)
    chosen = find(system)
    genes = read_genes(panel, outputs)
    given = {"depth": depth, "dim": dim, "n_levels": levels, "image_px": image_px}
    config = _sizes(chosen, variant, {"n_genes": len(genes), **{k: v for k, v in given.items() if v is not None}})
    config = config.resized(**_settings(config, mean, std, channel_order))
    network, card = initialise(config, genes, seed=seed)
    told = load_pretrained(network, pretrained) if pretrained else FROM_SCRATCH
    provenance = {**card.provenance, "pretrained": told}
    view_mpp = _view_mpp(chosen, config, mpp, spot_um)
    card = save(out, network, replace(card, mpp=view_mpp, test_time=test_time, provenance=provenance))
    print(f"{out}: UNTRAINED {chosen.title}, {len(genes)} outputs, sha256 {card.sha256[:12]}")


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Weights under public names, .pth or .safetensors.")],
    panel: Annotated[Path, typer.Option("--panel", help="Gene panel, one name a line, in the order of the outputs.")],
    out: Out,
    system: Annotated[str | None, typer.Option(help=f"One of {SYSTEM_NAMES}. By default the weights tell.")] = None,
    target: Annotated[str | None, typer.Option(help="Unit of its outputs. By default as published.")] = None,
    bank: Annotated[
        Path | None, typer.Option(help="For BLEEP: .h5ad with the measured expression of its training spots.")
    ] = None,
    mean: Mean = None,
    std: Std = None,
    channel_order: ChannelOrder = None,
    mpp: Mpp = None,
    spot_um: SpotUm = None,
    test_time: TestTime = "none",
) -> None:
    """Convert weights that others published into a checkpoint.

    Only weights are read; code in the file is never run.
    """
    with needs("export"):
        from m2ost.architecture import TEST_TIMES
        from m2ost.checkpoint import save
        from m2ost.convert import convert as convert_file
        from m2ost.systems.registry import find, system_of
    one_of("--test-time", test_time, TEST_TIMES)
    one_of("--channel-order", channel_order, CHANNEL_ORDERS)
    for option, text in (("--mean", mean), ("--std", std)):
        if text:
            triple(option, text)
    if system:
        find(system)
    network, card = convert_file(checkpoint, read_genes(panel, 0), system=system, target=target, bank=bank)
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
    one_of("--channel-order", order, CHANNEL_ORDERS)
    given: dict[str, Any] = {"mean": mean and triple("--mean", mean), "std": std and triple("--std", std)}
    changes = {name: value for name, value in {**given, "channel_order": order}.items() if value}
    if not changes:
        return {}
    if "normalisation" not in {f.name for f in fields(config)}:  # type: ignore[arg-type]
        raise UserError("--mean, --std and --channel-order: M2OST takes pixels divided by 255")
    try:
        return {"normalisation": replace(config.normalisation, **changes)}
    except ValueError as error:
        raise UserError(str(error)) from error


def _view_mpp(system: System, config: Architecture, mpp: float | None, spot_um: float | None) -> float | None:
    """µm per view pixel, as given or as DeepSpaCE's spots have it."""
    from m2ost.systems.deepspace import DeepSpaceConfig, view_mpp

    if spot_um is None:
        return mpp
    if mpp is not None or not isinstance(config, DeepSpaceConfig):
        raise UserError(f"--spot-um is DeepSpaCE's, and stands for --mpp; of {system.title} give --mpp alone")
    return view_mpp(spot_um, config.image_px)
