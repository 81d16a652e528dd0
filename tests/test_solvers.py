"""What holds for every exact solver, each property once over a table."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from flaxhead import heads, solvers
from flaxhead.base import Batch

ROWS, DIM, CLASSES = 40, 6, 3
KEY = jax.random.key(0)


class Case(NamedTuple):
    """A solver: its factory, that of its head, and hyperparameters to try."""

    solver: Any
    head: Any
    hyperparameters: dict[str, list[float]]
    half: float = 1e-5  # what float16 rows may change


def nearest_mean(metric, hyperparameters):
    return Case(
        functools.partial(solvers.prototypes, metric=metric),
        solvers.PROTOTYPE_HEADS[metric],
        hyperparameters,
        half=5e-3 if metric == "cosine" else 1e-5,
    )


def knn(weighting):
    return Case(
        solvers.neighbours,
        functools.partial(heads.neighbours, max_k=12, weighting=weighting, block=16),
        {"k": [3, 7], "temperature": [0.1, 0.3]},
        half=2e-2,
    )


SOLVERS = {
    "ridge": Case(solvers.ridge, heads.linear, {"alpha": [0.3, 3.0]}),
    "ridge_of_labels": Case(
        functools.partial(solvers.ridge, output="sigmoid"),
        heads.linear,
        {"alpha": [0.3, 3.0]},
    ),
    "discriminant": Case(solvers.discriminant, heads.linear, {"shrinkage": [0.2, 0.7]}),
    "discriminant_ledoit_wolf": Case(solvers.discriminant, heads.linear, {}),
    "euclidean": nearest_mean("euclidean", {}),
    "cosine": nearest_mean("cosine", {}),
    "mahalanobis": nearest_mean("mahalanobis", {"shrinkage": [0.2, 0.7]}),
    "neighbours": knn("similarity"),
    "neighbours_uniform": knn("uniform"),
}
SHAPES = {"many_rows": (ROWS, DIM), "many_features": (12, 30)}
every_solver = pytest.mark.parametrize("name", sorted(SOLVERS))
every_shape = pytest.mark.parametrize("shape", sorted(SHAPES))


def problem(shape="many_rows", seed=0, classes=CLASSES):
    rows, dim = SHAPES[shape]
    draw = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    x = draw.normal(size=(rows, dim)) + draw.normal(size=(classes, dim))[labels]
    return batch(x, labels)


def batch(x, labels, weights=None):
    x, rows = np.asarray(x), len(x)
    x = jnp.asarray(x, jnp.float16 if x.dtype == np.float16 else jnp.float32)
    labels = np.asarray(labels)
    labels = jnp.asarray(labels, jnp.float32 if labels.ndim == 2 else jnp.int32)
    weights = jnp.ones(rows) if weights is None else jnp.asarray(weights, jnp.float32)
    return Batch(x, labels, weights, jnp.arange(rows))


def values(case, number=0):
    return {k: jnp.float32(v[number]) for k, v in case.hyperparameters.items()}


@functools.cache
def compiled(name, classes):
    return jax.jit(SOLVERS[name].solver(classes))


def logits(name, data, *, weights=None, classes=CLASSES, queries=None, number=0):
    """What the solver's head says of some embeddings."""
    case = SOLVERS[name]
    weights = jnp.ones(len(data.weights)) if weights is None else weights
    params = compiled(name, classes)(data, weights, values(case, number), KEY)
    return said(name, params, data.x.shape[1], classes, queries)


def said(name, params, dim, classes=CLASSES, queries=None):
    if queries is None:
        queries = np.random.default_rng(9).normal(size=(25, dim))
    queries = jnp.asarray(queries, jnp.float32)
    return np.asarray(predict(name, classes)(params, queries))


@functools.cache
def predict(name, classes):
    return jax.jit(SOLVERS[name].head(classes).apply)


def assert_close(a, b, tolerance=1e-5):
    scale = max(1, np.abs(b[b > -1e8]).max())
    np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=tolerance)


@every_shape
@every_solver
def test_absent_rows_are_deleted_ones(name, shape):
    data = problem(shape)
    absent = np.arange(len(data.x)) % 4 == 1
    unlabelled = np.arange(len(data.x)) % 6 == 0
    x = np.where(absent[:, None], np.nan, data.x)
    with_absent = data._replace(
        x=jnp.asarray(x), labels=jnp.where(unlabelled, -1, data.labels)
    )
    kept = ~absent & ~unlabelled
    expected = logits(name, batch(data.x[kept], data.labels[kept]))
    by_fit = logits(name, with_absent, weights=jnp.asarray(~absent, jnp.float32))
    own = with_absent._replace(weights=jnp.asarray(~absent, jnp.float32))
    assert_close(by_fit, expected, 2e-5)
    assert_close(logits(name, own), by_fit, 1e-6)


@every_shape
@every_solver
def test_weight_repeats_a_row(name, shape):
    data = problem(shape)
    times = np.random.default_rng(1).integers(0, 4, len(data.x))
    repeated = batch(np.repeat(data.x, times, 0), np.repeat(data.labels, times))
    expected = logits(name, repeated)
    weighted = logits(name, data, weights=jnp.asarray(times, jnp.float32))
    assert_close(weighted, expected, 2e-5)


