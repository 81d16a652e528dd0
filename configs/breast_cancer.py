"""Benign or malignant: few rows, unequal classes, probabilities that must be honest.

    python train.py --config=configs/breast_cancer.py

Each class weighs the same in the loss. What wins is chosen by the negative log
likelihood, which punishes confident mistakes; `ece`, `brier` and `nll` in result.json
say how far the probabilities can be trusted.

Expected: test accuracy 0.982 (95 % interval 0.938 to 0.995), test auroc 0.999 and test
nll 0.065, in 10 s of CPU time on 2 cores, cold.
"""

from flaxhead import (
    Config,
    DataConfig,
    HeadConfig,
    LossConfig,
    OptimizerConfig,
    SelectionConfig,
    TrainConfig,
)


def get_config() -> Config:
    """Returns the settings."""
    return Config(
        data=DataConfig("sklearn:breast_cancer", val_fraction=0.4),
        heads=(HeadConfig("linear", normalization="standardize"),),
        loss=LossConfig(class_weights="balanced"),
        optimizer=OptimizerConfig(
            learning_rate=(1e-2, 1e-1, 1.0),
            weight_decay=(1e-4, 1e-3, 1e-2, 1e-1),
        ),
        train=TrainConfig(batch_size=64, epochs=40),
        selection=SelectionConfig(metric="nll"),
    )
