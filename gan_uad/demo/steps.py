"""Steps that both demos share: train or resume a run, and report results."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gan_uad.errors import Interrupted, JobFailed
from gan_uad.files import write_json
from gan_uad.run import Run
from gan_uad.training.train import train


def trained(preset: str, out: Path, patches: Path, overrides: tuple[str, ...], generator: Run | None = None) -> Run:
    """The run of `preset` in `out`/runs, trained on `patches`; an earlier call's run is resumed."""
    runs = out / "runs"
    existing = Run.latest(runs, preset)
    try:
        if existing is not None and (existing.state_path.is_file() or existing.model_path.is_file()):
            run = train(str(existing.folder), (), out=runs, resume=True)
        else:
            run = train(preset, overrides, str(patches), str(generator.folder) if generator else None, runs)
    except Interrupted as stopped:
        raise Interrupted(stopped.what, "To resume, run the same command again") from None
    if run is None:
        raise JobFailed(f"{preset} was not trained")
    return run


def report(
    out: Path, start: float, settings: dict[str, Any], result: dict[str, Any], title: str, rows: Mapping[str, float], look: str
) -> None:  # fmt: skip
    """Write `result.json` and print `rows` (meaning -> value); `start`: `time.monotonic()` at the beginning."""
    minutes = (time.monotonic() - start) / 60
    write_json(out / "result.json", result | {"minutes": round(minutes, 2)} | settings)
    print(f"\n{title}:", *(f"  {value:.3f}  {meaning}" for meaning, value in rows.items()), sep="\n")
    print(f"{minutes:.1f} minutes. {look}")
