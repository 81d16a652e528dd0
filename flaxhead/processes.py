"""Several processes that train one head: they join, agree, and notice a loss.

All of them run the same host code on the same data and so come to the same decisions;
what could differ between them, such as a clock or a signal, goes through `gather`. The
first one writes. `watched` sees to it that no process waits for one that is gone: each
says once a second that it is there, in JAX's coordination service, which process 0
runs. With one process, everything here does nothing.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import re
import signal
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # its client has no public name

FLAGS = {
    "coordinator_address": ("HOST:PORT", "where process 0 is found"),
    "num_processes": ("COUNT", "how many processes there are"),
    "process_id": ("NUMBER", "which of them this one is, from 0"),
}
"""What `join` may be told: what stands for it, and what it is."""

_BEAT = 1.0  # seconds
_GRACE = 5.0  # for a process to find by itself what ended another one
_SILENCE = 20.0  # of a process that is gone; it may be busy for some seconds
_WORDS = "flaxhead/processes/"
_FAILED, _DONE = "failed", "done"
_RUNTIME = re.compile(r"[A-Z_]+: ")  # errors of JAX's runtime start so
_DAYS = 7 * 24 * 3_600_000  # milliseconds
_MESSAGE = 2**20  # bytes that the service is handed at once
_GATHERED = itertools.count()
_HANDLERS: list[Any] = []  # C knows them by address only


def join(workdir: str | None, told: Mapping[str, str | None]) -> None:
    """Joins the other processes of a job; to be called before JAX is used.

    Args:
      workdir: the folder of the run.
      told: values of `FLAGS`; what is missing is taken from `JAX_COORDINATOR_ADDRESS`,
        `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, or found by JAX (on Cloud TPU, SLURM,
        Kubernetes, Open MPI).

    Raises:
      ValueError: no folder is named, values can't be used or are missing, or process 0
        can't listen at its address.
    """
    if not workdir:
        raise ValueError("--multihost needs a --workdir, the same for all processes")
    address = _told("coordinator_address", told)
    if address and not re.fullmatch(r".+:[0-9]{1,5}", address):
        raise ValueError(
            f"{_named('coordinator_address')} is {address!r}; expected HOST:PORT, the "
            "host that process 0 runs on and a free port of it"
        )
    count, number = _number("num_processes", told), _number("process_id", told)
    if count is not None and number is not None and number >= count:
        raise ValueError(
            f"{_named('process_id')} is {number} of {count} processes; expected 0 to "
            f"{count - 1}, another one in each process"
        )
    joined: list[str] = []

    def why() -> str | None:
        if not joined:
            return (
                f"some of the {count or 'other'} processes did not come to "
                f"{address or 'process 0'} in time; start all, each with a process_id "
                "of its own"
            )
        if distributed.global_state.process_id and not _answers(joined[0]):
            return _sentence([0], distributed.global_state.num_processes, workdir)
        return None

    _on_abort(why)
    try:
        jax.distributed.initialize(address or None, count, number)
    except ValueError as error:
        given = (address or None, count, number)
        lacking = [
            f"--{name}" for name, one in zip(FLAGS, given, strict=True) if one is None
        ]
        some = f"; {' and '.join(lacking)} not set" if 0 < len(lacking) < 3 else ""
        raise ValueError(
            f"--multihost found no other processes ({error}{some}); expected a cluster "
            f"that JAX knows, or all of {', '.join(f'--{name}' for name in FLAGS)}"
        ) from error
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"process {number} can't listen at {address} ({error}); expected a free "
            "port of its own host"
        ) from error
    joined.append(distributed.global_state.coordinator_address or "")


def first() -> bool:
    """Whether this is the process that writes and tells."""
    return jax.process_index() == 0


def gather(value: Any) -> np.ndarray:
    """Returns what each process has, `[processes, ...]`: all must call it.

    Each has an array of the same shape and type.

    It waits as long as it takes, past the devices, whose collectives do not: those of
    CPUs fail after half a minute. `watched` is there for those who never come.

    >>> gather(2.5)
    array([2.5])
    """
    value = np.asarray(value)
    state = distributed.global_state
    client: Any = state.client
    if jax.process_count() == 1:
        return value[None]
    said, told = value.tobytes(), [bytearray() for _ in range(state.num_processes)]
    for begin in range(0, max(1, len(said)), _MESSAGE):
        number = next(_GATHERED)
        name = f"flaxhead/gathered/{number}/{{}}"
        part = said[begin : begin + _MESSAGE]
        client.key_value_set_bytes(name.format(state.process_id), part)
        for one, content in enumerate(told):
            content += client.blocking_key_value_get_bytes(name.format(one), _DAYS)
        # They have all read what came before.
        client.key_value_delete(f"flaxhead/gathered/{number - 1}/{state.process_id}")
    whole = np.frombuffer(b"".join(told), value.dtype)
    return whole.reshape(len(told), *value.shape)


def gather_rows(values: Any) -> np.ndarray:
    """Returns the rows that the processes have, in order, each any number of them.

    >>> gather_rows([1, 2])
    array([1, 2])
    """
    values = np.asarray(values)
    if jax.process_count() == 1:
        return values
    counts = gather(len(values))
    even = np.zeros((counts.max(), *values.shape[1:]), values.dtype)
    even[: len(values)] = values
    told = zip(gather(even), counts, strict=True)
    return np.concatenate([one[:count] for one, count in told])


def share(count: int) -> slice:
    """Returns which of so many pieces, in order, are for this process.

    >>> share(5)
    slice(0, 5, None)
    """
    number, processes = jax.process_index(), jax.process_count()
    return slice(count * number // processes, count * (number + 1) // processes)


def differing(text: str) -> int | None:
    """Returns the first process whose text is not that of process 0, or None.

    >>> differing("the same everywhere")
    """
    said = gather(np.uint32(zlib.crc32(text.encode())))
    others = np.flatnonzero(said != said[0])
    return int(others[0]) if len(others) else None


def meet() -> None:
    """Waits until every process is here."""
    gather(np.uint32(0))


@contextmanager
def watched(
    workdir: str | os.PathLike[str],
    errors: AbstractContextManager[Any],
    *,
    together: type[BaseException] | tuple[()] = (),
) -> Iterator[None]:
    """Ends this process with a sentence, status 1, when another one is gone.

    And tells the others when this one fails, so that they end too. Nothing then waits
    for anything: an error leaves by `os._exit`.

    Args:
      workdir: the folder of the run, to be named.
      errors: tells of errors and makes them a `SystemExit`.
      together: what all processes raise when they all stop.
    """
    state = distributed.global_state
    if state.client is None or state.num_processes == 1:
        with errors:
            yield
        return
    watch = _Watch(state.client, state.process_id, state.num_processes, str(workdir))
    try:
        with errors:
            try:
                yield
                meet()
            except together:
                watch.done()
                raise
            except Exception as error:
                if _RUNTIME.match(str(error)):
                    # A lost connection: by then the watch knows of whom, and ends this.
                    time.sleep(_SILENCE + _GRACE)
                raise
    except SystemExit as stop:
        if watch.end != _DONE:
            watch.leave(stop.code if isinstance(stop.code, int) else 1)
        raise
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        watch.leave(1)
    watch.done()


class _Watch:
    """What each process said last, and since when."""

    def __init__(self, client: Any, number: int, count: int, workdir: str):
        self.client, self.number, self.count = client, number, count
        self.workdir = workdir
        self.end = ""  # what this process ends by
        now = time.monotonic()
        self.answered = now  # by the service
        others = [other for other in range(count) if other != number]
        self.beats = dict.fromkeys(others, ("", now))
        self.ends = dict.fromkeys(others, ("", now))
        for work in (self.beat, self.judge):
            threading.Thread(target=work, daemon=True).start()

    def say(self, kind: str, word: str) -> None:
        name = f"{_WORDS}{self.number}/{kind}"
        self.client.key_value_set(name, word, allow_overwrite=True)

    def beat(self) -> None:
        """Says that this one is there, and asks who else is."""
        for count in itertools.count():
            # Without an answer the clocks of `judge` run out.
            with suppress(Exception):
                self.say("beat", str(count))
                told = self.client.key_value_dir_get(_WORDS)
                self.answered = time.monotonic()
                for name, word in told:
                    *_, other, kind = name.split("/")
                    heard = self.ends if kind == "end" else self.beats
                    before = heard.get(int(other))
                    if before and before[0] != word:
                        heard[int(other)] = word, self.answered
            time.sleep(_BEAT)

    def judge(self) -> None:
        """Ends this process when another one is gone."""
        while not self.end:
            time.sleep(_BEAT)
            now = time.monotonic()
            gone = [0] if self.number and now - self.answered > _SILENCE else []
            for other, (word, since) in self.ends.items() if not gone else ():
                silent = not word and now - self.beats[other][1] > _SILENCE
                if silent or (word == _FAILED and now - since > _GRACE):
                    gone.append(other)
            if gone and not self.end:
                _tell(_sentence(gone, self.count, self.workdir))
                self.leave(1, gone)

    def done(self) -> None:
        """Says that this process ends as all do."""
        self.end = _DONE
        self.say("end", _DONE)

    def leave(self, status: int, gone: Sequence[int] = ()) -> None:
        """Ends this process, whatever its other threads wait for."""
        self.end = _FAILED
        sys.stdout.flush()
        sys.stderr.flush()
        say = threading.Thread(target=self.say, args=("end", _FAILED), daemon=True)
        say.start()
        say.join(_GRACE)  # Where process 0 is gone, nobody answers.
        # The service ends with process 0, and JAX ends the others with it: they shall
        # have found out by themselves.
        until = time.monotonic() + _GRACE + 5 * _BEAT
        while self.number == 0 and time.monotonic() < until:
            if all(word or other in gone for other, (word, _) in self.ends.items()):
                break
            time.sleep(_BEAT / 10)
        os._exit(status)


def _sentence(gone: Sequence[int], count: int, workdir: str) -> str:
    numbers = " and ".join(map(str, gone))
    which = f"process {numbers} has" if len(gone) == 1 else f"processes {numbers} have"
    return (
        f"{which} stopped (of {count}, numbered from 0), so the others stop too; the "
        "same command in all processes goes on from the last checkpoint, which "
        f"{workdir} keeps"
    )


def _tell(sentence: str) -> None:
    start = "\n" if sys.stderr.isatty() else ""  # there may be a bar
    os.write(2, f"{start}error: {sentence}\n".encode())


def _on_abort(why: Callable[[], str | None]) -> None:
    """Tells why before JAX's runtime ends this process, past Python, by SIGABRT.

    Where a process can't join, or process 0 is gone, it calls C's `abort`.
    """

    def handle(number: int) -> None:
        del number
        sentence = why()
        if sentence:
            _tell(sentence)
            os._exit(1)

    _HANDLERS.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(handle))
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _HANDLERS[-1])


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def _variable(name: str) -> str:
    return f"JAX_{name.upper()}"


def _named(name: str) -> str:
    return f"--{name} (or {_variable(name)})"


def _told(name: str, told: Mapping[str, str | None]) -> str:
    return told.get(name) or os.environ.get(_variable(name), "")


def _number(name: str, told: Mapping[str, str | None]) -> int | None:
    text, least = _told(name, told), int(name == "num_processes")
    if not text:
        return None
    if not text.isdecimal() or int(text) < least:
        raise ValueError(
            f"{_named(name)} is {text!r}; expected a whole number of {least} or more"
        )
    return int(text)
