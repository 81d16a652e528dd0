"""The one matrix product that every head is made of."""

from __future__ import annotations

import flax.linen as nn
import jax

from flaxhead.base import Array


def dense(x: Array, kernel: Array) -> Array:
    """Multiplies embeddings by a kernel, in the kernel's precision.

    Under `vmap` over kernels with a shared `x` this is one product `[batch, dim] x
    [dim, candidates * classes]`, and a float16 or bfloat16 `x` is widened one
    minibatch at a time, so it stays narrow where all of the rows are kept.

    Args:
      x: `[..., dim]` embeddings, any float type.
      kernel: `[dim, features]`.

    Returns:
      `[..., features]`, of the kernel's type.
    """
    return x.astype(kernel.dtype) @ kernel


class Dense(nn.Module):
    """A dense layer on `dense`.

    Attributes:
      features: the width of the output.
      zero_init: start with a kernel of zeros instead of LeCun's normal one.
    """

    features: int
    zero_init: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `[..., dim]` to float32 `[..., features]`."""
        initializers = jax.nn.initializers
        initializer = (
            initializers.zeros if self.zero_init else initializers.lecun_normal()
        )
        kernel = self.param("kernel", initializer, (x.shape[-1], self.features))
        bias = self.param("bias", initializers.zeros, (self.features,))
        return dense(x, kernel) + bias
