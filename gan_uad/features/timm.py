"""Any network of the package timm as features. The package is an optional extra and finds its own weights."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gan_uad.errors import UserError, near
from gan_uad.features.backbones import Backbone
from gan_uad.registry import register


@register("timm", kind="features")
class Timm(Backbone):
    """Any network of the package timm, as timm:NAME (pip install gan_uad[timm]), by its own pooling and preprocessing."""

    pooling = "the network's own pooling, and what it has before its classifier"

    def __init__(self, model: str, weights: Path | None = None, side: int | None = None) -> None:
        """`model`: timm's name of it; `weights`: its file, instead of a download by timm; `side`: see `Backbone`. Raises `UserError`."""
        if find_spec("timm") is None:
            raise UserError(f"timm:{model} needs the package timm: run `pip install gan_uad[timm]`")
        import timm
        import timm.data

        if not timm.is_model(model):
            raise UserError(f"timm has no network {model!r}: {near(model, timm.list_models(pretrained=True))}")
        place: dict[str, Any] = {} if weights is None else {"pretrained_cfg_overlay": {"file": str(weights)}}
        try:
            net = timm.create_model(model, pretrained=True, num_classes=0, **place)
        except Exception as error:  # the hub, the connection or the file may raise anything
            reason = " ".join(str(error).split())[:160]
            raise UserError(
                f"timm cannot load {model} with its weights ({reason}): name their file with --weights, or use efficientnet_lite0, "
                "which needs no download"
            ) from None
        config = timm.data.resolve_model_data_config(net)
        self.mean_std = (tuple(config["mean"]), tuple(config["std"]))
        self.side, self.metric = config["input_size"][-1], f"FD-timm:{model}"
        super().__init__(net, f"timm:{model} sha256:{_digest(net)}", side)
        self.dim = self._features_of_an_image()

    @torch.inference_mode()
    def _features_of_an_image(self) -> int:
        """Not `num_features`, which counts channels of the last maps: some networks have a layer between those and the classifier."""
        try:
            return self.pooled(torch.zeros(1, 3, self.side, self.side)).shape[1]
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"{self.metric[3:]} does not take images of {self.side} px ({error})") from None

    def pooled(self, x: Tensor) -> Tensor:
        """As timm pools them."""
        features: Tensor = self.net(x)
        return features.float()


def _digest(net: nn.Module) -> str:
    """16 digits that identify these weights: timm does not say which file they came from."""
    found = hashlib.sha256()
    for name, value in net.state_dict().items():
        found.update(name.encode())
        found.update(value.contiguous().cpu().numpy().tobytes())
    return found.hexdigest()[:16]
