"""Training rows that are made harder: only these, so many, and it is told."""

import dataclasses

import numpy as np
import pytest

from flaxhead.config import DataConfig
from flaxhead.data import arrays, load
from flaxhead.data.corrupt import long_tailed, mislabelled

WINE = DataConfig("sklearn:wine")


def test_labels_are_replaced_evenly():
    labels = np.repeat([0, 1, 2, -1], [3000, 3000, 3000, 1000])
    wrong = mislabelled(labels, share=0.2, classes=3, seed=0)
    changed = wrong != labels
    assert changed.sum() == 1800
    np.testing.assert_array_equal(wrong[labels < 0], -1)
    moved = np.bincount(3 * labels[changed] + wrong[changed], minlength=9).reshape(3, 3)
    np.testing.assert_array_equal(np.diag(moved), 0)
    np.testing.assert_allclose(moved[~np.eye(3, dtype=bool)], 300, rtol=0.2)
    again = mislabelled(labels, share=0.2, classes=3, seed=0)
    np.testing.assert_array_equal(again, wrong)
    other = mislabelled(labels, share=0.2, classes=3, seed=1)
    assert (other != wrong).any()
    np.testing.assert_array_equal(
        mislabelled(labels, share=0.0, classes=3, seed=0), labels
    )


def test_class_sizes_fall_exponentially():
    sizes = [40, 90, 1000, 60]
    labels = np.repeat(np.arange(4), sizes)
    kept = long_tailed(labels, ratio=1000.0, seed=0)
    # By size: 1000, 1000 / 10, / 100, / 1000; of the second there are 90 only.
    np.testing.assert_array_equal(np.bincount(labels[kept]), [1, 90, 1000, 10])
    assert long_tailed(np.array([0, 0, 1, 1, -1]), ratio=1.0, seed=0).all()


def test_only_training_rows_are_changed_and_it_is_told():
    plain = load(WINE)
    made = load(dataclasses.replace(WINE, label_noise=0.25, imbalance=4.0))
    for split in ("val", "test"):
        for one, other in zip(getattr(plain, split), getattr(made, split), strict=True):
            np.testing.assert_array_equal(one, other)
    told = made.notes["imbalance"]
    rows = len(made.train.labels)
    assert (told["rows"], told["rows_before"]) == (rows, len(plain.train.labels))
    right = dict(zip(plain.train.ids.tolist(), plain.train.labels, strict=True))
    before = np.array([right[one] for one in made.train.ids.tolist()])
    wrong = int((before != made.train.labels).sum())
    assert wrong == made.notes["label_noise"]["rows"] == round(rows / 4)
    counts = np.bincount(before)
    assert counts.max() == np.bincount(plain.train.labels).max()
    np.testing.assert_allclose(counts.max() / counts.min(), 4, rtol=0.1)
    assert "label_noise" not in plain.notes
    assert "imbalance" not in plain.notes


@pytest.mark.parametrize(
    ("field", "value"),
    [("label_noise", 1.0), ("label_noise", -0.1), ("imbalance", 0.5)],
)
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(ValueError, match=f"data.{field} is {value}"):
        load(dataclasses.replace(WINE, **{field: value}))


def test_several_labels_a_row_are_refused():
    labels = np.random.default_rng(0).integers(0, 2, (40, 3))
    given = {"embeddings": np.eye(40, dtype=np.float32), "labels": labels}
    with pytest.raises(ValueError, match="a row has several labels"):
        arrays(given, config=DataConfig(label_noise=0.1))
