"""Pictures: each is a whole file, and its content is where it should be."""

import io
import itertools
import math
import subprocess
import sys
import time

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.transforms import Bbox

from flaxhead.report.attention import attention
from flaxhead.report.choices import choices
from flaxhead.report.curves import curves
from flaxhead.report.learning_curve import learning_curve
from flaxhead.report.progress import display


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


def candidate(head, score=0.9, error=0.01, **hyperparameters):
    return {
        "head": head,
        "hyperparameters": hyperparameters,
        "score": score,
        "standard_error": error,
    }


def ridges(scores, *, head="ridge"):
    """Candidates of a grid of alpha that starts at 0.001, ten times more each."""
    return [
        candidate(head, score, alpha=10.0**power)
        for power, score in enumerate(scores, start=-3)
    ]


def point(shots, scores):
    several = len(scores) > 1
    return {
        "shots": shots,
        "scores": scores,
        "mean": float(np.mean(scores)),
        "standard_deviation": float(np.std(scores, ddof=1)) if several else None,
    }


PICTURES = {
    "curves": lambda path, metric: curves(path, [history(0)], winner=0, metric=metric),
    "choices": lambda path, metric: choices(
        path, [candidate("lda")], winner=0, metric=metric
    ),
    "learning_curve": lambda path, metric: learning_curve(
        path, [point(5, [0.8])], metric=metric
    ),
}


def dots(axes):
    """What is drawn in axes as lines or markers of data: `(color, points)` each."""
    return [
        (line.get_color(), line.get_xydata().tolist())
        for line in axes.lines
        if line.get_linestyle() == "-" or line.get_marker() != "None"
    ]


def mark_of(axes):
    """The one point that is on top of everything."""
    return max(axes.lines, key=lambda line: line.zorder)


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


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
def test_nothing_is_left_of_a_picture_that_fails(tmp_path, monkeypatch, draw):
    def full(*_, **__):
        raise OSError("no space left")

    path = tmp_path / "picture.png"
    path.write_bytes(b"the one before")
    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="no space"):
        draw(path, "accuracy")
    assert path.read_bytes() == b"the one before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
