"""Convolution and layer norm that are differentiated twice, against torch's own derivatives and finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gan_uad.networks import second_order
from gan_uad.networks.wgan_gp import WGANGP
from gan_uad.training.losses import gradient_penalty

pytestmark = pytest.mark.numerical


def _double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (4, 2, 1), (1, 1, 0)])
def test_convolution_derivatives(kernel: int, stride: int, padding: int) -> None:
    x, weight, bias = _double(2, 3, 4, 4), _double(5, 3, kernel, kernel), _double(5)
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda *a: second_order.conv2d(*a, stride, padding), (x, weight, bias))


def _through_slope(norm, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Gradients of a function of the gradient of a nonlinear function of the normalised x."""
    value = (norm(x, weight, bias).square() * torch.arange(x.numel()).cos().view_as(x)).sum()
    with second_order.input_gradients_only():
        (slope,) = torch.autograd.grad(value, x, create_graph=True)
    return torch.autograd.grad(slope.pow(3).sum(), (x, weight, bias))


@pytest.mark.parametrize("channels_last", [False, True])
def test_layer_norm_second_derivatives(channels_last: bool) -> None:
    form = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64).contiguous(memory_format=form).requires_grad_(True)
    weight, bias = _double(3), _double(3)
    mine = _through_slope(lambda *a: second_order.layer_norm(*a, 1e-5), x, weight, bias)
    reference = _through_slope(lambda x, w, b: F.group_norm(x, 1, w, b, 1e-5), x, weight, bias)
    for a, b in zip(mine, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert torch.autograd.gradcheck(lambda *a: second_order.layer_norm(*a, 1e-5), (x, weight, bias))


def test_gradient_penalty_of_the_critic_equals_torch_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    critic = WGANGP(32, 8, 128, 16).D.double()
    real, fake = torch.rand(3, 3, 32, 32, dtype=torch.float64), torch.rand(3, 3, 32, 32, dtype=torch.float64)
    mix = torch.rand(3, dtype=torch.float64)

    def gradients() -> list[Tensor | None]:
        return list(
            torch.autograd.grad(gradient_penalty(critic, real, fake, mix), list(critic.parameters()), allow_unused=True)
        )

    mine = gradients()
    monkeypatch.setattr(
        "gan_uad.networks.layers.conv2d", lambda x, w, b, stride, padding: F.conv2d(x, w, b, stride, padding)
    )
    monkeypatch.setattr("gan_uad.networks.layers.layer_norm", lambda x, w, b, eps: F.group_norm(x, 1, w, b, eps))
    reference = gradients()
    assert sum(g is not None for g in reference) > 20
    for a, b in zip(mine, reference, strict=True):
        expected = torch.zeros(()) if b is None else b
        torch.testing.assert_close(torch.zeros_like(expected) if a is None else a, expected, rtol=1e-9, atol=1e-12)


def test_weights_are_left_out_only_where_said() -> None:
    x, weight = _double(1, 2, 4, 4), _double(2, 2, 3, 3)
    y = second_order.conv2d(x, weight, None, 1, 1).sum()
    y.backward(retain_graph=True)
    assert weight.grad is not None
    weight.grad = None
    with second_order.input_gradients_only():
        y.backward(retain_graph=True)
    assert weight.grad is None
    y.backward()
    assert weight.grad is not None


def test_bf16_autocast() -> None:
    critic = WGANGP(32, 8, 128, 16).D
    real, fake = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    exact = gradient_penalty(critic, real, fake, torch.tensor([0.3, 0.6]))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gradient_penalty(critic, real, fake, torch.tensor([0.3, 0.6]))
        rounded.backward()
    torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.02)
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in critic.parameters())
