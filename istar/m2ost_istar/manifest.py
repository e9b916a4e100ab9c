"""The baseline as it is served: names of models and tensors, and the manifest of a baseline folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from m2ost_contract import ManifestError

from .sizes import Sizes

MODEL_SLIDE = "istar_slide"
MODEL_PATCH = "istar_patch"
MODEL_REGION = "istar_region"
MODEL_HEAD = "istar_head"
NETWORK_MODELS = {"patch": MODEL_PATCH, "region": MODEL_REGION, "head": MODEL_HEAD}
"""Network → the model that serves it; each folder holds one ``model.onnx``."""

PATCH, CLS, TOKENS = "PATCH", "CLS", "TOKENS"
GRID, REGION = "GRID", "REGION"
FEATURES = "FEATURES"
SPOT_DIAMETER_UM, MPP, INFO = "SPOT_DIAMETER_UM", "MPP", "INFO"

MAX_HEAD_ROWS = 4096
"""Most superpixels in one request to the head: one block of the pipeline."""

KIND = "istar-baseline"


@dataclass(frozen=True)
class BaselineInfo:
    """Identity of a served baseline, as its models' config parameters carry it.

    Parameters
    ----------
    genes : tuple of str
        Output order of EXPRESSION.
    sizes : Sizes
        Of the networks.
    variant : str
        What ``istar_slide`` does: one of ``geometry.VARIANTS``.
    pretrained : bool
        Whether ViT-256 and ViT-4K carry HIPT's weights.
    head_trained : bool
        False for a freshly initialised head, whose expression means nothing.
    precision : str
    weights : dict of str to str
        sha256 of HIPT's files, where they were given.
    onnx_sha256 : dict of str to str
        Network → sha256 of its graph.
    baseline_sha256 : str
        Identity of the folder.
    """

    genes: tuple[str, ...]
    sizes: Sizes
    variant: str
    pretrained: bool
    head_trained: bool
    precision: str
    weights: dict[str, str]
    onnx_sha256: dict[str, str]
    baseline_sha256: str

    def to_parameters(self) -> dict[str, str]:
        """Triton model parameters: every value a string."""
        raw = {**asdict(self), "genes": "\n".join(self.genes)}
        return {k: v if isinstance(v, str) else json.dumps(v, sort_keys=True) for k, v in raw.items()}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> BaselineInfo:
        """Inverse of :meth:`to_parameters`.

        Raises
        ------
        ValueError
            If a parameter is missing.
        """
        missing = sorted(set(cls.__dataclass_fields__) - set(parameters))
        if missing:
            raise ValueError(f"the model's config has no parameter {', '.join(missing)}; `m2ost export-istar` anew")
        values: dict[str, Any] = {k: parameters[k] for k in cls.__dataclass_fields__}
        for name in ("sizes", "pretrained", "head_trained", "weights", "onnx_sha256"):
            values[name] = json.loads(values[name])
        values["genes"] = tuple(values["genes"].split("\n"))
        values["sizes"] = Sizes.from_dict(values["sizes"])
        return cls(**values)


@dataclass(frozen=True)
class BaselineManifest:
    """``manifest.json`` of a baseline folder.

    Parameters
    ----------
    info : BaselineInfo
    flop : dict of str to float
        Operations of ViT-256 a patch and of the head a superpixel.
    parity : dict
        Network → for every batch size checked, the maximum absolute difference between ONNX Runtime and PyTorch.
    tools : dict
        Versions of the tools that made it.
    files : dict
        Relative path → sha256 of every file.
    """

    info: BaselineInfo
    flop: dict[str, float]
    parity: dict[str, Any]
    tools: dict[str, str]
    files: dict[str, str] = field(default_factory=dict)

    FILENAME = "manifest.json"

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` into ``folder``."""
        text = json.dumps({"kind": KIND, **asdict(self)}, indent=2, ensure_ascii=False)
        (folder / self.FILENAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> BaselineManifest:
        """Read a baseline's manifest.

        Raises
        ------
        FileNotFoundError
            If ``folder`` is no baseline.
        ManifestError
            If its manifest is damaged, or that of something else.
        """
        path = folder / cls.FILENAME
        if not path.is_file():
            raise FileNotFoundError(f"{folder}: not a baseline (no {cls.FILENAME}); make one with `m2ost export-istar`")
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            if raw.pop("kind", None) != KIND:
                raise ManifestError(f"{folder}: not a baseline; make one with `m2ost export-istar`")
            info = dict(raw.pop("info"))
            info["genes"], info["sizes"] = tuple(info["genes"]), Sizes.from_dict(info["sizes"])
            return cls(info=BaselineInfo(**info), **raw)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ManifestError(f"{path}: damaged manifest ({error!r}); export the baseline anew") from error
