"""The timeline: what the client notes and what Triton's trace says, in Chrome's format."""

import json

import pytest
from m2ost_client.errors import OutputError
from m2ost_client.timeline import SERVER, Span, Timeline, server_spans


def record(request, **stamps):
    return {"id": request, "timestamps": [{"name": name, "ns": ns} for name, ns in stamps.items()]}


def test_requests_that_a_model_executes_together_are_one_span():
    records = [
        {"id": 1, "model_name": "tiler", "model_version": 1},
        {"id": 2, "model_name": "tiler", "model_version": 1},
        {"id": 3, "model_name": "ensemble", "model_version": 1},
        record(1, REQUEST_START=1, QUEUE_START=2),
        record(1, COMPUTE_START=10, COMPUTE_END=30),
        record(2, QUEUE_START=5, COMPUTE_START=10, COMPUTE_END=30),
        record(3, REQUEST_START=0, REQUEST_END=40),
        record(4, QUEUE_START=1, COMPUTE_START=2, COMPUTE_END=3),
    ]
    assert server_spans(records) == [
        Span(SERVER, "tiler compute", "tiler", 10, 30, {"requests": 2}),
        Span(SERVER, "tiler queue", "tiler", 2, 10, {"requests": 1}),
        Span(SERVER, "tiler queue", "tiler", 5, 10, {"requests": 1}),
    ]


def test_a_block_is_noted_even_where_it_fails_and_written_as_chrome_reads_it(tmp_path):
    timeline = Timeline()
    with pytest.raises(ZeroDivisionError), timeline.span("stages", "score", spots=7):
        raise ZeroDivisionError
    (tmp_path / "server.json").write_text(
        json.dumps([{"id": 1, "model_name": "m2ost"}, record(1, QUEUE_START=0, COMPUTE_START=2000, COMPUTE_END=5000)])
    )
    span = {"lane": "decoder 7 cut_0", "name": "cut", "start_ns": 6000, "end_ns": 7000}
    (tmp_path / "server.decoders.jsonl").write_text(f"{json.dumps(span)}\n")
    timeline.add_server(tmp_path / "server.json")
    timeline.write(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    lanes = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["ph"] == "M"}
    spans = {lanes[e["pid"], e["tid"]]: e for e in events if e["ph"] == "X"}
    assert set(spans) == {"stages", "m2ost queue", "m2ost compute", "decoder 7 cut_0"}
    assert spans["stages"]["args"] == {"spots": 7}
    compute = spans["m2ost compute"]
    assert (compute["pid"], compute["name"], compute["ts"], compute["dur"]) == ("server", "m2ost", 2.0, 3.0)
    assert (spans["decoder 7 cut_0"]["ts"], spans["decoder 7 cut_0"]["dur"]) == (6.0, 1.0)
    assert [e["ts"] for e in events if e["ph"] == "X"] == sorted(e["ts"] for e in events if e["ph"] == "X")


def test_a_trace_that_is_not_whole_is_an_error_and_nothing_of_it_is_added(tmp_path):
    half = tmp_path / "half.json"
    half.write_text('[{"id": 1')
    traces = [half, tmp_path / "absent.json"]
    for name, decoders in (("cut_off", '{"lane": "dec'), ("anothers", '{"note": 1}')):
        traces.append(tmp_path / f"{name}.json")
        traces[-1].write_text(json.dumps([{"id": 1, "model_name": "m2ost"}, record(1, COMPUTE_START=2, COMPUTE_END=3)]))
        (tmp_path / f"{name}.decoders.jsonl").write_text(decoders)
    for trace in traces:
        timeline = Timeline()
        with pytest.raises(OutputError, match="no trace that can be read"):
            timeline.add_server(trace)
        assert timeline.spans == [], trace
    with pytest.raises(OutputError, match="timeline cannot be written"):
        Timeline().write(tmp_path / "no" / "folder.json")
