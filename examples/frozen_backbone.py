"""A frozen Flax module in front of a head: embed each row once, train, join the two.

The backbone holds its own parameters, where the optimiser never sees them.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import flaxhead as fh

images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1).astype("float32") / 16
module = nn.Sequential([nn.Conv(64, (3, 3)), nn.relu, lambda x: x.max((1, 2))])
frozen = module.init(jax.random.key(0), images[:1])  # Random filters will do here.
before = jax.tree.map(np.array, frozen)
features, embedded = jax.jit(module.apply), []


def backbone(images):
    embedded.append(len(images))
    return features(frozen, images)


x = jnp.concatenate([backbone(part) for part in np.array_split(images, 3)])
rows = fh.Batch(x, jnp.asarray(labels), jnp.ones(len(x)), jnp.arange(len(x)))
head = fh.standardize(fh.linear(10), *fh.statistics(x, rows.weights))
objective = fh.supervised(head, fh.softmax_cross_entropy)
learner = fh.learner(head, objective, optax.adam(0.03))
fit = jax.jit(fh.train(lambda _: learner, steps=300, batch_size=256))
params = fit(rows, rows.weights, {}, jax.random.key(1))
assert sum(embedded) == len(images)  # Once a row; 300 steps never called it.
right = fh.attach(backbone, head).apply(params, images).argmax(-1) == labels
print(f"accuracy from pixels {right.mean():.3f}")
print("backbone as it was:", jax.tree.all(jax.tree.map(np.array_equal, before, frozen)))
