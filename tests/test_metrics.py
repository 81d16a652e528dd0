"""Every metric against scikit-learn, SciPy or arithmetic that is written out."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit, log_softmax, softmax
from sklearn import metrics as sk

from flaxhead.metrics import (
    METRICS,
    ScoreSums,
    auroc,
    average_precision,
    evaluate,
    finish,
    score_sums,
    standard_error,
)

compiled = jax.jit(score_sums, static_argnames="output")
FROM_SUMS = [name for name, metric in METRICS.items() if metric.from_sums]


def names(classes):
    return [f"class {number}" for number in range(classes)]


def one_label(seed, *, rows=203, classes=4, ties=False, absent=False, weighted=True):
    """Logits, labels and weights that are right more often than not."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(classes - absent, size=rows)
    logits = draw.normal(size=(rows, classes)).astype(np.float32) * 2
    logits[np.arange(rows), labels] += 1
    if ties:
        logits = np.round(logits)
    weights = draw.choice([0.0, 0.5, 1.0, 3.0], size=rows) if weighted else None
    return logits, labels, weights


def many_labels(seed, *, rows=203, classes=5, missing=0.2):
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(rows, classes)).astype(np.float32) * 2
    labels = (draw.random((rows, classes)) < expit(logits - 0.5)).astype(np.float32)
    labels[draw.random(labels.shape) < missing] = np.nan
    weights = draw.choice([0.0, 0.5, 1.0, 3.0], size=rows)
    return logits, labels, weights


def ece(confidence, correct, weights):
    """Expected calibration error, bin by bin as it is defined."""
    error = 0.0
    for lower in range(15):
        inside = (confidence > lower / 15) & (confidence <= (lower + 1) / 15)
        if weights[inside].sum() > 0:
            gap = np.average(
                confidence[inside] - correct[inside], weights=weights[inside]
            )
            error += weights[inside].sum() / weights.sum() * abs(gap)
    return error


def class_mean(score, labels, scores, weights):
    """Mean of a scikit-learn score over the classes that have both values."""
    columns = [
        score(labels == number, column, sample_weight=weights)
        for number, column in enumerate(scores.T)
        if 0 < (weights * (labels == number)).sum() < weights.sum()
    ]
    return np.mean(columns)


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 12])
def test_one_label_a_row_equals_scikit_learn(classes, ties, absent, weighted):
    absent = absent and classes > 2
    problem = {"classes": classes, "ties": ties, "absent": absent, "weighted": weighted}
    logits, labels, weights = one_label(classes, **problem)
    got = evaluate(
        logits,
        labels,
        weights,
        class_names=names(classes),
        output="softmax",
        intervals=False,
    )
    weights = np.ones(len(labels)) if weights is None else weights
    p, predicted = softmax(logits.astype(float), axis=1), logits.argmax(axis=1)
    every = np.arange(classes)
    wanted = {
        "accuracy": sk.accuracy_score(labels, predicted, sample_weight=weights),
        "balanced_accuracy": sk.balanced_accuracy_score(
            labels, predicted, sample_weight=weights
        ),
        "macro_f1": sk.f1_score(
            labels[weights > 0],
            predicted[weights > 0],
            average="macro",
            sample_weight=weights[weights > 0],
        ),
        "nll": sk.log_loss(labels, p, sample_weight=weights, labels=every),
        "brier": sk.brier_score_loss(labels, p, sample_weight=weights, labels=every),
        "ece": ece(p.max(axis=1), predicted == labels, weights),
    }
    if classes == 2:
        wanted["auroc"] = sk.roc_auc_score(labels, p[:, 1], sample_weight=weights)
        wanted["average_precision"] = sk.average_precision_score(
            labels, p[:, 1], sample_weight=weights
        )
    else:
        wanted["auroc"] = class_mean(sk.roc_auc_score, labels, p, weights)
        wanted["average_precision"] = class_mean(
            sk.average_precision_score, labels, p, weights
        )
    # Among equal scores scikit-learn ranks the last class first, argmax and we the
    # first: the reversed columns are the same question.
    wanted["top_5_accuracy"] = (
        1.0
        if classes <= 5
        else sk.top_k_accuracy_score(
            classes - 1 - labels,
            logits[:, ::-1],
            k=5,
            labels=every,
            sample_weight=weights,
        )
    )
    assert got["undefined"] == {}
    assert {name: got[name] for name in METRICS} == pytest.approx(wanted, abs=1e-9)
    on_device = finish(compiled(jnp.array(logits), jnp.array(labels), weights))
    assert on_device == pytest.approx({n: wanted[n] for n in FROM_SUMS}, abs=1e-5)


