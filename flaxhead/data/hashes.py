"""Hashes of content: what was changed or damaged, and which rows are there twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from flaxhead.data.checks import chunks
from flaxhead.data.records import Dataset
from flaxhead.data.stored import Stored

PARTS = ("embeddings", "labels", "weights", "mask")


def fingerprint(dataset: Dataset) -> dict[str, str]:
    """Returns a SHA-256 of each part of the data, to refuse resuming with other data.

    A part is named `split.array`, such as `train.labels`; comparing two fingerprints
    tells what changed. Shape, type and content count, and so do `class_names` (in
    order, with the task); ids, groups and notes don't. Memory maps are read in chunks.

    >>> from flaxhead.config import DataConfig
    >>> from flaxhead.data import load
    >>> parts = fingerprint(load(DataConfig(source="sklearn:iris")))
    >>> list(parts)[:4]
    ['class_names', 'train.embeddings', 'train.labels', 'train.weights']
    """
    told = "\0".join((dataset.task, *dataset.class_names))
    parts = {"class_names": hashlib.sha256(told.encode()).hexdigest()}
    for split in ("train", "val", "test", "unlabelled"):
        data = getattr(dataset, split)
        if data is None:
            continue
        x = data.x if data.views is None else data.views
        contents = (x, data.labels, data.weights, data.mask)
        for name, values in zip(PARTS, contents, strict=True):
            if values is not None:
                parts[f"{split}.{name}"] = _fingerprint(values)
    return parts


def digest(values: Any, pieces: Iterable[bytes]) -> str:
    """Returns the SHA-256 of an array, of its type and shape and of its pieces' own.

    Args:
      values: what has the type and the shape.
      pieces: `piece_digest` of each part of `chunks`, in order. Several processes have
        some each.
    """
    told = f"{values.dtype.name} {values.shape}".encode()
    return hashlib.sha256(b"".join([told, *pieces])).hexdigest()


def piece_digest(rows: np.ndarray) -> bytes:
    """Returns the SHA-256 of some rows that follow one another, 32 bytes."""
    content: Any = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
    return hashlib.sha256(content).digest()


def seal(content: dict[str, Any]) -> dict[str, Any]:
    """Returns JSON-able content with a `checksum` of the rest of it.

    >>> told = seal({"rows": 3})
    >>> seal(told) == told, seal({**told, "rows": 4}) == {**told, "rows": 4}
    (True, False)
    """
    rest = {name: value for name, value in content.items() if name != "checksum"}
    text = json.dumps(rest, sort_keys=True)
    return {**rest, "checksum": hashlib.sha256(text.encode()).hexdigest()}


def of_arrays(arrays: Iterable[np.ndarray]) -> str:
    """Returns a SHA-256 of the types, shapes and contents of arrays, in order."""
    digests = [_fingerprint(np.atleast_1d(one)) for one in arrays]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _fingerprint(values: Any) -> str:
    if isinstance(values, Stored) and values.scan is not None:
        return values.scan.digest
    return digest(values, (piece_digest(values[part]) for part in chunks(values)))


def row_hashes(x: Any) -> np.ndarray:
    """Returns `uint64 [rows]`, equal where rows are equal byte for byte.

    >>> first, second, third = row_hashes(np.array([[1, 2], [3, 4], [1, 2]]))
    >>> bool(first == third), bool(first == second)
    (True, False)
    """
    if isinstance(x, Stored) and x.scan is not None:
        return x.scan.hashes
    digests = bytearray()
    for part in chunks(x):
        rows = np.ascontiguousarray(x[part]).reshape(part.stop - part.start, -1)
        for row in rows:
            digests += hashlib.blake2b(row.tobytes(), digest_size=8).digest()
    return np.frombuffer(bytes(digests), np.uint64)
