"""Few labels, many rows without: what a graph of nearest rows adds to a head.

    python benchmarks/bench_few_labels.py [banking77 sst2 cifar10]
        [--shots 1 5 10 20] [--draws 10] [--C 10] [--heads logistic student]

Draws so many labels a class, or all where there are fewer; the other rows of
`train.npz` count as unlabelled. Heads are scored on the rows of `test.npz` (a fifth of
the training rows where there is none): logistic regression on the labelled rows, the
votes of the graph alone, carried over to the test rows by their neighbours, the product
of both, one linear head fitted to the product (`flaxhead.with_graph`), self-training,
and linear heads trained by Adam, without and with consistency terms whose views are
noise and dropped features. One setting for all sets and numbers of labels; no choice
sees a test row. Embeddings are in the folder that FLAXHEAD_DATA names (default: data).

    python benchmarks/bench_few_labels.py banking77 cifar10 --shots 1 5 20
        --pools same unseen shifted

Or what unlabelled rows of another kind do to logistic regression, the student and the
better of both (`flaxhead.guard`), accuracy and NLL, and gains in accuracy by draw.
`same` is the setting above; `unseen` labels and tests half of the classes, drawn at
random, while the unlabelled rows are of all; in `shifted` class frequencies among the
unlabelled rows fall from 10 to 1, while labelled and tested rows stay as they are.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxhead.base import Array, Batch, Fit
from flaxhead.config import DataConfig
from flaxhead.data import load
from flaxhead.data.corrupt import long_tailed
from flaxhead.fit import train
from flaxhead.folds import shots
from flaxhead.graph import product_of_experts
from flaxhead.heads import linear, standardize, statistics
from flaxhead.losses import softmax_cross_entropy
from flaxhead.objectives import (
    CONSISTENCY,
    chain,
    feature_dropout,
    noise,
    supervised,
)
from flaxhead.semi_supervised import guard, self_train, vote, with_graph
from flaxhead.solvers import logistic
from flaxhead.step import learner

DATA = Path(os.environ.get("FLAXHEAD_DATA", "data"))
GRAPH = ("logistic", "graph", "product", "student", "self-train")
TRAINED = ("adam", "fixmatch", "freematch")
HEADS = (*GRAPH, *TRAINED)
POOLS = ("same", "unseen", "shifted")


def splits(name: str) -> tuple[Batch, np.ndarray, np.ndarray, int]:
    """Returns rows to draw from, and the test rows and their labels."""
    data = load(DataConfig(f"npz:{DATA / name}", val_fraction=0.0))
    train, test = data.train, data.test
    rows = len(train.labels)
    batch = Batch(
        jnp.asarray(train.x, jnp.float32),
        jnp.asarray(train.labels),
        jnp.ones(rows),
        jnp.arange(rows),
    )
    return batch, np.asarray(test.x, np.float32), test.labels, len(data.class_names)


def heads_of(classes: int, C: float, names: Sequence[str]) -> Any:
    """Returns `(data, weights, test x) -> probabilities`, one entry a head.

    Of those not asked for nothing is compiled.
    """
    head, fit, values = linear(classes), logistic(classes), {"C": jnp.float32(C)}
    key = jax.random.key(0)

    def run(data: Batch, weights: Array, x: Array) -> dict[str, Array]:
        def told(run: Fit) -> Array:
            return jax.nn.softmax(head.apply(run(data, weights, values, key), x))

        own, votes = told(fit), vote(data, weights, classes=classes)
        carried = votes.carry(x)
        found = {
            "logistic": own,
            "graph": carried,
            "product": product_of_experts(own**votes.trust, carried),
            "student": told(with_graph(fit, head, classes=classes)),
            "self-train": told(self_train(fit, head, classes=classes, threshold=0.5)),
            **{name: trained(name, data, weights, x, classes) for name in TRAINED},
        }
        return {name: found[name] for name in names}

    return jax.jit(run)


def trained(name: str, data: Batch, weights: Array, x: Array, classes: int) -> Array:
    """Probabilities of the test rows by a linear head that Adam trains, 500 steps."""
    head = standardize(linear(classes), *statistics(data.x, data.weights))
    objective = supervised(head, softmax_cross_entropy)
    if name in CONSISTENCY:
        weak, strong = noise(0.1), chain(noise(0.5), feature_dropout(0.2))
        method = CONSISTENCY[name]
        objective += method(
            head, classes=classes, views=(weak, strong), rows=len(data.labels)
        )
    learn = learner(head, objective, optax.adamw(3e-3, weight_decay=0.1))
    fit = train(lambda _: learn, steps=500, batch_size=64, unlabelled=256)
    params = fit(data, weights, {}, jax.random.key(0))
    return jax.nn.softmax(head.apply(params, x))


def pool_of(
    name: str, data: Batch, test: np.ndarray, classes: int, k: int, repeat: int
) -> tuple[Batch, np.ndarray, np.ndarray]:
    """Returns the rows of a pool, which of them are labelled, and test labels."""
    labels = np.asarray(data.labels)
    if name == "unseen":
        order = np.random.default_rng(repeat).permutation(classes)
        number = np.where(order < classes // 2, order, -1)
        labels, test = number[labels], number[test]
    draw = shots(labels, k=k, repeat=repeat, seed=0, short="all")
    if name == "shifted":
        kept = long_tailed(labels, ratio=10.0, seed=repeat) | draw
        data = data._replace(weights=jnp.asarray(kept, jnp.float32))
    return data._replace(labels=jnp.asarray(labels)), draw, test


def guarded(classes: int, C: float, names: tuple[str, ...]) -> Any:
    """Returns `(data, weights, test x) -> log probabilities`, one entry a head."""
    head, values = linear(classes), {"C": jnp.float32(C)}
    fit = logistic(classes, tolerance=1e-5)  # Guarding costs a dozen fits.
    more = with_graph(fit, head, classes=classes)
    fits = {
        "logistic": fit,
        "student": more,
        "guard": guard(fit, more, head, classes=classes),
    }

    def run(data: Batch, weights: Array, x: Array) -> dict[str, Array]:
        return {
            name: jax.nn.log_softmax(
                head.apply(fits[name](data, weights, values, jax.random.key(0)), x)
            )
            for name in names
        }

    return jax.jit(run)


def compare_pools(options: Any) -> None:
    """Prints a row a set, a pool and a number of labels: accuracy, gains, and NLL."""
    names = ("logistic", "student", "guard")
    heads = [f"{name} {score}" for score in ("accuracy", "NLL") for name in names]
    heads += ["student - logistic", "guard - logistic"]
    print("| data | unlabelled rows | labels a class |", " | ".join(heads), "|")
    print("|" + "---|" * (len(heads) + 3))
    for name, pool in itertools.product(options.data, options.pools):
        data, x, test, total = splits(name)
        classes = total // 2 if pool == "unseen" else total
        runs = {of: guarded(classes, options.C, of) for of in (names, names[:2])}
        for k in options.shots:
            # Of one label a class nothing can be held out: the guard is the student.
            run = runs[names if k > 1 else names[:2]]
            scores: dict[str, list[float]] = {head: [] for head in heads}
            for repeat in range(options.draws):
                rows, draw, labels = pool_of(pool, data, test, total, k, repeat)
                found = run(rows, jnp.asarray(draw, jnp.float32), jnp.asarray(x))
                found = {"guard": found["student"], **found}
                tested = np.flatnonzero(labels >= 0)
                own, right = labels[tested], {}
                for head, told in found.items():
                    told = np.asarray(told)[tested]
                    right[head] = float(np.mean(np.argmax(told, axis=1) == own))
                    scores[f"{head} accuracy"].append(right[head])
                    nll = -np.mean(told[np.arange(len(own)), own])
                    scores[f"{head} NLL"].append(float(nll))
                for head in names[1:]:
                    gain = right[head] - right["logistic"]
                    scores[f"{head} - logistic"].append(gain)
            told = " | ".join(interval(scores[head]) for head in heads)
            print(f"| {name} | {pool} | {k} | {told} |", flush=True)


def interval(values: list[float]) -> str:
    """Mean, and half of the 95 % interval of the mean, over draws."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.4f}"
    half = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return f"{mean:.4f} ({half:.4f})"


