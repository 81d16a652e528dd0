"""Sources or arrays -> a `Dataset`: checked, labels named alike, three splits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from flaxhead import processes
from flaxhead.config import DataConfig
from flaxhead.data import checks, labels, sources
from flaxhead.data.corrupt import long_tailed, mislabelled
from flaxhead.data.hashes import row_hashes
from flaxhead.data.records import FIELDS, Dataset, Embeddings, Raw, take
from flaxhead.data.scan import Tick, check_same, scan
from flaxhead.data.splits import holdout
from flaxhead.data.stored import Stored, fetch

SPLITS = ("train", "val", "test")
RESIDENCIES = ("auto", "replicated", "sharded", "streamed")


def load(config: DataConfig, *, tick: Tick | None = None) -> Dataset:
    """Reads the source that `config` names, and splits off what it lacks.

    A missing `test` is `test_fraction` of the training rows, a missing `val` then
    `val_fraction` of what remains; both are stratified, seeded, keep groups whole, and
    are recorded in the notes. Other splits of the source are recorded and not read.
    With `residency` of `streamed` the training embeddings are read through once and
    stay on the disk, as `Stored`; so do those of another split that is larger than
    `window_bytes`. With `sharded` those of train do, where files can be read in parts.

    Args:
      config: which source, and how to read it.
      tick: `(rows done, rows)`, called while embeddings that stay there are read.

    Raises:
      ValueError: for anything in the data that training could not use as it is.

    >>> data = load(DataConfig(source="sklearn:wine"))
    >>> data.train.x.shape, data.val.x.shape, data.test.x.shape
    ((114, 13), (28, 13), (36, 13))
    >>> data.class_names, data.task
    (('class_0', 'class_1', 'class_2'), 'multiclass')
    """
    return _load(config, class_names=None, task=config.task, tick=tick)


def measure(config: DataConfig) -> int | None:
    """Bytes of the training embeddings, unread; None of a source that isn't streamed.

    Raises:
      ValueError: as `load`, of what is to be streamed and can't be.
    """
    reader, found = sources.find(config.source)
    if "train" not in found or reader.stored is None:
        return None
    return reader.stored(found["train"], config).nbytes


def arrays(
    train: Mapping[str, Any] | Raw,
    *,
    val: Mapping[str, Any] | Raw | None = None,
    test: Mapping[str, Any] | Raw | None = None,
    config: DataConfig | None = None,
) -> Dataset:
    """Makes a dataset of arrays in memory, under the rules of `load`.

    Args:
      train: `embeddings` and `labels`, and optionally `mask`, `weights`, `groups`,
        `ids` and `class_names`, as in an npz file.
      val: the same for the rows to choose by; None: split off train.
      test: the same for the rows to report; None: split off train.
      config: fractions, seed and what to do with bad rows; its source is not read.

    Raises:
      ValueError: as `load`.

    >>> x = np.eye(20, dtype=np.float16)
    >>> data = arrays({"embeddings": x, "labels": ["ant", "bee"] * 10})
    >>> data.class_names, data.train.x.dtype, data.notes["rows"]
    (('ant', 'bee'), dtype('float16'), {'train': 13, 'val': 3, 'test': 4})
    """
    config = config or DataConfig()
    given = {"train": train, "val": val, "test": test}
    for split, own in given.items():
        if not isinstance(own, Mapping | Raw | None):
            raise ValueError(
                f"{split} is a {type(own).__name__}; expected a dict of arrays, such "
                'as {"embeddings": x, "labels": y}'
            )
    raws = {s: _raw(fields, s) for s, fields in given.items() if fields is not None}
    return _compose(raws, config=config, class_names=None, task=config.task)


def load_split(
    source: str,
    split: str,
    *,
    class_names: tuple[str, ...],
    task: str,
    config: DataConfig,
) -> Embeddings:
    """Reads one split for a head that is already trained, labels by its class names.

    A split that `load` would split off (and a `train` that it would split) is the same
    rows here, given the same seed and fractions. Labels map by name; integers without
    class names in their file are names where all of the head's class names are whole
    numbers, and else positions.

    Args:
      source: as `DataConfig.source`.
      split: `train`, `val`, `test`, or another one that the source has.
      class_names: the head's classes, in order.
      task: the head's task.
      config: all but its source and task.

    Raises:
      ValueError: as `load`, and where there is no such split.

    >>> iris = ("versicolor", "setosa", "virginica")
    >>> data = load_split("sklearn:iris", "test", class_names=iris, task="multiclass",
    ...                   config=DataConfig())
    >>> data.x.shape, data.labels.dtype
    ((30, 4), dtype('int32'))
    """
    reader, found = sources.find(source)
    split = sources.ALIASES.get(split, split)
    given = set(SPLITS).intersection(found)
    # `load` splits this off train, or something else off this one.
    cut = split not in found if split != "train" else len(given) < len(SPLITS)
    if "train" in found and split in SPLITS and cut:
        config = dataclasses.replace(config, source=source)
        whole = _load(config, class_names=class_names, task=task)
        return getattr(whole, split)
    if split not in found:
        raise ValueError(
            f"{source}: there is no split {split!r}, expected one of "
            f"{', '.join(found)}{checks.nearest(split, found)}"
        )
    _settings(config)
    raw = _read(reader, found[split], config)
    files, _ = _settle({split: raw}, class_names, task)
    values, extra = labels.rename(files[split], class_names, raw.where)
    data = _embeddings(raw, values, views=config.views)
    data = _leave_out(data, raw.where, extra, config)[0]._replace(views=None)
    return _read_through(data, split, raw.where, config, None)


def _load(
    config: DataConfig,
    *,
    class_names: tuple[str, ...] | None,
    task: str,
    tick: Tick | None = None,
) -> Dataset:
    reader, found = sources.find(config.source)
    if "train" not in found:
        raise ValueError(
            f"{config.source}: there is no split 'train' among {', '.join(found)}, "
            f"expected one{checks.nearest('train', found)}"
        )
    raws = {s: _read(reader, found[s], config) for s in SPLITS if s in found}
    data = _compose(raws, config=config, class_names=class_names, task=task, tick=tick)
    others = sorted(set(found) - set(SPLITS))
    return data._replace(notes={**data.notes, "other_splits": others})


def _read(reader: sources.Source, handle: Any, config: DataConfig) -> Raw:
    """Reads a split; what is to be sharded, and can't be left on the disk, whole."""
    if config.residency == "sharded" and not_streamed(config):
        config = dataclasses.replace(config, residency="replicated")
    return sources.read(reader, handle, config)


