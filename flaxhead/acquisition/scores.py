"""How much the label of a row is wanted, from a head's probabilities: larger is more.

Each takes probabilities `[..., classes]` that sum to 1 and is 0 where the head is sure.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.scipy.special import entr

from flaxhead.base import Array


def entropy(probabilities: Array) -> Array:
    """Returns `-sum_c p_c log p_c`, `[...]`, in nats.

    Source: Shannon, 1948, "A mathematical theory of communication".

    >>> entropy(jnp.array([[1.0, 0.0], [0.5, 0.5]])).round(3).tolist()
    [0.0, 0.6930000185966492]
    """
    return jnp.sum(entr(probabilities), axis=-1)


def margin(probabilities: Array) -> Array:
    """Returns 1 less the lead of the likeliest class over the next, `[...]`.

    Source: Scheffer, Decomain and Wrobel, 2001, "Active hidden Markov models for
    information extraction".

    >>> margin(jnp.array([[1.0, 0.0, 0.0], [0.5, 0.25, 0.25]])).tolist()
    [0.0, 0.75]
    """
    best, _ = lax.top_k(probabilities, 2)
    return 1 - (best[..., 0] - best[..., 1])


def least_confident(probabilities: Array) -> Array:
    """Returns 1 less the probability of the likeliest class, `[...]`.

    Source: Lewis and Gale, 1994, "A sequential algorithm for training text
    classifiers".

    >>> least_confident(jnp.array([[1.0, 0.0], [0.25, 0.75]])).tolist()
    [0.0, 0.25]
    """
    return 1 - jnp.max(probabilities, axis=-1)


def bald(member_probabilities: Array) -> Array:
    """Returns what a label would tell of which member is right, `[...]`, in nats.

    The entropy of the members' mean, less the mean of their entropies: members that
    are sure of different classes want the label, members that all doubt don't.

    Args:
      member_probabilities: `[members, ..., classes]`, of an ensemble.

    Source: Houlsby et al., 2011, "Bayesian active learning for classification and
    preference learning".

    >>> sure = jnp.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    >>> bald(sure).round(3).tolist(), bald(jnp.full([2, 1, 2], 0.5)).tolist()
    ([0.6930000185966492], [0.0])
    """
    mean = jnp.mean(member_probabilities, axis=0)
    each = jnp.mean(entropy(member_probabilities), axis=0)
    # Not below 0 by rounding.
    return jnp.maximum(entropy(mean) - each, 0)
