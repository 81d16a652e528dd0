"""Bad input is refused in one sentence that names the place, the rows and the remedy.

The tables hold what is wrong with otherwise good data, and what the message says.
"""

import dataclasses
import io

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

from flaxhead.config import DataConfig
from flaxhead.data import arrays, checks, load, load_split, open_inputs
from flaxhead.data.labels import SOFT_TOLERANCE

ROWS = 24


def good(**changes):
    fields = {
        "embeddings": np.random.default_rng(0).normal(size=(ROWS, 4)),
        "labels": np.arange(ROWS) % 3,
        **changes,
    }
    return {name: values for name, values in fields.items() if values is not None}


def at(rows, values, fill):
    """An array of `fill` with some rows changed."""
    out = np.array([fill] * ROWS, object if isinstance(fill, str) else None)
    out[rows] = values
    return out


def tokens(**changes):
    return good(
        **{"embeddings": np.ones((ROWS, 2, 4)), "mask": np.ones((ROWS, 2)), **changes}
    )


def cut(values):
    """A file of an array that lacks its last byte."""
    whole = io.BytesIO()
    np.save(whole, values)
    return whole.getvalue()[:-1]


class Thing:
    pass


TRAIN = {
    # Embeddings.
    "no embeddings": (good(embeddings=None), "train: there are no embeddings"),
    "one axis": (good(embeddings=np.ones(ROWS)), r"shape \[24\], expected \[rows, dim"),
    "no axis": (good(embeddings=3.0), r"train: embeddings have shape \[\]"),
    "four axes": (
        good(embeddings=np.ones((ROWS, 1, 1, 1))),
        r"shape \[24, 1, 1, 1\], expected \[rows, dim\] or \[rows, tokens, dim\]",
    ),
    "no rows": (
        good(embeddings=np.ones((0, 4)), labels=np.ones(0, int)),
        r"train: embeddings are empty \(shape \[0, 4\]\)",
    ),
    "no columns": (good(embeddings=np.ones((ROWS, 0))), r"empty \(shape \[24, 0\]\)"),
    "objects": (
        good(embeddings=np.full((ROWS, 2), None)),
        "embeddings have type object",
    ),
    "complex": (good(embeddings=np.ones((ROWS, 2)) * 1j), "have type complex128"),
    "text": (good(embeddings=np.full((ROWS, 2), "a")), "embeddings have type <U1"),
    "ragged": (
        good(embeddings=[[1.0]] * (ROWS - 1) + [[1.0, 2.0]]),
        "train: embeddings is ragged, expected rows of one length; pad tokens",
    ),
    "NaN": (
        good(embeddings=at([3, 17], np.nan, [1.0] * 4)),
        r"train: embeddings are NaN or infinite in 2 of 24 rows \(3, 17\), .*"
        "invalid_rows=drop",
    ),
    "infinite": (
        good(embeddings=at(slice(2, 20), -np.inf, [1.0] * 4).astype(np.float16)),
        r"18 of 24 rows \(2, 3, 4, 5, 6, 7, 8, 9, \.\.\.\)",
    ),
    "infinite as float32": (
        good(embeddings=at([5], 1e39, [1.0])),
        r"1 of 24 rows \(5\)",
    ),
    "padding not finite": (
        tokens(
            embeddings=np.full((ROWS, 2, 4), np.nan),
            mask=[[True, False]] * ROWS,
        ),
        "NaN or infinite in 24 of 24",
    ),
    # Fields.
    "singular name": (
        {"embeddings": np.ones((ROWS, 4)), "label": np.ones(ROWS)},
        "train: unknown field 'label', expected embeddings, labels, .*; did you mean "
        "'labels'",
    ),
    "unknown name": (good(picture=np.ones(ROWS)), "unknown field 'picture'"),
    # Labels.
    "no labels": (good(labels=None), "train: there are no labels, expected"),
    "fewer labels": (
        good(labels=[0, 1] * 11),
        "labels has 22 rows and embeddings have 24",
    ),
    "one number": (good(labels=3), r"labels have type int64 and shape \[\]"),
    "three axes": (good(labels=np.ones((ROWS, 2, 2))), r"shape \[24, 2, 2\], expected"),
    "fractions": (
        good(labels=at([4, 6], 0.5, 1.0)),
        r"labels such as 0\.5 are no class numbers, in 2 of 24 rows \(4, 6\)",
    ),
    "infinite label": (good(labels=at([4], np.inf, 1.0)), "labels such as inf"),
    "complex label": (good(labels=np.ones(ROWS) * 1j), "labels have type complex128"),
    "objects as labels": (
        good(labels=[Thing() for _ in range(ROWS)]),
        "train: labels hold values of type Thing, expected all text or all whole",
    ),
    "text and numbers": (
        good(labels=np.array(["a", 1] * 12, object)),
        "labels hold values of type int, str",
    ),
    "lists": (
        good(labels=np.array([[1], [2, 3]] * 12, object)),
        "labels hold values of type list",
    ),
    "unlabelled -1": (
        good(labels=at([1, 5], -1, 0)),
        r"train: labels are -1 or empty, which means unlabelled, in 2 of 24 rows "
        r"\(1, 5\), .* data.unlabelled=drop",
    ),
    "unlabelled NaN": (good(labels=at([1], np.nan, 0.0)), r"unlabelled, in 1 of 24"),
    "unlabelled text": (
        good(labels=at([2], "", "cat")),
        r"unlabelled, in 1 of 24 .*\(2\)",
    ),
    "unlabelled row of a matrix": (
        good(labels=at([2], [np.nan, np.nan], [0.5, 0.5])),
        r"unlabelled, in 1 of 24 rows \(2\)",
    ),
    "below -1": (good(labels=at([7], -2, 0)), r"below -1 in 1 of 24 rows \(7\)"),
    "one class": (
        good(labels=["cat"] * ROWS),
        r"train: one class only has rows \('cat': 24\), expected rows of two classes",
    ),
    "one of two named classes": (
        good(labels=np.ones(ROWS), class_names=["ant", "bee"]),
        r"one class only has rows \('bee': 24, 'ant': 0\)",
    ),
    # Class names.
    "beyond the names": (
        good(class_names=["ant", "bee"]),
        r"labels such as 2 are outside of the 2 class names, in 8 of 24 rows .*"
        "expected 0 to 1",
    ),
    "label without a name": (
        good(labels=at([3], "beee", "ant"), class_names=["ant", "bee"]),
        r"train: label 'beee' is not among the 2 class names, in 1 of 24 rows \(3\); .*"
        "did you mean 'bee'",
    ),
    "name twice": (
        good(class_names=["a", "b", "a"]),
        "train: class_names holds 'a' twice",
    ),
    "empty name": (good(class_names=["a", "", "b"]), "holds an empty name"),
    "missing name": (good(class_names=["a", None, "b"]), "holds an empty name"),
    "names in a matrix": (
        good(class_names=[["a", "b"]]),
        r"shape \[1, 2\], expected a",
    ),
    # Matrices.
    "columns and names": (
        good(labels=np.eye(3)[np.arange(ROWS) % 3], class_names=["a", "b"]),
        "labels have 3 columns and there are 2 class names",
    ),
    "no columns in labels": (
        good(labels=np.ones((ROWS, 0))),
        "labels have 0 columns and there are 0 class names",
    ),
    "class numbers as a column": (
        good(labels=np.arange(ROWS)[:, None]),
        r"entries outside of 0 to 1 in 22 of 24 rows .*; pass class numbers as",
    ),
    "negative soft label": (
        good(labels=at([1], [-0.1, 1.1], [0.5, 0.5])),
        r"outside of 0 to 1 in 1 of 24 rows \(1\)",
    ),
    "infinite soft label": (
        good(labels=at([1], [np.inf, 0], [0.5, 0.5])),
        r"outside of 0 to 1 in 1 of 24 rows \(1\)",
    ),
    "soft labels that do not sum to 1": (
        good(labels=at([2], [0.4, 0.5], [0.5, 0.5])),
        r"train: soft labels sum to 0\.9 in 1 of 24 rows \(2\), expected 1 \(within "
        r"0\.001\); .* multilabel",
    ),
    "soft labels just out of tolerance": (
        good(labels=np.full((ROWS, 2), 0.5 + 0.6 * SOFT_TOLERANCE)),
        r"soft labels sum to 1\.001 in 24 of 24",
    ),
    # Masks.
    "mask without tokens": (
        good(mask=np.ones((ROWS, 4))),
        r"a mask came with embeddings of shape \[24, 4\]",
    ),
    "mask of another shape": (
        tokens(mask=np.ones((ROWS, 3))),
        r"the mask has shape \[24, 3\], expected \[24, 2\]",
    ),
    "mask of one axis": (tokens(mask=np.ones(ROWS)), r"the mask has shape \[24\]"),
    "mask of other values": (
        tokens(mask=np.full((ROWS, 2), 2)),
        "the mask has other values than True and False",
    ),
    "mask of text": (tokens(mask=np.full((ROWS, 2), "a")), r"False \(type <U1\)"),
    "all masked": (
        tokens(mask=at([4, 9], [0, 0], [1, 0])),
        r"train: the mask leaves no token in 2 of 24 rows \(4, 9\)",
    ),
    # Weights.
    "fewer weights": (
        good(weights=[1.0] * 5),
        "weights has 5 rows and embeddings have 24",
    ),
    "weights in a matrix": (
        good(weights=np.ones((ROWS, 2))),
        r"weights have shape \[24, 2",
    ),
    "weights as text": (good(weights=["1"] * ROWS), "weights have type <U1"),
    "negative weight": (
        good(weights=at([3], -1, 1)),
        r"train: weights are negative in 1 of 24 rows \(3\), expected finite numbers",
    ),
    "NaN weight": (
        good(weights=at([3, 4], np.nan, 1.0)),
        r"weights are NaN or infinite in 2 of 24 rows \(3, 4\)",
    ),
    "infinite weight": (
        good(weights=at([3], 1e39, 1.0)),
        r"NaN or infinite in 1 of 24",
    ),
    "weights all 0": (good(weights=np.zeros(ROWS)), "train: all weights are 0"),
    # Groups and ids.
    "fewer groups": (
        good(groups=["a"] * 5),
        "groups has 5 rows and embeddings have 24",
    ),
    "one group": (good(groups=["a"] * ROWS), "no rows can be split off as test"),
    "missing group": (
        good(groups=at([3], None, "a")),
        r"groups is missing in 1 of 24 rows \(3\)",
    ),
    "empty group": (
        good(groups=at([3], "", "a")),
        r"groups is missing in 1 of 24 rows",
    ),
    "fractional groups": (good(groups=np.full(ROWS, 0.5)), "groups has type float64"),
    "objects as groups": (
        good(groups=[Thing() for _ in range(ROWS)]),
        "groups holds values of type Thing",
    ),
    "fewer ids": (good(ids=np.arange(5)), "ids has 5 rows and embeddings have 24"),
    "a single id": (good(ids=5), "ids has a single value rows"),
    "ids in a matrix": (
        good(ids=np.ones((ROWS, 2), int)),
        r"ids has type int64 and shape",
    ),
    # Splits.
    "one row a class": (
        {"embeddings": np.eye(3), "labels": ["a", "b", "c"]},
        "train: no rows can be split off as test",
    ),
}


