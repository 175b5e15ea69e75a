"""Seeds of a benchmark: what they do not change runs once, and their spread does not hide the interval over groups; names of rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import benchmark_tools
import numpy as np
import pytest
import yaml
from score_tools import rows

from gan_uad.benchmark import tables
from gan_uad.benchmark.datasets import BenchmarkData
from gan_uad.benchmark.plan import plan
from gan_uad.benchmark.schema import load_benchmark
from gan_uad.metrics.bootstrap import paired_interval


def written(folder: Path, trained: Any, **parts: Any) -> Path:
    about = {
        "data": {"patches": {"path": str(trained.patches)}},
        "seeds": [0, 1, 2],
        "resamples": 100,
        "set": {"resolution": 32},
    }
    (folder / "b.yaml").write_text(yaml.safe_dump(about | parts, sort_keys=False))
    return folder / "b.yaml"


def planned(source: Path, trained: Any) -> dict[str, list[int]]:
    found = load_benchmark(str(source))
    cells, comparisons = plan(found, {"patches": BenchmarkData(trained.patches, "key")}, None, "auto")
    seeds: dict[str, list[int]] = {}
    for one in cells:
        seeds.setdefault(one.method, []).append(one.seed)
    return seeds | {one.what: [o.seed for o in comparisons if o.what == one.what] for one in comparisons}


def test_what_no_seed_changes_runs_once(trained: Any, tmp_path: Path) -> None:
    pixels = {"scoring.options.features": "pixels@4"}
    methods = {
        "mean_color": None, "knn": {"set": pixels}, "one_class_svm": {"set": pixels},
        "chosen": {"train": "mahalanobis", "search": {"grid": {"scoring.options.features": ["pixels@2", "pixels@4"]}}},
        "finished": {"train": {"run": str(trained.encoder)}},
        "isolation_forest": {"set": pixels},
        "one_forest": {"train": "isolation_forest", "set": pixels | {"scoring.options.seed": 7}},
        "patchcore": None,
        "few": {"train": "knn", "set": pixels | {"training.total_kimg": 0.004}},  # 4 images, drawn
        "contaminated": {"train": "knn", "set": pixels | {"data.contamination": 0.1}},
        "chain": {"train": ["dcgan_64", "izi_f_64_small"]},
        "nowhere": {"train": {"run": "no/run-{seed}"}},
    }  # fmt: skip
    generation = {"generators": ["gan"], "num": 8}
    more = {"generators": {"gan": {"train": {"run": str(trained.generator)}}}, "generation": generation}
    once = ("mean_color", "knn", "one_class_svm", "chosen", "finished", "one_forest", "gan")
    drawn = ("isolation_forest", "patchcore", "few", "contaminated", "chain", "nowhere")
    expected = {name: [0] for name in once} | {name: [0, 1, 2] for name in drawn}
    assert planned(written(tmp_path, trained, methods=methods, **more), trained) == expected
    one = planned(written(tmp_path, trained, methods={"knn": {"set": pixels, "seeds": [4]}}), trained)
    assert one == {"knn": [4]}


@pytest.fixture(scope="module")
def made(cli: Any, trained: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Two methods, one of which no seed changes, at two resolutions; and what was said."""
    folder = tmp_path_factory.mktemp("seeds")
    methods = {
        "knn": {"set": {"scoring.options.features": "pixels@4"}},
        "isolation_forest": {"set": {"scoring.options.features": "pixels@4", "scoring.options.trees": 3}},
        "coarse": {"train": "isolation_forest", "set": {"resolution": 16, "scoring.options.features": "pixels@4"}},
    }  # fmt: skip
    source = written(folder, trained, methods=methods, seeds=[0, 1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gan_uad.benchmark.run.start", benchmark_tools.in_process)
        patch.setattr("gan_uad.plotting.pictures.triplets", lambda *_, **__: None)
        result = cli("benchmark", source, "--out", folder / "out")
    assert result.exit_code == 0, result.output
    return source, folder / "out", result.stderr


def test_the_interval_stands_beside_the_spread(made: tuple[Path, Path, str], cli: Any, tmp_path: Path) -> None:
    source, out, said = made
    assert "knn" in next(line for line in said.splitlines() if "no seed changes" in line)
    results = json.loads((out / "results.json").read_text())
    forest = [row for row in results["rows"] if row["method"] == "isolation_forest"]
    assert [row["seed"] for row in forest] == [0, 1]
    (summary,) = (row for row in results["summary"] if row["method"] == "isolation_forest")
    for name in ("auroc", "difference"):
        assert summary[name]["sd"] == pytest.approx(np.std([row[name] for row in forest], ddof=1))
        for bound in ("low", "high"):
            assert summary[name][bound] == pytest.approx(np.mean([row[f"{name}_{bound}"] for row in forest]))
    area = summary["auroc"]
    low, high = (f"{area[bound]:.2f}" for bound in ("low", "high"))
    text = (out / "results.md").read_text()
    assert f"{area['mean']:.3f} ± {area['sd']:.3f} [{low}, {high}]" in text
    knn = next(line for line in text.splitlines() if line.startswith("| patches | knn"))
    assert "±" not in knn
    assert [row["seeds"] for row in results["summary"] if row["method"] == "knn"] == [[0]]
    assert cli("report", out, "--out", tmp_path / "r.html").exit_code == 0
    page = (tmp_path / "r.html").read_text()
    assert f"± {area['sd']:.3f} [{low}, {high}]" in page
    # Finished cells of other seeds, as version 0.2 made them, are left out and counted.
    (cell,) = (one for one in (out / "cells").iterdir() if "-knn-" in one.name)
    other = json.loads((cell / "plan.json").read_text())["instead_of"]
    assert len(other) == 1
    shutil.copytree(out, tmp_path / "out")
    shutil.copytree(cell, tmp_path / "out" / other[0])
    again = cli("benchmark", source, "--out", tmp_path / "out")
    assert again.exit_code == 0, again.output
    assert "1 finished cell" in next(line for line in again.stderr.splitlines() if "no seed changes" in line)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["summary"] == results["summary"]


def test_the_difference_to_mean_colour_is_paired(made: tuple[Path, Path, str]) -> None:
    _, out, _ = made
    for row in rows(out / "results.csv"):
        if row["method"] == "mean colour":
            assert row["difference"] == ""
            continue
        own, colour = (rows(out / row["folder"] / "scores" / f"{name}.csv") for name in ("scores", "mean_color"))
        assert [one["image"] for one in own] == [one["image"] for one in colour]
        scores, others = ([float(one["score"]) for one in of] for of in (own, colour))
        labels, groups = [int(one["label"]) for one in own], [one["group"] for one in own]
        expected = paired_interval(labels, scores, others, groups, n=100)
        shown = [float(row[f"difference{bound}"]) for bound in ("", "_low", "_high")]
        assert shown == pytest.approx([expected.value, expected.low, expected.high])
    assert "AUROC over mean colour" in (out / "results.md").read_text()


def test_no_two_rows_have_one_name(made: tuple[Path, Path, str], cli: Any, tmp_path: Path) -> None:
    """Mean colour at two resolutions, in the tables and on the page."""
    _, out, _ = made
    summary = json.loads((out / "results.json").read_text())["summary"]
    names = tables.named(summary)
    assert len(set(names)) == len(names) == 5
    assert {"mean colour, 32 px", "mean colour, 16 px", "knn", "isolation_forest", "coarse"} == set(names)
    detection = (out / "results.md").read_text().partition("## Detection")[2].partition("##")[0]
    assert all(detection.count(f"| {name} ") == 1 for name in names)
    assert cli("report", out, "--out", tmp_path / "r.html").exit_code == 0
    page = (tmp_path / "r.html").read_text()
    assert "mean colour, 16 px" in page
    assert "mean colour, 32 px" in page


def test_mean_colour_of_differently_changed_images_is_not_averaged() -> None:
    """Corruptions that the settings of methods bring have no name of a scoring or of overrides."""
    area = {"value": 0.5, "low": 0.4, "high": 0.6}
    baseline = {"normal": 2, "anomalous": 2, "auroc": area, "auprc": area, "fpr5": None, "youden": None, "pixels": None}
    common = {
        "data": "d",
        "scoring": "own",
        "overrides": "",
        "seed": 0,
        "folder": "f",
        "training": [{"resolution": 32}],
    }
    cells: list[Any] = [
        common | {"method": name, "corruption": words, "baseline": baseline | {"auroc": {**area, "value": value}}}
        for name, words, value in (("a", None, 0.5), ("b", "jpeg 30", 0.6), ("c", "blur 1", 0.7))
    ]
    found = [row for row in tables.with_baselines(cells) if row["method"] == tables.BASELINE]
    summary = tables.summarised([tables.flat(row | {"training": None}) for row in found])
    assert [row["auroc"]["mean"] for row in summary] == [0.5, 0.6, 0.7]
    assert len(set(tables.named(summary))) == 3


def test_a_seed_without_interval_leaves_none() -> None:
    cells = [SimpleNamespace(low=0.4), SimpleNamespace(low=None)]
    found = [
        dict.fromkeys((*tables.COLUMNS, "seedless"))
        | {"method": "m", "auroc": 0.5, "auroc_low": cell.low, "auroc_high": 0.6, "seed": i}
        for i, cell in enumerate(cells)
    ]
    (row,) = tables.summarised(found)
    assert (row["auroc"]["low"], row["auroc"]["high"]) == (None, pytest.approx(0.6))
