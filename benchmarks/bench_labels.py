"""Labels that are wrong, and classes that are rare: what helps, and by how much.

    python benchmarks/bench_labels.py [noise tail] [--draws 10] [--data cifar10 ...]

`noise`: a fifth of the training labels become another class, each other one as likely.
Told are test accuracies of logistic regression on the clean and on the noisy labels, of
the same C, and of what should regain the loss: to choose C again is one way, and for
pruning it stays. Then it is told how well wrong labels are ranked by out-of-fold
probabilities (average precision), beside cleanlab on the same ones, where that is
installed (`pip install cleanlab`).

`tail`: rows are drawn so that classes fall from the largest to a hundredth of it. Told
is test balanced accuracy.

A method's hyperparameters, out of one grid for all sets, are those of the best
(balanced) accuracy over 3 folds of the training rows of one more draw, as noisy or as
long-tailed; no choice sees a test row. Embeddings are in the folder that FLAXHEAD_DATA
names (default: data).
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.metrics import average_precision_score

from flaxhead import losses, priors
from flaxhead.base import Array, Batch, Fit, Head, Learner, Loss
from flaxhead.config import DataConfig
from flaxhead.data import load
from flaxhead.data.corrupt import long_tailed, mislabelled
from flaxhead.fit import deal, out_of_fold, train
from flaxhead.heads import linear
from flaxhead.noisy_labels import co_teaching, label_errors, prune, twins
from flaxhead.objectives import supervised
from flaxhead.solvers import logistic
from flaxhead.step import learner

DATA = Path(os.environ.get("FLAXHEAD_DATA", "data"))
SHARE, RATIO = 0.2, 100.0
CLEAN, NOISY = "clean labels", "noisy labels, the same C"
STRENGTHS = {"C": (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)}
RATES = {"rate": (3e-4, 1e-3, 1e-2)}
STEPS, SIZE, FOLDS = 1500, 256, 3


class Method(NamedTuple):
    """A fit, the values to try of its hyperparameters, and what its logits are of."""

    fit: Fit
    head: Head
    grid: dict[str, tuple[float, ...]]


def stepwise(classes: int, loss: Callable[[Any], Loss], grid: Any) -> Method:
    """A linear head by Adam, of a loss that hyperparameters make."""
    head = linear(classes)

    def make(values: Any) -> Learner:
        rate = optax.cosine_decay_schedule(1.0, STEPS)
        tx = optax.chain(
            optax.scale_by_adam(),
            optax.scale_by_schedule(rate),
            optax.scale_by_learning_rate(values["rate"]),
        )
        return learner(head, supervised(head, loss(values)), tx)

    return Method(train(make, steps=STEPS, batch_size=SIZE), head, RATES | grid)


def taught(classes: int) -> Method:
    """Two linear heads by Adam, each taught by the other."""
    head = linear(classes, zero_init=False)
    pair = twins(head)

    def make(values: Any) -> Learner:
        objective = co_teaching(
            head, losses.softmax_cross_entropy, forget_rate=SHARE, ramp=STEPS / 3
        )
        return learner(pair, objective, optax.adam(values["rate"]))

    return Method(train(make, steps=STEPS, batch_size=SIZE), pair, RATES)


def against_noise(classes: int) -> dict[str, Method]:
    """Methods for wrong labels."""
    head, solved = linear(classes), logistic(classes, tolerance=1e-4)
    return {
        "logistic": Method(solved, head, STRENGTHS),
        "pruned": Method(prune(solved, head), head, STRENGTHS),
        "cross-entropy by Adam": stepwise(
            classes, lambda values: losses.softmax_cross_entropy, {}
        ),
        "generalized cross-entropy": stepwise(
            classes,
            lambda values: losses.generalized_cross_entropy(values["q"]),
            {"q": (0.2, 0.4, 0.7)},
        ),
        "symmetric cross-entropy": stepwise(
            classes,
            lambda values: losses.symmetric_cross_entropy(values["alpha"], 1.0),
            {"alpha": (0.1, 0.3, 1.0)},
        ),
        "co-teaching": taught(classes),
    }


def for_the_tail(classes: int, counts: Array) -> dict[str, Method]:
    """Methods for rare classes, of which so many rows there are."""
    head = linear(classes)
    solved = logistic(classes, tolerance=1e-4)
    plain, even = losses.softmax_cross_entropy, jnp.ones(classes)
    balanced = jnp.sum(counts) / (classes * counts)
    effective = losses.effective_number_weights(counts)

    def moved(data: Batch, weights: Array, hyperparameters: Any, key: Array) -> Any:
        params = solved(data, weights, hyperparameters, key)
        return priors.with_prior(params, counts, even)

    def weighted(each: Array) -> Method:
        fit = logistic(classes, tolerance=1e-4, class_weights=each)
        return Method(fit, head, STRENGTHS)

    def by_steps(loss: Loss) -> Method:
        return stepwise(classes, lambda values: loss, {})

    return {
        "logistic": Method(solved, head, STRENGTHS),
        "class weights": weighted(balanced),
        "effective numbers": weighted(effective),
        "logits adjusted after": Method(moved, head, STRENGTHS),
        "cross-entropy by Adam": by_steps(plain),
        "class weights, Adam": by_steps(losses.class_weighted(plain, balanced)),
        "logits adjusted in the loss": by_steps(losses.balanced_softmax(counts)),
        "LDAM": by_steps(losses.ldam(counts)),
    }


def splits(name: str) -> tuple[Batch, np.ndarray, np.ndarray, int]:
    """Returns the training rows, and the test rows and their labels."""
    data = load(DataConfig(f"npz:{DATA / name}", val_fraction=0.0))
    rows = len(data.train.labels)
    batch = Batch(
        jnp.asarray(data.train.x, jnp.float32),
        jnp.asarray(data.train.labels),
        jnp.ones(rows),
        jnp.arange(rows),
    )
    test = np.asarray(data.test.x, np.float32)
    return batch, test, data.test.labels, len(data.class_names)


def points(grid: dict[str, tuple[float, ...]]) -> list[dict[str, Any]]:
    """All combinations of a grid."""
    return [
        {name: jnp.float32(one) for name, one in zip(grid, values, strict=True)}
        for values in itertools.product(*grid.values())
    ]


def score(labels: np.ndarray, guess: np.ndarray, balanced: bool) -> float:
    """Accuracy, or its average over classes."""
    right = guess == labels
    if not balanced:
        return float(right.mean())
    return float(np.mean([right[labels == one].mean() for one in np.unique(labels)]))


def programs(methods: Callable[[Array], dict[str, Method]], name: str) -> Any:
    """Returns `(data, x, counts, values) -> logits` of x, and those out of fold."""
    key = jax.random.key(0)

    def predict(data: Batch, x: Array, counts: Array, values: Any) -> Array:
        method = methods(counts)[name]
        params = method.fit(data, data.weights, values, key)
        return method.head.apply(params, x)

    def judge(data: Batch, counts: Array, values: Any) -> Array:
        method = methods(counts)[name]
        fold = deal(data.labels, data.index, FOLDS, key)
        run = out_of_fold(method.fit, method.head, fold, folds=FOLDS)
        return run(data, data.weights, values, key)

    return jax.jit(predict), jax.jit(judge)


def choose(
    judge: Any, data: Batch, counts: Array, grid: Any, *, balanced: bool
) -> dict[str, Any]:
    """Returns the values that are best out of fold."""
    tried = points(grid)
    labels = np.asarray(data.labels)
    scores = [
        score(labels, np.argmax(judge(data, counts, values), 1), balanced)
        for values in tried
    ]
    return tried[int(np.argmax(scores))]


def interval(values: list[float]) -> str:
    """Mean, and half of the 95 % interval of the mean, over draws."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.4f}"
    half = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return f"{mean:.4f} ({half:.4f})"


