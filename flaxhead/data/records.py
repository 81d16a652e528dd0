"""What the data room hands around: arrays of one split, and a whole dataset."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from flaxhead.base import Batch, Tokens
from flaxhead.data.stored import Stored, join, pick


class Raw(NamedTuple):
    """One split as its source stores it, unchecked.

    Attributes:
      embeddings: `[rows, dim]`, `[rows, tokens, dim]` or `[rows, views, dim]`.
      labels: `[rows]` integers or text, or a `[rows, classes]` matrix.
      mask: `[rows, tokens]`, True where a token is real.
      weights: `[rows]`.
      groups: `[rows]` text or integers; rows of one group stay in one split.
      ids: `[rows]` text or integers.
      class_names: names that integer labels, or the columns of a matrix, stand for.
      where: the file, or the argument, that error messages name.
      ignored: names of fields of a table that were not read.
    """

    embeddings: Any
    labels: Any = None
    mask: Any = None
    weights: Any = None
    groups: Any = None
    ids: Any = None
    class_names: Any = None
    where: str = ""
    ignored: tuple[str, ...] = ()


# What an npz file, or a dictionary in memory, may hold.
FIELDS = ("embeddings", "labels", "mask", "weights", "groups", "ids", "class_names")


class Embeddings(NamedTuple):
    """One split, checked, in host memory.

    Attributes:
      x: `[rows, dim]` or `[rows, tokens, dim]`, as narrow as it came (float16,
        bfloat16 or float32); may be a memory map, or `Stored`, to be read when it is
        asked for. View 0, where there are several.
      labels: `int32 [rows]` class numbers (-1: unlabelled), or `float32
        [rows, classes]` soft or multi-hot labels (NaN: this entry is missing).
      weights: `float32 [rows]`; a row of weight 0 is absent.
      mask: `bool [rows, tokens]`, True where a token is real, or None.
      groups: `[rows]` text or integers, or None.
      ids: `[rows]` text or integers; the row's number in its file by default.
      views: `[rows, views, dim]`, x the first of them, or None: rows to train on.
    """

    x: Any
    labels: np.ndarray
    weights: np.ndarray
    mask: np.ndarray | None
    groups: np.ndarray | None
    ids: np.ndarray
    views: np.ndarray | None = None


class Dataset(NamedTuple):
    """Three splits whose labels mean the same classes.

    Attributes:
      train: the rows to train on.
      val: the rows to choose by.
      test: the rows to report.
      class_names: what class number `i`, or column `i`, stands for.
      task: `multiclass` or `multilabel`.
      notes: a JSON-able record of what was split off, left out and noticed.
      unlabelled: rows to train on that have no label; None: there are none.
    """

    train: Embeddings
    val: Embeddings
    test: Embeddings
    class_names: tuple[str, ...]
    task: str
    notes: dict[str, Any]
    unlabelled: Embeddings | None = None


def take(data: Embeddings, rows: np.ndarray) -> Embeddings:
    """Returns the rows that `rows` (`bool [rows]`) selects, in order.

    All of them come back as they are: a memory map stays one. So does what is `Stored`.

    >>> import numpy as np
    >>> x, ids, weights = np.zeros((3, 2)), np.arange(3), np.ones(3)
    >>> data = Embeddings(x, ids, weights, None, None, ids)
    >>> take(data, np.array([True, False, True])).ids
    array([0, 2])
    """
    if rows.all():
        return data
    views = None if data.views is None else data.views[rows]
    if isinstance(data.x, Stored):
        x = pick(data.x, rows)
    else:
        x = data.x[rows] if views is None else views[:, 0]
    return Embeddings(
        x=x,
        labels=data.labels[rows],
        weights=data.weights[rows],
        mask=None if data.mask is None else data.mask[rows],
        groups=None if data.groups is None else data.groups[rows],
        ids=data.ids[rows],
        views=views,
    )


def concatenate(first: Embeddings, second: Embeddings) -> Embeddings:
    """Puts the rows of two splits of one dataset together, in memory or as `Stored`.

    >>> import numpy as np
    >>> x, ids, weights = np.zeros((3, 2)), np.arange(3), np.ones(3)
    >>> data = Embeddings(x, ids, weights, None, None, ids)
    >>> concatenate(data, take(data, np.array([True, False, False]))).ids
    array([0, 1, 2, 0])
    """
    if not len(second.labels):
        return first

    def together(one: Any, other: Any) -> Any:
        if one is None or other is None:
            return None
        if isinstance(one, Stored) or isinstance(other, Stored):
            return join(one, other)
        return np.concatenate([one, other])

    return Embeddings(*map(together, first, second))


def padded(tree: Any, rows: int) -> Any:
    """Arrays with rows of zeros, and so of weight 0, added up to a number of rows.

    >>> import numpy as np
    >>> padded(np.arange(2), 3)
    array([0, 1, 0])
    """

    def pad(leaf: Any) -> Any:
        more = rows - len(leaf)
        return np.pad(leaf, [(0, more), *[(0, 0)] * (leaf.ndim - 1)]) if more else leaf

    return jax.tree.map(pad, tree)


def to_batch(data: Embeddings, *, views: bool = False) -> Batch:
    """The rows of a split as a `Batch`, still in host memory.

    Args:
      data: the split.
      views: whether x is `[rows, views, dim]` where the split has views, and not the
        first of them.
    """
    x = data.x if data.views is None or not views else data.views
    values, mask, labels, weights = _any(x, data.mask, data.labels, data.weights)
    x = values if mask is None else Tokens(values, mask)
    return Batch(x, labels, weights, *_any(np.arange(len(labels), dtype=np.int32)))


def _any(*arrays: Any) -> tuple[Any, ...]:
    """NumPy arrays where those of JAX are asked for."""
    return arrays
