"""Rows in the order in which steps see them, read window by window by Grain."""

from __future__ import annotations

import itertools
import math
import queue
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from flaxhead.base import Batch
from flaxhead.data.stored import fetch
from flaxhead.sampling import Windows, find_window, window_position, window_rows

# One window is made while another one waits, beside the one that is cut up.
_THREADS, _AHEAD = 2, 2
_ALIGNED = 64  # bytes; XLA copies what begins elsewhere
ALL = np.ones(1, bool)


def read_window(
    data: Batch,
    windows: Windows,
    number: int,
    *,
    seed: int,
    mine: Any = ALL,
    into: Batch | None = None,
) -> Batch:
    """Returns the rows of a window in the order in which they are seen, in memory.

    Args:
      data: all rows; an array of them may be `Stored`.
      windows: how rows are cut.
      number: of the window.
      seed: of the order.
      mine: which positions of a step are wanted, `bool [step]`.
      into: `room` of a window, that it is to be in; None: of its own.
    """
    rows, order = window_rows(windows, number, seed=seed)
    seen = rows[order]
    if not mine.all():
        first = window_position(windows, number, seed=seed)
        seen = seen[mine[(first + np.arange(len(seen))) % len(mine)]]
    places = np.argsort(seen)

    def read(leaf: Any, values: np.ndarray) -> np.ndarray:
        values = values[: len(seen)]
        if isinstance(leaf, np.ndarray):
            return np.take(leaf, seen, axis=0, out=values, mode="clip")
        # In pieces, so that there is little beside the window.
        for begin in range(0, len(seen), windows.block):
            part = places[begin : begin + windows.block]
            rows = fetch(leaf, seen[part])
            _as_items(values)[part] = _as_items(rows)
        return values

    return jax.tree.map(read, data, into or room(data, len(seen)))


def _as_items(values: np.ndarray) -> np.ndarray:
    """Each row as one item, which NumPy moves faster than the numbers of a row."""
    values = np.ascontiguousarray(values)
    row = np.dtype((np.void, values.nbytes // len(values)))
    return values.reshape(len(values), -1).view(row)[:, 0]


def room(data: Batch, rows: int) -> Batch:
    """Arrays for so many rows, which a processor's device takes as they are."""

    def make(leaf: Any) -> np.ndarray:
        shape = (rows, *leaf.shape[1:])
        size = math.prod(shape) * leaf.dtype.itemsize
        content = np.empty(size + _ALIGNED, np.uint8)
        begin = -content.ctypes.data % _ALIGNED
        return content[begin : begin + size].view(leaf.dtype).reshape(shape)

    return jax.tree.map(make, data)


def chunks(
    data: Batch,
    windows: Windows,
    *,
    seed: int,
    size: int,
    first: int,
    last: int,
    mine: Any = ALL,
    rooms: int = 0,
) -> Iterator[Batch]:
    """Yields the rows from one position on, in pieces of one size.

    Positions count through all epochs. The same rows are at a position wherever the
    pieces begin.

    Args:
      data: all rows; an array of them may be `Stored`.
      windows: how they are cut.
      seed: of the order.
      size: rows of a piece.
      first: position of the first one.
      last: position after the last one; the last piece is filled up with zeros.
      mine: which positions of each step are wanted, `bool [step]`: pieces have these
        rows only, and begin and end with a step. Others aren't read, if they are far
        enough from these.
      rooms: a piece is where the one was that came so many before it; 0: each in
        memory of its own.
    """
    import grain

    def before(position: int) -> int:
        """How many of the positions before this one are wanted."""
        steps, more = divmod(position, len(mine))
        return steps * int(mine.sum()) + int(mine[:more].sum())

    begin, skipped = find_window(windows, first, seed=seed)
    end = find_window(windows, last - 1, seed=seed)[0] + 1
    # Windows take turns: memory that is asked for anew has to be cleared first, and
    # what threads give back the process doesn't.
    free: queue.SimpleQueue[Batch] = queue.SimpleQueue()

    def read_next(number: int) -> tuple[Batch, Batch]:
        try:
            into = free.get_nowait()
        except queue.Empty:
            into = room(data, windows.block * windows.blocks)
        number = int(number)
        return into, read_window(data, windows, number, seed=seed, mine=mine, into=into)

    opened = (
        grain.MapDataset.range(begin, end)
        .map(read_next)
        .to_iter_dataset(
            grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
        )
    )
    read = iter(opened)
    pieces = itertools.cycle([room(data, before(size)) for _ in range(rooms)])
    try:
        (into, window), at = next(read), before(first) - before(first - skipped)
        for start in range(first, last, size):
            piece = next(pieces) if rooms else room(data, before(size))
            filled, wanted = 0, before(min(start + size, last)) - before(start)
            while filled < wanted:
                if at == len(window.labels):
                    free.put(into)
                    (into, window), at = next(read), 0
                more = min(wanted - filled, len(window.labels) - at)
                for values, leaf in zip(
                    jax.tree.leaves(piece), jax.tree.leaves(window), strict=True
                ):
                    values[filled : filled + more] = leaf[at : at + more]
                filled, at = filled + more, at + more
            for values in jax.tree.leaves(piece):
                values[filled:] = 0
            yield piece
    finally:
        read.close()  # pyright: ignore[reportAttributeAccessIssue]
