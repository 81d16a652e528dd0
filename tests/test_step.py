"""The order of rows, one step, and whole runs made of steps."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from scipy import stats

from flaxhead.base import Batch
from flaxhead.fit import seeds, sweep, train
from flaxhead.heads import linear
from flaxhead.losses import label_smoothing, softmax_cross_entropy
from flaxhead.objectives import supervised
from flaxhead.optim import optimizer
from flaxhead.sampling import balanced_rows, batch_rows, labelled_first, mixed_rows
from flaxhead.step import learner

ROWS, DIM, CLASSES = 13, 4, 3


# The order of rows.


@functools.partial(jax.jit, static_argnames="size")
def first_rows(key, epoch, rows, *, size):
    """The rows at the first `size` positions from an epoch's start."""
    first = epoch.astype(jnp.uint32) * rows.astype(jnp.uint32)
    return batch_rows(key, first, rows=rows, positions=jnp.arange(size))


def orders(keys, rows, epoch=0):
    """`[keys, rows]`, the order of an epoch for every key."""
    run = jax.vmap(functools.partial(first_rows, size=rows), in_axes=(0, None, None))
    return np.asarray(run(keys, jnp.int32(epoch), jnp.int32(rows)))


def test_an_epoch_is_a_permutation_of_every_number_of_rows():
    sizes, epochs = jnp.arange(1, 201), jnp.arange(3)
    over_sizes = jax.vmap(functools.partial(first_rows, size=200), (None, None, 0))
    over_epochs = jax.vmap(over_sizes, (None, 0, None))
    found = np.asarray(over_epochs(jax.random.key(0), epochs, sizes))
    for epoch in range(3):
        for rows in range(1, 201):
            order = np.sort(found[epoch, rows - 1, :rows])
            np.testing.assert_array_equal(order, np.arange(rows))


@pytest.mark.parametrize("rows", [4097, 65_536, 1_000_003])
def test_an_epoch_is_a_permutation_of_many_rows(rows):
    order = orders(jax.random.key(1)[None], rows, epoch=5)[0]
    np.testing.assert_array_equal(np.bincount(order, minlength=rows), 1)


def test_every_epoch_and_every_key_has_its_own_order():
    keys = jax.random.split(jax.random.key(2), 20)
    several = [orders(keys, 50, epoch) for epoch in range(20)]
    assert len(np.unique(np.concatenate(several), axis=0)) == 400


@pytest.mark.parametrize(("rows", "size"), [(7, 3), (10, 4), (5, 5), (6, 20), (1, 2)])
def test_batches_run_on_across_epochs(rows, size):
    epochs = math.lcm(rows, size) // rows
    steps = jnp.arange(epochs * rows // size, dtype=jnp.uint32)

    @jax.jit
    @jax.vmap
    def batch(step):
        positions = jnp.arange(size)
        return batch_rows(
            jax.random.key(3), step * size, rows=rows, positions=positions
        )

    batches = batch(steps)
    for epoch in batches.reshape(epochs, rows):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(rows))


def test_devices_together_see_the_whole_batch():
    draw = functools.partial(batch_rows, jax.random.key(4), jnp.uint32(90), rows=37)
    draw = jax.jit(draw)
    whole = draw(positions=jnp.arange(24))
    shares = [draw(positions=part) for part in jnp.arange(24).reshape(8, 3)]
    np.testing.assert_array_equal(jnp.concatenate(shares), whole)


def assert_uniform(counts):
    """By a chi-square test that a fair order fails once in ten thousand seeds."""
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("rows", [2, 3, 12, 40])
def test_orders_are_uniform(rows):
    keys = jax.random.split(jax.random.key(5), 6000)
    now, later = np.argsort(orders(keys, rows)), np.argsort(orders(keys, rows, epoch=1))
    for row in (0, rows - 1):
        assert_uniform(np.bincount(now[:, row], minlength=rows))
    # Where the next row lands, seen from this one, and this one an epoch later.
    gaps = np.bincount((now[:, 1] - now[:, 0]) % rows, minlength=rows)
    assert gaps[0] == 0
    if rows > 2:
        assert_uniform(gaps[1:])
    assert_uniform(np.bincount((later[:, 0] - now[:, 0]) % rows, minlength=rows))


