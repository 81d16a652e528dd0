"""Choosing by folds or held-out rows, with an interval that knows of the choice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from flaxhead import build
from flaxhead.base import Batch
from flaxhead.comparison import bias_corrected, mcnemar, paired_bootstrap
from flaxhead.config import Config
from flaxhead.data import Dataset, Embeddings, concatenate, padded, to_batch
from flaxhead.data.labels import UNLABELLED, unlabelled
from flaxhead.folds import FOLDS, short_classes, shots
from flaxhead.metrics import METRICS, evaluate
from flaxhead.search import (
    Found,
    Programs,
    Question,
    Tick,
    fit_default,
    predict,
    programs,
    scored,
    search,
)
from flaxhead.selection import chooser


class Pool(NamedTuple):
    """All rows to train on and to choose by.

    Attributes:
      data: the rows of training, of validation, and those without a label.
      rows: the same as a `Batch`, x of all views where there are several.
      fold: `int32 [rows]`, the fold that holds a row out; `folds` or more: none does.
      folds: how many there are.
    """

    data: Embeddings
    rows: Batch
    fold: np.ndarray
    folds: int


class Outcome(NamedTuple):
    """What a run that compares whole fits comes to.

    Attributes:
      found: the search.
      scores: `val`, `test`, `test_looks`, and what only such runs have, JSON-able.
      compile_seconds: time spent on compiling.
    """

    found: Found
    scores: dict[str, Any]
    compile_seconds: float


def run(
    question: Question,
    data: Dataset,
    chosen_by: Pool,
    *,
    tick: Tick = lambda *_: None,
) -> Outcome:
    """Chooses a head, fits it on all rows but the test's, and scores it on those once.

    Args:
      question: what is to be decided.
      data: the test rows and the class names are used.
      chosen_by: from `pool`, the other rows.
      tick: told how far it is.

    Raises:
      ValueError: no candidate can win.
    """
    config, classes = question.config, data.class_names
    test = to_batch(data.test)
    compiled = programs(question, rows=len(chosen_by.fold))
    before = _compile_seconds(compiled)
    found = search(
        question,
        chosen_by.rows,
        chosen_by.fold,
        folds=chosen_by.folds,
        programs=compiled,
        tick=tick,
    )

    def score(logits: np.ndarray, rows: Batch) -> dict[str, Any]:
        return evaluate(
            logits,
            rows.labels,
            rows.weights,
            class_names=classes,
            output=question.output,
        )

    held, rows = found.held, chosen_by.rows
    scores: dict[str, Any] = {
        "val": score(found.logits()[held], take(rows._replace(x=()), held)),
        "test": None,
        "test_looks": 0,
        "corrected": corrected(question, found, chosen_by),
        "comparisons": comparisons(question, found, chosen_by),
        "folds": {
            "by": config.selection.fold_by
            if build.by_folds(config)
            else "validation rows",
            "rows": np.bincount(chosen_by.fold[held]).tolist(),
            "refit": len(chosen_by.fold) if refitted(config) else 0,
        },
    }
    if len(test.labels):
        scores["test"] = score(predict(found, test, programs=compiled), test)
        scores["test_looks"] = 1
    if config.selection.nested:
        scores["nested"] = nested(
            question,
            chosen_by,
            programs=compiled,
            class_names=classes,
            tick=tick,
        )
    if config.curve.shots:
        scores["learning_curve"] = learning_curve(
            question, chosen_by, test, class_names=classes, tick=tick
        )
        scores["test_looks"] += sum(
            len(point["scores"]) for point in scores["learning_curve"]
        )
    warnings = [*_few(question, data, chosen_by), *found.warnings]
    found = found._replace(warnings=warnings)
    return Outcome(found, scores, _compile_seconds(compiled) - before)


def _few(question: Question, data: Dataset, chosen_by: Pool) -> list[str]:
    """A sentence on classes that have fewer rows than there are folds."""
    inside = (chosen_by.fold >= 0) & (chosen_by.fold < chosen_by.folds)
    if question.config.selection.fold_by != "stratified" or chosen_by.folds < 2:
        return []
    short = short_classes(chosen_by.rows.labels, k=chosen_by.folds, where=inside)
    if not short:
        return []
    told = [f"{data.class_names[one]!r} has {count}" for one, count in short.items()]
    more = ", ..." if len(told) > 5 else ""
    return [
        f"{len(told)} classes have fewer rows than the {chosen_by.folds} folds and are "
        f"missing from some: {', '.join(told[:5])}{more}; try fewer folds"
    ]


def _compile_seconds(compiled: list[Programs]) -> float:
    """Of all heads, whose devices they may share."""
    shares = {id(one.shares): one.shares for one in compiled}
    return sum(one.compile_seconds for one in shares.values())


def refitted(config: Config) -> bool:
    """Whether the winner is fitted again on the rows that were held out."""
    return config.selection.refit or build.by_folds(config)


def pool(config: Config, data: Dataset) -> Pool:
    """Puts training and validation rows together and cuts them into folds.

    Without folds the validation rows are the only one, and held out as they are.

    Raises:
      ValueError: there are no validation rows and no folds, the rows can't be cut as
        the settings ask, or there are no test rows for a learning curve.
    """
    if config.curve.shots and not len(data.test.labels):
        raise ValueError(
            "curve.shots asks for a learning curve, which is scored on test rows, and "
            "there are none; set data.test_fraction above 0"
        )
    everything = concatenate(data.train, data.val)
    count = len(everything.labels)
    if data.unlabelled is not None:
        everything = concatenate(everything, data.unlabelled)
    rows = to_batch(everything, views=True)
    if not build.by_folds(config):
        if not len(data.val.labels):
            raise ValueError(
                "there are no validation rows to choose by; set data.val_fraction, or "
                "selection.folds"
            )
        fold = np.ones(len(rows.labels), np.int32)
        fold[len(data.train.labels) : count] = 0
        return Pool(everything, rows, fold, 1)
    if config.selection.nested:
        cut(_outer(config), rows, everything.groups)
    fold, folds = cut(config, rows, everything.groups)
    return Pool(everything, rows, fold, folds)


def cut(
    config: Config, rows: Batch, groups: np.ndarray | None, *, where: Any = None
) -> tuple[np.ndarray, int]:
    """Numbers the fold of every row, as the settings say."""
    selection = config.selection
    present = np.asarray(rows.weights) > 0
    present = present if where is None else present & where
    if selection.fold_by == "leave_one_out":
        return np.where(present, 0, -1).astype(np.int32), 1
    fold = FOLDS[selection.fold_by](
        rows.labels,
        folds=selection.folds,
        seed=config.data.seed,
        groups=groups if selection.fold_by in _GROUPED else None,
        where=present,
    )
    folds = int(fold.max()) + 1
    if build.keeps_unlabelled(config):
        fold[present & unlabelled(np.asarray(rows.labels))] = folds  # in every fit
    return fold, folds


_GROUPED = ("grouped", "leave_one_group_out", "given")


def corrected(question: Question, found: Found, chosen_by: Pool) -> dict[str, Any]:
    """The winner's score with the choice among candidates taken into account.

    Returns:
      `{METRIC: score, METRIC_ci: [low, high], "method": ...}`, or the reason why there
      is none under `undefined`.
    """
    metric = question.metric
    if found.totals is None:
        return {
            "undefined": f"{metric} is no mean over rows; nested cross-validation "
            "(selection.nested) gives an interval for it"
        }
    values, weights, groups = _held(found, chosen_by)
    estimate = bias_corrected(
        values,
        greater_is_better=METRICS[metric].greater_is_better,
        seed=question.config.data.seed,
        weights=weights,
        groups=groups,
        choose=chooser(
            found.candidates, metric=metric, rule=question.config.selection.rule
        ),
    )
    return {
        metric: estimate.score,
        f"{metric}_ci": [estimate.low, estimate.high],
        "method": "bootstrap bias-corrected cross-validation",
    }


def comparisons(
    question: Question, found: Found, chosen_by: Pool
) -> list[dict[str, Any]]:
    """The winner against the best candidate of every other head, on the same rows."""
    if found.totals is None:
        return []
    winner = found.selection.winner
    values, weights, groups = _held(found, chosen_by)
    there = weights > 0
    alike = len(set(weights[there])) == 1 and question.task == "multiclass"
    exact = question.metric == "accuracy" and alike and groups is None
    seen = {found.candidates[winner].head}
    told = []
    for index in found.selection.ranked:
        other = found.candidates[index]
        if other.head in seen or not np.isfinite(values[index]).all():
            continue
        seen.add(other.head)
        if exact:
            test = "McNemar, mid-p"
            right = values[:, there] > 0.5
            paired = mcnemar(right[winner], right[index])
        else:
            test = "paired bootstrap"
            paired = paired_bootstrap(
                values[winner],
                values[index],
                seed=question.config.data.seed,
                weights=weights,
                groups=groups,
            )
        told.append(
            {
                "head": other.head,
                "candidate": index,
                "difference": paired.difference,
                "difference_ci": [paired.low, paired.high],
                "p_value": paired.p_value,
                "test": test,
            }
        )
    return told


def _outer(config: Config) -> Config:
    """The settings that cut the outer folds."""
    selection = replace(config.selection, folds=config.selection.nested)
    return replace(config, selection=selection)


def _held(found: Found, chosen_by: Pool) -> tuple[Any, np.ndarray, np.ndarray | None]:
    """Values `[candidates, rows]` of the rows held out, their weights and groups."""
    held, groups = found.held, chosen_by.data.groups
    counts = found.counts[held]
    assert found.totals is not None
    values = found.totals[:, held] / np.where(counts > 0, counts, 1)
    weights = counts * chosen_by.rows.weights[held]
    return values, weights, None if groups is None else groups[held]


def nested(
    question: Question,
    chosen_by: Pool,
    *,
    programs: list[Programs],
    class_names: tuple[str, ...],
    tick: Tick = lambda *_: None,
) -> dict[str, Any]:
    """Nested cross-validation: the whole search again without each outer fold.

    The winner of each inner search, fitted on all rows of that search, predicts the
    rows of the outer fold, which it never saw: the score is that of the procedure, the
    choice included.

    Args:
      question: what is decided; `config.selection.nested` says how many outer folds,
        cut as the inner ones are.
      chosen_by: all rows.
      programs: from `programs`, for as many rows.
      class_names: the name of each class.
      tick: told how far it is.

    Returns:
      What `evaluate` says of the rows of all outer folds, and `chosen`, the winner of
      each.

    Source: Varma and Simon (2006), Bias in error estimation when using
    cross-validation for model selection.
    """
    config = question.config
    settings = _outer(config)
    rows, groups = chosen_by.rows, chosen_by.data.groups
    outer_fold, count = cut(settings, rows, groups)
    logits = np.zeros((len(outer_fold), question.classes), np.float32)
    chosen = []
    for number in range(count):
        inside = (outer_fold >= 0) & (outer_fold != number)
        fold, folds = cut(config, rows, groups, where=inside)
        found = search(question, rows, fold, folds=folds, programs=programs, tick=tick)
        mine = outer_fold == number
        held = scored(question, take(rows, mine))
        logits[mine] = predict(found, held, programs=programs)
        winner = found.candidates[found.selection.winner]
        chosen.append({"head": winner.head, **winner.hyperparameters})
    there = outer_fold >= 0
    scores = evaluate(
        logits[there],
        rows.labels[there],
        rows.weights[there],
        class_names=class_names,
        output=question.output,
    )
    return {**scores, "chosen": chosen}


def learning_curve(
    question: Question,
    chosen_by: Pool,
    test: Batch,
    *,
    class_names: tuple[str, ...],
    tick: Tick = lambda *_: None,
) -> list[dict[str, Any]]:
    """The score on the test rows against labels per class.

    Every draw is a budget of labels: what wins is chosen by folds inside of it (as many
    as the settings say, or 5; no more than labels a class), and fitted on all of it.
    With one label a class nothing can be held out, so the first head is fitted with
    the middle of its grid; and an only candidate needs no choice. Heads that learn
    from rows without a label get those that were not drawn as such.

    Args:
      question: what is decided; `config.curve` says how many labels and draws.
      chosen_by: the rows to draw from.
      test: the rows to score on.
      class_names: the name of each class.
      tick: told how far it is.

    Returns:
      For each number of labels: `shots`, `scores` of the draws, their `mean` and
      `standard_deviation` (of the draws, n - 1; None for one draw), the `chosen`
      candidates, and `short`, how many rows each class has that has fewer.
    """
    curve, seed = question.config.curve, question.config.data.seed
    semi = build.keeps_unlabelled(question.config)
    labels, present = chosen_by.rows.labels, np.asarray(chosen_by.rows.weights) > 0
    told = []
    for place, k in enumerate(curve.shots):
        draws = [
            shots(labels, k=k, repeat=r, seed=seed, where=present, short="all")
            for r in range(curve.repeats)
        ]
        size = len(labels) if semi else max(int(draw.sum()) for draw in draws)
        folds = min(question.config.selection.folds or 5, k)
        selection = replace(question.config.selection, folds=folds)
        inside = question._replace(config=replace(question.config, selection=selection))
        compiled = programs(inside, rows=size)
        heads = inside.config.heads
        only = sum(len(build.grid(inside.config, head, size)) for head in heads) == 1
        scores, chosen = [], []
        for number, draw in enumerate(draws):
            rows, groups = chosen_by.rows, chosen_by.data.groups
            if semi:
                rows = rows._replace(labels=_hidden(labels, ~draw))
            else:
                rows = padded(take(rows, draw), size)
                groups = None if groups is None else padded(groups[draw], size)
            if folds < 2 or only:
                found = fit_default(inside, rows, programs=compiled)
            else:
                fold, count = cut(inside.config, rows, groups)
                found = search(inside, rows, fold, folds=count, programs=compiled)
            logits = predict(found, test, programs=compiled)
            report = evaluate(
                logits,
                test.labels,
                test.weights,
                class_names=class_names,
                output=question.output,
                intervals=False,
            )
            scores.append(report[question.metric])
            winner = found.candidates[found.selection.winner]
            chosen.append({"head": winner.head, **winner.hyperparameters})
            tick(
                place * curve.repeats + number + 1,
                len(curve.shots) * curve.repeats,
                f"{k} labels a class: {question.metric} {np.mean(scores):.4f}",
                "draws",
            )
        several = len(scores) > 1
        short = short_classes(labels, k=k, where=present)
        told.append(
            {
                "shots": k,
                "scores": scores,
                "mean": float(np.mean(scores)),
                "standard_deviation": float(np.std(scores, ddof=1))
                if several
                else None,
                "chosen": chosen,
                "short": {class_names[one]: count for one, count in short.items()},
            }
        )
    return told


def _hidden(labels: Any, where: np.ndarray) -> Any:
    """Labels as if rows had none."""
    if labels.ndim == 2:
        return np.where(where[:, None], np.nan, labels).astype(np.float32)
    return np.where(where, UNLABELLED, labels).astype(np.int32)


def take(rows: Batch, where: np.ndarray) -> Batch:
    """The rows that `where` (`bool [rows]`) selects."""
    return jax.tree.map(lambda leaf: leaf[where], rows)
