"""Scores of any number of rows, from disk to disk, a block at a time.

Three things go on at once: blocks to come are read, one is scored on the devices, and
the scores of the one before are written. All blocks have one size, whatever the sizes
of the files, so one program is compiled. A run that goes on scores the same blocks as
one that was not stopped, so every byte is the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxhead.base import Array, Tokens
from flaxhead.bulk import files
from flaxhead.bundle import Bundle, LoadedHead, check_features, drift, to_probabilities
from flaxhead.data import open_inputs
from flaxhead.data.hashes import seal
from flaxhead.data.inputs import Block, Inputs
from flaxhead.loop import Interrupted, stop_signals
from flaxhead.parallel import Shares
from flaxhead.paths import alone
from flaxhead.report.progress import Display, quiet

FORMAT = 1
SCORES = ("auto", "probabilities", "logits")
_ROWS = 4096
_BYTES = 2**26
_AHEAD = 2
_TELL_SECONDS = 0.2


def predict_files(
    head: LoadedHead,
    inputs: str | Path,
    output: str | Path,
    *,
    scores: str = "auto",
    top_k: int = 0,
    batch_size: int = 0,
    devices: int = 0,
    overwrite: bool = False,
    display: Display | None = None,
) -> dict[str, Any]:
    """Scores the rows of a file, or of a folder of files, into a file.

    Neither the input nor the output is ever in memory as a whole. A call that was
    stopped, by a full disk or by SIGKILL, goes on where it was if it is made again, and
    gives the same bytes as one that was not; one that is finished does nothing.

    Args:
      head: from `flaxhead.load`.
      inputs: an npz, npy, safetensors or Parquet file, or a folder of one kind.
      output: `.npy`: `float32 [rows, classes]`, or with `top_k` a structured array of
        `class` (`int32 [top_k]`) and `probability` (`float32 [top_k]`), the largest
        first. Any other name: a CSV with `id`, `prediction` and `confidence`.
      scores: what an npy file holds, `probabilities` (`auto`) or `logits`; a CSV has a
        column more for each class with `probabilities`.
      top_k: only the so many most probable classes of a row, in a CSV two columns more
        for each; 0: all.
      batch_size: rows of one device in a block; 0: 4096, or fewer if they are wide.
      devices: how many local devices share a block; 0: all.
      overwrite: whether an output of other scores may be replaced.
      display: where to tell of progress; None: nowhere.

    Returns:
      What `OUTPUT.json` holds: the rows, what the scores are, the class names.

    Raises:
      ValueError: input that the head can't take; an output that can't be written, or
        that is of other scores.
      Interrupted: the process was told to stop (SIGTERM or SIGINT), and has saved.

    >>> import tempfile
    >>> from sklearn.datasets import load_iris
    >>> from flaxhead.entry import fit
    >>> x, y = load_iris(return_X_y=True)
    >>> head = fit(x, y, heads="ridge")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/new.npy", x)
    ...     told = predict_files(head, f"{folder}/new.npy", f"{folder}/scores.npy")
    ...     print(told["rows"], np.load(f"{folder}/scores.npy", mmap_mode="r").shape)
    150 (150, 3)
    """
    display = display or quiet()
    if not isinstance(head, LoadedHead):
        raise ValueError(f"head is {head!r}; expected what flaxhead.load returns")
    output = Path(output).expanduser()
    files.check(output, Path(inputs).expanduser())
    kind = _kind(head, output, scores, top_k)
    found = open_inputs(inputs)
    sample = _rows_of(found.sample)
    check_features(sample, head.bundle.spec)
    form = _form(head, kind, output, found.rows, top_k)
    files.check_room(output, form.size)
    shares = Shares(devices)
    size = _size(batch_size, found.sample, len(head.class_names))
    record = {
        "format": FORMAT,
        "scores": kind,
        "top_k": top_k,
        "class_names": list(head.class_names),
        "head": _digest(head.bundle),
        "input": found.files,
        "batch_size": size,
        "rows": found.rows,
        "done": 0,
        "bytes": 0,
    }
    with alone(files.lock_path(output), f"the output {output}"):
        record = files.claim(output, seal(record), overwrite=overwrite)
        if output.exists():
            display.say(f"{output} holds these scores already; nothing to do")
            return record
        warning = drift(sample, head.bundle.spec)
        if warning:
            display.say(f"warning: {warning}")
        program = _program(head, kind, output, top_k, shares)
        with files.Sink(output, record, form.header) as sink:
            _write(sink, form, found, program, size * shares.devices, display)
        os.replace(files.part(output), output)
        return sink.record


def _write(
    sink: files.Sink,
    form: files.Form,
    found: Inputs,
    program: Callable[[Any, int], Callable[[], tuple[np.ndarray, ...]]],
    size: int,
    display: Display,
) -> None:
    """Scores the rows that are not written yet."""
    if sink.done:
        display.say(f"resumed after row {sink.done}")
    told = 0.0
    blocks = _ahead(found.blocks(sink.done, size))
    with stop_signals() as stopped:
        try:
            for ids, arrays in _scored(program, blocks, size):
                sink.append(form.encode(ids, arrays), len(ids))
                if time.monotonic() - told >= _TELL_SECONDS or sink.done == found.rows:
                    display.step(sink.done, found.rows, "", "rows")
                    told = time.monotonic()
                if stopped:
                    break
        finally:
            display.close()
        sink.save()
    if sink.done < found.rows:
        raise Interrupted(
            stopped[0],
            f"after row {sink.done}, which is saved; the same command goes on from "
            "there",
        )


def _kind(head: LoadedHead, output: Path, scores: str, top_k: int) -> str:
    """What is written: `predictions` (CSV), `probabilities`, `logits` or `top_k`."""
    if scores not in SCORES:
        raise ValueError(f"scores is {scores!r}; expected one of {', '.join(SCORES)}")
    if not 0 <= top_k <= len(head.class_names):
        raise ValueError(
            f"top_k is {top_k}, and the head has {len(head.class_names)} classes; "
            "expected a number of them, or 0 for all"
        )
    if top_k and scores != "auto":
        raise ValueError(f"top_k is {top_k} and scores is {scores!r}; leave one out")
    if scores == "logits" and output.suffix != ".npy":
        raise ValueError(f"output {output} is a CSV; logits need a name with .npy")
    if top_k:
        return "top_k"
    if scores == "auto":
        return "probabilities" if output.suffix == ".npy" else "predictions"
    return scores


def _rows_of(block: Block) -> Any:
    x: Any = block.x
    mask: Any = block.mask
    return x if mask is None else Tokens(x, mask)


def _size(batch_size: int, sample: Block, classes: int) -> int:
    if batch_size < 0:
        raise ValueError(f"batch_size is {batch_size}; expected 1 or more, or 0")
    widest = max(sample.x[0].nbytes, 4 * classes)
    return batch_size or max(1, min(_ROWS, _BYTES // widest))


def _form(
    head: LoadedHead, kind: str, output: Path, rows: int, top_k: int
) -> files.Form:
    if output.suffix == ".npy":
        return files.npy_form(rows, len(head.class_names), top_k=top_k)
    return files.csv_form(
        head.class_names,
        several=head.bundle.task == "multilabel",
        every=kind == "probabilities",
        top_k=top_k,
    )


def _digest(bundle: Bundle) -> str:
    """Tells a head from others by all that its scores depend on."""
    told = [dataclasses.asdict(bundle.config), bundle.class_names]
    told += [bundle.task, bundle.output]
    digest = hashlib.sha256(json.dumps(told).encode())
    for leaf in jax.tree.leaves((bundle.params, bundle.statistics)):
        digest.update(np.asarray(leaf, order="C").tobytes())
    return digest.hexdigest()


def _program(
    head: LoadedHead, kind: str, output: Path, top_k: int, shares: Shares
) -> Callable[[Any, int], Callable[[], tuple[np.ndarray, ...]]]:
    """Returns `(x, rows) -> fetch`: starts to score a block, and fetches its scores."""
    params = shares.everywhere(head.params)
    largest = top_k if output.suffix == ".npy" else 0  # A CSV has others beside them.

    def score(params: Any, x: Any) -> tuple[Array, ...]:
        logits = head.head.apply(params, x)
        if kind == "logits":
            return (logits,)
        probabilities = to_probabilities(logits, head.bundle.output)
        if not largest:
            return (probabilities,)
        values, classes = jax.lax.top_k(probabilities, largest)
        return classes, values

    def start(x: Any, rows: int) -> Callable[[], tuple[np.ndarray, ...]]:
        # Nothing to donate: a block and its scores are of different sizes.
        scored = shares.call(score, params, shares.rows(x))
        return lambda: shares.whole(scored, rows)

    return start


def _ahead(blocks: Iterator[Block]) -> Iterator[Block]:
    """Reads blocks in a thread of its own before they are asked for."""
    with ThreadPoolExecutor(1) as reader:
        coming = [reader.submit(next, blocks, None) for _ in range(_AHEAD)]
        while (block := coming.pop(0).result()) is not None:
            coming.append(reader.submit(next, blocks, None))
            yield block


def _scored(
    program: Callable[[Any, int], Callable[[], tuple[np.ndarray, ...]]],
    blocks: Iterator[Block],
    size: int,
) -> Iterator[tuple[np.ndarray, tuple[np.ndarray, ...]]]:
    """Yields the ids and the scores of a block while the next one is scored."""
    before = None
    for block in blocks:
        x = _rows_of(block)
        if len(block.ids) < size:
            x = jax.tree.map(lambda leaf: _padded(leaf, size), x)
        fetch = program(x, len(block.ids))
        if before is not None:
            yield before[0], before[1]()
        before = block.ids, fetch
    if before is not None:
        yield before[0], before[1]()


def _padded(leaf: np.ndarray, size: int) -> np.ndarray:
    """Repeats of the last row, so that padding is ordinary numbers."""
    return np.concatenate([leaf, np.repeat(leaf[-1:], size - len(leaf), axis=0)])
