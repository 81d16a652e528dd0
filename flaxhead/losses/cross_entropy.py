"""Cross-entropies, and losses of losses: smoothed labels and weighted classes."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike

from flaxhead.base import Array, Loss
from flaxhead.losses.terms import (
    both,
    check_exponent,
    focus,
    sigmoid_terms,
    softmax_terms,
)


def softmax_cross_entropy(
    logits: Array,
    labels: Array,
    *,
    where: Array | None = None,
    weights: Array | None = None,
) -> Array:
    """Cross-entropy of classes that exclude each other, `-sum_c y_c log p_c`.

    Args:
      logits: `[..., classes]`.
      labels: `int [...]` (negative: absent), or float `[..., classes]` soft labels.
      where: `bool [...]`, the examples that count.
      weights: `[...]`, multiplies each example's loss.

    Returns:
      `[...]`, nats.

    Raises:
      ValueError: if the shapes don't fit.

    >>> import jax.numpy as jnp
    >>> softmax_cross_entropy(jnp.array([[0.0, 0.0], [9.0, 0.0]]), jnp.array([0, -1]))
    Array([0.6931472, 0.       ], dtype=float32)
    """
    return softmax_terms(logits, labels, where, weights)


def sigmoid_binary_cross_entropy(
    logits: Array,
    labels: Array,
    *,
    where: Array | None = None,
    weights: Array | None = None,
) -> Array:
    """Sum over labels of each one's logistic loss, `-y log p - (1 - y) log(1 - p)`.

    A sum, not a mean, so that each label's weights are those of a logistic regression
    of its own.

    Args:
      logits: `[..., classes]`.
      labels: float `[..., classes]`, NaN where a label is missing, or `int [...]`, the
        one label that is on (negative: absent).
      where: `bool [...]`, the examples, or `bool [..., classes]`, the entries that
        count.
      weights: `[...]`, multiplies each example's loss.

    Returns:
      `[...]`, nats.

    Raises:
      ValueError: if the shapes don't fit.

    >>> import jax.numpy as jnp
    >>> labels = jnp.array([[1.0, 0.0], [1.0, jnp.nan]])
    >>> sigmoid_binary_cross_entropy(jnp.zeros([2, 2]), labels)
    Array([1.3862944, 0.6931472], dtype=float32)
    """
    return sigmoid_terms(logits, labels, where, weights)


def softmax_focal(gamma: float | Array) -> Loss:
    """Focal loss of classes that exclude each other.

    It is `-sum_c y_c (1 - p_c)^gamma log p_c`: the cross-entropy, with less of the
    examples that are right already.

    Source: Lin et al., 2017, "Focal loss for dense object detection".

    Args:
      gamma: exponent, at least 0; 0 is the cross-entropy. May be a traced scalar.

    Returns:
      A loss; arguments as of `softmax_cross_entropy`.

    Raises:
      ValueError: if `gamma` is negative.

    >>> import jax.numpy as jnp
    >>> softmax_focal(2.0)(jnp.zeros([1, 2]), jnp.array([0]))  # log(2) / 4
    Array([0.1732868], dtype=float32)
    """
    check_exponent("gamma", gamma)

    def loss(
        logits: Array,
        labels: Array,
        *,
        where: Array | None = None,
        weights: Array | None = None,
    ) -> Array:
        return softmax_terms(
            logits, labels, where, weights, lambda nats: focus(nats, gamma)
        )

    return loss


def sigmoid_focal(gamma: float | Array) -> Loss:
    """Focal loss of independent labels, summed over them.

    Each label's is `-y (1-p)^gamma log p - (1-y) p^gamma log(1-p)`.

    Source: Lin et al., 2017, "Focal loss for dense object detection".

    Args:
      gamma: exponent, at least 0; 0 is the cross-entropy. May be a traced scalar.

    Returns:
      A loss; arguments as of `sigmoid_binary_cross_entropy`.

    Raises:
      ValueError: if `gamma` is negative.

    >>> import jax.numpy as jnp
    >>> sigmoid_focal(2.0)(jnp.zeros([1, 2]), jnp.array([0]))  # 2 * log(2) / 4
    Array([0.3465736], dtype=float32)
    """
    check_exponent("gamma", gamma)

    def loss(
        logits: Array,
        labels: Array,
        *,
        where: Array | None = None,
        weights: Array | None = None,
    ) -> Array:
        if isinstance(gamma, int | float) and gamma == 0:
            return sigmoid_terms(logits, labels, where, weights)

        def focused(nats: Array) -> Array:
            return focus(nats, gamma)

        return sigmoid_terms(logits, labels, where, weights, focused, focused)

    return loss


def label_smoothing(
    loss: Loss, smoothing: float | Array, *, multilabel: bool = False
) -> Loss:
    """Moves a share of each label's mass to the uniform distribution.

    The labels become `(1 - smoothing) * labels + smoothing * uniform`, where `uniform`
    is `1 / classes` in each class, or 1/2 in each label if `multilabel`.

    Source: Szegedy et al., 2016, "Rethinking the inception architecture".

    Args:
      loss: a loss that is affine in its labels, as all those of this package are.
      smoothing: between 0 and 1; may be a traced scalar. A Python 0 costs nothing.
      multilabel: whether labels are independent of each other (the sigmoid losses).

    Returns:
      A loss.

    Raises:
      ValueError: if `smoothing` is not in `[0, 1]`.

    >>> import jax.numpy as jnp
    >>> logits, labels = jnp.array([[2.0, 0.0]]), jnp.array([0])
    >>> soft = softmax_cross_entropy(logits, jnp.array([[0.95, 0.05]]))
    >>> smooth = label_smoothing(softmax_cross_entropy, 0.1)(logits, labels)
    >>> bool(jnp.allclose(smooth, soft))
    True
    """
    if isinstance(smoothing, int | float):
        if not 0 <= smoothing <= 1:
            raise ValueError(f"label_smoothing is {smoothing}: expected one in [0, 1]")
        if smoothing == 0:
            return loss

    def smoothed(
        logits: Array,
        labels: Array,
        *,
        where: Array | None = None,
        weights: Array | None = None,
    ) -> Array:
        uniform = jnp.full(logits.shape, 0.5 if multilabel else 1 / logits.shape[-1])
        if labels.ndim == logits.ndim:
            uniform = jnp.where(jnp.isnan(labels), jnp.nan, uniform)
        else:
            labelled = labels >= 0
            if where is not None and where.ndim == logits.ndim:
                labelled = labelled[..., None]
            where = both(where, labelled)
        # Two losses, as this keeps class numbers as such: cheaper than soft labels.
        hard = loss(logits, labels, where=where, weights=weights)
        soft = loss(logits, uniform, where=where, weights=weights)
        return (1 - smoothing) * hard + smoothing * soft

    return smoothed


def class_weighted(
    loss: Loss, class_weights: ArrayLike, *, multilabel: bool = False
) -> Loss:
    """Multiplies an example's loss by the weight of its class.

    It goes outermost (see the top of the package). Counts of examples are not changed
    by it: their average is still divided by the sum of their own weights.

    Args:
      loss: a loss.
      class_weights: `[classes]`, not negative. An example of soft labels weighs their
        average; one of weight 0 is absent.
      multilabel: whether each entry of `[..., classes]` labels is multiplied by the
        weight of its label instead (the sigmoid losses).

    Returns:
      A loss.

    >>> import jax.numpy as jnp
    >>> loss = class_weighted(softmax_cross_entropy, jnp.array([1.0, 3.0]))
    >>> loss(jnp.zeros([2, 2]), jnp.array([0, 1]))
    Array([0.6931472, 2.0794415], dtype=float32)
    """
    class_weights = jnp.asarray(class_weights)

    def weighted(
        logits: Array,
        labels: Array,
        *,
        where: Array | None = None,
        weights: Array | None = None,
    ) -> Array:
        if labels.ndim < logits.ndim:
            factors = class_weights[jnp.maximum(labels, 0)]
        elif not multilabel:
            factors = jnp.sum(labels * class_weights, axis=-1)
        else:
            # Each entry becomes an example with one label.
            if where is not None and where.ndim < logits.ndim:
                where = where[..., None]
            factors = jnp.broadcast_to(class_weights, logits.shape)
            if weights is not None:
                factors = factors * weights[..., None]
            where = None if where is None else jnp.broadcast_to(where, logits.shape)
            entries = loss(
                logits[..., None], labels[..., None], where=where, weights=factors
            )
            return jnp.sum(entries, axis=-1)
        if weights is not None:
            factors = factors * weights
        return loss(logits, labels, where=where, weights=factors)

    return weighted
