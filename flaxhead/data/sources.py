"""Where embeddings come from: `kind:location` -> one `Raw` a split.

A source is a pair of functions: `find(location)` tells the splits that are there
without reading them, `read(handle, config)` reads one. `SOURCES` is the table of them.
Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from flaxhead.config import DataConfig
from flaxhead.data import checks, tables
from flaxhead.data.inputs import open_stored
from flaxhead.data.records import FIELDS, Raw
from flaxhead.data.stored import Stored
from flaxhead.paths import AnyPath, fetched, to_path

ALIASES = {"validation": "val", "valid": "val", "dev": "val"}


class Source(NamedTuple):
    """Finds and reads splits.

    Attributes:
      find: `(location) -> {name of split: handle}`.
      read: `(handle, config) -> Raw`, without its embeddings if they are streamed.
      stored: `(handle, config) -> Stored`, the embeddings, left on the disk; None where
        they are in memory anyway.
    """

    find: Callable[[str], dict[str, Any]]
    read: Callable[[Any, DataConfig], Raw]
    stored: Callable[[Any, DataConfig], Stored] | None = None


def read(source: Source, handle: Any, config: DataConfig) -> Raw:
    """Reads a split, all but its embeddings if they are to stay in their files.

    Those that can only be read as a whole are, if they are sharded.
    """
    stored = None
    if config.residency in tables.LEFT and source.stored is not None:
        try:
            stored = source.stored(handle, config)
        except ValueError:
            if config.residency == "streamed":
                raise
    if stored is None:
        return source.read(handle, replace(config, residency="replicated"))
    return source.read(handle, config)._replace(embeddings=stored)


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
    streamed = config.residency in tables.LEFT
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
            if name == "embeddings" and streamed:
                continue
            with checks.parsing(
                path, f"an npz file (field {name!r}; text needs dtype=str)"
            ):
                fields[name] = stored[name]
    return Raw(**{"embeddings": None, **fields}, where=str(path))


def _find_npy(location: str) -> dict[str, Any]:
    found: dict[str, dict[str, list[AnyPath]]] = {}
    for path in sorted(folder(location).glob("*.npy")):
        shard = tables.SHARD.fullmatch(path.stem)
        name = shard[1] if shard else path.stem
        field = next((f for f in FIELDS if name.endswith(f"_{f}")), None)
        if field is None:
            field = name.rpartition("_")[2]
            checks.known_fields([field], FIELDS, f"{path} (expected SPLIT_FIELD.npy)")
        split = found.setdefault(name.removesuffix(f"_{field}"), {})
        split.setdefault(field, []).append(path)
    return found


def _read_npy(found: dict[str, list[AnyPath]], config: DataConfig) -> Raw:
    first = next(iter(found.values()))[0]
    if "embeddings" not in found:
        raise ValueError(
            f"{first.parent}: there is {first.name} and no embeddings beside it, "
            "expected SPLIT_embeddings.npy"
        )
    fields: dict[str, Any] = {}
    for name, paths in found.items():
        _all_there(paths)
        if name == "embeddings" and config.residency in tables.LEFT:
            fields[name] = None
            continue
        parts = []
        for path in paths:
            with (
                fetched(path) as file,
                checks.parsing(path, "an npy file (text needs dtype=str)"),
            ):
                mapped = "r" if name == "embeddings" else None
                parts.append(np.load(file, mmap_mode=mapped, allow_pickle=False))
        with checks.parsing(paths[-1], f"an array that goes on {paths[0].name}"):
            fields[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
    shard = tables.SHARD.fullmatch(found["embeddings"][0].stem)
    path = found["embeddings"][0]
    stem = shard[1] if shard else path.stem
    where = str(path.with_name(f"{stem.removesuffix('_embeddings')}_*.npy"))
    return Raw(**fields, where=where)


def _all_there(paths: list[AnyPath]) -> None:
    """Raises a ValueError unless shards are all there, or an array is one file."""
    numbers = [re.fullmatch(r".+-(\d+)-of-(\d+)", path.stem) for path in paths]
    expected = [(at, len(paths)) for at in range(len(paths))]
    if len(paths) > 1 or numbers[0]:
        got = [(int(found[1]), int(found[2])) for found in numbers if found]
        if got != expected:
            raise ValueError(
                f"{paths[0]}: there are {len(paths)} files of this array, up to "
                f"{paths[-1].name}; expected one, or all of NAME-00000-of-0000N.npy"
            )


def _read_safetensors(path: AnyPath, config: DataConfig) -> Raw:
    from safetensors import safe_open

    with (
        fetched(path) as file,
        checks.parsing(path, "a safetensors file"),
        safe_open(file, "np") as stored,
    ):
        names, metadata = list(stored.keys()), stored.metadata() or {}
        left = {"embeddings"} if config.residency in tables.LEFT else set()
        read = [name for name in names if name in FIELDS and name not in left]
        fields: dict[str, Any] = {name: stored.get_tensor(name) for name in read}
        if "class_names" in metadata:
            fields["class_names"] = json.loads(metadata["class_names"])
    checks.known_fields(names, FIELDS, str(path))
    if "embeddings" not in names:
        raise ValueError(f"{path}: there is no tensor 'embeddings', expected one")
    return Raw(**{"embeddings": None, **fields}, where=str(path))


def _one_file(path: AnyPath, config: DataConfig) -> Stored:
    return open_stored([path], config)


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
    "npz": Source(_files(".npz"), read_npz, _one_file),
    "npy": Source(
        _find_npy,
        _read_npy,
        lambda found, config: open_stored(found["embeddings"], config),
    ),
    "safetensors": Source(_files(".safetensors"), _read_safetensors, _one_file),
    "parquet": Source(
        lambda location: tables.find_parquet(folder(location)),
        tables.read_parquet,
        open_stored,
    ),
    "tfds": Source(tables.find_tfds, tables.read_tfds, tables.stored_tfds),
}

LAYOUTS = {
    "sklearn": "a name",
    "npz": "train.npz",
    "npy": "train_embeddings.npy and train_labels.npy",
    "safetensors": "train.safetensors",
    "parquet": "train.parquet or a folder train of them",
    "tfds": "a prepared dataset",
}
