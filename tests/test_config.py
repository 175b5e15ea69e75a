"""What a run may be told: presets, files, overrides, and one clear line for everything that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gan_uad import config, registry
from gan_uad.config import DataConfig, RunConfig, data_config, load_config, presets, resolve
from gan_uad.errors import UserError

LEAST: dict[str, Any] = {"model": "wgan_gp", "task": "wgan_gp", "training": {"total_kimg": 1}}


def least(*overrides: str, **changes: Any) -> RunConfig:
    return resolve(LEAST | changes, overrides, default_name="x", context="here")


def refused(*overrides: str, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        least(*overrides, **changes)
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("name", sorted(presets()))
def test_every_preset_is_whole_and_its_parts_can_be_told_what_it_says(name: str) -> None:
    config = load_config(name)
    assert config.name == name
    if not config.task:  # a scorer alone, which is fitted
        registry.build("scorer", config.scoring.scorer, config.scoring.options)
        return
    sizes = registry.check_options(registry.find("network", config.model), config.network, name)
    narrow = {"channel_base": 64} if "channel_base" in sizes else {}
    net = registry.build("network", config.model, {"resolution": config.resolution, **sizes, **narrow})
    assert net.spec["name"] == config.model
    registry.check_options(
        registry.find("task", config.task), config.optim, name, ("model", "device", "seed", "generator")
    )
    if config.scoring.inverter:
        registry.check_options(registry.find("inverter", config.scoring.inverter), config.scoring.options, name)
    assert config.training.checkpoint_kimg <= config.training.total_kimg


def test_the_presets_that_the_documentation_names_are_there() -> None:
    assert {"dcgan_64", "wgan_gp_64", "wgan_gp_64_small", "izi_64", "izi_f_64", "anogan_64"} <= set(presets())


def test_a_preset_by_name_and_by_path_is_the_same() -> None:
    assert load_config(presets()["dcgan_64"]) == load_config("dcgan_64")


def test_a_resolved_configuration_reads_back_as_itself() -> None:
    config = load_config("wgan_gp_64_small", ["data.path=/some/where", "training.seed=7"])
    text = yaml.safe_dump(config.model_dump(mode="json"))
    assert resolve(yaml.safe_load(text), default_name="other", context="here") == config


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.batch=32", 32),
        ("optim.lr=1e-4", 1e-4),
        ("optim.lr=1E+2", 100.0),
        ("optim.betas=[0.5, 0.9]", [0.5, 0.9]),
        ("optim.betas={a: 1}", {"a": 1}),
        ("data.path=/a=b/c", "/a=b/c"),
        ("data.path=", None),
        ('data.path="007"', "007"),
        ("data.grayscale=true", True),
        ("name=run e5", "run e5"),
        ("scoring.options.steps=200", 200),
    ],
)
def test_an_override_is_a_yaml_value(override: str, expected: Any) -> None:
    node: Any = least(override).model_dump()
    for part in override.partition("=")[0].split("."):
        node = node[part]
    assert node == expected
    assert type(node) is type(expected)


def test_the_last_override_wins() -> None:
    assert least("training.batch=8", "training.batch=16").training.batch == 16


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.bacth=8", "unknown key 'training.bacth': did you mean 'batch'?"),
        ("trainin.batch=8", "unknown key 'trainin': did you mean 'training'?"),
        ("data.corp=center", "unknown key 'data.corp': did you mean 'crop'?"),
        ("zzz=1", "unknown key 'zzz': known: data, generator, init_from, model"),
        ("training.batch=0", "training.batch: input should be greater than or equal to 1, got 0"),
        ("training.batch=many", "training.batch: input should be a valid integer.*got 'many'"),
        ("training.batch=2.5", "training.batch: .*got 2.5"),
        ("training.total_kimg=.inf", "training.total_kimg: input should be a finite number, got inf"),
        ("training.total_kimg=.nan", "training.total_kimg: .* got nan"),
        ("training.total_kimg=-1", "training.total_kimg"),
        ("training.tick_kimg=0", "training.tick_kimg: input should be greater than 0"),
        ("training.device=gpu", "training.device: input should be 'auto', 'cpu' or 'cuda', got 'gpu'"),
        ("training.precision=fp8", "training.precision: .*'fp32', 'tf32', 'bf16' or 'fp16'"),
        ("data.crop=middle", "data.crop: input should be 'none' or 'center', got 'middle'"),
        ("data.split_fractions=[0.5, 0.5, 0.5]", "data.split_fractions: .*three shares that add up to 1"),
        ("data.split_fractions=[1, 0]", "data.split_fractions.*"),
        ("resolution=4096", "resolution: input should be less than or equal to 1024, got 4096"),
        ("network.resolution=32", "the resolution is a key of its own"),
        ("name=a/b", "name: string should match pattern"),
        ("name=", "name: "),
        ("data=here", "data: "),
        ("training.batch", "expected key=value, such as -o training.batch=32"),
        ("=3", "expected key=value"),
        ("training.batch=[1", "the value is not valid YAML"),
        ("model.name=x", "'model' has no keys below it"),
    ],
)  # fmt: skip
def test_an_override_that_is_wrong_is_named(override: str, message: str) -> None:
    import re

    found = refused(override)
    assert re.search(message, found), found


def test_the_number_of_further_errors_is_told() -> None:
    assert refused("training.batch=0", "training.seed=-1", "zzz=1").endswith("(and 2 more)")


def test_an_unknown_key_comes_before_the_missing_one_that_it_was_to_be() -> None:
    with pytest.raises(UserError) as caught:
        resolve({"modl": "dcgan", "task": "dcgan", "training": {"total_kimg": 1}}, default_name="x", context="x")
    assert caught.value.message == "x: unknown key 'modl': did you mean 'model'?"
    with pytest.raises(UserError, match=r"did you mean 'model'\? \(and 1 more\)$"):
        resolve({"modl": "dcgan", "task": "dcgan", "training": {}}, default_name="x", context="x")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(UserError, match="key 'model' is missing"):
        resolve({"task": "dcgan", "training": {"total_kimg": 1}}, default_name="x", context="here")
    with pytest.raises(UserError, match=r"key 'training.total_kimg' is missing"):
        resolve({"model": "dcgan", "task": "dcgan", "training": {}}, default_name="x", context="here")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- a\n- b\n", "must hold `key: value` lines, not a list"),
        (b"just text", "must hold `key: value` lines, not a str"),
        (b"", "must hold `key: value` lines"),
        (b"a: [1\n", "is not valid YAML"),
        (b"\xff\xfe\x00", "cannot read|is not valid YAML"),
        (b"a: !!python/object/apply:os.system [ls]\n", "is not valid YAML"),
        (b"1: 2\nmodel: x\ntask: x\ntraining: {total_kimg: 1}\n", "1"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_config(path)
    assert "broken.yaml" in caught.value.message
    assert "\n" not in caught.value.message


def test_names_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no preset is called 'wgan_pg_64'.*did you mean .*'wgan_gp_64'"):
        load_config("wgan_pg_64")
    with pytest.raises(UserError, match=r"no preset is called 'zzzzz'.*known: .*dcgan_64"):
        load_config("zzzzz")
    with pytest.raises(UserError, match=r"no such configuration file: .*nothing.yaml"):
        load_config(tmp_path / "nothing.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(UserError, match=r"cannot read .*folder.yaml"):
        load_config(tmp_path / "folder.yaml")


def test_the_name_of_a_configuration_is_that_of_its_file_unless_it_says_another(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(LEAST))
    assert load_config(path).name == "mine"
    path.write_text(yaml.safe_dump(LEAST | {"name": "another"}))
    assert load_config(path).name == "another"


def test_data_settings_alone() -> None:
    assert data_config("here", ["data.crop=center"]) == DataConfig(path="here", crop="center")
    with pytest.raises(UserError, match=r"only data.\* settings apply here"):
        data_config("here", ["training.batch=3"])


@given(*[st.text("ab.z_=:-019 ,'\"[]{}#&*!|>%@\\\t\n\r\0\x85\u2028é😀", max_size=30)] * 2)
def test_no_override_is_a_traceback(key: str, value: str) -> None:
    try:
        least(f"{key}={value}")
    except UserError as error:
        message = error.message
    else:
        message = ""
    assert "\n" not in message


def test_models_of_the_folder_that_one_is_in_go_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the package is not run from a checkout, which has a `models` of its own."""
    monkeypatch.chdir(tmp_path)
    assert "mine" not in config.trained_models()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.safetensors").touch()
    assert "mine" not in config.trained_models()
    monkeypatch.setattr(config, "presets_dir", lambda: tmp_path / "site-packages" / "gan_uad" / "configs")
    assert config.trained_models() == {"mine": tmp_path / "models" / "mine.safetensors"}
    assert config.trained_model("mine") == tmp_path / "models" / "mine.safetensors"
