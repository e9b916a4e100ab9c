"""How a release is served: the options, and the command line and environment of tritonserver that they come to."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from m2ost_contract import ENV_DECODER_TRACE, ENV_RESTARTS, METRICS_URL_ENV, MODEL_ENGINE, NO_TELEMETRY
from m2ost_preprocess.network import host_of, is_here
from m2ost_preprocess.slides import SlideRoots
from m2ost_serving.repository import template_profiles

from ..credentials import Credentials
from ..errors import ServerStartError
from ..tracing import otlp_url
from .host import Ports, host_port
from .installation import Installation
from .plain_paths import plain_path
from .security import TOKEN_ARGUMENT, tls_arguments

LAUNCH = Path(__file__).with_name("launch.py")

RESTRICTED_APIS = ("model-repository", "shared-memory", "statistics", "trace", "logging")
CLOSED = "m2ost:CLOSED=to-all"
"""The header and its value that open a restricted API. Triton wants some, and shows them to whoever lists processes or
asks for such an API; no header of HTTP, and none of gRPC, has a colon in its name."""

KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS = 60_000, 20_000
"""Without a word from a client for so long, gRPC asks whether it is there; without an answer for so long, it is not."""

DEFAULT_PROFILE = "cpu"

CUDA_POOL_BYTES = 1 << 30
"""Of every GPU, for tensors between models: the views of all requests that may wait, at 32 rows. Triton's own choice is
64 MiB; the largest batch has 110."""

HTTP_RISK = (
    "one HTTP request with deeply nested JSON, or in many chunks (CVE-2025-23310, CVE-2025-23311), ends tritonserver "
    "2.51; put a proxy before it that bounds the size and the depth of bodies and passes none on in chunks"
)
"""Why a server speaks HTTP only where it is asked to."""

TRACED_AS = "m2ost-server"
"""What a receiver of traces calls a server."""

MOST_GPUS = 16
"""Triton passes over the pools of GPUs that are not there."""


@dataclass(frozen=True)
class ServerOptions:
    """How a release is served.

    Parameters
    ----------
    release : Path
        The release folder.
    roots : SlideRoots
        Folders that slides are read from.
    others : tuple of Path
        Further releases. Each is served under the name that it was given at its export then, and the first is too.
    beside : tuple of Path
        Further model repositories, of whatever systems, served beside the release. Each has a ``manifest.json`` whose
        ``files`` give the sha256 of its files by their paths.
    host : str
        Address to listen on, or a name of this machine. The embedded tritonserver has known advisories: keep it on
        loopback.
    ports : Ports
        Ports to listen on.
    http : bool
        Whether to speak HTTP too, beside gRPC and metrics: see :data:`HTTP_RISK`.
    credentials : Credentials
        Certificate and key make the server speak TLS over gRPC, and nothing else; ``ca`` has its clients show a
        certificate, and a token is asked for before anything but health is answered. None of them covers HTTP, which
        is refused beside them, nor the metrics.
    profile : str
        Triton's ``--model-config-name``.
    trace : Path, optional
        Where the server writes Triton's trace of every request as it ends; beside it, at :func:`decoder_trace`, its
        decoders write theirs.
    trace_otlp : str, optional
        Address of a receiver of OTLP over HTTP, which is told of every request that carries a W3C context: see
        :func:`m2ost_client.tracing.otlp_url`. A server writes no ``trace`` beside it.
    ready_file : Path, optional
        A file that is there while the server is ready, and written anew with each look that finds nothing wrong, for
        the probes of containers: Triton itself says that it is ready when a model's process has died.
    start_timeout_s : float
        Longest time until ready, in seconds.
    probe_interval_s : float
        Time between two liveness probes, in seconds.
    hang_timeout_s : float
        A model that neither answers a probe nor executes anything for this long is hung, and the server replaced. A
        slide's reader that hangs has long been stopped by its own limit then, at the cost of that slide alone.
    max_restarts : int, optional
        Restarts after which the server is given up, for a run that is worth nothing once its server has died; by
        default none are too many. One whose first start fails is given up at once.
    """

    release: Path
    roots: SlideRoots = field(default_factory=lambda: SlideRoots({}))
    others: tuple[Path, ...] = ()
    beside: tuple[Path, ...] = ()
    host: str = "127.0.0.1"
    ports: Ports = field(default_factory=Ports)
    http: bool = False
    credentials: Credentials = field(default_factory=Credentials)
    profile: str = DEFAULT_PROFILE
    trace: Path | None = None
    trace_otlp: str | None = None
    ready_file: Path | None = None
    start_timeout_s: float = 120.0
    probe_interval_s: float = 5.0
    hang_timeout_s: float = 360.0
    max_restarts: int | None = None

    def __post_init__(self) -> None:
        if self.trace_otlp is None:
            return
        otlp_url(self.trace_otlp)
        if self.trace is not None:
            raise ServerStartError(
                "a server hands its trace to a file or to a receiver, not to both; leave --trace or --trace-otlp out"
            )


@dataclass(frozen=True)
class Command:
    """What to run.

    Parameters
    ----------
    arguments : list of str
        The program and its arguments.
    environment : dict
        Variables it needs on top of the caller's.
    """

    arguments: list[str]
    environment: dict[str, str]

    def for_shell(self) -> str:
        """One line for a shell."""
        variables = (f"{name}={shlex.quote(value)}" for name, value in self.environment.items())
        return " ".join([*variables, shlex.join(self.arguments)])


def build_command(
    options: ServerOptions,
    installation: Installation,
    *,
    ports: Ports,
    shm_prefix: str,
    runtime: Path,
    client_roots: Path | None = None,
    restarts: int = 0,
) -> Command:
    """The command that serves a release.

    Parameters
    ----------
    options : ServerOptions
        With the host as digits.
    installation : Installation
    ports : Ports
        The ports in use: none is 0.
    shm_prefix : str
        How the names of the server's regions in /dev/shm begin.
    runtime : Path
        Folder for what is laid out for this server; its path is plain.
    client_roots : Path, optional
        Certificates of whoever signs those of clients; without them clients need show none.
    restarts : int
        How often the server was replaced so far, for its metrics.
    """
    repositories = [folder.resolve() for folder in (options.release, *options.beside)]
    # The HTTP server takes an IPv6 address for such by this prefix, and else binds another one without a word.
    http_host = f"ipv6:{options.host}" if ":" in options.host else options.host
    grpc_host = host_port(options.host, 0).removesuffix(":0")
    restricted = f"{','.join(RESTRICTED_APIS)}:{CLOSED}"
    token_file = options.credentials.token_file
    arguments = [
        *(str(installation.interpreter() or sys.executable), "-I", "-S", str(LAUNCH)),
        *(("--end-with", str(token_file.absolute()), TOKEN_ARGUMENT) if token_file else ()),
        str(installation.executable),
        *(f"--model-repository={plain_path(folder, runtime)}" for folder in repositories),
        f"--model-config-name={options.profile}",
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        "--strict-readiness=true",
        "--exit-on-error=true",
        "--exit-timeout-secs=10",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        f"--grpc-address={grpc_host}",
        f"--grpc-port={ports.grpc}",
        f"--allow-http={str(options.http).lower()}",
        f"--metrics-address={http_host}",
        f"--metrics-port={ports.metrics}",
        f"--grpc-restricted-protocol={restricted}",
        # Else eight requests are kept for the next ones to be read into, however large they were.
        "--grpc-infer-allocation-pool-size=0",
        # Else a connection whose client is gone is kept for hours.
        f"--grpc-keepalive-time={KEEPALIVE_MS}",
        f"--grpc-keepalive-timeout={KEEPALIVE_TIMEOUT_MS}",
        "--grpc-keepalive-permit-without-calls=1",
        "--grpc-http2-max-pings-without-data=0",
        *tls_arguments(options.credentials, client_roots),
    ]
    if options.http:
        arguments += [
            f"--http-address={http_host}",
            f"--http-port={ports.http}",
            f"--http-restricted-api={restricted}",
        ]
    on_gpu = not options.profile.startswith(DEFAULT_PROFILE)
    if on_gpu:
        arguments += [f"--cuda-memory-pool-byte-size={gpu}:{CUDA_POOL_BYTES}" for gpu in range(MOST_GPUS)]
        # What the pool has no room for goes through the host, and must not go through pinned memory: of that, the
        # Python backend's GPU tensors arrive as whatever was there before (python_backend, PbMemory::CopyBuffer).
        arguments.append("--pinned-memory-pool-byte-size=0")
    if options.trace is not None:
        settings = (f"triton,file={options.trace}", "rate=1", "level=TIMESTAMPS", "count=-1")
        arguments += [f"--trace-config={setting}" for setting in settings]
    if options.trace_otlp is not None:
        arguments += [f"--trace-config={setting}" for setting in _to_receiver(otlp_url(options.trace_otlp))]
    backends = installation.backend_directory(runtime)
    if backends is not None:
        arguments.append(f"--backend-directory={backends}")
    environment = {
        **{name: os.environ.get(name, value) for name, value in NO_TELEMETRY.items()},
        **installation.environment,
        **options.roots.to_environment(),
        METRICS_URL_ENV: metrics_url(options.host, ports),
        # Else each of the server's threads keeps what it freed of the requests' views, and the server grows for hours.
        "MALLOC_ARENA_MAX": os.environ.get("MALLOC_ARENA_MAX", "1"),
    }
    if on_gpu:
        environment["NVIDIA_TF32_OVERRIDE"] = "0"  # ONNX Runtime's TensorRT provider can be told in no other way
        # A folder of this server's own: the home of a container's user may not be one that it can write to.
        environment["CUPY_CACHE_DIR"] = os.environ.get("CUPY_CACHE_DIR", str(runtime / "cupy"))
    if restarts:
        environment[ENV_RESTARTS] = str(restarts)
    receiver = host_of(options.trace_otlp or "")
    if receiver and is_here(receiver):  # a proxy elsewhere would ask itself
        exceptions = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        environment["no_proxy"] = f"{exceptions},{receiver}" if exceptions else receiver
    if options.trace is not None:
        environment[ENV_DECODER_TRACE] = str(decoder_trace(options.trace))
    return Command(arguments, environment)


def _to_receiver(url: str) -> tuple[str, ...]:
    """Triton's settings that hand over the traces of requests which carry a context: those of probes do not."""
    receiver = f"opentelemetry,url={url}", f"opentelemetry,resource=service.name={TRACED_AS}"
    return "mode=opentelemetry", "rate=0", "level=TIMESTAMPS", *receiver


def decoder_trace(trace: Path) -> Path:
    """Where decoders note when they read and cut, for a server that leaves its trace at ``trace``."""
    return trace.with_suffix(".decoders.jsonl")


def metrics_url(host: str, ports: Ports) -> str:
    """Address of a server's Prometheus metrics."""
    return f"http://{host_port(host, ports.metrics)}/metrics"


def check_profile(folder: Path, profile: str) -> None:
    """Triton takes the default config for a profile it does not find; here that is an error.

    Raises
    ------
    ServerStartError
        If no model of ``folder`` has such a profile.
    """
    known = [DEFAULT_PROFILE, *sorted({path.stem for path in folder.glob("*/configs/*.pbtxt")})]
    if profile not in known:
        of_before = (folder / MODEL_ENGINE).is_dir() and profile in template_profiles()
        later = "; a release that m2ost export makes now has it: export the checkpoint anew" if of_before else ""
        raise ServerStartError(f"{folder} has no profile {profile!r}; it has {', '.join(known)}{later}")
