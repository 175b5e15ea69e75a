"""Plots of metrics, as PNG files. Every function writes atomically and returns the path; folders must exist.

Pictures made of images (grids, triplets) are in `pictures`. Colours are those of Okabe & Ito 2008, which colour-blind
readers can tell apart; lines differ in dashes too.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from gan_uad.files import atomic
from gan_uad.metrics.detection import auprc, auroc, pr_points, roc_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curves = Mapping[str, tuple[ArrayLike, ArrayLike]]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", (0, (1, 1)))
NORMAL, ANOMALOUS, GUIDE = COLOURS[0], COLOURS[1], "#767676"
DPI = 150
MAX_MARKED = 25  # points of a line that are marked one by one
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12,
    "legend.fontsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "text.parse_math": False,  # file names may contain dollars
}


@contextmanager
def figure_file(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of `width` x `height` inches, written to `path` at the end unless drawing failed (`files.atomic`)."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        with atomic(path) as temporary:
            figure.savefig(temporary, format="png")


def place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches, from the top left corner of the figure."""
    total_width, total_height = figure.get_size_inches()
    box = (left / total_width, 1 - (top + height) / total_height, width / total_width, height / total_height)
    return figure.add_axes(box)


def line_style(index: int) -> dict[str, Any]:
    """Colour and dashes of line `index` of a plot: 7 colours and 4 dashes, so 28 lines differ."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index % len(DASHES)], "linewidth": 2}


def _marker(points: int) -> str:
    return "o" if points <= MAX_MARKED else ""


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 54)


@contextmanager
def _unit_square(curves: Mapping[str, object], path: Path, xlabel: str, ylabel: str) -> Iterator[Axes]:
    """Axes from 0 to 1 with a legend below, high enough for the names of the curves. ValueError without curves."""
    if not curves:
        raise ValueError("nothing to plot: no curve given")
    lines = sum(1 + _wrapped(name + ": AUROC 0.000").count("\n") for name in curves)
    with figure_file(path, 5.2, 5.3 + 0.27 * lines) as figure:
        axes = figure.add_subplot()
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", xlabel=xlabel, ylabel=ylabel)
        axes.grid(alpha=0.3)
        yield axes
        figure.legend(loc="outside lower center", frameon=False)


def roc(curves: Curves, path: Path) -> Path:
    """ROC curves of methods, name -> (labels `[N]`, scores `[N]`), with the AUROC of each and the chance line.

    ValueError for scores that `metrics.detection.auroc` refuses, or no curve.
    """
    with _unit_square(curves, path, "False-positive rate", "True-positive rate") as axes:
        for index, (name, (labels, scores)) in enumerate(curves.items()):
            points = roc_points(labels, scores)
            text = _wrapped(f"{name}: AUROC {auroc(labels, scores):.3f}")
            axes.plot(points.fpr, points.tpr, label=text, **line_style(index))
        axes.plot([0, 1], [0, 1], ":", color=GUIDE, label="chance: 0.500")
    return path


def pr(curves: Curves, path: Path) -> Path:
    """Precision-recall curves as steps, name -> (labels `[N]`, scores `[N]`), with average precision and chance.

    Errors as in `roc`.
    """
    with _unit_square(curves, path, "Recall (sensitivity)", "Precision") as axes:
        for index, (name, (labels, scores)) in enumerate(curves.items()):
            points = pr_points(labels, scores)
            text = _wrapped(f"{name}: AUPRC {auprc(labels, scores):.3f}")
            # The last point is a convention, not a threshold: the step of the highest score extends to recall 0.
            precision = np.append(points.precision[:-1], points.precision[-2])
            axes.plot(points.recall, precision, label=text, drawstyle="steps-post", **line_style(index))
        for chance in sorted({float(np.mean(np.asarray(labels))) for labels, _ in curves.values()}):
            axes.axhline(chance, color=GUIDE, linestyle=":", label=f"chance: {chance:.3f}")
    return path


def histogram(labels: ArrayLike, scores: ArrayLike, threshold: float | None, path: Path) -> Path:
    """Histograms of the scores `[N]` of normal (0) and anomalous (1) images, each as a share of its class, in the same bins.

    `threshold` is drawn as a line; an infinite one is stated in words.
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    edges = np.histogram_bin_edges(values, bins=min(50, max(10, round(math.sqrt(values.size)))))
    with figure_file(path, 6.4, 4.4) as figure:
        axes = figure.add_subplot(xlabel="Anomaly score", ylabel="Share of the class")
        for label, name, colour, hatch in ((0, "normal", NORMAL, ""), (1, "anomalous", ANOMALOUS, "///")):
            of_class = values[truth == label]
            if n := of_class.size:
                bars: dict[str, Any] = {"bins": edges, "weights": np.full(n, 1 / n), "color": colour}
                axes.hist(of_class, alpha=0.35, hatch=hatch, edgecolor=colour, linewidth=0, **bars)
                axes.hist(of_class, histtype="step", linewidth=1.8, label=f"{name} (n = {n})", **bars)
        if threshold is not None and math.isfinite(threshold):
            axes.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:.4g}")
        elif threshold is not None:
            axes.plot([], [], " ", label="threshold infinite: nothing is flagged")
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return path


