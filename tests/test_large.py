"""Softmax over classes in tiles, and over devices, beside the dense one."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from jax.sharding import PartitionSpec
from scipy.special import log_softmax, softmax

from flaxhead import build
from flaxhead.base import Batch
from flaxhead.config import Config, HeadConfig, LossConfig
from flaxhead.heads import linear
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
from flaxhead.parallel import CLASSES, cut_classes, split_classes
from flaxhead.step import learner

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
        return jax.tree.map(
            lambda leaf: leaf[..., :COUNT] if leaf.ndim else leaf, found
        )

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
        # Of all classes, drawn: each device draws its own.
        lambda *rest, **options: gradients(
            partial(tiled, sampled=24, key=jax.random.key(0), **options)
        )(*rest),
        layer,
        lambda specs, whole: (whole, (specs, whole)),
    )
    programs = [alone]
    if kind == "cosine" and labels is TOP:  # the rest below; this compiles for seconds
        programs.append(jax.jit(eight))
    margins = [(0.0, 0.0)] if kind == "linear" else [(0, 0), (0.5, 0), (0, 0.3)]
    weights = jnp.ones(COUNT), CLASS_WEIGHTS
    for smoothing, own, (angle, step) in itertools.product((0, 0.2), weights, margins):
        settings = [jnp.float32(one) for one in (smoothing, angle, step)]
        rest = (labels, settings[0], own, *settings[1:])
        told = f"smoothing {smoothing}, margins {angle} and {step}"
        expected = wanted(layer, X, *rest)
        for program in programs:
            found = program(layer, X, *rest)
            assert jax.tree.structure(found) == jax.tree.structure(expected)
            for one, other in zip(
                *map(jax.tree.leaves, (found, expected)), strict=True
            ):
                np.testing.assert_allclose(one, other, 2e-4, 2e-5, err_msg=told)
    assert alone._cache_size() == 1


def test_arcface_past_pi_goes_on_falling():
    cosines = np.linspace(-1, 1, 201, dtype=np.float32)
    run = jax.jit(jax.vmap(jax.value_and_grad(arcface(0.5))))
    values, slopes = map(np.asarray, run(cosines))
    assert np.isfinite(slopes).all()
    assert (slopes > 0).all()
    assert (np.diff(values) > 0).all()


def test_an_absent_row_is_a_deleted_one_and_half_precision_is_widened():
    there = np.array([True, False, True, True, False, False, False])
    x = jnp.where(there[:, None], X, jnp.nan).astype(jnp.bfloat16)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), LAYERS["linear"])
    weights = np.ones(ROWS) * (np.arange(ROWS) < 5)

    def total(layer, x):
        losses = tiled_cross_entropy(
            layer, x, HARD, where=np.arange(ROWS) != 1, weights=weights, tile=TILE
        )
        return jnp.sum(losses), losses

    run = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
    (of_layer, of_x), losses = run(half, x)
    kept, kernel = np.asarray(x, float)[there], np.asarray(half.kernel, float)
    logits = kept @ kernel + np.asarray(half.bias, float)
    targets = oracles.one_hot(HARD, COUNT)[there]
    wanted = -np.sum(targets * log_softmax(logits, axis=1), axis=1)
    slopes = softmax(logits, axis=1) - targets
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses[there], wanted, rtol=1e-5)
    for found, expected in (
        (of_layer.kernel, kept.T @ slopes),
        (of_layer.bias, slopes.sum(axis=0)),
        (of_x[there], slopes @ kernel.T),
    ):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(float), expected, 2**-8, 1e-6)
    assert not np.any(losses[~there])
    assert not np.any(of_x[~there])


def test_gradients_are_finite_at_extreme_logits_and_where_every_class_is_named():
    few = LastLayer(KERNEL[:, :3] * 1e4, KERNEL[0, :3])
    numbers = np.array([[0, 1, 2]] * 4 + [[1, -1, -1]] * 3)
    labels = TopLabels(numbers, np.where(numbers < 0, 0, [0.5, 0.25, 0.25]))

    def total(layer, x):
        losses = tiled_cross_entropy(layer, x, labels, tile=2)
        return jnp.sum(losses), losses

    run = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
    (_, losses), slopes = run(few, X * 1e3)
    targets = np.array([[0.5, 0.25, 0.25]] * 4 + [[0, 0.5, 0]] * 3)
    log_p = log_softmax(np.asarray(X * 1e3, float) @ few.kernel + few.bias, axis=1)
    np.testing.assert_allclose(losses, -np.sum(targets * log_p, axis=1), rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


def test_top_k_is_that_of_all_logits():
    # Columns are doubled, so that classes tie across tiles and devices.
    layer = LAYERS["cosine"]._replace(kernel=KERNEL[:, np.arange(COUNT) % 11])
    norms = np.linalg.norm(X, axis=1)[:, None] * np.linalg.norm(layer.kernel, axis=0)
    values, numbers = jax.lax.top_k(layer.scale * (X @ layer.kernel) / norms, 10)
    run = partial(tiled_top_k, k=10, tile=4)
    eight = on_eight(run, layer, lambda specs, whole: (whole, whole))
    for found in (jax.jit(run)(layer, X), jax.jit(eight)(layer, X)):
        np.testing.assert_allclose(found[0], values, rtol=1e-5)
        np.testing.assert_array_equal(found[1], numbers)


def test_sampled_classes_are_those_of_the_labels_and_others():
    def total(layer, key):
        losses = tiled_cross_entropy(layer, X, HARD, tile=TILE, sampled=9, key=key)
        return jnp.sum(losses)

    run = jax.jit(jax.value_and_grad(total))
    logits, seen = np.asarray(X @ KERNEL + KERNEL[0]), set()
    for seed in range(4):
        value, slopes = run(LAYERS["linear"], jax.random.key(seed))
        chosen = np.flatnonzero(np.any(slopes.kernel != 0, axis=0))
        assert {0, 7, 8, 15, 20} <= set(chosen)
        assert len(chosen) == 9
        log_p = log_softmax(logits[:, chosen], axis=1)
        targets = oracles.one_hot(HARD, COUNT)[:, chosen]
        np.testing.assert_allclose(value, -np.sum(targets * log_p), rtol=1e-5)
        seen |= set(chosen)
    assert len(seen) > 9


def test_eight_devices_train_as_the_dense_head_does():
    head, tx = linear(COUNT), optax.adam(0.1)
    loss = partial(tiled_cross_entropy, tile=TILE, axis=CLASSES, classes=COUNT)
    traced, found = [], []
    for labels, learn in (
        (
            dense_targets(TOP)[0],
            learner(head, supervised(head, softmax_cross_entropy), tx),
        ),
        (TOP, split_classes(learner(head, tiled_supervised(loss), tx))),
    ):
        weights = WEIGHTS * dense_targets(TOP)[1]
        batch = Batch(X, labels, weights, np.arange(ROWS))

        @jax.jit
        def step(state, batch, learn=learn):
            traced.append(learn)
            return learn.step(state, batch)

        state = jax.jit(learn.init)(jax.random.key(0), batch)
        for _ in range(3):
            state, info = step(state, batch)
        found.append(jax.tree.leaves((cut_classes(state.params, COUNT), info.loss)))
    assert len(traced) == 2  # and not once more for a later step
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
    mean = state.opt_state[0].mu["output"]["kernel"]
    for leaf in (state.params["output"]["kernel"], mean):
        assert leaf.shape == (DIM, 24)
        assert {part.data.shape for part in leaf.addressable_shards} == {(DIM, 3)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X[:, :3]}, "x is"),
        ({"labels": TOP.probabilities}, "labels is"),
        ({"labels": HARD[:3]}, "labels is"),
        ({"labels": TOP._replace(numbers=HARD)}, "labels is TopLabels"),
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


def test_a_run_with_tiles_learns_what_it_learns_without():
    found = []
    for tile in (0, TILE):
        config = Config(loss=LossConfig(tile=tile))
        learn = build.make_learner(
            config,
            HeadConfig("cosine", normalization="standardize"),
            task="multiclass",
            classes=COUNT,
            steps=2,
            class_weights=np.asarray(CLASS_WEIGHTS),
            hyperparameters={
                "learning_rate": np.float32(0.1),
                "label_smoothing": np.float32(0.1),
            },
            statistics=(X.mean(axis=0), X.std(axis=0)),
            axis=None,
        )
        batch = Batch(X, HARD, WEIGHTS, np.arange(ROWS))

        @jax.jit
        def run(batch, learn=learn):
            state, info = learn.step(learn.init(jax.random.key(0), batch), batch)
            return state.params, info

        found.append(jax.tree.leaves(run(batch)))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("message", "head", "loss"),
    [
        ("heads.0.name is 'mlp'", {"name": "mlp"}, {}),
        ("heads.0.dropout is", {"dropout": (0.0, 0.1)}, {}),
        ("heads.0.graph is True", {"graph": True}, {}),
        ("loss.name is 'ldam'", {}, {"name": "ldam"}),
        ("loss.logit_adjustment is", {}, {"logit_adjustment": (1.0,)}),
        ("loss.tile is -1", {}, {"tile": -1}),
    ],
)
def test_settings_that_hold_all_logits_are_refused_with_tiles(message, head, loss):
    config = Config(heads=(HeadConfig(**head),), loss=LossConfig(**{"tile": 8, **loss}))
    with pytest.raises(ValueError, match=message):
        build.check(config)
    with pytest.raises(ValueError, match="exclude each other"):
        build.output(Config(loss=LossConfig(tile=8)), "multilabel")
