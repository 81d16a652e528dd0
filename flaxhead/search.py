"""Whole fits compared on the rows that they did not see, and the winner fitted again.

A fold is a vector of row weights, so every candidate of a head is fitted on every fold
by one program; held-out rows are scored where they were fitted, and only sums, and one
number a row and candidate, leave the device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from flaxhead import build, heads, solvers, streamed
from flaxhead.base import Array, Batch, Params
from flaxhead.config import Config, DataConfig, HeadConfig
from flaxhead.data import Stored, feature_statistics, padded
from flaxhead.data.labels import unlabelled
from flaxhead.folds import lane_weights
from flaxhead.metrics import (
    METRICS,
    ROW_METRICS,
    Output,
    ScoreSums,
    auroc,
    average_precision,
    finish,
    row_scores,
    score_sums,
    standard_error,
)
from flaxhead.parallel import Shares
from flaxhead.selection import Candidate, Selection, grid_edges, select

Tick = Callable[[int, int, str, str], None]
"""`(done, total, text, unit)`, called between dispatches; it may raise to stop."""

RANKING = {"auroc": auroc, "average_precision": average_precision}
_LOGITS_AT_ONCE = 2**26
_LOGITS_KEPT = 2**24  # On the host, of one grid.
_EXTENDED = ("C", "alpha")
_EXTENSION = 3
_LIMITS = 1e-9, 1e9
_KEPT = 64
_TELLING = {
    field.name: field.default
    for field in fields(HeadConfig)
    if field.name not in {"dropout", *sum(build.SOLVED.values(), ())}
}
_PROGRAMS: dict[Any, list[Programs]] = {}


class Question(NamedTuple):
    """What is to be decided, apart from the rows.

    Attributes:
      config: all settings; its heads are the candidates.
      classes: the number of logits.
      task: `multiclass` or `multilabel`.
      output: `softmax` or `sigmoid`.
      metric: the name in `METRICS` to choose by.
      class_weights: `[classes]`, or None.
      class_counts: `[classes]`, rows of each, for the losses that go by them.
    """

    config: Config
    classes: int
    task: str
    output: Output
    metric: str
    class_weights: np.ndarray | None
    class_counts: np.ndarray | None = None


class Found(NamedTuple):
    """The outcome of a search.

    Attributes:
      candidates: all that was tried, in order.
      selection: the winner among them.
      head: the settings of the winner's head.
      params: the winner's parameters: fitted again on all rows if the settings say so.
      statistics: `(mean, std)` of the rows, `[dim]` each.
      held: `bool [rows]`, rows that some fold held out.
      logits: `() -> [rows, classes]`, the winner's for those rows, from fits without
        them; computed when it is called.
      totals: `[candidates, rows]`, what each row adds to the metric, by the fit without
        it; None for a metric that is no mean over rows.
      counts: `[rows]`, what each row counts in that mean.
      warnings: sentences on grids whose edge won and on fits that did not converge.
    """

    candidates: list[Candidate]
    selection: Selection
    head: HeadConfig
    params: Params
    statistics: tuple[np.ndarray, np.ndarray]
    held: np.ndarray
    logits: Callable[[], np.ndarray]
    totals: np.ndarray | None
    counts: np.ndarray
    warnings: list[str]


class Programs(NamedTuple):
    """What is compiled for one head; a search on other rows of a shape uses it again.

    Attributes:
      name: of the head, unique within a search.
      config: its settings.
      shares: the devices that it runs on.
      prepare: `(x, statistics) -> x`, what its parameters see.
      score_fits: `(data, weights, held, hyperparameters, seeds) -> scores`.
      fit_one: `(data, weights, hyperparameters, seed) -> params`.
      predict_one: `(data, weights, held, hyperparameters, seed) -> logits`, of a fit.
      apply: `(params, held) -> logits`.
      path: the pieces of a path of solutions, or None.
      score_path: `(params, lane, held) -> scores`, params `[candidates, lanes, ...]`.
      streamed: the solver over rows that are read part by part, or None.
    """

    name: str
    config: HeadConfig
    shares: Shares
    prepare: Callable[..., Any]
    score_fits: Callable[..., Any]
    fit_one: Callable[..., Any]
    predict_one: Callable[..., Any]
    apply: Callable[..., Any]
    path: Any
    score_path: Callable[..., Any]
    streamed: streamed.Streamed | None


class _Scores(NamedTuple):
    """Of every candidate, over the rows held out in one lane."""

    sums: ScoreSums
    total: Any  # [candidates, rows]
    count: Any  # [candidates, rows]
    logits: Any  # [candidates, rows, classes], or ()


class _Lane(NamedTuple):
    """One fold: what it trains on and what it holds out."""

    weights: Any  # placed
    held: Any  # placed Batch, padded
    numbers: np.ndarray  # of the held-out rows


class _Pool(NamedTuple):
    """The rows of one search as one head's programs want them, placed."""

    data: Any
    lanes: list[_Lane]
    everything: Any  # the weights of a fit on all rows
    stacked: Any  # weights [rows, lanes + 1], the last lane on all rows


