"""Retries, the window and the release check, on a transport that is a script; proxies, on a server of gRPC's own."""

import asyncio
import gc
import pickle
import random
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import grpc
import pytest
from m2ost_client.connection import Connection, Window, open_client
from m2ost_client.errors import ReleaseChanged, RequestRejected, ServerUnavailable
from m2ost_client.server.probe import probe
from m2ost_contract import QUEUE_FULL
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from tests.support.machine import need_address
from tests.support.releases import ENGINE

AWAY = InferenceServerException("connection refused", status="StatusCode.UNAVAILABLE")
LATE = InferenceServerException("too late", status="StatusCode.DEADLINE_EXCEEDED")
DEAD = InferenceServerException("Stub process is not healthy.", status="StatusCode.INTERNAL")
FULL = InferenceServerException(f"64 {QUEUE_FULL}, 64 may", status="StatusCode.UNAVAILABLE")
BAD = InferenceServerException("no such slide on the server", status="StatusCode.NOT_FOUND")


class Script:
    """Stands in for tritonclient: plays what ``answers`` says, then answers; serves ``release`` on ``engine``."""

    def __init__(self, *answers, release=ENGINE.release_sha256):
        self.answers, self.release, self.engine = list(answers), release, {}
        self.requests = []
        self.closed = False

    async def infer(self, model, inputs, **options):
        self.requests.append((model, options))
        return self._play() or "answer"

    async def get_model_config(self, model, client_timeout):
        values = {**ENGINE.to_parameters(), "release_sha256": self.release, **self.engine}
        parameters = {key: SimpleNamespace(string_value=value) for key, value in values.items()}
        return SimpleNamespace(config=SimpleNamespace(parameters=parameters, backend="python"))

    async def close(self):
        self.closed = True

    def _play(self):
        step = self.answers.pop(0) if self.answers else None
        if isinstance(step, Exception):
            raise step
        return step() if callable(step) else step


def ask(script, *, requests=1, retry_for_s=30.0, **options):
    """(connection, window, what it answered) after some requests."""

    async def run():
        window = Window(8)
        connection = Connection(
            "host:1", deadline_s=5, retry_for_s=retry_for_s, window=window, transport=lambda address: script, **options
        )
        await connection.open()
        try:
            return connection, window, [await connection.infer("m2ost_slide", []) for _ in range(requests)]
        finally:
            await connection.close()

    return asyncio.run(run())


def test_the_window_halves_on_trouble_and_recovers_with_success():
    window = Window(8)
    window.shrink()
    window.shrink()
    assert window.size == 2
    for _ in range(2):
        window.success()
    assert window.size == 3
    for _ in range(100):
        window.success()
    assert window.size == 8
    for _ in range(9):
        window.shrink()
    assert window.size == 1


def test_a_request_names_its_release_its_deadline_and_itself():
    script = Script()
    ask(script, requests=2)
    (model, first), (_, second) = script.requests
    assert (model, first["client_timeout"]) == ("m2ost_slide", 5)
    assert first["parameters"] == {"release": ENGINE.release_sha256}
    assert first["timeout"] == 5_000_000
    assert first["request_id"] != second["request_id"]
    assert script.closed


def test_a_connection_keeps_nothing_of_its_requests():
    class Forgetful(Script):
        async def infer(self, model, inputs, **options):
            return "answer"

    async def run():
        connection = Connection(
            "host:1", deadline_s=5, retry_for_s=30, window=Window(8), transport=lambda address: Forgetful()
        )
        await connection.open()
        kept = []
        for _ in range(2):
            for _ in range(1000):
                await connection.infer("m2ost_slide", [])
            gc.collect()
            kept.append(len(gc.get_objects()))
        return kept

    first, second = asyncio.run(run())
    assert second - first < 100, "an object of every request is kept"


@pytest.mark.parametrize("trouble", [AWAY, LATE, DEAD])
def test_what_passes_is_sent_again_and_fewer_at_a_time(trouble):
    connection, window, answers = ask(Script(trouble, trouble))
    assert answers == ["answer"]
    assert connection.retries == 2
    assert window.size == 2


def test_a_refusal_is_not_sent_again():
    script = Script(BAD)
    with pytest.raises(RequestRejected, match="no such slide") as caught:
        ask(script)
    assert caught.value.status == "NOT_FOUND"
    assert len(script.requests) == 1


def test_the_pause_before_a_request_is_sent_again_doubles_up_to_five_seconds(monkeypatch):
    """Each is drawn from half to one and a half times that, so that clients do not come together."""
    paused = []

    async def sleep(seconds):
        paused.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)  # the pauses add up to minutes
    connection, _, answers = ask(Script(*[AWAY] * 40), retry_for_s=600)
    assert (answers, connection.retries) == (["answer"], 40)
    nominal = [0.1 * 2**n for n in range(6)] + [5.0] * 34
    assert all(0.5 * pause <= found <= 1.5 * pause for found, pause in zip(paused, nominal, strict=True))
    assert len(set(paused[6:])) > 1


