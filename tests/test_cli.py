"""The command line: what it writes, and that nothing ever ends in a traceback."""

import csv
import json
import os

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

import flaxhead
import train
from flaxhead import Config, DataConfig, OptimizerConfig, TrainConfig, cli
from flaxhead.loop import run

NAMES = ("ant", "bee", "cat")


@pytest.fixture(autouse=True, scope="module")
def as_it_was():
    """Less optimised code compiles in a third; and `main` changes the cache."""
    name = "jax_compilation_cache_dir"
    before = getattr(jax.config, name)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update(name, before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with `data`, and a finished `run` on it."""
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 5)).astype(np.float32)
    labels = (x[:, :3] + 0.5 * rng.normal(size=(300, 3))).argmax(1)
    data = folder / "data"
    data.mkdir()
    for name, rows in {"train": slice(200), "test": slice(200, None)}.items():
        np.savez(
            data / f"{name}.npz",
            embeddings=x[rows],
            labels=labels[rows],
            class_names=np.array(NAMES),
        )
    config = Config(
        data=DataConfig(f"npz:{data}"),
        optimizer=OptimizerConfig("sgd", learning_rate=(0.3,)),
        train=TrainConfig(steps=40, evaluations=2, devices=1),
    )
    run(config, folder / "run")
    return folder


def call(main, arguments, capsys):
    """`(status, stdout, stderr)` of a command line; other exceptions are defects."""
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    said = capsys.readouterr()
    return status, said.out, said.err


def refused(main, arguments, capsys):
    """Checks that it is refused as it should be; returns the sentence."""
    status, out, err = call(main, arguments, capsys)
    assert status == 2, err
    assert out == ""
    assert "Traceback" not in err
    found = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(found) == 1, err
    assert err.count("\n") == 1, err
    return found[0]


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_are_the_heads(trained, tmp_path, capsys):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(20, 5)).astype(np.float32)
    ids = np.array([f"row, {i}" for i in range(20)])
    np.savez(tmp_path / "new.npz", embeddings=x, ids=ids)
    head = trained / "run" / "head"
    given = ["predict", f"--head={head}", f"--input={tmp_path / 'new.npz'}"]
    given += [f"--output={tmp_path / 'out.csv'}", "--probabilities"]
    assert call(cli.main, given, capsys) == (0, "", "20/20 rows\n")
    rows = read(tmp_path / "out.csv")
    columns = [f"probability:{name}" for name in NAMES]
    assert list(rows[0]) == ["id", "prediction", "confidence", *columns]
    expected = np.asarray(flaxhead.load(head).probabilities(x))
    got = np.array([[float(row[name]) for name in columns] for row in rows])
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got.sum(1), 1, atol=1e-5)
    assert [row["id"] for row in rows] == ids.tolist()
    assert [row["prediction"] for row in rows] == [NAMES[i] for i in expected.argmax(1)]
    confidences = [float(row["confidence"]) for row in rows]
    np.testing.assert_allclose(confidences, expected.max(1), rtol=1e-4)
    # Without the flag: the same, less those columns; but not in place of them.
    assert "differ in scores" in refused(cli.main, given[:-1], capsys)
    short = [*given[:-1], "--overwrite"]
    assert call(cli.main, short, capsys) == (0, "", "20/20 rows\n")
    short = read(tmp_path / "out.csv")
    assert list(short[0]) == ["id", "prediction", "confidence"]
    assert [row["prediction"] for row in short] == [row["prediction"] for row in rows]


def test_arrays_and_logits_are_asked_for_by_flags(trained, tmp_path, capsys):
    x = np.random.default_rng(1).normal(size=(20, 5)).astype(np.float32)
    (tmp_path / "new").mkdir()
    for number, rows in enumerate(np.split(x, [7])):
        np.save(tmp_path / "new" / f"{number}.npy", rows)
    folder = trained / "run" / "head"
    given = ["predict", f"--head={folder}", f"--input={tmp_path / 'new'}"]
    asked = {"all": ["--batch-size=1"], "logits": ["--logits"], "two": ["--top-k=2"]}
    for name, flags in asked.items():
        output = f"--output={tmp_path / name}.npy"
        status, out, err = call(cli.main, [*given, output, *flags], capsys)
        assert (status, out) == (0, ""), err
        assert err.endswith("20/20 rows\n") or "  0 s left\n" in err
    head = flaxhead.load(folder)
    shares = np.asarray(head.probabilities(x))
    np.testing.assert_allclose(np.load(tmp_path / "all.npy"), shares, rtol=1e-5)
    np.testing.assert_allclose(
        np.load(tmp_path / "logits.npy"), head.logits(x), rtol=1e-4, atol=1e-5
    )
    first = np.load(tmp_path / "two.npy")["class"][:, 0]
    np.testing.assert_array_equal(first, shares.argmax(1))


def test_evaluate_repeats_the_runs_scores(trained, capsys):
    result = json.loads((trained / "run" / "result.json").read_text())
    for split in ("test", "val"):
        given = ["evaluate", f"--head={trained / 'run' / 'head'}", f"--split={split}"]
        status, out, err = call(
            cli.main, [*given, f"--data=npz:{trained / 'data'}"], capsys
        )
        assert (status, err) == (0, "")
        assert json.loads(out) == {"split": split, **result[split]}


def test_other_norms_are_warned_of(trained, tmp_path, capsys):
    x = 50 * np.random.default_rng(1).normal(size=(20, 5)).astype(np.float32)
    np.save(tmp_path / "new.npy", x)
    given = ["predict", f"--head={trained / 'run' / 'head'}"]
    given += [f"--input={tmp_path / 'new.npy'}", f"--output={tmp_path / 'out.csv'}"]
    status, _, err = call(cli.main, given, capsys)
    assert status == 0
    assert err.startswith("warning: the embeddings have a mean norm of ")
    assert len(err.splitlines()) == 2  # And that all rows are done.


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--input": "wide.npy"}, ["[rows, 6]", "[rows, 5]"]),
        ({"--input": "tokens.npy"}, ["[rows, 3, 5]", "[rows, 5]"]),
        ({"--input": "nan.npy"}, ["nan.npy", "1 of 4 rows (2)"]),
        ({"--input": "nowhere.npy"}, ["nowhere.npy", "no such file"]),
        ({"--input": "text.npy"}, ["text.npy"]),
        ({"--input": "good.csv"}, ["suffix"]),
        ({"--output": "no/folder/out.csv"}, ["its folder does not exist"]),
        ({"--output": "out.npz"}, ["expected .npy or .csv"]),
        ({"--head": "."}, ["head.json is missing"]),
    ],
)
def test_predict_refuses_what_it_cannot_use(trained, tmp_path, capsys, change, words):
    good = np.ones((4, 5), np.float32)
    np.save(tmp_path / "good.npy", good)
    np.save(tmp_path / "wide.npy", np.ones((4, 6), np.float32))
    np.save(tmp_path / "tokens.npy", np.ones((4, 3, 5), np.float32))
    good[2, 0] = np.nan
    np.save(tmp_path / "nan.npy", good)
    (tmp_path / "text.npy").write_text("1,2,3")
    (tmp_path / "good.csv").write_text("1,2,3")
    options = {"--head": trained / "run" / "head"}
    options |= {"--input": "good.npy", "--output": "out.csv"} | change
    given = [f"{name}={tmp_path / value}" for name, value in options.items()]
    line = refused(cli.main, ["predict", *given], capsys)
    for word in words:
        assert word in line
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("source", "split", "words"),
    [
        ("npz:DATA", "tset", ["'tset'", "did you mean 'test'"]),
        ("npy:DATA", "test", ["DATA"]),
        ("npz:nowhere", "test", ["nowhere"]),
        ("digits", "test", ["KIND:LOCATION"]),
        ("sklearn:iris", "test", ["iris"]),
        ("", "test", ["KIND:LOCATION"]),
    ],
)
def test_evaluate_refuses_what_it_cannot_use(trained, capsys, source, split, words):
    data = str(trained / "data")
    given = ["evaluate", f"--head={trained / 'run' / 'head'}", f"--split={split}"]
    line = refused(cli.main, [*given, f"--data={source.replace('DATA', data)}"], capsys)
    for word in words:
        assert word.replace("DATA", data) in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.train.batchsize=1"], ["did you mean 'batch_size'"]),
        (["--config.optimizer.nesterov=False "], ["True or False"]),
        (["--config.optimizer.nesterov=yes"], ["True or False"]),
        (["--config.heads.0.name=transformer"], ["linear, mlp"]),
        (["--config.data.source=sklearn:digit"], ["digits"]),
        (["--config.data.source=npz:nowhere"], ["nowhere"]),
        (["--config.train.devices=99"], ["train.devices is 99"]),
        (["--config.heads.0.pool=mean"], ["heads.0.pool is 'mean'"]),
        (["--config.loss.class_weights={'x':1}"], ["'x'"]),
        (["--config.train.steps=" + "9" * 12], ["a number below"]),
        (["--config=nowhere.py"], ["nowhere.py"]),
        (["--confg.train.steps=1"], ["--config.FIELD=VALUE"]),
        (["--config.train.steps", "1"], ["--config.FIELD=VALUE"]),
        (["--config.FIELD=1"], ["FIELD"]),
        (["digits"], ["digits", "--config.FIELD=VALUE"]),
    ],
)
def test_training_refuses_what_it_cannot_use(
    tmp_path, monkeypatch, capsys, arguments, words
):
    monkeypatch.chdir(tmp_path)
    line = refused(train.main, arguments, capsys)
    for word in words:
        assert word in line


@pytest.fixture
def not_root():
    """The superuser may write anywhere, so a test of that must be somebody else."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, not_root, capsys):
    flags = ["--config.data.source=sklearn:iris", f"--workdir={tmp_path / 'run'}"]
    if os.getuid() != 0:
        tmp_path.chmod(0o500)
    line = refused(train.main, flags, capsys)
    assert "Permission denied" in line
    assert str(tmp_path) in line


def test_folders_of_others_are_refused_and_left_alone(tmp_path, capsys):
    flags = ["--config.data.source=sklearn:iris"]
    (tmp_path / "notes.txt").write_text("mine")
    line = refused(train.main, [*flags, f"--workdir={tmp_path}"], capsys)
    assert "holds no run of flaxhead" in line
    line = refused(train.main, [*flags, f"--workdir={tmp_path / 'notes.txt'}"], capsys)
    assert "notes.txt" in line
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    for text in ("{", "[]", "{}", '{"config": 3, "data": {}}'):
        (other / "config.json").write_text(text)
        line = refused(train.main, [*flags, f"--workdir={other}"], capsys)
        assert "other" in line
        assert (other / "config.json").read_text() == text


FIELDS = st.sampled_from(
    ["embeddings", "labels", "mask", "weights", "groups", "ids", "class_names", "label"]
)
ARRAYS = st_numpy.arrays(
    dtype=st.sampled_from(
        ["f4", "f8", "f2", "i4", "u1", "?", "c8", "U3", "S2", "M8[s]"]
    ),
    shape=st_numpy.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
GOOD = {
    "embeddings": np.arange(80, dtype=np.float32).reshape(20, 4),
    "labels": np.arange(20) % 2,
}


@settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    changes=st.dictionaries(FIELDS, ARRAYS | st.none(), min_size=1, max_size=2),
    split=st.sampled_from(["train", "val", "test"]),
)
@example(changes={"labels": np.full(20, 2.0**63)}, split="train")
@example(changes={"labels": np.full((20, 1), 2.0**200)}, split="train")
def test_no_file_is_more_than_an_error(changes, split, tmp_path, monkeypatch, capsys):
    """Of files with one or two odd fields, each is taken or refused in a sentence."""
    fields = {**GOOD, **changes}
    for name in ("train", "val", "test"):
        np.savez(tmp_path / f"{name}.npz", **GOOD)
    kept = {name: value for name, value in fields.items() if value is not None}
    np.savez(tmp_path / f"{split}.npz", **kept)
    # What comes before compiling is all that a bad file may reach.
    monkeypatch.setattr(flaxhead.loop, "_compile", stop)
    flags = [f"--config.data.source=npz:{tmp_path}", f"--workdir={tmp_path / 'run'}"]
    try:
        line = refused(train.main, flags, capsys)
    except Taken:
        capsys.readouterr()
    else:
        assert len(line) > len("error: ")
    finally:
        for path in (tmp_path / "run").glob("*"):
            path.unlink()


class Taken(Exception):
    """The data was good enough to compile for."""


def stop(plan):
    raise Taken


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"embeddings": np.full((20, 4), np.nan)}, ["NaN or infinite", "20 of 20"]),
        ({"embeddings": np.ones(20)}, ["embeddings"]),
        ({"embeddings": np.ones((20, 4), "c8")}, ["embeddings"]),
        ({"embeddings": np.ones((0, 4))}, ["embeddings"]),
        ({"labels": np.arange(19) % 2}, ["labels"]),
        ({"labels": np.zeros(20, int)}, ["one class"]),
        ({"labels": np.full(20, 0.5)}, ["labels"]),
        ({"weights": -np.ones(20)}, ["weights"]),
        ({"weights": np.zeros(20)}, ["weights"]),
        ({"mask": np.ones((20, 4), bool)}, ["mask"]),
        ({"label": np.zeros(20)}, ["'label'", "did you mean 'labels'"]),
    ],
)
def test_known_mistakes_in_files_are_named(tmp_path, capsys, fields, words):
    np.savez(tmp_path / "train.npz", **{**GOOD, **fields})
    flags = [f"--config.data.source=npz:{tmp_path}", f"--workdir={tmp_path / 'run'}"]
    line = refused(train.main, flags, capsys)
    assert "train.npz" in line
    for word in words:
        assert word in line
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_no_npz_is_named(tmp_path, capsys):
    (tmp_path / "train.npz").write_text("PK\3\4 not really")
    flags = [f"--config.data.source=npz:{tmp_path}", f"--workdir={tmp_path / 'run'}"]
    assert "train.npz" in refused(train.main, flags, capsys)


