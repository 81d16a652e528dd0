"""Label spaces whose logits don't fit: softmax over classes in tiles, or over devices.

The logits `[rows, classes]` of a linear or cosine head are never held: a loop goes over
tiles of classes, forward and, by the rule of its own that `_parts` has, backward. With
an `axis` each device has a part of the classes, and the softmax is one over all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from flaxhead.base import Array, Batch, Objective, Params, PyTree, Sums
from flaxhead.heads.dense import dense
from flaxhead.heads.normalize import length, unit
from flaxhead.losses.terms import check_exponent, weigh
from flaxhead.objectives.rows import side_key

TILE = 2048

Margin: TypeAlias = Callable[[Array], Array]
"""Cosines to the classes of the label -> lower ones, elementwise."""


class LastLayer(NamedTuple):
    """What makes logits of features: all of the parameters that grow with the classes.

    Attributes:
      kernel: `[dim, classes]`, or the part of the classes that this device has.
      bias: `[classes]`, or None.
      scale: None: logits are `x @ kernel + bias`. A number or scalar: they are `scale`
        times the cosines of `x` and the columns of `kernel`, plus `bias`.
    """

    kernel: Array
    bias: Array | None = None
    scale: float | Array | None = None


class TopLabels(NamedTuple):
    """Soft labels of which only a few classes are kept.

    Attributes:
      numbers: `int32 [rows, k]` class numbers; negative: no class.
      probabilities: `float32 [rows, k]`; 0: no class. Of a class that is named twice
        they add up.
    """

    numbers: Array
    probabilities: Array


class TiledLoss(Protocol):
    """`(layer, x, labels, *, where, weights, key) -> per-example loss [rows]`."""

    def __call__(
        self,
        layer: LastLayer,
        x: Array,
        labels: Array | TopLabels,
        *,
        where: Array | None = None,
        weights: Array | None = None,
        key: Array | None = None,
    ) -> Array:
        """Returns a loss an example."""
        ...


def last_layer(params: Params, *, scale: float | Array = 16.0) -> LastLayer:
    """Returns the last layer of a linear or cosine head.

    Args:
      params: of `flaxhead.heads.linear` or `flaxhead.heads.cosine`.
      scale: of a cosine head that does not learn its own.

    Raises:
      ValueError: they are of another head.

    >>> from flaxhead.heads import linear
    >>> last_layer(linear(7).init(jax.random.key(0), jnp.ones([1, 3]))).kernel.shape
    (3, 7)
    """
    output = params.get("output", {}) if set(params) <= {"output", "log_scale"} else {}
    if "kernel" in output:
        return LastLayer(output["kernel"], output["bias"])
    if "directions" in output:
        learned = params.get("log_scale")
        scale = scale if learned is None else jnp.exp(learned)
        return LastLayer(output["directions"], scale=scale)
    raise ValueError(
        f"params has {', '.join(params)}: expected those of a linear or a cosine head, "
        "whose logits can be made a tile of classes at a time"
    )


def arcface(margin: float | Array = 0.5) -> Margin:
    """Adds an angle to that between the features and the class of the label.

    `cos(angle + margin)`; past pi, where that would rise again, `cos(angle) - margin
    sin(margin)`, as in the authors' code. The gradient is that of these formulas.

    Source: Deng et al., 2019, "ArcFace: additive angular margin loss for deep face
    recognition".

    Args:
      margin: in radians; 0 or more. May be a traced scalar.

    Raises:
      ValueError: if it is negative.

    >>> [round(float(one), 3) for one in arcface(0.5)(jnp.array([1.0, 0.0]))]
    [0.878, -0.479]
    """
    check_exponent("margin", margin)

    def apply(cosine: Array) -> Array:
        squared = 1 - cosine * cosine
        # Inside the root: its slope at 0 is infinite, in the branch not taken too.
        sine = jnp.sqrt(jnp.where(squared > 0, squared, 1))
        sine = jnp.where(squared > 0, sine, 0)
        moved = cosine * jnp.cos(margin) - sine * jnp.sin(margin)
        past = cosine - margin * jnp.sin(margin)
        return jnp.where(cosine > -jnp.cos(margin), moved, past)

    return apply


def cosface(margin: float | Array = 0.35) -> Margin:
    """Takes a margin off the cosine to the class of the label.

    Source: Wang et al., 2018, "CosFace: large margin cosine loss for deep face
    recognition".

    Args:
      margin: 0 or more; may be a traced scalar.

    Raises:
      ValueError: if it is negative.

    >>> cosface(0.5)(jnp.array([1.0, 0.0])).tolist()
    [0.5, -0.5]
    """
    check_exponent("margin", margin)
    return lambda cosine: cosine - margin


def tiled_cross_entropy(
    layer: LastLayer,
    x: Array,
    labels: Array | TopLabels,
    *,
    where: Array | None = None,
    weights: Array | None = None,
    key: Array | None = None,
    label_smoothing: float | Array = 0.0,
    class_weights: ArrayLike | None = None,
    margin: Margin | None = None,
    sampled: int = 0,
    tile: int = TILE,
    axis: str | None = None,
    classes: int | None = None,
) -> Array:
    """Cross-entropy of the softmax over classes, without its logits.

    It is `class_weighted(label_smoothing(softmax_cross_entropy, ...), ...)` of the
    logits of the layer, and so are its gradients. It holds `[rows, tile]` numbers at a
    time, and multiplies once more for the gradient, where the logits are made again.

    Source: of `sampled`, An et al., 2021, "Partial FC: training 10 million identities
    on a single machine", and 2022, "Killing two birds with one stone: efficient and
    robust training of face recognition CNNs by Partial FC".

    Args:
      layer: of all classes; within a program over devices, this device's part of them.
      x: `[rows, dim]` features, of any float type; products are float32.
      labels: `int [rows]` (negative: absent), or `TopLabels`, where a row without a
        class is absent. Class numbers are those of all classes.
      where: `bool [rows]`, the examples that count.
      weights: `[rows]`, multiplies each example's loss.
      key: of what `sampled` draws.
      label_smoothing: share of each label that is moved to all classes alike; between 0
        and 1, may be a traced scalar.
      class_weights: `[classes]`; multiplies an example's loss by the weight of its
        class, of a soft label by the average. One of weight 0 is absent.
      margin: of a layer of cosines, what is done to those of the classes that a row's
        label names: `arcface(...)`, `cosface(...)`.
      sampled: if not 0, the softmax is over so many classes only, each time others:
        those of the labels and some of the rest. A device draws its part of them.
      tile: how many classes at a time.
      axis: name of the device axis over which classes are split, in order; x, labels
        and weights are the same on all of these devices.
      classes: how many there are on all devices, if columns beyond were added so that
        they divide.

    Returns:
      `[rows]`, nats, float32.

    Raises:
      ValueError: if shapes, or settings, don't fit together.

    >>> layer = LastLayer(jnp.zeros([3, 1000]), jnp.zeros(1000))
    >>> loss = jax.jit(partial(tiled_cross_entropy, tile=300))
    >>> loss(layer, jnp.ones([2, 3]), jnp.array([7, -1]))  # log(1000)
    Array([6.9077554, 0.       ], dtype=float32)
    """
    _check(layer, x, tile)
    numbers, shares = _entries(labels, x.shape[0])
    if margin is not None and (layer.scale is None or layer.bias is not None):
        raise ValueError("margin is for cosines: expected a scale, and no bias")
    if isinstance(label_smoothing, int | float) and not 0 <= label_smoothing <= 1:
        raise ValueError(
            f"label_smoothing is {label_smoothing}: expected one in [0, 1]"
        )
    there = (numbers >= 0) & (shares > 0)
    if class_weights is not None:
        of_class = jnp.asarray(class_weights)[jnp.where(there, numbers, 0)]
        own = jnp.sum(jnp.where(there, shares * of_class, 0), axis=1)
        weights = own if weights is None else own * weights
    present = jnp.any(there, axis=1)
    if where is not None:
        present &= where
    if weights is not None:
        present &= weights != 0
    there &= present[:, None]

    # What absent rows hold is gone here, and so reaches no gradient.
    features = _features(layer, jnp.where(present[:, None], x, 0))
    columns, live, first = _columns(layer, axis, classes)
    positions = jnp.where(there, jnp.maximum(numbers - first, -1), -1)
    if sampled:
        chosen = _sample(live, positions, sampled=sampled, key=key, axis=axis)
        columns = jax.tree.map(lambda leaf: leaf[..., chosen], columns)
        here = (positions >= 0) & (positions < live.shape[0])
        positions = jnp.where(here, jnp.searchsorted(chosen, positions), -1)
        live = live[chosen]
    plan = _Plan(layer.scale is not None, tile, axis)
    parts: Any = _parts(plan, features, columns, positions, live)
    rest, at_label, total = parts

    logits = at_label
    if margin is not None:
        scale: Any = layer.scale
        logits = scale * margin(at_label / scale)
    logits = jnp.where(there, logits, 0)
    every = jnp.concatenate([rest[:, None], jnp.where(there, logits, -jnp.inf)], axis=1)
    normalizer = jax.nn.logsumexp(every, axis=1)
    nats = jnp.where(there, shares * (normalizer[:, None] - logits), 0)
    loss = jnp.sum(nats, axis=1)
    if not (isinstance(label_smoothing, int | float) and label_smoothing == 0):
        moved = jnp.sum(logits - jnp.where(there, at_label, 0), axis=1)
        uniform = normalizer - (total + moved) / _count(live, axis)
        loss = (1 - label_smoothing) * loss + label_smoothing * uniform
    return weigh(loss, present, weights)


def tiled_top_k(
    layer: LastLayer,
    x: Array,
    k: int,
    *,
    tile: int = TILE,
    axis: str | None = None,
    classes: int | None = None,
) -> tuple[Array, Array]:
    """The largest logits and their classes, without the other logits.

    Args:
      layer: of all classes, or this device's part of them.
      x: `[rows, dim]` features.
      k: how many; no more than there are classes.
      tile: as for `tiled_cross_entropy`, and so are the others.
      axis: name of the device axis over which classes are split.
      classes: how many there are on all devices.

    Returns:
      Logits `float32 [rows, k]`, the largest first, and class numbers `int32 [rows,
      k]`; of equal ones the lower number comes first, as in `lax.top_k`.

    Raises:
      ValueError: if shapes don't fit, or `k` is not from 1 to the number of classes.

    >>> layer = LastLayer(jnp.arange(10.0)[None])
    >>> tiled_top_k(layer, jnp.ones([1, 1]), 3, tile=4)[1].tolist()
    [[9, 8, 7]]
    """
    _check(layer, x, tile)
    columns, live, first = _columns(layer, axis, classes)
    count = _all_classes(layer, axis, classes)
    if not 1 <= k <= count:
        raise ValueError(f"k is {k}: expected 1 to the number of classes, {count}")
    features = _varying(_features(layer, x), axis)
    tiles = _Tiles(_Plan(layer.scale is not None, tile, axis), columns, live)

    def body(best: tuple[Array, Array], number: Array):
        there, part = tiles.cut(number)
        logits = jnp.where(there, tiles.logits(features, part), -jnp.inf)
        values, places = lax.top_k(logits, min(k, tiles.size))
        # Tiles come in the order of the classes: of equal ones the earlier stays.
        more = values, places + tiles.start(number) + first
        both = [jnp.concatenate(pair, axis=1) for pair in zip(best, more, strict=True)]
        return _largest(both[0], both[1], k), None

    rows = x.shape[0]
    none = jnp.full((rows, k), -jnp.inf), jnp.full((rows, k), -1)
    best, _ = lax.scan(body, _varying(none, axis), jnp.arange(tiles.count))
    if axis is None:
        return best
    # A sum in which each device fills its own place is the same everywhere.
    values, numbers = (
        lax.psum(
            jnp.zeros((lax.axis_size(axis), rows, k), one.dtype)
            .at[lax.axis_index(axis)]
            .set(one),
            axis,
        )
        for one in best
    )
    every = [jnp.concatenate(list(one), axis=1) for one in (values, numbers)]
    return _largest(every[0], every[1], k)


def tiled_supervised(
    loss: TiledLoss,
    *,
    features: Callable[[Any], Array] = lambda x: x,
    scale: float | Array = 16.0,
) -> Objective:
    """The weighted mean of a tiled loss over the labelled rows.

    It is `supervised(head, loss)` for a linear or cosine head whose logits don't fit.
    Such a head has no dropout; the view `feature_dropout` (`with_view`) drops features.

    Args:
      loss: `tiled_cross_entropy`, whose settings `functools.partial` gives.
      features: what is done to `batch.x` before the parameters see it.
      scale: of a cosine head that does not learn its own.

    Returns:
      An `Objective` without memory, of the one term `supervised`. Labels of a batch are
      class numbers, or `TopLabels`.

    >>> from flaxhead.heads import linear
    >>> head = linear(1000)
    >>> x, rows = jnp.ones([3, 2]), jnp.arange(3)
    >>> batch = Batch(x, jnp.array([7, 8, -1]), jnp.ones(3), rows)
    >>> objective = tiled_supervised(partial(tiled_cross_entropy, tile=300))
    >>> params = head.init(jax.random.key(0), x)
    >>> sums, memory = jax.jit(objective.apply)(params, (), batch, jax.random.key(1))
    >>> float(sums["supervised"].count)
    2.0
    """

    def init(params: Params) -> PyTree:
        last_layer(params)  # Refuses other heads.
        return ()

    def apply(
        params: Params, memory: PyTree, batch: Batch, key: Array
    ) -> tuple[dict[str, Sums], PyTree]:
        numbers, shares = _entries(batch.labels, batch.weights.shape[0])
        present = jnp.any((numbers >= 0) & (shares > 0), axis=1) & (batch.weights > 0)
        losses = loss(
            last_layer(params, scale=scale),
            features(batch.x),
            batch.labels,
            where=present,
            weights=batch.weights,
            key=side_key(key, 0),
        )
        count = jnp.sum(jnp.where(present, batch.weights, 0))
        return {"supervised": Sums(jnp.sum(losses), count)}, memory

    return Objective(init, apply)


# The loop over tiles.


class _Plan(NamedTuple):
    """What is known before tracing: hashable."""

    cosine: bool
    tile: int
    axis: str | None


class _Tiles:
    """Columns in tiles of equal size; the last is moved back to end with the columns.

    Nothing is padded, as that would be a copy of all columns.
    """

    def __init__(self, plan: _Plan, columns: LastLayer, live: Array):
        self.plan, self.columns, self.live = plan, columns, live
        self.classes = live.shape[0]
        self.size = min(plan.tile, self.classes)
        self.count = -(-self.classes // self.size)

    def start(self, number: Array) -> Array:
        return jnp.minimum(number * self.size, self.classes - self.size)

    def slice(self, leaf: Array, number: Array) -> Array:
        start = self.start(number)
        return lax.dynamic_slice_in_dim(leaf, start, self.size, axis=leaf.ndim - 1)

    def numbers(self, number: Array) -> Array:
        return self.start(number) + jnp.arange(self.size)

    def cut(self, number: Array) -> tuple[Array, LastLayer]:
        """Which columns count and were in no tile before, and the columns."""
        fresh = self.numbers(number) >= number * self.size
        part = jax.tree.map(lambda leaf: self.slice(leaf, number), self.columns)
        return fresh & self.slice(self.live, number), part

    def named(self, positions: Array, number: Array, there: Array) -> Array:
        """`bool [rows, k, size]`, whether a column is one that the label names."""
        numbers = jnp.where(there, self.numbers(number), -2)  # -2: no position
        return positions[:, :, None] == numbers

    def logits(self, features: Array, part: LastLayer) -> Array:
        kernel = part.kernel.astype(jnp.float32)
        logits = dense(features, kernel, train=True)
        if self.plan.cosine:
            logits = logits / length(kernel, axis=0)
        return logits if part.bias is None else logits + part.bias


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _parts(
    plan: _Plan, features: Array, columns: LastLayer, positions: Array, live: Array
) -> tuple[Array, Array, Array]:
    """What the loss needs of the logits.

    Args:
      plan: how.
      features: `float32 [rows, dim]`.
      columns: this device's.
      positions: `int [rows, k]`, the columns that a row's label names, no two in a row
        equal; -1 or beyond the columns: not here.
      live: `bool [columns]`, those that count.

    Returns:
      Of all devices: the log of the sum of exponentials of the logits that the label
      does not name, `[rows]`; those that it names, `[rows, k]`, 0 where it does not;
      and the sum of all, `[rows]`.
    """
    return _parts_forward(plan, features, columns, positions, live)[0]


def _parts_forward(
    plan: _Plan, features: Array, columns: LastLayer, positions: Array, live: Array
) -> tuple[tuple[Array, Array, Array], Any]:
    tiles = _Tiles(plan, columns, live)
    saved = features, columns, positions, live
    features = _varying(features, plan.axis)

    def body(carry: tuple[Array, Array, Array], number: Array):
        rest, at_label, total = carry
        there, part = tiles.cut(number)
        logits = tiles.logits(features, part)
        named = tiles.named(positions, number, there)
        others = jnp.where(there & ~jnp.any(named, axis=1), logits, -jnp.inf)
        rest = jnp.logaddexp(rest, jax.nn.logsumexp(others, axis=1))
        at_label += jnp.sum(jnp.where(named, logits[:, None], 0), axis=2)
        total += jnp.sum(jnp.where(there, logits, 0), axis=1)
        return (rest, at_label, total), None

    rows = features.shape[0]
    nothing = jnp.full(rows, -jnp.inf), jnp.zeros(positions.shape), jnp.zeros(rows)
    parts, _ = lax.scan(body, _varying(nothing, plan.axis), jnp.arange(tiles.count))
    rest, at_label, total = parts
    if plan.axis is not None:
        largest = lax.pmax(rest, plan.axis)
        largest = jnp.where(jnp.isfinite(largest), largest, 0)
        rest = jnp.log(lax.psum(jnp.exp(rest - largest), plan.axis)) + largest
        at_label, total = lax.psum((at_label, total), plan.axis)
    return (rest, at_label, total), (*saved, rest)


def _parts_backward(plan: _Plan, saved: Any, slopes: tuple[Array, Array, Array]) -> Any:
    features, columns, positions, live, rest = saved
    tiles = _Tiles(plan, columns, live)
    by_rest, by_label, by_total = slopes
    # Where the label names every class there is no rest, and nothing to divide by.
    rest = jnp.where(jnp.isfinite(rest), rest, 0)
    features = _varying(features, plan.axis)

    def body(carry: tuple[Array, LastLayer], number: Array):
        of_features, of_columns = carry
        there, part = tiles.cut(number)
        logits, pull = jax.vjp(tiles.logits, features, part)
        named = tiles.named(positions, number, there)
        slope = by_rest[:, None] * jnp.exp(logits - rest[:, None])
        at_label = jnp.sum(jnp.where(named, by_label[:, :, None], 0), axis=1)
        slope = jnp.where(jnp.any(named, axis=1), at_label, slope) + by_total[:, None]
        more, of_part = pull(jnp.where(there, slope, 0))

        # In place, as a stack of tiles would be put together by a copy. The columns
        # that the last tile sees again get 0 more.
        def add(whole: Array, part: Array) -> Array:
            part = part + tiles.slice(whole, number)
            start = tiles.start(number)
            return lax.dynamic_update_slice_in_dim(whole, part, start, whole.ndim - 1)

        return (of_features + more, jax.tree.map(add, of_columns, of_part)), None

    nothing = jnp.zeros_like(features), jax.tree.map(jnp.zeros_like, columns)
    (of_features, of_columns), _ = lax.scan(
        body, _varying(nothing, plan.axis), jnp.arange(tiles.count)
    )
    if plan.axis is not None:
        of_features = lax.psum(of_features, plan.axis)
    return of_features, of_columns, None, None


_parts.defvjp(_parts_forward, _parts_backward)


def _varying(tree: Any, axis: str | None) -> Any:
    """The same, said to differ between devices, which a loop's carry has to say."""
    if axis is None:
        return tree
    nothing = lax.axis_index(axis) * 0
    return jax.tree.map(lambda leaf: leaf + nothing.astype(leaf.dtype), tree)


