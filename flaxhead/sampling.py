"""Which rows a step sees: a seeded permutation, evaluated position by position."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxhead.base import Array

_ROUNDS = 24
_BLOCK_BYTES = 2**20


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


class Order(NamedTuple):
    """The rows kind by kind, for `mixed_rows` to draw from.

    Attributes:
      rows: `int32 [rows]`, numbers of all rows, those that have a label first.
      labelled: `int32 []`, how many have one.
      counts: `int32 [classes]`, how many of each class, by which those that have a
        label then stand in `rows`; None where classes are no matter.
    """

    rows: Array
    labelled: Array
    counts: Array | None


def labelled_first(
    labelled: Array, labels: Array | None = None, *, classes: int = 0
) -> Order:
    """Returns the numbers of all rows, those that have a label first.

    Args:
      labelled: `bool [rows]`.
      labels: `int32 [rows]`, or soft ones `[rows, classes]`, of which the likeliest
        counts; only read if there are `classes`.
      classes: how many, if a batch is to have as many rows of each; 0: of any.

    >>> order = labelled_first(jnp.array([False, True, False, True]))
    >>> order.rows.tolist(), int(order.labelled)
    ([1, 3, 0, 2], 2)
    """
    count = jnp.sum(labelled)
    if not classes:
        return Order(jnp.argsort(~labelled, stable=True), count, None)
    assert labels is not None
    kind = labels if labels.ndim == 1 else jnp.argmax(labels, axis=1)
    kind = jnp.where(labelled, kind, classes)
    counts = jnp.bincount(kind, length=classes + 1)[:classes]
    return Order(jnp.argsort(kind, stable=True), count, counts)


def mixed_rows(
    key: Array, step: Array, order: Order, sizes: tuple[int, int], positions: Array
) -> tuple[Array, Array]:
    """Returns rows of a batch of so many with a label, then so many without.

    Each of the two kinds runs through its own epochs, as in `batch_rows`; or those that
    have a label as in `balanced_rows`, if the order knows of classes.

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
    rows, labelled, classes = order
    counts = labelled, len(rows) - labelled
    first = positions < sizes[0]
    index = []
    for number, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        own = jax.random.fold_in(key, number)
        begin = step.astype(jnp.uint32) * jnp.uint32(size)
        places = jnp.where(first, positions, positions - sizes[0])
        if number == 0 and classes is not None:
            place = balanced_rows(own, begin, counts=classes, positions=places)
        else:
            some = jnp.maximum(count, 1).astype(jnp.uint32)
            place = batch_rows(own, begin, rows=some, positions=places)
        index.append(place + number * labelled)
    there = jnp.where(first, counts[0] > 0, counts[1] > 0)
    index = jnp.minimum(jnp.where(first, *index), len(rows) - 1)
    return rows[index], there


def balanced_rows(
    key: Array, first: Array, *, counts: Array, positions: Array
) -> Array:
    """Returns the rows at some positions of a batch with as many of each class.

    Every class that has rows comes exactly once a round, in an order of its own each
    round, and every row of a class once in an epoch of that class. So a position holds
    a row with a chance of `1 / (classes * n)`, if its class has `n` rows. Otherwise as
    `batch_rows`.

    Source: Kang et al., 2020, "Decoupling representation and classifier for long-tailed
    recognition" (class-balanced sampling); in rounds: Shen, Lin and Huang, 2016, "Relay
    backpropagation for effective learning of deep convolutional neural networks".

    Args:
      key: typed key of the orders.
      first: `uint32 []`, where this step's batch begins in the endless sequence.
      counts: `int32 [classes]`, rows of each class. Rows are numbered class by class.
      positions: `int32 [batch]`, positions in the batch.

    Returns:
      `int32 [batch]`, each in `[0, rows)`.

    >>> counts, key = jnp.array([4, 0, 1]), jax.random.key(0)
    >>> rows = balanced_rows(
    ...     key, jnp.uint32(0), counts=counts, positions=jnp.arange(8)
    ... )
    >>> sorted(rows.tolist())  # row 4 is the only one of its class
    [0, 1, 2, 3, 4, 4, 4, 4]
    """
    some = counts > 0
    several = jnp.maximum(jnp.sum(some), 1).astype(jnp.uint32)
    position = first + positions.astype(jnp.uint32)
    round, place = position // several, position % several
    words = jax.random.bits(key, (2, _ROUNDS, 2), jnp.uint32)
    place = _swap_or_not(place, round, words[0], several).astype(jnp.int32)
    kind = jnp.argsort(~some, stable=True)[place]
    size = jnp.maximum(counts[kind], 1).astype(jnp.uint32)
    epoch, place = round // size, round % size
    # Apart by class too: classes of one size would go in step.
    epoch += _hash(kind.astype(jnp.uint32) + 1)
    place = _swap_or_not(place, epoch, words[1], size).astype(jnp.int32)
    return (jnp.cumsum(counts) - counts)[kind] + place


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


# Rows that are split over devices, and rows that are read from files: on the host.


