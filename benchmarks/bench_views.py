"""Views embedded beforehand: what augmentations of each row add to few labels.

    python benchmarks/bench_views.py [sst2_views]
        [--shots 1 5 10 20 100] [--draws 10] [--choose]

The folder has `train.npz` with embeddings `[rows, views, dim]`, view 0 the row as it
is, and `val.npz`. `sst2_views` is made of the sentences of SST-2: view 0 is the whole
sentence, and four others lack each word with probability 0.2, each embedded by
all-MiniLM-L6-v2; docs/few_labels.md has the lines that do it.

Draws so many labels a class; the other rows of train count as unlabelled. All heads are
linear and are scored on view 0 of test rows, a fifth of `train.npz`: logistic
regression on view 0 of the labelled rows; on all of their views as rows, which together
weigh as much as one (the baseline that has the same views); and heads trained by Adam,
supervised and with consistency terms, without the views of the folder and with; the
strong side of a term is noisy in both.
One setting for all numbers of labels. `--choose` scores other draws on the rows of
`val.npz` instead, by which settings were chosen. Embeddings are in the folder that
FLAXHEAD_DATA names (default: data).
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxhead.base import Array, Batch, Head, Info, Learner, State, View
from flaxhead.config import DataConfig
from flaxhead.data import load, to_batch
from flaxhead.fit import train
from flaxhead.folds import shots
from flaxhead.heads import linear, preprocess, statistics
from flaxhead.losses import softmax_cross_entropy
from flaxhead.objectives import (
    CONSISTENCY,
    cached,
    chain,
    feature_dropout,
    noise,
    supervised,
    with_view,
)
from flaxhead.solvers import logistic
from flaxhead.step import learner

DATA = Path(os.environ.get("FLAXHEAD_DATA", "data"))
SHAKEN = chain(noise(0.5), feature_dropout(0.2))
SEEN: dict[str, View] = {
    "row": cached("weak"),
    "row shaken": cached("weak", then=SHAKEN),
    "any": cached("any"),
    "other shaken": cached("strong", then=SHAKEN),
}
"""What heads see of a row."""
ROLES = {"": ("row", "row", "row shaken"), ", views": ("any", "row", "other shaken")}
"""What the loss and both sides of a consistency term see, without views and with, which
are the defaults of `train.py`."""
METHODS = ("adam", "fixmatch", "freematch", "softmatch", "uda")
TRAINED = [(name, how) for name in METHODS for how in ROLES]


def solved(rows: Batch, x: Array, classes: int, C: float) -> Array:
    """Logits of logistic regression on the labelled rows."""
    fit, key = logistic(classes), jax.random.key(0)
    params = fit(rows, jnp.ones(len(rows.labels)), {"C": jnp.float32(C)}, key)
    return linear(classes).apply(params, x)


def flat(rows: Batch) -> Batch:
    """Each view as a row; those of a row weigh as much as it."""
    count = rows.x.shape[1]
    return Batch(
        rows.x.reshape(-1, rows.x.shape[-1]),
        jnp.repeat(rows.labels, count),
        jnp.repeat(rows.weights / count, count),
        jnp.arange(count * len(rows.labels)),
    )


def trained(
    rows: Batch, weights: Array, x: Array, classes: int, weight: float
) -> dict[str, Array]:
    """Logits of linear heads on standardised rows, trained side by side, 500 steps."""
    head = linear(classes)
    mean, std = statistics(rows.x[:, 0], rows.weights)
    std = jnp.where(std == 0, 1, std)
    rows, x = rows._replace(x=(rows.x - mean) / std), (x - mean) / std
    each = {
        f"{name}{how}": _learner(head, name, ROLES[how], classes, rows, weight)
        for name, how in TRAINED
    }
    fit = train(lambda _: _together(each), steps=500, batch_size=32, unlabelled=128)
    params = fit(rows, weights, {}, jax.random.key(0))
    return {name: head.apply(one, x) for name, one in params.items()}


def _learner(
    head: Head,
    name: str,
    seen: tuple[str, str, str],
    classes: int,
    rows: Batch,
    weight: float,
) -> Learner:
    """One method, on x `[batch, things seen, dim]`."""
    own, weak, strong = (_one(list(SEEN).index(each)) for each in seen)
    objective = with_view(supervised(head, softmax_cross_entropy), own)
    if name in CONSISTENCY:
        objective += weight * CONSISTENCY[name](
            head, classes=classes, views=(weak, strong), rows=len(rows.labels)
        )
    first = preprocess(head, lambda x: x[:, 0])
    return learner(first, objective, optax.adamw(3e-3, weight_decay=0.1))


def _one(number: int) -> View:
    return lambda batch, key: batch._replace(x=batch.x[:, number])


def _together(learners: dict[str, Learner]) -> Learner:
    """Learners that see the same draws of the same rows."""

    def seen(batch: Batch, key: Array) -> Batch:
        keys = jax.random.split(key, len(SEEN))
        each = zip(SEEN.values(), keys, strict=True)
        return batch._replace(x=jnp.stack([view(batch, k).x for view, k in each], 1))

    def told(states: dict[str, State], step: Array, key: Array) -> State:
        params = {name: state.params for name, state in states.items()}
        return State(step, params, states, (), key)

    def init(key: Array, batch: Batch) -> State:
        batch = seen(batch, key)
        states = {name: one.init(key, batch) for name, one in learners.items()}
        return told(states, jnp.zeros((), jnp.int32), key)

    def step(state: State, batch: Batch) -> tuple[State, Info]:
        batch = seen(batch, jax.random.fold_in(state.key, state.step))
        states = {
            name: one.step(state.opt_state[name], batch)[0]
            for name, one in learners.items()
        }
        return told(states, state.step + 1, state.key), Info(jnp.zeros(()))

    return Learner(init, step)


def interval(values: list[float]) -> str:
    """Mean, and half of the 95 % interval of the mean, over draws."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.4f}"
    half = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return f"{mean:.4f} ({half:.4f})"


