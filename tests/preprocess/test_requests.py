"""What a request says beside its tensors is understood, or refused as its own mistake."""

from types import SimpleNamespace

import pytest
from m2ost_preprocess.errors import UnsupportedRequest
from m2ost_serving.triton import Asked, read_request, request_id


def request(parameters="", id="a", timeout_us=0):
    return SimpleNamespace(request_id=lambda: id, parameters=lambda: parameters, timeout=lambda: timeout_us)


def undecodable():
    raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


def test_a_request_without_parameters_asks_for_nothing_special():
    assert read_request(request()) == Asked("a")


def test_parameters_are_taken_as_they_are():
    told = '{"release": "abc", "pyramid": true, "fingerprint": true, "background": true, "another": 3}'
    assert read_request(request(told, timeout_us=2_500_000)) == Asked("a", "abc", True, True, True, 2.5)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ('{"pyramid": "false"}', "parameter pyramid must be a bool, not 'false'"),
        ('{"pyramid": 1}', "parameter pyramid must be a bool, not 1"),
        ('{"release": 3}', "parameter release must be a str, not 3"),
        ('{"background": 1}', "parameter background must be a bool"),
        ('{"fingerprint": "yes"}', "parameter fingerprint must be a bool"),
        ("{", "cannot be read"),
    ],
)
def test_a_parameter_of_another_type_is_refused(parameters, words):
    with pytest.raises(UnsupportedRequest, match=words):
        read_request(request(parameters))


@pytest.mark.parametrize("broken", ["request_id", "parameters"])
def test_what_is_not_utf_8_is_refused_and_logged_without_it(broken):
    bad = request()
    setattr(bad, broken, undecodable)
    with pytest.raises(UnsupportedRequest, match="id or a parameter cannot be read"):
        read_request(bad)
    assert request_id(bad) == ("" if broken == "request_id" else "a")
