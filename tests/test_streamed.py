"""Exact heads over rows read part by part: the same as over all rows at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxhead import Config, HeadConfig, SelectionConfig, TrainConfig, solvers, streamed
from flaxhead.base import Batch
from flaxhead.data import Stored
from flaxhead.folds import lane_weights
from flaxhead.parallel import Shares
from flaxhead.search import Question, predict, programs, search
from flaxhead.streamed import fit_stream

ROWS, DIM, CLASSES = 101, 5, 3
STRENGTHS = np.array([1e-2, 1.0], np.float32)
KEY = jax.random.key(0)
rng = np.random.default_rng(0)
LABELS = rng.integers(0, CLASSES, ROWS).astype(np.int32)
X = rng.normal(size=(ROWS, DIM)) + rng.normal(size=(CLASSES, DIM))[LABELS] + 3
X = X.astype(np.float32)
MANY = (rng.random((ROWS, CLASSES)) < 0.4).astype(np.float32)
WEIGHTS = rng.uniform(0.5, 2, ROWS).astype(np.float32)
LANES = lane_weights(np.arange(ROWS) % 3, 3, refit=True)
FACTORS = np.array([1.0, 2.0, 0.5], np.float32)


def batch(labels):
    return Batch(X, labels, WEIGHTS, np.arange(ROWS, dtype=np.int32))


def pieces_of(labels, size):
    rows = batch(labels)

    def cut(leaf, first):
        part = leaf[first : first + size]
        return np.pad(part, [(0, size - len(part)), *[(0, 0)] * (part.ndim - 1)])

    def pieces():
        for first in range(0, ROWS, size):
            yield jax.tree.map(lambda leaf: cut(leaf, first), rows)  # noqa: B023

    return pieces


def near(found, expected, tolerance):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: COMPILED.append(name) if "backend_compile" in name else None
)
MISSING = np.where(rng.random((ROWS, CLASSES)) < 0.2, np.nan, MANY)


@pytest.mark.parametrize(
    ("output", "labels", "devices"),
    [("softmax", LABELS, 2), ("sigmoid", MISSING.astype(np.float32), 1)],
)
def test_a_path_over_parts_is_the_path(output, labels, devices):
    """Folds and all rows, for every C; a second solve compiles nothing."""
    options = {"output": output, "tolerance": 1e-9, "class_weights": FACTORS}
    shares = Shares(devices)
    expected, info = solvers.logistic_path(
        batch(labels), LANES, STRENGTHS, classes=CLASSES, **options
    )
    passes = solvers.logistic_pieces(CLASSES, axis=shares.axis, **options).passes

    def solve(strengths):
        columns, pieces = {"C": strengths}, pieces_of(labels, 40)
        return fit_stream(pieces, LANES, columns, passes=passes, shares=shares)

    params, told = solve(STRENGTHS)
    near(params, expected, 1e-3)
    near(told.objective, info.objective, 1e-5)
    before = len(COMPILED)
    again, _ = solve(STRENGTHS[::-1])
    assert len(COMPILED) == before > 0
    near(again["output"]["bias"][::-1], params["output"]["bias"], 1e-6)


ALPHAS = {"alpha": np.array([0.5, 20.0], np.float32)}
RIDGE = {"output": "sigmoid", "class_weights": FACTORS}
SOLVERS = {
    "ridge": (solvers.ridge, solvers.ridge_passes, RIDGE, ALPHAS),
    "lda": (solvers.discriminant, solvers.discriminant_passes, {}, {}),
    "cosine": (
        solvers.prototypes,
        solvers.prototype_passes,
        {"metric": "cosine"},
        {},
    ),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_moments_over_parts_are_moments(name, monkeypatch):
    """And no program sees all rows."""
    make, make_passes, options, columns = SOLVERS[name]
    labels = MANY if name == "ridge" else LABELS
    shapes, call = set(), Shares.call

    def spy(self, function, *arguments):
        shapes.update(leaf.shape for leaf in jax.tree.leaves(arguments))
        return call(self, function, *arguments)

    monkeypatch.setattr(Shares, "call", spy)
    passes = make_passes(CLASSES, **options)
    params, info = fit_stream(pieces_of(labels, 40), LANES, columns, passes=passes)
    assert (40, DIM) in shapes
    assert not any(ROWS in shape for shape in shapes)
    assert info is None
    fit = jax.jit(make(CLASSES, **options))
    data = jax.tree.map(jnp.asarray, batch(labels))
    for lane in range(LANES.shape[1]):
        for place in range(len(params["output"]["bias"])):
            own = {key: column[place] for key, column in columns.items()}
            expected = fit(data, jnp.asarray(LANES[:, lane]), own, KEY)
            near(jax.tree.map(lambda leaf: leaf[place, lane], params), expected, 1e-4)  # noqa: B023


def scores_of(found):
    return np.array([one.score for one in found.candidates])


def test_a_search_over_parts_is_the_search(monkeypatch):
    """Its scores, its winner, and what that says of rows without them."""
    monkeypatch.setattr(streamed, "_PIECE_BYTES", 40 * DIM * 4)
    config = Config(
        heads=(
            HeadConfig("logistic", C=(0.01, 1.0), normalization="standardize"),
            HeadConfig("lda", shrinkage=(0.0, 0.3)),
        ),
        train=TrainConfig(devices=1),
        selection=SelectionConfig(folds=3, extend=0),
    )
    asked = Question(config, CLASSES, "multiclass", "softmax", "nll", None)
    compiled = programs(asked, rows=ROWS)
    most = []

    def read(first, size):
        most.append(size)
        return X[first : first + size]

    lazy = Stored(X.shape, X.dtype, read)
    rows, fold = batch(LABELS), (np.arange(ROWS) % 3).astype(np.int32)
    expected, found = (
        search(asked, rows._replace(x=x), fold, folds=3, programs=compiled)
        for x in (X, lazy)
    )
    assert most[0] == ROWS  # the statistics', whose parts are larger
    assert max(most[1:]) == 64
    assert found.selection == expected.selection
    near(scores_of(found), scores_of(expected), 1e-4)
    near(found.params, expected.params, 1e-3)
    near(found.logits(), expected.logits(), 1e-3)
    near((found.totals, found.counts), (expected.totals, expected.counts), 1e-3)
    told = predict(found, rows._replace(x=lazy), programs=compiled)
    near(told, predict(found, rows, programs=compiled), 1e-6)


def test_a_process_reads_what_its_own_devices_hold(monkeypatch):
    shares, asked = Shares(4), []
    monkeypatch.setattr(shares._place, "_local_lanes", lambda: [1, 2])
    monkeypatch.setattr(shares._place, "put", lambda tree: tree)

    def read(first, size):
        asked.append((first, size))
        return X[first : first + size]

    rows = batch(LABELS)._replace(x=Stored(X.shape, X.dtype, read))
    (part,) = streamed.pieces_of(rows, 104)()
    placed = shares.rows(part)
    np.testing.assert_array_equal(placed.x.reshape(-1, DIM), X[26:78])
    np.testing.assert_array_equal(placed.labels.ravel(), LABELS[26:78])
    assert asked == [(26, 26), (52, 26)]


def test_what_is_refused():
    passes = solvers.ridge_passes(CLASSES)
    with pytest.raises(ValueError, match="gave none: expected one or more"):
        fit_stream(lambda: [], LANES, ALPHAS, passes=passes)
    uneven = [*pieces_of(LABELS, 40)(), *pieces_of(LABELS, 30)()]
    with pytest.raises(ValueError, match="batch of 30 rows after one of 40"):
        fit_stream(lambda: uneven, LANES, ALPHAS, passes=passes)
