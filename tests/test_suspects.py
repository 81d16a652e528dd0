"""Wrong labels are listed, in a script and on the command line."""

import csv

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from test_cli import call, refused

import flaxhead as fh
from flaxhead import HeadConfig, cli
from flaxhead.folds import FOLDS
from flaxhead.suspects import Suspects, told

NAMES = np.array(["ant", "bee", "cat"])
ROWS, CUT = 150, 110
WRONG = np.array([3, 40, 77, 121, 122])
HEAD = HeadConfig("logistic", C=(1.0,))


def rows(seed=0):
    """Clusters, their classes, and labels of which five are wrong."""
    rng = np.random.default_rng(seed)
    right = np.arange(ROWS) % 3
    x = 3 * np.eye(3)[right] + rng.normal(size=(ROWS, 3), scale=0.5)
    labels = right.copy()
    labels[WRONG] = (labels[WRONG] + 1) % 3
    return x.astype(np.float32), right, labels


def test_wrong_labels_are_found_and_put_right():
    x, right, labels = rows()
    found = fh.find_label_errors(x, NAMES[labels], heads=HEAD)
    assert sorted(found.ids) == WRONG.tolist()
    np.testing.assert_array_equal(found.given, labels[found.ids])
    np.testing.assert_array_equal(found.suggested, right[found.ids])
    assert found.class_names == tuple(NAMES)
    assert (found.rows, found.head) == (ROWS, "logistic")
    assert abs(found.noise - len(WRONG) / ROWS) < 0.02
    assert (np.diff(found.score) >= 0).all()
    assert (found.margin < 0).all()


def test_scores_are_of_heads_without_the_row():
    x, _, labels = rows()
    fold = FOLDS["stratified"](labels, folds=5, seed=0)
    expected = np.zeros((ROWS, 3))
    for out in range(5):
        model = LogisticRegression(C=1.0, tol=1e-8).fit(
            x[fold != out], labels[fold != out]
        )
        expected[fold == out] = model.predict_proba(x[fold == out])
    found = fh.find_label_errors(x, labels, heads=HEAD)
    score = expected[found.ids, found.given]
    np.testing.assert_allclose(found.score, score, rtol=0.02)
    margin = score - expected[found.ids].max(axis=1)
    np.testing.assert_allclose(found.margin, margin, rtol=0.02)
    # A head that saw the rows agrees with their wrong labels more.
    seen = LogisticRegression(C=1.0, tol=1e-8).fit(x, labels).predict_proba(x)
    assert (seen[found.ids, found.given] > 1.05 * found.score).all()


def test_rows_without_a_label_are_left_out_and_ids_are_kept():
    x, _, labels = rows()
    shown = np.where(np.arange(ROWS) < 9, -1, labels)
    for heads in (HEAD, HeadConfig("semi_supervised", C=(1.0,))):
        found = fh.find_label_errors(x, shown, heads=heads, folds=2)
        assert sorted(found.ids) == WRONG[1:].tolist()
        assert found.rows == ROWS - 9
    ids = [f"image {number}" for number in range(ROWS)]
    found = fh.find_label_errors(x, shown, heads=HEAD, ids=ids, groups=np.arange(ROWS))
    assert sorted(found.ids) == sorted(ids[number] for number in WRONG[1:])


def test_labels_of_several_classes_are_refused():
    x, _, labels = rows()
    with pytest.raises(ValueError, match="expected one class a row"):
        fh.find_label_errors(x, np.eye(3)[labels] + np.eye(3)[labels - 1])
    with pytest.raises(ValueError, match="folds"):
        fh.find_label_errors(x, labels, folds=0)


def test_nothing_suspected_is_a_line_too():
    nothing = np.zeros(0, int)
    found = Suspects(*[nothing] * 6, 9, 0.0, 0.5, tuple(NAMES), "ridge")
    assert told(found) == (
        "0 of 9 labels are suspected (0.0%) by ridge, which itself gives "
        "50.0% of the labels and estimates 0.0% to be wrong"
    )


@pytest.fixture
def folder(tmp_path):
    x, _, labels = rows()
    data = tmp_path / "data"
    data.mkdir()
    for name, part in {"train": slice(CUT), "test": slice(CUT, None)}.items():
        np.savez(data / f"{name}.npz", embeddings=x[part], labels=NAMES[labels[part]])
    return tmp_path


def command(folder, *more):
    return [
        *("labels", "--data", f"npz:{folder / 'data'}", "--heads", "logistic"),
        *("--output", str(folder / "out.csv"), "--config.heads.0.C=(1.0,)", *more),
    ]


def test_a_list_of_all_splits(folder, capsys):
    _, right, labels = rows()
    status, out, err = call(cli.main, command(folder), capsys)
    assert status == 0, err
    assert out.startswith("5 of 150 labels are suspected (3.3%) by logistic, which ")
    assert out.endswith(f"; the list is {folder / 'out.csv'}\n")
    assert "1/1 candidates" in err
    with (folder / "out.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [int(line["rank"]) for line in lines] == [1, 2, 3, 4, 5]
    before = {"train": 0, "test": CUT}
    numbers = [int(line["id"]) + before[line["split"]] for line in lines]
    assert sorted(numbers) == WRONG.tolist()
    assert [line["given"] for line in lines] == NAMES[labels[numbers]].tolist()
    assert [line["suggested"] for line in lines] == NAMES[right[numbers]].tolist()
    scores = [float(line["score"]) for line in lines]
    assert scores == sorted(scores)
    assert all(float(line["margin"]) < 0 for line in lines)
    # Not replaced, unless it is said; and the same again.
    written = (folder / "out.csv").read_bytes()
    assert "--overwrite" in refused(cli.main, command(folder), capsys)
    (folder / "out.csv").write_text("old")
    assert call(cli.main, command(folder, "--overwrite"), capsys)[1] == out
    assert (folder / "out.csv").read_bytes() == written


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--heads", "logistik"], "'logistik'"),
        (["--data", "npz:nowhere"], "nowhere: is not there"),
        (["--data", "sklearn"], "expected KIND:LOCATION"),
        (["--output", "nowhere/out.csv"], "its folder does not exist"),
        (["--output", "."], "is a folder"),
        (["--output", "gs://bucket/out.csv"], "of this machine"),
        (["--config.selection.folds=0"], "selection.folds is 0"),
        (["--config.data.task=multilabel"], "expected"),
        (["--fold=3"], "--fold=3"),
    ],
)
def test_what_cannot_be_listed_is_refused(folder, capsys, more, sentence):
    assert sentence in refused(cli.main, command(folder, *more), capsys)
    assert not (folder / "out.csv").exists()
