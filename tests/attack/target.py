"""What is attacked, and what is watched meanwhile: its processes, log and memory, and files that nobody may open."""

from __future__ import annotations

import ctypes
import json
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from m2ost_client import ServerOptions, TritonServer
from m2ost_preprocess.readers import open_slide
from m2ost_preprocess.slides import SlideRoots
from PIL import Image

ROOT = "odd"
"""The root whose folder holds what a server may not follow."""

CANARY = "canary.png"
_IN_ACCESS, _IN_OPEN = 0x1, 0x20
_EVENT = struct.Struct("iIII")


@dataclass(frozen=True)
class Slide:
    """A slide that may be asked for.

    Parameters
    ----------
    name : str
        As a request names it.
    size : (int, int)
        Width and height in pixels.
    """

    name: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Trap:
    """A root with entries that lead out of it or are no slides, and files outside that it must not lead to.

    Parameters
    ----------
    root : Path
    outside : Path
        The folder of the canaries.
    names : tuple of str
        The entries, as requests name them. None of them is a slide.
    """

    root: Path
    outside: Path
    names: tuple[str, ...]


def make_trap(folder: Path, slide: Path) -> Trap:
    """Fill a folder with a :class:`Trap`; the canaries are sound slides, so that one that is reached is scored."""
    root, outside, sibling = folder / ROOT, folder / "outside", folder / f"{ROOT}-too"
    for made in (root, outside, sibling, root / "folder.svs", root / "empty"):
        made.mkdir()
    pixels = open_slide(slide).read(700, 900, 600, 600)
    for canary in (outside / CANARY, sibling / CANARY):
        Image.fromarray(pixels).save(canary)
    # A root of DICOM has slides of several files: one of them that leads out is one too many.
    for name, target in (
        ("link.png", outside / CANARY),
        ("relative.png", Path("..") / "outside" / CANARY),
        ("linked", outside),
        ("sibling.png", sibling / CANARY),
        ("loop.svs", root / "loop.svs"),
        ("nothing.svs", root / "absent.svs"),
        ("null.svs", Path("/dev/null")),
        ("zero.svs", Path("/dev/zero")),
        ("self.svs", Path("/proc/self/mem")),
        ("up", folder),
    ):
        (root / name).symlink_to(target)
    os.mkfifo(root / "fifo.svs")
    (root / "nobytes.svs").write_bytes(b"")
    (root / "new\nline.svs").write_bytes(b"no slide\n")
    entries = [entry.name for entry in root.iterdir()]
    inner = [f"linked/{CANARY}", f"up/outside/{CANARY}", "up", f"../{ROOT}-too/{CANARY}", f"../outside/{CANARY}"]
    return Trap(root, outside, tuple(sorted(f"{ROOT}/{name}" for name in (*entries, *inner))))


class Watch:
    """Files of some folders that are opened or read while the block runs, by whoever; by Linux's inotify.

    Attributes
    ----------
    opened : list of str
        Their names, filled when the block ends.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self.opened: list[str] = []

    def __enter__(self) -> Watch:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        for folder in self._folders:
            if self._descriptor < 0 or libc.inotify_add_watch(
                self._descriptor, os.fsencode(folder), _IN_ACCESS | _IN_OPEN
            ) < 0:  # fmt: skip
                raise OSError(ctypes.get_errno(), f"{folder} cannot be watched")
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(BlockingIOError):
            while data := os.read(self._descriptor, 1 << 16):
                at = 0
                while at < len(data):
                    *_, length = _EVENT.unpack_from(data, at)
                    name = data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
                    self.opened.append(name.decode(errors="replace") or "the folder itself")
                    at += _EVENT.size + length
        os.close(self._descriptor)


class Log(list[dict[str, Any]]):
    """Records of a server's log, as its supervisor hands them on."""

    def sizes(self, first: int = 0) -> list[int]:
        """Bytes of every record from ``first`` on."""
        return [len(json.dumps(record, ensure_ascii=False).encode()) for record in self[first:]]

    def frames(self, first: int = 0) -> list[str]:
        """Words of records from ``first`` on that hold frames of a Python program."""
        words = (json.dumps(record, ensure_ascii=False) for record in self[first:])
        return [line[:400] for line in words if "Traceback (most recent" in line or "\\n\\nAt:" in line]


def processes(server: TritonServer) -> dict[int, str]:
    """tritonserver and the processes of its models by process id; decoders, which a bad slide may end, are left out."""
    main = psutil.Process(server.pid)
    found = {main.pid: "tritonserver"}
    for child in main.children():
        with suppress(psutil.NoSuchProcess):
            found[child.pid] = model_of(child)
    return found


def model_of(stub: psutil.Process) -> str:
    """The model that a Python process of Triton's serves."""
    parts = [part for part in stub.cmdline() if part.endswith("/1/model.py")]
    return Path(parts[0]).parts[-3] if parts else stub.name()


def decoders(server: TritonServer) -> dict[int, str]:
    """Processes that read slides, by process id, each with the model that it reads for."""
    return {
        decoder.pid: model_of(stub) for stub in psutil.Process(server.pid).children() for decoder in stub.children()
    }


def folders_of(server: TritonServer) -> tuple[str, ...]:
    """Paths of this machine that no answer may tell."""
    options = server.options
    told = [options.release, *options.roots.roots.values(), Path(np.__file__).parents[1], Path.cwd()]
    return tuple(sorted({str(path) for path in told} | {"/1/model.py", "site-packages", "/dev/shm"}))


def own_roots(slide: Path, trap: Trap) -> SlideRoots:
    """Roots of a server that is started to be attacked."""
    return SlideRoots({"wsi": slide.parent, ROOT: trap.root})


@contextmanager
def served(release: Path, roots: SlideRoots, **options: Any) -> Iterator[tuple[TritonServer, Log]]:
    """A server to be harmed, and its log."""
    log = Log()
    settings: dict[str, Any] = {"probe_interval_s": 0.5, "max_restarts": 1000, **options}
    with TritonServer(ServerOptions(release=release, roots=roots, **settings), on_log=log.append) as server:
        yield server, log
