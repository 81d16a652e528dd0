"""The one-line entry: embeddings and labels -> a head, chosen, fitted and ready."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flaxhead import build
from flaxhead.bundle import LoadedHead, load
from flaxhead.config import (
    LADDER,
    SEMI_SUPERVISED,
    Config,
    DataConfig,
    HeadConfig,
    SelectionConfig,
    TrainConfig,
)
from flaxhead.data import arrays
from flaxhead.loop import run
from flaxhead.paths import Location, to_path
from flaxhead.report.progress import Display


def fit(
    embeddings: Any,
    labels: Any,
    *,
    heads: str | HeadConfig | Sequence[HeadConfig] = "auto",
    weights: Any = None,
    groups: Any = None,
    class_names: Sequence[str] | None = None,
    views: bool = False,
    metric: str = "auto",
    rule: str = "auto",
    folds: int = 5,
    seed: int = 0,
    backbone: str = "",
    workdir: Location | None = None,
    display: Display | None = None,
) -> LoadedHead:
    """Trains a head on embeddings: what kind, and how strongly regularised, is chosen.

    Every candidate is fitted without each fold and scored on it; the winner is fitted
    again on all rows. What to expect of it on new rows is in
    `head.bundle.metrics["corrected"]`, with an interval that accounts for the choice,
    what was chosen in `head.bundle.metrics["selected"]`, and by how much it is better
    than the other heads in `head.bundle.metrics["comparisons"]`.

    Args:
      embeddings: `[rows, dim]`, any float type.
      labels: `[rows]` names or integers (a class each), or `[rows, classes]`.
      heads: `auto` (nearest mean, ridge, logistic regression, MLP: the simplest within
        one standard error of the best), the name of one head, or settings of heads.
        `semi_supervised` is logistic regression with a graph of all rows and without,
        the better one by NLL: rows of label -1 are those to learn from.
      weights: `[rows]`, 0 or more; None: all 1.
      groups: `[rows]`; the rows of a group, such as a patient, stay in one fold.
      class_names: what integer labels stand for.
      views: whether embeddings are `[rows, views, dim]`, view 0 the row as it is. Heads
        trained by steps learn from all views, others from view 0, which all predict.
      metric: a name of `flaxhead.METRICS`, or `auto`.
      rule: `one_standard_error`, or `best`; `auto`: the first, but for
        `semi_supervised`.
      folds: how many, 2 or more.
      seed: of the folds, and of what is drawn at random.
      backbone: name of the frozen model, recorded in the head.
      workdir: where to keep the run, as `train.py` does; None: nowhere.
      display: where to tell of progress, such as `flaxhead.report.progress.display()`;
        None: nowhere.

    Returns:
      What `flaxhead.load` gives: `logits`, `probabilities` and `predict` as pure
      functions, the head, its parameters, and what is known of it.

    Raises:
      ValueError: for anything that training could not use as it is.

    >>> from sklearn.datasets import load_iris
    >>> x, y = load_iris(return_X_y=True)
    >>> head = fit(x, y, heads="ridge")
    >>> head.probabilities(x[:2]).shape
    (2, 3)
    """
    config = settings(
        heads,
        metric=metric,
        rule=rule,
        folds=folds,
        fold_by="stratified" if groups is None else "grouped",
        seed=seed,
        views=views,
        backbone=backbone,
    )
    given = fields(
        embeddings=embeddings,
        labels=labels,
        weights=weights,
        groups=groups,
        class_names=class_names,
    )
    data = arrays(given, config=config.data)
    if workdir is not None:
        run(config, workdir, data=data, display=display)
        return load(to_path(workdir) / "head")
    with tempfile.TemporaryDirectory() as folder:
        run(config, folder, data=data, display=display)
        return load(Path(folder) / "head")


def settings(
    heads: str | HeadConfig | Sequence[HeadConfig] = "auto",
    *,
    metric: str = "auto",
    rule: str = "auto",
    folds: int = 5,
    fold_by: str = "stratified",
    seed: int = 0,
    views: bool = False,
    backbone: str = "",
) -> Config:
    """Returns the settings of `fit`: no rows are split off, and folds choose."""
    ladder = LADDER
    if isinstance(heads, HeadConfig):
        ladder = (heads,)
    elif not isinstance(heads, str):
        if not isinstance(heads, Sequence) or not all(
            isinstance(one, HeadConfig) for one in heads
        ):
            raise ValueError(
                f"heads is {heads!r}; expected a name, a HeadConfig or some of those"
            )
        ladder = tuple(heads)
    elif heads != "auto":
        ladder = (HeadConfig(heads),)
    if heads == "semi_supervised":
        ladder = SEMI_SUPERVISED
        metric = "nll" if metric == "auto" else metric
        rule = "best" if rule == "auto" else rule
    config = Config(
        data=DataConfig(
            source="arrays",
            val_fraction=0.0,
            test_fraction=0.0,
            seed=seed,
            views=views,
            backbone=backbone,
        ),
        heads=ladder,
        train=TrainConfig(seeds=(seed,)),
        selection=SelectionConfig(
            metric=metric,
            rule="one_standard_error" if rule == "auto" else rule,
            folds=folds,
            fold_by=fold_by,
            # A graph a fold: the grid is as it is.
            extend=0 if ladder is SEMI_SUPERVISED else SelectionConfig().extend,
        ),
    )
    if build.keeps_unlabelled(config):
        config = replace(config, data=replace(config.data, unlabelled="keep"))
    return config


def fields(**given: Any) -> dict[str, Any]:
    """Those arguments that are not None."""
    return {name: one for name, one in given.items() if one is not None}
