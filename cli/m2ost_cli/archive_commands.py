"""Commands on archives of slides: ``rescore``, ``join`` and ``status``."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import panels
from .common import (
    EXIT_INTERRUPTED,
    Reader,
    StorageTimeout,
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
    Pyramid,
    ReleaseToServe,
    ServerLog,
    SpatialData,
    ViewMpp,
    check_server_options,
)
from .values import view_mpp as view_mpp_of

if TYPE_CHECKING:
    from m2ost_client.archive import ArchiveReport, Progress, Rescore

EXIT_INCOMPLETE = 3
_ENDED = {
    None: "was killed",
    "done": "came to its end",
    "drained": "was interrupted, and finished what was under way",
    "stopped": "was stopped",
    "failed": "ended with an error",
}
_SHOWN = 20


def rescore(
    manifest: Annotated[
        str,
        typer.Argument(
            help="Table with slide_id and path (.csv, .tsv or .parquet); a folder; a slide; or a pattern in quotes."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="The archive's folder, for results, state, table and summary.",
            rich_help_panel=panels.OUTPUT,
        ),
    ],
    genes: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            help="Draw a map of this gene, and the overview, for each slide; repeatable.",
            rich_help_panel=panels.OUTPUT,
        ),
    ] = None,
    geojson: GeoJson = False,
    spatialdata: SpatialData = False,
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            help="Write a page in one file (.report.html) for each slide too, and an index.html.",
            rich_help_panel=panels.OUTPUT,
        ),
    ] = False,
    rescore_changed: Annotated[
        bool,
        typer.Option(
            "--rescore-changed",
            help="Score again what was scored from other content, another release or other settings.",
            rich_help_panel=panels.OUTPUT,
        ),
    ] = False,
    view_mpp: ViewMpp = None,
    pyramid: Pyramid = False,
    reader: Reader = None,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="K/N",
            help="Score one of N shares of the slides, in a folder of its own in --out. The first share is 0/N.",
            rich_help_panel=panels.SLIDE,
        ),
    ] = None,
    follow_links: Annotated[
        bool,
        typer.Option(
            "--follow-links",
            help="Search linked folders of a folder too. Linked files are found without it.",
            rich_help_panel=panels.SLIDE,
        ),
    ] = False,
    pitch_um: Annotated[
        float,
        typer.Option(
            parser=positive,
            metavar="UM",
            help="Pitch of the grid in µm, for slides whose row of the table gives none.",
            rich_help_panel=panels.SPOTS,
        ),
    ] = 100.0,
    server: Annotated[
        list[str] | None,
        typer.Option(
            "--server",
            help="host:port of a running server, or dns:///name:port; repeatable. By default one runs here.",
            rich_help_panel=panels.SERVER,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="With --server: name of the release, if those servers have several.", rich_help_panel=panels.SERVER
        ),
    ] = None,
    send_pixels: Annotated[
        bool,
        typer.Option(
            "--send-pixels",
            help="With --server: read the slides here and send their views.",
            rich_help_panel=panels.SERVER,
        ),
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            help="With --server: score on the Ray cluster at this address. Its resource 'triton' limits the tasks.",
            rich_help_panel=panels.SERVER,
        ),
    ] = None,
    batch_rows: BatchRows = 32,
    window: Annotated[
        int, typer.Option(min=1, help="Most requests in flight at each server.", rich_help_panel=panels.SERVER)
    ] = 2,
    spots_in_flight: Annotated[
        int,
        typer.Option(
            min=1, help="Work on so many slides at once that they have this many spots.", rich_help_panel=panels.SERVER
        ),
    ] = 4096,
    retry_for_s: Annotated[
        float,
        typer.Option(
            parser=not_negative,
            metavar="SECONDS",
            help="How long to wait while no server answers, in seconds.",
            rich_help_panel=panels.SERVER,
        ),
    ] = 300.0,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    release: ReleaseToServe = None,
    checkpoint: CheckpointToServe = None,
    profile: Annotated[
        str | None,
        typer.Option(help="Profile of the embedded server, by default cpu.", rich_help_panel=panels.ENGINE),
    ] = None,
    server_log: ServerLog = None,
    trace_otlp: TraceOtlp = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder for copies of remote slides, which runs may share. By default OUT/cache.",
            rich_help_panel=panels.STORAGE,
        ),
    ] = None,
    cache_gib: Annotated[
        float,
        typer.Option(
            parser=positive,
            metavar="GIB",
            help="Most GiB of copies that this run keeps at a time.",
            rich_help_panel=panels.STORAGE,
        ),
    ] = 32.0,
    storage_timeout_s: StorageTimeout = 60.0,
) -> None:
    """Predict all slides of an archive. After any end, the same command goes on where the last run stopped.

    Ctrl-C once finishes the slides under way and keeps them; Ctrl-C twice stops at once. With --shard,
    the run that ends last writes the table and the summary of all shares.
    """
    with needs("client"):
        from m2ost_client.archive import Patience, RescoreOptions, Servers, Settings, Shard, folder_of_run, read_slides
        from m2ost_client.archive import rescore as score
        from m2ost_client.exports import Exports
        from m2ost_client.server.doctor import AUTO
    check_server_options(bool(server), send_pixels, model, release, checkpoint, profile)
    if ray and not server:
        raise UserError("--ray has workers elsewhere ask servers; give --server ADDRESS, as workers see it")
    if profile == AUTO:
        raise UserError("an archive is scored on one engine, whatever machine goes on with it; name its --profile")
    credentials = client_credentials(tls_ca, tls_cert, tls_key, token_file, elsewhere=bool(server))
    use_reader(reader, reads_here=not server or send_pixels)
    settings = Settings(pitch_um=pitch_um, view_mpp=view_mpp_of(view_mpp), pyramid=pyramid)
    patience = Patience(timeout_s=storage_timeout_s)
    names_on_server = bool(server) and not send_pixels
    share = Shard.parse(shard) if shard else None
    slides = read_slides(manifest, names_on_server=names_on_server, follow_links=follow_links, patience=patience)
    if slides.unused:
        print(f"{manifest}: nothing reads the columns {', '.join(slides.unused)}", file=sys.stderr)
    if share:
        slides = share.of_list(slides)
    exports = Exports(geojson=geojson, spatialdata=spatialdata, report=report)
    exports.check_installed()
    options = RescoreOptions(
        out=folder_of_run(share, out),
        settings=settings,
        genes=None if genes is None else tuple(genes),
        exports=exports,
        batch_rows=batch_rows,
        spots_in_flight=spots_in_flight,
        rescore_changed=rescore_changed,
        cache=cache,
        cache_bytes=int(cache_gib * (1 << 30)),
        patience=patience,
    )
    serve = partial(
        embedded, release=release, checkpoint=checkpoint, log=server_log, profile=profile, trace_otlp=trace_otlp
    )
    servers = Servers(
        addresses=tuple(server or ()),
        window=window,
        retry_for_s=retry_for_s,
        send_pixels=send_pixels,
        ray=ray,
        model=model,
        credentials=credentials,
    )
    tracing = traced_command(trace_otlp, "m2ost rescore", {"m2ost.slides": manifest})
    with _progress(len(slides.rows)) as on_progress, tracing:
        try:
            made = score(
                slides,
                options,
                servers,
                serve=None if server else serve,
                on_start=_heed_signals,
                on_progress=on_progress,
            )
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
    _print_report(made, options.out)
    if made.drained:
        raise typer.Exit(EXIT_INTERRUPTED)
    if share:
        _join_if_last(out)
    if not made.complete:
        raise typer.Exit(EXIT_INCOMPLETE)


def _join_if_last(out: Path) -> None:
    """Join the shards of an archive where none is left to score."""
    from m2ost_client.archive import join_shards, unfinished

    left = unfinished(out)
    if left:
        print(f"  {len(left)} of {left[0].of} shards are not at their end; the last to end joins all")
    else:
        _print_report(join_shards(out), out)


def join(out: Annotated[Path, typer.Argument(help="Folder of an archive in shards.")]) -> None:
    """Write table, summary and index of an archive in shards, as the shard that ends last does."""
    with needs("client"):
        from m2ost_client.archive import join_shards
    made = join_shards(out)
    _print_report(made, out)
    if not made.complete:
        raise typer.Exit(EXIT_INCOMPLETE)


@contextmanager
def _heed_signals(run: Rescore) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM drains the run, the second stops it."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    asked = 0

    def heed() -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            print("finishing what is under way; once more stops at once", file=sys.stderr)
            run.drain()
        elif task is not None:
            task.cancel()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        loop.add_signal_handler(number, heed)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


@contextmanager
def _progress(n_slides: int) -> Iterator[Callable[[Progress], None]]:
    began = time.monotonic()
    with progress("slides", "slides") as update:
        update(0, n_slides)

        def on_progress(found: Progress) -> None:
            seconds = time.monotonic() - began
            rate = found.spots / seconds if seconds else 0.0
            update(found.slides, n_slides, f"{found.spots:,} spots, {rate:.1f} spots/s")

        yield on_progress


def _print_report(report: ArchiveReport, out: Path) -> None:
    summary = report.summary
    if "shards" in summary:
        before, scored = "", f"{summary['spots']:,} spots in {len(summary['shards'])} shards"
    else:
        run = summary["run"]
        rate = f", {run['spots_per_s']:.1f} spots/s" if run["spots_per_s"] else ""
        before = f" ({summary['of_them_skipped']} before this run)"
        scored = f"{run['spots']:,} spots in this run{rate}"
    print(
        f"{summary['done']} of {summary['slides']} slides done{before}, {len(summary['failed'])} failed, "
        f"{summary['left']} left; {scored}"
    )
    for failed in summary["failed"][:_SHOWN]:
        print(f"  {failed['slide_id']}: {failed['reason']}")
    if len(summary["failed"]) > _SHOWN:
        print(f"  … {len(summary['failed']) - _SHOWN} more in {out / 'summary.json'}")
    if summary["spots_without_value"]:
        print(f"  {summary['spots_without_value']:,} spots have no value; the status in each result says why")
    if summary["without_spots"]:
        print(
            f"  nothing was scored of {len(summary['without_spots']):,} slides, for no cell of the grid is at "
            f"least half tissue: {_some(summary['without_spots'])}"
        )
    if other := summary["unlike_training"]:
        print(
            f"  the views of {len(other):,} slides have other µm/px than those that the network was trained on, so "
            f"that values may be wrong; --view-mpp model cuts them as in the training: {_some(other)}"
        )
    _print_left_out(summary["left_out"]["files"], "in summary.json")
    if summary["left"]:
        print("  the same command goes on from here")
    print(f"  {out / 'archive.parquet'}")
    if (out / "index.html").exists():
        print(f"  {out / 'index.html'}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")


def _print_left_out(files: list[dict[str, Any]], where: str) -> None:
    """What lies among the slides and is not scored, by reason; what may be a slide first."""
    by_reason: dict[tuple[bool, str], list[str]] = {}
    for left in files:
        by_reason.setdefault((not left["problem"], left["reason"]), []).append(left["path"])
    for (harmless, reason), paths in sorted(by_reason.items()):
        print(f"  left out{'' if harmless else ', and may be a slide'}: {len(paths):,} {reason}: {_some(paths)}")
    if any(len(paths) > _SHOWN for paths in by_reason.values()):
        print(f"  all of them are {where}")


def status(
    out: Annotated[Path, typer.Argument(help="The archive's folder, as --out of `m2ost rescore`.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for a program.")] = False,
) -> None:
    """Show how far an archive is: slides by state, spots, failures, and files left out.

    It may be called while a run is under way.
    """
    with needs("client"):
        from m2ost_client.archive import read_status
    found = read_status(out)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    run = found.last_run
    if found.running:
        doing = f"running: process {run['pid']} on {run['host']}" if run else "running"
    else:
        doing = f"not running; the last run {_ENDED[run['ended']]}" if run else "not running"
    print(f"{out}: {doing}")
    table = Table("state", "slides")
    for state, count in found.slides.items():
        table.add_row(state, f"{count:,}")
    Console().print(table)
    rate = f"; {run['spots'] / run['seconds']:.1f} spots/s in the last run" if run and run["seconds"] else ""
    print(f"{found.spots_done:,} spots of {found.spots_known:,} on slides looked at so far{rate}")
    for slide_id, reason in list(found.problems.items())[:_SHOWN]:
        print(f"  {slide_id}: {reason}")
    if len(found.problems) > _SHOWN:
        print(f"  … {len(found.problems) - _SHOWN} more with --json")
    _print_left_out(found.left_out, "told with --json")
