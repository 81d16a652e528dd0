r"""Trains, selects, evaluates and ships a classification head on embeddings.

    python train.py
    python train.py --config=configs/linear_probe.py --config.data.source=npz:DIR \
        --workdir=RUN

Every setting of `flaxhead/config.py` is a flag, `--config.train.batch_size=64` say.
The same command on the same --workdir goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from pathlib import Path

import jax

from flaxhead import cli, flags, loop
from flaxhead.report.progress import display


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--config=FILE.py] [--config.FIELD=VALUE ...] [options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        metavar="FILE.py",
        default=str(Path(__file__).parent / "configs" / "default.py"),
        help="a file with get_config() (default: configs/default.py)",
    )
    parser.add_argument(
        "--workdir",
        metavar="RUN",
        help="the run's folder (default: a new one in runs/)",
    )
    parser.add_argument(
        "--multihost",
        action="store_true",
        help="join the job's other processes (README.md says how they are found)",
    )
    options, rest = parser.parse_known_args(arguments)
    with cli.errors():
        config = flags.override(flags.load(options.config), rest)
        if options.multihost:
            _join(options.workdir)
        cli.cache_compilations()
        fresh = options.workdir is None
        workdir = _new_folder(Path(options.config).stem) if fresh else options.workdir
        first = jax.process_index() == 0
        result = loop.run(config, workdir, display=display() if first else None)
        if first:
            print(cli.summary(result, workdir))
    return 0


def _join(workdir: str | None) -> None:
    if not workdir:
        raise ValueError("--multihost needs a --workdir, the same for all processes")
    # JAX itself reads JAX_COORDINATOR_ADDRESS.
    told = [os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")]
    count, number = (int(text) if text else None for text in told)
    jax.distributed.initialize(num_processes=count, process_id=number)


def _new_folder(name: str) -> Path:
    numbered = (Path("runs") / f"{name}-{i:03d}" for i in itertools.count(1))
    return next(path for path in numbered if not path.exists())


if __name__ == "__main__":
    sys.exit(main())
