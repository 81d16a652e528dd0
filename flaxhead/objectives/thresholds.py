"""The teacher's probabilities -> how much each row counts."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flaxhead.base import Array, PyTree
from flaxhead.objectives.consistency import Reading, Seen, check_share
from flaxhead.objectives.rows import row_mean
from flaxhead.objectives.targets import running, stateless


def everything() -> Reading:
    """Each row counts."""
    return stateless(lambda p: jnp.ones(p.shape[:-1]))


def threshold(confidence: float | Array = 0.95) -> Reading:
    """Rows whose likeliest class has at least some probability.

    Source: Xie et al., 2020, "Unsupervised data augmentation"; Sohn et al., 2020,
    "FixMatch".

    Args:
      confidence: the least probability; may be traced.

    Raises:
      ValueError: if `confidence` is a number outside of `[0, 1]`.
    """
    check_share("confidence of threshold", confidence)
    return stateless(lambda p: _weight(jnp.max(p, axis=-1) >= confidence))


def flex_threshold(confidence: float | Array = 0.95) -> Reading:
    r"""A threshold that is lower for classes that have been learnt less.

    A row is learnt as the class that it was last given with the full confidence
    \(\tau\). Of the class counts \(\sigma\) and the rows that are none \(u\), the
    threshold is \(\tau\, \beta / (2 - \beta)\) with \(\beta_c = \sigma_c / \max(\max_k
    \sigma_k, u)\).

    Source: Zhang et al., 2021, "FlexMatch", algorithm 1.

    Args:
      confidence: of the class learnt best; may be traced.

    Raises:
      ValueError: if `confidence` is a number outside of `[0, 1]`, or, by `init`, if the
        number of rows is not known.
    """
    check_share("confidence of flex_threshold", confidence)

    def init(classes: int, rows: int) -> PyTree:
        if rows < 1:
            raise ValueError(
                f"flex_threshold got rows {rows}: expected the number of rows of the"
                " whole data, as it keeps a class for each"
            )
        return jnp.full(rows, classes)  # A number beyond the classes: none yet.

    def apply(memory: PyTree, seen: Seen, axis: str | None) -> tuple[Array, PyTree]:
        best, winner = _best(seen.probabilities)
        classes = seen.probabilities.shape[-1]
        counts = jnp.zeros(classes + 1).at[memory].add(1)
        most = jnp.max(counts)  # Of a class, or of the rows that are of none yet.
        beta = counts[:-1] / most
        least = confidence * beta / (2 - beta)
        learnt = (best >= confidence) & (seen.weights > 0)
        chosen = _weight(best >= least[winner])
        place = jnp.where(learnt, seen.index, len(memory))
        if axis is not None:
            place, winner = jax.lax.all_gather((place, winner), axis, tiled=True)
        return chosen, memory.at[place].set(winner, mode="drop")

    return Reading(init, apply)


def free_threshold(decay: float | Array = 0.999) -> Reading:
    r"""A threshold of its own for each class, that follows the confidence.

    The threshold is \(\tau\, \tilde p_c / \max_k \tilde p_k\), with the running means
    \(\tau\) of the largest probability and \(\tilde p\) of the probabilities. Both
    begin at one over the number of classes.

    Source: Wang et al., 2023, "FreeMatch".

    Args:
      decay: how much of the running means a batch keeps; may be traced.

    Raises:
      ValueError: if `decay` is a number outside of `[0, 1]`.
    """
    check_share("decay of free_threshold", decay)

    def init(classes: int, rows: int) -> PyTree:
        del rows
        return jnp.array(1 / classes), jnp.full(classes, 1 / classes)

    def apply(memory: PyTree, seen: Seen, axis: str | None) -> tuple[Array, PyTree]:
        overall, local = memory
        p = seen.probabilities
        best, winner = _best(p)
        overall = running(overall, best, seen.weights, decay, axis)
        local = running(local, p, seen.weights, decay, axis)
        least = overall * local / jnp.max(local)
        return _weight(best >= least[winner]), (overall, local)

    return Reading(init, apply)


def soft_weight(decay: float | Array = 0.999) -> Reading:
    r"""A weight that falls off below the mean confidence, as a Gaussian does.

    It is \(\exp(-\min(\max_c p_c - \mu, 0)^2 / (2 \sigma^2))\), with the running mean
    \(\mu\), which begins at one over the number of classes, and the running unbiased
    variance \(\sigma^2\), which begins at 1.

    Source: Chen et al., 2023, "SoftMatch".

    Args:
      decay: how much of the running mean and variance a batch keeps; may be traced.

    Raises:
      ValueError: if `decay` is a number outside of `[0, 1]`.
    """
    check_share("decay of soft_weight", decay)

    def init(classes: int, rows: int) -> PyTree:
        del rows
        return jnp.array(1 / classes), jnp.ones(())

    def apply(memory: PyTree, seen: Seen, axis: str | None) -> tuple[Array, PyTree]:
        mean, variance = memory
        best, _ = _best(seen.probabilities)
        of_batch = row_mean(best, seen.weights, axis)
        count = jnp.sum(jnp.where(seen.weights > 0, seen.weights, 0))
        count = count if axis is None else jax.lax.psum(count, axis)
        unbiased = jnp.where(count > 1, count / jnp.where(count > 1, count - 1, 1), 1)
        off = unbiased * (best - of_batch) ** 2
        mean = running(mean, best, seen.weights, decay, axis)
        variance = running(variance, off, seen.weights, decay, axis)
        below = jnp.minimum(best - mean, 0)
        # With no spread at all, those below the mean count for nothing.
        safe = jnp.maximum(variance, jnp.finfo(jnp.float32).tiny)
        return jnp.exp(-(below**2) / (2 * safe)), (mean, variance)

    return Reading(init, apply)


def relative_threshold(
    share: float | Array = 0.9, decay: float | Array = 0.9
) -> Reading:
    """Rows at least nearly as confident as labelled rows are on average.

    The confidence of the labelled rows is a running mean, as few of a batch may be
    labelled, of the teacher's probabilities before any alignment. It begins at 1.

    Source: Berthelot et al., 2022, "AdaMatch", where the mean is that of the batch:
    decay 0.

    Args:
      share: of that confidence; may be traced.
      decay: how much of the running mean a batch keeps; may be traced.

    Raises:
      ValueError: if `share` or `decay` is a number outside of `[0, 1]`.
    """
    check_share("share of relative_threshold", share)
    check_share("decay of relative_threshold", decay)

    def init(classes: int, rows: int) -> PyTree:
        del classes, rows
        return jnp.ones(())

    def apply(memory: PyTree, seen: Seen, axis: str | None) -> tuple[Array, PyTree]:
        labelled = jnp.where(seen.labelled, seen.weights, 0)
        memory = running(memory, jnp.max(seen.given, axis=-1), labelled, decay, axis)
        return _weight(_best(seen.probabilities)[0] >= share * memory), memory

    return Reading(init, apply)


def _best(p: Array) -> tuple[Array, Array]:
    """The largest probability of each row, and whose it is."""
    return jnp.max(p, axis=-1), jnp.argmax(p, axis=-1)


def _weight(chosen: Array) -> Array:
    return chosen.astype(jnp.float32)
