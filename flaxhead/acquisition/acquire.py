"""Which rows to label next: by how much they are wanted, and by what else is chosen."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from flaxhead.acquisition.rules import core_set, one_a_cluster, typical
from flaxhead.base import Array
from flaxhead.heads.normalize import unit

RULES = ("none", "kmeans", "core_set", "typiclust")
"""Values of `how`."""
_DRAWN = ("kmeans", "typiclust")
# Zhdanov's beta: so many times as many rows are looked at as are chosen.
_CANDIDATES = 10


def acquire(
    scores: Array | None,
    embeddings: Array,
    k: int,
    *,
    how: str = "none",
    weights: Array | None = None,
    labelled: Array | None = None,
    key: Array | None = None,
) -> Array:
    """Chooses `k` rows to label next.

    The rows of largest score are often alike, and of little use together, which three
    of the rules avoid. With scores these choose among the `10 k` rows that score most,
    without scores (a cold start) among all.

    * `none`: the rows that score most.
    * `kmeans`: the row nearest to each centre of `k` clusters, weighted by score.
    * `core_set`: the row farthest from all that are labelled or chosen, again and
      again; without any, first the one nearest to the mean.
    * `typiclust`: of as many clusters as there will be labels (500 at most), those with
      the fewest labels, the larger first; in each, the row whose 20 nearest neighbours
      in the cluster are nearest on average. Best where labels are few or none.

    Embeddings are compared by direction: they are divided by their norm first. Among
    equals the first row is chosen. Compiles with `k` and `how` static.

    Args:
      scores: `[rows]`, larger is more wanted (`flaxhead.acquisition.margin`), or None.
      embeddings: `[rows, dim]`, of any float type.
      k: how many rows.
      how: one of `RULES`.
      weights: `[rows]`; a row of weight 0 is absent, whatever it holds, and never
        chosen; others count so much where clusters are formed. None: 1 for all.
      labelled: `int [labelled]`, numbers of rows that have a label and are not chosen
        again; negative ones are none.
      key: typed key of the first centres of `kmeans` and `typiclust`.

    Returns:
      `int32 [k]` row numbers, no two alike, the most wanted first. Inside `jit`, where
      rows can't be counted, -1 where none was left.

    Raises:
      ValueError: for wrong shapes, an unknown rule, a rule without the scores or the
        key that it needs, more rows than are left, or scores or embeddings that are not
        finite. What depends on values is checked outside of `jit` only.

    Source: `kmeans`: Zhdanov, 2019, "Diverse mini-batch active learning"; `core_set`:
    Sener and Savarese, 2018, "Active learning for convolutional neural networks: a
    core-set approach"; `typiclust`: Hacohen, Dekel and Weinshall, 2022, "Active
    learning on a budget: opposite strategies suit high and low budgets".

    >>> x = jnp.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.5, 1.0]])
    >>> scores = jnp.array([0.9, 0.8, 0.2, 0.1])
    >>> acquire(scores, x, 2).tolist()
    [0, 1]
    >>> acquire(scores, x, 2, how="core_set", labelled=jnp.array([0])).tolist()
    [2, 3]
    """
    _check_shapes(scores, embeddings, k, how, weights, labelled, key)
    weights = jnp.ones(len(embeddings)) if weights is None else jnp.asarray(weights)
    labelled = jnp.zeros(0, int) if labelled is None else jnp.asarray(labelled)
    _check_values(scores, embeddings, k, weights, labelled)
    return _choose(scores, embeddings, weights, labelled, key, k=k, how=how)


@partial(jax.jit, static_argnames=("k", "how"))
def _choose(
    scores: Array | None,
    embeddings: Array,
    weights: Array,
    labelled: Array,
    key: Array | None,
    *,
    k: int,
    how: str,
) -> Array:
    """Chooses, one program even where `acquire` is called outside of `jit`."""
    rows = len(embeddings)
    present = weights > 0
    place = jnp.where(labelled < 0, rows, labelled)
    free = present.at[place].set(False, mode="drop")
    wanted = jnp.where(free, 1.0 if scores is None else scores, -jnp.inf)
    order = jnp.argsort(-wanted)  # Stable: the first among equals.
    if how != "none" and scores is not None:
        order = order[: _CANDIDATES * k]
    free = free[order]
    if how == "none":
        chosen = jnp.arange(k)
    else:
        x = jnp.where(present[:, None], unit(embeddings), 0)
        if how == "kmeans":
            assert key is not None
            own = weights[order]
            chosen = one_a_cluster(key, x[order], own, wanted[order], free, k)
        elif how == "core_set":
            known = (labelled >= 0) & present[labelled]
            chosen = core_set(x[order], free, x[labelled], known, k)
        else:
            assert key is not None
            known = jnp.zeros(rows, bool).at[place].set(True, mode="drop") & present
            count = len(labelled) + k
            chosen = typical(key, x, weights, known, order, free, k, clusters=count)
    left = jnp.arange(k) < jnp.sum(free)
    return jnp.where(left, order[chosen], -1).astype(jnp.int32)


def _check_shapes(
    scores: Array | None,
    embeddings: Array,
    k: int,
    how: str,
    weights: Array | None,
    labelled: Array | None,
    key: Array | None,
) -> None:
    rows = len(embeddings)
    if how not in RULES:
        raise ValueError(f"how is {how!r}: expected one of {', '.join(RULES)}")
    if embeddings.ndim != 2:
        raise ValueError(
            f"embeddings have shape {list(embeddings.shape)}: expected [rows, dim];"
            " pool tokens first"
        )
    for name, values in (("scores", scores), ("weights", weights)):
        if values is not None and values.shape != (rows,):
            raise ValueError(
                f"{name} have shape {list(values.shape)}: expected [{rows}], one a row"
                " of embeddings"
            )
    if labelled is not None and (labelled.ndim != 1 or labelled.dtype.kind not in "iu"):
        raise ValueError(
            f"labelled is {labelled.dtype} {list(labelled.shape)}: expected row"
            " numbers, int [labelled]; np.flatnonzero makes them of a mask"
        )
    if scores is None and how == "none":
        raise ValueError(
            "scores are None: how='none' takes the rows that score most; without"
            " scores choose how='typiclust', 'kmeans' or 'core_set'"
        )
    if key is None and how in _DRAWN:
        raise ValueError(
            f"key is None: how={how!r} draws its first centres, expected a key such as"
            " jax.random.key(0)"
        )
    if not 1 <= k <= rows:
        raise ValueError(f"k is {k}: expected 1 to {rows}, the number of rows")


def _check_values(
    scores: Array | None, embeddings: Array, k: int, weights: Array, labelled: Array
) -> None:
    """Checks what is not traced."""
    rows = len(embeddings)
    if isinstance(weights, Tracer) or isinstance(labelled, Tracer):
        return
    numbers = np.asarray(labelled)
    if numbers.max(initial=-1) >= rows:
        raise ValueError(
            f"labelled has row {numbers.max()}: expected numbers below {rows}, the"
            " number of rows"
        )
    present = np.asarray(weights) > 0
    free = present.copy()
    free[numbers[numbers >= 0]] = False
    if free.sum() < k:
        raise ValueError(
            f"k is {k}: expected at most {free.sum()}, as many rows as are neither"
            " labelled nor of weight 0"
        )
    for name, values, read in (
        ("scores", scores, free),
        ("embeddings", embeddings, present),
    ):
        if values is None or isinstance(values, Tracer):
            continue
        finite = np.isfinite(np.asarray(values, np.float32)).reshape(rows, -1).all(1)
        broken = np.flatnonzero(read & ~finite)
        if len(broken):
            raise ValueError(
                f"{name} are not finite in {len(broken)} rows, {broken[:5].tolist()}"
                " first: expected numbers; give such rows the weight 0"
            )
