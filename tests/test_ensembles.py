"""Several heads as one, and what is done with their predictions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import one_hot
from scipy.special import expit, softmax, xlogy
from sklearn.metrics import accuracy_score, log_loss

from flaxhead.base import Batch, Head
from flaxhead.ensembles import (
    batch_ensemble,
    diversity,
    ensemble,
    fold_linear,
    greedy_selection,
    mc_dropout,
    member_scores,
    members,
    mimo,
    packed,
    pool_logits,
    pool_probabilities,
    pooled,
    supervised_members,
    uncertainty,
)
from flaxhead.fit import seeds, train
from flaxhead.heads import cosine, linear, mlp
from flaxhead.losses import sigmoid_binary_cross_entropy, softmax_cross_entropy
from flaxhead.objectives import supervised
from flaxhead.step import learner

MEMBERS, ROWS, DIM, CLASSES = 4, 7, 5, 3
OUTPUTS = ("softmax", "sigmoid")
every_output = pytest.mark.parametrize("output", OUTPUTS)
DROPPING = mlp(CLASSES, width=8, dropout=0.5, zero_init=False)
# Heads of members that share a run.
HEADS = {
    "mimo": mimo(mlp(CLASSES * MEMBERS, width=8, zero_init=False), MEMBERS),
    "mc_dropout": mc_dropout(DROPPING, MEMBERS),
    "batch_ensemble": batch_ensemble(
        CLASSES, MEMBERS, width=8, dropout=0.5, zero_init=False
    ),
}
every_head = pytest.mark.parametrize("name", sorted(HEADS))


def rows(count=ROWS, seed=0):
    draw = np.random.default_rng(seed).normal(size=(count, DIM))
    return jnp.asarray(draw, jnp.float32)


def predictions(*, seed=0, count=MEMBERS):
    draw = np.random.default_rng(seed).normal(size=(count, ROWS, CLASSES))
    return jnp.asarray(3 * draw, jnp.float32)


def answers(kind, seed=1):
    """Labels and weights of rows, some of which are absent in one way or the other."""
    draw = np.random.default_rng(seed)
    weights = draw.uniform(0.5, 2, ROWS)
    weights[0] = 0
    if kind == "numbers":
        labels = draw.integers(0, CLASSES, ROWS)
        labels[1] = -1
    elif kind == "soft":
        labels = draw.dirichlet(np.ones(CLASSES), ROWS)
        labels[1] = np.nan
    else:
        labels = (draw.random((ROWS, CLASSES)) < 0.5).astype(float)
        labels[1], labels[2, 0] = np.nan, np.nan
    dtype = jnp.int32 if kind == "numbers" else jnp.float32
    return jnp.asarray(labels, dtype), jnp.asarray(weights, jnp.float32)


def probabilities(logits, output):
    logits = np.asarray(logits, float)
    return softmax(logits, axis=-1) if output == "softmax" else expit(logits)


def mean_nll(p, labels, weights, output):
    """The weighted mean over rows that are present (over entries, of several labels).

    `p` is `[..., rows, classes]`.
    """
    labels, weights = np.asarray(labels), np.asarray(weights, float)
    entries = weights[:, None] * np.ones(CLASSES)
    if labels.ndim == 1:
        entries = np.where(labels[:, None] < 0, 0, entries)
        labels = one_hot(labels, CLASSES)
    entries = np.where(np.isnan(labels), 0, entries)
    labels = np.nan_to_num(labels)
    terms = -xlogy(labels, p)
    if output == "sigmoid":
        terms -= xlogy(1 - labels, 1 - p)
        return np.sum(entries * terms, axis=(-2, -1)) / np.sum(entries)
    return np.sum(entries * terms, axis=(-2, -1)) / np.sum(entries[:, 0])


def close(found, expected, rtol=1e-5, atol=1e-5):
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)


# Pooling.


@every_output
def test_probabilities_are_pooled_by_their_mean(output):
    logits = predictions()
    weights = jnp.array([0.5, 0.0, 2.0, 1.0])
    poisoned = logits.at[1].set(jnp.nan)
    pool = jax.jit(functools.partial(pool_probabilities, output=output))
    for found, share in ((pool(logits), None), (pool(poisoned, weights), weights)):
        expected = np.average(probabilities(logits, output), axis=0, weights=share)
        close(probabilities(found, output), expected)
    close(pool(logits[::-1]), pool(logits))
    np.testing.assert_array_equal(pool(logits[:1]), logits[0])
    # Any batch dimensions, and members that are certain of opposite things.
    stacked = jnp.moveaxis(jnp.stack([logits, -logits]), 0, 1)
    close(pool(stacked)[1], pool(-logits))
    sure = jnp.array([[1e4, 0.0, -1e4], [-1e4, 0.0, 1e4]])
    half = [0.5, 0, 0.5] if output == "softmax" else [0.5, 0.5, 0.5]
    close(probabilities(pool_probabilities(sure, output=output), output), half)


def test_logits_are_pooled_by_their_mean():
    logits, weights = predictions(), jnp.array([0.5, 0.0, 2.0, 1.0])
    close(pool_logits(logits), np.mean(logits, axis=0))
    expected = np.average(logits, axis=0, weights=weights)
    close(pool_logits(logits.at[1].set(jnp.inf), weights), expected)
    np.testing.assert_array_equal(pool_logits(logits[:1]), logits[0])


def test_linear_members_fold_into_one_head():
    x, weights = rows(), jnp.array([0.5, 0.0, 2.0, 1.0])
    head = linear(CLASSES, zero_init=False)
    params = members(head, MEMBERS).init(jax.random.key(0), x)
    params["output"]["bias"] = predictions()[:, 0]
    every = members(head, MEMBERS).apply(params, x)
    for share in (None, weights):
        found = head.apply(fold_linear(params, share), x)
        close(found, pool_logits(every, share))
    first = jax.tree.map(lambda leaf: leaf[:1], params)
    found = fold_linear(first)["output"]
    np.testing.assert_array_equal(found["kernel"], params["output"]["kernel"][0])


@pytest.mark.parametrize(
    "head", [mlp(2, width=4), cosine(2), linear(2)], ids=("mlp", "cosine", "linear")
)
def test_others_do_not_fold(head):
    params = head.init(jax.random.key(0), rows())
    if set(params) != {"output"} or "kernel" not in params["output"]:
        params = jax.tree.map(lambda leaf: leaf[None], params)
    with pytest.raises(ValueError, match="expected those of linear members"):
        fold_linear(params)


# What members' predictions say.


@every_output
def test_uncertainty_is_entropies(output):
    logits, weights = predictions(), jnp.array([0.5, 1.0, 2.0, 0.0])
    split = jax.jit(functools.partial(uncertainty, output=output))
    for share in (None, weights):
        p = probabilities(logits, output)

        def entropy(p):
            rest = 0 if output == "softmax" else xlogy(1 - p, 1 - p)
            return -np.sum(xlogy(p, p) + rest, axis=-1)

        found = split(logits, share)
        total = entropy(np.average(p, axis=0, weights=share))
        aleatoric = np.average(entropy(p), axis=0, weights=share)
        close(found.total, total)
        close(found.aleatoric, aleatoric)
        close(found.epistemic, total - aleatoric)
        close(found.total, found.aleatoric + found.epistemic, rtol=1e-6, atol=0)
        assert (found.epistemic > 0).all()
    alike = split(jnp.repeat(logits[:1], 3, axis=0))
    np.testing.assert_array_equal(alike.epistemic, 0)
    np.testing.assert_array_equal(split(logits[:1]).epistemic, 0)
    impossible = split(jnp.array([[[0.0, -jnp.inf, 0.0]]] * 2))
    assert all(np.isfinite(part).all() for part in impossible)


CASES = [
    ("softmax", "numbers"),
    ("softmax", "soft"),
    ("sigmoid", "numbers"),
    ("sigmoid", "several"),
]
every_case = pytest.mark.parametrize(("output", "kind"), CASES)


@every_case
def test_diversity_is_that_of_all_pairs(output, kind):
    logits, (labels, weights) = predictions(), answers(kind)
    logits = logits.at[:, 0].set(jnp.nan)  # An absent row.
    p = np.nan_to_num(probabilities(logits, output), nan=0.5)
    entries = np.asarray(weights)
    if kind == "several":
        guesses = np.asarray(logits) > 0
        entries = np.where(np.isnan(labels), 0, entries[:, None])
    else:
        guesses = np.argmax(logits, axis=-1)
        known = labels >= 0 if kind == "numbers" else ~np.isnan(labels).any(1)
        entries = np.where(known, entries, 0)
    pairs = [
        np.average(guesses[i] != guesses[j], weights=entries)
        for i in range(MEMBERS)
        for j in range(i)
    ]
    single = mean_nll(p, labels, weights, output).mean()
    together = mean_nll(p.mean(axis=0), labels, weights, output)
    of = functools.partial(diversity, output=output)

    @jax.jit
    def run(logits):
        return (
            of(logits, labels, weights),
            of(logits[::-1], labels, weights),
            of(logits, labels, weights, pooling="logits"),
            of(logits[:1], labels, weights),
        )

    found, backwards, other, one = run(logits)
    close(found, [np.mean(pairs), single, together, single - together])
    close(backwards, found)
    pooled = probabilities(np.mean(logits, axis=0), output)
    pooled = mean_nll(np.nan_to_num(pooled, nan=0.5), labels, weights, output)
    close(other.pooled_nll, pooled)
    assert other.ambiguity > 0
    close((one.disagreement, one.ambiguity), 0)


def test_members_are_scored_as_by_scikit_learn():
    logits, (labels, weights) = predictions(), answers("numbers")
    found = member_scores(logits, labels, weights)
    kept = (np.asarray(labels) >= 0) & (np.asarray(weights) > 0)
    of = {"sample_weight": np.asarray(weights)[kept]}
    truth = np.asarray(labels)[kept]
    for member, p in enumerate(probabilities(logits, "softmax")[:, kept]):
        nll = log_loss(truth, p, labels=range(CLASSES), **of)
        close(found["nll"][member], nll)
        close(found["accuracy"][member], accuracy_score(truth, p.argmax(1), **of))


# Greedy selection.


def greedy(p, labels, weights, size, output):
    """Caruana's loop in NumPy: counts, and the NLL after every step."""
    counts, history = np.zeros(len(p), int), []
    best = counts, np.inf
    for _ in range(size):
        trials = counts + np.eye(len(p), dtype=int)
        pooled = np.tensordot(trials / trials[0].sum(), p, axes=1)
        nll = mean_nll(pooled, labels, weights, output)
        counts = trials[np.argmin(nll)]
        history.append(nll.min())
        if nll.min() < best[1]:
            best = counts, nll.min()
    return best[0], history


