"""Two real processes, gloo between them, give what one process gives."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK
from safetensors.numpy import load_file
from test_resume import outcome, write_data

ROOT = Path(__file__).parent.parent

CONFIG = """
from flaxhead import *

def get_config():
    return Config(
        data=DataConfig("npz:{data}", unlabelled="drop", views=True),
        heads=(HeadConfig("mlp", width=8, normalization="standardize"),),
        optimizer=OptimizerConfig("sgd", learning_rate=(0.1, 0.03, 0.3)),
        train=TrainConfig(batch_size=34, steps={steps}, evaluations=4),
        selection=SelectionConfig("{metric}"),
        checkpoint=CheckpointConfig(every_seconds=0.0),
    )
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    write_data(folder / "data")
    for name, metric, steps in [
        ("short", "accuracy", 60),
        ("ranked", "auroc", 60),
        ("long", "accuracy", 600),
    ]:
        text = CONFIG.format(data=folder / "data", metric=metric, steps=steps)
        (folder / f"{name}.py").write_text(text)
    return folder


def launch(folder, name, workdir, *flags, processes):
    """Starts `train.py` as so many processes of two devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "train.py", f"--config={folder / name}.py"]
    command += [f"--workdir={workdir}", *flags]
    if processes > 1:
        command += ["--multihost"]
    return [
        subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count=2",
                "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(number),
            },
        )
        for number in range(processes)
    ]


def finish(started):
    """Waits for all of them: `[(status, stdout, stderr)]`."""
    try:
        said = [one.communicate(timeout=300) for one in started]
    finally:
        for one in started:
            one.kill()
    return [(one.returncode, *both) for one, both in zip(started, said, strict=True)]


def run(*arguments, **options):
    outcomes = finish(launch(*arguments, **options))
    for status, _, errors in outcomes:
        assert status == 0, errors
    return outcomes


@pytest.fixture(scope="module")
def alone(folder):
    workdirs = {name: folder / f"alone-{name}" for name in ("short", "ranked")}
    for name, workdir in workdirs.items():
        run(folder, name, workdir, "--config.train.devices=1", processes=1)
    return workdirs


def assert_equal(workdir, expected):
    one, other = outcome(expected), outcome(workdir)
    for split in ("val", "test"):
        for name in ("accuracy", "auroc"):
            assert other["result"][split][name] == one["result"][split][name]
    for name in ("head", "hyperparameters", "best_step"):
        assert other["result"]["selected"][name] == one["result"]["selected"][name]
    params = load_file(workdir / "head" / "params.safetensors")
    reference = load_file(expected / "head" / "params.safetensors")
    assert params.keys() == reference.keys()
    for name, leaf in reference.items():
        np.testing.assert_allclose(params[name], leaf, rtol=1e-4, atol=1e-5)
    lines = [len(one["metrics"].splitlines()), len(other["metrics"].splitlines())]
    assert lines == [12, 12]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "split"), [("short", "batch"), ("ranked", "candidates")]
)
def test_two_processes_give_what_one_gives(folder, alone, name, split):
    workdir = folder / f"two-{split}"
    flag = f"--config.train.split={split}"
    (_, first, _), (_, second, errors) = run(folder, name, workdir, flag, processes=2)
    assert_equal(workdir, alone[name])
    # Only the first one tells, as only the first one writes.
    assert "test accuracy" in first
    assert "test accuracy" not in second
    assert "steps/s" not in errors


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_they_go_on(folder):
    workdir, name = folder / "stopped", "long"
    started = launch(folder, name, workdir, processes=2)
    for line in started[0].stderr:
        if "compiled in" in line:
            break
    started[1].terminate()
    for status, _, errors in finish(started):
        assert status == 143, errors
        assert "stopped by SIGTERM after step" in errors
    run(folder, name, workdir, processes=2)
    run(folder, name, folder / "unstopped", processes=2)
    assert outcome(workdir) == outcome(folder / "unstopped")


def test_many_processes_need_one_workdir():
    command = [sys.executable, "train.py", "--multihost"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --multihost needs a --workdir")
    assert len(done.stderr.splitlines()) == 1
