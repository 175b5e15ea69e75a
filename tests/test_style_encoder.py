"""An encoder into W+ and the noise maps: its losses as formulae, its training through the command line, and its use."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from run_tools import errors, same, state
from score_tools import rows
from torch import Tensor

import gan_uad
from gan_uad import registry
from gan_uad.config import DataConfig
from gan_uad.data.patches import load_patches, to_tensor
from gan_uad.errors import UserError
from gan_uad.training import distributed

pytestmark = pytest.mark.numerical

CPU = torch.device("cpu")
SIZES = {"channel_base": 128, "channel_max": 8}
STYLE = SIZES | {"z_dim": 6, "w_dim": 6, "mapping_layers": 2}
WEIGHTS = ("pixel_weight", "perceptual_weight", "feature_weight", "spread_weight", "latent_weight", "noise_weight")


def net(name: str, **options: Any) -> Any:
    return registry.build("network", name, {"resolution": 32, **options})


def encoder(**options: Any) -> Any:
    return net("style_encoder", **{**SIZES, "w_dim": 6, "num_ws": 8, "num_noise": 7, **options})


def random_images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def stirred(module: Any, seed: int = 5) -> Any:
    """With every weight away from where it starts: no loss may vanish, no layer be switched off."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator)
    return module


def task(gan: Any = None, model: Any = None, seed: int = 3, **options: Any) -> Any:
    torch.manual_seed(1)
    gan = stirred(net("stylegan2", **STYLE)) if gan is None else gan
    model = stirred(encoder()) if model is None else model
    return registry.build("task", "style_encoder", options, model=model, device=CPU, seed=seed, generator=gan)


def inverter(nets: dict[str, Any], **options: Any) -> Any:
    return registry.build("inverter", "style_encoder", options, nets=nets, device=CPU)


def nets(predict_noise: bool = True) -> dict[str, Any]:
    torch.manual_seed(1)
    found = {"gan": stirred(net("stylegan2", **STYLE)), "encoder": stirred(encoder(predict_noise=predict_noise))}
    found["encoder"].centre(torch.linspace(-1, 1, 6), 1.5)
    return found


# ---------------------------------------------------------------- the network


