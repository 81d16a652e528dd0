"""Optax chains whose settings can be arrays, and so be swept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flaxhead.base import Array, Params, PyTree


class Rule(NamedTuple):
    """How a gradient becomes a step.

    Attributes:
      scale: `(momentum, nesterov) -> optax transformation`, the learning rate apart.
      decoupled: whether weight decay joins after it rather than before.
    """

    scale: Callable[[float, bool], optax.GradientTransformation]
    decoupled: bool


def _momentum(momentum: float, nesterov: bool) -> optax.GradientTransformation:
    return optax.trace(momentum, nesterov) if momentum else optax.identity()


OPTIMIZERS = {
    "sgd": Rule(_momentum, decoupled=False),
    "adam": Rule(lambda *_: optax.scale_by_adam(), decoupled=False),
    "adamw": Rule(lambda *_: optax.scale_by_adam(), decoupled=True),
    "lion": Rule(lambda *_: optax.scale_by_lion(), decoupled=True),
}
"""Name -> rule."""


def _constant(steps: int, warmup: int) -> optax.Schedule:
    del steps, warmup
    return optax.constant_schedule(1.0)


def _cosine(steps: int, warmup: int) -> optax.Schedule:
    del warmup
    return optax.cosine_decay_schedule(1.0, steps)


def _warmup_cosine(steps: int, warmup: int) -> optax.Schedule:
    # Not from 0, which would waste the first step: the i-th is (i + 1) / (warmup + 1).
    return optax.warmup_cosine_decay_schedule(1 / (warmup + 1), 1.0, warmup, steps)


def _one_cycle(steps: int, warmup: int) -> optax.Schedule:
    return optax.cosine_onecycle_schedule(steps, 1.0, pct_start=warmup / steps)


SCHEDULES: dict[str, Callable[[int, int], optax.Schedule]] = {
    "constant": _constant,
    "cosine": _cosine,
    "warmup_cosine": _warmup_cosine,
    "one_cycle": _one_cycle,
}
"""Name -> `(steps, warmup steps) -> (step) -> multiplier`, whose peak is 1."""


def optimizer(
    name: str,
    *,
    learning_rate: float | Array,
    steps: int,
    weight_decay: float | Array = 0.0,
    momentum: float = 0.9,
    nesterov: bool = False,
    schedule: str = "cosine",
    cycles: int = 1,
    warmup_fraction: float = 0.1,
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """An optax chain: clip, decay, scale, and step by the scheduled learning rate.

    Weight decay acts on kernels only: leaves of two or more dimensions, never biases,
    scales or layer normalisation. For `sgd` and `adam` it is the gradient of the
    penalty `weight_decay / 2 * ||w||^2`, added after clipping. For `adamw` and `lion`
    it is decoupled: each step takes `learning_rate * weight_decay * w` off (Loshchilov
    and Hutter, 2019, "Decoupled weight decay regularization").

    Args:
      name: from `OPTIMIZERS`.
      learning_rate: the peak of the schedule; may be a traced scalar.
      steps: the number of steps that the schedule spans.
      weight_decay: may be a traced scalar. A Python 0 costs nothing.
      momentum: of `sgd`; 0 keeps no state.
      nesterov: whether that momentum is Nesterov's.
      schedule: from `SCHEDULES`.
      cycles: how many times the steps go through it, for
        `flaxhead.ensembles.snapshots`: of `cosine` it is `cosine_cycles` there.
      warmup_fraction: share of the steps that warm up, in `[0, 1)`, where the schedule
        has a warm-up.
      clip_norm: largest global norm of the gradient; 0: no clipping.

    Returns:
      An `optax.GradientTransformation`; `update` needs `params`.

    Raises:
      ValueError: if a name is unknown or a number is out of its range.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.ones([2, 2]), "bias": jnp.ones(2)}
    >>> tx = optimizer("sgd", learning_rate=0.5, steps=10, weight_decay=0.1)
    >>> still = {"kernel": jnp.zeros([2, 2]), "bias": jnp.zeros(2)}
    >>> updates, state = tx.update(still, tx.init(params), params)
    >>> bool(jnp.allclose(updates["kernel"], -0.5 * 0.1)), updates["bias"].tolist()
    (True, [-0.0, -0.0])
    """
    _check_name("optimizer", name, OPTIMIZERS)
    _check_name("schedule", schedule, SCHEDULES)
    if steps < 1:
        raise ValueError(f"steps is {steps}: expected 1 or more")
    if not 0 <= warmup_fraction < 1:
        raise ValueError(
            f"warmup_fraction is {warmup_fraction}: expected one in [0, 1)"
        )
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum is {momentum}: expected one in [0, 1)")
    if clip_norm < 0:
        raise ValueError(f"clip_norm is {clip_norm}: expected 0 (off) or more")
    rule = OPTIMIZERS[name]
    if not 1 <= cycles <= steps:
        raise ValueError(f"cycles is {cycles}: expected from 1 to steps, {steps}")
    once = SCHEDULES[schedule](steps, int(warmup_fraction * steps))

    def multiplier(step: Any) -> Any:
        # A schedule of all steps, gone through at the pace of so many cycles.
        return once(step if cycles == 1 else step * cycles % steps)

    chain = [rule.scale(momentum, nesterov)]
    if not (isinstance(weight_decay, int | float) and weight_decay == 0):
        decay = optax.add_decayed_weights(weight_decay, mask=_kernels)
        chain.insert(1 if rule.decoupled else 0, decay)
    if clip_norm:
        chain.insert(0, optax.clip_by_global_norm(clip_norm))
    chain.append(
        optax.scale_by_schedule(lambda step: -learning_rate * multiplier(step))
    )
    return optax.chain(*chain)


def elastic_net(
    l1: float | Array,
    l2: float | Array = 0.0,
    *,
    learning_rate: float | Array | optax.Schedule,
) -> optax.GradientTransformation:
    r"""The proximal step of the penalty `l1 * |w|_1 + l2 / 2 * |w|^2`.

    It comes last in a chain. Of the step's new kernels `w` it makes
    \(\mathrm{sign}(w) \max(|w| - \eta\, l_1, 0) / (1 + \eta\, l_2)\), with the
    learning rate \(\eta\): weights become exactly 0, which a gradient's steps never
    reach. With `l2` 0 it is the lasso's. Biases and scales are left alone.

    Source: Zou and Hastie, 2005, "Regularization and variable selection via the elastic
    net"; Beck and Teboulle, 2009, "A fast iterative shrinkage-thresholding algorithm".

    Args:
      l1: of the absolute values; may be traced. 0, with `l2` 0, is the identity.
      l2: of the squares; may be traced.
      learning_rate: that of the chain before: a number, a traced scalar, or a schedule.

    Returns:
      An `optax.GradientTransformation`; `update` needs `params`.

    Raises:
      ValueError: if a penalty is a negative number.

    >>> import jax.numpy as jnp
    >>> tx = optax.chain(optax.sgd(0.5), elastic_net(1.0, learning_rate=0.5))
    >>> params = {"kernel": jnp.array([[2.0, 0.25]])}
    >>> still = {"kernel": jnp.zeros([1, 2])}
    >>> updates, _ = tx.update(still, tx.init(params), params)
    >>> optax.apply_updates(params, updates)["kernel"].tolist()
    [[1.5, 0.0]]
    """
    for name, penalty in (("l1", l1), ("l2", l2)):
        if isinstance(penalty, int | float) and penalty < 0:
            raise ValueError(f"{name} of elastic_net is {penalty}: expected 0 or more")

    def init(params: Params) -> PyTree:
        del params
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(
        updates: Params, state: PyTree, params: Params | None = None
    ) -> tuple[Params, PyTree]:
        rate = learning_rate
        if callable(rate):
            rate = rate(state.count)
        rate = jnp.asarray(rate)

        def shrunk(kernel: Array) -> Array:
            size = jnp.maximum(jnp.abs(kernel) - rate * l1, 0)
            return jnp.sign(kernel) * size / (1 + rate * l2)

        changed = _on_new_kernels("elastic_net", shrunk, updates, params)
        return changed, optax.ScaleByScheduleState(state.count + 1)

    return optax.GradientTransformation(init, update)


def max_norm(limit: float | Array) -> optax.GradientTransformation:
    """Scales down each unit's weights to a norm, wherever a step has gone beyond.

    It comes last in a chain. A unit's weights are a column of a kernel `[..., units]`.

    Source: Srivastava et al., 2014, "Dropout: a simple way to prevent neural networks
    from overfitting".

    Args:
      limit: the largest norm, above 0; may be traced. Infinity is the identity.

    Returns:
      An `optax.GradientTransformation` without state; `update` needs `params`.

    Raises:
      ValueError: if `limit` is a number of 0 or less.

    >>> import jax.numpy as jnp
    >>> tx = max_norm(1.0)
    >>> params = {"kernel": jnp.array([[3.0], [4.0]])}
    >>> updates, _ = tx.update({"kernel": jnp.zeros([2, 1])}, tx.init(params), params)
    >>> kernel = optax.apply_updates(params, updates)["kernel"]
    >>> bool(jnp.allclose(kernel, jnp.array([[0.6], [0.8]])))
    True
    """
    if isinstance(limit, int | float) and not limit > 0:
        raise ValueError(f"limit of max_norm is {limit}: expected one above 0")

    def within(kernel: Array) -> Array:
        axes = tuple(range(kernel.ndim - 1))
        norm = jnp.sqrt(jnp.sum(kernel**2, axis=axes, keepdims=True))
        return kernel * jnp.minimum(1, limit / jnp.where(norm > 0, norm, 1))

    def update(
        updates: Params, state: PyTree, params: Params | None = None
    ) -> tuple[Params, PyTree]:
        return _on_new_kernels("max_norm", within, updates, params), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def _on_new_kernels(
    name: str,
    function: Callable[[Array], Array],
    updates: Params,
    params: Params | None,
) -> Params:
    """Changes updates so that they lead to a function of the new kernels."""
    if params is None:
        raise ValueError(f"update of {name} got no params: pass the parameters")

    def change(update: Array, old: Array, kernel: bool) -> Array:
        if not kernel:
            return update
        new = old + update
        wanted = function(new)
        # Where nothing is to change, nothing is rounded either.
        return jnp.where(wanted == new, update, wanted - old)

    return jax.tree.map(change, updates, params, _kernels(params))


def _kernels(params: Params) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) >= 2, params)


def _check_name(what: str, name: str, table: Mapping[str, object]) -> None:
    if name not in table:
        raise ValueError(f"{what} is {name!r}: expected one of {', '.join(table)}")
