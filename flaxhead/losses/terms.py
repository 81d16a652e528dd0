"""What all losses share: who is absent, and how terms of classes become a loss."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from flaxhead.base import Array

Term = Callable[[Array], Array]
"""`-log p` of a class (of a label being on, or off) -> its loss, elementwise."""


def softmax_terms(
    logits: Array,
    labels: Array,
    where: Array | None,
    weights: Array | None,
    term: Term = lambda nats: nats,
) -> Array:
    """The loss `sum_c y_c term(-log p_c)` of classes that exclude each other."""
    logits, present = inputs(logits, labels, where, weights)
    logits = block_gradient(logits, present[..., None])
    if labels.ndim < logits.ndim:
        labels = jnp.where(present, labels, 0)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return weigh(term(nats), present, weights)
    terms = term(-jax.nn.log_softmax(logits))
    return weigh(jnp.sum(labels * terms, axis=-1), present, weights)


def sigmoid_terms(
    logits: Array,
    labels: Array,
    where: Array | None,
    weights: Array | None,
    on: Term | None = None,
    off: Term | None = None,
) -> Array:
    """The loss `sum_c y_c on(-log p_c) + (1 - y_c) off(-log(1 - p_c))`.

    Without `on` and `off` it is the cross-entropy, which costs less that way.
    """
    entries = None
    if where is not None and where.ndim == logits.ndim:
        entries, where = where, None
    logits, present = inputs(logits, labels, where, weights)
    targets = labels
    if labels.ndim < logits.ndim:
        targets = labels[..., None] == jnp.arange(logits.shape[-1])
    targets = targets.astype(logits.dtype)
    entries = both(entries, present[..., None] & ~jnp.isnan(targets))
    logits = block_gradient(logits, entries)
    # Twice as fast as two calls of softplus: log(1 + exp(|z|)) = |z| + tail.
    tail = jnp.log1p(jnp.exp(-jnp.abs(logits)))
    if on is None or off is None:
        terms = jnp.maximum(logits, 0) - targets * logits + tail
    else:
        positive = on(jnp.maximum(-logits, 0) + tail)
        negative = off(jnp.maximum(logits, 0) + tail)
        terms = targets * positive + (1 - targets) * negative
    per_example = jnp.sum(jnp.where(entries, terms, 0), axis=-1)
    return weigh(per_example, present, weights)


def focus(nats: Array, gamma: float | Array) -> Array:
    """`(1 - p)^gamma * -log p`, from `-log p`."""
    if isinstance(gamma, int | float) and gamma == 0:
        return nats
    miss = -jnp.expm1(-nats)
    # At 0 a power below 1 has an infinite slope, which must not be taken.
    power = jnp.where(miss > 0, miss, 1) ** gamma
    return jnp.where(miss > 0, power, 0) * nats


def inputs(
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


def both(left: Array | None, right: Array) -> Array:
    """Where both are; None is everywhere."""
    return right if left is None else left & right


def weigh(per_example: Array, present: Array, weights: Array | None) -> Array:
    """Multiplies by the weights; exactly 0 where absent."""
    if weights is not None:
        per_example = per_example * weights
    return jnp.where(present, per_example, 0)


@jax.custom_jvp
def block_gradient(logits: Array, present: Array) -> Array:
    """Is `logits`, whose gradient is 0 where not present, even if it was NaN.

    Selecting in the gradient alone costs nothing measurable; doing so in the logits
    keeps XLA from fusing them into the softmax.
    """
    del present
    return logits


@block_gradient.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]):
    (logits, present), (tangent, _) = primals, tangents
    return logits, jnp.where(present, tangent, 0)


def check_exponent(name: str, value: float | Array) -> None:
    """Raises a ValueError for a negative number; a traced one can't be looked at."""
    if isinstance(value, int | float) and value < 0:
        raise ValueError(f"{name} is {value}: expected a number of 0 or more")
