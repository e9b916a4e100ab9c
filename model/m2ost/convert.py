"""Turn somebody's weights of a known system into a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from m2ost_contract import sha256_file

from .bank import read_bank
from .card import ModelCard
from .module import Network
from .systems.bleep import Bleep, BleepConfig
from .systems.registry import M2OST_NAME, find, recognise
from .weights import CheckpointError, as_float32, load_weights, read_weights


def convert(
    path: Path,
    genes: tuple[str, ...],
    *,
    system: str | None = None,
    mpp: float | None = None,
    target: str | None = None,
    bank: Path | None = None,
) -> tuple[Network, ModelCard]:
    """Convert a file of weights.

    Parameters
    ----------
    path : Path
        A state dict under the public names of its system, with or without the ``module.`` prefix.
    genes : tuple of str
        The panel in output order; its length must be the network's number of outputs.
    system : str, optional
        Name of the system; by default it is told by the names of the weights.
    mpp : float, optional
        µm per pixel of the training images, where known.
    target : str, optional
        What the outputs are; by default what the system was published with.
    bank : Path, optional
        Of a BLEEP, which predicts from it: its training spots; see :func:`m2ost.bank.read_bank`.

    Returns
    -------
    network : Network
        In eval mode.
    card : ModelCard

    Raises
    ------
    CheckpointError
        If the file is unsafe, is no such checkpoint, or a key is missing or unexpected (each is named); if the bank is
        missing, of another panel, or given in vain.
    UnknownSystem
        If there is no system of that name.
    """
    chosen = find(system) if system else None
    state = read_weights(path)
    told = recognise(state)
    if chosen and told and chosen.name != told:
        raise CheckpointError(f"{path}: these are weights of {told}, not of {chosen.name}; give --system {told}")
    chosen = chosen or find(told or M2OST_NAME)
    config, weights = chosen.translate(state, str(path))
    if len(genes) != config.n_genes:
        raise CheckpointError(
            f"{path} predicts {config.n_genes} genes but the panel lists {len(genes)}; give the panel it was trained on"
        )
    provenance: dict[str, Any] = {"converted_from": path.name, "source_sha256": sha256_file(path)}
    if isinstance(config, BleepConfig):
        if bank is None:
            raise CheckpointError(f"{path}: {chosen.title} predicts from its training spots; give them with --bank")
        expression = torch.from_numpy(read_bank(bank, genes))
        config = _with_bank(config, len(expression), bank)
        provenance["bank"] = {"file": bank.name, "sha256": sha256_file(bank), "spots": len(expression)}
    elif bank is not None:
        raise CheckpointError(f"{bank}: a bank is for BLEEP; {chosen.title} has none")
    network = chosen.network(config)
    as_built = {key: value for key, value in network.state_dict().items() if key.startswith("bank.")}
    load_weights(network, as_float32(weights) | as_built, str(path))
    if isinstance(network, Bleep):
        network.fill(expression)
    card = ModelCard(config, genes, trained=True, mpp=mpp, target=target or chosen.target, provenance=provenance)
    return network.eval(), card


def _with_bank(config: BleepConfig, rows: int, source: Path) -> BleepConfig:
    try:
        return replace(config, bank_rows=rows)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error
