"""Small archives of real tissue, and runs over them in this process or in one that can be killed."""

from __future__ import annotations

import multiprocessing
import resource
import signal
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

from m2ost_client import archive
from m2ost_client.archive import RescoreOptions, Servers, Settings, SlideList, SlideRow
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


def rescore(rows, out, servers, *, control=None, on_progress=None, **options):
    """One run in this process; ``control`` receives it before it begins. Servers by object or address."""
    addresses = tuple(server if isinstance(server, str) else server.address for server in servers)
    usual = {"addresses": addresses, "retry_for_s": 30, "settings": Settings(pitch_um=PITCH_UM), "batch_rows": 4}
    given = {**usual, **options}
    elsewhere = Servers(**{field.name: given.pop(field.name) for field in fields(Servers) if field.name in given})

    def on_start(run):
        if control is not None:
            control(run)
        return nullcontext()

    slides, options = SlideList(tuple(rows)), RescoreOptions(out=out, **given)
    return archive.rescore(slides, options, elsewhere, on_start=on_start, on_progress=on_progress)


def _child(rows, out, address, began, file_bytes, options):
    if file_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
        began.set()  # it may not come further
    rescore(rows, out, [address], control=lambda run: began.set(), **options)


def rescore_apart(rows, out, server, *, file_bytes=None, **options):
    """Start a run in a process of its own, which writes no file beyond ``file_bytes``; returns it once it begins."""
    began = forkserver.Event()
    process = forkserver.Process(target=_child, args=(rows, out, server.address, began, file_bytes, options))
    process.start()
    assert began.wait(30)
    return process


def results(out: Path) -> dict[str, bytes]:
    """Every file that a run leaves for people, but for the summary, which tells of the run."""
    files = [out / "archive.parquet", *(out / "results").iterdir()]
    return {str(f.relative_to(out)): f.read_bytes() for f in sorted(files)}
