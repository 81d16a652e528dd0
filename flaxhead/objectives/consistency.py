"""Predictions of one view as the targets of another: one function of six slots.

    weak views -> teacher -> probabilities -> target ------> divergence -> term
                                         `--> select (weight) --^   ^
    strong views -> head ---------------------------------- logits -'

No label is read. `align` and `relative_threshold` read whether a row has one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from flaxhead.base import Array, Batch, Head, Objective, Params, PyTree, Sums, View
from flaxhead.losses import sigmoid_binary_cross_entropy
from flaxhead.metrics import Output
from flaxhead.objectives.rows import (
    known,
    row_keys,
    row_sums,
    side_key,
    train_logits,
)

Views: TypeAlias = View | tuple[View, ...]
Divergence: TypeAlias = Callable[[Array, Array], Array]
"""`(target [rows, classes], logits [rows, classes]) -> [rows]`."""


class Teacher(NamedTuple):
    """Whose predictions are the targets.

    Attributes:
      init: `(params) -> memory`.
      apply: `(memory, params) -> (the teacher's params, memory)`.
    """

    init: Callable[[Params], PyTree]
    apply: Callable[[PyTree, Params], tuple[Params, PyTree]]


class Seen(NamedTuple):
    """What the teacher sees in a batch.

    Attributes:
      probabilities: `[rows, classes]`, aligned where that has been asked for.
      given: `[rows, classes]`, as the teacher gave them.
      weights: `[rows]`; a row of weight 0 is absent.
      labelled: `bool [rows]`, whether a row has a label.
      index: `int32 [rows]`, the row's number in the whole data.
    """

    probabilities: Array
    given: Array
    weights: Array
    labelled: Array
    index: Array  # pyright: ignore[reportIncompatibleMethodOverride]


class Reading(NamedTuple):
    """What is made of it: a target or a weight of each row.

    Attributes:
      init: `(classes, rows) -> memory`, where `rows` is that of the whole data.
      apply: `(memory, seen, axis) -> (target [rows, classes] or weight [rows],
        memory)`, where `axis` names the device axis, None for one device.
    """

    init: Callable[[int, int], PyTree]
    apply: Callable[[PyTree, Seen, str | None], tuple[Array, PyTree]]


def consistency(
    head: Head,
    *,
    classes: int,
    views: tuple[Views, Views],
    teacher: Teacher,
    target: Reading,
    select: Reading,
    divergence: Divergence,
    rows: int = 0,
    axis: str | None = None,
    output: Output = "softmax",
) -> Objective:
    r"""What a head says of strong views, held to what a teacher says of weak ones.

    Over all rows of weight above 0, whether labelled or not, it is the weighted mean of
    \(s(q) D(t(q), p_{strong})\), where \(q\) is the teacher's prediction, \(t\) the
    target, and \(s\) the weight that selects. Neither has a gradient. The divisor is
    the weight of all rows, not of those selected.

    Args:
      head: embeddings -> logits. The teacher's pass has noise (dropout) too.
      classes: the number of logits.
      views: weak and strong. Of several weak ones (a tuple) the predictions are
        averaged, of several strong ones the divergences.
      teacher: `itself()` or `ema_teacher(decay)`.
      target: `soft()`, `hard()`, `sharpen(temperature)`, also within `align`.
      select: `everything()`, `threshold(confidence)` and kin, also within `align`.
      divergence: `cross_entropy`, `squared` or `kl`; of sigmoids
        `sigmoid_cross_entropy` or `sigmoid_squared`.
      rows: of the whole data; `flex_threshold` needs to know.
      axis: name of the device axis over which batches are split; None for one device.
        Running statistics are over all devices. Give views theirs.
      output: what turns the teacher's logits into probabilities, `softmax`, or
        `sigmoid` of several labels a row. Those are read by `soft`, `sigmoid_sharpen`
        and `everything`; what asks for the likeliest class has no meaning there.

    Returns:
      An `Objective` of the one term `consistency`, whose memory is that of the teacher,
      the target and the selection.

    >>> from flaxhead.heads import linear
    >>> from flaxhead.objectives import hard, identity, noise, threshold
    >>> head, x = linear(2, zero_init=False), jnp.ones([3, 4])
    >>> fixmatch = consistency(
    ...     head,
    ...     classes=2,
    ...     views=(identity, noise(0.5)),
    ...     teacher=itself(),
    ...     target=hard(),
    ...     select=threshold(0.95),
    ...     divergence=cross_entropy,
    ... )
    >>> params = head.init(jax.random.key(0), x)
    >>> batch = Batch(x, jnp.full(3, -1), jnp.ones(3), jnp.arange(3))
    >>> memory, key = fixmatch.init(params), jax.random.key(1)
    >>> sums, memory = jax.jit(fixmatch.apply)(params, memory, batch, key)
    >>> list(sums), float(sums["consistency"].count)
    (['consistency'], 3.0)
    """
    probabilities = jax.nn.softmax if output == "softmax" else jax.nn.sigmoid
    weak, strong = (each if isinstance(each, tuple) else (each,) for each in views)

    def init(params: Params) -> PyTree:
        return (
            teacher.init(params),
            target.init(classes, rows),
            select.init(classes, rows),
        )

    def apply(
        params: Params, memory: PyTree, batch: Batch, key: Array
    ) -> tuple[dict[str, Sums], PyTree]:
        of_teacher, of_target, of_select = memory

        def logits(params: Params, view: View, number: int) -> Array:
            x = view(batch, side_key(key, 2 * number)).x
            keys = row_keys(side_key(key, 2 * number + 1), batch.index)
            return train_logits(head, params, x, keys, batch.weights)

        fixed, of_teacher = teacher.apply(of_teacher, jax.lax.stop_gradient(params))
        guesses = [
            probabilities(logits(fixed, view, number))
            for number, view in enumerate(weak)
        ]
        guess = jax.lax.stop_gradient(sum(guesses, jnp.zeros(())) / len(weak))
        seen = Seen(guess, guess, batch.weights, known(batch), batch.index)
        wanted, of_target = target.apply(of_target, seen, axis)
        chosen, of_select = select.apply(of_select, seen, axis)
        values = [
            divergence(wanted, logits(params, view, number))
            for number, view in enumerate(strong, start=len(weak))
        ]
        value = chosen * sum(values, jnp.zeros(())) / len(strong)
        memory = (of_teacher, of_target, of_select)
        return {"consistency": row_sums(value, batch)}, memory

    return Objective(init, apply)


def itself() -> Teacher:
    """The head is its own teacher."""
    return Teacher(lambda params: (), lambda memory, params: (params, memory))


def ema_teacher(decay: float | Array) -> Teacher:
    """The running average of the head's parameters, these included.

    Source: Tarvainen and Valpola, 2017, "Mean teachers are better role models".

    Args:
      decay: how much of the average a step keeps; 0 is the head itself. May be traced.

    Raises:
      ValueError: if `decay` is a number outside of `[0, 1]`.
    """
    check_share("decay of ema_teacher", decay)

    def init(params: Params) -> PyTree:
        # A copy: memory and parameters may be donated to the next step, but not twice.
        return jax.tree.map(jnp.copy, params)

    def apply(memory: PyTree, params: Params) -> tuple[Params, PyTree]:
        memory = jax.tree.map(
            lambda old, new: decay * old + (1 - decay) * new, memory, params
        )
        return memory, memory

    return Teacher(init, apply)


def cross_entropy(target: Array, logits: Array) -> Array:
    r"""\(-\sum_c t_c \log p_c\), a divergence."""
    return -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)


def kl(target: Array, logits: Array) -> Array:
    r"""\(\sum_c t_c (\log t_c - \log p_c)\), a divergence."""
    entropy = -jnp.sum(jax.scipy.special.xlogy(target, target), axis=-1)
    return cross_entropy(target, logits) - entropy


def squared(target: Array, logits: Array) -> Array:
    r"""\(\frac1C \sum_c (t_c - p_c)^2\), a divergence."""
    return jnp.mean((target - jax.nn.softmax(logits)) ** 2, axis=-1)


def sigmoid_cross_entropy(target: Array, logits: Array) -> Array:
    r"""\(-\sum_c t_c \log p_c + (1 - t_c) \log(1 - p_c)\) of sigmoids, a divergence.

    A target of NaN is missing and adds nothing.
    """
    return sigmoid_binary_cross_entropy(logits, target)


def sigmoid_squared(target: Array, logits: Array) -> Array:
    r"""\(\frac1C \sum_c (t_c - p_c)^2\) of sigmoids, a divergence."""
    return jnp.mean((target - jax.nn.sigmoid(logits)) ** 2, axis=-1)


def check_share(name: str, share: float | Array) -> None:
    """Refuses a number outside of `[0, 1]`."""
    if isinstance(share, int | float) and not 0 <= share <= 1:
        raise ValueError(f"{name} is {share}: expected one in [0, 1]")
