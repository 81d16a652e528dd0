"""Every format gives back what was written, and every form of labels its classes."""

import ast
import dataclasses
import io
import json
import pathlib
import re
import sys

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import sklearn.datasets

import flaxhead.data
from flaxhead.config import DataConfig
from flaxhead.data import (
    Raw,
    arrays,
    checks,
    fingerprint,
    load,
    load_split,
    open_inputs,
)
from flaxhead.data.labels import SOFT_TOLERANCE

NAMES = ["ant", "bee", "cat"]
SIZES = {"train": 30, "val": 9, "test": 12}


def make(rows, *, dtype=np.float16, tokens=None, seed=0):
    """Fields of one split, every class there."""
    rng = np.random.default_rng(seed)
    shape = (rows, 5) if tokens is None else (rows, tokens, 5)
    fields = {
        "embeddings": rng.normal(size=shape).astype(dtype),
        "labels": np.arange(rows) % 3,
        "weights": rng.uniform(0.5, 2, rows).astype(np.float32),
        "ids": np.arange(rows) + 1000 * seed,
        "class_names": np.array(NAMES),
    }
    if tokens is not None:
        fields["mask"] = rng.uniform(size=(rows, tokens)) < 0.5
        fields["mask"][:, 0] = True
    return fields


def make_splits(**options):
    return {
        split: make(rows, seed=seed, **options)
        for seed, (split, rows) in enumerate(SIZES.items())
    }


def write_npz(folder, split, fields):
    np.savez(folder / f"{split}.npz", **fields)


def write_npy(folder, split, fields):
    for name, values in fields.items():
        np.save(folder / f"{split}_{name}.npy", values)


def write_safetensors(folder, split, fields):
    tensors = {k: np.ascontiguousarray(v) for k, v in fields.items()}
    names = tensors.pop("class_names", None)
    metadata = {} if names is None else {"class_names": json.dumps(names.tolist())}
    safetensors.numpy.save_file(tensors, folder / f"{split}.safetensors", metadata)


def write_parquet(folder, split, fields):
    fields = dict(fields)
    names = fields.pop("class_names", None)
    table = pa.table(
        {
            name: pa.array(values if values.ndim == 1 else nested(values))
            for name, values in fields.items()
        }
    )
    if names is not None:
        table = table.replace_schema_metadata(
            {"class_names": json.dumps(names.tolist())}
        )
    pq.write_table(table, folder / f"{split}.parquet")


def nested(values):
    """An Arrow array of fixed-size lists (of lists)."""
    if values.ndim == 1:
        return pa.array(values)
    inner = nested(values.reshape(-1, *values.shape[2:]))
    return pa.FixedSizeListArray.from_arrays(inner, values.shape[1])


WRITERS = {
    "npz": write_npz,
    "npy": write_npy,
    "safetensors": write_safetensors,
    "parquet": write_parquet,
}
with_text = pytest.mark.parametrize("kind", ["npz", "npy", "parquet"])
each_format = pytest.mark.parametrize("kind", WRITERS)


def save(kind, folder, splits):
    for split, fields in splits.items():
        WRITERS[kind](folder, split, fields)
    return DataConfig(source=f"{kind}:{folder}")


def equal(data, fields, labels=None):
    """Asserts that a split is what was written."""
    assert data.x.dtype == fields["embeddings"].dtype
    np.testing.assert_array_equal(
        data.x.astype(np.float32), fields["embeddings"].astype(np.float32)
    )
    np.testing.assert_array_equal(
        data.labels, fields["labels"] if labels is None else labels
    )
    np.testing.assert_array_equal(data.weights, fields["weights"])
    np.testing.assert_array_equal(data.ids, fields["ids"])
    assert data.weights.dtype == np.float32
    if "mask" in fields:
        np.testing.assert_array_equal(data.mask, fields["mask"])
        assert data.mask.dtype == bool
    else:
        assert data.mask is None


@each_format
@pytest.mark.parametrize("tokens", [None, 4])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_format_gives_back_what_was_written(kind, tokens, dtype, tmp_path):
    splits = make_splits(dtype=dtype, tokens=tokens)
    data = load(save(kind, tmp_path, splits))
    for split, fields in splits.items():
        equal(getattr(data, split), fields)
    assert data.train.labels.dtype == np.int32
    assert (data.class_names, data.task) == (tuple(NAMES), "multiclass")
    assert data.notes["rows"] == SIZES
    assert data.notes["split_off"] == {}


