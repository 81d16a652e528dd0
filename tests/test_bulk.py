"""Scores from disk to disk: what is written, what goes on, what is refused."""

import contextlib
import csv
import json
import os
import resource
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest

import flaxhead as fh
from flaxhead import bundle
from flaxhead.build import make_head
from flaxhead.bulk import files, predict
from flaxhead.loop import Interrupted
from flaxhead.paths import alone
from flaxhead.report.progress import Display

ROOT = Path(__file__).parent.parent
NAMES = ("ant", "bee, wild", "cat")
DIM, ROWS, BLOCK = 5, 100, 16
KINDS = {
    "probabilities": ("out.npy", {}),
    "logits": ("out.npy", {"scores": "logits"}),
    "top 2": ("out.npy", {"top_k": 2}),
    "csv": ("out.csv", {}),
    "csv, all": ("out.csv", {"scores": "probabilities"}),
    "csv, top 2": ("out.csv", {"top_k": 2}),
}


def made(seed=0, task="multiclass"):
    """A linear head of random numbers."""
    draw = np.random.default_rng(seed)
    config = fh.HeadConfig("linear")
    x = draw.normal(size=(ROWS, DIM)).astype(np.float32)
    shapes = make_head(config, classes=3, statistics=()).init(jax.random.key(0), x)
    return bundle.Bundle(
        config=config,
        params=jax.tree.map(
            lambda leaf: draw.normal(size=leaf.shape).astype(np.float32), shapes
        ),
        statistics=(x.mean(0), x.std(0)),
        class_names=NAMES,
        task=task,
        output="softmax" if task == "multiclass" else "sigmoid",
        spec=bundle.feature_spec(x, config=config, backbone=""),
        data=fh.DataConfig("npz:somewhere"),
        metrics={},
    )


HEAD = bundle.functions(made())
X = np.random.default_rng(1).normal(size=(ROWS, DIM)).astype(np.float16)


def expected_logits(x):
    kernel, bias = (HEAD.params["output"][name] for name in ("kernel", "bias"))
    return x.astype(np.float64) @ np.asarray(kernel, np.float64) + np.asarray(bias)


def expected_probabilities(x):
    shares = np.exp(expected_logits(x))
    return shares / shares.sum(1, keepdims=True)


@pytest.fixture
def inputs(tmp_path):
    np.save(tmp_path / "new.npy", X)
    return tmp_path / "new.npy"


def score(inputs, output, *, head=HEAD, **options):
    options = {"batch_size": BLOCK, "devices": 1} | options
    return fh.predict_files(head, inputs, output, **options)


def display(step):
    """Tells of nothing, but calls a function with how many rows are done."""
    return Display(lambda text: None, lambda done, *_: step(done), lambda: None)


def stop_at(rows):
    """Sends this process a signal once so many rows are written."""

    def step(done):
        if done >= rows:
            os.kill(os.getpid(), signal.SIGTERM)

    return display(step)


@pytest.fixture
def tell_always(monkeypatch):
    monkeypatch.setattr(predict, "_TELL_SECONDS", 0.0)


