"""The nearest-neighbours head: rows near an embedding vote for its class."""

from __future__ import annotations

from typing import Any, Literal

import jax.numpy as jnp
from jax import lax

from flaxhead.base import Array, Head, Params
from flaxhead.heads.normalize import unit
from flaxhead.heads.pool import check_input

_QUERIES = 1024


def neighbours(
    classes: int,
    *,
    max_k: int = 200,
    weighting: Literal["similarity", "uniform"] = "similarity",
    block: int = 4096,
) -> Head:
    """Weighted nearest neighbours by cosine similarity, over a bank of rows.

    Each of the `k` most similar rows of the bank votes with `exp(similarity /
    temperature)` for its class, and `softmax(logits)` are the shares of the votes. The
    search is exact; similarities are in memory for 1024 embeddings and one block of the
    bank at a time. Rows of the bank have weights: one of weight 2 is two rows, one of
    weight 0 none, and `k` is the weight that votes.

    Source: Wu et al., 2018, "Unsupervised feature learning via non-parametric instance
    discrimination"; its evaluation with k in {10, 20, 100, 200} and a temperature of
    0.07: Caron et al., 2021 (DINO).

    Args:
      classes: the number of logits.
      max_k: the most rows that vote, whatever `k` is. A grid over `k` in the params
        shares one search: `vmap` over `k` and `temperature` alone.
      weighting: `similarity`, or `uniform` for one vote a row.
      block: rows of the bank that are compared at a time.

    Returns:
      A `Head` with params `bank [rows, dim]` (of length 1, of any float type), `labels`
      (`int32 [rows]`, or `float32 [rows, classes]` shares), `weights [rows]`, `k []`
      and `temperature []`. A class without votes has a logit of about -87; without any
      votes all classes are equally likely. `init` takes the rows it is given as a bank
      of weight 0; params come from `flaxhead.solvers.neighbours`.

    Raises:
      ValueError: if `max_k` or `block` is below 1 or `weighting` is unknown, or when
        the head is given tokens.

    >>> import jax, jax.numpy as jnp
    >>> head = neighbours(2, weighting="uniform")
    >>> params = {
    ...     "bank": jnp.eye(2), "labels": jnp.array([0, 1]), "weights": jnp.ones(2),
    ...     "k": jnp.int32(1), "temperature": jnp.float32(0.07)}
    >>> jax.nn.softmax(head.apply(params, jnp.array([[3.0, 1.0], [1.0, 3.0]]))).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    if max_k < 1 or block < 1:
        raise ValueError(
            f"neighbours got max_k {max_k} and block {block}: expected 1 or more of"
            " both"
        )
    if weighting not in ("similarity", "uniform"):
        raise ValueError(f"weighting is {weighting!r}: expected similarity or uniform")

    def init(key: Array, x: Any) -> Params:
        del key
        check_input("neighbours", x)
        rows = len(x)
        return {
            "bank": unit(x),
            "labels": jnp.zeros(rows, jnp.int32),
            "weights": jnp.zeros(rows),
            "k": jnp.float32(max_k),
            "temperature": jnp.float32(0.07),
        }

    def apply(
        params: Params, x: Any, *, key: Array | None = None, train: bool = False
    ) -> Array:
        del key, train
        check_input("neighbours", x)
        bank, labels, weights = (params[n] for n in ("bank", "labels", "weights"))

        def one(x: Array) -> Array:
            similarity, rows = nearest(unit(x), bank, weights, max_k, block)
            share = jnp.where(similarity > -jnp.inf, weights[rows], 0)
            before = jnp.cumsum(share) - share
            votes = jnp.clip(params["k"] - before, 0, share)
            if weighting == "similarity":
                # The most similar one first: its vote, the largest, becomes its weight.
                best = jnp.where(similarity[0] > -jnp.inf, similarity[0], 0)
                votes *= jnp.exp((similarity - best) / params["temperature"])
            if labels.ndim == 2:
                return jnp.sum(votes[:, None] * labels[rows], axis=0)
            return jnp.zeros(classes).at[labels[rows]].add(votes)

        votes = lax.map(one, x, batch_size=_QUERIES) if x.ndim > 1 else one(x)
        total = jnp.sum(votes, axis=-1, keepdims=True)
        shares = votes / jnp.where(total > 0, total, 1)
        return jnp.log(jnp.maximum(shares, jnp.finfo(jnp.float32).tiny))

    return Head(init, apply)


def nearest_others(
    row: Array, bank: Array, weights: Array, k: int, block: int
) -> tuple[Array, Array]:
    """The rows of the bank most similar to one of them, but itself; as `nearest`.

    Returns:
      `(similarities, rows)`, each `[min(k, rows - 1)]`.
    """
    similarity, rows = nearest(bank[row], bank, weights, k + 1, block)
    similarity = jnp.where(rows == row, -jnp.inf, similarity)
    best, place = lax.top_k(similarity, min(k, len(bank) - 1))
    return best, rows[place]


def nearest(
    x: Array, bank: Array, weights: Array, k: int, block: int
) -> tuple[Array, Array]:
    """The rows of the bank most similar to one embedding.

    Returns:
      `(similarities, rows)`, each `[min(k, rows)]`, the most similar first, earlier
      rows first among equals; -inf for rows that are absent.
    """
    count = len(bank)
    size = min(count, block)
    k = min(k, count)

    def search(number: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
        begin = number * size
        # The last block is moved back into the bank; those it repeats are absent.
        start = jnp.minimum(begin, count - size)
        part = lax.dynamic_slice_in_dim(bank, start, size).astype(jnp.float32)
        own = lax.dynamic_slice_in_dim(weights, start, size)
        rows = start + jnp.arange(size)
        present = (own > 0) & (rows >= begin)
        similarity = jnp.matmul(part, x, precision=lax.Precision.HIGHEST)
        similarity = jnp.where(present, similarity, -jnp.inf)
        best, position = lax.top_k(similarity, min(k, size))
        best = jnp.concatenate([found[0], best])
        rows = jnp.concatenate([found[1], rows[position]])
        best, position = lax.top_k(best, k)
        return best, rows[position]

    start = jnp.full(k, -jnp.inf), jnp.zeros(k, jnp.int32)
    return lax.fori_loop(0, -(-count // size), search, start)