class _Parts(NamedTuple):
    """The rows of one search that are read part by part."""

    statistics: tuple[np.ndarray, np.ndarray]
    fold: np.ndarray
    size: int  # rows of a part
    held: int  # rows of a lane that are scored at once


class _Evaluated(NamedTuple):
    """The candidates of one grid, scored.

    Attributes:
      scores: `[candidates]`, of the metric.
      totals: `[candidates, rows]`, 0 where not held out or no mean over rows.
      counts: `[rows]`.
      info: of every candidate, what its solver says.
      params: `(candidate, lane) -> params`; lane -1 is the fit on all rows.
      logits: `(candidate, lane) -> [held rows, classes]`.
    """

    scores: np.ndarray
    totals: np.ndarray
    counts: np.ndarray
    info: list[dict[str, Any] | None]
    params: Callable[[int, int], Params]
    logits: Callable[[int, int], np.ndarray]


def programs(question: Question, *, rows: int) -> list[Programs]:
    """Builds what a search compiles, one entry a head; the latest few are kept.

    So a second search on rows of the same shapes compiles nothing, whatever values of
    the hyperparameters it tries. Rows are not kept.

    Args:
      question: what is to be decided.
      rows: how many there are, from which the steps of gradient descent follow.
    """
    config = question.config
    arrays = question.class_weights, question.class_counts
    bare = replace(
        config,
        data=DataConfig(views=config.data.views),
        heads=tuple(map(build.structure, config.heads)),
        loss=replace(config.loss, label_smoothing=(), logit_adjustment=()),
        consistency=replace(config.consistency, weight=()),
        optimizer=replace(config.optimizer, learning_rate=(), weight_decay=()),
        train=replace(config.train, seeds=()),
    )
    key = (
        repr(question._replace(config=bare, class_weights=None, class_counts=None)),
        *(None if one is None else one.tobytes() for one in arrays),
        rows,
    )
    # The latest used is the last.
    kept = _PROGRAMS.pop(key, None) or build_programs(
        question._replace(config=bare), rows
    )
    _PROGRAMS[key] = kept
    while len(_PROGRAMS) > _KEPT:
        _PROGRAMS.pop(next(iter(_PROGRAMS)))
    return [
        one._replace(config=head) for one, head in zip(kept, config.heads, strict=True)
    ]


def build_programs(
    question: Question, rows: int, devices: Sequence[Any] | None = None
) -> list[Programs]:
    """As `programs`, and keeps none.

    Args:
      question: what is to be decided.
      rows: how many there are.
      devices: to compile for, and not to run; None: those that the settings name.
    """
    asked = question.config.train.devices
    shared = Shares(asked if devices is None else devices)
    # A minibatch is drawn from all rows, and a graph joins them: they stay together.
    alone = shared
    if shared.devices > 1:
        alone = Shares(repeated=True) if devices is None else Shares(devices[:1])
    configs = question.config.heads
    return [
        _programs(
            question, name, head, rows, shared if build.one_solution(head) else alone
        )
        for name, head in zip(head_names(configs), configs, strict=True)
    ]


def head_names(configs: tuple[HeadConfig, ...]) -> list[str]:
    """A name for each head, unique within the run.

    Heads of one kind are told apart by what each sets that the others don't, and by
    their number where that leaves them alike. What is swept is told elsewhere.

    >>> head_names((HeadConfig(), HeadConfig(pool="query", pool_queries=8)))
    ['linear', 'linear-query-pool_queries=8']
    """
    kinds = [
        f"mlp-{head.width}x{head.depth}" if head.name == "mlp" else head.name
        for head in configs
    ]

    def full_name(head: HeadConfig, kind: str) -> str:
        alike = [one for one, its in zip(configs, kinds, strict=True) if its == kind]
        for name, default in _TELLING.items():
            value = getattr(head, name)
            if value != default and any(getattr(one, name) != value for one in alike):
                kind += f"-{value}" if isinstance(value, str) else f"-{name}={value}"
        return kind.replace(" ", "")

    names = list(map(full_name, configs, kinds))
    return [
        name if names.count(name) == 1 else f"{name}#{number}"
        for number, name in enumerate(names)
    ]


