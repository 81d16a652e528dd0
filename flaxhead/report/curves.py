"""The picture of a sweep: every candidate's loss and validation score by step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxhead.metrics import METRICS
from flaxhead.paths import Location
from flaxhead.report import canvas

_POINTS = 200  # of a line, at most


def curves(
    path: Location,
    histories: Sequence[dict[str, Any]],
    *,
    winner: int,
    metric: str,
) -> None:
    """Draw training loss (left) and validation metric (right) of all candidates.

    The winner is drawn on top with its best evaluation marked, the others thin and
    translucent in the colour of their learning rate; one that diverged is dashed, and
    cut at its first bad step. The file appears whole or not at all.

    Args:
      path: the PNG file to write.
      histories: one dict a candidate: `label` (str), `learning_rate` (float),
        `loss_steps` and `loss`, `metric_steps` and `metric` (sequences of equal length,
        which may be shorter than another candidate's), `diverged_at` (step or None).
      winner: which of the histories won.
      metric: the name in `METRICS` of what `metric` holds.

    Raises:
      ValueError: where the winner is no history or has no score, or the metric is
        unknown.

    Example:
      >>> history = {
      ...     "label": "linear",
      ...     "learning_rate": 0.1,
      ...     "loss_steps": [1, 2, 3],
      ...     "loss": [2.3, 1.1, 0.7],
      ...     "metric_steps": [2, 3],
      ...     "metric": [0.8, 0.9],
      ...     "diverged_at": None,
      ... }
      >>> import tempfile
      >>> from pathlib import Path
      >>> path = Path(tempfile.mkdtemp()) / "curves.png"
      >>> curves(path, [history], winner=0, metric="accuracy")
      >>> path.read_bytes()[1:4]
      b'PNG'
    """
    if not 0 <= winner < len(histories):
        raise ValueError(
            f"winner: expected the number of one of {len(histories)} histories, "
            f"got {winner}."
        )
    canvas.check_metric(metric)
    best_step, best = _best(histories[winner], metric)
    figure = canvas.blank()
    left, right = figure.subplots(1, 2, sharex=True)
    scale = _color_scale(histories)
    for axes, name in ((left, "loss"), (right, "metric")):
        lines = [_line(history, name) for history in histories]
        for number, (history, line) in enumerate(zip(histories, lines, strict=True)):
            if number != winner:
                _draw_other(axes, line, history, scale, crowd=len(histories))
        axes.axvline(
            best_step, color=canvas.WINNER, linewidth=0.9, linestyle=":", zorder=2.5
        )
        canvas.bold_line(axes, *lines[winner])
        healthy = [
            line
            for line, history in zip(lines, histories, strict=True)
            if history["diverged_at"] is None
        ]
        _limit(axes, healthy, winner=lines[winner], name=name, metric=metric)
        canvas.decorate(axes, "step")
    left.set_ylabel("training loss")
    right.set_ylabel(f"validation {canvas.with_direction(metric)}")
    canvas.mark(right, best_step, best)
    _explain(figure, histories)
    if scale is not None and len(histories) > 1:
        bar = figure.colorbar(scale, ax=[left, right], aspect=32, pad=0.015)
        bar.set_label("learning rate", color=canvas.INK, fontsize=9)
        bar.ax.tick_params(colors=canvas.INK, labelsize=8)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    canvas.headline(
        figure,
        f"{histories[winner]['label']}: validation {canvas.shown(metric)} {best:.4g} "
        f"at step {best_step:,}",
    )
    canvas.save(figure, path)


def _best(history: dict[str, Any], metric: str) -> tuple[int, float]:
    """The step and the score of the best evaluation, the first of equal ones."""
    points = [
        (step, score)
        for step, score in zip(history["metric_steps"], history["metric"], strict=True)
        if math.isfinite(score)
    ]
    if not points:
        raise ValueError("winner: expected a history with a finite score, got none.")
    sign = -1 if METRICS[metric].greater_is_better else 1
    step, score = min(points, key=lambda point: (sign * point[1], point[0]))
    return int(step), float(score)


def _line(history: dict[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The finite points of a history before it diverged, at most `_POINTS` of them."""
    steps = np.asarray(history[f"{name}_steps"], np.float64)
    values = np.asarray(history[name], np.float64)
    stop = math.inf if history["diverged_at"] is None else history["diverged_at"]
    keep = (steps < stop) & np.isfinite(values)
    steps, values = steps[keep], values[keep]
    window = -(-len(steps) // _POINTS)
    if window <= 1:
        return steps, values
    # The mean of each window: a batch's loss is too noisy to read step by step.
    starts = np.arange(0, len(steps), window)
    sizes = np.diff(np.append(starts, len(steps)))
    return steps[starts + sizes - 1], np.add.reduceat(values, starts) / sizes


def _color_scale(histories: Sequence[dict[str, Any]]) -> Any:
    """Learning rate -> colour on a log scale; None where there is none."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, LogNorm

    rates = [history["learning_rate"] for history in histories]
    if not 0 < min(rates) < max(rates):  # A rate of 0 has no logarithm.
        return None
    # Without its last, pale fifth, which white paper swallows.
    colors = ListedColormap(colormaps["viridis"](np.linspace(0, 0.82, 256)))
    return ScalarMappable(LogNorm(min(rates), max(rates)), colors)


def _draw_other(axes, line, history, scale, *, crowd: int) -> None:
    """A candidate that didn't win: thin, and the paler the more of them there are."""
    color = canvas.GREY if scale is None else scale.to_rgba(history["learning_rate"])
    alpha = 0.75 if crowd <= 8 else 0.5 if crowd <= 32 else 0.35
    look = {"color": color, "alpha": alpha, "linewidth": 1.0}
    if history["diverged_at"] is None:
        axes.plot(*line, **look, marker="." if len(line[0]) == 1 else "")
        return
    axes.plot(*line, **look, linestyle=(0, (4, 2)))
    axes.plot(line[0][-1:], line[1][-1:], marker="x", markersize=5, **look)


def _limit(axes, lines, *, winner, name: str, metric: str) -> None:
    """Show the winner whole, and of the others all but the worst stretches."""
    from matplotlib.ticker import LogLocator, NullLocator

    values = np.concatenate([winner[1], *(line[1] for line in lines)])
    if not len(values):
        return
    down = name == "loss" or not METRICS[metric].greater_is_better
    worst = np.quantile(values, 0.98 if down else 0.05)
    if down:
        low, high = values.min(), max(worst, winner[1].max())
    else:
        low, high = min(worst, np.quantile(winner[1], 0.1)), values.max()
    if down and low > 0 and high / low > 20:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        low = max(low, high * 1e-5)
        axes.set_ylim(low / 1.3, high * 1.3)
        return
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    axes.set_ylim(low - room, high + room)


def _explain(figure, histories: Sequence[dict[str, Any]]) -> None:
    """Say what the lines are, where there is more than one."""
    if len(histories) == 1:
        return
    from matplotlib.lines import Line2D

    diverged = sum(history["diverged_at"] is not None for history in histories)
    others = len(histories) - 1 - diverged
    entries = [(Line2D([], [], color=canvas.WINNER, linewidth=2.2), "winner")]
    if others:
        entries.append(
            (Line2D([], [], color=canvas.GREY, linewidth=1), f"{others} others")
        )
    if diverged:
        dashed = Line2D([], [], color=canvas.GREY, linewidth=1, linestyle=(0, (4, 2)))
        entries.append((dashed, f"{diverged} diverged"))
    canvas.legend(figure, entries)
