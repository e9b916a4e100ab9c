"""The chart: that what it writes is valid, strict and true to its values, and that it serves."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import pytest
import yaml
from anndata import read_h5ad
from m2ost_client.archive import Shard

from tests.support.containers import BUILT, inspect, need_containers, podman, said, tool
from tests.support.data import REPOSITORY
from tests.support.machine import wait_for

from .schemas import SCHEMAS
from .test_image import SLIDE, predict

CHART, VALUES = REPOSITORY / "deploy" / "chart", REPOSITORY / "deploy" / "values"
FILES = sorted(path.stem for path in VALUES.glob("*.yaml"))
VERSIONS = ("1.25", "1.37")

ACCEPTED = {
    "CKV_K8S_15": "an image is named by a version or a digest, which does not change",
    "CKV_K8S_35": "storages read their credentials from the environment",
    "CKV_K8S_43": "a digest is a value: which image it is, the user knows",
}
"""Findings of checkov's that stand, and why."""


@pytest.fixture(autouse=True)
def _tools():
    need_containers()


def template(values: str | None, *arguments: str, version: str = VERSIONS[-1], installation: str = "m2") -> list[dict]:
    """What the chart writes."""
    chosen = ("--values", VALUES / f"{values}.yaml") if values else ()
    command = (
        "template",
        installation,
        CHART,
        "--namespace",
        "spatial",
        "--kube-version",
        version,
        *chosen,
        *arguments,
    )
    return [resource for resource in yaml.safe_load_all(tool("helm", *command)) if resource]


@pytest.mark.parametrize("values", FILES)
def test_each_file_of_values_gives_valid_resources_of_old_and_new_clusters(values, tmp_path):
    assert len(FILES) >= 5
    tool("helm", "lint", "--strict", CHART, "--values", VALUES / f"{values}.yaml")
    for version in VERSIONS:
        resources = template(values, version=version)
        own = [resource for resource in resources if resource["kind"] in SCHEMAS]
        for resource in own:
            jsonschema.validate(resource, SCHEMAS[resource["kind"]])
        path = tmp_path / f"{version}.yaml"
        path.write_text(yaml.safe_dump_all(resource for resource in resources if resource not in own))
        # An unknown kind, and an API that is gone, only warn: whatever is said is an error here.
        assert tool("kubernetes-validate", "--strict", "--quiet", "-k", version, path) == ""


