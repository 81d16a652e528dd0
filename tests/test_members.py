"""Members of every kind, pruned labels and co-teaching: as settings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxhead
from flaxhead import build
from flaxhead.base import Batch
from flaxhead.config import (
    Config,
    ConsistencyConfig,
    HeadConfig,
    LossConfig,
    SelectionConfig,
    TrainConfig,
)
from flaxhead.ensembles import cosine_cycles
from flaxhead.loop import run
from flaxhead.optim import optimizer

ROWS, DIM, CLASSES = 24, 5, 3
TRAINED = ("linear", "mlp", "cosine")
BASE = HeadConfig(zero_init=False, width=4, C=(1.0,), alpha=(1.0,), k=(3,))
FIXMATCH = {"consistency": ConsistencyConfig("fixmatch", ratio=1)}
BALANCED = {"train": TrainConfig(sampling="class_balanced")}


def config(head, **other):
    made = Config(heads=(dataclasses.replace(BASE, **head),), **other)
    small = dataclasses.replace(made.train, batch_size=8, steps=4, devices=1)
    return dataclasses.replace(made, train=small)


def table():
    x = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
    labels = x[:, :CLASSES].argmax(1)
    labels[-4:] = -1
    return Batch(*map(jnp.asarray, (x, labels, np.ones(ROWS), np.arange(ROWS))))


def fit_of(asked):
    """The fit and the head of settings, and a candidate's hyperparameters."""
    (head,) = asked.heads
    fit = build.make_fit(
        asked,
        head,
        task="multiclass",
        classes=CLASSES,
        rows=ROWS,
        class_weights=None,
        axis=None,
    )
    (first, *_) = build.grid(asked, head, 8)
    swept = first if head.name in build.SOLVED else build.swept([first])
    hyperparameters = {
        name: jnp.float32(np.squeeze(one)) for name, one in swept.items()
    }
    return fit, build.bare_head(head, classes=CLASSES), hyperparameters


SEEDS, BAGGING, SNAPSHOTS, SOUP, BATCH = KINDS = [
    {"members": 2, "ensemble": kind} for kind in build.ENSEMBLES
]
TOGETHER = [
    {"name": "linear", **SEEDS, "distill": True, "prune": True},
    {"name": "linear", **BAGGING, "graph": True},
    {"name": "linear", **SNAPSHOTS, "co_teaching": (0.2,)},
    {"name": "cosine", **SOUP, "prune": True},
    {"name": "mlp", **SNAPSHOTS, "distill": True, "prune": True},
    {"name": "mlp", **SOUP, "graph": True},
    {"name": "mlp", **BATCH, "distill": True},
    {"name": "mlp", **BATCH, "graph": True, "prune": True},
    {"name": "mlp", "prune": True, "co_teaching": (0.2,)},
    {"name": "knn", "prune": True},
    *(
        {"name": name, **BAGGING, "prune": True, "distill": name == "logistic"}
        for name in build.SOLVED
        if name != "knn"
    ),
]


@pytest.mark.parametrize(
    "head", TOGETHER, ids=lambda head: "-".join(map(str, head.values()))
)
def test_what_goes_together_is_a_head_that_predicts(head):
    """Traced only: what the parts hold is tested where they are defined."""
    trained = head["name"] in TRAINED
    asked = config(head, **(FIXMATCH | BALANCED if trained else {}))
    build.check(asked)
    fit, made, hyperparameters = fit_of(asked)

    def predict(data, weights, key):
        return made.apply(fit(data, weights, hyperparameters, key), data.x)

    data = table()
    logits = jax.eval_shape(predict, data, data.weights, jax.random.key(0))
    assert logits.shape == (ROWS, CLASSES)


