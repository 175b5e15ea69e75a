"""What would happen on a GPU, without one: no tensor on the wrong device, the same results, few kernels, and no waits in a step."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from fake_gpu import DeviceMistake, fake_gpu, without_cuda_kernel
from PIL import Image
from run_tools import same, state
from sharing import once

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts" / "bench"))
from gpu_counts import CASES, count

STYLE = {"z_dim": 8, "w_dim": 8, "mapping_layers": 2, "channel_base": 128, "channel_max": 8}
SIZES = {"z_dim": 4, "channel_base": 64, "channel_max": 8}
ADA = {"augment": "bgc", "augment_p": 0.8, "path_interval": 2, "r1_interval": 2}
GROWTH = {"level_kimg": 0.004, "fade_kimg": 0.008, "batch_per_level": {}}
JITTER = {"shift": 0.1, "rotation": 20.0, "brightness": 0.1, "balance": "weight"}
# model, task, the run of the generator, network, optim
RUNS: dict[str, tuple[str, str, str, dict[str, Any], dict[str, Any]]] = {
    "dcgan": ("dcgan", "dcgan", "", SIZES, {}),
    "wgan_gp": ("wgan_gp", "wgan_gp", "", SIZES, {"n_critic": 2}),
    "pgan": ("pgan", "pgan", "", SIZES | {"channel_base": 128}, GROWTH),
    "stylegan": ("stylegan", "stylegan", "", STYLE, GROWTH),
    "stylegan2": ("stylegan2", "stylegan2", "", STYLE, ADA),
    "stylegan2_ada": ("stylegan2", "stylegan2", "", STYLE, {"augment": "bg"}),
    "izi_f": ("residual_encoder", "izi_f", "wgan_gp", SIZES, {}),
    "izi": ("residual_encoder", "izi", "wgan_gp", SIZES, {}),
    "ziz": ("residual_encoder", "ziz", "dcgan", SIZES, {}),
    "style_encoder": ("style_encoder", "style_encoder", "stylegan2", {"channel_base": 128, "channel_max": 8, "predict_noise": True}, {}),
    "cnn": ("cnn", "supervised", "", {"channels": [4, 8], "hidden": [8], "dropout": 0.5}, JITTER),
    "densenet": ("densenet121", "supervised", "", {"growth_rate": 4, "block_config": [1, 1], "init_features": 4}, {"augment": 1.0}),
    "conv_vae": ("conv_vae", "vae", "", {"latent_dim": 4, "channels": [4, 8]}, {}),
    "attn_conv_vae": ("attn_conv_vae", "vae", "", {"latent_dim": 4, "channels": [4, 8]}, {}),
    "fc_vae": ("fc_vae", "vae", "", {"latent_dim": 4, "hidden": [8]}, {}),
    "skin_vae": ("skin_vae", "vae", "", {"latent_dim": 4, "channels": [4, 8], "hidden": 8}, {}),
    "cnn_vae": ("cnn_vae", "vae", "", {"latent_dim": 4, "channels": [4], "vae_channels": [4]}, {"init": "none"}),
}  # fmt: skip
BATCH = 4
# A GPU has others in their place, which are chosen by the device.
OF_THE_CPU = {
    "aten::_scaled_dot_product_flash_attention_for_cpu", "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
}  # fmt: skip


def run_folder(root: Path, name: str) -> Path:
    return root / name / f"00000-{name}"


@pytest.fixture(scope="session")
def trained_on_the_cpu(
    tiny: Any, cli: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The run folder of a name in `RUNS`, trained for some steps."""

    def of(name: str) -> Path:
        def make(root: Path) -> None:
            train(cli, tiny, name, root, of(RUNS[name][2]) if RUNS[name][2] else None, "cpu")

        return run_folder(once(tmp_path_factory, f"cpu_{name}", make), name)

    return of


def train(cli: Callable[..., Any], tiny: Any, name: str, root: Path, generator: Path | None, device: str) -> Path:
    model, task, _, network, optim = RUNS[name]
    steps = 4 if name == "stylegan2_ada" else 2  # when its probability moves
    training = {
        "total_kimg": steps * BATCH / 1000,
        "batch": BATCH,
        "device": device,
        "precision": "fp32",
        "snapshot_kimg": 1,
    }
    training |= {"tick_kimg": 0.008, "checkpoint_kimg": 0.008}
    config = {"model": model, "task": task, "resolution": 32, "network": network, "optim": optim, "training": training}
    config["data"] = {"path": str(tiny.patches)} | ({"label": "all"} if task == "supervised" else {})
    (root / f"{name}.yaml").write_text(yaml.safe_dump(config))
    words = ["--generator", generator] if generator else []
    result = cli("train", root / f"{name}.yaml", "--out", root / name, *words)
    assert result.exit_code == 0, (result.output, result.exception)
    return run_folder(root, name)


