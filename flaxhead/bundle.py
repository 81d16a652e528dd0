"""A trained head as one small folder: save it, load it, predict with it.

`head.json` holds the head's settings, class names, feature spec, metrics, versions and
the checksums of itself and of `params.safetensors`, which holds every array. There is
no pickle.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load as parse_safetensors
from safetensors.numpy import save as to_safetensors

from flaxhead.base import Array, Head, Params, Tokens
from flaxhead.build import make_head
from flaxhead.config import DataConfig, HeadConfig
from flaxhead.data import Stored
from flaxhead.data.checks import finite
from flaxhead.data.hashes import seal
from flaxhead.metrics import Output
from flaxhead.paths import Location, is_local, naming, part, to_path, write

FORMAT = 1
_ARRAYS = "params.safetensors"
_BATCH = 1024
_BATCH_BYTES = 2**26


class FeatureSpec(NamedTuple):
    """The features a head was trained on, to tell others from them.

    Attributes:
      dim: their width.
      dtype: their type as they came.
      tokens: whether a row is a set of tokens.
      normalization: what the head does to them: `none`, `l2` or `standardize`.
      backbone: name of the frozen model they come from; empty where not known.
      norm_mean: mean Euclidean norm over the training rows.
      norm_std: its standard deviation.
      masked: whether tokens came with a mask, as they then must again.
    """

    dim: int
    dtype: str
    tokens: bool
    normalization: str
    backbone: str
    norm_mean: float
    norm_std: float
    masked: bool = False


class Bundle(NamedTuple):
    """A trained head and what is known of it.

    Attributes:
      config: the head's settings.
      params: its parameters.
      statistics: `(mean, std)` of the training rows, each `[dim]`.
      class_names: what logit `i` stands for.
      task: `multiclass` or `multilabel`.
      output: `softmax` or `sigmoid`.
      spec: the features it expects.
      data: the settings of the data it was trained on.
      metrics: its scores, JSON-able.
    """

    config: HeadConfig
    params: Params
    statistics: tuple[Any, Any]
    class_names: tuple[str, ...]
    task: str
    output: Output
    spec: FeatureSpec
    data: DataConfig
    metrics: dict[str, Any]


class LoadedHead(NamedTuple):
    """A head read from its folder, as pure functions of `x`.

    Attributes:
      logits: `(x) -> float32 [rows, classes]`.
      probabilities: `(x) -> float32 [rows, classes]`.
      predict: `(x) -> int32 [rows]` class numbers, or `bool [rows, classes]` where a
        row has several labels.
      class_names: what class `i` stands for.
      head: the head itself, to compose with.
      params: its parameters.
      bundle: all that the folder says.
    """

    logits: Callable[[Any], Array]
    probabilities: Callable[[Any], Array]
    predict: Callable[[Any], Array]
    class_names: tuple[str, ...]
    head: Head
    params: Params
    bundle: Bundle

    def __repr__(self) -> str:
        """A line, and not all parameters."""
        saved = self.bundle
        return (
            f"LoadedHead({saved.config.name}: {saved.spec.dim} features -> "
            f"{len(self.class_names)} classes)"
        )


def feature_spec(x: Any, *, config: HeadConfig, backbone: str) -> FeatureSpec:
    """Describes training features, `[rows, dim]` or tokens.

    >>> x = np.ones((3, 4), np.float16)
    >>> feature_spec(x, config=HeadConfig(), backbone="").norm_mean
    2.0
    """
    values = x.values if isinstance(x, Tokens) else x
    if isinstance(values, Stored) and values.scan:
        mean, std = values.scan.norms
    else:
        norms = _norms(x)
        mean, std = float(norms.mean()), float(norms.std())
    return FeatureSpec(
        dim=values.shape[-1],
        dtype=str(values.dtype),
        tokens=values.ndim == 3,
        normalization=config.normalization,
        backbone=backbone,
        norm_mean=mean,
        norm_std=std,
        masked=isinstance(x, Tokens),
    )


def drift(x: Any, spec: FeatureSpec) -> str | None:
    """Says in a sentence how features differ from those of training; None if alike.

    Features that were normalised differently are the usual cause, so it is their norm
    that is compared: a mean norm off by a fifth, and by four standard deviations of the
    training norms, is a different scale.
    """
    mean = float(_norms(x).mean())
    off = abs(mean - spec.norm_mean)
    if off <= 0.2 * spec.norm_mean or off <= 4 * spec.norm_std:
        return None
    backbone = f" ({spec.backbone})" if spec.backbone else ""
    return (
        f"the embeddings have a mean norm of {mean:.4g}, those of training had "
        f"{spec.norm_mean:.4g} (standard deviation {spec.norm_std:.2g}); check that "
        f"they come from the same backbone{backbone} and are normalised in the same way"
    )


def check_features(x: Any, spec: FeatureSpec) -> None:
    """Raises a ValueError for rows, or shapes of rows, that a head can't take."""
    values = x.values if isinstance(x, Tokens) else x
    if not hasattr(values, "ndim"):
        raise ValueError(
            f"the embeddings are a {type(values).__name__}; expected an array"
        )
    expected = f"[rows, {'tokens, ' if spec.tokens else ''}{spec.dim}]"
    if values.ndim != (3 if spec.tokens else 2) or values.shape[-1] != spec.dim:
        # A padded batch has other rows than the file it comes from.
        got = ", ".join(["rows", *map(str, values.shape[1:])])
        raise ValueError(
            f"the embeddings have the shape [{got}], the head expects "
            f"{expected} ({spec.dtype}, normalization {spec.normalization}, backbone "
            f"{spec.backbone or 'not recorded'})"
        )
    if spec.masked and not isinstance(x, Tokens):
        raise ValueError(
            "the embeddings are tokens without a mask, and the head was trained on "
            "some with one; pass flaxhead.Tokens(x, mask), or a file that has a mask"
        )