def test_pictures_are_whole_files_of_one_size(tmp_path, draw):
    draw(tmp_path / "picture.png", "nll")
    assert imread(tmp_path / "picture.png").shape[:2] == (750, 1650)
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
def test_an_unknown_metric_is_refused(tmp_path, draw):
    with pytest.raises(ValueError, match=r"metric: expected one of accuracy.* got 'a'"):
        draw(tmp_path / "picture.png", "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"winner": 2}, "winner: expected the number of one of 2 histories, got 2"),
        ({"winner": -1}, "winner: .* got -1"),
        ({"winner": 1}, "winner: expected a history with a finite score"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, change, message):
    histories = [history(0), history(1, evaluations=0)]
    arguments = {"winner": 0, "metric": "accuracy"} | change
    with pytest.raises(ValueError, match=message):
        curves(tmp_path / "curves.png", histories, **arguments)


def test_matplotlib_is_imported_only_to_draw():
    names = (*PICTURES, "attention")
    modules = ", ".join(f"flaxhead.report.{name}" for name in names)
    code = f"import sys, {modules}; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def many(heads, count):
    """So many heads with a grid of so many candidates."""
    return [
        one
        for number in range(heads)
        for one in ridges([0.8] * count, head=f"ridge#{number}")
    ]


@pytest.mark.parametrize(
    ("candidates", "panels", "height"),
    [
        ([candidate("lda", error=None)], 1, 750),
        (ridges(np.linspace(0.1, 0.9, 225)), 1, 750),
        ([candidate(f"nearest_mean#{number}") for number in range(12)], 1, 750),
        (ridges([0.9, None, None]), 1, 750),
        ([*many(3, 2), candidate("lda", None, None)], 4, 750),
        ([*many(4, 2), candidate("lda"), candidate("nearest_mean")], 5, 750),
        (many(12, 5), 12, 3 * 375),
    ],
)
def test_choices_of_any_number(tmp_path, drawn, candidates, panels, height):
    choices(tmp_path / "choices.png", candidates, winner=0, metric="accuracy")
    picture = imread(tmp_path / "choices.png")
    assert picture.shape[:2] == (height, 1650)
    (figure,) = drawn
    assert len(figure.axes) == panels
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    low, high = figure.axes[0].get_ylim()
    assert low < candidates[0]["score"] < high


def words_of(figure):
    """Boxes of all that is written in the picture, and what it says."""
    renderer = figure.canvas.get_renderer()
    found = [figure._suptitle, figure._supylabel]
    for axes in figure.axes:
        found += [axes.title, axes._left_title, axes.xaxis.label]
        found += axes.get_xticklabels()
    low, high = figure.axes[0].get_ylim()
    for text in figure.axes[0].get_yticklabels():
        found += [text] if low <= text.get_position()[1] <= high else []
    found += [text for one in figure.legends for text in one.get_texts()]
    boxes = []
    for text in found:
        words = "" if text is None else text.get_text()
        if words.strip():
            box = text.get_window_extent(renderer)
            empty = len(words) - len(words.lstrip("\n"))  # lines above the words
            top = box.y1 - box.height * empty / (words.count("\n") + 1)
            boxes.append((words.strip(), Bbox([[box.x0, box.y0], [box.x1, top]])))
    return boxes


@pytest.mark.parametrize(
    "candidates",
    [
        many(4, 45),
        [*many(3, 5), *(candidate(f"nearest_mean#{n}") for n in range(7))],
        [candidate(f"mahalanobis_mean#{number}") for number in range(12)],
        [candidate("knn", k=k, temperature=t) for k in (10, 20, 100) for t in (0.1, 1)],
        [candidate("lda", shrinkage=s) for s in (0, 1e-9, 0.25, 0.5, 1.0)],
        [*many(2, 3), *(candidate("lda", shrinkage=n / 50) for n in range(51))],
    ],
)
def test_words_of_choices_do_not_overlap(tmp_path, drawn, candidates):
    choices(tmp_path / "choices.png", candidates, winner=1, metric="accuracy")
    words = words_of(drawn[0])
    assert len(words) > 5
    for number, (text, box) in enumerate(words):
        assert box.x0 >= 0, text
        assert box.x1 <= 1650, text
        for other, other_box in words[:number]:
            assert not box.overlaps(other_box), (text, other)


def test_a_grid_is_a_line_in_order_with_its_band(tmp_path, drawn):
    candidates = [*ridges([0.7, 0.8, 0.9, None, 0.6])[::-1], candidate("lda", 0.85)]
    choices(tmp_path / "choices.png", candidates, winner=2, metric="accuracy")
    (figure,) = drawn
    ridge, alone = figure.axes
    assert "ridge, alpha 0.1: accuracy 0.9 ± 0.01" in figure.get_suptitle()
    assert figure.get_supylabel() == "accuracy (higher is better)"
    assert ridge.get_xlabel() == "alpha"
    assert ridge.get_xscale() == "log"
    assert mark_of(ridge).get_xydata().tolist() == [[0.1, 0.9]]
    color = mark_of(ridge).get_color()
    line = next(line for line in ridge.lines if len(line.get_xdata()) == 5)
    np.testing.assert_allclose(line.get_xdata(), [0.001, 0.01, 0.1, 1, 10])
    np.testing.assert_array_equal(line.get_ydata(), [0.7, 0.8, 0.9, np.nan, 0.6])
    assert line.get_color() != color
    band = np.concatenate([path.vertices for path in ridge.collections[0].get_paths()])
    for x, score in [(0.001, 0.7), (0.01, 0.8), (0.1, 0.9), (10, 0.6)]:
        sides = band[np.isclose(band[:, 0], x), 1]
        np.testing.assert_allclose(
            sorted({*sides.round(9)}), [score - 0.01, score + 0.01]
        )
    assert not np.isclose(band[:, 0], 1).any()
    assert [label.get_text() for label in alone.get_xticklabels()] == ["lda"]
    assert ([[0, 0.85]]) in [points for _, points in dots(alone)]
    assert color not in {color for color, _ in dots(alone)}
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [
        "winner",
        "4 others ± one standard error",
        "1 without a score",
        "best minus one standard error",
    ]


@pytest.mark.parametrize(
    ("metric", "bar"), [("accuracy", 0.9 - 0.02), ("nll", 0.7 + 0.03)]
)
@pytest.mark.parametrize("known", [True, False])
def test_a_line_one_standard_error_from_the_best(tmp_path, drawn, metric, bar, known):
    # The winner is another than the best, as under the rule of one standard error.
    candidates = [
        candidate("ridge", 0.9, 0.02 if known else None, alpha=1.0),
        candidate("ridge", 0.8, 0.01, alpha=10.0),
        candidate("lda", 0.7, 0.03 if known else None),
    ]
    choices(tmp_path / "choices.png", candidates, winner=1, metric=metric)
    for axes in drawn[0].axes:
        level = [
            line.get_ydata()[0]
            for line in axes.lines
            if line.get_linestyle() == "--" and line.get_xdata() == [0, 1]
        ]
        assert level == ([pytest.approx(bar)] if known else [])
    low, high = drawn[0].axes[0].get_ylim()
    assert low < bar < high


def test_further_hyperparameters_are_translucent_lines(tmp_path, drawn):
    candidates = [
        candidate(
            "knn", 0.9 - k / 1e4 - abs(t - 0.07), None, k=k, temperature=t, seed=s
        )
        for s in (0,)
        for t in (0.01, 0.07, 0.2)
        for k in (10, 100, 20)
    ]
    choices(tmp_path / "choices.png", candidates, winner=3, metric="accuracy")
    (axes,) = drawn[0].axes
    assert axes.get_xlabel() == "k"
    assert axes.get_title(loc="left") == "knn: temperature 0.07"
    lines = [line for line in axes.lines if len(line.get_xdata()) == 3]
    faint = [line for line in lines if line.get_alpha() is not None]
    assert [line.get_xdata().tolist() for line in lines] == [[10, 20, 100]] * 3
    assert len(faint) == 2
    (solid,) = (line for line in lines if line.get_alpha() is None)
    np.testing.assert_allclose(solid.get_ydata(), [0.899, 0.898, 0.89])
    assert not axes.collections  # no band where no error is known
    texts = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert texts == ["winner", "8 others"]


def test_seeds_are_no_grid(tmp_path, drawn):
    candidates = [candidate("mlp", 0.9, width=8, seed=seed) for seed in (0, 1, 2)]
    choices(tmp_path / "choices.png", candidates, winner=1, metric="accuracy")
    (axes,) = drawn[0].axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["mlp"]
    assert mark_of(axes).get_xydata().tolist() == [[0, 0.9]]
    assert "mlp, seed 1:" in drawn[0].get_suptitle()


def test_a_value_of_0_is_on_the_log_axis(tmp_path, drawn):
    values = [0.0, 1e-4, 1e-3, 1e-2]
    candidates = [candidate("linear", weight_decay=value) for value in values]
    choices(tmp_path / "choices.png", candidates, winner=0, metric="accuracy")
    (axes,) = drawn[0].axes
    assert axes.get_xlabel() == "weight decay"
    np.testing.assert_allclose(axes.get_xticks(), values)
    places = axes.transData.transform([(value, 0.9) for value in values])[:, 0]
    steps = np.diff(places)
    assert steps[0] > 20
    assert steps[1] == pytest.approx(steps[2])


def test_scores_far_below_the_rest_leave_the_picture(tmp_path, drawn):
    candidates = ridges([0.01, 0.02, 0.86, 0.87, 0.9, 0.88, 0.87])
    candidates.append(candidate("nearest_mean", 0.7))
    choices(tmp_path / "choices.png", candidates, winner=4, metric="accuracy")
    low, high = drawn[0].axes[0].get_ylim()
    assert 0.6 < low < 0.7 - 0.01  # every head's best is seen
    assert 0.9 + 0.01 < high < 1


@pytest.mark.parametrize(
    ("winner", "message"),
    [
        (3, "winner: expected the number of one of 3 candidates, got 3"),
        (-1, "winner: .* got -1"),
        (1, "winner: expected a candidate with a finite score"),
    ],
)
def test_wrong_winners_of_choices_are_refused(tmp_path, winner, message):
    candidates = ridges([0.9, None, 0.8])
    with pytest.raises(ValueError, match=message):
        choices(tmp_path / "a.png", candidates, winner=winner, metric="accuracy")


def test_a_learning_curve_has_mean_band_and_repeats(tmp_path, drawn):
    repeats = {25: [0.9, 0.92], 1: [0.3, 0.5, 0.7], 5: [0.8]}
    points = [point(shots, scores) for shots, scores in repeats.items()]
    learning_curve(tmp_path / "curve.png", points, metric="accuracy")
    (figure,) = drawn
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "labels per class"
    assert axes.get_ylabel() == "accuracy (higher is better)"
    assert axes.get_xticks().tolist() == [1, 5, 25]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "5", "25"]
    assert not len(axes.get_xticks(minor=True))
    line = mark_of(axes)
    np.testing.assert_allclose(line.get_xydata(), [[1, 0.5], [5, 0.8], [25, 0.91]])
    band = np.concatenate([path.vertices for path in axes.collections[0].get_paths()])
    for shots, mean, spread in [(1, 0.5, 0.2), (25, 0.91, 0.02 / math.sqrt(2))]:
        sides = band[band[:, 0] == shots, 1]
        np.testing.assert_allclose(
            sorted({*sides.round(9)}), [mean - spread, mean + spread], atol=1e-8
        )
    assert not (band[:, 0] == 5).any()
    (faint,) = (one for one in axes.lines if one.get_alpha() is not None)
    expected = [[shots, one] for shots in (1, 5, 25) for one in repeats[shots]]
    assert faint.get_xydata().tolist() == expected
    title = figure.get_suptitle()
    assert title == "accuracy 0.91 ± 0.014 with 25 labels per class"
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["mean", "± one standard deviation", "one repeat"]


