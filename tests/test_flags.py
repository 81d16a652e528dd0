"""Flags set what they name, and anything else is one clear sentence."""

import dataclasses
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flaxhead import Config, HeadConfig, flags


@pytest.mark.parametrize(
    ("flag", "path", "value"),
    [
        ("train.batch_size=64", ("train", "batch_size"), 64),
        ("train.epochs=3", ("train", "epochs"), 3.0),
        ("train.epochs=2.5", ("train", "epochs"), 2.5),
        ("train.seeds=[1,2]", ("train", "seeds"), (1, 2)),
        ("train.seeds=7", ("train", "seeds"), (7,)),
        ("optimizer.learning_rate=[1,0.1]", ("optimizer", "learning_rate"), (1.0, 0.1)),
        ("optimizer.learning_rate=(1e-2,)", ("optimizer", "learning_rate"), (0.01,)),
        ("optimizer.nesterov=True", ("optimizer", "nesterov"), True),
        ("data.source=npz:a=b", ("data", "source"), "npz:a=b"),
        ("data.labels_field=2", ("data", "labels_field"), "2"),
        ("loss.class_weights=balanced", ("loss", "class_weights"), "balanced"),
        ('loss.class_weights={"a":2}', ("loss", "class_weights"), {"a": 2.0}),
        ("heads.0.width=16", ("heads", 0, "width"), 16),
        ("heads.0.dropout=0.5", ("heads", 0, "dropout"), (0.5,)),
    ],
)
def test_a_flag_sets_its_field_and_nothing_else(flag, path, value):
    changed = dataclasses.asdict(flags.override(Config(), [f"--config.{flag}"]))
    expected = dataclasses.asdict(Config())
    node = expected
    for name in path[:-1]:
        node = node[name]
    assert node[path[-1]] != value
    node[path[-1]] = value
    assert changed == expected
    got = changed
    for name in path:
        got = got[name]
    assert type(got) is type(value)


def test_the_last_flag_wins():
    two = ["--config.train.steps=1", "--config.train.steps=2"]
    assert flags.override(Config(), two).train.steps == 2


def test_settings_are_json():
    assert json.loads(json.dumps(dataclasses.asdict(Config())))["train"]["seeds"] == [0]


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.train.batchsize=64", ["'batchsize'", "did you mean 'batch_size'"]),
        ("--config.trian.steps=1", ["'trian'", "did you mean 'train'"]),
        ("--config.heads.0.widht=1", ["'widht'", "did you mean 'width'"]),
        ("--config.heads.1.width=1", ["'1'", "1 entries"]),
        ("--config.heads.x.width=1", ["'x'"]),
        ("--config.heads.².width=1", ["'²'"]),
        ("--config.heads.0=1", ["name a field of entry 0"]),
        ("--config.heads=1", ["heads.0.width"]),
        ("--config.train=1", ["a field of it"]),
        ("--config.train.steps.x=1", ["'steps' is a value"]),
        ("--config.train.steps", ["expected --config.FIELD=VALUE"]),
        ("--config.=1", ["there is no field ''"]),
        ("--steps=1", ["expected --config.FIELD=VALUE"]),
        ("steps", ["expected --config.FIELD=VALUE"]),
        ("--config.train.steps=1.5", ["a whole number", "'1.5'"]),
        ("--config.train.steps=True", ["a whole number", "'True'"]),
        ("--config.train.steps=", ["a whole number", "''"]),
        ("--config.train.epochs=many", ["a number", "'many'"]),
        ("--config.train.epochs=1e999", ["train.epochs is inf"]),
        ("--config.train.epochs=" + "9" * 400, ["a number"]),
        ("--config.train.seeds=[]", ["train.seeds is ()"]),
        ("--config.train.seeds=[-1]", ["train.seeds is (-1,)"]),
        ("--config.train.seeds=[1,'a']", ["one or more of a whole number"]),
        ("--config.optimizer.nesterov=False ", ["True or False", "'False '"]),
        ("--config.optimizer.nesterov=yes", ["True or False", "'yes'"]),
        ("--config.optimizer.nesterov=1", ["True or False", "'1'"]),
        ("--config.optimizer.nesterov=false", ["True or False", "'false'"]),
        ("--config.optimizer.learning_rate=[-1]", ["optimizer.learning_rate is"]),
        ("--config.optimizer.name=adm", ["optimizer.name is 'adm'", "adam"]),
        ("--config.loss.class_weights={'a':'b'}", ['{"name": number, ...}']),
        ("--config.loss.class_weights={'a':None}", ['{"name": number, ...}']),
        ("--config.loss.class_weights={[1]:2}", ['{"name": number, ...}']),
        ("--config.loss.class_weights={'a':-1}", ["loss.class_weights of 'a' is -1"]),
        ("--config.loss.class_weights=even", ["none, balanced"]),
        ("--config.train.steps=" + "(" * 3000, ["a whole number"]),
        ("--config.train.steps=1\0", ["a whole number"]),
    ],
)
def test_anything_else_is_refused_in_one_sentence(flag, words):
    with pytest.raises(ValueError, match=r".+") as caught:
        flags.override(Config(), [flag])
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def fields(node, prefix="--config"):
    """Every flag that there is."""
    if isinstance(node, tuple) and node and dataclasses.is_dataclass(node[0]):
        for number, one in enumerate(node):
            yield from fields(one, f"{prefix}.{number}")
    elif dataclasses.is_dataclass(node):
        for field in dataclasses.fields(node):
            yield from fields(getattr(node, field.name), f"{prefix}.{field.name}")
    else:
        yield prefix