def test_multiclass_ranking_equals_scikit_learns_own_average():
    logits, labels, _ = one_label(0, classes=5)
    p = softmax(logits.astype(float), axis=1)
    p /= p.sum(axis=1, keepdims=True)
    wanted = sk.roc_auc_score(labels, p, multi_class="ovr", average="macro")
    assert auroc(p, labels) == pytest.approx(wanted, abs=1e-12)
    wanted = sk.average_precision_score(labels, p, average="macro")
    assert average_precision(p, labels) == pytest.approx(wanted, abs=1e-12)


def test_per_class_and_confusion_equal_scikit_learn():
    logits, labels, weights = one_label(1, classes=4)
    report = evaluate(
        logits,
        labels,
        weights,
        class_names=names(4),
        output="softmax",
        intervals=False,
    )
    predicted = logits.argmax(axis=1)
    table = sk.confusion_matrix(labels, predicted, sample_weight=weights)
    np.testing.assert_allclose(report["confusion"], table, atol=1e-9)
    precision, recall, _, _ = sk.precision_recall_fscore_support(
        labels, predicted, sample_weight=weights
    )
    rows = [report["per_class"][name] for name in names(4)]
    np.testing.assert_allclose([row["precision"] for row in rows], precision)
    np.testing.assert_allclose([row["recall"] for row in rows], recall)
    np.testing.assert_allclose([row["support"] for row in rows], table.sum(axis=1))
    assert report["rows"] == (weights > 0).sum()


@pytest.mark.parametrize("seed", range(4))
def test_many_labels_a_row_equal_scikit_learn_label_by_label(seed):
    logits, labels, weights = many_labels(seed)
    labels[:, 4] = np.where(np.isnan(labels[:, 4]), np.nan, 0)  # never positive
    report = evaluate(
        logits,
        labels,
        weights,
        class_names=names(5),
        output="sigmoid",
        intervals=False,
    )
    present = ~np.isnan(labels)
    by_label = {
        name: []
        for name in ("balanced_accuracy", "macro_f1", "auroc", "average_precision")
    }
    for label, logit, known in zip(labels.T, logits.T, present.T, strict=True):
        y, p, w = label[known], expit(logit[known].astype(float)), weights[known]
        balanced = [
            np.average((p > 0.5)[y == value] == value, weights=w[y == value])
            for value in (0, 1)
            if w[y == value].sum() > 0
        ]
        by_label["balanced_accuracy"].append(np.mean(balanced))
        by_label["macro_f1"].append(sk.f1_score(y, p > 0.5, sample_weight=w))
        if y.any():
            by_label["auroc"].append(sk.roc_auc_score(y, p, sample_weight=w))
            by_label["average_precision"].append(
                sk.average_precision_score(y, p, sample_weight=w)
            )
    y, p = labels[present], expit(logits.astype(float))[present]
    w = np.broadcast_to(weights[:, None], labels.shape)[present]
    wanted = {name: np.mean(values) for name, values in by_label.items()} | {
        "accuracy": sk.accuracy_score(y, p > 0.5, sample_weight=w),
        "nll": sk.log_loss(y, p, sample_weight=w),
        "brier": sk.brier_score_loss(y, p, sample_weight=w),
        "ece": ece(p, y, w),
    }
    got = {name: report[name] for name in METRICS if report[name] is not None}
    assert got == pytest.approx(wanted, abs=1e-9)
    assert set(report["undefined"]) == {"top_5_accuracy"}
    assert "confusion" not in report
    on_device = finish(
        compiled(jnp.array(logits), jnp.array(labels), weights, output="sigmoid")
    )
    assert math.isnan(on_device.pop("top_5_accuracy"))
    assert on_device == pytest.approx({n: wanted[n] for n in on_device}, abs=1e-5)


