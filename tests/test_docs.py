"""Every command in README.md and docs/: parsed and checked as the program itself would, and, of the pages that are jobs, run.

What is run is run in a small made-up world, with the documented names; all that a test adds is a limit on how long or how large (`CAPS`),
and what a name in capitals stands for (`PLACES`). What is not run, and why, is in `ONLY_CHECKED` and `READ_ONLY`.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import re
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import docs_tools
import h5py
import numpy as np
import pytest
import yaml
from docs_tools import ROOT, Command
from PIL import Image
from safetensors import safe_open
from slide_tools import asap, corners, write_slide

from gan_uad import config, registry
from gan_uad.benchmark import schema as benchmark_file
from gan_uad.cli import main as program
from gan_uad.data import catalogue
from gan_uad.features import weights
from gan_uad.generation import generate
from gan_uad.metrics.detection import parse_threshold
from gan_uad.training import train

PAGES = docs_tools.pages()
EVERY = [command for page, text in PAGES.items() for command in docs_tools.commands(page, text)]

# What names in capitals stand for; in a page that trains, RUN is its latest run.
PLACES = {
    "RUN": "pcam_stylegan2_64_small", "GENERATOR": "pcam_stylegan2_64_small", "RUN_OF_CNN_256": "cnn_256", "DATA": "patches",
    "PATCHES": "patches", "OTHER": "colon", "IMAGES": "patches", "SCORES": "scores", "FID": "fid", "SLIDES": "slide_scores",
    "PRESET": "wgan_gp_64_small", "CONFIG": "wgan_gp_64_small", "NAME": "pcam", "N": "1", "KIMG": "1", "DIR": ".", "FOLDER": "figures",
    "WALK.gif": "walk.gif", "ZIP": "patches.zip", "FILE": "scores.csv", "$seed": "0", "runs/...": "runs/00000-x",
}  # fmt: skip

# Of the pages that are jobs, what is only parsed and checked.
ONLY_CHECKED = {
    "make ": "installs an environment; .ci/run runs both targets",
    "pip ": "installs; extras and entry points are compared with pyproject.toml",
    "srun ": "there is no Slurm",
    "=$(scontrol": "there is no Slurm",
    "export ": "sets a variable",
    "python -m": "names the program",
    "gan-uad demo": "a minute even with --quick; .ci/run runs it",
    "gan-uad download": "fetches gigabytes; tests/test_download_cli.py fetches from a server of its own",
    "gan-uad weights": "fetches hundreds of MB, or looks at what this machine has; tests/test_weights.py does both",
    "--features inception": "needs a weights file that is not in the package",
    "vgg16": "needs a weights file that is not in the package",
    "--folds": "five trainings; tests/test_cross_validate.py",
    "gan-uad doctor": "measures the machine for seconds; tests/test_doctor.py",
}
# Records of what was done, with the sets and hours that it took; the same verbs are run by the other pages.
READ_ONLY = {"docs/results.md", "docs/detectors.md", "docs/benchmarks.md"}
READ_ONLY |= {"docs/settings.md"}  # a list; the command that makes it would write it


def test_there_are_commands() -> None:
    assert len(EVERY) > 100
    assert {"README.md", "docs/training.md", "docs/own_model.md", "docs/many_gpus.md", "docs/offline.md"} <= {
        c.page for c in EVERY
    }


def test_the_page_of_settings_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("settings_page", ROOT / "scripts" / "settings_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert PAGES["docs/settings.md"] == module.page(), "python scripts/settings_page.py makes it anew"


# ---------------------------------------------------------------- parsed and checked


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_right(page: str) -> None:
    wrong = []
    for command in (command for command in EVERY if command.page == page):
        try:
            check(command)
        except (click.ClickException, AssertionError, KeyError, SystemExit) as error:
            wrong.append(f"{command}\n    {getattr(error, 'message', None) or repr(error)}")
    assert not wrong, "\n".join(wrong)


def check(command: Command) -> None:
    """Raise what the program raises, or `AssertionError`, where the command is wrong."""

    def inner(text: str) -> str:
        check(Command(command.page, text, False))
        return "scores"

    if re.match(r"\w+=\$\((?!gan-uad)", command.text):  # a variable, from another program
        return
    own = {block.name: block.text for block in docs_tools.blocks(PAGES[command.page]) if block.name}
    words = docs_tools.words(command.text, PLACES, inner)
    while "=" in words[0]:
        words.pop(0)
    words = words[1:] if words[0] == "srun" else words
    match words[0]:
        case "gan-uad":
            check_ours(words[1:], command.inline, own)
        case "torchrun":
            check_torchrun(words[1:], command.inline, own)
        case "python":
            check_script(words[1], words[2:])
        case "make":
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(), "no such target"
        case "pip":
            check_pip(words[1:])
        case "pytest" | "bash":
            assert [word for word in words if (ROOT / word).is_file()], "no such file"
        case "export" | "source":
            pass
        case other:
            assert re.fullmatch(r"\w+=.*", other), f"what is {other}?"


def check_ours(words: list[str], inline: bool, own: dict[str, str]) -> None:
    context, told = parse(words, inline)
    if told is not None and context.command.name in CHECKS:
        CHECKS[context.command.name](told, own)


def parse(words: list[str], inline: bool) -> tuple[click.Context, dict[str, Any] | None]:
    """By the program's own parser, options converted; nothing is called. No values where a sentence only names the verb."""
    command: click.Command = program.main
    context = click.Context(command, info_name="gan-uad")
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(context, words)
        assert command is not None
        context = click.Context(command, context, name)
        if not words and inline:
            return context, None
    try:
        command.parse_args(context, list(words))
    except click.MissingParameter:
        if not inline:
            raise
        context = click.Context(command, context.parent, context.info_name)
        command.parse_args(context, [*words, "scores"])
    return context, context.params


