"""The networks against plain definitions in float64, published parameter counts, and what a critic must not do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_uad import registry
from gan_uad.errors import UserError
from gan_uad.networks.layers import DownConv3x3, LayerNorm2d, UpConv3x3
from gan_uad.networks.wgan_gp import DownBlock, UpBlock

pytestmark = pytest.mark.numerical


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(count: int, resolution: int, seed: int = 0) -> Tensor:
    return randn(count, 3, resolution, resolution, seed=seed).float().clamp(-1, 1)


def gradients(output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Of a scalar in which every element of `output` has a weight of its own."""
    return torch.autograd.grad((output * randn(*output.shape, seed=9)).sum(), inputs)


# ---------------------------------------------------------------- sizes


def test_the_nets_of_f_anogan_have_the_published_sizes() -> None:
    net = registry.build("network", "wgan_gp", {"resolution": 64})
    assert parameters(net.G) == 8_540_483
    assert parameters(net.D) == 7_491_841
    assert net.D.features(images(1, 64)).shape == (1, 8192)
    assert net.D.linear.in_features == 8192


def test_only_the_first_conv_of_a_block_has_no_bias_and_norms_stay_inside_the_blocks() -> None:
    net = registry.build("network", "wgan_gp", {"resolution": 32, "channel_base": 256})
    without = {
        name.rpartition(".")[2]
        for name, part in net.named_modules()
        if isinstance(part, nn.Conv2d | nn.Linear) and part.bias is None
    }
    assert without == {"conv1"}
    norms = [name for name, part in net.D.named_modules() if isinstance(part, nn.GroupNorm | nn.BatchNorm2d)]
    assert norms
    assert all(name.startswith("blocks.") for name in norms)
    assert all(
        part.weight.shape == part.bias.shape == (part.num_channels,)
        for part in net.D.modules()
        if isinstance(part, LayerNorm2d)
    )


@pytest.mark.parametrize("name", ["dcgan", "wgan_gp"])
@pytest.mark.parametrize("resolution", [32, 128])
def test_the_same_nets_at_other_resolutions(name: str, resolution: int) -> None:
    net = registry.build("network", name, {"resolution": resolution, "channel_base": 256, "channel_max": 32}).eval()
    made = net.G(torch.randn(2, net.G.z_dim))
    assert made.shape == (2, 3, resolution, resolution)
    assert made.abs().max() <= 1
    assert net.D(made).shape == (2,)
    assert net.D.features(made).ndim == 2


@pytest.mark.parametrize(("output", "beyond"), [("linear", True), ("tanh", False)])
def test_the_encoder_gives_latents(output: str, beyond: bool) -> None:
    options = {"resolution": 32, "z_dim": 7, "channel_base": 256, "output": output}
    net = registry.build("network", "residual_encoder", options)
    with torch.no_grad():
        net.linear.weight.mul_(100)
        z = net(images(4, 32))
    assert z.shape == (4, 7)
    assert bool((z.abs() > 1).any()) is beyond


def test_the_widths_of_dcgan_are_the_published_ones() -> None:
    net = registry.build("network", "dcgan", {"resolution": 64})
    up = [(m.in_channels, m.out_channels) for m in net.G.modules() if isinstance(m, nn.ConvTranspose2d)]
    down = [(m.in_channels, m.out_channels) for m in net.D.modules() if isinstance(m, nn.Conv2d)]
    assert up == [(100, 1024), (1024, 512), (512, 256), (256, 128), (128, 3)]
    assert down == [(3, 128), (128, 256), (256, 512), (512, 1024), (1024, 1)]
    for part in (net.G, net.D):
        kernels = [m.weight for m in part.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        for weight in kernels:
            assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.05)
            assert abs(float(weight.detach().mean())) < 0.002


def test_the_start_of_the_residual_nets() -> None:
    """Improved WGAN: uniform, He's variance (2 / fan-in) before a ReLU and LeCun's (1 / fan-in) elsewhere; biases zero."""
    net = registry.build("network", "wgan_gp", {"resolution": 64, "channel_base": 2048, "channel_max": 256})
    for name, part in net.named_modules():
        if isinstance(part, nn.Conv2d | nn.Linear) and part.weight.numel() > 5000:
            gain = 2 if name.endswith(("conv1", "conv2")) else 1
            fan = part.weight[0].numel()
            assert float(part.weight.detach().var()) == pytest.approx(gain / fan, rel=0.06), name
            assert part.bias is None or not part.bias.any(), name


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("wgan_gp", {"resolution": 48}, "power of two of at least 32 px, got 48"),
        ("wgan_gp", {"resolution": 16}, "power of two of at least 32 px, got 16"),
        ("dcgan", {"resolution": 8}, "power of two of at least 16 px, got 8"),
        ("dcgan", {"z_dim": 0}, "z_dim must be at least 1, got 0"),
        ("wgan_gp", {"z_dim": -1}, "z_dim must be at least 1, got -1"),
        ("wgan_gp", {"channel_base": 0}, "channel_base must be at least 1, got 0"),
        ("residual_encoder", {"channel_max": -3}, "channel_max must be at least 1, got -3"),
        ("residual_encoder", {"output": "relu"}, "output must be 'linear' or 'tanh', got 'relu'"),
        ("wgan_gp", {"chanel_base": 64}, "did you mean 'channel_base'"),
        ("wgan_gp", {"channel_base": "wide"}, "option channel_base: .* got 'wide'"),
        ("wgan_pg", {}, "did you mean 'wgan_gp'"),
    ],
)
def test_sizes_that_cannot_be_are_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        registry.build("network", name, options)
    assert "\n" not in caught.value.message


