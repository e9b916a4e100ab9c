"""Commands on releases: ``serve`` and ``predict``."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from m2ost_contract import MAX_ROWS, RowStatus
from m2ost_preprocess.home import expanded
from m2ost_preprocess.slides import SlideRoots
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
    cache_folder,
    client_credentials,
    needs,
    traced_command,
    use_reader,
)
from .numeric import not_negative, positive
from .progress import progress, working
from .values import one_of
from .values import view_mpp as view_mpp_of

if TYPE_CHECKING:
    from m2ost_client.dense import DenseOptions, DenseReport
    from m2ost_client.predict import PredictReport
    from m2ost_client.server.supervisor import TritonServer
    from m2ost_client.timeline import Timeline

EXIT_SPOTS_WITHOUT_VALUE = 3
EMBEDDED_ROOT = "slides"
MODEL_NEEDS_SERVER = "--model is for a server of several releases; give --server ADDRESS"
SERVER_IS_THERE = "--server serves a release in its own way; leave --release, --checkpoint and --profile out"
Host = Annotated[
    str, typer.Option("--host", help="Address that the server listens on.", rich_help_panel=panels.ADDRESSES)
]
GrpcPort = Annotated[
    int,
    typer.Option(
        "--grpc-port", min=0, max=65535, help="Port of gRPC; 0 takes any free one.", rich_help_panel=panels.ADDRESSES
    ),
]
HttpPort = Annotated[
    int,
    typer.Option(
        "--http-port",
        min=0,
        max=65535,
        help="Port of HTTP, with --http; 0 takes any free one.",
        rich_help_panel=panels.ADDRESSES,
    ),
]
MetricsPort = Annotated[
    int,
    typer.Option(
        "--metrics-port",
        min=0,
        max=65535,
        help="Port of the metrics; 0 takes any free one.",
        rich_help_panel=panels.ADDRESSES,
    ),
]
Profile = Annotated[
    str,
    typer.Option(
        "--profile",
        help="Engine and device, Triton's --model-config-name: cpu, cpu-openvino, tensorrt, python-gpu …",
        rich_help_panel=panels.ENGINE,
    ),
]
ServerCert = Annotated[
    Path | None,
    typer.Option(
        "--tls-cert",
        help="PEM file with the server's certificate. With it gRPC speaks TLS only.",
        rich_help_panel=panels.TRUST,
    ),
]
ServerKey = Annotated[
    Path | None,
    typer.Option("--tls-key", help="PEM file with the key of that certificate.", rich_help_panel=panels.TRUST),
]
ClientsCa = Annotated[
    Path | None,
    typer.Option(
        "--tls-ca",
        help="PEM file with authorities. Clients must show a certificate that one of them signed.",
        rich_help_panel=panels.TRUST,
    ),
]
ServerToken = Annotated[
    Path | None,
    typer.Option(
        "--token-file", help="File whose only line is a token that clients must send.", rich_help_panel=panels.TRUST
    ),
]
GeoJson = Annotated[
    bool,
    typer.Option(
        "--geojson",
        help="Write a .geojson for QuPath too, with the genes of --map, or else with all.",
        rich_help_panel=panels.OUTPUT,
    ),
]
SpatialData = Annotated[
    bool,
    typer.Option("--spatialdata", help="Write a SpatialData folder (.zarr) too.", rich_help_panel=panels.OUTPUT),
]
ViewMpp = Annotated[
    str | None,
    typer.Option(
        metavar="UM|model",
        help="Cut views at this µm/px, or at that of the model's training. By default at the slide's own pixels.",
        rich_help_panel=panels.SLIDE,
    ),
]
Pyramid = Annotated[
    bool,
    typer.Option(
        "--pyramid",
        help="Cut coarse views from the slide's own lower levels. This is faster and gives other values.",
        rich_help_panel=panels.SLIDE,
    ),
]
BatchRows = Annotated[int, typer.Option(min=1, max=MAX_ROWS, help="Spots in a request.", rich_help_panel=panels.SERVER)]
ReleaseToServe = Annotated[
    Path | None,
    typer.Option(
        help="Release for the embedded server. By default that of the shipped checkpoint.",
        rich_help_panel=panels.ENGINE,
    ),
]
CheckpointToServe = Annotated[
    Path | None,
    typer.Option(help="Checkpoint to export for the embedded server.", rich_help_panel=panels.ENGINE),
]
ServerLog = Annotated[
    Path | None,
    typer.Option(help="Write the embedded server's JSON log to this file.", rich_help_panel=panels.ENGINE),
]
_LEVELS = ("debug", "info", "warning", "error")


def split_roots(specifications: list[str]) -> dict[str, Path]:
    """``NAME=FOLDER`` or ``FOLDER`` (named after itself) → name and folder."""
    roots: dict[str, Path] = {}
    for specification in specifications:
        name, separator, folder = specification.partition("=")
        path = expanded(folder if separator else specification).resolve()
        key = name if separator else path.name
        if key in roots:
            raise UserError(f"two slide roots are called {key!r}; name them: --slides NAME=FOLDER")
        roots[key] = path
    return roots


def parse_roots(specifications: list[str]) -> SlideRoots:
    """The slide roots of a server that is to start."""
    try:
        return SlideRoots(split_roots(specifications))
    except ValueError as error:
        raise UserError(str(error)) from error


def serve(
    releases: Annotated[
        list[Path], typer.Argument(metavar="RELEASE", help="Release folder. Several are each served under its name.")
    ],
    slides: Annotated[
        list[str], typer.Option("--slides", help="Folder of slides, as FOLDER or NAME=FOLDER; repeatable.")
    ],
    istar: Annotated[
        Path | None, typer.Option(help="Folder that `m2ost export-istar` wrote, to serve beside the release.")
    ] = None,
    host: Host = "127.0.0.1",
    grpc_port: GrpcPort = 8001,
    http: Annotated[
        bool,
        typer.Option(
            "--http",
            help="Speak HTTP too. One HTTP request can end this tritonserver, so put a proxy in front of it.",
            rich_help_panel=panels.ADDRESSES,
        ),
    ] = False,
    http_port: HttpPort = 8000,
    metrics_port: MetricsPort = 8002,
    tls_cert: ServerCert = None,
    tls_key: ServerKey = None,
    tls_ca: ClientsCa = None,
    token_file: ServerToken = None,
    profile: Profile = "cpu",
    reader: Reader = None,
    trace_otlp: TraceOtlp = None,
    ready_file: Annotated[
        Path | None,
        typer.Option(help="File for probes. While the server is ready it exists and is under a minute old."),
    ] = None,
    start_timeout_s: Annotated[
        float,
        typer.Option(
            parser=positive,
            metavar="SECONDS",
            help="Longest time until the server is ready. A profile that builds an engine needs minutes.",
        ),
    ] = 120,
    log_level: Annotated[str, typer.Option(help="Lowest level to print: debug, info, warning or error.")] = "info",
    print_command: Annotated[
        bool, typer.Option("--print-command", help="Print the command that starts tritonserver, and exit.")
    ] = False,
) -> None:
    """Serve one or several releases on NVIDIA Triton, and restart the server if it dies.

    The log is one JSON object a line. Ctrl-C or SIGTERM stops the server cleanly.
    """
    with needs("client"):
        from m2ost_client.credentials import Credentials
        from m2ost_client.server.command import HTTP_RISK, ServerOptions
        from m2ost_client.server.host import Ports
        from m2ost_client.server.supervisor import TritonServer
    one_of("--log-level", log_level, _LEVELS)
    use_reader(reader, reads_here=True)
    if istar is not None:
        from m2ost_istar.manifest import IStarManifest

        IStarManifest.read(istar)  # its errors say what makes such a folder
    options = ServerOptions(
        release=releases[0],
        others=tuple(releases[1:]),
        roots=parse_roots(slides),
        beside=(istar,) if istar else (),
        host=host,
        ports=Ports(grpc_port, http_port, metrics_port),
        http=http,
        credentials=Credentials(ca=tls_ca, certificate=tls_cert, key=tls_key, token_file=token_file),
        profile=profile,
        trace_otlp=trace_otlp,
        ready_file=ready_file,
        start_timeout_s=start_timeout_s,
    )
    if http:
        print(f"warning: --http: {HTTP_RISK}", file=sys.stderr)
    server = TritonServer(options, on_log=_json_lines(sys.stdout, log_level))
    if print_command:
        print(server.print_command())
        return
    try:
        with server:
            server.wait()
    except KeyboardInterrupt:
        return


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
    mpp: Annotated[
        float | None,
        typer.Option(
            parser=positive,
            metavar="UM",
            help="µm/px of the slide, in place of what the file says.",
            rich_help_panel=panels.SLIDE,
        ),
    ] = None,
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
    if send_pixels and not server:
        raise UserError("--send-pixels is for a server elsewhere; give --server ADDRESS")
    if model and not server:
        raise UserError(MODEL_NEEDS_SERVER)
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
        elif release or checkpoint or profile:
            raise UserError(SERVER_IS_THERE)
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


@contextmanager
def embedded(
    roots: dict[str, Path],
    release: Path | None,
    checkpoint: Path | None,
    log: Path | None,
    *,
    profile: str | None = None,
    trace: Path | None = None,
    trace_otlp: str | None = None,
) -> Iterator[TritonServer]:
    """A server for as long as the block runs, on these slide roots; by default it serves the shipped checkpoint."""
    from m2ost_client.server.command import DEFAULT_PROFILE, ServerOptions
    from m2ost_client.server.doctor import AUTO, fastest_profile
    from m2ost_client.server.supervisor import TritonServer

    with ExitStack() as stack:
        if checkpoint is not None:
            with needs("export"):
                from m2ost.checkpoint import load
                from m2ost_export.release import build_release
                from m2ost_export.split_gate import measured_gate
            release = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="m2ost-release-"))) / "release"
            print(
                f"exporting {checkpoint} for this run; `m2ost export` once and --release save this",
                file=sys.stderr,
            )
            model, card = load(checkpoint)
            gated = measured_gate(checkpoint, card.sha256)
            with working("exporting"):
                build_release(model, card, release, gated=gated)
        if release is None:
            release = shipped_release()
        if profile == AUTO:
            profile, reasons = fastest_profile(release)
            print("\n  ".join([f"--profile auto: {profile}", *reasons]), file=sys.stderr)
        on_log = _json_lines(stack.enter_context(log.open("w", encoding="utf-8")), "debug") if log else None
        options = ServerOptions(
            release=release,
            roots=SlideRoots(roots),
            profile=profile or DEFAULT_PROFILE,
            trace=trace,
            trace_otlp=trace_otlp,
        )
        yield stack.enter_context(TritonServer(options, on_log=on_log))


def shipped_release() -> Path:
    """The release of the shipped checkpoint, exported into the user's cache the first time it is asked for."""
    with needs("export"):
        from m2ost.checkpoint import load
        from m2ost.shipped import CHECKPOINT, shipped_checkpoint
        from m2ost_export.release import build_release
        from m2ost_export.split_gate import measured_gate
        from m2ost_serving.repository import template_sha256
    with shipped_checkpoint() as folder:
        model, card = load(folder)
        release = cache_folder() / f"{CHECKPOINT}-{card.sha256[:12]}-{template_sha256()[:12]}"
        if not release.exists():
            print(f"exporting the shipped checkpoint {CHECKPOINT} to {release}, once", file=sys.stderr)
            with suppress(FileExistsError), working("exporting"):  # another run may be faster
                build_release(model, card, release, gated=measured_gate(folder, card.sha256))
    return release


def _json_lines(stream: Any, least: str) -> Callable[[dict[str, Any]], None]:
    shown = _LEVELS[_LEVELS.index(least) :]

    def write(record: dict[str, Any]) -> None:
        if record["level"] not in shown:
            return
        try:
            print(json.dumps(record, ensure_ascii=False), file=stream, flush=True)
        except OSError:
            # What is left in the stream's buffer would fail once more when it is closed.
            with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
            raise

    return write


def _summarise(report: PredictReport | DenseReport) -> None:
    metadata = report.metadata
    spots, facts = metadata["spots"], metadata["slide_facts"]
    resolution = f"{facts['mpp']:g} µm/px ({facts['mpp_source']})" if facts["mpp"] else "µm/px unknown"
    rate = f", {metadata['spots_per_s']:.1f} spots/s" if spots["count"] else f": {_why_none(facts)}"
    if not metadata["trained"]:
        print("UNTRAINED network: the map shows how the path works, not expression")
    print(f"{report.files[-1].stem}: {spots['count']} spots{rate}; read by {facts['reader']}, {resolution}")
    if facts["note"]:
        print(f"  {facts['note']}")
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
