"""One trace from the command to the engine, in a local receiver."""

import anndata
import numpy as np
import pytest
from m2ost_client import ServerOptions, TritonServer
from m2ost_preprocess.slides import SlideRoots

from tests.support.command import m2ost
from tests.support.machine import kept_ports
from tests.support.otlp import receiver

from .archives import MPP

SLIDE = "archive/s00.png"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(autouse=True)
def no_parent(monkeypatch):
    for name in ("TRACEPARENT", "TRACESTATE"):
        monkeypatch.delenv(name, raising=False)


def ancestors(span, spans):
    """Names of the spans that a span is a part of, the nearest first; ends where there is none that was received."""
    by_id = {other.id: other for other in spans}
    names = []
    while span.parent in by_id:
        span = by_id[span.parent]
        names.append(span.name)
    return names


def test_one_trace_from_a_command_to_the_engine_of_the_server_that_it_starts(
    narrow_release, archive_slides, tmp_path, monkeypatch
):
    monkeypatch.setenv("TRACEPARENT", f"00-{TRACE}-{PARENT}-01")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "elsewhere.example")
    slide = archive_slides[0] / "s00.png"
    with receiver() as found:
        arguments = ("--mpp", MPP, "--release", narrow_release, "--out", tmp_path, "--trace-otlp", found.url)
        status, _, errors = m2ost("predict", slide, *arguments)
    assert status == 0, errors
    assert "warning" not in errors
    assert {span.trace for span in found.spans} == {TRACE}, "a probe of the supervisor's is no part of it"
    (command,) = found.named("m2ost predict")
    assert (command.parent, command.facts) == (PARENT, {"m2ost.slide": str(slide)})
    chains = {tuple(ancestors(span, found.spans)) for span in found.named("compute")}
    by_name = ("m2ost_slide", "InferRequest", "m2ost_slide", "m2ost predict")
    of_models = {(model, *by_name) for model in ("slide_tiler", "m2ost", "row_guard")}
    assert chains == {*of_models, ("slide_info", "InferRequest", "slide_info", "m2ost predict")}
    assert {span.service for span in found.spans} == {"m2ost-client", "m2ost-server"}
    for span in found.spans:
        assert span is command or span.parent in {other.id for other in found.spans}


def test_an_archives_slides_are_spans_and_a_server_elsewhere_joins_them(narrow_release, archive_slides, tmp_path):
    folder, rows = archive_slides
    listed = "".join(f"{row.slide_id},{row.path},{row.mpp}\n" for row in (rows[1], rows[2]))
    (tmp_path / "slides.csv").write_text(f"slide_id,path,mpp\n{listed}")
    with receiver() as found:
        options = ServerOptions(release=narrow_release, roots=SlideRoots({"archive": folder}), trace_otlp=found.url)
        with TritonServer(options) as server:
            arguments = ("--server", server.address, "--out", tmp_path / "out", "--trace-otlp", found.url)
            status, _, errors = m2ost("rescore", tmp_path / "slides.csv", *arguments)
            assert status == 0, errors
            m2ost("predict", SLIDE, "--mpp", MPP, "--server", server.address, "--out", tmp_path / "untraced")
    (command,) = found.named("m2ost rescore")
    assert {span.trace for span in found.spans} == {command.trace}, "what carries no context is no part of any"
    slides = {span.facts["m2ost.slide_id"]: span for span in found.named("slide")}
    assert set(slides) == {rows[1].slide_id, rows[2].slide_id}
    assert slides["s00"].facts["m2ost.slide"] == SLIDE
    assert {span.parent for span in slides.values()} == {command.id}
    of_engine = [ancestors(span, found.spans) for span in found.named("m2ost")]
    assert of_engine
    assert {tuple(names) for names in of_engine} == {
        ("m2ost_slide", "InferRequest", "m2ost_slide", "slide", "m2ost rescore")
    }


def test_a_receiver_that_is_away_is_told_once_and_changes_nothing(archive_server, tmp_path):
    arguments = ("predict", SLIDE, "--mpp", MPP, "--server", archive_server.address, "--out")
    status, _, errors = m2ost(*arguments, tmp_path / "untraced")
    assert status == 0, errors
    with kept_ports(1) as (port,):
        url = f"http://127.0.0.1:{port}"
        status, _, errors = m2ost(*arguments, tmp_path / "traced", "--trace-otlp", url)
    assert status == 0, errors
    assert errors.count("warning: ") == errors.count(f"traces do not arrive at {url}/v1/traces") == 1
    first, second = (anndata.read_h5ad(tmp_path / name / "s00.h5ad") for name in ("untraced", "traced"))
    np.testing.assert_array_equal(first.X, second.X)


def test_the_token_is_in_no_trace(secured, tmp_path):
    with receiver() as found:
        files = [word for name, path in secured.known.given().items() for word in (_OPTIONS[name], path)]
        arguments = ("--server", secured.server.address, "--out", tmp_path, "--trace-otlp", found.url, *files)
        status, _, errors = m2ost("predict", SLIDE, "--mpp", MPP, *arguments)
    assert status == 0, errors
    assert found.named("m2ost_slide")
    assert not [body for body in found.bodies if secured.token.encode() in body]


_OPTIONS = {"ca": "--tls-ca", "certificate": "--tls-cert", "key": "--tls-key", "token_file": "--token-file"}
