"""Eight fake CPU devices for every test, set before JAX starts."""

import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
# Compiling is most of the work: in one piece it costs a fifth less, and by the older
# emitters, whose code is slower, a third of the rest; jaxlib had these up to 0.10.
QUICK = "--xla_cpu_parallel_codegen_split_count=1"
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    QUICK += " --xla_cpu_use_fusion_emitters=false"
for _flag in ("--xla_force_host_platform_device_count=8", *QUICK.split()):
    _given = os.environ.get("XLA_FLAGS", "")
    if _flag.split("=")[0] not in _given:
        os.environ["XLA_FLAGS"] = f"{_given} {_flag}".strip()
# Less optimised code is code of the same meaning, and compiles in a third.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Tests, and the programs that they start, share what they compile.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="flaxhead-tests-")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax  # noqa: E402
import pytest  # noqa: E402

ROOT = Path(__file__).parent.parent
# Tracing makes many small objects, and looking for dead ones again and again costs a
# seventh of the time; after each file it is done once.
SELDOM = 200_000, 50, 1000
gc.set_threshold(*SELDOM)

# Orders are processes to begin, and those to wait for: what has ended can be signalled
# until it is waited for.
NURSERY = f"""
import gc, json, os, sys
import jax
import train

assert not jax._src.xla_bridge.backends_are_initialized()
gc.set_threshold{SELDOM}
gc.freeze()
while line := sys.stdin.readline():
    answers = []
    for one in json.loads(line):
        if isinstance(one, int):
            answers.append(os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]))
            continue
        answers.append(os.fork())
        if answers[-1] == 0:
            for number, path in enumerate(one["files"], 1):
                os.dup2(os.open(path, os.O_WRONLY), number)
            os.environ.update(one["environment"])
            sys.exit(train.main(one["arguments"]))
    print(json.dumps(answers), flush=True)
"""


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Lets go of what files compiled, when it is much.

    Programs are mapped into memory, and past 65,530 mappings a process crashes.
    """
    yield
    gc.collect()
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > 15_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def compile_fully():
    """For a test that computes for longer than it compiles, or is about last bits."""
    jax.clear_caches()  # A program that is there would not be compiled again.
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", True)


class Job(NamedTuple):
    """Processes of `train.py` that run."""

    pids: list
    said: list  # files of standard output and of standard error


class Nursery(NamedTuple):
    """`start(arguments of each, environment, name)`: a job of so many processes.

    `finish(job)` waits for all of them: `[(status, stdout, stderr)]`.
    """

    start: Callable
    finish: Callable


@pytest.fixture(scope="session")
def nursery(tmp_path_factory):
    """Processes of `train.py` that begin at once.

    Python and JAX take seconds to start, so one process imports them once and is
    forked, before any backend starts. They share what they compile among themselves:
    one that is killed may leave half of it.
    """
    cache = tmp_path_factory.mktemp("nursery")
    told = {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(cache)}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", NURSERY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **told},
    )

    def ask(orders):
        process.stdin.write(json.dumps(orders) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    def start(arguments, environment, name):
        said = [
            [Path(f"{name}.{number}.{kind}") for kind in ("out", "err")]
            for number in range(len(arguments))
        ]
        for file in itertools.chain(*said):
            file.write_text("")
        orders = [
            {
                "arguments": own,
                "environment": environment,
                "files": list(map(str, pair)),
            }
            for own, pair in zip(arguments, said, strict=True)
        ]
        return Job(ask(orders), said)

    def finish(job):
        def give_up():
            for pid in job.pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

        timer = threading.Timer(240, give_up)
        timer.start()
        ends = ask(job.pids)
        timer.cancel()
        return [
            (end, *(file.read_text() for file in files))
            for end, files in zip(ends, job.said, strict=True)
        ]

    yield Nursery(start, finish)
    process.stdin.close()
    process.wait()


def wait_for(there):
    until = time.monotonic() + 240
    while not there():
        assert time.monotonic() < until
        time.sleep(0.005)
