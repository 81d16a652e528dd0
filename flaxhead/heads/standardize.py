"""Features of mean zero and deviation one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from flaxhead.base import Array, Head, Tokens
from flaxhead.heads.compose import map_values, preprocess

_CHUNK = 4096


def standardize(head: Head, mean: Array, std: Array) -> Head:
    """A head on `(x - mean) / std`, feature by feature.

    Args:
      head: any head. Of tokens, each is standardised.
      mean: `[dim]`, for example from `statistics`; may be traced.
      std: `[dim]`; a feature of deviation 0 is centred only.

    Returns:
      A `Head` with the parameters of `head`.

    >>> import jax, jax.numpy as jnp
    >>> from flaxhead.heads import linear
    >>> x = jnp.array([[1.0, 7.0], [3.0, 7.0]])
    >>> head = standardize(linear(2), *statistics(x, jnp.ones(2)))
    >>> params = head.init(jax.random.key(0), x)
    >>> params["output"]["kernel"].shape
    (2, 2)
    """
    scale = jnp.where(std == 0, 1, std)

    def rescale(values: Array) -> Array:
        return (values.astype(jnp.float32) - mean) / scale

    return preprocess(head, lambda x: map_values(rescale, x))


@jax.jit
def statistics(x: Any, weights: Array) -> tuple[Array, Array]:
    """The weighted mean and standard deviation of each feature.

    The mean is corrected by a second pass and the squares are summed about it, so that
    float32 loses nothing to features far from zero (Chan, Golub and LeVeque, 1983,
    "Algorithms for computing the sample variance"). The deviation is the population's
    (divided by the sum of weights), and exactly 0 for a constant feature.

    Args:
      x: `[rows, dim]`, `[rows, tokens, dim]`, or `Tokens`, of which padding is left
        out; every real token counts as a row.
      weights: `[rows]`; rows of weight 0 are absent, whatever they hold.

    Returns:
      float32 `(mean, std)`, each `[dim]`; zeros if all weights are zero.

    >>> import jax.numpy as jnp
    >>> mean, std = statistics(jnp.array([[1.0], [3.0], [9.0]]), jnp.array([1, 1, 0]))
    >>> mean.tolist(), std.tolist()
    ([2.0], [1.0])
    """
    values = x.values if isinstance(x, Tokens) else x
    mask = x.mask if isinstance(x, Tokens) else jnp.ones(values.shape[:-1], bool)
    weight = jnp.where(mask, weights.reshape(-1, *[1] * (mask.ndim - 1)), 0)
    weight = weight.astype(jnp.float32)
    rows, dim = len(values), values.shape[-1]
    size = min(rows, _CHUNK)
    count = jnp.sum(weight)

    def average(function: Callable[[Array], Array]) -> Array:
        """Of a function of the features, of which only a chunk is widened."""

        def add(number: Array, total: Array) -> Array:
            begin = number * size
            # The last chunk is moved back into the rows; those it repeats weigh 0.
            start = jnp.minimum(begin, rows - size)
            part = lax.dynamic_slice_in_dim(values, start, size).reshape(-1, dim)
            fresh = start + jnp.arange(size) >= begin
            own = lax.dynamic_slice_in_dim(weight, start, size)
            own = jnp.where(fresh.reshape(-1, *[1] * (own.ndim - 1)), own, 0).ravel()
            part = jnp.where(own[:, None] > 0, part.astype(jnp.float32), 0)
            return total + jnp.sum(own[:, None] * function(part), axis=0)

        total = lax.fori_loop(0, -(-rows // size), add, jnp.zeros(dim))
        return total / jnp.where(count > 0, count, 1)

    mean = average(lambda features: features)
    mean = mean + average(lambda features: features - mean)
    return mean, jnp.sqrt(average(lambda features: (features - mean) ** 2))
