"""What tests ask of a real tritonserver, and of its processes."""

from __future__ import annotations

import asyncio
import re
import signal
import threading
import time
import urllib.request
from contextlib import suppress

import numpy as np
import psutil
from m2ost_client import SpotStream, StreamOptions, TritonServer
from m2ost_client.requests import tensor
from m2ost_contract import MODEL_TILER

from tests.support.machine import wait_for


def by_server(address: str, slide: str, centers, scale: float = 1.0, **options):
    """(expression, status) of every spot, through the server."""

    async def stream():
        async with SpotStream(address, StreamOptions(**options)) as client:
            expression = np.full((len(centers), len(client.info.genes)), 99, np.float32)
            status = np.full(len(centers), -1)
            async for batch in client.predict(slide, centers, scale=scale):
                assert (status[batch.rows] == -1).all(), "a spot came twice"
                expression[batch.rows], status[batch.rows] = batch.expression, batch.status
        assert (status >= 0).all()
        return expression, status

    return asyncio.run(stream())


def raw_request(slides, centers):
    """Inputs of m2ost_slide as a client without our library would send them."""
    return [
        tensor("SLIDE", np.array(slides, dtype=object).reshape(-1, 1)),
        tensor("CENTER", np.array(centers, np.int32).reshape(-1, 2)),
        tensor("SCALE", np.ones((len(slides), 1), np.float32)),
    ]


def metrics_of(server: TritonServer) -> dict[str, float]:
    """Prometheus metrics, by ``name{model}``."""
    with urllib.request.urlopen(server.metrics_url) as answer:
        text = answer.read().decode()
    found = re.findall(r'^(\w+)\{[^}]*model="(\w+)"[^}]*\} (\S+)$', text, re.M)
    return {f"{name}{{{model}}}": float(value) for name, model, value in found}


def waiting(server: TritonServer) -> float:
    """Requests that wait in the tiler's queue."""
    return metrics_of(server)["m2ost_tiler_waiting_requests{slide_tiler}"]


def metrics_at_rest(server: TritonServer) -> dict[str, float]:
    """Metrics between two runs of the engine: they stand still for a moment.

    Triton counts an execution a moment after it has answered it, and the supervisor's probe may come at any time.
    """
    counts = ("m2ost_engine_session_runs_total{m2ost}", "nv_inference_exec_count{m2ost}")

    def latest():
        first = metrics_of(server)
        time.sleep(0.2)
        second = metrics_of(server)
        return second if all(first[count] == second[count] for count in counts) else None

    return wait_for(latest, "a moment at which the engine has nothing to do")


def process_of(server, words):
    """The process below a server whose command has these words in it."""
    for process in psutil.Process(server.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if words in " ".join(process.cmdline()):
                return process
    raise AssertionError(f"no process {words}")


def still_running(processes):
    """Those of some processes that have not ended; a zombie has, and waits for its parent to notice."""
    left = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            left += [process] if process.is_running() and process.status() != psutil.STATUS_ZOMBIE else []
    return left


def heed_ctrl_c():
    """For ``preexec_fn``: a shell that starts tests in the background has its children ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def tiler_decoders(server, model: str = MODEL_TILER) -> list[psutil.Process]:
    """All processes that read slides for the tiler, or for another model: a further one reads while one is held up."""
    return [
        child
        for process in psutil.Process(server.pid).children()
        if f"{model}/1/model.py" in " ".join(process.cmdline())
        for child in process.children()
    ]


def tiler_decoder(server, model: str = MODEL_TILER) -> psutil.Process:
    """The first of them."""
    return tiler_decoders(server, model)[0]


class Held:
    """Holds up every process that reads slides for a model, also those that are yet to come, until it is released."""

    def __init__(self, server, model: str = MODEL_TILER) -> None:
        self._over, self._held, self._stopped = threading.Event(), threading.Event(), []
        self._holding = threading.Thread(target=self._hold, args=(server, model))

    def __enter__(self):
        self._holding.start()
        self._held.wait()
        return self

    def __exit__(self, *exc):
        self.release()

    def release(self) -> None:
        """Let them go on; more than once does no harm."""
        self._over.set()
        self._holding.join()
        while self._stopped:
            with suppress(psutil.NoSuchProcess):
                self._stopped.pop().resume()

    def _hold(self, server, model):
        try:
            while not self._over.wait(0.02):
                for decoder in tiler_decoders(server, model):
                    if decoder not in self._stopped:
                        decoder.suspend()
                        self._stopped.append(decoder)
                self._held.set()
        finally:
            self._held.set()
