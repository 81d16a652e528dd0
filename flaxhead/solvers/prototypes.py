"""Nearest class mean: by Euclidean distance, by cosine, by Mahalanobis distance.

Source: Mensink et al., 2013, "Distance-based image classification: generalizing to new
classes at near-zero cost"; concentration: Banerjee et al., 2005, "Clustering on the
unit hypersphere using von Mises-Fisher distributions".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import jax.numpy as jnp

from flaxhead.base import Array, Batch, Fit, Head, Hyperparameters, Params
from flaxhead.heads.linear import linear
from flaxhead.heads.normalize import l2_normalize, length, unit
from flaxhead.moments import Moments, class_moments, divisor
from flaxhead.solvers.discriminant import (
    EMPTY_BIAS,
    covariance,
    fourth_powers,
    gaussian_params,
    ledoit_wolf,
    moment_passes,
    precision,
)
from flaxhead.solvers.passes import Passes

Metric: TypeAlias = Literal["euclidean", "cosine", "mahalanobis"]

PROTOTYPE_HEADS: dict[str, Callable[[int], Head]] = {
    "euclidean": linear,
    "cosine": lambda classes: l2_normalize(linear(classes)),
    "mahalanobis": linear,
}
"""Metric -> factory of the head that the params of `prototypes` belong to."""

_LEAST_SPREAD = 1e-6


def prototypes(
    classes: int, *, metric: Metric = "euclidean", axis: str | None = None
) -> Fit:
    """Nearest class mean, scaled so that the softmax of its logits is a posterior.

    All classes are equally likely beforehand, and

    * `euclidean`: Gaussian, of the variance within classes, the same for all features:
      `logit = -|x - mean|^2 / (2 variance)`, but for what all classes share;
    * `cosine`: von Mises-Fisher on the unit sphere, of a common concentration `k`:
      `logit = k cos(x, mean)`, the mean being that of the rows divided by their norm;
    * `mahalanobis`: Gaussian, of the covariance within classes, shrunk and inverted
      as in `flaxhead.solvers.discriminant`.

    Args:
      classes: the number of logits.
      metric: a name from `PROTOTYPE_HEADS`.
      axis: name of the `pmap` axis over which the rows are split, if they are.

    Returns:
      A `Fit` without hyperparameters (`mahalanobis`: `shrinkage` in [0, 1], or none for
      Ledoit and Wolf's), and the params of `PROTOTYPE_HEADS[metric](classes)`. A class
      without rows has a logit of -1e9. Soft labels must sum to 1 in each row.

    Raises:
      ValueError: if `metric` is unknown.

    >>> import jax, jax.numpy as jnp
    >>> x = jnp.array([[-2.0], [-1.0], [1.0], [2.0]])
    >>> data = Batch(x, jnp.array([0, 0, 1, 1]), jnp.ones(4), jnp.arange(4))
    >>> params = prototypes(2)(data, jnp.ones(4), {}, jax.random.key(0))
    >>> params["output"]["kernel"].tolist()
    [[-6.0, 6.0]]
    """
    _check(metric)

    def run(
        data: Batch, weights: Array, hyperparameters: Hyperparameters, key: Array
    ) -> Params:
        del key
        x, weights = _features(data.x, metric), weights * data.weights
        moments = class_moments(x, data.labels, weights, classes=classes, axis=axis)
        shrinkage = hyperparameters.get("shrinkage", 0.0)
        if metric == "mahalanobis" and "shrinkage" not in hyperparameters:
            total = fourth_powers(x, data.labels, weights, moments, axis=axis)
            shrinkage = ledoit_wolf(total, moments)
        return prototype_params(moments, metric=metric, shrinkage=shrinkage)

    return run


def prototype_passes(
    classes: int, *, metric: Metric = "euclidean", axis: str | None = None
) -> Passes:
    """As `prototypes`, over rows that come part by part.

    Args:
      classes: the number of logits.
      metric: as for `prototypes`.
      axis: as for `prototypes`.

    Returns:
      Passes without hyperparameters, or, for `mahalanobis`, as `discriminant_passes`.

    Raises:
      ValueError: if `metric` is unknown.
    """
    _check(metric)
    return moment_passes(
        classes,
        lambda moments, shrinkage: prototype_params(
            moments, metric=metric, shrinkage=shrinkage
        ),
        estimates=metric == "mahalanobis",
        axis=axis,
        features=lambda x: _features(x, metric),
    )


def _check(metric: str) -> None:
    if metric not in PROTOTYPE_HEADS:
        raise ValueError(
            f"metric is {metric!r}: expected one of {', '.join(PROTOTYPE_HEADS)}"
        )


def _features(x: Array, metric: str) -> Array:
    # Back in the rows' own type, so that no widened copy of them all is made.
    return unit(x).astype(x.dtype) if metric == "cosine" else x


def prototype_params(
    moments: Moments, *, metric: Metric = "euclidean", shrinkage: Array | float = 0.0
) -> Params:
    """The params of `prototypes` from moments, to which rows and classes can be added.

    Args:
      moments: of the rows; for `cosine`, of the rows divided by their norm.
      metric: a name from `PROTOTYPE_HEADS`.
      shrinkage: `[]`, in [0, 1]; only `mahalanobis` looks at it.

    Returns:
      The params of `PROTOTYPE_HEADS[metric](classes)`.

    >>> import jax.numpy as jnp
    >>> x, labels = jnp.array([[-2.0], [-1.0], [1.0], [2.0]]), jnp.array([0, 0, 1, 1])
    >>> moments = class_moments(x, labels, jnp.ones(4), classes=2)
    >>> prototype_params(moments)["output"]["kernel"].tolist()
    [[-6.0, 6.0]]
    """
    equal = jnp.zeros(())
    if metric == "mahalanobis":
        return gaussian_params(moments, precision(moments, shrinkage), equal)
    dim = moments.means.shape[-1]
    if metric == "euclidean":
        variance = jnp.trace(covariance(moments)) / dim
        return gaussian_params(moments, 1 / variance, equal)
    # Of unit rows, the spread is one less the squared length of their mean.
    spread = jnp.trace(moments.scatter) / divisor(jnp.sum(moments.counts))
    spread = jnp.clip(spread, _LEAST_SPREAD, 1)
    concentration = jnp.sqrt(1 - spread) * (dim - 1 + spread) / spread
    directions = moments.means / length(moments.means, axis=-1)
    bias = jnp.where(moments.counts > 0, 0, EMPTY_BIAS)
    return {"output": {"kernel": (concentration * directions).T, "bias": bias}}
