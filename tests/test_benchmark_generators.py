"""Sections `generation` and `classification` of a benchmark: the tables of `gan-uad fid` and `classify`, each apart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import benchmark_tools
import pytest
import yaml
from score_tools import fails, rows

from gan_uad.benchmark.datasets import BenchmarkData
from gan_uad.benchmark.plan import plan
from gan_uad.benchmark.schema import load_benchmark

pytestmark = pytest.mark.timeout(600)  # of several processes: on a busy machine they wait for each other


@pytest.fixture(scope="module", autouse=True)
def _in_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gan_uad.benchmark.run.start", benchmark_tools.in_process)
        yield


@pytest.fixture(scope="module")
def source(
    classifier: Path, two_generators: dict[str, Path], trained: Any, labelled_patches: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:  # fmt: skip
    """Finished runs of seconds; one generator is missing, and one method is none."""
    told = {
        "data": {"patches": {"path": str(labelled_patches)}},
        "resamples": 100,
        "methods": {"cnn": {"train": {"run": str(classifier)}}},
        "generators": {
            "normal": {"train": {"run": str(two_generators["normal"])}},
            "sick": {"train": {"run": str(two_generators["anomalous"])}},
            "inside": {"train": {"run": str(trained.encoder)}},
            "gone": {"train": {"run": "no/run*"}},
        },
        "generation": {"generators": ["inside", "normal", "gone", "cnn"], "num": 24},
        "classification": {"classifier": "cnn", "normal": "normal", "anomalous": "sick", "num": 16},
    }
    path = tmp_path_factory.mktemp("file") / "tables.yaml"
    path.write_text(yaml.safe_dump(told, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def made(cli: Any, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("benchmark") / "out"
    fails(cli("benchmark", source, "--out", out), "2 of 6", "results.md", code=1)
    return out


def results(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())


def test_metrics_are_those_of_fid(
    cli: Any, made: Path, two_generators: dict[str, Path], labelled_patches: Path, tmp_path: Path
) -> None:
    result = cli("fid", two_generators["normal"], "--real", labelled_patches, "--num", 24, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    alone = json.loads((tmp_path / "fid.json").read_text())
    found = [row for row in results(made)["generation"] if row["method"] != "inside"]
    assert [row["value"] for row in found] == pytest.approx([row["value"] for row in alone])
    assert [row["method"] for row in found] == [*(row["method"] for row in alone[:-1]), "normal"]
    assert (found[-1]["n"], found[-1]["kimg"], found[-1]["training"]) == (24, 0.016, "complete")
    assert [row["seed"] for row in found[:-1]] == [None] * (len(alone) - 1)
    listed = [row["method"] for row in rows(made / "results_generation.csv")]
    assert [name for name in listed if name != "inside"] == [row["method"] for row in found]
    assert (made / found[-1]["folder"] / "fid.md").is_file()


def test_a_generator_inside_an_encoder_does_not_get_the_kimg_of_the_encoder(made: Path) -> None:
    (inside,) = (row for row in results(made)["generation"] if row["method"] == "inside")
    assert (inside["kimg"], inside["training"]) == (None, "unknown")


def test_metrics_are_those_of_classify(
    cli: Any, made: Path, classifier: Path, two_generators: dict[str, Path], labelled_patches: Path, tmp_path: Path
) -> None:
    words = [
        "--normal",
        two_generators["normal"],
        "--anomalous",
        two_generators["anomalous"],
        "--data",
        labelled_patches,
    ]
    assert cli("classify", classifier, *words, "--num", 16, "--out", tmp_path).exit_code == 0
    alone = json.loads((tmp_path / "classify.json").read_text())["rows"]
    found = results(made)["classification"]
    assert [(row["patches"], row["accuracy"], row["auroc"]) for row in found] == [
        (row["set"], row["accuracy"], row["auroc"]) for row in alone
    ]
    assert {(row["n"], row["what"]) for row in found} == {(16, "cnn-normal-sick")}
    text = (made / "results.md").read_text()
    for section in ("## Detection", "## Generation", "## Classification"):
        assert text.count(section) == 1
    for row in found:
        assert f"{100 * row['accuracy']:.2f}" in text
        assert f"{100 * row['accuracy']:.2f}" in (made / "results.tex").read_text()


def test_the_report_shows_both_tables(cli: Any, made: Path, tmp_path: Path) -> None:
    result = cli("report", made, "--out", tmp_path / "report.html")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "report.html").read_text()
    for row in results(made)["generation"]:
        assert f"{row['value']:.2f}" in page
    for row in results(made)["classification"]:
        assert f"{100 * row['accuracy']:.2f}" in page


def test_what_fails_fails_alone_and_what_is_finished_stays(cli: Any, made: Path, source: Path) -> None:
    failed = {one["cell"]: one["error"] for one in results(made)["failed"]}
    assert list(failed) == [f"patches, distance, {name}, efficientnet_lite0, seed 0" for name in ("gone", "cnn")]
    missing, unfit = failed.values()
    assert "no/run*" in missing
    assert "generator" in unfit
    assert [cell["method"] for cell in results(made)["cells"]] == ["cnn"]
    before = {path: path.stat().st_mtime_ns for path in made.glob("*/*/cell.json")}
    assert len(before) == 4
    again = cli("benchmark", source, "--out", made, "--only", "classification")
    assert again.exit_code == 0, again.output
    assert {path: path.stat().st_mtime_ns for path in made.glob("*/*/cell.json")} == before
    listed = cli("benchmark", source, "--out", made, "--only", "generation", "--dry-run").stdout.splitlines()
    assert [line.rpartition(", seed 0: ")[2] for line in listed] == [
        "finished",
        "finished",
        "no finished run or model file at no/run*",
        "to do",
    ]


def test_generators_are_the_runs_of_the_detection(tmp_path: Path) -> None:
    """What has the same settings is trained once; each generator of the shipped file is compared in each network."""
    found = load_benchmark("pcam")
    data = {"pcam": BenchmarkData(tmp_path, "")}
    cells, comparisons = plan(found, data, None, "auto")
    trained = {step.key: cell.method for cell in cells for step in cell.chain}
    assert [trained.get(one.chains[0][0].key) for one in comparisons if one.features == "inception"] == [
        "anogan_64", "izi_f", "pgan_64", "stylegan_64", "style_encoder",
    ]  # fmt: skip
    (table2,) = (one for one in comparisons if one.kind == "table2")
    assert trained[table2.chains[0][0].key] == "densenet_64_small"
    assert 'data.label="anomalous"' in table2.chains[2][0].overrides
    assert table2.chains[2][0].key not in trained
    assert [(one.what, one.kimg) for one in comparisons if one.kind == "real_vs_synthetic"] == [("stylegan2", 100)]
    _, capped = plan(found, data, 20, "auto")
    assert [one.kimg for one in capped if one.kind == "real_vs_synthetic"] == [20]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"generation": {"generators": ["gan"]}}, ["generation.generators:", "'gan'", "'gann'"]),
        ({"generation": {"generators": ["gann"], "feature": ["x"]}}, ["generation:", "'feature'", "'features'"]),
        ({"generators": {}, "generation": {}}, ["generation:", "generators"]),
        ({"classification": {"classifier": "cnn"}}, ["classification.0:", "classifier", "normal", "anomalous"]),
        ({"classification": {"real_vs_synthetic": ["a"]}}, ["classification.real_vs_synthetic:", "'a'"]),
        ({"classification": {"real_vs_synthetic": ["knn"]}}, ["classification.real_vs_synthetic:", "knn", "generators"]),
        ({"generation": {"data": ["patch"]}}, ["generation.data:", "'patch'", "'patches'"]),
        ({"generators": {"gann": {"train": "dcgan"}}, "generation": {}}, ["generation: gann:", "'dcgan'", "'dcgan_64'"]),
    ],
)  # fmt: skip
def test_wrong_sections_are_refused_in_one_line(
    cli: Any, change: dict[str, Any], named: list[str], tmp_path: Path
) -> None:
    search = {"grid": {"scoring.options.k": [1, 2]}}
    parts = {
        "data": {"patches": {"path": "there"}},
        "methods": {"knn": {"search": search}, "cnn": {"train": "densenet_64_small"}},
        "generators": {"gann": {"train": "dcgan_64"}},
    } | change
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(parts))
    fails(cli("benchmark", tmp_path / "wrong.yaml", "--out", tmp_path / "out"), *named)