def _programs(
    question: Question, name: str, head: HeadConfig, rows: int, shares: Shares
) -> Programs:
    made = build.bare_head(head, classes=question.classes, output=question.output)
    axis = shares.axis
    fit = build.make_fit(
        question.config,
        head,
        task=question.task,
        classes=question.classes,
        rows=rows,
        class_weights=question.class_weights,
        axis=axis,
        class_counts=question.class_counts,
    )

    def prepare(x: Any, statistics: Any) -> Array:
        return build.features(head, statistics)(x)

    def fit_one(data: Batch, weights: Array, hyperparameters: Any, seed: Array) -> Any:
        return fit(data, weights, hyperparameters, jax.random.key(seed))

    def apply(params: Params, held: Batch) -> Array:
        return made.apply(params, held.x)

    def predict_one(
        data: Batch, weights: Array, held: Batch, hyperparameters: Any, seed: Array
    ) -> Array:
        return apply(fit_one(data, weights, hyperparameters, seed), held)

    def score_fits(
        data: Batch, weights: Array, held: Batch, hyperparameters: Any, seeds: Array
    ) -> _Scores:
        def one(hyperparameters: Any, seed: Array) -> _Scores:
            logits = predict_one(data, weights, held, hyperparameters, seed)
            return _score(question, logits, held, axis)._replace(logits=logits)

        return jax.vmap(one)(hyperparameters, seeds)

    def score_path(params: Params, lane: Array, held: Batch) -> _Scores:
        def one(params: Params) -> _Scores:
            return _score(question, apply(params, held), held, axis)

        return jax.lax.map(one, jax.tree.map(lambda leaf: leaf[:, lane], params))

    if question.config.selection.fold_by == "leave_one_out":
        predict_one, score_fits = _leave_one_out(question, axis)
    path = None
    if head.name == "logistic" and build.one_solution(head):
        path = solvers.logistic_pieces(
            question.classes,
            output=question.output,
            tolerance=head.tolerance,
            # A candidate is not solved beyond what shows in its predictions.
            floor=math.log(question.classes if question.output == "softmax" else 2),
            class_weights=question.class_weights,
            axis=axis,
        )
        passes = path.passes
    else:
        passes = build.make_passes(
            head,
            output=question.output,
            classes=question.classes,
            class_weights=question.class_weights,
            axis=axis,
        )
    return Programs(
        name,
        head,
        shares,
        prepare,
        score_fits,
        fit_one,
        predict_one,
        apply,
        path,
        score_path,
        None if passes is None else streamed.streamed(passes),
    )


def _leave_one_out(question: Question, axis: str | None) -> tuple[Any, Any]:
    """`predict_one` and `score_fits` of ridge, each row predicted without itself."""

    def fit(keep: Callable[[Array], Any]) -> Any:
        return solvers.ridge_leave_one_out(
            question.classes,
            output=question.output,
            class_weights=question.class_weights,
            axis=axis,
            keep=keep,
        )

    def predict_one(
        data: Batch, weights: Array, held: Batch, hyperparameters: Any, seed: Array
    ) -> Array:
        del held, seed
        key = jax.random.key(0)  # nothing is random
        return fit(lambda logits: logits)(data, weights, hyperparameters, key)[1]

    def score_fits(
        data: Batch, weights: Array, held: Batch, hyperparameters: Any, seeds: Array
    ) -> _Scores:
        del seeds
        key = jax.random.key(0)
        solve = fit(lambda logits: _score(question, logits, held, axis))
        return solve(data, weights, hyperparameters, key)[1]

    return predict_one, score_fits


def _score(question: Question, logits: Array, held: Batch, axis: str | None) -> _Scores:
    output, metric = question.output, question.metric
    sums = score_sums(logits, held.labels, held.weights, output=output)
    total = count = jnp.zeros(held.weights.shape)
    if metric in ROW_METRICS:
        total, count = row_scores(metric, logits, held.labels, output=output)
    kept = logits if metric in RANKING else ()
    return _Scores(jax.lax.psum(sums, axis) if axis else sums, total, count, kept)


