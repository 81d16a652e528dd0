"""The only host loop: feed, log, evaluate, checkpoint, resume, select, ship."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from flaxhead import (
    build,
    bundle,
    checkpoints,
    crossval,
    heads,
    losses,
    parallel,
    processes,
)
from flaxhead.base import Batch, Params
from flaxhead.config import Config, HeadConfig
from flaxhead.data import (
    RESIDENCIES,
    Dataset,
    Embeddings,
    Stored,
    concatenate,
    feature_statistics,
    fingerprint,
    load,
    measure,
    scan,
    to_batch,
)
from flaxhead.metrics import (
    METRICS,
    Output,
    evaluate,
    finish,
    standard_error,
)
from flaxhead.paths import (
    AnyPath,
    Location,
    alone,
    append,
    check_for_checkpoints,
    is_local,
    part,
    to_path,
    write,
)
from flaxhead.report.choices import choices
from flaxhead.report.curves import curves
from flaxhead.report.learning_curve import learning_curve
from flaxhead.report.progress import Display, quiet
from flaxhead.sampling import Windows, make_windows
from flaxhead.search import Question, head_names, rank
from flaxhead.selection import Candidate, Selection, grid_edges, select

_LOCK = ".lock"
_LOGITS_KEPT = 2**28  # of all rows of a split, on the host
_LOGITS_AT_ONCE = 2**22  # where they are more
_LOG_SECONDS = 5.0  # between two versions of metrics.jsonl in a bucket
_SHARED_SECONDS = 30.0  # until a file that one host writes is there for another one


class Interrupted(Exception):
    """The run was told to stop, and has saved what it had.

    Attributes:
      signal: the number of the signal.
    """

    def __init__(self, number: int, sentence: str):
        super().__init__(f"stopped by {signal.Signals(number).name} {sentence}")
        self.signal = number


class _Sweep(NamedTuple):
    """All candidates of one head: one program."""

    name: str
    head: HeadConfig
    grid: list[dict[str, float]]
    problem: parallel.Problem
    program: parallel.Program
    statistics: tuple[np.ndarray, np.ndarray]


class _Plan(NamedTuple):
    """What follows from settings and data before anything is trained."""

    config: Config
    data: Dataset
    output: Output
    metric: str
    batch_size: int
    steps: int
    evaluate_at: tuple[int, ...]
    class_weights: np.ndarray | None
    class_counts: np.ndarray | None
    windows: Windows | None  # where training rows are streamed


def run(
    config: Config,
    workdir: Location,
    *,
    data: Dataset | None = None,
    display: Display | None = None,
) -> dict[str, Any]:
    """Trains, selects, evaluates and ships a head.

    Args:
      config: all settings.
      workdir: the folder of the run, `gs://BUCKET/FOLDER` too. One that holds a run of
        the same settings and data is gone on with; a finished one is left as it is.
      data: the data, if not what `config.data` names.
      display: where to tell of progress; None: nowhere.

    Returns:
      What `workdir/result.json` holds.

    Raises:
      ValueError: settings or data that cannot be used, or a `workdir` of another run.
      Interrupted: the process was told to stop (SIGTERM or SIGINT), and has saved.

    >>> import tempfile
    >>> from flaxhead.config import DataConfig, TrainConfig
    >>> config = Config(DataConfig("sklearn:iris"), train=TrainConfig(epochs=2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = run(config, folder)
    >>> sorted(result)[:3]
    ['candidates', 'data', 'selected']
    """
    began = time.perf_counter()
    if workdir is None or not str(workdir):
        raise ValueError("workdir is empty; name the folder of the run")
    if data is not None and not isinstance(data, Dataset):
        raise ValueError(
            f"data is a {type(data).__name__}; expected what flaxhead.arrays(...) or "
            "flaxhead.data.load(...) returns"
        )
    display = display or quiet()
    build.check(config)
    _agree(dataclasses.asdict(config))
    workdir = to_path(workdir)
    config, data, why = _settle_residency(config, workdir, data)
    if data is None:
        data = load(
            config.data, tick=lambda done, rows: display.step(done, rows, "", "rows")
        )
    data = _scanned(config, data)
    plan = _plan(config, data)
    chosen_by = crossval.pool(config, data) if build.searched(config) else None
    if chosen_by is None:
        check_for_checkpoints(workdir)
    mine = {"config": dataclasses.asdict(config), "data": fingerprint(data)}
    mine = json.loads(json.dumps(mine))
    _claim(workdir, mine)
    finished = workdir / "result.json"
    if processes.gather(finished.exists())[0]:
        display.say(f"{workdir} holds the finished run; nothing to do")
        return _finished(finished)
    loaded_seconds = time.perf_counter() - began
    if why:
        display.say(f"embeddings {config.data.residency}: {why}")

    with _alone(workdir), build.in_full(), stop_signals() as stopped:
        _claim(workdir, mine)  # Of two that claimed it at once, one goes on.
        if chosen_by is not None:
            result = _search(plan, chosen_by, workdir, display, stopped)
            result["timing"] = {
                "load_seconds": loaded_seconds,
                **result["timing"],
                "total_seconds": time.perf_counter() - began,
            }
            return _finish(result, plan, finished, display)
        sweeps = _compile(plan)
        compile_seconds = sum(sweep.program.compile_seconds for sweep in sweeps)
        display.say(_introduction(plan, sweeps, compile_seconds))
        clock = time.perf_counter()
        progresses = _train(plan, sweeps, workdir, display, stopped)
        run_seconds = time.perf_counter() - clock
        candidates, selection = _select(plan, sweeps, progresses)
        result = _ship(plan, sweeps, progresses, candidates, selection, workdir)
    result["timing"] = {
        "load_seconds": loaded_seconds,
        "compile_seconds": compile_seconds,
        "run_seconds": run_seconds,
        "total_seconds": time.perf_counter() - began,
    }
    return _finish(result, plan, finished, display)


_ALL_LABELLED = (
    "no training row is without a label, so that what learns from such rows had none; "
    "hide some with curve.shots, or add rows of label -1 with data.unlabelled=keep"
)


def _finish(
    result: dict[str, Any], plan: _Plan, path: AnyPath, display: Display
) -> dict[str, Any]:
    config = plan.config
    if config.protocol:
        result["protocol"] = config.protocol
    hidden = bool(config.curve.shots)  # from all but the shipped head
    if build.keeps_unlabelled(config) and not (hidden or _unlabelled_too(plan)):
        result["warnings"] = [*result["warnings"], _ALL_LABELLED]
    for warning in result["warnings"]:
        display.say(f"warning: {warning}")
    if processes.first():
        write(path, _json(result))
    return result


def _bundle(
    plan: _Plan,
    head: HeadConfig,
    hyperparameters: dict[str, float],
    params: Params,
    statistics: tuple[np.ndarray, np.ndarray],
) -> bundle.Bundle:
    """A head as it is shipped, but for its scores: its settings are those that won."""
    config, data = plan.config, plan.data
    own = {name: (one,) for name, one in hyperparameters.items() if hasattr(head, name)}
    head = dataclasses.replace(head, **own)
    return bundle.Bundle(
        config=head,
        params=params,
        statistics=statistics,
        class_names=data.class_names,
        task=data.task,
        output=plan.output,
        spec=bundle.feature_spec(
            to_batch(data.train).x, config=head, backbone=config.data.backbone
        ),
        data=config.data,
        metrics={"selected": {"head": head.name, **hyperparameters}},
    )


def _scored(chosen: bundle.Bundle, scores: dict[str, Any]) -> bundle.Bundle:
    return chosen._replace(metrics={**chosen.metrics, **scores})


# Before training.


def _settle_residency(
    config: Config, workdir: AnyPath, data: Dataset | None
) -> tuple[Config, Dataset | None, str]:
    """Puts the choice of `auto` into the settings, and returns its reason too.

    A run that is gone on with stays with what it has chosen: the order of its rows
    depends on it. Where only reading tells how large the data is, it is returned. Rows
    of a search are shared out over devices, unless they don't fit even so.
    """
    searched = build.searched(config)
    if config.data.residency != "auto" or (searched and build.in_memory_for(config)):
        return config, data, ""

    def settled(chosen: str, why: str) -> tuple[Config, Dataset | None, str]:
        if searched and chosen != "streamed":
            return config, data, ""
        asked = dataclasses.replace(config.data, residency=chosen)
        changed = dataclasses.replace(config, data=asked)
        build.check(changed)
        return changed, data, why

    known, claimed = ("", *RESIDENCIES), 0
    # There may be no run, or one that `_claim` will refuse.
    with suppress(OSError, ValueError, KeyError, TypeError):
        told = json.loads((workdir / "config.json").read_text())
        claimed = known.index(told["config"]["data"]["residency"])
    # Where not all see the folder, `_claim` will say so.
    claimed = int(processes.gather(claimed)[0])
    if claimed:
        return settled(known[claimed], "as this run began")
    size = unread = None
    try:
        size = measure(config.data) if data is None else data.train.x.nbytes
    except ValueError as error:
        unread = error  # in part, as a compressed file: as a whole, it may be
    if size is None:
        data = load(config.data)
        size = data.train.x.nbytes
    chosen, why = residency(config, size)
    if chosen == "streamed" and unread is not None:
        raise unread
    return settled(chosen, why)


def residency(
    config: Config, size: int, *, devices: int = 0, capacity: int | None = None
) -> tuple[str, str]:
    """Returns what `data.residency` of `auto` comes to, and why.

    Args:
      config: all settings.
      size: bytes of the training embeddings.
      devices: how many; 0: those that `config` asks for, of all processes.
      capacity: memory of each in bytes, where they aren't here.
    """
    if reason := build.whole(config):
        return "replicated", f"every device needs all rows, by {reason}"
    host = None
    if not devices:
        chosen = parallel.choose_devices(config.train.devices)
        devices, (capacity, host) = len(chosen), parallel.memory(chosen)
    if capacity is None:
        return "replicated", "how much memory a device has is not known"
    where = parallel.choose_residency(size, devices=devices, device=capacity, host=host)
    if where == "sharded" and config.train.split != "batch":
        where = "streamed"
    if build.searched(config) and host is not None and size > host * 3 // 5:
        where = "streamed"  # rows of a search are on the host first
    told = f"{size / 1e6:,.0f} MB, and a device has {capacity / 1e6:,.0f} MB"
    several = f" (there are {devices})" if devices > 1 else ""
    its = "this machine" if jax.process_count() == 1 else "a process of its machine"
    of_host = f", {its} {host / 1e6:,.0f} MB" if host is not None else ""
    return where, told + several + of_host


def _scanned(config: Config, data: Dataset) -> Dataset:
    """Reads through training embeddings that no device will hold as a whole."""
    if config.data.residency != "auto":
        notes = {**data.notes, "residency": config.data.residency}
        data = data._replace(notes=notes)
    x = data.train.x
    if config.data.residency != "streamed" or (isinstance(x, Stored) and x.scan):
        return data
    return data._replace(train=scan(data.train, "train"))


def _plan(config: Config, data: Dataset) -> _Plan:
    several = data.train.views is not None
    if several != config.data.views:
        raise ValueError(
            f"data.views is {config.data.views}, but the data given was made with "
            f"data.views={several}; expected the same"
        )
    masked = data.train.mask is not None
    read = build.searched(config) and config.data.residency == "streamed"
    if read and masked:
        raise ValueError(
            "data.residency is 'streamed', but the embeddings are tokens with a mask, "
            "which heads solved in passes don't read; set it to 'auto'"
        )
    output = build.output(config, data.task)
    if config.loss.tile and data.train.labels.ndim != 1:
        raise ValueError(
            f"loss.tile is {config.loss.tile}, which is for labels of one class, and "
            "the data has shares of several classes; set it to 0"
        )
    metric = config.selection.metric
    if metric == "auto":
        metric = "average_precision" if data.task == "multilabel" else "accuracy"
    rows = len(data.train.labels)
    batch_size = min(config.train.batch_size, rows)
    steps = build.count_steps(config, rows)
    if steps * batch_size >= 2**32:
        raise ValueError(
            f"{steps} steps of {batch_size} rows are too many; expected fewer than "
            "4294967296 rows in all, lower train.steps or train.batch_size"
        )
    for number, head in enumerate(config.heads):
        if data.task == "multilabel" and head.name not in build.MULTILABEL:
            raise ValueError(
                f"heads.{number}.name is {head.name!r}, which knows one label a row, "
                "and the data has several; expected one of "
                f"{', '.join(build.MULTILABEL)}"
            )
        if head.prune and data.train.labels.ndim != 1:
            raise ValueError(
                f"heads.{number}.prune is True, which is for labels of one class, and "
                "the data has shares of several classes; set it to False"
            )
        tokens = data.train.x.ndim == 3
        if tokens and head.pool == "none":
            raise ValueError(
                f"heads.{number}.pool is 'none', but the embeddings are tokens of the "
                f"shape {list(data.train.x.shape)}; expected one of "
                f"{', '.join(heads.POOLINGS)}, to make one vector a row, or "
                "data.views=True if they are views"
            )
        if not tokens and head.pool != "none":
            raise ValueError(
                f"heads.{number}.pool is {head.pool!r}, but the embeddings are one "
                f"vector a row, {list(data.train.x.shape)}; set it to 'none'"
            )
        build.check_width(f"heads.{number}", head, data.train.x.shape[-1])
    if not build.searched(config) and not len(data.val.labels):
        raise ValueError(
            "there are no validation rows to choose by; set data.val_fraction above 0, "
            "or selection.folds"
        )
    count = min(config.train.evaluations, steps)
    evaluate_at = tuple(steps * (i + 1) // count for i in range(count))
    parallel.choose_devices(config.train.devices)  # Refuses too many.
    counts = _class_counts(data)
    weights = _class_weights(config, data.class_names, counts)
    return _Plan(
        config,
        data,
        output,
        metric,
        batch_size,
        steps,
        evaluate_at,
        class_weights=weights,
        class_counts=counts if build.uses_counts(config, data.task) else None,
        windows=_windows(config, data.train.x),
    )


def _alone(workdir: AnyPath) -> Any:
    """Holds a folder for this run; in a bucket there is nothing to hold."""
    if not is_local(workdir) or jax.process_index():
        return nullcontext()
    return alone(Path(workdir / _LOCK), f"the run in {workdir}")


def _agree(mine: dict[str, Any]) -> None:
    """Raises a ValueError where another process has something else."""
    other = processes.differing(json.dumps(mine, sort_keys=True))
    if other is not None:
        raise ValueError(
            f"process {other} has other settings or other data than process 0; "
            "expected the same command and the same files in all processes"
        )


def _claim(workdir: AnyPath, mine: dict[str, Any]) -> None:
    """Makes a folder this run's, or makes sure that it is."""
    path = workdir / "config.json"
    _agree(mine)
    there = path.exists()
    _check_shared(path, there)
    if there:
        try:
            theirs = json.loads(path.read_text())
            changed = [
                *_differences(_told(theirs["config"]), _told(mine["config"]), "config"),
                *_differences(theirs["data"], mine["data"], "data"),
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} can't be read ({error}); use another --workdir"
            ) from error
        if changed:
            raise ValueError(
                f"{workdir} holds a run that differs in {'; '.join(changed)}; use "
                "another --workdir, or undo the change"
            )
        return
    # What a run leaves that was killed while it made the folder its own. A bucket has
    # no such thing, but lists a folder that was made by hand as a part of itself.
    left = {part(path).name, _LOCK} if is_local(path) else {workdir.name}
    if workdir.exists() and (
        not workdir.is_dir() or any(one.name not in left for one in workdir.iterdir())
    ):
        raise ValueError(
            f"{workdir} is there and holds no run of flaxhead; expected an empty or a "
            "new folder"
        )
    processes.meet()  # All have looked.
    if processes.first():
        try:
            if is_local(workdir):
                workdir.mkdir(parents=True, exist_ok=True)
            write(path, _json(mine), new=True)
        except OSError as error:
            raise ValueError(
                f"the folder {workdir} can't be made or written to ({error.strerror}); "
                "use another --workdir"
            ) from error
    processes.meet()
    until = time.monotonic() + _SHARED_SECONDS
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.1)
    _check_shared(path, path.exists())


