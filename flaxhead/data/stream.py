"""Rows in the order in which steps see them, read window by window by Grain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from flaxhead.base import Batch
from flaxhead.data.stored import fetch
from flaxhead.sampling import Windows, find_window, window_position, window_rows

# One window is made while another one waits, beside the one that is cut up.
_THREADS, _AHEAD = 2, 2
ALL = np.ones(1, bool)


def read_window(
    data: Batch, windows: Windows, number: int, *, seed: int, mine: Any = ALL
) -> Batch:
    """Returns the rows of a window in the order in which they are seen, in memory.

    Args:
      data: all rows; an array of them may be `Stored`.
      windows: how rows are cut.
      number: of the window.
      seed: of the order.
      mine: which positions of a step are wanted, `bool [step]`.
    """
    rows, order = window_rows(windows, number, seed=seed)
    seen = rows[order]
    if not mine.all():
        first = window_position(windows, number, seed=seed)
        seen = seen[mine[(first + np.arange(len(seen))) % len(mine)]]
    places = np.argsort(seen)

    def read(leaf: Any) -> np.ndarray:
        if isinstance(leaf, np.ndarray):
            return leaf[seen]
        values = np.empty((len(seen), *leaf.shape[1:]), leaf.dtype)
        # In pieces, so that there is little beside the window.
        for begin in range(0, len(seen), windows.block):
            part = places[begin : begin + windows.block]
            values[part] = fetch(leaf, seen[part])
        return values

    return jax.tree.map(read, data)


def chunks(
    data: Batch,
    windows: Windows,
    *,
    seed: int,
    size: int,
    first: int,
    last: int,
    mine: Any = ALL,
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
    """
    import grain

    def before(position: int) -> int:
        """How many of the positions before this one are wanted."""
        steps, more = divmod(position, len(mine))
        return steps * int(mine.sum()) + int(mine[:more].sum())

    begin, skipped = find_window(windows, first, seed=seed)
    end = find_window(windows, last - 1, seed=seed)[0] + 1
    opened = (
        grain.MapDataset.range(begin, end)
        .map(lambda one: read_window(data, windows, int(one), seed=seed, mine=mine))
        .to_iter_dataset(
            grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
        )
    )
    read = iter(opened)
    try:
        window, at = next(read), before(first) - before(first - skipped)
        for start in range(first, last, size):
            room, wanted = (
                before(end) - before(start)
                for end in (start + size, min(start + size, last))
            )
            piece = jax.tree.map(
                lambda leaf: np.zeros((room, *leaf.shape[1:]), leaf.dtype),  # noqa: B023
                data,
            )
            filled = 0
            while filled < wanted:
                if at == len(window.labels):
                    window, at = next(read), 0
                more = min(wanted - filled, len(window.labels) - at)
                for into, leaf in zip(
                    jax.tree.leaves(piece), jax.tree.leaves(window), strict=True
                ):
                    into[filled : filled + more] = leaf[at : at + more]
                filled, at = filled + more, at + more
            yield piece
    finally:
        read.close()  # pyright: ignore[reportAttributeAccessIssue]
