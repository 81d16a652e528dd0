"""Which rows to label: TypiClust without labels, and rounds of active learning.

    python benchmarks/bench_acquisition.py [banking77] [--draws 10] [--C 10]

Every choice is of rows of `train.npz`, whose labels are read once they are chosen; the
score is the accuracy of logistic regression on `test.npz`, mean and half of the 95 %
interval of the mean over draws. First two labels a class on average, chosen with none:
at random, at random two of each class (which takes the labels to do), by TypiClust, by
the other rules without scores. Then rounds that go on from TypiClust's rows and double
the labels twice, by each score and rule, against random rows. One setting of
everything; BALD's members are ten Bayesian bootstraps. Embeddings are in the folder
that FLAXHEAD_DATA names (default: data).
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from flaxhead.acquisition import acquire, bald, entropy, margin
from flaxhead.base import Array, Batch, Params
from flaxhead.config import DataConfig
from flaxhead.data import load
from flaxhead.folds import shots
from flaxhead.heads import linear
from flaxhead.solvers import logistic

DATA = Path(os.environ.get("FLAXHEAD_DATA", "data"))
MEMBERS, PER_CLASS, ROUNDS = 10, 2, 2
SCORES = {"margin": margin, "entropy": entropy, "BALD": bald}
RULES = ("none", "kmeans", "core_set")

choose = jax.jit(acquire, static_argnames=("k", "how"))


class Pool:
    """Rows to choose from, the head that is fitted to those chosen, and its test."""

    def __init__(self, name: str, C: float) -> None:
        data = load(DataConfig(f"npz:{DATA / name}", val_fraction=0.0))
        self.x = jnp.asarray(data.train.x, jnp.float32)
        self.labels = jnp.asarray(data.train.labels)
        self.test_x = jnp.asarray(data.test.x, jnp.float32)
        self.test_labels = jnp.asarray(data.test.labels)
        self.classes = len(data.class_names)
        head, fit = linear(self.classes), logistic(self.classes)
        values = {"C": jnp.float32(C)}

        def params_of(rows: Array, weights: Array) -> Params:
            count = len(rows)
            chosen = self.x[rows], self.labels[rows]
            batch = Batch(*chosen, jnp.ones(count), jnp.arange(count))
            return fit(batch, weights, values, jax.random.key(0))

        @jax.jit
        def accuracy(rows: Array) -> Array:
            logits = head.apply(params_of(rows, jnp.ones(len(rows))), self.test_x)
            return jnp.mean(logits.argmax(-1) == self.test_labels)

        @jax.jit
        def probabilities(rows: Array) -> Array:
            params = params_of(rows, jnp.ones(len(rows)))
            return jax.nn.softmax(head.apply(params, self.x))

        @jax.jit
        def members(rows: Array, key: Array) -> Array:
            count = len(rows)
            # Rubin's Bayesian bootstrap: no member is left without a class.
            weights = jax.random.exponential(key, (MEMBERS, count))
            params = jax.vmap(params_of, in_axes=(None, 0))(rows, weights)
            return jax.nn.softmax(jax.vmap(head.apply, (0, None))(params, self.x))

        self.accuracy, self.probabilities = accuracy, probabilities
        self.members = members


def at_random(pool: Pool, k: int, key: Array, labelled: Array | None = None) -> Array:
    """Rows at random: all of them want a label as much as a random number says."""
    wanted = jax.random.uniform(key, (len(pool.x),))
    return choose(wanted, pool.x, k, labelled=labelled)


def cold(pool: Pool, draw: int) -> dict[str, Array]:
    """Two rows a class on average, without a label."""
    key = jax.random.key(draw)
    k = PER_CLASS * pool.classes
    each = shots(np.asarray(pool.labels), k=PER_CLASS, repeat=draw, seed=0)
    return {
        "random": at_random(pool, k, key),
        "random, two of each class": jnp.asarray(np.flatnonzero(each)),
        "core_set": choose(None, pool.x, k, how="core_set"),
        "kmeans": choose(None, pool.x, k, how="kmeans", key=key),
        "typiclust": choose(None, pool.x, k, how="typiclust", key=key),
    }


def score(pool: Pool, name: str, rows: Array, key: Array) -> Array:
    """How much each row is wanted by a head that is fitted to the labelled ones."""
    if name == "BALD":
        return bald(pool.members(rows, key))
    return SCORES[name](pool.probabilities(rows))


def told(values: list[float]) -> str:
    """Mean, and half of the 95 % interval of the mean, in %."""
    half = 1.96 * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{100 * np.mean(values):.1f} ({100 * half:.1f})"


def main() -> None:
    """Prints a table of cold starts, and one of the rounds that follow."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?", default="banking77")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--C", type=float, default=10.0)
    options = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, C {options.C:g}")
    pool = Pool(options.data, options.C)
    starts: dict[str, list[float]] = defaultdict(list)
    found: dict[str, list[int]] = defaultdict(list)
    begin: list[dict[str, Array]] = []
    for draw in range(options.draws):
        begin.append(cold(pool, draw))
        for name, rows in begin[-1].items():
            starts[name].append(float(pool.accuracy(rows)))
            found[name].append(len(np.unique(pool.labels[rows])))
    first = PER_CLASS * pool.classes
    print(f"\n| {options.data}, {first} rows chosen | classes found | accuracy, % |")
    print("|---|---|---|")
    for name, values in starts.items():
        print(f"| {name} | {np.mean(found[name]):.1f} | {told(values)} |")
    for other in ("random", "random, two of each class"):
        gain = np.subtract(starts["typiclust"], starts[other]).tolist()
        print(f"\ntypiclust less {other}: {told(gain)} points")

    budgets = [first * 2**turn for turn in range(ROUNDS + 1)]
    print("\n| score | rule |", " | ".join(f"{b} labels" for b in budgets), "| s |")
    print("|---|---|" + "---|" * (len(budgets) + 1), flush=True)
    plans = [("random, from random rows", "none"), ("random", "none")]
    plans += [(name, rule) for name in SCORES for rule in RULES]
    plans += [("margin", "typiclust"), ("no score", "typiclust")]
    for name, rule in plans:
        right: list[list[float]] = [[] for _ in budgets]
        spent = []
        for draw in range(options.draws):
            key = jax.random.fold_in(jax.random.key(draw), 1)
            rows = begin[draw]["random" if "from" in name else "typiclust"]
            right[0].append(float(pool.accuracy(rows)))
            for turn, budget in enumerate(budgets[:-1], 1):
                key = jax.random.fold_in(key, turn)
                began = time.perf_counter()
                if "random" in name:
                    more = at_random(pool, budget, key, rows)
                else:
                    wanted = score(pool, name, rows, key) if name in SCORES else None
                    given = {"how": rule, "labelled": rows, "key": key}
                    more = choose(wanted, pool.x, budget, **given)
                rows = jax.block_until_ready(jnp.concatenate([rows, more]))
                spent.append(time.perf_counter() - began)
                right[turn].append(float(pool.accuracy(rows)))
        cells = " | ".join(told(values) for values in right)
        print(f"| {name} | {rule} | {cells} | {np.median(spent):.1f} |", flush=True)


if __name__ == "__main__":
    main()
