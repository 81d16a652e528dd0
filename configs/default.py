"""A sweep of linear and MLP heads on the handwritten digits of scikit-learn.

    python train.py

Cold, it takes 14 s of CPU time on 2 cores. Expected: mlp-128x1 wins, test accuracy
0.955 (95 % interval 0.929 to 0.972).
"""

from flaxhead import (
    Config,
    HeadConfig,
    OptimizerConfig,
    SelectionConfig,
    TrainConfig,
)


def get_config() -> Config:
    """Returns the settings."""
    return Config(
        heads=(
            HeadConfig("linear", normalization="standardize"),
            HeadConfig("mlp", normalization="standardize", width=128),
        ),
        optimizer=OptimizerConfig(
            learning_rate=(3e-3, 1e-2, 3e-2, 1e-1), weight_decay=(1e-4, 1e-3, 1e-2)
        ),
        train=TrainConfig(batch_size=128, epochs=20, evaluations=10),
        selection=SelectionConfig(metric="nll"),
    )
