"""Rows to predict, read from disk a block at a time: one file, or a folder of them.

Never more than a few blocks are in memory. `READERS` is the table of formats: each
tells how many rows a file has, and reads them from any row on.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flaxhead.config import DataConfig
from flaxhead.data import checks, tables
from flaxhead.data.records import FIELDS, Raw
from flaxhead.data.stored import Stored

_SAMPLE = 1024
_BESIDE = ("mask", "ids")  # what is read beside the embeddings


class Block(NamedTuple):
    """Rows that follow one another.

    Attributes:
      x: `[rows, dim]` or `[rows, tokens, dim]`, finite.
      mask: `bool [rows, tokens]`, True where a token is real, or None.
      ids: `[rows]` text or integers; the row's number in the whole input by default.
    """

    x: np.ndarray
    mask: np.ndarray | None
    ids: np.ndarray


class Inputs(NamedTuple):
    """Rows on disk, and what is known of them before they are read.

    Attributes:
      rows: how many there are.
      sample: the first of them, 1024 at most; all are of its shape and type.
      files: name of each file, in order -> its rows, bytes and time of change: what
        tells these rows from others without reading them.
      blocks: `(first, size) -> iterator of Block` from row `first` on, each of `size`
        rows but the last one, whatever the files' own sizes are.
    """

    rows: int
    sample: Block
    files: dict[str, dict[str, int]]
    blocks: Callable[[int, int], Iterator[Block]]


def open_inputs(path: str | Path, *, config: DataConfig | None = None) -> Inputs:
    """Looks at an npz, npy, safetensors or Parquet file, or a folder of one kind.

    The files of a folder are taken in the order of their names. Labels are not read;
    the mask and the ids are, where they are there.

    Args:
      path: the file or the folder.
      config: of Parquet, which column has the embeddings.

    Raises:
      ValueError: nothing is there, or embeddings that no head could use. The blocks
        raise it too: NaN, say, is found when it is read.

    >>> import tempfile, os
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "new.npy")
    ...     np.save(path, np.ones((3, 8), np.float16))
    ...     found = open_inputs(path)
    ...     print(found.rows, [len(block.x) for block in found.blocks(0, 2)])
    3 [2, 1]
    """
    config = config or DataConfig()
    paths = _find(Path(path).expanduser())
    readers = {one: READERS[one.suffix](one, config) for one in paths}
    full = [path for path, one in readers.items() if one.rows]
    if not full:
        raise ValueError(f"{path}: there is no row, expected embeddings")
    sample = _checked(next(readers[full[0]].read(0, _SAMPLE)), 0, 0)
    for one in full[1:]:
        found = _kind(_checked(next(readers[one].read(0, 1)), 0, 0))
        if found != _kind(sample):
            raise ValueError(
                f"{one}: the embeddings are {found}, and those of {full[0].name} are "
                f"{_kind(sample)}; expected files of one kind"
            )

    def pieces(start: int, size: int) -> Iterator[Block]:
        before = 0
        for one in readers.values():
            if start < before + one.rows:
                at = max(0, start - before)
                for raw in one.read(at, size):
                    yield (piece := _checked(raw, at, before))
                    at += len(piece.x)
            before += one.rows

    return Inputs(
        rows=sum(one.rows for one in readers.values()),
        sample=sample,
        files={path.name: _told(path, one.rows) for path, one in readers.items()},
        blocks=lambda first, size: _in_blocks(pieces(first, size), size),
    )


def _find(path: Path) -> list[Path]:
    if not path.is_dir():
        checks.choice(f"{path}: the suffix", path.suffix, tuple(READERS))
        if not path.is_file():
            raise ValueError(f"{path}: there is no such file, expected embeddings")
        return [path]
    paths = sorted(
        one
        for one in path.iterdir()
        if one.suffix in READERS and not one.name.startswith(".") and one.is_file()
    )
    kinds = {one.suffix for one in paths}
    if len(kinds) != 1:
        found = " and ".join(sorted(kinds)) or "none"
        raise ValueError(
            f"{path}: expected a folder of files of one kind, {', '.join(READERS)}; "
            f"found {found}"
        )
    return paths


def _told(path: Path, rows: int) -> dict[str, int]:
    found = path.stat()
    return {"rows": rows, "bytes": found.st_size, "changed": found.st_mtime_ns}


def _kind(block: Block) -> str:
    shape = ", ".join(["rows", *map(str, block.x.shape[1:])])
    mask = "" if block.mask is None else " with a mask"
    return f"{block.x.dtype} [{shape}]{mask}"


def _checked(raw: Raw, at: int, before: int) -> Block:
    """Rows from row `at` of their file on, which has `before` rows before it."""
    where = f"{raw.where}, counted from row {at}" if at else raw.where
    x = checks.embeddings(raw.embeddings, where)
    finite = checks.finite(x)
    if not finite.all():
        raise ValueError(
            f"{where}: embeddings are NaN or infinite in {checks.listing(~finite)}, "
            "expected finite numbers; leave these rows out"
        )
    numbers = np.arange(before + at, before + at + len(x))
    return Block(
        x,
        None if raw.mask is None else checks.mask(raw.mask, x, where),
        numbers if raw.ids is None else checks.keys(raw.ids, len(x), "ids", where),
    )


def _in_blocks(pieces: Iterable[Block], size: int) -> Iterator[Block]:
    """Cuts pieces of any length into blocks of `size` rows and a shorter last one."""
    held: list[Block] = []
    count = 0
    for piece in pieces:
        held.append(piece)
        count += len(piece.x)
        while count >= size:
            whole = _joined(held)
            yield _cut(whole, slice(size))
            count -= size
            held = [_cut(whole, slice(size, None))] if count else []
    if count:
        yield _joined(held)


def _joined(blocks: list[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    x, masks, ids = zip(*blocks, strict=True)
    mask = None if masks[0] is None else np.concatenate(masks)
    return Block(np.concatenate(x), mask, np.concatenate(ids))


def _cut(block: Block, rows: slice) -> Block:
    mask = None if block.mask is None else block.mask[rows]
    return Block(block.x[rows], mask, block.ids[rows])


# Formats.


class _Array(NamedTuple):
    """An array in a file: its shape, and how to read its rows piece by piece."""

    shape: tuple[int, ...]
    read: Callable[[int, int], Iterator[np.ndarray]]
    by_columns: bool = False


def _npy(
    open_file: Callable[[], Any],
    size: int,
    whole: Callable[[], np.ndarray],
) -> _Array:
    """An array in NumPy's format, in a file or in a part of one.

    It is read and not mapped: pages of a map count as memory of the process.

    Args:
      open_file: opens it at its first byte.
      size: its bytes.
      whole: gives an array that is stored by columns, of which no row can be read.
    """
    with open_file() as file:
        start = file.tell()
        major, minor = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, by_columns, dtype = read_header[major, minor](file)
        begin = file.tell()
    row_bytes = math.prod(shape[1:]) * dtype.itemsize
    if dtype.hasobject:
        raise TypeError("it holds Python objects")
    if size < begin - start + row_bytes * math.prod(shape[:1]):
        raise TypeError("it ends before its last row")

    def read(first: int, size: int) -> Iterator[np.ndarray]:
        starts = range(first, shape[0], size)
        if by_columns:
            array = whole()
            yield from (np.array(array[at : at + size]) for at in starts)
            return
        with open_file() as file:
            file.seek(begin + first * row_bytes)
            for at in starts:
                values = np.empty((min(size, shape[0] - at), *shape[1:]), dtype)
                content: Any = values.reshape(-1).view(np.uint8)
                if file.readinto(content) != values.nbytes:
                    raise TypeError("it ends before its last row")
                yield values

    return _Array(shape, read, by_columns)


def _open_npy(path: Path, config: DataConfig, *, alone: bool = False) -> tables.Rows:
    del config
    what = "an npy file (text needs dtype=str)"
    with checks.parsing(path, what):
        stored = _npy(
            lambda: path.open("rb"),
            path.stat().st_size,
            lambda: np.load(path, mmap_mode="r"),
        )
    if alone and stored.by_columns:
        raise ValueError(f"{path}: {_BY_COLUMNS}")
    return _fields({"embeddings": stored}, path, what)


_BY_COLUMNS = (
    "the embeddings are stored by columns, so that no row can be read alone; save "
    "np.ascontiguousarray of them"
)


def _open_npz(path: Path, config: DataConfig, *, alone: bool = False) -> tables.Rows:
    del config
    what = "an npz file (text needs dtype=str)"

    def open_part(part: str) -> Any:
        with zipfile.ZipFile(path) as stored:
            if not alone:
                return stored.open(part)
            found = stored.getinfo(part)
        if found.compress_type != zipfile.ZIP_STORED:
            raise TypeError("it is compressed, so that no row can be read alone")
        # `ZipFile` reads all that is before a row; what isn't compressed is just there.
        file = path.open("rb")
        file.seek(found.header_offset)
        name, extra = struct.unpack("<26x2H", file.read(30))
        file.seek(name + extra, 1)
        return file

    def whole(name: str) -> np.ndarray:
        with np.load(path) as stored:
            return stored[name]

    fields = {}
    with checks.parsing(path, what):
        stored = zipfile.ZipFile(path)
    with stored:
        names = [name.removesuffix(".npy") for name in stored.namelist()]
        checks.known_fields(names, FIELDS, str(path))
        for name in _read_of(names, alone):
            part = f"{name}.npy"
            with checks.parsing(path, what):
                fields[name] = _npy(
                    lambda part=part: open_part(part),
                    stored.getinfo(part).file_size,
                    lambda name=name: whole(name),
                )
            if alone and fields[name].by_columns:
                raise ValueError(f"{path}: {_BY_COLUMNS}")
    return _fields(fields, path, what)


def _read_of(names: list[str], alone: bool) -> set[str]:
    return {"embeddings", *(() if alone else _BESIDE)}.intersection(names)


def _open_safetensors(
    path: Path, config: DataConfig, *, alone: bool = False
) -> tables.Rows:
    del config
    from safetensors import safe_open

    what = "a safetensors file"

    def read(name: str, rows: int) -> Callable[[int, int], Iterator[np.ndarray]]:
        def pieces(first: int, size: int) -> Iterator[np.ndarray]:
            for at in range(first, rows, size):
                # Opened anew: the pages of its map are then no longer the process's.
                with safe_open(path, "np") as stored:
                    piece = stored.get_slice(name)[at : min(at + size, rows)]
                yield piece

        return pieces

    with checks.parsing(path, what), safe_open(path, "np") as stored:
        names = list(stored.keys())
        fields = {}
        for name in _read_of(names, alone):
            shape = tuple(stored.get_slice(name).get_shape())
            fields[name] = _Array(shape, read(name, math.prod(shape[:1])))
    checks.known_fields(names, FIELDS, str(path))
    return _fields(fields, path, what)


def _fields(fields: dict[str, _Array], path: Path, what: str) -> tables.Rows:
    """Reads the arrays of one file side by side."""
    if "embeddings" not in fields:
        raise ValueError(f"{path}: there is no field 'embeddings', expected one")
    checks.rank(fields["embeddings"].shape, str(path))
    rows = fields["embeddings"].shape[0]
    for name, stored in fields.items():
        if stored.shape[:1] != (rows,):
            raise ValueError(
                f"{path}: {name} has the shape {list(stored.shape)} and there are "
                f"{rows} embeddings, expected as many"
            )

    def read(first: int, size: int) -> Iterator[Raw]:
        pieces = {name: stored.read(first, size) for name, stored in fields.items()}
        for _ in range(first, rows, size):
            with checks.parsing(path, what):
                arrays: Any = {name: next(piece) for name, piece in pieces.items()}
            yield Raw(**arrays, where=str(path))

    return tables.Rows(rows, read)


READERS: dict[str, Callable[..., tables.Rows]] = {
    ".npz": _open_npz,
    ".npy": _open_npy,
    ".safetensors": _open_safetensors,
    ".parquet": tables.open_parquet,
}
"""Suffix -> `(path, config, *, alone=False) -> Rows`. Alone are the embeddings, to be
read in any order; where that can't be, it is a ValueError."""


