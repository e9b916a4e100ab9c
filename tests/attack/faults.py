"""Faults under a steady load: what clients saw of each, what recovered and when; no wrong answer and none lost.

Every request of the load is known: it is one of a few, each with two rows or more, whose values are the same bits
whatever is scored beside them. An answer is right, an error in words, or a fault of the server's.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import tifffile
from m2ost_client import Ports, ServerOptions, ServerStartError, TritonServer
from m2ost_client.server.host import SHM
from m2ost_loadtests.machine import describe_machine
from m2ost_preprocess.network import channel_options
from m2ost_preprocess.readers import open_slide
from m2ost_preprocess.slides import SlideRoots

from . import target
from .overload import Answered, message, send
from .target import Slide

CLIENTS, ROWS, REQUESTS = 4, 4, 6
BEFORE_S = 2.0
AFTER_S = 6.0
"""The load goes on for so long after a fault has ended, and until it is served again."""

RECOVERY_S = 90.0
PATIENCE_S = 60.0
"""A request without any end after this is lost."""

STOPPED_S = 5.0
ROOT = "faults"
SHM_MIB = 96
FILES = 40
"""Descriptors that the server may open beyond those that it has."""

Fault = Callable[["Scene"], Awaitable[None]]


@dataclass
class Scene:
    """A server under load, to be harmed.

    Attributes
    ----------
    server : TritonServer
    folder : Path
        The only root's.
    slide : Slide
        What is asked for.
    other : Path
        A file of the same size and form as the slide's, with other pixels.
    notes : list of str
        What a fault has to say for the table.
    """

    server: TritonServer
    folder: Path
    slide: Slide
    other: Path
    notes: list[str] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """The slide's file."""
        return self.folder / self.slide.name.partition("/")[2]

    def process(self, model: str, *, decoder: bool = False) -> psutil.Process:
        """The process of a model, or the one that reads slides for it; ``tritonserver`` is the server itself."""
        known = target.decoders(self.server) if decoder else target.processes(self.server)
        return psutil.Process(next(pid for pid, name in known.items() if name == model))


@dataclass
class Row:
    """What became of one fault: a line of the table."""

    fault: str
    seen: dict[str, int]
    recovered_s: float | None
    wrong: int
    lost: int
    restarts: int
    notes: list[str]

    def facts(self) -> dict[str, Any]:
        """For the record."""
        return dict(vars(self))


def make_slides(slide: Path, folder: Path) -> tuple[Path, Path]:
    """Two slides of one size whose files differ in their pixels alone: uncompressed tiles, byte for byte in place."""
    reader, made = open_slide(slide), []
    for name, (x, y) in (("a.tif", (600, 800)), ("b.tif", (200, 1500))):
        pixels = reader.read(x, y, 1024, 1024)
        pixels = pixels if name == "a.tif" else 255 - pixels
        path = folder / name
        resolution = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", metadata=None, software=False, **resolution)
        made.append(path)
    assert made[0].stat().st_size == made[1].stat().st_size
    return made[0], made[1]


def requests_of(slide: Slide) -> list[bytes]:
    """The requests of the load."""
    random = np.random.default_rng(11)
    return [message(slide, random.integers((0, 0), slide.size, (ROWS, 2))) for _ in range(REQUESTS)]