@pytest.mark.parametrize(
    ("head", "other", "sentence"),
    [
        (
            {"ensemble": "bags"},
            {},
            "heads.0.ensemble is 'bags'; expected one of",
        ),
        (
            {"ensemble": "soup"},
            {},
            "heads.0.ensemble is 'soup', but there is one member",
        ),
        ({"name": "knn", **BAGGING}, {}, r"heads.0.members is 2, but 'knn' is solved"),
        (
            {"name": "lda", **SOUP},
            {},
            r"heads.0.members is 2, but 'lda' .*'bagging'",
        ),
        (BATCH, {}, "'batch_ensemble', which is of mlp heads"),
        ({"name": "mlp", **BATCH, "layer_norm": True}, {}, "which is of mlp heads"),
        ({"name": "mlp", **BATCH, "pool": "query"}, {}, "which is of mlp heads"),
        ({**SOUP, "distill": True}, {}, "distill is True, but a soup is one head"),
        ({**SNAPSHOTS, "members": 5}, {}, "heads.0.members is 5, .* more than 4 steps"),
        ({"graph": True, "pool": "query"}, {}, "heads.0.graph is True, and joins rows"),
        ({"co_teaching": (1.0,)}, {}, r"heads.0.co_teaching is \(1.0,\); expected"),
        (
            {"name": "lda", "co_teaching": (0.1,)},
            {},
            "sees no batches; use one of linear",
        ),
        (
            {"co_teaching": (0.1,), "zero_init": True},
            {},
            "set heads.0.zero_init to False",
        ),
        (
            {},
            {"train": TrainConfig(sampling="even")},
            "train.sampling is 'even'; expec",
        ),
        ({"name": "lda"}, BALANCED, "class_balanced', but heads are solved"),
        (
            {},
            {**BALANCED, "loss": LossConfig(class_weights="balanced")},
            "class_balanced' and loss.class_weights is set, and either is there",
        ),
        (
            {"name": "ridge", "prune": True},
            {"selection": SelectionConfig(fold_by="leave_one_out")},
            "leave_one_out', which is exact for one ridge head alone",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(head, other, sentence):
    with pytest.raises(ValueError, match=sentence):
        build.check(config(head, **other))


@pytest.mark.parametrize(
    ("head", "other", "sentence"),
    [
        (
            {"prune": True},
            {},
            "heads.0.prune is set, which is for classes that exclude",
        ),
        (
            {"co_teaching": (0.1,)},
            {},
            "heads.0.co_teaching is set, which is for classes",
        ),
        ({}, BALANCED, "class_balanced', which is for one label a row"),
    ],
)
def test_several_labels_a_row_are_refused(head, other, sentence):
    with pytest.raises(ValueError, match=sentence):
        build.output(config(head, **other), "multilabel")


def test_shares_of_several_classes_are_not_pruned(tmp_path):
    x, labels = np.eye(12, dtype=np.float32), np.tile([0.25, 0.75], (12, 1))
    data = flaxhead.arrays({"embeddings": x, "labels": labels.astype(np.float32)})
    with pytest.raises(ValueError, match=r"heads.0.prune is True, .* shares"):
        run(config({"prune": True}), tmp_path / "run", data=data)
    assert not (tmp_path / "run").exists()


def test_cycles_of_a_schedule_are_those_of_snapshots():
    tx = optimizer("sgd", learning_rate=0.5, steps=10, momentum=0.0, cycles=3)
    rate = cosine_cycles(0.5, steps=10, count=3)
    ones = {"bias": jnp.ones(())}
    state = tx.init(ones)
    for step in range(10):
        update, state = tx.update(ones, state, ones)
        np.testing.assert_allclose(update["bias"], -rate(step), rtol=1e-6)
    with pytest.raises(ValueError, match="cycles is 11: expected from 1 to steps, 10"):
        optimizer("sgd", learning_rate=0.5, steps=10, cycles=11)


@pytest.fixture(scope="module")
def noisy():
    """Three groups far apart, a fifth of whose labels are wrong."""
    rng = np.random.default_rng(1)
    right = np.arange(120) % 3
    wrong = np.where(np.arange(120) % 5, right, (right + 1) % 3)
    x = np.eye(3)[right] * 6 + rng.normal(size=(120, 3))
    rows = {"embeddings": x.astype(np.float32), "labels": wrong}
    return flaxhead.arrays(rows, val={**rows, "labels": right})


LINEAR = {"name": "linear", "co_teaching": (0.0, 0.25)}


@pytest.mark.parametrize("head", [LINEAR, {"name": "ridge", "prune": True}])
def test_wrong_labels_are_not_learned(tmp_path, noisy, head):
    """In whole runs, whose heads are loaded again."""
    asked = config(head, selection=SelectionConfig("nll", refit=False))
    more = dataclasses.replace(asked.train, steps=150, batch_size=40, evaluations=1)
    optimizer = flaxhead.OptimizerConfig(learning_rate=(0.1,))
    asked = dataclasses.replace(asked, train=more, optimizer=optimizer)
    plain = {name: HeadConfig().__dict__[name] for name in ("prune", "co_teaching")}
    (one,) = asked.heads
    without = dataclasses.replace(asked, heads=(dataclasses.replace(one, **plain),))
    found = [
        run(settings, tmp_path / str(number), data=noisy)
        for number, settings in enumerate((asked, without))
    ]
    nll = [result["val"]["nll"] for result in found]
    assert nll[0] < 0.7 * nll[1]
    loaded = flaxhead.load(tmp_path / "0" / "head")
    won = found[0]["selected"]["hyperparameters"]
    assert loaded.bundle.config.co_teaching == ((0.25,) if head is LINEAR else ())
    assert won.get("co_teaching") == (0.25 if head is LINEAR else None)
    accuracy = np.mean(np.asarray(loaded.predict(noisy.val.x)) == noisy.val.labels)
    assert accuracy == pytest.approx(found[0]["val"]["accuracy"])
