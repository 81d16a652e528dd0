"""Linear discriminant analysis against scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from sklearn.covariance import ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from flaxhead.base import Batch
from flaxhead.heads import linear
from flaxhead.moments import add, class_moments
from flaxhead.solvers import discriminant, discriminant_params

KEY = jax.random.key(0)
CLASSES = 3


def problem(rows=90, dim=6, shift=0.0):
    draw = np.random.default_rng(0)
    labels = np.minimum(draw.integers(0, CLASSES + 1, rows), CLASSES - 1)
    spread = draw.normal(size=(dim, dim)) / np.sqrt(dim)
    x = draw.normal(size=(rows, dim)) @ spread
    return (x + draw.normal(size=(CLASSES, dim))[labels] + shift), labels


def probabilities(x, labels, queries, hyperparameters, weights=None):
    rows = len(x)
    data = Batch(
        jnp.asarray(x, jnp.float32),
        jnp.asarray(labels, jnp.int32),
        jnp.ones(rows),
        jnp.arange(rows),
    )
    weights = jnp.ones(rows) if weights is None else jnp.asarray(weights)
    params = discriminant(CLASSES)(data, weights, hyperparameters, KEY)
    return chances(params, queries)


def chances(params, queries):
    logits = linear(CLASSES).apply(params, jnp.asarray(queries, jnp.float32))
    return softmax(np.asarray(logits, float), axis=-1)


@pytest.mark.parametrize("solver", ["lsqr", "eigen"])
@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 0.5, 1.0])
def test_posteriors_are_scikit_learns(shrinkage, solver):
    x, labels = problem()
    theirs = LinearDiscriminantAnalysis(solver=solver, shrinkage=shrinkage)
    theirs.fit(x, labels)
    found = probabilities(x, labels, x, {"shrinkage": jnp.float32(shrinkage)})
    np.testing.assert_allclose(found, theirs.predict_proba(x), atol=1e-4)


def test_more_features_than_rows():
    x, labels = problem(rows=20, dim=40)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3).fit(x, labels)
    found = probabilities(x, labels, x, {"shrinkage": jnp.float32(0.3)})
    np.testing.assert_allclose(found, theirs.predict_proba(x), atol=1e-4)


def test_a_singular_covariance_has_a_pseudo_inverse():
    x, labels = problem()
    x[:, 0], x[:, 1] = 4, x[:, 2]
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.0).fit(x, labels)
    found = probabilities(x, labels, x, {"shrinkage": jnp.float32(0)})
    np.testing.assert_allclose(found, theirs.predict_proba(x), atol=1e-3)


def test_features_far_from_zero():
    x, labels = problem(shift=1e3)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1).fit(x, labels)
    found = probabilities(x, labels, x, {"shrinkage": jnp.float32(0.1)})
    np.testing.assert_allclose(found, theirs.predict_proba(x), atol=1e-2)


@pytest.mark.parametrize(("rows", "dim"), [(90, 6), (20, 40)])
def test_ledoit_and_wolfs_shrinkage(rows, dim):
    x, labels = problem(rows, dim)
    times = np.arange(rows) % 3
    means = [np.average(x, 0, times * (labels == c)) for c in range(CLASSES)]
    residuals = np.repeat(x - np.array(means)[labels], times, axis=0)
    _, shrinkage = ledoit_wolf(residuals, assume_centered=True)
    assert 0.01 < shrinkage < 0.99
    weights = times.astype(np.float32)
    estimated = probabilities(x, labels, x, {}, weights)
    given = probabilities(x, labels, x, {"shrinkage": jnp.float32(shrinkage)}, weights)
    np.testing.assert_allclose(estimated, given, atol=1e-4)


def test_ledoit_and_wolf_of_soft_labels():
    """A row of two classes is two rows of half the weight."""
    x, _ = problem()
    soft = np.random.default_rng(1).dirichlet(np.ones(CLASSES), len(x))
    whole = probabilities_of_soft(x, soft)
    parts = probabilities(
        np.repeat(x, CLASSES, 0),
        np.tile(np.arange(CLASSES), len(x)),
        x,
        {},
        soft.ravel().astype(np.float32),
    )
    np.testing.assert_allclose(whole, parts, atol=1e-4)


def probabilities_of_soft(x, soft):
    rows = len(x)
    data = Batch(
        jnp.asarray(x, jnp.float32),
        jnp.asarray(soft, jnp.float32),
        jnp.ones(rows),
        jnp.arange(rows),
    )
    return chances(discriminant(CLASSES)(data, jnp.ones(rows), {}, KEY), x)


def test_one_row_a_class_is_the_nearest_row():
    x = np.random.default_rng(0).normal(size=(CLASSES, 8))
    queries = np.random.default_rng(1).normal(size=(30, 8))
    nearest = ((queries[:, None] - x) ** 2).sum(-1).argmin(1)
    for hyperparameters in ({}, {"shrinkage": jnp.float32(0)}):
        # Weights that are no powers of 2, so that means are rounded.
        found = probabilities(
            x, np.arange(CLASSES), queries, hyperparameters, np.full(CLASSES, 0.3)
        )
        assert (found.argmax(1) == nearest).all()


def test_rows_and_classes_added_later():
    x, labels = problem()
    old = (labels < 2) & (np.arange(len(x)) < 50)
    parts = (
        class_moments(jnp.asarray(x[p]), labels[p], np.ones(p.sum()), classes=c)
        for p, c in ((old, 2), (~old, CLASSES))
    )
    params = discriminant_params(add(*parts), shrinkage=0.1)
    whole = probabilities(x, labels, x, {"shrinkage": jnp.float32(0.1)})
    np.testing.assert_allclose(chances(params, x), whole, atol=1e-5)