def test_sigmoid_head_with_one_label_is_one_versus_rest():
    logits, labels, weights = one_label(3, classes=6)
    report = evaluate(
        logits,
        labels,
        weights,
        class_names=names(6),
        output="sigmoid",
        intervals=False,
    )
    hot, p = np.eye(6)[labels], expit(logits.astype(float))
    w = np.repeat(weights, 6)
    predicted = logits.argmax(axis=1)
    wanted = {
        "accuracy": sk.accuracy_score(labels, predicted, sample_weight=weights),
        "nll": sk.log_loss(hot.ravel(), p.ravel(), sample_weight=w),
        "brier": sk.brier_score_loss(hot.ravel(), p.ravel(), sample_weight=w),
        "ece": ece(p.max(axis=1), predicted == labels, weights),
        "auroc": class_mean(sk.roc_auc_score, labels, p, weights),
    }
    assert {n: report[n] for n in wanted} == pytest.approx(wanted, abs=1e-9)
    on_device = finish(
        compiled(jnp.array(logits), jnp.array(labels), weights, output="sigmoid")
    )
    wanted.pop("auroc")
    assert {n: on_device[n] for n in wanted} == pytest.approx(wanted, abs=1e-5)


def test_soft_labels():
    logits, hard, weights = one_label(4, classes=5)
    draw = np.random.default_rng(4)
    soft = 0.3 * draw.dirichlet(np.ones(5), size=len(hard)) + 0.7 * np.eye(5)[hard]
    soft = soft.astype(np.float32)
    keep = {"class_names": names(5), "output": "softmax", "intervals": False}
    got = evaluate(logits, soft, weights, **keep)
    as_hard = evaluate(logits, hard, weights, **keep)
    log_p = log_softmax(logits.astype(float), axis=1)
    nll = -(soft * log_p).sum(axis=1)
    brier = ((np.exp(log_p) - soft) ** 2).sum(axis=1)
    assert got["nll"] == pytest.approx(np.average(nll, weights=weights), abs=1e-9)
    assert got["brier"] == pytest.approx(np.average(brier, weights=weights), abs=1e-9)
    for name in METRICS.keys() - {"nll", "brier"}:  # judged by the likeliest class
        assert got[name] == as_hard[name]
    on_device = finish(compiled(jnp.array(logits), jnp.array(soft), weights))
    assert on_device == pytest.approx({n: got[n] for n in FROM_SUMS}, abs=1e-5)


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_extreme_logits_stay_finite_and_right(output):
    logits = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 0], [0, 0, -1e4]], np.float32)
    labels = np.array([0, 0, 2])
    hot = np.eye(3)[labels]
    if output == "softmax":
        rows = -log_softmax(logits.astype(float), axis=1)[range(3), labels]
    else:
        rows = -stats.logistic.logcdf((2 * hot - 1) * logits.astype(float)).mean(axis=1)
    got = finish(compiled(jnp.array(logits), labels, jnp.ones(3), output=output))
    assert got["nll"] == pytest.approx(rows.mean(), rel=1e-6)
    assert all(math.isfinite(value) for value in got.values())
    report = evaluate(logits, labels, class_names=names(3), output=output)
    assert report["nll"] == pytest.approx(rows.mean(), rel=1e-12)
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("task", ["softmax", "sigmoid"])
def test_batches_add_up_to_the_whole(task):
    """1,003 rows in batches of 64: padding and a last short batch bias nothing."""
    make = one_label if task == "softmax" else many_labels
    logits, labels, weights = make(5, rows=1003)
    pad = -len(logits) % 64
    padded = np.pad(logits, ((0, pad), (0, 0)), constant_values=np.nan)
    short = [(0, pad), (0, 0)][: labels.ndim]
    batches = (
        padded.reshape(-1, 64, logits.shape[1]),
        np.pad(labels, short).reshape(-1, 64, *labels.shape[1:]),
        np.pad(weights, (0, pad)).reshape(-1, 64),
    )
    step = functools.partial(compiled, output=task)
    sums = step(*(batch[0] for batch in batches))
    for number in range(1, len(batches[0])):
        sums = jax.tree.map(jnp.add, sums, step(*(batch[number] for batch in batches)))
    whole = evaluate(
        logits,
        labels,
        weights,
        class_names=names(logits.shape[1]),
        output=task,
        intervals=False,
    )
    got = {n: value for n, value in finish(sums).items() if whole[n] is not None}
    assert got == pytest.approx({n: whole[n] for n in got}, abs=2e-5)
    assert len(got) >= 6


