"""One program: any number of devices, chunks and neighbours gives the same numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from scipy.special import log_softmax

from flaxhead import build, heads, parallel
from flaxhead.base import Batch, Head, Info, Learner, State
from flaxhead.config import (
    Config,
    ConsistencyConfig,
    HeadConfig,
    LossConfig,
    OptimizerConfig,
    TrainConfig,
)
from flaxhead.data import arrays, in_memory
from flaxhead.metrics import finish
from flaxhead.objectives import supervised
from flaxhead.sampling import Windows, batch_rows, dealt_block, dealt_rows
from flaxhead.step import learner

CLASSES, DIM, ROWS, VAL_ROWS = 4, 6, 203, 101
SPLITS = ("batch", "candidates")
HEADS = {
    "linear": HeadConfig("linear", normalization="standardize", zero_init=False),
    "mlp": HeadConfig("mlp", width=16, layer_norm=True, dropout=(0.0, 0.5)),
}


def rows(count, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, DIM)).astype(np.float32)
    teacher = np.random.default_rng(1).normal(size=(DIM, CLASSES))
    labels = (x @ teacher + rng.normal(size=(count, CLASSES))).argmax(1)
    weights = rng.uniform(0.5, 2, count).astype(np.float32)
    weights[::17] = 0
    return Batch(x, labels.astype(np.int32), weights, np.arange(count, dtype=np.int32))


def problem(
    head=HEADS["linear"],
    *,
    rates=(0.1, 0.03, 0.3),
    name="sgd",
    batch_size=50,
    steps=20,
    patience=0,
    consistency="none",
    balanced=0,
):
    """As the host loop makes it; 50 rows divide by neither 3 nor 8 devices."""
    config = Config(
        heads=(head,),
        loss=LossConfig(label_smoothing=(0.1,)),
        consistency=ConsistencyConfig(consistency, ratio=1),
        optimizer=OptimizerConfig(name, learning_rate=rates, weight_decay=(0.01,)),
        train=TrainConfig(seeds=(3,)),
    )
    grid = build.grid(config, head, batch_size)
    train = rows(ROWS, 0)
    if consistency != "none":
        train.labels[::3] = -1

    def make_learner(hyperparameters, statistics, axis):
        return build.make_learner(
            config,
            head,
            task="multiclass",
            classes=CLASSES,
            steps=steps,
            class_weights=None,
            hyperparameters=hyperparameters,
            statistics=statistics,
            axis=axis,
            rows=ROWS,
        )

    def make_head(statistics):
        return build.make_head(head, classes=CLASSES, statistics=statistics)

    standardized = head.normalization == "standardize"
    return parallel.Problem(
        make_learner=make_learner,
        make_head=make_head,
        output="softmax",
        train=train,
        val=rows(VAL_ROWS, 2),
        statistics=heads.statistics(train.x, train.weights) if standardized else (),
        hyperparameters=build.swept(grid),
        seeds=np.array([one["seed"] for one in grid], np.uint32),
        order_seed=5,
        batch_size=batch_size,
        steps=steps,
        patience=patience,
        unlabelled=build.unlabelled_rows(config, head, batch_size),
        balanced=balanced,
    )


def custom(make_learner, apply, *, steps, batch_size=50, candidates=3, train=None):
    """A problem of a hand-made learner, to look inside."""
    return problem(steps=steps, batch_size=batch_size)._replace(
        make_learner=make_learner,
        make_head=lambda statistics: Head(lambda key, x: None, apply),
        train=rows(ROWS, 0) if train is None else train,
        statistics=(),
        hyperparameters={"learning_rate": np.ones(candidates, np.float32)},
        seeds=np.arange(candidates, dtype=np.uint32),
    )


def trained(program, chunks):
    progress, done = program.start(), 0
    for steps in chunks:
        progress = program.train(progress, done, steps)
        # As the host loop: on CPU, programs with psum can't queue up.
        jax.block_until_ready(progress.diverged_at)
        done += steps
    return progress


@functools.cache
def outcome(kind, batch_size, devices, split, consistency="none", balanced=0):
    program = parallel.compile_sweep(
        problem(
            HEADS[kind],
            batch_size=batch_size,
            consistency=consistency,
            balanced=balanced,
        ),
        devices=devices,
        split=split,
        with_logits=True,
    )
    progress = trained(program, [20])
    sums, logits = program.evaluate(progress)
    progress = program.keep_best(progress, np.arange(len(logits), dtype=float))
    return program.to_host(progress), sums, logits


def assert_same(got, expected):
    """To the bit, NaN included."""
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(got)]
    pairs = zip(names, jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    for name, one, other in pairs:
        np.testing.assert_array_equal(one, other, err_msg=name)


@pytest.mark.parametrize(
    ("kind", "batch_size", "devices", "split"),
    [
        *(("mlp", 50, 8, split) for split in SPLITS),
        # Several candidates a device.
        ("mlp", 50, 2, "candidates"),
        # 9 rows leave some of 8 devices without any.
        ("linear", 9, 8, "batch"),
    ],
)
def test_any_number_of_devices_gives_the_same_numbers(kind, batch_size, devices, split):
    one, one_sums, one_logits = outcome(kind, batch_size, 1, "batch")
    many, sums, logits = outcome(kind, batch_size, devices, split)
    assert np.isfinite(one.losses).all()
    assert (one.losses[:, -5:].mean(1) < one.losses[:, :5].mean(1)).any()
    np.testing.assert_allclose(many.losses, one.losses, rtol=2e-5)
    leaves = dict(jax.tree.leaves_with_path(one))
    for path, leaf in jax.tree.leaves_with_path(many):
        name = jax.tree_util.keystr(path)
        assert leaf.dtype == leaves[path].dtype, name
        np.testing.assert_allclose(
            leaf, leaves[path], rtol=2e-5, atol=5e-6, err_msg=name
        )
    np.testing.assert_allclose(logits, one_logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sums.count, one_sums.count, rtol=1e-6)
    scores, one_scores = finish(sums), finish(one_sums)
    np.testing.assert_allclose(scores["nll"], one_scores["nll"], rtol=1e-5)
    # A row whose two best logits are equal to rounding may change sides.
    np.testing.assert_allclose(
        scores["accuracy"], one_scores["accuracy"], atol=1.5 / VAL_ROWS
    )


@pytest.mark.parametrize("balanced", [0, CLASSES])
def test_rows_without_a_label_give_the_same_numbers_on_any_number_of_devices(balanced):
    """Thresholds, in memory, are of the rows of all devices."""
    settings = "batch", "freematch", balanced
    one, many = (outcome("linear", 9, n, *settings)[0] for n in (1, 8))
    assert jax.tree.leaves(one.state.memory)
    others = outcome("linear", 9, 1, "batch", *(("freematch",) if balanced else ()))
    assert not np.allclose(one.losses, others[0].losses)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=5e-6)


@functools.cache
def drawn(order_seed, steps, batch_size):
    """By hand: the mean over the rows of each candidate's step."""
    expected = np.zeros((3, steps))
    weights_of = rows(ROWS, 0).weights
    for candidate in range(3):
        _, key = jax.random.split(jax.random.fold_in(jax.random.key(candidate), 2**31))
        for step in range(steps):
            index = np.asarray(
                batch_rows(
                    jax.random.key(order_seed),
                    jnp.uint32(step * batch_size),
                    rows=ROWS,
                    positions=jnp.arange(batch_size),
                )
            )
            keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
                jax.random.fold_in(key, step), index
            )
            noise = jax.vmap(lambda one: jax.random.uniform(one, (CLASSES,)))(keys)
            weights = weights_of[index]
            expected[candidate, step] = np.average(noise[:, 0], weights=weights)
    return expected


