"""StyleGAN2 against arrays that the original implementation computed, published counts, and slow definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gan_uad.networks.stylegan2 import StyleGAN2

pytestmark = pytest.mark.numerical

GOLDEN = Path(__file__).parent / "golden" / "stylegan2_32.npz"


def their_name(name: str) -> str:
    """The original's name of one of our parameters or buffers."""
    part, *rest = name.split(".")
    if part == "G" and rest[0] == "mapping":
        return "G/mapping.w_avg" if rest[1] == "w_avg" else f"G/mapping.fc{rest[2]}.{rest[3]}"
    if part == "G" and rest[1] == "const":
        return "G/synthesis.b4.const"
    if part == "G":
        i = int(rest[2])
        inner = ".".join(rest[3:]).removeprefix("conv.").replace("noise", "noise_const", 1)
        inner = inner.replace("noise_const_strength", "noise_strength")
        if rest[1] == "to_rgb":
            return f"G/synthesis.b{4 << i}.torgb.{inner}"
        return f"G/synthesis.b{4 << (i + 1) // 2}.conv{int(i % 2 == 0)}.{inner}"
    if rest[0] == "from_rgb":
        return f"D/b32.fromrgb.{rest[1]}"
    if rest[0] == "blocks":
        return f"D/b{32 >> int(rest[1])}.{rest[2]}.{rest[3]}"
    return f"D/b4.{ {'linear': 'fc', 'output': 'out'}.get(rest[0], rest[0]) }.{rest[1]}"


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture
def model(golden: dict[str, Tensor]) -> StyleGAN2:
    net = StyleGAN2(resolution=32, z_dim=64, w_dim=64, channel_base=1024, channel_max=64)
    own = net.state_dict()
    names = {name: their_name(name) for name in own}
    theirs = {name for name in golden if name[:2] in {"G/", "D/"} and "resample_filter" not in name}
    assert set(names.values()) == theirs
    net.load_state_dict({name: golden[their].reshape(own[name].shape) for name, their in names.items()})
    return net


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max() / expected.abs().max()) < tolerance


def test_golden(model: StyleGAN2, golden: dict[str, Tensor]) -> None:
    G, D = model.G, model.D
    with torch.no_grad():
        ws = G.spread(G.mapping(golden["z"]))
        close(ws, golden["ws"])
        close(G.spread(G.mapping.truncate(G.mapping(golden["z"]), 0.7)), golden["ws_psi07"])
        close(G.synthesis(golden["ws"], "const"), golden["image_const_noise"])
        close(G.synthesis(golden["ws"], "none"), golden["image_no_noise"])
        close(D(golden["image_const_noise"]), golden["logits"][:, 0])
    images = golden["image_const_noise"].clone().requires_grad_(True)
    logits = D(images)
    close(logits.detach(), golden["logits"][:, 0])
    (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    close(slope.detach().square().sum((1, 2, 3)), golden["r1_sq_norm"])
    ws = golden["ws"].clone().requires_grad_(True)
    made = G.synthesis(ws, "const")
    close(made.detach(), golden["image_const_noise"])
    (slope,) = torch.autograd.grad((made * golden["pl_y"]).sum(), ws, create_graph=True)
    close(slope.detach().square().sum(2).mean(1).sqrt(), golden["pl_length"])


def test_parameter_counts_of_config_e_at_64_px() -> None:
    with torch.device("meta"):
        net = StyleGAN2(resolution=64)
    assert sum(p.numel() for p in net.G.parameters()) == 23_819_544
    assert sum(p.numel() for p in net.D.parameters()) == 23_407_361


def test_one_graph_under_torch_compile() -> None:
    """`fullgraph` is an error at the first graph break: inference of G, forward and backward of D."""
    torch.manual_seed(0)
    net = StyleGAN2(resolution=16, z_dim=8, w_dim=8, mapping_layers=1, channel_base=64, channel_max=8)
    z = torch.randn(4, 8)
    torch._dynamo.reset()
    with torch.no_grad():
        images = net.G(z)
        close(torch.compile(net.G, fullgraph=True, backend="aot_eager")(z), images, 1e-5)
    images.requires_grad_(True)
    discriminator = torch.compile(net.D, fullgraph=True, backend="aot_eager")
    (found,) = torch.autograd.grad(discriminator(images).sum(), images)
    (expected,) = torch.autograd.grad(net.D(images).sum(), images)
    close(found, expected)
