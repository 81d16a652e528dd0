"""Whole fits compared by folds: what is scored, what wins, what is fitted again."""

import dataclasses
import os
import signal

import jax
import numpy as np
import pytest
import scipy.special
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import accuracy_score, roc_auc_score

import flaxhead as fh
from flaxhead import (
    Config,
    CurveConfig,
    DataConfig,
    HeadConfig,
    SelectionConfig,
    TrainConfig,
    arrays,
    crossval,
)
from flaxhead.loop import Interrupted
from flaxhead.report.progress import Display
from flaxhead.search import Question, head_names, predict, programs, search

ROWS, DIM, CLASSES = 150, 6, 3
# Of `dataset`: what is compiled for these numbers serves several tests.
TRAIN_ROWS, TEST_ROWS = 120, 30
RIDGE = HeadConfig("ridge", alpha=(1.0, 10.0, 1000.0))


def table(rows=ROWS, seed=0, noise=1.3):
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % CLASSES
    centres = np.random.default_rng(7).normal(size=(CLASSES, DIM))
    x = centres[labels] + noise * rng.normal(size=(rows, DIM))
    return x.astype(np.float32), labels


def settings(*heads, devices=1, **selection):
    selection = {"folds": 3, "extend": 0, **selection}
    return Config(
        data=DataConfig(val_fraction=0.0, test_fraction=0.2),
        heads=heads,
        train=TrainConfig(devices=devices, epochs=3),
        selection=SelectionConfig(**selection),
    )


def question(
    config, metric="accuracy", output="softmax", task="multiclass", weights=None
):
    return Question(config, CLASSES, task, output, metric, weights)


def dataset(config, **more):
    x, labels = table()
    return arrays({"embeddings": x, "labels": labels, **more}, config=config.data)


def run(config, data=None, **about):
    return answer(question(config, **about), data or dataset(config))


def answer(asked, data):
    return crossval.run(asked, data, crossval.pool(asked.config, data))


def test_names_tell_heads_of_one_kind_apart():
    configs = (
        HeadConfig("linear", pool="mean"),
        HeadConfig("linear", pool="query", dropout=(0.5,)),
        HeadConfig("linear", columns=(0.0, 0.5), pool="query"),
        HeadConfig("mlp", width=8),
        HeadConfig("mlp", width=9),
        HeadConfig("ridge", alpha=(1.0,)),
        HeadConfig("ridge", alpha=(2.0,)),
    )
    assert head_names(configs) == [
        *("linear-mean", "linear-query", "linear-columns=(0.0,0.5)-query"),
        *("mlp-8x1", "mlp-9x1", "ridge#5", "ridge#6"),
    ]


def test_held_out_rows_are_scored_by_fits_without_them():
    config = settings(RIDGE)
    data = dataset(config)
    chosen_by = crossval.pool(config, data)
    found = run(config, data).found
    x, labels, fold = data.train.x, data.train.labels, chosen_by.fold
    for candidate in found.candidates:
        model = RidgeClassifier(alpha=candidate.hyperparameters["alpha"])
        right = np.zeros(len(x))
        for number in range(3):
            out = fold == number
            right[out] = model.fit(x[~out], labels[~out]).predict(x[out]) == labels[out]
        assert candidate.score == pytest.approx(right.mean())
        np.testing.assert_array_equal(found.totals[candidate.index], right)
        error = np.sqrt(right.mean() * (1 - right.mean()) / len(x))
        assert candidate.standard_error == pytest.approx(error, rel=1e-5)


def test_the_winner_is_fitted_on_all_rows_of_training_and_validation():
    config = settings(RIDGE)
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, val_fraction=0.3)
    )
    data = dataset(config)
    found = run(config, data).found
    x = np.concatenate([data.train.x, data.val.x])
    labels = np.concatenate([data.train.labels, data.val.labels])
    best = found.candidates[found.selection.winner].hyperparameters["alpha"]
    model = RidgeClassifier(alpha=best).fit(x, labels)
    kernel = found.params["output"]["kernel"]
    np.testing.assert_allclose(kernel.T, model.coef_, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("refit", [True, False])
def test_without_folds_the_validation_rows_choose(refit):
    config = settings(RIDGE, folds=0, refit=refit)
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, val_fraction=0.3)
    )
    data = dataset(config)
    outcome = run(config, data)
    for candidate in outcome.found.candidates:
        model = RidgeClassifier(alpha=candidate.hyperparameters["alpha"])
        score = model.fit(data.train.x, data.train.labels).score(
            data.val.x, data.val.labels
        )
        assert candidate.score == pytest.approx(score)
    winner = outcome.found.candidates[outcome.found.selection.winner]
    x, labels = data.train.x, data.train.labels
    if refit:
        x = np.concatenate([x, data.val.x])
        labels = np.concatenate([labels, data.val.labels])
    model = RidgeClassifier(alpha=winner.hyperparameters["alpha"]).fit(x, labels)
    kernel = outcome.found.params["output"]["kernel"]
    np.testing.assert_allclose(kernel.T, model.coef_, rtol=2e-4, atol=2e-5)
    assert outcome.scores["folds"]["refit"] == (len(x) if refit else 0)


