"""The layers of the style-based families and their losses, against slow float64 definitions and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gan_uad.networks import fused
from gan_uad.networks.fused import modulate, resample, scale_act
from gan_uad.networks.layers import (
    EqualConv2d,
    EqualLinear,
    MappingNetwork,
    ModulatedConv2d,
    minibatch_stddev,
    pixel_norm,
)
from gan_uad.networks.second_order import conv2d, conv_transpose2d
from gan_uad.networks.stylegan2 import StyleGAN2
from gan_uad.training.losses import nonsaturating_D, nonsaturating_G, path_lengths, r1_penalty

pytestmark = pytest.mark.numerical

TAPS = (1.0, 3.0, 3.0, 1.0)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def randn(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def slow_resample(x: Tensor, taps: tuple[float, ...], up: int, down: int, pad: tuple[int, int], gain: float) -> Tensor:
    """By the definition: zeros in between, zeros around, a sum over the taps, every `down`-th pixel."""
    n, c, h, w = x.shape
    wide = torch.zeros(n, c, h * up, w * up, dtype=x.dtype)
    wide[..., ::up, ::up] = x
    wide = F.pad(wide, (*pad, *pad))
    size, total = len(taps), sum(taps)
    rows, columns = wide.shape[2] - size + 1, wide.shape[3] - size + 1
    out = torch.zeros(n, c, rows, columns, dtype=x.dtype)
    for i in range(size):
        for j in range(size):
            out += taps[i] * taps[j] / total**2 * gain * wide[..., i : i + rows, j : j + columns]
    return out[..., ::down, ::down]


@settings(deadline=None, max_examples=25)
@given(
    taps=st.sampled_from([(1.0, 2.0, 1.0), TAPS, (1.0,), (1.0, 1.0)]),
    up=st.sampled_from([1, 2]),
    down=st.sampled_from([1, 2]),
    pad=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    size=st.integers(4, 9),
)
def test_resampling_is_the_slow_definition(
    taps: tuple[float, ...], up: int, down: int, pad: tuple[int, int], size: int
) -> None:
    x = torch.randn(2, 3, size, size, dtype=torch.float64, requires_grad=True)
    found = resample(x, taps, up, down, pad, gain=2.5)
    expected = slow_resample(x, taps, up, down, pad, gain=2.5)
    assert torch.allclose(found, expected, atol=1e-12)
    direction = torch.randn_like(expected)
    (mine,) = torch.autograd.grad(found, x, direction)
    (theirs,) = torch.autograd.grad(expected, x, direction)
    assert torch.allclose(mine, theirs, atol=1e-12)


@pytest.mark.parametrize(("up", "down", "pad"), [(2, 1, (2, 1)), (1, 2, (1, 1)), (1, 1, (2, 2))])
def test_resampling_differentiates_twice(rng: torch.Generator, up: int, down: int, pad: tuple[int, int]) -> None:
    x = randn(rng, 1, 2, 4, 4).requires_grad_(True)

    def work(x: Tensor) -> Tensor:
        return resample(x, TAPS, up, down, pad).square()  # which has a second derivative

    assert torch.autograd.gradcheck(work, x)
    assert torch.autograd.gradgradcheck(work, x)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("demodulate", [False, True])
def test_modulated_convolution_is_the_slow_definition(rng: torch.Generator, up: bool, demodulate: bool) -> None:
    """Weights are modulated and demodulated for each image, and each image is convolved by its own."""
    layer = ModulatedConv2d(5, 7, 6, up=up, demodulate=demodulate).double()
    with torch.no_grad():
        layer.weight.mul_(0.01)  # eps counts, too
    x, w = randn(rng, 3, 5, 8, 8), randn(rng, 3, 6)
    y, scale = layer(x, w)
    found = y * (1 if scale is None else scale[:, :, None, None])
    styles = w @ (layer.affine.weight.T / math.sqrt(6)) + layer.affine.bias
    for image, style, mine in zip(x, styles, found, strict=True):
        kernel = layer.weight * style[None, :, None, None]
        if demodulate:
            kernel = kernel / (kernel.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        else:
            kernel = kernel / math.sqrt(5 * 9)  # already in the result
        if up:
            wide = torch.zeros(1, 5, 17, 17, dtype=x.dtype)
            wide[..., 1:-1:2, 1:-1:2] = image
            theirs = F.conv2d(F.pad(wide, (1, 1, 1, 1)), kernel.flip(2, 3))
            theirs = slow_resample(theirs, TAPS, 1, 1, (1, 1), 4.0)
        else:
            theirs = F.conv2d(image[None], kernel, padding=1)
        assert torch.allclose(mine, theirs[0], rtol=1e-9, atol=1e-12)


def test_modulated_convolution_in_half_precision_stays_in_range(rng: torch.Generator) -> None:
    layer = ModulatedConv2d(64, 32, 16)
    with torch.no_grad():
        layer.weight.mul_(1000)
    x, w = torch.randn(2, 64, 8, 8, generator=rng), torch.randn(2, 16, generator=rng) * 50
    found = []
    with torch.no_grad():
        for given in (x, x.half()):
            y, scale = layer(given, w)
            assert isinstance(scale, Tensor)
            found.append(y * scale[:, :, None, None])
    whole, half = found
    assert half.isfinite().all()
    assert float((half - whole).abs().max() / whole.abs().max()) < 1e-2


def test_minibatch_stddev_is_the_slow_definition(rng: torch.Generator) -> None:
    x = randn(rng, 8, 6, 4, 4)
    found = minibatch_stddev(x, group=4, channels=2)
    assert torch.equal(found[:, :6], x)
    for start in range(2):
        group = x[start::2]
        for channel in range(2):
            part = group[:, 3 * channel : 3 * channel + 3]
            deviation = ((part - part.mean(0)).square().mean(0) + 1e-8).sqrt().mean()
            assert torch.allclose(found[start::2, 6 + channel], deviation.expand(4, 4, 4), rtol=1e-12)
    with pytest.raises(ValueError, match=r"6 images .* groups of 4"):
        minibatch_stddev(x[:6])


def test_minibatch_stddev_of_strided_shares_is_that_of_the_complete_batch(rng: torch.Generator) -> None:
    x = randn(rng, 16, 3, 2, 2)
    complete = minibatch_stddev(x)
    for start in range(2):
        torch.testing.assert_close(minibatch_stddev(x[start::2]), complete[start::2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activate", [False, True])
@pytest.mark.parametrize("gain", [1.0, 2**0.5])
@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("per_image", [False, True])
def test_scale_act(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch, activate: bool, gain: float, in_parts: bool, per_image: bool
) -> None:
    """Values and both derivatives, with factors and without: then y brings the gain."""
    if in_parts:
        monkeypatch.setattr(fused, "_CACHED", 1)
    y, bias = randn(rng, 3, 2, 4, 4).requires_grad_(True), randn(rng, 2).requires_grad_(True)
    noise = randn(rng, 3 if per_image else 1, 1, 4, 4).requires_grad_(True)
    scale = randn(rng, 3, 2).abs().add(0.1).requires_grad_(True)

    def slow(y: Tensor, bias: Tensor, noise: Tensor, scale: Tensor | None = None) -> Tensor:
        scaled = y if scale is None else y * scale[:, :, None, None] * gain
        z = scaled + (noise + bias[:, None, None]) * gain
        return torch.where(z > 0, z, 0.2 * z) if activate else z

    def fast(y: Tensor, bias: Tensor, noise: Tensor, scale: Tensor | None = None) -> Tensor:
        return scale_act(y, scale, bias, noise, gain, activate)

    for inputs in ((y, bias, noise), (y, bias, noise, scale)):
        found, expected = fast(*inputs), slow(*inputs)
        assert torch.allclose(found, expected)
        direction = torch.randn_like(found)
        for mine, theirs in zip(
            torch.autograd.grad(found, inputs, direction), torch.autograd.grad(expected, inputs, direction), strict=True
        ):
            assert torch.allclose(mine, theirs)
        assert torch.autograd.gradgradcheck(fast, inputs)
    assert torch.allclose(scale_act(y, None, None, None, gain, activate), slow(y, 0 * bias, 0 * noise))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("factors", [None, torch.ones(1, 1)])
@pytest.mark.parametrize("activate", [False, True])
def test_scale_act_clamps_float16_alone(
    dtype: torch.dtype, differentiable: bool, factors: Tensor | None, activate: bool
) -> None:
    """At ±256 after the activation; what is clamped has no slope, in either way to compute it. bfloat16 has float32's range."""
    y = torch.tensor([-3000.0, -1000.0, 100.0, 1000.0]).view(1, 1, 2, 2).to(dtype).requires_grad_(True)
    found = scale_act(y, factors, None, None, activate=activate)
    (slope,) = torch.autograd.grad(found.sum(), y, create_graph=differentiable)
    clamped, low = dtype == torch.float16, 0.2 if activate else 1.0
    values, slopes = [-3000 * low, -1000 * low, 100, 1000], [low, low, 1, 1]
    if clamped:
        slopes = [s if abs(v) < 256 else 0 for s, v in zip(slopes, values, strict=True)]
        values = [min(max(v, -256), 256) for v in values]
    assert found.dtype == slope.dtype == dtype
    assert found.flatten().tolist() == pytest.approx(values, rel=1e-2)
    assert slope.flatten().tolist() == pytest.approx(slopes, rel=1e-2)


