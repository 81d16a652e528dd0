"""Logistic regression: the optimum by float64 formulas and by scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import one_hot, sigmoid_terms, softmax_focal
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression

from flaxhead.base import Batch
from flaxhead.heads import linear
from flaxhead.solvers import logistic, logistic_path, logistic_pieces

# About what float32 can tell.
TIGHT = 1e-11
STRENGTHS = (1e-6, 1e-3, 1.0, 1e3, 1e6)


def batch(x, labels, weights=None):
    count = len(labels)
    weights = np.ones(count, np.float32) if weights is None else weights
    return Batch(
        jnp.asarray(x), jnp.asarray(labels), jnp.asarray(weights), jnp.arange(count)
    )


def problem(seed, rows, dim, classes, spread=1.0):
    """Classes about centres, so that some of it can be learned and some not."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(rows) % classes).astype(np.int32)
    centres = rng.normal(size=(classes, dim)) * spread
    x = centres[labels] + rng.normal(size=(rows, dim))
    return x.astype(np.float32), labels


def one(params, c=0, lane=0):
    """Kernel and bias of one solution, float64."""
    output = jax.tree.map(lambda leaf: np.asarray(leaf, float)[c, lane], params)
    return output["output"]["kernel"], output["output"]["bias"]


def penalty(kernel):
    """Of two opposite vectors, their difference counts; an only one has none."""
    return np.sum(kernel**2) / 2 * (2 if kernel.shape[1] == 2 else 1)


def objective(kernel, bias, x, labels, weights, C, terms=softmax_focal):
    """`terms` gives a row's losses; missing ones are 0."""
    loss = terms(x.astype(float) @ kernel + bias, labels)
    weights = weights if loss.ndim == 1 else weights[:, None]
    return penalty(kernel) + C * np.sum(weights * loss)


def slopes(kernel, bias, x, residuals, C):
    """The objective's gradient by kernel and bias."""
    kernel = kernel * (2 if kernel.shape[1] == 2 else 1)
    return kernel + C * x.astype(float).T @ residuals, C * residuals.sum(0)


def scikit_learn(x, labels, weights, C):
    """Its tight float64 solution, over the classes that have weight: a row each."""
    present = weights > 0
    model = LogisticRegression(C=C, tol=1e-9, max_iter=20000, solver="newton-cg")
    model.fit(x[present].astype(float), labels[present], weights[present])
    return model


FEATURES = {
    "plain": lambda x: x,
    "constant and twice the same": lambda x: np.column_stack(
        [x, x[:, :2], x[:, 0] * 0 + 5]
    ),
    "far from zero": lambda x: x + 100,
    "scales": lambda x: x * np.geomspace(0.1, 10, x.shape[1], dtype=np.float32),
}


@pytest.mark.usefixtures("compile_fully")
def test_a_path_of_folds_is_scikit_learns():
    """Probabilities and objectives, for every C and lane; a fold lacks a class."""
    plain, labels = problem(0, 90, 6, 4, spread=0.7)
    rng = np.random.default_rng(1)
    lanes = np.ones((90, 4), np.float32)
    lanes[:30, 0] = 0
    lanes[:, 1] = rng.uniform(0.2, 3, 90)
    lanes[labels == 2, 2] = 0
    strengths = np.array([1e-6, 1e-2, 1.0, 30.0])
    # One test, for most of them are one compilation.
    for name, features in FEATURES.items():
        x = features(plain)
        params, info = logistic_path(
            batch(x, labels), lanes, strengths, classes=4, tolerance=TIGHT
        )
        assert float(info.gradient_norm.max()) < 1e-3, name
        for c, C in enumerate(strengths):
            for lane in range(lanes.shape[1]):
                model = scikit_learn(x, labels, lanes[:, lane], C)
                kernel, bias = one(params, c, lane)
                mine = softmax(x.astype(float) @ kernel + bias, axis=1)
                assert np.all(np.delete(mine, model.classes_, axis=1) < 1e-6), name
                theirs = model.predict_proba(x.astype(float))
                # As near as the rounding of logits in the hundreds lets them be.
                np.testing.assert_allclose(
                    mine[:, model.classes_], theirs, atol=4e-4, err_msg=name
                )
                rest = (x, labels, lanes[:, lane], C)
                value = objective(kernel, bias, *rest)
                np.testing.assert_allclose(
                    info.objective[c, lane], value, rtol=2e-5, err_msg=name
                )
                full = np.zeros_like(kernel)
                full[:, model.classes_] = model.coef_.T
                intercept = np.full(4, -1e3)
                intercept[model.classes_] = model.intercept_
                assert value <= objective(full, intercept, *rest) * (1 + 1e-5), name