@pytest.mark.parametrize("family", ["stylegan", "stylegan2"])
def test_a_code_is_what_the_generator_takes(family: str) -> None:
    G = net(family, **STYLE).G
    E = stirred(encoder(num_noise=len(G.synthesis.noise_shapes)))
    code = E(random_images(3))
    assert code.ws.shape == (3, G.synthesis.num_ws, 6)
    assert [tuple(maps.shape[1:]) for maps in code.noise] == G.synthesis.noise_shapes == E.noise_shapes
    assert G.synthesis(*code).shape == (3, 3, 32, 32)
    for maps in code.noise:
        torch.testing.assert_close(maps.mean((1, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(maps.square().mean((1, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)


def test_without_noise_maps() -> None:
    E = encoder(predict_noise=False)
    assert E(random_images(2)).noise is None
    assert E.noise_shapes is None


def test_a_fresh_encoder_gives_the_mean_w() -> None:
    E = encoder()
    E.centre(torch.arange(6.0), 3.0)
    assert torch.equal(E(random_images(2)).ws, torch.arange(6.0).expand(2, 8, 6))


@pytest.mark.parametrize(("space", "different"), [("w", False), ("w_plus", True)])
def test_one_w_or_one_a_layer(space: str, different: bool) -> None:
    ws = stirred(encoder(space=space))(random_images(2)).ws
    assert bool((ws != ws[:, :1]).any()) == different


def test_offsets_are_counted_in_units_of_the_spread() -> None:
    E = stirred(encoder())
    E.centre(torch.zeros(6), 6**0.5)
    offsets = E(random_images(2)).ws
    E.centre(torch.full((6,), 2.0), 3.0)
    torch.testing.assert_close(E(random_images(2)).ws, 2 + offsets * 3 / 6**0.5)


def test_details_reach_the_finest_maps_and_everything_reaches_ws() -> None:
    """The U-Net's shortcuts carry single pixels; ws hear of all resolutions."""
    E, images = stirred(encoder()), random_images(1)
    before, other = E(images), images.clone()
    other[0, :, 7, 21] += 1.0
    after = E(other)
    change = (after.noise[-1] - before.noise[-1]).abs()[0, 0]
    assert int(change.argmax()) // 32 in range(5, 10)
    assert int(change.argmax()) % 32 in range(19, 24)
    gradients = torch.autograd.grad(before.ws.square().sum(), [block.conv0.weight for block in E.blocks])
    assert all(bool(g.abs().sum() > 0) for g in gradients)


def test_images_do_not_mix() -> None:
    E, images = stirred(encoder()), random_images(5)
    with torch.no_grad():
        together = E(images)
        for i in range(5):
            alone = E(images[i : i + 1])
            torch.testing.assert_close(alone.ws, together.ws[i : i + 1], rtol=1e-5, atol=1e-5)
            for one, many in zip(alone.noise, together.noise, strict=True):
                torch.testing.assert_close(one, many[i : i + 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 48}, "resolution must be a power of two"),
        ({"num_noise": 0}, r"num_noise must be in \[1, 8\]"),
        ({"num_noise": 9}, r"num_noise must be in \[1, 8\] at 32 px, got 9"),
        ({"num_ws": 0}, "num_ws must be at least 1"),
        ({"space": "z"}, "option space: .*'w' or 'w_plus'"),
    ],
)
def test_bad_sizes_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        encoder(**options)
    assert len(encoder(num_noise=1)(torch.zeros(1, 3, 32, 32)).noise) == 1


# ---------------------------------------------------------------- the losses


def by_hand(job: Any, images: Tensor, w: Tensor, count: int) -> dict[str, Tensor]:
    """The terms, of images of which the first `count` were made from w."""
    gan = job.gan
    code = job.E(images)
    noise = "const" if code.noise is None else code.noise
    made = gan.G.synthesis(code.ws, noise)
    mean, std = job.E.w_avg, job.E.w_std
    a, b = (job.perceptual.features(x, check=False) for x in (images, made))
    distance = sum(((x - y) ** 2).sum(1).mean((1, 2)) / len(a) for x, y in zip(a, b, strict=True))
    white = torch.zeros(())
    for maps in code.noise or []:
        while True:
            for axis in (2, 3):
                white = white + ((maps * maps.roll(1, axis)).mean((2, 3)) ** 2).mean()
            if maps.shape[-1] <= 8:
                break
            maps = torch.nn.functional.avg_pool2d(maps, 2)
    return {
        "pixel": ((images - made) ** 2).mean(),
        "perceptual": torch.as_tensor(distance).mean(),
        "features": ((gan.D.features(images) - gan.D.features(made)) ** 2).mean(),
        "spread": ((code.ws - mean) ** 2).sum(2).mean() / std**2,
        "latent": ((code.ws[:count] - w[:, None]) ** 2).sum(2).mean() / std**2 if count else torch.zeros(()),
        **({} if code.noise is None else {"noise": white}),
    }


@pytest.mark.parametrize("predict_noise", [True, False])
def test_the_losses_as_formulae(predict_noise: bool) -> None:
    """A quarter of eight images is generated from z and fresh noise; each weight has its term."""
    model, weights = (
        stirred(encoder(predict_noise=predict_noise)),
        dict(zip(WEIGHTS, (2.0, 3.0, 0.5, 0.25, 0.75, 0.4), strict=True)),
    )
    job, real = task(model=model, generated=0.25, **weights), random_images(8)
    drawn = job.draw(8)
    G = job.gan.G
    w = G.mapping(drawn.z)
    made = G.synthesis(G.spread(w), drawn.noise).clamp(-1, 1)
    assert made.shape[0] == 2
    assert [tuple(maps.shape) for maps in drawn.noise] == [(2, *shape) for shape in G.synthesis.noise_shapes]
    value, metrics = job.loss(real, drawn)
    expected = by_hand(job, torch.cat([made, real[2:]]), w, 2)
    for name, term in expected.items():
        torch.testing.assert_close(metrics[name], term, rtol=1e-4, atol=1e-6)
        assert float(term.detach()) > 1e-3
    assert metrics.keys() == expected.keys()
    exact = {**{name: metrics[name] for name in expected}, "latent": metrics["latent"] * 0.25}
    total = sum(weight * term for weight, term in zip(weights.values(), exact.values(), strict=predict_noise))
    torch.testing.assert_close(value, total)


def test_the_centre_is_that_of_the_mapped_cloud() -> None:
    job = task()
    cloud = job.gan.G.mapping(torch.randn(100_000, 6)).detach()
    std = cloud.var(0, unbiased=False).sum().sqrt()
    torch.testing.assert_close(job.E.w_std, std, rtol=0.05, atol=0)
    assert float((job.E.w_avg - cloud.mean(0)).norm()) < 0.05 * float(std)
    same(job.networks()["encoder"].w_avg, job.E.w_avg)


def test_normals_alone_and_generated_images_alone() -> None:
    real = random_images(4)
    alone = task(generated=0.0)
    _, metrics = alone.loss(real, alone.draw(4))
    assert float(metrics["latent"].detach()) == 0
    torch.testing.assert_close(metrics["pixel"], by_hand(alone, real, torch.zeros(0, 6), 0)["pixel"])
    made = task(generated=1.0)
    assert torch.equal(
        made.loss(real, made.draw(4))[0], task(generated=1.0).loss(-real, task(generated=1.0).draw(4))[0]
    )


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_passes_do_not_change_a_step(micro_batch: int) -> None:
    """Some passes hold generated images, some do not."""
    real, found = random_images(6), []
    for passes_of in (None, micro_batch):
        job = task(generated=0.34)
        job.micro_batch = passes_of
        metrics = job.step(real, 0)
        found.append((metrics, torch.cat([p.grad.flatten() for p in job.E.parameters()])))
    for name, metric in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], metric, rtol=1e-4, atol=1e-5)
    # Rounding may turn a leaky ReLU over.
    assert float((found[1][1] - found[0][1]).norm()) < 1e-2 * float(found[0][1].norm())


def test_processes_share_what_one_would_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    complete = task(generated=0.5).draw(10)
    for rank in range(2):
        monkeypatch.setattr(distributed, "world", lambda rank=rank: distributed.World(rank, 2))
        share = task(generated=0.5).draw(5)
        assert share.share == complete.share == 0.5
        assert torch.equal(share.z, complete.z[rank::2])
        same(share.noise, [maps[rank::2] for maps in complete.noise])


def test_the_judge_takes_medians_over_validation_normals(tiny: Any) -> None:
    job = task()
    patches = load_patches(DataConfig(path=str(tiny.patches)), 32)
    metrics = job.validator(patches).validate(0)
    normals = to_tensor(patches.select(label=0).gather(range(20)))
    E = job.networks()["encoder"]
    with torch.no_grad():
        made = job.gan.G.synthesis(*E(normals)).clamp(-1, 1)
        distance, pixel = job.perceptual(normals, made), (normals - made).square().mean((1, 2, 3))
    assert metrics["val_perceptual"] == pytest.approx(float(distance.sort().values[9]), rel=1e-4)
    assert metrics["val_pixel"] == pytest.approx(float(pixel.sort().values[9]), rel=1e-4)
    with pytest.raises(UserError, match="no normal image among the 4"):
        job.validator(patches.select(label=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pixel_weight": -1.0}, "weights must not be negative"),
        ({"spread_weight": float("nan")}, "weights must not be negative"),
        ({"lr": float("inf")}, "lr must be above 0"),
        ({"generated": 1.5}, r"generated in \[0, 1\]"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"ema_kimg": -1.0}, "ema_kimg must not be negative"),
        ({"perceptual": "vgg19"}, "vgg19"),
    ],
)
def test_bad_options_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        task(**options)


