"""What a step computes: the gradient penalty, the optimiser, the average, and the tasks, against explicit formulas in float64."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_uad import registry
from gan_uad.errors import UserError
from gan_uad.training.ema import EMA
from gan_uad.training.losses import gradient_penalty
from gan_uad.training.optim import RMSpropTF

pytestmark = pytest.mark.numerical

CPU = torch.device("cpu")


class Smooth(nn.Module):
    """c(x) = Σ_k v_k·tanh(w_k·x): a critic whose slope can be written down, W^T (v·(1 − tanh²))."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.W = nn.Parameter(0.3 * torch.randn(7, 12, generator=generator, dtype=torch.float64))
        self.v = nn.Parameter(3 * torch.randn(7, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1) @ self.W.T) @ self.v


def penalty_by_hand(W: np.ndarray, v: np.ndarray, real: np.ndarray, fake: np.ndarray, mix: np.ndarray) -> float:
    """Algorithm 1 of Gulrajani et al., with numpy: no automatic differentiation anywhere."""
    between = (1 - mix[:, None]) * real + mix[:, None] * fake
    slopes = (v * (1 - np.tanh(between @ W.T) ** 2)) @ W
    return float(((np.sqrt((slopes**2).sum(1)) - 1) ** 2).mean())


def test_the_gradient_penalty_and_its_gradient_are_those_of_the_formula() -> None:
    critic = Smooth()
    generator = torch.Generator().manual_seed(2)
    real, fake = (torch.randn(5, 3, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    mix = torch.rand(5, generator=generator, dtype=torch.float64)
    W, v = critic.W.detach().numpy().copy(), critic.v.detach().numpy().copy()
    flat = real.flatten(1).numpy(), fake.flatten(1).numpy(), mix.numpy()

    penalty = gradient_penalty(critic, real, fake, mix)
    assert penalty.item() == pytest.approx(penalty_by_hand(W, v, *flat), rel=1e-12)
    assert penalty.item() > 0.5, "the slopes must be far from 1 for this test to say anything"
    penalty.backward()
    step = 1e-6
    for weights, gradient in ((W, critic.W.grad), (v, critic.v.grad)):
        assert gradient is not None
        for index in np.ndindex(*weights.shape):
            keep = weights[index]
            weights[index] = keep + step
            above = penalty_by_hand(W, v, *flat)
            weights[index] = keep - step
            below = penalty_by_hand(W, v, *flat)
            weights[index] = keep
            assert float(gradient[index]) == pytest.approx((above - below) / (2 * step), rel=1e-6, abs=1e-8)


def test_the_gradient_penalty_of_a_slope_of_one_is_zero_and_ends_at_either_side() -> None:
    direction = torch.zeros(12, dtype=torch.float64)
    direction[3] = 1.0
    x, y = torch.randn(4, 3, 2, 2, dtype=torch.float64), torch.randn(4, 3, 2, 2, dtype=torch.float64)
    mix = torch.rand(4, dtype=torch.float64)
    assert float(gradient_penalty(lambda t: t.flatten(1) @ direction, x, y, mix)) == pytest.approx(0, abs=1e-12)
    assert float(gradient_penalty(lambda t: t.flatten(1) @ (4 * direction), x, y, mix)) == pytest.approx(9)
    seen: list[Tensor] = []

    def watched(t: Tensor) -> Tensor:
        seen.append(t.detach().clone())
        return t.flatten(1) @ direction

    gradient_penalty(watched, x, y, torch.tensor([0.0, 1.0, 0.25, 0.5], dtype=torch.float64))
    torch.testing.assert_close(seen[0], torch.stack([x[0], y[1], 0.75 * x[2] + 0.25 * y[2], (x[3] + y[3]) / 2]))


def test_rmsprop_is_that_of_tensorflow_1() -> None:
    """ms ← 0.9·ms + 0.1·g² from ms = 1; w ← w − lr·g / √(ms + 1e-10)."""
    rng = np.random.default_rng(0)
    weight = nn.Parameter(torch.tensor(rng.normal(size=(3, 4))))
    idle = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = RMSpropTF([weight, idle], lr=0.05)
    w, mean_square = weight.detach().numpy().copy(), np.ones((3, 4))
    for k in range(60):
        gradient = rng.normal(size=(3, 4)) * 10.0 ** (k % 5 - 3)
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        mean_square = 0.9 * mean_square + 0.1 * gradient**2
        w = w - 0.05 * gradient / np.sqrt(mean_square + 1e-10)
        if k == 20:  # a resume on the way
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = RMSpropTF([weight, idle], lr=0.05)
            optimizer.load_state_dict(state)
        np.testing.assert_allclose(weight.detach().numpy(), w, rtol=1e-12, atol=1e-13)
    assert torch.equal(idle, torch.ones(2, dtype=torch.float64))


def test_the_average_of_weights_and_buffers() -> None:
    """keep = 0.5^(images / half-life), half-life = min(half_life, 0.05·nimg): StyleGAN2-ADA's ramp-up."""
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    ema = EMA(net, half_life_kimg=0.02)
    assert not ema.net.training
    assert not any(p.requires_grad for p in ema.net.parameters())
    mean = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    rng = torch.Generator().manual_seed(0)
    keeps, nimg = [], 0
    for _ in range(80):
        nimg += 8
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=rng, dtype=torch.float64))
            else:
                tensor.add_(1)
        ema.update(8, nimg)
        keep = 0.5 ** (8 / min(20, 0.05 * nimg))
        keeps.append(keep)
        for name, tensor in net.state_dict().items():
            mean[name] = keep * mean[name] + (1 - keep) * tensor if tensor.is_floating_point() else tensor.clone()
            torch.testing.assert_close(ema.net.state_dict()[name], mean[name], rtol=1e-10, atol=1e-12)
    assert keeps[0] < 1e-5, "the first average must be of the trained weights"
    assert keeps[-1] == pytest.approx(0.5 ** (8 / 20))
    assert int(ema.net.state_dict()["1.num_batches_tracked"]) == 80


