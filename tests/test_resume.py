"""Killed at any moment and resumed is the same as never stopped, bit for bit.

Python and JAX take seconds to start, so one process imports them once and is forked,
before any backend starts, for each run; what is killed is that whole process.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK
from safetensors.numpy import load_file

from flaxhead import Config, DataConfig, TrainConfig, checkpoints
from flaxhead.loop import run
from flaxhead.paths import alone

ROOT = Path(__file__).parent.parent

NURSERY = """
import json, os, signal, sys, time
import jax
import train

assert not jax._src.xla_bridge.backends_are_initialized()
for line in sys.stdin:
    order = json.loads(line)
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(tell, 1)
        os.dup2(tell, 2)
        count = f" --xla_force_host_platform_device_count={order['devices']}"
        os.environ["XLA_FLAGS"] = order["flags"] + count
        try:
            status = train.main(order["arguments"])
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            import traceback
            traceback.print_exc()
            status = 99
        sys.stdout.flush()
        os._exit(status)
    os.close(tell)
    with open(told) as pipe:
        text = ""
        for said in pipe:
            text += said
            if "compiled in" in said:
                break
        if order["signal"]:
            time.sleep(order["delay"])
            os.kill(child, order["signal"])
        text += pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([status, text]), flush=True)
"""

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
def start(tmp_path_factory):
    """Runs `train.py` in a process of its own: `(status, what it said)`."""
    folder = tmp_path_factory.mktemp("resume")
    write_data(folder / "data")
    (folder / "config.py").write_text(CONFIG.format(data=folder / "data"))
    nursery = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", NURSERY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        },
    )

    def run(workdir, *flags, devices=1, number=0, delay=0.0):
        config = f"--config={folder / 'config.py'}"
        order = {
            "arguments": [config, f"--workdir={workdir}", *flags],
            "devices": devices,
            "signal": number,
            "delay": delay,
            "flags": QUICK,
        }
        nursery.stdin.write(json.dumps(order) + "\n")
        nursery.stdin.flush()
        return json.loads(nursery.stdout.readline())

    yield run
    nursery.stdin.close()
    nursery.wait()


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
    while kills < 20:
        workdir = tmp_path / str(rounds)
        status = None
        while status != 0:
            # Enough for some evaluations, or for not even the first checkpoint.
            delay = rng.choice([0.05, 0.4, 1.0]) * rng.random()
            number = signal.SIGKILL if kills < 20 else 0
            status, said = start(workdir, number=number, delay=delay)
            assert status in (0, -signal.SIGKILL), said
            kills += status != 0
            resumed += "resumed after" in said
        assert outcome(workdir) == expected
        rounds += 1
    assert resumed >= 5


def test_a_term_signal_saves_and_the_resumed_run_is_the_same(
    start, uninterrupted, tmp_path
):
    workdir = tmp_path / "run"
    status, said = start(workdir, number=signal.SIGTERM, delay=0.2)
    assert status == 128 + signal.SIGTERM, said
    assert "stopped by SIGTERM after step " in said
    assert f"--workdir={workdir} goes on from there" in said
    assert "Traceback" not in said
    step = int(said.split("stopped by SIGTERM after step ")[1].split(",")[0])
    assert not (workdir / "result.json").exists()
    status, said = start(workdir)
    assert status == 0, said
    assert f"resumed after step {step}" in said
    assert outcome(workdir) == outcome(uninterrupted)


def test_other_numbers_of_devices_go_on_from_a_checkpoint(start, tmp_path):
    flags = ("--config.optimizer.name=sgd", "--config.train.steps=200")
    results = []
    for number, devices in enumerate([1, 3, 8]):
        workdir = tmp_path / str(number)
        status, said = start(
            workdir, *flags, devices=8, number=signal.SIGTERM, delay=0.1
        )
        assert status == 128 + signal.SIGTERM, said
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


def test_a_damaged_checkpoint_is_one_sentence(start, tmp_path):
    workdir = tmp_path / "run"
    status, said = start(workdir, number=signal.SIGTERM, delay=0.5)
    assert status == 128 + signal.SIGTERM, said
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
