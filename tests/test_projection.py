"""The search for the closest image: against a plain transcription of the original, its steps against their definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from projection_tools import colour_distance, made, toy
from torch import Tensor

from encoders.base import pixel_seed
from encoders.noise import autocorrelation, renormalise_
from encoders.projection import LatentSearch, mapped_w, w_centres, w_statistics
from encoders.search import RowAdam, Schedule
from gan_uad import http as download
from gan_uad import registry
from gan_uad.errors import JobFailed, UserError

pytestmark = pytest.mark.numerical

CPU = torch.device("cpu")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A distance that costs nothing, whatever is asked for."""
    monkeypatch.setattr("encoders.projection.perceptual_distance", colour_distance)


@pytest.fixture(scope="module")
def nets() -> dict[str, Any]:
    return toy("stylegan2")


def search(nets: dict[str, Any], name: str = "w", **options: Any) -> Any:
    return registry.build("inverter", name, {"micro_batch": 2, **options}, nets=nets, device=CPU)


# ---------------------------------------------------------------- the steps


def maps_of(sides: list[int], count: int = 3) -> list[Tensor]:
    rng = torch.Generator().manual_seed(1)
    return [torch.randn(count, 1, side, side, generator=rng) + 0.1 for side in sides]


def test_the_noise_regulariser() -> None:
    """Each map alone, pixel by pixel, in float64."""
    maps = maps_of([4, 8, 8, 16, 16, 32])
    expected = np.zeros(3)
    for noise in maps:
        for i, image in enumerate(noise[:, 0].double().numpy()):
            while True:
                side = len(image)
                right = sum(image[y, x] * image[y, (x + 1) % side] for y in range(side) for x in range(side))
                down = sum(image[y, x] * image[(y + 1) % side, x] for y in range(side) for x in range(side))
                expected[i] += (right / side**2) ** 2 + (down / side**2) ** 2
                if side <= 8:
                    break
                image = image.reshape(side // 2, 2, side // 2, 2).mean((1, 3))
    np.testing.assert_allclose(autocorrelation(maps).numpy(), expected, rtol=1e-4)


def test_renormalised_noise_has_mean_0_and_variance_1() -> None:
    maps = maps_of([4, 16])
    renormalise_(maps)
    for noise in maps:
        values = noise.double().flatten(1)
        torch.testing.assert_close(values.mean(1), torch.zeros(3).double(), rtol=0, atol=1e-6)
        torch.testing.assert_close(values.square().mean(1), torch.ones(3).double(), rtol=1e-5, atol=0)


def test_mean_and_spread_of_w(nets: dict[str, Any]) -> None:
    """Of 10,000 w, in float64; the spread is one number, √w_dim larger than that of a single dimension."""
    w = mapped_w(nets["gan"].G)
    assert w.shape == (10_000, 8)
    z = torch.from_numpy(np.random.RandomState(123).randn(10_000, 8)[:64].astype(np.float32))
    torch.testing.assert_close(w[:64], nets["gan"].G.mapping(z))
    mean, std = w_statistics(w)
    values = w.double().numpy()
    centre = values.mean(0)
    np.testing.assert_allclose(mean.numpy(), centre, rtol=1e-5, atol=1e-7)
    assert std == pytest.approx(math.sqrt(sum(float(np.sum((row - centre) ** 2)) for row in values) / 10_000))
    assert std == pytest.approx(math.sqrt(8) * np.sqrt(values.var(0).mean()))


def test_adam_of_rows_at_different_steps() -> None:
    """Each row as torch.optim.Adam has it, also one that starts again."""
    rng = torch.Generator().manual_seed(0)
    values = torch.randn(3, 5, generator=rng)
    singles = [torch.nn.Parameter(row.clone()) for row in values]
    torchs = [torch.optim.Adam([row], 1.0) for row in singles]
    rows = RowAdam(values)
    for step in range(12):
        if step == 7:
            rows.reset(1)
            torchs[1] = torch.optim.Adam([singles[1]], 1.0)
        grad = torch.randn(3, 5, generator=rng) * torch.tensor([[1.0], [1e-6], [100.0]])
        rates = [0.0 if step == 0 else 0.1, 0.02 * step, 0.05]
        rows.step_(values, grad, rates)
        for i, optimizer in enumerate(torchs):
            optimizer.param_groups[0]["lr"] = rates[i]
            singles[i].grad = grad[i]
            optimizer.step()
    torch.testing.assert_close(values, torch.stack([row.data for row in singles]), rtol=1e-5, atol=1e-6)


def test_the_schedule() -> None:
    """Learning rate and noise of 1000 steps at places that can be worked out by hand."""
    schedule = Schedule(1000, 0.1)
    rates = {0: 0.0, 1: 0.002, 25: 0.05, 50: 0.1, 749: 0.1, 875: 0.05, 1000: 0.0}
    assert {step: schedule.rate(step) for step in rates} == pytest.approx(rates, abs=1e-12)
    assert schedule.rate(917) == pytest.approx(0.1 * (0.5 - 0.5 * math.cos(math.pi * 0.083 / 0.25)))
    noise = {0: 1.0, 375: 0.25, 600: 0.04, 750: 0.0, 900: 0.0}
    assert {step: schedule.exploration(step) for step in noise} == pytest.approx(noise)


def test_when_a_loss_has_settled() -> None:
    """1000 steps, windows of 50: not before there are two of them after the rise, not while it falls by the share, not twice."""
    schedule, never = Schedule(1000, 0.1, tol=0.01), Schedule(1000, 0.1)
    flat = [1.0] * 400
    assert schedule.after(148, flat[:149]) == 149
    assert schedule.after(149, flat[:150]) == 750
    assert never.after(399, flat) == 400
    assert schedule.after(399, [1.0] * 350 + [0.98] * 50) == 400
    assert schedule.after(399, [1.0] * 350 + [0.995] * 50) == 750
    assert schedule.after(399, [1.0] * 350 + [1.1] * 50) == 750
    assert schedule.after(800, flat) == 801


# ---------------------------------------------------------------- end to end


def plain_search(
    G: Any, space: str, image: Tensor, steps: int, rng: torch.Generator, noise_weight: float
) -> tuple[Tensor, list[Tensor], list[float]]:
    """One image, one network pass at a time, with torch's Adam, written after METHODS' description of the original."""
    distance = colour_distance()
    z = torch.from_numpy(np.random.RandomState(123).randn(10_000, G.z_dim).astype(np.float32))
    with torch.no_grad():
        w = G.mapping(z)
    w_avg, w_std = w.mean(0), ((w - w.mean(0)).square().sum() / 10_000).sqrt()
    layers = G.synthesis.num_ws
    start = w_avg[None] if space == "w" else w_avg.expand(1, layers, -1)
    latent = start.clone().requires_grad_()
    noise = [torch.randn(shape, generator=rng)[None].requires_grad_() for shape in G.synthesis.noise_shapes]
    optimizer = torch.optim.Adam([latent, *noise], betas=(0.9, 0.999))
    target, losses = distance.features(image), []
    for step in range(steps):
        t = step / steps
        ramp = 0.5 - 0.5 * math.cos(min(1.0, (1 - t) / 0.25) * math.pi)
        optimizer.param_groups[0]["lr"] = 0.1 * ramp * min(1.0, t / 0.05)
        scale = 0.05 * w_std * max(0.0, 1 - t / 0.75) ** 2
        seen = latent
        if scale > 0:
            seen = latent + torch.randn(latent.shape[1:], generator=rng) * scale
        ws = seen[:, None].expand(-1, layers, -1) if space == "w" else seen
        reached = distance.distance(distance.features(G.synthesis(ws, noise), check=False), target)
        regulariser = torch.zeros(())
        for octave in noise:
            while True:
                for axis in (2, 3):
                    regulariser = regulariser + (octave * torch.roll(octave, 1, axis)).mean() ** 2
                if octave.shape[2] <= 8:
                    break
                octave = F.avg_pool2d(octave, 2)
        optimizer.zero_grad()
        (reached.sum() + noise_weight * regulariser).backward()
        optimizer.step()
        losses.append(reached.item())
        with torch.no_grad():
            for octave in noise:
                octave -= octave.mean()
                octave *= octave.square().mean().rsqrt()
    return latent.detach(), [octave.detach() for octave in noise], losses


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("name", "space", "weight", "options"), [("w", "w", 1e5, {}), ("w_plus", "ws", 0.1, {"noise_weight": 0.1})]
)
def test_the_search_is_the_published_one(
    nets: dict[str, Any], name: str, space: str, weight: float, options: dict[str, Any]
) -> None:
    images, steps = made(nets, 3), 14
    found = search(nets, name, steps=steps, **options).invert(images)
    assert found.space == space
    assert found.steps.tolist() == [steps] * 3
    for i in (0, 2) if space == "w" else (2,):
        rng = torch.Generator().manual_seed(pixel_seed(images[i], 0) + (1 << 32))
        latent, noise, losses = plain_search(nets["gan"].G, space, images[i : i + 1], steps, rng, weight)
        torch.testing.assert_close(found.loss_history[:, i], torch.tensor(losses), rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(found.latent[i : i + 1], latent, rtol=1e-2, atol=1e-3)
        for ours, theirs in zip(found.noise, noise, strict=True):
            torch.testing.assert_close(ours[i : i + 1], theirs, rtol=1e-2, atol=1e-2)


@pytest.mark.usefixtures("quick")
def test_a_generated_image_is_found_again(nets: dict[str, Any]) -> None:
    """To less than half the distance to another one; what is returned is what its latent and noise maps make."""
    images = made(nets, 2)
    job = search(nets, steps=80)
    found = job.invert(images)
    reached, other = job.measure(images, found.reconstruction), job.measure(images, images.flip(0))
    assert bool((reached < 0.45 * other).all())
    G = nets["gan"].G
    with torch.no_grad():
        again = G.synthesis(G.spread(found.latent), found.noise).clamp(-1, 1)
    torch.testing.assert_close(again, found.reconstruction)
    for noise in found.noise:
        torch.testing.assert_close(noise.square().mean((1, 2, 3)), torch.ones(2), rtol=1e-4, atol=0)
    assert float(found.reconstruction.abs().max()) <= 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("family", "name"),
    [("stylegan2", "z"), ("stylegan", "w"), ("stylegan", "w_plus"), ("pgan", "z"), ("wgan_gp", "z"), ("dcgan", "z")],
)
def test_every_family_is_searched(family: str, name: str) -> None:
    here = toy(family)
    images = made(here, 2)
    before = {key: value.clone() for key, value in here["gan"].state_dict().items()}
    found = search(here, name, steps=24).invert(images)
    assert bool((found.loss_history[-1] < 0.8 * found.loss_history[:2].mean(0)).all())
    assert found.space == {"w_plus": "ws"}.get(name, name)
    assert (found.noise is None) == (not family.startswith("style"))
    after = here["gan"].state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.grad is None for p in here["gan"].parameters())


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("options", [{"tol": 0.2, "steps": 32}, {"restarts": 2, "steps": 6}])
def test_an_image_does_not_feel_its_neighbours(nets: dict[str, Any], options: dict[str, Any]) -> None:
    """In any order and company, also where the others end sooner: the same latent, noise, loss and number of steps."""
    images = torch.cat([made(nets, 2), torch.rand(1, 3, 32, 32) * 2 - 1])
    job = search(nets, **options)
    together = job.invert(images)
    assert "restarts" in options or len(set(together.steps.tolist())) > 1
    for order in ([2, 0], [1]):
        found = job.invert(images[order])
        torch.testing.assert_close(found.latent, together.latent[order], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.reconstruction, together.reconstruction[order], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.noise[3], together.noise[3][order], rtol=1e-5, atol=1e-5)
        assert torch.equal(found.steps, together.steps[order])