@every_solver
def test_soft_labels_of_one_class_are_class_numbers(name):
    data = problem()
    soft = data._replace(labels=jax.nn.one_hot(data.labels, CLASSES))
    assert_close(logits(name, soft), logits(name, data))


@every_solver
def test_soft_labels_are_parts_of_rows(name):
    data = problem()
    draw = np.random.default_rng(2)
    soft = draw.dirichlet(np.ones(CLASSES), ROWS)
    parts = batch(
        np.repeat(data.x, CLASSES, 0), np.tile(np.arange(CLASSES), ROWS), soft.ravel()
    )
    if "neighbours" in name:  # Votes, where a row's parts must all be among the k.
        case = SOLVERS[name]
        data = data._replace(labels=jnp.asarray(soft, jnp.float32))
        run = case.solver(CLASSES)
        hyperparameters = {"k": jnp.float32(3), "temperature": jnp.float32(0.1)}
        whole = run(data, jnp.ones(ROWS), hyperparameters, KEY)
        split = run(parts, jnp.ones(len(parts.x)), hyperparameters, KEY)
        assert_close(said(name, split, DIM), said(name, whole, DIM))
    else:
        whole = data._replace(labels=jnp.asarray(soft, jnp.float32))
        assert_close(logits(name, parts), logits(name, whole))


@every_solver
def test_a_class_without_rows_is_never_predicted(name):
    data = problem()
    found = logits(name, data, classes=CLASSES + 2)
    assert np.isfinite(found).all()
    assert (found.argmax(-1) < CLASSES).all()
    if "ridge" not in name:
        chances = np.asarray(jax.nn.softmax(found))
        assert (chances[:, CLASSES:] < 1e-30).all()
    assert_close(found[:, :CLASSES], logits(name, data))


@every_solver
def test_two_rows(name):
    x = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 0.5]])
    data = batch(x, [0, 1])
    found = logits(name, data, classes=2, queries=x)
    assert np.isfinite(found).all()
    if "neighbours" not in name:  # Of which k are asked, and there are no more.
        assert found.argmax(-1).tolist() == [0, 1]


@every_solver
def test_constant_and_duplicate_features(name):
    data = problem()
    x = np.array(data.x)
    x[:, 0], x[:, 1] = 7, x[:, 2]
    found = logits(name, data._replace(x=jnp.asarray(x)), queries=x)
    assert np.isfinite(found).all()
    accuracy = (found.argmax(-1) == np.asarray(data.labels)).mean()
    assert accuracy > 0.5  # Chance is a third; two features are lost.


@every_solver
def test_half_precision_rows(name):
    half = batch(np.asarray(problem().x, np.float16), problem().labels)
    widened = half._replace(x=half.x.astype(jnp.float32))
    tolerance = SOLVERS[name].half
    a, b = (np.asarray(jax.nn.softmax(logits(name, d))) for d in (half, widened))
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


@every_solver
def test_compiled_is_eager_and_compiled_once(name):
    case, data = SOLVERS[name], problem()
    fit = jax.jit(case.solver(CLASSES))
    for number in range(2):
        weights = jnp.ones(ROWS).at[number].set(0)
        arguments = data, weights, values(case, number), KEY
        eager = case.solver(CLASSES)(*arguments)
        assert_close(said(name, fit(*arguments), DIM), said(name, eager, DIM))
    assert fit._cache_size() == 1
    # On accelerators too: nothing is rounded to bfloat16 or TF32.
    half = data._replace(x=data.x.astype(jnp.bfloat16))
    assert oracles.in_full(fit.lower(half, *arguments[1:]))


@every_solver
def test_candidates_side_by_side_are_candidates_alone(name):
    case, data = SOLVERS[name], problem()
    weights = jnp.ones([2, len(data.x)]).at[1, ::3].set(0)
    hyperparameters = {k: jnp.array(v) for k, v in case.hyperparameters.items()}
    fit = jax.vmap(case.solver(CLASSES), in_axes=(None, 0, None, None))
    fit = jax.vmap(fit, in_axes=(None, None, 0, None), axis_size=2)
    params = jax.jit(fit)(data, weights, hyperparameters, KEY)
    for number in range(2):
        for fold in range(2):
            own = jax.tree.map(lambda leaf: leaf[number, fold], params)  # noqa: B023
            alone = logits(name, data, weights=weights[fold], number=number)
            assert_close(said(name, own, data.x.shape[1]), alone)


@every_shape
@every_solver
def test_eight_devices_are_one(name, shape):
    case, data = SOLVERS[name], problem(shape)
    more = -len(data.x) % 8 + 8  # The last device has no rows at all.

    def split(leaf, filler):
        width = [(0, more)] + [(0, 0)] * (leaf.ndim - 1)
        padded = jnp.pad(leaf, width, constant_values=filler)
        return padded.reshape(8, -1, *leaf.shape[1:])

    shares = Batch(*map(split, data, (jnp.nan, -1, 0, 0)))
    fit = jax.pmap(
        case.solver(CLASSES, axis="devices"),
        axis_name="devices",
        in_axes=(0, 0, None, None),
    )
    params = fit(shares, split(jnp.ones(len(data.x)), 0), values(case), KEY)
    first, last = (jax.tree.map(lambda leaf, d=d: leaf[d], params) for d in (0, 7))
    jax.tree.map(np.testing.assert_array_equal, first, last)
    assert_close(said(name, first, data.x.shape[1]), logits(name, data))
