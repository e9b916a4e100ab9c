"""What the served models share: the waiting requests, and what they repeat of a request."""

import http.server
import json
import threading
from types import SimpleNamespace

import pytest
from m2ost_preprocess.errors import UnsupportedRequest
from m2ost_preprocess.serving import (
    METRICS_URL_ENV,
    Asked,
    EngineQueue,
    check_release,
    log_line,
    number_of_rows,
    read_request,
    waiting_requests,
)

PAGE = """# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{model="slide_tiler",version="1"} 12
nv_inference_pending_request_count{model="m2ost",version="1"} 30
nv_inference_pending_request_count{model="m2ost_slide",version="1"} 500
nv_inference_exec_count{model="m2ost",version="1"} 7
"""


@pytest.fixture
def metrics_page(monkeypatch):
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(PAGE.encode())

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv(METRICS_URL_ENV, f"http://127.0.0.1:{server.server_port}/metrics")
        yield
        server.shutdown()


def test_the_waiting_requests_of_the_named_models_are_added_up(metrics_page):
    assert waiting_requests(("slide_tiler", "m2ost")) == 42


def test_metrics_that_do_not_answer_name_the_variable_to_set(monkeypatch):
    monkeypatch.setenv(METRICS_URL_ENV, "http://127.0.0.1:9/metrics")
    with pytest.raises(OSError, match=METRICS_URL_ENV):
        waiting_requests(("m2ost",))


def test_a_line_of_the_log_is_short_whatever_a_request_holds():
    line = log_line("tiled", request_id="i" * 10**6, slides=[f"wsi/{n}" * 1000 for n in range(256)], rows=256)
    found = json.loads(line)
    assert len(line) < 8_000
    assert found["request_id"].endswith("… (1000000 characters)")
    assert found["slides"][-1] == "… (256 in all)"
    assert (found["event"], found["rows"]) == ("tiled", 256)
    assert json.loads(log_line("tiled", slides=["wsi/a.svs"], errors=[])) == {
        "event": "tiled", "slides": ["wsi/a.svs"], "errors": [],
    }  # fmt: skip


def test_a_refusal_repeats_no_more_of_a_request_than_gives_its_sense():
    request = SimpleNamespace(request_id=lambda: "", parameters=lambda: json.dumps({"pyramid": "x" * 10**6}))
    with pytest.raises(UnsupportedRequest) as error:
        read_request(request)
    assert len(str(error.value)) < 1000
    with pytest.raises(UnsupportedRequest, match="this server serves release c") as refusal:
        check_release(Asked("", "x" * 10**6), "c" * 64)
    assert len(str(refusal.value)) < 1000
    check_release(Asked("", "c" * 64), "c" * 64)
    check_release(Asked(""), "c" * 64)


def test_the_tiler_waits_while_rows_wait_for_the_engine(metrics_page):
    """Of the requests sent on, the last 30 wait."""
    queue = EngineQueue(64, pytest.fail)
    for rows in (1, 1):
        queue.sent(rows)
    assert queue.room() == (True, True)
    for _ in range(20):
        queue.sent(2)
    assert queue.room() == (True, False)
    for _ in range(20):
        queue.sent(2)
    assert queue.room() == (True, False)
    for _ in range(30):
        queue.sent(3)
    assert queue.room() == (False, False)


def test_where_the_metrics_do_not_answer_the_tiler_goes_on_and_says_so_once(monkeypatch):
    monkeypatch.setenv(METRICS_URL_ENV, "http://127.0.0.1:9/metrics")
    told = []
    queue = EngineQueue(1, told.append)
    queue.sent(99)
    assert (queue.room(), queue.room()) == ((True, True), (True, True))
    assert len(told) == 1


def test_a_number_of_rows_in_a_config():
    assert number_of_rows({"engine_rows": "8"}, "engine_rows", 64) == 8
    assert number_of_rows({}, "engine_rows", 64) == 64
    for bad in ("0", "-1", "many"):
        with pytest.raises(ValueError, match="not a number above 0"):
            number_of_rows({"engine_rows": bad}, "engine_rows", 64)


def test_a_client_allows_less_than_the_server(monkeypatch):
    assert Asked("run-7").sender == "run"
    assert Asked("").budget_s(110) == 110
    assert Asked("", timeout_s=300.0).budget_s(110) == 295
    assert Asked("", timeout_s=1e9).budget_s(110) == 600
    assert Asked("", timeout_s=2.0).budget_s(110) == 1
