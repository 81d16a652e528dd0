"""The estimator is an ordinary scikit-learn classifier, and its heads are theirs."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from conftest import QUICK
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import make_multilabel_classification
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    ShuffleSplit,
    StratifiedKFold,
    cross_val_score,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator, estimator_checks_generator

import flaxhead as fh
from flaxhead.sklearn import HeadClassifier

HEADS = ("nearest_mean", "lda", "ridge", "logistic", "knn", "linear", "cosine", "mlp")
ADDING = (
    {"head": "nearest_mean"},
    {"head": "nearest_mean", "metric": "euclidean", "normalization": "l2"},
    {"head": "lda", "shrinkage": 0.2},
    {"head": "ridge", "alpha": 3.0, "class_weight": {0: 2.0}},
)


def blobs(rows=60, dim=6, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(rows) % classes
    centres = rng.normal(size=(classes, dim))
    return centres[y] + rng.normal(size=(rows, dim)), y


def same(a, b):
    np.testing.assert_array_equal(a, b)


# scikit-learn's own checks: all of them for the choice of a head and for a solved one,
# to which rows can be added; those that come to the fit itself for the others. What
# weights, class weights, clones and pickles are is below, for every head. Checks of
# `auto` compile the whole ladder for a dozen shapes, so they run beside the other
# tests, in a process of their own.

CHECKS = """
from sklearn.utils.estimator_checks import check_estimator
from flaxhead.sklearn import HeadClassifier

done = check_estimator(HeadClassifier(), on_fail=None, on_skip=None)
for one in done:
    if one["status"] != "passed":
        print(one["check_name"], one["status"], one["exception"])
