"""One pass over embeddings that stay on the disk: all that has to be known of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from flaxhead import heads
from flaxhead.base import Tokens
from flaxhead.data import checks
from flaxhead.data.hashes import digest_of, row_hashes
from flaxhead.data.records import Embeddings, padded
from flaxhead.data.stored import Scan, in_memory

Tick = Callable[[int, int], None]


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
    std = np.sqrt(spread.squares / (spread.count or 1))
    return spread.mean.astype(np.float32), std.astype(np.float32)


def feature_statistics(
    x: Any, weights: np.ndarray, mask: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """As `flaxhead.heads.statistics`, of rows that are more than a device holds.

    Args:
      x: `[rows, dim]` or `[rows, tokens, dim]`, in memory or `Stored`.
      weights: `[rows]`.
      mask: `[rows, tokens]`, True where a token is real, or None.

    >>> feature_statistics(np.array([[1.0], [3.0]]), np.ones(2))
    (array([2.], dtype=float32), array([1.], dtype=float32))
    """
    spread = _nothing(x.shape[-1])
    parts = list(checks.chunks(x))
    for part in parts:
        real = None if mask is None else mask[part]
        own = _spread(x[part], weights[part], real, parts[0].stop)
        spread = together(spread, own)
    return _finished(spread)


def scan(data: Embeddings, where: str, *, tick: Tick | None = None) -> Embeddings:
    """Reads all rows of a split once: are they finite, and what do they tell.

    Args:
      data: whose embeddings are `Stored`, or in memory.
      where: what messages call them.
      tick: `(rows done, rows)`, called after each piece.

    Returns:
      The same, its embeddings `Stored` with a `Scan`.

    Raises:
      ValueError: embeddings are NaN or infinite.
    """
    x = in_memory(data.x)
    digest = digest_of(x)
    hashes, bad, norms = np.empty(len(x), np.uint64), [], np.zeros(3)
    spread, parts = _nothing(x.shape[-1]), list(checks.chunks(x))
    for part in parts:
        rows = x[part]
        finite = checks.finite(rows)
        if not finite.all():
            bad += data.ids[part][~finite].tolist()
            continue
        digest.update(np.ascontiguousarray(rows).reshape(-1).view(np.uint8))
        hashes[part] = row_hashes(rows)
        real = None if data.mask is None else data.mask[part]
        for few in checks.chunks(rows, checks.CACHE_BYTES):
            wide = rows[few].astype(np.float32)
            own = np.linalg.norm(wide, axis=-1).astype(np.float64)
            own = own if real is None else own[real[few]]
            norms += own.size, own.sum(), (own**2).sum()
        more = _spread(rows, data.weights[part], real, parts[0].stop)
        spread = together(spread, more)
        if tick is not None:
            tick(part.stop, len(x))
    if bad:
        shown = ", ".join(map(str, bad[:8])) + (", ..." if len(bad) > 8 else "")
        raise ValueError(
            f"{where}: embeddings are NaN or infinite in {len(bad)} of {len(x)} rows "
            f"({shown}), expected finite numbers; leave these rows out"
        )
    mean, square = norms[1:] / max(norms[0], 1)
    told = Scan(
        digest.hexdigest(),
        hashes,
        _finished(spread),
        (float(mean), float(np.sqrt(max(0.0, square - mean**2)))),
    )
    return data._replace(x=dataclasses.replace(x, scan=told))
