"""A file of scores, its record, and how a run that was stopped finds its place.

While it is written the output is `NAME.part`; `NAME.json`, the record, tells what it
holds, of which rows and head, and up to which row. Both kinds of file, npy and CSV, are
a first few bytes and then rows in order, so going on is to cut the file to the bytes of
the record and to write the rows after them.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flaxhead.data.hashes import seal
from flaxhead.paths import write

_SAVE_SECONDS = 5.0


class Form(NamedTuple):
    """How scores are written.

    Attributes:
      header: the first bytes of the file.
      encode: `(ids, arrays) -> bytes` of some rows.
      size: the bytes of the file, or 0 where they depend on the scores.
    """

    header: bytes
    encode: Callable[[np.ndarray, tuple[np.ndarray, ...]], Any]
    size: int


def npy_form(rows: int, classes: int, *, top_k: int) -> Form:
    """An array of scores, `float32 [rows, classes]`, or of the `top_k` classes.

    >>> npy_form(10, 3, top_k=0).size
    248
    """
    kind, shape = np.dtype(np.float32), (rows, classes)
    if top_k:
        fields = [("class", np.int32, top_k), ("probability", np.float32, top_k)]
        kind, shape = np.dtype([(n, t, (k,)) for n, t, k in fields]), (rows,)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header,
        {
            "descr": np.lib.format.dtype_to_descr(kind),
            "fortran_order": False,
            "shape": shape,
        },
    )

    def encode(ids: np.ndarray, arrays: tuple[np.ndarray, ...]) -> Any:
        if not top_k:
            return np.ascontiguousarray(arrays[0])
        values: Any = np.empty(len(ids), kind)
        values["class"], values["probability"] = arrays
        return values.tobytes()

    first = header.getvalue()
    count = rows if top_k else rows * classes
    return Form(first, encode, len(first) + count * kind.itemsize)


def csv_form(
    class_names: tuple[str, ...], *, several: bool, every: bool, top_k: int
) -> Form:
    """A table of predictions.

    Args:
      class_names: what column `i` of the probabilities is of.
      several: whether a row may have several labels.
      every: whether there is a column for the probability of each class.
      top_k: for so many of the most probable classes there are two columns each.
    """
    names = np.array(class_names, dtype=object)
    columns = ["id", "prediction", "confidence"]
    columns += [f"probability:{name}" for name in names if every]
    for number in range(1, top_k + 1):
        columns += [f"class:{number}", f"probability:{number}"]

    def encode(ids: np.ndarray, arrays: tuple[np.ndarray, ...]) -> bytes:
        (shares,) = arrays
        if several:
            chosen = ["|".join(names[labels]) for labels in shares > 0.5]
            # Of the whole set of labels, were they independent.
            confidence = np.prod(np.maximum(shares, 1 - shares), axis=1)
        else:
            chosen, confidence = names[shares.argmax(axis=1)], shares.max(axis=1)
        cells = [ids.tolist(), chosen, digits(confidence)]
        cells += [digits(column) for column in shares.T if every]
        if top_k:
            order = np.argsort(-shares, axis=1, kind="stable")[:, :top_k]
            largest = np.take_along_axis(shares, order, axis=1)
            for place in range(top_k):
                cells += [names[order[:, place]], digits(largest[:, place])]
        return table(zip(*cells, strict=True))

    return Form(table([columns]), encode, 0)


def digits(values: np.ndarray) -> list[str]:
    """Numbers as a table has them."""
    return [f"{value:.6g}" for value in values.tolist()]


def table(lines: Iterable[Sequence[Any]]) -> bytes:
    """Lines of cells as a CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().encode()


def check_place(output: Path) -> None:
    """Raises a ValueError for a place where no file can be written."""
    _check_local("output", output)
    if not output.absolute().parent.is_dir():
        raise ValueError(f"output {output}: its folder does not exist; make it first")
    if output.is_dir():
        raise ValueError(
            f"output {output} is a folder; name a file of its own, such as out.csv"
        )


def _check_local(name: str, path: Path) -> None:
    if re.match(r"\w\w+:/", str(path)):
        raise ValueError(
            f"{name} {path}: expected a file or a folder of this machine; copy to and "
            "from a bucket with gcloud storage cp"
        )


def check(output: Path, inputs: Path) -> None:
    """Raises a ValueError for a place where scores can't or shouldn't be written."""
    _check_local("inputs", inputs)
    check_place(output)
    if output.resolve() == inputs.resolve():
        raise ValueError(
            f"output {output} is the input; name a file of its own, such as "
            "predictions.csv"
        )
    if inputs.is_dir() and output.resolve().parent == inputs.resolve():
        raise ValueError(
            f"output {output} is in the folder of the input, and would be read as a "
            "part of it; name another folder"
        )
    if output.suffix not in (".npy", ".csv"):
        raise ValueError(
            f"output {output}: the suffix is {output.suffix!r}, expected .npy or .csv"
        )


