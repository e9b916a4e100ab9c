"""Memory of client and server while many spots stream through a release.

Use a depth-1, narrow release: what is watched is the serving path, not the arithmetic.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from m2ost_client.server.command import ServerOptions
from m2ost_client.server.supervisor import TritonServer
from m2ost_client.stream import SpotStream, StreamOptions
from m2ost_loadtests.machine import describe_machine
from m2ost_preprocess.decoder import decoded_slide
from m2ost_preprocess.slides import SlideRoots

from ..process_memory import Memory, growth_mib, halves, memory_mib

SAMPLES = 20
# Heaps and shared memory keep what the largest burst took: it comes first, and what they gain after it is growth. Its
# requests are larger, as those of several sizes leave gaps in shared memory that the next does not fit into.
BURST_ROWS = 2
BURST_REQUESTS = 16


def measure(
    release: Path, slide: Path, spots: int, *, stream: StreamOptions | None = None, seed: int = 0
) -> dict[str, Any]:
    """Stream ``spots`` random spots of ``slide`` after a burst, and sample the memory at twenty rests on the way.

    With nothing under way, it is what is kept: a batch takes tens of MiB more or less while it is decoded and cut.

    Returns
    -------
    dict
        ``samples``: MiB of client, server (with its models' processes) and shared memory, with ``idle`` taken before
        any request; ``growth_mib``: for each, the maximum of the second half less that of the first: 0 or below where
        memory is flat.
    """
    slide, options = slide.resolve(), stream or StreamOptions()
    with decoded_slide(slide, threads=0) as source:
        size = source.size
    centers = np.random.default_rng(seed).integers((0, 0), size, (spots, 2))
    with TritonServer(ServerOptions(release=release, roots=SlideRoots({"soak": slide.parent}))) as server:
        idle = memory_mib(server)
        taken = asyncio.run(_stream(server, f"soak/{slide.name}", centers, options))
    return {
        "machine": describe_machine(),
        "slide": slide.name,
        "spots": spots,
        "restarts": server.restarts,
        "idle": {"spots": 0, **idle},
        "samples": [{"spots": done, **memory} for done, memory in taken],
        "growth_mib": growth_mib(*halves([memory for _, memory in taken])),
    }


async def _stream(server: TritonServer, slide: str, centers: Any, options: StreamOptions) -> list[tuple[int, Memory]]:
    """At each rest, the spots that were answered so far, and the memory."""
    burst = replace(options, batch_rows=options.batch_rows * BURST_ROWS)
    spots = centers[: BURST_REQUESTS * burst.batch_rows]
    async with SpotStream(server.address, burst) as stream, aclosing(stream.predict(slide, spots)) as batches:
        async for _ in batches:
            pass
    taken: list[tuple[int, Memory]] = []
    done = 0
    async with SpotStream(server.address, options) as stream:
        for part in np.array_split(centers, SAMPLES):
            async with aclosing(stream.predict(slide, part)) as batches:
                async for batch in batches:
                    done += len(batch.rows)
            taken.append((done, memory_mib(server)))
    return taken


def to_markdown(report: dict[str, Any]) -> str:
    """The samples as a table, in MiB."""
    names = ("client", "server", "shared")
    lines = [
        f"| spots | {' | '.join(f'{name}, MiB' for name in names)} |",
        "|---|---|---|---|",
        *("| {spots:.0f} | {client:.1f} | {server:.1f} | {shared:.1f} |".format(**s) for s in report["samples"]),
        "",
        "Growth of the peak from the first to the second half: "
        + ", ".join(f"{name} {report['growth_mib'][name]:+.1f} MiB" for name in names),
    ]
    return "\n".join(lines) + "\n"