def main() -> None:
    """Prints a row a set and number of labels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="*", default=["banking77", "sst2", "cifar10"])
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 5, 10, 20])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--C", type=float, default=10.0)
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=HEADS)
    parser.add_argument("--pools", nargs="+", choices=POOLS, default=[])
    options = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, C {options.C:g}")
    if options.pools:
        return compare_pools(options)
    first, *others = options.heads
    columns = [*options.heads, *(f"{head} - {first}" for head in others)]
    print("| data | labels a class |", " | ".join(columns), "| seconds a draw |")
    print("|" + "---|" * (len(columns) + 3))
    for name in options.data:
        data, x, labels, classes = splits(name)
        run = heads_of(classes, options.C, options.heads)
        for k in options.shots:
            right: dict[str, list[float]] = {column: [] for column in columns}
            spent = []
            for repeat in range(options.draws):
                draw = shots(
                    np.asarray(data.labels), k=k, repeat=repeat, seed=0, short="all"
                )
                began = time.perf_counter()
                found = run(data, jnp.asarray(draw, jnp.float32), jnp.asarray(x))
                jax.block_until_ready(found)
                spent.append(time.perf_counter() - began)
                for head in options.heads:
                    guess = np.argmax(found[head], axis=1)
                    right[head].append(float(np.mean(guess == labels)))
                for head in others:
                    gain = right[head][-1] - right[first][-1]
                    right[f"{head} - {first}"].append(gain)
            told = " | ".join(interval(right[column]) for column in columns)
            print(f"| {name} | {k} | {told} | {np.median(spent):.1f} |", flush=True)


if __name__ == "__main__":
    main()
