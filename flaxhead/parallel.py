"""The one program: steps under a loop, candidates under vmap, devices under pmap.

This is the only file that names devices. `compile_sweep` builds the program of one
sweep; what goes into it and comes out of it has a leading candidate axis on every leaf,
however many devices there are and whichever of the two axes is split over them.
"""

from __future__ import annotations

import glob
import math
import os
import platform
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxhead import processes
from flaxhead.base import (
    Array,
    Batch,
    Head,
    Hyperparameters,
    Info,
    Learner,
    Params,
    PyTree,
    State,
)
from flaxhead.data.stored import Stored, fetch
from flaxhead.data.stream import chunks
from flaxhead.metrics import Output, ScoreSums, score_sums
from flaxhead.objectives.rows import labelled
from flaxhead.sampling import (
    Windows,
    batch_rows,
    dealt_block,
    dealt_rows,
    labelled_first,
    mixed_rows,
)

AXIS = "devices"
CLASSES = "classes"
# The pass cuts each short sum of a softmax into a tree of windows, for digits that the
# sum over a batch doesn't need: 0.8 instead of 0.5 ms for 32 heads on a CPU.
_TRAIN_OPTIONS = {"xla_disable_hlo_passes": "tree_reduction_rewriter"}
_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
_LOSS_SLOTS = 256
_STATE = 2**31
_LOGITS_AT_ONCE = 2**23
_CHUNK_BYTES = 2**26  # of streamed rows on the devices, and as many on their way there


class Progress(NamedTuple):
    """A sweep under way, arrays only, `[candidates]` leading: what is checkpointed.

    Attributes:
      state: the learners' states.
      losses: `float32 [candidates, slots]`, minimised values summed over the steps of
        each slot (`loss_slots` says which).
      diverged_at: `int32 [candidates]`, first step of a loss that is not finite; -1.
      best_params: parameters at the best evaluation so far.
      best_score: `float32 [candidates]`, its score, larger is better; -inf before.
      best_step: `int32 [candidates]`, its step; 0 before.
      stale: `int32 [candidates]`, evaluations since.
    """

    state: State
    losses: Array
    diverged_at: Array
    best_params: Params
    best_score: Array
    best_step: Array
    stale: Array


class Problem(NamedTuple):
    """What one sweep trains on, in host memory.

    Attributes:
      make_learner: `(hyperparameters, statistics, axis) -> Learner`, called inside the
        traced program.
      make_head: `(statistics) -> Head`, the head as it is evaluated.
      output: `softmax` or `sigmoid`.
      train: all training rows.
      val: all validation rows.
      statistics: arrays fitted on the training rows that the head carries, or `()`.
      hyperparameters: dict of `float32 [candidates]`.
      seeds: `uint32 [candidates]`.
      order_seed: seed of the order of the rows, which all candidates share.
      batch_size: rows a step over all devices.
      steps: steps in all.
      patience: evaluations without a better one that stop a candidate; 0: never.
      unlabelled: rows without a label that come with these in each step; if not 0,
        `batch_size` counts those with one.
      balanced: how many classes there are, if a step sees as many labelled rows of
        each; 0: all rows come equally often.
      sharded: whether each device holds a part of the training rows, and draws its
        share of each batch from them.
      windows: how the training rows are cut, if they are streamed; None: the devices
        hold them.
    """

    make_learner: Callable[[Hyperparameters, PyTree, str | None], Learner]
    make_head: Callable[[PyTree], Head]
    output: Output
    train: Batch
    val: Batch
    statistics: PyTree
    hyperparameters: dict[str, np.ndarray]
    seeds: np.ndarray
    order_seed: int
    batch_size: int
    steps: int
    patience: int
    unlabelled: int = 0
    balanced: int = 0
    sharded: bool = False
    windows: Windows | None = None


class Program(NamedTuple):
    """A compiled sweep. Progress stays on the devices between calls.

    Attributes:
      start: `() -> progress`.
      train: `(progress, first, steps) -> progress`: `steps` more steps after `first`
        ones, any number of them in one dispatch, but for what is streamed: a dispatch
        a chunk.
      until: `(first) -> step`, which the steps after `first` ones should not go beyond:
        programs that share streamed rows take turns there.
      evaluate: `(progress) -> (sums, logits)` on the host: `ScoreSums` with a leading
        candidate axis, and `[candidates, rows, classes]` logits if they were asked for.
      keep_best: `(progress, scores) -> progress`, scores `[candidates]`.
      to_host: progress, or part of it, as NumPy arrays; typed keys as their words.
      from_host: the reverse, on these devices.
      close: `()`, when no more steps are to come.
      compile_seconds: time spent on compiling.
    """

    start: Callable[[], Any]
    train: Callable[[Any, int, int], Any]
    until: Callable[[int], int]
    evaluate: Callable[[Any], tuple[ScoreSums, np.ndarray | None]]
    keep_best: Callable[[Any, np.ndarray], Any]
    to_host: Callable[[Any], Any]
    from_host: Callable[[Progress], Any]
    close: Callable[[], None]
    compile_seconds: float


def loss_slots(steps: int) -> np.ndarray:
    """Returns the slot of `Progress.losses` that each step adds to, `[steps]`.

    >>> loss_slots(3).tolist()
    [0, 1, 2]
    """
    slots = min(steps, _LOSS_SLOTS)
    return np.arange(steps) * slots // steps


def place_rows(problem: Problem, *, devices: int = 0, split: str = "batch") -> Any:
    """Puts training rows on the devices, once for all the sweeps that train on them.

    Args:
      problem: of one of the sweeps.
      devices: as for `compile_sweep`.
      split: as for `compile_sweep`.
    """
    return _place_rows(problem, _Placement(choose_devices(devices), split, 1))


def _place_rows(problem: Problem, place: _Placement) -> Any:
    if problem.windows is not None:
        return _Feed(problem, place)
    return (place.dealt if problem.sharded else place.everywhere)(problem.train)