@pytest.mark.usefixtures("quick")
def test_an_image_that_settles_ends_early(nets: dict[str, Any]) -> None:
    images = made(nets, 2)
    found = search(nets, steps=40, tol=0.9).invert(images)
    # The rise and two windows of 10, then the fall.
    assert found.steps.tolist() == [22 + 10] * 2
    assert found.loss_history.shape == (32, 2)
    noise = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1  # of which little can be made
    mixed = search(nets, steps=32, tol=0.2).invert(torch.cat([images[:1], noise]))
    assert len(set(mixed.steps.tolist())) == 2
    for i, steps in enumerate(mixed.steps.tolist()):
        assert bool(mixed.loss_history[:steps, i].isfinite().all())
        assert bool(mixed.loss_history[steps:, i].isnan().all())


@pytest.mark.usefixtures("quick")
def test_random_numbers_follow_the_seed_and_the_pixels(nets: dict[str, Any]) -> None:
    image = made(nets, 1)
    torch.manual_seed(1)
    first = search(nets, steps=6).invert(image)
    torch.manual_seed(2)
    again = search(nets, steps=6).invert(image)
    assert torch.equal(first.latent, again.latent)
    assert torch.equal(first.noise[5], again.noise[5])
    other = search(nets, steps=6, seed=1).invert(image)
    assert float((other.noise[5] - first.noise[5]).abs().mean()) > 0.5


