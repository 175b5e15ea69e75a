"""`gan-uad score` run again, on sets that moved or are odd, and with models that cannot score."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from score_tools import RULE, copied, fails, index, rows

from gan_uad.files import one_writer


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(
    ("inverter", "combine", "first_maps"),
    [("izi_f", "own", True), ("izi_f", "fisher", False), ("anogan", "max", True), ("anogan", "own", False)],
)
def test_an_interrupted_scoring_goes_on(
    cli: Any,
    trained: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    inverter: str,
    combine: str,
    first_maps: bool,
) -> None:
    """Stopped in the middle, with half a line on disk; also when maps are asked for only the second time.

    A search goes by two of its own micro-batches at a time, whatever the chunks of others are.
    """
    from gan_uad.scoring.gan_inversion import GanInversionScorer

    monkeypatch.setattr("gan_uad.detection.rows.CHUNK", 8 if inverter == "izi_f" else 1000)
    complete = GanInversionScorer.measure
    command = ["score", trained.encoder, copied(trained, tmp_path / "p", step=2), "--inverter", inverter, *RULE]
    command += ["-o", "scoring.options.steps=2", "-o", "scoring.options.micro_batch=4"] if inverter == "anogan" else []
    command += ["-o", "scoring.calibration_images=20", "-o", f"scoring.options.combine={combine}"]
    calls: list[int] = []

    def stopping(self: Any, images: Any) -> Any:
        calls.append(len(images))
        if len(calls) == 6:  # three chunks of validation images, then the third of the scored ones
            raise KeyboardInterrupt
        return complete(self, images)

    monkeypatch.setattr(GanInversionScorer, "measure", stopping)
    result = cli(*command, "--out", tmp_path / "out", *(["--maps"] if first_maps else []))
    assert result.exit_code == 130
    assert not (tmp_path / "out" / "scores.csv").exists()
    partial = tmp_path / "out" / ".scores.jsonl"
    assert len(partial.read_text().splitlines()) == 1 + 16
    torn = "".join(partial.read_text().splitlines(keepends=True)[:-3])
    partial.write_text(torn + '{"score": 0.12')  # the second chunk was half written
    calls[:] = [0] * 10  # no more stops
    result = cli(*command, "--maps", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert ("5 images of triplets.png" in result.stderr) == (inverter == "anogan")
    continued = calls[10:]
    assert max(continued) <= 10  # of the pictures
    left = 12 if first_maps else 20  # what follows the first chunk, or all for want of maps; the validation was done
    assert sum(continued[: 2 if first_maps else 3]) == left
    assert cli(*command, "--maps", "--out", tmp_path / "again").exit_code == 0
    assert sorted(f.name for f in (tmp_path / "out" / "maps").iterdir()) == [f"{i:06d}.png" for i in range(20)]
    files = ["scores.csv", "scores_validation.csv", "mean_color.csv", "maps/000003.png", "segments/000019.png"]
    for name in files:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


@pytest.mark.usefixtures("fast")
def test_a_folder_that_another_process_scores_into(cli: Any, trained: Any, scored: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(scored, tmp_path / "scores"))
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    with one_writer(folder):
        fails(cli("score", trained.encoder, "--maps", *RULE, "--out", folder), str(folder))
        assert {file.name: file.read_bytes() for file in folder.iterdir() if file.name in before} == before
    assert cli("score", trained.encoder, "--maps", *RULE, "--out", folder).exit_code == 0


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
        fails(cli("score", trained.encoder, *extra, "--out", out), str(out), "--out")
    after = {f: f.read_bytes() for folder in (mine, foreign) for f in folder.rglob("*") if f.is_file()}
    assert before == after
    # The same again, with another threshold, is no other scoring; evaluate still reads the maps of before.
    assert cli("score", trained.encoder, "--threshold", "quantile:0.5", "--out", mine).exit_code == 0
    assert [r["score"] for r in rows(mine / "scores.csv")] == [r["score"] for r in rows(scored / "scores.csv")]
    assert rows(mine / "scores.csv")[0]["threshold"] != rows(scored / "scores.csv")[0]["threshold"]
    assert cli("evaluate", mine, "--resamples", 100).exit_code == 0


@pytest.mark.usefixtures("fast")
def test_training_data_that_moved(cli: Any, trained: Any, tmp_path: Path) -> None:
    """Scores without a threshold, and a note; with the new path of the data, the threshold is back."""
    run = shutil.copytree(trained.encoder, tmp_path / "run")
    config, tensors = read_model(run)
    config["config"]["data"]["path"] = str(tmp_path / "gone")
    save_file(tensors, run / "model.safetensors", {"gan_uad": json.dumps(config)})
    folder = copied(trained, tmp_path / "p", step=8)
    result = cli("score", run, folder, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert f"{tmp_path / 'gone'})" in result.stderr
    assert "no threshold was set" in result.stderr
    found = rows(tmp_path / "out" / "scores.csv")
    assert {(r["threshold"], r["decision"]) for r in found} == {("", "")}
    assert not (tmp_path / "out" / "mean_color.csv").exists()
    there = ("-o", f"data.path={trained.patches}")
    assert cli("score", run, folder, *RULE, *there, "--out", tmp_path / "again").exit_code == 0
    assert rows(tmp_path / "again" / "scores.csv")[0]["threshold"] != ""
    fails(cli("score", run, "--out", tmp_path / "none"), str(tmp_path / "gone"))


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
    """Splits that are made here change when images come or go: training images may then be tested on."""
    plain = tmp_path / "plain"
    (plain / "normal").mkdir(parents=True)
    known = index(trained.patches)
    for row in [r for r in known if r["label"] == "0"][::2]:
        shutil.copy(trained.patches / row["image"], plain / "normal")
    run = shutil.copytree(trained.encoder, tmp_path / "run")
    config, tensors = read_model(run)
    config["config"]["data"]["path"] = str(plain)
    save_file(tensors, run / "model.safetensors", {"gan_uad": json.dumps(config)})
    result = cli("score", run, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "has changed since the training" in result.stderr
    split_of = {Path(row["image"]).name: row["split"] for row in known}
    assert {split_of[Path(row["image"]).name] for row in rows(tmp_path / "out" / "scores.csv")} == {"test"}
    for row in rows(tmp_path / "out" / "scores.csv"):
        (plain / row["image"]).unlink()
    fails(cli("score", run, "--out", tmp_path / "none"), str(plain), "--split all")


@pytest.fixture(scope="module")
def learnt(cli: Any, trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with class folders `p` without splits, and a run `runs/00000-mean_color` of it. Nobody writes into it."""
    root = tmp_path_factory.mktemp("learnt")
    for number, row in enumerate(index(trained.patches)[::2]):
        folder = root / "p" / ("normal" if row["label"] == "0" else "tumour")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(trained.patches / row["image"], folder / f"{number}.png")
    words = ("--out", root / "runs", "-o", "resolution=32")
    result = cli("train", "mean_color", "--data", root / "p", *words)
    assert result.exit_code == 0, result.output
    assert cli("score", root / "runs" / "00000-mean_color", *RULE, "--out", root / "scores").exit_code == 0
    return root


