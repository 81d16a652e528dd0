"""Which rows a step sees: a seeded permutation, evaluated position by position."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flaxhead.base import Array

_ROUNDS = 24


def batch_rows(
    key: Array, first: Array, *, rows: int | Array, positions: Array
) -> Array:
    """Returns the row numbers at some positions of a step's batch.

    Every row comes exactly once an epoch, in an order of its own each epoch; batches
    run on across the end of an epoch, so no tail is dropped. It is a pure function of
    its arguments: a device draws its own share, and a resumed run the same rows.

    Args:
      key: typed key of the order.
      first: `uint32 []`, where this step's batch begins in the endless sequence of
        epochs (step number times batch size).
      rows: number of rows.
      positions: `int32 [batch]`, positions in the batch.

    Returns:
      `int32 [batch]`, each in `[0, rows)`.

    >>> import jax, jax.numpy as jnp
    >>> key, first = jax.random.key(0), jnp.uint32(0)
    >>> order = batch_rows(key, first, rows=7, positions=jnp.arange(7))
    >>> sorted(order.tolist())
    [0, 1, 2, 3, 4, 5, 6]
    """
    if isinstance(rows, int) and rows == 1:
        # XLA's CPU compiler fails on a remainder by a constant 1.
        return jnp.zeros(positions.shape, jnp.int32)
    position = first + positions.astype(jnp.uint32)
    epoch, position = position // jnp.uint32(rows), position % jnp.uint32(rows)
    words = jax.random.bits(key, (_ROUNDS, 2), jnp.uint32)
    return _swap_or_not(position, epoch, words, rows).astype(jnp.int32)


def labelled_first(labelled: Array) -> tuple[Array, Array]:
    """Returns the numbers of all rows, those that have a label first, and their count.

    Args:
      labelled: `bool [rows]`.

    >>> order, count = labelled_first(jnp.array([False, True, False, True]))
    >>> order.tolist(), int(count)
    ([1, 3, 0, 2], 2)
    """
    return jnp.argsort(~labelled, stable=True), jnp.sum(labelled)


def mixed_rows(
    key: Array,
    step: Array,
    order: tuple[Array, Array],
    sizes: tuple[int, int],
    positions: Array,
) -> tuple[Array, Array]:
    """Returns rows of a batch of so many with a label, then so many without.

    Each of the two kinds runs through its own epochs, as in `batch_rows`.

    Args:
      key: typed key of both orders.
      step: `int32 []`.
      order: from `labelled_first`.
      sizes: how many of each.
      positions: `int32 [batch]`, from 0 to below the sum of both.

    Returns:
      `int32 [batch]` row numbers, and `bool [batch]`, False where there is no row of
      the kind.
    """
    rows, labelled = order
    counts = labelled, len(rows) - labelled
    first = positions < sizes[0]
    index = []
    for number, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        place = batch_rows(
            jax.random.fold_in(key, number),
            step.astype(jnp.uint32) * jnp.uint32(size),
            rows=jnp.maximum(count, 1).astype(jnp.uint32),
            positions=jnp.where(first, positions, positions - sizes[0]),
        )
        index.append(place + number * labelled)
    there = jnp.where(first, counts[0] > 0, counts[1] > 0)
    index = jnp.minimum(jnp.where(first, *index), len(rows) - 1)
    return rows[index], there


def _swap_or_not(
    position: Array, epoch: Array, words: Array, rows: int | Array
) -> Array:
    """A keyed permutation of `[0, rows)` with no table.

    Each round pairs every position with a partner and swaps the pair, or not, by one
    hashed bit that both see (Hoang, Morris and Rogaway, "An enciphering scheme based
    on a card shuffle", CRYPTO 2012).
    """
    size = jnp.uint32(rows)

    def swap(position: Array, word: Array) -> tuple[Array, None]:
        pivot = _hash(word[0] ^ _hash(epoch)) % size
        partner = jnp.where(
            pivot >= position, pivot - position, pivot + (size - position)
        )
        bit = _hash(jnp.maximum(position, partner) ^ _hash(word[1] + epoch)) & 1
        return jnp.where(bit == 1, partner, position), None

    # A loop and not its unrolled body: that would be fused into the gather of the rows
    # and run again for every element of every row.
    return jax.lax.scan(swap, position, words)[0]


def _hash(word: Array) -> Array:
    """The 32-bit finaliser of MurmurHash3 (Appleby, 2008)."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)
