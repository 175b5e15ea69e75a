"""Variational autoencoders, their training and their scores, each against a closed form, a definition or another package."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import wasserstein_distance
from skimage.metrics import structural_similarity
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence
from torchvision.models import resnet34
from torchvision.transforms.functional import normalize

from gan_uad import registry
from gan_uad.config import DataConfig, load_config
from gan_uad.data.patches import PatchSet, load_patches, to_tensor
from gan_uad.errors import UserError
from gan_uad.metrics.tails import Tail
from gan_uad.networks import vae
from gan_uad.scoring.base import load_scorer

pytestmark = pytest.mark.numerical

CPU = torch.device("cpu")
RESNET34 = [3, 4, 6, 3]
TINY: dict[str, dict[str, Any]] = {
    "fc_vae": {"resolution": 16, "latent_dim": 5, "hidden": [12, 8]},
    "conv_vae": {"resolution": 16, "latent_dim": 5, "channels": [4, 6, 8]},
    "attn_conv_vae": {"resolution": 16, "latent_dim": 5, "channels": [4, 6, 8]},
    "unet_vae": {"resolution": 32, "latent_dim": 5, "channels": [8, 6, 4], "blocks": [1, 1, 1, 1]},
    "cnn_vae": {"resolution": 16, "latent_dim": 5, "channels": [4, 6], "vae_channels": [8]},
    "skin_vae": {"resolution": 16, "latent_dim": 5, "channels": [4, 6], "hidden": 7},
}


def network(name: str = "conv_vae", **options: Any) -> Any:
    torch.manual_seed(0)
    return registry.build("network", name, {**TINY[name], **options})


def task(net: Any = None, **options: Any) -> Any:
    return registry.build("task", "vae", options, model=net or network(), device=CPU, seed=0)


def pictures(n: int, side: int = 16) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(n)) * 2 - 1


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize("name", sorted(TINY))
def test_what_every_family_gives(name: str) -> None:
    net = network(name)
    images, eps = pictures(3, net.resolution), torch.randn(3, 5)
    made, mu, logvar = net.eval()(images, eps)
    assert made.shape == images.shape
    assert made.abs().max() <= 1
    assert mu.shape == logvar.shape == (3, 5)
    torch.testing.assert_close(made, net.decode(mu + logvar.exp().sqrt() * eps))
    torch.testing.assert_close(net(images)[0], net.decode(net.encode(images)[0])), "without eps from the mean"
    assert not torch.allclose(mu, logvar)
    assert (net.G.z_dim, net.G.resolution) == (5, net.resolution), "the decoder is a generator"
    net.train()(images, eps)[0].sum().backward()
    assert all(p.grad is not None for p in net.parameters()), "every weight has a part in it"


def test_the_conv_vae_is_four_convolutions_and_four_back() -> None:
    """Layer by layer, as METHODS describes it."""
    net = registry.build("network", "conv_vae", {"resolution": 64}).eval()
    kinds = [type(layer).__name__ for layer in net.E]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU"] * 4 + ["Flatten", "Linear"]
    convolutions = [type(layer).__name__ for layer in net.G.layers if "Conv" in type(layer).__name__]
    assert convolutions == ["ConvTranspose2d"] * 4
    assert sum(isinstance(layer, vae.SelfAttention) for layer in network("attn_conv_vae").E) == 3
    assert sum(isinstance(layer, vae.SelfAttention) for layer in network("attn_conv_vae").G.layers) == 2


def kinds(layers: Any) -> str:
    """As C (convolution), T (transposed), L (linear), r (ReLU), and other layers by their names."""
    names = {"Conv2d": "C", "ConvTranspose2d": "T", "Linear": "L", "ReLU": "r"}
    return " ".join(names.get(type(layer).__name__, type(layer).__name__) for layer in layers)


def test_layers_of_the_skin_vae_and_of_the_cnn_vae() -> None:
    skin, hybrid = network("skin_vae"), network("cnn_vae")
    assert kinds(skin.E) == "C r C r Flatten L r L"
    assert kinds(skin.G.layers) == "L r L r Unflatten T r T Halve"
    assert kinds(hybrid.E) == "Trunk C r Flatten L"
    assert kinds(hybrid.E[0]) == "C r MaxPool2d C r MaxPool2d"
    assert kinds(hybrid.G.layers) == "L Unflatten r T r T r T"


@pytest.mark.parametrize(
    ("preset", "millions"), [("conv_vae_64", 2.96), ("vae_256", 6.58), ("cnn_vae_256", 4.46), ("skin_vae_128", 9.28)]
)
def test_sizes_of_presets(preset: str, millions: float) -> None:
    config = load_config(preset)
    with torch.device("meta"):
        net = registry.build("network", config.model, {"resolution": config.resolution, **config.network})
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("conv_vae", {"latent_dim": 769}, "latent_dim 769 is more than the 768 values of a 16 px image"),
        ("fc_vae", {"latent_dim": 0}, "latent_dim must be at least 1"),
        ("conv_vae", {"resolution": 24}, "power of two of at least 16 px, got 24"),
        ("conv_vae", {"resolution": 8}, "power of two of at least 16 px, got 8"),
        ("conv_vae", {"stride": 3}, "stride must be 2 or 4"),
        ("conv_vae", {"stride": 4}, "at least 64 px"),
        ("conv_vae", {"channels": []}, "channels needs at least one layer"),
        ("fc_vae", {"hidden": [8, 0]}, "hidden must be at least 1"),
        ("skin_vae", {"hidden": 0}, "hidden must be at least 1"),
        ("cnn_vae", {"vae_channels": []}, "vae_channels needs at least one layer"),
        ("cnn_vae", {"vae_channels": [4] * 3}, "at least 32 px"),
        ("unet_vae", {"resolution": 16}, "at least 32 px"),
        ("unet_vae", {"channels": [4] * 6}, "make more than 32 px"),
        ("unet_vae", {"blocks": [1, 1, 1, 0]}, "blocks must be at least 1"),
    ],
)
def test_networks_that_cannot_be(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        network(name, **options)


def test_as_many_latents_as_values_are_allowed() -> None:
    assert network("fc_vae", latent_dim=768).latent_dim == 768


@pytest.mark.parametrize("channels", [6, 64, 200])
def test_attention_is_its_formula(channels: int) -> None:
    layer = vae.SelfAttention(channels).double()
    x = torch.randn(2, channels, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x, rtol=0, atol=0), "at first nothing is added"
    with torch.no_grad():
        layer.gain.fill_(0.7)
    places = x.flatten(2).transpose(1, 2)  # [N, 15, C]
    q, k, v = (places @ layer.qkv.weight[:, :, 0, 0].T + layer.qkv.bias).chunk(3, 2)
    weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[2])).softmax(2)
    added = (weights @ v) @ layer.out.weight[:, :, 0, 0].T + layer.out.bias
    expected = x + 0.7 * added.transpose(1, 2).unflatten(2, (5, 3))
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    assert q.shape[2] == {6: 8, 64: 8, 200: 24}[channels]


# ---------------------------------------------------------------- the two terms


def posterior() -> tuple[Tensor, Tensor]:
    mu = torch.tensor([[0.0, 0.0], [1.5, -2.0], [0.3, 0.1]], dtype=torch.float64)
    return mu, torch.tensor([[0.0, 0.0], [-1.0, 0.7], [-6.0, 2.0]], dtype=torch.float64)


def test_kl_is_the_closed_form() -> None:
    mu, logvar = posterior()
    q = Independent(Normal(mu, logvar.exp().sqrt()), 1)
    p = Independent(Normal(torch.zeros_like(mu), torch.ones_like(mu)), 1)
    found = vae.kl_divergence(mu, logvar)
    torch.testing.assert_close(found, kl_divergence(q, p), rtol=1e-12, atol=1e-12)
    assert found[0] == 0


def test_kl_is_what_drawing_gives() -> None:
    mu, logvar = posterior()
    eps = torch.randn(200_000, 3, 2, dtype=torch.float64)
    z = mu + logvar.exp().sqrt() * eps
    log_ratio = 0.5 * (z.square() - eps.square() - logvar).sum(2)  # log q(z) - log p(z)
    error = log_ratio.std(0) / math.sqrt(len(eps))
    assert ((log_ratio.mean(0) - vae.kl_divergence(mu, logvar)).abs() <= 4 * error + 1e-12).all()


def test_the_squared_error_is_a_gaussian_likelihood() -> None:
    x, y = pictures(3).double(), pictures(4)[:3].double()
    constant = 768 * 0.5 * math.log(math.pi)
    expected = -Normal(y, math.sqrt(0.5)).log_prob(x).sum((1, 2, 3)) - constant
    torch.testing.assert_close(vae.squared_error(x, y), expected)


# ---------------------------------------------------------------- training


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> PatchSet:
    """11 normal, 3 anomalous and 2 unknown patches of noise."""
    folder = tmp_path_factory.mktemp("patches")
    rng = np.random.default_rng(0)
    table = ["image,group,label,split"]
    for k in range(16):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{k:02d}.png")
        table.append(f"{k:02d}.png,,{'0' * (k < 11) or '1' * (k < 14)},val")
    (folder / "index.csv").write_text("\n".join(table))
    return load_patches(DataConfig(path=str(folder)), 16)


def test_beta_grows_linearly() -> None:
    made = task(beta=0.8, beta_kimg=2)
    assert [made.beta_at(n) for n in (0, 500, 2000, 9000)] == pytest.approx([0, 0.2, 0.8, 0.8])
    assert task(beta=0.8, beta_kimg=0).beta_at(0) == 0.8


def test_a_step_is_the_definition() -> None:
    """Two steps: squared error + β KL of z = μ + σ ε, by AdamW, written out."""
    made = task(lr=1e-2, weight_decay=0.1, beta=2.0, beta_kimg=0.008)
    twin = copy.deepcopy(made.model)
    optimizer = torch.optim.AdamW(twin.parameters(), 1e-2, weight_decay=0.1)
    random = torch.Generator().manual_seed(0)
    for nimg, beta in ((0, 0.0), (4, 1.0)):
        images = pictures(4)
        metrics = made.step(images, nimg)
        mu, logvar = twin.encode(images)
        again = twin.decode(mu + torch.exp(logvar / 2) * torch.randn(4, 5, generator=random))
        error = (images - again).pow(2).sum() / 4
        kl = -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum() / 4
        optimizer.zero_grad()
        (error + beta * kl).backward()
        optimizer.step()
        wanted = {"loss": error + beta * kl, "reconstruction": error, "kl": kl, "beta": torch.tensor(beta)}
        for name, value in wanted.items():
            torch.testing.assert_close(metrics[name], value.detach(), rtol=1e-5, atol=1e-6)
        for p, q in zip(made.model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_it_learns() -> None:
    made = task(network("fc_vae"), lr=2e-2, beta_kimg=0.2)
    images = F.interpolate(pictures(8, 2), 16, mode="bilinear")
    errors = [float(made.step(images, n)["reconstruction"]) for n in range(0, 320, 8)]
    assert errors[-1] < errors[0] / 2


def test_broken_gradients_do_not_reach_the_weights() -> None:
    made = task(lr=1e-2)
    made.model.E[0].weight.register_hook(lambda grad: torch.full_like(grad, math.nan))
    made.model.G.layers[0].weight.register_hook(lambda grad: torch.full_like(grad, math.inf))
    made.step(pictures(4), 0)
    assert all(p.isfinite().all() for p in made.model.parameters())


@pytest.mark.parametrize("options", [{"lr": 0}, {"weight_decay": -1}, {"beta": -1}, {"beta_kimg": -1}])
def test_options_that_cannot_be(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match="need lr > 0"):
        task(**options)


def test_it_trains_autoencoders_alone() -> None:
    net = registry.build("network", "cnn", {"resolution": 16, "channels": [4], "hidden": [4]})
    with pytest.raises(UserError, match="CNN"):
        task(net)


def test_snapshots_show_images_their_reconstructions_and_draws(patches: PatchSet) -> None:
    made = task()
    made.stream(patches, 4, 0, False, False)
    before = made.rng.get_state()
    shown = made.sample()
    assert torch.equal(before, made.rng.get_state())
    assert made.model.training
    assert shown.shape == (2 * 16 + 16, 3, 16, 16)
    everything = {tuple(image.flatten().tolist()) for image in to_tensor(patches.images)}
    assert {tuple(image.flatten().tolist()) for image in shown[0:32:2]} == everything
    net = made.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(shown[1:32:2], net(shown[0:32:2])[0], rtol=1e-4, atol=1e-5)
        z = torch.stack([torch.randn(5, generator=torch.Generator().manual_seed(k)) for k in range(16)])
        torch.testing.assert_close(shown[32:], net.decode(z), rtol=1e-4, atol=1e-5)


def test_it_is_validated_by_the_elbo_of_normals(patches: PatchSet) -> None:
    made = task(beta=0.1)
    made.step(pictures(4), 0)
    validator = made.validator(patches)
    found = validator.validate(0)
    assert (validator.metric, validator.larger) == ("val_elbo", False)
    assert made.model.training
    assert found == validator.validate(4), "no chance in it"
    net = copy.deepcopy(made.model).eval()
    with torch.no_grad():
        images = to_tensor(patches.images[:11])
        again, mu, logvar = net(images)
    error = (images - again).pow(2).sum() / 11
    kl = kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(0.0, 1.0)).sum() / 11
    expected = {"val_elbo": error + kl, "val_reconstruction": error, "val_kl": kl}
    assert found == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-5)
    with pytest.raises(UserError, match="no normal image among the 5 validation images"):
        made.validator(patches.take(np.arange(11, 16)))


# ---------------------------------------------------------------- ImageNet weights


@pytest.fixture(scope="module")
def large() -> Any:
    """A network with all of ResNet34, frozen. Its weights may be any."""
    return network("unet_vae", resolution=64, frozen=True, blocks=RESNET34)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gan_uad.features import weights

    def unreachable(*_: Any) -> None:
        raise weights.Unreachable("no network")

    monkeypatch.setattr(weights, "download", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("GAN_UAD_WEIGHTS", raising=False)


@pytest.mark.usefixtures("offline")
def test_missing_weights_are_reported(large: Any, capsys: pytest.CaptureFixture[str]) -> None:
    made = task(large)
    before = copy.deepcopy(made.model.state_dict())
    made.begin()
    note = capsys.readouterr().err
    assert "random weights" in note
    assert "resnet34-b627a593.pth" in note
    assert all(torch.equal(value, before[key]) for key, value in made.model.state_dict().items())
    with pytest.raises(UserError, match=r"resnet34-b627a593\.pth"):
        task(large, init="imagenet").begin()
    task(network("unet_vae", frozen=True)).begin()
    assert "stays frozen" in capsys.readouterr().err
    for quiet in (task(network("unet_vae"), init="none"), task()):
        quiet.begin()
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("offline")
def test_imagenet_weights_are_not_for_every_network(
    large: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"optim\.init"):
        task(init="imagenet").begin()
    monkeypatch.setenv("GAN_UAD_WEIGHTS", str(tmp_path))
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet34-b627a593.pth")
    with pytest.raises(UserError, match="resnet34"):
        task(large).begin()
    task(network("unet_vae")).begin()  # of other blocks, for which that file is not meant


def test_a_trunk_with_imagenet_weights_is_torchvisions_and_stays_so_where_it_is_frozen(
    large: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and statistics of batch norm, from the file to the end of some steps."""
    reference = resnet34(weights=None).eval()
    for module in reference.modules():  # statistics that batch norm would not start with
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
    published = reference.state_dict()
    torch.save(published, tmp_path / "resnet34-b627a593.pth")
    monkeypatch.setenv("GAN_UAD_WEIGHTS", str(tmp_path))
    made = task(large, lr=1e-1, weight_decay=0.5, init="imagenet")
    made.begin()
    images = pictures(2, 64)
    shown = normalize(images / 2 + 0.5, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        maps = torch.nn.Sequential(*list(reference.children())[:-2])(shown)
        expected = F.linear(maps.flatten(1), large.E[2].weight, large.E[2].bias).chunk(2, 1)
        for found, wanted in zip(large.encode(images), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    for n in range(2):
        made.step(pictures(4, 64), 4 * n)
    kept = large.trunk.state_dict()
    assert len(kept) == len(published) - 2, "all but its classifier"
    assert all(torch.equal(value, published[key]) for key, value in kept.items())


def test_a_frozen_trunk_is_given_to_no_optimiser() -> None:
    net = network("unet_vae", frozen=True)
    made = task(net, lr=1e-1, weight_decay=0.5)
    before = copy.deepcopy(net.trunk.state_dict())
    for n in range(2):
        made.step(pictures(4, 32), 4 * n)
    assert all(torch.equal(value, before[key]) for key, value in net.trunk.state_dict().items())
    assert not any(layer.training for layer in net.trunk.modules())
    assert net.training
    assert net.G.training
    held = {id(p) for group in made.opt.param_groups for p in group["params"]}
    assert held == {id(p) for p in net.parameters()} - {id(p) for p in net.trunk.parameters()}
    assert not torch.equal(net.E[2].weight, network("unet_vae", frozen=True).E[2].weight), "the rest is trained"


def test_a_trunk_that_is_not_frozen_is_trained() -> None:
    net = network("unet_vae")
    before = copy.deepcopy(net.trunk.state_dict())
    made = task(net, lr=1e-1)
    for n in range(2):  # its blocks begin as the identity, so that after one step only their last scales differ
        made.step(pictures(4, 32), 4 * n)
    assert not any(torch.equal(value, before[key]) for key, value in net.trunk.state_dict().items())


def test_a_frozen_encoder_of_random_weights_begins_within_bounds() -> None:
    """All its 16 blocks, since the variance of residual blocks multiplies; exp(log σ²) of hundreds would end the training."""
    net = vae.UNetVAE(64, frozen=True).train()
    with torch.no_grad():
        mu, logvar = net.encode(pictures(4, 64))
    assert float(logvar.abs().max()) < 4
    assert float(mu.abs().max()) < 4


# ---------------------------------------------------------------- scores


def scorer(net: Any = None, **options: Any) -> Any:
    options = {"perceptual": "none", **options}
    nets = {"vae": (net or network()).eval().requires_grad_(False)}
    return registry.build("scorer", "vae", options, nets=nets, device=CPU)


def test_scores_are_their_definitions() -> None:
    net = network(channels=[8, 16])
    images = pictures(5)
    made = scorer(net, perceptual="efficientnet_lite0")
    found = made.score(images)
    with torch.no_grad():
        mu, logvar = net.encode(images)
        again = net.decode(mu)
    torch.testing.assert_close(found.reconstruction, again, rtol=1e-4, atol=1e-5)
    x, y = images.double().numpy(), found.reconstruction.double().numpy()
    expected = {
        "reconstruction": ((x - y) ** 2).sum((1, 2, 3)),
        "kl": kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(0.0, 1.0)).sum(1).numpy(),
        "l1": np.abs(x - y).mean((1, 2, 3)),
        "emd": [np.mean([wasserstein_distance(x[n, c].ravel(), y[n, c].ravel()) for c in range(3)]) for n in range(5)],
    }
    for name, wanted in expected.items():
        np.testing.assert_allclose(found.components[name], wanted, rtol=1e-4, err_msg=name)
    settings = {"data_range": 2, "channel_axis": 0, "gaussian_weights": True, "use_sample_covariance": False}
    likeness = [structural_similarity(a, b, **settings) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(found.components["ssim"], 1 - np.array(likeness), atol=1e-5)
    torch.testing.assert_close(found.components["elbo"], found.components["reconstruction"] + found.components["kl"])
    torch.testing.assert_close(found.image, found.components["elbo"], rtol=0, atol=0)
    torch.testing.assert_close(found.map, (images - again).abs().mean(1), rtol=1e-4, atol=1e-5)
    from gan_uad.features.lpips import perceptual_distance

    distance = perceptual_distance("efficientnet_lite0")
    assert distance.weights in made.rests_on, "scores by other weights are others"
    torch.testing.assert_close(found.components["effnet_lite0"], distance(images, again), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["elbo", "reconstruction", "kl", "l1", "emd", "ssim"])
def test_any_part_may_be_the_score(name: str) -> None:
    found = scorer(score=name).score(pictures(3))
    assert torch.equal(found.image, found.components[name])
    assert "effnet_lite0" not in found.components
    shown = scorer(map="ssim").score(pictures(3)).map
    default = scorer().score(pictures(3)).map
    assert torch.equal(found.map, shown if name == "ssim" else default)
    assert not torch.allclose(shown, default, atol=0.1)


def test_maps_say_where() -> None:
    """An image that differs from its reconstruction more at one place: each map is highest there."""
    net = network("fc_vae", resolution=32)
    with torch.no_grad():
        for p in net.G.parameters():
            p.zero_()  # every reconstruction is grey
    images = 0.1 * pictures(2, 32)
    images[:, :, 8:16, 20:28] = pictures(2, 8)
    for options in ({"map": "l1"}, {"map": "ssim"}, {"score": "perceptual", "perceptual": "efficientnet_lite0"}):
        found = scorer(net, **options).score(images)
        assert found.map is not None
        assert found.map.shape == (2, 32, 32)
        inside = found.map[:, 8:16, 20:28].mean((1, 2))
        assert (inside > 1.1 * found.map.mean((1, 2))).all(), options
    assert torch.equal(found.image, found.components["effnet_lite0"])


@pytest.mark.parametrize("name", sorted(TINY))
def test_scores_do_not_know_their_company(name: str) -> None:
    net = network(name)
    net.train()(pictures(8, net.resolution))  # batch norm has statistics of its own
    made = scorer(net)
    images = pictures(19, net.resolution)
    together = made.score(images)
    order = torch.randperm(19)
    shuffled = made.score(images[order])
    alone = [made.score(image[None]) for image in images[:3]]
    for part, values in together.components.items():
        torch.testing.assert_close(shuffled.components[part], values[order], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(torch.cat([one.components[part] for one in alone]), values[:3], rtol=1e-5, atol=1e-6)
    assert torch.equal(made.score(images).image, together.image)


def test_a_constant_image_has_scores() -> None:
    images = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).repeat(1, 3, 16, 16)
    found = scorer(perceptual="efficientnet_lite0").score(images)
    for name, values in {**found.components, "map": found.map}.items():
        assert values.isfinite().all(), name


def test_a_saved_scorer_gives_the_same_scores(tmp_path: Path) -> None:
    made = scorer(score="ssim")
    made.fit([], [(pictures(4), torch.zeros(4))])
    made.save(tmp_path / "scorer.safetensors")
    other = {"vae": registry.build("network", "conv_vae", TINY["conv_vae"]).eval()}
    again = load_scorer(tmp_path / "scorer.safetensors", nets=other, device=CPU)
    assert torch.equal(again.score(pictures(3)).image, made.score(pictures(3)).image)
    assert torch.equal(again.calibration, made.calibration)
    assert made.compare(pictures(4))["wasserstein_1"] == 0
    assert not made.learns


@pytest.mark.parametrize(("way", "components"), [("fisher", None), ("max", ["ssim", "kl"])])
def test_parts_are_combined_by_how_rare_they_are_among_normals(tmp_path: Path, way: str, components: Any) -> None:
    """Each by the tail of validation normals; `elbo` is the sum of two others, so it does not count again. Kept in the file."""
    made = scorer(combine=way, components=components)
    with pytest.raises(UserError, match="needs validation normals"):
        made.score(pictures(1))
    normals, new = pictures(12), 0.5 * pictures(3)
    made.fit([], [(normals, torch.zeros(12))])
    known, found = made.measure(normals).components, made.score(new)
    used = components or ["reconstruction", "kl", "l1", "emd", "ssim"]
    log_p = [Tail.fit(known[name].double().numpy()).log_p(found.components[name].double().numpy()) for name in used]
    expected = -2 * np.sum(log_p, 0) if way == "fisher" else -np.min(log_p, 0)
    np.testing.assert_allclose(found.image, expected, rtol=1e-5)
    made.save(tmp_path / "scorer.safetensors")
    other = {"vae": registry.build("network", "conv_vae", TINY["conv_vae"]).eval()}
    again = load_scorer(tmp_path / "scorer.safetensors", nets=other, device=CPU)
    assert torch.equal(again.score(new).image, found.image)


def test_scorers_that_cannot_be() -> None:
    with pytest.raises(UserError, match="needs a trained VAE, not gan"):
        registry.build("scorer", "vae", {}, nets={"gan": None}, device=CPU)
    for options in ({"score": "perceptual"}, {"map": "perceptual"}):
        with pytest.raises(UserError, match="perceptual is none"):
            scorer(**options)
    with pytest.raises(UserError, match="option score: input should be"):
        scorer(score="emb")
    with pytest.raises(UserError, match="no score component is called 'emb': did you mean 'emd'"):
        scorer(combine="max", components=["emb"])
    broken = network()
    with torch.no_grad():
        broken.E[-1].bias[0] = math.nan
    with pytest.raises(UserError, match="diverged in training"):
        scorer(broken).score(pictures(1))
