r"""Rows mixed with other rows, labels and all: mixup and its kin.

A row's mate is the next one in a random order of the batch's labelled rows, so it is
another row, and each is one row's mate. Rows without a label and absent rows have no
mate and are nobody's: they stay as they are. A mixed row keeps its own weight.

With `axis` the mate is sought among the rows of all devices, which are gathered for it,
and 8 devices mix what 1 does. Without it, devices mix within their own share.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxhead.base import (
    Array,
    Batch,
    HeadApply,
    Loss,
    Objective,
    Params,
    PyTree,
    Sums,
    Tokens,
    View,
)
from flaxhead.objectives.rows import known, row_keys, row_sums, side_key
from flaxhead.objectives.views import as_tokens


def mixup(alpha: float | Array, classes: int, *, axis: str | None = None) -> View:
    r"""Mixes rows and their labels: `share * row + (1 - share) * mate`.

    The share of each row is drawn from \(\mathrm{Beta}(\alpha, \alpha)\).

    Source: Zhang et al., 2018, "mixup: beyond empirical risk minimization".

    Args:
      alpha: 0 is the identity, 1 a uniform share; may be traced.
      classes: the number of logits.
      axis: name of the device axis over which batches are split; None for one device.

    Returns:
      A `View` whose labels are soft, `[batch, classes]`, NaN where a row has none. Of
      tokens, those at the same place are mixed.

    Raises:
      ValueError: if `alpha` is a negative number, or when x is `Tokens`.

    >>> x, rows = jnp.array([[0.0], [8.0]]), jnp.arange(2)
    >>> batch = Batch(x, jnp.array([0, 1]), jnp.ones(2), rows)
    >>> mixed = mixup(1.0, 2)(batch, jax.random.key(0))
    >>> bool(jnp.allclose(mixed.labels[:, 1], mixed.x[:, 0] / 8))
    True
    """
    _check_alpha("mixup", alpha)

    def view(batch: Batch, key: Array) -> Batch:
        if isinstance(batch.x, Tokens):
            raise ValueError(
                "mixup got padded tokens, whose places are not the same in every row:"
                " expected vectors; use cutmix, or manifold_mixup after pooling"
            )
        pairs = _pair(batch, key, alpha, classes, axis)
        share = pairs.share
        x = _mix(share, batch.x.astype(jnp.float32), pairs.mates.x)
        labels = _mix(share, pairs.labels, pairs.mates.labels)
        return batch._replace(x=x, labels=labels)

    return view


def cutmix(alpha: float | Array, classes: int, *, axis: str | None = None) -> View:
    r"""Puts a run of the mate's tokens in place of a row's own.

    The run is of \(1 - \mathrm{Beta}(\alpha, \alpha)\) of the places, anywhere. Labels
    are mixed by how many real tokens are of whom.

    Source: Yun et al., 2019, "CutMix"; its box is a run of places here.

    Args:
      alpha: 0 is the identity, 1 a uniform share; may be traced.
      classes: the number of logits.
      axis: name of the device axis over which batches are split; None for one device.

    Returns:
      A `View` of tokens, with or without padding, whose labels are soft, NaN where a
      row has none.

    Raises:
      ValueError: if `alpha` is a negative number, or when x is one vector a row.

    >>> x = jnp.array([0.0, 8.0]).reshape(2, 1, 1) * jnp.ones([2, 4, 1])
    >>> batch = Batch(x, jnp.array([0, 1]), jnp.ones(2), jnp.arange(2))
    >>> mixed = cutmix(1.0, 2)(batch, jax.random.key(0))
    >>> bool(jnp.allclose(mixed.labels[:, 1], mixed.x.mean((1, 2)) / 8))
    True
    """
    _check_alpha("cutmix", alpha)

    def view(batch: Batch, key: Array) -> Batch:
        own = as_tokens("cutmix", batch.x)
        pairs = _pair(batch, key, alpha, classes, axis)
        mate = as_tokens("cutmix", pairs.mates.x)
        count = own.mask.shape[1]
        keys = row_keys(side_key(key, 2), batch.index)
        length = jnp.round((1 - pairs.share) * count)
        start = jnp.floor(jax.vmap(jax.random.uniform)(keys) * (count - length + 1))
        place = jnp.arange(count) - start[:, None]
        cut = (place >= 0) & (place < length[:, None])
        mask = jnp.where(cut, mate.mask, own.mask)
        real = jnp.sum(mask, axis=1)
        # Where padding alone would be left, the row is.
        cut = cut & (real > 0)[:, None]
        mask = jnp.where(cut, mate.mask, own.mask)
        values = jnp.where(cut[..., None], mate.values, own.values)
        share = jnp.sum(own.mask & ~cut, axis=1) / jnp.maximum(real, 1)
        share = jnp.where(jnp.any(cut, axis=1), share, 1)
        labels = _mix(share, pairs.labels, pairs.mates.labels)
        x = Tokens(values, mask) if isinstance(batch.x, Tokens) else values
        return batch._replace(x=x, labels=labels)

    return view


def manifold_mixup(
    body: HeadApply,
    top: HeadApply,
    loss: Loss,
    *,
    alpha: float | Array,
    classes: int,
    axis: str | None = None,
) -> Objective:
    """The loss of rows that are mixed between two parts of a head.

    Source: Verma et al., 2019, "Manifold mixup", with the layer given instead of drawn.

    Args:
      body: `(params, x, *, key, train) -> hidden [batch, ...]`.
      top: `(params, hidden, *, key, train) -> logits`; of the same parameters.
      loss: of logits and soft labels.
      alpha: of the share's `Beta(alpha, alpha)`; 0 is plain training. May be traced.
      classes: the number of logits.
      axis: name of the device axis over which batches are split; None for one device.

    Returns:
      An `Objective` without memory, of the one term `manifold_mixup`, over the labelled
      rows.

    Raises:
      ValueError: if `alpha` is a negative number.

    >>> from flaxhead.losses import softmax_cross_entropy
    >>> def body(params, x, *, key=None, train=False):
    ...     return jnp.tanh(x @ params["body"])
    >>> def top(params, x, *, key=None, train=False):
    ...     return x @ params["top"]
    >>> objective = manifold_mixup(
    ...     body, top, softmax_cross_entropy, alpha=0.4, classes=2
    ... )
    """
    _check_alpha("manifold_mixup", alpha)

    def init(params: Params) -> PyTree:
        del params
        return ()

    def apply(
        params: Params, memory: PyTree, batch: Batch, key: Array
    ) -> tuple[dict[str, Sums], PyTree]:
        pairs = _pair(batch, key, alpha, classes, axis)
        keys = row_keys(key, batch.index)
        own = body(params, batch.x, key=keys, train=True)
        # Run again for the mates, whose hidden values may be on another device.
        keys_of_mates = row_keys(key, pairs.mates.index)
        other = body(params, pairs.mates.x, key=keys_of_mates, train=True)
        logits = top(params, _mix(pairs.share, own, other), key=keys, train=True)
        labels = _mix(pairs.share, pairs.labels, pairs.mates.labels)
        present = known(batch)
        losses = loss(logits, labels, where=present)
        weights = jnp.where(present, batch.weights, 0)
        sums = row_sums(losses, batch._replace(weights=weights))
        return {"manifold_mixup": sums}, memory

    return Objective(init, apply)


class _Pairs(NamedTuple):
    """Soft labels of the rows, their mates (labels soft), and the rows' share."""

    labels: Array
    mates: Batch
    share: Array