def read(path):
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_scores_are_those_of_numpy_in_every_form(inputs, tmp_path):
    got = {}
    for kind, (name, options) in KINDS.items():
        (tmp_path / kind).mkdir()
        told = score(inputs, tmp_path / kind / name, **options)
        assert told["rows"] == told["done"] == ROWS
        assert tuple(told["class_names"]) == NAMES
        assert told == json.loads((tmp_path / kind / f"{name}.json").read_text())
        assert len(os.listdir(tmp_path / kind)) == 2
        got[kind] = read(tmp_path / kind / name)
    shares = expected_probabilities(X)
    np.testing.assert_allclose(got["probabilities"], shares, rtol=1e-5)
    np.testing.assert_allclose(got["logits"], expected_logits(X), rtol=1e-4, atol=1e-5)
    largest = np.argsort(-shares, axis=1)[:, :2]
    np.testing.assert_array_equal(got["top 2"]["class"], largest)
    found = np.take_along_axis(got["probabilities"], largest, 1)
    np.testing.assert_array_equal(got["top 2"]["probability"], found)

    # A CSV has the same numbers, in six digits.
    short = [f"{value:.6g}" for value in got["probabilities"].max(1).tolist()]
    for kind in ("csv", "csv, all", "csv, top 2"):
        assert [row["id"] for row in got[kind]] == [str(i) for i in range(ROWS)]
        assert [row["confidence"] for row in got[kind]] == short
        best = [NAMES[number] for number in largest[:, 0]]
        assert [row["prediction"] for row in got[kind]] == best
    for number, name in enumerate(NAMES):
        column = [f"{p:.6g}" for p in got["probabilities"][:, number].tolist()]
        assert [row[f"probability:{name}"] for row in got["csv, all"]] == column
    for place in (0, 1):
        second = [row[f"class:{place + 1}"] for row in got["csv, top 2"]]
        assert second == [NAMES[number] for number in largest[:, place]]
        column = [f"{p:.6g}" for p in found[:, place].tolist()]
        given = [row[f"probability:{place + 1}"] for row in got["csv, top 2"]]
        assert given == column


@pytest.mark.parametrize("kind", ["top 2", "csv, all"])
def test_stopped_and_resumed_is_the_same(kind, inputs, tmp_path, tell_always):
    name, options = KINDS[kind]
    score(inputs, tmp_path / f"whole-{name}", **options)
    with pytest.raises(Interrupted, match="after row 48, which is saved"):
        score(inputs, tmp_path / name, display=stop_at(48), **options)
    assert not (tmp_path / name).exists()
    seen = []
    score(inputs, tmp_path / name, display=display(seen.append), **options)
    assert seen == [64, 80, 96, 100]
    whole = (tmp_path / f"whole-{name}").read_bytes()
    assert (tmp_path / name).read_bytes() == whole
    # Once more: nothing to do.
    before = (tmp_path / name).stat().st_mtime_ns
    score(inputs, tmp_path / name, display=display(seen.append), **options)
    assert len(seen) == 4
    assert (tmp_path / name).stat().st_mtime_ns == before


CHILD = """
import os, signal, sys
import flaxhead as fh
from flaxhead.bulk import files, predict
from flaxhead.report.progress import Display

files._SAVE_SECONDS = predict._TELL_SECONDS = 0.0

def step(done, *_):
    if done >= 48:
        os.kill(os.getpid(), signal.SIGKILL)

fh.predict_files(
    fh.load(sys.argv[1]), sys.argv[2], sys.argv[3], batch_size=16, devices=1,
    display=Display(print, step, print),
)
"""


def test_killed_and_resumed_is_the_same(inputs, tmp_path):
    bundle.save(tmp_path / "head", made())
    output, whole = tmp_path / "out.npy", tmp_path / "whole.npy"
    score(inputs, whole)
    command = [sys.executable, "-c", CHILD, tmp_path / "head", inputs, output]
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not output.exists()
    assert json.loads((tmp_path / "out.npy.json").read_text())["done"] == 48
    # What was written after the record is written again.
    with files.part(output).open("ab") as part:
        part.write(b"half a row")
    seen = []
    score(inputs, output, display=display(seen.append))
    assert seen[0] > 48
    assert output.read_bytes() == whole.read_bytes()


def test_a_full_disk_is_one_sentence_and_the_run_goes_on(inputs, tmp_path):
    output = tmp_path / "out.npy"
    score(inputs, tmp_path / "other.npy")  # The program is in JAX's cache by now.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(ValueError, match=r"out\.npy\.part can't be written"):
            score(inputs, output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    score(inputs, output)
    np.testing.assert_allclose(np.load(output), expected_probabilities(X), rtol=1e-5)


COMPILED = []  # an entry a compilation
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: COMPILED.append(name) if "backend_compile" in name else None
)


