"""`gan-uad cross-validate`: honest folds, metrics computed again from the score files, resuming, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image
from scipy.special import expit
from score_tools import fails, rows
from sklearn.metrics import average_precision_score, roc_auc_score

import gan_uad
from gan_uad.config import DataConfig, load_config
from gan_uad.data.manifest import Manifest
from gan_uad.data.patches import load_patches
from gan_uad.run import Run

FOLDS = 3
WORDS = ("--resamples", 100)


@pytest.fixture(scope="module")
def mean_color(cli: Any, labelled_patches: Path, trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folds of a detector, and the phantom set of other tests as an external one. Nobody writes into it."""
    out = tmp_path_factory.mktemp("folds") / "mean_color"
    result = cli(
        *("cross-validate", "mean_color", "--folds", FOLDS, "--data", labelled_patches, "--external", trained.patches),
        *("-o", "resolution=32", "--threshold", "quantile:0.8", "--out", out, *WORDS),
    )
    assert result.exit_code == 0, result.output
    (out / "printed.txt").write_text(result.stdout)
    return out


def columns(path: Path) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_], list[str]]:
    """Labels, scores, decisions and images of a score file."""
    found = rows(path)
    decided = np.array([row["decision"] == "1" for row in found])
    return (
        np.array([int(row["label"]) for row in found]),
        np.array([float(row["score"]) for row in found]),
        decided,
        [row["image"] for row in found],
    )


def standardised(folder: Path) -> NDArray[np.float64]:
    """Scores in standard deviations from the mean of the validation normals beside them."""
    normals = [float(r["score"]) for r in rows(folder / "scores_validation.csv") if r["label"] == "0"]
    return (columns(folder / "scores.csv")[1] - np.mean(normals)) / np.std(normals, ddof=1)


# ---------------------------------------------------------------- folds


def test_folds_are_of_complete_groups() -> None:
    """Every image is tested once; no group is on two sides; labels are as even as groups allow; the splits of the source play no part."""
    groups = [f"g{k}" for k in range(20) for _ in range(5)]
    labels = [int(k % 2) for k in range(20) for _ in range(5)]
    manifest = Manifest.of([f"{k}.png" for k in range(100)], group=groups, label=labels, split=["train"] * 100)
    tested: Counter[str] = Counter()
    for fold in range(1, 6):
        made = manifest.with_fold(5, fold, (0.6, 0.2, 0.2), seed=3)
        assert not made.groups_on_two_sides()
        test = made.where("test")
        tested.update(made.image[i] for i in test)
        assert (len(test), len(made.where("val")), len(made.where("train"))) == (20, 20, 60)
        assert int(made.label[test].sum()) == 10
        assert made.split == manifest.with_fold(5, fold, (0.6, 0.2, 0.2), seed=3).split
    assert tested == dict.fromkeys(manifest.image, 1)
    assert manifest.with_fold(5, 1, (0.6, 0.2, 0.2), seed=4).split != manifest.with_fold(5, 1, (0.6, 0.2, 0.2), 3).split
    assert not len(manifest.with_fold(5, 1, (0.8, 0.0, 0.2), seed=3).where("val"))


def test_images_of_unknown_groups_are_split_one_by_one() -> None:
    manifest = Manifest.of([f"{k}.png" for k in range(9)], label=[0] * 9)
    tested = [i for fold in (1, 2, 3) for i in manifest.with_fold(3, fold, (0.6, 0.2, 0.2), 0).where("test").tolist()]
    assert sorted(tested) == list(range(9))


def test_a_fold_is_a_setting_of_any_run(labelled_patches: Path, trained: Any) -> None:
    data = DataConfig(path=str(labelled_patches), folds=FOLDS, fold=2)
    patches = load_patches(data, 32)
    assert any("fold 2 of 3 is test" in note and "put aside" in note for note in patches.notes)
    assert not patches.brings_splits
    assert data.of(str(labelled_patches)) == data
    other = data.of(str(trained.patches))
    assert (other.folds, other.fold, other.path) == (None, None, str(trained.patches))


@pytest.mark.parametrize("wrong", [["data.folds=3"], ["data.fold=1"], ["data.folds=3", "data.fold=4"]])
def test_half_a_fold(wrong: list[str]) -> None:
    from gan_uad.errors import UserError

    with pytest.raises(UserError, match="fold"):
        load_config("mean_color", wrong)


# ---------------------------------------------------------------- metrics


