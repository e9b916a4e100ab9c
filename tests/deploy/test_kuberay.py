"""The example for KubeRay: valid, strict, and run by podman in place of KubeRay, from the client's image with Ray."""

from __future__ import annotations

import json
import secrets
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import yaml
from anndata import read_h5ad
from m2ost_cli.main import app
from typer.testing import CliRunner

from tests.support.containers import BUILT, build, inspect, need_containers, podman, said, tool
from tests.support.data import REPOSITORY
from tests.support.deployed import make_secrets
from tests.support.machine import wait_for

from .schemas import SCHEMAS
from .test_chart import ACCEPTED, VERSIONS
from .test_image import SLIDE

FILE = REPOSITORY / "deploy" / "kuberay" / "rayjob.yaml"
IMAGE = "localhost/m2ost-client-ray:test"
NETWORK, SERVER_NAME = "m2ost-kuberay-test", "m2ost"


@pytest.fixture(autouse=True)
def _tools():
    need_containers()


@pytest.fixture
def job() -> dict:
    return documents()["RayJob"]


def documents() -> dict[str, dict]:
    """The file's resources by kind."""
    return {resource["kind"]: resource for resource in yaml.safe_load_all(FILE.read_text())}


def groups(job: dict) -> list[dict]:
    """The head's group, then the workers'."""
    cluster = job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pods(job: dict) -> list[dict]:
    """Its templates, as Pods."""
    names = [{"name": f"pod-{index}", "namespace": "spatial"} for index, _ in enumerate(groups(job))]
    return [
        {"apiVersion": "v1", "kind": "Pod", "metadata": name | group["template"]["metadata"]}
        | {"spec": group["template"]["spec"]}
        for name, group in zip(names, groups(job), strict=True)
    ]


def test_it_is_a_valid_rayjob_of_valid_pods(job, tmp_path):
    jsonschema.validate(job, SCHEMAS["RayJob"])
    path = tmp_path / "pods.yaml"
    path.write_text(yaml.safe_dump_all([*pods(job), documents()["NetworkPolicy"]]))
    for version in VERSIONS:
        assert tool("kubernetes-validate", "--strict", "--quiet", "-k", version, path) == ""


def test_the_check_sees_what_is_wrong(job):
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParam"] = {}
    with pytest.raises(jsonschema.ValidationError, match="rayStartParam"):
        jsonschema.validate(job, SCHEMAS["RayJob"])


def test_checkov_finds_nothing_but_what_is_accepted(job, tmp_path):
    policy = documents()["NetworkPolicy"]
    policy["metadata"]["namespace"] = "spatial"
    (tmp_path / "pods.yaml").write_text(yaml.safe_dump_all([*pods(job), policy]))
    command = ("--framework", "kubernetes", "--skip-download", "--compact", "--quiet", "--soft-fail")
    checkov = BUILT / "checkov" / "bin" / "checkov"
    found = json.loads(tool(checkov, *command, "--output", "json", "--directory", tmp_path))
    assert found["summary"]["passed"] > 100
    assert {check["check_id"] for check in found["results"]["failed_checks"]} <= set(ACCEPTED)


def test_all_pods_have_the_same_ray_and_read_what_the_run_shows_servers(job):
    images = {pod["spec"]["containers"][0]["image"] for pod in pods(job)}
    assert len(images) == 1
    pinned = (REPOSITORY / "constraints" / "client.txt").read_text().splitlines()
    assert f"ray=={job['spec']['rayClusterSpec']['rayVersion']}" in pinned
    mounted = [{m["mountPath"] for m in pod["spec"]["containers"][0]["volumeMounts"]} for pod in pods(job)]
    assert set.intersection(*mounted) == {"/tmp", "/tls", "/token"}


@contextmanager
def network() -> Iterator[None]:
    """A network of containers that find each other by name, and nothing else."""
    with suppress(AssertionError):
        podman("network", "rm", "--force", NETWORK)
    podman("network", "create", "--internal", NETWORK)
    try:
        yield
    finally:
        podman("network", "rm", "--force", NETWORK)


@contextmanager
def running(name: str, image: str, options: tuple[object, ...], *command: object) -> Iterator[str]:
    """A container in the network; its address."""
    common = ("--network", NETWORK, "--tmpfs", "/tmp", "--security-opt", "no-new-privileges", "--cap-drop", "all")
    podman("run", "--detach", "--replace", "--name", name, *common, "--read-only", *options, image, *command)
    try:
        yield inspect("container", name)["NetworkSettings"]["Networks"][NETWORK]["IPAddress"]
    finally:
        podman("rm", "--force", "--time", "0", name)


