"""A server that lies: it speaks Triton's protocol, serves a release that is none, and answers what it is told to.

Without a lie it answers as a server does, so that a client that goes wrong with one has gone wrong by the lie.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import grpc
import numpy as np
from m2ost_contract import PROBE_SLIDE, EngineInfo
from m2ost_preprocess.errors import SlideNotFound
from tritonclient.grpc import model_config_pb2, service_pb2_grpc
from tritonclient.grpc import service_pb2 as pb

SIZE = (2000, 1500)
GRID = np.array([[x, y] for y in (300, 700, 1100) for x in (300, 900, 1500)], np.int32)
"""The spots of every slide that it describes."""

FACTS = {
    "size": list(SIZE), "mpp": 0.5, "mpp_source": "given", "vendor": "png", "reader": "image", "reader_reason": "",
    "note": "", "fingerprint": "f" * 64, "tissue_fraction": 0.5, "pitch_px": 200.0,
}  # fmt: skip

Arrays = dict[str, np.ndarray[Any, Any]]
Lie = Callable[["Asked", pb.ModelInferResponse], pb.ModelInferResponse]
"""What becomes of a true answer; it may refuse, wait or change what is served from now on."""


class Asked:
    """A request that is lied to.

    Attributes
    ----------
    message : ModelInferRequest
    context : grpc.ServicerContext
    liar : Liar
    number : int
        How many of its model came before it, probes apart.
    """

    def __init__(self, message: pb.ModelInferRequest, context: grpc.ServicerContext, liar: Liar, number: int) -> None:
        self.message, self.context, self.liar, self.number = message, context, liar, number


def true_values(centers: np.ndarray[Any, Any], genes: int) -> np.ndarray[Any, Any]:
    """The expression that it serves at some positions, shape (n, genes)."""
    return (centers[:, :1] * 0.001 + centers[:, 1:] * 0.01 + np.arange(genes)).astype(np.float32)


class Liar(service_pb2_grpc.GRPCInferenceServiceServicer):
    """The server; a context manager.

    Parameters
    ----------
    engine : EngineInfo
        What it says that it serves.
    lie : callable, optional
        What becomes of its answers for ``model``.
    model : str
    config : callable, optional
        What becomes of the parameters of the engine's config.

    Attributes
    ----------
    address : str
    stopped : threading.Event
        For lies that wait: set when it is to end.
    release : str
        sha256 of what it says that it serves now.
    """

    def __init__(
        self,
        engine: EngineInfo,
        lie: Lie | None = None,
        *,
        model: str = "m2ost_slide",
        config: Callable[[dict[str, str]], dict[str, str]] | None = None,
    ) -> None:
        self.engine, self.release, self.stopped = engine, engine.release_sha256, threading.Event()
        self._lie, self._model, self._config = lie, model, config or (lambda parameters: parameters)
        self._asked: dict[str, int] = {}
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(32), options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Liar:
        self._server.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopped.set()
        self._server.stop(grace=None).wait()

    def ServerLive(self, request: Any, context: Any) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    def ModelConfig(self, request: Any, context: Any) -> pb.ModelConfigResponse:
        parameters = self._config({**self.engine.to_parameters(), "release_sha256": self.release})
        config = model_config_pb2.ModelConfig(name=request.name)
        for name, value in parameters.items():
            config.parameters[name].string_value = value
        return pb.ModelConfigResponse(config=config)

    def ModelInfer(self, request: Any, context: Any) -> pb.ModelInferResponse:
        inputs = read_inputs(request)
        if PROBE_SLIDE.encode() in np.ravel(inputs.get("SLIDE", ())):
            context.abort(grpc.StatusCode.NOT_FOUND, str(SlideNotFound(PROBE_SLIDE, "not a slide name")))
        answer = written(request, self._truth(request.model_name, inputs))
        if self._lie is None or request.model_name != self._model or request.id == "m2ost-probe":
            return answer
        with self._lock:
            number = self._asked[self._model] = self._asked.get(self._model, -1) + 1
        return self._lie(Asked(request, context, self, number), answer)

    def _truth(self, model: str, inputs: Arrays) -> Arrays:
        genes = len(self.engine.genes)
        if model == "m2ost_slide":
            n = len(inputs["CENTER"])
            return {"EXPRESSION": true_values(inputs["CENTER"], genes), "STATUS": np.zeros((n, 1), np.int32)}
        if model == "row_guard":
            return {"EXPRESSION": inputs["EXPRESSION"]}
        if model == "m2ost_patches":
            return {"EXPRESSION": np.zeros((len(inputs["VIEW0"]), genes), np.float32)}
        return {
            "INFO": np.array([json.dumps(FACTS)], object),
            "CENTER": GRID,
            "SPOT_NAME": np.array([f"s{i}" for i in range(len(GRID))], object),
            "THUMBNAIL": np.full((150, 200, 3), 230, np.uint8),
        }


_TYPES = {"INT32": np.int32, "FP32": np.float32, "FP64": np.float64, "UINT8": np.uint8}
_NAMES = {np.dtype(kind): name for name, kind in {**_TYPES, "INT64": np.int64, "FP16": np.float16}.items()}


def read_inputs(message: pb.ModelInferRequest) -> Arrays:
    """Inputs of a request of tritonclient's, which sends all raw."""
    found: Arrays = {}
    for tensor, data in zip(message.inputs, message.raw_input_contents, strict=True):
        if tensor.datatype == "BYTES":
            found[tensor.name] = np.array(_elements(data), object)
        else:
            found[tensor.name] = np.frombuffer(data, _TYPES[tensor.datatype]).reshape(tensor.shape)
    return found


