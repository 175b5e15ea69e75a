"""`gan-uad generate` and `interpolate` through the command line."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from score_tools import fails

import gan_uad
from gan_uad import registry
from gan_uad.checkpoint import build_networks, save_model
from gan_uad.errors import UserError
from gan_uad.generation import generate as job
from gan_uad.generation.latents import slerp, walk
from gan_uad.networks.sampling import Latents


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def test_an_image_depends_on_its_seed_alone(cli: Any, trained: Any, tmp_path: Path) -> None:
    for out, seeds in (("a", "0-39"), ("b", "39,7"), ("c", "7")):
        result = cli("generate", trained.generator, "--seeds", seeds, "--out", tmp_path / out)
        assert result.exit_code == 0, result.output
    names = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert names == [f"seed{seed:06d}.png" for seed in range(40)]
    first = pixels(tmp_path / "a" / "seed000007.png")
    assert first.shape == (32, 32, 3)
    for other in ("b", "c"):
        assert np.array_equal(first, pixels(tmp_path / other / "seed000007.png"))
    assert not np.array_equal(first, pixels(tmp_path / "a" / "seed000008.png"))


def test_the_generator_inside_an_encoder_run_is_the_same(cli: Any, trained: Any, tmp_path: Path) -> None:
    for out, run in (("a", trained.generator), ("b", trained.encoder / "model.safetensors")):
        assert cli("generate", run, "--seeds", "3", "--out", tmp_path / out).exit_code == 0
    assert np.array_equal(pixels(tmp_path / "a" / "seed000003.png"), pixels(tmp_path / "b" / "seed000003.png"))


def test_arrays_and_grid(cli: Any, trained: Any, tmp_path: Path) -> None:
    result = cli("generate", trained.generator, "--seeds", "5,1-3", "--npz", "--grid", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert sorted(file.name for file in tmp_path.iterdir()) == ["grid.png", "images.npz"]
    with np.load(tmp_path / "images.npz") as file:
        assert file["seeds"].tolist() == [5, 1, 2, 3]
        assert file["images"].dtype == np.uint8
        assert file["images"].shape == (4, 32, 32, 3)
        assert cli("generate", trained.generator, "--seeds", "5", "--out", tmp_path / "png").exit_code == 0
        assert np.array_equal(file["images"][0], pixels(tmp_path / "png" / "seed000005.png"))
    assert min(pixels(tmp_path / "grid.png").shape[:2]) >= 64


def test_a_path_may_return(cli: Any, trained: Any, tmp_path: Path) -> None:
    words = ("interpolate", trained.generator, "--seeds", "1,2,1", "--frames-between", 1, "--out", tmp_path / "a.png")
    assert cli(*words).exit_code == 0
    strip = pixels(tmp_path / "a.png")
    assert np.array_equal(strip[:32, :32], strip[32:, 64:])


def test_arrays_of_another_model_are_not_replaced(cli: Any, trained: Any, tmp_path: Path) -> None:
    other = rewritten(trained.generator / "model.safetensors", tmp_path / "other.safetensors", lambda t: t * 0.5)
    out, file = tmp_path / "out", tmp_path / "out" / "images.npz"
    assert cli("generate", trained.generator, "--seeds", "0-2", "--npz", "--out", out).exit_code == 0
    before = file.read_bytes()
    for words in (("--npz",), ()):
        fails(cli("generate", other, "--seeds", "0-2", *words, "--out", out), str(file), "another model", "--out")
    assert [path.name for path in out.iterdir()] == ["images.npz"]
    assert file.read_bytes() == before
    assert cli("generate", trained.generator, "--seeds", "0-4", "--npz", "--out", out).exit_code == 0
    with np.load(file) as arrays:
        assert len(arrays["images"]) == 5
        told = {name: array for name, array in arrays.items() if name != "model"}
    np.savez(file, **told)  # as version 0.2 wrote it
    fails(cli("generate", trained.generator, "--seeds", "0-4", "--npz", "--out", out), str(file), "--out")
    assert cli("generate", trained.generator, "--seeds", "0-4", "--out", out).exit_code == 0
    file.write_bytes(b"PK")
    fails(cli("generate", trained.generator, "--seeds", "0-4", "--npz", "--out", out), str(file), "--out")


@pytest.mark.parametrize("seeds", ["", "a", "3-1", "1,,2", "-4", "1.5", "²", "1-2-3", "9" * 30, "0-99999999999"])
def test_bad_seeds(cli: Any, trained: Any, tmp_path: Path, seeds: str) -> None:
    fails(cli("generate", trained.generator, f"--seeds={seeds}", "--out", tmp_path / "out"), "--seeds ")
    assert not (tmp_path / "out").exists()


def test_what_is_no_run(cli: Any, tmp_path: Path) -> None:
    for path, named in ((tmp_path / "nothing", str(tmp_path / "nothing")), (tmp_path, "model.safetensors")):
        fails(cli("generate", path, "--out", tmp_path / "out"), named)


def rewritten(source: Path, out: Path, change: Any, name: str = "") -> Path:
    """A copy of a model file with one tensor changed: `name`, or the first weight of the generator."""
    tensors = load_file(source)
    key = name or next(key for key in tensors if key.startswith("gan.G.") and key.endswith("weight"))
    with safe_open(source, framework="pt") as file:
        save_file(tensors | {key: change(tensors[key])}, out, file.metadata())
    return out


@pytest.mark.parametrize(
    "change",
    [lambda t: t * math.nan, lambda t: t / 0, lambda t: t > 0, lambda t: t.int(), lambda t: t.double() + 1e300],
    ids=["nan", "inf", "bool", "int", "beyond float32"],
)
def test_weights_that_no_training_wrote(cli: Any, trained: Any, tmp_path: Path, change: Any) -> None:
    model = rewritten(trained.generator / "model.safetensors", tmp_path / "bad.safetensors", change)
    new = (
        "train",
        "wgan_gp_64_small",
        "--data",
        trained.patches,
        "-o",
        f"init_from={model}",
        "--out",
        tmp_path / "runs",
    )
    commands = [
        ("generate", model),
        ("interpolate", model),
        ("score", model, trained.patches),
        ("project", model, trained.patches),
    ]
    for words in [*commands, new]:
        out = () if words[0] == "train" else ("--out", tmp_path / "out.gif")
        fails(cli(*words, *out), str(model), "weight ")
    assert not (tmp_path / "out.gif").exists()
    assert not list(tmp_path.glob("runs/*"))


def test_counters_and_statistics_of_batch_norm(tmp_path: Path) -> None:
    """Counters are integers; statistics are floating, and in published files float16."""
    net = registry.build("network", "residual_encoder", {"resolution": 32, "channel_base": 64, "channel_max": 8})
    file, prefix = tmp_path / "a.safetensors", "encoder."
    save_model(file, {"encoder": net}, {}, half=True)
    build_networks(file)
    buffers = {prefix + name for name, _ in net.named_buffers()}
    for name in buffers:
        counter = name.endswith("num_batches_tracked")
        wrong = [lambda t: t.float(), lambda t: t.int()] if counter else [lambda t: t.float() / 0, lambda t: t.long()]
        for change in wrong:
            with pytest.raises(UserError, match=re.escape(name.removeprefix(prefix))):
                build_networks(rewritten(file, tmp_path / "b.safetensors", change, name))
    assert buffers


def test_a_generator_whose_images_are_not_finite(cli: Any, trained: Any, tmp_path: Path) -> None:
    model = rewritten(trained.generator / "model.safetensors", tmp_path / "bad.safetensors", lambda t: t.fill_(3e38))
    for words in (("generate", model), ("generate", model, "--npz"), ("interpolate", model)):
        fails(cli(*words, "--seeds", "3,4", "--out", tmp_path / "out.gif"), str(model), "seed", code=1)
    assert not list(tmp_path.glob("out.gif/*.png"))


def test_a_shipped_model_by_its_name(cli: Any, tmp_path: Path) -> None:
    """It stands for its file; for a mistyped name the error lists near ones."""
    name = "pcam_stylegan2_64_small"
    file = Path(gan_uad.__file__).parents[1] / "models" / f"{name}.safetensors"
    for out, run in (("a", name), ("b", file)):
        assert cli("generate", run, "--seeds", "3", "--out", tmp_path / out).exit_code == 0
    assert np.array_equal(pixels(tmp_path / "a" / "seed000003.png"), pixels(tmp_path / "b" / "seed000003.png"))
    assert gan_uad.load(name).resolution == 64
    fails(cli("generate", "pcam_stylegan_64_small", "--out", tmp_path / "none"), name)
    result = cli("train", "izi_f_64_small", "--generator", name, "--dry-run")
    assert f"generator: {file}" in result.output
    assert "stylegan2" in json.loads(cli("models", "--json").output)["trained"][name]


TINY = {"z_dim": 16, "w_dim": 16, "mapping_layers": 2, "channel_base": 64, "channel_max": 16}


@pytest.fixture(scope="module")
def styled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StyleGAN2 of random weights, whose noise and average w matter as in a trained one."""
    net = registry.build("network", "stylegan2", {"resolution": 16, **TINY})
    generator = torch.Generator().manual_seed(0)
    for name, tensor in net.G.state_dict().items():
        if name.endswith(("noise_strength", "w_avg", "bias")):
            tensor += 0.3 * torch.randn(tensor.shape, generator=generator)
    config = {"model": "stylegan2", "task": "stylegan2", "resolution": 16, "training": {"total_kimg": 1}}
    path = tmp_path_factory.mktemp("styled") / "styled.safetensors"
    save_model(path, {"gan": net}, {"config": config, "nimg": 0})
    return path


