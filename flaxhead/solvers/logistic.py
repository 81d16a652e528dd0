"""Logistic regression with an L2 penalty, solved exactly along a path of penalties.

It minimises scikit-learn's objective, `|W|^2 / 2 + C * sum_i w_i loss_i`, with the
intercept free; of two classes that exclude each other, `W` is the difference of their
vectors, as there. Folds, bootstraps and the fit to all rows are *lanes*: vectors of row
weights that share each product with the embeddings.

The features are turned into their principal axes once. There `1 / (p_c s_j + penalty)`,
of the share of a class and the variance of an axis, is close to the inverse Hessian for
every penalty, and L-BFGS (`lbfgs.py`) starts from it. A lane's numbers depend on no
other lane.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from flaxhead.base import Array, Batch, Fit, Hyperparameters, Params
from flaxhead.metrics import Output
from flaxhead.moments import Moments, add, class_moments, divisor, exact, sum_rows
from flaxhead.solvers import lbfgs
from flaxhead.solvers.passes import Passes

TOLERANCE = 1e-6
FLOOR = 0.0
# A class that a lane has no row of: its intercept would be minus infinity.
_RAREST = 1e-10
# Variances below this share of the largest are the rounding of the decomposition.
_FLATTEST = 1e-7
# A class is most in doubt where its own features are large: the curvature is more than
# the product of averages, and a diagonal that is too small costs twice the evaluations.
_CURVATURE = 4.0


class PathInfo(NamedTuple):
    """How each solution of a path ended, `[C, lanes]`.

    Attributes:
      iterations: `int32`, evaluations of the objective and its gradient.
      gradient_norm: of the objective's gradient `g`, in the metric of the inverse
        Hessian as L-BFGS knows it, relative: the root of `g' H^-1 g / objective`. Half
        its square is about the share by which the objective is above its minimum.
      objective: `|W|^2 / 2 + C * sum_i w_i loss_i`.
      converged: `bool`, whether the norm is within the tolerance. False where the
        iterations ran out, or rounding left no step that helps.
    """

    iterations: Array
    gradient_norm: Array
    objective: Array
    converged: Array


class PathState(NamedTuple):
    """A path under way, arrays only, the same on every device.

    Attributes:
      mean: `[dim]`, of the features.
      axes: `[dim, dim]`, their principal axes in columns.
      totals: `[units]`, the sum of each unit's weights. A unit is what steps on its
        own: a lane, or with independent labels one label of a lane.
      curvature: `[units, classes, dim + 1]`, the Hessian's diagonal, roughly.
      C: `[C]`, ascending.
      place: `[C]`, where each `C` as given is among them.
      search: the state of the search.
    """

    mean: Array
    axes: Array
    totals: Array
    curvature: Array
    C: Array
    place: Array
    search: lbfgs.State


class LogisticPieces(NamedTuple):
    """The programs of a path, each pure, to be compiled and called in turn.

    Attributes:
      start: `(data, weights [rows, lanes], C) -> state`.
      advance: `(state, data, weights, C, evaluations=16) -> state`, at most so many
        evaluations on.
      share: `(state) -> float32 []`, how much of the path is behind; 1: all of it.
      solution: `(state) -> (params, info)`: the parameters of `heads.linear`,
        `[C, lanes]` leading, and a `PathInfo`.
      passes: the same path over rows that come part by part.
    """

    start: Callable[[Batch, Array, Array], PathState]
    advance: Callable[..., PathState]
    share: Callable[[PathState], Array]
    solution: Callable[[PathState], tuple[Params, PathInfo]]
    passes: Passes


class _Summary(NamedTuple):
    """What a path starts from; those of parts of the rows add.

    Attributes:
      moments: of all rows as one class.
      counts: `[lanes, classes]`, the weight of each class's labels.
      entries: `[lanes, classes]`, of all labels that are not missing, or `[]`.
    """

    moments: Moments
    counts: Array
    entries: Array


class _Point(NamedTuple):
    """Where a pass measures: `params` of the features less their `mean`."""

    params: Array
    mean: Array


class _Rows(NamedTuple):
    """Rows as the objective takes them, `[rows]` leading.

    Attributes:
      x: `[rows, dim]`, of any float type.
      labels: class numbers, or `[rows, classes]` targets without NaN.
      entries: `[rows, classes]`, the weight of each label of a row, or None.
      weights: `[rows, lanes]`.
    """

    x: Array
    labels: Array
    entries: Array | None
    weights: Array


def logistic(
    classes: int,
    *,
    output: Output = "softmax",
    tolerance: float | Array = TOLERANCE,
    floor: float | Array = FLOOR,
    max_iterations: int = 1000,
    class_weights: ArrayLike | None = None,
    axis: str | None = None,
) -> Fit:
    """Returns the fit of one logistic regression to convergence.

    Under `vmap` over `C` the decomposition of the features is shared.

    Args:
      classes: the number of logits.
      output: `softmax`, classes that exclude each other, labels `int [rows]` or soft
        `float [rows, classes]`; or `sigmoid`, one regression a class, labels `int
        [rows]` or `float [rows, classes]` with NaN where one is missing.
      tolerance: of half the square of `PathInfo.gradient_norm`: about the share by
        which the objective may be above its minimum.
      floor: nats a row; an objective that is less is taken for as much by the
        tolerance. With `log(classes)` the tolerance is relative to what knowing nothing
        costs, and what matters little to predictions is not pursued.
      max_iterations: evaluations after which it stops anyhow.
      class_weights: `[classes]`, multiplies a row's weight (softmax) or an entry's
        (sigmoid), as in `losses.class_weighted`.
      axis: name of the `pmap` axis over which the rows are split, if they are.

    Returns:
      `(data, weights, {"C": C}, key) -> params` of `heads.linear(classes)`.

    Raises:
      ValueError: if an argument or the labels don't fit.

    >>> import jax, jax.numpy as jnp
    >>> from flaxhead.base import Batch
    >>> x = jnp.array([[-1.0], [1.0]])
    >>> data = Batch(x, jnp.array([0, 1]), jnp.ones(2), jnp.arange(2))
    >>> fit = logistic(2)
    >>> params = fit(data, jnp.ones(2), {"C": jnp.float32(1.0)}, jax.random.key(0))
    >>> params["output"]["kernel"].shape
    (1, 2)
    """
    pieces = logistic_pieces(
        classes,
        output=output,
        tolerance=tolerance,
        floor=floor,
        max_iterations=max_iterations,
        class_weights=class_weights,
        axis=axis,
    )

    def run(
        data: Batch, weights: Array, hyperparameters: Hyperparameters, key: Array
    ) -> Params:
        del key  # nothing here is random
        C = jnp.reshape(hyperparameters["C"], [1])
        lanes = weights[:, None]
        state = pieces.start(data, lanes, C)
        state = pieces.advance(state, data, lanes, C, 2**30)
        params, _ = pieces.solution(state)
        return jax.tree.map(lambda leaf: leaf[0, 0], params)

    return run


def logistic_path(
    data: Batch,
    weights: ArrayLike,
    C: npt.ArrayLike,
    *,
    classes: int,
    output: Output = "softmax",
    tolerance: float = TOLERANCE,
    floor: float = FLOOR,
    max_iterations: int = 1000,
    class_weights: ArrayLike | None = None,
) -> tuple[Params, PathInfo]:
    """Solves for every `C` and every vector of row weights, on one device.

    Args:
      data: all rows.
      weights: `[rows, lanes]`, multiply those of `data`; 0: the row is absent.
      C: `[C]`, inverse penalties, in any order; all positive.
      classes: as of `logistic`, and so are the others.
      output: see `logistic`.
      tolerance: see `logistic`.
      floor: see `logistic`.
      max_iterations: evaluations for one `C`.
      class_weights: see `logistic`.

    Returns:
      `params` of `heads.linear(classes)`, `[C, lanes]` leading, and a `PathInfo`.

    Raises:
      ValueError: if an argument or the labels don't fit.

    It drives compiled programs from the host, so it is called outside of `jit`;
    `logistic` is the pure function, and `logistic_pieces` the programs. Folds and the
    fit to all rows, as lanes: `flaxhead.folds.lane_weights`.

    >>> import jax.numpy as jnp
    >>> from flaxhead.base import Batch
    >>> x = jnp.array([[-1.0], [1.0], [2.0]])
    >>> data = Batch(x, jnp.array([0, 1, 1]), jnp.ones(3), jnp.arange(3))
    >>> params, info = logistic_path(data, jnp.ones([3, 1]), [0.1, 1, 10], classes=2)
    >>> params["output"]["kernel"].shape, bool(info.converged.all())
    ((3, 1, 1, 2), True)
    """
    if isinstance(C, Tracer):
        raise ValueError("C is traced: logistic_path is called outside of jit")
    labels = np.asarray(data.labels)
    if labels.dtype.kind in "iu" and 0 < classes <= labels.max(initial=-1):
        raise ValueError(
            f"data.labels has class {labels.max()}, expected below classes, {classes}"
        )
    strengths = np.asarray(C, np.float32)
    if strengths.ndim != 1 or not (strengths > 0).all():
        raise ValueError(f"C is {C}: expected a list of positive numbers")
    # Arguments, not constants: one compilation serves every tolerance.
    limits = (jnp.float32(tolerance), jnp.float32(floor), jnp.int32(max_iterations))
    factors = None if class_weights is None else jnp.asarray(class_weights)
    rest = (data, jnp.asarray(weights), jnp.asarray(strengths), factors, limits)
    state = _start(*rest, classes=classes, output=output)
    while _share(state) < 1:
        state = _advance(state, *rest, classes=classes, output=output)
    return _solution(state, classes=classes, output=output)


def _pieces(classes: int, output: Output, factors: Any, limits: Any) -> LogisticPieces:
    tolerance, floor, max_iterations = limits
    return logistic_pieces(
        classes,
        output=output,
        tolerance=tolerance,
        floor=floor,
        max_iterations=max_iterations,
        class_weights=factors,
    )


@jax.jit(static_argnames=("classes", "output"))
def _start(data, weights, C, factors, limits, *, classes, output):
    return _pieces(classes, output, factors, limits).start(data, weights, C)


@jax.jit(static_argnames=("classes", "output"), donate_argnums=0)
def _advance(state, data, weights, C, factors, limits, *, classes, output):
    pieces = _pieces(classes, output, factors, limits)
    return pieces.advance(state, data, weights, C, 2**20)


@jax.jit(static_argnames=("classes", "output"))
def _solution(state, *, classes, output):
    return logistic_pieces(classes, output=output).solution(state)


def logistic_pieces(
    classes: int,
    *,
    output: Output = "softmax",
    tolerance: float | Array = TOLERANCE,
    floor: float | Array = FLOOR,
    max_iterations: int | Array = 1000,
    class_weights: ArrayLike | None = None,
    axis: str | None = None,
) -> LogisticPieces:
    """Returns the programs of a path: for a host loop, or several devices.

    Args:
      classes: as of `logistic`, and so are the others.
      output: see `logistic`.
      tolerance: see `logistic`.
      floor: see `logistic`.
      max_iterations: evaluations for one `C`.
      class_weights: see `logistic`.
      axis: see `logistic`; `data` and `weights` are then one device's share.

    Returns:
      `LogisticPieces`, whose `weights` and `C` are as of `logistic_path`.

    Raises:
      ValueError: if an argument or the labels don't fit.

    >>> import jax.numpy as jnp
    >>> from flaxhead.base import Batch
    >>> x = jnp.array([[-1.0], [1.0]])
    >>> data = Batch(x, jnp.array([0, 1]), jnp.ones(2), jnp.arange(2))
    >>> weights, C = jnp.ones([2, 1]), jnp.array([0.1, 1.0])
    >>> pieces = logistic_pieces(2)
    >>> state = pieces.start(data, weights, C)
    >>> while pieces.share(state) < 1:
    ...     state = pieces.advance(state, data, weights, C)
    >>> pieces.solution(state)[0]["output"]["bias"].shape
    (2, 1, 2)
    """
    if classes < 1:
        raise ValueError(f"classes is {classes}: expected at least 1")
    if output not in ("softmax", "sigmoid"):
        raise ValueError(f"output is {output!r}: expected 'softmax' or 'sigmoid'")
    factors = None if class_weights is None else jnp.asarray(class_weights, float)
    if factors is not None and factors.shape != (classes,):
        raise ValueError(
            f"class_weights has shape {factors.shape}: expected ({classes},), one a"
            " class"
        )
    softmax = output == "softmax"
    group = classes if softmax else 1  # classes of a unit
    # Two classes are one vector to scikit-learn, the difference of these two, which at
    # the optimum are opposite: the half of its square is twice the half of theirs.
    columns = 2 if softmax and classes == 2 else 1
    evaluate = _softmax if softmax else _sigmoid

    def summarise(data: Batch, weights: Array) -> _Summary:
        rows = _rows(data, weights, classes, softmax, factors)
        # Neither the weights of lanes nor what they leave out has a part in this.
        usable = jnp.where(_finite(rows.x), data.weights, 0)
        one_class = jnp.zeros(len(usable), jnp.int32)
        moments = class_moments(rows.x, one_class, usable, classes=1, axis=axis)

        def count_labels(rows: _Rows, _: Array) -> tuple[Array, Array]:
            shares = rows.labels
            if shares.ndim == 1:
                shares = (shares[:, None] == jnp.arange(classes)).astype(jnp.float32)
            if rows.entries is None:
                return exact(rows.weights.T, shares), jnp.zeros(())
            positive = exact(rows.weights.T, rows.entries * shares)
            return positive, exact(rows.weights.T, rows.entries)

        counts, entries = sum_rows(
            count_labels, rows, jnp.ones(len(data.labels)), axis=axis
        )
        return _Summary(moments, counts, entries)

    def begin(summary: _Summary, C: Array) -> PathState:
        moments, counts, entries = summary
        mean, count = moments.means[0], moments.counts[0]
        variances, axes = jnp.linalg.eigh(moments.scatter / divisor(count))
        largest = jnp.max(variances)
        variances = jnp.maximum(
            variances, jnp.where(largest > 0, largest, 1) * _FLATTEST
        )
        totals = jnp.sum(counts, axis=1) if softmax else entries.ravel()
        totals = divisor(totals)
        share = jnp.maximum(
            counts.reshape(len(totals), group) / totals[:, None], _RAREST
        )
        if softmax:
            intercept, scale = jnp.log(share), share
        else:
            rest = jnp.maximum(1 - share, _RAREST)
            intercept, scale = jnp.log(share) - jnp.log(rest), share * rest
        scale = jnp.maximum(scale, 1e-3 / group)
        one = jnp.ones(1)
        params = jnp.zeros((len(totals), group, len(mean) + 1))
        params = params.at[..., -1].set(intercept)
        place = jnp.argsort(jnp.argsort(C))
        return PathState(
            mean=mean,
            axes=axes,
            totals=totals,
            curvature=scale[..., None] * jnp.concatenate([_CURVATURE * variances, one]),
            C=jnp.sort(C),
            place=place,
            search=lbfgs.start(params, len(C)),
        )

    def start(data: Batch, weights: Array, C: Array) -> PathState:
        return begin(summarise(data, weights), C)

    def curve(state: PathState) -> lbfgs.Curve:
        return lbfgs.Curve(
            curvature=state.curvature,
            penalised=jnp.ones(state.curvature.shape[-1]).at[-1].set(0),
            penalties=columns / (state.C[:, None] * state.totals),
        )

    def advance(
        state: PathState,
        data: Batch,
        weights: Array,
        C: Array,
        evaluations: int | Array = 16,
    ) -> PathState:
        del C  # sorted, in the state
        rows = _rows(data, weights, classes, softmax, factors)
        # Turned into their axes once, for all evaluations.
        chunks = lax.map(
            lambda chunk: _features(chunk, state.mean, state.axes),
            _chunks(rows, _chunk(rows, classes)),
        )

        def mean_loss(params: Array) -> tuple[Array, Array]:
            total = _sum_chunks(evaluate, params, chunks)
            return averages(state, total)

        search = lbfgs.advance(
            mean_loss,
            curve(state),
            state.search,
            evaluations,
            tolerance=tolerance,
            floor=floor,
            max_iterations=max_iterations,
        )
        return state._replace(search=search)

    def averages(state: PathState, total: tuple[Array, Array]) -> tuple[Array, Array]:
        loss, gradient = lax.psum(total, axis) if axis else total
        totals = state.totals
        return loss / totals, gradient / totals[:, None, None]

    def trial(state: PathState) -> _Point:
        # Where every evaluation sees the rows anew, it is the parameters that turn.
        params = lbfgs.trial(state.search)
        return _Point(_turned(params, state.axes.T), state.mean)

    def measure(point: _Point, data: Batch, weights: Array) -> tuple[Array, Array]:
        rows = _rows(data, weights, classes, softmax, factors)
        return _sum_chunks(
            evaluate,
            point.params,
            _chunks(rows, _chunk(rows, classes)),
            lambda chunk: _features(chunk, point.mean),
        )

    def observe(state: PathState, sums: tuple[Array, Array]) -> PathState:
        loss, gradient = averages(state, sums)
        search = lbfgs.observe(
            curve(state),
            state.search,
            loss,
            _turned(gradient, state.axes),
            tolerance=tolerance,
            floor=floor,
            max_iterations=max_iterations,
        )
        return state._replace(search=search)

    def share(state: PathState) -> Array:
        position = state.search.position
        done = jnp.mean(position.astype(jnp.float32)) / len(state.C)
        # Not 1 by rounding.
        return jnp.where(lbfgs.done(state.search), 1.0, jnp.minimum(done, 0.999))

    def solution(state: PathState) -> tuple[Params, PathInfo]:
        search = state.search
        solutions = search.solutions[state.place]
        shape = (len(state.C), -1, classes)
        kernel = jnp.einsum(
            "cugj,dj->cdug",
            solutions[..., :-1],
            state.axes,
            precision=lax.Precision.HIGHEST,
        )
        kernel = kernel.reshape(*kernel.shape[:2], -1, classes).swapaxes(1, 2)
        bias = solutions[..., -1].reshape(shape)
        if softmax:
            bias = bias - jnp.mean(bias, axis=-1, keepdims=True)
        bias = bias - jnp.einsum(
            "d,cldk->clk", state.mean, kernel, precision=lax.Precision.HIGHEST
        )
        value = divisor(search.info.objective)
        info = search.info._replace(
            gradient_norm=search.info.gradient_norm / jnp.sqrt(value),
            objective=search.info.objective * state.C[:, None] * state.totals,
        )
        by_lane = (len(state.C), -1, 1 if softmax else classes)
        iterations, norm, objective, converged = (
            leaf[state.place].reshape(by_lane) for leaf in info
        )
        return {"output": {"kernel": kernel, "bias": bias}}, PathInfo(
            jnp.max(iterations, axis=-1),
            jnp.max(norm, axis=-1),
            jnp.sum(objective, axis=-1),
            jnp.all(converged, axis=-1),
        )

    def merge(a: _Summary, b: _Summary) -> _Summary:
        moments = add(a.moments, b.moments)
        return _Summary(moments, a.counts + b.counts, a.entries + b.entries)

    passes = Passes(
        summarise,
        merge,
        lambda summary, hyperparameters: begin(summary, hyperparameters["C"]),
        trial,
        measure,
        observe,
        share,
        solution,
    )
    return LogisticPieces(start, advance, share, solution, passes)


@jax.jit
def _share(state: PathState) -> Array:
    return logistic_pieces(1).share(state)


def _finite(x: Array) -> Array:
    return jnp.all(jnp.isfinite(x), axis=1)


def _rows(
    data: Batch, weights: Array, classes: int, softmax: bool, factors: Array | None
) -> _Rows:
    """Checks shapes; absent rows weigh 0, and no label is NaN."""
    x, labels = data.x, data.labels
    count = len(labels)
    whole = jnp.issubdtype(labels.dtype, jnp.integer)
    if getattr(x, "ndim", 0) != 2 or len(x) != count:
        raise ValueError(
            f"data.x has shape {getattr(x, 'shape', None)}: expected [rows, dim] with"
            f" {count} rows, one a label; pool tokens first"
        )
    if labels.shape != ((count,) if whole else (count, classes)):
        raise ValueError(
            f"data.labels is {labels.dtype} {labels.shape}: expected class numbers,"
            f" int [rows], or an entry a class, float [rows, {classes}]"
        )
    if weights.ndim != 2 or len(weights) != count:
        raise ValueError(
            f"weights has shape {weights.shape}: expected [rows, lanes] with {count}"
            " rows, one a label"
        )
    weights = (data.weights[:, None] * weights).astype(jnp.float32)
    entries = None
    if whole:
        present = labels >= 0
        labels = jnp.maximum(labels, 0)
        if not softmax:
            labels = (labels[:, None] == jnp.arange(classes)).astype(jnp.float32)
            entries = jnp.ones((count, classes))
    else:
        known = ~jnp.isnan(labels)
        labels = jnp.where(known, labels, 0).astype(jnp.float32)
        present = jnp.ones(count, bool)
        if softmax:
            present = jnp.all(known, axis=1)
        else:
            entries = known.astype(jnp.float32)
    if factors is not None and softmax:
        own = factors[labels] if labels.ndim == 1 else exact(labels, factors)
        weights = weights * own[:, None]
    elif factors is not None and entries is not None:
        entries = entries * factors
    weights = jnp.where(present[:, None] & (weights > 0), weights, 0)
    # A lane that counts on a row that is not finite gets NaN, and the others nothing.
    broken = ~_finite(x)[:, None] & (weights > 0)
    return _Rows(x, labels, entries, jnp.where(broken, jnp.nan, weights))


def _chunk(rows: _Rows, classes: int) -> int:
    """How many rows at a time: their logits stay in a core's cache, or fill a chip."""
    logits = 2**19 if jax.default_backend() == "cpu" else 2**24
    width = rows.weights.shape[1] * classes
    most = max(logits // width, 128)
    count = len(rows.weights)
    return -(-count // -(-count // most))


def _chunks(rows: _Rows, size: int) -> _Rows:
    """Rows cut up, `[chunks, size]` leading; those that fill up are absent."""
    count = len(rows.weights)
    chunks = -(-count // size)

    def cut(array: Array) -> Array:
        padding = [(0, chunks * size - count)] + [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array, padding).reshape(chunks, size, *array.shape[1:])

    return jax.tree.map(cut, rows)


def _features(chunk: _Rows, mean: Array, axes: Array | None = None) -> _Rows:
    """Rows last but in `x`: about the mean, in its axes, and a column of 1."""
    x = jnp.where(_finite(chunk.x)[:, None], chunk.x.astype(jnp.float32) - mean, 0)
    x = x if axes is None else exact(x, axes)
    x = jnp.concatenate([x, jnp.ones((len(x), 1))], axis=1)
    entries = None if chunk.entries is None else chunk.entries.T
    return _Rows(x, chunk.labels.T, entries, chunk.weights.T)


def _turned(params: Array, axes: Array) -> Array:
    """Parameters, or a gradient, in other axes; the intercept as it is."""
    return jnp.concatenate([exact(params[..., :-1], axes), params[..., -1:]], axis=-1)


def _sum_chunks(
    evaluate: Callable[[Array, _Rows], tuple[Array, Array]],
    params: Array,
    chunks: _Rows,
    features: Callable[[_Rows], _Rows] = lambda chunk: chunk,
) -> tuple[Array, Array]:
    """Loss `[units]` and gradient as `params`, `[units, classes, dim + 1]`."""
    flat = params.reshape(-1, params.shape[-1])

    def add(total: tuple[Array, Array], chunk: _Rows):
        chunk = features(chunk)
        # Rows last: reductions over classes then run over whole vectors, and neither
        # product needs a transposed copy.
        logits = exact(flat, chunk.x.T)
        loss, slopes = evaluate(logits.reshape(*params.shape[:2], -1), chunk)
        gradient = exact(slopes.reshape(len(flat), -1), chunk.x)
        return (total[0] + loss, total[1] + gradient), None

    empty = (jnp.zeros(len(params)), jnp.zeros_like(flat))
    (loss, gradient), _ = lax.scan(add, empty, chunks)
    return loss, gradient.reshape(params.shape)


def _softmax(logits: Array, chunk: _Rows) -> tuple[Array, Array]:
    """Weighted losses `[lanes]` and slopes of `[lanes, classes, rows]` logits."""
    weights, labels = chunk.weights, chunk.labels
    top = jnp.max(logits, axis=1, keepdims=True)
    powers = jnp.exp(logits - top)
    if labels.ndim == 2:
        whole = jnp.sum(powers, axis=1, keepdims=True)
        log_p = logits - top - jnp.log(whole)
        loss = -jnp.sum(labels * log_p, axis=1)
        slopes = jnp.sum(labels, axis=0) * (powers / whole) - labels
        return jnp.sum(weights * loss, axis=1), weights[:, None] * slopes
    # From the other classes alone: 1 - p is not lost to rounding where p is near 1.
    own = jnp.arange(logits.shape[1])[:, None] == labels
    others = jnp.sum(jnp.where(own, 0, powers), axis=1)
    margin = jnp.sum(jnp.where(own, logits - top, 0), axis=1)
    whole = others + jnp.exp(margin)
    loss = jnp.where(margin == 0, jnp.log1p(others), jnp.log(whole) - margin)
    factor = weights / whole
    slopes = jnp.where(own, -(factor * others)[:, None], factor[:, None] * powers)
    return jnp.sum(weights * loss, axis=1), slopes


def _sigmoid(logits: Array, chunk: _Rows) -> tuple[Array, Array]:
    """Weighted losses `[units]` and slopes of `[units, 1, rows]` logits."""
    assert chunk.entries is not None
    lanes = len(chunk.weights)
    logits = logits.reshape(lanes, -1, logits.shape[-1])
    weights = chunk.weights[:, None] * chunk.entries
    targets = chunk.labels
    power = jnp.exp(-jnp.abs(logits))
    loss = jnp.maximum(logits, 0) - targets * logits + jnp.log1p(power)
    # sigmoid(z) and 1 - sigmoid(z) = sigmoid(-z), each without cancellation.
    on = jnp.where(logits >= 0, 1, power) / (1 + power)
    off = jnp.where(logits >= 0, power, 1) / (1 + power)
    slopes = weights * ((1 - targets) * on - targets * off)
    return jnp.sum(weights * loss, axis=-1).ravel(), slopes
