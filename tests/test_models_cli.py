"""`gan-uad models` by its command line."""

from __future__ import annotations

import json
from typing import Any


def test_models(cli: Any) -> None:
    result = cli("models", "--json")
    assert result.exit_code == 0
    listed = json.loads(result.stdout)
    assert {"wgan_gp_64", "izi_f_64", "anogan_64", "dcgan_64", "izi_64", "wgan_gp_64_small"} <= set(listed["presets"])
    assert {"wgan_gp", "dcgan", "residual_encoder"} <= set(listed["networks"])
    assert {"wgan_gp", "dcgan", "izi", "ziz", "izi_f"} <= set(listed["tasks"])
    assert {"anogan", "izi", "ziz", "izi_f"} <= set(listed["inverters"])
    assert {"gan_inversion", "mean_color"} <= set(listed["scorers"])
    for entries in listed.values():
        assert all(len(summary) > 10 for summary in entries.values())
    text = cli("models").stdout
    assert all(name in text for entries in listed.values() for name in entries)