@pytest.mark.parametrize("name", RUNS)
def test_a_training_is_that_of_the_cpu(
    name: str, tiny: Any, cli: Callable[..., Any], trained_on_the_cpu: Callable[[str], Path], tmp_path: Path
) -> None:
    """With checkpoints, snapshots, a resume and all: the weights are the same to the bit, since the fake device computes on the CPU."""
    expected = trained_on_the_cpu(name)
    generator = trained_on_the_cpu(RUNS[name][2]) if RUNS[name][2] else None
    with fake_gpu() as gpu:
        found = train(cli, tiny, name, tmp_path, generator, "cuda")
    assert sum(gpu.launches.values()) > 100
    if torch.backends.cuda.is_built():
        assert set(without_cuda_kernel(gpu.ops)) <= OF_THE_CPU
    same(*(state(run)["task"] for run in (found, expected)), name)


# ---------------------------------------------------------------- the other commands

FEW = ["-o", "scoring.calibration_images=2"]
SEARCH = [*FEW, "-o", "scoring.options.steps=2", "-o", "scoring.options.perceptual=efficientnet_lite0"]
PIXELS, LITE = (["-o", f"scoring.options.features={features}"] for features in ("pixels", "efficientnet_lite0@64"))
SCORED: dict[str, tuple[str, list[str]]] = {
    "izi_f": ("izi_f", ["--maps"]),
    "anogan": ("wgan_gp", ["--inverter", "anogan", "-o", "scoring.options.steps=2"]),
    "style_encoder": ("style_encoder", [*FEW, "-o", "scoring.options.steps=2"]),
    "w": ("stylegan2", ["--inverter", "w", *SEARCH]),
    "w_plus": ("stylegan", ["--inverter", "w_plus", *SEARCH]),
    "z": ("wgan_gp", ["--inverter", "z", *SEARCH]),
    "vae": ("conv_vae", ["-o", "scoring.scorer=vae"]),
    "classifier": ("cnn", ["-o", "scoring.scorer=classifier", "--threshold", "manual:0"]),
    "fid": ("wgan_gp", ["-o", "scoring.scorer=fid", *PIXELS]),
}
FITTED = {
    "mean_color": [], "knn": LITE, "mahalanobis": PIXELS, "mahalanobis_multilayer": LITE, "patchcore": LITE, "one_class_svm": PIXELS,
    "isolation_forest": [*PIXELS, "-o", "scoring.options.trees=5"], "local_outlier_factor": [*PIXELS, "-o", "scoring.options.k=2"],
}  # fmt: skip


def on_both(cli: Callable[..., Any], out: Path, *words: object) -> tuple[Path, Path]:
    """The folders that a command wrote on the CPU and on the fake device."""
    folders = out / "cpu", out / "cuda"
    for folder in folders:
        command = [*words, "--device", folder.name, "--out", folder]
        if folder.name == "cpu":
            result = cli(*command)
        else:
            with fake_gpu():
                result = cli(*command)
        assert result.exit_code == 0, (result.output, result.exception)
    return folders


@pytest.mark.parametrize("name", [*SCORED, *FITTED])
def test_scores_are_those_of_the_cpu(
    name: str, tiny: Any, cli: Callable[..., Any], trained_on_the_cpu: Callable[[str], Path], fast: None, tmp_path: Path
) -> None:
    """Every scorer and every inverter; calibration, maps and components included."""
    if name in FITTED:
        fit = [
            "train",
            name,
            "--data",
            tiny.patches,
            "--out",
            tmp_path / "runs",
            *FITTED[name],
            "-o",
            "training.device=cuda",
        ]
        with fake_gpu():
            result = cli(*fit)
        assert result.exit_code == 0, (result.output, result.exception)
        run, words = run_folder(tmp_path, "runs").parent / f"00000-{name}", []
    else:
        run, words = trained_on_the_cpu(SCORED[name][0]), SCORED[name][1]
    cpu, cuda = on_both(cli, tmp_path / "scores", "score", run, "--split", "all", "--max-images", 2, *words)
    assert (cpu / "scores.csv").read_bytes() == (cuda / "scores.csv").read_bytes()


