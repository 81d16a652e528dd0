"""flaxhead: classification heads on frozen embeddings, as one compiled program."""

from flaxhead.base import (
    Batch,
    Fit,
    Head,
    Info,
    Learner,
    Loss,
    Objective,
    State,
    Sums,
    Tokens,
)
from flaxhead.bundle import LoadedHead, load
from flaxhead.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    HeadConfig,
    LossConfig,
    OptimizerConfig,
    SelectionConfig,
    TrainConfig,
)
from flaxhead.data import Dataset, Embeddings, arrays
from flaxhead.fit import fit, seeds, sweep
from flaxhead.heads import (
    HEADS,
    attach,
    cosine,
    extend_classes,
    from_linen,
    from_nnx,
    l2_normalize,
    linear,
    mlp,
    pool,
    replace_classes,
    standardize,
    statistics,
)
from flaxhead.loop import run
from flaxhead.losses import (
    LOSSES,
    class_weighted,
    label_smoothing,
    sigmoid_binary_cross_entropy,
    sigmoid_focal,
    softmax_cross_entropy,
    softmax_focal,
)
from flaxhead.metrics import METRICS, evaluate
from flaxhead.objectives import supervised
from flaxhead.optim import OPTIMIZERS, SCHEDULES, optimizer
from flaxhead.step import learner

__version__ = "0.1.0"

__all__ = [
    "HEADS",
    "LOSSES",
    "METRICS",
    "OPTIMIZERS",
    "SCHEDULES",
    "Batch",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "Dataset",
    "Embeddings",
    "Fit",
    "Head",
    "HeadConfig",
    "Info",
    "Learner",
    "LoadedHead",
    "Loss",
    "LossConfig",
    "Objective",
    "OptimizerConfig",
    "SelectionConfig",
    "State",
    "Sums",
    "Tokens",
    "TrainConfig",
    "arrays",
    "attach",
    "class_weighted",
    "cosine",
    "evaluate",
    "extend_classes",
    "fit",
    "from_linen",
    "from_nnx",
    "l2_normalize",
    "label_smoothing",
    "learner",
    "linear",
    "load",
    "mlp",
    "optimizer",
    "pool",
    "replace_classes",
    "run",
    "seeds",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal",
    "softmax_cross_entropy",
    "softmax_focal",
    "standardize",
    "statistics",
    "supervised",
    "sweep",
]
