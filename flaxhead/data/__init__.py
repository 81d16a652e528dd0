"""The data room: embeddings and labels from files or memory, checked and split."""

from flaxhead.data.dataset import arrays, load, load_split
from flaxhead.data.hashes import fingerprint
from flaxhead.data.inputs import Inputs, open_inputs
from flaxhead.data.records import Dataset, Embeddings, Raw, concatenate, to_batch

__all__ = [
    "Dataset",
    "Embeddings",
    "Inputs",
    "Raw",
    "arrays",
    "concatenate",
    "fingerprint",
    "load",
    "load_split",
    "open_inputs",
    "to_batch",
]
