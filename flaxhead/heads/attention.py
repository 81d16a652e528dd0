"""Tokens -> one vector a row, by attention that is trained with the head."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxhead.base import Array, Head, Params
from flaxhead.heads.dense import Dense, dense
from flaxhead.heads.pool import learned_pool, real_tokens

_NEAR_ZERO = jax.nn.initializers.normal(0.02)
_PROJECTION = jax.nn.initializers.lecun_normal()
_PROJECTIONS = jax.nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))


class Attend(nn.Module):
    """Scores -> weights that sum to 1 over the real tokens; what pictures show.

    A module of its own without parameters, so that `attention_weights` finds it.
    """

    @nn.compact
    def __call__(self, scores: Array, mask: Array) -> Array:
        """Maps scores `[batch, ..., tokens]` and mask `[batch, tokens]` to weights.

        A token that isn't real weighs exactly 0, and a row without any has no weight.
        """
        mask = mask.reshape(mask.shape[0], *[1] * (scores.ndim - 2), mask.shape[1])
        some = jnp.any(mask, axis=-1, keepdims=True)
        highest = jnp.max(scores, axis=-1, keepdims=True, where=mask, initial=-jnp.inf)
        shift = jax.lax.stop_gradient(jnp.where(some, highest, 0))
        # Twice `where`: exp of a score that isn't counted may be infinite, and so would
        # be its gradient times 0.
        raised = jnp.where(mask, jnp.exp(jnp.where(mask, scores - shift, 0)), 0)
        total = jnp.sum(raised, axis=-1, keepdims=True)
        return raised / jnp.where(some, total, 1)


class Query(nn.Module):
    """Learned queries against the tokens as they are."""

    queries: int
    heads: int
    width: int

    @nn.compact
    def __call__(self, x: Any) -> Array:
        """Maps tokens to `[batch, queries * dim]`."""
        values, mask = real_tokens("attention_pool", x)
        batch, tokens, dim = values.shape
        part = _split("dim", dim, "heads", self.heads)
        # A projection of the keys would add nothing: (x W) q = x (W q).
        shape = (self.queries, self.heads, dim)
        query = self.param("query", _start(self.queries), shape)
        scores = jnp.einsum("btd,qhd->bqht", values, query) / math.sqrt(dim)
        weights = Attend()(scores, mask)
        parts = values.reshape(batch, tokens, self.heads, part)
        return jnp.einsum("bqht,bthd->bqhd", weights, parts).reshape(batch, -1)


class Map(nn.Module):
    """Multi-head attention of learned probes, then an MLP beside a shortcut."""

    queries: int
    heads: int
    width: int

    @nn.compact
    def __call__(self, x: Any) -> Array:
        """Maps tokens to `[batch, queries * dim]`."""
        values, mask = real_tokens("attention_pool", x)
        dim = values.shape[-1]
        part = _split("dim", dim, "heads", self.heads)
        shape = (dim, self.heads, part)
        probe = self.param("probe", _start(self.queries), (self.queries, dim))
        key = self.param("key", _PROJECTIONS, shape)
        value = self.param("value", _PROJECTIONS, shape)
        bias = self.param("value_bias", jax.nn.initializers.zeros, shape[1:])
        # Keys and values are projected last: weights sum to 1, so that to project the
        # weighted mean is the same, and the work is for a query and not for each token.
        # A bias of the keys would add as much to every token's score: none.
        query = Dense(dim, name="query")(probe, train=False)
        query = query.reshape(self.queries, self.heads, part) / math.sqrt(part)
        query = jnp.einsum("qhe,dhe->qhd", query, key)
        weights = Attend()(jnp.einsum("btd,qhd->bqht", values, query), mask)
        pooled = jnp.einsum("bqht,btd->bqhd", weights, values)
        mixed = jnp.einsum("bqhd,dhe->bqhe", pooled, value) + bias
        mixed = mixed.reshape(-1, self.queries, dim)
        out = Dense(dim, name="output")(mixed, train=False)
        hidden = Dense(self.width, name="hidden")(
            nn.LayerNorm(name="norm")(out), train=False
        )
        more = Dense(dim, True, name="mlp_output")(jax.nn.gelu(hidden), train=False)
        some = jnp.any(mask, axis=-1)[:, None]
        return jnp.where(some, (out + more).reshape(-1, self.queries * dim), 0)


class MultiQuery(nn.Module):
    """Learned queries against the tokens as they are, a part of the values each."""

    queries: int
    heads: int
    width: int

    @nn.compact
    def __call__(self, x: Any) -> Array:
        """Maps tokens to `[batch, dim]`."""
        values, mask = real_tokens("attention_pool", x)
        dim = values.shape[-1]
        part = _split("dim", dim, "queries", self.queries)
        # Zeros are no standstill for many queries: their values differ.
        zeros = jax.nn.initializers.zeros
        query = self.param("query", zeros, (self.queries, dim))
        value = self.param("value", _PROJECTIONS, (dim, self.queries, part))
        scores = jnp.einsum("btd,qd->bqt", values, query) / math.sqrt(dim)
        weights = Attend()(scores, mask)
        pooled = jnp.einsum("bqt,btd->bqd", weights, values)
        return jnp.einsum("bqd,dqe->bqe", pooled, value).reshape(-1, dim)


class Gated(nn.Module):
    """Scores of a hidden layer with gates."""

    queries: int
    heads: int
    width: int

    @nn.compact
    def __call__(self, x: Any) -> Array:
        """Maps tokens to `[batch, queries * dim]`."""
        values, mask = real_tokens("attention_pool", x)
        batch, _, dim = values.shape
        shape = (dim, self.width)
        content = dense(values, self.param("tanh", _PROJECTION, shape))
        gate = dense(values, self.param("sigmoid", _PROJECTION, shape))
        hidden = jnp.tanh(content) * jax.nn.sigmoid(gate)
        score = self.param("score", _start(self.queries), (self.width, self.queries))
        scores = jnp.moveaxis(dense(hidden, score), -1, 1)
        weights = Attend()(scores, mask)
        return jnp.einsum("bqt,btd->bqd", weights, values).reshape(batch, -1)


ATTENTIONS = {"query": Query, "map": Map, "multi_query": MultiQuery, "gated": Gated}
"""Name -> module of `queries`, `heads` and `width`, from tokens to one vector a row."""
MULTI_HEAD = ("query", "map")
"""The kinds whose queries can have several heads."""


def attention_pool(
    head: Head, *, kind: str, queries: int = 1, heads: int = 1, width: int = 128
) -> Head:
    r"""A head on a weighted mean of the tokens, whose weights are learned with it.

    The weights of one query are a softmax over the real tokens \(x_t\) of

    * `query`: \(q^\top x_t / \sqrt{d}\) with a learned \(q\); each of several heads
      has its own, and pools its own part of the dimensions.
    * `map`: \(q^\top K x_t\), attention of a learned probe with projected keys and
      values, then layer normalisation and an MLP beside a shortcut (Zhai et al., 2022,
      "Scaling vision transformers"; the pooling of SigLIP).
    * `multi_query`: as `query`, but each of the queries pools its own part of the
      projected values: `dim` numbers a row, however many queries (Psomas et al., 2025,
      "Attention, please! Revisiting attentive probing").
    * `gated`: \(w^\top (\tanh(V x_t) \odot \sigma(U x_t))\) (Ilse et al., 2018,
      "Attention-based deep multiple instance learning").

    The first three score by a product with the tokens as they come, so that how fast
    they learn goes by the tokens' scale: standardise them first. At the start all
    weights are equal (nearly, where several queries have to differ): a head on `query`
    or `gated` starts as `pool(head, "mean")`, on the others as a linear map of it.

    Args:
      head: a head on `[batch, features]`.
      kind: a name from `ATTENTIONS`.
      queries: how many weighted means there are. They are put side by side; those of
        `multi_query` are the parts of one vector, and their number divides `dim`.
      heads: attention heads of each query (`query`, `map`); their number divides `dim`.
      width: hidden units (`gated`, and the MLP of `map`, often `4 * dim` there).

    Returns:
      A `Head` on `[batch, tokens, dim]` or `Tokens`, with params `{"pool": ..., "head":
      ...}`, the latter of `head`. Padding changes neither logits nor gradients,
      whatever it holds; a row without a real token is pooled to zeros.

    Raises:
      ValueError: if `kind` is unknown or a number is not one that it can have, or when
        the head is given no tokens.

    >>> import jax, jax.numpy as jnp
    >>> from flaxhead.heads import linear
    >>> head = attention_pool(linear(2), kind="query", queries=3)
    >>> params = head.init(jax.random.key(0), jnp.ones([5, 7, 4]))
    >>> params["pool"]["query"].shape, params["head"]["output"]["kernel"].shape
    ((3, 1, 4), (12, 2))
    """
    if kind not in ATTENTIONS:
        raise ValueError(f"kind is {kind!r}: expected one of {', '.join(ATTENTIONS)}")
    if min(queries, heads, width) < 1:
        raise ValueError(
            f"attention_pool got queries {queries}, heads {heads} and width {width}:"
            " expected 1 or more of each"
        )
    if heads > 1 and kind not in MULTI_HEAD:
        raise ValueError(
            f"heads is {heads}, but the kind {kind!r} has no heads: ask for several"
            f" queries instead, or for one of {', '.join(MULTI_HEAD)}"
        )
    return learned_pool(head, ATTENTIONS[kind](queries, heads, width))


def attention_weights(head: Head, params: Params, x: Any) -> Array:
    """How much each token weighs in what a head pools, for pictures.

    Args:
      head: made with `attention_pool` or `mix_layers`, and wrapped or not: for a head
        read from its folder, `LoadedHead.head`, which also normalises the tokens.
      params: its parameters.
      x: `[batch, tokens, dim]` or `Tokens`.

    Returns:
      float32 `[batch, queries * heads, tokens]`, the heads of a query side by side; a
      row sums to 1 over its real tokens, and to 0 if there is none.

    Raises:
      ValueError: if the head has no attention.

    >>> import jax, jax.numpy as jnp
    >>> from flaxhead.heads import linear
    >>> head, x = attention_pool(linear(2), kind="gated"), jnp.ones([5, 4, 3])
    >>> params = head.init(jax.random.key(0), x)
    >>> attention_weights(head, params, x)[0].tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """
    found: list[Array] = []

    def keep(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        result = call(*args, **kwargs)
        if isinstance(context.module, Attend):
            found.append(result)
        return result

    with nn.intercept_methods(keep):
        head.apply(params, x)
    if not found:
        raise ValueError(
            "the head has no attention to show: expected one made with attention_pool"
            " or mix_layers"
        )
    weights = found[0]
    return weights.reshape(weights.shape[0], -1, weights.shape[-1])


def _start(queries: int) -> Any:
    """Zeros; but several queries that start alike would stay alike."""
    return jax.nn.initializers.zeros if queries == 1 else _NEAR_ZERO


def _split(whole_name: str, whole: int, name: str, parts: int) -> int:
    if whole % parts:
        raise ValueError(
            f"{name} is {parts}, which does not divide {whole_name}, {whole}: expected"
            " a number that does, as each has a part of its own"
        )
    return whole // parts
