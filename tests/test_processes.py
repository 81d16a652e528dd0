"""Two and four real processes, gloo between them, give what one process gives.

Python and JAX take seconds to start, so one process imports them once and is forked,
before any backend starts. What one process gives is computed in this one.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from conftest import QUICK
from safetensors.numpy import load_file
from test_resume import outcome, write_data

from flaxhead import flags, loop, processes
from flaxhead.data import in_memory
from flaxhead.data.scan import check_same
from flaxhead.report.progress import quiet

TWO_DEVICES = "--xla_force_host_platform_device_count=2"
ROOT = Path(__file__).parent.parent

NURSERY = """
import dataclasses, json, os, sys
import jax
import train
from flaxhead import parallel
from flaxhead.data import sources

assert not jax._src.xla_bridge.backends_are_initialized()
open_stored, memory = sources.open_stored, parallel._host_memory

def main(one):
    read = []

    def opened(paths, config):
        stored = open_stored(paths, config)
        split = "train" in str(paths[0])
        def counted(first, size):
            read.append(split and max(0, min(size, len(stored) - first)))
            return stored.read(first, size)
        return dataclasses.replace(stored, read=counted)

    os.chdir(one["folder"])
    sources.open_stored = opened
    parallel._host_memory = lambda: one["memory"] or memory()
    try:
        return train.main(one["arguments"])
    finally:
        with open(one["rows"], "w") as told:
            told.write(str(sum(read)))

for line in sys.stdin:
    children = []
    for one in json.loads(line):
        child = os.fork()
        if child == 0:
            for number, path in enumerate(one["files"], 1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            os.environ.update(one["environment"])
            sys.exit(main(one))
        children.append(child)
    print(json.dumps(children), flush=True)
    ends = [os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]) for one in children]
    print(json.dumps(ends), flush=True)
"""

TRAINED = """
from flaxhead import *

def get_config():
    return Config(
        data=DataConfig("npz:{data}", unlabelled="drop", views=True),
        heads=(HeadConfig("mlp", width=8, normalization="standardize"),),
        optimizer=OptimizerConfig("sgd", learning_rate=(0.1, 0.03, 0.3)),
        train=TrainConfig(batch_size=34, steps=120, evaluations=6),
        selection=SelectionConfig("auroc"),
        checkpoint=CheckpointConfig(every_seconds=0.0),
    )
"""

SOLVED = """
from flaxhead import *

def get_config():
    return Config(
        data=DataConfig("npz:{data}", unlabelled="drop", views=True),
        heads=(HeadConfig("logistic", C=(0.1, 1.0)), HeadConfig("linear")),
        optimizer=OptimizerConfig("sgd", learning_rate=(0.1,)),
        train=TrainConfig(batch_size=34, steps=8),
        selection=SelectionConfig("nll", folds=2, extend=0),
    )
"""


# Rows of 64 kB, three pieces of the pass over all of them.
WIDE_ROWS, BATCH, STEPS = 600, 34, 60
WIDE = """
from flaxhead import *

def get_config():
    return Config(
        data=DataConfig("npy:{data}", residency="{residency}", window_bytes=2**23),
        heads=(HeadConfig(normalization="standardize"),),
        optimizer=OptimizerConfig("sgd", learning_rate=(1e-5, 1e-4)),
        train=TrainConfig(batch_size=34, steps=60, evaluations=3),
        selection=SelectionConfig("auroc"),
    )
