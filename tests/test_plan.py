"""Plans: what the compiler says of programs for devices that are not here."""

import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from flaxhead import cli, plan
from flaxhead.config import (
    Config,
    ConsistencyConfig,
    DataConfig,
    HeadConfig,
    OptimizerConfig,
    SelectionConfig,
    TrainConfig,
)
from flaxhead.data import arrays

ROWS, DIM, CLASSES, BATCH = 640, 128, 8, 64
SHAPE = f"{ROWS}x{DIM}x{CLASSES}:bfloat16"
TRAIN = TrainConfig(batch_size=BATCH, steps=10)


@pytest.fixture(scope="module", autouse=True)
def _flags_of_cpus():
    """The TPU's compiler ends the process at a flag that it doesn't know."""
    jax.devices()  # Has read them.
    flags = os.environ.pop("XLA_FLAGS")
    yield
    os.environ["XLA_FLAGS"] = flags


def unlabelled(config: Config):
    """Half of the training rows have no label."""
    data = plan.imagine(SHAPE, config)
    half = len(data.train.labels) // 2
    first, second = (
        data.train._replace(
            **{
                name: value[part]
                for name, value in data.train._asdict().items()
                if value is not None
            }
        )
        for part in (slice(None, half), slice(half, None))
    )
    second = second._replace(labels=np.full(len(second.labels), -1, np.int32))
    return data._replace(train=first, unlabelled=second)


RUNS = {
    "default": Config(train=TRAIN),
    "sweep of 52": Config(
        heads=(HeadConfig(normalization="standardize"),),
        optimizer=OptimizerConfig(
            learning_rate=tuple(2.0**-i for i in range(13)),
            weight_decay=(0.0, 1e-4, 1e-3, 1e-2),
        ),
        train=TRAIN,
    ),
    "logistic": Config(
        heads=(HeadConfig("logistic", C=(0.1, 1.0, 10.0)),),
        selection=SelectionConfig(folds=3),
    ),
    "ensemble": Config(
        heads=(HeadConfig("mlp", width=16, members=4),),
        train=TRAIN,
    ),
    "semi-supervised": Config(
        data=DataConfig(unlabelled="keep"),
        heads=(HeadConfig("linear"),),
        consistency=ConsistencyConfig("fixmatch"),
        train=TRAIN,
    ),
}


@pytest.mark.parametrize(
    ("name", "where"),
    [*((name, "v5e:2x2") for name in RUNS), ("default", "v6e:8x8")],
)
def test_programs_compile_for_tpus(name, where):
    config = RUNS[name]
    data = plan.imagine(SHAPE, config)
    if config.data.unlabelled == "keep":
        data = unlabelled(config)
    made = plan.plan(config, data, name=where, devices=plan.topology(where))
    assert made.refused == ""
    assert made.fits
    assert made.devices == {"v5e:2x2": 4, "v6e:8x8": 64}[where]
    assert made.programs
    for one in made.programs:
        assert one.flops > 0
        assert one.bytes > 0
        assert "callback" not in one.text
        assert "f64[" not in one.text
        assert not re.search(r"\[<=\d", one.text), "a dynamic shape"
        # The embeddings stay where they are, and so does everything else.
        assert set(one.collectives) <= {"all-reduce"}
        # A product per line; only those of training may be rounded, by JAX's default.
        full = [
            "operand_precision={highest,highest}" in line
            for line in one.text.splitlines()
            if re.search(r" = f32\S+ (convolution|dot)\(", line)
        ]
        if one.name.startswith("train "):
            assert not any(full)
        else:  # That of the ensemble trains and scores.
            assert all(full) != (name == "ensemble" and bool(full))
        assert not re.search(r" = bf16\S+ (convolution|dot)\(", one.text)
        if one.name.startswith("train "):
            # Devices add up their gradients, and no more than a few numbers beside.
            numbers = made.candidates * (DIM * CLASSES + CLASSES)
            # Noise in two views goes by the spread of each feature.
            views = 2 * (DIM + 1) if config.consistency.method != "none" else 0
            traffic = one.collectives["all-reduce"].bytes
            most = numbers + 4 * made.candidates + views
            assert 4 * numbers <= traffic <= 4 * most