@every_case
def test_selection_is_the_greedy_loop(output, kind):
    size = 12
    draws = [predictions(seed=seed, count=6) / 3 for seed in range(4)]
    labels, weights = answers(kind)
    select = functools.partial(greedy_selection, size=size, output=output)
    many = jax.jit(jax.vmap(select, in_axes=(0, None, None)))
    # Rows that are absent hold anything.
    found = many(jnp.stack(draws).at[:, :, :2].set(jnp.nan), labels, weights)
    backwards = many(jnp.stack(draws)[:, ::-1], labels, weights)
    np.testing.assert_array_equal(backwards[:, ::-1], found)
    for counts, logits in zip(np.asarray(found), draws, strict=True):
        p = probabilities(logits, output)
        expected, history = greedy(p, labels, weights, size, output)
        # Prefixes may tie: one twice as long, with twice the counts.
        close(counts / counts.sum(), expected / expected.sum())
        nll = mean_nll(
            np.tensordot(counts, p, 1) / counts.sum(), labels, weights, output
        )
        close(nll, min(history))
        assert nll <= mean_nll(p, labels, weights, output).min() + 1e-9
        # As it is used: counts are weights.
        pooled = pool_probabilities(logits, counts, output=output)
        close(mean_nll(probabilities(pooled, output), labels, weights, output), nll)