def _features(layer: LastLayer, x: Array) -> Array:
    """Features whose product with the columns, as long as they are to be, is logits."""
    if layer.scale is None:
        return x.astype(jnp.float32)
    return unit(x) * layer.scale


def _columns(
    layer: LastLayer, axis: str | None, classes: int | None
) -> tuple[LastLayer, Array, int | Array]:
    """The columns, which of them are classes, and the first one's class number."""
    count = layer.kernel.shape[1]
    first = 0 if axis is None else lax.axis_index(axis) * count
    live = first + jnp.arange(count) < _all_classes(layer, axis, classes)
    return layer._replace(scale=None), live, first


def _all_classes(layer: LastLayer, axis: str | None, classes: int | None) -> int:
    if classes is not None:
        return classes
    return layer.kernel.shape[1] * (1 if axis is None else lax.axis_size(axis))


def _count(live: Array, axis: str | None) -> Array:
    count = jnp.sum(live, dtype=jnp.float32)
    return count if axis is None else lax.psum(count, axis)


def _entries(labels: Array | TopLabels, rows: int) -> tuple[Array, Array]:
    """Class numbers `[rows, k]`, no two equal in a row, and their probabilities."""
    if not isinstance(labels, TopLabels):
        if labels.shape != (rows,) or not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(
                f"labels is {labels.dtype} {labels.shape}: expected class numbers, int "
                f"({rows},), or TopLabels, as an entry a class would not fit"
            )
        return labels[:, None], jnp.ones((rows, 1))
    numbers, shares = labels
    if numbers.shape != shares.shape or numbers.shape[:1] != (rows,):
        raise ValueError(
            f"labels is TopLabels of {numbers.shape} and {shares.shape}: expected both "
            f"to be [{rows}, k]"
        )
    shares = jnp.where((numbers >= 0) & (shares > 0), shares, 0)
    same = numbers[:, :, None] == numbers[:, None, :]
    earlier = jnp.tril(jnp.ones(same.shape[1:], bool), -1)
    again = jnp.any(same & earlier & (shares > 0)[:, None, :], axis=2)
    shares = jnp.sum(jnp.where(same, shares[:, None, :], 0), axis=2)
    return numbers, jnp.where(again, 0, shares)


