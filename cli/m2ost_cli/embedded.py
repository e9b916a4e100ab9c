"""A server for as long as a command runs, and its log."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2ost_preprocess.slides import SlideRoots

from .common import (
    cache_folder,
    needs,
)
from .progress import working

if TYPE_CHECKING:
    from m2ost_client.server.supervisor import TritonServer


LEVELS = ("debug", "info", "warning", "error")


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
        on_log = json_lines(stack.enter_context(log.open("w", encoding="utf-8")), "debug") if log else None
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


def json_lines(stream: Any, least: str) -> Callable[[dict[str, Any]], None]:
    """Prints a server's log from a level on, one JSON object a line."""
    shown = LEVELS[LEVELS.index(least) :]

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
