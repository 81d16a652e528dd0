"""K-means as one pure function: centres drawn by k-means++, then Lloyd's algorithm."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flaxhead.base import Array
from flaxhead.moments import class_shares, divisor, exact, rough_mean, sum_rows

_ROWS_AT_ONCE = 1024


class Clusters(NamedTuple):
    """Rows in groups about their means.

    Attributes:
      centres: `float32 [k, dim]`.
      cluster: `int32 [rows]`, the number of each row's nearest centre.
      distances: `float32 [rows]`, squared, of each row from that centre. Their sum,
        times the weights, is the inertia.
    """

    centres: Array
    cluster: Array
    distances: Array


@partial(jax.jit, static_argnames="k")
def kmeans(
    key: Array,
    x: Array,
    k: int,
    *,
    iterations: int = 100,
    weights: Array | None = None,
) -> Clusters:
    """Finds `k` centres with a small sum of squared distances to the rows about them.

    It ends early once no row changes its cluster. A cluster that loses all of its rows
    starts anew from the row that is farthest from its centre.

    Args:
      key: typed key, of the first centres.
      x: `[rows, dim]`, of any float type; distances are Euclidean, in memory for 1024
        rows at a time.
      k: clusters; static.
      iterations: the most that are taken; may be traced.
      weights: `[rows]`, how much a row counts; one of weight 0 is absent, whatever it
        holds, and what is returned for it means nothing. None: 1 for all.

    Returns:
      `Clusters`. Of fewer than `k` different rows some are empty.

    Raises:
      ValueError: for tokens, or `k` below 1 or above the number of rows.

    Source: Lloyd, 1982, "Least squares quantization in PCM"; Arthur and Vassilvitskii,
    2007, "k-means++: the advantages of careful seeding".

    >>> x = jnp.array([[0.0], [2.0], [10.0], [12.0]])
    >>> found = kmeans(jax.random.key(0), x, 2)
    >>> sorted(found.centres.ravel().tolist()), found.distances.tolist()
    ([1.0, 11.0], [1.0, 1.0, 1.0, 1.0])
    """
    if x.ndim != 2 or not 1 <= k <= len(x):
        raise ValueError(
            f"kmeans got x of shape {list(x.shape)} and k {k}: expected [rows, dim] and"
            " 1 to as many as there are rows; pool tokens first"
        )
    weights = jnp.ones(len(x)) if weights is None else weights.astype(jnp.float32)
    # About the mean, so that rows far from zero lose nothing to rounding.
    mean = rough_mean(x, weights)
    x = jnp.where((weights > 0)[:, None], x.astype(jnp.float32) - mean, 0)

    def turn(state: tuple[Clusters, Array, Array]) -> tuple[Clusters, Array, Array]:
        clusters, _, turns = state
        found = assign(x, update(x, weights, clusters))
        moved = jnp.any((found.cluster != clusters.cluster) & (weights > 0))
        return found, moved, turns + 1

    start = assign(x, first_centres(key, x, weights, k))
    found, _, _ = lax.while_loop(
        lambda state: state[1] & (state[2] < iterations),
        turn,
        (start, jnp.bool_(True), jnp.int32(0)),
    )
    return found._replace(centres=found.centres + mean)


def first_centres(key: Array, x: Array, weights: Array, k: int) -> Array:
    """Draws rows as centres, each by the squared distance to those drawn before."""

    def draw(distances: Array, key: Array) -> tuple[Array, Array]:
        chances = jnp.log(weights * distances)
        # Fewer different rows than centres: one of them again.
        left = jnp.any(chances > -jnp.inf)
        row = jax.random.categorical(key, jnp.where(left, chances, jnp.log(weights)))
        own = jnp.sum((x - x[row]) ** 2, axis=1)
        return jnp.minimum(distances, own), x[row]

    keys = jax.random.split(key, k)
    return lax.scan(draw, jnp.full(len(x), jnp.inf), keys)[1]


def assign(x: Array, centres: Array) -> Clusters:
    """Gives each row to its nearest centre, the first among equals."""
    lengths = jnp.sum(centres * centres, axis=1)

    def one(row: Array) -> tuple[Array, Array]:
        nearest = jnp.argmin(lengths - 2 * exact(centres, row))
        return nearest.astype(jnp.int32), jnp.sum((row - centres[nearest]) ** 2)

    return Clusters(centres, *lax.map(one, x, batch_size=_ROWS_AT_ONCE))


def update(x: Array, weights: Array, clusters: Clusters) -> Array:
    """Returns the means of the clusters, and for empty ones the rows farthest off."""
    k = len(clusters.centres)

    def sums(rows: tuple[Array, Array], weights: Array) -> tuple[Array, Array]:
        x, cluster = rows
        shares = weights[:, None] * class_shares(cluster, k)
        return jnp.sum(shares, axis=0), exact(shares.T, x)

    counts, totals = sum_rows(sums, (x, clusters.cluster), weights, axis=None)
    empty = counts == 0
    means = jnp.where(
        empty[:, None], clusters.centres, totals / divisor(counts)[:, None]
    )
    far, rows = lax.top_k(weights * clusters.distances, k)
    turn = jnp.cumsum(empty) - 1  # The first empty one gets the farthest row.
    starts = empty & (far[turn] > 0)
    return jnp.where(starts[:, None], x[rows[turn]], means)
