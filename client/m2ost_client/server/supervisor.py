"""A tritonserver under supervision: proved ready by real inferences, restarted when a part dies, cleaned up after."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from m2ost_contract import PROBE_SENDER, Release
from m2ost_preprocess.home import user_cache
from m2ost_preprocess.slides import SlideRoots
from m2ost_serving import several
from m2ost_serving.repository import current_models

from ..errors import ServerStartError
from . import logs
from .command import DEFAULT_PROFILE, HTTP_RISK, Command, ServerOptions, build_command, check_profile, metrics_url
from .doctor import check_start
from .host import (
    held_ports,
    host_port,
    new_shm_prefix,
    numeric_host,
    owned_shared_memory,
    sweep_shared_memory,
)
from .installation import Installation, find_installation
from .plain_paths import is_plain, temporary_parent
from .policy import START_GRACE_S, Backoff, HangWatch, StartWatch, WorkWatch
from .probe import Health, executions_so_far, probe
from .process import ServerProcess
from .security import TOKEN_ARGUMENT, probe_access
from .served_models import models_beside
from .sockets import Peer, named, peers, peers_at_end, unproved_ports

SIGNAL_S = 0.5
"""Within this a signal to this process is heeded, in seconds."""

STOP_GRACE_S = 12.0
"""Time for running requests when a server is stopped, in seconds; Triton itself takes up to ten."""


def wait_for_event(event: threading.Event, timeout_s: float | None = None) -> None:
    """Wait for an event, and heed signals meanwhile.

    The system may hand a signal to another thread than the main one. A main thread that waits for good never learns of
    it: CPython runs the handler there once the wait is over.
    """
    until = math.inf if timeout_s is None else time.monotonic() + timeout_s
    while not event.wait(max(0.0, min(SIGNAL_S, until - time.monotonic()))) and time.monotonic() < until:
        pass


@dataclass(frozen=True)
class _Run:
    """How one server ended: why, how long it had been ready, in seconds, and who was connected to it."""

    reason: str
    ready_for_s: float = 0.0
    peers: frozenset[Peer] = frozenset()


class TritonServer:
    """A supervised tritonserver; a context manager.

    The server and its models die with this process, whatever kills it. A server that was ready once and dies, whatever
    requests did to it, is started anew, after a while that grows to ``MAX_RESTART_DELAY_S``.

    Parameters
    ----------
    options : ServerOptions
    on_log : callable, optional
        Receives every log record as a dict, on the supervisor's threads. Once it raises, it is called no more.
    installation : Installation, optional
        Found on this machine by default.

    Attributes
    ----------
    releases : list of Release
        What is served, with the names of the models.
    ports : Ports
        The ports in use, chosen where 0 was asked for; no other program is given them until the server is stopped. Of
        HTTP it is None where ``options`` do not ask for it.
    shm_prefix : str
        How the names of this server's regions in /dev/shm begin.
    ready : bool
        Whether the server that runs now has answered real inferences, and listens on its ports itself.
    restarts : int
        How often the server was replaced so far, counting those that never became ready.

    Raises
    ------
    FileNotFoundError
        If the release is none.
    ManifestError
        If a manifest or a config is damaged.
    ServedNameError
        If two releases have one name.
    ServerStartError
        If there is no tritonserver, a folder has no such profile, two hold a model of one name, or a requested port is
        taken or requested twice.
    """

    def __init__(
        self,
        options: ServerOptions,
        *,
        on_log: Callable[[dict[str, Any]], None] | None = None,
        installation: Installation | None = None,
    ) -> None:
        self.options = replace(options, host=numeric_host(options.host))
        self.release = Release.open(options.release)
        self.releases = [self.release]
        if options.others:
            self.releases = several.named([self.release, *map(Release.open, options.others)])
        for folder in (options.release, *options.others, *options.beside):
            check_profile(folder, options.profile)
        self._beside = models_beside(self.releases, options.beside, options.profile)
        self.ready = False
        self.restarts = 0
        self._installation = installation or find_installation()
        self._sink = logs.Sink(on_log)
        self._said = logs.LastWords()
        self._process: ServerProcess | None = None
        # Events, because a join() that a signal interrupts takes the thread for ended (CPython 3.11).
        self._ready, self._stop, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._probe_id = f"{PROBE_SENDER}-{secrets.token_hex(8)}"
        self._failure: ServerStartError | None = None
        self._thread: threading.Thread | None = None
        self.shm_prefix = new_shm_prefix(str(os.getpid()))
        self._held = contextlib.ExitStack()
        wanted = options.ports if options.http else replace(options.ports, http=None)
        self.ports = self._held.enter_context(held_ports(self.options.host, wanted))

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
        return self._command(runtime, new_shm_prefix("printed"), self.options.credentials.ca).for_shell()

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
            for finding in check_start(self.options, self.releases, self._installation):
                self._sink(logs.event("warning", "server_warned", subject=finding.subject, reason=str(finding)))
            if self.options.http:
                self._sink(logs.event("warning", "server_warned", subject="http", reason=HTTP_RISK))
            sweep_shared_memory()
            self._held.enter_context(owned_shared_memory(self.shm_prefix))
            self._thread = threading.Thread(target=self._supervise, name="m2ost-supervisor", daemon=True)
            self._thread.start()
            wait_for_event(self._ready)
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
            If it died more often than ``max_restarts``, where there is such a number.
        """
        wait_for_event(self._ended, timeout_s)
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _command(self, runtime: Path, shm_prefix: str, client_roots: Path | None) -> Command:
        if self.options.others:
            folder = several.lay_out(self.releases, runtime)
        else:
            folder = current_models(self.release, runtime)
            if folder != self.release.folder:
                self._sink(logs.event("info", "models_renewed", release=str(self.release.folder)))
        return build_command(
            replace(self.options, release=folder),
            self._installation,
            ports=self.ports,
            shm_prefix=shm_prefix,
            runtime=runtime,
            client_roots=client_roots,
            restarts=self.restarts,
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
        backoff = Backoff()
        while not self._stop.is_set():
            run = self._run_or_reason(runtime)
            if self._stop.is_set():
                return
            # Only a first start tells of a mistake: what ends one that was ready may be over the next time.
            if not self._ready.is_set() or self.restarts == self.options.max_restarts:
                self._fail(run.reason)
                return
            self.restarts += 1
            delay_s = backoff.delay_s(run.ready_for_s)
            shown, more = named(run.peers)
            self._sink(
                logs.event(
                    "error",
                    "server_restarted",
                    reason=run.reason,
                    restarts=self.restarts,
                    next_try_s=delay_s,
                    peers=shown,
                    more_peers=more,
                )
            )
            self._stop.wait(delay_s)

    def _run_or_reason(self, runtime: Path) -> _Run:
        """As :meth:`_run_once`; of a server that was ready before, what keeps it from being started is the reason."""
        if not self._ready.is_set():
            return self._run_once(runtime)
        try:
            check_start(self.options, self.releases, self._installation)
            return self._run_once(runtime)
        except Exception as error:  # whatever it is, it may be over the next time
            return _Run(f"it could not be started anew: {error}")

    def _run_once(self, runtime: Path) -> _Run:
        """Run one server until it must be replaced or stopped."""
        began = time.monotonic()
        ready_since: float | None = None
        start, work, watch = StartWatch(START_GRACE_S), WorkWatch(), HangWatch(self.options.hang_timeout_s)
        self._said = logs.LastWords()
        # Two, for a dying process closes its connections before it has ended: the last may show them closed.
        seen = deque([peers(self.ports)], maxlen=2)
        grace_s = 0.0  # a server that must be replaced has lost a part, and would wait for it in vain
        access, client_roots = probe_access(self.options.credentials, runtime)
        process = ServerProcess(
            self._command(runtime, self.shm_prefix, client_roots),
            shm_prefix=self.shm_prefix,
            runtime=runtime,
            on_log=self._on_record,
            probe_id=self._probe_id,
            secret_after=TOKEN_ARGUMENT if access.token else "",
        )
        self._process = process

        def ended(reason: str) -> _Run:
            ready_for_s = 0.0 if ready_since is None else time.monotonic() - ready_since
            return _Run(reason, ready_for_s, peers_at_end((*seen, peers(self.ports))))

        try:
            while not self._stop.is_set():
                status = process.poll()
                if status is not None:
                    return ended(f"tritonserver ended with status {status}")
                seen.append(peers(self.ports))
                executions = executions_so_far(self.metrics_url) if ready_since is not None else {}
                health = probe(
                    self.address,
                    [release.engine for release in self.releases],
                    self._beside,
                    access=access,
                    request_id=self._probe_id,
                    at_work=work.moved(executions),
                )
                now = time.monotonic()
                if health.dead:
                    return ended(f"a Python model's process died: {', '.join(health.dead)}")
                if ready_since is None:
                    # Triton opens its metrics last, when models have long been answering; and whoever else had one of
                    # the ports first would answer in its place.
                    unproved = unproved_ports(process.pid, self.options.host, self.ports) if health.ready else ()
                    if health.ready and process.shows_secret:
                        unproved = (*unproved, "its token is still among its arguments, for everybody to see")
                    if health.ready and not unproved:
                        ready_since = now
                        self._tell(ready=True)
                        self._sink(logs.event("info", "server_ready", address=self.address, metrics=self.metrics_url))
                        self._ready.set()
                    else:
                        gone = (f"the process {pid} of a model ended as it started" for pid in process.ended_children())
                        failure = start.failed((*self._said.refusals, *gone), now)
                        if failure is not None or now - began > self.options.start_timeout_s:
                            return ended(failure or self._too_late(health, unproved))
                else:
                    hung = watch.hung(health.overdue, executions, now)
                    if hung is not None:
                        return ended(f"{hung} executed nothing for {self.options.hang_timeout_s:g} s")
                    self._tell(ready=True)
                self._pause(process, 0.2 if ready_since is None else self.options.probe_interval_s)
            grace_s = STOP_GRACE_S
            return ended("stopped")
        finally:
            self._tell(ready=False)
            self._process = None
            process.end(grace_s, whole=bool(self.options.trace or self.options.trace_otlp))

    def _tell(self, *, ready: bool) -> None:
        """Note whether the server is ready, in the file too that others look at."""
        self.ready = ready
        file = self.options.ready_file
        if file is None:
            return
        try:
            file.write_text(f"{self.address}\n", encoding="ascii") if ready else file.unlink(missing_ok=True)
        except OSError as error:
            self._sink(logs.event("error", "ready_file_unwritten", reason=str(error)))

    def _too_late(self, health: Health, unproved: tuple[str, ...]) -> str:
        heard = "; ".join(unproved) or health.words
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


def serve(
    release: Path,
    slides: Mapping[str, Path],
    *,
    profile: str = DEFAULT_PROFILE,
    on_log: Callable[[dict[str, Any]], None] | None = None,
) -> TritonServer:
    """A server of a release on this machine: ``with serve(release, {"wsi": folder}) as server: …``.

    Parameters
    ----------
    release : Path
    slides : mapping of str to Path
        Slide roots: names, and the folders that they stand for. A slide is asked for as ``name/path/below/the/folder``.
    profile : str
        Which engine and tiler: a config of the release's, by its name.
    on_log : callable, optional
        Receives every record of the server's log.

    Returns
    -------
    TritonServer
        Not started yet; a context manager, with all other options by ``TritonServer(ServerOptions(...))``.

    Raises
    ------
    As :class:`TritonServer`.
    """
    options = ServerOptions(release=release, roots=SlideRoots(dict(slides)), profile=profile)
    return TritonServer(options, on_log=on_log)
