"""What iStar's models do. Imports nothing of Triton: the models hand it in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from m2ost_contract import CENTER, EXPRESSION, SLIDE, STATUS
from m2ost_preprocess.decoder import DecodedSlide, Decoder, SlideInfo
from m2ost_preprocess.errors import PreprocessError, SpotError, UnknownResolution
from m2ost_preprocess.slides import SlideRoots
from m2ost_serving.triton import check_environment, log_line, parameters, request_id, text, triton_error

from .geometry import VARIANTS
from .manifest import INFO, MPP, NETWORK_MODELS, SPOT_DIAMETER_UM, IStarInfo
from .onnx import NETWORKS, OnnxNetwork
from .pipeline import plan_slide, run_slide
from .run import SlideRun
from .sizes import Sizes
from .stopwatch import Stopwatch


class NetworkModel:
    """One network in the Python backend: requests in, their rows joined for one run, responses out.

    Parameters
    ----------
    pb_utils : module
        Triton's.
    args : dict
        What Triton hands to ``initialize``.
    network : str
        ``patch``, ``region`` or ``head``.

    Raises
    ------
    RuntimeError
        If the environment corrupts tensors, or the graph is not that of its folder.
    """

    def __init__(self, pb_utils: Any, args: dict[str, str], network: str) -> None:
        check_environment()
        info = IStarInfo.from_parameters(parameters(args["model_config"]))
        onnx = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._pb_utils, self._network = pb_utils, OnnxNetwork(onnx, network, info)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests of one execution."""
        tensors = self._network.tensors
        arrays = [
            np.from_dlpack(self._pb_utils.get_input_tensor_by_name(request, tensors.taken)) for request in requests
        ]
        if not tensors.batched or len(arrays) == 1:
            return [self._respond(self._network.run(array)) for array in arrays]
        ends = np.cumsum([len(array) for array in arrays])[:-1]
        outputs = [np.split(output, ends) for output in self._network.run(np.concatenate(arrays))]
        return [self._respond(parts) for parts in zip(*outputs, strict=True)]

    def _respond(self, outputs: Any) -> Any:
        named = zip(self._network.tensors.given, outputs, strict=True)
        return self._pb_utils.InferenceResponse([self._pb_utils.Tensor(name, array) for name, array in named])


class ServedNetworks:
    """The networks as models of the same server: ``pipeline.Networks``, safe to call from several threads.

    Parameters
    ----------
    pb_utils : module
        Triton's.
    sizes : Sizes
    """

    def __init__(self, pb_utils: Any, sizes: Sizes) -> None:
        self._pb_utils, self.sizes = pb_utils, sizes

    def patch(self, pixels: Any) -> tuple[Any, Any]:
        """ViT-256 on uint8 (n, 256, 256, 3)."""
        cls, tokens = self._ask("patch", pixels)
        return cls, tokens

    def region(self, cls_grid: Any) -> Any:
        """ViT-4K on float32 (h, w, dim)."""
        return self._ask("region", cls_grid)[0]

    def head(self, features: Any) -> Any:
        """The head on float32 (n, feature_dim)."""
        return self._ask("head", features)[0]

    def _ask(self, network: str, array: Any) -> list[Any]:
        tensors, model = NETWORKS[network], NETWORK_MODELS[network]
        response = self._pb_utils.InferenceRequest(
            model_name=model,
            inputs=[self._pb_utils.Tensor(tensors.taken, np.ascontiguousarray(array))],
            requested_output_names=list(tensors.given),
        ).exec()
        if response.has_error():
            raise RuntimeError(f"{model}: {response.error().message()}")
        outputs = (self._pb_utils.get_output_tensor_by_name(response, name) for name in tensors.given)
        return [np.array(output.as_numpy()) for output in outputs]  # a copy: the response's memory goes with it


