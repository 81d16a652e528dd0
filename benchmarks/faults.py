"""What a run loses when it is killed, or when its disk or its files are bad.

    python benchmarks/faults.py [train|solve|predict|files|all] [--kills=50]

A small run of each kind is made without a fault first; what it leaves is what every
other one has to leave in the end, byte for byte but for the seconds that it took.

* `train`, `solve`, `predict`: SIGKILL at moments drawn uniformly over the time that the
  run takes, up to three times in one folder, then the same command to its end. After
  each kill, what is there under its final name has to be right, and what was recorded
  as saved has to be gone on from.
* `files`: full disks, folders that can't be written to, cut files and flipped bits, a
  clock that jumps, two processes at once, signals.

Every run is a process of its own, forked from one that has imported JAX and started no
backend of it. A full disk is a tmpfs, and a read-only folder a bind mount, which root
alone can make (mode bits don't stop root); others get a limit on the size of a file,
and mode bits. Needs Linux. The exit status is 1 where something was wrong.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SCRATCH = Path(tempfile.mkdtemp(prefix="flaxhead-faults-"))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(SCRATCH / "cache")

import numpy as np  # noqa: E402

import train  # noqa: E402
from flaxhead import bundle, cli  # noqa: E402
from flaxhead.bulk import files as bulk_files  # noqa: E402
from flaxhead.config import DataConfig  # noqa: E402
from flaxhead.data import fingerprint, load, open_inputs  # noqa: E402
from flaxhead.data.tables import read_parquet  # noqa: E402, F401 (imports pyarrow)

warnings.filterwarnings("ignore", "os.fork")
ROOT_USER = os.geteuid() == 0
FOREVER = 300.0

CONFIGS = {
    "train": """
from flaxhead import *
def get_config():
    return Config(
        data=DataConfig("npz:{data}"),
        heads=(HeadConfig("mlp", width=16, dropout=(0.0, 0.5)),),
        train=TrainConfig(batch_size=32, steps=2000, evaluations=6),
        checkpoint=CheckpointConfig(every_seconds=0.0),
    )
""",
    "solve": """
from flaxhead import *
def get_config():
    return Config(
        data=DataConfig("npz:{data}"),
        heads=(HeadConfig("logistic", C=(0.01, 0.1, 1.0, 10.0)),),
        selection=SelectionConfig(folds=3),
    )
