"""`gan-uad evaluate` from the outside: metrics, tables, plots, thresholds set again, bad score files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from score_tools import fails, rows
from sklearn.metrics import average_precision_score, roc_auc_score

from gan_uad.detection.evaluate import distinct_names


def test_the_pictures_are_there(scored: Path) -> None:
    names = ["triplets", "roc", "pr", "calibration"]
    names += [f"{model}_{kind}" for model in ("tiny_izi_f-izi_f", "mean_color") for kind in ("histogram", "confusion")]
    for name in names:
        with Image.open(scored / f"{name}.png") as image:
            assert image.format == "PNG"
            assert min(image.size) > 200
            assert len(np.unique(np.asarray(image))) > 5  # not a blank page


def test_the_figures_are_those_of_the_file(scored: Path) -> None:
    metrics = json.loads((scored / "metrics.json").read_text())
    assert list(metrics) == ["tiny_izi_f/izi_f", "mean_color"]
    for name, file in (("tiny_izi_f/izi_f", "scores.csv"), ("mean_color", "mean_color.csv")):
        found, result = rows(scored / file), metrics[name]
        labels, scores = [int(r["label"]) for r in found], [float(r["score"]) for r in found]
        assert result["auroc"]["value"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
        assert result["auprc"]["value"] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
        assert result["auroc"]["low"] < result["auroc"]["value"] < result["auroc"]["high"]
        assert (result["auroc"]["unit"], result["auroc"]["n_units"]) == ("group", 4)
        decided = np.array([int(r["decision"]) for r in found])
        assert result["decisions"]["accuracy"] == pytest.approx(np.mean(decided == np.array(labels)))
        assert result["threshold"]["rule"] == "fpr"
        for part in ("residual", "features", "latent") if name != "mean_color" else ():
            expected = roc_auc_score(labels, [float(r[part]) for r in found])
            assert result["components"][part] == pytest.approx(expected, abs=1e-12)
    pixels = metrics["tiny_izi_f/izi_f"]["pixels"]
    truth, maps = (
        np.stack([np.asarray(Image.open(f)) for f in sorted((scored / name).iterdir())]) for name in ("truth", "maps")
    )
    assert pixels["pixel_auroc"] == pytest.approx(roc_auc_score(truth.ravel() > 0, maps.ravel()), abs=1e-9)
    assert set(pixels) == {"pixel_auroc", "aupro", "dice", "iou"}
    printed = (scored / "printed.txt").read_text()
    assert f"pixel_auroc {pixels['pixel_auroc']:.3f}" in printed


def test_the_tables(scored: Path) -> None:
    metrics = rows(scored / "metrics.csv")
    assert [r["model"] for r in metrics] == ["tiny_izi_f/izi_f", "mean_color"]
    value = json.loads((scored / "metrics.json").read_text())["mean_color"]["auroc"]["value"]
    assert metrics[1]["AUROC"].startswith(f"{value:.3f} [")
    assert (scored / "metrics.md").read_text().splitlines()[0].startswith("| model")
    latex = (scored / "metrics.tex").read_text()
    assert latex.startswith(r"\begin{tabular}")
    assert r"mean\_color" in latex


@pytest.mark.usefixtures("fast")
def test_a_threshold_set_again(cli: Any, scored: Path, tmp_path: Path) -> None:
    """Without scoring again, on the validation scores: for the baseline on its own."""
    arguments = ("--out", tmp_path, "--resamples", 100)
    assert cli("evaluate", scored, "--threshold", "quantile:0.5", *arguments).exit_code == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for name, file in (("tiny_izi_f/izi_f", "scores_validation.csv"), ("mean_color", "mean_color_validation.csv")):
        normals = sorted(float(r["score"]) for r in rows(scored / file) if r["label"] == "0")
        assert metrics[name]["threshold"]["value"] == normals[9]
        assert metrics[name]["threshold"]["rule"] == "quantile"
    assert cli("evaluate", scored, "--threshold", "manual:0.3", *arguments).exit_code == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["tiny_izi_f/izi_f"]["threshold"]["value"] == 0.3
    assert metrics["mean_color"]["threshold"]["rule"] == "fpr"  # 0.3 is a value of the other score
    fails(cli("evaluate", scored, "--threshold", "fpr:7", *arguments), "--threshold fpr:7")
    assert rows(scored / "scores.csv")[0]["threshold"] != "0.3"


def test_several_folders_at_once(cli: Any, scored: Path, tmp_path: Path) -> None:
    other = shutil.copytree(scored, tmp_path / "other")
    result = cli("evaluate", scored, other, "--out", tmp_path / "both", "--resamples", 100)
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "both" / "metrics.json").read_text())
    assert list(metrics) == ["scores: tiny_izi_f/izi_f", "mean_color", "other: tiny_izi_f/izi_f"]
    assert all("pixels" in metrics[f"{folder}: tiny_izi_f/izi_f"] for folder in ("scores", "other"))
    assert len(list((tmp_path / "both").glob("*_histogram.png"))) == 3


def table(folder: Path, name: str, scores: list[float], threshold: str = "") -> Path:
    """A score file of three normal and three anomalous images of two groups each."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{k},{'an'[k // 3]}{k % 2},{k // 3},{score},{name},{threshold}" for k, score in enumerate(scores)]
    file = folder / ("mean_color.csv" if name == "mean_color" else "scores.csv")
    file.write_text("\n".join(["image,group,label,score,model,threshold", *lines]))
    return folder


