"""`gan-uad score` from the outside: what is in the files, what sets a threshold, maps, what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feature_tools import Thumbnails
from PIL import Image
from scipy.spatial.distance import mahalanobis
from score_tools import COMPONENTS, HEADER, RULE, copied, fails, index, rows
from sklearn.covariance import ledoit_wolf

from gan_uad.features.base import FeatureNet
from gan_uad.metrics.tails import Tail


def test_the_score_file(scored: Path, trained: Any) -> None:
    found = rows(scored / "scores.csv")
    assert list(found[0]) == HEADER
    expected = [row for row in index(trained.patches) if row["split"] == "test"]
    assert [(r["image"], r["group"], r["label"]) for r in found] == [
        (r["image"], r["group"], r["label"]) for r in expected
    ]
    assert {r["model"] for r in found} == {"tiny_izi_f/izi_f"}
    assert len({r["threshold"] for r in found}) == 1
    for row in found:
        assert float(row["score"]) == pytest.approx(float(row["residual"]) + float(row["features"]), rel=1e-6)
        assert row["decision"] == str(int(float(row["score"]) > float(row["threshold"])))
    baseline = rows(scored / "mean_color.csv")
    assert list(baseline[0]) == [name for name in HEADER if name not in COMPONENTS]
    assert [r["image"] for r in baseline] == [r["image"] for r in found]
    assert not list(scored.glob(".*"))


def test_the_threshold_is_one_of_the_validation_scores(scored: Path, trained: Any) -> None:
    validation = rows(scored / "scores_validation.csv")
    assert {r["image"] for r in validation} == {r["image"] for r in index(trained.patches) if r["split"] == "val"}
    normals = [float(r["score"]) for r in validation if r["label"] == "0"]
    at = float(rows(scored / "scores.csv")[0]["threshold"])
    assert at in normals
    described = json.loads((scored / "scores.json").read_text())
    assert described["thresholds"]["scores.csv"]["value"] == at
    assert described["thresholds"]["scores.csv"]["rule"] == "fpr"
    assert described["kimg"] == 0.32


@pytest.mark.usefixtures("fast")
def test_the_test_set_does_not_move_the_threshold(cli: Any, trained: Any, scored: Path, tmp_path: Path) -> None:
    """Other labels and other pixels in the test split: the same threshold, to the last digit."""
    other = shutil.copytree(trained.patches, tmp_path / "other")
    lines = index(other)
    for row in lines:
        if row["split"] == "test":
            row["label"] = "1" if row["label"] == "0" else "0"
            with Image.open(other / row["image"]) as image:
                changed = image.transpose(Image.Transpose.ROTATE_90).point(lambda v: 255 - v)
            changed.save(other / row["image"])
    with open(other / "index.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows({**row, "mask": ""} for row in lines)
    result = cli("score", trained.encoder, other, *RULE, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    for name in ("scores.csv", "mean_color.csv"):
        before, after = rows(scored / name), rows(tmp_path / "out" / name)
        assert {r["threshold"] for r in before} == {r["threshold"] for r in after}
        assert [r["score"] for r in before] != [r["score"] for r in after]


@pytest.mark.usefixtures("fast")
def test_a_plain_folder(cli: Any, trained: Any, scored: Path, tmp_path: Path) -> None:
    """All of it is scored, with the threshold of the training data's validation split; the scores are those of the set."""
    folder = copied(trained, tmp_path / "plain")
    result = cli("score", trained.encoder, folder, *RULE, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = rows(tmp_path / "out" / "scores.csv")
    assert {r["label"] for r in found} == {""}
    known = {Path(r["image"]).name: r for r in rows(scored / "scores.csv")}
    assert len(found) == 20
    for row in found:
        same = known[row["image"]]
        assert [row[k] for k in ("score", "threshold", "decision")] == [
            same[k] for k in ("score", "threshold", "decision")
        ]
    fails(cli("evaluate", tmp_path / "out"), "scores.csv", "0 and 1")
    one = cli("score", trained.encoder, folder / found[0]["image"], *RULE, "--out", tmp_path / "one")
    assert one.exit_code == 0, one.output
    assert [r["score"] for r in rows(tmp_path / "one" / "scores.csv")] == [found[0]["score"]]


@pytest.mark.usefixtures("fast")
def test_another_labelled_set(cli: Any, trained: Any, scored: Path, tmp_path: Path) -> None:
    """Class folders without splits: all scored, threshold of the training data. Only test: the same."""
    for row in [r for r in index(trained.patches) if r["split"] == "test"][::4]:
        for root in (tmp_path / "set", tmp_path / "tests" / "test"):
            (root / row["class"]).mkdir(parents=True, exist_ok=True)
            shutil.copy(trained.patches / row["image"], root / row["class"])
    for folder in ("set", "tests"):
        result = cli("score", trained.encoder, tmp_path / folder, *RULE, "--out", tmp_path / f"out-{folder}")
        assert result.exit_code == 0, result.output
        found = rows(tmp_path / f"out-{folder}" / "scores.csv")
        assert sorted(r["label"] for r in found) == ["0"] * 5 + ["1"] * 5
        assert {r["threshold"] for r in found} == {rows(scored / "scores.csv")[0]["threshold"]}
    result = cli("evaluate", tmp_path / "out-set")
    assert result.exit_code == 0
    assert "slides or patients unknown" in result.stdout


def test_a_set_without_splits_where_the_training_data_are_gone(cli: Any, trained: Any, tmp_path: Path) -> None:
    """As of a shipped model: all of it is scored, without a threshold; of one split, by the others."""
    for number, row in enumerate(index(trained.patches)):
        folder = tmp_path / ("theirs" if number % 2 else "mine") / row["class"]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(trained.patches / row["image"], folder / f"{number}.png")
    words = ("--out", tmp_path / "runs", "-o", "resolution=32")
    assert cli("train", "mean_color", "--data", tmp_path / "mine", *words).exit_code == 0
    (tmp_path / "mine").rename(tmp_path / "gone")
    run = tmp_path / "runs" / "00000-mean_color"
    complete = cli("score", run, tmp_path / "theirs", "--out", tmp_path / "all")
    assert complete.exit_code == 0, complete.output
    assert "--split test" in complete.stderr
    assert {r["threshold"] for r in rows(tmp_path / "all" / "scores.csv")} == {""}
    one = cli("score", run, tmp_path / "theirs", *RULE, "--split", "test", "--out", tmp_path / "test")
    assert one.exit_code == 0, one.output
    found = rows(tmp_path / "test" / "scores.csv")
    assert 0 < len(found) < len(rows(tmp_path / "all" / "scores.csv")) / 3
    (threshold,) = {r["threshold"] for r in found}
    normals = [r["score"] for r in rows(tmp_path / "test" / "scores_validation.csv") if r["label"] == "0"]
    assert threshold in normals
    assert not {r["image"] for r in found} & {r["image"] for r in rows(tmp_path / "test" / "scores_validation.csv")}


@pytest.mark.usefixtures("fast")
def test_splits_and_subsets(cli: Any, trained: Any, scored: Path, tmp_path: Path) -> None:
    result = cli("score", trained.encoder, *RULE, "--split", "val", "--out", tmp_path / "val")
    assert result.exit_code == 0, result.output
    assert "warning: the threshold was set on some of the scored images" in result.stderr
    assert [r["score"] for r in rows(tmp_path / "val" / "scores.csv")] == [
        r["score"] for r in rows(scored / "scores_validation.csv")
    ]
    # The image that is the threshold is normal: a decision is score > threshold, and evaluate reads the same.
    evaluated = cli("evaluate", tmp_path / "val")
    assert "the threshold was set on some of the scored images" in evaluated.stdout
    decided = sum(r["decision"] == "1" for r in rows(tmp_path / "val" / "scores.csv"))
    confusion = json.loads((tmp_path / "val" / "metrics.json").read_text())["tiny_izi_f/izi_f"]["decisions"][
        "confusion"
    ]
    assert confusion[0][1] + confusion[1][1] == decided
    names = []
    for seed in (0, 0, 1):
        out = tmp_path / f"{len(names)}"
        assert cli("score", trained.encoder, *RULE, "--max-images", 6, "--seed", seed, "--out", out).exit_code == 0
        names.append([r["image"] for r in rows(out / "scores.csv")])
    assert len(names[0]) == 6
    assert names[0] == names[1]
    assert names[0] != names[2]
    result = cli("score", trained.encoder, "--split", "all", "--max-images", 6, "--out", tmp_path / "all")
    assert "warning: the model was trained on some of the scored images" in result.stderr


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("manual:0.25", lambda normal, anomalous: 0.25),
        ("quantile:0.9", lambda normal, anomalous: sorted(normal)[17]),  # the 18th of 20
        ("mean_std:1", lambda normal, anomalous: np.mean(normal) + np.std(normal, ddof=1)),
        ("youden", None),
    ],
)
def test_threshold_rules(cli: Any, trained: Any, scored: Path, tmp_path: Path, rule: str, expected: Any) -> None:
    result = cli("score", trained.encoder, "--max-images", 4, "--threshold", rule, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    validation = rows(scored / "scores_validation.csv")
    normal, anomalous = ([float(r["score"]) for r in validation if r["label"] == label] for label in "01")
    at = float(rows(tmp_path / "out" / "scores.csv")[0]["threshold"])
    if expected is not None:
        assert at == pytest.approx(expected(normal, anomalous), rel=1e-9)
    else:

        def gain(threshold: float) -> float:
            return float(np.mean(np.array(anomalous) > threshold) - np.mean(np.array(normal) > threshold))

        assert gain(at) == pytest.approx(max(gain(t) for t in [*normal, *anomalous]))
    baseline = json.loads((tmp_path / "out" / "scores.json").read_text())["thresholds"]["mean_color.csv"]["rule"]
    assert baseline == ("fpr" if rule.startswith("manual") else rule.partition(":")[0])


@pytest.mark.usefixtures("fast")
def test_another_inverter_takes_its_own_options(cli: Any, trained: Any, tmp_path: Path) -> None:
    """The run's are those of izi_f; what -o says is for the inverter that is used."""
    base = ("score", trained.encoder, "--inverter", "anogan", "--max-images", 4, *RULE)
    common = ("-o", "scoring.calibration_images=8")
    for steps in (1, 5):
        out = tmp_path / str(steps)
        result = cli(*base, *common, "-o", f"scoring.options.steps={steps}", "--out", out)
        assert result.exit_code == 0, result.output
        described = json.loads((out / "scores.json").read_text())
        assert described["inverter"] == {"name": "anogan", "options": {"steps": steps}}
        assert list(rows(out / "scores.csv")[0]) == [name for name in HEADER if name != "latent"]
    first, last = ([float(r["score"]) for r in rows(tmp_path / s / "scores.csv")] for s in ("1", "5"))
    assert all(b < a for a, b in zip(first, last, strict=True))
    fails(cli(*base, "-o", "scoring.options.kappa=1"), "gan_inversion", "anogan", "'kappa'")
    fails(cli(*base, "-o", "scoring.options.steps=2.5"), "option steps", "2.5")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-o", "training.batch=3"), "training.batch=3"),
        (("-o", "data.corp=center"), "'crop'"),
        (("-o", "data.crop"), "key=value"),
        (("-o", "data.split_seed=3"), "data.split_seed"),
        (("-o", "scoring.options.kapa=1"), "'kappa'"),
        (("-o", "scoring.options.kappa=much"), "option kappa"),
        (("--inverter", "anogen"), "'anogan'"),
        (("--threshold", "fpr"), "fpr:ALPHA"),
        (("--threshold", "fpr:2"), "fpr:ALPHA"),
    ],
)
def test_bad_settings(cli: Any, trained: Any, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    fails(cli("score", trained.encoder, "--out", tmp_path / "out", *arguments), message)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("fast")
def test_a_crop_is_made(cli: Any, trained: Any, scored: Path, tmp_path: Path) -> None:
    """A bigger picture with the known one in its middle scores as that one; the threshold stays the training data's."""
    known = rows(scored / "scores.csv")[0]
    (tmp_path / "big").mkdir()
    with Image.open(trained.patches / known["image"]) as image:
        big = Image.new("RGB", (50, 40), "red")
        big.paste(image, (9, 4))
    big.save(tmp_path / "big" / "a.png")
    result = cli("score", trained.encoder, tmp_path / "big", *RULE, "-o", "data.crop=center", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = rows(tmp_path / "out" / "scores.csv")[0]
    assert (found["score"], found["threshold"]) == (known["score"], known["threshold"])
    assert all(text in result.stderr for text in ("middle 32 px", "50x40 px in a.png", "data.crop is center"))


def test_maps_and_segments(scored: Path, trained: Any) -> None:
    """Maps are those of a scorer that knows the validation normals, to half a step; segments hold 1 % of the normals' pixels."""
    import gan_uad
    from gan_uad.config import DataConfig
    from gan_uad.data.patches import batches, load_patches

    patches = load_patches(DataConfig(path=str(trained.patches)), 32)
    scorer = gan_uad.load(str(trained.encoder)).scorer()
    scorer.fit([], batches(patches.select("val"), 100))

    def maps_of(chosen: Any) -> Any:
        found = scorer.score(next(batches(chosen, 100))[0]).map
        assert found is not None
        return found.numpy()

    expected = maps_of(patches.select("test"))
    for i in (0, 17, 39):
        with Image.open(scored / "maps" / f"{i:06d}.png") as image:
            assert image.mode == "I;16"
            found = np.asarray(image).astype(np.float64) / 2048
        assert np.abs(found - expected[i]).max() <= 0.51 / 2048
    described = json.loads((scored / "scores.json").read_text())
    at = described["pixel_threshold"]
    assert at == pytest.approx(2, abs=0.2)  # −log10 of 1 %
    assert described["maps"].startswith("-log10")
    assert (maps_of(patches.select("val", 0)) > at).mean() == pytest.approx(0.01, abs=0.006)  # at is of a sample
    for i, row in enumerate(rows(scored / "scores.csv")):
        with Image.open(scored / "segments" / f"{i:06d}.png") as image:
            segment = np.asarray(image)
        assert set(np.unique(segment)) <= {0, 255}
        near = np.abs(expected[i] - at) < 1 / 2048
        assert np.array_equal((segment > 0)[~near], (expected[i] > at)[~near])
        with Image.open(scored / "truth" / f"{i:06d}.png") as image:
            truth = np.asarray(image)
        if row["label"] == "0":
            assert not truth.any()
        else:
            with Image.open(trained.patches / "masks" / Path(row["image"]).name) as image:
                assert np.array_equal(truth, np.asarray(image))


@pytest.mark.usefixtures("fast")
def test_components_combined_by_tail_probability_among_validation_normals(
    cli: Any, trained: Any, scored: Path, tmp_path: Path
) -> None:
    """−2 Σ log p from the files alone; of validation normals, p without the image itself; nothing rests on the test set."""
    command = ("score", trained.encoder, *RULE, "-o", "scoring.options.combine=fisher")
    result = cli(*command, "-o", "scoring.options.components=[l1, features]", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    known, new = (rows(tmp_path / "out" / f"scores{name}.csv") for name in ("_validation", ""))
    assert [[r[part] for part in COMPONENTS] for r in new] == [
        [r[part] for part in COMPONENTS] for r in rows(scored / "scores.csv")
    ]
    normals = [r for r in known if r["label"] == "0"]

    windows = {part: Tail.fit([float(r[part]) for r in normals]).window for part in ("l1", "features")}

    def fisher(row: dict[str, str], among: list[dict[str, str]]) -> float:
        tails = {part: Tail.fit([float(r[part]) for r in among], window) for part, window in windows.items()}
        return -2 * sum(float(tail.log_p(float(row[part]))) for part, tail in tails.items())

    for row in [*new, *(r for r in known if r["label"] == "1")]:
        assert float(row["score"]) == pytest.approx(fisher(row, normals), rel=1e-5)
    for row in normals:
        assert float(row["score"]) == pytest.approx(fisher(row, [r for r in normals if r is not row]), rel=1e-5)
    described = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert described["label"] == "tiny_izi_f/izi_f-fisher"
    assert described["options"] == {"combine": "fisher", "components": ["l1", "features"]}
    assert described["inverter"] == {"name": "izi_f", "options": {"kappa": 1.0}}
    fails(cli(*command, "--out", tmp_path / "out"), str(tmp_path / "out"), "--out")


@pytest.mark.usefixtures("fast")
def test_combined_components_need_validation_normals(cli: Any, trained: Any, tmp_path: Path) -> None:
    fisher = ("-o", "scoring.options.combine=fisher", "--out", tmp_path / "out")
    few = ("-o", "scoring.calibration_images=9")
    fails(cli("score", trained.encoder, *fisher, *few), "izi_f fisher", "at least 10", "combine=own")
    folder, hidden = copied(trained, tmp_path / "plain", step=8), ("-o", f"data.path={tmp_path / 'gone'}")
    fails(cli("score", trained.encoder, folder, *fisher, *hidden), "at least 10", "and 0")
    for bad, message in (
        ("components=[l1]", "combine=fisher or max"),
        ("combine=fischer", "own, fisher or max"),
        ("perceptual=vgg19", "perceptual"),
        ("smooth=-1", "[0, 100]"),
        ("micro_bach=4", "'micro_batch'"),
    ):
        fails(cli("score", trained.encoder, "-o", f"scoring.options.{bad}", "--out", tmp_path / "out"), message)
    fails(
        cli("score", trained.encoder, *fisher, "-o", "scoring.options.components=[l3]"),
        "'l3'",
    )
    assert not (tmp_path / "out").exists()
    lacking = ("-o", "scoring.options.components=[noise]", "--max-images", 4)
    fails(
        cli("score", trained.encoder, *fisher, *lacking),
        "scoring.options.components",
        "noise",
        "residual, features",
    )


@pytest.fixture
def thumbnails(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The features of the scorer fid; gives the names that were asked for."""
    asked: list[str] = []

    def load(name: str, **how: Any) -> FeatureNet:
        asked.append(name)
        return Thumbnails()

    monkeypatch.setattr("gan_uad.scoring.features.load_features", load)
    return asked


def distances_to_train_normals(patches: Path, chosen: list[str]) -> dict[str, list[float]]:
    """What both scorers that learn should give, from the files alone: Mahalanobis distances in float64."""

    def read(names: list[str]) -> torch.Tensor:
        return torch.stack([torch.from_numpy(np.array(Image.open(patches / name))) for name in names]).permute(
            0, 3, 1, 2
        )

    normals = read([r["image"] for r in index(patches) if r["split"] == "train" and r["label"] == "0"])
    known, new = (Thumbnails()(x).double().numpy() for x in (normals, read(chosen)))
    precision = np.linalg.inv(ledoit_wolf(known)[0])
    colors, others = ((x.double().mean((2, 3)) / 127.5).numpy() for x in (normals, read(chosen)))
    inverse = np.linalg.inv(np.cov(colors.T))
    return {
        "fid": [mahalanobis(x, known.mean(0), precision) for x in new],
        "mean_color": [mahalanobis(x, colors.mean(0), inverse) ** 2 for x in others],
    }


@pytest.mark.parametrize("name", ["fid", "mean_color"])
def test_a_scorer_that_learns_is_fitted_on_train_normals(
    cli: Any, trained: Any, tmp_path: Path, thumbnails: list[str], name: str
) -> None:
    """On any run, whose own inverter and its options play no part; run again, the scores are the same."""
    options = ("-o", "scoring.options.features=quick") if name == "fid" else ()
    command = ("score", trained.encoder, *RULE, "-o", f"scoring.scorer={name}", *options, "--out", tmp_path / "out")
    for _ in range(2):
        result = cli(*command)
        assert result.exit_code == 0, result.output
        found = rows(tmp_path / "out" / "scores.csv")
        expected = distances_to_train_normals(trained.patches, [r["image"] for r in found])[name]
        np.testing.assert_allclose([float(r["score"]) for r in found], expected, rtol=1e-3)
    described = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert (described["scorer"], described["inverter"], described["label"]) == (name, None, f"tiny_izi_f/{name}")
    assert {r["threshold"] for r in found} != {""}
    assert set(thumbnails) == ({"quick"} if name == "fid" else set())


def test_the_normals_that_were_learnt_from_are_told_apart(cli: Any, trained: Any, tmp_path: Path) -> None:
    """The same images scored, no validation: where scores of other normals lie, none are added and none are reused."""
    folder = copied(trained, tmp_path / "plain")
    for name, step in (("all", 1), ("half", 2)):
        root = shutil.copytree(trained.patches, tmp_path / name)
        known = index(root)
        lines = [r for r in known if r["split"] == "train"][::step]
        lines += [r for r in known if r["split"] == "val" and r["label"] == "1"]
        with open(root / "index.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
    command = ("score", trained.encoder, folder, "-o", "scoring.scorer=mean_color", "--out", tmp_path / "out")
    for _ in range(2):
        result = cli(*command, "-o", f"data.path={tmp_path / 'all'}")
        assert result.exit_code == 0, result.output
        assert "no validation normals are available" in result.stderr
    fails(cli(*command, "-o", f"data.path={tmp_path / 'half'}"), str(tmp_path / "out"), "--out")


@pytest.mark.usefixtures("thumbnails")
def test_other_weights_of_the_features_are_told_apart(
    cli: Any, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (
        "score",
        trained.encoder,
        "-o",
        "scoring.scorer=fid",
        *RULE,
        "--max-images",
        4,
        "--out",
        tmp_path / "out",
    )
    for _ in range(2):
        assert cli(*command).exit_code == 0
    monkeypatch.setattr(Thumbnails, "weights", "others sha256:1")
    fails(cli(*command), str(tmp_path / "out"), "--out")


@pytest.mark.usefixtures("thumbnails")
def test_a_scorer_that_learns_needs_normals(cli: Any, trained: Any, tmp_path: Path) -> None:
    fid = ("-o", "scoring.scorer=fid", "--out", tmp_path / "out")
    run = shutil.copytree(trained.encoder, tmp_path / "run")
    folder = copied(trained, tmp_path / "plain")
    hidden = ("-o", f"data.path={tmp_path / 'gone'}")
    fails(cli("score", run, folder, *fid, *hidden), "scorer fid", "train split")
    fails(cli("score", run, *fid, "--inverter", "anogan"), "--inverter")
    fails(cli("score", run, *fid, "-o", "scoring.options.featurs=vgg16"), "'features'")
    fails(cli("score", run, *fid, "-o", "scoring.options.net=vgg16"), "option net")
    fails(cli("score", run, "-o", "scoring.scorer=mean_color", "-o", "scoring.options.kappa=1"), "'kappa'")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("fast")
def test_pixel_metrics_that_cannot_be_had(cli: Any, trained: Any, tmp_path: Path) -> None:
    """All masks empty, or one missing: one line in `evaluate`. A mask that does not fit its image: refused before any work."""
    patches = Path(shutil.copytree(trained.patches, tmp_path / "patches"))
    files = [patches / row["mask"] for row in index(patches) if row["mask"] and row["split"] == "test"]
    for file in files:
        with Image.open(file) as image:
            image.point(lambda _: 0).save(file)

    def evaluated(name: str) -> Any:
        out = tmp_path / name
        result = cli("score", trained.encoder, patches, "--split", "test", "--maps", *RULE, "--out", out)
        assert result.exit_code == 0, result.output
        result = cli("evaluate", out, "--resamples", 100)
        assert result.exit_code == 0, result.output
        assert "pixel_auroc" not in result.stdout
        assert len([line for line in result.stdout.splitlines() if "no pixel metrics" in line]) == 1, result.stdout
        return out

    assert (evaluated("empty") / "truth").is_dir()
    content = files[-1].read_bytes()
    files[-1].write_bytes(b"")
    assert not (evaluated("broken") / "truth").exists()
    files[-1].write_bytes(content)
    with Image.open(files[-1]) as image:
        image.crop((0, 0, 32, 16)).save(files[-1])
    words = ("score", trained.encoder, patches, "--split", "test", "--maps", *RULE, "--out", tmp_path / "size")
    fails(cli(*words), files[-1].name, "32x16 px")
    assert not (tmp_path / "size" / "scores.csv").exists()
