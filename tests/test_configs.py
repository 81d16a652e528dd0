"""Every file in configs/ runs, small, and every setting does something."""

import ast
import dataclasses
import functools
import json
import re
from pathlib import Path

import numpy as np
import pytest

import flaxhead
from flaxhead import build, config, flags
from train import main

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.py"))

# Per file in configs/: the data that the test writes, if any, and the devices.
SMALL = {
    "breast_cancer": (None, 1),
    "default": (None, 1),
    "dinov2_linear": (None, 8),
    "linear_probe": (None, 1),
    "mlp": (None, 1),
    "multi_label": ("multi_label", 1),
    "sentiment": ("sentiment", 1),
}
STEPS, EVALUATIONS = 5, 2


def test_the_table_covers_every_config():
    assert [path.stem for path in CONFIGS] == sorted(SMALL)


def write_sentiment(folder):
    """As such sets come: `train` and `val`, integer labels, float16."""
    rng = np.random.default_rng(0)
    for split, rows in (("train", 120), ("val", 40)):
        labels = np.arange(rows) % 2
        x = rng.normal(size=(rows, 12)) + labels[:, None]
        np.savez(
            folder / f"{split}.npz", embeddings=x.astype(np.float16), labels=labels
        )


def write_multi_label(folder):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 12))
    labels = (x[:, :4] > 0).astype(np.float32)
    labels[rng.random(labels.shape) < 0.1] = np.nan
    np.savez(folder / "train.npz", embeddings=x.astype(np.float32), labels=labels)


WRITERS = {"sentiment": write_sentiment, "multi_label": write_multi_label}