def test_a_server_that_stays_away_is_given_up_in_time():
    script = Script(*[AWAY] * 100)
    with pytest.raises(ServerUnavailable, match=r"host:1: no answer .*connection refused.*m2ost serve"):
        ask(script, retry_for_s=0.3)
    assert 2 <= len(script.requests) <= 8


def test_a_server_that_is_full_is_waited_for_longer_than_one_that_is_away():
    connection, window, answers = ask(Script(FULL, FULL, FULL), retry_for_s=0.0)
    assert (answers, connection.retries, window.size) == (["answer"], 3, 1)


def test_a_server_that_stays_full_is_given_up_in_words_of_its_own():
    with pytest.raises(ServerUnavailable, match="full for 0 s, and nothing of this client's was answered meanwhile"):
        ask(Script(*[FULL] * 99), full_for_s=0.2)


def test_as_long_as_another_request_is_answered_nothing_is_given_up():
    """One request is refused again and again, for longer than allowed, while others get their answers."""

    async def run():
        script = Script()
        connection = Connection(
            "host:1", deadline_s=5, retry_for_s=0.3, full_for_s=0.3, window=Window(8), transport=lambda address: script
        )
        await connection.open()
        began = time.monotonic()

        async def infer(model, inputs, **options):
            if model == "unlucky" and time.monotonic() - began < 1.0:
                raise random.choice((FULL, AWAY))
            return "answer"

        script.infer = infer
        unlucky = asyncio.ensure_future(connection.infer("unlucky", []))
        while not unlucky.done():
            await connection.infer("lucky", [])
            await asyncio.sleep(0.01)
        await connection.close()
        return unlucky.result()

    assert asyncio.run(run()) == "answer"


def test_background_requests_say_so():
    script = Script()
    ask(script, background=True)
    assert script.requests[0][1]["parameters"]["background"] is True


def test_another_engine_or_instruction_set_after_trouble_is_another_server():
    for engine, words in (
        ({"engine": "openvino-cpu"}, "on openvino-cpu, the slide began with release .* on python"),
        ({"engine": "openvino-cpu-bf16", "engine_instructions": "amx_bf16"}, "on openvino-cpu-bf16 amx_bf16, the"),
    ):
        script = Script()

        def comes_back_changed(script=script, engine=engine):
            script.engine = engine

        script.answers = [AWAY, comes_back_changed]
        with pytest.raises(ReleaseChanged, match=words):
            ask(script)


@pytest.mark.parametrize("last", [None, BAD], ids=["an answer", "a refusal"])
def test_another_release_after_trouble_is_told_whatever_it_answers(last):
    script = Script()

    def comes_back_changed():
        script.release = "d" * 64
        if last is not None:
            raise last

    script.answers = [AWAY, comes_back_changed]
    with pytest.raises(ReleaseChanged, match="now serves release dddddddddddd"):
        ask(script)


def test_a_server_of_something_else_is_refused_and_the_client_closed():
    script = Script()
    nothing = SimpleNamespace(config=SimpleNamespace(parameters={}, backend="python"))
    script.get_model_config = lambda *a, **k: asyncio.sleep(0, nothing)
    with pytest.raises(RequestRejected, match="not a release"):
        ask(script)
    assert script.closed


def test_a_connection_that_was_never_opened_says_so():
    connection = Connection("host:1", deadline_s=1, retry_for_s=1, window=Window(1))
    with pytest.raises(RuntimeError, match="async with"):
        asyncio.run(connection.infer("m2ost_slide", []))


def test_a_refusal_travels_between_processes():
    error = pickle.loads(pickle.dumps(RequestRejected("no such slide", "NOT_FOUND")))
    assert (str(error), error.status) == ("no such slide", "NOT_FOUND")


class Live(service_pb2_grpc.GRPCInferenceServiceServicer):
    """A server that is alive and serves nothing."""

    def ServerLive(self, request, context):
        return service_pb2.ServerLiveResponse(live=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
@pytest.mark.parametrize("variable", ["http_proxy", "grpc_proxy"])
def test_a_server_on_this_machine_is_reached_whatever_proxy_the_environment_names(monkeypatch, variable, host):
    need_address(host.strip("[]"))
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for exceptions in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(exceptions, raising=False)

    async def is_live(address):
        client = open_client(address)
        try:
            return await client.is_server_live(client_timeout=10)
        finally:
            await client.close()

    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Live(), server)
        address = f"{host}:{server.add_insecure_port(f'{host}:0')}"
        server.start()
        try:
            assert asyncio.run(is_live(address))
            assert probe(address, [ENGINE]).words == "Method not implemented!"
        finally:
            server.stop(None).wait()


def test_a_server_that_stays_away_behind_a_proxy_names_it(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://somebody:secret@proxy:3128")
    monkeypatch.delenv("no_proxy", raising=False)

    async def run():
        connection = Connection(
            "triton.example.org:8001", deadline_s=5, retry_for_s=0, window=Window(1), transport=lambda _: Away()
        )
        await connection.open()

    class Away(Script):
        async def get_model_config(self, model, client_timeout):
            raise AWAY

    with pytest.raises(
        ServerUnavailable, match=r"no answer for 0 s through the proxy of http_proxy, http://proxy:3128"
    ):
        asyncio.run(run())
