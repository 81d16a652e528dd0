"""Settings -> heads, losses and learners: names become functions here only."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
import numbers
import reprlib
import types
import typing
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from flaxhead import folds, heads, losses, optim, solvers
from flaxhead.base import (
    Array,
    Batch,
    Fit,
    Head,
    Hyperparameters,
    Info,
    Learner,
    Loss,
    PyTree,
    State,
)
from flaxhead.config import Config, HeadConfig
from flaxhead.data import RESIDENCIES, not_streamed
from flaxhead.distillation import distill
from flaxhead.ensembles import (
    bagging,
    batch_ensemble,
    ensemble,
    pooled,
    snapshots,
    soups,
)
from flaxhead.fit import seeds, train
from flaxhead.large import tiled_cross_entropy, tiled_supervised
from flaxhead.metrics import METRICS, Output
from flaxhead.noisy_labels import co_teaching, prune, twins
from flaxhead.objectives import (
    CONSISTENCY,
    SIGMOID_CONSISTENCY,
    cached,
    chain,
    feature_dropout,
    noise,
    supervised,
    with_view,
)
from flaxhead.semi_supervised import with_graph
from flaxhead.step import learner

NORMALIZATIONS = ("none", "l2", "standardize")
RULES = ("best", "one_standard_error")
SPLITS = ("batch", "candidates")
PRECISIONS = ("default", "high", "highest")
CLASS_WEIGHTS = ("none", "balanced", "effective_number")
SAMPLINGS = ("uniform", "class_balanced")
APART = {"seeds": seeds, "bagging": bagging}
"""Members that are fits of their own -> the fit of all of them."""
ENSEMBLES = (*APART, "snapshots", "soup", "batch_ensemble")
WHOLE = (0.0, 1.0)
LEARNED_POOLINGS = (*heads.ATTENTIONS, "gem", "mix_layers")
"""Poolings that have parameters, trained with those of the head."""
SOLVED = {
    "nearest_mean": (),
    "lda": ("shrinkage",),
    "ridge": ("alpha",),
    "logistic": ("C",),
    "knn": ("k", "temperature"),
    "semi_supervised": ("C",),
}
"""Heads that are solved and not trained -> the settings that they sweep."""
SIMPLICITY = ("nearest_mean", "lda", "ridge", "logistic", "linear", "cosine", "knn")
"""The simpler head first; what is not named here comes last."""
TILED = ("linear", "cosine")
"""Heads whose logits can be made a tile of classes at a time."""
MULTILABEL = ("ridge", "logistic", "linear", "cosine", "mlp")
"""Heads that know several labels a row."""
SHARED = frozenset(SOLVED) - {"semi_supervised"}
"""Heads that are one solution, whose rows may be split over devices."""
STREAMED = ("nearest_mean", "lda", "ridge", "logistic")
"""Solved heads whose rows may stay on the disk, and be read in passes."""
_PASSES = 30
_LEAST_STEPS = 300  # of gradient descent, however few the rows
_SWEPT = (
    "learning_rate",
    "weight_decay",
    "label_smoothing",
    "logit_adjustment",
    "dropout",
)
_TYPES: dict[Any, tuple[Any, str]] = {
    bool: ((bool, np.bool_), "True or False"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "text"),
}
_TERM = "consistency_weight"
_FORGET = "co_teaching"
_RAMP = 0.1  # of the steps, until co-teaching leaves out all that it is to


def check(config: Config) -> None:
    """Refuses settings that no run could use, before any work.

    Raises:
      ValueError: of the first such setting, and what is expected.
    """
    _check_types(config, Config, "")
    train, optimizer = config.train, config.optimizer
    if not config.heads:
        raise ValueError("heads is empty; name at least one head")
    for number, head in enumerate(config.heads):
        where = f"heads.{number}"
        _one_of(f"{where}.name", head.name, (*heads.HEADS, *SOLVED))
        _one_of(f"{where}.normalization", head.normalization, NORMALIZATIONS)
        _check_pool(where, head)
        _one_of(f"{where}.activation", head.activation, heads.ACTIVATIONS)
        _within(f"{where}.dropout", head.dropout, 0, 1)
        if len(head.columns) != 2 or not 0 <= head.columns[0] < head.columns[1] <= 1:
            raise ValueError(
                f"{where}.columns is {head.columns}; expected two shares of the width, "
                "from and to, such as (0.0, 0.5)"
            )
        _at_least(f"{where}.width", head.width, 1)
        _at_least(f"{where}.depth", head.depth, 1)
        _above(f"{where}.scale", head.scale, 0)
        _above(f"{where}.tolerance", head.tolerance, 0)
        _check_members(where, head)
        _check_co_teaching(where, head)
        _one_of(f"{where}.metric", head.metric, solvers.PROTOTYPE_HEADS)
        _each_above(f"{where}.C", head.C, 0)
        _each_above(f"{where}.alpha", head.alpha, 0)
        _each_above(f"{where}.temperature", head.temperature, 0)
        _each_above(f"{where}.k", head.k, 0)
        if head.shrinkage:
            _within(f"{where}.shrinkage", head.shrinkage, 0, 1 + 1e-9)
    _one_of("loss.name", config.loss.name, ("auto", *losses.LOSSES))
    _within("loss.label_smoothing", config.loss.label_smoothing, 0, 1)
    _check_loss(config)
    _check_tile(config)
    if isinstance(config.loss.class_weights, str):
        _one_of("loss.class_weights", config.loss.class_weights, CLASS_WEIGHTS)
    else:
        for name, weight in config.loss.class_weights.items():
            _at_least(f"loss.class_weights of {name!r}", weight, 0)
    _check_consistency(config)
    _one_of("optimizer.name", optimizer.name, optim.OPTIMIZERS)
    _one_of("optimizer.schedule", optimizer.schedule, optim.SCHEDULES)
    _within("optimizer.learning_rate", optimizer.learning_rate, 0, np.inf)
    _within("optimizer.weight_decay", optimizer.weight_decay, 0, np.inf)
    _within("optimizer.momentum", (optimizer.momentum,), 0, 1)
    _within("optimizer.warmup_fraction", (optimizer.warmup_fraction,), 0, 1)
    _at_least("optimizer.clip_norm", optimizer.clip_norm, 0)
    _at_least("optimizer.reference_batch", optimizer.reference_batch, 0)
    _at_least("train.batch_size", train.batch_size, 1)
    _at_least("train.steps", train.steps, 0)
    _at_least("train.evaluations", train.evaluations, 1)
    _at_least("train.patience", train.patience, 0)
    _at_least("train.devices", train.devices, 0)
    _at_least("train.epochs", train.epochs, 0)
    if not train.seeds or any(not 0 <= seed < 2**32 for seed in train.seeds):
        raise ValueError(
            f"train.seeds is {train.seeds}; expected one or more whole numbers from 0"
            " to 4294967295"
        )
    _one_of("train.split", train.split, SPLITS)
    _one_of("train.precision", train.precision, PRECISIONS)
    _one_of("selection.metric", config.selection.metric, ("auto", *METRICS))
    _one_of("selection.rule", config.selection.rule, RULES)
    _check_folds(config)
    _check_sampling(config)
    _check_residency(config)
    _check_snapshots(config)
    _at_least("checkpoint.keep", config.checkpoint.keep, 1)
    _at_least("checkpoint.every_seconds", config.checkpoint.every_seconds, 0)


def check_width(where: str, head: HeadConfig, width: int) -> None:
    """Refuses embeddings that are not wide enough for a head, or not divisible by it.

    Raises:
      ValueError: naming the setting, which begins with `where`.
    """
    used = part(head, np.zeros(width)).size
    if not used:
        raise ValueError(
            f"{where}.columns is {head.columns}, which is no column of "
            f"embeddings {width} wide; expected shares further apart"
        )
    parts = {"pool_heads": head.pool_heads} if head.pool in heads.MULTI_HEAD else {}
    if head.pool == "multi_query":
        parts = {"pool_queries": head.pool_queries}
    for name, count in parts.items():
        if used % count:
            raise ValueError(
                f"{where}.{name} is {count}, and the {used} columns don't divide by "
                f"it; expected a number that divides {used}, as each has a part"
            )


def output(config: Config, task: str) -> Output:
    """Returns how logits become probabilities, `softmax` or `sigmoid`.

    Raises:
      ValueError: a softmax loss for several labels a row, or what is for classes that
        exclude each other with a sigmoid loss.
    """
    name = _loss_name(config, task)
    kind: Output = "sigmoid" if name in losses.SIGMOID else "softmax"
    if task == "multilabel" and kind == "softmax":
        raise ValueError(
            f"loss.name is {name!r}, which knows one label a row, and the data has"
            " several; use a sigmoid loss, or 'auto'"
        )
    if kind == "sigmoid" and any(config.loss.logit_adjustment):
        raise ValueError(
            f"loss.logit_adjustment is {config.loss.logit_adjustment}, which is for "
            f"classes that exclude each other, and loss.name is {name!r}; set it to 0"
        )
    if kind == "sigmoid" and config.loss.tile:
        raise ValueError(
            f"loss.tile is {config.loss.tile}, which is for classes that exclude each "
            f"other, and the loss is {name!r}; set it to 0"
        )
    several = [
        f"heads.{number}.{setting}"
        for number, head in enumerate(config.heads)
        for setting, is_set in (
            ("graph", head.graph),
            ("prune", head.prune),
            ("co_teaching", bool(head.co_teaching)),
        )
        if is_set
    ]
    if kind == "sigmoid" and several:
        raise ValueError(
            f"{several[0]} is set, which is for classes that exclude each other, and "
            f"the loss is {name!r}; leave it out, or use a softmax loss"
        )
    method = config.consistency.method
    if kind == "sigmoid" and method not in ("none", *SIGMOID_CONSISTENCY):
        raise ValueError(
            f"consistency.method is {method!r}, which is for classes that exclude each "
            f"other, and the loss is {name!r}; expected one of "
            f"{', '.join(SIGMOID_CONSISTENCY)}, or a softmax loss"
        )
    if task == "multilabel" and config.train.sampling != "uniform":
        raise ValueError(
            f"train.sampling is {config.train.sampling!r}, which is for one label a "
            "row, and the data has several; set it to 'uniform'"
        )
    return kind


def grid(config: Config, head: HeadConfig, batch_size: int) -> list[dict[str, float]]:
    """Returns the hyperparameters of every candidate of one head, all combinations.

    Args:
      config: its optimiser, loss and seeds are used.
      head: one of its heads.
      batch_size: rows a step, by which learning rates are scaled where asked for.
    """
    if head.name in SOLVED:
        own = {name: sorted(getattr(head, name)) for name in SOLVED[head.name]}
        values = [one for one in own.values() if one]
        names = [name for name, one in own.items() if one]
        return [
            dict(zip(names, one, strict=True)) for one in itertools.product(*values)
        ]
    reference = config.optimizer.reference_batch
    rate_scale = batch_size / reference if reference else 1.0
    values = (
        [rate * rate_scale for rate in config.optimizer.learning_rate],
        config.optimizer.weight_decay,
        config.loss.label_smoothing,
        config.loss.logit_adjustment,
        head.dropout,
        *((config.consistency.weight,) if _consistent(config, head) else ()),
        *((head.co_teaching,) if head.co_teaching else ()),
        config.train.seeds,
    )
    names = (
        *_SWEPT,
        *((_TERM,) if _consistent(config, head) else ()),
        *((_FORGET,) if head.co_teaching else ()),
        "seed",
    )
    return [dict(zip(names, one, strict=True)) for one in itertools.product(*values)]


def count_steps(config: Config, rows: int) -> int:
    """Returns how many steps of gradient descent a head takes on so many rows."""
    train = config.train
    if train.steps:
        return train.steps
    size = min(train.batch_size, rows)
    if train.epochs:
        return math.ceil(train.epochs * rows / size)
    return max(math.ceil(_PASSES * rows / size), _LEAST_STEPS)


def swept(candidates: list[dict[str, float]]) -> dict[str, np.ndarray]:
    """Returns the hyperparameters as arrays `float32 [candidates]`, seeds left out.

    One that is 0 in every candidate is left out: the program then lacks it altogether.
    """
    columns = {
        name: np.array([one[name] for one in candidates], np.float32)
        for name in candidates[0]
        if name != "seed"
    }
    return {
        name: column
        for name, column in columns.items()
        if name in ("learning_rate", _TERM) or column.any()
    }


def make_head(
    head: HeadConfig,
    *,
    classes: int,
    statistics: PyTree,
    dropout: float | Array = 0.0,
    output: Output = "softmax",
) -> Head:
    """Builds a head from its settings.

    Args:
      head: its settings.
      classes: the number of logits.
      statistics: `(mean, std)` of the training rows for `standardize`, else `()`.
      dropout: the rate, which may be traced.
      output: what turns logits into probabilities, which members are pooled in.
    """
    made = bare_head(head, classes=classes, dropout=dropout, output=output)
    return _on_features(made, head, statistics)


def bare_head(
    head: HeadConfig,
    *,
    classes: int,
    dropout: float | Array = 0.0,
    output: Output = "softmax",
) -> Head:
    """Builds the part of a head that has parameters, on what `features` returns."""
    made = _member(head, classes=classes, dropout=dropout)
    if head.members == 1 or head.distill or head.ensemble == "soup":
        return made
    if head.ensemble != "batch_ensemble":
        return ensemble(made, head.members, output=output)
    return pooled(
        batch_ensemble(
            classes,
            head.members,
            width=head.width,
            depth=head.depth,
            activation=head.activation,
            dropout=dropout,
            zero_init=head.zero_init,
        ),
        output=output,
    )


def _member(head: HeadConfig, *, classes: int, dropout: float | Array = 0.0) -> Head:
    """Builds one of the members, if there are several."""
    made = _alone(head, classes=classes, dropout=dropout)
    return twins(made) if head.co_teaching else made


def _alone(head: HeadConfig, *, classes: int, dropout: float | Array = 0.0) -> Head:
    """Builds one of the two that teach each other, if they do."""
    made = _head_of_vectors(head, classes=classes, dropout=dropout)
    if head.pool in heads.ATTENTIONS:
        return heads.attention_pool(
            made,
            kind=head.pool,
            queries=head.pool_queries,
            heads=head.pool_heads,
            width=head.pool_width,
        )
    if head.pool == "gem":
        return heads.gem(made)
    return heads.mix_layers(made) if head.pool == "mix_layers" else made


def _head_of_vectors(head: HeadConfig, *, classes: int, dropout: float | Array) -> Head:
    """Builds a head on one vector a row."""
    if head.name == "mlp":
        return heads.mlp(
            classes,
            width=head.width,
            depth=head.depth,
            activation=head.activation,
            layer_norm=head.layer_norm,
            dropout=dropout,
            zero_init=head.zero_init,
        )
    if head.name == "cosine":
        return heads.cosine(
            classes,
            scale=head.scale,
            learn_scale=head.learn_scale,
            dropout=dropout,
        )
    if head.name == "linear":
        return heads.linear(classes, zero_init=head.zero_init, dropout=dropout)
    if head.name == "knn":
        return heads.neighbours(classes, max_k=max(head.k))
    if head.name == "nearest_mean":
        return solvers.PROTOTYPE_HEADS[head.metric](classes)
    if head.name in SOLVED:
        return heads.linear(classes)
    raise ValueError(
        f"heads.name is {head.name!r}, which has no settings here; expected one of "
        f"{', '.join((*heads.HEADS, *SOLVED))} (train a head of your own with "
        "flaxhead.train)"
    )


def structure(head: HeadConfig) -> HeadConfig:
    """A head without the values that are arguments of its programs."""
    return dataclasses.replace(
        head,
        C=(),
        alpha=(),
        temperature=(),
        dropout=(),
        shrinkage=(0.0,) if head.shrinkage else (),
        co_teaching=(0.0,) if head.co_teaching else (),
    )


def features(head: HeadConfig, statistics: PyTree) -> Callable[[Any], Array]:
    """Returns what a head does to embeddings before its parameters see them."""

    def apply(
        params: Any, x: Any, *, key: Array | None = None, train: bool = False
    ) -> Array:
        del params, key, train
        return x

    nothing = Head(lambda key, x: (), apply)
    wrapped = _on_features(nothing, head, statistics)
    return lambda x: wrapped.apply((), x)


def _on_features(made: Head, head: HeadConfig, statistics: PyTree) -> Head:
    if head.normalization == "standardize":
        made = heads.standardize(made, *(part(head, one) for one in statistics))
    elif head.normalization == "l2":
        made = heads.l2_normalize(made)
    if head.columns != WHOLE:
        made = heads.preprocess(
            made, lambda x: heads.map_values(lambda values: part(head, values), x)
        )
    how = _fixed_pool(head)
    return made if how == "none" else heads.pool(made, how)


def _fixed_pool(head: HeadConfig) -> str:
    """The pooling that comes before everything else, as it has no parameters."""
    return "none" if head.pool in LEARNED_POOLINGS else head.pool


def part(head: HeadConfig, values: Any) -> Any:
    """The columns that a head uses."""
    first, last = (round(share * values.shape[-1]) for share in head.columns)
    return values[..., first:last]


def make_fit(
    config: Config,
    head: HeadConfig,
    *,
    task: str,
    classes: int,
    rows: int,
    class_weights: np.ndarray | None,
    axis: str | None,
    class_counts: np.ndarray | None = None,
) -> Fit:
    """Builds the whole fit of a head on what `features` returns.

    Args:
      config: all settings.
      head: one of its heads.
      task: `multiclass` or `multilabel`.
      classes: the number of logits.
      rows: how many rows there are, from which steps follow.
      class_weights: `[classes]`, or None.
      axis: the device axis over which rows are shared, for a solved head.
      class_counts: `[classes]`, rows of each, for the losses that go by them.
    """
    if not sees_views(config, head):  # Nor do those that it is made of.
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, views=False)
        )

    def run_of(head: HeadConfig) -> Fit:
        fit = _run(
            config,
            head,
            task=task,
            classes=classes,
            rows=rows,
            class_weights=class_weights,
            axis=axis,
            class_counts=class_counts,
        )
        if head.graph or head.name == "semi_supervised":
            fit = with_graph(fit, bare_head(head, classes=classes), classes=classes)
        return fit

    several = dataclasses.replace(head, distill=False)
    single = dataclasses.replace(several, members=1, ensemble="seeds")
    apart = head.ensemble in APART
    fit = run_of(single if apart else several)
    if apart and head.members > 1:
        fit = APART[head.ensemble](fit, head.members)
    if head.distill:
        kind = output(config, task)
        teacher = bare_head(several, classes=classes, output=kind)
        single_fit = run_of(single)
        fit = distill(fit, teacher, single_fit, classes=classes, output=kind)
    if head.prune:
        # Outermost: what is suspect is so for all that learns from it.
        fit = prune(fit, bare_head(head, classes=classes))
    return fit


def make_passes(
    head: HeadConfig,
    *,
    output: Output,
    classes: int,
    class_weights: np.ndarray | None,
    axis: str | None,
) -> solvers.Passes | None:
    """Builds a solver over rows that are read part by part; None: the head has none.

    The passes of `logistic` are those of its path.

    Args:
      head: its settings.
      output: `softmax` or `sigmoid`.
      classes: the number of logits.
      class_weights: `[classes]`, or None.
      axis: the device axis over which rows are shared.
    """
    if not one_solution(head):
        return None
    if head.name == "ridge":
        return solvers.ridge_passes(
            classes, output=output, class_weights=class_weights, axis=axis
        )
    if head.name == "lda":
        return solvers.discriminant_passes(classes, axis=axis)
    if head.name == "nearest_mean":
        return solvers.prototype_passes(classes, metric=_metric(head), axis=axis)
    return None


def _metric(head: HeadConfig) -> Any:
    return head.metric


def _run(
    config: Config,
    head: HeadConfig,
    *,
    task: str,
    classes: int,
    rows: int,
    class_weights: np.ndarray | None,
    axis: str | None,
    class_counts: np.ndarray | None,
) -> Fit:
    """Builds one run, of a head or of members that share it, on labelled rows."""
    kind = output(config, task)
    if head.name in ("logistic", "semi_supervised"):
        return solvers.logistic(
            classes,
            output=kind,
            tolerance=head.tolerance,
            class_weights=class_weights,
            axis=axis,
        )
    if head.name == "ridge":
        return solvers.ridge(
            classes, output=kind, class_weights=class_weights, axis=axis
        )
    if head.name == "lda":
        return solvers.discriminant(classes, axis=axis)
    if head.name == "nearest_mean":
        return solvers.prototypes(classes, metric=_metric(head), axis=axis)
    if head.name == "knn":
        return solvers.neighbours(classes, axis=axis)

    size = min(config.train.batch_size, rows)
    steps = count_steps(config, rows)
    plain = dataclasses.replace(head, normalization="none", columns=WHOLE)
    if _fixed_pool(head) != "none":
        plain = dataclasses.replace(plain, pool="none")

    def make(hyperparameters: Hyperparameters) -> Learner:
        return make_learner(
            config,
            plain,
            task=task,
            classes=classes,
            steps=steps,
            class_weights=class_weights,
            hyperparameters=hyperparameters,
            statistics=(),
            axis=None,
            class_counts=class_counts,
            rows=rows,
        )

    settings = {
        "steps": steps,
        "batch_size": size,
        "unlabelled": unlabelled_rows(config, head, size),
        "balanced": balanced_classes(config, classes),
    }
    if head.ensemble == "snapshots":
        return snapshots(make, count=head.members, **settings)
    if head.ensemble == "soup":
        return soups(make, count=head.members, **settings)
    # One order for all candidates, members and seeds: a step reads its rows once.
    return train(make, **settings, order=0)


def make_loss(
    config: Config,
    *,
    task: str,
    class_weights: Array | np.ndarray | None = None,
    label_smoothing: float | Array = 0.0,
    logit_adjustment: float | Array = 0.0,
    class_counts: np.ndarray | None = None,
) -> Loss:
    """Builds the loss; class weights are outermost, so smoothing never sees them."""
    loss = config.loss
    numbers = {
        "gamma": loss.focal_gamma,
        "q": loss.generalized_q,
        "alpha": loss.symmetric_alpha,
        "beta": loss.symmetric_beta,
        "counts": class_counts,
        "max_margin": loss.ldam_margin,
        "scale": loss.ldam_scale,
        "gamma_positive": loss.asymmetric_positive,
        "gamma_negative": loss.asymmetric_negative,
        "clip": loss.asymmetric_clip,
    }
    factory = losses.LOSSES[_loss_name(config, task)]
    made = factory(
        **{name: numbers[name] for name in inspect.signature(factory).parameters}
    )
    if not (isinstance(logit_adjustment, int | float) and logit_adjustment == 0):
        assert class_counts is not None
        made = losses.logit_adjusted(made, class_counts, logit_adjustment)
    independent = output(config, task) == "sigmoid"
    made = losses.label_smoothing(made, label_smoothing, multilabel=independent)
    if class_weights is not None:
        several = task == "multilabel"
        made = losses.class_weighted(made, class_weights, multilabel=several)
    return made


def uses_counts(config: Config, task: str) -> bool:
    """Whether a loss goes by how many rows each class has."""
    factory = losses.LOSSES[_loss_name(config, task)]
    by_name = "counts" in inspect.signature(factory).parameters
    return by_name or any(config.loss.logit_adjustment)


def make_learner(
    config: Config,
    head: HeadConfig,
    *,
    task: str,
    classes: int,
    steps: int,
    class_weights: np.ndarray | None,
    hyperparameters: Hyperparameters,
    statistics: PyTree,
    axis: str | None,
    class_counts: np.ndarray | None = None,
    rows: int = 0,
) -> Learner:
    """Builds the learner of one candidate; called inside the traced program."""
    members, kind = head.members, output(config, task)
    if head.ensemble != "batch_ensemble":
        head = dataclasses.replace(head, members=1)  # the others begin as one head

    def made(head: HeadConfig) -> Head:
        return make_head(
            head,
            classes=classes,
            statistics=statistics,
            dropout=hyperparameters.get("dropout", 0.0),
            output=kind,
        )

    made_head = made(head)
    smoothing = hyperparameters.get("label_smoothing", 0.0)
    loss = make_loss(
        config,
        task=task,
        class_weights=class_weights,
        label_smoothing=smoothing,
        logit_adjustment=hyperparameters.get("logit_adjustment", 0.0),
        class_counts=class_counts,
    )
    tx = optim.optimizer(
        config.optimizer.name,
        learning_rate=hyperparameters["learning_rate"],
        steps=steps,
        weight_decay=hyperparameters.get("weight_decay", 0.0),
        momentum=config.optimizer.momentum,
        nesterov=config.optimizer.nesterov,
        schedule=config.optimizer.schedule,
        cycles=members if head.ensemble == "snapshots" else 1,
        warmup_fraction=config.optimizer.warmup_fraction,
        clip_norm=config.optimizer.clip_norm,
    )
    objective = supervised(made_head, loss)
    if config.loss.tile:
        tiled = partial(
            tiled_cross_entropy,
            label_smoothing=smoothing,
            class_weights=class_weights,
            tile=config.loss.tile,
        )
        objective = tiled_supervised(
            tiled, features=features(head, statistics), scale=head.scale
        )
    if head.co_teaching:
        objective = co_teaching(
            made(dataclasses.replace(head, co_teaching=())),
            loss,
            forget_rate=hyperparameters.get(_FORGET, 0.0),
            ramp=_RAMP * steps,
            axis=axis,
        )
    several = sees_views(config, head)
    if several:
        objective = with_view(objective, cached("any"))
    if _consistent(config, head):
        asked = config.consistency
        weak, strong = (
            chain(noise(scale, axis=axis), feature_dropout(rate))
            for scale, rate in zip(asked.noise, asked.feature_dropout, strict=True)
        )
        if several:
            weak, strong = cached("weak", then=weak), cached("strong", then=strong)
        term = CONSISTENCY[asked.method](
            made_head,
            classes=classes,
            views=(weak, strong),
            rows=rows,
            axis=axis,
            **({"output": kind} if kind == "sigmoid" else {}),
        )
        objective = objective + hyperparameters[_TERM] * term
    if several:  # Its parameters are made for the vectors that it will predict on.
        made_head = heads.preprocess(made_head, lambda x: x[:, 0])
    learn = learner(made_head, objective, tx, axis=axis)
    return learn._replace(step=_in_precision(learn.step, config.train.precision))


def whole(config: Config) -> str:
    """Returns the setting by which every device needs all training rows, or ""."""
    if config.consistency.method != "none":
        return "consistency.method"
    if config.train.sampling != "uniform":
        return f"train.sampling {config.train.sampling!r}"
    return not_streamed(config.data)


def in_memory_for(config: Config) -> str:
    """Returns the setting by which a search needs all rows in memory, or ""."""
    for number, head in enumerate(config.heads):
        if not (one_solution(head) and head.name in STREAMED):
            return f"heads.{number} {head.name!r}, not solved in passes over the rows,"
    selection = config.selection
    settings = {
        "selection.fold_by 'leave_one_out'": selection.fold_by == "leave_one_out",
        "selection.nested": selection.nested > 0,
        "curve.shots": bool(config.curve.shots),
        not_streamed(config.data): bool(not_streamed(config.data)),
    }
    return next((name for name, is_set in settings.items() if is_set), "")


def sees_views(config: Config, head: HeadConfig) -> bool:
    """Whether a head learns from all views of a row, and not from view 0 alone."""
    alone = head.name in SOLVED or head.graph or head.distill or head.prune
    return config.data.views and not alone


def untouched(head: HeadConfig) -> bool:
    """Whether a head's parameters see the embeddings as they are."""
    return (
        head.normalization == "none"
        and _fixed_pool(head) == "none"
        and head.columns == WHOLE
    )


