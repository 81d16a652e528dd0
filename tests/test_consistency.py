"""Each method against its paper's formula, and every objective's properties."""

import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import expit, log_softmax, softmax, xlogy

from flaxhead import objectives
from flaxhead.base import Batch, Objective, Sums
from flaxhead.fit import hide
from flaxhead.heads import linear, mlp
from flaxhead.losses import softmax_cross_entropy
from flaxhead.objectives import CONSISTENCY, SIGMOID_CONSISTENCY
from flaxhead.objectives.rows import known, labelled, row_keys, side_key
from flaxhead.step import learner

ROWS, DIM, CLASSES = 24, 4, 3


def example(seed, *, spread=1.0):
    """Rows of which the first six have a label and the last two are absent."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(ROWS, DIM)).astype(np.float32) * np.float32(spread)
    labels = np.where(np.arange(ROWS) < 6, np.arange(ROWS) % CLASSES, -1)
    weights = draw.choice([0.5, 1.0, 2.0], size=ROWS).astype(np.float32)
    weights[-2:] = 0
    index = draw.permutation(ROWS)
    return Batch(*map(jnp.asarray, (x, labels.astype(np.int32), weights, index)))


# The papers' formulas, on two batches, each with parameters of its own.

SCALE = np.array([0.5, 1.5, 1.0, 0.2], np.float32)
SHIFT = np.array([0.1, 0.0, -0.3, 0.2], np.float32)


def weak(batch, key):
    return batch


def other_weak(batch, key):
    return batch._replace(x=batch.x + SHIFT)


def strong(batch, key):
    return batch._replace(x=batch.x * SCALE)


SETTINGS = {
    "pi": {},
    "mean_teacher": {"decay": 0.7},
    "pseudo_label": {"confidence": 0.6},
    "uda": {"confidence": 0.6, "temperature": 0.4},
    "mixmatch": {"temperature": 0.5},
    "fixmatch": {"confidence": 0.6},
    "flexmatch": {"confidence": 0.6},
    "freematch": {"decay": 0.8},
    "softmatch": {"decay": 0.8},
    "adamatch": {"share": 0.9, "decay": 0.8, "decay_of_threshold": 0.5},
}
VIEWS = {
    "pseudo_label": (weak, weak),
    "mixmatch": ((weak, other_weak), (strong, other_weak)),
}


class Step(NamedTuple):
    """A batch in NumPy, and the teacher's probabilities `q` of the weak view."""

    q: np.ndarray
    weights: np.ndarray
    labelled: np.ndarray
    index: np.ndarray

    def mean(self, values, where=True):
        return np.average(values, axis=0, weights=self.weights * where)


def one_hot_of(q):
    return np.eye(CLASSES)[q.argmax(1)]


def normalised(values):
    return values / values.sum(1, keepdims=True)


def plain(steps):
    return [(step.q, np.ones(ROWS)) for step in steps]


def masked(steps, *, confidence):
    return [(one_hot_of(s.q), s.q.max(1) >= confidence) for s in steps]


def uda(steps, *, confidence, temperature):
    """1[max q >= t] and softmax(z / T), of logits z = log q."""
    return [
        (softmax(np.log(s.q) / temperature, 1), s.q.max(1) >= confidence) for s in steps
    ]


def mixmatch(steps, *, temperature):
    return [(normalised(s.q ** (1 / temperature)), np.ones(ROWS)) for s in steps]


def flexmatch(steps, *, confidence):
    """Algorithm 1, row by row."""
    learnt, found = [-1] * ROWS, []
    for s in steps:
        sigma = np.array([learnt.count(c) for c in range(CLASSES)])
        beta = sigma / max(sigma.max(), learnt.count(-1))
        least = beta / (2 - beta) * confidence
        found.append((one_hot_of(s.q), s.q.max(1) >= least[s.q.argmax(1)]))
        for row in range(ROWS):
            if s.weights[row] > 0 and s.q[row].max() >= confidence:
                learnt[s.index[row]] = s.q[row].argmax()
    return found


