"""Wrong labels are found, and heads are fitted without them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy.special import log_softmax

from flaxhead.base import Batch
from flaxhead.fit import cross_fit, sweep
from flaxhead.heads import linear
from flaxhead.losses import softmax_cross_entropy
from flaxhead.noisy_labels import co_teaching, label_errors, prune, twins
from flaxhead.objectives import supervised
from flaxhead.solvers import ridge

CLASSES, KEY = 3, jax.random.key(0)
HEAD = linear(CLASSES)


def confident_learning(p, labels):
    """Northcutt et al. (2021), section 3, row by row; `by noise rate`."""
    classes, rows = p.shape[1], range(len(p))
    counts = np.bincount(labels, minlength=classes)
    threshold = [
        p[labels == c, c].mean() if counts[c] else np.inf for c in range(classes)
    ]
    joint = np.zeros((classes, classes))
    for row in rows:
        able = [c for c in range(classes) if p[row, c] >= threshold[c]]
        if able:
            joint[labels[row], max(able, key=lambda c, row=row: p[row, c])] += 1
    issue = np.zeros(len(p), bool)
    for given in range(classes):
        mine = [row for row in rows if labels[row] == given]
        best = max((p[row, given] for row in mine), default=0)
        for true in set(range(classes)) - {given}:
            share = joint[given, true] / max(joint[given].sum(), 1)
            mine.sort(key=lambda row: p[row, given] - p[row, true])
            for row in mine[: int(share * counts[given] + 0.5)]:
                issue[row] |= p[row, given] < min(p[row].max(), best)
    joint *= counts[:, None] / np.maximum(joint.sum(1, keepdims=True), 1)
    return p[np.arange(len(p)), labels], issue, joint


errors = jax.jit(label_errors)


def guesses(seed, rows=60, lacking=()):
    """Probabilities, and labels of which a fifth is wrong."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, rows)
    p = rng.dirichlet(np.ones(CLASSES), rows) + 0.7 * oracles.one_hot(labels, CLASSES)
    labels = np.where(rng.random(rows) < 0.2, (labels + 1) % CLASSES, labels)
    labels = np.where(np.isin(labels, lacking), 0, labels)
    return (p / p.sum(1, keepdims=True)).astype(np.float32), labels.astype(np.int32)


@pytest.mark.parametrize(("seed", "lacking"), [(0, ()), (1, ()), (2, ()), (3, (2,))])
def test_errors_are_those_of_the_paper(seed, lacking):
    p, labels = guesses(seed, lacking=lacking)
    score, issue, joint = confident_learning(p.astype(float), labels)
    found = errors(p, labels, np.ones(60, np.float32))
    np.testing.assert_allclose(found.score, score, rtol=1e-6)
    np.testing.assert_array_equal(found.issue, issue)
    np.testing.assert_allclose(found.counts, joint, rtol=1e-6)
    assert 3 <= issue.sum() <= 30


def test_absent_rows_are_deleted_and_weights_are_repeats():
    p, labels = guesses(4)
    _, expected, _ = confident_learning(p[:40].astype(float), labels[:40])
    given = labels.copy()
    given[40:50] = -1
    weights = np.where(np.arange(60) < 50, 1, 0).astype(np.float32)
    broken = np.where(np.arange(60)[:, None] < 40, p, np.nan)
    found = errors(broken, given, weights)
    np.testing.assert_array_equal(found.issue, np.append(expected, np.zeros(20, bool)))
    np.testing.assert_array_equal(found.score[40:], 1)
    # All rows twice, or all of weight 2.
    twice = errors(np.tile(p[:30], (2, 1)), np.tile(labels[:30], 2), np.ones(60))
    weights = np.where(np.arange(60) < 30, 2, 0).astype(np.float32)
    once = errors(p, labels, weights)
    alike = np.asarray(twice.issue[:30]) == np.asarray(once.issue[:30])
    assert alike.mean() > 0.9  # A row of two can't be half suspected.