@each_format
def test_a_matrix_with_missing_entries_is_multilabel(kind, tmp_path):
    rng = np.random.default_rng(0)
    splits = make_splits()
    for fields in splits.values():
        matrix = (rng.uniform(size=(len(fields["labels"]), 3)) < 0.4) * 1.0
        matrix[0] = [1, np.nan, 0]
        matrix[1] = 0
        matrix[:, 2] = 0
        fields["labels"] = matrix.astype(np.float32)
    data = load(save(kind, tmp_path, splits))
    assert data.task == "multilabel"
    for split, fields in splits.items():
        np.testing.assert_array_equal(getattr(data, split).labels, fields["labels"])
        matrix = fields["labels"]
        assert data.notes["all_zero_rows"][split] == (matrix == 0).all(axis=1).sum()
        assert data.notes["missing_entries"][split] == np.isnan(matrix).sum()
    assert data.notes["never_positive"] == ["cat"]
    positive = np.nansum(splits["train"]["labels"], axis=0)
    assert data.notes["support"]["train"] == dict(zip(NAMES, positive, strict=True))


@with_text
def test_text_labels_are_their_own_class_names(kind, tmp_path):
    splits = make_splits()
    for fields in splits.values():
        fields["labels"] = np.array(["dog", "eel", "fox"])[fields["labels"]]
        del fields["class_names"]
    data = load(save(kind, tmp_path, splits))
    assert data.class_names == ("dog", "eel", "fox")
    np.testing.assert_array_equal(data.test.labels, np.arange(12) % 3)


@each_format
def test_missing_splits_are_split_off_and_recorded(kind, tmp_path):
    fields = make(100)
    config = save(kind, tmp_path, {"train": fields})
    data = load(dataclasses.replace(config, test_fraction=0.3, val_fraction=0.5))
    assert data.notes["rows"] == {"train": 35, "val": 35, "test": 30}
    assert data.notes["split_off"]["test"]["rows_before"] == 100
    assert data.notes["split_off"]["val"]["rows_before"] == 70
    assert data.notes["split_off"]["val"]["fraction"] == 0.5
    ids = np.concatenate([data.train.ids, data.val.ids, data.test.ids])
    assert sorted(ids) == list(range(100))
    for part in data[:3]:
        np.testing.assert_array_equal(part.x, fields["embeddings"][part.ids])
        np.testing.assert_array_equal(part.labels, part.ids % 3)
        np.testing.assert_array_equal(part.weights, fields["weights"][part.ids])
    other = load(dataclasses.replace(config, seed=1))
    assert set(other.test.ids) != set(load(config).test.ids)


@each_format
@pytest.mark.parametrize("alias", ["validation", "valid", "dev"])
def test_other_names_of_val(kind, alias, tmp_path):
    splits = make_splits()
    splits[alias] = splits.pop("val")
    splits["unlabelled_pool"] = make(5, seed=7)
    config = save(kind, tmp_path, splits)
    data = load(config)
    equal(data.val, splits[alias])
    assert data.notes["other_splits"] == ["unlabelled_pool"]
    again = load_split(
        config.source, alias, class_names=tuple(NAMES), task="multiclass", config=config
    )
    equal(again, splits[alias])


@pytest.mark.parametrize("kind", ["npz", "npy", "safetensors"])
def test_bfloat16_stays_bfloat16(kind, tmp_path):
    splits = make_splits(dtype=ml_dtypes.bfloat16)
    data = load(save(kind, tmp_path, splits))
    for split, fields in splits.items():
        equal(getattr(data, split), fields)


@pytest.mark.parametrize(
    "dtype", [np.float64, np.int8, np.uint8, np.int64, bool, ">f4"]
)
def test_wide_integer_and_foreign_types_become_float32(dtype):
    x = np.arange(60).reshape(12, 5).astype(dtype)
    data = arrays({"embeddings": x, "labels": np.arange(12) % 2})
    assert data.train.x.dtype == np.dtype(np.float32)
    np.testing.assert_array_equal(data.train.x, x[data.train.ids].astype(np.float32))


def test_a_memory_map_is_neither_copied_nor_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "CHUNK_BYTES", 1 << 12)
    monkeypatch.setattr(checks, "CACHE_BYTES", 1 << 12)
    splits = make_splits()
    config = save("npy", tmp_path, splits)
    largest = []
    isfinite = np.isfinite

    def spy(values):
        largest.append(values.nbytes if isinstance(values, np.memmap) else 0)
        return isfinite(values)

    big = np.lib.format.open_memmap(
        tmp_path / "train_embeddings.npy", "w+", np.float32, (30, 4096)
    )
    big[:] = 1
    for split in ("val", "test"):
        np.save(tmp_path / f"{split}_embeddings.npy", np.ones((SIZES[split], 4096)))
    monkeypatch.setattr(np, "isfinite", spy)
    data = load(config)
    assert isinstance(data.train.x, np.memmap)
    assert 0 < max(largest) <= 4 * 4096
    in_memory = data._replace(train=data.train._replace(x=np.array(data.train.x)))
    assert fingerprint(in_memory) == fingerprint(data)


