"""The training loop: on the CPU, one GPU, or several processes started by torchrun."""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from m2ost_contract import M2OSTError, complete_file
from m2ost_contract.slide_level import SLIDE
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .. import metrics
from ..module import Network
from ..network import POSITION_STD
from ..pretrained import load_pretrained
from ..systems.bleep import Bleep
from ..systems.hist2st import Hist2St
from ..systems.histogene import SlideNetwork
from ..systems.registry import build, system_of
from ..weights import CheckpointError
from .augment import augment
from .config import OptimConfig, TrainConfig
from .hist2st import Hist2StObjective
from .objective import Objective, autocast
from .schedule import warmup_cosine, warmup_steps_down
from .spots import SpotSet, project
from .state import Progress, read_state, save_state

STATE, LOG = "last.safetensors", "log.csv"
PREDICT_ROWS = 32

Report = Callable[[Mapping[str, float]], None]


class TrainingError(M2OSTError):
    """A run cannot go on; the message says where and what to try."""


@dataclass(frozen=True)
class Workers:
    """This process among those of the run: one by default, as many as torchrun started else."""

    rank: int
    count: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process validates, logs and writes."""
        return self.rank == 0


@contextmanager
def workers(device: str | None = None) -> Any:
    """Join the processes that torchrun started; a GPU each where there are GPUs."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
    if "WORLD_SIZE" not in os.environ:
        yield Workers(0, 1, chosen)
        return
    if kind == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield Workers(dist.get_rank(), dist.get_world_size(), chosen)
    finally:
        dist.destroy_process_group()


def predict(model: nn.Module, spots: SpotSet, *, precision: str = "fp32") -> np.ndarray[Any, np.dtype[np.float32]]:
    """Predict every spot, unvaried: float32, shape (len(spots), genes). The model's mode is left as it was."""
    device = next(model.parameters()).device
    was_training, parts = model.training, []
    model.eval()
    with torch.inference_mode(), autocast(device, precision):
        if isinstance(model, SlideNetwork):
            for rows in spots.slides():
                groups = np.array_split(rows, math.ceil(len(rows) / PREDICT_ROWS))
                features = torch.cat([model.patches(spots.batch(group).to(device)[:, 0]) for group in groups])
                places, _ = spots.on_the_array(rows)
                parts.append(model.slide(features, places.to(device)).float().cpu().numpy())
        else:
            for first in range(0, len(spots), PREDICT_ROWS):
                views = spots.batch(np.arange(first, min(first + PREDICT_ROWS, len(spots)))).to(device)
                parts.append(model(*views.unbind(1)).float().cpu().numpy())
    model.train(was_training)
    return np.concatenate(parts)


