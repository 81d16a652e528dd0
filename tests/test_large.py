"""Softmax over classes in tiles, and over devices, beside the dense one."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from flaxhead.base import Batch
from flaxhead.fit import train
from flaxhead.heads import cosine, linear
from flaxhead.large import (
    LastLayer,
    TopLabels,
    arcface,
    cosface,
    last_layer,
    tiled_cross_entropy,
    tiled_supervised,
    tiled_top_k,
)
from flaxhead.losses import class_weighted, label_smoothing, softmax_cross_entropy
from flaxhead.objectives import supervised
from flaxhead.parallel import CLASSES, cut_classes, over_classes, split_classes
from flaxhead.step import learner

pytestmark = pytest.mark.usefixtures("compile_quickly")

ROWS, DIM, COUNT, TILE = 7, 5, 21, 8  # the last tile is 5 of 8, the last device 0 of 3
DRAW = np.random.default_rng(0)
X = jnp.asarray(DRAW.normal(size=(ROWS, DIM)), jnp.float32)
KERNEL = jnp.asarray(DRAW.normal(size=(DIM, COUNT)), jnp.float32)
HARD = jnp.array([0, 20, 7, 7, -1, 15, 8])
TOP = TopLabels(
    jnp.array(
        [[0, 9, 20], [3, -1, 3], [7, 8, 2], [1, 2, 3], [-1] * 3, *[[5, 6, 7]] * 2]
    ),
    jnp.array([[0.5, 0.3, 0.2], [0.4, 0, 0.6], [1, 0, 0], *[[0.7, 0.2, 0.1]] * 4]),
)
WEIGHTS = jnp.asarray([1.0, 2, 0.5, 0, 1, 1, 3])
CLASS_WEIGHTS = jnp.asarray(DRAW.uniform(0.5, 2, COUNT), jnp.float32).at[5].set(0)
LAYERS = {
    "linear": LastLayer(KERNEL, KERNEL[0]),
    "cosine": LastLayer(KERNEL, scale=jnp.float32(6.0)),
}


def margin_of(angle, step):
    """Both margins in one; each is nothing at 0."""
    return lambda cosines: cosface(step)(arcface(angle)(cosines))


def dense_targets(labels):
    """Labels with an entry a class, and which rows have one."""
    if isinstance(labels, TopLabels):
        one_hot = (
            jax.nn.one_hot(labels.numbers, COUNT) * labels.probabilities[..., None]
        )
        targets = one_hot.sum(axis=1)
    else:
        targets = jax.nn.one_hot(labels, COUNT)
    return targets, targets.sum(axis=1) > 0


def dense(layer, x, labels, smoothing, class_weights, angle, step):
    """The losses of the package on all logits, margins by their definitions."""
    targets, there = dense_targets(labels)
    logits = x @ layer.kernel
    if layer.scale is None:
        logits = logits + layer.bias
    else:
        norms = jnp.linalg.norm(x, axis=1)[:, None] * jnp.linalg.norm(
            layer.kernel, axis=0
        )
        cosines = logits / norms
        lower = jnp.cos(jnp.arccos(cosines) + angle) - step
        logits = layer.scale * jnp.where(targets > 0, lower, cosines)
    smooth = label_smoothing(softmax_cross_entropy, smoothing)
    loss = class_weighted(smooth, class_weights)
    return jnp.sum(loss(logits, targets, where=there, weights=WEIGHTS))


def tiled(layer, x, labels, smoothing, class_weights, angle, step, **options):
    losses = tiled_cross_entropy(
        layer,
        x,
        labels,
        weights=WEIGHTS,
        label_smoothing=smoothing,
        class_weights=class_weights,
        margin=None if layer.scale is None else margin_of(angle, step),
        tile=TILE,
        **options,
    )
    return jnp.sum(losses)


def on_eight(function, layer, result):
    """Runs a function of a layer whose classes are split, with columns added."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), (CLASSES,))
    columns, whole = PartitionSpec(None, CLASSES), PartitionSpec()
    specs = LastLayer(
        columns,
        None if layer.bias is None else PartitionSpec(CLASSES),
        None if layer.scale is None else whole,
    )

    def pad(leaf):
        if not leaf.ndim:
            return leaf
        return jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, -COUNT % 8)])

    def run(layer, *rest):
        split = jax.shard_map(
            partial(function, axis=CLASSES, classes=COUNT),
            mesh=mesh,
            in_specs=(specs, *[whole] * len(rest)),
            out_specs=result(specs, whole),
        )
        found = split(jax.tree.map(pad, layer), *rest)
        return jax.tree.map(lambda leaf: leaf[..., :COUNT] if leaf.ndim else leaf, found)

    return run


