"""The layers of a backbone -> one vector a row, by a learned mixture."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxhead.base import Array, Head
from flaxhead.heads.attention import Attend
from flaxhead.heads.pool import learned_pool, real_tokens


class Mix(nn.Module):
    """A weight a layer, the same for all rows, and a scale."""

    @nn.compact
    def __call__(self, x: Any) -> Array:
        """Maps `[batch, layers, dim]` to `[batch, dim]`."""
        values, mask = real_tokens("mix_layers", x)
        batch, layers, _ = values.shape
        known = self.get_variable("params", "layers")
        if known is not None and known.shape != (layers,):
            raise ValueError(
                f"mix_layers got {layers} layers and has weights for {known.size}:"
                " expected as many as in training"
            )
        initializers = jax.nn.initializers
        scores = self.param("layers", initializers.zeros, (layers,))
        scale = self.param("scale", initializers.ones, ())
        weights = Attend()(jnp.broadcast_to(scores, (batch, 1, layers)), mask)
        return scale * jnp.einsum("blt,btd->bd", weights, values)


def mix_layers(head: Head) -> Head:
    r"""A head on \(\gamma \sum_l s_l x_l\), a mixture of layers with learned weights.

    The weights \(s\) are a softmax and start equal, the scale \(\gamma\) starts at 1:
    the mean. Unlike attention, a weight is of the layer's place, not of what it holds.

    Source: Peters et al., 2018, "Deep contextualized word representations" (ELMo).

    Args:
      head: a head on `[batch, dim]`.

    Returns:
      A `Head` on `[batch, layers, dim]` (or `Tokens`, where a row may lack layers, and
      the others then share its weight), with params `{"pool": {"layers": [layers],
      "scale": []}, "head": ...}`, the latter of `head`.

    Raises:
      ValueError: when the head is given one vector a row, or another number of layers.

    >>> import jax, jax.numpy as jnp
    >>> from flaxhead.heads import linear
    >>> head = mix_layers(linear(2))
    >>> params = head.init(jax.random.key(0), jnp.ones([5, 12, 4]))
    >>> params["pool"]["layers"].shape, params["head"]["output"]["kernel"].shape
    ((12,), (4, 2))
    """
    return learned_pool(head, Mix())
