"""The teacher's probabilities -> the target distribution."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from flaxhead.base import Array, PyTree
from flaxhead.objectives.consistency import Reading, Seen, check_share
from flaxhead.objectives.rows import row_mean


def soft() -> Reading:
    """The probabilities as they are."""
    return stateless(lambda p: p)


def hard() -> Reading:
    """All on the likeliest class."""
    return stateless(lambda p: jax.nn.one_hot(jnp.argmax(p, axis=-1), p.shape[-1]))


def sharpen(temperature: float | Array) -> Reading:
    r"""The softmax at a temperature: \(p_c^{1/T} / \sum_k p_k^{1/T}\).

    Args:
      temperature: 1 is `soft()`, towards 0 it is `hard()`; may be traced.

    Raises:
      ValueError: if `temperature` is a number of 0 or less.
    """
    _check_temperature(temperature)
    return stateless(lambda p: jax.nn.softmax(_log(p) / temperature))


def sigmoid_sharpen(temperature: float | Array, confidence: float | Array) -> Reading:
    r"""The sigmoid at a temperature, of labels that are on or off for sure.

    A label is 1 with the probability \(p^{1/T} / (p^{1/T} + (1 - p)^{1/T})\). Where
    neither \(p\) nor \(1 - p\) reaches the confidence it is NaN, missing, which
    `sigmoid_cross_entropy` leaves out: each label of a row is selected by itself.

    Args:
      temperature: as for `sharpen`.
      confidence: the least probability of a label's being on, or off; may be traced.

    Raises:
      ValueError: if `temperature` is a number of 0 or less, or `confidence` is one
        outside of `[0, 1]`.

    >>> from flaxhead.objectives.consistency import Seen
    >>> p = jnp.array([[0.75, 0.25, 0.6]])
    >>> seen = Seen(p, p, jnp.ones(1), jnp.array([False]), jnp.arange(1))
    >>> target, _ = sigmoid_sharpen(0.5, 0.7).apply((), seen, None)
    >>> [round(float(on), 2) for on in target[0]]
    [0.9, 0.1, nan]
    """
    _check_temperature(temperature)
    check_share("confidence of sigmoid_sharpen", confidence)

    def sharpened(p: Array) -> Array:
        sure = jnp.maximum(p, 1 - p) >= confidence
        return jnp.where(
            sure, jax.nn.sigmoid((_log(p) - _log(1 - p)) / temperature), jnp.nan
        )

    return stateless(sharpened)


def align(
    reading: Reading,
    *,
    prior: ArrayLike | None = None,
    decay: float | Array = 0.999,
) -> Reading:
    r"""A target or a selection that sees probabilities aligned to a class prior.

    It sees \(p_c\, \pi_c / \bar p_c\), divided by its sum, where \(\bar p\) is the
    running mean of the probabilities and \(\pi\) the prior, or, if none is given, the
    running mean of those of the labelled rows. Both begin uniform.

    Source: Berthelot et al., 2020, "ReMixMatch" (a prior that is known); Berthelot et
    al., 2022, "AdaMatch" (the running one, there of the batch alone: decay 0).

    Args:
      reading: what sees them.
      prior: `[classes]`, sums to 1.
      decay: how much of the running means a batch keeps; may be traced.

    Returns:
      A `Reading` like that given.

    Raises:
      ValueError: if `decay` is a number outside of `[0, 1]`, or, by `init`, if the
        prior is of another number of classes.

    >>> from flaxhead.objectives.consistency import Seen
    >>> p = jnp.array([[0.75, 0.25], [0.75, 0.25]])
    >>> seen = Seen(p, p, jnp.ones(2), jnp.array([False, False]), jnp.arange(2))
    >>> even = align(soft(), prior=[0.5, 0.5], decay=0.0)
    >>> even.apply(even.init(2, 2), seen, None)[0].tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    check_share("decay of align", decay)
    given = None if prior is None else jnp.asarray(prior, jnp.float32)

    def init(classes: int, rows: int) -> PyTree:
        if given is not None and given.shape != (classes,):
            raise ValueError(
                f"prior of align is of shape {list(given.shape)}: expected [{classes}],"
                " one a class"
            )
        mean = jnp.full(classes, 1 / classes)
        wanted = jnp.full(classes, 1 / classes) if given is None else ()
        return reading.init(classes, rows), mean, wanted

    def apply(memory: PyTree, seen: Seen, axis: str | None) -> tuple[Array, PyTree]:
        inner, mean, wanted = memory
        p = seen.probabilities
        mean = running(mean, p, seen.weights, decay, axis)
        if given is None:
            labelled = jnp.where(seen.labelled, seen.weights, 0)
            wanted = running(wanted, p, labelled, decay, axis)
        towards = wanted if given is None else given
        aligned = jax.nn.softmax(_log(p) + _log(towards) - _log(mean))
        value, inner = reading.apply(inner, seen._replace(probabilities=aligned), axis)
        return value, (inner, mean, wanted)

    return Reading(init, apply)


def stateless(function: Callable[[Array], Array]) -> Reading:
    """A reading of the probabilities alone, without memory."""

    def apply(memory: PyTree, seen: Seen, axis: str | None) -> tuple[Array, PyTree]:
        del axis
        return function(seen.probabilities), memory

    return Reading(lambda classes, rows: (), apply)


def running(
    old: Array, values: Array, weights: Array, decay: float | Array, axis: str | None
) -> Array:
    """Moves a running mean to that of the batch; one without a row leaves it.

    Args:
      old: `[...]`, the mean so far.
      values: `[rows, ...]`.
      weights: `[rows]`, a row of weight 0 is absent.
      decay: how much of the old one is kept.
      axis: name of the device axis, None for one device.
    """
    # The share of rows that are there is above 0 if any is.
    any_row = row_mean(jnp.ones_like(weights), weights, axis) > 0
    new = decay * old + (1 - decay) * row_mean(values, weights, axis)
    return jnp.where(any_row, new, old)


def _check_temperature(temperature: float | Array) -> None:
    if isinstance(temperature, int | float) and temperature <= 0:
        raise ValueError(f"temperature is {temperature}: expected one above 0")


def _log(p: Array) -> Array:
    return jnp.log(jnp.maximum(p, jnp.finfo(jnp.float32).tiny))
