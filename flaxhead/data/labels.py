"""Labels of any form -> class numbers or a matrix, over one list of class names.

Names are the contract between files, not positions: a file whose `class_names` come
in another order is permuted, and a class that training lacks is noticed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from flaxhead.data import checks

SOFT_TOLERANCE = 1e-3
"""How far the sum of a soft label may be from 1 (float16 rounds this much)."""

UNLABELLED = -1
UNSEEN = -2


class Named(NamedTuple):
    """Labels of one file in terms of that file's own class names.

    Attributes:
      names: the classes that the file names, or has.
      values: `int32 [rows]` positions in `names` (-1: unlabelled), or `float32
        [rows, classes]`, a column a name.
    """

    names: tuple[str, ...]
    values: np.ndarray


def class_names(values: Any, where: str) -> tuple[str, ...]:
    """Returns class names as text, each there once."""
    values = checks.array(values, "class_names", where)
    if values.ndim != 1 or values.dtype.kind not in "OSTUiu":
        raise ValueError(
            f"{where}: class_names has type {values.dtype} and shape "
            f"{list(values.shape)}, expected a list of text"
        )
    items, missing = checks.plain(values)
    names = tuple("" if out else str(v) for v, out in zip(items, missing, strict=True))
    seen: set[str] = set()
    for name in names:
        if not name or name in seen:
            problem = f"{name!r} twice" if name else "an empty name"
            raise ValueError(
                f"{where}: class_names holds {problem}, expected distinct names"
            )
        seen.add(name)
    return names


def named(values: Any, names: tuple[str, ...] | None, where: str) -> Named:
    """Reads the labels of one file; `names` are the class names that it goes by.

    Text is itself a name. Integers, booleans and whole floats are positions in
    `names`, or, where there are none, name themselves. A matrix has a column a name.
    Empty text, None, NaN and -1 are unlabelled rows.

    >>> named(["cat", "", "ant"], None, "train")
    Named(names=('ant', 'cat'), values=array([ 1, -1,  0], dtype=int32))
    >>> named([5, 0, 2, 0], None, "train")
    Named(names=('0', '2', '5'), values=array([2, 0, 1, 0], dtype=int32))
    """
    if values is None:
        raise ValueError(
            f"{where}: there are no labels, expected a field 'labels'; a table's "
            "column of them may be named by data.labels_field"
        )
    values = checks.array(values, "labels", where)
    if values.ndim == 2 and values.dtype.kind in "biuf":
        return _matrix(values, names, where)
    if values.ndim != 1:
        raise ValueError(
            f"{where}: labels have type {values.dtype} and shape {list(values.shape)}, "
            "expected [rows] class numbers or names, or [rows, classes] numbers"
        )
    if values.dtype.kind in "OT":
        values = _plain(values, where)
    if values.dtype.kind in "SU":
        return _text(values, where)
    if values.dtype.kind not in "biuf":
        raise ValueError(
            f"{where}: labels have type {values.dtype}, expected integers or text"
        )
    return _numbers(values, names, where)


def _plain(values: np.ndarray, where: str) -> np.ndarray:
    """Turns Python objects into text or numbers, missing ones into "" or NaN."""
    items, missing = checks.plain(values)
    present = [v for v, out in zip(items, missing, strict=True) if not out]
    for kinds, blank in ((str, ""), ((bool, int, float), np.nan)):
        if all(isinstance(v, kinds) for v in present):
            return np.array(
                [blank if out else v for v, out in zip(items, missing, strict=True)]
            )
    found = ", ".join(sorted({type(v).__name__ for v in present}))
    raise ValueError(
        f"{where}: labels hold values of type {found}, expected all text or all whole "
        "numbers"
    )


def _text(values: np.ndarray, where: str) -> Named:
    if values.dtype.kind == "S":
        try:
            values = np.char.decode(values, "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{where}: labels are bytes that are not UTF-8 ({error}); save them as "
                "text"
            ) from error
    present = values != ""
    names, positions = np.unique(values[present], return_inverse=True)
    codes = np.full(len(values), UNLABELLED, np.int32)
    codes[present] = positions
    return Named(tuple(names.tolist()), codes)


def _numbers(values: np.ndarray, names: tuple[str, ...] | None, where: str) -> Named:
    if values.dtype.kind == "f":
        values = np.where(np.isnan(values), UNLABELLED, values).astype(np.float64)
        # Above 2**53 not every whole number is one of float64.
        broken = ~(np.abs(values) < 2**53) | (values != np.round(values))
        if broken.any():
            example = values[broken][0]
            raise ValueError(
                f"{where}: labels such as {example} are no class numbers, in "
                f"{checks.listing(broken)}; expected whole numbers, names, or a matrix "
                "[rows, classes] of soft labels"
            )
    values = values.astype(np.int64)
    negative = values < UNLABELLED
    if negative.any():
        raise ValueError(
            f"{where}: labels are below -1 in {checks.listing(negative)}, expected "
            "class numbers from 0, or -1 for unlabelled"
        )
    if names is None:
        present = values >= 0
        numbers = np.unique(values[present])
        codes = np.full(len(values), UNLABELLED, np.int32)
        codes[present] = np.searchsorted(numbers, values[present])
        return Named(tuple(map(str, numbers.tolist())), codes)
    outside = values >= len(names)
    if outside.any():
        raise ValueError(
            f"{where}: labels such as {values[outside][0]} are outside of the "
            f"{len(names)} class names, in {checks.listing(outside)}; expected 0 to "
            f"{len(names) - 1}"
        )
    return Named(names, values.astype(np.int32))


def _matrix(values: np.ndarray, names: tuple[str, ...] | None, where: str) -> Named:
    columns = values.shape[1]
    if names is None:
        names = tuple(map(str, range(columns)))
    if len(names) != columns or not columns:
        raise ValueError(
            f"{where}: labels have {columns} columns and there are {len(names)} class "
            "names, expected a column a name"
        )
    with np.errstate(over="ignore"):  # What is infinite then, is outside too.
        values = values.astype(np.float32)
    outside = np.any((values < 0) | (values > 1 + SOFT_TOLERANCE), axis=1)
    if outside.any():
        raise ValueError(
            f"{where}: the label matrix has entries outside of 0 to 1 in "
            f"{checks.listing(outside)}; expected 0, 1, NaN (missing) or soft labels; "
            "pass class numbers as [rows]"
        )
    return Named(names, values)


def unlabelled(values: np.ndarray) -> np.ndarray:
    """Returns `bool [rows]`: label -1, or a matrix row with every entry missing."""
    if values.ndim == 1:
        return np.equal(values, UNLABELLED)
    return np.all(np.isnan(values), axis=1)


def _hard(values: np.ndarray) -> bool:
    """Whether the labelled rows are one-hot: the same as class numbers."""
    values = values[~unlabelled(values)]
    return bool(np.isin(values, (0, 1)).all() and (values.sum(axis=1) == 1).all())


def detect(files: dict[str, Named], task: str) -> str:
    """Returns the task that all files agree on: `multiclass` or `multilabel`.

    A matrix of 0 and 1 is multi-label when a row does not sum to 1; any matrix is when
    a row lacks some entries and not others. `task` other than `auto` is taken as said.
    """
    ranks = {where: labels.values.ndim for where, labels in files.items()}
    if len(set(ranks.values())) > 1:
        one = next(where for where, rank in ranks.items() if rank == 1)
        two = next(where for where, rank in ranks.items() if rank == 2)
        raise ValueError(
            f"{one} has one label a row and {two} has a matrix, expected the same form "
            "in all splits"
        )
    if 1 in ranks.values():
        if task == "multilabel":
            raise ValueError(
                f"{next(iter(files))}: task is multilabel and there is one label a "
                "row, expected a 0/1 matrix [rows, classes]"
            )
        return "multiclass"
    if task != "auto":
        return task
    for _, values in files.values():
        rows = values[~unlabelled(values)]
        if np.isnan(rows).any():
            return "multilabel"
        if np.isin(rows, (0, 1)).all() and (rows.sum(axis=1) != 1).any():
            return "multilabel"
    return "multiclass"


def settle(files: dict[str, Named], task: str) -> dict[str, Named]:
    """Checks the matrices of a multi-class task; all one-hot, they become numbers.

    Raises a ValueError where a soft label does not sum to 1, or lacks entries.
    """
    if task == "multilabel" or any(v.ndim == 1 for _, v in files.values()):
        return files
    for where, (_, values) in files.items():
        labelled = ~unlabelled(values)
        sums = values.sum(axis=1)
        broken = labelled & ~(np.abs(sums - 1) <= SOFT_TOLERANCE)
        if broken.any():
            raise ValueError(
                f"{where}: soft labels sum to {sums[broken][0]:.4g} in "
                f"{checks.listing(broken)}, expected 1 (within {SOFT_TOLERANCE}); for "
                "several labels a row set task to multilabel"
            )
    if not all(_hard(values) for _, values in files.values()):
        return files
    return {
        where: Named(names, _codes(values)) for where, (names, values) in files.items()
    }


def _codes(values: np.ndarray) -> np.ndarray:
    codes = np.argmax(np.nan_to_num(values), axis=1)
    return np.where(unlabelled(values), UNLABELLED, codes).astype(np.int32)


def rename(
    labels: Named, names: tuple[str, ...], where: str
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Maps labels of a file to the class names of the whole run, by name.

    Returns:
      The labels in the order of `names` (class number -2: not among them) and, for each
      class that is not among them, `bool [rows]`: where the file has it.

    >>> labels = named(["cat", "dog"], None, "test")
    >>> rename(labels, ("dog", "ant"), "test")[0]
    array([-2,  0], dtype=int32)
    """
    wanted = set(names)
    extra = [name for name in labels.names if name not in wanted]
    if labels.values.ndim == 1:
        number = {name: i for i, name in enumerate(names)}
        # The last entry is for -1, which indexes it.
        table = [number.get(name, UNSEEN) for name in labels.names] + [UNLABELLED]
        values = np.array(table, np.int32)[labels.values]
        rows = {name: labels.values == labels.names.index(name) for name in extra}
    else:
        position = {name: i for i, name in enumerate(labels.names)}
        lacking = [name for name in names if name not in position]
        if lacking:
            raise ValueError(
                f"{where}: the label matrix has no column for {lacking[0]!r} (and "
                f"{len(lacking) - 1} others), expected a column for each of the "
                f"{len(names)} classes; name the columns with class_names"
            )
        values = labels.values
        if labels.names != names:
            values = values[:, [position[name] for name in names]]
        rows = {name: labels.values[:, position[name]] > 0 for name in extra}
    return values, {name: where_ for name, where_ in rows.items() if where_.any()}


