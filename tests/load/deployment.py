"""The server's image with TLS and a token, loaded until it refuses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from m2ost_bench.load.measure import LoadOptions, measure, server_counts
from m2ost_loadtests.errors import TargetError
from m2ost_loadtests.gate.measure import Target
from m2ost_loadtests.load.closed_load import run_closed_load

from tests.support.containers import inspect, said
from tests.support.deployed import Secrets, make_secrets, served


def load_image(
    image: str, release: Path, slide: Path, folder: Path, say: Callable[[str], None] = lambda _: None, **options: Any
) -> dict[str, Any]:
    """The report of :func:`m2ost_bench.load.measure.measure`, with how the server was deployed.

    Parameters
    ----------
    image : str
    release, slide : Path
    folder : Path
        Empty; certificates and token are written to it.
    say : callable
    **options
        Of :class:`~m2ost_bench.load.measure.LoadOptions`.
    """
    files, name = make_secrets(folder), f"slides/{slide.name}"
    with served(image, release, slide.parent, *files.arguments, options=files.options) as (address, metrics, container):
        target = Target(address=address, slide=name, metrics_url=metrics, credentials=files.known)
        told = LoadOptions(release=release, slide=slide, target=target, **options)
        report = measure(replace(told, processor_s=partial(processor_s, container)), say)
        faults = report["faults"] + strangers(target, files)
        facts = inspect("container", container)
        log = said(container)
    if files.token in log or files.token in str(facts):
        faults.append("the token is in the container's log or command")
    if "server_restarted" in log:
        faults.append("the server died under the load, and was started anew")
    host = facts["HostConfig"]
    deployment = {
        "image": image,
        "user": facts["Config"]["User"],
        "read_only_root": host["ReadonlyRootfs"],
        "capabilities": facts["EffectiveCaps"] or [],
        "security": host["SecurityOpt"],
        "shm_bytes": host["ShmSize"],
        "memory_bytes": host["Memory"],
        "transport": "TLS with a token",
    }
    return {**report, "deployment": deployment, "faults": faults}


def processor_s(container: str) -> float:
    """Processor time of all processes of a container so far, in seconds."""
    first = psutil.Process(inspect("container", container)["State"]["Pid"])
    total = 0.0
    for process in (first, *first.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])  # with children that have ended
    return total


def strangers(target: Target, files: Secrets) -> list[str]:
    """What is wrong with how those are refused who show a wrong token, none, or speak no TLS."""
    before, faults = server_counts(target.metrics_url), []
    without = type(files.known)(ca=files.known.ca)
    for who, credentials, words in (
        ("a wrong token", files.wrong, "refuses the token of"),
        ("no token", without, "wants a token"),
        ("no TLS", type(files.known)(), "speaks TLS"),
    ):
        try:
            report = run_closed_load(target.address, [target.slide], users=2, seconds=1, credentials=credentials)
            faults.append(f"{who} got in: {report.all['requests']} answers")
        except TargetError as error:
            if words not in str(error):
                faults.append(f"{who} is refused by other words than {words!r}: {error}")
    if server_counts(target.metrics_url) != before:
        faults.append("a model was asked by somebody without the token")
    return faults
