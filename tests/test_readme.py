"""What README.md and docs/result.md say is what happens."""

import contextlib
import importlib.metadata
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK
from safetensors.numpy import load_file

import flaxhead as fh
from flaxhead import flags

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FENCES = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"\d+(\.\d+)?(e-?\d+)?")


def blocks(text):
    return [(kind, body) for kind, body in FENCES.findall(text)]


def setups():
    return [body.strip() for kind, body in blocks(README) if "-m venv" in body]


def run_shell(line, folder):
    """Runs a line of the README as it stands, on one device, in a folder."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "XLA_FLAGS": QUICK,
    }
    done = subprocess.run(
        ["bash", "-ec", line],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    return done.stdout


def same_form(printed, shown):
    """Whether a text is another up to its numbers and the head that won."""

    def form(text):
        text = re.sub(r"^\S+ (\(.*?\) )?won of", "HEAD won of", text)
        return NUMBER.sub("#", text.strip())

    shown = form(shown)
    if shown.endswith("..."):
        return form(printed).startswith(shown.removesuffix("..."))
    return form(printed) == shown


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder with what a clone has that the commands name."""
    for name in ("train.py", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_same_form_tells_texts_apart():
    assert same_form("linear won of 2 by 0.5", "mlp-8x1 (rate 1) won of 24 by 0.25")
    assert same_form('{"a": 1, "b": 2}', '{"a": 3, ...')
    assert not same_form("linear won of 2 by 0.5", "linear won of 2 by nan")
    assert not same_form('{"a": 1}', '{"b": 1, ...')


def test_every_block_runs_in_order_and_prints_what_is_shown(clone):
    names, printed, ran = {}, "", 0
    for kind, body in blocks(README):
        if "-m venv" in body:
            continue
        if kind == "text":
            assert ran == 0 or same_form(printed, body), f"{printed}\nnot\n{body}"
            continue
        ran += 1
        if kind == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(body, "README.md", "exec"), names)
            printed = out.getvalue()
        else:
            assert kind == "bash"
            printed = run_shell(body, clone)
    assert ran >= 5
    assert {"result.json", "curves.png", "head"} <= set(os.listdir("RUN"))


def test_the_line_that_trains(clone):
    """The same command, after the environment, on fewer epochs; the text below it."""
    line = setups()[0]
    install, command = line.split(" && ")[1:]
    assert install == ".venv/bin/pip install ."
    assert command == ".venv/bin/python train.py"
    quick = " --config.train.epochs=1"
    printed = run_shell(shlex.quote(sys.executable) + " train.py" + quick, clone)
    shown = next(body for kind, body in blocks(README) if kind == "text")
    assert same_form(printed, shown)
    assert fh.load("runs/default-001/head").class_names == tuple("0123456789")


def test_the_line_that_tests_is_what_ci_runs():
    line = setups()[1]
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    commands = [line for line in script if line and not line.startswith("#")]
    environment, install, command = line.split(" && ")
    assert commands[-1] == command == ".venv/bin/python -m pytest"
    assert install.replace("install", "install --quiet") in commands
    assert '"${PYTHON:-python3}"' + environment.removeprefix("python3") in commands
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "run: .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def test_every_flag_that_is_named_is_one():
    named = set(re.findall(r"`(?:python train.py )?(--config\.[^`]+)`", README))
    assert len(named) >= 5
    for flag in named:
        flags.override(fh.Config(), [flag])


def test_every_extra_that_is_named_is_one():
    named = set(re.findall(r"(?:flaxhead|\.)\[(\w+)\]'", README))
    known = importlib.metadata.metadata("flaxhead").get_all("Provides-Extra")
    assert {"test", "tpu", "cuda"} <= named <= set(known or ())


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "docs/design.md", "docs/result.md"]
)
def test_links_lead_somewhere(page):
    path = ROOT / page
    for link in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if not link.startswith("http"):
            name, _, anchor = link.partition("#")
            target = path.parent / name if name else path
            assert target.exists(), link
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            anchors = {
                title.lower().replace(" ", "-").replace("'", "") for title in headings
            }
            assert not anchor or anchor in anchors, link


