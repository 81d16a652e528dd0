"""Training on rows that stay in their file, beside rows that the device holds.

    python benchmarks/bench_stream.py [--rows 200000] [--rounds 5] [--memory 400]

Synthetic float16 rows of 384 features and a linear head of 77 classes, batches of 1024,
four epochs. In each round, in turn:

* `replicated`: all rows on the device.
* `streamed`: read from the file in windows of 32 MB, which is in the page cache.

Seconds are those of training, evaluation and checkpoints; reading through a streamed
file at the start is told apart. The mark is a ratio of 1.3. Then, in a process of its
own, a whole run of one epoch on a file of four times `--memory` MB, and the most memory
that it had of its own, above what it has once all is imported. Files are deleted.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax
import numpy as np

from flaxhead import cli, loop
from flaxhead.config import Config, DataConfig, TrainConfig

DIM, CLASSES, BATCH, BLOCK = 384, 77, 1024, 8192


def prepare(folder: Path, rows: int) -> None:
    """Writes rows and labels; blocks of rows differ by a factor."""
    draw = np.random.default_rng(0)
    means = draw.standard_normal((CLASSES, DIM), np.float32)
    folder.mkdir()
    for split, count in (("train", rows), ("val", 512)):
        labels = draw.integers(0, CLASSES, BLOCK)
        block = draw.standard_normal((BLOCK, DIM), np.float32) * 4 + means[labels]
        with (folder / f"{split}_embeddings.npy").open("wb") as file:
            header = {"descr": "<f2", "fortran_order": False, "shape": (count, DIM)}
            np.lib.format.write_array_header_1_0(file, header)
            for number, begin in enumerate(range(0, count, BLOCK)):
                part = block[: count - begin] * np.float32(1 + number % 997 / 1e3)
                part.astype(np.float16).tofile(file)
        labels = np.resize(labels, count).astype(np.int32)
        np.save(folder / f"{split}_labels.npy", labels)


def train(folder: Path, residency: str, *, epochs: int, window_bytes: int) -> dict:
    """A whole run; returns its result."""
    config = Config(
        data=DataConfig(
            f"npy:{folder}",
            residency=residency,
            window_bytes=window_bytes,
            test_fraction=0.0,
        ),
        train=TrainConfig(batch_size=BATCH, epochs=epochs, evaluations=4),
    )
    with tempfile.TemporaryDirectory() as workdir:
        return loop.run(config, f"{workdir}/run")


def own_memory() -> int:
    """Bytes of this process that no file backs, now."""
    told = Path("/proc/self/status").read_text()
    return int(told.split("RssAnon:")[1].split()[0]) * 1024


def alone(folder: Path, memory: int) -> None:
    """Prints the most memory of a run, above that of a process that does nothing."""
    jax.block_until_ready(jax.numpy.ones(8) + 1)
    before, most, done = own_memory(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            most[0] = max(most[0], own_memory())

    thread = threading.Thread(target=watch)
    thread.start()
    train(folder, "streamed", epochs=1, window_bytes=memory // 16)
    done.set()
    thread.join()
    print((most[0] - before) // 10**6, before // 10**6)


def compare(folder: Path, rows: int, rounds: int) -> None:
    """Prints a table of the two ways."""
    prepare(folder, rows)
    seconds: dict[str, list[tuple[float, float]]] = {"replicated": [], "streamed": []}
    scores = {}
    for number in range(rounds + 1):
        for name, spent in seconds.items():
            result = train(folder, name, epochs=4, window_bytes=2**25)
            timing = result["timing"]
            if number:  # the first compiles
                spent.append((timing["run_seconds"], timing["load_seconds"]))
            scores[name] = result["val"]["accuracy"]
    print("| | rows a second | (lowest to highest) | s to load | accuracy |")
    print("|---|---|---|---|---|")
    for name, spent in seconds.items():
        rates = 4 * rows / np.array(spent)[:, 0]
        load = np.median(np.array(spent)[:, 1])
        told = f"{np.median(rates):,.0f} | {rates.min():,.0f} to {rates.max():,.0f}"
        print(f"| {name} | {told} | {load:.1f} | {scores[name]:.4f} |", flush=True)
    pairs = zip(seconds["streamed"], seconds["replicated"], strict=True)
    ratio = np.median([one[0] / other[0] for one, other in pairs])
    print(
        f"streamed takes {ratio:.2f} times as long (median of rounds; the mark is 1.3)"
    )


def main() -> None:
    """Prints a table and a line, or measures one process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--memory", type=int, default=400, help="in MB; 0: not measured"
    )
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    cli.cache_compilations()
    if options.only:
        alone(options.only, options.memory * 10**6)
        return
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, load {load}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compare(folder / "small", options.rows, options.rounds)
        if options.memory:
            size = 4 * options.memory * 10**6
            prepare(folder / "large", size // (2 * DIM))
            command = [sys.executable, __file__, "--memory", str(options.memory)]
            command += ["--only", str(folder / "large")]
            clock = time.perf_counter()
            told = subprocess.run(command, check=True, capture_output=True, text=True)
            most, before = told.stdout.split()[-2:]
            spent = time.perf_counter() - clock
            print(
                f"a file of {size / 1e6:,.0f} MB: {most} MB at most, of "
                f"{options.memory} MB allowed (and {before} MB at the start); "
                f"{spent:.0f} s with the pass at the start"
            )


if __name__ == "__main__":
    main()
