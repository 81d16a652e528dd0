"""Approximate neighbours beside the exact graph: recall, CPU time, and what it spreads.

    python benchmarks/bench_neighbours.py banking77 20000 200000 1000000
        [--probes 2 8 32] [--exact 50000]

A number is so many synthetic rows of 384 features: 100 overlapping Gaussians of 20
classes, in 24 dimensions that are put into 384 at random, with a little noise. Recall
at 10 is over 500 rows, drawn at random, against a search of all rows. Accuracy is that
of `flaxhead.graph.spread` with 10 labels a class, on the other rows. The exact graph is
built up to `--exact` rows; beyond, its time is that of 1024 rows times their number.
Seconds are of CPU time, of all threads, without compiling. banking77 is in the folder
that FLAXHEAD_DATA names (default: data).
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxhead.base import Array
from flaxhead.config import DataConfig
from flaxhead.data import load
from flaxhead.folds import shots
from flaxhead.graph import (
    Graph,
    approximate_neighbours,
    balance,
    graph_of,
    knn_graph,
    spread,
)
from flaxhead.heads.neighbours import nearest

DATA = Path(os.environ.get("FLAXHEAD_DATA", "data"))
DIM, LATENT, GAUSSIANS, CLASSES = 384, 24, 100, 20
K, JUDGED, SHOTS, PART = 10, 500, 10, 100_000


def mixture(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a mixture of Gaussians and their classes."""
    draw = np.random.default_rng(0)
    centres = 1.2 * draw.normal(size=(GAUSSIANS, LATENT)).astype(np.float32)
    into = draw.normal(size=(LATENT, DIM)).astype(np.float32) / LATENT**0.5
    of = draw.integers(GAUSSIANS, size=rows)
    x = np.empty((rows, DIM), np.float32)
    for begin in range(0, rows, PART):
        part = of[begin : begin + PART]
        own = draw.standard_normal((len(part), LATENT), np.float32)
        noise = draw.standard_normal((len(part), DIM), np.float32)
        x[begin : begin + PART] = (centres[part] + own) @ into + 0.2 * noise
    return x, (of % CLASSES).astype(np.int32)


def rows_of(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings about their mean, and class numbers."""
    if name.isdigit():
        x, labels = mixture(int(name))
    else:
        data = load(DataConfig(f"npz:{DATA / name}", val_fraction=0.0))
        x, labels = np.asarray(data.train.x, np.float32), data.train.labels
    x -= x.mean(0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x, labels


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and the seconds of all threads."""
    began = time.process_time()
    found = jax.block_until_ready(run())
    return found, time.process_time() - began


def best_of_all(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The `K` nearest others of some rows, by comparing them with every row."""
    found = []
    for part in np.split(rows, 20):
        similarity = x[part] @ x.T
        similarity[np.arange(len(part)), part] = -np.inf
        found.append(np.argpartition(-similarity, K, axis=1)[:, :K])
    return np.concatenate(found)


def recall(found: np.ndarray, expected: np.ndarray) -> float:
    """The share of the expected rows that were found."""
    both = zip(found, expected, strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) / K for a, b in both]))


def compare(name: str, *, probes: list[int], exact: int) -> None:
    """Prints a row a search."""
    x, labels = rows_of(name)
    weights, classes = np.ones(len(x), np.float32), int(labels.max()) + 1
    rows = np.random.default_rng(1).choice(len(x), JUDGED, replace=False)
    expected = best_of_all(x, rows)
    draw = shots(labels, k=SHOTS, repeat=0, seed=0)
    few = jnp.asarray(np.eye(classes, dtype=np.float32)[labels] * draw[:, None])
    prior, present = jnp.full(classes, 1 / classes), jnp.asarray(weights)

    @jax.jit
    def vote(graph: Graph, few: Array) -> Array:
        return jnp.argmax(balance(spread(graph, few), prior, present), axis=1)

    def told(search: str, graph: Graph, seconds: float) -> None:
        own = recall(np.asarray(graph.neighbours)[rows], expected)
        run = vote.lower(graph, few).compile()
        guess, spreading = timed(lambda: run(graph, few))
        right = np.mean((np.asarray(guess) == labels)[~draw])
        told = f"{own:.3f} | {seconds:.1f} | {right:.4f} | {spreading:.1f}"
        print(f"| {name} | {search} | {told} |", flush=True)

    if len(x) <= exact:
        run = jax.jit(knn_graph).lower(x, weights).compile()
        told("exact", *timed(lambda: run(x, weights)))
    else:
        some = jax.jit(
            lambda part, x: jax.vmap(lambda row: nearest(row, x, present, K, 4096))(
                part
            )
        )
        run = some.lower(x[:1024], x).compile()
        _, seconds = timed(lambda: run(x[:1024], x))
        estimate = seconds * len(x) / 1024
        print(f"| {name} | exact, estimated | 1 | {estimate:.0f} | | |", flush=True)
    for each in probes:
        found, seconds = timed(
            lambda each=each: approximate_neighbours(x, weights, k=K, probes=each)
        )
        told(f"{each} probes", graph_of(*found), seconds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name}: {peak:.1f} GiB at the peak", flush=True)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="*", default=["banking77", "20000", "200000"])
    parser.add_argument("--probes", nargs="+", type=int, default=[2, 8, 32])
    parser.add_argument("--exact", type=int, default=50_000)
    options = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    print("| rows | search | recall at 10 | CPU s | accuracy of `spread` | CPU s |")
    print("|---|---|---|---|---|---|")
    for name in options.data:
        compare(name, probes=options.probes, exact=options.exact)


if __name__ == "__main__":
    main()
