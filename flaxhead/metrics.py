"""Sums and counts -> scores, with confidence intervals.

A score is never averaged over batches: a batch gives `ScoreSums`, which add over
batches and devices, and `finish` divides once. The formulas of a single row are
written once, for both array libraries: `score_sums` runs them in float32 on the device
(inside `jit`, `vmap` and `pmap`), `evaluate` in float64 on the host. A bootstrap sample
is a vector of row weights, so resampling is the same sums under other weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Output: TypeAlias = Literal["softmax", "sigmoid"]

BINS = 15
TOP = 5
Z_95 = 1.959963984540054  # the 97.5 % point of the standard normal distribution


class Metric(NamedTuple):
    """What must be known of a score to select by it.

    Attributes:
      greater_is_better: whether a larger value is better.
      from_sums: whether `finish` gives it; otherwise it needs all scores, ranked.
    """

    greater_is_better: bool
    from_sums: bool


METRICS: dict[str, Metric] = {
    "accuracy": Metric(greater_is_better=True, from_sums=True),
    "balanced_accuracy": Metric(greater_is_better=True, from_sums=True),
    "top_5_accuracy": Metric(greater_is_better=True, from_sums=True),
    "macro_f1": Metric(greater_is_better=True, from_sums=True),
    "auroc": Metric(greater_is_better=True, from_sums=False),
    "average_precision": Metric(greater_is_better=True, from_sums=False),
    "nll": Metric(greater_is_better=False, from_sums=True),
    "brier": Metric(greater_is_better=False, from_sums=True),
    "ece": Metric(greater_is_better=False, from_sums=True),
}

ROW_METRICS = ("accuracy", "top_5_accuracy", "nll", "brier")
"""Those that are means over rows (or over entries, with several labels a row)."""

_UNDEFINED = {
    "top_5_accuracy": "it needs one label a row",
    "macro_f1": "no label is positive or predicted in any row",
    "auroc": "no class has both a row that is of it and a row that is not",
    "average_precision": "no label is positive in any row",
}

# Resampling a ranking costs samples x rows x classes. Fewer samples than for the sums
# are enough for its interval, and past this many products there is none.
_RANKING_SAMPLES = 200
_RANKING_BUDGET = 2**28
_CONFUSED = 4096  # classes: the matrix of more would be larger than what it tells of
_SUM_TOLERANCE = 1e-3  # of the probabilities of a soft label
_CHUNK = 2**22  # resampled rows at a time: bounds the memory


class ScoreSums(NamedTuple):
    """Weighted sums over rows, additive over batches and devices.

    With several labels a row, an *entry* (a row's label that is not missing) stands in
    for a row. A sum that the task does not ask for stays 0, and its score is NaN.

    Attributes:
      count: `[]`, weight of the rows.
      correct: `[]`, of the rows that are predicted right.
      top_count: `[]`, of the rows with one label.
      top_correct: `[]`, of those whose label is among the `TOP` largest logits.
      true_positive: `[classes]`, of the rows of a class that are predicted as it.
      predicted: `[classes]`, of the rows predicted as a class.
      support: `[classes]`, of the rows of a class.
      true_negative: `[classes]`, of the entries rightly predicted negative.
      negative: `[classes]`, of the negative entries.
      nll: `[]`, negative log-likelihood, in nats.
      brier: `[]`, squared error of the probabilities.
      bin_confidence: `[BINS]`, summed confidence of the rows in a bin of confidence.
      bin_correct: `[BINS]`, weight of those that are right.
      bin_count: `[BINS]`, weight of those rows.
    """

    count: Any
    correct: Any
    top_count: Any
    top_correct: Any
    true_positive: Any
    predicted: Any
    support: Any
    true_negative: Any
    negative: Any
    nll: Any
    brier: Any
    bin_confidence: Any
    bin_correct: Any
    bin_count: Any


class _OneLabel(NamedTuple):
    """What a row with one label says, before its weight: `[rows]` each."""

    present: Any
    label: Any
    prediction: Any
    in_top: Any
    nll: Any
    brier: Any
    confidence: Any
    probabilities: Any  # [rows, classes], or None where they were not kept
    classes: int


class _ManyLabels(NamedTuple):
    """What an entry says, before its row's weight: `[rows, classes]` each."""

    present: Any
    positive: Any
    predicted: Any
    nll: Any
    brier: Any
    probabilities: Any


def _judge(logits, labels, output: Output) -> _OneLabel | _ManyLabels:
    """What every row says, for NumPy and JAX alike."""
    if output == "sigmoid" and labels.ndim == 2:
        return _many_labels(logits, labels)
    return _one_label(logits, labels, output)


def _one_label(logits, labels, output: Output) -> _OneLabel:
    xp = logits.__array_namespace__()
    every = xp.arange(logits.shape[1])
    if labels.ndim == 2:  # soft labels are judged by their likeliest class
        present = ~xp.isnan(labels).any(axis=1)
        target = xp.where(present[:, None], labels, 0)
        label = xp.argmax(target, axis=1)
    else:
        present = labels >= 0
        label = xp.where(present, labels, 0)
        target = label[:, None] == every
    at_label = xp.take_along_axis(logits, label[:, None], axis=1)
    # Equal logits rank by class number, as in argmax: top 1 is the prediction.
    ahead = (logits > at_label) | ((logits == at_label) & (every < label[:, None]))
    if output == "softmax":
        shifted = logits - logits.max(axis=1, keepdims=True)
        scaled = xp.exp(shifted)
        normalizer = scaled.sum(axis=1, keepdims=True)
        probabilities = scaled / normalizer
        nll = (target * (xp.log(normalizer) - shifted)).sum(axis=1)
        brier = ((probabilities - target) ** 2).sum(axis=1)
        if logits.shape[1] == 2:
            brier = brier / 2
    else:
        probabilities = xp.exp(-xp.logaddexp(0, -logits))
        nll = _binary_nll(logits, target, xp).mean(axis=1)
        brier = ((probabilities - target) ** 2).mean(axis=1)
    return _OneLabel(
        present=present,
        label=label,
        prediction=xp.argmax(logits, axis=1),
        in_top=ahead.sum(axis=1) < TOP,
        nll=nll,
        brier=brier,
        confidence=probabilities.max(axis=1),
        probabilities=probabilities,
        classes=logits.shape[1],
    )


def _many_labels(logits, labels) -> _ManyLabels:
    xp = logits.__array_namespace__()
    present = ~xp.isnan(labels)
    target = xp.where(present, labels, 0)
    probabilities = xp.exp(-xp.logaddexp(0, -logits))
    return _ManyLabels(
        present=present,
        positive=target > 0.5,
        predicted=logits > 0,
        nll=_binary_nll(logits, target, xp),
        brier=(probabilities - target) ** 2,
        probabilities=probabilities,
    )


def _binary_nll(logits, target, xp):
    """Cross-entropy of a sigmoid that keeps its digits at any logit."""
    return target * xp.logaddexp(0, -logits) + (1 - target) * xp.logaddexp(0, logits)


def _add_up(
    judged: _OneLabel | _ManyLabels,
    *,
    total: Callable[[Any], Any],
    columns: Callable[[Any], Any],
    histogram: Callable[[Any, Any, int], Any],
) -> ScoreSums:
    """Weigh and sum what the rows say, by the three ways of summing that are given.

    Args:
      judged: what the rows say.
      total: `(value) -> sum over everything`.
      columns: `(value) -> sums [classes] over rows`.
      histogram: `(index, value, size) -> sums [size]` of the values at each index.
    """
    xp = judged.nll.__array_namespace__()
    if isinstance(judged, _ManyLabels):
        confidence = judged.probabilities
        positive, predicted = judged.positive, judged.predicted
        correct, outcome = positive == predicted, positive
        by_task = {
            "top_count": total(0.0),
            "top_correct": total(0.0),
            "true_positive": columns(positive & predicted),
            "predicted": columns(predicted),
            "support": columns(positive),
            "true_negative": columns(~positive & ~predicted),
            "negative": columns(~positive),
        }
    else:
        confidence, classes = judged.confidence, judged.classes
        correct = outcome = judged.prediction == judged.label
        support = histogram(judged.label, 1.0, classes)
        by_task = {
            "top_count": total(1.0),
            "top_correct": total(judged.in_top),
            "true_positive": histogram(judged.label, correct, classes),
            "predicted": histogram(judged.prediction, 1.0, classes),
            "support": support,
            "true_negative": xp.zeros_like(support),
            "negative": xp.zeros_like(support),
        }
    # Bins are open below and closed above: (0, 1/15], (1/15, 2/15], ...
    bins = xp.clip(xp.ceil(confidence * BINS) - 1, 0, BINS - 1)
    bins = bins.astype(xp.int32)
    return ScoreSums(
        count=total(1.0),
        correct=total(correct),
        **by_task,
        nll=total(judged.nll),
        brier=total(judged.brier),
        bin_confidence=histogram(bins, confidence, BINS),
        bin_correct=histogram(bins, outcome, BINS),
        bin_count=histogram(bins, 1.0, BINS),
    )


def score_sums(
    logits: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    *,
    output: Output = "softmax",
) -> ScoreSums:
    """Sum what the scores need over a batch, on the device.

    Pure and traceable; `jax.vmap` it over candidates, `jax.lax.psum` the result over
    devices, add the results of batches. A row of weight 0 is absent, whatever it holds.
    The sums are float32: counts are exact up to 2**24 (16.7 million) rows. For more,
    add the batches' sums on the host in float64, which `finish` takes as well.

    Args:
      logits: `[rows, classes]`, of any float type.
      labels: `int [rows]` class numbers (negative: the row is ignored), or `float
        [rows, classes]`: soft labels for `softmax`, a multi-hot matrix with NaN for
        missing entries for `sigmoid`.
      weights: `float [rows]`, 0 or more.
      output: what turns logits into probabilities, `softmax` or `sigmoid`.

    Returns:
      `ScoreSums` of float32.

    Example:
      >>> logits, labels = jnp.array([[2.0, 0.0], [1.0, 0.0]]), jnp.array([0, 1])
      >>> finish(score_sums(logits, labels, jnp.ones(2)))["accuracy"]
      0.5
    """
    judged = _judge(jnp.asarray(logits, jnp.float32), jnp.asarray(labels), output)
    weight = jnp.asarray(weights, jnp.float32)
    weight = weight[:, None] if isinstance(judged, _ManyLabels) else weight
    weight = jnp.where(judged.present, weight, 0)

    def weigh(value):
        # `where`, not the product alone: 0 times the NaN of an absent row is NaN.
        return jnp.where(weight > 0, weight * value, 0)

    def histogram(index, value, size):
        # Compared and summed, not scattered, nor multiplied as matrices: XLA fuses it,
        # and a TPU's matrix product would round the weights to bfloat16.
        here = index[..., None] == jnp.arange(size)
        return jnp.where(here, weigh(value)[..., None], 0).sum(range(index.ndim))

    return _add_up(
        judged,
        total=lambda value: weigh(value).sum(),
        columns=lambda value: weigh(value).sum(axis=0),
        histogram=histogram,
    )


def row_scores(
    metric: str, logits: jax.Array, labels: jax.Array, *, output: Output = "softmax"
) -> tuple[jax.Array, jax.Array]:
    """What each row adds to a metric that is a mean over rows, on the device.

    Args:
      metric: one of `ROW_METRICS`.
      logits: `[rows, classes]`.
      labels: as for `score_sums`.
      output: how logits become probabilities.

    Returns:
      `(total, count)`, `[rows]` each: the metric is the sum of weights times totals
      over the sum of weights times counts. A row without a label has count 0; one with
      several labels counts its entries.

    >>> import jax.numpy as jnp
    >>> logits, labels = jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0])
    >>> total, count = row_scores("accuracy", logits, labels)
    >>> total.tolist(), count.tolist()
    ([1.0, 0.0], [1.0, 1.0])
    """
    judged = _judge(logits, labels, output)
    if isinstance(judged, _ManyLabels):
        values = {"accuracy": judged.positive == judged.predicted}
    else:
        values = {
            "accuracy": judged.prediction == judged.label,
            "top_5_accuracy": judged.in_top,
        }
    values |= {"nll": judged.nll, "brier": judged.brier}
    value = jnp.where(judged.present, values[metric], 0.0)
    count = judged.present.astype(jnp.float32)
    if value.ndim == 2:
        value, count = value.sum(axis=1), count.sum(axis=1)
    return value, count


def _weigh_rows(judged: _OneLabel | _ManyLabels, weights: np.ndarray) -> ScoreSums:
    """The same sums on the host, for many weightings `[samples, rows]` at once."""

    def known(value):
        return np.where(judged.present, value, 0.0)

    def histogram(index, value, size):
        if index.ndim == 1:
            return _histogram(index, weights * known(value), size)
        return weights @ _histogram(index, known(value), size)

    return _add_up(
        judged,
        total=lambda value: weights @ known(value).reshape(weights.shape[1], -1).sum(1),
        columns=lambda value: weights @ known(value),
        histogram=histogram,
    )


def _histogram(index: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """Sum the values of each row by index: `[..., n], [rows, n] -> [rows, size]`."""
    flat = index + size * np.arange(len(values))[:, None]
    sums = np.bincount(flat.ravel(), values.ravel(), minlength=size * len(values))
    return sums.reshape(len(values), size)


def finish(sums: ScoreSums) -> dict[str, Any]:
    """Divide the sums, once, on the host and in float64.

    Args:
      sums: `ScoreSums` of arrays from any device; every field may have the same leading
        axes (candidates, bootstrap samples), which the scores keep.

    Returns:
      A float, or `float64 [...]` for leading axes `[...]`, for every metric of
      `METRICS` that comes from sums; NaN where it is not defined.

    Example:
      >>> labels, weights = jnp.array([0, 1]), jnp.ones(2)
      >>> two_candidates = jnp.stack([jnp.eye(2), -jnp.eye(2)])
      >>> sums = jax.vmap(score_sums, (0, None, None))(two_candidates, labels, weights)
      >>> finish(sums)["accuracy"].tolist()
      [1.0, 0.0]
    """
    sums = ScoreSums(*(np.asarray(field, np.float64) for field in sums))
    recall = _ratio(sums.true_positive, sums.support)
    specificity = _ratio(sums.true_negative, sums.negative)
    f1 = _ratio(2 * sums.true_positive, sums.support + sums.predicted)
    gap = np.abs(sums.bin_confidence - sums.bin_correct).sum(axis=-1)
    scores = {
        "accuracy": _ratio(sums.correct, sums.count),
        "balanced_accuracy": _mean(_mean(np.stack([recall, specificity], axis=-1))),
        "top_5_accuracy": _ratio(sums.top_correct, sums.top_count),
        "macro_f1": _mean(f1),
        "nll": _ratio(sums.nll, sums.count),
        "brier": _ratio(sums.brier, sums.count),
        "ece": _ratio(gap, sums.count),
    }
    return {
        name: float(score) if score.ndim == 0 else score
        for name, score in scores.items()
    }


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """`total / count`, NaN where there is nothing to divide by."""
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is defined; NaN where nothing is."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0).sum(axis=-1), defined.sum(axis=-1))


def auroc(scores: Any, labels: Any, weights: Any = None) -> float:
    """Area under the receiver operating characteristic.

    The chance that a positive row has a larger score than a negative one, ties counting
    half, computed exactly from the ranks. Equal to scikit-learn's `roc_auc_score` where
    that is defined (macro average, one versus rest).

    Args:
      scores: `[rows]` probabilities of class 1, or `[rows, classes]`; any monotone
        score will do.
      labels: `int [rows]` class numbers (negative: the row is ignored), or `[rows,
        classes]`, 0 or 1 (NaN: the entry is left out). With two columns of scores and
        one label a row, class 1 is the positive one.
      weights: `[rows]`, 0 or more; None for all 1.

    Returns:
      The mean over the classes that have both values; NaN where none has.

    Example:
      >>> auroc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
      0.75

    Source: Fawcett (2006), An introduction to ROC analysis.
    """
    return float(_rank(scores, labels, weights)["auroc"][0])


def average_precision(scores: Any, labels: Any, weights: Any = None) -> float:
    """Average precision: the precision at each positive row, averaged.

    `sum_k (recall_k - recall_{k-1}) precision_k` over the distinct scores, without
    interpolation. Equal to scikit-learn's `average_precision_score` (macro average, one
    versus rest) where each class has a row.

    Args:
      scores: as for `auroc`.
      labels: as for `auroc`.
      weights: as for `auroc`.

    Returns:
      The mean over the classes that have a positive row; NaN where none has.

    Example:
      >>> round(average_precision([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]), 4)
      0.8333

    Source: Manning, Raghavan and Schuetze (2008), Introduction to Information
    Retrieval, section 8.4.
    """
    return float(_rank(scores, labels, weights)["average_precision"][0])


def _rank(scores: Any, labels: Any, weights: Any) -> dict[str, np.ndarray]:
    """Check the public arguments and rank the scores under one weighting."""
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
    if labels.shape != scores.shape and labels.shape != scores.shape[:1]:
        raise ValueError(
            f"labels: expected one a row or one an entry of scores {scores.shape}, "
            f"got {labels.shape}."
        )
    if not np.isfinite(scores).all():
        raise ValueError("scores: expected finite numbers, got NaN or infinity.")
    if labels.ndim == 1:
        classes = max((2, *scores.shape[1:]))
        _refuse_rows("labels", labels >= classes, f"numbers below {classes}", "others")
    weights = _check_weights(weights, len(scores))
    return _ranking_scores(scores, labels, weights[None])


def _ranking_scores(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Both scores `[samples]` that need a ranking, for weights `[samples, rows]`.

    Sorted once; a weighting only changes how far each row moves along the curves.
    """
    areas, precisions = [], []
    for score, positive, present in _one_versus_rest(scores, labels):
        order = np.flatnonzero(present)[np.argsort(-score[present], kind="stable")]
        # Rows of equal score are passed together: the curve has a corner at each end.
        ties = np.flatnonzero(np.diff(score[order])) + 1
        ends = np.concatenate([[0], ties, [len(order)]])
        weight = np.pad(weights[:, order], ((0, 0), (1, 0)))
        hit = np.pad(positive[order], (1, 0))
        true = np.cumsum(weight * hit, axis=1)[:, ends]
        false = np.cumsum(weight * ~hit, axis=1)[:, ends]
        height = (true[:, 1:] + true[:, :-1]) / 2
        area = (np.diff(false) * height).sum(axis=1)
        areas.append(_ratio(area, true[:, -1] * false[:, -1]))
        precision = _ratio(true, true + false)[:, 1:]
        gained = np.where(np.diff(true) > 0, np.diff(true) * precision, 0)
        precisions.append(_ratio(gained.sum(axis=1), true[:, -1]))
    return {
        "auroc": _mean(np.stack(areas, axis=-1)),
        "average_precision": _mean(np.stack(precisions, axis=-1)),
    }


def _one_versus_rest(
    scores: np.ndarray, labels: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Every question of yes or no: its scores, which rows are positive, and known."""
    if labels.ndim == 2:
        for score, label in zip(scores.T, labels.T, strict=True):
            yield score, label > 0.5, ~np.isnan(label)
    elif scores.ndim == 1 or scores.shape[1] <= 2:
        yield scores.reshape(len(scores), -1)[:, -1], labels == 1, labels >= 0
    else:
        for number, score in enumerate(scores.T):
            yield score, labels == number, labels >= 0


class _Rows(NamedTuple):
    """The rows that count, on the host in float64."""

    judged: _OneLabel | _ManyLabels
    labels: np.ndarray
    weights: np.ndarray


def evaluate(
    logits: Any,
    labels: Any,
    weights: Any = None,
    *,
    class_names: Sequence[str],
    output: Output,
    intervals: bool = True,
    seed: int = 0,
    samples: int = 1000,
) -> dict[str, Any]:
    """Report every metric of a split, with 95 % intervals, ready for `json.dumps`.

    Computed on the host in float64. Shares of equally weighted rows (accuracy and top-5
    accuracy with one label a row) get Wilson's interval, the other metrics a bootstrap
    interval over rows (`docs/metrics.md` says why it is the reflected one).

    Args:
      logits: `[rows, classes]`; or, where that is more than fits into memory, an
        iterator over arrays of the next rows each, for labels that are class numbers.
        The metrics that need a ranking are then undefined.
      labels: as for `score_sums`.
      weights: `[rows]`, 0 or more (0: the row is absent); None for all 1.
      class_names: the name of each class, in the order of the columns.
      output: what turns logits into probabilities, `softmax` or `sigmoid`.
      intervals: whether to compute intervals.
      seed: seed of the bootstrap.
      samples: bootstrap samples, 100 or more (the metrics that need a ranking take at
        most 200).

    Returns:
      A dict of `rows` (how many counted); each name of `METRICS`; `NAME_ci`, a list of
      two; `undefined`, the reason for each of these that is None; `per_class`, for each
      class name its `support`, `precision` (None: never predicted) and `recall` (None:
      no row); and with one label a row, of 4,096 classes at most, `confusion`, a list
      for each true class of the weight predicted as each class.

    Raises:
      ValueError: where an argument's shape or values are wrong, or no row counts.

    Example:
      >>> logits = [[2.0, 0.0], [0.0, 1.0], [0.5, 0.0], [0.0, 3.0]]
      >>> report = evaluate(
      ...     logits, [0, 1, 1, 1], class_names=("cat", "dog"), output="softmax"
      ... )
      >>> report["accuracy"], report["confusion"]
      (0.75, [[1, 0], [1, 2]])

    Source: Wilson (1927), Probable inference, the law of succession, and statistical
    inference; Davison and Hinkley (1997), Bootstrap methods and their application,
    section 5.2.
    """
    read = _check_parts if isinstance(logits, Iterator) else _check
    rows = read(
        logits,
        labels,
        weights,
        output=output,
        classes=len(class_names),
        samples=samples,
    )
    once = rows.weights[None]
    sums = _weigh_rows(rows.judged, once)
    scores, undefined = finish(sums), dict(_UNDEFINED)
    if rows.judged.probabilities is not None:
        scores |= _ranking_scores(rows.judged.probabilities, rows.labels, once)
    else:
        nothing = {
            n: np.full(1, np.nan) for n, one in METRICS.items() if not one.from_sums
        }
        scores |= nothing
        undefined |= dict.fromkeys(nothing, "too many rows and classes to rank")
    report: dict[str, Any] = {"rows": len(rows.weights)}
    report |= {name: _number(scores[name][0]) for name in METRICS}
    undefined = {n: undefined[n] for n in METRICS if report[n] is None}
    if intervals:
        found = _intervals(rows, report, samples=samples, seed=seed)
        report |= {f"{name}_ci": found[name] for name in METRICS}
        for name in METRICS:
            if found[name] is None:
                undefined[f"{name}_ci"] = undefined.get(
                    name, "too many rows and classes to resample their ranking"
                )
    report["undefined"] = undefined
    support = _counts(sums.support[0])
    precision = _ratio(sums.true_positive, sums.predicted)[0]
    recall = _ratio(sums.true_positive, sums.support)[0]
    report["per_class"] = {
        name: {"support": n, "precision": _number(p), "recall": _number(r)}
        for name, n, p, r in zip(class_names, support, precision, recall, strict=True)
    }
    classes = len(class_names)
    if isinstance(rows.judged, _OneLabel) and classes <= _CONFUSED:
        cell = rows.judged.label * classes + rows.judged.prediction
        table = _histogram(cell, once, classes**2)
        report["confusion"] = _counts(table.reshape(classes, classes))
    return report


def standard_error(
    metric: str,
    logits: Any,
    labels: Any,
    weights: Any = None,
    *,
    output: Output,
    seed: int = 0,
    samples: int = 200,
) -> float:
    """Standard error of one metric over the rows, as `select` asks for.

    `sqrt(p (1 - p) / rows)` for a share `p` of equally weighted rows; otherwise the
    standard deviation over bootstrap samples.

    Args:
      metric: a name of `METRICS`.
      logits: as for `evaluate`.
      labels: as for `evaluate`.
      weights: as for `evaluate`.
      output: as for `evaluate`.
      seed: seed of the bootstrap.
      samples: bootstrap samples, 100 or more.

    Returns:
      The standard error; NaN where the metric is not defined.

    Raises:
      ValueError: as `evaluate`, or where the metric is unknown.

    Example:
      >>> logits, labels = np.eye(2)[[0, 1, 1, 0]], np.array([0, 1, 0, 1])
      >>> standard_error("accuracy", logits, labels, output="softmax")  # of 2 in 4
      0.25
    """
    if metric not in METRICS:
        raise ValueError(
            f"metric: expected one of {', '.join(METRICS)}, got {metric!r}."
        )
    rows = _check(
        logits,
        labels,
        weights,
        output=output,
        classes=np.shape(logits)[-1],
        samples=samples,
    )
    if _is_share(metric, rows):
        share = finish(_weigh_rows(rows.judged, rows.weights[None]))[metric][0]
        return float(np.sqrt(share * (1 - share) / len(rows.weights)))
    score = _sum_scores if METRICS[metric].from_sums else _rank_rows
    drawn = _bootstrap(rows, score, samples=samples, seed=seed)[metric]
    drawn = drawn[~np.isnan(drawn)]
    return float(drawn.std(ddof=1)) if len(drawn) else math.nan


def _sum_scores(rows: _Rows, weights: np.ndarray) -> dict[str, np.ndarray]:
    return finish(_weigh_rows(rows.judged, weights))


def _rank_rows(rows: _Rows, weights: np.ndarray) -> dict[str, np.ndarray]:
    return _ranking_scores(rows.judged.probabilities, rows.labels, weights)


def _is_share(metric: str, rows: _Rows) -> bool:
    """Whether a metric is a share of equally weighted, independent rows."""
    return (
        metric in ("accuracy", "top_5_accuracy")
        and isinstance(rows.judged, _OneLabel)
        and bool((rows.weights == rows.weights[0]).all())
    )


def _intervals(
    rows: _Rows, report: dict[str, Any], *, samples: int, seed: int
) -> dict[str, list[float] | None]:
    """A 95 % interval for each metric that is defined, None for the others."""
    drawn = _bootstrap(rows, _sum_scores, samples=samples, seed=seed)
    ranked = min(samples, _RANKING_SAMPLES)
    probabilities = rows.judged.probabilities
    if probabilities is not None and ranked * probabilities.size <= _RANKING_BUDGET:
        drawn |= _bootstrap(rows, _rank_rows, samples=ranked, seed=seed)
    found: dict[str, list[float] | None] = {}
    for name in METRICS:
        if report[name] is None or name not in drawn:
            found[name] = None
        elif _is_share(name, rows):
            found[name] = _wilson(report[name], len(rows.weights))
        else:
            found[name] = _reflected(name, report[name], drawn[name])
    return found


def _reflected(name: str, value: float, drawn: np.ndarray) -> list[float]:
    """The reflected ("basic") bootstrap 95 % interval of a metric.

    Resampling biases some metrics (average precision, macro F1, calibration error) to
    the side of `value` on which sampling biases `value` from the truth. Percentiles
    would count that bias twice; reflected at `value`, they take it back.
    """
    drawn = drawn[~np.isnan(drawn)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    low, high = 2 * value - high, 2 * value - low
    if name == "ece":
        # Near 0 the error's bias is as large as the error, and the resamples of an
        # already biased error show about half of it: take it back twice.
        low -= max(0.0, drawn.mean() - value)
    ceiling = math.inf if name in ("nll", "brier") else 1.0
    return [float(max(0.0, min(low, value))), float(min(ceiling, max(high, value)))]


def _bootstrap(
    rows: _Rows,
    score: Callable[[_Rows, np.ndarray], dict[str, np.ndarray]],
    *,
    samples: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Scores `[samples]` of rows drawn with replacement: a draw is a weighting."""
    count = len(rows.weights)
    draw = np.random.default_rng(seed)
    # Of many classes there may be more than rows.
    classes = rows.judged.classes if isinstance(rows.judged, _OneLabel) else 0
    chunk = max(1, _CHUNK // max(count, classes))
    parts = []
    for start in range(0, samples, chunk):
        drawn = draw.integers(count, size=(min(chunk, samples - start), count))
        times = _histogram(drawn, np.ones(drawn.shape), count)
        parts.append(score(rows, times * rows.weights))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _wilson(share: float, count: int) -> list[float]:
    """Wilson's 95 % interval of a proportion."""
    z2 = Z_95**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    spread = share * (1 - share) / count + z2 / (4 * count**2)
    half = Z_95 * math.sqrt(spread) / (1 + z2 / count)
    return [max(0.0, middle - half), min(1.0, middle + half)]


def _number(value: Any) -> float | None:
    """A JSON number: None for NaN."""
    return None if math.isnan(value) else float(value)


def _counts(weights: np.ndarray) -> list:
    """Lists of weights, as integers where all of them are whole."""
    whole = bool((weights == np.round(weights)).all())
    return (weights.astype(int) if whole else weights).tolist()


def _check_parts(
    logits: Iterator[Any], labels: Any, weights: Any, **about: Any
) -> _Rows:
    """As `_check`, of logits that come some rows at a time; none are kept."""
    labels = np.asarray(labels)
    weights = _check_weights(weights, len(labels))
    if labels.ndim != 1:
        raise ValueError(
            f"labels: expected class numbers [{len(labels)}] for logits that come part "
            f"by part, got {list(labels.shape)}."
        )
    first, parts = 0, []
    for part in logits:
        here = slice(first, first + len(part))
        first = here.stop
        if np.any((labels[here] >= 0) & (weights[here] > 0)):
            rows = _check(part, labels[here], weights[here], **about)
            parts.append(rows._replace(judged=rows.judged._replace(probabilities=None)))
    if first != len(labels) or not parts:
        raise ValueError(
            f"labels: expected one for each of {first} rows of logits, some with a "
            f"weight above 0, got {len(labels)}."
        )
    judged = [rows.judged for rows in parts]

    def join(*fields: Any) -> Any:
        return (
            np.concatenate(fields) if isinstance(fields[0], np.ndarray) else fields[0]
        )

    return _Rows(
        judged=_OneLabel(*map(join, *judged)),
        labels=np.concatenate([rows.labels for rows in parts]),
        weights=np.concatenate([rows.weights for rows in parts]),
    )


def _check(
    logits: Any,
    labels: Any,
    weights: Any,
    *,
    output: Output,
    classes: int,
    samples: int,
) -> _Rows:
    """Refuse what cannot be evaluated, and keep the rows that count."""
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if output not in ("softmax", "sigmoid"):
        raise ValueError(f"output: expected softmax or sigmoid, got {output!r}.")
    if logits.ndim != 2 or logits.shape[1] != classes:
        raise ValueError(
            f"logits: expected [rows, {classes}] for {classes} classes, "
            f"got {list(logits.shape)}."
        )
    if labels.shape not in (logits.shape, logits.shape[:1]):
        raise ValueError(
            f"labels: expected [{len(logits)}] or {list(logits.shape)} as logits, "
            f"got {list(labels.shape)}."
        )
    if labels.ndim == 1 and not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels: expected integers, one a row, got {labels.dtype}.")
    if samples < 100:
        raise ValueError(f"samples: expected 100 or more, got {samples}.")
    weights = _check_weights(weights, len(logits))
    if labels.ndim == 1:
        keep = (labels >= 0) & (weights > 0)
        wrong, expected = labels >= classes, f"class numbers below {classes}"
    else:
        labels = labels.astype(np.float64)
        missing = np.isnan(labels)
        known = ~(missing.all(axis=1) if output == "sigmoid" else missing.any(axis=1))
        keep = known & (weights > 0)
        wrong, expected = (
            ((labels < 0) | (labels > 1)).any(axis=1),
            "values from 0 to 1",
        )
        if output == "softmax":
            wrong |= np.abs(labels.sum(axis=1) - 1) > _SUM_TOLERANCE
            expected += " that sum to 1"
    _refuse_rows("labels", wrong & keep, expected, "others")
    wrong = ~np.isfinite(logits).all(axis=1)
    _refuse_rows("logits", wrong & keep, "finite numbers", "NaN or infinity")
    if not keep.any():
        raise ValueError(
            f"labels: expected a labelled row with a weight above 0, got none in "
            f"{len(logits)} rows."
        )
    logits, labels, weights = logits[keep], labels[keep], weights[keep]
    judged = _judge(logits, labels, output)
    return _Rows(
        judged=judged,
        labels=judged.label if isinstance(judged, _OneLabel) else labels,
        weights=weights,
    )


def _check_weights(weights: Any, rows: int) -> np.ndarray:
    """Weights of the rows in float64, all 1 if there are none."""
    if weights is None:
        return np.ones(rows)
    weights = np.asarray(weights, np.float64)
    if weights.shape != (rows,):
        raise ValueError(f"weights: expected [{rows}], got {list(weights.shape)}.")
    wrong = ~np.isfinite(weights) | (weights < 0)
    _refuse_rows("weights", wrong, "finite numbers of 0 or more", "others")
    return weights


def _refuse_rows(name: str, wrong: np.ndarray, expected: str, got: str) -> None:
    """Raise for the rows that are wrong, if any, naming the first of them."""
    rows = np.flatnonzero(wrong)
    if len(rows):
        some = ", ".join(map(str, rows[:5]))
        raise ValueError(
            f"{name}: expected {expected}, got {got} in {len(rows)} rows "
            f"(the first: {some})."
        )