class Load:
    """Clients that ask again and again, and know what is right.

    Parameters
    ----------
    address : str
    sent : list of bytes
    right : list of dict
        For every request the answers that are right, by content of the slide.
    """

    def __init__(self, address: str, sent: list[bytes], right: list[tuple[dict[str, bytes], ...]]) -> None:
        self._address, self._sent, self._right = address, sent, right
        self.ended: list[Answered] = []
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Until :meth:`stop`."""
        options = [*channel_options(self._address), ("grpc.max_reconnect_backoff_ms", 500)]
        async with grpc.aio.insecure_channel(self._address, options) as channel:
            await asyncio.gather(*(self._client(channel, i) for i in range(CLIENTS)))

    async def _client(self, channel: Any, number: int) -> None:
        while not self._stop.is_set():
            number = (number + 1) % len(self._sent)
            answered = await send(channel, number, self._sent[number], PATIENCE_S)
            self.ended.append(answered)
            if answered.status != "OK":  # refused at once: not to be asked again at once
                await asyncio.sleep(0.05)

    def stop(self) -> None:
        """Let the clients end."""
        self._stop.set()

    def wrong(self) -> int:
        """Answers that are none of the right ones."""
        return sum(a.status == "OK" and a.outputs not in self._right[a.number] for a in self.ended)

    def mixed(self) -> int:
        """Of the wrong answers, those of which every row is right for one content or the other."""

        def rows(outputs: dict[str, bytes]) -> list[bytes]:
            data, n = outputs["EXPRESSION"], len(outputs["EXPRESSION"]) // ROWS
            return [data[i * n : (i + 1) * n] for i in range(ROWS)]

        return sum(
            all(row in known for row, *known in zip(rows(a.outputs), *map(rows, self._right[a.number]), strict=True))
            for a in self.ended
            if a.status == "OK" and a.outputs not in self._right[a.number]
        )

    def served_since(self, moment: float) -> float | None:
        """When every client's last failure after ``moment`` lay behind it, if it does: the first answer after it."""
        failures = [a.ended_s for a in self.ended if a.status != "OK"]
        last = max([moment, *failures])
        good = [a.ended_s for a in self.ended if a.status == "OK" and a.began_s > last]
        return min(good) if len(good) >= 2 * CLIENTS else None


async def under_load(name: str, scene: Scene, fault: Fault, load: Load) -> Row:
    """Harm the server under load, and wait until it serves again."""
    restarts = scene.server.restarts
    scene.notes.clear()
    task = asyncio.ensure_future(load.run())
    await asyncio.sleep(BEFORE_S)
    began = time.monotonic()
    await fault(scene)
    over = time.monotonic()
    served = None
    while time.monotonic() < over + AFTER_S or (served is None and time.monotonic() < over + RECOVERY_S):
        await asyncio.sleep(0.2)
        served = load.served_since(began)
    load.stop()
    await task
    seen = Counter(a.status for a in load.ended)
    lost = seen.get("DEADLINE_EXCEEDED", 0)
    if load.wrong():
        scene.notes.append(f"of the wrong answers {load.mixed()} have rows of both contents, the others pixels of both")
    recovered = None if served is None else round(served - began, 1)
    return Row(name, dict(seen), recovered, load.wrong(), lost, scene.server.restarts - restarts, list(scene.notes))


def killed(model: str, *, decoder: bool = False) -> Fault:
    """kill -9 of a process."""

    async def fault(scene: Scene) -> None:
        scene.process(model, decoder=decoder).send_signal(signal.SIGKILL)

    return fault


def stopped(model: str, *, decoder: bool = False, seconds: float = STOPPED_S) -> Fault:
    """SIGSTOP of a process, and SIGCONT after some seconds."""

    async def fault(scene: Scene) -> None:
        process = scene.process(model, decoder=decoder)
        process.suspend()
        try:
            await asyncio.sleep(seconds)
        finally:
            try:
                process.resume()
            except psutil.NoSuchProcess:
                scene.notes.append("the stopped process was replaced meanwhile")

    return fault


async def replaced(scene: Scene) -> None:
    """The slide's file is replaced by another content, and that by the first, by renaming."""
    contents = scene.path.read_bytes(), scene.other.read_bytes()
    for turn in range(20):
        new = scene.folder / "new"
        new.write_bytes(contents[(turn + 1) % 2])
        new.replace(scene.path)
        await asyncio.sleep(0.25)


async def overwritten(scene: Scene) -> None:
    """The slide's file is overwritten in place, a block at a time, by another content and back."""
    contents = scene.path.read_bytes(), scene.other.read_bytes()
    for turn in range(6):
        content = contents[(turn + 1) % 2]
        with scene.path.open("r+b", buffering=0) as stream:
            for at in range(0, len(content), 1 << 16):
                stream.write(content[at : at + (1 << 16)])
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)


async def stalled(scene: Scene) -> None:
    """Opening the slide's file blocks, as on a file server that is away: a lease on it is held for some seconds."""
    new = scene.folder / "new"
    shutil.copyfile(scene.path, new)
    held = os.open(new, os.O_RDWR)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        new.replace(scene.path)
        await asyncio.sleep(STOPPED_S)
        fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    finally:
        os.close(held)
        signal.signal(signal.SIGIO, before)


