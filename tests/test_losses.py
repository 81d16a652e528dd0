"""Properties of every loss, and of the supervised objective."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import sklearn.metrics

from flaxhead import losses
from flaxhead.base import Batch, Loss
from flaxhead.heads import linear
from flaxhead.objectives import supervised

GAMMA = 1.5
CLASSES = 4
SOFTMAX = ("softmax_cross_entropy", "softmax_focal")
SIGMOID = ("sigmoid_binary_cross_entropy", "sigmoid_focal")
CASES = [(name, kind) for name in SOFTMAX for kind in ("numbers", "soft")]
CASES += [(name, kind) for name in SIGMOID for kind in ("numbers", "soft", "missing")]
every_case = pytest.mark.parametrize(("name", "kind"), CASES)
every_loss = pytest.mark.parametrize("name", losses.LOSSES)


def make(name, gamma=GAMMA):
    return losses.LOSSES[name](gamma)


def oracle(name, logits, targets, gamma=GAMMA):
    formula = oracles.softmax_focal if name in SOFTMAX else oracles.sigmoid_focal
    return formula(logits, targets, gamma if "focal" in name else 0.0)


def example(name, kind, shape=(6,), seed=0):
    """Logits, labels, and the same labels as float64 `[..., classes]`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(*shape, CLASSES), scale=3).astype(np.float32)
    numbers = rng.integers(0, CLASSES, size=shape)
    if kind == "numbers":
        return logits, numbers.astype(np.int32), oracles.one_hot(numbers, CLASSES)
    targets = rng.random((*shape, CLASSES))
    if name in SOFTMAX:
        targets = targets / targets.sum(-1, keepdims=True)
    if kind == "missing":
        targets = np.where(rng.random(targets.shape) < 0.3, np.nan, targets.round())
    return logits, targets.astype(np.float32), targets.astype(np.float32)


def test_every_loss_is_in_a_table_of_this_file():
    assert set(losses.LOSSES) == {*SOFTMAX, *SIGMOID}


@every_loss
def test_signatures_are_exactly_that_of_base(name):
    wanted = list(inspect.signature(Loss.__call__).parameters.values())[1:]
    kinds = [(p.name, p.kind, p.default) for p in wanted]
    loss = make(name)
    for made in (
        loss,
        losses.label_smoothing(loss, 0.1),
        losses.class_weighted(loss, np.ones(CLASSES)),
    ):
        found = inspect.signature(made).parameters.values()
        assert [(p.name, p.kind, p.default) for p in found] == kinds


@every_case
@pytest.mark.parametrize("shape", [(), (6,), (2, 3)])
def test_value_is_the_formula(name, kind, shape):
    logits, labels, targets = example(name, kind, shape)
    value = jax.jit(make(name))(logits, labels)
    assert value.shape == shape
    assert value.dtype == jnp.float32
    expected = oracle(name, logits, targets)
    np.testing.assert_allclose(value, expected, rtol=2e-5, atol=1e-6)


@functools.cache
def compiled(name, wrap="plain", gamma=GAMMA):
    """`(logits, labels, where, weights) -> (losses, gradient of their sum)`."""
    loss, multilabel = make(name, gamma), name in SIGMOID
    if wrap == "weighted":
        class_weights = np.arange(1.0, CLASSES + 1)
        loss = losses.label_smoothing(loss, 0.2, multilabel=multilabel)
        loss = losses.class_weighted(loss, class_weights, multilabel=multilabel)

    def run(logits, labels, where, weights):
        def total(logits):
            value = loss(logits, labels, where=where, weights=weights)
            return value.sum(), value

        (_, value), gradient = jax.value_and_grad(total, has_aux=True)(logits)
        return value, gradient

    return jax.jit(run)


EVERY, ONES = np.ones(6, bool), np.ones(6, np.float32)


@every_case
def test_jit_is_eager(name, kind):
    logits, labels, _ = example(name, kind)
    eager = make(name)(jnp.asarray(logits), jnp.asarray(labels))
    value, _ = compiled(name)(logits, labels, EVERY, ONES)
    np.testing.assert_allclose(value, eager, rtol=1e-5, atol=1e-6)


def central_differences(function, x, step=1e-5):
    result = np.zeros(x.shape)
    for position in np.ndindex(*x.shape):
        shift = np.zeros(x.shape)
        shift[position] = step
        result[position] = (function(x + shift) - function(x - shift)) / (2 * step)
    return result


