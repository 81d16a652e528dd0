"""Ridge against scikit-learn, and left-one-out predictions against explicit refits."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeClassifier, RidgeClassifierCV

from flaxhead.base import Batch
from flaxhead.moments import add, class_moments
from flaxhead.solvers import ridge, ridge_leave_one_out, ridge_params, ridge_path

KEY = jax.random.key(0)
SHAPES = {"many_rows": (60, 7), "many_features": (20, 50)}
every_shape = pytest.mark.parametrize("shape", sorted(SHAPES))


def problem(shape="many_rows", classes=4, shift=0.0):
    rows, dim = SHAPES[shape]
    draw = np.random.default_rng(0)
    labels = np.arange(rows) % classes
    x = draw.normal(size=(rows, dim)) + draw.normal(size=(classes, dim))[labels] + shift
    x[:, 0], x[:, 1] = shift, x[:, 2]  # A constant feature, and one that is double.
    return x.astype(np.float32), labels, draw.random(rows) + 0.1


def batch(x, labels):
    labels = np.asarray(labels)
    labels = labels.astype(np.float32 if labels.ndim == 2 else np.int32)
    rows = jnp.arange(len(x))
    return Batch(jnp.asarray(x), jnp.asarray(labels), jnp.ones(len(x)), rows)


def solve(run, data, weights, hyperparameters):
    weights = jnp.asarray(weights, jnp.float32)
    return jax.jit(run)(data, weights, hyperparameters, KEY)


def alpha(value):
    return {"alpha": jnp.float32(value)}


def layer(params):
    return np.asarray(params["output"]["kernel"]), np.asarray(params["output"]["bias"])


def assert_layer(params, kernel, bias, tolerance=1e-4):
    found = layer(params)
    np.testing.assert_allclose(found[0], kernel, atol=tolerance * np.abs(kernel).max())
    np.testing.assert_allclose(found[1], bias, atol=tolerance * max(1, abs(bias).max()))


@pytest.mark.parametrize("penalty", [1e-2, 1.0, 100.0])
@every_shape
def test_answers_are_scikit_learns(shape, penalty):
    x, labels, weights = problem(shape)
    each = np.array([0.5, 1.0, 2.0, 3.0])
    theirs = RidgeClassifier(alpha=penalty, class_weight=dict(enumerate(each)))
    theirs.fit(x.astype(float), labels, weights)
    run = ridge(4, class_weights=each)
    params = solve(run, batch(x, labels), weights, alpha(penalty))
    assert_layer(params, theirs.coef_.T, theirs.intercept_)


def test_two_classes_decide_as_one_column():
    x, labels, weights = problem(classes=2)
    theirs = RidgeClassifier(alpha=1.0).fit(x.astype(float), labels, weights)
    params = solve(ridge(2), batch(x, labels), weights, alpha(1))
    kernel, bias = layer(params)
    np.testing.assert_allclose(kernel[:, 1], theirs.coef_.ravel(), atol=1e-5)
    np.testing.assert_allclose(bias[1], np.ravel(theirs.intercept_)[0], atol=1e-5)
    np.testing.assert_allclose(kernel[:, 0], -kernel[:, 1], atol=1e-6)
    assert ((x @ kernel + bias).argmax(1) == theirs.predict(x)).all()


@every_shape
def test_labels_are_columns_of_their_own(shape):
    x, _, weights = problem(shape)
    draw = np.random.default_rng(1)
    labels = draw.random((len(x), 3)).round(1)
    each = np.array([0.5, 1.0, 4.0])
    run = ridge(3, output="sigmoid", class_weights=each)
    params = solve(run, batch(x, labels), weights, alpha(2))
    theirs = Ridge(alpha=2 / each).fit(x.astype(float), 2 * labels - 1, weights)
    assert_layer(params, theirs.coef_.T, theirs.intercept_)


def test_features_far_from_zero():
    x, labels, _ = problem(shift=1e3)
    theirs = RidgeClassifier(alpha=1.0, solver="svd").fit(x.astype(float), labels)
    params = solve(ridge(4), batch(x, labels), np.ones(len(x)), alpha(1))
    assert_layer(params, theirs.coef_.T, theirs.intercept_, 1e-3)


@every_shape
def test_no_penalty_is_the_smallest_least_squares_solution(shape):
    x, labels, _ = problem(shape)
    targets = 2.0 * (labels[:, None] == np.arange(4)) - 1
    centred = x - x.mean(0, dtype=float)
    kernel = np.linalg.pinv(centred, rcond=1e-5) @ (targets - targets.mean(0))
    params = solve(ridge(4), batch(x, labels), np.ones(len(x)), alpha(0))
    assert_layer(params, kernel, targets.mean(0) - x.mean(0) @ kernel, 1e-3)


def test_from_moments_to_which_rows_were_added():
    x, labels, _ = problem()
    parts = [
        class_moments(x[part], labels[part], np.ones(30), classes=4)
        for part in (slice(0, 30), slice(30, 60))
    ]
    params = ridge_params(add(*parts), alpha=jnp.float32(3))
    whole = solve(ridge(4), batch(x, labels), np.ones(60), alpha(3))
    assert_layer(params, *layer(whole), 1e-5)


def refits(x, targets, weights, penalty):
    """What a fit to all other rows says of each row; of absent rows, what all say."""
    x = x.astype(float)
    said = []
    for row in range(len(x)):
        others = weights * (np.arange(len(x)) != row)
        kept = others > 0
        fit = Ridge(alpha=penalty).fit(x[kept], targets[kept], others[kept])
        said.append(fit.predict(x[[row]])[0])
    return np.array(said)


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
@pytest.mark.parametrize("penalty", [1e-3, 1.0, 100.0])
@every_shape
def test_left_one_out_is_a_refit_without_the_row(shape, penalty, output):
    x, labels, weights = problem(shape)
    weights[::5] = 0
    each = np.array([0.5, 1.0, 2.0, 3.0])
    if output == "softmax":
        targets = 2.0 * (labels[:, None] == np.arange(4)) - 1
        factors, penalties = each[labels], penalty
        given = np.where(weights > 0, labels, -1)
    else:
        given = np.random.default_rng(1).random((len(x), 4)).round(1)
        targets, factors, penalties = 2 * given - 1, 1, penalty / each
        given = np.where((weights > 0)[:, None], given, np.nan)
    run = ridge_leave_one_out(4, output=output, class_weights=each)
    arguments = batch(x, given), weights, alpha(penalty)
    params, logits = solve(run, *arguments)
    expected = refits(x, targets, weights * factors, penalties)
    np.testing.assert_allclose(logits, expected, atol=2e-3 * np.abs(expected).max())
    whole = solve(ridge(4, output=output, class_weights=each), *arguments)
    assert_layer(params, *layer(whole), 1e-6)


@pytest.mark.parametrize("scoring", [None, "accuracy"])
@every_shape
def test_the_best_penalty_is_scikit_learns(shape, scoring):
    x, labels, weights = problem(shape)
    alphas = np.logspace(-2, 3, 30)
    theirs = RidgeClassifierCV(alphas, scoring=scoring, store_cv_results=True)
    theirs.fit(x.astype(float), labels, None if scoring else weights)
    weights = np.ones(len(x)) if scoring else weights
    penalties = {"alpha": jnp.asarray(alphas)}
    _, scores = solve(ridge_path(4), batch(x, labels), weights, penalties)
    if scoring is None:
        found = -scores.error / (4 * len(x))
        np.testing.assert_allclose(scores.weight, weights.sum(), rtol=1e-5)
        errors = theirs.cv_results_.reshape(-1, 30).mean(0)
        np.testing.assert_allclose(found, -errors, rtol=1e-4)
    else:
        found = scores.correct / scores.weight
    np.testing.assert_allclose(found.max(), theirs.best_score_, rtol=1e-4)
    assert alphas[np.argmax(found)] == theirs.alpha_


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_scores_of_a_path_are_those_of_its_predictions(output, monkeypatch):
    # So few logits at once that rows come in chunks.
    module = importlib.import_module("flaxhead.solvers.ridge")
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", 200)
    x, labels, weights = problem()
    weights[3] = 0
    each = np.array([0.5, 1.0, 2.0, 3.0])
    given = labels
    if output == "sigmoid":
        given = np.random.default_rng(1).integers(0, 2, (len(x), 4))
    targets = given if given.ndim == 2 else labels[:, None] == np.arange(4)
    arguments = batch(x, given), weights, {"alpha": jnp.array([0.1, 1.0, 30.0])}
    options = {"output": output, "class_weights": each}
    one_by_one, logits = solve(ridge_leave_one_out(4, **options), *arguments)
    params, scores = solve(ridge_path(4, **options), *arguments)
    squares = each * (2.0 * targets - 1 - logits) ** 2
    if output == "softmax":
        squares = (2.0 * targets - 1 - logits) ** 2 * each[labels][:, None]
        right = np.argmax(logits, -1) == labels
    else:
        right = ((logits > 0) == (targets > 0)).mean(-1)
    errors = (squares.sum(-1) * weights).sum(-1)
    np.testing.assert_allclose(scores.error, errors, rtol=1e-4)
    np.testing.assert_allclose(scores.correct, (right * weights).sum(-1), rtol=1e-4)
    np.testing.assert_allclose(scores.weight, weights.sum(), rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params, one_by_one
    )


def test_left_one_out_over_devices():
    x, labels, weights = problem(shape="many_rows")
    x, labels, weights = x[:56], labels[:56], weights[:56]
    alphas = {"alpha": jnp.array([0.1, 10.0])}
    data = batch(x, labels)
    one = solve(ridge_path(4), data, weights, alphas)
    _, logits = solve(ridge_leave_one_out(4), data, weights, alphas)
    shares = jax.tree.map(
        lambda leaf: leaf.reshape(8, 7, *leaf.shape[1:]), (data, jnp.asarray(weights))
    )

    def over_devices(make):
        run = make(4, axis="devices")
        axes = (0, 0, None, None)
        return jax.pmap(run, "devices", in_axes=axes)(*shares, alphas, KEY)

    def near(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)

    eight = over_devices(ridge_path)
    jax.tree.map(lambda a, b: near(a[0], b), eight, one)
    _, parts = over_devices(ridge_leave_one_out)
    near(np.concatenate(parts, axis=1), logits)


def test_what_is_refused():
    with pytest.raises(ValueError, match="output is 'probit': expected softmax"):
        ridge(3, output="probit")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"shape \(2,\): expected one for each of 3"):
        ridge_path(3, class_weights=np.ones(2))


def test_partly_missing_labels_are_refused_or_nan():
    x, _, _ = problem()
    labels = np.random.default_rng(1).integers(0, 2, (len(x), 3)).astype(np.float32)
    labels[5] = np.nan  # This row has no label at all, and is absent.
    labels[7, 1] = np.nan
    data, run = batch(x, labels), ridge(3, output="sigmoid")
    with pytest.raises(ValueError, match=r"missing \(NaN\) in 1 rows, .* row 7"):
        run(data, jnp.ones(len(x)), alpha(1), KEY)
    kernel, bias = layer(jax.jit(run)(data, jnp.ones(len(x)), alpha(1), KEY))
    assert np.isnan(kernel).all(0).tolist() == [False, True, False]
    assert np.isnan(bias).tolist() == [False, True, False]
    kept = np.arange(len(x)) != 7
    params = run(data, jnp.asarray(kept, jnp.float32), alpha(1), KEY)
    others = kept & (np.arange(len(x)) != 5)
    expected = run(batch(x[others], labels[others]), jnp.ones(58), alpha(1), KEY)
    assert_layer(params, *layer(expected), 1e-5)
