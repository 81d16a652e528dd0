"""Views of a batch: what they change, what they leave, and on how many devices."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy import stats

from flaxhead.base import Batch, Tokens
from flaxhead.heads import linear
from flaxhead.losses import softmax_cross_entropy
from flaxhead.objectives import (
    cached,
    chain,
    cutmix,
    feature_dropout,
    identity,
    manifold_mixup,
    mixup,
    neighbour_views,
    noise,
    supervised,
    token_dropout,
    with_view,
)

ROWS, TOKENS, DIM, CLASSES = 16, 5, 3, 4
KEY = jax.random.key(0)


def example(kind="vectors"):
    """Rows with and without a label; the last two are absent, and full of rubbish."""
    draw = np.random.default_rng(0)
    shape = {"vectors": (DIM,), "tokens": (TOKENS, DIM)}[kind]
    x = draw.normal(size=(ROWS, *shape)).astype(np.float32) * [1, 10, 0.1] + 5
    labels = np.where(np.arange(ROWS) % 3 == 2, -1, np.arange(ROWS) % CLASSES)
    weights = draw.choice([0.5, 1.0, 2.0], size=ROWS).astype(np.float32)
    x[-2:], weights[-2:] = np.nan, 0
    index = np.arange(ROWS)[::-1].copy()
    x = jnp.asarray(x, jnp.float32)
    if kind == "tokens":
        length = draw.integers(1, TOKENS + 1, size=ROWS)
        x = Tokens(x, jnp.arange(TOKENS) < length[:, None])
    labels = jnp.asarray(labels, jnp.int32)
    return Batch(x, labels, jnp.asarray(weights), jnp.asarray(index))


VECTORS = {
    "noise": lambda amount, axis: noise(amount, axis=axis),
    "feature_dropout": lambda amount, axis: feature_dropout(amount),
    "mixup": lambda amount, axis: mixup(amount, CLASSES, axis=axis),
}
PADDED = {
    "noise": VECTORS["noise"],
    "feature_dropout": VECTORS["feature_dropout"],
    "token_dropout": lambda amount, axis: token_dropout(amount),
    "cutmix": lambda amount, axis: cutmix(amount, CLASSES, axis=axis),
}


def every(batches, amount, key):
    """What each view makes of vectors and of tokens, `name kind -> batch`."""
    return {
        f"{name} {kind}": make(amount, "devices")(batches[kind], key)
        for kind, table in (("vectors", VECTORS), ("tokens", PADDED))
        for name, make in table.items()
    }


BATCHES = {kind: example(kind) for kind in ("vectors", "tokens")}
over_devices = jax.jit(jax.vmap(every, (0, None, None), axis_name="devices"))


def on_devices(batches, *, used=1, amount=0.5):
    """Every view, of rows that are on the first `used` of eight devices.

    Every device has as many rows, those that are left over absent and full of rubbish.
    """
    rows = ROWS // used

    def spread(leaf):
        leaf = np.asarray(leaf)
        rubbish = np.nan if leaf.dtype.kind == "f" else 1
        shards = np.full([8, *leaf.shape], rubbish, leaf.dtype)
        shards[:used, :rows] = leaf.reshape(used, rows, *leaf.shape[1:])
        return shards

    def gathered(leaf):
        return np.asarray(leaf)[:used, :rows].reshape(ROWS, *leaf.shape[2:])

    shards = jax.tree.map(spread, batches)
    for kind, batch in shards.items():
        weights = np.nan_to_num(batch.weights)  # Of what is left over, 0.
        shards[kind] = batch._replace(weights=weights)
    return jax.tree.map(gathered, over_devices(shards, amount, KEY))


@pytest.fixture(scope="module")
def views():
    return on_devices(BATCHES)


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def soft_labels():
    labels = np.asarray(BATCHES["vectors"].labels)
    known = (labels >= 0) & (np.asarray(BATCHES["vectors"].weights) > 0)
    return known, np.where(known[:, None], oracles.one_hot(labels, CLASSES), np.nan)


def test_an_amount_of_0_is_the_identity_exactly(views):
    for name, view in on_devices(BATCHES, amount=0.0).items():
        before = BATCHES[name.split()[1]]
        if "mix" in name:
            assert_equal(view.labels, soft_labels()[1])
            before = before._replace(labels=view.labels)
        assert_equal(view, before)
    for name, view in views.items():
        changed = jax.tree.map(
            lambda a, b: not np.array_equal(a, b, equal_nan=True),
            view.x,
            BATCHES[name.split()[1]].x,
        )
        assert any(jax.tree.leaves(changed)), name


def test_eight_devices_are_one(views):
    for name, view in on_devices(BATCHES, used=8).items():
        jax.tree.map(
            lambda a, b, name=name: np.testing.assert_allclose(
                a, b, rtol=1e-5, atol=1e-6, err_msg=name
            ),
            view,
            views[name],
        )
    assert over_devices._cache_size() == 1


def test_noise_is_scaled_to_the_deviation_of_each_feature():
    x = np.random.default_rng(1).normal(size=(2000, DIM)) * [1, 10, 0] + 5
    x = x.astype(np.float32)
    weights = np.random.default_rng(2).choice([0.0, 1.0, 3.0], size=2000)
    x[weights == 0] = 1e4
    index = jnp.arange(2000)
    batch = Batch(jnp.asarray(x), index % 2, jnp.asarray(weights, jnp.float32), index)
    added = np.asarray(jax.jit(noise(0.5))(batch, KEY).x)[weights > 0] - x[weights > 0]
    _, deviation = oracles.weighted_statistics(x, weights)
    np.testing.assert_allclose(added.std(0), 0.5 * deviation, rtol=0.1)
    assert (added[:, 2] == 0).all()
    correlation = np.corrcoef(added[:, :2].T)[0, 1]
    assert abs(correlation) < 0.1


def test_dropped_features_are_zero_and_the_others_larger(views):
    for kind in ("vectors", "tokens"):
        before = BATCHES[kind].x
        after = views[f"feature_dropout {kind}"].x
        if kind == "tokens":
            before, after = before.values, after.values
        before, after = np.asarray(before)[:-2], np.asarray(after)[:-2]
        zero = after == 0
        np.testing.assert_allclose(after[~zero], 2 * before[~zero], rtol=1e-6)
        assert 0.2 < zero.mean() < 0.8
    assert (zero == zero[:, :1]).all()  # The same in all tokens of a row.


def test_dropped_tokens_are_real_and_never_all(views):
    before, after = BATCHES["tokens"].x, views["token_dropout tokens"].x
    assert not (np.asarray(after.mask) & ~np.asarray(before.mask)).any()
    assert (after.mask.sum(1) >= 1).all()
    np.testing.assert_array_equal(after.values, before.values)
    most = on_devices(BATCHES, amount=0.9999)["token_dropout tokens"].x
    np.testing.assert_array_equal(most.mask.sum(1), 1)


def test_mixed_rows_are_of_two_labelled_rows(views):
    """Solved for the share and the mate of each row, from its label alone."""
    x = np.asarray(BATCHES["vectors"].x, float)
    known, labels = soft_labels()
    view = views["mixup vectors"]
    assert_equal(view.x[~known], x[~known].astype(np.float32))
    assert np.isnan(view.labels[~known]).all()
    mates, shares = [], []
    for row in np.flatnonzero(known):
        fits = []
        for mate in np.flatnonzero(known):
            direction = x[mate] - x[row]
            if mate == row:
                continue
            moved = np.asarray(view.x[row]) - x[row]
            share = 1 - moved @ direction / (direction @ direction)
            off = abs(moved - (1 - share) * direction).max()
            fits.append((off, mate, share))
        off, mate, share = min(fits)
        assert off < 1e-4
        expected = share * labels[row] + (1 - share) * labels[mate]
        np.testing.assert_allclose(view.labels[row], expected, atol=1e-4)
        mates.append(mate)
        shares.append(share)
    assert sorted(mates) == np.flatnonzero(known).tolist()
    assert len(np.unique(np.round(shares, 4))) == len(shares)
    assert all(0 <= share <= 1 for share in shares)


def test_shares_are_beta_distributed():
    rows = 1000
    index = jnp.arange(rows)  # Each row is of its own class, so its label is the share.
    batch = Batch(jnp.zeros([rows, 1]), index, jnp.ones(rows), index)
    mixed = jax.jit(lambda alpha: jnp.diag(mixup(alpha, rows)(batch, KEY).labels))
    for alpha in (0.2, 3.0):
        found = stats.kstest(np.asarray(mixed(alpha)), "beta", (alpha, alpha))
        assert found.pvalue > 1e-3


def test_cut_rows_have_a_run_of_another_rows_tokens(views):
    before, after = BATCHES["tokens"].x, views["cutmix tokens"].x
    known, labels = soft_labels()
    values, mask = (np.asarray(leaf) for leaf in before)
    cuts = 0
    for row in range(ROWS):
        if not known[row]:
            assert_equal((after.values[row], after.mask[row]), (values[row], mask[row]))
            continue
        own = (np.asarray(after.values[row]) == values[row]).all(1)
        cut = np.flatnonzero(~own)
        if not len(cut):
            np.testing.assert_allclose(views["cutmix tokens"].labels[row], labels[row])
            continue
        cuts += 1
        assert (np.diff(cut) == 1).all()
        places = [
            mate
            for mate in np.flatnonzero(known)
            if (np.asarray(after.values[row])[cut] == values[mate, cut]).all()
        ]
        assert len(places) == 1
        (mate,) = places
        mixed = np.where(own, mask[row], mask[mate])
        np.testing.assert_array_equal(after.mask[row], mixed)
        share = (mask[row] & own).sum() / mixed.sum()
        expected = share * labels[row] + (1 - share) * labels[mate]
        np.testing.assert_allclose(views["cutmix tokens"].labels[row], expected)
    assert cuts > 2


def test_a_lone_labelled_row_is_not_mixed():
    labels = jnp.full(ROWS, -1).at[3].set(1)
    lone = {kind: batch._replace(labels=labels) for kind, batch in BATCHES.items()}
    view, before = on_devices(lone)["mixup vectors"], BATCHES["vectors"]
    np.testing.assert_allclose(view.x, before.x, rtol=1e-6)
    np.testing.assert_allclose(view.labels[3], oracles.one_hot(1, CLASSES))


def logits_of(params, x, *, key=None, train=False):
    return x @ params["output"]["kernel"] + params["output"]["bias"]


def nothing(params, x, *, key=None, train=False):
    return x


def test_manifold_mixup_before_a_linear_head_is_mixup(views):
    """A linear head maps mixed rows to mixed logits, wherever they are mixed."""
    head, loss = linear(CLASSES, zero_init=False), softmax_cross_entropy
    batch = BATCHES["vectors"]
    batch = batch._replace(x=jnp.nan_to_num(batch.x))
    params = head.init(jax.random.key(1), batch.x)
    plain = supervised(head, loss)

    @jax.jit
    def totals(alpha):
        objective = manifold_mixup(
            logits_of, nothing, loss, alpha=alpha, classes=CLASSES
        )
        return objective.apply(params, (), batch, KEY)[0]["manifold_mixup"]

    mixed = batch._replace(
        x=np.nan_to_num(views["mixup vectors"].x),
        labels=jnp.asarray(views["mixup vectors"].labels),
    )
    for alpha, same in ((0.5, mixed), (0.0, batch)):
        expected = plain.apply(params, (), same, KEY)[0]["supervised"]
        np.testing.assert_allclose(totals(alpha), expected, rtol=1e-5)
    assert abs(totals(0.5).total - totals(0.0).total) > 0.1


def test_cached_views_are_picked_row_by_row():
    x = jnp.arange(600.0).reshape(200, 3, 1)
    index = jnp.arange(200)
    batch = Batch(x, index % 2, jnp.ones(200), index)
    np.testing.assert_array_equal(cached("weak")(batch, KEY).x, x[:, 0])
    picked = np.asarray(jax.jit(cached("strong"))(batch, KEY).x - x[:, 0])
    values, counts = np.unique(picked, return_counts=True)
    np.testing.assert_array_equal(values, [1, 2])
    assert counts.min() > 60
    picked = np.asarray(jax.jit(cached("any"))(batch, KEY).x - x[:, 0])
    assert np.unique(picked, return_counts=True)[1].min() > 40
    # One view is no views, whatever comes after it.
    shake = chain(noise(0.5), feature_dropout(0.2))
    alone = batch._replace(x=x[:, :1])
    expected = shake(batch._replace(x=x[:, 0]), KEY)
    for which in ("weak", "strong", "any"):
        assert_equal(cached(which, then=shake)(alone, KEY), expected)


def test_neighbours_are_views():
    x = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    neighbours = np.array([[1, 2], [0, 5], [3, 4], [2, 4], [3, 5], [1, 4]])
    found = neighbour_views(jnp.asarray(x), jnp.asarray(neighbours))
    np.testing.assert_array_equal(found[:, 0], x)
    np.testing.assert_array_equal(found[:, 1:], x[neighbours])
    weights = jnp.ones([6, 2]).at[0, 1].set(0)
    found = neighbour_views(jnp.asarray(x), jnp.asarray(neighbours), weights=weights)
    np.testing.assert_array_equal(found[0], x[[0, 1, 0]])


def test_views_chain_and_wrap():
    batch = BATCHES["vectors"]
    assert chain()(batch, KEY) is batch
    assert_equal(chain(identity, identity)(batch, KEY), batch)
    twice = jax.jit(chain(noise(1.0), noise(1.0)))(batch, KEY).x - batch.x
    once = jax.jit(chain(noise(1.0)))(batch, KEY).x - batch.x
    # Its second part is of another key than its first.
    assert not np.allclose(twice[:-2], 2 * once[:-2], rtol=0.2)

    head = linear(CLASSES, zero_init=False, dropout=0.5)
    params = head.init(KEY, batch.x)
    objective = supervised(head, softmax_cross_entropy)
    doubled = batch._replace(x=2 * batch.x)
    view = with_view(objective, lambda batch, key: doubled)
    assert_equal(
        view.apply(params, (), batch, KEY), objective.apply(params, (), doubled, KEY)
    )


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: noise(-1), "noise is -1: expected a scale of 0 or more"),
        (lambda: feature_dropout(1), r"feature_dropout is 1: expected a rate in \[0"),
        (lambda: token_dropout(-0.1), r"token_dropout is -0\.1: expected a rate"),
        (lambda: mixup(-1, 2), "alpha of mixup is -1: expected 0 or more"),
        (lambda: cutmix(-1, 2), "alpha of cutmix is -1"),
        (lambda: cached("hard"), "cached is 'hard': expected weak, strong or any"),
        (
            lambda: cached("weak")(BATCHES["vectors"], KEY),
            r"cached\('weak'\) got x of \[16, 3\]: expected \[batch, views, dim\]",
        ),
        (
            lambda: cached("strong")(BATCHES["tokens"], KEY),
            r"cached\('strong'\) got x of Tokens: expected",
        ),
        (
            lambda: token_dropout(0.5)(BATCHES["vectors"], KEY),
            r"token_dropout got x of shape \[16, 3\]: expected tokens",
        ),
        (
            lambda: cutmix(0.5, 2)(BATCHES["vectors"], KEY),
            r"cutmix got x of shape \[16, 3\]: expected tokens",
        ),
        (
            lambda: mixup(0.5, 2)(BATCHES["tokens"], KEY),
            "mixup got padded tokens",
        ),
    ],
)
def test_refused_settings(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