def test_a_learning_curve_of_single_draws_is_a_line(tmp_path, drawn):
    points = [point(1, [0.5]), point(2, [0.7])]
    points.append({"shots": 3, "scores": [], "mean": None, "standard_deviation": None})
    learning_curve(tmp_path / "curve.png", points, metric="accuracy")
    (axes,) = drawn[0].axes
    assert len(axes.lines) == 1
    assert axes.lines[0].get_xydata().tolist() == [[1, 0.5], [2, 0.7]]
    assert not axes.collections
    assert not drawn[0].legends
    assert "with 2 labels per class" in drawn[0].get_suptitle()


def test_labels_of_crowded_shots_do_not_overlap(tmp_path, drawn):
    numbers = [*range(1, 41), 100, 1000, 1024]
    points = [point(shots, [0.5]) for shots in numbers]
    learning_curve(tmp_path / "curve.png", points, metric="accuracy")
    (axes,) = drawn[0].axes
    assert axes.get_xticks().tolist() == numbers
    labels = [text for text in axes.get_xticklabels() if text.get_text()]
    assert len(labels) > 10
    assert labels[-1].get_text() == "1024"
    boxes = [label.get_window_extent() for label in labels]
    for left, right in itertools.pairwise(boxes):
        assert left.x1 < right.x0


