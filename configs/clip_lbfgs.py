"""The linear probe of CLIP: 96 even steps of log C, chosen on validation rows.

    python train.py --config=configs/clip_lbfgs.py --config.data.source=npz:DIR

Radford et al., 2021, "Learning Transferable Visual Models From Natural Language
Supervision", appendix A.3: scikit-learn's L-BFGS on features as they are, the penalty
from 1e-6 to 1e6 in eighths of a decade, chosen on the validation rows (split off the
training rows where a set has none), then fitted again with them. Theirs visits some of
the values, by halving the interval about the best, and stops after 1,000 iterations;
here all 97 are solved, to `HeadConfig.tolerance`. How many rows were split off is not
told: a fifth here.

Expected on its default, the digits of scikit-learn: test accuracy 0.944 (95 % interval
0.916 to 0.964), in 13 s of CPU time on 2 cores, cold.
"""

from flaxhead import Config, DataConfig, HeadConfig, SelectionConfig


def get_config() -> Config:
    """Returns the settings."""
    return Config(
        data=DataConfig("sklearn:digits", val_fraction=0.2),
        heads=(
            HeadConfig(
                "logistic",
                C=tuple(10 ** (i / 8) for i in range(-48, 49)),
            ),
        ),
        selection=SelectionConfig(metric="accuracy", refit=True, extend=0),
        protocol="clip-lbfgs/1",
    )