def test_files_of_any_sizes_are_one_program(tmp_path):
    x = np.random.default_rng(2).normal(size=(163, DIM)).astype(np.float16)
    (tmp_path / "shards").mkdir()
    for number, rows in enumerate(np.split(x, [1, 3, 40, 41, 41, 90])):
        np.save(tmp_path / "shards" / f"{number}.npy", rows)
    score(tmp_path / "shards", tmp_path / "warm.npy")
    before = len(COMPILED)
    score(tmp_path / "shards", tmp_path / "out.npy")
    assert len(COMPILED) == before + 1
    np.save(tmp_path / "one.npy", x)
    score(tmp_path / "one.npy", tmp_path / "whole.npy")
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_one_device_is_eight(inputs, tmp_path, tell_always):
    score(inputs, tmp_path / "one.npy", batch_size=4)
    score(inputs, tmp_path / "eight.npy", batch_size=4, devices=8)
    with pytest.raises(Interrupted):
        score(inputs, tmp_path / "both.npy", batch_size=4, display=stop_at(12))
    score(inputs, tmp_path / "both.npy", batch_size=4, devices=8)
    one = (tmp_path / "one.npy").read_bytes()
    assert (tmp_path / "eight.npy").read_bytes() == one
    assert (tmp_path / "both.npy").read_bytes() == one


def test_neither_input_nor_output_is_ever_whole_in_memory(tmp_path):
    rows = 200_000
    new = np.lib.format.open_memmap(
        tmp_path / "new.npy", mode="w+", dtype=np.float16, shape=(rows, DIM * 16)
    )
    del new  # A file of zeros, 32 MB.
    head = bundle.functions(made())
    wide = head.head._replace(
        apply=lambda params, x: HEAD.head.apply(params, x[:, :DIM])
    )
    spec = head.bundle.spec._replace(dim=DIM * 16)
    head = head._replace(head=wide, bundle=head.bundle._replace(spec=spec))
    tracemalloc.start()
    score(tmp_path / "new.npy", tmp_path / "out.npy", head=head, batch_size=1024)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6
    assert np.load(tmp_path / "out.npy", mmap_mode="r").shape == (rows, 3)


def test_several_labels_are_written_as_a_set(inputs, tmp_path):
    head = bundle.functions(made(task="multilabel"))
    score(inputs, tmp_path / "out.csv", head=head, top_k=1)
    shares = 1 / (1 + np.exp(-expected_logits(X)))
    for row, each in zip(read(tmp_path / "out.csv"), shares, strict=True):
        names = [name for name, share in zip(NAMES, each, strict=True) if share > 0.5]
        assert row["prediction"] == "|".join(names)
        assert row["class:1"] == NAMES[each.argmax()]


HELD = contextlib.ExitStack()  # what another process would hold


def flip(path, old, new):
    path.write_bytes(path.read_bytes().replace(old, new))


