"""How far a run is: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import NamedTuple, TextIO

_LINE_SECONDS = 10.0


class Display(NamedTuple):
    """Where a run tells what it does.

    Attributes:
      say: `(sentence)`, a line that stays.
      step: `(done, total, best, unit="steps")`, how far it is, the best score so far as
        text, and what is counted.
      close: `()`, ends the bar.
    """

    say: Callable[[str], None]
    step: Callable[..., None]
    close: Callable[[], None]


def display(stream: TextIO | None = None) -> Display:
    """Returns a display on a stream (default: standard error)."""
    out = sys.stderr if stream is None else stream
    terminal = out.isatty()
    begun: list[tuple[float, int]] = []  # when this run began to step, and where
    shown = [0.0]

    def say(sentence: str) -> None:
        clear = "\r\033[K" if terminal else ""
        print(f"{clear}{sentence}", file=out, flush=True)

    def step(done: int, total: int, best: str, unit: str = "steps") -> None:
        now = time.monotonic()
        if begun and done < begun[0][1]:
            begun.clear()  # something else is counted now
        if not begun:
            begun.append((now, done))
        since, first = begun[0]
        rate = (done - first) / (now - since) if now > since else 0.0
        pace = ""
        if rate:
            pace = f"{_pace(rate, unit)}  {(total - done) / rate:.0f} s left  "
        told = f"{done}/{total} {unit}  {pace}{best}".rstrip()
        if terminal:
            filled = 24 * done // total
            bar = "█" * filled + "·" * (24 - filled)
            print(f"\r\033[K{bar} {told}", end="", file=out, flush=True)
        elif now - shown[0] >= _LINE_SECONDS or done == total:
            shown[0] = now
            print(told, file=out, flush=True)

    def close() -> None:
        if terminal and begun:
            print(file=out, flush=True)

    return Display(say, step, close)


def _pace(rate: float, unit: str) -> str:
    """How many a second, or, of less than one, how long each takes."""
    if rate < 1:
        slow = 1 / rate
        return f"{slow:,.{0 if slow >= 10 else 1}f} s/{unit.removesuffix('s')}"
    return f"{rate:,.{0 if rate >= 10 else 1}f} {unit}/s"


def quiet() -> Display:
    """Returns a display that shows nothing."""
    return Display(lambda sentence: None, lambda *_: None, lambda: None)
