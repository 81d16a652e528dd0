"""orbax behind three functions: open a folder, save into it, restore from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    BestN,
    LatestN,
)

from flaxhead.base import PyTree
from flaxhead.data.hashes import of_arrays
from flaxhead.paths import AnyPath, is_local

Manager: TypeAlias = ocp.CheckpointManager


def open_folder(path: AnyPath, *, keep: int) -> Manager:
    """Opens a folder of checkpoints, of which the last `keep` and the best stay.

    Raises:
      ValueError: it can't be read or written to.
    """

    def rank(metrics: dict[str, float]) -> Any:
        # Of equal ones the first: that is where the best was found.
        return metrics["score"], -metrics["step"]

    options = ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy(
            [LatestN(keep), BestN(get_metric_fn=rank, n=1)]
        ),
        best_fn=rank,  # without one, orbax doesn't write the metrics
        enable_async_checkpointing=True,
        cleanup_tmp_directories=True,
    )
    path = path.absolute() if is_local(path) else path
    advice = "delete the folder of the damaged one to go on without it"
    with _told(f"the checkpoints in {path} can't be used", advice):
        return ocp.CheckpointManager(path, options=options)


def save(manager: Manager, step: int, tree: PyTree, *, score: float) -> None:
    """Saves arrays under a step number, in the background and atomically.

    Args:
      manager: from `open_folder`.
      step: the number of the checkpoint.
      tree: NumPy arrays only.
      score: what "best" goes by, larger is better.

    Raises:
      ValueError: it can't be written, or the one before it couldn't.
    """
    metrics = {"score": score, "step": step, "sha256": of_arrays(jax.tree.leaves(tree))}
    with _told(f"a checkpoint can't be written to {manager.directory}"):
        manager.save(step, args=ocp.args.StandardSave(tree), metrics=metrics)


def close(manager: Manager) -> None:
    """Waits until all is written.

    Raises:
      ValueError: it can't be written.
    """
    with _told(f"a checkpoint can't be written to {manager.directory}"):
        manager.wait_until_finished()
        manager.close()


def restore(manager: Manager, target: PyTree) -> tuple[int, PyTree] | None:
    """Restores the latest checkpoint into a target of the same structure.

    Args:
      manager: from `open_folder`.
      target: arrays (or their shapes and types) as they were saved.

    Returns:
      `(step, tree)` of NumPy arrays, or None where there is no checkpoint.

    Raises:
      ValueError: the checkpoint can't be read, or holds something else.
    """
    step = manager.latest_step()
    if step is None:
        return None

    def describe(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)

    advice = "delete that folder to go on from the checkpoint before it"
    with _told(f"checkpoint {manager.directory / str(step)} can't be restored", advice):
        target = jax.tree.map(describe, target)
        tree = manager.restore(step, args=ocp.args.StandardRestore(target))
        # Orbax has no checksum of the arrays.
        known = manager.metrics(step) or {}
        if known.get("sha256") != of_arrays(jax.tree.leaves(tree)):
            raise ValueError("its arrays are not those of its checksum")
    return step, tree


@contextmanager
def _told(what: str, advice: str = "") -> Iterator[None]:
    """Turns whatever orbax raises into one sentence."""
    try:
        yield
    except Exception as error:
        first = "".join(str(error).splitlines()[:1])
        raise ValueError(
            f"{what} ({type(error).__name__}: {first})" + (advice and f"; {advice}")
        ) from error