@pytest.mark.usefixtures("compile_fully")
def test_selection_leaves_out_diverged_candidates():
    labels, _ = answers("numbers")
    logits = predictions().at[2].set(jnp.nan).at[1, 3].set(jnp.inf)
    select = jax.jit(functools.partial(greedy_selection, size=5))
    counts = select(logits, labels)
    assert counts[1] == counts[2] == 0
    assert counts.sum() > 0
    np.testing.assert_array_equal(counts[::3], select(logits[::3], labels))
    # A row that is given up for lost by some is not by all: no 0 times infinity.
    sure = jnp.stack([one_hot(labels, CLASSES) * 1e3, -one_hot(labels, CLASSES) * 1e3])
    np.testing.assert_array_equal(select(sure, labels), [1, 0])
    np.testing.assert_array_equal(select(sure[::-1], labels), [0, 1])


# Heads of members.


@every_head
def test_members_come_first_and_are_pooled(name):
    head, x = HEADS[name], rows()
    order = jnp.array([4, 0, 2])

    @jax.jit
    def run(key):
        params = head.init(key, x)
        keys = jax.random.split(key, ROWS)
        logits = head.apply(params, x)
        pools = [pooled(head, pooling=how) for how in ("probabilities", "logits")]
        return {
            "logits": logits,
            "some": head.apply(params, x[order]),
            "trained": head.apply(params, x, key=keys, train=True),
            "some trained": head.apply(params, x[order], key=keys[order], train=True),
            "pooled": [one.apply(params, x) for one in pools],
            "expected": [pool_probabilities(logits), pool_logits(logits)],
        }

    found = run(jax.random.key(0))
    logits, trained = found["logits"], found["trained"]
    assert logits.shape == (MEMBERS, ROWS, CLASSES)
    assert trained.shape[1:] == (ROWS, CLASSES)
    assert len(trained) in (1, MEMBERS)
    jax.tree.map(close, found["pooled"], found["expected"])
    # What a row gets depends on the row and its key alone, in training and after.
    close(found["some"], logits[:, order])
    if name != "mimo":  # Which mixes rows, and whose members differ once trained.
        close(found["some trained"], trained[:, order])
        assert np.ptp(logits, axis=0).max() > 0.1