def test_an_average_without_half_life_follows() -> None:
    net = nn.Linear(3, 2)
    ema = EMA(net, 0)
    with torch.no_grad():
        net.weight.add_(1)
    ema.update(8, 1_000_000)
    assert torch.equal(ema.net.weight, net.weight)


# ---------------------------------------------------------------- tasks

SMALL = {"resolution": 32, "z_dim": 6, "channel_base": 256, "channel_max": 16}


def task(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return registry.build("task", name, options, model=registry.build("network", name, SMALL), device=CPU, seed=4)


def real(count: int = 8) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(7)).clamp(-1, 1)


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.named_parameters()}


@pytest.mark.parametrize("n_critic", [1, 2, 5])
def test_the_generator_steps_once_after_every_n_critic_critic_steps(n_critic: int) -> None:
    job = task("wgan_gp", n_critic=n_critic)
    stepped = []
    for k in range(10):
        G, D = weights(job.G), weights(job.D)
        metrics = job.step(real(), k * 8)
        moved = any(not torch.equal(G[name], p) for name, p in job.G.named_parameters())
        assert moved == ("loss_G" in metrics)
        assert any(not torch.equal(D[name], p) for name, p in job.D.named_parameters())
        stepped.append(moved)
    assert stepped == [(k + 1) % n_critic == 0 for k in range(10)]