async def no_shared_memory(scene: Scene) -> None:
    """/dev/shm is full for some seconds, while requests come that need more of it than any before."""
    filler = SHM / "attack-filler"
    try:
        with filler.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
            while True:
                stream.write(b"\0" * (1 << 16))
        big = message(scene.slide, np.full((256, 2), 500))
        async with grpc.aio.insecure_channel(scene.server.address, channel_options(scene.server.address)) as channel:
            statuses = Counter(a.status for a in await asyncio.gather(*(send(channel, 0, big, 20.0) for _ in range(4))))
        scene.notes.append(f"large requests meanwhile: {dict(statuses)}")
    finally:
        filler.unlink()


async def no_descriptors(scene: Scene) -> None:
    """tritonserver may open no file any more, and idle connections take what it has."""
    process = scene.process("tritonserver")
    before = process.rlimit(psutil.RLIMIT_NOFILE)
    connections: list[socket.socket] = []
    host, port = scene.server.address.split(":")
    process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds() + FILES, before[1]))
    try:
        for _ in range(2 * FILES):
            with contextlib.suppress(OSError):
                connections.append(socket.create_connection((host, int(port)), timeout=1.0))
        await asyncio.sleep(STOPPED_S)
        scene.notes.append(f"{len(connections)} idle connections beside {FILES} descriptors")
    finally:
        process.rlimit(psutil.RLIMIT_NOFILE, before)
        for connection in connections:
            connection.close()


async def second_server(scene: Scene) -> None:
    """Another server is started on the same ports: by the supervisor, and by hand."""
    ports, options = scene.server.ports, scene.server.options

    def start() -> str:
        try:
            with TritonServer(ServerOptions(release=options.release, ports=Ports(grpc=ports.grpc))):
                return "started"
        except ServerStartError as error:
            return f"refused: {str(error)[:80]}"

    scene.notes.append(await asyncio.to_thread(start))
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            taken.bind(("127.0.0.1", ports.grpc))
            taken.listen()
            scene.notes.append("a program that reuses ports listens beside it")
            await asyncio.sleep(2)
        except OSError as error:
            scene.notes.append(f"a program that reuses ports: {error.strerror}")


async def changed_release(scene: Scene) -> None:
    """The release's graph is changed where it lies, then a model dies and the server is started anew."""
    graph = scene.server.options.release / "m2ost" / "1" / "model.onnx"
    content = graph.read_bytes()
    graph.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        await asyncio.sleep(1)
        scene.process("m2ost").send_signal(signal.SIGKILL)
        await asyncio.sleep(8)
        scene.notes.append("meanwhile: " + ("not served" if scene.server.pid is None else "starting again and again"))
    finally:
        graph.write_bytes(content)


FAULTS: dict[str, Fault] = {
    **{
        f"kill -9 of {what}": killed(model, decoder=decoder)
        for what, model, decoder in (
            ("tritonserver", "tritonserver", False),
            ("the tiler", "slide_tiler", False),
            ("the engine", "m2ost", False),
            ("the row guard", "row_guard", False),
            ("slide_info", "slide_info", False),
            ("the tiler's decoder", "slide_tiler", True),
            ("slide_info's decoder", "slide_info", True),
        )
    },
    **{
        f"SIGSTOP of {what}, {STOPPED_S:g} s": stopped(model, decoder=decoder)
        for what, model, decoder in (
            ("tritonserver", "tritonserver", False),
            ("the tiler", "slide_tiler", False),
            ("the engine", "m2ost", False),
            ("the row guard", "row_guard", False),
            ("the tiler's decoder", "slide_tiler", True),
        )
    },
    "slide replaced by renaming": replaced,
    "slide overwritten in place": overwritten,
    f"slide's file system stalled, {STOPPED_S:g} s": stalled,
    "descriptors exhausted": no_descriptors,
    "a second server on its port": second_server,
    "release changed under it": changed_release,
}

FULL_SHM = "/dev/shm full"
NOT_DONE = {
    "clock jumps": "no library here sets another clock before tritonserver, and no time namespace moves CLOCK_REALTIME"
}


