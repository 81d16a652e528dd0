"""Tokens -> one vector a row."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxhead.base import Array, Head, Params, Tokens
from flaxhead.heads.compose import preprocess
from flaxhead.heads.lifts import from_linen

_LEAST = 1e-6  # What GeM takes smaller numbers for, as in the paper.


def _mean(values: Array, mask: Array) -> Array:
    total = jnp.sum(jnp.where(mask, values.astype(jnp.float32), 0), axis=1)
    return total / jnp.maximum(jnp.sum(mask, axis=1), 1)


def _max(values: Array, mask: Array) -> Array:
    largest = jnp.max(jnp.where(mask, values, -jnp.inf), axis=1)
    return jnp.where(jnp.any(mask, axis=1), largest, 0)


def _cls(values: Array, mask: Array) -> Array:
    first = jnp.take_along_axis(values, jnp.argmax(mask, axis=1, keepdims=True), axis=1)
    return jnp.where(jnp.any(mask, axis=1), first[:, 0], 0)


POOLINGS = {"mean": _mean, "max": _max, "cls": _cls}
"""Name -> `(values [batch, tokens, dim], mask [batch, tokens, 1]) -> [batch, dim]`."""


def check_input(head_name: str, x: Any) -> None:
    """Refuses tokens where a head expects one embedding a row.

    Args:
      head_name: the head's name, for the message.
      x: what the head was given.

    Raises:
      ValueError: if `x` is `Tokens` or an array of more than two dimensions.
    """
    values = x.values if isinstance(x, Tokens) else x
    if values.ndim > 2:
        raise ValueError(
            f"the {head_name} head got tokens of shape {values.shape} and expected"
            " embeddings [batch, dim]: pool them first, by"
            f" {', '.join(POOLINGS)} (flaxhead.pool, or pool in the head's config)"
        )


def pool(head: Head, how: str) -> Head:
    """A head on tokens, which are first made one vector a row.

    Args:
      head: a head on `[batch, dim]`.
      how: `mean` or `max` over the real tokens, or `cls`, the first real token.

    Returns:
      A `Head` on `[batch, tokens, dim]` or `Tokens`, with the parameters of `head`.
      A row without a real token is pooled to zeros.

    Raises:
      ValueError: if `how` is unknown, or when the head is given no tokens.

    >>> import jax, jax.numpy as jnp
    >>> from flaxhead.heads import linear
    >>> head = pool(linear(2), "mean")
    >>> params = head.init(jax.random.key(0), jnp.ones([5, 7, 3]))
    >>> head.apply(params, jnp.ones([5, 7, 3])).shape
    (5, 2)
    """
    if how not in POOLINGS:
        raise ValueError(f"how is {how!r}: expected one of {', '.join(POOLINGS)}")

    def pooled(x: Any) -> Array:
        values, mask = _tokens(f"pool({how!r})", x)
        return POOLINGS[how](values, mask[..., None])

    return preprocess(head, pooled)


class Gem(nn.Module):
    """The generalised mean; the attribute is `gem`'s argument."""

    exponent: float

    @nn.compact
    def __call__(self, x: Any) -> Array:
        """Maps tokens to `[batch, dim]`."""
        values, mask = real_tokens("gem", x)
        mask = mask[..., None]
        some = jnp.any(mask, axis=1)
        # Its logarithm is learned: the exponent then stays positive.
        start = jax.nn.initializers.constant(math.log(self.exponent))
        exponent = jnp.exp(self.param("log_exponent", start, ()))
        logs = jnp.log(jnp.maximum(values, _LEAST))
        # By logarithms about the largest: no power of any exponent overflows.
        highest = jnp.max(logs, axis=1, where=mask, initial=math.log(_LEAST))
        highest = jax.lax.stop_gradient(highest)
        powers = jnp.exp(exponent * (logs - highest[:, None]))
        powers = jnp.sum(jnp.where(mask, powers, 0), axis=1)
        mean = jnp.where(some, powers / jnp.maximum(jnp.sum(mask, axis=1), 1), 1)
        return jnp.where(some, jnp.exp(jnp.log(mean) / exponent + highest), 0)


def gem(head: Head, *, exponent: float = 3.0) -> Head:
    r"""A head on the generalised mean of tokens, \((\sum_t x_t^p / n)^{1/p}\).

    Between the mean, \(p = 1\), and the maximum, \(p \to \infty\), feature by feature,
    with one learned exponent. It is of positive numbers: those below 1e-6 count as
    1e-6, so features that are centred lose their negative half.

    Source: Radenovic, Tolias and Chum, 2018, "Fine-tuning CNN image retrieval with no
    human annotation".

    Args:
      head: a head on `[batch, dim]`.
      exponent: where the exponent starts.

    Returns:
      A `Head` on `[batch, tokens, dim]` or `Tokens`, with params `{"pool":
      {"log_exponent": []}, "head": ...}`, the latter of `head`. A row without a real
      token is pooled to zeros.

    Raises:
      ValueError: if `exponent` is not positive, or when the head is given no tokens.

    >>> import jax, jax.numpy as jnp
    >>> from flaxhead.heads import linear
    >>> head = gem(linear(2))
    >>> params = head.init(jax.random.key(0), jnp.ones([5, 7, 3]))
    >>> round(float(jnp.exp(params["pool"]["log_exponent"])), 4)
    3.0
    """
    if exponent <= 0:
        raise ValueError(f"exponent is {exponent}: expected a positive number")
    return learned_pool(head, Gem(exponent))


def learned_pool(head: Head, module: nn.Module) -> Head:
    """A head on what a linen module makes of tokens, trained together.

    Args:
      head: a head on `[batch, features]`.
      module: maps `[batch, tokens, dim]` or `Tokens` to `[batch, features]`; it draws
        no random numbers.

    Returns:
      A `Head` with params `{"pool": ..., "head": ...}`, the module's and those of
      `head`.
    """
    pooling = from_linen(module)

    def init(key: Array, x: Any) -> Params:
        # The head keeps its key: a pooling that starts as the mean changes nothing.
        own = pooling.init(jax.random.fold_in(key, 1), x)
        return {"pool": own, "head": head.init(key, pooling.apply(own, x))}

    def apply(
        params: Params, x: Any, *, key: Array | None = None, train: bool = False
    ) -> Array:
        pooled = pooling.apply(params["pool"], x)
        return head.apply(params["head"], pooled, key=key, train=train)

    return Head(init, apply)


def real_tokens(name: str, x: Any) -> tuple[Array, Array]:
    """Splits tokens into float32 values, zeros where padded, and their mask.

    Padding is gone before it meets a parameter: 0 times NaN is NaN in a gradient too.

    Raises:
      ValueError: if `x` is no tokens; it names the function that wanted some.
    """
    values, mask = _tokens(name, x)
    return jnp.where(mask[..., None], values.astype(jnp.float32), 0), mask


def _tokens(name: str, x: Any) -> tuple[Array, Array]:
    values = x.values if isinstance(x, Tokens) else x
    if values.ndim != 3:
        raise ValueError(
            f"{name} got embeddings of shape {values.shape} and expected tokens"
            " [batch, tokens, dim]: leave pooling out for one vector a row"
        )
    mask = x.mask if isinstance(x, Tokens) else jnp.ones(values.shape[:2], bool)
    return values, mask
