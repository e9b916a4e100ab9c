"""Spans of the client: who their parents are, what requests carry, and that a receiver costs the work nothing."""

import asyncio
import socket
import sys
import time

import pytest
from m2ost_client.errors import InputError, RequestRejected, ServerStartError
from m2ost_client.server.command import ServerOptions
from m2ost_client.tracing import EXPORT_TIMEOUT_S, context_headers, joined, otlp_url, span, traced

from tests.support.machine import kept_ports
from tests.support.otlp import receiver

from .test_connection import AWAY, BAD, FULL, Script, ask

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(autouse=True)
def no_parent(monkeypatch):
    for name in ("TRACEPARENT", "TRACESTATE"):
        monkeypatch.delenv(name, raising=False)


def noted(work, **facts):
    """What a receiver was told of some work, and the warnings."""
    warnings = []
    with receiver() as found, traced(found.url, "the command", facts, warn=warnings.append):
        work()
    assert not warnings
    assert found.paths == {"/v1/traces"}
    return found


def test_tries_of_a_request_are_one_span_under_the_command_and_carry_its_context():
    script = Script(AWAY, FULL)
    found = noted(lambda: ask(script, retry_for_s=30))
    (command,), (request,) = found.named("the command"), found.named("m2ost_slide")
    assert (command.parent, request.parent, request.trace) == ("", command.id, command.trace)
    assert request.facts == {"server.address": "host:1"}
    assert [(name, facts["status"]) for name, facts in request.events] == [("sent again", "UNAVAILABLE")] * 2
    assert "connection refused" in request.events[0][1]["reason"]
    assert len(script.requests) == 3
    for _, options in script.requests:
        version, *ids, flags = options["headers"]["traceparent"].split("-")
        assert (version, ids, int(flags, 16) & 1) == ("00", [command.trace, request.id], 1)
    assert {span.service for span in found.spans} == {"m2ost-client"}


def test_requests_of_two_tasks_are_parts_of_the_block_around_each():
    async def slide(name):
        with span("slide", {"m2ost.slide_id": name}):
            await asyncio.sleep(0.01)
            with span("request", {}, asks=True):
                await asyncio.sleep(0.01)

    async def both():
        await asyncio.gather(slide("a"), slide("b"))

    found = noted(lambda: asyncio.run(both()))
    slides = {span.id: span.facts["m2ost.slide_id"] for span in found.named("slide")}
    assert sorted(slides.values()) == ["a", "b"]
    assert sorted(slides[request.parent] for request in found.named("request")) == ["a", "b"]


def test_an_error_is_a_status_in_its_words_without_a_stack():
    with receiver() as found, pytest.raises(RequestRejected), traced(found.url, "the command", {}, warn=print):
        ask(Script(BAD))
    (request,) = found.named("m2ost_slide")
    assert request.status == "RequestRejected: no such slide on the server"
    assert not request.events
    assert not any(__file__.encode() in body for body in found.bodies)


@pytest.mark.parametrize(
    ("told", "trace", "parent"),
    [(f"00-{TRACE}-{PARENT}-01", TRACE, PARENT), ("nonsense", None, ""), (f"00-{'0' * 32}-{PARENT}-01", None, "")],
)
def test_the_command_is_a_part_of_what_the_environment_names(monkeypatch, told, trace, parent):
    monkeypatch.setenv("TRACEPARENT", told)
    (command,) = noted(lambda: None).named("the command")
    assert command.parent == parent
    assert trace in (None, command.trace)


def test_without_a_receiver_nothing_is_noted_and_requests_carry_nothing():
    script = Script()
    ask(script)
    assert script.requests[0][1]["headers"] is None
    assert context_headers() is None


def test_a_context_of_another_process_is_passed_on():
    script, passed = Script(), []
    found = noted(lambda: passed.append(context_headers()))
    with joined(passed[0]):
        ask(script)
    (command,) = found.spans
    assert script.requests[0][1]["headers"] == passed[0]
    assert f"-{command.trace}-{command.id}-" in passed[0]["traceparent"]
    with joined(None):
        ask(script)
    assert script.requests[1][1]["headers"] is None


def test_a_receiver_that_is_away_is_told_once_and_costs_no_more_than_its_time_at_the_end(capfd):
    warnings = []
    with kept_ports(1) as (port,):
        with traced(f"http://127.0.0.1:{port}", "the command", {}, warn=warnings.append):
            began = time.monotonic()
            for _ in range(3000):  # more than may wait
                with span("request", {}, asks=True):
                    pass
            assert time.monotonic() - began < 3
            ended = time.monotonic()
        assert time.monotonic() - ended < EXPORT_TIMEOUT_S + 1
    assert len(warnings) == 1
    assert f"traces do not arrive at http://127.0.0.1:{port}/v1/traces" in warnings[0]
    assert capfd.readouterr() == ("", "")


def test_a_receiver_that_takes_and_never_answers_is_left_in_time():
    warnings = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with traced(f"http://127.0.0.1:{silent.getsockname()[1]}", "the command", {}, warn=warnings.append):
            pass
    assert time.monotonic() - began < EXPORT_TIMEOUT_S + 2


def test_a_receiver_on_this_machine_is_reached_without_a_proxy(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert noted(lambda: None).named("the command")


@pytest.mark.parametrize(
    ("given", "whole"),
    [
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("https://collector/", "https://collector/v1/traces"),
        ("http://[::1]:4318/tenant/v1/traces", "http://[::1]:4318/tenant/v1/traces"),
    ],
)
def test_where_only_a_host_is_given_the_usual_path_is_meant(given, whole):
    assert otlp_url(given) == whole


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "no address of a receiver"),
        ("collector:4318", "no address of a receiver"),
        ("grpc://collector:4317", "no address of a receiver"),
        ("http://", "no address of a receiver"),
        ("http://a b:1", "no address of a receiver"),
        ("http://a,url=x", "no address of a receiver"),
        ("http://collector:99999", "Port out of range"),
        ("http://me:secret@collector", "OTEL_EXPORTER_OTLP_HEADERS"),
    ],
)
def test_what_is_no_address_is_refused_in_words(url, words):
    with pytest.raises(InputError, match=words) as refused:
        otlp_url(url)
    assert "secret" not in str(refused.value)


def test_a_server_hands_its_trace_to_a_file_or_to_a_receiver(tmp_path):
    with pytest.raises(ServerStartError, match="leave --trace or --trace-otlp out"):
        ServerOptions(release=tmp_path, trace=tmp_path / "trace.json", trace_otlp="http://collector:4318")
    with pytest.raises(InputError, match="no address of a receiver"):
        ServerOptions(release=tmp_path, trace_otlp="collector")


def test_an_absent_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(InputError, match=r"needs the extra 'trace' .*pip install .*\[trace\]"):
        traced("http://collector:4318", "the command", {}, warn=print).__enter__()