def one_solution(head: HeadConfig) -> bool:
    """Whether a head is solved once, with no other fits around it."""
    return head.name in SHARED and head.members == 1 and not head.prune


def searched(config: Config) -> bool:
    """Whether whole fits are compared, and not the steps of gradient descent."""
    whole = any(
        head.name in SOLVED or head.members > 1 or head.graph or head.prune
        for head in config.heads
    )
    return whole or by_folds(config) or bool(config.curve.shots)


def keeps_unlabelled(config: Config) -> bool:
    """Whether some head learns from rows without a label."""
    return any(
        head.name == "semi_supervised"
        or head.graph
        or head.distill
        or _consistent(config, head)
        for head in config.heads
    )


def unlabelled_rows(config: Config, head: HeadConfig, batch_size: int) -> int:
    """Returns how many rows without a label a step of gradient descent sees."""
    return config.consistency.ratio * batch_size if _consistent(config, head) else 0


def balanced_classes(config: Config, classes: int) -> int:
    """Returns how many classes a step sees as many rows of; 0 if it doesn't."""
    return classes if config.train.sampling == "class_balanced" else 0


def _consistent(config: Config, head: HeadConfig) -> bool:
    return config.consistency.method != "none" and head.name not in SOLVED


def by_folds(config: Config) -> bool:
    """Whether folds choose, and not the validation rows."""
    return bool(config.selection.folds) or config.selection.fold_by == "leave_one_out"


