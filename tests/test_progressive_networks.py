"""PGAN's and StyleGAN's networks: against slow definitions in float64, published counts, and growth."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from progressive_tools import (
    FAMILIES,
    lrelu,
    model,
    normal,
    pgan_by_definition,
    scores_by_definition,
    stylegan_by_definition,
    twice,
    unit,
)
from torch import Tensor, nn

from gan_uad.networks.pgan import normalised
from gan_uad.networks.progressive import Discriminator
from gan_uad.networks.stylegan import adain
from gan_uad.training.losses import r1_penalty

pytestmark = pytest.mark.numerical

STAGES = [(2, 1.0), (3, 0.3), (4, 1.0), (5, 0.75)]


@pytest.mark.parametrize(("level", "alpha"), STAGES)
def test_pgan_generates_by_its_definition(level: int, alpha: float) -> None:
    G, z = model("pgan").double().G, normal(3, 6)
    G.grow(level, alpha)
    expected = pgan_by_definition(G, z, level, G.stage[1])
    torch.testing.assert_close(G.synthesize_level(z), expected, rtol=1e-9, atol=1e-9)
    assert expected.std() > 0.1
    torch.testing.assert_close(G.synthesize_level(7 * z), expected, rtol=1e-6, atol=1e-6)  # z is put on the sphere


@pytest.mark.parametrize(("level", "alpha"), STAGES)
def test_stylegan_synthesises_by_its_definition(level: int, alpha: float) -> None:
    S = model("stylegan").double().G.synthesis
    S.grow(level, alpha)
    ws = normal(2, S.num_ws, 5)
    noise = [normal(2, *shape, seed=j) for j, shape in enumerate(S.noise_shapes)]
    expected = stylegan_by_definition(S, ws, noise, level, S.stage[1])
    torch.testing.assert_close(S.synthesize_level(ws, noise), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(S.synthesize_level(ws, noise[: S.layers_in_use]), expected, rtol=1e-9, atol=1e-9)
    assert expected.std() > 0.1


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("level", "alpha"), STAGES)
def test_the_discriminators_score_by_their_definition(name: str, level: int, alpha: float) -> None:
    D = model(name).double().D
    D.grow(level, alpha)
    x = normal(8, 3, 1 << level, 1 << level)
    features, scores = scores_by_definition(D, x, level, D.stage[1], name == "stylegan")
    torch.testing.assert_close(D(x), scores, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(D.features(x), features, rtol=1e-9, atol=1e-9)
    assert scores.std() > 0.01
    with pytest.raises(ValueError, match="groups of 4"):
        D(x[:6])


def test_the_mapping_network_of_stylegan() -> None:
    """√2·lrelu(x) per layer on unit-length z is He's gain √2 on the weights with biases √2 larger."""
    G, z = model("stylegan").double().G, normal(4, 6)
    w = unit(z)
    for layer in G.mapping.layers:
        w = lrelu(w @ (layer.weight * (0.01 * math.sqrt(2 / w.shape[1]))).T + math.sqrt(2) * 0.01 * layer.bias)
    torch.testing.assert_close(G.mapping(z), w, rtol=1e-9, atol=1e-9)
    G.mapping.w_avg.copy_(normal(5, seed=9))
    half = G.synthesis(G.spread((G.mapping.w_avg + w) / 2))
    torch.testing.assert_close(G(z, psi=0.5), half, rtol=1e-9, atol=1e-9)
    assert (G(z, psi=0.0) - G(z, psi=0.0)[:1]).abs().max() < 1e-9


def test_adain_gives_each_map_the_style_s_moments() -> None:
    x, style = 5 + 3 * normal(2, 4, 8, 8), normal(2, 8, seed=2)
    y = adain(x, style)
    torch.testing.assert_close(y.mean((2, 3)), style[:, 4:])
    torch.testing.assert_close(y.var((2, 3), correction=0).sqrt(), (1 + style[:, :4]).abs())


