"""What a benchmark file may say: data sets, methods, seeds, overrides; read, checked, with errors of one line."""

from __future__ import annotations

import re
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gan_uad.config import first_error, presets_dir, read_yaml
from gan_uad.errors import UserError, near

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$"  # names become parts of folder names
Settings = dict[str, Any]  # dotted key -> value, as -o key=value; CONFIG/key is of one training of a chain


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Phantom(_Strict):
    """Procedural patches, made on first use: arguments of `write_phantom`."""

    resolution: int = Field(64, ge=16, le=512)
    train: int = Field(2000, ge=1, description="normal images to train on")
    val: int = Field(200, ge=1, description="images of each kind")
    test: int = Field(300, ge=1, description="images of each kind")
    train_anomalous: int = Field(0, ge=0, description="anomalous images to train on, for contamination and classifiers")
    groups: tuple[int, int, int] = Field((40, 20, 20), description="slides of train, val and test")
    seed: int = Field(0, ge=0)


class DataEntry(_Strict):
    """One set of patches: where it is, how it is read, and where it comes from."""

    path: str | None = Field(None, description="below the folder of data sets, or absolute")
    phantom: Phantom | None = None
    set: Settings = Field({}, description="settings of every training on it, such as data.crop")
    split: Literal["own", "by_patch"] = Field(
        "own", description="by_patch: dealt 60/20/20 patch by patch, whatever groups there are (not an honest test)"
    )
    get: str = Field("", description="where it comes from and what it must look like, for whoever lacks it")
    note: str = Field("", description="what readers of the table must know")

    @model_validator(mode="after")
    def _one_origin(self) -> DataEntry:
        if (self.path is None) == (self.phantom is None):
            raise ValueError("give either path or phantom")
        return self


class Step(_Strict):
    """One training of a chain: a configuration (preset or YAML file), or a finished run or model file."""

    config: str | None = None
    run: str | None = Field(
        None, description="may hold {data}, {method}, {seed} and wildcards; the last match by name is taken"
    )

    @model_validator(mode="before")
    @classmethod
    def _named(cls, raw: Any) -> Any:
        return {"config": raw} if isinstance(raw, str) else raw

    @model_validator(mode="after")
    def _one_origin(self) -> Step:
        if (self.config is None) == (self.run is None):
            raise ValueError("give the name of a configuration, or run: and a path")
        return self


class Scoring(_Strict):
    """One way in which a trained run is scored."""

    inverter: str | None = None
    set: Settings = Field({}, description="scoring.* settings")
    maps: bool = Field(False, description="make maps; with them pixel figures, where the data has masks")


class Range(_Strict):
    """Values of a random search."""

    low: float
    high: float
    log: bool = Field(False, description="drawn evenly in the logarithm")
    whole: bool = Field(False, description="rounded to whole numbers")

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low > self.high or (self.log and self.low <= 0):
            raise ValueError("low must not exceed high, and be above 0 where log is true")
        return self


class Search(_Strict):
    """Settings tried, one of which is chosen on validation images; the test split is read for that one alone."""

    grid: dict[str, list[Any]] = Field({}, description="key -> values; every combination is tried")
    random: dict[str, Range | list[Any]] = Field({}, description="key -> values, or low and high")
    attempts: int = Field(8, ge=1, description="of a random search")
    seed: int = Field(0, ge=0, description="of a random search")
    by: Literal["auroc", "judgement"] = Field(
        "auroc",
        description="auroc: on the val split, which then needs labels of both kinds; judgement: the run's own best (training.eval_kimg)",
    )

    @model_validator(mode="after")
    def _one_way(self) -> Search:
        if bool(self.grid) == bool(self.random):
            raise ValueError("give either grid or random")
        if not all([*self.grid.values(), *(v for v in self.random.values() if isinstance(v, list))]):
            raise ValueError("a key has no values to try")
        return self


class Trained(_Strict):
    """What is trained (default: the preset of its own name), with which settings."""

    train: list[Step] = Field([], description="a chain: each training is given the run before as its generator")
    set: Settings = {}
    data: list[str] | None = Field(None, description="only on these data sets")

    @field_validator("train", mode="before")
    @classmethod
    def _one_or_more(cls, raw: Any) -> Any:
        return raw if isinstance(raw, list) else [raw]