def _check_shared(path: AnyPath, there: bool) -> None:
    """Raises a ValueError where one process has a file that another one lacks."""
    seen = processes.gather(there)
    if seen.any() and not seen.all():
        raise ValueError(
            f"{path} is there for process {seen.argmax()} and not for process "
            f"{seen.argmin()}; expected a --workdir that all processes see, such as "
            "gs://BUCKET/RUN"
        )


def _finished(path: AnyPath) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path} can't be read ({error}); delete it, and the same command makes "
            "it again from the last checkpoint"
        ) from error


def _told(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that say what a run is, and not where and how safely it runs."""
    where = ("devices", "split")
    train = {name: one for name, one in config["train"].items() if name not in where}
    rest = {name: one for name, one in config.items() if name != "checkpoint"}
    return {**rest, "train": train}


def _differences(old: Any, new: Any, name: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted({*old, *new})
            for line in _differences(old.get(key), new.get(key), f"{name}.{key}")
        ]
    if old == new:
        return []
    if name.startswith("data."):
        return [f"{name} (other contents)"]
    return [f"{name} ({json.dumps(old)} there, {json.dumps(new)} now)"]


class Work(NamedTuple):
    """What a run compiles: the problems of its sweeps, or one search.

    Attributes:
      problems: name of a head -> its sweep; none where whole fits are compared.
      with_logits: whether validation logits leave the devices.
      question: of the search, or None.
      pool: the rows of the search, or None.
      steps: of training.
      evaluations: on the validation rows.
    """

    problems: dict[str, parallel.Problem]
    with_logits: bool
    question: Question | None
    pool: crossval.Pool | None
    steps: int
    evaluations: int


def work(config: Config, data: Dataset) -> Work:
    """Returns what `run` would compile, after the same checks.

    Raises:
      ValueError: settings or data that cannot be used.
    """
    build.check(config)
    plan = _plan(config, data)
    if build.searched(config):
        pool = crossval.pool(config, data)
        return Work({}, False, _question(plan), pool, plan.steps, 0)
    # Their values are in no program.
    nothing = np.zeros(data.train.x.shape[-1], np.float32)
    every = _problems(plan, _training_rows(plan), (nothing, nothing))
    problems = {name: problem for name, _, _, problem in every}
    times = len(plan.evaluate_at)
    return Work(problems, _with_logits(plan), None, None, plan.steps, times)


def _with_logits(plan: _Plan) -> bool:
    return not METRICS[plan.metric].from_sums


def _compile(plan: _Plan) -> list[_Sweep]:
    data = _training_rows(plan)
    if isinstance(data.x, Stored) and data.x.scan:
        statistics = data.x.scan.statistics
    elif plan.config.data.residency == "sharded":
        statistics = feature_statistics(data.x, data.weights, data.mask)
    else:
        mean, std = heads.statistics(to_batch(data).x, data.weights)
        statistics = np.asarray(mean), np.asarray(std)
    sweeps, rows = [], None
    for name, head, grid, problem in _problems(plan, data, statistics):
        if rows is None:
            rows = parallel.place_rows(
                problem,
                devices=plan.config.train.devices,
                split=plan.config.train.split,
            )
        program = parallel.compile_sweep(
            problem,
            devices=plan.config.train.devices,
            split=plan.config.train.split,
            with_logits=_with_logits(plan),
            rows=rows,
        )
        sweeps.append(_Sweep(name, head, grid, problem, program, statistics))
    return sweeps


def _training_rows(plan: _Plan) -> Embeddings:
    """All rows to learn from: those without a label too, where some head does."""
    data = plan.data
    if data.unlabelled is None or not build.keeps_unlabelled(plan.config):
        return data.train
    return concatenate(data.train, data.unlabelled)


def _problems(
    plan: _Plan, data: Embeddings, statistics: tuple[np.ndarray, np.ndarray]
) -> Iterator[tuple[str, HeadConfig, list[dict[str, float]], parallel.Problem]]:
    """The name of each head, its settings, its grid, and the problem of training it."""
    train, val = to_batch(data, views=True), to_batch(plan.data.val)
    configs = plan.config.heads
    for name, head in zip(head_names(configs), configs, strict=True):
        grid = build.grid(plan.config, head, plan.batch_size)
        yield name, head, grid, _problem(plan, head, grid, train, val, statistics)


def _problem(
    plan: _Plan,
    head: HeadConfig,
    grid: list[dict[str, float]],
    train: Batch,
    val: Batch,
    statistics: tuple[np.ndarray, np.ndarray],
) -> parallel.Problem:
    config, data = plan.config, plan.data
    classes = len(data.class_names)

    def make_learner(hyperparameters: Any, statistics: Any, axis: str | None):
        return build.make_learner(
            config,
            head,
            task=data.task,
            classes=classes,
            steps=plan.steps,
            class_weights=plan.class_weights,
            hyperparameters=hyperparameters,
            statistics=statistics,
            axis=axis,
            class_counts=plan.class_counts,
            rows=len(train.labels),
        )

    def make_head(statistics: Any):
        return build.make_head(
            head, classes=classes, statistics=statistics, output=plan.output
        )

    standardized = head.normalization == "standardize"
    return parallel.Problem(
        make_learner=make_learner,
        make_head=make_head,
        output=plan.output,
        train=train,
        val=val,
        statistics=statistics if standardized else (),
        hyperparameters=build.swept(grid),
        seeds=np.array([one["seed"] for one in grid], np.uint32),
        order_seed=config.data.seed,
        batch_size=plan.batch_size,
        steps=plan.steps,
        patience=config.train.patience,
        unlabelled=build.unlabelled_rows(config, head, plan.batch_size),
        balanced=build.balanced_classes(config, classes),
        sharded=config.data.residency == "sharded",
        windows=plan.windows,
    )


def _windows(config: Config, x: Any) -> Windows | None:
    if config.data.residency != "streamed":
        return None
    asked = config.data.window_bytes
    row_bytes = x.nbytes // len(x)
    block = x.block if isinstance(x, Stored) else 0
    if block * row_bytes * 4 > asked:
        raise ValueError(
            f"data.window_bytes is {asked}, but the file's groups of up to {block} rows"
            f" can only be read as a whole, {block * row_bytes} bytes, and a window "
            "should have several; raise it, or write smaller groups (row_group_size)"
        )
    return make_windows(len(x), row_bytes=row_bytes, window_bytes=asked, block=block)


def _class_counts(data: Dataset) -> np.ndarray:
    """How many training rows each class has, or the sum of their weights."""
    labels, weights = data.train.labels, data.train.weights.astype(np.float64)
    if labels.ndim == 1:
        known = labels >= 0
        return np.bincount(labels[known], weights[known], len(data.class_names))
    return weights @ np.nan_to_num(labels)


def _class_weights(
    config: Config, names: tuple[str, ...], counts: np.ndarray
) -> np.ndarray | None:
    asked = config.loss.class_weights
    if asked == "none":
        return None
    if isinstance(asked, dict):
        unknown = sorted(set(asked) - set(names))
        if unknown:
            raise ValueError(
                f"loss.class_weights names {', '.join(map(repr, unknown))}, but the "
                f"classes are {', '.join(map(repr, names[:20]))}"
                + (", ..." if len(names) > 20 else "")
            )
        return np.array([asked.get(name, 1.0) for name in names], np.float32)
    if asked == "effective_number":
        beta = config.loss.effective_number_beta
        return np.asarray(losses.effective_number_weights(counts, beta))
    present = counts > 0
    # As scikit-learn's "balanced"; a class without rows weighs nothing anyway.
    balanced = np.where(present, counts.sum() / np.maximum(counts, 1e-12), 0)
    return (balanced / present.sum()).astype(np.float32)


def _introduction(plan: _Plan, sweeps: list[_Sweep], seconds: float) -> str:
    train = plan.data.train
    kinds = ", ".join(f"{len(sweep.grid)} {sweep.name}" for sweep in sweeps)
    shape = " x ".join(str(size) for size in train.x.shape)
    more = _unlabelled_too(plan)
    devices = plan.config.train.devices or jax.device_count()
    return (
        f"{shape} embeddings{more}, {len(plan.data.class_names)} classes; candidates: "
        f"{kinds}; {plan.steps} steps of {plan.batch_size} rows on {devices} "
        f"{jax.default_backend()} device{'s' if devices > 1 else ''}; compiled in "
        f"{seconds:.1f} s"
    )


# Training.


def _train(
    plan: _Plan,
    sweeps: list[_Sweep],
    workdir: AnyPath,
    display: Display,
    stopped: list[int],
) -> list[parallel.Progress]:
    """Trains all sweeps side by side and returns where they got to, on the host."""
    settings = plan.config.checkpoint
    manager = checkpoints.open_folder(workdir / "checkpoints", keep=settings.keep)
    log = _Log(workdir / "metrics.jsonl")
    progresses = [sweep.program.start() for sweep in sweeps]
    step = 0
    restored = checkpoints.restore(manager, _on_host(sweeps, progresses))
    if restored is not None:
        step, host = restored
        progresses = [
            sweep.program.from_host(one)
            for sweep, one in zip(sweeps, host, strict=True)
        ]
        display.say(f"resumed after step {step}")
    log.rewind(step)

    running = [
        _running(plan, sweep, progress, step)
        for sweep, progress in zip(sweeps, progresses, strict=True)
    ]
    saved_at, best, pace = time.monotonic(), _best(plan, sweeps, progresses), 0.0
    while step < plan.steps and any(running):
        boundary = next(at for at in plan.evaluate_at if at > step)
        # About a second of work, so that signals and the bar are never far.
        chunk = min(boundary - step, max(1, int(pace)) if pace else 64)
        # Sweeps take turns with what is streamed, so none runs ahead.
        chunk = min(chunk, sweeps[0].program.until(step) - step)
        clock = time.monotonic()
        for number, sweep in enumerate(sweeps):
            if running[number]:
                progresses[number] = sweep.program.train(
                    progresses[number], step, chunk
                )
                # One at a time: collectives of programs in flight together can starve
                # one another where devices share a host's threads.
                jax.block_until_ready(progresses[number].diverged_at)
        pace = chunk / max(time.monotonic() - clock, 1e-6)
        step += chunk
        if step == boundary:
            first = 0
            for number, sweep in enumerate(sweeps):
                if running[number]:
                    progresses[number] = _evaluate(
                        plan, sweep, progresses[number], step, first, log
                    )
                    running[number] = _running(plan, sweep, progresses[number], step)
                first += len(sweep.grid)
            best = _best(plan, sweeps, progresses)
        display.step(step, plan.steps, _shown(plan, best))
        last = step == plan.steps or not any(running)
        due = time.monotonic() - saved_at >= settings.every_seconds
        pace, due, stop = _agreed(pace, due, stopped[0] if stopped else 0)
        if due or last or stop:
            log.flush()
            checkpoints.save(manager, step, _on_host(sweeps, progresses), score=best)
            saved_at = time.monotonic()
        if stop:
            sweeps[0].program.close()
            checkpoints.close(manager)
            raise Interrupted(
                stop,
                f"after step {step}, which is saved; the same command with "
                f"--workdir={workdir} goes on from there",
            )
    sweeps[0].program.close()
    display.close()
    checkpoints.close(manager)
    return _on_host(sweeps, progresses)


def _agreed(pace: float, due: bool, stop: int) -> tuple[float, bool, int]:
    """What all processes go by: the first one's clock, and a signal to any of them."""
    said = processes.gather(np.array([pace, due, stop], np.float32))
    return float(said[0, 0]), bool(said[0, 1]), int(said[:, 2].max())


def _on_host(sweeps: list[_Sweep], progresses: list[Any]) -> list[parallel.Progress]:
    return [
        sweep.program.to_host(progress)
        for sweep, progress in zip(sweeps, progresses, strict=True)
    ]


def _evaluate(
    plan: _Plan,
    sweep: _Sweep,
    progress: Any,
    step: int,
    first: int,
    log: _Log,
) -> Any:
    """Scores every candidate on the validation rows and keeps those that got better."""
    sums, logits = sweep.program.evaluate(progress)
    scores = finish(sums)
    if logits is not None:
        val = plan.data.val
        scores[plan.metric] = np.array(
            [
                rank(plan.metric, one, val.labels, val.weights, output=plan.output)
                for one in logits
            ],
            np.float64,
        )
    values = np.asarray(scores[plan.metric], np.float64)
    signed = values if METRICS[plan.metric].greater_is_better else -values
    signed = np.where(np.isfinite(signed), signed, -np.inf)
    host_losses = sweep.program.to_host(progress.losses)
    slots = parallel.loss_slots(plan.steps)
    slot = slots[step - 1]
    steps_in_slot = np.sum(slots[:step] == slot)
    log.write(
        {
            "step": step,
            "candidate": first + number,
            "head": sweep.name,
            "loss": _number(host_losses[number, slot] / steps_in_slot),
            **{name: _number(value[number]) for name, value in scores.items()},
        }
        for number in range(len(sweep.grid))
    )
    return sweep.program.keep_best(progress, signed)


def _running(plan: _Plan, sweep: _Sweep, progress: Any, step: int) -> bool:
    """Whether any candidate can still get better, as of the last evaluation."""
    # Not as of now: a run resumed between evaluations would stop before the others do.
    evaluated = max((at for at in plan.evaluate_at if at <= step), default=0)
    diverged_at = sweep.program.to_host(progress.diverged_at)
    done = diverged = (diverged_at >= 0) & (diverged_at < evaluated)
    if plan.config.train.patience:
        stale = sweep.program.to_host(progress.stale)
        done = diverged | (stale >= plan.config.train.patience)
    return not done.all()


def _best(plan: _Plan, sweeps: list[_Sweep], progresses: list[Any]) -> float:
    """The best score so far, larger is better; very small before the first one."""
    scores = np.concatenate(
        [
            sweep.program.to_host(progress.best_score)
            for sweep, progress in zip(sweeps, progresses, strict=True)
        ]
    )
    return float(max(scores.max(), np.finfo(np.float32).min))


def _shown(plan: _Plan, score: float) -> str:
    if score <= np.finfo(np.float32).min:
        return ""
    shown = score if METRICS[plan.metric].greater_is_better else -score
    return f"best {plan.metric} {shown:.4f}"


# Comparing whole fits.


def _search(
    plan: _Plan,
    chosen_by: crossval.Pool,
    workdir: AnyPath,
    display: Display,
    stopped: list[int],
) -> dict[str, Any]:
    """Chooses among whole fits, and writes the winner's bundle and the pictures."""
    config, data = plan.config, plan.data
    question = _question(plan)

    def tick(done: int, total: int, best: str, unit: str) -> None:
        display.step(done, total, best, unit)
        _, _, stop = _agreed(0.0, False, stopped[0] if stopped else 0)
        if stop:
            raise Interrupted(
                stop,
                "before anything was chosen; the same command starts again",
            )

    display.say(_described_search(plan))
    clock = time.perf_counter()
    outcome = crossval.run(question, data, chosen_by, tick=tick)
    display.close()
    seconds = time.perf_counter() - clock
    found = outcome.found
    kept = ("val", "test", "test_looks", "corrected", "comparisons")
    metrics = {name: outcome.scores[name] for name in kept}
    won = found.candidates[found.selection.winner].hyperparameters
    chosen = _bundle(plan, found.head, won, found.params, found.statistics)
    described = [_described(one) for one in found.candidates]
    winner = found.selection.winner
    if processes.first():
        bundle.save(workdir / "head", _scored(chosen, metrics))
        log = "".join(json.dumps(one) + "\n" for one in described)
        write(workdir / "metrics.jsonl", log)
        choices(workdir / "curves.png", described, winner=winner, metric=plan.metric)
        if "learning_curve" in outcome.scores:
            learning_curve(
                workdir / "learning_curve.png",
                outcome.scores["learning_curve"],
                metric=plan.metric,
            )
    return {
        "selected": {
            **described[winner],
            "metric": plan.metric,
            "rule": config.selection.rule,
            "ranked": list(found.selection.ranked),
        },
        "candidates": described,
        **outcome.scores,
        "warnings": found.warnings,
        "data": data.notes,
        "timing": {
            "compile_seconds": outcome.compile_seconds,
            "run_seconds": seconds - outcome.compile_seconds,
        },
    }


def _question(plan: _Plan) -> Question:
    return Question(
        config=plan.config,
        classes=len(plan.data.class_names),
        task=plan.data.task,
        output=plan.output,
        metric=plan.metric,
        class_weights=plan.class_weights,
        class_counts=plan.class_counts,
    )


def _described_search(plan: _Plan) -> str:
    data, config = plan.data, plan.config
    shape = " x ".join(str(size) for size in data.train.x.shape)
    kinds = ", ".join(
        f"{len(build.grid(config, head, plan.batch_size))} {name}"
        for name, head in zip(head_names(config.heads), config.heads, strict=True)
    )
    by = "the validation rows"
    if config.selection.fold_by == "leave_one_out":
        by = "leaving one row out"
    elif build.by_folds(config):
        by = f"{config.selection.folds} folds of all of them"
        by += f", {config.selection.fold_by}"
    return (
        f"{shape} training embeddings{_unlabelled_too(plan)}, "
        f"{len(data.val.labels)} for validation, {len(data.class_names)} classes; "
        f"candidates: {kinds}; chosen by {by}"
    )


def _unlabelled_too(plan: _Plan) -> str:
    more = plan.data.unlabelled
    if more is None or not len(more.labels) or not build.keeps_unlabelled(plan.config):
        return ""
    return f" and {len(more.labels)} without a label"


class _Log:
    """`metrics.jsonl`: a line an evaluation and candidate, cut where a run resumes.

    A bucket takes about one version of an object a second, so lines wait there; those
    of a checkpoint have to be there before it is.
    """

    def __init__(self, path: AnyPath):
        self.path = path
        self.mine = processes.first()
        self.waiting = ""
        self.written_at = 0.0

    def rewind(self, step: int) -> None:
        """Drops the lines that the steps to come will write again."""
        if self.mine:
            kept = [line for line in self.read() if line["step"] <= step]
            write(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, lines: Iterator[dict[str, Any]]) -> None:
        if self.mine:
            self.waiting += "".join(json.dumps(line) + "\n" for line in lines)
            if is_local(self.path) or time.monotonic() - self.written_at > _LOG_SECONDS:
                self.flush()

    def flush(self) -> None:
        """Writes what waits."""
        if self.waiting:
            append(self.path, self.waiting)
            self.waiting, self.written_at = "", time.monotonic()

    def read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        try:
            lines = self.path.read_text().splitlines(True)
            return [json.loads(line) for line in lines if "\n" in line]
        except ValueError as error:
            raise ValueError(
                f"{self.path} can't be read ({error}); correct or delete that line"
            ) from error


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT, to stop at the end of a chunk instead of at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    stops = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(one, lambda n, _: received.append(n)) for one in stops]
    try:
        yield received
    finally:
        for one, handler in zip(stops, before, strict=True):
            signal.signal(one, handler)


