"""A head's folder: what is written is read back, and nothing damaged is."""

import json

import jax
import numpy as np
import oracles
import pytest
from safetensors.numpy import load_file

from flaxhead import bundle
from flaxhead.base import Tokens
from flaxhead.build import make_head
from flaxhead.config import DataConfig, HeadConfig
from flaxhead.data.hashes import seal

NAMES = ("ant", "bee", "Käfer")
DIM = 5
CONFIGS = {
    "linear": HeadConfig("linear", zero_init=False),
    "standardized mlp": HeadConfig(
        "mlp",
        width=4,
        depth=2,
        layer_norm=True,
        normalization="standardize",
        zero_init=False,
    ),
    "normalized cosine": HeadConfig("cosine", normalization="l2"),
    "tokens": HeadConfig("linear", pool="mean", zero_init=False),
}


def features(config, rows=40, seed=0):
    rng = np.random.default_rng(seed)
    if config.pool == "none":
        return 2 + rng.normal(size=(rows, DIM)).astype(np.float32)
    mask = rng.random((rows, 3)) < 0.6
    mask[:, 1] = True
    return Tokens(rng.normal(size=(rows, 3, DIM)).astype(np.float32), mask)


def made(config, *, task="multiclass", output="softmax"):
    x = features(config)
    flat = np.asarray(x.values[x.mask] if isinstance(x, Tokens) else x)
    statistics = (flat.mean(0), flat.std(0))
    head = make_head(config, classes=3, statistics=statistics)
    return bundle.Bundle(
        config=config,
        params=jax.tree.map(np.asarray, head.init(jax.random.key(0), x)),
        statistics=statistics,
        class_names=NAMES,
        task=task,
        output=output,
        spec=bundle.feature_spec(x, config=config, backbone="DINO"),
        data=DataConfig("npz:somewhere", seed=3),
        metrics={"val": {"accuracy": 0.5}},
    )


@pytest.fixture
def saved(tmp_path):
    one = made(CONFIGS["linear"])
    bundle.save(tmp_path / "head", one)
    return tmp_path / "head"


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_saved_is_loaded(tmp_path, name):
    config = CONFIGS[name]
    one, x = made(config), features(config, seed=1)
    bundle.save(tmp_path / "head", one)
    loaded = bundle.load(tmp_path / "head")
    before = bundle.functions(one)
    assert loaded.class_names == NAMES
    for field in ("config", "class_names", "task", "output", "spec", "data", "metrics"):
        assert getattr(loaded.bundle, field) == getattr(one, field)
    pairs = (
        (loaded.bundle.params, one.params),
        (loaded.bundle.statistics, one.statistics),
    )
    for got, expected in pairs:
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(a, b)
    logits = np.asarray(loaded.logits(x))
    np.testing.assert_array_equal(logits, before.logits(x))
    np.testing.assert_allclose(
        loaded.probabilities(x),
        np.exp(logits) / np.exp(logits).sum(1, keepdims=True),
        rtol=1e-5,
    )
    np.testing.assert_array_equal(loaded.predict(x), logits.argmax(1))
    assert loaded.predict(x).dtype == np.int32
    np.testing.assert_array_equal(loaded.head.apply(loaded.params, x), logits)


def test_a_linear_head_is_a_product_of_the_stored_arrays(saved):
    stored = load_file(saved / "params.safetensors")
    (kernel,) = (a for n, a in stored.items() if n.startswith("params") and a.ndim == 2)
    (bias,) = (a for n, a in stored.items() if n.startswith("params") and a.ndim == 1)
    x = features(CONFIGS["linear"], seed=1)
    np.testing.assert_allclose(
        bundle.load(saved).logits(x), x @ kernel + bias, rtol=1e-5, atol=1e-5
    )


