"""Every file in configs/ runs, small, and every setting does something."""

import ast
import dataclasses
import functools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

import flaxhead
from flaxhead import build, config, flags
from train import main

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.py"))

# Per file in configs/: the data that the test writes, if any, the devices, and flags
# that make it small.
SMALL = {
    "attention_pooling": (None, 1),
    "auto": (
        *(None, 1, "--config.selection.folds=2"),
        *("--config.heads.1.alpha=(0.1,1.0)", "--config.heads.2.C=(0.1,1.0)"),
        "--config.heads.3.dropout=(0.5,)",
    ),
    "breast_cancer": (None, 1),
    "consistency": (None, 1, "--config.train.batch_size=20"),
    "clip_lbfgs": (None, 1, "--config.heads.0.C=(0.1,1.0)"),
    "default": (None, 1),
    "dinov2_linear": (None, 8),
    "dinov2_linear_52": ("dinov2_linear_52", 1),
    "dinov2_logreg_45": (None, 1, "--config.heads.0.C=(0.1,1.0)"),
    "distill": (
        *(None, 1, "--config.heads.0.members=2", "--config.heads.0.width=8"),
        "--config.heads.0.graph=False",
    ),
    "ensemble": (
        *(None, 1, "--config.heads.1.members=2"),
        *("--config.heads.0.width=8", "--config.heads.1.width=8"),
    ),
    "fewshot_lsr": (
        *(None, 1, "--config.curve.shots=(1,3)"),
        "--config.curve.repeats=2",
    ),
    "knn_dino": (None, 8),
    "linear_probe": (None, 1),
    "logistic": (
        *(None, 1, "--config.heads.0.C=(0.1,1.0)", "--config.selection.folds=2"),
        *("--config.selection.extend=0", "--config.selection.nested=2"),
    ),
    "long_tail": (None, 1),
    "mlp": (None, 1),
    "multi_label": ("multi_label", 1),
    "noisy_labels": (None, 1),
    "ridge": (
        *(None, 8, "--config.heads.0.alpha=(0.1,1.0)"),
        "--config.selection.extend=0",
    ),
    "semi_supervised": (
        *(None, 1, "--config.curve.shots=(2,)"),
        *("--config.curve.repeats=1", "--config.selection.folds=2"),
        *("--config.heads.0.C=(1.0,)", "--config.heads.1.C=(1.0,)"),
    ),
    "sentiment": ("sentiment", 1),
    "setfit_lp": (
        *(None, 1, "--config.curve.shots=(2,)"),
        "--config.curve.repeats=1",
    ),
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


def write_dinov2_linear_52(folder):
    """Five vectors side by side."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    x = rng.normal(size=(120, 5, 6)) + labels[:, None, None]
    np.savez(folder / "train.npz", embeddings=x.reshape(120, 30), labels=labels)


def write_multi_label(folder):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 12))
    labels = (x[:, :4] > 0).astype(np.float32)
    labels[rng.random(labels.shape) < 0.1] = np.nan
    np.savez(folder / "train.npz", embeddings=x.astype(np.float32), labels=labels)


WRITERS = {
    "dinov2_linear_52": write_dinov2_linear_52,
    "multi_label": write_multi_label,
    "sentiment": write_sentiment,
}


def strict(text):
    """JSON as the standard has it: NaN and Infinity are refused."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def documented(*headings):
    """The keys of tables below headings of docs/result.md: all, and the certain.

    What only some runs have is described starting with when, in italics.
    """
    text = (ROOT / "docs" / "result.md").read_text()
    rows = []
    for heading in headings:
        (section,) = re.findall(rf"^#+ {heading}\n(.*?)(?=^#|\Z)", text, re.M | re.S)
        rows += re.findall(r"^\| `(\w+)` \| ?(.*)\|$", section, re.M)
    return {key for key, _ in rows}, {
        key for key, words in rows if not words.startswith("*")
    }


def assert_documented(keys, *headings):
    known, certain = documented(*headings)
    assert certain <= set(keys) <= known, headings


def generic(keys, metric):
    """Keys that begin with the name of a metric, as the page writes them."""
    return {re.sub(rf"^{metric}(?=_ci$|$)", "METRIC", key) for key in keys}


@pytest.fixture(scope="module", params=sorted(SMALL))
def ran(request, tmp_path_factory):
    """A small run of one config: its name, its folder and how many entries are NaN."""
    data, devices, *changes = SMALL[request.param]
    arguments = [
        f"--config={ROOT / 'configs' / request.param}.py",
        f"--config.train.steps={STEPS}",
        f"--config.train.evaluations={EVALUATIONS}",
        f"--config.train.devices={devices}",
        *changes,
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


def read(workdir):
    """The result, the settings and the lines of the log."""
    stored = strict((workdir / "config.json").read_text())
    assert_documented(stored, "config.json")
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    result = strict((workdir / "result.json").read_text())
    return result, stored["config"], [strict(line) for line in lines]


def searched(name):
    """Whether a config compares whole fits."""
    return build.searched(flags.load(str(ROOT / "configs" / f"{name}.py")))


def test_a_run_writes_all_that_is_documented(ran):
    name, workdir, missing = ran
    result, settings, _ = read(workdir)
    files = {"config.json", "metrics.jsonl", "result.json", "head", "curves.png"}
    if not searched(name):
        files.add("checkpoints")
        (saved,) = (workdir / "checkpoints").iterdir()
        assert saved.name == f"{STEPS}"
    if settings["curve"]["shots"]:
        files.add("learning_curve.png")
    assert {path.name for path in workdir.iterdir()} == files
    for picture in workdir.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")

    more = ["what only a search has"] if searched(name) else []
    assert_documented(result, "result.json", *more)
    assert_documented(result["selected"], "selected")
    assert_documented(result["val"], "val and test")
    assert_documented(result["test"], "val and test")
    assert_documented(result["timing"], "timing")
    assert_documented(result["data"], "data")
    for candidate in result["candidates"]:
        assert_documented(candidate, "candidates")
    assert settings["train"]["steps"] == STEPS
    assert result.get("protocol", "") == settings["protocol"]
    entries = sum(result["data"].get("missing_entries", {}).values())
    assert entries == missing, name


def tried(settings, head):
    """How many combinations of swept values one head has."""
    if head["name"] in build.SOLVED:
        each = [head[field] for field in build.SOLVED[head["name"]]]
    else:
        optimizer = settings["optimizer"]
        each = [optimizer["learning_rate"], optimizer["weight_decay"], head["dropout"]]
    return math.prod(len(values) for values in each)


def test_the_log_has_what_is_documented(ran):
    name, workdir, _ = ran
    result, settings, lines = read(workdir)
    candidates = sum(tried(settings, head) for head in settings["heads"])
    if searched(name):
        assert lines == result["candidates"]
        # A grid is extended where its edge won.
        extended = len(lines) - candidates
        assert extended % 3 == 0
        assert 0 <= extended // 3 <= settings["selection"]["extend"]
        return
    assert len(result["candidates"]) == candidates
    assert len(lines) == candidates * EVALUATIONS
    known, certain = documented("metrics.jsonl")
    for line in lines:
        assert certain - {"top_5_accuracy"} <= set(line)
        assert set(line) <= known | {"auroc", "average_precision"}


def test_what_a_search_tells_is_documented(ran):
    name, workdir, _ = ran
    result, settings, _ = read(workdir)
    heads = {one["head"]: one for one in result["candidates"]}
    for candidate in result["candidates"]:
        solved = candidate["head"] == "logistic"
        assert (candidate["solver"] is not None) == solved
        if solved:
            assert_documented(candidate["solver"], "solver")
    if not searched(name):
        return
    metric, selection = result["selected"]["metric"], settings["selection"]
    assert_documented(generic(result["corrected"], metric), "corrected")
    assert_documented(result["folds"], "folds")
    assert len(result["comparisons"]) == len(heads) - 1
    for comparison in result["comparisons"]:
        assert_documented(comparison, "comparisons")
    assert ("nested" in result) == bool(selection["nested"])
    if "nested" in result:
        assert_documented(result["nested"], "val and test", "nested")
        assert len(result["nested"]["chosen"]) == selection["nested"]
    points, curve = result.get("learning_curve", []), settings["curve"]
    assert [point["shots"] for point in points] == curve["shots"]
    for point in points:
        assert_documented(point, "learning_curve")
        assert len(point["scores"]) == len(point["chosen"]) == curve["repeats"]
    assert result["test_looks"] == 1 + len(points) * curve["repeats"]
    head = strict((workdir / "head" / "head.json").read_text())
    assert head["metrics"]["corrected"] == result["corrected"]


def test_the_head_that_is_written_predicts(ran):
    name, workdir, _ = ran
    result = strict((workdir / "result.json").read_text())
    head = flaxhead.load(str(workdir / "head"))
    dim = head.bundle.spec.dim
    shape = (3, 8, dim) if head.bundle.spec.tokens else (3, dim)
    probabilities = np.asarray(head.probabilities(np.zeros(shape, np.float32)))
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
    words = ast.get_docstring(ast.parse(path.read_text())) or ""
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
    "ConsistencyConfig": {"asked", "consistency"},
    "OptimizerConfig": {"optimizer"},
    "TrainConfig": {"train"},
    "SelectionConfig": {"selection"},
    "CurveConfig": {"curve"},
    "CheckpointConfig": {"settings", "checkpoint"},
}
CHECKS = ("check", "_check_")
FIELDS = [
    (section, field.name)
    for section in CALLED
    for field in dataclasses.fields(getattr(config, section))
]


@functools.cache
def reads():
    """(what it is read from, field) of all of flaxhead; `*_end` for f"{...}_end"."""
    # What a solved head sweeps is read by its name in this table.
    found = {("head", name) for names in build.SOLVED.values() for name in names}
    for path in Path(flaxhead.__file__).parent.rglob("*.py"):
        if path.name == "config.py":
            continue
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            # To check a setting is not to use it.
            if isinstance(node, ast.FunctionDef) and node.name.startswith(CHECKS):
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
