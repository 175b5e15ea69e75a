"""The keys of a benchmark file: data sets, methods, seeds, overrides; read and checked, with errors of one line."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from gan_uad import console, old_names
from gan_uad.config import first_error, presets_dir, read_yaml
from gan_uad.errors import UserError, near


@cache
def _note(name: str) -> None:
    """Say once in a process what an old name is called now."""
    for note in old_names.renamed([name]):
        console.note(note)


def preset(name: str) -> str:
    """The name of a preset today."""
    _note(name)
    return old_names.preset(name)


def _keys(values: dict[str, Any]) -> dict[str, Any]:
    """Settings under the names of today."""
    found = {}
    for name, value in values.items():
        config, slash, key = name.rpartition("/")
        _note(key)
        found[f"{preset(config)}{slash}{old_names.setting(key)}"] = value
    return found


def _word(value: Any) -> Any:
    return old_names.BENCHMARK.get(value, value) if isinstance(value, str) else value


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]  # names become parts of folder names
Preset = Annotated[str, AfterValidator(preset)]
Inverter = Annotated[str, AfterValidator(lambda name: old_names.registered("inverter", name))]
# Dotted key -> value, as -o key=value; CONFIG/key is of one training of a chain.
Settings = Annotated[dict[str, Any], AfterValidator(_keys)]
Values = Annotated[list[Any], Field(min_length=1)]


def _once(seeds: list[int]) -> list[int]:
    """Counted twice, a seed would make the spread over seeds too small."""
    for seed in seeds:
        if seeds.count(seed) > 1:
            raise ValueError(f"seed {seed} is named more than once: name each seed once")
    return seeds


Seeds = Annotated[list[int], Field(min_length=1), AfterValidator(_once)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, raw: Any) -> Any:
        for key in raw if isinstance(raw, dict) else ():
            if key not in cls.model_fields:
                raise ValueError(f"unknown key {key!r}: {near(str(key), cls.model_fields)}")
        return raw


class Phantom(_Strict):
    """Procedural patches, generated on first use: arguments of `write_phantom`."""

    resolution: int = Field(64, ge=16, le=512)
    train: int = Field(2000, ge=1, description="normal images to train on")
    val: int = Field(200, ge=1, description="images of each kind")
    test: int = Field(300, ge=1, description="images of each kind")
    train_anomalous: int = Field(0, ge=0, description="anomalous images to train on, for contamination and classifiers")
    groups: tuple[int, int, int] = Field((40, 20, 20), description="slides of train, val and test")
    seed: int = Field(0, ge=0)


class DataEntry(_Strict):
    """One set of patches: its place, how it is read, and its origin."""

    path: str | None = Field(None, description="below the folder of data sets, or absolute")
    phantom: Phantom | None = None
    set: Settings = Field({}, description="settings of every training on it, such as data.crop")
    split: Literal["own", "by_patch"] = Field(
        "own", description="by_patch: split 60/20/20 by patch and not by group, which is no honest test"
    )
    get: str = Field("", description="how to get it, and its expected form")
    note: str = Field("", description="what readers of the table must know")

    @model_validator(mode="after")
    def _one_origin(self) -> DataEntry:
        if (self.path is None) == (self.phantom is None):
            raise ValueError("give either path or phantom")
        return self


class Step(_Strict):
    """One training of a chain: a configuration (preset or YAML file), or a finished run or model file."""

    config: Preset | None = None
    run: str | None = Field(
        None, description="may hold {data}, {method}, {seed} and wildcards; the last match by name is used"
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
    """One way to score a trained run."""

    inverter: Inverter | None = None
    set: Settings = Field({}, description="scoring.* settings")
    maps: bool = Field(False, description="write maps; they give pixel metrics where the data has masks")

    @field_validator("set")
    @classmethod
    def _of_scoring(cls, settings: dict[str, Any]) -> dict[str, Any]:
        for key in settings:
            if not key.startswith(("scoring.", "data.")):
                raise ValueError(f"{key!r} is not scoring.*; settings of a training go into `set` of the method")
        return settings


class Range(_Strict):
    """Values of a random search."""

    low: float
    high: float
    log: bool = Field(False, description="drawn evenly in the logarithm")
    whole: bool = Field(False, description="rounded to whole numbers")

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low > self.high or (self.log and self.low <= 0):
            raise ValueError("low must not exceed high, and must be above 0 where log is true")
        return self


class Search(_Strict):
    """Settings to try. One attempt is chosen on validation images; the test split is read for that one alone."""

    grid: Annotated[dict[str, Values], AfterValidator(_keys)] = Field({}, description="every combination is tried")
    random: Annotated[dict[str, Range | Values], AfterValidator(_keys)] = Field({}, description="draws of each key")
    attempts: int = Field(8, ge=1, description="of a random search")
    seed: int = Field(0, ge=0, description="of a random search")
    by: Annotated[Literal["auroc", "validation"], BeforeValidator(_word)] = Field(
        "auroc",
        description="auroc: on the val split, which needs both labels; validation: the run's own (training.eval_kimg)",
    )

    @model_validator(mode="after")
    def _one_way(self) -> Search:
        if bool(self.grid) == bool(self.random):
            raise ValueError("give either grid or random")
        return self


class Trained(_Strict):
    """What is trained (default: the preset of its own name), with which settings."""

    train: list[Step] = Field([], description="a chain: each training gets the run before it as its generator")
    set: Settings = {}
    data: list[str] | None = Field(None, description="only on these data sets")

    @field_validator("train", mode="before")
    @classmethod
    def _one_or_more(cls, raw: Any) -> Any:
        return raw if isinstance(raw, list) else [raw]


class Method(Trained):
    """What is trained, and how it is scored."""

    score: dict[Name, Scoring] = Field({}, description="ways to score the same run, by name; default: the run's own")
    search: Search | None = None
    seeds: Seeds | None = Field(None, description="instead of those of the file")
    overrides: dict[Name, Settings] | None = Field(None, description="instead of those of the file")


class Generation(_Strict):
    """Table 1: the distance of generated from real images, as `gan-uad fid` computes it."""

    generators: list[str] = Field([], description="of `generators` or `methods`; default: all of `generators`")
    features: list[str] = Field(["efficientnet_lite0"], min_length=1, description="networks, one row each")
    num: int = Field(50_000, ge=4, description="images of each generator")
    data: list[str] | None = Field(None, description="only on these data sets")


class Classification(_Strict):
    """Table 2 and the classifier of real and generated images, as `gan-uad classify` and `real-vs-synthetic` compute them."""

    classifier: str | None = Field(None, description="of `methods` or `generators`; with normal and anomalous")
    normal: str | None = Field(None, description="generator of normal patches")
    anomalous: str | None = Field(None, description="generator of anomalous patches")
    num: int = Field(10_000, ge=2, description="real patches, and generated ones, at most")
    real_vs_synthetic: list[str] = Field([], description="generators whose images a classifier tells from real ones")
    preset: Preset | None = Field(None, description="of that classifier")
    kimg: float | None = Field(None, gt=0, description="length of that classifier's training")
    data: list[str] | None = Field(None, description="only on these data sets")

    @property
    def table2(self) -> list[str]:
        """Classifier, normal and anomalous generator, or nothing."""
        return [name for name in (self.classifier, self.normal, self.anomalous) if name is not None]

    @model_validator(mode="after")
    def _all_three(self) -> Classification:
        if len(self.table2) not in {0, 3} or not (self.table2 or self.real_vs_synthetic):
            raise ValueError("give classifier, normal and anomalous together, or real_vs_synthetic, or both")
        return self


class Benchmark(_Strict):
    """Methods x data sets x seeds x overrides."""

    name: Name
    about: str = ""
    data: dict[Name, DataEntry] = Field(min_length=1)
    methods: dict[Name, Method] = Field(min_length=1)
    generators: dict[Name, Trained] = Field({}, description="trained for the two sections below, and not scored")
    generation: Generation | None = None
    classification: list[Classification] = Field([], description="one, or several")
    seeds: Seeds = [0]
    overrides: dict[Name, Settings] = Field({}, description="sets of settings by name; each multiplies the methods")
    set: Settings = Field({}, description="settings of every training")
    kimg: float | None = Field(None, gt=0, description="largest length of a training")
    max_images: int | None = Field(None, ge=2, description="largest number of scored images, drawn at random")
    resamples: int = Field(1000, ge=100, description="of the bootstrap")

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, raw: Any) -> Any:
        """A method or generator may be named without anything behind it, and one classification without a list."""
        if not isinstance(raw, dict):
            return raw
        for key in ("methods", "generators"):
            if isinstance(raw.get(key), dict):
                raw = {**raw, key: {name: {} if one is None else one for name, one in raw[key].items()}}
        one = raw.get("classification")
        return {**raw, "classification": [one]} if isinstance(one, dict) else raw


def shipped() -> dict[str, Path]:
    """The benchmark files of the package, by bare name."""
    return {file.stem: file for file in sorted((presets_dir() / "benchmarks").glob("*.yaml"))}


def load_benchmark(source: str, reduced: bool = False) -> Benchmark:
    """Read a benchmark by bare name or path; `reduced`: with its section `reduced` merged over the rest (null removes a key).

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
            raise UserError(f"{source} has no section `reduced`: omit --reduced, or shorten its trainings with --kimg")
        raw = _merged(raw, less)
    try:
        found = Benchmark.model_validate({"name": path.stem, **raw})
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(error)}") from None
    _check_names(found, source)
    return found