def freematch(steps, *, decay):
    """Equations 5, 6 and 8: tau_t, p_t(c), and MaxNorm(p_t(c)) tau_t."""
    tau, local, found = 1 / CLASSES, np.full(CLASSES, 1 / CLASSES), []
    for s in steps:
        tau = decay * tau + (1 - decay) * s.mean(s.q.max(1))
        local = decay * local + (1 - decay) * s.mean(s.q)
        least = local / local.max() * tau
        found.append((one_hot_of(s.q), s.q.max(1) >= least[s.q.argmax(1)]))
    return found


def softmatch(steps, *, decay):
    """The truncated Gaussian of the confidence after uniform alignment."""
    mean, mu, variance, found = np.full(CLASSES, 1 / CLASSES), 1 / CLASSES, 1.0, []
    for s in steps:
        mean = decay * mean + (1 - decay) * s.mean(s.q)
        best = normalised(s.q / CLASSES / mean).max(1)
        count = s.weights.sum()
        off = s.mean((best - s.mean(best)) ** 2) * count / (count - 1)
        mu = decay * mu + (1 - decay) * s.mean(best)
        variance = decay * variance + (1 - decay) * off
        below = np.exp(-((best - mu) ** 2) / (2 * variance))
        found.append((one_hot_of(s.q), np.where(best < mu, below, 1.0)))
    return found


def adamatch(steps, *, share, decay, decay_of_threshold):
    source = target = np.full(CLASSES, 1 / CLASSES)
    confidence, found = 1.0, []
    for s in steps:
        source = decay * source + (1 - decay) * s.mean(s.q, s.labelled)
        target = decay * target + (1 - decay) * s.mean(s.q)
        aligned = normalised(s.q * source / target)
        now = s.mean(s.q.max(1), s.labelled)
        kept = decay_of_threshold
        confidence = kept * confidence + (1 - kept) * now
        found.append((aligned, aligned.max(1) >= share * confidence))
    return found


FORMULAS = {
    "pi": (plain, "squared"),
    "mean_teacher": (lambda steps, decay: plain(steps), "squared"),
    "pseudo_label": (masked, "cross_entropy"),
    "uda": (uda, "cross_entropy"),
    "mixmatch": (mixmatch, "squared"),
    "fixmatch": (masked, "cross_entropy"),
    "flexmatch": (flexmatch, "cross_entropy"),
    "freematch": (freematch, "cross_entropy"),
    "softmatch": (softmatch, "cross_entropy"),
    "adamatch": (adamatch, "cross_entropy"),
}


def divergence(kind, target, logits):
    """Each row's value and its gradient in the logits, the target held fixed."""
    p = softmax(logits, 1)
    if kind == "cross_entropy":
        return -np.sum(target * log_softmax(logits, 1), 1), p - target
    slope = 2 / CLASSES * (p - target)
    slope = p * (slope - np.sum(p * slope, 1, keepdims=True))
    return np.mean((p - target) ** 2, 1), slope


HEAD = linear(CLASSES, zero_init=False)


def by_numpy(name, batches, params):
    """Totals and gradients of the kernel, of both steps."""
    kernels = [np.asarray(p["output"]["kernel"], float) for p in params]
    teachers = list(kernels)
    if name == "mean_teacher":
        average, decay = kernels[0], SETTINGS[name]["decay"]
        for number, kernel in enumerate(kernels):
            average = teachers[number] = decay * average + (1 - decay) * kernel
    views = VIEWS.get(name, (weak, strong))
    weaks, strongs = (v if isinstance(v, tuple) else (v,) for v in views)
    steps = []
    for batch, kernel in zip(batches, teachers, strict=True):
        q = np.mean([softmax(v(batch, None).x @ kernel, 1) for v in weaks], 0)
        labelled = np.asarray(batch.labels) >= 0
        steps.append(Step(q, *map(np.asarray, (batch.weights, labelled, batch.index))))
    formula, kind = FORMULAS[name]
    read = formula(steps, **SETTINGS[name])
    totals, gradients = [], []
    for batch, kernel, (target, chosen) in zip(batches, kernels, read, strict=True):
        weight = np.asarray(batch.weights) * chosen / len(strongs)
        total, gradient = 0.0, np.zeros((DIM, CLASSES))
        for view in strongs:
            x = np.asarray(view(batch, None).x, float)
            values, slopes = divergence(kind, target, x @ kernel)
            total += np.sum(weight * values)
            gradient += x.T @ (weight[:, None] * slopes)
        totals.append(total)
        gradients.append(gradient)
    return totals, gradients, read


