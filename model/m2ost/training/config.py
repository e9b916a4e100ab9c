"""The settings of a training run, read from YAML."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from m2ost_contract import M2OSTError

from ..architecture import Architecture
from ..config import M2OSTConfig
from ..data.section import TARGETS
from ..data.splits import Split
from ..network import POSITION_STD
from ..systems.registry import M2OST_NAME, find, to_dict
from .augment import AugmentConfig
from .hist2st import Hist2StLosses
from .objective import LOSSES
from .schedule import SCHEDULES


class ConfigError(M2OSTError, ValueError):
    """A training configuration cannot be used; the message names the field."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is learned from.

    Parameters
    ----------
    root : str
        The data set's folder.
    layout : str
        Name of its layout, or ``auto``.
    panel : str
        File of gene names, one a line, in output order.
    target : str
        See :data:`m2ost.data.section.TARGETS`.
    cache : str
        Folder for the views, 441 KiB a spot.
    view_mpp : float, optional
        µm a pixel of the finest view; by default views are cut at each image's own pixels.
    """

    root: str
    panel: str
    layout: str = "auto"
    target: str = TARGETS[0]
    cache: str = "build/views"
    view_mpp: float | None = None

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ValueError(f"data.target must be {' or '.join(TARGETS)}, not {self.target!r}")


OPTIMIZERS = ("adamw", "adam", "sgd")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How weights are changed; by default AdamW with linear warm-up and cosine decay, by epochs.

    Parameters
    ----------
    epochs, batch_size : int
        ``batch_size`` spots make a step, over all processes together; of a network that predicts a slide as a whole a
        slide makes one.
    optimizer : str
        One of :data:`OPTIMIZERS`.
    momentum : float
        Of ``sgd``.
    loss : str
        One of :data:`m2ost.training.objective.LOSSES`.
    learning_rate, weight_decay : float
        Decay is applied to matrices and kernels only, not to biases, norms and tables.
    schedule : str
        One of :data:`m2ost.training.schedule.SCHEDULES`, after the warm-up.
    step_epochs, step_factor
        Of ``steps``: every so many epochs the rate is multiplied by the factor.
    warmup_epochs : float
    clip_norm : float
        Gradients of a greater norm are scaled down to it; 0 for none.
    ema : float
        Decay a step of the moving average of the weights, which is what is validated and kept; 0 for none.
    patience : int
        Epochs without a better validation after which the run ends.
    scale_loss : bool
        Divide each gene's error by its standard deviation over the training spots.
    target_rank : int
        Train on the targets' projection on this many leading principal components over the training spots, which
        keeps what spots have in common and drops most of the counting noise; 0 for the targets as they are.
    head_at_mean : bool
        Start the head's bias at the mean of the training targets; else as PyTorch starts it.
    head_scale : float
        Factor on the head's initial weights.
    position_std : float
        Standard deviation of the cls token and of the position tables at the start.
    precision : str
        ``bf16`` (autocast) or ``fp32``.
    """

    epochs: int = 30
    batch_size: int = 24
    optimizer: str = "adamw"
    momentum: float = 0.0
    loss: str = LOSSES[0]
    schedule: str = SCHEDULES[0]
    step_epochs: int = 50
    step_factor: float = 0.9
    learning_rate: float = 4e-4
    weight_decay: float = 0.05
    warmup_epochs: float = 2.0
    clip_norm: float = 1.0
    ema: float = 0.99
    patience: int = 15
    scale_loss: bool = True
    target_rank: int = 0
    head_at_mean: bool = True
    head_scale: float = 1.0
    position_std: float = POSITION_STD
    precision: str = "bf16"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "patience", "step_epochs", "step_factor"):
            if getattr(self, name) <= 0:
                raise ValueError(f"optim.{name} must be positive, not {getattr(self, name)}")
        for name in ("position_std", "clip_norm", "momentum"):
            if getattr(self, name) < 0:
                raise ValueError(f"optim.{name} must not be negative, not {getattr(self, name)}")
        for name, known in (("optimizer", OPTIMIZERS), ("loss", LOSSES), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise ValueError(f"optim.{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"optim.ema must lie in [0, 1), not {self.ema}")
        if self.precision not in ("bf16", "fp32"):
            raise ValueError(f"optim.precision must be bf16 or fp32, not {self.precision!r}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run.

    Parameters
    ----------
    data : DataConfig
    split : Split
        Names of the sections to train on, to select by, and to leave alone.
    model : Architecture
        ``name`` is the system's, M2OST by default; ``n_genes`` is the panel's size and need not be given.
    optim : OptimConfig
    augment : AugmentConfig
    hist2st : Hist2StLosses
    pretrained : str
        File of pretrained weights of the network's trunk; from scratch by default.
    seed : int
        One seed makes a run repeatable on one kind of machine.
    """

    data: DataConfig
    split: Split
    model: Architecture = field(default_factory=M2OSTConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    hist2st: Hist2StLosses = field(default_factory=Hist2StLosses)
    pretrained: str = ""
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """YAML form."""
        return {**asdict(self), "model": to_dict(self.model)}


def read_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a run's settings; see :func:`read_settings`."""
    return config_from(read_settings(path, overrides), str(path))


def read_settings(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a run's settings as plain mappings, for :func:`config_from`.

    Parameters
    ----------
    path : Path
        YAML. Paths in it are relative to the working directory.
    overrides : sequence of str
        ``section.field=value``, the value as YAML; each replaces one field.

    Raises
    ------
    ConfigError
        If the file is no YAML mapping, or an override is none.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a configuration is a mapping with the sections data, split, model, optim, augment")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override}: must read field=value, for example optim.epochs=10")
        *sections, name = key.split(".")
        target = raw
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--set {override}: {section} is a value, not a section")
        try:
            target[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override}: {value!r} is no YAML value") from error
    return raw


def config_from(raw: Mapping[str, Any], source: str) -> TrainConfig:
    """Settings from plain mappings.

    Raises
    ------
    ConfigError
        If a field is unknown (names the nearest), missing or out of range.
    """
    config = _build(TrainConfig, raw, "", source)
    assert isinstance(config, TrainConfig)
    return config


def _build(kind: type, raw: Any, prefix: str, source: str) -> Any:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{source}: {prefix.rstrip('.')} must be a mapping of fields, not {raw!r}")
    if kind is Architecture:
        raw = dict(raw)
        kind = find(raw.pop("name", M2OST_NAME)).config
    known = [f.name for f in fields(kind)]
    for name in raw:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1, cutoff=0.0)
            raise ConfigError(f"{source}: unknown field {prefix}{name}; the nearest known one is {prefix}{near[0]}")
    hints = get_type_hints(kind)
    values = {
        name: _build(hints[name], value, f"{prefix}{name}.", source)
        if is_dataclass(hints[name]) or hints[name] is Architecture
        else _value(hints[name], value, f"{prefix}{name}", source)
        for name, value in raw.items()
    }
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source}: {error}") from error


def _value(kind: Any, value: Any, name: str, source: str) -> Any:
    """A plain value of the field's type: YAML reads ``4e-4`` as text and ``1`` as an integer."""
    if kind == float | None:
        if value is None:
            return None
        kind = float
    try:
        if kind is float and not isinstance(value, bool):
            return float(value)
        if kind in (int, str, bool) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            return value
        if kind not in (int, str, bool, float) and isinstance(value, (list, tuple)):
            of, *_ = get_args(kind)
            return tuple(str(item) if of is str else _value(of, item, name, source) for item in value)
    except (TypeError, ValueError):
        pass
    raise ConfigError(f"{source}: {name} cannot be {value!r}")