@pytest.mark.parametrize(
    ("main", "arguments", "words"),
    [
        (
            train.main,
            ["--help"],
            ["--config", "--workdir", "--multihost", "--config.train"],
        ),
        (cli.main, ["--help"], ["predict", "evaluate"]),
        (cli.main, ["--version"], [f"flaxhead {flaxhead.__version__}\n"]),
        (cli.main, ["predict", "--help"], ["--head", "--input", "--output"]),
        (cli.main, ["evaluate", "--help"], ["--head", "--data", "--split"]),
    ],
)
def test_help_explains(main, arguments, words, capsys):
    status, out, err = call(main, arguments, capsys)
    assert (status, err) == (0, "")
    for word in words:
        assert word in out


@pytest.mark.parametrize("arguments", [[], ["predict"], ["explain"], ["predict", "-x"]])
def test_missing_arguments_are_told_with_the_usage(arguments, capsys):
    status, out, err = call(cli.main, arguments, capsys)
    assert status == 2
    assert out == ""
    assert err.startswith("usage: flaxhead")
    (line,) = [line for line in err.splitlines() if "error: " in line]
    assert line.startswith("flaxhead")


def test_libraries_messages_are_one_line_too(capsys):
    def fail(arguments):
        with cli.errors():
            raise ValueError("first\nsecond")

    assert refused(fail, [], capsys) == "error: first second"


