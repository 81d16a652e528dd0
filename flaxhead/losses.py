"""Per-example losses, and losses of losses.

A loss is `(logits, labels, *, where=None, weights=None) -> [...]`: it is not averaged.

* `logits` are `[..., classes]` of any float type; the loss is float32.
* `labels` are class numbers `int [...]`, or `[..., classes]`: the probabilities of the
  classes, or, for the sigmoid losses, of each label.
* An example that `where` drops, of weight 0, or of a negative class number, is absent:
  its loss is exactly 0, and so is its gradient, whatever its logits hold.

The order of composition is `class_weighted(label_smoothing(loss, ...), ...)`: the
smoothed loss is multiplied by the weight of the *true* class, so that class weights
don't change how much mass smoothing moves, nor where to.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from flaxhead.base import Array, Loss


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
    return _softmax_focal(logits, labels, where, weights, gamma=0.0)


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
    return _sigmoid_focal(logits, labels, where, weights, gamma=0.0)


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
    _check_gamma(gamma)

    def loss(
        logits: Array,
        labels: Array,
        *,
        where: Array | None = None,
        weights: Array | None = None,
    ) -> Array:
        return _softmax_focal(logits, labels, where, weights, gamma)

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
    _check_gamma(gamma)

    def loss(
        logits: Array,
        labels: Array,
        *,
        where: Array | None = None,
        weights: Array | None = None,
    ) -> Array:
        return _sigmoid_focal(logits, labels, where, weights, gamma)

    return loss


def label_smoothing(
    loss: Loss, smoothing: float | Array, *, multilabel: bool = False
) -> Loss:
    """Moves a share of each label's mass to the uniform distribution.

    The labels become `(1 - smoothing) * labels + smoothing * uniform`, where `uniform`
    is `1 / classes` in each class, or 1/2 in each label if `multilabel`.

    Source: Szegedy et al., 2016, "Rethinking the inception architecture".

    Args:
      loss: a loss that is affine in its labels, as all those of this file are.
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
            where = _and(where, labelled)
        # Two losses, as this keeps class numbers as such: cheaper than soft labels.
        hard = loss(logits, labels, where=where, weights=weights)
        soft = loss(logits, uniform, where=where, weights=weights)
        return (1 - smoothing) * hard + smoothing * soft

    return smoothed


def class_weighted(
    loss: Loss, class_weights: ArrayLike, *, multilabel: bool = False
) -> Loss:
    """Multiplies an example's loss by the weight of its class.

    It goes outermost (see the top of this file). Counts of examples are not changed by
    it: their average is still divided by the sum of their own weights.

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
            factors = labels @ class_weights
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


LOSSES: dict[str, Callable[[float | Array], Loss]] = {
    "softmax_cross_entropy": lambda gamma: softmax_cross_entropy,
    "sigmoid_binary_cross_entropy": lambda gamma: sigmoid_binary_cross_entropy,
    "softmax_focal": softmax_focal,
    "sigmoid_focal": sigmoid_focal,
}
"""Name -> `(gamma) -> loss`; the exponent matters to the focal losses only."""


def _softmax_focal(
    logits: Array,
    labels: Array,
    where: Array | None,
    weights: Array | None,
    gamma: float | Array,
) -> Array:
    logits, present = _inputs(logits, labels, where, weights)
    logits = _block_gradient(logits, present[..., None])
    if labels.ndim < logits.ndim:
        labels = jnp.where(present, labels, 0)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        per_example = _focus(cross_entropy, gamma)
    else:
        terms = _focus(-jax.nn.log_softmax(logits), gamma)
        per_example = jnp.sum(labels * terms, axis=-1)
    return _weigh(per_example, present, weights)


def _sigmoid_focal(
    logits: Array,
    labels: Array,
    where: Array | None,
    weights: Array | None,
    gamma: float | Array,
) -> Array:
    entries = None
    if where is not None and where.ndim == logits.ndim:
        entries, where = where, None
    logits, present = _inputs(logits, labels, where, weights)
    targets = labels
    if labels.ndim < logits.ndim:
        targets = labels[..., None] == jnp.arange(logits.shape[-1])
    targets = targets.astype(logits.dtype)
    entries = _and(entries, present[..., None] & ~jnp.isnan(targets))
    logits = _block_gradient(logits, entries)
    # Twice as fast as two calls of softplus: log(1 + exp(|z|)) = |z| + tail.
    tail = jnp.log1p(jnp.exp(-jnp.abs(logits)))
    if isinstance(gamma, int | float) and gamma == 0:
        terms = jnp.maximum(logits, 0) - targets * logits + tail
    else:
        on = _focus(jnp.maximum(-logits, 0) + tail, gamma)
        off = _focus(jnp.maximum(logits, 0) + tail, gamma)
        terms = targets * on + (1 - targets) * off
    per_example = jnp.sum(jnp.where(entries, terms, 0), axis=-1)
    return _weigh(per_example, present, weights)


def _focus(cross_entropy: Array, gamma: float | Array) -> Array:
    """`(1 - p)^gamma * -log p`, from `-log p`."""
    if isinstance(gamma, int | float) and gamma == 0:
        return cross_entropy
    miss = -jnp.expm1(-cross_entropy)
    # At 0 a power below 1 has an infinite slope, which must not be taken.
    power = jnp.where(miss > 0, miss, 1) ** gamma
    return jnp.where(miss > 0, power, 0) * cross_entropy


def _inputs(
    logits: Array, labels: Array, where: Array | None, weights: Array | None
) -> tuple[Array, Array]:
    """Checks shapes; returns logits of float32 and the examples that are present."""
    shape = logits.shape[:-1]
    numbers = labels.shape == shape and jnp.issubdtype(labels.dtype, jnp.integer)
    if not numbers and labels.shape != logits.shape:
        raise ValueError(
            f"labels is {labels.dtype} {labels.shape} and logits {logits.shape}:"
            f" expected class numbers, int {shape}, or an entry a class, {logits.shape}"
        )
    present = labels >= 0 if numbers else jnp.ones(shape, bool)
    if where is not None:
        present = present & where
    if weights is not None:
        present = present & (weights != 0)
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), present


def _and(left: Array | None, right: Array) -> Array:
    return right if left is None else left & right


def _weigh(per_example: Array, present: Array, weights: Array | None) -> Array:
    if weights is not None:
        per_example = per_example * weights
    return jnp.where(present, per_example, 0)


@jax.custom_jvp
def _block_gradient(logits: Array, present: Array) -> Array:
    """Is `logits`, whose gradient is 0 where not present, even if it was NaN.

    Selecting in the gradient alone costs nothing measurable; doing so in the logits
    keeps XLA from fusing them into the softmax.
    """
    del present
    return logits


@_block_gradient.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]):
    (logits, present), (tangent, _) = primals, tangents
    return logits, jnp.where(present, tangent, 0)


def _check_gamma(gamma: float | Array) -> None:
    if isinstance(gamma, int | float) and gamma < 0:
        raise ValueError(f"gamma is {gamma}: expected an exponent of 0 or more")