def test_the_critic_loss_of_wgan_gp() -> None:
    """Gulrajani et al., algorithm 1: D(fake) − D(real) + 10·penalty, of fakes and mixes drawn in that order; one Adam step."""
    job = task("wgan_gp", gp_weight=10.0, lr=1e-3, lr_D=2e-3, betas=(0.0, 0.9))
    rng = torch.Generator().manual_seed(4)
    G, D = copy.deepcopy(job.G), copy.deepcopy(job.D)
    with torch.no_grad():
        fake = G(torch.randn(8, 6, generator=rng))
    mix = torch.rand(8, generator=rng)
    x = real()
    on_real, on_fake = D(x), D(fake)
    penalty = gradient_penalty(D, x, fake, mix)
    (on_fake.mean() - on_real.mean() + 10 * penalty).backward()
    metrics = job.discriminator_step(x)
    assert float(metrics["wasserstein"]) == pytest.approx((on_real.mean() - on_fake.mean()).item(), rel=1e-4)
    assert float(metrics["penalty"]) == pytest.approx(penalty.item(), rel=1e-4)
    for mine, theirs in zip(job.D.parameters(), D.parameters(), strict=True):
        assert theirs.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=2e-3, atol=2e-4)
    steps = [(mine - theirs).abs().max() for mine, theirs in zip(job.D.parameters(), D.parameters(), strict=True)]
    assert float(max(steps).detach()) == pytest.approx(2e-3, rel=1e-2), (
        "Adam's first step is its rate, and lr_D is the critic's"
    )


def test_the_generator_loss_of_wgan_gp() -> None:
    job = task("wgan_gp")
    rng = torch.Generator().manual_seed(4)
    G = copy.deepcopy(job.G)
    expected = -job.D(G(torch.randn(8, 6, generator=rng))).mean()
    expected.backward(inputs=list(G.parameters()))
    D = weights(job.D)
    assert float(job.generator_step(8)["loss_G"]) == pytest.approx(expected.item(), rel=1e-4)
    for mine, theirs in zip(job.G.parameters(), G.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4)
    assert all(torch.equal(D[name], p) for name, p in job.D.named_parameters())
    assert all(p.requires_grad and p.grad is None for p in job.D.parameters())


def test_the_average_of_wgan_gp_counts_the_images_of_every_critic_step() -> None:
    job = task("wgan_gp", n_critic=3, lr=1e-2, ema_kimg=0.024)  # a half-life of three batches of 8
    job.step(real(), 0)  # no generator step yet
    before = {name: p.clone() for name, p in job.ema.net.named_parameters()}
    assert all(torch.equal(before[name], p) for name, p in job.G.named_parameters())
    job.step(real(), 8 * (3 * 100 + 2))
    now = weights(job.G)
    for name, p in job.ema.net.named_parameters():
        torch.testing.assert_close(p, (before[name] + now[name]) / 2, rtol=1e-5, atol=1e-6)


def test_the_losses_of_dcgan() -> None:
    """Goodfellow et al. 2014: −log σ(D(x)) − log(1 − σ(D(G(z)))), and the generator's −log σ(D(G(z))) after the D step."""
    job = task("dcgan", lr=1e-3)
    G, D = copy.deepcopy(job.G), copy.deepcopy(job.D)
    x = real()
    fake = G(torch.randn(8, 6, generator=torch.Generator().manual_seed(4)))
    on_real, on_fake = D(x), D(fake.detach())
    loss_D = -(torch.sigmoid(on_real).log().mean() + (1 - torch.sigmoid(on_fake)).log().mean())
    loss_D.backward()
    torch.optim.Adam(D.parameters(), 1e-3, (0.5, 0.999)).step()
    loss_G = -torch.sigmoid(D(fake)).log().mean()
    metrics = job.step(x, 0)
    assert float(metrics["loss_D"]) == pytest.approx(loss_D.item(), rel=1e-4)
    assert float(metrics["loss_G"]) == pytest.approx(loss_G.item(), rel=1e-2)
    assert float(metrics["real_sign"]) == pytest.approx(on_real.sign().mean().item())
    assert float(metrics["fake_sign"]) == pytest.approx(on_fake.sign().mean().item())


