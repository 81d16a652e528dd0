"""Fit -> Fit: what the rows without a label add to any head.

A row is without a label where its label is -1, and where `weights` leave it out while
`data` has it: a fold's held-out rows, and those beyond a few-shot draw, are unlabelled
rows, whose labels are not read. A row of weight 0 in `data` is absent.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flaxhead.base import Array, Batch, Fit, Head, Hyperparameters, Params
from flaxhead.graph import balance, knn_graph, product_of_experts, spread
from flaxhead.moments import class_shares, divisor


def with_graph(
    fit: Fit,
    head: Head,
    *,
    classes: int,
    k: int = 10,
    power: float = 3.0,
    alpha: float = 0.95,
) -> Fit:
    """Returns the fit of a head to labels that a graph and the head agree on.

    Labels are spread along a graph of nearest rows, balanced to the prior of the
    labelled rows, and multiplied with what the head, fitted to the labelled rows, says;
    the same head is then fitted to the product, on all rows. Labelled rows keep their
    labels.

    Args:
      fit: of the head, to class numbers and to soft labels.
      head: whose parameters it finds; of classes that exclude each other.
      classes: the number of logits.
      k: see `flaxhead.graph.knn_graph`.
      power: see `flaxhead.graph.knn_graph`.
      alpha: see `flaxhead.graph.spread`.

    Returns:
      A `Fit` of the same hyperparameters. The graph depends on neither them nor
      `weights`, so that under `vmap` candidates and folds share it.

    >>> from flaxhead.heads import linear
    >>> from flaxhead.solvers import logistic
    >>> x = jnp.array([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0], [0.2, 1.0]])
    >>> data = Batch(x, jnp.array([0, -1, 1, -1]), jnp.ones(4), jnp.arange(4))
    >>> run = with_graph(logistic(2), linear(2), classes=2, k=1)
    >>> params = run(data, jnp.ones(4), {"C": jnp.float32(1)}, jax.random.key(0))
    >>> linear(2).apply(params, x).argmax(-1).tolist()
    [0, 0, 1, 1]
    """

    def run(
        data: Batch, weights: Array, hyperparameters: Hyperparameters, key: Array
    ) -> Params:
        first, second = jax.random.split(key)
        labelled = known(data, weights)
        shares = jnp.where(labelled[:, None], class_shares(data.labels, classes), 0)
        params = fit(data, weights, hyperparameters, first)
        graph = knn_graph(data.x, data.weights, k=k, power=power)
        prior = smoothed_prior(shares, data.weights * weights)
        spreaded = balance(spread(graph, shares, alpha=alpha), prior, data.weights)
        own = jax.nn.softmax(head.apply(params, data.x))
        guess = product_of_experts(own, spreaded)
        labels = jnp.where(labelled[:, None], shares, guess)
        every = jnp.where(labelled, weights, 1.0)
        return fit(data._replace(labels=labels), every, hyperparameters, second)

    return run


def known(data: Batch, weights: Array) -> Array:
    """Returns `bool [rows]`, the rows whose label a fit may read."""
    labels = data.labels
    given = labels >= 0 if labels.ndim == 1 else ~jnp.any(jnp.isnan(labels), axis=1)
    return given & (data.weights * weights > 0)


def smoothed_prior(shares: Array, weights: Array) -> Array:
    """Returns how likely classes are, `[classes]`: a row more is given to each."""
    counts = 1 + weights @ shares
    return counts / divisor(jnp.sum(counts))
