"""A tritonserver under supervision: proved ready by real inferences, restarted when a part dies, cleaned up after."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from m2ost_preprocess.contract import Manifest
from m2ost_preprocess.home import user_cache
from m2ost_preprocess.istar.manifest import MODEL_PATCH, BaselineManifest

from . import logs
from .command import Command, ServerOptions, build_command, check_profile, metrics_url
from .doctor import check_start
from .errors import ServerStartError
from .host import (
    all_listen,
    held_ports,
    host_port,
    new_shm_prefix,
    numeric_host,
    owned_shared_memory,
    protect_shared_memory,
    sweep_shared_memory,
)
from .installation import Installation, find_installation
from .plain_paths import is_plain, temporary_parent
from .policy import START_GRACE_S, HangWatch, RestartBudget, StartWatch
from .probe import Health, executions_so_far, probe
from .process import ServerProcess

RESTRICTED_APIS = ("model-repository", "shared-memory", "statistics", "trace", "logging")
STOP_GRACE_S = 12.0
"""Time for running requests when a server is stopped, in seconds; Triton itself takes up to ten."""


class TritonServer:
    """A supervised tritonserver; a context manager.

    The server and its models die with this process, whatever kills it.

    Parameters
    ----------
    options : ServerOptions
    on_log : callable, optional
        Receives every log record as a dict, on the supervisor's threads. Once it raises, it is called no more.
    installation : Installation, optional
        Found on this machine by default.

    Attributes
    ----------
    baseline : BaselineInfo or None
        What is served beside the release.
    ports : Ports
        The ports in use, chosen where 0 was asked for; no other program is given them until the server is stopped.
    shm_prefix : str
        How the names of this server's regions in /dev/shm begin.
    restarts : int
        How often the server was replaced so far.

    Raises
    ------
    FileNotFoundError
        If the release or the baseline is none.
    ServerStartError
        If there is no tritonserver, release or baseline has no such profile, or a requested port is taken or
        requested twice.
    """

    def __init__(
        self,
        options: ServerOptions,
        *,
        on_log: Callable[[dict[str, Any]], None] | None = None,
        installation: Installation | None = None,
    ) -> None:
        self.options = replace(options, host=numeric_host(options.host))
        self.manifest = Manifest.read(options.release)
        check_profile(options.release, options.profile)
        self.baseline = None
        if options.baseline is not None:
            self.baseline = BaselineManifest.read(options.baseline).info
            check_profile(options.baseline, options.profile, MODEL_PATCH)
        self.restarts = 0
        self._installation = installation or find_installation()
        self._sink = logs.Sink(on_log)
        self._said = logs.LastWords()
        self._process: ServerProcess | None = None
        # Events, because a join() that a signal interrupts takes the thread for ended (CPython 3.11).
        self._ready, self._stop, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._failure: ServerStartError | None = None
        self._thread: threading.Thread | None = None
        self.shm_prefix = new_shm_prefix(str(os.getpid()))
        self._restricted = f"{','.join(RESTRICTED_APIS)}:m2ost-admin={secrets.token_urlsafe(16)}"
        self._held = contextlib.ExitStack()
        self.ports = self._held.enter_context(held_ports(self.options.host, options.ports))

    @property
    def address(self) -> str:
        """``host:port`` of the gRPC service."""
        return host_port(self.options.host, self.ports.grpc)

    @property
    def metrics_url(self) -> str:
        """Address of the Prometheus metrics."""
        return metrics_url(self.options.host, self.ports)

    @property
    def pid(self) -> int | None:
        """Process id of the tritonserver, or None."""
        process = self._process
        return process.pid if process is not None else None

    def print_command(self) -> str:
        """The command as one line for a shell."""
        runtime = user_cache() / "m2ost" / "runtime"
        if not is_plain(runtime):
            runtime = Path(tempfile.mkdtemp(prefix="m2ost-runtime-", dir=temporary_parent()))
        # Owned by nobody, so that no sweep takes the regions of a server that runs on without this one.
        return self._command(runtime, new_shm_prefix("printed")).for_shell()

    def start(self) -> None:
        """Start and wait until the server has answered real inferences, and listens on all its ports.

        Raises
        ------
        ServerStartError
            If the release does not fit this machine, in the words of ``m2ost doctor``; or if the server ends, a model
            of it does not start, or it is not ready within ``start_timeout_s``: quotes its last errors.
        RuntimeError
            If it was started before: a server that was stopped stays so.
        """
        if self._thread is not None or self._stop.is_set():
            raise RuntimeError("a TritonServer starts once; make a new one")
        try:
            check_start(self.options, self.manifest, self._installation)
            sweep_shared_memory()
            self._held.enter_context(owned_shared_memory(self.shm_prefix))
            self._thread = threading.Thread(target=self._supervise, name="m2ost-supervisor", daemon=True)
            self._thread.start()
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
        self._held.close()

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

    def _command(self, runtime: Path, shm_prefix: str) -> Command:
        return build_command(
            self.options,
            self._installation,
            ports=self.ports,
            shm_prefix=shm_prefix,
            restricted=self._restricted,
            runtime=runtime,
        )

    def _supervise(self) -> None:
        try:
            folder = tempfile.TemporaryDirectory(
                prefix="m2ost-server-", dir=temporary_parent(), ignore_cleanup_errors=True
            )
            with folder as runtime:
                self._keep_running(Path(runtime))
        except Exception as error:
            self._fail(f"the supervisor failed: {error!r}")
        finally:
            self._ready.set()
            self._ended.set()

    def _keep_running(self, runtime: Path) -> None:
        budget = RestartBudget(self.options.max_restarts)
        while not self._stop.is_set():
            reason, was_ready = self._run_once(runtime)
            if self._stop.is_set():
                return
            # One that was ready before is worth another try, whenever it ends: only the first start tells of a mistake.
            if not (was_ready or self.restarts) or not budget.spend(time.monotonic()):
                self._fail(reason)
                return
            self.restarts += 1
            self._sink(logs.event("error", "server_restarted", reason=reason, restarts=self.restarts))

    def _run_once(self, runtime: Path) -> tuple[str, bool]:
        """Run one server until it must be replaced or stopped; returns why, and whether it was ever ready."""
        deadline = time.monotonic() + self.options.start_timeout_s
        ready, start, watch = False, StartWatch(START_GRACE_S), HangWatch(self.options.hang_timeout_s)
        self._said = logs.LastWords()
        grace_s = 0.0  # a server that must be replaced has lost a part, and would wait for it in vain
        process = ServerProcess(
            self._command(runtime, self.shm_prefix),
            shm_prefix=self.shm_prefix,
            runtime=runtime,
            on_log=self._on_record,
        )
        self._process = process
        try:
            while not self._stop.is_set():
                status = process.poll()
                if status is not None:
                    return f"tritonserver ended with status {status}", ready
                protect_shared_memory(self.shm_prefix)
                health = probe(self.address, self.manifest.engine, self.baseline)
                now = time.monotonic()
                if health.dead:
                    return f"a Python model's process died: {', '.join(health.dead)}", ready
                # Triton opens its metrics last, when models have long been answering.
                if not ready and health.ready and all_listen(self.options.host, self.ports):
                    ready = True
                    self._sink(logs.event("info", "server_ready", address=self.address, metrics=self.metrics_url))
                    self._ready.set()
                elif not ready:
                    ended = (f"the process {pid} of a model ended as it started" for pid in process.ended_children())
                    failure = start.failed((*self._said.refusals, *ended), now)
                    if failure is not None or now > deadline:
                        return failure or self._too_late(health), False
                if ready:
                    executions = executions_so_far(self.metrics_url) if health.overdue else {}
                    hung = watch.hung(health.overdue, executions, now)
                    if hung is not None:
                        return f"{hung} executed nothing for {self.options.hang_timeout_s:g} s", True
                self._pause(process, self.options.probe_interval_s if ready else 0.2)
            grace_s = STOP_GRACE_S
            return "stopped", ready
        finally:
            self._process = None
            process.end(grace_s)

    def _too_late(self, health: Health) -> str:
        heard = health.words or "its models answer, and not all of its ports do"
        loading = f"; still loading: {', '.join(self._said.loading)}" if self._said.loading else ""
        return f"not ready within {self.options.start_timeout_s:g} s ({heard}{loading})"

    def _pause(self, process: ServerProcess, seconds: float) -> None:
        """Sleep, but wake at once when the server ends or a stop is asked for."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and process.poll() is None:
            if self._stop.wait(min(0.1, seconds)):
                return

    def _on_record(self, record: dict[str, Any]) -> None:
        self._said.add(record)
        self._sink(record)

    def _fail(self, reason: str) -> None:
        quoted = "".join(f"\n  {line}" for line in self._said.lines())
        self._failure = ServerStartError(f"the server on {self.address} was given up: {reason}{quoted}")
        self._sink(logs.event("error", "server_given_up", reason=reason))
