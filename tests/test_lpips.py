"""LPIPS against the package `lpips`, the distance in EfficientNet-Lite0 against its definition, and what both promise."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision.models
from torch import Tensor

from gan_uad.features.load import load_features
from gan_uad.features.lpips import LPIPS, EffNetLite0Distance

pytestmark = pytest.mark.numerical


def published(net: str, weights: Path, monkeypatch: pytest.MonkeyPatch, spatial: bool = False) -> Any:
    """The package's own LPIPS with the shared backbone."""
    import lpips

    name = {"alex": "alexnet", "vgg": "vgg16"}[net]
    state = torch.load(weights / f"{name}_features.pth", weights_only=True)
    with torch.device("meta"):
        layers = torchvision.models.get_model(name, weights=None).features
    layers.load_state_dict({key.removeprefix("features."): value for key, value in state.items()}, assign=True)
    monkeypatch.setattr(f"torchvision.models.{name}", lambda pretrained: SimpleNamespace(features=layers))
    return lpips.LPIPS(net=net, spatial=spatial, verbose=False)


def pairs(n: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    a = torch.rand(n, 3, height, width) * 2 - 1
    return a, (a + 0.4 * torch.randn_like(a)).clamp(-1, 1)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_is_that_of_the_package(net: str, shared_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, so that it is the formulas that are compared and not the kernels of two layouts on one processor."""
    ours = LPIPS(net, weights=shared_weights).double()
    a, b = (image.double() for image in pairs(2, 48, 40))
    for spatial in (False, True):
        reference = published(net, shared_weights, monkeypatch, spatial).double()
        with torch.no_grad():
            expected = reference(a, b).flatten(1) if spatial else reference(a, b).flatten()
            found = ours.maps(a, b).flatten(1) if spatial else ours(a, b)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    assert float(expected.mean()) > 0.01
    moved = [b.clone().requires_grad_() for _ in range(2)]
    reference(a, moved[0]).mean((1, 2, 3)).sum().backward()
    ours.maps(a, moved[1]).mean((1, 2)).sum().backward()
    largest = float(moved[0].grad.abs().max())
    torch.testing.assert_close(
        moved[1].grad, moved[0].grad, rtol=0, atol=1e-6 * largest
    )  # ε of the norms stands elsewhere


@pytest.fixture(params=["LPIPS-alex", "EffNetLite0 distance"])
def distance(request: pytest.FixtureRequest) -> Any:
    if request.param == "LPIPS-alex":
        return LPIPS("alex", weights=request.getfixturevalue("shared_weights"))
    return EffNetLite0Distance()


def test_a_target_is_encoded_once(distance: Any) -> None:
    a, b = pairs(3, 32, 32)
    with torch.no_grad():
        expected = distance(a, b)
        target = distance.features(b)
        torch.testing.assert_close(distance.distance(distance.features(a), target), expected, rtol=0, atol=0)
        one = distance.features(b[1:2])
        torch.testing.assert_close(distance.distance(distance.features(a), one)[1], expected[1], rtol=1e-5, atol=1e-7)
        assert not distance(a, a).any()
        assert (expected > 0).all()
        torch.testing.assert_close(distance(b, a), expected, rtol=1e-5, atol=1e-7)
        for k in range(3):  # each pair by itself
            torch.testing.assert_close(distance(a[k : k + 1], b[k : k + 1])[0], expected[k], rtol=1e-5, atol=1e-7)
        assert distance.maps(a, b).shape == (3, 32, 32)


def test_descent_brings_images_together(distance: Any) -> None:
    a, b = pairs(2, 32, 32)
    target = [maps.detach() for maps in distance.features(a)]
    moved = b.clone().requires_grad_()
    start = distance.distance(distance.features(moved), target)
    (gradient,) = torch.autograd.grad(start.sum(), moved)
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    step = 0.05 * gradient / gradient.abs().amax((1, 2, 3), keepdim=True)
    with torch.no_grad():
        assert (distance.distance(distance.features(moved - step, check=False), target) < start).all()


def test_gradients_stay_finite_where_all_channels_are_zero(distance: Any) -> None:
    """The maps here are the images themselves: a ReLU before them would hide a NaN."""
    distance.net.maps = lambda images: [images] * len(distance.heads)
    distance.heads = torch.nn.ParameterList(torch.ones(1, 3, 1, 1) for _ in distance.heads)
    empty = torch.zeros(1, 3, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(distance(empty, torch.ones(1, 3, 16, 16)).sum(), empty)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((1, 3, 32, 32), 1.5), r"in \[-1, 1\], got values from 1.5 to 1.5"),
        (torch.full((1, 3, 32, 32), -2.0), r"in \[-1, 1\]"),
        (torch.full((1, 3, 32, 32), float("nan")), r"in \[-1, 1\]"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "float images"),
        (torch.zeros(3, 32, 32), "float images"),
        (torch.zeros(1, 1, 32, 32), "float images"),
        (torch.zeros(1, 3, 8, 8), "at least 16 px"),
    ],
)
def test_refusals(images: Tensor, message: str) -> None:
    distance = EffNetLite0Distance()
    good = torch.zeros(1, 3, 32, 32)
    for pair in ((images, good), (good, images)):
        with pytest.raises(ValueError, match=message):
            distance(*pair)
    with pytest.raises(ValueError, match="vgg or alex"):
        LPIPS("squeeze")


def test_no_noise(shared_weights: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distance = LPIPS("alex", weights=shared_weights)
        distance(*pairs(1, 32, 32))
    assert capfd.readouterr() == ("", "")
    assert distance.name == "LPIPS-alex"
    assert distance.weights == "alexnet_features.pth sha256:e7811f103c38dc40"


def test_the_distance_in_efficientnet_lite0_is_its_definition() -> None:
    a, b = pairs(2, 48, 32)
    net: Any = load_features("efficientnet_lite0")
    layers = []
    for x, y in zip(net.maps(a), net.maps(b), strict=True):
        u, v = (maps.double() / maps.double().norm(dim=1, keepdim=True) for maps in (x, y))
        layers.append((u - v).square().sum(1).mean((1, 2)))
    distance = EffNetLite0Distance()
    torch.testing.assert_close(distance(a, b).double(), torch.stack(layers).mean(0), rtol=1e-5, atol=0)
    assert "LPIPS" not in distance.name