"""


class Job(NamedTuple):
    """Processes of `train.py` that run."""

    pids: list
    said: list  # files of standard output and of standard error


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    write_data(folder / "data")
    with np.load(folder / "data" / "train.npz") as data:
        one = {"embeddings": data["embeddings"][:, 0], "labels": data["labels"]}
    (folder / "one").mkdir()
    np.savez(folder / "one" / "train.npz", **one)
    read = SOLVED.replace("views=True", 'residency="streamed"')
    read = read.replace('HeadConfig("linear")', 'HeadConfig("nearest_mean")')
    write_wide(folder / "wide")
    for name, text, data, residency in [
        ("trained", TRAINED, "data", ""),
        ("solved", SOLVED, "data", ""),
        ("near", TRAINED, "data", ""),
        ("read", read, "one", ""),
        ("auto", WIDE, "wide", "auto"),
        ("sharded", WIDE, "wide", "sharded"),
        ("streamed", WIDE, "wide", "streamed"),
        ("spoilt", WIDE, "spoilt", "streamed"),
    ]:
        # One source is seen from where the process is.
        data = data if name == "near" else folder / data
        content = text.format(data=data, residency=residency)
        (folder / f"{name}.py").write_text(content)
    return folder


def write_wide(folder):
    rng = np.random.default_rng(0)
    folder.mkdir()
    centres = rng.normal(size=(3, 2**14))
    for split, rows in (("train", WIDE_ROWS), ("val", 60), ("test", 60)):
        labels = np.arange(rows) % 3
        x = 0.03 * centres[labels] + rng.normal(size=(rows, 2**14))
        np.save(folder / f"{split}_embeddings.npy", x.astype(np.float32))
        np.save(folder / f"{split}_labels.npy", labels)


@pytest.fixture(scope="module")
def nursery():
    nursery = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", NURSERY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    yield nursery
    nursery.stdin.close()
    nursery.wait()


@pytest.fixture(scope="module")
def start(folder, nursery):
    """Starts so many processes of two devices each; `own` are flags of the last one.

    And `memory` is what that one has; `apart`, it is in another folder.
    """

    def start(name, workdir, *options, count, own=(), memory=0, apart=False):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        orders = []
        for number in range(count):
            last_one = number == count - 1
            last = own if last_one else ()
            files = [f"{workdir}.{number}.{kind}" for kind in ("out", "err")]
            orders.append(
                {
                    "arguments": [
                        f"--config={folder / name}.py",
                        f"--workdir={workdir}",
                        *(*options, *last, "--multihost", f"--process_id={number}"),
                        f"--coordinator_address=localhost:{port}",
                    ],
                    "environment": {
                        "JAX_PLATFORMS": "cpu",
                        "XLA_FLAGS": f"{QUICK} {TWO_DEVICES}",
                        "JAX_NUM_PROCESSES": str(count),
                    },
                    "files": files,
                    "folder": str(ROOT if apart and last_one else folder),
                    "memory": memory if last_one else 0,
                    "rows": f"{workdir}.{number}.rows",
                }
            )
        nursery.stdin.write(json.dumps(orders) + "\n")
        nursery.stdin.flush()
        said = [[Path(file) for file in order["files"]] for order in orders]
        return Job(json.loads(nursery.stdout.readline()), said)

    return start


@pytest.fixture(scope="module")
def finish(nursery):
    """Waits for all of them: `[(status, stdout, stderr)]`."""

    def finish(job):
        def give_up():
            for pid in job.pids:
                os.kill(pid, signal.SIGKILL)

        timer = threading.Timer(240, give_up)
        timer.start()
        ends = json.loads(nursery.stdout.readline())
        timer.cancel()
        return [
            (end, *(file.read_text() for file in files))
            for end, files in zip(ends, job.said, strict=True)
        ]

    return finish


@pytest.fixture(scope="module")
def run(start, finish):
    """Runs them to the end and returns what they printed."""

    def run(*arguments, **options):
        ends = finish(start(*arguments, **options))
        for status, _, errors in ends:
            assert status == 0, errors
        return ends

    return run


@pytest.fixture(scope="module")
def alone(folder):
    """What one process with one device gives."""

    def alone(name, workdir, *, devices=1, **options):
        config = flags.load(str(folder / f"{name}.py"))
        config = flags.override(config, [f"--config.train.devices={devices}"])
        loop.run(config, workdir, **options)
        return workdir

    return alone


@pytest.fixture(scope="module")
def trained(folder, alone):
    return alone("trained", folder / "alone")


@pytest.fixture(scope="module")
def killed(folder, start, finish):
    """A run of four processes, one of which was killed; and how they ended."""
    workdir = folder / "killed"
    job = start("trained", workdir, "--config.train.split=candidates", count=4)
    wait_for(lambda: (workdir / "checkpoints" / "40").exists())
    os.kill(job.pids[2], signal.SIGKILL)
    return workdir, finish(job)


def wait_for(there):
    until = time.monotonic() + 240
    while not there():
        assert time.monotonic() < until
        time.sleep(0.02)


def resumed(folder, killed, start, name):
    """Starts two processes on a copy of the run that was killed."""
    workdir = folder / name
    shutil.copytree(killed[0], workdir)
    job = start("trained", workdir, count=2)
    wait_for(lambda: "resumed after step" in job.said[0][1].read_text())
    return workdir, job


def assert_stopped(end, number, count):
    status, _, errors = end
    assert status == 1, errors
    last = errors.splitlines()[-1]
    assert last.startswith(f"error: process {number} has stopped (of {count}, ")
    assert "goes on from the last checkpoint" in last
    assert "Traceback" not in errors


def assert_equal(workdir, expected):
    one, other = outcome(expected), outcome(workdir)
    for split in ("val", "test"):
        for metric in ("accuracy", "auroc", "nll"):
            score = one["result"][split][metric]
            assert other["result"][split][metric] == pytest.approx(score, rel=1e-4)
    for name in ("head", "hyperparameters", "best_step"):
        assert other["result"]["selected"][name] == one["result"]["selected"][name]
    params = load_file(workdir / "head" / "params.safetensors")
    reference = load_file(expected / "head" / "params.safetensors")
    assert params.keys() == reference.keys()
    for name, leaf in reference.items():
        np.testing.assert_allclose(params[name], leaf, rtol=1e-3, atol=1e-5)
    lines = [one["metrics"].splitlines(), other["metrics"].splitlines()]
    assert len(lines[0]) == len(lines[1])


@pytest.mark.slow
def test_solved_heads_and_folds_on_four_processes_give_what_one_gives(
    folder, run, alone
):
    workdir = folder / "solved"
    said = run("solved", workdir, count=4)
    assert_equal(workdir, alone("solved", folder / "solved-alone"))
    # Only the first one tells, as only the first one writes.
    assert "test accuracy" in said[0][1]
    assert not any("test accuracy" in out for _, out, _ in said[1:])
    assert not any("candidates" in errors for _, _, errors in said[1:])


@pytest.mark.slow
def test_solved_heads_read_their_own_rows_part_by_part(folder, run, alone):
    run("read", folder / "read", count=2)
    assert_equal(folder / "read", alone("read", folder / "read-alone"))
    assert_same_data(folder / "read", folder / "read-alone")


def rows_read(workdir, count):
    """How many training rows each process has read."""
    return [int(Path(f"{workdir}.{one}.rows").read_text()) for one in range(count)]


def assert_same_data(workdir, other):
    """By the checksums of the one pass over it, and what else it tells."""
    told = [json.loads((one / "config.json").read_text()) for one in (workdir, other)]
    assert told[0]["data"] == told[1]["data"]
    told = [json.loads((one / "result.json").read_text()) for one in (workdir, other)]
    assert told[0]["data"] == told[1]["data"]
    norms = [
        json.loads((one / "head/head.json").read_text()) for one in (workdir, other)
    ]
    for name in ("norm_mean", "norm_std"):
        one, same = (told["features"][name] for told in norms)
        assert one == pytest.approx(same, rel=1e-6)


# Of the pass: 256, 256 and 88 rows. A few rows are read to compare them, and one for
# its shape.
FEW = 8 + 1


@pytest.mark.slow
def test_each_of_two_processes_reads_the_rows_that_its_devices_hold(folder, run, alone):
    workdir = folder / "sharded"
    said = run("auto", workdir, count=2, memory=2 * 10**8)
    expected = alone("sharded", folder / "sharded-alone", devices=4)
    assert_equal(workdir, expected)
    assert_same_data(workdir, expected)
    # By the memory of the smaller process: the other one has room for all.
    assert "embeddings sharded: 39 MB, and a device has 33 MB" in said[0][2]
    half = WIDE_ROWS // 2
    assert rows_read(workdir, 2) == [256 + half + FEW, 344 + half + FEW]


@pytest.mark.slow
def test_one_process_is_gone_on_with_by_four_that_read_their_own_positions(
    folder, run, alone
):
    expected, workdir = alone("streamed", folder / "whole"), folder / "streamed"

    def step(done, total, best, unit="steps"):
        if unit == "steps" and done >= 20:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(loop.Interrupted):
        alone("streamed", workdir, display=quiet()._replace(step=step))
    begun = max(int(one.name) for one in (workdir / "checkpoints").glob("[0-9]*"))
    assert 20 <= begun < STEPS
    run("streamed", workdir, count=4)
    assert_equal(workdir, expected)
    assert_same_data(workdir, expected)
    shares = [10, 10, 10, 4]  # of the 34 positions of a step
    passes = [0, 256, 256, 88]
    around = 2 * 128  # the windows of the first step and of the last are read whole
    for read, own, once in zip(rows_read(workdir, 4), shares, passes, strict=True):
        least = (STEPS - begun) * own + once
        assert least <= read <= least + FEW + around * own / BATCH + own


@pytest.mark.slow
def test_all_say_what_one_of_them_has_found(folder, start, finish):
    shutil.copytree(folder / "wide", folder / "spoilt")
    x = np.load(folder / "spoilt" / "train_embeddings.npy", mmap_mode="r+")
    x[[300, 599], 7] = np.nan
    x.flush()
    for status, _, errors in finish(start("spoilt", folder / "nan", count=2)):
        assert status == 2, errors
        last = errors.splitlines()[-1]
        assert last.startswith("error: ")
        assert "are NaN or infinite in 2 of 600 rows (300, 599), expected" in last
    assert not (folder / "nan").exists()


@pytest.mark.slow
def test_where_one_of_four_is_killed_the_others_stop(killed):
    _, ends = killed
    assert ends.pop(2)[0] == -signal.SIGKILL
    for end in ends:
        assert_stopped(end, 2, 4)
        assert len([line for line in end[2].splitlines() if "error" in line]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_other_numbers_of_processes_go_on_from_four(
    folder, killed, trained, run, alone, count
):
    workdir = folder / f"on-{count}"
    shutil.copytree(killed[0], workdir)
    if count == 1:
        alone("trained", workdir)
    else:
        run("trained", workdir, count=count)
    assert_equal(workdir, trained)


@pytest.mark.slow
def test_a_signal_to_one_stops_all_and_they_go_on_bit_for_bit(
    folder, killed, start, finish, run
):
    workdir, job = resumed(folder, killed, start, "signalled")
    os.kill(job.pids[1], signal.SIGTERM)
    for status, _, errors in finish(job):
        assert status == 143, errors
        assert "stopped by SIGTERM after step" in errors
    run("trained", workdir, count=2)
    assert outcome(workdir) == outcome(folder / "on-2")


@pytest.mark.slow
def test_the_end_of_process_0_is_the_end_of_the_other(folder, killed, start, finish):
    _, job = resumed(folder, killed, start, "headless")
    os.kill(job.pids[0], signal.SIGKILL)
    first, second = finish(job)
    assert first[0] == -signal.SIGKILL
    assert_stopped(second, 0, 2)


@pytest.mark.slow
def test_a_refusal_in_one_process_is_the_end_of_the_other(folder, start, finish):
    workdir = folder / "refused"
    first, second = finish(start("near", workdir, count=2, apart=True))
    assert_stopped(first, 1, 2)
    assert second[0] == 2, second
    assert second[2].startswith("error: data: is not there")
    assert len(second[2].splitlines()) == 1
    assert not workdir.exists()


@pytest.mark.slow
def test_other_settings_are_refused_by_all(folder, start, finish):
    own = ["--config.train.batch_size=35"]
    for status, _, errors in finish(
        start("trained", folder / "other", count=2, own=own)
    ):
        assert status == 2
        assert errors.startswith("error: process 1 has other settings or other data")
    assert not (folder / "other").exists()


def test_a_folder_that_not_all_see_and_other_settings_are_refused(
    folder, trained, monkeypatch
):
    config = flags.load(str(folder / "trained.py"))
    before = sorted(trained.rglob("*"))
    monkeypatch.setattr(processes, "gather", lambda one: np.array([one, 0], np.uint32))
    with pytest.raises(ValueError, match="process 1 has other settings or other data"):
        loop.run(config, trained)
    monkeypatch.setattr(processes, "differing", lambda text: 1)
    with monkeypatch.context() as two:
        two.setattr(jax, "process_count", lambda: 2)
        with pytest.raises(ValueError, match="train: process 1 finds other embeddings"):
            check_same(in_memory(np.ones((20, 3))), "train")
    monkeypatch.setattr(processes, "differing", lambda text: None)
    with pytest.raises(
        ValueError, match=r"config\.json is there for process 0 and not"
    ):
        loop.run(config, trained)
    assert sorted(trained.rglob("*")) == before


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"num_processes": "two"}, "--num_processes (or JAX_NUM_PROCESSES) is 'two'"),
        ({"num_processes": "0"}, "expected a whole number of 1 or more"),
        ({"num_processes": "2", "process_id": "2"}, "is 2 of 2 processes; expected 0"),
        ({"coordinator_address": "host"}, "is 'host'; expected HOST:PORT"),
    ],
)
def test_what_does_not_name_the_processes_is_refused(told, sentence, monkeypatch):
    for name in processes.FLAGS:
        monkeypatch.delenv(f"JAX_{name.upper()}", raising=False)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        processes.join("run", told)
    assert sentence in str(caught.value)


def test_many_processes_need_one_workdir():
    with pytest.raises(ValueError, match="--multihost needs a --workdir, the same for"):
        processes.join(None, {})


def test_where_there_are_no_others_the_flags_are_named(tmp_path):
    command = [sys.executable, "train.py", "--multihost", f"--workdir={tmp_path / '1'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --multihost found no other processes (")
    assert "all of --coordinator_address, --num_processes, --process_id" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    command += ["--num_processes=2", "--process_id=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "; --coordinator_address not set); expected" in done.stderr
    assert not any(tmp_path.iterdir())
