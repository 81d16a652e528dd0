"""What all pictures share: colours, a figure, its words, and how it is saved.

Matplotlib is slow to import, and only wanted where something is drawn: it is imported
inside the functions that draw.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxhead.metrics import METRICS
from flaxhead.paths import Location, to_path, write

WINNER = "#d1495b"
INK = "#22303c"
GREY = "#7b8794"

WIDTH, HEIGHT = 11.0, 5.0  # inches
_DPI = 150
_LETTER = 0.075  # inches, the width of a letter of a tick's label
_NAMES = {
    "top_5_accuracy": "top-5 accuracy",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "nll": "NLL",
    "brier": "Brier score",
    "ece": "ECE",
}


def blank(height: float = HEIGHT) -> Any:
    """Returns an empty Matplotlib figure, so many inches high."""
    # A Figure of its own, without pyplot, touches no global state and needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=_DPI, layout="constrained")
    figure.get_layout_engine().set(wspace=0.04)  # pyright: ignore
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Location) -> None:
    """Write a PNG file whole or not at all."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", facecolor="white")
    write(to_path(path), picture.getvalue())


def check_metric(metric: str) -> None:
    """Refuse a metric that is not in `METRICS`."""
    if metric not in METRICS:
        raise ValueError(
            f"metric: expected one of {', '.join(METRICS)}, got {metric!r}."
        )


def shown(metric: str) -> str:
    """The name of a metric as text."""
    return _NAMES.get(metric, metric.replace("_", " "))


def with_direction(metric: str) -> str:
    """The name of a metric as text, and which way is better."""
    better = "higher" if METRICS[metric].greater_is_better else "lower"
    return f"{shown(metric)} ({better} is better)"


def headline(figure: Any, text: str) -> None:
    """Write the one sentence that the picture says above it."""
    figure.suptitle(text, x=0.008, ha="left", fontsize=13, fontweight="bold", color=INK)


def decorate(axes: Any, xlabel: str) -> None:
    """Give axes the look that they all have."""
    axes.set_xlabel(xlabel, color=INK, fontsize=9)
    axes.yaxis.label.set(color=INK, fontsize=9)
    axes.grid(color="#e6e9ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#aab4bd")
    axes.tick_params(colors=INK, labelsize=8, length=3)
    axes.margins(x=0.02)


def legend(figure: Any, entries: Sequence[tuple[Any, str]]) -> None:
    """Say below the picture what its `(handle, label)` are."""
    handles, labels = zip(*entries, strict=True)
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=len(entries),
        fontsize=9,
        labelcolor=INK,
        frameon=False,
    )


def bold_line(axes: Any, x: Any, y: Any) -> None:
    """The line to look at, on top, with a white edge that parts it from the others."""
    from matplotlib.patheffects import withStroke

    axes.plot(
        x,
        y,
        color=WINNER,
        linewidth=2.2,
        marker="." if len(x) <= 30 else "",
        markersize=7,
        zorder=5,
        path_effects=[withStroke(linewidth=3.8, foreground="white")],
        solid_capstyle="round",
    )


def mark(axes: Any, x: float, y: float) -> None:
    """The one point to look at."""
    axes.plot(
        [x],
        [y],
        marker="o",
        markersize=8,
        color=WINNER,
        markeredgecolor="white",
        markeredgewidth=1.5,
        zorder=6,
    )


def tick_values(axes: Any, values: Any, *, width: float) -> None:
    """Put a tick at each value of the x axis, and a label where there is room for it.

    Args:
      axes: whose x axis has its scale already.
      values: ascending.
      width: of the axes, in inches, about.
    """
    places = axes.xaxis.get_transform().transform(np.asarray(values, np.float64))
    places = (places - places[0]) * (width / (places[-1] - places[0] or 1.0))
    labels = [f"{value:g}" for value in values]
    # From the largest down: the end of an axis is what is read first.
    left = np.inf
    for number in reversed(range(len(labels))):
        half = _LETTER * (len(labels[number]) + 1) / 2
        if places[number] + half <= left:
            left = places[number] - half
        else:
            labels[number] = ""
    axes.set_xticks(values, labels)
    axes.set_xticks([], minor=True)
