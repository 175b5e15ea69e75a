"""PGAN and StyleGAN: networks against slow definitions in float64, published counts, and growth, losses and resume in training."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_uad import registry
from gan_uad.errors import UserError
from gan_uad.networks.pgan import PGAN, normalised
from gan_uad.networks.progressive import Discriminator
from gan_uad.networks.stylegan import StyleGAN, adain
from gan_uad.training import distributed
from gan_uad.training.losses import r1_penalty
from gan_uad.training.progressive import Schedule

CPU = torch.device("cpu")
SMALL = {"resolution": 32, "z_dim": 6, "channel_base": 128, "channel_max": 12}
TINY = {**SMALL, "resolution": 16}
FAMILIES = {"pgan": PGAN, "stylegan": StyleGAN}


def randomised(net: nn.Module, seed: int = 0) -> Any:
    """No parameter is left at zero or one, or a term could be missing unseen."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=rng, dtype=p.dtype) * (1 if p.dim() > 1 else 0.3))
    return net


def model(name: str, seed: int = 0, **options: Any) -> Any:
    sizes = {**SMALL, **options}
    if name == "stylegan":
        sizes = {"w_dim": 5, "mapping_layers": 2, **sizes}
    return randomised(FAMILIES[name](**sizes), seed)


def normal(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ---------------------------------------------------------------- the definitions, slowly


def twice(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def halved(x: Tensor) -> Tensor:
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def conv(x: Tensor, weight: Tensor, gain: float = math.sqrt(2)) -> Tensor:
    fan_in = weight.shape[1] * weight.shape[2] * weight.shape[3]
    return F.conv2d(x, weight * (gain / math.sqrt(fan_in)), padding=weight.shape[2] // 2)


def bias(x: Tensor, b: Tensor) -> Tensor:
    return x + b.view(1, -1, 1, 1)


def lrelu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x)


def unit(x: Tensor) -> Tensor:
    return x / ((x**2).mean(1, keepdim=True) + 1e-8).sqrt()


def blurred(x: Tensor) -> Tensor:
    line = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype)
    kernel = (line[:, None] * line[None, :] / 16).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(x, kernel, padding=1, groups=x.shape[1])


def to_rgb(p: dict[str, Tensor], i: int, x: Tensor) -> Tensor:
    return bias(conv(x, p[f"to_rgb.{i}.weight"], gain=1), p[f"to_rgb.{i}.bias"])


def painted(p: dict[str, Tensor], maps: list[Tensor], alpha: float) -> Tensor:
    """Images of the last of the levels' maps, faded with those of the level before."""
    image = to_rgb(p, len(maps) - 1, maps[-1])
    if len(maps) == 1:
        return image
    return (1 - alpha) * twice(to_rgb(p, len(maps) - 2, maps[-2])) + alpha * image


def pgan_by_definition(G: nn.Module, z: Tensor, level: int, alpha: float) -> Tensor:
    p = dict(G.named_parameters())
    x = unit(z) @ (p["dense"] * (math.sqrt(2) / 4 / math.sqrt(z.shape[1]))).T
    x = unit(lrelu(bias(x.reshape(len(z), -1, 4, 4), p["dense_bias"])))
    maps = [unit(lrelu(bias(conv(x, p["conv.weight"]), p["conv.bias"])))]
    for i in range(level - 2):
        x = twice(maps[-1])
        for layer in ("conv0", "conv1"):
            x = unit(lrelu(bias(conv(x, p[f"blocks.{i}.{layer}.weight"]), p[f"blocks.{i}.{layer}.bias"])))
        maps.append(x)
    return painted(p, maps, alpha)


def adain_by_definition(x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    out = torch.empty_like(x)
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            m = x[n, c]
            out[n, c] = (m - m.mean()) / (m.var(correction=0) + 1e-8).sqrt() * (scale[n, c] + 1) + offset[n, c]
    return out


def stylegan_by_definition(S: nn.Module, ws: Tensor, noise: list[Tensor], level: int, alpha: float) -> Tensor:
    p = dict(S.named_parameters())
    x, maps = p["const"].expand(len(ws), -1, -1, -1), []
    for j in range(2 * level - 2):
        if j > 0:
            x = conv(twice(x) if j > 1 and j % 2 == 0 else x, p[f"layers.{j}.weight"])
        if j > 1 and j % 2 == 0:
            x = blurred(x)
        x = x + noise[j] * p[f"layers.{j}.noise_strength"].view(1, -1, 1, 1)
        x = lrelu(bias(x, p[f"layers.{j}.bias"]))
        affine = p[f"layers.{j}.affine.weight"]
        style = ws[:, j] @ (affine / math.sqrt(affine.shape[1])).T + p[f"layers.{j}.affine.bias"]
        x = adain_by_definition(x, style[:, : x.shape[1]], style[:, x.shape[1] :])
        if j % 2:
            maps.append(x)
    return painted(p, maps, alpha)


def scores_by_definition(D: nn.Module, x: Tensor, level: int, alpha: float, with_blur: bool) -> tuple[Tensor, Tensor]:
    """Features and scores of images of the level's size."""
    p = dict(D.named_parameters())

    def read(x: Tensor, i: int) -> Tensor:
        return lrelu(bias(conv(x, p[f"from_rgb.{i}.weight"]), p[f"from_rgb.{i}.bias"]))

    y = read(x, level - 2)
    for i in range(level - 3, -1, -1):
        y = lrelu(bias(conv(y, p[f"blocks.{i}.conv0.weight"]), p[f"blocks.{i}.conv0.bias"]))
        y = halved(conv(blurred(y) if with_blur else y, p[f"blocks.{i}.conv1.weight"]))
        y = lrelu(bias(y, p[f"blocks.{i}.conv1.bias"]))
        if i == level - 3:
            y = (1 - alpha) * read(halved(x), i) + alpha * y
    n, group = len(y), min(4, len(y))
    spread = torch.empty(n, 1, 4, 4, dtype=y.dtype)
    for i in range(n):
        members = y[i % (n // group) :: n // group]
        assert len(members) == group
        spread[i] = (members.var(0, correction=0) + 1e-8).sqrt().mean()
    h = lrelu(bias(conv(torch.cat([y, spread], 1), p["conv.weight"]), p["conv.bias"])).flatten(1)
    h = lrelu(h @ (p["linear.weight"] * math.sqrt(2 / h.shape[1])).T + p["linear.bias"])
    score = h @ (p["output.weight"] / math.sqrt(h.shape[1])).T + p["output.bias"]
    return y.flatten(1), score[:, 0]


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


# ---------------------------------------------------------------- the schedule


@pytest.mark.parametrize(
    ("kimg", "level", "alpha"),
    [
        (0, 2, 1.0),
        (600, 2, 1.0),
        (600.6, 3, 0.001),
        (900, 3, 0.5),
        (1199.4, 3, 0.999),
        (1200, 3, 1.0),
        (1800, 3, 1.0),
        (2250, 4, 0.75),
        (2400, 4, 1.0),
        (3300, 5, 0.5),
        (3600, 5, 1.0),
        (1e6, 5, 1.0),
    ],
)
def test_the_schedule_of_growth(kimg: float, level: int, alpha: float) -> None:
    found = Schedule(2, 5).at(round(kimg * 1000))
    assert found[0] == level
    assert found[1] == pytest.approx(alpha)


def test_a_schedule_without_fade_or_without_growth() -> None:
    steps = Schedule(3, 5, level_kimg=1, fade_kimg=0)
    assert [steps.at(n) for n in (0, 999, 1000, 1999, 2000, 9000)] == [(k, 1.0) for k in (3, 3, 4, 4, 5, 5)]
    assert {Schedule(5, 5).at(n) for n in (0, 700_000, 1_300_000)} == {(5, 1.0)}
    eager = Schedule(2, 3, level_kimg=0, fade_kimg=1)
    assert [eager.at(n) for n in (0, 500, 1000, 1500)] == [(2, 1.0), (3, 0.5), (3, 1.0), (3, 1.0)]


def task(name: str, sizes: dict[str, Any] | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {**TINY, **(sizes or {})} | ({"w_dim": 5, "mapping_layers": 2} if name == "stylegan" else {})
    return registry.build("task", name, options, model=registry.build("network", name, sizes), device=CPU, seed=4)


def real(count: int = 8, side: int = 16, seed: int = 7) -> Tensor:
    return normal(count, 3, side, side, seed=seed, dtype=torch.float32).clamp(-1, 1)


def test_batches_and_rates_by_level() -> None:
    big = {"resolution": 1024, "channel_base": 64, "channel_max": 2, "z_dim": 2}
    pgan, style = task("pgan", big), task("stylegan", big)
    kimg = [0, 601, 1801, 3001, 4201, 5401, 6601, 7801, 9001]
    assert [pgan.batch_at(1000 * k) for k in kimg] == [128, 128, 128, 64, 32, 16, 8, 4, None]
    assert [pgan.lr_at(1000 * k) for k in kimg] == [1e-3] * 9
    assert [style.batch_at(1000 * k) for k in kimg] == [128, 128, 64, 32, 16, 8, 4, None, None]
    assert [style.lr_at(1000 * k) for k in kimg] == [1e-3] * 4 + [1.5e-3, 2e-3, 3e-3, 3e-3, 3e-3]
    own = task("stylegan", batch_per_level={8: 5}, lr=0.1, lr_per_level={16: 0.2}, level_kimg=1, fade_kimg=1)
    assert [(own.batch_at(n), own.lr_at(n)) for n in (0, 1500)] == [(5, 0.1), (None, 0.2)]
    own.step(real(4), 1500)
    assert [group["lr"] for opt in (own.opt_G, own.opt_D) for group in opt.param_groups] == [0.2, 0.2]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pgan", {"start_resolution": 6}, r"start_resolution must be one of \[4, 8, 16\], got 6"),
        ("stylegan", {"start_resolution": 32}, "start_resolution must be one of"),
        ("pgan", {"level_kimg": 0, "fade_kimg": 0}, "nor both 0"),
        ("pgan", {"fade_kimg": -1}, "must not be negative"),
        ("pgan", {"batch_per_level": {8: 0}}, "sizes of at least 1"),
        ("pgan", {"lr_per_level": {8: -1.0}}, "no negative rate"),
        ("pgan", {"drift": -1}, "drift must not be negative"),
        ("stylegan", {"r1_gamma": -1}, "r1_gamma must not be negative"),
        ("stylegan", {"mixing": 1.5}, r"mixing in \[0, 1\]"),
        ("stylegan", {"drift": 1e-3}, "no option 'drift'"),
    ],
)
def test_options_that_cannot_be_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        task(name, **options)


# ---------------------------------------------------------------- training

QUICK = {"level_kimg": 0.016, "fade_kimg": 0.032}  # two steps of eight, then four of fading
FIRST = {"pgan": 4, "stylegan": 8}


def adam_steps(optimizer: torch.optim.Optimizer) -> set[int]:
    return {int(state["step"]) for state in optimizer.state.values()}


@pytest.mark.parametrize("name", FAMILIES)
def test_adam_starts_anew_when_layers_come_in_and_when_they_have_faded_in(name: str) -> None:
    job = task(name, start_resolution=4, **QUICK)
    seen = []
    for k in range(9):
        job.step(real(), 8 * k)
        assert adam_steps(job.opt_G) == adam_steps(job.opt_D)
        seen.append((*job.G.stage, *adam_steps(job.opt_G)))
        assert job.G.stage == job.D.stage == job.ema.net.stage
    # level 2 to 0.016 kimg, 3 fading from there to 0.048, then for 0.016 kimg in full
    assert [(level, step) for level, _, step in seen] == [
        *((2, 1), (2, 2), (2, 3)),
        *((3, 1), (3, 2), (3, 3)),
        *((3, 1), (3, 2), (3, 3)),
    ]
    alphas = [alpha for _, alpha, _ in seen]
    assert alphas == [1, 1, 1, 0.25, 0.5, 0.75, 1, 1, 1]


@pytest.mark.parametrize("name", FAMILIES)
def test_only_branches_in_use_get_gradients(name: str) -> None:
    """From 8 px: alpha 1, then fading to 16, then 16 alone."""
    used = {0: ({1}, 2), 24: ({1, 2}, 3), 48: ({2}, 3)}
    for nimg, (colours, levels) in used.items():
        job = task(name, start_resolution=8, **QUICK)
        job.D.requires_grad_(True)
        job.step(real(), nimg)
        synthesis = job.G.synthesis if name == "stylegan" else job.G
        for convs in (synthesis.to_rgb, job.D.from_rgb):
            assert {i for i, layer in enumerate(convs) if layer.weight.grad is not None} == colours
            assert all(layer.weight.grad.abs().max() > 0 for i, layer in enumerate(convs) if i in colours)
        blocks = [job.D.blocks]
        if name == "pgan":
            blocks.append(synthesis.blocks)
        for block in blocks:
            assert [any(p.grad is not None for p in part.parameters()) for part in block] == [
                i + 2 <= levels for i in range(len(block))
            ]
        if name == "stylegan":
            given = [any(p.grad is not None for p in layer.parameters()) for layer in synthesis.layers]
            assert given == [j < 2 * levels for j in range(len(given))]


def test_reals_are_averaged_down_and_fade() -> None:
    job = task("pgan", start_resolution=4, **QUICK)
    x = real()
    job.enter(0)
    torch.testing.assert_close(job.at_level(x), halved(halved(x)))
    job.enter(24)
    assert job.G.stage == (3, 0.25)
    small = halved(x)
    torch.testing.assert_close(job.at_level(x), 0.25 * small + 0.75 * twice(halved(small)))
    job.enter(10_000)
    assert torch.equal(job.at_level(x), x)


def double(net: Any) -> Any:
    return copy.deepcopy(net).double()


def check_gradients(net: nn.Module, reference: nn.Module) -> None:
    pairs = list(zip(net.parameters(), reference.parameters(), strict=True))
    assert any(mine.grad is not None for mine, _ in pairs)
    for mine, theirs in pairs:
        assert (mine.grad is None) == (theirs.grad is None)
        if mine.grad is not None and theirs.grad is not None:
            torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=2e-3, atol=2e-4)


def test_the_losses_of_pgan() -> None:
    """The critic: D(fake) − D(real) + 10·(‖∇‖ − 1)² + 0.001·D(real)²; then the generator against the critic so changed."""
    job = task("pgan", start_resolution=8, **QUICK)
    randomised(job.D)
    job.enter(24)
    x = job.at_level(real())
    G, D = double(job.G), double(job.D)
    rng = torch.Generator().manual_seed(4)
    z, mix = torch.randn(8, 6, generator=rng).double(), torch.rand(8, generator=rng).double().view(-1, 1, 1, 1)
    fake = pgan_by_definition(G, z, 4, 0.25).detach()
    between = (x + mix * (fake - x)).requires_grad_(True)

    def scores(images: Tensor) -> Tensor:
        return scores_by_definition(D, images, 4, 0.25, False)[1]

    (slope,) = torch.autograd.grad(scores(between).sum(), between, create_graph=True)
    penalty = ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()
    on_real, on_fake = scores(x.double()), scores(fake)
    (on_fake.mean() - on_real.mean() + 10 * penalty + 1e-3 * (on_real**2).mean()).backward()
    figures = job.discriminator_step(x)
    assert float(figures["penalty"]) == pytest.approx(penalty.item(), rel=1e-4)
    assert float(figures["wasserstein"]) == pytest.approx((on_real.mean() - on_fake.mean()).item(), rel=1e-4)
    check_gradients(job.D, D)
    D = double(job.D)
    z = torch.randn(8, 6, generator=rng).double()
    loss = -scores_by_definition(D, pgan_by_definition(G, z, 4, 0.25), 4, 0.25, False)[1].mean()
    loss.backward()
    assert float(job.generator_step(8)["loss_G"]) == pytest.approx(loss.item(), rel=1e-4)
    check_gradients(job.G, G)


def test_the_losses_of_stylegan() -> None:
    """softplus(D(fake)) + softplus(−D(real)) + 10/2·‖∇D(real)‖²; styles mixed, noise of the task's own; then softplus(−D(G(z)))."""
    job = task("stylegan", start_resolution=8, mixing=1.0, **QUICK)
    randomised(job.D, 1)
    randomised(job.G.synthesis, 2)
    job.enter(24)
    x = job.at_level(real())
    G, D = double(job.G), double(job.D)
    S, rng = G.synthesis, torch.Generator().manual_seed(4)

    def drawn() -> tuple[Tensor, Tensor]:
        z = torch.randn(8, 6, generator=rng).double()
        assert float(torch.rand((), generator=rng)) < 1
        crossover = int(torch.randint(1, 6, (), generator=rng))
        z_mixed = torch.randn(8, 6, generator=rng).double()
        own = torch.Generator().manual_seed(int(torch.randint(1 << 62, (), generator=rng)))
        noise = [torch.randn(8, 1, side, side, generator=own).double() for side in (4, 4, 8, 8, 16, 16)]
        ws = torch.stack([G.mapping(z if j < crossover else z_mixed) for j in range(6)], 1)
        return z, stylegan_by_definition(S, ws, noise, 4, 0.25)

    def scores(images: Tensor) -> Tensor:
        return scores_by_definition(D, images, 4, 0.25, True)[1]

    at = x.double().requires_grad_(True)
    on_real, on_fake = scores(at), scores(drawn()[1].detach())
    (slope,) = torch.autograd.grad(on_real.sum(), at, create_graph=True)
    r1 = (slope**2).sum((1, 2, 3)).mean()
    logistic = -(torch.sigmoid(on_real).log().mean() + (1 - torch.sigmoid(on_fake)).log().mean())
    (logistic + 5 * r1).backward()
    figures = job.discriminator_step(x)
    assert float(figures["r1"]) == pytest.approx(r1.item(), rel=1e-4)
    assert float(figures["loss_D"]) == pytest.approx(logistic.item(), rel=1e-4)
    check_gradients(job.D, D)
    D = double(job.D)
    z, images = drawn()
    loss = -torch.sigmoid(scores(images)).log().mean()
    loss.backward()
    assert float(job.generator_step(8)["loss_G"]) == pytest.approx(loss.item(), rel=1e-4)
    check_gradients(job.G.synthesis, S)
    torch.testing.assert_close(
        job.G.mapping.w_avg.double(), 0.005 * G.mapping(z).mean(0).detach(), rtol=1e-4, atol=1e-7
    )


def test_r1_and_its_gradient_by_finite_differences() -> None:
    D: Discriminator = model("stylegan", channel_max=3, mbstd_group=2).double().D
    D.grow(3, 0.4)
    x, pixels, step = normal(2, 3, 8, 8), 192, 1e-5

    def by_differences() -> float:
        """Each of the pair's pixels moved up and down, all pairs in one batch: a pair is a group of the minibatch stddev."""
        moves = step * torch.eye(2 * pixels, dtype=torch.float64).view(-1, 2, 3, 8, 8)
        moved = torch.cat([x + moves, x - moves])
        with torch.no_grad():
            up, down = D(torch.cat([moved[:, 0], moved[:, 1]])).view(2, -1).sum(0).chunk(2)
        return float((((up - down) / (2 * step)) ** 2).sum())

    penalty = r1_penalty(D, x).sum()
    assert penalty.item() == pytest.approx(by_differences(), rel=1e-6)
    penalty.backward()
    for weight in (D.blocks[0].conv1.weight, D.from_rgb[0].weight, D.conv.weight):
        assert isinstance(weight, nn.Parameter)
        assert weight.grad is not None
        place = weight[0, 2].argmax().item()
        gradient, values = weight.grad[0, 2].flatten()[place].item(), []
        for move in (1e-4, -2e-4):
            with torch.no_grad():
                weight[0, 2].view(-1)[place] += move
            values.append(by_differences())
        with torch.no_grad():
            weight[0, 2].view(-1)[place] += 1e-4
        assert gradient == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-4, abs=1e-9)
        assert abs(gradient) > 1e-6


@pytest.mark.parametrize("name", FAMILIES)
def test_a_resume_in_the_middle_of_a_fade_is_exact(name: str) -> None:
    """Saved at alpha 0.5 through a file; on through the fade and over its end."""
    through = task(name, start_resolution=4, **QUICK)
    for k in (2, 3, 4):
        through.step(real(seed=k), 8 * k)
    assert through.G.stage == (3, 0.5)
    file = io.BytesIO()
    torch.save(through.state_dict(), file)
    torch.manual_seed(99)  # nothing may come from the global generator
    resumed = task(name, start_resolution=4, **QUICK)
    randomised(resumed.model, 8)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for k in (5, 6, 7):
        a, b = through.step(real(seed=k), 8 * k), resumed.step(real(seed=k), 8 * k)
        torch.rand(3)
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert through.G.stage == (3, 1.0)
    ours, theirs = through.state_dict(), resumed.state_dict()
    assert torch.equal(ours["rng"], theirs["rng"])
    for part in ("model", "ema"):
        assert all(torch.equal(value, theirs[part][key]) for key, value in ours[part].items())
    for part in ("opt_G", "opt_D"):
        assert ours[part]["state"].keys() == theirs[part]["state"].keys()
        for key, state in ours[part]["state"].items():
            assert all(torch.equal(value, theirs[part]["state"][key][n]) for n, value in state.items())


@pytest.mark.parametrize("name", FAMILIES)
def test_micro_batches_change_nothing_but_rounding(name: str) -> None:
    whole, parts = task(name, start_resolution=8, **QUICK), task(name, start_resolution=8, **QUICK)
    parts.micro_batch = 4
    found = []
    for job in (whole, parts):
        job.enter(24)
        found.append(job.discriminator_step(job.at_level(real())))
    parts.D.load_state_dict(whole.D.state_dict())  # Adam's first step makes a sign of a gradient's rounding
    for job, figures in zip((whole, parts), found, strict=True):
        figures.update(job.generator_step(8))
    assert len(found[0]) >= 3
    for key, value in found[0].items():
        if key == "diversity":  # of each pass
            continue
        assert value.item() == pytest.approx(found[1][key].item(), rel=1e-4, abs=1e-5)
    given = 0
    for mine, theirs in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        if mine.grad is not None:
            given += 1
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4)
    assert given > 20