def test_leave_one_out_is_a_fit_without_each_row():
    config = settings(HeadConfig("ridge", alpha=(3.0, 300.0)), fold_by="leave_one_out")
    data = dataset(config)
    found = run(config, data).found
    x, labels = data.train.x, data.train.labels
    for candidate in found.candidates:
        model = RidgeClassifier(alpha=candidate.hyperparameters["alpha"])
        right = [
            model.fit(np.delete(x, row, 0), np.delete(labels, row)).predict(x[[row]])[0]
            == labels[row]
            for row in range(len(x))
        ]
        np.testing.assert_array_equal(found.totals[candidate.index], right)


HEADS = {
    "nearest_mean": HeadConfig("nearest_mean"),
    "lda": HeadConfig("lda", shrinkage=(0.1, 0.9)),
    "ridge": RIDGE,
    "logistic": HeadConfig("logistic", C=(0.1, 1.0)),
    "knn": HeadConfig("knn", k=(5, 20)),
    "linear": HeadConfig("linear"),
    "mlp": HeadConfig("mlp", width=8, dropout=(0.0, 0.5)),
}


@pytest.mark.parametrize("name", HEADS)
def test_any_number_of_devices_gives_the_same(name):
    one, many = (
        run(settings(HEADS[name], devices=devices)).found for devices in (1, 8)
    )
    assert one.selection == many.selection
    # A solution of a stated gradient norm is one of several.
    tolerance = 2e-3 if name == "logistic" else 2e-5
    for a, b in zip(
        jax.tree.leaves(one.params), jax.tree.leaves(many.params), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", HEADS)
def test_a_row_of_weight_zero_is_absent(name):
    """The numbers of a search don't depend on what such a row holds."""
    config = settings(HEADS[name])
    x, labels = table(TRAIN_ROWS)
    weights = np.ones(TRAIN_ROWS, np.float32)
    weights[::7] = 0
    other = np.where(weights[:, None] > 0, x, 5.0), np.where(weights > 0, labels, 0)
    only = {"embeddings": x[:TEST_ROWS], "labels": labels[:TEST_ROWS]}
    found = []
    for values, names in ((x, labels), other):
        fields = {"embeddings": values, "labels": names, "weights": weights}
        data = arrays(fields, test=only, config=config.data)
        found.append(run(config, data).found)
    first, second = found
    assert [c.score for c in first.candidates] == pytest.approx(
        [c.score for c in second.candidates]
    )
    logits = [
        predict(
            one,
            crossval.to_batch(data.test),
            programs=programs(question(config), rows=len(one.held)),
        )
        for one in found
    ]
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-3, atol=1e-3)


def test_a_ranking_metric_is_that_of_all_held_out_rows():
    config = settings(HeadConfig("knn", k=(5, 20)))
    data = dataset(config)
    outcome = run(config, data, metric="auroc")
    found = outcome.found
    votes = scipy.special.softmax(found.logits(), axis=1)
    expected = roc_auc_score(data.train.labels, votes, multi_class="ovr")
    winner = found.candidates[found.selection.winner]
    assert winner.score == pytest.approx(expected, abs=1e-6)
    assert winner.score == max(one.score for one in found.candidates)
    assert found.totals is None
    assert "nested" in outcome.scores["corrected"]["undefined"]


def by_nll(head, rows, **selection):
    config = settings(head, **selection)
    data = arrays(rows, config=config.data)
    return answer(Question(config, 2, "multiclass", "softmax", "nll", None), data)


@pytest.mark.parametrize("C", [HeadConfig().C, (1e-3, 1e-2)])
def test_the_edge_of_a_grid_that_nobody_set_is_not_warned_of(C):
    # The larger the penalty the better: labels have nothing to do with x.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, DIM), scale=20).astype(np.float32)
    rows = {"embeddings": x, "labels": rng.permutation(ROWS) % 2}
    found = by_nll(HeadConfig("logistic", C=C), rows).found
    assert found.selection.winner == 0
    warned = [one for one in found.warnings if one.startswith("C: ")]
    assert len(warned) == (C != HeadConfig().C)