# Parquet


def write_columns(folder, columns, metadata=None):
    table = pa.table(columns)
    if metadata:
        table = table.replace_schema_metadata(metadata)
    pq.write_table(table, folder / "train.parquet")
    return DataConfig(source=f"parquet:{folder}")


def test_parquet_columns_f0_to_f11_come_in_order_of_their_numbers(tmp_path):
    x = np.random.default_rng(0).normal(size=(20, 12)).astype(np.float32)
    columns = {f"f{i}": x[:, i] for i in reversed(range(12))}
    data = load(write_columns(tmp_path, {**columns, "label": np.arange(20) % 2}))
    np.testing.assert_array_equal(data.train.x, x[data.train.ids])
    assert data.train.x.dtype == np.float32


@pytest.mark.parametrize("wide", [False, True])
def test_parquet_lists_of_any_length_type_and_categories(wide, tmp_path):
    x = np.random.default_rng(0).normal(size=(20, 4, 3)).astype(np.float32)
    kind = pa.list_(pa.list_(pa.float32()))
    if wide:
        kind = pa.large_list(pa.large_list(pa.float32()))
    columns = {
        "vectors": pa.array(x.tolist(), kind),
        "kind": pa.array(["b", "a"] * 10).dictionary_encode(),
        "score": np.ones(20),
        "id": [f"row {i}" for i in range(20)],
    }
    data = load(write_columns(tmp_path, columns))
    rows = [int(row.split()[1]) for row in data.test.ids]
    np.testing.assert_array_equal(data.test.x, x[rows])
    np.testing.assert_array_equal(data.test.labels, 1 - np.array(rows) % 2)
    assert data.class_names == ("a", "b")
    assert data.notes["ignored_fields"] == {"train": ["score"]}


def test_parquet_class_names_of_hugging_face(tmp_path):
    feature = {"info": {"features": {"label": {"names": ["no", "yes"]}}}}
    columns = {"embedding": np.eye(20).tolist(), "label": np.arange(20) % 2}
    config = write_columns(tmp_path, columns, {"huggingface": json.dumps(feature)})
    assert load(config).class_names == ("no", "yes")


def test_parquet_nulls_are_unlabelled_or_invalid(tmp_path):
    vectors = np.eye(20).tolist()
    vectors[4] = None
    columns = {"embedding": vectors, "label": [None, *[0, 1] * 9, None]}
    config = write_columns(tmp_path, columns)
    config = dataclasses.replace(config, unlabelled="drop", invalid_rows="drop")
    dropped = load(config).notes["dropped"]["train"]
    assert dropped == {"unlabelled": [0, 19], "invalid": [4]}


@pytest.mark.parametrize("name", ["train/part-{}.parquet", "train-{}-of-00003.parquet"])
def test_parquet_files_of_one_split_are_joined_in_order(name, tmp_path):
    (tmp_path / "train").mkdir()
    x = np.eye(30, dtype=np.float32)
    for shard in range(3):
        rows = slice(10 * shard, 10 * shard + 10)
        columns = {"embedding": x[rows].tolist(), "label": np.arange(30)[rows] % 2}
        pq.write_table(pa.table(columns), tmp_path / name.format(f"{shard:05}"))
    data = load(DataConfig(source=f"parquet:{tmp_path}"))
    np.testing.assert_array_equal(data.train.x, x[data.train.ids])


@pytest.mark.parametrize("name", ["label", "tags"])
def test_a_parquet_list_of_labels_is_no_embedding(name, tmp_path):
    hot = np.array([[1.0, 1.0], [0.0, 1.0]] * 10)
    columns = {"vector": np.eye(20).tolist(), name: hot.tolist()}
    config = write_columns(tmp_path, columns)
    data = load(dataclasses.replace(config, labels_field=name))
    assert data.train.x.shape[1] == 20
    np.testing.assert_array_equal(data.train.labels, hot[data.train.ids])
    if name == "label":
        assert load(config).task == "multilabel"


