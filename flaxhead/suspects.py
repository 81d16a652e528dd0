"""All the labels of some data, judged by heads that did not see them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from flaxhead import build, entry
from flaxhead.bulk import files
from flaxhead.bundle import to_probabilities
from flaxhead.config import Config, HeadConfig
from flaxhead.data import Dataset, Embeddings, arrays, concatenate
from flaxhead.data.records import take
from flaxhead.loop import work
from flaxhead.noisy_labels import label_errors
from flaxhead.report.progress import Display, quiet
from flaxhead.search import programs, search

_SPLITS = ("train", "val", "test")


class Suspects(NamedTuple):
    """Labels that are likely wrong, the most suspicious first.

    Attributes:
      ids: `[suspects]` text or integers; the row's number in its split by default.
      splits: `[suspects]`, `train`, `val` or `test`.
      given: `int [suspects]`, the class of the label.
      suggested: `int [suspects]`, the likeliest class.
      score: `float32 [suspects]`, the probability of the label; it rises.
      margin: `float32 [suspects]`, the score less the probability of the suggested
        class; below 0.
      rows: how many labels were judged.
      noise: an estimate of the share of labels that are wrong.
      agreement: the share of labels that the head gives itself. Where it is low the
        head knows little, and its suspicions are worth as little.
      class_names: what class number `i` stands for.
      head: the name of the head that judged, which folds have chosen.
    """

    ids: np.ndarray
    splits: np.ndarray
    given: np.ndarray
    suggested: np.ndarray
    score: np.ndarray
    margin: np.ndarray
    rows: int
    noise: float
    agreement: float
    class_names: tuple[str, ...]
    head: str


def find_label_errors(
    embeddings: Any,
    labels: Any,
    *,
    heads: str | HeadConfig | Sequence[HeadConfig] = "auto",
    weights: Any = None,
    groups: Any = None,
    ids: Any = None,
    class_names: Sequence[str] | None = None,
    views: bool = False,
    metric: str = "auto",
    folds: int = 5,
    seed: int = 0,
    display: Display | None = None,
) -> Suspects:
    """Lists the labels that are likely wrong, by heads that were not fitted to them.

    What `flaxhead.fit` would choose is fitted without each fold, and judges the labels
    of its rows: `flaxhead.label_errors` of those probabilities.

    Args:
      embeddings: `[rows, dim]`, any float type.
      labels: `[rows]` names or integers, a class each; -1 or empty: none to judge.
      heads: as for `flaxhead.fit`.
      weights: `[rows]`, 0 or more; None: all 1.
      groups: `[rows]`; the rows of a group are in one fold.
      ids: `[rows]` text or integers; None: their numbers.
      class_names: what integer labels stand for.
      views: as for `flaxhead.fit`.
      metric: a name of `flaxhead.METRICS`, or `auto`, by which heads are chosen.
      folds: how many, 2 or more.
      seed: of the folds, and of what is drawn at random.
      display: where to tell of progress; None: nowhere.

    Returns:
      `Suspects`.

    Raises:
      ValueError: for anything that training could not use, and for labels of several
        classes.

    >>> from sklearn.datasets import load_iris
    >>> x, y = load_iris(return_X_y=True)
    >>> y[7] = 2  # A wrong one.
    >>> found = find_label_errors(x, y, heads="logistic")
    >>> int(found.ids[0]), int(found.suggested[0])
    (7, 0)
    """
    config = settings(heads, metric=metric, folds=folds, seed=seed, views=views)
    data = arrays(
        entry.fields(
            embeddings=embeddings,
            labels=labels,
            weights=weights,
            groups=groups,
            ids=ids,
            class_names=class_names,
        ),
        config=config.data,
    )
    return suspects(config, data, display=display)


def settings(
    heads: str | HeadConfig | Sequence[HeadConfig] = "auto",
    *,
    source: str = "arrays",
    **others: Any,
) -> Config:
    """Returns the settings of `flaxhead.fit`, without the rows that have no label.

    Args:
      heads: as for `flaxhead.fit`; those that learn from such rows get them.
      source: as `DataConfig.source`.
      **others: of `flaxhead.entry.settings`.
    """
    config = entry.settings(heads, **others)
    unlabelled = "keep" if build.keeps_unlabelled(config) else "drop"
    data = replace(config.data, source=source, unlabelled=unlabelled)
    return replace(config, data=data)


def suspects(
    config: Config, data: Dataset, *, display: Display | None = None
) -> Suspects:
    """As `find_label_errors`, of settings that choose by folds, and of all splits.

    Raises:
      ValueError: settings or data that can't be used, or settings without folds.
    """
    if not build.by_folds(config):
        raise ValueError(
            "selection.folds is 0, but labels are judged by heads that folds leave "
            "them out of; expected 2 or more"
        )
    if data.task != "multiclass" or data.train.labels.ndim != 1:
        raise ValueError(
            "labels are of several classes a row, or shares of them; expected one class"
            " a row, as only these are right or wrong"
        )
    display = display or quiet()
    sizes = [len(getattr(data, split).labels) for split in _SPLITS]
    splits = np.repeat(_SPLITS, sizes)
    data = _together(data)
    if data.train.groups is not None and config.selection.fold_by == "stratified":
        selection = replace(config.selection, fold_by="grouped")
        config = replace(config, selection=selection)
    made = work(config, data)
    question, pool = made.question, made.pool
    assert question is not None
    assert pool is not None
    with build.in_full():
        found = search(
            question,
            pool.rows,
            pool.fold,
            folds=pool.folds,
            programs=programs(question, rows=len(pool.fold)),
            tick=display.step,
        )
        display.close()
        judged = len(splits)  # Those without a label come after them.
        labels = np.asarray(pool.rows.labels)[:judged]
        weights = (np.asarray(pool.rows.weights) * found.held)[:judged]
        logits = found.logits()[:judged]
        probabilities = to_probabilities(logits, question.output)
        errors = jax.jit(label_errors)(probabilities, labels, weights)
    for warning in found.warnings:
        display.say(f"warning: {warning}")
    probabilities, score = np.asarray(probabilities), np.asarray(errors.score)
    suggested = probabilities.argmax(axis=1)
    margin = score - probabilities.max(axis=1)
    chosen = np.flatnonzero(errors.issue)
    chosen = chosen[np.lexsort((margin[chosen], score[chosen]))]
    counts = np.asarray(errors.counts, np.float64)
    return Suspects(
        ids=data.train.ids[chosen],
        splits=splits[chosen],
        given=labels[chosen],
        suggested=suggested[chosen],
        score=score[chosen],
        margin=margin[chosen],
        rows=int((weights > 0).sum()),
        agreement=float((weights * (suggested == labels)).sum() / weights.sum()),
        noise=float((counts.sum() - np.trace(counts)) / weights.sum()),
        class_names=data.class_names,
        head=found.head.name,
    )


def _together(data: Dataset) -> Dataset:
    """All splits as rows to train on."""
    train, test = data.train, data.test
    if train.views is not None:
        # The other views of test rows are not kept.
        several = np.repeat(test.x[:, None], train.views.shape[1], axis=1)
        test = test._replace(views=several)
    every: Embeddings = concatenate(concatenate(train, data.val), test)
    nothing = np.zeros(len(every.labels), bool)
    none = take(every, nothing)
    return data._replace(train=every, val=none, test=none)


def table(found: Suspects) -> bytes:
    """A CSV, a line a suspect: `rank` counts from 1."""
    names = np.array(found.class_names, dtype=object)
    columns = {
        "rank": range(1, 1 + len(found.ids)),
        "split": found.splits.tolist(),
        "id": found.ids.tolist(),
        "given": names[found.given],
        "suggested": names[found.suggested],
        "score": files.digits(found.score),
        "margin": files.digits(found.margin),
    }
    return files.table([list(columns), *zip(*columns.values(), strict=True)])


def told(found: Suspects, *, pairs: int = 3) -> str:
    """One line on how many there are, and which classes are confused most often."""
    names = found.class_names
    confused = Counter(zip(found.given.tolist(), found.suggested.tolist(), strict=True))
    most = sorted(confused.items(), key=lambda one: (-one[1], one[0]))[:pairs]
    shown = [
        f"{names[given]!r} that may be {names[suggested]!r} ({count})"
        for (given, suggested), count in most
    ]
    share = len(found.ids) / found.rows
    return (
        f"{len(found.ids)} of {found.rows} labels are suspected ({share:.1%}) by "
        f"{found.head}, which itself gives {found.agreement:.1%} of the labels and "
        f"estimates {found.noise:.1%} to be wrong"
        + (f"; most often {', '.join(shown)}" if shown else "")
    )