@jax.jit
def by_flaxhead(batches, params, settings):
    """The same, of every method in one program: settings are traced."""
    found = {}
    for name, own in settings.items():
        objective = CONSISTENCY[name](
            HEAD,
            classes=CLASSES,
            views=VIEWS.get(name, (weak, strong)),
            rows=ROWS,
            **own,
        )

        def step(memory, inputs, objective=objective):
            batch, p = inputs

            def total(p):
                sums, after = objective.apply(p, memory, batch, jax.random.key(0))
                return sums["consistency"].total, (sums["consistency"].count, after)

            (value, (count, after)), slope = jax.value_and_grad(total, has_aux=True)(p)
            return after, (value, count, slope["output"]["kernel"])

        first = jax.tree.map(lambda leaf: leaf[0], params)
        found[name] = jax.lax.scan(step, objective.init(first), (batches, params))[1]
    return found


def stacked(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def two_steps():
    batches = [example(0, spread=1.5), example(1, spread=2.0)]
    params = [HEAD.init(jax.random.key(k), batches[0].x) for k in (3, 4)]
    return batches, params


def test_methods_are_the_papers_formulas_and_targets_have_no_gradient():
    batches, params = two_steps()
    found = by_flaxhead(stacked(batches), stacked(params), SETTINGS)
    assert set(found) == set(CONSISTENCY) - {"vat"}
    partly = set()
    for name, (totals, counts, gradients) in found.items():
        values, slopes, read = by_numpy(name, batches, params)
        for step in range(2):
            np.testing.assert_allclose(
                totals[step], values[step], rtol=1e-4, err_msg=name
            )
            np.testing.assert_allclose(
                counts[step], np.sum(batches[step].weights), rtol=1e-6
            )
            np.testing.assert_allclose(
                gradients[step], slopes[step], rtol=1e-3, atol=1e-4, err_msg=name
            )
        if 0 < np.mean(read[1][1]) < 1:
            partly.add(name)
    # The example says something of the selections: they leave out a part of the rows.
    assert partly == set(found) - {"pi", "mean_teacher", "mixmatch"}
    again = jax.tree.map(lambda value: value * 0.9, SETTINGS)
    by_flaxhead(stacked(batches), stacked(params), again)
    assert by_flaxhead._cache_size() == 1


def test_of_sigmoids_each_label_is_on_or_off_by_itself():
    batch = example(0, spread=2.0)
    params = HEAD.init(jax.random.key(3), batch.x)
    weights = np.asarray(batch.weights)
    q, p = (
        expit(np.asarray(view(batch, None).x @ params["output"]["kernel"], float))
        for view in (weak, strong)
    )
    on, off = q ** (1 / 0.4), (1 - q) ** (1 / 0.4)
    sharp = on / (on + off)
    sure = np.maximum(q, 1 - q) >= 0.6
    nats = -(xlogy(sharp, p) + xlogy(1 - sharp, 1 - p))
    expected = {
        "pi": (np.mean((q - p) ** 2, 1), 2 / CLASSES * (p - q) * p * (1 - p)),
        "uda": (np.sum(sure * nats, 1), sure * (p - sharp)),
    }
    expected["mean_teacher"] = expected["pi"]  # whose average begins at the head

    @jax.jit
    def run(params):
        found = {}
        for name in SIGMOID_CONSISTENCY:
            objective = CONSISTENCY[name](
                HEAD,
                classes=CLASSES,
                views=(weak, strong),
                output="sigmoid",
                **SETTINGS[name],
            )

            def total(params, objective=objective):
                memory, key = objective.init(params), jax.random.key(0)
                return objective.apply(params, memory, batch, key)[0][
                    "consistency"
                ].total

            found[name] = jax.value_and_grad(total)(params)
        return found

    assert 0 < sure.mean() < 1
    found = run(params)
    assert set(found) == set(expected)
    for name, (value, slope) in found.items():
        values, slopes = expected[name]
        np.testing.assert_allclose(value, weights @ values, rtol=1e-4, err_msg=name)
        x = np.asarray(strong(batch, None).x, float)
        np.testing.assert_allclose(
            slope["output"]["kernel"], x.T @ (weights[:, None] * slopes), atol=1e-4
        )
    takes = {
        name
        for name, make in CONSISTENCY.items()
        if "output" in inspect.signature(make).parameters
    }
    assert takes == set(SIGMOID_CONSISTENCY)


def test_divergences_are_their_formulas():
    draw = np.random.default_rng(0)
    target, logits = draw.dirichlet(np.ones(3), 5), draw.normal(size=(5, 3))
    target[0] = [1, 0, 0]
    for name in ("cross_entropy", "squared"):
        found = getattr(objectives, name)(jnp.asarray(target), jnp.asarray(logits))
        expected = divergence(name, target, logits)[0]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    logs = np.log(np.where(target > 0, target, 1))
    expected = np.sum(target * (logs - log_softmax(logits, 1)), 1)
    found = objectives.kl(jnp.asarray(target), jnp.asarray(logits))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# Every objective, in one program over weights. Random draws are what is slow to
# compile, so that few objectives have noise here; the views have tests of their own.

NET = mlp(CLASSES, width=6, zero_init=False)
DROPPED = mlp(CLASSES, width=6, zero_init=False, dropout=0.2)


def table(axis=None):
    """Every objective, but plain `supervised`."""
    settings = {**SETTINGS, "vat": {"radius": 0.5}}
    views = {**VIEWS, "uda": (weak, objectives.feature_dropout(0.2))}
    spelled = {
        name: make(
            NET,
            classes=CLASSES,
            views=views.get(name, (weak, strong)),
            rows=ROWS,
            axis=axis,
            **settings[name],
        )
        for name, make in CONSISTENCY.items()
    }
    return {
        **spelled,
        "entropy": objectives.entropy(NET),
        "marginal_entropy": objectives.marginal_entropy(NET, axis=axis),
        "r_drop": objectives.r_drop(DROPPED),
        "ramp": objectives.ramp(
            objectives.entropy(NET), optax.linear_schedule(0.0, 1.0, 4)
        ),
    }


NAMES = list(table())
TERMS = 1 + len(NAMES)
STEPS = 4


def watched(objective, axis):
    """The objective, with the totals of its terms in memory."""

    def apply(params, memory, batch, key):
        sums, inner = objective.apply(params, memory[1], batch, key)
        totals = jnp.stack([term.total for term in sums.values()])
        totals = jax.lax.stop_gradient(totals)
        return sums, (totals if axis is None else jax.lax.psum(totals, axis), inner)

    return Objective(lambda params: (jnp.zeros(TERMS), objective.init(params)), apply)


def run(weights, batch, key, *, axis=None):
    """Steps of `supervised + weights @ table`, and of `supervised` alone.

    Returns the parameters of both, what memory there is, and the terms of every step.
    """
    alone = whole = objectives.supervised(NET, softmax_cross_entropy)
    for number, objective in enumerate(table(axis).values()):
        whole = whole + weights[number] * objective
    ends = []
    for objective in (watched(whole, axis), alone):
        learn = learner(NET, objective, optax.sgd(0.1), axis=axis)

        def step(state, _, learn=learn):
            state, _ = learn.step(state, batch)
            return state, state.memory[:1]

        ends.append(jax.lax.scan(step, learn.init(key, batch), length=STEPS))
    (end, (terms,)), (other, _) = ends
    return end.params, other.params, end.memory[1], terms


# Weights of 0, of one objective each, and of 1.
COUNT = len(NAMES)
WEIGHTS = np.concatenate([np.zeros([1, COUNT]), np.eye(COUNT), np.ones([1, COUNT])])
WEIGHTS = jnp.asarray(WEIGHTS, jnp.float32)
KEYS = jnp.stack([jax.random.key(2)] * len(WEIGHTS))
traces = []


def share(weights, batch, key):
    traces.append(key)
    return run(weights, batch, key, axis="devices")


over_devices = jax.pmap(
    jax.vmap(share, in_axes=(0, None, 0)), axis_name="devices", in_axes=(None, 0, None)
)


def on_devices(batch, used):
    """What the first device returns, of rows that are on the first `used` of eight.

    Every device has as many rows, those that are left over absent and full of rubbish.
    """
    x = np.full([8, ROWS, DIM], 1e3, np.float32)
    labels, index = np.full([2, 8, ROWS], CLASSES - 1, np.int32)
    weights = np.zeros([8, ROWS], np.float32)
    for target, leaf in zip((x, labels, weights, index), batch, strict=True):
        rows = ROWS // used
        target[:used, :rows] = np.reshape(leaf, [used, rows, *leaf.shape[1:]])
    shards = Batch(*map(jnp.asarray, (x, labels, weights, index)))
    results = over_devices(WEIGHTS, shards, KEYS)
    return jax.tree.map(lambda leaf: np.asarray(leaf[0]), results)


@pytest.fixture(scope="module")
def found():
    return on_devices(example(7), 1)


def candidate(tree, number):
    return jax.tree.map(lambda leaf: leaf[number], tree)


def test_memory_is_arrays():
    params = NET.init(jax.random.key(0), jnp.ones([1, DIM]))
    for objective in table().values():
        leaves = jax.tree.leaves(objective.init(params))
        assert all(isinstance(leaf, jax.Array) for leaf in leaves)


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def assert_close(found, expected, rtol=1e-3, atol=1e-4):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
        found,
        expected,
    )


