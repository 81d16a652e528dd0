"""Several views of each row: what learns from which, in the data and in whole runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxhead as fh
from flaxhead import build
from flaxhead.base import Batch
from flaxhead.config import (
    Config,
    ConsistencyConfig,
    DataConfig,
    HeadConfig,
    SelectionConfig,
    TrainConfig,
)
from flaxhead.data import arrays, fingerprint
from flaxhead.loop import run

ROWS, VIEWS, DIM = 90, 3, 5
LINEAR = HeadConfig("linear", normalization="standardize", dropout=(0.2,))
TRAIN = TrainConfig(batch_size=16, steps=20, evaluations=2, devices=1)
FIXMATCH = ConsistencyConfig("fixmatch", ratio=1)


def fields(views=VIEWS, rows=ROWS, seed=0):
    """Rows whose first view has the class; a third of them has no label."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(rows, views, DIM)).astype(np.float16)
    labels = (x[:, 0, :3] + draw.normal(size=(rows, 3))).argmax(1)
    labels[: rows // 3] = -1
    return {"embeddings": x, "labels": labels}


def first(split, copies=None):
    """View 0 alone, or so many copies of it as views."""
    x = split["embeddings"][:, 0]
    if copies is not None:
        x = np.repeat(x[:, None], copies, axis=1)
    return {**split, "embeddings": x}


def settings(**data):
    return DataConfig(**{"views": True, "unlabelled": "keep", **data})


def shown(split):
    """Rows of a split to choose by, or to report, which all have a label."""
    return {**split, "labels": np.maximum(split["labels"], 0)}


# Data.


def test_view_0_is_what_a_split_is_scored_by():
    train, val, test = fields(), shown(fields(seed=1)), shown(fields(seed=2))
    data = arrays(train, val=val, test=test, config=settings())
    for split, given in ((data.val, val), (data.test, test)):
        np.testing.assert_array_equal(split.x, given["embeddings"][:, 0])
    labelled = train["labels"] >= 0
    assert data.unlabelled is not None
    x = train["embeddings"]
    for split, rows in ((data.train, labelled), (data.unlabelled, ~labelled)):
        np.testing.assert_array_equal(split.views, x[rows])
        np.testing.assert_array_equal(split.x, x[rows, 0])
    assert data.test.views is None
    assert data.notes["views"] == VIEWS
    # Validation rows may be fitted to in the end; without views all are the row.
    plain = arrays(train, val=first(val), test=first(test), config=settings())
    copies = first(val, VIEWS)["embeddings"]
    np.testing.assert_array_equal(plain.val.views, copies)
    np.testing.assert_array_equal(plain.test.x, data.test.x)
    # What is split off keeps its views.
    off = arrays(train, config=settings())
    assert off.val.views is not None
    assert off.val.views.shape == (len(off.val.labels), VIEWS, DIM)
    np.testing.assert_array_equal(off.val.views[:, 0], off.val.x)


def test_a_fingerprint_sees_all_views():
    train = fields()
    before = fingerprint(arrays(train, config=settings()))
    train["embeddings"][:, 2] += 1
    after = fingerprint(arrays(train, config=settings()))
    changed = {name for name in before if before[name] != after[name]}
    splits = ("train", "val", "unlabelled")
    assert changed == {f"{split}.embeddings" for split in splits}


@pytest.mark.parametrize(
    ("train", "others", "sentence"),
    [
        (
            first(fields()),
            {},
            r"train: embeddings have shape \[90, 5\], but data.views",
        ),
        (
            {**fields(), "mask": np.ones((ROWS, VIEWS))},
            {},
            r"train: a mask came with data\.views=True",
        ),
        (
            fields(),
            {"val": shown(fields(views=2))},
            r"val: .* \[90, 2, 5\] and those of train 3 views; expected as many, or",
        ),
        (
            fields(),
            {
                "test": first(
                    {"embeddings": np.ones((9, 3, 4)), "labels": [0, 1, 2] * 3}
                )
            },
            r"test: embeddings have shape \[9, 4\] and those of train \[60, 5\]",
        ),
        (
            {
                **fields(),
                "embeddings": np.where(np.eye(3)[2], np.nan, np.ones((ROWS, 5, 3))),
            },
            {},
            "train: embeddings are NaN or infinite in 90",
        ),
    ],
)
def test_bad_views_are_refused(train, others, sentence):
    with pytest.raises(ValueError, match=sentence):
        arrays(train, **others, config=settings())


def test_views_that_a_run_does_not_expect_are_refused(tmp_path):
    several = arrays(fields(), config=settings())
    with pytest.raises(ValueError, match=r"data\.views is False, but the data"):
        run(Config(data=settings(views=False)), tmp_path / "run", data=several)
    tokens = arrays(fields(), config=settings(views=False))
    with pytest.raises(ValueError, match=r"or data\.views=True if they are views"):
        run(Config(data=settings(views=False)), tmp_path / "run", data=tokens)
    pooled = Config(data=settings(), heads=(HeadConfig("linear", pool="mean"),))
    with pytest.raises(ValueError, match="but the embeddings are one vector a row"):
        run(pooled, tmp_path / "run", data=several)
    assert not (tmp_path / "run").exists()


# Runs.


def outcome(config, split, folder, *, views=True):
    """The result and the head of a run on a split."""
    config = dataclasses.replace(config, data=settings(views=views))
    result = run(config, folder, data=arrays(split, config=config.data))
    head = fh.load(folder / "head")
    assert head.bundle.spec.dim == DIM
    assert not head.bundle.spec.tokens
    assert head.predict(split["embeddings"].reshape(-1, DIM)[:4]).shape == (4,)
    return result, head.params


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_copies_of_one_view_are_no_views_and_others_are_learned_from(tmp_path):
    config = Config(heads=(LINEAR,), consistency=FIXMATCH, train=TRAIN)
    split = fields()
    plain, params = outcome(config, first(split), tmp_path / "plain", views=False)
    copies, same = outcome(config, first(split, VIEWS), tmp_path / "copies")
    several, _ = outcome(config, split, tmp_path / "several")
    assert_equal(params, same)
    for key in ("candidates", "val", "test"):
        assert plain[key] == copies[key]
    assert plain["val"]["nll"] != several["val"]["nll"]
    assert several["test"]["rows"] == plain["test"]["rows"]


def test_in_a_search_solved_heads_see_view_0(tmp_path):
    config = Config(
        heads=(HeadConfig("ridge", alpha=(0.1,)), LINEAR),
        train=TRAIN,
        selection=SelectionConfig(folds=2, nested=2, metric="nll"),
    )
    split = fields()
    copies, several = (
        [
            one["score"]
            for one in outcome(config, each, tmp_path / name)[0]["candidates"]
        ]
        for name, each in (("copies", first(split, VIEWS)), ("several", split))
    )
    assert copies[0] == several[0]
    assert copies[1] != several[1]
    distilled = HeadConfig(members=2, distill=True)
    for head in (HeadConfig(graph=True), distilled, HeadConfig(prune=True)):
        assert not build.sees_views(Config(data=settings()), head)


def test_hidden_labels_are_never_read_and_hidden_views_are():
    def make(views):
        fit = build.make_fit(
            Config(
                data=settings(views=views),
                consistency=ConsistencyConfig("pi", ratio=1),
                train=TRAIN,
            ),
            HeadConfig("linear"),
            task="multiclass",
            classes=3,
            rows=ROWS,
            class_weights=None,
            axis=None,
        )
        return jax.jit(fit)

    split, on, off = fields(), make(True), make(False)
    hidden = split["labels"] < 0
    settled = {"learning_rate": jnp.float32(0.1), "consistency_weight": jnp.float32(1)}

    def params(fit, x, labels):
        each = jnp.asarray(x), jnp.asarray(labels), jnp.ones(ROWS), jnp.arange(ROWS)
        weights = jnp.asarray(~hidden, jnp.float32)
        return fit(Batch(*each), weights, settled, jax.random.key(0))["output"]

    x, labels = split["embeddings"].astype(np.float32), split["labels"]
    before = params(on, x, labels)
    assert_equal(before, params(on, x, np.where(hidden, 2, labels)))
    strong = hidden[:, None, None] & (np.arange(VIEWS)[:, None] > 0)
    after = params(on, np.where(strong, x + 9, x), labels)
    assert np.abs(before["kernel"] - after["kernel"]).max() > 1e-3
    copies = np.repeat(x[:, :1], VIEWS, axis=1)
    assert_equal(params(on, copies, labels), params(off, x[:, 0], labels))


def test_one_line_takes_views():
    split = fields()
    there = split["labels"] >= 0
    x, y = split["embeddings"][there], split["labels"][there]
    ridge = HeadConfig("ridge", alpha=(0.1,))
    head = fh.fit(x, y, heads=ridge, views=True, folds=2)
    alone = fh.fit(x[:, 0], y, heads=ridge, folds=2)
    assert_equal(head.params, alone.params)