def test_all_orders_of_four_rows_are_equally_likely():
    found = orders(jax.random.split(jax.random.key(6), 6000), 4)
    distinct, counts = np.unique(found, axis=0, return_counts=True)
    assert len(distinct) == math.factorial(4)
    assert_uniform(counts)


# As many rows of each class.

COUNTS = np.array([5, 0, 1, 2, 5])
KIND = np.repeat(np.arange(len(COUNTS)), COUNTS)  # of each row
KEY = jax.random.key(8)


@functools.partial(jax.jit, static_argnames="size")
def balanced(keys, step, *, size):
    positions, first = jnp.arange(size), jnp.uint32(step) * size
    draw = functools.partial(balanced_rows, first=first, positions=positions)
    return jax.vmap(lambda key: draw(key, counts=jnp.asarray(COUNTS)))(keys)


def test_a_class_comes_once_a_round_and_a_row_once_an_epoch_of_its_class():
    keys = jax.random.split(jax.random.key(6), 2)
    steps = [np.asarray(balanced(keys, step, size=10)) for step in range(12)]
    for drawn in np.concatenate(steps, axis=1):
        # Batches of ten and rounds of four: these run on across batches.
        rounds = KIND[drawn].reshape(30, 4)
        np.testing.assert_array_equal(np.sort(rounds), [[0, 2, 3, 4]] * 30)
        assert len(np.unique(rounds, axis=0)) > 10
        for kind in (0, 2, 3, 4):
            epochs = drawn[KIND[drawn] == kind].reshape(-1, COUNTS[kind])
            own = np.flatnonzero(kind == KIND)
            np.testing.assert_array_equal(np.sort(epochs), [own] * len(epochs))
        in_step = [drawn[KIND[drawn] == k] - np.argmax(k == KIND) for k in (0, 4)]
        assert (in_step[0] != in_step[1]).any()


def test_a_row_is_as_likely_as_its_class_over_its_rows():
    keys = jax.random.split(jax.random.key(7), 4000)
    drawn = np.asarray(balanced(keys, 3, size=1)).ravel()
    chance = 1 / (4 * COUNTS[KIND])
    found = np.bincount(drawn, minlength=len(KIND))
    assert stats.chisquare(found, chance * len(keys)).pvalue > 1e-4


@pytest.mark.parametrize("soft", [False, True])
def test_rows_without_a_label_come_beside_balanced_ones(soft):
    labels = np.array([1, 0, -1, 0, 0, 2, -1, 0, 1, 0, -1])
    labelled = (labels >= 0) & (np.arange(11) != 5)  # so that a class has no row
    given = np.eye(3)[labels] if soft else labels
    order = labelled_first(jnp.asarray(labelled), jnp.asarray(given), classes=3)
    draw = jax.jit(lambda step, at: mixed_rows(KEY, step, order, (4, 3), at))
    whole = [np.asarray(draw(step, jnp.arange(7))[0]) for step in range(8)]
    for rows in whole:
        np.testing.assert_array_equal(np.sort(labels[rows[:4]]), [0, 0, 1, 1])
        assert not labelled[rows[4:]].any()
    assert set(np.concatenate(whole)) == set(range(11))
    shares = [draw(5, at) for at in jnp.arange(7).reshape(7, 1)]
    rows, there = map(np.concatenate, zip(*shares, strict=True))
    np.testing.assert_array_equal(rows, whole[5])
    assert there.all()


# One step.


