"""Spans of this client for a receiver of OpenTelemetry's, and the W3C context that has a server's spans join them.

``with traced(url, "predict", {}, warn=print)`` has everything that runs within note its spans, whichever task runs it.
Without it nothing is noted, and OpenTelemetry is not even imported.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from importlib import metadata
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from m2ost_contract import install_command
from m2ost_preprocess.network import host_of, is_here

from .errors import InputError

SERVICE = "m2ost-client"
"""What a receiver calls this side, where ``OTEL_SERVICE_NAME`` says nothing else."""

EXPORT_TIMEOUT_S = 3.0
"""Longest time for one attempt to hand spans over, and for the last ones at the end, in seconds."""

PARENT_VARIABLES = ("TRACEPARENT", "TRACESTATE")
"""Variables by which whoever starts a command tells of the span that it is a part of."""

_PATH = "/v1/traces"

Facts = Mapping[str, str]


class Span:
    """Something that runs, of which nobody takes notice.

    Attributes
    ----------
    headers : dict or None
        What a request carries so that spans of its server join this one; None for nothing.
    """

    headers: dict[str, str] | None = None

    def event(self, name: str, **facts: str) -> None:
        """Note that something happened meanwhile.

        Parameters
        ----------
        name : str
        **facts
            Shown with it.
        """


class _Tracer(Protocol):
    """Makes spans."""

    def span(self, name: str, facts: Facts, *, asks: bool) -> AbstractContextManager[Span]: ...


_tracer: ContextVar[_Tracer | None] = ContextVar("m2ost_tracer", default=None)


@contextmanager
def span(name: str, facts: Facts, *, asks: bool = False) -> Iterator[Span]:
    """Note a block, as a part of the one around it. An error that ends it is its status.

    Parameters
    ----------
    name : str
        What it is.
    facts : mapping
        Shown with it.
    asks : bool
        Whether it is a request to a server.

    Yields
    ------
    Span
    """
    tracer = _tracer.get()
    if tracer is None:
        yield Span()
        return
    with tracer.span(name, facts, asks=asks) as noted:
        yield noted


def otlp_url(url: str) -> str:
    """The whole address of a receiver; where only the host is given, spans go to ``/v1/traces`` there.

    Parameters
    ----------
    url : str
        ``http://host:4318`` or a whole address.

    Raises
    ------
    InputError
        If it is no address of HTTP, or has a password in it, which lists of processes would show.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InputError(f"--trace-otlp {url!r}: {error}; give http://HOST:4318") from error
    if parts.username is not None or parts.password is not None:
        raise InputError(
            "--trace-otlp: a name and a password in the address would be shown by every list of processes; put them "
            "into OTEL_EXPORTER_OTLP_HEADERS"
        )
    if parts.scheme not in ("http", "https") or not host or any(letter.isspace() or letter == "," for letter in url):
        raise InputError(
            f"--trace-otlp {url!r}: no address of a receiver of OTLP over HTTP; give one such as http://HOST:4318"
        )
    return urlunsplit(parts) if parts.path.strip("/") else urlunsplit(parts._replace(path=_PATH))


@contextmanager
def traced(url: str, name: str, facts: Facts, *, warn: Callable[[str], None]) -> Iterator[None]:
    """Hand the spans of a block to a receiver; the block itself is the first.

    It is a part of the span that ``TRACEPARENT`` in the environment names, where there is one. Spans are handed over by
    a thread of its own. A receiver that takes none costs the spans, and up to ``EXPORT_TIMEOUT_S`` at the end.

    Parameters
    ----------
    url : str
        See :func:`otlp_url`. OpenTelemetry's own variables, such as ``OTEL_EXPORTER_OTLP_HEADERS``, are heeded.
    name : str
        What the block is.
    facts : mapping
        Shown with it.
    warn : callable
        Told once in words if spans do not arrive.

    Raises
    ------
    InputError
        If the address is none, or OpenTelemetry is not installed.
    """
    endpoint = otlp_url(url)
    try:
        provider = _provider(endpoint)
    except ImportError as error:
        raise InputError(f"--trace-otlp needs the extra 'trace' ({error}): {install_command('trace')}") from error
    with _complaints(endpoint, warn):
        try:
            with _set(_OpenTelemetry(provider.get_tracer("m2ost_client"))), span(name, facts):
                yield
        finally:
            # It waits for up to half a minute for what a receiver does not take.
            end = threading.Thread(target=provider.shutdown, daemon=True)
            end.start()
            end.join(EXPORT_TIMEOUT_S)


