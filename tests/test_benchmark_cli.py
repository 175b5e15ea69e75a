"""`gan-uad benchmark`: one table of many cells; killed and started again it is the same; a failed cell takes no other with it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import benchmark_tools
import numpy as np
import pytest
import yaml
from PIL import Image
from score_tools import fails, index, rows
from sklearn.metrics import roc_auc_score

from gan_uad.benchmark.datasets import BenchmarkData, prepare_data
from gan_uad.benchmark.plan import plan, points
from gan_uad.benchmark.schema import DataEntry, Search, load_benchmark, shipped
from gan_uad.config import DataConfig, load_config
from gan_uad.data.sources import open_source
from gan_uad.errors import UserError
from gan_uad.files import make_folder, one_writer

pytestmark = pytest.mark.timeout(600)  # of several processes: on a busy machine they wait for each other

TIMES = ("train_seconds", "train_images_per_s", "score_images_per_s")
SMALL = {"resolution": 32, "training.total_kimg": 0.064, "training.batch": 16, "training.checkpoint_kimg": 0.032}
NETS = {"network.channel_base": 64, "network.channel_max": 8}
METHODS: dict[str, Any] = {
    "wrong": {"train": "conv_vae_64", "set": {"network.channels": [1] * 9}},
    "nowhere": {"train": {"run": "no/run*"}},
    "mean_color": None,
    "mahalanobis": {"search": {"grid": {"scoring.options.features": ["pixels@2", "pixels@8"]}}},
    "izi_f": {
        "train": ["dcgan_64", "izi_f_64_small"],
        "set": NETS | {"dcgan_64/network.z_dim": 4, "izi_f_64_small/scoring.options.kappa": 0.5},
        "score": {"own": {}, "residual": {"inverter": "izi", "set": {"scoring.options.kappa": 0.0}}},
    },
    "vae": {
        "train": "conv_vae_64",
        "set": {"network.channels": [4, 8], "network.latent_dim": 4, "training.eval_kimg": 0.064},
        "score": {"own": {"maps": True}},
    },
}


def written(path: Path, **parts: Any) -> Path:
    path.write_text(yaml.safe_dump({"resamples": 100, "set": SMALL, **parts}, sort_keys=False))
    return path


@pytest.fixture(scope="module", autouse=True)
def _in_process() -> Iterator[None]:
    """Cells of most tests are done in this process, without pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gan_uad.benchmark.run.start", benchmark_tools.in_process)
        for name in ("pictures.triplets", "plots.learning_curves"):
            patch.setattr(f"gan_uad.plotting.{name}", lambda *_, **__: None)
        yield


def test_old_results_stay_with_the_content_that_had_them(tmp_path: Path) -> None:
    """Version 0.2 knew a set by the times of its files: another set with the same times must not get its results."""
    from gan_uad.benchmark.run import _as_kept

    (tmp_path / "cells" / "mine-old").mkdir(parents=True)
    (tmp_path / "cells" / "mine-old" / "cell.json").write_text("{}")

    def planned(sets: Any) -> Any:
        cells = [SimpleNamespace(folder=f"cells/{name}-{one.key}") for name, one in sets.items()]
        return cells, []

    def kept(key: str, name: str = "mine", dry_run: bool = False) -> str:
        sets = {name: BenchmarkData(tmp_path, key, "old")}
        return _as_kept(sets, tmp_path, planned, dry_run)[name].key

    assert kept("first", dry_run=True) == "old"
    assert kept("first") == "old"
    assert kept("second") == "second"
    assert kept("first") == "old"
    assert kept("third", name="other") == "third"


@pytest.fixture(scope="module")
def source(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark of every kind of cell, with two that cannot be, and a run that was trained elsewhere."""
    found = {"train": {"run": f"{trained.encoder.parent}/*-tiny_izi_f"}}
    data = {"patches": {"path": str(trained.patches)}}
    return written(tmp_path_factory.mktemp("file") / "tiny.yaml", data=data, methods={**METHODS, "found": found})


@pytest.fixture(scope="module")
def made(cli: Any, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished benchmark. Nobody writes into it."""
    out = tmp_path_factory.mktemp("benchmark") / "out"
    fails(cli("benchmark", source, "--out", out), "2 of 8", "results.md", code=1)
    return out


def table(folder: Path) -> list[dict[str, str]]:
    return rows(folder / "results.csv")


def timeless(folder: Path, *methods: str) -> list[dict[str, str]]:
    found = [row for row in table(folder) if row["method"] in methods]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in found]