@pytest.mark.usefixtures("compile_fully")
def test_a_member_is_the_head_itself():
    x, keys = rows(), jax.random.split(jax.random.key(1), ROWS)
    head, whole, key = members(DROPPING, MEMBERS), jax.random.key(2), jax.random.key(0)

    @jax.jit
    def together(key):
        params = head.init(key, x)
        noisy = [head.apply(params, x, key=k, train=True) for k in (keys, whole)]
        order = jnp.array([2, 0, 3, 1])
        shuffled = jax.tree.map(lambda leaf: leaf[order], params)
        pools = [pooled(head).apply(some, x) for some in (params, shuffled)]
        return params, noisy, pools

    @jax.jit
    def alone(number):
        own = jax.random.fold_in(key, number)
        params = DROPPING.init(own, x)
        folded = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)
        one_key = jax.random.fold_in(whole, number)
        noisy = [
            DROPPING.apply(params, x, key=k, train=True) for k in (folded, one_key)
        ]
        return params, noisy, DROPPING.apply(params, x)

    params, noisy, pools = together(key)
    for number in range(MEMBERS):
        found = jax.tree.map(lambda leaf, i=number: leaf[i], (params, noisy))
        jax.tree.map(close, found, alone(number)[:2])
    close(*pools)
    first = jax.tree.map(lambda leaf: leaf[:1], params)
    ways = [ensemble(DROPPING, 1, pooling=how) for how in ("probabilities", "logits")]
    for single in jax.jit(lambda first: [way.apply(first, x) for way in ways])(first):
        np.testing.assert_array_equal(single, alone(0)[2])


def test_packed_members_share_the_width():
    for alpha, own in ((2.0, 8), (1.0, 4)):
        head = packed(CLASSES, MEMBERS, width=16, alpha=alpha, depth=2)
        shapes = jax.eval_shape(head.init, jax.random.key(0), rows())
        shapes = {name: layer["kernel"].shape for name, layer in shapes.items()}
        assert shapes == {
            "hidden_0": (MEMBERS, DIM, own),
            "hidden_1": (MEMBERS, own, own),
            "output": (MEMBERS, own, CLASSES),
        }


