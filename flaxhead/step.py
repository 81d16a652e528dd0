"""Head + objective + optax -> `Learner`: one optimisation step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from flaxhead.base import Array, Batch, Head, Info, Learner, Objective, State, Sums


def learner(
    head: Head,
    objective: Objective,
    tx: optax.GradientTransformation,
    *,
    axis: str | None = None,
) -> Learner:
    r"""Returns the pair of functions that starts and advances a training run.

    The minimised value is \(\sum_t \mathrm{total}_t / \mathrm{count}_t\) over the
    objective's terms, with totals and counts summed over all devices before the
    division, so uneven shards and padded rows cannot bias it.

    Args:
      head: its `init` makes the parameters.
      objective: what is minimised.
      tx: any optax gradient transformation.
      axis: name of the device axis over which batches are split; None for one device.

    >>> import jax, jax.numpy as jnp, optax
    >>> from flaxhead.base import Batch
    >>> from flaxhead.heads import linear
    >>> from flaxhead.losses import softmax_cross_entropy
    >>> from flaxhead.objectives import supervised
    >>> head = linear(2)
    >>> objective = supervised(head, softmax_cross_entropy)
    >>> learn = learner(head, objective, optax.sgd(0.5))
    >>> batch = Batch(jnp.eye(2), jnp.array([0, 1]), jnp.ones(2), jnp.arange(2))
    >>> state = learn.init(jax.random.key(0), batch)
    >>> state, info = learn.step(state, batch)
    >>> int(state.step), round(float(info.loss), 4)
    (1, 0.6931)
    """

    def init(key: Array, batch: Batch) -> State:
        init_key, step_key = jax.random.split(key)
        params = head.init(init_key, batch.x)
        return State(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=tx.init(params),
            memory=objective.init(params),
            key=step_key,
        )

    def step(state: State, batch: Batch) -> tuple[State, Info]:
        key = jax.random.fold_in(state.key, state.step)

        def minimised(params: Any) -> tuple[Array, Any]:
            sums, memory = objective.apply(params, state.memory, batch, key)
            # Counts go over all devices first; the gradient of this device's share
            # of the total is then summed below. No mean of means.
            shares = [_share(term, axis) for term in sums.values()]
            return sum(shares, jnp.zeros(())), memory

        (loss, memory), grads = jax.value_and_grad(minimised, has_aux=True)(
            state.params
        )
        if axis is not None:
            loss, grads = jax.lax.psum((loss, grads), axis)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(state.step + 1, params, opt_state, memory, state.key), Info(loss)

    return Learner(init, step)


def _share(term: Sums, axis: str | None) -> Array:
    count = jax.lax.stop_gradient(term.count)
    if axis is not None:
        count = jax.lax.psum(count, axis)
    # A batch without any row of this term contributes 0, not 0 / 0.
    return term.total / jnp.where(count > 0, count, 1)