def test_weights_of_0_take_the_step_of_the_rest_exactly(found):
    params, alone, _, _ = found
    assert_equal(candidate(params, 0), candidate(alone, 0))
    for number, name in enumerate(NAMES, start=1):
        # Each does something, where its weight is 1.
        moved = candidate(params, number)["output"]["kernel"]
        assert not np.allclose(moved, candidate(params, 0)["output"]["kernel"]), name


def test_all_of_them_learn_side_by_side(found):
    params, _, memory, terms = found
    for leaf in jax.tree.leaves((params, memory)):
        assert np.isfinite(leaf).all()
    assert terms.shape == (len(WEIGHTS), STEPS, TERMS)
    # Of `supervised`, beside each of the others.
    assert (terms[:-1, -1, 0] < terms[:-1, 0, 0]).all()


def test_eight_devices_are_one(found):
    assert_close(on_devices(example(7), 8), found)
    assert len(traces) == 1


def test_neither_labels_nor_absent_rows_are_read(found):
    batch = example(7)
    rubbish = batch._replace(
        x=batch.x.at[-2:].set(-1e3), labels=batch.labels.at[-2:].set(0)
    )
    assert_equal(on_devices(rubbish, 1), found)
    labels = jnp.where(batch.labels >= 0, (batch.labels + 1) % CLASSES, batch.labels)
    terms = on_devices(batch._replace(labels=labels), 1)[3]
    # Those of all others are the same, as they begin from the same parameters.
    assert_equal(terms[:, 0, 1:], found[3][:, 0, 1:])
    assert (terms[:, 0, 0] != found[3][:, 0, 0]).all()


