"""The host loop: what is chosen, by which rows, and what is left in the folder."""

import dataclasses
import hashlib
import json
import math

import numpy as np
import oracles
import pytest
from scipy.special import expit
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score
from sklearn.utils.class_weight import compute_class_weight

import flaxhead
from flaxhead import (
    Config,
    ConsistencyConfig,
    HeadConfig,
    LossConfig,
    OptimizerConfig,
    SelectionConfig,
    Tokens,
    TrainConfig,
    arrays,
)
from flaxhead.loop import run

NAMES = ("ant", "bee", "cat")
TRAIN = TrainConfig(batch_size=32, steps=60, evaluations=6, devices=1)


def split(rows, seed, dim=5):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, dim)).astype(np.float32)
    # Ants are common, cats are rare.
    logits = x[:, :3] + 0.7 * rng.normal(size=(rows, 3)) + [0.8, 0, -0.5]
    return {
        "embeddings": x,
        "labels": logits.argmax(1),
        "class_names": np.array(NAMES),
    }


def three_splits(test_labels=None):
    test = split(600, 2)
    if test_labels is not None:
        test["labels"] = test_labels(test["labels"])
    return arrays(split(200, 0), val=split(150, 1), test=test)


def settings(*heads, rates=(0.1,), decays=(0.0,), train=TRAIN, **other):
    return Config(
        heads=heads or (HeadConfig("linear"),),
        optimizer=OptimizerConfig("sgd", learning_rate=rates, weight_decay=decays),
        train=train,
        **other,
    )


def contents(workdir):
    files = [path for path in sorted(workdir.rglob("*")) if path.is_file()]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def lines(workdir):
    return [json.loads(s) for s in (workdir / "metrics.jsonl").read_text().splitlines()]


HEADS = (HeadConfig("linear"), HeadConfig("mlp", width=8, dropout=(0.0, 0.3)))
BASE = settings(*HEADS, rates=(1e-4, 0.1))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("loop") / "run"
    return run(BASE, workdir, data=three_splits()), workdir


def test_the_winner_has_the_best_validation_score(finished):
    result, workdir = finished
    candidates = result["candidates"]
    assert [one["index"] for one in candidates] == list(range(6))
    scores = [one["score"] for one in candidates]
    winner = result["selected"]
    assert winner["score"] == max(scores)
    assert winner["score"] > min(scores)
    assert [scores[i] for i in winner["ranked"]] == sorted(scores, reverse=True)
    assert winner["metric"] == "accuracy"
    # Each one's score is the best of its own evaluations, at the first of them.
    logged = lines(workdir)
    assert len(logged) == 6 * 6
    for one in candidates:
        mine = [line for line in logged if line["candidate"] == one["index"]]
        assert [line["step"] for line in mine] == [10, 20, 30, 40, 50, 60]
        best = max(line["accuracy"] for line in mine)
        assert one["score"] == pytest.approx(best, abs=1e-6)
        first = min(line["step"] for line in mine if line["accuracy"] == best)
        assert one["best_step"] == first


def test_the_saved_head_scores_what_was_reported(finished):
    result, workdir = finished
    data, head = three_splits(), flaxhead.load(workdir / "head")
    for name in ("val", "test"):
        rows = getattr(data, name)
        logits = np.asarray(head.logits(rows.x), float)
        accuracy = np.mean(logits.argmax(1) == rows.labels)
        nll = oracles.softmax_focal(logits, rows.labels).mean()
        assert result[name]["accuracy"] == pytest.approx(accuracy, abs=1e-9)
        assert result[name]["nll"] == pytest.approx(nll, rel=1e-5)
    val = result["val"]["accuracy"]
    assert result["selected"]["score"] == pytest.approx(val, abs=1e-6)
    assert head.class_names == NAMES
    assert head.bundle.metrics["test"]["accuracy"] == result["test"]["accuracy"]


