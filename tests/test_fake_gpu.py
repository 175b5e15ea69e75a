"""What would happen on a GPU, without one: no tensor on the wrong device, the same results, few kernels, and no waits in a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fake_gpu import DeviceMistake, FakeGpu, fake_gpu, without_cuda_kernel
from safetensors.torch import load_file
from sharing import once

from gan_uad.config import load_config
from gan_uad.training.engine import LOW_PRECISION
from gan_uad.training.train import build_task

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
    "efficientnet": ("efficientnet_lite0", "supervised", "", {"hidden": 8, "frozen": False}, {"schedule": "cosine", "schedule_kimg": 1}),
    "conv_vae": ("conv_vae", "vae", "", {"latent_dim": 4, "channels": [4, 8]}, {}),
    "attn_conv_vae": ("attn_conv_vae", "vae", "", {"latent_dim": 4, "channels": [4, 8]}, {}),
    "fc_vae": ("fc_vae", "vae", "", {"latent_dim": 4, "hidden": [8]}, {}),
    "skin_vae": ("skin_vae", "vae", "", {"latent_dim": 4, "channels": [4, 8], "hidden": 8}, {}),
    "unet_vae": ("unet_vae", "vae", "", {"latent_dim": 4, "frozen": False}, {"init": "none"}),
    "cnn_vae": ("cnn_vae", "vae", "", {"latent_dim": 4, "channels": [4], "vae_channels": [4]}, {"init": "none"}),
}  # fmt: skip
STEPS, BATCH = 4, 4
# 1×1 maps, for which torch has several kernels; batch norm of four values amplifies their rounding.
AMPLIFIED = {"efficientnet"}
# A GPU has others in their place, which are chosen by the device.
OF_THE_CPU = {
    "aten::_scaled_dot_product_flash_attention_for_cpu", "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
}  # fmt: skip


def run_folder(root: Path, name: str) -> Path:
    return root / name / f"00000-{name}"


@pytest.fixture(scope="session")
def trained_on_the_cpu(tiny: Any, cli: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run folder of a name in `RUNS`, trained for some steps."""

    def of(name: str) -> Path:
        def make(root: Path) -> None:
            train(cli, tiny, name, root, of(RUNS[name][2]) if RUNS[name][2] else None, "cpu")

        return run_folder(once(tmp_path_factory, f"cpu_{name}", make), name)

    return of


def train(cli: Callable[..., Any], tiny: Any, name: str, root: Path, generator: Path | None, device: str) -> Path:
    model, task, _, network, optim = RUNS[name]
    training = {"total_kimg": STEPS * BATCH / 1000, "batch": BATCH, "device": device, "precision": "fp32", "snapshot_kimg": 1}
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
    if name not in AMPLIFIED:
        assert_same(*(torch.load(run / "state.pt", weights_only=True) for run in (found, expected)), name)


def assert_same(a: Any, b: Any, where: str) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a.cpu(), b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}.{k}")
    else:
        assert a == b or (isinstance(a, float) and math.isnan(a)), where
