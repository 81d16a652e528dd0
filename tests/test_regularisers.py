"""Terms without labels against their formulas, and ramps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax, softmax

from flaxhead.base import Batch, Head, Tokens
from flaxhead.heads import linear, pool
from flaxhead.objectives import entropy, marginal_entropy, r_drop, ramp, vat

ROWS, DIM, CLASSES = 9, 4, 3


KEY = jax.random.key(1)
HEAD = linear(CLASSES, zero_init=False)


def example(rows=ROWS):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(rows, DIM)).astype(np.float32)
    weights = np.linspace(0.5, 2.0, rows).astype(np.float32)
    weights[1] = 0
    x[1] = 1e3
    labels, index = jnp.full(rows, -1), jnp.arange(rows)
    return Batch(jnp.asarray(x), labels, jnp.asarray(weights), index)


def value_and_gradient(objective, params, batch):
    def value(params):
        ((total, count),) = objective.apply(params, (), batch, KEY)[0].values()
        return total / count

    return jax.jit(jax.value_and_grad(value))(params)


def test_entropies_and_their_gradients_are_their_formulas():
    batch = example()
    params = HEAD.init(jax.random.key(0), batch.x)

    @jax.jit
    def both(params, batch):
        return [
            value_and_gradient(objective, params, batch)
            for objective in (entropy(HEAD), marginal_entropy(HEAD))
        ]

    x = np.asarray(batch.x, float)
    kernel = np.asarray(params["output"]["kernel"], float)
    share = np.asarray(batch.weights, float)
    share = share / share.sum()

    def row_entropy(kernel):
        log_p = log_softmax(x @ kernel, 1)
        return share @ -np.sum(np.exp(log_p) * log_p, 1)

    def of_the_mean(kernel):
        mean = share @ softmax(x @ kernel, 1)
        return np.sum(mean * np.log(mean))

    for formula, (value, slope) in zip(
        (row_entropy, of_the_mean), both(params, batch), strict=True
    ):
        np.testing.assert_allclose(value, formula(kernel), rtol=1e-5)
        step = 1e-5 * np.eye(DIM * CLASSES).reshape(-1, DIM, CLASSES)
        expected = [(formula(kernel + d) - formula(kernel - d)) / 2e-5 for d in step]
        found = np.ravel(slope["output"]["kernel"])
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_r_drop_is_the_mean_of_both_divergences():
    """Of a head whose noise picks one of two predictions: apart in half of the rows."""
    logits = np.array([[1.0, 0.0, -1.0], [0.0, 2.0, 0.5]])

    def apply(params, x, *, key=None, train=False):
        coin = jax.vmap(jax.random.bernoulli)(key)
        return jnp.where(coin[:, None], *params) * x[:, :1]

    rows = 400
    x, labels = jnp.ones([rows, 1]), jnp.full(rows, -1)
    batch = Batch(x, labels, jnp.ones(rows), jnp.arange(rows))
    head = Head(lambda key, x: jnp.asarray(logits), apply)
    value, slope = value_and_gradient(r_drop(head), jnp.asarray(logits), batch)
    p, log_p = softmax(logits, 1), log_softmax(logits, 1)
    apart = (p[0] @ (log_p[0] - log_p[1]) + p[1] @ (log_p[1] - log_p[0])) / 2
    times = float(value) * rows / apart
    assert times == pytest.approx(round(times), abs=1e-2)
    assert abs(times - rows / 2) < 4 * np.sqrt(rows) / 2
    assert (abs(slope).sum(1) > 0.01).all()  # Both passes have a gradient.


def test_r_drop_without_noise_is_0():
    batch = example()
    params = HEAD.init(jax.random.key(0), batch.x)
    value, slope = value_and_gradient(r_drop(HEAD), params, batch)
    assert value == 0
    np.testing.assert_array_equal(slope["output"]["kernel"], 0)


def test_vat_steps_along_the_steepest_direction():
    """Between two classes the curvature has one direction, w_1 - w_0."""
    head, radius = linear(2, zero_init=False), 0.7
    batch = example()
    params = head.init(jax.random.key(0), batch.x)

    @jax.jit
    def by_row(params, batch, radius):
        rows = jax.tree.map(lambda leaf: leaf[:, None], batch)
        rows = rows._replace(weights=jnp.ones([ROWS, 1]))
        objective = vat(head, radius=radius, xi=1e-2)
        one = jax.vmap(lambda row: value_and_gradient(objective, params, row))
        return one(rows)

    values, slopes = by_row(params, batch, radius)
    kernel, x = np.asarray(params["output"]["kernel"], float), np.asarray(batch.x)
    steepest = kernel[:, 1] - kernel[:, 0]
    steepest *= radius / np.linalg.norm(steepest)
    log_q, signs = log_softmax(x @ kernel, 1), set()
    for row in np.delete(np.arange(ROWS), 1):
        cases = {}
        for sign in (1, -1):
            moved = x[row] + sign * steepest
            log_p = log_softmax(moved @ kernel)
            value = np.exp(log_q[row]) @ (log_q[row] - log_p)
            # Neither the target nor the step has a gradient.
            slope = np.outer(moved, np.exp(log_p) - np.exp(log_q[row]))
            cases[sign] = value, slope
        sign = min(cases, key=lambda sign: abs(cases[sign][0] - values[row]))
        signs.add(sign)
        np.testing.assert_allclose(values[row], cases[sign][0], rtol=1e-2, atol=1e-5)
        np.testing.assert_allclose(
            slopes["output"]["kernel"][row], cases[sign][1], rtol=2e-2, atol=1e-3
        )
    assert signs == {1, -1}
    np.testing.assert_array_equal(by_row(params, batch, 0.0)[0], 0)


def test_vat_leaves_padding_alone():
    draw = np.random.default_rng(0)
    values = jnp.asarray(draw.normal(size=(ROWS, 3, DIM)), jnp.float32)
    mask = jnp.arange(3) < jnp.where(jnp.arange(ROWS) % 2 == 0, 1, 3)[:, None]
    head = pool(HEAD, "mean")
    batch = example()._replace(x=Tokens(values, mask))
    params = head.init(jax.random.key(0), batch.x)
    objective = vat(head)

    @jax.jit
    def value(values):
        x = Tokens(values, mask)
        return value_and_gradient(objective, params, batch._replace(x=x))[0]

    rubbish = jnp.where(mask[..., None], values, 50.0)
    assert value(values) > 0
    np.testing.assert_allclose(value(rubbish), value(values), rtol=1e-5)


def test_a_ramp_multiplies_by_its_schedule():
    batch = example()
    params = HEAD.init(jax.random.key(0), batch.x)
    rising = ramp(entropy(HEAD), optax.linear_schedule(0.0, 1.0, 4))
    ((total, count),) = entropy(HEAD).apply(params, (), batch, KEY)[0].values()
    memory, apply = rising.init(params), jax.jit(rising.apply)
    for step in range(6):
        sums, memory = apply(params, memory, batch, KEY)
        expected = min(step / 4, 1) * total
        np.testing.assert_allclose(sums["entropy"].total, expected, rtol=1e-6)
        np.testing.assert_allclose(sums["entropy"].count, count)


def test_refused_settings():
    with pytest.raises(ValueError, match="iterations of vat is 0: expected 1 or more"):
        vat(HEAD, iterations=0)
