"""Commands on archives of slides: ``rescore``, ``join`` and ``status``."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import (
    Reader,
    StorageTimeout,
    TlsCa,
    TlsCert,
    TlsKey,
    TokenFile,
    UserError,
    client_credentials,
    needs,
    use_reader,
)
from .serving_commands import MODEL_NEEDS_SERVER, SERVER_IS_THERE, embedded

if TYPE_CHECKING:
    from m2ost_client.archive import ArchiveReport, Progress, Rescore

EXIT_INCOMPLETE = 3
EXIT_INTERRUPTED = 130
_SHOWN = 20


def rescore(
    manifest: Annotated[
        str,
        typer.Argument(
            help="A .csv, .tsv or .parquet with slide_id and path; a folder; a slide; or a pattern, in quotes."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The archive's folder: results, state, table and summary.")],
    server: Annotated[
        list[str] | None,
        typer.Option(
            "--server",
            help="host:port of a server, or dns:///name:port; repeatable. Without it one runs for this archive.",
        ),
    ] = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    model: Annotated[
        str | None, typer.Option(help="With --server: the release's name, where the servers have several.")
    ] = None,
    release: Annotated[
        Path | None, typer.Option(help="Release for the embedded server; by default that of the shipped checkpoint.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint to export for the embedded server.")] = None,
    profile: Annotated[str | None, typer.Option(help="The embedded server's profile; by default cpu.")] = None,
    pitch_um: Annotated[
        float, typer.Option(help="Pitch of the grid in µm, where a slide has none of its own.")
    ] = 100.0,
    view_mpp: Annotated[
        str | None,
        typer.Option(help="Cut views at this µm/px, or 'model'; by default at the slide's own pixels."),
    ] = None,
    genes: Annotated[
        list[str] | None, typer.Option("--map", help="Draw the overview and a map of this gene; repeatable.")
    ] = None,
    geojson: Annotated[
        bool, typer.Option("--geojson", help="Also a .geojson of each slide scored now, for QuPath.")
    ] = False,
    spatialdata: Annotated[bool, typer.Option("--spatialdata", help="Also a SpatialData folder (.zarr).")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Also a page in one file (.report.html), and an index.html over all.")
    ] = False,
    send_pixels: Annotated[
        bool, typer.Option("--send-pixels", help="With --server: read the slides here and send their views.")
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option("--ray", help="Score on the Ray cluster at this address, as many tasks as its 'triton' resource."),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="K/N",
            help="Score one of N shares of the slides, the first is 0/N; works in a folder of its own in --out.",
        ),
    ] = None,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Search linked folders of a folder too; linked files always count.")
    ] = False,
    rescore_changed: Annotated[
        bool, typer.Option("--rescore-changed", help="Make anew what was made from other content, release or settings.")
    ] = False,
    reader: Reader = None,
    batch_rows: Annotated[int, typer.Option(help="Spots a request.")] = 32,
    window: Annotated[int, typer.Option(min=1, help="Most requests in flight at each server.")] = 2,
    spots_in_flight: Annotated[
        int, typer.Option(min=1, help="Slides are taken up until they have so many spots.")
    ] = 4096,
    retry_for_s: Annotated[float, typer.Option(help="How long to wait while no server is well, in seconds.")] = 300.0,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder for copies of remote slides; runs may share it; by default OUT/cache."),
    ] = None,
    cache_gib: Annotated[float, typer.Option(help="Most GiB of this run's copies at a time.")] = 32.0,
    storage_timeout_s: StorageTimeout = 60.0,
    server_log: Annotated[Path | None, typer.Option(help="Write the embedded server's JSON log here.")] = None,
) -> None:
    """Score an archive of slides; the same command goes on where an earlier run ended, whatever ended it.

    Ctrl-C once finishes what is under way and keeps it; twice stops at once. With --shard the run that ends last writes
    table and summary of all shares.
    """
    with needs("client"):
        from m2ost_client.archive import Patience, RescoreOptions, Servers, Settings, Shard, folder_of_run, read_slides
        from m2ost_client.archive import rescore as score
        from m2ost_client.exports import Exports
        from m2ost_client.server.doctor import AUTO
        from m2ost_client.stream import StreamOptions
    if send_pixels and not server:
        raise UserError("--send-pixels is for a server elsewhere; give --server ADDRESS")
    if model and not server:
        raise UserError(MODEL_NEEDS_SERVER)
    if ray and not server:
        raise UserError("--ray has workers elsewhere ask servers; give --server ADDRESS, as workers see it")
    if server and (release or checkpoint or profile):
        raise UserError(SERVER_IS_THERE)
    if profile == AUTO:
        raise UserError("an archive is scored on one engine, whatever machine goes on with it; name its --profile")
    credentials = client_credentials(tls_ca, tls_cert, tls_key, token_file, elsewhere=bool(server))
    use_reader(reader, reads_here=not server or send_pixels)
    try:
        StreamOptions(batch_rows=batch_rows)
        settings = Settings(pitch_um=pitch_um, view_mpp=view_mpp if view_mpp in (None, "model") else float(view_mpp))
    except ValueError as error:
        raise UserError(str(error)) from error
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
    serve = partial(embedded, release=release, checkpoint=checkpoint, log=server_log, profile=profile)
    servers = Servers(
        addresses=tuple(server or ()),
        window=window,
        retry_for_s=retry_for_s,
        send_pixels=send_pixels,
        ray=ray,
        model=model,
        credentials=credentials,
    )
    with _progress(len(slides.rows)) as on_progress:
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


def join(out: Annotated[Path, typer.Argument(help="The folder of an archive in shards.")]) -> None:
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
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("slides"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[spots]:,} spots, {task.fields[rate]:.1f} spots/s"),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("slides", total=n_slides, spots=0, rate=0.0)

        def update(progress: Progress) -> None:
            seconds = bar.tasks[task].elapsed or 0.0
            rate = progress.spots / seconds if seconds else 0.0
            bar.update(task, completed=progress.slides, spots=progress.spots, rate=rate)

        yield update


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
    out: Annotated[Path, typer.Argument(help="An archive's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """How far an archive is: slides by state, spots, what failed and what was left out. Works beside a run."""
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
        doing = f"not running; the last run {run['ended'] or 'was killed'}" if run else "not running"
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


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    for command in (rescore, join, status):
        app.command()(command)
