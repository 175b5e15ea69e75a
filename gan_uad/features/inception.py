"""The Inception network of 2015 that the FID is defined by, of torch-fidelity's own layers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from gan_uad.device import has_bf16
from gan_uad.features.base import FeatureNet, pretrained
from gan_uad.features.pixels import as_float
from gan_uad.registry import register

SIDE = 299


@register("inception", kind="features")
class Inception(FeatureNet):
    """The FID's Inception of 2015, 2048 features of its last pooling.

    Its features are torch-fidelity's: the same layers, and the resize of TensorFlow 1 (samples at i · side / 299, no half-pixel shift),
    which every published FID rests on. pytorch-fid has the same layers but resizes with pixel centres kept
    (`F.interpolate(..., align_corners=False)`), so its features and FIDs differ.

    channels_last, folded batch normalisation and a faster resize change the features by rounding alone (about 3e-7). `fast` uses
    bfloat16 where the processor computes in it; this changes the FID by more than rounding, and `preprocessing` says so.
    """

    metric, dim = "FID", 2048

    def __init__(self, weights: Path | None = None, fast: bool = False) -> None:
        """`weights`: a file or folder, instead of the usual places. Raises `UserError`."""
        super().__init__()
        self.net, self.weights = pretrained("inception", weights, _layers, _without_classifier)
        self.fast = fast

    @property
    def preprocessing(self) -> str:  # type: ignore[override]
        """Words that depend on the device in the fast form."""
        words = f"RGB, resized to {SIDE} px (bilinear as TensorFlow 1), (value − 128) / 128"
        if not self.fast:
            return words
        device = next(self.net.parameters()).device
        return f"{words}; fast: {'bfloat16' if has_bf16(device) else 'float32, as the processor has no bfloat16'}"

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """uint8 `[N, 3, H, W]` -> float32 `[N, 2048]`."""
        x = resized_like_tensorflow(as_float(images), SIDE).sub_(128).div_(128)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.fast and has_bf16(x.device)):
            x = self.net(x)
        return x.mean((2, 3), dtype=torch.float32)


def _without_classifier(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


def _layers() -> nn.Sequential:
    """All layers before the last pooling, with torch-fidelity's names."""
    from torch_fidelity import feature_extractor_inceptionv3 as tf

    net = nn.Sequential()
    for name, layer in (
        ("Conv2d_1a_3x3", tf.BasicConv2d(3, 32, kernel_size=3, stride=2)),
        ("Conv2d_2a_3x3", tf.BasicConv2d(32, 32, kernel_size=3)),
        ("Conv2d_2b_3x3", tf.BasicConv2d(32, 64, kernel_size=3, padding=1)),
        ("MaxPool_1", nn.MaxPool2d(3, 2)),
        ("Conv2d_3b_1x1", tf.BasicConv2d(64, 80, kernel_size=1)),
        ("Conv2d_4a_3x3", tf.BasicConv2d(80, 192, kernel_size=3)),
        ("MaxPool_2", nn.MaxPool2d(3, 2)),
        ("Mixed_5b", tf.InceptionA(192, pool_features=32)),
        ("Mixed_5c", tf.InceptionA(256, pool_features=64)),
        ("Mixed_5d", tf.InceptionA(288, pool_features=64)),
        ("Mixed_6a", tf.InceptionB(288)),
        ("Mixed_6b", tf.InceptionC(768, channels_7x7=128)),
        ("Mixed_6c", tf.InceptionC(768, channels_7x7=160)),
        ("Mixed_6d", tf.InceptionC(768, channels_7x7=160)),
        ("Mixed_6e", tf.InceptionC(768, channels_7x7=192)),
        ("Mixed_7a", tf.InceptionD(768)),
        ("Mixed_7b", tf.InceptionE_1(1280)),
        ("Mixed_7c", tf.InceptionE_2(2048)),
    ):
        net.add_module(name, layer)
    return net


def resized_like_tensorflow(x: Tensor, side: int) -> Tensor:
    """`[N, C, H, W]` -> `[N, C, side, side]` as TensorFlow 1 resizes bilinearly: output pixel i is sampled at i · H / side.

    The same numbers, to the bit, as torch-fidelity's; columns first, so that only H rows of them are made.
    """
    low, high, part = _samples(x.shape[3], side, x)
    x = x[..., low] + (x[..., high] - x[..., low]) * part
    low, high, part = _samples(x.shape[2], side, x)
    top = x[:, :, low]
    return top + (x[:, :, high] - top) * part[:, None]


def _samples(size: int, side: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two neighbours of each sample, and how far it lies between them."""
    at = torch.arange(side, dtype=like.dtype, device=like.device) * torch.tensor(size / side, dtype=torch.float32)
    low = at.long()
    return low, (low + 1).clamp_max(size - 1), at - low.float()
