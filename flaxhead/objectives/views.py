"""The same rows as seen by other means: noise, dropout, cached views, neighbours."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flaxhead.base import Array, Batch, Objective, Params, PyTree, Sums, Tokens, View
from flaxhead.heads.compose import map_values
from flaxhead.objectives.rows import row_keys, row_mean, side_key


def identity(batch: Batch, key: Array) -> Batch:
    """The view that changes nothing.

    >>> batch = Batch(jnp.ones([1, 2]), jnp.array([0]), jnp.ones(1), jnp.arange(1))
    >>> identity(batch, jax.random.key(0)) is batch
    True
    """
    del key
    return batch


def chain(*views: View) -> View:
    """One view after the other, each with a key of its own.

    >>> batch = Batch(jnp.ones([1, 2]), jnp.array([0]), jnp.ones(1), jnp.arange(1))
    >>> view = chain(noise(0.1), feature_dropout(0.5))
    >>> view(batch, jax.random.key(0)).x.shape
    (1, 2)
    """

    def view(batch: Batch, key: Array) -> Batch:
        for number, one in enumerate(views):
            batch = one(batch, jax.random.fold_in(key, number))
        return batch

    return view


def noise(scale: float | Array, *, axis: str | None = None) -> View:
    """Adds Gaussian noise that is scaled to the spread of each feature.

    A feature's standard deviation is that over the rows of the batch, or over all of
    their real tokens, each by its weight.

    Source: Sietsma and Dow, 1991, "Creating artificial neural networks that
    generalize".

    Args:
      scale: deviation of the noise, in deviations of the feature; may be traced. 0 is
        the identity.
      axis: name of the device axis over which batches are split; None for one device.

    Raises:
      ValueError: if `scale` is a negative number.

    >>> x = jnp.array([[1.0, 5.0], [3.0, 5.0]])  # The second feature has no spread.
    >>> batch = Batch(x, jnp.array([0, 1]), jnp.ones(2), jnp.arange(2))
    >>> noise(0.5)(batch, jax.random.key(0)).x[:, 1].tolist()
    [5.0, 5.0]
    """
    if isinstance(scale, int | float) and scale < 0:
        raise ValueError(f"noise is {scale}: expected a scale of 0 or more")

    def view(batch: Batch, key: Array) -> Batch:
        keys, deviation = row_keys(key, batch.index), _deviation(batch, axis)

        def shaken(values: Array) -> Array:
            draw = jax.vmap(lambda key: jax.random.normal(key, values.shape[1:]))(keys)
            return values + scale * deviation * draw

        return batch._replace(x=map_values(shaken, batch.x))

    return view


def feature_dropout(rate: float | Array) -> View:
    """Zeroes features of a row at random and scales up the others.

    A feature of tokens is zeroed in all of a row's tokens: were each token's drawn
    apart, pooling would average it out.

    Source: Srivastava et al., 2014, "Dropout"; Tompson et al., 2015, "Efficient object
    localization using convolutional networks" (of whole features).

    Args:
      rate: share of features that are zeroed; may be traced. 0 is the identity.

    Raises:
      ValueError: if `rate` is a number outside of `[0, 1)`.

    >>> batch = Batch(jnp.ones([1, 9]), jnp.array([0]), jnp.ones(1), jnp.arange(1))
    >>> x = feature_dropout(0.5)(batch, jax.random.key(0)).x
    >>> sorted(set(x.ravel().tolist()))
    [0.0, 2.0]
    """
    _check_rate("feature_dropout", rate)

    def view(batch: Batch, key: Array) -> Batch:
        keys = row_keys(key, batch.index)

        def dropped(values: Array) -> Array:
            dim = values.shape[-1]
            kept = jax.vmap(lambda key: jax.random.uniform(key, (dim,)) >= rate)(keys)
            kept = jnp.expand_dims(kept, tuple(range(1, values.ndim - 1)))
            return jnp.where(kept, values.astype(jnp.float32) / (1 - rate), 0)

        return batch._replace(x=map_values(dropped, batch.x))

    return view


def token_dropout(rate: float | Array) -> View:
    """Masks out tokens of a row at random, but never all of them.

    Args:
      rate: share of tokens that are masked out; may be traced. 0 is the identity.

    Returns:
      A `View` of tokens, with or without padding; its x is `Tokens`.

    Raises:
      ValueError: if `rate` is a number outside of `[0, 1)`, or when it is given one
        vector a row.

    >>> x = jnp.ones([1, 5, 2])
    >>> batch = Batch(x, jnp.array([0]), jnp.ones(1), jnp.arange(1))
    >>> int(token_dropout(0.999)(batch, jax.random.key(0)).x.mask.sum())
    1
    """
    _check_rate("token_dropout", rate)

    def view(batch: Batch, key: Array) -> Batch:
        x = as_tokens("token_dropout", batch.x)
        count = x.mask.shape[1]
        keys = row_keys(key, batch.index)
        draw = jax.vmap(lambda key: jax.random.uniform(key, (count,)))(keys)
        draw = jnp.where(x.mask, draw, -1)
        # The largest draw is what the highest rate would leave.
        largest = jnp.arange(count) == jnp.argmax(draw, axis=1, keepdims=True)
        kept = x.mask & ((draw >= rate) | largest)
        return batch._replace(x=x._replace(mask=kept))

    return view


def cached(which: str, *, then: View = identity) -> View:
    """Picks one of the views of each row that were embedded beforehand.

    Args:
      which: `weak`, view 0, `strong`, one of the others at random, or `any` of all.
        Where a row has one view, that is it.
      then: what is done to the view picked; what is random in that is as without.

    Returns:
      A `View` from x `[batch, views, dim]` to x `[batch, dim]`.

    Raises:
      ValueError: if `which` is unknown, or when x has no axis of views.

    >>> x = jnp.arange(3.0).reshape(1, 3, 1)
    >>> batch = Batch(x, jnp.array([0]), jnp.ones(1), jnp.arange(1))
    >>> cached("weak")(batch, jax.random.key(0)).x.tolist()
    [[0.0]]
    """
    if which not in ("weak", "strong", "any"):
        raise ValueError(f"cached is {which!r}: expected weak, strong or any")

    def view(batch: Batch, key: Array) -> Batch:
        x = batch.x
        if isinstance(x, Tokens) or x.ndim != 3:
            shape = "Tokens" if isinstance(x, Tokens) else list(x.shape)
            raise ValueError(
                f"cached({which!r}) got x of {shape}: expected [batch, views, dim];"
                " embed several views, or use neighbour_views"
            )
        count = x.shape[1]
        if which == "weak" or count == 1:
            return then(batch._replace(x=x[:, 0]), key)
        first = 1 if which == "strong" else 0
        # A key of its own, so that `then` draws what it draws without views.
        keys = row_keys(side_key(key, 0), batch.index)
        pick = jax.vmap(lambda key: jax.random.randint(key, (), first, count))(keys)
        x = jnp.take_along_axis(x, pick[:, None, None], 1)[:, 0]
        return then(batch._replace(x=x), key)

    return view


def neighbour_views(
    x: Array, neighbours: Array, *, weights: Array | None = None
) -> Array:
    """A row and its neighbours as the views of the row, for `cached` to pick from.

    Args:
      x: `[rows, dim]`.
      neighbours: `int32 [rows, k]`, of a `Graph`.
      weights: `[rows, k]`, of its edges; in place of a neighbour along an edge of
        weight 0 there is the row itself.

    Returns:
      `[rows, 1 + k, dim]`, view 0 the row itself.

    Source: Dwibedi et al., 2021, "With a little help from my friends".

    >>> neighbour_views(jnp.array([[1.0], [2.0]]), jnp.array([[1], [0]])).tolist()
    [[[1.0], [2.0]], [[2.0], [1.0]]]
    """
    own = jnp.arange(len(x))[:, None]
    if weights is not None:
        neighbours = jnp.where(weights > 0, neighbours, own)
    return x[jnp.concatenate([own, neighbours], axis=1)]


def with_view(objective: Objective, view: View) -> Objective:
    """The objective of a view of the batch.

    Returns:
      An `Objective` of the same memory and terms. The head's noise is that which it
      has without the view.

    >>> from flaxhead.heads import linear
    >>> from flaxhead.losses import softmax_cross_entropy
    >>> from flaxhead.objectives import supervised
    >>> objective = supervised(linear(2), softmax_cross_entropy)
    >>> shaken = with_view(objective, chain(feature_dropout(0.2), noise(0.1)))
    """

    def apply(
        params: Params, memory: PyTree, batch: Batch, key: Array
    ) -> tuple[dict[str, Sums], PyTree]:
        seen = view(batch, side_key(key, 0))
        return objective.apply(params, memory, seen, key)

    return Objective(objective.init, apply)


def as_tokens(name: str, x: Array | Tokens) -> Tokens:
    """Tokens with a mask, whether or not there was one.

    Raises:
      ValueError: for one vector a row, naming who got it.
    """
    if isinstance(x, Tokens):
        return x
    if x.ndim != 3:
        raise ValueError(
            f"{name} got x of shape {list(x.shape)}: expected tokens, [batch, tokens,"
            " dim]"
        )
    return Tokens(x, jnp.ones(x.shape[:2], bool))


def _deviation(batch: Batch, axis: str | None) -> Array:
    """The standard deviation of each feature, `[dim]`."""
    x = batch.x
    values = x.values if isinstance(x, Tokens) else x
    mask = x.mask if isinstance(x, Tokens) else jnp.ones(values.shape[:-1], bool)
    weights = jnp.expand_dims(batch.weights, tuple(range(1, mask.ndim)))
    weights = jnp.where(mask, weights, 0).ravel()
    values = values.reshape(-1, values.shape[-1]).astype(jnp.float32)
    mean = row_mean(values, weights, axis)
    return jnp.sqrt(row_mean((values - mean) ** 2, weights, axis))


def _check_rate(name: str, rate: float | Array) -> None:
    if isinstance(rate, int | float) and not 0 <= rate < 1:
        raise ValueError(f"{name} is {rate}: expected a rate in [0, 1)")
