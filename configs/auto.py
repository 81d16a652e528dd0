"""The ladder: the simplest head that does as well as the best, chosen by five folds.

    python train.py --config=configs/auto.py --config.data.source=npz:DIR

Nearest class mean, ridge, logistic regression and an MLP, each over its grid; what wins
is the simplest head within one standard error of the best, fitted on training and
validation rows together.
"""

from flaxhead import LADDER, Config, SelectionConfig


def get_config() -> Config:
    """Returns the settings."""
    return Config(
        heads=LADDER,
        selection=SelectionConfig(folds=5, rule="one_standard_error"),
    )
