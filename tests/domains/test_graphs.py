"""What the networks on a section's graph are made of, against computations of the tests' own."""

import numpy as np
import pytest
import torch
from m2ost_domains import mcgae, staig
from m2ost_domains.errors import DomainsError
from m2ost_domains.methods import GRAPH_METHODS, DomainOptions, find_domains
from m2ost_domains.spot_graph import nearest, neighbour_graph, normalised

LINE = np.array([[0.0, 0], [1, 0], [3, 0], [7, 0]])


def test_neighbours_are_mutual_and_nobody_is_their_own():
    graph = neighbour_graph(LINE, 1)
    assert graph.tolist() == [[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0]]
    assert nearest(LINE, 1).tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert neighbour_graph(LINE, 9).sum() == 12


def test_a_graph_is_divided_by_the_roots_of_its_degrees():
    joined = neighbour_graph(LINE, 1).numpy() + np.eye(4)
    degrees = joined.sum(axis=0)
    np.testing.assert_allclose(normalised(neighbour_graph(LINE, 1)), joined / np.sqrt(np.outer(degrees, degrees)))


def test_the_contrast_of_staig_by_hand():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 4, 3))
    graph = neighbour_graph(LINE, 1)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (one, other))
    parts = []
    for i in range(4):
        within = [np.exp(a[i] @ a[j] / staig.TEMPERATURE) for j in range(4)]
        between = [np.exp(a[i] @ b[j] / staig.TEMPERATURE) for j in range(4)]
        alike = between[i] + sum(within[j] + between[j] for j in range(4) if graph[i, j])
        parts.append(-np.log(alike / (sum(within) - within[i] + sum(between))))
    found = staig.contrast(torch.from_numpy(one), torch.from_numpy(other), graph)
    assert float(found) == pytest.approx(np.mean(parts))


def test_spots_at_their_centres_are_attracted_less():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    at = torch.tensor([[0.1, 0.0], [0.0, 0.1], [10.0, 0.1], [9.9, 0.0]])
    between = torch.tensor([[3.0, 0.0], [4.0, 0.0], [6.0, 0.0], [7.0, 0.0]])
    assert 0 <= float(mcgae.attraction(at, centres)) < float(mcgae.attraction(between, centres))


@pytest.mark.parametrize("method", GRAPH_METHODS)
def test_too_many_spots_are_refused(method):
    values, centers = np.eye(10_001, 2), np.zeros((10_001, 2))
    with pytest.raises(DomainsError, match="10001 spots are too many"):
        find_domains(values, centers, DomainOptions(k=2, method=method))


@pytest.mark.parametrize("method", GRAPH_METHODS)
def test_where_a_spot_lies_matters(method):
    rng = np.random.default_rng(0)
    values, centers = rng.normal(size=(60, 20)), rng.uniform(size=(60, 2))
    options = DomainOptions(k=3, method=method)
    here, moved = (find_domains(values, places, options) for places in (centers, centers[::-1]))
    assert (here != moved).any()
