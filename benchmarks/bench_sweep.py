"""How near a sweep of linear heads comes to the machine's matrix-product peak.

    python benchmarks/bench_sweep.py [--torch] [--rounds=7]
    python benchmarks/bench_sweep.py --torch --heads 64 --rounds=3 \
        --shape=1280000x1024x1000:bfloat16 --batch-size=4096 --steps=100

The second line is for an accelerator: ImageNet's number of rows and classes, held as
bfloat16. The peak and every program are timed in turn, round by round, in one process;
what is quoted is the median over rounds of each ratio. Without `--shape` the embeddings
are banking77's (10,003 x 384, 77 classes), `banking77/train.npz` in the folder that
FLAXHEAD_DATA names (default: data); without them, random numbers of the same shape,
which take the same time. "Products alone" is what the two products of a step take
without anything between them. `--torch` is a loop over as many `nn.Linear`, eager and
on the same device, its rows there too; it needs the extra `bench`.

The peak of a share is that of float32 products in the precision of training, by JAX's
default (on a GPU that may be TF32, on a TPU bfloat16); beside it are the peak of
bfloat16 products with float32 sums, and what copying an array moves, there and back.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxhead import HeadConfig, OptimizerConfig, build, parallel
from flaxhead.base import Batch
from flaxhead.config import Config

DATA = Path(os.environ.get("FLAXHEAD_DATA", "data"))


class Work(NamedTuple):
    """What a sweep trains on: rows, `[rows, dim]` and `[rows]`, and how."""

    x: np.ndarray
    y: np.ndarray
    classes: int
    batch: int
    steps: int

    def flops(self, candidates: int) -> float:
        """Of the products forwards and to the kernels; embeddings have no gradient."""
        kernels = self.x.shape[1] * self.classes * candidates
        return 2 * 2.0 * self.batch * kernels * self.steps


def imagine(shape: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns random embeddings and class numbers of a shape."""
    found = re.fullmatch(r"(\d+)x(\d+)x(\d+)(?::(float32|float16|bfloat16))?", shape)
    if found is None:
        raise SystemExit(f"--shape={shape}: expected ROWSxDIMxCLASSES[:TYPE]")
    rows, dim, classes = (int(text) for text in found.groups()[:3])
    rng = np.random.default_rng(0)
    x = np.empty((rows, dim), jnp.dtype(found.group(4) or "float32"))
    for start in range(0, rows, 65_536):
        part = x[start : start + 65_536]
        part[:] = rng.standard_normal(part.shape, np.float32)
    labels = rng.integers(0, classes, rows).astype(np.int32)
    labels[-1] = classes - 1
    return x, labels


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


def peak_program(kind: str = "float32") -> tuple[Callable[[], object], float]:
    """A matrix product that runs at the machine's peak, and its FLOPs."""
    size, repeats = (1024, 60) if jax.default_backend() == "cpu" else (8192, 60)
    left = jnp.ones((size, size), kind)

    @jax.jit
    def run(left, right):
        def product(_, x):
            found = jnp.matmul(left, x, preferred_element_type=jnp.float32)
            return (found * (1 / size)).astype(kind)

        return jax.lax.fori_loop(0, repeats, product, right)

    return lambda: jax.block_until_ready(run(left, left)), 2.0 * size**3 * repeats


def copy_program() -> tuple[Callable[[], object], float]:
    """Adds 1 to a large array again and again; and the bytes that are moved."""
    size, repeats = (2**25, 10) if jax.default_backend() == "cpu" else (2**29, 10)
    array = jnp.zeros(size)

    @jax.jit
    def run(array):
        # A loop that the compiler can't fuse: each time the whole array moves.
        step = lambda _, x: jax.lax.optimization_barrier(x + 1)  # noqa: E731
        return jax.lax.fori_loop(0, repeats, step, array)

    return lambda: jax.block_until_ready(run(array)), 2.0 * 4 * size * repeats


def sweep_program(work: Work, candidates: int) -> Callable[[], object]:
    """The sweep as `train.py` compiles it."""
    x, y, classes, batch, steps = work
    rates = tuple(np.logspace(-4, -1, candidates).tolist())
    config = Config(
        heads=(HeadConfig("linear"),), optimizer=OptimizerConfig(learning_rate=rates)
    )
    head = config.heads[0]
    grid = build.grid(config, head, batch)
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
        batch_size=batch,
        steps=steps,
        patience=0,
    )
    program = parallel.compile_sweep(problem, devices=1)

    def run() -> object:
        return jax.block_until_ready(program.train(program.start(), 0, steps))

    print(f"{candidates} heads: compiled in {program.compile_seconds:.1f} s")
    return run


