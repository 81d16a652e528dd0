"""Few labels, many rows without: a graph of nearest rows, if it helps.

    python train.py --config=configs/semi_supervised.py --config.data.source=npz:DIR

Rows of label -1 (or an empty one) are rows to learn from. Labels are spread along the
edges between rows that are alike, multiplied with what logistic regression says, and
one linear head is fitted to the product (`flaxhead.with_graph`). Logistic regression
without those rows is tried beside it: what wins is better by cross-validated NLL on the
labelled rows, and `comparisons` in result.json says by how much, with an interval.

On its default, the digits of scikit-learn, all rows have a label; a learning curve,
`"--config.curve.shots=[1,3,5,10]"`, hides all but so many a class. Expected with it:
test accuracy 0.955, NLL 0.162 with all labels, and with so few 0.821, 0.452, 0.464 and
0.379, in 90 s of CPU time, cold.
"""

from flaxhead import (
    SEMI_SUPERVISED,
    Config,
    CurveConfig,
    DataConfig,
    SelectionConfig,
)


def get_config() -> Config:
    """Returns the settings."""
    return Config(
        data=DataConfig(unlabelled="keep"),
        heads=SEMI_SUPERVISED,
        selection=SelectionConfig(metric="nll", folds=5, extend=0),
        curve=CurveConfig(repeats=3),
    )