def in_full() -> Any:
    """Returns the context in which the programs of a run are traced.

    What is solved, counted or evaluated has products of full float32 on all devices;
    only the steps of training are in the precision that is asked for.
    """
    return jax.default_matmul_precision("highest")


def _in_precision(step: Callable[..., Any], name: str) -> Callable[..., Any]:
    def run(state: State, batch: Batch) -> tuple[State, Info]:
        # By its name, "default" too: without one, vmap would ask the context around.
        with jax.default_matmul_precision(name):
            return step(state, batch)

    return run


def _loss_name(config: Config, task: str) -> str:
    if config.loss.name != "auto":
        return config.loss.name
    return (
        "sigmoid_binary_cross_entropy"
        if task == "multilabel"
        else "softmax_cross_entropy"
    )


def _one_of(name: str, value: str, allowed: Any) -> None:
    if value not in allowed:
        raise ValueError(
            f"{name} is {value!r}; expected one of {', '.join(map(str, allowed))}"
        )


def _check_pool(where: str, head: HeadConfig) -> None:
    _one_of(f"{where}.pool", head.pool, ("none", *heads.POOLINGS, *LEARNED_POOLINGS))
    if head.pool in LEARNED_POOLINGS and head.name in SOLVED:
        raise ValueError(
            f"{where}.pool is {head.pool!r}, which is trained with its head, and "
            f"{head.name!r} is solved; expected one of {', '.join(heads.POOLINGS)}, or "
            f"as the head one of {', '.join(heads.HEADS)}"
        )
    if head.pool in LEARNED_POOLINGS and head.graph:
        raise ValueError(
            f"{where}.graph is True, and joins rows by one vector each, which "
            f"{where}.pool {head.pool!r} is yet to learn; expected one of "
            f"{', '.join(heads.POOLINGS)}"
        )
    _at_least(f"{where}.pool_queries", head.pool_queries, 1)
    _at_least(f"{where}.pool_heads", head.pool_heads, 1)
    _at_least(f"{where}.pool_width", head.pool_width, 1)
    headless = head.pool in heads.ATTENTIONS and head.pool not in heads.MULTI_HEAD
    if head.pool_heads > 1 and headless:
        raise ValueError(
            f"{where}.pool_heads is {head.pool_heads}, but {head.pool!r} attention has "
            f"no heads; expected 1, or as the pool one of {', '.join(heads.MULTI_HEAD)}"
        )


