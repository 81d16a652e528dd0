"""Is one head better than another, and how good is the one that was selected.

Everything here works on values of single rows whose weighted mean is the metric:
right or wrong (accuracy), log-likelihoods, squared errors. Rows of weight
`1 / rows of their class` make accuracy the balanced one; F1, AUROC and average
precision are no such means. What is compared is heads as they were trained: that other
training rows would have given other heads is in none of the intervals.

The rows that nested cross-validation holds out in its outer folds are one set of
predictions: pool them and `evaluate` them. An interval made from the scores of the
folds would be too narrow, since the folds share training rows (Bates, Hastie and
Tibshirani, 2024, Cross-validation: what does it estimate and how well does it do it?).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy.special import bdtr

from flaxhead.metrics import Z_95

_CHUNK = 2**22  # resampled rows at a time: bounds the memory


class Paired(NamedTuple):
    """How much head `a` scores above head `b` on the same rows.

    Attributes:
      difference: score of `a` minus score of `b`.
      low: lower end of its 95 % interval.
      high: upper end.
      p_value: two-sided, of the hypothesis that the scores are equal.
    """

    difference: float
    low: float
    high: float
    p_value: float


class Corrected(NamedTuple):
    """The score to expect of a head that was selected, on new rows.

    Attributes:
      score: the estimate.
      low: lower end of its 95 % interval.
      high: upper end.
    """

    score: float
    low: float
    high: float


def mcnemar(correct_a: Any, correct_b: Any) -> Paired:
    """Compares the accuracies of two heads by the rows where one of them is wrong.

    If the heads are equally good, a row that only one of them gets right is as often
    for `a` as for `b`. The p-value is the exact binomial one with half the probability
    of what was seen (mid-p): the exact test proper is too cautious, and the chi-square
    test errs where such rows are few. It is 1 where there are as many of each kind. The
    interval is Wald's with one row of each kind added.

    Args:
      correct_a: `bool [rows]`, whether head `a` predicts the row right.
      correct_b: `bool [rows]`, the same of head `b`. Rows count alike: leave those of
        weight 0 out.

    Returns:
      The `Paired` comparison of accuracies.

    Raises:
      ValueError: where the arguments aren't True or False, one a row, or are empty.

    >>> correct_a = np.array([True] * 9 + [False] * 91)
    >>> correct_b = np.array([False] * 8 + [True] * 3 + [False] * 89)
    >>> found = mcnemar(correct_a, correct_b)  # 8 rows for a, 2 for b
    >>> f"{found.difference:.2f} ({found.low:.3f} to {found.high:.3f})"
    '0.06 (-0.007 to 0.124)'
    >>> f"{found.p_value:.4f} = {(1 + 10 + 45 + 1 + 10) / 2**10:.4f}"
    '0.0654 = 0.0654'

    Source: Fagerland, Lydersen and Laake (2013), The McNemar test for binary matched-
    pairs data: mid-p and asymptotic are better than exact conditional; for the
    interval, Bonett and Price (2012), Adjusted Wald confidence interval for a
    difference of binomial proportions based on paired data.
    """
    a, b = np.asarray(correct_a), np.asarray(correct_b)
    for name, correct in (("correct_a", a), ("correct_b", b)):
        if correct.dtype != bool or correct.ndim != 1 or correct.shape != a.shape:
            raise ValueError(
                f"{name}: expected True or False, one a row as correct_a, got "
                f"{correct.dtype} {list(correct.shape)}."
            )
    rows = len(a)
    if not rows:
        raise ValueError("correct_a: expected one or more rows, got none.")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    fewer, discordant = min(only_a, only_b), only_a + only_b
    p_value = bdtr(fewer, discordant, 0.5)
    if fewer:
        p_value += bdtr(fewer - 1, discordant, 0.5)
    share_a, share_b = (only_a + 1) / (rows + 2), (only_b + 1) / (rows + 2)
    middle = share_a - share_b
    half = Z_95 * math.sqrt((share_a + share_b - middle**2) / (rows + 2))
    return Paired(
        difference=(only_a - only_b) / rows,
        low=max(-1.0, middle - half),
        high=min(1.0, middle + half),
        p_value=min(1.0, float(p_value)),
    )


def paired_bootstrap(
    values_a: Any,
    values_b: Any,
    *,
    seed: int,
    resamples: int = 2000,
    weights: Any = None,
    groups: Any = None,
) -> Paired:
    """Compares two heads by any values of rows: rows are drawn anew with replacement.

    The interval holds the middle 95 % of the differences that were drawn. The p-value
    is the level at which such an interval would just reach 0: twice the smaller share
    of draws on one side of it, 0 included.

    Args:
      values_a: `[rows]`, whose weighted mean is the score of head `a`.
      values_b: `[rows]`, the same of head `b`.
      seed: the same seed draws alike.
      resamples: draws, 100 or more.
      weights: `[rows]`, 0 or more (0: the row is absent); None for all 1.
      groups: `[rows]` of any type that sorts; whole groups are drawn. None: rows. A row
        of weight 2 is the row twice only if the two are one group.

    Returns:
      The `Paired` comparison of weighted means.

    Raises:
      ValueError: for wrong shapes, values that aren't finite, or fewer than two rows
        (or groups).

    >>> values = np.random.default_rng(0).normal(size=500)
    >>> found = paired_bootstrap(values + 0.1, values, seed=0)
    >>> round(found.low, 6), round(found.high, 6), found.p_value < 0.001
    (0.1, 0.1, True)

    Source: Efron and Tibshirani (1993), An introduction to the bootstrap, chapters 13
    and 15.4.
    """
    a, b = np.asarray(values_a, np.float64), np.asarray(values_b, np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(
            f"values_a, values_b: expected one value a row of both, got "
            f"{list(a.shape)} and {list(b.shape)}."
        )
    (sums_a, sums_b), totals = _units(np.stack([a, b]), weights, groups)
    if not (np.isfinite(sums_a) & np.isfinite(sums_b)).all():
        raise ValueError("values_a, values_b: expected finite numbers, got others.")
    sums = sums_a - sums_b
    draws = _draws(len(totals), resamples=resamples, seed=seed)
    drawn = np.concatenate([(counts @ sums) / (counts @ totals) for counts in draws])
    low, high = np.quantile(drawn, [0.025, 0.975])
    side = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return Paired(
        difference=float(sums.sum() / totals.sum()),
        low=float(low),
        high=float(high),
        p_value=min(1.0, float(2 * (side + 1) / (resamples + 1))),
    )


def bias_corrected(
    values: Any,
    *,
    greater_is_better: bool,
    seed: int,
    resamples: int = 1000,
    weights: Any = None,
    groups: Any = None,
    choose: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Corrected:
    """Scores the choice of the best candidate, by its held-out rows, on other rows.

    The best of many cross-validated scores is too good: the rows that chose it also
    score it. Here the choice is made again on every draw of rows, and the chosen
    candidate scored on the rows that were not drawn (about 37 %). The estimate is the
    mean of these scores, and the interval their middle 95 %. Both are cautious: a draw
    has fewer distinct rows to choose by, and few to be scored on, so that the interval
    is about 1.6 times as wide as that of a head that nobody selected.

    Args:
      values: `[candidates, rows]`, of each row under the head that did not train on it;
        a weighted mean over rows is the score. A candidate with values that aren't
        finite is never chosen by default.
      greater_is_better: whether larger scores are better.
      seed: the same seed draws alike.
      resamples: draws, 100 or more.
      weights: `[rows]`, 0 or more (0: the row is absent); None for all 1.
      groups: `[rows]` of any type that sorts; whole groups are drawn. None: rows.
      choose: `scores [draws, candidates] -> int [draws]`, called for some draws at a
        time; candidates that can't be chosen score -inf (or inf, where smaller is
        better). None: the best one, the first of equals.

    Returns:
      The `Corrected` score, with its interval.

    Raises:
      ValueError: for wrong shapes, no candidate of finite values, or fewer than two
        rows (or groups).

    >>> guesses = np.random.default_rng(0).integers(2, size=(100, 300))
    >>> found = bias_corrected(guesses, greater_is_better=True, seed=0)
    >>> best = float(guesses.mean(axis=1).max())
    >>> f"{best:.2f} looks better than chance, {found.score:.2f} does not"
    '0.56 looks better than chance, 0.49 does not'

    Source: Tsamardinos, Greasidou and Borboudakis (2018), Bootstrapping the
    out-of-sample predictions for efficient and accurate cross-validation.
    """
    values = np.asarray(values, np.float32)
    if values.ndim != 2:
        raise ValueError(
            f"values: expected [candidates, rows], got {list(values.shape)}."
        )
    sums, totals = _units(values, weights, groups)
    able = np.isfinite(sums).all(axis=1)
    if not able.any():
        raise ValueError(
            f"values: expected a candidate whose values are finite, but none of "
            f"{len(values)} is."
        )
    sums[~able] = np.nan
    sign = 1.0 if greater_is_better else -1.0
    choose = choose or (lambda scores: (sign * scores).argmax(axis=1))
    found = []
    for counts in _draws(len(totals), resamples=resamples, seed=seed):
        scores = (counts @ sums.T) / (counts @ totals)[:, None]
        scores[:, ~able] = -sign * np.inf
        chosen = choose(scores)
        rest = (counts == 0).astype(np.float32)
        weight = rest @ totals
        kept = weight > 0  # A draw of a few rows may leave none to score on.
        total = np.einsum("du,du->d", rest[kept], sums[chosen[kept]])
        found.append(total / weight[kept])
    drawn = np.concatenate(found)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Corrected(score=float(drawn.mean()), low=float(low), high=float(high))


def _units(
    values: np.ndarray, weights: Any, groups: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted sums `[heads, units]` and weights `[units]` of what is drawn at once."""
    rows = values.shape[1]
    weights = np.ones(rows) if weights is None else np.asarray(weights, np.float64)
    if weights.shape != (rows,):
        raise ValueError(f"weights: expected [{rows}], got {list(weights.shape)}.")
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError("weights: expected finite numbers of 0 or more, got others.")
    there = weights > 0
    totals = weights[there].astype(values.dtype)
    sums = values[:, there] * totals
    if groups is not None:
        groups = np.asarray(groups)
        if groups.shape != (rows,):
            raise ValueError(f"groups: expected [{rows}], got {list(groups.shape)}.")
        order = np.argsort(groups[there], kind="stable")
        _, start = np.unique(groups[there][order], return_index=True)
        sums = np.add.reduceat(sums[:, order], start, axis=1)
        totals = np.add.reduceat(totals[order], start)
    if len(totals) < 2:
        what = "rows" if groups is None else "groups"
        raise ValueError(
            f"values: expected two or more {what} of a weight above 0 to draw from, "
            f"got {len(totals)}."
        )
    return sums, totals


def _draws(units: int, *, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each unit is drawn, `float32 [draws, units]`, some draws at a time."""
    if resamples < 100:
        raise ValueError(f"resamples: expected 100 or more, got {resamples}.")
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // units)
    for start in range(0, resamples, chunk):
        draws = min(chunk, resamples - start)
        drawn = rng.integers(units, size=(draws, units))
        drawn += units * np.arange(draws)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=draws * units)
        yield counts.reshape(draws, units).astype(np.float32)
