"""A linear head trained with pure functions only: no folder, no config, no state.

`make_learner` is called inside the traced program, so the one program that `jax.jit`
compiles serves every learning rate, and `fh.sweep` tries four side by side.
"""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import flaxhead as fh

x, labels = (jnp.asarray(part, "float32") for part in load_digits(return_X_y=True))
rows = fh.Batch(x, labels.astype(int), jnp.ones(len(x)), jnp.arange(len(x)))
held_out = jnp.arange(len(x)) % 5 == 0
weights = jnp.where(held_out, 0.0, 1.0)  # A row of weight 0 is absent.

head = fh.standardize(fh.linear(10), *fh.statistics(x, weights))
objective = fh.supervised(head, fh.softmax_cross_entropy)


def make_learner(hyperparameters: dict[str, jax.Array]) -> fh.Learner:
    """One optimisation step, for a learning rate that may be traced."""
    return fh.learner(head, objective, optax.adam(hyperparameters["learning_rate"]))


fit = jax.jit(fh.sweep(fh.train(make_learner, steps=300, batch_size=256)))
rates = jnp.array([1e-4, 1e-3, 1e-2, 1e-1])
params = fit(rows, weights, {"learning_rate": rates}, jax.random.key(0))

logits = jax.vmap(head.apply, in_axes=(0, None))(params, x)  # [candidates, rows, 10]
right = logits.argmax(-1) == rows.labels
for rate, share in zip(rates, right[:, held_out].mean(axis=1), strict=True):
    print(f"learning rate {rate:.4f}: held-out accuracy {share:.3f}")