def test_a_grid_whose_edge_wins_is_extended():
    # The smaller the penalty the better: labels are a linear function of x.
    x = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
    rows = {"embeddings": x, "labels": (x @ np.arange(DIM) > 0).astype(int)}
    found = by_nll(HeadConfig("ridge", alpha=(1e4, 1e5)), rows, extend=1)
    tried = [one.hyperparameters["alpha"] for one in found.found.candidates]
    np.testing.assert_allclose(tried, [1e4, 1e5, 1e1, 1e2, 1e3])
    assert found.found.selection.winner == 2
    assert any("alpha" in sentence for sentence in found.found.warnings)


def test_the_test_rows_choose_nothing():
    config = settings(RIDGE, HeadConfig("nearest_mean"))
    data = dataset(config)
    shuffled = np.random.default_rng(1).permutation(data.test.labels)
    other = data._replace(test=data.test._replace(labels=shuffled))
    one, two = run(config, data), run(config, other)
    assert one.found.candidates == two.found.candidates
    assert one.found.selection == two.found.selection
    assert two.scores["test"]["accuracy"] < 0.6 < one.scores["test"]["accuracy"]


def test_nested_folds_score_rows_that_no_choice_saw():
    config = settings(RIDGE, nested=4)
    data = dataset(config)
    scores = run(config, data).scores["nested"]
    assert scores["rows"] == len(data.train.labels)
    assert len(scores["chosen"]) == 4
    # By hand, with scikit-learn.
    chosen_by = crossval.pool(config, data)
    outer, count = crossval.cut(
        dataclasses.replace(
            config, selection=dataclasses.replace(config.selection, folds=4)
        ),
        chosen_by.rows,
        None,
    )
    x, labels = data.train.x, data.train.labels
    right = np.zeros(len(x), bool)
    for number, chosen in zip(range(count), scores["chosen"], strict=True):
        out = outer == number
        model = RidgeClassifier(alpha=chosen["alpha"]).fit(x[~out], labels[~out])
        right[out] = model.predict(x[out]) == labels[out]
    assert scores["accuracy"] == pytest.approx(right.mean())


def test_groups_stay_in_one_fold():
    config = settings(RIDGE, fold_by="grouped")
    groups = np.arange(ROWS) // 5
    data = dataset(config, groups=groups)
    chosen_by = crossval.pool(config, data)
    folds_of = {
        group: set(chosen_by.fold[chosen_by.data.groups == group].tolist())
        for group in set(chosen_by.data.groups.tolist())
    }
    assert all(len(folds) == 1 for folds in folds_of.values())
    assert run(config, data).found.held.all()


def test_several_labels_with_missing_entries():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, DIM)).astype(np.float32)
    labels = (x[:, :CLASSES] + 0.5 * rng.normal(size=(ROWS, CLASSES)) > 0).astype(float)
    labels[rng.random(labels.shape) < 0.2] = np.nan
    config = settings(HeadConfig("logistic", C=(0.1, 1.0)))
    data = arrays({"embeddings": x, "labels": labels}, config=config.data)
    outcome = run(config, data, output="sigmoid", task="multilabel")
    found, present = outcome.found, ~np.isnan(data.train.labels)
    right = (found.logits() > 0) == (data.train.labels > 0.5)
    winner = found.candidates[found.selection.winner]
    assert winner.score == pytest.approx(
        accuracy_score(right[present], [True] * present.sum())
    )
    low, high = outcome.scores["corrected"]["accuracy_ci"]
    assert low < winner.score < high


def test_a_learning_curve_stays_inside_its_budget():
    config = dataclasses.replace(
        settings(RIDGE, HeadConfig("nearest_mean")),
        curve=CurveConfig(shots=(1, 4, 10), repeats=3),
    )
    outcome = run(config)
    curve = outcome.scores["learning_curve"]
    assert [point["shots"] for point in curve] == [1, 4, 10]
    for point in curve:
        assert len(point["scores"]) == len(point["chosen"]) == 3
        assert point["mean"] == pytest.approx(np.mean(point["scores"]))
        assert point["standard_deviation"] == pytest.approx(
            np.std(point["scores"], ddof=1)
        )
    # With one label a class nothing can be held out: the middle of the first grid.
    assert curve[0]["chosen"] == [{"head": "ridge", "alpha": 10.0}] * 3
    assert curve[-1]["mean"] > curve[0]["mean"]
    assert outcome.scores["test_looks"] == 1 + 9


@pytest.mark.parametrize("name", ["ridge", "logistic", "mlp"])
def test_a_second_search_of_a_shape_compiles_nothing(name):
    config = settings(HEADS[name])
    chosen_by = crossval.pool(config, dataset(config))
    compiled = programs(question(config), rows=len(chosen_by.fold))

    def once(seed):
        order = np.random.default_rng(seed).permutation(len(chosen_by.fold))
        found = search(
            question(config),
            chosen_by.rows,
            chosen_by.fold[order],
            folds=chosen_by.folds,
            programs=compiled,
        )
        predict(found, chosen_by.rows, programs=compiled)

    once(0)
    seconds = [one.shares.compile_seconds for one in compiled]
    compiles = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **more: (
            compiles.append(event) if "backend_compile" in event else 0
        )
    )
    once(1)
    assert [one.shares.compile_seconds for one in compiled] == seconds
    assert not compiles


