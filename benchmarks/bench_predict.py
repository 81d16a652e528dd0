"""Bulk prediction from disk to disk, beside what it is made of and a NumPy loop.

    python benchmarks/bench_predict.py [--rows 1000000] [--rounds 5]

Synthetic float16 rows of 384 features and a linear head of 77 classes, whose float32
probabilities go to an npy file. In each round, in turn:

* `disk`: the file is read, in blocks into one buffer, as many bytes as the scores have
  are written, and the disk is waited for; nothing else.
* `products`: the matrix products alone, of as many blocks as there are, which are
  float32 and on the device already.
* `flaxhead`: `flaxhead.predict_files`, compiling and all, with the scores on the disk.
* `NumPy`: a loop over blocks of a memory map: float32, product, softmax, and into a
  memory map that is flushed at the end.

Then `flaxhead` once more into a CSV, without the columns of all classes. Peak memory is
of a process of its own for each. Files are in a temporary folder, and are deleted.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flaxhead as fh
from flaxhead import bundle

DIM, CLASSES, BLOCK = 384, 77, 4096


def prepare(folder: Path, rows: int) -> None:
    """Writes the rows and the head."""
    draw = np.random.default_rng(0)
    x = np.lib.format.open_memmap(
        folder / "new.npy", mode="w+", dtype=np.float16, shape=(rows, DIM)
    )
    for begin in range(0, rows, BLOCK):
        part = x[begin : begin + BLOCK]
        part[:] = draw.standard_normal(part.shape, np.float32)
    config = fh.HeadConfig("linear")
    head = bundle.Bundle(
        config=config,
        params={
            "output": {
                "kernel": draw.standard_normal((DIM, CLASSES), np.float32) / 20,
                "bias": np.zeros(CLASSES, np.float32),
            }
        },
        statistics=(np.zeros(DIM, np.float32), np.ones(DIM, np.float32)),
        class_names=tuple(f"class {number}" for number in range(CLASSES)),
        task="multiclass",
        output="softmax",
        spec=bundle.feature_spec(x[:BLOCK], config=config, backbone=""),
        data=fh.DataConfig(),
        metrics={},
    )
    bundle.save(folder / "head", head)


def disk(folder: Path) -> None:
    """What is read and written, and nothing else."""
    block, scores = bytearray(BLOCK * DIM * 2), bytes(BLOCK * CLASSES * 4)
    with (
        (folder / "new.npy").open("rb", buffering=0) as file,
        (folder / "plain").open("wb", buffering=0) as into,
    ):
        while file.readinto(block):
            into.write(scores)
        os.fsync(into.fileno())


def products(folder: Path) -> Callable[[], None]:
    """The matrix products alone, compiled."""
    rows = np.load(folder / "new.npy", mmap_mode="r").shape[0]
    kernel = fh.load(folder / "head").params["output"]["kernel"]
    x = jnp.ones((BLOCK, DIM))
    product = jax.jit(lambda x, kernel: x @ kernel).lower(x, kernel).compile()

    def run() -> None:
        for _ in range(0, rows, BLOCK):
            jax.block_until_ready(product(x, kernel))

    return run


def flaxhead(folder: Path, name: str = "scores.npy") -> None:
    """From disk to disk."""
    head = fh.load(folder / "head")
    fh.predict_files(head, folder / "new.npy", folder / name, overwrite=True)


def loop(folder: Path) -> None:
    """The same in NumPy, block by block."""
    layer = fh.load(folder / "head").params["output"]
    kernel, bias = (np.asarray(layer[name]) for name in ("kernel", "bias"))
    x = np.load(folder / "new.npy", mmap_mode="r")
    scores = np.lib.format.open_memmap(
        folder / "loop.npy", mode="w+", dtype=np.float32, shape=(len(x), CLASSES)
    )
    for begin in range(0, len(x), BLOCK):
        logits = x[begin : begin + BLOCK].astype(np.float32) @ kernel + bias
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        scores[begin : begin + BLOCK] = shares
    scores.flush()


def ways(folder: Path) -> dict[str, Callable[[], Any]]:
    """What is timed."""
    return {
        "disk": lambda: disk(folder),
        "products": products(folder),
        "flaxhead": lambda: flaxhead(folder),
        "NumPy": lambda: loop(folder),
        "flaxhead, CSV": lambda: flaxhead(folder, "scores.csv"),
    }


def peak() -> int:
    """The most memory that this process had, in MB."""
    # Not by getrusage, which counts the process that it was forked from.
    told = Path("/proc/self/status").read_text()
    return int(told.split("VmHWM:")[1].split()[0]) // 1024


def alone(name: str, folder: Path) -> None:
    """Prints the peak memory of a process before and after one way, in MB."""
    run = ways(folder)[name]
    before = peak()
    run()
    print(before, peak())


def compare(folder: Path, rows: int, rounds: int) -> None:
    """Prints a table."""
    prepare(folder, rows)
    timed = ways(folder)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in timed}
    for number in range(rounds):
        for name, run in timed.items():
            if name == "flaxhead, CSV" and number:
                continue
            clock, used = time.perf_counter(), time.process_time()
            run()
            spent = time.perf_counter() - clock, time.process_time() - used
            seconds[name].append(spent)
    off = np.load(folder / "scores.npy", mmap_mode="r")[:BLOCK]
    off = np.abs(off - np.load(folder / "loop.npy", mmap_mode="r")[:BLOCK]).max()
    print("| | rows a second | (lowest to highest) | CPU s | peak MB (at its start) |")
    print("|---|---|---|---|---|")
    for name, spent in seconds.items():
        rates = rows / np.array(spent)[:, 0]
        cpu = np.median(np.array(spent)[:, 1])
        command = [sys.executable, __file__, "--only", name, "--folder", str(folder)]
        told = subprocess.run(command, check=True, capture_output=True, text=True)
        start, most = told.stdout.split()[-2:]
        told = f"{np.median(rates):,.0f} | {rates.min():,.0f} to {rates.max():,.0f}"
        print(f"| {name} | {told} | {cpu:.2f} | {most} ({start}) |", flush=True)
    print(f"probabilities differ by {off:.1g} at most")


def main() -> None:
    """Prints a table, or measures one process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        alone(options.only, options.folder)
        return
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, load {load}")
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), options.rows, options.rounds)


if __name__ == "__main__":
    main()
