"""Every example runs, is short, and prints what it promises."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
LINES = 40


def floats(pattern, text):
    return [float(found) for found in re.findall(pattern, text)]


def train_pure(text):
    accuracies = floats(r"learning rate 0\.\d+: held-out accuracy (\S+)", text)
    assert len(accuracies) == 4
    assert max(accuracies) > 0.93


def own_module(text):
    (accuracy,) = floats(r"held-out accuracy (\S+)", text)
    assert accuracy > 0.9


def vmap_and_pmap(text):
    (last,) = re.findall(r"vmap, last loss of each rate: \[(.*)\]", text)
    (shared_out,) = floats(r"rate 0.1 on 8 device\(s\): (\S+)", text)
    (difference,) = floats(r"largest difference: (\S+)", text)
    assert shared_out == pytest.approx(float(last.split()[1]), abs=1e-3)
    assert difference < 1e-5


def frozen_backbone(text):
    (accuracy,) = floats(r"accuracy from pixels (\S+)", text)
    assert accuracy > 0.95
    assert "backbone as it was: True" in text


def new_classes(text):
    assert "rows of the old classes kept: True" in text
    extended, replaced = floats(r"accuracy (\S+)", text)
    assert min(extended, replaced) > 0.95


def run_from_library(text):
    (accuracy,) = floats(r"test accuracy (\S+)", text)
    low, high = re.findall(r"interval (\S+) to (\S+)\)", text)[0]
    assert float(low) <= accuracy <= float(high)
    predicted, labelled = re.findall(r"(?:predicted|labelled): +(\[.*\])", text)
    assert set(re.findall(r"\w+", predicted + labelled)) <= {"ant", "bee", "cat"}


def semi_supervised(text):
    alone, graph, itself = floats(r"test accuracy (\S+)", text)
    assert graph > alone + 0.05
    assert itself > alone


def ensemble(text):
    best, _, chosen = floats(r"test NLL (\S+)", text)
    assert chosen < best


def distilled(text):
    one, student = floats(r"test accuracy (\S+)", text)
    assert student > one + 0.1


def active_learning(text):
    pairs = re.findall(r"accuracy (\S+) chosen, (\S+) at random", text)
    assert len(pairs) == 3
    assert all(float(ours) > float(theirs) for ours, theirs in pairs)
    assert float(pairs[-1][0]) > 0.88


def sklearn_pipeline(text):
    auto, searched = floats(r"accuracy (\S+)", text)
    assert min(auto, searched) > 0.85
    by_ridge, by_labels = floats(r"(0\.\d+) by", text)
    assert by_ridge == pytest.approx(by_labels, abs=0.05)
    assert "in four parts as in one: True" in text


OUTCOMES = {
    check.__name__: check
    for check in (
        train_pure,
        own_module,
        vmap_and_pmap,
        frozen_backbone,
        new_classes,
        run_from_library,
        sklearn_pipeline,
        semi_supervised,
        ensemble,
        distilled,
        active_learning,
    )
}


def test_every_example_is_run():
    assert sorted(OUTCOMES) == sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", OUTCOMES)
def test_example(name, tmp_path, monkeypatch, capsys):
    path = EXAMPLES / f"{name}.py"
    text = path.read_text()
    assert text.startswith('"""')
    assert len(text.splitlines()) < LINES
    monkeypatch.chdir(tmp_path)  # It runs from any folder, and leaves nothing there.
    runpy.run_path(str(path), run_name="__main__")
    OUTCOMES[name](capsys.readouterr().out)
    assert not list(tmp_path.iterdir())