def test_the_result_is_json_and_counts_its_look_at_the_test_rows(finished):
    result, workdir = finished

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (workdir / "result.json").read_text()
    assert json.loads(text, parse_constant=refuse) == result
    assert result["test_looks"] == 1
    assert (workdir / "curves.png").read_bytes()[1:4] == b"PNG"
    stored = json.loads((workdir / "config.json").read_text())["config"]
    data = dataclasses.replace(BASE.data, residency="replicated")  # was "auto"
    asked = dataclasses.asdict(dataclasses.replace(BASE, data=data))
    assert stored == json.loads(json.dumps(asked))


def test_an_optimum_on_the_edge_of_the_grid_is_warned_of(finished):
    result, _ = finished
    assert result["selected"]["hyperparameters"]["learning_rate"] == 0.1
    (warning,) = [w for w in result["warnings"] if w.startswith("learning_rate")]
    assert "0.1 is the largest of 2 tried" in warning


def test_a_finished_folder_is_left_as_it_is(finished):
    result, workdir = finished
    before = contents(workdir)
    assert run(BASE, workdir, data=three_splits()) == result
    assert contents(workdir) == before


def test_the_test_labels_choose_nothing(finished, tmp_path):
    result, workdir = finished
    shuffled = three_splits(np.random.default_rng(3).permutation)
    other = run(BASE, tmp_path / "run", data=shuffled)
    assert other["selected"] == result["selected"]
    assert other["candidates"] == result["candidates"]
    assert other["val"] == result["val"]
    arrays_of = "head/params.safetensors"
    saved = (tmp_path / "run" / arrays_of).read_bytes()
    assert saved == (workdir / arrays_of).read_bytes()
    # Predictions and labels are independent now.
    head, test = flaxhead.load(workdir / "head"), shuffled.test
    predicted = np.bincount(head.predict(test.x), minlength=3) / 600
    chance = predicted @ np.bincount(test.labels, minlength=3) / 600
    deviation = math.sqrt(chance * (1 - chance) / 600)
    assert abs(other["test"]["accuracy"] - chance) < 4 * deviation
    assert result["test"]["accuracy"] > chance + 8 * deviation


def test_patience_stops_what_gets_no_better(tmp_path):
    # A rate this small changes no prediction after the first step.
    train = dataclasses.replace(TRAIN, patience=2)
    head = HeadConfig("linear", zero_init=False)
    result = run(
        settings(head, rates=(1e-12,), train=train),
        tmp_path / "run",
        data=three_splits(),
    )
    assert [line["step"] for line in lines(tmp_path / "run")] == [10, 20, 30]
    assert result["selected"]["best_step"] == 10


def test_all_diverged_is_an_error_that_lists_them(tmp_path):
    config = settings(rates=(2e38, 3e38))
    with pytest.raises(ValueError, match="all 2 diverged") as caught:
        run(config, tmp_path / "run", data=three_splits())
    message = str(caught.value)
    for number, rate in enumerate(("2e+38", "3e+38")):
        assert f"{number} (learning rate {rate}) at step " in message
    assert not (tmp_path / "run" / "result.json").exists()


def test_one_that_diverged_is_named_and_never_wins(tmp_path):
    result = run(settings(rates=(0.1, 3e38)), tmp_path / "run", data=three_splits())
    assert result["selected"]["index"] == 0
    step = result["candidates"][1]["diverged_at"]
    assert step > 0
    sentence = f"candidate 1 (linear, learning rate 3e+38) diverged at step {step}"
    assert sentence in result["warnings"]


