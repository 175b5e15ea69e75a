"""Gradients in bfloat16 and float16 against float32, weight by weight: where they vanish, training goes wrong in silence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from run_tools import Toy, same
from torch import Tensor, nn

from gan_uad import registry
from gan_uad.networks.layers import MappingNetwork
from gan_uad.training.losses import gradient_penalty, nonsaturating_D, nonsaturating_G, path_lengths, r1_penalty

SIDE, COUNT = 32, 4
STYLED = {"w_dim": 16, "mapping_layers": 2}
SIZES = {"resolution": SIDE, "z_dim": 16, "channel_base": 1024, "channel_max": 32}
R1_SCALE = (
    0.0064 / 2 * 16 / 8
)  # γ of 32 px at batch 32, its interval, and what a batch of 32 divides by more than one of 4


def nets(family: str) -> Any:
    torch.manual_seed(0)
    return registry.build("network", family, SIZES | (STYLED if family.startswith("style") else {}))


def logistic(net: Any, real: Tensor, z: Tensor) -> Tensor:
    return nonsaturating_D(net.D(real), net.D(real.flip(2) * 0.5))


def r1(net: Any, real: Tensor, z: Tensor) -> Tensor:
    return r1_penalty(net.D, real).mean() * R1_SCALE


def penalty(net: Any, real: Tensor, z: Tensor) -> Tensor:
    return gradient_penalty(net.D, real, real.flip(2) * 0.5, torch.full((len(real),), 0.4))


def generator(net: Any, real: Tensor, z: Tensor) -> Tensor:
    return nonsaturating_G(net.D(net.G(z)))


def path(net: Any, real: Tensor, z: Tensor) -> Tensor:
    ws = net.G.spread(net.G.mapping(z))
    images = net.G.synthesis(ws)
    return path_lengths(images, ws, real).square().mean()


def gradients(part: nn.Module, net: Any, loss: Callable[..., Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    real = torch.rand(COUNT, 3, SIDE, SIDE, generator=rng) * 2 - 1
    z = torch.randn(COUNT, net.G.z_dim, generator=rng)
    net.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        value = loss(net, real, z)
    value.backward()
    return {n: p.grad.double() for n, p in part.named_parameters() if p.grad is not None and p.ndim > 1}


CASES = [
    (family, loss, part)
    for family in ("pgan", "stylegan", "stylegan2")
    for loss, part in ((logistic, "D"), (penalty if family == "pgan" else r1, "D"), (generator, "G"), (path, "G"))
    if loss is not path or family == "stylegan2"
]
# Networks without layers that stay in float32. On a GPU `auto` takes tf32 for them, which has three bits more than bf16.
PLAIN = [("wgan_gp", penalty, "D"), ("wgan_gp", generator, "G"), ("dcgan", logistic, "D"), ("dcgan", generator, "G")]


@pytest.mark.parametrize(
    ("family", "loss", "part", "dtype"),
    [(*case, dtype) for case in CASES for dtype in (torch.bfloat16, torch.float16)]
    + [(*case, torch.bfloat16) for case in PLAIN],
)
def test_gradients_point_where_those_of_float32_do(
    family: str, loss: Callable[..., Tensor], part: str, dtype: torch.dtype
) -> None:
    """The cosine of each weight's gradient, and the ratio of the norms of all together."""
    net = nets(family)
    full, low = (gradients(getattr(net, part), net, loss, kind) for kind in (None, dtype))
    whole = torch.stack([g.norm() for g in full.values()]).norm()
    typical = torch.stack([g.norm() for g in full.values()]).median()
    cosines = {
        name: float((low[name] * g).sum() / (low[name].norm() * g.norm()))
        for name, g in full.items()
        if g.norm() > 1e-3 * typical
    }
    assert len(cosines) > len(full) / 2
    assert min(cosines.values()) > 0.8, cosines
    assert float(torch.stack([g.norm() for g in low.values()]).norm() / whole) == pytest.approx(1, rel=0.2)


# The layers of 4 px, and the first one above.
LAYERS = {
    "pgan": (["G.conv", "D.conv"], "G.blocks.0"),
    "stylegan": (["G.synthesis.layers.0", "G.synthesis.layers.1", "D.conv"], "G.synthesis.layers.2"),
    "stylegan2": (["G.synthesis.layers.0", "G.synthesis.to_rgb.0", "D.conv"], "G.synthesis.layers.1"),
}


@pytest.mark.parametrize("family", LAYERS)
def test_the_layers_of_4_px_stay_in_float32(family: str) -> None:
    """In a net of which all levels may follow autocast."""
    net, (lowest, above) = nets(family), LAYERS[family]
    seen: dict[str, torch.dtype] = {}
    for name in (*lowest, above):
        net.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0].dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        net.D(net.G(torch.zeros(COUNT, net.G.z_dim)))
    assert seen == {**dict.fromkeys(lowest, torch.float32), above: torch.bfloat16}


def test_a_step_computes_gradients_outside_autocast() -> None:
    """Those of a layer that stays in float32 are the same to the bit, with autocast and without."""
    torch.manual_seed(0)
    mapping, z = MappingNetwork(8, 8, 2), torch.randn(4, 8)

    def stepped(autocast: bool) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            optimizer = torch.optim.SGD(mapping.parameters(), 0.0)
            Toy().optimise(optimizer, 4, lambda part: (mapping(z[part]).square().mean(), {}))
        return {name: p.grad.clone() for name, p in mapping.named_parameters() if p.grad is not None}

    same(stepped(True), stepped(False))
