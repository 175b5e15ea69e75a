"""FROC curves of methods, as a PNG file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gan_uad.metrics.froc import RATES, FrocCurve
from gan_uad.plotting.plots import GUIDE, figure_file, line_style

MIN_ALARMS = 1 / 16  # false alarms per slide at the left end of the plot


def froc(curves: Mapping[str, FrocCurve], path: Path, rates: Sequence[float] = RATES) -> Path:
    """Share of lesions found against false alarms per slide (logarithmic), by name. The `rates` of the metric are marked."""
    with figure_file(path, 5.6, 4.6 + 0.27 * len(curves)) as figure:
        axes = figure.add_subplot()
        for index, (name, curve) in enumerate(curves.items()):
            # Between two thresholds the higher one holds, up to the rightmost rate even where there are no more alarms.
            end = max(rates[-1] * 2, float(curve.alarms[-1]))
            alarms = [MIN_ALARMS, *curve.alarms.clip(min=MIN_ALARMS).tolist(), end]
            first = curve.sensitivity[curve.alarms <= MIN_ALARMS].max(initial=0.0)
            found = [first, *curve.sensitivity.clip(min=first).tolist(), float(curve.sensitivity[-1])]
            axes.plot(alarms, found, drawstyle="steps-post", label=name, **line_style(index))
        for rate in rates:
            axes.axvline(rate, color=GUIDE, linestyle=":", linewidth=1)
        axes.set_xscale("log", base=2)
        axes.set(xlim=(MIN_ALARMS, rates[-1] * 2), ylim=(-0.01, 1.01))
        axes.set(xlabel="False alarms per slide", ylabel="Share of lesions found")
        axes.set_xticks(list(rates), [f"{rate:g}" for rate in rates])
        axes.grid(axis="y", alpha=0.3)
        figure.legend(loc="outside lower center", frameon=False)
    return path
