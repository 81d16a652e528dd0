"""Which of many trained candidates to pool, and how much each counts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from flaxhead.base import Array
from flaxhead.ensembles.pooling import check_output, check_rows
from flaxhead.metrics import Output
from flaxhead.moments import class_shares, divisor


def greedy_selection(
    logits: Array,
    labels: Array,
    weights: Array | None = None,
    *,
    size: int = 50,
    output: Output = "softmax",
) -> Array:
    """Picks members from candidates one by one, each the one that helps most.

    A step adds, with replacement, the candidate that makes the NLL of the mean
    probabilities smallest; of all prefixes the best is returned. The first step finds
    the best single candidate, so the ensemble is never worse than it on these rows.
    Rows that no candidate was trained on choose honestly. All steps are one scan.

    Args:
      logits: `[candidates, rows, classes]`. A candidate whose NLL is not finite is
        never picked, unless none is finite.
      labels: `int [rows]` (-1: absent), or `float [rows, classes]`: soft labels for
        `softmax`, entries of 0 to 1 with NaN for missing ones for `sigmoid`.
      weights: `[rows]`; a row of weight 0 is absent. None: all count alike.
      size: steps, the largest sum of counts.
      output: what turns logits into probabilities, `softmax` or `sigmoid`.

    Returns:
      `int32 [candidates]`, how often each was picked: weights for
      `pool_probabilities`.

    Raises:
      ValueError: if the shapes don't fit, `size` is below 1 or `output` is unknown.

    Source: Caruana, Niculescu-Mizil, Crew and Ksikes, 2004, "Ensemble selection from
    libraries of models".

    >>> right, half, wrong = jnp.eye(2) * 4, jnp.eye(2), jnp.eye(2) * -4
    >>> logits, labels = jnp.stack([wrong, right, half]), jnp.array([0, 1])
    >>> greedy_selection(logits, labels, size=5).tolist()
    [0, 1, 0]
    """
    check_output(output)
    if size < 1:
        raise ValueError(f"size is {size}: expected 1 or more steps")
    weights = check_rows(logits, labels, weights)
    log_p, share = _outcomes(logits.astype(jnp.float32), labels, weights, output)

    def pick(log_sum: Array, step: Array) -> tuple[Array, tuple[Array, Array]]:
        # Added up as logarithms: a row that a candidate calls impossible stays finite.
        sums = jnp.logaddexp(log_sum, log_p)
        nll = jnp.log(step + 1.0) - jnp.sum(share * sums, axis=1)
        nll = jnp.where(jnp.isfinite(nll), nll, jnp.inf)
        best = jnp.argmin(nll)
        return sums[best], (best, nll[best])

    start = jnp.full(log_p.shape[1], -jnp.inf)
    _, (picked, nll) = lax.scan(pick, start, jnp.arange(size))
    kept = jnp.arange(size) <= jnp.argmin(nll)
    mine = picked[:, None] == jnp.arange(len(logits))
    return jnp.sum(mine & kept[:, None], axis=0, dtype=jnp.int32)


def _outcomes(
    logits: Array, labels: Array, weights: Array, output: Output
) -> tuple[Array, Array]:
    """Log probability of everything that happened, and its share of the NLL.

    Returns:
      `(log_p [candidates, outcomes], share [outcomes])`, an outcome being a row's
      label, or an entry that is or isn't so. Shares sum to 1, and where they are 0 the
      log probability is 0.
    """
    if labels.ndim == 1 and output == "softmax":
        own = jnp.maximum(labels, 0)[None, :, None]
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), own, axis=2)
        share = weights
    else:
        target = class_shares(labels, logits.shape[-1])
        known = ~jnp.isnan(target)
        if output == "softmax":
            known = jnp.all(known, axis=1, keepdims=True)
        share = weights[:, None] * jnp.where(known, target, 0)
        if output == "softmax":
            log_p = jax.nn.log_softmax(logits)
        else:
            rest = weights[:, None] * known - share
            log_p = jnp.stack(
                [jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)], axis=1
            )
            share = jnp.stack([share, rest])
    share = (share / divisor(jnp.sum(share))).ravel()
    return jnp.where(share > 0, log_p.reshape(len(logits), -1), 0), share