@pytest.mark.parametrize(
    ("devices", "split"), [(1, "batch"), *((3, s) for s in SPLITS)]
)
def test_noise_belongs_to_candidate_step_and_row(devices, split):
    """The loss is the noise itself, so the curve shows what was drawn."""

    def apply(params, x, *, key=None, train=False):
        if not train:
            return jnp.broadcast_to(params, (len(x), CLASSES))
        noise = jax.vmap(lambda one: jax.random.uniform(one, (CLASSES,)))(key)
        return params + noise

    def loss(logits, labels, *, where=None, weights=None):
        return jnp.where(where, weights, 0) * logits[:, 0]

    head = Head(lambda key, x: jnp.zeros(CLASSES), apply)

    def make_learner(hyperparameters, statistics, axis):
        return learner(head, supervised(head, loss), optax.sgd(0.0), axis=axis)

    steps, batch_size = 6, 50
    given = custom(make_learner, apply, steps=steps, batch_size=batch_size)
    program = parallel.compile_sweep(given, devices=devices, split=split)
    losses = program.to_host(trained(program, [steps])).losses

    expected = drawn(given.order_seed, steps, batch_size)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert len(np.unique(expected)) == expected.size


def streamed(given, *, blocks=3):
    """The same rows, a few at a time: in blocks of 8."""
    train = given.train._replace(x=in_memory(given.train.x))
    windows = Windows(len(train.labels), 8, blocks)
    return given._replace(train=train, windows=windows)