def confusion(matrix: ArrayLike, path: Path) -> Path:
    """The confusion matrix `[2, 2]` `[[tn, fp], [fn, tp]]`: counts, and shares of the true class, which set the shade."""
    counts = np.asarray(matrix)
    if counts.shape != (2, 2):
        raise ValueError(f"confusion matrix: expected shape (2, 2), got {counts.shape}")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = ["normal", "anomalous"]
    with figure_file(path, 4.6, 4.2) as figure:
        axes = figure.add_subplot(xlabel="Decided", ylabel="True")
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(2), names)
        axes.set_yticks(range(2), names, rotation=90, va="center")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.7 else "black"
            axes.text(column, row, f"{count:,}", va="bottom", fontsize=17, ha="center", color=colour)
            if counts[row].sum():
                axes.text(column, row + 0.04, f"{shares[row, column]:.1%}", va="top", ha="center", color=colour)
    return path


def calibration(curves: Curves, path: Path, xlabel: str, ylabel: str) -> Path:
    """Calibration curves, name -> (promised `[B]`, observed `[B]`) in [0, 1], against the diagonal; NaN is left out.

    For a classifier these are `predicted` and `observed` of `metrics.detection.reliability`, for a normal-only detector
    `levels` and `observed` of `pvalue_calibration`; the axis labels say which.
    """
    with _unit_square(curves, path, xlabel, ylabel) as axes:
        for index, (name, (promised, observed)) in enumerate(curves.items()):
            x, y = np.asarray(promised, dtype=np.float64), np.asarray(observed, dtype=np.float64)
            held = ~(np.isnan(x) | np.isnan(y))
            axes.plot(x[held], y[held], label=_wrapped(name), marker=_marker(held.sum()), **line_style(index))
        axes.plot([0, 1], [0, 1], ":", color=GUIDE, label="calibrated")
    return path


def class_balance(counts: Mapping[str, Mapping[str, int]], path: Path) -> Path:
    """Bars of the number of images, split -> class -> count, with the numbers on them."""
    from matplotlib.ticker import MaxNLocator

    splits = list(counts)
    classes = list(dict.fromkeys(name for split in counts.values() for name in split))
    if not classes:
        raise ValueError("class balance: no counts given")
    width = 0.8 / len(classes)
    with figure_file(path, max(5.0, 1.5 + 0.75 * len(splits) * len(classes)), 4.2) as figure:
        axes = figure.add_subplot(ylabel="Images")
        for index, name in enumerate(classes):
            places = np.arange(len(splits)) + (index - (len(classes) - 1) / 2) * width
            heights = [counts[split].get(name, 0) for split in splits]
            bars = axes.bar(places, heights, width * 0.94, label=name, color=COLOURS[index % len(COLOURS)])
            axes.bar_label(bars, labels=[f"{height:,}" for height in heights], padding=2, fontsize=10)
        axes.set_xticks(range(len(splits)), splits)
        axes.margins(y=0.12)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        figure.legend(loc="outside upper center", ncols=min(4, len(classes)), frameon=False)
    return path


def _over_kimg(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str, **style: Any) -> None:
    """Draw what the rows have under `key`."""
    points = [(float(row["kimg"]), float(row[key])) for row in rows if row.get(key) is not None]
    if points:
        axes.plot(*np.array(points).T, marker=_marker(len(points)), markersize=4, **style)


def training_curves(rows: Sequence[Mapping[str, Any]], keys: Sequence[str], path: Path) -> Path:
    """Log rows over `kimg` (thousands of images seen), one panel for each of `keys`; rows without a key are skipped.

    ValueError for a key that no row has; it names the keys of the log.
    """
    present = list(dict.fromkeys(name for row in rows for name in row if name != "kimg"))
    absent = [key for key in keys if key not in present]
    if absent or not keys:
        raise ValueError(f"training curves: no {', '.join(absent) or 'key'} in the log; it has {', '.join(present)}")
    columns = min(3, len(keys))
    lines = math.ceil(len(keys) / columns)
    with figure_file(path, 1.2 + 3.6 * columns, 0.4 + 2.6 * lines) as figure:
        axes: Axes | None = None
        for index, key in enumerate(keys):
            axes = figure.add_subplot(lines, columns, index + 1, title=key, sharex=axes)
            _over_kimg(axes, rows, key, color=COLOURS[0], linewidth=1.8)
            axes.grid(alpha=0.3)
            if index + columns >= len(keys):
                axes.set_xlabel("kimg")
    return path


def learning_curves(
    rows: Sequence[Mapping[str, Any]], validations: Sequence[Mapping[str, Any]], metrics: Mapping[str, str], path: Path
) -> Path:
    """A panel for each of `metrics`, over kimg: key of the log rows -> key of the same metric in `validations`.

    The last validation marked `best` is shown by a line. ValueError where no log row has a metric.
    """
    best = [float(row["kimg"]) for row in validations if row.get("best")][-1:]
    with figure_file(path, 1.2 + 3.9 * len(metrics), 3.6) as figure:
        for index, (name, validated) in enumerate(metrics.items()):
            if not any(row.get(name) is not None for row in rows):
                raise ValueError(f"learning curves: no {name} in the log")
            axes = figure.add_subplot(1, len(metrics), index + 1, title=name, xlabel="kimg")
            labels = ("train", "validation", "best model") if index == 0 else (None, None, None)
            _over_kimg(axes, rows, name, label=labels[0], **line_style(0))
            _over_kimg(axes, validations, validated, label=labels[1], **line_style(1))
            for kimg in best:
                axes.axvline(kimg, color=GUIDE, linestyle=":", label=labels[2])
            axes.grid(alpha=0.3)
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return path