def support(values: np.ndarray, classes: int) -> np.ndarray:
    """Returns `float64 [classes]`: rows of each class (soft labels: their sum).

    >>> support(np.array([0, 2, 2, -1]), 4)
    array([1., 0., 2., 0.])
    """
    if values.ndim == 1:
        return np.bincount(values[values >= 0], minlength=classes).astype(float)
    return np.nansum(values, axis=0, dtype=float)


def strata(values: np.ndarray) -> np.ndarray:
    """Returns `int [rows]`, what a split keeps the proportions of.

    The class; the largest entry of a soft label; of several labels the rarest one, so
    that rare ones are spread too (rows without any are a stratum of their own).

    >>> strata(np.array([[1, 1], [1, 0], [0, 0]], np.float32)).tolist()
    [1, 0, 2]
    """
    if values.ndim == 1:
        return values
    positive = np.nan_to_num(values)
    soft = (np.abs(positive.sum(axis=1) - 1) <= SOFT_TOLERANCE).all()
    if soft:
        return positive.argmax(axis=1)
    count = (positive > 0).sum(axis=0)
    rarity = np.where(positive > 0, count, len(values) + 1)
    return np.where((positive > 0).any(axis=1), rarity.argmin(axis=1), values.shape[1])


def one_class(values: np.ndarray, names: Sequence[str], where: str) -> None:
    """Raises a ValueError where training has rows of fewer than two classes."""
    counts = support(values, len(names))
    if (counts > 0).sum() < 2:
        most = np.argsort(-counts, kind="stable")[:8]
        told = ", ".join(f"{names[i]!r}: {counts[i]:g}" for i in most)
        raise ValueError(
            f"{where}: one class only has rows ({told}), expected rows of two classes "
            "at least"
        )