def area(file: Path) -> float:
    found = rows(file)
    return float(roc_auc_score([int(one["label"]) for one in found], [float(one["score"]) for one in found]))


def results(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())


# ---------------------------------------------------------------- the table


def test_metrics_are_those_of_the_score_files(made: Path) -> None:
    found = table(made)
    assert [(row["method"], row["scoring"]) for row in found] == [
        ("mean colour", ""), ("mean_color", ""), ("mahalanobis", ""), ("izi_f", ""), ("izi_f", "residual"), ("vae", ""), ("found", ""),
    ]  # fmt: skip
    for row in found:
        file = made / row["folder"] / "scores" / ("mean_color.csv" if row["method"] == "mean colour" else "scores.csv")
        assert float(row["auroc"]) == pytest.approx(area(file))
        assert float(row["auroc_low"]) <= float(row["auroc"]) <= float(row["auroc_high"])
        assert (row["normal"], row["anomalous"]) == ("20", "20")
        validation = rows(file.with_name(f"{file.stem}_validation.csv"))
        best = youden(validation)
        scored = rows(file)
        hits = [float(one["score"]) > best for one in scored if one["label"] == "1"]
        assert float(row["youden_sensitivity"]) == pytest.approx(np.mean(hits))
        assert row["fpr5_specificity"] == row["fpr5_false_alarms"] == "", "four groups cannot promise 5 %"
    reasons = [line for line in (made / "results.md").read_text().splitlines() if "quantile:0.95" in line]
    assert len(reasons) == 1, "said once, not for each row"


def youden(validation: list[dict[str, str]]) -> float:
    """Any threshold between the lowest flagged and the highest unflagged score of the largest TPR - FPR, the highest of several."""
    values = sorted({float(one["score"]) for one in validation})
    gains = []
    for low, high in zip(values, values[1:], strict=False):
        flagged = {label: [float(one["score"]) > low for one in validation if one["label"] == label] for label in "01"}
        gains.append((np.mean(flagged["1"]) - np.mean(flagged["0"]), (low + high) / 2))
    most = max(gain for gain, _ in gains)
    return max(middle for gain, middle in gains if gain == pytest.approx(most))


def test_training_columns(made: Path) -> None:
    mean, _, gaussian, chain, residual, vae, found = table(made)
    assert chain["kimg"] == "0.064 + 0.064"
    assert (chain["training"], gaussian["training"], mean["training"]) == ("truncated", "complete", "")
    assert residual["runs"] == chain["runs"]
    scores = [(made / row["folder"] / "scores" / "scores.csv").read_bytes() for row in (chain, residual)]
    assert scores[0] != scores[1]
    assert all((made / run / "model.safetensors").is_file() for run in chain["runs"].split())
    assert len(list(made.glob("runs/*/*/model.safetensors"))) == 6  # a run a training, none twice
    log = [json.loads(line) for line in (made / vae["runs"] / "log.jsonl").read_text().splitlines()]
    assert (float(vae["kl"]), float(vae["kimg"])) == (log[-1]["kl"], 0.064)
    validation = json.loads((made / vae["runs"] / "metrics.jsonl").read_text().splitlines()[-1])
    assert float(vae["val_reconstruction"]) == validation["val_reconstruction"]
    assert float(vae["pixel_auroc"]) == results(made)["cells"][-2]["pixels"]["pixel_auroc"]
    assert float(vae["train_seconds"]) == pytest.approx(sum_of_log(log), abs=0.01)
    assert (found["kimg"], found["training"], found["runs"]) == (
        "0.32",
        "unknown",
        "00001-tiny_izi_f",
    )  # the length of its generator is not known
    assert all(float(chain[key]) > 0 for key in TIMES)