def test_what_is_no_dict_is_refused():
    with pytest.raises(ValueError, match="train is a list; expected a dict of arrays"):
        arrays([np.eye(3), ["a", "b", "c"]])


@pytest.mark.parametrize("case", TRAIN)
def test_bad_arrays_are_refused(case):
    fields, message = TRAIN[case]
    with pytest.raises(ValueError, match=message):
        arrays(fields)


TEST = {
    "other width": (
        good(embeddings=np.ones((ROWS, 3))),
        r"test: embeddings have shape \[24, 3\] and those of train \[24, 4\], expected",
    ),
    "other rank": (
        good(embeddings=np.ones((ROWS, 2, 4))),
        r"test: embeddings have shape \[24, 2, 4\] and those of train \[24, 4\]",
    ),
    "other form of labels": (
        good(labels=np.eye(3)[np.arange(ROWS) % 3]),
        "train has one label a row and test has a matrix",
    ),
    "text for numbers": (
        good(labels=["ant", "bee"] * 12),
        "test: classes that training lacks .'ant': 12, 'bee': 12",
    ),
    "a class more": (
        good(labels=at([3, 5], 7, 1)),
        r"test: classes that training lacks \('7': 2\) are in 2 of 24 rows \(3, 5\), .*"
        "allow_unseen=True",
    ),
    "unlabelled": (good(labels=at([4], -1, 0)), r"test: labels are -1 or empty"),
    "NaN": (good(embeddings=at([6], np.nan, [1.0] * 4)), r"test: .* NaN .*\(6\)"),
    "weights": (good(weights=at([6], -1, 1)), r"test: weights are negative"),
    "all unseen": (good(labels=["x"] * ROWS), "test: classes that training lacks"),
}