class Method(Trained):
    """What is trained, and how it is scored."""

    score: dict[str, Scoring] = Field({}, description="ways of scoring the same run, by name; default: the run's own")
    search: Search | None = None
    seeds: list[int] | None = Field(None, description="instead of those of the file")
    overrides: dict[str, Settings] | None = Field(None, description="instead of those of the file")


class Generation(_Strict):
    """Table 1: how far generated images are from real ones, as `gan-uad fid` tells it."""

    generators: list[str] = Field([], description="of `generators` or `methods`; default: all of `generators`")
    features: list[str] = Field(["efficientnet_lite0"], min_length=1, description="networks, each a row of its own")
    num: int = Field(50_000, ge=4, description="images that each generator makes")
    data: list[str] | None = Field(None, description="only on these data sets")


class Classification(_Strict):
    """Table 2 and the real-vs-synthetic classifier, as `gan-uad classify` makes them."""

    classifier: str | None = Field(None, description="of `methods` or `generators`; with it normal and anomalous")
    normal: str | None = Field(None, description="generator of normal patches")
    anomalous: str | None = Field(None, description="generator of anomalous patches")
    num: int = Field(10_000, ge=2, description="real patches, and synthesised ones, at most")
    real_vs_synthetic: list[str] = Field(
        [], description="generators whose images a classifier learns to tell from real ones"
    )
    preset: str | None = Field(None, description="of that classifier")
    kimg: float | None = Field(None, gt=0, description="how long that classifier is trained")
    data: list[str] | None = Field(None, description="only on these data sets")

    @model_validator(mode="after")
    def _all_three(self) -> Classification:
        given = [name is not None for name in (self.classifier, self.normal, self.anomalous)]
        if any(given) != all(given) or not (any(given) or self.real_vs_synthetic):
            raise ValueError("give classifier, normal and anomalous together, or real_vs_synthetic, or both")
        return self


class Benchmark(_Strict):
    """Methods x data sets x seeds x overrides."""

    name: str = Field(pattern=NAME)
    about: str = ""
    data: dict[str, DataEntry]
    methods: dict[str, Method]
    generators: dict[str, Trained] = Field({}, description="trained for the two sections below, and not scored")
    generation: Generation | None = None
    classification: list[Classification] = Field([], description="one, or several")
    seeds: list[int] = [0]
    overrides: dict[str, Settings] = Field({}, description="sets of settings by name; each multiplies the methods")
    set: Settings = Field({}, description="settings of every training")
    kimg: float | None = Field(None, gt=0, description="no training is longer")
    max_images: int | None = Field(None, ge=2, description="at most so many images are scored, drawn at random")
    resamples: int = Field(1000, ge=100, description="of the bootstrap")

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, raw: Any) -> Any:
        """A method or generator may be named without anything behind it."""
        if isinstance(raw, dict) and isinstance(raw.get("classification"), dict):
            raw = {**raw, "classification": [raw["classification"]]}
        for key in ("methods", "generators"):
            if isinstance(raw, dict) and isinstance(raw.get(key), dict):
                raw = {**raw, key: {name: {} if one is None else one for name, one in raw[key].items()}}
        return raw


def shipped() -> dict[str, Path]:
    """The benchmark files of the package, by bare name."""
    return {file.stem: file for file in sorted((presets_dir() / "benchmarks").glob("*.yaml"))}


def load_benchmark(source: str, reduced: bool = False) -> Benchmark:
    """Read a benchmark by bare name or path; `reduced`: with what it says under `reduced` put over the rest (null takes a key out).

    Raises `UserError` for an unknown name, unreadable YAML, an unknown key (with near names) or a wrong value.
    """
    path = Path(source)
    if path.suffix not in {".yaml", ".yml"}:
        if source not in shipped():
            raise UserError(f"no benchmark is called {source!r} (and it is no .yaml file): {near(source, shipped())}")
        path = shipped()[source]
    raw = read_yaml(path)
    less = raw.pop("reduced", None)
    if reduced:
        if not isinstance(less, dict):
            raise UserError(f"{source} has no part `reduced`: leave --reduced out, or cap its trainings with --kimg")
        raw = _merged(raw, less)
    try:
        found = Benchmark.model_validate({"name": path.stem, **raw})
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(error)}") from None
    _check(found, source)
    return found


