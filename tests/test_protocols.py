"""The published protocols in configs/ have the numbers of their papers and code."""

import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from flaxhead import build, flags
from flaxhead.base import Batch
from flaxhead.search import Question, fit_default, predict, programs

ROOT = Path(__file__).parent.parent
PROTOCOLS = {
    "clip_lbfgs": "clip-lbfgs/1",
    "dinov2_linear_52": "dinov2-linear-52/1",
    "dinov2_logreg_45": "dinov2-logreg-45/1",
    "fewshot_lsr": "fewshot-lsr/1",
    "knn_dino": "knn-dino/1",
    "setfit_lp": "setfit-lp/1",
}
CLASSES = 10


def load(name):
    return flags.load(str(ROOT / "configs" / f"{name}.py"))


def test_every_config_of_a_protocol_is_here():
    told = {path.stem: load(path.stem).protocol for path in ROOT.glob("configs/*.py")}
    assert {name: one for name, one in told.items() if one} == PROTOCOLS


@pytest.mark.parametrize("name", PROTOCOLS)
def test_names_follow_the_file_and_have_a_version(name):
    protocol, version = load(name).protocol.split("/")
    assert protocol.replace("-", "_") == name
    assert int(version) >= 1


def versions(text):
    return set(re.findall(r"`([a-z0-9-]+/\d+)`", text))


@pytest.mark.parametrize("page", ["protocols.md", "benchmarks.md"])
def test_the_pages_have_these_versions(page):
    assert versions((ROOT / "docs" / page).read_text()) == set(PROTOCOLS.values())


def test_the_page_links_each_version_to_its_config():
    text = (ROOT / "docs" / "protocols.md").read_text()
    links = dict(re.findall(r"`([a-z0-9-]+/\d+)`\]\(\.\./configs/(\w+)\.py\)", text))
    assert links == {version: name for name, version in PROTOCOLS.items()}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_chosen_by_accuracy_on_validation_rows_from_a_grid_that_stays(name):
    settings = load(name)
    selection = settings.selection
    assert (selection.metric, selection.rule) == ("accuracy", "best")
    assert (selection.folds, selection.nested, selection.extend) == (0, 0, 0)
    assert selection.fold_by != "leave_one_out"
    # DINOv2's linear heads stay as they were scored.
    assert selection.refit == (name != "dinov2_linear_52")
    assert settings.loss.class_weights == "none"


def only_head(settings, name, normalization):
    (head,) = settings.heads
    assert (head.name, head.normalization) == (name, normalization)
    assert (head.columns, head.pool) == ((0.0, 1.0), "none")
    return head


def test_dinov2_logreg_45_is_the_papers():
    settings = load("dinov2_logreg_45")
    head = only_head(settings, "logistic", "none")
    # 10 to the power of torch.linspace(-6, 5, 45), and len(train) // 10 rows.
    np.testing.assert_allclose(head.C, 10 ** np.linspace(-6, 5, 45))
    assert settings.data.val_fraction == 1 / 10
    assert settings.curve.shots == ()


def test_clip_lbfgs_is_the_papers():
    settings = load("clip_lbfgs")
    head = only_head(settings, "logistic", "none")
    # From 1e-6, 1e-4, ... to 1e6, intervals are halved until a decade has 8 steps:
    # every power of ten that this can reach.
    powers = np.arange(-6, 8, 2.0)
    while len(powers) - 1 < 8 * (powers[-1] - powers[0]):
        powers = np.sort([*powers, *(powers[1:] + powers[:-1]) / 2])
    assert len(powers) - 1 == 96
    np.testing.assert_allclose(head.C, 10**powers)
    assert settings.curve.shots == ()


def test_knn_dino_is_the_papers():
    settings = load("knn_dino")
    head = only_head(settings, "knn", "none")
    assert (head.k, head.temperature) == ((10, 20, 100, 200), (0.07,))
    assert settings.curve.shots == ()


def test_fewshot_lsr_is_big_visions():
    settings = load("fewshot_lsr")
    head = only_head(settings, "ridge", "standardize")
    assert head.alpha == (2.0**10,)
    assert (settings.curve.shots, settings.curve.repeats) == ((1, 5, 10, 25), 3)


def test_setfit_lp_is_setfits():
    settings = load("setfit_lp")
    head = only_head(settings, "logistic", "none")
    assert head.C == (LogisticRegression().C,)
    # Seeds 0 to 9; the paper reports 8 and 64 of the sizes.
    assert (settings.curve.shots, settings.curve.repeats) == ((8, 64), len(range(10)))


