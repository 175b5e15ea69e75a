"""Every command in README.md and docs/ is parsed and checked as the program itself would. Those of README.md are also run.

They run on small synthetic data, under the documented names. A test only adds limits of time and size (`CAPS`), and replaces names in
capitals (`PLACES`). `ONLY_CHECKED` lists what is not run, and why.
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
import numpy as np
import pytest
import yaml
from docs_tools import ROOT, Command
from PIL import Image
from safetensors import safe_open

from gan_uad import config, old_names, registry
from gan_uad.benchmark import schema as benchmark_file
from gan_uad.cli import main as program
from gan_uad.cli.options import OLD_SPELLINGS
from gan_uad.data import catalogue
from gan_uad.features import weights
from gan_uad.generation import generate
from gan_uad.metrics.detection import parse_threshold
from gan_uad.training import train

PAGES = docs_tools.pages()
EVERY = [command for page, text in PAGES.items() for command in docs_tools.commands(page, text)]

# What names in capitals stand for. RUN is the latest run of README.md.
PLACES = {
    "RUN": "pcam_stylegan2_64_small", "GENERATOR": "pcam_stylegan2_64_small", "CLASSIFIER": "pcam_densenet_64_small", "VAE": "vae",
    "RUN_OF_CNN_256": "cnn_256", "DATA": "patches", "PATCHES": "patches", "OTHER": "colon", "IMAGES": "images", "SCORES": "scores",
    "FID": "fid", "SLIDES": "slides/test/test.svs", "ANNOTATIONS": "slides/xml", "PRESET": "wgan_gp_64_small", "CONFIG": "wgan_gp_64_small",
    "NAME": "pcam", "BENCHMARK": "phantom", "N": "1", "KIMG": "1", "DIR": ".", "FOLDER": "figures", "WALK.gif": "walk.gif",
    "ZIP": "patches.zip", "FILE": "scores.csv", "$seed": "0", "runs/...": "runs/00000-x",
}  # fmt: skip

# Commands of README.md that are only parsed and checked.
ONLY_CHECKED = {
    "make ": "installs an environment; .ci/run runs both targets",
    "pip ": "installs; extras are compared with pyproject.toml",
    "-m venv": "makes an environment",
    "source ": "sets variables of a shell",
    "gan-uad demo": "a minute even with --quick; .ci/run runs it",
    "gan-uad download": "fetches gigabytes; tests/test_download_cli.py fetches from a server of its own",
    "gan-uad weights": "looks at what this machine has; tests/test_weights.py",
    "gan-uad doctor": "measures the machine for seconds; tests/test_doctor.py",
    "gan-uad benchmark": "makes the phantom; tests/test_benchmark_cli.py",
    "gan-uad cross-validate": "five trainings; tests/test_cross_validate.py",
    "gan-uad evaluate-slides": "tests/test_score_slide_cli.py",
    "gan-uad score-slide": "tests/test_score_slide_cli.py",
    "gan-uad tile": "tests/test_tile_cli.py",
    "gan-uad latents VAE": "needs one more training; tests/test_vae_cli.py",
}


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
    assert PAGES["docs/settings.md"] == module.page(), "run python scripts/settings_page.py"


def test_the_page_of_new_names_is_complete() -> None:
    registered = {(kind, *pair) for kind, names in old_names.REGISTERED.items() for pair in names.items()}
    settings = {("setting", *pair) for pair in old_names.SETTINGS.items()}
    rows = {
        tuple(re.findall(r"(?:^\| |`)(\w[^`|]*?)(?:`| \|)", line)) for line in PAGES["docs/renamed.md"].splitlines()
    }
    assert {*old_names.PRESETS.items(), *old_names.KEYS.items(), *registered, *settings} <= rows
    commands = [[cell.split() for cell in row] for row in rows if len(row) == 2]
    for (command, option), (new, renamed) in OLD_SPELLINGS.items():
        assert any(
            old[0] == command and option in old and now[0] == new and (renamed is None or renamed in now)
            for old, now in commands
        ), f"{command} {option}"


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_are_there(page: str) -> None:
    folder = (ROOT / page).parent
    targets = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", PAGES[page])
    paths = {(folder / "".join(target).partition("#")[0]) for target in targets if "://" not in "".join(target)}
    assert [str(path) for path in paths if not path.exists()] == []


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
        case "python" | "python3":
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
    context, given = parse(words, inline)
    if given is not None and context.command.name in CHECKS:
        CHECKS[context.command.name](given, own)


def parse(words: list[str], inline: bool) -> tuple[click.Context, dict[str, Any] | None]:
    """By the program's own parser, options converted; nothing is called. No values where a sentence only names the command."""
    command: click.Command = program.main
    context = click.Context(command, info_name="gan-uad")
    while isinstance(command, click.Group):
        asked = words[0]
        name, command, words = command.resolve_command(context, words)
        assert command is not None
        assert name == asked, f"an old spelling of {name}"
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

    given = get_args_parser().parse_args(words)
    if given.training_script.startswith("scripts/"):
        check_script(given.training_script, given.training_script_args)
    elif given.training_script != "...":
        assert given.module
        assert given.training_script == "gan_uad"
        check_ours(given.training_script_args, inline, own)