# After training.


def _select(
    plan: _Plan, sweeps: list[_Sweep], progresses: list[parallel.Progress]
) -> tuple[list[Candidate], Selection]:
    sign = 1 if METRICS[plan.metric].greater_is_better else -1
    candidates = []
    for sweep, progress in zip(sweeps, progresses, strict=True):
        leaves = jax.tree.leaves(progress.best_params)
        size = sum(leaf[0].size for leaf in leaves)
        for number, hyperparameters in enumerate(sweep.grid):
            diverged = int(progress.diverged_at[number])
            candidates.append(
                Candidate(
                    index=len(candidates),
                    head=sweep.name,
                    hyperparameters=hyperparameters,
                    complexity=size,
                    score=sign * float(progress.best_score[number]),
                    standard_error=None,
                    best_step=int(progress.best_step[number]),
                    diverged_at=None if diverged < 0 else diverged,
                )
            )
    if plan.config.selection.rule == "one_standard_error":
        best = select(candidates, metric=plan.metric).winner
        trained = bundle.functions(_bundle_of(plan, sweeps, progresses, best))
        val = to_batch(plan.data.val)
        candidates[best] = dataclasses.replace(
            candidates[best],
            standard_error=standard_error(
                plan.metric,
                bundle.in_batches(trained.logits, val.x),
                val.labels,
                val.weights,
                output=plan.output,
            ),
        )
    rule = plan.config.selection.rule
    return candidates, select(candidates, metric=plan.metric, rule=rule)


