"""Embeddings -> logits: heads, what lifts a module to one, and what wraps one."""

from flaxhead.heads.attention import (
    ATTENTIONS,
    MULTI_HEAD,
    attention_pool,
    attention_weights,
)
from flaxhead.heads.compose import attach, map_values, preprocess
from flaxhead.heads.cosine import cosine
from flaxhead.heads.layers import mix_layers
from flaxhead.heads.lifts import from_linen, from_nnx
from flaxhead.heads.linear import linear
from flaxhead.heads.mlp import ACTIVATIONS, mlp
from flaxhead.heads.neighbours import neighbours
from flaxhead.heads.normalize import l2_normalize
from flaxhead.heads.pool import POOLINGS, gem, pool
from flaxhead.heads.standardize import standardize, statistics
from flaxhead.heads.transfer import extend_classes, replace_classes

HEADS = {"linear": linear, "mlp": mlp, "cosine": cosine}
"""Name -> factory; each takes the number of classes and options by keyword."""

__all__ = [
    "ACTIVATIONS",
    "ATTENTIONS",
    "HEADS",
    "MULTI_HEAD",
    "POOLINGS",
    "attach",
    "attention_pool",
    "attention_weights",
    "cosine",
    "extend_classes",
    "from_linen",
    "from_nnx",
    "gem",
    "l2_normalize",
    "linear",
    "map_values",
    "mix_layers",
    "mlp",
    "neighbours",
    "pool",
    "preprocess",
    "replace_classes",
    "standardize",
    "statistics",
]