class Parsed(Exception):
    """A script has read its arguments."""


def check_script(name: str, words: list[str]) -> None:
    """By the script's own parser: it is started, and stopped once it has read its arguments."""
    if name == "-m":
        assert words[0] in {"gan_uad", "pytest", "pip", "venv"}
        return
    spec = importlib.util.spec_from_file_location(f"script_{Path(name).stem}", ROOT / name)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script  # its dataclasses look there
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
    """A preset or a file of the page, its overrides, and each option of network, task and scorer; of a run, that they can be overridden."""
    old = old_names.renamed([source, *(override.partition("=")[0] for override in overrides)])
    assert not old, "; ".join(old)
    if source in own:
        raw = yaml.safe_load(own[source])
        found = config.resolve(raw, overrides, default_name=Path(source).stem, context=source)
        if found.model not in {entry.name for entry in registry.entries("network")}:
            return  # the network of the page, which tests/test_toy_model.py builds
    elif resume and source not in config.presets():
        assert all(override.partition("=")[0] in train.RESUMABLE for override in overrides), "cannot be overridden"
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
    """Each option is one of the scorer or the inverter; where none is named, of any."""
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


def check_train(given: dict[str, Any], own: dict[str, str]) -> None:
    check_config(given["config"], given["overrides"], own, given["resume"])


def check_score(given: dict[str, Any], own: dict[str, str]) -> None:
    """Of a model that is in the repository, what its own scorer takes; of others, what any does."""
    raw = {"model": "", "task": "", "training": {"total_kimg": 1}}
    for override in given["overrides"]:
        assert override.startswith(("data.", "scoring.")), f"{override} is no setting of a scoring"
    found = config.resolve(raw, given["overrides"], default_name="scoring", context="-o").scoring
    name = Path(given["run"]).stem
    assert not given["run"].startswith("models/") or (ROOT / given["run"]).is_file(), "no such model"
    if name in config.trained_models():
        with safe_open(config.trained_models()[name], framework="pt") as file:
            trained = json.loads(file.metadata()["gan_uad"])["config"]["scoring"]
        check_scoring(trained["scorer"], given["inverter"] or trained["inverter"], found.options)
    else:
        check_scoring(None, given["inverter"], found.options)
    if given.get("threshold"):
        parse_threshold(given["threshold"])


def check_project(given: dict[str, Any], own: dict[str, str]) -> None:
    raw = {"model": "", "task": "", "training": {"total_kimg": 1}}
    options = [f"scoring.options.{option}" for option in given["options"]]
    check_scoring(
        "gan_inversion", given["inverter"], config.resolve(raw, options, default_name="x", context="-o").scoring.options
    )


def check_evaluate(given: dict[str, Any], own: dict[str, str]) -> None:
    if given["threshold"]:
        parse_threshold(given["threshold"])


def check_cross_validate(given: dict[str, Any], own: dict[str, str]) -> None:
    check_config(given["config"], given["overrides"], own)
    check_evaluate(given, own)


def check_real_vs_synthetic(given: dict[str, Any], own: dict[str, str]) -> None:
    if given["preset"]:
        check_config(given["preset"], given["overrides"], own)


def check_benchmark(given: dict[str, Any], own: dict[str, str]) -> None:
    if Path(given["source"]).suffix in {".yaml", ".yml"}:
        kept = ROOT / given["source"]
        if kept.is_file():
            benchmark_file.load_benchmark(str(kept))
        else:
            assert given["source"] in {*own, "my.yaml"}, "no such file on this page, nor in the repository"
        return
    found = benchmark_file.load_benchmark(given["source"], given["reduced"])
    assert set(given["only"]) <= {*found.methods, *found.data}
    assert {text.partition("=")[0] for text in given["data"]} <= set(found.data)


def check_seeds(given: dict[str, Any], own: dict[str, str]) -> None:
    if given["seeds"]:
        generate.parse_seeds(given["seeds"])


def check_fid(given: dict[str, Any], own: dict[str, str]) -> None:
    check_features(given["features"])


def check_data(given: dict[str, Any], own: dict[str, str]) -> None:
    config.data_config(given["path"], given["overrides"])


def check_fetch(given: dict[str, Any], own: dict[str, str]) -> None:
    weights.entry(given["name"])


def check_download(given: dict[str, Any], own: dict[str, str]) -> None:
    if given["name"]:
        catalogue.entry(given["name"])


CHECKS: dict[str | None, Callable[[dict[str, Any], dict[str, str]], None]] = {
    "train": check_train,
    "score": check_score,
    "score-slide": check_score,
    "project": check_project,
    "evaluate": check_evaluate,
    "cross-validate": check_cross_validate,
    "real-vs-synthetic": check_real_vs_synthetic,
    "benchmark": check_benchmark,
    "download": check_download,
    "generate": check_seeds,
    "interpolate": check_seeds,
    "fid": check_fid,
    "check": check_data,
    "fetch": check_fetch,
}