def test_pixel_norm_of_maps_in_half_precision() -> None:
    """Squares of 300 are beyond float16, and its least number is above eps."""
    x = torch.tensor([[300.0, -100.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float16)
    expected = torch.stack([x[0].double() / (1e5 / 3) ** 0.5, x[1].double()])
    torch.testing.assert_close(normalised(x).double(), expected, rtol=1e-3, atol=0)


def test_noise_modes() -> None:
    S = model("stylegan").G.synthesis
    ws = normal(2, S.num_ws, 5, dtype=torch.float32)
    const = S(ws, "const")
    assert torch.equal(const, S(ws, [layer.noise for layer in S.layers]))
    none = S(ws, "none")
    torch.testing.assert_close(none, S(ws, [torch.zeros(1, *shape) for shape in S.noise_shapes]))
    assert (const - none).abs().max() > 0.1
    assert S.noise_shapes == [tuple(layer.noise.shape[1:]) for layer in S.layers]
    with pytest.raises(ValueError, match="noise must be one of"):
        S(ws, "some")


# ---------------------------------------------------------------- growth of the networks


def level_images(net: Any, z: Tensor) -> Tensor:
    if isinstance(net.G, nn.Module) and hasattr(net.G, "synthesis"):
        return net.G.synthesis.synthesize_level(net.G.spread(net.G.mapping(z)))
    return net.G.synthesize_level(z)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("level", [3, 4, 5])
def test_a_fade_begins_where_the_level_before_ended_and_ends_at_the_new_one(name: str, level: int) -> None:
    net, z = model(name), normal(4, 6, dtype=torch.float32)
    x = normal(4, 3, 1 << level, 1 << level, dtype=torch.float32)
    net.G.grow(level - 1)
    net.D.grow(level - 1)
    old, old_scores = level_images(net, z), net.D(F.avg_pool2d(x, 2))
    net.G.grow(level, 0.0)
    net.D.grow(level, 0.0)
    assert torch.equal(level_images(net, z), twice(old))
    assert torch.equal(net.D(x), old_scores)
    net.G.grow(level, 1.0)
    net.D.grow(level, 1.0)
    new, new_scores = level_images(net, z), net.D(x)
    with torch.no_grad():  # at alpha 1 the old branch does not count
        for colours in (
            net.D.from_rgb[level - 3],
            (net.G.synthesis if name == "stylegan" else net.G).to_rgb[level - 3],
        ):
            colours.weight.add_(1)
    assert torch.equal(level_images(net, z), new)
    assert torch.equal(net.D(x), new_scores)
    net.G.grow(level, 0.5)
    assert (level_images(net, z) - new).abs().max() > 0.05


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("level", "alpha"), STAGES)
def test_evaluation_is_at_full_size_whatever_the_level(name: str, level: int, alpha: float) -> None:
    net, z = model(name).eval(), normal(4, 6, dtype=torch.float32)
    net.G.grow(level, alpha)
    net.D.grow(level, alpha)
    images = net.G(z)
    assert images.shape == (4, 3, 32, 32)
    small = level_images(net, z)
    assert small.shape == (4, 3, 1 << level, 1 << level)
    assert torch.equal(images, small.repeat_interleave(32 >> level, 2).repeat_interleave(32 >> level, 3))
    torch.testing.assert_close(net.D(images), net.D(small), rtol=1e-5, atol=1e-5)
    features = net.D.features(images)
    assert features.shape[0] == 4
    torch.testing.assert_close(net.D.features(images[:1]), features[:1], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=f"takes {1 << level} px"):
        net.D(torch.zeros(4, 3, 24, 24))


@pytest.mark.parametrize("name", FAMILIES)
def test_growth_is_part_of_the_state(name: str) -> None:
    net = model(name)
    assert net.G.stage == net.D.stage == (5, 1.0)
    net.G.grow(4, 0.25)
    net.D.grow(3)
    other = model(name, seed=3)
    other.load_state_dict(net.state_dict())
    assert other.G.stage == (4, 0.25)
    assert other.D.stage == (3, 1.0)
    integers = [tensor.dtype for key, tensor in net.state_dict().items() if key.endswith("level")]
    assert integers == [torch.int64, torch.int64]
    for level, alpha in ((1, 1.0), (6, 1.0), (4, 1.5), (4, -0.1)):
        with pytest.raises(ValueError, match=r"level must be in 2\.\.5"):
            net.G.grow(level, alpha)


def test_pgan_has_no_truncation() -> None:
    with pytest.raises(ValueError, match="psi must be 1"):
        model("pgan").G(normal(1, 6), psi=0.7)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_near_float32(name: str, dtype: torch.dtype) -> None:
    net, z = model(name), normal(4, 6, dtype=torch.float32)
    with torch.no_grad():
        full, x = net.G(z), normal(4, 3, 32, 32, dtype=torch.float32)
        right = net.D(x)
        with torch.autocast("cpu", dtype):
            low, scores = net.G(z), net.D(x)
    assert low.dtype == scores.dtype == torch.float32
    assert 0 < float((low - full).abs().mean() / full.abs().mean()) < 0.05
    assert 0 < float((scores - right).abs().max() / right.abs().mean()) < 0.05


# Printed by the originals (and table 2 of the PGAN paper: 23.1 M each) at 1024 px.
PRINTED = {"pgan": (23_079_115, 23_087_249), "stylegan": (26_219_627, 23_087_249)}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("resolution", [64, 256, 1024])
def test_parameter_counts(name: str, resolution: int) -> None:
    """Layer by layer with c(r) = min(16384 / r, 512) maps at r px."""
    with torch.device("meta"):
        net = FAMILIES[name](resolution=resolution)
    c = [min(16384 // r, 512) for r in (4, 8, 16, 32, 64, 128, 256, 512, 1024) if r <= resolution]
    pairs = list(zip(c, c[1:], strict=False))
    colours = sum(3 * k + 3 for k in c)
    if name == "pgan":
        first = 512 * 16 * c[0] + c[0] + 9 * c[0] ** 2 + c[0]
        G = first + sum(9 * a * b + b + 9 * b * b + b for a, b in pairs) + colours
    else:
        convs = 16 * c[0] + 9 * c[0] ** 2 + sum(9 * a * b + 9 * b * b for a, b in pairs)
        epilogues = 2 * sum(2 * k + 2 * k * 512 + 2 * k for k in c)  # noise, bias, style
        G = 8 * (512 * 512 + 512) + convs + epilogues + colours
    last = 9 * (c[0] + 1) * c[0] + c[0] + 16 * c[0] * 512 + 512 + 512 + 1
    D = sum(3 * k + k for k in c) + sum(9 * b * b + b + 9 * b * a + a for a, b in pairs) + last
    counts = tuple(sum(p.numel() for p in part.parameters()) for part in (net.G, net.D))
    assert counts == (G, D)
    if resolution == 1024:
        assert counts == PRINTED[name]
    if name == "stylegan":
        assert net.G.synthesis.num_ws == 2 * len(c)


def test_r1_and_its_gradient_by_finite_differences() -> None:
    D: Discriminator = model("stylegan", channel_max=3, mbstd_group=2).double().D
    D.grow(3, 0.4)
    x, pixels = normal(2, 3, 8, 8), 192

    def by_differences(step: float) -> float:
        """Each of the pair's pixels moved up and down, all pairs in one batch: a pair is a group of the minibatch stddev."""
        moves = step * torch.eye(2 * pixels, dtype=torch.float64).view(-1, 2, 3, 8, 8)
        moved = torch.cat([x + moves, x - moves])
        with torch.no_grad():
            up, down = D(torch.cat([moved[:, 0], moved[:, 1]])).view(2, -1).sum(0).chunk(2)
        return float((((up - down) / (2 * step)) ** 2).sum())

    def penalty() -> Tensor:
        return r1_penalty(D, x).sum()

    def close(value: float, difference: Callable[[float], float], rel: float) -> bool:
        """Whether a difference agrees for one of several steps: a step that crosses the kink of a leaky ReLU says nothing."""
        return any(value == pytest.approx(difference(step), rel=rel, abs=1e-11) for step in (1e-5, 1e-6, 1e-7))

    assert close(penalty().item(), by_differences, 1e-6)
    penalty().backward()
    for weight in (D.blocks[0].conv1.weight, D.from_rgb[0].weight, D.conv.weight):
        assert isinstance(weight, nn.Parameter)
        assert weight.grad is not None
        place = weight[0, 2].argmax().item()
        gradient, start = weight.grad[0, 2].flatten()[place].item(), weight[0, 2].flatten()[place].item()

        def moved(by: float, weight: nn.Parameter = weight, place: Any = place, start: float = start) -> float:
            with torch.no_grad():
                weight[0, 2].view(-1)[place] = start + by
            return penalty().item()

        # Differences of differences would leave too few digits: the penalty is differentiated, which is checked at moved weights too.
        assert close(moved(1e-5), by_differences, 1e-6)
        assert close(gradient, lambda step, at=moved: (at(step) - at(-step)) / (2 * step), 1e-5)  # type: ignore[misc]
        moved(0.0)
        assert abs(gradient) > 1e-6