REFUSED = {
    "a head of another width": (
        lambda f: np.save(f / "new.npy", np.ones((4, 6), np.float32)),
        {},
        r"\[rows, 6\], the head expects \[rows, 5\]",
    ),
    "an output without a folder": (
        lambda f: None,
        {"output": "no/out.npy"},
        "its folder does not exist",
    ),
    "an output in a folder that can't be written to": (
        lambda f: None,
        {"output": "/proc/out.csv"},
        r"the folder /proc can't be written to \(",
    ),
    "an output of another kind": (
        lambda f: None,
        {"output": "out.npz"},
        r"the suffix is '\.npz', expected \.npy or \.csv",
    ),
    "an output of a spreadsheet": (
        lambda f: None,
        {"output": "out.xlsx"},
        r"the suffix is '\.xlsx', expected \.npy or \.csv",
    ),
    "the folder of a head in place of it": (
        lambda f: None,
        {"head": "RUN/head"},
        "head is 'RUN/head'; expected what flaxhead.load returns",
    ),
    "an output of somebody else": (
        lambda f: (f / "out.npy").write_bytes(b"mine"),
        {},
        "is there already, and is not known to be of flaxhead",
    ),
    "a part of somebody else": (
        lambda f: (f / "out.npy.part").write_bytes(b"mine"),
        {},
        "is there already, and is not known to be of flaxhead",
    ),
    "a record of somebody else": (
        lambda f: (f / "out.npy.json").write_text("[]"),
        {},
        r"out\.npy\.json is there already, and is not known to be of flaxhead",
    ),
    "other scores": (
        lambda f: score(f / "new.npy", f / "out.npy", scores="logits"),
        {},
        "holds scores that differ in scores; name another",
    ),
    "another head": (
        lambda f: score(
            f / "new.npy", f / "out.npy", head=bundle.functions(made(seed=5))
        ),
        {},
        "holds scores that differ in head; name another",
    ),
    "other rows": (
        lambda f: (
            score(f / "new.npy", f / "out.npy"),
            np.save(f / "new.npy", X[::-1]),
        ),
        {},
        "holds scores that differ in input; name another",
    ),
    "other blocks": (
        lambda f: score(f / "new.npy", f / "out.npy", batch_size=8),
        {},
        "holds scores that differ in batch_size; name another",
    ),
    "scores that were cut": (
        lambda f: (
            score(f / "new.npy", f / "out.npy"),
            os.truncate(f / "out.npy", 1000),
        ),
        {},
        "holds scores that differ in size; name another",
    ),
    "a record with a flipped bit": (
        lambda f: (
            score(f / "new.npy", f / "out.npy"),
            flip(f / "out.npy.json", b'"done": 100', b'"done": 101'),
        ),
        {},
        "is not known to be of flaxhead",
    ),
    "an output that another process writes": (
        lambda f: HELD.enter_context(alone(files.lock_path(f / "out.npy"), "")),
        {},
        r"another process is at work on the output .*out\.npy; wait",
    ),
    "more classes than there are": (lambda f: None, {"top_k": 4}, "top_k is 4"),
    "logits in a table": (
        lambda f: None,
        {"output": "out.csv", "scores": "logits"},
        r"need a name with \.npy",
    ),
    "a number that isn't one, late": (
        lambda f: np.save(
            f / "new.npy",
            np.where(np.arange(2000)[:, None] == 1500, np.nan, np.ones(DIM)),
        ),
        {},
        r"new\.npy, counted from row 1488: embeddings are NaN or infinite in 1 of "
        r"16 rows \(12\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_one_sentence(name, inputs, tmp_path):
    arrange, options, words = REFUSED[name]
    arrange(tmp_path)
    output = tmp_path / options.get("output", "out.npy")
    before = output.read_bytes() if output.exists() else None
    given = {key: value for key, value in options.items() if key != "output"}
    with pytest.raises(ValueError, match=words) as caught:
        score(inputs, output, **given)
    assert "\n" not in str(caught.value)
    assert (output.read_bytes() if output.exists() else None) == before
    HELD.close()


def test_what_may_be_replaced_is(inputs, tmp_path):
    output = tmp_path / "out.npy"
    np.save(inputs, np.full_like(X, np.inf))
    with pytest.raises(ValueError, match="NaN or infinite in 100 of 100 rows"):
        score(inputs, output)
    # Of a part without a row nothing is lost.
    np.save(inputs, X)
    score(inputs, output, scores="logits")
    score(inputs, output, overwrite=True)
    np.testing.assert_allclose(np.load(output), expected_probabilities(X), rtol=1e-5)


def test_a_disk_without_room_is_refused_before_anything(inputs, tmp_path, monkeypatch):
    full = os.statvfs(tmp_path)
    usage = files.shutil._ntuple_diskusage(full.f_blocks, full.f_blocks, 0)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match="the disk has room for 0 MB"):
        score(inputs, tmp_path / "out.npy")
    assert os.listdir(tmp_path) == ["new.npy"]
