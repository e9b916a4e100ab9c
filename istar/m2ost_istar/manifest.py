"""iStar as it is served: names of models and tensors, and the manifest of an exported folder."""

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

KIND = "istar"

_FORMER_KIND = "istar-baseline"
_FORMER_NAMES = {"baseline_sha256": "folder_sha256"}
"""What folders that were exported earlier say in place of today's words."""


@dataclass(frozen=True)
class IStarInfo:
    """Identity of an exported folder, as its models' config parameters carry it.

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
    folder_sha256 : str
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
    folder_sha256: str

    def to_parameters(self) -> dict[str, str]:
        """Triton model parameters: every value a string."""
        raw = {**asdict(self), "genes": "\n".join(self.genes)}
        return {k: v if isinstance(v, str) else json.dumps(v, sort_keys=True) for k, v in raw.items()}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> IStarInfo:
        """Inverse of :meth:`to_parameters`.

        Raises
        ------
        ValueError
            If a parameter is missing.
        """
        given = _renamed(parameters)
        missing = sorted(set(cls.__dataclass_fields__) - set(given))
        if missing:
            raise ValueError(f"the model's config has no parameter {', '.join(missing)}; `m2ost export-istar` anew")
        values: dict[str, Any] = {k: given[k] for k in cls.__dataclass_fields__}
        for name in ("sizes", "pretrained", "head_trained", "weights", "onnx_sha256"):
            values[name] = json.loads(values[name])
        values["genes"] = tuple(values["genes"].split("\n"))
        values["sizes"] = Sizes.from_dict(values["sizes"])
        return cls(**values)


@dataclass(frozen=True)
class IStarManifest:
    """``manifest.json`` of an exported folder.

    Parameters
    ----------
    info : IStarInfo
    flop : dict of str to float
        Operations of ViT-256 a patch and of the head a superpixel.
    parity : dict
        Network → for every batch size checked, the maximum absolute difference between ONNX Runtime and PyTorch.
    tools : dict
        Versions of the tools that made it.
    files : dict
        Relative path → sha256 of every file.
    """

    info: IStarInfo
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
    def read(cls, folder: Path) -> IStarManifest:
        """Read a folder's manifest.

        Raises
        ------
        FileNotFoundError
            If ``folder`` has none.
        ManifestError
            If its manifest is damaged, or that of something else.
        """
        path = folder / cls.FILENAME
        if not path.is_file():
            raise FileNotFoundError(f"{folder}: not iStar's (no {cls.FILENAME}); make one with `m2ost export-istar`")
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            if raw.pop("kind", None) not in (KIND, _FORMER_KIND):
                raise ManifestError(f"{folder}: not iStar's; make one with `m2ost export-istar`")
            info = _renamed(raw.pop("info"))
            info["genes"], info["sizes"] = tuple(info["genes"]), Sizes.from_dict(info["sizes"])
            return cls(info=IStarInfo(**info), **raw)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ManifestError(f"{path}: damaged manifest ({error!r}); export iStar anew") from error


def _renamed(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {_FORMER_NAMES.get(key, key): value for key, value in raw.items()}
