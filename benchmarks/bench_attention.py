"""Poolings of tokens side by side: what attention adds to the mean, and where.

    python benchmarks/bench_attention.py [sst2_tokens bags] [--draws 10] [--steps 300]

`sst2_tokens` has sentences of up to 24 token embeddings (`train.npz` and `val.npz` in
the folder that FLAXHEAD_DATA names, default: data); the rows of `val.npz` are the test.
`bags` is made up, a task of multiple instances: 24 tokens of 16 numbers. One of them,
marked by its first number, has the label's sign, 1, in its second; in the other 23 that
number is noise of deviation 3, whose sum is 14 times the sign: the mean can't tell.

Each draw holds out a fifth of the training rows by which a learning rate is chosen,
and has a seed of its own; all draws and rates are one program a pooling. The heads are
linear, on tokens standardised by the training rows. In brackets: half of the 95 %
interval of the mean over draws; of the difference to the mean, paired, over test rows.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxhead.base import Array, Batch, Head, Tokens
from flaxhead.fit import train
from flaxhead.heads import attention_pool, gem, linear, pool, standardize, statistics
from flaxhead.losses import softmax_cross_entropy
from flaxhead.objectives import supervised
from flaxhead.optim import optimizer
from flaxhead.step import learner

DATA = Path(os.environ.get("FLAXHEAD_DATA", "data"))
RATES = (3e-5, 3e-4, 1e-3, 1e-2, 1e-1)
POOLINGS: dict[str, Callable[[Head], Head]] = {
    "mean": partial(pool, how="mean"),
    "max": partial(pool, how="max"),
    "cls": partial(pool, how="cls"),
    "gem": gem,
    "query": partial(attention_pool, kind="query"),
    "query, 4 queries": partial(attention_pool, kind="query", queries=4),
    "multi_query, 8 queries": partial(attention_pool, kind="multi_query", queries=8),
    "gated": partial(attention_pool, kind="gated", width=32),
    "map, 4 heads": partial(attention_pool, kind="map", heads=4, width=64),
}


def batch(x: Any, labels: Any) -> Batch:
    """Returns rows that all count."""
    rows = len(labels)
    labels = jnp.asarray(labels, jnp.int32)
    return Batch(x, labels, jnp.ones(rows), jnp.arange(rows))


def sst2_tokens() -> tuple[Batch, Batch]:
    """Returns training and test rows."""

    def read(split: str) -> Batch:
        stored = np.load(DATA / "sst2_tokens" / f"{split}.npz")
        x = Tokens(jnp.asarray(stored["embeddings"]), jnp.asarray(stored["mask"]))
        return batch(x, stored["labels"])

    return read("train"), read("val")


def bags() -> tuple[Batch, Batch]:
    """Returns training and test rows."""

    def draw(seed: int, rows: int) -> Batch:
        draws = np.random.default_rng(seed)
        labels = draws.integers(0, 2, rows)
        x = draws.normal(size=(rows, 24, 16))
        x[:, :, 0], x[:, :, 1] = 0.0, 3 * x[:, :, 1]
        told = np.arange(rows), draws.integers(0, 24, rows)
        x[(*told, 0)], x[(*told, 1)] = 4.0, 2.0 * labels - 1
        return batch(jnp.asarray(x, jnp.float32), labels)

    return draw(0, 2000), draw(1, 2000)


TASKS = {"sst2_tokens": sst2_tokens, "bags": bags}


def right(
    how: Callable[[Head], Head], rows: Batch, test: Batch, *, draws: int, steps: int
) -> np.ndarray:
    """Returns which test rows the head of each draw has right, `[draws, rows]`."""

    def run(rows: Batch, test: Batch) -> Array:
        head = standardize(how(linear(2)), *statistics(rows.x, rows.weights))
        objective = supervised(head, softmax_cross_entropy)

        def make(hyperparameters: Any) -> Any:
            tx = optimizer("adamw", **hyperparameters, steps=steps, weight_decay=0.1)
            return learner(head, objective, tx)

        fit = train(make, steps=steps, batch_size=64)

        def one(draw: Array) -> Array:
            key = jax.random.fold_in(jax.random.key(0), draw)
            order = jax.random.permutation(key, len(rows.labels))
            held = order < len(rows.labels) // 5
            kept = jnp.where(held, 0.0, 1.0)

            def candidate(rate: Array) -> tuple[Array, Array]:
                params = fit(rows, kept, {"learning_rate": rate}, key)
                logits = head.apply(params, rows.x)
                losses = softmax_cross_entropy(logits, rows.labels, where=held)
                guess = jnp.argmax(head.apply(params, test.x), axis=-1)
                return jnp.sum(losses), guess == test.labels

            losses, hits = jax.vmap(candidate)(jnp.asarray(RATES))
            return hits[jnp.argmin(losses)]

        return jax.vmap(one)(jnp.arange(draws))

    return np.asarray(jax.jit(run)(rows, test), float)


def with_interval(values: np.ndarray, sign: str = "") -> str:
    """Mean, and half of its 95 % interval."""
    half = 1.96 * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():{sign}.4f} ({half:.4f})"


def main() -> None:
    """Prints a row a task and pooling."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    print("| task | pooling | test accuracy | minus the mean's | seconds |")
    print("|---|---|---|---|---|")
    for task in options.tasks:
        rows, test = TASKS[task]()
        of_mean = None
        for name, how in POOLINGS.items():
            began = time.perf_counter()
            hits = right(how, rows, test, draws=options.draws, steps=options.steps)
            seconds = time.perf_counter() - began
            of_mean = hits if of_mean is None else of_mean
            told = with_interval(hits.mean(axis=1))
            more = with_interval((hits - of_mean).mean(axis=0), "+")
            print(f"| {task} | {name} | {told} | {more} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
