"""Start a network from somebody's pretrained weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from m2ost_contract import sha256_file

from .module import Network
from .systems.registry import recognise, system_of
from .weights import CheckpointError, as_float32, in_words, load_weights, read_weights

FROM_SCRATCH = "from scratch"
"""What a card says of a network that was started without a file."""


def load_pretrained(network: Network, path: Path) -> dict[str, Any]:
    """Load all but the output layers from a file of the network's own trunk.

    Parameters
    ----------
    network : Network
        Freshly initialised; what the file cannot give (output layers, BLEEP's projections and bank) stays as it is.
    path : Path
        A state dict under public names, ``.safetensors`` or what ``torch.save`` wrote; nothing in it is run.

    Returns
    -------
    dict
        File and sha256, for the card's provenance.

    Raises
    ------
    CheckpointError
        If the file cannot be read, or any other key is missing, unexpected or of another shape; names each.
    """
    system = system_of(network.config)
    state = read_weights(path)
    names = system.pretrained_names(state)
    lacking = tuple(part for part in system.may_lack if not any(key.startswith(part) for key in names))
    fresh = system.fresh + lacking
    kept = {key: value for key, value in network.state_dict().items() if key.startswith(fresh)}
    given = as_float32({key: value for key, value in names.items() if not key.startswith(fresh)})
    expected = network.state_dict().keys() - kept.keys()
    if not expected & given.keys():
        told = recognise(state)
        known = f"these are weights of {told}" if told else f"none of its keys is known: {in_words(list(state)[:5])}"
        raise CheckpointError(f"{path}: not weights of {system.title}: {known}")
    load_weights(network, given | kept, str(path))
    return {"file": path.name, "sha256": sha256_file(path)}
