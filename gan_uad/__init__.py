"""gan_uad: model normal tissue with generative models, and find what is not normal.

Research software, not a medical device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gan_uad.model import Model

__version__ = "0.2.0"


def models() -> dict[str, str]:
    """Names of every model that can be built or trained, each with the one line that says what it is (torch is not imported)."""
    from gan_uad import registry

    return {entry.name: entry.summary for entry in registry.entries("network")}


def load(path: str) -> Model:
    """Load the networks of a run folder or of a `model.safetensors`; nothing else is needed beside the file.

    Raises `gan_uad.errors.UserError` when the file is missing, damaged, pickled, or of another architecture.
    """
    from gan_uad.model import load_model

    return load_model(path)