def test_the_summary_tells_what_won(trained):
    result = json.loads((trained / "run" / "result.json").read_text())
    text = cli.summary(result, "somewhere")
    assert text.startswith("linear won of 1 by validation accuracy ")
    assert f"{result['test']['accuracy']:.4f}" in text
    assert "somewhere/head" in text


def test_predictions_never_replace_what_they_are_made_from(trained, capsys, tmp_path):
    path = tmp_path / "new.npz"
    np.savez(path, embeddings=np.ones((2, 5), np.float32))
    before = path.read_bytes()
    command = ["predict", "--head", str(trained / "run" / "head"), "--input", str(path)]
    assert "is the input" in refused(
        cli.main, [*command, "--output", str(path)], capsys
    )
    assert "is a folder" in refused(
        cli.main, [*command, "--output", str(tmp_path)], capsys
    )
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["new.npz"]


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--config.train.devices=99", "this machine has"),
        ("--config.loss.class_weights={'zz':2}", "names 'zz'"),
    ],
)
def test_a_refused_run_leaves_its_folder_to_the_corrected_one(
    trained, capsys, tmp_path, flag, sentence
):
    workdir = tmp_path / "run"
    source = f"--config.data.source=npz:{trained / 'data'}"
    arguments = [source, flag, f"--workdir={workdir}"]
    assert sentence in refused(train.main, arguments, capsys)
    assert not workdir.exists()


def test_an_empty_workdir_is_refused(trained, capsys):
    source = f"--config.data.source=npz:{trained / 'data'}"
    assert "workdir is empty" in refused(train.main, [source, "--workdir="], capsys)


def test_an_interruption_before_anything_was_saved_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop, cli.errors():
        raise KeyboardInterrupt
    assert stop.value.code == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_a_head_without_settings_is_not_another_one(monkeypatch):
    monkeypatch.setitem(flaxhead.HEADS, "mine", flaxhead.linear)
    config = flaxhead.HeadConfig("mine")
    with pytest.raises(ValueError, match="'mine'"):
        flaxhead.build.make_head(config, classes=2, statistics=())
