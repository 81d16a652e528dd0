"""The picture of attention: how much each token of a row weighs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxhead.paths import Location
from flaxhead.report import canvas

_CELL = 0.24  # inches, the height of a query's cells
_ROOM = 0.75  # inches a row, for its name, its tokens and the gap to the next
_LETTERS = 16  # of a token, the rest is cut
_EVERY = 40  # tokens a row that can all have a text below them


def attention(
    path: Location,
    weights: Any,
    *,
    mask: Any = None,
    tokens: Sequence[Sequence[str]] | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Draw a few rows' weights: tokens as columns, queries and their heads as rows.

    The darker a cell, the more its token weighs; the darkest is the largest weight of
    the picture. Tokens that are masked out are blank, and have no text. The file
    appears whole or not at all.

    Args:
      path: the PNG file to write.
      weights: `[rows, queries * heads, tokens]`, as `attention_weights` returns.
      mask: `bool [rows, tokens]`, True where the token is real; None: all are.
      tokens: the text of each token, a list a row, which may be as short as the row
        without its padding; None: their numbers.
      names: what each row is called; None: their numbers.

    Raises:
      ValueError: for shapes that don't fit, no real token, or weights that are not
        finite.

    Example:
      >>> weights = np.array([[[0.7, 0.3, 0.0]]])
      >>> import tempfile
      >>> from pathlib import Path
      >>> path = Path(tempfile.mkdtemp()) / "attention.png"
      >>> mask = np.array([[True, True, False]])
      >>> attention(path, weights, mask=mask, tokens=[["good", "film"]])
      >>> path.read_bytes()[1:4]
      b'PNG'
    """
    weights = np.asarray(weights, np.float64)
    if weights.ndim != 3 or not weights.size:
        raise ValueError(
            "weights: expected [rows, queries, tokens], one or more of each, got "
            f"{list(weights.shape)}."
        )
    rows, queries, count = weights.shape
    real = np.ones((rows, count), bool) if mask is None else np.asarray(mask, bool)
    if real.shape != (rows, count):
        raise ValueError(f"mask: expected {[rows, count]}, got {list(real.shape)}.")
    if not real.any():
        raise ValueError("mask: expected a real token in some row, got none.")
    shown = np.where(real[:, None], weights, 0)
    if not np.isfinite(shown).all():
        raise ValueError("weights: expected finite numbers, got some that are not.")
    shown = np.ma.masked_array(shown, np.broadcast_to(~real[:, None], shown.shape))
    texts = _texts(tokens, real)
    titles = [f"row {row}" for row in range(rows)] if names is None else list(names)
    if len(titles) != rows:
        raise ValueError(f"names: expected one a row, {rows}, got {len(titles)}.")

    figure = canvas.blank(max(2.0, rows * (_ROOM + _CELL * queries) + 0.6))
    picture: Any = None
    panels = figure.subplots(rows, 1, squeeze=False)[:, 0]
    for row, axes in enumerate(panels):
        picture = axes.imshow(
            shown[row], cmap="Blues", vmin=0, vmax=shown.max(), aspect="auto"
        )
        step = -(-count // _EVERY)
        places = range(0, count, step)
        turned = tokens is not None and max(map(len, texts[row])) > 3
        axes.set_xticks(
            places,
            [texts[row][place] for place in places],
            rotation=45 if turned else 0,
            ha="right" if turned else "center",
        )
        axes.set_yticks(range(queries), [f"query {one}" for one in range(queries)])
        axes.tick_params(colors=canvas.INK, labelsize=8, length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(
            textwrap.shorten(titles[row], 120, placeholder=" ..."),
            loc="left",
            fontsize=9.5,
            color=canvas.INK,
        )
    bar = figure.colorbar(picture, ax=list(panels), aspect=32, pad=0.015)
    bar.set_label("weight", color=canvas.INK, fontsize=9)
    bar.ax.tick_params(colors=canvas.INK, labelsize=8)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    row, query, token = np.unravel_index(shown.argmax(fill_value=-1), shown.shape)
    of = f"token {token}" if tokens is None else f"'{texts[row][token]}'"
    weight = f"{shown[row, query, token]:.2g}"
    canvas.headline(figure, f"the largest weight is {weight}, of {of} in {titles[row]}")
    canvas.save(figure, path)


def _texts(tokens: Sequence[Sequence[str]] | None, real: np.ndarray) -> list[list[str]]:
    """The text below each token; none below what is masked out."""
    rows, count = real.shape
    if tokens is None:
        return [[str(place) for place in range(count)] for _ in range(rows)]
    if len(tokens) != rows:
        raise ValueError(f"tokens: expected a list a row, {rows}, got {len(tokens)}.")
    texts = []
    for row, own in enumerate(tokens):
        least = int(np.flatnonzero(real[row]).max(initial=-1)) + 1
        if not least <= len(own) <= count:
            raise ValueError(
                f"tokens: expected from {least} to {count} texts in row {row}, got "
                f"{len(own)}."
            )
        padded = [*own, *[""] * (count - len(own))]
        # A dollar sign would begin a formula.
        texts.append(
            [
                text[:_LETTERS].replace("$", r"\$") if there else ""
                for text, there in zip(padded, real[row], strict=True)
            ]
        )
    return texts