class _Feed:
    """Streamed rows: some steps' of them on the devices, the next ones on their way."""

    def __init__(self, problem: Problem, place: _Placement):
        self._problem, self._place = problem, place
        self._chunk: Any = None
        self._first = self._end = 0
        self._coming: Iterator[Any] | None = None
        self._thread = ThreadPoolExecutor(1)
        self._next: Future[Any] | None = None

    def at(self, step: int) -> tuple[Any, int, int]:
        """The chunk that has a step, its first step, and the one after its last."""
        if not self._first <= step < self._end:
            if step != self._end or self._coming is None:
                self.close()
                self._coming = self._from(step)
                self._next = self._thread.submit(next, self._coming)
            assert self._next is not None
            self._chunk = None  # its memory is wanted
            self._chunk, self._first, self._end = self._next.result()
            self._next = self._thread.submit(next, self._coming, None)
        return self._chunk, self._first, self._end

    def _from(self, step: int) -> Iterator[tuple[Any, int, int]]:
        problem, size = self._problem, _batch_rows(self._problem)
        assert problem.windows is not None
        many = _chunk_steps(problem)
        read = chunks(
            problem.train,
            problem.windows,
            seed=problem.order_seed,
            size=many * size,
            first=step * size,
            last=problem.steps * size,
            mine=self._place.mine(size),
            rooms=2,  # the device may use them as they are, and has one at a time
        )
        for chunk in read:
            until = min(step + many, problem.steps)
            yield self._place.positions(chunk, many, size), step, until
            step = until

    def close(self) -> None:
        """Stops reading."""
        if self._next is not None:
            self._next.exception()  # is done by then
            self._thread.submit(self._coming.close).result()  # pyright: ignore
        self._coming = self._next = None


def _batch_rows(problem: Problem) -> int:
    """Rows a step over all devices."""
    rows = problem.train.labels.shape[0]
    return min(problem.batch_size, rows) + problem.unlabelled


def _chunk_steps(problem: Problem) -> int:
    """Steps whose rows are a chunk, which is no more than a window."""
    many = _chunk_rows(problem) // _batch_rows(problem)
    return max(1, min(problem.steps, many))


def _chunk_rows(problem: Problem) -> int:
    """How many rows at once are read from the disk for the devices."""
    rows, windows = _CHUNK_BYTES // _row_bytes(problem.train), problem.windows
    if windows is not None:
        rows = min(rows, windows.block * windows.blocks)
    return max(1, rows)


def _row_bytes(rows: Batch) -> int:
    return sum(
        math.prod(leaf.shape[1:]) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(rows)
    )


def compile_sweep(
    problem: Problem,
    *,
    devices: int = 0,
    split: str = "batch",
    with_logits: bool = False,
    rows: Any = None,
) -> Program:
    """Compiles a sweep for the devices of this machine, or of all processes.

    Args:
      problem: what to train.
      devices: how many local devices to use; 0: all.
      split: `batch` shares each batch out over devices (data parallel: sums and counts
        are added over them), `candidates` shares the candidates out (no communication).
      with_logits: whether `evaluate` returns the logits too, for metrics that rank.
      rows: what `place_rows` returned; None: place them.

    Raises:
      ValueError: more devices are asked for than there are.
    """
    place = _Placement(choose_devices(devices), split, len(problem.seeds))
    clock = time.perf_counter()
    made = _sweep(problem, place, with_logits, rows)
    compile_seconds = time.perf_counter() - clock
    train_rows, settings = made.train_rows, made.settings
    feed = train_rows[0] if isinstance(train_rows[0], _Feed) else None

    def run_train(progress: Progress, first: int, steps: int) -> Progress:
        end = first + steps
        while feed is not None:
            chunk, begin, until = feed.at(first)
            until = min(until, end)
            progress = made.train(
                progress,
                (chunk, train_rows[1]),
                settings,
                *map(np.int32, (first, until - first, begin)),
            )
            # The chunk after the next one will be where this one is.
            jax.block_until_ready(progress.diverged_at)
            if until == end:
                return progress
            first = until
        return made.train(
            progress, train_rows, settings, *map(np.int32, (first, steps, 0))
        )

    def run_evaluate(progress: Progress) -> tuple[ScoreSums, np.ndarray | None]:
        total, scored = None, []
        for count, rows in made.val_rows():
            sums, logits = made.evaluate(progress.state.params, train_rows[1], rows)
            sums = place.to_host(sums)
            total = sums if total is None else jax.tree.map(np.add, total, sums)
            if with_logits:
                # [(devices,) chunks, candidates, rows, classes] -> [candidates, ...]
                scored.append(place.logits_to_host(logits)[:, :count])
        assert total is not None
        return total, np.concatenate(scored, axis=1) if with_logits else None

    def run_keep(progress: Progress, scores: np.ndarray) -> Progress:
        return made.keep(progress, place.candidates(scores.astype(np.float32)))

    def from_host(progress: Progress) -> Progress:
        progress = place.candidates(progress)
        key = jax.random.wrap_key_data(progress.state.key)
        return progress._replace(state=progress.state._replace(key=key))

    return Program(
        start=lambda: made.start(made.one_row, settings),
        train=run_train,
        until=lambda first: problem.steps if feed is None else feed.at(first)[2],
        evaluate=run_evaluate,
        keep_best=run_keep,
        to_host=place.to_host,
        from_host=from_host,
        close=lambda: None if feed is None else feed.close(),
        compile_seconds=compile_seconds,
    )


class Sweep(NamedTuple):
    """A sweep's compiled programs, and what they are called with, placed.

    Attributes:
      start: `(one_row, settings) -> progress`.
      train: `(progress, train_rows, settings, first, steps, begin) -> progress`, where
        streamed rows are those from step `begin` on.
      evaluate: `(params, statistics, val_rows) -> (sums, logits)`.
      keep: `(progress, scores) -> progress`.
      one_row: a training row, for its shape, and the statistics of the head.
      train_rows: the training rows and the statistics of the head.
      val_rows: `() -> iterator of (rows, what they are)`, the validation rows in
        chunks: all at once, or piece by piece where they stay on the disk.
      settings: hyperparameters and seeds.
      progress: the shapes of progress.
    """

    start: Any
    train: Any
    evaluate: Any
    keep: Any
    one_row: Any
    train_rows: Any
    val_rows: Any
    settings: Any
    progress: Any


