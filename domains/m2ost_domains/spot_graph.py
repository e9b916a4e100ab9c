"""Graphs of spots, as dense matrices: for the methods that train a network on one."""

from __future__ import annotations

import torch
from sklearn.neighbors import kneighbors_graph

from .errors import DomainsError
from .expression import Values

MOST_SPOTS = 10_000
"""A dense matrix of so many takes 0.8 GB, and a step of training several."""


def nearest(places: Values, neighbours: int) -> torch.Tensor:
    """Which spots are the nearest of each: float64, shape (m, m), a row a spot, 0 on the diagonal.

    Parameters
    ----------
    places : ndarray of float64, shape (m, d)
    neighbours : int
        Of every spot.

    Raises
    ------
    DomainsError
        If there are too many spots.
    """
    if len(places) > MOST_SPOTS:
        raise DomainsError(
            f"{len(places)} spots are too many for a method that compares each with all ({MOST_SPOTS} at most); "
            "choose gmm, kmeans or leiden"
        )
    return torch.from_numpy(kneighbors_graph(places, min(neighbours, len(places) - 1)).toarray())


def neighbour_graph(places: Values, neighbours: int) -> torch.Tensor:
    """The same, both ways: spots are joined where either is among the nearest of the other."""
    graph = nearest(places, neighbours)
    return torch.maximum(graph, graph.T)


def normalised(graph: torch.Tensor) -> torch.Tensor:
    """The graph with every spot joined to itself, divided by the roots of both ends' degrees."""
    joined = graph + torch.eye(len(graph), dtype=graph.dtype)
    scale = joined.sum(dim=1).rsqrt()
    return scale[:, None] * joined * scale
