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
import sys
from pathlib import Path

from flaxhead import cli, flags, loop, processes
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
        help="join the job's other processes, which JAX finds, or these flags name",
    )
    for name, (value, meaning) in processes.FLAGS.items():
        parser.add_argument(f"--{name}", metavar=value, help=meaning)
    options, rest = parser.parse_known_args(arguments)
    told = {name: getattr(options, name) for name in processes.FLAGS}
    with cli.errors():
        config = flags.override(flags.load(options.config), rest)
        if options.multihost or any(told.values()):
            processes.join(options.workdir, told)
        cli.cache_compilations()
        fresh = options.workdir is None
        workdir = _new_folder(Path(options.config).stem) if fresh else options.workdir
    with processes.watched(workdir, cli.errors(), together=loop.Interrupted):
        first = processes.first()
        result = loop.run(config, workdir, display=display() if first else None)
        if first:
            print(cli.summary(result, workdir))
    return 0


def _new_folder(name: str) -> Path:
    numbered = (Path("runs") / f"{name}-{i:03d}" for i in itertools.count(1))
    return next(path for path in numbered if not path.exists())


if __name__ == "__main__":
    sys.exit(main())
