"""The loss over labelled rows."""

from __future__ import annotations

import jax.numpy as jnp

from flaxhead.base import Array, Batch, Head, Loss, Objective, Params, PyTree, Sums
from flaxhead.objectives.rows import labelled, row_keys


def supervised(head: Head, loss: Loss) -> Objective:
    """The weighted mean of a loss over the labelled rows.

    Rows of weight 0, of a negative class number, or whose label entries are all missing
    (NaN) are absent: they add nothing to the total, to the count or to the gradient.

    Args:
      head: embeddings -> logits.
      loss: logits and labels -> one loss a row.

    Returns:
      An `Objective` without memory, of the one term `supervised`: the sum of weights
      times losses, and the sum of weights. The head's noise in a row is of the key
      `fold_in(key, batch.index)`.

    >>> import jax, jax.numpy as jnp
    >>> from flaxhead.heads import linear
    >>> from flaxhead.losses import softmax_cross_entropy
    >>> head = linear(2)
    >>> x, rows = jnp.ones([4, 3]), jnp.arange(4)
    >>> batch = Batch(x, jnp.array([0, 1, 0, -1]), jnp.array([1.0, 1, 0, 1]), rows)
    >>> params = head.init(jax.random.key(0), x)
    >>> objective = supervised(head, softmax_cross_entropy)
    >>> sums, memory = objective.apply(params, (), batch, jax.random.key(1))
    >>> float(sums["supervised"].count)
    2.0
    """

    def init(params: Params) -> PyTree:
        del params
        return ()

    def apply(
        params: Params, memory: PyTree, batch: Batch, key: Array
    ) -> tuple[dict[str, Sums], PyTree]:
        keys = row_keys(key, batch.index)
        logits = head.apply(params, batch.x, key=keys, train=True)
        present = labelled(batch)
        losses = loss(logits, batch.labels, where=present, weights=batch.weights)
        count = jnp.sum(jnp.where(present, batch.weights, 0))
        return {"supervised": Sums(jnp.sum(losses), count)}, memory

    return Objective(init, apply)
