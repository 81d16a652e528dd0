"""Nearest neighbours against scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from flaxhead import heads
from flaxhead.base import Batch, Tokens
from flaxhead.solvers import neighbours

KEY = jax.random.key(0)
ROWS, DIM, CLASSES = 70, 5, 4


def problem(seed=0, rows=ROWS):
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(rows, DIM)).astype(np.float32)
    return x, np.arange(rows) % CLASSES


def fitted(x, labels, k, temperature=0.07, weights=None):
    rows = len(x)
    data = Batch(
        jnp.asarray(x), jnp.asarray(labels, jnp.int32), jnp.ones(rows), jnp.arange(rows)
    )
    weights = jnp.ones(rows) if weights is None else jnp.asarray(weights, jnp.float32)
    hyperparameters = {"k": jnp.asarray(k), "temperature": jnp.float32(temperature)}
    return neighbours(CLASSES)(data, weights, hyperparameters, KEY)


def chances(params, queries, **options):
    head = heads.neighbours(CLASSES, **options)
    return np.asarray(jax.nn.softmax(head.apply(params, jnp.asarray(queries))))


def votes(temperature):
    """scikit-learn's cosine distance is 1 less the similarity."""
    return lambda distance: np.exp((1 - distance) / temperature)


@pytest.mark.parametrize("block", [1, 16, 4096])
@pytest.mark.parametrize("k", [1, 7, 20, ROWS])
def test_shares_of_votes_are_scikit_learns(k, block):
    x, labels = problem()
    queries, _ = problem(1, rows=30)
    params = fitted(x, labels, k)
    for weighting, theirs in (("similarity", votes(0.07)), ("uniform", "uniform")):
        model = KNeighborsClassifier(k, weights=theirs, metric="cosine")
        expected = model.fit(x.astype(float), labels).predict_proba(queries)
        found = chances(params, queries, max_k=70, weighting=weighting, block=block)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_more_queries_than_are_searched_at_once():
    x, labels = problem()
    queries, _ = problem(1, rows=2500)
    model = KNeighborsClassifier(5, weights=votes(0.07), metric="cosine")
    expected = model.fit(x.astype(float), labels).predict_proba(queries)
    found = chances(fitted(x, labels, 5), queries, max_k=5)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_grid_over_k_shares_one_search():
    x, labels = problem()
    queries, _ = problem(1, rows=30)
    ks, temperatures = jnp.array([1, 5, 20]), jnp.array([0.05, 0.1, 1.0])
    params = fitted(x, labels, 1)
    grid = {**params, "k": ks, "temperature": temperatures}
    axes = {name: 0 if name in ("k", "temperature") else None for name in params}
    head = heads.neighbours(CLASSES, max_k=20)
    run = jax.vmap(head.apply, in_axes=(axes, None))
    found = np.asarray(jax.nn.softmax(run(grid, jnp.asarray(queries))))
    for number in range(3):
        alone = fitted(x, labels, int(ks[number]), float(temperatures[number]))
        expected = chances(alone, queries, max_k=20)
        np.testing.assert_allclose(found[number], expected, atol=1e-6)
    # What is sorted has no axis for the candidates.
    searches = str(jax.make_jaxpr(run)(grid, jnp.asarray(queries))).split("top_k")
    assert len(searches) > 1
    assert all("[3,30," not in text.splitlines()[-1] for text in searches[:-1])


def test_k_beyond_the_bank_or_the_most_is_all_there_is():
    x, labels = problem()
    all_of_it = chances(fitted(x, labels, ROWS), x, max_k=500)
    np.testing.assert_allclose(chances(fitted(x, labels, 400), x, max_k=500), all_of_it)
    few = chances(fitted(x, labels, 10), x, max_k=10)
    np.testing.assert_allclose(chances(fitted(x, labels, 50), x, max_k=10), few)


def test_absent_rows_are_never_neighbours():
    x, labels = problem()
    present = np.arange(ROWS) < 6
    params = fitted(x, labels, 20, weights=present)
    model = KNeighborsClassifier(6, weights=votes(0.07), metric="cosine")
    expected = model.fit(x[present].astype(float), labels[present]).predict_proba(x)
    np.testing.assert_allclose(chances(params, x, block=4), expected, atol=1e-5)


def test_nothing_to_vote():
    x, labels = problem()
    params = fitted(x, labels, 5, weights=np.zeros(ROWS))
    np.testing.assert_allclose(chances(params, x), 1 / CLASSES, rtol=1e-6)
    head = heads.neighbours(CLASSES)
    start = head.init(KEY, jnp.asarray(x))
    np.testing.assert_allclose(chances(start, x), 1 / CLASSES, rtol=1e-6)
    assert jax.tree.structure(start) == jax.tree.structure(params)


def test_the_bank_keeps_its_type():
    x, labels = problem()
    params = fitted(x.astype(np.float16), labels, 5)
    assert params["bank"].dtype == jnp.float16
    lengths = np.linalg.norm(np.asarray(params["bank"], float), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=2e-3)


def test_logits_are_finite_at_any_temperature():
    x, labels = problem()
    for temperature in (1e-6, 1e6):
        head = heads.neighbours(CLASSES)
        logits = head.apply(fitted(x, labels, 5, temperature), jnp.asarray(x))
        assert np.isfinite(logits).all()


def test_what_is_refused():
    with pytest.raises(ValueError, match="max_k 0 and block 4096: expected 1 or more"):
        heads.neighbours(3, max_k=0)
    with pytest.raises(ValueError, match="weighting is 'rank': expected similarity"):
        heads.neighbours(3, weighting="rank")  # pyright: ignore[reportArgumentType]
    x, labels = problem()
    tokens = Tokens(jnp.ones([2, 3, DIM]), jnp.ones([2, 3], bool))
    with pytest.raises(ValueError, match="the neighbours head got tokens of shape"):
        heads.neighbours(CLASSES).apply(fitted(x, labels, 5), tokens)
    data = Batch(jnp.asarray(x), jnp.ones([ROWS, 2]), jnp.ones(ROWS), jnp.arange(ROWS))
    with pytest.raises(ValueError, match=r"shape \(70, 2\): expected 4 columns"):
        neighbours(CLASSES)(data, jnp.ones(ROWS), {}, KEY)
