"""The data room: embeddings and labels from files or memory, checked and split."""

from flaxhead.data.dataset import arrays, load, load_inputs, load_split
from flaxhead.data.hashes import fingerprint
from flaxhead.data.records import Dataset, Embeddings, Raw, concatenate, to_batch

__all__ = [
    "Dataset",
    "Embeddings",
    "Raw",
    "arrays",
    "concatenate",
    "fingerprint",
    "load",
    "load_inputs",
    "load_split",
    "to_batch",
]