def copy_of(root: Path, kind: str, out: Path) -> Path:
    """The images of `root` in another form; `mixed`: new ones among them."""
    if kind == "zip":
        return Path(shutil.make_archive(str(out), "zip", root))
    if kind == "copy":
        return Path(shutil.copytree(root, out))
    split = {"below a split": "test/", "index.csv": ""}.get(kind, "")
    lines = ["image,group,label,split"]
    for number, file in enumerate(sorted(root.rglob("*.png"), key=lambda file: file.read_bytes())):
        folder = out / f"{split}{file.parent.name}"
        folder.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            image.save(folder / f"{number}.tif")  # other names, another format, the same pixels
        lines.append(f"{file.parent.name}/{number}.tif,,{int(file.parent.name != 'normal')},test")
    if kind == "index.csv":
        (out / "index.csv").write_text("\n".join(lines))
    if kind == "mixed":
        for k in range(6):
            pixels = np.random.default_rng(k).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(out / ("normal" if k % 2 else "tumour") / f"new{k}.png")
    return out


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("kind", ["copy", "zip", "renamed", "mixed", "below a split", "index.csv"])
@pytest.mark.parametrize("original", ["there", "moved", "unlisted"])
def test_a_copy_of_the_training_set(cli: Any, learnt: Path, tmp_path: Path, kind: str, original: str) -> None:
    """Images that the run has seen are no test images, wherever they lie; all else is as for the set itself."""
    root = learnt
    if original != "there":
        root = Path(shutil.copytree(learnt, tmp_path / "learnt"))
        config, tensors = read_model(root / "runs" / "00000-mean_color")
        config["config"]["data"]["path"] = str(learnt / "p" if original == "unlisted" else tmp_path / "gone")
        metadata = {"gan_uad": json.dumps(config), "gan_uad_scorer": json.dumps(config["scorer"])}
        save_file(tensors, root / "runs" / "00000-mean_color" / "model.safetensors", metadata)
    if original == "unlisted":  # a run of an earlier version, whose patches are still there
        (root / "runs" / "00000-mean_color" / "images.npz").unlink()
    run, data = root / "runs" / "00000-mean_color", copy_of(learnt / "p", kind, tmp_path / "data")
    result = cli("score", run, data, *RULE, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    of_set, found = rows(learnt / "scores" / "scores.csv"), rows(tmp_path / "out" / "scores.csv")
    known = [row for row in found if "new" not in row["image"]]
    assert sorted((r["score"], r["label"], r["threshold"]) for r in known) == sorted(
        (r["score"], r["label"], r["threshold"]) for r in of_set
    )
    assert len(found) - len(known) == 6 * (kind == "mixed")
    counts = json.loads((tmp_path / "out" / "scores.json").read_text())["known"]
    seen = len(list((learnt / "p").rglob("*.png"))) - len(of_set)
    assert counts["train"] + counts["val"] == seen
    assert f"{counts['train']} in the train split" in result.stderr
    assert "warning" not in result.stderr
    result = cli("score", run, data, *RULE, "--split", "all", "--out", tmp_path / "all")
    assert result.exit_code == 0, result.output
    assert "warning: the model was trained on some of the scored images" in result.stderr


@pytest.mark.usefixtures("fast")
def test_parts_of_the_training_set_and_new_images(cli: Any, learnt: Path, tmp_path: Path) -> None:
    run = learnt / "runs" / "00000-mean_color"
    result = cli("score", run, learnt / "p" / "normal", *RULE, "--out", tmp_path / "part")
    assert result.exit_code == 0, result.output
    normals = [row["score"] for row in rows(learnt / "scores" / "scores.csv") if row["label"] == "0"]
    assert [row["score"] for row in rows(tmp_path / "part" / "scores.csv")] == normals
    new = copy_of(learnt / "p", "mixed", tmp_path / "mixed")
    for file in new.rglob("*.tif"):
        file.unlink()
    result = cli("score", run, new, *RULE, "--out", tmp_path / "new")
    assert result.exit_code == 0, result.output
    assert len(rows(tmp_path / "new" / "scores.csv")) == 6
    assert "has seen" not in result.stderr
    # A model file alone, without the patches: it says that it cannot tell.
    config, tensors = read_model(run)
    config["config"]["data"]["path"] = str(tmp_path / "gone")
    metadata = {"gan_uad": json.dumps(config), "gan_uad_scorer": json.dumps(config["scorer"])}
    save_file(tensors, tmp_path / "alone.safetensors", metadata)
    result = cli("score", tmp_path / "alone.safetensors", new, "--out", tmp_path / "unknown")
    assert result.exit_code == 0, result.output
    assert len([line for line in result.stderr.splitlines() if "not recognised" in line]) == 1
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "images.npz").write_bytes(b"PK")
    fails(cli("score", tmp_path / "run", new, "--out", tmp_path / "damaged"), "images.npz")


