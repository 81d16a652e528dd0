"""Comparisons of heads against SciPy, plain loops, and chance itself."""

import re

import numpy as np
import pytest
from scipy import stats

from flaxhead import comparison
from flaxhead.comparison import bias_corrected, mcnemar, paired_bootstrap


def table(both, only_a, only_b, neither):
    """Rows of a fourfold table."""
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    return a, b


@pytest.mark.parametrize(
    ("only_a", "only_b"), [(8, 2), (0, 6), (1, 0), (2, 9), (30, 55), (900, 1000)]
)
def test_the_mid_p_value_is_scipy_s_exact_one_less_what_was_seen(only_a, only_b):
    found = mcnemar(*table(40, only_a, only_b, 7))
    exact = stats.binomtest(only_a, only_a + only_b).pvalue
    seen = stats.binom.pmf(only_a, only_a + only_b, 0.5)
    assert found.p_value == pytest.approx(exact - seen, rel=1e-9)
    assert found.difference == (only_a - only_b) / (47 + only_a + only_b)


@pytest.mark.parametrize("each", [0, 1, 5])
def test_heads_wrong_as_often_do_not_differ(each):
    found = mcnemar(*table(10, each, each, 3))
    assert found.p_value == pytest.approx(1)
    assert found.difference == 0
    assert found.low == -found.high


def test_mcnemar_changes_sides_with_its_arguments():
    a, b = table(50, 12, 5, 8)
    one, other = mcnemar(a, b), mcnemar(b, a)
    assert (one.difference, one.p_value) == (-other.difference, other.p_value)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    np.testing.assert_allclose(
        mcnemar(*table(500000, 30200, 29800, 440000))[1:],
        # The normal limit: z standard errors of a difference of 400 in 60000 rows.
        [
            0.0004 - stats.norm.ppf(0.975) * np.sqrt(60000) / 1e6,
            0.0004 + stats.norm.ppf(0.975) * np.sqrt(60000) / 1e6,
            2 * stats.norm.sf(400 / np.sqrt(60000)),
        ],
        rtol=1e-3,
    )


@pytest.mark.parametrize(
    "probabilities", [(0.6, 0.1, 0.1, 0.2), (0.6, 0.25, 0.05, 0.1)]
)
def test_the_interval_of_mcnemar_covers_the_difference(probabilities):
    rng = np.random.default_rng(0)
    truth = probabilities[1] - probabilities[2]
    found = [mcnemar(*table(*rng.multinomial(60, probabilities))) for _ in range(2000)]
    covered = np.mean([one.low <= truth <= one.high for one in found])
    assert 0.94 < covered < 0.98
    if truth == 0:
        assert np.mean([one.p_value < 0.05 for one in found]) < 0.055


def test_the_paired_bootstrap_is_normal_for_many_rows():
    rng = np.random.default_rng(0)
    a = rng.normal(size=3000)
    difference = rng.normal(size=3000)
    difference -= difference.mean() - 1.5 * stats.sem(difference)
    middle, error = difference.mean(), stats.sem(difference)
    found = paired_bootstrap(a, a - difference, seed=0, resamples=4000)
    assert found.difference == pytest.approx(middle)
    # An end of 4000 draws is known to 0.05 standard errors.
    expected = stats.norm.interval(0.95, middle, error)
    assert np.abs(np.subtract([found.low, found.high], expected)).max() < 0.2 * error
    # A share of 4000 draws near 7 % has a standard deviation of 0.4 points.
    p_value = stats.ttest_rel(a, a - difference).pvalue
    assert found.p_value == pytest.approx(p_value, abs=0.02)


def test_the_paired_bootstrap_covers_the_difference_and_keeps_its_level():
    rng = np.random.default_rng(0)
    covered = rejected = 0
    for seed in range(400):
        a, b = rng.uniform(size=(2, 150)) < 0.7
        found = paired_bootstrap(a, b, seed=seed, resamples=400)
        covered += found.low <= 0 <= found.high
        rejected += found.p_value < 0.05
    # A binomial share of 400 at 5 % has a standard deviation of 1.1 points.
    assert covered / 400 > 0.91
    assert rejected / 400 < 0.09


def test_heads_that_are_the_same_do_not_differ():
    values = np.random.default_rng(0).normal(size=50)
    assert paired_bootstrap(values, values, seed=0) == (0, 0, 0, 1)


