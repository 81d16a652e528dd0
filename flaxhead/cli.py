"""`flaxhead predict | evaluate | labels | plan`: heads on the command line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from flaxhead import build, bundle, flags, plan
from flaxhead.bulk import files, predict_files
from flaxhead.config import Config
from flaxhead.data import load, load_split, to_batch
from flaxhead.loop import Interrupted
from flaxhead.metrics import evaluate
from flaxhead.parallel import quiet_tpu_compiler
from flaxhead.paths import Location, write
from flaxhead.report.progress import display
from flaxhead.suspects import settings, suspects, table, told


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="flaxhead",
        description="Use a trained head (python train.py trains one), or plan a run.",
    )
    parser.add_argument(
        "--version", action="version", version=f"flaxhead {version('flaxhead')}"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    predict = commands.add_parser(
        "predict",
        help="write the predictions of a file, or of a folder of files",
        description="The same command goes on with one that was stopped.",
    )
    predict.add_argument("--head", required=True, metavar="RUN/head")
    predict.add_argument(
        "--input",
        required=True,
        metavar="PATH",
        help="npz, npy, parquet or safetensors, or a folder of one kind",
    )
    predict.add_argument(
        "--output",
        required=True,
        metavar="FILE",
        help="FILE.npy: the scores as an array; other names: a CSV",
    )
    what = predict.add_mutually_exclusive_group()
    what.add_argument(
        "--probabilities",
        action="store_true",
        help="a column a class in a CSV; an npy file has them anyway",
    )
    what.add_argument(
        "--logits", action="store_true", help="in place of probabilities (npy)"
    )
    what.add_argument(
        "--top-k",
        type=int,
        default=0,
        metavar="K",
        help="the K most probable classes of each row",
    )
    predict.add_argument(
        "--batch-size",
        type=int,
        default=0,
        metavar="ROWS",
        help="scored at once on a device; default: 4096, or fewer if they are wide",
    )
    predict.add_argument(
        "--overwrite", action="store_true", help="replace an output of other scores"
    )
    score = commands.add_parser("evaluate", help="print the scores of a split as JSON")
    score.add_argument("--head", required=True, metavar="RUN/head")
    score.add_argument(
        "--data", required=True, metavar="SOURCE", help="npz:DIR, say; as in training"
    )
    score.add_argument("--split", default="test", help="default: test")
    wrong = commands.add_parser(
        "labels",
        help="list the labels of some data that are likely wrong",
        description="Any --config.FIELD=VALUE of train.py may follow.",
    )
    wrong.add_argument(
        "--data", required=True, metavar="SOURCE", help="npz:DIR, say; as in training"
    )
    wrong.add_argument(
        "--output",
        required=True,
        metavar="FILE.csv",
        help="the suspected labels, the most suspicious first",
    )
    wrong.add_argument(
        "--heads",
        default="auto",
        metavar="NAME",
        help="that judge the rows which they were not fitted to; logistic, say; "
        "default: auto, chosen by folds",
    )
    wrong.add_argument("--overwrite", action="store_true", help="replace the output")
    need = commands.add_parser(
        "plan",
        help="print what a run needs on a TPU, or here, without running it",
        description="Any --config.FIELD=VALUE of train.py may follow.",
    )
    need.add_argument("--config", metavar="FILE.py", help="default: the defaults")
    need.add_argument(
        "--topology",
        default="local",
        metavar="NAME",
        help="v5e:4x4, say; or all; default: local, the devices of this machine",
    )
    need.add_argument(
        "--shape",
        metavar="ROWSxDIMxCLASSES[:TYPE]",
        help="of embeddings that are not at hand, 1280000x1024x1000:bfloat16, say",
    )
    need.add_argument(
        "--price", type=float, default=0.0, help="of a device an hour", metavar="NUMBER"
    )
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in ("labels", "plan"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest = rest
    with errors():
        cache_compilations()
        COMMANDS[options.command](options)
    return 0


def _predict(options: argparse.Namespace) -> None:
    scores = "logits" if options.logits else "auto"
    predict_files(
        bundle.load(options.head),
        options.input,
        options.output,
        scores="probabilities" if options.probabilities else scores,
        top_k=options.top_k,
        batch_size=options.batch_size,
        overwrite=options.overwrite,
        display=display(),
    )


def _evaluate(options: argparse.Namespace) -> None:
    head = bundle.load(options.head)
    known = head.bundle
    data = load_split(
        options.data,
        options.split,
        class_names=head.class_names,
        task=known.task,
        config=dataclasses.replace(known.data, source=options.data),
    )
    batch = to_batch(data)
    with build.in_full():
        logits = bundle.in_batches(head.logits, batch.x)
    warning = bundle.drift(batch.x, known.spec)
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    scores = evaluate(
        logits,
        batch.labels,
        batch.weights,
        class_names=head.class_names,
        output=known.output,
    )
    print(json.dumps({"split": options.split, **scores}, allow_nan=False))


def _labels(options: argparse.Namespace) -> None:
    output = Path(options.output).expanduser()
    files.check_place(output)
    if output.exists() and not options.overwrite:
        raise ValueError(
            f"output {output} is there already; name another file, or replace it with "
            "--overwrite"
        )
    config = settings(options.heads, source=options.data)
    config = flags.override(config, options.rest)
    found = suspects(config, load(config.data), display=display())
    write(output, table(found))
    print(f"{told(found)}; the list is {output}")


def _plan(options: argparse.Namespace) -> None:
    if not 0 <= options.price < math.inf:
        raise ValueError(f"--price={options.price:g}: expected a number of at least 0")
    config = flags.load(options.config) if options.config else Config()
    config = flags.override(config, options.rest)
    every = options.topology == "all"
    names = plan.TOPOLOGIES if every else (options.topology,)
    chosen = [(name, plan.topology(name)) for name in names]
    data = plan.imagine(options.shape, config) if options.shape else load(config.data)
    if every:
        print(plan.TABLE, flush=True)
    say = plan.in_line if every else plan.describe
    for name, devices in chosen:
        made = plan.plan(config, data, name=name, devices=devices)
        print(say(made, price=options.price), flush=True)


COMMANDS = {
    "predict": _predict,
    "evaluate": _evaluate,
    "labels": _labels,
    "plan": _plan,
}


@contextmanager
def errors() -> Iterator[None]:
    """Turns what a user can mend into one line on standard error and exit status 2."""
    quiet_tpu_compiler()
    _quiet_orbax()
    try:
        yield
    except Interrupted as error:
        print(error, file=sys.stderr)
        raise SystemExit(128 + error.signal) from None
    except KeyboardInterrupt:
        print("stopped before there was anything to save", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, OSError) as error:
        told = str(error)
        if isinstance(error, OSError) and error.filename:
            told = f"{error.filename} can't be used: {error.strerror}"
        # Messages of libraries may have several lines.
        print(f"error: {' '.join(told.splitlines())}", file=sys.stderr)
        raise SystemExit(2) from None


def _quiet_orbax() -> None:
    """Keeps its tracebacks from the screen: what failed is told in one sentence."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)

    def tell(one: Any) -> None:
        # What was still being written, or read, when it gave up.
        if str(one.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(one)

    sys.unraisablehook = tell


def cache_compilations() -> None:
    """Keeps compiled programs in `~/.cache/flaxhead`, unless JAX is told another place.

    `JAX_COMPILATION_CACHE_DIR` names another folder, `JAX_ENABLE_COMPILATION_CACHE=0`
    turns it off.
    """
    if not jax.config.values["jax_compilation_cache_dir"]:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "flaxhead" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def summary(result: dict[str, Any], workdir: Location) -> str:
    """The outcome of a run in a few lines."""
    won, test = result["selected"], result["test"]
    tried = {
        name: value
        for name, value in won["hyperparameters"].items()
        if len({one["hyperparameters"].get(name) for one in result["candidates"]}) > 1
    }
    chosen = ", ".join(f"{name} {value:g}" for name, value in tried.items())
    metric, timing = won["metric"], result["timing"]
    by_folds = result.get("folds", {}).get("by", "validation rows") != "validation rows"
    held = "cross-validated" if by_folds else "validation"
    lines = [
        f"{won['head']}{f' ({chosen})' if chosen else ''} won of "
        f"{len(result['candidates'])} by {held} {metric} {won['score']:.4f}"
    ]
    corrected = result.get("corrected", {})
    if metric in corrected:
        low, high = corrected[f"{metric}_ci"]
        lines.append(
            f"{metric} to expect, the choice accounted for, {corrected[metric]:.4f} "
            f"(95 % interval {low:.4f} to {high:.4f})"
        )
    if test:
        low, high = test["accuracy_ci"]
        lines.append(
            f"test accuracy {test['accuracy']:.4f} (95 % interval {low:.4f} to "
            f"{high:.4f}), nll {test['nll']:.4f}, ece {test['ece']:.4f}"
        )
    for point in result.get("learning_curve", []):
        spread = point["standard_deviation"]
        lines.append(
            f"{point['shots']} labels a class: test {metric} {point['mean']:.4f}"
            + ("" if spread is None else f", standard deviation {spread:.4f}")
        )
    lines.append(
        f"compiled in {timing['compile_seconds']:.1f} s, trained in "
        f"{timing['run_seconds']:.1f} s; the head is in {workdir}/head"
    )
    return "\n".join(lines)