@pytest.mark.usefixtures("fast")
def test_images_that_an_earlier_run_was_trained_on(cli: Any, tiny: Any, tmp_path: Path) -> None:
    """A run that starts from another has seen its images too."""
    other = tmp_path / "other"
    for number, file in enumerate(sorted(tiny.patches.rglob("*.png"))):
        (other / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, other / file.parent.name / f"{(7 * number) % 24:02d}.png")
    result = cli("train", tiny.config("wgan_gp"), "--data", other, "-o", f"init_from={tiny.generator}",
                 "-o", "training.total_kimg=0.008", "--out", tmp_path / "runs")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert len([line for line in result.stderr.splitlines() if "starts from" in line]) == 1
    command = ("score", tmp_path / "runs" / "00000-wgan_gp", "--inverter", "anogan", "-o", "scoring.options.steps=1")
    result = cli(*command, "--threshold", "quantile:0.5", "--out", tmp_path / "scores")
    assert result.exit_code == 0, result.output
    assert "have the pixels of training images" in result.stderr
    assert any(
        "training images" in text for text in json.loads((tmp_path / "scores" / "scores.json").read_text())["warnings"]
    )


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
    fails(cli("score", trained.encoder, folder, "--out", tmp_path / "b"), "broken.png")


def test_sets_that_cannot_be_scored(cli: Any, trained: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    fails(cli("score", trained.encoder, tmp_path / "empty"), str(tmp_path / "empty"))
    torn = copied(trained, tmp_path / "torn", step=20)
    names = sorted(file.name for file in torn.iterdir())
    table = "image,group,label,split\n" + "".join(
        f"{n},p1,0,{s}\n" for n, s in zip(names, ("val", "test"), strict=True)
    )
    (torn / "index.csv").write_text(table)
    fails(cli("score", trained.encoder, torn), "p1 in test and val")
    (torn / "index.csv").write_text(table.replace(",p1,", ",,"))
    fails(cli("score", trained.encoder, torn, "--split", "train"), "--split")


@pytest.mark.usefixtures("fast")
def test_one_class_is_not_enough_for_youden(cli: Any, trained: Any, tmp_path: Path) -> None:
    folder = copied(trained, tmp_path / "p", step=5)
    names = sorted(file.name for file in folder.iterdir())
    splits = ["val"] * 4 + ["test"] * 4
    lines = [f"{n},,0,{s}" for n, s in zip(names, splits, strict=True)]
    (folder / "index.csv").write_text("\n".join(["image,group,label,split", *lines]))
    fails(cli("score", trained.encoder, folder, "--threshold", "youden", "--out", tmp_path / "out"), "anomalous")
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
        (truncated, str(truncated)),
        (pickled, str(pickled)),
        (trained.encoder / "state.pt", "state.pt"),
        (plain, str(plain)),
        (tmp_path / "nothing", str(tmp_path / "nothing")),
        (nan, "NaN"),
    ):
        fails(cli("score", path, trained.patches, "--out", tmp_path / "out"), message)
    fails(cli("score", trained.generator, "--inverter", "izi_f"), "gan-uad train izi_f_64")
