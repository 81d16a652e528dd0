"""Embeddings of length one."""

from __future__ import annotations

import jax.numpy as jnp

from flaxhead.base import Array, Head
from flaxhead.heads.compose import map_values, preprocess


def length(x: Array, *, axis: int) -> Array:
    """The Euclidean norm along an axis, which is kept; 1 for a vector of zeros."""
    squared = jnp.sum(x * x, axis=axis, keepdims=True)
    # Inside the root: its gradient at 0 is infinite, in the branch not taken too.
    return jnp.sqrt(jnp.where(squared > 0, squared, 1))


def unit(x: Array) -> Array:
    """Divides vectors `[..., dim]` by their norm, in float32; zeros stay zeros."""
    x = x.astype(jnp.float32)
    return x / length(x, axis=-1)


def l2_normalize(head: Head) -> Head:
    """A head on embeddings divided by their Euclidean norm.

    Args:
      head: any head. Of tokens, each is normalised.

    Returns:
      A `Head` with the parameters of `head`. An embedding of zeros stays one, and
      gradients are finite everywhere.

    >>> import jax, jax.numpy as jnp
    >>> from flaxhead.heads import linear
    >>> head = l2_normalize(linear(2, zero_init=False))
    >>> params = head.init(jax.random.key(0), jnp.ones([1, 4]))
    >>> near, far = jnp.full([1, 4], 0.5), jnp.full([1, 4], 64.0)
    >>> bool((head.apply(params, near) == head.apply(params, far)).all())
    True
    """
    return preprocess(head, lambda x: map_values(unit, x))