@pytest.mark.parametrize("kind", ["numbers", "soft"])
def test_rows_without_a_whole_label_are_unlabelled(kind):
    batch = example(0)
    labels = batch.labels
    if kind == "soft":
        missing = jnp.where(jnp.arange(CLASSES) == 1, jnp.nan, 0.5)
        whole = jax.nn.one_hot(labels, CLASSES)
        labels = jnp.where((labels >= 0)[:, None], whole, missing)
    expected = (np.arange(ROWS) < 6) & (np.asarray(batch.weights) > 0)
    np.testing.assert_array_equal(known(batch._replace(labels=labels)), expected)


def test_a_row_of_which_some_labels_are_missing_keeps_the_others():
    labels = jnp.array([[1.0, jnp.nan], [jnp.nan] * 2, [0.0, 1.0]])
    weights = jnp.ones(3)
    batch = Batch(jnp.zeros([3, 1]), labels, weights, jnp.arange(3))
    np.testing.assert_array_equal(labelled(batch), [True, False, True])
    hidden = hide(batch, jnp.array([2.0, 1, 0]))
    np.testing.assert_array_equal(hidden.labels[0], labels[0])
    assert jnp.isnan(hidden.labels[1:]).all()
    np.testing.assert_array_equal(hidden.weights, [2, 1, 1])


