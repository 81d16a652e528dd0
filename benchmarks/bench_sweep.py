"""How near a sweep of linear heads comes to the machine's matrix-product peak.

    python benchmarks/bench_sweep.py [--torch] [--rounds=7]

The peak and every program are timed in turn, round by round, in one process; what is
quoted is the median over rounds of each ratio. The embeddings are banking77's
(10,003 x 384, 77 classes), `banking77/train.npz` in the folder that FLAXHEAD_DATA names
(default: data); without them, random numbers of the same shape, which take the same
time. "Products alone" is what the two products of a step take without anything between
them. Needs the extra `bench` for --torch.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxhead import HeadConfig, OptimizerConfig, build, parallel
from flaxhead.base import Batch
from flaxhead.config import Config

BATCH, EPOCHS = 256, 10
DATA = Path(os.environ.get("FLAXHEAD_DATA", "data"))


def load() -> tuple[np.ndarray, np.ndarray]:
    """Returns embeddings and class numbers."""
    path = DATA / "banking77" / "train.npz"
    if path.exists():
        file = np.load(path)
        _, labels = np.unique(file["labels"], return_inverse=True)
        return file["embeddings"].astype(np.float32), labels.astype(np.int32)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10_003, 384)).astype(np.float32)
    return x, rng.integers(0, 77, 10_003).astype(np.int32)


def peak_program() -> tuple[Callable[[], object], float]:
    """A float32 matrix product that runs at the machine's peak, and its FLOPs."""
    size, repeats = (1024, 60) if jax.default_backend() == "cpu" else (8192, 60)
    left = jnp.ones((size, size))

    @jax.jit
    def run(left, right):
        product = lambda _, x: left @ x * (1 / size)  # noqa: E731
        return jax.lax.fori_loop(0, repeats, product, right)

    return lambda: jax.block_until_ready(run(left, left)), 2.0 * size**3 * repeats


def sweep_program(
    x: np.ndarray, y: np.ndarray, candidates: int
) -> tuple[Callable[[], object], float, int]:
    """The sweep as `train.py` compiles it: its run, its matrix FLOPs and its steps."""
    rates = tuple(np.logspace(-4, -1, candidates).tolist())
    config = Config(
        heads=(HeadConfig("linear"),), optimizer=OptimizerConfig(learning_rate=rates)
    )
    head, classes = config.heads[0], int(y.max()) + 1
    steps = EPOCHS * -(-len(x) // BATCH)
    grid = build.grid(config, head, BATCH)
    index = np.arange(len(x), dtype=np.int32)
    rows = Batch(*map(_any, (x, y, np.ones(len(x), np.float32), index)))

    def make_learner(hyperparameters, statistics, axis):
        return build.make_learner(
            config,
            head,
            task="multiclass",
            classes=classes,
            steps=steps,
            class_weights=None,
            hyperparameters=hyperparameters,
            statistics=statistics,
            axis=axis,
        )

    problem = parallel.Problem(
        make_learner=make_learner,
        make_head=lambda s: build.make_head(head, classes=classes, statistics=s),
        output="softmax",
        train=rows,
        val=jax.tree.map(lambda leaf: leaf[:512], rows),
        statistics=(),
        hyperparameters=build.swept(grid),
        seeds=np.zeros(candidates, np.uint32),
        order_seed=0,
        batch_size=BATCH,
        steps=steps,
        patience=0,
    )
    program = parallel.compile_sweep(problem, devices=1)

    def run() -> object:
        return jax.block_until_ready(program.train(program.start(), 0, steps))

    # Forward and weight gradient; embeddings have no gradient.
    flops = 2 * 2.0 * BATCH * x.shape[1] * classes * candidates * steps
    print(f"{candidates} heads: compiled in {program.compile_seconds:.1f} s")
    return run, flops, steps


def products_program(
    x: np.ndarray, y: np.ndarray, candidates: int
) -> tuple[Callable[[], object], float, int]:
    """The two matrix products of every step, and nothing else."""
    classes, steps = int(y.max()) + 1, EPOCHS * -(-len(x) // BATCH)
    rows = jnp.asarray(x[:BATCH])
    kernels = jnp.zeros((x.shape[1], candidates * classes))

    @jax.jit
    def run(rows, kernels):
        def step(_, kernels):
            columns = jax.lax.optimization_barrier(rows.T)
            return columns @ (rows @ kernels)

        return jax.lax.fori_loop(0, steps, step, kernels)

    flops = 2 * 2.0 * BATCH * x.shape[1] * classes * candidates * steps
    return lambda: jax.block_until_ready(run(rows, kernels)), flops, steps


def torch_program(
    x: np.ndarray, y: np.ndarray, candidates: int
) -> tuple[Callable[[], object], float, int]:
    """PyTorch eager, all heads in one loop over shared batches, as is usual."""
    import torch

    classes, steps = int(y.max()) + 1, EPOCHS * -(-len(x) // BATCH)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y).long()
    rates = np.logspace(-4, -1, candidates).tolist()

    def run() -> object:
        heads = [torch.nn.Linear(x.shape[1], classes) for _ in rates]
        groups = [
            {"params": head.parameters(), "lr": rate}
            for head, rate in zip(heads, rates, strict=True)
        ]
        optimizer = torch.optim.Adam(groups)
        loss = torch.nn.CrossEntropyLoss()
        order = torch.cat([torch.randperm(len(x)) for _ in range(EPOCHS + 1)])
        for step in range(steps):
            index = order[step * BATCH : (step + 1) * BATCH]
            batch, target = inputs[index], labels[index]
            optimizer.zero_grad()
            torch.stack([loss(head(batch), target) for head in heads]).sum().backward()
            optimizer.step()
        return heads

    flops = 2 * 2.0 * BATCH * x.shape[1] * classes * candidates * steps
    return run, flops, steps


def main() -> None:
    """Prints a line a program: share of the peak, and milliseconds a step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--heads", type=int, nargs="+", default=[1, 32, 52])
    options = parser.parse_args()
    x, y = load()
    programs = {f"{n} heads": sweep_program(x, y, n) for n in options.heads}
    for n in options.heads:
        programs[f"{n} heads, products alone"] = products_program(x, y, n)
    if options.torch:
        programs["32 heads, PyTorch"] = torch_program(x, y, 32)
    peak, peak_flops = peak_program()
    peak()
    for run, _, _ in programs.values():
        run()
    rates: dict[str, list[float]] = {name: [] for name in ["peak", *programs]}
    shares: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(options.rounds):
        for name, (run, flops, _) in programs.items():
            top = peak_flops / _seconds(peak)
            rate = flops / _seconds(run)
            rates["peak"].append(top)
            rates[name].append(rate)
            shares[name].append(rate / top)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    print(f"float32 peak {np.median(rates['peak']) / 1e9:.0f} GFLOP/s")
    for name, (_, flops, steps) in programs.items():
        step = flops / np.median(rates[name]) / steps
        print(
            f"{name}: {np.median(shares[name]):.1%} of the peak "
            f"({min(shares[name]):.1%} to {max(shares[name]):.1%}), "
            f"{step * 1e3:.3f} ms a step"
        )
    if "1 heads" in programs and "52 heads" in programs:
        ratios = np.array(rates["1 heads"]) / np.array(rates["52 heads"])
        print(f"52 heads cost {np.median(ratios):.2f} x 52 times one head")
    if options.torch:
        ratios = np.array(rates["32 heads"]) / np.array(rates["32 heads, PyTorch"])
        print(f"32 heads are {np.median(ratios):.2f} x as fast as PyTorch eager")


def _any(array: Any) -> Any:
    return array


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