def test_balanced_class_weights_are_scikit_learns(tmp_path):
    data = three_splits()
    labels = data.train.labels
    weights = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    named = dict(zip(NAMES, map(float, weights), strict=True))
    heads = {}
    for name, asked in {"none": "none", "balanced": "balanced", "named": named}.items():
        config = settings(loss=LossConfig(class_weights=asked))
        run(config, tmp_path / name, data=data)
        heads[name] = flaxhead.load(tmp_path / name / "head").logits(data.test.x)
    np.testing.assert_allclose(heads["balanced"], heads["named"], rtol=1e-4, atol=1e-5)
    # The rare class is predicted more often than without.
    rare = [np.mean(heads[name].argmax(1) == 2) for name in ("none", "balanced")]
    assert rare[1] > rare[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((Config(heads=HeadConfig()), "run"), "heads is HeadConfig"),
        ((Config(), None), "workdir is empty"),
        ((Config(), 3), "3 is no path"),
        ((Config(train=TrainConfig(steps=True)), "run"), "steps is True, of type bool"),
    ],
)
def test_other_types_are_refused(tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        run(*arguments)
    with pytest.raises(ValueError, match="data is a dict; expected what"):
        run(Config(), "run", data={"embeddings": np.ones((3, 2))})
    assert not list(tmp_path.iterdir())


def test_class_weights_of_unknown_classes_are_refused(tmp_path):
    config = settings(loss=LossConfig(class_weights={"bear": 2.0}))
    with pytest.raises(ValueError, match=r"'bear', but the classes are 'ant', 'bee'"):
        run(config, tmp_path / "run", data=three_splits())


def test_one_standard_error_takes_the_simplest_that_is_near(tmp_path):
    config = settings(
        *HEADS,
        rates=(0.3, 0.05),
        decays=(0.0, 1e-3),
        selection=SelectionConfig(rule="one_standard_error"),
    )
    result = run(config, tmp_path / "run", data=three_splits())
    candidates = result["candidates"]
    best = max(candidates, key=lambda one: one["score"])
    assert best["score"] > result["selected"]["score"], "the rule changes nothing here"
    error = math.sqrt(best["score"] * (1 - best["score"]) / 150)
    near = [one for one in candidates if one["score"] >= best["score"] - error]

    def simplicity(one):
        value = one["hyperparameters"]
        return (
            one["complexity"],
            -value["weight_decay"],
            -value["dropout"],
            value["learning_rate"],
        )

    assert result["selected"]["index"] == min(near, key=simplicity)["index"]
    assert result["selected"]["rule"] == "one_standard_error"


def by_hand(metric, probabilities, labels):
    rows = np.arange(len(labels))
    if metric == "nll":
        return log_loss(labels, probabilities)
    if metric == "auroc":
        return roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    one_hot = np.zeros(probabilities.shape)
    one_hot[rows, labels] = 1
    return average_precision_score(one_hot, probabilities, average="macro")


@pytest.mark.parametrize("metric", ["nll", "auroc", "average_precision"])
def test_any_metric_can_choose(tmp_path, metric):
    data = three_splits()
    config = settings(rates=(1e-3, 0.3), selection=SelectionConfig(metric))
    result = run(config, tmp_path / "run", data=data)
    better = min if metric == "nll" else max
    score = result["selected"]["score"]
    assert score == better(one["score"] for one in result["candidates"])
    logged = [line[metric] for line in lines(tmp_path / "run")]
    assert score == pytest.approx(better(logged), rel=1e-6)
    head = flaxhead.load(tmp_path / "run" / "head")
    probabilities = np.asarray(head.probabilities(data.val.x), float)
    probabilities /= probabilities.sum(1, keepdims=True)
    expected = by_hand(metric, probabilities, data.val.labels)
    assert score == pytest.approx(expected, rel=1e-5)
    assert result["val"][metric] == pytest.approx(expected, rel=1e-5)


def test_several_labels_a_row_some_of_them_missing(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 5)).astype(np.float32)
    labels = (x[:, :3] + 0.3 * rng.normal(size=(400, 3)) > 0).astype(np.float32)
    labels[rng.random(labels.shape) < 0.1] = np.nan
    labels[0] = [1, 1, 0]
    data = arrays({"embeddings": x, "labels": labels}, config=None)
    result = run(settings(), tmp_path / "run", data=data)
    assert data.task == "multilabel"
    assert result["selected"]["metric"] == "average_precision"
    head = flaxhead.load(tmp_path / "run" / "head")
    assert head.predict(data.test.x).shape == (len(data.test.labels), 3)
    probabilities = np.asarray(head.probabilities(data.val.x), float)
    expected = []
    for column, label in zip(probabilities.T, data.val.labels.T, strict=True):
        known = ~np.isnan(label)
        expected.append(average_precision_score(label[known], column[known]))
    assert result["selected"]["score"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert result["selected"]["score"] > 0.9


def test_members_of_several_labels_are_pooled_as_sigmoids(tmp_path):
    """And one head learns from them on rows without any, which are most."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5)).astype(np.float32)
    labels = (x[:, :3] + 0.3 * rng.normal(size=(200, 3)) > 0).astype(np.float32)
    labels[rng.random(labels.shape) < 0.1] = np.nan
    train = np.where(np.arange(200)[:, None] < 150, np.nan, labels)
    data = arrays(
        {"embeddings": x, "labels": train},
        val={"embeddings": x, "labels": labels},
        config=flaxhead.DataConfig(
            task="multilabel", unlabelled="keep", test_fraction=0
        ),
    )
    for distill, shape in ((False, (3, 5, 3)), (True, (5, 3))):
        head = HeadConfig("linear", zero_init=False, members=3, distill=distill)
        run(settings(head), tmp_path / str(distill), data=data)
        shipped = flaxhead.load(tmp_path / str(distill) / "head")
        params = shipped.bundle.params["output"]
        assert params["kernel"].shape == shape
        expected = expit(x @ params["kernel"] + np.expand_dims(params["bias"], -2))
        if not distill:
            assert expected.std(0).max() > 1e-3
            expected = expected.mean(0)
        np.testing.assert_allclose(shipped.probabilities(x), expected, atol=1e-5)
        # The softmax of no row has two labels above a half.
        assert np.all(np.asarray(shipped.probabilities(np.full((1, 5), 1.5))) > 0.6)


def token_splits():
    """Class by the mean of the real tokens; what is padding says something else."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4, 5)).astype(np.float32)
    mask = rng.random((300, 4)) < 0.7
    mask[:, 0] = True
    labels = oracles.pooled(x, mask, "mean")[:, :3].argmax(1)
    x[~mask] = 50 * rng.normal(size=5)
    return arrays({"embeddings": x, "labels": labels, "mask": mask})


def test_tokens_are_pooled_without_their_padding(tmp_path):
    data = token_splits()
    result = run(
        settings(HeadConfig("linear", pool="mean"), rates=(1.0,)),
        tmp_path / "run",
        data=data,
    )
    assert result["test"]["accuracy"] > 0.7
    head = flaxhead.load(tmp_path / "run" / "head")
    x = Tokens(data.test.x, data.test.mask)
    accuracy = np.mean(np.asarray(head.predict(x)) == data.test.labels)
    assert result["test"]["accuracy"] == pytest.approx(accuracy, abs=1e-9)


def test_columns_of_which_there_are_none_are_refused(tmp_path):
    config = settings(HeadConfig("linear", columns=(0.0, 0.01)))
    with pytest.raises(
        ValueError, match=r"heads\.0\.columns is .* no column of .* wide"
    ):
        run(config, tmp_path / "run", data=three_splits())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("make", "pool", "sentence"),
    [
        (token_splits, "none", r"heads\.0\.pool is 'none', .* tokens .*mean, max"),
        (three_splits, "mean", r"heads\.0\.pool is 'mean', .* one vector a row"),
    ],
)
def test_pooling_that_does_not_fit_is_refused(tmp_path, make, pool, sentence):
    config = settings(HeadConfig("linear", pool=pool))
    with pytest.raises(ValueError, match=sentence):
        run(config, tmp_path / "run", data=make())
    assert not (tmp_path / "run").exists()