@pytest.mark.parametrize("case", TEST)
def test_a_bad_test_split_is_refused(case):
    fields, message = TEST[case]
    with pytest.raises(ValueError, match=message):
        arrays(good(), test=fields)


def test_a_class_that_has_a_name_and_no_training_row_is_unseen():
    train = good(labels=[0, 1] * 12, class_names=["ant", "bee", "cat"])
    with pytest.raises(
        ValueError, match=r"val: classes that training lacks \('cat': 8"
    ):
        arrays(train, val=good(class_names=["ant", "bee", "cat"]))
    soft = np.array([[0.5, 0.5, 0.0], [0.2, 0.8, 0.0]] * 12)
    with pytest.raises(ValueError, match=r"val: classes that training lacks \('2': 24"):
        arrays(good(labels=soft), val=good(labels=soft[:, [0, 2, 1]]))


def test_columns_that_train_lacks_are_unseen_and_columns_must_not_lack():
    hot = np.array([[1, 1, 0], [0, 0, 1]] * 12)
    abc, abd = ["a", "b", "c"], ["a", "b", "d"]
    train = good(labels=hot[:, :2], class_names=["a", "b"])
    with pytest.raises(
        ValueError, match=r"test: classes that training lacks \('c': 12"
    ):
        arrays(train, test=good(labels=hot, class_names=abc))
    with pytest.raises(
        ValueError, match=r"test: the label matrix has no column for 'c'"
    ):
        arrays(
            good(labels=hot, class_names=abc), test=good(labels=hot, class_names=abd)
        )


