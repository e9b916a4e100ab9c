"""Small archives of real tissue, and runs over them in this process or in one that can be killed."""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import signal
from pathlib import Path

from m2ost_client.archive import (
    Address,
    EndpointOptions,
    OnServer,
    Pool,
    Rescore,
    RescoreOptions,
    Settings,
    SlideRow,
    State,
    exclusive,
)
from m2ost_preprocess.readers import open_slide
from PIL import Image

MPP = 0.5
PITCH_UM = 100.0  # 200 px

CORNERS = [(700, 900), (200, 300), (300, 1500), (900, 500), (500, 700), (800, 1200), (250, 900), (600, 300)]
"""Where the slide has tissue."""

forkserver = multiprocessing.get_context("forkserver")
forkserver.set_forkserver_preload(["tests.e2e.archives"])


def cut(svs: Path, target: Path, corner: tuple[int, int], side: int) -> Path:
    """A square of a real slide as a slide of its own."""
    Image.fromarray(open_slide(svs).read(*corner, side, side)).save(target)
    return target


def make_slides(svs: Path, folder: Path, n: int, side: int = 520) -> list[SlideRow]:
    """``n`` small slides in a folder; a row calls each by its name under the root ``archive``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(n):
        x, y = CORNERS[i % len(CORNERS)]
        path = cut(svs, folder / f"s{i:02d}.png", (x + 7 * i, y + 5 * i), side)
        rows.append(SlideRow(path.stem, f"archive/{path.name}", mpp=MPP))
    return rows


async def rescore_async(
    rows,
    out,
    addresses,
    *,
    control=None,
    on_progress=None,
    access=OnServer,
    runner=None,
    retry_for_s=30,
    window=2,
    check=None,
    **options,
):
    """One run in this process; ``control`` receives it before it begins; ``runner`` makes its runner for a pool."""
    options = RescoreOptions(out=out, **{"settings": Settings(pitch_um=PITCH_UM), "batch_rows": 4, **options})
    out.mkdir(exist_ok=True)
    with exclusive(out):
        state = State(out)
        try:
            async with Pool(addresses, EndpointOptions(window=window), retry_for_s=retry_for_s, check=check) as pool:
                tasks = runner and runner(pool)
                run = Rescore(rows, options, state, pool, access(pool), runner=tasks, on_progress=on_progress)
                if control is not None:
                    control(run)
                return await run.run()
        finally:
            state.close()


def rescore(rows, out, addresses, **options):
    """As :func:`rescore_async`, for tests that are not asynchronous themselves; servers by object or address."""
    addresses = [a if isinstance(a, Address) else Address(a.address, a.metrics_url) for a in addresses]
    return asyncio.run(rescore_async(rows, out, addresses, **options))


def _child(rows, out, addresses, began, file_bytes, options):
    if file_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
        began.set()  # it may not come further
    rescore(rows, out, addresses, control=lambda run: began.set(), **options)


def rescore_apart(rows, out, addresses, *, file_bytes=None, **options):
    """Start a run in a process of its own, which writes no file beyond ``file_bytes``; returns it once it begins."""
    began = forkserver.Event()
    process = forkserver.Process(target=_child, args=(rows, out, addresses, began, file_bytes, options))
    process.start()
    assert began.wait(30)
    return process


def results(out: Path) -> dict[str, bytes]:
    """Every file that a run leaves for people, but for the summary, which tells of the run."""
    files = [out / "archive.parquet", *(out / "results").iterdir()]
    return {str(f.relative_to(out)): f.read_bytes() for f in sorted(files)}


def address_of(server) -> Address:
    return Address(server.address, server.metrics_url)
