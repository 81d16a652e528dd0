"""Embeddings that stay on the disk: read in pieces, never mapped, never whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

# Rows with more than so much between them are read apart, others at once.
_APART_BYTES = 2**16
_AT_ONCE_BYTES = 2**24


class Scan(NamedTuple):
    """What one pass over a split tells.

    Attributes:
      digest: SHA-256, as `fingerprint` has it.
      hashes: `uint64 [rows]`, as of `row_hashes`.
      statistics: weighted mean and standard deviation of each feature, `[dim]`.
      norms: mean and standard deviation of the Euclidean norms.
    """

    digest: str
    hashes: np.ndarray
    statistics: tuple[np.ndarray, np.ndarray]
    norms: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Stored:
    """An array whose rows are read when they are asked for, in any order.

    No NamedTuple: a tree of arrays has it as a leaf.

    Attributes:
      shape: `(rows, dim)` or `(rows, tokens, dim)`.
      dtype: as training takes it.
      read: `(first, size) -> [size, ...]`.
      block: so many rows are best read at once; 0: any number.
      scan: what one pass over it told; None before.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[int, int], np.ndarray]
    block: int = 0
    scan: Scan | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, stop, _ = rows.indices(len(self))
        return self.read(first, max(0, stop - first))

    @property
    def ndim(self) -> int:
        """How many axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return int(np.prod(self.shape)) * self.dtype.itemsize


def in_memory(x: Any) -> Any:
    """An array as a `Stored` one, to be taken in pieces too.

    >>> in_memory(np.arange(6).reshape(3, 2))[1:].tolist()
    [[2, 3], [4, 5]]
    """
    if isinstance(x, Stored):
        return x
    return Stored(x.shape, x.dtype, lambda first, size: x[first : first + size])


def join(first: Any, second: Any) -> Stored:
    """The rows of two arrays, one after the other; the second may be in memory.

    >>> join(in_memory(np.arange(3)), np.arange(3, 5))[1:4].tolist()
    [1, 2, 3]
    """
    one, other = in_memory(first), in_memory(second)
    rows = len(one)

    def read(first: int, size: int) -> np.ndarray:
        if first + size <= rows:
            return one.read(first, size)
        if first >= rows:
            return other.read(first - rows, size)
        rest = other.read(0, first + size - rows)
        return np.concatenate([one.read(first, rows - first), rest])

    shape = (rows + len(other), *one.shape[1:])
    return dataclasses.replace(one, shape=shape, read=read, scan=None)


def fetch(x: Any, rows: np.ndarray) -> np.ndarray:
    """The rows of some numbers, ascending, in memory.

    >>> fetch(in_memory(np.arange(5)), np.array([0, 3, 4])).tolist()
    [0, 3, 4]
    """
    if not isinstance(x, Stored):
        return x[rows]
    row_bytes = max(1, x.nbytes // max(1, len(x)))
    apart = max(1, x.block, _APART_BYTES // row_bytes)
    block = max(1, x.block)
    most = max(1, _AT_ONCE_BYTES // row_bytes // block) * block
    cut = (np.diff(rows) > apart) | (np.diff(rows // most) > 0)
    parts = np.split(rows, np.flatnonzero(cut) + 1) if len(rows) else []
    values, done = np.empty((len(rows), *x.shape[1:]), x.dtype), 0
    for part in parts:
        first = int(part[0])
        near = x.read(first, int(part[-1]) + 1 - first)
        if len(near) > len(part):
            near = near[part - first]
        if len(parts) == 1:
            return near
        values[done : done + len(part)] = near
        done += len(part)
    return values


def some(x: Stored, rows: np.ndarray, size: int) -> Stored:
    """The rows of some numbers, ascending, and zeros after them up to a size.

    >>> some(in_memory(np.arange(5)), np.array([1, 4]), 3)[:].tolist()
    [1, 4, 0]
    """

    def read(first: int, size: int) -> np.ndarray:
        own = fetch(x, rows[first : first + size])
        return np.pad(own, [(0, size - len(own)), *[(0, 0)] * (own.ndim - 1)])

    return dataclasses.replace(x, shape=(size, *x.shape[1:]), read=read, scan=None)


def pick(x: Stored, rows: np.ndarray) -> Stored:
    """The rows that `rows` (`bool [rows]`) selects, in order.

    >>> x = in_memory(np.arange(3))
    >>> pick(x, np.array([True, False, True]))[:].tolist()
    [0, 2]
    """
    numbers = np.flatnonzero(rows)

    def read(first: int, size: int) -> np.ndarray:
        return fetch(x, numbers[first : first + size])

    return dataclasses.replace(x, shape=(len(numbers), *x.shape[1:]), read=read)
