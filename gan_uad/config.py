"""What a run may be told: YAML in, overrides applied, a checked and fully resolved configuration out.

`load_config("wgan_gp_64", ["training.batch=32"])` is the whole interface. Unknown keys and wrong values are `UserError`s of one line.
What a network or a task may be told is checked against the constructor it goes to (`registry.check_options`), so that a new
family needs no change here.
"""

from __future__ import annotations

import copy
import difflib
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gan_uad import console, old_names
from gan_uad.errors import UserError, near

PREPROCESSING = (
    "crop",
    "crop_size",
    "resize",
    "grayscale",
)  # settings of `data` that decide what a network sees of an image


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


class DataConfig(_Strict):
    """Which patches, and how a file becomes a square uint8 RGB image of the run's resolution."""

    path: str | None = Field(None, description="folder, zip, .npz or .h5 of patches")
    crop: Literal["none", "center"] = Field("none", description="center: cut the middle `crop_size` px before resizing")
    crop_size: int | None = Field(
        None, ge=1, description="side of the centre crop in source px; default: the resolution"
    )
    resize: Literal["bicubic", "bilinear", "lanczos", "box"] = Field(
        "bicubic", description="antialiased resampling rule"
    )
    grayscale: bool = Field(False, description="drop colour (luma, repeated to three channels)")
    min_tissue: float = Field(0.0, ge=0, le=1, description="least share of tissue (not white) in a patch")
    label: Literal["normal", "anomalous", "all"] = Field(
        "normal", description="which patches a generator is trained on"
    )
    normal_classes: list[str] = Field([], description="class names that are normal, where the names do not tell")
    split_fractions: tuple[float, float, float] = Field(
        (0.6, 0.2, 0.2), description="train, val, test shares of the groups"
    )
    split_seed: int = Field(0, description="seed of the split, where the source brings none")
    folds: int | None = Field(
        None,
        ge=2,
        description="cross-validation: the groups are dealt anew into so many folds, whatever splits there are",
    )
    fold: int | None = Field(None, ge=1, description="... and this one of them, from 1 on, is the test split")
    flips: bool = Field(True, description="random horizontal and vertical flips in training")
    turns: bool = Field(True, description="random quarter turns in training")
    hed_jitter: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="stains changed at random in training, each by up to this share (0.05: little, 0.2: much)",
    )
    contamination: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="share of the normal training images that anomalous ones are put in the place of, as if they were normal",
    )
    strict: bool = Field(False, description="a broken image is an error instead of being skipped and listed")

    @model_validator(mode="after")
    def _contaminated_normals(self) -> DataConfig:
        if self.contamination and self.label != "normal":
            raise ValueError(
                f"contamination is the share of anomalous images among normal ones, and label is {self.label}: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _fold_of_folds(self) -> DataConfig:
        if (self.folds is None) != (self.fold is None) or (self.fold or 1) > (self.folds or 1):
            raise ValueError(f"folds and fold go together, fold from 1 to folds; got {self.folds} and {self.fold}")
        return self

    @field_validator("split_fractions")
    @classmethod
    def _sum_to_one(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) < 0 or abs(sum(value) - 1) > 1e-6:
            raise ValueError("must be three shares that add up to 1")
        return value

    def of(self, path: str) -> DataConfig:
        """The same settings for the patches of `path`. Folds are those of one set: another has none."""
        same = self.path is not None and Path(path).resolve() == Path(self.path).resolve()
        return self.model_copy(update={"path": path} | ({} if same else {"folds": None, "fold": None}))


class TrainingConfig(_Strict):
    """The engine's settings: how long, on what, how often to write."""

    total_kimg: float = Field(
        ..., ge=0.001, description="thousands of real images to show; of normals that a scorer is fitted on, at most"
    )
    batch: int = Field(64, ge=1, description="images of one step, in all processes together")
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="images of one pass in each process, for less memory; default: its whole share of the batch",
    )
    seed: int = Field(0, ge=0, description="seed of every random choice")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one")
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = Field(
        "fp32",
        description="tf32: CUDA matrix units; bf16, fp16: autocast (fp16: on CUDA, nets that keep low resolutions in fp32)",
    )
    threads: int | None = Field(None, ge=1, description="CPU threads; default: all cores of this process")
    tick_kimg: float = Field(1.0, gt=0, description="a log line every so many kimg")
    snapshot_kimg: float = Field(
        10.0, gt=0, description="a picture every so many kimg (and early ones at 0, 1/16, 1/4 of it)"
    )
    checkpoint_kimg: float = Field(10.0, gt=0, description="a resumable checkpoint every so many kimg")
    eval_kimg: float | None = Field(
        None, gt=0, description="judge the model every so many kimg, and at the end; default: never"
    )
    eval_images: int = Field(10000, ge=2, description="a judgement rests on at most so many images")
    eval_features: str = Field(
        "efficientnet_lite0", description="whose features judge a generator, by Fréchet distance; inception: the FID"
    )
    patience: int | None = Field(
        None, ge=1, description="stop when so many judgements in a row are no better than the best; default: never"
    )