@pytest.mark.parametrize("labels", [HARD, TOP], ids=["hard", "top"])
@pytest.mark.parametrize("kind", LAYERS)
def test_values_and_gradients_are_those_of_the_dense_loss(kind, labels):
    layer = LAYERS[kind]

    def gradients(function):
        return jax.value_and_grad(function, argnums=(0, 1))

    wanted = jax.jit(gradients(dense))
    alone = jax.jit(gradients(tiled))
    eight = on_eight(
        lambda *rest, **options: gradients(partial(tiled, **options))(*rest),
        layer,
        lambda specs, whole: (whole, (specs, whole)),
    )
    eight = jax.jit(eight)
    margins = [(0.0, 0.0)] if kind == "linear" else [(0, 0), (0.5, 0), (0, 0.3)]
    weights = jnp.ones(COUNT), CLASS_WEIGHTS
    for smoothing, own, (angle, step) in itertools.product((0, 0.2), weights, margins):
        settings = [jnp.float32(one) for one in (smoothing, angle, step)]
        rest = (labels, settings[0], own, *settings[1:])
        told = f"smoothing {smoothing}, margins {angle} and {step}"
        expected = wanted(layer, X, *rest)
        for found in (alone(layer, X, *rest), eight(layer, X, *rest)):
            assert jax.tree.structure(found) == jax.tree.structure(expected)
            for one, other in zip(
                *map(jax.tree.leaves, (found, expected)), strict=True
            ):
                np.testing.assert_allclose(one, other, 2e-4, 2e-5, err_msg=told)
    assert alone._cache_size() == 1


def test_arcface_past_pi_goes_on_falling():
    cosines = jnp.linspace(-1, 1, 201)
    slopes = jax.vmap(jax.grad(arcface(0.5)))(cosines)
    assert bool(jnp.isfinite(slopes).all() & (slopes > 0).all())
    assert bool((jnp.diff(arcface(0.5)(cosines)) > 0).all())


def test_an_absent_row_is_a_deleted_one_whatever_it_holds():
    layer = LAYERS["linear"]
    keep = np.array([0, 2, 3])

    @jax.jit
    def run(x, labels, where, weights):
        def total(layer, x):
            losses = tiled_cross_entropy(
                layer, x, labels, where=where, weights=weights, tile=TILE
            )
            return jnp.sum(losses), losses

        return jax.grad(total, argnums=(0, 1), has_aux=True)(layer, x)

    x = X.at[jnp.array([1, 4, 5, 6])].set(jnp.nan)
    weights = jnp.ones(ROWS).at[jnp.array([5, 6])].set(0)
    (of_layer, of_x), losses = run(x, HARD, jnp.arange(ROWS) != 1, weights)
    (kept, of_kept), fewer = run(X[keep], HARD[keep], jnp.ones(3, bool), jnp.ones(3))
    np.testing.assert_allclose(losses[keep], fewer, rtol=1e-6)
    np.testing.assert_allclose(of_x[keep], of_kept, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(of_layer.kernel, kept.kernel, rtol=1e-5, atol=1e-6)
    gone = np.setdiff1d(np.arange(ROWS), keep)
    assert not np.any(losses[gone])
    assert not np.any(of_x[gone])


def test_gradients_are_finite_at_extreme_logits_and_where_every_class_is_named():
    few = LastLayer(KERNEL[:, :3] * 1e4, KERNEL[0, :3])
    every = TopLabels(jnp.tile(jnp.arange(3), (ROWS, 1)), jnp.full((ROWS, 3), 1 / 3))

    def total(layer, x, labels):
        return jnp.sum(tiled_cross_entropy(layer, x, labels, tile=2))

    logits = X * 1e3 @ few.kernel + few.bias
    for labels in (every, jnp.arange(ROWS) % 3):
        value, slopes = jax.jit(jax.value_and_grad(total, (0, 1)))(few, X * 1e3, labels)
        targets = 1 / 3 if labels is every else jax.nn.one_hot(labels, 3)
        expected = jnp.sum(
            softmax_cross_entropy(logits, jnp.broadcast_to(targets, (7, 3)))
        )
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(slopes))


def test_half_precision_is_widened():
    narrow, layer = X.astype(jnp.bfloat16), LAYERS["linear"]
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), layer)
    run = jax.jit(
        jax.value_and_grad(
            lambda layer, x: jnp.sum(tiled_cross_entropy(layer, x, HARD, tile=TILE))
        )
    )
    value, slopes = run(half, narrow)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (half, narrow))
    expected, wide_slopes = run(*wide)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert slopes.kernel.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        slopes.kernel, wide_slopes.kernel.astype(jnp.bfloat16)
    )


@pytest.mark.parametrize("kind", LAYERS)
def test_top_k_is_that_of_all_logits(kind):
    # Columns are doubled, so that classes tie across tiles and devices.
    layer = LAYERS[kind]._replace(kernel=KERNEL[:, jnp.arange(COUNT) % 11])
    layer = layer._replace(bias=None if layer.bias is None else jnp.zeros(COUNT))
    logits = X @ layer.kernel
    if layer.scale is not None:
        norms = jnp.linalg.norm(X, axis=1)[:, None] * jnp.linalg.norm(
            layer.kernel, axis=0
        )
        logits = layer.scale * logits / norms
    run = partial(tiled_top_k, k=10, tile=4)
    eight = on_eight(run, layer, lambda specs, whole: (whole, whole))
    values, numbers = jax.lax.top_k(logits, 10)
    for found in (jax.jit(run)(layer, X), jax.jit(eight)(layer, X)):
        np.testing.assert_allclose(found[0], values, rtol=1e-5)
        np.testing.assert_array_equal(found[1], numbers)


