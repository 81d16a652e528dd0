"""Properties of the hold-out split, for any strata, groups, fraction and seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedShuffleSplit

from flaxhead.config import DataConfig
from flaxhead.data import arrays
from flaxhead.data.splits import holdout

FRACTIONS = st.floats(0.01, 0.99)
SHARES = st.floats(0.05, 0.6)  # Enough rows remain for every split.
SEEDS = st.integers(0, 2**31)
STRATA = st.lists(st.integers(0, 5), min_size=1, max_size=80).map(np.array)


def counts(strata):
    return np.bincount(strata, minlength=6)


@settings(max_examples=200, deadline=None)
@given(STRATA, FRACTIONS, SEEDS)
def test_every_class_gives_its_share_within_a_row_and_keeps_one(strata, fraction, seed):
    held = holdout(strata, fraction=fraction, seed=seed)
    rows = len(strata)
    wanted = min(max(1, round(fraction * rows)), rows - 1)
    share = counts(strata) * wanted / rows
    assert held.sum() <= wanted
    assert (counts(strata[~held])[counts(strata) > 0] >= 1).all()
    assert (np.abs(counts(strata[held]) - share) <= 1).all()
    if (counts(strata)[counts(strata) > 0] * (1 - wanted / rows) >= 1).all():
        assert held.sum() == wanted


@settings(max_examples=50, deadline=None)
@given(STRATA, FRACTIONS, SEEDS)
def test_the_same_seed_holds_out_the_same_rows(strata, fraction, seed):
    groups = np.arange(len(strata)) // 3
    for options in ({}, {"groups": groups}):
        first = holdout(strata, fraction=fraction, seed=seed, **options)
        again = holdout(strata, fraction=fraction, seed=seed, **options)
        np.testing.assert_array_equal(first, again)


@settings(max_examples=200, deadline=None)
@given(st.data(), STRATA, FRACTIONS, SEEDS)
def test_groups_are_whole_and_every_class_keeps_a_row(data, strata, fraction, seed):
    size = st.integers(0, max(1, len(strata) // 3))
    groups = np.array(
        data.draw(st.lists(size, min_size=len(strata), max_size=len(strata)))
    )
    held = holdout(strata, groups=groups, fraction=fraction, seed=seed)
    assert not set(groups[held]) & set(groups[~held])
    assert (counts(strata[~held])[counts(strata) > 0] >= 1).all()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=10, max_size=40), SEEDS)
def test_groups_of_one_class_miss_the_target_by_half_a_group_at_most(sizes, seed):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    held = holdout(np.zeros(len(groups), int), groups=groups, fraction=0.3, seed=seed)
    assert abs(held.sum() - 0.3 * len(groups)) <= max(sizes) / 2


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(4, 40), min_size=2, max_size=6), FRACTIONS, SEEDS)
def test_shares_are_those_of_scikit_learn_within_a_row(sizes, fraction, seed):
    strata = np.repeat(np.arange(len(sizes)), sizes)
    wanted = min(max(1, round(fraction * len(strata))), len(strata) - 1)
    if not len(sizes) <= wanted <= len(strata) - len(sizes):
        return  # scikit-learn refuses fewer rows than classes on a side.
    splitter = StratifiedShuffleSplit(n_splits=1, test_size=wanted, random_state=seed)
    _, theirs = next(splitter.split(strata, strata))
    ours = holdout(strata, fraction=fraction, seed=seed)
    difference = counts(strata[ours]) - counts(strata[theirs])
    assert (np.abs(difference) <= 1).all()


def test_every_row_of_a_class_is_as_likely_to_be_held_out():
    strata = np.repeat([0, 1], [30, 10])
    times = sum(holdout(strata, fraction=0.25, seed=s).astype(int) for s in range(2000))
    # A binomial count of 2000 draws has a standard deviation of 19.4.
    assert (np.abs(times - 500) < 5 * np.sqrt(2000 * 0.25 * 0.75)).all()


def test_rows_left_over_go_to_any_class():
    strata = np.repeat(np.arange(4), 3)
    times = sum(
        counts(strata[holdout(strata, fraction=0.1, seed=s)]) for s in range(400)
    )
    assert times.sum() == 400
    assert (np.abs(times[:4] - 100) < 5 * np.sqrt(400 * 0.25 * 0.75)).all()


def test_one_group_is_held_out_though_all_are_far_too_large():
    groups = np.repeat([0, 1, 2], [20, 10, 30])
    for seed in range(5):
        held = holdout(np.zeros(60, int), groups=groups, fraction=0.01, seed=seed)
        assert set(groups[held]) == {1}


@pytest.mark.parametrize("groups", [None, np.array([0, 1, 2, 0, 1, 2])])
def test_nothing_is_held_out_where_a_class_would_be_emptied(groups):
    strata = np.arange(6) if groups is None else groups
    assert not holdout(strata, groups=groups, fraction=0.5, seed=0).any()


@settings(max_examples=30, deadline=None)
@given(SHARES, SHARES, st.integers(0, 1000), st.booleans())
def test_three_splits_are_a_partition(val, test, seed, grouped):
    rng = np.random.default_rng(seed)
    rows = 60
    fields = {"embeddings": rng.normal(size=(rows, 2)), "labels": np.arange(rows) % 3}
    if grouped:
        fields["groups"] = rng.permutation(rows) // 3
    config = DataConfig(val_fraction=val, test_fraction=test, seed=seed)
    data = arrays(fields, config=config)
    ids = np.concatenate([part.ids for part in data[:3]])
    assert sorted(ids) == list(range(rows))
    assert (np.bincount(data.train.labels, minlength=3) >= 1).all()


def test_rare_labels_of_many_are_in_every_split():
    rng = np.random.default_rng(0)
    matrix = (rng.uniform(size=(400, 4)) < [0.9, 0.5, 0.2, 0.05]) * 1.0
    data = arrays({"embeddings": np.arange(400.0)[:, None], "labels": matrix})
    rare = matrix[:, 3].sum()
    for part in data[:3]:
        share = rare * len(part.x) / 400
        assert abs(part.labels[:, 3].sum() - share) <= 2