def _raw(fields: Mapping[str, Any] | Raw, where: str) -> Raw:
    """Returns the arrays of one split, called `where` in messages."""
    if isinstance(fields, Raw):
        return fields._replace(where=where)
    checks.known_fields(fields, FIELDS, where)
    if "embeddings" not in fields:
        raise ValueError(f"{where}: there are no embeddings, expected an array")
    return Raw(**fields, where=where)


def not_streamed(config: DataConfig) -> str:
    """Returns the setting by which embeddings can't stay on the disk, or ""."""
    settings = {
        "data.views": config.views,
        "data.invalid_rows 'drop'": config.invalid_rows == "drop",
        "data.unlabelled 'keep'": config.unlabelled == "keep",
        "a source in a bucket": "://" in config.source,
    }
    return next((name for name, is_set in settings.items() if is_set), "")


def _settings(config: DataConfig) -> None:
    """Raises a ValueError for a setting that is none of the possible ones."""
    checks.choice("data.task", config.task, ("auto", "multiclass", "multilabel"))
    checks.choice("data.invalid_rows", config.invalid_rows, ("error", "drop"))
    checks.choice("data.unlabelled", config.unlabelled, ("error", "drop", "keep"))
    checks.choice("data.residency", config.residency, RESIDENCIES)
    if config.residency == "streamed" and (reason := not_streamed(config)):
        raise ValueError(
            f"data.residency is 'streamed', but {reason} needs all rows in memory; "
            "leave one out"
        )
    for name in ("val_fraction", "test_fraction"):
        value = getattr(config, name)
        if not 0 <= value < 1:
            raise ValueError(
                f"data.{name} is {value}, expected at least 0 (none) and below 1"
            )
    if not 0 <= config.label_noise < 1:
        raise ValueError(
            f"data.label_noise is {config.label_noise}, expected a share from 0 (none)"
            " to below 1"
        )
    if config.imbalance and not 1 <= config.imbalance < np.inf:
        raise ValueError(
            f"data.imbalance is {config.imbalance}, expected a ratio of 1 or more, or 0"
            " for all rows"
        )
    if config.seed < 0:
        raise ValueError(f"data.seed is {config.seed}, expected 0 or more")


