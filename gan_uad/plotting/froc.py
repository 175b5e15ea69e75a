"""FROC curves of methods, as a PNG file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gan_uad.metrics.froc import RATES, FrocCurve
from gan_uad.plotting.plots import COLOURS, DASHES, GUIDE, figure_file

LEAST = 1 / 16  # alarms a slide at which the drawing begins: fewer are one alarm in more slides than are at hand


def froc(curves: Mapping[str, FrocCurve], path: Path, rates: Sequence[float] = RATES) -> Path:
    """Share of lesions found against false alarms a slide (logarithmic), by name; the `rates` that are read off are marked."""
    with figure_file(path, 5.6, 4.6 + 0.27 * len(curves)) as figure:
        axes = figure.add_subplot()
        for index, (name, curve) in enumerate(curves.items()):
            look: dict[str, Any] = {
                "color": COLOURS[index % len(COLOURS)],
                "linestyle": DASHES[index % len(DASHES)],
                "linewidth": 2,
            }
            # Between two thresholds the higher one holds, up to the rightmost rate even where there are no more alarms.
            alarms = [LEAST, *curve.alarms.clip(min=LEAST).tolist(), max(rates[-1] * 2, float(curve.alarms[-1]))]
            first = curve.sensitivity[curve.alarms <= LEAST].max(initial=0.0)
            found = [first, *curve.sensitivity.clip(min=first).tolist(), float(curve.sensitivity[-1])]
            axes.plot(alarms, found, drawstyle="steps-post", label=name, **look)
        for rate in rates:
            axes.axvline(rate, color=GUIDE, linestyle=":", linewidth=1)
        axes.set_xscale("log", base=2)
        axes.set(xlim=(LEAST, rates[-1] * 2), ylim=(-0.01, 1.01))
        axes.set(xlabel="False alarms a slide", ylabel="Share of lesions found")
        axes.set_xticks(list(rates), [f"{rate:g}" for rate in rates])
        axes.grid(axis="y", alpha=0.3)
        figure.legend(loc="outside lower center", frameon=False)
    return path
