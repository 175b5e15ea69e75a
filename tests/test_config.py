"""The configuration of a run: presets, files, overrides, and one clear line for every error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from patch_tools import refused

from gan_uad import config, registry
from gan_uad.config import DataConfig, RunConfig, data_config, load_config, presets, resolve
from gan_uad.errors import UserError

MINIMAL: dict[str, Any] = {"model": "wgan_gp", "task": "wgan_gp", "training": {"total_kimg": 1}}


def minimal(*overrides: str) -> RunConfig:
    return resolve(MINIMAL, overrides, default_name="x", context="here")


@pytest.mark.parametrize("name", sorted(presets()))
def test_every_preset_is_complete_and_its_options_exist(name: str) -> None:
    config = load_config(name)
    assert config.name == name
    if not config.task:  # a scorer that is fitted
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
    node: Any = minimal(override).model_dump()
    for part in override.partition("=")[0].split("."):
        node = node[part]
    assert node == expected
    assert type(node) is type(expected)


def test_the_last_override_wins() -> None:
    assert minimal("training.batch=8", "training.batch=16").training.batch == 16


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("training.bacth=8", "'training.bacth' 'batch'"),
        ("trainin.batch=8", "'trainin' 'training'"),
        ("data.corp=center", "'data.corp' 'crop'"),
        ("zzz=1", "'zzz' data, generator, init_from, model"),
        ("training.batch=0", "training.batch 1 0"),
        ("training.batch=many", "training.batch integer 'many'"),
        ("training.batch=2.5", "training.batch integer 2.5"),
        ("training.total_kimg=.inf", "training.total_kimg inf"),
        ("training.total_kimg=.nan", "training.total_kimg nan"),
        ("training.total_kimg=-1", "training.total_kimg -1"),
        ("training.tick_kimg=0", "training.tick_kimg 0"),
        ("training.device=gpu", "training.device 'auto' 'cpu' 'cuda' 'gpu'"),
        ("training.precision=fp8", "training.precision 'fp32' 'tf32' 'bf16' 'fp16' 'fp8'"),
        ("data.crop=middle", "data.crop 'none' 'center' 'middle'"),
        ("data.split_fractions=[0.5, 0.5, 0.5]", "data.split_fractions [0.5, 0.5, 0.5]"),
        ("data.split_fractions=[1, 0]", "data.split_fractions"),
        ("resolution=4096", "resolution 1024 4096"),
        ("network.resolution=32", "network resolution"),
        ("name=a/b", "name 'a/b'"),
        ("name=", "name"),
        ("data=here", "data 'here'"),
        ("training.batch", "'training.batch' -o training.batch=32"),
        ("=3", "'=3' -o training.batch=32"),
        ("training.batch=[1", "'training.batch=[1' YAML"),
        ("model.name=x", "'model.name=x' 'model'"),
    ],
)
def test_an_override_that_is_wrong_is_named(override: str, named: str) -> None:
    with refused(*named.split()):
        minimal(override)


def test_further_errors_are_counted() -> None:
    with refused("'zzz'", "(and 2 more)"):
        minimal("training.batch=0", "training.seed=-1", "zzz=1")


@pytest.mark.parametrize(
    ("change", "named", "others"),
    [
        ({"modl": "dcgan"}, ("'modl'", "'model'"), ""),  # the mistyped key, not the one that is therefore missing
        ({"modl": "dcgan", "training": {}}, ("'modl'", "'model'"), " (and 1 more)"),
        ({}, ("'model'", "missing"), ""),
        ({"model": "dcgan", "training": {}}, ("'training.total_kimg'", "missing"), ""),
    ],
)
def test_unknown_and_missing_keys(change: dict[str, Any], named: tuple[str, ...], others: str) -> None:
    raw = {"task": "dcgan", "training": {"total_kimg": 1}} | change
    with pytest.raises(UserError) as caught:
        resolve(raw, default_name="x", context="here")
    assert [word for word in ("here", *named) if word not in caught.value.message] == []
    assert caught.value.message.partition(" (and ")[2] == others.removeprefix(" (and ")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"- a\n- b\n", "list"),
        (b"just text", "str"),
        (b"", "NoneType"),
        (b"a: [1\n", "YAML"),
        (b"\xff\xfe\x00", ""),
        (b"a: !!python/object/apply:os.system [ls]\n", "YAML"),
        (b"1: 2\nmodel: x\ntask: x\ntraining: {total_kimg: 1}\n", "1"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with refused("broken.yaml", named):
        load_config(path)


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("wgan_pg_64", ("'wgan_pg_64'", "'wgan_gp_64'")),
        ("zzzzz", ("'zzzzz'", "dcgan_64")),
        ("nothing.yaml", ("nothing.yaml",)),
        ("folder.yaml", ("folder.yaml",)),
    ],
)
def test_presets_and_files_that_do_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, named: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.yaml").mkdir()
    with refused(*named):
        load_config(source)


def test_the_name_of_a_configuration_is_by_default_that_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    assert load_config(path).name == "mine"
    path.write_text(yaml.safe_dump(MINIMAL | {"name": "another"}))
    assert load_config(path).name == "another"


def test_data_settings_alone() -> None:
    assert data_config("here", ["data.crop=center"]) == DataConfig(path="here", crop="center")
    with refused("-o training.batch=3", "data.*"):
        data_config("here", ["training.batch=3"])


@given(*[st.text("ab.z_=:-019 ,'\"[]{}#&*!|>%@\\\t\n\r\0\x85\u2028é😀", max_size=30)] * 2)
def test_no_override_is_a_traceback(key: str, value: str) -> None:
    try:
        minimal(f"{key}={value}")
    except UserError as error:
        message = error.message
    else:
        message = ""
    assert "\n" not in message


def test_models_of_the_current_folder_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the package runs from a checkout, which has a `models` of its own."""
    monkeypatch.chdir(tmp_path)
    assert "mine" not in config.trained_models()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.safetensors").touch()
    assert "mine" not in config.trained_models()
    monkeypatch.setattr(config, "presets_dir", lambda: tmp_path / "site-packages" / "gan_uad" / "configs")
    assert config.trained_models() == {"mine": tmp_path / "models" / "mine.safetensors"}
    assert config.trained_model("mine") == tmp_path / "models" / "mine.safetensors"