# ---------------------------------------------------------------- run


def settings(section: str, values: dict[str, Any]) -> list[str]:
    return [word for key, value in values.items() for word in ("-o", f"{section}.{key}={value}")]


NETS = {
    "wgan_gp": {"channel_base": 64, "channel_max": 8, "z_dim": 8},
    "residual_encoder": {"channel_base": 64, "channel_max": 8},
    "densenet121": {"growth_rate": 4, "block_config": "[1,1,1,1]", "init_features": 8},
    "": {},
}
LESS = {"total_kimg": 0.004, "batch": 4, "eval_kimg": "null", "patience": "null"}
CAPS = {
    "score": ["-o", "scoring.calibration_images=12"],
    "evaluate": ["--resamples", "100"],
    "fid": ["--num", "8", "--features", "pixels@8"],
    "generate": ["--seeds", "0-3"],
    "interpolate": ["--seeds", "0-1", "--frames-between", "1"],
    "project": ["-o", "steps=1", "-o", "perceptual=efficientnet_lite0"],
    "classify": ["--num", "8"],
    "real-vs-synthetic": ["--num", "8", "--kimg", "0.004", *settings("training", LESS)[2:], *settings("network", NETS["densenet121"])],
}  # fmt: skip
# What RUN is, where it is not the latest one.
RUNS = {
    "gan-uad train izi_f_64_small --generator RUN": "runs/00001-wgan_gp_64_small",
    "gan-uad score RUN -o scoring.options.combine=fisher": "runs/00002-izi_f_64_small",
    "gan-uad score RUN DATA": "runs/00000-knn",
    "gan-uad project RUN IMAGES": "pcam_hybrid_64_small",
}


class Reader:
    """Somebody who follows README.md in a folder of their own: first the blocks, then what stands in tables and sentences."""

    def __init__(self, cli: Any) -> None:
        self.cli, self.places = cli, dict(PLACES)

    def follow(self, text: str) -> str:
        """Run a command; what it prints."""
        places = self.places | ({"RUN": RUNS[text]} if text in RUNS else {})
        words = docs_tools.words(text, places, self.follow, Path.cwd())
        words = words[words.index("-m") + 2 :] if words[0] == "torchrun" else words[1:]
        printed = str(docs_tools.run(self.cli, [*words, *caps(words)]).stdout).strip()
        if words[0] == "train":
            self.places["RUN"] = str(max(Path("runs").iterdir(), key=lambda path: path.stat().st_mtime_ns))
        if words[0] == "score":
            self.places["SCORES"] = printed
        return printed


def caps(words: list[str]) -> list[str]:
    """What is added to a command, so that it takes a second."""
    if words[0] != "train":
        few = ["--max-images", "6"] if words[0] == "score" and words[1] in config.trained_models() else []
        return [*CAPS.get(words[0], []), *few]
    if Path(words[1]).is_dir():
        return ["-o", "training.total_kimg=0.008"]
    found = config.load_config(words[1])
    if not found.task:
        return ["-o", "training.total_kimg=0.02", "-o", "scoring.options.features=pixels@8"]
    return ["-o", "resolution=64", *settings("training", LESS), *settings("network", NETS.get(found.model, {}))]


def test_commands_of_the_readme_run(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "roc",
        "pr",
        "histogram",
        "confusion",
        "calibration",
        "learning_curves",
    ):  # most of the time of a tiny job
        monkeypatch.setattr(f"gan_uad.plotting.plots.{name}", lambda *_, **__: None)
    monkeypatch.setattr("gan_uad.plotting.pictures.triplets", lambda *_, **__: None)
    rng = np.random.default_rng(0)
    for label, count, base in (("normal", 56, (200, 140, 190)), ("tumour", 6, (150, 90, 170))):
        (tmp_path / "patches" / label).mkdir(parents=True)
        for k in range(count):
            pixels = np.clip(rng.normal(base, 25, (64, 64, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "patches" / label / f"{k}.png")
    (tmp_path / "images").mkdir()
    shutil.copy(tmp_path / "patches" / "normal" / "1.png", tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    reader = Reader(cli)
    for command in sorted((command for command in EVERY if command.page == "README.md"), key=lambda one: one.inline):
        if not any(part in command.text for part in ONLY_CHECKED) and not (command.inline and is_mention(command)):
            reader.follow(command.text)
    for block in docs_tools.blocks(PAGES["README.md"]):
        if block.language == "python":
            exec(compile(block.text, "README.md", "exec"), {})


def is_mention(command: Command) -> bool:
    """Whether a sentence only names a command, or a form of it."""
    words = command.text.split()
    return "..." in words or (len(words) < 3 and words[-1] != "models")