def _pair(
    batch: Batch, key: Array, alpha: float | Array, classes: int, axis: str | None
) -> _Pairs:
    labels = batch.labels
    if labels.ndim == 1:
        labels = jax.nn.one_hot(labels, classes)
    labelled = known(batch)
    labels = jnp.where(labelled[:, None], labels, jnp.nan)
    keys = row_keys(side_key(key, 0), batch.index)
    place = jax.vmap(lambda key: jax.random.bits(key, (), jnp.uint32))(keys)
    place = jnp.where(labelled, place, jnp.uint32(2**32 - 1))
    everyone = (batch._replace(labels=labels), labelled, place)
    if axis is not None:
        everyone = jax.tree.map(
            lambda leaf: jax.lax.all_gather(leaf, axis, tiled=True), everyone
        )
    rows, candidates, places = everyone
    order = jnp.argsort(places)
    rank = jnp.searchsorted(places[order], place)
    mate = order[(rank + 1) % jnp.maximum(jnp.sum(candidates), 1)]
    mates = jax.tree.map(lambda leaf: leaf[mate], rows)
    on = jnp.asarray(alpha) > 0
    safe = jnp.where(on, alpha, 1)
    keys = row_keys(side_key(key, 1), batch.index)
    # A beta variable is a gamma one's share of two; one draw of both compiles faster.
    two = jax.vmap(lambda key: jax.random.loggamma(key, safe, (2,)))(keys)
    share = jax.nn.softmax(two)[:, 0]
    return _Pairs(labels, mates, jnp.where(labelled & on, share, 1))


def _mix(share: Array, own: Array, mates: Array) -> Array:
    """`share * own + (1 - share) * mates`, and `own` itself at a share of 1."""
    share = jnp.expand_dims(share, tuple(range(1, own.ndim)))
    return jnp.where(share < 1, share * own + (1 - share) * mates, own)


def _check_alpha(name: str, alpha: float | Array) -> None:
    if isinstance(alpha, int | float) and alpha < 0:
        raise ValueError(f"alpha of {name} is {alpha}: expected 0 or more")
