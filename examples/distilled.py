"""Semi-supervised, an ensemble, and both distilled into one head: one expression."""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import flaxhead as fh
from flaxhead.solvers import logistic

x, labels = (jnp.asarray(part) for part in load_digits(return_X_y=True))
rows = fh.Batch(x / 16, labels, jnp.ones(len(x)), jnp.arange(len(x)))
test = rows.index % 5 == 0
place = jnp.cumsum(jax.nn.one_hot(labels, 10) * ~test[:, None], axis=0)
drawn = jnp.where(~test & (place[rows.index, labels] <= 5), 1.0, 0.0)
pool = rows._replace(weights=jnp.where(test, 0.0, 1.0))

head = fh.mlp(10, width=64, zero_init=False)
objective = fh.supervised(head, fh.softmax_cross_entropy)
learner = fh.learner(head, objective, optax.adam(3e-3))
fit = fh.train(lambda _: learner, steps=100, batch_size=256)

one_head = fh.distill(
    fh.seeds(fh.with_graph(fit, head, classes=10), 5),
    fh.ensemble(head, 5),
    logistic(10),
    classes=10,
)
for name, made, run in (
    ("one MLP, labelled rows alone", head, fit),
    ("five with a graph, as one linear head", fh.linear(10), one_head),
):
    params = jax.jit(run)(pool, drawn, {"C": jnp.float32(10)}, jax.random.key(0))
    right = made.apply(params, rows.x).argmax(-1) == labels
    print(f"{name}: test accuracy {right[test].mean():.3f}")
