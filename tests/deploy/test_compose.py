"""One host by compose: server, Prometheus and Alertmanager, brought up, asked, watched and taken down."""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.support.containers import build_image, need_containers, podman, tool
from tests.support.data import REPOSITORY
from tests.support.machine import kept_ports, wait_for

from .test_image import SLIDE, predict

COMPOSE = REPOSITORY / "deploy" / "compose"
MONITORING = "localhost/m2ost-{}:test"
FILE = """ARG BASE
FROM ${BASE}
COPY program /bin/program
COPY share/ /usr/share/prometheus/
RUN mkdir /data && chown nobody /data
USER nobody
ENTRYPOINT ["/bin/program"]
"""


@pytest.fixture(scope="module")
def monitoring(server_image, tmp_path_factory) -> dict[str, str]:
    """Prometheus and Alertmanager of Debian's, as images: no registry is at hand."""
    need_containers()
    images = {}
    for name, program, data in (
        ("prometheus", "prometheus", "/prometheus"),
        ("alertmanager", "prometheus-alertmanager", "/alertmanager"),
    ):
        folder = tmp_path_factory.mktemp(name)
        shutil.copy(shutil.which(program), folder / "program")
        # Where Debian keeps the pages and templates that the programs read as they start.
        shutil.copytree("/usr/share/prometheus", folder / "share")
        (folder / "Containerfile").write_text(FILE.replace("/data", data))
        images[name] = MONITORING.format(name)
        build_image(folder / "Containerfile", folder, images[name])
    return images


def hurried(path: Path, folder: Path) -> Path:
    """The same file with a second in place of each time that passes before anybody is told."""
    settings = yaml.safe_load(path.read_text())
    if "global" in settings:
        settings["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    for group in settings.get("groups", ()):
        group.pop("interval", None)
        for rule in group["rules"]:
            rule |= {"for": "1s"} if "alert" in rule else {}
    copy = folder / path.name
    copy.write_text(yaml.safe_dump(settings))
    return copy


def alerts(port: int) -> list[str] | None:
    """Names of the alerts that Alertmanager has been told of and that go on; None while it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v2/alerts", timeout=5) as answer:
            return [alert["labels"]["alertname"] for alert in json.load(answer)]
    except OSError:
        return None


def test_a_host_is_brought_up_predicts_tells_of_a_server_that_is_gone_and_is_taken_down(
    server_image, monitoring, release, svs, tmp_path
):
    native = predict(tmp_path / "native", svs, "--release", release)
    with kept_ports(3) as (grpc, prometheus, alertmanager):
        pass  # compose is to listen on them
    environment = {
        "RELEASE": release,
        "SLIDES": svs.parent,
        "SERVER_IMAGE": server_image,
        "PROMETHEUS_IMAGE": monitoring["prometheus"],
        "ALERTMANAGER_IMAGE": monitoring["alertmanager"],
        "PROMETHEUS_CONFIG": hurried(COMPOSE / "prometheus.yml", tmp_path),
        "RULES": hurried(REPOSITORY / "deploy" / "chart" / "rules" / "m2ost.yaml", tmp_path),
        "GRPC_PORT": grpc,
        "PROMETHEUS_PORT": prometheus,
        "ALERTMANAGER_PORT": alertmanager,
    }
    file = tmp_path / "environment"
    file.write_text("".join(f"{name}={value}\n" for name, value in environment.items()))
    command = ("--env-file", file, "--project-name", f"m2ost{os.getpid()}", "--file", COMPOSE / "compose.yaml")
    project = f"m2ost{os.getpid()}"
    try:
        tool("podman-compose", *command, "up", "--detach")
        server = f"{project}_server_1"
        wait_for(lambda: "server_ready" in podman("logs", server), "a server that is ready", 120)
        served = predict(tmp_path / "served", f"slides/{SLIDE}", "--server", f"127.0.0.1:{grpc}")
        wait_for(lambda: alerts(alertmanager) == [], "an Alertmanager that has nothing to tell", 30)
        podman("stop", "--time", "20", server)
        wait_for(lambda: "M2ostServerDown" in (alerts(alertmanager) or ()), "the alert", 60)
    finally:
        tool("podman-compose", *command, "down", "--volumes")
    np.testing.assert_array_equal(served, native)
    assert project not in podman("ps", "--all", "--format", "{{.Names}}")