def test_the_checks_see_what_is_wrong(tmp_path):
    resources = {resource["kind"]: resource for resource in template("gpu")}
    planted = (("ScaledObject", "minReplicaCounts"), ("PodMonitor", "selectors"), ("PrometheusRule", "groupes"))
    for kind, field in planted:
        resources[kind]["spec"][field] = 1
        with pytest.raises(jsonschema.ValidationError, match=field):
            jsonschema.validate(resources[kind], SCHEMAS[kind])
    resources["Deployment"]["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(resources["Deployment"]))
    with pytest.raises(AssertionError, match="readinesProbe"):
        tool("kubernetes-validate", "--strict", "--quiet", path)


def test_its_alerts_are_those_that_promtool_tests():
    (resource,) = (resource for resource in template("gpu") if resource["kind"] == "PrometheusRule")
    assert resource["spec"] == yaml.safe_load((CHART / "rules" / "m2ost.yaml").read_text())


def test_a_pod_that_still_builds_its_engine_is_no_target_that_is_down():
    (monitor,) = (resource for resource in template("gpu") if resource["kind"] == "PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    kept = {"sourceLabels": ["__meta_kubernetes_pod_phase"], "regex": "Running", "action": "keep"}
    assert kept in endpoint["relabelings"]


@pytest.mark.parametrize("values", FILES)
def test_replicas_are_never_beside_what_scales(values):
    resources = template(values)
    kinds = {resource["kind"] for resource in resources}
    scaled = bool(kinds & {"HorizontalPodAutoscaler", "ScaledObject"})
    for resource in resources:
        if resource["kind"] == "Deployment":
            assert ("replicas" in resource["spec"]) != scaled


def replicas_wanted(row: dict[str, float], scaled: dict) -> int:
    """How many a ScaledObject asks for where these are the metrics of one server: by its triggers, in its limits."""
    waiting, used = (float(trigger["metadata"]["threshold"]) for trigger in scaled["triggers"])
    wanted = max(math.ceil(row["requests waiting"] / waiting), math.ceil(100 * row["saturation"] / used))
    return min(max(wanted, scaled["minReplicaCount"]), scaled["maxReplicaCount"])


def test_more_is_asked_for_under_load_and_no_more_once_it_has_gone():
    """By the series that `make metrics-test` recorded, of the shipped release."""
    (scaled, _) = (r["spec"] for r in template("gpu") if r["kind"] == "ScaledObject")
    assert ["waiting" in t["metadata"]["query"] for t in scaled["triggers"]] == [True, False]
    (record,) = (REPOSITORY / "benchmarks").glob("metrics-*.json")
    wanted = {clients: replicas_wanted(row, scaled) for clients, row in json.loads(record.read_text())["rows"].items()}
    assert wanted["0"] == wanted["after 1"] == wanted["after 16"] == wanted["after 64"] == 1
    assert wanted["16"] > 1
    assert wanted["64"] > 1


def test_checkov_finds_nothing_but_what_is_accepted(tmp_path):
    for values in FILES:
        (tmp_path / f"{values}.yaml").write_text(yaml.safe_dump_all(template(values)))
    command = (
        "--framework",
        "kubernetes",
        "--skip-download",
        "--compact",
        "--quiet",
        "--soft-fail",
        "--output",
        "json",
    )
    found = json.loads(tool(BUILT / "checkov" / "bin" / "checkov", *command, "--directory", tmp_path))
    assert found["summary"]["passed"] > 400
    assert {check["check_id"] for check in found["results"]["failed_checks"]} <= set(ACCEPTED)


@pytest.mark.parametrize(
    ("values", "settings", "words"),
    [
        ("cpu", "imag=x", "additional properties 'imag' not allowed"),
        ("cpu", "pools[0].profile=tensorrt", "pool cpu: profile tensorrt needs a GPU; give gpu.resource"),
        ("cpu", "engines.toolkit=tensorrt", "pool cpu: engines.toolkit builds an engine on the node's GPU"),
        ("gpu", "release.sha256=", "release.sha256: give the sha256 of the release's manifest.json"),
        ("gpu", "release.sha256=abc", "does not match pattern"),
        ("archive", "archive.slides=", "archive.slides: name the table of slides"),
        ("cpu", "tracing.otlp=collector:4318", "does not match pattern"),
        ("archive", "archive.shards=2", "additional properties 'shards' not allowed"),
        ("archive", "archive.completions=0", "minimum: got 0, want 1"),
        (None, "shmSize=1Gi", "release: give release.volume, or release.url with release.sha256"),
    ],
)
def test_values_that_cannot_be_meant_are_refused_in_words(values, settings, words):
    with pytest.raises(AssertionError) as refused:
        template(values, "--set", settings)
    assert words in str(refused.value)


def test_servers_hand_traces_over_only_where_a_receiver_is_named():
    receiver = "--trace-otlp=http://collector.monitoring:4318"
    for settings, expected in ((), set()), (("--set", f"tracing.otlp={receiver.partition('=')[2]}"), {receiver}):
        (server,) = (resource for resource in template("cpu", *settings) if resource["kind"] == "Deployment")
        (container,) = server["spec"]["template"]["spec"]["containers"]
        assert {word for word in container["args"] if "otlp" in word} == expected


@pytest.mark.parametrize("version", ["1.25", "1.28", "1.29", "1.37"])
@pytest.mark.parametrize("shards", [1, 5])
def test_an_archive_is_shared_out_over_the_pods_of_its_job(shards, version):
    resources = template("archive", "--set", f"archive.completions={shards}", version=version)
    (job,) = (resource for resource in resources if resource["kind"] == "Job")
    spec, each_for_itself = job["spec"], version in ("1.29", "1.37")
    (rescore,) = spec["template"]["spec"]["containers"]
    told = [one.removeprefix("--shard=") for one in rescore["args"] if one.startswith("--shard=")]
    policies = [rule["action"] for rule in spec.get("podFailurePolicy", {"rules": []})["rules"]]
    if shards == 1:
        assert told == []
        assert "completionMode" not in spec
        assert policies == ([] if version == "1.25" else ["FailJob", "Ignore"])
        return
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 5, 4)
    assert [Shard.parse(told[0].replace("$(JOB_COMPLETION_INDEX)", str(index))) for index in range(5)] == [
        Shard(index, 5) for index in range(5)
    ]
    if each_for_itself:
        assert (spec["backoffLimitPerIndex"], policies) == (6, ["FailIndex", "Ignore"])
        assert "backoffLimit" not in spec
    else:  # a share that fails ends no other before all tries are spent
        assert spec["backoffLimit"] == 30
        assert "FailJob" not in policies


@contextmanager
def http_folder(folder: Path):
    """A folder over HTTP, as an object storage gives it: its address."""
    program = (
        "import sys, functools, http.server as h;"
        "handler = functools.partial(h.SimpleHTTPRequestHandler, directory=sys.argv[1]);"
        "s = h.ThreadingHTTPServer(('127.0.0.1', 0), handler); print(s.server_port, flush=True); s.serve_forever()"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([sys.executable, "-c", program, str(folder)], **pipes) as process:
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


def on_this_machine(deployment: dict, folder: Path, slides: Path) -> dict:
    """A Deployment whose volumes lie here, on this machine's own ports: this podman has no emptyDir."""
    for container in deployment["spec"]["template"]["spec"]["containers"]:
        del container["ports"]
    shm = Path("/dev/shm") / f"m2ost-play-{os.getpid()}"
    for volume in deployment["spec"]["template"]["spec"]["volumes"]:
        if volume["name"].startswith("slides-"):
            path = slides
        else:
            path = shm if volume["name"] == "shm" else folder / volume["name"]
            path.mkdir(exist_ok=True)
            path.chmod(0o1777)
        for kind in ("emptyDir", "persistentVolumeClaim"):
            volume.pop(kind, None)
        volume["hostPath"] = {"path": str(path), "type": "Directory"}
    return deployment


def run_first(deployment: dict) -> None:
    """Run the containers that come before the server, and take them out: this podman does not wait for them."""
    pod = deployment["spec"]["template"]["spec"]
    folders = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"]}
    for first in pod.pop("initContainers"):
        mounts = (f"{folders[mount['name']]}:{mount['mountPath']}" for mount in first["volumeMounts"])
        options = ("--network", "host", "--user", "10001:10001", "--read-only", "--cap-drop", "all")
        podman(
            "run", "--rm", *options, *(word for m in mounts for word in ("--volume", m)), first["image"], *first["args"]
        )


def run_archive(job: dict, results: Path) -> None:
    """Run the pods of an Indexed Job one after the other, as the cluster would, on the server of this machine."""
    results.mkdir()
    results.chmod(0o1777)
    (results / "slides.csv").write_text("".join(f"{line}\n" for line in ("slide_id,path", *SHARED_OUT)))
    (rescore,) = job["spec"]["template"]["spec"]["containers"]
    for index in range(job["spec"]["completions"]):
        arguments = [one.replace("$(JOB_COMPLETION_INDEX)", str(index)) for one in rescore["args"]]
        strict = ("--network", "host", "--add-host", "m2:127.0.0.1", "--user", "10001:10001", "--read-only")
        volumes = ("--tmpfs", "/tmp", "--volume", f"{results}:/results")
        podman("run", "--rm", *strict, "--cap-drop", "all", *volumes, rescore["image"], *arguments)


SHARED_OUT = tuple(f"{name},slides/{SLIDE}" for name in ("one", "two", "three"))


def test_what_the_chart_writes_runs_fetches_its_release_predicts_and_scores_an_archive_in_shards(
    server_image, client_image, release, svs, tmp_path
):
    """By podman, in place of a cluster."""
    from m2ost_contract import sha256_file

    native = predict(tmp_path / "native", svs, "--release", release)
    with http_folder(release.parent) as url:
        settings = ["release.path=", "release.volume=null", f"release.url={url}/{release.name}"]
        settings += [f"release.sha256={sha256_file(release / 'manifest.json')}", "pools[0].replicas=1"]
        settings += ["image.pullPolicy=Never", "clientImage.pullPolicy=Never"]
        settings += ["archive.enabled=true", "archive.slides=slides.csv", "archive.completions=2"]
        settings += ["archive.arguments={--pitch-um=100,--view-mpp=0.5}"]
        for name, tag in (("image", server_image), ("clientImage", client_image)):
            repository, _, version = tag.rpartition(":")
            settings += [f"{name}.repository={repository}", f"{name}.tag={version}"]
        resources = template("cpu", *(word for setting in settings for word in ("--set", setting)))
        (deployment,) = (r for r in resources if r["kind"] == "Deployment")
        (job,) = (r for r in resources if r["kind"] == "Job")
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        (tmp_path / "kube").mkdir()
        kube = tmp_path / "kube.yaml"
        run_first(on_this_machine(deployment, tmp_path / "kube", svs.parent))
        kube.write_text(yaml.safe_dump(deployment))
        try:
            podman("play", "kube", "--network", "host", kube)
            (name,) = podman("ps", "--all", "--filter", "name=-server$", "--format", "{{.Names}}").split()
            try:
                wait_for(lambda: healthy(name, container["readinessProbe"]), "a container that is ready", 180)
            except AssertionError as error:
                raise AssertionError(said(name)[-3000:]) from error
            served = predict(tmp_path / "served", f"slides/{SLIDE}", "--server", "127.0.0.1:8001")
            found = inspect("container", name)
            run_archive(job, tmp_path / "results")
        finally:
            with suppress(AssertionError):
                podman("play", "kube", "--down", kube)
    np.testing.assert_array_equal(served, native)
    archive = tmp_path / "results" / "archive"
    summary = json.loads((archive / "summary.json").read_text())
    assert (summary["done"], summary["failed"], [shard["slides"] for shard in summary["shards"]]) == (3, [], [2, 1])
    for result in pd.read_parquet(archive / "archive.parquet").result:
        np.testing.assert_array_equal(read_h5ad(archive / result).X, native)
    assert found["HostConfig"]["ReadonlyRootfs"]
    assert found["EffectiveCaps"] in ([], None)
    assert found["Config"]["User"] == "10001:10001"


def healthy(name: str, probe: dict) -> bool:
    """Whether a probe of the chart's finds the container healthy."""
    try:
        podman("exec", name, *probe["exec"]["command"])
    except AssertionError:
        return False
    return True


def test_the_name_of_two_installations_stands_for_one_and_moves_to_the_other():
    """As docs/upgrade.md writes it."""
    blocks = (REPOSITORY / "docs" / "upgrade.md").read_text().split("```")
    (manifest,) = (block.removeprefix("yaml\n") for block in blocks if block.startswith("yaml\n"))
    (patch,) = (json.loads(block.split("'")[1]) for block in blocks if "kubectl" in block)
    before = yaml.safe_load(manifest)["spec"]["selector"]
    after = {**before, **patch["spec"]["selector"]}
    pods = {}
    for name in ("m2ost-1", "m2ost-2"):
        (server,) = (resource for resource in template("cpu", installation=name) if resource["kind"] == "Deployment")
        pods[name] = server["spec"]["template"]["metadata"]["labels"]

    def stands_for(selector):
        return [name for name, labels in pods.items() if selector.items() <= labels.items()]

    assert (stands_for(before), stands_for(after)) == (["m2ost-1"], ["m2ost-2"])
