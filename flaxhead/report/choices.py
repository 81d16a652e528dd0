"""The picture of a search: every whole fit's score against what was tried."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from flaxhead.metrics import METRICS
from flaxhead.paths import Location
from flaxhead.report import canvas

_COLOR = "#31688e"  # of what didn't win
_ROW = 2.5  # inches, a row of panels at least
_LETTER = 0.08  # inches, the width of a letter above a panel
_DECADES = 5  # powers of ten with a label, at most, on one axis


class _Grid(NamedTuple):
    """The candidates of one head that has something to sweep.

    Attributes:
      head: its name.
      name: the hyperparameter along the x axis.
      numbers: of its candidates.
      lines: numbers of the candidates, ascending in it; those of a line share all else.
      top: which of the lines holds the head's best candidate, or the winner.
    """

    head: str
    name: str
    numbers: list[int]
    lines: list[list[int]]
    top: int


def choices(
    path: Location,
    candidates: Sequence[dict[str, Any]],
    *,
    winner: int,
    metric: str,
) -> None:
    """Draw the score of every candidate, with one standard error, and the winner.

    A head with a grid has a panel of its own, its first hyperparameter with several
    values along a log axis; where more than one has, the line through the head's best
    candidate is solid and the others are translucent. Heads without one share the last
    panel. Far below the rest, scores leave the picture. The file appears whole or not
    at all.

    Args:
      path: the PNG file to write.
      candidates: one dict a candidate: `head` (str, the same for all of one grid),
        `hyperparameters` (name -> float, the same names for all of one head; a `seed`
        is no grid), `score` and `standard_error` (float or None).
      winner: which of the candidates won.
      metric: the name in `METRICS` of what `score` holds.

    Raises:
      ValueError: where the winner is no candidate or has no score, or the metric is
        unknown.

    Example:
      >>> candidates = [
      ...     {"head": "ridge", "hyperparameters": {"alpha": alpha}, "score": score,
      ...      "standard_error": 0.01}
      ...     for alpha, score in [(0.1, 0.90), (1.0, 0.92), (10.0, 0.91)]
      ... ]
      >>> import tempfile
      >>> from pathlib import Path
      >>> path = Path(tempfile.mkdtemp()) / "choices.png"
      >>> choices(path, candidates, winner=1, metric="accuracy")
      >>> path.read_bytes()[1:4]
      b'PNG'
    """
    if not 0 <= winner < len(candidates):
        raise ValueError(
            f"winner: expected the number of one of {len(candidates)} candidates, "
            f"got {winner}."
        )
    canvas.check_metric(metric)
    scores = _column(candidates, "score")
    errors = _column(candidates, "standard_error")
    if np.isnan(scores[winner]):
        raise ValueError("winner: expected a candidate with a finite score, got none.")
    sign = 1.0 if METRICS[metric].greater_is_better else -1.0
    grids, alone = _panels(candidates, sign * scores, winner)
    count = len(grids) + bool(alone)
    rows = math.ceil(count / 4)
    columns = math.ceil(count / rows)
    width = canvas.WIDTH / columns - 0.5  # of a panel
    figure = canvas.blank(max(canvas.HEIGHT, _ROW * rows))
    cells = figure.add_gridspec(rows, columns)
    first: Any = None
    for number in range(count):
        row, column = divmod(number, columns)
        # The panel of heads without a grid takes what is left of its row.
        last = column + 1 if number < len(grids) else columns
        axes = figure.add_subplot(cells[row, column:last], sharey=first)
        first = first or axes
        if number < len(grids):
            _draw_grid(axes, candidates, grids[number], scores, errors, winner, width)
        else:
            span = width + (last - column - 1) * canvas.WIDTH / columns
            _draw_alone(axes, candidates, alone, scores, errors, winner, width=span)
        axes.tick_params(labelleft=column == 0)
    figure.supylabel(canvas.with_direction(metric), color=canvas.INK, fontsize=9)
    best = int(np.nanargmax(sign * scores))
    bar = scores[best] - sign * errors[best]
    if not np.isnan(bar) and len(candidates) > 1:
        for axes in figure.axes:
            axes.axhline(bar, color=canvas.INK, linewidth=0.8, linestyle=(0, (6, 3)))
    heads = [grid.numbers for grid in grids] + [[number] for number in alone]
    first.set_ylim(*_limits(scores, errors, heads, sign, winner))
    _explain(figure, scores, errors, bar, sign)
    canvas.headline(figure, _sentence(candidates, grids, winner, metric))
    canvas.save(figure, path)


def _column(candidates: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    """What candidates have of a name; NaN where they have none."""
    values = np.array([one[name] for one in candidates], np.float64)  # None is NaN
    return np.where(np.isfinite(values), values, np.nan)


def _varied(candidates: Sequence[dict[str, Any]], numbers: Sequence[int]) -> list[str]:
    """Hyperparameters of which these candidates of a head have several values."""
    values = [candidates[number]["hyperparameters"] for number in numbers]
    return [name for name in values[0] if len({one[name] for one in values}) > 1]


def _panels(
    candidates: Sequence[dict[str, Any]], signed: np.ndarray, winner: int
) -> tuple[list[_Grid], list[int]]:
    """The grids, in order of their heads, and the candidates that are in none."""
    heads: dict[str, list[int]] = {}
    for number, candidate in enumerate(candidates):
        heads.setdefault(candidate["head"], []).append(number)
    grids, alone = [], []
    # What never wins a comparison: a candidate without a score.
    ranked = np.where(np.isnan(signed), -np.inf, signed)
    for head, numbers in heads.items():
        name, *_ = [*(n for n in _varied(candidates, numbers) if n != "seed"), None]
        if name is None:
            alone += numbers
            continue
        lines: dict[tuple[float, ...], list[int]] = {}
        for number in sorted(
            numbers, key=lambda number: candidates[number]["hyperparameters"][name]
        ):
            others = dict(candidates[number]["hyperparameters"])
            del others[name]
            lines.setdefault(tuple(others.values()), []).append(number)
        best = max(numbers, key=lambda number: (number == winner, ranked[number]))
        (top,) = (n for n, line in enumerate(lines.values()) if best in line)
        grids.append(_Grid(head, name, numbers, list(lines.values()), top))
    return grids, alone


def _draw_grid(
    axes: Any,
    candidates: Sequence[dict[str, Any]],
    grid: _Grid,
    scores: np.ndarray,
    errors: np.ndarray,
    winner: int,
    width: float,
) -> None:
    """One head: its score against the hyperparameter that it sweeps."""
    numbers = grid.numbers
    x = np.full(len(candidates), np.nan)
    x[numbers] = [candidates[n]["hyperparameters"][grid.name] for n in numbers]
    canvas.decorate(axes, grid.name.replace("_", " "))
    _log_axis(axes, np.unique(x[numbers]), width)
    top = grid.lines[grid.top]
    alpha = 0.5 if len(grid.lines) <= 8 else 0.3
    for line in grid.lines:
        if line is not top:
            look = {"color": _COLOR, "alpha": alpha, "linewidth": 1.0}
            axes.plot(x[line], scores[line], **look, marker=".", markersize=3)
    if not np.isnan(errors[top]).all():
        low, high = scores[top] - errors[top], scores[top] + errors[top]
        axes.fill_between(x[top], low, high, color=_COLOR, alpha=0.18, linewidth=0)
    axes.plot(
        x[top],
        scores[top],
        color=_COLOR,
        linewidth=1.6,
        marker="o",
        markersize=4 if len(top) <= 20 else 2.5,
        zorder=4,
    )
    _mark_unscored(axes, x, scores, numbers)
    if winner in top:
        axes.axvline(
            x[winner], color=canvas.WINNER, linewidth=0.9, linestyle=":", zorder=2.5
        )
        _mark_winner(axes, x[winner], scores[winner], errors[winner])
    settings = candidates[top[0]]["hyperparameters"]
    rest = [
        f"{name.replace('_', ' ')} {settings[name]:.4g}"
        for name in _varied(candidates, numbers)
        if name != grid.name
    ]
    words = f"{grid.head}: {', '.join(rest)}" if rest else grid.head
    _name(axes, textwrap.fill(words, int(width / _LETTER)), won=winner in top)


def _draw_alone(
    axes: Any,
    candidates: Sequence[dict[str, Any]],
    alone: list[int],
    scores: np.ndarray,
    errors: np.ndarray,
    winner: int,
    *,
    width: float,
) -> None:
    """Heads without a grid, side by side."""
    canvas.decorate(axes, "")
    names = list(dict.fromkeys(candidates[number]["head"] for number in alone))
    x = np.full(len(candidates), np.nan)
    for place, name in enumerate(names):
        same = [number for number in alone if candidates[number]["head"] == name]
        aside = np.arange(len(same)) - (len(same) - 1) / 2
        x[same] = place + 0.6 * aside / len(same)
    others = [number for number in alone if number != winner]
    axes.errorbar(
        x[others],
        scores[others],
        np.nan_to_num(errors[others]),
        color=_COLOR,
        linestyle="",
        linewidth=1.6,
        marker="o",
        markersize=5,
        zorder=4,
    )
    _mark_unscored(axes, x, scores, alone)
    if winner in alone:
        _mark_winner(axes, x[winner], scores[winner], errors[winner])
    # Names that would overlap go on two or three levels, or upright.
    levels = math.ceil(max(map(len, names)) * _LETTER * len(names) / width)
    if levels <= 3:
        shown = ["\n" * (n % levels) + name for n, name in enumerate(names)]
        axes.set_xticks(range(len(names)), shown)
    else:
        axes.set_xticks(range(len(names)), names, rotation=90)
    if winner in alone:
        axes.get_xticklabels()[round(x[winner])].set_color(canvas.WINNER)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(visible=False, axis="x")
    _name(axes, "without a grid", won=False)


def _log_axis(axes: Any, values: np.ndarray, width: float) -> None:
    """A log scale with ticks for these ascending values; 0 has a place at its left."""
    positive = values[values > 0]
    decades = math.log10(positive[-1] / positive[0])
    if values[0] > 0:
        axes.set_xscale("log")
    else:
        gap = max(0.3, decades / 6)
        axes.set_xscale("symlog", linthresh=positive[0], linscale=gap)
    if decades < 2:
        canvas.tick_values(axes, values, width=width)
        return
    low, high = (round(math.log10(positive[at]), 6) for at in (0, -1))
    powers = np.arange(math.ceil(low), math.floor(high) + 1)
    powers = powers[powers % math.ceil(len(powers) / _DECADES) == 0]
    zero = [] if values[0] > 0 else [0.0]
    axes.set_xticks(
        [*zero, *10.0**powers],
        [*("0" for _ in zero), *(f"$10^{{{p}}}$" for p in powers)],
    )
    axes.set_xticks([], minor=True)


def _mark_unscored(
    axes: Any, x: np.ndarray, scores: np.ndarray, numbers: list[int]
) -> None:
    """A candidate without a score leaves a cross on the lower edge."""
    missing = [number for number in numbers if np.isnan(scores[number])]
    if missing:
        axes.plot(
            x[missing],
            [0.03] * len(missing),
            transform=axes.get_xaxis_transform(),
            color=canvas.GREY,
            linestyle="",
            marker="x",
            markersize=5,
        )


def _mark_winner(axes: Any, x: float, score: float, error: float) -> None:
    if not np.isnan(error):
        axes.errorbar([x], [score], [error], color=canvas.WINNER, zorder=5, linewidth=2)
    canvas.mark(axes, x, score)


def _name(axes: Any, words: str, *, won: bool) -> None:
    axes.set_title(
        words,
        loc="left",
        fontsize=9.5,
        color=canvas.WINNER if won else canvas.INK,
    )


def _limits(
    scores: np.ndarray,
    errors: np.ndarray,
    heads: list[list[int]],
    sign: float,
    winner: int,
) -> tuple[float, float]:
    """Show the best of every head; cut what is far worse than most candidates.

    Far: more than three times as far below the median as the best is above it.
    """
    signed = sign * scores
    best, middle = np.nanmax(signed), np.nanmedian(signed)
    errors = np.nan_to_num(errors)
    whole = [winner] + [
        int(numbers[np.nanargmax(signed[numbers])])
        for numbers in heads
        if not np.isnan(signed[numbers]).all()
    ]
    far = middle - 3 * max(best - middle, errors[whole].max())
    worst = max(far, np.nanmin(signed))
    worst = min(worst, (signed - errors)[whole].min())
    top = (signed + errors)[whole].max()
    room = 0.06 * (top - worst) or 0.05 * abs(top) or 0.05
    low, high = sorted((sign * (worst - room), sign * (top + room)))
    return low, high


def _sentence(
    candidates: Sequence[dict[str, Any]], grids: list[_Grid], winner: int, metric: str
) -> str:
    """Which candidate won, and its score."""
    won = candidates[winner]
    numbers = [n for n, one in enumerate(candidates) if one["head"] == won["head"]]
    settings = "".join(
        f", {name.replace('_', ' ')} {won['hyperparameters'][name]:.4g}"
        for name in _varied(candidates, numbers)
    )
    error = won["standard_error"]
    within = "" if error is None or not math.isfinite(error) else f" ± {error:.2g}"
    words = (
        f"{won['head']}{settings}: {canvas.shown(metric)} {won['score']:.4g}{within}"
    )
    return textwrap.fill(words, 95)


def _explain(
    figure: Any, scores: np.ndarray, errors: np.ndarray, bar: float, sign: float
) -> None:
    """Say what the marks are, where there is more than one candidate."""
    if len(scores) == 1:
        return
    from matplotlib.lines import Line2D

    dot: Any = {"linestyle": "", "marker": "o"}
    missing = int(np.isnan(scores).sum())
    others = len(scores) - 1 - missing
    entries = [(Line2D([], [], color=canvas.WINNER, markersize=8, **dot), "winner")]
    if others:
        words = "other" if others == 1 else "others"
        if not np.isnan(errors).all():
            words += " ± one standard error"
        line = Line2D([], [], color=_COLOR, linewidth=1.6, marker="o", markersize=4)
        entries.append((line, f"{others} {words}"))
    if missing:
        cross = Line2D([], [], color=canvas.GREY, linestyle="", marker="x")
        entries.append((cross, f"{missing} without a score"))
    if not np.isnan(bar):
        dashed = Line2D([], [], color=canvas.INK, linewidth=0.8, linestyle=(0, (6, 3)))
        side = "minus" if sign > 0 else "plus"
        entries.append((dashed, f"best {side} one standard error"))
    canvas.legend(figure, entries)
