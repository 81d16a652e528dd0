"""What a run would need on devices that need not be here: memory, work, traffic.

Its programs are compiled ahead of time for the devices, by the compiler that would
compile them there, and asked. Nothing is placed and nothing is run.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxhead import build, loop, search
from flaxhead.base import PyTree
from flaxhead.config import Config
from flaxhead.data import Dataset, Embeddings
from flaxhead.parallel import plan_sweep, quiet_tpu_compiler

TOPOLOGIES = ("v4:2x2x1", "v5e:1x1", "v5e:2x2", "v5e:4x4", "v5p:2x2x1", "v6e:1x1",
              "v6e:2x2", "v6e:4x4")  # fmt: skip
"""What `all` compares."""

# Of one device, which is a chip (of v4: one of its two cores). Cloud TPU documentation,
# "System architecture" of each version.
_MEMORY = {
    "TPU v4": 16 * 2**30,
    "TPU v5 lite": 16 * 10**9,
    "TPU v5": 95 * 10**9,
    "TPU v6 lite": 32 * 10**9,
}
_COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"
)  # fmt: skip
_INSTRUCTION = re.compile(
    rf"= (.*?) ({'|'.join(_COLLECTIVES)})(?:-start)?\(", re.MULTILINE
)
_SHAPE = re.compile(r"([a-z]+)(\d+)\[([\d,]*)\]")


class Traffic(NamedTuple):
    """What one kind of collective moves in one run of a program.

    Attributes:
      number: how many there are.
      bytes: of their results, on one device.
    """

    number: int
    bytes: int


class Compiled(NamedTuple):
    """What the compiler says of one program, of one device.

    The body of a loop counts once: of training it is one step.

    Attributes:
      name: what it does.
      flops: floating-point operations.
      bytes: read and written.
      seconds: the compiler's own estimate; None where it makes none.
      temporaries: bytes beside what goes in and comes out.
      held: bytes that go in and come out.
      collectives: kind -> traffic.
      text: the optimised program.
    """

    name: str
    flops: float
    bytes: float
    seconds: float | None
    temporaries: int
    held: int
    collectives: dict[str, Traffic]
    text: str


class Plan(NamedTuple):
    """What a run needs of each device, in bytes.

    Attributes:
      topology: its name.
      device: the kind of device.
      devices: how many.
      capacity: memory of one; None where it is not known.
      embeddings: the rows' embeddings.
      rows: what else rows have, and the validation rows.
      parameters: of all candidates, the best ones so far included; of a search, what
        its programs hand on.
      optimizer: state of all candidates beside their parameters.
      temporaries: of the program that needs most.
      programs: all of them.
      candidates: how many are trained at once; 0 for a search.
      residency: how the embeddings lie on the devices, and why.
      seconds: of the whole run by the compiler's estimate of its programs; None where
        it makes none, and for a search, whose solvers stop when they are done.
      refused: the compiler's reason where it would not compile; "" where it did.
    """

    topology: str
    device: str
    devices: int
    capacity: int | None
    embeddings: int = 0
    rows: int = 0
    parameters: int = 0
    optimizer: int = 0
    temporaries: int = 0
    programs: tuple[Compiled, ...] = ()
    candidates: int = 0
    residency: str = ""
    seconds: float | None = None
    refused: str = ""

    @property
    def needed(self) -> int:
        """Bytes of one device."""
        held = self.embeddings + self.rows + self.parameters + self.optimizer
        return held + self.temporaries

    @property
    def fits(self) -> bool | None:
        """Whether that is there; None where it is not known."""
        if self.refused:
            return False
        return None if self.capacity is None else self.needed <= self.capacity

    @property
    def largest(self) -> int | None:
        """How many candidates fit, if each takes what one takes now."""
        if self.capacity is None or self.refused or not self.candidates:
            return None
        each = self.parameters + self.optimizer + self.temporaries
        room = self.capacity - self.embeddings - self.rows
        return max(0, int(room * self.candidates // max(each, 1)))


def topology(name: str) -> list[Any]:
    """Returns the devices of a name, to compile for.

    Args:
      name: `local`, the devices of this machine, or a TPU topology such as `v5e:4x4`.

    Raises:
      ValueError: for a name that isn't known, or without the TPU compiler.
    """
    if name == "local":
        return list(jax.local_devices())
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"--topology={name} needs the TPU compiler; pip install 'flaxhead[plan]', "
            "or ask for local"
        )
    quiet_tpu_compiler()
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except jax.errors.JaxRuntimeError as error:
        if "lockfile" in str(error):
            raise ValueError(
                f"--topology={name} can't be asked for while another process has this "
                "machine's TPU; wait until it ends, or plan on another machine"
            ) from None
        raise ValueError(
            f"--topology={name} is not known ({str(error).splitlines()[0]}); expected "
            "local, all, or a version and a shape such as v5e:4x4, v5p:2x2x1 or v6e:8x8"
        ) from None
    return list(described.devices)


def imagine(shape: str, config: Config) -> Dataset:
    """Returns data of a shape, of no memory worth speaking of.

    Args:
      shape: `ROWSxDIMxCLASSES`, and `:TYPE`, float32 if it is not there.
      config: says how many of the rows are validation rows.

    Raises:
      ValueError: for text of another form.
    """
    found = re.fullmatch(r"(\d+)x(\d+)x(\d+)(?::(float32|float16|bfloat16))?", shape)
    if found is None or 0 in (sizes := [int(n) for n in found.groups()[:3]]):
        raise ValueError(
            f"--shape={shape}: expected ROWSxDIMxCLASSES, and :float16 or :bfloat16 if "
            "they are not float32, such as 1280000x1024x1000:bfloat16"
        )
    rows, dim, classes = sizes
    if classes < 2:
        raise ValueError(f"--shape={shape}: expected 2 classes or more, got {classes}")
    one = np.zeros((), jnp.dtype(found.group(4) or "float32"))

    def split(count: int) -> Embeddings:
        # One value, seen from everywhere.
        x = np.broadcast_to(one, (count, dim))
        labels = (np.arange(count) % classes).astype(np.int32)
        return Embeddings(
            x, labels, np.ones(count, np.float32), None, None, np.arange(count)
        )

    val = int(rows * config.data.val_fraction)
    names = tuple(map(str, range(classes)))
    return Dataset(
        split(rows - val), split(val), split(0), names, "multiclass", notes={}
    )


def plan(config: Config, data: Dataset, *, name: str, devices: Sequence[Any]) -> Plan:
    """Compiles a run for devices, and adds up what it needs of each.

    Args:
      config: all settings.
      data: whose shapes count.
      name: of the topology.
      devices: from `topology`.

    Raises:
      ValueError: settings or data that cannot be used.
    """
    kind, count = devices[0].device_kind, len(devices)
    made = Plan(name, kind, count, _capacity(devices[0]))
    chosen, why = config.data.residency, "as it is asked for"
    if chosen == "auto":
        shared = count if devices[0].platform == "cpu" else 1
        room = None if made.capacity is None else made.capacity // shared
        size = data.train.x.nbytes
        chosen, why = loop.residency(config, size, devices=count, capacity=room)
    if not build.searched(config):
        asked = dataclasses.replace(config.data, residency=chosen)
        config = dataclasses.replace(config, data=asked)
        made = made._replace(residency=f"{chosen}: {why}")
    work = loop.work(config, data)
    try:
        with _nothing_kept(), build.in_full():
            if work.question is None:
                return _of_sweeps(made, config, work, devices)
            return _of_search(made, work, devices)
    except jax.errors.JaxRuntimeError as error:
        return made._replace(refused=str(error).splitlines()[0])


@contextmanager
def _nothing_kept() -> Iterator[None]:
    """Keeps programs out of JAX's cache, which can't be read without their devices."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = jax.config.values[name]
    jax.config.update(name, float("inf"))
    try:
        yield
    finally:
        jax.config.update(name, before)