def _sample(
    live: Array,
    positions: Array,
    *,
    sampled: int,
    key: Array | None,
    axis: str | None,
) -> Array:
    """Draws columns, those of the labels among them; their numbers, in order."""
    count = live.shape[0]
    if key is None:
        raise ValueError("sampled needs a key: pass key=jax.random.key(...)")
    if axis is not None:
        sampled = sampled // lax.axis_size(axis)
        key = jax.random.fold_in(key, lax.axis_index(axis))
    least = min(positions.size, count)
    if not least <= sampled <= count:
        raise ValueError(
            f"sampled is {sampled} a device: expected {least} to {count}, so that the "
            "classes of all labels are among them"
        )
    draw = jnp.where(live, jax.random.uniform(key, [count]), -1)
    wanted = jnp.where(positions < 0, count, positions)
    draw = draw.at[wanted].set(2, mode="drop")
    return jnp.sort(lax.top_k(draw, sampled)[1])


def _largest(values: Array, numbers: Array, k: int) -> tuple[Array, Array]:
    values, places = lax.top_k(values, k)
    return values, jnp.take_along_axis(numbers, places, axis=1)


def _check(layer: LastLayer, x: Array, tile: int) -> None:
    dim, classes = layer.kernel.shape
    if x.ndim != 2 or x.shape[1] != dim:
        raise ValueError(f"x is {x.shape}: expected features [rows, {dim}]")
    if layer.bias is not None and layer.bias.shape != (classes,):
        raise ValueError(f"bias is {layer.bias.shape}: expected [{classes}]")
    if tile < 1:
        raise ValueError(f"tile is {tile}: expected 1 or more classes")