def test_batch_ensemble_is_its_layers():
    x = rows(64)
    head = batch_ensemble(CLASSES, MEMBERS, width=8, activation="tanh", zero_init=False)
    params = head.init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, params)["output"] == {
        "kernel": (8, CLASSES),
        "inputs": (MEMBERS, 8),
        "outputs": (MEMBERS, CLASSES),
        "bias": (MEMBERS, CLASSES),
    }
    draw = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: leaf + jnp.asarray(draw.normal(size=leaf.shape), jnp.float32),
        params,
    )

    def layer(x, member, name):
        leaves = {key: np.asarray(leaf, float) for key, leaf in params[name].items()}
        kernel = leaves["kernel"] * np.outer(
            leaves["inputs"][member], leaves["outputs"][member]
        )
        return x @ kernel + leaves["bias"][member]

    expected = np.stack(
        [
            layer(np.tanh(layer(np.asarray(x), member, "hidden_0")), member, "output")
            for member in range(MEMBERS)
        ]
    )
    run = jax.jit(head.apply, static_argnames="train")
    close(run(params, x), expected, rtol=1e-4)
    # In training each row is seen by one member, and every member sees some.
    seen = run(params, x, key=jax.random.key(1), train=True)
    gaps = np.abs(np.asarray(seen) - expected).max(axis=2)
    close(gaps.min(axis=0), 0, atol=1e-3)
    assert set(gaps.argmin(axis=0)) == set(range(MEMBERS))


@pytest.mark.parametrize("depth", [0, 1])
def test_one_member_with_factors_of_one_is_the_plain_head(depth):
    x = rows()
    plain = mlp(CLASSES, width=8) if depth else linear(CLASSES)
    head = batch_ensemble(CLASSES, 1, width=8, depth=depth)

    @jax.jit
    def run(key):
        kept = jax.tree.map(lambda leaf: leaf + 0.5, plain.init(key, x))
        params = jax.tree.map(jnp.ones_like, head.init(key, x))
        for name, layer in kept.items():
            params[name] |= {"kernel": layer["kernel"], "bias": layer["bias"][None]}
        trained = head.apply(params, x, key=key, train=True)
        return plain.apply(kept, x), head.apply(params, x), trained

    expected, found, trained = run(jax.random.key(0))
    np.testing.assert_array_equal(found[0], expected)
    close(trained[0], expected)


def echo(turn):
    """A head whose member `m` answers with the input at place `m + turn`."""

    def apply(params, x, *, key=None, train=False):
        del params, key, train
        return jnp.roll(x.reshape(len(x), MEMBERS, DIM), -turn, axis=1).reshape(x.shape)

    return Head(lambda key, x: {}, apply)


def test_mimo_gives_every_member_rows_of_its_own():
    x, keys = rows(50), jax.random.split(jax.random.key(0), 50)

    @jax.jit
    def run(params):
        own, others, one = (
            mimo(head, count).apply(params, x, key=keys, train=True)
            for head, count in ((echo(0), MEMBERS), (echo(1), MEMBERS), (DROPPING, 1))
        )
        repeated = mimo(echo(1), MEMBERS).apply(params, x)
        plain = DROPPING.apply(params, x, key=keys, train=True)
        return own, others, repeated, one[0], plain

    own, others, repeated, one, plain = run(DROPPING.init(keys[0], x))
    every = jnp.stack([x] * MEMBERS)
    np.testing.assert_array_equal(own, every)
    np.testing.assert_array_equal(repeated, every)
    np.testing.assert_array_equal(one, plain)
    # What a member sees at the next place: every row once, hardly ever its own.
    for other in np.asarray(others):
        np.testing.assert_array_equal(np.sort(other, axis=0), np.sort(x, axis=0))
        assert np.mean((other == np.asarray(x)).all(axis=1)) < 0.2