def test_streamed_rows_train_alike_on_any_devices_and_however_cut_up(monkeypatch):
    # Chunks of 3 steps, but a window has 24 rows, those of 2.
    monkeypatch.setattr(parallel, "_CHUNK_BYTES", 3 * 9 * 4 * (DIM + 3))
    given = streamed(problem(batch_size=9, steps=40))
    assert parallel._chunk_steps(given) == 2
    results = []
    for devices in (1, 8):
        program = parallel.compile_sweep(given, devices=devices)
        results.append(program.to_host(trained(program, [40])))
        program.from_host(results[-1])
        before = len(COMPILED)
        # Into the third epoch, beginning in the middle of a window.
        middle = program.to_host(trained(program, [5, 1, 20]))
        rest = program.train(program.from_host(middle), 26, 14)
        assert len(COMPILED) == before
        assert_same(program.to_host(rest), results[-1])
        program.close()
    one, many = results
    assert (one.losses[:, -5:].mean(1) < one.losses[:, :5].mean(1)).all()
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=5e-6)


def test_validation_rows_on_the_disk_are_scored_alike(monkeypatch):
    given = problem()
    monkeypatch.setattr(parallel, "_CHUNK_BYTES", 40 * 4 * (DIM + 3))
    val = given.val._replace(x=in_memory(given.val.x))
    scored = []
    for rows in (given.val, val):
        program = parallel.compile_sweep(
            given._replace(val=rows), devices=3, with_logits=True
        )
        scored.append(program.evaluate(program.start()))
    assert scored[0][1].shape == scored[1][1].shape
    for a, b in zip(*map(jax.tree.leaves, scored), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize(
    ("devices", "split", "way"),
    [
        (1, "batch", "replicated"),
        *((8, split, "replicated") for split in SPLITS),
        (8, "batch", "sharded"),
        (8, "candidates", "streamed"),
    ],
)
def test_every_row_comes_once_an_epoch_and_held_out_rows_never(devices, split, way):
    everything = {
        "embeddings": np.arange(300, dtype=np.float32)[:, None] * np.ones(DIM),
        "labels": np.arange(300) % 3,
    }
    data = arrays(everything)
    count = len(data.train.labels)
    train = Batch(
        data.train.x,
        data.train.labels,
        data.train.weights,
        np.arange(count, dtype=np.int32),
    )

    def make_learner(hyperparameters, statistics, axis):
        def init(key, batch):
            return State(jnp.int32(0), jnp.zeros(300), (), (), key)

        def step(state, batch):
            # The embeddings themselves say which row this is.
            seen = batch.weights > 0
            added = jnp.zeros(300).at[batch.x[:, 0].astype(int)].add(seen)
            added = jax.lax.psum(added, axis) if axis else added
            state = state._replace(step=state.step + 1, params=state.params + added)
            return state, Info(jnp.float32(0))

        return Learner(init, step)

    def apply(params, x, *, key=None, train=False):
        return jnp.zeros((len(x), CLASSES))

    given = custom(make_learner, apply, steps=24, batch_size=50, train=train)
    given = streamed(given, blocks=30) if way == "streamed" else given
    given = given._replace(sharded=way == "sharded")
    program = parallel.compile_sweep(given, devices=devices, split=split)
    progress, done = program.start(), 0
    for steps in (5, 12, 7):
        progress = program.train(progress, done, steps)
        done += steps
        for seen in program.to_host(progress.state.params):
            assert seen.sum() == done * 50
            assert seen[data.val.ids].sum() == 0
            assert seen[data.test.ids].sum() == 0
            # Whole epochs: every row, and none twice as often as another.
            per_row = seen[data.train.ids]
            # Where rows are sharded, a device has epochs of its own.
            parts = devices if way == "sharded" else 1
            size = dealt_block(count, row_bytes=4 * (DIM + 3), lanes=parts)
            for part in range(parts):
                rows = dealt_rows(count, part, lanes=parts, block=size)
                own = per_row[rows]
                assert own.max() - own.min() <= 1
                assert abs(own.sum() - done * 50 / parts) < 1
    assert len(data.train.ids) + len(data.val.ids) + len(data.test.ids) == 300


COMPILED = []  # an entry a compilation
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: COMPILED.append(name) if "backend_compile" in name else None
)


