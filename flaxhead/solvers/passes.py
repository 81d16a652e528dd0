"""Solvers that see rows part by part, in one pass over all of them after another.

What a solver needs of the rows are sums, so they need not be in memory together: a
part's sums are added to those of the parts before it. `flaxhead.streamed` drives it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flaxhead.base import Array, Batch, Hyperparameters, Params, PyTree


class Passes(NamedTuple):
    """The programs of a solver, each pure, to be compiled and called in turn.

    A pass sums what `measure` says of each part, the first what `summarise` does:

        state = begin(summary, hyperparameters)
        while share(state) < 1:
            state = observe(state, sums of a pass at trial(state))
        params, info = solution(state)

    Where rows are split over devices, a state is the same on all of them.

    Attributes:
      summarise: `(data, weights [rows, lanes]) -> summary`, of a part.
      merge: `(summary, summary) -> summary`, of both parts; one of zeros adds nothing.
      begin: `(summary, {name: [candidates]}) -> state`.
      trial: `(state) -> point`, what a pass is to measure at.
      measure: `(point, data, weights) -> sums`, of a part; they are added up. Each
        device has its own.
      observe: `(state, sums) -> state`, of a pass.
      share: `(state) -> float32 []`, how much is behind; 1: all of it.
      solution: `(state) -> (params, info)`, `[candidates, lanes]` leading; info is
        None where there is nothing to tell.
    """

    summarise: Callable[[Batch, Array], PyTree]
    merge: Callable[[Any, Any], PyTree]
    begin: Callable[[Any, Hyperparameters], PyTree]
    trial: Callable[[Any], PyTree]
    measure: Callable[[Any, Batch, Array], PyTree]
    observe: Callable[[Any, Any], PyTree]
    share: Callable[[Any], Array]
    solution: Callable[[Any], tuple[Params, Any]]


def one_pass(
    summarise: Callable[[Batch, Array], PyTree],
    merge: Callable[[Any, Any], PyTree],
    solve: Callable[[Any, Hyperparameters], Params],
) -> Passes:
    """Makes the passes of a solver that one is enough for.

    Args:
      summarise: `(data, weights [rows]) -> summary`, of one lane.
      merge: `(summary, summary) -> summary`.
      solve: `(summary, {name: [candidates]}) -> params`, `[candidates]` leading.
    """

    def solution(state: tuple[PyTree, Hyperparameters]) -> tuple[Params, None]:
        summaries, hyperparameters = state
        params = lax.map(lambda one: solve(one, hyperparameters), summaries)
        return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), params), None

    return Passes(
        lane_by_lane(summarise),
        jax.vmap(merge),
        lambda summary, hyperparameters: (summary, hyperparameters),
        lambda state: (),
        lambda point, data, weights: (),
        lambda state, sums: state,
        lambda state: jnp.float32(1),
        solution,
    )


def lane_by_lane(
    summarise: Callable[[Batch, Array], PyTree],
) -> Callable[[Batch, Array], PyTree]:
    """Makes a function of the weights of one lane one of `[rows, lanes]`."""

    def each(data: Batch, weights: Array) -> PyTree:
        # Not side by side, which would widen and weigh a copy of the rows for each.
        return lax.map(lambda own: summarise(data, own), weights.T)

    return each
