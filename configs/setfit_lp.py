"""The head of SetFit on sentence embeddings: C = 1, 8 and 64 labels a class, 10 draws.

    python train.py --config=configs/setfit_lp.py --config.data.source=npz:DIR

Tunstall et al., 2022, "Efficient Few-Shot Learning Without Prompts", and
scripts/setfit/run_fewshot.py in its repository: scikit-learn's LogisticRegression as it
comes, on embeddings as they are, ten draws of each size. SetFit first tunes the encoder
on the drawn rows; here, as its script does without a loss, the encoder stays frozen.
The head that is kept is fitted on all rows.

Expected on its default, the digits of scikit-learn: with 8 and 64 labels a class test
accuracy 0.870 and 0.936 (standard deviations 0.023 and 0.007), with all 0.942, in 19 s
of CPU time on 2 cores, cold.
"""

from flaxhead import Config, CurveConfig, HeadConfig, SelectionConfig


def get_config() -> Config:
    """Returns the settings."""
    return Config(
        heads=(HeadConfig("logistic", C=(1.0,)),),
        selection=SelectionConfig(metric="accuracy", refit=True, extend=0),
        curve=CurveConfig(shots=(8, 64), repeats=10),
        protocol="setfit-lp/1",
    )
