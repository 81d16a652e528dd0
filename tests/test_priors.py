"""How likely classes are, estimated and reset."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.utils.class_weight import compute_sample_weight

from flaxhead.heads import linear, mlp
from flaxhead.priors import (
    adjust_logits,
    balanced_weights,
    estimate_prior,
    reset_prior,
    with_prior,
)

OLD, NEW = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.2, 0.7])


def softmax(logits):
    powers = np.exp(np.asarray(logits, float))
    return powers / powers.sum(-1, keepdims=True)


def test_reset_probabilities_are_bayes():
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    expected = softmax(logits) * NEW / OLD
    expected /= expected.sum(1, keepdims=True)
    reset = reset_prior(jnp.asarray(logits), OLD, NEW)
    np.testing.assert_allclose(softmax(reset), expected, rtol=1e-5)
    # Up to a factor, and back again.
    again = reset_prior(reset, 30 * NEW, 20 * OLD)
    np.testing.assert_allclose(softmax(again), softmax(logits), rtol=1e-5)
    np.testing.assert_array_equal(reset_prior(jnp.asarray(logits), OLD, OLD), logits)


def test_adjusted_logits_are_the_formula():
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(5, 3)), jnp.float32)
    found = adjust_logits(logits, OLD, tau=0.5)
    np.testing.assert_allclose(found, logits - 0.5 * np.log(OLD), rtol=1e-5)
    np.testing.assert_array_equal(adjust_logits(logits, OLD, tau=0.0), logits)
    # tau 1 resets to classes that are all as likely.
    uniform = reset_prior(logits, OLD, np.ones(3))
    np.testing.assert_allclose(adjust_logits(logits, OLD), uniform, rtol=1e-5)
    lacking = adjust_logits(logits, np.array([1.0, 1.0, 0.0]))
    assert np.isfinite(lacking).all()


@pytest.mark.parametrize("head", [linear(3, zero_init=False), mlp(3, width=4)])
def test_a_moved_bias_resets_the_logits(head):
    x = jnp.asarray(np.random.default_rng(2).normal(size=(4, 5)), jnp.float32)
    params = head.init(jax.random.key(0), x)
    expected = reset_prior(head.apply(params, x), OLD, NEW)
    found = head.apply(with_prior(params, OLD, NEW), x)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("params", [{"kernel": 0}, {"output": {"kernel": 0}}, (1,)])
def test_a_head_without_that_bias_is_refused(params):
    with pytest.raises(ValueError, match=r"no bias at \['output'\]\['bias'\]"):
        with_prior(params, OLD, NEW)


def mixture(rows=4000):
    """Probabilities of a head that is right in training, of rows of another prior."""
    rng = np.random.default_rng(3)
    labels = rng.choice(3, rows, p=NEW)
    x = rng.normal(size=(rows, 2)) + 2 * np.array([[0, 0], [1, 0], [0, 1]])[labels]
    distance = ((x[:, None] - 2 * np.array([[0, 0], [1, 0], [0, 1]])) ** 2).sum(-1)
    return softmax(np.log(OLD) - distance / 2)


def test_the_estimate_is_the_likeliest_prior():
    p = mixture()
    found = np.asarray(jax.jit(estimate_prior)(jnp.asarray(p, jnp.float32), OLD))
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(found, NEW, atol=0.03)
    # The gradient of the mean log of the mixture is alike in every class (Lagrange).
    ratio = p / OLD
    slope = (ratio / (ratio @ found)[:, None]).mean(0)
    np.testing.assert_allclose(slope, 1, atol=1e-3)
    # Rows that are absent are none, and a prior that is right stays.
    weights = jnp.asarray(np.arange(8000) < 4000, jnp.float32)
    more = np.concatenate([p, np.full((4000, 3), np.nan)]).astype(np.float32)
    same = estimate_prior(jnp.asarray(more), 10 * OLD, weights=weights)
    np.testing.assert_allclose(same, found, atol=1e-5)


def test_classes_that_training_lacks_stay_so():
    p = jnp.array([[0.5, 0.5, 0.0], [0.2, 0.8, 0.0]])
    found = estimate_prior(p, jnp.array([0.5, 0.5, 0.0]))
    np.testing.assert_allclose(found[2], 0)
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-6)


def test_balanced_weights_are_scikit_learns():
    labels = np.array([0, 0, 0, 1, 2, 2, -1])
    given = labels >= 0
    found = balanced_weights(
        jnp.asarray(labels), jnp.asarray(given, jnp.float32), classes=4
    )
    expected = compute_sample_weight("balanced", labels[given])
    np.testing.assert_allclose(found[given], expected, rtol=1e-6)
    np.testing.assert_array_equal(found[~given], 0)