COMPARE = {
    "paired_bootstrap": lambda values, **options: paired_bootstrap(
        *values[:2], seed=3, **options
    ),
    "bias_corrected": lambda values, **options: bias_corrected(
        values, greater_is_better=True, seed=3, **options
    ),
}


@pytest.mark.parametrize("compare", COMPARE.values(), ids=COMPARE)
def test_a_row_of_weight_0_is_as_if_deleted(compare):
    rng = np.random.default_rng(1)
    values, weights = rng.normal(size=(4, 80)), rng.integers(3, size=80) / 2
    groups = rng.integers(20, size=80)
    kept = weights > 0
    values[:, ~kept] = np.nan
    for extra in ({}, {"groups": groups}):
        held = {name: value[kept] for name, value in extra.items()}
        assert compare(values, weights=weights, **extra) == compare(
            values[:, kept], weights=weights[kept], **held
        )


@pytest.mark.parametrize("compare", COMPARE.values(), ids=COMPARE)
def test_a_row_of_weight_2_is_the_row_twice_in_one_group(compare):
    rng = np.random.default_rng(2)
    values, times = rng.normal(size=(4, 60)), rng.integers(1, 4, size=60)
    rows = np.repeat(np.arange(60), times)
    np.testing.assert_allclose(
        compare(values, weights=times),
        compare(values[:, rows], groups=rows),
        rtol=1e-5,
    )


@pytest.mark.parametrize("compare", COMPARE.values(), ids=COMPARE)
def test_the_seed_says_all_and_memory_nothing(compare, monkeypatch):
    values = np.random.default_rng(0).normal(size=(4, 70))
    np.random.seed(0)
    first = compare(values)
    np.random.seed(1)
    assert compare(values) == first
    monkeypatch.setattr(comparison, "_CHUNK", 7 * 70)
    np.testing.assert_allclose(compare(values), first, rtol=1e-5)


@pytest.mark.parametrize("compare", COMPARE.values(), ids=COMPARE)
def test_rows_that_belong_together_widen_the_interval(compare):
    groups = np.repeat(np.arange(100), 4)
    values = np.random.default_rng(0).normal(size=(4, 100))[:, groups]
    alone, together = compare(values), compare(values, groups=groups)
    ratio = (together.high - together.low) / (alone.high - alone.low)
    # Four equal rows tell as much as one: twice the standard error.
    assert 1.6 < ratio < 2.5


def by_loops(values, draws, *, sign, seed):
    """Bootstrap bias correction, one draw at a time."""
    rng = np.random.default_rng(seed)
    rows = values.shape[1]
    scores = []
    for _ in range(draws):
        drawn = rng.choice(rows, size=rows)
        rest = np.setdiff1d(np.arange(rows), drawn)
        chosen = np.argmax([sign * candidate[drawn].mean() for candidate in values])
        scores.append(values[chosen][rest].mean())
    return np.mean(scores), *np.quantile(scores, [0.025, 0.975])


@pytest.mark.parametrize("greater_is_better", [True, False])
def test_the_correction_is_that_of_plain_loops(greater_is_better):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 40)) + 0.2 * rng.normal(size=(6, 1))
    found = bias_corrected(
        values, greater_is_better=greater_is_better, seed=0, resamples=4000
    )
    sign = 1 if greater_is_better else -1
    expected = by_loops(values, 4000, sign=sign, seed=1)
    # The mean of 4000 draws is known to 0.004, its quantiles to 0.012.
    np.testing.assert_allclose(found, expected, atol=0.04)
    assert abs(found.score - expected[0]) < 0.02


def test_guesses_are_chance_when_corrected_and_look_better_when_not():
    naive, corrected, covered = [], [], 0
    for seed in range(60):
        guesses = np.random.default_rng(seed).integers(2, size=(50, 200))
        found = bias_corrected(guesses, greater_is_better=True, seed=0, resamples=300)
        naive.append(guesses.mean(axis=1).max())
        corrected.append(found.score)
        covered += found.low <= 0.5 <= found.high
        assert found.score < naive[-1]
    # The largest of 50 scores lies 2.25 standard deviations of 0.035 above chance.
    assert abs(np.mean(naive) - (0.5 + 2.25 * 0.5 / np.sqrt(200))) < 0.01
    assert abs(np.mean(corrected) - 0.5) < 0.01
    assert covered >= 55


