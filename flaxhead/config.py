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
    """Share of the training rows split off where the source has no `val`; 0: none, for
    a run that chooses by folds."""
    test_fraction: float = 0.2
    """Share of the training rows split off first, where the source has no `test`; 0:
    none, and nothing is reported of one."""
    seed: int = 0
    """Seed of the splits."""
    invalid_rows: str = "error"
    """What NaN or infinite embeddings do: `error`, or `drop` (and list them)."""
    views: bool = False
    """Embeddings of train are `[rows, views, dim]`: several augmentations of each row,
    view 0 the row as it is, by which it is scored. Heads trained by steps learn from
    all views; solved ones, and those with `graph`, `distill` or `prune`, from view 0.
    """
    unlabelled: str = "error"
    """What rows with label -1 or empty do in training: `error`, `drop`, or `keep` as
    rows that semi-supervised heads learn from."""
    label_noise: float = 0.0
    """Share of the training rows whose label is replaced by another one, to see what
    wrong labels do."""
    imbalance: float = 0.0
    """If not 0, training rows are left out until the largest class has so many times
    the rows of the smallest, others in between, to see what rare classes do."""
    residency: str = "auto"
    """Where the training embeddings are (heads trained by steps): `replicated`, all on
    every device; `sharded`, split over the devices; `streamed`, in files, a window of
    them at a time in memory; or `auto`: the first of these that fits."""
    window_bytes: int = 2**28
    """What a window holds (`streamed`), whose rows are shuffled; of about four of them
    at once there is memory to spare."""
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
    """`linear`, `mlp` or `cosine`, trained by gradient steps; or solved exactly,
    `logistic`, `ridge`, `lda`, `nearest_mean` or `knn`; or `semi_supervised`,
    `logistic` with the rows that have no label."""
    columns: tuple[float, ...] = (0.0, 1.0)
    """The part of each embedding that is used, from and to, as shares of its width:
    `(0.6, 0.8)` is the fourth of five vectors that were put side by side."""
    normalization: str = "none"
    """`none`, `l2`, or `standardize` (by the training rows)."""
    pool: str = "none"
    """How tokens become one vector: `none`, `mean`, `max` or `cls`; or trained with the
    head: attention, `query`, `map`, `multi_query` or `gated`, or `gem`, or `mix_layers`
    where tokens are layers. A trained one sees tokens that are normalised already."""
    pool_queries: int = 1
    """Learned queries (attention)."""
    pool_heads: int = 1
    """Attention heads of each query (`query`, `map`)."""
    pool_width: int = 128
    """Hidden units of the attention (`gated`, `map`)."""
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
    C: tuple[float, ...] = tuple(10 ** (i / 2) for i in range(-6, 9))
    """Inverse L2 penalties to try, as scikit-learn's `C` (`logistic`)."""
    alpha: tuple[float, ...] = tuple(10 ** (i / 4) for i in range(-16, 17))
    """L2 penalties to try, as scikit-learn's `alpha` (`ridge`)."""
    shrinkage: tuple[float, ...] = ()
    """Shrinkages of the covariance to try, 0 to 1; empty: Ledoit and Wolf's (`lda`)."""
    metric: str = "cosine"
    """`euclidean`, `cosine` or `mahalanobis` (`nearest_mean`)."""
    k: tuple[int, ...] = (10, 20, 100, 200)
    """Numbers of neighbours to try (`knn`)."""
    temperature: tuple[float, ...] = (0.07,)
    """Temperatures of the neighbours' votes to try (`knn`)."""
    members: int = 1
    """Heads that are one by what they predict on average: an ensemble, if above 1."""
    ensemble: str = "seeds"
    """What members are: heads of other `seeds`; of other draws of the rows, `bagging`
    (also of solved heads but `knn`); `snapshots` of one run, at the ends of so many
    rounds of the schedule; a `soup`, whose weights are averaged, as all begin alike; or
    a `batch_ensemble`, heads that share most of their weights (`mlp`)."""
    graph: bool = False
    """Fit it to what it says together with a graph of nearest rows, which rows without
    a label are part of (`linear`, `mlp`, `cosine`; of `logistic` it is
    `semi_supervised`)."""
    distill: bool = False
    """Ship one head, fitted to what the members say of the rows without a label."""
    prune: bool = False
    """Fit it again without the labels that heads of five folds find likely wrong: their
    rows are then rows without a label."""
    co_teaching: tuple[float, ...] = ()
    """Shares of each batch to try, about that of the wrong labels, that two heads leave
    out for each other; empty: one head, of all rows (`linear`, `mlp`, `cosine`)."""
    tolerance: float = 1e-7
    """How far the objective may be above its minimum, relative to it, or, along a path
    of `C`, to that of a head that knows nothing where that is more; by an estimate that
    can be tens of times too small (`logistic`)."""


SEMI_SUPERVISED = (
    # What it is fitted to are guesses: no need to be exact.
    HeadConfig("semi_supervised", C=(0.1, 1.0, 10.0), tolerance=1e-5),
    HeadConfig("logistic", C=(0.01, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4)),
)
"""With the rows that have no label and without: the better one wins."""

LADDER = (
    HeadConfig("nearest_mean"),
    HeadConfig("ridge"),
    HeadConfig("logistic"),
    HeadConfig("mlp"),
    HeadConfig("mlp", normalization="standardize", dropout=(0.5,)),
)
"""From the simplest head to the one that can fit most: what `auto` chooses among."""


