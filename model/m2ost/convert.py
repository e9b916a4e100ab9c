"""Turn somebody's weights of a known system into a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from m2ost_contract import sha256_file

from .card import ModelCard
from .module import Network
from .systems.registry import M2OST_NAME, find, recognise
from .weights import CheckpointError, as_float32, load_weights, read_weights


def convert(
    path: Path,
    genes: tuple[str, ...],
    *,
    system: str | None = None,
    mpp: float | None = None,
    target: str | None = None,
    settings: dict[str, Any] | None = None,
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
    settings : dict, optional
        Fields of the architecture that no weight tells, such as ``normalisation``.

    Returns
    -------
    network : Network
        In eval mode.
    card : ModelCard

    Raises
    ------
    CheckpointError
        If the file is unsafe, is no such checkpoint, or a key is missing or unexpected (each is named).
    UnknownSystem
        If there is no system of that name.
    """
    chosen = find(system) if system else None
    state = read_weights(path)
    told = recognise(state)
    if chosen and told and chosen.name != told:
        raise CheckpointError(f"{path}: these are weights of {told}, not of {chosen.name}; give --system {told}")
    chosen = chosen or find(told or M2OST_NAME)
    inferred, weights = chosen.translate(state, str(path))
    config = inferred.resized(**(settings or {}))
    if len(genes) != config.n_genes:
        raise CheckpointError(
            f"{path} predicts {config.n_genes} genes but the panel lists {len(genes)}; give the panel it was trained on"
        )
    network = chosen.network(config)
    load_weights(network, as_float32(weights), str(path))
    provenance = {"converted_from": path.name, "source_sha256": sha256_file(path)}
    card = ModelCard(config, genes, trained=True, mpp=mpp, target=target or chosen.target, provenance=provenance)
    return network.eval(), card
