"""The CNN-VAE hybrid: its CNN, and the two stages of its training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from run_tools import errors, same

import gan_uad
from gan_uad import registry
from gan_uad.benchmark.metrics import training_metrics
from gan_uad.benchmark.plan import Training
from gan_uad.config import load_config
from gan_uad.errors import UserError
from gan_uad.training.autoencoding import trained_cnn
from gan_uad.training.train import build_task

pytestmark = pytest.mark.numerical

CPU = torch.device("cpu")


def cnn(**options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"resolution": 32, "channels": [4, 6], "hidden": [10, 8]}
    return registry.build("network", "cnn", {**sizes, **options}).eval()


@pytest.fixture(scope="module")
def stages(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a configuration and a run of a tiny CNN, and a configuration of the VAE that starts from it."""
    folder: Path = tmp_path_factory.mktemp("stages")
    raw = yaml.safe_load(tiny.config("dcgan").read_text())
    raw["data"]["label"] = "all"
    first = {"model": "cnn", "task": "supervised", "network": {"channels": [4, 6], "hidden": [8]}}
    second = {"model": "cnn_vae", "task": "vae", "network": {"latent_dim": 4, "channels": [4, 6], "vae_channels": [8]}}
    for name, changes in (("cnn", first), ("cnn_vae", second)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(raw | changes))
    result = tiny.train(folder / "cnn.yaml", folder / "runs", total_kimg=0.008)
    assert result.exit_code == 0, result.output
    return folder


def test_the_cnn_is_its_layers() -> None:
    net, images = cnn(), torch.rand(3, 3, 32, 32) * 2 - 1
    state = net.state_dict()
    x = images
    for k in (0, 3):
        x = F.max_pool2d(F.relu(F.conv2d(x, state[f"trunk.{k}.weight"], state[f"trunk.{k}.bias"], padding=1)), 2)
    assert x.shape == (3, 6, 8, 8), "as large as the dense layers see it"
    x = x.flatten(1)
    for k in (2, 5):
        x = F.relu(F.linear(x, state[f"head.{k}.weight"], state[f"head.{k}.bias"]))
    torch.testing.assert_close(net(images), F.linear(x, state["head.8.weight"], state["head.8.bias"]))


def test_dropout_is_of_the_dense_layers_in_training() -> None:
    images = torch.rand(2, 3, 32, 32)
    assert [layer.p for layer in cnn(dropout=0.3).head if isinstance(layer, torch.nn.Dropout)] == [0.3, 0.3]
    net = cnn().train()
    assert not torch.equal(net(images), net(images))
    assert torch.equal(net.trunk(images), net.trunk(images))


def test_large_maps_are_pooled_before_the_dense_layers() -> None:
    config = load_config("cnn_256")
    with torch.device("meta"):
        net = registry.build("network", config.model, {"resolution": 256, **config.network})
    assert sum(p.numel() for p in net.parameters()) == 93_248 + (8192 * 512 + 512) + (512 * 256 + 256) + (256 * 2 + 2)
    net = cnn(resolution=64)
    assert net.head[2].in_features == 6 * 8 * 8
    assert net(torch.zeros(2, 3, 64, 64)).shape == (2, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": []}, "channels needs at least one layer"),
        ({"hidden": []}, "hidden needs at least one layer"),
        ({"hidden": [0]}, "hidden must be at least 1"),
        ({"resolution": 48}, "power of two"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
    ],
)
def test_cnns_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cnn(**options)


def test_the_second_stage_starts_from_the_first(stages: Path, tiny: Any, tmp_path: Path) -> None:
    first = stages / "runs" / "00000-cnn"
    made: Any = build_task(load_config(str(stages / "cnn_vae.yaml"), [f"optim.cnn={first}"]), CPU)
    made.begin()
    trained = gan_uad.load(str(first)).networks["classifier"].trunk.state_dict()
    same(dict(made.model.trunk.state_dict()), dict(trained))
    before = {id(p) for p in made.model.parameters()}
    assert {id(p) for group in made.opt.param_groups for p in group["params"]} == before
    result = tiny.train(
        stages / "cnn_vae.yaml", tmp_path, "-o", f"optim.cnn={first}", "-o", "data.label=normal", total_kimg=0.008
    )
    assert result.exit_code == 0, result.output
    assert f"starting from the cnn of {first}" in result.stderr
    after = gan_uad.load(str(tmp_path / "00000-cnn_vae")).networks["vae"].trunk.state_dict()
    assert not any(torch.equal(after[key], value) for key, value in trained.items()), "it is trained on"
    assert labels_that_a_table_tells_of(tmp_path / "00000-cnn_vae") == "all"


def labels_that_a_table_tells_of(run: Path) -> str:
    """Column "trained on" of `gan-uad benchmark`, where it uses a finished run again."""
    return str(training_metrics(run, Training(run.name, "", run=str(run)), run.parent)["trained_on"])


def test_the_best_model_of_a_validated_first_stage_is_used(stages: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(stages / "runs" / "00000-cnn", tmp_path / "run"))
    (run / "model.safetensors").rename(run / "best.safetensors")
    (run / "model.safetensors").write_bytes(b"the last one")
    assert set(trained_cnn(run, 32)) == set(cnn().trunk.state_dict())


def test_without_the_first_stage_it_says_so(stages: Path, tiny: Any, tmp_path: Path) -> None:
    result = tiny.train(stages / "cnn_vae.yaml", tmp_path, "-o", "data.label=normal", total_kimg=0.004)
    assert result.exit_code == 0, result.output
    assert "optim.cnn=RUN" in result.stderr
    assert labels_that_a_table_tells_of(tmp_path / "00000-cnn_vae") == "normal"


def test_first_stages_that_do_not_fit(stages: Path, tiny: Any, tmp_path: Path) -> None:
    first = stages / "runs" / "00000-cnn"
    wrong = [
        ([f"optim.cnn={tiny.generator}"], "optim.cnn"),
        (["optim.cnn=nowhere"], str(Path.cwd() / "nowhere")),
        ([f"optim.cnn={first}", "resolution=64"], "64 px"),
        ([f"optim.cnn={first}", "network.channels=[4, 8]"], str(first)),
        ([f"optim.cnn={first}", "model=conv_vae", "network={}"], "optim.cnn"),
    ]
    for settings, message in wrong:
        options = [word for setting in settings for word in ("-o", setting)]
        result = tiny.train(stages / "cnn_vae.yaml", tmp_path, *options)
        assert result.exit_code == 2, result.output
        assert message in errors(result)[-1]
    assert not list(tmp_path.iterdir())