""",
}


# Processes.


class Ended(NamedTuple):
    """How a process ended: its exit status, what it said, and the seconds it took."""

    status: int
    said: str
    seconds: float

    @property
    def sentence(self) -> str:
        """The last line that it said, without the folder of this script."""
        lines = self.said.strip().splitlines() or [""]
        return lines[-1].replace(f"{SCRATCH}/", "")


class Process:
    """A function in a forked process."""

    def __init__(self, function: Callable[[], Any], *, before: Any = None):
        """Starts it; `before` is called in the process first."""
        self.file = tempfile.TemporaryFile("w+", dir=SCRATCH)  # noqa: SIM115
        self.began = time.monotonic()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid:
            return
        status = 99
        try:
            os.dup2(self.file.fileno(), 1)
            os.dup2(self.file.fileno(), 2)
            if before:
                before()
            status = function() or 0
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            import traceback

            traceback.print_exc()
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(int(status or 0))

    def kill(self, number: int, delay: float) -> None:
        """Sends a signal after so many seconds, unless the process has ended."""
        until = self.began + delay
        while time.monotonic() < until and not self.ended():
            time.sleep(min(0.01, max(0.0, until - time.monotonic())))
        if not self.ended():
            os.kill(self.pid, number)

    def stop(self, number: int, when: Callable[[], Any]) -> Ended:
        """Sends a signal as soon as something is so, and waits for the end."""
        while not when() and not self.ended():
            time.sleep(0.002)
        time.sleep(0.05)  # It listens to signals by then.
        if not self.ended():
            os.kill(self.pid, number)
        return self.wait()

    def ended(self) -> bool:
        """Whether it has ended; it is waited for later."""
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.pid, flags) is not None

    def wait(self) -> Ended:
        """Waits for its end; a process that hangs is killed, and is a fault."""
        while not self.ended():
            if time.monotonic() - self.began > FOREVER:
                os.kill(self.pid, signal.SIGABRT)
            time.sleep(0.005)
        seconds = time.monotonic() - self.began
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.file.seek(0)
        return Ended(status, self.file.read(), seconds)


class Job(NamedTuple):
    """A command, where it leaves its outcome, and how that is read and checked.

    Attributes:
      start: `(place, before) -> process`.
      outcome: `(place) -> everything that is there under its final name`.
      saved: `(place) -> how far it is recorded to be`.
      resumed: what the command says before that number; "" where it starts again.
      under_way: `(place) -> whether there is something to stop`.
    """

    start: Callable[..., Process]
    outcome: Callable[[Path], dict[str, Any]]
    saved: Callable[[Path], int]
    resumed: str
    under_way: Callable[[Path], Any]


def of_run(place: Path) -> dict[str, Any]:
    """What is there of a run under the names that users read."""
    found: dict[str, Any] = {}
    if (place / "result.json").exists():
        found["result"] = json.loads((place / "result.json").read_text())
        del found["result"]["timing"]
        found["metrics"] = (place / "metrics.jsonl").read_text()
    if (place / "head").exists():
        for name in ("params.safetensors", "head.json"):
            found[name] = (place / "head" / name).read_bytes()
    return found


def steps_saved(place: Path) -> int:
    """The step of the last checkpoint."""
    names = [one.name for one in (place / "checkpoints").glob("[0-9]*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def of_scores(place: Path) -> dict[str, Any]:
    """What is there of scores, and the part that the record answers for."""
    if place.exists():
        return {"scores": place.read_bytes()}
    return {}


def rows_saved(place: Path) -> int:
    """Up to which row the record says that the scores are."""
    path = bulk_files.record_path(place)
    return json.loads(path.read_text())["done"] if path.exists() else 0


def make_jobs() -> dict[str, Job]:
    """Writes data and settings, and returns the commands."""
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(3, 16))
    labels = draw.integers(0, 3, 600)
    x = (centres[labels] + 2 * draw.normal(size=(600, 16))).astype(np.float32)
    (SCRATCH / "data").mkdir()
    np.savez(SCRATCH / "data" / "train.npz", embeddings=x, labels=labels)
    rows = draw.normal(size=(300_000, 16)).astype(np.float16)
    np.save(SCRATCH / "new.npy", rows)
    jobs = {}
    for name, text in CONFIGS.items():
        config = SCRATCH / f"{name}.py"
        config.write_text(text.format(data=SCRATCH / "data"))

        def start(place: Path, before: Any = None, config: Path = config) -> Process:
            told = [f"--config={config}", f"--workdir={place}"]
            return Process(lambda: train.main(told), before=before)

        if name == "train":
            job = Job(start, of_run, steps_saved, "resumed after step ", steps_saved)
        else:
            # The folder is held from just before it begins until it ends.
            locked = lambda place: (place / ".lock").exists()  # noqa: E731
            job = Job(start, of_run, steps_saved, "", locked)
        jobs[name] = job

    def score(place: Path, before: Any = None) -> Process:
        bulk_files._SAVE_SECONDS = 0.1  # pyright: ignore[reportPrivateUsage]
        told = ["predict", f"--head={SCRATCH / 'whole-train' / 'head'}"]
        told += [f"--input={SCRATCH / 'new.npy'}", f"--output={place}"]
        told += ["--batch-size=1024"]
        return Process(lambda: cli.main(told), before=before)

    jobs["predict"] = Job(
        score, of_scores, rows_saved, "resumed after row ", rows_saved
    )
    return jobs


class Bench:
    """The jobs, what they leave when nothing is wrong, and what was seen."""

    def __init__(self) -> None:
        """Makes each job without a fault, twice: the second time is what it takes."""
        self.jobs = make_jobs()
        self.wrong: list[str] = []
        self.whole: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}
        for name, job in self.jobs.items():
            for number in ("whole", "again"):
                place = self.place(name, number)
                ended = job.start(place).wait()
                self.check(ended.status == 0, f"{name}: {ended.said}")
                found = job.outcome(place)
                self.check(
                    self.whole.setdefault(name, found) == found, f"{name}: twice"
                )
                self.seconds[name] = ended.seconds
        told = ", ".join(f"{name} {s:.1f} s" for name, s in self.seconds.items())
        load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
        print(f"without a fault: {told}; {os.cpu_count()} cores, load {load}\n")

    def place(self, name: str, told: str, folder: Path = SCRATCH) -> Path:
        """Where a job leaves its outcome."""
        return folder / f"{told}-{name}{'.npy' if name == 'predict' else ''}"

    def check(self, right: bool, what: str) -> bool:
        """Remembers what was wrong."""
        if not right:
            self.wrong.append(what)
            print(f"WRONG: {what}", file=sys.stderr)
        return right

    def refused(self, ended: Ended, what: str) -> str:
        """Checks that a process ended in one sentence, and returns the sentence."""
        errors = [line for line in ended.said.splitlines() if "error: " in line]
        clear = ended.status == 2 and len(errors) == 1 and "Traceback" not in ended.said
        self.check(clear, f"{what}: status {ended.status}: {ended.said[-2000:]}")
        return errors[0].replace(f"{SCRATCH}/", "") if errors else ended.sentence

    def stopped(
        self, name: str, place: Path, number: int = signal.SIGTERM, before: Any = None
    ) -> Ended:
        """Stops a job once it is under way."""
        job = self.jobs[name]
        return job.start(place, before).stop(number, lambda: job.under_way(place))

    def same(self, name: str, place: Path, what: str) -> None:
        """Makes a job to its end, and checks that it leaves what it should."""
        ended = self.jobs[name].start(place).wait()
        right = ended.status == 0 and self.jobs[name].outcome(place) == self.whole[name]
        self.check(right, f"{what}: not the same in the end: {ended.said[-2000:]}")


# SIGKILL.


def kills(bench: Bench, name: str, count: int, seed: int) -> None:
    """Kills a job so often, and prints a line of the table."""
    job, whole, rng = bench.jobs[name], bench.whole[name], random.Random(seed)
    done, folders, finished = 0, 0, 0
    lost: list[float] = []
    went_on = 0
    while done < count:
        folders += 1
        place = bench.place(name, f"killed-{folders}")
        for _ in range(min(rng.randint(1, 3), count - done)):
            moment = rng.uniform(0, bench.seconds[name])
            before = job.saved(place)
            process = job.start(place)
            process.kill(signal.SIGKILL, moment)
            ended = process.wait()
            if ended.status == 0:
                break  # It was faster; another moment is drawn.
            what = f"{name} killed after {moment:.2f} s"
            bench.check(ended.status == -signal.SIGKILL, f"{what}: {ended.said}")
            done += 1
            found = job.outcome(place)
            finished += found == whole
            right = all(whole[key] == value for key, value in found.items())
            bench.check(right, f"{what}: something wrong is there")
            after = job.saved(place)
            bench.check(after >= before, f"{what}: {before} became {after}")
            part = bulk_files.part(place)
            if name == "predict" and after and part.exists():
                size = json.loads(bulk_files.record_path(place).read_text())["bytes"]
                right = part.read_bytes()[:size] == whole["scores"][:size]
                bench.check(right, f"{what}: the part is wrong")
            if job.resumed and before:
                right = f"{job.resumed}{before}" in ended.said
                # It may have been killed before it could say so.
                bench.check(right or job.resumed not in ended.said, f"{what}: resumed")
        before = job.saved(place)
        process = job.start(place)
        ended = process.wait()
        if job.resumed and before and "nothing to do" not in ended.said:
            told = f"{job.resumed}{before}"
            went_on += bench.check(told in ended.said, f"{name}: {ended.said}")
        right = ended.status == 0 and job.outcome(place) == whole
        bench.check(right, f"{name}: not the same: {ended.said[-2000:]}")
        lost.append(ended.seconds)
        inside = place.glob(".*") if place.is_dir() else ()
        left = [*SCRATCH.glob(f".{place.name}*"), *inside]
        bench.check(not left, f"{name}: left behind: {left}")
        remove(place, bulk_files.record_path(place))
    seconds = bench.seconds[name]
    print(
        f"| {name} | {done} in {folders} folders, over {seconds:.1f} s | {went_on} of "
        f"{folders} from where it was saved, {folders - went_on} from the start or "
        f"finished already | {'none' if not bench.wrong else 'SOME'} |",
        flush=True,
    )


def remove(*paths: Path) -> None:
    """Deletes files and folders."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


