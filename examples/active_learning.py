"""Which rows to label: first twenty typical ones, then those that a head doubts.

`acquire` is a pure function: scores and embeddings in, row numbers out. Here all labels
are there, and are read once their rows are chosen.
"""

import jax
import jax.numpy as jnp
from sklearn.datasets import load_digits

import flaxhead as fh
from flaxhead.acquisition import acquire, margin
from flaxhead.solvers import logistic

x, labels = (jnp.asarray(part) for part in load_digits(return_X_y=True))
test = jnp.arange(len(x)) % 4 == 0
weights = jnp.where(test, 0.0, 1.0)  # A row of weight 0 is absent, and never chosen.
rows = fh.Batch(x / 16, labels, weights, jnp.arange(len(x)))
head, fit = fh.linear(10), jax.jit(logistic(10))
keys = jax.random.split(jax.random.key(0), 5)


def logits_of(labelled: jax.Array) -> jax.Array:
    """Logits of all rows, from a head that knows the labels of some."""
    known = jnp.zeros(len(x)).at[labelled].set(1.0)
    return head.apply(fit(rows, known, {"C": jnp.float32(10)}, keys[0]), rows.x)


lots = jax.random.uniform(keys[1], (len(x),))
drawn = acquire(lots, x, 60, weights=weights)  # At random, to compare with.
chosen = acquire(None, x, 20, how="typiclust", weights=weights, key=keys[2])
for count in (20, 40, 60):
    if count > 20:  # In doubt, and unlike each other.
        doubt = margin(jax.nn.softmax(logits_of(chosen)))
        given = {"weights": weights, "labelled": chosen, "key": keys[count // 20 + 1]}
        chosen = jnp.append(chosen, acquire(doubt, x, 20, how="kmeans", **given))
    right = [logits_of(part).argmax(-1) == labels for part in (chosen, drawn[:count])]
    ours, theirs = (float(part[test].mean()) for part in right)
    print(f"{count} labels: accuracy {ours:.3f} chosen, {theirs:.3f} at random")