def search(
    question: Question,
    rows: Batch,
    fold: np.ndarray,
    *,
    folds: int,
    programs: list[Programs],
    tick: Tick = lambda *_: None,
) -> Found:
    """Fits every candidate without each fold, chooses by the held-out rows, fits again.

    Input statistics are those of all the rows given, without their labels.

    Args:
      question: what is to be decided.
      rows: all rows to train on and to choose by, in host memory; with `data.views`, x
        is `[rows, views, dim]`.
      fold: `int32 [rows]`, the fold that holds a row out. -1: the row is absent;
        `folds` or more: it is in every fit. By leave-one-out every present row is held
        out.
      folds: how many there are.
      programs: from `programs`, for as many rows.
      tick: told how far it is.

    Raises:
      ValueError: where no candidate can win.
    """
    rows = rows._replace(weights=rows.weights * (fold >= 0).astype(np.float32))
    read = isinstance(rows.x, Stored)
    x = scored(question, rows).x
    mean, std = (
        feature_statistics(rows.x, np.asarray(rows.weights))
        if read
        else map(np.asarray, heads.statistics(x, rows.weights))
    )
    place = _read_pool if read else _pool
    pools = [place(question, one, rows, fold, folds, (mean, std)) for one in programs]
    batch = min(question.config.train.batch_size, len(rows.labels))
    grids = [build.grid(question.config, one.config, batch) for one in programs]
    expected = sum(len(grid) for grid in grids)
    candidates: list[Candidate] = []
    origins: list[tuple[int, _Evaluated, int]] = []  # head, its grid, place in the grid

    def best() -> str:
        scores = [one.score for one in candidates if math.isfinite(one.score)]
        if not scores:
            return ""
        greater = METRICS[question.metric].greater_is_better
        return f"best {question.metric} {max(scores) if greater else min(scores):.4f}"

    def add(number: int, grid: list[dict[str, float]]) -> None:
        """Evaluates more candidates of one head."""
        before = len(candidates)
        whole = max(expected, before + len(grid))

        def progress(share: float) -> None:
            if share < 1:
                tick(before + int(share * len(grid)), whole, best(), "candidates")

        one, pool = programs[number], pools[number]
        evaluate = _evaluate_fits if one.path is None else _evaluate_path
        evaluate = _evaluate_parts if read else evaluate
        evaluated = evaluate(question, one, pool, grid, rows, progress)
        for place, hyperparameters in enumerate(grid):
            candidates.append(
                Candidate(
                    index=len(candidates),
                    head=one.name,
                    hyperparameters=hyperparameters,
                    complexity=_complexity(one.config),
                    score=float(evaluated.scores[place]),
                    standard_error=_standard_error(evaluated, place, rows.weights),
                    best_step=0,
                    diverged_at=None,
                    solver=evaluated.info[place],
                )
            )
            origins.append((number, evaluated, place))
        tick(before + len(grid), whole, best(), "candidates")

    def choose() -> Selection:
        metric, rule = question.metric, question.config.selection.rule
        if rule == "one_standard_error" and metric not in ROW_METRICS:
            best = select(candidates, metric=metric).winner
            number, evaluated, place = origins[best]
            error = standard_error(
                metric,
                _held_logits(question, pools[number], evaluated, place, len(fold)),
                rows.labels,
                rows.weights * (fold < max(folds, 1)),
                output=question.output,
            )
            candidates[best] = replace(candidates[best], standard_error=error)
        return select(candidates, metric=metric, rule=rule)

    for number, grid in enumerate(grids):
        add(number, grid)
    selection = choose()
    for _ in range(question.config.selection.extend):
        more = _beyond(selection.winner, candidates)
        if not more:
            break
        add(origins[selection.winner][0], more)
        selection = choose()

    number, evaluated, place = origins[selection.winner]
    again = question.config.selection.refit or len(pools[number].lanes) > 1
    totals = None
    if question.metric in ROW_METRICS:
        totals = np.stack([grid.totals[place] for _, grid, place in origins])
    return Found(
        candidates=candidates,
        selection=selection,
        head=programs[number].config,
        params=evaluated.params(place, -1 if again else 0),
        statistics=(mean, std),
        held=(fold >= 0) & (fold < max(folds, 1)),
        logits=lambda: _held_logits(
            question, pools[number], evaluated, place, len(fold)
        ),
        totals=totals,
        counts=evaluated.counts,
        warnings=_warnings(selection.winner, candidates),
    )


