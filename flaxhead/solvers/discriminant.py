"""Linear discriminant analysis: classes are Gaussians that share their covariance.

Source: Fisher, 1936, "The use of multiple measurements in taxonomic problems"; Ledoit
and Wolf, 2004, "A well-conditioned estimator for large-dimensional covariance
matrices".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flaxhead.base import Array, Batch, Fit, Hyperparameters, Params
from flaxhead.moments import (
    Moments,
    add,
    class_moments,
    divisor,
    exact,
    pooled,
    row_weights,
    sum_rows,
)
from flaxhead.solvers.passes import Passes, lane_by_lane

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
            total = fourth_powers(x, labels, weights, moments, axis=axis)
            shrinkage = ledoit_wolf(total, moments)
        return discriminant_params(moments, shrinkage=shrinkage)

    return run


def discriminant_passes(classes: int, *, axis: str | None = None) -> Passes:
    """As `discriminant`, over rows that come part by part.

    Args:
      classes: the number of logits.
      axis: as for `discriminant`.

    Returns:
      Passes with the hyperparameters `{"shrinkage": [candidates]}`; without them, one
      more pass estimates the only candidate's.
    """
    return moment_passes(
        classes,
        lambda moments, shrinkage: discriminant_params(moments, shrinkage=shrinkage),
        estimates=True,
        axis=axis,
    )


class _Summed(NamedTuple):
    moments: Moments  # [lanes] leading
    shrinkage: Array  # [candidates, lanes]; negative where it is yet to be estimated


def moment_passes(
    classes: int,
    params: Callable[[Moments, Array], Params],
    *,
    estimates: bool,
    axis: str | None,
    features: Callable[[Array], Array] = lambda x: x,
) -> Passes:
    """Makes the passes of a solver that goes by moments and a shrinkage.

    Args:
      classes: the number of logits.
      params: `(moments, shrinkage []) -> params`.
      estimates: whether a shrinkage that is not given is Ledoit and Wolf's, and not 0.
      axis: name of the `pmap` axis over which the rows are split, if they are.
      features: what the moments are of.
    """

    def summarise(data: Batch, weights: Array) -> Moments:
        weights = weights * data.weights
        return class_moments(
            features(data.x), data.labels, weights, classes=classes, axis=axis
        )

    def begin(summary: Moments, hyperparameters: Hyperparameters) -> _Summed:
        lanes = len(summary.counts)
        given = hyperparameters.get("shrinkage", -jnp.ones(1) * estimates)
        return _Summed(summary, jnp.broadcast_to(given[:, None], (len(given), lanes)))

    def measure(point: Moments, data: Batch, weights: Array) -> Array:
        def one(lane: tuple[Moments, Array]) -> Array:
            moments, weights = lane
            return fourth_powers(
                features(data.x), data.labels, weights * data.weights, moments
            )

        return lax.map(one, (point, weights.T))

    def observe(state: _Summed, sums: Array) -> _Summed:
        sums = sums if axis is None else lax.psum(sums, axis)
        return state._replace(
            shrinkage=jax.vmap(ledoit_wolf)(sums, state.moments)[None]
        )

    def solution(state: _Summed) -> tuple[Params, None]:
        each = jax.vmap(params, (None, 0))
        solved = lax.map(lambda lane: each(*lane), (state.moments, state.shrinkage.T))
        return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), solved), None

    return Passes(
        lane_by_lane(summarise),
        jax.vmap(add),
        begin,
        lambda state: state.moments,
        measure,
        observe,
        lambda state: jnp.where(jnp.any(state.shrinkage < 0), 0.5, 1.0),
        solution,
    )


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


def fourth_powers(
    x: Array,
    labels: Array,
    weights: Array,
    moments: Moments,
    *,
    axis: str | None = None,
) -> Array:
    """The weighted sum `[]` of fourth powers of distances to the mean of a row's class.

    Args:
      x: `[rows, dim]`.
      labels: `[rows]` or `[rows, classes]`.
      weights: `[rows]`.
      moments: of these rows, and of others where these are a part.
      axis: name of the `pmap` axis over which the rows are split, if they are.
    """
    shift = pooled(moments).mean
    centres = moments.means - shift

    def fourth(rows: tuple[Array, Array], weights: Array) -> Array:
        x, labels = rows[0] - shift, rows[1]
        if labels.ndim == 1:
            return exact(weights, jnp.sum((x - centres[labels]) ** 2, axis=-1) ** 2)
        squares = jnp.sum(x**2, axis=-1, keepdims=True) + jnp.sum(centres**2, axis=-1)
        distances = squares - 2 * exact(x, centres.T)
        return exact(weights, jnp.sum(labels * distances**2, axis=-1))

    return sum_rows(fourth, (x, labels), row_weights(labels, weights), axis=axis)


def ledoit_wolf(total: Array, moments: Moments) -> Array:
    """The shrinkage `[]` of the covariance within classes that is best on average.

    Args:
      total: `fourth_powers` of the rows.
      moments: of them.
    """
    count, dim = jnp.sum(moments.counts), moments.means.shape[-1]
    within = moments.scatter / divisor(count)
    target = jnp.trace(within) / dim * jnp.eye(dim)
    distance = jnp.sum((within - target) ** 2)
    noise = (total / divisor(count) - jnp.sum(within**2)) / divisor(count)
    return jnp.clip(noise / divisor(distance), 0, 1)