def test_pictures_and_figures_are_those_of_the_cpu(
    tiny: Any, cli: Callable[..., Any], trained_on_the_cpu: Callable[[str], Path], tmp_path: Path
) -> None:
    """`generate`, `project` and `fid`."""
    run = trained_on_the_cpu("stylegan2")
    for command in (
        ["generate", run, "--seeds", "0-2", "--noise", "random"],
        ["project", run, tiny.patches / "normal" / "0.png", "-o", "steps=2", "-o", "perceptual=efficientnet_lite0"],
    ):
        cpu, cuda = on_both(cli, tmp_path / str(command[0]), *command)
        images = [file.relative_to(cpu) for file in cpu.rglob("*.png")]
        assert images
        for image in images:
            ours, theirs = (np.asarray(Image.open(folder / image).convert("RGB"), int) for folder in (cuda, cpu))
            assert np.abs(ours - theirs).max() <= 1, image  # torch may choose another kernel under a dispatch mode
    cpu, cuda = on_both(cli, tmp_path / "fid", "fid", run, "--real", tiny.patches, "--num", 8, "--split", "all")
    ours, theirs = (json.loads((folder / "fid.json").read_text()) for folder in (cuda, cpu))
    assert [row["value"] for row in ours] == pytest.approx([row["value"] for row in theirs], rel=1e-3)


# ---------------------------------------------------------------- what the fake device catches


def beside_the_cpu(x: torch.Tensor) -> Any:
    return x * torch.ones(3)


def seen_by_numpy(x: torch.Tensor) -> Any:
    return x.detach().numpy()


def drawn_elsewhere(x: torch.Tensor) -> Any:
    return torch.randn(3, generator=torch.Generator(), device=x.device)


@pytest.mark.parametrize("mistake", [beside_the_cpu, seen_by_numpy, drawn_elsewhere])
def test_mistakes_are_caught(mistake: Callable[[torch.Tensor], Any]) -> None:
    """Three bugs that a test on the CPU cannot see."""
    mistake(torch.ones(3))
    with fake_gpu(), pytest.raises(DeviceMistake):
        mistake(torch.ones(3).to("cuda"))


def test_waits_are_counted() -> None:
    with fake_gpu() as gpu:
        x = torch.arange(4.0).to("cuda")
        gpu.reset()
        y = (x * 2).sum() + x[1:].clone().square_().mean()
        assert not gpu.waits
        for wait in (
            y.item,
            y.cpu,
            x.tolist,
            lambda: float(y),
            lambda: x[x > 1],
            lambda: x.copy_(torch.ones(4)),
            x.nonzero,
        ):
            gpu.reset()
            wait()
            assert sum(gpu.waits.values()) == 1
        gpu.reset()
        x.copy_(torch.ones(4).pin_memory(), non_blocking=True)
        torch.ones(4).pin_memory().to("cuda", non_blocking=True)
        assert not gpu.waits
        assert y.device.type == "cuda"
    assert torch.ones(1).device.type == "cpu"


# ---------------------------------------------------------------- budgets: kernels, bytes and waits of a step

# Kernels of a step, by torch 2.14. A warm step waits nowhere but here.
BUDGETS = {
    "stylegan2_64_small": 1535, "stylegan2_64_small_ada": 1537, "stylegan2_64_small_augmented": 1613,
    "stylegan_64": 1441, "pgan_64": 1006, "wgan_gp_64_small": 1066, "dcgan_64": 194, "izi_f_64": 383,
    "style_encoder_64": 2103, "conv_vae_64": 125, "unet_vae_64": 379, "densenet121_64": 1500,
    "efficientnet_lite0_64": 437, "search_w": 1026,
}  # fmt: skip
WAITS = {"search_w": {"encoders/projection.py:step": 1.0}}  # whether an image is done


@pytest.mark.parametrize("case", BUDGETS)
def test_a_step_keeps_its_budget(case: str) -> None:
    """Kernels to 5 %, and the written places alone wait."""
    found = count(case)
    assert dict(found.waits) == WAITS.get(case, {})
    assert found.launches == pytest.approx(BUDGETS[case], rel=0.05)


def test_a_large_step_keeps_its_budget() -> None:
    """StyleGAN2-E at 256 px, batch 32: at most 160 GB."""
    assert count("stylegan2_e_256").gigabytes < 160
    assert set(BUDGETS) < set(CASES)
