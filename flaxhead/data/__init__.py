"""The data room: embeddings and labels from files or memory, checked and split."""

from flaxhead.data.dataset import (
    RESIDENCIES,
    arrays,
    load,
    load_split,
    measure,
    not_streamed,
)
from flaxhead.data.hashes import fingerprint
from flaxhead.data.inputs import Inputs, open_inputs
from flaxhead.data.records import (
    Dataset,
    Embeddings,
    Raw,
    concatenate,
    padded,
    to_batch,
)
from flaxhead.data.scan import feature_statistics, scan
from flaxhead.data.stored import Stored, in_memory

__all__ = [
    "RESIDENCIES",
    "Dataset",
    "Embeddings",
    "Inputs",
    "Raw",
    "Stored",
    "arrays",
    "concatenate",
    "feature_statistics",
    "fingerprint",
    "in_memory",
    "load",
    "load_split",
    "measure",
    "not_streamed",
    "open_inputs",
    "padded",
    "scan",
    "to_batch",
]
