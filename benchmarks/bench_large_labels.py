"""Softmax over very many classes: in tiles beside all logits at once.

    python benchmarks/bench_large_labels.py memory [--classes 262144]
    python benchmarks/bench_large_labels.py time [--classes 262144] [--rounds 3]
    python benchmarks/bench_large_labels.py million [--classes 1000000] [--steps 3]
    python benchmarks/bench_large_labels.py topology [--topology v5e:8x8]

`memory` compiles the loss and its gradient for features, kernel, bias or scale, and
prints what the compiled program holds beside its arguments and results; nothing is run.
`time` runs both in turn, and prints medians; the dense one needs some 6 GB. `million`
trains a head by SGD with momentum on one batch, and prints what the process held at its
peak. `topology` compiles a step of Adam, its classes split over TPUs that need not be
here (extra `plan`), and prints what each of them holds; nothing is run. Rows and
features are made up.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxhead import parallel, plan
from flaxhead.base import Array, Batch
from flaxhead.heads import linear
from flaxhead.heads.normalize import length, unit
from flaxhead.large import (
    TILE,
    LastLayer,
    last_layer,
    tiled_cross_entropy,
    tiled_supervised,
    tiled_top_k,
)
from flaxhead.losses import softmax_cross_entropy
from flaxhead.optim import optimizer
from flaxhead.step import learner


def dense(layer: LastLayer, x: Array, labels: Array) -> Array:
    """Returns the mean loss by all logits."""
    if layer.bias is not None:
        logits = x @ layer.kernel + layer.bias
    else:
        scale: Any = layer.scale
        logits = unit(x) @ layer.kernel * (scale / length(layer.kernel, axis=0))
    return jnp.mean(softmax_cross_entropy(logits, labels))


def tiled(layer: LastLayer, x: Array, labels: Array, *, tile: int) -> Array:
    """Returns the mean loss by tiles."""
    return jnp.mean(tiled_cross_entropy(layer, x, labels, tile=tile))


def shapes(kind: str, options: argparse.Namespace) -> tuple[LastLayer, Any, Any]:
    """Returns the arguments of both, as shapes."""
    kernel: Any = jax.ShapeDtypeStruct((options.dim, options.classes), jnp.float32)
    bias: Any = jax.ShapeDtypeStruct((options.classes,), jnp.float32)
    scale: Any = jax.ShapeDtypeStruct((), jnp.float32)
    layer = (
        LastLayer(kernel, bias) if kind == "linear" else LastLayer(kernel, None, scale)
    )
    x = jax.ShapeDtypeStruct((options.rows, options.dim), jnp.float32)
    return layer, x, jax.ShapeDtypeStruct((options.rows,), jnp.int32)


def compiled(function: Callable[..., Array], arguments: Any) -> Any:
    """Compiles a loss and its gradient."""
    gradients = jax.value_and_grad(function, argnums=(0, 1))
    return jax.jit(gradients).lower(*arguments).compile()


def memory(options: argparse.Namespace) -> None:
    """Prints a row a head and tile."""
    print("| head | tile | temporary memory, MB | share of the dense loss's |")
    print("|---|---|---|---|")
    for kind in ("linear", "cosine"):
        arguments = shapes(kind, options)
        whole = compiled(dense, arguments).memory_analysis().temp_size_in_bytes
        print(f"| {kind} | dense | {whole / 1e6:.0f} | |")
        for tile in (TILE // 2, TILE, 2 * TILE):
            program = compiled(partial(tiled, tile=tile), arguments)
            held = program.memory_analysis().temp_size_in_bytes
            print(
                f"| {kind} | {tile} | {held / 1e6:.0f} | {held / whole:.2%} |",
                flush=True,
            )


def timing(options: argparse.Namespace) -> None:
    """Prints medians of both, run in turn."""
    arguments = shapes("linear", options)
    programs = {
        "dense": compiled(dense, arguments),
        "tiled": compiled(partial(tiled, tile=TILE), arguments),
    }
    draws = np.random.default_rng(0)
    x = draws.normal(size=arguments[1].shape).astype(np.float32)
    labels = draws.integers(0, options.classes, options.rows).astype(np.int32)
    kernel = draws.normal(size=arguments[0].kernel.shape, scale=0.05)
    layer = LastLayer(jnp.asarray(kernel, jnp.float32), jnp.zeros(options.classes))
    given = (layer, jnp.asarray(x), jnp.asarray(labels))
    del kernel
    wall: dict[str, list[float]] = {name: [] for name in programs}
    cpu: dict[str, list[float]] = {name: [] for name in programs}
    values = {}
    for _ in range(options.rounds):
        for name, program in programs.items():
            began, spent = time.perf_counter(), time.process_time()
            value, slopes = jax.block_until_ready(program(*given))
            wall[name].append(time.perf_counter() - began)
            cpu[name].append(time.process_time() - spent)
            values[name] = float(value)
            del slopes
    print("| loss | value | seconds | CPU seconds |")
    print("|---|---|---|---|")
    for name in programs:
        clock, work = np.median(wall[name]), np.median(cpu[name])
        print(f"| {name} | {values[name]:.5f} | {clock:.2f} | {work:.2f} |")
    for what, spent in (("seconds", wall), ("CPU seconds", cpu)):
        ratio = np.median(np.divide(spent["tiled"], spent["dense"]))
        print(f"tiled / dense, {what}: {ratio:.2f} (median of the rounds' ratios)")


def million(options: argparse.Namespace) -> None:
    """Prints the losses, and the process's peak."""

    @jax.jit
    def draw(key: Array) -> Batch:
        labels = jax.random.randint(key, (options.rows,), 0, options.classes)

        def row(label: Array, number: Array) -> Array:
            # The centre of a class comes of its number, and is stored nowhere.
            centre = jax.random.normal(jax.random.fold_in(key, label), (options.dim,))
            own = jax.random.fold_in(jax.random.fold_in(key, label), number)
            return unit(centre + 0.5 * jax.random.normal(own, (options.dim,)))

        index = jnp.arange(options.rows)
        return Batch(
            jax.vmap(row)(labels, index), labels, jnp.ones(options.rows), index
        )

    head = linear(options.classes)
    tx = optimizer("sgd", learning_rate=50.0, steps=options.steps, schedule="constant")
    learn = learner(head, tiled_supervised(tiled_cross_entropy), tx)
    batch = draw(jax.random.key(0))
    state = jax.jit(learn.init)(jax.random.key(1), batch)
    step = jax.jit(learn.step, donate_argnums=0).lower(state, batch).compile()
    for number in range(options.steps):
        began = time.perf_counter()
        state, info = step(state, batch)
        loss = float(info.loss)
        print(f"step {number}: loss {loss:.4f}, {time.perf_counter() - began:.1f} s")
    _, first = jax.jit(lambda params, x: tiled_top_k(last_layer(params), x, 1))(
        state.params, batch.x
    )
    right = float(jnp.mean(first[:, 0] == batch.labels))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"accuracy on these rows {right:.4f}; peak of the process {peak / 1e9:.2f} GB"
    )


