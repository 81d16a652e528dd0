"""Nearest neighbours: the bank of rows that the head of this name looks into."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from flaxhead.base import Array, Batch, Fit, Hyperparameters, Params
from flaxhead.heads.normalize import unit
from flaxhead.moments import row_weights


def neighbours(classes: int, *, axis: str | None = None) -> Fit:
    """Keeps all rows, divided by their norm, for `flaxhead.heads.neighbours(classes)`.

    Args:
      classes: the number of logits.
      axis: name of the `pmap` axis over which the rows are split, if they are; each
        device gathers all of them.

    Returns:
      A `Fit` with the hyperparameters `k` and `temperature`, which are put into the
      params as they are. The bank keeps the rows' float type.

    Raises:
      ValueError: by the fit, if soft labels don't have `classes` columns.

    >>> import jax, jax.numpy as jnp
    >>> from flaxhead import heads
    >>> x = jnp.array([[2.0, 0.0], [3.0, 1.0], [0.0, 5.0]])
    >>> data = Batch(x, jnp.array([0, 0, 1]), jnp.ones(3), jnp.arange(3))
    >>> hyperparameters = {"k": jnp.int32(2), "temperature": jnp.float32(0.07)}
    >>> fit = neighbours(2)
    >>> params = fit(data, jnp.ones(3), hyperparameters, jax.random.key(0))
    >>> heads.neighbours(2).apply(params, x).argmax(-1).tolist()
    [0, 0, 1]
    """

    def run(
        data: Batch, weights: Array, hyperparameters: Hyperparameters, key: Array
    ) -> Params:
        del key
        labels = data.labels
        if labels.ndim == 2 and labels.shape[1] != classes:
            raise ValueError(
                f"labels have shape {labels.shape}: expected {classes} columns, one a"
                " class"
            )
        weights = row_weights(labels, weights * data.weights)
        present = weights > 0
        bank = jnp.where(present[:, None], unit(data.x), 0).astype(data.x.dtype)
        # An absent row may hold anything; what is multiplied by 0 must be finite.
        if labels.ndim == 2:
            labels = jnp.where(present[:, None], labels, 0)
        else:
            labels = jnp.where(present, labels, 0)
        rows = {"bank": bank, "labels": labels, "weights": weights}
        if axis is not None:
            rows = lax.all_gather(rows, axis, tiled=True)
        names = ("k", "temperature")
        return {**rows, **{name: hyperparameters[name] for name in names}}

    return run
