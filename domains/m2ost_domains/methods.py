"""Methods that find domains, by name: each groups the spots of a section by principal components.

Those of expression itself; or of what a network makes of it that is trained on the section's graph (needs torch).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import kneighbors_graph

from .errors import DomainsError
from .expression import Values

COMPONENTS = 15
STARTS = 10
"""Of which the best is kept, by the method's own measure of fit."""
NEIGHBOURS = 15
"""Of a spot, in the graph of Leiden."""
RESOLUTIONS = (1e-3, 1e2)
STEPS = 40
"""Of the search for the resolution at which Leiden finds k groups."""

Groups = np.ndarray[Any, np.dtype[np.intp]]


def components(values: Values) -> Values:
    """The first 15 principal components of the spots, or as many as there are: float64, shape (m, c)."""
    found = PCA(min(COMPONENTS, len(values) - 1, values.shape[1]), svd_solver="full").fit_transform(values)
    return np.asarray(found, np.float64)


def gmm(values: Values, centers: Values, k: int, seed: int) -> Groups:
    """A mixture of k normal distributions with one covariance in common."""
    points = components(values)
    model = GaussianMixture(k, covariance_type="tied", n_init=STARTS, random_state=seed)
    return np.asarray(model.fit_predict(points), np.intp)


def kmeans(values: Values, centers: Values, k: int, seed: int) -> Groups:
    """k-means."""
    return np.asarray(KMeans(k, n_init=STARTS, random_state=seed).fit_predict(components(values)), np.intp)


def leiden(values: Values, centers: Values, k: int, seed: int) -> Groups:
    """Leiden communities of the graph of nearest neighbours.

    The resolution is searched at which there are k; where none is met, the number nearest to k is kept.
    """
    import igraph
    import leidenalg

    points = components(values)
    nearest = kneighbors_graph(points, min(NEIGHBOURS, len(points) - 1))
    a, b = nearest.maximum(nearest.T).nonzero()
    graph = igraph.Graph(len(points), [(int(i), int(j)) for i, j in zip(a, b, strict=True) if i < j])
    low, high = np.log(RESOLUTIONS)
    best: Groups | None = None
    for _ in range(STEPS):
        middle = (low + high) / 2
        found = leidenalg.find_partition(
            graph, leidenalg.RBConfigurationVertexPartition, resolution_parameter=float(np.exp(middle)), seed=seed
        )
        groups = np.asarray(found.membership, np.intp)
        if best is None or abs(len(found) - k) < abs(len(np.unique(best)) - k):
            best = groups
        if len(found) == k:
            break
        low, high = (middle, high) if len(found) < k else (low, middle)
    assert best is not None
    return best


def staig(values: Values, centers: Values, k: int, seed: int) -> Groups:
    """The mixture, on the embedding of STAIG."""
    from .staig import embed

    return gmm(embed(values, centers, seed), centers, k, seed)


def mcgae(values: Values, centers: Values, k: int, seed: int) -> Groups:
    """The mixture, on the embedding of MCGAE."""
    from .mcgae import embed

    return gmm(embed(values, centers, k, seed), centers, k, seed)


METHODS: dict[str, Callable[[Values, Values, int, int], Groups]] = {
    "gmm": gmm,
    "kmeans": kmeans,
    "leiden": leiden,
    "staig": staig,
    "mcgae": mcgae,
}
"""From expression (m, genes), positions (m, 2), the number of domains and a seed to a group for each spot, (m,)."""
GRAPH_METHODS = ("staig", "mcgae")
"""Those that need torch."""


@dataclass(frozen=True, kw_only=True)
class DomainOptions:
    """How domains are found.

    Parameters
    ----------
    k : int
        How many.
    method : str
        A key of :data:`METHODS`.
    seed : int
        One seed gives one result.

    Raises
    ------
    DomainsError
        If there are fewer than two, or the method is unknown.
    """

    k: int
    method: str = "gmm"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.k < 2:
            raise DomainsError(f"{self.k} domains are not to be told apart; give 2 or more with --k")
        if self.method not in METHODS:
            raise DomainsError(f"unknown method {self.method!r}; there are {', '.join(METHODS)}")


def find_domains(values: Values, centers: Values, options: DomainOptions) -> Groups:
    """Group the spots of a section.

    Parameters
    ----------
    values : ndarray of float64, shape (m, genes)
        Finite.
    centers : ndarray of float64, shape (m, 2)
        Their positions, in any unit.
    options : DomainOptions

    Returns
    -------
    ndarray of int, shape (m,)
        1 for the largest domain, 2 for the next …; of two that are as large, that of the earlier spot comes first.
        There may be fewer than k of a mixture, and another number of ``leiden``.

    Raises
    ------
    DomainsError
        If there are fewer spots than domains, all spots are alike, or there are too many for the method.
    """
    if options.k > len(values):
        raise DomainsError(f"{options.k} domains of {len(values)} spots with a value; give at most as many with --k")
    if not (np.ptp(values, axis=0) > 0).any():
        raise DomainsError("all spots have the same expression, in which there are no domains")
    groups = METHODS[options.method](values, centers, options.k, options.seed)
    _, first, sizes = np.unique(groups, return_index=True, return_counts=True)
    _, inverse = np.unique(groups, return_inverse=True)
    rank = np.empty(len(sizes), np.intp)
    rank[np.lexsort((first, -sizes))] = np.arange(1, len(sizes) + 1)
    return np.asarray(rank[inverse], np.intp)
