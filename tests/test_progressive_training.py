"""Training of PGAN and StyleGAN: growth, losses, resume in a fade, shares and averages."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from progressive_tools import (
    FAMILIES,
    halved,
    pgan_by_definition,
    randomised,
    real,
    scores_by_definition,
    stylegan_by_definition,
    task,
    twice,
)
from torch import Tensor, nn

from gan_uad.errors import UserError
from gan_uad.training import distributed
from gan_uad.training.progressive import Schedule

pytestmark = pytest.mark.numerical


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


QUICK = {"level_kimg": 0.016, "fade_kimg": 0.032}  # two steps of eight, then four of fading
FIRST = {"pgan": 4, "stylegan": 8}


def adam_steps(optimizer: torch.optim.Optimizer) -> set[int]:
    return {int(state["step"]) for state in optimizer.state.values()}


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
    metrics = job.discriminator_step(x)
    assert float(metrics["penalty"]) == pytest.approx(penalty.item(), rel=1e-4)
    assert float(metrics["wasserstein"]) == pytest.approx((on_real.mean() - on_fake.mean()).item(), rel=1e-4)
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
    metrics = job.discriminator_step(x)
    assert float(metrics["r1"]) == pytest.approx(r1.item(), rel=1e-4)
    assert float(metrics["loss_D"]) == pytest.approx(logistic.item(), rel=1e-4)
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
    for job, metrics in zip((whole, parts), found, strict=True):
        metrics.update(job.generator_step(8))
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
def test_training_learns_the_colour_of_real_images_while_growing(name: str) -> None:
    """Real images are noisy patches of one colour; from 4 to 16 px the generator comes near it.

    Rounding grows in such a training: of several seeds and processors, the bounds leave room for the slowest.
    """
    colour = torch.tensor([0.7, -0.5, 0.2]).view(1, 3, 1, 1)
    own, bound = ({"r1_gamma": 0.1}, 0.75) if name == "stylegan" else ({}, 0.6)
    job = task(name, ema_kimg=0.02, start_resolution=4, level_kimg=0.06, fade_kimg=0.02, lr=1e-2, **own)

    def mean_colour() -> Tensor:
        return job.sample().mean((0, 2, 3))

    before, late = (mean_colour() - colour.flatten()).norm(), []
    for k in range(44):
        metrics = job.step(colour + 0.1 * real(4, seed=k), 4 * k)
        assert all(math.isfinite(float(value)) for value in metrics.values())
        if k > 30 and k % 4 == 0:  # the two nets oscillate around the goal, so the mean over steps is compared
            late.append(mean_colour())
    assert float(metrics["resolution"]) == 16
    assert float(metrics["alpha"]) == 1
    assert (torch.stack(late).mean(0) - colour.flatten()).norm() < bound * before
