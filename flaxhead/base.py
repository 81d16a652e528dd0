"""The nouns of flaxhead, read first: plain tuples of arrays and of pure functions.

A *head* turns embeddings into logits, an *objective* turns logits into sums, a
*learner* takes one optimisation step, a *fit* takes many. Each is a pair of pure
functions or a single one; what they carry is a pytree of arrays only. Nothing here
subclasses anything of ours, and there is no logic in this file but the arithmetic of
objectives, `a + weight * b`.

    config -> data -> head -> loss -> objective -> learner
           -> program -> select -> bundle
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax

Array: TypeAlias = jax.Array
PyTree: TypeAlias = Any
Params: TypeAlias = Any
# Rows are numbered by int32, and their keys folded in by it: none has this number.
_SUM = 2**32 - 2


class Tokens(NamedTuple):
    """A set of token embeddings for every row, with the padding masked out.

    Attributes:
      values: `[batch, tokens, dim]` embeddings.
      mask: `bool [batch, tokens]`, True where the token is real.
    """

    values: Array
    mask: Array


class Batch(NamedTuple):
    """Rows of embeddings. All of the training rows together are one `Batch` too.

    Attributes:
      x: `[batch, dim]` embeddings, `[batch, tokens, dim]` tokens without padding, or
        `Tokens`.
      labels: `int32 [batch]` class numbers (-1: unlabelled), or `float32
        [batch, classes]` soft or multi-hot labels (NaN: this entry is missing).
      weights: `float32 [batch]`; a row of weight 0 is absent.
      index: `int32 [batch]`, the row's number in the whole data. Randomness of a row
        is folded in by it, so it depends neither on the device nor on the position.
    """

    x: Any
    labels: Array
    weights: Array
    index: Array  # pyright: ignore[reportIncompatibleMethodOverride]


class View(Protocol):
    """`(batch, key) -> batch`: the same rows as seen by other means, noise for one.

    `key` is one typed key for all rows; what is random in a row is of the key
    `fold_in(key, batch.index)`. Labels may change too (mixup), into soft ones.
    """

    def __call__(self, batch: Batch, key: Array) -> Batch:
        """Returns the view."""
        ...


class Sums(NamedTuple):
    """A weighted sum and its weight; divided once, at the very end.

    Attributes:
      total: scalar, the sum of weights times values.
      count: scalar, the sum of weights.
    """

    total: Array
    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]


class HeadApply(Protocol):
    """`(params, x, *, key, train) -> logits [..., classes]`.

    `key` is None, one typed key for all rows, or one key a row (`[batch]`).
    """

    def __call__(
        self, params: Params, x: Any, *, key: Array | None = None, train: bool = False
    ) -> Array:
        """Returns logits."""
        ...


class Head(NamedTuple):
    """Embeddings -> logits.

    Attributes:
      init: `(key, x) -> params`.
      apply: `(params, x, *, key=None, train=False) -> logits [..., classes]`.
    """

    init: Callable[[Array, Any], Params]
    apply: HeadApply


class Loss(Protocol):
    """`(logits, labels, *, where=None, weights=None) -> per-example loss [...]`.

    `where` drops examples (`bool [...]`) or, for losses over several labels, entries
    (`bool [..., classes]`); `weights` (`[...]`) multiplies each example's loss.
    """

    def __call__(
        self,
        logits: Array,
        labels: Array,
        *,
        where: Array | None = None,
        weights: Array | None = None,
    ) -> Array:
        """Returns a loss an example."""
        ...


class Objective(NamedTuple):
    """What is minimised: a batch -> sums and counts, one entry a term.

    Attributes:
      init: `(params) -> memory`, the arrays carried between steps (`()` for none).
      apply: `(params, memory, batch, key) -> (sums, memory)` where `sums` is a dict
        of `Sums`; what is minimised is the sum over terms of `total / count`, with both
        summed over devices first.

    `a + b` minimises both, each with its memory and a key of its own; `weight * b`
    multiplies what `b` minimises, by a number or a (traced) scalar.
    """

    init: Callable[[Params], PyTree]
    apply: Callable[[Params, PyTree, Batch, Array], tuple[dict[str, Sums], PyTree]]
    __array_ufunc__ = None  # NumPy's scalars leave the product to us.

    def __add__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, other: Objective
    ) -> Objective:
        """Returns the objective of both; terms of one name are told apart by a `+`."""

        def init(params: Params) -> PyTree:
            return self.init(params), other.init(params)

        def apply(
            params: Params, memory: PyTree, batch: Batch, key: Array
        ) -> tuple[dict[str, Sums], PyTree]:
            # The first keeps its key: adding a term of weight 0 then changes nothing.
            sums, first = self.apply(params, memory[0], batch, key)
            own = jax.random.fold_in(jax.random.fold_in(key, _SUM), len(sums))
            more, second = other.apply(params, memory[1], batch, own)
            sums = dict(sums)
            for name, term in more.items():
                while name in sums:
                    name += "+"
                sums[name] = term
            return sums, (first, second)

        return Objective(init, apply)

    def __rmul__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, weight: float | Array
    ) -> Objective:
        """Returns the objective whose value is multiplied by a weight."""

        def apply(
            params: Params, memory: PyTree, batch: Batch, key: Array
        ) -> tuple[dict[str, Sums], PyTree]:
            sums, memory = self.apply(params, memory, batch, key)
            scaled = {
                name: Sums(weight * term.total, term.count)
                for name, term in sums.items()
            }
            return scaled, memory

        return Objective(self.init, apply)

    __mul__ = __rmul__  # pyright: ignore[reportAssignmentType]


class State(NamedTuple):
    """Everything the next step needs, arrays only: this is what is checkpointed.

    Attributes:
      step: `int32 []`, the number of steps taken.
      params: the head's parameters.
      opt_state: the optimiser's state.
      memory: the objective's memory.
      key: typed key, never advanced: a step's key is `fold_in(key, step)`.
    """

    step: Array
    params: Params
    opt_state: PyTree
    memory: PyTree
    key: Array


class Info(NamedTuple):
    """What a human wants to see of one step.

    Attributes:
      loss: `float32 []`, the minimised value, over all devices.
    """

    loss: Array


class Learner(NamedTuple):
    """One optimisation step: what `lax.scan` runs.

    Attributes:
      init: `(key, batch) -> state`.
      step: `(state, batch) -> (state, info)`.
    """

    init: Callable[[Array, Batch], State]
    step: Callable[[State, Batch], tuple[State, Info]]


Hyperparameters: TypeAlias = dict[str, Array]
MakeLearner: TypeAlias = Callable[[Hyperparameters], Learner]


class Fit(Protocol):
    """`(data, weights, hyperparameters, key) -> params`: a whole training run.

    `data` is a `Batch` of all rows, `weights` (`float32 [rows]`) say how much each row
    counts (0: absent), `hyperparameters` is a dict of arrays, `key` a typed key.
    """

    def __call__(
        self,
        data: Batch,
        weights: Array,
        hyperparameters: Hyperparameters,
        key: Array,
    ) -> Params:
        """Returns the trained parameters."""
        ...
