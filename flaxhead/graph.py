"""A graph of nearest rows, and what it says of the rows that have no label.

Embeddings of a class lie together, so labels can be spread along the edges between
rows that are alike. Everything here is a pure function of static shapes: a row has `k`
edges, and the matrix is never dense.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.sparse.linalg import cg
from jax.typing import ArrayLike

from flaxhead.base import Array
from flaxhead.heads.neighbours import nearest, nearest_others
from flaxhead.heads.normalize import unit
from flaxhead.moments import divisor, exact

_ROWS_AT_ONCE = 1024
_ROWS_OF_A_PART = 65536  # on the host
_ROWS_OF_A_CELL = 39  # at least, for faiss to find its centre
_MOST = 1000  # iterations of a solver
_BALANCING = 100


class Graph(NamedTuple):
    """A symmetric graph `S = D^-1/2 (W + W') D^-1/2`, a row's own edges `W` kept.

    Attributes:
      neighbours: `int32 [rows, k]`, where a row's edges go.
      weights: `float32 [rows, k]`, of `D^-1/2 W D^-1/2`; 0 where there is no edge.
      degrees: `float32 [rows]`, sums of the rows of `W + W'`, before the division.
    """

    neighbours: Array
    weights: Array
    degrees: Array


def knn_graph(
    x: Array, weights: Array, *, k: int = 10, power: float = 3.0, block: int = 4096
) -> Graph:
    """Joins each row to the `k` most similar others, by cosine similarity.

    An edge weighs the similarity to a power, and nothing where that is negative. The
    search is exact; similarities are in memory for 1024 rows and one block at a time.

    Args:
      x: `[rows, dim]` embeddings, of any length and float type.
      weights: `[rows]`; a row of weight 0 has no edges, whatever it holds.
      k: edges of a row.
      power: of the similarity.
      block: rows that are compared at a time.

    Raises:
      ValueError: for tokens, or `k` below 1.

    >>> x = jnp.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> knn_graph(x, jnp.ones(4), k=1).neighbours.ravel().tolist()
    [1, 0, 3, 2]
    """
    if x.ndim != 2 or k < 1:
        raise ValueError(
            f"knn_graph got x of shape {list(x.shape)} and k {k}: expected [rows, dim]"
            " and 1 or more; pool tokens first"
        )
    rows = len(x)
    x = jnp.where((weights > 0)[:, None], unit(x), 0)

    def one(row: Array) -> tuple[Array, Array]:
        best, found = nearest_others(row, x, weights, k, block)
        return jnp.where(weights[row] > 0, jnp.maximum(best, 0), 0), found

    similarity, neighbours = lax.map(one, jnp.arange(rows), batch_size=_ROWS_AT_ONCE)
    return graph_of(neighbours, similarity, power=power)


def graph_of(
    neighbours: ArrayLike, similarity: ArrayLike, *, power: float = 3.0
) -> Graph:
    """Makes a graph of lists of nearest rows, which any search may have found.

    Args:
      neighbours: `int [rows, k]`, the rows that each is joined to; -1: none. A row in
        its own list is no edge.
      similarity: `[rows, k]`, of each. An edge weighs the similarity to a power, and
        nothing where that is negative.
      power: of the similarity.

    Raises:
      ValueError: if the two aren't of one shape `[rows, k]`.

    >>> neighbours, similarity = [[0, 1], [1, 0], [2, -1]], [[1.0, 0.5]] * 3
    >>> propagate(graph_of(neighbours, similarity), jnp.eye(3)).tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    neighbours = jnp.asarray(neighbours, jnp.int32)
    similarity = jnp.asarray(similarity, jnp.float32)
    if neighbours.ndim != 2 or neighbours.shape != similarity.shape:
        raise ValueError(
            f"graph_of got neighbours of shape {list(neighbours.shape)} and similarity "
            f"of shape {list(similarity.shape)}: expected [rows, k] of both"
        )
    others = (neighbours >= 0) & (neighbours != jnp.arange(len(neighbours))[:, None])
    own = jnp.where(others, jnp.maximum(similarity, 0), 0) ** power
    return _normalized(jnp.maximum(neighbours, 0), own)