# Disks.


@contextlib.contextmanager
def mounted(*arguments: str, folder: Path) -> Iterator[Path]:
    """A folder on which something is mounted for a while."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", *arguments, str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def full_disk(bench: Bench, name: str) -> tuple[str, str, str]:
    """A disk that is full at several moments of a job; then there is room."""
    needs = {"train": 700, "solve": 60, "predict": 5000}[name]
    seen: dict[str, int] = collections.Counter()
    with contextlib.ExitStack() as stack:
        disk = SCRATCH / f"disk-{name}"
        disk.mkdir()
        if ROOT_USER:
            size = f"size={needs * 4}k"
            stack.enter_context(mounted("-t", "tmpfs", "-o", size, "x", folder=disk))
        place = bench.place(name, "full", disk)
        for share in (0, 0.02, 0.1, 0.3, 0.6, 0.8):
            room = int(share * needs * 1024)

            def limit(room: int = room) -> None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

            ballast = disk / "ballast"
            if ROOT_USER:
                free = shutil.disk_usage(disk).free - room
                ballast.write_bytes(bytes(max(0, free)))
            before = bench.jobs[name].saved(place)
            process = bench.jobs[name].start(place, None if ROOT_USER else limit)
            ended = process.wait()
            what = f"full disk, {name}, room for {room} bytes"
            if ended.status == 0:
                seen["enough"] += 1
            else:
                sentence = bench.refused(ended, what)
                seen[shorter(sentence)] += 1
            after = bench.jobs[name].saved(place)
            bench.check(after >= before, f"{what}: {before} became {after}")
            found = bench.jobs[name].outcome(place)
            whole = bench.whole[name]
            right = all(whole[key] == value for key, value in found.items())
            bench.check(right, f"{what}: something wrong is there")
            ballast.unlink(missing_ok=True)
        bench.same(name, place, f"full disk, {name}")
    by = "tmpfs" if ROOT_USER else "limit on the size of a file"
    return f"{name}, disk full at six moments ({by})", counted(seen), "nothing"


def read_only(bench: Bench, name: str) -> tuple[str, str, str]:
    """A folder that can't be written to, before a job and in the middle of one."""
    sentences: dict[str, int] = collections.Counter()
    with contextlib.ExitStack() as stack:
        folder = SCRATCH / f"read-only-{name}"
        folder.mkdir()
        begun = bench.place(name, "begun", folder)
        bench.stopped(name, begun)
        if ROOT_USER:
            with mounted("--bind", str(folder), folder=folder):
                remount = ["mount", "-o", "remount,ro,bind", str(folder)]
                subprocess.run(remount, check=True)
                ended = [bench.jobs[name].start(begun).wait()]
                new = bench.place(name, "new", folder)
                ended.append(bench.jobs[name].start(new).wait())
        else:
            for path in (folder, *folder.rglob("*")):
                path.chmod(path.stat().st_mode & ~0o222)
            stack.callback(
                lambda: [p.chmod(0o755) for p in (folder, *folder.rglob("*"))]
            )
            ended = [bench.jobs[name].start(begun).wait()]
            ended.append(bench.jobs[name].start(bench.place(name, "n", folder)).wait())
        for one in ended:
            if "nothing to do" not in one.said:
                sentences[shorter(bench.refused(one, f"read-only, {name}"))] += 1
    bench.same(name, begun, f"read-only, {name}")
    by = "a read-only bind mount" if ROOT_USER else "mode bits"
    return f"{name}, folder read-only ({by})", counted(sentences), "nothing"