def test_processes_share_what_one_would_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = task("stylegan").draw(8)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "world", lambda rank=rank: distributed.World(rank, 2))
        mine = task("stylegan").draw(4)
        monkeypatch.undo()
        assert mine.crossover == whole.crossover
        assert torch.equal(mine.z, whole.z[rank::2])
        assert mine.z_mixed is not None
        assert whole.z_mixed is not None
        assert torch.equal(mine.z_mixed, whole.z_mixed[rank::2])
        assert len(mine.noise) == 4  # 8 px: two layers at 4 px and two at 8
        assert all(torch.equal(a, b[rank::2]) for a, b in zip(mine.noise, whole.noise, strict=True))


def test_styles_are_mixed_at_layers_in_use() -> None:
    job = task("stylegan", mixing=0.5, **QUICK)
    found = [job.draw(4) for _ in range(60)]
    assert {latents.crossover for latents in found if latents.z_mixed is not None} == {1, 2, 3}
    assert {latents.crossover for latents in found if latents.z_mixed is None} == {4}
    assert 15 < sum(latents.z_mixed is not None for latents in found) < 45


def test_the_averages() -> None:
    """PGAN's is 0.999 a step whatever the batch; StyleGAN's 0.5^(batch / 10,000). Growth is copied."""
    far = 10_000_000
    for name, keep in (("pgan", 0.999), ("stylegan", 0.5 ** (8 / 10_000))):
        job = task(name)
        randomised(job.ema.net, 5)
        before = {key: p.clone() for key, p in job.ema.net.named_parameters()}
        job.step(real(), far)
        now = dict(job.G.named_parameters())
        for key, p in job.ema.net.named_parameters():
            torch.testing.assert_close(p, keep * before[key] + (1 - keep) * now[key])
        for mine, theirs in zip(job.ema.net.buffers(), job.G.buffers(), strict=True):
            assert torch.equal(mine, theirs)
    job = task("pgan", ema_kimg=1.0)
    randomised(job.ema.net, 5)
    before = {key: p.clone() for key, p in job.ema.net.named_parameters()}
    job.step(real(), far)
    keep, weight = 0.5 ** (8 / 1000), "conv.weight"
    expected = keep * before[weight] + (1 - keep) * job.G.conv.weight
    torch.testing.assert_close(job.ema.net.conv.weight, expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_sample_is_of_full_size_and_leaves_no_trace(name: str) -> None:
    job = task(name)
    assert job.G.stage == (FIRST[name].bit_length() - 1, 1.0)
    before = copy.deepcopy(job.state_dict())
    images = job.sample()
    assert images.shape == (64, 3, 16, 16)
    assert torch.equal(images, job.sample())
    after = job.state_dict()
    assert torch.equal(before["rng"], after["rng"])
    assert all(torch.equal(before["model"][key], value) for key, value in after["model"].items())


@pytest.mark.parametrize("name", FAMILIES)
def test_training_learns_the_colour_of_the_reals_while_growing(name: str) -> None:
    """Reals are noisy patches of one colour; from 4 to 16 px the generator comes near it."""
    colour = torch.tensor([0.7, -0.5, 0.2]).view(1, 3, 1, 1)
    own = {"r1_gamma": 1.0} if name == "stylegan" else {}
    job = task(name, ema_kimg=0.02, start_resolution=4, level_kimg=0.06, fade_kimg=0.02, lr=1e-2, **own)

    def mean_colour() -> Tensor:
        return job.sample().mean((0, 2, 3))

    before, late = (mean_colour() - colour.flatten()).norm(), []
    for k in range(44):
        figures = job.step(colour + 0.1 * real(4, seed=k), 4 * k)
        assert all(math.isfinite(float(value)) for value in figures.values())
        if (
            k > 30 and k % 4 == 0
        ):  # two nets chase each other round the goal: a mean over steps tells more than the last
            late.append(mean_colour())
    assert float(figures["resolution"]) == 16
    assert float(figures["alpha"]) == 1
    assert (torch.stack(late).mean(0) - colour.flatten()).norm() < 0.6 * before