def open_stored(paths: list[Any], config: DataConfig) -> Stored:
    """The embeddings of some files, one after the other, to be read in any order.

    Raises:
      ValueError: of a file that can't be read so, or that isn't like the first one.
    """
    found = {p: READERS[p.suffix](Path(p), config, alone=True) for p in paths}
    paths = [path for path in paths if found[path].rows]
    if not paths:
        raise ValueError(f"{next(iter(found))}: there is no row, expected embeddings")
    opened = [found[path] for path in paths]
    ends = np.cumsum([one.rows for one in opened])

    def read(first: int, size: int) -> np.ndarray:
        last = min(first + size, int(ends[-1]))
        parts = []
        for path, one, end in zip(paths, opened, ends, strict=True):
            begin = int(end) - one.rows
            at, stop = max(first, begin) - begin, min(last, int(end)) - begin
            for raw in one.read(at, stop - at) if at < stop else ():
                part = checks.embeddings(raw.embeddings[: stop - at], str(path))
                parts.append(part)
                at += len(part)
                if at >= stop:
                    break
            if at < stop:
                raise ValueError(
                    f"{path}: it ends before its last row; was it changed?"
                )
        if not parts:
            return np.empty((0, *sample.shape[1:]), sample.dtype)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    sample = read(0, 1)
    for path, end in zip(paths, ends, strict=True):
        one = read(int(end) - 1, 1)
        if (one.shape[1:], one.dtype) != (sample.shape[1:], sample.dtype):
            raise ValueError(
                f"{path}: the embeddings are {one.dtype} {list(one.shape[1:])} a row, "
                f"and those of {paths[0].name} {sample.dtype} {list(sample.shape[1:])};"
                " expected files of one kind"
            )
    return Stored(
        (int(ends[-1]), *sample.shape[1:]),
        sample.dtype,
        read,
        block=max(one.block for one in opened),
    )
