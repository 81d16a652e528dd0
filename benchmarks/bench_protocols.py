"""How good the published protocols are, and what scikit-learn says with their settings.

    python benchmarks/bench_protocols.py [banking77 cifar10 sst2]
        [--configs knn_dino ridge] [--steps 500]

Runs config files of configs/ as they are, but for the data: the embeddings are
`NAME/train.npz` and so on in the folder that FLAXHEAD_DATA names (default: data).
Beside each is scikit-learn, where it has a counterpart: fitted with the hyperparameters
that won, on the same rows (of a learning curve: on the same draws), and scored on the
same test rows. `dinov2_linear_52` wants five vectors side by side, and is given one
embedding five times; `--steps` trains it for fewer steps than its 12,500.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from flaxhead import Config, Dataset, Embeddings, flags, run
from flaxhead.data import concatenate, load
from flaxhead.folds import shots

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("FLAXHEAD_DATA", "data"))
SETS = ("banking77", "cifar10", "sst2")
CONFIGS = (
    *("dinov2_logreg_45", "clip_lbfgs", "logistic", "ridge", "knn_dino"),
    *("fewshot_lsr", "setfit_lp", "dinov2_linear_52", "auto"),
)
VECTORS = 5
COLUMNS = (
    *("data", "config", "what won", "validation", "test", "CPU seconds", "seconds"),
    *("scikit-learn, test", "CPU seconds"),
)


def repeated(source: Path, folder: Path) -> None:
    """Writes the splits of a data set with each embedding several times in a row."""
    for path in source.glob("*.npz"):
        arrays = dict(np.load(path))
        arrays["embeddings"] = np.tile(arrays["embeddings"], (1, VECTORS))
        np.savez(folder / path.name, **arrays)


def won(result: dict[str, Any]) -> str:
    """The winner's head and the values of what was swept."""
    values = result["selected"]["hyperparameters"].items()
    told = [f"{name} {value:.4g}" for name, value in values if value and name != "seed"]
    return f"{result['selected']['head']}, {', '.join(told)}"


def scores(test: float, points: list[tuple[int, list[float]]]) -> str:
    """The test score, and of a learning curve mean and standard deviation."""
    curve = [
        f"{k} a class: {np.mean(draws):.4f} ({np.std(draws, ddof=1):.4f})"
        for k, draws in points
    ]
    return "; ".join([f"{test:.4f}", *curve])


def counterpart(name: str, values: dict[str, float]) -> Any:
    """scikit-learn's estimator with the hyperparameters that won, or None."""
    if "C" in values:
        return LogisticRegression(C=values["C"], max_iter=1000)
    if "alpha" in values:
        ridge = RidgeClassifier(alpha=values["alpha"])
        scaled = name == "fewshot_lsr"
        return make_pipeline(StandardScaler(), ridge) if scaled else ridge
    if "k" in values:
        votes: Any = lambda distance: np.exp(  # noqa: E731
            -distance / values["temperature"]
        )
        return KNeighborsClassifier(int(values["k"]), metric="cosine", weights=votes)
    return None


def scikit_learn(
    name: str, config: Config, data: Dataset, result: dict[str, Any]
) -> list[str]:
    """Scores and seconds of the counterpart."""
    clock = time.process_time()
    rows, test = concatenate(data.train, data.val), data.test
    model = counterpart(name, result["selected"]["hyperparameters"])
    if model is None:
        return ["", ""]

    def score(where: Any) -> float:
        fitted = model.fit(_wide(rows)[where], rows.labels[where])
        return float(fitted.score(_wide(test), test.labels))

    curve, seed = config.curve, config.data.seed
    points = []
    for k in curve.shots:
        draws = [
            shots(rows.labels, k=k, repeat=repeat, seed=seed, short="all")
            for repeat in range(curve.repeats)
        ]
        points.append((k, [score(draw) for draw in draws]))
    told = scores(score(slice(None)), points)
    return [told, f"{time.process_time() - clock:.0f}"]


def _wide(data: Embeddings) -> np.ndarray:
    return np.asarray(data.x, np.float32)


def measure(name: str, data_name: str, steps: int) -> list[str]:
    """A row of the table; compilation is in the time, reading the data is not."""
    config = flags.load(str(ROOT / "configs" / f"{name}.py"))
    with tempfile.TemporaryDirectory() as folder:
        source = DATA / data_name
        told = name
        if name == "dinov2_linear_52":
            repeated(source, Path(folder))
            source = Path(folder)
            if steps:
                train = dataclasses.replace(config.train, steps=steps)
                config = dataclasses.replace(config, train=train)
            told = f"{name}, one vector {VECTORS} times, {config.train.steps:,} steps"
        section = dataclasses.replace(config.data, source=f"npz:{source}")
        config = dataclasses.replace(config, data=section)
        data = load(section)
        clock, cpu = time.perf_counter(), time.process_time()
        result = run(config, Path(folder) / "run", data=data)
        taken = time.process_time() - cpu, time.perf_counter() - clock
    for warning in result["warnings"]:
        print(f"  {warning}", flush=True)
    curve = result.get("learning_curve", [])
    return [
        data_name,
        told,
        won(result),
        f"{result['selected']['score']:.4f}",
        scores(
            result["test"]["accuracy"],
            [(point["shots"], point["scores"]) for point in curve],
        ),
        *(f"{seconds:.0f}" for seconds in taken),
        *scikit_learn(name, config, data, result),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="*", default=SETS, metavar="SET")
    parser.add_argument("--configs", nargs="+", choices=CONFIGS, default=CONFIGS)
    parser.add_argument("--steps", type=int, default=0)
    options = parser.parse_args()
    # Weak penalties stop at 1000 iterations, which is as good for this.
    warnings.simplefilter("ignore", ConvergenceWarning)
    table = []
    for data_name in options.sets:
        for name in options.configs:
            print(f"{data_name} {name}", flush=True)
            table.append(measure(name, data_name, options.steps))
            print(f"  {' | '.join(table[-1])}", flush=True)
    for row in (COLUMNS, ["---"] * len(COLUMNS), *table):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
