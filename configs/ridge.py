"""Ridge over 100 penalties, each row predicted by a fit without it.

    python train.py --config=configs/ridge.py --config.data.source=npz:DIR

One eigendecomposition gives every penalty and its exact leave-one-out predictions, so
no rows are held out. The best is fitted on training and validation rows together.
"""

from flaxhead import Config, HeadConfig, SelectionConfig


def get_config() -> Config:
    """Returns the settings."""
    return Config(
        heads=(
            HeadConfig("ridge", alpha=tuple(10 ** (-5 + i / 10) for i in range(100))),
        ),
        selection=SelectionConfig(fold_by="leave_one_out"),
    )
