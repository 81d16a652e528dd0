"""Anybody's Flax module -> `Head`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import InvalidRngError
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxhead.base import Array, Head, Params

if TYPE_CHECKING:
    from flax import nnx

_NEEDS_KEY = (
    "the head draws random numbers (dropout) with train={train} and got no key: pass"
    " key=jax.random.key(...), or one key a row"
)


def from_linen(module: nn.Module) -> Head:
    """Lifts a Flax linen module to a `Head`.

    The module's `__call__` takes a batch `x` and, if it wishes, `train`, `training` or
    `deterministic`. Where it draws random numbers in training (any stream), it is
    applied to each row alone with the row's own key, so that the noise depends neither
    on the device nor on the row's position; otherwise to the whole batch.

    Args:
      module: maps `x` (`[batch, dim]`, tokens, or any pytree of such arrays) to logits
        `[batch, classes]`. Parameters only: no batch statistics.

    Returns:
      A `Head` whose params are the module's `params` collection; logits are float32.

    Raises:
      ValueError: by `init`, if the module has other collections than `params`; by
        `apply`, if the module draws random numbers and there is no key.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> head = from_linen(nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)]))
    >>> params = head.init(jax.random.key(0), jnp.ones([5, 4]))
    >>> head.apply(params, jnp.ones([5, 4])).shape
    (5, 3)
    """
    options = _mode_options(type(module).__call__)

    def init(key: Array, x: Any) -> Params:
        variables = module.init(key, x, **options(False))
        _refuse_state(sorted(set(variables) - {"params"}))
        return variables.get("params", {})

    def apply(
        params: Params, x: Any, *, key: Array | None = None, train: bool = False
    ) -> Array:
        def run(x: Any, key: Array | None) -> Array:
            # A single key serves whatever streams the module names.
            logits = module.apply({"params": params}, x, rngs=key, **options(train))
            return jnp.asarray(logits, jnp.float32)

        if train and key is not None and _draws(run, x):
            return _by_row(run, x, key)
        try:
            return run(x, None)
        except InvalidRngError:
            raise ValueError(_NEEDS_KEY.format(train=train)) from None

    return Head(init, apply)


def from_nnx(make: Callable[[nnx.Rngs], nnx.Module]) -> Head:
    """Lifts a Flax NNX module to a `Head`.

    It takes the module's constructor, not a module, as those are born with parameters
    and `init` has to draw them from its key: a sweep over seeds needs that. The
    module's `__call__` takes a batch `x` and, if it wishes, `train`, `training` or
    `deterministic`, and `rngs`. A module that holds a random stream or takes `rngs` is
    applied in training to each row alone with the row's own key.

    Args:
      make: `(rngs) -> module`, which maps `x` to logits `[batch, classes]`. `nnx.Param`
        variables only: no batch statistics.

    Returns:
      A `Head` whose params are the module's, as a plain nested dict of arrays (an
      element of a list is named by its number, "0"); logits are float32.

    Raises:
      ValueError: if the module has variables other than `nnx.Param` and random streams;
        by `apply`, if it draws random numbers in training and there is no key.

    >>> from flax import nnx
    >>> import jax, jax.numpy as jnp
    >>> head = from_nnx(lambda rngs: nnx.Linear(4, 3, rngs=rngs))
    >>> params = head.init(jax.random.key(0), jnp.ones([5, 4]))
    >>> sorted(params), head.apply(params, jnp.ones([5, 4])).shape
    (['bias', 'kernel'], (5, 3))
    """
    from flax import nnx  # Here, as it is slow to import and few need it.

    abstract = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graph, empty, streams, rest = nnx.split(abstract, nnx.Param, nnx.RngState, ...)
    _refuse_state(sorted({type(v).__name__ for _, v in nnx.to_flat_state(rest)}))
    call = type(abstract).__call__
    options = _mode_options(call)
    takes_rngs = "rngs" in inspect.signature(call).parameters
    draws = takes_rngs or bool(jax.tree.leaves(streams))

    def init(key: Array, x: Any) -> Params:
        del x  # The constructor has been told its width.
        params = nnx.to_flat_state(nnx.state(make(nnx.Rngs(key)), nnx.Param))
        return unflatten_dict({_names(path): v.get_value() for path, v in params})

    def started(key: Array) -> Any:
        """The module's streams, each from a key of its own."""
        leaves, tree = jax.tree.flatten(streams)
        return tree.unflatten(
            jax.random.fold_in(key, number)
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else jnp.zeros(leaf.shape, leaf.dtype)
            for number, leaf in enumerate(leaves)
        )

    def apply(
        params: Params, x: Any, *, key: Array | None = None, train: bool = False
    ) -> Array:
        values = flatten_dict(params)
        filled = nnx.from_flat_state(
            (path, v.replace(values[_names(path)]))
            for path, v in nnx.to_flat_state(empty)
        )

        def run(x: Any, key: Array | None) -> Array:
            held = streams if key is None else started(key)
            module = nnx.merge(graph, filled, held)
            (module.train if train else module.eval)()
            rngs = {"rngs": nnx.Rngs(key)} if takes_rngs and key is not None else {}
            return module(x, **options(train), **rngs).astype(jnp.float32)

        if not (train and draws):
            return run(x, None)
        if key is None:
            raise ValueError(_NEEDS_KEY.format(train=train))
        return _by_row(run, x, key)

    return Head(init, apply)


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(str(part) for part in path)


def _mode_options(call: Callable[..., Any]) -> Callable[[bool], dict[str, Any]]:
    """Says how a module's `__call__` is told whether it is being trained."""
    names = inspect.signature(call).parameters
    when_training = {"train": True, "training": True, "deterministic": False}

    def options(train: bool) -> dict[str, Any]:
        return {
            name: value == train
            for name, value in when_training.items()
            if name in names
        }

    return options


def _refuse_state(collections: list[str]) -> None:
    if collections:
        raise ValueError(
            f"the module has the collections {', '.join(collections)} beside its"
            " parameters, and a head has parameters only: use layers without running"
            " state, such as LayerNorm instead of BatchNorm"
        )


def _draws(run: Callable[[Any, Array | None], Array], x: Any) -> bool:
    """Whether a linen module asks for random numbers, found out by tracing it."""
    try:
        jax.eval_shape(lambda x: run(x, None), x)
    except InvalidRngError:
        return True
    return False


def _by_row(run: Callable[[Any, Array | None], Array], x: Any, key: Array) -> Array:
    """Runs each row as a batch of one with a key of its own."""
    if key.ndim == 0:
        rows = jnp.arange(jax.tree.leaves(x)[0].shape[0])
        key = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)

    def one(row: Any, row_key: Array) -> Array:
        return run(jax.tree.map(lambda leaf: leaf[None], row), row_key)[0]

    return jax.vmap(one)(x, key)
