"""The linear evaluation protocol of DINOv2: its 13 learning rates at once.

    python train.py --config=configs/dinov2_linear.py --config.data.source=npz:DIR

Oquab et al., 2023, "DINOv2: Learning Robust Visual Features without Supervision": SGD
with momentum 0.9, no weight decay, 12,500 steps of 1,024 rows, a cosine schedule, and
learning rates multiplied by batch / 256. What wins is chosen on the validation rows.

Expected on its default, the digits of scikit-learn: test accuracy 0.944 (95 % interval
0.916 to 0.964), in 25 s of CPU time on 2 cores, cold.
"""

from flaxhead import Config, HeadConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    """Returns the settings."""
    return Config(
        heads=(HeadConfig("linear"),),
        optimizer=OptimizerConfig(
            name="sgd",
            learning_rate=(
                *(1e-5, 2e-5, 5e-5),
                *(1e-4, 2e-4, 5e-4),
                *(1e-3, 2e-3, 5e-3),
                *(1e-2, 2e-2, 5e-2),
                0.1,
            ),
            reference_batch=256,
            weight_decay=(0.0,),
            momentum=0.9,
            schedule="cosine",
        ),
        train=TrainConfig(batch_size=1024, steps=12_500),
    )