def test_cells_of_a_benchmark_have_distinct_names_and_one_common_baseline(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr("gan_uad.plotting.plots.roc", lambda curves, _: drawn.extend(curves))
    for name in ("pr", "histogram", "confusion"):
        monkeypatch.setattr(f"gan_uad.plotting.plots.{name}", lambda *_: None)
    for number, cell in enumerate(("a", "b", "c")):
        folder = table(tmp_path / "cells" / cell / "scores", "m", [0, 1, 4, 3, 5, 6 + number], "3.5")
        table(folder, "mean_color", [1, 2, 3, 4, 5, 6 if cell != "c" else 0], "3.5")
    folders = sorted(tmp_path.glob("cells/*/scores"))
    result = cli("evaluate", *folders[:2], "--out", tmp_path / "two", "--resamples", 100)
    assert result.exit_code == 0, result.output
    assert drawn == ["a: m", "mean_color", "b: m"]
    metrics = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert [metrics[f"{cell}: m"]["baseline"] for cell in "ab"] == ["mean_color"] * 2
    assert result.stdout.count("`decision_intervals` in " + str(tmp_path / "two" / "metrics.json")) == 1
    assert result.stdout.count("decision_intervals") == 1
    assert "every row: threshold: " in result.stdout
    drawn.clear()
    assert cli("evaluate", *folders, "--out", tmp_path / "three", "--resamples", 100).exit_code == 0
    assert drawn == ["a: m", "a: mean_color", "b: m", "c: m", "c: mean_color"], "of other data it is another one"
    metrics = json.loads((tmp_path / "three" / "metrics.json").read_text())
    assert [metrics[f"{cell}: m"]["baseline"] for cell in "abc"] == [f"{cell}: mean_color" for cell in "aac"]


@pytest.mark.usefixtures("fast")
def test_without_a_threshold_there_are_no_decisions(cli: Any, tmp_path: Path) -> None:
    folder = table(tmp_path / "scores", "m", [0, 1, 4, 3, 5, 6])
    table(folder, "mean_color", [1, 2, 3, 4, 5, 6])
    result = cli("evaluate", folder, "--resamples", 100)
    assert result.exit_code == 0, result.output
    for row in rows(folder / "metrics.csv"):
        assert [row[key] for key in ("threshold", "accuracy", "F1", "sensitivity", "specificity")] == [""] * 5
    line = next(line for line in (folder / "metrics.md").read_text().splitlines() if line.startswith("| m "))
    assert [cell.strip() for cell in line.split("|")[5:-1]] == ["–"] * 5
    assert "inf" not in line
    assert result.stdout.count("no threshold was set") == 1
    assert "--threshold manual:VALUE" in result.stdout
    assert "decision_intervals" not in result.stdout
    page = tmp_path / "r.html"
    assert cli("report", folder, "--out", page).exit_code == 0
    assert ">inf<" not in page.read_text()
    result = cli("evaluate", folder, "--threshold", "manual:3.5", "--resamples", 100)
    assert [row["accuracy"] != "" for row in rows(folder / "metrics.csv")] == [True, False]
    assert "mean_color: threshold: no threshold was set" in result.stdout


def few_patients(folder: Path, classes: tuple[str, str] = ("tumour", "tumour"), parts: int = 1) -> Path:
    """Patches of nine patients, four with normals, split by hand: val has normals of two of them. `parts`: each patient is so many."""
    rng = np.random.default_rng(0)
    lines = []
    for k in range(180):
        patient, label = k % 9, int(k % 9 >= 4)
        split = ["train", "val", "val", "test", "test", "train", "val", "test", "test"][patient]
        grey = rng.normal(150 - 25 * label, 20, (16, 16, 3)).clip(0, 255).astype(np.uint8)
        folder.mkdir(exist_ok=True)
        Image.fromarray(grey).save(folder / f"{k}.png")
        lines.append(f"{k}.png,p{patient}-{k // 9 % parts},{label},{split},{classes[k % 2] if label else 'normal'}")
    (folder / "index.csv").write_text("\n".join(["image,group,label,split,class", *lines]) + "\n")
    return folder


def test_a_threshold_that_cannot_be_met_is_said_at_once_and_has_no_decisions(cli: Any, tmp_path: Path) -> None:
    data = few_patients(tmp_path / "patches", ("mucin", "necrosis"))
    ways_out = "quantile:0.95", "fpr:0.334"

    def says(*arguments: Any) -> Any:
        result = cli(*arguments)
        assert result.exit_code == 0, result.output
        assert all(way in result.output for way in ways_out), result.output
        return result

    says("data", "check", data, "--resolution", 16)
    trained = cli("train", "mean_color", "--data", data, "--out", tmp_path / "runs", "-o", "resolution=16")
    assert trained.exit_code == 0, trained.output
    folder = tmp_path / "scores"
    says("score", tmp_path / "runs" / "00000-mean_color", "--out", folder)
    assert {row["decision"] for row in rows(folder / "scores.csv")} == {""}
    assert {row["class"] for row in rows(folder / "scores.csv")} == {"normal", "mucin", "necrosis"}
    says("evaluate", folder, "--resamples", 100)
    metrics = json.loads((folder / "metrics.json").read_text())
    for result in metrics.values():
        assert result["decisions"] is result["decision_intervals"] is None
        assert set(result["classes"]) == {"mucin", "necrosis"}
    for row in rows(folder / "metrics.csv"):
        assert row["threshold"].endswith("none")
        assert [row[key] for key in ("accuracy", "F1", "sensitivity", "specificity")] == [""] * 4
    assert not list(folder.glob("*_confusion.png"))
    page = tmp_path / "r.html"
    assert cli("report", tmp_path, "--out", page).exit_code == 0
    assert all(way in page.read_text() for way in ways_out)
    assert "necrosis" in page.read_text()
    for way in ways_out:
        result = cli("evaluate", folder, "--threshold", way, "--resamples", 100, "--out", tmp_path / way[:3])
        assert result.exit_code == 0, result.output
        assert all(row["accuracy"] for row in rows(tmp_path / way[:3] / "metrics.csv"))


def test_folds_without_a_threshold_are_not_averaged(cli: Any, tmp_path: Path) -> None:
    data = few_patients(tmp_path / "patches", parts=5)
    arguments = (
        "cross-validate",
        "mean_color",
        "--folds",
        2,
        "--data",
        data,
        "-o",
        "resolution=16",
        "--resamples",
        100,
    )
    result = cli(*arguments, "--out", tmp_path / "folds")
    assert result.exit_code == 0, result.output
    assert "quantile:0.95" in result.stdout
    found = next(iter(json.loads((tmp_path / "folds" / "metrics.json").read_text())["models"].values()))
    assert len(found["without_threshold"]) == 2
    for one in (*found["folds"], found["mean"], found["pooled"]):
        assert one["sensitivity"] is one["accuracy"] is None
        assert one["auroc"] is not None
    assert not (tmp_path / "folds" / "confusion.png").exists()
    result = cli(*arguments, "--out", tmp_path / "folds", "--threshold", "quantile:0.95")
    assert result.exit_code == 0, result.output
    found = next(iter(json.loads((tmp_path / "folds" / "metrics.json").read_text())["models"].values()))
    assert not found["without_threshold"]
    assert found["mean"]["sensitivity"]["mean"] == np.mean([one["sensitivity"]["value"] for one in found["folds"]])


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (("x/a/scores", "x/b/scores"), ["a", "b"]),
        (("x/a", "y/b"), ["a", "b"]),
        (("x/a/s", "y/a/s", "x/b/s"), ["x/a", "y/a", "x/b"]),
        (("x/s", "y/s", "z/t"), ["x/s", "y/s", "z/t"]),
        (("x/s", "x/./s"), ["", ""]),
        (("x/s", "s"), ["x", "."]),
    ],
)
def test_folders_are_called_by_what_differs(folders: tuple[str, ...], names: list[str], tmp_path: Path) -> None:
    here = tmp_path.name
    assert distinct_names([tmp_path / folder for folder in folders]) == [here if n == "." else n for n in names]


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("image,label,score\na,0,1\n\nb,1,x\n", ("line 4", "score 'x'")),
        ("image,label,score\na,0,1\nb,1,nan\n", ("line 3", "score is nan")),
        ("image,label,score\na,0,1\nb,2,1\n", ("line 3", "label '2'")),
        ("image,label,score\na,0,1\nb,1\n", ("line 3", "cells")),
        ("image,label,score\na,0,1\nb,1,1\na,0,1\n", ("line 4", "'a'", "line 2")),
        ("image,label,score\na,0,1\n./a,1,1\n", ("line 3", "'./a'", "line 2")),
        ("image,label,score\nx/a,0,1\nx/y/../a,1,1\n", ("line 3", "'x/y/../a'", "line 2")),
        ("image,label,score,score\na,0,1,2\n", ("line 1", "'score'")),
        ("image,label,label,score\na,0,1,2\n", ("line 1", "'label'")),
        ("image,label,score,l1,l1\na,0,1,2,3\n", ("line 1", "'l1'")),
        ("image,label,score\na,0,1_000\n", ("line 2", "'1_000'")),
        ("image,label,score\na,0,٣\n", ("line 2", "'٣'")),
        ("image,label,score\na,0, 1 \n", ("line 2", "' 1 '")),
        ("image,label,score\na,0,0x10\n", ("line 2", "'0x10'")),
        ("image,label,score\na,0,1e999\n", ("line 2", "'1e999'")),
        ("image,label,score,threshold\na,0,1,nan\n", ("threshold", "nan")),
        ("image,label,score,threshold\na,0,1,1_0\n", ("threshold", "'1_0'")),
        ("image,group,label,score\na,p,0,1\nb,c.png,,0,0.5\n", ("line 3", "cells")),
        ("image,label,score,model\na,0,1,m\nb,1,2,n\n", ("model (m, n)",)),
        ("image,label\na,0\n", ("column 'score'",)),
        ("image,label,score\n", ("holds no scores",)),
        ("", ("column 'image'",)),
        ("image,label,score\na,0,1\nb,0,2\n", ("0 and 1",)),
        ("image,label,score,threshold\na,0,1,t\nb,1,2,t\n", ("threshold 't'",)),
    ],
)
def test_bad_score_files(cli: Any, tmp_path: Path, text: str, messages: tuple[str, ...]) -> None:
    (tmp_path / "scores.csv").write_text(text)
    fails(cli("evaluate", tmp_path), str(tmp_path / "scores.csv"), *messages)
    assert [file.name for file in tmp_path.iterdir()] == ["scores.csv"]