def run(release: Path, slide: Path, folder: Path, *, only: str = "") -> dict[str, Any]:
    """Every fault in turn, each with a server that is well; ``only`` those whose names hold this."""
    rows = [*_run(release, slide, folder, {name: fault for name, fault in FAULTS.items() if only in name})]
    skipped = dict(NOT_DONE)
    if only in FULL_SHM:
        rows += _in_own_shared_memory(release, slide, skipped)
    faults = []
    for row in rows:
        faults += [f"{row.fault}: {row.wrong} wrong answers"] if row.wrong else []
        faults += [f"{row.fault}: {row.lost} requests without an end"] if row.lost else []
        faults += [f"{row.fault}: not served again within {RECOVERY_S:g} s"] if row.recovered_s is None else []
    return {
        "what": "faults under a steady load, and what clients saw",
        "machine": describe_machine(),
        "faults": faults,
        "rows": [row.facts() for row in rows],
        "not_done": skipped,
        "table": table(rows),
    }


def run_in_own_shared_memory(release: Path, slide: Path, folder: Path) -> list[dict[str, Any]]:
    """The fault that needs a /dev/shm which no other server uses; for a process that has one."""
    return [row.facts() for row in _run(release, slide, folder, {FULL_SHM: no_shared_memory})]


def _in_own_shared_memory(release: Path, slide: Path, skipped: dict[str, str]) -> Iterator[Row]:
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        skipped[FULL_SHM] = "this user may make no namespaces"
        return
    shell = f'mount -t tmpfs -o size={SHM_MIB}m tmpfs /dev/shm && exec "$@"'
    script = (
        "import json, sys, tempfile; from pathlib import Path; from tests.attack import faults\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    rows = faults.run_in_own_shared_memory(Path(sys.argv[1]), Path(sys.argv[2]), Path(folder))\n"
        "print(json.dumps(rows))"
    )
    command = [*unshare, "sh", "-c", shell, "sh", sys.executable, "-c", script, str(release), str(slide)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{FULL_SHM}: {done.stderr[-2000:]}")
    yield from (Row(**facts) for facts in json.loads(done.stdout.splitlines()[-1]))


def _run(release: Path, slide: Path, folder: Path, chosen: dict[str, Fault]) -> Iterator[Row]:
    root, spare = folder / ROOT, folder / "spare"
    for made in (root, spare):
        made.mkdir()
    first, second = make_slides(slide, spare)
    # A copy, because one fault changes it; every fault has a server of its own, so that none inherits another's.
    own = shutil.copytree(release, folder / "release")
    asked = Slide(f"{ROOT}/slide.tif", open_slide(first).size)
    sent = requests_of(asked)
    for name, fault in chosen.items():
        shutil.copyfile(second, root / "slide.tif")
        with target.served(own, SlideRoots({ROOT: root})) as (server, _):
            others = asyncio.run(_answers(server, sent))
            new = root / "new"
            shutil.copyfile(first, new)
            new.replace(root / "slide.tif")
            right = [*zip(asyncio.run(_answers(server, sent)), others, strict=True)]
            assert all(a != b for a, b in right), "the two slides are told apart by no answer"
            load = Load(server.address, sent, right if "slide " in name else [(a,) for a, _ in right])
            scene = Scene(server, root, asked, second)
            row = asyncio.run(under_load(name, scene, fault, load))
        sys.stderr.write(f"{table([row])[-1]}\n")
        yield row


async def _answers(server: TritonServer, sent: list[bytes]) -> list[dict[str, bytes]]:
    async with grpc.aio.insecure_channel(server.address, channel_options(server.address)) as channel:
        found = [await send(channel, i, data) for i, data in enumerate(sent)]
    assert all(a.status == "OK" for a in found), Counter(a.status for a in found)
    return [a.outputs for a in found]


def table(rows: list[Row]) -> list[str]:
    """The rows for people."""
    lines = [
        "| fault | clients saw | served again after | restarts | wrong | lost | notes |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        seen = ", ".join(f"{status} {n}" for status, n in sorted(row.seen.items()))
        after = "–" if row.recovered_s is None else f"{row.recovered_s:g} s"
        notes = "; ".join(row.notes)
        lines.append(f"| {row.fault} | {seen} | {after} | {row.restarts} | {row.wrong} | {row.lost} | {notes} |")
    return lines