@pytest.mark.parametrize("task", ["softmax", "sigmoid"])
def test_candidates_do_not_touch_each_other(task):
    make = one_label if task == "softmax" else many_labels
    logits, labels, weights = make(6)
    candidates = jnp.stack([logits, 2 * logits, logits[::-1], logits * np.nan])
    labels, weights = jnp.array(labels), jnp.array(weights, jnp.float32)

    def sums(x):  # eager below, which must be the same
        return score_sums(x, labels, weights, output=task)

    together = finish(jax.jit(jax.vmap(sums))(candidates))
    for number, candidate in enumerate(candidates):
        alone = finish(sums(candidate))
        for name in FROM_SUMS:
            np.testing.assert_allclose(
                together[name][number], alone[name], rtol=1e-5, atol=1e-6
            )
    assert np.isfinite(together["nll"]).tolist() == [True, True, True, False]


@pytest.mark.parametrize("task", ["softmax", "sigmoid"])
def test_eight_devices_equal_one(task):
    make = one_label if task == "softmax" else many_labels
    logits, labels, weights = make(7, rows=8 * 31)

    def per_device(x, y, w):
        return jax.lax.psum(score_sums(x, y, w, output=task), "devices")

    shards = [np.reshape(a, (8, 31, *a.shape[1:])) for a in (logits, labels, weights)]
    many = jax.pmap(per_device, axis_name="devices")(*shards)
    many = finish(jax.tree.map(lambda field: field[0], many))
    one = finish(compiled(jnp.array(logits), jnp.array(labels), weights, output=task))
    assert many == pytest.approx(one, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("task", ["softmax", "sigmoid"])
def test_a_row_without_weight_or_label_is_absent(task):
    make = one_label if task == "softmax" else many_labels
    logits, labels, weights = make(8)
    deleted = compiled(logits[3:], labels[3:], weights[3:], output=task)
    logits[:3], weights[:2] = np.inf, 0
    labels[2] = -1 if labels.ndim == 1 else np.nan
    got = compiled(logits, labels, weights, output=task)
    for one, other in zip(got, deleted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    settings = {"class_names": names(logits.shape[1]), "output": task}
    assert evaluate(logits, labels, weights, **settings) == evaluate(
        logits[3:], labels[3:], weights[3:], **settings
    )
    nothing = finish(compiled(logits, labels, 0 * weights, output=task))
    assert all(math.isnan(value) for value in nothing.values())


@pytest.mark.parametrize("task", ["softmax", "sigmoid"])
def test_a_weight_of_two_is_a_row_twice(task):
    make = one_label if task == "softmax" else many_labels
    logits, labels, _ = make(9)
    times = np.random.default_rng(9).integers(0, 4, size=len(logits))
    settings = {"class_names": names(logits.shape[1]), "output": task}
    weighed = evaluate(logits, labels, times, **settings, intervals=False)
    index = np.repeat(np.arange(len(logits)), times)
    repeated = evaluate(logits[index], labels[index], **settings, intervals=False)
    for name in METRICS:
        assert weighed[name] == pytest.approx(repeated[name], abs=1e-12)


def test_bfloat16_logits_are_judged_in_float32():
    logits, labels, _ = one_label(10)
    narrow = jnp.array(logits, jnp.bfloat16)
    got = compiled(narrow, jnp.array(labels), jnp.ones(len(labels)))
    assert {field.dtype for field in got} == {jnp.dtype("float32")}
    wanted = compiled(narrow.astype(jnp.float32), labels, jnp.ones(len(labels)))
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_counts_past_float32_stay_exact_when_added_in_float64():
    logits, labels = jnp.array([[0.0, 1.0]]), jnp.array([1])
    sums = [compiled(logits, labels, jnp.array([w])) for w in (2.0**24, 1.0)]
    assert float(jax.tree.map(jnp.add, *sums).count) == 2**24
    exact = ScoreSums(*(np.float64(a) + np.float64(b) for a, b in zip(*sums)))  # noqa: B905
    assert exact.count == 2**24 + 1
    assert finish(exact)["accuracy"] == 1.0


ranks = st.lists(
    st.tuples(st.integers(0, 5), st.booleans(), st.integers(1, 3)),
    min_size=2,
    max_size=30,
).filter(lambda rows: len({positive for _, positive, _ in rows}) == 2)


@settings(deadline=None, max_examples=60)
@given(ranks)
def test_ranking_with_ties_and_weights(rows):
    scores, labels, weights = (np.array(column) for column in zip(*rows, strict=True))
    wins = pairs = 0.0
    for score, weight in zip(scores[labels], weights[labels], strict=True):
        for other, times in zip(scores[~labels], weights[~labels], strict=True):
            wins += weight * times * (float(score > other) + 0.5 * (score == other))
            pairs += weight * times
    assert auroc(scores, labels.astype(int), weights) == pytest.approx(wins / pairs)
    wanted = sk.average_precision_score(labels, scores, sample_weight=weights)
    got = average_precision(scores, labels.astype(int), weights)
    assert got == pytest.approx(wanted, abs=1e-9)


def test_ranking_is_nan_where_no_class_has_both_values():
    assert math.isnan(auroc([0.2, 0.9], [1, 1]))
    assert average_precision([0.2, 0.9], [1, 1]) == 1.0
    assert math.isnan(average_precision([0.2, 0.9], [0, 0]))
    assert math.isnan(auroc(np.eye(2), np.full((2, 2), np.nan)))


def test_logits_part_by_part_are_logits():
    """But for what has to be ranked; a part may have no labelled row."""
    logits, labels, weights = one_label(3, rows=90, absent=True)
    labels[40:60] = -1
    about = {"class_names": names(4), "output": "softmax", "samples": 100}
    whole = evaluate(logits, labels, weights, **about)
    parts = (logits[first : first + 20] for first in range(0, 90, 20))
    found = evaluate(parts, labels, weights, **about)
    for name in ("auroc", "average_precision"):
        assert found.pop(name) is found.pop(f"{name}_ci") is None
        reason = "too many rows and classes to rank"
        assert found["undefined"].pop(name) == reason
        assert found["undefined"].pop(f"{name}_ci") == reason
        del whole[name], whole[f"{name}_ci"]
    assert found == whole
    with pytest.raises(ValueError, match="one for each of 20 rows of logits"):
        evaluate(iter([logits[:20]]), labels, weights, **about)


def test_undefined_metrics_are_null_with_a_reason():
    report = evaluate(
        np.ones((4, 3)), np.zeros(4, int), class_names=names(3), output="softmax"
    )
    assert report["auroc"] is None
    assert report["auroc_ci"] is None
    assert report["undefined"].keys() == {"auroc", "auroc_ci"}
    assert report["per_class"]["class 1"] == {
        "support": 0,
        "precision": None,
        "recall": None,
    }
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    empty = evaluate(
        -np.ones((4, 2)), np.zeros((4, 2)), class_names=names(2), output="sigmoid"
    )
    wanted = {"top_5_accuracy", "macro_f1", "auroc", "average_precision"}
    assert {name for name in METRICS if empty[name] is None} == wanted
    json.dumps(empty, allow_nan=False)


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_shares_of_equally_weighted_rows_get_wilsons_interval(weight):
    logits, labels, _ = one_label(11, rows=97, classes=7)
    report = evaluate(
        logits,
        labels,
        np.full(97, weight),
        class_names=names(7),
        output="softmax",
    )
    for name in ("accuracy", "top_5_accuracy"):
        right = round(report[name] * 97)
        wanted = stats.binomtest(right, 97).proportion_ci(0.95, method="wilson")
        assert report[f"{name}_ci"] == pytest.approx([wanted.low, wanted.high])


@pytest.mark.parametrize("task", ["softmax", "sigmoid"])
def test_every_interval_holds_its_value_and_repeats(task):
    make = one_label if task == "softmax" else many_labels
    logits, labels, weights = make(12)
    settings = {"class_names": names(logits.shape[1]), "output": task}
    report = evaluate(logits, labels, weights, **settings)
    for name in METRICS:
        if report[name] is not None:
            low, high = report[f"{name}_ci"]
            assert 0 <= low <= report[name] <= high
            assert name == "top_5_accuracy" or low < high
    assert report == evaluate(logits, labels, weights, **settings)
    assert report["nll_ci"] != evaluate(logits, labels, weights, **settings, seed=1)


def test_bootstrap_agrees_with_the_normal_theory_of_a_mean():
    logits, labels, _ = one_label(13, rows=1500)
    rows = -log_softmax(logits.astype(float), axis=1)[range(1500), labels]
    error = rows.std(ddof=1) / math.sqrt(1500)
    problem = (logits, labels)
    report = evaluate(*problem, class_names=names(4), output="softmax")
    low, high = report["nll_ci"]
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    got = standard_error("nll", *problem, output="softmax", samples=1000)
    assert got == pytest.approx(error, rel=0.1)


def test_standard_errors():
    logits, labels, weights = one_label(14, rows=400)
    p = np.mean(logits.argmax(axis=1) == labels)
    got = standard_error("accuracy", logits, labels, output="softmax")
    assert got == pytest.approx(math.sqrt(p * (1 - p) / 400))
    # Weights make it a weighted mean: linearise, then the usual sum of squares.
    error = weights * (
        (logits.argmax(axis=1) == labels)
        - np.average(logits.argmax(axis=1) == labels, weights=weights)
    )
    wanted = math.sqrt((error**2).sum()) / weights.sum()
    got = standard_error(
        "accuracy", logits, labels, weights, output="softmax", samples=1000
    )
    assert got == pytest.approx(wanted, rel=0.1)
    # Labels of one row are right and wrong together: rows are drawn, not entries.
    copies = np.repeat(logits[:, :1], 5, axis=1)
    hot = np.repeat((labels == 0)[:, None], 5, axis=1).astype(float)
    share = np.mean((copies > 0) == hot)
    got = standard_error("accuracy", copies, hot, output="sigmoid", samples=1000)
    assert got == pytest.approx(math.sqrt(share * (1 - share) / 400), rel=0.1)
    ranked = standard_error("auroc", logits, labels, output="softmax")
    assert 0 < ranked < 0.05
    one_class = np.zeros(400, int)
    assert math.isnan(standard_error("auroc", logits, one_class, output="softmax"))


def test_intervals_cover_the_truth_about_as_often_as_they_claim():
    """Percentiles would cover macro F1 and average precision far less often."""
    draw = np.random.default_rng(15)

    def problem(rows, classes=20):
        logits = 2 * draw.normal(size=(rows, classes))
        p = softmax(logits, axis=1)
        labels = (p.cumsum(axis=1) < draw.random((rows, 1))).sum(axis=1)
        return logits, labels.clip(max=classes - 1)

    settings = {"class_names": names(20), "output": "softmax"}
    truth = evaluate(*problem(50_000), **settings, intervals=False)
    reports = [
        evaluate(*problem(300), **settings, seed=seed, samples=100)
        for seed in range(40)
    ]
    for name in METRICS:
        hits = [
            low <= truth[name] <= high
            for low, high in (report[f"{name}_ci"] for report in reports)
        ]
        assert np.mean(hits) >= 0.75, name


FINE = {"logits": np.eye(3), "labels": np.arange(3), "weights": np.ones(3)}
SOFT = np.eye(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": np.eye(3)[:, :2]}, r"logits: expected \[rows, 3\] for 3 classes"),
        (
            {"logits": np.full((3, 3), np.inf)},
            "logits: expected finite.*3 rows.*0, 1, 2",
        ),
        ({"labels": np.arange(4)}, r"labels: expected \[3\] or \[3, 3\].*\[4\]"),
        ({"labels": np.array([0, 1, 3])}, "labels: expected class numbers below 3.*2"),
        ({"labels": np.ones(3)}, "labels: expected integers.*float64"),
        ({"labels": 2 * SOFT}, "labels: expected values from 0 to 1 that sum to 1"),
        ({"labels": np.ones((3, 3))}, "labels: expected values.* that sum to 1"),
        ({"labels": np.full(3, -1)}, "labels: expected a labelled row"),
        ({"weights": np.ones(2)}, r"weights: expected \[3\], got \[2\]"),
        ({"weights": -np.ones(3)}, "weights: expected finite numbers of 0 or more"),
        ({"weights": np.zeros(3)}, "labels: expected a labelled row with a weight"),
        ({"output": "tanh"}, "output: expected softmax or sigmoid, got 'tanh'"),
        ({"samples": 10}, "samples: expected 100 or more, got 10"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(change, message):
    arguments = {**FINE, "class_names": names(3), "output": "softmax", **change}
    with pytest.raises(ValueError, match=message):
        evaluate(**arguments)


def test_other_refusals():
    with pytest.raises(ValueError, match="metric: expected one of accuracy"):
        standard_error("acuracy", np.eye(2), [0, 1], output="softmax")
    with pytest.raises(ValueError, match="scores: expected finite"):
        auroc([0.1, np.nan], [0, 1])
    with pytest.raises(ValueError, match="labels: expected one a row"):
        auroc([0.1, 0.2], [0, 1, 1])
    with pytest.raises(ValueError, match="labels: expected numbers below 2"):
        average_precision([0.1, 0.2], [0, 2])
