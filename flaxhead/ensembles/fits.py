"""Fit -> Fit: many heads of one data, whose parameters have a leading axis.

Members that differ in their seed are `flaxhead.fit.seeds`, in their hyperparameters
`flaxhead.fit.sweep`, in the rows that they leave out `flaxhead.fit.cross_fit`; here are
the draws of rows, the points of one run, and heads that learn from other heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flaxhead.base import (
    Array,
    Batch,
    Fit,
    Head,
    Hyperparameters,
    Info,
    Learner,
    MakeLearner,
    Params,
    PyTree,
    State,
)
from flaxhead.ensembles.heads import member_key, members
from flaxhead.fit import refitted, train
from flaxhead.moments import row_weights


class Offset(NamedTuple):
    """Rows, and logits of theirs that a head's own are added to.

    Attributes:
      x: the rows as the head takes them, `[batch, ...]`.
      logits: `[batch, classes]`.
    """

    x: Any
    logits: Array


def bagging(fit: Fit, count: int) -> Fit:
    """Returns the fit of `count` heads, each to a bootstrap draw of the labelled rows.

    A draw is a vector of weights: how often each of the `n` labelled rows that are
    present comes up in `n` draws with replacement, times the weight that it has. To a
    semi-supervised fit the rows that don't come up are rows without a label. Those that
    have none already keep their weight.

    Source: Breiman, 1996, "Bagging predictors".

    Args:
      fit: the run of one head.
      count: of heads, at least 1.

    Returns:
      A fit whose parameters have a leading axis of `count`. Member `i` draws by the
      key `fold_in(key, i)`, so that more members don't change the first.

    Raises:
      ValueError: if `count` is below 1.

    >>> from flaxhead.solvers import ridge
    >>> data = Batch(jnp.eye(4), jnp.array([0, 1, 0, 1]), jnp.ones(4), jnp.arange(4))
    >>> run = bagging(ridge(2), 3)
    >>> params = run(data, jnp.ones(4), {"alpha": jnp.ones(())}, jax.random.key(0))
    >>> params["output"]["kernel"].shape
    (3, 4, 2)
    """
    _check_count("count", count)

    def run(
        data: Batch, weights: Array, hyperparameters: Hyperparameters, key: Array
    ) -> Params:
        labelled = row_weights(data.labels, data.weights * weights) > 0

        def member(number: Array) -> Params:
            draw, own = jax.random.split(jax.random.fold_in(key, number))
            times = jnp.where(labelled, _draws(draw, labelled), 1)
            return fit(data, weights * times, hyperparameters, own)

        return jax.vmap(member)(jnp.arange(count))

    return run


def snapshots(
    make_learner: MakeLearner,
    *,
    steps: int,
    batch_size: int,
    count: int,
    unlabelled: int = 0,
    balanced: int = 0,
) -> Fit:
    """Returns a training run that keeps its parameters `count` times, evenly spaced.

    With the learning rate of `cosine_cycles` these are the ends of its cycles, each a
    head that has settled down in a minimum of its own: an ensemble at the price of one
    run.

    Source: Huang et al., 2017, "Snapshot ensembles: train 1, get M for free".

    Args:
      make_learner: see `flaxhead.fit.train`.
      steps: optimisation steps of the whole run.
      batch_size: rows a step; all rows if there are fewer.
      count: of snapshots, from 1 to `steps`.
      unlabelled: see `flaxhead.fit.train`.
      balanced: see `flaxhead.fit.train`.

    Returns:
      A fit whose parameters have a leading axis of `count`: those after
      `ceil(i steps / count)` steps, `i` from 1. The last are what `train` returns.

    Raises:
      ValueError: if `count` is below 1 or above `steps`.

    >>> from flaxhead.heads import linear
    >>> from flaxhead.losses import softmax_cross_entropy
    >>> from flaxhead.objectives import supervised
    >>> from flaxhead.step import learner
    >>> head = linear(2)
    >>> objective = supervised(head, softmax_cross_entropy)
    >>> def make(hyperparameters):
    ...     rate = cosine_cycles(hyperparameters["rate"], steps=9, count=3)
    ...     return learner(head, objective, optax.sgd(rate))
    >>> data = Batch(jnp.eye(2), jnp.array([0, 1]), jnp.ones(2), jnp.arange(2))
    >>> run = snapshots(make, steps=9, batch_size=2, count=3)
    >>> params = run(data, jnp.ones(2), {"rate": jnp.ones(())}, jax.random.key(0))
    >>> params["output"]["kernel"].shape
    (3, 2, 2)
    """
    _check_cycles(steps, count)

    def start(params: Params) -> PyTree:
        return jax.tree.map(lambda leaf: jnp.stack([leaf] * count), params)

    def keep(kept: PyTree, params: Params, step: Array) -> PyTree:
        # Each step of a cycle overwrites the one before, and so the last one stays.
        cycle = step * count // steps
        return jax.tree.map(lambda all, leaf: all.at[cycle].set(leaf), kept, params)

    return _kept(
        make_learner,
        start,
        keep,
        steps=steps,
        batch_size=batch_size,
        unlabelled=unlabelled,
        balanced=balanced,
    )


def cosine_cycles(peak: float | Array, *, steps: int, count: int) -> optax.Schedule:
    r"""A learning rate that falls from its peak to 0 in cycles, one a snapshot.

    It is \(\mathrm{peak} / 2 \; (1 + \cos(\pi t))\), where \(t\) is the share of its
    cycle that is behind a step. Source: Huang et al., 2017, equation 2.

    Args:
      peak: may be a traced scalar.
      steps: of all cycles together.
      count: of cycles, from 1 to `steps`.

    Returns:
      `step -> learning rate`.

    Raises:
      ValueError: if `count` is below 1 or above `steps`.

    >>> schedule = cosine_cycles(2.0, steps=4, count=2)
    >>> [round(float(schedule(step)), 4) for step in range(4)]
    [2.0, 1.0, 2.0, 1.0]
    """
    _check_cycles(steps, count)

    def schedule(step: Any) -> Array:
        share = jnp.asarray(step * count % steps) / steps
        return peak / 2 * (1 + jnp.cos(jnp.pi * share))

    return schedule


def averaged(
    make_learner: MakeLearner,
    *,
    steps: int,
    batch_size: int,
    decay: float | Array | None = None,
    start: float = 0.0,
    unlabelled: int = 0,
    balanced: int = 0,
) -> Fit:
    r"""Returns a training run whose parameters are averaged over its steps.

    After the step number \(n\) that counts, the average moves towards the parameters by
    \(1 / n\), which makes it their plain mean, or, given a decay \(d\), by \((1 - d) /
    (1 - d^n)\), which makes it the exponential moving average over those steps alone
    ("bias-corrected": what there was before has no part in it).

    Source: Polyak and Juditsky, 1992, "Acceleration of stochastic approximation by
    averaging"; Izmailov et al., 2018, "Averaging weights leads to wider optima and
    better generalization".

    Args:
      make_learner: see `flaxhead.fit.train`.
      steps: optimisation steps.
      batch_size: rows a step; all rows if there are fewer.
      decay: of the exponential moving average, from 0 (the last step alone, as `train`)
        up to 1 (the plain mean); may be a traced scalar. None: the plain mean.
      start: share of the steps before any counts, in `[0, 1)`.
      unlabelled: see `flaxhead.fit.train`.
      balanced: see `flaxhead.fit.train`.

    Returns:
      A fit with the parameters of one head.

    Raises:
      ValueError: if `decay` is not in `[0, 1]` or `start` not in `[0, 1)`.

    >>> from flaxhead.heads import linear
    >>> from flaxhead.losses import softmax_cross_entropy
    >>> from flaxhead.objectives import supervised
    >>> from flaxhead.step import learner
    >>> head = linear(2)
    >>> objective = supervised(head, softmax_cross_entropy)
    >>> def make(hyperparameters):
    ...     return learner(head, objective, optax.sgd(hyperparameters["rate"]))
    >>> data = Batch(jnp.eye(2), jnp.array([0, 1]), jnp.ones(2), jnp.arange(2))
    >>> run = averaged(make, steps=9, batch_size=2, start=0.75)
    >>> params = run(data, jnp.ones(2), {"rate": jnp.ones(())}, jax.random.key(0))
    >>> head.apply(params, data.x).argmax(-1).tolist()
    [0, 1]
    """
    if isinstance(decay, int | float) and not 0 <= decay <= 1:
        raise ValueError(f"decay is {decay}: expected one in [0, 1], or None")
    if not 0 <= start < 1:
        raise ValueError(f"start is {start}: expected a share of the steps in [0, 1)")
    skipped = int(start * steps)

    def keep(average: PyTree, params: Params, step: Array) -> PyTree:
        # Before any step counts, the average is the latest; a rate of 1.
        number = jnp.maximum(step + 1 - skipped, 1).astype(jnp.float32)
        rate = 1 / number if decay is None else _decayed(decay, number)
        return jax.tree.map(
            lambda mean, leaf: (1 - rate) * mean + rate * leaf, average, params
        )

    return _kept(
        make_learner,
        lambda params: params,
        keep,
        steps=steps,
        batch_size=batch_size,
        unlabelled=unlabelled,
        balanced=balanced,
    )


def boosting(fit: Fit, head: Head, *, rounds: int, rate: float | Array = 1.0) -> Fit:
    """Returns the fit of heads one after the other, each on top of those before.

    Each is fitted with the sum of the earlier ones' logits, times the rate, as an
    offset to its own, and so learns what they leave to be learnt. Its rows are the
    pairs `Offset`, to which `offset` fits any head.

    Source: Friedman, Hastie and Tibshirani, 2000, "Additive logistic regression: a
    statistical view of boosting"; the rate: Friedman, 2001, "Greedy function
    approximation: a gradient boosting machine".

    Args:
      fit: of `offset(head)`, for example `train` of a learner of it.
      head: without the offset.
      rounds: how many heads, at least 1.
      rate: what each head's logits are multiplied by; may be a traced scalar.

    Returns:
      A fit whose parameters have a leading axis of `rounds`, for `boosted`. The key of
      a round is `fold_in(key, round)`.

    Raises:
      ValueError: if `rounds` is below 1.

    >>> from flaxhead.heads import linear
    >>> from flaxhead.losses import softmax_cross_entropy
    >>> from flaxhead.objectives import supervised
    >>> from flaxhead.step import learner
    >>> head = linear(2)
    >>> objective = supervised(offset(head), softmax_cross_entropy)
    >>> def make(hyperparameters):
    ...     return learner(offset(head), objective, optax.sgd(hyperparameters["rate"]))
    >>> data = Batch(jnp.eye(2), jnp.array([0, 1]), jnp.ones(2), jnp.arange(2))
    >>> one = train(make, steps=9, batch_size=2)
    >>> run = boosting(one, head, rounds=3, rate=0.5)
    >>> params = run(data, jnp.ones(2), {"rate": jnp.ones(())}, jax.random.key(0))
    >>> boosted(head, rounds=3, rate=0.5).apply(params, data.x).argmax(-1).tolist()
    [0, 1]
    """
    _check_count("rounds", rounds)

    def run(
        data: Batch, weights: Array, hyperparameters: Hyperparameters, key: Array
    ) -> Params:
        def one_more(logits: Array, number: Array) -> tuple[Array, Params]:
            pairs = data._replace(x=Offset(data.x, logits))
            own = jax.random.fold_in(key, number)
            params = fit(pairs, weights, hyperparameters, own)
            return logits + rate * head.apply(params, data.x), params

        shape = jax.eval_shape(lambda x: head.apply(head.init(key, x), x), data.x)
        nothing = jnp.zeros(shape.shape, shape.dtype)
        return jax.lax.scan(one_more, nothing, jnp.arange(rounds))[1]

    return run


def offset(head: Head) -> Head:
    """A head on `Offset`, with the parameters of `head`: its logits and those given.

    >>> from flaxhead.heads import linear
    >>> rows = Offset(jnp.ones([1, 3]), jnp.array([[1.0, 2.0]]))
    >>> params = offset(linear(2)).init(jax.random.key(0), rows)
    >>> offset(linear(2)).apply(params, rows).tolist()
    [[1.0, 2.0]]
    """

    def init(key: Array, x: Offset) -> Params:
        return head.init(key, x.x)

    def apply(
        params: Params, x: Offset, *, key: Array | None = None, train: bool = False
    ) -> Array:
        return x.logits + head.apply(params, x.x, key=key, train=train)

    return Head(init, apply)


def boosted(head: Head, *, rounds: int, rate: float | Array = 1.0) -> Head:
    """The head of `boosting`: the sum of its rounds' logits, times the rate.

    Args:
      head: that of one round.
      rounds: how many there are.
      rate: the one of `boosting`.

    Returns:
      A `Head` whose parameters are those of `head` with a leading axis of `rounds`.

    Raises:
      ValueError: if `rounds` is below 1.
    """
    _check_count("rounds", rounds)
    several = members(head, rounds)

    def apply(
        params: Params, x: Any, *, key: Array | None = None, train: bool = False
    ) -> Array:
        return rate * jnp.sum(several.apply(params, x, key=key, train=train), axis=0)

    return Head(several.init, apply)


def stacking(
    fits: Sequence[tuple[Fit, Head]], fold: Array, *, folds: int, meta: Fit
) -> Fit:
    """Returns the fit of heads, and of one that learns how to combine them.

    What the last one learns from is what the others say of rows that they have not
    seen: each is cross-fitted, and the log-probabilities of all of them, side by side,
    are the features of `meta`. Each is then fitted to all rows, in the same program.

    Source: Wolpert, 1992, "Stacked generalization".

    Args:
      fits: of each head, and the head; of classes that exclude each other.
      fold: `int32 [rows]`, the fold that leaves a row out; -1: the row is in none.
        `folds` or more: it is in all of them, so that no head is without it, and
        `meta` doesn't see it.
      folds: how many there are.
      meta: the fit of a head to `[rows, heads * classes]` log-probabilities.

    Returns:
      A fit with parameters `{"base": (params of each head, ...), "meta": params}`, for
      `stacked`. All fits get all `hyperparameters`; head `i` has the key `fold_in(key,
      i)` and `meta` the next.

    Raises:
      ValueError: if there are no fits.

    >>> from flaxhead.heads import linear
    >>> from flaxhead.solvers import ridge
    >>> data = Batch(jnp.eye(4), jnp.array([0, 1, 0, 1]), jnp.ones(4), jnp.arange(4))
    >>> base = [(ridge(2), linear(2)), (ridge(2), linear(2))]
    >>> run = stacking(base, jnp.array([0, 0, 1, 1]), folds=2, meta=ridge(2))
    >>> params = run(data, jnp.ones(4), {"alpha": jnp.ones(())}, jax.random.key(0))
    >>> params["meta"]["output"]["kernel"].shape
    (4, 2)
    """
    if not fits:
        raise ValueError("fits is empty: expected pairs of a fit and a head")
    inside = (fold >= 0) & (fold < folds)

    def run(
        data: Batch, weights: Array, hyperparameters: Hyperparameters, key: Array
    ) -> Params:
        base, said = [], []
        for number, (fit, head) in enumerate(fits):
            own = jax.random.fold_in(key, number)
            both = refitted(fit, head, fold, folds=folds)
            logits, params = both(data, weights, hyperparameters, own)
            said.append(jax.nn.log_softmax(logits))
            base.append(params)
        features = data._replace(
            x=jax.lax.stop_gradient(jnp.concatenate(said, axis=-1)),
            weights=jnp.where(inside, data.weights, 0),
        )
        own = jax.random.fold_in(key, len(base))
        return {
            "base": tuple(base),
            "meta": meta(features, weights, hyperparameters, own),
        }

    return run


def stacked(heads: Sequence[Head], meta: Head) -> Head:
    """The head of `stacking`: `meta` on the log-probabilities of the others.

    Args:
      heads: in the order of the fits.
      meta: the head of the last fit.

    Returns:
      A `Head` with parameters `{"base": (params of each head, ...), "meta": params}`.
    """

    def features(params: Sequence[Params], x: Any, key: Array | None, train: bool):
        said = [
            head.apply(own, x, key=_of(key, number), train=train)
            for number, (head, own) in enumerate(zip(heads, params, strict=True))
        ]
        return jnp.concatenate([jax.nn.log_softmax(one) for one in said], axis=-1)

    def init(key: Array, x: Any) -> Params:
        keys = jax.random.split(key, len(heads) + 1)
        base = tuple(head.init(own, x) for head, own in zip(heads, keys, strict=False))
        return {
            "base": base,
            "meta": meta.init(keys[-1], features(base, x, None, False)),
        }

    def apply(
        params: Params, x: Any, *, key: Array | None = None, train: bool = False
    ) -> Array:
        own = _of(key, len(heads))
        said = features(params["base"], x, key, train)
        return meta.apply(params["meta"], said, key=own, train=train)

    return Head(init, apply)


def _draws(key: Array, present: Array) -> Array:
    """How often each of the `n` present rows comes up in `n` draws, `int32 [rows]`."""
    rows = len(present)
    count = jnp.sum(present)
    drawn = jax.random.randint(key, [rows], 0, jnp.maximum(count, 1))
    # Row numbers, the present ones first and in their order: absent rows are as good
    # as deleted.
    order = jnp.argsort(~present, stable=True)
    times = (jnp.arange(rows) < count).astype(jnp.int32)
    return jnp.zeros(rows, jnp.int32).at[order[drawn]].add(times)


def _decayed(decay: float | Array, number: Array) -> Array:
    """`(1 - d) / (1 - d^n)`, and its limit `1 / n` at 1; exactly 1 for `n` of 1."""
    decay = jnp.asarray(decay, jnp.float32)
    below = jnp.where(decay < 1, decay, 0)
    rate = jnp.expm1(jnp.log(below)) / jnp.expm1(number * jnp.log(below))
    return jnp.where(decay < 1, rate, 1 / number)


def _kept(make_learner: MakeLearner, start: Any, keep: Any, **settings: int) -> Fit:
    """A training run that returns what it kept along with its parameters.

    It is carried as a second part of the parameters, so that `train` is the one place
    where rows are drawn and steps are taken.

    Args:
      make_learner: see `flaxhead.fit.train`.
      start: `(params) -> kept`.
      keep: `(kept, params, step) -> kept`, after step number `step`, from 0.
      **settings: of `flaxhead.fit.train`.
    """

    def make(hyperparameters: Hyperparameters) -> Learner:
        learner = make_learner(hyperparameters)

        def init(key: Array, batch: Batch) -> State:
            state = learner.init(key, batch)
            return state._replace(params=(state.params, start(state.params)))

        def step(state: State, batch: Batch) -> tuple[State, Info]:
            params, kept = state.params
            after, info = learner.step(state._replace(params=params), batch)
            kept = keep(kept, after.params, state.step)
            return after._replace(params=(after.params, kept)), info

        return Learner(init, step)

    one = train(make, **settings)

    def run(
        data: Batch, weights: Array, hyperparameters: Hyperparameters, key: Array
    ) -> Params:
        return one(data, weights, hyperparameters, key)[1]

    return run


def _of(key: Array | None, number: int) -> Array | None:
    return None if key is None else member_key(key, number)


def _check_count(name: str, count: int) -> None:
    if count < 1:
        raise ValueError(f"{name} is {count}: expected at least 1")


def _check_cycles(steps: int, count: int) -> None:
    if not 1 <= count <= steps:
        raise ValueError(f"count is {count}: expected from 1 to steps, {steps}")