def fit(
    config: TrainConfig,
    train: SpotSet,
    validation: Sequence[SpotSet],
    folder: Path,
    team: Workers,
    report: Report = lambda row: None,
    *,
    state_every_s: float = 0.0,
) -> tuple[Network, Progress]:
    """Train until the last epoch, or until ``patience`` epochs brought nothing better on the validation sections.

    An epoch ends with a state in ``folder``; a run that finds one goes on from it, to the same weights bit for bit
    on a CPU as if it had never stopped: order of spots, augmentation and masks are drawn from seed and epoch.

    Parameters
    ----------
    config : TrainConfig
    train : SpotSet
    validation : sequence of SpotSet
        One a section: r per gene is taken within sections. Where there is none, the last epoch is kept.
    folder : Path
        Receives the state and ``log.csv``.
    team : Workers
    report : callable
        Called by the leading process after each epoch with the row of the log.
    state_every_s : float
        An epoch that ends sooner after the last state leaves none: of a large network it takes seconds, and gigabytes.

    Returns
    -------
    model : Network
        The weights of the best epoch, or of the last, in eval mode, on the CPU.
    progress : Progress

    Raises
    ------
    CheckpointError
        If the folder holds the state of a run with other settings.
    TrainingError
        If the loss is no longer finite.
    """
    optim = config.optim
    torch.manual_seed(config.seed)
    model = build(config.model)
    if config.pretrained:
        load_pretrained(model, Path(config.pretrained))
    targets = project(train.targets, optim.target_rank)
    initialise(model, targets, optim)
    model.to(team.device)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(optim.ema))
    best = build(config.model).to(team.device)
    optimizer = _optimizer(model, optim)
    parts = {"model": model, "average": average, "best": best}
    progress = Progress(config.to_dict())
    if (folder / STATE).is_file():
        progress = read_state(folder / STATE, parts, optimizer)
        if progress.config != _plain(config.to_dict()):
            raise CheckpointError(f"{folder / STATE}: belongs to a run with other settings; choose another folder")
    target = torch.from_numpy(targets).to(team.device)
    spread = train.targets.std(axis=0) if optim.scale_loss else np.ones(targets.shape[1])
    weight = torch.from_numpy(1 / np.maximum(spread, 1e-3) ** 2).float().to(team.device)
    objective: nn.Module = _objective(model, weight, config)
    if team.count > 1:
        objective = DistributedDataParallel(objective)

    kept_at = -math.inf
    while progress.epoch < optim.epochs and progress.epoch - progress.best_epoch < optim.patience:
        began = time.perf_counter()
        loss = _epoch(config, objective, model, average, optimizer, train, target, progress.epoch, team)
        candidate: nn.Module = average.module if optim.ema else model
        if isinstance(candidate, Bleep):
            candidate.embed_bank()
        if not math.isfinite(loss):
            raise TrainingError(f"epoch {progress.epoch + 1}: the loss is {loss}; try a lower optim.learning_rate")
        row: dict[str, float] = {
            "epoch": progress.epoch + 1,
            "train_loss": loss,
            "seconds": time.perf_counter() - began,
            "learning_rate": optimizer.param_groups[0]["lr"],
        }
        progress.epoch += 1
        if validation:
            row |= _from_leader(_validate(candidate, validation, weight, config) if team.leads else {}, team)
        score = row.get("validation_r_gene_mean")
        if score is None or score > progress.best_score:
            progress.best_score, progress.best_epoch = progress.best_score if score is None else score, progress.epoch
            best.load_state_dict(candidate.state_dict())
        if team.leads:
            _log(folder / LOG, row)
            if time.perf_counter() - kept_at >= state_every_s:
                save_state(folder / STATE, parts, optimizer, progress)
                kept_at = time.perf_counter()
            report(row)
    return best.cpu().eval(), progress


def _from_leader(scores: dict[str, float], team: Workers) -> dict[str, float]:
    """The leading process's scores, in all processes: they must agree on when to stop."""
    if team.count == 1:
        return scores
    names = ["validation_loss", *(f"validation_{name}" for name in metrics.MEASURES)]
    values = torch.tensor([scores.get(name, 0.0) for name in names], dtype=torch.float64, device=team.device)
    dist.broadcast(values, 0)
    return dict(zip(names, values.tolist(), strict=True))


def initialise(model: Network, targets: Any, optim: OptimConfig) -> None:
    """Fit a fresh network's heads, tables and bank to the targets and the settings."""
    system = system_of(model.config)
    with torch.no_grad():
        for head in map(model.get_submodule, system.heads):
            assert isinstance(head, nn.Linear)
            if optim.head_at_mean:
                head.bias.copy_(torch.from_numpy(np.asarray(targets).mean(axis=0)))
            head.weight.mul_(optim.head_scale)
        for name, table in model.named_parameters():
            if name.startswith(system.tables):
                table.mul_(optim.position_std / POSITION_STD)
    if isinstance(model, Bleep):
        model.fill(torch.from_numpy(targets))