def _check_types(value: Any, kind: Any, name: str) -> None:
    """Refuses a value of another type than its field has; a list is a tuple too."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        allowed, words = tuple(typing.get_origin(one) or one for one in arguments), kind
    elif origin is tuple:
        allowed = tuple, list
        words = f"a tuple of {arguments[0].__name__}; of one it is (value,)"
    else:
        allowed, words = _TYPES.get(kind, (kind, f"a {kind.__name__}"))
    if not isinstance(value, allowed) or (kind in (int, float) and value is True):
        raise ValueError(
            f"{name or 'config'} is {reprlib.repr(value)}, of type "
            f"{type(value).__name__}; expected {words}"
        )
    if dataclasses.is_dataclass(kind):
        for field, own in typing.get_type_hints(kind).items():
            _check_types(getattr(value, field), own, f"{name}.{field}".lstrip("."))
    elif origin is tuple:
        for number, one in enumerate(value):
            _check_types(one, arguments[0], f"{name}.{number}")


def _within(name: str, values: tuple[float, ...], low: float, high: float) -> None:
    if not values or not all(low <= value < high for value in values):
        raise ValueError(
            f"{name} is {values}; expected one or more numbers from {low}"
            + (f", below {high}" if np.isfinite(high) else ", finite")
        )


def _at_least(name: str, value: float, low: float) -> None:
    if not low <= value < np.inf:
        raise ValueError(f"{name} is {value}; expected a number of at least {low}")
    if isinstance(value, int) and value >= 2**31:
        raise ValueError(f"{name} is {value}; expected a number below {2**31}")


def _each_above(name: str, values: tuple[float, ...], low: float) -> None:
    if not values or not all(low < value < np.inf for value in values):
        raise ValueError(
            f"{name} is {values}; expected one or more finite numbers above {low}"
        )


def _check_members(where: str, head: HeadConfig) -> None:
    _at_least(f"{where}.members", head.members, 1)
    _one_of(f"{where}.ensemble", head.ensemble, ENSEMBLES)
    bagged = head.ensemble == "bagging" and head.name != "knn"
    if head.members > 1 and head.name in SOLVED and not bagged:
        raise ValueError(
            f"{where}.members is {head.members}, but {head.name!r} is solved, and each "
            f"would be the same; expected 1, or one of {', '.join(heads.HEADS)}, or "
            f"{where}.ensemble 'bagging' (not of 'knn')"
        )
    if head.ensemble != "seeds" and head.members == 1:
        raise ValueError(
            f"{where}.ensemble is {head.ensemble!r}, but there is one member; set "
            f"{where}.members above 1"
        )
    fits = head.name == "mlp" and not (head.layer_norm or head.co_teaching)
    if head.ensemble == "batch_ensemble" and (
        not fits or head.pool in LEARNED_POOLINGS
    ):
        raise ValueError(
            f"{where}.ensemble is 'batch_ensemble', which is of mlp heads without "
            "layer_norm, co_teaching and learned pooling; use 'seeds'"
        )
    if head.distill and head.ensemble == "soup":
        raise ValueError(
            f"{where}.distill is True, but a soup is one head already; set it to False"
        )
    if head.distill and head.members == 1:
        raise ValueError(
            f"{where}.distill is True, but there is one member and nothing to distill; "
            f"set {where}.members above 1"
        )
    if head.graph and head.name in SOLVED:
        raise ValueError(
            f"{where}.graph is True, but {head.name!r} is solved; expected "
            f"semi_supervised, which is logistic with it, or {', '.join(heads.HEADS)}"
        )


def _check_co_teaching(where: str, head: HeadConfig) -> None:
    if not head.co_teaching:
        return
    _within(f"{where}.co_teaching", head.co_teaching, 0, 1)
    if head.name in SOLVED:
        raise ValueError(
            f"{where}.co_teaching is {head.co_teaching}, but {head.name!r} is solved "
            f"and sees no batches; use one of {', '.join(heads.HEADS)}, or "
            f"{where}.prune"
        )
    if head.name == "linear" and head.zero_init:
        raise ValueError(
            f"{where}.co_teaching is {head.co_teaching}, but two linear heads that "
            f"start at zero learn the same; set {where}.zero_init to False"
        )


def _check_sampling(config: Config) -> None:
    sampling, loss = config.train.sampling, config.loss
    _one_of("train.sampling", sampling, SAMPLINGS)
    if sampling == "uniform":
        return
    if all(head.name in SOLVED for head in config.heads):
        raise ValueError(
            f"train.sampling is {sampling!r}, but heads are solved and see all rows; "
            f"set it to 'uniform', or add {', '.join(heads.HEADS)}"
        )
    again = [
        name
        for name, is_set in (
            ("loss.logit_adjustment", any(loss.logit_adjustment)),
            ("loss.name 'balanced_softmax'", loss.name == "balanced_softmax"),
            ("loss.class_weights", loss.class_weights in CLASS_WEIGHTS[1:]),
        )
        if is_set
    ]
    if again:
        raise ValueError(
            f"train.sampling is {sampling!r} and {again[0]} is set, and either is "
            "there to make up for rare classes; leave one of them out"
        )


def _check_residency(config: Config) -> None:
    data = config.data
    _one_of("data.residency", data.residency, RESIDENCIES)
    _at_least("data.window_bytes", data.window_bytes, 1)
    if data.residency in ("auto", "replicated"):
        return
    asked = f"data.residency is {data.residency!r}"
    if searched(config):
        if data.residency == "sharded":
            raise ValueError(
                f"{asked}, which is for heads that are trained by steps and chosen by "
                "the validation rows; rows of solved heads are shared out over devices "
                "anyway, set it to 'auto'"
            )
        if reason := in_memory_for(config):
            raise ValueError(
                f"{asked}, but {reason} needs all rows in memory; leave one out"
            )
    if reason := whole(config):
        raise ValueError(
            f"{asked}, but every device needs all rows, by {reason}; leave one out"
        )
    if data.residency == "sharded" and config.train.split != "batch":
        raise ValueError(
            f"{asked} and train.split {config.train.split!r}, whose devices need all "
            "rows; set train.split to 'batch'"
        )


def _check_snapshots(config: Config) -> None:
    train = config.train
    least = train.steps or math.ceil(train.epochs) or _LEAST_STEPS
    for number, head in enumerate(config.heads):
        if head.ensemble == "snapshots" and head.members > least:
            raise ValueError(
                f"heads.{number}.members is {head.members}, but there may be no more "
                f"than {least} steps to take snapshots of; lower it, or raise "
                "train.steps"
            )


def _check_consistency(config: Config) -> None:
    asked = config.consistency
    _one_of("consistency.method", asked.method, ("none", *CONSISTENCY))
    if asked.method != "none" and all(head.name in SOLVED for head in config.heads):
        raise ValueError(
            f"consistency.method is {asked.method!r}, but heads are solved and not "
            f"trained by steps; set it to 'none', or add {', '.join(heads.HEADS)}"
        )
    _at_least("consistency.ratio", asked.ratio, 1)
    _within("consistency.weight", asked.weight, 0, np.inf)
    for name, high in (("noise", np.inf), ("feature_dropout", 1)):
        values = getattr(asked, name)
        _within(f"consistency.{name}", values, 0, high)
        if len(values) != 2:
            raise ValueError(
                f"consistency.{name} is {values}; expected two numbers, of the weak "
                "and of the strong view"
            )


def _check_loss(config: Config) -> None:
    loss = config.loss
    for name in (
        "focal_gamma",
        "generalized_q",
        "symmetric_alpha",
        "symmetric_beta",
        "ldam_margin",
        "ldam_scale",
        "asymmetric_positive",
        "asymmetric_negative",
    ):
        _at_least(f"loss.{name}", getattr(loss, name), 0)
    _within("loss.logit_adjustment", loss.logit_adjustment, 0, np.inf)
    _within("loss.asymmetric_clip", (loss.asymmetric_clip,), 0, 1)
    _within("loss.effective_number_beta", (loss.effective_number_beta,), 0, 1)
    if any(loss.logit_adjustment) and all(head.name in SOLVED for head in config.heads):
        raise ValueError(
            f"loss.logit_adjustment is {loss.logit_adjustment}, but heads are solved "
            "and not trained with this loss; use 'linear', or move the bias of a head "
            "with flaxhead.priors.with_prior"
        )


def _check_tile(config: Config) -> None:
    loss = config.loss
    _at_least("loss.tile", loss.tile, 0)
    unfit = {
        f"loss.name is {loss.name!r}": loss.name
        not in ("auto", "softmax_cross_entropy"),
        f"loss.logit_adjustment is {loss.logit_adjustment}": any(loss.logit_adjustment),
        f"consistency.method is {config.consistency.method!r}": (
            config.consistency.method != "none"
        ),
    }
    for number, head in enumerate(config.heads):
        where = f"heads.{number}"
        unfit[f"{where}.name is {head.name!r}"] = head.name not in TILED
        unfit[f"{where}.pool is {head.pool!r}"] = head.pool in LEARNED_POOLINGS
        for name in ("dropout", "graph", "distill", "prune", "co_teaching"):
            value = getattr(head, name)
            unfit[f"{where}.{name} is {value}"] = bool(np.any(value))
    for what, is_so in unfit.items():
        if loss.tile and is_so:
            raise ValueError(
                f"loss.tile is {loss.tile}, which is for {' and '.join(TILED)} heads "
                f"trained by the cross-entropy alone, and {what}; set loss.tile to 0"
            )


def _check_folds(config: Config) -> None:
    selection, curve = config.selection, config.curve
    _one_of("selection.fold_by", selection.fold_by, (*folds.FOLDS, "leave_one_out"))
    _at_least("selection.extend", selection.extend, 0)
    if selection.folds < 0 or selection.folds == 1:
        raise ValueError(
            f"selection.folds is {selection.folds}; expected 2 or more, or 0 to choose "
            "by the validation rows"
        )
    if selection.nested < 0 or selection.nested == 1:
        raise ValueError(
            f"selection.nested is {selection.nested}; expected 2 or more outer folds, "
            "or 0 for none"
        )
    if selection.fold_by == "leave_one_out":
        others = [head.name for head in config.heads if head.name != "ridge"]
        if any(head.members > 1 or head.prune for head in config.heads):
            raise ValueError(
                "selection.fold_by is 'leave_one_out', which is exact for one ridge "
                "head alone, and heads have members or prune; use 'stratified'"
            )
        if others:
            raise ValueError(
                "selection.fold_by is 'leave_one_out', which is exact for ridge alone, "
                f"and heads has {', '.join(others)} too; use 'stratified'"
            )
        if selection.nested or curve.shots:
            raise ValueError(
                "selection.fold_by is 'leave_one_out', which leaves out no more than a "
                "row; use 'stratified' for selection.nested and curve.shots"
            )
    _at_least("curve.repeats", curve.repeats, 1)
    if any(shots < 1 for shots in curve.shots):
        raise ValueError(f"curve.shots is {curve.shots}; expected 1 or more each")


def _above(name: str, value: float, low: float) -> None:
    if not low < value < np.inf:
        raise ValueError(f"{name} is {value}; expected a number above {low}")