def functions(bundle: Bundle) -> LoadedHead:
    """Returns the functions of a head."""
    head = make_head(
        bundle.config,
        classes=len(bundle.class_names),
        statistics=tuple(jnp.asarray(leaf) for leaf in bundle.statistics),
        output=bundle.output,
    )
    params = jax.tree.map(jnp.asarray, bundle.params)

    def logits(x: Any) -> Array:
        check_features(x, bundle.spec)
        if isinstance(x, np.ndarray) and not (own := finite(x)).all():
            raise ValueError(
                f"the embeddings are NaN or infinite in {np.sum(~own)} of {len(x)} "
                f"rows, of which row {np.argmin(own)} is the first; leave these out"
            )
        return head.apply(params, x)

    def probabilities(x: Any) -> Array:
        return to_probabilities(logits(x), bundle.output)

    def predict(x: Any) -> Array:
        if bundle.task == "multilabel":
            return logits(x) > 0
        return jnp.argmax(logits(x), axis=-1).astype(jnp.int32)

    return LoadedHead(
        logits, probabilities, predict, bundle.class_names, head, params, bundle
    )


def to_probabilities(logits: Any, output: Output) -> Array:
    """Logits `[..., classes]` -> probabilities, by `softmax` or `sigmoid`."""
    return jax.nn.softmax(logits) if output == "softmax" else jax.nn.sigmoid(logits)


def in_batches(function: Callable[[Any], Array], x: Any) -> np.ndarray:
    """Applies a function of rows to any number of them, in batches of one size.

    Args:
      function: `(x) -> [rows, ...]`, for example `LoadedHead.logits`.
      x: `[rows, ...]`, or `Tokens`; may be a memory map.
    """
    return np.concatenate(list(batches(function, x)))