def _merged(raw: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(raw)
    for key, value in over.items():
        if value is None:
            result.pop(key, None)
            continue
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result


def _check(found: Benchmark, context: str) -> None:
    """What the types do not tell. Raises `UserError`."""
    for what, count in (("data", len(found.data)), ("methods", len(found.methods))):
        if not count:
            raise UserError(f"{context}: {what} is empty: there is nothing to compare")
    named: list[tuple[str, list[str]]] = [
        ("data", list(found.data)), ("methods", list(found.methods)), ("overrides", list(found.overrides)),
        ("generators", list(found.generators)),
    ]  # fmt: skip
    for name, method in found.methods.items():
        named += [
            (f"methods.{name}.score", list(method.score)),
            (f"methods.{name}.overrides", list(method.overrides or {})),
        ]
    for place, names in named:
        for name in names:
            if not _is_name(name):
                raise UserError(
                    f"{context}: {place}: the name {name!r} becomes part of a folder's: use letters, digits and _ . + -"
                )
    _check_sections(found, context)
    for name, generator in found.generators.items():
        _check_data(generator.data, found, f"{context}: generators.{name}")
    for name, method in found.methods.items():
        _check_data(method.data, found, f"{context}: methods.{name}")
        for variant, scoring in method.score.items():
            for key in scoring.set:
                if not key.startswith(("scoring.", "data.")):
                    raise UserError(
                        f"{context}: methods.{name}.score.{variant}.set: {key!r} is no setting of a scoring (scoring.*); "
                        f"those of a training are in methods.{name}.set"
                    )


def _check_data(names: list[str] | None, found: Benchmark, context: str) -> None:
    for data in names or []:
        if data not in found.data:
            raise UserError(f"{context}.data: no data set is called {data!r}: {near(data, found.data)}")


def _check_sections(found: Benchmark, context: str) -> None:
    """What `generation` and `classification` name is there, and can be trained without a choice. Raises `UserError`."""
    known = {**found.methods, **found.generators}
    named: list[tuple[str, str]] = []
    if (first := found.generation) is not None:
        _check_data(first.data, found, f"{context}: generation")
        named += [("generation.generators", name) for name in first.generators]
        if not (first.generators or found.generators):
            raise UserError(f"{context}: generation: there is no generator: name some, or add generators")
    for second in found.classification:
        _check_data(second.data, found, f"{context}: classification")
        three = [(key, getattr(second, key)) for key in ("classifier", "normal", "anomalous")]
        three += [("real_vs_synthetic", name) for name in second.real_vs_synthetic]
        named += [(f"classification.{key}", name) for key, name in three if name is not None]
    for place, name in named:
        if name not in known:
            raise UserError(f"{context}: {place}: no generator or method is called {name!r}: {near(name, known)}")
        if isinstance(one := known[name], Method) and one.search is not None:
            raise UserError(
                f"{context}: {place}: {name} is searched for, so no single run can be judged; add it to generators"
            )


def _is_name(name: str) -> bool:
    return re.fullmatch(NAME, name) is not None


def _explain(error: ValidationError) -> str:
    """The first error of several in one line, an unknown key with near names."""
    first, more = first_error(error)
    parts = [str(part) for part in first["loc"] if not (isinstance(part, str) and part.startswith("list["))]
    context = ".".join(parts)
    if first["type"] == "extra_forbidden":
        known = _model_at(first["loc"][:-1]).model_fields
        return f"unknown key {context!r}: {near(parts[-1], known)}{more}"
    if first["type"] == "missing":
        return f"key {context!r} is missing{more}"
    message = first["msg"].removeprefix("Value error, ")
    got = "" if first["type"] == "value_error" else f", got {first['input']!r}"
    return f"{context or 'the file'}: {message[0].lower()}{message[1:]}{got}{more}"


def _model_at(loc: tuple[int | str, ...]) -> type[BaseModel]:
    """The model that a pydantic location leads to."""
    at: Any = Benchmark
    for part in loc:
        if get_origin(at) in (Union, types.UnionType):
            at = next(kind for kind in get_args(at) if kind is not type(None))
        if isinstance(at, type) and issubclass(at, BaseModel):
            at = at.model_fields[str(part)].annotation if part in at.model_fields else at
        elif get_origin(at) in (dict, list):
            at = get_args(at)[-1]
    kinds = [kind for kind in (get_args(at) or (at,)) if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return kinds[0]