def test_parquet_fields_are_chosen_by_name(tmp_path):
    columns = {
        "image": np.eye(20).tolist(),
        "text": (2 * np.eye(20)).tolist(),
        "fine": np.arange(20) % 4,
        "coarse": np.arange(20) % 2,
    }
    config = write_columns(tmp_path, columns)
    config = dataclasses.replace(config, embeddings_field="text", labels_field="fine")
    data = load(config)
    assert data.train.x.max() == 2
    assert len(data.class_names) == 4


# TFDS, written and read without TensorFlow


def prepare(folder, features, examples, version="1.2.0"):
    """Writes a TFDS set `bugs` of splits `{name: list of examples}`."""
    import tensorflow_datasets as tfds

    class Bugs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            del dl_manager
            return {name: enumerate(rows) for name, rows in examples.items()}

        def _generate_examples(self):
            raise NotImplementedError("the splits are lists already")

    tfds.disable_progress_bar()
    Bugs(data_dir=folder, file_format="array_record").download_and_prepare()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")
    fields = make(30)
    features = {
        "embedding": tfds.features.Tensor(shape=(5,), dtype=np.float16),
        "other": tfds.features.Tensor(shape=(2,), dtype=np.float32),
        "label": tfds.features.ClassLabel(names=NAMES),
        "length": np.int64,
        "photo": tfds.features.Image(),
        "origin": {"place": tfds.features.Text()},
        "id": tfds.features.Text(),
    }
    examples = {
        split: [
            {
                "embedding": fields["embeddings"][i],
                "other": np.ones(2, np.float32),
                "label": fields["labels"][i],
                "length": i,
                "photo": io.BytesIO(b"never decoded"),
                "origin": {"place": "here"},
                "id": f"{split}-{i}",
            }
            for i in range(30)
        ]
        for split in ("train", "validation")
    }
    prepare(folder, features, examples)
    return folder


@pytest.mark.parametrize("version", ["", ":1.2.0"])
def test_a_tfds_set_is_read_without_tensorflow(prepared, version):
    config = DataConfig(source=f"tfds:bugs{version}?data_dir={prepared}")
    data = load(config)
    assert data.class_names == tuple(NAMES)
    assert data.notes["ignored_fields"]["train"] == [
        "length",
        "origin",
        "other",
        "photo",
    ]
    fields = make(30)
    rows = [int(row.removeprefix("validation-")) for row in data.val.ids]
    assert sorted(rows) == list(range(30))
    np.testing.assert_array_equal(data.val.x, fields["embeddings"][rows])
    np.testing.assert_array_equal(data.val.labels, fields["labels"][rows])
    assert data.val.x.dtype == np.float16
    streamed = load(dataclasses.replace(config, residency="streamed"))
    assert fingerprint(streamed) == fingerprint(data)
    np.testing.assert_array_equal(streamed.train.x[3:7], data.train.x[3:7])
    assert "tensorflow" not in sys.modules


def test_a_tfds_set_in_the_default_folder_with_chosen_fields(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    config = DataConfig(
        source="tfds:bugs", embeddings_field="other", labels_field="length"
    )
    split = load_split(
        "tfds:bugs",
        "validation",
        class_names=tuple(map(str, range(30))),
        task="multiclass",
        config=config,
    )
    np.testing.assert_array_equal(split.x, np.ones((30, 2)))
    assert sorted(split.labels) == list(range(30))


def test_the_newest_version_and_a_matrix_of_labels_beside_the_vectors(tmp_path):
    import tensorflow_datasets as tfds

    features = {
        "vector": tfds.features.Tensor(shape=(2,), dtype=np.float32),
        "label": tfds.features.Tensor(shape=(3,), dtype=np.float32),
    }
    hot = np.array([[1, 1, 0], [0, 1, 1]], np.float32)
    for number, version in enumerate(["1.9.0", "1.10.0", "1.2.0"]):
        rows = [
            {"vector": np.full(2, number, np.float32), "label": hot[i % 2]}
            for i in range(10)
        ]
        prepare(tmp_path, features, {"train": rows}, version)
    data = load(DataConfig(source=f"tfds:bugs?data_dir={tmp_path}"))
    assert data.task == "multilabel"
    np.testing.assert_array_equal(data.train.x, np.ones((6, 2)))


def test_a_tfds_set_without_embeddings_is_refused(tmp_path):
    prepare(tmp_path, {"label": np.int64}, {"train": [{"label": 1}]})
    with pytest.raises(
        ValueError, match="no feature is a tensor of floats among label"
    ):
        load(DataConfig(source=f"tfds:bugs?data_dir={tmp_path}"))


# scikit-learn


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "wine", "iris"])
def test_a_set_of_scikit_learn(name):
    stored = getattr(sklearn.datasets, f"load_{name}")()
    data = load(DataConfig(source=f"sklearn:{name}"))
    assert data.class_names == tuple(map(str, stored.target_names))
    rows = np.concatenate([part.ids for part in data[:3]])
    assert sorted(rows) == list(range(len(stored.data)))
    for part in data[:3]:
        np.testing.assert_array_equal(part.x, stored.data[part.ids].astype(np.float32))
        np.testing.assert_array_equal(part.labels, stored.target[part.ids])