def test_a_group_may_not_be_in_two_splits():
    groups = [f"patient {i // 4}" for i in range(ROWS)]
    others = ["patient 2", *[f"guest {i}" for i in range(1, ROWS)]]
    with pytest.raises(
        ValueError, match=r"test: group 'patient 2' \(and 0 more\) is in train too"
    ):
        arrays(good(groups=groups), test=good(groups=others))
    with pytest.raises(ValueError, match=r"test: group 'guest 1' .* is in val too"):
        arrays(
            good(groups=groups),
            val=good(groups=["guest 1"] * ROWS),
            test=good(groups=[*others[1:], "z"]),
        )


def test_every_split_has_a_mask_or_none_has():
    with pytest.raises(
        ValueError, match=r"val: there is no mask and train has one, .*"
    ):
        arrays(tokens(), val=tokens(mask=None))
    with pytest.raises(ValueError, match="train: there is no mask and val has one"):
        arrays(tokens(mask=None), val=tokens())


def test_multilabel_needs_a_matrix_and_multiclass_sums_to_one():
    with pytest.raises(ValueError, match="train: task is multilabel and there is one"):
        arrays(good(), config=DataConfig(task="multilabel"))
    hot = good(labels=np.array([[1, 1], [1, 0]] * 12))
    with pytest.raises(ValueError, match=r"train: soft labels sum to 2 in 12 of 24"):
        arrays(hot, config=DataConfig(task="multiclass"))
    gaps = good(labels=np.array([[1, np.nan], [1, 0]] * 12))
    with pytest.raises(ValueError, match=r"train: soft labels sum to nan in 12 of 24"):
        arrays(gaps, config=DataConfig(task="multiclass"))


