"""Tables with other columns beside the embeddings: Parquet, and prepared TFDS sets.

The column of embeddings and that of labels are named by `data.embeddings_field` and
`data.labels_field`, or go by an obvious name, or are the only ones that fit.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flaxhead.config import DataConfig
from flaxhead.data import checks
from flaxhead.data.records import Raw
from flaxhead.data.stored import Stored
from flaxhead.paths import AnyPath, fetched

LEFT = ("sharded", "streamed")  # residencies whose embeddings stay in their files
# A table's names for a field, each in the plural and in the singular.
NAMES = {
    "embeddings": ("embeddings", "embedding"),
    "labels": ("labels", "label"),
    "mask": ("mask",),
    "weights": ("weights", "weight"),
    "groups": ("groups", "group"),
    "ids": ("ids", "id"),
}
SHARD = re.compile(r"(.+)-\d+-of-\d+")
COLUMN = re.compile(r"f(\d+)")


def pick(
    field: str, wanted: str, names: Iterable[str], fitting: Iterable[str], where: str
) -> str | None:
    """Returns the name of the column to read as `field`, None if nothing fits.

    That is the wanted one, one with an obvious name, or the only one that fits.

    >>> pick("labels", "", ["text", "label"], ["text", "label"], "train.parquet")
    'label'
    """
    names, fitting = list(names), list(fitting)
    if wanted:
        if wanted not in names:
            raise ValueError(
                f"{where}: data.{field}_field is {wanted!r}, expected one of "
                f"{', '.join(names)}{checks.nearest(wanted, names)}"
            )
        return wanted
    obvious = [name for name in NAMES[field] if name in names] or fitting
    if len(obvious) > 1:
        raise ValueError(
            f"{where}: several columns may be the {field}: {', '.join(obvious)}; "
            f"choose one with data.{field}_field"
        )
    return obvious[0] if obvious else None


def extras(names: Iterable[str]) -> dict[str, str]:
    """Returns `{field: column}` of mask, weights, groups and ids where they exist.

    >>> extras(["id", "text"])
    {'ids': 'id'}
    """
    names = set(names)
    return {
        field: next(name for name in NAMES[field] if name in names)
        for field in ("mask", "weights", "groups", "ids")
        if names.intersection(NAMES[field])
    }


def reserved(config: DataConfig) -> set[str]:
    """Returns the columns that are not embeddings, whatever they hold."""
    names = {name for field in NAMES if field != "embeddings" for name in NAMES[field]}
    return names | {config.labels_field}


def find_parquet(path: AnyPath) -> dict[str, list[AnyPath]]:
    """Finds `train.parquet`, `train/*.parquet` and `train-00000-of-00002.parquet`."""
    found: dict[str, list[AnyPath]] = {}
    for file in sorted([*path.glob("*.parquet"), *path.glob("*/*.parquet")]):
        shard = SHARD.fullmatch(file.stem)
        split = file.parent.name if file.parent != path else file.stem
        if file.parent == path and shard:
            split = shard[1]
        found.setdefault(split, []).append(file)
    return found


def read_parquet(paths: list[AnyPath], config: DataConfig) -> Raw:
    """Reads the Parquet files of one split as one table.

    Embeddings are a column of lists (of lists, for tokens) or columns `f0`, `f1`, ...
    Raises a ValueError where no column, or more than one, can be the embeddings.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    where = str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
    with checks.parsing(paths[0], "a Parquet file"), paths[0].open("rb") as stored:
        schema = pq.read_schema(stored)
    chosen = _choose(schema, config, True, where)
    left = chosen.embeddings if config.residency in LEFT else ()
    names = [name for name in chosen.names if name not in left]
    parts = []
    for path in paths:
        what = f"a Parquet file with columns {', '.join(chosen.names)}"
        with fetched(path) as file, checks.parsing(path, what):
            part = pq.read_table(file, columns=names, page_checksum_verification=True)
            parts.append(part)
    with checks.parsing(paths[-1], f"a table of the same columns as {paths[0].name}"):
        table = pa.concat_tables(parts).combine_chunks()
    with checks.parsing(paths[0], "a Parquet file (class names are JSON metadata)"):
        class_names = _class_names(schema, chosen.labels)
    return Raw(
        **_decode(table, chosen, where),
        class_names=class_names,
        where=where,
        ignored=tuple(name for name in schema.names if name not in chosen.names),
    )


