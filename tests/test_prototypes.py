"""Nearest class means against scikit-learn and their formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import multivariate_normal
from sklearn.neighbors import NearestCentroid

from flaxhead.base import Batch
from flaxhead.moments import add, class_moments
from flaxhead.solvers import PROTOTYPE_HEADS, prototype_params, prototypes

KEY = jax.random.key(0)
CLASSES, DIM = 4, 6


def problem(shift=0.0):
    draw = np.random.default_rng(0)
    labels = np.arange(80) % CLASSES
    spread = draw.normal(size=(DIM, DIM)) / np.sqrt(DIM)
    x = draw.normal(size=(80, DIM)) @ spread + draw.normal(size=(CLASSES, DIM))[labels]
    return (x + shift).astype(np.float32), labels


def probabilities(x, labels, queries, metric, hyperparameters=None):
    rows = len(x)
    data = Batch(
        jnp.asarray(x), jnp.asarray(labels, jnp.int32), jnp.ones(rows), jnp.arange(rows)
    )
    fit = prototypes(CLASSES, metric=metric)
    return chances(
        fit(data, jnp.ones(rows), hyperparameters or {}, KEY), queries, metric
    )


def chances(params, queries, metric):
    head = PROTOTYPE_HEADS[metric](CLASSES)
    return softmax(np.asarray(head.apply(params, jnp.asarray(queries)), float), axis=-1)


def gaussian_posterior(x, labels, covariance):
    means = [x[labels == c].mean(0) for c in range(CLASSES)]
    logs = [multivariate_normal(mean, covariance).logpdf(x) for mean in means]
    return softmax(np.stack(logs, -1), axis=-1)


def residuals(x, labels):
    return x - np.array([x[labels == c].mean(0) for c in range(CLASSES)])[labels]


@pytest.mark.parametrize("shift", [0.0, 1e3])
def test_euclidean_is_the_nearest_centroid(shift):
    x, labels = problem(shift)
    found = probabilities(x, labels, x, "euclidean")
    wide = x.astype(float)
    theirs = NearestCentroid().fit(wide, labels)
    assert (found.argmax(1) == theirs.predict(wide)).all()
    covariance = np.mean(residuals(wide, labels) ** 2) * np.eye(DIM)
    expected = gaussian_posterior(wide, labels, covariance)
    np.testing.assert_allclose(found, expected, atol=1e-2 if shift else 1e-5)


@pytest.mark.parametrize("shrinkage", [0.0, 0.4])
def test_mahalanobis_is_the_posterior_of_a_shared_covariance(shrinkage):
    x, labels = problem()
    own = residuals(x.astype(float), labels)
    covariance = own.T @ own / len(x)
    target = np.trace(covariance) / DIM * np.eye(DIM)
    expected = gaussian_posterior(
        x, labels, (1 - shrinkage) * covariance + shrinkage * target
    )
    hyperparameters = {"shrinkage": jnp.float32(shrinkage)}
    found = probabilities(x, labels, x, "mahalanobis", hyperparameters)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_cosine_is_the_posterior_of_directions():
    x, labels = problem()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    means = np.array([unit[labels == c].mean(0) for c in range(CLASSES)])
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    # Of Banerjee et al. (2005), for the average squared length of the means.
    squared = np.average(lengths**2)
    concentration = np.sqrt(squared) * (DIM - squared) / (1 - squared)
    expected = softmax(concentration * unit @ (means / lengths).T, axis=-1)
    found = probabilities(x, labels, 3 * x, "cosine")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_from_moments_to_which_classes_were_added():
    x, labels = problem()
    old = labels < 2
    parts = [
        class_moments(jnp.asarray(x[p]), labels[p], np.ones(p.sum()), classes=c)
        for p, c in ((old, 2), (~old, CLASSES))
    ]
    params = prototype_params(add(*parts))
    whole = probabilities(x, labels, x, "euclidean")
    np.testing.assert_allclose(chances(params, x, "euclidean"), whole, atol=1e-5)


def test_unknown_metrics_are_refused():
    with pytest.raises(ValueError, match="'l1': expected one of euclidean, cosine"):
        prototypes(3, metric="l1")  # pyright: ignore[reportArgumentType]