def plan_sweep(
    problem: Problem,
    devices: Sequence[Any],
    *,
    split: str = "batch",
    with_logits: bool = False,
) -> Sweep:
    """Compiles a sweep for devices that need not be here; nothing is placed or run.

    Args:
      problem: what would be trained.
      devices: of this machine, or of `jax.experimental.topologies`.
      split: as for `compile_sweep`.
      with_logits: as for `compile_sweep`.

    Returns:
      Programs to ask for their memory and cost, and the shapes that they take.
    """
    place = _Placement(list(devices), split, len(problem.seeds), abstract=True)
    return _sweep(problem, place, with_logits, None)


def _sweep(problem: Problem, place: _Placement, with_logits: bool, rows: Any) -> Sweep:
    lanes = len(place.chosen)
    axis = AXIS if lanes > 1 and not place.by_candidate else None
    shares = lanes if axis else 1
    rows = _place_rows(problem, place) if rows is None else rows
    statistics = place.everywhere(problem.statistics)
    train_rows = shapes_of_rows = (rows, statistics)
    if problem.windows is not None:
        steps, size = _chunk_steps(problem), _batch_rows(problem)
        chunk = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                (steps * size, *leaf.shape[1:]), leaf.dtype
            ),
            problem.train,
        )
        shapes_of_rows = place.positions(chunk, steps, size, shapes=True), statistics
    one_row = jax.tree.map(lambda leaf: np.asarray(leaf[:1]), problem.train)
    one_row = place.everywhere(one_row), statistics

    def cut(piece: Batch) -> Any:
        return place.shares(_in_chunks(problem, piece, shares, place.each))

    first_rows = cut(next(_pieces(problem))[1])

    held = None if _is_stored(problem.val) else first_rows

    def val_rows() -> Iterator[tuple[int, Any]]:
        if held is not None:
            yield problem.val.labels.shape[0], held
            return
        for count, piece in _pieces(problem):
            yield count, cut(piece)

    settings = place.candidates((problem.hyperparameters, problem.seeds))

    def start(rows: Any, settings: Any) -> Progress:
        return _start(problem, rows, settings, axis)

    def train(
        progress: Progress, rows: Any, settings: Any, first: Any, steps: Any, begin: Any
    ) -> Progress:
        return _train(
            problem, progress, rows, settings, first, steps, begin, axis, shares
        )

    def evaluate(params: Params, statistics: PyTree, chunks: Batch):
        return _evaluate(problem, params, statistics, chunks, axis, with_logits)

    def keep(progress: Progress, scores: Array) -> Progress:
        return _keep_best(progress, scores, problem.patience)

    start_program, shapes = place.compile(start, (one_row, settings))
    progress = shapes if place.abstract else start_program(one_row, settings)
    train_program, _ = place.compile(
        train,
        (progress, shapes_of_rows, settings, *[np.int32(0)] * 3),
        donate=(0,),
        options=_TRAIN_OPTIONS if place.chosen[0].platform == "cpu" else None,
    )
    evaluate_program, _ = place.compile(
        evaluate, (progress.state.params, train_rows[1], first_rows)
    )
    no_scores = place.candidates(np.zeros(len(problem.seeds), np.float32))
    keep_program, _ = place.compile(keep, (progress, no_scores), donate=(0,))
    return Sweep(
        start_program,
        train_program,
        evaluate_program,
        keep_program,
        one_row,
        shapes_of_rows if place.abstract else train_rows,
        val_rows,
        settings,
        shapes,
    )


