"""Labels that are likely wrong: found, left out, or not learned from.

What a head says of rows that it was not fitted to is compared with their labels. A row
whose label is left out is an unlabelled row, so that a semi-supervised fit still learns
from it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flaxhead.base import (
    Array,
    Batch,
    Fit,
    Head,
    Hyperparameters,
    Loss,
    Objective,
    Params,
    PyTree,
    Sums,
)
from flaxhead.fit import deal, known, out_of_fold
from flaxhead.moments import class_shares, divisor, exact
from flaxhead.objectives.rows import row_keys


class LabelErrors(NamedTuple):
    """What is suspected of each row's label.

    Attributes:
      score: `float32 [rows]`, how likely the label is right, to rank by, low first; 1
        where there is none.
      issue: `bool [rows]`, True where the label is likely wrong.
      counts: `float32 [classes, classes]`, about how many rows of label `i` are really
        of class `j`; off the diagonal, wrong ones.
    """

    score: Array
    issue: Array
    counts: Array


def label_errors(probabilities: Array, labels: Array, weights: Array) -> LabelErrors:
    """Finds labels that are likely wrong, by confident learning.

    A row is confidently of a class whose probability is at least its average over the
    rows of that label (of the likeliest such class). Counting these estimates how many
    rows of label `i` are really of class `j`: so many of them, those of the largest
    margin `p_j - p_i`, are suspected, unless the label is the likeliest class after
    all, or the most credible of its class.

    Args:
      probabilities: `[rows, classes]` of a head that was *not* fitted to the row, as
        of `flaxhead.fit.out_of_fold`.
      labels: `int [rows]` as given; negative: none.
      weights: `[rows]`; a row of weight 0 is absent, one of weight 2 is two rows.

    Returns:
      `LabelErrors`, whose score is the probability of the label ("self-confidence").

    Raises:
      ValueError: if the shapes don't fit.

    Source: Northcutt, Jiang and Chuang, 2021, "Confident learning: estimating
    uncertainty in dataset labels"; suspects are pruned by noise rate.

    >>> p = jnp.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.1, 0.9]])
    >>> found = label_errors(p, jnp.array([0, 0, 0, 1, 1]), jnp.ones(5))
    >>> found.issue.tolist(), found.score.argmin().item()
    ([False, False, True, False, False], 2)
    """
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(
            f"probabilities is {list(probabilities.shape)} and labels "
            f"{list(labels.shape)}: expected [rows, classes] and class numbers [rows]"
        )
    classes = probabilities.shape[1]
    weights = jnp.where(labels >= 0, weights, 0)
    present = weights > 0
    probabilities = jnp.where(present[:, None], probabilities, 0)
    labels = jnp.where(present, labels, 0)
    shares = weights[:, None] * class_shares(labels, classes)
    score = jnp.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]
    counts = jnp.sum(shares, axis=0)
    joint = _joint(probabilities, shares, counts)
    wrong = joint * (1 - jnp.eye(classes))
    order_start = jnp.cumsum(counts) - counts

    def largest_margins(kind: Array) -> Array:
        """Rows that are among the likeliest of their label to be of this class."""
        margin = probabilities[:, kind] - score
        order = jnp.lexsort((-margin, labels, ~present))
        before = jnp.cumsum(weights[order]) - weights[order]
        label = labels[order]
        # The middle of the row, by weight: rounds the number of rows.
        place = before - order_start[label] + weights[order] / 2
        return jnp.zeros_like(present).at[order].set(place <= wrong[label, kind])

    issue = jnp.any(lax.map(largest_margins, jnp.arange(classes)), axis=0)
    most = jnp.zeros(classes).at[labels].max(jnp.where(present, score, 0))
    disputed = (score < jnp.max(probabilities, axis=1)) & (score < most[labels])
    issue &= present & disputed
    return LabelErrors(jnp.where(present, score, 1), issue, joint)


def _joint(probabilities: Array, shares: Array, counts: Array) -> Array:
    """How many rows of a label are of each class, `[classes, classes]`."""
    each = jnp.sum(shares * probabilities, axis=0) / divisor(counts)
    # A class without rows can't be confident of any.
    threshold = jnp.where(counts > 0, each, jnp.inf)
    confident = jnp.where(probabilities >= threshold, probabilities, -1)
    of = class_shares(jnp.argmax(confident, axis=1), len(counts))
    of = jnp.where(jnp.max(confident, axis=1, keepdims=True) >= 0, of, 0)
    joint = exact(shares.T, of)
    return joint * (counts / divisor(jnp.sum(joint, axis=1)))[:, None]


def prune(fit: Fit, head: Head, *, folds: int = 5) -> Fit:
    """Returns the fit without the labels that are likely wrong.

    A head a fold, fitted without it, judges the labels of its rows (`label_errors`).
    The rows suspected get weight 0 while `data` has them: they are unlabelled rows, so
    `prune(with_graph(fit, head), head)` learns from them still.

    Args:
      fit: of the head, to class numbers.
      head: whose parameters it finds; of classes that exclude each other.
      folds: how many parts the labelled rows are dealt out to, alike in every class.

    Returns:
      A `Fit` of the same hyperparameters, which costs `folds + 1` fits.

    Raises:
      ValueError: if `folds` is below 2; by the fit, for labels that aren't numbers.

    >>> from flaxhead.heads import linear
    >>> from flaxhead.solvers import ridge
    >>> x = jnp.repeat(jnp.eye(2), 10, axis=0)
    >>> labels = jnp.repeat(jnp.arange(2), 10).at[0].set(1)  # a wrong one
    >>> data = Batch(x, labels, jnp.ones(20), jnp.arange(20))
    >>> run = jax.jit(prune(ridge(2), linear(2)))
    >>> params = run(data, jnp.ones(20), {"alpha": jnp.ones(())}, jax.random.key(0))
    >>> without = data.weights.at[0].set(0)
    >>> best = ridge(2)(data, without, {"alpha": jnp.ones(())}, jax.random.key(0))
    >>> bool(jnp.allclose(params["output"]["bias"], best["output"]["bias"], atol=1e-5))
    True
    """
    if folds < 2:
        raise ValueError(f"folds is {folds}: expected 2 or more")

    def run(
        data: Batch, weights: Array, hyperparameters: Hyperparameters, key: Array
    ) -> Params:
        if data.labels.ndim != 1:
            raise ValueError(
                f"labels is {list(data.labels.shape)}: expected class numbers [rows], "
                "as only these are right or wrong"
            )
        fold_key, judge_key, key = jax.random.split(key, 3)
        labels = jnp.where(known(data, weights), data.labels, -1)
        fold = deal(labels, data.index, folds, fold_key)
        judge = out_of_fold(fit, head, fold, folds=folds)
        logits = judge(data, weights, hyperparameters, judge_key)
        mass = data.weights * weights
        found = label_errors(jax.nn.softmax(logits), labels, mass)
        return fit(data, jnp.where(found.issue, 0, weights), hyperparameters, key)

    return run


def twins(head: Head) -> Head:
    """Returns two heads of one shape, `{"a": ..., "b": ...}`, for `co_teaching`.

    Its logits are the logarithms of the two's average probabilities. They must differ
    at the start: of layers that start at zero both would learn the same.

    Args:
      head: of classes that exclude each other, drawn at random.

    >>> from flaxhead.heads import linear
    >>> both = twins(linear(2, zero_init=False))
    >>> params = both.init(jax.random.key(0), jnp.ones([1, 3]))
    >>> sorted(params), both.apply(params, jnp.ones([1, 3])).shape
    (['a', 'b'], (1, 2))
    """

    def init(key: Array, x: Any) -> Params:
        first, second = jax.random.split(key)
        return {"a": head.init(first, x), "b": head.init(second, x)}

    def apply(
        params: Params, x: Any, *, key: Array | None = None, train: bool = False
    ) -> Array:
        each = [
            jax.nn.log_softmax(head.apply(params[name], x, key=key, train=train))
            for name in ("a", "b")
        ]
        return jnp.logaddexp(*each) - jnp.log(2.0)

    return Head(init, apply)


def co_teaching(
    head: Head,
    loss: Loss,
    *,
    forget_rate: float | Array,
    ramp: float | Array = 1.0,
    axis: str | None = None,
) -> Objective:
    """Two heads, each fitted to the rows of a batch that cost the other least.

    Wrong labels are learned late, so their rows cost most. At step `t`, of `0, 1, ...`,
    a share `forget_rate * min((t + 1) / ramp, 1)` of the batch, by weight, is left out.

    Source: Han et al., 2018, "Co-teaching: robust training of deep neural networks with
    extremely noisy labels".

    Args:
      head: one of the two.
      loss: logits and labels -> one loss a row.
      forget_rate: the share left out, about that of the wrong labels; 0: none. May be
        traced, and so may `ramp`.
      ramp: steps until it is reached.
      axis: name of the `pmap` axis over which the rows are split, if they are: those of
        all devices are compared.

    Returns:
      An `Objective` of the terms `a` and `b` over the parameters of `twins(head)`; its
      memory is the number of steps. Rows without a label are absent.

    >>> from flaxhead.heads import linear
    >>> from flaxhead.losses import softmax_cross_entropy
    >>> head = linear(2, zero_init=False)
    >>> objective = co_teaching(head, softmax_cross_entropy, forget_rate=0.25)
    >>> x = jnp.arange(12.0).reshape(4, 3)
    >>> batch = Batch(x, jnp.array([0, 0, 0, 1]), jnp.ones(4), jnp.arange(4))
    >>> params = twins(head).init(jax.random.key(0), x)
    >>> memory = objective.init(params)
    >>> sums, memory = objective.apply(params, memory, batch, jax.random.key(1))
    >>> float(sums["a"].count), int(memory)
    (3.0, 1)
    """

    def init(params: Params) -> PyTree:
        del params
        return jnp.zeros((), jnp.int32)

    def apply(
        params: Params, memory: PyTree, batch: Batch, key: Array
    ) -> tuple[dict[str, Sums], PyTree]:
        present = known(batch, jnp.ones_like(batch.weights))
        weights = jnp.where(present, batch.weights, 0)

        def losses(name: str, key: Array) -> Array:
            keys = row_keys(key, batch.index)
            logits = head.apply(params[name], batch.x, key=keys, train=True)
            return loss(logits, batch.labels, where=present)

        first, second = jax.random.split(key)
        a, b = losses("a", first), losses("b", second)
        step = memory + 1
        share = 1 - forget_rate * jnp.minimum(step / ramp, 1)
        sums = {}
        for name, own, other in (("a", a, b), ("b", b, a)):
            kept = _least(lax.stop_gradient(other), weights, share, axis)
            kept = jnp.where(kept, weights, 0)
            sums[name] = Sums(jnp.sum(kept * own), jnp.sum(kept))
        return sums, step

    return Objective(init, apply)


def _least(losses: Array, weights: Array, share: Array, axis: str | None) -> Array:
    """Rows of the smallest losses, a share of all by weight, one at least."""
    everyone, mass = losses, weights
    if axis is not None:
        everyone, mass = lax.all_gather((losses, weights), axis, tiled=True)
    everyone = jnp.where(mass > 0, everyone, jnp.inf)
    order = jnp.argsort(everyone)
    own = mass[order]
    # The middle of a row, by weight: rounds the number of rows.
    middle = jnp.cumsum(own) - own / 2
    last = jnp.maximum(jnp.sum(middle <= share * jnp.sum(mass)) - 1, 0)
    return losses <= everyone[order][last]
