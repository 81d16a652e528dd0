"""Training on rows that stay in their file, beside rows that the device holds.

    python benchmarks/bench_stream.py [--rows 200000] [--rounds 7] [--memory 800]

Synthetic float16 rows of 384 features and a linear head of 77 classes, batches of 1024,
eight epochs. In each round, in turn:

* `replicated`: all rows on the device.
* `streamed`: read from the file in windows of 32 MB, which is in the page cache.

Seconds are those of training, evaluation and checkpoints; reading through a streamed
file at the start is told apart. The mark is a ratio of 1.3.

Then whole runs of one epoch, each in a process that the kernel refuses memory beyond
`--memory` MB (`prlimit --data`, which counts what libraries bring along, too): of a
file of four times as much, of half of that file's rows, and of half the window. The
mark is that none fails. Files are deleted; Linux only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import jax
import numpy as np

from flaxhead import cli, loop
from flaxhead.config import Config, DataConfig, TrainConfig

DIM, CLASSES, BATCH, BLOCK, EPOCHS = 384, 77, 1024, 8192, 8
STACK = 2**20  # of each of 60 threads: 8 MB, as usual, would count, empty as they are


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


def own_memory(name: str) -> int:
    """MB of this process now: `RssAnon` is what no file backs, `VmData` is limited."""
    told = Path("/proc/self/status").read_text()
    return int(told.split(f"{name}:")[1].split()[0]) // 1000


def alone(folder: Path, window_bytes: int) -> None:
    """Prints the memory of a process that does nothing yet, and the most of a run."""
    names = "RssAnon", "VmData"
    jax.block_until_ready(jax.numpy.ones(8) + 1)
    before = most = [own_memory(name) for name in names]
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.01):
            now = [own_memory(name) for name in names]
            most = [max(pair) for pair in zip(most, now, strict=True)]

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        train(folder, "streamed", epochs=1, window_bytes=window_bytes)
    finally:
        done.set()
        thread.join()
    print(*before, *most)


def limited(folder: Path, memory: int) -> None:
    """Prints a table of runs under a limit of memory."""
    rows = 4 * memory * 10**6 // (2 * DIM)
    print("| file | window | MB at the start | most | limit | most that it counts |")
    print("|---|---|---|---|---|---|")
    for part, window_bytes in ((rows, memory), (rows // 2, memory), (rows, memory / 2)):
        window_bytes = int(window_bytes * 10**6 / 32)
        shutil.rmtree(folder, ignore_errors=True)
        prepare(folder, part)
        command = ["prlimit", f"--data={memory * 10**6}", f"--stack={STACK}"]
        command += [sys.executable, __file__, "--only", str(folder)]
        command += ["--window", str(window_bytes)]
        told = subprocess.run(command, check=True, capture_output=True, text=True)
        before, _, most, counted = told.stdout.split()[-4:]
        print(
            f"| {2 * DIM * part / 1e6:,.0f} MB | {window_bytes / 1e6:.1f} MB "
            f"| {before} | {most} | {memory} | {counted} |",
            flush=True,
        )


def compare(folder: Path, rows: int, rounds: int) -> None:
    """Prints a table of the two ways."""
    prepare(folder, rows)
    seconds: dict[str, list[tuple[float, float]]] = {"replicated": [], "streamed": []}
    scores = {}
    for number in range(rounds + 1):
        for name, spent in seconds.items():
            result = train(folder, name, epochs=EPOCHS, window_bytes=2**25)
            timing = result["timing"]
            if number:  # the first compiles
                spent.append((timing["run_seconds"], timing["load_seconds"]))
            scores[name] = result["val"]["accuracy"]
    print("| | rows a second | (lowest to highest) | s to load | accuracy |")
    print("|---|---|---|---|---|")
    for name, spent in seconds.items():
        rates = EPOCHS * rows / np.array(spent)[:, 0]
        load = np.median(np.array(spent)[:, 1])
        told = f"{np.median(rates):,.0f} | {rates.min():,.0f} to {rates.max():,.0f}"
        print(f"| {name} | {told} | {load:.1f} | {scores[name]:.4f} |", flush=True)
    pairs = zip(seconds["streamed"], seconds["replicated"], strict=True)
    ratio = np.median([one[0] / other[0] for one, other in pairs])
    print(
        f"streamed takes {ratio:.2f} times as long (median of rounds; the mark is 1.3)"
    )


def main() -> None:
    """Prints two tables and a line, or measures one process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=7, help="0: not measured")
    parser.add_argument(
        "--memory", type=int, default=800, help="in MB; 0: not measured"
    )
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--window", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    cli.cache_compilations()
    if options.only:
        alone(options.only, options.window)
        return
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, load {load}")
    with tempfile.TemporaryDirectory() as name:
        if options.rounds:
            compare(Path(name) / "small", options.rows, options.rounds)
        if options.memory:
            limited(Path(name) / "large", options.memory)


if __name__ == "__main__":
    main()
