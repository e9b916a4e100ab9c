"""STAIG (Yang et al., Nature Communications 2025) without images, written anew: contrast of two views of a graph.

A graph convolution embeds each spot together with its neighbours. It is trained so that in two views of the section,
from each of which edges and genes were left out at random, a spot resembles itself and its neighbours more than others.
Edges between spots of unlike expression are left out more often.

As published, the temperature and the number of epochs are set by hand for each slide. Here both are fixed.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import nn
from torch.nn import functional

from .expression import Values
from .spot_graph import neighbour_graph, normalised

NEIGHBOURS = 5
WIDTH = 64
MASKED_GENES = (0.1, 0.2)
"""Share of genes that each view lacks."""
TEMPERATURE = 10.0
EPOCHS = 200
LEARNING_RATE, WEIGHT_DECAY = 5e-4, 1e-5
HIGHEST = 10.0
"""Of a gene's value, in its standard deviations."""


class _Network(nn.Module):
    """A graph convolution, and the projection that is compared in training."""

    def __init__(self, genes: int) -> None:
        super().__init__()
        self.convolution = nn.Linear(genes, WIDTH)
        self.activation = nn.PReLU()
        self.projection = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, graph: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self.activation(graph @ self.convolution(features))
        return embedded


def embed(values: Values, centers: Values, seed: int) -> Values:
    """Embed the spots of a section: float64, shape (m, 64).

    Parameters
    ----------
    values : ndarray of float64, shape (m, genes)
    centers : ndarray of float64, shape (m, 2)
    seed : int
        One seed gives one result.

    Raises
    ------
    DomainsError
        If there are over 10,000 spots.
    """
    graph = neighbour_graph(centers, NEIGHBOURS)
    drop = _drop_probabilities(values, graph)
    spread = values.std(axis=0)
    scaled = np.minimum(values / np.where(spread > 0, spread, 1), HIGHEST)
    features = torch.from_numpy(scaled)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        network = _Network(features.shape[1]).double()
        optimiser = torch.optim.Adam(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        for _ in range(EPOCHS):
            one, other = (
                network.projection(network(normalised(_thinned(graph, drop)), _masked(features, share)))
                for share in MASKED_GENES
            )
            loss = (contrast(one, other, graph) + contrast(other, one, graph)) / 2
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
        with torch.no_grad():
            embedded: Values = network(normalised(graph), features).numpy()
    return embedded


def contrast(one: torch.Tensor, other: torch.Tensor, graph: torch.Tensor) -> torch.Tensor:
    """How far a spot in one view is from resembling itself in the other and its neighbours in both: a scalar.

    Parameters
    ----------
    one, other : Tensor, shape (m, d)
        Projections of the two views.
    graph : Tensor, shape (m, m)
        1 between neighbours, else 0.
    """
    one, other = functional.normalize(one), functional.normalize(other)
    within, between = torch.exp(one @ one.T / TEMPERATURE), torch.exp(one @ other.T / TEMPERATURE)
    alike = between.diagonal() + (graph * (within + between)).sum(dim=1)
    everything = within.sum(dim=1) - within.diagonal() + between.sum(dim=1)
    return -torch.log(alike / everything).mean()


def _drop_probabilities(values: Values, graph: torch.Tensor) -> torch.Tensor:
    """Of leaving an edge out: softmax, over a spot's edges, of the distance in expression; the mean of both ends'."""
    points = torch.from_numpy(PCA(min(64, *values.shape), svd_solver="full").fit_transform(values))
    directions = functional.normalize(points)
    distances = (1 - directions @ directions.T).masked_fill(graph == 0, -torch.inf)
    shares = torch.softmax(distances, dim=1)
    return (shares + shares.T) / 2


def _thinned(graph: torch.Tensor, drop: torch.Tensor) -> torch.Tensor:
    kept = torch.triu(graph * (torch.rand_like(drop) >= drop), diagonal=1)
    return kept + kept.T


def _masked(features: torch.Tensor, share: float) -> torch.Tensor:
    return features * (torch.rand(features.shape[1], dtype=features.dtype) >= share)
