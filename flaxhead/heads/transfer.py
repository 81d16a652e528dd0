"""A trained head for other classes: its last layer replaced, or extended."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from flaxhead.base import Array, Params
from flaxhead.heads.cosine import random_directions


def replace_classes(params: Params, classes: int, *, key: Array) -> Params:
    """Starts the last layer anew for other classes and keeps all layers before it.

    Args:
      params: of a `linear`, `mlp` or `cosine` head.
      classes: how many classes the new last layer has.
      key: typed key; only a cosine head's new directions are random, others start at 0.

    Raises:
      ValueError: parameters of another kind, or no classes.

    >>> import jax, jax.numpy as jnp
    >>> from flaxhead.heads import mlp
    >>> params = mlp(3, width=8).init(jax.random.key(0), jnp.ones([1, 4]))
    >>> replace_classes(params, 5, key=jax.random.key(1))["output"]["kernel"].shape
    (8, 5)
    """
    return _new_output(params, classes, key, keep=0)


def extend_classes(params: Params, classes: int, *, key: Array) -> Params:
    """Adds classes to a trained head and keeps the old ones bit for bit.

    Args:
      params: of a `linear`, `mlp` or `cosine` head.
      classes: how many classes there are afterwards, the old ones first.
      key: typed key; only a cosine head's new directions are random, others start at 0.

    Raises:
      ValueError: parameters of another kind, or fewer classes than before.

    >>> import jax, jax.numpy as jnp
    >>> from flaxhead.heads import linear
    >>> params = linear(3).init(jax.random.key(0), jnp.ones([1, 4]))
    >>> extend_classes(params, 5, key=jax.random.key(1))["output"]["bias"].shape
    (5,)
    """
    output = _output(params)
    before = next(iter(output.values())).shape[-1]
    if classes < before:
        raise ValueError(
            f"classes is {classes}, but the head has {before} already; expected at "
            "least as many (replace_classes starts anew)"
        )
    return _new_output(params, classes, key, keep=before)


def _new_output(params: Params, classes: int, key: Array, *, keep: int) -> Params:
    if classes < 1:
        raise ValueError(f"classes is {classes}; expected at least 1")

    def grow(name: str, leaf: Array) -> Array:
        shape = (*leaf.shape[:-1], classes - keep)
        new = (
            random_directions(key, shape) if name == "directions" else jnp.zeros(shape)
        )
        return jnp.concatenate([leaf[..., :keep], new.astype(leaf.dtype)], axis=-1)

    output = {name: grow(name, leaf) for name, leaf in _output(params).items()}
    return {**params, "output": output}


def _output(params: Any) -> dict[str, Array]:
    output = params.get("output") if isinstance(params, dict) else None
    if not isinstance(output, dict) or not {"kernel", "directions"} & set(output):
        raise ValueError(
            "params has no last layer named 'output'; expected those of a linear, mlp "
            "or cosine head"
        )
    return output
