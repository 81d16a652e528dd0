"""Killed at any moment and resumed is the same as never stopped, bit for bit."""

import hashlib
import json
import os
import random
import shutil
import signal
import time

import numpy as np
import pytest
from conftest import QUICK, wait_for
from safetensors.numpy import load_file

from flaxhead import Config, DataConfig, TrainConfig, checkpoints
from flaxhead.loop import run
from flaxhead.paths import alone

CONFIG = """
from flaxhead import *

def get_config():
    return Config(
        data=DataConfig("npz:{data}", unlabelled="keep", views=True),
        heads=(HeadConfig("mlp", width=8, dropout=(0.0, 0.5)),),
        # Its running thresholds are memory.
        consistency=ConsistencyConfig("freematch", ratio=1),
        optimizer=OptimizerConfig("adamw", weight_decay=(0.01,)),
        train=TrainConfig(batch_size=32, steps=2000, evaluations=20),
        checkpoint=CheckpointConfig(every_seconds=0.0),
    )
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory, nursery):
    """Runs `train.py` in a process of its own: `(status, what it said)`.

    It gets a signal so long after it has compiled and saved its state after `step`.
    """
    folder = tmp_path_factory.mktemp("resume")
    write_data(folder / "data")
    (folder / "config.py").write_text(CONFIG.format(data=folder / "data"))

    def run(workdir, *flags, devices=1, number=0, step=0, delay=0.0):
        arguments = [f"--config={folder / 'config.py'}", f"--workdir={workdir}", *flags]
        count = f"--xla_force_host_platform_device_count={devices}"
        job = nursery.start([arguments], {"XLA_FLAGS": f"{QUICK} {count}"}, workdir)
        if number:
            ((_, errors),) = job.said
            wait_for(lambda: "compiled in" in errors.read_text())
            wait_for(lambda: saved(workdir) >= step)
            time.sleep(delay)
            os.kill(job.pids[0], number)
        ((status, *said),) = nursery.finish(job)
        return status, "".join(said)

    return run


def saved(workdir):
    """The step of the last checkpoint, 0 without one."""
    names = [path.name for path in (workdir / "checkpoints").glob("[0-9]*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def write_data(folder):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2, 5)).astype(np.float32)
    labels = (x[:, 0, :3] + rng.normal(size=(300, 3))).argmax(1)
    labels[::5] = -1
    folder.mkdir(exist_ok=True)
    np.savez(folder / "train.npz", embeddings=x, labels=labels)


@pytest.fixture(scope="module")
def uninterrupted(start, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    status, said = start(workdir)
    assert status == 0, said
    return workdir


@pytest.fixture(scope="module")
def stopped(start, tmp_path_factory):
    """A run that was told to stop after some evaluations; and how it ended."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    return workdir, start(workdir, number=signal.SIGTERM, step=200)


def outcome(workdir):
    """Everything that a run leaves, but for how long it took."""
    result = json.loads((workdir / "result.json").read_text())
    del result["timing"]
    return {
        "result": result,
        "params": (workdir / "head" / "params.safetensors").read_bytes(),
        "head": (workdir / "head" / "head.json").read_text(),
        "metrics": (workdir / "metrics.jsonl").read_text(),
    }


def contents(workdir):
    files = [path for path in sorted(workdir.rglob("*")) if path.is_file()]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def refused(status, said):
    """Checks that there is one sentence and returns it."""
    assert status == 2, said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in said
    return line


@pytest.mark.slow
def test_killed_at_random_and_resumed_equals_uninterrupted(
    start, uninterrupted, tmp_path
):
    rng, kills, rounds, resumed = random.Random(0), 0, 0, 0
    expected = outcome(uninterrupted)
    while kills < 10:
        workdir = tmp_path / str(rounds)
        status = None
        while status != 0:
            # After some evaluations more, or before even the first checkpoint.
            step = min(saved(workdir) + rng.choice([0, 100, 300, 600]), 2000)
            number = signal.SIGKILL if kills < 10 else 0
            delay = 0.1 * rng.random()
            status, said = start(workdir, number=number, step=step, delay=delay)
            assert status in (0, -signal.SIGKILL), said
            kills += status != 0
            resumed += "resumed after" in said
        assert outcome(workdir) == expected
        rounds += 1
    assert resumed >= 3


def test_a_term_signal_saves_and_the_resumed_run_is_the_same(
    start, uninterrupted, stopped, tmp_path
):
    folder, (status, said) = stopped
    assert status == 128 + signal.SIGTERM, said
    assert "stopped by SIGTERM after step " in said
    assert f"--workdir={folder} goes on from there" in said
    assert "Traceback" not in said
    step = int(said.split("stopped by SIGTERM after step ")[1].split(",")[0])
    assert not (folder / "result.json").exists()
    workdir = shutil.copytree(folder, tmp_path / "run")
    status, said = start(workdir)
    assert status == 0, said
    assert f"resumed after step {step}" in said
    assert outcome(workdir) == outcome(uninterrupted)


