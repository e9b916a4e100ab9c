"""A release: what its manifest says, and whether its files are those that it describes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .engines import (
    ENGINE_PARAMETER,
    INSTRUCTIONS_PARAMETER,
    OPENVINO_CPU_BF16,
    EnginePlan,
    plan_for,
)
from .errors import M2OSTError
from .geometry import ViewGeometry
from .names import ModelNames
from .slide_level import SLIDE, SPOT, SlideLevel
from .tensors import EXPRESSION, FEATURES, MODEL_ENGINE, MODEL_SEQUENCE

ONNX_FILE = f"{MODEL_ENGINE}/1/model.onnx"
BODY_FILE, TAIL_FILE = f"{MODEL_ENGINE}/1/body.onnx", f"{MODEL_ENGINE}/1/tail.onnx"
"""The network in two graphs, of which the first may be computed in bfloat16; in releases in float32."""
SEQUENCE_FILE = f"{MODEL_SEQUENCE}/1/model.onnx"
"""The stage for slides, in slide-level releases; their ``ONNX_FILE`` is the stage for patches."""
GRAPHS = (ONNX_FILE, BODY_FILE, TAIL_FILE, SEQUENCE_FILE)


def graphs_of(engine: str) -> tuple[str, ...]:
    """The graphs that an engine reads, of those that read graphs: paths below a release."""
    return (BODY_FILE, TAIL_FILE) if engine == OPENVINO_CPU_BF16 else (ONNX_FILE,)


@dataclass(frozen=True)
class EngineInfo:
    """What the config parameters of the served model ``m2ost`` tell a client that has only an address.

    Parameters
    ----------
    genes : tuple of str
        Output order of EXPRESSION.
    views : ViewGeometry
        The views the engine takes.
    mpp : float or None
        µm per view pixel of the finest view that the network was trained at; None where not recorded.
    target : str
        Meaning of EXPRESSION, e.g. ``log1p_cpm_panel``.
    trained : bool
        False for a freshly initialised network.
    precision : str
        ``fp32``, ``fp16`` …
    checkpoint_sha256, onnx_sha256, release_sha256 : str
        Identity of the weights, of the graph and of the release.
    runs_on : str
        What computes, where it is served: the engine, and its instruction set where its values depend on that. No part
        of the release, of its manifest or of a comparison of two.
    slide_level : SlideLevel or None
        What a network that predicts a slide as a whole asks of its spots; None for one that predicts each by itself.
    names : ModelNames
        Under which names its models are served. No part of the release either.
    """

    genes: tuple[str, ...]
    views: ViewGeometry
    mpp: float | None
    target: str
    trained: bool
    precision: str
    checkpoint_sha256: str
    onnx_sha256: str
    release_sha256: str
    runs_on: str = field(default="", compare=False)
    slide_level: SlideLevel | None = None
    names: ModelNames = field(default=ModelNames(), compare=False)

    @property
    def level(self) -> str:
        """``spot`` or ``slide``."""
        return SPOT if self.slide_level is None else SLIDE

    @property
    def gives(self) -> tuple[str, int]:
        """What the served engine gives of a spot: the tensor's name, and its numbers."""
        return (EXPRESSION, len(self.genes)) if self.slide_level is None else (FEATURES, self.slide_level.features)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; the level stands only where it is not that of a spot."""
        raw = {name: getattr(self, name) for name in _TOLD}
        raw["views"] = self.views.to_dict()
        if self.slide_level is not None:
            raw |= {"level": SLIDE, "slide_level": self.slide_level.to_dict()}
        return raw

    def to_parameters(self) -> dict[str, str]:
        """Triton model parameters: every value a string."""
        raw = {**self.to_dict(), "genes": "\n".join(self.genes)}
        if self.names != ModelNames():
            raw["names"] = asdict(self.names)
        return {k: v if isinstance(v, str) else json.dumps(v) for k, v in raw.items()}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> EngineInfo:
        """Inverse of :meth:`to_parameters`.

        Raises
        ------
        ValueError
            If a parameter is missing: the server does not serve a release of this project.
        """
        missing = sorted(set(_TOLD) - set(parameters))
        if missing:
            raise ValueError(
                f"the model's config has no parameter {', '.join(missing)}: not a release that `m2ost export` made"
            )
        values: dict[str, Any] = {k: parameters[k] for k in _TOLD}
        values["genes"] = tuple(values["genes"].split("\n"))
        values["views"] = ViewGeometry.from_dict(json.loads(values["views"]))
        values["mpp"] = json.loads(values["mpp"])
        values["trained"] = json.loads(values["trained"])
        values["slide_level"] = _slide_level({k: parameters[k] for k in ("level", "slide_level") if k in parameters})
        if "names" in parameters:
            values["names"] = ModelNames.from_dict(json.loads(parameters["names"]))
        computes = (parameters.get(ENGINE_PARAMETER), parameters.get(INSTRUCTIONS_PARAMETER))
        return cls(**values, runs_on=" ".join(filter(None, computes)))

    @property
    def identity(self) -> tuple[str, str]:
        """What values depend on, beside the pixels: the release, and what computes."""
        return self.release_sha256, self.runs_on

    def in_words(self) -> str:
        """Release and engine, for a message."""
        return f"release {self.release_sha256[:12]}" + (f" on {self.runs_on}" if self.runs_on else "")


_TOLD = tuple(name for name in EngineInfo.__dataclass_fields__ if name not in ("runs_on", "slide_level", "names"))
"""What every release tells of itself."""


def _slide_level(raw: Mapping[str, Any]) -> SlideLevel | None:
    """What ``level`` and ``slide_level`` say, as a manifest or, as text, a config has them."""
    if raw.get("level", SPOT) == SPOT:
        return None
    if raw["level"] != SLIDE:
        raise ValueError(f"level {raw['level']!r}, this version serves {SPOT} and {SLIDE}")
    told = raw["slide_level"]
    return SlideLevel.from_dict(json.loads(told) if isinstance(told, str) else told)


class ManifestError(M2OSTError):
    """A release's manifest is damaged."""


