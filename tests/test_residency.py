"""Embeddings that don't fit: which way is taken, and that it is the same rows."""

import dataclasses
import os
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from flaxhead import build, loop, parallel
from flaxhead.base import Batch
from flaxhead.config import (
    Config,
    ConsistencyConfig,
    DataConfig,
    HeadConfig,
    SelectionConfig,
    TrainConfig,
)
from flaxhead.data import Stored, fingerprint, in_memory, load
from flaxhead.data.stored import fetch
from flaxhead.data.stream import chunks
from flaxhead.report.progress import quiet
from flaxhead.sampling import Windows, find_window, make_windows, window_rows

ROWS, DIM = 420, 6
GB = 10**9


@settings(deadline=None, max_examples=50)
@given(
    rows=st.integers(1, 200),
    block=st.integers(1, 30),
    blocks=st.integers(1, 8),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_row_comes_once_an_epoch_in_an_order_of_its_own(
    rows, block, blocks, seed
):
    windows = Windows(rows, min(block, rows), blocks)
    seen = []
    for number in range(2 * windows.an_epoch):
        own, order = window_rows(windows, number, seed=seed)
        assert (np.diff(own) > 0).all()
        for place in {0, len(own) - 1}:
            position = len(seen) + place
            assert find_window(windows, position, seed=seed) == (number, place)
        seen += own[order].tolist()
    first, second = seen[:rows], seen[rows:]
    assert sorted(first) == sorted(second) == list(range(rows))
    if rows > 100:
        assert first != second


def test_pieces_of_a_stream_are_the_same_wherever_they_begin():
    x = np.arange(203, dtype=np.float32)[:, None]
    index = np.arange(203, dtype=np.int32)
    data = Batch(in_memory(x), index, np.ones(203, np.float32), index)
    windows = make_windows(203, row_bytes=4, window_bytes=4 * 64)
    assert (windows.block, windows.blocks) == (8, 8)

    def read(first, size):
        pieces = chunks(data, windows, seed=3, size=size, first=first, last=700)
        whole = Batch(*map(np.concatenate, zip(*pieces, strict=True)))
        assert not whole.weights[700 - first :].any()  # filled up
        whole = Batch(*(leaf[: 700 - first] for leaf in whole))
        np.testing.assert_array_equal(whole.x[:, 0], whole.index)
        return whole.index

    expected = read(0, 50)
    for first, size in ((1, 50), (63, 64), (202, 7), (203, 300), (699, 5)):
        np.testing.assert_array_equal(read(first, size), expected[first:])
    # And so are those that one of several processes wants of each step of seven.
    mine = np.arange(7) % 3 == 1
    pieces = chunks(data, windows, seed=3, size=35, first=63, last=700, mine=mine)
    got = np.concatenate([piece.index for piece in pieces])
    wanted = expected[63:].reshape(-1, 7)[:, mine].ravel()
    np.testing.assert_array_equal(got[: len(wanted)], wanted)
    assert not got[len(wanted) :].any()

    # In turn in two places, which a processor's device takes without a copy.
    turns = chunks(data, windows, seed=3, size=50, first=0, last=700, rooms=2)
    turns = [(piece.x.ctypes.data, piece.index.copy()) for piece in turns]
    places, parts = zip(*turns, strict=True)
    assert len(set(places)) == 2
    assert not any(place % 64 for place in places)
    assert places[::2] == (places[0],) * 7
    np.testing.assert_array_equal(np.concatenate(parts), expected)


@pytest.mark.parametrize(
    ("size", "devices", "device", "host", "chosen"),
    [
        (9 * GB, 1, 16 * GB, 100 * GB, "replicated"),
        (10 * GB, 1, 16 * GB, 100 * GB, "streamed"),
        (10 * GB, 8, 16 * GB, 100 * GB, "sharded"),
        (59 * GB, 8, 16 * GB, 100 * GB, "sharded"),
        (76 * GB, 8, 16 * GB, 10 * GB, "streamed"),  # a part would not fit on the host
        (47 * GB, 8, 16 * GB, 10 * GB, "sharded"),
        (70 * GB, 8, 16 * GB, None, "sharded"),
        (80 * GB, 8, 16 * GB, None, "streamed"),
        (1, 8, 0, 1, "streamed"),
    ],
)
def test_the_first_place_where_they_fit_is_chosen(size, devices, device, host, chosen):
    got = parallel.choose_residency(size, devices=devices, device=device, host=host)
    assert got == chosen


def test_rows_of_a_search_are_on_the_host_first(monkeypatch):
    monkeypatch.setattr(parallel, "memory", lambda devices: (16 * GB, 10 * GB))
    trained = Config()
    assert loop.residency(trained, 47 * GB)[0] == "sharded"
    solved = dataclasses.replace(trained, heads=(HeadConfig("logistic"),))
    assert loop.residency(solved, 47 * GB)[0] == "streamed"


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (0, [(0, 65), (129, 1), (5000, 1), (16383, 1), (16384, 2)]),
        (100, [(0, 130), (5000, 1), (16383, 3)]),
    ],
)
def test_rows_that_lie_near_are_read_at_once(block, expected):
    """Rows of 1 kB: 64 of them apart, and 16,384 at most; or by groups."""
    asked = []

    def read(first, size):
        asked.append((first, size))
        return np.repeat(np.arange(first, first + size), 256).reshape(size, 256)

    x = Stored((20_000, 256), np.dtype(np.float32), read, block)
    rows = np.array([0, 64, 129, 5000, 16383, 16384, 16385])
    np.testing.assert_array_equal(fetch(x, rows)[:, 7], rows)
    assert asked == expected