def test_mc_dropout_samples_masks_and_is_trained_as_the_head():
    x, keys = rows(), jax.random.split(jax.random.key(1), ROWS)
    plain = linear(CLASSES, zero_init=False)
    noisy = linear(CLASSES, zero_init=False, dropout=0.5)

    @jax.jit
    def run(params):
        return (
            plain.apply(params, x),
            [mc_dropout(noisy, 4000, seed=seed).apply(params, x) for seed in (0, 1)],
            pooled(mc_dropout(noisy, 3)).apply(params, x, key=keys, train=True),
            noisy.apply(params, x, key=keys, train=True),
            mc_dropout(plain, 3).apply(params, x),
        )

    expected, (logits, other), trained, own, without = run(
        plain.init(jax.random.key(0), x)
    )
    np.testing.assert_array_equal(trained, own)
    np.testing.assert_array_equal(without, jnp.stack([expected] * 3))
    assert not np.allclose(other, logits)
    # A linear layer after the mask: the mean over many is the head without one.
    gap = np.abs(np.mean(logits, axis=0) - expected)
    assert (gap < 5 * np.std(logits, axis=0) / 4000**0.5).all()


# Training.


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        (softmax_cross_entropy, "numbers"),
        (sigmoid_binary_cross_entropy, "several"),
    ],
)
def test_the_loss_of_members_is_the_mean_of_theirs(loss, kind):
    labels, weights = answers(kind)
    x = rows().at[0].set(1e3)
    batch, key = Batch(x, labels, weights, jnp.arange(ROWS)), jax.random.key(1)
    plain = linear(CLASSES, zero_init=False)
    head = members(plain, MEMBERS)
    params = head.init(jax.random.key(0), x)

    def minimised(objective, params):
        sums, memory = objective.apply(params, (), batch, key)
        assert memory == ()
        return sums["supervised"].total / sums["supervised"].count

    @jax.jit
    def run(params):
        slope = jax.value_and_grad(minimised, argnums=1)
        first = jax.tree.map(lambda leaf: leaf[:1], params)
        return (
            slope(supervised_members(head, loss), params),
            jax.vmap(functools.partial(slope, supervised(plain, loss)))(params),
            minimised(supervised_members(members(plain, 1), loss), first),
        )

    (value, slopes), (values, expected), one = run(params)
    close(value, values.mean())
    jax.tree.map(lambda a, b: close(a, b / MEMBERS), slopes, expected)
    close(one, values[0], rtol=1e-6)


def test_members_trained_together_are_those_trained_apart():
    labels = jnp.arange(30) % CLASSES
    x = rows(30) + 2 * jnp.eye(CLASSES, DIM)[labels]
    data = Batch(x, labels, jnp.ones(30), jnp.arange(30))
    head = mlp(CLASSES, width=8)
    objective = supervised(head, softmax_cross_entropy)

    def make(hyperparameters):
        return learner(head, objective, optax.adam(hyperparameters["rate"]))

    fit = train(make, steps=20, batch_size=10)
    values, key = {"rate": jnp.float32(0.01)}, jax.random.key(0)
    together = jax.jit(seeds(fit, MEMBERS))
    params, alone = together(data, jnp.ones(30), values, key), jax.jit(fit)
    for number in range(MEMBERS):
        own = alone(data, jnp.ones(30), values, jax.random.fold_in(key, number))
        jax.tree.map(lambda a, b, i=number: close(a[i], b), params, own)
    together(data, jnp.zeros(30), {"rate": jnp.float32(0.1)}, key)
    assert together._cache_size() == 1
    # Its parameters are those of the ensemble.
    own = jax.tree.map(lambda leaf: leaf[0], params)
    close(members(head, MEMBERS).apply(params, x)[0], head.apply(own, x))


