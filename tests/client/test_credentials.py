"""Certificates, keys and tokens that cannot be used are refused before anything is sent, in words that mend it."""

import asyncio
import os
import pickle
from contextlib import ExitStack
from datetime import timedelta

import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from m2ost_client import AccessRefused, InputError, Servers, ServerUnavailable
from m2ost_client.archive.endpoint import EndpointOptions
from m2ost_client.archive.pool import Pool
from m2ost_client.archive.ray_runner import score_unit
from m2ost_client.credentials import Credentials
from m2ost_client.requests import spot_inputs

from tests.attack.liar import Liar
from tests.support.certificates import FOR_CLIENTS, FOR_SERVERS, Authority
from tests.support.releases import ENGINE

HERE, ELSEWHERE = "127.0.0.1:8001", "triton.example.org:8001"


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


def token(folder, text, mode=0o600):
    path = folder / "token"
    path.write_text(text)
    path.chmod(mode)
    return path


def refusal(address=HERE, **files):
    with pytest.raises(InputError) as caught:
        Credentials(**files).open(address)
    return str(caught.value)


def test_what_can_be_used(authority, tmp_path):
    pair = authority.sign("client", usage=FOR_CLIENTS)
    pair.key.chmod(0o640)  # as Kubernetes gives a key to the group of a pod
    found = Credentials(
        ca=authority.file, certificate=pair.certificate, key=pair.key, token_file=token(tmp_path, "t\n")
    )
    access = found.open(ELSEWHERE)
    assert access.channel is not None
    assert access.metadata == (("triton-grpc-protocol-authorization", "t"),)
    assert Credentials().open(ELSEWHERE).channel is None
    assert Credentials(token_file=token(tmp_path, "t")).open(HERE).metadata


def test_the_token_is_in_no_words(authority, tmp_path):
    found = Credentials(ca=authority.file, token_file=token(tmp_path, "confidential"))
    access = found.open(HERE)
    assert "confidential" in str(access.metadata)
    assert "confidential" not in repr((found, access, pickle.dumps(found), found.to_environment()))


def test_a_worker_of_a_cluster_that_lacks_the_runs_files_says_so(tmp_path):
    servers = Servers(addresses=(HERE,), credentials=Credentials(token_file=tmp_path / "absent"))
    with pytest.raises(AccessRefused, match=rf"on the worker {os.uname().nodename}: .*absent: cannot be read"):
        score_unit(servers, ENGINE, None, 4)


def test_a_file_that_is_gone_in_mid_run_costs_a_server_and_is_named(tmp_path):
    file = token(tmp_path, "t")

    async def inputs():
        return spot_inputs("root/a.png", np.ones((1, 2), np.int32), 1.0)

    async def run():
        options = EndpointOptions(credentials=Credentials(token_file=file))
        with ExitStack() as stack:
            server = stack.enter_context(Liar(ENGINE))
            async with Pool([server.address], options, retry_for_s=1) as pool:
                file.unlink()
                stack.close()
                await pool.infer("m2ost_slide", inputs, spots=1)

    with pytest.raises(ServerUnavailable, match="token: cannot be read: No such file"):
        asyncio.run(run())


def test_half_a_pair_and_a_pair_without_anybody_to_trust(authority):
    pair = authority.sign("client")
    assert "belong together" in refusal(ca=authority.file, certificate=pair.certificate)
    assert "belong together" in refusal(ca=authority.file, key=pair.key)
    assert "need --tls-ca" in refusal(certificate=pair.certificate, key=pair.key)


def test_files_that_are_not_there_or_something_else(authority, tmp_path):
    pair, text = authority.sign("client"), token(tmp_path, "hello\n")
    assert "absent: cannot be read: No such file" in refusal(ca=tmp_path / "absent")
    assert "holds no certificate in PEM" in refusal(ca=text)
    assert "holds no certificate in PEM" in refusal(ca=authority.file, certificate=text, key=pair.key)
    assert "holds no private key in PEM" in refusal(ca=authority.file, certificate=pair.certificate, key=text)
    assert f"{tmp_path}: cannot be read: Is a directory" in refusal(ca=authority.file, token_file=tmp_path)


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o644, 0o777])
def test_a_key_or_a_token_that_every_user_has_access_to(authority, tmp_path, mode):
    pair = authority.sign("client")
    pair.key.chmod(mode)
    said = refusal(ca=authority.file, certificate=pair.certificate, key=pair.key)
    assert f"(mode 0{mode:o}); chmod o= {pair.key}" in said
    assert f"chmod o= {tmp_path}/token" in refusal(token_file=token(tmp_path, "t", mode))


def test_a_certificate_before_and_after_its_time(authority):
    for since, until, words in ((-9, -1, "expired on 20"), (1, 9, "valid from 20")):
        pair = authority.sign("client", since=timedelta(days=since), until=timedelta(days=until))
        assert words in refusal(ca=authority.file, certificate=pair.certificate, key=pair.key)


def test_a_certificate_that_is_for_servers_only(authority):
    pair = authority.sign("server", "a.org", usage=FOR_SERVERS)
    assert "is not for clients" in refusal(ca=authority.file, certificate=pair.certificate, key=pair.key)


def test_an_authority_that_has_expired(tmp_path):
    old = Authority(tmp_path).sign("old", since=timedelta(days=-9), until=timedelta(days=-1))
    assert "this authority expired on 20" in refusal(ca=old.certificate)


def test_the_key_of_another_certificate_and_one_with_a_password(authority):
    one, other = authority.sign("one"), authority.sign("other")
    assert f"is not the key of {one.certificate}" in refusal(
        ca=authority.file, certificate=one.certificate, key=other.key
    )
    key = load_pem_private_key(one.key.read_bytes(), None)
    one.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")))
    assert "has a password" in refusal(ca=authority.file, certificate=one.certificate, key=one.key)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("two words", "no header can"),
        ("two\nlines", "no header can"),
        ("clé", "no header can"),
        ("\x00", "no header can"),
        ("x" * 5000, "more than 4096 characters"),
    ],
)
def test_tokens_that_are_none(tmp_path, text, words):
    said = refusal(token_file=token(tmp_path, text))
    assert words in said
    assert not text.strip() or text not in said


@pytest.mark.parametrize("address", [ELSEWHERE, f"dns:///{ELSEWHERE}", "ipv4:127.0.0.1:1,192.0.2.7:1"])
def test_a_token_does_not_travel_in_plain_text(tmp_path, address):
    assert "in plain text; give --tls-ca" in refusal(address, token_file=token(tmp_path, "t"))


def test_a_list_of_addresses_has_no_name_that_a_certificate_could_be_for(authority):
    assert "give dns:///NAME:PORT" in refusal("ipv4:127.0.0.2:1,127.0.0.3:1", ca=authority.file)


def test_options_go_before_the_environment(monkeypatch, tmp_path):
    for name in ("CA", "CERT", "KEY"):
        monkeypatch.setenv(f"M2OST_TLS_{name}", f"/env/{name}")
    monkeypatch.setenv("M2OST_TOKEN_FILE", "")
    found = Credentials.from_environment(ca=tmp_path)
    assert {name: str(path) for name, path in found.given().items()} == {
        "ca": str(tmp_path),
        "certificate": "/env/CERT",
        "key": "/env/KEY",
    }
    for name, path in found.to_environment().items():
        monkeypatch.setenv(name, path)
    assert Credentials.from_environment() == found
