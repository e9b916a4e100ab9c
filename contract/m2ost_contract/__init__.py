"""What every other package of this project builds on: names, shapes, files and errors that they agree upon.

Standard library and numpy only, so that any of them, and any foreign client, can import it.
"""

import os

from .engines import (
    CHOICES,
    ENGINE_PARAMETER,
    ONNXRUNTIME_CPU,
    ONNXRUNTIME_CPU_DENSE,
    ONNXRUNTIME_CUDA,
    OPENVINO_CPU,
    SPINNING_PARAMETER,
    TENSORRT,
    TENSORRT_RTX,
    THREADS_PARAMETER,
    EngineError,
    EnginePlan,
    plan_for,
    supports_version,
)
from .errors import M2OSTError
from .files import complete_folder
from .geometry import ViewGeometry
from .release import (
    DENSE_FILE,
    ONNX_FILE,
    EngineInfo,
    Manifest,
    ManifestError,
    ReleaseError,
    changed_files,
    check_files,
    sha256_file,
)
from .tensors import (
    BACKGROUND_PARAMETER,
    CENTER,
    ENV_ALLOWED_FORMATS,
    ENV_DECODER_MEMORY_MIB,
    ENV_DECODER_TRACE,
    ENV_READER,
    ENV_SLIDE_ROOTS,
    ENV_TILE_CACHE_MIB,
    EXPRESSION,
    FINGERPRINT_PARAMETER,
    MAX_ROWS,
    MAX_SHOWN_NAME,
    MODEL_ENGINE,
    MODEL_GUARD,
    MODEL_INFO,
    MODEL_PATCHES,
    MODEL_SLIDE,
    MODEL_TILER,
    PYRAMID_PARAMETER,
    QUEUE_FULL,
    READERS,
    RELEASE_PARAMETER,
    SCALE,
    SCALE_MAX,
    SCALE_MIN,
    SLIDE,
    STATUS,
    TICKET,
    WAITING_METRIC,
    RowStatus,
    as_centers,
)

__all__ = [
    "BACKGROUND_PARAMETER",
    "CENTER",
    "CHOICES",
    "DENSE_FILE",
    "ENGINE_PARAMETER",
    "ENV_ALLOWED_FORMATS",
    "ENV_DECODER_MEMORY_MIB",
    "ENV_DECODER_TRACE",
    "ENV_READER",
    "ENV_SLIDE_ROOTS",
    "ENV_TILE_CACHE_MIB",
    "EXPRESSION",
    "FINGERPRINT_PARAMETER",
    "MAX_ROWS",
    "MAX_SHOWN_NAME",
    "MODEL_ENGINE",
    "MODEL_GUARD",
    "MODEL_INFO",
    "MODEL_PATCHES",
    "MODEL_SLIDE",
    "MODEL_TILER",
    "NO_TELEMETRY",
    "ONNXRUNTIME_CPU",
    "ONNXRUNTIME_CPU_DENSE",
    "ONNXRUNTIME_CUDA",
    "ONNX_FILE",
    "OPENVINO_CPU",
    "PYRAMID_PARAMETER",
    "QUEUE_FULL",
    "READERS",
    "RELEASE_PARAMETER",
    "SCALE",
    "SCALE_MAX",
    "SCALE_MIN",
    "SLIDE",
    "SPINNING_PARAMETER",
    "STATUS",
    "TENSORRT",
    "TENSORRT_RTX",
    "THREADS_PARAMETER",
    "TICKET",
    "WAITING_METRIC",
    "EngineError",
    "EngineInfo",
    "EnginePlan",
    "M2OSTError",
    "Manifest",
    "ManifestError",
    "ReleaseError",
    "RowStatus",
    "ViewGeometry",
    "as_centers",
    "changed_files",
    "check_files",
    "complete_folder",
    "plan_for",
    "sha256_file",
    "supports_version",
]

NO_TELEMETRY = {"ORT_DISABLE_TELEMETRY": "1"}
"""Variables that keep libraries from reporting to their makers. ONNX Runtime reads its own while it is imported, looks
up a host of Microsoft's some seconds later, and keeps a device id below ~/.cache/Microsoft."""

# Here, as every package of ours imports this one first and every process that one of them starts inherits it.
for _name, _value in NO_TELEMETRY.items():
    os.environ.setdefault(_name, _value)