class Rows(NamedTuple):
    """The rows of a file, to be read piece by piece.

    Attributes:
      rows: how many there are.
      read: `(first, size) -> iterator of Raw` from row `first` on, of `size` rows at
        most.
      block: so many rows can only be read at once; 0: any number.
    """

    rows: int
    read: Callable[[int, int], Iterator[Raw]]
    block: int = 0


def open_parquet(path: Path, config: DataConfig, *, alone: bool = False) -> Rows:
    """Looks at a Parquet file; its labels will not be read, alone the embeddings."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with checks.parsing(path, "a Parquet file"), pq.ParquetFile(path) as file:
        schema, metadata = file.schema_arrow, file.metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    chosen = _choose(schema, config, False, str(path))
    if alone:
        chosen = chosen._replace(names=chosen.embeddings, used={})

    def read(first: int, size: int) -> Iterator[Raw]:
        group = 0
        while group < len(sizes) and first >= sizes[group]:
            first -= sizes[group]
            group += 1
        # A buffer: a group of rows may be as large as the file.
        with pq.ParquetFile(
            path,
            metadata=metadata,
            buffer_size=checks.CHUNK_BYTES,
            page_checksum_verification=True,
        ) as file:
            batches = file.iter_batches(
                size,
                row_groups=list(range(group, len(sizes))),
                columns=chosen.names,
            )
            while True:
                with checks.parsing(path, "a Parquet file"):
                    batch = next(batches, None)
                if batch is None:
                    return
                skipped, first = min(first, len(batch)), max(0, first - len(batch))
                if skipped < len(batch):
                    table = pa.Table.from_batches([batch.slice(skipped)])
                    yield Raw(**_decode(table, chosen, str(path)), where=str(path))

    return Rows(sum(sizes), read, block=max(sizes, default=0))


class _Columns(NamedTuple):
    """The columns of a table that are read.

    Attributes:
      names: all of them.
      embeddings: one column of lists, or a column a feature.
      numbered: whether it is a column a feature.
      labels: their column, or None.
      used: `{field: column}` of the others.
    """

    names: list[str]
    embeddings: list[str]
    numbered: bool
    labels: str | None
    used: dict[str, str]


def _choose(schema: Any, config: DataConfig, labelled: bool, where: str) -> _Columns:
    numbered = [name for name in schema.names if COLUMN.fullmatch(name)]
    if "f0" not in numbered:
        numbered = []
    other = reserved(config)
    fitting = [
        field.name
        for field in schema
        if field.name not in other and _is_list(field.type) and _is_float(field.type)
    ]
    if fitting and numbered:
        fitting.append(numbered[0])
    embeddings = pick(
        "embeddings", config.embeddings_field, schema.names, fitting, where
    )
    if embeddings is None and not numbered:
        raise ValueError(
            f"{where}: no column of lists of floats among {', '.join(schema.names)}, "
            "expected one, or columns f0, f1, ..."
        )
    used = extras(schema.names)
    labels = None
    if labelled:
        taken = {embeddings, *numbered, *used.values()}
        fitting = [f.name for f in schema if f.name not in taken and _is_label(f.type)]
        labels = pick("labels", config.labels_field, schema.names, fitting, where)
    wanted = [embeddings] if embeddings else _in_order(numbered, where)
    columns = [*wanted, *([labels] if labels else []), *used.values()]
    return _Columns(columns, wanted, not embeddings, labels, used)


def _decode(table: Any, chosen: _Columns, where: str) -> dict[str, Any]:
    """Returns the arrays of a table, or of a piece of one."""
    others = {**chosen.used, **({"labels": chosen.labels} if chosen.labels else {})}
    others = {f: _lists(table[name], name, where) for f, name in others.items()}
    if chosen.embeddings[0] not in table.column_names:
        return {"embeddings": None, **others}
    if chosen.numbered:
        x = np.stack([_scalars(table[name]) for name in chosen.embeddings], axis=1)
    else:
        x = _lists(table[chosen.embeddings[0]], chosen.embeddings[0], where)
    return {"embeddings": x, **others}


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return (
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
    )


def _is_float(kind: Any) -> bool:
    import pyarrow as pa

    return _is_float(kind.value_type) if _is_list(kind) else pa.types.is_floating(kind)


def _is_label(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return (
        pa.types.is_integer(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
    )


def _in_order(names: list[str], where: str) -> list[str]:
    """Returns f0, f1, ... by number (f10 after f9), or says which one is missing."""
    for number in range(len(names)):
        if f"f{number}" not in names:
            raise ValueError(
                f"{where}: there are {len(names)} columns such as {names[0]!r} and no "
                f"'f{number}', expected f0 to f{len(names) - 1}"
            )
    return [f"f{number}" for number in range(len(names))]


def _scalars(column: Any) -> np.ndarray:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.to_numpy()


def _lists(column: Any, name: str, where: str) -> np.ndarray:
    """Turns a column of scalars, lists or lists of lists into an array, NaN for null.

    Raises a ValueError where lists differ in length.
    """
    import pyarrow.compute as pc

    if not _is_list(column.type):
        return _scalars(column)
    if len(column) == 0:
        return np.zeros((0, 0))
    present = ~column.is_null().to_numpy()
    lengths = np.unique(
        pc.call_function("list_value_length", [column.drop_null()]).to_numpy()
    )
    if len(lengths) != 1:
        raise ValueError(
            f"{where}: the lists of column {name!r} have {len(lengths)} lengths "
            f"({', '.join(map(str, lengths[:8]))}), expected one; pad tokens and add a "
            "column 'mask'"
        )
    # Flattening leaves out null lists.
    values = _lists(pc.call_function("list_flatten", [column]), name, where)
    values = values.reshape(int(present.sum()), lengths[0], *values.shape[1:])
    if present.all():
        return values
    whole = np.full((len(present), *values.shape[1:]), np.nan, np.float32)
    whole[present] = values
    return whole


def _class_names(schema: Any, labels: str | None) -> Any:
    """Reads class names that we, or Hugging Face datasets, leave in the metadata."""
    metadata = schema.metadata or {}
    if b"class_names" in metadata:
        return json.loads(metadata[b"class_names"])
    stored = json.loads(metadata.get(b"huggingface", b"{}"))
    return stored.get("info", {}).get("features", {}).get(labels, {}).get("names")


def find_tfds(location: str) -> dict[str, Any]:
    """Finds the splits of a prepared dataset: `NAME[/CONFIG][:VERSION][?data_dir=DIR]`.

    The folder is `DIR/NAME[/CONFIG]/VERSION`; DIR is `$TFDS_DATA_DIR`, or
    `~/tensorflow_datasets`; the newest version is taken. Only files are read: nothing
    is downloaded, no dataset's code runs, TensorFlow is not needed.
    """
    name, _, query = location.partition("?")
    option, _, data_dir = query.partition("=")
    if query and (option != "data_dir" or not data_dir):
        raise ValueError(f"data.source has the option {query!r}, expected data_dir=DIR")
    root = data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    if "://" in root:
        raise ValueError(
            f"{root}: a TFDS set is read from a folder of this machine; expected a "
            "copy there, or the embeddings as npz, npy, safetensors or Parquet"
        )
    name, _, version = name.partition(":")
    path = Path(root).expanduser() / name
    versions = {p.parent.name: p.parent for p in path.glob("*/dataset_info.json")}
    if not versions or (version and version not in versions):
        raise ValueError(
            f"{path}: there is no prepared dataset of version {version or 'any'} "
            f"(found: {', '.join(versions) or 'none'}), expected what "
            "download_and_prepare writes with file_format='array_record'"
        )
    newest = max(versions, key=lambda v: [int(n) for n in re.findall(r"\d+", v)])
    chosen = versions[version or newest]

    import tensorflow_datasets as tfds

    with checks.parsing(chosen, "a prepared TFDS dataset"):
        builder = tfds.builder_from_directory(chosen)
    return {str(split): (builder, str(split)) for split in builder.info.splits}


class _Features(NamedTuple):
    """The features of a TFDS set that are read.

    Attributes:
      embeddings: their name.
      labels: their name, or None.
      columns: `{field: name}` of all.
      open: `() -> rows`.
      where: the split, for messages.
    """

    embeddings: str
    labels: str | None
    columns: dict[str, str]
    open: Callable[..., Any]
    where: str


def _features(handle: tuple[Any, str], config: DataConfig) -> _Features:
    import tensorflow_datasets as tfds

    builder, split = handle
    where = f"{builder.data_dir} ({split})"
    features = dict(builder.info.features)
    tensors = [
        name
        for name, feature in features.items()
        if name not in reserved(config)
        # Of a nested feature the type is a dictionary.
        and getattr(feature.np_dtype, "name", "") in (*checks.KEPT, "float64")
        and len(feature.shape) in (1, 2)
    ]
    embeddings = pick("embeddings", config.embeddings_field, features, tensors, where)
    if embeddings is None:
        raise ValueError(
            f"{where}: no feature is a tensor of floats among {', '.join(features)}, "
            "expected one; choose with data.embeddings_field"
        )
    used = extras(features)
    classes = [
        name
        for name, feature in features.items()
        if isinstance(feature, tfds.features.ClassLabel)
    ]
    labels = pick("labels", config.labels_field, features, classes, where)
    columns = {
        "embeddings": embeddings,
        **used,
        **({"labels": labels} if labels else {}),
    }

    def open_rows() -> Any:
        # Pictures beside the embeddings stay compressed.
        unread = {
            name: tfds.decode.SkipDecoding()
            for name, feature in features.items()
            if name not in columns.values() and isinstance(feature, tfds.features.Image)
        }
        return builder.as_data_source(split, decoders=unread)

    return _Features(embeddings, labels, columns, open_rows, where)


def read_tfds(handle: tuple[Any, str], config: DataConfig) -> Raw:
    """Reads the embeddings, labels and optional fields of one split of a TFDS set."""
    builder, _ = handle
    embeddings, labels, columns, open_rows, where = _features(handle, config)
    features = dict(builder.info.features)
    if config.residency in LEFT:
        del columns["embeddings"]
    fields = {field: [] for field in columns}
    with checks.parsing(Path(str(builder.data_dir)), "a TFDS set of ArrayRecord files"):
        for row in open_rows() if columns else ():
            for field, column in columns.items():
                fields[field].append(row[column])
    class_names = getattr(features.get(labels), "names", None)
    arrays = {
        name: checks.array(values, name, where) for name, values in fields.items()
    }
    return Raw(
        **{"embeddings": None, **arrays},
        class_names=class_names,
        where=where,
        ignored=tuple(sorted(set(features) - {embeddings, *columns.values()})),
    )


def stored_tfds(handle: tuple[Any, str], config: DataConfig) -> Stored:
    """The embeddings of one split of a TFDS set, left in its files."""
    name, _, _, open_rows, where = _features(handle, config)
    rows = open_rows()

    def read(first: int, size: int) -> np.ndarray:
        numbers = range(first, min(first + size, len(rows)))
        if not numbers:
            return np.empty((0, *sample.shape[1:]), sample.dtype)
        values = [row[name] for row in rows.__getitems__(list(numbers))]
        return checks.embeddings(np.stack(values), where)

    with checks.parsing(Path(where), "a TFDS set of ArrayRecord files"):
        sample = read(0, 1)
    return Stored((len(rows), *sample.shape[1:]), sample.dtype, read)