@functools.cache
def adam(devices, split):
    given = problem(HEADS["mlp"], name="adam", steps=60, patience=3)
    return parallel.compile_sweep(given, devices=devices, split=split, with_logits=True)


@pytest.mark.parametrize(
    ("devices", "split"), [(1, "batch"), *((8, s) for s in SPLITS)]
)
def test_the_second_call_compiles_nothing(devices, split):
    program = adam(devices, split)

    def once(chunk, scores):
        progress = program.start()
        progress = program.train(progress, 0, chunk)
        program.evaluate(progress)
        progress = program.keep_best(progress, np.array(scores))
        host = program.to_host(progress)
        return program.train(program.from_host(host), chunk, 3)

    before = len(COMPILED)
    jax.jit(lambda x: x * 7 + devices)(np.ones(3))
    assert len(COMPILED) > before, "the counter doesn't count"
    once(5, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    before = len(COMPILED)
    once(7, [3.0, 0.5, -np.inf, 2.0, 1.0, 7.0])
    once(1, [0.0] * 6)
    assert len(COMPILED) == before


@pytest.mark.parametrize(
    ("devices", "split"), [(1, "batch"), *((8, s) for s in SPLITS)]
)
def test_chunks_never_show_in_the_bits(devices, split):
    program = adam(devices, split)
    whole = program.to_host(trained(program, [60]))
    assert np.isfinite(whole.losses).all()
    for chunks in ([1] * 60, [7, 31, 22]):
        assert_same(program.to_host(trained(program, chunks)), whole)
    # By way of the host, as a resumed run goes.
    half = program.to_host(trained(program, [23]))
    resumed = program.train(program.from_host(half), 23, 37)
    assert_same(program.to_host(resumed), whole)


@pytest.mark.parametrize(
    ("devices", "split", "bad"),
    [(1, "batch", 1e30), (8, "batch", np.inf), (8, "candidates", 1e30)],
)
def test_a_diverging_candidate_leaves_the_others_alone(devices, split, bad):
    given = problem(HEADS["mlp"])
    number = 2  # candidates are rates x dropouts: this one is 0.03 with dropout 0
    rates = given.hyperparameters["learning_rate"].copy()
    rates[number] = bad
    spoilt = given._replace(
        hyperparameters={**given.hyperparameters, "learning_rate": rates}
    )
    program = parallel.compile_sweep(spoilt, devices=devices, split=split)
    progress = program.keep_best(
        trained(program, [20]), np.arange(len(rates), dtype=float)
    )
    wild = program.to_host(progress)
    calm = outcome("mlp", 50, devices, split)[0]
    assert (calm.diverged_at == -1).all()
    others = np.arange(len(rates)) != number
    assert (wild.diverged_at[others] == -1).all()

    def of_others(tree):
        return jax.tree.map(lambda leaf: leaf[others], tree)

    assert_same(of_others(wild), of_others(calm))
    # There are fewer steps than slots, so a slot is a step.
    first_bad = np.flatnonzero(~np.isfinite(wild.losses[number]))[0]
    assert wild.diverged_at[number] == first_bad > 0
    assert wild.best_score[number] == -np.inf


@pytest.mark.parametrize(
    ("devices", "split"), [(1, "batch"), *((8, s) for s in SPLITS)]
)
def test_the_way_to_the_host_and_back_is_the_identity(devices, split):
    program = adam(devices, split)
    host = program.to_host(trained(program, [5]))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(host))
    assert {len(leaf) for leaf in jax.tree.leaves(host)} == {6}
    assert_same(program.to_host(program.from_host(host)), host)


