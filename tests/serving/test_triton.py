"""What the served models share: the engine's queue, and what they repeat of a request."""

import http.server
import json
import threading
from types import SimpleNamespace

import pytest
from m2ost_contract import METRICS_URL_ENV, number_of_rows
from m2ost_preprocess.errors import UnsupportedRequest
from m2ost_serving import backlog
from m2ost_serving.backlog import EngineQueue
from m2ost_serving.triton import Asked, check_release, log_line, read_request

PAGE = """# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{{model="slide_tiler",version="1"}} 12
nv_inference_pending_request_count{{model="m2ost",version="1"}} {pending}
nv_inference_pending_request_count{{model="m2ost_slide",version="1"}} 500
m2ost_engine_waiting_rows{{model="m2ost"}} {waiting}
m2ost_guarded_rows_total{{background="no",model="row_guard"}} {guarded}
m2ost_guarded_rows_total{{background="yes",model="row_guard"}} {late}
"""


@pytest.fixture
def metrics_page(monkeypatch):
    pages = []

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(pages[0].encode())

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv(METRICS_URL_ENV, f"http://127.0.0.1:{server.server_port}/metrics")
        yield pages
        server.shutdown()


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


def page(waiting=0, guarded=0, pending=0, late=0):
    return PAGE.format(waiting=waiting, guarded=guarded, pending=pending, late=late)


@pytest.mark.parametrize("queued", [{"waiting": 500}, {"pending": 9}], ids=["Python backend", "another backend"])
def test_the_tiler_waits_while_its_own_rows_wait_for_the_engine(metrics_page, queued):
    queue = EngineQueue(64, pytest.fail)
    queue.sent(100, False)
    metrics_page[:] = [page()]
    assert queue.room() == (True, True)
    for guarded, room in ((30, (False, False)), (40, (True, False)), (70, (True, True))):
        metrics_page[:] = [page(guarded=guarded, **queued)]
        assert queue.room() == room


def test_background_work_waits_for_all_rows_and_others_for_their_own(metrics_page):
    queue = EngineQueue(64, pytest.fail)
    metrics_page[:] = [page(waiting=500)]
    queue.sent(96, True)
    assert queue.room() == (True, False)
    queue.sent(64, False)
    assert queue.room() == (False, False)
    metrics_page[:] = [page(waiting=500, guarded=10, late=96)]
    assert queue.room() == (True, False)
    metrics_page[:] = [page(waiting=500, guarded=40, late=96)]
    assert queue.room() == (True, True)


def test_rows_of_which_nothing_comes_out_hold_the_tiler_up_for_a_while_only(metrics_page, monkeypatch):
    queue = EngineQueue(64, pytest.fail)
    queue.sent(100, False)
    metrics_page[:] = [page(waiting=500)]
    assert queue.room() == (False, False)
    monkeypatch.setattr(backlog, "FORGOTTEN_S", 0.0)
    assert queue.room() == (True, True)
    monkeypatch.setattr(backlog, "FORGOTTEN_S", 60.0)
    queue.sent(70, False)
    assert queue.room() == (False, False), "what was lost is neither there nor room"
    metrics_page[:] = [page(waiting=500, guarded=30)]
    assert queue.room() == (True, False)
    metrics_page[:] = [page()]
    assert queue.room() == (True, True)


def test_where_the_metrics_do_not_answer_the_tiler_goes_on_and_says_so_once(monkeypatch):
    monkeypatch.setenv(METRICS_URL_ENV, "http://127.0.0.1:9/metrics")
    told = []
    queue = EngineQueue(1, told.append)
    queue.sent(99, False)
    assert (queue.room(), queue.room()) == ((True, True), (True, True))
    (words,) = told
    assert METRICS_URL_ENV in words


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


SEVERAL = """nv_inference_pending_request_count{model="vit",version="1"} 0
m2ost_engine_waiting_rows{model="vit"} 0
m2ost_engine_waiting_rows{model="stnet"} 1
m2ost_engine_waiting_rows{model="m2ost"} 900
m2ost_guarded_rows_total{background="no",model="vit_guard"} 40
m2ost_guarded_rows_total{background="no",model="stnet_guard"} 20
m2ost_guarded_rows_total{background="no",model="m2ost_guard"} 7000
"""


def test_a_tiler_of_several_engines_counts_what_comes_out_behind_its_own(metrics_page):
    told = {backlog.ENGINES_PARAMETER: '["vit", "stnet"]', backlog.GUARDS_PARAMETER: '["vit_guard", "stnet_guard"]'}
    queue = EngineQueue(32, pytest.fail, told)
    metrics_page[:] = [SEVERAL]
    queue.sent(60 + 63, background=False)
    assert queue.room() == (True, False), "two engines, 32 rows each: one more fits"
    queue.sent(1, background=False)
    assert queue.room() == (False, False)
