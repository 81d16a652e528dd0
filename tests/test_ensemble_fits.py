"""Fits of many heads, and the average of many: each property once over a table."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
from scipy.special import log_softmax
from sklearn.ensemble import StackingClassifier
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.model_selection import PredefinedSplit

from flaxhead.base import Batch
from flaxhead.ensembles.fits import (
    averaged,
    bagging,
    boosted,
    boosting,
    cosine_cycles,
    offset,
    snapshots,
    stacked,
    stacking,
)
from flaxhead.ensembles.soups import greedy_soup, shared_start, soup, soups
from flaxhead.fit import seeds, train
from flaxhead.heads import linear
from flaxhead.losses import softmax_cross_entropy
from flaxhead.objectives import supervised
from flaxhead.sampling import batch_rows
from flaxhead.solvers import logistic, ridge
from flaxhead.step import learner

ROWS, DIM, CLASSES, STEPS, SIZE = 24, 3, 3, 7, 8
KEY = jax.random.key(0)
HEAD = linear(CLASSES, zero_init=False)
FOLD = np.arange(ROWS) // 2 % 3
RATE = {"rate": jnp.float32(0.3)}
RUN = {"steps": STEPS, "batch_size": SIZE}


def make_learner(head):
    def make(hyperparameters):
        objective = supervised(head, softmax_cross_entropy)
        return learner(head, objective, optax.sgd(hyperparameters["rate"]))

    return make


MAKE = make_learner(HEAD)
PLAIN = train(MAKE, **RUN)
LINEAR = linear(CLASSES)
SIMPLE = make_learner(LINEAR)
ONE = train(SIMPLE, **RUN)
FITS = {
    "bagging": bagging(ONE, 2),
    "snapshots": snapshots(SIMPLE, **RUN, count=2),
    "averaged": averaged(SIMPLE, **RUN, decay=0.5),
    "boosting": boosting(train(make_learner(offset(LINEAR)), **RUN), LINEAR, rounds=2),
    "stacking": stacking([(ONE, LINEAR)], FOLD, folds=3, meta=ONE),
    "soups": soups(SIMPLE, **RUN, count=2),
}
every_fit = pytest.mark.parametrize("name", FITS)


def problem(seed=0, rows=ROWS):
    draw = np.random.default_rng(seed)
    labels = np.arange(rows) % CLASSES
    x = draw.normal(size=(rows, DIM)) + 1.5 * np.eye(DIM)[labels]
    return Batch(
        jnp.asarray(x, jnp.float32),
        jnp.asarray(labels, jnp.int32),
        jnp.ones(rows),
        jnp.arange(rows),
    )


def same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def close(found, expected, tolerance=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance),
        found,
        expected,
    )


# What holds for all.


def programs(fits):
    """All of them as one program, which is quicker to compile."""
    return lambda *arguments: {name: fit(*arguments) for name, fit in fits.items()}


@functools.cache
def table():
    """Every fit under vmap by soft labels, NaN where hidden, and alone by numbers."""
    data, fit = problem(), jax.jit(programs(FITS))
    weights = jnp.ones([2, ROWS]).at[0, ::5].set(0).at[1, ::4].set(0).at[1, 1].set(2)
    rates = jnp.array([0.3, 0.1])
    soft = jax.nn.one_hot(data.labels, CLASSES)
    soft = jnp.where(weights[:, :, None] > 0, soft, jnp.nan)

    def one(labels, weights, rate):
        rows = data._replace(labels=labels)
        return programs(FITS)(rows, weights, {"rate": rate}, KEY)

    many = jax.jit(jax.vmap(one))(soft, weights, rates)
    alone, planted = [], []
    for own, rate in zip(weights, rates, strict=True):
        wrong = jnp.where(own > 0, data.labels, CLASSES - 1 - data.labels)
        for found, labels in (alone, data.labels), (planted, wrong):
            rows = data._replace(labels=labels)
            found.append(fit(rows, own, {"rate": rate}, KEY))
    assert fit._cache_size() == 1
    return many, alone, planted


@every_fit
def test_hidden_labels_are_not_read(name):
    _, alone, planted = table()
    for one in range(2):
        same(planted[one][name], alone[one][name])


@every_fit
def test_candidates_side_by_side_are_candidates_alone(name):
    many, alone, _ = table()
    for one in range(2):
        own = jax.tree.map(lambda leaf: leaf[one], many[name])  # noqa: B023
        close(own, alone[one][name])


# Bootstrap draws.


GIVEN = jnp.where(jnp.arange(ROWS) < 12, 2.0, 0.5).at[8:10].set(0)
THERE = np.arange(ROWS) % 4 > 0


def told(data, weights, hyperparameters, key):
    """A fit that returns the weights that it is given."""
    return weights * data.weights


@functools.cache
def draws():
    """Weights of members, of several bags in one program."""
    data = problem()
    some = data._replace(
        labels=data.labels.at[:4].set(-1), weights=data.weights.at[4:8].set(0)
    )
    few = jax.tree.map(lambda leaf: leaf[THERE], data)
    bags = {
        "five": (some, GIVEN),
        "absent": (data, jnp.asarray(THERE, jnp.float32)),
        "deleted": (few, jnp.ones(len(few.labels))),
        "many": (problem(rows=5), jnp.ones(5)),
        "whole": (data, jnp.ones(ROWS)),
    }
    counts = {"five": 5, "absent": 3, "deleted": 2, "many": 4000, "whole": 2}

    def all_of_them(bags):
        return {
            name: bagging(told, counts[name])(data, weights, {}, KEY)
            for name, (data, weights) in bags.items()
        }

    return jax.tree.map(np.asarray, jax.jit(all_of_them)(bags))


def test_a_bootstrap_draws_as_many_rows_as_are_labelled_and_present():
    found = draws()["five"]
    np.testing.assert_array_equal(found[:, :4], np.broadcast_to(GIVEN[:4], (5, 4)))
    np.testing.assert_array_equal(found[:, 4:10], 0)
    times = found[:, 10:] / np.asarray(GIVEN[10:])
    np.testing.assert_array_equal(times, np.round(times))
    np.testing.assert_array_equal(times.sum(axis=1), ROWS - 10)
    assert len(np.unique(times, axis=0)) == 5


def test_neither_absent_rows_nor_more_members_change_a_draw():
    np.testing.assert_array_equal(draws()["absent"][:2, THERE], draws()["deleted"])


def test_draws_are_multinomial():
    """By chi-square tests that fair draws fail once in ten thousand seeds."""
    found = draws()["many"].astype(int)
    assert stats.chisquare(found.sum(axis=0)).pvalue > 1e-4
    chances = 4000 * stats.binom.pmf(np.arange(6), 5, 1 / 5)
    seen = np.bincount(found[:, 2], minlength=6)
    grouped = [np.append(one[:4], one[4:].sum()) for one in (seen, chances)]
    assert stats.chisquare(*grouped).pvalue > 1e-4


def test_a_member_of_a_bag_is_the_fit_to_repeated_rows():
    data = problem()
    times = draws()["whole"].astype(int)
    alpha = {"alpha": jnp.float32(0.7)}
    params = fitted(bagging(ridge(CLASSES), 2), alpha)["output"]
    for member in range(2):
        x = np.repeat(np.asarray(data.x, float), times[member], axis=0)
        labels = np.repeat(np.asarray(data.labels), times[member])
        expected = Ridge(alpha=0.7).fit(x, 2 * np.eye(CLASSES)[labels] - 1)
        close(params["kernel"][member], expected.coef_.T)
        close(params["bias"][member], expected.intercept_)


# Along one run.


DECAYS = np.array([0.0, 0.6, 0.999, 1.0])
START, BOOST = 0.4, 0.5


def moving(*arguments):
    """Averages of several decays side by side."""
    return jax.vmap(
        lambda decay: averaged(MAKE, **RUN, decay=decay, start=START)(*arguments)
    )(jnp.asarray(DECAYS, jnp.float32))


def descent(data, weights, settings, key):
    """Five steps on all rows, of the learning rate times that of boosting."""
    fit = train(SIMPLE, steps=5, batch_size=ROWS)
    return fit(data, weights, {"rate": BOOST * settings["rate"]}, key)


def apart(data, weights, settings, key):
    """The runs that `soups` averages."""
    first, rest = jax.random.split(key)
    fit = seeds(train(shared_start(MAKE, first), **RUN), 3)
    return fit(data, weights, settings, rest)


ONE_STEP = train(make_learner(offset(LINEAR)), steps=1, batch_size=ROWS)
SHARED = shared_start(MAKE, jax.random.key(7))
RUNS = {
    "plain": PLAIN,
    "seed": seeds(PLAIN, 1),
    "one snapshot": snapshots(MAKE, **RUN, count=1),
    "three snapshots": snapshots(MAKE, **RUN, count=3),
    "moving": moving,
    "mean": averaged(MAKE, **RUN, start=START),
    "decay 0": averaged(MAKE, **RUN, decay=0.0),
    "one round": boosting(train(make_learner(offset(HEAD)), **RUN), HEAD, rounds=1),
    "boosting": boosting(ONE_STEP, LINEAR, rounds=5, rate=BOOST),
    "descent": descent,
    "members": seeds(train(SHARED, **RUN), 4),
    "starts": seeds(train(SHARED, steps=0, batch_size=SIZE), 4),
    "own starts": seeds(train(MAKE, steps=0, batch_size=SIZE), 4),
    "soups": soups(MAKE, **RUN, count=3),
    "apart": apart,
}


@functools.cache
def runs():
    return jax.tree.map(np.asarray, fitted(programs(RUNS)))


def fitted(fit, hyperparameters=RATE):
    return jax.jit(fit)(problem(), jnp.ones(ROWS), hyperparameters, KEY)


@functools.cache
def every_step():
    """Parameters after each step of `train`, taken one by one."""
    data, learn = problem(), MAKE(RATE)
    state_key, order_key = jax.random.split(KEY)

    @jax.jit
    def one_more(state):
        first = state.step.astype(jnp.uint32) * SIZE
        order = batch_rows(order_key, first, rows=ROWS, positions=jnp.arange(SIZE))
        return learn.step(state, jax.tree.map(lambda leaf: leaf[order], data))[0]

    states = [learn.init(state_key, data)]
    for _ in range(STEPS):
        states.append(one_more(states[-1]))
    params = [state.params for state in states[1:]]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *params)


@pytest.mark.parametrize(
    ("name", "after"), [("one snapshot", [7]), ("three snapshots", [3, 5, 7])]
)
def test_snapshots_are_what_so_many_steps_give(name, after):
    found = runs()[name]
    picked = jax.tree.map(lambda leaf: leaf[np.array(after) - 1], every_step())
    close(found, picked, 1e-6)
    same(jax.tree.map(lambda leaf: leaf[-1], found), runs()["plain"])


def test_cycles_are_those_of_the_paper():
    schedule = cosine_cycles(0.4, steps=12, count=3)
    expected = [0.2 * (np.cos(np.pi * (step % 4) / 4) + 1) for step in range(12)]
    close(jax.vmap(schedule)(jnp.arange(12)), np.array(expected), 1e-7)
    # Cycles of unequal length start where a snapshot has been taken.
    uneven = jax.vmap(cosine_cycles(1.0, steps=STEPS, count=3))(jnp.arange(STEPS))
    rises = 1 + np.flatnonzero(np.diff(uneven) > 0)
    assert rises.tolist() == [np.ceil(STEPS / 3), np.ceil(2 * STEPS / 3)]


def test_averages_are_those_of_numpy():
    first = 2  # of 7 steps, 0.4 are 2.8

    def check(found, mean, leaves):
        counted = leaves[first:].astype(float)
        close(mean, counted.mean(axis=0), 1e-6)
        for number, decay in enumerate(DECAYS):
            powers = decay ** np.arange(len(counted))[::-1]
            expected = np.tensordot(powers / powers.sum(), counted, axes=1)
            close(found[number], expected, 2e-6)

    jax.tree.map(check, runs()["moving"], runs()["mean"], every_step())


def test_without_decay_an_average_is_plain_training():
    same(runs()["decay 0"], runs()["plain"])


# Heads that learn from heads.


def test_one_round_is_the_fit_of_the_head():
    found, x = runs()["one round"], problem().x
    close(found, runs()["seed"], 1e-6)
    alone = HEAD.apply(jax.tree.map(lambda leaf: leaf[0], found), x)
    same(boosted(HEAD, rounds=1).apply(found, x), alone)


def test_boosting_linear_heads_of_a_step_each_is_gradient_descent():
    whole, x = boosted(LINEAR, rounds=5, rate=BOOST), problem().x
    found = whole.apply(runs()["boosting"], x)
    close(found, LINEAR.apply(runs()["descent"], x))


class LogChances(RidgeClassifier):
    """Whose decision function is log-probabilities."""

    def decision_function(self, X):
        return log_softmax(super().decision_function(X), axis=1)


def test_stacking_is_that_of_scikit_learn():
    data = problem()
    x, labels = np.asarray(data.x, float), np.asarray(data.labels)
    reference = StackingClassifier(
        [(str(alpha), LogChances(alpha=alpha)) for alpha in (0.5, 5.0)],
        final_estimator=LogisticRegression(C=0.8, tol=1e-10),
        cv=PredefinedSplit(FOLD),
        stack_method="decision_function",
    ).fit(x, labels)

    one = ridge(CLASSES)

    def stronger(data, weights, hyperparameters, key):
        return one(data, weights, {"alpha": 10 * hyperparameters["alpha"]}, key)

    base = [(one, LINEAR), (stronger, LINEAR)]
    fit = stacking(base, jnp.asarray(FOLD), folds=3, meta=logistic(CLASSES))
    params = fitted(fit, {"alpha": jnp.float32(0.5), "C": jnp.float32(0.8)})
    whole = stacked([LINEAR, LINEAR], LINEAR)
    found = jax.nn.softmax(whole.apply(params, data.x))
    close(found, reference.predict_proba(x), 2e-3)
    shapes = jax.tree.map(jnp.shape, whole.init(KEY, data.x))
    assert shapes == jax.tree.map(jnp.shape, params)


def test_rows_in_no_fold_or_in_all_don_t_teach_the_last_head():
    alone = ridge(CLASSES), LINEAR
    fold = jnp.asarray(np.where(np.arange(ROWS) < 20, FOLD, -1)).at[:3].set(3)
    fit = stacking([alone], fold, folds=3, meta=told)
    params = fitted(fit, {"alpha": jnp.float32(1)})
    expected = (np.arange(ROWS) >= 3) & (np.arange(ROWS) < 20)
    same(params["meta"], expected.astype(np.float32))
    inside = jnp.asarray(np.arange(ROWS) < 20, jnp.float32)
    every = jax.jit(alone[0])(problem(), inside, {"alpha": jnp.float32(1)}, KEY)
    close(params["base"][0], every)


# One head of many.


def permuted(tree):
    return jax.tree.map(lambda leaf: leaf[::-1], tree)


def test_members_share_their_start_and_not_their_rows():
    kernels = {
        name: runs()[name]["output"]["kernel"].reshape(4, -1)
        for name in ("members", "starts", "own starts")
    }
    distinct = {name: len(np.unique(one, axis=0)) for name, one in kernels.items()}
    assert distinct == {"members": 4, "starts": 1, "own starts": 4}


def test_a_soup_is_the_mean():
    params, start = runs()["members"], runs()["starts"]
    found = soup(params, start=start)
    close(found, jax.tree.map(lambda leaf: leaf.mean(axis=0), params), 1e-6)
    close(soup(permuted(params), start=permuted(start)), found, 1e-6)
    alone, first = (jax.tree.map(lambda leaf: leaf[:1], one) for one in (params, start))
    same(soup(alone, start=first), jax.tree.map(lambda leaf: leaf[0], alone))


def test_the_fit_of_a_soup_is_the_soup_of_its_runs():
    expected = jax.tree.map(lambda leaf: np.mean(leaf, axis=0), runs()["apart"])
    close(runs()["soups"], expected, 1e-6)


def score(params):
    """How close a point is to one that no member is at."""
    return -jnp.sum((params["point"] - 0.2) ** 2)


def points(seed=1, count=8):
    draw = np.random.default_rng(seed)
    params = {"point": draw.normal(size=(count, 4)).astype(np.float32)}
    return params, {"point": np.zeros([count, 4], np.float32)}


@functools.cache
def greedy():
    return jax.jit(functools.partial(greedy_soup, score=score))


@pytest.mark.parametrize("recipe", [soup, functools.partial(greedy_soup, score=score)])
def test_what_did_not_start_together_is_refused(recipe):
    params, _ = points()
    with pytest.raises(ValueError, match="did not start from one initialisation"):
        recipe(params, start=params)
    with pytest.raises(ValueError, match="start has the shapes"):
        recipe(params, start={"point": params["point"][0]})
    # Traced it can't be looked at.
    found = jax.jit(lambda params, start: recipe(params, start=start))(params, params)
    params = found[0] if isinstance(found, tuple) else found
    assert np.isnan(params["point"]).all()


def numpy_greedy(points):
    """Recipe 1 of Wortsman et al., in float64: the mean, and which are in it."""
    points = points.astype(float)

    def value(those):
        return -np.sum((points[those].mean(axis=0) - 0.2) ** 2)

    order = sorted(range(len(points)), key=lambda number: -value([number]))
    used = order[:1]
    for number in order[1:]:
        if value([*used, number]) >= value(used):
            used.append(number)
    return points[used].mean(axis=0), np.isin(np.arange(len(points)), used)


def test_greedy_soups_are_those_of_the_paper():
    sizes = set()
    for seed in range(20):
        params, start = points(seed)
        expected, inside = numpy_greedy(params["point"])
        found, used = greedy()(params, start=start)
        same(used, inside)
        close(found["point"], expected, 1e-6)
        again, used = greedy()(permuted(params), start=start)
        same(used, inside[::-1])
        same(again, found)
        sizes.add(int(inside.sum()))
    assert len(sizes) > 2
    assert greedy()._cache_size() == 1


def test_a_greedy_soup_of_one_is_itself_and_a_diverged_head_is_left_out():
    params, start = points(count=1)
    found, used = greedy()(params, start=start)
    same(found["point"], params["point"][0])
    assert used.tolist() == [True]
    params, start = points()
    params["point"][2] = np.nan
    found, used = greedy()(params, start=start)
    assert not used[2]
    assert np.isfinite(found["point"]).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bagging(PLAIN, 0), "count is 0: expected at least 1"),
        (lambda: soups(MAKE, **RUN, count=0), "count is 0: expected at least 1"),
        (lambda: snapshots(MAKE, **RUN, count=8), "count is 8: expected from 1 to"),
        (lambda: cosine_cycles(1.0, steps=3, count=0), "count is 0: expected from 1"),
        (lambda: averaged(MAKE, **RUN, decay=1.1), "decay is 1.1: expected one in"),
        (lambda: averaged(MAKE, **RUN, start=1.0), "start is 1.0: expected a share"),
        (lambda: boosting(PLAIN, HEAD, rounds=0), "rounds is 0: expected at least 1"),
        (lambda: boosted(HEAD, rounds=0), "rounds is 0: expected at least 1"),
        (lambda: stacking([], FOLD, folds=3, meta=PLAIN), "fits is empty"),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
