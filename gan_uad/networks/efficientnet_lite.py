"""EfficientNet-Lite0: a mobile backbone without squeeze-and-excitation, small enough to be installed as a package."""

from __future__ import annotations

import re

import torch.nn.functional as F
from torch import Tensor, nn

# Expansion, channels, repeats, stride and kernel of each stage of EfficientNet-B0 (Tan & Le, 2019, table 1).
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
STEM, HEAD = 32, 1280
EPS = 1e-3  # of batch normalisation, as in TensorFlow, whose weights are used


class SameConv(nn.Conv2d):
    """A bias-free convolution padded as TensorFlow's SAME: output side ⌈side / stride⌉, an odd pixel of padding right and below."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, I, H, W]` -> `[N, O, ⌈H/stride⌉, ⌈W/stride⌉]`."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        down, right = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[2:])
        if down == right == kernel - 1:
            return super().forward(x)
        x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, groups=self.groups)


class Unit(nn.Sequential):
    """Convolution, batch normalisation and, unless it is `linear`, ReLU6."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        self.conv = SameConv(in_channels, out_channels, kernel, stride, groups)
        self.bn = nn.BatchNorm2d(out_channels, eps=EPS)
        if not linear:
            self.act = nn.ReLU6(inplace=True)


class MBConv(nn.Module):
    """Inverted residual: expand 1×1, depthwise, project 1×1; the input is added where shape allows (Sandler et al., 2018)."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int, kernel: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expand = Unit(in_channels, hidden, 1) if expansion != 1 else None
        self.depthwise = Unit(hidden, hidden, kernel, stride, groups=hidden)
        self.project = Unit(hidden, out_channels, 1, linear=True)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """`[N, I, H, W]` -> `[N, O, ⌈H/stride⌉, ⌈W/stride⌉]`."""
        hidden = x if self.expand is None else self.expand(x)
        y: Tensor = self.project(self.depthwise(hidden))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """The convolutional part of EfficientNet-Lite0: EfficientNet-B0 with ReLU6 and without squeeze-and-excitation.

    Source: Tan & Le 2019 for the stages; TensorFlow's EfficientNet-Lite (2020) for what is left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = Unit(3, STEM, 3, stride=2)
        self.stages = nn.ModuleList()
        channels = STEM
        for expansion, width, repeats, stride, kernel in STAGES:
            blocks = []
            for block in range(repeats):
                blocks.append(MBConv(channels, width, expansion, stride if block == 0 else 1, kernel))
                channels = width
            self.stages.append(nn.Sequential(*blocks))
        self.head = Unit(channels, HEAD, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images `[N, 3, H, W]`, (value − 127) / 128 of 8 bits, to the last maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of their side.

        Channels 16, 24, 40, 112 and 1280.
        """
        x = self.stem(x)
        maps = []
        for k, stage in enumerate(self.stages):
            x = stage(x)
            if k in (0, 1, 2, 4):
                maps.append(x)
        return [*maps, self.head(x)]


def own_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a state dict of the package `efficientnet_lite_pytorch` under this file's names; the classifier is dropped."""
    places: dict[str, str] = {}
    for stage, (_, _, repeats, _, _) in enumerate(STAGES):
        for block in range(repeats):
            places[str(len(places))] = f"stages.{stage}.{block}"
    parts = {"_expand_conv": "expand.conv", "_bn0": "expand.bn", "_depthwise_conv": "depthwise.conv", "_bn1": "depthwise.bn",
             "_project_conv": "project.conv", "_bn2": "project.bn"}  # fmt: skip
    ends = {"_conv_stem": "stem.conv", "_bn0": "stem.bn", "_conv_head": "head.conv", "_bn1": "head.bn"}
    renamed = {}
    for key, value in state.items():
        if key.startswith("_fc."):
            continue
        if (found := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)) and found[1] in places and found[2] in parts:
            key = f"{places[found[1]]}.{parts[found[2]]}.{found[3]}"
        elif (found := re.fullmatch(r"(\w+)\.(\w+)", key)) and found[1] in ends:
            key = f"{ends[found[1]]}.{found[2]}"
        renamed[key] = value
    return renamed
