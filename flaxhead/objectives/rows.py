"""What is random in a row, and sums and means over the rows of all devices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from flaxhead.base import Array, Batch, Head, Params, Sums

_NO_ROW = 2**32 - 1  # Rows are numbered by int32: no row's key is taken.


def known(batch: Batch) -> Array:
    """Returns `bool [batch]`, the present rows that have a whole label."""
    labels = batch.labels
    given = labels >= 0 if labels.ndim == 1 else ~jnp.any(jnp.isnan(labels), axis=1)
    return given & (batch.weights > 0)


def labelled(batch: Batch) -> Array:
    """Returns `bool [batch]`, the present rows of whose label a part at least is there.

    Of several labels a row some may be missing (NaN).
    """
    labels = batch.labels
    given = labels >= 0 if labels.ndim == 1 else ~jnp.all(jnp.isnan(labels), axis=1)
    return given & (batch.weights > 0)


def row_keys(key: Array, index: Array) -> Array:
    """Returns one key a row, of the row's number in the whole data."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def side_key(key: Array, number: int) -> Array:
    """Returns a key of another purpose than the rows' own noise.

    What is added to an objective then leaves the objective's noise as it was.
    """
    return jax.random.fold_in(jax.random.fold_in(key, _NO_ROW), number)


def train_logits(
    head: Head, params: Params, x: Any, keys: Array, weights: Array
) -> Array:
    """Returns the head's logits in training, 0 in the rows of weight 0."""
    logits = head.apply(params, x, key=keys, train=True)
    return jnp.where((weights > 0)[:, None], logits, 0)


def row_sums(values: Array, batch: Batch) -> Sums:
    """Returns the weighted sum of a value a row, over the rows of weight above 0."""
    weights = jnp.where(batch.weights > 0, batch.weights, 0)
    total = jnp.sum(jnp.where(weights > 0, weights * values, 0))
    return Sums(total, jnp.sum(weights))


def row_mean(values: Array, weights: Array, axis: str | None) -> Array:
    """Returns the weighted mean over the rows of all devices; 0 without a row.

    Args:
      values: `[rows, ...]`, without gradient: it is not taken across devices.
      weights: `[rows]`; a row of weight 0 is absent, whatever it holds.
      axis: name of the device axis, None for one device.
    """
    weights = jnp.expand_dims(weights, tuple(range(1, values.ndim)))
    total = jnp.sum(jnp.where(weights > 0, weights * values, 0), axis=0)
    count = jnp.sum(jnp.where(weights > 0, weights, 0))
    if axis is not None:
        total, count = jax.lax.psum((total, count), axis)
    return total / jnp.where(count > 0, count, 1)
