"""Consistency: noisy views of a row without a label should get the label of its own.

    python train.py --config=configs/consistency.py --config.consistency.method=uda

FixMatch by default (`flaxhead.CONSISTENCY` has the others) on a linear head, trained by
Adam. Rows of label -1, or an empty one, are those to learn from. On the digits of
scikit-learn all have a label; a learning curve, `"--config.curve.shots=[1,3,5,10]"`,
hides all but so many a class. Where the backbone embedded several views of each row,
`--config.data.views=True`.

Expected with that curve: test accuracy 0.928 with all labels, and with so few 0.626,
0.783, 0.817 and 0.855 (below `configs/semi_supervised.py`), in 33 s of CPU time on 2
cores, cold.
"""

from flaxhead import (
    Config,
    ConsistencyConfig,
    CurveConfig,
    DataConfig,
    HeadConfig,
    OptimizerConfig,
    TrainConfig,
)


def get_config() -> Config:
    """Returns the settings."""
    return Config(
        data=DataConfig(unlabelled="keep"),
        heads=(HeadConfig("linear", normalization="standardize"),),
        consistency=ConsistencyConfig("fixmatch"),
        optimizer=OptimizerConfig("adam", learning_rate=(3e-3,)),
        train=TrainConfig(batch_size=64, steps=500),
        curve=CurveConfig(repeats=3),
    )