@pytest.mark.parametrize(
    ("fields", "setting", "message"),
    [
        (
            good(embeddings=np.full((ROWS, 2), np.nan)),
            {"invalid_rows": "drop"},
            "train: no row of the embeddings is finite",
        ),
        (
            good(labels=[""] * ROWS),
            {"unlabelled": "drop"},
            "train: no labelled row with finite embeddings is left",
        ),
        (
            good(labels=at([0], "b", "a"), embeddings=at([0], np.nan, [1.0])),
            {"invalid_rows": "drop"},
            r"one class only has rows \('a': 23, 'b': 0\)",
        ),
    ],
)
def test_something_must_be_left(fields, setting, message):
    with pytest.raises(ValueError, match=message):
        arrays(fields, config=DataConfig(**setting))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"invalid_rows": "dorp"},
            "data.invalid_rows is 'dorp', .*did you mean 'drop'",
        ),
        (
            {"unlabelled": "hide"},
            "data.unlabelled is 'hide', expected one of error, drop, keep",
        ),
        ({"task": "multi-label"}, "data.task .*did you mean 'multilabel'"),
        ({"val_fraction": -0.1}, r"data.val_fraction is -0\.1, expected at least 0"),
        ({"test_fraction": 1.0}, r"data.test_fraction is 1\.0, expected .* below 1"),
        ({"seed": -1}, "data.seed is -1, expected 0 or more"),
    ],
)
def test_bad_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        arrays(good(), config=DataConfig(**setting))


# Files


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif path.suffix == ".npz":
            np.savez(path, **content)
        elif path.suffix == ".npy":
            np.save(path, content)
        elif path.suffix == ".safetensors":
            safetensors.numpy.save_file(content, path)
        else:
            pq.write_table(pa.table(content), path)


def columns(**changes):
    stored = {"embedding": np.eye(ROWS).tolist(), "label": np.arange(ROWS) % 2}
    return {"train.parquet": {**stored, **changes}}


def npy():
    buffer = io.BytesIO()
    np.save(buffer, np.eye(2))
    return buffer.getvalue()


