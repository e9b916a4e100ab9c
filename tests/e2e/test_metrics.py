"""What a server tells Prometheus is what happened to it."""

import re
import urllib.request
from collections import Counter

import pytest
import tritonclient.grpc as triton
from m2ost_client.server.probe import probe
from tritonclient.utils import InferenceServerException

from tests.support.data import REPOSITORY
from tests.support.machine import wait_for

from .servers import raw_request

SLIDE = "wsi/CMU-1-Small-Region.svs"
SAMPLE = re.compile(r"^(\w+)(?:\{([^}]*)\})? (\S+)$", re.M)


def samples(server):
    """(metric, label=value …) → value."""
    with urllib.request.urlopen(server.metrics_url) as answer:
        page = answer.read().decode()
    found = Counter()
    for name, labels, value in SAMPLE.findall(page):
        found[name, *sorted(label for label in labels.split(",") if label and "version=" not in label)] = float(value)
    return found


def ask(server, slides, centers):
    with triton.InferenceServerClient(server.address) as client:
        return client.infer("m2ost_slide", raw_request(slides, centers)).as_numpy("STATUS").ravel().tolist()


def test_every_metric_is_on_the_page_of_metrics_and_none_besides(narrow_server):
    page = (REPOSITORY / "docs" / "metrics.md").read_text()
    found = [key for key in samples(narrow_server) if key[0].startswith("m2ost_")]
    assert set(re.findall(r"^\| `(m2ost_\w+)` \|", page, re.M)) == {name for name, *_ in found}
    values = {
        label.split('"')[1] for _, *labels in found for label in labels if not label.startswith(("model", "back"))
    }
    assert {value for value in values if f"`{value}`" not in page} == set()


def test_a_probe_fails_nothing_and_refuses_nothing(narrow_server):
    before = samples(narrow_server)
    health = probe(narrow_server.address, [release.engine for release in narrow_server.releases])
    assert health.ready, health.words

    def answered():
        since = samples(narrow_server) - before
        asked = [since["nv_inference_request_success", f'model="{model}"'] for model in ("slide_tiler", "slide_info")]
        return since if all(asked) else None

    since = wait_for(answered, "Triton counts a request a moment after it has answered it")
    ours = ("m2ost_requests_refused_total", "m2ost_slides_failed_total", "m2ost_rows_total", "m2ost_guarded_rows_total")
    failed = {key: n for key, n in since.items() if key[0] in (*ours, "nv_inference_request_failure")}
    assert failed == {}


def test_rows_slides_and_refusals_are_counted_by_their_reason(narrow_server):
    before = samples(narrow_server)
    assert ask(narrow_server, [SLIDE, SLIDE, "wsi/absent.svs"], [(800, 900), (-5, 9), (8, 8)]) == [0, 1, 3]
    for slides in (["wsi/absent.svs"], ["half/truncated.svs"]):
        with pytest.raises(InferenceServerException):
            ask(narrow_server, slides, [(8, 8)])
    now = samples(narrow_server)
    since = now - before

    def by(metric, label, model="slide_tiler"):
        keys = {key: n for key, n in since.items() if key[0] == metric and f'model="{model}"' in key}
        return {next(word.split('"')[1] for word in key[1:] if word.startswith(label)): n for key, n in keys.items()}

    assert by("m2ost_rows_total", "status") == {"OK": 1, "OUTSIDE_SLIDE": 1, "SLIDE_UNAVAILABLE": 1}
    assert by("m2ost_requests_refused_total", "reason") == {"slide": 2}
    assert by("m2ost_slides_failed_total", "reason") == {"not_found": 2, "unreadable": 1}
    tiler, engine = 'model="slide_tiler"', 'model="m2ost"'
    # The coarsest window of a spot: four times the finest, of 224 px. All of it lies in the slide.
    assert since["m2ost_tiler_needed_px_total", tiler] == 896**2
    assert since["m2ost_engine_rows_total", engine] >= 1
    assert 0 < since["m2ost_engine_busy_seconds_total", engine] < 60
    assert now["m2ost_tiler_cache_bytes", tiler] >= 896**2 * 3
    assert now["m2ost_engine_runs_at_once", engine] == 2
    assert now["m2ost_server_restarts_total",] == 0
