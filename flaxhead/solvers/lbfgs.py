"""Many L-BFGS runs side by side, each going along its own path of penalties.

A *unit* minimises `loss(params) + penalty / 2 * |params|^2` for one penalty after the
other. One iteration of the loop is one evaluation for all units at once, which is where
the time goes; what a unit does with its own is decided by arrays, with no inner loop.
A unit that is done with a penalty goes on to its next in the same iteration, so that
none waits for another.

The inverse Hessian starts from a diagonal and carries its pairs of steps and gradient
differences over to the next penalty: the pairs hold differences of the loss's gradient
alone, to which the penalty's share is added where they are used. A path is smooth in
the logarithm of the penalty, so the first step towards a new one goes on along the line
through the last two solutions, if that is downhill.

Source: Nocedal and Wright, 2006, "Numerical optimization", section 7.2; the acceptance
of steps whose change is lost in rounding: Hager and Zhang, 2005, "A new conjugate
gradient method with guaranteed descent and an efficient line search".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flaxhead.base import Array

_MEMORY = 8
_DECREASE = 1e-4
# Losses that differ by less, relatively, may be the same but for rounding.
_ROUNDING = 1e-6
_MAX_REJECTIONS = 10
# Rounding hides that the value goes down long before the gradient is as small as it
# gets, so either counts as progress.
_MAX_IDLE = 30


class Info(NamedTuple):
    """How each problem of the path ended, `[penalties, units]`.

    Attributes:
      iterations: evaluations.
      gradient_norm: of the whole objective, in the metric of the inverse Hessian: the
        root of `g' H^-1 g`. The excess over the minimum is about half its square.
      objective: `loss + penalty / 2 * |params|^2`.
      converged: whether the norm was small enough.
    """

    iterations: Array
    gradient_norm: Array
    objective: Array
    converged: Array


class State(NamedTuple):
    """Where every unit is, arrays only; `[units]` leading, or as said.

    Attributes:
      evaluations: `int32 []`, how many there were, each for all units.
      position: which penalty a unit is at; the number of penalties when it is done.
      spent: evaluations at this penalty.
      rejections: trials turned down since the last that was not.
      idle: evaluations since one that lowered the value by more than rounding, or the
        norm.
      lowest: the square of the smallest norm at this penalty.
      params: the best so far.
      loss: at `params`, without the penalty.
      gradient: the loss's.
      previous: the solution for the penalty before.
      direction: what the next trial adds to `params`.
      steps: `[memory, units, ...]`, the latest differences of trials to `params`.
      changes: what the loss's gradient changed by in each.
      products: `[memory, units]`, of a step and its change.
      squares: `[memory, units]`, of a step, its penalised part.
      solutions: `[penalties, units, ...]`.
      info: of each solution.
    """

    evaluations: Array
    position: Array
    spent: Array
    rejections: Array
    idle: Array
    lowest: Array
    params: Array
    loss: Array
    gradient: Array
    previous: Array
    direction: Array
    steps: Array
    changes: Array
    products: Array
    squares: Array
    solutions: Array
    info: Info


class Curve(NamedTuple):
    """What is known of the losses, and what is added to them.

    Attributes:
      curvature: the loss's Hessian's diagonal, roughly, as `params`.
      penalised: 1 where a parameter is penalised, 0 where not, `[dim]`.
      penalties: `[penalties, units]`, descending.
    """

    curvature: Array
    penalised: Array
    penalties: Array


def start(params: Array, penalties: int) -> State:
    """Returns the state before the first evaluation, which will be at `params`."""
    units = len(params)
    zeros = jnp.zeros(units, jnp.int32)
    memory = jnp.zeros((_MEMORY, *params.shape), params.dtype)
    numbers = jnp.zeros((penalties, units))
    info = Info(numbers.astype(jnp.int32), numbers, numbers, numbers > 0)
    return State(
        evaluations=jnp.int32(0),
        position=zeros,
        spent=zeros,
        rejections=zeros,
        idle=zeros,
        lowest=jnp.full(units, jnp.inf),
        params=params,
        loss=jnp.full(units, jnp.inf),
        gradient=jnp.zeros_like(params),
        previous=params,
        direction=jnp.zeros_like(params),
        steps=memory,
        changes=memory,
        products=jnp.zeros((_MEMORY, units)),
        squares=jnp.zeros((_MEMORY, units)),
        solutions=jnp.zeros((penalties, *params.shape), params.dtype),
        info=info,
    )


def done(state: State) -> Array:
    """Whether every unit is through its path, `bool []`."""
    return jnp.all(state.position >= state.solutions.shape[0])


def advance(
    evaluate: Callable[[Array], tuple[Array, Array]],
    curve: Curve,
    state: State,
    evaluations: int | Array,
    *,
    tolerance: float | Array,
    floor: float | Array,
    max_iterations: int | Array,
) -> State:
    """Goes on for so many evaluations, or until every unit is done.

    Args:
      evaluate: `params -> (loss [units], gradient [units, ...])`.
      curve: what else there is to minimise.
      state: where it was left.
      evaluations: at most so many, each for all units; may be traced.
      tolerance: as of `observe`, and so are the others.
      floor: see `observe`.
      max_iterations: see `observe`.

    Returns:
      The state after them.
    """
    last = state.evaluations + evaluations

    def unfinished(state: State) -> Array:
        return ~done(state) & (state.evaluations < last)

    def iterate(state: State) -> State:
        loss, gradient = evaluate(trial(state))
        return observe(
            curve,
            state,
            loss,
            gradient,
            tolerance=tolerance,
            floor=floor,
            max_iterations=max_iterations,
        )

    return lax.while_loop(unfinished, iterate, state)


def trial(state: State) -> Array:
    """Returns the parameters to evaluate next, `[units, ...]`."""
    return state.params + state.direction


def observe(
    curve: Curve,
    state: State,
    loss: Array,
    gradient: Array,
    *,
    tolerance: float | Array,
    floor: float | Array,
    max_iterations: int | Array,
) -> State:
    """Goes on by one evaluation, wherever it was made.

    Args:
      curve: what is minimised, but for the losses.
      state: where it was left.
      loss: `[units]`, at `trial(state)`, without the penalty.
      gradient: `[units, ...]`, the loss's.
      tolerance: of half the square of the norm, as a share of the objective.
      floor: the objective is taken for no less.
      max_iterations: evaluations a penalty, after which a unit goes on to the next.

    Returns:
      The state after it.
    """
    count, units = curve.penalties.shape
    each = jnp.arange(units)
    penalty = curve.penalties[jnp.minimum(state.position, count - 1), each]

    def total(params: Array, loss: Array, gradient: Array) -> tuple[Array, Array]:
        shrunk = curve.penalised * params
        value = loss + penalty / 2 * _dot(shrunk, params)
        return value, gradient + _over(penalty, params) * shrunk

    value, slope = total(state.params, state.loss, state.gradient)
    # A trial, and what it tells.
    tried = trial(state)
    trial_value, trial_slope = total(tried, loss, gradient)
    before = _dot(slope, state.direction)
    after = _dot(trial_slope, state.direction)
    # The problem is convex: where it still goes down at the trial, it went down all of
    # the way, whatever rounding makes of the values.
    accepted = (
        (trial_value <= value + _DECREASE * before)
        | (after <= 0)
        | ((trial_value <= value * (1 + _ROUNDING)) & (after <= -0.9 * before))
    )
    accepted &= jnp.isfinite(trial_value) & jnp.isfinite(after)
    active = state.position < count

    # Of a rejected trial the pair holds just as well, and shortens the next step.
    change = gradient - state.gradient
    product = _dot(state.direction, change)
    slot = state.evaluations % _MEMORY
    useful = active & jnp.isfinite(product)
    useful &= product > 1e-7 * _dot(state.direction, state.direction) ** 0.5 * (
        _dot(change, change) ** 0.5
    )
    kept = _over(useful, change)
    steps = state.steps.at[slot].set(jnp.where(kept, state.direction, 0))
    changes = state.changes.at[slot].set(jnp.where(kept, change, 0))
    products = state.products.at[slot].set(jnp.where(useful, product, 0))
    own = _dot(curve.penalised * state.direction, state.direction)
    squares = state.squares.at[slot].set(jnp.where(useful, own, 0))

    taken = active & accepted
    params = jnp.where(_over(taken, tried), tried, state.params)
    loss = jnp.where(taken, loss, state.loss)
    gradient = jnp.where(_over(taken, tried), gradient, state.gradient)
    slope = jnp.where(_over(taken, tried), trial_slope, slope)
    # The first trial is the start itself, whose value before counts as infinite.
    lower = accepted & ((trial_value < value * (1 - 2e-7)) | jnp.isinf(value))
    value = jnp.where(taken, trial_value, value)
    rejections = jnp.where(accepted, 0, state.rejections + 1)
    spent = state.spent + active

    direction = -_inverse_hessian(
        curve, steps, changes, products, squares, slot, penalty, slope
    )
    # Half of it is what a Newton step would gain.
    square = -_dot(slope, direction)
    lower |= accepted & (square < 0.9 * state.lowest)
    lowest = jnp.where(accepted, jnp.minimum(square, state.lowest), state.lowest)
    idle = jnp.where(lower, 0, state.idle + 1)
    converged = square / 2 <= tolerance * jnp.maximum(value, floor)
    stalled = (rejections > _MAX_REJECTIONS) | (idle > _MAX_IDLE)
    leaves = converged | stalled | (spent >= max_iterations)

    def record(all_of_it: Array, new: Array) -> Array:
        # A unit that is done is at a position that there is not: nothing is written.
        return all_of_it.at[state.position, each].set(new, mode="drop")

    solutions = record(state.solutions, params)
    info = jax.tree.map(record, state.info, Info(spent, square**0.5, value, converged))

    # Towards the next penalty: along the line through the last two solutions.
    position = state.position + (active & leaves)
    following = curve.penalties[jnp.minimum(position, count - 1), each]
    latest = curve.penalties[jnp.maximum(position - 2, 0), each]
    ratio = jnp.log(penalty / following) / jnp.maximum(jnp.log(latest / penalty), 1e-3)
    secant = _over(ratio, params) * (params - state.previous)
    next_slope = gradient + _over(following, params) * curve.penalised * params
    downhill = (position >= 2) & (_dot(next_slope, secant) < 0)
    steepest = -next_slope / _diagonal(curve, following)
    secant = jnp.where(_over(downhill, secant), secant, steepest)
    # Every rejection in a row halves the next step once more.
    direction = direction * _over(0.5 ** jnp.maximum(rejections - 1, 0), direction)
    moved = active & leaves
    direction = jnp.where(_over(moved, secant), secant, direction)
    return State(
        evaluations=state.evaluations + 1,
        position=position,
        spent=jnp.where(moved, 0, spent),
        rejections=jnp.where(moved, 0, rejections),
        idle=jnp.where(moved, 0, idle),
        lowest=jnp.where(moved, jnp.inf, lowest),
        params=params,
        loss=loss,
        gradient=gradient,
        previous=jnp.where(_over(moved, params), params, state.previous),
        direction=direction,
        steps=steps,
        changes=changes,
        products=products,
        squares=squares,
        solutions=solutions,
        info=info,
    )


def _inverse_hessian(
    curve: Curve,
    steps: Array,
    changes: Array,
    products: Array,
    squares: Array,
    slot: Array,
    penalty: Array,
    vector: Array,
) -> Array:
    """The two loops, over the pairs from the newest to the oldest, and back."""
    products = products + penalty * squares
    inverse = jnp.where(products > 0, 1 / jnp.where(products > 0, products, 1), 0)
    ridge = _over(penalty, vector) * curve.penalised

    def backwards(number: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        vector, factors = carry
        index = (slot - number) % _MEMORY
        factor = inverse[index] * _dot(steps[index], vector)
        change = changes[index] + ridge * steps[index]
        return vector - _over(factor, vector) * change, factors.at[index].set(factor)

    vector, factors = lax.fori_loop(
        0, _MEMORY, backwards, (vector, jnp.zeros_like(products))
    )
    diagonal = _diagonal(curve, penalty)
    # The latest step tells where the diagonal is too large, as it is meant to be.
    latest = changes[slot] + ridge * steps[slot]
    scale = products[slot] / _dot(latest, latest / diagonal)
    scale = jnp.where(inverse[slot] > 0, jnp.clip(scale, 1.0, 1e3), 1.0)
    vector = _over(scale, vector) * vector / diagonal

    def forwards(number: Array, vector: Array) -> Array:
        index = (slot + 1 + number) % _MEMORY
        change = changes[index] + ridge * steps[index]
        factor = factors[index] - inverse[index] * _dot(change, vector)
        return vector + _over(factor, vector) * steps[index]

    return lax.fori_loop(0, _MEMORY, forwards, vector)


def _diagonal(curve: Curve, penalty: Array) -> Array:
    diagonal = curve.curvature + _over(penalty, curve.curvature) * curve.penalised
    return jnp.where(diagonal > 0, diagonal, 1)


def _dot(left: Array, right: Array) -> Array:
    """Unit by unit, `[units]`."""
    return jnp.sum(left * right, axis=tuple(range(1, left.ndim)))


def _over(numbers: Array, like: Array) -> Array:
    """Numbers a unit, in the shape that goes with its parameters."""
    return numbers.reshape(-1, *[1] * (like.ndim - 1))
