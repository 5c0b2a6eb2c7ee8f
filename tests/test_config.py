"""Configuration: values, errors that name the fix, layer patterns, files of both projects."""

import json

import pytest

from swaa.config import ConfigError, LayerRule, SWAAConfig, load_settings, read_structured

FULL = SWAAConfig(window=2048, sinks=128, full_layers=[5, 7, 17], fa_decode=[0, 1], dense_tail=32, backend="sdpa")
HEADS = SWAAConfig(window=4, sinks=1, full_layers=[5], full_heads={3: [0, 2], 12: [1]})


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [
        ("none", ()),
        ("odd", (1, 3, 5, 7, 9)),
        ("even", (0, 2, 4, 6, 8)),
        ("all", tuple(range(10))),
        ("1/2", (1, 3, 5, 7, 9)),
        ("1/4", (1, 5, 9)),
        ("1/4@3", (3, 7)),
        ("1/1", tuple(range(10))),
        ([7, 3], (3, 7)),
    ],
)
def test_full_layers(pattern, layers):
    config = SWAAConfig(window=4, full_layers=pattern)
    assert config.full_layer_numbers(10) == layers
    assert [i for i, rule in enumerate(config.resolve(10)) if rule == LayerRule()] == list(layers)


def test_rules_of_the_layers():
    rules = SWAAConfig(window=4, sinks=2, full_layers=[1], fa_decode=[2], dense_tail=3).resolve(3)
    assert rules == (LayerRule(4, 2, False, 3), LayerRule(), LayerRule(4, 2, True, 3))
    assert SWAAConfig(window=4, fa_decode=True).resolve(2) == (LayerRule(4, fa_decode=True),) * 2


def test_full_heads():
    config = SWAAConfig(window=4, sinks=2, full_layers=[1], full_heads={3: [2, 0], 2: (1,), 0: []}, fa_decode=[2])
    assert dict(config.full_heads) == {2: (1,), 3: (0, 2)}
    rules = config.resolve(4)
    assert rules == (
        LayerRule(4, 2),
        LayerRule(),
        LayerRule(4, 2, fa_decode=True, full_heads=(1,)),
        LayerRule(4, 2, full_heads=(0, 2)),
    )
    assert rules[3].parts(4) == (((1, 3), LayerRule(4, 2)), ((0, 2), LayerRule()))
    assert rules[0].parts(3) == (((0, 1, 2), rules[0]),)
    with pytest.raises(ConfigError, match=r"KV heads 0 to 1, not \[2\]"):
        rules[3].parts(2)
    with pytest.raises(ConfigError, match="all 1 KV heads"):
        LayerRule(4, full_heads=(0,)).parts(1)


def test_full_heads_in_any_form_are_the_same():
    config = SWAAConfig(window=4, full_heads={10: [1], 9: [0, 2]})
    assert config.to_dict()["full_heads"] == {"9": [0, 2], "10": [1]}
    for form in ({"9": [2, 0], "10": [1]}, {9: (0, 2), 10: range(1, 2)}, ((10, (1,)), (9, (0, 2)))):
        assert SWAAConfig(window=4, full_heads=form) == config
    assert SWAAConfig(window=4, full_heads={}) == SWAAConfig(window=4)
    assert hash(config.replace(full_heads={})) == hash(SWAAConfig(window=4))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"window": 0}, ["window=0", "1 or more"]),
        ({"window": True}, ["window=True"]),
        ({"window": "2k"}, ["window='2k'"]),
        ({"window": 4, "sinks": -1}, ["sinks=-1", "0 or more"]),
        ({"window": 4, "sinks": 1.5}, ["sinks=1.5"]),
        ({"window": 4, "dense_tail": -2}, ["dense_tail=-2"]),
        ({"window": 4, "full_layers": "ood"}, ["'ood'", "Did you mean 'odd'"]),
        ({"window": 4, "full_layers": "1/4@4"}, ["1/4@4", "below 4"]),
        ({"window": 4, "full_layers": "1/0"}, ["1/0"]),
        ({"window": 4, "full_layers": [1, 1]}, ["twice"]),
        ({"window": 4, "full_layers": [-1]}, ["-1", "count from 0"]),
        ({"window": 4, "full_layers": ["odd"]}, ["'odd' is no layer number"]),
        ({"window": 4, "full_layers": 3}, ["full_layers=3", "list"]),
        ({"window": 4, "full_heads": [3]}, ["full_heads=[3]", "mapping", "{3: [0, 2]}"]),
        ({"window": 4, "full_heads": {3: 1}}, ["full_heads={3: 1}", "mapping"]),
        ({"window": 4, "full_heads": {3: "1"}}, ["full_heads={3: '1'}", "mapping"]),
        ({"window": 4, "full_heads": {"x": [1]}}, ["'x' is no layer number"]),
        ({"window": 4, "full_heads": {3: [0, "a"]}}, ["full_heads, layer 3", "'a' is no head number"]),
        ({"window": 4, "full_heads": {3: [-1]}}, ["-1 is no head number", "count from 0"]),
        ({"window": 4, "full_heads": {3: [1, 1]}}, ["layer 3", "names a head twice"]),
        ({"window": 4, "full_heads": {3: [1], "3": [2]}}, ["full_heads", "names a layer twice"]),
        ({"full_heads": {3: [1]}}, ["full_heads={'3': [1]}", "window"]),
        ({"window": 4, "fa_decode": "yes"}, ["fa_decode='yes'"]),
        ({"window": 4, "fa_decode": 1}, ["fa_decode=1"]),
        ({"window": 4, "backend": None}, ["backend=None"]),
        ({"fa_decode": True}, ["fa_decode=True", "window"]),
        ({"sinks": 3}, ["sinks=3", "window"]),
        ({"dense_tail": 3}, ["dense_tail=3", "window"]),
        ({"full_layers": "odd"}, ["full_layers='odd'", "window"]),
        ({"window": 4, "sink": 3}, ["'sink'", "Did you mean 'sinks'"]),
        ({"window": 4, "keep_first": 3}, ["window", "keep_first -> sinks"]),
    ],
)
def test_wrong_values_name_field_value_and_fix(values, words):
    with pytest.raises(ConfigError) as error:
        SWAAConfig.from_dict(values)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (SWAAConfig(window=4, full_layers=[2, 3]), ["full_layers", "0 to 2", "[3]"]),
        (SWAAConfig(window=4, fa_decode=[9]), ["fa_decode", "[9]"]),
        (SWAAConfig(window=4, full_layers="1/8@5"), ["1/8@5", "layer 5"]),
        (SWAAConfig(window=4, full_layers=[1], fa_decode=[1, 2]), ["[1]", "full_layers"]),
        (SWAAConfig(window=4, full_heads={1: [0], 7: [1]}), ["full_heads", "0 to 2", "[7]"]),
        (SWAAConfig(window=4, full_layers="odd", full_heads={0: [0], 1: [0]}), ["full_heads=", "[1]", "full_layers"]),
    ],
)
def test_layers_that_the_model_lacks(config, words):
    with pytest.raises(ConfigError) as error:
        config.resolve(3)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