@pytest.mark.usefixtures("quick")
def test_restarts_keep_the_closest_of_the_clusters(nets: dict[str, Any]) -> None:
    """With a rate of nearly zero the result is the start, so the best centre of all is known."""
    G = nets["gan"].G
    for layer in G.synthesis.layers:
        layer.noise_strength.data.zero_()
    try:
        images = made(nets, 3)
        job = search(nets, steps=1, restarts=4)
        centres = w_centres(mapped_w(G), 4, 0)
        with torch.no_grad():
            shown = G.synthesis(G.spread(centres)).clamp(-1, 1)
        distances = torch.stack([job.measure(images, shown[k : k + 1].expand(3, -1, -1, -1)) for k in range(4)])
        found = job.invert(images)
        torch.testing.assert_close(found.latent, centres[distances.argmin(0)])
        torch.testing.assert_close(job.measure(images, found.reconstruction), distances.amin(0))
    finally:
        for layer in G.synthesis.layers:
            layer.noise_strength.data.fill_(0.05)


@pytest.mark.usefixtures("quick")
def test_a_start_of_ones_own(nets: dict[str, Any]) -> None:
    """What `start` gives is where the search begins (whose very first learning rate is 0)."""
    maps = [torch.randn(2, *shape) for shape in nets["gan"].G.synthesis.noise_shapes]
    renormalise_(maps)
    latent = torch.randn(2, 8, 8)

    class Own(LatentSearch):
        space = "ws"

        def start(self, images: Tensor, attempt: int = 0) -> tuple[Tensor, list[Tensor] | None]:
            return latent[:, : self.latent_shape[0]], maps

    found = Own(nets, CPU, steps=1, micro_batch=2).invert(made(nets, 1))
    assert torch.equal(found.latent, latent[:1, : found.latent.shape[1]])
    torch.testing.assert_close(found.noise[4], maps[4][:1])