def sum_of_log(log: list[dict[str, Any]]) -> float:
    return sum((b["kimg"] - a["kimg"]) * b["seconds_per_kimg"] for a, b in zip([{"kimg": 0}, *log], log, strict=False))


def test_search_chooses_on_validation_and_reads_test_once(made: Path, trained: Any) -> None:
    cell = next(one for one in results(made)["cells"] if one["method"] == "mahalanobis")
    tried = cell["search"]["attempts"]
    assert [one["settings"] for one in tried] == [f'scoring.options.features="pixels@{side}"' for side in (2, 8)]
    figures = [area(made / one["folder"] / "scores" / "scores.csv") for one in tried]
    assert [one["figure"] for one in tried] == pytest.approx(figures)
    assert cell["search"]["chosen"] == cell["settings"] == tried[int(np.argmax(figures))]["settings"]
    val = {row["image"] for row in index(trained.patches) if row["split"] == "val"}
    for one in tried:
        assert {row["image"] for row in rows(made / one["folder"] / "scores" / "scores.csv")} == val
    text = (made / "results.md").read_text()
    assert all(one["settings"] in text for one in tried)


def test_failed_cells_are_reported_and_tried_again(cli: Any, made: Path, source: Path) -> None:
    failed = {one["cell"]: one for one in results(made)["failed"]}
    assert list(failed) == ["patches, wrong, seed 0", "patches, nowhere, seed 0"]
    assert "512" in failed["patches, wrong, seed 0"]["error"]
    assert "no/run*" in failed["patches, nowhere, seed 0"]["error"]
    assert "Traceback" in (made / failed["patches, wrong, seed 0"]["log"]).read_text()
    assert "no/run*" in (made / "results.md").read_text()
    before = {path: path.stat().st_mtime_ns for path in made.glob("cells/*/cell.json")}
    assert len(before) == 6
    result = cli("benchmark", source, "--out", made, "--only", "nowhere", "--only", "vae")
    fails(result, "1 of 2", code=1)
    assert {path: path.stat().st_mtime_ns for path in made.glob("cells/*/cell.json")} == before
    listed = cli("benchmark", source, "--out", made, "--dry-run").stdout.splitlines()
    assert [line.rpartition(": ")[2] for line in listed].count("finished") == 6


def test_latex_and_markdown_have_every_row(made: Path) -> None:
    assert (made / "results.tex").read_text().count(r" \\") == 8
    detection = (made / "results.md").read_text().partition("## Detection")[2].partition("##")[0]
    assert len(re.findall(r"^\| patches", detection, re.M)) == 7


# ---------------------------------------------------------------- killed, sharded, repeated


def waited_for(what: Any, seconds: float = 300) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def test_killed_and_started_again(cli: Any, made: Path, source: Path, tmp_path: Path) -> None:
    """kill -9 of a cell in training: it fails alone. Of the benchmark: its cells end. Started again, the table is the undisturbed one's."""
    out, errors, methods = tmp_path / "out", tmp_path / "stderr.txt", ("mean_color", "izi_f")
    words = ["benchmark", str(source), "--out", str(out), "--only", "izi_f", "--only", "mean_color", "--jobs", "2"]
    with open(errors, "w") as file, subprocess.Popen([sys.executable, "-m", "gan_uad", *words], stderr=file) as started:
        waited_for(lambda: list(out.glob("runs/dcgan*/*/config.yaml")))
        (place,) = out.glob("runs/dcgan*")
        os.kill(waited_for(lambda: benchmark_tools.at_work(out, "izi_f"))[0], signal.SIGKILL)
        waited_for(lambda: "ended by signal 9" in errors.read_text())
        waited_for(lambda: list(place.glob("*/state.pt")))  # its other scoring continues the same run
        waited_for(lambda: list(out.glob("cells/*mean_color*/cell.json")))
        started.kill()
    waited_for(lambda: not benchmark_tools.at_work(out))  # nothing continues alone
    (kept,) = out.glob("cells/*mean_color*/cell.json")
    before = kept.stat().st_mtime_ns
    again = cli(*words)
    assert again.exit_code == 0, again.output
    assert kept.stat().st_mtime_ns == before
    assert timeless(out, *methods) == timeless(made, *methods)
    assert [one["cell"] for one in results(out)["failed"]] == ["patches, nowhere, seed 0"]


