"""What wins, on tables small enough to read."""

import itertools
import math
import re

import pytest

from flaxhead.selection import Candidate, grid_edges, select


def candidate(index, score, **changes):
    """A candidate like all others but for what is named."""
    values = {"learning_rate": 0.1, "weight_decay": 0.0, "dropout": 0.0, "seed": 0.0}
    fields = {
        "head": "linear",
        "complexity": 650.0,
        "standard_error": 0.02,
        "best_step": 100,
        "diverged_at": None,
    }
    values |= {name: changes.pop(name) for name in values if name in changes}
    return Candidate(
        index=index, score=score, hyperparameters=values, **(fields | changes)
    )


def test_the_best_score_wins_in_either_direction():
    table = [candidate(0, 0.3), candidate(1, 0.1), candidate(2, 0.2)]
    assert select(table, metric="accuracy").ranked == [0, 2, 1]
    assert select(table, metric="nll").ranked == [1, 2, 0]
    assert select(table, metric="accuracy").winner == 0
    assert select(table, metric="nll").winner == 1


@pytest.mark.parametrize(
    ("loser", "winner"),
    [
        ({"complexity": 2000}, {"complexity": 1000, "weight_decay": 0.0}),
        ({"weight_decay": 0.01, "dropout": 0.5}, {"weight_decay": 0.1}),
        ({"dropout": 0.1, "learning_rate": 0.01}, {"dropout": 0.5}),
        ({"learning_rate": 0.1}, {"learning_rate": 0.01}),
    ],
    ids=["parameters", "weight decay", "dropout", "learning rate"],
)
@pytest.mark.parametrize("metric", ["accuracy", "ece"])
def test_equal_scores_go_to_the_simpler_candidate(loser, winner, metric):
    table = [candidate(0, 0.5, **loser), candidate(1, 0.5, **winner)]
    assert select(table, metric=metric).ranked == [1, 0]


def test_candidates_that_differ_in_nothing_go_by_index():
    table = [candidate(1, 0.5, seed=0.0), candidate(0, 0.5, seed=1.0)]
    assert select(table, metric="accuracy").ranked == [0, 1]


def test_a_score_counts_before_simplicity():
    table = [candidate(0, 0.51, complexity=9e6), candidate(1, 0.5)]
    assert select(table, metric="accuracy").winner == 0


TABLE = [
    candidate(0, 0.90, complexity=5000, standard_error=0.02),
    candidate(1, 0.89, complexity=5000, weight_decay=0.1, standard_error=0.5),
    candidate(2, 0.882, complexity=900),
    candidate(3, 0.885, complexity=900, seed=1.0),
    candidate(4, 0.87, complexity=10),
]


def test_one_standard_error_takes_the_simplest_within_reach():
    """0.90 - 0.02 reaches two small ones, which differ by their seed only."""
    chosen = select(TABLE, metric="accuracy", rule="one_standard_error")
    assert chosen.winner == 3
    assert chosen.ranked == [0, 1, 3, 2, 4]


def test_one_standard_error_where_less_is_better():
    table = [
        candidate(0, 0.30, complexity=5000, standard_error=0.05),
        candidate(1, 0.34, complexity=900),
        candidate(2, 0.36, complexity=10),
        candidate(3, 0.20, complexity=1, diverged_at=7),
    ]
    assert select(table, metric="nll", rule="one_standard_error").winner == 1


@pytest.mark.parametrize("error", [None, math.nan])
def test_one_standard_error_needs_that_of_the_best(error):
    table = [candidate(5, 0.9, standard_error=error), candidate(6, 0.8)]
    assert select(table, metric="accuracy").winner == 5
    with pytest.raises(ValueError, match="standard error of the best, candidate 5"):
        select(table, metric="accuracy", rule="one_standard_error")


