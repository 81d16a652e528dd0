"""Rows -> folds, and rows -> few-shot subsets: seeded cuts that become row weights.

A cut is an array of fold numbers, `int32 [rows]`. Fold `i` is held out by lane `i` of
one program: `lane_weights` makes the training weights of all lanes. A row that is
unlabelled (label -1, or all of its entries missing) or that `where` leaves out has the
number -1, as if it had been deleted before the cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flaxhead.data.checks import choice
from flaxhead.data.hashes import row_hashes
from flaxhead.data.labels import SOFT_TOLERANCE, unlabelled


def k_fold(
    labels: Any, *, folds: int, seed: int, groups: Any = None, where: Any = None
) -> np.ndarray:
    """Cuts the rows at random into folds whose sizes differ by one at most.

    Args:
      labels: `int [rows]` class numbers (-1: unlabelled), or `[rows, classes]`.
      folds: how many, 2 or more.
      seed: the same seed cuts alike.
      groups: must be None; `grouped` keeps groups together.
      where: `bool [rows]`, False where the row is absent; None: all are present.

    Returns:
      `int32 [rows]` fold numbers, -1 for rows that are absent or unlabelled.

    Raises:
      ValueError: for wrong shapes or types, more folds than rows, or groups.

    >>> sorted(np.bincount(k_fold(np.zeros(10, int), folds=3, seed=0)).tolist())
    [3, 3, 4]
    """
    _no_groups("k_fold", groups)
    _, present = _read(labels, where)
    alike = np.zeros(int(present.sum()), np.int64)
    return _place(_deal(alike, folds=folds, seed=seed), present)


def stratified(
    labels: Any,
    *,
    folds: int,
    seed: int,
    groups: Any = None,
    where: Any = None,
    keys: Any = None,
) -> np.ndarray:
    """Cuts the rows so that every fold has its share of every class.

    The rows are sorted by class, shuffled within, and dealt out like cards. So the
    rows of a class, and the sizes of the folds, differ by one at most between folds. A
    class of fewer rows than folds is missing from some folds, and a class of a single
    row is missing from training in the lane that holds it out.

    A soft label counts as its largest entry. Several labels a row are sorted by the
    rarest class first, then by the next: the rarest class differs by one at most,
    the others nearly so.

    Args:
      labels: as for `k_fold`; rows of a matrix that all sum to 1 are soft labels.
      folds: how many, 2 or more.
      seed: the same seed cuts alike.
      groups: must be None; `grouped` keeps groups together.
      where: as for `k_fold`.
      keys: `int [rows]`, who a row is (`row_keys`); None: each is another. Rows of one
        key share a fold and count once, and the cut depends on the set of keys and
        their labels only: not on the order of rows, nor on how often one is repeated.
        So a row of weight 2 is cut like the row twice. A key with several labels
        counts as the smallest.

    Returns:
      `int32 [rows]` fold numbers, -1 for rows that are absent or unlabelled.

    Raises:
      ValueError: for wrong shapes or types, more folds than rows or keys, or groups.

    >>> labels = np.repeat([0, 1], [6, 3])
    >>> fold = stratified(labels, folds=3, seed=0)
    >>> np.bincount(fold[labels == 0]).tolist(), np.bincount(fold[labels == 1]).tolist()
    ([2, 2, 2], [1, 1, 1])

    Source: the same counts as scikit-learn's `StratifiedKFold`.
    """
    _no_groups("stratified", groups)
    classes, present = _read(labels, where)
    classes = classes[present]
    if keys is None:
        return _place(_deal(_strata(classes), folds=folds, seed=seed), present)
    keys = _per_row("keys", keys, len(present))
    if not np.issubdtype(keys.dtype, np.integer):
        raise ValueError(
            f"keys: expected integers, got {keys.dtype}; row_keys makes some."
        )
    # One row for each key, in the order of keys, whatever the order of rows.
    order = np.lexsort((_ranks(classes), keys[present]))
    _, first, member = np.unique(
        keys[present][order], return_index=True, return_inverse=True
    )
    fold = np.empty(len(order), np.int32)
    dealt = _deal(_strata(classes[order[first]]), folds=folds, seed=seed)
    fold[order] = dealt[member]
    return _place(fold, present)


def grouped(
    labels: Any, *, folds: int, seed: int, groups: Any = None, where: Any = None
) -> np.ndarray:
    """Cuts whole groups, as balanced and as stratified as the groups allow.

    From the largest group to the smallest (ties at random), each goes to the fold that
    has the least of what the group brings: of its rows, and of each of its classes, as
    shares of all. This is the step that adds least to the sum over folds and classes
    of `(rows of the class in the fold)^2 / rows of the class`.

    Args:
      labels: as for `stratified`.
      folds: how many, 2 or more.
      seed: the same seed cuts alike.
      groups: `[rows]` of any type that sorts.
      where: as for `k_fold`.

    Returns:
      `int32 [rows]` fold numbers, none of them empty, -1 for rows that are absent or
      unlabelled.

    Raises:
      ValueError: for wrong shapes or types, more folds than groups, or no groups.

    >>> fold = grouped(
    ...     [0, 0, 1, 0, 1, 1], folds=2, seed=0, groups=["a", "a", "a", "b", "b", "b"]
    ... )
    >>> bool(fold[0] == fold[1] == fold[2] != fold[3] == fold[4] == fold[5])
    True
    """
    classes, present = _read(labels, where)
    groups = _groups("grouped", groups, len(present))
    names, member = np.unique(groups[present], return_inverse=True)
    _enough("groups", len(names), folds)

    # How many rows of which class each group has, sparsely; all rows are a class too.
    row, label = _members(classes[present])
    size = int(label.max(initial=-1)) + 2
    row = np.concatenate([row, np.arange(len(member))])
    label = np.concatenate([label, np.full(len(member), size - 1)])
    totals = np.bincount(label, minlength=size)
    pairs, counts = np.unique(member[row] * size + label, return_counts=True)
    owner, label = np.divmod(pairs, size)
    start = np.searchsorted(owner, np.arange(len(names) + 1))

    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-np.bincount(member)[order], kind="stable")]
    held = np.zeros((folds, size))
    fold = np.empty(len(names), np.int32)
    for group in order:
        part = slice(start[group], start[group + 1])
        shares = counts[part] / totals[label[part]]
        fold[group] = (held[:, label[part]] @ shares).argmin()
        held[fold[group], label[part]] += counts[part]
    return _place(fold[member], present)


def leave_one_group_out(
    labels: Any,
    *,
    folds: int | None = None,
    seed: int = 0,
    groups: Any = None,
    where: Any = None,
) -> np.ndarray:
    """Makes every group a fold, numbered in the sorted order of the groups.

    Args:
      labels: as for `k_fold`.
      folds: ignored: the groups say how many.
      seed: ignored: nothing is random.
      groups: `[rows]` of any type that sorts.
      where: as for `k_fold`.

    Returns:
      `int32 [rows]` fold numbers, -1 for rows that are absent or unlabelled.

    Raises:
      ValueError: for wrong shapes, fewer than two groups, or no groups.

    >>> leave_one_group_out([0, 1, 0], groups=["b", "a", "b"]).tolist()
    [1, 0, 1]
    """
    return _numbered("leave_one_group_out", labels, groups, where)[1]


def given(
    labels: Any,
    *,
    folds: int | None = None,
    seed: int = 0,
    groups: Any = None,
    where: Any = None,
) -> np.ndarray:
    """Takes folds that were made elsewhere, checked.

    Args:
      labels: as for `k_fold`.
      folds: ignored: what is given says how many.
      seed: ignored: nothing is random.
      groups: `[rows]`, the fold of each row: numbers `0, 1, ...` without a gap, which
        stay as they are, or names, which are numbered in sorted order.
      where: as for `k_fold`.

    Returns:
      `int32 [rows]` fold numbers, -1 for rows that are absent or unlabelled.

    Raises:
      ValueError: for wrong shapes, fewer than two folds, or numbers with a gap.

    >>> given([0, 1, -1, 1], groups=[1, 0, 0, 1]).tolist()
    [1, 0, -1, 1]
    """
    names, fold = _numbered("given", labels, groups, where)
    numbers = np.issubdtype(names.dtype, np.integer)
    if numbers and names.tolist() != list(range(len(names))):
        raise ValueError(
            f"groups: expected fold numbers 0, 1, ... without a gap in the labelled "
            f"rows, got {_shown(names.tolist())}; leave rows out with where."
        )
    return fold


FOLDS: dict[str, Callable[..., np.ndarray]] = {
    "k_fold": k_fold,
    "stratified": stratified,
    "grouped": grouped,
    "leave_one_group_out": leave_one_group_out,
    "given": given,
}


def row_keys(x: Any, labels: Any) -> np.ndarray:
    """Returns `uint64 [rows]`, equal where embedding and label are both the same.

    Args:
      x: `[rows, ...]`, compared byte for byte.
      labels: `[rows]` or `[rows, classes]`, compared by value.

    >>> first, again, other = row_keys(np.zeros((3, 2)), np.array([0, 0, 1]))
    >>> bool(first == again), bool(first == other)
    (True, False)
    """
    values = np.asarray(labels, np.float64)
    _per_row("x", x, len(values), any_shape=True)
    return row_hashes(np.stack([row_hashes(x), row_hashes(values)], axis=1))


def lane_weights(fold: Any, folds: int, *, refit: bool) -> np.ndarray:
    """Training weights of all lanes: lane `i` trains without the rows of fold `i`.

    A row of number -1 is absent from every lane. One of number `folds` or more is never
    held out and trains in every lane: with `folds=1`, a fixed validation split is 0 for
    its rows and 1 for the training rows.

    Args:
      fold: `int [rows]`, from a function of `FOLDS`.
      folds: how many folds are held out, one a lane.
      refit: whether one more lane, the last, trains on every row that is present.

    Returns:
      `float32 [rows, lanes]` of 0 and 1, to multiply the rows' own weights.

    Raises:
      ValueError: where `fold` isn't one integer of -1 or more a row, or a fold has no
        row to hold out.

    >>> lane_weights([0, 1, -1], 2, refit=True).tolist()
    [[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    """
    fold = np.asarray(fold)
    if fold.ndim != 1 or not np.issubdtype(fold.dtype, np.integer):
        raise ValueError(
            f"fold: expected integers, one a row, got {fold.dtype} {list(fold.shape)}."
        )
    if fold.min(initial=0) < -1:
        raise ValueError(f"fold: expected numbers of -1 or more, got {fold.min()}.")
    empty = np.setdiff1d(np.arange(folds), fold)
    if len(empty) or folds < 1:
        raise ValueError(
            f"folds: expected one or more, each with a row to hold out, got {folds}, "
            f"and no row of fold {_shown(empty.tolist()) or 0}."
        )
    trains = fold[:, None] != np.arange(folds)
    if refit:
        trains = np.pad(trains, ((0, 0), (0, 1)), constant_values=True)
    return (trains & (fold >= 0)[:, None]).astype(np.float32)


def shots(
    labels: Any,
    *,
    k: int,
    repeat: int,
    seed: int,
    where: Any = None,
    short: str = "error",
) -> np.ndarray:
    """Draws a subset with `k` labelled rows of every class.

    The draws of one repeat are nested: that of a larger `k` contains that of a smaller
    one. With several labels a row, rows are added to the rarest class first until
    every class has `k` positive rows, so that common classes may have more.

    Args:
      labels: as for `stratified`. A class that only absent rows have is a class too.
      k: rows a class, 1 or more.
      repeat: number of the draw, 0 or more; others are independent of it.
      seed: the same seed draws alike.
      where: `bool [rows]`, the rows to draw from; None: all.
      short: what a class of fewer than `k` rows does: `error`, or `all` to take all
        that it has; `short_classes` lists them.

    Returns:
      `bool [rows]`, True where the row is drawn.

    Raises:
      ValueError: for wrong shapes or types, or a class of fewer than `k` rows.

    >>> labels = np.repeat([0, 1], 50)
    >>> few, more = (shots(labels, k=k, repeat=0, seed=0) for k in (5, 25))
    >>> np.bincount(labels[few]).tolist(), bool(more[few].all())
    ([5, 5], True)
    """
    choice("short", short, ("error", "all"))
    lacking = short_classes(labels, k=k, where=where)
    if lacking and short == "error":
        told = _shown([f"class {c} has {n}" for c, n in lacking.items()])
        raise ValueError(
            f"k: expected {k} or more rows of every class, but {told}: take a smaller "
            f"k, or short='all'."
        )
    classes, present = _read(labels, where)
    row, label = _members(classes[present])
    # The rows of each class, in one random order of all rows.
    drawn = np.zeros(int(present.sum()), bool)
    rank = np.random.default_rng([seed, repeat]).permutation(len(drawn))
    counts = np.bincount(label)
    queues = np.split(row[np.lexsort((rank[row], label))], np.cumsum(counts)[:-1])
    # One shot more at a time: a draw doesn't know how many shots will follow.
    for shot in range(1, k + 1):
        for number in np.argsort(counts, kind="stable"):
            queue = queues[number]
            if drawn[queue].sum() < shot:
                drawn[queue[~drawn[queue]][:1]] = True
    chosen = np.zeros(len(present), bool)
    chosen[present] = drawn
    return chosen


def short_classes(labels: Any, *, k: int, where: Any = None) -> dict[int, int]:
    """Returns how many rows each class has that has fewer than `k`.

    Args:
      labels: as for `shots`.
      k: rows that every class should have, 1 or more.
      where: as for `shots`.

    >>> short_classes([0, 0, 1, 2, 2], k=2)
    {1: 1}
    """
    if k < 1:
        raise ValueError(f"k: expected 1 or more, got {k}.")
    classes, present = _read(labels, where)
    if classes.ndim == 2:
        known, counts = np.arange(classes.shape[1]), classes[present].sum(axis=0)
    else:
        known = np.unique(classes[classes >= 0])
        counts = np.bincount(classes[present], minlength=known.max(initial=-1) + 1)
        counts = counts[known]
    return {int(c): int(n) for c, n in zip(known, counts, strict=True) if n < k}


def _read(labels: Any, where: Any) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers `int [rows]` or positives `bool [rows, classes]`; who is there."""
    labels = np.asarray(labels)
    integers = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer)
    matrix = labels.ndim == 2 and labels.dtype.kind in "biuf"
    if not integers and not matrix:
        raise ValueError(
            f"labels: expected integers [rows] or a matrix [rows, classes], got "
            f"{labels.dtype} {list(labels.shape)}."
        )
    present = ~unlabelled(labels)
    if integers and labels.min(initial=0) < -1:
        raise ValueError(
            f"labels: expected class numbers, or -1 for unlabelled rows, got "
            f"{labels.min()}."
        )
    if matrix:
        soft = np.abs(labels[present].sum(axis=1) - 1) <= SOFT_TOLERANCE
        labels = labels.argmax(axis=1) if soft.all() else labels > 0.5
    if where is not None:
        where = _per_row("where", where, len(labels))
        if where.dtype != bool:
            raise ValueError(f"where: expected True or False a row, got {where.dtype}.")
        present = present & where
    return labels, present


def _numbered(
    name: str, labels: Any, groups: Any, where: Any
) -> tuple[np.ndarray, np.ndarray]:
    """The names of the groups, sorted, and each row's number among them."""
    _, present = _read(labels, where)
    groups = _groups(name, groups, len(present))
    names, member = np.unique(groups[present], return_inverse=True)
    if len(names) < 2:
        raise ValueError(
            f"groups: {name} needs two or more in the labelled rows, got "
            f"{_shown(names.tolist()) or 'none'}."
        )
    return names, _place(member, present)


def _members(classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs `(row, class)` in which the row is of the class."""
    if classes.ndim == 2:
        row, label = np.nonzero(classes)
        return row, label
    return np.arange(len(classes)), np.unique(classes, return_inverse=True)[1]


def _ranks(classes: np.ndarray) -> np.ndarray:
    """`int [rows]` that sort as the labels do: a matrix by its columns, the first most.

    Packed bits compare as bytes, a thousand columns as fast as one.
    """
    if classes.ndim == 1:
        return classes
    bits = np.packbits(classes, axis=1)
    rows = np.ascontiguousarray(bits).view(f"V{bits.shape[1]}").ravel()
    return np.unique(rows, return_inverse=True)[1]


def _strata(classes: np.ndarray) -> np.ndarray:
    """`int [rows]` that sort rows of like labels together, the rarest class first."""
    if classes.ndim == 2:
        classes = classes[:, np.argsort(classes.sum(axis=0), kind="stable")]
    return _ranks(classes)


def _deal(strata: np.ndarray, *, folds: int, seed: int) -> np.ndarray:
    """Sort by stratum, shuffle within, and deal: every run of cards is dealt evenly."""
    rows = len(strata)
    _enough("rows", rows, folds)
    rng = np.random.default_rng(seed)
    order = np.lexsort((rng.permutation(rows), strata))
    fold = np.empty(rows, np.int32)
    # In a random order of folds, so that none is the first to get what is left over.
    fold[order] = rng.permutation(folds)[np.arange(rows) % folds]
    return fold


def _place(fold: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Fold numbers of all rows, from those of the rows that are present."""
    placed = np.full(len(present), -1, np.int32)
    placed[present] = fold
    return placed


def _per_row(name: str, values: Any, rows: int, any_shape: bool = False) -> np.ndarray:
    values = np.asarray(values)
    if values.shape[:1] != (rows,) or (values.ndim > 1 and not any_shape):
        raise ValueError(
            f"{name}: expected one a row, [{rows}], got {list(values.shape)}."
        )
    return values


def _groups(name: str, groups: Any, rows: int) -> np.ndarray:
    if groups is None:
        raise ValueError(f"groups: {name} needs one for each row, got None.")
    return _per_row("groups", groups, rows)


def _no_groups(name: str, groups: Any) -> None:
    if groups is not None:
        raise ValueError(
            f"groups: {name} would cut groups, expected None; use grouped or "
            f"leave_one_group_out."
        )


def _enough(what: str, count: int, folds: int) -> None:
    if folds < 2:
        raise ValueError(f"folds: expected 2 or more, got {folds}.")
    if count < folds:
        raise ValueError(
            f"folds: expected at most as many as there are labelled {what}, {count}, "
            f"got {folds}; ask for fewer folds."
        )


def _shown(values: list) -> str:
    """A list in words, cut short."""
    more = f" and {len(values) - 5} more" if len(values) > 5 else ""
    return ", ".join(map(str, values[:5])) + more