def test_shards_make_one_table_of_seeds(cli: Any, trained: Any, tmp_path: Path) -> None:
    source = written(
        tmp_path / "seeds.yaml",
        data={"patches": {"path": str(trained.patches)}},
        methods={"color": {"train": "mean_color"}},
        set={"resolution": 32, "training.total_kimg": 0.02},
        seeds=[0, 1],
        overrides={"plain": {}, "jitter": {"data.grayscale": True}},
    )
    counts, out = [], make_folder(tmp_path / "out")
    with one_writer(out):
        for shard in ((), ("--shard", "1/2")):
            fails(cli("benchmark", source, "--out", out, *shard), str(out))
    for part in (1, 2):
        with one_writer(out, shared=True):  # of another shard
            fails(cli("benchmark", source, "--out", out), str(out))
            result = cli("benchmark", source, "--out", out, "--shard", f"{part}/2")
        assert result.exit_code == 0, result.output
        counts.append((len(table(tmp_path / "out")) - 1, len(results(tmp_path / "out")["not_run"])))
    assert counts == [(2, 2), (4, 0)]
    found = results(tmp_path / "out")
    areas = [row["auroc"] for row in found["rows"] if row["overrides"] == "plain"]
    assert len(set(areas)) > 1
    (summary,) = (row for row in found["summary"] if row["overrides"] == "plain")
    assert summary["seeds"] == [0, 1]
    assert summary["auroc"]["mean"] == pytest.approx(statistics.mean(areas))
    assert summary["auroc"]["sd"] == pytest.approx(statistics.stdev(areas))
    assert f"{summary['auroc']['mean']:.3f} ± " in (tmp_path / "out" / "results.md").read_text()


# ---------------------------------------------------------------- version 0.1

# File, data set, method, and the folder, with the first digits of the key, of version 0.1, where the key of a data set is its name.
OLD = [
    "phantom phantom mahalanobis_pixels cells/phantom-gaussian_pixels-s0-7aa1f10ac5",
    "phantom phantom conv_vae cells/phantom-conv_vae-s0-b73431a34f",
    "colon colon style_encoder cells/colon-hybrid-searched-s0-1448a777d0",
    "colon colon patchcore cells/colon-patch_memory-s0-bd8abc192d",
    "pcam pcam densenet_64_small cells/pcam-densenet_64_small-s0-aa5a5b57f9",
    "colon-results colon gaussian_levels cells/colon-gaussian_levels-s0-2f3571cc11",
    "colon-results colon skin_vae_128 cells/colon-skin_vae_128-s1-4cab379015",
    "pcam-results pcam hybrid cells/pcam-hybrid-s0-cf6750ec85",
]


@pytest.mark.parametrize("label", OLD)
def test_cells_of_version_0_1_keep_their_keys(label: str, tmp_path: Path) -> None:
    """In its own files, and in those that are shipped today under today's names."""
    file, data, method, folder = label.split()
    name, _, results = file.partition("-")
    found = load_benchmark(f"{Path(__file__).parents[1]}/docs/results/{name}/benchmark.yaml" if results else name)
    (tmp_path / folder).mkdir(parents=True)
    cells, _ = plan(found, {data: BenchmarkData(tmp_path, data)}, None, "auto", tmp_path)
    assert (method, folder) in {(cell.method, cell.folder) for cell in cells}


