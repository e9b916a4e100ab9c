"""An autoencoder of several graphs after MCGAE (Yang et al., Briefings in Bioinformatics 2024), without morphology.

Three graph convolutions see a section in three ways: its expression along neighbours in space, the same along
neighbours in expression, and expression as a variational autoencoder smooths it, along neighbours in space. Attention
fuses them. The whole is trained to give back the expression and the graph, to tell a spot among its neighbours from one
of a section whose spots were shuffled, and to draw spots to the centre that is nearest.

Written anew from descriptions, which leave open what is ours here: which weight is which term's (the four are those
published for breast cancer), that the centres are those of k-means at half time, and the second graph. The published
code takes the cosine of raw positions for that, which tells no more than a direction from the image's corner.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from torch import nn
from torch.nn import functional

from .expression import Values
from .spot_graph import nearest

NEIGHBOURS = 3
"""Of each spot, which is joined to itself too: all have the same weight, so that graphs are not normalised."""
COMPONENTS, WIDTH, DECODER_WIDTH = 100, 50, 128
EPOCHS, LEARNING_RATE, WEIGHT_DECAY = 400, 1e-3, 5e-4
SHUFFLED_WEIGHT, CENTRES_WEIGHT, GRAPH_WEIGHT = 0.5, 0.1, 0.1
"""Beside the expression's, which is 1."""
SMOOTHER_WIDTH, SMOOTHER_LATENT, SMOOTHER_EPOCHS, DIVERGENCE_WEIGHT = 256, 20, 100, 0.01