def test_members_in_one_order_read_a_step_s_rows_once():
    data = Batch(rows(30), jnp.arange(30) % CLASSES, jnp.ones(30), jnp.arange(30))
    head = linear(CLASSES, zero_init=False)
    learn = learner(head, supervised(head, softmax_cross_entropy), optax.sgd(0.1))
    arguments = data, jnp.ones(30), {}
    key = jax.random.key(0)

    def fit(order):
        return train(lambda _: learn, steps=4, batch_size=7, order=order)

    own, shared = (jax.jit(seeds(fit(order), MEMBERS)) for order in (None, 5))
    batch = f"f32[{MEMBERS},7,{DIM}] = gather"
    assert batch in str(own.trace(*arguments, key).jaxpr)
    assert batch not in str(shared.trace(*arguments, key).jaxpr)
    found = shared(*arguments, key)
    for number in range(MEMBERS):
        of = jax.random.fold_in(key, number)
        one = jax.jit(fit(5))(*arguments, of)
        jax.tree.map(lambda a, b, i=number: close(a[i], b), found, one)
    # Another order, and rows come in another one.
    other = jax.jit(fit(6))(*arguments, of)
    assert not np.allclose(one["output"]["kernel"], other["output"]["kernel"])


@pytest.mark.parametrize("name", ["batch_ensemble", "mimo"])
def test_members_of_one_run_learn(name):
    labels = jnp.arange(60) % CLASSES
    x = rows(60) + 3 * jnp.eye(CLASSES, DIM)[labels]
    data = Batch(x, labels, jnp.ones(60), jnp.arange(60))
    head = {
        "batch_ensemble": batch_ensemble(CLASSES, MEMBERS, width=8, zero_init=False),
        "mimo": HEADS["mimo"],
    }[name]
    objective = supervised_members(head, softmax_cross_entropy)
    learn = learner(head, objective, optax.adam(0.02))
    fit = train(lambda _: learn, steps=150, batch_size=30)

    @jax.jit
    def run(key):
        return head.apply(fit(data, jnp.ones(60), {}, key), x)

    logits = np.asarray(run(jax.random.key(0)))
    assert ((logits.argmax(-1) == labels).mean(axis=1) > 0.8).all()
    assert np.ptp(logits, axis=0).max() > 0.1


# What is refused.

X, LOGITS = rows(), predictions()
NARROW = Head(lambda key, x: {}, lambda params, x, **_: x[:, :4])
WRONG = {
    "no member": (lambda: ensemble(DROPPING, 0), "count is 0"),
    "no mask": (lambda: mc_dropout(DROPPING, 0), "count is 0"),
    "no input": (lambda: mimo(DROPPING, 0), "count is 0"),
    "no factor": (lambda: batch_ensemble(2, 0), "count is 0"),
    "narrow": (lambda: packed(2, 9, width=2), "0 hidden units a member"),
    "depth": (lambda: batch_ensemble(2, 2, depth=-1), "depth -1"),
    "activation": (lambda: batch_ensemble(2, 2, activation="x"), "activation is 'x'"),
    "dropout": (lambda: batch_ensemble(2, 2, dropout=1.0), "dropout is 1.0"),
    "pooling": (lambda: pooled(DROPPING, pooling="x"), "pooling is 'x'"),
    "output": (lambda: ensemble(DROPPING, 2, output="x"), "output is 'x'"),
    "of none": (lambda: uncertainty(LOGITS, output="x"), "output is 'x'"),
    "weights": (lambda: pool_logits(LOGITS, jnp.ones(3)), r"expected \(4,\)"),
    "axes": (lambda: diversity(LOGITS[0], jnp.zeros(3)), r"\[members, rows, classes"),
    "rows": (lambda: member_scores(LOGITS, jnp.zeros(3, int)), "labels has 3 rows"),
    "size": (lambda: greedy_selection(LOGITS, jnp.zeros(7, int), size=0), "size is 0"),
    "no key": (lambda: mimo(DROPPING, 2).apply({}, X, train=True), "got no key"),
    "uneven": (lambda: mimo(NARROW, 3).apply({}, X), "multiple of"),
    "tokens": (lambda: mimo(DROPPING, 2).apply({}, X[None]), "expected embeddings"),
    "key": (
        lambda: HEADS["batch_ensemble"].apply({}, X, train=True),
        "batch_ensemble draws members with train=True and got no key",
    ),
}


@pytest.mark.parametrize("name", sorted(WRONG))
def test_what_does_not_fit_is_refused(name):
    run, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        run()
