"""Linear discriminant analysis: classes are Gaussians that share their covariance.

Source: Fisher, 1936, "The use of multiple measurements in taxonomic problems"; Ledoit
and Wolf, 2004, "A well-conditioned estimator for large-dimensional covariance
matrices".
"""

from __future__ import annotations

import jax.numpy as jnp

from flaxhead.base import Array, Batch, Fit, Hyperparameters, Params
from flaxhead.moments import (
    Moments,
    class_moments,
    divisor,
    exact,
    pooled,
    row_weights,
    sum_rows,
)

EMPTY_BIAS = -1e9
"""The logit of a class without rows: no calibration makes it likely."""

_ROUNDING = 16 * float(jnp.finfo(jnp.float32).eps)


def discriminant(classes: int, *, axis: str | None = None) -> Fit:
    """Linear discriminant analysis, with the answers of scikit-learn's.

    The covariance within classes, divided by the weight of all rows, is shrunk to
    `(1 - shrinkage) covariance + shrinkage * mean variance * I`. Its decomposition
    doesn't depend on the shrinkage, so `vmap` over shrinkages computes it once. Where a
    covariance of no shrinkage is singular its pseudo-inverse is taken: directions in
    which no class varies are ignored. Where rows don't vary within any class (one row a
    class), it is the identity. Features of very different scales should be standardised
    first, since directions of less than 2e-6 of the largest variance are no more than
    rounding.

    Args:
      classes: the number of logits.
      axis: name of the `pmap` axis over which the rows are split, if they are.

    Returns:
      A `Fit` with the hyperparameter `shrinkage` in [0, 1], and the params of
      `flaxhead.heads.linear(classes)`. Without it, Ledoit and Wolf's shrinkage is
      estimated, one for all classes, from the rows less the means of their classes
      (scikit-learn estimates one a class). The softmax of the logits is the posterior,
      with priors by the weights of the classes; a class without rows has a logit of
      -1e9. Soft labels must sum to 1 in each row.

    >>> import jax, jax.numpy as jnp
    >>> x = jnp.array([[-2.0], [-1.0], [1.0], [2.0]])
    >>> data = Batch(x, jnp.array([0, 0, 1, 1]), jnp.ones(4), jnp.arange(4))
    >>> fit, hyperparameters = discriminant(2), {"shrinkage": jnp.float32(0)}
    >>> params = fit(data, jnp.ones(4), hyperparameters, jax.random.key(0))
    >>> bool(jnp.allclose(params["output"]["kernel"], jnp.array([-6.0, 6.0])))
    True
    """

    def run(
        data: Batch, weights: Array, hyperparameters: Hyperparameters, key: Array
    ) -> Params:
        del key
        weights = weights * data.weights
        x, labels = data.x, data.labels
        moments = class_moments(x, labels, weights, classes=classes, axis=axis)
        shrinkage = hyperparameters.get("shrinkage")
        if shrinkage is None:
            shrinkage = ledoit_wolf(x, labels, weights, moments, axis=axis)
        return discriminant_params(moments, shrinkage=shrinkage)

    return run


def discriminant_params(moments: Moments, *, shrinkage: Array | float) -> Params:
    """The params of `discriminant` from moments.

    Rows and classes are added by `flaxhead.moments.add`, exactly; this is then called
    again.

    Args:
      moments: of the rows.
      shrinkage: `[]`, in [0, 1].

    Returns:
      The params of `flaxhead.heads.linear(classes)`.

    >>> import jax.numpy as jnp
    >>> x, labels = jnp.array([[-2.0], [-1.0], [1.0], [2.0]]), jnp.array([0, 0, 1, 1])
    >>> moments = class_moments(x, labels, jnp.ones(4), classes=2)
    >>> params = discriminant_params(moments, shrinkage=0.0)
    >>> bool(jnp.allclose(params["output"]["kernel"], jnp.array([-6.0, 6.0])))
    True
    """
    priors = jnp.log(divisor(moments.counts / divisor(jnp.sum(moments.counts))))
    return gaussian_params(moments, precision(moments, shrinkage), priors)


def precision(moments: Moments, shrinkage: Array | float) -> Array:
    """The (pseudo-)inverse `[dim, dim]` of the shrunk covariance within classes."""
    root = whitening(moments, shrinkage)
    return exact(root, root.T)


def whitening(moments: Moments, shrinkage: Array | float) -> Array:
    """Rows times this, `[dim, dim]`, have that covariance, but for shrinkage, as 1."""
    values, vectors = jnp.linalg.eigh(covariance(moments))
    values = jnp.where(values > _ROUNDING * jnp.max(values), values, 0)
    values = (1 - shrinkage) * values + shrinkage * jnp.mean(values)
    return vectors * jnp.where(values > 0, 1 / jnp.sqrt(divisor(values)), 0)


def covariance(moments: Moments) -> Array:
    """The covariance `[dim, dim]` within classes; the identity where it is rounding."""
    own = jnp.trace(moments.scatter)
    is_rounding = own <= _ROUNDING**2 * jnp.trace(pooled(moments).scatter)
    scaled = moments.scatter / divisor(jnp.sum(moments.counts))
    return jnp.where(is_rounding, jnp.eye(len(scaled)), scaled)


def gaussian_params(moments: Moments, precision: Array, log_priors: Array) -> Params:
    """A linear head whose softmax is the posterior of Gaussian classes.

    Args:
      moments: of the rows.
      precision: the inverse covariance, `[dim, dim]`, or `[]` times the identity.
      log_priors: `[classes]`, or `[]` for equal ones.
    """
    mean = pooled(moments).mean
    # About the mean of all: logits far from zero would lose digits in their difference.
    offsets = (moments.means - mean).T
    kernel = exact(precision, offsets) if precision.ndim else precision * offsets
    bias = log_priors - jnp.sum(offsets * kernel, axis=0) / 2 - exact(mean, kernel)
    present = moments.counts > 0
    return {
        "output": {
            "kernel": jnp.where(present, kernel, 0),
            "bias": jnp.where(present, bias, EMPTY_BIAS),
        }
    }


def ledoit_wolf(
    x: Array,
    labels: Array,
    weights: Array,
    moments: Moments,
    *,
    axis: str | None = None,
) -> Array:
    """The shrinkage `[]` of the covariance within classes that is best on average.

    Args:
      x: `[rows, dim]`.
      labels: `[rows]` or `[rows, classes]`.
      weights: `[rows]`.
      moments: of these rows.
      axis: name of the `pmap` axis over which the rows are split, if they are.
    """
    count, dim = jnp.sum(moments.counts), x.shape[-1]
    shift = pooled(moments).mean
    centres = moments.means - shift

    def fourth(rows: tuple[Array, Array], weights: Array) -> Array:
        x, labels = rows[0] - shift, rows[1]
        if labels.ndim == 1:
            return exact(weights, jnp.sum((x - centres[labels]) ** 2, axis=-1) ** 2)
        squares = jnp.sum(x**2, axis=-1, keepdims=True) + jnp.sum(centres**2, axis=-1)
        distances = squares - 2 * exact(x, centres.T)
        return exact(weights, jnp.sum(labels * distances**2, axis=-1))

    total = sum_rows(fourth, (x, labels), row_weights(labels, weights), axis=axis)
    within = moments.scatter / divisor(count)
    target = jnp.trace(within) / dim * jnp.eye(dim)
    distance = jnp.sum((within - target) ** 2)
    noise = (total / divisor(count) - jnp.sum(within**2)) / divisor(count)
    return jnp.clip(noise / divisor(distance), 0, 1)