def test_sums_compose_in_any_order():
    batch = example(7)
    params = NET.init(jax.random.key(0), batch.x)
    labelled = objectives.supervised(NET, softmax_cross_entropy)
    every = [
        objectives.manifold_mixup(
            NET.apply,
            lambda params, x, **_: x,
            softmax_cross_entropy,
            alpha=0.5,
            classes=CLASSES,
        ),
        objectives.with_view(labelled, objectives.mixup(0.5, CLASSES)),
        *reversed(table().values()),
        labelled,
    ]
    whole = every[0]
    for objective in every[1:]:
        whole = objective + 0.5 * whole
    memory = whole.init(params)
    sums, after = jax.eval_shape(whole.apply, params, memory, batch, jax.random.key(0))
    assert len(sums) == len(every)
    assert jax.tree.structure(after) == jax.tree.structure(memory)


def test_an_average_that_keeps_nothing_is_the_head_itself():
    params = {"kernel": jnp.array([1.0, 2.0])}
    teacher = objectives.ema_teacher(0.0)
    memory = teacher.init(jax.tree.map(jnp.zeros_like, params))
    assert_equal(teacher.apply(memory, params)[0], params)
    assert_equal(objectives.itself().apply((), params)[0], params)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: objectives.ema_teacher(1.5),
            r"decay of ema_teacher is 1\.5: expected",
        ),
        (lambda: objectives.threshold(95), "confidence of threshold is 95: expected"),
        (lambda: objectives.flex_threshold(-1), "confidence of flex_threshold is -1"),
        (lambda: objectives.free_threshold(2), "decay of free_threshold is 2"),
        (lambda: objectives.soft_weight(2), "decay of soft_weight is 2"),
        (lambda: objectives.relative_threshold(2), "share of relative_threshold is 2"),
        (lambda: objectives.sharpen(0), "temperature is 0: expected one above 0"),
        (
            lambda: objectives.sigmoid_sharpen(0.5, 80),
            "confidence of sigmoid_sharpen is 80: expected",
        ),
        (
            lambda: objectives.align(objectives.soft(), decay=2),
            "decay of align is 2",
        ),
        (
            lambda: objectives.align(objectives.soft(), prior=[1.0]).init(2, 5),
            r"prior of align is of shape \[1\]: expected \[2\]",
        ),
        (
            lambda: objectives.flex_threshold().init(2, 0),
            "flex_threshold got rows 0: expected the number of rows",
        ),
    ],
)
def test_refused_settings(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize("name", CONSISTENCY)
def test_the_table_has_one_signature(name):
    parameters = inspect.signature(CONSISTENCY[name]).parameters
    assert list(parameters)[:5] == ["head", "classes", "views", "rows", "axis"]
    first, *rest = parameters.values()
    assert first.kind is first.POSITIONAL_OR_KEYWORD
    assert all(one.kind is one.KEYWORD_ONLY for one in rest)


def test_terms_of_a_sum_have_keys_that_no_row_has():
    """The first term's key is the sum's; no other is one of its rows' or views'."""
    seen = []

    def apply(params, memory, batch, key):
        seen.append(jax.random.key_data(key).tolist())
        return {"term": Sums(jnp.zeros(()), jnp.ones(()))}, memory

    one = Objective(lambda params: (), apply)
    several = one + (one + one) + 2.0 * one
    key = jax.random.key(3)
    several.apply((), several.init(()), None, key)
    taken = [key, *row_keys(key, jnp.arange(64)), *(side_key(key, i) for i in range(8))]
    taken = [jax.random.key_data(one).tolist() for one in taken]
    assert seen[0] == taken[0]
    assert len({tuple(one) for one in seen}) == 4
    assert not any(one in taken for one in seen[1:])
