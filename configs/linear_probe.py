"""A linear probe of any embeddings: one setting, tuned on the validation rows alone.

    python train.py --config=configs/linear_probe.py --config.data.source=npz:DIR

EXPECTED
"""

from flaxhead import (
    Config,
    DataConfig,
    HeadConfig,
    OptimizerConfig,
    SelectionConfig,
    TrainConfig,
)


def get_config() -> Config:
    """Returns the settings."""
    return Config(
        # A tenth is enough to choose one of these by, and leaves more to train on.
        data=DataConfig("sklearn:digits", val_fraction=0.1),
        # Dropout of the input: L2 penalties alone are too blunt for text embeddings.
        heads=(HeadConfig("linear", dropout=(0.0, 0.1, 0.3)),),
        optimizer=OptimizerConfig(
            learning_rate=(1e-2, 3e-2, 1e-1, 3e-1),
            weight_decay=(1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2),
        ),
        train=TrainConfig(batch_size=256, epochs=20),
        # Accuracy on a thousand rows moves by a point between equally good heads.
        selection=SelectionConfig(metric="nll"),
    )
