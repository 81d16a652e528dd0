"""Poolings with parameters: attention, the generalised mean, mixtures of layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn.datasets
from scipy.special import expit, softmax

import flaxhead
from flaxhead import build, loop
from flaxhead.base import Batch, Tokens
from flaxhead.config import (
    Config,
    DataConfig,
    HeadConfig,
    SelectionConfig,
    TrainConfig,
)
from flaxhead.data import load
from flaxhead.fit import train
from flaxhead.heads import (
    ATTENTIONS,
    attention_pool,
    attention_weights,
    gem,
    linear,
    mix_layers,
    mlp,
    pool,
    standardize,
)
from flaxhead.losses import softmax_cross_entropy
from flaxhead.objectives import supervised
from flaxhead.step import learner

ROWS, TOKENS, DIM, CLASSES = 5, 4, 6, 3
KEY = jax.random.key(0)
MEAN = pool(linear(2), "mean")
OPTIONS = {
    "query": {"queries": 2, "heads": 3},
    "map": {"queries": 2, "heads": 3, "width": 5},
    "multi_query": {"queries": 3},
    "gated": {"queries": 2, "width": 5},
}
POOLED = {
    **{
        kind: functools.partial(attention_pool, kind=kind, **options)
        for kind, options in OPTIONS.items()
    },
    "gem": gem,
    "mix_layers": mix_layers,
}
every_pooling = pytest.mark.parametrize("name", POOLED)
every_attention = pytest.mark.parametrize("kind", ATTENTIONS)


def tokens(seed=0, *, padding=np.nan):
    """The first row has no token, the second all, the third one."""
    draw = np.random.default_rng(seed)
    mask = draw.random((ROWS, TOKENS)) < 0.6
    mask[0], mask[1], mask[2], mask[2, 2], mask[3, 1] = False, True, False, True, True
    values = draw.normal(size=(ROWS, TOKENS, DIM)).astype(np.float32)
    values[~mask] = padding
    return Tokens(jnp.asarray(values), jnp.asarray(mask))


@functools.cache
def made(name):
    """A head and parameters away from their start, so that weights differ."""
    head = POOLED[name](linear(CLASSES, zero_init=False))
    params = jax.tree.map(np.asarray, jax.jit(head.init)(KEY, tokens()))
    draw = np.random.default_rng(1)
    return head, jax.tree.map(
        lambda leaf: leaf + np.float32(draw.normal(size=leaf.shape)),
        params,
    )


@functools.cache
def compiled(name):
    """`(params, x) -> logits, weights, and the gradient of both` of one head."""
    head, _ = made(name)

    def run(params, x):
        logits = head.apply(params, x)
        weights = () if name == "gem" else attention_weights(head, params, x)

        def total(params, values):
            logits = head.apply(params, x._replace(values=values))
            return jnp.sum(jnp.sin(logits))

        return logits, weights, jax.grad(total, argnums=(0, 1))(params, x.values)

    return jax.jit(run)


# What they compute, row by row, in float64.


def query(p, x, width):
    found = []
    for one in p["query"]:
        for part, own in zip(np.split(x, len(one), axis=1), one, strict=True):
            found.append((softmax(x @ own / np.sqrt(x.shape[1])), part))
    return found, np.concatenate([weights @ part for weights, part in found])


def map_block(p, x, width):
    found, out = [], []
    heads, part = p["value_bias"].shape
    for probe in p["probe"]:
        asked = probe @ p["query"]["kernel"] + p["query"]["bias"]
        mixed = []
        for head in range(heads):
            keys, values = x @ p["key"][:, head], x @ p["value"][:, head]
            mine = asked[head * part : (head + 1) * part]
            weights = softmax(keys @ mine / np.sqrt(part))
            found.append((weights, values))
            mixed.append(weights @ (values + p["value_bias"][head]))
        y = np.concatenate(mixed) @ p["output"]["kernel"] + p["output"]["bias"]
        normed = (y - y.mean()) / np.sqrt(y.var() + 1e-6)
        normed = normed * p["norm"]["scale"] + p["norm"]["bias"]
        hidden = normed @ p["hidden"]["kernel"] + p["hidden"]["bias"]
        inner = np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)
        hidden = hidden * (1 + np.tanh(inner)) / 2  # GELU
        out.append(y + hidden @ p["mlp_output"]["kernel"] + p["mlp_output"]["bias"])
    return found, np.concatenate(out)


def multi_query(p, x, width):
    values = np.split(x @ p["value"].reshape(width, -1), len(p["query"]), axis=1)
    found = [
        (softmax(x @ own / np.sqrt(width)), part)
        for own, part in zip(p["query"], values, strict=True)
    ]
    return found, np.concatenate([weights @ part for weights, part in found])


def gated(p, x, width):
    hidden = np.tanh(x @ p["tanh"]) * expit(x @ p["sigmoid"])
    found = [(softmax(hidden @ own), x) for own in p["score"].T]
    return found, np.concatenate([weights @ part for weights, part in found])


def generalised_mean(p, x, width):
    exponent = np.exp(p["log_exponent"])
    return [], np.mean(np.maximum(x, 1e-6) ** exponent, axis=0) ** (1 / exponent)


ORACLES = {
    "query": query,
    "map": map_block,
    "multi_query": multi_query,
    "gated": gated,
    "gem": generalised_mean,
}


@pytest.mark.parametrize("name", ORACLES)
def test_it_is_its_formula(name):
    _, params = made(name)
    x = tokens()
    logits, weights, _ = compiled(name)(params, x)
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, float), params)
    output = wide["head"]["output"]
    for row in range(1, ROWS):
        real = np.asarray(x.mask[row])
        kept = np.asarray(x.values[row], float)[real]
        found, pooled = ORACLES[name](wide["pool"], kept, DIM)
        expected = pooled @ output["kernel"] + output["bias"]
        np.testing.assert_allclose(logits[row], expected, rtol=2e-4, atol=2e-4)
        if found:
            mine = np.zeros((len(found), TOKENS))
            mine[:, real] = [one for one, _ in found]
            np.testing.assert_allclose(weights[row], mine, rtol=1e-4, atol=1e-5)


def test_mixed_layers_are_elmos_sum():
    head, params = made("mix_layers")
    x = jnp.nan_to_num(tokens().values)
    every = Tokens(x, jnp.ones((ROWS, TOKENS), bool))
    logits, weights, _ = compiled("mix_layers")(params, every)
    own, output = params["pool"], params["head"]["output"]
    shares = softmax(np.asarray(own["layers"], float))
    mixed = float(own["scale"]) * np.einsum("l,bld->bd", shares, np.asarray(x, float))
    expected = mixed @ output["kernel"] + output["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(weights[:, 0], np.tile(shares, (ROWS, 1)), rtol=1e-5)
    with pytest.raises(ValueError, match="got 3 layers and has weights for 4"):
        head.apply(params, x[:, :3])


# Masks and order.


@every_pooling
def test_padding_changes_neither_logits_nor_gradients(name):
    _, params = made(name)
    # What stands in the padding is not read: NaN and 1e30 are as good as 0.
    logits, weights, (slopes, of_values) = compiled(name)(params, tokens(padding=0.0))
    for padding in (np.nan, 1e30):
        x = tokens(padding=padding)
        found = compiled(name)(params, x)
        jax.tree.map(
            np.testing.assert_array_equal,
            found,
            (logits, weights, (slopes, of_values)),
        )
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    np.testing.assert_array_equal(np.asarray(of_values)[~np.asarray(x.mask)], 0)
    assert (np.abs(of_values[1]).sum(axis=-1) > 0).any()
    # No token: a pooled vector of zeros, so that the bias is left.
    bias = params["head"]["output"]["bias"]
    np.testing.assert_array_equal(logits[0], bias)


@every_pooling
def test_weights_sum_to_one_over_real_tokens(name):
    head, params = made(name)
    x = tokens()
    if name == "gem":
        with pytest.raises(ValueError, match="no attention to show"):
            attention_weights(head, params, x)
        return
    weights = np.asarray(compiled(name)(params, x)[1])
    options = OPTIONS.get(name, {})
    rows = options.get("queries", 1) * options.get("heads", 1)
    assert weights.shape == (ROWS, rows, TOKENS)
    assert (weights >= 0).all()
    mask = np.broadcast_to(np.asarray(x.mask)[:, None], weights.shape)
    assert (weights[~mask] == 0).all()
    sums = weights.sum(axis=-1)
    np.testing.assert_allclose(sums[1:], 1, rtol=1e-6)
    np.testing.assert_array_equal(sums[0], 0)
    assert np.ptp(weights[1], axis=-1).min() > 1e-3  # Not all alike.


@every_pooling
def test_the_order_of_tokens_matters_to_layers_only(name):
    _, params = made(name)
    x = tokens()
    turned = jax.tree.map(lambda leaf: leaf[:, ::-1], x)
    same = np.allclose(
        compiled(name)(params, turned)[0],
        compiled(name)(params, x)[0],
        rtol=1e-4,
        atol=1e-5,
    )
    assert same == (name != "mix_layers")


# Types and programs.


@every_pooling
def test_narrow_tokens_are_widened_exactly(name):
    head, params = made(name)
    x = tokens()
    for dtype, run in ((jnp.float16, head.apply), (jnp.bfloat16, jax.jit(head.apply))):
        narrow = x._replace(values=x.values.astype(dtype))
        wide = x._replace(values=narrow.values.astype(jnp.float32))
        logits = run(params, narrow)
        assert logits.dtype == jnp.float32
        # The first is run op by op, this is one program.
        expected = compiled(name)(params, wide)[0]
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@every_pooling
def test_large_scores_stay_finite(name):
    _, params = made(name)
    x = tokens()
    x = x._replace(values=x.values * 1e4)
    logits, _, slopes = compiled(name)(params, x)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((logits, slopes)))


# Where they start.


@pytest.mark.parametrize("name", ["query", "gated", "mix_layers"])
def test_one_query_starts_as_the_mean(name):
    inner = mlp(CLASSES, width=7, zero_init=False)
    head = attention_pool(inner, kind=name) if name in ATTENTIONS else mix_layers(inner)
    plain = pool(inner, "mean")
    x = tokens()

    def run(head):
        params = head.init(KEY, x)
        return params, head.apply(params, x)

    (params, logits), (expected, mean) = jax.jit(lambda: (run(head), run(plain)))()
    jax.tree.map(np.testing.assert_array_equal, params["head"], expected)
    np.testing.assert_allclose(logits, mean, rtol=1e-5, atol=1e-6)


@every_attention
def test_at_the_start_every_token_weighs_the_same(kind):
    x = tokens()
    mask = np.asarray(x.mask)
    equal = mask / np.maximum(mask.sum(axis=1, keepdims=True), 1)

    def run(queries):
        head = attention_pool(linear(CLASSES), kind=kind, queries=queries)
        params = head.init(KEY, x)
        return attention_weights(head, params, x), head.apply(params, x)

    both = jax.jit(lambda: (run(1), run(2)))()
    for (weights, logits), near in zip(both, (1e-6, 0.05), strict=True):
        expected = np.broadcast_to(equal[:, None], weights.shape)
        np.testing.assert_allclose(weights, expected, atol=near)
        # A last layer of zeros stays one: every class is as likely.
        np.testing.assert_array_equal(logits, 0)


def test_gem_is_the_mean_at_one_and_the_maximum_far_above():
    x = jnp.abs(tokens().values[1:2]) + 0.1

    def run(exponent):
        head = gem(linear(CLASSES, zero_init=False), exponent=exponent)
        params = head.init(KEY, x)
        return head.apply(params, x), params["head"]["output"]["kernel"]

    both = jax.jit(lambda: (run(1.0), run(1e4)))()
    for (logits, kernel), how in zip(both, (np.mean, np.max), strict=True):
        expected = how(np.asarray(x), axis=1) @ kernel
        np.testing.assert_allclose(logits, expected, atol=2e-3)


def test_dropout_of_the_head_is_of_the_row():
    head = attention_pool(linear(CLASSES, zero_init=False, dropout=0.5), kind="query")
    x, keys = tokens(), jax.random.split(jax.random.key(1), ROWS)
    params = jax.jit(head.init)(KEY, x)
    some = jnp.array([3, 1])

    def run(rows):
        part, own = jax.tree.map(lambda leaf: leaf[rows], (x, keys))
        return head.apply(params, part, key=own, train=True)

    together, alone = jax.jit(lambda: (run(jnp.arange(ROWS)), run(some)))()
    assert not np.allclose(together, jax.jit(head.apply)(params, x))
    np.testing.assert_allclose(alone, together[some], rtol=1e-5, atol=1e-6)


# Multiple instances.


def bags(seed, rows, *, size=24, dim=8):
    """One token of 24 tells the label by its sign; the mean is drowned by the others.

    The first number marks that token, the second has the sign. The others' sum has a
    deviation of 3 * sqrt(23), about 14 times that sign.
    """
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, rows)
    x = draw.normal(size=(rows, size, dim))
    x[:, :, 0], x[:, :, 1] = 0.0, 3 * x[:, :, 1]
    place = draw.integers(0, size, rows)
    x[np.arange(rows), place, 0] = 4.0
    x[np.arange(rows), place, 1] = 2.0 * labels - 1
    return Batch(
        jnp.asarray(x, jnp.float32),
        jnp.asarray(labels, jnp.int32),
        jnp.ones(rows),
        jnp.arange(rows),
    )


@pytest.mark.parametrize("kind", ["mean", "query", "gated"])
def test_attention_finds_the_one_token_that_tells(kind):
    data, fresh = bags(0, 400), bags(1, 400)
    head = attention_pool(linear(2), kind=kind, width=16) if kind != "mean" else MEAN
    objective, tx = supervised(head, softmax_cross_entropy), optax.adam(0.03)
    fit = train(lambda _: learner(head, objective, tx), steps=200, batch_size=128)

    def right(data, fresh):
        params = fit(data, jnp.ones(400), {}, KEY)
        guess = jnp.argmax(head.apply(params, fresh.x), axis=-1)
        return jnp.mean(guess == fresh.labels)

    score = float(jax.jit(right)(data, fresh))
    assert score < 0.65 if kind == "mean" else score > 0.95


# Refusals.


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda h: attention_pool(h, kind="mean"), "kind is 'mean': expected one of q"),
        (
            lambda h: attention_pool(h, kind="map", heads=0),
            "heads 0 and width 128",
        ),
        (lambda h: attention_pool(h, kind="gated", heads=2), "'gated' has no heads"),
        (lambda h: gem(h, exponent=0.0), "exponent is 0.0: expected a positive"),
    ],
)
def test_refused_settings(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(linear(2))


@pytest.mark.parametrize(
    ("kind", "options", "sentence"),
    [
        ("query", {"heads": 4}, "heads is 4, which does not divide dim, 6"),
        ("multi_query", {"queries": 5}, "queries is 5, which does not divide dim, 6"),
    ],
)
def test_parts_divide_the_width(kind, options, sentence):
    head = attention_pool(linear(2), kind=kind, **options)
    with pytest.raises(ValueError, match=sentence):
        head.init(KEY, tokens())


@every_pooling
def test_one_vector_a_row_is_refused(name):
    with pytest.raises(ValueError, match=r"got embeddings of shape \(5, 6\) and exp"):
        POOLED[name](linear(2)).init(KEY, jnp.ones([ROWS, DIM]))


# In settings.


def test_every_pooling_is_a_setting_and_sees_normalised_tokens():
    assert set(build.LEARNED_POOLINGS) == set(POOLED)
    x = tokens()
    mean, std = jnp.arange(DIM) / 10, jnp.linspace(0.5, 2, DIM)
    for name in build.LEARNED_POOLINGS:
        options = {f"pool_{key}": value for key, value in OPTIONS.get(name, {}).items()}
        settings = HeadConfig(
            pool=name, normalization="standardize", zero_init=False, **options
        )
        build.check(Config(heads=(settings,)))
        head = build.make_head(settings, classes=CLASSES, statistics=(mean, std))
        expected, params = made(name)
        # As a search has it: tokens are prepared once, parameters see the rest.
        prepared = build.features(settings, (mean, std))(x)
        assert isinstance(prepared, Tokens)
        bare = build.bare_head(settings, classes=CLASSES)
        heads = standardize(expected, mean, std), head, bare
        found = jax.jit(
            lambda params, *inputs, heads=heads: [
                one.apply(params, x) for one, x in zip(heads, inputs, strict=True)
            ]
        )(params, x, x, prepared)
        for logits in found[1:]:
            np.testing.assert_allclose(logits, found[0], rtol=1e-4, atol=1e-5)
        assert not build.untouched(settings)
        assert build.untouched(HeadConfig(pool=name))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"name": "ridge", "pool": "query"}, "is 'query', which is trained with its h"),
        ({"pool": "middle"}, "heads.0.pool is 'middle'; expected one of none, mean"),
        ({"pool": "gated", "pool_heads": 2}, "'gated' attention has no heads; expecte"),
        ({"pool": "query", "pool_queries": 0}, "pool_queries is 0; expected a number"),
    ],
)
def test_refused_heads(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        build.check(Config(heads=(HeadConfig(**settings),)))


def test_a_search_over_padded_tokens_ships_a_head_that_predicts(tmp_path):
    """By folds, as configs/attention_pooling.py goes by validation rows."""
    draw = np.random.default_rng(0)
    labels, lengths = np.arange(60) % 2, draw.integers(1, 5, 60)
    mask = np.arange(4) < lengths[:, None]
    x = (draw.normal(size=(60, 4, 4)) + labels[:, None, None]) * mask[..., None]
    fields = {"embeddings": x.astype(np.float16), "mask": mask}
    np.savez(tmp_path / "train.npz", labels=labels, **fields)
    config = Config(
        DataConfig(f"npz:{tmp_path}"),
        heads=(HeadConfig(pool="query", normalization="standardize"),),
        train=TrainConfig(steps=3, batch_size=16, devices=1),
        selection=SelectionConfig(folds=2),
    )
    result = loop.run(config, tmp_path / "run")
    loaded = flaxhead.load(tmp_path / "run" / "head")
    data = load(config.data)
    test = Tokens(jnp.asarray(data.test.x), jnp.asarray(data.test.mask))
    right = np.mean(np.asarray(loaded.predict(test)) == data.test.labels)
    assert result["test"]["accuracy"] == pytest.approx(right)
    weights = attention_weights(loaded.head, loaded.params, test)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(weights > 0, data.test.mask[:, None])


def test_rows_of_digits_are_tokens():
    data = load(DataConfig("sklearn:digits_rows"))
    images = sklearn.datasets.load_digits().images
    np.testing.assert_array_equal(data.train.x, images[data.train.ids])
