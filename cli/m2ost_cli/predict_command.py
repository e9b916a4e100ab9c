"""`m2ost predict`."""

from __future__ import annotations

import asyncio
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from m2ost_contract import RowStatus
from m2ost_preprocess.home import expanded
from m2ost_preprocess.slides.dense_grid import parse_pitch
from m2ost_preprocess.slides.rectangle import Rectangle

from . import panels
from .common import (
    Reader,
    TlsCa,
    TlsCert,
    TlsKey,
    TokenFile,
    TraceOtlp,
    UserError,
    client_credentials,
    needs,
    traced_command,
    use_reader,
)
from .embedded import embedded
from .numeric import not_negative, positive
from .progress import progress
from .scoring_options import (
    BatchRows,
    CheckpointToServe,
    GeoJson,
    Mpp,
    Pyramid,
    ReleaseToServe,
    ServerLog,
    SpatialData,
    ViewMpp,
    check_server_options,
)
from .values import view_mpp as view_mpp_of

if TYPE_CHECKING:
    from m2ost_client.dense import DenseOptions, DenseReport
    from m2ost_client.predict import PredictReport
    from m2ost_client.timeline import Timeline


EXIT_SPOTS_WITHOUT_VALUE = 3
EMBEDDED_ROOT = "slides"


def predict(
    slide: Annotated[str, typer.Argument(help="Slide file. With --server: its name there, root/relative/path.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.", rich_help_panel=panels.OUTPUT)],
    genes: Annotated[
        list[str] | None,
        typer.Option("--map", help="Draw a map of this gene; repeatable.", rich_help_panel=panels.OUTPUT),
    ] = None,
    geojson: GeoJson = False,
    spatialdata: SpatialData = False,
    report: Annotated[
        bool,
        typer.Option("--report", help="Write a page in one file (.report.html) too.", rich_help_panel=panels.OUTPUT),
    ] = False,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Write a timeline of client and embedded server to this file, in Chrome's format.",
            rich_help_panel=panels.OUTPUT,
        ),
    ] = None,
    trace_otlp: TraceOtlp = None,
    mpp: Mpp = None,
    view_mpp: ViewMpp = None,
    pyramid: Pyramid = False,
    reader: Reader = None,
    spots: Annotated[
        Path | None,
        typer.Option(
            help="Table of spots, Visium tissue_positions or .h5ad. By default a grid over the tissue is scored.",
            rich_help_panel=panels.SPOTS,
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="Image over the whole slide, PNG or TIFF. The grid then covers what is not black in it.",
            rich_help_panel=panels.SPOTS,
        ),
    ] = None,
    pitch_um: Annotated[
        float,
        typer.Option(
            parser=positive,
            metavar="UM",
            help="Pitch of the grid in µm.",
            rich_help_panel=panels.SPOTS,
        ),
    ] = 100.0,
    region: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y,W,H",
            help="Score only the spots in this rectangle, in level-0 pixels. It applies to a grid and to a file.",
            rich_help_panel=panels.SPOTS,
        ),
    ] = None,
    dense: Annotated[
        str | None,
        typer.Option(
            metavar="PITCH",
            help="Predict every cell of a grid of this pitch in level-0 pixels, such as 16px, into a Zarr.",
            rich_help_panel=panels.DENSE,
        ),
    ] = None,
    everywhere: Annotated[
        bool,
        typer.Option(
            "--everywhere", help="With --dense: predict cells off the tissue too.", rich_help_panel=panels.DENSE
        ),
    ] = False,
    gene: Annotated[
        list[str] | None,
        typer.Option(
            "--gene",
            help="With --dense: keep only this gene; repeatable. By default all are kept.",
            rich_help_panel=panels.DENSE,
        ),
    ] = None,
    tolerance: Annotated[
        str | None,
        typer.Option(
            metavar="SD",
            help="With --dense: interpolate where that misses by less than so many standard deviations, such as 0.5sd.",
            rich_help_panel=panels.DENSE,
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            help="host:port of a running server, or dns:///name:port. By default one runs for this slide.",
            rich_help_panel=panels.SERVER,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="With --server: name of the release, if that server has several.", rich_help_panel=panels.SERVER
        ),
    ] = None,
    send_pixels: Annotated[
        bool,
        typer.Option(
            "--send-pixels",
            help="With --server: read the slide here and send its views.",
            rich_help_panel=panels.SERVER,
        ),
    ] = False,
    batch_rows: BatchRows = 32,
    window: Annotated[int, typer.Option(min=1, help="Most requests in flight.", rich_help_panel=panels.SERVER)] = 4,
    retry_for_s: Annotated[
        float,
        typer.Option(
            parser=not_negative,
            metavar="SECONDS",
            help="How long to wait for a server that is away, in seconds.",
            rich_help_panel=panels.SERVER,
        ),
    ] = 60.0,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    release: ReleaseToServe = None,
    checkpoint: CheckpointToServe = None,
    profile: Annotated[
        str | None,
        typer.Option(
            help="Profile of the embedded server, by default cpu. auto takes the fastest that this machine can run.",
            rich_help_panel=panels.ENGINE,
        ),
    ] = None,
    server_log: ServerLog = None,
) -> None:
    """Predict the gene expression of one slide, at spots or as a dense map.

    The results are an .h5ad, maps and the run's metadata; of a dense map a Zarr.
    """
    with needs("client"):
        from m2ost_client.exports import Exports
        from m2ost_client.files import check_writable
        from m2ost_client.options import PredictOptions
        from m2ost_client.predict import predict_slide
        from m2ost_client.stream import StreamOptions
    check_server_options(server is not None, send_pixels, model, release, checkpoint, profile)
    credentials = client_credentials(tls_ca, tls_cert, tls_key, token_file, elsewhere=server is not None)
    use_reader(reader, reads_here=server is None or send_pixels)
    if dense is None and (everywhere or gene or tolerance is not None):
        raise UserError("--everywhere, --gene and --tolerance are for a dense map; give --dense 16px")
    if dense is not None and (spots or mask or genes or send_pixels):
        raise UserError(
            "--dense sets its own positions, draws no maps and sends no pixels; "
            "leave --spots, --mask, --map and --send-pixels out"
        )
    if spots is not None and mask is not None:
        raise UserError("--mask is for a grid, and --spots sets its own positions; give one of them")
    cells: DenseOptions | None = None
    if dense is not None:
        with needs("client"):
            from m2ost_client.dense import DenseOptions, check_new, predict_dense
            from m2ost_client.refinement import parse_tolerance
        cells = DenseOptions(
            pitch_px=parse_pitch(dense),
            everywhere=everywhere,
            genes=tuple(gene or ()),
            tolerance_sd=None if tolerance is None else parse_tolerance(tolerance),
        )
    area = Rectangle.parse(region) if region is not None else None
    views_at = view_mpp_of(view_mpp)
    try:
        stream = StreamOptions(
            batch_rows=batch_rows, window=window, retry_for_s=retry_for_s, model=model, credentials=credentials
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    try:
        slide.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{slide!r}: the name is not valid UTF-8; rename the slide") from error
    exports = Exports(geojson=geojson, spatialdata=spatialdata, report=report)
    exports.check_installed()
    if cells:
        check_new(out, slide)
    else:
        check_writable(out)
    with ExitStack() as stack:
        stack.enter_context(traced_command(trace_otlp, "m2ost predict", {"m2ost.slide": slide}))
        timeline, server_trace = stack.enter_context(_timeline(trace))
        name = slide
        if server is None:
            path = expanded(slide).resolve()
            if not path.exists():
                raise UserError(f"{slide}: no such file")
            name = f"{EMBEDDED_ROOT}/{path.name}"
            with needs("client"):
                import m2ost_client.tables  # noqa: F401
            roots = {EMBEDDED_ROOT: path.parent}
            running = embedded(
                roots, release, checkpoint, server_log, profile=profile, trace=server_trace, trace_otlp=trace_otlp
            )
            server = stack.enter_context(running).address
        options = PredictOptions(
            slide=name,
            out=out,
            source=slide,
            spots_file=spots,
            mask=mask,
            pitch_um=pitch_um,
            region=area,
            mpp=mpp,
            view_mpp=views_at,
            genes=tuple(genes or ()),
            exports=exports,
            send_pixels=send_pixels,
            pyramid=pyramid,
            stream=stream,
        )
        with progress("scoring", "spots") as on_progress:
            done: PredictReport | DenseReport
            if cells:
                done = asyncio.run(predict_dense(server, options, cells, on_progress=on_progress, timeline=timeline))
            else:
                done = asyncio.run(predict_slide(server, options, on_progress=on_progress, timeline=timeline))
    _summarise(done)
    if not done.complete:
        raise typer.Exit(EXIT_SPOTS_WITHOUT_VALUE)


@contextmanager
def _timeline(path: Path | None) -> Iterator[tuple[Timeline | None, Path | None]]:
    """A timeline, and where a server is to leave its trace; both are written to ``path`` once that server has ended."""
    from m2ost_client.timeline import Timeline

    if path is None:
        yield None, None
        return
    timeline = Timeline()
    with tempfile.TemporaryDirectory(prefix="m2ost-trace-") as folder:
        server_trace = Path(folder) / "trace.json"
        yield timeline, server_trace
        if server_trace.exists():
            timeline.add_server(server_trace)
        timeline.write(path)
        print(f"timeline: {path}; open it in ui.perfetto.dev", file=sys.stderr)


def _summarise(report: PredictReport | DenseReport) -> None:
    metadata = report.metadata
    spots, facts = metadata["spots"], metadata["slide_facts"]
    resolution = f"{facts['mpp']:g} µm/px ({facts['mpp_source']})" if facts["mpp"] else "µm/px unknown"
    rate = f", {metadata['spots_per_s']:.1f} spots/s" if spots["count"] else f": {_why_none(facts)}"
    if not metadata["trained"]:
        print("UNTRAINED network: the map shows how the path works, not expression")
    print(f"{report.files[-1].stem}: {spots['count']} spots{rate}; read by {facts['reader']}, {resolution}")
    for note in filter(None, (facts["note"], metadata["views"]["warning"])):
        print(f"  {note}")
    for status, count in spots["by_status"].items():
        if status != "OK":
            known = status in RowStatus.__members__
            reason = RowStatus[status].reason if known else "which only a newer client can explain"
            print(f"  {count} spots without a value: {status}, {reason}")
    if refinement := metadata.get("dense", {}).get("refinement"):
        print(f"  {_in_words(refinement)}")
    for file in report.files:
        print(f"  {shlex.quote(str(file))}")


def _in_words(refinement: dict[str, Any]) -> str:
    """What a map with a tolerance computed, and how good the rest is."""
    check, counted = refinement["check"], f"{refinement['computed']:,} of {refinement['places']:,} cells computed"
    if not check["r_per_gene"]:
        return f"{counted}; too few of them to tell r with the exact map"
    r = check["r_per_gene"]
    return (
        f"{counted}; r per gene with the exact map {r['median']:.4f} (median), {r['lowest']:.4f} (lowest), "
        f"at {check['places']} cells drawn by chance"
    )


def _why_none(facts: dict[str, Any]) -> str:
    """Why nothing was scored of a slide on which nobody asked for certain spots."""
    tissue = facts["tissue_fraction"]
    if not tissue:
        return "nothing was scored, for no tissue was found on the slide"
    return f"nothing was scored, for no cell of the grid is at least half tissue ({100 * tissue:.2g} % of the slide is)"