def topology(options: argparse.Namespace) -> None:
    """Prints what a device of a slice holds."""
    devices = plan.topology(options.topology)
    mesh = Mesh(np.array(devices), (parallel.CLASSES,))
    loss = partial(tiled_cross_entropy, axis=parallel.CLASSES, classes=options.classes)
    tx = optimizer("adam", learning_rate=0.1, steps=10, schedule="constant")
    learn = learner(linear(options.classes), tiled_supervised(loss), tx)
    learn = parallel.split_classes(learn, devices=devices)

    def shape(leaf: Any, spec: Any) -> Any:
        place = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    def everywhere(leaf: Any) -> Any:
        return shape(leaf, PartitionSpec())

    rows = jax.ShapeDtypeStruct((options.rows,), jnp.int32)
    x = jax.ShapeDtypeStruct((options.rows, options.dim), jnp.float32)
    weights = jax.ShapeDtypeStruct((options.rows,), jnp.float32)
    shapes: Any = Batch(*map(everywhere, (x, rows, weights, rows)))
    key = everywhere(jax.eval_shape(lambda: jax.random.key(0)))
    state = jax.eval_shape(learn.init, key, shapes)
    specs = parallel._class_specs(state)  # pyright: ignore[reportPrivateUsage]
    state = jax.tree.map(shape, state, specs)
    step = jax.jit(learn.step, donate_argnums=0).lower(state, shapes).compile()
    held: Any = step.memory_analysis()
    kept, more = held.argument_size_in_bytes, held.temp_size_in_bytes
    print(
        f"{options.topology}, {len(devices)} x {devices[0].device_kind}: a device "
        f"keeps {kept / 1e9:.2f} GB, and {more / 1e9:.2f} GB more in a step"
    )


PARTS = {"memory": memory, "time": timing, "million": million, "topology": topology}


def main() -> None:
    """Runs one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--classes", type=int, default=0)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--topology", default="v5e:8x8")
    options = parser.parse_args()
    classes = {"million": 1_000_000, "topology": 10_000_000}
    options.classes = options.classes or classes.get(options.part, 262_144)
    rows = {"million": 256, "topology": 1024}
    options.rows = options.rows or rows.get(options.part, 2048)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    print(f"{options.classes:,} classes, {options.rows:,} rows, {options.dim} features")
    PARTS[options.part](options)


if __name__ == "__main__":
    main()
