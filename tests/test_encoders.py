"""From an image back to a latent: the losses are the published ones, the search lowers them and finds what it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import gan_uad
from gan_uad import registry
from gan_uad.config import DataConfig
from gan_uad.data.patches import load_patches, to_tensor
from gan_uad.errors import UserError
from gan_uad.model import Model

pytestmark = pytest.mark.numerical

# A search carries the rounding of a batched matrix product on; one that is independent differs by no more.
SEARCH = 1e-4


@pytest.fixture(scope="module")
def model(trained: Any) -> Model:
    return gan_uad.load(str(trained.encoder))


@pytest.fixture(scope="module")
def images(trained: Any) -> Tensor:
    chosen = load_patches(DataConfig(path=str(trained.patches)), 32).select("test")
    return to_tensor(chosen.gather(range(0, 40, 4)))


def inverter(model: Model, name: str, **options: Any) -> Any:
    return registry.build("inverter", name, options, nets=model.networks, device=torch.device("cpu"))


def loss_of(model: Model, x: Tensor, y: Tensor, weight: float, power: int) -> Tensor:
    """(1 − λ)·Σ|x − y|^p + λ·Σ|f(x) − f(y)|^p in float64."""
    D = model.networks["gan"].D
    with torch.no_grad():
        terms = [(x - y).double(), (D.features(x) - D.features(y)).double()]
    pixels, features = (t.abs().pow(power).flatten(1).sum(1) for t in terms)
    return (1 - weight) * pixels + weight * features


@pytest.mark.parametrize(("norm", "power"), [("l1", 1), ("l2", 2)])
@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0])
def test_the_anogan_loss(model: Model, images: Tensor, norm: str, power: int, weight: float) -> None:
    found = inverter(model, "anogan", steps=2, norm=norm, weight=weight, lr=1e-12).invert(images)
    # With a rate of nearly zero the last loss is that of the start, whose reconstruction is what is returned.
    torch.testing.assert_close(
        found.loss_history[-1].double(),
        loss_of(model, images, found.reconstruction, weight, power),
        rtol=1e-5,
        atol=1e-6,
    )
    with torch.no_grad():
        torch.testing.assert_close(model.networks["gan"].G(found.latent), found.reconstruction)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_search_lowers_the_loss(model: Model, images: Tensor, norm: str) -> None:
    found = inverter(model, "anogan", steps=40, norm=norm).invert(images)
    assert found.loss_history.shape == (40, len(images))
    assert found.latent.shape == (len(images), model.networks["gan"].G.z_dim)
    assert found.reconstruction.shape == images.shape
    assert found.steps.tolist() == [40] * len(images)
    assert bool((found.loss_history[-1] < 0.97 * found.loss_history[0]).all())


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_search_finds_generated_images(model: Model, images: Tensor, norm: str) -> None:
    """In 70 steps, to less than a quarter of the distance to another generated image, and of what a real one is left with."""
    made = model.generate(list(range(100, 104)))
    found = inverter(model, "anogan", steps=70, lr=0.1, norm=norm).invert(torch.cat([made, images[:4]]))
    error, real = (torch.cat([made, images[:4]]) - found.reconstruction).square().mean((1, 2, 3)).split(4)
    other = (made - made.roll(1, 0)).square().mean((1, 2, 3))
    assert float(error.mean()) < 0.25 * float(other.mean())
    assert float(error.mean()) < 0.25 * float(real.mean())


def test_an_image_does_not_feel_its_neighbours(model: Model, images: Tensor) -> None:
    search = inverter(model, "anogan", steps=15)
    together = search.invert(images)
    alone = torch.cat([search.invert(images[i : i + 1]).latent for i in range(3)])
    torch.testing.assert_close(alone, together.latent[:3], rtol=SEARCH, atol=SEARCH)
    backwards = search.invert(images.flip(0)).latent.flip(0)
    torch.testing.assert_close(backwards, together.latent, rtol=SEARCH, atol=SEARCH)


def test_the_start_depends_on_the_seed_and_nothing_else(model: Model, images: Tensor) -> None:
    torch.manual_seed(1)
    first = inverter(model, "anogan", steps=3).invert(images).latent
    torch.manual_seed(2)
    assert torch.equal(first, inverter(model, "anogan", steps=3).invert(images).latent)
    other = inverter(model, "anogan", steps=3, seed=1).invert(images).latent
    assert float((first - other).abs().mean()) > 0.5
    assert float((first[0] - first[1]).abs().mean()) > 0.5  # two images do not start at the same latent


def test_a_search_leaves_the_networks_alone(model: Model, images: Tensor) -> None:
    before = {k: v.clone() for k, v in model.networks["gan"].state_dict().items()}
    inverter(model, "anogan", steps=3).invert(images)
    assert all(torch.equal(before[k], v) for k, v in model.networks["gan"].state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in model.networks["gan"].parameters())


def test_one_pass_of_the_encoder(model: Model, images: Tensor) -> None:
    E, G = model.networks["encoder"], model.networks["gan"].G
    search = inverter(model, "izi_f")
    found = search.invert(images)
    with torch.no_grad():
        torch.testing.assert_close(found.latent, E(images))
        torch.testing.assert_close(found.reconstruction, G(E(images)))
        again = E(found.reconstruction)
    expected = (found.latent - again).square().mean(1)
    torch.testing.assert_close(search.latent_distance(found.latent, found.reconstruction), expected)
    assert (found.steps.tolist(), found.loss_history.shape) == ([0] * len(images), (0, len(images)))


@pytest.mark.parametrize(("name", "options"), [("anogan", {"steps": 12, "lr": 0.2}), ("izi_f", {"kappa": 0.7})])
def test_reconstructions_of_an_unbounded_generator_are_clamped(name: str, options: dict[str, Any]) -> None:
    """StyleGAN2 ends without a tanh; what is returned, scored and drawn is the clamped image."""
    torch.manual_seed(0)
    style = {"w_dim": 8, "mapping_layers": 2, "channel_max": 16}
    sizes = {"resolution": 32, "z_dim": 8, "channel_base": 128}
    nets = {"gan": registry.build("network", "stylegan2", sizes | style)}
    nets["encoder"] = registry.build("network", "residual_encoder", sizes)
    G, D = nets["gan"].G, nets["gan"].D
    with torch.no_grad():
        G.synthesis.to_rgb[-1].bias.fill_(0.8)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    search = registry.build("inverter", name, options | {"micro_batch": 3}, nets=nets, device=torch.device("cpu"))
    found = search.invert(images)
    with torch.no_grad():
        made = G(found.latent)
    assert float(made.max()) > 1.05
    assert torch.equal(found.reconstruction, made.clamp(-1, 1))
    scores = registry.build("scorer", "gan_inversion", {"smooth": 0}, inverter=search).score(images)
    shown = scores.reconstruction
    torch.testing.assert_close(shown, found.reconstruction, rtol=0, atol=0)
    assert float(shown.max()) == 1
    pixels, features = images - shown, D.features(images) - D.features(shown)
    if name == "anogan":
        assert bool((found.loss_history[-1] < found.loss_history[0]).all())
        expected = 0.9 * pixels.abs().sum((1, 2, 3)) + 0.1 * features.abs().sum(1)
    else:
        expected = pixels.square().mean((1, 2, 3)) + 0.7 * features.square().mean(1)
    torch.testing.assert_close(scores.image, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(scores.map, pixels.abs().mean(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, lr"),
        ({"steps": 2.5}, "option steps"),
        ({"weight": 1.5}, r"weight \(λ\) in \[0, 1\]"),
        ({"norm": "l3"}, "norm must be l1 or l2"),
        ({"lr": "fast"}, "option lr"),
        ({"lr": -1.0}, "lr above 0"),
        ({"micro_batch": 0}, "micro_batch must be at least 1"),
        ({"step": 5}, "'steps'"),
        ({"device": "cpu"}, "'device'"),
    ],
)
def test_bad_options_are_one_line(model: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        inverter(model, "anogan", **options)
    assert "\n" not in caught.value.message


def test_an_encoder_that_is_not_there(trained: Any) -> None:
    generator = gan_uad.load(str(trained.generator))
    for name in ("izi_f", "izi", "ziz"):
        with pytest.raises(UserError, match="gan-uad train izi_f_64"):
            generator.scorer(name)


def task(trained: Any, name: str, **options: Any) -> Any:
    encoder, generator = gan_uad.load(str(trained.encoder)), gan_uad.load(str(trained.generator))
    net = encoder.networks["encoder"].requires_grad_(True)
    given = {"model": net, "device": torch.device("cpu"), "seed": 3, "generator": generator.networks["gan"]}
    return registry.build("task", name, options, **given)


def test_the_losses_of_the_three_trainings(trained: Any, images: Tensor) -> None:
    """izi, ziz and izi_f as f-AnoGAN (section 2.2) states them."""
    izi, izi_f, ziz = task(trained, "izi"), task(trained, "izi_f", kappa=0.5), task(trained, "ziz")
    gan = izi.gan
    made = gan.G(izi.E(images))
    pixels = (images - made).square().mean()
    features = (gan.D.features(images) - gan.D.features(made)).square().mean()
    torch.testing.assert_close(izi.loss(images, None)[0], pixels)
    total, parts = izi_f.loss(images, None)
    torch.testing.assert_close(total, pixels + 0.5 * features, rtol=1e-5, atol=1e-6)
    assert set(parts) == {"residual", "features"}
    z = torch.randn(len(images), gan.G.z_dim, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(ziz.draw(len(images)), z)
    torch.testing.assert_close(ziz.loss(images, z)[0], (z - ziz.E(gan.G(z))).square().mean())


@pytest.mark.parametrize("name", ["izi", "izi_f", "ziz"])
def test_a_training_lowers_its_loss_and_touches_only_the_encoder(trained: Any, images: Tensor, name: str) -> None:
    job = task(trained, name, lr=5e-3)
    before = {k: v.clone() for k, v in job.gan.state_dict().items()}
    losses = [float(job.step(images, 0)["loss"]) for _ in range(25)]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert all(torch.equal(before[k], v) for k, v in job.gan.state_dict().items())


def test_an_encoder_of_another_size_is_refused(trained: Any) -> None:
    generator = gan_uad.load(str(trained.generator)).networks["gan"]
    net = registry.build("network", "residual_encoder", {"resolution": 32, "z_dim": 7, "channel_base": 64})
    with pytest.raises(UserError, match="z_dim 7, 32 px"):
        registry.build("task", "izi", {}, model=net, device=torch.device("cpu"), seed=0, generator=generator)


def test_the_run_says_which_inverter_it_trained(trained: Any, tmp_path: Path) -> None:
    assert gan_uad.load(str(trained.encoder)).scorer().inverter.spec["name"] == "izi_f"  # type: ignore[attr-defined]
    assert gan_uad.load(str(trained.generator)).scorer().inverter.spec["name"] == "anogan"  # type: ignore[attr-defined]
