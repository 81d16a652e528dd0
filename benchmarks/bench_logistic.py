"""Exact heads against scikit-learn: whole paths of penalties, and single fits.

    python benchmarks/bench_logistic.py [--quick] [--data=banking77,cifar10]

For each data set, in one process and one after the other:

* logistic regression for 45 C (1e-6 to 1e5), five folds and all rows, at a loose and at
  a tight stop, against `LogisticRegressionCV(Cs=45, cv=5)`; both cold, with the time to
  compile shown apart;
* how far each (C, fold) is above scikit-learn's objective, and, for every third C up to
  1000, the fit to all rows above the optimum of a float64 solve; both in float64 from
  the parameters. The loose stop is the loosest at which no (C, fold) is
  above scikit-learn's by more than 1e-6;
* logistic regression at one C against `LogisticRegression`, each at the loosest of its
  tolerances at which no probability is off by 1e-4;
* 100 ridge penalties, chosen by leave-one-out, against `RidgeClassifierCV`;
* with --streamed=ROWS alone, nine C (1e-4 to 1e4), folds and all rows, over parts of so
  many rows (`flaxhead.fit_stream`), against `logistic_path` over all of them: medians
  of the processor's time, in turn, both compiled, and the largest difference of an
  objective.

The matrix-product peak is measured in the same run. --quick takes 2,000 rows and fewer
C. The embeddings are `NAME/train.npz` in the folder that FLAXHEAD_DATA names (default:
data); what takes long, scikit-learn's path and the float64 optima, is kept in the
folder that --keep names, if it is given.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax
from sklearn.linear_model import (
    LogisticRegression,
    LogisticRegressionCV,
    RidgeClassifierCV,
)
from sklearn.model_selection import StratifiedKFold

from flaxhead.base import Batch
from flaxhead.solvers import logistic_path, logistic_pieces, ridge_leave_one_out
from flaxhead.streamed import fit_stream, pieces_of

DATA = Path(os.environ.get("FLAXHEAD_DATA", "data"))
FOLDS = 5
# Relative to the objective; loose, to that of a head that knows nothing.
TIGHT = 1e-6
LOOSE = (1e-6, 1e-7, 1e-8)
ABOVE = 1e-6  # as much as float32 parameters may be above an objective that is as low
ROUNDS = 3
CHECKED = (FOLDS,)  # lanes that are held to the float64 optimum
EVERY = 3  # and of their C, each so many-th: a float64 solve takes its time


def load(name: str, rows: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns embeddings as they are kept, and class numbers."""
    file = np.load(DATA / name / "train.npz")
    _, labels = np.unique(file["labels"], return_inverse=True)
    chosen = np.random.default_rng(0).permutation(len(labels))[:rows]
    chosen.sort()
    return file["embeddings"][chosen], labels[chosen].astype(np.int32)