x = np.eye(ROWS, dtype=np.float32)
FILES = {
    "no file": ("npz", {}, "npz:.*: no split is there, expected train.npz"),
    "another format": (
        "parquet",
        {"train.npz": good()},
        "no split is there, expected train.parquet",
    ),
    "no train": (
        "npz",
        {"trian.npz": good(), "test.npz": good()},
        "no split 'train' among test, trian, expected one; did you mean 'trian'",
    ),
    "two names of val": (
        "npz",
        {"train.npz": good(), "val.npz": good(), "dev.npz": good()},
        "there are two splits that mean 'val', one of them 'val'",
    ),
    "corrupt npz": (
        "npz",
        {"train.npz": b"nothing"},
        r"train\.npz: cannot be read as an npz file, expected a whole and valid file",
    ),
    "empty npz": ("npz", {"train.npz": b""}, r"train\.npz: cannot be read as an npz"),
    "npy called npz": (
        "npz",
        {"train.npz": npy()},
        r"train\.npz: cannot be read as an npz file, .*holds one array without a name",
    ),
    "unknown field": (
        "npz",
        {"train.npz": {"embeddings": x, "label": np.arange(ROWS)}},
        r"train\.npz: unknown field 'label', .*did you mean 'labels'",
    ),
    "no embeddings": (
        "npz",
        {"train.npz": {"labels": np.arange(ROWS)}},
        r"train\.npz: there is no field 'embeddings'",
    ),
    "pickled npz": (
        "npz",
        {"train.npz": good(labels=np.array(["a", None] * 12))},
        r"train\.npz: cannot be read as an npz file \(field 'labels'; text needs dtype",
    ),
    "bad rows in a file": (
        "npz",
        {"train.npz": good(), "test.npz": good(embeddings=at([9], np.nan, [1.0] * 4))},
        r"test\.npz: embeddings are NaN or infinite in 1 of 24 rows \(9\)",
    ),
    "unknown npy": (
        "npy",
        {"train_embeddings.npy": x, "train_label.npy": np.arange(ROWS)},
        r"train_label\.npy .*unknown field 'label', .*did you mean 'labels'",
    ),
    "npy without embeddings": (
        "npy",
        {"train_labels.npy": np.arange(ROWS)},
        r"there is train_labels\.npy and no embeddings beside it, expected SPLIT_emb",
    ),
    "npy without labels": (
        "npy",
        {"train_embeddings.npy": x},
        r"train_\*\.npy: there are no labels",
    ),
    "corrupt npy": (
        "npy",
        {"train_embeddings.npy": b"nothing"},
        r"train_embeddings\.npy: cannot be read as an npy file",
    ),
    "pickled npy": (
        "npy",
        {"train_embeddings.npy": x, "train_labels.npy": np.array(["a", None] * 12)},
        r"train_labels\.npy: cannot be read as an npy file \(text needs dtype=str\)",
    ),
    "corrupt safetensors": (
        "safetensors",
        {"train.safetensors": b"nothing"},
        r"train\.safetensors: cannot be read as a safetensors file",
    ),
    "unknown tensor": (
        "safetensors",
        {"train.safetensors": {"embedding": x}},
        r"train\.safetensors: unknown field 'embedding', .*did you mean 'embeddings'",
    ),
    "no tensor": (
        "safetensors",
        {"train.safetensors": {"labels": np.arange(ROWS)}},
        r"train\.safetensors: there is no tensor 'embeddings'",
    ),
    "corrupt parquet": (
        "parquet",
        {"train.parquet": b"nothing"},
        r"train\.parquet: cannot be read as a Parquet file",
    ),
    "no list": (
        "parquet",
        {"train.parquet": {"label": [0, 1], "score": [0.5, 1.0]}},
        r"train\.parquet: no column of lists of floats among label, score, expected",
    ),
    "two lists": (
        "parquet",
        columns(embeddings=np.eye(ROWS).tolist()),
        "several columns may be the embeddings: embeddings, embedding; choose one with "
        "data.embeddings_field",
    ),
    "list and numbered columns": (
        "parquet",
        {"train.parquet": {"v": np.eye(2).tolist(), "f0": [1, 2], "label": [0, 1]}},
        "several columns may be the embeddings: v, f0",
    ),
    "numbered column missing": (
        "parquet",
        {"train.parquet": {"f0": [1.0, 2.0], "f2": [1.0, 2.0], "label": [0, 1]}},
        "there are 2 columns such as 'f0' and no 'f1', expected f0 to f1",
    ),
    "two labels": (
        "parquet",
        {
            "train.parquet": {
                "e": np.eye(2).tolist(),
                "kind": ["a", "b"],
                "text": ["", ""],
            }
        },
        "several columns may be the labels: kind, text; choose one with data.labels_fi",
    ),
    "no label": (
        "parquet",
        {"train.parquet": {"embedding": np.eye(2).tolist(), "score": [0.5, 1.0]}},
        r"train\.parquet: there are no labels, .*data.labels_field",
    ),
    "ragged lists": (
        "parquet",
        columns(embedding=[[1.0]] * (ROWS - 1) + [[1.0, 2.0]]),
        r"lists of column 'embedding' have 2 lengths \(1, 2\), expected one; pad",
    ),
    "empty table": (
        "parquet",
        {"train.parquet": {"f0": np.ones(0), "label": np.ones(0, int)}},
        r"train\.parquet: embeddings are empty",
    ),
    "empty table of lists": (
        "parquet",
        columns(embedding=pa.array([], pa.list_(pa.float32())), label=[]),
        r"train\.parquet: embeddings are empty",
    ),
    "class names that are no JSON": (
        "parquet",
        {
            "train.parquet": pa.table(
                columns()["train.parquet"], metadata={"class_names": "["}
            )
        },
        r"train\.parquet: cannot be read as a Parquet file \(class names are JSON",
    ),
    "other columns in another shard": (
        "parquet",
        {
            **{"train-0-of-2.parquet": columns()["train.parquet"]},
            "train-1-of-2.parquet": {"label": [0, 1]},
        },
        r"train-1-of-2\.parquet: cannot be read as a Parquet file with columns emb",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_bad_files_are_refused(case, tmp_path):
    kind, files, message = FILES[case]
    write(tmp_path, files)
    with pytest.raises(ValueError, match=message):
        load(DataConfig(source=f"{kind}:{tmp_path}"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("digits", "data.source is 'digits', expected KIND:LOCATION"),
        ("npz:", "data.source is 'npz:', expected KIND:LOCATION"),
        ("npx:data", "data.source is 'npx:data', .*did you mean 'np"),
        ("sklearn:digit", "NAME is 'digit', expected one of digits, .*mean 'digits'"),
        ("npz:{}/none", "none: is not there, expected a folder"),
        ("npz:{}/file.npz", r"file\.npz: is a file, expected a folder"),
        ("tfds:none?data_dir={}", r"none: there is no prepared dataset of version any"),
        ("tfds:set:2.0.0?data_dir={}", r"version 2\.0\.0 \(found: 1\.0\.0\), expected"),
        ("tfds:set?dir={}", "has the option 'dir=.*expected data_dir=DIR"),
        ("tfds:set?data_dir={}", r"1\.0\.0: cannot be read as a prepared TFDS dataset"),
    ],
)
def test_bad_sources_are_refused(source, message, tmp_path):
    np.savez(tmp_path / "file.npz", **good())
    (tmp_path / "set" / "1.0.0").mkdir(parents=True)
    (tmp_path / "set" / "1.0.0" / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match=message):
        load(DataConfig(source=source.format(tmp_path)))


def test_a_field_that_is_not_there_is_refused_with_the_nearest(tmp_path):
    write(tmp_path, columns())
    config = DataConfig(source=f"parquet:{tmp_path}")
    for name, value in (("embeddings", "embeding"), ("labels", "lable")):
        message = f"data.{name}_field is '{value}', .*did you mean '{name[:-1]}'"
        with pytest.raises(ValueError, match=message):
            load(dataclasses.replace(config, **{f"{name}_field": value}))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("new.csv", b"", r"new\.csv: the suffix is '\.csv', expected one of \.npz, "),
        ("new.npz", None, r"new\.npz: there is no such file, expected embeddings"),
        ("new.npy", np.ones(3), r"new\.npy: embeddings have shape \[3\]"),
        ("new.npy", np.float32(1), r"new\.npy: embeddings have shape \[\]"),
        ("new.npy", b"nothing", r"new\.npy: cannot be read as an npy file"),
        ("new.npz", {"x": np.ones((3, 2))}, r"new\.npz: unknown field 'x'"),
        ("new.npz", {"ids": np.arange(3)}, r"new\.npz: there is no field 'embeddings'"),
        ("new.npz", good(ids=[1, 2]), r"new\.npz: ids has the shape \[2\] and there"),
        ("new.npy", np.ones((0, 3)), r"new\.npy: there is no row"),
        ("new.npy", cut(np.ones((9, 3))), r"new\.npy: .*it ends before its last row"),
        ("new.npy", np.full((3, 2), np.nan), r"new\.npy: embeddings are NaN"),
    ],
)
def test_bad_inputs_are_refused(name, content, message, tmp_path):
    if content is not None:
        write(tmp_path, {name: content})
    with pytest.raises(ValueError, match=message):
        open_inputs(tmp_path / name)


