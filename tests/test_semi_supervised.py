"""What unlabelled rows add, and what they must not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxhead.base import Batch
from flaxhead.fit import deal, out_of_fold, sweep
from flaxhead.graph import balance, knn_graph, spread
from flaxhead.heads import linear
from flaxhead.semi_supervised import guard, self_train, vote, with_graph
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


def test_a_graph_that_is_given_is_the_one_that_votes():
    data, few = rings()
    graph = knn_graph(data.x, data.weights, k=3)
    run = jax.jit(
        lambda graph: vote(data, few, classes=CLASSES, graph=graph)._replace(carry=None)
    )
    shares = jax.nn.one_hot(data.labels, CLASSES) * few[:, None]
    counts = 1 + np.asarray(shares).sum(0)

    def votes(sources):
        return balance(spread(graph, sources), counts / counts.sum(), data.weights)

    again = votes(shares + 0.05 * jnp.where(few[:, None] > 0, 0, votes(shares)))
    expected = again**2 / jnp.sum(again**2, axis=1, keepdims=True)
    assert_close(run(graph).rows, expected)
    with pytest.raises(ValueError, match="graph is of 240 rows: expected 100, as"):
        vote(
            jax.tree.map(lambda leaf: leaf[:100], data),
            few[:100],
            classes=3,
            graph=graph,
        )


def test_it_is_a_fit_like_any_other():
    """It composes with a sweep, and candidates side by side are those apart."""
    data, few = rings()
    fit = with_graph(FITS["ridge"][0], HEAD, classes=CLASSES)
    several = {"alpha": jnp.array([0.3, 1.0])}
    many = jax.jit(sweep(fit))(data, few, several, KEY)
    alone = wrapped("ridge")(data, few, FITS["ridge"][1], KEY)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[1], b, atol=2e-3), many, alone
    )


def test_votes_carry_over_to_new_rows_and_are_probabilities():
    data, few = rings()
    votes = vote(data, few, classes=CLASSES)
    np.testing.assert_allclose(jnp.sum(votes.rows, axis=1), 1, rtol=1e-5)
    assert float(votes.trust) == pytest.approx(2 / 5)  # two labels a class
    new, _ = rings(seed=1)
    carried = votes.carry(new.x)
    np.testing.assert_allclose(jnp.sum(carried, axis=1), 1, rtol=1e-4)
    assert float(jnp.mean(jnp.argmax(carried, axis=1) == new.labels)) > 0.97


def test_self_training_adds_the_rows_that_are_sure():
    """One round by hand; none at all, and of a threshold out of reach."""
    data, few = rings()
    fit, settings = FITS["ridge"]

    def run(threshold, rounds=1):
        made = self_train(
            fit, HEAD, classes=CLASSES, threshold=threshold, rounds=rounds
        )
        return jax.jit(made)(data, few, settings, KEY)

    first = fit(data, few, settings, KEY)
    assert_close(run(0.0, rounds=0), first)
    assert_close(run(1.1, rounds=3), first)
    chances = np.asarray(jax.nn.softmax(HEAD.apply(first, data.x)))
    sure, labelled = chances.max(1) >= 0.6, np.asarray(few) > 0
    assert 0 < (sure & ~labelled).sum() < (~labelled).sum()
    labels = np.where(labelled, data.labels, chances.argmax(1))
    by_hand = fit(
        data._replace(labels=jnp.asarray(labels)),
        jnp.asarray(sure | labelled, jnp.float32),
        settings,
        KEY,
    )
    assert_close(run(0.6), by_hand)
    assert not np.allclose(by_hand["output"]["bias"], first["output"]["bias"])


def backwards(fit):
    """A fit that is wrong on purpose: of the next class."""

    def run(data, weights, hyperparameters, key):
        params = fit(data, weights, hyperparameters, key)
        return jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=-1), params)

    return run


@pytest.mark.parametrize("harmful", ["first", "second", "neither"])
def test_a_guard_takes_the_better_one(harmful):
    data, _ = rings()
    more = jnp.asarray(np.arange(240) < 8 * CLASSES, jnp.float32)
    fit, settings = FITS["ridge"]
    fits = {"first": fit, "second": sharper(fit)}
    if harmful in fits:
        fits[harmful] = backwards(fits[harmful])
    made = guard(*fits.values(), HEAD, classes=CLASSES, folds=3)
    guarded = jax.jit(made)(data, more, settings, KEY)
    expected = "first" if harmful == "second" else "second"
    assert_close(guarded, fits[expected](data, more, settings, KEY))


def sharper(fit):
    """The same with larger logits, of a better NLL as ridge's are small."""

    def run(data, weights, hyperparameters, key):
        params = fit(data, weights, hyperparameters, key)
        return jax.tree.map(lambda leaf: 2 * leaf, params)

    return run


def test_a_guard_that_can_judge_nothing_trusts_the_second():
    data, _ = rings()
    one = jnp.asarray(np.arange(240) < CLASSES, jnp.float32)
    fit, settings = FITS["ridge"]
    made = guard(fit, backwards(fit), HEAD, classes=CLASSES, folds=3)
    expected = backwards(fit)(data, one, settings, KEY)
    assert_close(jax.jit(made)(data, one, settings, KEY), expected)


def test_a_guard_mixes_linear_heads_in_their_logits():
    data, few = rings()
    fit, settings = FITS["ridge"]
    made = guard(fit, sharper(fit), HEAD, classes=CLASSES, folds=3, shares=(0.5,))
    mixed = HEAD.apply(jax.jit(made)(data, few, settings, KEY), data.x)
    plain = HEAD.apply(fit(data, few, settings, KEY), data.x)
    np.testing.assert_allclose(mixed, 1.5 * plain, atol=2e-3)


@pytest.mark.parametrize("wrong", [{"folds": 1}, {"shares": ()}, {"shares": (2.0,)}])
def test_a_guard_refuses(wrong):
    fit = FITS["ridge"][0]
    with pytest.raises(ValueError, match="expected 2 or more folds"):
        guard(fit, fit, HEAD, classes=CLASSES, **wrong)


def test_rows_are_dealt_out_alike_in_every_class_and_judged_from_outside():
    data, few = rings()
    labels = jnp.where(few > 0, data.labels, -1).at[:90].set(data.labels[:90])
    fold = deal(labels, data.index, 5, KEY)
    counts = np.zeros([CLASSES, 5])
    np.add.at(counts, (labels[:90], fold[:90]), 1)
    assert (counts == 6).all()
    assert (fold[90:] == 5).all()
    # A row's part hangs on its number, not on its place.
    back = slice(None, None, -1)
    other = deal(labels[back], data.index[back], 5, KEY)
    np.testing.assert_array_equal(np.sort(other), np.sort(fold))
    fit, settings = FITS["ridge"]
    found = out_of_fold(fit, HEAD, fold, folds=5)(data, few, settings, KEY)
    without = fit(data, jnp.where(fold == 2, 0, few), settings, KEY)
    mine = np.flatnonzero(fold == 2)
    expected = HEAD.apply(without, data.x)[mine]
    np.testing.assert_allclose(found[mine], expected, atol=1e-4)
