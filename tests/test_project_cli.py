"""`gan-uad project` from the outside: its files, resuming after a stop, and what it refuses."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from projection_tools import SIZES, colour_distance, made, toy
from score_tools import fails

from gan_uad import http as download
from gan_uad import registry
from gan_uad.checkpoint import save_model
from gan_uad.data.patches import to_uint8
from gan_uad.detection import project as job
from gan_uad.plotting.projection import loss_curve

QUICK = ("-o", "steps=3", "-o", "micro_batch=2")


@pytest.fixture(scope="module")
def nets() -> dict[str, Any]:
    found = toy("stylegan2")
    found["encoder"] = registry.build("network", "residual_encoder", SIZES).eval()
    return found


@pytest.fixture(scope="module")
def model(nets: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model") / "toy.safetensors", {"gan": nets["gan"]}, "stylegan2")


@pytest.fixture(scope="module")
def encoder(nets: dict[str, Any], model: Path) -> Path:
    return saved(model.with_name("encoder.safetensors"), nets, "izi_f")


def saved(path: Path, networks: dict[str, Any], task: str, **data: Any) -> Path:
    config = {"model": "toy", "task": task, "resolution": 32, "training": {"total_kimg": 1}, "data": data}
    save_model(path, networks, {"config": config, "nimg": 0})
    return path


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("encoders.projection.perceptual_distance", colour_distance)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the plots, which take longer than the search here."""
    monkeypatch.setattr(job, "triplets", lambda *_, **__: None)
    monkeypatch.setattr(job, "loss_curve", lambda *_, **__: None)


@pytest.fixture
def patches(nets: dict[str, Any], tmp_path: Path) -> Path:
    """Three images that the generator makes."""
    folder = tmp_path / "patches"
    folder.mkdir()
    for i, image in enumerate(to_uint8(made(nets, 3))):
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "projections.csv", newline="") as file:
        return list(csv.DictReader(file))


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def arrays(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def test_the_files(cli: Any, nets: dict[str, Any], model: Path, patches: Path, tmp_path: Path) -> None:
    result = cli("project", model, patches / "1.png", "--out", tmp_path / "out", "--gif", "--seed", 7, *QUICK)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / "out")
    folder = tmp_path / "out" / "1"
    names = ["latent.npz", "loss.png", "progress.gif", "projection.json", "reconstruction.png", "side_by_side.png"]
    assert sorted(file.name for file in folder.iterdir()) == names
    latent = arrays(folder / "latent.npz")
    assert (str(latent["space"]), int(latent["seed"]), int(latent["steps"])) == ("w", 7, 3)
    assert latent["loss"].shape == (3,)
    G = nets["gan"].G
    noise = [torch.from_numpy(latent[f"noise_{i:02d}"]) for i in range(len(G.synthesis.noise_shapes))]
    with torch.no_grad():
        again = G.synthesis(G.spread(torch.from_numpy(latent["w"])), noise).clamp(-1, 1)
    shown = pixels(folder / "reconstruction.png")
    assert int(np.abs(to_uint8(again)[0].astype(int) - shown).max()) <= 1
    target = torch.from_numpy(pixels(patches / "1.png")).permute(2, 0, 1)[None] / 127.5 - 1
    (row,) = rows(tmp_path / "out")
    assert (row["image"], row["folder"], row["steps"]) == (str((patches / "1.png").resolve()), "1", "3")
    assert float(row["distance"]) == pytest.approx(float(colour_distance()(target, again)), rel=1e-4)
    assert float(row["l2"]) == pytest.approx(float((target - again).square().mean()), rel=1e-4)
    assert float(row["seconds"]) > 0
    described = json.loads((tmp_path / "out" / "projections.json").read_text())
    assert described["inverter"]["name"] == "w"  # of a style-based generator without an encoder
    assert described["distance"] == "colour distance"
    with Image.open(folder / "progress.gif") as gif:
        assert gif.n_frames >= 3
        assert gif.size == (2 * 32 * 8, 32 * 8)
    assert pixels(folder / "side_by_side.png").std() > 10


