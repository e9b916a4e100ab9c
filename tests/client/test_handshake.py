"""Why client and server do not come together, asked of gRPC's own servers; what helps nobody is not tried again."""

import asyncio
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta

import grpc
import pytest
from m2ost_client import AccessRefused, ServerUnavailable, SpotStream, StreamOptions
from m2ost_client.credentials import TOKEN_HEADER, Credentials
from m2ost_client.handshake import RESTRICTED, why_refused
from m2ost_client.server.probe import probe
from m2ost_contract import MODEL_INFO
from tritonclient.grpc import service_pb2_grpc

from tests.support.certificates import FOR_CLIENTS, FOR_SERVERS, Authority
from tests.support.machine import kept_ports
from tests.support.releases import ENGINE

TOKEN = "t0ken"


class Guarded(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Refuses as Triton does whoever sends another token; keeps what it was asked by the others."""

    def __init__(self):
        self.asked = []

    def _answer(self, request, context):
        if dict(context.invocation_metadata()).get(TOKEN_HEADER) != TOKEN:
            context.abort(grpc.StatusCode.UNAVAILABLE, f"{RESTRICTED}, expecting header '{TOKEN_HEADER}'")
        self.asked.append(request)
        context.abort(grpc.StatusCode.NOT_FOUND, "nothing is served")

    def ModelConfig(self, request, context):
        self._answer(request, context)

    def ModelInfer(self, request, context):
        self._answer(request, context)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def authority(folder):
    return Authority(folder)


@pytest.fixture(scope="module")
def token_files(folder):
    files = folder / "right", folder / "wrong"
    for file in files:
        file.touch(0o600)
        file.write_text(TOKEN if file.name == "right" else "another")
    return files


@contextmanager
def serving(pair=None, clients=None):
    """A server on 127.0.0.1 with a certificate, that wants one of its clients; its address, and what guards it."""
    guarded = Guarded()
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(guarded, server)
        if pair is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            keys = [(pair.key.read_bytes(), pair.certificate.read_bytes())]
            roots = clients and clients.file.read_bytes()
            port = server.add_secure_port(
                "127.0.0.1:0", grpc.ssl_server_credentials(keys, roots, require_client_auth=bool(clients))
            )
        server.start()
        try:
            yield f"127.0.0.1:{port}", guarded
        finally:
            server.stop(None).wait()


def refused_at_once(address, credentials):
    """In what words a stream that may try for a minute is refused."""

    async def run():
        async with SpotStream(address, StreamOptions(retry_for_s=60, credentials=credentials)):
            pass

    began = time.monotonic()
    with pytest.raises(AccessRefused) as caught:
        asyncio.run(run())
    assert time.monotonic() - began < 10
    return str(caught.value)


def test_a_token_goes_with_every_request_of_client_and_probe(authority, token_files):
    right, wrong = token_files
    with serving(authority.sign("server", "127.0.0.1", usage=FOR_SERVERS)) as (address, guarded):
        known = Credentials(ca=authority.file, token_file=right)
        health = probe(address, [ENGINE], access=known.open(address))
        assert health.words == "nothing is served"
        assert MODEL_INFO in {request.model_name for request in guarded.asked}
        guarded.asked.clear()
        assert f"refuses the token of {wrong}" in refused_at_once(
            address, Credentials(ca=authority.file, token_file=wrong)
        )
        assert "wants a token; give --token-file" in refused_at_once(address, Credentials(ca=authority.file))
        assert not guarded.asked


def test_a_server_that_the_client_does_not_trust(authority, folder):
    for name, host, since, until, words in (
        ("expired", "127.0.0.1", -9, -1, "has expired"),
        ("early", "127.0.0.1", 1, 9, "not valid yet"),
        ("elsewhere", "elsewhere.example.org", -1, 9, "is not for '127.0.0.1'"),
    ):
        span = {"since": timedelta(days=since), "until": timedelta(days=until)}
        with serving(authority.sign(name, host, **span)) as (address, _):
            said = refused_at_once(address, Credentials(ca=authority.file))
            assert said.startswith(f"{address}: the server's certificate")
            assert words in said
    stranger = Authority(folder, "stranger")
    with serving(stranger.sign("server", "127.0.0.1")) as (address, _):
        assert f"was not signed by {authority.file}" in refused_at_once(address, Credentials(ca=authority.file))


def test_a_client_that_the_server_does_not_trust(authority, folder):
    strangers = Authority(folder, "strangers").sign("client", usage=FOR_CLIENTS)
    with serving(authority.sign("server", "127.0.0.1"), clients=authority) as (address, _):
        assert "wants a certificate of its clients" in refused_at_once(address, Credentials(ca=authority.file))
        shown = Credentials(ca=authority.file, certificate=strangers.certificate, key=strangers.key)
        assert f"refuses the certificate {strangers.certificate}" in refused_at_once(address, shown)
        pair = authority.sign("client", usage=FOR_CLIENTS)
        assert why_refused(address, Credentials(ca=authority.file, certificate=pair.certificate, key=pair.key)) == ""


def test_one_side_without_tls(authority):
    with serving() as (address, _):
        assert "speaks no TLS; leave --tls-ca out" in refused_at_once(address, Credentials(ca=authority.file))
        assert why_refused(address, Credentials()) == ""
    with serving(authority.sign("server", "127.0.0.1")) as (address, _):
        assert "speaks TLS; give --tls-ca" in refused_at_once(address, Credentials())


def test_a_server_that_is_merely_away_is_waited_for(authority):
    async def run(address, credentials):
        async with SpotStream(address, StreamOptions(retry_for_s=1, credentials=credentials)):
            pass

    with kept_ports(1) as (port,):
        for credentials in (Credentials(), Credentials(ca=authority.file)):
            began = time.monotonic()
            with pytest.raises(ServerUnavailable, match=r"no answer for \d s"):
                asyncio.run(run(f"127.0.0.1:{port}", credentials))
            assert time.monotonic() - began >= 1


def test_nobody_guesses_of_what_says_nothing(authority, monkeypatch):
    monkeypatch.setattr("m2ost_client.handshake.TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert why_refused(address, Credentials(ca=authority.file)) == why_refused(address, Credentials()) == ""
    for address in ("no-port", "host.invalid:1", "[::1", ""):
        assert why_refused(address, Credentials(ca=authority.file)) == ""
