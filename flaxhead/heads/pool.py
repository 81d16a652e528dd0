"""Tokens -> one vector a row."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from flaxhead.base import Array, Head, Tokens
from flaxhead.heads.compose import preprocess


def _mean(values: Array, mask: Array) -> Array:
    total = jnp.sum(jnp.where(mask, values.astype(jnp.float32), 0), axis=1)
    return total / jnp.maximum(jnp.sum(mask, axis=1), 1)


def _max(values: Array, mask: Array) -> Array:
    largest = jnp.max(jnp.where(mask, values, -jnp.inf), axis=1)
    return jnp.where(jnp.any(mask, axis=1), largest, 0)


def _cls(values: Array, mask: Array) -> Array:
    first = jnp.take_along_axis(values, jnp.argmax(mask, axis=1, keepdims=True), axis=1)
    return jnp.where(jnp.any(mask, axis=1), first[:, 0], 0)


POOLINGS = {"mean": _mean, "max": _max, "cls": _cls}
"""Name -> `(values [batch, tokens, dim], mask [batch, tokens, 1]) -> [batch, dim]`."""


def check_input(head_name: str, x: Any) -> None:
    """Refuses tokens where a head expects one embedding a row.

    Args:
      head_name: the head's name, for the message.
      x: what the head was given.

    Raises:
      ValueError: if `x` is `Tokens` or an array of more than two dimensions.
    """
    values = x.values if isinstance(x, Tokens) else x
    if values.ndim > 2:
        raise ValueError(
            f"the {head_name} head got tokens of shape {values.shape} and expected"
            " embeddings [batch, dim]: pool them first, by"
            f" {', '.join(POOLINGS)} (flaxhead.pool, or pool in the head's config)"
        )


def pool(head: Head, how: str) -> Head:
    """A head on tokens, which are first made one vector a row.

    Args:
      head: a head on `[batch, dim]`.
      how: `mean` or `max` over the real tokens, or `cls`, the first real token.

    Returns:
      A `Head` on `[batch, tokens, dim]` or `Tokens`, with the parameters of `head`.
      A row without a real token is pooled to zeros.

    Raises:
      ValueError: if `how` is unknown, or when the head is given no tokens.

    >>> import jax, jax.numpy as jnp
    >>> from flaxhead.heads import linear
    >>> head = pool(linear(2), "mean")
    >>> params = head.init(jax.random.key(0), jnp.ones([5, 7, 3]))
    >>> head.apply(params, jnp.ones([5, 7, 3])).shape
    (5, 2)
    """
    if how not in POOLINGS:
        raise ValueError(f"how is {how!r}: expected one of {', '.join(POOLINGS)}")

    def pooled(x: Any) -> Array:
        values = x.values if isinstance(x, Tokens) else x
        if values.ndim != 3:
            raise ValueError(
                f"pool({how!r}) got embeddings of shape {values.shape} and expected"
                " tokens [batch, tokens, dim]: leave pooling out for one vector a row"
            )
        mask = x.mask if isinstance(x, Tokens) else jnp.ones(values.shape[:2], bool)
        return POOLINGS[how](values, mask[..., None])

    return preprocess(head, pooled)
