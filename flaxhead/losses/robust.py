"""Losses that labels which are wrong disturb less than they do the cross-entropy.

Both are of the form `sum_c y_c f(p_c)` and bounded, or nearly, where `p_c` goes to 0:
an example whose label the head is sure to be wrong pulls no harder than others.
"""

from __future__ import annotations

import jax.numpy as jnp

from flaxhead.base import Array, Loss
from flaxhead.losses.terms import check_exponent, softmax_terms

_LOG_OF_ZERO = -4.0


def generalized_cross_entropy(q: float | Array) -> Loss:
    """Between the cross-entropy and the mean absolute error: `(1 - p^q) / q`.

    Its gradient is that of the cross-entropy times `p^q`.

    Source: Zhang and Sabuncu, 2018, "Generalized cross entropy loss for training deep
    neural networks with noisy labels".

    Args:
      q: 0 is the cross-entropy (the limit), 1 the absolute error `1 - p`; the paper's
        is 0.7. May be a traced scalar.

    Returns:
      A loss; arguments as of `softmax_cross_entropy`.

    Raises:
      ValueError: if `q` is negative.

    >>> import jax.numpy as jnp
    >>> generalized_cross_entropy(0.5)(jnp.zeros([1, 4]), jnp.array([0]))
    Array([1.], dtype=float32)
    """
    check_exponent("q", q)

    def term(nats: Array) -> Array:
        if isinstance(q, int | float) and q == 0:
            return nats
        # At q = 0, should it be traced, the quotient's limit.
        power = jnp.where(q == 0, 1, q)
        return jnp.where(q == 0, nats, -jnp.expm1(-power * nats) / power)

    def loss(
        logits: Array,
        labels: Array,
        *,
        where: Array | None = None,
        weights: Array | None = None,
    ) -> Array:
        return softmax_terms(logits, labels, where, weights, term)

    return loss


def symmetric_cross_entropy(alpha: float | Array, beta: float | Array) -> Loss:
    """`alpha` times the cross-entropy and `beta` times the reverse one.

    The reverse one, `-sum_k p_k log y_k` with -4 for the log of 0, is `4 (1 - p_c)` of
    the class `c` of the label. A soft label costs the average of its classes.

    Source: Wang et al., 2019, "Symmetric cross entropy for robust learning with noisy
    labels".

    Args:
      alpha: 0 or more; may be a traced scalar, and so may `beta`.
      beta: 0 or more; 0, with `alpha` 1, is the cross-entropy.

    Returns:
      A loss; arguments as of `softmax_cross_entropy`.

    Raises:
      ValueError: if one is negative.

    >>> import jax.numpy as jnp
    >>> loss = symmetric_cross_entropy(0.0, 1.0)
    >>> loss(jnp.zeros([1, 2]), jnp.array([0]))  # 4 * (1 - 1/2)
    Array([2.], dtype=float32)
    """
    check_exponent("alpha", alpha)
    check_exponent("beta", beta)

    def term(nats: Array) -> Array:
        return alpha * nats + beta * _LOG_OF_ZERO * jnp.expm1(-nats)

    def loss(
        logits: Array,
        labels: Array,
        *,
        where: Array | None = None,
        weights: Array | None = None,
    ) -> Array:
        return softmax_terms(logits, labels, where, weights, term)

    return loss