@dataclass(frozen=True)
class LossConfig:
    """What is minimised over the labelled rows."""

    name: str = "auto"
    """Of one class a row: `softmax_cross_entropy`, `softmax_focal`; where labels may be
    wrong `generalized_cross_entropy`, `symmetric_cross_entropy`; where some classes are
    rare `balanced_softmax`, `ldam`. Of several labels a row:
    `sigmoid_binary_cross_entropy`, `sigmoid_focal`, `asymmetric`. Or `auto`: the
    cross-entropy of its task."""
    label_smoothing: tuple[float, ...] = (0.0,)
    """Label smoothing values to try."""
    tile: int = 0
    """Classes at a time in the loss, so that not all logits of a batch are held, where
    classes are very many (`linear`, `cosine`, by `softmax_cross_entropy`); 0: all."""
    focal_gamma: float = 2.0
    """Exponent of the focal losses."""
    generalized_q: float = 0.7
    """From 0, the cross-entropy, to 1, the mean absolute error
    (`generalized_cross_entropy`)."""
    symmetric_alpha: float = 0.1
    """Factor of the cross-entropy (`symmetric_cross_entropy`)."""
    symmetric_beta: float = 1.0
    """Factor of the reverse cross-entropy (`symmetric_cross_entropy`)."""
    ldam_margin: float = 0.5
    """Margin of the rarest class, in logits (`ldam`)."""
    ldam_scale: float = 30.0
    """Multiplier of the logits in the loss (`ldam`)."""
    asymmetric_positive: float = 0.0
    """Exponent where a label is on (`asymmetric`)."""
    asymmetric_negative: float = 4.0
    """Exponent where a label is off (`asymmetric`)."""
    asymmetric_clip: float = 0.05
    """Probability below which a label that is off costs nothing (`asymmetric`)."""
    logit_adjustment: tuple[float, ...] = (0.0,)
    """How much of the log of each class's share of the training rows is added to its
    logit in the loss, to try; 1: for balanced accuracy, 0: none. Solved heads don't."""
    class_weights: str | dict[str, float] = "none"
    """`none`, `balanced`, `effective_number`, or `{"class name": weight}` (1 where not
    named)."""
    effective_number_beta: float = 0.999
    """How slowly further rows of a class count for less (`effective_number`)."""


@dataclass(frozen=True)
class ConsistencyConfig:
    """What trained heads learn from rows without a label, beside the loss."""

    method: str = "none"
    """`none`, or a name of `flaxhead.CONSISTENCY`, such as `fixmatch`; of several
    labels a row `pi`, `mean_teacher` or `uda`."""
    weight: tuple[float, ...] = (1.0,)
    """Factors of that term to try."""
    ratio: int = 4
    """Rows without a label for each of the `batch_size` labelled ones of a step."""
    noise: tuple[float, float] = (0.0, 0.5)
    """Noise of the weak and of the strong view, in standard deviations of each feature.
    With `data.views` it is added to view 0 and to another one."""
    feature_dropout: tuple[float, float] = (0.0, 0.2)
    """Share of the features that the weak and the strong view lose."""


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
    epochs: float = 0.0
    """Passes over the training rows; 0: 30, and 300 steps if that is more. Ignored
    where `steps` is given."""
    steps: int = 0
    """Optimisation steps; 0: from `epochs`."""
    evaluations: int = 15
    """How many times, evenly spread, the validation rows are scored."""
    patience: int = 0
    """Stop a candidate after so many evaluations without a better one; 0: never."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of initialisation and dropout to try; the order of rows is shared."""
    sampling: str = "uniform"
    """Which labelled rows a step sees: `uniform`, each once an epoch, or
    `class_balanced`, as many of each class, and so those of a rare one more often."""
    split: str = "batch"
    """What is split over devices: the `batch`, or the `candidates`."""
    devices: int = 0
    """How many local devices to use; 0: all of them."""
    precision: str = "default"
    """Of the matrix products of training steps: `default`, which on a TPU rounds what
    it multiplies to bfloat16 and on a GPU may to TF32, `high` or `highest`. What is
    solved, counted or evaluated is in full float32 in any case."""


@dataclass(frozen=True)
class SelectionConfig:
    """What wins."""

    metric: str = "auto"
    """A name from `flaxhead.METRICS`; `auto`: accuracy, or `average_precision` for
    several labels a row."""
    rule: str = "best"
    """`best`, or `one_standard_error`: the simplest candidate that is within one
    standard error of the best."""
    folds: int = 0
    """Choose by so many folds of the training and validation rows together; 0: by the
    validation rows."""
    fold_by: str = "stratified"
    """How rows are cut into folds: `stratified`, `k_fold`, `grouped`,
    `leave_one_group_out`, or `leave_one_out` (of rows, exact and at once: `ridge`)."""
    nested: int = 0
    """Outer folds of a nested cross-validation, which scores the choice itself; 0:
    none."""
    refit: bool = True
    """Fit the winner again on training and validation rows, where the validation rows
    choose among whole fits; where folds choose that is always done."""
    extend: int = 2
    """How many times a grid of `C` or `alpha` grows by three values where the winner
    lies on its edge."""


@dataclass(frozen=True)
class CurveConfig:
    """A learning curve: the score on the test rows against labels per class."""

    shots: tuple[int, ...] = ()
    """Labels per class to draw; empty: no curve."""
    repeats: int = 5
    """Draws of each; what wins in a draw is chosen by folds of that draw alone."""


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
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    curve: CurveConfig = field(default_factory=CurveConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    protocol: str = ""
    """Name and version of the published protocol that these settings are, recorded in
    the result; empty for none."""