def told(values: dict[str, Any]) -> str:
    """What was chosen, in words."""
    return ", ".join(f"{name} {float(one):g}" for name, one in values.items())


def count(data: Batch, classes: int) -> Array:
    """Rows of each class."""
    return jnp.bincount(data.labels, length=classes).astype(jnp.float32)


def noise(name: str, draws: int) -> None:
    """Prints a row a method, and how well wrong labels are found."""
    data, x, labels, classes = splits(name)
    clean = np.asarray(data.labels)
    counts = count(data, classes)

    def noisy(seed: int) -> Batch:
        made = mislabelled(clean, share=SHARE, classes=classes, seed=seed)
        return data._replace(labels=jnp.asarray(made))

    def methods(counts: Array) -> dict[str, Method]:
        del counts
        return against_noise(classes)

    print(f"\n| {name}, {SHARE:.0%} wrong labels | accuracy | chosen | s a fit |")
    print("|---|---|---|---|")
    found, chosen = {}, {}
    for row in (CLEAN, NOISY, *against_noise(classes)):
        method = row if row in against_noise(classes) else "logistic"
        predict, judge = programs(methods, method)
        if row in (NOISY, "pruned"):  # the same head, and what it loses and regains
            values = chosen[CLEAN]
        else:
            first = data if row == CLEAN else noisy(draws)
            grid = methods(counts)[method].grid
            values = choose(judge, first, counts, grid, balanced=False)
        chosen[row], spent, found[row] = values, [], []
        for seed in range(1 if row == CLEAN else draws):
            rows = data if row == CLEAN else noisy(seed)
            began = time.perf_counter()
            guess = np.argmax(np.asarray(predict(rows, x, counts, values)), 1)
            spent.append(time.perf_counter() - began)
            found[row].append(score(labels, guess, False))
        words = f"{interval(found[row])} | {told(values)} | {np.median(spent):.1f}"
        print(f"| {row} | {words} |", flush=True)
    lost = found[CLEAN][0] - np.mean(found[NOISY])
    for row in list(found)[2:]:
        gained = np.mean(np.subtract(found[row], found[NOISY]))
        print(f"{row}: regains {gained / lost:.0%} of the {100 * lost:.1f} points lost")

    _, judge = programs(methods, "logistic")
    values = chosen["logistic"]
    for seed in range(min(draws, 3)):
        rows = noisy(seed)
        wrong = np.asarray(rows.labels) != clean
        p = jax.nn.softmax(judge(rows, counts, values))
        ours = label_errors(p, rows.labels, rows.weights)
        precision = average_precision_score(wrong, -np.asarray(ours.score))
        issue = np.asarray(ours.issue)
        line = f"draw {seed}: average precision {precision:.4f}"
        line += f", {issue.sum()} suspected, {wrong[issue].mean():.3f} of them wrong"
        print(line + beside(np.asarray(rows.labels), np.asarray(p), wrong), flush=True)