def check_room(output: Path, size: int) -> None:
    """Raises a ValueError where a disk is too small for a file of so many bytes."""
    there = sum(one.stat().st_size for one in (output, part(output)) if one.exists())
    room = shutil.disk_usage(output.absolute().parent).free + there
    if size > room:
        raise ValueError(
            f"output {output} needs {size / 1e6:,.0f} MB, and the disk has room for "
            f"{room / 1e6:,.0f} MB; free some, or name another folder"
        )


def part(output: Path) -> Path:
    """Where an output is while it is written."""
    return output.with_name(f"{output.name}.part")


def lock_path(output: Path) -> Path:
    """What the process at work on an output holds."""
    return output.with_name(f".{output.name}.lock")


def record_path(output: Path) -> Path:
    """Where the record of an output is."""
    return output.with_name(f"{output.name}.json")


def claim(output: Path, mine: dict[str, Any], *, overwrite: bool) -> dict[str, Any]:
    """Returns the record to go on from, of an output that is whole or partly written.

    Args:
      output: its name when it is whole.
      mine: the record of a run that has not begun.
      overwrite: whether an output of other scores is deleted, and not refused.

    Raises:
      ValueError: what is there is of other scores, or nothing tells.
    """
    there = [one for one in (output, part(output)) if one.exists()]
    theirs = _read(record_path(output))
    if not theirs and record_path(output).exists():
        there.append(record_path(output))
    changed = [
        name
        for name, value in mine.items()
        if name not in ("done", "bytes", "checksum") and theirs.get(name) != value
    ]
    if output.exists() and theirs and output.stat().st_size != theirs["bytes"]:
        changed.append("size")
    if not changed:
        if output.exists() and not overwrite:
            return theirs
        if not output.exists() and there:
            whole = there[0].stat().st_size >= theirs["bytes"]
            return theirs if theirs["done"] and whole else mine
    elif not overwrite and (output.exists() or (there and theirs.get("done", 1))):
        told = f"holds scores that differ in {', '.join(changed)}"
        if not theirs:
            told = "is not known to be of flaxhead"
        raise ValueError(
            f"{there[0]} is there already, and {told}; name another output, or say "
            "that it may be replaced (--overwrite)"
        )
    for one in there:
        one.unlink()
    return mine


def _read(path: Path) -> dict[str, Any]:
    """A record, or nothing where there is none of ours."""
    try:
        record = json.loads(path.read_text())
        whole = {"done", "bytes"} <= set(record) and seal(record) == record
        return record if whole else {}
    except (FileNotFoundError, ValueError, TypeError):
        return {}


class Sink:
    """An output while it is written.

    Attributes:
      record: what its record says.
      done: how many rows are written.
    """

    def __init__(self, output: Path, record: dict[str, Any], header: bytes):
        """Opens it, and goes on where the record says."""
        self.path, self.record = record_path(output), record
        self.done: int = record["done"]
        self.saved = time.monotonic()
        if not self.done:
            # Before the part is there: a part without a record is somebody else's.
            write(self.path, _text(record))
        # Not through a buffer, which would fail once more when it is closed.
        self.file = part(output).open("r+b" if self.done else "wb", buffering=0)
        self.file.truncate(record["bytes"])
        self.file.seek(record["bytes"])
        if not self.done:
            self.append(header, 0)

    def __enter__(self) -> Sink:
        """Returns itself."""
        return self

    def __exit__(self, *_: Any) -> None:
        """Closes the file, and leaves it where it is."""
        self.file.close()

    def append(self, content: Any, rows: int) -> None:
        """Writes the bytes of so many rows more."""
        left = memoryview(content).cast("B")
        with self._writing():
            while left:
                left = left[self.file.write(left) :]
        self.done += rows
        if time.monotonic() - self.saved >= _SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Records how many rows there are, once they are on the disk."""
        with self._writing():
            os.fsync(self.file.fileno())
            now = {"done": self.done, "bytes": self.file.tell()}
            self.record = seal({**self.record, **now})
            write(self.path, _text(self.record))
        self.saved = time.monotonic()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ValueError(
                f"{self.file.name} can't be written to after row {self.done} of "
                f"{self.record['rows']} ({error.strerror}); make room, and the same "
                "command goes on from there"
            ) from error


def _text(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=2) + "\n"