@dataclass(frozen=True)
class Manifest:
    """``manifest.json`` of a release: where it came from and what was checked.

    Parameters
    ----------
    engine : EngineInfo
        Identity, panel and views, as served.
    architecture : dict
        The network's configuration.
    parity : dict
        For every batch size checked, the maximum absolute difference between ONNX Runtime and PyTorch (float32), and
        under ``split`` the same of body and tail, with what their gate in bfloat16 measured; for another precision
        ``gate``: what its gate measured. Of a slide-level release under ``sequence`` the same of its stage for slides.
    tools : dict
        Versions of the tools that made the release.
    files : dict
        Relative path → sha256 of every file of the release.
    graph : dict
        Of the ONNX file: its nodes, its operators, and the bytes of its weights by type.
    engines : tuple of EnginePlan
        The engines built from it.
    name : str
        What it was called at its export; empty where it was not.
    """

    engine: EngineInfo
    architecture: dict[str, Any]
    parity: dict[str, Any]
    tools: dict[str, str]
    files: dict[str, str] = field(default_factory=dict)
    graph: dict[str, Any] = field(default_factory=dict)
    engines: tuple[EnginePlan, ...] = ()
    name: str = ""

    FILENAME = "manifest.json"

    @property
    def bf16_instructions(self) -> str:
        """The instruction set with which body in bfloat16 and tail passed their gate; empty where they never did."""
        return str(self.parity.get("split", {}).get("gate", {}).get("instructions", ""))

    @property
    def served_name(self) -> str:
        """What it is called on a server of several releases: its name, else that of its architecture."""
        return self.name or str(self.architecture.get("name", MODEL_ENGINE))

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` into ``folder``."""
        raw = {**asdict(self), "engine": self.engine.to_dict()}
        if not self.name:
            del raw["name"]
        (folder / self.FILENAME).write_text(json.dumps(raw, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read a release's manifest.

        Raises
        ------
        FileNotFoundError
            If ``folder`` is not a release.
        ManifestError
            If its manifest is damaged.
        """
        path = folder / cls.FILENAME
        if not path.is_file():
            raise FileNotFoundError(f"{folder}: not a release (no {cls.FILENAME}); make one with `m2ost export`")
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            engine = dict(raw.pop("engine"))
            engine["genes"] = tuple(engine["genes"])
            engine["views"] = ViewGeometry.from_dict(engine["views"])
            engine["slide_level"] = _slide_level(engine)
            engine.pop("level", None)
            plans = tuple(EnginePlan(**{**plan, "rows": tuple(plan["rows"])}) for plan in raw.pop("engines", ()))
            return cls(engine=EngineInfo(**engine), engines=plans, **raw)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ManifestError(f"{path}: damaged manifest ({error!r}); export the release anew") from error


def why_no_bf16(manifest: Manifest, instructions: str = "") -> str:
    """Why a release is not computed in bfloat16: it has no body, or did not pass the gate as it would run.

    Parameters
    ----------
    manifest : Manifest
        Of the release.
    instructions : str
        The instruction set at hand; empty where it is not looked at.

    Returns
    -------
    str
        With the command that mends it; empty where nothing is wrong.
    """
    remedy = "on this machine: m2ost export CHECKPOINT --gate-slide SLIDE --gate-slide OTHER_SLIDE --out NEW_RELEASE"
    if not {BODY_FILE, TAIL_FILE} <= manifest.files.keys():
        what = "its gate was not run" if manifest.engine.precision == "fp32" else "it is not in fp32"
        return f"the release has no {BODY_FILE}, which bfloat16 is for: {what}; export it anew, {remedy}"
    gated = manifest.bf16_instructions
    if instructions not in ("", gated):
        return f"the release passed the gate of bfloat16 with {gated}, here is {instructions}; export it anew, {remedy}"
    return ""


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class ReleaseError(ManifestError):
    """A file of a release is missing, truncated or swapped; the message names it."""


def changed_files(folder: Path, files: Mapping[str, str]) -> list[str]:
    """Every file of a folder that is missing or not what it was when its manifest was written.

    Parameters
    ----------
    folder : Path
        A release, or another folder with such a manifest.
    files : mapping of str to str
        Path below the folder → sha256: what its manifest says of the files to look at.

    Returns
    -------
    list of str
        One line a file, or a folder that is gone: its path below the folder, and what is wrong.
    """
    problems = []
    for name, expected in sorted(files.items()):
        try:
            found = sha256_file(folder / name)
        except OSError as error:
            problems.append(f"{name}: {error.strerror}")
            continue
        if found != expected:
            problems.append(f"{name}: truncated, changed or swapped: sha256 is {found}, the manifest says {expected}")
    for version in version_folders(files):
        if not (folder / version).is_dir():
            problems.append(f"{version}: no such folder, which some copies lose where it is empty: make it anew")
    return problems


def version_folders(files: Iterable[str]) -> list[str]:
    """The folder of each model that Triton wants to see, empty though it may be: of an ensemble, it holds nothing."""
    return sorted(name.removesuffix("config.pbtxt") + "1" for name in files if name.endswith("/config.pbtxt"))


@dataclass(frozen=True)
class Release:
    """A release's folder, and what its manifest says of it.

    Parameters
    ----------
    folder : Path
    manifest : Manifest
    """

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> Release:
        """Read a release's manifest; its files are not looked at.

        Raises
        ------
        FileNotFoundError
            If ``folder`` is not a release.
        ManifestError
            If its manifest is damaged.
        """
        return cls(folder, Manifest.read(folder))

    @property
    def engine(self) -> EngineInfo:
        """Identity, panel and views, as served."""
        return self.manifest.engine

    @property
    def onnx(self) -> Path:
        """Its graph."""
        return self.folder / ONNX_FILE

    @property
    def sequence(self) -> Path | None:
        """Its stage for slides; None where each spot is predicted by itself."""
        return None if self.engine.slide_level is None else self.folder / SEQUENCE_FILE

    @property
    def split(self) -> tuple[Path, Path] | None:
        """Its network as body and tail; None where it was exported without."""
        there = BODY_FILE in self.manifest.files and TAIL_FILE in self.manifest.files
        return (self.folder / BODY_FILE, self.folder / TAIL_FILE) if there else None

    def plan(self, toolkit: str, compute_capability: str) -> EnginePlan:
        """Its engine for one kind of GPU; see :func:`m2ost_contract.engines.plan_for`."""
        return plan_for(self.manifest.engines, toolkit, compute_capability)

    def check(self, names: Iterable[str] | None = None) -> None:
        """Refuse a release with a file that is missing, truncated or swapped.

        Parameters
        ----------
        names : iterable of str, optional
            Which of the manifest's files to look at; by default all.

        Raises
        ------
        ReleaseError
            Names every such file.
        """
        files = {**self.manifest.files, ONNX_FILE: self.engine.onnx_sha256}  # whatever else the manifest says of it
        problems = changed_files(self.folder, files if names is None else {name: files.get(name, "") for name in names})
        if problems:
            raise ReleaseError(f"{self.folder}: {'; '.join(problems)}; a release never changes: copy or export it anew")
