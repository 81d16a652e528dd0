"""Properties of every optimiser and schedule, swept or not."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import sklearn.linear_model

from flaxhead.optim import OPTIMIZERS, SCHEDULES, elastic_net, max_norm, optimizer

STEPS, RATE = 10, 0.3
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


def params():
    draw = np.random.default_rng(0)
    shapes = {"kernel": (4, 3), "bias": (3,), "log_scale": ()}
    return {
        name: jnp.asarray(draw.normal(size=shape), jnp.float32)
        for name, shape in shapes.items()
    }


def gradient(params, step):
    """Of a loss whose minimum moves, so that no two steps have the same."""
    return jax.tree.map(lambda leaf: jnp.sin(3 * leaf + step), params)


def path(tx, *, steps=STEPS, gradient=gradient):
    """The parameters after every step, `[steps, ...]`."""

    def one(carry, step):
        params, state = carry
        updates, state = tx.update(gradient(params, step), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(one, (params(), tx.init(params())), jnp.arange(steps))[1]


def assert_close(found, expected, rtol=1e-5, atol=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
        found,
        expected,
    )


@every_schedule
@pytest.mark.parametrize("steps", [1, 7, 40])
@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_schedules_are_their_formulas(schedule, steps, fraction):
    warmup = int(steps * fraction)
    multiplier = SCHEDULES[schedule](steps, warmup)
    found = [float(multiplier(step)) for step in range(steps + 1)]
    expected = [
        oracles.schedule(schedule, step, steps, warmup) for step in range(steps + 1)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert max(found) == 1
    assert min(found[:steps]) > 0


ONE_LINERS = {
    "sgd": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": optax.adam,
    "adamw": lambda rate: optax.adamw(rate, weight_decay=0.0),
    "lion": lambda rate: optax.lion(rate, weight_decay=0.0),
}


@every_optimizer
@every_schedule
def test_updates_are_those_of_optax(name, schedule):
    multipliers = jnp.array(
        [oracles.schedule(schedule, step, STEPS, 2) for step in range(STEPS)]
    )
    expected = ONE_LINERS[name](lambda step: RATE * multipliers[step])
    tx = optimizer(
        name, learning_rate=RATE, steps=STEPS, schedule=schedule, warmup_fraction=0.2
    )
    assert_close(path(tx), path(expected))


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.8, True)])
def test_momentum_of_sgd(momentum, nesterov):
    tx = optimizer(
        "sgd",
        learning_rate=RATE,
        steps=STEPS,
        momentum=momentum,
        nesterov=nesterov,
        schedule="constant",
    )
    assert_close(path(tx), path(optax.sgd(RATE, momentum, nesterov)))


def test_state_is_what_the_next_step_needs():
    def arrays(name, **settings):
        tx = optimizer(name, learning_rate=RATE, steps=STEPS, **settings)
        leaves = jax.tree.leaves(tx.init({"kernel": jnp.ones([4, 3])}))
        return sum(leaf.ndim == 2 for leaf in leaves)

    assert arrays("sgd", momentum=0.0) == 0
    assert arrays("sgd", weight_decay=0.1, clip_norm=1.0) == 1
    assert arrays("lion", weight_decay=0.1) == 1
    assert arrays("adam", weight_decay=0.1) == arrays("adamw", weight_decay=0.1) == 2


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_coupled_decay_is_the_gradient_of_a_penalty(name):
    def penalised(params, step):
        penalty = jax.grad(lambda kernel: 0.05 / 2 * jnp.sum(kernel**2))
        slope = gradient(params, step)
        return {**slope, "kernel": slope["kernel"] + penalty(params["kernel"])}

    with_decay = optimizer(name, learning_rate=RATE, steps=STEPS, weight_decay=0.05)
    without = optimizer(name, learning_rate=RATE, steps=STEPS)
    assert_close(path(with_decay), path(without, gradient=penalised))
    assert not np.allclose(path(with_decay)["kernel"], path(without)["kernel"])


@pytest.mark.parametrize(
    ("name", "make"), [("adamw", optax.adamw), ("lion", optax.lion)]
)
def test_decoupled_decay_is_that_of_optax(name, make):
    mask = {"kernel": True, "bias": False, "log_scale": False}
    tx = optimizer(
        name, learning_rate=RATE, steps=STEPS, weight_decay=0.05, schedule="constant"
    )
    assert_close(path(tx), path(make(RATE, weight_decay=0.05, mask=mask)))


@every_optimizer
def test_only_kernels_decay(name):
    """Without a gradient, what is not decayed stays bit for bit."""
    tx = optimizer(name, learning_rate=0.1, steps=STEPS, weight_decay=0.5)
    after = path(tx, gradient=lambda params, step: jax.tree.map(jnp.zeros_like, params))
    start = params()
    for leaf in ("bias", "log_scale"):
        np.testing.assert_array_equal(after[leaf][-1], start[leaf])
    before, last = abs(start["kernel"]), abs(after["kernel"][-1])
    assert (last < before).mean() > 0.9


def test_clipping_comes_before_decay():
    tx = optimizer(
        "sgd",
        learning_rate=1.0,
        steps=1,
        momentum=0.0,
        schedule="constant",
        weight_decay=0.5,
        clip_norm=2.0,
    )
    start = {"kernel": jnp.full([1, 1], 10.0), "bias": jnp.zeros(1)}
    slope = {"kernel": jnp.full([1, 1], 3.0), "bias": jnp.full(1, 4.0)}
    updates, _ = tx.update(slope, tx.init(start), start)
    # The norm is 5; the penalty's gradient is 0.5 * 10.
    np.testing.assert_allclose(updates["kernel"], -(3 * 2 / 5 + 5), rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], -(4 * 2 / 5), rtol=1e-6)


def small(params):
    return {name: params[name] for name in ("kernel", "bias")}


def after(tx, update):
    """The parameters after a first step of an update."""
    start = small(params())
    updates, _ = tx.update(update, tx.init(start), start)
    return optax.apply_updates(start, updates)


def test_the_elastic_net_is_its_proximal_step():
    update = small(gradient(params(), 0))
    start, (rate, l1, l2) = small(params()), (0.5, 1.2, 0.4)
    found = after(elastic_net(l1, l2, learning_rate=rate), update)
    before = np.asarray(start["kernel"] + update["kernel"], float)
    # The minimum of |w - before|^2 / 2 + rate * (l1 * |w| + l2 / 2 * w^2), by search.
    grid = np.linspace(-4, 4, 80_001)
    cost = (grid - before[..., None]) ** 2 / 2
    cost = cost + rate * (l1 * abs(grid) + l2 / 2 * grid**2)
    np.testing.assert_allclose(found["kernel"], grid[cost.argmin(-1)], atol=1e-4)
    zero = np.asarray(found["kernel"]) == 0
    np.testing.assert_array_equal(zero, abs(before) <= rate * l1)
    assert 0 < zero.sum() < zero.size
    np.testing.assert_array_equal(found["bias"], start["bias"] + update["bias"])


def test_proximal_steps_find_the_lasso():
    draw = np.random.default_rng(0)
    x, truth = draw.normal(size=(40, 6)), np.array([2.0, -1, 0, 0, 0, 0.3])
    y = x @ truth + 0.1 * draw.normal(size=40)
    for share in (1.0, 0.5):
        expected = sklearn.linear_model.ElasticNet(
            alpha=0.3, l1_ratio=share, fit_intercept=False, tol=1e-8
        ).fit(x, y)

        def loss(kernel):
            return jnp.mean((x @ kernel[:, 0] - y) ** 2) / 2

        @jax.jit
        def descend(l1, l2, loss=loss):
            tx = optax.chain(
                optax.sgd(0.3), elastic_net(l1, l2, learning_rate=lambda step: 0.3)
            )
            kernel = jnp.zeros([6, 1])

            def one(carry, _):
                kernel, state = carry
                updates, state = tx.update(jax.grad(loss)(kernel), state, kernel)
                return (optax.apply_updates(kernel, updates), state), None

            start = kernel, tx.init(kernel)
            return jax.lax.scan(one, start, length=300)[0][0][:, 0]

        found = descend(0.3 * share, 0.3 * (1 - share))
        np.testing.assert_allclose(found, expected.coef_, atol=1e-4)
        np.testing.assert_array_equal(found == 0, expected.coef_ == 0)


def test_the_rate_of_a_proximal_step_is_scheduled():
    tx = elastic_net(1.0, learning_rate=lambda step: 0.1 * (step + 1))
    still = {"kernel": jnp.zeros([1, 1])}
    one, state = {"kernel": jnp.ones([1, 1])}, tx.init(still)
    for expected in (-0.1, -0.2, -0.3):
        updates, state = tx.update(still, state, one)
        np.testing.assert_allclose(updates["kernel"], expected, rtol=1e-6)


def test_max_norm_scales_down_columns():
    update = small(gradient(params(), 0))
    start = small(params())
    new = np.asarray(start["kernel"] + update["kernel"], float)
    norms = np.linalg.norm(new, axis=0)
    limit = np.sort(norms)[1] * 0.9  # One column of three is within.
    found = jax.jit(lambda limit: after(max_norm(limit), update))(limit)
    expected = new * np.minimum(1, limit / norms)
    np.testing.assert_allclose(found["kernel"], expected, rtol=1e-5)
    np.testing.assert_array_equal(found["bias"], start["bias"] + update["bias"])


@pytest.mark.parametrize(
    "tx", [elastic_net(0.0, learning_rate=RATE), max_norm(np.inf)], ids=["l1", "max"]
)
def test_no_penalty_is_the_identity_exactly(tx):
    update = gradient(params(), 0)
    found, _ = tx.update(update, tx.init(params()), params())
    jax.tree.map(np.testing.assert_array_equal, found, update)


def test_what_penalties_refuse():
    with pytest.raises(ValueError, match="l1 of elastic_net is -1: expected 0 or more"):
        elastic_net(-1, learning_rate=RATE)
    with pytest.raises(ValueError, match="l2 of elastic_net is -2"):
        elastic_net(1, -2, learning_rate=RATE)
    with pytest.raises(ValueError, match="limit of max_norm is 0: expected one above"):
        max_norm(0)
    for name, tx in (
        ("elastic_net", elastic_net(1, learning_rate=RATE)),
        ("max_norm", max_norm(1)),
    ):
        with pytest.raises(ValueError, match=f"update of {name} got no params"):
            tx.update(params(), tx.init(params()))


@every_optimizer
def test_swept_values_are_one_program(name):
    def last(rate, decay):
        tx = optimizer(name, learning_rate=rate, steps=STEPS, weight_decay=decay)
        return jax.tree.map(lambda leaf: leaf[-1], path(tx))

    swept, alone = jax.jit(jax.vmap(last)), jax.jit(last)
    for rates, decays in (([0.1, 0.01], [0.0, 0.2]), ([0.3, 0.2], [0.1, 0.0])):
        found = swept(jnp.array(rates), jnp.array(decays))
        for position, (rate, decay) in enumerate(zip(rates, decays, strict=True)):
            one = jax.tree.map(lambda leaf, position=position: leaf[position], found)
            assert_close(one, alone(rate, decay))
    assert swept._cache_size() == 1
    # A decay that is known to be 0 is left out, and is an array's 0.
    assert_close(alone(0.1, 0.0), last(0.1, 0.0))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "rmsprop"}, "optimizer is 'rmsprop': expected one of sgd, adam"),
        ({"schedule": "linear"}, "schedule is 'linear': expected one of constant"),
        ({"steps": 0}, "steps is 0: expected 1 or more"),
        (
            {"warmup_fraction": 1.0},
            r"warmup_fraction is 1\.0: expected one in \[0, 1\)",
        ),
        ({"momentum": 1.0}, r"momentum is 1\.0: expected one in \[0, 1\)"),
        ({"clip_norm": -1.0}, r"clip_norm is -1\.0: expected 0"),
    ],
)
def test_refused_settings(changes, sentence):
    settings = {"name": "adam", "learning_rate": RATE, "steps": STEPS, **changes}
    with pytest.raises(ValueError, match=sentence):
        optimizer(settings.pop("name"), **settings)


def test_everything_but_the_name_is_by_keyword():
    name, *rest = inspect.signature(optimizer).parameters.values()
    assert name.kind is name.POSITIONAL_OR_KEYWORD
    assert all(one.kind is one.KEYWORD_ONLY for one in rest)