def test_order_of_rows_is_nothing():
    p, labels = guesses(5)
    order = np.random.default_rng(0).permutation(60)
    ones = np.ones(60, np.float32)
    moved = errors(p[order], labels[order], ones)
    np.testing.assert_array_equal(moved.issue, errors(p, labels, ones).issue[order])


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"labels \[3\]: expected"):
        label_errors(jnp.ones([2, 2]), jnp.zeros(3, int), jnp.ones(2))
    with pytest.raises(ValueError, match="folds is 1"):
        prune(ridge(CLASSES), HEAD, folds=1)
    soft = rows()[0]._replace(labels=jnp.ones([ROWS, CLASSES]) / CLASSES)
    with pytest.raises(ValueError, match="expected class numbers"):
        prune(ridge(CLASSES), HEAD)(soft, jnp.ones(ROWS), ALPHA, KEY)


ROWS, ALPHA = 90, {"alpha": jnp.float32(1)}


@functools.cache
def rows(wrong=12):
    """Clusters, of which so many rows have another label, and the labels that fit."""
    rng = np.random.default_rng(0)
    right = np.arange(ROWS) % CLASSES
    x = 4 * oracles.one_hot(right, CLASSES) + rng.normal(
        size=(ROWS, CLASSES), scale=0.5
    )
    labels = right.copy()
    labels[:wrong] = (labels[:wrong] + 1) % CLASSES
    data = Batch(
        jnp.asarray(x, jnp.float32),
        jnp.asarray(labels, jnp.int32),
        jnp.ones(ROWS),
        jnp.arange(ROWS),
    )
    return data, right


def spy(data, weights, hyperparameters, key):
    """Ridge, and the weights that it was given."""
    return {**ridge(CLASSES)(data, weights, hyperparameters, key), "weights": weights}


PLAIN, PRUNED = jax.jit(spy), jax.jit(prune(spy, HEAD))


def close(a, b, atol=1e-4):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), a, b)


def test_pruned_is_the_fit_that_has_wrong_labels_unlabelled():
    """Weight 0 in the weights, and not in the data, is how a fit is told of these."""
    data, right = rows()
    weights = jnp.linspace(1.0, 2.0, ROWS)
    kept = jnp.where(np.asarray(data.labels) == right, weights, 0)
    found = PRUNED(data, weights, ALPHA, KEY)
    np.testing.assert_array_equal(found["weights"], kept)
    close(found, PLAIN(data, kept, ALPHA, KEY))


def test_without_wrong_labels_pruned_is_the_fit():
    data, _ = rows(wrong=0)
    weights = jnp.linspace(1.0, 2.0, ROWS)
    close(PRUNED(data, weights, ALPHA, KEY), PLAIN(data, weights, ALPHA, KEY))


def test_pruned_reads_no_hidden_label():
    data, _ = rows()
    few = jnp.asarray(np.arange(ROWS) < 60, jnp.float32)
    expected = PRUNED(data, few, ALPHA, KEY)
    planted = jnp.where(few > 0, data.labels, 2 - data.labels)
    found = PRUNED(data._replace(labels=planted), few, ALPHA, KEY)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    hidden = data._replace(labels=jnp.where(few > 0, data.labels, -1))
    found = PRUNED(hidden, jnp.ones(ROWS), ALPHA, KEY)
    close(found["output"], expected["output"])


def test_pruned_composes():
    data, _ = rows()
    fold, alphas = jnp.arange(ROWS) % 4, {"alpha": jnp.array([9.0, 1.0])}
    several = jax.jit(sweep(cross_fit(prune(spy, HEAD), fold, folds=2)))
    found = several(data, jnp.ones(ROWS), alphas, KEY)
    inside = jnp.asarray(np.arange(ROWS) % 4 != 1, jnp.float32)
    alone = PRUNED(data, inside, ALPHA, KEY)
    close(jax.tree.map(lambda leaf: leaf[1, 1], found), alone)