def main() -> None:
    """Prints a row a head, with a column a number of labels a class."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="*", default=["sst2_views"])
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 5, 10, 20, 100])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--choose", action="store_true")
    parser.add_argument("--C", type=float, default=1.0)
    parser.add_argument("--weight", type=float, default=1.0)
    options = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {vars(options)}")
    by_logistic = jax.jit(solved, static_argnums=(2, 3))
    by_adam = jax.jit(trained, static_argnums=(3, 4))
    for name in options.data:
        data = load(DataConfig(f"npz:{DATA / name}", views=True))
        scored, classes = data.val if options.choose else data.test, data.class_names
        rows: Any = jax.tree.map(jnp.asarray, to_batch(data.train, views=True))
        rows = rows._replace(x=rows.x.astype(jnp.float32))
        x, many = jnp.asarray(scored.x, jnp.float32), len(classes)
        cells: dict[str, list[str]] = {}
        for k in options.shots:
            right: dict[str, list[float]] = {}
            began = time.perf_counter()
            for repeat in range(options.draws):
                number = repeat + 1000 * options.choose
                draw = shots(np.asarray(rows.labels), k=k, repeat=number, seed=0)
                few = jax.tree.map(lambda leaf, draw=draw: leaf[draw], rows)
                plain = few._replace(x=few.x[:, 0])
                logits = {
                    "logistic": by_logistic(plain, x, many, options.C),
                    "logistic, views": by_logistic(flat(few), x, many, options.C),
                    **by_adam(
                        rows, jnp.asarray(draw, jnp.float32), x, many, options.weight
                    ),
                }
                for head, values in logits.items():
                    guess = np.argmax(values, axis=1)
                    right.setdefault(head, []).append(np.mean(guess == scored.labels))
            for head, values in right.items():
                cells.setdefault(head, []).append(interval(values))
            seconds = time.perf_counter() - began
            told = {head: one[-1] for head, one in cells.items()}
            print(k, f"{seconds:.0f} s", told, flush=True)
        print(f"| {name} |", " | ".join(map(str, options.shots)), "|")
        print("|" + "---|" * (len(options.shots) + 1))
        for head, one in cells.items():
            print(f"| {head} |", " | ".join(one), "|", flush=True)


if __name__ == "__main__":
    main()