def _compose(
    raws: dict[str, Raw],
    *,
    config: DataConfig,
    class_names: tuple[str, ...] | None,
    task: str,
    tick: Tick | None = None,
) -> Dataset:
    """Checks and maps what is given, `train` first, and splits off what is not."""
    _settings(config)
    origin = raws["train"].where
    files, task = _settle(raws, class_names, task)
    names = class_names or _own_names(raws["train"]) or files["train"].names

    splits: dict[str, Embeddings] = {}
    unlabelled: Embeddings | None = None
    dropped: dict[str, dict[str, list]] = {}
    unseen: dict[str, dict[str, int]] = {}
    for split, raw in raws.items():
        values, extra = labels.rename(files[split], names, raw.where)
        if split == "train":
            _refuse_unnamed(extra, names, raw.where)
        elif task == "multiclass":
            extra |= _without_training(values, splits["train"].labels, names)
        data = _embeddings(raw, values, views=config.views)
        if config.views:
            data = _views_alike(data, splits.get("train"), raw.where, origin)
        if split == "train" and config.unlabelled == "keep":
            data, unlabelled = _set_apart(data, raw.where, config)
        splits[split], dropped[split] = _leave_out(data, raw.where, extra, config)
        unseen[split] = {name: int(rows.sum()) for name, rows in extra.items()}
        _alike(splits, split, raw.where, origin)
    if task == "multiclass" and class_names is None:
        labels.one_class(splits["train"].labels, names, origin)

    split_off = {}
    for split in ("test", "val"):
        if split not in splits:
            split_off[split] = _split_off(splits, split, config, origin)
    corrupted = _corrupt(splits, len(names), task, config)
    for split, data in splits.items():
        where = raws[split].where if split in raws else origin
        splits[split] = _read_through(data, split, where, config, tick)
    given = {split: raw.ignored for split, raw in raws.items() if raw.ignored}
    notes = {
        "split_off": split_off,
        "dropped": {split: ids for split, ids in dropped.items() if ids},
        "unseen_classes": {split: n for split, n in unseen.items() if n},
        "ignored_fields": {split: list(fields) for split, fields in given.items()},
        **corrupted,
        **_statistics(splits, names, task),
    }
    if unlabelled is not None:
        notes["unlabelled_rows"] = len(unlabelled.labels)
    train, val, test = (splits[split] for split in SPLITS)
    if train.views is not None:
        notes["views"] = train.views.shape[1]
        test = test._replace(views=None)  # Nothing is trained on them.
    return Dataset(train, val, test, names, task, notes, unlabelled)


def _own_names(raw: Raw) -> tuple[str, ...] | None:
    if raw.class_names is None:
        return None
    return labels.class_names(raw.class_names, raw.where)


def _settle(
    raws: dict[str, Raw], class_names: tuple[str, ...] | None, task: str
) -> tuple[dict[str, labels.Named], str]:
    """Returns the labels of each file by its class names, and the task.

    A file without class names goes by those of train, or of the head. Should these be
    whole numbers, though, then its integers are names and not positions: of the classes
    0, 2 and 5 the label 2 means the second.
    """
    shared = class_names
    if "train" in raws:
        shared = _own_names(raws["train"]) or class_names
    if shared and all(name.isdecimal() for name in shared):
        shared = None
    files = {
        raw.where: labels.named(raw.labels, _own_names(raw) or shared, raw.where)
        for raw in raws.values()
    }
    task = labels.detect(files, task)
    files = labels.settle(files, task)
    return {split: files[raw.where] for split, raw in raws.items()}, task


