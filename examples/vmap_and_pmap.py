"""One learner, twice: side by side under `vmap`, and shared out under `pmap`.

Under `vmap` each candidate has its learning rate. Under `pmap` each device has a share
of the rows; `axis` names the device axis that losses and gradients are summed over.
"""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import flaxhead as fh

devices = jax.local_device_count()
count = 1600 // devices * devices
x, labels = (jnp.asarray(part[:count]) for part in load_digits(return_X_y=True))
rows = fh.Batch(x / 16, labels, jnp.ones(count), jnp.arange(count))
head = fh.linear(10)
objective = fh.supervised(head, fh.softmax_cross_entropy)


def losses(rate: jax.Array, rows: fh.Batch, axis: str | None = None) -> fh.Info:
    """The losses of 50 steps on all rows, each `[50]`."""
    learner = fh.learner(head, objective, optax.sgd(rate), axis=axis)
    state = learner.init(jax.random.key(0), rows)
    return jax.lax.scan(lambda state, _: learner.step(state, rows), state, length=50)[1]


rates = jnp.array([0.01, 0.1, 1.0])
side_by_side = jax.jit(jax.vmap(losses, in_axes=(0, None)))(rates, rows).loss
print("vmap, last loss of each rate:", side_by_side[:, -1].round(4))

shares = jax.tree.map(lambda leaf: leaf.reshape(devices, -1, *leaf.shape[1:]), rows)
split = jax.pmap(lambda rows: losses(rates[1], rows, "devices"), axis_name="devices")
shared_out = split(shares).loss[0]  # Every device has the same.
print(f"pmap, last loss of rate 0.1 on {devices} device(s):", shared_out[-1].round(4))
print("largest difference:", jnp.abs(shared_out - side_by_side[1]).max())