@pytest.fixture
def generated(cli: Any, tmp_path: Path) -> Any:
    """The images of a successful call of `generate`, by name."""

    def run(model: Path, *arguments: object) -> dict[str, Any]:
        out = tmp_path / f"generated{len(list(tmp_path.iterdir()))}"
        result = cli("generate", model, *arguments, "--out", out)
        assert result.exit_code == 0, result.output
        return {file.stem: pixels(file) for file in sorted(out.glob("*.png"))}

    return run


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    assert list(a) == list(b)
    return all(np.array_equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))


@pytest.mark.numerical
def test_truncation(generated: Any, styled: Path) -> None:
    plain, half, none = (
        generated(styled, "--seeds", "0-3", *options) for options in ((), ("--truncation", 0.5), ("--truncation", 0))
    )
    assert same(plain, generated(styled, "--seeds", "0-3", "--truncation", 1))
    assert all(np.array_equal(image, none["seed000000"]) for image in none.values())
    assert not np.array_equal(plain["seed000000"], plain["seed000001"])

    def spread(images: dict[str, Any]) -> float:
        return float(np.stack(list(images.values())).astype(float).std(0).mean())

    assert 0 < spread(half) < spread(plain)
    model = gan_uad.load(str(styled))
    G, z = model.networks["gan"].G, torch.randn(16, generator=torch.Generator().manual_seed(2))[None]
    w = G.mapping(z)
    expected = G.synthesis(G.spread(G.mapping.w_avg + 0.5 * (w - G.mapping.w_avg)))
    torch.testing.assert_close(model.generate([2], psi=0.5), expected.clamp(-1, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("noise", ["const", "none", "random"])
def test_a_style_based_image_depends_on_its_seed_alone(generated: Any, styled: Path, noise: str) -> None:
    many = generated(styled, "--seeds", "0-39", "--noise", noise)
    few = generated(styled, "--seeds", "39,7", "--noise", noise)
    assert same(few, {name: many[name] for name in few})
    model = gan_uad.load(str(styled))
    alone, among = (model.generate(seeds, noise=noise)[-1] for seeds in ([7], [3, 39, 7]))
    assert torch.equal(alone, among)
    others = generated(styled, "--seeds", "7", "--noise", "none" if noise != "none" else "const")
    assert not np.array_equal(others["seed000007"], many["seed000007"])


def test_random_noise_differs_between_images_of_the_same_w(generated: Any, styled: Path) -> None:
    images = generated(styled, "--seeds", "0-1", "--noise", "random", "--truncation", 0)
    assert not np.array_equal(images["seed000000"], images["seed000001"])


def test_arrays_of_a_style_based_net_and_back(cli: Any, generated: Any, styled: Path, tmp_path: Path) -> None:
    arguments = ("generate", styled, "--seeds", "0-299", "--truncation", 0.7, "--npz", "--out")
    assert cli(*arguments, tmp_path / "a").exit_code == 0
    plain = generated(styled, "--seeds", "299,3", "--truncation", 0.7)
    with np.load(tmp_path / "a" / "images.npz") as file:
        arrays = dict(file)
    shapes = {key: (array.shape, array.dtype) for key, array in arrays.items() if array.ndim}
    assert shapes == {
        "images": ((300, 16, 16, 3), np.uint8),
        "seeds": ((300,), np.int64),
        "z": ((300, 16), np.float32),
        "w": ((300, 16), np.float32),
    }
    assert (float(arrays["truncation"]), str(arrays["noise"])) == (0.7, "const")
    assert np.array_equal(arrays["images"][299], plain["seed000299"])
    assert np.array_equal(arrays["images"][3], plain["seed000003"])
    G = gan_uad.load(str(styled)).networks["gan"].G
    w = G.mapping.truncate(G.mapping(torch.from_numpy(arrays["z"])), 0.7)
    torch.testing.assert_close(torch.from_numpy(arrays["w"]), w)

    assert cli(*arguments, tmp_path / "b").exit_code == 0
    a, b = ((tmp_path / name / "images.npz").read_bytes() for name in "ab")
    assert a == b
    back = generated(styled, "--latents", tmp_path / "a" / "images.npz")  # uses w, which is truncated already
    assert list(back)[299] == "latent000299"
    assert all(np.array_equal(x, y) for x, y in zip(back.values(), arrays["images"], strict=True))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_latents(generated: Any, styled: Path, trained: Any, tmp_path: Path, dtype: Any) -> None:
    model = gan_uad.load(str(styled))
    G = model.networks["gan"].G
    z = torch.stack([torch.randn(16, generator=torch.Generator().manual_seed(seed)) for seed in range(3)])
    plain, half = (list(generated(styled, "--seeds", "0-2", "--truncation", psi).values()) for psi in (1, 0.5))
    w = G.mapping(z)
    for key, array in {"z": z, "w": w, "ws": G.spread(w)}.items():
        np.savez(tmp_path / f"{key}.npz", **{key: array.numpy().astype(dtype)})
        for psi, expected in ((1, plain), (0.5, half)):
            images = generated(styled, "--latents", tmp_path / f"{key}.npz", "--truncation", psi)
            assert list(images) == [f"latent{row:06d}" for row in range(3)]
            for image, other in zip(images.values(), expected, strict=True):
                assert np.abs(image.astype(int) - other).max() <= 1
    z = torch.randn(64, generator=torch.Generator().manual_seed(4))
    np.savez_compressed(tmp_path / "other.npz", z=z.numpy()[None], w=np.zeros((1, 16)))
    images = generated(trained.generator, "--latents", tmp_path / "other.npz")
    assert np.array_equal(images["latent000000"], generated(trained.generator, "--seeds", "4")["seed000004"])


def test_bad_latents(cli: Any, styled: Path, trained: Any, tmp_path: Path) -> None:
    z = np.zeros((2, 16), np.float32)
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("z must be [N, 16] for this generator, not [2, 15]", {"z": z[:, 1:]}),
        ("z must be [N, 16] for this generator, not [16]", {"z": z[0]}),
        ("z must be [N, 16] for this generator, not []", {"z": np.float32(0)}),
        ("w must be [N, 16] for this generator, not [2, 1, 16]", {"w": z[:, None]}),
        ("ws must be [N, 6, 16] for this generator, not [2, 5, 16]", {"ws": np.zeros((2, 5, 16))}),
        ("z is empty", {"z": z[:0]}),
        ("w holds a value that is not finite in row 1", {"w": np.stack([z[0], z[1] / np.float32("nan")])}),
        ("z holds a value that is not finite in row 0", {"z": np.full((1, 16), 1e300)}),
        ("complex64", {"z": z + 1j}),
        ("an array named ws or w or z", {"x": z, "y": z}),
        ("pickled", {"z": np.array([{}], dtype=object)}),
    ]
    for i, (message, arrays) in enumerate(wrong):
        np.savez(tmp_path / f"{i}.npz", **arrays)
        fails(
            cli("generate", styled, "--latents", tmp_path / f"{i}.npz"), f"--latents {tmp_path / f'{i}.npz'}", message
        )
    fails(cli("generate", trained.generator, "--latents", tmp_path / "4.npz"), "an array named z")
    np.save(tmp_path / "single.npy", z)
    (tmp_path / "text.npz").write_text("z = 3")
    (tmp_path / "empty.npz").touch()
    valid = (tmp_path / "0.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(valid[:-40])
    (tmp_path / "damaged.npz").write_bytes(valid.replace(bytes(8), b"\1" * 8, 1))
    for name in ("single.npy", "text.npz", "empty.npz", "cut.npz", "damaged.npz", "nothing.npz", "."):
        fails(cli("generate", styled, "--latents", tmp_path / name), f"--latents {tmp_path / name}")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("generate --truncation 0.5", "truncation 0.5"),
        ("generate --truncation nan", "truncation"),
        ("generate --noise none", "noise 'none'"),
        ("generate --latents a.npz --seeds 0-63", "--seeds and --latents"),
        ("generate --grid --seeds 0-99999", "--grid: at most 65536 images of 32 px, not 100000"),
        ("interpolate --space w", "--space w"),
        ("interpolate --out a.jpg", "--out a.jpg: the name must end in .gif or .png"),
        ("interpolate --seeds 3", "--seeds or --latents"),
        ("interpolate --seeds 1,1,2", "seed 1 "),
        ("interpolate --seeds 0-3,3", "seed 3 "),
        ("interpolate --seeds 5,5", "seed 5 "),
        ("interpolate --seeds 1,2,1 --loop", "seed 1"),
        ("interpolate --noise random", "--noise random"),
        ("interpolate --frames-between 1000000000", "--frames-between"),
        ("interpolate --latents a.npz --seeds 0-63", "--seeds and --latents"),
    ],
)
def test_bad_options(
    cli: Any, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    command, *options = words.split()
    fails(cli(command, trained.generator, *options), named)
    assert list(tmp_path.iterdir()) == []


def test_interpolation_as_a_strip(cli: Any, generated: Any, styled: Path, tmp_path: Path) -> None:
    plain = list(generated(styled, "--seeds", "5,1,3", "--truncation", 0.8).values())
    plain = [plain[2], plain[0], plain[1]]  # by the order of the seeds, not of their names
    strips = {}
    for space in ("w", "z"):
        file = tmp_path / "new" / f"{space}.png"
        arguments = ("--seeds", "5,1,3", "--truncation", 0.8, "--frames-between", 3, "--loop", "--space", space)
        result = cli("interpolate", styled, *arguments, "--out", file)
        assert result.exit_code == 0, result.output
        strip = pixels(file)
        assert strip.shape == (3 * 16, 5 * 16, 3)
        strips[space] = strip.reshape(3, 16, 5, 16, 3).swapaxes(1, 2)
        for row, image in enumerate(plain):
            assert np.array_equal(strips[space][row, 0], image)
            assert np.array_equal(strips[space][row - 1, 4], image)
    assert not np.array_equal(strips["w"], strips["z"])
    G = gan_uad.load(str(styled)).networks["gan"].G
    z = torch.stack([torch.randn(16, generator=torch.Generator().manual_seed(seed)) for seed in (5, 1)])
    middle = {
        "w": G.synthesis(G.spread(G.mapping.truncate(G.mapping(z).mean(0, keepdim=True), 0.8))),
        "z": G(z.sum(0, keepdim=True), 0.8),  # halfway on the sphere; the mapping uses only the direction
    }
    for space, images in middle.items():
        expected = (images[0].permute(1, 2, 0).numpy() * 127.5 + 128).clip(0, 255)
        assert np.abs(strips[space][0, 2] - expected).max() <= 1.5


def test_interpolation_as_an_animation(cli: Any, styled: Path, trained: Any, tmp_path: Path) -> None:
    for model, side, space in ((styled, 16, "w"), (trained.generator, 32, "z")):
        for loop, frames in (((), 13), (("--loop",), 18)):
            common = ("interpolate", model, "--seeds", "0-2", "--frames-between", 5, *loop, "--out")
            for suffix in ("gif", "png"):
                result = cli(*common, tmp_path / f"a.{suffix}", "--duration", 70)
                assert result.exit_code == 0, result.output
            assert cli(*common, tmp_path / "chosen.png", "--space", space).exit_code == 0
            assert (tmp_path / "a.png").read_bytes() == (tmp_path / "chosen.png").read_bytes()
            strip = pixels(tmp_path / "a.png").reshape(-1, side, 7, side, 3).swapaxes(1, 2)
            with Image.open(tmp_path / "a.gif") as gif:
                assert (gif.format, gif.n_frames, gif.size) == ("GIF", frames, (side, side))
                assert (gif.info["loop"], gif.info["duration"]) == (0, 70)
                for i in range(frames - 1):
                    gif.seek(i)
                    frame = np.asarray(gif.convert("RGB")).astype(int)
                    assert np.abs(frame - strip[i // 6, i % 6]).mean() < 6


def test_interpolation_of_latents(cli: Any, styled: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "ws.npz", ws=rng.normal(size=(2, 6, 16)))
    words = (
        "interpolate",
        styled,
        "--latents",
        tmp_path / "ws.npz",
        "--frames-between",
        0,
        "--out",
        tmp_path / "a.PNG",
    )
    assert cli(*words).exit_code == 0
    assert pixels(tmp_path / "a.PNG").shape == (16, 32, 3)
    fails(cli(*words, "--space", "z"), "--space z", "--space w")
    z = rng.normal(size=(1, 16))
    np.savez(tmp_path / "opposite.npz", z=np.concatenate([z, -z]))
    words = ("interpolate", styled, "--latents", tmp_path / "opposite.npz", "--out", tmp_path / "b.gif")
    fails(cli(*words, "--space", "z"), "latents 0 and 1", "--space w")
    assert cli(*words).exit_code == 0


@pytest.mark.numerical
def test_slerp_against_closed_forms() -> None:
    a, b = torch.tensor([2.0, 0.0, 0.0]), torch.tensor([0.0, 3.0, 0.0])
    for t in (0.0, 0.25, 0.5, 1.0):
        expected = torch.tensor([2 * math.cos(t * math.pi / 2), 3 * math.sin(t * math.pi / 2), 0.0])
        torch.testing.assert_close(slerp(a, b, t), expected, rtol=1e-6, atol=1e-6)
    c = torch.tensor([math.cos(2.0), math.sin(2.0), 0.0])  # unit vectors 2 rad apart: even steps of the angle
    torch.testing.assert_close(slerp(a / 2, c, 0.3), torch.tensor([math.cos(0.6), math.sin(0.6), 0.0]))
    torch.testing.assert_close(slerp(a, 2 * a, 0.5), 1.5 * a)
    assert torch.equal(slerp(a, a, 0.3), a)
    torch.testing.assert_close(slerp(a, 0 * a, 0.5), a * math.sin(math.pi / 4))  # no direction, but finite
    with pytest.raises(ValueError, match="opposite"):
        slerp(a, -a, 0.5)


def test_walks() -> None:
    keys = Latents("w", torch.tensor([[0.0], [3.0], [9.0]]), [0, 1, 2])
    assert walk(keys, 2).values[:, 0].tolist() == pytest.approx([0, 1, 2, 3, 5, 7, 9])
    assert walk(keys, 2, loop=True).values[:, 0].tolist() == pytest.approx([0, 1, 2, 3, 5, 7, 9, 6, 3])
    assert torch.equal(walk(keys, 0).values, keys.values)


def test_run_again_only_missing_images_are_made(
    cli: Any, styled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = job._write_png
    written: list[str] = []

    def spy(path: Path, image: Any, note: str) -> None:
        if len(written) == 5 and stop:
            raise KeyboardInterrupt
        written.append(path.stem)
        write(path, image, note)

    monkeypatch.setattr(job, "_write_png", spy)

    def run(*arguments: object) -> list[str]:
        written.clear()
        result = cli("generate", styled, "--seeds", "0-9", "--out", tmp_path / "out", *arguments)
        assert result.exit_code == (130 if stop else 0), result.output
        return list(written)

    def names(*seeds: int) -> list[str]:
        return [f"seed{seed:06d}" for seed in seeds]

    stop = True
    assert run() == names(*range(5))
    assert len(list((tmp_path / "out").iterdir())) == 5
    stop = False
    assert run("--grid") == names(*range(5, 10))
    complete = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert run() == []
    (tmp_path / "out" / "seed000002.png").write_bytes(complete["seed000002.png"][:-60])
    (tmp_path / "out" / "seed000003.png").unlink()
    Image.new("RGB", (16, 16)).save(tmp_path / "out" / "seed000004.png")
    assert run() == names(2, 3, 4)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == complete
    note = json.loads(Image.open(tmp_path / "out" / "seed000007.png").info["gan_uad"])
    assert (note["seed"], note["truncation"], note["noise"]) == (7, 1.0, "const")
    assert run("--truncation", 0.5) == names(*range(10))
    assert run("--truncation", 0.5, "--noise", "none") == names(*range(10))
    again = tmp_path / "again"
    assert cli("generate", styled, "--seeds", "0-9", "--grid", "--out", again).exit_code == 0
    assert {file.name: file.read_bytes() for file in again.iterdir()} == complete


def test_images_of_two_kinds_never_share_a_folder(
    cli: Any, styled: Path, trained: Any, tmp_path: Path, generated: Any
) -> None:
    out = tmp_path / "out"
    assert cli("generate", styled, "--seeds", "0-9", "--grid", "--out", out).exit_code == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    for words, named in (
        ((trained.generator, "--seeds", "0-3"), "model"),
        ((trained.generator, "--seeds", "20-23", "--npz"), "model"),
        ((trained.generator, "--seeds", "0-9"), "model"),
        ((styled, "--seeds", "0-8", "--truncation", 0.5), "truncation"),
        ((styled, "--seeds", "20", "--noise", "none"), "noise"),
    ):
        fails(cli("generate", *words, "--out", out), str(out), named, "seed00000")
    assert cli("generate", styled, "--seeds", "0-3", "--npz", "--out", tmp_path / "npz").exit_code == 0
    assert cli("generate", styled, "--seeds", "4-7", "--npz", "--out", tmp_path / "npz2").exit_code == 0
    first, second = tmp_path / "npz" / "images.npz", tmp_path / "npz2" / "images.npz"
    fails(cli("generate", styled, "--latents", first, "--out", out), str(out), "seeds")
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert cli("generate", styled, "--seeds", "20", "--out", out).exit_code == 0
    assert len(list(out.glob("seed*.png"))) == 11
    latents = tmp_path / "latents"
    for _ in range(2):
        assert cli("generate", styled, "--latents", first, "--out", latents).exit_code == 0
    fewer = tmp_path / "fewer.npz"
    np.savez(fewer, w=np.load(second)["w"][:3])
    fails(cli("generate", styled, "--latents", fewer, "--out", latents), str(latents), "latents")
    assert cli("generate", styled, "--latents", second, "--out", latents).exit_code == 0
    fails(cli("generate", styled, "--seeds", "1", "--out", latents), str(latents), "latents")


@pytest.mark.parametrize("seeds", ["1,1,2", "0-3,2", "0,0"])
def test_a_seed_named_twice(cli: Any, trained: Any, tmp_path: Path, seeds: str) -> None:
    fails(cli("generate", trained.generator, "--seeds", seeds, "--out", tmp_path / "out"), "--seeds", "once")
    assert not (tmp_path / "out").exists()


def test_from_python(styled: Path, trained: Any) -> None:
    model = gan_uad.load(str(styled))
    assert torch.equal(model.generate([1, 2]), model.generate(seeds=[1, 2], psi=1, noise="const"))
    plain = gan_uad.load(str(trained.generator))
    assert plain.generate([1, 2]).shape == (2, 3, 32, 32)
    for options in ({"psi": 0.5}, {"noise": "random"}):
        with pytest.raises(UserError, match="StyleGAN2"):
            plain.generate([1], **options)
    with pytest.raises(UserError, match="wild"):
        model.generate([1], noise="wild")


def test_a_compiled_generator(cli: Any, styled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network that makes images is compiled, and its images are others to a later call. (That it compiles: test_stylegan2.py.)"""
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    command = ["generate", styled, "--seeds", "0,1", "--out", tmp_path]
    assert cli(*command, "--compile").exit_code == 0
    assert compiled == ["Synthesis"]
    notes = [json.loads(Image.open(file).info["gan_uad"]) for file in sorted(tmp_path.glob("*.png"))]
    assert [note.get("compiled") for note in notes] == [True, True]
    assert cli(*command).exit_code == 0
    assert "compiled" not in Image.open(tmp_path / "seed000000.png").info["gan_uad"]


def test_a_machine_that_cannot_compile(cli: Any, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no compiler\nand why")

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: setattr(self, "_compiled_call_impl", fail))
    fails(cli("generate", trained.generator, "--seeds", "0", "--compile", "--out", tmp_path / "out"), "--compile")
    assert not (tmp_path / "out").exists()
