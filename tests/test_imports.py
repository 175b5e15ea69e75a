"""Imports: quick start-up, declared dependencies, and no package outside the contracts."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "torchvision", "numpy", "scipy", "sklearn", "skimage", "matplotlib", "h5py", "PIL", "tensorboard")


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def modules() -> Iterator[tuple[str, Path]]:
    for package in ("gan_uad", "encoders"):
        for file in sorted((ROOT / package).rglob("*.py")):
            yield ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), file


def heavy_after(script: str) -> list[str]:
    """Which of the heavy packages a fresh interpreter has imported after `script`."""
    check = f"{script}\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_check_itself_sees_imports() -> None:
    assert heavy_after("import numpy") == ["numpy"]


def test_registry_knows_names_without_importing_their_files() -> None:
    script = "import gan_uad\nassert {'dcgan', 'wgan_gp'} <= set(gan_uad.models()), gan_uad.models()"
    assert heavy_after(script) == []


@pytest.mark.parametrize("argv", [[], ["--help"], ["train", "--help"], ["models"]])
def test_command_line_starts_light(argv: list[str]) -> None:
    script = "from gan_uad.cli.main import main\n"
    if argv:
        script += f"""if True:
            import contextlib, io, sys
            sys.argv[1:] = {argv!r}
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    main()
            except SystemExit as leave:
                assert not leave.code, leave.code
        """
    assert heavy_after(script) == []


def test_every_import_is_a_declared_dependency() -> None:
    """An import that works only because another package depends on it breaks for the next user."""
    project = pyproject()["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["timm"]  # imported only where it is installed
    declared = {_normal(re.match(r"[\w.-]+", line).group()) for line in lines}  # type: ignore[union-attr]
    owners = importlib.metadata.packages_distributions()
    undeclared = {
        f"{module} imports {name}"
        for module, file in modules()
        for name in _third_party(file)
        if not declared & {_normal(owner) for owner in owners.get(name, [name])}
    }
    assert sorted(undeclared) == []


def test_every_room_is_in_the_layers_contract() -> None:
    (contract,) = (c for c in pyproject()["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    named = set(re.findall(r"[\w.]+", " ".join(contract["layers"])))
    rooms = {".".join(module.split(".")[:2]) for module, _ in modules() if module.startswith("gan_uad.")}
    assert sorted(rooms - named) == []


def _third_party(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module]
        for name in names:
            top = name.partition(".")[0]
            if top not in sys.stdlib_module_names and top not in {"gan_uad", "encoders"}:
                yield top


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
