"""Terms that read no label, to be added to an objective that does: `a + weight * b`.

They are over all rows of weight above 0, labelled or not.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from flaxhead.base import Array, Batch, Head, Objective, Params, PyTree, Sums, Tokens
from flaxhead.heads.compose import map_values
from flaxhead.objectives.rows import (
    row_keys,
    row_mean,
    row_sums,
    side_key,
    train_logits,
)


def entropy(head: Head) -> Objective:
    r"""The mean entropy of the rows' predictions: \(-\sum_c p_c \log p_c\).

    Source: Grandvalet and Bengio, 2005, "Semi-supervised learning by entropy
    minimization".

    >>> from flaxhead.heads import linear
    >>> head, x = linear(2), jnp.ones([1, 3])
    >>> params = head.init(jax.random.key(0), x)
    >>> batch = Batch(x, jnp.array([-1]), jnp.ones(1), jnp.arange(1))
    >>> sums, _ = entropy(head).apply(params, (), batch, jax.random.key(0))
    >>> round(float(sums["entropy"].total), 4)
    0.6931
    """

    def value(params: Params, batch: Batch, key: Array) -> Array:
        keys = row_keys(key, batch.index)
        log_p = _log_softmax(head, params, batch, keys)
        return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

    return _of_rows("entropy", value)


def marginal_entropy(head: Head, *, axis: str | None = None) -> Objective:
    r"""Minus the entropy of the mean prediction: \(\sum_c \bar p_c \log \bar p_c\).

    Minimised, it spreads the rows over the classes; with `entropy` it maximises the
    mutual information of rows and classes.

    Source: Bridle et al., 1991, "Unsupervised classifiers, mutual information and
    phantom targets".

    Args:
      head: embeddings -> logits.
      axis: name of the device axis over which batches are split; None for one device.
    """

    def value(params: Params, batch: Batch, key: Array) -> Array:
        p = jnp.exp(_log_softmax(head, params, batch, row_keys(key, batch.index)))
        mean = row_mean(jax.lax.stop_gradient(p), batch.weights, axis)
        # A sum over rows whose gradient is that of the whole: the part that is left
        # out, through the logarithm, is the gradient of a sum of probabilities, 0.
        return p @ jnp.log(jnp.maximum(mean, jnp.finfo(jnp.float32).tiny))

    return _of_rows("marginal_entropy", value)


def r_drop(head: Head) -> Objective:
    r"""How far two passes with noise of their own are apart.

    It is \(\frac12 (KL(p_1 | p_2) + KL(p_2 | p_1))\), with the gradient of both.

    Source: Liang et al., 2021, "R-Drop: regularized dropout for neural networks", whose
    cross-entropy, of both passes there, is `supervised`, of one.
    """

    def value(params: Params, batch: Batch, key: Array) -> Array:
        one, two = (
            _log_softmax(head, params, batch, row_keys(side_key(key, i), batch.index))
            for i in range(2)
        )
        return jnp.sum((jnp.exp(one) - jnp.exp(two)) * (one - two), axis=-1) / 2

    return _of_rows("r_drop", value)


def vat(
    head: Head,
    *,
    radius: float | Array = 1.0,
    xi: float | Array = 0.01,
    iterations: int = 1,
) -> Objective:
    r"""How far a small step can move a prediction: virtual adversarial training.

    It is \(KL(p(x) | p(x + r))\), where \(r\) is the step of a length that moves it
    most, found by power iterations \(d \leftarrow \overline{\nabla_r KL(p(x) | p(x +
    r))}\) at \(r = \xi d\). The target and the step have no gradient; the noise of a
    row is the same in both passes.

    Source: Miyato et al., 2018, "Virtual adversarial training".

    Args:
      head: embeddings -> logits.
      radius: length of the step, in the units of x; over all tokens of a row. May be
        traced.
      xi: length at which the gradient is taken; may be traced.
      iterations: of the power method.

    Raises:
      ValueError: if `iterations` is below 1.

    >>> from flaxhead.heads import linear
    >>> from flaxhead.losses import softmax_cross_entropy
    >>> from flaxhead.objectives import supervised
    >>> head = linear(2)
    >>> objective = supervised(head, softmax_cross_entropy) + 0.3 * vat(head)
    """
    if iterations < 1:
        raise ValueError(f"iterations of vat is {iterations}: expected 1 or more")

    def value(params: Params, batch: Batch, key: Array) -> Array:
        keys = row_keys(key, batch.index)
        fixed = jax.lax.stop_gradient(params)
        x = map_values(lambda values: values.astype(jnp.float32), batch.x)
        values = x.values if isinstance(x, Tokens) else x
        target = _log_softmax(head, fixed, batch._replace(x=x), keys)

        def moved(params: Params, step: Array) -> Array:
            to = batch._replace(x=map_values(lambda values: values + step, x))
            log_p = _log_softmax(head, params, to, keys)
            return jnp.sum(jnp.exp(target) * (target - log_p), axis=-1)

        draws = row_keys(side_key(key, 0), batch.index)
        step = jax.vmap(lambda key: jax.random.normal(key, values.shape[1:]))(draws)
        if isinstance(x, Tokens):
            step = jnp.where(x.mask[..., None], step, 0)
        for _ in range(iterations):
            step = jax.grad(lambda step: jnp.sum(moved(fixed, step)))(xi * _unit(step))
        return moved(params, jax.lax.stop_gradient(radius * _unit(step)))

    return _of_rows("vat", value)


def ramp(objective: Objective, schedule: optax.Schedule) -> Objective:
    """The objective times a schedule of the step.

    Args:
      objective: what is multiplied.
      schedule: `(step) -> multiplier`, any of optax.

    Returns:
      An `Objective` whose memory is the number of its steps and the other's memory.

    >>> from flaxhead.heads import linear
    >>> rising = ramp(entropy(linear(2)), optax.linear_schedule(0.0, 1.0, 100))
    >>> int(rising.init(())[0])
    0
    """

    def init(params: Params) -> PyTree:
        return jnp.zeros((), jnp.int32), objective.init(params)

    def apply(
        params: Params, memory: PyTree, batch: Batch, key: Array
    ) -> tuple[dict[str, Sums], PyTree]:
        step, inner = memory
        scaled = jnp.asarray(schedule(step)) * objective
        sums, inner = scaled.apply(params, inner, batch, key)
        return sums, (step + 1, inner)

    return Objective(init, apply)


def _of_rows(name: str, value: Callable[[Params, Batch, Array], Array]) -> Objective:
    """The weighted mean of a value a row, of one term, without memory."""

    def init(params: Params) -> PyTree:
        del params
        return ()

    def apply(
        params: Params, memory: PyTree, batch: Batch, key: Array
    ) -> tuple[dict[str, Sums], PyTree]:
        return {name: row_sums(value(params, batch, key), batch)}, memory

    return Objective(init, apply)


def _log_softmax(head: Head, params: Params, batch: Batch, keys: Array) -> Array:
    logits = train_logits(head, params, batch.x, keys, batch.weights)
    return jax.nn.log_softmax(logits)


def _unit(step: Array) -> Array:
    """Rows of length 1; a row of zeros stays."""
    axes = tuple(range(1, step.ndim))
    # Squares of small gradients would be lost to float32.
    largest = jnp.max(jnp.abs(step), axis=axes, keepdims=True)
    step = step / jnp.where(largest > 0, largest, 1)
    length = jnp.sqrt(jnp.sum(step**2, axis=axes, keepdims=True))
    return step / jnp.where(length > 0, length, 1)
