"""What makes Locust count spots: its options, and the listeners that prepare a load and report on it."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import gevent
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.event import Events
from locust.runners import MasterRunner, WorkerRunner
from m2ost_client.credentials import Credentials

from ..errors import LoadTestError, TargetError
from ..triton_statistics import Counts, read_settled_metrics, server_figures
from .channel import Channel, let_grpc_yield
from .load_report import LoadReport
from .session import Session, prepare, process_of
from .shapes import StepShape
from .users import ModelUser, SlideUser
from .workload import Load

_log = logging.getLogger("locust.stats_logger")
_MESSAGE_KEY = "m2ost"
_CHOSEN = "m2ost_users"
"""Among the options, which a master sends to its workers: names of the classes of users that it runs."""
_READY, _GO = "m2ost_ready", "m2ost_go"
_FINISH, _FINISHED = "m2ost_finish", "m2ost_finished"
_FINISH_TIMEOUT_S = 30.0
"""Beyond Locust's ``--stop-timeout``, how long the master waits for what its workers counted last, in seconds."""


def register(events: Events) -> None:
    """Add the options and listeners to Locust's ``events``; a locustfile calls this once."""
    events.init_command_line_parser.add_listener(_add_options)
    events.init.add_listener(_on_init)


def _add_options(parser: LocustArgumentParser) -> None:
    """Options of a load. ``--host`` is the address of the gRPC service."""
    group = parser.add_argument_group("M2OST", "Loads of spots; --host is host:port of the server's gRPC service.")
    default = Load()

    def add(flag: str, kind: Any, help_text: str, initial: Any = None, **more: Any) -> None:
        variable = "M2OST_" + flag.removeprefix("--").replace("-", "_").upper()
        group.add_argument(flag, type=kind, default=initial, env_var=variable, help=help_text, **more)

    add(
        "--slide",
        str,
        "Slide on the server, root/relative/path; repeatable, the most popular first.",
        [],
        action="append",
    )
    add("--model", str, "Name of the release, if the server has several.", "")
    add("--tls-ca", str, "PEM of the authorities of the server's certificate: turns TLS on.", "")
    add("--token-file", str, "File whose only line is the token that the server wants.", "")
    add("--metrics-url", str, "The server's metrics: batch sizes reached and time in queues are then reported.", "")
    add("--spots", int, "Spots a request of interactive users.", default.spots)
    add("--archive-spots", int, "Spots a request of archive users.", default.archive_spots)
    add("--archive-share", float, "Share of the users that are archive traffic, 0 to 1.", default.archive_share)
    add("--zipf-exponent", float, "Of the slides' popularity; 0: all equal.", default.zipf_exponent)
    add(
        "--arrival-rate",
        float,
        "Open load: requests/s of each user, answered or not. 0: closed load.",
        default.arrival_rate,
    )
    group.add_argument(
        "--poisson", action="store_true", env_var="M2OST_POISSON", help="Open load: exponentially distributed gaps."
    )
    add(
        "--max-in-flight",
        int,
        "Open load: most unanswered requests of a user; more fail unsent.",
        default.max_in_flight,
    )
    add("--think-s", float, "Closed load: pause after an answer, in seconds.", default.think_s)
    add("--pitch-um", float, "Pitch of the slides' grid of spots in µm.", default.pitch_um)
    add("--mpp", float, "µm/px of the slides, in place of what their files say.", default.mpp)
    add("--spot-diameter-um", float, "istar_slide: diameter of a spot in µm.", default.spot_diameter_um)
    add("--deadline-s", float, "Deadline of a request in seconds.", default.deadline_s)
    add("--seed", int, "Of slides and spots drawn.", default.seed)
    add("--step-users", int, "Step load: users added with every step (in place of --users). 0: no steps.", 0)
    add("--step-s", float, "Step load: length of a step in seconds.", 30.0)
    add("--steps", int, "Step load: number of steps.", 5)


def _load_of(options: Any) -> Load:
    try:
        return Load(**{field.name: getattr(options, field.name) for field in fields(Load)})
    except ValueError as error:
        raise TargetError(str(error)) from error


def _credentials_of(options: Any) -> Credentials:
    """What the options give, which a master sends to its workers; the rest from this process's environment."""
    ca, token_file = (Path(given) if given else None for given in (options.tls_ca, options.token_file))
    return Credentials.from_environment(ca=ca, token_file=token_file)