class CorruptionConfig(_Strict):
    """What is done to an image before it is scored (`data/corruption.py`), to see how a detector takes it. Nothing is the default."""

    haematoxylin: float = Field(0.0, ge=-0.9, le=2, description="so much more of this stain; -0.3: 30 % less")
    eosin: float = Field(0.0, ge=-0.9, le=2, description="so much more of this stain")
    blur: float = Field(0.0, ge=0, le=64, description="sigma of a Gaussian, in px of the image as the network sees it")
    jpeg: int | None = Field(None, ge=1, le=100, description="quality of a JPEG file that the image passes through")

    @property
    def words(self) -> str:
        """What is done, such as `haematoxylin+0.3-jpeg30`; "" for nothing."""
        changes = [f"{name}{getattr(self, name):+g}" for name in ("haematoxylin", "eosin") if getattr(self, name)]
        changes += [f"blur{self.blur:g}"] if self.blur else []
        return "-".join(changes + ([] if self.jpeg is None else [f"jpeg{self.jpeg}"]))


class ScoringConfig(_Strict):
    """How a trained run scores images, unless told otherwise on the command line."""

    scorer: str = Field("gan_inversion", description="a registered scorer")
    inverter: str | None = Field(
        None, description="a registered inverter; default: what the run trained, else the search in z"
    )
    options: dict[str, Any] = Field(
        {},
        description="options of the scorer (combine, parts, perceptual, smooth; fid: features) and of the inverter (steps, seed, kappa)",
    )
    threshold: str = Field("fpr:0.05", description="fpr:A, quantile:Q, mean_std:K, youden or manual:V")
    calibration_images: int = Field(512, ge=2, description="at most so many validation images set the threshold")
    corruption: CorruptionConfig = Field(
        default_factory=CorruptionConfig,
        description="what is done to the scored images alone: thresholds and calibration are those of untouched validation images",
    )


