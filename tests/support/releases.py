"""What a release says of itself, made up."""

from __future__ import annotations

from dataclasses import replace

from m2ost_contract import EngineInfo, EnginePlan, ViewGeometry

ENGINE = EngineInfo(
    genes=("DDX5", "B2M", "FN1", "ERBB2"),
    views=ViewGeometry(),
    mpp=0.7,
    target="log1p_cpm_panel",
    trained=False,
    precision="fp32",
    checkpoint_sha256="a" * 64,
    onnx_sha256="b" * 64,
    release_sha256="c" * 64,
)


def engine_plan(**changes) -> EnginePlan:
    """An engine file as a manifest describes it: TensorRT's, for compute capability 8.9, read on its GPU."""
    plan = EnginePlan(
        toolkit="tensorrt",
        version="10.13.2.6",
        compute_capability="8.9",
        precision="fp16",
        file="m2ost/1/model-sm89.plan",
        sha256="",
        onnx_sha256="",
        size_bytes=9,
        rows=(1, 32, 256),
        network={"MATRIX_MULTIPLY HALF": 142},
        attention=36,
        weights_bytes=14_000_000,
        activation_bytes=None,
        inspected=True,
        engine={"gemm FP16": 100},
        fp32_size_bytes=None,
        driver="13.0",
    )
    return replace(plan, **changes)
