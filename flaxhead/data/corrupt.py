"""Training rows made harder on purpose, to see what a method is good for."""

from __future__ import annotations

import numpy as np


def mislabelled(
    labels: np.ndarray, *, share: float, classes: int, seed: int
) -> np.ndarray:
    """Gives a share of the rows another class, each other one as likely.

    Args:
      labels: `int [rows]` (negative: unlabelled, which stays so).
      share: of the labelled rows, rounded to whole rows.
      classes: how many there are, 2 or more.
      seed: the same seed mislabels alike.

    Returns:
      The labels, of which so many differ.

    >>> wrong = mislabelled(np.zeros(10, int), share=0.2, classes=3, seed=0)
    >>> int((wrong != 0).sum())
    2
    """
    rng = np.random.default_rng([seed, 0])
    labelled = np.flatnonzero(labels >= 0)
    rows = rng.permutation(labelled)[: round(share * len(labelled))]
    step = rng.integers(1, classes, size=len(rows))
    changed = labels.copy()
    changed[rows] = (labels[rows] + step) % classes
    return changed


def long_tailed(labels: np.ndarray, *, ratio: float, seed: int) -> np.ndarray:
    """Draws rows so that class sizes fall exponentially, from the largest class on.

    The class that is `i`-th by size, of `k`, keeps `largest * ratio^(-i / (k - 1))`
    rows, or all where it has fewer, and one at least.

    Args:
      labels: `int [rows]` (negative: unlabelled, all of which are kept).
      ratio: of the largest to the smallest class, 1 or more.
      seed: the same seed draws alike.

    Returns:
      `bool [rows]`, True where the row is kept.

    Source: the protocol of Cui et al., 2019, "Class-balanced loss based on effective
    number of samples".

    >>> labels = np.repeat([0, 1, 2], 100)
    >>> kept = long_tailed(labels, ratio=100.0, seed=0)
    >>> sorted(np.bincount(labels[kept]).tolist())
    [1, 10, 100]
    """
    rng = np.random.default_rng([seed, 1])
    names, counts = np.unique(labels[labels >= 0], return_counts=True)
    # Classes of one size in a random order, so that the tail isn't always the last.
    order = rng.permutation(len(names))
    order = order[np.argsort(-counts[order], kind="stable")]
    places = np.linspace(0, 1, len(names))
    sizes = np.maximum(np.round(counts.max() * ratio**-places), 1).astype(int)
    kept = labels < 0
    for name, size in zip(names[order], sizes, strict=True):
        kept[rng.permutation(np.flatnonzero(labels == name))[:size]] = True
    return kept