def test_a_folder_of_version_0_1_is_continued(cli: Any, made: Path, source: Path, tmp_path: Path) -> None:
    """Its finished cells, under old names of the method, of keys and of words, are rows of the table and are not run again."""
    out = tmp_path / "out"
    (cell,) = made.glob("cells/patches-mahalanobis-*")
    old = Path(shutil.copytree(cell, out / "cells" / cell.name.replace("mahalanobis", "gaussian")))
    (old / "plan.json").unlink()
    found = json.loads((old / "cell.json").read_text())
    (training,) = found["training"]
    training |= {"whole": training.pop("complete"), "judgement": training.pop("validation")}
    found |= {"method": "gaussian", "folder": f"cells/{old.name}", "parts": found.pop("components")}
    (old / "cell.json").write_text(json.dumps(found))
    result = cli("benchmark", source, "--out", out, "--only", "mahalanobis")
    assert result.exit_code == 0, result.output
    assert not list(out.glob("*/*/plan.json"))
    (row,) = (row for row in table(out) if row["method"] == "mahalanobis")
    (new,) = (row for row in table(made) if row["method"] == "mahalanobis")
    assert row | {"folder": ""} == new | {"folder": ""}
    assert json.loads((old / "cell.json").read_text()) == found


def test_old_names_in_a_file(cli: Any, trained: Any, tmp_path: Path) -> None:
    search = {"random": {"training.judge_kimg": [1]}, "attempts": 1, "by": "judgement"}
    methods = {"gaussian": None, "vae": {"train": "conv_vae_64", "search": search}}
    file = written(tmp_path / "b.yaml", data={"patches": {"path": str(trained.patches)}}, methods=methods)
    found = load_benchmark(str(file))
    assert found.methods["vae"].search is not None
    assert (found.methods["vae"].search.by, list(found.methods["vae"].search.random)) == (
        "validation",
        ["training.eval_kimg"],
    )
    listed = cli("benchmark", file, "--out", tmp_path / "out", "--dry-run")
    assert [line.rpartition(": ")[2] for line in listed.stdout.splitlines()] == ["to do", "to do"]


def test_a_dry_run_leaves_nothing(cli: Any, tmp_path: Path) -> None:
    """Neither the patches that are generated nor the list of those that are split by patch."""
    for name in ("normal/1", "normal/2", "normal/3", "tumour/1", "tumour/2", "tumour/3"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(name) + int(name[-1])).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "set" / f"{name}.png")
    phantom = {"resolution": 32, "train": 8, "val": 4, "test": 4}
    data = {"made": {"phantom": phantom}, "split": {"path": str(tmp_path / "set"), "split": "by_patch"}}
    file = written(tmp_path / "b.yaml", data=data, methods={"mean_color": None})
    listed = cli("benchmark", file, "--out", tmp_path / "out", "--dry-run")
    assert listed.exit_code == 0, listed.output
    assert [line.rpartition(": ")[2] for line in listed.stdout.splitlines()] == ["to do", "to do"]
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_files_are_complete(name: str, tmp_path: Path) -> None:
    """Every method of every shipped benchmark names what there is, on data that need not be here."""
    found = load_benchmark(name)
    data = {one: BenchmarkData(tmp_path, one) for one in found.data}
    cells, comparisons = plan(found, data, None, "auto")
    assert {cell.method for cell in cells} == set(found.methods)
    assert not [comparison.problem for comparison in comparisons if comparison.problem]
    assert len({comparison.folder for comparison in comparisons}) == len(comparisons)
    assert {cell.data for cell in cells} == set(found.data)
    assert not [cell.problem for cell in cells if cell.problem]
    assert len({cell.folder for cell in cells}) == len(cells)


@pytest.mark.parametrize("name", ["phantom", "pcam", "idc", "camelyon16", "contamination", "shift"])
def test_reduced_files_need_no_data(name: str, tmp_path: Path) -> None:
    found = load_benchmark(name, reduced=True)
    assert [one.path for one in found.data.values()] == [None]
    assert all(one.phantom is not None and one.phantom.train <= 300 for one in found.data.values())
    data = {one: BenchmarkData(tmp_path, one) for one in found.data}
    cells, comparisons = plan(found, data, None, "auto")
    assert {cell.method for cell in cells} == set(found.methods)
    assert not [cell.problem for cell in (*cells, *comparisons) if cell.problem]
    trainings = {step.key: step for cell in (*cells, *comparisons) for step in cell.chain}.values()
    assert all(load_config(step.config, step.overrides).training.total_kimg <= 0.3 for step in trainings)


