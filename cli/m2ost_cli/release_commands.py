"""Commands that make and bring what is served: ``export``, ``build-engine``, ``export-istar`` and ``fetch``."""

from __future__ import annotations

import re
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from m2ost_contract import MAX_ROWS, TENSORRT, TENSORRT_RTX

from . import panels
from .common import StorageTimeout, UserError, cache_folder, needs, one_of, read_genes
from .progress import working
from .values import capabilities

if TYPE_CHECKING:
    from m2ost.card import ModelCard
    from m2ost.module import Network
    from m2ost_contract import Manifest
    from m2ost_export.engines import EngineOptions

TORCHSERVE = "torchserve"
TOOLKITS = (TENSORRT, TENSORRT_RTX)
PRECISIONS = ("fp32", "fp16", "bf16")

Out = Annotated[Path, typer.Option("--out", "-o", help="Release folder to create. It is never overwritten.")]
Capabilities = Annotated[
    str,
    typer.Option(
        "--compute-capability",
        help="GPUs to build for, such as 8.0,8.9. By default those of this machine.",
        rich_help_panel=panels.ENGINE,
    ),
]
OptRows = Annotated[
    int,
    typer.Option(
        min=1,
        max=MAX_ROWS,
        help="Rows of the batches that the engine is tuned for. It takes 1 to 256 rows in any case.",
        rich_help_panel=panels.ENGINE,
    ),
]
TimingCache = Annotated[
    Path | None,
    typer.Option(
        help="File in which TensorRT keeps its timings. By default it lies in the user's cache.",
        rich_help_panel=panels.ENGINE,
    ),
]


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    out: Out,
    name: Annotated[
        str, typer.Option(help="Name of the release on a server of several. By default that of its architecture.")
    ] = "",
    precision: Annotated[
        str, typer.Option(help="Precision of the graph: fp32, fp16 or bf16.", rich_help_panel=panels.GATE)
    ] = "fp32",
    gate_slide: Annotated[
        list[Path],
        typer.Option(
            help="Slide whose spots the gate compares. For fp16 and bf16 give one, else made views are compared. In "
            "fp32 it is the gate of the profile cpu-bf16; repeatable.",
            rich_help_panel=panels.GATE,
        ),
    ] = [],
    gate_spots: Annotated[
        list[Path],
        typer.Option(
            help="Spot file of each gate slide, in the same order. By default a grid over the tissue.",
            rich_help_panel=panels.GATE,
        ),
    ] = [],
    engine: Annotated[
        str | None,
        typer.Option(
            help="Build engines too: tensorrt or tensorrt-rtx. torchserve writes an archive in place of a release.",
            rich_help_panel=panels.ENGINE,
        ),
    ] = None,
    compute_capability: Capabilities = "",
    opt_rows: OptRows = 32,
    timing_cache: TimingCache = None,
    test_time: Annotated[
        str | None,
        typer.Option(
            help="dihedral8 averages over eight turns and flips in the graph; none does not. By default the card tells."
        ),
    ] = None,
) -> None:
    """Export a checkpoint as a release, the folder that `m2ost serve` takes.

    A release is a Triton model repository. It is written only if ONNX gives what PyTorch gives.
    """
    with needs("export"):
        from m2ost.architecture import TEST_TIMES
        from m2ost.checkpoint import load
        from m2ost_export.probes import slide_views
        from m2ost_export.release import build_release
        from m2ost_export.split_gate import measured_gate
    one_of("--precision", precision, PRECISIONS)
    one_of("--engine", engine, (*TOOLKITS, TORCHSERVE))
    one_of("--test-time", test_time, TEST_TIMES)
    wanted = capabilities(compute_capability)
    if gate_spots and len(gate_spots) != len(gate_slide):
        raise UserError("--gate-spots are positions on a slide; give them with --gate-slide, for each or for none")
    if len(gate_slide) > 1 and precision != "fp32":
        raise UserError(f"the gate of {precision} looks at one slide; give --gate-slide once")
    if compute_capability and not engine:
        raise UserError("--compute-capability is for engines; choose one with --engine tensorrt or tensorrt-rtx")
    model, card = load(checkpoint)
    if engine == TORCHSERVE:
        if precision != "fp32" or compute_capability or gate_slide:
            raise UserError("--engine torchserve writes float32 for any device; leave --precision and the others out")
        _export_archive(model, card, out)
        return
    options = _options(engine, wanted, opt_rows, timing_cache) if engine else None
    given = [
        (slide.name, slide_views(slide, model.config.views, spots=spots))
        for slide, spots in zip_longest(gate_slide, gate_spots)
    ]
    reduced = precision != "fp32"
    if reduced and not given:
        print(f"no --gate-slide: {precision} is judged on made views, which resemble no tissue")
    with working("exporting"):
        manifest = build_release(
            model,
            card,
            out,
            precision=precision,
            spots=given[0] if reduced and given else None,
            slides=() if reduced else given,
            gated=measured_gate(checkpoint, card.sha256),
            engines=options,
            test_time=test_time,
            name=name,
        )
    _print_release(out, manifest, gate_of_checkpoint=not given)


