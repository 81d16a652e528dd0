"""A trained head for other classes: two added to eight, or all of them replaced."""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import flaxhead as fh

x, labels = (jnp.asarray(part) for part in load_digits(return_X_y=True))
rows = fh.Batch(x / 16, labels, jnp.ones(len(x)), jnp.arange(len(x)))


def objective(head: fh.Head) -> fh.Objective:
    return fh.supervised(head, fh.softmax_cross_entropy)


def train(head: fh.Head, weights: jax.Array):
    """Trains a head on the rows that weigh something."""
    learner = fh.learner(head, objective(head), optax.adam(1e-2))
    fit = jax.jit(fh.train(lambda _: learner, steps=150, batch_size=256))
    return fit(rows, weights, {}, jax.random.key(0))


eight, ten, two = (fh.mlp(classes, width=64) for classes in (8, 10, 2))
old = train(eight, jnp.where(labels < 8, 1.0, 0.0))

more = fh.extend_classes(old, 10, key=jax.random.key(1))
kept = jnp.array_equal(more["output"]["kernel"][:, :8], old["output"]["kernel"])
print("rows of the old classes kept:", kept)
more = train(ten._replace(init=lambda key, x: more), rows.weights)
right = ten.apply(more, rows.x).argmax(-1) == labels
print(f"ten classes after more training: accuracy {right.mean():.3f}")

parity = fh.replace_classes(old, 2, key=jax.random.key(2))  # Hidden layers are kept.
rows = rows._replace(labels=labels % 2)
parity = train(two._replace(init=lambda key, x: parity), rows.weights)
right = two.apply(parity, rows.x).argmax(-1) == rows.labels
print(f"odd or even instead: accuracy {right.mean():.3f}")
