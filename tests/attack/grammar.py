"""Requests that no client of ours would send, from a seeded grammar: each is made of the seed and its number alone."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from .target import Slide, Trap

SERVICE = "/inference.GRPCInferenceService/"
INFER, STREAM = "ModelInfer", "ModelStreamInfer"
MEGABYTE = 1_000_000
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
VIEWS = ("VIEW0", "VIEW1", "VIEW2")
TYPES = ("BOOL", "UINT8", "UINT16", "INT8", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES", "BF16", "", "COMPLEX")
NOT_TEXT = (b"\xff\xfe\xfd", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\x80")
_STAND_IN = "\x01stand-in\x01"

NUMBERS = (0.0, -0.0, 1.0, -1.0, 0.0625, 8.0, 8.0001, 1e-45, 1.4e-38, 1e38, float("nan"), float("inf"), float("-inf"))
PIXELS = (INT32_MIN, INT32_MIN + 1, -1, 0, 1, 447, 448, 2**16, 2**30, INT32_MAX - 448, INT32_MAX)
DIMENSIONS = (-(2**63), -2, -1, 0, 1, 2, 3, 255, 257, 2**31, 2**32 + 1, 2**62, 2**63 - 1)

Random = np.random.Generator


@dataclass(frozen=True)
class Attack:
    """One call.

    Parameters
    ----------
    kind : str
        What is wrong with it, in words.
    method : str
        Of the service.
    message : bytes
        The serialised request.
    metadata : tuple of (str, str)
    cancel_after_s : float or None
        When its sender gives it up, in seconds.
    must_fail : bool
        Whether any answer but an error is a fault.
    by_triton : bool
        Whether Triton itself refuses it, which repeats names of any length; gRPC then passes on other words.
    """

    kind: str
    method: str
    message: bytes
    metadata: tuple[tuple[str, str], ...] = ()
    cancel_after_s: float | None = None
    must_fail: bool = False
    by_triton: bool = False


@dataclass(frozen=True)
class Ground:
    """What requests are made for.

    Parameters
    ----------
    slide : Slide
        A sound one.
    trap : Trap
    genes : int
        Of the release.
    """

    slide: Slide
    trap: Trap
    genes: int


@dataclass
class Tensor:
    """An input, before it is written down."""

    name: str
    datatype: str
    shape: list[int]
    values: Any
    raw: bool = False
    data: bytes | None = field(default=None)


def raw_bytes(tensor: Tensor) -> bytes:
    """Its values as they stand in ``raw_input_contents``."""
    if tensor.data is not None:
        return tensor.data
    if tensor.datatype == "BYTES":
        return b"".join(struct.pack("<I", len(value)) + value for value in tensor.values)
    return np.ascontiguousarray(tensor.values).tobytes()


def request(model: str, tensors: Sequence[Tensor], **parameters: Any) -> pb.ModelInferRequest:
    """A request of these tensors; all of them raw, or each in its own field."""
    message = pb.ModelInferRequest(model_name=model, id="attack")
    raw = any(tensor.raw for tensor in tensors)
    for tensor in tensors:
        written = message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if raw:
            message.raw_input_contents.append(raw_bytes(tensor))
        elif tensor.datatype == "BYTES":
            written.contents.bytes_contents.extend(tensor.values)
        elif tensor.datatype == "INT32":
            written.contents.int_contents.extend(np.ravel(tensor.values).tolist())
        elif tensor.datatype == "FP32":
            written.contents.fp32_contents.extend(np.ravel(tensor.values).tolist())
        elif tensor.datatype == "FP64":
            written.contents.fp64_contents.extend(np.ravel(tensor.values).tolist())
        elif tensor.datatype == "UINT8":
            written.contents.uint_contents.extend(np.ravel(tensor.values).tolist())
    for name, value in parameters.items():
        _set(message.parameters[name], value)
    return message


def _set(parameter: Any, value: Any) -> None:
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    setattr(parameter, kinds[type(value)], value)


def spots(ground: Ground, random: Random, rows: int = 2, *, names: Sequence[bytes] = ()) -> list[Tensor]:
    """Inputs of ``m2ost_slide`` and ``slide_tiler``: spots of the sound slide, or of slides so called."""
    width, height = ground.slide.size
    called = list(names) or [ground.slide.name.encode()] * rows
    centers = random.integers((0, 0), (width, height), (len(called), 2)).astype(np.int32)
    raw = bool(random.integers(2))
    return [
        Tensor("SLIDE", "BYTES", [len(called), 1], called, raw),
        Tensor("CENTER", "INT32", [len(called), 2], centers, raw),
        Tensor("SCALE", "FP32", [len(called), 1], np.ones((len(called), 1), np.float32), raw),
    ]


def described(ground: Ground, name: bytes, **numbers: float) -> list[Tensor]:
    """Inputs of ``slide_info``."""
    return [
        Tensor("SLIDE", "BYTES", [1], [name]),
        *(Tensor(name, "FP64", [1], np.array([value])) for name, value in numbers.items()),
    ]


def slide_name(ground: Ground, random: Random) -> bytes:
    """A name that is none of a slide."""
    good = ground.slide.name
    root, _, file = good.partition("/")
    names: tuple[str | bytes, ...] = (
        *ground.trap.names,
        *ground.trap.names,
        "", "/", "//", ".", "..", "../", root, f"{root}/", f"{root}//{file}", f"{root}/./{file}", f"/{good}",
        f"{root}/../{good}", f"{root}/..", f"{root}/../../etc/passwd", "/etc/passwd", "/proc/self/environ",
        f"file:///{good}", f"http://127.0.0.1/{file}", f"{root}\\{file}", f"{root}/..\\{file}", f"{good}/", f"{good}/x",
        f"{root}/%2e%2e/{good}", f"{root}/..%2f{good}", f"{root}/%252e%252e/{file}", f"{root}%2f{file}",
        f"{good}\0", f"{root}/\0", f"\0{good}", f"{good}\0.png", f"{good}\n", f" {good}", f"{good} ", f"{root}/ {file}",
        f"elsewhere/{file}", f"{root.upper()}/{file}", f"ROOT/{file}", "m2ost/1/model.onnx", f"{root}/*", f"~/{file}",
        f"{root}/$HOME", f"$(id)/{file}", f"{root}/`id`", f"{root}/{{}}%s%n%x", f"{root}/\u202e{file[::-1]}",
        f"{root}/\u0301{file}", f"{root}\u2215{file}", f"\uff0e\uff0e/{file}", f"{root}/\u2024\u2024/{file}",
        f"\ufeff{good}", f"{root}/\U0001f9ec.svs", f"{root}/" + "a" * 255, f"{root}/" + "a" * 1024,
        f"{root}/" + "../" * 300 + "etc/passwd", "a/" * 512 + "b", "\u00e9" * 600, f"{root}/" + "x" * MEGABYTE,
        "/" * MEGABYTE, b"\xff" * 1000, good.encode() + b"\xff", root.encode() + b"/\xc0\xae\xc0\xae/" + file.encode(),
        root.encode() + b"/\xed\xb3\xbf.svs", b"\x00" * 64, b"\x1b]0;title\x07" + good.encode(),
    )  # fmt: skip
    name = names[random.integers(len(names))]
    return name if isinstance(name, bytes) else name.encode("utf-8", "surrogatepass")


def hostile_name(ground: Ground, random: Random) -> Attack:
    name = slide_name(ground, random)
    choice = random.integers(4)
    if choice == 0:
        if random.integers(2):  # which any file in a root has
            return _infer("slide name", request("slide_info", described(ground, name), fingerprint=True))
        return _infer("slide name", request("slide_info", described(ground, name)), must_fail=True)
    if choice == 1:  # between rows of a sound slide, which are to be scored
        good = ground.slide.name.encode()
        return _infer("slide name", request("m2ost_slide", spots(ground, random, names=[good, name, good])))
    names = [name] * (1 if len(name) > 10_000 else int(random.choice([1, 3, 64])))
    return _infer("slide name", request("m2ost_slide", spots(ground, random, names=names)), must_fail=True)


def many_names(ground: Ground, random: Random) -> Attack:
    root = ground.slide.name.partition("/")[0]
    size = int(random.choice([10, 500, 4000]))
    names = [f"{root}/{i}-{'n' * size}".encode() for i in range(256)]
    return _infer("256 slides at once", request("m2ost_slide", spots(ground, random, names=names)), must_fail=True)


def shape(ground: Ground, random: Random) -> Attack:
    tensors = spots(ground, random)
    changed = tensors[random.integers(3)]
    choice = random.integers(4)
    if choice == 0:
        changed.shape[random.integers(len(changed.shape))] = int(random.choice(DIMENSIONS))
    elif choice == 1:
        changed.shape = [int(n) for n in random.choice(DIMENSIONS, random.integers(0, 9))]
    elif choice == 2:
        changed.shape = [2**32, 2**32, *changed.shape[1:]]  # whose product is 0 in 64 bits
    else:
        n = int(random.choice(DIMENSIONS))
        for tensor in tensors:
            tensor.shape[0] = n
    return _infer("shape", request("m2ost_slide", tensors))


def datatype(ground: Ground, random: Random) -> Attack:
    tensors = spots(ground, random)
    message = request("m2ost_slide", tensors)
    for _ in range(random.integers(1, 3)):
        message.inputs[random.integers(3)].datatype = str(random.choice(TYPES))
    return _infer("dtype", message)


def raw_contents(ground: Ground, random: Random) -> Attack:
    tensors = spots(ground, random)
    tensors[0].raw = True
    message = request("m2ost_slide", tensors)
    contents = message.raw_input_contents
    place = int(random.integers(len(contents)))
    data, choice = contents[place], random.integers(9)
    if choice == 0:
        contents[place] = data[: random.integers(len(data))]
    elif choice == 1:
        contents[place] = data + random.bytes(int(random.integers(1, 100)))
    elif choice == 2:
        contents[place] = b""
    elif choice == 3:  # an element that says it is longer than all that there is
        contents[0] = struct.pack("<I", int(random.choice([2**31 - 1, 2**31, 2**32 - 1, 1000]))) + b"wsi/a"
    elif choice == 4:
        del contents[place:]
    elif choice == 5:
        contents.append(random.bytes(8))
    elif choice == 6:
        contents[place] = random.bytes(len(data))
    elif choice == 7:  # and the other field too
        message.inputs[place].contents.int_contents.extend([1, 2])
    else:
        contents[0] = struct.pack("<I", 0) * 2
    return _infer("raw contents", message)


def counts(ground: Ground, random: Random) -> Attack:
    tensors = spots(ground, random)
    for tensor in tensors:
        tensor.raw = False
    choice = random.integers(7)
    if choice == 0:
        tensors[0].values = tensors[0].values * int(random.choice([0, 2, 500]))
    elif choice == 1:
        tensors[1].values = np.zeros(int(random.choice([0, 3, 5, 10_000])), np.int32)
    elif choice == 2:
        tensors[2].values = np.zeros(int(random.choice([0, 1, 3, 10_000])), np.float32)
    elif choice == 3:
        tensors.pop(int(random.integers(3)))
    elif choice == 4:
        tensors.append(tensors[random.integers(3)])
    elif choice == 5:
        tensors[random.integers(3)].name = str(random.choice(["", "slide", "VIEW0", "STATUS", "X" * 1000]))
    else:
        rows = int(random.choice([0, 257, 1000]))
        tensors = spots(ground, random, names=[ground.slide.name.encode()] * rows) if rows else []
    return _infer("counts", request("m2ost_slide", tensors))


def parameter(ground: Ground, random: Random) -> Attack:
    huge = "x" * MEGABYTE
    values: tuple[Any, ...] = (True, False, 0, 1, -(2**63), 1.5, float("nan"), "", "true", "{}", '"', "\0", huge)
    keys = (
        "release", "pyramid", "fingerprint", "priority", "timeout", "sequence_id", "sequence_start", "sequence_end",
        "headers", "binary_data_output", "triton_final_response", "triton_enable_empty_final_response", "", "x" * 5000,
        "shared_memory_region", "classification", "__proto__",
    )  # fmt: skip
    chosen = {str(random.choice(keys)): values[random.integers(len(values))] for _ in range(random.integers(1, 4))}
    info = bool(random.integers(2))
    name = ground.slide.name.encode()
    message = request("slide_info", described(ground, name)) if info else request("m2ost_slide", spots(ground, random))
    for key, value in chosen.items():
        where = random.integers(4)
        holder = message.inputs[0] if where == 0 else message.outputs.add(name="STATUS") if where == 1 else message
        _set(holder.parameters[key], value)
    return _infer("parameters", message)


def many_parameters(ground: Ground, random: Random) -> Attack:
    message = request("m2ost_slide", spots(ground, random), **{f"p{i}": i for i in range(3000)})
    message.id = "i" * int(random.choice([0, 10_000, MEGABYTE]))
    return _infer("many parameters, long id", message)


def release(ground: Ground, random: Random) -> Attack:
    told = ("0" * 64, "", "A" * 64, "\n" * 100, "x" * 100_000, 7, True, 0.5)
    value = told[random.integers(len(told))]
    return _infer("release", request("m2ost_slide", spots(ground, random), release=value), must_fail=True)


def inner_model(ground: Ground, random: Random) -> Attack:
    model = str(random.choice(["slide_tiler", "m2ost", "row_guard", "slide_info", "m2ost_patches"]))
    rows = int(random.choice([1, 2, 3]))
    if model == "slide_tiler":
        tensors = spots(ground, random, rows)
    elif model == "slide_info":
        tensors = described(ground, ground.slide.name.encode())
    elif model == "row_guard":
        values = random.choice(np.array(NUMBERS, np.float32), (rows, ground.genes))
        statuses = random.choice(np.array([INT32_MIN, -1, 0, 1, 99, INT32_MAX], np.int32), (rows, 1))
        tensors = [Tensor("EXPRESSION", "FP32", [rows, ground.genes], values, True)]
        tensors.append(Tensor("STATUS", "INT32", [rows, 1], statuses, True))
    else:
        view = random.integers(0, 256, (rows, 224, 224, 3), np.uint8)
        tensors = [Tensor(name, "UINT8", [*view.shape], view, True) for name in VIEWS]
    if random.integers(2):
        spoilt = tensors[random.integers(len(tensors))]
        choice = random.integers(4)
        if choice == 0:
            spoilt.shape[0] = int(random.choice(DIMENSIONS))
        elif choice == 1:
            spoilt.data, spoilt.raw = raw_bytes(spoilt)[:-1], True
        elif choice == 2:
            spoilt.datatype = str(random.choice(TYPES[:-2]))
            spoilt.data, spoilt.raw = raw_bytes(Tensor("", "UINT8", [], np.zeros(8, np.uint8))), True
        else:
            tensors.remove(spoilt)
    return _infer("inner model", request(model, tensors))


def extremes(ground: Ground, random: Random) -> Attack:
    tensors = spots(ground, random, rows := int(random.choice([1, 2, 32])))
    if random.integers(2):
        tensors[1].values = random.choice(np.array(PIXELS, np.int64), (rows, 2)).astype(np.int32)
    if random.integers(2):
        tensors[2].values = random.choice(np.array(NUMBERS, np.float32), (rows, 1))
    parameters = {"pyramid": True} if random.integers(4) == 0 else {}
    return _infer("extreme values", request("m2ost_slide", tensors, **parameters))


def described_extremes(ground: Ground, random: Random) -> Attack:
    values = (*NUMBERS, 1e-6, 1e-300, 0.002, 0.01, 5e-324, 1e308, 50.0, 1e9)
    given = {}
    if random.integers(4):
        given["PITCH_UM"] = float(random.choice(values))
    if random.integers(2):
        given["MPP"] = float(random.choice(values))
    return _infer("pitch and µm/px", request("slide_info", described(ground, ground.slide.name.encode(), **given)))


def restricted(ground: Ground, random: Random) -> Attack:
    calls = (
        ("RepositoryIndex", pb.RepositoryIndexRequest()),
        ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="m2ost")),
        ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="m2ost")),
        ("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest()),
        ("SystemSharedMemoryRegister", pb.SystemSharedMemoryRegisterRequest(name="a", key="/a", byte_size=2**40)),
        ("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest()),
        ("CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest()),
        ("CudaSharedMemoryRegister", pb.CudaSharedMemoryRegisterRequest(name="a", raw_handle=b"a" * 64, byte_size=9)),
        ("CudaSharedMemoryUnregister", pb.CudaSharedMemoryUnregisterRequest()),
        ("TraceSetting", pb.TraceSettingRequest(model_name="m2ost")),
        ("LogSettings", pb.LogSettingsRequest()),
        ("ModelStatistics", pb.ModelStatisticsRequest()),
    )
    method, message = calls[random.integers(len(calls))]
    guesses = ("", "m2ost-admin", "guess", "x" * 1000)
    name = "triton-grpc-protocol-m2ost-admin"
    metadata = ((name, guesses[random.integers(len(guesses))]),) if random.integers(2) else ()
    if random.integers(6) == 0:
        message = _shared_memory(ground, random)
        return _infer("restricted API", message, must_fail=True)
    return Attack("restricted API", method, message.SerializeToString(), metadata, must_fail=True)


def _shared_memory(ground: Ground, random: Random) -> pb.ModelInferRequest:
    """A request whose input is to be found in a region that nobody registered."""
    message = request("m2ost_slide", spots(ground, random))
    del message.raw_input_contents[:]
    for tensor in message.inputs:
        tensor.ClearField("contents")
        tensor.parameters["shared_memory_region"].string_param = "a"
        tensor.parameters["shared_memory_byte_size"].int64_param = 2**40
    return message


def elsewhere(ground: Ground, random: Random) -> Attack:
    message = request("m2ost_slide", spots(ground, random))
    choice, method, must_fail = random.integers(5), INFER, False
    if choice == 0:
        models = ("", "M2OST", "m2ost_slide/../m2ost", "x" * MEGABYTE, "../m2ost", "é")
        message.model_name, must_fail = models[random.integers(len(models))], True
    elif choice == 1:
        message.model_version = str(random.choice(["0", "2", "-1", "99999999999999999999", "one", "1 ", "x" * 10_000]))
    elif choice == 2:
        message.outputs.add(name=str(random.choice(["VIEW0", "UNGUARDED", "", "absent", "x" * 10_000])))
    elif choice == 3:
        method = str(random.choice(["ModelReady", "ModelMetadata", "ModelConfig"]))
        message = pb.ModelReadyRequest(name="x" * int(random.choice([0, 9, MEGABYTE])))  # all three are alike
    else:
        method, must_fail = "Absent", True
    return Attack("other names", method, message.SerializeToString(), must_fail=must_fail, by_triton=True)


def not_text(ground: Ground, random: Random) -> Attack:
    """Bytes that are no UTF-8 where protobuf has strings, which its own libraries do not let anybody write."""
    message = request("m2ost_slide", spots(ground, random), pyramid=True)
    place = random.integers(7)
    if place == 0:
        message.model_name = _STAND_IN
    elif place == 1:
        message.id = _STAND_IN
    elif place == 2:
        message.inputs[random.integers(3)].name = _STAND_IN
    elif place == 3:
        message.inputs[random.integers(3)].datatype = _STAND_IN
    elif place == 4:
        message.parameters[_STAND_IN].string_param = "a"
    elif place == 5:
        message.parameters["release"].string_param = _STAND_IN
    else:
        message.outputs.add(name=_STAND_IN)
    bad = NOT_TEXT[random.integers(len(NOT_TEXT))]
    wanted = _STAND_IN.encode()
    data = message.SerializeToString().replace(wanted, (bad * len(wanted))[: len(wanted)])
    return Attack("no UTF-8", INFER, data)


def mutated(ground: Ground, random: Random) -> Attack:
    """The bytes of another request, changed at random."""
    kinds = (hostile_name, shape, raw_contents, counts, parameter, extremes, described_extremes)
    data = bytearray(kinds[random.integers(len(kinds))](ground, random).message[:100_000])
    for _ in range(random.integers(1, 6)):
        at, choice = int(random.integers(len(data) + 1)), random.integers(5)
        if choice == 0 and at < len(data):
            data[at] ^= 1 << random.integers(8)
        elif choice == 1:
            data[at:at] = random.bytes(int(random.integers(1, 9)))
        elif choice == 2:
            del data[at : at + int(random.integers(1, 20))]
        elif choice == 3:
            data[at:at] = data[at : at + 40]
        else:
            del data[at:]
    return Attack("mutated bytes", INFER, bytes(data))


def streamed(ground: Ground, random: Random) -> Attack:
    """Another attack by the method that answers with a stream."""
    kinds = (hostile_name, shape, raw_contents, counts, parameter, mutated)
    made = kinds[random.integers(len(kinds))](ground, random)
    return Attack("streamed", STREAM, made.message, must_fail=made.must_fail)


def cancelled(ground: Ground, random: Random) -> Attack:
    rows = int(random.choice([1, 8, 32]))
    message = (
        request("slide_info", described(ground, ground.slide.name.encode(), PITCH_UM=50.0))
        if random.integers(4) == 0
        else request("m2ost_slide", spots(ground, random, rows))
    )
    return Attack("cancelled", INFER, message.SerializeToString(), cancel_after_s=float(random.exponential(0.05)))


KINDS: tuple[Callable[[Ground, Random], Attack], ...] = (
    hostile_name, hostile_name, hostile_name, many_names, shape, shape, datatype, raw_contents, raw_contents, counts,
    parameter, many_parameters, release, inner_model, extremes, described_extremes, restricted, elsewhere, not_text,
    mutated, mutated, mutated, streamed, cancelled, cancelled,
)  # fmt: skip


def attack(ground: Ground, seed: int, number: int) -> Attack:
    """The request of this number; every kind in turn."""
    return KINDS[number % len(KINDS)](ground, np.random.default_rng((seed, number)))


def scored_rows(data: bytes) -> list[tuple[str, tuple[int, int], float]] | None:
    """Slide, centre and scale of the rows of a request of ``m2ost_slide``; None where its bytes do not say them."""
    try:
        message = pb.ModelInferRequest.FromString(data)
        found: dict[str, Any] = {}
        for i, tensor in enumerate(message.inputs):
            contents, raw = tensor.contents, message.raw_input_contents
            if tensor.name == "SLIDE":
                found["SLIDE"] = _elements(raw[i]) if raw else list(contents.bytes_contents)
            elif tensor.name in ("CENTER", "SCALE"):
                kind = np.int32 if tensor.name == "CENTER" else np.float32
                values = contents.int_contents if tensor.name == "CENTER" else contents.fp32_contents
                found[tensor.name] = np.frombuffer(raw[i], kind) if raw else np.array(values, kind)
        centers = found["CENTER"].reshape(-1, 2)
        return [
            (name.decode(errors="replace"), (int(x), int(y)), float(scale))
            for name, (x, y), scale in zip(found["SLIDE"], centers, found["SCALE"].reshape(-1), strict=True)
        ]
    except Exception:  # of bytes changed at random, anything may be wrong
        return None


def _elements(data: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        found.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return found


def _infer(kind: str, message: pb.ModelInferRequest, *, must_fail: bool = False) -> Attack:
    return Attack(kind, INFER, message.SerializeToString(), must_fail=must_fail)