def written(message: pb.ModelInferRequest, arrays: Arrays) -> pb.ModelInferResponse:
    """An answer that holds some arrays."""
    answer = pb.ModelInferResponse(model_name=message.model_name, model_version="1", id=message.id)
    for name, array in arrays.items():
        answer.outputs.add(name=name, datatype=_NAMES.get(array.dtype, "BYTES"), shape=array.shape)
        answer.raw_output_contents.append(_bytes_of(array))
    return answer


def replace(answer: pb.ModelInferResponse, **arrays: np.ndarray[Any, Any]) -> pb.ModelInferResponse:
    """An answer with other arrays in place of its own."""
    names = [tensor.name for tensor in answer.outputs]
    for name, array in arrays.items():
        place = names.index(name)
        del answer.outputs[place].shape[:]
        answer.outputs[place].shape.extend(array.shape)
        answer.outputs[place].datatype = _NAMES.get(array.dtype, "BYTES")
        answer.raw_output_contents[place] = _bytes_of(array)
    return answer


def array_of(answer: pb.ModelInferResponse, name: str) -> np.ndarray[Any, Any]:
    """A numeric array of an answer, to change and put back."""
    place = [tensor.name for tensor in answer.outputs].index(name)
    tensor = answer.outputs[place]
    return np.frombuffer(answer.raw_output_contents[place], _TYPES[tensor.datatype]).reshape(tensor.shape).copy()


def _bytes_of(array: np.ndarray[Any, Any]) -> bytes:
    if array.dtype != object:
        return array.tobytes()
    values = [value if isinstance(value, bytes) else str(value).encode() for value in array.reshape(-1)]
    return b"".join(len(value).to_bytes(4, "little") + value for value in values)


