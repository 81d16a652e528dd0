"""The linear head: softmax or logistic regression on embeddings."""

from __future__ import annotations

import flax.linen as nn

from flaxhead.base import Array, Head
from flaxhead.heads.dense import Dense
from flaxhead.heads.dropout import Dropout, check_dropout
from flaxhead.heads.lifts import from_linen
from flaxhead.heads.pool import check_input


class Linear(nn.Module):
    """`x @ kernel + bias`; the attributes are `linear`'s arguments."""

    classes: int
    zero_init: bool
    dropout: float | Array

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps `[..., dim]` to float32 logits `[..., classes]`."""
        check_input("linear", x)
        x = Dropout(self.dropout)(x, train=train)
        return Dense(self.classes, self.zero_init, name="output")(x, train=train)


def linear(
    classes: int, *, zero_init: bool = True, dropout: float | Array = 0.0
) -> Head:
    """A linear head, `logits = x @ kernel + bias`.

    Args:
      classes: the number of logits.
      zero_init: start at zero, where every class is equally likely.
      dropout: rate at which inputs are dropped in training; may be a traced scalar.

    Returns:
      A `Head` with params `{"output": {"kernel": [dim, classes], "bias": [classes]}}`.

    Raises:
      ValueError: if `dropout` is not in `[0, 1)`, or when the head is given tokens.

    >>> import jax, jax.numpy as jnp
    >>> head = linear(3)
    >>> params = head.init(jax.random.key(0), jnp.ones([5, 8]))
    >>> head.apply(params, jnp.ones([5, 8])).shape
    (5, 3)
    """
    check_dropout(dropout)
    return from_linen(Linear(classes, zero_init, dropout))
