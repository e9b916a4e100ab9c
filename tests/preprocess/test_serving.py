"""The waiting requests, counted from a page of Triton's metrics."""

import http.server
import threading

import pytest
from m2ost_preprocess.serving import METRICS_URL_ENV, waiting_requests

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
