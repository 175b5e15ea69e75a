"""A feature network by its name."""

from __future__ import annotations

from pathlib import Path

import torch

from gan_uad import registry
from gan_uad.errors import UserError
from gan_uad.features.base import FeatureNet
from gan_uad.features.weights import EMBEDDED

TIMM = "timm"


def load_features(
    name: str = EMBEDDED,
    *,
    weights: Path | None = None,
    device: torch.device | str | None = None,
    fast: bool = False,
) -> FeatureNet:
    """The feature network registered as `name`, or `timm:NAME`, in evaluation mode on `device`.

    weights: its file, or a folder that holds it, instead of the usual places (see `features/weights.py`). fast: a faster form that
    differs by a little more than rounding, and says so in `preprocessing`; only `inception` has one. Raises `UserError` for unknown
    names, missing or unfit weights, and `fast` where there is none.
    """
    kind, _, model = name.partition(":")
    given: dict[str, object] = {"weights": weights}
    if kind == TIMM:
        given["model"] = model
    elif model:
        raise UserError(f"no features are called {name!r}: only timm takes a name after the colon (timm:NAME)")
    if fast:
        if name != "inception":
            raise UserError(f"--fast is for the features of inception only, not for {name}: leave it out")
        given["fast"] = True
    net: FeatureNet = registry.build("features", kind, {}, **given)
    net.spec = {"name": name, "fast": fast}
    return net.to(device or "cpu").eval()