@pytest.mark.parametrize("rule", ["best", "one_standard_error"])
def test_the_order_of_the_candidates_changes_nothing(rule):
    ties = [*TABLE[:3], candidate(3, 0.90, complexity=5000), candidate(4, math.nan)]
    for order in itertools.permutations(ties):
        chosen = select(order, metric="accuracy", rule=rule)
        assert chosen == select(ties, metric="accuracy", rule=rule)
        assert grid_edges(chosen.winner, order) == grid_edges(chosen.winner, ties)


def test_what_diverged_never_wins():
    table = [
        candidate(0, 0.99, diverged_at=3),
        candidate(1, math.nan),
        candidate(2, 0.1),
        candidate(3, math.inf),
    ]
    chosen = select(table, metric="accuracy")
    assert chosen == (2, [2, 0, 1, 3])


def test_all_diverged_is_an_error_that_lists_them():
    table = [
        candidate(1, 0.9, learning_rate=100.0, diverged_at=12),
        candidate(0, math.nan, learning_rate=10.0),
    ]
    message = (
        "candidates: expected one with a finite score, but all 2 diverged, "
        "0 (learning rate 10) at score nan; 1 (learning rate 100) at step 12: "
        "try smaller learning rates."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        select(table, metric="accuracy")


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="candidates: expected one or more, got none"):
        select([], metric="accuracy")
    with pytest.raises(ValueError, match=r"metric: .*brier.* got 'acc'"):
        select(TABLE, metric="acc")
    with pytest.raises(ValueError, match=r"rule: .*one_standard_error, got 'first'"):
        select(TABLE, metric="accuracy", rule="first")


def sweep(name, values, **others):
    return [
        candidate(number, 0.5, **{name: value}, **others)
        for number, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("name", "values", "winner", "side"),
    [
        ("learning_rate", [0.1, 0.01, 0.001], 0, "larger"),
        ("learning_rate", [0.1, 0.01, 0.001], 2, "smaller"),
        ("learning_rate", [0.1, 0.01, 0.001], 1, None),
        ("learning_rate", [0.1, 0.1], 0, None),
        ("weight_decay", [0.0, 0.1], 0, None),
        ("weight_decay", [0.01, 0.1], 0, "smaller"),
        ("dropout", [0.0, 0.5], 0, None),
        ("dropout", [0.0, 0.5], 1, "larger"),
        ("seed", [0.0, 1.0, 2.0], 2, None),
    ],
)
def test_grid_edges(name, values, winner, side):
    found = grid_edges(winner, sweep(name, values))
    if side is None:
        assert found == []
    else:
        (sentence,) = found
        assert sentence.startswith(f"{name}: ")
        assert f"{values[winner]:g}" in sentence
        assert sentence.endswith(f"try a {side} one.")


def test_each_edge_is_a_sentence_of_its_own():
    grid = itertools.product([0.1, 1.0], [0.0, 0.2], [0.0, 0.3])
    table = [
        candidate(number, 0.5, learning_rate=rate, weight_decay=decay, dropout=drop)
        for number, (rate, decay, drop) in enumerate(grid)
    ]
    found = [sentence.split(":")[0] for sentence in grid_edges(3, table)]
    assert found == ["dropout", "learning_rate", "weight_decay"]


def test_a_grid_that_is_wide_has_no_edge():
    other = candidate(2, 0.1, weight_decay=0.5, dropout=0.2)
    table = [*sweep("weight_decay", [0.1, 1.0], dropout=0.1), other]
    names = [one.split(":")[0] for one in grid_edges(0, table)]
    assert names == ["dropout", "weight_decay"]
    (left,) = grid_edges(0, table, wide={"weight_decay"})
    assert left.startswith("dropout")


def test_only_the_winners_own_head_is_its_grid():
    table = sweep("dropout", [0.1, 0.5], head="mlp")
    assert len(grid_edges(1, table)) == 1
    assert grid_edges(9, [*table, candidate(9, 0.9, dropout=0.9)]) == []


def test_a_diverged_neighbour_was_tried_too():
    diverged = candidate(2, math.nan, learning_rate=10.0, diverged_at=4)
    table = [*sweep("learning_rate", [0.1, 1.0]), diverged]
    assert grid_edges(1, table) == []