# Damage.


def damages(path: Path, flips: int, rng: random.Random, cuts: int = 2) -> Iterator[str]:
    """Damages a file in each way in turn, and mends it."""
    whole = path.read_bytes()
    for _ in range(flips if whole else 0):
        content = bytearray(whole)
        content[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        yield "flipped"
    for size in (len(whole) // 2, len(whole) - 1)[: cuts if whole else 0]:
        path.write_bytes(whole[:size])
        yield "cut"
    path.write_bytes(whole)


def checkpoint_damage(bench: Bench) -> Iterator[tuple[str, str, str]]:
    """Bits of a checkpoint flipped and its files cut; then the folder is deleted."""
    rng, name = random.Random(1), "train"
    stopped = bench.place(name, "stopped")
    bench.stopped(name, stopped)
    step = steps_saved(stopped)
    inside = stopped / "checkpoints" / str(step)
    every = [one for one in sorted(inside.rglob("*")) if one.is_file()]
    arrays = max(every, key=lambda one: one.stat().st_size)
    seen: dict[str, collections.Counter[str]] = {}
    for file in every:
        for kind in damages(file, 8 if file == arrays else 1, rng, cuts=1):
            place = bench.place(name, "damaged")
            remove(place)
            shutil.copytree(stopped, place)
            ended = bench.jobs[name].start(place).wait()
            where = "its arrays" if file == arrays else "its other files"
            what = f"checkpoint, {file.relative_to(inside)}, {kind}"
            if ended.status == 0:
                right = bench.jobs[name].outcome(place) == bench.whole[name]
                bench.check(right, f"{what}: not the same")
                outcome = "not needed: the same outcome" if right else "WRONG"
            else:
                outcome = shorter(bench.refused(ended, what))
            counter = seen.setdefault(f"{where}, {kind}", collections.Counter())
            counter[outcome] += 1
    for where, counter in seen.items():
        yield f"checkpoint, {where}", counted(counter), "nothing, or see the next line"
    remove(inside)
    bench.same(name, stopped, "checkpoint deleted")
    kept = steps_saved(stopped)
    yield (
        "that checkpoint deleted, as the sentence says",
        f"goes on from the one before it; the same outcome ({kept} steps)",
        "the steps between the two, which are repeated",
    )


def told(function: Callable[[], Any]) -> list[Any]:
    """What a function in a forked process returns, as JSON."""
    ended = Process(lambda: print(json.dumps(function()))).wait()
    return json.loads(ended.said.strip().splitlines()[-1])


def bundle_damage(bench: Bench) -> Iterator[tuple[str, str, str]]:
    """Bits of a head flipped and its files cut."""
    head = SCRATCH / "head"
    shutil.copytree(SCRATCH / "whole-train" / "head", head)

    def look() -> list[Any]:
        seen = []
        for file in sorted(head.iterdir()):
            for kind in damages(file, 40, random.Random(2)):
                try:
                    bundle.load(head)
                    seen.append([file.name, kind, "loaded"])
                except ValueError as error:
                    one = "\n" not in str(error)
                    seen.append([file.name, kind, "refused" if one else "many lines"])
        return seen

    yield from by_kind(bench, "head", told(look), {"refused"})


def data_damage(bench: Bench) -> Iterator[tuple[str, str, str]]:
    """Bits of data flipped and files cut: read to train, and read to predict."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from safetensors.numpy import save_file

    with np.load(SCRATCH / "data" / "train.npz") as stored:
        x, labels = stored["embeddings"], stored["labels"]
    made = {kind: SCRATCH / f"as-{kind}" for kind in ("npz", "npy", "safetensors")}
    made["parquet"] = SCRATCH / "as-parquet"
    for folder in made.values():
        folder.mkdir()
    np.savez(made["npz"] / "train.npz", embeddings=x, labels=labels)
    np.save(made["npy"] / "train_embeddings.npy", x)
    np.save(made["npy"] / "train_labels.npy", labels)
    tensors = {"embeddings": x, "labels": labels}
    save_file(tensors, made["safetensors"] / "train.safetensors")
    table = pa.table({"embedding": list(x), "label": labels})
    pq.write_table(table, made["parquet"] / "train.parquet", write_page_checksum=True)

    def look(kind: str, folder: Path) -> list[Any]:
        config = DataConfig(f"{kind}:{folder}")
        right = fingerprint(load(config))
        file = max(folder.iterdir(), key=lambda one: one.stat().st_size)
        rows = np.concatenate([b.x for b in open_inputs(file).blocks(0, 100)])
        seen = []
        for damage in damages(file, 40, random.Random(3)):
            for way in ("to train", "to predict"):
                try:
                    if way == "to train":
                        same = fingerprint(load(config)) == right
                    else:
                        got = [b.x for b in open_inputs(file).blocks(0, 100)]
                        same = np.array_equal(np.concatenate(got), rows)
                    outcome = "the same rows" if same else "other numbers"
                except ValueError as error:
                    outcome = "refused" if "\n" not in str(error) else "many lines"
                seen.append([f"{kind} {way}", damage, outcome])
        return seen

    for kind, folder in made.items():
        fine = {"refused", "the same rows"}
        if kind in ("npy", "safetensors"):
            fine.add("other numbers")
        yield from by_kind(
            bench, "data", told(lambda k=kind, f=folder: look(k, f)), fine
        )


def by_kind(
    bench: Bench, name: str, seen: list[Any], fine: set[str]
) -> Iterator[tuple[str, str, str]]:
    """A line for each file and kind of damage."""
    groups: dict[tuple[str, str], collections.Counter[str]] = {}
    for where, kind, outcome in seen:
        groups.setdefault((where, kind), collections.Counter())[outcome] += 1
    for (where, kind), counter in groups.items():
        bench.check(set(counter) <= fine, f"{name}, {where}, {kind}: {counter}")
        lost = "nothing"
        if "other numbers" in counter:
            lost = "the format has no checksum; a run that goes on refuses them"
        yield f"{name}, {where}, {kind}", counted(counter), lost


# Clocks, two at once, signals.


def clock(bench: Bench, name: str) -> tuple[str, str, str]:
    """A clock of the day that jumps by up to 23 days between two looks."""

    def jump() -> None:
        rng, now, now_ns = random.Random(0), time.time, time.time_ns
        off = lambda: rng.uniform(-1, 1) * 1e6  # noqa: E731
        time.time = lambda: now() + off()
        time.time_ns = lambda: now_ns() + int(off() * 1e9)

    place = bench.place(name, "jumping")
    bench.stopped(name, place, before=jump)
    for path in place.rglob("*") if place.is_dir() else [bulk_files.part(place)]:
        if path.exists():
            os.utime(path, (2e9, 2e9))  # in 2033
    ended = bench.jobs[name].start(place, jump).wait()
    happened = "done"
    if ended.status:  # Orbax waits for so many seconds by this clock.
        happened = shorter(bench.refused(ended, f"clock, {name}"))
    bench.same(name, place, f"clock, {name}")
    return f"{name}, clock jumps, files are of 2033", happened, "nothing"


def two_at_once(bench: Bench, name: str) -> tuple[str, str, str]:
    """Two with the same command: twice one under way, twice begun in one moment."""
    seen: dict[str, int] = collections.Counter()
    for number in range(4):
        place = bench.place(name, f"both-{number}")
        first = bench.jobs[name].start(place)
        while number < 2 and not bench.jobs[name].under_way(place):
            time.sleep(0.002)
        second = bench.jobs[name].start(place)
        for ended in (first.wait(), second.wait()):
            if ended.status == 0:
                kind = "nothing to do" in ended.said
                seen["found it finished" if kind else "did it"] += 1
            else:
                what = f"two at once, {name}"
                seen[shorter(bench.refused(ended, what))] += 1
        bench.same(name, place, f"two at once, {name}")
    return f"{name}, two processes at once, four times", counted(seen), "nothing"


def signals(bench: Bench, name: str) -> tuple[str, str, str]:
    """SIGTERM and SIGINT."""
    seen: dict[str, int] = collections.Counter()
    for number in (signal.SIGTERM, signal.SIGINT):
        place = bench.place(name, f"stopped-by-{number.name}")
        ended = bench.stopped(name, place, number)
        clear = ended.status == 128 + number and "Traceback" not in ended.said
        bench.check(
            clear, f"{number.name}, {name}: {ended.status} {ended.said[-2000:]}"
        )
        seen[f"status {ended.status}: {shorter(ended.sentence)}"] += 1
        bench.same(name, place, f"{number.name}, {name}")
    return f"{name}, SIGTERM and SIGINT", counted(seen), "nothing"


def shorter(sentence: str) -> str:
    """A sentence without what differs from run to run."""
    import re

    text = sentence.removeprefix("error: ")
    text = re.sub(r"[\w./-]*/(?=[\w.-]+)", "", text)
    text = re.sub(r"\b\d+\b", "N", text)
    return text if len(text) < 150 else text[:147] + "..."


def counted(seen: Any) -> str:
    """How often there was what."""
    return "; ".join(f"{number} x {what}" for what, number in seen.items())


def faults(bench: Bench) -> None:
    """Prints the table of all but the kills."""
    print("| fault | what happened | lost |\n|---|---|---|")

    def lines() -> Iterator[tuple[str, str, str]]:
        for one in (signals, two_at_once, full_disk, read_only, clock):
            for name in bench.jobs:
                yield one(bench, name)
        yield from checkpoint_damage(bench)
        yield from bundle_damage(bench)
        yield from data_damage(bench)

    for line in lines():
        print(f"| {' | '.join(one.replace('|', '/') for one in line)} |", flush=True)


def main() -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ("train", "solve", "predict", "files", "all")
    parser.add_argument("what", nargs="?", choices=names, default="all")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        bench = Bench()
        wanted = names[:4] if options.what == "all" else (options.what,)
        killed = [name for name in wanted if name != "files"]
        if killed:
            print(
                "| | SIGKILL | what the next command did | wrong |\n|---|---|---|---|"
            )
        for name in killed:
            kills(bench, name, options.kills, options.seed)
        if "files" in wanted:
            faults(bench)
    finally:
        shutil.rmtree(SCRATCH, ignore_errors=True)
    print(f"\n{len(bench.wrong)} wrong")
    return 1 if bench.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