def test_script_of_the_papers_tables_lists_what_it_would_do(tmp_path: Path) -> None:
    """The published numbers with the names of benchmarks that there are; a wrong word is refused."""
    script = Path(__file__).parents[1] / "scripts" / "reproduce_tables.sh"
    told = subprocess.run(
        ["bash", str(script), "--list"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    for known in ("88.52", "2.93", "87.05", "424.14", "12.35"):
        assert known in told
    wrong = subprocess.run(["bash", str(script), "bcam"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stderr.splitlines()[0]) == (2, "unknown: bcam")
    for name in re.findall(r"^    (?:say )?benchmark (\w+)", script.read_text(), re.M):
        assert name in shipped()


def test_names_are_those_that_are_promised() -> None:
    assert set(shipped()) == {
        "phantom",
        "colon",
        "pcam",
        "idc",
        "camelyon16",
        "bmad_camelyon16",
        "medmnist",
        "contamination",
        "shift",
    }


@pytest.mark.parametrize("name", sorted({"colon", "pcam", "idc", "camelyon16", "bmad_camelyon16", "medmnist"}))
def test_missing_data_is_reported_with_its_origin(cli: Any, name: str, tmp_path: Path) -> None:
    result = cli("benchmark", name, "--root", tmp_path / "nothing", "--out", tmp_path / "out")
    fails(result, f"{tmp_path}/nothing/", "--data ")
    assert not list(tmp_path.glob("out/runs"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"methds": {}}, ["'methds'", "'methods'"]),
        ({"methods": {"knn": {"trian": "knn"}}}, ["methods.knn:", "'trian'", "'train'"]),
        ({"methods": {"knn": {"search": {"grid": {"a": [1]}, "byy": 1}}}}, ["methods.knn.search:", "'byy'", "'by'"]),
        ({"methods": {"knn": {"search": {}}}}, ["methods.knn.search:", "grid", "random"]),
        ({"methods": {"knn": {"search": {"grid": {"a": []}}}}}, ["methods.knn.search.grid.a"]),
        ({"methods": {"knnn": None}}, ["methods.knnn:", "'knnn'", "'knn'"]),
        ({"methods": {"knn": {"set": {"training.totl_kimg": 1}}}}, ["'training.totl_kimg'", "'total_kimg'"]),
        ({"methods": {"knn": {"set": {"kn/training.batch": 1}}}}, ["'kn/training.batch'", "'knn'"]),
        ({"methods": {"knn": {"data": ["patch"]}}}, ["methods.knn.data:", "'patch'", "'patches'"]),
        ({"methods": {"knn": {"score": {"a": {"set": {"optim.lr": 1}}}}}}, ["methods.knn.score.a.set:", "'optim.lr'"]),
        ({"methods": {"a b": {"train": "knn"}}}, ["methods.a b"]),
        ({"methods": {}}, ["methods:"]),
        ({"data": {"patches": {}}}, ["data.patches:", "path", "phantom"]),
        ({"data": {"patches": {"path": "x", "split": "random"}}}, ["data.patches.split:", "'own'", "'by_patch'", "'random'"]),
        ({"kimg": 0}, ["kimg:", "got 0"]),
        ({"data": None}, ["data:"]),
    ],
)  # fmt: skip
def test_wrong_files_are_refused_in_one_line(
    cli: Any, change: dict[str, Any], named: list[str], tmp_path: Path
) -> None:
    parts = {"data": {"patches": {"path": "there"}}, "methods": {"knn": None}} | change
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(parts))
    fails(cli("benchmark", tmp_path / "wrong.yaml", "--out", tmp_path / "out"), *named)


def test_a_mistyped_section_comes_before_the_missing_one(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("data: {patches: {path: there}}\nmetods: {knn: null}\n")
    result = cli("benchmark", tmp_path / "wrong.yaml", "--out", tmp_path / "out")
    fails(result, "wrong.yaml", "'metods'", "'methods'")
    assert "more)" not in result.stderr, "nothing else is wrong"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["phantm"], ["'phantm'", "'phantom'"]),
        (["phantom", "--only", "kn"], ["--only kn", "'knn'"]),
        (["phantom", "--data", "x=y"], ["--data x=y", "phantom"]),
        (["phantom", "--data", "phantom"], ["--data phantom", "NAME=PATH"]),
        (["phantom", "--shard", "3/2"], ["--shard 3/2", "I/N"]),
        (["colon", "--reduced"], ["`reduced`", "--reduced", "--kimg"]),
    ],
)
def test_wrong_words_are_refused(cli: Any, words: list[str], named: list[str], tmp_path: Path) -> None:
    fails(cli("benchmark", *words, "--out", tmp_path / "out"), *named)