def _on_init(environment: Environment, runner: Any, **_: Any) -> None:
    """After Locust has forked its workers: gRPC may start."""
    let_grpc_yield()
    options = environment.parsed_options
    assert options is not None
    if not (options.user_classes or options.class_picker or isinstance(runner, WorkerRunner)):
        environment.user_classes = [SlideUser]  # not all models, which few servers have
    listeners = _Listeners(environment)
    events = environment.events
    events.test_start.add_listener(listeners.on_test_start)
    events.spawning_complete.add_listener(listeners.on_spawning_complete)
    events.reset_stats.add_listener(listeners.on_reset)
    if isinstance(runner, WorkerRunner):
        events.report_to_master.add_listener(listeners.on_report_to_master)
        runner.register_message(_GO, listeners.on_go)
        runner.register_message(_FINISH, listeners.on_finish, concurrent=True)
        if options.processes:  # forked with the master's options: what fails there fails here too, and is said there
            listeners.check_or_exit(say=False)
        return
    if isinstance(runner, MasterRunner):
        events.worker_report.add_listener(listeners.on_worker_report)
        runner.register_message(_READY, listeners.on_ready)
        runner.register_message(_FINISHED, listeners.on_finished)
        events.test_stop.add_listener(listeners.wait_for_workers)
    if options.step_users:
        if options.step_users < 0 or options.step_s <= 0 or options.steps < 1:
            sys.exit("error: --step-users, --step-s and --steps must be positive")
        rate = options.spawn_rate or 100.0
        shape = StepShape(step_users=options.step_users, step_s=options.step_s, steps=options.steps, spawn_rate=rate)
        shape.runner = runner
        environment.shape_class = shape
    if options.headless:
        listeners.check_or_exit(say=True)
        events.quit.add_listener(listeners.on_quit)
    else:
        events.test_stop.add_listener(listeners.on_test_stop)


