"""gRPC inside Locust: a call suspends the user that makes it, and nobody else.

Locust runs its users as gevent greenlets in one thread, and gRPC's C core knows nothing of them: unless it is told
(:func:`let_grpc_yield`), a call blocks every other user until it is answered, and a load of any size is a load of one.
Once told, a blocking call still occupies one of gevent's ten threads, so that an eleventh answer waits for a free one
and its latency grows. Calls here are futures: one thread watches a channel whatever the number of calls on it.
"""

from __future__ import annotations

from typing import Any

import gevent.event
import grpc
import grpc.experimental.gevent
import m2ost_contract as contract
import numpy as np
from m2ost_client.answers import read_served
from m2ost_client.credentials import Credentials
from m2ost_client.errors import BadAnswer, InputError
from m2ost_client.handshake import RESTRICTED, why_refused, wrong_token
from m2ost_contract import EngineInfo, ModelNames, ServedNameError
from m2ost_preprocess.network import channel_options, through_proxy
from tritonclient.grpc import service_pb2, service_pb2_grpc

from ..errors import TargetError
from .requests import MODELS, infer_request, output
from .workload import SlideSpots

PREPARATION_DEADLINE_S = 60.0


def let_grpc_yield() -> None:
    """Tell gRPC of gevent: after the monkey patching (that Locust does), after a fork, before the first channel."""
    grpc.experimental.gevent.init_gevent()


def describe_failure(error: grpc.RpcError) -> str:
    """``STATUS: the server's words``, short enough to count by."""
    words = (error.details() or "").partition("\n")[0]
    return f"{error.code().name}: {words[:160]}"


