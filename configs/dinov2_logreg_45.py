"""The logistic regression protocol of DINOv2: 45 values of C, chosen on a tenth.

    python train.py --config=configs/dinov2_logreg_45.py --config.data.source=npz:DIR

Oquab et al., 2023, "DINOv2: Learning Robust Visual Features without Supervision", and
dinov2/eval/log_regression.py in its repository: features as they are, C = 10^e for 45
even steps of e from -6 to 5, chosen by accuracy on the rows given for it or on a tenth
of the training rows, then fitted again with them. Theirs iterates in float64, at most
1,000 times, to a tolerance of 1e-12; here float32 stops at `HeadConfig.tolerance`, and
the tenth is stratified.

Expected on its default, the digits of scikit-learn: test accuracy 0.955 (95 % interval
0.929 to 0.972), in 12 s of CPU time on 2 cores, cold.
"""

from flaxhead import Config, DataConfig, HeadConfig, SelectionConfig


def get_config() -> Config:
    """Returns the settings."""
    return Config(
        data=DataConfig("sklearn:digits", val_fraction=0.1),
        heads=(
            HeadConfig(
                "logistic",
                C=tuple(10 ** (-6 + 11 * i / 44) for i in range(45)),
            ),
        ),
        selection=SelectionConfig(metric="accuracy", refit=True, extend=0),
        protocol="dinov2-logreg-45/1",
    )