@pytest.mark.usefixtures("quick")
def test_images_above_256_px_are_compared_at_256(nets: dict[str, Any]) -> None:
    job, distance = search(nets), colour_distance()
    for side, small in ((512, 256), (128, 128)):
        a, b = torch.rand(2, 1, 3, side, side) * 2 - 1
        means = [x.unflatten(3, (small, -1)).unflatten(2, (small, -1)).mean((3, 5)) for x in (a, b)]
        torch.testing.assert_close(job.measure(a, b), distance(*means), rtol=1e-4, atol=0)


def test_with_a_real_network(nets: dict[str, Any]) -> None:
    images = made(nets, 1)
    job = search(nets, steps=12, perceptual="efficientnet_lite0", micro_batch=1)
    found = job.invert(images)
    assert job.measured == "EffNetLite0 distance"
    assert job.rests_on
    torch.testing.assert_close(job.measure(images, found.reconstruction), job.perceptual(images, found.reconstruction))
    assert float(found.loss_history[-1]) < 0.9 * float(found.loss_history[0])


# ---------------------------------------------------------------- what is refused


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"lr": 0}, "lr above 0"),
        ({"lr": float("nan")}, "lr above 0"),
        ({"tol": 1.0}, r"tol must be in \[0, 1\)"),
        ({"restarts": 0}, r"restarts in \[1, 100\]"),
        ({"restarts": 101}, r"restarts in \[1, 100\]"),
        ({"noise_weight": -0.1}, "noise_weight must not be negative"),
        ({"kappa": float("nan")}, "kappa"),
        ({"micro_batch": 0}, "micro_batch must be at least 1"),
        ({"step": 5}, "'steps'"),
        ({"kappa": -1.0}, "kappa"),
    ],
)
def test_bad_options_are_one_line(nets: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        search(nets, **options)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("options", [{"lr": math.nan}, {"lr": math.inf}, {"weight": math.nan}])
def test_numbers_that_are_none(nets: dict[str, Any], options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="lr above 0 and weight"):
        search(nets, "anogan", **options)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["w", "w_plus"])
def test_a_generator_without_w(name: str) -> None:
    with pytest.raises(UserError, match="--inverter z"):
        search(toy("wgan_gp"), name)


def test_an_unknown_distance(nets: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"vgg, alex, efficientnet_lite0, .*'resnet'"):
        search(nets, perceptual="resnet")


@pytest.mark.parametrize("name", ["vgg", "alex"])
def test_missing_weights_name_the_embedded_distance(
    nets: dict[str, Any], name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any) -> None:
        raise download.Unreachable("no network")

    monkeypatch.setenv("GAN_UAD_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr("gan_uad.features.weights.download", unreachable)
    with pytest.raises(UserError, match="perceptual=efficientnet_lite0") as caught:
        search(nets, perceptual=name)
    assert "\n" not in caught.value.message


@pytest.mark.usefixtures("quick")
def test_images_that_are_none(nets: dict[str, Any]) -> None:
    job = search(nets, steps=1)
    broken = torch.zeros(1, 3, 32, 32)
    broken[0, 0, 3, 3] = torch.nan
    for images in (broken, torch.zeros(1, 3, 64, 64), torch.zeros(0, 3, 32, 32), torch.full((1, 3, 32, 32), 3.0)):
        with pytest.raises(ValueError):
            job.invert(images)


@pytest.mark.usefixtures("quick")
def test_a_search_that_diverges_says_so(nets: dict[str, Any]) -> None:
    with pytest.raises(JobFailed, match=r"step 3.*lower lr than 1e\+38"):
        search(nets, steps=20, lr=1e38).invert(made(nets, 1))
