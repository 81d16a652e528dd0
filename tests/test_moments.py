"""Class counts, means and scatter against NumPy in float64, and that they add."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxhead import moments

add, pooled = jax.jit(moments.add), jax.jit(moments.pooled)
class_moments = jax.jit(moments.class_moments, static_argnames=("classes", "axis"))
ROWS, DIM, CLASSES = 9000, 5, 4  # More rows than a chunk.


def problem(shift=0.0, soft=False, rows=ROWS):
    draw = np.random.default_rng(0)
    x = (draw.normal(size=(rows, DIM)) + shift).astype(np.float32)
    labels = draw.integers(0, CLASSES - 1, rows).astype(np.int32)
    if soft:
        labels = draw.dirichlet(np.ones(CLASSES), rows).astype(np.float32)
    return x, labels, draw.random(rows).astype(np.float32)


def reference(x, labels, weights):
    """By definition: every row once for every class, as far as it belongs to it."""
    x = np.asarray(x, float)
    shares = labels if labels.ndim == 2 else labels[:, None] == np.arange(CLASSES)
    shares = np.asarray(weights, float)[:, None] * shares
    counts = shares.sum(0)
    means = shares.T @ x / np.where(counts > 0, counts, 1)[:, None]
    scatter = np.zeros((DIM, DIM))
    for number in range(CLASSES):
        own = x - means[number]
        scatter += own.T @ (shares[:, [number]] * own)
    return counts, means, scatter


def assert_moments(found, expected, shift=0.0):
    counts, means, scatter = expected
    np.testing.assert_allclose(found.counts, counts, rtol=1e-5)
    np.testing.assert_allclose(found.means, means, atol=2e-6 + 1e-7 * shift)
    np.testing.assert_allclose(found.scatter, scatter, atol=1e-5 * scatter.max())


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("shift", [0.0, 1e3])
def test_moments_are_their_definition(shift, soft):
    x, labels, weights = problem(shift, soft)
    found = class_moments(x, labels, weights, classes=CLASSES)
    assert_moments(found, reference(x, labels, weights), shift)


@pytest.mark.parametrize("shift", [0.0, 1e3])
def test_moments_of_parts_add(shift):
    x, labels, weights = problem(shift)
    cuts = [0, 1, 2500, 2503, ROWS]
    parts = [
        class_moments(x[a:b], labels[a:b], weights[a:b], classes=CLASSES)
        for a, b in itertools.pairwise(cuts)
    ]
    expected = reference(x, labels, weights)
    (first, second, third, fourth) = parts
    for order in (
        add(add(add(first, second), third), fourth),
        add(add(fourth, third), add(second, first)),
    ):
        assert_moments(order, expected, shift)


def test_no_rows_are_the_identity():
    x, labels, weights = problem()
    some = class_moments(x, labels, weights, classes=CLASSES)
    empty = class_moments(x, labels, 0 * weights, classes=1)
    assert all(not leaf.any() for leaf in empty)
    for both in (add(some, empty), add(empty, some)):
        jax.tree.map(np.testing.assert_array_equal, both, some)


def test_classes_can_be_added():
    x, labels, weights = problem(rows=100)
    old = labels < 2
    before = class_moments(x[old], labels[old], weights[old], classes=2)
    new = class_moments(x[~old], labels[~old], weights[~old], classes=CLASSES)
    assert_moments(add(before, new), reference(x, labels, weights))


def test_all_rows_together():
    x, labels, weights = problem(1e3)
    found = pooled(class_moments(x, labels, weights, classes=CLASSES))
    mean = np.average(x.astype(float), axis=0, weights=weights)
    scatter = np.cov(x.T.astype(float), aweights=weights, ddof=0) * weights.sum()
    np.testing.assert_allclose(found.count, weights.sum(), rtol=1e-5)
    np.testing.assert_allclose(found.mean, mean, rtol=2e-7)
    np.testing.assert_allclose(found.scatter, scatter, atol=1e-4 * scatter.max())
    again = moments.weighted_mean(jnp.asarray(x), jnp.asarray(weights))
    np.testing.assert_allclose(again, mean, rtol=2e-7)


def test_narrow_rows_are_summed_wide():
    x, labels, weights = problem(10.0)
    narrow = jnp.asarray(x, jnp.bfloat16)
    found = class_moments(narrow, labels, weights, classes=CLASSES)
    assert_moments(found, reference(narrow, labels, weights))