def fit_default(question: Question, rows: Batch, *, programs: list[Programs]) -> Found:
    """Fits the first head with the middle of its grid: nothing is chosen.

    Args:
      question: what would be decided.
      rows: all rows, in host memory, as for `search`; those of weight 0 are absent.
      programs: from `programs`, for as many rows.
    """
    one = programs[0]
    grid = build.grid(question.config, one.config, len(rows.labels))
    middle = grid[len(grid) // 2]
    given = heads.statistics(scored(question, rows).x, rows.weights)
    statistics = np.asarray(given[0]), np.asarray(given[1])
    columns, seeds = _columns(one.config, [middle])
    mine = {name: column[0] for name, column in columns.items()}
    shares = one.shares
    params = shares.call(
        one.fit_one,
        _place(one, _learned(question, one, rows), statistics),
        shares.rows(np.ones(len(rows.labels), np.float32)),
        *shares.everywhere((mine, seeds[0])),
    )
    nothing = np.zeros(len(rows.labels), np.float32)
    candidate = Candidate(
        0, one.name, middle, _complexity(one.config), math.nan, None, 0, None
    )
    return Found(
        candidates=[candidate],
        selection=Selection(0, [0]),
        head=one.config,
        params=shares.first(params),
        statistics=statistics,
        held=nothing > 0,
        logits=lambda: np.zeros((len(nothing), question.classes), np.float32),
        totals=None,
        counts=nothing,
        warnings=[],
    )


def compile_only(
    question: Question, rows: Batch, fold: np.ndarray, *, folds: int, one: Programs
) -> None:
    """Compiles what `search` would run for one head, on shares that are abstract."""
    shares = one.shares
    # Of tokens the first leaf is their values, the second a mask.
    nothing = np.zeros(jax.tree.leaves(rows.x)[0].shape[-1], np.float32)
    pool = _pool(question, one, rows, fold, folds, (nothing, nothing))
    grid = build.grid(
        question.config,
        one.config,
        min(question.config.train.batch_size, len(rows.labels)),
    )
    columns, seeds = _columns(one.config, grid)
    lane = pool.lanes[0]
    if one.path is None:
        block = _block(question, pool, len(grid))
        columns = {name: column[:block] for name, column in columns.items()}
        settings = shares.everywhere((columns, seeds[:block]))
        shares.call(one.score_fits, pool.data, lane.weights, lane.held, *settings)
        return
    strengths = shares.everywhere(columns["C"])
    state = shares.call(one.path.start, pool.data, pool.stacked, strengths)
    state = shares.call(
        one.path.advance, state, pool.data, pool.stacked, strengths, np.int32(64)
    )
    solved, _ = shares.call(one.path.solution, state)
    shares.call(one.score_path, solved, np.int32(0), lane.held)


def predict(found: Found, rows: Batch, *, programs: list[Programs]) -> np.ndarray:
    """Returns the winner's logits `[rows, classes]` of other rows, as `scored`."""
    one = next(one for one in programs if one.config == found.head)
    params = one.shares.everywhere(found.params)

    def logits(rows: Batch, count: int) -> np.ndarray:
        placed = _place(one, rows, found.statistics)
        return one.shares.whole(one.shares.call(one.apply, params, placed), count)

    count = len(rows.labels)
    if not isinstance(rows.x, Stored):
        return logits(rows, count)
    size = streamed.piece_rows(rows.x)
    parts = streamed.pieces_of(rows, size)()
    return np.concatenate([logits(part, size) for part in parts])[:count]


def scored(question: Question, rows: Batch) -> Batch:
    """Returns rows as heads predict them: view 0, where there are several."""
    return rows._replace(x=rows.x[:, 0]) if question.config.data.views else rows


def _learned(question: Question, one: Programs, rows: Batch) -> Batch:
    """Returns rows as one head learns from them."""
    every = build.sees_views(question.config, one.config)
    return rows if every else scored(question, rows)


def _place(
    one: Programs, rows: Batch, statistics: tuple[np.ndarray, np.ndarray]
) -> Any:
    """Places rows as the parameters of one head see them."""
    placed = one.shares.rows(rows)
    if build.untouched(one.config):
        return placed
    given = one.shares.everywhere(statistics)
    return placed._replace(x=one.shares.call(one.prepare, placed.x, given))


def _pool(
    question: Question,
    one: Programs,
    rows: Batch,
    fold: np.ndarray,
    folds: int,
    statistics: tuple[np.ndarray, np.ndarray],
) -> _Pool:
    """Places the rows, and each fold's, as the parameters of one head see them."""
    shares = one.shares
    chosen = np.arange(len(fold))
    if build.one_solution(one.config) and build.keeps_unlabelled(question.config):
        # The rows without a label are for other heads.
        chosen = np.flatnonzero((fold >= 0) & ~unlabelled(np.asarray(rows.labels)))
        room = _roomy(len(chosen))
        rows = padded(jax.tree.map(lambda leaf: leaf[chosen], rows), room)
        fold = np.concatenate([fold[chosen], np.full(room - len(chosen), -1)])
    data = _place(one, _learned(question, one, rows), statistics)
    everything = shares.rows((fold >= 0).astype(np.float32))
    if question.config.selection.fold_by == "leave_one_out":
        lanes = [_Lane(everything, data, np.flatnonzero(fold >= -1))]
        return _Pool(data, lanes, everything, None)
    weights = lane_weights(fold, folds, refit=True)
    # Folds of one size, so that one program serves all; some room, so that it also
    # serves the next search on about as many.
    held_rows = [int((fold == lane).sum()) for lane in range(folds)]
    largest = _roomy(max(held_rows))
    lanes, predicted = [], scored(question, rows)
    for lane in range(folds):
        index = np.flatnonzero(fold == lane)
        held = jax.tree.map(lambda leaf, of=index: leaf[of], predicted)
        held = padded(held, largest)
        lanes.append(
            _Lane(
                shares.rows(weights[:, lane]),
                _place(one, held, statistics),
                chosen[index],
            )
        )
    return _Pool(data, lanes, everything, shares.rows(weights))


def _read_pool(
    question: Question,
    one: Programs,
    rows: Batch,
    fold: np.ndarray,
    folds: int,
    statistics: tuple[np.ndarray, np.ndarray],
) -> _Pool:
    """As `_pool`, of rows that are read when they are wanted."""
    del question
    assert one.streamed is not None, "build.check refuses the others"
    size = streamed.piece_rows(rows.x)
    # A part has about as many rows of each fold.
    held = min(size, _roomy(math.ceil(1.25 * size / folds)))
    lanes = [_Lane(None, None, np.flatnonzero(fold == lane)) for lane in range(folds)]
    weights = lane_weights(fold, folds, refit=True)
    return _Pool(_Parts(statistics, fold, size, held), lanes, None, weights)


def _roomy(rows: int) -> int:
    return -(-rows // 64) * 64


def _evaluate_fits(
    question: Question,
    one: Programs,
    pool: _Pool,
    grid: list[dict[str, float]],
    rows: Batch,
    progress: Callable[[float], None],
) -> _Evaluated:
    """Scores candidates that are fitted one by one, or side by side under vmap."""
    shares = one.shares
    columns, seeds = _columns(one.config, grid)
    block = _block(question, pool, len(grid))
    # To fit again costs more than to keep what is small; rows left out one by one have
    # no logits here.
    every = question.config.selection.fold_by != "leave_one_out"
    collect = _Collect(question, len(grid), rows, every=every)
    done, calls = 0, len(range(0, len(grid), block)) * len(pool.lanes)
    for first in range(0, len(grid), block):
        # The last block is filled up with its last candidate: one shape.
        part = np.minimum(np.arange(first, first + block), len(grid) - 1)
        hyperparameters = {name: column[part] for name, column in columns.items()}
        settings = shares.everywhere((hyperparameters, seeds[part]))
        for lane in pool.lanes:
            scores = shares.call(
                one.score_fits, pool.data, lane.weights, lane.held, *settings
            )
            collect.add(shares, scores, lane.numbers, first)
            done += 1
            progress(done / calls)

    def settings_of(place: int) -> Any:
        mine = {name: column[place] for name, column in columns.items()}
        return shares.everywhere((mine, seeds[place]))

    def params(place: int, lane: int) -> Params:
        weights = pool.everything if lane < 0 else pool.lanes[lane].weights
        return shares.first(
            shares.call(one.fit_one, pool.data, weights, *settings_of(place))
        )

    def logits(place: int, lane: int) -> np.ndarray:
        mine = pool.lanes[lane]
        if collect.logits is not None:
            return collect.logits[place, mine.numbers]
        out = shares.call(
            one.predict_one, pool.data, mine.weights, mine.held, *settings_of(place)
        )
        return shares.whole(out, len(mine.numbers))

    return collect.finish([None] * len(grid), params, logits)


def _block(question: Question, pool: _Pool, candidates: int) -> int:
    """How many candidates are fitted side by side: their logits must fit."""
    if question.config.selection.fold_by == "leave_one_out":
        return candidates
    held = max(len(lane.numbers) for lane in pool.lanes)
    most = max(1, _LOGITS_AT_ONCE // (held * question.classes))
    return -(-candidates // -(-candidates // most))


def _evaluate_path(
    question: Question,
    one: Programs,
    pool: _Pool,
    grid: list[dict[str, float]],
    rows: Batch,
    progress: Callable[[float], None],
) -> _Evaluated:
    """Scores candidates that are solved one from another, all folds side by side."""
    shares, path = one.shares, one.path
    columns, _ = _columns(one.config, grid)
    strengths = shares.everywhere(columns["C"])
    state = shares.call(path.start, pool.data, pool.stacked, strengths)
    while True:
        state = shares.call(
            path.advance, state, pool.data, pool.stacked, strengths, np.int32(64)
        )
        share = float(shares.first(shares.call(path.share, state)))
        progress(share)
        if share >= 1:
            break
    solved, info = shares.call(path.solution, state)
    info = shares.first(info)
    collect = _Collect(question, len(grid), rows)
    for number, lane in enumerate(pool.lanes):
        scores = shares.call(one.score_path, solved, np.int32(number), lane.held)
        collect.add(shares, scores, lane.numbers, 0)
    solved_here = shares.first(solved)

    def params(place: int, lane: int) -> Params:
        return jax.tree.map(lambda leaf: leaf[place, lane], solved_here)

    def logits(place: int, lane: int) -> np.ndarray:
        mine = shares.everywhere(params(place, lane))
        held = pool.lanes[lane]
        return shares.whole(shares.call(one.apply, mine, held.held), len(held.numbers))

    return collect.finish(_told(info, len(grid)), params, logits)


def _evaluate_parts(
    question: Question,
    one: Programs,
    pool: _Pool,
    grid: list[dict[str, float]],
    rows: Batch,
    progress: Callable[[float], None],
) -> _Evaluated:
    """Scores candidates of a solver that sees the rows part by part."""
    shares, parts = one.shares, pool.data
    columns, _ = _columns(one.config, grid)
    pieces = streamed.pieces_of(rows, parts.size)
    solved, info = streamed.solve(
        cast(streamed.Streamed, one.streamed),
        shares,
        lambda: ((part, streamed.of_rows(pool.stacked, part)) for part in pieces()),
        shares.everywhere(columns),
        place=lambda part: (
            _place(one, part[0], parts.statistics),
            shares.rows(part[1]),
        ),
        progress=progress,
    )
    info, solved_here = shares.first(info), shares.first(solved)

    def held_out() -> Iterator[tuple[int, np.ndarray, Any]]:
        """Of each part the rows of each lane: their numbers, and themselves, placed."""
        for part in pieces():
            if jax.process_count() == 1:
                part = part._replace(x=part.x[:])  # once for all lanes
            numbers, there = np.asarray(part.index), np.asarray(part.weights) > 0
            for lane in range(len(pool.lanes)):
                mine = np.flatnonzero(there & (parts.fold[numbers] == lane))
                for first in range(0, len(mine), parts.held):
                    index = mine[first : first + parts.held]
                    held = streamed.some_rows(part, index, parts.held)
                    yield lane, numbers[index], _place(one, held, parts.statistics)

    collect = _Collect(question, len(grid), rows)
    for lane, numbers, held in held_out():
        scores = shares.call(one.score_path, solved, np.int32(lane), held)
        collect.add(shares, scores, numbers, 0)

    def params(place: int, lane: int) -> Params:
        return jax.tree.map(lambda leaf: leaf[place, lane], solved_here)

    @functools.lru_cache(maxsize=1)
    def all_logits(place: int) -> np.ndarray:
        found = np.zeros((len(rows.labels), question.classes), np.float32)
        own = [
            shares.everywhere(params(place, lane)) for lane in range(len(pool.lanes))
        ]
        for lane, numbers, held in held_out():
            logits = shares.call(one.apply, own[lane], held)
            found[numbers] = shares.whole(logits, len(numbers))
        return found

    def logits(place: int, lane: int) -> np.ndarray:
        return all_logits(place)[pool.lanes[lane].numbers]

    return collect.finish(_told(info, len(grid)), params, logits)


def _told(info: Any, candidates: int) -> list[dict[str, Any] | None]:
    """What a solver says of the fits to all rows, the last lane."""
    if info is None:
        return [None] * candidates
    return [
        {name: one[place, -1].item() for name, one in info._asdict().items()}
        for place in range(candidates)
    ]


class _Collect:
    """Puts together what the lanes say of a grid's candidates, on the host."""

    def __init__(
        self, question: Question, candidates: int, rows: Batch, *, every: bool = False
    ):
        count = len(rows.labels)
        self.question, self.rows = question, rows
        self.sums: dict[int, Any] = {}  # by the first candidate of a block
        self.totals = np.zeros((candidates, count), np.float32)
        self.counts = np.zeros(count, np.float32)
        self.held = np.zeros(count, bool)
        self.logits = None
        shape = candidates, count, question.classes
        if question.metric in RANKING or (every and math.prod(shape) <= _LOGITS_KEPT):
            self.logits = np.zeros(shape, np.float32)

    def add(
        self, shares: Shares, scores: _Scores, index: np.ndarray, first: int
    ) -> None:
        """Takes the scores of one lane and of a block of candidates."""
        # The sums over parts may count more than float32 can.
        sums = jax.tree.map(
            lambda leaf: leaf.astype(np.float64), shares.first(scores.sums)
        )
        before = self.sums.get(first)
        self.sums[first] = (
            sums if before is None else jax.tree.map(np.add, before, sums)
        )
        total, count = shares.whole((scores.total, scores.count), len(index), axis=1)
        block = slice(first, min(first + len(total), len(self.totals)))
        size = block.stop - first
        self.totals[block, index] = total[:size]
        self.counts[index] = count[0]
        self.held[index] = True
        if self.logits is not None:
            logits = shares.whole(scores.logits, len(index), axis=1)
            self.logits[block, index] = logits[:size]

    def finish(self, info: Any, params: Any, logits: Any) -> _Evaluated:
        """Divides, once."""
        question = self.question
        blocks = [self.sums[first] for first in sorted(self.sums)]
        sums = jax.tree.map(lambda *leaves: np.concatenate(leaves), *blocks)
        if question.metric not in RANKING or self.logits is None:
            scores = np.asarray(finish(sums)[question.metric])[: len(self.totals)]
        else:
            labels, weights = self.rows.labels[self.held], self.rows.weights[self.held]
            scores = np.array(
                [
                    rank(
                        question.metric,
                        one[self.held],
                        labels,
                        weights,
                        output=question.output,
                    )
                    for one in self.logits
                ]
            )
        return _Evaluated(scores, self.totals, self.counts, info, params, logits)


def rank(
    metric: str, logits: np.ndarray, labels: Any, weights: Any, *, output: Output
) -> float:
    """A metric of `RANKING`, of all rows at once; NaN for logits that aren't finite."""
    if not np.isfinite(logits).all():
        return math.nan
    softmax = output == "softmax"
    probabilities = jax.nn.softmax(logits) if softmax else jax.nn.sigmoid(logits)
    return RANKING[metric](np.asarray(probabilities), labels, weights)


def _columns(
    config: HeadConfig, grid: list[dict[str, float]]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The hyperparameters as arrays, and the seeds."""
    seeds = np.array([one.get("seed", 0) for one in grid], np.uint32)
    if config.name in build.SOLVED:
        names = grid[0]
        return {
            name: np.array([one[name] for one in grid], np.float32) for name in names
        }, seeds
    return build.swept(grid), seeds


def _held_logits(
    question: Question, pool: _Pool, evaluated: _Evaluated, place: int, rows: int
) -> np.ndarray:
    """One candidate's logits of every held-out row; 0 where none held it out."""
    logits = np.zeros((rows, question.classes), np.float32)
    for number, lane in enumerate(pool.lanes):
        logits[lane.numbers] = evaluated.logits(place, number)
    return logits


def _complexity(config: HeadConfig) -> int:
    order = build.SIMPLICITY
    return order.index(config.name) if config.name in order else len(order)


def _standard_error(evaluated: _Evaluated, place: int, weights: Any) -> float | None:
    """Of a weighted mean over rows, by the spread about it; None for other metrics."""
    weights = np.asarray(weights, np.float64)
    count = weights @ evaluated.counts
    if not count:
        return None
    total = evaluated.totals[place]
    residual = weights * (total - evaluated.scores[place] * evaluated.counts)
    return float(np.sqrt(residual @ residual) / count)


def _beyond(winner: int, candidates: list[Candidate]) -> list[dict[str, float]]:
    """Candidates past the edge that the winner lies on, in the grid's own ratio."""
    best = candidates[winner]
    for name in _EXTENDED:
        if name not in best.hyperparameters:
            continue
        own = [one for one in candidates if one.head == best.head]
        tried = sorted({one.hyperparameters[name] for one in own})
        value = best.hyperparameters[name]
        if len(tried) < 2 or value not in (tried[0], tried[-1]):
            continue
        ratio = tried[1] / tried[0] if value == tried[0] else tried[-1] / tried[-2]
        power = range(-_EXTENSION, 0) if value == tried[0] else range(1, 1 + _EXTENSION)
        more = [value * ratio**step for step in power]
        return [
            {**best.hyperparameters, name: one}
            for one in more
            if _LIMITS[0] <= one <= _LIMITS[1]
        ]
    return []


def _warnings(winner: int, candidates: list[Candidate]) -> list[str]:
    unsolved = [
        f"candidate {one.index} ({one.head}, C {one.hyperparameters['C']:g}) stopped "
        f"after {one.solver['iterations']} iterations at a gradient norm of "
        f"{one.solver['gradient_norm']:.2g}"
        for one in candidates
        if one.solver and not one.solver["converged"]
    ]
    return grid_edges(winner, candidates) + unsolved
