"""Every head, what lifts a module to one, and what wraps one."""

import functools
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

from flaxhead.base import Head, HeadApply, Tokens
from flaxhead.heads import (
    ACTIVATIONS,
    HEADS,
    POOLINGS,
    attach,
    attention_pool,
    cosine,
    extend_classes,
    from_linen,
    from_nnx,
    gem,
    l2_normalize,
    linear,
    mix_layers,
    mlp,
    pool,
    replace_classes,
    standardize,
    statistics,
)

ROWS, DIM, CLASSES = 6, 5, 3
DROPPING = {
    "linear": functools.partial(linear, zero_init=False),
    "mlp": functools.partial(mlp, width=8, layer_norm=True, zero_init=False),
    "cosine": cosine,
}
every_head = pytest.mark.parametrize("name", sorted(HEADS))
every_pooling = pytest.mark.parametrize("how", sorted(POOLINGS))


def rows(seed=0, *, count=ROWS, dim=DIM):
    return jnp.asarray(
        np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    )


def row_keys(count=ROWS, seed=1):
    return jax.random.split(jax.random.key(seed), count)


def tokens(seed=0):
    draw = np.random.default_rng(seed)
    mask = draw.random((ROWS, 4)) < 0.6
    mask[0], mask[1], mask[2, :2], mask[2, 2] = False, True, False, True
    values = draw.normal(size=(ROWS, 4, DIM)).astype(np.float32)
    values[~mask] = np.nan
    return Tokens(jnp.asarray(values), jnp.asarray(mask))