class _Smoother(nn.Module):
    """A variational autoencoder of a spot's expression, each gene in 0 … 1."""

    def __init__(self, genes: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(genes, SMOOTHER_WIDTH), nn.ReLU())
        self.mean, self.log_variance = (nn.Linear(SMOOTHER_WIDTH, SMOOTHER_LATENT) for _ in range(2))
        self.decoder = nn.Sequential(
            nn.Linear(SMOOTHER_LATENT, SMOOTHER_WIDTH), nn.ReLU(), nn.Linear(SMOOTHER_WIDTH, genes), nn.Sigmoid()
        )

    def loss(self, features: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(features)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        drawn = mean + torch.randn_like(mean) * torch.exp(log_variance / 2)
        divergence: torch.Tensor = (mean**2 + log_variance.exp() - 1 - log_variance).sum(dim=1).mean() / 2
        found: torch.Tensor = functional.mse_loss(self.decoder(drawn), features)
        return found + DIVERGENCE_WEIGHT * divergence / features.shape[1]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        smooth: torch.Tensor = self.decoder(self.mean(self.encoder(features)))
        return smooth


class _Attention(nn.Module):
    """A weighted mean of two embeddings, with weights for each spot."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1, bias=False))

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        both = torch.stack([one, other])
        fused: torch.Tensor = (torch.softmax(self.score(both), dim=0) * both).sum(dim=0)
        return fused


class _Network(nn.Module):
    """The three convolutions, their fusion, the decoder, and what tells spots from shuffled ones."""

    def __init__(self, components: tuple[int, int], genes: int) -> None:
        super().__init__()
        plain, smooth = components
        self.near, self.alike, self.smooth = (nn.Linear(n, WIDTH, bias=False) for n in (plain, plain, smooth))
        self.first, self.second = _Attention(), _Attention()
        self.decoder = nn.Sequential(nn.Linear(WIDTH, DECODER_WIDTH), nn.ReLU(), nn.Linear(DECODER_WIDTH, genes))
        self.discriminator = nn.Bilinear(WIDTH, WIDTH, 1)

    def forward(
        self, near: torch.Tensor, alike: torch.Tensor, plain: torch.Tensor, smooth: torch.Tensor
    ) -> torch.Tensor:
        plain_views = self.first(near @ self.near(plain), alike @ self.alike(plain))
        fused: torch.Tensor = self.second(plain_views, near @ self.smooth(smooth))
        return fused


def embed(values: Values, centers: Values, k: int, seed: int) -> Values:
    """Embed the spots of a section: float64, shape (m, 50).

    Parameters
    ----------
    values : ndarray of float64, shape (m, genes)
    centers : ndarray of float64, shape (m, 2)
    k : int
        Domains: how many centres spots are drawn to.
    seed : int
        One seed gives one result.

    Raises
    ------
    DomainsError
        If there are over 10,000 spots.
    """
    edges = nearest(centers, NEIGHBOURS).float()
    itself = torch.eye(len(edges))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        plain, smooth = _components(values), _components(_smoothed(values))
        alike = nearest(plain.double().numpy(), NEIGHBOURS).float()
        return _trained(edges + itself, alike + itself, plain, smooth, torch.from_numpy(values).float(), k, seed)


def _trained(
    near: torch.Tensor,
    alike: torch.Tensor,
    plain: torch.Tensor,
    smooth: torch.Tensor,
    expression: torch.Tensor,
    k: int,
    seed: int,
) -> Values:
    network = _Network((plain.shape[1], smooth.shape[1]), expression.shape[1])
    optimiser = torch.optim.Adam(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    around = near / near.sum(dim=1, keepdim=True)
    rarity = (near == 0).sum() / (near > 0).sum()
    centres: torch.Tensor | None = None
    for epoch in range(EPOCHS):
        embedded = network(near, alike, plain, smooth)
        order = torch.randperm(len(plain))
        shuffled = network(near, alike, plain[order], smooth[order])
        surroundings = torch.sigmoid(around @ embedded)
        told = torch.cat([network.discriminator(spots, surroundings) for spots in (embedded, shuffled)])
        truth = torch.cat([torch.ones(len(plain), 1), torch.zeros(len(plain), 1)])
        loss = functional.mse_loss(network.decoder(embedded), expression)
        loss = loss + SHUFFLED_WEIGHT * functional.binary_cross_entropy_with_logits(told, truth)
        loss = loss + GRAPH_WEIGHT * functional.binary_cross_entropy_with_logits(
            embedded @ embedded.T, near, pos_weight=rarity
        )
        if epoch == EPOCHS // 2:
            found = KMeans(k, n_init=10, random_state=seed).fit(embedded.detach().numpy())
            centres = torch.from_numpy(found.cluster_centers_)
        if centres is not None:
            loss = loss + CENTRES_WEIGHT * attraction(embedded, centres)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    with torch.no_grad():
        return np.asarray(network(near, alike, plain, smooth).numpy(), np.float64)


def attraction(embedded: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """How far spots are from belonging to one centre each, as in deep embedded clustering: a scalar.

    Parameters
    ----------
    embedded : Tensor, shape (m, d)
    centres : Tensor, shape (k, d)
    """
    near = 1 / (1 + torch.cdist(embedded, centres) ** 2)
    shares = near / near.sum(dim=1, keepdim=True)
    sharper = shares.detach() ** 2 / shares.detach().sum(dim=0)
    sharper = sharper / sharper.sum(dim=1, keepdim=True)
    return functional.kl_div(shares.log(), sharper, reduction="batchmean")


def _smoothed(values: Values) -> Values:
    """Expression as the variational autoencoder gives it back: shape (m, genes)."""
    low, range_ = values.min(axis=0), np.ptp(values, axis=0)
    features = torch.from_numpy((values - low) / np.where(range_ > 0, range_, 1)).float()
    smoother = _Smoother(features.shape[1])
    optimiser = torch.optim.Adam(smoother.parameters(), LEARNING_RATE)
    for _ in range(SMOOTHER_EPOCHS):
        loss = smoother.loss(features)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    with torch.no_grad():
        return np.asarray(smoother(features).numpy(), np.float64)


def _components(values: Values) -> torch.Tensor:
    found = PCA(min(COMPONENTS, *values.shape), svd_solver="full").fit_transform(values)
    return torch.from_numpy(found).float()
