"""A tritonserver under supervision: proved ready by real inferences, restarted when a part dies, cleaned up after."""

from __future__ import annotations

import collections
import contextlib
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m2ost_preprocess.contract import MODEL_ENGINE, Manifest
from m2ost_preprocess.slides import SlideRoots

from . import logs
from .errors import ServerStartError
from .host import SHM, SHM_PREFIX, Ports, choose_ports, sweep_shared_memory
from .installation import Installation, find_installation
from .probe import Health, executions_so_far, probe

RESTRICTED_APIS = ("model-repository", "shared-memory", "statistics", "trace", "logging")
STOP_GRACE_S = 12.0
"""Time for running requests when a server is stopped, in seconds; Triton itself takes up to ten."""

DEFAULT_PROFILE = "cpu"
ENV_METRICS_URL = "M2OST_METRICS_URL"
"""Environment variable of the server: where its own metrics are read."""

_GUARD = 'read -r group || exit; read -r done || { kill -s KILL -- "-$group"; rm -rf "$1"* "$2"; }'
"""A shell that outlives this process by a moment. Told the server's process group, it waits; if its input ends without
a last word, this process was killed, and it ends the whole group: a Python model that is busy when tritonserver dies
would otherwise wait for it for ever."""


@dataclass(frozen=True)
class ServerOptions:
    """How a release is served.

    Parameters
    ----------
    release : Path
        The release folder.
    roots : SlideRoots
        Folders that slides are read from.
    host : str
        Address to listen on. The embedded tritonserver has known advisories: keep it on loopback.
    ports : Ports
        Ports to listen on.
    profile : str
        Triton's ``--model-config-name``.
    start_timeout_s : float
        Longest time until ready, in seconds.
    probe_interval_s : float
        Time between two liveness probes, in seconds.
    hang_timeout_s : float
        A server that neither answers a probe nor executes anything for this long is hung.
    max_restarts : int
        Restarts within ten minutes after which the server is given up; one that is not ready again is at once.
    """

    release: Path
    roots: SlideRoots = field(default_factory=lambda: SlideRoots({}))
    host: str = "127.0.0.1"
    ports: Ports = field(default_factory=Ports)
    profile: str = DEFAULT_PROFILE
    start_timeout_s: float = 120.0
    probe_interval_s: float = 5.0
    hang_timeout_s: float = 120.0
    max_restarts: int = 5