def check_torchrun(words: list[str], inline: bool, own: dict[str, str]) -> None:
    from torch.distributed.run import get_args_parser

    told = get_args_parser().parse_args(words)
    if told.training_script != "...":
        assert told.module
        assert told.training_script == "gan_uad"
        check_ours(told.training_script_args, inline, own)


class Parsed(Exception):
    """A script has read its arguments."""


def check_script(name: str, words: list[str]) -> None:
    """By the script's own parser: it is started, and stopped once it has read its arguments."""
    if name == "-m":
        assert words[0] in {"gan_uad", "pytest", "pip"}
        return
    spec = importlib.util.spec_from_file_location(f"script_{Path(name).stem}", ROOT / name)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    read = argparse.ArgumentParser.parse_args

    def parsed(*arguments: Any) -> None:
        read(*arguments)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend((ROOT / name).parent)
        patch.setattr(sys, "argv", [name, *words])
        patch.setattr(argparse.ArgumentParser, "parse_args", parsed)
        spec.loader.exec_module(script)
        with pytest.raises(Parsed):
            script.main()


def check_pip(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        for extra in re.findall(r"\[(\w+)\]", word):
            assert extra in extras, f"no extra is called {extra}"


# ---------------------------------------------------------------- what the parser leaves to the jobs


def check_config(source: str, overrides: tuple[str, ...], own: dict[str, str], resume: bool = False) -> None:
    """A preset or a file of the page, its overrides, and each option of network, task and scorer; a run: that it may be told so."""
    if source in own:
        raw = yaml.safe_load(own[source])
        found = config.resolve(raw, overrides, default_name=Path(source).stem, context=source)
        if found.model not in {entry.name for entry in registry.entries("network")}:
            return  # the network of the page, which tests/test_toy_model.py builds
    elif resume and source not in config.presets():
        assert all(override.partition("=")[0] in train.RESUMABLE for override in overrides), (
            "a run cannot be told this anew"
        )
        return
    else:
        found = config.load_config(source, overrides)
    if found.task:
        options = {"resolution": found.resolution, **found.network}
        registry.check_options(registry.find("network", found.model), options, found.model)
        registry.check_options(
            registry.find("task", found.task), found.optim, found.task, ("model", "device", "seed", "generator")
        )
    check_scoring(found.scoring.scorer, found.scoring.inverter, found.scoring.options)


def check_scoring(scorer: str | None, inverter: str | None, options: dict[str, Any]) -> None:
    """Each option is one of the scorer or the inverter; where these are not told, of any."""
    scorers = [scorer] if scorer else [entry.name for entry in registry.entries("scorer")]
    inverters = [inverter] if inverter else [entry.name for entry in registry.entries("inverter")]
    known = [registry.find("scorer", name) for name in scorers] + [
        registry.find("inverter", name) for name in inverters
    ]
    taken = {name for cls in known for name in inspect.signature(cls).parameters}
    assert set(options) <= taken, f"neither {scorers} nor {inverters} has {set(options) - taken}"
    if "features" in options:
        check_features(str(options["features"]))
    for cls in known:
        asked = {key: value for key, value in options.items() if key in inspect.signature(cls).parameters}
        if scorer or inverter:
            registry.check_options(cls, asked, cls.__name__)


def check_features(names: str) -> None:
    known = {entry.name for entry in registry.entries("features")} | {"pixels"}
    for name in names.split(","):
        assert name.startswith("timm:") or name.partition("@")[0] in known, f"no features are called {name}"


def check_train(told: dict[str, Any], own: dict[str, str]) -> None:
    check_config(told["config"], told["overrides"], own, told["resume"])


def check_score(told: dict[str, Any], own: dict[str, str]) -> None:
    """Of a model that is in the repository, what its own scorer takes; of others, what any does."""
    raw = {"model": "", "task": "", "training": {"total_kimg": 1}}
    for override in told["overrides"]:
        assert override.startswith(("data.", "scoring.")), f"{override} is no setting of a scoring"
    found = config.resolve(raw, told["overrides"], default_name="scoring", context="-o").scoring
    name = Path(told["run"]).stem
    assert not told["run"].startswith("models/") or (ROOT / told["run"]).is_file(), "no such model"
    if name in config.trained_models():
        with safe_open(config.trained_models()[name], framework="pt") as file:
            trained = json.loads(file.metadata()["gan_uad"])["config"]["scoring"]
        check_scoring(trained["scorer"], told["inverter"] or trained["inverter"], found.options)
    else:
        check_scoring(None, told["inverter"], found.options)
    if told.get("threshold"):
        parse_threshold(told["threshold"])


def check_project(told: dict[str, Any], own: dict[str, str]) -> None:
    raw = {"model": "", "task": "", "training": {"total_kimg": 1}}
    options = [f"scoring.options.{option}" for option in told["options"]]
    check_scoring(
        "gan_inversion", told["inverter"], config.resolve(raw, options, default_name="x", context="-o").scoring.options
    )


def check_evaluate(told: dict[str, Any], own: dict[str, str]) -> None:
    if told["folds"]:
        check_config(told["scores"][0], told["overrides"], own)
    if told["threshold"]:
        parse_threshold(told["threshold"])


def check_classify(told: dict[str, Any], own: dict[str, str]) -> None:
    assert told["real_vs_synthetic"] or (told["classifier"] and told["normal"] and told["anomalous"])
    if told["preset"]:
        check_config(told["preset"], told["overrides"], own)


def check_benchmark(told: dict[str, Any], own: dict[str, str]) -> None:
    if Path(told["source"]).suffix in {".yaml", ".yml"}:
        kept = ROOT / told["source"]
        if kept.is_file():
            benchmark_file.load_benchmark(str(kept))
        else:
            assert told["source"] in {*own, "my.yaml"}, "no such file on this page, nor in the repository"
        return
    found = benchmark_file.load_benchmark(told["source"], told["reduced"])
    assert set(told["only"]) <= {*found.methods, *found.data}
    assert {text.partition("=")[0] for text in told["data"]} <= set(found.data)


def check_generate(told: dict[str, Any], own: dict[str, str]) -> None:
    if told["seeds"]:
        generate.parse_seeds(told["seeds"])


def check_fid(told: dict[str, Any], own: dict[str, str]) -> None:
    check_features(told["features"])


def check_data(told: dict[str, Any], own: dict[str, str]) -> None:
    config.data_config(told["path"], told["overrides"])


def check_fetch(told: dict[str, Any], own: dict[str, str]) -> None:
    weights.entry(told["name"])


def check_download(told: dict[str, Any], own: dict[str, str]) -> None:
    if told["name"]:
        catalogue.entry(told["name"])


CHECKS: dict[str | None, Callable[[dict[str, Any], dict[str, str]], None]] = {
    "train": check_train,
    "score": check_score,
    "score-slide": check_score,
    "project": check_project,
    "evaluate": check_evaluate,
    "classify": check_classify,
    "benchmark": check_benchmark,
    "download": check_download,
    "generate": check_generate,
    "fid": check_fid,
    "check": check_data,
    "fetch": check_fetch,
}


# ---------------------------------------------------------------- run

JOBS = [
    page for page in PAGES if page not in READ_ONLY | {"docs/own_model.md"} and not page.startswith("docs/results/")
]
LESS = {"total_kimg": 0.004, "batch": 4, "eval_kimg": "null", "patience": "null"}
SMALL = ["-o", "resolution=64", *(word for key, value in LESS.items() for word in ("-o", f"training.{key}={value}"))]
NETS = {
    "wgan_gp": {"channel_base": 64, "channel_max": 8, "z_dim": 8},
    "stylegan2": {"channel_base": 64, "channel_max": 8, "z_dim": 8, "w_dim": 8, "mapping_layers": 1},
    "residual_encoder": {"channel_base": 64, "channel_max": 8},
    "style_encoder": {"channel_base": 64, "channel_max": 8},
    "conv_vae": {"channels": [4, 8], "latent_dim": 4},
    "densenet121": {"growth_rate": 4, "block_config": [1, 1, 1, 1], "init_features": 8},
    "": {},
}
CAPS = {
    "score": ["-o", "scoring.calibration_images=12"],
    "score-slide": ["--normals", "patches", "--slide-mpp", "0.5"],
    "evaluate": ["--resamples", "100"],
    "fid": ["--num", "8", "--features", "pixels@8"],
    "generate": ["--seeds", "0-3"],
    "project": ["-o", "steps=1", "-o", "perceptual=efficientnet_lite0"],
    "classify": ["--num", "8"],
    "benchmark": ["--dry-run"],
    "tile": ["--slide-mpp", "0.5", "--per-slide", "8"],
}


# What RUN is before a page has trained anything, and where a sentence means another one than the latest.
AT_FIRST = {"docs/scoring.md": "pcam_izi_f_64_small"}
INSTEAD = {
    "gan-uad train style_encoder_64 --generator RUN --data DATA": "pcam_stylegan2_64_small",
    "gan-uad train izi_f_64_small --generator RUN": "runs/00001-wgan_gp_64_small",
    "gan-uad score RUN -o scoring.options.combine=fisher": "runs/00002-izi_f_64_small",
}
# What a page takes for granted that an earlier one has made.
BEFORE = {
    "docs/benchmark.md": [
        "gan-uad train mean_color --data patches",
        "gan-uad score RUN --out benchmarks/phantom/cells/one/scores",
    ],
    "docs/report.md": [
        "gan-uad train mean_color --data patches",
        "gan-uad evaluate $(gan-uad score RUN --out scores)",
        "gan-uad score RUN --out demo/scores",
        "gan-uad fid GENERATOR --real patches",
        "gan-uad score-slide RUN slides/test/test.svs",
        "gan-uad interpolate GENERATOR --seeds 0-1 --out walk.gif",
    ],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has: patches in class folders, slides with annotations, sets as they are downloaded."""
    root = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    for place in ("patches", "colon"):
        for label, count, base in (("normal", 56, (200, 140, 190)), ("tumour", 6, (150, 90, 170))):
            (root / place / label).mkdir(parents=True)
            for k in range(count):
                pixels = np.clip(rng.normal(base, 25, (64, 64, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / place / label / f"{k}.png")
    (root / "folder").mkdir()
    shutil.copy(root / "patches" / "normal" / "1.png", root / "folder")
    shutil.copy(root / "patches" / "normal" / "0.png", root / "patch.png")
    slides = (
        "slides/train.svs",
        "slides/test/test.svs",
        "slides/test/normal.svs",
        "data/camelyon16/images/tumor_001.tif",
    )
    for k, name in enumerate(slides):
        write_slide(root / name, 320, 320, [(0, 0, 320, 150 if "test" in name else 320)], mpp=0.5, seed=k)
    for name in ("slides/xml/train.xml", "slides/xml/test.xml", "data/camelyon16/annotations/tumor_001.xml"):
        asap(root / name, ("Tumor", corners((0, 0, 130, 130))))
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.array([[6], [8]] * 4)
    np.savez(root / "data" / "pathmnist_64.npz", **arrays)
    (root / "data" / "pcam").mkdir()
    for split in ("train", "valid", "test"):
        for kind, values in (
            ("x", rng.integers(0, 256, (4, 96, 96, 3), dtype=np.uint8)),
            ("y", np.array([0, 1, 0, 1]).reshape(4, 1, 1, 1)),
        ):
            with h5py.File(root / "data" / "pcam" / f"camelyonpatch_level_2_split_{split}_{kind}.h5", "w") as file:
                file[kind] = values
    (root / "my.yaml").write_text(
        yaml.safe_dump({"data": {"mine": {"path": str(root / "patches")}}, "methods": {"knn": None}})
    )
    return root


class Reader:
    """Somebody who follows a page from its first command to its last, in a folder of their own."""

    def __init__(self, cli: Any, page: str) -> None:
        self.cli, self.page, self.ran = cli, page, 0
        self.places = PLACES | {"RUN": AT_FIRST.get(page, PLACES["RUN"])}

    def follow(self, text: str) -> str:
        """Do a command; what it prints."""
        if text in INSTEAD:
            self.places["RUN"] = INSTEAD[text]
        words = docs_tools.words(text, self.places, self.follow, Path.cwd())
        while "=" in words[0]:
            words.pop(0)
        if words[0] == "torchrun":
            words = words[words.index("-m") + 1 :]
        words = words[1:]
        result = docs_tools.run(self.cli, [*words, *caps(words)])
        self.ran += 1
        if words[0] == "train":
            self.places["RUN"] = str(max(Path("runs").iterdir(), key=lambda path: path.stat().st_mtime_ns))
        return str(result.stdout).strip()


def caps(words: list[str]) -> list[str]:
    """What is added to a command, so that it is done in a second."""
    if words[0] == "train" and not Path(words[1]).is_dir():
        found = config.load_config(words[1])
        if not found.task:
            features = [] if words[1] == "mean_color" else ["-o", "scoring.options.features=pixels@8"]
            return ["-o", "training.total_kimg=0.02", *features]
        nets = [word for key, value in NETS.get(found.model, {}).items() for word in ("-o", f"network.{key}={value}")]
        return [*SMALL, *nets]
    if words[0] == "train":
        return ["-o", "training.total_kimg=0.008"]
    added = CAPS.get(words[0], [])
    if words[0] == "score" and ("--inverter" in words or words[1] in config.trained_models()):
        added = [*added, "--max-images", "6"]
    if "--inverter" in words:
        added = [*added, "-o", "scoring.options.steps=1", "-o", "scoring.options.perceptual=efficientnet_lite0"]
    if "--real-vs-synthetic" in words:
        nets = [word for key, value in NETS["densenet121"].items() for word in ("-o", f"network.{key}={value}")]
        added = [*added, "--kimg", "0.004", "-o", "training.batch=4", *nets]
    if words[0] == "benchmark" and words[1] in benchmark_file.shipped():
        sets = benchmark_file.load_benchmark(words[1]).data
        added = [*added, *(word for name in sets for word in ("--data", f"{name}=patches"))]
    return list(added)


@pytest.fixture
def no_pictures(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of a small job's time goes into them; a report is made of them."""
    if page == "docs/report.md":
        return
    monkeypatch.setattr("gan_uad.plotting.pictures.triplets", lambda *_, **__: None)
    for name in ("roc", "pr", "histogram", "confusion", "calibration", "learning_curves"):
        monkeypatch.setattr(f"gan_uad.plotting.plots.{name}", lambda *_, **__: None)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("page", JOBS)
def test_commands_run(page: str, cli: Any, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    reader = Reader(cli, page)
    for text in BEFORE.get(page, []):
        reader.follow(text)
    for command in (command for command in EVERY if command.page == page):
        if not any(part in command.text for part in ONLY_CHECKED) and not (command.inline and is_mention(command)):
            reader.follow(command.text)
    for block in docs_tools.blocks(PAGES[page]):
        if block.language == "python":
            exec(compile(block.text, page, "exec"), {})


def is_mention(command: Command) -> bool:
    """A sentence that names a verb, or a form of it, without saying what it is to work on."""
    words = command.text.split()
    return "..." in words or (len(words) < 3 and words[-1] != "models")
