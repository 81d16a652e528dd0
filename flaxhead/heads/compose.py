"""A head on something computed from its input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from flaxhead.base import Array, Head, Params, Tokens


def map_values(function: Callable[[Array], Array], x: Any) -> Any:
    """Applies a function to embeddings, leaving a padding mask as it is."""
    if isinstance(x, Tokens):
        return x._replace(values=function(x.values))
    return function(x)


def preprocess(head: Head, function: Callable[[Any], Any]) -> Head:
    """A head on `function(x)`, with the parameters of `head`."""

    def init(key: Array, x: Any) -> Params:
        return head.init(key, function(x))

    def apply(
        params: Params, x: Any, *, key: Array | None = None, train: bool = False
    ) -> Array:
        return head.apply(params, function(x), key=key, train=train)

    return Head(init, apply)


def attach(backbone: Callable[[Any], Any], head: Head) -> Head:
    """A head on top of a frozen backbone, from raw inputs to logits.

    Args:
      backbone: `(x) -> embeddings`, a pure function that holds its own parameters.
        No gradient flows into it.
      head: a head on those embeddings.

    Returns:
      A `Head` with the parameters of `head` alone.

    >>> import jax, jax.numpy as jnp
    >>> from flaxhead.heads import linear
    >>> head = attach(lambda images: images.mean(axis=(1, 2)), linear(2))
    >>> params = head.init(jax.random.key(0), jnp.ones([5, 4, 4, 3]))
    >>> params["output"]["kernel"].shape
    (3, 2)
    """
    return preprocess(head, lambda x: jax.lax.stop_gradient(backbone(x)))