def config(source, **data):
    """A run of a few epochs; noise and standardisation go by rows too."""
    return Config(
        data=DataConfig(source, window_bytes=1024, **{"residency": "streamed", **data}),
        heads=(HeadConfig(normalization="standardize", dropout=(0.1,)),),
        train=TrainConfig(batch_size=20, steps=60, evaluations=4, devices=1),
    )


def write_npy(folder, x, labels):
    np.save(folder / "train_embeddings.npy", x)
    np.save(folder / "train_labels.npy", labels)


def write_shards(folder, x, labels):
    for number, part in enumerate(np.split(x, [1, 150])):
        np.save(folder / f"train_embeddings-{number:05d}-of-00003.npy", part)
    np.save(folder / "train_labels.npy", labels)


def write_npz(folder, x, labels):
    np.savez(folder / "train.npz", labels=labels, embeddings=x)


def write_safetensors(folder, x, labels):
    save_file({"embeddings": x, "labels": labels}, folder / "train.safetensors")


def write_parquet(folder, x, labels):
    lists = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), DIM)
    table = pa.table({"embeddings": lists, "labels": labels})
    pq.write_table(table, folder / "train.parquet", row_group_size=7)


WRITERS = {
    "npy": write_npy,
    "npy ": write_shards,
    "npz": write_npz,
    "safetensors": write_safetensors,
    "parquet": write_parquet,
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The same rows in every format: name -> source."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, DIM)).astype(np.float16)
    labels = (x[:, :3] + rng.normal(size=(ROWS, 3))).argmax(1)
    found = {}
    for kind, write in WRITERS.items():
        folder = tmp_path_factory.mktemp("data")
        write(folder, x, labels)
        found[kind] = f"{kind.strip()}:{folder}"
    return found


@pytest.mark.parametrize("kind", WRITERS)
def test_what_stays_in_files_is_what_would_be_in_memory(kind, sources):
    asked = config(sources[kind]).data
    data = load(asked)
    whole = load(dataclasses.replace(asked, residency="auto"))
    assert isinstance(data.train.x, Stored)
    assert isinstance(data.val.x, np.ndarray) == (data.val.x.nbytes <= 1024)
    assert data.notes == whole.notes
    assert fingerprint(data) == fingerprint(whole)
    np.testing.assert_array_equal(data.train.x[5:40], whole.train.x[5:40])
    mean, std = data.train.x.scan.statistics
    values = np.asarray(whole.train.x, np.float64)
    np.testing.assert_allclose(mean, values.mean(0), atol=1e-6)
    np.testing.assert_allclose(std, values.std(0), rtol=1e-6)
    norms = np.linalg.norm(values, axis=1)
    np.testing.assert_allclose(data.train.x.scan.norms, [norms.mean(), norms.std()])


def outcome(workdir):
    return {
        "params": load_file(workdir / "head" / "params.safetensors"),
        "metrics": (workdir / "metrics.jsonl").read_text(),
    }


def test_a_streamed_run_that_was_stopped_goes_on_as_if_it_had_not(
    sources, tmp_path, monkeypatch
):
    monkeypatch.setattr(parallel, "_CHUNK_BYTES", 7 * 20 * (2 * DIM + 12))
    result = loop.run(config(sources["npy"]), tmp_path / "whole")
    assert result["data"]["residency"] == "streamed"

    def step(done, total, best, unit="steps"):
        if unit == "steps" and done >= 20:
            os.kill(os.getpid(), signal.SIGTERM)

    # In another format.
    again = config(sources["parquet"])
    with pytest.raises(loop.Interrupted):
        loop.run(again, tmp_path / "run", display=quiet()._replace(step=step))
    # As it began, whatever fits.
    monkeypatch.setattr(parallel, "choose_residency", lambda size, **_: "replicated")
    data = dataclasses.replace(again.data, residency="auto")
    loop.run(dataclasses.replace(again, data=data), tmp_path / "run")
    expected, got = outcome(tmp_path / "whole"), outcome(tmp_path / "run")
    assert got["metrics"] == expected["metrics"]
    for name, leaf in expected["params"].items():
        np.testing.assert_array_equal(got["params"][name], leaf)


def test_a_search_over_files_is_the_search_in_memory(sources, tmp_path):
    asked = config(sources["npy"])
    asked = dataclasses.replace(
        asked,
        heads=(HeadConfig("logistic", C=(0.1, 1.0)), HeadConfig("nearest_mean")),
        selection=SelectionConfig("nll", folds=3, extend=0),
    )
    resident = dataclasses.replace(asked.data, residency="auto")
    one = loop.run(asked, tmp_path / "stored")
    other = loop.run(dataclasses.replace(asked, data=resident), tmp_path / "resident")
    assert one["data"]["residency"] == "streamed"
    for split in ("val", "test"):
        for name in ("accuracy", "nll"):
            assert one[split][name] == pytest.approx(other[split][name], rel=1e-3)
    scores = [[each["score"] for each in two["candidates"]] for two in (one, other)]
    np.testing.assert_allclose(*scores, rtol=1e-3)


@pytest.mark.parametrize(
    ("section", "value", "says"),
    [
        ("residency", "disk", "data.residency is 'disk'"),
        ("heads", (HeadConfig("knn"),), "'knn', not solved in passes"),
        ("selection", SelectionConfig(folds=3), "'linear', not solved in passes"),
        ("consistency", ConsistencyConfig("fixmatch"), "by consistency.method"),
        ("train", TrainConfig(sampling="class_balanced"), "'class_balanced'"),
        ("views", True, "by data.views"),
        ("invalid_rows", "drop", "by data.invalid_rows"),
        ("unlabelled", "keep", "by data.unlabelled"),
    ],
)
def test_what_needs_all_rows_is_refused(section, value, says):
    asked = config("npy:there")
    if section in {field.name for field in dataclasses.fields(DataConfig)}:
        section, value = "data", dataclasses.replace(asked.data, **{section: value})
    with pytest.raises(ValueError, match=says):
        build.check(dataclasses.replace(asked, **{section: value}))


def test_files_that_can_not_be_streamed_are_refused(tmp_path):
    x, labels = np.ones((40, DIM), np.float32), np.arange(40) % 2
    x[3, 2] = np.nan
    folders = [tmp_path / name for name in ("packed", "columns", "groups", "nan")]
    for folder in folders:
        folder.mkdir()
    np.savez_compressed(folders[0] / "train.npz", embeddings=x, labels=labels)
    write_npy(folders[1], np.asfortranarray(x), labels)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(40 * DIM)), DIM)
    table = pa.table({"embeddings": lists, "labels": labels})
    pq.write_table(table, folders[2] / "train.parquet")
    write_npy(folders[3], x, labels)
    kinds = ("npz", "npy", "parquet", "npy")
    says = ("compressed", "by columns", "row_group_size", r"1 of 8 rows \(3\)")
    for folder, kind, sentence in zip(folders, kinds, says, strict=True):
        with pytest.raises(ValueError, match=sentence):
            loop.run(config(f"{kind}:{folder}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