def _bundle_of(
    plan: _Plan,
    sweeps: list[_Sweep],
    progresses: list[parallel.Progress],
    index: int,
) -> bundle.Bundle:
    """The head of one candidate."""
    for sweep, progress in zip(sweeps, progresses, strict=True):
        if index < len(sweep.grid):
            won, params = sweep.grid[index], _candidate(progress.best_params, index)
            return _bundle(plan, sweep.head, won, params, sweep.statistics)
        index -= len(sweep.grid)
    raise AssertionError("a candidate of no sweep")


def _candidate(tree: Any, index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _ship(
    plan: _Plan,
    sweeps: list[_Sweep],
    progresses: list[parallel.Progress],
    candidates: list[Candidate],
    selection: Selection,
    workdir: AnyPath,
) -> dict[str, Any]:
    """Evaluates the winner, on the test rows once, and writes its bundle and curves."""
    winner = candidates[selection.winner]
    chosen = _bundle_of(plan, sweeps, progresses, winner.index)
    trained = bundle.functions(chosen)

    def score(data: Embeddings) -> dict[str, Any]:
        batch, classes = to_batch(data), len(plan.data.class_names)
        logits: Any
        if batch.labels.ndim == 1 and len(batch.labels) * classes > _LOGITS_KEPT:
            most = max(1, _LOGITS_AT_ONCE // classes)
            logits = bundle.batches(trained.logits, batch.x, most=most)
        else:
            logits = bundle.in_batches(trained.logits, batch.x)
        return evaluate(
            logits,
            batch.labels,
            batch.weights,
            class_names=plan.data.class_names,
            output=plan.output,
        )

    metrics = {
        "val": score(plan.data.val),
        "test": score(plan.data.test) if len(plan.data.test.labels) else None,
        "test_looks": min(1, len(plan.data.test.labels)),
    }
    diverged = [one for one in candidates if one.diverged_at is not None]
    warnings = grid_edges(winner.index, candidates) + [
        f"candidate {one.index} ({one.head}, learning rate "
        f"{one.hyperparameters['learning_rate']:g}) diverged at step {one.diverged_at}"
        for one in diverged
    ]
    if processes.first():
        bundle.save(workdir / "head", _scored(chosen, metrics))
        _draw(plan, sweeps, progresses, candidates, winner.index, workdir)
    return {
        "selected": {
            **_described(winner),
            "metric": plan.metric,
            "rule": plan.config.selection.rule,
            "ranked": list(selection.ranked),
        },
        "candidates": [_described(one) for one in candidates],
        **metrics,
        "warnings": warnings,
        "data": plan.data.notes,
    }


def _described(candidate: Candidate) -> dict[str, Any]:
    return {
        **dataclasses.asdict(candidate),
        "score": _number(candidate.score),
    }


def _draw(
    plan: _Plan,
    sweeps: list[_Sweep],
    progresses: list[parallel.Progress],
    candidates: list[Candidate],
    winner: int,
    workdir: AnyPath,
) -> None:
    lines = _Log(workdir / "metrics.jsonl").read()
    losses = np.concatenate([progress.losses for progress in progresses])
    taken = np.concatenate([progress.state.step for progress in progresses])
    slots = parallel.loss_slots(plan.steps)
    histories = []
    for candidate in candidates:
        mine = [line for line in lines if line["candidate"] == candidate.index]
        steps = int(taken[candidate.index])
        counts = np.bincount(slots[:steps], minlength=slots[-1] + 1)
        seen = counts > 0
        ends = np.cumsum(counts)[seen]
        rate = candidate.hyperparameters["learning_rate"]
        scores = [line[plan.metric] for line in mine]
        histories.append(
            {
                "label": f"{candidate.head}, learning rate {rate:g}",
                "learning_rate": rate,
                "loss_steps": ends.tolist(),
                "loss": (losses[candidate.index][seen] / counts[seen]).tolist(),
                "metric_steps": [line["step"] for line in mine],
                "metric": [math.nan if one is None else one for one in scores],
                "diverged_at": candidate.diverged_at,
            }
        )
    curves(workdir / "curves.png", histories, winner=winner, metric=plan.metric)


def _number(value: Any) -> float | None:
    """A float that JSON has, or None."""
    return float(value) if np.isfinite(value) else None


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"
