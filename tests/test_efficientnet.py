"""The supervised reference: EfficientNets with the published head, and how they are trained."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from run_tools import same
from safetensors.torch import load_file
from score_tools import fails
from torch import Tensor
from torchvision.models import efficientnet_v2_s, resnet34
from torchvision.transforms.functional import normalize

from gan_uad import registry
from gan_uad.config import DataConfig, load_config
from gan_uad.data.patches import load_patches
from gan_uad.errors import UserError
from gan_uad.features import weights
from gan_uad.features.load import load_features
from gan_uad.networks.efficientnet_lite import own_names
from gan_uad.training.jitter import Jitter
from gan_uad.training.train import build_task

pytestmark = pytest.mark.numerical

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as torchvision publishes it, with random values."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save(random_state(efficientnet_v2_s), folder / "efficientnet_v2_s-dd5fe13b.pth")
    return folder


def random_state(build: Any) -> dict[str, Tensor]:
    """Values with which the maps of a net neither vanish nor grow; building it for real takes a second."""
    generator = torch.Generator().manual_seed(5)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in build(weights=None).state_dict().items()}
    state = {}
    for key, shape in shapes.items():
        spread = math.sqrt(2 / max(shape[1:].numel(), 1)) if len(shape) > 1 else 0.2
        state[key] = torch.randn(shape, generator=generator) * spread
        if len(shape) == 1 and not key.endswith((".bias", "running_mean")):
            state[key] = (1 if key.endswith("running_var") else 0.5) + 0.2 * torch.rand(shape, generator=generator)
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(1)
    return state


@pytest.fixture(scope="module")
def reference(weights_folder: Path) -> Any:
    """The task of the preset, begun with those weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAN_UAD_WEIGHTS", str(weights_folder))
        task = build_task(load_config("efficientnet_v2_s"), CPU)
        task.begin()
    return task


def lite(**options: Any) -> Any:
    torch.manual_seed(0)
    return registry.build("network", "efficientnet_lite0", {"resolution": 32, "hidden": 8, **options})


def task(**options: Any) -> Any:
    net = registry.build("network", "cnn", {"resolution": 16, "channels": [2], "hidden": [4]})
    return registry.build("task", "supervised", options, model=net, device=CPU, seed=0)


# ---------------------------------------------------------------- the networks


def test_it_is_torchvisions_net_with_the_published_head(reference: Any, weights_folder: Path) -> None:
    net = reference.model
    assert sum(p.numel() for p in net.parameters()) == 20_505_938
    with torch.device("meta"):
        theirs = efficientnet_v2_s(weights=None).eval()
    saved = torch.load(weights_folder / "efficientnet_v2_s-dd5fe13b.pth", weights_only=True)
    theirs.load_state_dict(saved, assign=True)
    images, state = torch.rand(2, 3, 64, 64), net.state_dict()
    with torch.no_grad():
        x = theirs.features(normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])).amax((2, 3))
        x = F.relu(F.linear(x, state["head.2.weight"], state["head.2.bias"]))
        expected = F.linear(x, state["head.5.weight"], state["head.5.bias"])
        net.eval()
        found = net(images * 2 - 1)
        net.train()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert net.head[4].p == 0.5
    assert state["head.2.weight"].shape == (256, 1280)


def test_a_frozen_base_stays_as_it_was(reference: Any) -> None:
    """Weights and the statistics of batch norm; the head alone is trained."""
    net = reference.model.train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    reference.step((torch.rand(4, 3, 64, 64) * 2 - 1, torch.tensor([0, 1, 0, 1])), 0)
    after = net.state_dict()
    assert {key for key in after if not torch.equal(after[key], before[key])} == {
        f"head.{k}.{name}" for k in (2, 5) for name in ("weight", "bias")
    }
    held = {id(p) for group in reference.opt.param_groups for p in group["params"]}
    assert held == {id(p) for p in net.head.parameters()}
    assert type(reference.opt) is torch.optim.Adamax


def test_lite_is_fine_tuned_from_the_installed_weights() -> None:
    made: Any = build_task(load_config("efficientnet_lite0_64"), CPU)
    made.begin()
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    net = made.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(net.maps(images), stages("efficientnet_lite0", images)[-1], rtol=1e-3, atol=1e-3)
    before = {key: value.clone() for key, value in net.trunk.named_parameters()}
    net.train()
    made.step((images, torch.tensor([0, 1])), 0)
    assert not [key for key, value in net.trunk.named_parameters() if torch.equal(value, before[key])]