@pytest.mark.parametrize("means", [[], [None], [math.nan, None]])
def test_a_learning_curve_without_a_mean_is_refused(tmp_path, means):
    points = [
        {"shots": 1, "scores": [], "mean": mean, "standard_deviation": None}
        for mean in means
    ]
    message = f"points: expected one or more with a finite mean, got {len(means)}"
    with pytest.raises(ValueError, match=message):
        learning_curve(tmp_path / "curve.png", points, metric="accuracy")


WEIGHTS = np.array(
    [
        [[0.5, 0.2, 0.3, 0.0], [0.1, 0.9, 0.0, 0.0]],
        [[0.25, 0.75, 7.0, np.nan], [0.5, 0.5, 7.0, 7.0]],
    ]
)
REAL = np.array([[True] * 4, [True, True, False, False]])
TEXTS = [["a", "charming", "$5", "film"], ["dull", "x" * 50]]


def test_attention_shows_every_weight_and_leaves_padding_blank(tmp_path, drawn):
    attention(
        tmp_path / "attention.png",
        WEIGHTS,
        mask=REAL,
        tokens=TEXTS,
        names=["good", "bad"],
    )
    assert [path.name for path in tmp_path.iterdir()] == ["attention.png"]
    *panels, _ = drawn[0].axes
    shown = [axes.images[0].get_array() for axes in panels]
    np.testing.assert_array_equal(
        np.ma.stack(shown).mask, np.broadcast_to(~REAL[:, None], WEIGHTS.shape)
    )
    for row, weights in enumerate(shown):
        real = REAL[row]
        np.testing.assert_array_equal(weights[:, real], WEIGHTS[row][:, real])
        # One scale for all rows, which what padding holds has no part in.
        assert panels[row].images[0].get_clim() == (0, 0.9)
    texts = [[one.get_text() for one in axes.get_xticklabels()] for axes in panels]
    assert texts == [["a", "charming", r"\$5", "film"], ["dull", "x" * 16, "", ""]]
    queries = [one.get_text() for one in panels[0].get_yticklabels()]
    assert queries == ["query 0", "query 1"]
    assert [axes.get_title(loc="left") for axes in panels] == ["good", "bad"]
    title = drawn[0].get_suptitle()
    assert title == "the largest weight is 0.9, of 'charming' in good"