def as_kuberay_starts_it(group: dict, token: str, folders: dict[str, Path], **more: str) -> tuple[tuple, tuple]:
    """Options of a group's container, and its command."""
    spec = group["template"]["spec"]
    (container,) = spec["containers"]
    strict, user = container["securityContext"], spec["securityContext"]
    assert strict["readOnlyRootFilesystem"]
    assert strict["capabilities"] == {"drop": ["ALL"]}
    options = ["--user", f"{user['runAsUser']}:{user['runAsGroup']}", "--shm-size", "512m", "--memory", "2g"]
    environment = {one["name"]: one["value"] for one in container["env"]}
    environment |= {"RAY_AUTH_MODE": group["auth"], "RAY_AUTH_TOKEN": token}
    options += [word for name, value in environment.items() for word in ("--env", f"{name}={value}")]
    for mount in container["volumeMounts"]:
        if mount["name"] in folders:
            mode = "ro" if mount.get("readOnly") else "rw"
            options += ["--volume", f"{folders[mount['name']]}:{mount['mountPath']}:{mode}"]
    given = {"block": "true", "object-store-memory": "100000000", **group["rayStartParams"], **more}
    # KubeRay writes a flag for what is true, and everything else as it stands into a line of the shell.
    words = " ".join(f"--{name}" if value == "true" else f"--{name}={value}" for name, value in given.items())
    return tuple(options), ("-c", "--", f"ulimit -n 20000; ray start {words}")


def asked(url: str, token: str = "", body: dict | None = None) -> dict:
    """What Ray's dashboard answers."""
    headers = {"Content-Type": "application/json"} | ({"x-ray-authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(url, json.dumps(body).encode() if body else None, headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read())


def alive(address: str, group: dict) -> bool:
    """What the group's readiness probe finds."""
    (container,) = group["template"]["spec"]["containers"]
    probe = container["readinessProbe"]["httpGet"]
    url = f"http://{address}:{probe['port']}{probe['path']}"
    with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
        return answer.status == 200
    return False


def is_ready(server: str) -> bool:
    """Whether the server in a container says so."""
    with suppress(AssertionError):
        return bool(podman("exec", server, "find", "/tmp/m2ost-ready", "-mmin", "-1"))
    return False


def test_it_scores_an_archive_on_a_server_with_tls_and_a_token(job, server_image, release, svs, tmp_path):
    image = build("client", IMAGE, "--build-arg", "EXTRAS=archive,kuberay")
    files = make_secrets(tmp_path, SERVER_NAME)
    results, tls = tmp_path / "results", tmp_path / "tls"
    for made in (results, tls):
        made.mkdir()
    results.chmod(0o1777)
    (tls / "ca.crt").write_bytes(files.known.ca.read_bytes())
    (results / "slides.csv").write_text(f"slide_id,path,mpp\none,slides/{SLIDE},0.5\n")
    folders = {"results": results, "tls": tls, "token": files.folder}
    head, workers = (group | {"auth": job["spec"]["rayClusterSpec"]["authOptions"]["mode"]} for group in groups(job))
    token = secrets.token_urlsafe(32)
    served = ("--user", "10001:10001", "--shm-size", "512m", "--volume", f"{release}:/release:ro")
    served += ("--volume", f"{svs.parent}:/slides:ro", *files.options)
    serve = ("serve", "/release", "--slides", "slides=/slides", "--host", "0.0.0.0", "--ready-file", "/tmp/m2ost-ready")
    with network(), ExitStack() as stack:
        stack.enter_context(running(SERVER_NAME, server_image, served, *serve, *files.arguments))
        options, command = as_kuberay_starts_it(head, token, folders, head="true")
        as_bash = ("--entrypoint", "/bin/bash")
        at_head = stack.enter_context(running("m2ost-ray-head", image, (*options, *as_bash), *command))
        wait_for(lambda: alive(at_head, head), "Ray's head", 120)
        options, command = as_kuberay_starts_it(workers, token, folders, address="m2ost-ray-head:6379")
        at_worker = stack.enter_context(running("m2ost-ray-worker", image, (*options, *as_bash), *command))
        wait_for(lambda: alive(at_worker, workers), "Ray's worker", 120)
        wait_for(lambda: is_ready(SERVER_NAME), "the server", 120)
        jobs, wanted = f"http://{at_head}:8265/api/jobs/", {"entrypoint": job["spec"]["entrypoint"]}
        for wrong in ("", "another"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                asked(jobs, wrong, wanted)
            assert refused.value.code in (401, 403)
        submitted = asked(jobs, token, wanted)["submission_id"]

        def ended():
            state = asked(f"{jobs}{submitted}", token)
            return state if state["status"] in ("SUCCEEDED", "FAILED", "STOPPED") else None

        state = wait_for(ended, "the archive", 180)
        log = asked(f"{jobs}{submitted}/logs", token)["logs"]
        assert state["status"] == "SUCCEEDED", f"{state}\n{log}\n{said(SERVER_NAME)[-2000:]}"
    assert files.token not in log
    summary = json.loads((results / "archive" / "summary.json").read_text())
    assert (summary["done"], summary["failed"]) == (1, [])
    assert summary["run"]["ray"]["places"] == 2
    assert summary["run"]["ray"]["tasks"] >= 1
    native = ("predict", svs, "--release", release, "--mpp", "0.5", "--pitch-um", "100", "--out", tmp_path / "native")
    done = CliRunner().invoke(app, [*map(str, native)])
    assert done.exit_code == 0, done.output
    scored = read_h5ad(results / "archive" / "results" / "one.h5ad").X
    np.testing.assert_array_equal(scored, read_h5ad(tmp_path / "native" / f"{Path(SLIDE).stem}.h5ad").X)
