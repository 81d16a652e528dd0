"""How good the winner of configs/linear_probe.py is beside scikit-learn's best C.

    python benchmarks/bench_accuracy.py [banking77 sst2 cifar10]

Both train on the same rows, choose on the same validation rows and are scored on the
same test rows: flaxhead by validation NLL, as the config says, and LogisticRegression
over C by validation accuracy. `best C on test` is the C that a look at the test rows
would have chosen, and `refit` the chosen C trained on training and validation rows
together. The embeddings are `NAME/train.npz` and so on in the folder that FLAXHEAD_DATA
names (default: data).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from flaxhead import Config, Dataset, flags, run
from flaxhead.data import load

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("FLAXHEAD_DATA", "data"))
SETS = ("banking77", "sst2", "cifar10")
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
COLUMNS = (
    *("data", "rows", "flaxhead", "its validation NLL", "CPU seconds"),
    *("scikit-learn", "its C", "refit", "best C on test", "CPU seconds"),
)


def flaxhead_cells(config: Config, data: Dataset) -> list[str]:
    """Test accuracy and validation score of the winner; compilation is in the time."""
    clock = time.process_time()
    with tempfile.TemporaryDirectory() as workdir:
        result = run(config, workdir, data=data)
    seconds = time.process_time() - clock
    for warning in result["warnings"]:
        print(f"  {warning}", flush=True)
    print(f"  {result['selected']['hyperparameters']}", flush=True)
    accuracy, nll = result["test"]["accuracy"], result["val"]["nll"]
    return [f"{accuracy:.4f}", f"{nll:.4f}", f"{seconds:.0f}"]


def scikit_learn_cells(data: Dataset) -> list[str]:
    """The same of scikit-learn; the time is that of the sweep, without the refit."""
    train, val, test = (
        (split.x.astype(np.float32), split.labels)
        for split in (data.train, data.val, data.test)
    )
    clock = time.process_time()
    scores = []
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=1000).fit(*train)
        scores.append((model.score(*val), model.score(*test)))
        print(f"  C={strength:g}: {scores[-1]}", flush=True)
    seconds = time.process_time() - clock
    chosen = max(range(len(STRENGTHS)), key=lambda i: scores[i][0])
    best = max(range(len(STRENGTHS)), key=lambda i: scores[i][1])
    both = [np.concatenate(parts) for parts in zip(train, val, strict=True)]
    refit = LogisticRegression(C=STRENGTHS[chosen], max_iter=1000).fit(*both)
    return [
        f"{scores[chosen][1]:.4f}",
        f"{STRENGTHS[chosen]:g}",
        f"{refit.score(*test):.4f}",
        f"{scores[best][1]:.4f} (C={STRENGTHS[best]:g})",
        f"{seconds:.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="*", default=SETS, metavar="SET")
    options = parser.parse_args()
    # Weak penalties stop at 1000 iterations, which is as good for this.
    warnings.simplefilter("ignore", ConvergenceWarning)
    probe = flags.load(str(ROOT / "configs" / "linear_probe.py"))
    table = []
    for name in options.sets:
        print(name, flush=True)
        source = f"npz:{DATA / name}"
        config = dataclasses.replace(
            probe, data=dataclasses.replace(probe.data, source=source)
        )
        data = load(config.data)
        splits = (data.train, data.val, data.test)
        rows = " / ".join(f"{len(split.labels):,}" for split in splits)
        cells = [*flaxhead_cells(config, data), *scikit_learn_cells(data)]
        table.append([name, rows, *cells])
    for row in (COLUMNS, ["---"] * len(COLUMNS), *table):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
