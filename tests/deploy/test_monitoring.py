"""Alerts and dashboard on a real server, Prometheus and alertmanager."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from queue import Queue

import pytest
import yaml
from m2ost_client import ServerOptions, TritonServer
from m2ost_preprocess.network import read_url
from m2ost_preprocess.slides import SlideRoots

from tests.e2e.servers import by_server
from tests.support.containers import BUILT, need_programs
from tests.support.data import REPOSITORY
from tests.support.machine import kept_ports, wait_for
from tests.support.prometheus import Prometheus, prometheus

from .test_rules import RULES

METRIC = re.compile(r"\b(?:m2ost|nv)_\w+(?=[{\[) ])")


@contextmanager
def webhook():
    """A receiver of alerts: its address, and a queue of what it was sent."""
    received = Queue()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            received.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Receiver) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", received
        finally:
            server.shutdown()
            serving.join()


@contextmanager
def alertmanager(url, folder):
    """One that sends every alert to a webhook at once: its host and port."""
    config = {
        "route": {"receiver": "webhook", "group_wait": "0s", "group_interval": "1s"},
        "receivers": [{"name": "webhook", "webhook_configs": [{"url": url}]}],
    }
    (folder / "alertmanager.yml").write_text(json.dumps(config))  # JSON is YAML
    with kept_ports(1) as (port,):
        process = subprocess.Popen(
            [
                "prometheus-alertmanager",
                f"--config.file={folder / 'alertmanager.yml'}",
                f"--storage.path={folder / 'alertmanager'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--cluster.listen-address=",
                "--log.level=warn",
            ]
        )

        def ready() -> bool:
            assert process.poll() is None, "alertmanager has ended"
            try:
                return bool(read_url(f"http://127.0.0.1:{port}/-/ready", 10))
            except OSError:
                return False

        try:
            wait_for(ready, "alertmanager")
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def server(release, svs):
    need_programs("prometheus", "prometheus-alertmanager", BUILT / "tools" / "bin" / "python")
    with TritonServer(ServerOptions(release=release, roots=SlideRoots({"wsi": svs.parent}))) as running:
        yield running


@pytest.fixture(scope="module")
def received():
    """The address of a webhook, and what it was sent."""
    with webhook() as found:
        yield found


@pytest.fixture(scope="module")
def watched(server, svs, received, tmp_path_factory) -> Prometheus:
    """A Prometheus that watches a server by rules which do not wait; the server has scored a slide."""
    folder = tmp_path_factory.mktemp("watched")
    rules = yaml.safe_load(RULES.read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                rule["for"] = "1s"
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    with alertmanager(received[0], folder) as address:
        alerting = {"alertmanagers": [{"static_configs": [{"targets": [address]}]}]}
        with prometheus(server.metrics_url, folder, rule_files=["rules.yaml"], alerting=alerting) as found:
            _, status = by_server(server.address, f"wsi/{svs.name}", [(800, 900), (900, 900)])
            assert not status.any()
            wait_for(lambda: found.ask("sum(rate(m2ost_guarded_rows_total[10s]))") > 0, "a scrape of these spots")
            yield found


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp("dashboard") / "m2ost.json"
    program = REPOSITORY / "deploy" / "dashboards" / "build.py"
    subprocess.run([BUILT / "tools" / "bin" / "python", program, path], check=True)
    return json.loads(path.read_text())


def faults(dashboard: dict, found: Prometheus) -> list[str]:
    """The queries of a dashboard that are none, have no series here, or have none of the labels of their legend."""
    wrong = []
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            try:
                series = found.series(target["expr"].replace("$__rate_interval", "30s"))
            except OSError:
                wrong.append(f"{panel['title']}: no query")
                continue
            named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            wrong += [f"{panel['title']}: no series"] if not series else []
            wrong += [f"{panel['title']}: no such label"] if any(named - set(one["metric"]) for one in series) else []
    return wrong


def test_every_panel_of_the_dashboard_has_series(watched, dashboard):
    assert len(dashboard["panels"]) >= 10
    assert faults(dashboard, watched) == []
    for panel in dashboard["panels"]:
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        names = [target["refId"] for target in panel["targets"]]
        assert all(names)
        assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("right", "typo", "fault"),
    [
        ("m2ost_rows_total", "m2ost_row_total", "no series"),
        ("by (status)", "by (stauts)", "no such label"),
        ("sum by (status) (", "sum by (status) ", "no query"),
    ],
)
def test_a_typo_in_a_panel_is_seen(watched, dashboard, right, typo, fault):
    words = json.dumps(dashboard)
    assert words.count(right) == 1
    assert faults(json.loads(words.replace(right, typo)), watched) == [f"Rows by status: {fault}"]


def test_every_metric_of_the_alerts_is_one_of_the_server(watched):
    expressions = [rule["expr"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    metrics = {metric for expression in expressions for metric in METRIC.findall(expression)}
    assert len(metrics) >= 8
    assert {metric for metric in metrics if not watched.series(metric)} == set()
    selectors = {found for expression in expressions for found in re.findall(r"\w+\{[^}]+\}", expression)}
    assert len(selectors) >= 5
    assert {selector for selector in selectors if not watched.series(selector)} == set()
    wait_for(lambda: watched.ask("m2ost:requests:rate5m") > 0, "the rule that the alerts build on")


def test_a_server_that_is_stopped_reaches_the_webhook_and_no_other_alert_does(watched, server, received):
    server.stop()
    (alert,) = received[1].get(timeout=30)["alerts"]
    target = server.metrics_url.removeprefix("http://").removesuffix("/metrics")
    assert alert["status"] == "firing"
    assert alert["labels"] == {
        "alertname": "M2ostServerDown",
        "severity": "critical",
        "job": "m2ost",
        "instance": target,
    }
    assert alert["annotations"]["summary"] == f"{target} gives no metrics"
    assert alert["annotations"]["runbook_url"] == "docs/runbook.md#m2ostserverdown"
