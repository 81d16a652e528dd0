"""Head -> Head: several members as one head.

A head of *members* has logits `[members, ..., classes]`; `pooled` makes them one
prediction, and so a head like any other:

    ensemble(head, count) == pooled(members(head, count))
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxhead.base import Array, Head, Loss, Objective, Params
from flaxhead.ensembles.pooling import Pooling, check_pooling
from flaxhead.ensembles.pooling import pool as pool_members
from flaxhead.heads import ACTIVATIONS, from_linen, mlp
from flaxhead.heads.dense import dense
from flaxhead.heads.dropout import Dropout, check_dropout
from flaxhead.heads.pool import check_input
from flaxhead.metrics import Output
from flaxhead.moments import exact
from flaxhead.objectives import supervised


def members(head: Head, count: int) -> Head:
    """Puts copies of a head side by side, each with parameters of its own.

    Args:
      head: any head.
      count: of copies, at least 1.

    Returns:
      A `Head` of logits `[count, ..., classes]` and of the params of `head` with a
      leading axis of `count`: those that `flaxhead.fit.seeds` and `sweep` return.
      Member `m` has what the head has for the key `fold_in(key, m)`.

    Raises:
      ValueError: if `count` is below 1.

    >>> from flaxhead.heads import linear
    >>> head = members(linear(2), 3)
    >>> params = head.init(jax.random.key(0), jnp.ones([5, 4]))
    >>> params["output"]["kernel"].shape, head.apply(params, jnp.ones([5, 4])).shape
    ((3, 4, 2), (3, 5, 2))
    """
    _check_count(count)

    def init(key: Array, x: Any) -> Params:
        return jax.vmap(lambda key: head.init(key, x))(_keys(key, count))

    def apply(
        params: Params, x: Any, *, key: Array | None = None, train: bool = False
    ) -> Array:
        def one(params: Params, key: Array | None) -> Array:
            return head.apply(params, x, key=key, train=train)

        return jax.vmap(one)(params, None if key is None else _keys(key, count))

    return Head(init, apply)


def pooled(
    head: Head, *, pooling: Pooling = "probabilities", output: Output = "softmax"
) -> Head:
    """Makes the predictions of a head's members one.

    Args:
      head: a head of members, of logits `[members, ..., classes]`.
      pooling: `probabilities`, the log of their mean, or `logits`, the mean of those.
      output: what turns logits into probabilities, `softmax` or `sigmoid`.

    Returns:
      A `Head` of logits `[..., classes]` with the params of `head`. Of one member it
      has the logits as they are.

    Raises:
      ValueError: if a name is unknown.

    >>> from flaxhead.heads import linear
    >>> head, x = linear(2, zero_init=False), jnp.ones([5, 4])
    >>> params = members(head, 1).init(jax.random.key(0), x)
    >>> first = jax.tree.map(lambda leaf: leaf[0], params)
    >>> one = pooled(members(head, 1))
    >>> bool(jnp.array_equal(one.apply(params, x), head.apply(first, x)))
    True
    """
    check_pooling(pooling, output)

    def apply(
        params: Params, x: Any, *, key: Array | None = None, train: bool = False
    ) -> Array:
        logits = head.apply(params, x, key=key, train=train)
        return pool_members(logits, pooling=pooling, output=output)

    return Head(head.init, apply)


def ensemble(
    head: Head,
    count: int,
    *,
    pooling: Pooling = "probabilities",
    output: Output = "softmax",
) -> Head:
    """Pools copies of a head: a deep ensemble, where they are trained apart.

    `seeds(fit, count)` trains them, each as alone; the params are this head's.

    Args:
      head: any head.
      count: see `members`.
      pooling: see `pooled`.
      output: see `pooled`.

    Returns:
      `pooled(members(head, count))`.

    Raises:
      ValueError: if `count` is below 1 or a name is unknown.

    Source: Lakshminarayanan, Pritzel and Blundell, 2017, "Simple and scalable
    predictive uncertainty estimation using deep ensembles".

    >>> from flaxhead.heads import mlp
    >>> head = ensemble(mlp(2, width=8), 10)
    >>> params = head.init(jax.random.key(0), jnp.ones([5, 4]))
    >>> head.apply(params, jnp.ones([5, 4])).shape
    (5, 2)
    """
    return pooled(members(head, count), pooling=pooling, output=output)


def supervised_members(head: Head, loss: Loss) -> Objective:
    """The mean over members of each one's loss, not the loss of the pooled prediction.

    For members that share parameters or a run. Those that share nothing are better
    trained by `flaxhead.fit.seeds`, where a gradient is not divided by their number.

    Args:
      head: a head of members.
      loss: logits and labels -> one loss a row.

    Returns:
      `flaxhead.objectives.supervised`, over rows and members.

    >>> from flaxhead.base import Batch
    >>> from flaxhead.heads import linear
    >>> from flaxhead.losses import softmax_cross_entropy
    >>> head = members(linear(2), 3)
    >>> x, rows = jnp.ones([4, 3]), jnp.arange(4)
    >>> batch = Batch(x, jnp.array([0, 1, 0, -1]), jnp.ones(4), rows)
    >>> params = head.init(jax.random.key(0), x)
    >>> objective = supervised_members(head, softmax_cross_entropy)
    >>> sums, memory = objective.apply(params, (), batch, jax.random.key(1))
    >>> round(float(sums["supervised"].total / sums["supervised"].count), 4)
    0.6931
    """

    def over_members(
        logits: Array,
        labels: Array,
        *,
        where: Array | None = None,
        weights: Array | None = None,
    ) -> Array:
        def one(logits: Array) -> Array:
            return loss(logits, labels, where=where, weights=weights)

        return jnp.mean(jax.vmap(one)(logits), axis=0)

    return supervised(head, over_members)


def packed(
    classes: int, count: int, *, width: int = 256, alpha: float = 2.0, **options: Any
) -> Head:
    """Members so narrow that all of them cost about what one head does.

    Source: Laurent et al., 2023, "Packed-ensembles for efficient uncertainty
    estimation". Its grouped layers are members side by side.

    Args:
      classes: the number of logits.
      count: of members, at least 1.
      width: hidden units of the one head.
      alpha: how many times its hidden units the members have together.
      **options: of `flaxhead.heads.mlp`.

    Returns:
      A head of members; `supervised_members` trains it.

    Raises:
      ValueError: if a number or an option of `mlp` is out of its range.

    >>> head = packed(2, 4, width=64)
    >>> head.init(jax.random.key(0), jnp.ones([5, 8]))["hidden_0"]["kernel"].shape
    (4, 8, 32)
    """
    _check_count(count)
    own = round(alpha * width / count)
    if own < 1:
        raise ValueError(
            f"packed got width {width}, alpha {alpha} and count {count}, {own} hidden"
            " units a member: expected alpha * width of at least count"
        )
    return members(mlp(classes, width=own, **options), count)


def mimo(head: Head, count: int) -> Head:
    """Fits several heads into one, which predicts several rows at a time.

    In training member `m` predicts the rows at place `m` of tuples of different rows,
    put together at random from the batch (so that it depends on how a batch is cut over
    devices, and rows of weight 0 come up beside others); at prediction a tuple is one
    row repeated, and members differ because they learned not to listen to each other.

    Source: Havasi et al., 2021, "Training independent subnetworks for robust
    prediction".

    Args:
      head: of `count * classes` logits, on embeddings `[batch, count * dim]`.
      count: of members, at least 1.

    Returns:
      A head of members on `[batch, dim]`; `supervised_members` trains it.

    Raises:
      ValueError: if `count` is below 1; by `apply`, if the number of logits is not a
        multiple of it, if the head is given tokens, or in training no key.

    >>> head = mimo(mlp(3 * 2, width=16), 3)
    >>> params = head.init(jax.random.key(0), jnp.ones([5, 4]))
    >>> params["hidden_0"]["kernel"].shape, head.apply(params, jnp.ones([5, 4])).shape
    ((12, 16), (3, 5, 2))
    """
    _check_count(count)

    def init(key: Array, x: Any) -> Params:
        check_input("mimo", x)
        return head.init(key, jnp.tile(x, count))

    def split(logits: Array) -> Array:
        if logits.shape[-1] % count:
            raise ValueError(
                f"mimo got a head of {logits.shape[-1]} logits: expected a multiple of"
                f" count, {count}"
            )
        logits = logits.reshape(*logits.shape[:-1], count, -1)
        return jnp.moveaxis(logits, -2, 0)

    def apply(
        params: Params, x: Any, *, key: Array | None = None, train: bool = False
    ) -> Array:
        check_input("mimo", x)
        if not train:
            return split(head.apply(params, jnp.tile(x, count), key=key))
        if key is None:
            raise ValueError(
                "mimo draws its tuples with train=True and got no key: pass"
                " key=jax.random.key(...), or one key a row"
            )
        if key.ndim == 0:
            key = _keys(key, len(x))
        # Rows in the order of a number that each draws; the first place keeps its own,
        # so that one member is the head itself.
        draws = jax.vmap(jax.random.uniform)(_keys(key, count).ravel())
        order = jnp.argsort(draws.reshape(count, len(x)), axis=1)
        order = order.at[0].set(jnp.arange(len(x)))
        tuples = jnp.moveaxis(x[order], 0, 1).reshape(len(x), -1)
        logits = split(head.apply(params, tuples, key=key, train=True))
        # Back to the rows' order: row `order[m, t]` was at place `m` of tuple `t`.
        back = jnp.argsort(order, axis=1)
        return jnp.take_along_axis(logits, back[..., None], axis=1)

    return Head(init, apply)


def mc_dropout(head: Head, count: int, *, seed: int = 0) -> Head:
    """Makes the masks of dropout the members of one head.

    Source: Gal and Ghahramani, 2016, "Dropout as a Bayesian approximation".

    Args:
      head: one with dropout.
      count: of masks, at least 1.
      seed: draws the masks, the same for every row and every call, so that a row's
        prediction depends on nothing but the row.

    Returns:
      A head of members with the params of `head`. In training it is `head`, as one
      member, whose mask is of the key that it is given.

    Raises:
      ValueError: if `count` is below 1.

    >>> head = pooled(mc_dropout(mlp(2, width=8, dropout=0.5, zero_init=False), 20))
    >>> x = jnp.ones([2, 4])
    >>> logits = head.apply(head.init(jax.random.key(0), x), x)
    >>> bool(jnp.array_equal(logits[0], logits[1]))
    True
    """
    _check_count(count)

    def apply(
        params: Params, x: Any, *, key: Array | None = None, train: bool = False
    ) -> Array:
        if train:
            return head.apply(params, x, key=key, train=True)[None]
        rows = len(jax.tree.leaves(x)[0])

        def one(key: Array) -> Array:
            return head.apply(params, x, key=jnp.broadcast_to(key, rows), train=True)

        return jax.vmap(one)(_keys(jax.random.key(seed), count))

    return Head(head.init, apply)


class BatchEnsemble(nn.Module):
    """Hidden layers and a linear one; the attributes are `batch_ensemble`'s."""

    classes: int
    count: int
    width: int
    depth: int
    activation: str
    dropout: float | Array
    zero_init: bool

    @nn.compact
    def __call__(self, inputs: tuple[Array, Array | None], *, train: bool) -> Array:
        """Maps `[rows, dim]` to logits `[members, rows, classes]`.

        Given `[rows, members]` of one 1 a row, to those of its member, `[rows,
        classes]`.
        """
        x, member = inputs
        check_input("batch_ensemble", x)
        if member is None:
            x = x[None]
        for layer in range(self.depth):
            x = RankOne(self.width, self.count, name=f"hidden_{layer}")(x, member)
            x = ACTIVATIONS[self.activation](x)
            x = Dropout(self.dropout)(x, train=train)
        output = RankOne(self.classes, self.count, self.zero_init, name="output")
        return output(x, member)


