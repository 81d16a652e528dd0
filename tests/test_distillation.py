"""What a student is told, and that it is told no more."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.linear_model import Ridge

from flaxhead.base import Batch, Head
from flaxhead.distillation import distill
from flaxhead.ensembles import ensemble
from flaxhead.ensembles.fits import bagging
from flaxhead.heads import linear
from flaxhead.solvers import ridge

ROWS, CLASSES, COUNT = 30, 3, 4
KEY, HEAD = jax.random.key(0), linear(CLASSES)
ALPHA = {"alpha": jnp.float32(0.5)}
LABELLED = np.arange(ROWS) < 18
LABELS = np.arange(ROWS) % CLASSES
OWN = np.eye(CLASSES, dtype=np.float32)[LABELS]
X = (
    np.random.default_rng(0).normal(size=(ROWS, 2))
    + np.array([[0, 2], [2, 0], [2, 2]])[LABELS]
)


def rows(labels=None, weights=None):
    labels = np.where(LABELLED, LABELS, -1) if labels is None else labels
    weights = jnp.ones(ROWS) if weights is None else weights
    return Batch(
        jnp.asarray(X, jnp.float32), jnp.asarray(labels), weights, jnp.arange(ROWS)
    )


def close(found, expected, tolerance=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance),
        found,
        expected,
    )


def same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def told(data, weights, hyperparameters, key):
    """A student that returns what it is given."""
    return data.labels, data.weights * weights


TEACHER = Head(
    lambda key, x: (), lambda params, x, *, key=None, train=False: params * x
)
WIDE = rows()._replace(x=jnp.asarray(np.random.default_rng(1).normal(size=(ROWS, 3))))


def teach(data, weights, hyperparameters, key):
    """A teacher whose logits are twice the row."""
    return hyperparameters["scale"]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("on", ["unlabelled", "all", "labelled"])
def test_the_student_is_told_the_teacher_s_probabilities(on, temperature):
    weights = jnp.where(LABELLED, 2.0, 1.0)
    data = WIDE._replace(weights=jnp.ones(ROWS).at[-2:].set(0))
    scale = {"scale": jnp.float32(2.0), "temperature": jnp.float32(temperature)}

    def run(data, weights, hyperparameters, key):
        # The temperature is traced, and so may be swept.
        fit = distill(
            teach,
            TEACHER,
            told,
            classes=3,
            on=on,
            temperature=hyperparameters["temperature"],
        )
        return fit(data, weights, hyperparameters, key)

    labels, counted = jax.jit(run)(data, weights, scale, KEY)
    soft = softmax(2 * np.asarray(WIDE.x) / temperature, axis=1)
    expected = np.where(LABELLED[:, None], OWN, soft) if on == "unlabelled" else soft
    close(labels, expected, 1e-6)
    rest = np.where(np.arange(ROWS) < ROWS - 2, 0.0 if on == "labelled" else 1.0, 0)
    same(counted, np.where(LABELLED, 2, rest).astype(np.float32))


@pytest.mark.parametrize("on", ["unlabelled", "all", "labelled"])
def test_several_labels_are_told_one_by_one(on):
    """Those of a row that are missing are the teacher's, as are all of a hidden row."""
    given = np.random.default_rng(2).integers(0, 2, (ROWS, 3)).astype(np.float32)
    given[::3, 1] = np.nan
    given[-4:] = np.nan
    weights = jnp.where(LABELLED, 2.0, 0.0)
    read = LABELLED & ~np.isnan(given).all(1)
    fit = distill(
        teach, TEACHER, told, classes=3, on=on, temperature=1.5, output="sigmoid"
    )
    data = WIDE._replace(labels=jnp.asarray(given))
    labels, counted = jax.jit(fit)(data, weights, {"scale": jnp.float32(2.0)}, KEY)
    expected = expit(2 * np.asarray(WIDE.x) / 1.5)
    if on == "unlabelled":
        expected = np.where(read[:, None] & ~np.isnan(given), given, expected)
    close(labels, expected, 1e-6)
    same(counted, np.where(read, 2, 0.0 if on == "labelled" else 1).astype(np.float32))


def test_targets_carry_no_gradient():
    def total(scale):
        fit = distill(teach, TEACHER, told, classes=3)
        labels, _ = fit(WIDE, jnp.ones(ROWS), {"scale": scale}, KEY)
        return jnp.sum(labels[:, 0])

    assert jax.jit(jax.grad(total))(jnp.float32(2.0)) == 0


STUDENT = ridge(CLASSES)
MANY = bagging(ridge(CLASSES), COUNT)
POOLED = ensemble(HEAD, COUNT)


@functools.cache
def compiled(on="unlabelled"):
    return jax.jit(distill(MANY, POOLED, STUDENT, classes=CLASSES, on=on))


def test_hidden_labels_are_not_read():
    expected = compiled()(rows(), jnp.ones(ROWS), ALPHA, KEY)
    few = jnp.asarray(LABELLED, jnp.float32)
    shown = compiled()(rows(LABELS), few, ALPHA, KEY)
    planted = np.where(LABELLED, LABELS, CLASSES - 1 - LABELS)
    same(compiled()(rows(planted), few, ALPHA, KEY), shown)
    close(shown, expected)
    soft = jnp.where(LABELLED[:, None], OWN, jnp.nan)
    close(compiled()(rows(soft), jnp.ones(ROWS), ALPHA, KEY), expected)


def test_without_unlabelled_rows_it_is_the_student_alone():
    weights = jnp.asarray(np.random.default_rng(3).uniform(0.5, 2, ROWS), jnp.float32)
    found = compiled()(rows(LABELS), weights, ALPHA, KEY)["output"]
    alone = Ridge(alpha=0.5).fit(X, 2 * OWN - 1, np.asarray(weights))
    close(found, {"kernel": alone.coef_.T, "bias": alone.intercept_})


def test_side_by_side_and_with_members_in_another_order_it_is_the_same():
    def reversed_members(data, weights, hyperparameters, key):
        params = MANY(data, weights, hyperparameters, key)
        return jax.tree.map(lambda leaf: leaf[::-1], params)

    run = distill(reversed_members, POOLED, STUDENT, classes=CLASSES)
    weights = jnp.stack([jnp.ones(ROWS), jnp.asarray(np.arange(ROWS) % 4 > 0) * 1.0])
    alphas = {"alpha": jnp.array([0.5, 2.0])}
    many = jax.jit(jax.vmap(run, (None, 0, 0, None)))(rows(), weights, alphas, KEY)
    for one in range(2):
        alpha = {"alpha": alphas["alpha"][one]}
        expected = compiled()(rows(), weights[one], alpha, KEY)
        close(jax.tree.map(lambda leaf: leaf[one], many), expected)  # noqa: B023
    # One program for class numbers, and one for soft labels in another test.
    assert compiled()._cache_size() <= 2
    assert expected["output"]["kernel"].shape == (2, CLASSES)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"on": "unlabeled"}, "on is 'unlabeled': expected 'unlabelled', 'all' or"),
        ({"temperature": 0}, "temperature is 0: expected a number above 0"),
    ],
)
def test_arguments_are_checked(option, message):
    with pytest.raises(ValueError, match=message):
        distill(MANY, POOLED, STUDENT, classes=CLASSES, **option)