@pytest.mark.parametrize(
    ("split", "fields", "message"),
    [
        ("tset", good(), "no split 'tset', expected one of test; did you mean 'test'"),
        ("train", good(), "no split 'train', expected one of test"),
        ("test", good(labels=["ant", "cow"] * 12), r"lacks \('cow': 12\) are in 12 of"),
        ("test", good(), "labels such as 2 are outside of the 2 class names"),
        (
            "test",
            good(labels=np.eye(3)[np.arange(ROWS) % 3]),
            "labels have 3 columns and there are 2 class names",
        ),
        ("test", good(labels=at([1], -1, 0)), r"labels are -1 or empty.*\(1\)"),
    ],
)
def test_a_bad_split_for_a_trained_head_is_refused(split, fields, message, tmp_path):
    write(tmp_path, {"test.npz": fields})
    with pytest.raises(ValueError, match=message):
        load_split(
            f"npz:{tmp_path}",
            split,
            class_names=("ant", "bee"),
            task="multiclass",
            config=DataConfig(),
        )


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_every_number_of_two_bytes_is_finite_or_not(kind):
    numbers = np.arange(2**16, dtype=np.uint16).view(kind)[:, None]
    expected = np.isfinite(numbers.astype(np.float32))[:, 0]
    np.testing.assert_array_equal(checks.finite(numbers), expected)


def test_multilabel_heads_need_a_matrix(tmp_path):
    write(tmp_path, {"test.npz": good(labels=[0, 1] * 12)})
    with pytest.raises(ValueError, match="task is multilabel and there is one label"):
        load_split(
            f"npz:{tmp_path}",
            "test",
            class_names=("ant", "bee"),
            task="multilabel",
            config=DataConfig(),
        )
