"""The multi-layer perceptron head."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxhead.base import Array, Head
from flaxhead.heads.dense import Dense
from flaxhead.heads.dropout import Dropout, check_dropout
from flaxhead.heads.lifts import from_linen
from flaxhead.heads.pool import check_input

ACTIVATIONS = {
    "gelu": jax.nn.gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}
"""Name -> elementwise function."""


class Mlp(nn.Module):
    """Hidden layers and a linear one; the attributes are `mlp`'s arguments."""

    classes: int
    width: int
    depth: int
    activation: str
    layer_norm: bool
    dropout: float | Array
    zero_init: bool

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps `[..., dim]` to float32 logits `[..., classes]`."""
        check_input("mlp", x)
        for layer in range(self.depth):
            x = Dense(self.width, name=f"hidden_{layer}")(x, train=train)
            if self.layer_norm:
                x = nn.LayerNorm(name=f"norm_{layer}")(x)
            x = ACTIVATIONS[self.activation](x)
            x = Dropout(self.dropout)(x, train=train)
        return Dense(self.classes, self.zero_init, name="output")(x, train=train)


def mlp(
    classes: int,
    *,
    width: int = 256,
    depth: int = 1,
    activation: str = "gelu",
    layer_norm: bool = False,
    dropout: float | Array = 0.0,
    zero_init: bool = True,
) -> Head:
    """A multi-layer perceptron: hidden layers, then a linear one.

    Args:
      classes: the number of logits.
      width: hidden units of each layer.
      depth: hidden layers, at least one.
      activation: a name from `ACTIVATIONS`.
      layer_norm: normalise each layer before its activation.
      dropout: rate at which hidden units are dropped in training; may be a traced
        scalar.
      zero_init: start the last layer at zero, where every class is equally likely.

    Returns:
      A `Head` with params `hidden_0`, `hidden_1`, ... and `output`, each a dict of
      `kernel` and `bias`, and `norm_0`, ... if `layer_norm`.

    Raises:
      ValueError: if `depth` or `width` is below 1, `activation` is unknown or `dropout`
        is not in `[0, 1)`, or when the head is given tokens.

    >>> import jax, jax.numpy as jnp
    >>> head = mlp(3, width=16, depth=2)
    >>> params = head.init(jax.random.key(0), jnp.ones([5, 8]))
    >>> sorted(params)
    ['hidden_0', 'hidden_1', 'output']
    """
    if depth < 1 or width < 1:
        raise ValueError(
            f"mlp got depth {depth} and width {width}: expected 1 or more of both"
            " (use linear for no hidden layer)"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation is {activation!r}: expected one of {', '.join(ACTIVATIONS)}"
        )
    check_dropout(dropout)
    return from_linen(
        Mlp(classes, width, depth, activation, layer_norm, dropout, zero_init)
    )