@pytest.mark.parametrize(
    ("rows", "dim", "classes"),
    [(2, 3, 2), (12, 40, 3), (60, 1, 2), (300, 5, 50), (1000, 8, 1000), (7, 2, 1)],
)
def test_the_gradient_vanishes(rows, dim, classes):
    """Whatever the shape, for all of C, separable or not: a certificate in float64.

    In the metric of a bound on the Hessian's diagonal, the half of its square is as
    much of the objective as could be gained by one step.
    """
    x, labels = problem(rows + dim, rows, dim, classes)
    lanes = np.ones((rows, 1), np.float32)
    params, info = logistic_path(
        batch(x, labels), lanes, STRENGTHS, classes=classes, tolerance=1e-7
    )
    for c, C in enumerate(STRENGTHS):
        kernel, bias = one(params, c)
        p = softmax(x.astype(float) @ kernel + bias, axis=1)
        by_kernel, by_bias = slopes(kernel, bias, x, p - one_hot(labels, classes), C)
        spread = np.abs(x - x.mean(0)) ** 2
        by_kernel = by_kernel - np.outer(x.mean(0), by_bias)  # at the centred features
        curvature = 1 + C * spread.sum(0)[:, None] / 4
        gain = np.sum(by_kernel**2 / curvature) / 2
        gain += np.sum(by_bias**2) / (C * rows / 4) / 2
        value = objective(kernel, bias, x, labels, lanes[:, 0], C)
        assert gain <= 1e-5 * value + 1e-12
        assert np.isfinite(np.asarray(info.gradient_norm)).all()


def test_two_classes_are_scikit_learns_binary():
    """Its one vector is the difference of two, which the penalty makes opposite."""
    x, labels = problem(3, 80, 5, 2, spread=0.4)
    params, _ = logistic_path(
        batch(x, labels), np.ones((80, 1)), [1.5], classes=2, tolerance=TIGHT
    )
    kernel, bias = one(params)
    model = scikit_learn(x, labels, np.ones(80), 1.5)
    np.testing.assert_allclose(kernel[:, 1] - kernel[:, 0], model.coef_[0], atol=1e-4)
    np.testing.assert_allclose(bias[1] - bias[0], model.intercept_[0], atol=1e-4)


