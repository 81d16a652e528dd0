"""Inverted dropout whose rate can be an array, and so be swept."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxhead.base import Array


def check_dropout(rate: float | Array) -> None:
    """Refuses a rate known before tracing that is not in `[0, 1)`.

    Raises:
      ValueError: if `rate` is a Python number outside of `[0, 1)`.
    """
    if isinstance(rate, int | float) and not 0 <= rate < 1:
        raise ValueError(f"dropout is {rate}: expected a rate in [0, 1)")


class Dropout(nn.Module):
    """Zeroes units at random and scales up the others, so that the mean is kept.

    Source: Srivastava et al., 2014, "Dropout: a simple way to prevent neural networks
    from overfitting" (in its inverted form).

    Attributes:
      rate: share of units that are zeroed. A Python 0 costs nothing and draws nothing;
        an array of value 0 is an exact identity too.
    """

    rate: float | Array

    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps `x` to float32 of the same shape; the identity unless `train`."""
        if not train or (isinstance(self.rate, int | float) and self.rate == 0):
            return x
        kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, x.shape)
        return jnp.where(kept, x.astype(jnp.float32) / (1 - self.rate), 0)
