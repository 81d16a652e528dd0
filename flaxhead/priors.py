"""How likely classes are: estimated without labels, and reset at prediction.

A head learns the shares of the classes in training with everything else. Where others
hold, as on balanced test rows or at a new place, its logits are moved by the logarithm
of the ratio: exact for a head whose probabilities are right, and no fit is repeated.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from flaxhead.base import Array, Params
from flaxhead.moments import class_shares, divisor, exact

_MOST = 1000  # turns of the estimate


def adjust_logits(
    logits: Array, prior: ArrayLike, *, tau: float | Array = 1.0
) -> Array:
    """Takes `tau * log prior` off the logits of a head that is trained already.

    Source: Menon et al., 2021, "Long-tail learning via logit adjustment"; "post-hoc".

    Args:
      logits: `[..., classes]`, whose softmax are probabilities.
      prior: `[classes]`, how likely each is in training, up to a factor.
      tau: 0 changes nothing, 1 is for classes that are all as likely; may be traced.

    >>> logits = jnp.log(jnp.array([0.75, 0.25]))
    >>> adjusted = adjust_logits(logits, jnp.array([3, 1]))
    >>> bool(jnp.allclose(adjusted[0], adjusted[1]))
    True
    """
    return logits - tau * _log(prior)


def reset_prior(logits: Array, old: ArrayLike, new: ArrayLike) -> Array:
    """Moves logits to where classes are as likely as `new` says.

    Source: Saerens, Latinne and Decaestecker, 2002, "Adjusting the outputs of a
    classifier to new a priori probabilities: a simple procedure", equation 2.4.

    Args:
      logits: `[..., classes]`, whose softmax are probabilities.
      old: `[classes]`, how likely each is in training, up to a factor.
      new: `[classes]`, how likely each is now, up to a factor.

    >>> logits = jnp.log(jnp.array([0.5, 0.5]))
    >>> reset = reset_prior(logits, jnp.ones(2), jnp.array([1, 3]))
    >>> jnp.exp(reset - reset[0]).round(4)  # one to three
    Array([1., 3.], dtype=float32)
    """
    return logits + (_log(new) - _log(old))


def with_prior(params: Params, old: ArrayLike, new: ArrayLike) -> Params:
    """Moves the bias of a head's last layer, so that its logits are `reset_prior`'s.

    Args:
      params: of a head that ends in a linear layer, `{"output": {"bias": ...}}`, as
        `linear`, `mlp` and those that are solved do.
      old: see `reset_prior`.
      new: see `reset_prior`.

    Raises:
      ValueError: where there is no such bias.

    >>> params = {"output": {"kernel": jnp.zeros([3, 2]), "bias": jnp.zeros(2)}}
    >>> moved = with_prior(params, jnp.ones(2), jnp.array([1, 3]))
    >>> jnp.exp(moved["output"]["bias"]).round(4)
    Array([1., 3.], dtype=float32)
    """
    output = params.get("output") if isinstance(params, dict) else None
    if not isinstance(output, dict) or "bias" not in output:
        held = ", ".join(params) if isinstance(params, dict) else type(params).__name__
        raise ValueError(
            "params has no bias at ['output']['bias'], which with_prior moves, but "
            f"{held}; use reset_prior on the logits"
        )
    bias = reset_prior(output["bias"], old, new)
    return {**params, "output": {**output, "bias": bias}}


def estimate_prior(
    probabilities: Array,
    prior: ArrayLike,
    *,
    weights: Array | None = None,
    tolerance: float = 1e-6,
) -> Array:
    """Estimates how likely classes are among rows without a label.

    Probabilities are reset to the estimate, their average is the next one, and so on:
    the maximum of the likelihood, by EM. It takes a head whose probabilities are right
    in training, and classes that look alike there and here.

    Source: Saerens, Latinne and Decaestecker, 2002, "Adjusting the outputs of a
    classifier to new a priori probabilities: a simple procedure".

    Args:
      probabilities: `[rows, classes]`, of a head for the rows.
      prior: `[classes]`, how likely each was in training, up to a factor.
      weights: `[rows]`; 0: the row is absent. None: all count alike.
      tolerance: it ends when no class changes by more, or after 1000 turns.

    Returns:
      `[classes]`, sums to 1.

    >>> p = jnp.array([[0.9, 0.1], [0.1, 0.9], [0.1, 0.9], [0.1, 0.9]])
    >>> estimate_prior(p, jnp.ones(2)).round(2)  # that of the mixture: 3/4 less errors
    Array([0.19, 0.81], dtype=float32)
    """
    mass = jnp.ones(len(probabilities)) if weights is None else weights
    present = (mass > 0)[:, None]
    start = jnp.asarray(prior, jnp.float32)
    start = start / jnp.sum(start)
    # Of a class that training lacks nothing can be known.
    ratio = jnp.where(present & (start > 0), probabilities / divisor(start), 0)
    mass = mass / divisor(jnp.sum(mass))

    def turn(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        number, current, _ = state
        joint = ratio * current
        shares = joint / divisor(jnp.sum(joint, axis=1, keepdims=True))
        following = exact(mass, shares)
        return number + 1, following, jnp.max(jnp.abs(following - current))

    def going(state: tuple[Array, Array, Array]) -> Array:
        number, _, change = state
        return (number < _MOST) & (change > tolerance)

    begin = (jnp.zeros((), jnp.int32), start, jnp.full((), jnp.inf))
    return lax.while_loop(going, turn, begin)[1]


def balanced_weights(labels: Array, weights: Array, *, classes: int) -> Array:
    """Returns weights of rows by which every class weighs the same.

    In a `Fit`, exact or by steps, it is what drawing classes evenly, and then rows of
    them, is on average; a fold or a bootstrap draw has its own balance.

    Args:
      labels: `int [rows]` (negative: none), or `float [rows, classes]` soft labels.
      weights: `[rows]`, as they are without.
      classes: how many classes there are.

    Returns:
      `[rows]` of the same sum. Rows without a label weigh 0.

    >>> balanced_weights(jnp.array([0, 0, 0, 1]), jnp.ones(4), classes=2)
    Array([0.6666667, 0.6666667, 0.6666667, 2.       ], dtype=float32)
    """
    shares = class_shares(labels, classes)
    counts = exact(weights, shares)
    present = jnp.sum(counts > 0)
    each = jnp.where(counts > 0, jnp.sum(counts) / divisor(counts * present), 0)
    return weights * exact(shares, each)


def _log(prior: ArrayLike) -> Array:
    """Finite where a class has no rows."""
    shares = jnp.asarray(prior, jnp.float32)
    return jnp.log(jnp.maximum(shares, jnp.finfo(jnp.float32).tiny))