def example(seed=0, *, rows=ROWS):
    """Rows, some without label and some of weight 0, with rubbish in the latter."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(rows, DIM)).astype(np.float32)
    labels = draw.integers(-1, CLASSES, size=rows).astype(np.int32)
    weights = draw.choice([0.0, 0.5, 1.0, 3.0], size=rows).astype(np.float32)
    weights[-2:] = 0
    x[weights == 0] = 1e3
    return Batch(*map(jnp.asarray, (x, labels, weights, np.arange(rows))))


def make(head, tx, *, axis=None):
    return learner(head, supervised(head, softmax_cross_entropy), tx, axis=axis)


def close(found, expected, rtol=1e-5, atol=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
        found,
        expected,
    )


def test_a_step_is_the_gradient_of_softmax_regression():
    batch, learn = example(), make(linear(CLASSES, zero_init=False), optax.sgd(1.0))
    state = learn.init(jax.random.key(0), batch)
    new, info = jax.jit(learn.step)(state, batch)
    before = state.params["output"]
    loss, kernel, bias = oracles.softmax_regression(
        before["kernel"], before["bias"], batch.x, batch.labels, batch.weights
    )
    np.testing.assert_allclose(info.loss, loss, rtol=1e-5)
    step = jax.tree.map(jnp.subtract, before, new.params["output"])
    close(step, {"kernel": kernel, "bias": bias})


def test_a_step_counts_and_never_advances_the_key():
    batch, learn = example(), make(linear(CLASSES, dropout=0.5), optax.adam(0.1))
    state = learn.init(jax.random.key(0), batch)
    step = jax.jit(learn.step)
    new, _ = step(state, batch)
    assert (state.step, new.step, new.step.dtype) == (0, 1, jnp.int32)
    assert new.key == state.key
    assert jax.tree.structure(new) == jax.tree.structure(state)
    close(step(state, batch)[0].params, new.params, rtol=0, atol=0)


def test_the_noise_of_every_step_is_its_own():
    batch = example()
    learn = make(linear(CLASSES, zero_init=False, dropout=0.5), optax.sgd(0.0))
    state = learn.init(jax.random.key(0), batch)
    step = jax.jit(learn.step)
    first, info = step(state, batch)
    second, other = step(first, batch)
    close(first.params, second.params, rtol=0, atol=0)
    assert info.loss != other.loss


@pytest.mark.parametrize("absent", ["weight", "label"])
def test_an_absent_row_is_a_deleted_one(absent):
    head = linear(CLASSES, zero_init=False, dropout=0.5)
    batch, learn = example(), make(head, optax.adam(0.1))
    batch = batch._replace(labels=abs(batch.labels), weights=batch.weights + 1)
    gone = jnp.array([0, 5, 6])
    if absent == "weight":
        marked = batch._replace(weights=batch.weights.at[gone].set(0))
    else:
        marked = batch._replace(labels=batch.labels.at[gone].set(-1))
    deleted = jax.tree.map(lambda leaf: jnp.delete(leaf, gone, axis=0), batch)
    state, step = learn.init(jax.random.key(0), batch), jax.jit(learn.step)
    (masked, info), (expected, other) = step(state, marked), step(state, deleted)
    np.testing.assert_allclose(info.loss, other.loss, rtol=1e-5)
    close(masked.params, expected.params, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("absent", ["weights", "labels"])
def test_an_empty_batch_changes_nothing(absent):
    batch, learn = example(), make(linear(CLASSES, zero_init=False), optax.sgd(1.0))
    state = learn.init(jax.random.key(0), batch)
    if absent == "weights":
        batch = batch._replace(weights=jnp.zeros(ROWS))
    else:
        batch = batch._replace(labels=jnp.full(ROWS, -1))
    new, info = jax.jit(learn.step)(state, batch)
    assert info.loss == 0
    close(new.params, state.params, rtol=0, atol=0)


def test_uneven_shards_take_the_step_of_the_whole():
    whole = jax.tree.map(lambda leaf: leaf[:12], example())
    whole = whole._replace(weights=whole.weights.at[:3].set(0))  # An empty shard.
    shards = jax.tree.map(lambda leaf: leaf.reshape(4, 3, *leaf.shape[1:]), whole)
    head = linear(CLASSES, zero_init=False, dropout=0.3)
    one, split = (make(head, optax.sgd(1.0), axis=axis) for axis in (None, "devices"))
    state = one.init(jax.random.key(0), whole)
    expected, info = jax.jit(one.step)(state, whole)
    over_shards = jax.vmap(split.step, in_axes=(None, 0), axis_name="devices")
    found, losses = jax.jit(over_shards)(state, shards)
    for shard in range(4):
        np.testing.assert_allclose(losses.loss[shard], info.loss, rtol=1e-5)
        of_shard = jax.tree.map(lambda leaf, shard=shard: leaf[shard], found.params)
        close(of_shard, expected.params)


# Whole runs.

STEPS, SIZE = 6, 5


def make_learner(hyperparameters):
    head = linear(CLASSES, zero_init=False, dropout=hyperparameters["dropout"])
    loss = label_smoothing(softmax_cross_entropy, hyperparameters["label_smoothing"])
    tx = optimizer(
        "adam",
        learning_rate=hyperparameters["learning_rate"],
        weight_decay=hyperparameters["weight_decay"],
        steps=STEPS,
    )
    return learner(head, supervised(head, loss), tx)


FIT = train(make_learner, steps=STEPS, batch_size=SIZE)
alone = jax.jit(FIT)
CANDIDATES = {
    "learning_rate": jnp.array([0.01, 0.1, 0.3]),
    "weight_decay": jnp.array([0.0, 0.1, 1.0]),
    "label_smoothing": jnp.array([0.2, 0.0, 0.1]),
    "dropout": jnp.array([0.5, 0.2, 0.0]),
}


def candidate(number):
    return {name: values[number] for name, values in CANDIDATES.items()}


def part(params, number):
    return jax.tree.map(lambda leaf: leaf[number], params)


@pytest.mark.parametrize("balanced", [0, CLASSES])
def test_a_fit_is_a_loop_of_steps(balanced):
    data, weights = example(), jnp.linspace(0, 2, ROWS)
    key = jax.random.key(7)
    state_key, order_key = jax.random.split(key)
    learn = make_learner(candidate(0))
    weighted = data._replace(weights=data.weights * weights)
    state, step = learn.init(state_key, data), jax.jit(learn.step)
    known = (weighted.labels >= 0) & (weighted.weights > 0)

    @jax.jit
    def rows_of(number):
        positions = jnp.arange(SIZE)
        if balanced:
            order = labelled_first(known, data.labels, classes=balanced)
            return mixed_rows(order_key, number, order, (SIZE, 0), positions)[0]
        first = jnp.uint32(number * SIZE)
        return batch_rows(order_key, first, rows=ROWS, positions=positions)

    for number in range(STEPS):
        rows = rows_of(number)
        state, _ = step(
            state, jax.tree.map(lambda leaf, rows=rows: leaf[rows], weighted)
        )
    fit = train(make_learner, steps=STEPS, batch_size=SIZE, balanced=balanced)
    found = jax.jit(fit)(data, weights, candidate(0), key)
    close(found, state.params, rtol=1e-4, atol=1e-5)


def test_a_batch_larger_than_the_data_is_the_data():
    arguments = (example(), jnp.ones(ROWS), candidate(1), jax.random.key(0))
    large, exact = (
        jax.jit(train(make_learner, steps=2, batch_size=size))(*arguments)
        for size in (1000, ROWS)
    )
    close(large, exact, rtol=0, atol=0)


def test_a_sweep_is_a_loop_over_candidates():
    arguments, key = (example(), jnp.ones(ROWS)), jax.random.key(0)
    swept = jax.jit(sweep(FIT))(*arguments, CANDIDATES, key)
    for number in range(3):
        expected = alone(*arguments, candidate(number), key)
        close(part(swept, number), expected, rtol=1e-4, atol=1e-5)


def test_other_values_are_no_other_program():
    traces = 0

    def counted(hyperparameters):
        nonlocal traces
        traces += 1
        return make_learner(hyperparameters)

    run = jax.jit(sweep(train(counted, steps=2, batch_size=SIZE)))
    arguments = (example(), jnp.ones(ROWS))
    once = run(*arguments, CANDIDATES, jax.random.key(0))
    doubled = jax.tree.map(lambda values: values * 1.5, CANDIDATES)
    again = run(example(1), jnp.zeros(ROWS).at[:5].set(1), doubled, jax.random.key(1))
    assert traces == 1
    assert not np.allclose(once["output"]["kernel"], again["output"]["kernel"])


def test_seeds_are_fits_with_keys_of_their_own():
    arguments, key = (example(), jnp.ones(ROWS), candidate(0)), jax.random.key(0)
    several = jax.jit(seeds(FIT, 3))(*arguments, key)
    kernels = several["output"]["kernel"]
    for number in range(3):
        expected = alone(*arguments, jax.random.fold_in(key, number))
        close(part(several, number), expected, rtol=1e-4, atol=1e-5)
        assert not np.allclose(kernels[number], kernels[number - 1])


def test_folds_are_weights():
    data, key = example(), jax.random.key(0)
    folds = jnp.asarray(np.arange(ROWS) % 3 != np.arange(3)[:, None], jnp.float32)
    over_folds = jax.jit(jax.vmap(FIT, in_axes=(None, 0, None, None)))
    together = over_folds(data, folds, candidate(1), key)
    for number in range(3):
        inside = data._replace(weights=data.weights * folds[number])
        expected = alone(inside, jnp.ones(ROWS), candidate(1), key)
        close(part(together, number), expected, rtol=1e-4, atol=1e-5)
