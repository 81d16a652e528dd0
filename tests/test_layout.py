"""Imports point one way: a room may only use those before it."""

import ast
from pathlib import Path

import pytest

import flaxhead

ORDER = (
    "base",
    "paths",
    "processes",
    "metrics",
    "comparison",
    "heads",
    "losses",
    "objectives",
    "large",
    "optim",
    "sampling",
    "step",
    "moments",
    "solvers",
    "fit",
    "ensembles",
    "graph",
    "semi_supervised",
    "distillation",
    "noisy_labels",
    "priors",
    "acquisition",
    "config",
    "data",
    "folds",
    "build",
    "flags",
    "parallel",
    "streamed",
    "selection",
    "search",
    "report",
    "checkpoints",
    "bundle",
    "crossval",
    "loop",
    "bulk",
    "entry",
    "suspects",
    "sklearn",
    "plan",
    "cli",
)
ROOT = Path(flaxhead.__file__).parent
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def room(path):
    """The first name below `flaxhead`: a file, or a folder with all that it holds."""
    return path.parts[0].removesuffix(".py")


def rooms_imported(source):
    """Rooms that a file's imports name, wherever in the file; "" for flaxhead's own."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            # `from flaxhead import heads` names rooms; `from flaxhead.heads` is one.
            several = module in ("flaxhead", ".")
            names = [f"{module}.{alias.name}" for alias in node.names]
            names = names if several else [module]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first in ("flaxhead", ""):
                found.add(rest.lstrip(".").partition(".")[0])
    return found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import numpy\nfrom jax import numpy", set()),
        ("import flaxhead.fit", {"fit"}),
        ("from flaxhead.heads.pool import pool", {"heads"}),
        ("from flaxhead import heads, losses", {"heads", "losses"}),
        ("def late():\n  from flaxhead import loop", {"loop"}),
        ("import flaxhead", {""}),
        ("from . import step", {"step"}),
        ("from .step import learner", {"step"}),
    ],
)
def test_imports_are_found(source, expected):
    assert rooms_imported(source) == expected


def test_every_room_has_its_place():
    found = {room(path) for path in FILES} - {"__init__"}
    assert found == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_one_way(path):
    if path == Path("__init__.py"):
        allowed = set(ORDER)
    else:
        own = ORDER.index(room(path))
        allowed = set(ORDER[:own])
        if len(path.parts) > 1:
            allowed.add(room(path))
    imported = rooms_imported((ROOT / path).read_text())
    assert imported <= allowed, f"{path} imports {sorted(imported - allowed)}"