def approximate_neighbours(
    x: np.ndarray, weights: np.ndarray, *, k: int = 10, probes: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """Finds most of the nearest rows on the host, for `graph_of`, by faiss.

    Rows are put into cells, `2 sqrt(rows)` of them by k-means, and compared with those
    of the nearest cells. It is for more rows than the exact search of `knn_graph` can
    compare with each other, which are some hundred thousand.

    Args:
      x: `[rows, dim]` embeddings, of any length and float type; a memory map may be.
      weights: `[rows]`; a row of weight 0 finds none and is not found.
      k: how many others.
      probes: cells that a row looks into: more find more and take longer.

    Returns:
      `int32 [rows, k + 1]` rows, of which one is mostly the row itself (-1: none), and
      their cosine similarities.

    Raises:
      ValueError: for tokens, or `k` or `probes` below 1; if faiss isn't installed.

    Source: Douze et al., 2024, "The Faiss library".
    """
    if x.ndim != 2 or k < 1 or probes < 1:
        raise ValueError(
            f"approximate_neighbours got x of shape {list(x.shape)}, k {k} and probes "
            f"{probes}: expected [rows, dim] and 1 or more of both"
        )
    try:
        import faiss  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            "approximate_neighbours searches with faiss, which is not installed: pip "
            "install faiss-cpu (the extra 'neighbours'), or use the exact knn_graph"
        ) from error
    present = np.flatnonzero(np.asarray(weights) > 0)
    neighbours = np.full((len(x), k + 1), -1, np.int32)
    similarity = np.zeros((len(x), k + 1), np.float32)
    if not len(present):
        return neighbours, similarity
    cells = round(2 * len(present) ** 0.5)
    cells = max(min(cells, len(present) // _ROWS_OF_A_CELL), 1)
    index: Any = faiss.index_factory(
        x.shape[1], f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT
    )
    index.cp.max_points_per_centroid = 2 * _ROWS_OF_A_CELL
    index.nprobe = probes
    # Spread evenly over all rows, which may be sorted by class.
    step = max(len(present) // (cells * index.cp.max_points_per_centroid), 1)
    index.train(_unit(x[present[::step]]))
    cell = []
    for part in _parts(present):
        rows = _unit(x[part])
        index.add_with_ids(rows, part)
        cell.append(index.quantizer.assign(rows, 1)[:, 0])
    # Rows of a cell look into the same cells, which then stay in the cache.
    for part in _parts(present[np.argsort(np.concatenate(cell), kind="stable")]):
        similarity[part], neighbours[part] = index.search(_unit(x[part]), k + 1)
    return neighbours, np.where(neighbours < 0, 0, similarity)


def union(*graphs: Graph, weights: Array | None = None) -> Graph:
    """Joins the edges of graphs over the same rows.

    Args:
      graphs: of one type of row, as seen in several spaces for one.
      weights: `[graphs]`, what an edge of each weighs; None: all the same.

    >>> x = jnp.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> one = knn_graph(x, jnp.ones(4), k=1)
    >>> union(one, knn_graph(x[::-1], jnp.ones(4), k=2)).neighbours.shape
    (4, 3)
    """
    neighbours = jnp.concatenate([graph.neighbours for graph in graphs], axis=1)
    shares = jnp.ones(len(graphs)) if weights is None else weights
    own = []
    for graph, share in zip(graphs, shares, strict=True):
        root = jnp.sqrt(graph.degrees / divisor(jnp.mean(graph.degrees)))
        own.append(share * graph.weights * root[:, None] * root[graph.neighbours])
    return _normalized(neighbours, jnp.concatenate(own, axis=1))


def propagate(graph: Graph, values: Array) -> Array:
    """Multiplies the graph's matrix `S` by `values [rows, columns]`.

    >>> x = jnp.array([[1.0, 0.0], [2.0, 0.0]])
    >>> propagate(knn_graph(x, jnp.ones(2), k=1), jnp.array([[1.0], [0.0]])).tolist()
    [[0.0], [1.0]]
    """

    def edge(number: int | Array, total: Array) -> Array:
        to = graph.neighbours[:, number]
        weight = graph.weights[:, number][:, None]
        return (total + weight * values[to]).at[to].add(weight * values)

    count = graph.neighbours.shape[1]
    return lax.fori_loop(0, count, edge, jnp.zeros_like(values))


def spread(
    graph: Graph,
    sources: Array,
    *,
    alpha: float | Array = 0.95,
    tolerance: float = 1e-5,
) -> Array:
    """Spreads labels along the edges: `(1 - alpha) (I - alpha S)^-1 sources`.

    Of labels this is label spreading; of a head's probabilities it smooths them.

    Args:
      graph: over all rows.
      sources: `[rows, classes]`, 0 for rows without a label.
      alpha: how far it goes, from 0 (nowhere) to below 1; may be traced.
      tolerance: of the solver's residual, relative.

    Returns:
      `[rows, classes]`; `balance` makes them probabilities.

    Source: Zhou et al., 2003, "Learning with local and global consistency".

    >>> x = jnp.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> sources = jnp.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    >>> spread(knn_graph(x, jnp.ones(4), k=1), sources).argmax(-1).tolist()
    [0, 0, 1, 1]
    """
    found, _ = cg(
        lambda values: values - alpha * propagate(graph, values),
        (1 - alpha) * sources,
        tol=tolerance,
        maxiter=_MOST,
    )
    return jnp.maximum(found, 0)


def poisson(graph: Graph, sources: Array, *, tolerance: float = 1e-5) -> Array:
    """Poisson learning: labelled rows are charges, in place of fixed values.

    It solves `L u = sources - average`, where `L` is the Laplacian `D - W` and the
    average is that of the labelled rows; better than `spread` at one label a class, if
    classes are as likely as they have labels.

    Args:
      graph: over all rows.
      sources: `[rows, classes]`, the weight of a label in its class.
      tolerance: of the solver's residual, relative.

    Returns:
      `[rows, classes]` potentials, of either sign; the largest wins.

    Source: Calder et al., 2020, "Poisson learning".

    >>> x = jnp.array([[1.0, 0.0], [1.0, 0.1], [0.1, 1.0], [0.0, 1.0]])
    >>> sources = jnp.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    >>> poisson(knn_graph(x, jnp.ones(4), k=2), sources).argmax(-1).tolist()
    [0, 0, 1, 1]
    """
    mass = jnp.sum(sources, axis=1, keepdims=True)
    average = jnp.sum(sources, axis=0) / divisor(jnp.sum(mass))
    charges = sources - mass * average
    root = jnp.sqrt(graph.degrees)[:, None]
    # Symmetric: v = D^1/2 u, (I - S) v = D^-1/2 charges. Its null space, D^1/2 1, is
    # taken out of the right-hand side, where rounding leaves some of it, and given the
    # eigenvalue 1, so that what rounding brings back of it dies out.
    flat = root / jnp.sqrt(divisor(jnp.sum(graph.degrees)))
    right = charges / divisor(root)
    right = jnp.where(root > 0, right - flat * exact(flat.T, right), 0)
    found, _ = cg(
        lambda v: v - propagate(graph, v) + flat * exact(flat.T, v),
        right,
        tol=tolerance,
        maxiter=_MOST,
    )
    found -= flat * exact(flat.T, found)
    return found / divisor(root)


def induct(
    x: Array,
    bank: Array,
    values: Array,
    weights: Array,
    *,
    k: int = 10,
    power: float = 3.0,
    block: int = 4096,
) -> Array:
    """Carries what a graph's rows have over to new rows, by their nearest among them.

    Args:
      x: `[queries, dim]`, the new rows.
      bank: `[rows, dim]`, those of the graph.
      values: `[rows, columns]`, what they have.
      weights: `[rows]`; a row of weight 0 is absent.
      k: neighbours of a new row.
      power: of the similarity, the weight of a neighbour.
      block: rows that are compared at a time.

    Returns:
      `[queries, columns]`, weighted means.

    >>> bank = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> induct(jnp.array([[3.0, 0.1]]), bank, jnp.eye(2), jnp.ones(2), k=1).tolist()
    [[1.0, 0.0]]
    """
    bank = jnp.where((weights > 0)[:, None], unit(bank), 0)

    def one(x: Array) -> Array:
        similarity, rows = nearest(unit(x), bank, weights, k, block)
        share = jnp.maximum(similarity, 0) ** power
        return exact(share, values[rows]) / divisor(jnp.sum(share))

    return lax.map(one, x, batch_size=_ROWS_AT_ONCE)


def balance(values: Array, prior: Array, weights: Array) -> Array:
    """Makes probabilities whose average over the rows is a prior (Sinkhorn).

    Columns are scaled to the prior and rows to 1, in turns, rows last.

    Args:
      values: `[rows, classes]`, 0 or more. A row of zeros becomes the prior.
      prior: `[classes]`, sums to 1; a class of 0 gets none.
      weights: `[rows]`, of the average.

    Source: Sinkhorn and Knopp, 1967, "Concerning nonnegative matrices and doubly
    stochastic matrices".

    >>> balance(jnp.array([[3.0, 1.0], [3.0, 1.0]]), jnp.array([0.5, 0.5]), jnp.ones(2))
    Array([[0.5, 0.5],
           [0.5, 0.5]], dtype=float32)
    """
    known = jnp.sum(values, axis=1, keepdims=True) > 0
    values = jnp.where(known, values, prior)
    share = weights / divisor(jnp.sum(weights))

    def rows_to_one(values: Array) -> Array:
        return values / divisor(jnp.sum(values, axis=1, keepdims=True))

    def turn(_: int | Array, values: Array) -> Array:
        return rows_to_one(values * prior / divisor(exact(share, values)))

    return lax.fori_loop(0, _BALANCING, turn, rows_to_one(values))


def smooth(graph: Graph, probabilities: Array, *, alpha: float | Array = 0.95) -> Array:
    """Averages the probabilities `[rows, classes]` of a head along the edges.

    Args:
      graph: over all rows.
      probabilities: of every row.
      alpha: how far, as for `spread`; 0 changes nothing.

    >>> graph = knn_graph(jnp.array([[1.0, 0.0], [1.0, 0.1]]), jnp.ones(2), k=1)
    >>> smooth(graph, jnp.array([[1.0, 0.0], [0.0, 1.0]]), alpha=0.0).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    spreaded = spread(graph, probabilities, alpha=alpha)
    return spreaded / divisor(jnp.sum(spreaded, axis=1, keepdims=True))


def mixture(*probabilities: Array, weights: Array | None = None) -> Array:
    """Averages probabilities `[..., classes]`, by weights `[experts]` if there are any.

    >>> own, other = jnp.array([0.5, 0.5]), jnp.array([0.0, 1.0])
    >>> mixture(own, other, weights=jnp.array([3.0, 1.0])).tolist()
    [0.375, 0.625]
    """
    return jnp.average(jnp.stack(probabilities), axis=0, weights=weights)


def product_of_experts(*probabilities: Array) -> Array:
    """Multiplies probabilities `[..., classes]` and divides by their sum.

    Source: Hinton, 2002, "Training products of experts by minimizing contrastive
    divergence".

    >>> own, other = jnp.array([0.5, 0.5]), jnp.array([0.25, 0.75])
    >>> product_of_experts(own, other).round(2).tolist()
    [0.25, 0.75]
    """
    tiny = jnp.finfo(jnp.float32).tiny
    return jax.nn.softmax(sum(jnp.log(jnp.maximum(p, tiny)) for p in probabilities))


def _unit(x: np.ndarray) -> np.ndarray:
    """Rows of length 1 on the host; a row of zeros stays."""
    x = np.ascontiguousarray(x, np.float32)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1)


def _parts(rows: np.ndarray) -> list[np.ndarray]:
    return np.split(rows, np.arange(_ROWS_OF_A_PART, len(rows), _ROWS_OF_A_PART))


def _normalized(neighbours: Array, own: Array) -> Graph:
    degrees = jnp.sum(own, axis=1).at[neighbours].add(own)
    root = jnp.sqrt(divisor(degrees))
    return Graph(neighbours, own / root[:, None] / root[neighbours], degrees)