def test_numbers_of_this_machine_are_visible_arithmetic():
    rates = OptimizerConfig("adam", learning_rate=(1e-3, 1e-2, 1e-1))
    config = Config(train=TRAIN, optimizer=rates)
    data = plan.imagine(SHAPE, config)
    made = plan.plan(config, data, name="local", devices=jax.local_devices()[:1])
    train = ROWS - int(ROWS * config.data.val_fraction)
    assert made.candidates == 3
    assert made.embeddings == 2 * train * DIM
    numbers = 3 * (DIM * CLASSES + CLASSES)
    assert made.parameters == 4 * 2 * numbers  # and the best so far
    # Two moments, and what counts steps and losses.
    assert 4 * 2 * numbers <= made.optimizer <= 4 * 2 * numbers + 4 * 3 * 64
    # Forwards and to the kernel's gradient: the embeddings need none.
    products = 2 * 2 * BATCH * DIM * 3 * CLASSES
    assert products <= made.programs[0].flops <= 1.5 * products
    assert made.fits
    assert made.largest > 3
    assert made.seconds is None  # the CPU's compiler makes no estimate


@pytest.mark.parametrize("folds", [0, 2])
@pytest.mark.parametrize("kind", ["views", "tokens"])
def test_rows_of_several_vectors_are_planned(kind, folds):
    config = Config(
        data=DataConfig("arrays", views=kind == "views"),
        heads=(HeadConfig(pool="none" if kind == "views" else "mean"),),
        train=TrainConfig(batch_size=8, steps=2),
        selection=SelectionConfig(folds=folds),
    )
    fields = {"embeddings": np.ones((30, 3, 5), np.float32), "labels": [0, 1] * 15}
    if kind == "tokens":
        fields["mask"] = np.ones((30, 3), bool)
    data = arrays(fields, config=config.data)
    made = plan.plan(config, data, name="local", devices=jax.local_devices()[:1])
    assert made.embeddings >= 4 * 3 * 5 * len(data.train.labels)


def test_the_largest_sweep_leaves_room_for_the_rows():
    made = plan.Plan("v", "TPU", 1, capacity=1000, embeddings=300, rows=100,
                     parameters=40, optimizer=10, temporaries=50,
                     candidates=10)  # fmt: skip
    assert made.needed == 500
    assert made.fits
    assert made.largest == (1000 - 400) * 10 // 100
    assert not made._replace(capacity=499).fits
    assert made._replace(capacity=None).fits is None
    assert made._replace(refused="out of memory").fits is False


def test_command_line(capsys):
    arguments = ["plan", "--shape=640x16x3", "--config.train.steps=5", "--price=2"]
    assert cli.main(arguments) == 0
    told = capsys.readouterr().out
    assert "local: 8 x cpu" in told
    assert "train linear" in told
    assert "all-reduce" in told
    assert cli.main([*arguments, "--topology=v5e:1x1"]) == 0
    told = capsys.readouterr().out
    assert "v5e:1x1: 1 x TPU v5 lite" in told
    assert "at 2 an hour" in told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--topology=v9:1x1"], "v5e:4x4"),
        (["--shape=640x16"], "ROWSxDIMxCLASSES"),
        (["--shape=640x0x3"], "ROWSxDIMxCLASSES"),
        (["--shape=640x16x1"], "2 classes or more"),
        (["--price=-2"], "at least 0"),
        (["--shape=640x16x3", "--config.train.batchsize=3"], "batch_size"),
        (["--config=none.py"], "none.py"),
    ],
)
def test_bad_input_is_one_sentence(arguments, said, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(["plan", *arguments])
    assert error.value.code == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_without_the_compiler_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"flaxhead\[plan\]"):
        plan.topology("v5e:1x1")


def test_a_tpu_that_another_process_has_is_told(monkeypatch):
    def refuse(**_):
        raise jax.errors.JaxRuntimeError("ABORTED: libtpu multi-process lockfile")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", refuse)
    with pytest.raises(ValueError, match="another process has this machine's TPU"):
        plan.topology("v5e:1x1")


def test_a_table_has_a_line_a_topology():
    one = plan.Plan("v5e:1x1", "TPU v5 lite", 1, 16 * 10**9, embeddings=10**9)
    two = one._replace(topology="v6e:1x1", refused="out of memory")
    lines = [plan.in_line(made, price=1.0) for made in (one, two)]
    assert "yes" in lines[0]
    assert "no" in lines[1]
    assert all(len(line) == len(plan.TABLE) for line in lines)


def test_an_imagined_dataset_takes_no_memory():
    data = plan.imagine("1000000x4096x1000:float16", Config())
    assert data.train.x.shape == (800_000, 4096)
    assert data.train.x.strides == (0, 0)


def test_the_tpu_compiler_beside_it_leaves_the_cpu_alone():
    code = "import jax; print([d.platform for d in jax.devices()])"
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "cpu" in told.stdout