class Shares:
    """Rows shared out over devices, and the programs that run on them.

    A program is a pure function of one device's share: what it adds up over rows it
    psums over `axis`. Where rows don't divide by the devices they are padded with
    zeros, so a padded row has weight 0. What is placed is opaque: with several devices
    every leaf has a leading device axis.

    With several processes every one of them makes the same calls in the same order, and
    places the rows of its own devices only.

    Attributes:
      axis: the device axis's name; None on one device.
      devices: how many there are.
      compile_seconds: time spent on compiling so far.
    """

    def __init__(self, devices: int | Sequence[Any] = 0, *, repeated: bool = False):
        """Of so many local devices (0: all); or of any, to compile for and not to run.

        With a sequence of devices nothing is placed: what is placed, and what `call`
        returns, are shapes. With several processes all their devices are used; if
        `repeated`, only the first one of each, for what can't be shared out: each then
        computes the same, and what the first process fetched counts.
        """
        self.abstract = not isinstance(devices, int)
        self.repeated = repeated and jax.process_count() > 1
        if not isinstance(devices, int):
            chosen = list(devices)
        elif repeated:
            chosen = jax.local_devices()[:1]
        else:
            chosen = choose_devices(devices)
        self._place = _Placement(chosen, "batch", 1, abstract=self.abstract)
        self._compiled: dict[Any, Any] = {}
        self.axis = AXIS if len(chosen) > 1 else None
        self.devices = len(chosen)
        self.compile_seconds = 0.0

    def rows(self, tree: PyTree) -> Any:
        """Shares out arrays whose first axis is rows; `Stored` ones are read for it."""
        if self.axis is None:
            return self._place.everywhere(jax.tree.map(_read, tree))

        lanes = self._place._local_lanes()

        def cut(leaf: Any) -> Any:
            each = -(-leaf.shape[0] // self.devices)
            if self.abstract:
                shape = (self.devices, each, *leaf.shape[1:])
                return jax.ShapeDtypeStruct(shape, leaf.dtype)
            host = leaf if isinstance(leaf, Stored) else np.asarray(leaf)
            mine = np.zeros((len(lanes), each, *host.shape[1:]), host.dtype)
            for place, lane in enumerate(lanes):
                part = host[lane * each : (lane + 1) * each]
                mine[place, : len(part)] = part
            return mine

        cut_up = jax.tree.map(cut, tree)
        return cut_up if self.abstract else self._place.put(cut_up)

    def everywhere(self, tree: PyTree) -> Any:
        """Puts the same on every device."""
        return self._place.everywhere(tree)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a function on every device's share, compiled once a shape.

        Args:
          function: pure, and the same object at every call.
          *arguments: what `rows`, `everywhere` or `call` returned; a NumPy integer is
            the same on every device.
        """
        leaves, structure = jax.tree.flatten(arguments)
        shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
        name = (function, structure, shapes)
        if name not in self._compiled:
            clock = time.perf_counter()
            self._compiled[name] = self._place.compile(function, arguments)
            self.compile_seconds += time.perf_counter() - clock
        program, shapes = self._compiled[name]
        if self.abstract:
            return shapes
        out = program(*arguments)
        if self._place.processes > 1:
            # Collectives of programs in flight together would meet in another order.
            jax.block_until_ready(out)
        return out

    def programs(self) -> list[tuple[str, Any]]:
        """What was compiled, in order, each with its function's name."""
        return [
            (name[0].__name__, program) for name, (program, _) in self._compiled.items()
        ]

    def first(self, tree: PyTree) -> PyTree:
        """Fetches what is the same on every device, as NumPy arrays."""
        return self._counting(self._place.to_host(tree))

    def whole(self, tree: PyTree, rows: int, *, axis: int = 0) -> PyTree:
        """Fetches arrays with an axis of rows, put together and cut to so many."""

        def fetch(leaf: Any) -> np.ndarray:
            host = self._place._whole(leaf)
            if self.axis is not None:
                host = np.concatenate(list(host), axis=axis)
            return host[(slice(None),) * axis + (slice(rows),)]

        return self._counting(jax.tree.map(fetch, tree))

    def _counting(self, tree: PyTree) -> PyTree:
        if not self.repeated:
            return tree
        from jax.experimental import multihost_utils

        return multihost_utils.broadcast_one_to_all(tree)


# Heads whose classes are split over devices (`flaxhead.large`). Their arrays are whole
# ones to the host, a part of which is on each device; the rest is on all of them.


def split_classes(learn: Learner, *, devices: int | Sequence[Any] = 0) -> Learner:
    """Splits a head's last layer, its gradient and its optimiser's state by class.

    All devices see the same batch, and each multiplies it with its own classes.

    Args:
      learn: of an objective that adds up over the device axis `CLASSES`, such as
        `flaxhead.large.tiled_supervised`; its optimiser goes entry by entry (SGD, Adam,
        AdamW, Lion). One that clips by a norm of all entries would be wrong, without
        a word: each device would take the norm of its own part.
      devices: how many local devices to use; 0: all. Or those to compile for.

    Returns:
      A learner whose state has the last axis of what is below `output` split, with
      columns added so that it divides: give the loss the number of `classes`, and
      `cut_classes` takes them off. Call both functions under `jax.jit`.

    Raises:
      ValueError: more devices are asked for than there are.

    >>> from functools import partial
    >>> import optax
    >>> from flaxhead import large
    >>> from flaxhead.heads import linear
    >>> from flaxhead.step import learner
    >>> loss = partial(large.tiled_cross_entropy, axis=CLASSES, classes=5)
    >>> objective = large.tiled_supervised(loss)
    >>> learn = split_classes(learner(linear(5), objective, optax.sgd(1.0)))
    >>> rows = jnp.arange(5)
    >>> batch = Batch(jnp.eye(5), rows, jnp.ones(5), rows)
    >>> state = jax.jit(learn.init)(jax.random.key(0), batch)
    >>> state, info = jax.jit(learn.step)(state, batch)
    >>> top = over_classes(
    ...     lambda params, x: large.tiled_top_k(
    ...         large.last_layer(params), x, 1, axis=CLASSES, classes=5
    ...     )[1]
    ... )
    >>> jax.jit(top)(state.params, batch.x).ravel().tolist()
    [0, 1, 2, 3, 4]
    >>> cut_classes(state.params, 5)["output"]["kernel"].shape
    (5, 5)
    """
    mesh = _class_mesh(devices)

    def init(key: Array, batch: Batch) -> State:
        def place(leaf: Array, spec: PartitionSpec) -> Array:
            if CLASSES in spec:
                more = -leaf.shape[-1] % mesh.size
                leaf = jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, more)])
            return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))

        state = learn.init(key, batch)
        return jax.tree.map(place, state, _class_specs(state))

    def step(state: State, batch: Batch) -> tuple[State, Info]:
        specs = _class_specs(state)
        return jax.shard_map(
            learn.step,
            mesh=mesh,
            in_specs=(specs, PartitionSpec()),
            out_specs=(specs, PartitionSpec()),
        )(state, batch)

    return Learner(init, step)


def over_classes(function: Callable[..., Any], *, devices: int = 0) -> Any:
    """Runs a function of parameters that are split by class.

    Args:
      function: `(params, *arguments) -> result`, of one device's part of the classes,
        with `CLASSES` as the device axis; the result is the same on all of them.
      devices: as for `split_classes`.

    Returns:
      `(params, *arguments) -> result`, of the parameters of a state of `split_classes`;
      call it under `jax.jit`.
    """
    mesh = _class_mesh(devices)

    def run(params: Params, *arguments: Any) -> Any:
        return jax.shard_map(
            function,
            mesh=mesh,
            in_specs=(_class_specs(params), *[PartitionSpec()] * len(arguments)),
            out_specs=PartitionSpec(),
        )(params, *arguments)

    return run


