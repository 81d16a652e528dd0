"""Ridge classification: every penalty, left-one-out, from one eigendecomposition.

Targets are +1 for a row's class and -1 for the others; soft labels `s` give `2 s - 1`.
A head minimises `sum_i w_i |y_i - x_i W - b|^2 + alpha |W|^2`, where the intercept `b`
is not penalised. Logits are thus regressions of +-1, whose argmax (or sign) decides.
Their softmax is badly calibrated: scale them by held-out rows before reading it as a
probability.

Source: Hoerl and Kennard, 1970, "Ridge regression"; left-one-out: Allen, 1974, "The
relationship between variable selection and data augmentation and a method for
prediction"; Rifkin and Lippert, 2007, "Notes on regularized least squares".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from flaxhead.base import Array, Batch, Fit, Hyperparameters, Params
from flaxhead.moments import (
    Moments,
    class_shares,
    divisor,
    exact,
    pooled,
    rough_mean,
    row_weights,
    sum_rows,
    weighted_mean,
)
from flaxhead.solvers.passes import Passes, one_pass

Output: TypeAlias = Literal["softmax", "sigmoid"]

_LOGITS_AT_ONCE = 2**22
_INTERPOLATED = 1e-5
_ROUNDING = 16 * float(jnp.finfo(jnp.float32).eps)


class LeaveOneOut(NamedTuple):
    """Scores of left-one-out predictions, summed over rows.

    Attributes:
      error: `[alphas]`, the sum over rows and classes of weighted squared errors; the
        weights are those of the objective, class weights included.
      correct: `[alphas]`, the weight of the rows that are classified right (`sigmoid`:
        the share of a row's labels that are), without class weights.
      weight: `[]`, the weight of all rows, without class weights.
    """

    error: Array
    correct: Array
    weight: Array


class _Factors(NamedTuple):
    """What class weights multiply."""

    rows: Callable[[Array], Array]  # labels -> the factor of each row's weight
    columns: Array  # [classes], or [1] for all alike: of each column's squared errors


class _Gram(NamedTuple):
    """Weighted products of rows about their mean; those of parts of the rows add."""

    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]
    mean: Array  # [dim]
    target_mean: Array  # [classes]
    scatter: Array  # [dim, dim]
    cross: Array  # [dim, classes]


class _Decomposition(NamedTuple):
    """All that the heads of every penalty have in common.

    `sqrt(w) (x - mean) = left @ diag(singular) @ vectors.T` is the singular value
    decomposition of the weighted, centred rows.
    """

    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]
    mean: Array  # [dim]
    target_mean: Array  # [classes]
    singular: Array  # [rank]; 0 where it is no more than rounding
    vectors: Array  # [dim, rank]
    targets: Array  # [rank, classes], left.T @ sqrt(w) (y - target_mean)


def ridge(
    classes: int,
    *,
    output: Output = "softmax",
    class_weights: ArrayLike | None = None,
    axis: str | None = None,
) -> Fit:
    """Ridge classification, with the answers of scikit-learn's `RidgeClassifier`.

    The smaller of `X'X` and `XX'` is decomposed. The decomposition doesn't depend on
    the penalty, so `vmap` over penalties computes it once.

    Args:
      classes: the number of logits.
      output: `softmax` for classes that exclude each other, `sigmoid` for several
        labels a row, each a column of its own. Entries may not be missing, since each
        column would need a decomposition of its own; a row without any label is absent.
      class_weights: `[classes]`, multiplies the weights of the rows of each class (by
        its average over soft labels), or, for `sigmoid`, each column's squared errors.
      axis: name of the `pmap` axis over which the rows are split, if they are. If there
        are fewer rows than features, each device gathers all of them.

    Returns:
      A `Fit` with the hyperparameter `alpha` (0 gives the smallest least-squares
      solution), and the params of `flaxhead.heads.linear(classes)`.

    Raises:
      ValueError: if `output` is unknown or `class_weights` don't fit; by the fit, if
        labels are partly missing. If it is traced it can't look, and the columns of
        missing entries come out as NaN.

    >>> import jax, jax.numpy as jnp
    >>> x = jnp.array([[-2.0], [-1.0], [1.0], [2.0]])
    >>> data = Batch(x, jnp.array([0, 0, 1, 1]), jnp.ones(4), jnp.arange(4))
    >>> fit = ridge(2)
    >>> params = fit(data, jnp.ones(4), {"alpha": jnp.float32(2)}, jax.random.key(0))
    >>> params["output"]["kernel"].round(3).tolist()
    [[-0.5, 0.5]]
    """
    factors = _class_factors(classes, output, class_weights)

    def run(
        data: Batch, weights: Array, hyperparameters: Hyperparameters, key: Array
    ) -> Params:
        del key
        decomposition = _decompose(data, weights, factors, classes, axis)
        return _params(decomposition, hyperparameters["alpha"] / factors.columns)

    return run


def ridge_passes(
    classes: int,
    *,
    output: Output = "softmax",
    class_weights: ArrayLike | None = None,
    axis: str | None = None,
) -> Passes:
    """As `ridge`, over rows that come part by part; of many penalties, `{"alpha": []}`.

    Entries of labels that are missing come out as NaN.

    Args:
      classes: the number of logits.
      output: as for `ridge`.
      class_weights: as for `ridge`.
      axis: as for `ridge`.

    Raises:
      ValueError: as for `ridge`.

    >>> ridge_passes(2, output="tanh")
    Traceback (most recent call last):
    ValueError: output is 'tanh': expected softmax or sigmoid
    """
    factors = _class_factors(classes, output, class_weights)

    def summarise(data: Batch, weights: Array) -> _Gram:
        own = _objective_weights(data, weights, factors)
        return _gram(data.x, data.labels, own, classes, axis)

    def solve(gram: _Gram, hyperparameters: Hyperparameters) -> Params:
        decomposition = _of_features(gram)
        penalties = hyperparameters["alpha"][:, None] / factors.columns
        return jax.vmap(lambda penalty: _params(decomposition, penalty))(penalties)

    return one_pass(summarise, _merge, solve)


def ridge_params(moments: Moments, *, alpha: Array) -> Params:
    """The params of `ridge` from moments, to which rows and classes can be added.

    Args:
      moments: of rows whose classes exclude each other.
      alpha: `[]`, the penalty.

    Returns:
      The params of `flaxhead.heads.linear(classes)`.

    >>> import jax.numpy as jnp
    >>> from flaxhead.moments import class_moments
    >>> x, labels = jnp.array([[-2.0], [-1.0], [1.0], [2.0]]), jnp.array([0, 0, 1, 1])
    >>> moments = class_moments(x, labels, jnp.ones(4), classes=2)
    >>> params = ridge_params(moments, alpha=jnp.float32(2))
    >>> params["output"]["kernel"].round(3).tolist()
    [[-0.5, 0.5]]
    """
    count, mean, scatter = pooled(moments)
    cross = 2 * (moments.counts[:, None] * (moments.means - mean)).T
    target_mean = 2 * moments.counts / divisor(count) - 1
    gram = _Gram(count, mean, target_mean, scatter, cross)
    return _params(_of_features(gram), alpha[None])


def ridge_leave_one_out(
    classes: int,
    *,
    output: Output = "softmax",
    class_weights: ArrayLike | None = None,
    axis: str | None = None,
    keep: Callable[[Array], Any] = lambda logits: logits,
) -> Callable[[Batch, Array, Hyperparameters, Array], tuple[Params, Any]]:
    """Ridge classification and its exact left-one-out predictions.

    Args:
      classes: the number of logits.
      output: as for `ridge`.
      class_weights: as for `ridge`.
      axis: as for `ridge`; predictions are those of a device's own rows.
      keep: what is kept of one penalty's logits, for example a score; all by default.

    Returns:
      `(data, weights, hyperparameters, key) -> (params, keep(logits [rows, classes]))`:
      what the fit to all other rows says of each row (a row of weight 2 is left out
      with its whole weight), and of rows of weight 0 what the fit says. If `alpha` is
      `[alphas]`, both have that leading axis: one decomposition, then one penalty after
      the other.

    Raises:
      ValueError: as for `ridge`.

    >>> import jax, jax.numpy as jnp
    >>> x = jnp.array([[-2.0], [-1.0], [1.0], [2.0]])
    >>> data = Batch(x, jnp.array([0, 0, 1, 1]), jnp.ones(4), jnp.arange(4))
    >>> fit = ridge_leave_one_out(2, keep=lambda logits: logits.argmax(-1))
    >>> alphas = {"alpha": jnp.array([0.1, 10.0])}
    >>> params, predicted = fit(data, jnp.ones(4), alphas, jax.random.key(0))
    >>> predicted.tolist()
    [[0, 0, 1, 1], [0, 1, 0, 1]]
    """
    factors = _class_factors(classes, output, class_weights)

    def run(
        data: Batch, weights: Array, hyperparameters: Hyperparameters, key: Array
    ) -> tuple[Params, Any]:
        del key
        decomposition = _decompose(data, weights, factors, classes, axis)
        own = _total_weights(data, weights)
        # A row without labels, which may be NaN, is predicted all the same.
        shares = class_shares(data.labels, classes)
        shares = jnp.where((own > 0)[:, None], shares, 0)
        own = jnp.where(own > 0, own * factors.rows(data.labels), 0)
        left_out = _left_out(decomposition, data.x, shares, own)

        def one(alpha: Array) -> tuple[Params, Any]:
            penalty = alpha / factors.columns
            params = _params(decomposition, penalty)
            return params, keep(left_out(penalty[None])[:, 0])

        alpha = hyperparameters["alpha"]
        return lax.map(one, alpha) if jnp.ndim(alpha) else one(alpha)

    return run


def ridge_path(
    classes: int,
    *,
    output: Output = "softmax",
    class_weights: ArrayLike | None = None,
    axis: str | None = None,
) -> Callable[[Batch, Array, Hyperparameters, Array], tuple[Params, LeaveOneOut]]:
    """Ridge classification with many penalties, and the left-one-out scores of each.

    Rows are taken in chunks, so that left-one-out predictions of all penalties and all
    rows are never in memory.

    Args:
      classes: the number of logits.
      output: as for `ridge`.
      class_weights: as for `ridge`.
      axis: as for `ridge`.

    Returns:
      `(data, weights, hyperparameters, key) -> (params, scores)`: `alpha` is
      `[alphas]`, params have that leading axis, and scores are `LeaveOneOut`.

    Raises:
      ValueError: as for `ridge`.

    >>> import jax, jax.numpy as jnp
    >>> x = jnp.array([[-2.0], [-1.0], [1.0], [2.0]])
    >>> data = Batch(x, jnp.array([0, 0, 1, 1]), jnp.ones(4), jnp.arange(4))
    >>> alphas = {"alpha": jnp.array([0.01, 0.1, 10.0])}
    >>> params, scores = ridge_path(2)(data, jnp.ones(4), alphas, jax.random.key(0))
    >>> int(scores.error.argmin()), (scores.correct / scores.weight).tolist()
    (1, [1.0, 1.0, 0.5])
    """
    factors = _class_factors(classes, output, class_weights)

    def run(
        data: Batch, weights: Array, hyperparameters: Hyperparameters, key: Array
    ) -> tuple[Params, LeaveOneOut]:
        del key
        penalties = hyperparameters["alpha"][:, None] / factors.columns
        decomposition = _decompose(data, weights, factors, classes, axis)
        params = jax.vmap(lambda penalty: _params(decomposition, penalty))(penalties)

        def score(rows: tuple[Array, Array], weights: Array) -> LeaveOneOut:
            x, labels = rows
            shares, own = class_shares(labels, classes), weights * factors.rows(labels)
            logits = _left_out(decomposition, x, shares, own)(penalties)
            targets = _targets(shares)[:, None]
            squares = factors.columns * (targets - logits) ** 2
            error = exact(own, jnp.sum(squares, axis=-1))
            if output == "softmax":
                # Two largest values: an argmax takes ten times as long on a CPU.
                own_class = class_shares(jnp.argmax(shares, -1), classes)[:, None] > 0
                best = jnp.max(jnp.where(own_class, logits, -jnp.inf), -1)
                right = best > jnp.max(jnp.where(own_class, -jnp.inf, logits), -1)
            else:
                right = jnp.mean((logits > 0) == (targets > 0), axis=-1)
            return LeaveOneOut(error, exact(weights, right * 1.0), jnp.sum(weights))

        scores = sum_rows(
            score,
            (data.x, data.labels),
            _total_weights(data, weights),
            axis=axis,
            chunk=max(1, _LOGITS_AT_ONCE // (len(penalties) * classes)),
        )
        return params, scores

    return run


def _class_factors(
    classes: int, output: str, class_weights: ArrayLike | None
) -> _Factors:
    """Checks the options, and says what class weights multiply."""
    if output not in ("softmax", "sigmoid"):
        raise ValueError(f"output is {output!r}: expected softmax or sigmoid")
    if class_weights is None:
        return _Factors(lambda labels: jnp.ones(len(labels)), jnp.ones(1))
    each = jnp.asarray(class_weights, jnp.float32)
    if each.shape != (classes,):
        raise ValueError(
            f"class_weights have shape {each.shape}: expected one for each of"
            f" {classes} classes"
        )
    if output == "sigmoid":
        return _Factors(lambda labels: jnp.ones(len(labels)), each)

    def rows(labels: Array) -> Array:
        if labels.ndim == 1:
            return each[jnp.maximum(labels, 0)]
        return exact(labels, each)

    return _Factors(rows, jnp.ones(1))


def _total_weights(data: Batch, weights: Array) -> Array:
    return row_weights(data.labels, weights * data.weights)


def _targets(shares: Array) -> Array:
    return 2 * shares - 1


def _decompose(
    data: Batch,
    weights: Array,
    factors: _Factors,
    classes: int,
    axis: str | None,
) -> _Decomposition:
    x, labels = data.x, data.labels
    weights = _objective_weights(data, weights, factors)
    rows, dim = x.shape
    rows *= 1 if axis is None else lax.psum(1, axis)
    if rows < dim:
        if axis is not None:
            x, labels, weights = (
                lax.all_gather(array, axis, tiled=True)
                for array in (x, labels, weights)
            )
        return _of_rows(x, class_shares(labels, classes), weights)
    return _of_features(_gram(x, labels, weights, classes, axis))


def _objective_weights(data: Batch, weights: Array, factors: _Factors) -> Array:
    weights = _total_weights(data, weights)
    _refuse_missing(data.labels, weights)
    return jnp.where(weights > 0, weights * factors.rows(data.labels), 0)


def _gram(
    x: Array, labels: Array, weights: Array, classes: int, axis: str | None
) -> _Gram:
    shift = rough_mean(x, weights, axis=axis)

    def products(rows: tuple[Array, Array], weights: Array) -> tuple[Array, ...]:
        shifted = rows[0] - shift
        weighted = weights[:, None] * shifted
        targets = _targets(class_shares(rows[1], classes))
        return (
            exact(shifted.T, weighted),
            exact(weighted.T, targets),
            jnp.sum(weighted, axis=0),
            exact(weights, targets),
            jnp.sum(weights),
        )

    scatter, cross, rest, target_sum, count = sum_rows(
        products, (x, labels), weights, axis=axis
    )
    rest, target_mean = rest / divisor(count), target_sum / divisor(count)
    # From about the shift to about the mean: a correction as small as its rounding.
    scatter -= count * jnp.outer(rest, rest)
    cross -= count * jnp.outer(rest, target_mean)
    return _Gram(count, shift + rest, target_mean, scatter, cross)


def _merge(a: _Gram, b: _Gram) -> _Gram:
    """Of the rows of both, as `flaxhead.moments.add`."""
    count = a.count + b.count
    share = b.count / divisor(count)
    step, target_step = b.mean - a.mean, b.target_mean - a.target_mean
    between = a.count * share * step
    return _Gram(
        count,
        a.mean + share * step,
        a.target_mean + share * target_step,
        a.scatter + b.scatter + jnp.outer(between, step),
        a.cross + b.cross + jnp.outer(between, target_step),
    )


def _of_features(gram: _Gram) -> _Decomposition:
    """From `X'X` and `X'Y`, of centred rows."""
    count, mean, target_mean, scatter, cross = gram
    values, vectors = jnp.linalg.eigh(scatter)
    singular = _singular(values)
    targets = exact(vectors.T, cross) * _inverse(singular)[:, None]
    return _Decomposition(count, mean, target_mean, singular, vectors, targets)


def _of_rows(x: Array, shares: Array, weights: Array) -> _Decomposition:
    """From `XX'`, where there are fewer rows than features."""
    count = jnp.sum(weights)
    present = (weights > 0)[:, None]
    x = jnp.where(present, x.astype(jnp.float32), 0)
    targets = jnp.where(present, _targets(shares), 0)
    mean = weighted_mean(x, weights)
    root = jnp.sqrt(weights)[:, None]
    x = root * (x - mean)
    target_mean = exact(weights, targets) / divisor(count)
    values, left = jnp.linalg.eigh(exact(x, x.T))
    singular = _singular(values)
    return _Decomposition(
        count,
        mean,
        target_mean,
        singular,
        exact(x.T, left) * _inverse(singular),
        exact(left.T, root * (targets - target_mean)) * (singular > 0)[:, None],
    )


def _singular(values: Array) -> Array:
    """Roots of eigenvalues; 0 for those that are no more than rounding."""
    rounding = _ROUNDING * jnp.max(values)
    return jnp.sqrt(jnp.where(values > rounding, values, 0))


def _inverse(values: Array) -> Array:
    return jnp.where(values > 0, 1 / divisor(values), 0)


def _params(decomposition: _Decomposition, penalty: Array) -> Params:
    """Of penalties `[classes]`, or `[1]` for all alike."""
    _, mean, target_mean, singular, vectors, targets = decomposition
    singular = singular[:, None]
    gain = singular * _inverse(singular**2 + penalty)
    kernel = exact(vectors, gain * targets)
    return {"output": {"kernel": kernel, "bias": target_mean - exact(mean, kernel)}}


def _left_out(
    decomposition: _Decomposition, x: Array, shares: Array, weights: Array
) -> Callable[[Array], Array]:
    """`(penalties) -> logits [rows, alphas, classes]` of rows, each left out.

    Penalties are `[alphas, classes]`, or `[alphas, 1]` for all columns alike.

    A row's residual is `e / (1 - h)`, where `e` is that of the fit and `h` the row's
    leverage. Both the numerator and the denominator are written as their limit at
    `alpha` 0 plus sums of positive multiples of `alpha / (s^2 + alpha)`: a fit that
    goes through its rows then loses no digits.
    """
    count, mean, target_mean, singular, vectors, aims = decomposition
    weights = weights[:, None]
    centred = x.astype(jnp.float32) - mean
    left = exact(centred, vectors) * _inverse(singular)
    residual = _targets(shares) - target_mean - exact(left, aims)
    free = 1 - weights / divisor(count) - weights * jnp.sum(left**2, -1, keepdims=True)
    # At alpha 0 the fit goes through the row: both are exactly 0, up to rounding.
    free = jnp.where(free < _INTERPOLATED, 0, free)
    residual = jnp.where(free == 0, 0, residual)

    def logits(penalties: Array) -> Array:
        # The predictions left out have a limit at alpha 0, the formula hasn't.
        penalties = jnp.maximum(penalties, _ROUNDING * jnp.max(singular) ** 2)
        shrink = 1 / (1 + singular[:, None, None] ** 2 / penalties)

        def product(rows: Array, columns: Array) -> Array:
            flat = exact(rows, columns.reshape(len(columns), -1))
            return flat.reshape(len(rows), len(penalties), -1)

        kept = free[:, None] + product(weights * left**2, shrink)
        lost = residual[:, None] + product(left, shrink * aims[:, None])
        return _targets(shares)[:, None] - lost / divisor(kept)

    return logits


def _refuse_missing(labels: Array, weights: Array) -> None:
    if labels.ndim == 1 or isinstance(labels, Tracer):
        return
    if isinstance(weights, Tracer):
        return
    partly = jnp.any(jnp.isnan(labels), axis=-1) & (weights > 0)
    if partly.any():
        raise ValueError(
            f"labels are partly missing (NaN) in {int(partly.sum())} rows, the first of"
            f" them row {int(partly.argmax())}: ridge needs every entry of a row or"
            " none (drop the rows, fill in their entries, or use another solver)"
        )
