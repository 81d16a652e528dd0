"""Scores, k-means and the rules that choose rows, against NumPy and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors

from flaxhead.acquisition import (
    RULES,
    acquire,
    bald,
    entropy,
    kmeans,
    least_confident,
    margin,
)
from flaxhead.acquisition.clusters import assign, update

KEY = jax.random.key(0)
SIZES = (9, 12, 15, 18, 21)
ROWS, BLOBS = sum(SIZES), len(SIZES)
BLOB = np.repeat(np.arange(BLOBS), SIZES)
ABSENT, LABELLED = np.array([3, 40]), np.array([11, 30, 31])
# Rows chosen by each rule; TypiClust has a cluster a row that is or gets labelled.
K = {"none": 5, "kmeans": BLOBS, "core_set": 5, "typiclust": BLOBS - 3}

choose = jax.jit(acquire, static_argnames=("k", "how"))
clustered = jax.jit(kmeans, static_argnames="k")


def blobs(seed=0):
    """Five far directions of unlike sizes, the rows of any length."""
    draw = np.random.default_rng(seed)
    x = np.eye(6)[BLOB] + 0.05 * draw.normal(size=(ROWS, 6))
    return (x * draw.uniform(0.5, 2, (ROWS, 1))).astype(np.float32)


def directions(x):
    return x.astype(float) / np.linalg.norm(x.astype(float), axis=1, keepdims=True)


def scored(how="none", seed=1):
    """Scores, but for TypiClust, which is for a cold start."""
    scores = np.random.default_rng(seed).uniform(0.1, 1, ROWS).astype(np.float32)
    return None if how == "typiclust" else scores


def arrays_of(scores, x, weights=None, labelled=(), key=KEY):
    """Arguments of the same shapes, so that a rule is one program for all tests."""
    labelled = [*labelled, *[-1] * (3 - len(labelled))]
    return (None if scores is None else jnp.asarray(scores), jnp.asarray(x)), {
        "weights": jnp.ones(ROWS) if weights is None else jnp.asarray(weights),
        "labelled": jnp.array(labelled),
        "key": key,
    }


def rows_of(scores, x, how, **given):
    arrays, options = arrays_of(scores, x, **given)
    return np.asarray(choose(*arrays, K[how], how=how, **options))


def chances(*shape):
    return np.random.default_rng(0).dirichlet(np.ones(shape[-1]), shape[:-1])


def disagreement(p):
    return stats.entropy(p.mean(0), axis=-1) - stats.entropy(p, axis=-1).mean(0)


def lead(p):
    ordered = np.sort(p, axis=-1)
    return ordered[..., -1] - ordered[..., -2]


@pytest.mark.parametrize(
    ("score", "formula"),
    [
        (entropy, lambda p: stats.entropy(p, axis=-1)),
        (margin, lambda p: 1 - lead(p)),
        (least_confident, lambda p: 1 - p.max(-1)),
        (bald, disagreement),
    ],
)
def test_scores_are_their_formulas(score, formula):
    p = chances(3, 2, 5, 4)
    np.testing.assert_allclose(score(jnp.asarray(p)), formula(p), rtol=1e-4, atol=1e-6)
    # Classes have no order, nor have members; who is sure wants no label.
    turned = p[::-1, ..., ::-1] if score is bald else p[..., ::-1]
    np.testing.assert_allclose(score(turned), score(p), rtol=1e-4, atol=1e-6)
    sure = np.broadcast_to(np.eye(4), (3, 4, 4))
    np.testing.assert_array_equal(score(jnp.asarray(sure)), 0)


def clusters_of(x, weights=None, seed=0):
    weights = jnp.ones(ROWS) if weights is None else jnp.asarray(weights, jnp.float32)
    return clustered(jax.random.key(seed), jnp.asarray(x), BLOBS, weights=weights)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("weighted", [False, True])
def test_kmeans_finds_what_scikit_learn_finds(seed, weighted):
    x = directions(blobs())
    weights = np.arange(ROWS) % 4 if weighted else np.ones(ROWS)
    present = weights > 0
    found = clusters_of(np.where(present[:, None], x, np.nan), weights, seed)
    theirs = KMeans(BLOBS, n_init=10, random_state=0).fit(x, sample_weight=weights)
    inertia = np.sum((weights * np.asarray(found.distances))[present])
    np.testing.assert_allclose(inertia, theirs.inertia_, rtol=1e-4)
    centres, expected = np.asarray(found.centres), theirs.cluster_centers_
    np.testing.assert_allclose(
        centres[centres.argmax(1).argsort()],
        expected[expected.argmax(1).argsort()],
        atol=1e-5,
    )
    pairs = set(zip(BLOB[present], np.asarray(found.cluster)[present], strict=True))
    assert len(pairs) == BLOBS


def test_kmeans_ends_where_centres_are_means_wherever_the_rows_are():
    x = np.random.default_rng(3).normal(size=(ROWS, 6)).astype(np.float32)
    found = clusters_of(x)
    own = np.asarray(found.cluster)
    for number, centre in enumerate(found.centres):
        np.testing.assert_allclose(centre, x[own == number].mean(0), atol=1e-5)
    far = ((x[:, None] - np.asarray(found.centres)) ** 2).sum(-1)
    np.testing.assert_array_equal(own, far.argmin(1))
    np.testing.assert_allclose(found.distances, far.min(1), rtol=1e-4)
    moved = clusters_of(x + 1000)
    np.testing.assert_array_equal(moved.cluster, own)
    np.testing.assert_allclose(moved.centres - 1000, found.centres, atol=1e-3)


def test_an_empty_cluster_starts_from_the_farthest_row():
    x = jnp.array([[0.0], [1.0], [2.0], [9.0], [5.0]])

    @jax.jit
    def turn(weights):
        clusters = assign(x, jnp.array([[1.0], [50.0], [60.0]]))
        return clusters.cluster, update(x, weights, clusters).ravel()

    cluster, centres = turn(jnp.ones(5))
    np.testing.assert_array_equal(cluster, 0)
    np.testing.assert_allclose(centres, [(0 + 1 + 2 + 9 + 5) / 5, 9, 5], rtol=1e-6)
    # A row of no weight is no centre.
    _, centres = turn(jnp.array([1.0, 1, 1, 0, 0]))
    np.testing.assert_allclose(centres, [(0 + 1 + 2) / 3, 0, 2], rtol=1e-6)


def test_fewer_different_rows_than_clusters():
    found = clusters_of(np.eye(6)[np.arange(ROWS) % 3])
    np.testing.assert_allclose(found.distances, 0, atol=1e-12)
    assert np.isfinite(found.centres).all()


@pytest.mark.parametrize("how", RULES)
def test_properties_of_every_rule(how):
    x, scores, k = blobs(), scored(how), K[how]
    weights = np.ones(ROWS, np.float32)
    weights[ABSENT] = 0
    left = np.setdiff1d(np.arange(ROWS), [*ABSENT, *LABELLED])
    found = rows_of(scores, x, how, weights=weights, labelled=LABELLED)
    assert found.dtype == np.int32
    assert len(np.unique(found)) == k
    assert np.isin(found, left).all()
    # Neither the lengths of rows, nor the order of labelled ones, nor what is not
    # there to be read.
    broken = x * np.linspace(1, 3, ROWS, dtype=np.float32)[:, None]
    broken[ABSENT] = np.nan
    if scores is not None:
        scores[[*ABSENT, *LABELLED]] = np.nan
    given = {"weights": weights, "labelled": LABELLED[::-1]}
    np.testing.assert_array_equal(rows_of(scores, broken, how, **given), found)
    if how in ("none", "core_set"):  # Outside of `jit`, where values are checked.
        arrays, options = arrays_of(scores, broken, **given)
        np.testing.assert_array_equal(acquire(*arrays, k, how=how, **options), found)
    # Where fewer are left: all of them, and -1.
    weights[left[1:]] = 0
    every = rows_of(scores, x, how, weights=weights, labelled=LABELLED)
    np.testing.assert_array_equal(every, [left[0], *[-1] * (k - 1)])


@pytest.mark.parametrize("how", RULES)
def test_a_permutation_of_rows_permutes_the_choice(how):
    x, scores = blobs(), scored(how)
    order = np.random.default_rng(5).permutation(ROWS)
    moved = None if scores is None else scores[order]
    found = order[rows_of(moved, x[order], how)]
    np.testing.assert_array_equal(found, rows_of(scores, x, how))


def test_the_rows_of_largest_score_the_first_among_equals():
    scores = scored().round(1)
    expected = np.argsort(-scores, kind="stable")[:5]
    assert len(np.unique(scores[expected])) < 5
    np.testing.assert_array_equal(rows_of(scores, blobs(), "none"), expected)


def farthest(x, labelled, k, among):
    """Greedy k-centre, in float64."""
    x, chosen = directions(x), []
    for _ in range(k):
        taken = [*labelled, *chosen]
        if taken:
            far = np.linalg.norm(x[:, None] - x[taken], axis=2).min(1)
        else:
            far = x @ x[among].mean(0)
        free = np.setdiff1d(among, taken)
        chosen.append(free[far[free].argmax()])
    return chosen


@pytest.mark.parametrize("labelled", [[], [11, 30, 31]])
def test_core_set_is_greedy_k_centre(labelled):
    x, scores = blobs(), scored()
    among = np.setdiff1d(np.arange(ROWS), labelled)
    # Ten times as many as are chosen.
    among = among[np.argsort(-scores[among])][:50]
    found = rows_of(scores, x, "core_set", labelled=labelled)
    np.testing.assert_array_equal(found, farthest(x, labelled, 5, among))


def test_core_set_without_scores_chooses_among_all():
    narrow = jnp.asarray(blobs(), jnp.float16)
    found = acquire(None, narrow, 7, how="core_set")
    expected = farthest(np.asarray(narrow), [], 7, np.arange(ROWS))
    np.testing.assert_array_equal(found, expected)


def test_kmeans_takes_the_row_nearest_to_each_weighted_centre():
    x, scores = directions(blobs()), scored()
    among = np.argsort(-scores)[:50]
    theirs = KMeans(BLOBS, n_init=10, random_state=0)
    theirs.fit(x[among], sample_weight=scores[among])
    far = np.linalg.norm(x[among][:, None] - theirs.cluster_centers_, axis=2)
    expected = among[far.argmin(0)]
    expected = expected[np.argsort(-scores[expected])]
    found = rows_of(scores, blobs(), "kmeans")
    np.testing.assert_array_equal(found, expected)
    # Scores count relative to each other.
    np.testing.assert_array_equal(rows_of(8 * scores, blobs(), "kmeans"), found)


def test_draws_run_side_by_side():
    keys = jax.random.split(KEY, 3)
    x = np.random.default_rng(0).normal(size=(ROWS, 6)).astype(np.float32)

    def chosen(key):
        (scores, rows), options = arrays_of(scored(), x, key=key)
        return acquire(scores, rows, BLOBS, how="kmeans", **options)

    apart = [rows_of(scored(), x, "kmeans", key=key) for key in keys]
    np.testing.assert_array_equal(jax.jit(jax.vmap(chosen))(keys), apart)
    assert len(np.unique(apart, axis=0)) > 1


def most_typical(x, rows):
    """Of some rows, that of the nearest neighbours among them."""
    count = min(20, len(rows) // 2)
    neighbours = NearestNeighbors(n_neighbors=count).fit(x[rows])
    typicality = 1 / neighbours.kneighbors()[0].mean(1)
    return rows[typicality.argmax()]


@pytest.mark.parametrize(
    ("labelled_blobs", "chosen_blobs"),
    [((), (4, 3)), ((4,), (3, 2)), ((4, 2, 0), (3, 1)), ((3, 3, 1), (4, 2))],
)
def test_typiclust_takes_typical_rows_of_large_clusters_without_labels(
    labelled_blobs, chosen_blobs
):
    x, starts = blobs(), np.cumsum(SIZES) - SIZES
    labelled = [starts[blob] + n for n, blob in enumerate(labelled_blobs)]
    expected = [
        most_typical(directions(x), np.flatnonzero(blob == BLOB))
        for blob in chosen_blobs
    ]
    found = rows_of(None, x, "typiclust", labelled=labelled)
    np.testing.assert_array_equal(found, expected)


def test_outliers_are_not_typical():
    # Three groups, and two rows that are clusters of their own, with labels elsewhere.
    x = blobs()
    x[BLOB == 0], x[BLOB == 1] = x[-9:], x[-12:]
    x[0], x[1] = 3 * np.eye(6)[0], np.eye(6)[5]
    labelled = [np.flatnonzero(blob == BLOB)[0] for blob in (2, 3, 4)]
    found = rows_of(None, x, "typiclust", labelled=labelled)
    assert (found >= 2).all()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"how": "best"}, "how is 'best': expected one of none, kmeans, core_set, typ"),
        ({"scores": None}, "scores are None: how='none' takes the rows that score"),
        ({"how": "kmeans"}, "key is None: how='kmeans' draws its first centres"),
        ({"how": "typiclust"}, "key is None: how='typiclust'"),
        ({"k": 0}, "k is 0: expected 1 to 4"),
        ({"k": 5}, "k is 5: expected 1 to 4"),
        ({"labelled": jnp.array([0, 0, 3])}, "k is 3: expected at most 2, as many"),
        ({"weights": jnp.array([1.0, 0, 0, 1])}, "k is 3: expected at most 2, as many"),
        ({"labelled": jnp.array([4])}, "labelled has row 4: expected numbers below 4"),
        ({"labelled": jnp.zeros(4, bool)}, r"labelled is bool \[4\]: expected row num"),
        ({"scores": jnp.ones(3)}, r"scores have shape \[3\]: expected \[4\]"),
        ({"weights": jnp.ones([4, 1])}, r"weights have shape \[4, 1\]: expected \[4\]"),
        ({"embeddings": jnp.ones([4, 2, 3])}, r"shape \[4, 2, 3\]: expected \[rows, d"),
        (
            {"scores": jnp.array([1, jnp.nan, 0, 0])},
            r"scores are not finite in 1 rows, \[1\] first",
        ),
        (
            {"embeddings": jnp.ones([4, 2]).at[2:].set(jnp.inf)},
            r"embeddings are not finite in 2 rows, \[2, 3\] first",
        ),
    ],
)
def test_bad_input_is_told(given, told):
    base = {"scores": jnp.ones(4), "embeddings": jnp.ones([4, 2]), "k": 3}
    with pytest.raises(ValueError, match=told):
        acquire(**{**base, **given})


def test_bad_clusters_are_told():
    for x, k in ((jnp.ones([3, 2]), 4), (jnp.ones([3, 2]), 0), (jnp.ones(3), 1)):
        with pytest.raises(ValueError, match=f"kmeans got x of shape .* and k {k}: "):
            kmeans(KEY, x, k)
