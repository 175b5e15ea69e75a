"""Feature networks against the packages that they come from, and what every one of them promises."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.models
from torch import Tensor, nn
from torchvision.transforms.functional import normalize, resize

from gan_uad import registry
from gan_uad.errors import UserError
from gan_uad.features import inception
from gan_uad.features.extract import extract
from gan_uad.features.load import load_features
from gan_uad.features.weights import sha256

pytestmark = pytest.mark.numerical

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def pictures(n: int, height: int, width: int | None = None) -> Tensor:
    return torch.randint(
        0, 256, (n, 3, height, width or height), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def random_statistics(net: nn.Module) -> nn.Module:
    """Random batch statistics, so that it matters where normalisation goes; evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight.data, 0.8, 1.2),
                (module.bias.data, -0.1, 0.1),
                (module.running_mean, -0.1, 0.1),
                (module.running_var, 0.8, 1.2),
            ):
                tensor.uniform_(low, high, generator=generator)
    return net.eval()


def test_efficientnet_lite0_is_the_published_network() -> None:
    """Golden: features by the package efficientnet_lite_pytorch 0.1.0, whose weights these are, of a synthetic pattern."""
    net = load_features()
    for side, total, squares in (
        (64, 194.56522413739003, 362.6295537927884),
        (75, 83.03261014155578, 108.79519233310202),
    ):
        k = torch.arange(3 * side * side, dtype=torch.float64).view(1, 3, side, side)
        pattern = ((k * k * 0.37 + k * 1.7) % 256).floor().to(torch.uint8)
        features = load_features(f"efficientnet_lite0@{side}")(pattern)
        assert features.shape == (1, net.dim)
        assert float(features.double().sum()) == pytest.approx(total, rel=1e-5)
        assert float(features.double().square().sum()) == pytest.approx(squares, rel=1e-5)


