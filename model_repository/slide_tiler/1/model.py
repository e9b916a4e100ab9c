"""Slides to views: SLIDE, CENTER, SCALE → TICKET, and TICKET → VIEW0 …, STATUS; or all at once.

The pixels are read by decoder processes of its own. The config's parameter ``cut`` says where views are cut. Those cut
on a GPU stay there, and go on by DLPack.
"""

import json
import math
import threading
import time
import weakref
from functools import partial

import m2ost_contract as contract
import numpy as np
import triton_python_backend_utils as pb_utils
from m2ost_preprocess.errors import UnsupportedRequest
from m2ost_preprocess.slides import SlideRoots
from m2ost_serving import tiling, triton
from m2ost_serving.backlog import EngineQueue
from m2ost_serving.lanes import decoder_environment
from m2ost_serving.metrics import Refusals
from m2ost_serving.tiler import make_tiler
from m2ost_serving.tiling import Tiling, TilingRequest

COUNTERS = {
    "spots": "spots whose views were cut",
    "kept_spots": "spots whose views had been cut for another engine, and were kept",
    "regions": "regions put together out of tiles",
    "needed_px": "pixels of slides in the coarsest windows of these spots",
    "decoded_tiles": "compressed tiles decoded",
    "decoded_px": "pixels of the tiles decoded",
    "cached_tiles": "tiles that were needed and found decoded",
    "moved_bytes": "bytes of pixels copied into regions and views",
}


class TritonPythonModel:
    """Takes requests as they come, or refuses them; what it has taken is answered later, by other threads."""

    def initialize(self, args):
        triton.check_environment()
        info, settings = triton.engine_info(args["model_config"]), triton.parameters(args["model_config"])
        self._releases = json.loads(settings.get(triton.RELEASES_PARAMETER, f'["{info.release_sha256}"]'))
        gpu = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None
        metrics = triton.metrics(pb_utils, args["model_name"])
        self._refusals = Refusals(metrics)
        self._counters = {name: metrics.counter(f"m2ost_tiler_{name}_total", told) for name, told in COUNTERS.items()}
        statuses = [{"status": status.name} for status in contract.RowStatus]
        self._rows = metrics.counters("m2ost_rows_total", "rows answered, by their STATUS", statuses)
        self._cache_bytes = metrics.gauge("m2ost_tiler_cache_bytes", "bytes of tiles and views kept for later spots")
        self._tilers, self._lock = weakref.WeakSet(), threading.Lock()
        rows = partial(contract.number_of_rows, settings)
        engine = EngineQueue(rows(contract.ENGINE_ROWS_PARAMETER, contract.ENGINE_ROWS), _warn_of_engine, settings)
        self._tiling = Tiling(
            SlideRoots.from_environment(),
            lambda background, lane: make_tiler(
                settings, info.views, gpu, _log_decoding, environment=decoder_environment(background), spare=lane > 0
            ),
            count=self._count,
            joined_rows=rows(tiling.JOINED_ROWS_PARAMETER, tiling.JOINED_ROWS),
            room=engine.room,
            sent=engine.sent,
            failed=self._refusals.slide,
            tell_waiting=metrics.gauge(contract.WAITING_METRIC, "requests that wait for the tiler"),
        )
        self._names = info.views.names
        # On a GPU they do not pass through /dev/shm.
        self._view_bytes = [math.prod(info.views.shape)] * info.views.n_views if gpu is None else []

    def execute(self, requests):
        for request in requests:
            reply = _Reply(request, self._refusals, self._names, self._rows)
            try:
                asked = triton.read_request(request)
                triton.check_release(asked, *self._releases)
                ticket = _input(request, contract.TICKET)
                if ticket is not None:
                    self._tiling.redeem(int(ticket[0, 0]), reply)
                    continue
                tensors = [_input(request, name) for name in (contract.SLIDE, contract.CENTER, contract.SCALE)]
                if any(tensor is None for tensor in tensors):
                    raise UnsupportedRequest("SLIDE, CENTER and SCALE belong together; one is missing")
                if triton.is_probe(asked, triton.text(tensors[0][0, 0])):
                    reply.probed(len(tensors[0]))
                else:
                    self._tiling.put(self._read(request, asked, reply, tensors))
            except Exception as error:  # its own: the others of the batch are served
                reply.error(error)

    def _read(self, request, asked, reply, tensors):
        slides, centers, scales = tensors
        memory = triton.shared_memory()
        if memory is not None:
            memory.check_rows(len(slides), self._view_bytes)
        return TilingRequest(
            reply,
            [triton.text(name) for name in slides.reshape(-1)],
            # Copies: the tensors' memory is Triton's again when execute returns.
            centers.copy(),
            scales.reshape(-1).copy(),
            pyramid=asked.pyramid,
            background=asked.background,
            sender=asked.sender,
            budget_s=asked.budget_s(tiling.BUDGET_S),
            by_ticket=contract.TICKET in request.requested_output_names(),
        )

    def _count(self, counts, tiler):
        for name, counter in self._counters.items():
            counter(getattr(counts, name))
        with self._lock:
            self._tilers.add(tiler)
            self._cache_bytes(sum(tiler.kept_bytes for tiler in self._tilers))

    def finalize(self):
        self._tiling.close()


class _Reply(triton.Reply):
    """The way back to a request's client."""

    def __init__(self, request, refusals, names, rows):
        super().__init__(pb_utils, request, refusals)
        self._id, self._names, self._rows = triton.request_id(request), names, rows
        self._began = time.monotonic()

    def ticket(self, ticket, rows):
        return self.answer(lambda: [pb_utils.Tensor(contract.TICKET, np.full((rows, 1), ticket, np.int64))])

    def probed(self, rows):
        statuses = np.full((rows, 1), contract.RowStatus.SLIDE_UNAVAILABLE, np.int32)
        return self.answer(lambda: [pb_utils.Tensor(contract.STATUS, statuses)])

    def views(self, views, statuses, facts):
        names = (*self._names, contract.STATUS)
        given = self.answer(lambda: [_tensor(*pair) for pair in zip(names, (*views, statuses), strict=True)])
        if given:
            for status, counter in enumerate(self._rows):
                counter(int(np.count_nonzero(statuses == status)))
            bad = facts["errors"] or facts["rows_without_value"]
            self._log("tiled", pb_utils.Logger.log_warn if bad else pb_utils.Logger.log_info, facts)
        return given

    def error(self, error):
        given = super().error(error)
        if given:
            self._log("refused", pb_utils.Logger.log_warn, {"errors": [str(error)]})
        return given

    def _log(self, event, level, facts):
        took_s = round(time.monotonic() - self._began, 4)
        level(triton.log_line(event, request_id=self._id, **facts, took_s=took_s))


def _warn_of_engine(words):
    pb_utils.Logger.log_warn(triton.log_line("backlog_unknown", error=words))


def _log_decoding(slide, decoding):
    line = triton.log_line("decoding_chosen", slide=slide.name, **vars(decoding))
    pb_utils.Logger.log_info(line)


def _tensor(name, array):
    # from_dlpack of a NumPy array ends the stub.
    return pb_utils.Tensor(name, array) if isinstance(array, np.ndarray) else pb_utils.Tensor.from_dlpack(name, array)


def _input(request, name):
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()