@pytest.mark.parametrize("activate", [False, True])
def test_equalised_linear_layer(rng: torch.Generator, activate: bool) -> None:
    """The definition of Karras et al. 2018, section 4.1, and its first and second derivatives."""
    layer = EqualLinear(4, 3, bias_init=0.5, lr_multiplier=0.1, gain=1.5, activate=activate).double()
    x = randn(rng, 5, 4).requires_grad_(True)

    def slow(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = x @ (weight * 1.5 * 0.1 / 2).t() + bias * 0.1
        return torch.where(y > 0, y, 0.2 * y) * 2**0.5 if activate else y

    inputs = (x, layer.weight, layer.bias)
    found, expected = layer(x), slow(*inputs)
    assert torch.allclose(found, expected, rtol=1e-12)
    slopes = [torch.autograd.grad(y.square().sum(), inputs, create_graph=True) for y in (found, expected)]
    seconds = [torch.autograd.grad(sum(g.pow(3).sum() for g in s), inputs) for s in slopes]
    for mine, theirs in zip([*slopes[0], *seconds[0]], [*slopes[1], *seconds[1]], strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9)


@pytest.mark.parametrize("in_parts", [False, True])
def test_modulate(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch, in_parts: bool) -> None:
    if in_parts:
        monkeypatch.setattr(fused, "_CACHED", 1)
    x, style = randn(rng, 3, 2, 4, 4).requires_grad_(True), randn(rng, 3, 2).requires_grad_(True)
    assert torch.allclose(modulate(x, style), torch.einsum("nchw,nc->nchw", x, style))
    assert torch.autograd.gradcheck(modulate, (x, style))
    assert torch.autograd.gradgradcheck(modulate, (x, style))


def test_transposed_convolution_differentiates_twice(rng: torch.Generator) -> None:
    x, weight = randn(rng, 2, 3, 4, 4).requires_grad_(True), randn(rng, 3, 2, 3, 3).requires_grad_(True)

    def work(x: Tensor, w: Tensor) -> Tensor:
        return conv_transpose2d(x, w, 2, 0)

    assert torch.allclose(work(x, weight), F.conv_transpose2d(x, weight, stride=2))
    assert torch.autograd.gradcheck(work, (x, weight))
    assert torch.autograd.gradgradcheck(lambda x, w: work(x, w).square(), (x, weight))


@pytest.mark.parametrize("transposed", [False, True])
def test_wide_strided_weight_gradients_are_torch_s_own(rng: torch.Generator, transposed: bool) -> None:
    """Wide enough for the path over matrix products; odd sizes, rows that the stride leaves out."""
    x = torch.randn(3, 64, 9, 9 if transposed else 10, generator=rng).requires_grad_(True)
    weight = torch.randn(*((64, 128) if transposed else (128, 64)), 3, 3, generator=rng).requires_grad_(True)
    mine, theirs = (conv_transpose2d, F.conv_transpose2d) if transposed else (conv2d, F.conv2d)
    found = mine(x, weight, 2, 0) if transposed else conv2d(x, weight, None, 2, 0)
    expected = theirs(x, weight, stride=2)
    direction = torch.randn(expected.shape, generator=rng)
    for a, b in zip(
        torch.autograd.grad(found, (x, weight), direction),
        torch.autograd.grad(expected, (x, weight), direction),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_equalised_layers_scale_their_weights(rng: torch.Generator) -> None:
    linear = EqualLinear(9, 4, bias_init=1.0, lr_multiplier=0.01).double()
    x = randn(rng, 5, 9)
    assert float(linear.weight.detach().std()) == pytest.approx(100, rel=0.5)
    assert torch.allclose(linear(x), x @ (linear.weight * 0.01 / 3).T + 1)
    conv = EqualConv2d(3, 4, gain=2.0, act_gain=1.5).double()
    x = randn(rng, 2, 3, 6, 6)
    expected = 1.5 * F.leaky_relu(F.conv2d(x, conv.weight * 2 / math.sqrt(27), conv.bias, padding=1), 0.2)
    assert torch.allclose(conv(x), expected)


def test_mapping_truncation_and_pixel_norm(rng: torch.Generator) -> None:
    mapping = MappingNetwork(8, 6, 2).double()
    z = randn(rng, 4, 8)
    assert torch.allclose(pixel_norm(z).square().mean(1), torch.ones(4, dtype=torch.float64))
    w = mapping(z)
    assert torch.allclose(w, mapping(z * 7))
    mapping.track(w, beta=0.75)
    assert torch.allclose(mapping.w_avg, 0.25 * w.mean(0))
    assert torch.equal(mapping.truncate(w, 1), w)
    assert torch.allclose(mapping.truncate(w, 0), mapping.w_avg.expand(4, -1))
    assert torch.allclose(mapping.truncate(w, 0.5), (w + mapping.w_avg) / 2)


@pytest.fixture
def tiny() -> StyleGAN2:
    torch.manual_seed(0)
    net = StyleGAN2(resolution=16, z_dim=6, w_dim=6, mapping_layers=2, channel_base=64, channel_max=8).double()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith(("bias", "noise_strength")):
                p.add_(torch.randn_like(p) * 0.3)
    return net


def test_a_batch_of_no_images(tiny: StyleGAN2) -> None:
    images = tiny.G(torch.zeros(0, tiny.G.z_dim, dtype=torch.float64))
    assert images.shape == (0, 3, 16, 16)
    scores = tiny.D(images)
    assert scores.shape == (0,)
    scores.sum().backward()


def check_by_differences(net: torch.nn.Module, loss: Callable[[], Tensor]) -> None:
    """A loss's gradient along a random direction of all weights, against a central difference."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    value = loss()
    grads = torch.autograd.grad(value, parameters, allow_unused=True)
    rng = torch.Generator().manual_seed(5)
    direction = [torch.randn(p.shape, generator=rng, dtype=p.dtype) for p in parameters]
    expected = sum(float((g * d).sum()) for g, d in zip(grads, direction, strict=True) if g is not None)

    def moved(step: float) -> float:
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=step)
        found = float(loss().detach())
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(d, alpha=step)
        return found

    # A step that crosses the kink of a leaky ReLU says nothing, so one of several steps has to agree.
    found = [(moved(step) - moved(-step)) / (2 * step) for step in (1e-6, 1e-7, 1e-8)]
    assert any(difference == pytest.approx(expected, rel=2e-5) for difference in found), (found, expected)


def test_r1_and_its_gradient(tiny: StyleGAN2, rng: torch.Generator) -> None:
    real = randn(rng, 4, 3, 16, 16)
    penalty = r1_penalty(tiny.D, real)
    # The images of a minibatch-stddev group see each other: as in the original, the slope is that of the batch's sum.
    pixel = torch.zeros_like(real)
    pixel[1, 2, 3, 4] = 1e-6
    at = real.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(tiny.D(at).sum(), at)
    difference = (tiny.D(real + pixel).sum() - tiny.D(real - pixel).sum()) / 2e-6
    assert float(slope[1, 2, 3, 4]) == pytest.approx(float(difference.detach()), rel=1e-5)
    assert torch.allclose(penalty, slope.square().sum((1, 2, 3)))
    check_by_differences(tiny.D, lambda: r1_penalty(tiny.D, real).mean())


def test_path_length_and_its_gradient(tiny: StyleGAN2, rng: torch.Generator) -> None:
    z, y = randn(rng, 3, 6), randn(rng, 3, 3, 16, 16)

    def lengths() -> Tensor:
        ws = tiny.G.spread(tiny.G.mapping(z))
        return path_lengths(tiny.G.synthesis(ws), ws, y)

    # J by columns: numerical derivative along each number of the first image's ws.
    ws = tiny.G.spread(tiny.G.mapping(z))[:1].detach().clone()
    along = torch.zeros_like(ws)
    for index in range(ws.numel()):
        step = torch.zeros(ws.numel(), dtype=ws.dtype)
        step[index] = 1e-6
        step = step.view_as(ws)
        change = tiny.G.synthesis(ws + step) - tiny.G.synthesis(ws - step)
        along.view(-1)[index] = float((change[0] * y[0]).sum().detach()) / 2e-6 / 16
    assert float(lengths()[0].detach()) == pytest.approx(float(along.square().sum(2).mean(1).sqrt()), rel=1e-5)
    check_by_differences(tiny.G, lambda: (lengths() - 0.3).square().mean())


def test_logistic_losses() -> None:
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.5, -3.0])

    def log_sigmoid(v: float) -> float:
        return math.log(1 / (1 + math.exp(-v)))

    assert float(nonsaturating_G(fake)) == pytest.approx(-(log_sigmoid(0.5) + log_sigmoid(-3)) / 2)
    expected = -(log_sigmoid(2) + log_sigmoid(-1) + log_sigmoid(-0.5) + log_sigmoid(3)) / 2
    assert float(nonsaturating_D(real, fake)) == pytest.approx(expected)