# ---------------------------------------------------------------- from an image to a latent


@pytest.mark.parametrize("predict_noise", [True, False])
def test_the_encoder_alone(predict_noise: bool) -> None:
    """Of 5 images in micro-batches of 2."""
    found_by, images = inverter(nets(predict_noise), steps=0, micro_batch=2), random_images(5)
    found = found_by.invert(images)
    E, G = found_by.nets["encoder"], found_by.generator
    with torch.no_grad():
        code = E(images)
        made = G.synthesis(code.ws, code.noise if predict_noise else "const").clamp(-1, 1)
        again = E(found.reconstruction).ws
    torch.testing.assert_close(found.latent, code.ws, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.reconstruction, made, rtol=1e-4, atol=1e-4)
    assert (found.space, found.steps.tolist(), found.loss_history.shape) == ("ws", [0] * 5, (0, 5))
    assert (found.noise is not None) == predict_noise
    expected = ((found.latent - again) ** 2).sum((1, 2)) / 8 / 1.5**2
    torch.testing.assert_close(found_by.latent_distance(found.latent, found.reconstruction), expected)


def test_the_search_starts_where_the_encoder_points() -> None:
    given, images = nets(), random_images(3)
    alone = inverter(given, steps=0, micro_batch=3).invert(images)
    hardly = inverter(given, steps=2, lr=1e-9, micro_batch=3).invert(images)
    torch.testing.assert_close(hardly.latent, alone.latent)
    torch.testing.assert_close(hardly.reconstruction, alone.reconstruction, rtol=1e-3, atol=1e-3)
    same([maps.shape for maps in hardly.noise or []], [maps.shape for maps in alone.noise or []])
    found_by = inverter(given, steps=8, micro_batch=3)
    found = found_by.invert(images)
    assert found.steps.tolist() == [8] * 3
    before, after = (found_by.measure(images, x.reconstruction) for x in (alone, found))
    assert bool((after < before).all())


