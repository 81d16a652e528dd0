"""What an array of one split must look like; everything else is refused here.

Each error says which file or argument, what was got, what was expected, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from flaxhead.paths import AnyPath

KEPT = ("float16", "bfloat16", "float32")
CHUNK_BYTES = 1 << 24
CACHE_BYTES = 1 << 18  # What is made of so few stays in a processor's cache.
# The bits of a number's exponent; all are set in NaN and in infinity.
EXPONENTS = {"float16": np.uint16(0x7C00), "bfloat16": np.uint16(0x7F80)}


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a hint that names the known name nearest to a mistyped one, or "".

    >>> nearest("label", ["labels", "mask"])
    "; did you mean 'labels'?"
    """
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def listing(rows: np.ndarray) -> str:
    """Returns the row numbers where `rows` (`bool [rows]`) is True, cut short.

    >>> listing(np.array([False, True, False, True]))
    '2 of 4 rows (1, 3)'
    """
    numbers = np.flatnonzero(rows)
    shown = ", ".join(map(str, numbers[:8]))
    more = ", ..." if len(numbers) > 8 else ""
    return f"{len(numbers)} of {len(rows)} rows ({shown}{more})"


def choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises a ValueError where a setting is none of the allowed words."""
    if value not in allowed:
        raise ValueError(
            f"{name} is {value!r}, expected one of {', '.join(allowed)}"
            f"{nearest(value, allowed)}"
        )


def known_fields(names: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raises a ValueError for a field that nothing reads: it may be a typing error."""
    known = tuple(known)
    for name in names:
        if name not in known:
            raise ValueError(
                f"{where}: unknown field {name!r}, expected {', '.join(known)}"
                f"{nearest(name, known)}"
            )


