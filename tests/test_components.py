"""Components of the score of an inversion: each against its formula, for any other images; combined, calibrated, kept."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_tools import same
from sklearn.covariance import ledoit_wolf
from torch import Tensor

import gan_uad
from encoders.base import Inversion, Inverter, pixel_seed
from gan_uad import registry
from gan_uad.checkpoint import save_model
from gan_uad.errors import UserError
from gan_uad.features.lpips import perceptual_distance
from gan_uad.metrics.calibration import tail_probability
from gan_uad.metrics.tails import Tail
from gan_uad.scoring.base import PIXELS, Scorer, Scores, load_scorer
from gan_uad.scoring.components import LatentCloud, painted, shell_distance, smoothed
from gan_uad.scoring.distance import ImageDistance

pytestmark = pytest.mark.numerical

CPU = torch.device("cpu")
STYLE = {"z_dim": 6, "w_dim": 6, "mapping_layers": 2, "channel_base": 64, "channel_max": 8}
PLAIN = {"z_dim": 6, "channel_base": 64, "channel_max": 8}


class Guess(Inverter):
    """Latents and noise maps that follow from an image's pixels; finds nothing."""

    def __init__(self, nets: dict[str, Any], space: str, noise: bool = False, perceptual: Any = None) -> None:
        super().__init__(nets, CPU, ImageDistance("l1", "sum", 0.9, 0.1), 4)
        self.space, self.with_noise, self.perceptual, self.spec = (
            space,
            noise,
            perceptual,
            {"name": "guess", "options": {}},
        )

    def _invert(self, images: Tensor) -> Inversion:
        G = self.generator
        shape = {"z": (G.z_dim,), "w": (6,), "ws": (getattr(getattr(G, "synthesis", None), "num_ws", 0), 6)}[self.space]
        rngs = [torch.Generator().manual_seed(pixel_seed(image, 0)) for image in images]
        latent = torch.stack([torch.randn(shape, generator=rng) for rng in rngs])
        noise = None
        if self.with_noise:
            noise = [torch.stack([torch.randn(s, generator=rng) for rng in rngs]) for s in G.synthesis.noise_shapes]
        with torch.no_grad():
            if self.space == "z":
                made = G(latent)
            else:
                made = G.synthesis(
                    latent if self.space == "ws" else G.spread(latent), "const" if noise is None else noise
                )
        steps = torch.zeros(len(images), dtype=torch.long)
        return Inversion(latent, made.clamp(-1, 1), steps, torch.zeros(0, len(images)), noise, self.space)

    def measure(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        if self.perceptual is None:
            return super().measure(images, reconstruction)
        found: Tensor = self.perceptual(images, reconstruction)
        return found


@pytest.fixture(scope="module")
def style() -> Any:
    torch.manual_seed(0)
    gan = registry.build("network", "stylegan2", {"resolution": 32, **STYLE}).eval()
    with torch.no_grad():
        for layer in gan.G.synthesis.layers:
            layer.noise_strength.fill_(0.3)
    return gan


@pytest.fixture(scope="module")
def plain() -> Any:
    torch.manual_seed(0)
    return registry.build("network", "dcgan", {"resolution": 32, **PLAIN}).eval()


@pytest.fixture(scope="module")
def effnet() -> Any:
    return perceptual_distance("efficientnet_lite0")


def pictures(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def scorer_of(gan: Any, space: str, noise: bool = False, theirs: Any = None, **options: Any) -> Scorer:
    found: Scorer = registry.build(
        "scorer", "gan_inversion", options, inverter=Guess({"gan": gan}, space, noise, theirs)
    )
    return found


def test_the_differences_of_images(style: Any, effnet: Any) -> None:
    images = pictures(6)
    scores = scorer_of(style, "ws", True, perceptual="efficientnet_lite0", smooth=0).score(images)
    assert list(scores.components) == ["residual", "features", "l1", "l2", "effnet_lite0", "w_mahalanobis", "noise"]
    away = (images - scores.reconstruction).double()
    with torch.no_grad():
        features = (style.D.features(images) - style.D.features(scores.reconstruction)).double()
        expected = {
            "residual": away.abs().sum((1, 2, 3)),
            "features": features.abs().sum(1),
            "l1": away.abs().mean((1, 2, 3)),
            "l2": away.square().mean((1, 2, 3)),
            "effnet_lite0": effnet(images, scores.reconstruction).double(),
        }
        maps = effnet.maps(images, scores.reconstruction)
    for name, values in expected.items():
        torch.testing.assert_close(scores.components[name].double(), values, rtol=1e-5, atol=1e-7)
    own = 0.9 * expected["residual"] + 0.1 * expected["features"]
    torch.testing.assert_close(scores.image.double(), own, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(scores.map.double(), away.abs().mean(1))  # not calibrated
    torch.testing.assert_close(scores.maps["effnet_lite0"], maps, rtol=1e-4, atol=1e-5)


def test_whose_perceptual_distance_it_is(style: Any, plain: Any, effnet: Any) -> None:
    """The inverter's own, unless an option says otherwise; where it has one, it minimises that."""
    images = pictures(2)
    assert "effnet_lite0" not in scorer_of(plain, "z").score(images).components
    found = scorer_of(style, "w", theirs=effnet).score(images)
    assert torch.equal(found.image, found.components["effnet_lite0"])
    without = scorer_of(style, "w", theirs=effnet, perceptual="none").score(images)
    assert "effnet_lite0" not in without.components
    assert torch.equal(without.image, found.image)
    again = scorer_of(style, "w", theirs=effnet, perceptual="efficientnet_lite0")
    assert again.perceptual is effnet
    assert again.rests_on == effnet.weights


def test_w_against_the_cloud_of_mapped_z(style: Any) -> None:
    with torch.no_grad():
        z = torch.randn(10_000, 6, generator=torch.Generator().manual_seed(0))
        cloud = style.G.mapping(z).double().numpy()
        cov = ledoit_wolf(cloud)[0]
        images = pictures(3)
        for space in ("z", "w", "ws"):
            latent = Guess({"gan": style}, space).invert(images).latent
            w = style.G.mapping(latent) if space == "z" else latent
            rows = w.double().numpy().reshape(-1, 6) - cloud.mean(0)
            distances = np.sqrt(np.einsum("nd,nd->n", rows, np.linalg.solve(cov, rows.T).T))
            found = scorer_of(style, space).score(images).components["w_mahalanobis"]
            np.testing.assert_allclose(found, distances.reshape(3, -1).mean(1), rtol=1e-4)
        own = LatentCloud(style.G).distance(style.G.mapping(z[:500]))
    assert float(own.square().mean()) == pytest.approx(6, rel=0.1)  # χ² of w_dim degrees of freedom


def test_a_generator_that_maps_all_z_to_one_w(style: Any) -> None:
    torch.manual_seed(0)
    collapsed = registry.build("network", "stylegan2", {"resolution": 32, **STYLE}).eval()
    with torch.no_grad():
        for parameter in collapsed.G.mapping.parameters():
            parameter.zero_()
    with pytest.raises(UserError, match="almost the same w"):
        scorer_of(collapsed, "w").score(pictures(1))


def test_z_off_the_shell() -> None:
    z = torch.randn(20_000, 50, generator=torch.Generator().manual_seed(0))
    assert float(shell_distance(z).square().mean()) == pytest.approx(1, rel=0.05)  # standard deviations
    for size, expected in ((0.0, 5.0), (50**0.5, 0.0), (100**0.5, 5.0)):
        vector = torch.zeros(1, 50)
        vector[0, 7] = size
        assert float(shell_distance(vector)) == pytest.approx(expected, abs=1e-4)


def test_what_noise_maps_painted(style: Any) -> None:
    """0 for the generator's own maps; all that differs from its own image of the latent where the maps lead to the image itself."""
    G = style.G
    with torch.no_grad():
        for space in ("w", "ws"):
            found = Guess({"gan": style}, space, True).invert(pictures(4))
            ws = found.latent if space == "ws" else G.spread(found.latent)
            own = G.synthesis(ws).clamp(-1, 1)
            assert bool((painted(G, ws, pictures(4), own) == 0).all())
            gained = painted(G, ws, found.reconstruction, found.reconstruction)
            torch.testing.assert_close(gained, (found.reconstruction - own).square().mean((1, 2, 3)))
            assert float(gained.min()) > 1e-4
            images = pictures(4)
            components = scorer_of(style, space, True).score(images).components
            expected = (images - own).double().square() - (images - found.reconstruction).double().square()
            torch.testing.assert_close(components["noise"].double(), expected.mean((1, 2, 3)), rtol=1e-4, atol=1e-6)
    assert "noise" not in scorer_of(style, "w").score(images).components


def test_smoothing_is_a_gaussian() -> None:
    maps = torch.rand(2, 9, 11, generator=torch.Generator().manual_seed(0))
    reach = np.arange(-6, 7)
    kernel = np.exp(-(reach**2) / (2 * 1.5**2))
    kernel /= kernel.sum()
    padded = np.pad(maps.double().numpy(), ((0, 0), (6, 6), (6, 6)), mode="symmetric")
    down = sum(k * padded[:, 6 + d : 6 + d + 9] for k, d in zip(kernel, reach, strict=True))
    expected = sum(k * down[:, :, 6 + d : 6 + d + 11] for k, d in zip(kernel, reach, strict=True))
    np.testing.assert_allclose(smoothed(maps, 1.5), expected, rtol=1e-5)
    assert smoothed(maps, 0) is maps


def calibrated(gan: Any, space: str, noise: bool = False, **options: Any) -> Scorer:
    scorer = scorer_of(gan, space, noise, **options)
    scorer.fit([], [(pictures(24, seed=2), torch.arange(24) % 6 // 5)])  # four of them are not normal
    return scorer


CASES = [
    ("ws", True, {"combine": "fisher", "perceptual": "efficientnet_lite0"}),
    ("w", False, {"combine": "max"}),
    ("z", False, {"combine": "fisher", "components": ["z_shell", "l1"]}),
    ("z", False, {"combine": "own"}),
]


@pytest.mark.parametrize(("space", "noise", "options"), CASES)
def test_scores_do_not_depend_on_the_batch(
    style: Any, plain: Any, space: str, noise: bool, options: dict[str, Any]
) -> None:
    """Measurements and the score to rounding; calibration to the bit, since it looks at each number alone."""
    scorer = calibrated(plain if space == "z" else style, space, noise, **options)
    images = pictures(7)
    measured, complete = scorer.measure(images), scorer.score(images)
    order = torch.tensor([4, 0, 6, 2, 5, 1, 3])
    for size in (1, 3, 7):
        again = Scores.concatenate([scorer.measure(part) for part in images[order].split(size)])
        scores = torch.cat([scorer.score(part).image for part in images[order].split(size)])
        got = {"score": scores, **again.components, **again.maps}
        for name, expected in {"score": complete.image, **measured.components, **measured.maps}.items():
            torch.testing.assert_close(
                got[name], expected[order], rtol=1e-5, atol=1e-6, msg=f"{name}, batches of {size}"
            )
        in_parts = Scores.concatenate([scorer.calibrated(measured.take(rows)) for rows in order.split(size)])
        same(vars(in_parts), vars(complete.take(order)), f"calibrated in batches of {size}")


@pytest.mark.parametrize(("space", "noise", "options"), CASES[:3])
def test_parts_are_combined_by_their_tails(
    style: Any, plain: Any, space: str, noise: bool, options: dict[str, Any]
) -> None:
    """New images by the tails of all normals, the normals each by those of the others. `residual` is `l1` again, so it is left out."""
    gan = plain if space == "z" else style
    scorer = calibrated(gan, space, noise, **options)
    normals, new = pictures(24, seed=2)[torch.arange(24) % 6 != 5], pictures(5)
    known, found = scorer.measure(normals).components, scorer.score(new)
    used = options.get("components") or [name for name in known if name != "residual"]
    values = {name: known[name].double().numpy() for name in used}

    def combined(log_p: list[Any]) -> Any:
        return -2 * np.sum(log_p, 0) if options["combine"] == "fisher" else -np.min(log_p, 0)

    expected = combined([Tail.fit(values[n]).log_p(found.components[n].double().numpy()) for n in used])
    np.testing.assert_allclose(found.image, expected, rtol=1e-5)
    rows = range(20)
    windows = {n: Tail.fit(values[n]).window for n in used}
    others = {n: [Tail.fit(np.delete(values[n], i), windows[n]) for i in rows] for n in used}
    left_out = combined([[others[n][i].log_p(values[n][i]) for i in rows] for n in used])
    assert scorer.calibration is not None
    np.testing.assert_allclose(scorer.calibration, left_out, rtol=1e-5)


def test_maps_are_rarities_among_pixels_of_normals(style: Any) -> None:
    """−log10 of the share of the sampled pixels that are as large, of both maps, averaged; 1 is one pixel of ten."""
    scorer = calibrated(style, "w", perceptual="efficientnet_lite0", smooth=1)
    normals, new = pictures(24, seed=2)[torch.arange(24) % 6 != 5], scorer.measure(pictures(3))
    sample = scorer.measure(normals).sampled().maps
    assert {name: pixels.shape for name, pixels in sample.items()} == {
        name: (20, PIXELS) for name in ("difference", "effnet_lite0")
    }
    logs, common = [], torch.ones(3, 32, 32, dtype=torch.bool)
    for name, pixels in sample.items():
        exact = tail_probability(pixels.flatten(), new.maps[name].flatten())
        logs.append(-torch.log10(torch.from_numpy(exact)).float().view(3, 32, 32))
        common &= logs[-1] < -math.log10(0.11)
    found = scorer.calibrated(new).map
    assert found is not None
    assert 0.5 < float(common.double().mean()) < 1
    torch.testing.assert_close(found[common], torch.stack(logs).mean(0)[common], rtol=0, atol=1e-2)  # of one window
    blue = torch.tensor([-1.0, -1.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    assert bool((scorer.score(blue).map > 0).all())
    assert not torch.equal(new.map, found)
    torch.testing.assert_close(new.map, new.maps["difference"])
    assert math.isfinite(float(found.max()))


def test_the_sample_of_pixels_is_of_the_maps() -> None:
    """The same places of every image, in every part of it. Each pixel holds a number of its own, so its place is known from it."""
    numbers = torch.arange(3 * 32 * 32, dtype=torch.float32).view(3, 32, 32)
    measured = Scores(torch.zeros(3), maps={"difference": numbers, "effnet_lite0": -numbers})
    pixels = measured.sampled().maps["difference"]
    assert pixels.shape == (3, PIXELS)
    places = pixels[0].long()
    assert len(set(places.tolist())) == PIXELS
    for row in range(3):
        assert torch.equal(pixels[row].long() - 1024 * row, places)
    assert torch.equal(measured.sampled().maps["effnet_lite0"], -pixels)
    assert len({place % 32 for place in places.tolist()}) > 25
    assert len({place // 32 for place in places.tolist()}) > 25


@pytest.mark.parametrize(("space", "noise", "options"), CASES)
def test_rounding_of_the_input_stays_rounding(
    style: Any, plain: Any, space: str, noise: bool, options: dict[str, Any]
) -> None:
    """An image changed by 1e-6, as another processor's kernels change what they compute: no score or pixel of a map jumps."""
    scorer = calibrated(plain if space == "z" else style, space, noise, **options)
    measured = scorer.measure(pictures(7))
    rng = torch.Generator().manual_seed(3)

    def moved(values: Tensor) -> Tensor:
        return values * (1 + 1e-6 * (2 * torch.rand(values.shape, generator=rng) - 1))

    components, maps = ({k: moved(v) for k, v in known.items()} for known in (measured.components, measured.maps))
    before = scorer.calibrated(measured)
    after = scorer.calibrated(replace(measured, image=moved(measured.image), components=components, maps=maps))
    torch.testing.assert_close(after.image, before.image, rtol=1e-4, atol=2e-3)  # one rank is 0.05
    torch.testing.assert_close(after.map, before.map, rtol=1e-4, atol=1e-5)


def test_combined_parts_come_back_from_a_file(style: Any, tmp_path: Path) -> None:
    scorer = calibrated(style, "ws", True, combine="fisher", components=["noise", "l2", "w_mahalanobis"])
    scorer.save(tmp_path / "scorer.safetensors")
    torch.manual_seed(5)
    blank = registry.build("network", "stylegan2", {"resolution": 32, **STYLE}).eval()
    inverter = Guess({"gan": blank}, "ws", True)
    back = load_scorer(tmp_path / "scorer.safetensors", inverter=inverter)
    images = pictures(5)
    before, after = scorer.score(images), back.score(images)
    assert torch.equal(after.image, before.image)
    assert torch.equal(after.map, before.map)
    assert torch.equal(back.calibration, scorer.calibration)


def test_what_was_not_calibrated_does_not_score(plain: Any) -> None:
    with pytest.raises(UserError, match="combine=max needs validation normals"):
        scorer_of(plain, "z", combine="max").score(pictures(1))
    with pytest.raises(UserError, match=r"at least 10 .* got 9"):
        scorer_of(plain, "z", combine="max").fit([], [(pictures(9), torch.zeros(9))])
    lacking = scorer_of(plain, "z", combine="max", components=["l1", "noise"])
    with pytest.raises(UserError, match=r"scoring.options.components: .*noise.*residual, features, l1"):
        lacking.fit([], [(pictures(10), torch.zeros(10))])
    scorer_of(plain, "z").fit([], [(pictures(2), torch.zeros(2))])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"combine": "mean"}, "combine must be own, fisher or max"),
        ({"combine": "max", "components": []}, "at least one"),
        ({"components": ["l1"]}, "components .* combine=fisher or max"),
        ({"combine": "max", "components": ["l11"]}, "'l11'.*'l1'"),
        ({"combine": "max", "components": "l1"}, "option components"),
        ({"perceptual": "squeeze"}, "perceptual .* vgg, alex, efficientnet_lite0"),
        ({"smooth": -0.5}, r"smooth must be in \[0, 100\]"),
        ({"smooth": math.nan}, r"smooth must be in \[0, 100\]"),
    ],
)
def test_bad_options(plain: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        scorer_of(plain, "z", **options)


def test_options_find_their_owner(plain: Any, effnet: Any, tmp_path: Path) -> None:
    """One list of options: the scorer's to the scorer, the inverter's to the inverter."""
    encoder = registry.build("network", "residual_encoder", {"resolution": 32, **PLAIN}).eval()
    config = {"model": "toy", "task": "izi_f", "resolution": 32, "training": {"total_kimg": 1}}
    save_model(tmp_path / "toy.safetensors", {"gan": plain, "encoder": encoder}, {"config": config, "nimg": 0})
    model = gan_uad.load(str(tmp_path / "toy.safetensors"))
    scorer = model.scorer("anogan", steps=2, combine="max", seed=7, perceptual="efficientnet_lite0")
    inverter = scorer.inverter
    assert scorer.spec == {"name": "gan_inversion", "options": {"combine": "max", "perceptual": "efficientnet_lite0"}}
    assert inverter.spec == {"name": "anogan", "options": {"steps": 2, "seed": 7}}
    assert (inverter.steps, inverter.seed, scorer.chunk) == (2, 7, 32)
    assert model.scorer().chunk is None
    assert scorer.rests_on == effnet.weights
    with pytest.raises(UserError, match=r"gan_inversion.*anogan.*'stepz'.*'steps'"):
        model.scorer("anogan", stepz=2)
    seeds = [model.scorer("anogan", steps=2, seed=seed).score(pictures(1)).image for seed in (0, 0, 1)]
    assert torch.equal(seeds[0], seeds[1])
    assert not torch.equal(seeds[0], seeds[2])
