"""Names to classes. Imports only errors and old names of the package, and imports a family's file only when it is needed.

A class is registered by a decorator with a literal name on the line above it:

    @register("wgan_gp")
    class WGANGP(nn.Module): ...

The files of a package are *read*, not imported, to find their names, so that `gan_uad.models()` and `--help` never import torch.
Third parties add classes through the entry-point group `gan_uad.models`: an entry point `name = "module"` names a module with
decorated classes, which is read in the same way.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from gan_uad import old_names
from gan_uad.errors import UserError, near

KINDS = ("network", "task", "features", "scorer", "inverter")
PACKAGES = ("gan_uad.networks", "gan_uad.training", "gan_uad.features", "gan_uad.scoring", "encoders")
ENTRY_POINT_GROUP = "gan_uad.models"

T = TypeVar("T", bound=type)


@dataclass(frozen=True)
class Entry:
    """A registered name: `kind` (one of `KINDS`), module, class name, and the first line of its docstring."""

    kind: str
    name: str
    module: str
    qualname: str
    summary: str


def register(name: str, kind: str = "network") -> Callable[[T], T]:
    """Class decorator: register the class as `name` of this `kind`. Both must be literals: they are read, not run."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; known: {', '.join(KINDS)}")

    def mark(cls: T) -> T:
        return cls

    return mark


def entries(kind: str) -> list[Entry]:
    """All registered names of one kind, sorted, without importing their files."""
    return sorted(_catalogue()[kind].values(), key=lambda e: e.name)


def find(kind: str, name: str) -> Any:
    """The class registered as `name`. Raises `UserError` with near matches when there is none."""
    known, name = _catalogue()[kind], old_names.registered(kind, name)
    if name not in known:
        raise UserError(f"no {kind} is called {name!r}: {near(name, known)}")
    entry = known[name]
    return getattr(importlib.import_module(entry.module), entry.qualname)


def build(kind: str, name: str, options: dict[str, Any], **given: Any) -> Any:
    """Construct the class registered as `name` from a user's `options` and the arguments `given` by the program.

    The result has a `spec` (name and options), from which the same object can be built again.
    Raises `UserError` for an option that the class does not have (with near matches) or rejects (`ValueError`).
    """
    cls = find(kind, name)
    checked = check_options(cls, options, f"{kind} {name}", tuple(given))
    try:
        built = cls(**given, **checked)
    except (ValueError, TypeError) as error:
        raise UserError(f"{kind} {name}: {error}") from error
    built.spec = {"name": old_names.registered(kind, name), "options": options}
    return built


def check_options(
    cls: Callable[..., Any], options: dict[str, Any], context: str, given: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The options converted to the types that `cls` declares: 5.0 for a float given as 5, a tuple for a list.

    Raises `UserError` for a key that is no keyword argument of `cls`, or that the program gives itself, and for a wrong type.
    """
    from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

    parameters = inspect.signature(cls).parameters.values()
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in given]
    hints = get_type_hints(cls.__init__)
    checked = {}
    for key, value in options.items():
        if key not in known:
            raise UserError(f"{context} has no option {key!r}: {near(key, known)}")
        try:
            checked[key] = TypeAdapter(hints.get(key, Any)).validate_python(value)
        except PydanticSchemaGenerationError:  # an object, which no configuration can express
            raise UserError(f"{context}, option {key}: it cannot be given in a configuration") from None
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise UserError(f"{context}, option {key}: {reason[0].lower()}{reason[1:]}, got {value!r}") from None
    return checked


@functools.cache
def _catalogue() -> dict[str, dict[str, Entry]]:
    found: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}
    for module, file in _files():
        for entry in _read(module, file):
            other = found[entry.kind].setdefault(entry.name, entry)
            if other != entry:
                raise UserError(f"two {entry.kind}s are called {entry.name!r}: in {other.module} and in {entry.module}")
    return found


def _files() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for file in sorted(Path(folder).glob("*.py")):
                yield f"{package}.{file.stem}", file
    for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            spec = importlib.util.find_spec(point.value)
        except ModuleNotFoundError:  # a parent package is missing
            spec = None
        if spec and spec.origin:
            yield point.value, Path(spec.origin)


def _read(module: str, file: Path) -> Iterator[Entry]:
    source = file.read_text(encoding="utf-8")
    if "@register(" not in source:
        return
    try:
        body = ast.parse(source, filename=str(file)).body
    except SyntaxError as error:  # a file that is being edited must not give every command a traceback
        raise UserError(f"{file}, line {error.lineno}: {error.msg}") from None
    for node in body:
        if not isinstance(node, ast.ClassDef):
            continue
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", None) == "register":
                values = [ast.literal_eval(a) for a in decorator.args] + [
                    ast.literal_eval(k.value) for k in decorator.keywords
                ]
                name, kind = (*values, "network")[:2]
                doc = ast.get_docstring(node) or ""
                yield Entry(kind, name, module, node.name, doc.partition("\n")[0])
