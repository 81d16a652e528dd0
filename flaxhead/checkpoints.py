"""orbax behind three functions: open a folder, save into it, restore from it."""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    BestN,
    LatestN,
)

from flaxhead.base import PyTree
from flaxhead.paths import AnyPath, is_local

Manager: TypeAlias = ocp.CheckpointManager


def open_folder(path: AnyPath, *, keep: int) -> Manager:
    """Opens a folder of checkpoints, of which the last `keep` and the best stay."""

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
    return ocp.CheckpointManager(path, options=options)


def save(manager: Manager, step: int, tree: PyTree, *, score: float) -> None:
    """Saves arrays under a step number, in the background and atomically.

    Args:
      manager: from `open_folder`.
      step: the number of the checkpoint.
      tree: NumPy arrays only.
      score: what "best" goes by, larger is better.
    """
    metrics = {"score": score, "step": step}
    manager.save(step, args=ocp.args.StandardSave(tree), metrics=metrics)


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

    try:
        target = jax.tree.map(describe, target)
        tree = manager.restore(step, args=ocp.args.StandardRestore(target))
    except Exception as error:
        raise ValueError(
            f"checkpoint {manager.directory / str(step)} can't be restored "
            f"({type(error).__name__}: {''.join(str(error).splitlines()[:1])}); delete "
            "that folder to go on from the checkpoint before it"
        ) from error
    return step, tree
