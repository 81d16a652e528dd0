"""`flaxhead.fit(embeddings, labels)`: the one-line entry."""

import numpy as np
import pytest
from sklearn.datasets import load_iris, load_wine

import flaxhead as fh

# The ladder trains for longer than it compiles, and what is compiled, for 150 rows of 4
# features and 3 classes, serves both tests.


@pytest.mark.usefixtures("compile_fully")
def test_one_line_gives_a_head_that_predicts_names():
    x, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    head = fh.fit(x, names)
    predicted = np.array(head.class_names)[np.asarray(head.predict(x))]
    assert (predicted == names).mean() > 0.9
    metrics = head.bundle.metrics
    low, high = metrics["corrected"]["accuracy_ci"]
    assert low < metrics["val"]["accuracy"] < high
    assert metrics["test"] is None
    assert metrics["test_looks"] == 0
    assert metrics["val"]["rows"] == len(x)  # every row was held out once


@pytest.mark.usefixtures("compile_fully")
def test_the_simplest_head_that_does_as_well_wins():
    rng = np.random.default_rng(0)
    labels = np.arange(150) % 3
    apart = 10 * np.eye(3, 4)[labels] + rng.normal(size=(150, 4))
    assert fh.fit(apart, labels).bundle.config.name == "nearest_mean"
    # Two classes on both sides of the first, each on an axis of its own: no mean and no
    # plane tells them apart.
    x = rng.normal(size=(150, 4))
    side = rng.choice([-6, 6], size=150)
    for one in (1, 2):
        x[labels == one, one] += side[labels == one]
    assert fh.fit(x, labels).bundle.config.name == "mlp"


def test_a_run_is_kept_where_it_is_asked_for(tmp_path):
    x, y = load_wine(return_X_y=True)
    settings = fh.HeadConfig("ridge", normalization="standardize")
    head = fh.fit(x, y, heads=settings, workdir=tmp_path / "run")
    again = fh.load(tmp_path / "run" / "head")
    np.testing.assert_array_equal(head.logits(x), again.logits(x))
    assert (tmp_path / "run" / "result.json").exists()
    assert head.bundle.config.name == "ridge"


def test_groups_and_weights_are_used(tmp_path):
    x, y = load_wine(return_X_y=True)
    weights = np.where(np.arange(len(y)) % 4, 1.0, 0.0)
    groups = np.arange(len(y)) // 3
    head = fh.fit(x, y, heads="lda", weights=weights, groups=groups)
    assert head.bundle.metrics["val"]["rows"] == (weights > 0).sum()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": [0, 1]}, "labels"),
        ({"embeddings": np.full((150, 4), np.nan)}, "NaN"),
        ({"labels": [0] * 150}, "one class"),
        ({"heads": "linaer"}, "linaer"),
        ({"folds": 1}, "selection.folds is 1"),
        ({"folds": 1000}, "folds"),
        ({"metric": "acuracy"}, "acuracy"),
        ({"heads": 3}, "heads is 3; expected a name"),
        ({"heads": ["ridge"]}, r"heads is \['ridge'\]; expected a name"),
        ({"folds": "5"}, "selection.folds is '5', of type str; expected a whole"),
        ({"heads": fh.HeadConfig("ridge", alpha=1.0)}, "heads.0.alpha is 1.0, of"),
        ({"rule": "bets"}, "bets"),
        ({"groups": np.zeros(150)}, "group"),
        ({"weights": -np.ones(150)}, "weights"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(change, words):
    x, y = load_iris(return_X_y=True)
    with pytest.raises(ValueError, match=words) as refused:
        fh.fit(**{"embeddings": x, "labels": y, "heads": "ridge", **change})
    assert "\n" not in str(refused.value)


def test_semi_supervised_is_with_the_other_rows_or_without():
    """By NLL, so that it is said whether the rows without a label help."""
    draw = np.random.default_rng(0)
    labels = np.arange(120) % 3
    angle = labels * 2.1 + draw.uniform(-0.7, 0.7, 120)
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    few = np.where(np.arange(120) < 18, labels, -1)
    head = fh.fit(x, few, heads="semi_supervised", folds=3)
    told = head.bundle.metrics
    assert "nll" in told["corrected"]
    assert told["selected"]["head"] in ("logistic", "semi_supervised")
    assert {one["head"] for one in told["comparisons"]} | {
        told["selected"]["head"]
    } == {"logistic", "semi_supervised"}
    right = np.mean(np.asarray(head.predict(x)) == labels)
    assert right > 0.97
