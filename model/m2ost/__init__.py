"""The M2OST network, its checkpoints, and the conversion of the authors' weights."""
