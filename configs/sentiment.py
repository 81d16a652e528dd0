"""Sentiment from sentence embeddings: a linear head beside a small MLP.

    python train.py --config=configs/sentiment.py --config.data.source=npz:DIR

It has no data of its own. DIR holds train.npz, and val.npz and test.npz where there are
such splits, with `embeddings` and `labels`; docs/data.md lists the other sources. With
sentence-transformers, say:

    encoder = SentenceTransformer("all-MiniLM-L6-v2")
    np.savez("DIR/train.npz", embeddings=encoder.encode(texts), labels=labels)

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
        data=DataConfig("npz:embeddings/sentiment", backbone="all-MiniLM-L6-v2"),
        heads=(
            HeadConfig("linear", normalization="standardize", dropout=(0.1, 0.3, 0.5)),
            HeadConfig("mlp", normalization="standardize", dropout=(0.5, 0.7, 0.9)),
        ),
        optimizer=OptimizerConfig(
            learning_rate=(3e-4, 1e-3, 3e-3), weight_decay=(1e-3, 1e-2)
        ),
        train=TrainConfig(batch_size=256, epochs=10),
        selection=SelectionConfig(metric="nll"),
    )