@every_case
def test_gradient_is_that_of_the_formula(name, kind):
    logits, labels, targets = example(name, kind)
    _, gradient = compiled(name)(logits, labels, EVERY, ONES)
    expected = central_differences(lambda x: oracle(name, x, targets).sum(), logits)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


@every_case
def test_extreme_logits_have_finite_losses_and_gradients(name, kind):
    _, labels, targets = example(name, kind)
    extreme = np.random.default_rng(1).choice([-1e4, 0.0, 1e4], size=(6, CLASSES))
    logits = extreme.astype(np.float32)
    for gamma in (0.3, 2.0):
        value, gradient = compiled(name, gamma=gamma)(logits, labels, EVERY, ONES)
        np.testing.assert_allclose(
            value, oracle(name, extreme, targets, gamma), rtol=1e-5, atol=1e-2
        )
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["softmax_focal", "sigmoid_focal"])
def test_certain_examples_have_no_focal_gradient(name):
    """(1 - p)^gamma with gamma below 1 has an infinite slope at p = 1."""
    logits = jnp.array([[40.0, -40.0], [200.0, -200.0]])
    gradient = jax.grad(lambda x: make(name, 0.5)(x, jnp.zeros(2, int)).sum())(logits)
    np.testing.assert_allclose(gradient, np.zeros((2, 2)), atol=1e-12)


@every_case
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_narrow_logits_are_widened_first(name, kind, dtype):
    logits, labels, _ = example(name, kind)
    narrow = jnp.asarray(logits, dtype)
    value = make(name)(narrow, labels)
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, make(name)(narrow.astype(jnp.float32), labels))


def absent(how, labels, drop):
    """Labels, `where` and weights of which some rows are absent."""
    where, weights = EVERY, np.linspace(1.0, 2.0, 6, dtype=np.float32)
    if how == "where":
        where = ~drop
    elif how == "weights":
        weights = np.where(drop, np.float32(0), weights)
    elif how == "number":
        labels = np.where(drop, np.int32(-1), labels)
    else:
        labels = np.where(drop[:, None], np.float32(np.nan), labels)
    return labels, where, weights


@every_case
@pytest.mark.parametrize("wrap", ["plain", "weighted"])
def test_an_absent_example_is_a_deleted_one(name, kind, wrap):
    logits, labels, _ = example(name, kind)
    drop = np.arange(6) % 2 == 1
    bad = logits.copy()
    bad[1], bad[3], bad[5] = np.nan, np.inf, -np.inf
    run = compiled(name, wrap)
    weights = absent("where", labels, drop)[2]
    kept = run(logits[~drop], labels[~drop], EVERY[~drop], weights[~drop])
    hows = ["where", "weights"]
    if kind == "numbers":
        hows.append("number")
    elif name in SIGMOID:
        hows.append("entries")
    for how in hows:
        for found, expected in zip(
            run(bad, *absent(how, labels, drop)), kept, strict=True
        ):
            np.testing.assert_array_equal(found[drop], 0)
            np.testing.assert_allclose(found[~drop], expected, rtol=1e-5, atol=1e-6)


@every_case
@pytest.mark.parametrize("wrap", ["plain", "weighted"])
def test_all_absent_is_zero(name, kind, wrap):
    logits, labels, _ = example(name, kind)
    value, gradient = compiled(name, wrap)(logits * np.nan, labels, ~EVERY, ONES)
    np.testing.assert_array_equal(value, 0)
    np.testing.assert_array_equal(gradient, 0)


