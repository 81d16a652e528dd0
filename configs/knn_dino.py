"""The nearest neighbours of DINO and DINOv2: 10, 20, 100 or 200 of them vote.

    python train.py --config=configs/knn_dino.py --config.data.source=npz:DIR

Caron et al., 2021, "Emerging Properties in Self-Supervised Vision Transformers", and
dinov2/eval/knn.py: features of length 1, votes of exp(similarity / 0.07) among the
training rows. Theirs reports every k on the rows that it evaluates; here k is chosen by
accuracy on the validation rows, which then join the rows that vote.

Expected on its default, the digits of scikit-learn: test accuracy 0.981 (95 % interval
0.960 to 0.991), in 9 s of CPU time on 2 cores, cold.
"""

from flaxhead import Config, HeadConfig, SelectionConfig


def get_config() -> Config:
    """Returns the settings."""
    return Config(
        # The head itself divides embeddings by their norm.
        heads=(HeadConfig("knn", k=(10, 20, 100, 200), temperature=(0.07,)),),
        selection=SelectionConfig(metric="accuracy", refit=True, extend=0),
        protocol="knn-dino/1",
    )
