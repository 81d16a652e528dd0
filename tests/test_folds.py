"""Properties of folds and few-shot draws; scikit-learn says how even folds can be."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import (
    LeaveOneGroupOut,
    StratifiedGroupKFold,
    StratifiedKFold,
)

from flaxhead.folds import (
    FOLDS,
    grouped,
    k_fold,
    lane_weights,
    leave_one_group_out,
    row_keys,
    short_classes,
    shots,
    stratified,
)
from flaxhead.folds import given as given_folds

SEEDS = st.integers(0, 2**31)
COUNTS = st.lists(st.integers(1, 30), min_size=1, max_size=6)
SEEDED = [name for name in FOLDS if name not in ("leave_one_group_out", "given")]
GROUPED = ("grouped", "leave_one_group_out", "given")


def table(fold, labels):
    """Rows of each class in each fold: `[folds, classes]`."""
    counts = np.zeros((fold.max() + 1, labels.max() + 1), int)
    np.add.at(counts, (fold, labels), 1)
    return counts


def problem(seed, rows=60, classes=3):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=rows)
    return labels, np.arange(rows) % 12


def cut(name, labels, groups, **options):
    groups = groups if name in GROUPED else None
    options = {"folds": 4, "seed": 0, "groups": groups} | options
    return FOLDS[name](labels, **options)


@pytest.mark.parametrize("name", FOLDS)
@pytest.mark.parametrize("kind", ["one label", "soft", "several labels"])
def test_every_row_has_one_fold_and_no_fold_is_empty(name, kind):
    labels, groups = problem(0)
    if kind == "soft":
        labels = 0.4 * np.eye(3)[labels] + 0.2
    if kind == "several labels":
        labels = np.random.default_rng(1).uniform(size=(60, 3)) < 0.4
    fold = cut(name, labels, groups)
    assert fold.dtype == np.int32
    assert fold.shape == (60,)
    folds = 4 if name in SEEDED else 12
    assert np.unique(fold).tolist() == list(range(folds))


@pytest.mark.parametrize("name", FOLDS)
def test_absent_and_unlabelled_rows_are_as_if_deleted(name):
    labels, groups = problem(1)
    where = np.random.default_rng(2).uniform(size=60) < 0.8
    unlabelled = labels.copy()
    unlabelled[::7] = -1
    present = where & (unlabelled >= 0)
    fold = cut(name, unlabelled, groups, where=where)
    assert (fold[~present] == -1).all()
    expected = cut(name, labels[present], groups[present])
    np.testing.assert_array_equal(fold[present], expected)


@pytest.mark.parametrize("name", SEEDED)
def test_a_seed_cuts_alike_and_another_does_not(name):
    labels, groups = problem(3)
    first, again, other = (cut(name, labels, groups, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    # Not the same folds under other numbers: other rows are together.
    assert ((first[:, None] == first) != (other[:, None] == other)).any()


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.integers(2, 7), SEEDS)
def test_classes_and_sizes_are_as_even_as_can_be(counts, folds, seed):
    labels = np.random.default_rng(seed).permutation(
        np.repeat(np.arange(len(counts)), counts)
    )
    if len(labels) < folds:
        return
    for fold in (
        k_fold(labels, folds=folds, seed=seed),
        stratified(labels, folds=folds, seed=seed),
    ):
        sizes = np.bincount(fold, minlength=folds)
        assert np.ptp(sizes) <= 1
    assert (np.ptp(table(fold, labels), axis=0) <= 1).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(5, 30), min_size=1, max_size=6), SEEDS)
def test_the_counts_are_those_of_scikit_learn(counts, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    splitter = StratifiedKFold(n_splits=5, shuffle=True, random_state=0)
    theirs = [np.bincount(labels[i]) for _, i in splitter.split(labels, labels)]
    ours = table(stratified(labels, folds=5, seed=seed), labels)
    np.testing.assert_array_equal(np.sort(ours, axis=0), np.sort(theirs, axis=0))


def test_every_row_is_as_likely_to_be_in_a_fold():
    labels = np.repeat([0, 1], [30, 10])
    times = sum(stratified(labels, folds=4, seed=s) == 0 for s in range(2000))
    assert (np.abs(times - 500) < 5 * np.sqrt(2000 * 0.25 * 0.75)).all()


def test_a_soft_label_counts_as_its_largest_entry():
    labels, _ = problem(4)
    np.testing.assert_array_equal(
        stratified(0.7 * np.eye(3)[labels] + 0.1, folds=5, seed=0),
        stratified(labels, folds=5, seed=0),
    )


def test_of_several_labels_the_rarest_is_even_and_all_are_nearly():
    rng = np.random.default_rng(0)
    shares = np.array([0.5, 0.02, 0.3, 0.1, 0.05])
    ours, random = [], []
    for seed in range(20):
        labels = rng.uniform(size=(500, 5)) < shares
        for cut_by, spread in ((stratified, ours), (k_fold, random)):
            fold = cut_by(labels, folds=5, seed=seed)
            spread.append([np.ptp(np.bincount(fold[c], minlength=5)) for c in labels.T])
        rarest = labels.sum(axis=0).argmin()
        assert ours[-1][rarest] <= 1
    assert (np.mean(ours, axis=0) < 0.5 * np.mean(random, axis=0)).all()


def test_missing_entries_count_as_negative():
    labels = np.random.default_rng(0).integers(2, size=(50, 3)).astype(np.float32)
    missing = np.where(
        (labels == 0) & (np.arange(50) % 5 == 0)[:, None], np.nan, labels
    )
    missing[~np.isnan(missing).all(axis=1) & (np.arange(50) == 3)] = np.nan
    fold = stratified(missing, folds=5, seed=0)
    known = ~np.isnan(missing).all(axis=1)
    assert fold[3] == -1
    np.testing.assert_array_equal(fold == -1, ~known)
    expected = stratified(labels[known], folds=5, seed=0)
    np.testing.assert_array_equal(fold[known], expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 5), SEEDS, st.booleans())
def test_keys_stay_together_whatever_the_order_or_number_of_rows(folds, seed, several):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(20, 2))
    labels = rng.integers(3, size=20)
    if several:
        labels = rng.uniform(size=(20, 3)) < 0.5
    keys = row_keys(x, labels)
    once = stratified(labels, folds=folds, seed=seed, keys=keys)
    # Any rows again, in any order; the first twenty make sure that none is lost.
    rows = rng.permutation(np.concatenate([np.arange(20), rng.integers(20, size=15)]))
    again = stratified(
        labels[rows], folds=folds, seed=seed, keys=row_keys(x[rows], labels[rows])
    )
    np.testing.assert_array_equal(again, once[rows])
    assert np.ptp(np.bincount(once)) <= 1


def test_a_key_of_several_labels_counts_as_the_smallest():
    keys, labels = np.repeat(np.arange(8), 2), np.tile([0, 1], 8)
    labels[:8] = 1  # Four keys of class 1 only, four of both classes.
    for order in (np.arange(16), np.arange(16)[::-1]):
        fold = np.empty(16, int)
        fold[order] = stratified(labels[order], folds=4, seed=0, keys=keys[order])
        assert (fold[::2] == fold[1::2]).all()
        np.testing.assert_array_equal(np.sort(fold[:8:2]), np.arange(4))
        np.testing.assert_array_equal(np.sort(fold[8::2]), np.arange(4))


def test_row_keys_tell_rows_by_embedding_and_label():
    x = np.array([[1, 2], [1, 2], [1, 2], [2, 1]], np.float16)
    first, same, other_label, other_x = row_keys(x, np.array([0, 0, 1, 0]))
    assert first == same
    assert len({first, other_label, other_x}) == 3
    np.testing.assert_array_equal(
        row_keys(x, np.array([0, 0, 1, 0], np.int32)),
        row_keys(x, np.array([0, 0, 1, 0], np.int64)),
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=5, max_size=30), SEEDS)
def test_groups_are_whole_and_no_fold_is_empty(sizes, seed):
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    labels = rng.integers(4, size=len(groups))
    fold = grouped(labels, folds=5, seed=seed, groups=groups)
    assert all(len(set(fold[groups == g])) == 1 for g in range(len(sizes)))
    assert set(fold) == set(range(5))


def test_groups_of_a_row_are_stratified():
    labels = np.repeat([0, 1, 2], [40, 25, 10])
    counts = table(grouped(labels, folds=5, seed=0, groups=np.arange(75)), labels)
    np.testing.assert_array_equal(counts, [[8, 5, 2]] * 5)


def test_groups_are_as_balanced_as_those_of_scikit_learn():
    ours, theirs = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        groups = rng.integers(40, size=400)
        labels = (groups + rng.integers(3, size=400)) % 5  # Groups of unlike classes.
        their_fold = np.empty(400, int)
        splitter = StratifiedGroupKFold(n_splits=5, shuffle=True, random_state=seed)
        for number, (_, held) in enumerate(splitter.split(labels, labels, groups)):
            their_fold[held] = number
        our_fold = grouped(labels, folds=5, seed=seed, groups=groups)
        for fold, found in ((our_fold, ours), (their_fold, theirs)):
            counts = table(fold, labels)
            found.append([counts.std(axis=0).mean(), counts.sum(axis=1).std()])
    # The spread of classes, and of sizes: theirs looks at classes only.
    assert (np.mean(ours, axis=0) <= [1.25, 1.0] * np.mean(theirs, axis=0)).all()


def test_a_fold_for_each_group():
    labels, groups = problem(5)
    fold = leave_one_group_out(labels, groups=np.char.add("g", groups.astype(str)))
    splits = LeaveOneGroupOut().split(
        labels, labels, np.char.add("g", groups.astype(str))
    )
    for number, (_, held) in enumerate(splits):
        np.testing.assert_array_equal(np.flatnonzero(fold == number), held)


def test_given_numbers_stay_and_names_are_numbered_in_order():
    labels = np.zeros(4, int)
    assert given_folds(labels, groups=[2, 0, 1, 2]).tolist() == [2, 0, 1, 2]
    assert given_folds(labels, groups=["b", "c", "a", "b"]).tolist() == [1, 2, 0, 1]


@pytest.mark.parametrize("refit", [False, True])
def test_a_lane_trains_on_all_rows_but_those_of_its_fold(refit):
    fold = np.array([0, 1, 2, 0, -1, 3])
    weights = lane_weights(fold, 3, refit=refit)
    assert weights.dtype == np.float32
    for lane in range(3):
        assert weights[:, lane].tolist() == ((fold != lane) & (fold != -1)).tolist()
    assert weights.shape == (6, 3 + refit)
    if refit:
        assert weights[:, 3].tolist() == [1, 1, 1, 1, 0, 1]


def test_a_fixed_validation_split_is_one_fold():
    val = np.array([True, False, False, True])
    weights = lane_weights(np.where(val, 0, 1), 1, refit=True)
    np.testing.assert_array_equal(weights, np.stack([~val, np.ones(4)], axis=1))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(12, 30), min_size=1, max_size=5), SEEDS)
def test_draws_have_k_rows_a_class_and_are_nested(counts, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    before = np.zeros(len(labels), bool)
    for k in (1, 5, 10):
        drawn = shots(labels, k=k, repeat=2, seed=seed)
        assert np.bincount(labels[drawn]).tolist() == [k] * len(counts)
        assert (drawn >= before).all()
        before = drawn
    assert (drawn != shots(labels, k=10, repeat=3, seed=seed)).any()
    np.testing.assert_array_equal(drawn, shots(labels, k=10, repeat=2, seed=seed))


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_draws_of_several_labels_are_nested_and_have_k_positives_or_more(seed):
    rng = np.random.default_rng(seed)
    labels = (rng.uniform(size=(300, 4)) < [0.6, 0.3, 0.2, 0.1]) * 1.0
    labels[:20] = np.nan
    before = np.zeros(300, bool)
    for k in range(1, 8):
        drawn = shots(labels, k=k, repeat=0, seed=seed)
        positives = labels[drawn].sum(axis=0)
        assert (positives >= k).all()
        assert drawn.sum() <= 4 * k
        assert (drawn >= before).all()
        before = drawn


def test_every_row_is_as_likely_to_be_drawn():
    labels = np.repeat([0, 1], 20)
    times = sum(shots(labels, k=5, repeat=r, seed=0).astype(int) for r in range(2000))
    assert (np.abs(times - 500) < 5 * np.sqrt(2000 * 0.25 * 0.75)).all()


def test_rows_that_are_absent_are_not_drawn():
    labels = np.repeat([0, 1], 20)
    where = np.arange(40) % 2 == 0
    labels[4:8] = -1
    present = where & (labels >= 0)
    drawn = shots(labels, k=6, repeat=0, seed=0, where=where)
    assert not drawn[~present].any()
    np.testing.assert_array_equal(
        drawn[present], shots(labels[present], k=6, repeat=0, seed=0)
    )


def test_a_short_class_is_refused_or_taken_whole():
    labels = np.repeat([0, 1, 4], [3, 10, 2])
    where = labels != 4
    assert short_classes(labels, k=5, where=where) == {0: 3, 4: 0}
    with pytest.raises(ValueError, match=re.escape("class 0 has 3, class 4 has 0: ")):
        shots(labels, k=5, repeat=0, seed=0, where=where)
    drawn = shots(labels, k=5, repeat=0, seed=0, short="all")
    assert np.bincount(labels[drawn]).tolist() == [3, 5, 0, 0, 2]
    matrix = np.array([[1, 1, 0], [0, 1, 0], [0, 1, 0]])
    assert short_classes(matrix, k=2) == {0: 1, 2: 0}
    drawn = shots(matrix, k=2, repeat=0, seed=0, short="all")
    assert drawn[0]
    assert drawn.sum() == 2


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: k_fold([0, 1, -1], folds=3, seed=0),
            "folds: expected at most as many as there are labelled rows, 2, got 3; "
            "ask for fewer folds.",
        ),
        (
            lambda: stratified([0, 1, 0], folds=3, seed=0, keys=[5, 5, 6]),
            "folds: expected at most as many as there are labelled rows, 2, got 3; "
            "ask for fewer folds.",
        ),
        (
            lambda: grouped([0, 1, 0], folds=3, seed=0, groups=list("aab")),
            "folds: expected at most as many as there are labelled groups, 2, got 3; "
            "ask for fewer folds.",
        ),
        (
            lambda: k_fold([0, 1], folds=1, seed=0),
            "folds: expected 2 or more, got 1.",
        ),
        (
            lambda: stratified([0, 1], folds=2, seed=0, groups=[0, 1]),
            "groups: stratified would cut groups, expected None; use grouped or "
            "leave_one_group_out.",
        ),
        (
            lambda: grouped([0, 1], folds=2, seed=0),
            "groups: grouped needs one for each row, got None.",
        ),
        (
            lambda: grouped([0, 1], folds=2, seed=0, groups=[1]),
            "groups: expected one a row, [2], got [1].",
        ),
        (
            lambda: leave_one_group_out([0, 1], groups=["a", "a"]),
            "groups: leave_one_group_out needs two or more in the labelled rows, "
            "got a.",
        ),
        (
            lambda: given_folds([0, 1, 1], groups=[0, 2, -1]),
            "groups: expected fold numbers 0, 1, ... without a gap in the labelled "
            "rows, got -1, 0, 2; leave rows out with where.",
        ),
        (
            lambda: k_fold([0.5, 1.0], folds=2, seed=0),
            "labels: expected integers [rows] or a matrix [rows, classes], got "
            "float64 [2].",
        ),
        (
            lambda: k_fold([0, -2], folds=2, seed=0),
            "labels: expected class numbers, or -1 for unlabelled rows, got -2.",
        ),
        (
            lambda: k_fold([0, 1], folds=2, seed=0, where=[True]),
            "where: expected one a row, [2], got [1].",
        ),
        (
            lambda: k_fold([0, 1], folds=2, seed=0, where=[0, 1]),
            "where: expected True or False a row, got int64.",
        ),
        (
            lambda: stratified([0, 1], folds=2, seed=0, keys=[0.0, 1.0]),
            "keys: expected integers, got float64; row_keys makes some.",
        ),
        (
            lambda: row_keys(np.zeros((3, 2)), [0, 1]),
            "x: expected one a row, [2], got [3, 2].",
        ),
        (
            lambda: lane_weights([0, 0, 2], 3, refit=False),
            "folds: expected one or more, each with a row to hold out, got 3, and no "
            "row of fold 1.",
        ),
        (
            lambda: lane_weights([0, -2], 1, refit=False),
            "fold: expected numbers of -1 or more, got -2.",
        ),
        (
            lambda: lane_weights([0.0, 1.0], 2, refit=False),
            "fold: expected integers, one a row, got float64 [2].",
        ),
        (
            lambda: shots([0, 1], k=0, repeat=0, seed=0),
            "k: expected 1 or more, got 0.",
        ),
        (
            lambda: shots([0, 1], k=1, repeat=0, seed=0, short="some"),
            "short is 'some', expected one of error, all",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        call()
