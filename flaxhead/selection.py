"""What wins: pure functions over one validation score a candidate.

Nothing here sees the test split. Ties are broken by the candidates themselves, so the
order in which they were trained changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from flaxhead.metrics import METRICS

_RULES = ("best", "one_standard_error")
# What is off at 0: its grid can't be extended below.
_OFF_AT_ZERO = ("weight_decay", "dropout", "label_smoothing", "logit_adjustment")


@dataclass(frozen=True)
class Candidate:
    """One trained head and how it scored on the validation rows.

    Attributes:
      index: the candidate's number, unique.
      head: name of the shape of head, unique to one `HeadConfig`.
      hyperparameters: the values it was trained with, by name.
      complexity: the simpler head's is smaller, such as its number of parameters.
      score: the metric at its best evaluation.
      standard_error: of that score; needed of the best one by `one_standard_error`.
      best_step: the step of that evaluation.
      diverged_at: the first step with a loss that isn't finite; None if there is none.
      solver: what an iterative solver says of its solution, or None.
    """

    index: int
    head: str
    hyperparameters: dict[str, float]
    complexity: float
    score: float
    standard_error: float | None
    best_step: int
    diverged_at: int | None
    solver: dict[str, Any] | None = None


class Selection(NamedTuple):
    """The outcome of a selection.

    Attributes:
      winner: index of the candidate to keep.
      ranked: all indices, the best score first, those that cannot win last. Under
        `best`, the first is the winner.
    """

    winner: int
    ranked: list[int]


def select(
    candidates: Sequence[Candidate], *, metric: str, rule: str = "best"
) -> Selection:
    """Choose a candidate by its validation score.

    Equal scores go to fewer parameters, then to the stronger regularisation (larger
    weight decay, then larger dropout), then to the smaller learning rate, then to the
    smaller index. `one_standard_error` takes the first in that same order, a better
    score before a smaller index, among those whose score is within one standard error
    of the best. A candidate that diverged, or has no finite score, never wins.

    Args:
      candidates: what was trained.
      metric: the name in `METRICS` of what they were scored by.
      rule: `best` or `one_standard_error`.

    Returns:
      The `Selection`.

    Raises:
      ValueError: for an unknown metric or rule, where no candidate can win, or where
        `one_standard_error` lacks the best one's standard error.

    Example:
      >>> def candidate(index, learning_rate, score):
      ...     values = {"learning_rate": learning_rate}
      ...     return Candidate(index, "linear", values, 650, score, 0.02, 100, None)
      >>> tried = [candidate(0, 0.1, 0.90), candidate(1, 0.01, 0.89)]
      >>> select(tried, metric="accuracy").winner
      0
      >>> select(tried, metric="accuracy", rule="one_standard_error").winner
      1

    Source: Breiman, Friedman, Olshen and Stone (1984), Classification and regression
    trees, section 3.4.3 (the one-standard-error rule).
    """
    if metric not in METRICS:
        raise ValueError(
            f"metric: expected one of {', '.join(METRICS)}, got {metric!r}."
        )
    if rule not in _RULES:
        raise ValueError(f"rule: expected one of {', '.join(_RULES)}, got {rule!r}.")
    able = [c for c in candidates if c.diverged_at is None and math.isfinite(c.score)]
    if not able:
        raise ValueError(_nothing_left(candidates))
    sign = 1.0 if METRICS[metric].greater_is_better else -1.0
    able.sort(key=lambda c: (-sign * c.score, *_simplicity(c), c.index))
    best = winner = able[0]
    if rule == "one_standard_error":
        if best.standard_error is None or not math.isfinite(best.standard_error):
            raise ValueError(
                f"candidates: the rule one_standard_error needs the standard error of "
                f"the best, candidate {best.index}, got {best.standard_error}."
            )
        within = [
            c for c in able if sign * (best.score - c.score) <= best.standard_error
        ]
        winner = min(within, key=lambda c: (*_simplicity(c), -sign * c.score, c.index))
    unable = sorted({c.index for c in candidates} - {c.index for c in able})
    return Selection(winner.index, [c.index for c in able] + unable)


def chooser(
    candidates: Sequence[Candidate], *, metric: str, rule: str = "best"
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns `select` for many tables of scores at once, such as bootstrap draws.

    The standard errors are those of the candidates, whatever the draw.

    Args:
      candidates: what was tried; their own scores are not used.
      metric: a name of `METRICS`.
      rule: `best` or `one_standard_error`.

    Returns:
      `(scores [draws, candidates]) -> int [draws]`, places among the candidates.

    >>> tried = [
    ...     Candidate(i, "linear", {"C": c}, 650, math.nan, 0.02, 0, None)
    ...     for i, c in enumerate([0.1, 1.0])
    ... ]
    >>> scores = np.array([[0.80, 0.81], [0.80, 0.90]])
    >>> choose = chooser(tried, metric="accuracy", rule="one_standard_error")
    >>> choose(scores).tolist()
    [0, 1]
    """
    sign = 1.0 if METRICS[metric].greater_is_better else -1.0
    order = sorted(
        range(len(candidates)),
        key=lambda place: (*_simplicity(candidates[place]), candidates[place].index),
    )
    simplest_first = np.array(order)
    errors = np.array([one.standard_error or 0.0 for one in candidates])

    def choose(scores: np.ndarray) -> np.ndarray:
        signed = np.where(np.isfinite(scores), sign * scores, -np.inf)
        signed = signed[:, simplest_first]
        best = signed.argmax(axis=1)
        if rule == "one_standard_error":
            error = errors[simplest_first][best]
            bar = signed[np.arange(len(best)), best] - error
            best = (signed >= bar[:, None]).argmax(axis=1)
        return simplest_first[best]

    return choose


