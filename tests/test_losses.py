"""Properties of every loss, and of the supervised objective."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import sklearn.metrics
from scipy.special import expit, log_expit, log_softmax

import flaxhead
from flaxhead import build, losses
from flaxhead.base import Batch, Loss
from flaxhead.config import Config, DataConfig, HeadConfig, LossConfig, TrainConfig
from flaxhead.heads import linear
from flaxhead.objectives import supervised

GAMMA = 1.5
CLASSES = 4
COUNTS = np.array([40.0, 10.0, 3.0, 1.0])
SOFTMAX = (
    "softmax_cross_entropy",
    "softmax_focal",
    "generalized_cross_entropy",
    "symmetric_cross_entropy",
    "balanced_softmax",
    "ldam",
)
SIGMOID = ("sigmoid_binary_cross_entropy", "sigmoid_focal", "asymmetric")
CASES = [(name, kind) for name in SOFTMAX for kind in ("numbers", "soft")]
CASES += [(name, kind) for name in SIGMOID for kind in ("numbers", "soft", "missing")]
every_case = pytest.mark.parametrize(("name", "kind"), CASES)
every_loss = pytest.mark.parametrize("name", losses.LOSSES)


def numbers(name, gamma):
    """What a loss is made of: each has a number, but for the cross-entropies."""
    return {
        "softmax_focal": {"gamma": gamma},
        "sigmoid_focal": {"gamma": gamma},
        "generalized_cross_entropy": {"q": gamma},
        "symmetric_cross_entropy": {"alpha": gamma, "beta": 2 * gamma},
        "balanced_softmax": {"counts": COUNTS},
        "ldam": {"counts": COUNTS, "max_margin": gamma, "scale": 2.0},
        "asymmetric": {
            "gamma_positive": gamma / 2,
            "gamma_negative": gamma,
            "clip": gamma / 10,
        },
    }.get(name, {})


def make(name, gamma=GAMMA):
    return losses.LOSSES[name](**numbers(name, gamma))


def oracle(name, logits, targets, gamma=GAMMA):
    """The formulas of the papers, in float64."""
    logits = np.asarray(logits, float)
    if name == "asymmetric":
        p = expit(logits)
        clipped = np.maximum(p - gamma / 10, 0)
        on = (1 - p) ** (gamma / 2) * log_expit(logits)
        off = clipped**gamma * np.log1p(-clipped)
        return np.nan_to_num(-targets * on - (1 - targets) * off).sum(-1)
    if name in SIGMOID:
        return oracles.sigmoid_focal(logits, targets, gamma if "focal" in name else 0)
    if name == "ldam":
        margins = gamma * (COUNTS / COUNTS.min()) ** -0.25
        # A class after the other: its own logit is lowered, and no other one.
        terms = [
            log_softmax(2 * (logits - margins[c] * np.eye(CLASSES)[c]), axis=-1)[..., c]
            for c in range(CLASSES)
        ]
        return -np.sum(targets * np.stack(terms, axis=-1), axis=-1)
    if name == "balanced_softmax":
        logits = logits + np.log(COUNTS / COUNTS.sum())
    log_p = log_softmax(logits, axis=-1)
    terms = {
        "softmax_focal": -((1 - np.exp(log_p)) ** gamma) * log_p,
        "generalized_cross_entropy": (1 - np.exp(gamma * log_p)) / gamma,
        # The reverse one is -sum_k p_k log(y_k), with -4 for the log of 0.
        "symmetric_cross_entropy": -gamma * log_p + 2 * gamma * 4 * (1 - np.exp(log_p)),
    }.get(name, -log_p)
    return np.sum(targets * terms, axis=-1)


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
    assert set(losses.SIGMOID) == set(SIGMOID)


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
@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_value_is_the_formula(name, kind, shape):
    logits, labels, targets = example(name, kind, shape)
    value = jax.jit(make(name))(logits, labels)
    assert value.shape == shape
    assert value.dtype == jnp.float32
    expected = oracle(name, logits, targets)
    np.testing.assert_allclose(value, expected, rtol=2e-5, atol=1e-6)


@functools.cache
def compiled(name, wrap="plain"):
    """`(logits, labels, where, weights) -> (losses, gradient of their sum)`."""
    multilabel = name in SIGMOID

    def run(logits, labels, where, weights, gamma=GAMMA):
        loss = make(name, gamma)
        if wrap == "weighted":
            class_weights = np.arange(1.0, CLASSES + 1)
            loss = losses.label_smoothing(loss, 0.2, multilabel=multilabel)
            loss = losses.class_weighted(loss, class_weights, multilabel=multilabel)

        def total(logits):
            value = loss(logits, labels, where=where, weights=weights)
            return value.sum(), value

        (_, value), gradient = jax.value_and_grad(total, has_aux=True)(logits)
        return value, gradient

    program = jax.jit(run)
    # Traced, so that other values are the same program.
    return lambda *rows, gamma=GAMMA: program(*rows, gamma)


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
        run = compiled(name)
        value, gradient = run(logits, labels, EVERY, ONES, gamma=gamma)
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
    # Those that stay, twice, so that the program is the same.
    stay = np.tile(np.flatnonzero(~drop), 2)
    kept = run(logits[stay], labels[stay], EVERY, weights[stay])
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
            np.testing.assert_allclose(found[~drop], expected[:3], rtol=1e-5, atol=1e-6)


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


def reduced(name, kind, wrapped, plain):
    """Whether a loss is another: values and gradients, bit for bit."""
    logits, labels, _ = example(name, kind)

    def run(loss):
        return jax.value_and_grad(lambda x: loss(x, labels).sum())(jnp.asarray(logits))

    jax.tree.map(np.testing.assert_array_equal, run(wrapped), run(plain))


CROSS_ENTROPY = losses.softmax_cross_entropy
IDENTITIES = {
    "q 0": losses.generalized_cross_entropy(0.0),
    "traced q 0": losses.generalized_cross_entropy(jnp.float32(0)),
    "beta 0": losses.symmetric_cross_entropy(1.0, 0.0),
    "tau 0": losses.logit_adjusted(CROSS_ENTROPY, COUNTS, 0.0),
    "traced tau 0": losses.logit_adjusted(CROSS_ENTROPY, COUNTS, jnp.float32(0)),
}


@pytest.mark.parametrize("kind", ["numbers", "soft"])
@pytest.mark.parametrize("name", IDENTITIES)
def test_it_is_the_cross_entropy(name, kind):
    reduced("softmax_cross_entropy", kind, IDENTITIES[name], CROSS_ENTROPY)


@pytest.mark.parametrize("kind", ["numbers", "missing"])
def test_without_its_numbers_asymmetric_is_the_cross_entropy(kind):
    plain, name = losses.sigmoid_binary_cross_entropy, "asymmetric"
    reduced(name, kind, losses.asymmetric(0.0, 0.0, 0.0), plain)
    logits, labels, _ = example(name, kind)
    traced = losses.asymmetric(*jnp.zeros(3))
    np.testing.assert_allclose(traced(logits, labels), plain(logits, labels), rtol=1e-5)
    # Certain and wrong: 1 - p is 0, whose logarithm is not taken.
    gradient = jax.grad(lambda x: traced(x, jnp.zeros([1, 1])).sum())
    np.testing.assert_allclose(gradient(jnp.full([1, 1], 90.0)), [[1.0]])


def test_identities_up_to_rounding():
    logits, labels, _ = example("softmax_cross_entropy", "numbers")
    plain = CROSS_ENTROPY(logits, labels)
    p = np.exp(log_softmax(logits.astype(float), axis=-1))[np.arange(6), labels]
    cases = {
        "the absolute error": (losses.generalized_cross_entropy(1.0), 1 - p),
        "q near 0": (losses.generalized_cross_entropy(1e-5), plain),
        "classes alike": (losses.logit_adjusted(CROSS_ENTROPY, np.ones(4), 2.0), plain),
        "no margin": (losses.ldam(COUNTS, 0.0, 1.0), plain),
        "reverse": (losses.symmetric_cross_entropy(0.0, 0.25), 1 - p),
    }
    for name, (loss, expected) in cases.items():
        found = loss(logits, labels)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_class_without_rows_is_no_trouble():
    counts = np.array([3.0, 1.0, 0.0])
    logits, labels = jnp.array([[0.0, 0.0, 5.0], [0.0, 0.0, 5.0]]), jnp.array([0, 1])
    value = losses.balanced_softmax(counts)(logits, labels)
    np.testing.assert_allclose(value, -np.log([3 / 4, 1 / 4]), rtol=1e-5)
    alone = losses.ldam(counts[:2], 1.0, 1.0)(logits[:, :2], labels)
    far = jnp.array([0.0, 0.0, -1e4])
    np.testing.assert_allclose(
        losses.ldam(counts, 1.0, 1.0)(far + 0 * logits, labels), alone
    )


def test_effective_numbers_are_the_formula():
    counts, beta = np.array([1000.0, 10.0, 1.0]), 0.99
    each = (1 - beta) / (1 - beta**counts)
    found = losses.effective_number_weights(counts, beta)
    np.testing.assert_allclose(found, each * 3 / each.sum(), rtol=1e-4)
    np.testing.assert_array_equal(losses.effective_number_weights(counts, 0.0), 1)
    nearly = losses.effective_number_weights(counts, 1 - 1e-6)
    inverse = 1 / counts
    np.testing.assert_allclose(nearly, inverse * 3 / inverse.sum(), rtol=0.1)
    some = losses.effective_number_weights(np.array([5.0, 0.0]), 0.9)
    np.testing.assert_allclose(some, [1, 0])
    with pytest.raises(ValueError, match="beta is 1"):
        losses.effective_number_weights(counts, 1.0)


NEGATIVE = {
    "q": lambda: losses.generalized_cross_entropy(-1.0),
    "alpha": lambda: losses.symmetric_cross_entropy(-1.0, 1.0),
    "beta": lambda: losses.symmetric_cross_entropy(1.0, -1.0),
    "max_margin": lambda: losses.ldam(COUNTS, -1.0),
    "scale": lambda: losses.ldam(COUNTS, 1.0, -1.0),
    "gamma_positive": lambda: losses.asymmetric(-1.0),
    "gamma_negative": lambda: losses.asymmetric(1.0, -1.0),
    "clip": lambda: losses.asymmetric(1.0, 1.0, -1.0),
}


@pytest.mark.parametrize("name", NEGATIVE)
def test_negative_numbers_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is -1"):
        NEGATIVE[name]()


@pytest.mark.parametrize("factory", [losses.softmax_focal, losses.sigmoid_focal])
def test_bad_numbers_are_refused(factory):
    with pytest.raises(ValueError, match="gamma is -1"):
        factory(-1.0)
    with pytest.raises(ValueError, match=r"label_smoothing is 1\.5"):
        losses.label_smoothing(factory(1.0), 1.5)


@every_loss
def test_settings_make_the_loss(name):
    adjustment = 0.0 if name in SIGMOID else 0.5
    loss = LossConfig(
        name,
        focal_gamma=GAMMA,
        generalized_q=GAMMA,
        symmetric_alpha=GAMMA,
        symmetric_beta=2 * GAMMA,
        ldam_margin=GAMMA,
        ldam_scale=2.0,
        asymmetric_positive=GAMMA / 2,
        asymmetric_negative=GAMMA,
        asymmetric_clip=GAMMA / 10,
        logit_adjustment=(adjustment,),
    )
    config, task = Config(loss=loss), "multilabel" if name in SIGMOID else "multiclass"
    build.check(config)
    assert build.output(config, task) == ("sigmoid" if name in SIGMOID else "softmax")
    assert build.uses_counts(config, task) == (name in SOFTMAX)
    logits, labels, targets = example(name, "soft")
    made = build.make_loss(
        config, task=task, logit_adjustment=adjustment, class_counts=COUNTS
    )
    found = made(logits, labels)
    if name in SOFTMAX:
        logits = logits + 0.5 * np.log(COUNTS)
    expected = oracle(name, logits, targets)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("message", "loss", "head"),
    [
        ("loss.generalized_q is -1", {"generalized_q": -1.0}, "linear"),
        ("loss.asymmetric_clip is", {"asymmetric_clip": 1.0}, "linear"),
        ("loss.effective_number_beta", {"effective_number_beta": 1.0}, "linear"),
        ("balanced, effective_number", {"class_weights": "even"}, "linear"),
        ("heads are solved and not trained", {"logit_adjustment": (1.0,)}, "ridge"),
        ("loss.logit_adjustment is", {"logit_adjustment": (0.0, -1.0)}, "linear"),
    ],
)
def test_settings_that_no_run_could_use_are_refused(message, loss, head):
    config = Config(heads=(HeadConfig(head),), loss=LossConfig(**loss))
    with pytest.raises(ValueError, match=message):
        build.check(config)


def test_labels_that_are_independent_have_no_shares():
    config = Config(loss=LossConfig("asymmetric", logit_adjustment=(0.0, 1.0)))
    with pytest.raises(ValueError, match="classes that exclude each other"):
        build.output(config, "multilabel")


def test_a_run_knows_the_counts_of_its_training_rows(tmp_path):
    data = flaxhead.arrays(
        {
            "embeddings": np.eye(60, dtype=np.float32),
            "labels": np.repeat([0, 1], [48, 12]),
        }
    )
    counts = np.bincount(data.train.labels)
    weights = losses.effective_number_weights(counts, 0.9)
    named = dict(zip(data.class_names, weights.tolist(), strict=True))

    def logits(folder, **loss):
        config = Config(
            DataConfig("arrays"),
            heads=(HeadConfig("linear"),),
            loss=LossConfig(**loss),
            train=TrainConfig(steps=5, evaluations=1, devices=1),
        )
        flaxhead.run(config, tmp_path / folder, data=data)
        return flaxhead.load(tmp_path / folder / "head").logits(data.test.x)

    adjusted = logits("adjusted", logit_adjustment=(1.0,))
    balanced = logits("balanced", name="balanced_softmax")
    np.testing.assert_allclose(adjusted, balanced, atol=1e-6)
    effective = logits(
        "effective", class_weights="effective_number", effective_number_beta=0.9
    )
    np.testing.assert_allclose(
        effective, logits("named", class_weights=named), atol=1e-6
    )
    assert np.abs(adjusted - effective).max() > 1e-3


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