@pytest.mark.parametrize(
    "config", [SWAAConfig(), FULL, SWAAConfig(window=4, full_layers="1/4@3", fa_decode=True), HEADS]
)
def test_round_trip(tmp_path, suffix, config):
    path = tmp_path / f"config{suffix}"
    config.save(path)
    assert SWAAConfig.load(path) == config
    assert SWAAConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_compares_by_value_and_is_hashable():
    assert SWAAConfig(window=4, full_layers=[3, 1]) == SWAAConfig(window=4, full_layers=(1, 3))
    assert len({FULL, FULL.replace(), FULL.replace(window=7)}) == 2
    with pytest.raises(AttributeError):
        FULL.window = 3


def test_replace_checks_again():
    assert FULL.replace(sinks=0).sinks == 0
    with pytest.raises(ConfigError, match="Did you mean 'window'"):
        FULL.replace(windows=3)
    with pytest.raises(ConfigError, match="window=0"):
        FULL.replace(window=0)


def reference_setting(**changes):
    return {
        "swaa_config": {
            "sliding_window_size": 2000,
            "keep_first": 10,
            "force_fa_decode": True,
            "non_sliding_layers": [],
        }
        | changes,
        "model_list": ["a", "b"],
    }


def test_reads_the_setting_files_of_the_reference(tmp_path):
    path = tmp_path / "settings.json"
    settings = [
        reference_setting(),
        reference_setting(non_sliding_layers=list(range(1, 48, 2))),
        reference_setting(non_sliding_layers=[0, 4, 8, 12], force_fa_decode=[3]),
        reference_setting(non_sliding_layers=[5, 7, 17]),
        reference_setting(sliding_window_size=None),
    ]
    path.write_text(json.dumps(settings))
    assert load_settings(path) == [
        SWAAConfig(window=2000, sinks=10, fa_decode=True),
        SWAAConfig(window=2000, sinks=10, fa_decode=True, full_layers=range(1, 48, 2)),
        SWAAConfig(window=2000, sinks=10, fa_decode=[3], full_layers=[0, 4, 8, 12]),
        SWAAConfig(window=2000, sinks=10, fa_decode=True, full_layers=[5, 7, 17]),
        SWAAConfig(),
    ]
    # The reference lists layers up to 47 whatever the model's depth.
    assert load_settings(path)[1].full_layer_numbers(6) == (1, 3, 5)
    assert load_settings(path)[2].full_layer_numbers(36) == (0, 4, 8, 12)
    with pytest.raises(ConfigError, match="5 configurations"):
        SWAAConfig.load(path)


@pytest.mark.parametrize("layers", [[0, 1, 2], [1, 3], [3, 4, 9], [8, 10, 12]])
def test_other_lists_may_not_run_past_the_depth(layers):
    config = SWAAConfig.from_dict({"sliding_window_size": 8, "non_sliding_layers": layers})
    assert config.full_layer_numbers(13) == tuple(layers)
    with pytest.raises(ConfigError, match="layer"):
        config.full_layer_numbers(2)


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    (tmp_path / "a.json").write_text('{"window": 8}', encoding="utf-8-sig")
    assert read_structured(tmp_path / "a.json") == {"window": 8}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "not valid JSON"),
        ("a.yaml", "a: [", "not valid YAML"),
        ("a.json", "3", "mapping"),
        ("missing.json", None, "cannot read"),
    ],
)
def test_unreadable_files(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        SWAAConfig.load(path)
