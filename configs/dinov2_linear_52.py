"""The whole linear evaluation of DINOv2: 13 learning rates on four kinds of features.

    python train.py --config=configs/dinov2_linear_52.py --config.data.source=npz:DIR

Oquab et al., 2023, "DINOv2: Learning Robust Visual Features without Supervision", and
dinov2/eval/linear.py in its repository: the class tokens of the last block or of the
last four, with the average of the last block's patch tokens or without; SGD with
momentum 0.9 and no weight decay, 12,500 steps of 1,024 rows, a cosine schedule and
learning rates times batch / 256; what wins is chosen by accuracy after the last step.
Theirs crops and flips its images anew in every step and starts at random (deviation
0.01); here embeddings are computed once and heads start at zero.

It has no data of its own. An embedding is five vectors of one width side by side:

    blocks = model.get_intermediate_layers(images, n=4, return_class_token=True)
    tokens = [token for _, token in blocks]
    embeddings = torch.cat([*tokens, blocks[-1][0].mean(1)], dim=-1)

DIR holds train.npz, and val.npz and test.npz where there are such splits, with
`embeddings` and `labels`.

Expected on the digits of scikit-learn, their 64 pixels five times side by side: a head
on the last block wins, test accuracy 0.942 (95 % interval 0.912 to 0.961), in 138 s of
CPU time on 2 cores, cold.
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
        data=DataConfig("npz:embeddings/dinov2_linear_52"),
        heads=(
            HeadConfig("linear", columns=(0.6, 0.8)),  # the last block
            HeadConfig("linear", columns=(0.6, 1.0)),  # and the average
            HeadConfig("linear", columns=(0.0, 0.8)),  # the last four blocks
            HeadConfig("linear", columns=(0.0, 1.0)),  # and the average
        ),
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
        train=TrainConfig(batch_size=1024, steps=12_500, evaluations=1),
        selection=SelectionConfig(metric="accuracy", refit=False, extend=0),
        protocol="dinov2-linear-52/1",
    )
