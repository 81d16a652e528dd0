"""Command line -> `Config`: a config file, and `--config.FIELD=VALUE` on top.

`--config.data.source=npz:DIR` sets one field, `--config.heads.0.width=256` a field of
one head, `--config.optimizer.learning_rate=[1,0.1]` a tuple. What the file and the
dataclasses don't know is refused with the nearest name.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flaxhead import processes
from flaxhead.build import check
from flaxhead.config import Config

_LARGEST = 10**300  # whole numbers below it are floats too
_FLAGS = (
    *("--config", "--workdir", "--multihost", "--help"),
    *(f"--{name}" for name in processes.FLAGS),
)


def load(path: str) -> Config:
    """Reads a config file: a Python module with `get_config() -> Config`.

    Raises:
      ValueError: there is no such file, it can't be run, or it returns something else.
    """
    file = Path(path)
    if file.suffix != ".py" or not file.is_file():
        known = sorted(str(other) for other in file.parent.glob("*.py"))
        hint = difflib.get_close_matches(path, known, 1, 0.6)
        raise ValueError(
            f"--config={path}: there is no such config file; "
            + (f"did you mean {hint[0]}?" if hint else "expected a .py file")
        )
    spec = importlib.util.spec_from_file_location("flaxhead_user_config", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:
        raise ValueError(
            f"--config={path}: running it failed with {type(error).__name__}: {error}"
        ) from error
    if not isinstance(config, Config):
        raise ValueError(
            f"--config={path}: get_config() returned a {type(config).__name__}; "
            "expected a flaxhead.Config"
        )
    return config


def override(config: Config, flags: Sequence[str]) -> Config:
    """Applies `--config.FIELD=VALUE` flags in turn and checks the outcome.

    Raises:
      ValueError: an unknown field (with the nearest name), a value of another type, or
        settings that no run could use.

    >>> override(Config(), ["--config.train.batch_size=64"]).train.batch_size
    64
    >>> override(Config(), ["--config.optimizer.learning_rate=[1,0.1]"]).optimizer.name
    'adam'
    """
    for flag in flags:
        name, equals, text = flag.removeprefix("--config.").partition("=")
        if not flag.startswith("--config.") or not equals:
            near = difflib.get_close_matches(flag.partition("=")[0], _FLAGS, 1, 0.7)
            raise ValueError(
                f"{flag}: "
                + (f"did you mean {near[0]}? " if near else "")
                + "expected --config.FIELD=VALUE, such as --config.train.batch_size=64"
            )
        config = _replace(config, name.split("."), text, flag)
    check(config)
    return config


def _replace(node: Any, path: list[str], text: str, flag: str) -> Any:
    name, rest = path[0], path[1:]
    if isinstance(node, tuple):
        if not name.isdecimal() or int(name) >= len(node):
            raise ValueError(
                f"{flag}: {name!r} is not one of its {len(node)} entries; expected a "
                f"number from 0 to {len(node) - 1}"
            )
        number = int(name)
        new = _replace(node[number], rest, text, flag) if rest else None
        if new is None:
            raise ValueError(f"{flag}: name a field of entry {number}")
        return (*node[:number], new, *node[number + 1 :])
    fields = {field.name: field for field in dataclasses.fields(node)}
    if name not in fields:
        near = difflib.get_close_matches(name, fields, 1, 0.4)
        raise ValueError(
            f"{flag}: there is no field {name!r}; "
            + (f"did you mean {near[0]!r}?" if near else "expected one")
            + f" (fields: {', '.join(fields)})"
        )
    value = getattr(node, name)
    if rest:
        whole = isinstance(value, tuple) and dataclasses.is_dataclass(
            value[0] if value else None
        )
        if not dataclasses.is_dataclass(value) and not whole:
            raise ValueError(
                f"{flag}: {name!r} is a value and has no field {rest[0]!r}"
            )
        return dataclasses.replace(node, **{name: _replace(value, rest, text, flag)})
    hint = typing.get_type_hints(type(node))[name]
    return dataclasses.replace(node, **{name: _parse(text, hint, flag)})


def _parse(text: str, hint: Any, flag: str) -> Any:
    """Reads a value of the field's type, and of no other."""
    if isinstance(hint, types.UnionType):
        # A union of ours is text or something written in brackets.
        kinds = typing.get_args(hint)
        hint = (
            str if not text.startswith("{") else next(k for k in kinds if k is not str)
        )
    if hint is str:
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = text
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is bool and text in ("True", "False"):
        return text == "True"
    if _is_number(value, hint):
        return hint(value)
    if origin is tuple:
        values = value if isinstance(value, tuple | list) else (value,)
        if all(_is_number(one, arguments[0]) for one in values):
            return tuple(arguments[0](one) for one in values)
    if (
        origin is dict
        and isinstance(value, dict)
        and all(_is_number(one, float) for one in value.values())
    ):
        return {str(key): float(one) for key, one in value.items()}
    raise ValueError(f"{flag}: expected {_words(hint)}, got {text!r}")


def _is_number(value: Any, kind: Any) -> bool:
    if kind not in (int, float) or isinstance(value, bool):
        return False
    if kind is int or isinstance(value, float):
        return isinstance(value, kind)
    return isinstance(value, int) and abs(value) < _LARGEST


def _words(hint: Any) -> str:
    if typing.get_origin(hint) is tuple:
        kind = typing.get_args(hint)[0]
        if dataclasses.is_dataclass(kind):
            return "a field of one entry (heads.0.width, say); set all in a config file"
        return f"one or more of {_words(kind)}, such as [1,2]"
    words = {bool: "True or False", int: "a whole number", float: "a number"}
    if dataclasses.is_dataclass(hint):
        return "a field of it"
    return words.get(hint, '{"name": number, ...}')