def _merged(raw: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = {key: value for key, value in raw.items() if over.get(key, "") is not None}
    for key, value in over.items():
        if value is not None:
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = _merged(result[key], value) if both else value
    return result


def _check_names(found: Benchmark, context: str) -> None:
    """Check that what a section names exists, and that compared generators are trained without a search. Raises `UserError`."""

    def check(place: str, names: list[str] | None, known: Mapping[str, Any], what: str) -> None:
        for name in names or []:
            if name not in known:
                raise UserError(f"{context}: {place}: no {what} is called {name!r}: {near(name, known)}")
            if getattr(known[name], "search", None) is not None:
                raise UserError(
                    f"{context}: {place}: {name} has a search and so no single run: add one without to generators"
                )

    trained = {**found.methods, **found.generators}
    for section, members in (("methods", found.methods), ("generators", found.generators)):
        for name, one in members.items():
            check(f"{section}.{name}.data", one.data, found.data, "data set")
    if (first := found.generation) is not None:
        check("generation.data", first.data, found.data, "data set")
        check("generation.generators", first.generators, trained, "generator or method")
        if not (first.generators or found.generators):
            raise UserError(f"{context}: generation: name generators, or add the section generators")
    for second in found.classification:
        check("classification.data", second.data, found.data, "data set")
        check("classification", second.table2, trained, "generator or method")
        check("classification.real_vs_synthetic", second.real_vs_synthetic, trained, "generator or method")


def _explain(error: ValidationError) -> str:
    """The first of several errors in one line."""
    first, more = first_error(error)
    context = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("list[", "[key]")))
    if first["type"] == "missing":
        return f"key {context!r} is missing{more}"
    message = first["msg"].removeprefix("Value error, ")
    got = "" if first["type"] in {"value_error", "too_short"} else f", got {first['input']!r}"
    return f"{context or 'the file'}: {message[0].lower()}{message[1:]}{got}{more}"