EVERY = list(fields(Config()))
VALUES = st.one_of(
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(str),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(max_size=3), inner, max_size=2)
        ),
        max_leaves=4,
    ).map(repr),
)


def overridden(flag):
    """What comes of a flag: the settings and no message, or None and a message."""
    try:
        return flags.override(Config(), [flag]), ""
    except ValueError as error:
        return None, str(error)


@settings(deadline=None)
@example(flag="--config.train.devices", value="18446744073709551616")
@example(flag="--config.train.patience", value="1" + 400 * "0")
@given(flag=st.sampled_from(EVERY), value=VALUES)
def test_no_value_of_any_field_is_more_than_an_error(flag, value):
    """It is taken, or a ValueError of one line: never anything else."""
    config, message = overridden(f"{flag}={value}")
    # A value with a line break may be quoted as it came.
    assert len(message.splitlines()) <= 1 + len(value.splitlines())
    if config is None:
        assert message
    else:
        json.dumps(dataclasses.asdict(config), allow_nan=False)


@settings(deadline=None)
@given(flag=st.text(max_size=30).map("--config.".__add__) | st.text(max_size=30))
def test_no_flag_is_more_than_an_error(flag):
    config, message = overridden(flag)
    assert (config is None) == bool(message)


def write(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(text)
    return str(path)


def test_a_config_file_is_a_module(tmp_path):
    path = write(
        tmp_path,
        "from flaxhead import Config, HeadConfig\n"
        "def get_config():\n"
        "    return Config(heads=(HeadConfig('mlp', width=3),))\n",
    )
    assert flags.load(path) == Config(heads=(HeadConfig("mlp", width=3),))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", ["AttributeError", "get_config"]),
        ("def get_config(): return 3", ["returned a int", "flaxhead.Config"]),
        ("import nowhere_at_all", ["ModuleNotFoundError", "nowhere_at_all"]),
        ("def get_config(:", ["SyntaxError"]),
        ("def get_config(): raise KeyError('a')", ["KeyError"]),
    ],
)
def test_a_config_file_that_fails_is_one_sentence(tmp_path, text, words):
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=r".+") as caught:
        flags.load(path)
    assert path in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_config_file_that_is_not_there_names_the_nearest(tmp_path):
    write(tmp_path, "")
    with pytest.raises(
        ValueError, match=r"no such config file; did you mean .*mine\.py"
    ):
        flags.load(str(tmp_path / "mime.py"))