def test_labels_of_their_own_with_missing_entries():
    """Each column is a binary regression on the rows that have it."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(120, 4)).astype(np.float32)
    truth = x @ rng.normal(size=(4, 3)) + rng.normal(size=(120, 3)) > 0.3
    labels = np.where(rng.uniform(size=(120, 3)) < 0.3, np.nan, truth)
    labels = labels.astype(np.float32)
    weights = rng.uniform(0.5, 2, (120, 2)).astype(np.float32)
    factors = np.array([1.0, 0.5, 3.0])
    strengths = [0.05, 2.0]
    params, info = logistic_path(
        batch(x, labels),
        weights,
        strengths,
        classes=3,
        output="sigmoid",
        tolerance=TIGHT,
        class_weights=factors,
    )
    for c, C in enumerate(strengths):
        for lane in range(2):
            kernel, bias = one(params, c, lane)
            weighed = lambda z, y: factors * sigmoid_terms(z, y)  # noqa: E731
            value = objective(kernel, bias, x, labels, weights[:, lane], C, weighed)
            np.testing.assert_allclose(info.objective[c, lane], value, rtol=1e-5)
            for k in range(3):
                known = ~np.isnan(labels[:, k])
                own = weights[:, lane] * known * factors[k]
                model = scikit_learn(x, labels[:, k], own, C)
                theirs = model.predict_proba(x.astype(float))[:, 1]
                mine = expit(x.astype(float) @ kernel[:, k] + bias[k])
                np.testing.assert_allclose(mine, theirs, atol=5e-5)


def test_class_numbers_are_their_multi_hot_rows():
    x, labels = problem(6, 50, 3, 4)
    labels[:5] = -1
    hot = np.where(labels[:, None] < 0, np.nan, one_hot(labels, 4)).astype(np.float32)
    solve = lambda y: logistic_path(  # noqa: E731
        batch(x, y), np.ones((50, 1)), [0.5], classes=4, output="sigmoid"
    )[0]
    jax.tree.map(np.testing.assert_array_equal, solve(labels), solve(hot))


def test_class_weights_are_row_weights():
    x, labels = problem(7, 60, 4, 3, spread=0.5)
    factors = np.array([1.0, 4.0, 0.25], np.float32)
    solve = lambda weights, **more: logistic_path(  # noqa: E731
        batch(x, labels), weights[:, None], [1.0], classes=3, tolerance=TIGHT, **more
    )
    mine, _ = solve(np.ones(60, np.float32), class_weights=factors)
    expected, _ = solve(factors[labels])
    jax.tree.map(np.testing.assert_array_equal, mine, expected)


def test_a_soft_label_is_a_row_a_class():
    """Weighted by its share; rows and class weights multiply."""
    rng = np.random.default_rng(8)
    x, _ = problem(8, 40, 4, 3)
    soft = rng.dirichlet(np.ones(3), 40).astype(np.float32)
    factors = np.array([1.0, 2.0, 0.5], np.float32)
    weights = rng.uniform(0.5, 2, (40, 1)).astype(np.float32)
    mine, info = logistic_path(
        batch(x, soft),
        weights,
        [0.7],
        classes=3,
        tolerance=TIGHT,
        class_weights=factors,
    )
    # A row's factor is the average of its classes', as in `losses.class_weighted`.
    shares = (weights * (soft @ factors)[:, None] * soft).ravel()
    repeated, labels = np.repeat(x, 3, axis=0), np.tile(np.arange(3), 40)
    model = scikit_learn(repeated, labels, shares, 0.7)
    kernel, bias = one(mine)
    np.testing.assert_allclose(kernel, model.coef_.T, atol=1e-4)
    np.testing.assert_allclose(bias, model.intercept_, atol=1e-4)
    value = objective(kernel, bias, repeated, labels, shares, 0.7)
    np.testing.assert_allclose(info.objective[0, 0], value, rtol=1e-5)


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_a_lane_is_alone(output):
    """To the bit: other weights, or none, or NaN rows, beside it change nothing."""
    x, labels = problem(9, 200, 6, 3)
    x[-1] = np.nan
    rng = np.random.default_rng(9)
    first = rng.uniform(0, 2, 200).astype(np.float32)
    first[-1] = 0
    others = np.ones((200, 4), np.float32)
    others[-1] = 0
    others[:, 2] = 0
    others[:, 3] *= 1e-3
    broken = others.copy()
    broken[-1, 1] = 1
    strengths = np.geomspace(1e-4, 1e4, 9)

    def solve(rest):
        lanes = np.column_stack([first, rest])
        return logistic_path(
            batch(x, labels), lanes, strengths, classes=3, output=output
        )

    params, info = solve(others)
    for rest in (broken, others[:, [3, 3, 0, 2]]):
        again, told = solve(rest)
        for a, b in zip(
            jax.tree.leaves((params, info)), jax.tree.leaves((again, told)), strict=True
        ):
            np.testing.assert_array_equal(a[:, 0], b[:, 0])
            assert np.isfinite(np.asarray(a, float)).all()
    _, told = solve(broken)
    assert not told.converged[:, 2].any()
    assert told.converged[:, [0, 1, 4]].all()


def test_no_rows_is_zero():
    x, labels = problem(10, 20, 3, 2)
    params, info = logistic_path(batch(x, labels), np.zeros((20, 1)), [1.0], classes=2)
    assert float(jnp.abs(params["output"]["kernel"]).max()) == 0
    assert float(info.objective[0, 0]) == 0


def test_how_a_path_is_cut_into_calls_does_not_show():
    x, labels = problem(11, 60, 4, 3)
    data, lanes = batch(x, labels), jnp.ones((60, 2))
    strengths = jnp.array([10.0, 0.1, 1.0])
    pieces = logistic_pieces(3, tolerance=TIGHT)
    advance = jax.jit(pieces.advance)
    begin = pieces.start(data, lanes, strengths)
    whole = advance(begin, data, lanes, strengths, 2000)
    shares, state = [], begin
    while pieces.share(state) < 1:
        shares.append(float(pieces.share(state)))
        state = advance(state, data, lanes, strengths, 3)
    assert shares == sorted(shares)
    assert shares[0] == 0
    jax.tree.map(np.testing.assert_array_equal, state, whole)


def test_the_order_of_C_is_the_callers():
    x, labels = problem(12, 60, 4, 3)
    solve = lambda strengths: logistic_path(  # noqa: E731
        batch(x, labels), np.ones((60, 1)), strengths, classes=3
    )
    ascending, mixed = solve([0.1, 1.0, 10.0]), solve([1.0, 10.0, 0.1])
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a[np.array([1, 2, 0])], b),
        ascending,
        mixed,
    )


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_eight_devices_are_one(output):
    x, labels = problem(13, 101, 5, 3, spread=0.5)
    lanes = np.ones((101, 2), np.float32)
    lanes[:20, 0] = 0
    strengths = jnp.geomspace(1e-3, 1.0, 4)

    def run(axis, *arguments):
        pieces = logistic_pieces(3, output=output, tolerance=TIGHT, axis=axis)
        data, lanes = arguments
        state = pieces.start(data, lanes, strengths)
        state = pieces.advance(state, data, lanes, strengths, 2000)
        return pieces.solution(state)[0]

    data = batch(x, labels)
    expected = jax.jit(lambda *a: run(None, *a))(data, jnp.asarray(lanes))

    def share(leaf):
        leaf = np.concatenate([leaf, np.zeros((3, *leaf.shape[1:]), leaf.dtype)])
        return leaf.reshape(8, 13, *leaf.shape[1:])

    shared = jax.tree.map(share, data._replace(index=np.arange(101)))
    found = jax.pmap(lambda *a: run("rows", *a), axis_name="rows")(shared, share(lanes))
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf[0], leaf[7]), found)
    first = jax.tree.map(lambda leaf: leaf[0], found)
    squash = softmax if output == "softmax" else lambda z, axis: expit(z)
    for c in range(4):
        for lane in range(2):
            a, b = (
                squash(x.astype(float) @ kernel + bias, axis=1)
                for kernel, bias in (one(expected, c, lane), one(first, c, lane))
            )
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_fit_is_the_path():
    """Of one C; and under vmap over many. The weights of both sides multiply."""
    x, labels = problem(14, 70, 4, 3, spread=0.5)
    rng = np.random.default_rng(14)
    weights = rng.uniform(0.5, 2, 70).astype(np.float32)
    more = rng.integers(0, 3, 70).astype(np.float32)
    data = batch(x, labels, weights)
    strengths = jnp.array([0.1, 3.0])
    fit = logistic(3, tolerance=TIGHT)
    many = jax.vmap(fit, in_axes=(None, None, 0, None))
    params = many(data, jnp.asarray(more), {"C": strengths}, jax.random.key(0))
    path, _ = logistic_path(
        batch(x, labels),
        (weights * more)[:, None],
        strengths,
        classes=3,
        tolerance=TIGHT,
    )
    shapes = jax.eval_shape(linear(3).init, jax.random.key(0), data.x)
    for a, b, shape in zip(*map(jax.tree.leaves, (params, path, shapes)), strict=True):
        assert a.shape[1:] == shape.shape
        np.testing.assert_allclose(a, b[:, 0], atol=5e-4)


def test_labels_beyond_the_classes_are_refused():
    x, labels = problem(15, 20, 3, 4)
    with pytest.raises(
        ValueError, match="labels has class 3, expected below classes, 2"
    ):
        logistic_path(batch(x, labels), np.ones((20, 1)), [1.0], classes=2)


COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: COMPILED.append(name) if "backend_compile" in name else None
)


def test_the_second_call_compiles_nothing():
    x, labels = problem(15, 30, 3, 2)
    x = x.astype(np.float16)
    arguments = (batch(x, labels), np.ones((30, 1)))
    logistic_path(*arguments, [1.0, 2.0], classes=2)
    before = len(COMPILED)
    logistic_path(*arguments, [0.5, 4.0], classes=2, tolerance=1e-3)
    assert before > 0
    assert len(COMPILED) == before


def test_float16_embeddings():
    """Are what they would be as float32."""
    x, labels = problem(16, 50, 4, 3)
    x = x.astype(np.float16)
    solve = lambda x: logistic_path(  # noqa: E731
        batch(x, labels), np.ones((50, 1)), [0.1, 10.0], classes=3
    )
    jax.tree.map(np.testing.assert_array_equal, solve(x), solve(x.astype(np.float32)))


def test_what_has_not_converged_says_so():
    x, labels = problem(17, 80, 6, 3, spread=0.3)
    data, lanes = batch(x, labels), np.ones((80, 1))
    _, info = logistic_path(data, lanes, [1.0], classes=3, max_iterations=2)
    assert not info.converged.any()
    assert info.iterations.tolist() == [[2]]
    # Below the rounding of float32 there is nothing to be found.
    _, info = logistic_path(data, lanes, [1.0], classes=3, tolerance=0.0)
    assert not info.converged.any()
    assert float(info.gradient_norm[0, 0]) < 1e-4
    assert int(info.iterations[0, 0]) < 1000


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("classes is 0", {"classes": 0}),
        ("output is 'tanh'", {"output": "tanh"}),
        ("class_weights has shape", {"class_weights": np.ones(2)}),
        ("C is", {"C": [1.0, 0.0]}),
        ("weights has shape", {"weights": np.ones(6)}),
        ("data.x has shape", {"x": np.ones((6, 2, 2), np.float32)}),
        ("data.labels is", {"labels": np.ones((6, 2), np.float32)}),
    ],
)
def test_bad_arguments(message, change):
    x = change.pop("x", np.ones((6, 2), np.float32))
    labels = change.pop("labels", np.arange(6, dtype=np.int32) % 3)
    arguments = {"weights": np.ones((6, 1)), "C": [1.0], "classes": 3} | change
    with pytest.raises(ValueError, match=message):
        logistic_path(batch(x, labels), **arguments)
