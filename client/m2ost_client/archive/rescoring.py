"""Re-scoring an archive: servers, state and run put together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import replace
from pathlib import Path

from m2ost_preprocess.decoder import Decoder

from ..errors import InputError
from ..files import check_writable
from ..server.supervisor import TritonServer
from .access import Access, OnServer, Sent, Shared, roots_of
from .options import ArchiveReport, Progress, RescoreOptions, Servers
from .pool import Pool
from .ray_runner import OnRay, SentByWorkers, connected
from .run import Rescore
from .slide_list import SlideList
from .state import State, exclusive
from .storage import is_url

Serve = Callable[[Mapping[str, Path]], AbstractContextManager[TritonServer]]
"""Starts a server with these roots, for as long as the context lasts."""


def rescore(
    slides: SlideList,
    options: RescoreOptions,
    servers: Servers | None = None,
    *,
    serve: Serve | None = None,
    on_start: Callable[[Rescore], AbstractContextManager[object]] = nullcontext,
    on_progress: Callable[[Progress], None] | None = None,
) -> ArchiveReport:
    """Score an archive of slides; the same call goes on where an earlier one ended, whatever ended it.

    Parameters
    ----------
    slides : SlideList
        See :func:`~m2ost_client.archive.slide_list.read_slides`.
    options : RescoreOptions
    servers : Servers, optional
        Servers that run elsewhere; with ``serve``, how the one is used, and no address.
    serve : callable, optional
        Starts a server for this archive, given the roots under which its slides are:
        ``lambda roots: m2ost_client.serve(release, roots)``.
    on_start : callable
        Receives the run, which it may ask to stop early (:meth:`Rescore.drain`); entered while the run lasts.
    on_progress : callable, optional
        Receives a :class:`Progress` whenever something came to an end.

    Returns
    -------
    ArchiveReport
        Slides that cannot be scored are in it, with the reason.

    Raises
    ------
    InputError
        If slides, options and servers do not go together; if another run is at work in the folder; if the archive was
        scored otherwise before; or if a gene is not in the panel, or an export needs what is not installed.
    OutputError, ServerUnavailable, AccessRefused, ServerStartError
        If the run cannot go on; what was scored is kept.
    """
    check_writable(options.out)
    with ExitStack() as stack:
        stack.enter_context(exclusive(options.out))
        state = stack.enter_context(closing(State(options.out)))
        check: Callable[[], None] = lambda: None  # noqa: E731
        roots: Mapping[str, Path] | None = None
        found = servers or Servers()
        if serve is None:
            _check_reachable(slides, options, found)
        else:
            roots = _roots(slides, options)
            server = stack.enter_context(serve(roots))
            found, check = replace(found, addresses=(server.address,)), lambda: server.wait(0)
        cluster = stack.enter_context(connected(found.ray)) if found.ray else None

        async def run() -> ArchiveReport:
            async with Pool(found.addresses, found.endpoints, retry_for_s=found.retry_for_s, check=check) as pool:
                workers = OnRay(cluster, pool, found, batch_rows=options.batch_rows) if cluster else None
                access: Access = OnServer(pool) if roots is None else Shared(pool, roots)
                if found.send_pixels:
                    decoder = stack.enter_context(Decoder(pool.info.views))
                    access = SentByWorkers(pool, decoder, workers) if workers else Sent(pool, decoder)
                one = Rescore(
                    slides,
                    options,
                    state,
                    pool,
                    access,
                    runner=workers,
                    on_progress=on_progress,
                )
                with on_start(one):
                    return await one.run()

        return asyncio.run(run())


def _check_reachable(slides: SlideList, options: RescoreOptions, servers: Servers) -> None:
    """Refuse remote slides that servers or workers would not see, and no server at all."""
    if not servers.addresses:
        raise InputError("no server to score with; give the address of one, or what starts one")
    remote = next((row.path for row in slides.rows if is_url(row.path)), None)
    if remote and servers.ray and options.cache is None:
        raise InputError(f"{remote}: workers read copies of remote slides; give --cache, a folder that every node sees")
    if remote and not servers.send_pixels:
        raise InputError(
            f"{remote}: a server elsewhere does not see copies that are made here; give --send-pixels, or leave "
            "--server out"
        )


def _roots(slides: SlideList, options: RescoreOptions) -> Mapping[str, Path]:
    """Roots under which a server that is started here finds all slides."""
    staging = options.staging_folder if any(is_url(row.path) for row in slides.rows) else None
    if staging is not None:
        staging.mkdir(parents=True, exist_ok=True)
    return roots_of((row.path for row in slides.rows if not is_url(row.path)), staging)