def test_tokens_are_pooled_without_their_padding(tmp_path):
    one = made(CONFIGS["tokens"])
    bundle.save(tmp_path / "head", one)
    x = features(CONFIGS["tokens"], seed=1)
    pooled = oracles.pooled(x.values, x.mask, "mean").astype(np.float32)
    plain = make_head(HeadConfig("linear"), classes=3, statistics=())
    np.testing.assert_allclose(
        bundle.load(tmp_path / "head").logits(x),
        plain.apply(one.params, pooled),
        rtol=1e-5,
        atol=1e-5,
    )
    with pytest.raises(ValueError, match=r"flaxhead\.Tokens\(x, mask\)"):
        bundle.load(tmp_path / "head").predict(x.values)


def test_several_labels_a_row_are_predicted_each(tmp_path):
    one = made(CONFIGS["linear"], task="multilabel", output="sigmoid")
    bundle.save(tmp_path / "head", one)
    loaded, x = bundle.load(tmp_path / "head"), features(one.config, seed=1)
    logits = np.asarray(loaded.logits(x))
    np.testing.assert_array_equal(loaded.predict(x), logits > 0)
    np.testing.assert_allclose(
        loaded.probabilities(x), 1 / (1 + np.exp(-logits)), rtol=1e-5
    )


def test_nothing_is_pickled(saved):
    assert sorted(path.name for path in saved.iterdir()) == [
        "head.json",
        "params.safetensors",
    ]
    described = json.loads((saved / "head.json").read_text())
    assert described["versions"].keys() == {"flaxhead", "jax", "flax"}
    assert load_file(saved / "params.safetensors")


def test_a_folder_is_replaced_whole(saved):
    other = made(CONFIGS["standardized mlp"])
    bundle.save(saved, other)
    assert bundle.load(saved).bundle.config == other.config
    assert [path.name for path in saved.parent.iterdir()] == ["head"]


def damage_arrays(folder):
    path = folder / "params.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut_arrays(folder):
    path = folder / "params.safetensors"
    path.write_bytes(path.read_bytes()[:-3])


def damage_name(folder):
    path = folder / "head.json"
    path.write_text(path.read_text().replace(f'"{NAMES[0]}"', f'"{NAMES[0]}!"'))


def edit(**changes):
    def change(folder):
        path = folder / "head.json"
        described = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps(seal(described)))

    return change


def drop(name):
    def change(folder):
        path = folder / "head.json"
        described = json.loads(path.read_text())
        del described[name]
        path.write_text(json.dumps(seal(described)))

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (damage_arrays, ["params.safetensors is damaged", "checksum"]),
        (damage_name, ["head.json is damaged", "checksum"]),
        (cut_arrays, ["params.safetensors is damaged", "checksum"]),
        (
            lambda f: (f / "params.safetensors").unlink(),
            ["params.safetensors is missing"],
        ),
        (lambda f: (f / "head.json").unlink(), ["head.json is missing", "RUN/head"]),
        (lambda f: (f / "head.json").write_text("{"), ["head.json can't be read"]),
        (lambda f: (f / "head.json").write_bytes(b"\xff"), ["head.json can't be read"]),
        (lambda f: (f / "head.json").write_text("[]"), ["head.json"]),
        (lambda f: (f / "head.json").write_text("3"), ["head.json"]),
        (edit(format=2), ["has format 2", "reads format 1"]),
        (edit(head=[]), ["head.json"]),
        (edit(head={"name": "linear", "widht": 3}), ["head.json", "widht"]),
        (edit(features={"dim": 3}), ["head.json"]),
        (edit(features=3), ["head.json"]),
        (edit(data=None), ["head.json"]),
        (edit(class_names=None), ["head.json"]),
        (edit(sha256={}), ["head.json"]),
        *((drop(name), [name]) for name in ("format", "head", "output", "metrics")),
    ],
)
def test_a_damaged_folder_is_one_sentence(saved, change, words):
    change(saved)
    with pytest.raises(ValueError, match=r".+") as caught:
        bundle.load(saved)
    message = str(caught.value)
    assert str(saved) in message
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: .*head\.json is missing"):
        bundle.load(tmp_path / "nowhere")