class RunConfig(_Strict):
    """One experiment, fully resolved: this is what `config.yaml` of a run folder holds."""

    name: str = Field(
        pattern=r"^[^/\\\x00-\x1f]+$", max_length=100, description="of the run's folder, after its number"
    )
    model: str = Field(
        description="a registered network family; left out, with task, where the scorer itself is fitted on normals"
    )
    task: str = Field(description="a registered training task")
    resolution: int = Field(64, ge=4, le=1024, description="side of the square images in px")
    network: dict[str, Any] = Field({}, description="options of the network family")
    optim: dict[str, Any] = Field({}, description="options of the task: learning rates, loss weights, EMA")
    generator: str | None = Field(None, description="run folder or model file of a trained generator (encoders only)")
    init_from: str | None = Field(
        None, description="run folder or model file of the same architecture whose weights the training starts from"
    )
    data: DataConfig = Field(default_factory=lambda: DataConfig())
    training: TrainingConfig
    scoring: ScoringConfig = Field(default_factory=lambda: ScoringConfig())

    @model_validator(mode="before")
    @classmethod
    def _scorer_alone(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and "scoring" in raw and not raw.keys() & {"model", "task"}:
            data = raw.get("data") or {}
            if isinstance(data, dict):  # it is fitted on images as they are
                data = {"flips": False, "turns": False, **data}
            return {"model": "", "task": "", **raw, "data": data}
        return raw

    @field_validator("network")
    @classmethod
    def _one_resolution(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "resolution" in value:
            raise ValueError("the resolution is a key of its own, outside `network`")
        return value


def presets_dir() -> Path:
    """Folder of the shipped presets: inside the installed package, or `configs/` of a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "configs"


def presets() -> dict[str, Path]:
    """Every shipped preset by its bare name."""
    return {file.stem: file for file in sorted(presets_dir().glob("*.yaml"))}


def trained_models() -> dict[str, Path]:
    """Every model file of `models/` by its bare name: of the checkout that the package runs from, else of the folder that one is in."""
    checkout = Path(__file__).parents[1]
    folder = (checkout if presets_dir().parent == checkout else Path.cwd()) / "models"
    return {file.stem: file for file in sorted(folder.glob("*.safetensors"))}


def trained_model(path: str | Path) -> Path:
    """The path, or where nothing is there the model of `trained_models` that it names."""
    return Path(path) if Path(path).exists() else trained_models().get(str(path), Path(path))


def load_config(source: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Read a preset name or a YAML path, apply `key=value` overrides (dotted keys, YAML values), and check the whole.

    Raises `UserError` for an unknown preset, unreadable YAML, an unknown key (with near matches) or a value out of range.
    """
    path = Path(source)
    if path.suffix not in {".yaml", ".yml"}:
        name = old_names.preset(str(source))
        if name not in presets():
            raise UserError(f"no preset is called {name!r} (and it is no .yaml file): {near(name, presets())}")
        for note in old_names.renamed([str(source)]):
            console.say(f"note: {note}")
        path = presets()[name]
    return resolve(read_yaml(path), overrides, default_name=path.stem, context=str(source))


def data_config(path: str, overrides: list[str] | tuple[str, ...] = ()) -> DataConfig:
    """Data settings alone, from `data.key=value` overrides."""
    raw: dict[str, Any] = {"model": "", "task": "", "training": {"total_kimg": 1}, "data": {"path": path}}
    for override in overrides:
        if not override.startswith("data."):
            raise UserError(f"-o {override}: only data.* settings apply here")
    return resolve(raw, overrides, default_name="data", context="-o").data


def resolve(
    raw: dict[str, Any], overrides: list[str] | tuple[str, ...] = (), *, default_name: str, context: str
) -> RunConfig:
    """Check a raw mapping after applying overrides; `where` names its origin in errors."""
    raw = copy.deepcopy({"name": default_name, **old_names.config(raw)})
    for override in overrides:
        _apply(raw, override)
    try:
        return RunConfig.model_validate(old_names.config(raw))
    except ValidationError as error:
        raise UserError(f"{context}: {_explain(error)}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping; raises `UserError` naming the file when it is missing, broken, or not a mapping."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no such configuration file: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} must hold `key: value` lines, not a {type(raw).__name__}")
    return raw


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"-o {override!r}: expected key=value, such as -o training.batch=32")
    for note in old_names.renamed([key]):
        console.say(f"note: {note}")
    key = old_names.setting(key)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"-o {override!r}: the value is not valid YAML") from None
    if isinstance(value, str):
        value = _number(value)
    *parents, last = key.split(".")
    node = raw
    for parent in parents:
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            raise UserError(f"-o {override!r}: {parent!r} has no keys below it")
    node[last] = value


def _number(text: str) -> str | float:
    """YAML 1.1 reads 1e-4 as text; people mean the number."""
    return float(text) if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", text) else text


def first_error(error: ValidationError) -> tuple[Any, str]:
    """The error to tell of, and in words how many more there are. An unknown key comes first: a mistyped one makes the right one missing,
    which is then not counted.
    """
    found = error.errors()
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
    rest = [one for one in found if one is not first]
    if first["type"] == "extra_forbidden":
        *place, typed = first["loc"]
        missing = [str(one["loc"][-1]) for one in rest if one["type"] == "missing" and [*one["loc"][:-1]] == place]
        meant = [(*place, name) for name in difflib.get_close_matches(str(typed), missing, n=1, cutoff=0.5)]
        rest = [one for one in rest if not (one["type"] == "missing" and one["loc"] in meant)]
    return first, f" (and {len(rest)} more)" if rest else ""


def _explain(error: ValidationError) -> str:
    first, more = first_error(error)
    context = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        section: Any = RunConfig
        for part in first["loc"][:-1]:
            section = section.model_fields[part].annotation
        return f"unknown key {context!r}: {near(str(first['loc'][-1]), section.model_fields)}{more}"
    if first["type"] == "missing":
        return f"key {context!r} is missing{more}"
    return f"{context}: {first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}{more}"