@pytest.mark.parametrize(("devices", "split"), [(1, "batch"), (8, "batch")])
def test_validation_sums_are_numpys(devices, split, monkeypatch):
    # Several chunks a device, and 101 rows that divide by none of this.
    monkeypatch.setattr(parallel, "_LOGITS_AT_ONCE", 5 * CLASSES * 3)
    given = problem(rates=(0.1, 0.03, 0.3))
    program = parallel.compile_sweep(
        given, devices=devices, split=split, with_logits=True
    )
    progress = trained(program, [20])
    sums, logits = program.evaluate(progress)
    params = program.to_host(progress.state.params)
    scores, val = finish(sums), given.val
    mean, std = oracles.weighted_statistics(given.train.x, given.train.weights)
    x = (val.x - mean) / std
    assert logits.shape == (3, VAL_ROWS, CLASSES)
    (kernel,) = (leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 3)
    (bias,) = (leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2)
    for i in range(3):
        expected = x @ kernel[i].astype(float) + bias[i]
        np.testing.assert_allclose(logits[i], expected, rtol=1e-4, atol=1e-4)
        right = logits[i].argmax(1) == val.labels
        log_p = log_softmax(logits[i].astype(float), axis=1)
        nll = -log_p[np.arange(VAL_ROWS), val.labels]
        np.testing.assert_allclose(
            scores["accuracy"][i], np.average(right, weights=val.weights), rtol=1e-6
        )
        np.testing.assert_allclose(
            scores["nll"][i], np.average(nll, weights=val.weights), rtol=1e-5
        )
    np.testing.assert_allclose(sums.count, val.weights.sum(dtype=float), rtol=1e-6)


def test_the_compiled_programs_hold_no_data(monkeypatch):
    """Embeddings are arguments: as constants they would be compiled in, every time."""
    sizes = {}
    compile_one = parallel._Placement.compile

    def spy(self, function, arguments, **options):
        traced = jax.make_jaxpr(function)(*arguments)
        sizes[function.__name__] = sum(np.size(one) for one in traced.consts)
        return compile_one(self, function, arguments, **options)

    monkeypatch.setattr(parallel._Placement, "compile", spy)
    parallel.compile_sweep(problem(HEADS["mlp"]), devices=1)
    assert set(sizes) == {"start", "train", "evaluate", "keep"}
    assert max(sizes.values()) <= 64, sizes


def test_keep_best_keeps_the_first_of_the_best_and_patience_ends_it():
    program = parallel.compile_sweep(problem(patience=2), devices=1)
    # One score an evaluation and candidate; the best is marked by hand.
    scores = np.array(
        [[0.5, 0.1, 0.9], [0.5, 0.2, 0.8], [0.6, 0.3, 0.8], [0.4, 0.4, 1.0]]
    )
    progress, params = program.start(), []
    for i, each in enumerate(scores):
        progress = program.train(progress, i, 1)
        params.append(program.to_host(progress.state.params))
        progress = program.keep_best(progress, each)
    host = program.to_host(progress)
    # The third stops after two evaluations without a better one: its 1.0 is too late.
    assert host.best_step.tolist() == [3, 4, 1]
    np.testing.assert_array_equal(host.best_score, np.float32([0.6, 0.4, 0.9]))
    for candidate, at in enumerate([2, 3, 0]):
        assert_same(
            jax.tree.map(lambda leaf, i=candidate: leaf[i], host.best_params),
            jax.tree.map(lambda leaf, i=candidate: leaf[i], params[at]),
        )


def test_too_many_devices_are_refused():
    with pytest.raises(
        ValueError, match=r"train\.devices is 9, but this machine has 8"
    ):
        parallel.compile_sweep(problem(), devices=9)


def test_loss_slots_share_steps_out_evenly():
    for steps in (1, 255, 256, 257, 1000):
        slots = parallel.loss_slots(steps)
        counts = np.bincount(slots)
        assert len(slots) == steps
        assert len(counts) == min(steps, 256)
        assert counts.max() - counts.min() <= 1


def test_a_seed_of_ones_own_and_a_shared_one_draw_the_same_noise():
    """Of one seed the noise is drawn once for all, of several for each candidate."""
    shared = problem(HEADS["mlp"])
    others = shared.seeds.copy()
    others[-1] += 1
    program = parallel.compile_sweep(shared._replace(seeds=others), devices=1)
    left = outcome("mlp", 50, 1, "batch")[0]
    right = program.to_host(trained(program, [20]))
    for one, other in zip(
        jax.tree.leaves(left.state), jax.tree.leaves(right.state), strict=True
    ):
        np.testing.assert_allclose(one[:-1], other[:-1], rtol=1e-4, atol=1e-6)
    assert not np.allclose(left.losses[-1], right.losses[-1], rtol=1e-3)