def test_sampled_classes_are_those_of_the_labels_and_others():
    layer = LAYERS["linear"]

    @partial(jax.jit, static_argnames="sampled")
    def run(key, sampled):
        def total(layer):
            losses = tiled_cross_entropy(
                layer, X, HARD, tile=TILE, sampled=sampled, key=key
            )
            return jnp.sum(losses)

        return jax.value_and_grad(total)(layer)

    key = jax.random.key(0)
    all_of_them, _ = run(key, COUNT)
    everything = jnp.sum(tiled_cross_entropy(layer, X, HARD))
    np.testing.assert_allclose(all_of_them, everything, rtol=1e-6)
    seen = set()
    for draw in range(4):
        value, slopes = run(jax.random.fold_in(key, draw), 9)
        chosen = np.flatnonzero(np.any(slopes.kernel != 0, axis=0))
        assert {0, 7, 8, 15, 20} <= set(chosen)
        assert len(chosen) == 9
        few = LastLayer(KERNEL[:, chosen], layer.bias[chosen])
        labels = jnp.where(HARD < 0, -1, np.searchsorted(chosen, HARD))
        logits = X @ few.kernel + few.bias
        expected = jnp.sum(softmax_cross_entropy(logits, labels))
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        seen |= set(chosen)
    assert len(seen) > 9


def test_one_device_and_eight_train_as_the_dense_head_does():
    head = cosine(COUNT)
    batch = Batch(X, HARD, WEIGHTS, jnp.arange(ROWS))
    tx = optax.adam(0.1)
    loss = partial(tiled_cross_entropy, tile=TILE)
    many = partial(loss, axis=CLASSES, classes=COUNT)
    split = split_classes(learner(head, tiled_supervised(many), tx))
    learners = (
        learner(head, supervised(head, softmax_cross_entropy), tx),
        learner(head, tiled_supervised(loss), tx),
        split,
    )
    found = []
    for learn in learners:
        step = jax.jit(learn.step)
        state = jax.jit(learn.init)(jax.random.key(0), batch)
        for _ in range(3):
            state, info = step(state, batch)
        found.append((cut_classes(state, COUNT).params, info.loss))
    for one, other in itertools.combinations(found, 2):
        for left, right in zip(*map(jax.tree.leaves, (one, other)), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-4)
    mean = state.opt_state[0].mu["output"]["directions"]
    for leaf in (state.params["output"]["directions"], mean):
        assert leaf.shape == (DIM, 24)
        assert {part.data.shape for part in leaf.addressable_shards} == {(DIM, 3)}
    top = over_classes(
        lambda params, x: tiled_top_k(
            last_layer(params), x, 1, axis=CLASSES, classes=COUNT
        )[1]
    )
    wanted = jnp.argmax(head.apply(found[-1][0], X), axis=1)
    np.testing.assert_array_equal(jax.jit(top)(state.params, X)[:, 0], wanted)


def test_a_whole_fit_takes_top_labels():
    head = linear(COUNT)
    objective = tiled_supervised(partial(tiled_cross_entropy, tile=TILE))

    def make(hyperparameters):
        return learner(head, objective, optax.sgd(hyperparameters["rate"]))

    data = Batch(X, TOP, jnp.ones(ROWS), jnp.arange(ROWS))
    fit = jax.jit(train(make, steps=60, batch_size=ROWS))
    params = fit(data, jnp.ones(ROWS), {"rate": jnp.float32(3)}, jax.random.key(0))
    likeliest = jnp.argmax(head.apply(params, X), axis=1)
    np.testing.assert_array_equal(likeliest[:4], [0, 3, 7, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X[:, :3]}, "x is"),
        ({"labels": TOP.probabilities}, "labels is"),
        ({"labels": HARD[:3]}, "labels is"),
        ({"tile": 0}, "tile is 0"),
        ({"label_smoothing": 2.0}, "label_smoothing is 2.0"),
        ({"margin": arcface()}, "margin is for"),
        ({"sampled": 9}, "sampled needs a key"),
        ({"sampled": 3, "key": jax.random.key(0)}, "sampled is 3"),
        ({"layer": LastLayer(KERNEL, X)}, "bias is"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    given = {"layer": LAYERS["linear"], "x": X, "labels": HARD, **change}
    with pytest.raises(ValueError, match=message):
        tiled_cross_entropy(**given)


def test_other_heads_and_too_many_of_the_top_are_refused():
    with pytest.raises(ValueError, match="a linear or a cosine head"):
        last_layer({"hidden": {}, "output": {"kernel": KERNEL}})
    with pytest.raises(ValueError, match="k is 22"):
        tiled_top_k(LAYERS["linear"], X, 22)
