"""The picture of a sweep: it is a whole file, and its content is where it should be."""

import math
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from flaxhead.report.curves import curves


def history(number, *, rate=0.1, diverged_at=None, evaluations=5, top=0.9):
    steps = np.arange(1, 51)
    loss = 2.3 * np.exp(-steps / 20) + 0.01 * number
    if diverged_at is not None:
        loss = np.where(steps < diverged_at, loss, np.nan)
    metric_steps = np.arange(10, 10 * evaluations + 1, 10)
    return {
        "label": f"head {number}",
        "learning_rate": rate,
        "loss_steps": steps.tolist(),
        "loss": loss.tolist(),
        "metric_steps": metric_steps.tolist(),
        "metric": (top - 1 / metric_steps).tolist(),
        "diverged_at": diverged_at,
    }


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, to look into."""
    figures, save = [], Figure.savefig

    def keep(figure, *arguments, **keywords):
        figures.append(figure)
        save(figure, *arguments, **keywords)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


@pytest.mark.parametrize("count", [1, 2, 100])
def test_a_picture_of_any_number_of_candidates(tmp_path, count):
    rates = np.logspace(-4, 0, count)
    histories = [history(number, rate=rate) for number, rate in enumerate(rates)]
    curves(tmp_path / "curves.png", histories, winner=count - 1, metric="accuracy")
    picture = imread(tmp_path / "curves.png")
    assert picture.shape[:2] == (750, 1650)
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


@pytest.mark.parametrize(
    ("metric", "step", "value"),
    [("accuracy", 50, 0.95 - 1 / 50), ("nll", 10, 0.95 - 1 / 10)],
)
def test_winner_is_marked_at_its_best_evaluation(tmp_path, drawn, metric, step, value):
    histories = [history(0), history(1, rate=0.5, top=0.95), history(2, rate=0.01)]
    curves(tmp_path / "curves.png", histories, winner=1, metric=metric)
    (figure,) = drawn
    left, right = figure.axes[:2]
    title = figure.get_suptitle()
    assert "head 1" in title
    assert f"{value:.4g} at step {step}" in title
    mark = max(right.lines, key=lambda line: line.zorder)
    assert mark.get_xydata().tolist() == [[step, pytest.approx(value)]]
    for axes, name in ((left, "loss"), (right, "metric")):
        widest = max(axes.lines, key=lambda line: line.get_linewidth())
        np.testing.assert_allclose(widest.get_ydata(), histories[1][name])
        others = [line for line in axes.lines if line.get_alpha() is not None]
        assert len(others) == 2
        assert len({line.get_color() for line in others}) == 2
        assert all(line.zorder < widest.zorder for line in others)


def test_what_diverged_is_dashed_and_cut(tmp_path, drawn):
    histories = [history(0), history(1, rate=10.0, diverged_at=23)]
    histories[1]["loss"][20:] = [1e9] * 30
    curves(tmp_path / "curves.png", histories, winner=0, metric="accuracy")
    (figure,) = drawn
    for axes, steps in zip(figure.axes[:2], (range(1, 23), (10, 20)), strict=True):
        (dashed,) = (
            line
            for line in axes.lines
            if line.get_linestyle() == "--" and line.get_alpha() is not None
        )
        assert dashed.get_xdata().tolist() == list(steps)
    assert figure.axes[0].get_ylim()[1] < 100  # 1e9 doesn't flatten the rest
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["winner", "1 diverged"]


def test_missing_evaluations_leave_gaps_only(tmp_path, drawn):
    histories = [
        history(0),
        history(1, rate=0.3, evaluations=2),
        history(2, evaluations=0),
    ]
    histories[0]["metric"][1] = math.nan
    curves(tmp_path / "curves.png", histories, winner=0, metric="auroc")
    lengths = [
        len(line.get_xdata())
        for line in drawn[0].axes[1].lines
        if line.get_alpha() is not None
    ]
    assert lengths == [2, 0]


def test_a_long_loss_is_averaged_over_windows(tmp_path, drawn):
    long = history(0) | {
        "loss_steps": list(range(1, 1002)),
        "loss": [1.0, 3.0] * 500 + [7.0],
    }
    curves(tmp_path / "curves.png", [long], winner=0, metric="accuracy")
    line = max(drawn[0].axes[0].lines, key=lambda line: line.get_linewidth())
    steps, values = line.get_data()
    assert steps.tolist() == [*range(6, 1001, 6), 1001]
    assert values.tolist() == [2.0] * 166 + [(1 + 3 + 1 + 3 + 7) / 5]


def test_nothing_is_left_of_a_picture_that_fails(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left")

    path = tmp_path / "curves.png"
    path.write_bytes(b"the one before")
    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="no space"):
        curves(path, [history(0)], winner=0, metric="accuracy")
    assert path.read_bytes() == b"the one before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"winner": 2}, "winner: expected the number of one of 2 histories, got 2"),
        ({"winner": -1}, "winner: .* got -1"),
        ({"metric": "acc"}, "metric: expected one of accuracy.* got 'acc'"),
        ({"winner": 1}, "winner: expected a history with a finite score"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, change, message):
    histories = [history(0), history(1, evaluations=0)]
    arguments = {"winner": 0, "metric": "accuracy"} | change
    with pytest.raises(ValueError, match=message):
        curves(tmp_path / "curves.png", histories, **arguments)


def test_matplotlib_is_imported_only_to_draw():
    code = "import sys, flaxhead.report.curves; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