def cut_classes(tree: PyTree, classes: int) -> PyTree:
    """Takes off the columns that `split_classes` added, of parameters or of a state."""

    def cut(leaf: Array, spec: PartitionSpec) -> Array:
        return leaf[..., :classes] if CLASSES in spec else leaf

    return jax.tree.map(cut, tree, _class_specs(tree))


def _class_mesh(devices: int | Sequence[Any]) -> Mesh:
    chosen = choose_devices(devices) if isinstance(devices, int) else devices
    return Mesh(np.array(chosen), (CLASSES,))


def _class_specs(tree: PyTree) -> PyTree:
    """Which axis of each leaf is split: the last one of what is below `output`."""

    def spec(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
        if any(getattr(part, "key", None) == "output" for part in path):
            return PartitionSpec(*[None] * (leaf.ndim - 1), CLASSES)
        return PartitionSpec()

    return jax.tree_util.tree_map_with_path(spec, tree)


# The program of one device. Every leaf of `progress` and `settings` has a leading axis
# of the candidates that this device trains.


def _start(problem: Problem, rows: Any, settings: Any, axis: str | None) -> Progress:
    one_row, statistics = rows
    hyperparameters, seeds = settings

    def init(hyperparameters: Hyperparameters, seed: Array) -> State:
        learner = problem.make_learner(hyperparameters, statistics, axis)
        # A key apart from the order's, whose seed may be the same number.
        key = jax.random.fold_in(jax.random.key(seed), _STATE)
        return learner.init(key, one_row)

    state = jax.vmap(init)(hyperparameters, seeds)
    count = seeds.shape[0]
    return Progress(
        state=state,
        losses=jnp.zeros((count, min(problem.steps, _LOSS_SLOTS))),
        diverged_at=jnp.full(count, -1, jnp.int32),
        best_params=jax.tree.map(jnp.copy, state.params),
        best_score=jnp.full(count, -jnp.inf),
        best_step=jnp.zeros(count, jnp.int32),
        stale=jnp.zeros(count, jnp.int32),
    )


def _train(
    problem: Problem,
    progress: Progress,
    rows: Any,
    settings: Any,
    first: Array,
    steps: Array,
    begin: Array,
    axis: str | None,
    shares: int,
) -> Progress:
    data, statistics = rows
    hyperparameters, _ = settings
    count = problem.train.labels.shape[0]
    size = _batch_rows(problem)
    sizes = size - problem.unlabelled, problem.unlabelled
    share = -(-size // shares)
    lane = jax.lax.axis_index(axis) if axis else 0
    positions = lane * share + jnp.arange(share)
    order_key = jax.random.key(problem.order_seed)
    slots = progress.losses.shape[1]
    order = None
    if problem.unlabelled or problem.balanced:
        order = labelled_first(labelled(data), data.labels, classes=problem.balanced)

    def batch(step: Array) -> Batch:
        if problem.windows is not None:
            at = (step - begin) * share
            return jax.tree.map(
                lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, at, share), data
            )
        # Where the batch does not divide by the devices the last one pads.
        there = positions < size
        if problem.sharded:
            # Positions are dealt out one by one, and a device has an order of its own
            # rows, which are as many as if they had been (`dealt`).
            own = jnp.maximum((count + shares - 1 - lane) // shares, 1)

            def before(step: Array) -> Array:
                begin = step.astype(jnp.uint32) * jnp.uint32(size)
                begin += jnp.asarray(shares - 1 - lane, jnp.uint32)
                return begin // jnp.uint32(shares)

            there = jnp.arange(share) < before(step + 1) - before(step)
            index = batch_rows(
                jax.random.fold_in(order_key, lane),
                before(step),
                rows=jnp.asarray(own, jnp.uint32),
                positions=jnp.arange(share),
            )
        elif order is None:
            first_position = step.astype(jnp.uint32) * jnp.uint32(size)
            index = batch_rows(
                order_key, first_position, rows=count, positions=positions
            )
        else:
            index, found = mixed_rows(order_key, step, order, sizes, positions)
            there &= found
        batch = jax.tree.map(lambda leaf: leaf[index], data)
        return batch._replace(weights=jnp.where(there, batch.weights, 0))

    # Candidates stand just before a leaf's last axis: kernels [dim, candidates,
    # classes] are then one matrix [dim, candidates * classes] without a transposition.
    axes = jax.tree.map(lambda leaf: max(leaf.ndim - 2, 0), progress.state)
    state = jax.tree.map(
        lambda leaf, axis: jnp.moveaxis(leaf, 0, axis), progress.state, axes
    )
    vmapped: Any = axes
    one_seed = len(set(problem.seeds.tolist())) == 1
    if one_seed:
        # Candidates of one seed have one noise, drawn once for all of them.
        state = state._replace(step=state.step[0], key=state.key[0])
        vmapped = axes._replace(step=None, key=None)

    def body(done: Array, carry: tuple[State, Array, Array]):
        state, losses, diverged_at = carry
        step = first + done
        rows = batch(step)

        def advance(state: State, hyperparameters: Hyperparameters):
            learner = problem.make_learner(hyperparameters, statistics, axis)
            return learner.step(state, rows)

        state, info = jax.vmap(advance, in_axes=(vmapped, 0), out_axes=(vmapped, 0))(
            state, hyperparameters
        )
        fails = (diverged_at < 0) & ~jnp.isfinite(info.loss)
        # As `loss_slots`; unsigned, so that 16 million steps fit.
        slot = step.astype(jnp.uint32) * jnp.uint32(slots) // jnp.uint32(problem.steps)
        return (
            state,
            losses.at[:, slot].add(info.loss),
            jnp.where(fails, step, diverged_at),
        )

    # A loop of a traced length, not `lax.scan` of a static one: the same code then runs
    # a chunk of any number of steps, so how a run was cut up never shows in its bits.
    state, losses, diverged_at = jax.lax.fori_loop(
        0, steps, body, (state, progress.losses, progress.diverged_at)
    )
    if one_seed:
        candidates = progress.diverged_at.shape
        state = state._replace(
            step=jnp.broadcast_to(state.step, candidates),
            key=jnp.broadcast_to(state.key, candidates),
        )
    state = jax.tree.map(lambda leaf, axis: jnp.moveaxis(leaf, axis, 0), state, axes)
    return progress._replace(state=state, losses=losses, diverged_at=diverged_at)


def _evaluate(
    problem: Problem,
    params: Params,
    statistics: PyTree,
    chunks: Batch,
    axis: str | None,
    with_logits: bool,
) -> tuple[ScoreSums, Any]:
    head = problem.make_head(statistics)

    def score(params: Params, chunk: Batch) -> tuple[ScoreSums, Any]:
        logits = head.apply(params, chunk.x)
        sums = score_sums(logits, chunk.labels, chunk.weights, output=problem.output)
        return sums, logits if with_logits else ()

    def body(sums: ScoreSums | None, chunk: Batch):
        more, logits = jax.vmap(score, in_axes=(0, None))(params, chunk)
        return jax.tree.map(jnp.add, sums, more), logits

    one_chunk = jax.tree.map(lambda leaf: leaf[0], chunks)
    shapes, _ = jax.eval_shape(jax.vmap(score, in_axes=(0, None)), params, one_chunk)
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    sums, logits = jax.lax.scan(body, nothing, chunks)
    return (jax.lax.psum(sums, axis) if axis else sums), logits


def _keep_best(progress: Progress, scores: Array, patience: int) -> Progress:
    running = progress.diverged_at < 0
    if patience:
        running &= progress.stale < patience
    better = running & (scores > progress.best_score)

    def keep(better: Array, new: Params, old: Params) -> Params:
        return jax.tree.map(lambda new, old: jnp.where(better, new, old), new, old)

    return progress._replace(
        best_params=jax.vmap(keep)(better, progress.state.params, progress.best_params),
        best_score=jnp.where(better, scores, progress.best_score),
        best_step=jnp.where(better, progress.state.step, progress.best_step),
        stale=jnp.where(better, 0, progress.stale + 1),
    )


def _is_stored(rows: Batch) -> bool:
    return any(isinstance(leaf, Stored) for leaf in jax.tree.leaves(rows))


def _pieces(problem: Problem) -> Iterator[tuple[int, Batch]]:
    """Validation rows: in pieces of one size, padded, where they stay on the disk."""
    rows = problem.val
    count = rows.labels.shape[0]
    size = min(count, _chunk_rows(problem))
    if not _is_stored(rows):
        yield count, rows
        return
    for start in range(0, count, size):
        part = jax.tree.map(lambda leaf: leaf[start : start + size], rows)  # noqa: B023
        own = len(part.labels)
        yield own, _padded(part, size - own)


def _padded(rows: Batch, more: int) -> Batch:
    """Adds repeats of the first row, which are ordinary numbers, with weight 0."""
    if not more:
        return rows
    weights = np.concatenate([rows.weights, np.zeros(more, np.float32)])
    rows = jax.tree.map(
        lambda leaf: np.concatenate([leaf, np.repeat(leaf[:1], more, axis=0)]), rows
    )
    return rows._replace(weights=weights)


def _in_chunks(problem: Problem, val: Batch, shares: int, candidates: int) -> Batch:
    """Validation rows as `[shares, chunks, rows, ...]`, padded with weight 0."""
    count = val.labels.shape[0]
    many = val.labels.ndim == 2
    classes = val.labels.shape[1] if many else int(problem.train.labels.max()) + 1
    share = -(-count // shares)
    rows = min(share, max(1, _LOGITS_AT_ONCE // (classes * candidates)))
    chunks = -(-share // rows)
    padding = shares * chunks * rows - count

    return jax.tree.map(
        lambda leaf: leaf.reshape(shares, chunks, rows, *leaf.shape[1:]),
        _padded(val, padding),
    )


def choose_residency(size: int, *, devices: int, device: int, host: int | None) -> str:
    """Returns where training embeddings go: the first place where they fit.

    Three fifths of a memory are for them: the rest is for what else there is. What a
    device is to hold is on the host before.

    Args:
      size: their bytes.
      devices: how many devices there are.
      device: memory of each, in bytes.
      host: memory that a process has on its machine; None: not known.

    Returns:
      `replicated`, `sharded` (over several devices) or `streamed`.

    >>> [
    ...     choose_residency(size * 10**9, devices=8, device=16 * 10**9, host=10**11)
    ...     for size in (9, 10, 76, 77)
    ... ]
    ['replicated', 'sharded', 'sharded', 'streamed']
    """
    room = (device if host is None else min(device, host)) * 3 // 5
    if size <= room:
        return "replicated"
    if devices > 1 and size <= devices * room:
        return "sharded"
    return "streamed"


def memory(devices: Sequence[Any]) -> tuple[int | None, int | None]:
    """Returns bytes of a device, and of its machine, that a process may use.

    Of several processes all must ask, and are told the least that one of them has.
    Processes of one machine share what it has. So do devices that are parts of its own
    processor, and its memory holds the data too.
    """
    mine = [one for one in devices if one.process_index == jax.process_index()]
    host, device = _host_memory(), None
    machines = processes.gather(np.uint32(zlib.crc32(platform.node().encode())))
    if host is not None:
        host //= int((machines == machines[jax.process_index()]).sum())
    if mine[0].platform == "cpu":
        device = None if host is None else host // (len(mine) + 1)
    elif stats := mine[0].memory_stats():
        device = stats.get("bytes_limit")
    unknown = 2**62
    told = [unknown if one is None else one for one in (device, host)]
    least = processes.gather(np.array(told)).min(0).tolist()
    device, host = (None if one == unknown else one for one in least)
    return device, host


def _host_memory() -> int | None:
    """Available memory, or what the control group leaves of it; None: not known."""
    try:
        told = Path("/proc/meminfo").read_text()
        free = [int(told.split("MemAvailable:")[1].split()[0]) * 1024]
    except (OSError, IndexError):
        return None
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # "max": no limit
        most = int((group / "memory.max").read_text())
        free.append(most - int((group / "memory.current").read_text()))
    return min(free)


def quiet_tpu_compiler() -> None:
    """Keeps libtpu, where it is installed and no TPU is, from looking for one.

    It would ask for the metadata of a machine that this is not, and tell at length that
    there are none. To be called before JAX is first used.
    """
    if not glob.glob("/dev/accel*") and not glob.glob("/dev/vfio/*"):
        for setting, value in _NO_TPU.items():
            os.environ.setdefault(setting, value)


def choose_devices(devices: int) -> list[Any]:
    """Returns the devices of a run: so many local ones, or with 0 all there are.

    Raises:
      ValueError: more are asked for than there are.
    """
    local = jax.local_devices()
    if devices > len(local):
        raise ValueError(
            f"train.devices is {devices}, but this machine has {len(local)}; "
            "ask for no more than there are, or for 0 to use all"
        )
    if jax.process_count() > 1:
        if devices not in (0, len(local)):
            raise ValueError(
                f"train.devices is {devices}, but a run over several processes uses "
                f"all {len(local)} devices of each; set it to 0"
            )
        # One process's side by side: what it reads then is too.
        return sorted(jax.devices(), key=lambda one: (one.process_index, one.id))
    return local[: devices or len(local)]


class _Placement:
    """Moves arrays between the host and the devices of one sweep.

    Several devices hold a leading device axis, one device none: a single device then
    runs the plain jitted program, without pmap's dispatch.
    """

    def __init__(
        self,
        devices: list[Any],
        split: str,
        candidates: int,
        *,
        abstract: bool = False,
    ):
        self.chosen = devices
        self.abstract = abstract  # shapes in place of arrays on the devices
        self.count = candidates
        self.many = len(devices) > 1
        self.by_candidate = split == "candidates" and self.many
        lanes = len(devices) if self.by_candidate else 1
        self.each = -(-candidates // lanes)
        here = [device.process_index == jax.process_index() for device in devices]
        self.processes = 1 if abstract or all(here) else jax.process_count()
        if self.processes > 1:
            return
        # Made once: a function made anew at every call would compile at every call.
        self._copy = jax.pmap(
            lambda lane, tree: tree,
            axis_name=AXIS,
            devices=devices,
            in_axes=(0, None),
        )
        self._put = jax.pmap(lambda tree: tree, axis_name=AXIS, devices=devices)

    def compile(
        self,
        function: Any,
        arguments: tuple,
        *,
        donate: tuple = (),
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, Any]:
        """Ahead of time, so that a later call can compile nothing.

        Returns the program and the shapes that it returns.
        """
        if self.many:
            each = tuple(not isinstance(leaf, np.integer) for leaf in arguments)
            if self.processes > 1:
                program = self._map(function, each, donate)
            else:
                program = jax.pmap(
                    function,
                    axis_name=AXIS,
                    devices=self.chosen,
                    in_axes=tuple(0 if one else None for one in each),
                    donate_argnums=donate,
                )
        elif self.abstract:
            sharding = jax.sharding.SingleDeviceSharding(self.chosen[0])
            program = jax.jit(
                function,
                donate_argnums=donate,
                in_shardings=sharding,
                out_shardings=sharding,
            )
        else:
            program = jax.jit(function, donate_argnums=donate)
        lowered = program.lower(*arguments)
        compiled = lowered.compile(options)
        if self.processes > 1:
            processes.meet()  # The collectives of CPUs don't wait long.
        return compiled, lowered.out_info

    def _map(self, function: Any, each: tuple[bool, ...], donate: tuple) -> Any:
        """As `jax.pmap`, which compiles ahead of time only for devices of a process."""

        def one(*arguments: Any) -> Any:
            mine = (
                jax.tree.map(lambda leaf: leaf[0], argument) if mapped else argument
                for argument, mapped in zip(arguments, each, strict=True)
            )
            return jax.tree.map(lambda leaf: leaf[None], function(*mine))

        lanes, mesh = PartitionSpec(AXIS), self._by_device().mesh
        specs = tuple(lanes if one else PartitionSpec() for one in each)
        mapped = jax.shard_map(
            one, mesh=mesh, in_specs=specs, out_specs=lanes, check_vma=False
        )
        return jax.jit(
            mapped,
            donate_argnums=donate,
            in_shardings=tuple(NamedSharding(mesh, spec) for spec in specs),
        )

    def everywhere(self, tree: PyTree) -> PyTree:
        """The same on every device."""
        if self.abstract:
            lead = (len(self.chosen),) if self.many else ()
            return jax.tree.map(lambda leaf: _shape(leaf, lead), tree)
        if not self.many:
            return jax.device_put(tree, self.chosen[0])
        lanes = len(self._local_lanes())
        if self.processes > 1:

            def repeat(leaf: Any) -> np.ndarray:
                return np.broadcast_to(leaf, (lanes, *np.shape(leaf)))

            return self.put(jax.tree.map(repeat, tree))
        return self._copy(np.arange(lanes), tree)

    def shares(self, tree: PyTree) -> PyTree:
        """A leading axis of shares: one a device, or the only one on every device."""
        if not self.many or self.by_candidate:
            return self.everywhere(jax.tree.map(lambda leaf: leaf[0], tree))
        return self._spread(tree)

    def dealt(self, rows: Batch) -> Any:
        """Every device its part of the rows, as `dealt_rows` says."""
        lanes, count = len(self.chosen), rows.labels.shape[0]
        if not self.many:
            return self.everywhere(jax.tree.map(_read, rows))
        block = dealt_block(
            count,
            row_bytes=_row_bytes(rows),
            lanes=lanes,
            block=max(getattr(leaf, "block", 0) for leaf in jax.tree.leaves(rows)),
        )

        def deal(leaf: Any) -> Any:
            shape = (lanes, -(-count // lanes), *leaf.shape[1:])
            if self.abstract:
                return jax.ShapeDtypeStruct(shape, leaf.dtype)
            parts = []
            for lane in self._local_lanes():
                own = dealt_rows(count, lane, lanes=lanes, block=block)
                part = np.zeros((1, *shape[1:]), leaf.dtype)
                for begin in range(0, len(own), block):
                    some = own[begin : begin + block]
                    part[0, begin : begin + len(some)] = fetch(leaf, some)
                # One is on the host at a time.
                parts.append(
                    jax.block_until_ready(jax.device_put(part, self.chosen[lane]))
                )
            where = self._by_device()
            return jax.make_array_from_single_device_arrays(shape, where, parts)

        return jax.tree.map(deal, rows)

    def positions(
        self, rows: PyTree, steps: int, size: int, *, shapes: bool = False
    ) -> PyTree:
        """The rows of some steps, of each of which a device gets its positions.

        Args:
          rows: `[steps * size, ...]`, or of each step those that are `mine`.
          steps: how many.
          size: rows of a step.
          shapes: whether `rows` are shapes, and shapes are to be returned.
        """
        lanes = range(len(self.chosen)) if shapes else self._local_lanes()
        share, widths = self._widths(size, lanes)

        def cut(leaf: Any) -> Any:
            rest = leaf.shape[1:]
            if shapes:
                lead = (len(lanes),) if self.many else ()
                shape = (*lead, steps * share, *rest)
                return jax.ShapeDtypeStruct(shape, leaf.dtype)
            if self.by_candidate:
                return np.broadcast_to(leaf, (len(lanes), *leaf.shape))
            ends = np.cumsum(widths)
            given = leaf.reshape(steps, ends[-1], *rest)
            whole = np.zeros((len(lanes), steps, share, *rest), leaf.dtype)
            for own, width, end in zip(whole, widths, ends, strict=True):
                own[:, :width] = given[:, end - width : end]
            return whole.reshape(len(lanes), steps * share, *rest)

        if not self.many:
            where: Any = self.chosen[0]
            return jax.tree.map(cut, rows) if shapes else jax.device_put(rows, where)
        cut_up = jax.tree.map(cut, rows)
        # A transfer and no program, which could get between the collectives of another.
        if shapes:
            return cut_up
        if self.processes > 1:
            return self.put(cut_up)
        return jax.device_put(cut_up, self._by_device())

    def mine(self, size: int) -> np.ndarray:
        """Which positions of a step of so many rows this process places."""
        lanes = self._local_lanes()
        share, widths = self._widths(size, lanes)
        wanted = np.full(size, self.by_candidate)
        for lane, width in zip(lanes, widths, strict=True):
            wanted[lane * share : lane * share + width] = True
        return wanted

    def _widths(self, size: int, lanes: Sequence[int]) -> tuple[int, list[int]]:
        """Positions that a device has room for, and how many of a step some have."""
        share = size if self.by_candidate else -(-size // len(self.chosen))
        return share, [min(share, max(0, size - lane * share)) for lane in lanes]

    def _by_device(self) -> NamedSharding:
        """How a leading device axis lies."""
        return NamedSharding(Mesh(np.array(self.chosen), (AXIS,)), PartitionSpec(AXIS))

    def candidates(self, tree: PyTree) -> PyTree:
        """A leading axis of candidates: shared out, or all on every device."""
        if not self.by_candidate:
            return self.everywhere(tree)
        padding = self.each * len(self.chosen) - self.count

        def cut(leaf: Any) -> Any:
            leaf = np.concatenate([leaf, np.repeat(leaf[-1:], padding, axis=0)])
            return leaf.reshape(len(self.chosen), self.each, *leaf.shape[1:])

        return self._spread(jax.tree.map(cut, tree))

    def to_host(self, tree: PyTree) -> PyTree:
        """The reverse of `candidates`, as NumPy arrays."""

        def fetch(leaf: Any) -> np.ndarray:
            if not self.many:
                return np.asarray(leaf)
            if not self.by_candidate:
                return np.asarray(leaf.addressable_shards[0].data)[0]
            host = self._whole(leaf)
            return host.reshape(-1, *host.shape[2:])[: self.count]

        return jax.tree.map(lambda leaf: fetch(_words(leaf)), tree)

    def logits_to_host(self, logits: Any) -> np.ndarray:
        """`[(devices,) chunks, candidates, rows, ...]` -> candidates, all rows, ..."""
        host = self._whole(logits) if self.many else np.asarray(logits)[None]
        _, chunks, each, rows, classes = host.shape
        if self.by_candidate:
            host = np.moveaxis(host, 2, 1).reshape(-1, chunks * rows, classes)
            return host[: self.count]
        return np.moveaxis(host, 2, 0).reshape(each, -1, classes)

    def _spread(self, tree: PyTree) -> PyTree:
        if self.abstract:
            return jax.tree.map(_shape, tree)
        lanes = self._local_lanes()
        return self.put(jax.tree.map(lambda leaf: np.asarray(leaf)[lanes], tree))

    def put(self, tree: PyTree) -> PyTree:
        """A leading axis of this process's devices."""
        if self.processes == 1:
            return self._put(tree)
        where = self._by_device()
        return jax.tree.map(
            lambda leaf: jax.make_array_from_process_local_data(where, leaf), tree
        )

    def _local_lanes(self) -> list[int]:
        mine = jax.process_index()
        return [
            lane
            for lane, device in enumerate(self.chosen)
            if device.process_index == mine
        ]

    def _whole(self, leaf: Any) -> np.ndarray:
        if self.processes == 1:
            return np.asarray(leaf)
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def _read(leaf: Any) -> Any:
    return leaf[:] if isinstance(leaf, Stored) else leaf


def _shape(leaf: Any, lead: tuple[int, ...] = ()) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*lead, *leaf.shape), leaf.dtype)


def _words(leaf: Any) -> Any:
    """A typed key as its words, which the host can hold; other arrays as they are."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    return leaf