class _Listeners:
    """Of one Locust process."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._process = process_of(environment)
        self._before: Counts = {}
        self._facts: Session | None = None
        self._prepared: Session | None = None
        self._ready: set[str] = set()
        self._unfinished: set[str] = set()

    @property
    def _options(self) -> Any:
        return self._environment.parsed_options

    def prepare(self) -> Session:
        """Ask the server all that the load needs.

        Raises
        ------
        TargetError
            If it cannot be.
        """
        if not self._environment.host:
            raise TargetError("no server given: name host:port of its gRPC service with --host (-H)")
        users = self._environment.user_classes
        if not self._reports:  # a worker knows all classes, and runs those that its master chose
            chosen = getattr(self._options, _CHOSEN, None) or self._options.user_classes or [SlideUser.__name__]
            users = [user for user in users if user.__name__ in chosen]
        models = [user.model for user in users if issubclass(user, ModelUser)]
        address = self._environment.host.removeprefix("grpc://")
        load, credentials, release = _load_of(self._options), _credentials_of(self._options), self._options.model
        return prepare(address, self._options.slide, models, load, credentials, release or None)

    def check_or_exit(self, *, say: bool) -> None:
        """Prepare the load; where it cannot be, end the process with status 1 before there are users."""
        try:
            self._prepared = self.prepare()
            self.read_metrics()
        except LoadTestError as error:
            sys.exit(f"error: {error}" if say else 1)

    def read_metrics(self) -> Counts:
        """The server's counts so far; none without ``--metrics-url``."""
        return read_settled_metrics(self._options.metrics_url) if self._options.metrics_url else {}

    def on_test_start(self, **_: Any) -> None:
        """A test begins: forget the last, prepare this."""
        self._ready.clear()
        self._process.go.clear()
        self._process.statistics.clear()
        self._close()
        if self._reports:
            setattr(self._options, _CHOSEN, [user.__name__ for user in self._environment.user_classes])
        try:
            # Prepared before Locust's clock runs, where it could be: a run time of a second is a second of load.
            session = self._prepared or self.prepare()
            self._prepared = None
            session.worker = max(0, getattr(self._environment.runner, "worker_index", 0))  # known once it is connected
            self._before = self.read_metrics() if self._reports else {}
        except LoadTestError as error:
            self._process.error = error
            logging.error("%s", error)
        else:
            self._process.error = None
            self._facts = self._process.session = session
        self._tell_ready()

    def _tell_ready(self) -> None:
        """Have this process's users begin: on a worker, once every other is prepared too.

        Those that began first would keep the server from answering what the others ask it to prepare.
        """
        runner = self._environment.runner
        if isinstance(runner, WorkerRunner):
            runner.send_message(_READY)
        else:
            self._process.go.set()

    def on_ready(self, msg: Any, **_: Any) -> None:
        """On the master: a worker is prepared; when all are, their users begin."""
        runner = self._environment.runner
        assert isinstance(runner, MasterRunner)
        self._ready.add(msg.node_id)
        if self._ready >= {worker.id for worker in runner.clients.all} - {
            worker.id for worker in runner.clients.missing
        }:
            runner.send_message(_GO)

    def on_go(self, **_: Any) -> None:
        """On a worker: all are prepared."""
        self._process.go.set()

    def _close(self) -> None:
        if self._process.session is not None:
            self._process.session.channel.close()
            self._process.session = None

    @property
    def _reports(self) -> bool:
        return not isinstance(self._environment.runner, WorkerRunner)

    def on_spawning_complete(self, **_: Any) -> None:
        """With Locust's ``--reset-stats``, figures begin when all users are there."""
        if self._environment.reset_stats:
            self.on_reset()

    def on_reset(self, **_: Any) -> None:
        """Begin anew."""
        self._process.statistics.clear()
        if self._reports:
            self._before = self.read_metrics()

    def on_report_to_master(self, client_id: str, data: dict[str, Any]) -> None:
        """A worker tells what it has counted since it last did."""
        data[_MESSAGE_KEY] = self._process.statistics.take()

    def on_worker_report(self, client_id: str, data: dict[str, Any]) -> None:
        """The master adds it."""
        if _MESSAGE_KEY in data:
            self._process.statistics.merge(data[_MESSAGE_KEY])

    def wait_for_workers(self, **_: Any) -> None:
        """On the master, at the end of a test: have all workers finish, and hear from each.

        Left to itself, Locust's master gives its workers half a second to report after they were told to quit, and what
        users were waiting for longer, under ``--stop-timeout``, is lost.
        """
        runner = self._environment.runner
        assert isinstance(runner, MasterRunner)
        self._unfinished = {worker.id for worker in runner.clients.all}
        runner.send_message(_FINISH)
        deadline = time.monotonic() + self._environment.stop_timeout + _FINISH_TIMEOUT_S
        while self._unfinished and time.monotonic() < deadline:
            gevent.sleep(0.05)
            gone = {worker.id for worker in runner.clients.missing}
            self._unfinished &= {worker.id for worker in runner.clients.all} - gone
        if self._unfinished:
            logging.error("no final report from %d workers: the figures lack theirs", len(self._unfinished))

    def on_finish(self, environment: Environment, **_: Any) -> None:
        """On a worker: let its users finish, then tell what is left to tell."""
        runner = environment.runner
        assert isinstance(runner, WorkerRunner)
        runner.stop()
        runner.send_message(_FINISHED, self._process.statistics.take())

    def on_finished(self, msg: Any, **_: Any) -> None:
        """On the master: add it."""
        self._process.statistics.merge(msg.data)
        self._unfinished.discard(msg.node_id)

    def on_test_stop(self, **_: Any) -> None:
        """In the web interface every test has its report, and none ends the process."""
        report = self._report()
        if report is not None:
            self._write(report)

    def on_quit(self, exit_code: int, **_: Any) -> None:
        """Without it, the report comes when the last worker has told all."""
        report = self._report()
        if report is not None:
            self._write(report)
            self._append_to_page(report)

    def _report(self) -> LoadReport | None:
        session = self._facts
        if session is None:
            return None
        shape = self._environment.shape_class
        stages = shape.stages() if isinstance(shape, StepShape) else []
        return LoadReport(
            address=session.channel.address,
            server=_version(session.channel),
            users=[user.__name__ for user in self._environment.user_classes],
            slides={slide.slide: len(slide.centers) for slide in session.slides},
            load=asdict(session.load),
            priority=session.priority_levels,
            models=server_figures(self._before, self.read_metrics()) if self._before else {},
            **self._process.statistics.summary(stages),
        )

    def _write(self, report: LoadReport) -> None:
        _log.info("%s\n", report.to_text())
        prefix = self._options.csv_prefix
        if prefix:
            Path(f"{prefix}_spots.csv").write_text(report.to_csv(), encoding="utf-8")
            Path(f"{prefix}_spots.json").write_text(report.to_json(), encoding="utf-8")

    def _append_to_page(self, report: LoadReport) -> None:
        """Locust's own page has no place for further figures: they follow it."""
        page = Path(self._options.html_file) if self._options.html_file else None
        if page is not None and page.exists():
            before, end, after = page.read_text(encoding="utf-8").rpartition("</body>")
            page.write_text(f"{before}{report.to_html()}{end}{after}", encoding="utf-8")


def _version(asked: Channel) -> str:
    """Name and version of the server, by a channel of its own."""
    try:
        channel = Channel(asked.address, asked.credentials)
        try:
            return channel.server_version()
        finally:
            channel.close()
    except TargetError:
        return "no longer there"