# Labels in memory


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([0, 2, 5] * 8, ("0", "2", "5")),
        (np.array([0, 2, 5] * 8, np.uint8), ("0", "2", "5")),
        ([0.0, 2.0, 5.0] * 8, ("0", "2", "5")),
        ([False, True, True] * 8, ("0", "1")),
        (["b", "a", "c"] * 8, ("a", "b", "c")),
        ([np.str_("b"), np.str_("a"), np.str_("b")] * 8, ("a", "b")),
        (np.array([b"b", b"a", b"c"] * 8), ("a", "b", "c")),
        (np.array([b"b", "a", "c"] * 8, object), ("a", "b", "c")),
        (np.array([5, np.int8(2), 0.0] * 8, object), ("0", "2", "5")),
        (np.array(["b", "a"] * 12, np.dtypes.StringDType()), ("a", "b")),
        (np.eye(3)[[0, 1, 2] * 8], ("0", "1", "2")),
        (np.eye(3, dtype=bool)[[0, 1, 2] * 8], ("0", "1", "2")),
    ],
    ids=lambda value: str(getattr(value, "dtype", type(value[0]).__name__)),
)
def test_every_form_of_one_label_a_row(labels, names):
    x = np.arange(48.0).reshape(24, 2)
    data = arrays({"embeddings": x, "labels": labels})
    assert data.class_names == names
    assert data.task == "multiclass"
    rows = np.concatenate([part.ids for part in data[:3]])
    codes = np.concatenate([part.labels for part in data[:3]])
    assert codes.dtype == np.int32
    for row, code in zip(rows, codes, strict=True):
        label = np.asarray(labels)[row]
        if np.ndim(label):
            label = np.argmax(label)
        if isinstance(label, bytes):
            label = label.decode()
        if not isinstance(label, str):
            label = int(label)
        assert names[code] == str(label)


def test_soft_labels_stay_as_they_are():
    soft = np.random.default_rng(0).dirichlet(np.ones(3), 30).astype(np.float32)
    data = arrays({"embeddings": np.eye(30), "labels": soft})
    assert data.task == "multiclass"
    np.testing.assert_array_equal(data.train.labels, soft[data.train.ids])
    nearly = soft * (1 + 0.9 * SOFT_TOLERANCE)
    assert arrays({"embeddings": np.eye(30), "labels": nearly}).task == "multiclass"


def test_one_soft_split_keeps_all_splits_a_matrix():
    hard, soft = np.eye(2)[[0, 1] * 10], np.full((20, 2), 0.5)
    data = arrays(
        {"embeddings": np.eye(20), "labels": hard},
        val={"embeddings": np.eye(20), "labels": soft},
    )
    assert data.train.labels.dtype == np.float32
    np.testing.assert_array_equal(data.train.labels, hard[data.train.ids])


def test_the_task_can_be_said():
    hard = np.eye(2)[[0, 1] * 10]
    fields = {"embeddings": np.eye(20), "labels": hard}
    data = arrays(fields, config=DataConfig(task="multilabel"))
    assert data.task == "multilabel"
    np.testing.assert_array_equal(data.train.labels, hard[data.train.ids])


def test_a_0_1_matrix_with_an_empty_row_is_multilabel():
    matrix = np.eye(3)[np.arange(24) % 3]
    matrix[5] = 0
    data = arrays({"embeddings": np.eye(24), "labels": matrix})
    assert data.task == "multilabel"
    assert sum(data.notes["all_zero_rows"].values()) == 1


def test_a_column_that_only_val_has_positive_is_no_error_for_several_labels():
    matrix = np.array([[1, 1, 0], [0, 1, 0]] * 12)
    val = {"embeddings": np.eye(24), "labels": matrix[:, ::-1]}
    data = arrays({"embeddings": np.eye(24), "labels": matrix}, val=val)
    assert data.notes["never_positive"] == ["2"]
    np.testing.assert_array_equal(data.val.labels, matrix[:, ::-1])