def _epoch(
    config: TrainConfig,
    objective: nn.Module,
    model: Network,
    average: AveragedModel,
    optimizer: torch.optim.Optimizer,
    spots: SpotSet,
    target: Tensor,
    epoch: int,
    team: Workers,
) -> float:
    """One pass over the spots; returns the mean loss of this process's share."""
    optim = config.optim
    steps = _steps(config, spots, torch.Generator().manual_seed(config.seed * 100_003 + epoch))
    torch.manual_seed((config.seed * 100_003 + epoch) * 1_009 + team.rank)  # masks and dropped tokens
    own_draws = torch.Generator().manual_seed((config.seed * 100_003 + epoch) * 1_009 + team.rank + 1)
    model.train()
    total = 0.0
    for step, together in enumerate(steps):
        rate = _rate(optim, epoch * len(steps) + step, len(steps))
        for group in optimizer.param_groups:
            group["lr"] = optim.learning_rate * rate
        rows = together[team.rank :: team.count]
        views = augment(spots.batch(rows.numpy()).to(team.device), config.augment, own_draws)
        on_the_array = [part.to(team.device) for part in spots.on_the_array(rows.numpy())]
        loss = objective(views, target[rows.to(team.device)], *on_the_array)
        optimizer.zero_grad()
        loss.backward()
        if optim.clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
        optimizer.step()
        if optim.ema:
            average.update_parameters(model)
        total += loss.item()
    return total / len(steps)


def _steps(config: TrainConfig, spots: SpotSet, draws: torch.Generator) -> list[Tensor]:
    """The rows of each step of an epoch, for all processes together: some spots by chance, or a slide."""
    if config.model.level == SLIDE:
        slides = spots.slides()
        return [torch.from_numpy(slides[i]) for i in torch.randperm(len(slides), generator=draws).tolist()]
    size = config.optim.batch_size
    order = torch.randperm(len(spots), generator=draws)
    return [order[step * size : (step + 1) * size] for step in range(max(1, len(spots) // size))]


def _rate(optim: OptimConfig, step: int, steps_an_epoch: int) -> float:
    """Factor on the learning rate at a step of the run."""
    warmup_steps = round(optim.warmup_epochs * steps_an_epoch)
    if optim.schedule == "cosine":
        return warmup_cosine(step, warmup_steps=warmup_steps, total_steps=optim.epochs * steps_an_epoch)
    factor = optim.step_factor if optim.schedule == "steps" else 1.0
    drop = optim.step_epochs * steps_an_epoch
    return warmup_steps_down(step, warmup_steps=warmup_steps, steps_a_drop=drop, factor=factor)


def _objective(model: Network, weight: Tensor, config: TrainConfig) -> Objective:
    if isinstance(model, Hist2St) and config.hist2st.any:
        return Hist2StObjective(model, weight, config.optim.precision, config.optim.loss, config.hist2st)
    return Objective(model, weight, config.optim.precision, config.optim.loss)


def _optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    groups = _parameter_groups(model, optim.weight_decay)
    if optim.optimizer == "sgd":
        return torch.optim.SGD(groups, optim.learning_rate, momentum=optim.momentum)
    kind = torch.optim.AdamW if optim.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, optim.learning_rate)


def _validate(model: nn.Module, validation: Sequence[SpotSet], weight: Tensor, config: TrainConfig) -> dict[str, float]:
    """Loss and mean scores over the validation sections."""
    scores, losses = [], []
    for spots in validation:
        predicted = predict(model, spots, precision=config.optim.precision)
        scores.append(metrics.score(spots.targets, predicted))
        losses.append(float((np.square(predicted - spots.targets) * weight.cpu().numpy()).mean()))
    means = {f"validation_{name}": float(np.mean([s[name] for s in scores])) for name in metrics.MEASURES}
    return {"validation_loss": float(np.mean(losses)), **means}


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and kernels decay; biases, norms, cls tokens and position tables do not."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    tables = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    decays = [p.ndim in (2, 4) and id(p) not in tables for _, p in trained]
    return [
        {"params": [p for (_, p), d in zip(trained, decays, strict=True) if d], "weight_decay": weight_decay},
        {"params": [p for (_, p), d in zip(trained, decays, strict=True) if not d], "weight_decay": 0.0},
    ]


def _plain(value: Any) -> Any:
    """As JSON gives it back: tuples are lists."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _log(path: Path, row: Mapping[str, float]) -> None:
    """Append a row; rows of epochs that are run again after a crash are replaced."""
    rows: list[Mapping[str, Any]] = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            rows = [old for old in csv.DictReader(file) if int(float(old["epoch"])) < row["epoch"]]
    with complete_file(path) as scratch, scratch.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerows([*rows, {key: value if math.isfinite(value) else "" for key, value in row.items()}])