def build_engine(
    release: Annotated[Path, typer.Argument(help="Release folder; it may come from another machine.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Release folder to create. It is never overwritten.")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="In place of --out: build only the engines that this folder lacks, and print the folder to serve."
        ),
    ] = None,
    engine: Annotated[str, typer.Option(help="tensorrt or tensorrt-rtx.", rich_help_panel=panels.ENGINE)] = "tensorrt",
    compute_capability: Capabilities = "",
    opt_rows: OptRows = 32,
    timing_cache: TimingCache = None,
) -> None:
    """Add TensorRT engines to a release, as a new release.

    Run it on the machine, and in the image, that will serve. It needs no torch.
    """
    one_of("--engine", engine, TOOLKITS)
    wanted = capabilities(compute_capability)
    with needs(engine):
        from m2ost_export.engine_release import add_engines, cached_engines
    options = _options(engine, wanted, opt_rows, timing_cache)
    if cache is not None and out is None:
        with working("building engines"):
            found = cached_engines(release, cache, options)
        print(found)
        return
    if out is None or cache is not None:
        raise UserError("give --out NEW_RELEASE, or --cache FOLDER, and not both")
    with working("building engines"):
        manifest = add_engines(release, out, options)
    _print_release(out, manifest)


def _export_archive(model: Network, card: ModelCard, out: Path) -> None:
    from m2ost_export.torchserve import write_archive

    worst = write_archive(model, card, out)
    trained = "" if card.trained else "UNTRAINED, "
    print(f"{out}: {trained}fp32, {len(card.genes)} genes; the program against the network at most {worst:.1e} apart")


def _options(engine: str, wanted: tuple[str, ...], opt_rows: int, timing_cache: Path | None) -> EngineOptions:
    from m2ost_export.engines import EngineOptions

    if timing_cache is None:
        timing_cache = cache_folder() / f"{engine}.timing"
    return EngineOptions(
        toolkit=engine,
        compute_capabilities=wanted,
        opt_rows=opt_rows,
        timing_cache=timing_cache,
    )


def _print_release(out: Path, manifest: Manifest, *, gate_of_checkpoint: bool = False) -> None:
    """What was made, and how far it is from PyTorch; in bfloat16 perhaps as measured when the checkpoint was made."""
    info = manifest.engine
    trained = "" if info.trained else "UNTRAINED, "
    print(
        f"{out}: release {info.release_sha256[:12]}, {trained}{info.precision}, {len(info.genes)} genes; "
        f"{manifest.graph['nodes']} ONNX nodes"
    )
    if (head := manifest.graph.get("head", {})).get("rows"):
        print(f"  its graph carries a bank of {head['rows']} spots: {head['holds']}")
    if "gate" in manifest.parity:
        for row in manifest.parity["gate"]["measured"]:
            print(
                f"  {row['what']} against PyTorch in float32, {row['rows']} spots ({row['views']}): "
                f"r per gene at least {row['min_r_gene']:.6f} ({row['worst_gene']}), "
                f"at most {row['max_abs_diff']:.1e} apart"
            )
    else:
        worst = max(manifest.parity["max_abs_diff"].values())
        print(f"  ONNX against PyTorch at most {worst:.1e} apart")
    if level := info.slide_level:
        worst = max(manifest.parity["sequence"]["max_abs_diff"].values())
        print(
            f"  predicts a slide as a whole: up to {level.max_spots:,} spots, each with a place from 0 to "
            f"{level.table - 1} along both sides of an array; both stages in a row at most {worst:.1e} apart"
        )
    if "split" in manifest.parity:
        _print_split(manifest, "measured before, of this checkpoint" if gate_of_checkpoint else "")
    for plan in manifest.engines:
        told = plan.inspected and plan.fp32_size_bytes is None
        proof = "read from the engine" if told else "proved by its network, weights and size"
        loaded = "" if plan.inspected else "; not loaded on such a GPU"
        smaller = f", {plan.size_bytes / plan.fp32_size_bytes:.2f} of fp32's" if plan.fp32_size_bytes else ""
        print(
            f"  {plan.file}: {plan.toolkit} {plan.version}, compute capability {plan.compute_capability}, "
            f"{plan.size_bytes / 1e6:.1f} MB{smaller}; {plan.precision} {proof}{loaded}"
        )