def _of_sweeps(
    made: Plan, config: Config, work: loop.Work, devices: Sequence[Any]
) -> Plan:
    programs = []
    for name, problem in work.problems.items():
        sweep = plan_sweep(
            problem,
            devices,
            split=config.train.split,
            with_logits=work.with_logits,
        )
        rows, statistics = sweep.train_rows
        _, val_rows = next(sweep.val_rows())
        state = sweep.progress.state
        best = sweep.progress.best_params
        whole = _bytes(sweep.progress)
        parameters = _bytes(state.params) + _bytes(best)
        made = made._replace(
            embeddings=_bytes(rows.x),
            rows=_bytes((rows._replace(x=()), statistics, val_rows)),
            parameters=made.parameters + parameters,
            optimizer=made.optimizer + whole - parameters,
            candidates=made.candidates + len(problem.seeds),
        )
        for part in ("train", "evaluate"):
            programs.append(_asked(f"{part} {name}", getattr(sweep, part)))
    lanes = made.devices

    def each(size: int) -> int:
        return -(-size // lanes)

    each_step, each_evaluation = _total(programs[::2]), _total(programs[1::2])
    seconds = None
    if each_step is not None and each_evaluation is not None:
        seconds = each_step * work.steps + each_evaluation * work.evaluations
    return made._replace(
        embeddings=each(made.embeddings),
        rows=each(made.rows),
        parameters=each(made.parameters),
        optimizer=each(made.optimizer),
        temporaries=max(one.temporaries for one in programs),
        programs=tuple(programs),
        seconds=seconds,
    )


def _of_search(made: Plan, work: loop.Work, devices: Sequence[Any]) -> Plan:
    assert work.question is not None
    assert work.pool is not None
    rows, fold, folds = work.pool.rows, work.pool.fold, work.pool.folds
    programs: list[Compiled] = []
    residency: set[str] = set()
    seen: set[int] = set()
    for one in search.build_programs(work.question, len(rows.labels), devices):
        search.compile_only(work.question, rows, fold, folds=folds, one=one)
        for part, program in one.shares.programs():  # Heads share their shares.
            if id(program) not in seen:
                seen.add(id(program))
                programs.append(_asked(f"{one.name} {part}", program))
        split = one.shares.devices
        residency.add(
            "sharded: solvers add up what each device says of its rows"
            if split > 1
            else "replicated: a fit draws from all rows, or there is one device"
        )
        made = made._replace(
            embeddings=max(made.embeddings, -(-_bytes(rows.x) // split)),
            rows=max(made.rows, -(-_bytes(rows._replace(x=())) // split)),
        )
    data = made.embeddings + made.rows
    return made._replace(
        parameters=max(0, max(one.held for one in programs) - data),
        temporaries=max(one.temporaries for one in programs),
        programs=tuple(programs),
        residency="; ".join(sorted(residency)),
    )


def _total(programs: Sequence[Compiled]) -> float | None:
    estimates = [one.seconds for one in programs if one.seconds is not None]
    return sum(estimates) if len(estimates) == len(programs) else None


def _asked(name: str, program: Any) -> Compiled:
    cost = program.cost_analysis() or {}
    memory = program.memory_analysis()
    text = program.as_text()
    seconds = cost.get("optimal_seconds", -1)
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return Compiled(
        name=name,
        flops=float(cost.get("flops", 0)),
        bytes=float(cost.get("bytes accessed", 0)),
        seconds=seconds if seconds >= 0 else None,  # negative: not known
        temporaries=memory.temp_size_in_bytes,
        held=held - memory.alias_size_in_bytes,
        collectives=_collectives(text),
        text=text,
    )


def _collectives(text: str) -> dict[str, Traffic]:
    found: dict[str, Traffic] = {}
    for shapes, kind in _INSTRUCTION.findall(text):
        before = found.get(kind, Traffic(0, 0))
        size = sum(
            int(bits) // 8 * int(np.prod([int(n) for n in sides.split(",") if n]))
            for _, bits, sides in _SHAPE.findall(shapes)
        )
        found[kind] = Traffic(before.number + 1, before.bytes + size)
    return found


def _bytes(tree: PyTree) -> int:
    """Of arrays or their shapes; a typed key is two words."""

    def size(leaf: Any) -> int:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return 8 * int(np.prod(leaf.shape))
        return int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize

    return sum(map(size, jax.tree.leaves(tree)))


def _capacity(device: Any) -> int | None:
    if device.device_kind in _MEMORY:
        return _MEMORY[device.device_kind]
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    stats = device.memory_stats()
    return stats.get("bytes_limit") if stats else None


def describe(made: Plan, *, price: float = 0.0) -> str:
    """Says a plan in lines.

    Args:
      made: from `plan`.
      price: of a device an hour, in any currency; 0: not known.
    """
    lines = [f"{made.topology}: {made.devices} x {made.device}"]
    if made.refused:
        return f"{lines[0]}\n  does not fit: {made.refused}"
    parts = {
        "embeddings": (made.embeddings, made.residency),
        "other data": (made.rows, ""),
        "parameters": (made.parameters, ""),
        "optimiser": (made.optimizer, ""),
        "temporaries": (made.temporaries, "of the program that needs most"),
    }
    capacity = "" if made.capacity is None else f" of {_si(made.capacity, 'B')}"
    lines.append(
        f"  a device needs {_si(made.needed, 'B')}{capacity}: {_verdict(made)}"
    )
    lines += [
        f"    {name:<12}{_si(size, 'B'):>9}{f'  {why}' if why else ''}"
        for name, (size, why) in parts.items()
    ]
    if made.largest is not None:
        lines.append(
            f"  the largest sweep that fits: about {made.largest:,} candidates, "
            f"{made.candidates:,} are asked for"
        )
    lines.append(
        f"  {'program, of a device':<28}{'operations':>11}{'moved':>10}{'estimate':>10}"
        f"{'memory':>10}  collectives"
    )
    for one in made.programs:
        lines.append(
            f"    {one.name:<26}{_si(one.flops, ''):>11}{_si(one.bytes, 'B'):>10}"
            f"{_seconds(one.seconds):>10}{_si(one.temporaries, 'B'):>10}  "
            f"{_traffic(one.collectives)}"
        )
    if made.seconds is not None:
        lines.append(
            f"  the run, by the compiler's estimate: {_seconds(made.seconds)}"
            f"{_cost(made, price)}"
        )
    return "\n".join(lines)


TABLE = (
    f"{'topology':<12}{'devices':>8}{'fits':>6}{'needs':>10}{'of':>10}"
    f"{'largest sweep':>15}{'a step':>10}{'run':>10}"
)
"""Above the lines of `in_line`."""


def in_line(made: Plan, *, price: float = 0.0) -> str:
    """Says a plan in a line of a table.

    Args:
      made: from `plan`.
      price: of a device an hour, in any currency; 0: not known.
    """
    train = [one for one in made.programs if one.name.startswith("train ")]
    step = _total(train) if train else None
    fits = {True: "yes", False: "no", None: "?"}[made.fits]
    largest = "" if made.largest is None else f"{made.largest:,}"
    capacity = "" if made.capacity is None else _si(made.capacity, "B")
    return (
        f"{made.topology:<12}{made.devices:>8}{fits:>6}"
        f"{'' if made.refused else _si(made.needed, 'B'):>10}{capacity:>10}"
        f"{largest:>15}{_seconds(step):>10}{_seconds(made.seconds):>10}"
        f"{_cost(made, price)}"
    )


def _verdict(made: Plan) -> str:
    return {True: "fits", False: "does not fit", None: "how much it has is not known"}[
        made.fits
    ]


def _cost(made: Plan, price: float) -> str:
    if not price or made.seconds is None:
        return ""
    return f", {price * made.devices * made.seconds / 3600:.2g} at {price:g} an hour"


def _traffic(collectives: dict[str, Traffic]) -> str:
    told = (
        f"{one.number} {kind} ({_si(one.bytes, 'B')})"
        for kind, one in sorted(collectives.items())
    )
    return ", ".join(told) or "none"


def _si(value: float, unit: str) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.0f} {unit}".rstrip()


def _seconds(value: float | None) -> str:
    if value is None:
        return "?"
    for factor, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value / 1e-9:.0f} ns"