class TritonServer:
    """A supervised tritonserver; a context manager.

    The server and its models die with this process, whatever kills it.

    Parameters
    ----------
    options : ServerOptions
    on_log : callable, optional
        Receives every log record as a dict, on the supervisor's threads.
    installation : Installation, optional
        Found on this machine by default.

    Attributes
    ----------
    ports : Ports
        The ports in use, chosen where 0 was asked for.
    shm_prefix : str
        How the names of this server's regions in /dev/shm begin.
    restarts : int
        How often the server was replaced so far.

    Raises
    ------
    FileNotFoundError
        If the release is none.
    ServerStartError
        If there is no tritonserver, the release has no such profile, or a requested port is taken.
    """

    def __init__(
        self,
        options: ServerOptions,
        *,
        on_log: Callable[[dict[str, Any]], None] | None = None,
        installation: Installation | None = None,
    ) -> None:
        self.options = options
        self.manifest = Manifest.read(options.release)
        _check_profile(options)
        self.restarts = 0
        self._installation = installation or find_installation()
        self._on_log = on_log or (lambda record: None)
        self._tail: collections.deque[str] = collections.deque(maxlen=40)
        self._process: subprocess.Popen[str] | None = None
        self._guard: subprocess.Popen[str] | None = None
        # Events, because a join() that a signal interrupts takes the thread for ended (CPython 3.11).
        self._ready, self._stop, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._failure: ServerStartError | None = None
        self._thread: threading.Thread | None = None
        self._runtime: Path | None = None
        self.shm_prefix = f"{SHM_PREFIX}{os.getpid()}-{secrets.token_hex(4)}-"
        self._admin_key = secrets.token_urlsafe(16)
        self.ports = choose_ports(options.host, options.ports)

    @property
    def address(self) -> str:
        """``host:port`` of the gRPC service."""
        return f"{self.options.host}:{self.ports.grpc}"

    @property
    def metrics_url(self) -> str:
        """Address of the Prometheus metrics."""
        return f"http://{self.options.host}:{self.ports.metrics}/metrics"

    @property
    def pid(self) -> int | None:
        """Process id of the tritonserver, or None."""
        return self._process.pid if self._process is not None else None

    def command(self, runtime: Path) -> tuple[list[str], dict[str, str]]:
        """The command line and the environment variables it needs."""
        options, ports = self.options, self.ports
        key = f"m2ost-admin={self._admin_key}"
        command = [
            str(self._installation.executable),
            f"--model-repository={options.release.resolve()}",
            f"--model-config-name={options.profile}",
            "--model-control-mode=none",
            "--disable-auto-complete-config",
            "--strict-readiness=true",
            "--exit-on-error=true",
            "--exit-timeout-secs=10",
            f"--backend-config=python,shm-region-prefix-name={self.shm_prefix}",
            f"--grpc-address={options.host}",
            f"--grpc-port={ports.grpc}",
            f"--http-address={options.host}",
            f"--http-port={ports.http}",
            f"--metrics-address={options.host}",
            f"--metrics-port={ports.metrics}",
            f"--grpc-restricted-protocol={','.join(RESTRICTED_APIS)}:{key}",
            f"--http-restricted-api={','.join(RESTRICTED_APIS)}:{key}",
        ]
        backends = self._installation.backend_directory(runtime)
        if backends is not None:
            command.append(f"--backend-directory={backends}")
        return command, {
            **self._installation.environment,
            **options.roots.to_environment(),
            ENV_METRICS_URL: self.metrics_url,
        }

    def print_command(self) -> str:
        """The command as one line for a shell."""
        runtime = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "m2ost" / "runtime"
        command, environment = self.command(runtime)
        return " ".join([*(f"{k}={shlex.quote(v)}" for k, v in environment.items()), shlex.join(command)])

    def start(self) -> None:
        """Start and wait until the server has answered real inferences.

        Raises
        ------
        ServerStartError
            If it does not within ``start_timeout_s``; quotes the server's last errors.
        """
        sweep_shared_memory()
        self._runtime = Path(tempfile.mkdtemp(prefix="m2ost-server-"))
        self._thread = threading.Thread(target=self._supervise, name="m2ost-supervisor", daemon=True)
        self._thread.start()
        try:
            self._ready.wait()
        except BaseException:
            self.stop()
            raise
        if self._failure is not None:
            self.stop()
            raise self._failure

    def stop(self) -> None:
        """Stop the server, let its running requests finish, and remove what it left behind."""
        self._stop.set()
        if self._thread is not None:
            self._ended.wait()
            self._thread.join()
            self._thread = None
        if self._runtime is not None:
            shutil.rmtree(self._runtime, ignore_errors=True)
            self._runtime = None

    def wait(self, timeout_s: float | None = None) -> None:
        """Block until the server is stopped or given up.

        Raises
        ------
        ServerStartError
            If it died more often than ``max_restarts``.
        """
        self._ended.wait(timeout_s)
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _supervise(self) -> None:
        started: collections.deque[float] = collections.deque(maxlen=self.options.max_restarts + 1)
        try:
            while not self._stop.is_set():
                started.append(time.monotonic())
                reason, was_ready = self._run_once()
                if self._stop.is_set():
                    return
                gave_up = len(started) == started.maxlen and started[-1] - started[0] < 600
                if not was_ready or gave_up:
                    self._fail(reason)
                    return
                self.restarts += 1
                self._on_log(logs.event("error", "server_restarted", reason=reason, restarts=self.restarts))
        except Exception as error:
            self._fail(f"the supervisor failed: {error!r}")
        finally:
            self._ready.set()
            self._ended.set()

    def _run_once(self) -> tuple[str, bool]:
        """Run one server until it must be replaced or stopped; returns why, and whether it was ever ready."""
        deadline = time.monotonic() + self.options.start_timeout_s
        answered, executions = 0.0, 0.0
        grace_s = 0.0  # a server that must be replaced has lost a part, and would wait for it in vain
        try:
            process = self._spawn()
            while not self._stop.is_set():
                if process.poll() is not None:
                    return f"tritonserver ended with status {process.returncode}", answered > 0
                health = probe(self.address, self.manifest.engine)
                now = time.monotonic()
                if health is Health.READY:
                    if not answered:
                        self._on_log(logs.event("info", "server_ready", address=self.address, metrics=self.metrics_url))
                        self._ready.set()
                    answered = now
                elif health is Health.DEAD_STUB:
                    return "a Python model's process died", answered > 0
                elif not answered and now > deadline:
                    return f"not ready within {self.options.start_timeout_s:g} s", False
                elif answered:
                    # A probe waits behind other requests: as long as those get done, the server is busy, not hung.
                    before, executions = executions, executions_so_far(self.metrics_url)
                    if executions != before:
                        answered = now
                    elif now - answered > self.options.hang_timeout_s:
                        return f"nothing executed for {self.options.hang_timeout_s:g} s", True
                self._pause(process, self.options.probe_interval_s if answered else 0.2)
            grace_s = STOP_GRACE_S
            return "stopped", answered > 0
        finally:
            self._kill(grace_s)

    def _pause(self, process: subprocess.Popen[str], seconds: float) -> None:
        """Sleep, but wake at once when the server ends or a stop is asked for."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and process.poll() is None:
            if self._stop.wait(min(0.1, seconds)):
                return

    def _spawn(self) -> subprocess.Popen[str]:
        assert self._runtime is not None
        command, environment = self.command(self._runtime)
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "m2ost-guard", str(SHM / self.shm_prefix), str(self._runtime)],
            stdin=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert self._guard.stdin is not None
        print(self._process.pid, file=self._guard.stdin, flush=True)
        threading.Thread(target=self._read_log, args=(self._process,), name="m2ost-server-log", daemon=True).start()
        return self._process

    def _read_log(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                record = logs.parse_line(line)
                if record is None:
                    continue
                if record["level"] in ("warning", "error"):
                    self._tail.append(str(record.get("message", record)))
                self._on_log(record)

    def _kill(self, grace_s: float) -> None:
        """End the server and its stubs: SIGTERM and time for running requests, then SIGKILL for the group."""
        process, self._process = self._process, None
        if process is None:
            return
        if grace_s:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=grace_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for leftover in SHM.glob(f"{self.shm_prefix}*"):
            leftover.unlink(missing_ok=True)
        if self._guard is not None:
            self._guard.communicate("all done\n")

    def _fail(self, reason: str) -> None:
        quoted = "".join(f"\n  {line}" for line in list(self._tail)[-8:])
        self._failure = ServerStartError(f"the server on {self.address} was given up: {reason}{quoted}")
        self._on_log(logs.event("error", "server_given_up", reason=reason))


def _check_profile(options: ServerOptions) -> None:
    """Triton takes the default config for a profile it does not find; here that is an error."""
    configs = options.release / MODEL_ENGINE / "configs"
    known = [DEFAULT_PROFILE, *sorted(path.stem for path in configs.glob("*.pbtxt"))]
    if options.profile not in known:
        raise ServerStartError(f"{options.release} has no profile {options.profile!r}; it has {', '.join(known)}")