def test_attention_without_texts_counts_tokens(tmp_path, drawn):
    attention(tmp_path / "attention.png", np.full([1, 1, 100], 0.01))
    labels = drawn[0].axes[0].get_xticklabels()
    assert [one.get_text() for one in labels] == [str(n) for n in range(0, 100, 3)]
    title = drawn[0].get_suptitle()
    assert title == "the largest weight is 0.01, of token 0 in row 0"


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        (WEIGHTS[0], {}, r"weights: expected \[rows, queries, tokens\], .*\[2, 4\]"),
        (WEIGHTS[:0], {}, "weights: expected .* one or more of each"),
        (WEIGHTS, {}, "weights: expected finite numbers"),
        (WEIGHTS, {"mask": REAL[:1]}, r"mask: expected \[2, 4\], got \[1, 4\]"),
        (WEIGHTS, {"mask": ~REAL[:1] & ~REAL}, "mask: expected a real token"),
        (WEIGHTS[:1], {"tokens": TEXTS}, "tokens: expected a list a row, 1, got 2"),
        (WEIGHTS[:1], {"tokens": [["a"]]}, "tokens: expected from 4 to 4 texts in row"),
        (WEIGHTS[:1], {"names": []}, "names: expected one a row, 1, got 0"),
    ],
)
def test_attention_that_does_not_fit_is_refused(tmp_path, weights, options, message):
    with pytest.raises(ValueError, match=message):
        attention(tmp_path / "attention.png", weights, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.001, "3,000 candidates/s  0 s left"),
        (0.5, "6.0 candidates/s  0 s left"),
        (3.0, "1.0 candidates/s  3 s left"),
        (3.9, "1.3 s/candidate  4 s left"),
        (90.0, "30 s/candidate  90 s left"),
        (6000.0, "2,000 s/candidate  6000 s left"),
    ],
)
def test_a_slow_pace_is_the_time_of_each(monkeypatch, seconds, shown):
    """Three of six were done in so many seconds."""
    clock = iter([100.0, 100.0 + seconds])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: True)
    bar = display(out)
    bar.step(0, 6, "", "candidates")
    bar.step(3, 6, "", "candidates")
    assert out.getvalue().endswith(f" 3/6 candidates  {shown}")
