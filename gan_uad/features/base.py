"""What every feature network is: pixels in, one vector an image out, and the words that make a metric traceable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from gan_uad.features import weights as weight_files


class FeatureNet(nn.Module, ABC):
    """A frozen network in evaluation mode that gives one vector an image; it never mixes the images of a batch.

    `metric` is what a Fréchet distance in these features is called: "FID" for the 2015 Inception alone, "FD-VGG16" and the like for
    others. `weights` identifies the weights (file name and hash). `preprocessing` says in words how images reach the network. Both
    stand beside every metric and in the key of every cached statistic.
    """

    metric: str
    dim: int
    weights: str
    preprocessing: str
    spec: dict[str, Any]

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """uint8 `[N, 3, H, W]` -> float32 `[N, dim]`, without gradients: features are of the 8-bit images that files hold."""

    def maps(self, images: Tensor) -> list[Tensor]:
        """Float `[N, 3, H, W]` in [-1, 1] -> feature maps `[N, C, h, w]` of rising depth, differentiable with respect to the images.

        The images go in at their own size. Raises `NotImplementedError` where a network has no use for it.
        """
        raise NotImplementedError(f"{type(self).__name__} gives no feature maps")

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: inside something that is trained, batch statistics must not change here."""
        return super().train(False)


def pretrained(
    name: str,
    weights: Path | None,
    make: Callable[[], nn.Module],
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]],
) -> tuple[nn.Module, str]:
    """The network that `make` builds, frozen, with the weights of `name` from `weights` or the usual places; and their label.

    `rename` gives the tensors of the file under the names of the network. Raises `UserError`.
    """
    loaded = weight_files.load(name, weights)
    with torch.device("meta"):  # the file brings every tensor, so none is initialised
        net = make()
    weight_files.put(net, rename(loaded.state), loaded.path, name)
    return fold_batch_norm(net.eval()).to(memory_format=torch.channels_last).requires_grad_(False), loaded.label


def fold_batch_norm(net: nn.Module) -> nn.Module:
    """Replace, in place, each convolution and the batch normalisation that follows it as the next child of the same module.

    The same function in fewer passes over memory; rounding differs by about 1e-6. For networks in evaluation mode whose modules run
    their children in the order of definition.
    """
    for module in net.modules():
        for (conv_name, conv), (bn_name, bn) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and type(bn) is nn.BatchNorm2d and conv.out_channels == bn.num_features:
                setattr(module, conv_name, fuse_conv_bn_eval(conv, bn))
                setattr(module, bn_name, nn.Identity())
    return net
