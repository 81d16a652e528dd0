"""The one matrix product that every head is made of."""

from __future__ import annotations

import flax.linen as nn
import jax

from flaxhead.base import Array


def dense(x: Array, kernel: Array, *, train: bool = False) -> Array:
    """Multiplies embeddings by a kernel, in the kernel's precision.

    Under `vmap` over kernels with a shared `x` this is one product `[batch, dim] x
    [dim, candidates * classes]`, and a float16 or bfloat16 `x` is widened one
    minibatch at a time, so it stays narrow where all of the rows are kept.

    Args:
      x: `[..., dim]` embeddings, any float type.
      kernel: `[dim, features]`.
      train: whether only `jax.grad` will be taken of it, and not `jax.jvp` too. The
        gradient is then the same number from a faster product.

    Returns:
      `[..., features]`, of the kernel's type.
    """
    x = x.astype(kernel.dtype)
    # A row alone is what a head with noise is applied to under vmap: one gradient for
    # all of its rows is then up to the compiler, and not to be asked for row by row.
    if train and x.ndim == 2 and x.shape[0] > 1:
        return _product(x, kernel)
    return x @ kernel


@jax.custom_vjp
def _product(x: Array, kernel: Array) -> Array:
    """A product whose gradient reads a transposed copy of `x`.

    XLA's product on a CPU is a quarter slower where its left side is read down the
    columns, as in the gradient `x.T @ g`; the copy, shared by all candidates, costs a
    hundredth of that. The barrier keeps the compiler from undoing it.
    """
    return x @ kernel


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return gradient @ kernel.T, jax.lax.optimization_barrier(x.T) @ gradient


_product.defvjp(_forward, _backward)


class Dense(nn.Module):
    """A dense layer on `dense`.

    Attributes:
      features: the width of the output.
      zero_init: start with a kernel of zeros instead of LeCun's normal one.
    """

    features: int
    zero_init: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps `[..., dim]` to float32 `[..., features]`."""
        initializers = jax.nn.initializers
        initializer = (
            initializers.zeros if self.zero_init else initializers.lecun_normal()
        )
        kernel = self.param("kernel", initializer, (x.shape[-1], self.features))
        bias = self.param("bias", initializers.zeros, (self.features,))
        return dense(x, kernel, train=train) + bias