class LinenDropout(nn.Module):
    """One with a hidden layer that a user might bring."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(8)(x)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(CLASSES)(x)


class LinenDeterministic(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic):
        return nn.Dense(CLASSES)(nn.Dropout(0.5)(x, deterministic=deterministic))


class LinenBatchNorm(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(CLASSES)(nn.BatchNorm(use_running_average=not train)(x))


class NnxDropout(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(DIM, 8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.output = nnx.Linear(8, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.output(self.dropout(self.hidden(x)))


class NnxTakesRngs(nnx.Module):
    def __init__(self, rngs):
        self.dropout = nnx.Dropout(0.5)
        self.layers = nnx.List([nnx.Linear(DIM, CLASSES, rngs=rngs)])

    def __call__(self, x, *, train, rngs=None):
        return self.layers[0](self.dropout(x, deterministic=not train, rngs=rngs))


class NnxBatchNorm(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(DIM, rngs=rngs)

    def __call__(self, x):
        return self.norm(x)


NOISY = {
    **{name: make(CLASSES, dropout=0.5) for name, make in DROPPING.items()},
    "linen dropout": from_linen(LinenDropout()),
    "linen deterministic": from_linen(LinenDeterministic()),
    "nnx dropout": from_nnx(NnxDropout),
    "nnx rngs": from_nnx(NnxTakesRngs),
}
every_noisy = pytest.mark.parametrize("name", sorted(NOISY))
WRAPPED = {
    "attach": attach(lambda x: x, linear(CLASSES)),
    "l2_normalize": l2_normalize(linear(CLASSES)),
    "pool": pool(linear(CLASSES), "mean"),
    "standardize": standardize(linear(CLASSES), jnp.zeros(DIM), jnp.ones(DIM)),
}


# Shapes, parameters, types.


def test_every_head_is_tested():
    assert set(DROPPING) == set(HEADS)


@pytest.mark.parametrize("count", [1, ROWS])
@every_head
def test_logits_have_a_row_each_and_jit_is_eager(name, count):
    head, x = DROPPING[name](CLASSES), rows(count=count)
    params = head.init(jax.random.key(0), x)
    logits = head.apply(params, x)
    assert logits.shape == (count, CLASSES)
    assert logits.dtype == jnp.float32
    compiled = jax.jit(head.apply)(params, x)
    np.testing.assert_allclose(compiled, logits, rtol=1e-5, atol=1e-6)


def test_parameters_are_named():
    def shapes(head):
        params = head.init(jax.random.key(0), rows())
        return jax.tree.map(jnp.shape, params)

    output = {"kernel": (DIM, 3), "bias": (3,)}
    assert shapes(linear(3)) == {"output": output}
    directions = {"output": {"directions": (DIM, 3)}}
    assert shapes(cosine(3)) == {**directions, "log_scale": ()}
    assert shapes(cosine(3, learn_scale=False)) == directions
    assert shapes(mlp(3, width=8, depth=2, layer_norm=True)) == {
        "hidden_0": {"kernel": (DIM, 8), "bias": (8,)},
        "norm_0": {"scale": (8,), "bias": (8,)},
        "hidden_1": {"kernel": (8, 8), "bias": (8,)},
        "norm_1": {"scale": (8,), "bias": (8,)},
        "output": {"kernel": (8, 3), "bias": (3,)},
    }


@pytest.mark.parametrize("make", [linear, functools.partial(mlp, width=8)])
def test_zero_init_makes_every_class_as_likely(make):
    for zero_init in (True, False):
        head = make(CLASSES, zero_init=zero_init)
        logits = head.apply(head.init(jax.random.key(0), rows()), rows())
        assert bool((logits == 0).all()) == zero_init


def test_linear_is_the_product():
    head, x = linear(CLASSES, zero_init=False), rows()
    output = head.init(jax.random.key(0), x)["output"]
    output["bias"] = jnp.arange(3.0)
    expected = np.asarray(x, float) @ output["kernel"] + np.arange(3)
    np.testing.assert_allclose(head.apply({"output": output}, x), expected, rtol=1e-4)


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_mlp_is_its_layers(activation, layer_norm):
    head = mlp(
        CLASSES,
        width=8,
        depth=2,
        activation=activation,
        layer_norm=layer_norm,
        zero_init=False,
    )
    x = rows()
    params = head.init(jax.random.key(0), x)
    draw = np.random.default_rng(2)
    params = jax.tree.map(
        lambda leaf: leaf + jnp.asarray(draw.normal(size=leaf.shape), jnp.float32),
        params,
    )
    expected = oracles.mlp(params, x, activation, layer_norm=layer_norm)
    np.testing.assert_allclose(head.apply(params, x), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("learn_scale", [True, False])
def test_cosine_is_scaled_cosines(learn_scale):
    head, x = cosine(CLASSES, scale=7.0, learn_scale=learn_scale), rows()
    params = head.init(jax.random.key(0), x)
    directions = np.asarray(params["output"]["directions"], float)
    lengths = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(directions, axis=0)
    expected = 7 * (np.asarray(x, float) @ directions) / lengths
    np.testing.assert_allclose(head.apply(params, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", sorted(DROPPING))
def test_narrow_embeddings_give_float32_logits(name, train, dtype):
    head, x = DROPPING[name](CLASSES, dropout=0.3), rows().astype(dtype)
    params = head.init(jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    logits = head.apply(params, x, key=row_keys(), train=train)
    assert logits.dtype == jnp.float32
    # Widening is exact: the product is the float32 one.
    wide = head.apply(params, x.astype(jnp.float32), key=row_keys(), train=train)
    np.testing.assert_allclose(logits, wide, rtol=1e-5, atol=1e-6)


@every_head
def test_gradients_are_finite_at_zero_rows(name):
    head, x = DROPPING[name](CLASSES), rows().at[0].set(0)
    params = head.init(jax.random.key(0), x)
    slopes = jax.jit(jax.grad(lambda p, x: head.apply(p, x).sum(), argnums=(0, 1)))(
        params, x
    )
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


# Noise.


@every_noisy
def test_noise_of_a_row_is_its_keys_alone(name):
    head, x, keys = NOISY[name], rows(), row_keys()
    params = head.init(jax.random.key(0), x)
    together = head.apply(params, x, key=keys, train=True)
    # The noise is there, and differs between rows.
    assert not np.allclose(together, head.apply(params, x))
    same_row = head.apply(params, jnp.repeat(x[:1], ROWS, axis=0), key=keys, train=True)
    assert len(np.unique(np.asarray(same_row).round(4), axis=0)) > 1

    order = jnp.array([3, 0, 5])
    some = head.apply(params, x[order], key=keys[order], train=True)
    np.testing.assert_allclose(some, together[order], rtol=1e-5, atol=1e-6)
    alone = head.apply(params, x[4:5], key=keys[4:5], train=True)
    np.testing.assert_allclose(alone, together[4:5], rtol=1e-5, atol=1e-6)


@every_noisy
def test_one_key_gives_each_row_noise_of_its_own(name):
    head, x = NOISY[name], jnp.repeat(rows()[:1], 16, axis=0)
    params = head.init(jax.random.key(0), x)
    logits = head.apply(params, x, key=jax.random.key(2), train=True)
    assert len(np.unique(np.asarray(logits).round(4), axis=0)) > 1


@every_noisy
def test_without_a_key_training_is_refused_and_prediction_exact(name):
    head, x = NOISY[name], rows()
    params = head.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="train=True and got no key: pass key="):
        head.apply(params, x, train=True)
    keyed = head.apply(params, x, key=jax.random.key(1))
    np.testing.assert_array_equal(head.apply(params, x), keyed)


@every_head
def test_a_rate_of_zero_is_the_identity(name):
    x = rows()
    params = DROPPING[name](CLASSES).init(jax.random.key(0), x)
    expected = DROPPING[name](CLASSES).apply(params, x)

    @jax.jit
    def logits(rate):
        head = DROPPING[name](CLASSES, dropout=rate)
        return head.apply(params, x, key=row_keys(), train=True)

    np.testing.assert_allclose(logits(jnp.float32(0)), expected, rtol=1e-5, atol=1e-6)
    without_key = DROPPING[name](CLASSES, dropout=0.0).apply(params, x, train=True)
    np.testing.assert_array_equal(without_key, expected)


@every_head
def test_rates_under_vmap_are_a_loop(name):
    x, rates = rows(), jnp.array([0.0, 0.2, 0.7])
    params = DROPPING[name](CLASSES).init(jax.random.key(0), x)

    def logits(rate):
        head = DROPPING[name](CLASSES, dropout=rate)
        return head.apply(params, x, key=row_keys(), train=True)

    swept = jax.jit(jax.vmap(logits))(rates)
    for one, rate in zip(swept, rates.tolist(), strict=True):
        np.testing.assert_allclose(one, logits(rate), rtol=1e-5, atol=1e-6)


def test_dropout_keeps_the_mean_and_drops_its_share():
    head, x = linear(50, dropout=0.25), jnp.ones([2000, 50])
    params = {"output": {"kernel": jnp.eye(50), "bias": jnp.zeros(50)}}
    units = head.apply(params, x, key=jax.random.key(0), train=True)
    np.testing.assert_allclose(np.unique(units), [0, 1 / 0.75], rtol=1e-6)
    # Five standard deviations of a share of 100,000 units.
    margin = 5 * np.sqrt(0.25 * 0.75 / units.size)
    assert abs(np.mean(units == 0) - 0.25) < margin


@pytest.mark.parametrize("name", sorted({**HEADS, "linen": None, "nnx": None}))
def test_a_head_without_noise_is_applied_to_the_whole_batch(name):
    """A key is then not used: nothing is random, and products are of matrices."""
    quiet = {
        **{one: make(CLASSES) for one, make in DROPPING.items()},
        "linen": from_linen(nn.Dense(CLASSES)),
        "nnx": from_nnx(lambda rngs: nnx.Linear(DIM, CLASSES, rngs=rngs)),
    }
    head, x = quiet[name], rows()
    params = head.init(jax.random.key(0), x)
    program = jax.make_jaxpr(functools.partial(head.apply, train=True))
    text = str(program(params, x, key=row_keys()))
    assert f"f32[{ROWS},{CLASSES}] = dot_general" in text
    assert "random" not in text


def test_one_program_serves_every_rate():
    x = rows()
    params = linear(CLASSES).init(jax.random.key(0), x)

    @jax.jit
    def logits(rates):
        def one(rate):
            head = linear(CLASSES, dropout=rate)
            return head.apply(params, x, key=row_keys(), train=True)

        return jax.vmap(one)(rates)

    for rates in ([0.0, 0.1], [0.5, 0.9]):
        logits(jnp.array(rates))
    assert logits._cache_size() == 1


def test_noise_of_tokens_is_of_the_row():
    class Summed(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            values = nn.Dropout(0.5, deterministic=not train)(x.values)
            total = jnp.sum(jnp.where(x.mask[..., None], values, 0), axis=1)
            return nn.Dense(CLASSES)(total)

    head, x, keys = from_linen(Summed()), tokens(), row_keys()
    params = head.init(jax.random.key(0), x)
    together = head.apply(params, x, key=keys, train=True)
    last = jax.tree.map(lambda leaf: leaf[3:], (x, keys))
    alone = head.apply(params, last[0], key=last[1], train=True)
    np.testing.assert_allclose(alone, together[3:], rtol=1e-5, atol=1e-6)


# Modules of others.


@pytest.mark.parametrize("lifted", ["linen", "nnx"])
def test_a_lifted_module_is_the_module(lifted):
    x, key = rows(), jax.random.key(3)
    if lifted == "linen":
        module = nn.Dense(CLASSES)
        head, own = from_linen(module), module.init(key, x)["params"]
        expected = module.apply({"params": own}, x)
    else:
        module = nnx.Linear(DIM, CLASSES, rngs=nnx.Rngs(key))
        head = from_nnx(lambda rngs: nnx.Linear(DIM, CLASSES, rngs=rngs))
        own = {name: getattr(module, name).get_value() for name in ("kernel", "bias")}
        expected = module(x)
    params = head.init(key, x)
    jax.tree.map(np.testing.assert_array_equal, params, own)
    np.testing.assert_allclose(head.apply(params, x), expected, rtol=1e-6)
    other = head.init(jax.random.key(4), x)
    assert not np.allclose(params["kernel"], other["kernel"])


def test_a_lifted_module_trains_under_jit_vmap_and_grad():
    x = rows()
    for name in ("linen dropout", "nnx dropout", "nnx rngs"):
        head = NOISY[name]
        many = jax.vmap(lambda key, head=head: head.init(key, x))(row_keys(2))

        def total(params, head=head):
            logits = head.apply(params, x, key=row_keys(), train=True)
            return jnp.sum(logits**2)

        slopes = jax.jit(jax.vmap(jax.grad(total)))(many)
        for leaf, slope in zip(
            jax.tree.leaves(many), jax.tree.leaves(slopes), strict=True
        ):
            assert slope.shape == leaf.shape
            assert (slope != 0).any(), name


@pytest.mark.parametrize(
    "lift",
    [
        lambda: from_linen(LinenBatchNorm()).init(jax.random.key(0), rows()),
        lambda: from_nnx(NnxBatchNorm),
    ],
)
def test_running_state_is_refused(lift):
    with pytest.raises(ValueError, match="a head has parameters only: use layers"):
        lift()


# Wrapping.


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_statistics_are_the_float64_ones(dtype):
    x = (rows(count=9001) * 3 + 5).astype(dtype)
    weights = jnp.asarray(np.random.default_rng(0).choice([0.0, 0.5, 2.0], 9001))
    x = x.at[jnp.argmin(weights)].set(jnp.nan)  # Of weight 0.
    mean, std = statistics(x, weights)
    assert mean.dtype == std.dtype == jnp.float32
    expected = oracles.weighted_statistics(x.astype(jnp.float32), weights)
    np.testing.assert_allclose(mean, expected[0], rtol=1e-5)
    np.testing.assert_allclose(std, expected[1], rtol=1e-5)


def test_statistics_of_features_far_from_zero():
    x = np.float32(1e4) + rows(count=3000)
    x = x.at[:, 2].set(np.float32(1e4 + 0.1))  # Constant.
    weights = jnp.asarray(np.random.default_rng(0).random(3000, np.float32))
    mean, std = statistics(x, weights)
    expected = oracles.weighted_statistics(x, weights)
    np.testing.assert_allclose(mean, expected[0], rtol=2e-7)
    np.testing.assert_allclose(std, expected[1], rtol=1e-4, atol=1e-9)
    assert std[2] == 0
    scaled = standardize(from_linen(Identity()), mean, std).apply({}, x)
    np.testing.assert_array_equal(scaled[:, 2], 0)
    again = oracles.weighted_statistics(scaled, weights)
    np.testing.assert_allclose(again[0], 0, atol=1e-3)
    np.testing.assert_allclose(again[1], [1, 1, 0, 1, 1], rtol=1e-4)


class Identity(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x


def test_statistics_of_tokens_leave_padding_out():
    x, weights = tokens(), jnp.array([1.0, 0.0, 2.0, 1.0, 0.5, 3.0])
    kept, owner = np.asarray(x.values)[x.mask], np.nonzero(np.asarray(x.mask))[0]
    expected = oracles.weighted_statistics(kept, np.asarray(weights)[owner])
    found = statistics(x, weights)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)
    dense = jnp.nan_to_num(x.values)
    expected = oracles.weighted_statistics(
        dense.reshape(-1, DIM), np.repeat(np.asarray(weights), 4)
    )
    np.testing.assert_allclose(statistics(dense, weights), expected, rtol=1e-5)


def test_statistics_of_folds_are_one_program():
    x, folds = rows(count=30), jnp.arange(30) % 3 != jnp.arange(3)[:, None]
    found = jax.vmap(statistics, in_axes=(None, 0))(x, folds.astype(jnp.float32))
    for fold, kept in enumerate(np.asarray(folds)):
        expected = oracles.weighted_statistics(x[kept], np.ones(20))
        np.testing.assert_allclose(found[0][fold], expected[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[1][fold], expected[1], rtol=1e-5)


def test_statistics_of_nothing_are_zeros():
    for found in statistics(jnp.full([3, 2], jnp.nan), jnp.zeros(3)):
        np.testing.assert_array_equal(found, 0)


def test_l2_normalize_divides_by_the_norm():
    head, x = l2_normalize(from_linen(Identity())), rows().at[1].set(0)
    expected = np.asarray(x, float)
    expected /= np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1e-30)
    np.testing.assert_allclose(head.apply({}, x), expected, rtol=1e-6)
    slope = jax.grad(lambda x: head.apply({}, x).sum())(x)
    assert jnp.isfinite(slope).all()
    assert (slope[0] != 0).any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@every_pooling
def test_pooling_honours_the_mask(how, dtype):
    x = tokens()
    x = x._replace(values=x.values.astype(dtype))
    head = pool(from_linen(Identity()), how)
    plain = x.values.astype(jnp.float32)
    expected = oracles.pooled(plain, x.mask, how)
    np.testing.assert_allclose(head.apply({}, x), expected, rtol=1e-6, atol=1e-7)
    # An array of tokens is one without padding.
    dense = jnp.nan_to_num(x.values)
    expected = oracles.pooled(dense.astype(jnp.float32), np.ones((ROWS, 4), bool), how)
    np.testing.assert_allclose(head.apply({}, dense), expected, rtol=1e-6, atol=1e-7)


@every_pooling
def test_a_pooled_head_trains_on_padded_tokens(how):
    head, x = pool(linear(CLASSES, dropout=0.5), how), tokens()
    params = head.init(jax.random.key(0), x)
    slope = jax.grad(lambda p: head.apply(p, x, key=row_keys(), train=True).sum())
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(slope(params)))


@pytest.mark.parametrize("padded", [True, False])
@every_head
def test_tokens_to_an_unpooled_head_name_the_poolings(name, padded):
    x = tokens() if padded else tokens().values
    names = ", ".join(POOLINGS)
    sentence = rf"the {name} head got tokens of shape \(6, 4, 5\).* by {names}"
    with pytest.raises(ValueError, match=sentence):
        HEADS[name](CLASSES).init(jax.random.key(0), x)


def test_refused_poolings():
    with pytest.raises(ValueError, match="how is 'middle': expected one of mean"):
        pool(linear(2), "middle")
    with pytest.raises(ValueError, match=r"got embeddings of shape \(6, 5\)"):
        pool(linear(2), "mean").init(jax.random.key(0), rows())


def test_attach_freezes_the_backbone():
    x, frozen = rows(), jnp.eye(DIM) * 2
    head = linear(CLASSES, zero_init=False)

    def logits(frozen, params):
        return attach(lambda x: x @ frozen, head).apply(params, x)

    params = attach(lambda x: x @ frozen, head).init(jax.random.key(0), x)
    expected = head.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    np.testing.assert_allclose(logits(frozen, params), head.apply(params, 2 * x))
    slopes = jax.grad(lambda *both: logits(*both).sum(), argnums=(0, 1))(frozen, params)
    np.testing.assert_array_equal(slopes[0], 0)
    assert (slopes[1]["output"]["kernel"] != 0).all()


@pytest.mark.parametrize("wrapper", sorted(WRAPPED))
def test_wrappers_keep_the_parameters(wrapper):
    x = jnp.ones([ROWS, 4, DIM]) if wrapper == "pool" else rows()
    params = WRAPPED[wrapper].init(jax.random.key(0), x)
    bare = linear(CLASSES).init(jax.random.key(0), rows())
    jax.tree.map(np.testing.assert_array_equal, params, bare)


# Other classes.


@every_head
def test_extending_keeps_the_old_classes_bit_for_bit(name):
    head, x = DROPPING[name](CLASSES), rows()
    params = head.init(jax.random.key(0), x)
    grown = extend_classes(params, 5, key=jax.random.key(1))
    for leaf, old in zip(
        jax.tree.leaves(grown["output"]), jax.tree.leaves(params["output"]), strict=True
    ):
        assert leaf.shape == (*old.shape[:-1], 5)
        np.testing.assert_array_equal(leaf[..., :CLASSES], old)
    for layer in set(params) - {"output"}:
        jax.tree.map(np.testing.assert_array_equal, grown[layer], params[layer])
    logits = DROPPING[name](5).apply(grown, x)
    expected = head.apply(params, x)
    np.testing.assert_allclose(logits[:, :CLASSES], expected, rtol=1e-5, atol=1e-6)
    same = extend_classes(params, CLASSES, key=jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, same, params)


@every_head
def test_replacing_starts_the_last_layer_anew(name):
    head, x = DROPPING[name](CLASSES), rows()
    params = head.init(jax.random.key(0), x)
    new = replace_classes(params, 2, key=jax.random.key(1))
    for layer in set(params) - {"output"}:
        jax.tree.map(np.testing.assert_array_equal, new[layer], params[layer])
    logits = DROPPING[name](2).apply(new, x)
    assert logits.shape == (ROWS, 2)
    assert bool((logits == 0).all()) == (name != "cosine")
    if name == "cosine":
        other = replace_classes(params, 2, key=jax.random.key(2))
        assert not np.allclose(
            new["output"]["directions"], other["output"]["directions"]
        )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda params, key: extend_classes(params, 2, key=key), "classes is 2"),
        (lambda params, key: replace_classes(params, 0, key=key), "classes is 0"),
        (
            lambda params, key: replace_classes(params["output"], 2, key=key),
            "no last layer named 'output'",
        ),
    ],
)
def test_refused_changes_of_classes(change, sentence):
    params = linear(3).init(jax.random.key(0), rows())
    with pytest.raises(ValueError, match=sentence):
        change(params, jax.random.key(1))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: linear(2, dropout=1.0),
            r"dropout is 1.0: expected a rate in \[0, 1\)",
        ),
        (lambda: cosine(2, dropout=-0.1), "dropout is -0.1"),
        (lambda: cosine(2, scale=0.0), "scale is 0.0: expected a positive"),
        (lambda: mlp(2, depth=0), "depth 0 and width 256: expected 1 or more"),
        (lambda: mlp(2, activation="sine"), "'sine': expected one of gelu, relu"),
    ],
)
def test_refused_settings(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


# Conventions.


@pytest.mark.parametrize("factory", HEADS.values(), ids=HEADS)
def test_factories_take_classes_and_the_rest_by_keyword(factory):
    first, *rest = inspect.signature(factory).parameters.values()
    assert first.name == "classes"
    assert first.kind is first.POSITIONAL_OR_KEYWORD
    assert first.default is first.empty
    assert all(one.kind is one.KEYWORD_ONLY for one in rest)
    assert all(one.default is not one.empty for one in rest)


@pytest.mark.parametrize("name", sorted({**NOISY, **WRAPPED}))
def test_every_apply_has_the_protocols_signature(name):
    head = {**NOISY, **WRAPPED}[name]
    assert isinstance(head, Head)
    expected = inspect.signature(HeadApply.__call__)
    expected = expected.replace(parameters=list(expected.parameters.values())[1:])
    assert inspect.signature(head.apply) == expected
    assert list(inspect.signature(head.init).parameters) == ["key", "x"]


@pytest.mark.parametrize(
    "wrapper",
    [attach, attention_pool, gem, l2_normalize, mix_layers, pool, standardize],
)
def test_functions_of_heads_return_heads(wrapper):
    signature = inspect.signature(wrapper)
    assert signature.return_annotation == "Head"
    assert signature.parameters["head"].annotation == "Head"
