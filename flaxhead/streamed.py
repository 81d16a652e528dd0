"""Exact heads over rows that don't fit into memory: read part by part, pass after pass.

What the programs see is one part of the rows and the sums of the parts before it. The
next part is read and placed while one is computed, so two of them are on the devices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from flaxhead.base import Batch, Params, PyTree
from flaxhead.data import Stored, padded
from flaxhead.data.stored import some
from flaxhead.parallel import Shares
from flaxhead.solvers import Passes

Pieces: TypeAlias = Callable[[], Iterable[Batch]]
"""One more pass over all rows, in order, in host memory: batches of one size. The last
one is filled up with rows of weight 0; `index` numbers the rows."""


_PIECE_BYTES = 2**26


def piece_rows(x: Any) -> int:
    """How many rows a part has: as many as is well read at once, in 64s."""
    row = int(np.prod(x.shape[1:])) * x.dtype.itemsize
    most = max(_PIECE_BYTES // row, getattr(x, "block", 0), 1)
    return -(-min(most, x.shape[0]) // 64) * 64


def pieces_of(rows: Batch, size: int) -> Pieces:
    """Cuts rows into batches of a size, numbered by where they are.

    Args:
      rows: arrays, or `Stored` ones: these are then read as they are placed, by each
        process what its devices hold.
      size: of a batch.
    """
    count = len(rows.labels)

    def pieces() -> Iterator[Batch]:
        for first in range(0, count, size):
            part = np.arange(first, min(first + size, count))
            numbers: Any = padded(part.astype(np.int32), size)
            yield some_rows(rows, part, size)._replace(index=numbers)

    return pieces


def some_rows(rows: Batch, numbers: np.ndarray, size: int) -> Batch:
    """The rows of some numbers, filled up to a size with rows of weight 0."""

    def take(leaf: Any) -> Any:
        if isinstance(leaf, Stored):
            return some(leaf, numbers, size)
        return padded(leaf[numbers], size)

    return jax.tree.map(take, rows)


class Sum(NamedTuple):
    """A sum over parts.

    Attributes:
      nothing: `(*arguments, *part) -> sums`, zeros.
      more: `(sums, *arguments, *part) -> sums`.
    """

    nothing: Callable[..., PyTree]
    more: Callable[..., PyTree]


class Streamed(NamedTuple):
    """A solver's programs over parts; made once, they compile once.

    Attributes:
      passes: the solver.
      first: the sum of its first pass.
      again: of the others, beside what rounding has lost of it.
    """

    passes: Passes
    first: Sum
    again: Sum


def streamed(passes: Passes) -> Streamed:
    """Makes the programs of a solver over parts."""

    def measure(*arguments: Any) -> tuple[PyTree, PyTree]:
        part = passes.measure(*arguments)
        return part, jax.tree.map(jnp.zeros_like, part)

    def add(sums: tuple[PyTree, PyTree], part: tuple[PyTree, PyTree]) -> PyTree:
        # What rounding loses of a part is kept and added with the next one: of 5,000
        # parts a loss would be off by 2e-6, more than a step near the optimum changes.
        part = jax.tree.map(jnp.subtract, part[0], sums[1])
        total = jax.tree.map(jnp.add, sums[0], part)
        lost = jax.tree.map(
            lambda new, old, more: (new - old) - more, total, sums[0], part
        )
        return total, lost

    return Streamed(passes, _sum(passes.summarise, passes.merge), _sum(measure, add))


def _sum(measure: Callable[..., PyTree], merge: Callable[..., PyTree]) -> Sum:
    def nothing(*arguments: Any) -> PyTree:
        shapes = jax.eval_shape(measure, *arguments)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def more(sums: PyTree, *arguments: Any) -> PyTree:
        return merge(sums, measure(*arguments))

    return Sum(nothing, more)


def add_up(
    shares: Shares,
    total: Sum,
    parts: Iterable[Any],
    *arguments: Any,
    place: Callable[[Any], tuple[Any, ...]],
) -> Any:
    """Sums over the parts of one pass.

    Args:
      shares: the devices.
      total: what is summed.
      parts: in host memory.
      *arguments: placed, the same for every part.
      place: a part -> what of it is placed.
    """
    sums: Any = None
    for part in parts:
        placed = place(part)
        if sums is None:
            sums = shares.call(total.nothing, *arguments, *placed)
        # Nothing is donated: the sums before tell when their part is through, and with
        # it the room for the next. They are small beside a part.
        before, sums = sums, shares.call(total.more, sums, *arguments, *placed)
        jax.block_until_ready(before)
    if sums is None:
        raise ValueError("a pass over the pieces gave none: expected one or more")
    return sums


def solve(
    solver: Streamed,
    shares: Shares,
    parts: Callable[[], Iterable[Any]],
    hyperparameters: Any,
    *,
    place: Callable[[Any], tuple[Any, ...]],
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[Any, Any]:
    """Solves for all candidates and lanes.

    Args:
      solver: from `streamed`.
      shares: the devices.
      parts: `() -> parts`, one more pass.
      hyperparameters: `{name: [candidates]}`, placed.
      place: a part -> `(data, weights [rows, lanes])`, placed.
      progress: told how much is behind, 0 to 1.

    Returns:
      `(params, info)` with `[candidates, lanes]` leading, placed.
    """
    passes = solver.passes
    summary = add_up(shares, solver.first, parts(), place=place)
    state = shares.call(passes.begin, summary, hyperparameters)
    while True:
        share = float(shares.first(shares.call(passes.share, state)))
        progress(share)
        if share >= 1:
            return shares.call(passes.solution, state)
        point = shares.call(passes.trial, state)
        sums, _ = add_up(shares, solver.again, parts(), point, place=place)
        state = shares.call(passes.observe, state, sums)


def fit_stream(
    pieces: Pieces,
    weights: Any,
    hyperparameters: dict[str, Any],
    *,
    passes: Passes,
    shares: Shares | None = None,
) -> tuple[Params, Any]:
    """Solves an exact head over rows that are read part by part.

    Logistic regression takes a pass for each evaluation of its path, all lanes and all
    `C` side by side; the others take one or two in all. The answers are those of all
    rows in memory, but for rounding.

    Args:
      pieces: `() -> batches`, all rows in order; each call is one more pass. Batches
        are of one size, the last one filled up with rows of weight 0 (of any `index`).
      weights: `[rows, lanes]`, multiply those of the rows of that `index`; folds, and
        the fit to all rows, as lanes: `flaxhead.folds.lane_weights`.
      hyperparameters: `{name: [candidates]}`, as the solver has them.
      passes: of `flaxhead.solvers`: `logistic_pieces(...).passes`, `ridge_passes(...)`,
        `discriminant_passes(...)` or `prototype_passes(...)`. The same ones compile
        once.
      shares: devices that share each batch, whose `axis` the passes were made with;
        None: one device.

    Returns:
      `(params, info)` on the host, `[candidates, lanes]` leading; `info` is a
      `PathInfo`, or None where there is nothing to tell.

    Raises:
      ValueError: if a pass gives no batch or batches of several sizes.

    >>> import numpy as np
    >>> from flaxhead.solvers import ridge_passes
    >>> x = np.array([[-2.0], [-1.0], [1.0], [2.0]], np.float32)
    >>> labels, one = np.array([0, 0, 1, 1], np.int32), np.ones(2, np.float32)
    >>> def pieces():
    ...     for part in (slice(0, 2), slice(2, 4)):
    ...         yield Batch(x[part], labels[part], one, np.arange(4)[part])
    >>> alphas = {"alpha": [2.0]}
    >>> params, _ = fit_stream(pieces, np.ones([4, 1]), alphas, passes=ridge_passes(2))
    >>> params["output"]["kernel"].round(3).tolist()
    [[[[-0.5, 0.5]]]]
    """
    solver, shares = _programs(passes), shares or _one_device()
    weights = np.asarray(weights, np.float32)
    columns = {
        name: np.asarray(column, np.float32) for name, column in hyperparameters.items()
    }

    def parts() -> Iterator[Any]:
        size = None
        for batch in pieces():
            size = len(batch.labels) if size is None else size
            if len(batch.labels) != size:
                raise ValueError(
                    f"pieces gave a batch of {len(batch.labels)} rows after one of "
                    f"{size}: expected all of one size, the last one filled up with "
                    "rows of weight 0"
                )
            yield batch, of_rows(weights, batch)

    params, info = solve(
        solver,
        shares,
        parts,
        shares.everywhere(columns),
        place=shares.rows,
    )
    return shares.first((params, info))


def of_rows(weights: np.ndarray, batch: Batch) -> np.ndarray:
    """The weights `[batch, lanes]` of a part's rows."""
    return np.take(weights, np.asarray(batch.index), axis=0, mode="clip")


@functools.lru_cache(maxsize=16)
def _programs(passes: Passes) -> Streamed:
    return streamed(passes)


@functools.cache
def _one_device() -> Shares:
    return Shares(1)
