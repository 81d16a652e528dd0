"""One pass over embeddings that stay on the disk: all that has to be known of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from flaxhead import heads, processes
from flaxhead.base import Tokens
from flaxhead.data import checks
from flaxhead.data.hashes import digest, piece_digest, row_hashes
from flaxhead.data.records import Embeddings, padded
from flaxhead.data.stored import Scan, Stored, in_memory

Tick = Callable[[int, int], None]

_COMPARED = 8


class Spread(NamedTuple):
    """Sums by which features spread; those of two sets of rows add up.

    Attributes:
      count: sum of the weights.
      mean: `float64 [dim]`.
      squares: `float64 [dim]`, weighted and about the mean.
    """

    count: float  # pyright: ignore[reportIncompatibleMethodOverride]
    mean: np.ndarray
    squares: np.ndarray


def together(one: Spread, other: Spread) -> Spread:
    """Adds two sets of rows up.

    Source: Chan, Golub and LeVeque, 1983, "Algorithms for computing the sample
    variance".

    >>> one, other = (Spread(1.0, np.array([x]), np.array([0.0])) for x in (1.0, 3.0))
    >>> together(one, other)
    Spread(count=2.0, mean=array([2.]), squares=array([2.]))
    """
    count = one.count + other.count
    share = other.count / (count or 1)
    apart = other.mean - one.mean
    return Spread(
        count,
        one.mean + apart * share,
        one.squares + other.squares + apart**2 * (one.count * share),
    )


def _nothing(dim: int) -> Spread:
    return Spread(0.0, np.zeros(dim), np.zeros(dim))


def _spread(
    rows: np.ndarray, weights: np.ndarray, mask: np.ndarray | None, size: int
) -> Spread:
    """Of some rows, filled up to one size."""
    x, own = padded((rows, weights), size)  # one program does for all
    each: Any = np.prod(rows.shape[1:-1])
    if mask is not None:
        real = padded(mask, size)
        x, each = Tokens(x, real), real.sum(1)
    mean, std = (np.asarray(one, np.float64) for one in heads.statistics(x, own))
    count = float(np.sum(own.astype(np.float64) * each))
    return Spread(count, mean, count * std**2)


def _finished(spread: Spread) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the rows of all processes."""
    told = map(processes.gather, spread)
    spread = functools.reduce(together, map(Spread, *told))
    std = np.sqrt(spread.squares / (spread.count or 1))
    return spread.mean.astype(np.float32), std.astype(np.float32)


def feature_statistics(
    x: Any, weights: np.ndarray, mask: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """As `flaxhead.heads.statistics`, of rows that are more than a device holds.

    Each of several processes reads its share of them.

    Args:
      x: `[rows, dim]` or `[rows, tokens, dim]`, in memory or `Stored`.
      weights: `[rows]`.
      mask: `[rows, tokens]`, True where a token is real, or None.

    >>> feature_statistics(np.array([[1.0], [3.0]]), np.ones(2))
    (array([2.], dtype=float32), array([1.], dtype=float32))
    """
    spread = _nothing(x.shape[-1])
    parts = list(checks.chunks(x))
    for part in parts[processes.share(len(parts))]:
        real = None if mask is None else mask[part]
        own = _spread(x[part], weights[part], real, parts[0].stop)
        spread = together(spread, own)
    return _finished(spread)


def scan(data: Embeddings, where: str, *, tick: Tick | None = None) -> Embeddings:
    """Reads all rows of a split once: are they finite, and what do they tell.

    Each of several processes reads its share of them, and is told the rest.

    Args:
      data: whose embeddings are `Stored`, or in memory.
      where: what messages call them.
      tick: `(rows done, rows)`, called after each piece.

    Returns:
      The same, its embeddings `Stored` with a `Scan`.

    Raises:
      ValueError: embeddings are NaN or infinite, or another process has others.
    """
    x = in_memory(data.x)
    check_same(x, where)
    spread, parts = _nothing(x.shape[-1]), list(checks.chunks(x))
    own = parts[processes.share(len(parts))]
    begin, end = (own[0].start, own[-1].stop) if own else (0, 0)
    hashes, bad, norms = np.empty(end - begin, np.uint64), [], np.zeros(3)
    pieces = np.zeros((len(own), 32), np.uint8)
    for number, part in enumerate(own):
        rows = x[part]
        finite = checks.finite(rows)
        if not finite.all():
            bad += (part.start + np.flatnonzero(~finite)).tolist()
            continue
        pieces[number] = np.frombuffer(piece_digest(rows), np.uint8)
        hashes[part.start - begin : part.stop - begin] = row_hashes(rows)
        real = None if data.mask is None else data.mask[part]
        for few in checks.chunks(rows, checks.CACHE_BYTES):
            wide = rows[few].astype(np.float32)
            norm = np.linalg.norm(wide, axis=-1).astype(np.float64)
            norm = norm if real is None else norm[real[few]]
            norms += norm.size, norm.sum(), (norm**2).sum()
        more = _spread(rows, data.weights[part], real, parts[0].stop)
        spread = together(spread, more)
        if tick is not None:
            tick(part.stop - begin, end - begin)
    count = processes.gather(len(bad)).sum()
    if count:
        first = processes.gather_rows(np.array(bad[:8], np.int64))[:8]
        shown = ", ".join(map(str, data.ids[first])) + (", ..." if count > 8 else "")
        raise ValueError(
            f"{where}: embeddings are NaN or infinite in {count} of {len(x)} rows "
            f"({shown}), expected finite numbers; leave these rows out"
        )
    norms = processes.gather(norms).sum(0)
    mean, square = norms[1:] / max(norms[0], 1)
    told = Scan(
        digest(x, processes.gather_rows(pieces)),
        processes.gather_rows(hashes),
        _finished(spread),
        (float(mean), float(np.sqrt(max(0.0, square - mean**2)))),
    )
    return data._replace(x=dataclasses.replace(x, scan=told))


def check_same(x: Stored, where: str) -> None:
    """Raises a ValueError where a process would read another set of rows.

    None of several processes reads all of it, so a few rows stand for the others.
    """
    if jax.process_count() == 1:
        return
    some = np.unique(np.linspace(0, len(x) - 1, _COMPARED).astype(int)).tolist()
    told = [piece_digest(x[row : row + 1]).hex() for row in some]
    other = processes.differing(f"{x.dtype} {x.shape} {x.block} {told}")
    if other is not None:
        raise ValueError(
            f"{where}: process {other} finds other embeddings than process 0; expected "
            "the same files in all processes"
        )
