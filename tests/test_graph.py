"""The graph of nearest rows against dense NumPy and scikit-learn."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from sklearn.semi_supervised import LabelSpreading

from flaxhead.base import Batch
from flaxhead.graph import (
    approximate_neighbours,
    balance,
    graph_of,
    induct,
    knn_graph,
    mixture,
    poisson,
    product_of_experts,
    propagate,
    smooth,
    spread,
    union,
)
from flaxhead.semi_supervised import vote

ROWS, K, CLASSES = 60, 4, 3


def problem(seed=0, rows=ROWS):
    """Three clusters on the sphere, and one-hot sources of a few rows."""
    draw = np.random.default_rng(seed)
    labels = np.arange(rows) % CLASSES
    x = draw.normal(size=(rows, 5)) + 4 * np.eye(5)[labels]
    sources = np.eye(CLASSES)[labels] * (np.arange(rows) < 9)[:, None]
    return x.astype(np.float32), labels, sources.astype(np.float32)


def affinity(x, k=K, power=3.0):
    """`W + W'`, dense, in float64."""
    x = x.astype(float)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    similarity = x @ x.T
    np.fill_diagonal(similarity, -np.inf)
    own = np.zeros_like(similarity)
    for row, nearest in enumerate(np.argsort(-similarity, axis=1)[:, :k]):
        own[row, nearest] = np.maximum(similarity[row, nearest], 0) ** power
    return own + own.T


def normalised(x):
    weights = affinity(x)
    root = np.sqrt(weights.sum(1))
    return weights / root[:, None] / root


@pytest.mark.parametrize("block", [7, 16, 4096])
def test_its_matrix_is_the_dense_one(block):
    x, _, _ = problem()
    graph = knn_graph(jnp.asarray(x), jnp.ones(ROWS), k=K, block=block)
    np.testing.assert_allclose(
        propagate(graph, jnp.eye(ROWS)), normalised(x), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(graph.degrees, affinity(x).sum(1), rtol=1e-5)


def test_lists_of_any_search_make_the_graph():
    x, _, _ = problem()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    # A row finds itself first, and one more is said not to be there.
    neighbours = np.argsort(-(unit @ unit.T), axis=1)[:, : K + 2]
    similarity = np.take_along_axis(unit @ unit.T, neighbours, 1)
    neighbours[:, -1], similarity[:, -1] = -1, 0.9
    graph = graph_of(neighbours, similarity)
    np.testing.assert_allclose(
        propagate(graph, jnp.eye(ROWS)), normalised(x), rtol=1e-4, atol=1e-6
    )


def test_the_approximate_search_is_exact_where_it_looks_into_all_cells():
    x, _, _ = problem(rows=300)
    weights = np.ones(300, np.float32)
    weights[250:], x[250:] = 0, np.nan
    neighbours, similarity = approximate_neighbours(x, weights, k=K, probes=6)
    unit = x[:250] / np.linalg.norm(x[:250], axis=1, keepdims=True)
    every = unit @ unit.T
    np.testing.assert_allclose(
        similarity[:250], -np.sort(-every, axis=1)[:, : K + 1], atol=1e-5
    )
    np.testing.assert_allclose(
        np.take_along_axis(every, neighbours[:250], 1), similarity[:250], atol=1e-5
    )
    assert (neighbours[250:] == -1).all()
    # In one of the six cells it finds some, and what it finds is as similar as it says.
    some, of_some = approximate_neighbours(x, weights, k=K, probes=1)
    assert 0.5 < (some[:250] == neighbours[:250]).mean() < 1
    np.testing.assert_allclose(
        np.take_along_axis(every, some[:250], 1), of_some[:250], atol=1e-5
    )


def test_without_its_library_the_approximate_search_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match=r"pip install faiss-cpu \(the extra 'n"):
        approximate_neighbours(np.eye(3), np.ones(3))


def test_the_same_row_twice_is_no_edge_to_itself():
    x = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    graph = knn_graph(x, jnp.ones(3), k=1)
    np.testing.assert_array_equal(graph.neighbours[:2, 0], [1, 0])


def test_an_absent_row_is_a_deleted_one():
    x, _, sources = problem()
    weights = np.ones(ROWS, np.float32)
    weights[50:] = 0
    broken = x.copy()
    broken[50:] = np.nan
    graph = knn_graph(jnp.asarray(broken), jnp.asarray(weights), k=K)
    fewer = knn_graph(jnp.asarray(x[:50]), jnp.ones(50), k=K)
    some = spread(graph, jnp.asarray(sources))
    np.testing.assert_allclose(
        some[:50], spread(fewer, jnp.asarray(sources[:50])), atol=1e-6
    )
    np.testing.assert_array_equal(some[50:], 0)


@pytest.mark.parametrize("alpha", [0.2, 0.95])
def test_spreading_is_scikit_learns_and_the_dense_solution(alpha):
    x, labels, sources = problem()
    graph = knn_graph(jnp.asarray(x), jnp.ones(ROWS), k=K)
    found = np.asarray(spread(graph, jnp.asarray(sources), alpha=alpha))
    dense = np.linalg.solve(np.eye(ROWS) - alpha * normalised(x), sources)
    np.testing.assert_allclose(found, (1 - alpha) * dense, atol=1e-5)
    theirs = LabelSpreading(
        kernel=lambda a, b: affinity(a), alpha=alpha, max_iter=5000, tol=1e-9
    )
    theirs.fit(x, np.where(sources.any(1), labels, -1))
    reached = found.sum(1) > 1e-4
    assert reached.sum() > ROWS / 2
    np.testing.assert_allclose(
        (found / found.sum(1, keepdims=True))[reached],
        theirs.label_distributions_[reached],
        atol=1e-2,
    )


def test_spreading_nowhere_is_the_sources():
    x, _, sources = problem()
    graph = knn_graph(jnp.asarray(x), jnp.ones(ROWS), k=K)
    found = spread(graph, jnp.asarray(sources), alpha=0.0)
    np.testing.assert_array_equal(found, sources)


@pytest.mark.usefixtures("compile_fully")  # Its bounds are those of rounding.
def test_poisson_learning_solves_the_laplacian():
    # Neighbours enough for a single piece, where the solution is one up to a constant.
    x, _, sources = problem()
    graph = knn_graph(jnp.asarray(x), jnp.ones(ROWS), k=30)
    found = np.asarray(poisson(graph, jnp.asarray(sources), tolerance=1e-7), float)
    weights = affinity(x, k=30)
    degrees = weights.sum(1)
    charges = sources - sources.any(1)[:, None] * sources.sum(0) / sources.sum()
    np.testing.assert_allclose((np.diag(degrees) - weights) @ found, charges, atol=1e-3)
    np.testing.assert_allclose(degrees @ found / degrees.sum(), 0, atol=1e-5)


def test_new_rows_get_the_mean_of_their_neighbours():
    x, _, _ = problem()
    draw = np.random.default_rng(1)
    values = draw.uniform(size=(ROWS, 2)).astype(np.float32)
    queries = draw.normal(size=(7, 5)).astype(np.float32) + 1
    found = induct(*map(jnp.asarray, (queries, x, values)), jnp.ones(ROWS), k=3)
    unit = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in (queries, x)]
    similarity = np.maximum(unit[0] @ unit[1].T, 0) ** 3
    for row, out in zip(similarity, np.asarray(found), strict=True):
        best = np.argsort(-row)[:3]
        np.testing.assert_allclose(
            out, np.average(values[best], 0, row[best]), rtol=1e-4
        )


def test_balance_reaches_the_prior_and_keeps_rows_probabilities():
    draw = np.random.default_rng(2)
    values = jnp.asarray(draw.uniform(size=(40, 3)) ** 2, jnp.float32)
    weights = jnp.asarray(draw.integers(0, 3, 40), jnp.float32)
    prior = jnp.array([0.2, 0.3, 0.5])
    found = balance(values, prior, weights)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(weights @ found / weights.sum(), prior, rtol=1e-4)
    # What is balanced stays.
    np.testing.assert_allclose(balance(found, prior, weights), found, rtol=1e-3)


def test_a_uniform_expert_says_nothing():
    own = jax.nn.softmax(jnp.array([[2.0, 0.0, -1.0]]))
    found = product_of_experts(own, jnp.full((1, 3), 1 / 3))
    np.testing.assert_allclose(found, own, rtol=1e-6)
    certain = product_of_experts(own, jnp.array([[0.0, 1.0, 0.0]]))
    np.testing.assert_allclose(certain, [[0, 1, 0]], atol=1e-6)


def test_bad_input_is_told():
    with pytest.raises(
        ValueError, match=r"\[3, 2, 4\] and k 2: expected \[rows, dim\]"
    ):
        knn_graph(jnp.zeros((3, 2, 4)), jnp.ones(3), k=2)
    with pytest.raises(ValueError, match="k 0: expected"):
        knn_graph(jnp.zeros((3, 2)), jnp.ones(3), k=0)
    with pytest.raises(ValueError, match=r"\[3, 2\] and similarity of shape \[3, 1\]"):
        graph_of(np.zeros((3, 2), int), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="k 1 and probes 0: expected"):
        approximate_neighbours(np.eye(3), np.ones(3), k=1, probes=0)


def test_a_union_is_the_sum_of_graphs_of_equal_mass():
    x, _, _ = problem()
    other = x[:, ::-1] ** 3
    pair = (
        knn_graph(jnp.asarray(x), jnp.ones(ROWS), k=K),
        knn_graph(jnp.asarray(other), jnp.ones(ROWS), k=K + 1),
    )
    dense = [affinity(x), affinity(other, k=K + 1)]
    total = sum(weights / weights.sum(1).mean() for weights in dense)
    root = np.sqrt(total.sum(1))
    both = union(*pair)
    np.testing.assert_allclose(
        propagate(both, jnp.eye(ROWS)), total / root[:, None] / root, atol=2e-5
    )
    nothing = union(*pair, weights=jnp.array([1.0, 0.0]))
    one = union(pair[0], pair[0])
    values = jax.random.normal(jax.random.key(0), (ROWS, 2))
    np.testing.assert_allclose(
        propagate(one, values), propagate(pair[0], values), atol=1e-5
    )
    np.testing.assert_allclose(
        propagate(nothing, values), propagate(pair[0], values), atol=1e-5
    )


def test_smoothing_by_nothing_changes_nothing():
    x, _, _ = problem()
    graph = knn_graph(jnp.asarray(x), jnp.ones(ROWS), k=K)
    chances = jax.nn.softmax(jax.random.normal(jax.random.key(0), (ROWS, 3)))
    np.testing.assert_allclose(smooth(graph, chances, alpha=0.0), chances, rtol=1e-6)
    smoothed = smooth(graph, chances)
    np.testing.assert_allclose(smoothed.sum(1), 1, rtol=1e-5)
    assert float(smoothed.std(0).max()) < float(chances.std(0).min())


def test_a_mixture_is_an_average():
    first, second = jnp.array([[0.2, 0.8]]), jnp.array([[0.6, 0.4]])
    np.testing.assert_allclose(mixture(first, second), [[0.4, 0.6]], rtol=1e-6)
    weights = jnp.array([1.0, 0.0])
    np.testing.assert_array_equal(mixture(first, second, weights=weights), first)


def test_products_are_in_full_on_accelerators_too():
    def run(x, sources):
        present = jnp.ones(len(x))
        graph = knn_graph(x, present, k=K)
        values = spread(graph, sources) + poisson(graph, sources)
        values = balance(values, jnp.ones(CLASSES) / CLASSES, present)
        return induct(x[:3], x, values, present)

    x, _, sources = problem()
    assert oracles.in_full(jax.jit(run).lower(jnp.asarray(x, jnp.bfloat16), sources))
    told = Batch(*map(jnp.asarray, (x, sources, np.ones(ROWS), np.arange(ROWS))))
    assert oracles.in_full(jax.jit(votes_of_all).lower(told))


def votes_of_all(data):
    return vote(data, jnp.ones(ROWS), classes=CLASSES).rows
