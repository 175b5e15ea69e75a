"""`gan-uad score` and `evaluate` from the outside: what is in the files, what sets a threshold, what goes on, what is refused."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import average_precision_score, roc_auc_score

HEADER = ["image", "group", "label", "score", "residual", "features", "latent", "model", "threshold", "decision"]
RULE = ("--threshold", "fpr:0.2")  # four validation groups can promise 0.2


@pytest.fixture(scope="module")
def scored(cli: Any, trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's own test split, scored once with everything there is, and evaluated. Nobody writes into it."""
    out = tmp_path_factory.mktemp("scored") / "scores"
    result = cli("score", trained.encoder, "--maps", *RULE, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(out)
    result = cli("evaluate", out, "--resamples", 200)
    assert result.exit_code == 0, result.output
    (out / "printed.txt").write_text(result.stdout)
    return out


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the pictures, which most of a small job's time goes into."""
    monkeypatch.setattr("gan_uad.report.pictures.triplets", lambda *_: None)
    for name in ("roc", "pr", "histogram", "confusion", "calibration"):
        monkeypatch.setattr(f"gan_uad.report.plots.{name}", lambda *_: None)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def index(folder: Path) -> list[dict[str, str]]:
    return rows(folder / "index.csv")


def copied(trained: Any, out: Path, split: str = "test", step: int = 2) -> Path:
    """Some images of one split, in a folder that tells nothing of them."""
    out.mkdir(parents=True)
    for row in [row for row in index(trained.patches) if row["split"] == split][::step]:
        shutil.copy(trained.patches / row["image"], out)
    return out


def fails(result: Any, *messages: str, code: int = 2) -> None:
    """One clear line, the right exit code, no traceback."""
    assert result.exit_code == code, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, result.stderr
    assert result.stderr.splitlines()[-1] == errors[0]
    assert "Traceback" not in result.output
    for message in messages:
        assert message in errors[0], errors[0]


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
    assert list(baseline[0]) == [name for name in HEADER if name not in {"residual", "features", "latent"}]
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
    fails(cli("evaluate", tmp_path / "out"), "scores.csv", "labelled images of both kinds")
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
    assert "slides or patients unknown: interval over images, likely too narrow" in result.stdout


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
    fails(cli(*base, "-o", "scoring.options.kappa=1"), "inverter anogan has no option 'kappa'")
    fails(cli(*base, "-o", "scoring.options.steps=2.5"), "option steps", "valid integer")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-o", "training.batch=3"), "only be told data.* and scoring.*"),
        (("-o", "data.corp=center"), "did you mean 'crop'"),
        (("-o", "data.crop"), "expected key=value"),
        (("-o", "data.split_seed=3"), "what was trained on would be tested on"),
        (("-o", "scoring.options.kapa=1"), "did you mean 'kappa'"),
        (("-o", "scoring.options.kappa=much"), "option kappa"),
        (("--inverter", "anogen"), "did you mean 'anogan'"),
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


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("inverter", ["izi_f", "anogan"])
@pytest.mark.parametrize("first_maps", [True, False])
def test_an_interrupted_scoring_goes_on(
    cli: Any, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inverter: str, first_maps: bool
) -> None:
    """Stopped in the middle, with half a line on disk; also when maps are asked for only the second time."""
    from gan_uad.scoring.base import Scorer

    monkeypatch.setattr("gan_uad.jobs.score.CHUNK", 8)
    whole = Scorer.score
    command = ["score", trained.encoder, copied(trained, tmp_path / "p", step=2), "--inverter", inverter, *RULE]
    command += ["-o", "scoring.options.steps=2"] if inverter == "anogan" else []
    command += ["-o", "scoring.calibration_images=20"]
    calls: list[int] = []

    def stopping(self: Any, images: Any) -> Any:
        calls.append(len(images))
        if len(calls) == 6:  # three chunks of validation images, then the third of the scored ones
            raise KeyboardInterrupt
        return whole(self, images)

    monkeypatch.setattr(Scorer, "score", stopping)
    result = cli(*command, "--out", tmp_path / "out", *(["--maps"] if first_maps else []))
    assert result.exit_code == 130
    assert not (tmp_path / "out" / "scores.csv").exists()
    partial = tmp_path / "out" / ".scores.jsonl"
    assert len(partial.read_text().splitlines()) == 1 + 16
    torn = "".join(partial.read_text().splitlines(keepends=True)[:-3])
    partial.write_text(torn + '{"score": 0.12')  # the second chunk was half written
    calls[:] = [0] * 10  # no more stops
    assert cli(*command, "--maps", "--out", tmp_path / "out").exit_code == 0
    continued = calls[10:]
    left = 12 if first_maps else 20  # what follows the first chunk, or all for want of maps; the validation was done
    assert sum(continued[: 2 if first_maps else 3]) == left
    assert cli(*command, "--maps", "--out", tmp_path / "again").exit_code == 0
    assert sorted(f.name for f in (tmp_path / "out" / "maps").iterdir()) == [f"{i:06d}.png" for i in range(20)]
    files = ["scores.csv", "scores_validation.csv", "mean_color.csv", "maps/000003.png", "segments/000019.png"]
    for name in files:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


@pytest.mark.usefixtures("fast")
def test_other_scores_are_left_alone(cli: Any, trained: Any, scored: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(scored, tmp_path / "mine")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "scores.csv").write_text("image,label,score\na,0,1\n")
    before = {f: f.read_bytes() for folder in (mine, foreign) for f in folder.rglob("*") if f.is_file()}
    for out, extra in (
        (mine, ["--max-images", 5]),
        (mine, ["-o", "scoring.options.kappa=0.5"]),
        (mine, [copied(trained, tmp_path / "p")]),
        (foreign, []),
    ):
        fails(cli("score", trained.encoder, *extra, "--out", out), "holds scores of another", "--out")
    after = {f: f.read_bytes() for folder in (mine, foreign) for f in folder.rglob("*") if f.is_file()}
    assert before == after
    # The same again, with another threshold, is no other scoring; evaluate still reads the maps of before.
    assert cli("score", trained.encoder, "--threshold", "quantile:0.5", "--out", mine).exit_code == 0
    assert [r["score"] for r in rows(mine / "scores.csv")] == [r["score"] for r in rows(scored / "scores.csv")]
    assert rows(mine / "scores.csv")[0]["threshold"] != rows(scored / "scores.csv")[0]["threshold"]
    assert cli("evaluate", mine, "--resamples", 100).exit_code == 0


@pytest.mark.usefixtures("fast")
def test_training_data_that_moved(cli: Any, trained: Any, tmp_path: Path) -> None:
    """Scores without a threshold, and it says so; told where the data is now, the threshold is back."""
    run = shutil.copytree(trained.encoder, tmp_path / "run")
    config, tensors = read_model(run)
    config["config"]["data"]["path"] = str(tmp_path / "gone")
    save_file(tensors, run / "model.safetensors", {"gan_uad": json.dumps(config)})
    folder = copied(trained, tmp_path / "p", step=8)
    result = cli("score", run, folder, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert f"cannot be read (no such file or folder: {tmp_path / 'gone'})" in result.stderr
    assert "no threshold was set and no decisions were made" in result.stderr
    found = rows(tmp_path / "out" / "scores.csv")
    assert {(r["threshold"], r["decision"]) for r in found} == {("", "")}
    assert not (tmp_path / "out" / "mean_color.csv").exists()
    there = ("-o", f"data.path={trained.patches}")
    assert cli("score", run, folder, *RULE, *there, "--out", tmp_path / "again").exit_code == 0
    assert rows(tmp_path / "again" / "scores.csv")[0]["threshold"] != ""
    fails(cli("score", run, "--out", tmp_path / "none"), "no such file or folder")


def read_model(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from safetensors import safe_open

    path = run / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["gan_uad"]), load_file(path)


def test_a_run_knows_its_data_from_everywhere(
    cli: Any, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained.patches.parent)
    result = cli("train", "demo_wgan_gp", "--data", trained.patches.name, "--dry-run")
    assert result.exit_code == 0, result.output
    assert f"path: {trained.patches}\n" in result.stdout
    result = cli("train", trained.generator, "--resume", "--data", trained.patches.name, "--dry-run")
    assert result.exit_code == 0, result.output


@pytest.mark.usefixtures("fast")
def test_a_set_that_changed_since_training(cli: Any, trained: Any, tmp_path: Path) -> None:
    """Splits that are made here are dealt anew when images come or go: what was trained on may then be tested on."""
    plain = tmp_path / "plain"
    (plain / "normal").mkdir(parents=True)
    for row in index(trained.patches)[:12]:
        shutil.copy(trained.patches / row["image"], plain / "normal")
    run = shutil.copytree(trained.encoder, tmp_path / "run")
    config, tensors = read_model(run)
    config["config"]["data"]["path"] = str(plain)
    save_file(tensors, run / "model.safetensors", {"gan_uad": json.dumps(config)})
    result = cli("score", run, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "has changed since the training" in result.stderr


@pytest.mark.usefixtures("fast")
def test_odd_and_broken_images(cli: Any, trained: Any, tmp_path: Path) -> None:
    """Grey, 16-bit, CMYK, alpha and other sizes are read; a broken file is skipped, counted and named."""
    folder = tmp_path / "odd"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (40, 32, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(folder / "a.png")
    Image.fromarray(rgb[..., 0]).save(folder / "grey.png")
    Image.fromarray(rgb[..., 0].astype(np.uint16) * 257).save(folder / "sixteen.png")
    Image.fromarray(rgb).convert("CMYK").save(folder / "cmyk.jpg", quality=100)
    Image.fromarray(np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])).save(folder / "alpha.png")
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:900])
    result = cli("score", trained.encoder, folder, *RULE, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = {r["image"]: float(r["score"]) for r in rows(tmp_path / "out" / "scores.csv")}
    assert set(found) == {"a.png", "grey.png", "sixteen.png", "cmyk.jpg", "alpha.png"}
    assert found["sixteen.png"] == found["grey.png"]
    assert found["alpha.png"] == found["a.png"] != found["grey.png"]
    assert result.stderr.splitlines()[-1].startswith("skipped: broken.png: ")
    assert [name for name, _ in json.loads((tmp_path / "out" / "scores.json").read_text())["skipped"]] == ["broken.png"]
    fails(cli("score", trained.encoder, folder, "-o", "data.strict=true", "--out", tmp_path / "s"), "broken.png")
    for file in folder.glob("*"):
        if file.name != "broken.png":
            file.unlink()
    fails(cli("score", trained.encoder, folder, "--out", tmp_path / "b"), "none of 1 images can be used", "broken.png")


def test_sets_that_cannot_be_scored(cli: Any, trained: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    fails(cli("score", trained.encoder, tmp_path / "empty"), "holds no images")
    torn = copied(trained, tmp_path / "torn", step=20)
    names = sorted(file.name for file in torn.iterdir())
    table = "image,group,label,split\n" + "".join(
        f"{n},p1,0,{s}\n" for n, s in zip(names, ("val", "test"), strict=True)
    )
    (torn / "index.csv").write_text(table)
    fails(cli("score", trained.encoder, torn), "p1 in test and val", "two sides of the split")
    (torn / "index.csv").write_text(table.replace(",p1,", ",,"))
    fails(cli("score", trained.encoder, torn, "--split", "train"), "no image in the train split")


@pytest.mark.usefixtures("fast")
def test_one_class_is_not_enough_for_youden(cli: Any, trained: Any, tmp_path: Path) -> None:
    folder = copied(trained, tmp_path / "p", step=5)
    names = sorted(file.name for file in folder.iterdir())
    splits = ["val"] * 4 + ["test"] * 4
    lines = [f"{n},,0,{s}" for n, s in zip(names, splits, strict=True)]
    (folder / "index.csv").write_text("\n".join(["image,group,label,split", *lines]))
    fails(
        cli("score", trained.encoder, folder, "--threshold", "youden", "--out", tmp_path / "out"), "no anomalous image"
    )
    assert cli("score", trained.encoder, folder, "--threshold", "quantile:1", "--out", tmp_path / "out").exit_code == 0


@pytest.mark.usefixtures("fast")
def test_masks_of_some_anomalies_only(cli: Any, trained: Any, tmp_path: Path) -> None:
    """Nothing fails for it: the scores are there, the truth is left out, and it says so."""
    folder = copied(trained, tmp_path / "p", step=5)
    names = sorted(file.name for file in folder.iterdir())
    Image.new("L", (32, 32), 255).save(folder / "m.png")
    lines = [f"{n},,{int('normal' not in n)},test,{'m.png' if k == 0 else ''}" for k, n in enumerate(names)]
    (folder / "index.csv").write_text("\n".join(["image,group,label,split,mask", *lines]))
    result = cli("score", trained.encoder, folder, *RULE, "--maps", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "the masks are left out" in result.stderr
    assert not (tmp_path / "out" / "truth").exists()
    assert cli("evaluate", tmp_path / "out", "--resamples", 100).exit_code == 0


def test_models_that_cannot_score(cli: Any, trained: Any, tmp_path: Path) -> None:
    config, tensors = read_model(trained.encoder)
    good = trained.encoder / "model.safetensors"
    truncated, pickled, plain, nan = (tmp_path / f"{name}.safetensors" for name in ("cut", "pickle", "plain", "nan"))
    truncated.write_bytes(good.read_bytes()[:5000])
    pickled.write_bytes(pickle.dumps({"G": 1}))
    save_file(tensors, plain)
    tensors["gan.G.blocks.0.conv1.weight"][:] = float("nan")
    save_file(tensors, nan, {"gan_uad": json.dumps(config)})
    for path, message in (
        (truncated, "is not a safetensors file"),
        (pickled, "Pickled checkpoints"),
        (trained.encoder / "state.pt", "is not a safetensors file"),
        (plain, "was not written by gan_uad"),
        (tmp_path / "nothing", "no such run folder or model file"),
        (nan, "NaN or infinity"),
    ):
        fails(cli("score", path, trained.patches, "--out", tmp_path / "out"), message)
    fails(cli("score", trained.generator, "--inverter", "izi_f"), "this model has no encoder; train one")


def test_maps_and_segments(scored: Path, trained: Any) -> None:
    """Maps are those of the scorer, to half a step of 16 bits; segments hold 1 % of the pixels of validation normals."""
    import gan_uad
    from gan_uad.config import DataConfig
    from gan_uad.data.patches import batches, load_patches

    patches = load_patches(DataConfig(path=str(trained.patches)), 32)
    scorer = gan_uad.load(str(trained.encoder)).scorer()

    def maps_of(chosen: Any) -> Any:
        found = scorer.score(next(batches(chosen, 100))[0]).map
        assert found is not None
        return found.numpy()

    expected = maps_of(patches.select("test"))
    for i in (0, 17, 39):
        with Image.open(scored / "maps" / f"{i:06d}.png") as image:
            assert image.mode == "I;16"
            found = np.asarray(image).astype(np.float64) * 2 / 65535
        assert np.abs(found - expected[i]).max() <= 1.01 / 65535  # float32
    normals = maps_of(patches.select("val", 0))
    at = json.loads((scored / "scores.json").read_text())["pixel_threshold"]
    assert (normals <= at).mean() >= 0.99 > (normals < at).mean()
    for i, row in enumerate(rows(scored / "scores.csv")):
        with Image.open(scored / "segments" / f"{i:06d}.png") as image:
            segment = np.asarray(image)
        assert set(np.unique(segment)) <= {0, 255}
        near = np.abs(expected[i] - at) < 2e-5
        assert np.array_equal((segment > 0)[~near], (expected[i] > at)[~near])
        with Image.open(scored / "truth" / f"{i:06d}.png") as image:
            truth = np.asarray(image)
        if row["label"] == "0":
            assert not truth.any()
        else:
            with Image.open(trained.patches / "masks" / Path(row["image"]).name) as image:
                assert np.array_equal(truth, np.asarray(image))


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
            assert result["parts"][part] == pytest.approx(expected, abs=1e-12)
    pixels = metrics["tiny_izi_f/izi_f"]["pixels"]
    truth, maps = (
        np.stack([np.asarray(Image.open(f)) for f in sorted((scored / name).iterdir())]) for name in ("truth", "maps")
    )
    assert pixels["pixel_auroc"] == pytest.approx(roc_auc_score(truth.ravel() > 0, maps.ravel()), abs=1e-9)
    assert set(pixels) == {"pixel_auroc", "aupro", "dice", "iou"}
    printed = (scored / "printed.txt").read_text()
    assert f"pixel_auroc {pixels['pixel_auroc']:.3f}" in printed


def test_the_tables(scored: Path) -> None:
    figures = rows(scored / "metrics.csv")
    assert [r["model"] for r in figures] == ["tiny_izi_f/izi_f", "mean_color"]
    value = json.loads((scored / "metrics.json").read_text())["mean_color"]["auroc"]["value"]
    assert figures[1]["AUROC"].startswith(f"{value:.3f} [")
    assert (scored / "metrics.md").read_text().splitlines()[0].startswith("| model")
    latex = (scored / "metrics.tex").read_text()
    assert latex.startswith(r"\begin{tabular}")
    assert r"mean\_color" in latex


@pytest.mark.usefixtures("fast")
def test_a_threshold_set_again(cli: Any, scored: Path, tmp_path: Path) -> None:
    """Without scoring anew, on the validation scores: for the baseline on its own."""
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
    assert list(metrics) == [f"{f}: {m}" for f in ("scores", "other") for m in ("tiny_izi_f/izi_f", "mean_color")]
    assert all("pixels" in metrics[f"{folder}: tiny_izi_f/izi_f"] for folder in ("scores", "other"))
    assert len(list((tmp_path / "both").glob("*_histogram.png"))) == 4


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("image,label,score\na,0,1\n\nb,1,x\n", ("line 4", "score 'x' is not a number")),
        ("image,label,score\na,0,1\nb,1,nan\n", ("line 3", "score is nan")),
        ("image,label,score\na,0,1\nb,2,1\n", ("line 3", "label '2'")),
        ("image,label,score\na,0,1\nb,1\n", ("line 3", "cells")),
        ("image,group,label,score\na,p,0,1\nb,c.png,,0,0.5\n", ("line 3", "cells")),
        ("image,label,score,model\na,0,1,m\nb,1,2,n\n", ("more than one model (m, n)",)),
        ("image,label\na,0\n", ("no column 'score'",)),
        ("image,label,score\n", ("holds no scores",)),
        ("", ("no column 'image'",)),
        ("image,label,score\na,0,1\nb,0,2\n", ("both kinds",)),
        ("image,label,score,threshold\na,0,1,t\nb,1,2,t\n", ("threshold 't' is not a number",)),
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
    assert "no threshold was set, so nothing is called anomalous" in result.stdout
    fails(cli("evaluate", tmp_path / "theirs.csv", "--threshold", "fpr:0.1", *out), "needs validation scores")
    assert cli("evaluate", tmp_path / "theirs.csv", "--threshold", "manual:0.95", *out).exit_code == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["theirs"]["decisions"]["sensitivity"] == 1
    (tmp_path / "empty").mkdir()
    fails(cli("evaluate", tmp_path / "empty"), "holds no scores.csv", "gan-uad score")
