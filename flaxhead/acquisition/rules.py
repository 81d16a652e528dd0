"""Rows that are unlike each other: one a cluster, the farthest, the most typical.

Each rule returns places `[k]` among the rows to choose from, those that are free first.
Rows are of length 1, or zeros.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from flaxhead.acquisition.clusters import kmeans
from flaxhead.base import Array
from flaxhead.heads.neighbours import nearest, nearest_others
from flaxhead.moments import divisor, exact

_BLOCK = 4096
_ROWS_AT_ONCE = 256
# Of a row that no one wants: it still belongs to a cluster.
_LEAST = 1e-6
# TypiClust's: neighbours that say how typical a row is, the most clusters, and the
# fewest rows of one that is not made of outliers.
_NEIGHBOURS = 20
_MOST_CLUSTERS = 500
_SMALL = 5


def one_a_cluster(
    key: Array, x: Array, weights: Array, scores: Array, free: Array, k: int
) -> Array:
    """Returns the row nearest to the centre of each of `k` clusters.

    Rows count by weight and score; of a cluster without rows, another gives a second.
    """
    best = jnp.max(scores, initial=0.0)
    shares = jnp.maximum(scores / divisor(best), _LEAST)
    found = kmeans(key, x, k, weights=jnp.where(free, weights * shares, 0))
    turn = places(found.cluster, found.distances, free, k)
    return jnp.lexsort((-scores, turn, ~free))[:k]


def core_set(x: Array, free: Array, labelled: Array, known: Array, k: int) -> Array:
    """Returns, again and again, the row least similar to any labelled or chosen one.

    Among equals, as all rows are where none is labelled, the one most like the mean.
    """
    reached = jnp.full(len(x), -jnp.inf)
    if len(labelled):
        reached, _ = lax.map(
            lambda row: nearest(row, labelled, known, 1, _BLOCK),
            x,
            batch_size=_ROWS_AT_ONCE,
        )
        reached = reached[:, 0]
    central = exact(x, exact(free.astype(jnp.float32), x))

    def pick(state: tuple[Array, Array], _: None):
        free, reached = state
        least = jnp.min(jnp.where(free, reached, jnp.inf))
        row = jnp.argmax(jnp.where(free & (reached == least), central, -jnp.inf))
        reached = jnp.maximum(reached, exact(x, x[row]))
        return (free.at[row].set(False), reached), row

    return lax.scan(pick, (free, reached), length=k)[1]


def typical(
    key: Array,
    x: Array,
    weights: Array,
    labelled: Array,
    pool: Array,
    free: Array,
    k: int,
    *,
    clusters: int,
) -> Array:
    """Returns the most typical rows of the clusters with the fewest labels.

    Each row that is chosen counts as a label of its cluster. Clusters are of all rows;
    `pool` numbers those to choose from, and `free` says which of them may be.
    """
    count = min(clusters, _MOST_CLUSTERS, len(x))
    cluster = kmeans(key, x, count, weights=weights).cluster
    present = weights > 0
    none = jnp.zeros(count, jnp.int32)
    sizes, labels = (none.at[cluster].add(rows) for rows in (present, labelled))
    distance = mean_distance(x, present, cluster, sizes)
    own, size = cluster[pool], sizes[cluster[pool]]
    covered = labels[own] + places(own, distance[pool], free, count)
    # Small clusters are outliers: they come after all others.
    return jnp.lexsort((-size, covered, size < _SMALL, ~free))[:k]


def mean_distance(x: Array, present: Array, cluster: Array, sizes: Array) -> Array:
    """Returns the mean distance of rows from their neighbours in their cluster.

    The 20 nearest ones, or half of the cluster if that is less; infinite for a row by
    itself. Its inverse is how typical a row is.
    """

    def one(row: Array) -> Array:
        own = present & (cluster == cluster[row])
        similarity, _ = nearest_others(row, x, own, _NEIGHBOURS, _BLOCK)
        distance = jnp.sqrt(jnp.maximum(2 - 2 * similarity, 0))
        count = jnp.clip(sizes[cluster[row]] // 2, 1, _NEIGHBOURS)
        counted = jnp.arange(len(distance)) < count
        return jnp.sum(jnp.where(counted, distance, 0)) / count

    return lax.map(one, jnp.arange(len(x)), batch_size=_ROWS_AT_ONCE)


def places(cluster: Array, distances: Array, free: Array, clusters: int) -> Array:
    """Returns the place of each row among the free ones of its cluster, from 0.

    The row of the smallest distance is first.
    """
    order = jnp.lexsort((distances, ~free, cluster))
    sizes = jnp.zeros(clusters, jnp.int32).at[cluster].add(1)
    before = jnp.cumsum(sizes) - sizes
    place = jnp.arange(len(cluster)) - before[cluster[order]]
    return jnp.zeros_like(place).at[order].set(place)