def test_rows_that_are_not_finite_are_refused(tmp_path):
    bundle.save(tmp_path / "head", made(CONFIGS["linear"]))
    x = np.ones((4, DIM), np.float32)
    x[2, 1] = np.nan
    head = bundle.load(tmp_path / "head")
    with pytest.raises(ValueError, match="in 1 of 4 rows, of which row 2 is the first"):
        head.predict(x)
    with pytest.raises(ValueError, match="the embeddings are a str; expected an array"):
        head.predict("abc")


@pytest.mark.parametrize("name", ["linear", "tokens"])
def test_other_features_are_refused_with_those_expected(tmp_path, name):
    bundle.save(tmp_path / "head", made(CONFIGS[name]))
    head = bundle.load(tmp_path / "head")
    right = features(CONFIGS[name])
    tokens = isinstance(right, Tokens)
    wide = np.ones((4, 3, DIM + 1) if tokens else (4, DIM + 1), np.float32)
    other = np.ones((4, DIM) if tokens else (4, 3, DIM), np.float32)
    for wrong in (wide, other, Tokens(wide, wide[..., 0] > 0) if tokens else wide):
        for function in (head.logits, head.probabilities, head.predict):
            with pytest.raises(ValueError, match="the head expects") as caught:
                function(wrong)
            message = str(caught.value)
            expected = "[rows, tokens, 5]" if tokens else "[rows, 5]"
            assert expected in message
            assert "backbone DINO" in message
            shape = np.shape(wrong.values if isinstance(wrong, Tokens) else wrong)
            assert f"[rows, {', '.join(map(str, shape[1:]))}]" in message


COMPILED = []  # an entry a compilation
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: COMPILED.append(name) if "backend_compile" in name else None
)


@pytest.mark.parametrize("name", ["linear", "tokens"])
def test_any_number_of_rows_is_one_program(name):
    config = CONFIGS[name]
    head = bundle.functions(made(config))
    x = features(config, rows=2500)
    whole = np.asarray(head.logits(x))
    before = len(COMPILED)
    for rows in (1, 2, 1023, 1024, 1025, 2500):
        some = jax.tree.map(lambda leaf, rows=rows: leaf[:rows], x)
        got = bundle.in_batches(head.logits, some)
        assert got.shape == (rows, 3)
        np.testing.assert_allclose(got, whole[:rows], rtol=1e-5, atol=1e-5)
    assert len(COMPILED) == before + 1


def test_batches_shrink_where_rows_are_large(monkeypatch):
    monkeypatch.setattr(bundle, "_BATCH_BYTES", 7 * 4 * DIM)
    seen = []

    def shape(x):
        seen.append(x.shape)
        return x[:, 0]

    x = features(CONFIGS["linear"], rows=20)
    np.testing.assert_array_equal(bundle.in_batches(shape, x), x[:, 0])
    assert seen == [(7, DIM)]


def test_drift_is_told_in_a_sentence():
    x = features(CONFIGS["linear"], rows=500)
    spec = made(CONFIGS["linear"]).spec
    assert spec.norm_mean == pytest.approx(
        np.linalg.norm(features(CONFIGS["linear"]), axis=1).mean(), rel=1e-6
    )
    assert bundle.drift(x, spec) is None
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    warning = bundle.drift(unit, spec._replace(norm_std=0.3))
    assert "a mean norm of 1," in warning
    assert "(DINO)" in warning
    assert bundle.drift(100 * x, spec) is not None


def test_drift_looks_at_real_tokens_only():
    config = CONFIGS["tokens"]
    spec, x = made(config).spec, features(config, seed=1)
    padded = np.where(x.mask[..., None], x.values, 1e6)
    assert bundle.drift(Tokens(padded, x.mask), spec) is None
    assert bundle.drift(Tokens(100 * x.values, x.mask), spec) is not None
