"""A sweep of linear and MLP heads on the handwritten digits of scikit-learn.

    python train.py

It needs no download. EXPECTED
"""

from flaxhead import Config, HeadConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    """Returns the settings."""
    return Config(
        heads=(
            HeadConfig("linear", normalization="standardize"),
            HeadConfig("mlp", normalization="standardize", dropout=(0.0, 0.3)),
        ),
        optimizer=OptimizerConfig(
            learning_rate=(3e-4, 1e-3, 3e-3, 1e-2), weight_decay=(0.0, 1e-4)
        ),
        train=TrainConfig(batch_size=128, epochs=40),
    )