@pytest.mark.usefixtures("plain")
def test_the_curve_says_what_was_found(
    cli: Any, model: Path, patches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step saw another image, with noise on its latent: both numbers are in the title."""
    titles = []

    @contextmanager
    def seen(*_: Any) -> Iterator[Figure]:
        figure = Figure()
        yield figure
        titles.append(figure.axes[0].get_title())

    monkeypatch.setattr("gan_uad.plotting.projection.figure_file", seen)
    monkeypatch.setattr(job, "loss_curve", loss_curve)
    assert cli("project", model, patches / "1.png", "--out", tmp_path / "out", *QUICK).exit_code == 0
    last = float(arrays(tmp_path / "out" / "1" / "latent.npz")["loss"][-1])
    found = float(rows(tmp_path / "out")[0]["distance"])
    assert titles == [f"last step {last:.4g}, image found {found:.4g}"]
    assert f"{last:.4g}" != f"{found:.4g}"


@pytest.mark.usefixtures("plain")
def test_generate_makes_the_reconstruction_of_a_latent(cli: Any, model: Path, patches: Path, tmp_path: Path) -> None:
    """With the noise maps that were found, also by way of `--npz`; a walk between latents says that it leaves them out."""
    assert cli("project", model, patches / "1.png", "--out", tmp_path / "out", *QUICK).exit_code == 0
    latent, shown = (tmp_path / "out" / "1" / name for name in ("latent.npz", "reconstruction.png"))

    def off(source: Path, *words: str) -> int:
        result = cli("generate", model, "--latents", source, "--out", tmp_path / "made", *words)
        assert result.exit_code == 0, result.output
        return int(np.abs(pixels(tmp_path / "made" / "latent000000.png").astype(int) - pixels(shown)).max())

    assert off(latent) <= 1
    assert off(latent, "--noise", "none") > 3
    found = arrays(latent)
    bare, turned = {"w": found["w"]}, {k: -v if k.startswith("noise_") else v for k, v in found.items()}
    for name, held in {"bare": bare, "turned": turned}.items():
        np.savez(tmp_path / f"{name}.npz", **held)
        assert off(tmp_path / f"{name}.npz") > 3  # and not reused from the image that is there already
    assert off(latent) <= 1
    assert cli("generate", model, "--latents", latent, "--out", tmp_path / "all", "--npz").exit_code == 0
    assert off(tmp_path / "all" / "images.npz") <= 1
    two = {k: np.repeat(v, 2, 0) for k, v in found.items() if k == "w" or k.startswith("noise_")}
    np.savez(tmp_path / "two.npz", **two)
    result = cli("generate", model, "--latents", tmp_path / "two.npz", "--interpolate", tmp_path / "a.png")
    assert "two.npz" in result.stderr
    wrong = {
        "[1, 1, 16, 15]": {"noise_03": found["noise_03"][..., 1:]},
        "noise_02": {"noise_02": found["noise_02"] * np.nan},
        "noise_07": {"noise_07": found["noise_06"]},
        "1 latents": {"noise_00": two["noise_00"]},
    }
    for message, change in wrong.items():
        np.savez(tmp_path / "wrong.npz", **(found | change))
        fails(cli("generate", model, "--latents", tmp_path / "wrong.npz", "--out", tmp_path / "made"), message)


@pytest.mark.usefixtures("plain")
def test_folders_stay_inside_whatever_images_are_called(cli: Any, encoder: Path, patches: Path, tmp_path: Path) -> None:
    """And what earlier calls found stays in the table."""
    names = ["..png", "...png", "ä b;c.png", "projections.csv.png"]
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes((patches / "0.png").read_bytes())
    out = tmp_path / "here" / "out"
    result = cli("project", encoder, *(folder / name for name in names), "--out", out)
    assert result.exit_code == 0, result.output
    expected = ["image", "image-2", "ä b;c", "projections.csv-2"]
    assert [row["folder"] for row in rows(out)] == expected
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert sorted(path.name for path in out.iterdir()) == sorted([*expected, "projections.csv", "projections.json"])
    assert cli("project", encoder, patches / "1.png", "--out", out).exit_code == 0
    assert [row["folder"] for row in rows(out)] == ["1", *sorted(expected)]


@pytest.mark.usefixtures("plain")
def test_images_of_all_kinds(cli: Any, model: Path, nets: dict[str, Any], tmp_path: Path) -> None:
    """Another size by the run's rule, which is said; grey, alpha and 16 bits; a broken one is skipped and listed."""
    folder = tmp_path / "kinds"
    (folder / "below").mkdir(parents=True)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / "wide.png")
    Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).save(folder / "grey.png")
    Image.fromarray(rng.integers(0, 256, (32, 32, 4), dtype=np.uint8)).save(folder / "below" / "alpha.png")
    Image.fromarray(rng.integers(0, 65536, (32, 32), dtype=np.uint16)).save(folder / "deep.png")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image either")
    result = cli("project", model, folder, "--out", tmp_path / "out", *QUICK)
    assert result.exit_code == 0, result.output
    assert {row["folder"] for row in rows(tmp_path / "out")} == {"wide", "grey", "alpha", "deep"}
    assert all(text in result.stderr for text in ("1 image of 48x40 px", "middle 40 px", "32 px (bicubic)"))
    assert "broken.png: " in result.stderr.splitlines()[-1]
    cropped = saved(tmp_path / "cropped.safetensors", {"gan": nets["gan"]}, "stylegan2", crop="center", crop_size=36)
    result = cli("project", cropped, folder, "--out", tmp_path / "cropped", *QUICK)
    assert "middle 36 px" in result.stderr
    assert "grey.png: 32x32 px" in result.stderr
    assert {row["folder"] for row in rows(tmp_path / "cropped")} == {"wide"}