def beside(labels: np.ndarray, p: np.ndarray, wrong: np.ndarray) -> str:
    """The same of cleanlab."""
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        return " (cleanlab isn't installed)"
    p = p / p.sum(axis=1, keepdims=True)
    precision = average_precision_score(wrong, -get_label_quality_scores(labels, p))
    issue = find_label_issues(labels, p, filter_by="prune_by_noise_rate", n_jobs=1)
    suspected = f"{issue.sum()} suspected, {wrong[issue].mean():.3f}"
    return f" | cleanlab: {precision:.4f}, {suspected}"


def tail(name: str, draws: int) -> None:
    """Prints a row a method."""
    data, x, labels, classes = splits(name)

    def drawn(seed: int) -> Batch:
        kept = long_tailed(np.asarray(data.labels), ratio=RATIO, seed=seed)
        rows = np.flatnonzero(kept)
        return jax.tree.map(lambda leaf: leaf[rows], data)

    def methods(counts: Array) -> dict[str, Method]:
        return for_the_tail(classes, counts)

    print(f"\n| {name}, {RATIO:g} to 1 | balanced accuracy | chosen | s a fit |")
    print("|---|---|---|---|")
    first = drawn(draws)
    for row in for_the_tail(classes, jnp.ones(classes)):
        predict, judge = programs(methods, row)
        counts = count(first, classes)
        grid = methods(counts)[row].grid
        values = choose(judge, first, counts, grid, balanced=True)
        scores, spent = [], []
        for seed in range(draws):
            rows = drawn(seed)
            began = time.perf_counter()
            logits = predict(rows, x, count(rows, classes), values)
            guess = np.argmax(np.asarray(logits), 1)
            spent.append(time.perf_counter() - began)
            scores.append(score(labels, guess, True))
        words = f"{interval(scores)} | {told(values)} | {np.median(spent):.1f}"
        print(f"| {row} | {words} |", flush=True)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["noise", "tail"])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--data", nargs="+", default=["cifar10", "banking77"])
    options = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    for name in options.data:
        if "noise" in options.parts:
            noise(name, options.draws)
    if "tail" in options.parts:
        tail("banking77", options.draws)


if __name__ == "__main__":
    main()
