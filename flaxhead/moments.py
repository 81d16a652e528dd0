"""Class counts, means and scatter: what closed-form heads need to know of the rows.

Moments add: those of a batch are the sum of those of its parts, in whatever order and
on whatever device the parts came. Everything is taken about means, so float32 loses
nothing to features far from zero.

Source: Chan, Golub and LeVeque, 1983, "Algorithms for computing the sample variance".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flaxhead.base import Array, PyTree

_CHUNK = 4096


class Moments(NamedTuple):
    """Moments of weighted rows. Classes without rows have counts and means of 0.

    Attributes:
      counts: `float32 [classes]`, the sum of the weights of each class.
      means: `float32 [classes, dim]`, the mean of each class.
      scatter: `float32 [dim, dim]`, the weighted sum over rows of `r r^T`, where `r` is
        a row less the mean of its class.
    """

    counts: Array
    means: Array
    scatter: Array


class Pooled(NamedTuple):
    """Moments of all rows together, whatever their class.

    Attributes:
      count: `float32 []`, the sum of the weights.
      mean: `float32 [dim]`.
      scatter: `float32 [dim, dim]`, the weighted sum over rows of `r r^T`, where `r` is
        a row less the mean of all.
    """

    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]
    mean: Array
    scatter: Array


def class_moments(
    x: Array, labels: Array, weights: Array, *, classes: int, axis: str | None = None
) -> Moments:
    """Takes the moments of rows, in chunks, each class about its own mean.

    Args:
      x: `[rows, dim]`, any float type; widened a chunk at a time.
      labels: `int32 [rows]` (negative: absent), or `float32 [rows, classes]` soft
        labels that sum to 1: such a row is a part of a row of each class.
      weights: `[rows]`; rows of weight 0 are absent, whatever they hold.
      classes: how many classes there are.
      axis: name of the `pmap` axis over which the rows are split, if they are.

    Returns:
      `Moments`, the same on all devices.

    >>> import jax.numpy as jnp
    >>> x, labels = jnp.array([[1.0], [3.0], [9.0]]), jnp.array([0, 0, 1])
    >>> moments = class_moments(x, labels, jnp.ones(3), classes=2)
    >>> moments.means.ravel().tolist(), moments.scatter.tolist()
    ([2.0, 9.0], [[2.0]])
    """
    weights = row_weights(labels, weights)
    shift = rough_mean(x, weights, axis=axis)

    def total(function: Callable[[tuple[Array, Array], Array], PyTree]) -> Any:
        return sum_rows(function, (x, labels), weights, axis=axis)

    def sums(rows: tuple[Array, Array], weights: Array) -> tuple[Array, Array]:
        x, labels = rows
        shares = weights[:, None] * class_shares(labels, classes)
        return jnp.sum(shares, axis=0), exact(shares.T, x - shift)

    counts, offsets = total(sums)
    offsets = offsets / divisor(counts)[:, None]

    def squares(rows: tuple[Array, Array], weights: Array) -> Array:
        x, labels = rows
        if labels.ndim == 1:
            centred = x - shift - offsets[labels]
            return exact(centred.T, weights[:, None] * centred)
        # A row between classes is as far from each of its classes as those are from
        # their average, and as it is from that average.
        centres = exact(labels, offsets)
        centred = x - shift - centres
        spread = exact(offsets.T, exact(weights, labels)[:, None] * offsets)
        spread -= exact(centres.T, weights[:, None] * centres)
        return exact(centred.T, weights[:, None] * centred) + spread

    means = jnp.where(counts[:, None] > 0, shift + offsets, 0)
    return Moments(counts, means, total(squares))


def add(a: Moments, b: Moments) -> Moments:
    """Moments of the rows of both, exactly; with fewer classes, the others are empty.

    >>> import jax.numpy as jnp
    >>> x, weights = jnp.array([[1.0], [3.0], [9.0]]), jnp.ones(3)
    >>> old = class_moments(x, jnp.array([0, 0, 0]), weights, classes=1)
    >>> new = class_moments(x, jnp.array([0, 1, 1]), weights, classes=2)
    >>> add(old, new).counts.tolist(), add(old, new).means.ravel().tolist()
    ([4.0, 2.0], [3.5, 6.0])
    """
    classes = max(len(a.counts), len(b.counts))
    a, b = _with_classes(a, classes), _with_classes(b, classes)
    counts = a.counts + b.counts
    share = b.counts / divisor(counts)
    step = b.means - a.means
    between = exact(step.T, (a.counts * share)[:, None] * step)
    means = a.means + share[:, None] * step
    return Moments(counts, means, a.scatter + b.scatter + between)


def pooled(moments: Moments) -> Pooled:
    """Moments of all rows about their common mean.

    >>> import jax.numpy as jnp
    >>> x, labels = jnp.array([[1.0], [3.0], [8.0]]), jnp.array([0, 0, 1])
    >>> all_rows = pooled(class_moments(x, labels, jnp.ones(3), classes=2))
    >>> all_rows.mean.tolist(), all_rows.scatter.tolist()
    ([4.0], [[26.0]])
    """
    count = jnp.sum(moments.counts)
    mean = exact(moments.counts, moments.means) / divisor(count)
    # Its rounding is that of sums far from zero: corrected by sums close to it.
    mean += exact(moments.counts, moments.means - mean) / divisor(count)
    offsets = moments.means - mean
    between = exact(offsets.T, moments.counts[:, None] * offsets)
    return Pooled(count, mean, moments.scatter + between)


def rough_mean(x: Array, weights: Array, *, axis: str | None = None) -> Array:
    """The mean `[dim]` of rows, but for the rounding of sums far from zero.

    Close to the mean is enough for a shift, about which sums then lose nothing.
    """

    def sums(x: Array, weights: Array) -> tuple[Array, Array]:
        return exact(weights, x), jnp.sum(weights)

    total, count = sum_rows(sums, x, weights, axis=axis)
    return total / divisor(count)


def weighted_mean(x: Array, weights: Array, *, axis: str | None = None) -> Array:
    """The mean `[dim]` of rows, corrected by a second pass; zeros for no rows.

    >>> import jax.numpy as jnp
    >>> weighted_mean(jnp.array([[1.0], [4.0]]), jnp.array([2.0, 1.0])).tolist()
    [2.0]
    """
    mean = rough_mean(x, weights, axis=axis)

    def sums(x: Array, weights: Array) -> tuple[Array, Array]:
        return exact(weights, x - mean), jnp.sum(weights)

    rest, count = sum_rows(sums, x, weights, axis=axis)
    return mean + rest / divisor(count)


def sum_rows(
    function: Callable[[Any, Array], PyTree],
    rows: PyTree,
    weights: Array,
    *,
    axis: str | None,
    chunk: int = _CHUNK,
) -> Any:
    """Sums over rows what a function makes of a chunk of them.

    Args:
      function: `(rows, weights) -> sums`, of a chunk. Float arrays are float32, and
        rows of weight 0 are zeros, whatever they were.
      rows: arrays of a leading axis `[rows]`.
      weights: `[rows]`.
      axis: name of the `pmap` axis over which the rows are split, if they are.
      chunk: how many rows are widened at a time.
    """
    count = len(weights)
    size = min(count, chunk)

    def part(number: int | Array) -> PyTree:
        begin = number * size
        # The last chunk is moved back into the rows; those it repeats weigh 0.
        start = jnp.minimum(begin, count - size)

        def take(array: Array) -> Array:
            return lax.dynamic_slice_in_dim(array, start, size)

        own = jnp.where(start + jnp.arange(size) >= begin, take(weights), 0)

        def present(array: Array) -> Array:
            array = take(array)
            if jnp.issubdtype(array.dtype, jnp.floating):
                array = array.astype(jnp.float32)
            return jnp.where((own > 0).reshape(-1, *[1] * (array.ndim - 1)), array, 0)

        return function(jax.tree.map(present, rows), own)

    if count == size:
        total = part(0)
    else:
        empty = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(part, 0)
        )
        total = lax.fori_loop(
            0,
            -(-count // size),
            lambda number, total: jax.tree.map(jnp.add, total, part(number)),
            empty,
        )
    return total if axis is None else lax.psum(total, axis)


def row_weights(labels: Array, weights: Array) -> Array:
    """Weights `[rows]`, 0 where a row has no label at all (-1, or all entries NaN)."""
    if jnp.issubdtype(labels.dtype, jnp.integer):
        labelled = labels >= 0
    else:
        labelled = ~jnp.all(jnp.isnan(labels), axis=-1)
    return jnp.where(labelled, weights, 0).astype(jnp.float32)


def class_shares(labels: Array, classes: int) -> Array:
    """How much of each class a row is, `float32 [rows, classes]`."""
    return labels if labels.ndim == 2 else jax.nn.one_hot(labels, classes)


def exact(a: Array, b: Array) -> Array:
    """A matrix product in full float32, on accelerators too."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def divisor(count: Array) -> Array:
    """A count to divide by, 1 instead of 0."""
    return jnp.where(count > 0, count, 1)


def _with_classes(moments: Moments, classes: int) -> Moments:
    more = classes - len(moments.counts)
    return Moments(
        jnp.pad(moments.counts, (0, more)),
        jnp.pad(moments.means, ((0, more), (0, 0))),
        moments.scatter,
    )
