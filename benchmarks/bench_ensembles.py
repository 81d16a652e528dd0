"""What many heads are worth, what they cost, and what one student keeps of them.

    python benchmarks/bench_ensembles.py [members cost selection distill]
        [--dropout 0] [--draws 3] [--members 10] [--rounds 5] [--sweep 64]

* `members`: the NLL of pooled MLP heads on banking77's test rows against that of the
  best of them, with all labels and with 10 a class; of heads that differ in their seed,
  and of BatchEnsemble, packed heads and MC dropout.
* `cost`: a step of training of each against one head's, and of the heads that differ in
  their seed against their matrix products alone; timed in turn, medians over rounds of
  the ratios.
* `selection`: the greedy selection from a sweep over learning rates, weight decays,
  dropout rates and seeds, chosen on validation rows, against the one candidate of the
  least NLL there, on banking77, sst2 and cifar10.
* `distill`: one head that learns what an ensemble, of 10 labels a class, says of
  banking77's other training rows.

One setting for all, chosen by rows held out of the training rows; no choice sees a test
row. Embeddings are in the folder that FLAXHEAD_DATA names (default: data).
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

from flaxhead.base import Array, Batch, Fit, Head, Hyperparameters, Objective, Params
from flaxhead.config import DataConfig
from flaxhead.data import Embeddings, load
from flaxhead.distillation import distill
from flaxhead.ensembles import (
    batch_ensemble,
    diversity,
    ensemble,
    greedy_selection,
    mc_dropout,
    member_scores,
    members,
    packed,
    pool_probabilities,
    supervised_members,
)
from flaxhead.fit import seeds, train
from flaxhead.folds import shots
from flaxhead.heads import mlp, standardize, statistics
from flaxhead.losses import softmax_cross_entropy
from flaxhead.objectives import supervised
from flaxhead.optim import optimizer
from flaxhead.step import learner

DATA = Path(os.environ.get("FLAXHEAD_DATA", "data"))
BATCH, WIDTH, RATE = 256, 256, 1e-3
MASKED = 0.5  # dropout rate of MC dropout, whose members are masks
STUDENT = 0.5  # dropout rate of a student: a guess of ten heads is fitted, not a label
EPOCHS, FEWEST_STEPS, SWEEP_EPOCHS, SWEEP_WIDTH = 30, 300, 15, 64
FEW = 10  # labels a class
SHARED = 3  # members of one run, which learn from fewer rows each, and want more:
SHARED_RATE, ALPHA = 1.5e-3, 1.5


def rows_of(split: Embeddings) -> Batch:
    """Returns a split as one batch on the device."""
    count = len(split.labels)
    x, labels = jnp.asarray(split.x, jnp.float32), jnp.asarray(split.labels)
    return Batch(x, labels, jnp.ones(count), jnp.arange(count))


def banking() -> tuple[Batch, Batch, int]:
    """Returns all training rows, the test rows and the number of classes."""
    data = load(DataConfig(f"npz:{DATA / 'banking77'}", val_fraction=0.0))
    return rows_of(data.train), rows_of(data.test), len(data.class_names)


def some(data: Batch, index: Array) -> Batch:
    """Returns some of the rows."""
    return jax.tree.map(lambda leaf: leaf[index], data)


def steps_for(rows: int) -> int:
    """Returns 30 epochs, and 300 steps if that is more."""
    return max(FEWEST_STEPS, EPOCHS * -(-rows // BATCH))


def fitted(head: Head, objective: Objective, steps: int, rate: float = RATE) -> Fit:
    """Returns a training run in the one setting of all; its members share the rows."""
    tx = optimizer("adam", learning_rate=rate, steps=steps)
    learn = learner(head, objective, tx)
    return train(lambda _: learn, steps=steps, batch_size=BATCH, order=0)


def kinds(
    classes: int, data: Batch, options: argparse.Namespace
) -> dict[str, tuple[Head, Callable[[int], Fit]]]:
    """Name -> a head of members, and steps -> the fit that finds its parameters."""
    count, dropout = options.members, options.dropout
    mean, std = statistics(data.x, data.weights)
    one, masked = (
        standardize(mlp(classes, width=WIDTH, dropout=rate, zero_init=False), mean, std)
        for rate in (dropout, MASKED)
    )
    alone = supervised(masked, softmax_cross_entropy)
    apart = supervised(one, softmax_cross_entropy)
    found: dict[str, tuple[Head, Callable[[int], Fit]]] = {
        "one head": (
            members(one, 1),
            lambda steps: seeds(fitted(one, apart, steps), 1),
        ),
        f"{count} heads": (
            members(one, count),
            lambda steps: seeds(fitted(one, apart, steps), count),
        ),
        f"{2 * count} masks (MC dropout)": (
            mc_dropout(masked, 2 * count),
            lambda steps: fitted(masked, alone, steps),
        ),
    }
    narrow = partial(packed, alpha=ALPHA)
    for name, make in (("BatchEnsemble", batch_ensemble), ("packed", narrow)):
        head = make(classes, SHARED, width=WIDTH, dropout=dropout, zero_init=False)
        head = standardize(head, mean, std)
        together = supervised_members(head, softmax_cross_entropy)
        fit = partial(fitted, head, together, rate=SHARED_RATE)
        found[f"{name} of {SHARED}"] = head, fit
    return found


def bench_members(options: argparse.Namespace) -> None:
    """Prints what pooling gains on the test rows."""
    data, test, classes = banking()
    table("labels a class", "members", "mean", "best", "pooled", "pooled / best",
          "against one head", "disagree", "accuracy")  # fmt: skip
    for few in (None, FEW):
        gains: dict[str, list[list[float]]] = {}
        for draw in range(1 if few is None else options.draws):
            kept = data
            if few is not None:
                chosen = shots(np.asarray(data.labels), k=few, repeat=draw, seed=0)
                kept = some(data, jnp.flatnonzero(jnp.asarray(chosen)))
            of = kinds(classes, kept, options)
            alone = 0.0
            for name, (head, make) in of.items():
                fit = make(steps_for(len(kept.labels)))
                run = jax.jit(partial(predicted, fit, head))
                logits = run(kept, jax.random.key(draw), test.x)
                single = member_scores(logits, test.labels)["nll"]
                pooled = member_scores(pool_probabilities(logits)[None], test.labels)
                nll = pooled["nll"][0]
                alone = alone or nll
                differ = float(diversity(logits, test.labels).disagreement)
                best = single.min()
                row = [single.mean(), best, nll, nll / best, nll / alone, differ]
                gains.setdefault(name, []).append([*row, pooled["accuracy"][0]])
        for name, values in gains.items():
            means = np.mean(values, axis=0)
            line("all" if few is None else few, name, *means)


def predicted(fit: Fit, head: Head, data: Batch, key: Array, x: Array) -> Array:
    """Returns the logits of the head that a fit finds."""
    return head.apply(fit(data, jnp.ones(len(data.labels)), {}, key), x)


def bench_cost(options: argparse.Namespace) -> None:
    """Prints what a step of training costs, in turn, for every kind of ensemble."""
    data, _, classes = banking()
    steps, runs = 200, {}
    of = kinds(classes, data, options)
    for name, (_, make) in of.items():
        if "MC dropout" not in name:  # It is one head.
            run = jax.jit(make(steps))
            runs[name] = partial(
                run, data, jnp.ones(len(data.labels)), {}, jax.random.key(0)
            )
    for count in (1, options.members):
        loop = jax.jit(partial(products, steps=steps))
        kernels = (
            jnp.zeros((count, data.x.shape[1], WIDTH)),
            jnp.zeros((count, WIDTH, classes)),
        )
        runs[f"products of {count}"] = partial(loop, data.x[:BATCH], kernels)
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(1 + options.rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            if turn:
                spent[name].append((time.perf_counter() - began) / steps)
    table("training", "ms a step", "against one head", "against its products")
    for name in of:
        if name not in spent:
            continue
        mine = np.array(spent[name])
        count = {"one head": 1, f"{options.members} heads": options.members}.get(name)
        bare = f"{np.median(mine / spent[f'products of {count}']):.2f}" if count else ""
        line(name, 1e3 * np.median(mine), np.median(mine / spent["one head"]), bare)


def products(x: Array, kernels: tuple[Array, Array], *, steps: int) -> Any:
    """The matrix products of so many steps of MLP heads, and nothing else."""

    def step(_: Any, kernels: tuple[Array, Array]) -> tuple[Array, Array]:
        first, second = kernels
        hidden = jnp.einsum("bd,mdw->mbw", x, first)
        logits = jnp.einsum("mbw,mwc->mbc", hidden, second)
        back = jnp.einsum("mbc,mwc->mbw", logits, second)
        return (
            jnp.einsum("bd,mbw->mdw", x, back),
            jnp.einsum("mbw,mbc->mwc", hidden, logits),
        )

    return jax.lax.fori_loop(0, steps, step, kernels)


def bench_selection(options: argparse.Namespace) -> None:
    """Prints the test NLL of a greedy selection and of the best candidate."""
    table("data", "candidates", "best by validation", "selection", "selection / best",
          "members", "accuracy of the best", "of the selection")  # fmt: skip
    grid = np.meshgrid([3e-4, 1e-3, 3e-3, 1e-2], [0.0, 1e-3], [0.0, 0.5])
    names = ("learning_rate", "weight_decay", "dropout")
    copies = -(-options.sweep // grid[0].size)
    values = {
        name: jnp.asarray(np.tile(part.ravel(), copies)[: options.sweep], jnp.float32)
        for name, part in zip(names, grid, strict=True)
    }
    for name in ("banking77", "sst2", "cifar10"):
        data = load(DataConfig(f"npz:{DATA / name}"))
        kept, val, test = map(rows_of, (data.train, data.val, data.test))
        mean, std = statistics(kept.x, kept.weights)
        steps = SWEEP_EPOCHS * -(-len(kept.labels) // BATCH)
        classes = len(data.class_names)

        def make_head(dropout: Any, classes=classes, mean=mean, std=std) -> Head:
            return standardize(
                mlp(classes, width=SWEEP_WIDTH, dropout=dropout), mean, std
            )

        def make_learner(values: Hyperparameters, make_head=make_head, steps=steps):
            head = make_head(values["dropout"])
            tx = optimizer(
                "adamw",
                learning_rate=values["learning_rate"],
                weight_decay=values["weight_decay"],
                steps=steps,
            )
            return learner(head, supervised(head, softmax_cross_entropy), tx)

        fit = train(make_learner, steps=steps, batch_size=BATCH)
        every = jax.jit(jax.vmap(fit, in_axes=(None, None, 0, 0)))
        keys = jax.random.split(jax.random.key(0), options.sweep)
        params = every(kept, kept.weights, values, keys)
        apply = jax.jit(members(make_head(0.0), options.sweep).apply)
        on_val, on_test = apply(params, val.x), apply(params, test.x)
        best = int(np.argmin(member_scores(on_val, val.labels)["nll"]))
        counts = jax.jit(greedy_selection)(on_val, val.labels)
        both = jnp.stack([on_test[best], pool_probabilities(on_test, counts)])
        scores = member_scores(both, test.labels)
        nll, accuracy = scores["nll"], scores["accuracy"]
        distinct = int(np.sum(np.asarray(counts) > 0))
        line(name, options.sweep, *nll, nll[1] / nll[0], distinct, *accuracy)


def bench_distill(options: argparse.Namespace) -> None:
    """Prints what a student of the unlabelled rows keeps of an ensemble."""
    data, test, classes = banking()
    table("students of", "NLL", "accuracy")
    scores: dict[str, list[list[float]]] = {}
    for draw in range(options.draws):
        chosen = shots(np.asarray(data.labels), k=FEW, repeat=draw, seed=0)
        chosen = jnp.asarray(chosen, jnp.float32)
        index = jnp.flatnonzero(chosen)
        one = mlp(classes, width=WIDTH, dropout=options.dropout, zero_init=False)
        one = standardize(one, *statistics(data.x, data.weights))
        objective = supervised(one, softmax_cross_entropy)
        labelled = fitted(one, objective, steps_for(len(index)))
        whole = ensemble(one, options.members)

        def teacher(
            data: Batch,
            weights: Array,
            hyperparameters: Hyperparameters,
            key: Array,
            labelled: Fit = labelled,
            index: Array = index,
        ) -> Params:
            # Only labelled rows: they would be a few of every minibatch.
            fit = seeds(labelled, options.members)
            return fit(some(data, index), weights[index], hyperparameters, key)

        masked = mlp(classes, width=WIDTH, dropout=STUDENT, zero_init=False)
        masked = standardize(masked, *statistics(data.x, data.weights))
        learned = supervised(masked, softmax_cross_entropy)
        student = fitted(masked, learned, steps_for(len(data.labels)))
        fits = [teacher] + [
            distill(teacher, whole, student, classes=classes, on=on)
            for on in ("unlabelled", "labelled")
        ]
        key = jax.random.key(draw)
        # The teacher inside of `distill` has the first of the key's two.
        keys = [jax.random.split(key)[0], key, key]
        found = [
            jax.jit(fit)(data, chosen, {}, key)
            for fit, key in zip(fits, keys, strict=True)
        ]
        for name, head, params in zip(
            ("(the ensemble)", "unlabelled rows", "labelled rows"),
            (whole, masked, masked),
            found,
            strict=True,
        ):
            logits = jax.jit(head.apply)(params, test.x)
            own = member_scores(logits[None], test.labels)
            scores.setdefault(name, []).append([own["nll"][0], own["accuracy"][0]])
    for name, values in scores.items():
        line(name, *np.mean(values, axis=0))


def table(*names: str) -> None:
    """Prints the head of a table."""
    print("\n|", " | ".join(names), "|")
    print("|" + "---|" * len(names), flush=True)


def line(*values: Any) -> None:
    """Prints a row of a table."""
    told = [f"{v:.4f}" if isinstance(v, float) else str(v) for v in values]
    print("|", " | ".join(told), "|", flush=True)


PARTS = {
    "members": bench_members,
    "cost": bench_cost,
    "selection": bench_selection,
    "distill": bench_distill,
}


def main() -> None:
    """Prints a table a part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS))
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sweep", type=int, default=64)
    options = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    for part in options.parts:
        began = time.perf_counter()
        PARTS[part](options)
        print(f"\n{part}: {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