@contextmanager
def parsing(path: AnyPath, what: str) -> Iterator[None]:
    """Turns whatever a parser raises on a broken file into one clear sentence."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{path}: cannot be read as {what}, expected a whole and valid file; write "
            f"it again ({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error


def array(values: Any, name: str, where: str) -> np.ndarray:
    """Returns values as an array; ragged lists are refused."""
    if type(values) in (np.ndarray, np.memmap):
        return values
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(
            f"{where}: {name} is ragged, expected rows of one length; pad tokens and "
            "pass a mask"
        ) from error


def plain(values: np.ndarray) -> tuple[list[Any], np.ndarray]:
    """Returns a column of objects as Python values, and which of them are missing.

    >>> plain(np.array([b"ant", None, np.int8(3)], object))
    (['ant', None, 3], array([False,  True, False]))
    """
    items = [v.item() if isinstance(v, np.generic) else v for v in values.tolist()]
    items = [v.decode() if isinstance(v, bytes) else v for v in items]
    missing = [
        v is None or (isinstance(v, str | float) and (v == "" or v != v)) for v in items
    ]
    return items, np.array(missing, bool)


def chunks(x: Any, size: int = 0) -> Iterator[slice]:
    """Yields slices of rows, so that a memory map is never read whole.

    Args:
      x: `[rows, ...]`.
      size: bytes of a slice, about; 0: 16 MB.
    """
    row_bytes = max(1, x.nbytes // max(1, len(x)))
    rows = max(1, (size or CHUNK_BYTES) // row_bytes)
    for start in range(0, len(x), rows):
        yield slice(start, min(start + rows, len(x)))


def embeddings(x: Any, where: str) -> np.ndarray:
    """Returns embeddings of a type that training takes, narrow ones as they are.

    float16, bfloat16 and float32 are kept; float64, integers and booleans become
    float32. Raises a ValueError for any other type, shape or emptiness.
    """
    x = array(x, "embeddings", where)
    if x.dtype.kind == "V" and x.dtype.name == "void16":
        # The file format of NumPy forgets the name of bfloat16 and keeps its width.
        import ml_dtypes

        x = x.view(ml_dtypes.bfloat16)
    kept = x.dtype.name in KEPT
    if not kept and x.dtype.name != "float64" and x.dtype.kind not in "iub":
        raise ValueError(
            f"{where}: embeddings have type {x.dtype}, expected float16, bfloat16, "
            "float32, float64 or integers"
        )
    rank(x.shape, where)
    if x.size == 0:
        raise ValueError(
            f"{where}: embeddings are empty (shape {list(x.shape)}), expected one row "
            "and one column at least"
        )
    native = x.dtype.newbyteorder("=") if kept else np.dtype(np.float32)
    with np.errstate(over="ignore"):  # An overflow becomes inf, and inf is refused.
        return x.astype(native, copy=False)


def rank(shape: tuple[int, ...], where: str) -> None:
    """Raises a ValueError unless embeddings are vectors or tokens, by their shape."""
    if len(shape) not in (2, 3):
        raise ValueError(
            f"{where}: embeddings have shape {list(shape)}, expected [rows, dim] or "
            "[rows, tokens, dim]"
        )


def finite(x: np.ndarray) -> np.ndarray:
    """Returns `bool [rows]`, True where all of a row is finite.

    >>> finite(np.array([[1.0, 2.0], [np.nan, 0.0]]))
    array([ True, False])
    """
    rows = np.empty(len(x), bool)
    exponent = EXPONENTS.get(x.dtype.name)
    for part in chunks(x, CACHE_BYTES):
        if exponent is None:
            values = np.isfinite(x[part])
        else:
            # NumPy would widen what is narrow, number by number.
            values = (x[part].view(np.uint16) & exponent) != exponent
        rows[part] = values.reshape(len(values), -1).all(axis=1)
    return rows


def length(values: np.ndarray, rows: int, name: str, where: str) -> None:
    """Raises a ValueError unless there is one entry a row."""
    if values.ndim < 1 or len(values) != rows:
        got = len(values) if values.ndim else "a single value"
        raise ValueError(
            f"{where}: {name} has {got} rows and embeddings have {rows}, expected as "
            "many"
        )


def mask(values: Any, x: np.ndarray, where: str) -> np.ndarray:
    """Returns a token mask as `bool [rows, tokens]`, no row of it empty."""
    values = array(values, "mask", where)
    if x.ndim == 2:
        raise ValueError(
            f"{where}: a mask came with embeddings of shape {list(x.shape)}, expected "
            "[rows, tokens, dim]; leave the mask out"
        )
    if values.shape != x.shape[:2]:
        raise ValueError(
            f"{where}: the mask has shape {list(values.shape)}, expected "
            f"{list(x.shape[:2])} (rows, tokens)"
        )
    if values.dtype.kind not in "biuf" or not np.isin(values, (0, 1)).all():
        raise ValueError(
            f"{where}: the mask has other values than True and False (type "
            f"{values.dtype}), expected True where a token is real"
        )
    values = values.astype(bool, copy=False)
    empty = ~values.any(axis=1)
    if empty.any():
        raise ValueError(
            f"{where}: the mask leaves no token in {listing(empty)}, expected one "
            "token a row at least; leave these rows out"
        )
    return values


def weights(values: Any, rows: int, where: str) -> np.ndarray:
    """Returns weights as `float32 [rows]`, finite, none negative, not all zero."""
    values = array(values, "weights", where)
    if values.ndim != 1:
        raise ValueError(
            f"{where}: weights have shape {list(values.shape)}, expected [{rows}]"
        )
    length(values, rows, "weights", where)
    if values.dtype.kind not in "biuf":
        raise ValueError(
            f"{where}: weights have type {values.dtype}, expected numbers, one a row"
        )
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    for wrong, what in (
        (~np.isfinite(values), "NaN or infinite"),
        (values < 0, "negative"),
    ):
        if wrong.any():
            raise ValueError(
                f"{where}: weights are {what} in {listing(wrong)}, expected finite "
                "numbers of at least 0 (0: the row is absent)"
            )
    if not values.any():
        raise ValueError(f"{where}: all weights are 0, expected a positive one")
    return values


def keys(values: Any, rows: int, name: str, where: str) -> np.ndarray:
    """Returns `groups` or `ids` as `[rows]` text or integers, none missing."""
    values = array(values, name, where)
    length(values, rows, name, where)
    if values.dtype.kind in "OST":
        items, missing = plain(values)
        kinds = {type(v) for v in items} - {str, int, float, type(None)}
        if kinds:
            raise ValueError(
                f"{where}: {name} holds values of type {kinds.pop().__name__}, "
                "expected text or integers"
            )
        values = np.array(items) if not missing.any() else values
    else:
        missing = values == "" if values.dtype.kind == "U" else np.zeros(rows, bool)
    if missing.any():
        raise ValueError(
            f"{where}: {name} is missing in {listing(missing)}, expected one a row"
        )
    if values.ndim != 1 or values.dtype.kind not in "iuU":
        raise ValueError(
            f"{where}: {name} has type {values.dtype} and shape {list(values.shape)}, "
            f"expected text or integers of shape [{rows}]"
        )
    return values