def few_labels(rows=300, each=4):
    """Three long clusters, of which all but a few rows of each have no label."""
    draw = np.random.default_rng(0)
    labels = np.arange(rows) % 3
    angle = labels * 2.1 + draw.uniform(-0.7, 0.7, rows)
    x = np.stack([np.cos(angle), np.sin(angle), 0.1 * draw.normal(size=rows)], axis=1)
    shown = np.where(np.arange(rows) < 3 * each, labels, -1)
    return x.astype(np.float32), labels, shown


def test_rows_without_a_label_are_learned_from():
    x, labels, shown = few_labels()
    heads = (HeadConfig("logistic", C=(1.0,)), HeadConfig("semi_supervised", C=(1.0,)))
    head = fh.fit(x, shown, heads=heads, metric="nll", rule="best", folds=2)
    assert head.bundle.config.name == "semi_supervised"
    assert np.mean(np.asarray(head.predict(x)) == labels) > 0.97
    # Only labelled rows are scored.
    assert head.bundle.metrics["val"]["rows"] == 12


def test_a_learning_curve_hides_labels_from_heads_that_learn_without(tmp_path):
    x, labels, _ = few_labels()
    curve = CurveConfig(shots=(2,), repeats=2)
    mean = {}
    for name in ("logistic", "semi_supervised"):
        config = settings(HeadConfig(name, C=(1.0,)), folds=2)
        config = dataclasses.replace(config, curve=curve)
        data = arrays({"embeddings": x, "labels": labels}, config=config.data)
        result = fh.run(config, tmp_path / name, data=data)
        mean[name] = result["learning_curve"][0]["mean"]
    assert mean["semi_supervised"] > max(mean["logistic"], 0.97)


@pytest.mark.parametrize("name", HEADS)
def test_a_class_missing_from_a_fold_is_survived(name):
    x, labels = table(TRAIN_ROWS)
    labels = np.where(np.arange(TRAIN_ROWS) == 0, 2, labels % 2)  # one row of class 2
    config = settings(HEADS[name])
    few = slice(1, 1 + TEST_ROWS)
    data = arrays(
        {"embeddings": x, "labels": labels},
        test={"embeddings": x[few], "labels": labels[few]},
        config=config.data,
    )
    found = run(config, data).found
    assert all(np.isfinite(one.score) for one in found.candidates)
    assert "have fewer rows than the" in found.warnings[0]


def without_timing(result):
    return {name: one for name, one in result.items() if name != "timing"}


def test_a_search_that_is_stopped_starts_again(tmp_path):
    config = settings(RIDGE, HeadConfig("nearest_mean"))
    data = dataset(config)
    whole = fh.run(config, tmp_path / "whole", data=data)

    def stop(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    display = Display(say=lambda sentence: None, step=stop, close=lambda: None)
    with pytest.raises(Interrupted, match=r"SIGTERM .*starts again") as stopped:
        fh.run(config, tmp_path / "stopped", data=data, display=display)
    assert stopped.value.signal == signal.SIGTERM
    assert not (tmp_path / "stopped" / "result.json").exists()
    again = fh.run(config, tmp_path / "stopped", data=data)
    assert without_timing(again) == without_timing(whole)
    for part in ("head.json", "params.safetensors"):
        paths = [tmp_path / run / "head" / part for run in ("whole", "stopped")]
        assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize(
    ("selection", "curve", "words"),
    [
        ({"folds": 0}, {}, "validation rows"),
        ({"folds": 1000}, {}, "folds"),
        ({"fold_by": "grouped"}, {}, "groups"),
        ({"nested": 1000}, {}, "folds"),
        ({"nested": 1}, {}, "selection.nested is 1"),
        ({"fold_by": "stratifed"}, {}, "selection.fold_by is 'stratifed'"),
        ({"fold_by": "leave_one_out"}, {}, "nearest_mean"),
        ({}, {"shots": (0,)}, "curve.shots"),
        ({}, {"shots": (1,), "repeats": 0}, "curve.repeats"),
    ],
)
def test_what_cannot_be_cut_is_refused_before_anything_is_written(
    tmp_path, selection, curve, words
):
    config = settings(RIDGE, HeadConfig("nearest_mean"), **selection)
    config = dataclasses.replace(config, curve=CurveConfig(**curve))
    with pytest.raises(ValueError, match=words) as refused:
        fh.run(config, tmp_path / "run", data=dataset(config))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()
