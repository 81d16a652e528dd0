"""The picture of a learning curve: the score against labels per class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxhead.paths import Location
from flaxhead.report import canvas


def learning_curve(
    path: Location, points: Sequence[dict[str, Any]], *, metric: str
) -> None:
    """Draw the mean score and one standard deviation against labels per class.

    Every repeat is a small translucent dot. The file appears whole or not at all.

    Args:
      path: the PNG file to write.
      points: one dict a number of labels: `shots` (int, per class), `scores` (list of
        float, one a repeat), `mean` (float or None) and `standard_deviation` (float, or
        None where it is not known).
      metric: the name in `METRICS` of what the scores are.

    Raises:
      ValueError: where no point has a mean, or the metric is unknown.

    Example:
      >>> points = [
      ...     {"shots": k, "scores": [s], "mean": s, "standard_deviation": None}
      ...     for k, s in [(1, 0.6), (5, 0.8), (25, 0.9)]
      ... ]
      >>> import tempfile
      >>> from pathlib import Path
      >>> path = Path(tempfile.mkdtemp()) / "learning_curve.png"
      >>> learning_curve(path, points, metric="accuracy")
      >>> path.read_bytes()[1:4]
      b'PNG'
    """
    canvas.check_metric(metric)
    points = sorted(points, key=lambda point: point["shots"])
    told = [point for point in points if _finite(point["mean"])]
    if not told:
        raise ValueError(
            f"points: expected one or more with a finite mean, got {len(points)} "
            "without."
        )
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    figure = canvas.blank()
    axes = figure.subplots()
    canvas.decorate(axes, "labels per class")
    axes.set_ylabel(canvas.with_direction(metric), color=canvas.INK, fontsize=9)
    axes.set_xscale("log")
    shots = np.array([point["shots"] for point in told], np.float64)
    mean = np.array([point["mean"] for point in told], np.float64)
    spread = np.array([point["standard_deviation"] for point in told], np.float64)
    entries: list[tuple[Any, str]] = [
        (Line2D([], [], color=canvas.WINNER, linewidth=2.2, marker="."), "mean")
    ]
    if np.isfinite(spread).any():
        look = {"color": canvas.WINNER, "alpha": 0.15, "linewidth": 0}
        axes.fill_between(shots, mean - spread, mean + spread, **look)
        entries.append((Patch(**look), "± one standard deviation"))
    repeats = [(p["shots"], score) for p in told for score in p["scores"]]
    if len(repeats) > len(told):
        look = {"color": canvas.INK, "alpha": 0.35, "linestyle": ""}
        look |= {"marker": "o", "markersize": 4, "markeredgewidth": 0}
        axes.plot(*zip(*repeats, strict=True), **look, zorder=3)
        entries.append((Line2D([], [], **look), "one repeat"))
    canvas.bold_line(axes, shots, mean)
    axes.set_xlim(shots[0] / 1.15, shots[-1] * 1.15)
    canvas.tick_values(axes, shots.tolist(), width=canvas.WIDTH - 1)
    if len(entries) > 1:
        canvas.legend(figure, entries)
    last = told[-1]
    error = last["standard_deviation"]
    within = f" ± {error:.2g}" if _finite(error) else ""
    labels = "label" if last["shots"] == 1 else "labels"
    canvas.headline(
        figure,
        f"{canvas.shown(metric)} {last['mean']:.4g}{within} "
        f"with {last['shots']} {labels} per class",
    )
    canvas.save(figure, path)


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
