"""One script for a GPU machine: what is computed there is right, then how fast it is. ``python -m`` runs it."""