def test_dinov2_linear_52_is_the_papers():
    settings = load("dinov2_linear_52")
    # {1, 2, 5} times 10^-5 to 10^-2, and 0.1; all of them times batch / 256.
    rates = [m * 10.0**-e for e in (5, 4, 3, 2) for m in (1, 2, 5)] + [0.1]
    optimizer, train = settings.optimizer, settings.train
    np.testing.assert_allclose(optimizer.learning_rate, rates)
    assert optimizer.reference_batch == 256
    assert (optimizer.name, optimizer.momentum) == ("sgd", 0.9)
    assert not optimizer.nesterov
    assert (optimizer.schedule, optimizer.weight_decay) == ("cosine", (0.0,))
    # 128 rows on each of 8 devices; 10 epochs of 1,250 steps, scored after the last.
    assert train.batch_size == 128 * 8
    assert train.steps == 10 * 1250
    assert (train.evaluations, train.patience, train.seeds) == (1, 0, (0,))
    grids = [build.grid(settings, head, train.batch_size) for head in settings.heads]
    assert [len(grid) for grid in grids] == [13] * 4
    assert sum(map(len, grids)) == 52


@pytest.mark.parametrize("width", [1, 384, 768, 1024, 1536])
def test_dinov2_linear_52_cuts_an_embedding_where_vectors_meet(width):
    settings = load("dinov2_linear_52")
    x = np.repeat(np.arange(5.0), width)[None]
    cut = [
        np.asarray(build.features(head, ())(x))[0].tolist() for head in settings.heads
    ]
    # By blocks (the last one is number 3), without and with the average (4).
    wanted = [
        np.repeat([*blocks, *average], width).tolist()
        for blocks in ([3], [0, 1, 2, 3])
        for average in ([], [4])
    ]
    assert cut == wanted
    assert {head.name for head in settings.heads} == {"linear"}
    assert {head.normalization for head in settings.heads} == {"none"}


def few(rows):
    """As many rows of each digit, and others to predict."""
    x, labels = load_digits(return_X_y=True)
    drawn = np.concatenate(
        [np.flatnonzero(labels == digit)[:rows] for digit in range(CLASSES)]
    )
    others = np.setdiff1d(np.arange(len(x)), drawn)[:300]
    return x[drawn], labels[drawn], x[others]


def logits(name, x, labels, others, *changes):
    """What the only candidate of a protocol says, or the one in the middle."""

    def batch(x, labels):
        ones = np.ones(len(x), np.float32)
        index = np.arange(len(x), dtype=np.int32)
        return Batch(x.astype(np.float32), labels.astype(np.int32), ones, index)

    settings = flags.override(load(name), ["--config.train.devices=1", *changes])
    question = Question(settings, CLASSES, "multiclass", "softmax", "accuracy", None)
    compiled = programs(question, rows=len(x))
    found = fit_default(question, batch(x, labels), programs=compiled)
    unknown = batch(others, np.zeros(len(others)))
    return np.asarray(predict(found, unknown, programs=compiled), np.float64)


@pytest.mark.parametrize("shots", [2, 10])
def test_fewshot_lsr_solves_what_big_vision_solves(shots):
    x, labels, others = few(shots)
    mean, std = x.mean(0), x.std(0) + 1e-5
    # A constant feature of 100, targets of -1 and 1, penalty 2^10 on all weights.
    with_constant = np.pad((x - mean) / std, [(0, 0), (0, 1)], constant_values=100.0)
    targets = 2.0 * np.eye(CLASSES)[labels] - 1.0
    gram = with_constant.T @ with_constant
    weights = np.linalg.solve(
        gram + 2.0**10 * np.eye(len(gram)), with_constant.T @ targets
    )
    # Pixels that are constant in the draw have no weight.
    wanted = ((others - mean) / std) @ weights[:-1] + 100.0 * weights[-1]
    ours = logits("fewshot_lsr", x, labels, others)
    # Intercepts differ by the same in every class; the 1e-5 moves small deviations.
    np.testing.assert_allclose(
        ours - ours.mean(1, keepdims=True),
        wanted - wanted.mean(1, keepdims=True),
        atol=1e-3,
    )


def test_setfit_lp_solves_what_scikit_learn_solves():
    x, labels, others = few(8)
    x, others = x / 16, others / 16
    ours = logits("setfit_lp", x, labels, others, "--config.heads.0.tolerance=1e-9")
    probabilities = np.exp(ours) / np.exp(ours).sum(1, keepdims=True)
    wanted = LogisticRegression(tol=1e-10, max_iter=10_000).fit(x, labels)
    np.testing.assert_allclose(probabilities, wanted.predict_proba(others), atol=1e-4)


def test_knn_dino_votes_as_dino_does():
    x, labels, others = few(40)
    bank, queries = (one / np.linalg.norm(one, axis=1)[:, None] for one in (x, others))
    similarity = queries @ bank.T
    grid = build.grid(load("knn_dino"), load("knn_dino").heads[0], 1)
    k = int(grid[len(grid) // 2]["k"])
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    votes = np.exp(np.take_along_axis(similarity, nearest, axis=1) / 0.07)
    shares = np.einsum("nk,nkc->nc", votes, np.eye(CLASSES)[labels[nearest]])
    shares /= shares.sum(1, keepdims=True)
    ours = np.exp(logits("knn_dino", x, labels, others))
    np.testing.assert_allclose(ours, shares, atol=1e-4)