def test_right_answers_to_permuted_labels_are_chance():
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=400)
    predicted = np.where(rng.uniform(size=(20, 400)) < 0.8, labels, 0)
    honest = bias_corrected(predicted == labels, greater_is_better=True, seed=0)
    assert abs(honest.score - 0.85) < 0.03
    permuted = bias_corrected(
        predicted == rng.permutation(labels), greater_is_better=True, seed=0
    )
    assert permuted.low < 0.25 < permuted.high


def test_a_head_without_rivals_needs_no_correction():
    values = np.random.default_rng(0).normal(size=(1, 500))
    found = bias_corrected(values, greater_is_better=True, seed=0, resamples=2000)
    error = values.std() / np.sqrt(500)
    assert abs(found.score - values.mean()) < 0.2 * error
    # 1 / e of the rows are left out: sqrt(e - 1), for the share that varies with them.
    width = 2 * stats.norm.ppf(0.975) * error * np.sqrt(np.e - 1)
    assert found.high - found.low == pytest.approx(width, rel=0.1)


def test_a_rule_chooses_and_sees_all_candidates():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 200)) + np.array([[0.0], [1.0], [5.0]])
    seen = []

    def simplest_within_two(scores):
        seen.append(scores.shape)
        return (scores >= scores.max(axis=1, keepdims=True) - 4.5).argmax(axis=1)

    found = bias_corrected(
        values,
        greater_is_better=True,
        seed=0,
        resamples=200,
        choose=simplest_within_two,
    )
    only = bias_corrected(values[1:2], greater_is_better=True, seed=0, resamples=200)
    assert found == only
    assert seen == [(200, 3)]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("greater_is_better", [True, False])
def test_a_diverged_candidate_is_never_chosen(bad, greater_is_better):
    values = np.random.default_rng(0).normal(size=(3, 100))
    expected = bias_corrected(
        values[1:], greater_is_better=greater_is_better, seed=0, resamples=200
    )
    values[0, 7] = bad
    found = bias_corrected(
        values, greater_is_better=greater_is_better, seed=0, resamples=200
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_two_rows_are_enough():
    found = bias_corrected([[1.0, 3.0]], greater_is_better=True, seed=0)
    assert (found.low, found.high) == (1, 3)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: mcnemar([1, 0], [True, False]),
            "correct_a: expected True or False, one a row as correct_a, got int64 [2].",
        ),
        (
            lambda: mcnemar([True, False], [True]),
            "correct_b: expected True or False, one a row as correct_a, got bool [1].",
        ),
        (
            lambda: mcnemar(np.zeros(0, bool), np.zeros(0, bool)),
            "correct_a: expected one or more rows, got none.",
        ),
        (
            lambda: paired_bootstrap([1.0, 2.0], [1.0], seed=0),
            "values_a, values_b: expected one value a row of both, got [2] and [1].",
        ),
        (
            lambda: paired_bootstrap([1.0, np.nan], [1.0, 2.0], seed=0),
            "values_a, values_b: expected finite numbers, got others.",
        ),
        (
            lambda: paired_bootstrap([1.0, 2.0], [1.0, 2.0], seed=0, resamples=10),
            "resamples: expected 100 or more, got 10.",
        ),
        (
            lambda: paired_bootstrap([1.0, 2.0], [1.0, 2.0], seed=0, weights=[1]),
            "weights: expected [2], got [1].",
        ),
        (
            lambda: paired_bootstrap([1.0, 2.0], [1.0, 2.0], seed=0, weights=[1, -1]),
            "weights: expected finite numbers of 0 or more, got others.",
        ),
        (
            lambda: paired_bootstrap([1.0, 2.0], [1.0, 2.0], seed=0, weights=[1, 0]),
            "values: expected two or more rows of a weight above 0 to draw from, "
            "got 1.",
        ),
        (
            lambda: paired_bootstrap([1.0, 2.0], [1.0, 2.0], seed=0, groups=[5, 5]),
            "values: expected two or more groups of a weight above 0 to draw from, "
            "got 1.",
        ),
        (
            lambda: bias_corrected([1.0, 2.0], greater_is_better=True, seed=0),
            "values: expected [candidates, rows], got [2].",
        ),
        (
            lambda: bias_corrected([[np.nan] * 2], greater_is_better=True, seed=0),
            "values: expected a candidate whose values are finite, but none of 1 is.",
        ),
        (
            lambda: bias_corrected(
                [[1.0, 2.0]], greater_is_better=True, seed=0, groups=["a"]
            ),
            "groups: expected [2], got [1].",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        call()