def test_class_names_in_another_order_are_permuted_by_name():
    train = {"embeddings": np.eye(6), "labels": [0, 1, 2] * 2, "class_names": NAMES}
    test = {
        "embeddings": np.eye(6),
        "labels": [0, 1, 2] * 2,
        "class_names": ["cat", "ant", "bee"],
    }
    data = arrays(train, val=train, test=test)
    np.testing.assert_array_equal(data.test.labels, [2, 0, 1] * 2)
    matrix = np.array([[1, 0, 1], [0, 1, 0]] * 3)
    train["labels"] = test["labels"] = matrix
    data = arrays(train, val=train, test=test)
    # Of cat, ant, bee to ant, bee, cat.
    np.testing.assert_array_equal(data.test.labels, matrix[:, [1, 2, 0]])


def test_named_classes_without_rows_are_reported():
    fields = {"embeddings": np.eye(20), "labels": [0, 2] * 10, "class_names": NAMES}
    data = arrays(fields)
    assert data.class_names == tuple(NAMES)
    assert data.notes["empty_classes"] == ["bee"]
    assert data.notes["support"]["val"]["bee"] == 0


def test_integers_without_names_go_by_the_names_of_train():
    train = {"embeddings": np.eye(6), "labels": [2, 1, 0] * 2, "class_names": NAMES}
    other = {"embeddings": np.eye(6), "labels": [0, 1, 2] * 2}
    data = arrays(train, val=other, test=other)
    np.testing.assert_array_equal(data.val.labels, [0, 1, 2] * 2)


@pytest.mark.parametrize(
    ("missing", "labels"),
    [
        (-1, [0, 1] * 12),
        (np.nan, [0, 1] * 12),
        ("", ["a", "b"] * 12),
        (None, ["a", "b"] * 12),
        (None, [0, 1] * 12),
        (np.nan, ["a", "b"] * 12),
    ],
)
def test_unlabelled_rows_are_left_out_and_listed(missing, labels):
    labels = np.array([*labels, missing, missing], object)
    if not isinstance(missing, str) and missing is not None and labels[0] == 0:
        labels = labels.astype(float)
    fields = {"embeddings": np.eye(26), "labels": labels}
    data = arrays(fields, test=fields, config=DataConfig(unlabelled="drop"))
    assert len(data.class_names) == 2
    assert data.notes["rows"]["test"] == 24
    assert data.notes["dropped"]["train"] == {"unlabelled": [24, 25]}
    assert all((part.labels >= 0).all() for part in data[:3])
    for source, remedy in (
        ("npz:x", "data.unlabelled=drop"),
        ("arrays", "leave these"),
    ):
        with pytest.raises(ValueError, match=remedy):
            arrays(fields, config=DataConfig(source))


def test_matrix_rows_without_any_entry_are_unlabelled():
    matrix = np.eye(2)[[0, 1] * 12]
    matrix[3] = np.nan
    fields = {"embeddings": np.eye(24), "labels": matrix, "ids": np.arange(24) + 100}
    data = arrays(fields, config=DataConfig(unlabelled="drop"))
    assert data.task == "multiclass"
    assert data.notes["dropped"]["train"] == {"unlabelled": [103]}


def test_unlabelled_rows_are_kept_apart():
    """Those of train are to learn from; those of other splits are of no use."""
    labels = np.array([0, 1] * 12 + [-1, -1])
    fields = {"embeddings": np.eye(26), "labels": labels}
    data = arrays(fields, test=fields, config=DataConfig(unlabelled="keep"))
    assert data.unlabelled is not None
    assert data.unlabelled.ids.tolist() == [24, 25]
    assert data.unlabelled.labels.tolist() == [-1, -1]
    assert data.notes["unlabelled_rows"] == 2
    assert data.notes["dropped"] == {"test": {"unlabelled": [24, 25]}}
    assert all((part.labels >= 0).all() for part in data[:3])
    parts = fingerprint(data)
    assert (
        parts["unlabelled.embeddings"]
        != fingerprint(data._replace(unlabelled=data.train))["unlabelled.embeddings"]
    )


def test_rows_without_any_label_are_refused():
    fields = {"embeddings": np.eye(8), "labels": np.full(8, -1)}
    with pytest.raises(ValueError, match="train: no row has a label"):
        arrays(fields, config=DataConfig(unlabelled="keep"))


def test_invalid_rows_are_left_out_and_listed():
    x = np.ones((24, 3))
    x[[4, 7]] = [[np.nan, 0, 0], [0, 0, -np.inf]]
    x[9, 1] = 1e300  # Infinite as float32.
    data = arrays(
        {"embeddings": x, "labels": [0, 1] * 12},
        config=DataConfig(invalid_rows="drop"),
    )
    assert data.notes["dropped"]["train"] == {"invalid": [4, 7, 9]}
    assert all(np.isfinite(part.x).all() for part in data[:3])