def stages(name: str, images: Tensor) -> list[Tensor]:
    """What another implementation of the backbones gives, stage by stage (batch norm folded)."""
    with torch.no_grad():
        found: list[Tensor] = load_features(name, device=CPU).maps(images)
    return found


@pytest.mark.parametrize(("backbone", "width"), [("resnet34", 128), ("efficientnet_lite0", 40)])
def test_backbones_of_the_cnn(backbone: str, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their stages up to an eighth of the side, from published files; in the classifier and in the VAE."""
    if backbone == "resnet34":
        torch.save(random_state(resnet34), tmp_path / "resnet34-b627a593.pth")
        monkeypatch.setenv("GAN_UAD_WEIGHTS", str(tmp_path))
    short = {"resnet34": "resnet", "efficientnet_lite0": "efficientnet"}[backbone]
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    expected = stages(backbone, images)[2]
    assert expected.shape == (2, width, 8, 8)
    for preset in (f"cnn_256_{short}", f"cnn_vae_256_{short}"):
        made: Any = build_task(load_config(preset, ["resolution=64"]), CPU)
        assert made.model.spec["options"]["backbone"] == backbone
        made.begin()
        net = made.model.eval()
        with torch.no_grad():
            torch.testing.assert_close(net.trunk(images), expected, rtol=1e-3, atol=1e-3)
            found = net(images)
        assert (found if preset.startswith("cnn_256") else found[1]).shape == (
            2,
            2 if preset.startswith("cnn_256") else 128,
        )


def test_a_cnn_that_sees_no_anomalous_label(capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config("cnn_vae_256_normals", ["resolution=64"])
    assert config.data.label == "normal"
    made: Any = build_task(config, CPU)
    made.begin()
    assert "starting from efficientnet-lite0-57934424.pth" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"optim\.cnn .*optim\.init"):
        build_task(load_config("cnn_vae_256_normals", ["optim.cnn=somewhere"]), CPU)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: lite(resolution=16), "at least 32 px, not 16"),
        (lambda: lite(hidden=0), "hidden must be at least 1"),
        (lambda: lite(dropout=1.0), r"dropout must be in \[0, 1\)"),
        (
            lambda: registry.build("network", "cnn", {"backbone": "resnet34", "channels": [4]}),
            "channels must be 3, not 1",
        ),
        (lambda: registry.build("network", "cnn", {"backbone": "vgg"}), "option backbone"),
        (lambda: task(rotation=200), "rotation .*200"),
        (lambda: task(shift=-0.1), "shift"),
        (lambda: task(shift=0.1, augment=0.3), "augment"),
        (lambda: task(schedule="step"), "schedule_epochs"),
        (lambda: task(schedule="cyclical", schedule_kimg=1, schedule_epochs=1), "schedule_epochs"),
        (lambda: task(schedule_epochs=5), "schedule_epochs"),
        (lambda: task(schedule="step", schedule_epochs=0), "schedule_epochs"),
    ],
)
def test_what_cannot_be(build: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()


# ---------------------------------------------------------------- training


def test_the_rate_falls_after_so_many_epochs(labelled_patches: Path) -> None:
    """Of the balanced images: 48 normal and 24 anomalous ones make an epoch of 48."""
    patches = load_patches(DataConfig(path=str(labelled_patches)), 32).select("train")
    made = task(lr=1e-3, schedule="step", schedule_epochs=5, lr_decay=0.9, balance="undersample")
    made.stream(patches, 8, 0, True, True)
    seen = {0: 1e-3, 239: 1e-3, 240: 0.9e-3, 479: 0.9e-3, 480: 0.81e-3}
    assert {nimg: made.lr_at(nimg) for nimg in seen} == pytest.approx(seen)
    made = task(lr=1e-3, schedule="step", schedule_epochs=5, lr_decay=0.9, balance="oversample")
    made.stream(patches, 8, 0, True, True)
    assert made.lr_at(479) == 1e-3
    assert made.lr_at(480) == pytest.approx(0.9e-3)


def test_the_cyclical_rate() -> None:
    made = task(lr=1e-3, schedule="cyclical", schedule_kimg=0.1, lr_decay=0.1)
    expected = {0: 1e-4, 25: 5.5e-4, 50: 1e-3, 75: 5.5e-4, 100: 1e-4, 150: 1e-3}
    assert {nimg: made.lr_at(nimg) for nimg in expected} == pytest.approx(expected)
    made.step((torch.zeros(2, 3, 16, 16), torch.tensor([0, 1])), 50)
    assert made.opt.param_groups[0]["lr"] == pytest.approx(1e-3)


def moved(points: Tensor, jitter: Jitter, seed: int = 0, count: int = 500) -> tuple[Tensor, Any]:
    """Where `points` `[P, 2]` of the results lie in the images, `[count, P, 2]`."""
    drawn = jitter.draw(count, torch.Generator().manual_seed(seed))
    ones = torch.cat([points.double(), torch.ones(len(points), 1, dtype=torch.float64)], 1)
    return (ones @ drawn.geometry.mT)[:, :, :2], drawn


def test_changes_keep_to_their_bounds() -> None:
    """Each alone, by what it does to the middle and to the ends of two axes; evenly spread up to the bound."""
    points = torch.tensor([[0.0, 0], [1, 0], [0, 1]])
    shifted, _ = moved(points, Jitter(shift=0.1))
    assert 0.19 < float(shifted[:, 0].abs().max()) <= 0.2, "a tenth of a side of two"
    torch.testing.assert_close(shifted - shifted[:, :1], points.double().expand(500, 3, 2))
    zoomed, _ = moved(points, Jitter(zoom=0.1))
    factor = zoomed[:, 1, 0]
    assert 0.9 <= float(factor.min()) < 0.91
    assert 1.09 < float(factor.max()) <= 1.1
    torch.testing.assert_close(zoomed, factor[:, None, None] * points.double())
    turned, _ = moved(points, Jitter(rotation=180))
    angle = torch.atan2(turned[:, 1, 1], turned[:, 1, 0]).rad2deg()
    assert torch.histc(angle, 4, -180, 180).min() > 90
    torch.testing.assert_close(turned.norm(dim=2)[:, 1:], torch.ones(500, 2, dtype=torch.float64))
    slanted, _ = moved(points, Jitter(shear=10))
    angle = torch.atan2(slanted[:, 2, 0], slanted[:, 2, 1]).rad2deg()
    assert 9.8 < float(angle.abs().max()) <= 10
    torch.testing.assert_close(slanted[:, 1], points[1].double().expand(500, 2))
    _, drawn = moved(points, Jitter(brightness=0.2))
    factor = drawn.color[:, 0, 0]
    assert 0.8 <= float(factor.min()) < 0.81
    assert 1.19 < float(factor.max()) <= 1.2
    black, grey = (drawn.color @ torch.tensor([v, v, v, 1.0], dtype=torch.float64) for v in (-1.0, 0.0))
    torch.testing.assert_close(black[:, :3], torch.full((500, 3), -1.0, dtype=torch.float64))
    torch.testing.assert_close(grey[:, 1] + 1, factor)


def test_images_are_changed_as_drawn() -> None:
    """Half a turn is that of numpy but for the filter's shift of under a pixel; nothing leaves [-1, 1]; no bound, no change."""
    smooth = F.interpolate(torch.rand(1, 3, 4, 4) * 2 - 1, 32, mode="bicubic").clamp(-1, 1)
    jitter = Jitter(rotation=180)
    drawn = jitter.draw(1, torch.Generator().manual_seed(0))
    half = torch.diag(torch.tensor([-1.0, -1, 1], dtype=torch.float64))[None]
    found = jitter.apply(smooth, type(drawn)(half, drawn.color))
    assert float((found - smooth.rot90(2, (2, 3))).abs().mean()) < 0.05
    bright = Jitter(brightness=0.5)
    shown = bright.apply(torch.ones(8, 3, 8, 8), bright.draw(8, torch.Generator().manual_seed(0)))
    assert float(shown.max()) == 1
    assert float(shown.min()) < 0.9
    assert not Jitter()
    assert task().draw(4, torch.Generator()) is None


def test_snapshots_show_the_changes_and_steps_use_them(labelled_patches: Path) -> None:
    patches = load_patches(DataConfig(path=str(labelled_patches)), 32).select("train")
    net = registry.build("network", "cnn", {"resolution": 32, "channels": [2], "hidden": [4], "dropout": 0.0})
    made: Any = registry.build("task", "supervised", {"shift": 0.3, "brightness": 0.3}, model=net, device=CPU, seed=0)
    stream = made.stream(patches, 8, 0, False, False)
    assert torch.equal(made.sample(), made.sample())
    assert not torch.equal(made.sample(), made.examples)
    seen: list[Tensor] = []
    made.model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    state = made.rng.get_state()
    images, labels = stream.at(0)
    made.step((images, labels), 0)
    made.rng.set_state(state)
    torch.testing.assert_close(seen[0], made.jitter.apply(images, made.jitter.draw(8, made.rng)))


# ---------------------------------------------------------------- as a run

HEAD = """
model: efficientnet_lite0
task: supervised
resolution: 32
network: {hidden: 16, frozen: true}
optim: {init: imagenet, optimizer: adamax, lr: 0.01, schedule: step, schedule_epochs: 1, balance: undersample, rotation: 180}
data: {label: all}
training: {total_kimg: 0.032, batch: 16, threads: 1, tick_kimg: 0.016, snapshot_kimg: 1, checkpoint_kimg: 1, eval_kimg: 0.016}
scoring: {scorer: classifier, threshold: "manual:0"}
"""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("presets") / "head.yaml"
    path.write_text(HEAD)
    return path


def test_a_run(cli: Any, head: Path, labelled_patches: Path, tmp_path: Path) -> None:
    """It has curves of loss and accuracy, and the frozen base ends as it began."""
    result = cli("train", head, "--data", labelled_patches, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    run = tmp_path / "00000-head"
    with Image.open(run / "curves.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 200
    ended = load_file(run / "model.safetensors")
    for key, value in lite_state().items():
        assert torch.equal(ended[f"classifier.trunk.{key}"], value), key


def test_it_resumes_as_if_it_had_not_stopped(labelled_patches: Path) -> None:
    patches = load_patches(DataConfig(path=str(labelled_patches)), 32).select("train")
    options = {"rotation": 180, "zoom": 0.1, "schedule": "cyclical", "schedule_epochs": 1, "optimizer": "adamax"}

    def trained(steps: range, start: Any = None) -> Any:
        net = registry.build("network", "cnn", {"resolution": 32, "channels": [2], "hidden": [4], "dropout": 0.0})
        made: Any = registry.build("task", "supervised", options, model=net, device=CPU, seed=0)
        stream = made.stream(patches, 8, 0, True, True)
        if start is not None:
            made.load_state_dict(start)
        for k in steps:
            made.step(stream.at(8 * k), 8 * k)
        return made.state_dict()

    torch.manual_seed(1)
    start = trained(range(0))
    whole = trained(range(4), copy.deepcopy(start))
    half = trained(range(2), copy.deepcopy(start))
    same(trained(range(2, 4), copy.deepcopy(half)), whole)
    assert not torch.equal(whole["model"]["trunk.0.weight"], start["model"]["trunk.0.weight"])


def lite_state() -> dict[str, Tensor]:
    return own_names(weights.load("efficientnet_lite0").state)


def test_missing_weights_and_missing_labels(
    cli: Any, labelled_patches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any) -> None:
        raise weights.Unreachable("no network")

    monkeypatch.setattr(weights, "download", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("GAN_UAD_WEIGHTS", raising=False)
    words = ("train", "efficientnet_v2_s", "--data", labelled_patches, "--out", tmp_path / "runs")
    fails(cli(*words), "efficientnet_v2_s-dd5fe13b.pth")
    fails(
        cli(*words, "-o", "optim.init=none"),
        "optim.init=imagenet",
        "network.frozen=false",
    )
    words = ("train", "efficientnet_lite0_64", "--data", labelled_patches, "--out", tmp_path / "runs")
    fails(cli(*words, "-o", "data.label=anomalous", "-o", "training.batch=8"), "no normal image among 24 to learn from")
    assert not (tmp_path / "runs").exists()
