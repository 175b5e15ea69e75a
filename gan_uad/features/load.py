"""A feature network by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gan_uad import registry
from gan_uad.errors import UserError
from gan_uad.features.base import FeatureNet
from gan_uad.features.weights import EMBEDDED

TIMM, FID = "timm", "inception"


def load_features(
    name: str = EMBEDDED,
    *,
    weights: Path | None = None,
    device: torch.device | str | None = None,
    fast: bool = False,
) -> FeatureNet:
    """The feature network registered as `name`, in evaluation mode on `device`.

    name: as in `gan-uad models`, or `timm:NAME`; `NAME@64` resizes images to 64 px instead of the size that the network was trained on
    (cheaper; the metric gets another name). weights: its file, or a folder that holds it, instead of the usual places (see
    `features/weights.py`). fast: bfloat16 where the processor has it (`preprocessing` says so); `inception` only. Raises `UserError` for
    unknown names, for weights that are missing or do not fit, and for options that a network does not have.
    """
    base, at, side = name.partition("@")
    kind, _, model = base.partition(":")
    given: dict[str, Any] = {"weights": weights}
    if kind == TIMM:
        given["model"] = model
    elif model:
        raise UserError(f"no features are called {name!r}: only timm takes a name after a colon (timm:NAME)")
    if at:
        if kind == FID or not side.isdecimal():
            raise UserError(f"no features are called {name!r}: write NAME@64 for 64 px; {FID} has a size of its own")
        given["side"] = int(side)
    if fast:
        if kind != FID:
            raise UserError(f"only the features of {FID} have a fast form, not {name}")
        given["fast"] = True
    net: FeatureNet = registry.build("features", kind, {}, **given)
    net.spec = {"name": name, "fast": fast}
    return net.to(device or "cpu")
