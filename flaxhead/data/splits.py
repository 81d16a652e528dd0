"""Seeded hold-out splits: stratified by row, or whole groups at a time."""

from __future__ import annotations

import numpy as np


def holdout(
    strata: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    fraction: float,
    seed: int,
) -> np.ndarray:
    """Chooses the rows to hold out, alike in every stratum.

    Without groups, each stratum gives its share of `round(fraction * rows)` to within
    one row (largest remainders; ties at random), and keeps one row at least: a class
    of a single row stays in training. With groups, no group is cut, and the shares are
    as close as the groups allow.

    Args:
      strata: `int [rows]`, usually the classes.
      groups: `[rows]` of any type that sorts; None: every row for itself.
      fraction: share of the rows to hold out, between 0 and 1.
      seed: the same seed holds out the same rows.

    Returns:
      `bool [rows]`, True where the row is held out; never all of them, and none where
      any would empty a stratum.

    >>> held = holdout(np.repeat([0, 1], 10), fraction=0.2, seed=0)
    >>> np.bincount(np.repeat([0, 1], 10)[held]).tolist()
    [2, 2]
    """
    rng = np.random.default_rng(seed)
    _, codes = np.unique(strata, return_inverse=True)
    if groups is None:
        return _rows(codes, fraction, rng)
    return _groups(codes, np.unique(groups, return_inverse=True)[1], fraction, rng)


def _rows(codes: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    rows = len(codes)
    counts = np.bincount(codes)
    wanted = min(max(1, round(fraction * rows)), rows - 1)
    share = counts * (wanted / rows)
    quota = np.minimum(np.floor(share).astype(int), counts - 1)
    # Largest remainders get the rows still wanted, one each; shuffled first, so that
    # ties do not favour the first classes.
    order = rng.permutation(len(counts))
    order = order[np.argsort((quota - share)[order], kind="stable")]
    order = order[(quota + 1 < counts)[order]]
    quota[order[: wanted - quota.sum()]] += 1

    shuffled = rng.permutation(rows)
    by_class = shuffled[np.argsort(codes[shuffled], kind="stable")]
    start = np.cumsum(counts) - counts
    rank = np.arange(rows) - start[codes[by_class]]
    held = np.zeros(rows, bool)
    held[by_class] = rank < quota[codes[by_class]]
    return held


def _groups(
    codes: np.ndarray, groups: np.ndarray, fraction: float, rng: np.random.Generator
) -> np.ndarray:
    """Takes groups in random order, each that brings the shares nearer to the target.

    Nearer is a smaller sum over classes of `(held - target)^2 / rows of the class`.
    """
    totals = np.bincount(codes)
    target = fraction * totals
    # How many rows of which class each group has, sparsely: most groups have few.
    pairs, sizes = np.unique(groups * len(totals) + codes, return_counts=True)
    owner, classes = np.divmod(pairs, len(totals))
    start = np.searchsorted(owner, np.arange(groups.max() + 2))

    held = np.zeros(len(totals))
    chosen = np.zeros(groups.max() + 1, bool)
    nearest, least = -1, np.inf
    for group in rng.permutation(len(chosen)):
        part = slice(start[group], start[group + 1])
        mine, before = classes[part], held[classes[part]]
        after = before + sizes[part]
        if (after >= totals[mine]).any():
            continue
        aim = target[mine]
        change = (((after - aim) ** 2 - (before - aim) ** 2) / totals[mine]).sum()
        if change < 0:
            held[mine] = after
            chosen[group] = True
        elif change < least:
            nearest, least = group, change
    if not chosen.any() and nearest >= 0:
        chosen[nearest] = True
    return chosen[groups]