def test_unseen_classes_are_left_out_and_reported_apart():
    train = {"embeddings": np.eye(12), "labels": ["ant", "bee"] * 6}
    test = {"embeddings": np.eye(12), "labels": ["ant", "bee", "cat", "cow"] * 3}
    data = arrays(train, test=test, config=DataConfig(allow_unseen=True))
    assert data.class_names == ("ant", "bee")
    assert data.notes["unseen_classes"] == {"test": {"cat": 3, "cow": 3}}
    assert data.notes["dropped"]["test"] == {"unseen": [2, 3, 6, 7, 10, 11]}
    np.testing.assert_array_equal(data.test.labels, [0, 1] * 3)


def test_duplicates_across_splits_are_counted():
    x = np.random.default_rng(0).normal(size=(20, 4))
    labels = [0, 1] * 10
    data = arrays(
        {"embeddings": x, "labels": labels},
        val={"embeddings": np.vstack([x[:3], x[10:] + 1]), "labels": [0] * 13},
        test={"embeddings": np.vstack([x[:2], x[:1]]), "labels": [0, 1, 1]},
    )
    assert data.notes["duplicates"] == {
        "val in train": 3,
        "test in train": 3,
        "test in val": 3,
    }


def test_groups_stay_whole_when_val_is_split_off():
    groups = np.repeat([f"patient {i}" for i in range(20)], 5)
    fields = {"embeddings": np.eye(100), "labels": np.arange(100) % 3, "groups": groups}
    data = arrays(fields)
    sets = [set(part.groups) for part in data[:3]]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 20
    assert data.notes["split_off"]["test"]["grouped"] is True


def test_the_notes_are_json_and_lists_will_do_for_arrays():
    data = arrays(
        {
            "embeddings": np.eye(20).tolist(),
            "labels": ["a", "b"] * 10,
            "weights": [1] * 20,
            "ids": [f"row {i}" for i in range(20)],
            "groups": list(range(20)),
        },
        config=DataConfig(unlabelled="drop"),
    )
    assert json.loads(json.dumps(data.notes)) == data.notes
    support = [sum(data.notes["support"][s].values()) for s in ("train", "val", "test")]
    assert support == [len(part.x) for part in data[:3]]


def test_raw_tuples_will_do_for_dictionaries():
    fields = make(30, tokens=2)
    one, other = arrays(fields, test=fields), arrays(Raw(**fields), test=Raw(**fields))
    assert fingerprint(one) == fingerprint(other)
    assert one.notes == other.notes


# One split, and inputs without labels


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize(
    "given", [["train"], ["train", "val"], ["train", "val", "test"]]
)
def test_one_split_is_the_same_rows_as_in_the_whole(split, given, tmp_path):
    splits = {s: fields for s, fields in make_splits().items() if s in given}
    config = save("npz", tmp_path, splits)
    data = load(config)
    part = load_split(
        config.source,
        split,
        class_names=data.class_names,
        task=data.task,
        config=dataclasses.replace(config, source="elsewhere"),
    )
    for one, other in zip(part, getattr(data, split), strict=True):
        np.testing.assert_array_equal(one, other)


def test_one_split_of_three_is_read_alone(tmp_path):
    splits = make_splits()
    config = save("npz", tmp_path, splits)
    (tmp_path / "val.npz").write_text("broken")
    (tmp_path / "test.npz").write_text("broken")
    part = load_split(
        config.source, "train", class_names=tuple(NAMES), task="auto", config=config
    )
    equal(part, splits["train"])


@pytest.mark.parametrize(
    ("labels", "own", "saved", "expected"),
    [
        ([0, 2], None, ("0", "2", "5"), [0, 1]),
        ([0, 2], None, ("ant", "bee", "cat"), [0, 2]),
        ([0, 2], ["cat", "ant", "bee"], ("ant", "bee", "cat"), [2, 1]),
        (["bee", "cat"], None, ("cat", "bee"), [1, 0]),
        (["0", "2"], None, ("2", "0"), [1, 0]),
    ],
)
def test_labels_of_one_split_go_by_the_saved_names(
    labels, own, saved, expected, tmp_path
):
    fields = {"embeddings": np.eye(2), "labels": labels}
    if own:
        fields["class_names"] = own
    config = save("npz", tmp_path, {"test": fields})
    part = load_split(
        config.source, "test", class_names=saved, task="multiclass", config=config
    )
    np.testing.assert_array_equal(part.labels, expected)