# ---------------------------------------------------------------- layers


def up_naive(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1)


def down_naive(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.avg_pool2d(F.conv2d(x, weight, bias, padding=1), 2)


@pytest.mark.parametrize(("cls", "naive"), [(UpConv3x3, up_naive), (DownConv3x3, down_naive)])
@pytest.mark.parametrize("shape", [(2, 5, 6, 8), (1, 5, 2, 2)])
def test_resampling_convolutions_are_their_definitions(
    cls: type[nn.Conv2d], naive: Callable[..., Tensor], shape: tuple[int, ...]
) -> None:
    layer = cls(5, 3).double()
    x = randn(*shape).requires_grad_(True)
    ours, plain = layer(x), naive(x, layer.weight, layer.bias)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    inputs = (x, layer.weight, layer.bias)
    for mine, theirs in zip(gradients(ours, *inputs), gradients(plain, *inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


def test_layer_norm_is_over_channels_and_pixels_of_one_image() -> None:
    norm = LayerNorm2d(4).double()
    with torch.no_grad():
        norm.weight.copy_(randn(4, seed=1))
        norm.bias.copy_(randn(4, seed=2))
    x = 3 + 5 * randn(3, 4, 6, 6)
    expected = torch.empty_like(x)
    for i, image in enumerate(x):
        variance = ((image - image.mean()) ** 2).mean()
        expected[i] = (image - image.mean()) / (variance + 1e-5).sqrt()
    expected = expected * norm.weight.view(1, 4, 1, 1) + norm.bias.view(1, 4, 1, 1)
    torch.testing.assert_close(norm(x), expected, rtol=1e-10, atol=1e-10)


def test_an_up_block_in_the_order_of_the_paper() -> None:
    """The shortcut is written as up-sample, then 1×1 convolution."""
    block = UpBlock(6, 4).double()
    x = randn(3, 6, 4, 4).requires_grad_(True)
    h = F.relu(F.batch_norm(x, None, None, block.norm1.weight, block.norm1.bias, training=True))
    h = F.conv2d(F.interpolate(h, scale_factor=2, mode="nearest"), block.conv1.weight, padding=1)
    h = F.relu(F.batch_norm(h, None, None, block.norm2.weight, block.norm2.bias, training=True))
    h = F.conv2d(h, block.conv2.weight, block.conv2.bias, padding=1)
    h = h + block.shortcut(F.interpolate(x, scale_factor=2, mode="nearest"))
    ours = block(x)
    torch.testing.assert_close(ours, h, rtol=1e-11, atol=1e-11)
    inputs = (x, block.shortcut.weight, block.conv1.weight)
    for mine, theirs in zip(gradients(ours, *inputs), gradients(h, *inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


def test_a_down_block_in_the_order_of_the_paper() -> None:
    """Both ways end in mean pooling of a convolution."""
    block = DownBlock(4, 6, LayerNorm2d).double()
    x = randn(3, 4, 8, 8).requires_grad_(True)
    h = F.conv2d(F.relu(block.norm1(x)), block.conv1.weight, padding=1)
    h = F.conv2d(F.relu(block.norm2(h)), block.conv2.weight, block.conv2.bias, padding=1)
    h = F.avg_pool2d(h, 2) + F.avg_pool2d(block.shortcut(x), 2)
    ours = block(x)
    torch.testing.assert_close(ours, h, rtol=1e-11, atol=1e-11)
    inputs = (x, block.shortcut.weight, block.conv2.weight)
    for mine, theirs in zip(gradients(ours, *inputs), gradients(h, *inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


# ---------------------------------------------------------------- behaviour


def test_the_critic_does_not_mix_images_and_dcgan_in_training_does() -> None:
    """The gradient penalty is only right where output i depends on image i alone; batch norm is the counter-example."""

    def influence(net: nn.Module) -> Tensor:
        x = images(4, 32).requires_grad_(True)
        rows = [torch.autograd.grad(net(x)[i], x)[0].abs().flatten(1).sum(1) for i in range(4)]
        return torch.stack(rows)

    options = {"resolution": 32, "channel_base": 256, "channel_max": 32}
    alone = influence(registry.build("network", "wgan_gp", options).D.train())
    assert (alone.diagonal() > 0).all()
    assert not (alone - torch.diag(alone.diagonal())).any()
    mixed = influence(registry.build("network", "dcgan", options).D.train())
    assert (mixed > 0).all()


def test_the_logit_of_dcgan_is_its_last_convolution() -> None:
    D = registry.build("network", "dcgan", {"resolution": 32, "channel_base": 256}).D.eval()
    x = images(3, 32)
    torch.testing.assert_close(D(x), D.last(D.layers(x)).flatten())
    torch.testing.assert_close(D.features(x), D.layers(x).flatten(1))
