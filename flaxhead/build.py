"""Settings -> heads, losses and learners: names become functions here only."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import numpy as np

from flaxhead import heads, losses, optim
from flaxhead.base import Array, Head, Hyperparameters, Learner, Loss, PyTree
from flaxhead.config import Config, HeadConfig
from flaxhead.metrics import METRICS, Output
from flaxhead.objectives import supervised
from flaxhead.step import learner

NORMALIZATIONS = ("none", "l2", "standardize")
RULES = ("best", "one_standard_error")
SPLITS = ("batch", "candidates")
PRECISIONS = ("default", "high", "highest")
_SWEPT = ("learning_rate", "weight_decay", "label_smoothing", "dropout")


def check(config: Config) -> None:
    """Refuses settings that no run could use, before any work.

    Raises:
      ValueError: of the first such setting, and what is expected.
    """
    train, optimizer = config.train, config.optimizer
    if not config.heads:
        raise ValueError("heads is empty; name at least one head")
    for number, head in enumerate(config.heads):
        where = f"heads.{number}"
        _one_of(f"{where}.name", head.name, heads.HEADS)
        _one_of(f"{where}.normalization", head.normalization, NORMALIZATIONS)
        _one_of(f"{where}.pool", head.pool, ("none", *heads.POOLINGS))
        _one_of(f"{where}.activation", head.activation, heads.ACTIVATIONS)
        _within(f"{where}.dropout", head.dropout, 0, 1)
        _at_least(f"{where}.width", head.width, 1)
        _at_least(f"{where}.depth", head.depth, 1)
        _above(f"{where}.scale", head.scale, 0)
    _one_of("loss.name", config.loss.name, ("auto", *losses.LOSSES))
    _within("loss.label_smoothing", config.loss.label_smoothing, 0, 1)
    _at_least("loss.focal_gamma", config.loss.focal_gamma, 0)
    if isinstance(config.loss.class_weights, str):
        _one_of("loss.class_weights", config.loss.class_weights, ("none", "balanced"))
    else:
        for name, weight in config.loss.class_weights.items():
            _at_least(f"loss.class_weights of {name!r}", weight, 0)
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
    if not train.steps:
        _above("train.epochs", train.epochs, 0)
    if not train.seeds or any(not 0 <= seed < 2**32 for seed in train.seeds):
        raise ValueError(
            f"train.seeds is {train.seeds}; expected one or more whole numbers from 0"
            " to 4294967295"
        )
    _one_of("train.split", train.split, SPLITS)
    _one_of("train.precision", train.precision, PRECISIONS)
    _one_of("selection.metric", config.selection.metric, ("auto", *METRICS))
    _one_of("selection.rule", config.selection.rule, RULES)
    _at_least("checkpoint.keep", config.checkpoint.keep, 1)
    _at_least("checkpoint.every_seconds", config.checkpoint.every_seconds, 0)


def output(config: Config, task: str) -> Output:
    """Returns how logits become probabilities, `softmax` or `sigmoid`.

    Raises:
      ValueError: a softmax loss for several labels a row.
    """
    name = _loss_name(config, task)
    kind: Output = "softmax" if name.startswith("softmax") else "sigmoid"
    if task == "multilabel" and kind == "softmax":
        raise ValueError(
            f"loss.name is {name!r}, which knows one label a row, and the data has"
            " several; use a sigmoid loss, or 'auto'"
        )
    return kind


def grid(config: Config, head: HeadConfig, batch_size: int) -> list[dict[str, float]]:
    """Returns the hyperparameters of every candidate of one head, all combinations.

    Args:
      config: its optimiser, loss and seeds are used.
      head: one of its heads.
      batch_size: rows a step, by which learning rates are scaled where asked for.
    """
    reference = config.optimizer.reference_batch
    rate_scale = batch_size / reference if reference else 1.0
    values = (
        [rate * rate_scale for rate in config.optimizer.learning_rate],
        config.optimizer.weight_decay,
        config.loss.label_smoothing,
        head.dropout,
        config.train.seeds,
    )
    names = (*_SWEPT, "seed")
    return [dict(zip(names, one, strict=True)) for one in itertools.product(*values)]


def swept(candidates: list[dict[str, float]]) -> dict[str, np.ndarray]:
    """Returns the hyperparameters as arrays `float32 [candidates]`, seeds left out.

    One that is 0 in every candidate is left out: the program then lacks it altogether.
    """
    columns = {
        name: np.array([one[name] for one in candidates], np.float32) for name in _SWEPT
    }
    return {
        name: column
        for name, column in columns.items()
        if name == "learning_rate" or column.any()
    }


def make_head(
    head: HeadConfig, *, classes: int, statistics: PyTree, dropout: float | Array = 0.0
) -> Head:
    """Builds a head from its settings.

    Args:
      head: its settings.
      classes: the number of logits.
      statistics: `(mean, std)` of the training rows for `standardize`, else `()`.
      dropout: the rate, which may be traced.
    """
    if head.name == "mlp":
        made = heads.mlp(
            classes,
            width=head.width,
            depth=head.depth,
            activation=head.activation,
            layer_norm=head.layer_norm,
            dropout=dropout,
            zero_init=head.zero_init,
        )
    elif head.name == "cosine":
        made = heads.cosine(
            classes,
            scale=head.scale,
            learn_scale=head.learn_scale,
            dropout=dropout,
        )
    elif head.name == "linear":
        made = heads.linear(classes, zero_init=head.zero_init, dropout=dropout)
    else:
        raise ValueError(
            f"heads.name is {head.name!r}, which has no settings here; expected one of "
            "linear, mlp, cosine (train a head of your own with flaxhead.fit)"
        )
    if head.normalization == "standardize":
        made = heads.standardize(made, *statistics)
    elif head.normalization == "l2":
        made = heads.l2_normalize(made)
    return made if head.pool == "none" else heads.pool(made, head.pool)


def make_loss(
    config: Config,
    *,
    task: str,
    class_weights: Array | np.ndarray | None = None,
    label_smoothing: float | Array = 0.0,
) -> Loss:
    """Builds the loss; class weights are outermost, so smoothing never sees them."""
    made = losses.LOSSES[_loss_name(config, task)](config.loss.focal_gamma)
    independent = output(config, task) == "sigmoid"
    made = losses.label_smoothing(made, label_smoothing, multilabel=independent)
    if class_weights is not None:
        several = task == "multilabel"
        made = losses.class_weighted(made, class_weights, multilabel=several)
    return made


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
) -> Learner:
    """Builds the learner of one candidate; called inside the traced program."""
    made_head = make_head(
        head,
        classes=classes,
        statistics=statistics,
        dropout=hyperparameters.get("dropout", 0.0),
    )
    loss = make_loss(
        config,
        task=task,
        class_weights=class_weights,
        label_smoothing=hyperparameters.get("label_smoothing", 0.0),
    )
    tx = optim.optimizer(
        config.optimizer.name,
        learning_rate=hyperparameters["learning_rate"],
        steps=steps,
        weight_decay=hyperparameters.get("weight_decay", 0.0),
        momentum=config.optimizer.momentum,
        nesterov=config.optimizer.nesterov,
        schedule=config.optimizer.schedule,
        warmup_fraction=config.optimizer.warmup_fraction,
        clip_norm=config.optimizer.clip_norm,
    )
    return learner(made_head, supervised(made_head, loss), tx, axis=axis)


def precision(config: Config) -> Any:
    """Returns the context in which the programs of a run are traced."""
    name = None if config.train.precision == "default" else config.train.precision
    return jax.default_matmul_precision(name)


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


def _above(name: str, value: float, low: float) -> None:
    if not low < value < np.inf:
        raise ValueError(f"{name} is {value}; expected a number above {low}")