@contextmanager
def joined(headers: Mapping[str, str] | None) -> Iterator[None]:
    """Have requests of a block carry a context of another process, which notes its own spans.

    Parameters
    ----------
    headers : mapping or None
        Of :func:`context_headers` there; None for nothing.
    """
    with _set(_Joined(dict(headers)) if headers else None):
        yield


def context_headers() -> dict[str, str] | None:
    """What a request carries so that its server's spans join the one around this call; None where none is noted."""
    if _tracer.get() is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    return headers


class _Joined:
    """Notes nothing and passes a context on."""

    def __init__(self, headers: dict[str, str]) -> None:
        self._headers = headers

    @contextmanager
    def span(self, name: str, facts: Facts, *, asks: bool) -> Iterator[Span]:
        passed = Span()
        passed.headers = dict(self._headers)
        yield passed


class _Noted(Span):
    """A span of OpenTelemetry's."""

    def __init__(self, noted: Any, headers: dict[str, str] | None) -> None:
        self._noted, self.headers = noted, headers

    def event(self, name: str, **facts: str) -> None:
        """See :class:`Span`."""
        self._noted.add_event(name, facts)


class _OpenTelemetry:
    """Notes spans by OpenTelemetry."""

    def __init__(self, tracer: Any) -> None:
        self._tracer, self._parent = tracer, _parent()

    @contextmanager
    def span(self, name: str, facts: Facts, *, asks: bool) -> Iterator[Span]:
        from opentelemetry.trace import SpanKind

        parent, self._parent = self._parent, None  # of the first span alone; of others it is what surrounds them
        noted = self._tracer.start_as_current_span(
            name,
            context=parent,
            kind=SpanKind.CLIENT if asks else SpanKind.INTERNAL,
            attributes=facts,
            record_exception=False,  # its words are the status; a stack names files of this machine
        )
        with noted as current:
            yield _Noted(current, context_headers() if asks else None)


def _parent() -> Any:
    """OpenTelemetry's context of the span that this process is a part of."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    told = {name.lower(): os.environ[name] for name in PARENT_VARIABLES if name in os.environ}
    return TraceContextTextMapPropagator().extract(told, context=Context())


def _provider(endpoint: str) -> Any:
    """Takes spans, and hands them over in a thread of its own."""
    import requests
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    session = requests.Session()
    session.trust_env = not is_here(host_of(endpoint))  # a proxy elsewhere would ask itself
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT_S, session=session)
    own = Resource({"service.name": SERVICE, "service.version": metadata.version("m2ost-triton")})
    provider = TracerProvider(resource=own.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


@contextmanager
def _set(tracer: _Tracer | None) -> Iterator[None]:
    token = _tracer.set(tracer)
    try:
        yield
    finally:
        _tracer.reset(token)


class _Complaints(logging.Handler):
    """Tells the first complaint of OpenTelemetry's, and keeps the others to itself."""

    def __init__(self, endpoint: str, warn: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._endpoint, self._warn, self._told = endpoint, warn, False

    def emit(self, record: logging.LogRecord) -> None:
        if not self._told:
            self._told = True
            self._warn(f"traces do not arrive at {self._endpoint} ({record.getMessage()}); the work goes on without")


@contextmanager
def _complaints(endpoint: str, warn: Callable[[str], None]) -> Iterator[None]:
    logger, handler = logging.getLogger("opentelemetry"), _Complaints(endpoint, warn)
    before, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
