"""Two and four real processes, gloo between them, give what one process gives.

What one process gives is computed in this one.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from conftest import QUICK, ROOT, wait_for
from safetensors.numpy import load_file
from test_resume import outcome, saved, write_data

from flaxhead import flags, loop, processes

TWO_DEVICES = "--xla_force_host_platform_device_count=2"

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    write_data(folder / "data")
    with np.load(folder / "data" / "train.npz") as data:
        one = {"embeddings": data["embeddings"][:, 0], "labels": data["labels"]}
    (folder / "one").mkdir()
    np.savez(folder / "one" / "train.npz", **one)
    streamed = TRAINED.replace("views=True", 'residency="streamed", window_bytes=1000')
    for name, text, data in [
        ("trained", TRAINED, "data"),
        ("streamed", streamed, "one"),
        ("solved", SOLVED, "data"),
    ]:
        (folder / f"{name}.py").write_text(text.format(data=folder / data))
    return folder


@pytest.fixture(scope="module")
def start(folder, nursery):
    """Starts so many processes of two devices each; `own` are flags of the last one."""

    def start(name, workdir, *options, count, own=()):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        arguments = [
            [
                f"--config={folder / name}.py",
                f"--workdir={workdir}",
                *(*options, *(own if number == count - 1 else ())),
                *("--multihost", f"--process_id={number}"),
                f"--coordinator_address=localhost:{port}",
            ]
            for number in range(count)
        ]
        environment = {
            "XLA_FLAGS": f"{QUICK} {TWO_DEVICES}",
            "JAX_NUM_PROCESSES": str(count),
        }
        return nursery.start(arguments, environment, workdir)

    return start


@pytest.fixture(scope="module")
def finish(nursery):
    return nursery.finish


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

    def alone(name, workdir):
        config = flags.load(str(folder / f"{name}.py"))
        loop.run(flags.override(config, ["--config.train.devices=1"]), workdir)
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
    wait_for(lambda: saved(workdir) >= 40)
    os.kill(job.pids[2], signal.SIGKILL)
    return workdir, finish(job)


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
def test_solved_heads_and_folds_on_two_processes_give_what_one_gives(
    folder, run, alone
):
    workdir = folder / "solved"
    said = run("solved", workdir, count=2)
    assert_equal(workdir, alone("solved", folder / "solved-alone"))
    # Only the first one tells, as only the first one writes.
    assert "test accuracy" in said[0][1]
    assert not any("test accuracy" in out for _, out, _ in said[1:])
    assert not any("candidates" in errors for _, _, errors in said[1:])


@pytest.mark.slow
def test_streamed_rows_on_two_processes_give_what_one_gives(folder, run, alone):
    run("streamed", folder / "streamed", count=2)
    assert_equal(folder / "streamed", alone("streamed", folder / "streamed-alone"))


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
    own = ["--config.data.source=npz:elsewhere"]
    workdir = folder / "refused"
    first, second = finish(start("trained", workdir, count=2, own=own))
    assert_stopped(first, 1, 2)
    assert second[0] == 2, second
    assert second[2].startswith("error: ")
    assert len(second[2].splitlines()) == 1
    assert not workdir.exists()


def test_a_folder_that_not_all_see_and_other_settings_are_refused(
    folder, trained, monkeypatch
):
    config = flags.load(str(folder / "trained.py"))
    before = sorted(trained.rglob("*"))
    monkeypatch.setattr(processes, "gather", lambda one: np.array([one, 0], np.uint32))
    with pytest.raises(ValueError, match="process 1 has other settings or other data"):
        loop.run(config, trained)
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
    assert not any(tmp_path.iterdir())
