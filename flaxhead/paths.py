"""Files on this machine, and objects of Google Cloud Storage (`gs://`), by one path.

Local paths are pathlib's. Those of a bucket are `etils.epath`'s, as in orbax, and read
and list alike. What differs is here: a bucket knows neither renaming nor appending, but
an object is there whole or not at all.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from etils import epath
from etils.epath import backend

Location: TypeAlias = str | os.PathLike[str]
AnyPath: TypeAlias = Path | epath.Path
_SCHEME = "gs://"


def to_path(location: Location) -> AnyPath:
    """Returns a local path, or one of a bucket, which is asked whether it answers.

    Raises:
      ValueError: another kind of address; or the bucket is not there, does not let us
        in, or needs a package that is not installed.

    >>> to_path("runs") / "one"
    PosixPath('runs/one')
    """
    if isinstance(location, epath.Path) and not isinstance(location, Path):
        return location  # It has answered.
    if not isinstance(location, str | os.PathLike):
        raise ValueError(f"{location!r} is no path; expected text or a pathlib.Path")
    text = os.fspath(location)
    if "://" not in text:
        return Path(text)
    bucket, _, key = text.removeprefix(_SCHEME).partition("/")
    if not text.startswith(_SCHEME) or not bucket:
        raise ValueError(f"{text}: expected a local path, or gs://BUCKET/FOLDER")
    if importlib.util.find_spec("gcsfs") is None:
        raise ValueError(
            f"{text}: reading and writing a bucket needs the extra 'gcs'; expected "
            "pip install 'flaxhead[gcs]'"
        )
    with _answering(text):
        # One request, which a bucket of any size answers at once.
        _store(text).call("GET", "b/{}/o", bucket, prefix=key, maxResults=1)
    return epath.Path(text)


def is_local(path: AnyPath) -> bool:
    """Whether a path is of this machine."""
    return isinstance(path, Path)


def write(path: AnyPath, content: str | bytes, *, new: bool = False) -> None:
    """Writes a file whole or not at all.

    Args:
      path: the file.
      content: what it shall hold; text as UTF-8.
      new: whether an object that is there already is an error, found by the bucket
        itself: of two that write at once, one succeeds. Local files are replaced.

    Raises:
      OSError: a local file can't be written.
      ValueError: an object can't be written, or was to be new.
    """
    content = content.encode() if isinstance(content, str) else content
    if isinstance(path, Path):
        with naming(path):
            part(path).write_bytes(content)
            os.replace(part(path), path)
        return
    with _answering(path):
        mode = "create" if new else "overwrite"
        _store(path).pipe_file(str(path), content, mode=mode)


@contextmanager
def naming(path: AnyPath) -> Iterator[None]:
    """Gives an OSError the name of a file; that of a full disk has none."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def part(path: AnyPath) -> AnyPath:
    """Where a local file is written before it takes its name."""
    return path.with_name(f".{path.name}.new")


@contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Holds a file that one process at a time can hold, and deletes it at the end.

    The kernel lets go of it when the process ends, however it ends. Some clusters'
    file systems have no locks; nothing is held there.

    Args:
      path: the file, made if it is not there.
      what: is for one process at a time.

    Raises:
      ValueError: another process holds it, or its folder can't be written to.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with alone(Path(folder) / "lock", "the run"):
    ...         with alone(Path(folder) / "lock", "the run"):
    ...             pass
    Traceback (most recent call last):
    ValueError: another process is at work on the run; wait until it ends, or stop it
    """
    file = _held(path, what)
    while not _is_named(file, path):  # The one before deleted it meanwhile.
        os.close(file)
        file = _held(path, what)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def _held(path: Path, what: str) -> int:
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ValueError(
            f"the folder {path.parent} can't be written to ({error.strerror}); name "
            "another one"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(file)
        raise ValueError(
            f"another process is at work on {what}; wait until it ends, or stop it"
        ) from error
    except OSError:
        pass  # Without locks.
    return file


def _is_named(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def append(path: AnyPath, text: str) -> None:
    """Adds text to a file; an object, which cannot grow, is written again."""
    if isinstance(path, Path):
        with naming(path), path.open("a") as file:
            file.write(text)
    else:
        write(path, path.read_text() + text)


@contextmanager
def fetched(path: AnyPath) -> Iterator[Path]:
    """Yields a local file of the same content; that of an object is deleted after.

    What has opened it or maps it into memory still has it then.
    """
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory(
        prefix="flaxhead-", ignore_cleanup_errors=True
    ) as folder:
        file = Path(folder) / path.name
        with _answering(path):
            _store(path).get_file(str(path), str(file))
        yield file


def check_for_checkpoints(folder: AnyPath) -> None:
    """Raises a ValueError where orbax could not save: it asks for the bucket itself."""
    if not isinstance(folder, Path):
        with _answering(folder):
            _store(folder).call("GET", "b/{}", _bucket(folder))


def _bucket(path: AnyPath | str) -> str:
    return str(path).removeprefix(_SCHEME).partition("/")[0]


def _store(path: AnyPath | str) -> Any:
    from fsspec.config import conf

    # Orbax writes past fsspec, and other machines do: what it listed may be old.
    conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    return backend.fsspec_backend.fs(path)


@contextmanager
def _answering(path: AnyPath | str) -> Iterator[None]:
    """Turns whatever a store raises into one clear sentence."""
    try:
        yield
    except FileExistsError as error:
        raise ValueError(
            f"{path}: another run wrote it a moment ago; expected one run a folder"
        ) from error
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such bucket or object") from error
    except Exception as error:
        # Of the many kinds, none has a common parent.
        told = " ".join(str(error).split())
        raise ValueError(
            f"{path} can't be used ({type(error).__name__}: {told}); check the "
            "account's permissions, with gcloud auth application-default login if it "
            "should be yours"
        ) from error
