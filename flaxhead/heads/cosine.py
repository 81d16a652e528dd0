"""The cosine head: logits are scaled cosines to one direction a class."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxhead.base import Array, Head
from flaxhead.heads.dense import dense
from flaxhead.heads.dropout import Dropout, check_dropout
from flaxhead.heads.lifts import from_linen
from flaxhead.heads.normalize import length, unit
from flaxhead.heads.pool import check_input


def random_directions(key: Array, shape: tuple[int, ...]) -> Array:
    """Draws vectors along the last axis but one, uniform in direction, about 1 long."""
    return jax.random.normal(key, shape) / math.sqrt(shape[-2])


class Cosine(nn.Module):
    """Scaled cosine similarities; the attributes are `cosine`'s arguments."""

    classes: int
    scale: float
    learn_scale: bool
    dropout: float | Array

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps `[..., dim]` to float32 logits `[..., classes]`."""
        check_input("cosine", x)
        x = unit(Dropout(self.dropout)(x, train=train))
        directions = _Directions(self.classes, name="output")(x.shape[-1])
        scale = self.scale
        if self.learn_scale:
            # Its logarithm is learned: a step then changes any scale by a factor.
            start = jax.nn.initializers.constant(math.log(self.scale))
            scale = jnp.exp(self.param("log_scale", start, ()))
        # Dividing the few logits is cheaper than dividing the many weights.
        return dense(x, directions, train=train) * (
            scale / length(directions, axis=0)[0]
        )


class _Directions(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, dim: int) -> Array:
        return self.param("directions", random_directions, (dim, self.classes))


def cosine(
    classes: int,
    *,
    scale: float = 16.0,
    learn_scale: bool = True,
    dropout: float | Array = 0.0,
) -> Head:
    """A cosine head, `logits = scale * cos(x, direction of the class)`.

    Source: Gidaris and Komodakis, 2018, "Dynamic few-shot visual learning without
    forgetting"; the scale is learned as a logarithm as in Radford et al., 2021 (CLIP).

    Args:
      classes: the number of logits.
      scale: multiplier of the cosines, the start of a learned one.
      learn_scale: whether that multiplier is learned.
      dropout: rate at which inputs are dropped in training; may be a traced scalar.

    Returns:
      A `Head` with params `{"output": {"directions": [dim, classes]}}`, and
      `"log_scale": []` if it is learned.

    Raises:
      ValueError: if `scale` is not positive or `dropout` is not in `[0, 1)`, or when
        the head is given tokens.

    >>> import jax, jax.numpy as jnp
    >>> head = cosine(3)
    >>> params = head.init(jax.random.key(0), jnp.ones([5, 8]))
    >>> bool((abs(head.apply(params, jnp.ones([5, 8]))) <= 16).all())
    True
    """
    if scale <= 0:
        raise ValueError(f"scale is {scale}: expected a positive multiplier")
    check_dropout(dropout)
    return from_linen(Cosine(classes, scale, learn_scale, dropout))
