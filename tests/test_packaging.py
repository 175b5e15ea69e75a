"""The wheel, installed where the checkout is not visible: its contents, and that presets and commands work from it.

Nothing is downloaded: the wheel is built without isolation, and its dependencies are those of the environment that runs the tests.
"""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import gan_uad

ROOT = Path(__file__).parents[1]
SHIPPED = ("gan_uad", "encoders")


def run(*command: object, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP_"))}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since a build leaves folders behind, and stale ones of the checkout would be included."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in (*SHIPPED, "configs", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "models" / "one").mkdir(parents=True)
    (source / "models" / "one" / "model.safetensors").write_bytes(b"\0")
    pip = (sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation")
    run(*pip, "--wheel-dir", out, source, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def contents(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def venv(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty environment with the wheel in it. A .pth lets it see the dependencies, but not an editable checkout:
    a folder that a .pth names is searched for packages, its own .pth files are not read."""
    folder = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install")
    run(*pip, "--no-index", "--no-deps", wheel, cwd=folder)
    (packages,) = (folder / "lib").glob("python3.*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return folder


def test_everything_of_the_package_is_inside(contents: set[str]) -> None:
    files = [file for name in SHIPPED for file in (ROOT / name).rglob("*") if file.is_file()]
    wanted = {str(file.relative_to(ROOT)) for file in files if "__pycache__" not in file.parts}
    wanted |= {f"gan_uad/{file.relative_to(ROOT)}" for file in (ROOT / "configs").rglob("*.yaml")}
    assert sorted(wanted - contents) == [], "add the new package to [tool.setuptools] in pyproject.toml"


def test_nothing_else_is_inside(contents: set[str]) -> None:
    tops = {name.partition("/")[0] for name in contents}
    assert tops == {*SHIPPED, f"gan_uad-{gan_uad.__version__}.dist-info"}


def test_licence_is_inside(wheel: Path, contents: set[str]) -> None:
    (licence,) = (name for name in contents if name.endswith("/LICENSE"))
    archive = zipfile.ZipFile(wheel)
    assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
    metadata = archive.read(f"gan_uad-{gan_uad.__version__}.dist-info/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata.splitlines()


def test_presets_load_from_the_wheel(venv: Path, tmp_path: Path) -> None:
    script = (
        "import json; from gan_uad import config; "
        "print(json.dumps([str(config.presets_dir()), {name: config.load_config(name).name for name in config.presets()}]))"
    )
    folder, names = json.loads(run(venv / "bin" / "python", "-c", script, cwd=tmp_path))
    assert Path(folder).is_relative_to(venv)
    assert set(names) == {file.stem for file in (ROOT / "configs").glob("*.yaml")}
    assert names


def test_presets_load_from_the_checkout() -> None:
    script = (
        "from gan_uad import config; print(len(config.presets()), [config.load_config(n) for n in config.presets()])"
    )
    assert int(run(sys.executable, "-c", script, cwd=ROOT).split()[0]) > 0


def test_commands_of_the_wheel_answer(venv: Path, tmp_path: Path) -> None:
    by_module = run(venv / "bin" / "python", "-m", "gan_uad", "--help", cwd=tmp_path)
    by_script = run(venv / "bin" / "gan-uad", "--help", cwd=tmp_path)
    for text in (by_module, by_script):
        assert [name for name in ("train", "score", "evaluate", "demo", "doctor", "models") if name not in text] == []
    assert "wgan_gp" in run(venv / "bin" / "gan-uad", "models", cwd=tmp_path)


def test_citation_names_this_version() -> None:
    assert f"version: {gan_uad.__version__}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