@pytest.mark.parametrize("name", ["densenet121", "resnet34", "efficientnet_v2_s"])
def test_features_are_those_of_torchvision(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = random_statistics(torchvision.models.get_model(name, weights=None))
    state = dict(reference.state_dict())
    if name == "densenet121":  # the published file is of before these names, and of before batches were counted
        for part in ("norm", "conv"):
            state = {
                key.replace(f".{part}1.", f".{part}.1.").replace(f".{part}2.", f".{part}.2."): v
                for key, v in state.items()
            }
        state = {key: value for key, value in state.items() if "num_batches_tracked" not in key}
        assert "features.denseblock1.denselayer1.norm.1.weight" in state
    torch.save(state, tmp_path / "net.pth")
    setattr(reference, "fc" if name == "resnet34" else "classifier", nn.Identity())
    images = pictures(2, 64)
    with torch.no_grad():
        expected = reference(normalize(resize(images / 255, [96, 96], antialias=True), MEAN, STD))
    net = load_features(f"{name}@96", weights=tmp_path / "net.pth")
    assert net.weights == f"net.pth sha256:{sha256(tmp_path / 'net.pth')[:16]}"
    assert net.metric.endswith("@96")
    assert "96 px" in net.preprocessing
    features = net(images)
    assert features.shape == (2, net.dim)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    check_maps(net)


@pytest.mark.parametrize(("name", "last"), [("alexnet", 12), ("vgg16", 30)])
def test_files_of_the_convolutions_alone_and_complete_ones(
    name: str, last: int, shared_weights: Path, tmp_path: Path
) -> None:
    state = torch.load(shared_weights / f"{name}_features.pth", weights_only=True)
    with torch.device("meta"):
        layers = torchvision.models.get_model(name, weights=None).features
    layers.load_state_dict({key.removeprefix("features."): value for key, value in state.items()}, assign=True)
    images = pictures(2, 48)
    with torch.no_grad():
        expected = layers[:last](normalize(resize(images / 255, [64, 64], antialias=True), MEAN, STD)).mean((2, 3))
    torch.save(state | {"classifier.6.weight": torch.zeros(1000, 4096)}, tmp_path / "full.pth")
    for weights in (shared_weights, tmp_path / "full.pth"):
        net = load_features(f"{name}@64", weights=weights)
        torch.testing.assert_close(net(images), expected, rtol=1e-4, atol=1e-5)
    check_maps(net)


def check_maps(net: Any) -> None:
    """Maps of five stages, from large to small, with gradients, of each image by itself."""
    images = (torch.rand(2, 3, 64, 64) * 2 - 1).requires_grad_()
    maps = net.maps(images)
    sides = [stage.shape[-1] for stage in maps]
    assert len(maps) == 5
    assert sides == sorted(sides, reverse=True)
    assert maps[-1].shape[1] == net.dim
    (gradient,) = torch.autograd.grad(sum(stage[0].square().mean() for stage in maps), images)
    assert gradient[0].abs().sum() > 0
    assert not gradient[1].any()


def test_maps_and_features_see_pixels_alike() -> None:
    net: Any = load_features("efficientnet_lite0@64")
    images = pictures(2, 64)
    pooled = net.maps(images / 127.5 - 1)[-1].mean((2, 3))
    torch.testing.assert_close(net(images), pooled, rtol=1e-4, atol=1e-5)


def test_an_image_does_not_depend_on_its_company() -> None:
    net = load_features("efficientnet_lite0@64")
    images = pictures(21, 40).permute(0, 2, 3, 1).numpy()

    def features(cuts: list[int], order: Any = slice(None)) -> Any:
        return np.concatenate(list(extract(net, np.split(images[order], cuts), "cpu", micro_batch=4)))

    expected = features([])
    assert expected.shape == (21, 1280)
    assert expected.dtype == np.float32
    assert len({row.tobytes() for row in expected}) == 21
    for cuts in ([1, 2, 3], [5, 5, 18]):
        assert np.array_equal(features(cuts), expected)
    order = np.random.default_rng(0).permutation(21)
    assert np.array_equal(features([7], order), expected[order])


def test_extraction_streams() -> None:
    net = load_features("efficientnet_lite0@32")
    asked = []

    def source() -> Iterator[Any]:
        for k in range(3):
            asked.append(k)
            yield np.zeros((2, 32, 32, 3), np.uint8)

    stream = extract(net, source(), "cpu", micro_batch=2)
    assert next(stream).shape == (2, 1280)
    assert asked == [0]
    for wrong in (np.zeros((2, 32, 32, 3), np.float32), np.zeros((2, 3, 32, 32), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            next(extract(net, [wrong], "cpu"))
    for bad in (torch.zeros(1, 3, 32, 32), torch.zeros(3, 32, 32, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            net(bad)


def test_networks_stay_frozen_inside_what_is_trained() -> None:
    net = load_features("efficientnet_lite0@32")
    nn.Sequential(net).train()
    assert not any(module.training for module in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())


@pytest.fixture(scope="module")
def random_inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as torch-fidelity publishes it, of random numbers."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, *args: Any, **kwargs: Any) -> Any: ...

    path = tmp_path_factory.mktemp("inception") / "weights-inception-2015-12-05-6726825d.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    net = Unloaded("random", ["2048"], feature_extractor_weights_path=str(path))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    torch.save(random_statistics(net).state_dict(), path)
    return path


def test_inception_is_torch_fidelitys(random_inception: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    reference = FeatureExtractorInceptionV3("fid", ["2048"], feature_extractor_weights_path=str(random_inception))
    monkeypatch.setenv("GAN_UAD_WEIGHTS", str(random_inception.parent))
    net = load_features("inception")
    assert net.metric == "FID"
    assert net.weights.startswith("weights-inception-2015-12-05-6726825d.pth sha256:")
    images = pictures(1, 64)
    with torch.no_grad():
        (expected,) = reference(images)
    features = net(images)
    assert features.shape == (1, 2048)
    error = (features - expected).double().norm(dim=1) / expected.double().norm(dim=1)
    assert float(error.max()) < 1e-5, (
        "rounding of about 100 layers in float32; another resize differs by more than 1e-3"
    )
    monkeypatch.setattr(inception, "has_bf16", lambda device: True)  # slow where it is emulated, but right
    fast = load_features("inception", fast=True)
    assert "bfloat16" in fast.preprocessing
    assert "fast" not in net.preprocessing
    found = fast(images)
    assert found.dtype == torch.float32
    assert 1e-5 < float((found - expected).norm() / expected.norm()) < 3e-2
    monkeypatch.setattr(inception, "has_bf16", lambda device: False)
    assert "float32" in fast.preprocessing


def test_resize_of_tensorflow_to_the_bit() -> None:
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    for height, width in ((1, 1), (2, 64), (64, 50), (299, 300), (512, 299)):
        x = pictures(1, height, width).float()
        expected = interpolate_bilinear_2d_like_tensorflow1x(x, size=(299, 299), align_corners=False)
        assert torch.equal(inception.resized_like_tensorflow(x, 299), expected)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg61", {}, "'vgg16'"),
        ("vgg16:a", {}, "vgg16:a"),
        ("efficientnet_lite0@8", {}, "16 px"),
        ("efficientnet_lite0@", {}, "NAME@64"),
        ("inception@64", {}, "inception@64"),
        ("efficientnet_lite0", {"fast": True}, "inception"),
        ("timm:resnet18", {}, r"pip install gan_uad\[timm\]"),
    ],
)
def test_names_that_cannot_be_had(
    name: str, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gan_uad.features.timm.find_spec", lambda package: None)
    with pytest.raises(UserError, match=message):
        load_features(name, **options)


def test_all_are_listed() -> None:
    listed = {entry.name: entry.summary for entry in registry.entries("features")}
    assert set(listed) == {
        "alexnet", "densenet121", "efficientnet_lite0", "efficientnet_v2_s", "inception", "pixels", "resnet34", "timm", "vgg16"
    }  # fmt: skip
    assert all(summary.endswith(".") for summary in listed.values())


class WithHead(nn.Module):
    """As timm's MobileNetV3: a layer between the pooled maps and the classifier, which `num_features` does not count."""

    num_features = 4

    def __init__(self) -> None:
        super().__init__()
        self.maps, self.head = nn.Conv2d(3, 4, 3, stride=2), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[2:] == (32, 32), "Input height doesn't match model."
        return self.head(self.maps(x).amax((2, 3)))


def test_a_network_of_timm_gives_what_comes_before_its_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the package, which is an optional extra."""
    net = WithHead()
    package, data = ModuleType("timm"), ModuleType("timm.data")
    config = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "input_size": (3, 32, 32)}
    vars(package).update(data=data, is_model=lambda model: True, create_model=lambda model, **how: net)
    vars(data).update(resolve_model_data_config=lambda net: config)
    monkeypatch.setitem(sys.modules, "timm", package)
    monkeypatch.setitem(sys.modules, "timm.data", data)
    monkeypatch.setattr("gan_uad.features.timm.find_spec", lambda name: True)
    features = load_features("timm:with_head")
    images = pictures(3, 32)
    (found,) = extract(features, [images.permute(0, 2, 3, 1).numpy()], "cpu")
    assert (features.dim, features.metric) == (10, "FD-timm:with_head")
    expected = net((images / 255 - 0.5) / 0.25).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert "mean of the last maps" not in features.preprocessing
    with pytest.raises(UserError, match=r"timm:with_head@64 .*64 px"):
        load_features("timm:with_head@64")