def lanes_of(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Row weights `[rows, folds + 1]`: scikit-learn's folds, then all rows."""
    weights = np.ones((len(y), FOLDS + 1), np.float32)
    for number, (_, held) in enumerate(StratifiedKFold(FOLDS).split(x, y)):
        weights[held, number] = 0
    return weights


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """How long a call took, and what it returned."""
    began = time.perf_counter()
    result = jax.block_until_ready(run())
    return time.perf_counter() - began, result


def peak() -> float:
    """Float32 FLOP/s of a matrix product at the machine's best."""
    size, repeats = (1024, 60) if jax.default_backend() == "cpu" else (8192, 60)
    left = jnp.ones((size, size))

    @jax.jit
    def run(left, right):
        product = lambda _, x: left @ x * (1 / size)  # noqa: E731
        return jax.lax.fori_loop(0, repeats, product, right)

    run(left, left).block_until_ready()
    times = [seconds(lambda: run(left, left))[0] for _ in range(5)]
    return 2.0 * size**3 * repeats / float(np.median(times))


def objective(
    flat: np.ndarray, x: np.ndarray, y: np.ndarray, C: float
) -> tuple[float, np.ndarray]:
    """`|W|^2 / 2 + C * sum loss` and its gradient; `flat` is `[dim + 1, classes]`."""
    kernel, bias = np.split(flat.reshape(x.shape[1] + 1, -1), [-1])
    logits = x @ kernel + bias
    norm = logsumexp(logits, axis=1)
    rows = np.arange(len(y))
    value = np.sum(kernel**2) / 2 + C * np.sum(norm - logits[rows, y])
    slopes: np.ndarray = np.asarray(np.exp(logits - np.asarray(norm)[:, None]))
    slopes[rows, y] -= 1
    gradient = np.concatenate(
        [kernel + C * x.T @ slopes, C * np.sum(slopes, axis=0, keepdims=True)]
    )
    return value, gradient.ravel()


def flatten(kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Kernel `[dim, classes]` and bias, as one float64 vector."""
    return np.concatenate([kernel, bias[None]]).astype(float).ravel()


def optimum(
    flat: np.ndarray, x: np.ndarray, y: np.ndarray, C: float
) -> tuple[np.ndarray, float, float]:
    """The float64 optimum from a start nearby: it, its objective, and what it misses.

    In principal axes, each divided by the root of its curvature, where L-BFGS is quick.
    What it misses is bounded by the penalty alone, `|gradient|^2 / 2`.
    """
    mean = x.mean(0)
    variances, axes = np.linalg.eigh(np.cov(x.T, bias=True))
    classes = flat.size // (x.shape[1] + 1)
    scale = 1 / np.sqrt(1 + C * len(x) * np.maximum(variances, 0) / classes * 4)
    free = 1 / np.sqrt(C * len(x) / classes)
    z = (x - mean) @ axes

    def turned(v: np.ndarray) -> tuple[float, np.ndarray]:
        v = v.reshape(-1, classes)
        full = np.concatenate([scale[:, None] * v[:-1], free * v[-1:]])
        value, gradient = objective(full.ravel(), z, y, C)
        gradient = gradient.reshape(-1, classes)
        gradient = np.concatenate(
            [scale[:, None] * gradient[:-1], free * gradient[-1:]]
        )
        return value, gradient.ravel()

    kernel, bias = np.split(flat.reshape(-1, classes), [-1])
    begin = np.concatenate(
        [axes.T @ kernel / scale[:, None], (bias + mean @ kernel) / free]
    )
    found = minimize(
        turned,
        begin.ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 300, "maxcor": 20, "ftol": 1e-12, "gtol": 0},
    )
    v = found.x.reshape(-1, classes)
    kernel = axes @ (scale[:, None] * v[:-1])
    flat = flatten(kernel, free * v[-1] - mean @ kernel)
    value, gradient = objective(flat, x, y, C)
    slopes = gradient.reshape(-1, classes)
    # About the centred features, where the free intercept has next to no share.
    slopes = slopes[:-1] - mean[:, None] * slopes[-1]
    return flat, value, float(np.sum(slopes**2) / 2)


def kept(folder: Path | None, name: str, make: Callable[[], dict]) -> dict:
    """What `make` returns, from the folder if it is there."""
    if folder is None:
        return make()
    path = folder / f"{name}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(path, **make())
    with np.load(path) as file:
        return dict(file)


def path_section(
    name: str, x: np.ndarray, y: np.ndarray, strengths: np.ndarray, folder: Path | None
) -> None:
    """45 C, folds and all rows."""
    classes, wide = int(y.max()) + 1, x.astype(float)
    weights = lanes_of(x, y)

    def theirs() -> dict:
        listed: Any = strengths.tolist()
        model = LogisticRegressionCV(Cs=listed, cv=FOLDS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spent, _ = seconds(lambda: model.fit(x, y))
        paths = model.coefs_paths_
        if isinstance(paths, dict):
            paths = np.stack([paths[k] for k in sorted(paths)], axis=2)
        values = np.zeros((len(strengths), FOLDS))
        for fold in range(FOLDS):
            rows = weights[:, fold] > 0
            for c, C in enumerate(strengths):
                flat = np.asarray(paths)[fold, c].T.ravel()
                values[c, fold] = objective(flat, wide[rows], y[rows], C)[0]
        return {"seconds": spent, "values": values}

    scikit = kept(folder, f"{name}-{len(y)}-scikit-learn", theirs)
    print(f"{name}: {len(strengths)} C, {FOLDS} folds and all rows")
    print(f"  LogisticRegressionCV            {float(scikit['seconds']):7.1f} s")
    data = Batch(jnp.asarray(x), jnp.asarray(y), jnp.ones(len(y)), jnp.arange(len(y)))
    lanes, top = jnp.asarray(weights), peak()

    def solve(tolerance: float, floor: float) -> tuple[float, float, Any, Any]:
        """Seconds cold and warm, medians, and what was found."""
        cold, warm = [], []
        params = info = None
        for _ in range(ROUNDS):
            for spent in (cold, warm):
                if spent is cold:
                    jax.clear_caches()
                took, (params, info) = seconds(
                    lambda: logistic_path(
                        data,
                        lanes,
                        strengths,
                        classes=classes,
                        tolerance=tolerance,
                        floor=floor,
                    )
                )
                spent.append(took)
        output = jax.tree.map(np.asarray, params)
        return float(np.median(cold)), float(np.median(warm)), output, info

    def value(output: Any, c: int, lane: int) -> float:
        flat = flatten(output["kernel"][c, lane], output["bias"][c, lane])
        rows = weights[:, lane] > 0
        return objective(flat, wide[rows], y[rows], strengths[c])[0]

    def above(output: Any) -> float:
        mine = [[value(output, c, k) for k in range(FOLDS)] for c in range(len(scikit))]
        return float((np.array(mine) / scikit - 1).max())

    scikit, seconds_of_scikit = scikit["values"], float(scikit["seconds"])
    tight = solve(TIGHT, 0.0)

    def optima() -> dict:
        output = tight[2]["output"]
        found = np.zeros((len(strengths), len(CHECKED)))
        missed = np.zeros_like(found)
        for place, lane in enumerate(CHECKED):
            rows = weights[:, lane] > 0
            for c in np.flatnonzero(strengths <= 1001)[::-EVERY]:
                start = flatten(output["kernel"][c, lane], output["bias"][c, lane])
                _, found[c, place], missed[c, place] = optimum(
                    start, wide[rows], y[rows], float(strengths[c])
                )
        return {"values": found, "missed": missed}

    reference = kept(folder, f"{name}-{len(y)}-optima", optima)
    best, missed = reference["values"], reference["missed"]
    known = np.flatnonzero(best[:, 0]).tolist()
    share = (missed[known] / best[known]).max()
    print(f"  float64 optima up to C = 1000 are certain to {share:.0e}")
    rows = [("tight", TIGHT, tight)]
    for tolerance in LOOSE:
        rows[1:] = [("loose", tolerance, solve(tolerance, float(np.log(classes))))]
        if above(rows[1][2][2]["output"]) <= ABOVE:
            break
    for stop, tolerance, (cold, warm, params, info) in rows:
        output = params["output"]
        excess = max(
            value(output, c, lane) / best[c, place] - 1
            for place, lane in enumerate(CHECKED)
            for c in known
        )
        spent = np.asarray(info.iterations)
        flops = 4.0 * x.size * classes * (FOLDS + 1) * spent.sum(0).max()
        print(
            f"  {stop} ({tolerance:.0e}): cold {cold:5.1f} s (of it compiling "
            f"{cold - warm:4.1f} s), {seconds_of_scikit / cold:5.1f} x; "
            f"{spent.sum(0).mean():.0f} evaluations a lane, "
            f"{flops / warm / top:.0%} of {top / 1e9:.0f} GFLOP/s; "
            f"above scikit-learn by at most {above(output):.1e}, above the optimum up "
            f"to C = 1000 by at most {excess:.1e}",
            flush=True,
        )


def single_section(name: str, x: np.ndarray, y: np.ndarray) -> None:
    """One C, both at the loosest tolerance that is good enough."""
    classes, wide = int(y.max()) + 1, x.astype(float)
    data = Batch(jnp.asarray(x), jnp.asarray(y), jnp.ones(len(y)), jnp.arange(len(y)))
    for C in (10.0, 100.0, 1000.0):

        def mine(tolerance: float, C: float = C) -> Any:
            return logistic_path(
                data, np.ones((len(y), 1)), [C], classes=classes, tolerance=tolerance
            )

        def probabilities(flat: np.ndarray) -> np.ndarray:
            kernel, bias = np.split(flat.reshape(-1, classes), [-1])
            return softmax(wide @ kernel + bias, axis=1)

        def flat_of(params: Any) -> np.ndarray:
            output: Any = jax.tree.map(lambda leaf: np.asarray(leaf)[0, 0], params)[
                "output"
            ]
            return flatten(output["kernel"], output["bias"])

        begin = flat_of(mine(1e-10)[0])
        flat, _, _ = optimum(begin, wide, y, C)
        expected = probabilities(flat)
        cold = spent = off = gap = tolerance = tol = np.inf
        for tolerance in 10.0 ** np.arange(-6, -14, -1):
            jax.clear_caches()
            cold, (params, _) = seconds(lambda t=tolerance: mine(t))
            off = np.abs(probabilities(flat_of(params)) - expected).max()
            if off < 1e-4:
                break
        for tol in 10.0 ** np.arange(-4, -10, -1):
            model = LogisticRegression(C=C, tol=tol, max_iter=20_000)
            spent, _ = seconds(lambda m=model: m.fit(x, y))
            theirs = flatten(model.coef_.T, np.asarray(model.intercept_))
            gap = np.abs(probabilities(theirs) - expected).max()
            if gap < 1e-4 or spent > 120:
                break
        print(
            f"{name}, C = {C:.0f}: cold {cold:.1f} s, off by {off:.0e} (tolerance "
            f"{tolerance:.0e}); LogisticRegression {spent:.1f} s, off by {gap:.0e} "
            f"(tol {tol:.0e}): {spent / cold:.1f} x"
        )


def ridge_section(name: str, x: np.ndarray, y: np.ndarray) -> None:
    """100 penalties by leave-one-out."""
    classes = int(y.max()) + 1
    penalties = np.geomspace(1e-3, 1e3, 100)
    wide = x.astype(np.float32)
    theirs, _ = seconds(lambda: RidgeClassifierCV(alphas=penalties).fit(wide, y))
    data = Batch(jnp.asarray(x), jnp.asarray(y), jnp.ones(len(y)), jnp.arange(len(y)))

    @jax.jit
    def run(data: Batch, penalties: jax.Array) -> Any:
        def accuracy(logits: jax.Array) -> jax.Array:
            return jnp.mean(jnp.argmax(logits, axis=-1) == data.labels)

        fit = ridge_leave_one_out(classes, keep=accuracy)
        alphas = {"alpha": penalties}
        return fit(data, data.weights, alphas, jax.random.key(0))

    cold, _ = seconds(lambda: run(data, jnp.asarray(penalties, jnp.float32)))
    warm, _ = seconds(lambda: run(data, jnp.asarray(penalties, jnp.float32)))
    print(
        f"{name}: {len(penalties)} ridge penalties by leave-one-out: cold {cold:.1f} s "
        f"(compiling {cold - warm:.1f} s), RidgeClassifierCV {theirs:.1f} s: "
        f"{theirs / cold:.1f} x"
    )


def streamed_section(name: str, x: np.ndarray, y: np.ndarray, rows: int) -> None:
    """A path over parts, and over all rows at once."""
    classes, strengths = int(y.max()) + 1, np.logspace(-4, 4, 9)
    weights, floor = lanes_of(x, y), float(np.log(classes))
    arrays: Any = (x, y, np.ones(len(y), np.float32), np.arange(len(y)))
    data = Batch(*arrays)
    on_device = jax.tree.map(jnp.asarray, data)
    passes = logistic_pieces(classes, tolerance=TIGHT, floor=floor).passes
    pieces = pieces_of(data, rows)

    def whole() -> Any:
        return logistic_path(
            on_device,
            weights,
            strengths,
            classes=classes,
            tolerance=TIGHT,
            floor=floor,
        )

    def parts() -> Any:
        return fit_stream(pieces, weights, {"C": strengths}, passes=passes)

    spent: dict[Any, list[float]] = {whole: [], parts: []}
    told = {}
    for _ in range(ROUNDS + 1):
        for run, times in spent.items():
            began = time.process_time()
            _, told[run] = jax.block_until_ready(run())
            times.append(time.process_time() - began)
    one, other = (float(np.median(times[1:])) for times in spent.values())
    found, expected = (np.asarray(told[run].objective) for run in (parts, whole))
    # The tolerance is a share of this, where the objective is less.
    scale = np.maximum(expected, strengths[:, None] * weights.sum(0) * floor)
    print(
        f"{name}: {len(strengths)} C, {FOLDS} folds and all rows, in "
        f"{-(-len(y) // rows)} parts of {rows} rows: {other:.1f} s of the processor, "
        f"all at once {one:.1f} s: {other / one:.2f} x; objectives apart by at most "
        f"{(np.abs(found - expected) / scale).max():.0e} of knowing nothing; "
        f"{int(np.asarray(told[parts].iterations).sum(0).max())} passes",
        flush=True,
    )


def main() -> None:
    """Prints a section a data set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", default="banking77,cifar10")
    parser.add_argument("--sections", default="path,single,ridge")
    parser.add_argument("--streamed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=None)
    options = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    strengths = np.logspace(-6, 5, 12 if options.quick else 45)
    for name in options.data.split(","):
        x, y = load(name, 2000 if options.quick else None)
        if options.streamed:
            streamed_section(name, x, y, options.streamed)
            continue
        if "path" in options.sections:
            path_section(name, x, y, strengths, options.keep)
        if "single" in options.sections:
            single_section(name, x, y)
        if "ridge" in options.sections:
            ridge_section(name, x, y)


if __name__ == "__main__":
    main()