def dealt_rows(rows: int, lane: int, *, lanes: int, block: int) -> np.ndarray:
    """Returns the numbers of the rows that one of some devices has, ascending.

    Blocks of rows that follow one another go to one device after the other; what is
    left over is cut into a part for each. So devices have as many, but for one row.

    Args:
      rows: how many there are.
      lane: number of the device.
      lanes: how many devices there are.
      block: rows of a block.

    >>> [dealt_rows(11, lane, lanes=2, block=2).tolist() for lane in range(2)]
    [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10]]
    """
    dealt = rows // (lanes * block) * (lanes * block)
    starts = np.arange(lane * block, dealt, lanes * block)
    each, more = divmod(rows - dealt, lanes)
    first = dealt + lane * each + min(lane, more)
    rest = np.arange(first, first + each + (lane < more))
    return np.concatenate([(starts[:, None] + np.arange(block)).ravel(), rest])


def dealt_block(rows: int, *, row_bytes: int, lanes: int, block: int = 0) -> int:
    """Returns how many rows that follow one another a device gets: about 1 MB of them.

    Few enough that it has rows from eight places, whatever they are sorted by.

    Args:
      rows: how many there are.
      row_bytes: bytes of each.
      lanes: how many devices there are.
      block: rows that can only be read at once.

    >>> dealt_block(100_000, row_bytes=2048, lanes=8)
    512
    >>> dealt_block(64, row_bytes=2048, lanes=2)
    4
    """
    most = max(1, min(_BLOCK_BYTES // row_bytes, rows // (8 * lanes)))
    return max(block, most // max(1, block) * block) if block else most


# The order of rows that are read from files.


class Windows(NamedTuple):
    """How rows that are read from files are cut.

    Attributes:
      rows: how many there are.
      block: so many that follow one another are read at once.
      blocks: so many blocks, from anywhere, are a window.
    """

    rows: int
    block: int
    blocks: int

    @property
    def an_epoch(self) -> int:
        """Windows an epoch."""
        return -(-self._all_blocks // self.blocks)

    @property
    def _all_blocks(self) -> int:
        return -(-self.rows // self.block)


def make_windows(
    rows: int, *, row_bytes: int, window_bytes: int, block: int = 0
) -> Windows:
    """Cuts rows into blocks of about 1 MB, and windows of about `window_bytes`.

    Args:
      rows: how many there are.
      row_bytes: bytes of each.
      window_bytes: of a window, which is one block at least.
      block: rows that can only be read at once.

    >>> make_windows(1000, row_bytes=2**14, window_bytes=2**22)
    Windows(rows=1000, block=32, blocks=8)
    """
    # Of a small window no block is more than an eighth: rows come from eight places.
    least = max(1, min(_BLOCK_BYTES, window_bytes // 8) // row_bytes)
    block = min(rows, max(block, least))
    return Windows(rows, block, max(1, window_bytes // (block * row_bytes)))


def window_rows(
    windows: Windows, number: int, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns which rows a window has, and in which order they are seen.

    Windows are numbered through all epochs. Every epoch has every row once: its blocks
    are shuffled and dealt out to its windows, and all rows of a window are shuffled.

    Args:
      windows: how rows are cut.
      number: of the window, from 0.
      seed: of the order.

    Returns:
      `int64 [size]` row numbers as they are read, ascending, and `int64 [size]`, a
      permutation: first comes the row at its first entry.

    >>> rows, order = window_rows(Windows(7, 2, 4), 0, seed=0)
    >>> rows.tolist(), sorted(order.tolist()) == rows.tolist()
    ([0, 1, 2, 3, 4, 5, 6], True)
    """
    epoch, place = divmod(number, windows.an_epoch)
    blocks = _blocks(windows, epoch, seed)
    blocks = np.sort(blocks[place * windows.blocks :][: windows.blocks])
    rows = (blocks[:, None] * windows.block + np.arange(windows.block)).ravel()
    rows = rows[rows < windows.rows]
    draw = np.random.default_rng((seed, epoch, 1 + place))
    return rows, draw.permutation(len(rows))


def find_window(windows: Windows, position: int, *, seed: int) -> tuple[int, int]:
    """Returns the window of a position in the endless sequence of epochs.

    Args:
      windows: how rows are cut.
      position: rows seen before.
      seed: of the order.

    Returns:
      The window's number, and the position in it.

    >>> find_window(Windows(8, 2, 2), 13, seed=0)
    (3, 1)
    """
    epoch, position = divmod(position, windows.rows)
    blocks = _blocks(windows, epoch, seed)
    sizes = np.minimum(windows.block, windows.rows - blocks * windows.block)
    ends = np.add.reduceat(sizes, np.arange(0, len(sizes), windows.blocks)).cumsum()
    place = int(np.searchsorted(ends, position, side="right"))
    before = int(ends[place - 1]) if place else 0
    return epoch * windows.an_epoch + place, position - before


def window_position(windows: Windows, number: int, *, seed: int) -> int:
    """Returns the position of a window's first row: `find_window` the other way round.

    >>> window_position(Windows(8, 2, 2), 3, seed=0)
    12
    """
    epoch, place = divmod(number, windows.an_epoch)
    before = _blocks(windows, epoch, seed)[: place * windows.blocks]
    sizes = np.minimum(windows.block, windows.rows - before * windows.block)
    return epoch * windows.rows + int(sizes.sum())


def _blocks(windows: Windows, epoch: int, seed: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(windows._all_blocks)
