"""Learner -> `Fit`: a whole training run as one pure function, and Fit -> Fit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from flaxhead.base import (
    Array,
    Batch,
    Fit,
    Head,
    Hyperparameters,
    MakeLearner,
    Params,
)
from flaxhead.objectives import rows
from flaxhead.sampling import batch_rows, labelled_first, mixed_rows


def known(data: Batch, weights: Array) -> Array:
    """Returns `bool [rows]`, the rows whose label a fit may read."""
    return rows.known(data._replace(weights=data.weights * weights))


def hide(data: Batch, weights: Array) -> Batch:
    """Returns the rows with no label but those that a fit may read, and their weights.

    A row that `weights` leave out while `data` has it stays, with its weight in `data`.
    """
    labelled = rows.labelled(data._replace(weights=data.weights * weights))
    if data.labels.ndim == 1:
        labels = jnp.where(labelled, data.labels, -1)
    else:
        labels = jnp.where(labelled[:, None], data.labels, jnp.nan)
    own = data.weights * jnp.where(labelled, weights, 1)
    return data._replace(labels=labels, weights=own)


def train(
    make_learner: MakeLearner,
    *,
    steps: int,
    batch_size: int,
    unlabelled: int = 0,
    balanced: int = 0,
    order: int | Array | None = None,
) -> Fit:
    """Returns a training run of so many steps as one `lax.scan`.

    Args:
      make_learner: hyperparameters -> `Learner`, called inside the traced program, so
        that one program serves every value of the hyperparameters.
      steps: optimisation steps.
      batch_size: rows a step; all rows if there are fewer.
      unlabelled: how many rows without a label come with these, each step, for
        objectives that learn from them. If not 0, `batch_size` counts labelled rows,
        and rows that `weights` leave out while `data` has them have no label.
      balanced: how many classes there are, if a step is to see as many labelled rows of
        each (`flaxhead.sampling.balanced_rows`); 0: all rows come equally often.
        Weights count as ever.
      order: seed of the order of the rows; None: `key` seeds it too. Heads of other
        keys, as those of `seeds`, then see the same rows in each step, which are read
        once for all of them.

    Returns:
      `(data, weights, hyperparameters, key) -> params`. Weights multiply those of
      `data`; `key` seeds the parameters and the order of the rows.

    >>> import jax, jax.numpy as jnp, optax
    >>> from flaxhead.base import Batch
    >>> from flaxhead.heads import linear
    >>> from flaxhead.losses import softmax_cross_entropy
    >>> from flaxhead.objectives import supervised
    >>> from flaxhead.step import learner
    >>> head = linear(2)
    >>> objective = supervised(head, softmax_cross_entropy)
    >>> def make(hyperparameters):
    ...     return learner(head, objective, optax.sgd(hyperparameters["rate"]))
    >>> data = Batch(jnp.eye(2), jnp.array([0, 1]), jnp.ones(2), jnp.arange(2))
    >>> run = train(make, steps=50, batch_size=2)
    >>> params = run(data, jnp.ones(2), {"rate": jnp.float32(1.0)}, jax.random.key(0))
    >>> head.apply(params, data.x).argmax(-1).tolist()
    [0, 1]
    """

    def run(
        data: Batch, weights: Array, hyperparameters: Hyperparameters, key: Array
    ) -> Params:
        learner = make_learner(hyperparameters)
        count = data.weights.shape[0]
        size = min(batch_size, count)
        state_key, order_key = jax.random.split(key)
        if order is not None:
            order_key = jax.random.key(order)
        if unlabelled:
            data = hide(data, weights)
        else:
            data = data._replace(weights=data.weights * weights)
        kinds = None
        if unlabelled or balanced:
            kinds = labelled_first(rows.labelled(data), data.labels, classes=balanced)

        def batch(step: Array) -> Batch:
            if kinds is not None:
                sizes = size, unlabelled
                index, there = mixed_rows(
                    order_key, step, kinds, sizes, jnp.arange(sum(sizes))
                )
                drawn = jax.tree.map(lambda leaf: leaf[index], data)
                return drawn._replace(weights=jnp.where(there, drawn.weights, 0))
            index = batch_rows(
                order_key,
                step.astype(jnp.uint32) * jnp.uint32(size),
                rows=count,
                positions=jnp.arange(size),
            )
            return jax.tree.map(lambda leaf: leaf[index], data)

        state = learner.init(state_key, jax.tree.map(lambda leaf: leaf[:1], data))
        state, _ = jax.lax.scan(
            lambda state, step: learner.step(state, batch(step)),
            state,
            jnp.arange(steps),
        )
        return state.params

    return run


def sweep(fit: Fit) -> Fit:
    """Returns the fit of many candidates at once, side by side in one program.

    Args:
      fit: the run of one candidate.

    Returns:
      A fit whose `hyperparameters` have a leading candidate axis, and whose parameters
      have one; rows, their order and their weights are shared by all.
    """
    return jax.vmap(fit, in_axes=(None, None, 0, None))


def seeds(fit: Fit, count: int) -> Fit:
    """Returns the fit of `count` heads that differ in their key only.

    Returns:
      A fit whose parameters have a leading axis of `count`; with `count=1` that axis
      holds what `fit` gives for `fold_in(key, 0)`.
    """

    def run(
        data: Batch, weights: Array, hyperparameters: Hyperparameters, key: Array
    ) -> Params:
        keys = jax.vmap(lambda seed: jax.random.fold_in(key, seed))(jnp.arange(count))
        return jax.vmap(fit, in_axes=(None, None, None, 0))(
            data, weights, hyperparameters, keys
        )

    return run


def cross_fit(fit: Fit, fold: Array, *, folds: int) -> Fit:
    """Returns the fit of one head a fold, each without the rows of its fold.

    A fold is a vector of weights, so the heads are one program side by side, and this
    composes with `sweep` and `seeds`.

    Args:
      fit: the run of one head; a trained or a solved one.
      fold: `int32 [rows]`, the fold that leaves a row out; -1: the row is in none,
        `folds` or more: it is in all of them.
      folds: how many there are.

    Returns:
      A fit whose parameters have a leading axis of `folds`.

    >>> from flaxhead.solvers import ridge
    >>> data = Batch(jnp.eye(4), jnp.array([0, 1, 0, 1]), jnp.ones(4), jnp.arange(4))
    >>> fits = cross_fit(ridge(2), jnp.array([0, 0, 1, 1]), folds=2)
    >>> params = fits(data, jnp.ones(4), {"alpha": jnp.ones(())}, jax.random.key(0))
    >>> params["output"]["kernel"].shape
    (2, 4, 2)
    """

    def run(
        data: Batch, weights: Array, hyperparameters: Hyperparameters, key: Array
    ) -> Params:
        inside = (fold != jnp.arange(folds)[:, None]) & (fold >= 0)
        return jax.vmap(fit, in_axes=(None, 0, None, None))(
            data, jnp.where(inside, weights, 0), hyperparameters, key
        )

    return run


def deal(labels: Array, index: Array, folds: int, key: Array) -> Array:
    """Deals the rows of each class out to folds, at random; for `cross_fit`.

    Args:
      labels: `int32 [rows]`; rows of a negative number are in every fit.
      index: `int32 [rows]`, a number of its own for each row.
      folds: how many there are.
      key: of the draw, in which a row's part hangs on its number alone.

    >>> labels = jnp.array([0, 0, 1, 1, -1])
    >>> fold = deal(labels, jnp.arange(5), 2, jax.random.key(0))
    >>> sorted(fold[:2].tolist()), sorted(fold[2:4].tolist()), int(fold[4])
    ([0, 1], [0, 1], 2)
    """
    draw = jax.vmap(jax.random.bits)(rows.row_keys(key, index))
    order = jnp.lexsort((draw, labels))
    unlabelled = jnp.sum(labels < 0)
    dealt = (jnp.arange(len(labels)) - unlabelled) % folds
    fold = jnp.zeros_like(labels).at[order].set(dealt)
    return jnp.where(labels >= 0, fold, folds)


def out_of_fold(fit: Fit, head: Head, fold: Array, *, folds: int) -> Fit:
    """Returns the logits `[rows, classes]` of each row by the fit without its fold.

    Args:
      fit: of the head.
      head: whose parameters it finds.
      fold: as for `cross_fit`; rows in every fit get the logits of one of them.
      folds: how many there are.

    >>> from flaxhead.heads import linear
    >>> from flaxhead.solvers import ridge
    >>> data = Batch(jnp.eye(4), jnp.array([0, 1, 0, 1]), jnp.ones(4), jnp.arange(4))
    >>> run = out_of_fold(ridge(2), linear(2), jnp.array([0, 0, 1, 1]), folds=2)
    >>> run(data, jnp.ones(4), {"alpha": jnp.ones(())}, jax.random.key(0)).shape
    (4, 2)
    """

    def run(
        data: Batch, weights: Array, hyperparameters: Hyperparameters, key: Array
    ) -> Params:
        params = cross_fit(fit, fold, folds=folds)(data, weights, hyperparameters, key)
        return _held_out(head, params, data.x, fold)

    return run


def refitted(fit: Fit, head: Head, fold: Array, *, folds: int) -> Fit:
    """Returns the logits of `out_of_fold`, and the parameters of a fit to all rows.

    The latter is a lane more of the same program, which shares with the others what
    does not depend on the fold. Arguments are those of `out_of_fold`.

    >>> from flaxhead.heads import linear
    >>> from flaxhead.solvers import ridge
    >>> data = Batch(jnp.eye(4), jnp.array([0, 1, 0, 1]), jnp.ones(4), jnp.arange(4))
    >>> run = refitted(ridge(2), linear(2), jnp.array([0, 0, 1, 1]), folds=2)
    >>> settings = {"alpha": jnp.ones(())}
    >>> logits, params = run(data, jnp.ones(4), settings, jax.random.key(0))
    >>> logits.shape, params["output"]["kernel"].shape
    ((4, 2), (4, 2))
    """
    # No row is left out of the lane after the last fold.
    lane = jnp.where(fold >= folds, folds + 1, fold)
    every = cross_fit(fit, lane, folds=folds + 1)

    def run(
        data: Batch, weights: Array, hyperparameters: Hyperparameters, key: Array
    ) -> Params:
        params = every(data, weights, hyperparameters, key)
        held = jax.tree.map(lambda leaf: leaf[:-1], params)
        whole = jax.tree.map(lambda leaf: leaf[-1], params)
        return _held_out(head, held, data.x, fold), whole

    return run


def _held_out(head: Head, params: Params, x: Any, fold: Array) -> Array:
    """Logits of each row by the head of its fold, `[rows, classes]`."""
    every = jax.vmap(head.apply, in_axes=(0, None))(params, x)
    return every[fold % len(every), jnp.arange(len(fold))]