@pytest.mark.parametrize("steps", [0, 2])
def test_an_image_does_not_feel_its_neighbours(steps: int) -> None:
    found_by, images = inverter(nets(), steps=steps, micro_batch=2), random_images(5)
    together = found_by.invert(images)
    for order in (torch.tensor([3]), torch.tensor([4, 3, 0])):
        found = found_by.invert(images[order])
        torch.testing.assert_close(found.latent, together.latent[order], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.reconstruction, together.reconstruction[order], rtol=1e-3, atol=1e-3)


def test_who_has_no_such_encoder() -> None:
    given = nets()
    for broken in ({"gan": given["gan"]}, {"gan": given["gan"], "encoder": net("residual_encoder", **SIZES, z_dim=6)}):
        with pytest.raises(UserError, match="gan-uad train style_encoder_64"):
            inverter(broken)
    with pytest.raises(UserError, match="--inverter style_encoder"):
        registry.build("inverter", "izi_f", {}, nets=given, device=CPU)
    with pytest.raises(UserError, match="steps must not be negative, got -1"):
        inverter(given, steps=-1)


# ---------------------------------------------------------------- training


def test_training_beats_the_mean_image_and_touches_only_the_encoder() -> None:
    """On four images of the generator, in 24 steps, and so does the average."""
    torch.manual_seed(2)
    gan, model = net("stylegan2", **STYLE), encoder()
    with torch.no_grad():
        for layer in gan.G.synthesis.layers:
            layer.noise_strength.fill_(0.1)
    none = dict.fromkeys(("feature_weight", "spread_weight", "latent_weight", "noise_weight"), 0.0)
    job = task(gan, model, lr=1e-2, ema_kimg=0.01, perceptual_weight=0.1, **none)
    before = {k: v.clone() for k, v in gan.state_dict().items()}
    with torch.no_grad():
        real = gan.G(torch.randn(4, 6)).clamp(-1, 1)
        mean = gan.G.synthesis(gan.G.spread(job.E.w_avg[None]).expand(4, -1, -1)).clamp(-1, 1)
    losses = [float(job.step(real, 4 * k)["loss"]) for k in range(24)]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    with torch.no_grad():
        error = (real - job.reconstruct(real)).square().mean()
    assert float(error) < 0.8 * float((real - mean).square().mean())
    assert all(torch.equal(before[k], v) for k, v in gan.state_dict().items())


@dataclass(frozen=True)
class Runs:
    """A tiny StyleGAN2 and the hybrid encoder trained against it, both for a few steps."""

    config: Path
    generator: Path
    style_encoder: Path


def written(folder: Path, name: str, tiny: Any, **settings: Any) -> Path:
    training = {"total_kimg": 0.032, "batch": 4, "threads": 1, "device": "cpu", "tick_kimg": 0.008}
    training |= {"snapshot_kimg": 0.032, "checkpoint_kimg": 0.016}
    raw = {"task": name, "resolution": 32, "data": {"path": str(tiny.patches)}, "training": training, **settings}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(raw))
    return folder / f"{name}.yaml"


