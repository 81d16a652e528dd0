"""Fit -> Fit: what the rows without a label add to any head.

A row is without a label where its label is -1, and where `weights` leave it out while
`data` has it: a fold's held-out rows, and those beyond a few-shot draw, are unlabelled
rows, whose labels are not read. A row of weight 0 in `data` is absent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxhead.base import Array, Batch, Fit, Head, Hyperparameters, Params
from flaxhead.fit import deal, known, refitted
from flaxhead.graph import (
    Graph,
    balance,
    induct,
    knn_graph,
    mixture,
    product_of_experts,
    spread,
    union,
)
from flaxhead.moments import (
    class_moments,
    class_shares,
    divisor,
    exact,
    weighted_mean,
)
from flaxhead.solvers.discriminant import whitening

_LABELS_OF_TRUST = 3
_SHRINKAGE = 0.3  # of the covariance within classes, where a graph is drawn again
_GUESSES = 0.05  # what a guess weighs beside a label, where labels are spread again
_SHARPER = 2.0  # votes to this power, as those of guesses are softer


class Votes(NamedTuple):
    """What the graph says.

    Attributes:
      rows: `[rows, classes]` probabilities of all rows.
      carry: `(x [queries, dim]) -> [queries, classes]`, of new rows.
      trust: `[]`, from 0 to 1, the share that a head fitted to the labels deserves in
        a product with them: `k / (k + 3)` for `k` labelled rows a class.
    """

    rows: Array
    carry: Callable[[Any], Array]
    trust: Array


def vote(
    data: Batch,
    weights: Array,
    *,
    classes: int,
    k: int = 10,
    power: float = 3.0,
    alpha: float = 0.95,
    graph: Graph | None = None,
) -> Votes:
    """Spreads labels along two graphs of nearest rows, joined.

    The first joins rows that are alike about their mean. What it says of all rows gives
    the covariance within classes, and the second graph joins rows that are alike where
    that is the same in all directions; its edges weigh as much as the labels are
    trusted. Votes are balanced to the prior of the labelled rows, and then spread once
    more, beside the labels.

    Args:
      data: all rows.
      weights: `[rows]`, 0 for those whose label is not to be read.
      classes: how many there are.
      k: see `flaxhead.graph.knn_graph`.
      power: see `flaxhead.graph.knn_graph`.
      alpha: see `flaxhead.graph.spread`.
      graph: over all rows, in place of these two: for more rows than can be compared
        with each other, see `flaxhead.graph.approximate_neighbours`.

    Raises:
      ValueError: if the graph is of another number of rows.
    """
    if graph is not None and len(graph.neighbours) != len(data.labels):
        raise ValueError(
            f"graph is of {len(graph.neighbours)} rows: expected {len(data.labels)}, as"
            " data has"
        )
    labelled = known(data, weights)
    shares = jnp.where(labelled[:, None], class_shares(data.labels, classes), 0)
    prior = smoothed_prior(shares, data.weights * weights)
    present = data.weights
    each = jnp.sum(labelled) / classes
    trust = each / (each + _LABELS_OF_TRUST)

    def votes(graph: Any) -> Array:
        def spreaded(sources: Array) -> Array:
            return balance(spread(graph, sources, alpha=alpha), prior, present)

        guesses = jnp.where(labelled[:, None], 0, spreaded(shares))
        return spreaded(shares + _GUESSES * guesses)

    x = data.x.astype(jnp.float32)
    mean = weighted_mean(x, present)
    plain = x - mean
    spaces: list[Callable[[Array], Array]] = [lambda x: x]
    of_graphs = jnp.stack([jnp.ones(()), trust])
    if graph is None:
        first = knn_graph(plain, present, k=k, power=power)
        moments = class_moments(plain, votes(first), present, classes=classes)
        whiten = whitening(moments, _SHRINKAGE)
        second = knn_graph(exact(plain, whiten), present, k=k, power=power)
        graph = union(first, second, weights=of_graphs)
        spaces.append(lambda x: exact(x, whiten))
    rows = votes(graph) ** _SHARPER
    rows /= jnp.sum(rows, axis=1, keepdims=True)

    def carry(x: Any) -> Array:
        told = [
            induct(space(x - mean), space(plain), rows, present, k=k, power=power)
            for space in spaces
        ]
        return mixture(*told, weights=of_graphs[: len(told)])

    return Votes(rows, carry, trust)


def with_graph(
    fit: Fit,
    head: Head,
    *,
    classes: int,
    k: int = 10,
    power: float = 3.0,
    alpha: float = 0.95,
    graph: Graph | None = None,
) -> Fit:
    """Returns the fit of a head to labels that a graph and the head agree on.

    What `vote` says is multiplied with what the head, fitted to the labelled rows,
    says; the same head is then fitted to the product, on all rows. Labelled rows keep
    their labels.

    Args:
      fit: of the head, to class numbers and to soft labels.
      head: whose parameters it finds; of classes that exclude each other.
      classes: the number of logits.
      k: see `flaxhead.graph.knn_graph`.
      power: see `flaxhead.graph.knn_graph`.
      alpha: see `flaxhead.graph.spread`.
      graph: see `vote`; over the rows that the fit will get.

    Returns:
      A `Fit` of the same hyperparameters. The graph does not depend on them, so that
      under `vmap` candidates share it.

    >>> from flaxhead.heads import linear
    >>> from flaxhead.solvers import ridge
    >>> x = jnp.array([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0], [0.2, 1.0]])
    >>> data = Batch(x, jnp.array([0, -1, 1, -1]), jnp.ones(4), jnp.arange(4))
    >>> run = jax.jit(with_graph(ridge(2), linear(2), classes=2, k=1))
    >>> params = run(data, jnp.ones(4), {"alpha": jnp.ones(())}, jax.random.key(0))
    >>> linear(2).apply(params, x).argmax(-1).tolist()
    [0, 0, 1, 1]
    """

    def run(
        data: Batch, weights: Array, hyperparameters: Hyperparameters, key: Array
    ) -> Params:
        first, second = jax.random.split(key)
        votes = vote(
            data,
            weights,
            classes=classes,
            k=k,
            power=power,
            alpha=alpha,
            graph=graph,
        )
        params = fit(data, weights, hyperparameters, first)
        own = jax.nn.softmax(head.apply(params, data.x))
        guess = product_of_experts(own**votes.trust, votes.rows)
        # Squared: a head fitted to soft guesses is softer still.
        guess = product_of_experts(guess, guess)
        return _fit_to(fit, data, weights, hyperparameters, second, guess)

    return run


def self_train(
    fit: Fit,
    head: Head,
    *,
    classes: int,
    threshold: float | Array = 0.95,
    rounds: int = 5,
) -> Fit:
    """Returns the fit of a head to labels that it gave itself, round after round.

    In each round the head is fitted to the labelled rows and, with a class of their
    own, the rows without a label of which it was sure in the round before.

    Args:
      fit: of the head, to class numbers and to soft labels.
      head: whose parameters it finds; of classes that exclude each other.
      classes: the number of logits.
      threshold: the least probability of a class that is sure; above 1 none is.
      rounds: fits after the first one.

    Source: Yarowsky, 1995, "Unsupervised word sense disambiguation rivaling supervised
    methods".

    >>> from flaxhead.heads import linear
    >>> from flaxhead.solvers import ridge
    >>> x = jnp.array([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0], [0.2, 1.0]])
    >>> data = Batch(x, jnp.array([0, -1, 1, -1]), jnp.ones(4), jnp.arange(4))
    >>> run = self_train(ridge(2), linear(2), classes=2, threshold=0.6, rounds=2)
    >>> params = jax.jit(run)(
    ...     data, jnp.ones(4), {"alpha": jnp.ones(())}, jax.random.key(0)
    ... )
    >>> linear(2).apply(params, x).argmax(-1).tolist()
    [0, 0, 1, 1]
    """

    def run(
        data: Batch, weights: Array, hyperparameters: Hyperparameters, key: Array
    ) -> Params:
        first, *keys = jax.random.split(key, rounds + 1)

        def again(params: Params, key: Array) -> tuple[Params, None]:
            guess = jax.nn.softmax(head.apply(params, data.x))
            sure = jnp.max(guess, axis=1) >= threshold
            guess = jax.nn.one_hot(jnp.argmax(guess, axis=1), classes)
            fitted = _fit_to(fit, data, weights, hyperparameters, key, guess, sure)
            return fitted, None

        params = fit(data, weights, hyperparameters, first)
        if not rounds:
            return params
        return jax.lax.scan(again, params, jnp.stack(keys))[0]

    return run


def guard(
    supervised: Fit,
    semi: Fit,
    head: Head,
    *,
    classes: int,
    folds: int = 5,
    shares: Sequence[float] = (0.0, 1.0),
) -> Fit:
    """Returns the fit that is better on labelled rows which it did not see.

    Both are cross-fitted on the labelled rows, and compared by the NLL of the rows that
    each fit left out. Where a class has one labelled row nothing can be held out; rows
    of such classes don't count, and without any other the second is trusted.

    Args:
      supervised: the fit to fall back to.
      semi: the fit that uses rows without a label; of the same head.
      head: whose parameters both find; of classes that exclude each other.
      classes: the number of logits.
      folds: how many parts the labelled rows are cut into.
      shares: how much of the second to try, from 0 to 1. Parameters are mixed, which is
        sound for linear heads alone: it mixes their logits exactly. Leave it at
        `(0, 1)`, one or the other, for heads with hidden layers.

    Returns:
      A `Fit` of the hyperparameters of both, which costs `folds + 1` of each.

    Raises:
      ValueError: for fewer than two folds, no shares, or one outside [0, 1].

    >>> from flaxhead.heads import linear
    >>> from flaxhead.solvers import ridge
    >>> fit, head = ridge(2), linear(2)
    >>> run = guard(fit, with_graph(fit, head, classes=2, k=1), head, classes=2)
    >>> x = jnp.array([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0], [0.2, 1.0]])
    >>> data = Batch(x, jnp.array([0, -1, 1, -1]), jnp.ones(4), jnp.arange(4))
    >>> settings = {"alpha": jnp.ones(())}
    >>> params = jax.jit(run)(data, jnp.ones(4), settings, jax.random.key(0))
    >>> linear(2).apply(params, x).argmax(-1).tolist()
    [0, 0, 1, 1]
    """
    if folds < 2 or not shares or not all(0 <= one <= 1 for one in shares):
        raise ValueError(
            f"folds is {folds} and shares is {tuple(shares)}: expected 2 or more folds,"
            " and one or more shares from 0 to 1"
        )

    def run(
        data: Batch, weights: Array, hyperparameters: Hyperparameters, key: Array
    ) -> Params:
        cut_key, key = jax.random.split(key)
        labelled = known(data, weights)
        of = class_shares(data.labels, classes)
        own = jnp.where(labelled, jnp.argmax(of, axis=1), -1)
        fold = deal(own, data.index, folds, cut_key)
        arguments = data, weights, hyperparameters
        (first, plain), (second, more) = (
            refitted(one, head, fold, folds=folds)(*arguments, key)
            for one in (supervised, semi)
        )
        counts = jnp.zeros(classes).at[own].add(jnp.where(labelled, 1, 0))
        judged = jnp.where(labelled & (counts[own] > 1), data.weights * weights, 0)

        def nll(share: Array) -> Array:
            logits = (1 - share) * first + share * second
            terms = -jnp.sum(of * jax.nn.log_softmax(logits), axis=1)
            return jnp.sum(jnp.where(judged > 0, judged * terms, 0))

        tried = jnp.asarray(sorted(shares, reverse=True), jnp.float32)
        # Of equals the first, which is the most of the second, is taken.
        share = tried[jnp.argmin(jax.lax.map(nll, tried))]
        return jax.tree.map(
            lambda a, b: jnp.where(
                share == 0, a, jnp.where(share == 1, b, (1 - share) * a + share * b)
            ),
            plain,
            more,
        )

    return run


def smoothed_prior(shares: Array, weights: Array) -> Array:
    """Returns how likely classes are, `[classes]`: a row more is given to each."""
    counts = 1 + exact(weights, shares)
    return counts / divisor(jnp.sum(counts))


def _fit_to(
    fit: Fit,
    data: Batch,
    weights: Array,
    hyperparameters: Hyperparameters,
    key: Array,
    guess: Array,
    counted: Array | float = 1.0,
) -> Params:
    """Fits to the labels that are known, and to a guess `[rows, classes]` elsewhere."""
    labelled = known(data, weights)
    shares = class_shares(data.labels, guess.shape[1])
    labels = jnp.where(labelled[:, None], shares, guess)
    every = jnp.where(labelled, weights, jnp.asarray(counted, jnp.float32))
    return fit(data._replace(labels=labels), every, hyperparameters, key)
