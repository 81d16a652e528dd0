"""Many heads -> one, by the average of their parameters.

Parameters can be averaged where the heads did not move apart to places that have
nothing to do with each other, which those that start from one initialisation don't; of
others the average is ruined, and refused.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.core import Tracer

from flaxhead.base import (
    Array,
    Batch,
    Fit,
    Hyperparameters,
    Learner,
    MakeLearner,
    Params,
    PyTree,
    State,
)
from flaxhead.fit import seeds, train


def soup(members: Params, *, start: Params) -> Params:
    """Averages the parameters of heads that started from one initialisation.

    Source: Wortsman et al., 2022, "Model soups: averaging weights of multiple
    fine-tuned models improves accuracy without increasing inference time".

    Args:
      members: parameters with a leading axis of heads.
      start: the parameters that each began with, with that axis too: what the same fit
        gives for `train(..., steps=0)`.

    Returns:
      The parameters of one head. Where `start` is traced it can't be looked at, and
      they are NaN if it is not the same for all.

    Raises:
      ValueError: if `start` has not the shapes of `members`, or is not the same for
        all.

    >>> members = {"bias": jnp.array([[1.0, 2.0], [3.0, 6.0]])}
    >>> soup(members, start={"bias": jnp.zeros([2, 2])})["bias"].tolist()
    [2.0, 4.0]
    """
    together = _together(members, start)
    return jax.tree.map(
        lambda leaf: jnp.where(together, jnp.mean(leaf, axis=0), jnp.nan), members
    )


def greedy_soup(
    members: Params, *, start: Params, score: Callable[[Params], Array]
) -> tuple[Params, Array]:
    """Averages those heads that do the average good, tried from the best one on.

    A head stays if the score of the average with it is not below that without it. It is
    one scan on the device, of one score a head. Source: Wortsman et al., 2022, recipe
    1.

    Args:
      members: parameters with a leading axis of heads.
      start: see `soup`.
      score: `(params) -> scalar` of one head on validation rows, larger is better. One
        that is NaN is below all others.

    Returns:
      The parameters of one head, and `bool [heads]`, which of them are in it. Of equal
      scores the first is tried first. NaN and none, if a traced `start` is not the same
      for all.

    Raises:
      ValueError: as of `soup`.

    >>> members, start = {"bias": jnp.array([0.0, 4.0, 3.0])}, {"bias": jnp.ones(3)}
    >>> score = lambda params: -abs(params["bias"] - 1.5)
    >>> params, used = greedy_soup(members, start=start, score=score)
    >>> float(params["bias"]), used.tolist()
    (1.5, [True, False, True])
    """
    together = _together(members, start)
    scores = jax.vmap(score)(members)
    order = jnp.argsort(-scores, stable=True)  # NaN comes last

    def one(number: Array) -> Params:
        return jax.tree.map(lambda leaf: leaf[number], members)

    def attempt(carry, number):
        average, count, best = carry
        share = 1 / (count + 1)
        larger = jax.tree.map(
            lambda mean, leaf: mean + share * (leaf - mean), average, one(number)
        )
        own = score(larger)
        used = own >= best
        average = jax.tree.map(
            lambda new, old: jnp.where(used, new, old), larger, average
        )
        return (average, count + used, jnp.where(used, own, best)), used

    first = one(order[0]), jnp.float32(1), scores[order[0]]
    (average, _, _), used = jax.lax.scan(attempt, first, order[1:])
    used = jnp.concatenate([jnp.ones(1, bool), used])
    used = jnp.zeros_like(used).at[order].set(used) & together
    params = jax.tree.map(lambda leaf: jnp.where(together, leaf, jnp.nan), average)
    return params, used


def shared_start(make_learner: MakeLearner, key: Array) -> MakeLearner:
    """Returns learners that begin with the same parameters, whatever their key.

    Their order of rows and their noise are of their own key still, so that `seeds` of
    a `train` of them differ in those alone.

    Args:
      make_learner: see `flaxhead.fit.train`.
      key: of the initialisation that they share.

    >>> import optax
    >>> from flaxhead.heads import mlp
    >>> from flaxhead.losses import softmax_cross_entropy
    >>> from flaxhead.objectives import supervised
    >>> from flaxhead.step import learner
    >>> head = mlp(2, width=3)
    >>> objective = supervised(head, softmax_cross_entropy)
    >>> def make(hyperparameters):
    ...     return learner(head, objective, optax.sgd(hyperparameters["rate"]))
    >>> data = Batch(jnp.eye(2), jnp.array([0, 1]), jnp.ones(2), jnp.arange(2))
    >>> same = shared_start(make, jax.random.key(7))
    >>> run = seeds(train(same, steps=0, batch_size=2), 4)
    >>> start = run(data, jnp.ones(2), {"rate": jnp.ones(())}, jax.random.key(0))
    >>> bool(jnp.all(start["hidden_0"]["kernel"] == start["hidden_0"]["kernel"][0]))
    True
    """

    def make(hyperparameters: Hyperparameters) -> Learner:
        learner = make_learner(hyperparameters)

        # All of it starts from the shared key: the optimiser's state and the
        # objective's memory may hold the parameters too.
        def init(own: Array, batch: Batch) -> State:
            return learner.init(key, batch)._replace(key=own)

        return Learner(init, learner.step)

    return make


def soups(
    make_learner: MakeLearner,
    *,
    steps: int,
    batch_size: int,
    count: int,
    unlabelled: int = 0,
    balanced: int = 0,
) -> Fit:
    """Returns the fit of one head, the average of `count` runs from one initialisation.

    The runs differ in the order of their rows and in their noise. Runs that differ in
    their hyperparameters are `flaxhead.fit.sweep` of a fit, which share a key and so
    their initialisation, for `soup` or `greedy_soup`.

    Args:
      make_learner: see `flaxhead.fit.train`.
      steps: optimisation steps of each run.
      batch_size: rows a step; all rows if there are fewer.
      count: of runs, at least 1.
      unlabelled: see `flaxhead.fit.train`.
      balanced: see `flaxhead.fit.train`.

    Returns:
      A fit with the parameters of one head.

    Raises:
      ValueError: if `count` is below 1.

    >>> import optax
    >>> from flaxhead.heads import mlp
    >>> from flaxhead.losses import softmax_cross_entropy
    >>> from flaxhead.objectives import supervised
    >>> from flaxhead.step import learner
    >>> head = mlp(2, width=3)
    >>> objective = supervised(head, softmax_cross_entropy)
    >>> def make(hyperparameters):
    ...     return learner(head, objective, optax.sgd(hyperparameters["rate"]))
    >>> data = Batch(jnp.eye(2), jnp.array([0, 1]), jnp.ones(2), jnp.arange(2))
    >>> run = soups(make, steps=20, batch_size=1, count=4)
    >>> params = run(data, jnp.ones(2), {"rate": jnp.ones(())}, jax.random.key(0))
    >>> head.apply(params, data.x).argmax(-1).tolist()
    [0, 1]
    """
    if count < 1:
        raise ValueError(f"count is {count}: expected at least 1")

    def run(
        data: Batch, weights: Array, hyperparameters: Hyperparameters, key: Array
    ) -> Params:
        first, rest = jax.random.split(key)
        make = shared_start(make_learner, first)
        one = train(
            make,
            steps=steps,
            batch_size=batch_size,
            unlabelled=unlabelled,
            balanced=balanced,
        )
        members = seeds(one, count)(data, weights, hyperparameters, rest)
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), members)

    return run


def _together(members: Params, start: Params) -> Array:
    """Whether the heads started alike, `bool []`; refused if it can be seen not to."""
    shapes, own = (_shapes(tree) for tree in (start, members))
    if shapes != own:
        raise ValueError(
            f"start has the shapes {shapes}: expected those of members, {own}"
        )
    alike = jnp.stack([jnp.all(leaf == leaf[:1]) for leaf in jax.tree.leaves(start)])
    together = jnp.all(alike)
    if not isinstance(together, Tracer) and not together:
        raise ValueError(
            "members did not start from one initialisation (start differs along its"
            " leading axis), and the average of such parameters is no head: train them"
            " from shared_start, or pool what they predict instead"
        )
    return together


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.shape, tree)