@pytest.mark.usefixtures("plain")
def test_images_of_one_name_get_folders_of_their_own(cli: Any, model: Path, patches: Path, tmp_path: Path) -> None:
    """In whatever order they come the next time, and the same image twice is one; nothing is done again."""
    other = tmp_path / "other"
    other.mkdir()
    Image.fromarray(255 - pixels(patches / "0.png")).save(other / "0.png")
    out = tmp_path / "out"
    assert cli("project", model, patches / "0.png", "--out", out, *QUICK).exit_code == 0
    result = cli("project", model, other, patches / "0.png", other / "0.png", "--out", out, *QUICK)
    assert result.exit_code == 0, result.output
    assert "1 image done already" in result.stderr
    assert [(row["image"], row["folder"]) for row in rows(out)] == [
        (str((other / "0.png").resolve()), "0-2"),
        (str((patches / "0.png").resolve()), "0"),
    ]
    latents = [arrays(out / name / "latent.npz")["w"] for name in ("0", "0-2")]
    assert not np.array_equal(*latents)
    # Both new in one call, and as they were found apart.
    assert cli("project", model, patches / "0.png", other, "--out", tmp_path / "both", *QUICK).exit_code == 0
    for name, latent in zip(("0", "0-2"), latents, strict=True):
        assert np.array_equal(arrays(tmp_path / "both" / name / "latent.npz")["w"], latent)


