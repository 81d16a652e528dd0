"""Eight MLP heads in one program, what they agree on, and the best few of a sweep."""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import flaxhead as fh

x, labels = (jnp.asarray(part) for part in load_digits(return_X_y=True))
rows = fh.Batch(x / 16, labels, jnp.ones(len(x)), jnp.arange(len(x)))
split = rows.index % 5  # 0: test, 1: validation
weights = jnp.where(split > 1, 1.0, 0.0)

head = fh.mlp(10, width=32, zero_init=False)
objective = fh.supervised(head, fh.softmax_cross_entropy)


def make_learner(hyperparameters: dict[str, jax.Array]) -> fh.Learner:
    return fh.learner(head, objective, optax.adam(hyperparameters["learning_rate"]))


fit = fh.sweep(fh.seeds(fh.train(make_learner, steps=150, batch_size=128), 2))
rates = {"learning_rate": jnp.array([1e-3, 3e-3, 1e-2, 3e-2])}
params = jax.jit(fit)(rows, weights, rates, jax.random.key(0))  # [rates, seeds, ...]
params = jax.tree.map(lambda leaf: leaf.reshape(8, *leaf.shape[2:]), params)
logits = fh.members(head, 8).apply(params, rows.x)  # [8, rows, 10]
chances = jax.nn.log_softmax(logits)[..., rows.index, labels]
best = chances[:, split == 1].mean(-1).argmax()
counts = fh.greedy_selection(logits[:, split == 1], labels[split == 1], size=10)
for name, made in {
    "best candidate by validation": logits[best],
    "all eight": fh.pool_probabilities(logits),
    f"chosen, {int((counts > 0).sum())} of them": fh.pool_probabilities(logits, counts),
}.items():
    chances = jax.nn.log_softmax(made)[rows.index, labels]
    print(f"{name}: test NLL {-chances[split == 0].mean():.3f}")
