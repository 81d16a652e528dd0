"""Where embeddings come from: `kind:location` -> one `Raw` a split.

A source is a pair of functions: `find(location)` tells the splits that are there
without reading them, `read(handle, config)` reads one. `SOURCES` is the table of them.
Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from flaxhead.config import DataConfig
from flaxhead.data import checks, tables
from flaxhead.data.records import FIELDS, Raw
from flaxhead.paths import AnyPath, fetched, to_path

ALIASES = {"validation": "val", "valid": "val", "dev": "val"}


class Source(NamedTuple):
    """Finds and reads splits.

    Attributes:
      find: `(location) -> {name of split: handle}`.
      read: `(handle, config) -> Raw`.
    """

    find: Callable[[str], dict[str, Any]]
    read: Callable[[Any, DataConfig], Raw]


def find(source: str) -> tuple[Source, dict[str, Any]]:
    """Returns the reader of a source and what it finds: `{split: handle}`.

    `validation`, `valid` and `dev` are called `val`. Raises a ValueError for an unknown
    kind, a folder that is not there, or one without any split.
    """
    kind, _, location = source.partition(":")
    if kind not in SOURCES or not location:
        raise ValueError(
            f"data.source is {source!r}, expected KIND:LOCATION with KIND one of "
            f"{', '.join(SOURCES)}{checks.nearest(kind, SOURCES)}"
        )
    found: dict[str, Any] = {}
    for name, handle in SOURCES[kind].find(location).items():
        split = ALIASES.get(name, name)
        if split in found:
            raise ValueError(
                f"{source}: there are two splits that mean {split!r}, one of them "
                f"{name!r}, expected one"
            )
        found[split] = handle
    if not found:
        raise ValueError(
            f"{source}: no split is there, expected {LAYOUTS[kind]}, and the same for "
            "val and test where you have them"
        )
    return SOURCES[kind], found


def folder(location: str) -> AnyPath:
    """Returns a folder, or raises a ValueError where there is none."""
    path = to_path(location).expanduser()
    if not path.is_dir():
        kind = "a file" if path.exists() else "not there"
        raise ValueError(
            f"{path}: is {kind}, expected a folder that has the splits as files"
        )
    return path


def _files(suffix: str) -> Callable[[str], dict[str, Any]]:
    def find_files(location: str) -> dict[str, Any]:
        paths = sorted(folder(location).glob(f"*{suffix}"))
        return {path.stem: path for path in paths}

    return find_files


def read_npz(path: AnyPath, config: DataConfig) -> Raw:
    """Reads `embeddings`, `labels` and the optional fields of one npz file."""
    del config
    with fetched(path) as file, checks.parsing(path, "an npz file"):
        stored = np.load(file, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise TypeError("it holds one array without a name")
    with stored:
        checks.known_fields(stored.files, FIELDS, str(path))
        if "embeddings" not in stored.files:
            raise ValueError(f"{path}: there is no field 'embeddings', expected one")
        fields = {}
        for name in stored.files:
            with checks.parsing(
                path, f"an npz file (field {name!r}; text needs dtype=str)"
            ):
                fields[name] = stored[name]
    return Raw(**fields, where=str(path))


def _find_npy(location: str) -> dict[str, Any]:
    found: dict[str, dict[str, AnyPath]] = {}
    for path in sorted(folder(location).glob("*.npy")):
        field = next((f for f in FIELDS if path.stem.endswith(f"_{f}")), None)
        if field is None:
            field = path.stem.rpartition("_")[2]
            checks.known_fields([field], FIELDS, f"{path} (expected SPLIT_FIELD.npy)")
        found.setdefault(path.stem.removesuffix(f"_{field}"), {})[field] = path
    return found


def _read_npy(paths: dict[str, AnyPath], config: DataConfig) -> Raw:
    del config
    first = next(iter(paths.values()))
    if "embeddings" not in paths:
        raise ValueError(
            f"{first.parent}: there is {first.name} and no embeddings beside it, "
            "expected SPLIT_embeddings.npy"
        )
    fields = {}
    for name, path in paths.items():
        with (
            fetched(path) as file,
            checks.parsing(path, "an npy file (text needs dtype=str)"),
        ):
            fields[name] = np.load(
                file,
                mmap_mode="r" if name == "embeddings" else None,
                allow_pickle=False,
            )
    where = str(paths["embeddings"]).replace("_embeddings.npy", "_*.npy")
    return Raw(**fields, where=where)


def _read_safetensors(path: AnyPath, config: DataConfig) -> Raw:
    del config
    from safetensors import safe_open

    with (
        fetched(path) as file,
        checks.parsing(path, "a safetensors file"),
        safe_open(file, "np") as stored,
    ):
        names, metadata = list(stored.keys()), stored.metadata() or {}
        fields = {name: stored.get_tensor(name) for name in names if name in FIELDS}
        if "class_names" in metadata:
            fields["class_names"] = json.loads(metadata["class_names"])
    checks.known_fields(names, FIELDS, str(path))
    if "embeddings" not in fields:
        raise ValueError(f"{path}: there is no tensor 'embeddings', expected one")
    return Raw(**fields, where=str(path))


SKLEARN = ("digits", "digits_rows", "breast_cancer", "wine", "iris")


def _find_sklearn(location: str) -> dict[str, Any]:
    checks.choice("data.source sklearn:NAME", location, SKLEARN)
    return {"train": location}


def _read_sklearn(name: str, config: DataConfig) -> Raw:
    del config
    import sklearn.datasets

    tokens = name == "digits_rows"  # Each image as 8 tokens, its rows of 8 pixels.
    stored = getattr(sklearn.datasets, f"load_{name.removesuffix('_rows')}")()
    return Raw(
        embeddings=stored.images if tokens else stored.data,
        labels=stored.target,
        class_names=stored.target_names,
        where=f"sklearn:{name}",
    )


SOURCES = {
    "sklearn": Source(_find_sklearn, _read_sklearn),
    "npz": Source(_files(".npz"), read_npz),
    "npy": Source(_find_npy, _read_npy),
    "safetensors": Source(_files(".safetensors"), _read_safetensors),
    "parquet": Source(
        lambda location: tables.find_parquet(folder(location)), tables.read_parquet
    ),
    "tfds": Source(tables.find_tfds, tables.read_tfds),
}

LAYOUTS = {
    "sklearn": "a name",
    "npz": "train.npz",
    "npy": "train_embeddings.npy and train_labels.npy",
    "safetensors": "train.safetensors",
    "parquet": "train.parquet or a folder train of them",
    "tfds": "a prepared dataset",
}
