"""What unlabelled rows add, and what they must not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxhead.base import Batch
from flaxhead.fit import sweep
from flaxhead.heads import linear
from flaxhead.semi_supervised import with_graph
from flaxhead.solvers import logistic, ridge

CLASSES, KEY = 3, jax.random.key(0)
HEAD = linear(CLASSES)
FITS = {
    "logistic": (logistic(CLASSES, tolerance=1e-10), {"C": jnp.float32(1)}),
    "ridge": (ridge(CLASSES), {"alpha": jnp.float32(1)}),
}
every_fit = pytest.mark.parametrize("name", FITS)


def rings(seed=0, rows=240):
    """Long clusters, wider than they are apart: a few labels mislead a linear head."""
    draw = np.random.default_rng(seed)
    labels = np.arange(rows) % CLASSES
    angle = labels * 2.1 + draw.uniform(-0.7, 0.7, rows)
    x = np.stack([np.cos(angle), np.sin(angle), 0.1 * draw.normal(size=rows)], axis=1)
    data = Batch(
        jnp.asarray(x, jnp.float32),
        jnp.asarray(labels, jnp.int32),
        jnp.ones(rows),
        jnp.arange(rows),
    )
    few = jnp.asarray(np.arange(rows) < 2 * CLASSES, jnp.float32)
    return data, few


def assert_close(expected, found):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), expected, found
    )


@functools.cache
def wrapped(name):
    return jax.jit(with_graph(FITS[name][0], HEAD, classes=CLASSES))


@every_fit
def test_rows_beyond_the_weights_are_unlabelled_and_help(name):
    data, few = rings()
    fit, hyperparameters = FITS[name]
    right = []
    for run in (fit, wrapped(name)):
        params = run(data, few, hyperparameters, KEY)
        guess = jnp.argmax(HEAD.apply(params, data.x), axis=-1)
        right.append(float(jnp.mean(guess == data.labels)))
    assert right[1] >= right[0]
    assert right[1] > 0.97


@every_fit
def test_hidden_labels_are_not_read(name):
    data, few = rings()
    hyperparameters = FITS[name][1]
    expected = wrapped(name)(data, few, hyperparameters, KEY)
    hidden = jnp.where(few > 0, data.labels, -1)
    by_label = wrapped(name)(
        data._replace(labels=hidden), jnp.ones_like(few), hyperparameters, KEY
    )
    planted = jnp.where(few > 0, data.labels, 2 - data.labels)
    by_weight = wrapped(name)(data._replace(labels=planted), few, hyperparameters, KEY)
    for other in (by_label, by_weight):
        jax.tree.map(np.testing.assert_array_equal, expected, other)
    soft = jnp.where(few[:, None] > 0, jax.nn.one_hot(data.labels, CLASSES), jnp.nan)
    of_soft = wrapped(name)(data._replace(labels=soft), few, hyperparameters, KEY)
    assert_close(expected, of_soft)


@every_fit
def test_without_unlabelled_rows_it_is_the_fit(name):
    data, _ = rings()
    fit, hyperparameters = FITS[name]
    weights = jnp.asarray(np.random.default_rng(3).uniform(0.5, 2, 240), jnp.float32)
    expected = fit(data, weights, hyperparameters, KEY)
    found = wrapped(name)(data, weights, hyperparameters, KEY)
    assert_close(expected, found)


@every_fit
def test_rows_absent_from_the_data_are_deleted(name):
    data, few = rings()
    hyperparameters = FITS[name][1]
    there = jnp.asarray(np.arange(240) < 200, jnp.float32)
    broken = data._replace(
        x=jnp.where(there[:, None] > 0, data.x, jnp.nan), weights=there
    )
    found = wrapped(name)(broken, few, hyperparameters, KEY)
    fewer = jax.tree.map(lambda leaf: leaf[:200], data)
    expected = wrapped(name)(fewer, few[:200], hyperparameters, KEY)
    assert_close(expected, found)


@every_fit
def test_it_is_a_fit_like_any_other(name):
    """It composes with a sweep, and candidates side by side are those apart."""
    data, few = rings()
    hyperparameters = FITS[name][1]
    several = {key: jnp.array([0.3, 1.0]) for key in hyperparameters}
    fit = with_graph(FITS[name][0], HEAD, classes=CLASSES)
    many = jax.jit(sweep(fit))(data, few, several, KEY)
    alone = wrapped(name)(data, few, hyperparameters, KEY)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[1], b, atol=2e-3), many, alone
    )
