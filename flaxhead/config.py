"""Every setting of a run with its default, once.

A config file is a Python module with `get_config() -> Config`. `flags.py` says how the
command line changes one field of it; in `build.py` its names become functions.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class DataConfig:
    """Where the embeddings come from and how they are split."""

    source: str = "sklearn:digits"
    """`sklearn:NAME`, `npz:DIR`, `npy:DIR`, `safetensors:DIR`, `parquet:DIR` or
    `tfds:NAME`."""
    task: str = "auto"
    """`multiclass`, `multilabel`, or `auto`: multi-label when a label is a 0/1 matrix
    whose rows don't all sum to 1, or that has missing entries."""
    val_fraction: float = 0.2
    """Share of the training rows split off where the source has no `val`."""
    test_fraction: float = 0.2
    """Share of the training rows split off first, where the source has no `test`."""
    seed: int = 0
    """Seed of the splits."""
    invalid_rows: str = "error"
    """What NaN or infinite embeddings do: `error`, or `drop` (and list them)."""
    unlabelled: str = "error"
    """What rows with label -1 or empty do in training: `error`, or `drop`."""
    allow_unseen: bool = False
    """Accept classes in `val` or `test` that `train` lacks, and report them apart."""
    embeddings_field: str = ""
    """Name of the embedding field (parquet, TFDS); empty: the only one that fits."""
    labels_field: str = ""
    """Name of the label field (parquet, TFDS); empty: the only one that fits."""
    backbone: str = ""
    """Name of the frozen backbone, recorded in the feature spec of the head."""


@dataclass(frozen=True)
class HeadConfig:
    """One shape of head; the tuples are swept."""

    name: str = "linear"
    """`linear`, `mlp` or `cosine`."""
    normalization: str = "none"
    """`none`, `l2`, or `standardize` (by the training rows)."""
    pool: str = "none"
    """How tokens become one vector: `none`, `mean`, `max` or `cls`."""
    width: int = 256
    """Hidden units of each layer (`mlp`)."""
    depth: int = 1
    """Hidden layers (`mlp`)."""
    activation: str = "gelu"
    """`gelu`, `relu`, `silu` or `tanh` (`mlp`)."""
    layer_norm: bool = False
    """Layer normalisation before each activation (`mlp`)."""
    scale: float = 16.0
    """Multiplier of the cosine similarities, the start of a learned one (`cosine`)."""
    learn_scale: bool = True
    """Whether that multiplier is learned (`cosine`)."""
    zero_init: bool = True
    """Start the last layer at zero (`linear`, `mlp`)."""
    dropout: tuple[float, ...] = (0.0,)
    """Dropout rates to try (`mlp`: hidden units; others: the input)."""


@dataclass(frozen=True)
class LossConfig:
    """What is minimised over the labelled rows."""

    name: str = "auto"
    """`softmax_cross_entropy`, `sigmoid_binary_cross_entropy`, `softmax_focal`,
    `sigmoid_focal`, or `auto`: the first of its task."""
    label_smoothing: tuple[float, ...] = (0.0,)
    """Label smoothing values to try."""
    focal_gamma: float = 2.0
    """Exponent of the focal losses."""
    class_weights: str | dict[str, float] = "none"
    """`none`, `balanced`, or `{"class name": weight}` (1 where not named)."""


@dataclass(frozen=True)
class OptimizerConfig:
    """The optax chain; the tuples are swept."""

    name: str = "adam"
    """`sgd`, `adam`, `adamw` or `lion`."""
    learning_rate: tuple[float, ...] = (1e-3,)
    """Peak learning rates to try."""
    reference_batch: int = 0
    """If not 0, learning rates are multiplied by batch_size / reference_batch."""
    weight_decay: tuple[float, ...] = (0.0,)
    """L2 penalties to try, never on biases; decoupled for `adamw` and `lion`."""
    momentum: float = 0.9
    """Momentum (`sgd`)."""
    nesterov: bool = False
    """Nesterov momentum (`sgd`)."""
    schedule: str = "cosine"
    """`constant`, `cosine`, `warmup_cosine` or `one_cycle`."""
    warmup_fraction: float = 0.1
    """Share of the steps that warm up (`warmup_cosine`, `one_cycle`)."""
    clip_norm: float = 0.0
    """Largest global norm of a gradient; 0: no clipping."""


@dataclass(frozen=True)
class TrainConfig:
    """How long, and on what."""

    batch_size: int = 256
    """Rows a step, over all devices; all rows if there are fewer."""
    epochs: float = 30.0
    """Passes over the training rows; ignored where `steps` is given."""
    steps: int = 0
    """Optimisation steps; 0: from `epochs`."""
    evaluations: int = 15
    """How many times, evenly spread, the validation rows are scored."""
    patience: int = 0
    """Stop a candidate after so many evaluations without a better one; 0: never."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of initialisation and dropout to try; the order of rows is shared."""
    split: str = "batch"
    """What is split over devices: the `batch`, or the `candidates`."""
    devices: int = 0
    """How many local devices to use; 0: all of them."""
    precision: str = "default"
    """Precision of matrix products: `default`, `high` or `highest`."""


@dataclass(frozen=True)
class SelectionConfig:
    """What wins."""

    metric: str = "auto"
    """A name from `flaxhead.METRICS`; `auto`: accuracy, or `average_precision` for
    several labels a row."""
    rule: str = "best"
    """`best`, or `one_standard_error`: the simplest candidate that is within one
    standard error of the best."""


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept in `WORKDIR/checkpoints`."""

    every_seconds: float = 30.0
    """Save at the first evaluation or pause after so many seconds."""
    keep: int = 2
    """How many of the latest checkpoints are kept, beside the best."""


@dataclass(frozen=True)
class Config:
    """A whole run."""

    data: DataConfig = field(default_factory=DataConfig)
    heads: tuple[HeadConfig, ...] = (HeadConfig(),)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
