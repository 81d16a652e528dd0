"""Five labels a class, all other rows without: what they add to a head."""

import jax
import jax.numpy as jnp
from sklearn.datasets import load_digits

import flaxhead as fh
from flaxhead.solvers import logistic

x, labels = (jnp.asarray(part) for part in load_digits(return_X_y=True))
rows = fh.Batch(x / 16, labels, jnp.ones(len(x)), jnp.arange(len(x)))
test = rows.index % 5 == 0
place = jnp.cumsum(jax.nn.one_hot(labels, 10) * ~test[:, None], axis=0)
drawn = ~test & (place[rows.index, labels] <= 5)  # the first five of each class

# The test rows are absent, as their weight in the data is 0. Rows that only the
# argument `weights` leaves out are there, and their labels are not read.
pool = rows._replace(weights=jnp.where(test, 0.0, 1.0))
head, supervised = fh.linear(10), logistic(10)
fits = {
    "labelled rows alone": supervised,
    "with a graph of all rows": fh.with_graph(supervised, head, classes=10),
    "labels it gives itself": fh.self_train(
        supervised, head, classes=10, threshold=0.8, rounds=3
    ),
}
for name, fit in fits.items():
    settings, key = {"C": jnp.float32(10)}, jax.random.key(0)
    params = jax.jit(fit)(pool, drawn.astype("float32"), settings, key)
    right = head.apply(params, rows.x).argmax(-1) == labels
    print(f"{name}: test accuracy {right[test].mean():.3f}")