def _print_split(manifest: Manifest, measured: str) -> None:
    split = manifest.parity["split"]
    gate = split.get("gate", {"measured": []})
    if gate["measured"] and measured:
        print(f"  {measured}:")
    for row in gate["measured"]:
        print(
            f"  body in bfloat16 by {gate['instructions']}, {row['rows']} spots ({row['views']}): r per gene at least "
            f"{row['min_r_gene']:.6f} ({row['worst_gene']}), at most {row['max_abs_diff']:.1e} apart"
        )
    words = "serve them with --profile cpu-bf16" if gate["measured"] else "--gate-slide would measure them in bfloat16"
    print(f"  body and tail at most {max(split['max_abs_diff'].values()):.1e} apart; {words}")


def export_istar(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to create. It is never overwritten.")],
    vit256: Annotated[
        Path | None, typer.Option(help="HIPT's vit256_small_dino.pth. By default random weights.")
    ] = None,
    vit4k: Annotated[Path | None, typer.Option(help="HIPT's vit4k_xs_dino.pth. By default random weights.")] = None,
    panel: Annotated[Path | None, typer.Option("--panel", help="Gene panel, one name a line.")] = None,
    outputs: Annotated[int, typer.Option(min=1, help="Number of outputs, if no panel is given.")] = 250,
    variant: Annotated[str, typer.Option(help="What is served: stock, no_shift or tissue.")] = "tissue",
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same random weights.")] = 0,
) -> None:
    """Export iStar for `m2ost serve RELEASE --istar OUT`.

    Its head is untrained: it shows how fast iStar is, not expression.
    """
    with needs("export"):
        from m2ost_istar.export import build_istar
        from m2ost_istar.geometry import VARIANTS
        from m2ost_istar.networks.istar import build
        from m2ost_istar.sizes import Sizes
    one_of("--variant", variant, VARIANTS)
    genes = read_genes(panel, outputs)
    try:
        sizes = Sizes(n_genes=len(genes))
    except ValueError as error:
        raise UserError(str(error)) from error
    with working("exporting"):
        manifest = build_istar(build(sizes, vit256=vit256, vit4k=vit4k, seed=seed), genes, out, variant=variant)
    worst = max(d for parity in manifest.parity.values() for d in parity["max_abs_diff"].values())
    weights = "HIPT's weights, UNTRAINED head" if manifest.info.pretrained else "RANDOM weights"
    print(
        f"{out}: iStar {manifest.info.folder_sha256[:12]}, {weights}, {manifest.info.precision}, variant "
        f"{variant}, {len(genes)} outputs; ONNX against PyTorch at most {worst:.1e} apart"
    )


def fetch(
    source: Annotated[
        str, typer.Argument(metavar="URL", help="URL of a release, such as s3://bucket/release or gs://bucket/release.")
    ],
    out: Out,
    sha256: Annotated[str, typer.Option(help="sha256 of its manifest.json, which holds those of all other files.")],
    storage_timeout_s: StorageTimeout = 60.0,
) -> None:
    """Copy a release from object storage, and check the sha256 of every file."""
    with needs("client"):
        from m2ost_client.archive.patience import Patience
        from m2ost_client.archive.releases import fetch_release
    if re.fullmatch(r"[0-9a-f]{64}", sha256) is None:
        raise UserError(f"--sha256 {sha256}: give the 64 hexadecimal digits that `sha256sum manifest.json` prints")
    release = fetch_release(source, out, sha256, patience=Patience(timeout_s=storage_timeout_s))
    print(f"{out}: release {release.engine.release_sha256[:12]}, {len(release.manifest.files)} files as exported")