def products_program(work: Work, candidates: int) -> Callable[[], object]:
    """The two matrix products of every step, and nothing else."""
    x, _, classes, batch, steps = work
    rows = jnp.asarray(x[:batch], jnp.float32)
    kernels = jnp.zeros((x.shape[1], candidates * classes))

    @jax.jit
    def run(rows, kernels):
        def step(_, kernels):
            columns = jax.lax.optimization_barrier(rows.T)
            return columns @ (rows @ kernels)

        return jax.lax.fori_loop(0, steps, step, kernels)

    return lambda: jax.block_until_ready(run(rows, kernels))


def torch_program(work: Work, candidates: int) -> Callable[[], object]:
    """PyTorch eager, all heads in one loop over shared batches, as is usual."""
    import torch

    x, y, classes, size, steps = work
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")  # TF32, as JAX's default.
    if x.dtype == jnp.bfloat16:
        inputs = torch.from_numpy(x.view(np.int16)).view(torch.bfloat16).to(device)
    else:
        inputs = torch.from_numpy(x).to(device)
    labels = torch.from_numpy(y).long().to(device)
    rates = np.logspace(-4, -1, candidates).tolist()
    epochs = -(-steps * size // len(x))

    def run() -> object:
        heads = [torch.nn.Linear(x.shape[1], classes, device=device) for _ in rates]
        groups = [
            {"params": head.parameters(), "lr": rate}
            for head, rate in zip(heads, rates, strict=True)
        ]
        optimizer = torch.optim.Adam(groups)
        loss = torch.nn.CrossEntropyLoss()
        order = torch.cat(
            [torch.randperm(len(x), device=device) for _ in range(epochs)]
        )
        for step in range(steps):
            index = order[step * size : (step + 1) * size]
            batch, target = inputs[index].float(), labels[index]
            optimizer.zero_grad()
            torch.stack([loss(head(batch), target) for head in heads]).sum().backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return heads

    return run


def main() -> None:
    """Prints a line a program: share of the peak, and milliseconds a step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--heads", type=int, nargs="+", default=[1, 32, 52])
    parser.add_argument("--shape", help="ROWSxDIMxCLASSES[:TYPE] of random rows")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=0, help="default: ten epochs")
    options = parser.parse_args()
    x, y = imagine(options.shape) if options.shape else load()
    batch = min(options.batch_size, len(x))
    steps = options.steps or 10 * -(-len(x) // batch)
    work = Work(x, y, int(y.max()) + 1, batch, steps)
    programs = {(n, ""): sweep_program(work, n) for n in options.heads}
    for n in options.heads:
        programs[n, ", products alone"] = products_program(work, n)
        if options.torch and n > 1:
            programs[n, ", PyTorch"] = torch_program(work, n)
    peaks = {
        "float32 products": peak_program(),
        "bfloat16 products": peak_program("bfloat16"),
        "copies": copy_program(),
    }
    for run in [*programs.values(), *(run for run, _ in peaks.values())]:
        run()
    tops: dict[str, list[float]] = {name: [] for name in peaks}
    rates: dict[tuple[int, str], list[float]] = {name: [] for name in programs}
    shares: dict[tuple[int, str], list[float]] = {name: [] for name in programs}
    for _ in range(options.rounds):
        for name, run in programs.items():
            peak, flops = peaks["float32 products"]
            top = flops / _seconds(peak)
            rates[name].append(work.flops(name[0]) / _seconds(run))
            shares[name].append(rates[name][-1] / top)
            tops["float32 products"].append(top)
        for name in ("bfloat16 products", "copies"):
            peak, count = peaks[name]
            tops[name].append(count / _seconds(peak))
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    print(f"{len(x)} x {x.shape[1]} {x.dtype}, {work.classes} classes, batch {batch}")
    for name, top in tops.items():
        unit = "GB/s" if name == "copies" else "GFLOP/s"
        print(f"peak of {name}: {np.median(top) / 1e9:.0f} {unit}")
    for (n, what), rate in rates.items():
        share, step = shares[n, what], work.flops(n) / np.median(rate) / steps
        print(
            f"{n} heads{what}: {np.median(share):.1%} of the peak "
            f"({min(share):.1%} to {max(share):.1%}), {step * 1e3:.3f} ms a step"
        )
        if not what and n > 1 and (1, "") in rates:
            ratio = np.median(np.array(rates[1, ""]) / np.array(rate))
            print(f"{n} heads cost {ratio:.2f} x {n} times one head")
        if what == ", PyTorch":
            ratio = np.median(np.array(rates[n, ""]) / np.array(rate))
            print(f"{n} heads are {ratio:.2f} x as fast as PyTorch eager")


def _any(array: Any) -> Any:
    return array


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
