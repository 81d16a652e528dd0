"""Losses for classes, or labels, of which some have far fewer rows than others.

What they know of the classes is how many rows each has, `counts [classes]`, or its
share of them: only the ratios matter. A class without rows counts as hardly any.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from flaxhead.base import Array, Loss
from flaxhead.losses.cross_entropy import softmax_cross_entropy
from flaxhead.losses.terms import (
    block_gradient,
    check_exponent,
    focus,
    inputs,
    sigmoid_terms,
    weigh,
)


def logit_adjusted(loss: Loss, prior: ArrayLike, tau: float | Array = 1.0) -> Loss:
    """Adds `tau * log prior` to the logits, in the loss and not at prediction.

    So the head need not learn how frequent a class is: its own logits are those of
    classes that are all as likely.

    Source: Menon et al., 2021, "Long-tail learning via logit adjustment".

    Args:
      loss: of classes that exclude each other.
      prior: `[classes]`, how likely each is in training, up to a factor.
      tau: 0 is `loss` itself, 1 is right for balanced accuracy; may be a traced scalar.

    Returns:
      A loss.

    >>> import jax.numpy as jnp
    >>> loss = logit_adjusted(softmax_cross_entropy, jnp.array([3.0, 1.0]))
    >>> jnp.exp(-loss(jnp.zeros([2, 2]), jnp.array([0, 1])))  # the prior
    Array([0.75, 0.25], dtype=float32)
    """
    prior = jnp.asarray(prior, jnp.float32)
    shift = tau * jnp.log(jnp.maximum(prior, jnp.finfo(jnp.float32).tiny))

    def adjusted(
        logits: Array,
        labels: Array,
        *,
        where: Array | None = None,
        weights: Array | None = None,
    ) -> Array:
        return loss(logits + shift, labels, where=where, weights=weights)

    return adjusted


def balanced_softmax(counts: ArrayLike) -> Loss:
    """Cross-entropy of the softmax that weighs each class by its count.

    Source: Ren et al., 2020, "Balanced meta-softmax for long-tailed visual
    recognition".

    Args:
      counts: `[classes]`, rows of each class, up to a factor.

    Returns:
      A loss; arguments as of `softmax_cross_entropy`.

    >>> import jax.numpy as jnp
    >>> loss = balanced_softmax(jnp.array([30, 10]))
    >>> jnp.exp(-loss(jnp.zeros([1, 2]), jnp.array([1])))
    Array([0.25], dtype=float32)
    """
    return logit_adjusted(softmax_cross_entropy, counts, 1.0)


def ldam(
    counts: ArrayLike, max_margin: float | Array = 0.5, scale: float | Array = 30.0
) -> Loss:
    """Cross-entropy with a margin, larger for rarer classes, in front of the label's.

    The logit of the label's class is lowered by `max_margin * (count / least)^(-1/4)`,
    and then all are multiplied by `scale`: probabilities are those of `scale` times the
    logits. A soft label costs the average of its classes.

    Source: Cao et al., 2019, "Learning imbalanced datasets with label-distribution-
    aware margin loss".

    Args:
      counts: `[classes]`, rows of each class, up to a factor.
      max_margin: of the rarest class that has rows, in logits; 0 or more.
      scale: of the logits; the paper's, of cosines, is 30.

    Returns:
      A loss; arguments as of `softmax_cross_entropy`.

    Raises:
      ValueError: if `max_margin` or `scale` is negative.

    >>> import jax.numpy as jnp
    >>> loss = ldam(jnp.array([16, 1]), max_margin=1.0, scale=1.0)
    >>> value = loss(jnp.zeros([2, 2]), jnp.array([0, 1]))
    >>> [round(float(one), 3) for one in value]  # log(1 + exp(1/2)), log(1 + exp(1))
    [0.974, 1.313]
    """
    check_exponent("max_margin", max_margin)
    check_exponent("scale", scale)
    counts = jnp.asarray(counts, jnp.float32)
    least = jnp.min(jnp.where(counts > 0, counts, jnp.inf))
    margins = max_margin * (jnp.maximum(counts, least) / least) ** -0.25

    def loss(
        logits: Array,
        labels: Array,
        *,
        where: Array | None = None,
        weights: Array | None = None,
    ) -> Array:
        logits, present = inputs(logits, labels, where, weights)
        logits = block_gradient(logits, present[..., None]) * scale
        others = _others(logits)
        terms = jax.nn.softplus(others - logits + scale * margins)
        if labels.ndim < logits.ndim:
            number = jnp.where(present, labels, 0)[..., None]
            per_example = jnp.take_along_axis(terms, number, axis=-1)[..., 0]
        else:
            per_example = jnp.sum(labels * terms, axis=-1)
        return weigh(per_example, present, weights)

    return loss


def _others(logits: Array) -> Array:
    """For each class `log sum exp` of the logits of the others, without cancellation.

    The sum over all less the class's own is exact enough but for the largest.
    """
    largest = jnp.argmax(logits, axis=-1)[..., None] == jnp.arange(logits.shape[-1])
    rest = jnp.where(largest, -jnp.inf, logits)
    rest = jax.nn.logsumexp(rest, axis=-1, keepdims=True)
    whole = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    share = jnp.exp(jnp.where(largest, -jnp.inf, logits - whole))
    return jnp.where(largest, rest, whole + jnp.log1p(-share))


def asymmetric(
    gamma_positive: float | Array = 0.0,
    gamma_negative: float | Array = 4.0,
    clip: float | Array = 0.05,
) -> Loss:
    """Focal loss of independent labels that are seldom on, summed over them.

    Each label's is `-y (1-p)^gamma_positive log p`, and where it is off, of
    `q = max(p - clip, 0)`, `-q^gamma_negative log(1-q)`: what is clearly off is left
    out.

    Source: Ridnik et al., 2021, "Asymmetric loss for multi-label classification".

    Args:
      gamma_positive: exponent, at least 0; may be a traced scalar, as may all three.
      gamma_negative: exponent, at least 0.
      clip: between 0 and 1. All three 0: `sigmoid_binary_cross_entropy`.

    Returns:
      A loss; arguments as of `sigmoid_binary_cross_entropy`.

    Raises:
      ValueError: if one is negative.

    >>> import jax.numpy as jnp
    >>> loss = asymmetric(0.0, 1.0, 0.0)
    >>> loss(jnp.zeros([1, 2]), jnp.array([[1.0, 0.0]]))  # log(2) + log(2) / 2
    Array([1.0397208], dtype=float32)
    """
    check_exponent("gamma_positive", gamma_positive)
    check_exponent("gamma_negative", gamma_negative)
    check_exponent("clip", clip)

    def off(nats: Array) -> Array:
        if isinstance(clip, int | float) and clip == 0:
            return focus(nats, gamma_negative)
        shifted = jnp.maximum(-jnp.expm1(-nats) - clip, 0)
        # Where p is 1 and clip, should it be traced, is 0, that has no logarithm.
        lost = -jnp.log1p(-jnp.where(clip > 0, shifted, 0))
        return focus(jnp.where(clip > 0, lost, nats), gamma_negative)

    def loss(
        logits: Array,
        labels: Array,
        *,
        where: Array | None = None,
        weights: Array | None = None,
    ) -> Array:
        values = (gamma_positive, gamma_negative, clip)
        if all(isinstance(one, int | float) and one == 0 for one in values):
            return sigmoid_terms(logits, labels, where, weights)

        def on(nats: Array) -> Array:
            return focus(nats, gamma_positive)

        return sigmoid_terms(logits, labels, where, weights, on, off)

    return loss


def effective_number_weights(counts: ArrayLike, beta: float | Array = 0.999) -> Array:
    """Weights of classes by how many rows that differ they have.

    Of `n` rows, `(1 - beta^n) / (1 - beta)` count as different; a class weighs the
    inverse of that.

    Source: Cui et al., 2019, "Class-balanced loss based on effective number of
    samples".

    Args:
      counts: `[classes]`, rows of each class, or the sum of their weights.
      beta: from 0, all classes alike, to below 1, close to which they weigh
        `1 / count`; may be a traced scalar.

    Returns:
      `float32 [classes]`, whose average over the classes with rows is 1; the others
      weigh 0.

    Raises:
      ValueError: if `beta` is not in `[0, 1)`.

    >>> weights = effective_number_weights(jnp.array([2, 1]), beta=0.5)
    >>> [round(float(one), 3) for one in weights]  # as 1 / 1.5 and 1
    [0.8, 1.2]
    """
    if isinstance(beta, int | float) and not 0 <= beta < 1:
        raise ValueError(f"beta is {beta}: expected a number from 0 to below 1")
    counts = jnp.asarray(counts, jnp.float32)
    present = counts > 0
    # The factor 1 / (1 - beta) is the same for all. A beta of 0 has no logarithm.
    log_beta = jnp.log(jnp.maximum(beta, jnp.finfo(jnp.float32).tiny))
    different = -jnp.expm1(jnp.where(present, counts, 1) * log_beta)
    weights = jnp.where(present, 1 / different, 0)
    return weights * jnp.sum(present) / jnp.sum(weights)