@pytest.fixture(scope="module")
def runs(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("style_encoder")
    result = tiny.train(
        written(root, "stylegan2", tiny, model="stylegan2", network=STYLE), root / "gan", total_kimg=0.008
    )
    assert result.exit_code == 0, result.output
    generator = root / "gan" / "00000-stylegan2"
    scoring = {"inverter": "style_encoder", "options": {"steps": 0}}
    config = written(root, "style_encoder", tiny, model="style_encoder", network=SIZES, scoring=scoring)
    result = tiny.train(config, root / "runs", "--generator", generator, eval_kimg=0.016)
    assert result.exit_code == 0, result.output
    return Runs(config, generator, root / "runs" / "00000-style_encoder")


def test_a_run_says_everything(runs: Runs) -> None:
    network = yaml.safe_load((runs.style_encoder / "config.yaml").read_text())["network"]
    assert network == {**SIZES, "w_dim": 6, "num_ws": 8, "num_noise": 7}
    row = json.loads((runs.style_encoder / "log.jsonl").read_text().splitlines()[-1])
    assert {"loss", "pixel", "perceptual", "features", "spread", "latent"} <= row.keys()
    judged = [json.loads(line) for line in (runs.style_encoder / "metrics.jsonl").read_text().splitlines()]
    assert [row["nimg"] for row in judged] == [16, 32]
    assert (runs.style_encoder / "best.safetensors").is_file()
    model = gan_uad.load(str(runs.style_encoder))
    assert set(model.networks) == {"gan", "encoder"}
    code = model.networks["encoder"](random_images(2))
    assert model.networks["gan"].G.synthesis(*code).shape == (2, 3, 32, 32)
    assert (runs.style_encoder / "fakes" / "000000.032.png").is_file()


def test_a_resumed_run_ends_bit_for_bit_as_an_uninterrupted_one(runs: Runs, tiny: Any, tmp_path: Path) -> None:
    """Against the generator that it began with, though that is gone."""
    generator = Path(shutil.copytree(runs.generator, tmp_path / "generator"))
    words = ["--generator", generator]
    result = tiny.train(runs.config, tmp_path, *words, total_kimg=0.012, eval_kimg=0.016)
    assert result.exit_code == 0, result.output
    assert tiny.train(runs.generator, tmp_path, "--resume", total_kimg=0.008).exit_code == 0
    result = tiny.train(tmp_path / "00000-style_encoder", tmp_path, "--resume", total_kimg=0.032, eval_kimg=0.016)
    assert result.exit_code == 0, result.output
    mine, complete = state(tmp_path / "00000-style_encoder"), state(runs.style_encoder)
    mine.pop("validation"), complete.pop("validation")  # the first part ended with a validation of its own
    same(mine, complete)


def test_what_does_not_fit_is_one_line(runs: Runs, tiny: Any, tmp_path: Path) -> None:
    def refused(source: Path, generator: Path, message: str, *words: str) -> None:
        result = tiny.train(source, tmp_path / "runs", "--generator", generator, *(w for o in words for w in ("-o", o)))
        assert result.exit_code == 2, result.output
        assert re.search(message, errors(result)[-1]), errors(result)[-1]
        assert not (tmp_path / "runs").exists()

    refused(runs.config, tiny.generator, "wgan_gp")
    refused(runs.config, runs.generator, "32 px .* resolution 64", "resolution=64")
    refused(runs.config, runs.generator, "w_dim of the encoder 7, of the generator 6", "network.w_dim=7")
    refused(runs.config, runs.generator, "num_ws of the encoder 4, of the generator 8", "network.num_ws=4")
    refused(runs.config, runs.generator, "noise maps", "network.num_noise=8")
    refused(runs.config, runs.generator, "style_encoder", "model=residual_encoder", "network={}")
    refused(
        tiny.config("izi_f"),
        runs.generator,
        "residual_encoder",
        "model=style_encoder",
    )
    result = tiny.train(runs.config, tmp_path / "runs")
    assert result.exit_code == 2
    assert "--generator RUN" in errors(result)[-1]


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("steps", [0, 2])
def test_a_run_scores(runs: Runs, cli: Any, tmp_path: Path, steps: int) -> None:
    words = (
        "--split",
        "all",
        "--max-images",
        6,
        "-o",
        "scoring.calibration_images=4",
        "--threshold",
        "manual:0.5",
        "--out",
        tmp_path / "scores",
    )
    result = cli(
        "score", runs.style_encoder, "--inverter", "style_encoder", "-o", f"scoring.options.steps={steps}", *words
    )
    assert result.exit_code == 0, result.output
    table = rows(tmp_path / "scores" / "scores.csv")
    assert len(table) == 6
    assert all(float(row["latent"]) > 0 for row in table)