print(len(done), "checks")
"""


# One device, and no threads to compile with: programs of this size take longer with.


@pytest.fixture(scope="module", autouse=True)
def checks_of_auto():
    process = subprocess.Popen(
        [sys.executable, "-c", CHECKS],
        env={**os.environ, "SCIPY_ARRAY_API": "1", "XLA_FLAGS": QUICK},
        cwd=Path(fh.__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.wait()


TELLING = {
    "check_classifiers_classes",
    "check_classifiers_multilabel_output_format_predict_proba",
    "check_classifiers_train",
    "check_decision_proba_consistency",
    "check_dict_unchanged",
    "check_fit2d_1feature",
    "check_fit_idempotent",
    "check_methods_subset_invariance",
}


def test_passes_scikit_learns_checks(monkeypatch):
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")
    done = check_estimator(HeadClassifier("ridge"), on_fail="raise", on_skip=None)
    assert len(done) > 60
    assert {one["status"] for one in done} == {"passed"}


@pytest.mark.parametrize("head", ["nearest_mean", "lda", "logistic", "mlp"])
def test_passes_those_that_come_to_the_fit(head):
    names = set()
    for estimator, check in estimator_checks_generator(HeadClassifier(head)):
        name = getattr(check, "func", check).__name__
        if name in TELLING:
            check(estimator)
            names.add(name)
    several = {"check_classifiers_multilabel_output_format_predict_proba"}
    assert names == TELLING - (set() if head in ("logistic", "mlp") else several)


# What the heads are.


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("C", [0.1, 1.0, 10.0])
def test_logistic_is_scikit_learns(classes, C):
    x, y = blobs(classes=classes)
    ours = HeadClassifier("logistic", C=C).fit(x, y)
    theirs = LogisticRegression(C=C, tol=1e-8, max_iter=10_000).fit(x, y)
    np.testing.assert_allclose(
        ours.predict_proba(x), theirs.predict_proba(x), atol=2e-3
    )
    assert ours.coef_.shape == theirs.coef_.shape
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=2e-2)


@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 3.0}])
def test_ridge_is_scikit_learns(class_weight):
    x, y = blobs()
    x, y = x[5:50], np.minimum(y, 1)[5:50]
    weights = np.random.default_rng(1).integers(1, 4, len(y))
    if class_weight == "balanced":  # Theirs counts rows, whatever they weigh.
        weights[:] = 1
    ours = HeadClassifier("ridge", alpha=2.0, class_weight=class_weight)
    theirs = RidgeClassifier(alpha=2.0, class_weight=class_weight)
    lead = ours.fit(x, y, weights).decision_function(x)
    # The lead of one of two columns of +-1 that sum to 0 is twice that column.
    np.testing.assert_allclose(
        lead / 2, theirs.fit(x, y, weights).decision_function(x), atol=1e-5
    )


def test_lda_is_scikit_learns():
    x, y = blobs()
    ours = HeadClassifier("lda", shrinkage=0.3).fit(x, y)
    theirs = LinearDiscriminantAnalysis("lsqr", shrinkage=0.3).fit(x, y)
    np.testing.assert_allclose(
        ours.predict_log_proba(x), theirs.predict_log_proba(x), rtol=1e-3, atol=1e-4
    )


def test_nearest_mean_is_scikit_learns():
    x, y = blobs()
    ours = HeadClassifier("nearest_mean", metric="euclidean").fit(x, y)
    same(ours.predict(x), NearestCentroid().fit(x, y).predict(x))


def test_knn_is_scikit_learns():
    x, y = blobs()
    unseen, _ = blobs(seed=1)
    theirs = KNeighborsClassifier(
        7, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.5)
    )
    ours = HeadClassifier("knn", k=7, temperature=0.5).fit(x, y)
    expected = theirs.fit(x, y).predict_proba(unseen)
    np.testing.assert_allclose(ours.predict_proba(unseen), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("head", "classes", "normalization"),
    [
        ("ridge", 3, "none"),
        ("ridge", 2, "standardize"),
        ("logistic", 2, "none"),
        ("lda", 3, "standardize"),
        ("linear", 3, "none"),
        ("nearest_mean", 2, "none"),
    ],
)
def test_coefficients_are_the_decision(head, classes, normalization):
    x, y = blobs(classes=classes)
    one = HeadClassifier(head, normalization=normalization, metric="mahalanobis")
    decision = (x @ one.fit(x, y).coef_.T + one.intercept_).squeeze()
    np.testing.assert_allclose(one.decision_function(x), decision, atol=1e-3)


@pytest.mark.parametrize("head", ["knn", "mlp", "cosine", "nearest_mean"])
def test_only_linear_heads_have_coefficients(head):
    assert not hasattr(HeadClassifier(head).fit(*blobs()), "coef_")


def test_several_labels_a_row_are_regressions_of_each():
    x, y = make_multilabel_classification(80, 5, n_classes=3, random_state=0)
    ours = HeadClassifier("logistic").fit(x, y)
    theirs = OneVsRestClassifier(LogisticRegression(tol=1e-8, max_iter=10_000))
    expected = theirs.fit(x, y).predict_proba(x)
    np.testing.assert_allclose(ours.predict_proba(x), expected, atol=2e-3)
    np.testing.assert_allclose(np.exp(ours.predict_log_proba(x)), expected, atol=2e-3)
    same(ours.predict(x), ours.predict_proba(x) > 0.5)
    auto = HeadClassifier(scoring="accuracy").fit(x, y)
    assert {one.head for one in auto.candidates_} == {"ridge", "logistic"}


# What a row is.


@pytest.mark.parametrize("head", [*HEADS, "auto"])
def test_only_the_set_of_weighted_rows_counts(head):
    x, y = blobs()
    rng = np.random.default_rng(2)
    weights = rng.integers(0, 3, len(y))
    order = rng.permutation(weights.sum())
    often = np.repeat(np.arange(len(y)), weights)[order]
    weighted = HeadClassifier(head).fit(x, y, weights)
    repeated = HeadClassifier(head).fit(x[often], y[often])
    same(weighted.predict_proba(x), repeated.predict_proba(x))
    assert weighted.head_ == repeated.head_


@pytest.mark.parametrize("head", [*HEADS[1:], "auto"])
def test_class_weights_are_weights_of_rows(head):
    x, y = blobs(59)
    counts = np.bincount(y)
    for given, expected in [
        ({0: 0.5, 2: 2.0}, np.array([0.5, 1.0, 2.0])),
        ("balanced", counts.sum() / (3 * counts)),
    ]:
        ours = HeadClassifier(head, class_weight=given).fit(x, y)
        rows = HeadClassifier(head).fit(x, y, expected[y])
        same(ours.predict_proba(x), rows.predict_proba(x))


def test_nearest_mean_takes_class_weights_as_a_prior():
    x, y = blobs()
    plain = HeadClassifier("nearest_mean").fit(x, y)
    rows = HeadClassifier("nearest_mean").fit(x, y, np.array([1, 1, 4])[y])
    ours = HeadClassifier("nearest_mean", class_weight={2: 4.0}).fit(x, y)
    expected = rows.decision_function(x) + np.log([1, 1, 4])
    np.testing.assert_allclose(ours.decision_function(x), expected, rtol=1e-5)
    assert np.sum(ours.predict(x) == 2) >= np.sum(plain.predict(x) == 2)


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (["no", "yes", "maybe"], "U"),
        (np.array(["no", "yes", "maybe"], object), "O"),
        ([-7, 3, 2**40], "i"),
        ([2.0, 1.0, 4.0], "f"),
        ([True, False, False], "b"),
    ],
)
def test_labels_of_any_type(labels, kind):
    x, y = blobs()
    y = np.asarray(labels)[y]
    one = HeadClassifier("ridge").fit(x, y)
    same(one.classes_, np.unique(y))
    assert one.classes_.dtype.kind == one.predict(x).dtype.kind == kind
    assert one.score(x, y) > 0.6


def test_arrays_of_any_kind_are_the_same():
    x, y = blobs()
    x = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32)
    expected = HeadClassifier("ridge").fit(x, y).decision_function(x)
    names = [f"feature {number}" for number in range(x.shape[1])]
    for kind in (
        np.float64,
        jnp.asarray,
        lambda values: jnp.asarray(values, jnp.bfloat16),
        lambda values: pd.DataFrame(values, columns=names),
        np.ndarray.tolist,
    ):
        given = kind(x)
        for labels in (y, jnp.asarray(y), pd.Series(y), y.tolist()):
            one = HeadClassifier("ridge").fit(given, labels)
            same(one.decision_function(given), expected)
    frame = pd.DataFrame(x, columns=names)
    one = HeadClassifier("ridge").fit(frame, y)
    same(one.feature_names_in_, names)
    with pytest.raises(ValueError, match="feature names"):
        one.predict(frame[names[::-1]])


# What is chosen.


def test_auto_is_the_simplest_within_one_standard_error():
    x, y = blobs()
    one = HeadClassifier().fit(x, y)
    tried = one.candidates_
    assert {c.head for c in tried} == {"nearest_mean", "ridge", "logistic"}
    best = max(tried, key=lambda c: c.score)
    bar = best.score - max(c.standard_error for c in tried if c.score == best.score)
    within = {c.head for c in tried if c.score >= bar}
    order = ("nearest_mean", "ridge", "logistic")
    assert one.head_.name == next(name for name in order if name in within)
    best_rule = HeadClassifier(rule="best").fit(x, y)
    assert max(c.score for c in best_rule.candidates_) == best.score


def test_auto_tries_the_mlp_from_a_batch_of_rows_on():
    x, y = blobs(64)
    tried = HeadClassifier(batch_size=64, epochs=1).fit(x, y).candidates_
    assert any(c.head.startswith("mlp") for c in tried)


def test_too_few_rows_for_folds():
    x, y = blobs()
    one = HeadClassifier().fit(x[:3], y[:3])  # A row a class: nothing to hold out.
    assert one.head_.name == "nearest_mean"
    assert np.isnan(one.candidates_[0].score)
    same(one.predict(x[:3]), y[:3])
    head = fh.HeadConfig("ridge", alpha=(0.1, 1.0, 10.0))
    one = HeadClassifier(head).fit(x[:3], y[:3])
    assert one.head_.alpha == (1.0,)
    two = HeadClassifier(head).fit(x[:6], y[:6])
    assert len(two.candidates_) > 1
    lonely = np.where(np.arange(len(y)) == 2, 2, np.minimum(y, 1))
    assert len(HeadClassifier(head).fit(x, lonely).candidates_) > 1


def test_folds_as_scikit_learn_gives_them():
    x, y = blobs()
    groups = np.arange(len(y)) // 6
    head = fh.HeadConfig("ridge", alpha=(0.1, 1e4))
    splitter = StratifiedKFold(3)
    splits = list(splitter.split(x, y))
    given = HeadClassifier(head, cv=splitter).fit(x, y)
    scores = [
        np.concatenate(
            [
                RidgeClassifier(alpha=alpha).fit(x[train], y[train]).predict(x[test])
                == y[test]
                for train, test in splits
            ]
        ).mean()
        for alpha in head.alpha
    ]
    np.testing.assert_allclose([c.score for c in given.candidates_[:2]], scores)
    listed = HeadClassifier(head, cv=splits).fit(x, y)
    assert listed.candidates_ == given.candidates_
    by_group = list(GroupKFold(3).split(x, y, groups))
    assert HeadClassifier(head, cv=by_group).fit(x, y).candidates_ != given.candidates_


def test_settings_with_several_values_are_compared():
    x, y = blobs()
    config = fh.HeadConfig("knn", k=(1, 5, 9))
    one = HeadClassifier(config, rule="best", scoring="nll").fit(x, y)
    best = min(one.candidates_, key=lambda c: c.score)
    assert [c.hyperparameters["k"] for c in one.candidates_] == [1, 5, 9]
    assert one.head_.k == (best.hyperparameters["k"],)
    again = HeadClassifier("knn", k=one.head_.k[0]).fit(x, y)
    np.testing.assert_allclose(again.predict_proba(x), one.predict_proba(x), atol=1e-6)


def test_seeds():
    x, y = blobs()
    head = fh.HeadConfig("ridge", alpha=(0.1, 1.0))

    def scores(random_state):
        one = HeadClassifier(head, random_state=random_state).fit(x, y)
        return [c.score for c in one.candidates_]

    assert scores(3) == scores(3)
    assert len({tuple(scores(seed)) for seed in range(5)}) > 1
    assert scores(np.random.RandomState(0)) == scores(np.random.RandomState(0))


# Parts.


@pytest.mark.parametrize("settings", ADDING, ids=lambda one: one["head"])
def test_parts_are_the_whole(settings):
    x, y = blobs()
    weights = np.random.default_rng(3).uniform(0, 2, len(y)).round(1)
    whole = HeadClassifier(**settings).fit(x, y, weights)
    parts = HeadClassifier(**settings)
    early = y[:20] < 2  # The last class comes later.
    parts.partial_fit(x[:20][early], y[:20][early], sample_weight=weights[:20][early])
    same(parts.classes_, [0, 1])
    parts.partial_fit(x[:20][~early], y[:20][~early], None, weights[:20][~early])
    parts.partial_fit(x[20:], y[20:], sample_weight=weights[20:])
    after = HeadClassifier(**settings).fit(x[:30], y[:30], weights[:30])
    after.partial_fit(x[30:], y[30:], sample_weight=weights[30:])
    for one in (parts, after):
        same(one.classes_, [0, 1, 2])
        np.testing.assert_allclose(
            one.decision_function(x), whole.decision_function(x), rtol=1e-3, atol=1e-4
        )


def test_classes_may_be_named_before_they_come():
    x, y = blobs()
    one = HeadClassifier("ridge").partial_fit(x[y == 0], y[y == 0], classes=[0, 1, 2])
    same(one.predict(x), 0)


@pytest.mark.parametrize(
    "settings",
    [
        *({"head": head} for head in ("auto", "lda", "logistic", "knn", "mlp")),
        {"head": "nearest_mean", "metric": "mahalanobis"},
        {"head": "ridge", "normalization": "standardize"},
        {"head": "ridge", "class_weight": "balanced"},
        {"head": fh.HeadConfig("ridge")},
    ],
    ids=str,
)
def test_parts_only_where_exact(settings):
    assert not hasattr(HeadClassifier(**settings), "partial_fit")


# Company.


NAME_OF_C = "headclassifier__C"


def test_grid_search_compiles_once():
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else 0
    )
    x, y = blobs(150)
    HeadClassifier("logistic", C=0.5).fit(x[::2], y[::2]).predict(x)
    compiled.clear()
    search = GridSearchCV(
        make_pipeline(StandardScaler(), HeadClassifier("logistic")),
        {NAME_OF_C: [0.01, 1.0, 100.0]},
        cv=3,
    ).fit(x, y)
    assert compiled == []
    assert search.best_score_ == search.cv_results_["mean_test_score"].max()
    (fitted,) = search.best_estimator_[-1].head_.C
    assert fitted == search.best_params_[NAME_OF_C]


def test_calibration_and_cross_validation():
    x, y = blobs()
    calibrated = CalibratedClassifierCV(HeadClassifier("ridge"), cv=3).fit(x, y)
    np.testing.assert_allclose(calibrated.predict_proba(x).sum(axis=1), 1)
    weights = np.ones(len(y))
    calibrated.fit(x, y, weights)
    one = HeadClassifier("logistic")
    scores = cross_val_score(one, x, y, cv=3, scoring="neg_log_loss")
    theirs = cross_val_score(LogisticRegression(), x, y, cv=3, scoring="neg_log_loss")
    np.testing.assert_allclose(scores, theirs, atol=1e-3)


@pytest.mark.parametrize("head", [*HEADS, "auto"])
def test_clones_and_pickles(head):
    x, y = blobs()
    one = HeadClassifier(head).fit(x, y)
    again = pickle.loads(pickle.dumps(one))
    same(again.predict_proba(x), one.predict_proba(x))
    same(clone(one).fit(x, y).predict_proba(x), one.predict_proba(x))
    leaves = jax.tree.leaves(vars(one))
    assert not any(isinstance(leaf, jax.Array) or callable(leaf) for leaf in leaves)


@pytest.mark.parametrize(
    ("head", "normalization"),
    [*((head, "none") for head in HEADS), ("ridge", "standardize"), ("ridge", "l2")],
)
def test_saved_heads_load(head, normalization, tmp_path):
    x, y = blobs()
    x = x.astype(np.float32)
    names = np.array(["ant", "bee", "cat"])[y]
    one = HeadClassifier(head, normalization=normalization).fit(x, names)
    one.save(tmp_path / "head")
    loaded = fh.load(tmp_path / "head")
    assert loaded.class_names == ("ant", "bee", "cat")
    np.testing.assert_allclose(loaded.probabilities(x), one.predict_proba(x), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"head": "svm"}, "head is 'svm': expected auto, "),
        ({"head": "ridge", "alpha": -1.0}, r"alpha is \(-1.0,\); expected"),
        ({"head": "logistic", "C": 0}, r"C is \(0,\); expected"),
        ({"normalization": "l1"}, "normalization is 'l1'; expected one of"),
        ({"scoring": "f2"}, "metric is 'f2'; expected one of"),
        ({"rule": "worst"}, "rule is 'worst'; expected one of"),
        ({"cv": 1}, "cv is 1: expected 2 or more folds"),
        ({"cv": ShuffleSplit(3, test_size=0.5)}, "tests rows of an earlier one"),
        ({"cv": [([0, 1], [2, 3])]}, "split 0 trains on all rows but those it tests"),
        ({"class_weight": "even"}, "class_weight is 'even': expected None, "),
        ({"class_weight": {0: -1}}, "class_weight is .*: expected numbers above 0"),
        ({"class_weight": {5: 1}}, "not in class_weight"),
    ],
    ids=str,
)
def test_settings_that_no_fit_could_use(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        HeadClassifier(**settings).fit(*blobs())


@pytest.mark.parametrize(
    ("fit", "sentence"),
    [
        (lambda x, y: HeadClassifier().fit(x, y * 0), "one class only, .0."),
        (lambda x, y: HeadClassifier().fit(x, y, y == 1), "one class only, .1."),
        (
            lambda x, y: HeadClassifier("lda").fit(x, np.eye(3)[y][:, :2] > 0),
            "knows one label a row",
        ),
        (
            lambda x, y: HeadClassifier("ridge", class_weight="balanced").fit(
                x, np.stack([y > 0, y > 1], axis=1)
            ),
            "several labels: expected None",
        ),
        (lambda x, y: HeadClassifier("ridge").partial_fit(x, y * 0), "one class only"),
        (
            lambda x, y: (
                HeadClassifier("ridge")
                .partial_fit(x, y)
                .set_params(head="nearest_mean")
                .partial_fit(x, y)
            ),
            "a head of the same settings",
        ),
        (
            lambda x, y: HeadClassifier("ridge").partial_fit(x, y, classes=[0, 1]),
            r"y has labels that classes lacks: \[2\]",
        ),
        (lambda x, y: HeadClassifier("ridge").partial_fit(x, np.eye(3)[y]), "matrix"),
    ],
)
def test_data_that_no_fit_could_use(fit, sentence):
    with pytest.raises(ValueError, match=sentence):
        fit(*blobs())


def test_auto_passes_scikit_learns_checks(checks_of_auto):
    out, err = checks_of_auto.communicate()
    assert checks_of_auto.returncode == 0, err
    assert re.fullmatch(r"\d\d checks", out.strip()), out