def _elements(data: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        found.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return found


class Wire:
    """A listener that is no gRPC server, or stands between a client and one; a context manager.

    Parameters
    ----------
    says : bytes, optional
        What everybody is told who connects; after it nothing more is said.
    behind : str, optional
        Address of the server that all is passed on to.
    pause_s : float
        Pause before each byte of that server's, in seconds.
    closes_after : int, optional
        So many bytes of that server's are passed on, then the connection is closed.
    """

    def __init__(
        self, says: bytes = b"", *, behind: str | None = None, pause_s: float = 0.0, closes_after: int | None = None
    ) -> None:
        self._says, self._behind, self._pause_s, self._closes_after = says, behind, pause_s, closes_after
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._open = ExitStack()
        self._ended = threading.Event()

    def __enter__(self) -> Wire:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._open.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._open.enter_context(self._listener.accept()[0])
                client.sendall(self._says)
                if self._behind is not None:
                    host, port = self._behind.split(":")
                    server = self._open.enter_context(socket.create_connection((host, int(port))))
                    for source, target, slow in ((client, server, False), (server, client, True)):
                        threading.Thread(target=self._pass_on, args=(source, target, slow), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, slow: bool) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(1 if slow and self._pause_s else 4096):
                if slow and self._closes_after is not None and passed + len(data) > self._closes_after:
                    break
                if slow and self._pause_s and self._ended.wait(self._pause_s):
                    break
                target.sendall(data)
                passed += len(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def lies() -> dict[str, Lie]:
    """Lies about scored spots, each by what is wrong."""

    def expression(change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> Lie:
        return lambda asked, answer: replace(answer, EXPRESSION=change(array_of(answer, "EXPRESSION")))

    def status(change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> Lie:
        return lambda asked, answer: replace(answer, STATUS=change(array_of(answer, "STATUS")))

    def set_to(array: np.ndarray[Any, Any], value: float) -> np.ndarray[Any, Any]:
        array[0, 0] = value
        return array

    def without(name: str) -> Lie:
        def lie(asked: Asked, answer: pb.ModelInferResponse) -> pb.ModelInferResponse:
            place = [tensor.name for tensor in answer.outputs].index(name)
            del answer.outputs[place], answer.raw_output_contents[place]
            return answer

        return lie

    def edited(change: Callable[[pb.ModelInferResponse], object]) -> Lie:
        def lie(asked: Asked, answer: pb.ModelInferResponse) -> pb.ModelInferResponse:
            change(answer)
            return answer

        return lie

    def refusal(code: grpc.StatusCode, words: str) -> Lie:
        return lambda asked, answer: asked.context.abort(code, words)

    def another_release(asked: Asked, answer: pb.ModelInferResponse) -> pb.ModelInferResponse:
        if asked.number:
            asked.liar.release = "d" * 64
        return answer

    def never(asked: Asked, answer: pb.ModelInferResponse) -> pb.ModelInferResponse:
        asked.liar.stopped.wait()
        return answer

    def second_never(asked: Asked, answer: pb.ModelInferResponse) -> pb.ModelInferResponse:
        return never(asked, answer) if asked.number else answer

    def second_wrong(asked: Asked, answer: pb.ModelInferResponse) -> pb.ModelInferResponse:
        return replace(answer, EXPRESSION=array_of(answer, "EXPRESSION")[:-1]) if asked.number else answer

    return {
        "one row fewer": expression(lambda array: array[:-1]),
        "one row more": expression(lambda array: np.repeat(array, 2, axis=0)[: len(array) + 1]),
        "one row for all": expression(lambda array: array[:1]),
        "a million rows": expression(lambda array: np.zeros((1_000_000, array.shape[1]), np.float32)),
        "the rows' values in one row": expression(lambda array: array.reshape(1, -1)),
        "one gene fewer": expression(lambda array: array[:, :-1]),
        "one gene more": expression(lambda array: np.hstack([array, array[:, :1]])),
        "another type": expression(lambda array: array.astype(np.float64)),
        "half precision": expression(lambda array: array.astype(np.float16)),
        "whole numbers": expression(lambda array: array.astype(np.int32)),
        "words for numbers": expression(lambda array: array.astype(str).astype(object)),
        "NaN with status 0": expression(lambda array: set_to(array, np.nan)),
        "infinity with status 0": expression(lambda array: set_to(array, np.inf)),
        "a value with status 4": status(lambda array: set_to(array, 4)),
        "a value with a status that nobody knows": status(lambda array: set_to(array, 77)),
        "a value with status -1": status(lambda array: set_to(array, -1)),
        "statuses of another type": status(lambda array: array.astype(np.int64)),
        "a status for all": status(lambda array: array[:1]),
        "no statuses": without("STATUS"),
        "no values": without("EXPRESSION"),
        "no outputs": edited(lambda answer: answer.Clear()),
        "no contents": edited(lambda answer: answer.ClearField("raw_output_contents")),
        "empty contents": edited(lambda answer: answer.raw_output_contents.__setitem__(0, b"")),
        "half of the contents": edited(
            lambda answer: answer.raw_output_contents.__setitem__(0, answer.raw_output_contents[0][:7])
        ),
        "a shape of minus one": edited(lambda answer: answer.outputs[0].shape.__setitem__(0, -1) or _cut(answer)),
        "a shape beyond all memory": edited(lambda answer: answer.outputs[0].shape.__setitem__(0, 2**62)),
        "a type that there is not": edited(lambda answer: setattr(answer.outputs[0], "datatype", "FP128")),
        "INTERNAL": refusal(grpc.StatusCode.INTERNAL, "out of everything"),
        "OUT_OF_RANGE": refusal(grpc.StatusCode.OUT_OF_RANGE, "no such thing"),
        "always UNAVAILABLE": refusal(grpc.StatusCode.UNAVAILABLE, "later"),
        "always a dead model": refusal(grpc.StatusCode.INTERNAL, "Stub process 'm2ost' is not healthy."),
        "another release in mid-run": another_release,
        "silence": never,
        "silence from the second request on": second_never,
        "wrong from the second request on": second_wrong,
    }


def _cut(answer: pb.ModelInferResponse) -> None:
    answer.raw_output_contents[0] = answer.raw_output_contents[0][: -len(answer.raw_output_contents[0]) // 2]


def descriptions() -> dict[str, Lie]:
    """Lies about a slide."""

    def facts(**changes: Any) -> Lie:
        told = json.dumps({**FACTS, **changes})
        return lambda asked, answer: replace(answer, INFO=np.array([told], object))

    def text(told: bytes) -> Lie:
        return lambda asked, answer: replace(answer, INFO=np.array([told], object))

    def arrays(**changes: np.ndarray[Any, Any]) -> Lie:
        return lambda asked, answer: replace(answer, **changes)

    def slow(asked: Asked, answer: pb.ModelInferResponse) -> pb.ModelInferResponse:
        asked.liar.stopped.wait()
        return answer

    names = np.array([f"s{i}" for i in range(len(GRID))], object)
    return {
        "INFO is empty": text(b""),
        "INFO is no UTF-8": text(b"\xff\xfe{"),
        "INFO is a number": text(b"17"),
        "INFO is nested too deep": text(b"[" * 100_000),
        "INFO is ten million characters": text(b'"' + b"x" * 10_000_000),
        "a size of 0": facts(size=[0, 5]),
        "a size of one number": facts(size=[5]),
        "a size of truths": facts(size=[True, True]),
        "a size beyond all": facts(size=[10**400, 10**400]),
        "a size beyond level-0 pixels": facts(size=[2**40, 100]),
        "a size that is smaller than its spots": facts(size=[10, 10]),
        "µm/px of NaN": text(json.dumps({**FACTS, "mpp": float("nan")}).encode()),
        "µm/px beyond all": facts(mpp=10**400),
        "µm/px in words": facts(mpp="0.5"),
        "µm/px of nobody": facts(mpp_source={"a": 1}),
        "more tissue than slide": facts(tissue_fraction=7.0),
        "less tissue than none": facts(tissue_fraction=-0.5),
        "a pitch below 0": facts(pitch_px=-0.5),
        "half a character": text(json.dumps({**FACTS, "vendor": "\ud800"}).encode()),
        "a NUL in the note": facts(note="a\0b"),
        "a NUL in a name": arrays(SPOT_NAME=np.array(["a\0b", *names[1:]], object)),
        "a name that is empty": arrays(SPOT_NAME=np.array(["", *names[1:]], object)),
        "names that are alike": arrays(SPOT_NAME=np.array(["s1", *names[1:]], object)),
        "fewer names than spots": arrays(SPOT_NAME=names[1:]),
        "spots outside the slide": arrays(CENTER=GRID + np.int32(5000)),
        "spots at negative places": arrays(CENTER=GRID - np.int32(1000)),
        "spots of three numbers": arrays(CENTER=np.zeros((len(GRID), 3), np.int32)),
        "no overview": arrays(THUMBNAIL=np.zeros((0, 0, 3), np.uint8)),
        "an overview in grey": arrays(THUMBNAIL=np.zeros((10, 10), np.uint8)),
        "no fingerprint": facts(fingerprint=""),
        "silence about it": slow,
    }


def configs() -> dict[str, Callable[[dict[str, str]], dict[str, str]]]:
    """Lies about what is served."""

    def told(**changes: str) -> Callable[[dict[str, str]], dict[str, str]]:
        return lambda parameters: {**parameters, **changes}

    return {
        "nothing": lambda parameters: {},
        "no genes": told(genes=""),
        "genes that are alike": told(genes="A\nA\nB\nC"),
        "a NUL in a gene": told(genes="A\0\nB\nC\nD"),
        "views in words": told(views="three"),
        "views of nothing": told(views="{}"),
        "views as a list": told(views="[1]"),
        "views of null": told(views="null"),
        "views of another kind": told(views='{"size_px": 224, "factors": [1, "two"]}'),
        "views beyond all memory": told(views='{"size_px": 2000000000, "factors": [1, 2, 4]}'),
        "views nested too deep": told(views="[" * 100_000),
        "µm/px in words": told(mpp='"a"'),
        "µm/px of NaN": told(mpp="NaN"),
        "µm/px below 0": told(mpp="-1"),
        "trained or not": told(trained="7"),
        "a release without a name": told(release_sha256=""),
    }