def test_other_numbers_of_devices_go_on_from_a_checkpoint(start, tmp_path):
    flags = ("--config.optimizer.name=sgd", "--config.train.steps=200")
    eight = tmp_path / "8"
    status, said = start(eight, *flags, devices=8, number=signal.SIGTERM, step=20)
    assert status == 128 + signal.SIGTERM, said
    results = []
    for devices in (1, 3, 8):
        workdir = shutil.copytree(eight, tmp_path / f"on-{devices}")
        status, said = start(workdir, *flags, devices=devices)
        assert status == 0, said
        assert "resumed after step" in said
        results.append(load_file(workdir / "head" / "params.safetensors"))
    for other in results[:2]:
        for name, leaf in results[2].items():
            np.testing.assert_allclose(other[name], leaf, rtol=1e-3, atol=1e-4)


def test_other_settings_and_other_data_are_refused(
    start, uninterrupted, tmp_path_factory
):
    before = contents(uninterrupted)
    line = refused(*start(uninterrupted, "--config.train.batch_size=16"))
    assert "config.train.batch_size (32 there, 16 now)" in line
    other = tmp_path_factory.mktemp("other")
    write_data(other)
    with np.load(other / "train.npz") as stored:
        fields = dict(stored)
    fields["labels"] = np.roll(fields["labels"], 1)
    np.savez(other / "train.npz", **fields)
    line = refused(*start(uninterrupted, f"--config.data.source=npz:{other}"))
    assert "config.data.source" in line
    assert "data.train.labels (other contents)" in line
    assert "data.train.groups" not in line
    assert contents(uninterrupted) == before


def test_a_finished_run_is_left_as_it_is(start, uninterrupted):
    before = contents(uninterrupted)
    status, said = start(uninterrupted)
    assert status == 0
    assert "holds the finished run; nothing to do" in said
    assert contents(uninterrupted) == before


def test_a_damaged_checkpoint_is_one_sentence(start, stopped, tmp_path):
    workdir = shutil.copytree(stopped[0], tmp_path / "run")
    steps = sorted((workdir / "checkpoints").glob("[0-9]*"), key=lambda p: int(p.name))
    arrays = [path for path in (steps[-1] / "default").rglob("*") if path.is_file()]
    assert arrays
    for path in arrays:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    line = refused(*start(workdir))
    assert str(steps[-1]) in line
    assert "delete that folder" in line
    # As the sentence says.
    for path in sorted(steps[-1].rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    steps[-1].rmdir()
    status, said = start(workdir)
    assert status == 0, said
    assert f"resumed after step {steps[-2].name}" in said


def test_a_flipped_bit_of_a_checkpoint_is_found(tmp_path):
    tree = {"kernel": np.random.default_rng(0).normal(size=(64, 64))}
    manager = checkpoints.open_folder(tmp_path, keep=1)
    checkpoints.save(manager, 5, tree, score=0.5)
    manager.wait_until_finished()
    _, restored = checkpoints.restore(manager, tree)
    np.testing.assert_array_equal(restored["kernel"], tree["kernel"])
    checkpoints.close(manager)
    (largest,) = (p for p in tmp_path.rglob("*") if p.stat().st_size > 64 * 64 * 4)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    manager = checkpoints.open_folder(tmp_path, keep=1)
    with pytest.raises(ValueError, match=r"its arrays are not those .* delete that"):
        checkpoints.restore(manager, tree)
    checkpoints.close(manager)


def test_two_runs_in_one_folder_are_one_sentence(tmp_path):
    workdir = tmp_path / "run"
    config = Config(DataConfig("sklearn:iris"), train=TrainConfig(steps=1))
    workdir.mkdir()
    told = pytest.raises(ValueError, match=r"at work on the run in .*/run; wait")
    with alone(workdir / ".lock", "the run"), told:
        run(config, workdir)
    assert [path.name for path in workdir.iterdir()] == ["config.json"]


def test_the_last_checkpoints_and_the_best_are_kept(uninterrupted):
    lines = (uninterrupted / "metrics.jsonl").read_text().splitlines()
    evaluated = [json.loads(line) for line in lines]
    best = max(line["accuracy"] for line in evaluated)
    first = min(line["step"] for line in evaluated if line["accuracy"] == best)
    kept = {int(path.name) for path in (uninterrupted / "checkpoints").glob("[0-9]*")}
    assert {1900, 2000} <= kept
    assert len(kept) <= 3
    scores = [
        json.loads((uninterrupted / f"checkpoints/{step}/metrics/metrics").read_text())
        for step in kept
    ]
    assert max(score["score"] for score in scores) == pytest.approx(best, abs=1e-7)
    # The one that was saved when the best was found.
    assert first in kept