def batches(
    function: Callable[[Any], Array], x: Any, *, most: int = _BATCH
) -> Iterator[np.ndarray]:
    """As `in_batches`, what comes of one batch after the other.

    The last batch is padded and cut, so one compiled program serves any number.

    Args:
      function: as of `in_batches`.
      x: as of `in_batches`.
      most: rows of a batch.
    """
    leaves = jax.tree.leaves(x)
    rows = leaves[0].shape[0]
    row_bytes = sum(math.prod(one.shape[1:]) * one.dtype.itemsize for one in leaves)
    size = min(most, _BATCH, max(1, _BATCH_BYTES // max(1, row_bytes)))
    compiled = jax.jit(function)

    def batch(start: int) -> np.ndarray:
        def cut(leaf: Any) -> np.ndarray:
            part = np.asarray(leaf[start : start + size])
            padding = np.repeat(part[-1:], size - len(part), axis=0)
            return np.concatenate([part, padding])

        return np.asarray(compiled(jax.tree.map(cut, x)))[: rows - start]

    yield from map(batch, range(0, max(rows, 1), size))


def save(path: Location, bundle: Bundle) -> None:
    """Writes a head's folder whole or not at all.

    Args:
      path: the folder, in a bucket too; one that is there is replaced.
      bundle: what to write.
    """
    path = to_path(path)
    arrays = {
        f"params/{name}": np.asarray(leaf, order="C")
        for name, leaf in flatten_dict(bundle.params, sep="/").items()
    }
    for name, leaf in zip(("mean", "std"), bundle.statistics, strict=False):
        arrays[f"statistics/{name}"] = np.asarray(leaf, order="C")
    content = to_safetensors(arrays)
    described = {
        "format": FORMAT,
        "head": dataclasses.asdict(bundle.config),
        "class_names": list(bundle.class_names),
        "task": bundle.task,
        "output": bundle.output,
        "features": bundle.spec._asdict(),
        "data": dataclasses.asdict(bundle.data),
        "metrics": bundle.metrics,
        "versions": {name: version(name) for name in ("flaxhead", "jax", "flax")},
        "sha256": {_ARRAYS: hashlib.sha256(content).hexdigest()},
    }
    text = json.dumps(seal(described), indent=2, allow_nan=False)
    if not is_local(path):
        # A folder of a bucket can't be renamed: its checksum tells a mixture.
        write(path / _ARRAYS, content)
        write(path / "head.json", text)
        return
    new = part(path)
    shutil.rmtree(new, ignore_errors=True)
    with naming(path):
        new.mkdir(parents=True)
        (new / _ARRAYS).write_bytes(content)
        (new / "head.json").write_text(text)
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        os.replace(path, old)
    os.replace(new, path)
    shutil.rmtree(old, ignore_errors=True)


def load(path: Location) -> LoadedHead:
    """Reads a head from its folder and checks it.

    Args:
      path: the folder that a run wrote, `RUN/head`, in a bucket too.

    Returns:
      Pure functions `logits`, `probabilities` and `predict`, and what they are made of.

    Raises:
      ValueError: the folder or a part of it is missing, damaged or of a later format.
    """
    path = to_path(path)
    file = path / "head.json"
    try:
        described = json.loads(file.read_text())
        file = path / _ARRAYS
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(
            f"{path}: {file} is missing; expected the folder of a head, RUN/head"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: head.json can't be read ({error})") from error
    try:
        if described["format"] != FORMAT:
            raise ValueError(
                f"{path}: the head has format {described['format']}, this version of "
                f"flaxhead reads format {FORMAT}; use the version that wrote it "
                f"({described['versions']['flaxhead']})"
            )
        found = hashlib.sha256(content).hexdigest()
        if described["sha256"][_ARRAYS] != found:
            raise ValueError(
                f"{path}: {_ARRAYS} is damaged (its checksum is {found[:12]}..., "
                f"head.json says {described['sha256'][_ARRAYS][:12]}...); copy or "
                "train the head again"
            )
        if seal(described) != described:
            raise ValueError(
                f"{path}: head.json is damaged, or was changed (its checksum is "
                "another); copy or train the head again"
            )
        arrays = parse_safetensors(content)
        params = {
            name.removeprefix("params/"): leaf
            for name, leaf in arrays.items()
            if name.startswith("params/")
        }
        bundle = Bundle(
            config=HeadConfig(**_tuples(described["head"])),
            params=unflatten_dict(params, sep="/"),
            statistics=(arrays["statistics/mean"], arrays["statistics/std"]),
            class_names=tuple(described["class_names"]),
            task=described["task"],
            output=described["output"],
            spec=FeatureSpec(**described["features"]),
            data=DataConfig(**described["data"]),
            metrics=described["metrics"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: head.json lacks or garbles {error}") from error
    return functions(bundle)


def _tuples(settings: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists where settings have tuples."""
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in settings.items()
    }


def _norms(x: Any) -> np.ndarray:
    values = x.values if isinstance(x, Tokens) else x
    norms = [
        np.linalg.norm(np.asarray(values[start : start + _BATCH], np.float32), axis=-1)
        for start in range(0, len(values), _BATCH)
    ]
    norms = np.concatenate(norms)
    return norms[np.asarray(x.mask)] if isinstance(x, Tokens) else norms.ravel()
