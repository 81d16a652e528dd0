"""Eight fake CPU devices for every test, set before JAX starts."""

import gc
import os
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
# Compiling is most of the work: in one piece it costs a fifth less, and by the older
# emitters, whose code is slower, a third of the rest.
QUICK = "--xla_cpu_parallel_codegen_split_count=1 --xla_cpu_use_fusion_emitters=false"
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

# Tracing makes many small objects, and looking for dead ones again and again costs a
# seventh of the time; after each file it is done once.
gc.set_threshold(200_000, 50, 1000)


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