@pytest.mark.usefixtures("plain")
def test_an_interrupted_batch_goes_on(
    cli: Any, model: Path, patches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while the second image is being written: the first is kept, the others come out as without a stop."""
    write = job._write_latent
    written: list[str] = []

    def stopping(path: Path, *rest: Any) -> None:
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(path.parent.name)
        write(path, *rest)

    command = ["project", model, patches, *QUICK, "--out"]
    assert cli(*command, tmp_path / "complete").exit_code == 0
    monkeypatch.setattr(job, "_write_latent", stopping)
    assert cli(*command, tmp_path / "out").exit_code == 130
    assert [row["folder"] for row in rows(tmp_path / "out")] == written == ["0"]
    monkeypatch.setattr(
        job, "_write_latent", lambda path, *rest: (written.append(path.parent.name), write(path, *rest))
    )
    result = cli(*command, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert written == ["0", "1", "2"]
    assert "1 image done already" in result.stderr
    for a, b in zip(rows(tmp_path / "out"), rows(tmp_path / "complete"), strict=True):
        assert [a[k] for k in ("image", "folder", "distance", "steps")] == [
            b[k] for k in ("image", "folder", "distance", "steps")
        ]
    for name in "012":
        one, two = (arrays(tmp_path / out / name / "latent.npz") for out in ("out", "complete"))
        assert one.keys() == two.keys()
        assert all(np.array_equal(one[key], two[key]) for key in one)
    assert not list((tmp_path / "out").rglob(".*"))
    # Done is only what was done of the same pixels.
    Image.fromarray(255 - pixels(patches / "1.png")).save(patches / "1.png")
    assert cli(*command, tmp_path / "out").exit_code == 0
    assert written[3:] == ["1"]
    fails(cli(*command, tmp_path / "out", "--seed", 3), str(tmp_path / "out"), "--out")


@pytest.mark.usefixtures("plain")
def test_every_inverter(cli: Any, encoder: Path, patches: Path, tmp_path: Path) -> None:
    """An encoder's run is inverted by it; others by name. Where there are no steps there is no curve."""
    result = cli("project", encoder, patches, "--out", tmp_path / "izi_f")
    assert result.exit_code == 0, result.output
    assert [row["steps"] for row in rows(tmp_path / "izi_f")] == ["0"] * 3
    assert cli("project", encoder, patches / "2.png", "--out", tmp_path / "alone").exit_code == 0
    assert rows(tmp_path / "alone")[0]["distance"] == rows(tmp_path / "izi_f")[2]["distance"]
    assert not (tmp_path / "izi_f" / "0" / "loss.png").exists()
    assert arrays(tmp_path / "izi_f" / "0" / "latent.npz")["z"].shape == (1, 8)
    for name, space, shape in (("anogan", "z", (1, 8)), ("w_plus", "ws", (1, 8, 8)), ("z", "z", (1, 8))):
        result = cli("project", encoder, patches / "0.png", "--inverter", name, "--out", tmp_path / name, *QUICK)
        assert result.exit_code == 0, result.output
        assert arrays(tmp_path / name / "0" / "latent.npz")[space].shape == shape


def test_what_is_refused(
    cli: Any, model: Path, encoder: Path, patches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: object, run: Path = model) -> Any:
        return cli("project", run, *arguments, "--out", tmp_path / "out")

    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_bytes(b"")
    fails(run(tmp_path / "none.png"), "none.png")
    fails(run(tmp_path / "empty"), str(tmp_path / "empty"))
    fails(run(tmp_path / "bad.png"), "bad.png")
    fails(run(patches, run=tmp_path / "no.safetensors"), "no.safetensors")
    fails(run(patches, "--inverter", "w_pus"), "'w_plus'")
    fails(run(patches, "-o", "stesp=3"), "'stesp'", "'steps'")
    fails(run(patches, "-o", "steps"), "key=value")
    fails(run(patches, "--inverter", "izi_f"), "gan-uad train izi_f_64")
    fails(run(patches, "--gif", run=encoder), "--gif", "izi_f", "--inverter w")
    fails(run(patches, "--seed", 1, run=encoder), "--seed 1", "izi_f")
    fails(run(patches, *QUICK, "-o", "lr=1e38", "-o", "steps=20"), "step", "lower lr than 1e+38", code=1)
    flat = saved(tmp_path / "flat.safetensors", toy("wgan_gp"), "wgan_gp")
    fails(run(patches, "--inverter", "w", run=flat), "--inverter z")
    broken = toy("wgan_gp")
    with torch.no_grad():
        for weights in broken["gan"].G.parameters():
            weights.fill_(3e38)  # finite, but no image is
    damaged = saved(tmp_path / "damaged.safetensors", broken, "wgan_gp")
    fails(run(patches / "0.png", *QUICK, run=damaged), "0.png", code=1)
    monkeypatch.undo()
    monkeypatch.setenv("GAN_UAD_WEIGHTS", str(tmp_path / "empty"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)

    def unreachable(*_: Any) -> None:
        raise download.Unreachable("no network")

    monkeypatch.setattr("gan_uad.features.weights.download", unreachable)
    fails(run(patches), "vgg16", "perceptual=efficientnet_lite0")
