"""One tritonserver and its models' processes: started together, read, and ended together."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import logs
from .argument_memory import hide_rest
from .command import Command
from .host import SHM, of_all_processes, owner_file, remove_shared_memory

_GUARD = 'read -r group || exit; read -r done || { kill -s KILL -- "-$group"; rm -rf "$1"* "$2" "$3"; }'
"""A shell that outlives this process by a moment. Told the server's process group, it waits; if its input ends without
a last word, this process was killed, and it ends the whole group: a Python model that is busy when tritonserver dies
would otherwise wait for it for ever."""

_READ_BYTES = 1 << 16

_AT_REST = "All models are stopped, unloading models"
"""What tritonserver logs once no request is under way; that it unloads its models then, with looks a second apart, is
of no use to anybody."""

_POLL_S = 0.05
_LAST_ANSWERS_S = 0.2
"""Time for answers that are on their way then, in seconds."""

_LOG_END_S = 5.0
"""Longest time for the log's last lines once all processes are gone, in seconds."""


class ServerProcess:
    """A tritonserver in a process group of its own. It dies with this process, whatever kills it.

    Parameters
    ----------
    command : Command
        What to run.
    shm_prefix : str
        How the names of its regions in /dev/shm begin.
    runtime : Path
        Folder to remove with it if this process is killed.
    on_log : callable
        Receives the log records, each a dict, on a thread of its own; must not raise.
    probe_id : str
        The request id of liveness probes.
    secret_after : str
        How the argument begins whose rest nobody may see. It is overwritten at the first line of Triton's own log, for
        which it has read its arguments; where that cannot be, the server is killed, and ``on_log`` told why.

    Raises
    ------
    OSError
        If the program cannot be run.
    """

    def __init__(
        self,
        command: Command,
        *,
        shm_prefix: str,
        runtime: Path,
        on_log: Callable[[dict[str, Any]], None],
        probe_id: str = "",
        secret_after: str = "",
    ) -> None:
        self._shm_prefix, self._secret_after = shm_prefix, secret_after
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "m2ost-guard", *map(str, (SHM / shm_prefix, owner_file(shm_prefix), runtime))],
            stdin=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        try:
            self._process = subprocess.Popen(
                command.arguments,
                env={**os.environ, **command.environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except BaseException:
            self._guard.communicate()
            raise
        assert self._guard.stdin is not None
        print(self._process.pid, file=self._guard.stdin, flush=True)
        self._at_rest = threading.Event()
        self._log = threading.Thread(
            target=self._read_log, args=(logs.Reader(probe_id), on_log), name="m2ost-server-log", daemon=True
        )
        self._log.start()

    @property
    def pid(self) -> int:
        """Process id of the tritonserver, and of its group."""
        return self._process.pid

    @property
    def shows_secret(self) -> bool:
        """Whether a secret among its arguments has not been overwritten yet."""
        return bool(self._secret_after)

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""
        return self._process.poll()

    def ended_children(self) -> tuple[int, ...]:
        """Process ids of children of the server that have ended, of which it has taken no notice yet."""
        states = {pid: stat.rpartition(")")[2].split()[:2] for pid, stat in of_all_processes("stat")}
        return tuple(pid for pid, (state, parent) in states.items() if state == "Z" and int(parent) == self.pid)

    def end(self, grace_s: float, *, whole: bool = False) -> None:
        """End the server and its models: SIGTERM and time for running requests, then SIGKILL for the group.

        Returns when all it said has been handed to ``on_log``.

        Parameters
        ----------
        grace_s : float
            Time for running requests in seconds; with 0 it is killed at once.
        whole : bool
            Whether it is to unload its models and end by itself, as it must where it writes a trace.
        """
        if grace_s:
            self._process.terminate()
            until = time.monotonic() + grace_s
            while time.monotonic() < until and self._process.poll() is None:
                if self._at_rest.is_set() and not whole:
                    time.sleep(_LAST_ANSWERS_S)
                    break
                time.sleep(_POLL_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        remove_shared_memory(self._shm_prefix)
        self._guard.communicate("all done\n")
        self._log.join(_LOG_END_S)

    def _read_log(self, reader: logs.Reader, on_log: Callable[[dict[str, Any]], None]) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            waiting = select.poll()
            waiting.register(output, select.POLLIN)
            while True:
                read = os.read(output.fileno(), _READ_BYTES) if waiting.poll(1000 * logs.BURST_S) else None
                if read == b"":
                    break
                now = time.monotonic()
                for record in reader.tick(now) if read is None else reader.feed(read, now):
                    if record.get("message") == _AT_REST:
                        self._at_rest.set()
                    if self._secret_after and record["source"] != logs.NOT_TRITONS:
                        self._hide_secret(on_log)
                    on_log(record)
            for record in reader.close():
                on_log(record)

    def _hide_secret(self, on_log: Callable[[dict[str, Any]], None]) -> None:
        try:
            hide_rest(self.pid, self._secret_after)
            self._secret_after = ""
        except OSError as error:
            on_log(
                logs.event(
                    "error", "token_not_hidden", error=f"{error}; every user of this machine could read it by ps"
                )
            )
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