class Channel:
    """A connection to one server, shared by all users of a process.

    Parameters
    ----------
    address : str
        ``host:port`` of the gRPC service, or another form of gRPC's.
    credentials : Credentials, optional
        What the server is shown, and whom this client trusts.

    Raises
    ------
    TargetError
        If the credentials cannot be used, or not for this address.
    """

    def __init__(self, address: str, credentials: Credentials | None = None) -> None:
        self.address, self.credentials = address, credentials or Credentials()
        try:
            access = self.credentials.open(address)
        except InputError as error:
            raise TargetError(str(error)) from error
        self._metadata = access.metadata
        if access.channel is None:
            self._channel = grpc.insecure_channel(address, options=channel_options(address))
        else:
            self._channel = grpc.secure_channel(address, access.channel, options=channel_options(address))
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def close(self) -> None:
        """End it."""
        self._channel.close()

    def infer(self, request: Any, *, deadline_s: float) -> Any:
        """Send a ``ModelInferRequest`` and wait for its answer, while other greenlets go on; cancelled with this one.

        Raises
        ------
        grpc.RpcError
            If it fails.
        """
        return self._wait(self._stub.ModelInfer.future(request, timeout=deadline_s, metadata=self._metadata))

    def _wait(self, call: Any) -> Any:
        done = gevent.event.Event()
        call.add_done_callback(lambda _: done.set())
        try:
            done.wait()
        except BaseException:
            call.cancel()
            raise
        return call.result()

    def _ask(self, method: str, request: Any) -> Any:
        """Ask what belongs to the preparation of a load; a failure is the user's to mend."""
        try:
            ask = getattr(self._stub, method).future
            return self._wait(ask(request, timeout=PREPARATION_DEADLINE_S, metadata=self._metadata))
        except grpc.RpcError as error:
            if RESTRICTED in (error.details() or ""):
                raise TargetError(wrong_token(self.address, self.credentials)) from error
            if error.code() is grpc.StatusCode.UNAVAILABLE and (why := why_refused(self.address, self.credentials)):
                raise TargetError(why) from error
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise TargetError(
                    f"{self.address}: no server answers{through_proxy(self.address)} ({describe_failure(error)}); "
                    "check that it runs (`m2ost serve`) and that --host is the address of its gRPC port, host:port"
                ) from error
            raise TargetError(f"{self.address}: {describe_failure(error)}") from error

    def names(self, release: str | None) -> ModelNames:
        """Under which names a release's models are served; tiler and guard apart, which no load asks.

        Parameters
        ----------
        release : str or None
            Its name on the server; None for the only one.

        Raises
        ------
        TargetError
            If the server has no release of that name, or several and none is named; names those that there are.
        """
        if not self.is_served(contract.MODEL_INFO):
            return ModelNames()
        parameters = self.config(contract.MODEL_INFO).parameters
        try:
            served = read_served({key: value.string_value for key, value in parameters.items()})
            return ModelNames(contract.choose(served, release))
        except (BadAnswer, ServedNameError) as error:
            raise TargetError(f"{self.address}: {error}") from error

    def check_served(self, model: str, names: ModelNames) -> None:
        """Check that a model is loaded and ready.

        Parameters
        ----------
        model : str
            As it is served.
        names : ModelNames
            Of the release that is meant.

        Raises
        ------
        TargetError
            If there is no server, or it does not serve the model; names those that it does.
        """
        if self.is_served(model):
            return
        served = ", ".join(m for m in map(names.of, MODELS) if self.is_served(m)) or "none that a load test knows"
        raise TargetError(
            f"{self.address}: model {model} is not loaded; served: {served}. Choose users of a served model "
            "(SlideUser, PatchesUser, IstarUser), or serve a release that has it"
        )

    def is_served(self, model: str) -> bool:
        """Whether a model is loaded and ready."""
        return bool(self._ask("ModelReady", service_pb2.ModelReadyRequest(name=model)).ready)

    def config(self, model: str) -> Any:
        """A model's configuration as it is served."""
        return self._ask("ModelConfig", service_pb2.ModelConfigRequest(name=model)).config

    def engine(self, names: ModelNames) -> EngineInfo:
        """The identity, panel and views of the release whose models have these names.

        Raises
        ------
        TargetError
            If the server serves no release of this project, or one that predicts a slide as a whole.
        """
        config = self.config(names.engine)
        try:
            info = EngineInfo.from_parameters({key: value.string_value for key, value in config.parameters.items()})
        except ValueError as error:
            raise TargetError(f"{self.address}: {error}") from error
        if info.slide_level is not None:
            raise TargetError(f"{self.address}: predicts slides as a whole; a load is of spots that are predicted each")
        return info

    def priority_levels(self, model: str) -> int:
        """Priority levels of a model's queue: for an ensemble, the most of any of its steps; 0 where there are none.

        Triton takes a request's priority without a word where a model has no levels.
        """
        config = self.config(model)
        steps = [step.model_name for step in config.ensemble_scheduling.step]
        configs = [self.config(step) for step in steps] if steps else [config]
        return max(int(c.dynamic_batching.priority_levels) for c in configs)

    def spots_of(self, slide: str, *, pitch_um: float, mpp: float | None) -> SlideSpots:
        """A slide's own grid of spots, by ``slide_info``.

        Raises
        ------
        TargetError
            If the slide is unknown to the server, unreadable, carries no µm/px, or has no spots.
        """
        tensors: dict[str, np.ndarray[Any, Any]] = {
            contract.SLIDE: np.array([slide], dtype=object),
            "PITCH_UM": np.array([pitch_um], np.float64),
        }
        if mpp is not None:
            tensors["MPP"] = np.array([mpp], np.float64)
        answer = self._ask("ModelInfer", infer_request(contract.MODEL_INFO, tensors))
        centers = output(answer, contract.CENTER)
        if centers is None or not len(centers):
            raise TargetError(
                f"{self.address}: {slide} has no spots at a pitch of {pitch_um:g} µm (no tissue found); choose "
                "another slide or a smaller --pitch-um"
            )
        return SlideSpots(slide, centers.reshape(-1, 2).astype(np.int32))

    def server_version(self) -> str:
        """Name and version of the server."""
        answer = self._ask("ServerMetadata", service_pb2.ServerMetadataRequest())
        return f"{answer.name} {answer.version}"