class SlideModel:
    """``istar_slide``: one slide a request.

    Parameters
    ----------
    pb_utils : module
        Triton's.
    args : dict
        What Triton hands to ``initialize``.

    Raises
    ------
    RuntimeError
        If the environment corrupts tensors.
    """

    def __init__(self, pb_utils: Any, args: dict[str, str]) -> None:
        check_environment()
        settings = parameters(args["model_config"])
        self._pb_utils, self._info = pb_utils, IStarInfo.from_parameters(settings)
        self._variant = VARIANTS[self._info.variant]
        self._batch_rows, self._in_flight = int(settings["batch_rows"]), int(settings["in_flight"])
        self._memory_limit_gib = float(settings["memory_limit_gib"])
        self._networks = ServedNetworks(pb_utils, self._info.sizes)
        self._roots = SlideRoots.from_environment()
        self._decoder = Decoder(threads=0)  # it cuts nothing, and keeps no tiles to read along
        self._decoder.start()

    def answer(self, request: Any) -> Any:
        """The response to one request; an error names the slide and costs no other request anything."""
        slide = text(self._input(request, SLIDE).reshape(-1)[0])
        try:
            tensors, facts = self._predict(request, slide)
        except Exception as surprise:
            error = self._error(slide, surprise)
            line = log_line("slide_refused", request_id=request_id(request), slide=slide, error=error.message())
            self._pb_utils.Logger.log_warn(line)
            return self._pb_utils.InferenceResponse(error=error)
        line = log_line("slide_scored", request_id=request_id(request), slide=slide, **facts)
        self._pb_utils.Logger.log_info(line)
        return self._pb_utils.InferenceResponse(tensors)

    def _predict(self, request: Any, slide: str) -> tuple[list[Any], dict[str, Any]]:
        centers = self._input(request, CENTER)
        diameter_um = float(self._input(request, SPOT_DIAMETER_UM).reshape(-1)[0])
        located, watch = self._roots.locate(slide), Stopwatch()
        with watch("read"):
            info = self._decoder.describe(located, mpp=self._given_mpp(request))
        mpp = _resolution(slide, info)
        source = DecodedSlide(self._decoder, located, info)
        work, spots = plan_slide(
            source,
            centers,
            mpp=mpp,
            spot_diameter_um=diameter_um,
            variant=self._variant,
            sizes=self._info.sizes,
            watch=watch,
        )
        needed_gib = work.memory_bytes / 2**30
        if needed_gib > self._memory_limit_gib:
            raise SpotError(
                f"{info.size[0]}×{info.size[1]} px at {mpp:g} µm/px need {needed_gib:.1f} GiB in the variant "
                f"{self._variant.name}, istar_slide's memory_limit_gib is {self._memory_limit_gib:g}; raise it, or crop"
            )
        run = SlideRun(
            source, work, self._networks, batch_rows=self._batch_rows, watch=watch, in_flight=self._in_flight
        )
        expression, statuses = run_slide(run, spots, watch)
        facts = {
            **work.facts(),
            "mpp": mpp,
            "mpp_source": info.mpp_source,
            "spots": len(statuses),
            "seconds": {stage: round(seconds, 6) for stage, seconds in watch.seconds.items()},
            "pretrained": self._info.pretrained,
            "head_trained": self._info.head_trained,
            "folder_sha256": self._info.folder_sha256,
        }
        tensor = self._pb_utils.Tensor
        tensors = [
            tensor(EXPRESSION, expression),
            tensor(STATUS, statuses.reshape(-1, 1)),
            tensor(INFO, np.array([json.dumps(facts)], dtype=object)),
        ]
        return tensors, facts

    def _input(self, request: Any, name: str) -> Any:
        return self._pb_utils.get_input_tensor_by_name(request, name).as_numpy()

    def _given_mpp(self, request: Any) -> float | None:
        tensor = self._pb_utils.get_input_tensor_by_name(request, MPP)
        return None if tensor is None else float(tensor.as_numpy().reshape(-1)[0])

    def _error(self, slide: str, error: Exception) -> Any:
        if isinstance(error, SpotError | ValueError):
            return self._pb_utils.TritonError(f"{slide}: {error}", self._pb_utils.TritonError.INVALID_ARG)
        if isinstance(error, PreprocessError):
            return triton_error(self._pb_utils, error)
        message = f"{slide}: unexpected {type(error).__name__}: {error}"
        return self._pb_utils.TritonError(message, self._pb_utils.TritonError.INTERNAL)

    def close(self) -> None:
        """End the decoder process."""
        self._decoder.close()


def _resolution(slide: str, info: SlideInfo) -> float:
    if info.mpp is None:
        raise UnknownResolution(slide, "the file carries no µm/px, and everything is done at 0.5; give it as MPP")
    return info.mpp
