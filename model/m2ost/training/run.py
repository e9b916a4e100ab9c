"""A training run from its settings to a checkpoint."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from m2ost_contract import sha256_file
from m2ost_contract.slide_level import SLIDE

from ..card import ModelCard
from ..checkpoint import read_panel, save
from ..data.datasets import read_sections
from ..data.errors import DataError
from ..data.section import Section
from ..data.views import ViewCache
from ..module import Network
from ..pretrained import FROM_SCRATCH
from ..systems.bleep import BleepConfig
from ..systems.hist2st import Hist2St, Hist2StConfig
from ..systems.registry import build, system_of
from ..weights import CheckpointError
from .config import TrainConfig
from .loop import Report, fit, workers
from .spots import SpotSet, spot_set

CHECKPOINT = "checkpoint"


def train(
    config: TrainConfig,
    folder: Path,
    *,
    device: str | None = None,
    report: Report = lambda row: None,
    state_every_s: float = 0.0,
) -> Path:
    """Train, and write the checkpoint of the epoch that was kept to ``folder/checkpoint``.

    Parameters
    ----------
    config : TrainConfig
    folder : Path
        Receives the settings, the split, the log and the state that a killed run goes on from.
    device : str, optional
        ``cpu`` or ``cuda``; by default a GPU where there is one.
    report : callable
        Called after each epoch with its row of the log.
    state_every_s : float
        Least seconds between two states that a killed run goes on from; 0 for one after each epoch.

    Returns
    -------
    Path
        The checkpoint.

    Raises
    ------
    DataError
        If the data cannot be used.
    CheckpointError
        If the folder holds a finished run, or one with other settings.
    TrainingError
        If the loss is no longer finite.
    """
    destination = folder / CHECKPOINT
    if destination.exists():
        raise CheckpointError(f"{destination}: this run is finished; choose another folder")
    panel = read_panel(Path(config.data.panel))
    config = replace(config, model=config.model.resized(n_genes=len(panel)))
    folder.mkdir(parents=True, exist_ok=True)
    with workers(device) as team:
        if config.model.level == SLIDE and team.count > 1:
            title = system_of(config.model).title
            raise DataError(f"{title} learns from a slide a step, which {team.count} processes cannot share")
        if config.optim.batch_size % team.count:
            raise DataError(f"a batch of {config.optim.batch_size} spots cannot be shared by {team.count} processes")
        train_spots, validation, facts = _load(config, panel)
        config = _with_heads(_with_bank(config, len(train_spots)))
        if team.leads and not (folder / "config.yaml").exists():
            (folder / "config.yaml").write_text(yaml.safe_dump(_yaml(config.to_dict()), sort_keys=False), "utf-8")
            config.split.write(folder / "split.yaml")
        model, progress = fit(config, train_spots, validation, folder, team, report, state_every_s=state_every_s)
        if team.leads:
            source = Path(config.pretrained)
            pretrained = {"file": source.name, "sha256": sha256_file(source)} if config.pretrained else FROM_SCRATCH
            provenance = {
                "training": {
                    **facts,
                    "pretrained": pretrained,
                    "split": config.split.to_dict(),
                    "best_epoch": progress.best_epoch,
                    "validation_r_gene_mean": progress.best_score if validation else None,
                    "config": _portable(config),
                    "torch": torch.__version__,
                    "machine": platform.machine(),
                    "device": team.device.type,
                    "processes": team.count,
                }
            }
            model = _to_predict(model)
            card = ModelCard(model.config, panel, True, facts["mpp"], config.data.target, provenance)
            save(destination, model, card)
    return destination


def _load(config: TrainConfig, panel: tuple[str, ...]) -> tuple[SpotSet, list[SpotSet], dict[str, Any]]:
    data, cache = config.data, ViewCache(Path(config.data.cache))

    def part(names: tuple[str, ...]) -> list[Section]:
        sections = read_sections(Path(data.root), names, data.layout)
        return [section.expressed(panel, data.target) for section in sections]

    train_sections, validation = part(config.split.train), part(config.split.validation)
    resolutions = {section.mpp for section in train_sections}
    facts = {
        "spots": {section.name: len(section) for section in [*train_sections, *validation]},
        "left_out": {section.name: dict(section.left_out) for section in [*train_sections, *validation]},
        "mpp": data.view_mpp or (resolutions.pop() if len(resolutions) == 1 else None),
    }
    return (
        spot_set(train_sections, panel, data.target, config.model, cache, data.view_mpp),
        [spot_set([section], panel, data.target, config.model, cache, data.view_mpp) for section in validation],
        facts,
    )


def _with_bank(config: TrainConfig, spots: int) -> TrainConfig:
    """The settings, of BLEEP with a bank of all training spots."""
    if not isinstance(config.model, BleepConfig):
        return config
    try:
        return replace(config, model=replace(config.model, bank_rows=spots))
    except ValueError as error:
        raise DataError(f"{error}; train on more sections, or set model.neighbours") from error


def _with_heads(config: TrainConfig) -> TrainConfig:
    """The settings, of Hist2ST with the heads that its further losses need."""
    if not isinstance(config.model, Hist2StConfig):
        return config
    return replace(config, model=replace(config.model, training_heads=config.hist2st.any))


def _to_predict(model: Network) -> Network:
    """The network without what only training needs."""
    if not isinstance(model, Hist2St):
        return model
    lean = build(replace(model.config, training_heads=False))
    kept = lean.state_dict().keys()
    lean.load_state_dict({name: value for name, value in model.state_dict().items() if name in kept})
    return lean.eval()


def _portable(config: TrainConfig) -> Any:
    """The settings as they go into the card: names of files, without the folders of one machine."""
    raw = _yaml(config.to_dict())
    for name in ("root", "panel", "cache"):
        raw["data"][name] = Path(raw["data"][name]).name
    raw["pretrained"] = Path(raw["pretrained"]).name
    return raw


def _yaml(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _yaml(item) for key, item in value.items()}
    return [_yaml(item) for item in value] if isinstance(value, (list, tuple)) else value