def strict(text):
    """JSON as the standard has it: NaN and Infinity are refused."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def documented(heading):
    """The keys of the table below a heading of docs/result.md: all, and the certain.

    What only some runs have is described starting with when, in italics.
    """
    text = (ROOT / "docs" / "result.md").read_text()
    (section,) = re.findall(rf"^#+ {heading}\n(.*?)(?=^#|\Z)", text, re.M | re.S)
    rows = re.findall(r"^\| `(\w+)` \| ?(.*)\|$", section, re.M)
    return {key for key, _ in rows}, {
        key for key, words in rows if not words.startswith("*")
    }


def assert_documented(keys, heading):
    known, certain = documented(heading)
    assert certain <= set(keys) <= known, heading


@pytest.fixture(scope="module", params=sorted(SMALL))
def ran(request, tmp_path_factory):
    """A small run of one config: its name, its folder and how many entries are NaN."""
    data, devices = SMALL[request.param]
    arguments = [
        f"--config={ROOT / 'configs' / request.param}.py",
        f"--config.train.steps={STEPS}",
        f"--config.train.evaluations={EVALUATIONS}",
        f"--config.train.devices={devices}",
    ]
    missing = 0
    if data:
        folder = tmp_path_factory.mktemp("data")
        WRITERS[data](folder)
        arguments.append(f"--config.data.source=npz:{folder}")
        missing = np.isnan(np.load(folder / "train.npz")["labels"]).sum()
    workdir = tmp_path_factory.mktemp("runs") / request.param
    assert main([*arguments, f"--workdir={workdir}"]) == 0
    return request.param, workdir, missing


def test_a_run_writes_all_that_is_documented(ran):
    name, workdir, missing = ran
    assert {path.name for path in workdir.iterdir()} == {
        *("config.json", "metrics.jsonl", "result.json"),
        *("checkpoints", "head", "curves.png"),
    }
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == [f"{STEPS}"]

    result = strict((workdir / "result.json").read_text())
    assert_documented(result, "result.json")
    assert_documented(result["selected"], "selected")
    assert_documented(result["val"], "val and test")
    assert_documented(result["test"], "val and test")
    assert_documented(result["timing"], "timing")
    assert_documented(result["data"], "data")
    for candidate in result["candidates"]:
        assert_documented(candidate, "candidates")

    stored = strict((workdir / "config.json").read_text())
    assert_documented(stored, "config.json")
    settings = stored["config"]
    assert settings["train"]["steps"] == STEPS
    entries = sum(result["data"].get("missing_entries", {}).values())
    assert entries == missing, name

    lines = [
        strict(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    shapes = [settings["optimizer"][key] for key in ("learning_rate", "weight_decay")]
    each_head = np.prod([len(values) for values in shapes])
    candidates = sum(each_head * len(head["dropout"]) for head in settings["heads"])
    assert len(result["candidates"]) == candidates
    assert len(lines) == candidates * EVALUATIONS
    known, certain = documented("metrics.jsonl")
    for line in lines:
        assert certain - {"top_5_accuracy"} <= set(line)
        assert set(line) <= known | {"auroc", "average_precision"}


def test_the_head_that_is_written_predicts(ran):
    name, workdir, _ = ran
    result = strict((workdir / "result.json").read_text())
    head = flaxhead.load(str(workdir / "head"))
    dim = head.bundle.spec.dim
    probabilities = np.asarray(head.probabilities(np.zeros((3, dim), np.float32)))
    assert probabilities.shape == (3, len(head.class_names))
    assert len(head.class_names) == len(result["data"]["support"]["train"])
    if name != "multi_label":
        np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_without_data_the_folder_is_named(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main([f"--config={ROOT / 'configs' / name}.py", "--workdir=run"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert f"embeddings/{name}" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_docstring_gives_command_score_and_seconds(path):
    words = ast.get_docstring(ast.parse(path.read_text()))
    command = "python train.py"
    if path.stem != "default":
        command += f" --config=configs/{path.name}"
    assert re.search(rf"^ +{command}( |$)", words, re.M)
    assert re.search(r"test [\w ]+ 0\.\d+", words.replace("\n", " "))
    assert re.search(r"\d s\b", words)


def test_dinov2_linear_is_the_papers():
    settings = flags.load(str(ROOT / "configs" / "dinov2_linear.py"))
    # {1, 2, 5} times 10^-5 to 10^-2, and 0.1; all of them times batch / 256.
    rates = [m * 10.0**-e for e in (5, 4, 3, 2) for m in (1, 2, 5)] + [0.1]
    np.testing.assert_allclose(settings.optimizer.learning_rate, rates)
    made = build.grid(settings, settings.heads[0], settings.train.batch_size)
    scaled = [candidate["learning_rate"] for candidate in made]
    np.testing.assert_allclose(scaled, np.multiply(rates, 1024 / 256))
    optimizer, train = settings.optimizer, settings.train
    assert (optimizer.name, optimizer.momentum) == ("sgd", 0.9)
    assert not optimizer.nesterov
    assert (optimizer.schedule, optimizer.weight_decay) == ("cosine", (0.0,))
    assert (train.batch_size, train.steps, train.patience) == (1024, 12_500, 0)
    assert [head.name for head in settings.heads] == ["linear"]


# What the settings of a section are called where they are read.
CALLED = {
    "Config": {"config"},
    "DataConfig": {"config", "data"},
    "HeadConfig": {"head", "config"},
    "LossConfig": {"loss"},
    "OptimizerConfig": {"optimizer"},
    "TrainConfig": {"train"},
    "SelectionConfig": {"selection"},
    "CheckpointConfig": {"settings", "checkpoint"},
}
FIELDS = [
    (section, field.name)
    for section in CALLED
    for field in dataclasses.fields(getattr(config, section))
]


@functools.cache
def reads():
    """(what it is read from, field) of all of flaxhead; `*_end` for f"{...}_end"."""
    found = set()
    for path in Path(flaxhead.__file__).parent.rglob("*.py"):
        if path.name == "config.py":
            continue
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            # To check a setting is not to use it.
            if isinstance(node, ast.FunctionDef) and node.name == "check":
                node.body = []
        for node in ast.walk(tree):
            owner, name = None, None
            match node:
                case ast.Attribute(value=owner, attr=name):
                    pass
                case ast.Call(
                    func=ast.Name(id="getattr"),
                    args=[owner, ast.JoinedStr(values=[*_, ast.Constant(value=end)])],
                ):
                    name = f"*{end}"
            match owner:
                case ast.Name(id=called) | ast.Attribute(attr=called):
                    found.add((called, name))
    return found


def test_sections_are_all_known():
    sections = {
        name for name, one in vars(config).items() if dataclasses.is_dataclass(one)
    }
    assert sections == set(CALLED)


@pytest.mark.parametrize(("section", "field"), FIELDS)
def test_every_setting_is_read(section, field):
    names = {field, f"*_{field.rpartition('_')[2]}"}
    assert {(called, name) for called in CALLED[section] for name in names} & reads()