@pytest.mark.usefixtures("fast")
def test_score_files_of_others(cli: Any, tmp_path: Path) -> None:
    """A table from elsewhere is enough; a rule that needs validation scores is not passed over in silence."""
    lines = [f"{i},{i % 2},{i % 2 + i / 10}" for i in range(10)]
    (tmp_path / "theirs.csv").write_bytes("\ufeffimage,label,score\n".encode() + "\n".join(lines).encode())
    out = ("--out", tmp_path / "out", "--resamples", 100)
    result = cli("evaluate", tmp_path / "theirs.csv", *out)
    assert result.exit_code == 0, result.output
    assert "no threshold was set" in result.stdout
    fails(
        cli("evaluate", tmp_path / "theirs.csv", "--threshold", "fpr:0.1", *out),
        "--threshold fpr:0.1",
        "validation scores",
    )
    assert cli("evaluate", tmp_path / "theirs.csv", "--threshold", "manual:0.95", *out).exit_code == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["theirs"]["decisions"]["sensitivity"] == 1
    (tmp_path / "empty").mkdir()
    fails(cli("evaluate", tmp_path / "empty"), "scores.csv", "gan-uad score RUN DATA")


def test_a_run_is_no_folder_of_scores(cli: Any, tmp_path: Path) -> None:
    """It may hold some, or be scored."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").touch()
    result = cli("evaluate", run)
    fails(result, f"{run} ", "scores.csv", "gan-uad score")
    assert result.stderr.endswith(f"gan-uad score {run}\n")
    for name in ("patches-test-w", "patches-izi_f"):
        (run / "scores" / name).mkdir(parents=True)
        (run / "scores" / name / "scores.csv").touch()
    inside = run / "scores" / "patches-izi_f"
    fails(cli("evaluate", run), f"gan-uad evaluate {inside} (1 more beside it)")
