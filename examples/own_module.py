"""Your own Flax linen module as a head: a gated layer with dropout.

`fh.from_linen` gives it keys a row, so its noise depends neither on the device nor on
where in the batch a row stands.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_wine

import flaxhead as fh


class Gated(nn.Module):
    """A hidden layer that is multiplied by a gate of its own."""

    @nn.compact
    def __call__(self, x, *, train: bool):
        x = nn.Dense(32)(x) * nn.sigmoid(nn.Dense(32)(x))
        return nn.Dense(3)(nn.Dropout(0.2, deterministic=not train)(x))


x, labels = (jnp.asarray(part, "float32") for part in load_wine(return_X_y=True))
rows = fh.Batch(x, labels.astype(int), jnp.ones(len(x)), jnp.arange(len(x)))
weights = jnp.where(jnp.arange(len(x)) % 4 == 0, 0.0, 1.0)

head = fh.standardize(fh.from_linen(Gated()), *fh.statistics(x, weights))
loss = fh.label_smoothing(fh.softmax_cross_entropy, 0.1)
learner = fh.learner(head, fh.supervised(head, loss), optax.adamw(1e-2))
fit = jax.jit(fh.train(lambda _: learner, steps=200, batch_size=64))
params = fit(rows, weights, {}, jax.random.key(0))

right = head.apply(params, x).argmax(-1) == rows.labels
print(f"held-out accuracy {right[weights == 0].mean():.3f}")