def test_every_image_is_tested_once_by_a_model_that_has_not_seen_its_group(
    mean_color: Path, labelled_patches: Path
) -> None:
    tested: Counter[str] = Counter()
    for fold in range(1, FOLDS + 1):
        place = mean_color / f"fold-{fold}"
        config = Run(place / "00000-mean_color").config
        assert (config.data.folds, config.data.fold) == (FOLDS, fold)
        patches = load_patches(config.data, 32)
        images = columns(place / "scores" / "scores.csv")[3]
        tested.update(images)
        assert set(images) == set(patches.select("test").manifest.image)
        train = patches.select("train", 0)
        assert not set(train.manifest.group) & set(patches.select("test").manifest.group)
        model = gan_uad.load(str(place / "00000-mean_color"))
        assert model.nimg == len(train)
    assert tested == dict.fromkeys(load_patches(DataConfig(path=str(labelled_patches)), 32).manifest.image, 1)


def test_the_figures_are_those_of_the_files(mean_color: Path) -> None:
    found = json.loads((mean_color / "metrics.json").read_text())["models"]["mean_color/mean_color"]
    labels, scores, decided = [], [], []
    areas = []
    for fold, metrics in enumerate(found["folds"], 1):
        folder = mean_color / f"fold-{fold}" / "scores"
        truth, own, flagged, _ = columns(folder / "scores.csv")
        areas.append(roc_auc_score(truth, own))
        assert metrics["auroc"]["value"] == pytest.approx(areas[-1])
        assert metrics["accuracy"]["value"] == pytest.approx(np.mean(flagged == truth))
        labels.append(truth)
        scores.append(standardised(folder))
        decided.append(flagged)
    assert found["mean"]["auroc"] == pytest.approx({"mean": np.mean(areas), "sd": np.std(areas, ddof=1)})
    truth, own, flagged = (np.concatenate(part) for part in (labels, scores, decided))
    pooled = found["pooled"]
    assert pooled["images"] == {"normal": 78, "anomalous": 50}
    assert pooled["auroc"]["value"] == pytest.approx(roc_auc_score(truth, own))
    assert pooled["auprc"]["value"] == pytest.approx(average_precision_score(truth, own))
    assert pooled["auroc"]["low"] < pooled["auroc"]["value"] < pooled["auroc"]["high"]
    assert (pooled["auroc"]["unit"], pooled["auroc"]["n_units"]) == ("group", 15)
    tp, fp, fn = ((flagged & (truth == 1)).sum(), (flagged & (truth == 0)).sum(), (~flagged & (truth == 1)).sum())
    assert pooled["f1"]["value"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert pooled["sensitivity"]["value"] == pytest.approx(tp / (tp + fn))
    assert pooled["confusion"] == [[78 - fp, fp], [fn, tp]]


def test_the_external_set_is_scored_by_every_model(mean_color: Path, trained: Any) -> None:
    found = json.loads((mean_color / "metrics.json").read_text())["models"]["mean_color/mean_color"]["external"]
    folders = [mean_color / f"fold-{fold}" / "external-patches" for fold in range(1, FOLDS + 1)]
    everything = load_patches(DataConfig(path=str(trained.patches)), 32).manifest
    truth = columns(folders[0] / "scores.csv")[0]
    assert all(columns(folder / "scores.csv")[3] == everything.image for folder in folders), "all splits of it"
    each = [roc_auc_score(truth, columns(folder / "scores.csv")[1]) for folder in folders]
    assert [metrics["auroc"]["value"] for metrics in found["folds"]] == pytest.approx(each)
    together = np.mean([standardised(folder) for folder in folders], axis=0)
    assert found["pooled"]["auroc"]["value"] == pytest.approx(roc_auc_score(truth, together))
    most = np.sum([columns(folder / "scores.csv")[2] for folder in folders], axis=0) >= 2
    assert found["pooled"]["accuracy"]["value"] == pytest.approx(np.mean(most == truth))


def test_tables_and_pictures(mean_color: Path) -> None:
    table = rows(mean_color / "metrics.csv")
    sets = [f"fold {k}" for k in (1, 2, 3)] + ["folds, mean ± sd", "pooled"]
    theirs = [f"external, model {k}" for k in (1, 2, 3)] + ["external, models, mean ± sd", "external, together"]
    assert [row["images of"] for row in table] == 2 * [*sets, *theirs], "of the baseline too"
    assert "± " in table[3]["AUROC"]
    printed = (mean_color / "printed.txt").read_text()
    assert all(f"\n{line}: " in printed for line in ("mean", "pooled", "together"))
    for name in ("roc", "confusion"):
        with Image.open(mean_color / f"{name}.png") as picture:
            assert min(picture.size) > 200
    assert not (mean_color / "reliability.png").exists(), "no probabilities"


def undrawn(patch: pytest.MonkeyPatch) -> None:
    """Without the pictures that other tests look at; reliability.png is drawn."""
    for name in (
        "plots.learning_curves",
        "plots.roc",
        "plots.pr",
        "plots.histogram",
        "plots.confusion",
        "pictures.triplets",
    ):
        patch.setattr(f"gan_uad.plotting.{name}", lambda *_: None)


@pytest.fixture(scope="module")
def classifiers(
    cli: Any, labelled_patches: Path, classifier_preset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Two folds of a classifier. Nobody writes into it."""
    out = tmp_path_factory.mktemp("classifiers") / "folds"
    short = ("-o", "training.total_kimg=0.128", "-o", "training.eval_kimg=0.064", *WORDS)
    with pytest.MonkeyPatch.context() as patch:
        undrawn(patch)
        result = cli(
            "cross-validate", classifier_preset, "--folds", 2, "--data", labelled_patches, "--out", out, *short
        )
    assert result.exit_code == 0, result.output
    (out / "printed.txt").write_text(result.stdout)
    return out


def test_a_classifier_with_its_reliability(
    cli: Any, classifiers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-odds are pooled as they are, and say how far probabilities can be believed."""
    found = json.loads((classifiers / "metrics.json").read_text())["models"]["tiny_classifier/classifier"]
    parts = [columns(classifiers / f"fold-{fold}" / "scores" / "scores.csv") for fold in (1, 2)]
    truth, scores = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    assert found["pooled"]["auroc"]["value"] == pytest.approx(roc_auc_score(truth, scores))
    assert found["reliability"]["brier"] == pytest.approx(np.mean((expit(scores) - truth) ** 2))
    bins = np.minimum((expit(scores) * 10).astype(int), 9)
    gaps = [abs(expit(scores[bins == b]).sum() - truth[bins == b].sum()) for b in range(10)]
    assert found["reliability"]["ece"] == pytest.approx(sum(gaps) / len(truth))
    assert f"expected calibration error {found['reliability']['ece']:.3f}" in (classifiers / "printed.txt").read_text()
    assert (classifiers / "reliability.png").is_file()
    # The same of one score folder, by `gan-uad evaluate`.
    undrawn(monkeypatch)
    out = tmp_path / "plain"
    assert cli("evaluate", classifiers / "fold-1" / "scores", "--out", out, *WORDS).exit_code == 0
    alone = json.loads((out / "metrics.json").read_text())
    assert (out / "reliability.png").is_file()
    expected = np.mean((expit(parts[0][1]) - parts[0][0]) ** 2)
    assert alone["tiny_classifier/classifier"]["reliability"]["brier"] == pytest.approx(expected)
    assert "reliability" not in alone["mean_color"]


# ---------------------------------------------------------------- again


def again(cli: Any, out: Path, data: Path, *words: object) -> Any:
    return cli(
        "cross-validate",
        "mean_color",
        "--folds",
        FOLDS,
        "--data",
        data,
        "-o",
        "resolution=32",
        "--out",
        out,
        *WORDS,
        *words,
    )


@pytest.mark.usefixtures("fast")
def test_what_is_done_is_not_done_again(cli: Any, mean_color: Path, labelled_patches: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(mean_color, tmp_path / "folds"))
    third = out / "fold-3"
    before = {file: file.stat().st_mtime_ns for file in out.glob("fold-[12]/**/*.*")}
    described = json.loads((third / "scores" / "scores.json").read_text())
    described.pop("thresholds")  # as it was before the scoring ended
    (third / "scores" / "scores.json").write_text(json.dumps(described))
    result = again(cli, out, labelled_patches, "--threshold", "quantile:0.8")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("done already") == 2
    assert {file: file.stat().st_mtime_ns for file in before} == before
    models = {
        name: json.loads((folder / "metrics.json").read_text())["models"]
        for name, folder in (("a", mean_color), ("b", out))
    }
    for model, metrics in models["b"].items():
        assert metrics == {key: value for key, value in models["a"][model].items() if key != "external"}
    # Another rule needs no new scoring.
    assert again(cli, out, labelled_patches, "--threshold", "quantile:0.5").exit_code == 0
    found = json.loads((out / "metrics.json").read_text())["models"]["mean_color/mean_color"]["pooled"]
    assert found["specificity"]["value"] < models["b"]["mean_color/mean_color"]["pooled"]["specificity"]["value"]


def test_other_folds_need_another_folder(
    cli: Any, mean_color: Path, labelled_patches: Path, trained: Any, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(mean_color, tmp_path / "folds"))
    fails(again(cli, out, labelled_patches, "-o", "data.split_seed=1"), str(out), "--out")
    fails(again(cli, out, trained.patches), str(out), "--out")
    (out / "folds.json").write_text("{")
    fails(again(cli, out, labelled_patches), str(out), "--out")


# ---------------------------------------------------------------- what is refused


def test_what_cannot_be_cross_validated(cli: Any, labelled_patches: Path, trained: Any, tmp_path: Path) -> None:
    words = ("cross-validate", "mean_color", "-o", "resolution=32", "--out", tmp_path / "out")
    fails(cli(*words, "--folds", 3), "--data")
    fails(
        cli(*words, "--folds", 15, "--data", labelled_patches),
        "15 groups",
        "15 folds",
    )
    fails(cli(*words, "--folds", 3, "--data", labelled_patches, "-o", "data.fold=2"), "-o data.fold=2", "--folds")
    fails(
        cli(*words, "--folds", 3, "--data", labelled_patches, "--external", labelled_patches),
        f"--external {labelled_patches}",
    )
    mixed = tmp_path / "mixed"  # other names and a new image, but images of the folds
    for k, file in enumerate(sorted(labelled_patches.glob("*.png"))[::9]):
        folder = mixed / ("tumour" if "_1_" in file.name else "normal")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / f"{k}.png")
    Image.fromarray(np.random.default_rng(7).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
        mixed / "normal" / "n.png"
    )
    seen = len(list(mixed.rglob("*.png"))) - 1
    repeated = cli(*words, "--folds", 3, "--data", labelled_patches, "--external", mixed)
    fails(repeated, f"--external {mixed}", f"{seen} of its {seen + 1} images")
    fails(cli(*words, "--folds", 3, "--data", tmp_path / "nowhere"), str(tmp_path / "nowhere"))
    few = tmp_path / "few"  # three patients with normals: with three folds one val split has none of them
    few.mkdir()
    lines = ["image,group,label,split"]
    for k, file in enumerate(sorted(labelled_patches.glob("*.png"))[:24]):
        shutil.copy(file, few / f"{k}.png")
        lines.append(f"{k}.png,p{k % 8},{int(k % 8 > 2)},")
    (few / "index.csv").write_text("\n".join(lines) + "\n")
    fails(cli(*words, "--folds", 3, "--data", few), str(few), "--folds", "val")
    assert not (tmp_path / "out").exists(), "said before any training"
    normals = tmp_path / "normals" / "normal"
    normals.mkdir(parents=True)
    for k, file in enumerate(sorted(labelled_patches.glob("train_0_*.png"))[:8]):
        shutil.copy(file, normals / f"{k}.png")
    external = cli(*words, "--folds", 3, "--data", labelled_patches, "--external", normals.parent)
    fails(external, str(normals.parent), "anomalous", "--external")
    fails(cli(*words, "--folds", 3, "--data", normals.parent), "fold 1 of 3", "anomalous", "--folds")
    assert not (tmp_path / "out").exists()
    fails(cli("evaluate", "mean_color"), "mean_color", "gan-uad cross-validate")


@pytest.mark.usefixtures("fast")
def test_a_run_that_has_seen_the_test_fold_is_no_start(
    cli: Any, classifiers: Path, classifier: Path, classifier_preset: Path, labelled_patches: Path, tmp_path: Path
) -> None:
    """It was trained on other splits of the same set. One of the same fold is, and {fold} names it."""
    short = ("-o", "training.total_kimg=0.016", "-o", "training.eval_kimg=0.016", *WORDS)
    words = ("cross-validate", classifier_preset, "--folds", 2, "--data", labelled_patches, "--out", tmp_path, *short)
    fails(
        cli(*words, "-o", f"init_from={classifier}"), f"init_from={classifier}", "-o init_from=folds/NAME/fold-{fold}/"
    )
    assert not list(tmp_path.glob("fold-1/0*"))
    start = str(classifiers / "fold-{fold}" / "00000-tiny_classifier")
    shutil.rmtree(tmp_path)
    result = cli(*words, "-o", f"init_from={start}")
    assert result.exit_code == 0, result.output
    for fold in (1, 2):
        config = Run(tmp_path / f"fold-{fold}" / "00000-tiny_classifier").config
        assert config.init_from == start.replace("{fold}", str(fold))


def test_flips_and_turns_have_no_use_in_a_fit(cli: Any, labelled_patches: Path, tmp_path: Path) -> None:
    words = ("train", "mean_color", "--data", labelled_patches, "-o", "resolution=32", "--out", tmp_path)
    for key in ("flips", "turns"):
        fails(
            cli(*words, "-o", f"data.{key}=true"),
            "data.flips",
        )
    assert not list(tmp_path.iterdir())
    printed = yaml.safe_load(cli(*words, "--dry-run").stdout)
    assert (printed["data"]["flips"], printed["data"]["turns"]) == (False, False)
    (tmp_path / "printed.yaml").write_text(yaml.safe_dump(printed))
    assert cli("train", tmp_path / "printed.yaml", "--out", tmp_path).exit_code == 0, "it accepts what it prints"
    assert load_config("conv_vae_64").data.flips
