"""Preloaded by cells of a benchmark in tests: most of the time of a tiny cell goes into its pictures."""

from __future__ import annotations

from typing import Any

from gan_uad.plotting import pictures, plots


def _nothing(*_: Any, **__: Any) -> None: ...


pictures.triplets = _nothing
plots.learning_curves = _nothing
