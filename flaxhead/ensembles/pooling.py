"""What is done with the predictions of several members, one leading axis of logits."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from flaxhead.base import Array, Params
from flaxhead.metrics import Output, finish, row_scores, score_sums
from flaxhead.moments import divisor, row_weights

Pooling: TypeAlias = Literal["probabilities", "logits"]


class Diversity(NamedTuple):
    """How members differ, each `float32 []`.

    Attributes:
      disagreement: the share of rows (of entries, with several labels a row) on which
        two members predict differently, a mean over all pairs; 0 for one member.
      member_nll: the mean of the members' NLL, nats.
      pooled_nll: the NLL of the pooled prediction.
      ambiguity: `member_nll - pooled_nll`, what pooling gains over a member picked at
        random; never negative.
    """

    disagreement: Array
    member_nll: Array
    pooled_nll: Array
    ambiguity: Array


class Uncertainty(NamedTuple):
    """Entropies of a prediction in nats, each `[...]`.

    Attributes:
      total: of the pooled probabilities, `aleatoric + epistemic`.
      aleatoric: the mean of the members' entropies: what they agree cannot be known.
      epistemic: the mean divergence of a member from the pooled probabilities, which is
        the information that the label carries about the member: what more labels
        would settle.
    """

    total: Array
    aleatoric: Array
    epistemic: Array


def pool_probabilities(
    logits: Array, weights: Array | None = None, *, output: Output = "softmax"
) -> Array:
    """Pools members by the mean of their probabilities.

    Args:
      logits: `[members, ..., classes]`.
      weights: `[members]`, 0 or more, how much each counts, `greedy_selection`'s counts
        for one; a member of weight 0 is absent, whatever it holds. None: all alike.
      output: what turns logits into probabilities, `softmax` or `sigmoid`.

    Returns:
      Logits of the mean, `[..., classes]`; those of one member as they are.

    Raises:
      ValueError: if the shapes don't fit or `output` is unknown.

    Source: Lakshminarayanan, Pritzel and Blundell, 2017, "Simple and scalable
    predictive uncertainty estimation using deep ensembles".

    >>> logits = jnp.log(jnp.array([[0.9, 0.1], [0.5, 0.5]]))
    >>> pooled = jax.nn.softmax(pool_probabilities(logits))
    >>> bool(jnp.allclose(pooled, jnp.array([0.7, 0.3])))
    True
    """
    check_output(output)
    share = _shares(logits, weights)
    if len(logits) == 1:
        return logits[0]
    on, off = _log_probabilities(logits, output)
    pooled = _log_mean(on, share)
    return pooled if output == "softmax" else pooled - _log_mean(off, share)


def pool_logits(logits: Array, weights: Array | None = None) -> Array:
    """Pools members by the mean of their logits, a geometric mean of probabilities.

    Args:
      logits: `[members, ..., classes]`.
      weights: as for `pool_probabilities`.

    Returns:
      `[..., classes]`.

    Raises:
      ValueError: if the shapes don't fit.

    >>> pool_logits(jnp.array([[2.0, 0.0], [0.0, 0.0]]), jnp.array([3, 1])).tolist()
    [1.5, 0.0]
    """
    return _mean(logits, _shares(logits, weights))


def member_scores(
    logits: Array,
    labels: Array,
    weights: Array | None = None,
    *,
    output: Output = "softmax",
) -> dict[str, Any]:
    """Scores each member on its own, on the host.

    Args:
      logits: `[members, rows, classes]`.
      labels: `int [rows]` (-1: absent), or `float [rows, classes]`, as for
        `flaxhead.metrics.score_sums`.
      weights: `[rows]`; a row of weight 0 is absent. None: all count alike.
      output: what turns logits into probabilities.

    Returns:
      `float64 [members]` for `accuracy`, `nll` and the other names of
      `flaxhead.metrics.finish`.

    >>> logits = jnp.stack([jnp.eye(2), -jnp.eye(2)])
    >>> member_scores(logits, jnp.array([0, 1]))["accuracy"].tolist()
    [1.0, 0.0]
    """
    weights = check_rows(logits, labels, weights)

    def score(member: Array) -> Any:
        return score_sums(member, labels, weights, output=output)

    return finish(jax.vmap(score)(logits))


def diversity(
    logits: Array,
    labels: Array,
    weights: Array | None = None,
    *,
    pooling: Pooling = "probabilities",
    output: Output = "softmax",
) -> Diversity:
    """Measures how members differ, and what that is worth in NLL.

    Args:
      logits: `[members, rows, classes]`.
      labels: as for `member_scores`.
      weights: `[rows]`, as for `member_scores`.
      pooling: how the members are pooled, `probabilities` or `logits`.
      output: what turns logits into probabilities.

    Returns:
      A `Diversity`; all 0 if no row is present.

    Raises:
      ValueError: if the shapes don't fit or a name is unknown.

    Source: Krogh and Vedelsby, 1995, "Neural network ensembles, cross validation, and
    active learning"; for NLL, Wood et al., 2023, "A unified theory of diversity in
    ensemble learning".

    >>> logits = jnp.array([[[2.0, 0.0], [2.0, 0.0]], [[2.0, 0.0], [0.0, 2.0]]])
    >>> measured = diversity(logits, jnp.array([0, 1]))
    >>> float(measured.disagreement), bool(measured.ambiguity > 0)
    (0.5, True)
    """
    check_pooling(pooling, output)
    members, weights = len(logits), check_rows(logits, labels, weights)
    total, count = jax.vmap(
        lambda member: row_scores("nll", member, labels, output=output)
    )(jnp.concatenate([logits, pool(logits, pooling=pooling, output=output)[None]]))
    present = jnp.where(count[0] > 0, weights, 0)
    nll = _row_mean(total, present) / divisor(_row_mean(count[0], present))
    member_nll, pooled_nll = jnp.mean(nll[:-1]), nll[-1]

    if output == "sigmoid" and labels.ndim == 2:
        yes = jnp.sum(logits > 0, axis=0)
        votes = jnp.stack([yes, members - yes], axis=-1)
        entries = ~jnp.isnan(labels)
    else:
        guesses = jnp.argmax(logits, axis=-1)[..., None]
        votes = jnp.sum(guesses == jnp.arange(logits.shape[-1]), axis=0)[:, None]
        entries = jnp.ones((len(votes), 1), bool)
    # Ordered pairs of members that agree, of all; one member has no pairs.
    alike = jnp.sum(votes * (votes - 1), axis=-1) / max(members * (members - 1), 1)
    differ = jnp.where(entries & (members > 1), 1 - alike, 0)
    disagreement = _row_mean(jnp.sum(differ, axis=1), present) / divisor(
        _row_mean(jnp.sum(entries, axis=1), present)
    )
    return Diversity(disagreement, member_nll, pooled_nll, member_nll - pooled_nll)


def uncertainty(
    logits: Array, weights: Array | None = None, *, output: Output = "softmax"
) -> Uncertainty:
    """Splits the entropy of pooled probabilities into aleatoric and epistemic parts.

    Args:
      logits: `[members, ..., classes]`.
      weights: `[members]`, as for `pool_probabilities`.
      output: what turns logits into probabilities; the entropies of `sigmoid` labels
        are added over labels.

    Returns:
      An `Uncertainty`, each part `[...]`, none negative. Identical members, or one,
      have an epistemic part of exactly 0.

    Raises:
      ValueError: if the shapes don't fit or `output` is unknown.

    Source: Houlsby et al., 2011, "Bayesian active learning for classification and
    preference learning"; Depeweg et al., 2018, "Decomposition of uncertainty in
    Bayesian deep learning for efficient and risk-sensitive learning".

    >>> sure, torn = jnp.array([[9.0, -9.0]] * 2), jnp.array([[9.0, -9.0], [-9.0, 9.0]])
    >>> [round(float(uncertainty(z).epistemic), 2) for z in (sure, torn)]
    [0.0, 0.69]
    """
    check_output(output)
    share = _shares(logits, weights)
    log_p = jnp.stack(_log_probabilities(logits, output)[: 1 + (output == "sigmoid")])
    p = jnp.exp(log_p)
    pooled = jnp.stack([_log_mean(outcome, share) for outcome in log_p])
    # A class that a member rules out adds nothing: the limit of p log p at 0.
    entropy = -jnp.where(p > 0, p * log_p, 0)
    gap = jnp.where(p > 0, p * (log_p - pooled[:, None]), 0)
    aleatoric, epistemic = (
        _mean(jnp.sum(part, axis=(0, -1)), share) for part in (entropy, gap)
    )
    epistemic = jnp.maximum(epistemic, 0)  # Rounding can take a 0 below.
    return Uncertainty(aleatoric + epistemic, aleatoric, epistemic)


def fold_linear(params: Params, weights: Array | None = None) -> Params:
    """Folds linear members pooled in logits into one linear head.

    The mean of linear functions is the linear function of the mean, so nothing is lost
    but the members; members of any other kind, or pooled in probabilities, don't fold
    (`flaxhead.distillation` approximates those by one head).

    Args:
      params: of `linear` members, `{"output": {"kernel": [members, dim, classes],
        "bias": [members, classes]}}`.
      weights: `[members]`, as for `pool_probabilities`.

    Returns:
      Params of one `linear` head, whose logits are `pool_logits` of the members'.

    Raises:
      ValueError: if they are not those of linear members, or the shapes don't fit.

    >>> params = {"output": {"kernel": jnp.ones([3, 4, 2]), "bias": jnp.ones([3, 2])}}
    >>> fold_linear(params)["output"]["kernel"].shape
    (4, 2)
    """
    shapes = jax.tree.map(jnp.shape, params)
    output = shapes.get("output") if isinstance(shapes, dict) else None
    if (
        set(shapes) != {"output"}
        or not isinstance(output, dict)
        or set(output) != {"kernel", "bias"}
        or (len(output["kernel"]), len(output["bias"])) != (3, 2)
    ):
        raise ValueError(
            f"params has the shapes {shapes}: expected those of linear members,"
            " {'output': {'kernel': [members, dim, classes], 'bias': [members,"
            " classes]}}; other members can't be folded, pool their predictions"
        )
    share = _shares(params["output"]["kernel"], weights)
    return jax.tree.map(lambda leaf: _mean(leaf, share), params)


def pool(logits: Array, *, pooling: Pooling, output: Output) -> Array:
    """Pools members `[members, ..., classes]` in the space of that name.

    Raises:
      ValueError: if a name is unknown.
    """
    check_pooling(pooling, output)
    if pooling == "logits":
        return pool_logits(logits)
    return pool_probabilities(logits, output=output)


def check_pooling(pooling: str, output: str) -> None:
    """Refuses names that `pool` does not know.

    Raises:
      ValueError: if a name is unknown.
    """
    if pooling not in ("probabilities", "logits"):
        raise ValueError(
            f"pooling is {pooling!r}: expected 'probabilities' or 'logits'"
        )
    check_output(output)


def check_output(output: str) -> None:
    """Refuses an unknown way from logits to probabilities.

    Raises:
      ValueError: if it is unknown.
    """
    if output not in ("softmax", "sigmoid"):
        raise ValueError(f"output is {output!r}: expected 'softmax' or 'sigmoid'")


def check_rows(logits: Array, labels: Array, weights: Array | None) -> Array:
    """Returns the weights of rows `[rows]`, 0 where a row has no label.

    Raises:
      ValueError: if the shapes don't fit logits `[members, rows, classes]`.
    """
    if logits.ndim != 3:
        raise ValueError(
            f"logits has shape {logits.shape}: expected [members, rows, classes]"
        )
    rows = logits.shape[1]
    given = jnp.ones(rows) if weights is None else jnp.asarray(weights)
    if not len(labels) == len(given) == rows:
        raise ValueError(
            f"labels has {len(labels)} rows and weights {len(given)}: expected {rows}"
            " of both, as logits has"
        )
    return row_weights(labels, given)


def _log_probabilities(logits: Array, output: str) -> tuple[Array, Array]:
    """Log probability of every class and, for sigmoids, of its absence."""
    logits = logits.astype(jnp.float32)
    if output == "sigmoid":
        return jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    log_p = jax.nn.log_softmax(logits)
    return log_p, log_p


def _shares(values: Array, weights: Array | None) -> Array:
    """Weights as a float32 vector, checked against members in front."""
    members = len(values)
    given = jnp.ones(members) if weights is None else jnp.asarray(weights, jnp.float32)
    if given.shape != (members,):
        raise ValueError(
            f"weights has shape {given.shape}: expected ({members},), one a member"
        )
    return given


def _row_mean(values: Array, weights: Array) -> Array:
    """The weighted mean over rows, which are last; 0 if there are none."""
    total = jnp.sum(jnp.where(weights > 0, weights * values, 0), axis=-1)
    return total / divisor(jnp.sum(weights))


def _mean(values: Array, share: Array) -> Array:
    """The weighted mean over members in front; those of weight 0 are absent."""
    share = share.reshape(-1, *[1] * (values.ndim - 1))
    total = jnp.sum(jnp.where(share > 0, share * values, 0), axis=0)
    return total / divisor(jnp.sum(share))


def _log_mean(log_p: Array, share: Array) -> Array:
    """`log sum_m w_m p_m / sum_m w_m`, exactly `log p` where all members say that."""
    present = share.reshape(-1, *[1] * (log_p.ndim - 1)) > 0
    log_p = jnp.where(present, log_p, -jnp.inf)
    top = lax.stop_gradient(jnp.max(log_p, axis=0))
    top = jnp.where(jnp.isfinite(top), top, 0)
    return jnp.log(_mean(jnp.exp(log_p - top), share)) + top