def _simplicity(candidate: Candidate) -> tuple[float, ...]:
    """Sort the simpler candidate first; a value that isn't swept counts as 0."""
    value = candidate.hyperparameters
    return (
        candidate.complexity,
        value.get("C", 0.0),
        -value.get("alpha", 0.0),
        -value.get("shrinkage", 0.0),
        -value.get("k", 0.0),
        -value.get("weight_decay", 0.0),
        -value.get("dropout", 0.0),
        value.get("learning_rate", 0.0),
    )


def _nothing_left(candidates: Sequence[Candidate]) -> str:
    """The one sentence that says why no candidate can win."""
    if not candidates:
        return "candidates: expected one or more, got none."
    each = []
    for c in sorted(candidates, key=lambda c: c.index):
        rate = c.hyperparameters.get("learning_rate", math.nan)
        step = f"score {c.score}" if c.diverged_at is None else f"step {c.diverged_at}"
        each.append(f"{c.index} (learning rate {rate:g}) at {step}")
    return (
        f"candidates: expected one with a finite score, but all {len(candidates)} "
        f"diverged, {'; '.join(each)}: try smaller learning rates."
    )


def grid_edges(
    winner: int, candidates: Sequence[Candidate], *, wide: Collection[str] = ()
) -> list[str]:
    """Say which swept values of the winner lie on the edge of what was tried.

    The optimum may then lie outside. The grid of a hyperparameter is what the winner's
    own head was tried with, diverged candidates included; seeds are no grid, and 0 is
    not an edge of what is off there, such as weight decay.

    Args:
      winner: index of the candidate that won.
      candidates: what was trained.
      wide: hyperparameters whose edges are as good as the end of all that can be tried.

    Returns:
      One sentence for each such hyperparameter, by name.

    Example:
      >>> tried = [
      ...     Candidate(i, "linear", {"learning_rate": rate}, 650, 0.9, None, 100, None)
      ...     for i, rate in enumerate([0.001, 0.01, 0.1])
      ... ]
      >>> grid_edges(1, tried)
      []
      >>> print(*grid_edges(2, tried))
      learning_rate: the winner's 0.1 is the largest of 3 tried; try a larger one.
    """
    (best,) = (c for c in candidates if c.index == winner)
    sentences = []
    for name, value in sorted(best.hyperparameters.items()):
        tried = {c.hyperparameters[name] for c in candidates if c.head == best.head}
        if name == "seed" or name in wide or len(tried) == 1:
            continue
        off = value == 0 and name in _OFF_AT_ZERO
        for edge, is_the, try_a in (
            (min(tried), "smallest", "smaller"),
            (max(tried), "largest", "larger"),
        ):
            if value == edge and not off:
                sentences.append(
                    f"{name}: the winner's {value:g} is the {is_the} of {len(tried)} "
                    f"tried; try a {try_a} one."
                )
    return sentences