@every_case
def test_weights_multiply(name, kind):
    logits, labels, targets = example(name, kind)
    weights = np.linspace(0.5, 3.0, 6)
    value, _ = compiled(name)(logits, labels, EVERY, weights.astype(np.float32))
    expected = weights * oracle(name, logits, targets)
    np.testing.assert_allclose(value, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", SIGMOID)
@pytest.mark.parametrize("wrap", ["plain", "weighted"])
def test_an_entry_masked_by_where_is_a_missing_label(name, wrap):
    logits, labels, targets = example(name, "soft")
    keep = np.random.default_rng(2).random(logits.shape) < 0.6
    missing = np.where(keep, labels, np.float32(np.nan))
    masked = compiled(name, wrap)(logits, labels, keep, ONES)
    expected = compiled(name, wrap)(logits, missing, EVERY, ONES)
    for found, other in zip(masked, expected, strict=True):
        np.testing.assert_allclose(found, other, rtol=1e-6)
    # The one label that is on, as a class number, has entries too.
    numbers = targets.argmax(-1).astype(np.int32)
    if wrap == "plain":
        masked, _ = compiled(name)(logits, numbers, keep, ONES)
        targets = np.where(keep, oracles.one_hot(numbers, CLASSES), np.nan)
        np.testing.assert_allclose(masked, oracle(name, logits, targets), rtol=1e-5)


def test_sums_are_those_of_scikit_learn():
    logits, labels, _ = example("softmax_cross_entropy", "numbers", (50,))
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(
        losses.softmax_cross_entropy(logits, labels).mean(),
        sklearn.metrics.log_loss(labels, probabilities, labels=range(CLASSES)),
        rtol=1e-5,
    )
    several = np.random.default_rng(3).integers(0, 2, size=(50, CLASSES))
    each = [
        sklearn.metrics.log_loss(several[:, c], 1 / (1 + np.exp(-logits[:, c])))
        for c in range(CLASSES)
    ]
    np.testing.assert_allclose(
        losses.sigmoid_binary_cross_entropy(logits, several.astype(float)).mean(),
        np.sum(each),
        rtol=1e-5,
    )


def smoothed_targets(name, targets, smoothing):
    uniform = 1 / CLASSES if name in SOFTMAX else 1 / 2
    return (1 - smoothing) * targets + smoothing * uniform


@every_case
def test_label_smoothing_is_the_loss_of_smoothed_labels(name, kind):
    logits, labels, targets = example(name, kind)
    loss = losses.label_smoothing(make(name), 0.2, multilabel=name in SIGMOID)
    expected = oracle(name, logits, smoothed_targets(name, targets, 0.2))
    np.testing.assert_allclose(loss(logits, labels), expected, rtol=2e-5, atol=1e-6)


@every_loss
def test_no_smoothing_is_free(name):
    loss = make(name)
    assert losses.label_smoothing(loss, 0.0) is loss
    assert losses.label_smoothing(loss, 0) is loss


@every_loss
def test_an_example_is_multiplied_by_the_weight_of_its_class(name):
    logits, labels, targets = example(name, "numbers")
    class_weights = np.array([0.5, 1.0, 2.0, 7.0])
    loss = losses.class_weighted(make(name), class_weights, multilabel=name in SIGMOID)
    expected = class_weights[labels] * oracle(name, logits, targets)
    np.testing.assert_allclose(loss(logits, labels), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", SOFTMAX)
def test_a_soft_label_weighs_the_average_of_its_classes(name):
    logits, labels, targets = example(name, "soft")
    class_weights = np.array([0.5, 1.0, 2.0, 7.0])
    loss = losses.class_weighted(make(name), class_weights)
    expected = (targets @ class_weights) * oracle(name, logits, targets)
    np.testing.assert_allclose(loss(logits, labels), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", SIGMOID)
def test_an_entry_is_multiplied_by_the_weight_of_its_label(name):
    logits, labels, targets = example(name, "missing")
    class_weights, weights = np.array([0.5, 1.0, 2.0, 7.0]), np.linspace(1, 2, 6)
    loss = losses.class_weighted(make(name), class_weights, multilabel=True)
    each = [
        class_weights[c] * oracle(name, logits[:, c : c + 1], targets[:, c : c + 1])
        for c in range(CLASSES)
    ]
    np.testing.assert_allclose(
        loss(logits, labels, weights=weights),
        weights * np.sum(each, axis=0),
        rtol=2e-5,
        atol=1e-6,
    )


def test_class_weights_leave_the_smoothing_mass_alone():
    """The gradient is weight * (p - smoothed label): its target is what is smoothed."""
    logits, labels, targets = example("softmax_cross_entropy", "numbers")
    class_weights, smoothing = np.array([0.5, 1.0, 2.0, 7.0]), 0.2
    loss = losses.class_weighted(
        losses.label_smoothing(losses.softmax_cross_entropy, smoothing), class_weights
    )
    gradient = jax.grad(lambda x: loss(x, labels).sum())(jnp.asarray(logits))
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = probabilities - gradient / class_weights[labels][:, None]
    expected = smoothed_targets("softmax_cross_entropy", targets, smoothing)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@every_case
def test_swept_values_are_one_program(name, kind):
    logits, labels, _ = example(name, kind)

    def total(smoothing, gamma):
        loss = losses.label_smoothing(
            make(name, gamma), smoothing, multilabel=name in SIGMOID
        )
        return loss(logits, labels).sum()

    swept = jax.jit(jax.vmap(jax.grad(total)))
    for values in ([0.0, 0.1], [0.3, 0.5]):
        found = swept(jnp.array(values), jnp.array([0.5, 2.0]))
        loop = [
            jax.grad(total)(jnp.float32(value), gamma)
            for value, gamma in zip(values, (0.5, 2.0), strict=True)
        ]
        np.testing.assert_allclose(found, loop, rtol=1e-5, atol=1e-5)
    assert swept._cache_size() == 1


@every_loss
def test_bad_shapes_are_refused(name):
    with pytest.raises(ValueError, match=r"labels is int32 \(3,\)"):
        make(name)(jnp.zeros([2, 4]), jnp.zeros(3, jnp.int32))
    with pytest.raises(ValueError, match="labels is float32"):
        make(name)(jnp.zeros([2, 4]), jnp.zeros(2))


@pytest.mark.parametrize("factory", [losses.softmax_focal, losses.sigmoid_focal])
def test_bad_numbers_are_refused(factory):
    with pytest.raises(ValueError, match="gamma is -1"):
        factory(-1.0)
    with pytest.raises(ValueError, match=r"label_smoothing is 1\.5"):
        losses.label_smoothing(factory(1.0), 1.5)


def batch(labels, weights, index=None):
    rows = len(weights)
    x = np.random.default_rng(4).normal(size=(rows, 5)).astype(np.float32)
    index = jnp.arange(rows) if index is None else index
    return Batch(jnp.asarray(x), jnp.asarray(labels), jnp.asarray(weights), index)


def sums(head, loss, batch, key=None):
    params = head.init(jax.random.key(0), batch.x)
    key = jax.random.key(1) if key is None else key
    objective = supervised(head, loss)
    memory = objective.init(params)
    assert memory == ()
    found, memory = objective.apply(params, memory, batch, key)
    assert memory == ()
    assert list(found) == ["supervised"]
    return params, found["supervised"]


def test_supervised_sums_the_present_rows():
    weights = np.array([1.0, 2.0, 0.0, 0.5, 4.0], np.float32)
    data = batch(np.array([0, 1, 2, -1, 2]), weights)
    params, found = sums(linear(3, zero_init=False), losses.softmax_cross_entropy, data)
    logits = data.x @ params["output"]["kernel"]
    each = oracles.softmax_focal(logits, oracles.one_hot([0, 1, 2, 0, 2], 3), 0.0)
    present = [0, 1, 4]
    np.testing.assert_allclose(found.count, weights[present].sum())
    np.testing.assert_allclose(found.total, (weights * each)[present].sum(), rtol=1e-5)


def test_supervised_rows_without_any_label_are_absent():
    labels = np.array([[1, np.nan], [np.nan, np.nan], [0, 1]], np.float32)
    data = batch(labels, np.array([1.0, 2.0, 4.0], np.float32))
    _, found = sums(linear(2), losses.sigmoid_binary_cross_entropy, data)
    np.testing.assert_allclose(found.count, 1.0 + 4.0)
    np.testing.assert_allclose(found.total, (1 + 2 * 4) * np.log(2), rtol=1e-6)


def test_supervised_without_rows_is_zero():
    data = batch(np.full(3, -1), np.ones(3, np.float32))
    _, found = sums(linear(2), losses.softmax_cross_entropy, data)
    assert (found.total, found.count) == (0, 0)


def test_supervised_noise_is_of_the_rows_number():
    head = linear(3, zero_init=False, dropout=0.5)
    data = batch(np.array([0, 1, 2, 1]), np.ones(4, np.float32))
    order = np.array([2, 0, 3, 1])
    moved = jax.tree.map(lambda leaf: leaf[order], data)
    renumbered = data._replace(index=data.index + 4)
    totals = [
        float(sums(head, losses.softmax_cross_entropy, rows)[1].total)
        for rows in (data, moved, renumbered)
    ]
    assert totals[0] == pytest.approx(totals[1], rel=1e-6)
    assert totals[0] != pytest.approx(totals[2], rel=1e-3)