@pytest.mark.parametrize("folder", ["configs", "examples"])
def test_tables_name_every_file(folder):
    named = re.findall(rf"^\| \[.*?\]\({folder}/(\w+)\.py\)", README, re.MULTILINE)
    files = {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__"}
    assert sorted(named) == sorted(files)


def documented(heading, *, without):
    """Keys of the table under a heading of docs/result.md, but those of other cases."""
    text = (ROOT / "docs" / "result.md").read_text()
    (section,) = re.findall(
        rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.DOTALL | re.MULTILINE
    )
    rows = re.findall(r"^\| `(\w+)` \| ?(.*?)\|$", section, re.MULTILINE)
    kept = [
        key
        for key, meaning in rows
        if not any(meaning.startswith(f"*{case}:*") for case in without)
    ]
    assert kept
    assert len(kept) == len(set(kept))
    return set(kept)


def one_label(folder):
    config = fh.Config(
        fh.DataConfig("sklearn:iris"),
        optimizer=fh.OptimizerConfig(learning_rate=(0.01, 0.1)),
        train=fh.TrainConfig(epochs=2, devices=1),
    )
    return fh.run(config, folder)


def several_labels(folder):
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 3)) < 0.4).astype(np.float32)
    x = labels @ rng.normal(size=(3, 8)) + rng.normal(size=(200, 8))
    data = fh.arrays({"embeddings": x.astype(np.float32), "labels": labels})
    config = fh.Config(train=fh.TrainConfig(epochs=2, devices=1))
    return fh.run(config, folder, data=data)


UNSET = tuple(f"with `data.{name}`" for name in ("imbalance", "label_noise", "views"))


@pytest.mark.parametrize(
    ("run", "without"),
    [
        (
            one_label,
            [
                *UNSET,
                *("several labels a row", "rows without a label"),
                "of a published protocol",
            ],
        ),
        (
            several_labels,
            [
                *UNSET,
                *("one label a row", "rows without a label", "read from a source"),
                "of a published protocol",
            ],
        ),
    ],
)
def test_every_key_is_documented_and_there(run, without, tmp_path):
    def keys(heading):
        return documented(heading, without=without)

    returned = run(tmp_path / "RUN")
    result = json.loads((tmp_path / "RUN" / "result.json").read_text())
    assert result == returned
    assert set(result) == keys("result.json")
    assert set(result["selected"]) == keys("selected")
    for candidate in result["candidates"]:
        assert set(candidate) == keys("candidates")
    for split in ("val", "test"):
        assert set(result[split]) == keys("val and test")
    assert set(result["timing"]) == keys("timing")
    assert set(result["data"]) == keys("data")
    assert result["test_looks"] == 1
    assert result["selected"]["index"] == result["selected"]["ranked"][0]

    ranking = {result["selected"]["metric"]} & {"auroc", "average_precision"}
    lines = (tmp_path / "RUN" / "metrics.jsonl").read_text().splitlines()
    for line in lines:
        assert set(json.loads(line)) == keys("metrics.jsonl") | ranking
    config = json.loads((tmp_path / "RUN" / "config.json").read_text())
    assert set(config) == keys("config.json")


def test_every_key_of_a_head_is_documented_and_there(tmp_path):
    result = one_label(tmp_path / "RUN")
    folder = tmp_path / "RUN" / "head"
    head = json.loads((folder / "head.json").read_text())
    assert set(head) == documented("head/", without=[])
    won = {"head": head["head"]["name"], **result["selected"]["hyperparameters"]}
    assert head["metrics"] == {
        "selected": won,
        **{key: result[key] for key in ("val", "test", "test_looks")},
    }
    arrays = load_file(folder / "params.safetensors")
    assert {name.partition("/")[0] for name in arrays} == {"params", "statistics"}
    assert sorted(path.name for path in folder.iterdir()) == [
        "head.json",
        "params.safetensors",
    ]


def test_every_file_of_a_run_is_documented_and_there(tmp_path):
    one_label(tmp_path / "RUN")
    text = (ROOT / "docs" / "result.md").read_text()
    named = re.findall(r"^\| `RUN/([\w.]+)/?` \|", text, re.MULTILINE)
    named.remove("learning_curve.png")  # where one is asked for
    assert sorted(named) == sorted(os.listdir(tmp_path / "RUN"))
