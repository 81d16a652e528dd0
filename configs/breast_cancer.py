"""Benign or malignant: few rows, unequal classes, probabilities that must be honest.

    python train.py --config=configs/breast_cancer.py

Each class weighs the same in the loss. What wins is chosen by the negative log
likelihood, which punishes confident mistakes; `ece`, `brier` and `nll` in result.json
say how far the probabilities can be trusted.

EXPECTED
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
        data=DataConfig("sklearn:breast_cancer"),
        heads=(HeadConfig("linear", normalization="standardize"),),
        loss=LossConfig(class_weights="balanced"),
        optimizer=OptimizerConfig(
            learning_rate=(3e-3, 1e-2, 3e-2, 1e-1),
            weight_decay=(1e-4, 1e-3, 1e-2, 1e-1),
        ),
        train=TrainConfig(batch_size=64, epochs=40),
        selection=SelectionConfig(metric="nll"),
    )
