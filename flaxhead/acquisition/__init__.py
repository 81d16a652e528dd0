"""Active learning: which rows to label next."""

from flaxhead.acquisition.acquire import RULES, acquire
from flaxhead.acquisition.clusters import Clusters, kmeans
from flaxhead.acquisition.scores import bald, entropy, least_confident, margin

__all__ = [
    "RULES",
    "Clusters",
    "acquire",
    "bald",
    "entropy",
    "kmeans",
    "least_confident",
    "margin",
]