def test_reduced_and_capped(tmp_path: Path) -> None:
    found = load_benchmark("phantom", reduced=True)
    cells, _ = plan(found, {"phantom": BenchmarkData(tmp_path, "")}, 0.2, "auto")
    told = {text for cell in cells for step in cell.chain for text in step.overrides}
    assert {text for text in told if "total_kimg" in text} >= {"training.total_kimg=0.2"}
    assert found.data["phantom"].phantom is not None
    assert found.data["phantom"].phantom.train == 300
    assert load_benchmark("phantom").data["phantom"].phantom.train == 2000  # type: ignore[union-attr]


def test_random_search_is_drawn_from_its_seed() -> None:
    raw = {
        "random": {
            "a": {"low": 1e-4, "high": 1e-2, "log": True},
            "b": [1, 2],
            "c": {"low": 1, "high": 9, "whole": True},
        }
    }
    drawn = list(points(Search(**raw, attempts=50, seed=3)))
    assert drawn == list(points(Search(**raw, attempts=50, seed=3)))
    assert drawn != list(points(Search(**raw, attempts=50, seed=4)))
    logs = [np.log10(point["a"]) for point in drawn]
    assert min(logs) > -4.001
    assert max(logs) < -1.999
    assert -3.3 < np.mean(logs) < -2.7  # even in the logarithm; a plain draw would have -2.4
    assert {point["b"] for point in drawn} == {1, 2}
    assert {type(point["c"]) for point in drawn} == {int}


def test_split_by_patch_as_published(tmp_path: Path) -> None:
    """60/20/20 of each label, patients on all sides, no groups; by patient, the same pictures keep together."""
    for patient in range(5):
        for k in range(20):
            folder = tmp_path / "idc" / str(patient) / str(k % 2)
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{patient}_idx5_x{k * 50 + 1}_y1_class{k % 2}.png"
            Image.fromarray(np.full((5, 5, 3), k, np.uint8)).save(folder / name)
    found = prepare_data("idc", DataEntry(path="idc", split="by_patch"), {}, tmp_path, {}, tmp_path / "out")
    rows_ = open_source(found.path, DataConfig(path=str(found.path))).manifest
    assert [len(rows_.where(split, label)) for split in ("train", "val", "test") for label in (0, 1)] == [
        30,
        30,
        10,
        10,
        10,
        10,
    ]
    assert set(rows_.group) == {""}
    sides = {
        patient: {s for name, s in zip(rows_.image, rows_.split, strict=True) if f"/{patient}_idx5" in name}
        for patient in range(5)
    }
    assert all(len(split) > 1 for split in sides.values())
    again = prepare_data("idc", DataEntry(path="idc", split="by_patch"), {}, tmp_path, {}, tmp_path / "out")
    assert again == found
    assert prepare_data("idc", DataEntry(path="idc"), {}, tmp_path, {}, tmp_path / "out").key != found.key
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(UserError, match="by_patch needs a folder"):
        prepare_data("zip", DataEntry(path="a.zip", split="by_patch"), {}, tmp_path, {}, tmp_path / "out")


def test_a_shipped_model_is_a_finished_run(cli: Any, trained: Any, tmp_path: Path) -> None:
    data = {"patches": {"path": str(trained.patches)}}
    for name, state in (("pcam_izi_f_64_small", ": to do"), ("pcam_izi_f_64", "pcam_izi_f_64\n")):
        file = written(tmp_path / "b.yaml", data=data, methods={"izi": {"train": {"run": name}}})
        assert state in cli("benchmark", file, "--out", tmp_path / "out", "--dry-run").stdout