DEEP = linear(CLASSES, zero_init=False)
PAIR = twins(DEEP)


def teach(params, batch, rate, ramp, memory, axis=None):
    objective = co_teaching(
        DEEP, softmax_cross_entropy, forget_rate=rate, ramp=ramp, axis=axis
    )

    def total(params):
        sums, after = objective.apply(params, memory, batch, KEY)
        return sums["a"].total + sums["b"].total, (sums, after)

    return jax.grad(total, has_aux=True)(params)


taught = jax.jit(teach)


@functools.cache
def lesson():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, CLASSES, 16).astype(np.int32)
    labels[3] = -1
    weights = np.where(np.arange(16) == 5, 0, 1).astype(np.float32)
    x = rng.normal(size=(16, 4)).astype(np.float32)
    x[5] = np.nan
    batch = Batch(*map(jnp.asarray, (x, labels, weights, np.arange(16))))
    params = PAIR.init(KEY, jnp.ones([1, 4]))
    return params, batch


def logits_of(params, x):
    output = params["output"]
    return np.asarray(x) @ np.asarray(output["kernel"]) + np.asarray(output["bias"])


@pytest.mark.parametrize(
    ("rate", "ramp", "memory", "kept"),
    [
        (0.0, 1, 0, 14),
        (0.5, 1, 0, 7),
        (0.5, 10, 3, 11),
        (0.5, 10, 30, 7),
        (0.99, 1, 0, 1),
    ],
)
def test_each_learns_what_costs_the_other_least(rate, ramp, memory, kept):
    params, batch = lesson()
    gradient, (sums, after) = taught(params, batch, rate, float(ramp), memory)
    assert int(after) == memory + 1
    present = np.setdiff1d(np.arange(16), [3, 5])
    labels = np.asarray(batch.labels)[present]
    costs = {
        name: -log_softmax(logits_of(params[name], batch.x)[present], axis=1)[
            np.arange(14), labels
        ]
        for name in "ab"
    }
    # Of 14 rows 0.5 * (3 + 1) / 10 are left out: 2.8, rounded.
    for own, other in ("ab", "ba"):
        least = np.argsort(costs[other])[:kept]
        np.testing.assert_allclose(sums[own].count, kept)
        np.testing.assert_allclose(sums[own].total, costs[own][least].sum(), rtol=1e-5)
        chosen = present[least]
        error = np.exp(log_softmax(logits_of(params[own], batch.x)[chosen], axis=1))
        error -= oracles.one_hot(labels[least], CLASSES)
        np.testing.assert_allclose(
            gradient[own]["output"]["bias"], error.sum(0), rtol=1e-4, atol=1e-5
        )


def test_forgetting_nothing_is_two_supervised_heads():
    params, batch = lesson()
    _, (sums, _) = taught(params, batch, 0.0, 1.0, 0)
    for name in "ab":
        alone = supervised(DEEP, softmax_cross_entropy)
        expected, _ = alone.apply(params[name], (), batch, KEY)
        for found, one in zip(sums[name], expected["supervised"], strict=True):
            np.testing.assert_allclose(found, one, rtol=1e-6)


def test_one_device_is_eight():
    params, batch = lesson()
    _, (expected, _) = taught(params, batch, 0.5, 1.0, 0)
    parts = jax.tree.map(lambda leaf: leaf.reshape(8, 2, *leaf.shape[1:]), batch)

    def part(batch):
        return teach(params, batch, 0.5, 1.0, 0, axis="rows")[1][0]

    sums = jax.pmap(part, axis_name="rows")(parts)
    close(jax.tree.map(lambda leaf: leaf.sum(0), sums), expected)


def test_twins_average_probabilities():
    params, batch = lesson()
    x = jnp.nan_to_num(batch.x)
    each = [np.exp(log_softmax(logits_of(params[n], x), axis=1)) for n in "ab"]
    found = np.exp(PAIR.apply(params, x))
    np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=1e-5)