FIXMATCH = ConsistencyConfig("fixmatch")
SIGMOID = LossConfig("sigmoid_binary_cross_entropy")


@pytest.mark.parametrize(
    ("head", "other", "sentence"),
    [
        ({}, {"consistency": ConsistencyConfig("fixmach")}, "consistency.method is"),
        (
            {"name": "logistic"},
            {"consistency": FIXMATCH},
            "consistency.method is 'fixmatch', but heads are solved",
        ),
        (
            {},
            {"consistency": ConsistencyConfig("uda", noise=(0.1,))},
            "consistency.noise is .* expected two numbers",
        ),
        (
            {},
            {"consistency": FIXMATCH, "loss": SIGMOID},
            "consistency.method is 'fixmatch', .* one of pi, mean_teacher, uda",
        ),
        ({"graph": True}, {"loss": SIGMOID}, "heads.0.graph is set, which is for"),
        ({"name": "ridge", "members": 2}, {}, "heads.0.members is 2, but 'ridge'"),
        ({"name": "ridge", "graph": True}, {}, "heads.0.graph is True, but 'ridge'"),
        ({"name": "logistic", "graph": True}, {}, "expected semi_supervised, which is"),
        ({"distill": True}, {}, "heads.0.distill is True, but there is one member"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, head, other, sentence):
    config = dataclasses.replace(
        settings(HeadConfig(**{"name": "linear", **head})), **other
    )
    with pytest.raises(ValueError, match=sentence):
        run(config, tmp_path / "run", data=three_splits())
    assert not (tmp_path / "run").exists()


def test_rows_without_a_label_are_learned_from(tmp_path):
    """In a run with consistency: whether they are there shows, and where they lie."""
    config = settings(
        HeadConfig("linear"),
        consistency=ConsistencyConfig("pi", weight=(3.0,), ratio=1),
        data=flaxhead.DataConfig(unlabelled="keep"),
    )
    results = []
    for hidden, shift in ((0, 0), (50, 0), (50, 9)):
        train = split(200, 0)
        train["labels"][:hidden] = -1
        train["embeddings"][:hidden] += shift
        data = arrays(train, val=split(150, 1), test=split(600, 2), config=config.data)
        found = run(config, tmp_path / f"{hidden} {shift}", data=data)
        results.append(found["val"]["nll"])
        told = any("is without a label" in one for one in found["warnings"])
        assert told == (not hidden)
    assert len(set(results)) == 3


@pytest.mark.parametrize(
    ("pool", "name"),
    [("query", "pool_heads"), ("map", "pool_heads"), ("multi_query", "pool_queries")],
)
def test_attention_that_can_not_share_out_the_columns_is_refused(tmp_path, pool, name):
    config = settings(HeadConfig("linear", pool=pool, **{name: 3}))
    with pytest.raises(ValueError, match=rf"heads\.0\.{name} is 3, .* don't divide"):
        run(config, tmp_path / "run", data=token_splits())
    assert not (tmp_path / "run").exists()


def test_logit_adjustments_are_swept(tmp_path):
    """Side by side each is what it is alone, none too."""

    def scores(*values):
        config = settings(
            loss=LossConfig(logit_adjustment=values),
            selection=SelectionConfig(metric="nll"),
        )
        result = run(config, tmp_path / str(values), data=three_splits())
        found = [one["hyperparameters"] for one in result["candidates"]]
        assert [one["logit_adjustment"] for one in found] == list(values)
        return [one["score"] for one in result["candidates"]]

    both = scores(0.0, 1.0)
    assert both == pytest.approx([*scores(0.0), *scores(1.0)], rel=1e-5)
    assert both[0] < both[1]  # What the validation rows are like.


def test_a_rate_of_zero_is_a_candidate_like_others(tmp_path):
    result = run(settings(rates=(0.0, 0.1)), tmp_path / "run", data=three_splits())
    assert result["selected"]["hyperparameters"]["learning_rate"] == 0.1


def test_a_folder_that_was_being_claimed_is_claimed_again(tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / ".config.json.new").write_text("{")  # killed while it wrote
    run(settings(), workdir, data=three_splits())
    assert (workdir / "config.json").exists()