def _refuse_unnamed(
    extra: dict[str, np.ndarray], names: tuple[str, ...], where: str
) -> None:
    """Raises a ValueError where rows to train on have a class without a name."""
    for name, rows in extra.items():
        raise ValueError(
            f"{where}: label {name!r} is not among the {len(names)} class names, in "
            f"{checks.listing(rows)}; expected a name of class_names"
            f"{checks.nearest(name, names)}"
        )


def _without_training(
    values: np.ndarray, train: np.ndarray, names: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Returns the rows of each class that has a name and no row to train on."""
    absent = np.flatnonzero(labels.support(train, len(names)) == 0)
    if values.ndim == 1:
        rows = {names[i]: values == i for i in absent}
    else:
        rows = {names[i]: values[:, i] > 0 for i in absent}
    return {name: those for name, those in rows.items() if those.any()}


def _embeddings(
    raw: Raw, values: np.ndarray | None, *, views: bool = False
) -> Embeddings:
    """Checks the arrays of one split; its labels are `values` by now, or none."""
    where = raw.where
    x: Any = raw.embeddings
    if isinstance(x, Stored):
        checks.rank(x.shape, where)
    else:
        x = checks.embeddings(x, where)
    rows = len(x)
    several: Any = x if views and x.ndim == 3 else None
    if views and raw.mask is not None:
        raise ValueError(
            f"{where}: a mask came with data.views=True, but a mask is of tokens, and "
            "these are views of a row; leave the mask out, or set data.views=False"
        )
    x = x if several is None else several[:, 0]
    if values is None:
        values = np.full(rows, labels.UNLABELLED, np.int32)
    checks.length(values, rows, "labels", where)
    weights, mask, groups, ids = raw.weights, raw.mask, raw.groups, raw.ids
    return Embeddings(
        x,
        values,
        np.ones(rows, np.float32)
        if weights is None
        else checks.weights(weights, rows, where),
        None if mask is None else checks.mask(mask, x, where),
        None if groups is None else checks.keys(groups, rows, "groups", where),
        np.arange(rows) if ids is None else checks.keys(ids, rows, "ids", where),
        several,
    )


def _views_alike(
    data: Embeddings, train: Embeddings | None, where: str, origin: str
) -> Embeddings:
    """Checks how many views a split has; a row without is the same in all of them."""
    if train is None or train.views is None:
        if data.views is None:
            raise ValueError(
                f"{where}: embeddings have shape {list(data.x.shape)}, but data.views "
                "is True; expected [rows, views, dim]"
            )
        return data
    count = train.views.shape[1]
    if data.views is None:
        same = (len(data.x), count, data.x.shape[-1])
        return data._replace(views=np.broadcast_to(data.x[:, None], same))
    if data.views.shape[1] != count:
        raise ValueError(
            f"{where}: embeddings have shape {list(data.views.shape)} and those of "
            f"{origin} {count} views; expected as many, or [rows, dim]"
        )
    return data


def _finite(data: Embeddings, where: str, config: DataConfig) -> np.ndarray:
    """Returns `bool [rows]`, True where a row is finite; others raise, or are left."""
    if isinstance(data.x, Stored):
        return np.ones(len(data.x), bool)  # `_read_through` looks
    finite = checks.finite(data.x if data.views is None else data.views)
    if not finite.all() and config.invalid_rows == "error":
        raise ValueError(
            f"{where}: embeddings are NaN or infinite in {checks.listing(~finite)}, "
            "expected finite numbers; set data.invalid_rows=drop to leave them out"
        )
    if not finite.any():
        raise ValueError(f"{where}: no row of the embeddings is finite")
    return finite


def _leave_out(
    data: Embeddings, where: str, extra: dict[str, np.ndarray], config: DataConfig
) -> tuple[Embeddings, dict[str, list]]:
    """Leaves out rows that cannot be used, if the settings allow it, with their ids.

    `extra` has the rows of each class that training lacks.
    """
    finite = _finite(data, where, config)
    blank = labels.unlabelled(data.labels)
    if blank.any() and config.unlabelled == "error":
        remedy = "set data.unlabelled=drop to leave them out, or keep for"
        if config.source == "arrays":
            remedy = "leave these rows out, or choose"
        raise ValueError(
            f"{where}: labels are -1 or empty, which means unlabelled, in "
            f"{checks.listing(blank)}, expected a class; {remedy} semi-supervised heads"
        )
    unseen = np.zeros(len(data.x), bool)
    for rows in extra.values():
        unseen |= rows
    if extra and not config.allow_unseen:
        counts = [f"{name!r}: {rows.sum()}" for name, rows in extra.items()]
        raise ValueError(
            f"{where}: classes that training lacks ({', '.join(counts[:8])}) are in "
            f"{checks.listing(unseen)}, expected classes with rows in train; set "
            "data.allow_unseen=True to leave them out and report them apart"
        )
    kept = finite & ~blank & ~unseen
    if not kept.any():
        raise ValueError(f"{where}: no labelled row with finite embeddings is left")
    reasons = {"invalid": ~finite, "unlabelled": blank, "unseen": unseen}
    dropped = {
        name: data.ids[out].tolist() for name, out in reasons.items() if out.any()
    }
    return take(data, kept), dropped


def _read_through(
    data: Embeddings, split: str, where: str, config: DataConfig, tick: Tick | None
) -> Embeddings:
    """Scans embeddings that stay on the disk; fetches a small split to score.

    Of several processes each reads its share of what is small.
    """
    x = data.x
    if not isinstance(x, Stored):
        return data
    small = x.nbytes <= config.window_bytes
    if split == "train" or not (small or config.residency == "sharded"):
        return scan(data, where, tick=tick)
    check_same(x, where)
    own = np.arange(len(x))[processes.share(len(x)) if small else slice(None)]
    rows = fetch(x, own)
    held = data._replace(x=processes.gather_rows(rows) if small else rows)
    scan(held, where)
    return held


def _set_apart(
    data: Embeddings, where: str, config: DataConfig
) -> tuple[Embeddings, Embeddings | None]:
    """Returns the rows that have a label, and the finite ones of the others."""
    blank = labels.unlabelled(data.labels)
    if blank.all():
        raise ValueError(
            f"{where}: no row has a label, all are -1 or empty; expected a few rows of"
            " every class"
        )
    if not blank.any():
        return data, None
    finite = _finite(data, where, config)
    return take(data, ~blank), take(data, blank & finite)


def _alike(splits: dict[str, Embeddings], split: str, where: str, origin: str) -> None:
    """Raises a ValueError where a split does not go with those before it."""
    data, train = splits[split], splits["train"]
    if data.x.ndim != train.x.ndim or data.x.shape[-1] != train.x.shape[-1]:
        raise ValueError(
            f"{where}: embeddings have shape {list(data.x.shape)} and "
            f"those of {origin} {list(train.x.shape)}, expected the same width and "
            "number of axes (or data.views=True, if rows have views)"
        )
    if (data.mask is None) != (train.mask is None):
        lacks, has = (where, origin) if data.mask is None else (origin, where)
        raise ValueError(
            f"{lacks}: there is no mask and {has} has one, expected one in each split; "
            "make it all True where nothing is padded"
        )
    for other, before in splits.items():
        if other != split and data.groups is not None and before.groups is not None:
            shared = np.intersect1d(data.groups, before.groups)
            if len(shared):
                raise ValueError(
                    f"{where}: group {shared[0].item()!r} (and {len(shared) - 1} more) "
                    f"is in {other} too, expected the rows of a group in one split"
                )


def _split_off(
    splits: dict[str, Embeddings], split: str, config: DataConfig, where: str
) -> dict[str, Any]:
    """Moves rows of train to a split of their own; returns how, for the notes."""
    train = splits["train"]
    fraction = getattr(config, f"{split}_fraction")
    if not fraction:
        splits[split] = take(train, np.zeros(len(train.labels), bool))
        return {"from": "train", "fraction": fraction, "rows": 0}
    held = holdout(
        labels.strata(train.labels),
        groups=train.groups,
        fraction=fraction,
        seed=config.seed,
    )
    if not held.any():
        why = "class has one row" if train.groups is None else "group has a whole class"
        raise ValueError(
            f"{where}: no rows can be split off as {split}, as each {why}; expected "
            f"more rows or groups a class, or {split} as data of its own"
        )
    splits[split], splits["train"] = take(train, held), take(train, ~held)
    return {
        "from": "train",
        "fraction": fraction,
        "seed": config.seed,
        "stratified": "class" if train.labels.ndim == 1 else "rarest or largest label",
        "grouped": train.groups is not None,
        "rows": int(held.sum()),
        "rows_before": len(held),
    }


def _corrupt(
    splits: dict[str, Embeddings], classes: int, task: str, config: DataConfig
) -> dict[str, Any]:
    """Makes train harder, if the settings ask for it; returns how, for the notes."""
    notes: dict[str, Any] = {}
    if task == "multilabel" and (config.imbalance or config.label_noise):
        raise ValueError(
            f"data.imbalance is {config.imbalance} and data.label_noise "
            f"{config.label_noise}, but a row has several labels; expected 0 for both"
        )
    train = splits["train"]
    if config.imbalance:
        kept = long_tailed(train.labels, ratio=config.imbalance, seed=config.seed)
        notes["imbalance"] = {
            "ratio": config.imbalance,
            "seed": config.seed,
            "rows": int(kept.sum()),
            "rows_before": len(kept),
        }
        train = take(train, kept)
    if config.label_noise:
        wrong = mislabelled(
            train.labels, share=config.label_noise, classes=classes, seed=config.seed
        )
        notes["label_noise"] = {
            "share": config.label_noise,
            "seed": config.seed,
            "rows": int((wrong != train.labels).sum()),
        }
        train = train._replace(labels=wrong)
    splits["train"] = train
    return notes


def _shared(own: np.ndarray, others: np.ndarray) -> int:
    """Counts the numbers that are among others too, of which there may be many more.

    >>> _shared(np.array([1, 1, 5]), np.array([1, 2]))
    2
    """
    numbers, counts = np.unique(own, return_counts=True)
    there = np.zeros(len(numbers), bool)
    for part in checks.chunks(others, checks.CACHE_BYTES) if len(own) else ():
        at = np.searchsorted(numbers[:-1], others[part])
        there[at[numbers[at] == others[part]]] = True
    return int(counts[there].sum())


def _statistics(
    splits: dict[str, Embeddings], names: tuple[str, ...], task: str
) -> dict[str, Any]:
    """Returns the part of the notes that tells what is in each split."""
    support = {s: labels.support(data.labels, len(names)) for s, data in splits.items()}
    absent = [name for name, n in zip(names, support["train"], strict=True) if not n]
    hashes = {split: row_hashes(data.x) for split, data in splits.items()}
    notes: dict[str, Any] = {
        "rows": {split: len(splits[split].x) for split in SPLITS},
        "support": {
            split: dict(zip(names, support[split].tolist(), strict=True))
            for split in SPLITS
        },
        "empty_classes": absent,
        "duplicates": {
            f"{split} in {other}": _shared(hashes[split], hashes[other])
            for split, other in (("val", "train"), ("test", "train"), ("test", "val"))
        },
    }
    if task == "multilabel":
        matrices = {split: splits[split].labels for split in SPLITS}
        notes["all_zero_rows"] = {
            s: int((m == 0).all(1).sum()) for s, m in matrices.items()
        }
        notes["missing_entries"] = {
            s: int(np.isnan(m).sum()) for s, m in matrices.items()
        }
        notes["never_positive"] = absent
    return notes