class RankOne(nn.Module):
    """A dense layer that members share but for a factor of every input and output.

    Attributes:
      features: the width of the output.
      count: of members.
      zero_init: start with a kernel of zeros instead of LeCun's normal one.
    """

    features: int
    count: int
    zero_init: bool = False

    @nn.compact
    def __call__(self, x: Array, member: Array | None) -> Array:
        """Maps `[1 or members, rows, dim]`, or `[rows, dim]` by each one's member."""
        initializers = jax.nn.initializers
        start = initializers.zeros if self.zero_init else initializers.lecun_normal()
        kernel = self.param("kernel", start, (x.shape[-1], self.features))
        inputs = self.param("inputs", _signs, (self.count, x.shape[-1]))
        outputs = self.param("outputs", _signs, (self.count, self.features))
        bias = self.param("bias", initializers.zeros, (self.count, self.features))

        def factor(every: Array) -> Array:
            return every[:, None] if member is None else exact(member, every)

        product = dense(x * factor(inputs), kernel, train=member is not None)
        return product * factor(outputs) + factor(bias)


def batch_ensemble(
    classes: int,
    count: int,
    *,
    width: int = 256,
    depth: int = 1,
    activation: str = "gelu",
    dropout: float | Array = 0.0,
    zero_init: bool = True,
) -> Head:
    """Members that share their kernels, each with factors of their rows and columns.

    A layer of member `m` is `((x * r_m) @ kernel) * s_m + b_m`. In training each row is
    seen by one member, drawn by the row's key, so that a step costs what one head's
    does.

    Source: Wen, Tran and Ba, 2020, "BatchEnsemble: an alternative approach to efficient
    ensemble and lifelong learning".

    Args:
      classes: the number of logits.
      count: of members, at least 1.
      width: hidden units of each layer.
      depth: hidden layers; 0: a linear head.
      activation: a name from `flaxhead.heads.ACTIVATIONS`.
      dropout: rate at which hidden units are dropped in training; may be a traced
        scalar.
      zero_init: start the last layer at zero, where every class is equally likely.

    Returns:
      A head of members, in training of one: `supervised(pooled(...), loss)` and
      `supervised_members` train it alike. Its params `hidden_0`, ..., `output` each
      hold `kernel`, `inputs` (the `r_m`), `outputs` (`s_m`) and `bias`.

    Raises:
      ValueError: if a number is out of its range or `activation` is unknown, or when
        the head is given tokens.

    >>> head = batch_ensemble(2, 4, width=16)
    >>> params = head.init(jax.random.key(0), jnp.ones([5, 8]))
    >>> params["hidden_0"]["inputs"].shape, head.apply(params, jnp.ones([5, 8])).shape
    ((4, 8), (4, 5, 2))
    """
    _check_count(count)
    if depth < 0 or width < 1:
        raise ValueError(
            f"batch_ensemble got depth {depth} and width {width}: expected a depth of 0"
            " or more and a width of 1 or more"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation is {activation!r}: expected one of {', '.join(ACTIVATIONS)}"
        )
    check_dropout(dropout)
    inner = from_linen(
        BatchEnsemble(classes, count, width, depth, activation, dropout, zero_init)
    )

    def init(key: Array, x: Any) -> Params:
        return inner.init(key, (x, None))

    def apply(
        params: Params, x: Any, *, key: Array | None = None, train: bool = False
    ) -> Array:
        if not train:
            return inner.apply(params, (x, None))
        if key is None:
            raise ValueError(
                "batch_ensemble draws members with train=True and got no key: pass"
                " key=jax.random.key(...), or one key a row"
            )
        if key.ndim == 0:
            key = _keys(key, len(x))
        own, noise = _keys(key, 2)
        drawn = jax.vmap(lambda key: jax.random.randint(key, (), 0, count))(own)
        pair = x, jax.nn.one_hot(drawn, count)
        return inner.apply(params, pair, key=noise, train=True)[None]

    return Head(init, apply)


def _signs(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    return jax.random.rademacher(key, shape, dtype)


def member_key(key: Array, number: int | Array) -> Array:
    """A member's key, of one key for all rows or of one a row."""
    fold = jax.random.fold_in
    if key.ndim:
        fold = jax.vmap(fold, in_axes=(0, None))
    return fold(key, number)


def _keys(key: Array, count: int) -> Array:
    """A key a member, `[count]`; of a key a row, `[count, rows]`."""
    return jax.vmap(member_key, in_axes=(None, 0))(key, jnp.arange(count))


def _check_count(count: int) -> None:
    if count < 1:
        raise ValueError(f"count is {count}: expected 1 or more members")