@each_format
def test_inputs_need_no_labels(kind, tmp_path):
    fields = make(7, tokens=3)
    if kind == "npz":
        fields["labels"] = np.array([None] * 7)  # Never read, so never unpickled.
    WRITERS[kind](tmp_path, "new", fields)
    name = "new_embeddings.npy" if kind == "npy" else f"new.{kind}"
    found = open_inputs(tmp_path / name)
    assert found.rows == len(found.sample.x) == 7
    assert found.sample.x.dtype == np.float16
    assert (found.sample.mask is None) == (kind == "npy")
    for first in (0, 4, 7):
        blocks = list(found.blocks(first, 3))
        assert [len(block.x) for block in blocks[:-1]] == [3] * (len(blocks) - 1)
        for number, block in enumerate(blocks):
            rows = slice(first + 3 * number, first + 3 * number + 3)
            np.testing.assert_array_equal(block.x, fields["embeddings"][rows])
            if kind != "npy":
                np.testing.assert_array_equal(block.mask, fields["mask"][rows])
                np.testing.assert_array_equal(block.ids, fields["ids"][rows])
        assert len(blocks) == -(-(7 - first) // 3)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_inputs_stored_by_columns_are_read_by_rows(save, tmp_path):
    x = np.asfortranarray(np.random.default_rng(0).normal(size=(7, 4)))
    save(tmp_path / "new.npz", embeddings=x)
    np.save(tmp_path / "new.npy", x)
    for name in ("new.npz", "new.npy"):
        (block,) = open_inputs(tmp_path / name).blocks(2, 9)
        np.testing.assert_array_equal(block.x, x[2:].astype(np.float32))


def test_a_folder_of_inputs_is_one_after_the_other(tmp_path):
    x = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    for name, rows in {"a": slice(4), "b": slice(4, 4), "c": slice(4, 9)}.items():
        table = {"vector": x[rows].tolist(), "id": [f"row {i}" for i in range(9)[rows]]}
        schema = pa.schema([("vector", pa.list_(pa.float32())), ("id", pa.string())])
        written = pa.table(table, schema=schema)
        pq.write_table(written, tmp_path / f"{name}.parquet", row_group_size=2)
    found = open_inputs(tmp_path)
    assert [told["rows"] for told in found.files.values()] == [4, 0, 5]
    blocks = list(found.blocks(3, 4))
    assert [len(block.x) for block in blocks] == [4, 2]
    np.testing.assert_array_equal(np.concatenate([b.x for b in blocks]), x[3:])
    assert [i for b in blocks for i in b.ids] == [f"row {i}" for i in range(3, 9)]


# Fingerprints


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("embeddings", lambda t: t._replace(x=t.x + np.float16(1))),
        ("embeddings", lambda t: t._replace(x=t.x.astype(np.float32))),
        ("embeddings", lambda t: t._replace(x=t.x.view(np.int16))),
        ("embeddings", lambda t: t._replace(x=t.x.reshape(len(t.x), -1))),
        ("labels", lambda t: t._replace(labels=t.labels[::-1].copy())),
        ("weights", lambda t: t._replace(weights=t.weights * 2)),
        ("mask", lambda t: t._replace(mask=~t.mask)),
        ("mask", lambda t: t._replace(mask=None)),
    ],
)
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_fingerprint_tells_what_changed(part, change, split):
    data = arrays(make(30, tokens=2))
    before = fingerprint(data)
    assert before == fingerprint(arrays(make(30, tokens=2)))
    changed = data._replace(**{split: change(getattr(data, split))})
    after = fingerprint(changed)
    assert {name for name in before if before[name] != after.get(name)} == {
        f"{split}.{part}"
    }


def test_a_fingerprint_minds_the_order_of_classes():
    data = arrays(make(30))
    turned = data._replace(class_names=data.class_names[::-1])
    before, after = fingerprint(data), fingerprint(turned)
    assert [name for name in before if before[name] != after[name]] == ["class_names"]


def test_only_numpy_and_jax_are_imported_until_a_reader_needs_more():
    folder = pathlib.Path(flaxhead.data.__file__).parent
    for file in folder.glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.split(".")[0]
                assert top in {"numpy", "jax", "flaxhead"} | sys.stdlib_module_names, (
                    file
                )


def test_every_example_of_the_page_on_data_runs(tmp_path, monkeypatch):
    page = pathlib.Path(__file__).parents[1] / "docs" / "data.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(blocks) == 7
    monkeypatch.chdir(tmp_path)
    exec("\n".join(blocks), {"__name__": "page"})
