"""Plots show what they should; grids keep every pixel; tables can be parsed."""

from __future__ import annotations

import csv
import io
import math
import re
import subprocess
import sys

import matplotlib.figure
import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from gan_uad import tables
from gan_uad.plotting import pictures, plots


@pytest.fixture
def drawn(monkeypatch):
    """Every figure that is saved."""
    figures = []
    savefig = matplotlib.figure.Figure.savefig

    def keep(self, *args, **kwargs):
        figures.append(self)
        savefig(self, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return figures


def texts(figure) -> list[str]:
    found = figure.findobj(matplotlib.text.Text)
    return [text.get_text() for text in found if text.get_visible() and text.get_text()]


def assert_nothing_is_cut_off(path) -> None:
    """A label that reaches over the edge leaves ink on it."""
    picture = np.asarray(Image.open(path).convert("L"))
    assert min(picture[[0, -1]].min(), picture[:, [0, -1]].min()) == 255, path


LABELS = np.array([0] * 30 + [1] * 20)
SCORES = np.random.default_rng(0).normal(size=50) + LABELS
MANY = {f"method {i}": (LABELS, SCORES * (-1) ** i) for i in range(9)} | {"long name " * 12: (LABELS, SCORES)}


def test_curves_name_their_areas_and_nothing_is_cut_off(tmp_path, drawn):
    assert plots.roc(MANY, tmp_path / "roc.png") == tmp_path / "roc.png"
    plots.pr(MANY, tmp_path / "pr.png")
    area = plots.auroc(LABELS, SCORES)
    assert f"method 0: AUROC {area:.3f}" in texts(drawn[0])
    assert f"method 1: AUROC {1 - area:.3f}" in texts(drawn[0])
    assert "chance: 0.400" in texts(drawn[1])
    looks = {(line.get_color(), str(line.get_linestyle())) for line in drawn[0].axes[0].lines}
    assert len(looks) == 11
    curve = drawn[0].axes[0].lines[0]
    assert np.trapezoid(curve.get_ydata(), curve.get_xdata()) == pytest.approx(area)
    for name in ("roc.png", "pr.png"):
        assert_nothing_is_cut_off(tmp_path / name)
    with pytest.raises(ValueError, match="no curve"):
        plots.roc({}, tmp_path / "none.png")


@pytest.mark.parametrize(
    ("threshold", "text"), [(1.25, "threshold 1.25"), (math.inf, "nothing is flagged"), (None, None)]
)
def test_histogram_states_the_threshold(tmp_path, drawn, threshold, text):
    plots.histogram(LABELS, SCORES, threshold, tmp_path / "h.png")
    assert any(text in found for found in texts(drawn[0])) if text else not any("thresh" in t for t in texts(drawn[0]))
    assert "normal (n = 30)" in texts(drawn[0])
    assert_nothing_is_cut_off(tmp_path / "h.png")


def test_confusion_calibration_balance_and_training(tmp_path, drawn):
    plots.confusion([[1200, 34], [0, 0]], tmp_path / "c.png")
    assert {"1,200", "97.2%", "34", "2.8%", "0"} <= set(texts(drawn[-1]))
    plots.calibration({"net": ([0.1, np.nan, 0.9], [0.2, np.nan, 0.8])}, tmp_path / "k.png", "Predicted", "Observed")
    np.testing.assert_array_equal(drawn[-1].axes[0].lines[0].get_xdata(), [0.1, 0.9])
    plots.class_balance({"train": {"normal": 123456}, "test": {"normal": 7, "anomalous": 5}}, tmp_path / "b.png")
    assert {"123,456", "7", "5", "0"} <= set(texts(drawn[-1]))
    rows = [{"kimg": 1.0, "loss_G": 2.0}, {"kimg": 2.0, "loss_G": 1.0, "fid": 30.0}, {"kimg": 3.0, "loss_G": None}]
    plots.training_curves(rows, ["loss_G", "fid"], tmp_path / "t.png")
    assert drawn[-1].axes[0].lines[0].get_xydata().tolist() == [[1, 2], [2, 1]]
    assert drawn[-1].axes[1].lines[0].get_xydata().tolist() == [[2, 30]]
    for name in ("c.png", "k.png", "b.png", "t.png"):
        assert_nothing_is_cut_off(tmp_path / name)
    with pytest.raises(ValueError, match="no r1 in the log; it has loss_G, fid"):
        plots.training_curves(rows, ["fid", "r1"], tmp_path / "t2.png")
    with pytest.raises(ValueError, match="shape"):
        plots.confusion([[1, 2, 3]], tmp_path / "c2.png")


def test_a_failed_plot_leaves_the_old_one_and_no_temporary_file(tmp_path):
    path = tmp_path / "roc.png"
    plots.roc({"a": (LABELS, SCORES)}, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="NaN"):
        plots.roc({"a": (LABELS, SCORES * np.nan)}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


IMAGES = np.random.default_rng(1).integers(0, 256, (5, 6, 4, 3), dtype=np.uint8)


def test_grid_keeps_every_pixel(tmp_path):
    grid = np.asarray(Image.open(pictures.image_grid(IMAGES, tmp_path / "g.png")))
    assert grid.shape == (12, 12, 3)
    np.testing.assert_array_equal(grid[6:, 4:8], IMAGES[4])
    assert (grid[6:, 8:] == 255).all()
    grid = np.asarray(Image.open(pictures.image_grid(IMAGES, tmp_path / "g.png", columns=5, scale=3)))
    assert grid.shape == (18, 60, 3)
    np.testing.assert_array_equal(grid[::3, 12:24:3], IMAGES[1])
    np.testing.assert_array_equal(grid[2::3, 14:24:3], IMAGES[1])


def test_pictures_refuse_what_they_cannot_show(tmp_path):
    with pytest.raises(ValueError, match="uint8"):
        pictures.image_grid(IMAGES / 255, tmp_path / "g.png")
    with pytest.raises(ValueError, match="columns and scale"):
        pictures.image_grid(IMAGES, tmp_path / "g.png", scale=0)
    maps = np.zeros((5, 6, 4))
    with pytest.raises(ValueError, match=r"differ in length.*'difference': 4"):
        pictures.triplets(IMAGES, IMAGES, maps[:4], tmp_path / "t.png")
    with pytest.raises(ValueError, match="2 captions for 5 inputs"):
        pictures.triplets(IMAGES, IMAGES, maps, tmp_path / "t.png", captions=["a", "b"])
    with pytest.raises(ValueError, match="not negative"):
        pictures.triplets(IMAGES, IMAGES, maps - 1, tmp_path / "t.png")
    with pytest.raises(ValueError, match="vmax"):
        pictures.triplets(IMAGES, IMAGES, maps, tmp_path / "t.png", vmax=math.inf)
    assert list(tmp_path.iterdir()) == []


def test_class_samples_keep_every_pixel(tmp_path):
    path = pictures.class_samples({"normal": IMAGES, "anomalous": IMAGES[:2]}, tmp_path / "c.png", columns=3)
    picture = np.asarray(Image.open(path))
    strip = (picture.shape[0] - 6 - 3 * 6) // 2
    np.testing.assert_array_equal(picture[strip : strip + 6, 6:10], IMAGES[0])
    np.testing.assert_array_equal(picture[strip + 6 : strip + 12, 10:14], IMAGES[4])
    np.testing.assert_array_equal(picture[2 * strip + 12 : 2 * strip + 18, 10:14], IMAGES[1])


def test_triplets_share_one_colour_scale(tmp_path, drawn):
    maps = np.linspace(0, 1, 5)[:, None, None] * np.ones((5, 6, 4))
    captions = [f"TCGA-A6-2671-01Z-00-DX1_{i}\nscore 0.1" for i in range(5)]
    pictures.triplets(IMAGES, IMAGES, maps, tmp_path / "t.png", captions, masks=maps > 0.5)
    heat = [axes.images[0] for axes in drawn[0].axes[10:15]]
    assert {image.get_clim() for image in heat} == {(0.0, 1.0)}
    inferno = colormaps["inferno"]
    for image, value in zip(heat, np.linspace(0, 1, 5), strict=True):
        assert image.to_rgba(image.get_array())[0, 0] == pytest.approx(inferno(value))
    assert {"input", "closest normal", "difference", "annotation", captions[3]} <= set(texts(drawn[0]))
    assert_nothing_is_cut_off(tmp_path / "t.png")
    pictures.triplets(IMAGES[:1], IMAGES[:1], maps[4:], tmp_path / "t.png", vmax=0.25)
    assert drawn[1].axes[2].images[0].get_clim() == (0, 0.25)
    assert drawn[1].axes[-1]._colorbar.extend == "max"
    assert_nothing_is_cut_off(tmp_path / "t.png")
    pictures.triplets(IMAGES[:1], IMAGES[:1], maps[:1], tmp_path / "t.png")
    assert drawn[2].axes[2].images[0].get_clim() == (0, 1)


def test_importing_is_cheap_and_leaves_pyplot_alone(tmp_path):
    code = (
        "import sys, gan_uad.plotting.plots as p, gan_uad.plotting.pictures, gan_uad.tables;"
        "early = set(sys.modules) & {'matplotlib', 'sklearn', 'scipy', 'torch', 'PIL'};"
        f"from pathlib import Path; p.confusion([[1, 0], [0, 1]], Path({str(tmp_path)!r}) / 'c.png');"
        "print(early, 'matplotlib.pyplot' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert answer.strip() == "set() False"


# ---------------------------------------------------------------- tables

ROWS = [
    {"model": "a|b_1", "auroc": 0.85314, "n": 1200, "note": "50 % & more"},
    {"model": "ConvVAE", "auroc": float("nan"), "n": 7},
]


def test_numbers_and_intervals():
    assert tables.format_number(0.85349) == "0.853"
    assert tables.format_number(1075.94, 2) == "1075.94"
    assert tables.format_number(1.24e-5) == "1.2e-05"
    assert tables.format_number(0.0) == "0.000"
    assert tables.format_number(12) == "12"
    assert tables.format_number(math.inf) == "inf"
    assert tables.format_number(None) == tables.format_number(math.nan) == "–"
    assert tables.format_interval(0.853, 0.812, 0.888) == "0.853 [0.81, 0.89]"
    assert tables.format_interval(0.99891, 0.9976, 0.9998) == "0.999 [0.998, 1.000]"
    assert tables.format_interval(0.986, 0.9853, 0.9949) == "0.986 [0.985, 0.995]"
    assert tables.format_interval(99.94, 99.951, 100.0, 2) == "99.94 [99.95, 100.00]"
    assert tables.format_interval(1.0, 1.0, 1.0) == "1.000 [1.00, 1.00]"
    assert tables.format_interval(1.0, math.nan, math.nan) == "1.000 [–]"
    assert tables.format_interval(1.0, None, None) == "1.000 [–]"


def test_markdown_is_aligned_and_escaped():
    lines = tables.table(ROWS, {"model": "Model", "auroc": "AUROC", "n": "n", "note": "Note"}).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert re.split(r"(?<!\\)\|", lines[2])[1:-1] == [" a\\|b_1  ", " 0.853 ", " 1200 ", " 50 % & more "]
    assert re.fullmatch(r"\| -+ \| -+: \| -+: \| -+ \|", lines[1])
    assert lines[3].split("|")[2].strip() == "–"


def test_csv_is_read_back_in_full():
    read = list(csv.DictReader(io.StringIO(tables.table(ROWS, ["model", "auroc", "note"], "csv"))))
    assert read[0] == {"model": "a|b_1", "auroc": "0.85314", "note": "50 % & more"}
    assert math.isnan(float(read[1]["auroc"]))
    assert read[1]["note"] == ""


def test_latex_is_escaped():
    text = tables.table([*ROWS, {"model": r"x\y{z}~^<5>$#", "auroc": 1.0}], ["model", "auroc", "note"], "latex")
    lines = text.splitlines()
    assert lines[0] == r"\begin{tabular}{lrl}"
    assert lines[4] == r"a|b\_1 & 0.853 & 50 \% \& more \\"
    assert r"x\textbackslash{}y\{z\}\textasciitilde{}\textasciicircum{}\textless{}5\textgreater{}\$\#" in lines[6]
    assert lines[5] == r"ConvVAE & -- & -- \\"


def test_plain_text_and_bad_requests():
    assert tables.table(ROWS, ["model", "n"], "text") == "model       n\n-------  ----\na|b_1    1200\nConvVAE     7\n"
    with pytest.raises(ValueError, match="the formats are"):
        tables.table(ROWS, ["model"], "html")
    with pytest.raises(ValueError, match="no row has the columns f1"):
        tables.table(ROWS, ["f1"])
    assert tables.table([], ["model"], "text") == "model\n-----\n"