@pytest.mark.parametrize("name", ["dcgan", "wgan_gp"])
def test_a_sample_leaves_no_trace_and_is_always_of_the_same_latents(name: str) -> None:
    job = task(name)
    before = copy.deepcopy(job.state_dict())
    first = job.sample()
    assert torch.equal(first, job.sample())
    assert first.shape == (64, 3, 32, 32)
    after = job.state_dict()
    assert torch.equal(before["rng"], after["rng"])
    for part in ("model", "ema"):
        assert all(torch.equal(before[part][key], value) for key, value in after[part].items())
    assert torch.equal(task(name).sample(), first)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("wgan_gp", {"n_critic": 0}, "n_critic must be at least 1"),
        ("wgan_gp", {"n_critic": 1.5}, "option n_critic: .* got 1.5"),
        ("wgan_gp", {"lr": -1}, "nvalid learning rate: -1"),
        ("wgan_gp", {"betas": [0.5]}, "betas"),
        ("wgan_gp", {"betas": [0.5, 1.5]}, "nvalid beta parameter"),
        ("wgan_gp", {"gp_wieght": 10}, "did you mean 'gp_weight'"),
        ("wgan_gp", {"ema_kimg": -1}, "ema_kimg must not be negative"),
        ("wgan_gp", {"gp_weight": -1}, "gp_weight must not be negative"),
        ("dcgan", {"lr_D": 1e-4}, "no option 'lr_D'"),
        ("dcgan", {"model": 3}, "no option 'model'"),
    ],
)
def test_options_that_cannot_be_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        task(name, **options)
    assert "\n" not in caught.value.message


def test_rmsprop_takes_no_negative_rate() -> None:
    with pytest.raises(ValueError, match="lr"):
        RMSpropTF([nn.Parameter(torch.ones(1))], lr=-1)


# ---------------------------------------------------------------- encoders


@pytest.mark.parametrize("name", ["izi", "ziz", "izi_f"])
def test_an_encoder_task_steps_by_its_formula_and_leaves_the_gan_as_it_is(name: str) -> None:
    """The whole first step: loss of the definition, RMSprop of TensorFlow; G and D bit for bit unchanged, statistics too."""
    torch.manual_seed(0)
    gan = registry.build("network", "wgan_gp", SMALL)
    gan.train()
    with torch.no_grad():
        gan.G(torch.randn(16, 6))  # statistics that are not the initial ones
    E = registry.build("network", "residual_encoder", SMALL)
    job = registry.build("task", name, {"lr": 1e-3}, model=E, device=CPU, seed=4, generator=gan)
    before = {key: tensor.clone() for key, tensor in gan.state_dict().items()}
    ours = copy.deepcopy(E).double()
    frozen = copy.deepcopy(gan).double()
    G, f = frozen.G, frozen.D.features
    x = real()
    wide = x.double()
    if name == "ziz":
        z = torch.randn(8, 6, generator=torch.Generator().manual_seed(4)).double()
        loss = F.mse_loss(ours(G(z)), z)
    else:
        again = G(ours(wide))
        loss = ((wide - again) ** 2).mean()
        if name == "izi_f":
            loss = loss + ((f(wide) - f(again)) ** 2).mean()
    loss.backward()
    metrics = job.step(x, 0)
    assert float(metrics["loss"]) == pytest.approx(loss.item(), rel=1e-4)
    for mine, theirs in zip(job.E.parameters(), ours.parameters(), strict=True):
        assert theirs.grad is not None
        expected = theirs - 1e-3 * theirs.grad / (0.9 + 0.1 * theirs.grad**2 + 1e-10).sqrt()
        torch.testing.assert_close(mine.double(), expected, rtol=1e-3, atol=1e-6)
    job.step(x, 8)
    job.sample()
    assert not job.gan.training
    assert job.E.training
    assert all(torch.equal(before[key], tensor) for key, tensor in job.gan.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in job.gan.parameters())
