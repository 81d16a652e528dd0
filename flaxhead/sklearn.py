"""Heads as a scikit-learn classifier: for pipelines, grid searches and calibration."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse import issparse
from scipy.special import expit, log_expit, log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import check_cv
from sklearn.utils import check_random_state, column_or_1d, compute_class_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    validate_data,
)

from flaxhead import build, bundle
from flaxhead.base import Array, Batch, Params
from flaxhead.config import (
    LADDER,
    Config,
    DataConfig,
    HeadConfig,
    OptimizerConfig,
    SelectionConfig,
    TrainConfig,
)
from flaxhead.data import padded
from flaxhead.folds import row_keys, stratified
from flaxhead.heads.normalize import unit
from flaxhead.moments import Moments, add, class_moments
from flaxhead.paths import Location
from flaxhead.search import Question, fit_default, programs, search
from flaxhead.selection import Candidate
from flaxhead.solvers import discriminant_params, prototype_params, ridge_params

_LINEAR = ("ridge", "logistic", "lda", "linear")
_NAMES = (*build.SIMPLICITY, "mlp")
_KEPT = 64  # Compiled programs of a kind, the least recently used of which is let go.
_LEAST_ROWS = 256
_ROWS_AT_ONCE = 4096


def _adds(self: HeadClassifier) -> bool:
    """Whether the head follows exactly from moments, to which rows can be added."""
    head = HeadConfig(self.head) if isinstance(self.head, str) else self.head
    given = isinstance(self.head, HeadConfig)
    shrinkages = len(head.shrinkage) if given else int(self.shrinkage is not None)
    settings = head if given else self
    exact = {
        "nearest_mean": settings.metric != "mahalanobis",
        "lda": shrinkages == 1,
        "ridge": not given or len(head.alpha) == 1,
    }.get(head.name, False)
    balanced = isinstance(self.class_weight, str)
    whole = not given or build.one_solution(head)
    if not (exact and whole) or settings.normalization == "standardize" or balanced:
        raise AttributeError(
            "partial_fit is there where it is exact: for the heads nearest_mean (not "
            "mahalanobis), lda of a given shrinkage and ridge of one alpha, without "
            "normalization='standardize' and class_weight='balanced'"
        )
    return True


class HeadClassifier(ClassifierMixin, BaseEstimator):
    """A classification head on embeddings, as scikit-learn's classifiers are used.

    `head="auto"` tries the ladder of nearest mean, ridge, logistic regression and,
    where there is a batch of rows or more, MLP, each with its grid of settings, by
    cross-validation, and fits the simplest that is within one standard error of the
    best. A named head is fitted once, with the settings given here.

    Equal rows of one label are one row of their summed weight. So weight 2 is the row
    twice, weight 0 is no row, and the order of rows changes nothing.

    Args:
      head: `auto`; `nearest_mean`, `lda`, `ridge`, `logistic` or `knn`, which are
        solved; `linear`, `cosine` or `mlp`, which are trained; or a `HeadConfig`, which
        says all settings of a head itself. If it lists several values of one, they are
        compared as in `auto`.
      C: inverse L2 penalty, as `LogisticRegression`'s (`logistic`).
      alpha: L2 penalty, as `RidgeClassifier`'s (`ridge`).
      shrinkage: of the covariance, 0 to 1; None: Ledoit and Wolf's (`lda`).
      metric: `euclidean`, `cosine` or `mahalanobis` (`nearest_mean`).
      k: neighbours that vote (`knn`).
      temperature: of their votes (`knn`).
      normalization: of the embeddings: `none`, `l2` or `standardize`; `auto` has its
        own where it is `none`.
      class_weight: None, `balanced`, or a dict of labels (1 where not named). They
        multiply the weights of rows, in fits and in the scores that choose.
        `nearest_mean`, fitted once, takes classes as equally likely whatever their
        rows, so for it a dict says how likely they are beforehand.
      width: hidden units (`mlp`).
      dropout: rate (`linear`, `cosine`, `mlp`; `auto` has its own).
      learning_rate: the peak of Adam's; None: 0.001 (`mlp`) or 0.01 (`linear`,
        `cosine`).
      epochs: passes over the rows; None: 30, and 300 steps if that is more (trained
        heads).
      batch_size: rows a step (trained heads); all rows if there are fewer.
      cv: how many stratified folds to choose by; or, as scikit-learn's, a splitter or
        splits that test each row once at most. Of a number, there are fewer folds where
        half of the rows are of classes with fewer rows; where that leaves one, the
        simplest head is fitted with the middle of its grid.
      scoring: a name of `flaxhead.METRICS` to choose by; None: accuracy, or
        `average_precision` for several labels a row.
      rule: `one_standard_error`, or `best`.
      tol: how far the objective may be above its minimum, relative to it, by an
        estimate (`logistic`).
      devices: how many local devices a solver uses; 0: all of them.
      random_state: seeds the folds and the training; an integer, a `RandomState`, or
        None.

    Attributes:
      classes_: `[classes]`, the labels, sorted.
      n_features_in_: the width of the embeddings.
      feature_names_in_: names of the columns, if they came with names.
      head_: the `HeadConfig` of the fitted head, one value each.
      params_: its parameters, NumPy arrays.
      statistics_: `(mean, std)` of the rows, `[features]` each.
      candidates_: what was compared, with scores.
      coef_: `[classes, features]`, `[1, features]` of two classes; linear heads only.
      intercept_: `[classes]`, or `[1]`; linear heads only.

    >>> from sklearn.datasets import load_iris
    >>> x, y = load_iris(return_X_y=True)
    >>> HeadClassifier("ridge", alpha=0.1).fit(x, y).score(x, y) > 0.8
    True
    """

    def __init__(
        self,
        head: str | HeadConfig = "auto",
        *,
        C: float = 1.0,
        alpha: float = 1.0,
        shrinkage: float | None = None,
        metric: str = "cosine",
        k: int = 10,
        temperature: float = 0.07,
        normalization: str = "none",
        class_weight: Any = None,
        width: int = 256,
        dropout: float = 0.0,
        learning_rate: float | None = None,
        epochs: float | None = None,
        batch_size: int = 256,
        cv: int = 5,
        scoring: str | None = None,
        rule: str = "one_standard_error",
        tol: float = HeadConfig.tolerance,
        devices: int = 1,
        random_state: Any = 0,
    ):
        self.head = head
        self.C = C
        self.alpha = alpha
        self.shrinkage = shrinkage
        self.metric = metric
        self.k = k
        self.temperature = temperature
        self.normalization = normalization
        self.class_weight = class_weight
        self.width = width
        self.dropout = dropout
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.batch_size = batch_size
        self.cv = cv
        self.scoring = scoring
        self.rule = rule
        self.tol = tol
        self.devices = devices
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> HeadClassifier:
        """Chooses a head if there is a choice, and fits it to all rows.

        Args:
          X: `[rows, features]`, any array of finite numbers.
          y: `[rows]` labels of two or more classes, of any type that sorts, or `[rows,
            labels]` of 0 and 1 for several labels a row.
          sample_weight: `[rows]`, 0 or more; a row of weight 0 is absent.

        Raises:
          ValueError: for settings or data that can't be used.
        """
        X, y, weights = self._read(X, y, sample_weight, reset=True)
        fold, folds = self._given(X, y)
        there = weights > 0
        X, y, weights, fold = X[there], y[there], weights[there], fold[there]
        several = y.ndim == 2
        classes = np.arange(y.shape[1]) if several else np.unique(y)
        task = "multilabel" if several else "multiclass"
        rows, fold = self._rows(classes, X, y, weights, fold)
        count = int((fold >= 0).sum())
        question, seed = self._question(task, classes, count)
        heads = question.config.heads
        choice = sum(len(build.grid(question.config, one, 1)) for one in heads) > 1
        if choice and not folds:
            fold, folds = self._cut(rows, seed)
        compiled = programs(question, rows=len(rows.labels))
        if choice and folds > 1:
            found = search(question, rows, fold, folds=folds, programs=compiled)
        else:
            found = fit_default(question, rows, programs=compiled)

        self.classes_, self._task = classes, task
        won = found.candidates[found.selection.winner].hyperparameters
        own = {name: (one,) for name, one in won.items() if hasattr(found.head, name)}
        head = replace(found.head, **own)
        self._keep(head, found.params, found.statistics, X, prior=not choice)
        self.candidates_: list[Candidate] = found.candidates
        self._moments: Moments | None = None
        if not several and hasattr(self, "partial_fit"):
            self._moments = _moments(head, rows, len(classes))
        return self

    @available_if(_adds)
    def partial_fit(
        self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None
    ) -> HeadClassifier:
        """Adds rows to those of `fit` and of earlier calls: together as one `fit`.

        Args:
          X: `[rows, features]`.
          y: `[rows]` labels. A later part may bring new ones.
          classes: labels that this or a later part may have; None: those seen so far.
          sample_weight: `[rows]`, 0 or more.

        Raises:
          ValueError: for settings or data that can't be used, or fewer than two classes
            so far.
        """
        first = not hasattr(self, "classes_")
        X, y, weights = self._read(X, y, sample_weight, reset=first)
        if y.ndim == 2:
            raise ValueError("partial_fit expects one label a row, got a matrix y")
        there = weights > 0
        X, y, weights = X[there], y[there], weights[there]
        before = y[:0] if first else self.classes_
        known = np.unique(np.concatenate([before, y if classes is None else classes]))
        unknown = np.setdiff1d(y, known)
        if len(unknown):
            raise ValueError(f"y has labels that classes lacks: {unknown[:5].tolist()}")
        (head,) = self._question("multiclass", known, len(y))[0].config.heads
        rows, _ = self._rows(known, X, y, weights, np.zeros(len(y), int))
        moments = _moments(head, rows, len(known))
        if not first:
            if self._moments is None or build.structure(head) != build.structure(
                self.head_
            ):
                raise ValueError(
                    "partial_fit adds rows to a head of the same settings, of one label"
                    f" a row; fitted was {self.head_.name}, with others: fit it again"
                )
            moments = _added(self._moments, np.searchsorted(known, before), moments)
        params = _from_moments(head, moments)
        nothing = np.zeros(X.shape[1], np.float32)
        self.classes_, self._task, self._moments = known, "multiclass", moments
        self._keep(head, params, (nothing, nothing + 1), X, prior=True)
        self.candidates_ = []
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits `[rows, classes]`; of two classes, `[rows]`: the second's lead."""
        logits = self._logits(X)
        if self._task == "multilabel" or logits.shape[1] > 2:
            return logits
        return logits[:, 1] - logits[:, 0]

    def predict(self, X: Any) -> np.ndarray:
        """Labels `[rows]`, or 0 and 1 `[rows, labels]`."""
        logits = self._logits(X)
        if self._task == "multilabel":
            return (logits > 0).astype(int)
        return self.classes_[logits.argmax(axis=1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities `[rows, classes]`, in the order of `classes_`."""
        logits = self._logits(X)
        return expit(logits) if self._task == "multilabel" else softmax(logits, axis=1)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of the probabilities, finite where those are 0."""
        logits = self._logits(X)
        if self._task == "multilabel":
            return log_expit(logits)
        return log_softmax(logits, axis=1)

    def to_bundle(self) -> bundle.Bundle:
        """The fitted head as flaxhead's own bundle; labels become text."""
        check_is_fitted(self)
        return bundle.Bundle(
            config=self.head_,
            params=self.params_,
            statistics=self.statistics_,
            class_names=tuple(map(str, self.classes_)),
            task=self._task,
            output="sigmoid" if self._task == "multilabel" else "softmax",
            spec=self._spec,
            data=DataConfig(source="arrays"),
            metrics={},
        )

    def save(self, path: Location) -> None:
        """Writes the head's folder, for `flaxhead.load` and `flaxhead predict`."""
        bundle.save(path, self.to_bundle())

    @property
    def coef_(self) -> np.ndarray:
        """Weights of the features, where logits are linear in them."""
        return self._linear()[0]

    @property
    def intercept_(self) -> np.ndarray:
        """Logits of an embedding of zeros, where logits are linear."""
        return self._linear()[1]

    def __sklearn_tags__(self) -> Any:
        """Says which labels a head takes."""
        tags = super().__sklearn_tags__()
        name = self.head.name if isinstance(self.head, HeadConfig) else self.head
        tags.classifier_tags.multi_label = name in ("auto", *build.MULTILABEL)
        return tags

    def _read(
        self, X: Any, y: Any, sample_weight: Any, *, reset: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The data, checked."""
        X, y = validate_data(
            self, X, y, dtype=np.float32, multi_output=True, reset=reset
        )
        check_classification_targets(y)
        if type_of_target(y) == "multilabel-indicator":
            y = np.asarray(y.toarray() if issparse(y) else y, np.float32)
        else:
            y = column_or_1d(y, warn=True)
        weights = _check_sample_weight(
            sample_weight, X, dtype=np.float64, ensure_non_negative=True
        )
        if not weights.any():
            raise ValueError("sample_weight is 0 for all rows: expected one above 0")
        return X, y, weights

    def _given(self, X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, int]:
        """The fold of each row and how many there are; 0 if `cv` is a number."""
        fold = np.zeros(len(X), int)
        if isinstance(self.cv, int | np.integer):
            if self.cv < 2:
                raise ValueError(f"cv is {self.cv}: expected 2 or more folds")
            return fold, 0
        cv: Any = check_cv(self.cv, y, classifier=True)
        splits = list(cv.split(X, y))
        fold += len(splits)
        for number, (train, test) in enumerate(splits):
            held = np.ones(len(X), bool)
            held[train] = False
            if not np.array_equal(np.flatnonzero(held), np.unique(test)):
                raise ValueError(
                    f"cv: expected that split {number} trains on all rows but those it "
                    f"tests; got {len(train)} and {len(test)} of {len(X)}"
                )
            if (fold[test] < number).any():
                raise ValueError(
                    "cv: expected each row to be tested once, but split "
                    f"{number} tests rows of an earlier one"
                )
            fold[test] = number
        return fold, len(splits)

    def _cut(self, rows: Batch, seed: int) -> tuple[np.ndarray, int]:
        """Folds of our own, as many as the rows are enough for."""
        there = np.asarray(rows.weights) > 0
        labels = np.asarray(rows.labels)[there]
        if labels.ndim == 1:
            enough = int(np.median(np.bincount(labels)[labels]))
        else:
            enough = len(labels)
        folds = min(self.cv, enough)
        if folds < 2:
            return np.zeros(len(there), int), folds
        return stratified(rows.labels, folds=folds, seed=seed, where=there), folds

    def _rows(
        self,
        classes: np.ndarray,
        X: np.ndarray,
        y: np.ndarray,
        weights: np.ndarray,
        fold: np.ndarray,
    ) -> tuple[Batch, np.ndarray]:
        """The rows as fits want them, and the fold of each.

        Equal rows become one, in an order of their own, so that what is fitted depends
        on the set of rows and their weights, and not on their order.
        """
        labels = y if y.ndim == 2 else np.searchsorted(classes, y).astype(np.int32)
        each = self._class_weights(classes, labels, weights)
        if each is not None:
            weights = weights * each[labels]
        _, first, member = np.unique(
            row_keys(X, np.column_stack([labels, fold])),
            return_index=True,
            return_inverse=True,
        )
        size = _bucket(len(first))
        return Batch(
            padded(X[first], size),
            padded(labels[first], size),
            padded(np.bincount(member, weights).astype(np.float32), size),
            jnp.arange(size),
        ), np.pad(fold[first], (0, size - len(first)), constant_values=-1)

    def _class_weights(
        self, classes: np.ndarray, labels: np.ndarray, weights: np.ndarray
    ) -> np.ndarray | None:
        """What `class_weight` says of each class."""
        given = self.class_weight
        if given is None:
            return None
        if labels.ndim == 2:
            raise ValueError(
                "class_weight weighs the rows of a class, and here a row has several "
                "labels: expected None"
            )
        if isinstance(given, str) and given == "balanced":
            counts = np.bincount(labels, weights, len(classes))
            return counts.sum() / (len(classes) * counts)
        if not isinstance(given, dict):
            raise ValueError(
                f"class_weight is {given!r}: expected None, 'balanced', or a dict of "
                "labels"
            )
        each = compute_class_weight(given, classes=classes, y=classes)
        if not (np.isfinite(each) & (each > 0)).all():
            raise ValueError(f"class_weight is {given}: expected numbers above 0")
        return each

    def _heads(self, task: str, rows: int) -> tuple[HeadConfig, ...]:
        """The heads to choose from, each with the values to try."""
        shared: dict[str, Any] = {
            "metric": self.metric,
            "width": self.width,
            "tolerance": self.tol,
        }
        if self.head != "auto" or self.normalization != "none":
            shared["normalization"] = self.normalization
        if isinstance(self.head, HeadConfig):
            ladder = (self.head,)
        elif self.head == "auto":
            able = build.MULTILABEL if task == "multilabel" else _NAMES
            if rows < self.batch_size:
                able = set(able) & set(build.SOLVED)
            ladder = tuple(replace(o, **shared) for o in LADDER if o.name in able)
        else:
            one = HeadConfig(
                self.head,
                C=(self.C,),
                alpha=(self.alpha,),
                shrinkage=() if self.shrinkage is None else (self.shrinkage,),
                k=(self.k,),
                temperature=(self.temperature,),
                dropout=(self.dropout,),
                **shared,
            )
            ladder = (one,)
        name = ladder[0].name
        if name not in _NAMES:
            raise ValueError(
                f"head is {name!r}: expected auto, {', '.join(_NAMES)}, or a HeadConfig"
            )
        if task == "multilabel" and name not in build.MULTILABEL:
            raise ValueError(
                f"head {name!r} knows one label a row, and y has several: expected "
                f"auto or one of {', '.join(build.MULTILABEL)}"
            )
        return ladder

    def _question(
        self, task: str, classes: np.ndarray, rows: int
    ) -> tuple[Question, int]:
        """What is to be decided, checked, and the seed."""
        count = len(classes)
        if count < 2:
            raise ValueError(
                f"y has one class only, {classes.tolist()}, in the rows that weigh "
                "something: expected two or more classes"
            )
        several = task == "multilabel"
        metric = self.scoring or ("average_precision" if several else "accuracy")
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        heads = self._heads(task, rows)
        rate = self.learning_rate
        if rate is None:
            rate = 1e-2 if heads[0].name in ("linear", "cosine") else 1e-3
        config = Config(
            heads=heads,
            optimizer=OptimizerConfig(learning_rate=(rate,)),
            train=TrainConfig(
                batch_size=self.batch_size,
                epochs=self.epochs or TrainConfig.epochs,
                devices=self.devices,
                seeds=(seed,),
            ),
            selection=SelectionConfig(metric=metric, rule=self.rule),
        )
        build.check(config)
        output = build.output(config, task)
        return Question(config, count, task, output, metric, None), seed

    def _keep(
        self,
        head: HeadConfig,
        params: Params,
        statistics: tuple[np.ndarray, np.ndarray],
        X: np.ndarray,
        *,
        prior: bool,
    ) -> None:
        """Keeps a fitted head; `prior`: with classes as likely as they weigh."""
        if (
            prior
            and head.name == "nearest_mean"
            and isinstance(self.class_weight, dict)
        ):
            each = compute_class_weight(
                self.class_weight, classes=self.classes_, y=self.classes_
            )
            output = params["output"]
            bias = output["bias"] + np.log(each).astype(np.float32)
            params = {"output": {**output, "bias": bias}}
        self.head_, self.params_, self.statistics_ = head, params, statistics
        self._spec = bundle.feature_spec(X, config=head, backbone="")

    def _logits(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float32, reset=False)
        apply = _apply(build.structure(self.head_), len(self.classes_))
        params, statistics = jax.device_put((self.params_, self.statistics_))
        parts = []
        for start in range(0, len(X), _ROWS_AT_ONCE):
            part = X[start : start + _ROWS_AT_ONCE]
            x = padded(part, _bucket(len(part)))
            parts.append(np.asarray(apply(params, statistics, x))[: len(part)])
        # Wider, so that probabilities sum to 1 and unlikely classes keep their order.
        return np.concatenate(parts).astype(np.float64)

    def _linear(self) -> tuple[np.ndarray, np.ndarray]:
        check_is_fitted(self)
        head = self.head_
        means = head.name == "nearest_mean" and head.metric != "cosine"
        seen = head.normalization != "l2" and head.columns == build.WHOLE
        one = head.members == 1 and not head.co_teaching
        if not (seen and one and (means or head.name in _LINEAR)):
            raise AttributeError(f"head {head.name!r} is not linear in the embeddings")
        kernel, bias = (self.params_["output"][name] for name in ("kernel", "bias"))
        if head.normalization == "standardize":
            mean, std = self.statistics_
            kernel = kernel / np.where(std == 0, 1, std)[:, None]
            bias = bias - mean @ kernel
        if self._task == "multiclass" and len(bias) == 2:
            kernel, bias = kernel[:, 1:] - kernel[:, :1], bias[1:] - bias[:1]
        return kernel.T, bias


def _bucket(rows: int) -> int:
    """So many or a few more: few sizes, since each is compiled."""
    power = 1 << (rows - 1).bit_length()
    if power <= 1024:
        return max(power, _LEAST_ROWS)
    return -(-rows // (power // 8)) * (power // 8)


@functools.lru_cache(_KEPT)
def _apply(head: HeadConfig, classes: int) -> Callable[..., Array]:
    def apply(params: Params, statistics: Any, x: Array) -> Array:
        made = build.make_head(head, classes=classes, statistics=statistics)
        return made.apply(params, x)

    return jax.jit(apply)


@functools.lru_cache(_KEPT)
def _moments_of(head: HeadConfig, classes: int) -> Callable[..., Moments]:
    def run(x: Array, labels: Array, weights: Array) -> Moments:
        x = build.features(head, ())(x)
        if head.name == "nearest_mean" and head.metric == "cosine":
            x = unit(x)
        return class_moments(x, labels, weights, classes=classes)

    return jax.jit(run)


@functools.lru_cache(_KEPT)
def _params_of(head: HeadConfig) -> Callable[[Moments, Array], Params]:
    def run(moments: Moments, value: Array) -> Params:
        if head.name == "ridge":
            return ridge_params(moments, alpha=value)
        if head.name == "lda":
            return discriminant_params(moments, shrinkage=value)
        return prototype_params(moments, metric=head.metric)  # pyright: ignore

    return jax.jit(run)


_add = jax.jit(add)


def _moments(head: HeadConfig, rows: Batch, classes: int) -> Moments:
    moments = _moments_of(build.structure(head), classes)(
        rows.x, rows.labels, rows.weights
    )
    return jax.tree.map(np.asarray, moments)


def _added(old: Moments, places: np.ndarray, new: Moments) -> Moments:
    """Moments of the rows of both; class `i` of `old` is `places[i]` of `new`."""

    def spread(values: Any) -> Any:
        wider = np.zeros((len(new.counts), *values.shape[1:]), np.float32)
        wider[places] = values
        return wider

    old = old._replace(counts=spread(old.counts), means=spread(old.means))
    return jax.tree.map(np.asarray, _add(old, new))


def _from_moments(head: HeadConfig, moments: Moments) -> Params:
    value = {"ridge": head.alpha, "lda": head.shrinkage}.get(head.name, (0.0,))[0]
    params = _params_of(build.structure(head))(moments, jnp.float32(value))
    return jax.tree.map(np.asarray, params)
