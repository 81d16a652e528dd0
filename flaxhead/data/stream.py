"""Rows in the order in which steps see them, read window by window by Grain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from flaxhead.base import Batch
from flaxhead.sampling import Windows, find_window, window_rows

# One window is made while another one waits, beside the one that is cut up.
_THREADS, _AHEAD = 2, 2


def read_window(data: Batch, windows: Windows, number: int, *, seed: int) -> Batch:
    """Returns the rows of a window in the order in which they are seen, in memory.

    Args:
      data: all rows; an array of them may be `Stored`.
      windows: how rows are cut.
      number: of the window.
      seed: of the order.
    """
    rows, order = window_rows(windows, number, seed=seed)
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    # Blocks that lie side by side are read at once.
    runs = np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) > 1) + 1)

    def fetch(leaf: Any) -> np.ndarray:
        if isinstance(leaf, np.ndarray):
            return leaf[rows[order]]
        values = np.empty((len(rows), *leaf.shape[1:]), leaf.dtype)
        for run in runs:
            # In pieces, so that there is little beside the window.
            for begin in range(0, len(run), windows.block):
                part = run[begin : begin + windows.block]
                first = int(rows[part[0]])
                values[places[part]] = leaf[first : first + len(part)]
        return values

    return jax.tree.map(fetch, data)


def chunks(
    data: Batch, windows: Windows, *, seed: int, size: int, first: int, last: int
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
    """
    import grain

    begin, skipped = find_window(windows, first, seed=seed)
    end = find_window(windows, last - 1, seed=seed)[0] + 1
    opened = (
        grain.MapDataset.range(begin, end)
        .map(lambda number: read_window(data, windows, int(number), seed=seed))
        .to_iter_dataset(
            grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
        )
    )
    read = iter(opened)
    try:
        window, at = next(read), skipped
        for start in range(first, last, size):
            piece = jax.tree.map(
                lambda leaf: np.zeros((size, *leaf.shape[1:]), leaf.dtype), data
            )
            filled, wanted = 0, min(size, last - start)
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
