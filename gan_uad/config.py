"""The configuration of a run: read YAML, apply overrides, return it checked and fully resolved.

`load_config("wgan_gp_64", ["training.batch=32"])` does all of it. Unknown keys and wrong values are `UserError`s of one line.
Options of a network or a task are checked against the signature of its class (`registry.check_options`), so that a new family needs no
change here.
"""

from __future__ import annotations

import copy
import difflib
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

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
    crop: Literal["none", "center"] = Field(
        "none", description="center: crop the central `crop_size` px before resizing"
    )
    crop_size: int | None = Field(
        None, ge=1, description="side of the centre crop in source px. Default: the resolution"
    )
    resize: Literal["bicubic", "bilinear", "lanczos", "box"] = Field(
        "bicubic", description="antialiased resampling filter"
    )
    grayscale: bool = Field(False, description="replace colour by luma, repeated to three channels")
    min_tissue: float = Field(0.0, ge=0, le=1, description="minimum share of tissue (not white) in a patch")
    label: Literal["normal", "anomalous", "all"] = Field("normal", description="patches to train a generator on")
    normal_classes: list[str] = Field(
        [], description="names of the normal classes, where gan_uad cannot recognise them"
    )
    split_fractions: tuple[float, float, float] = Field(
        (0.6, 0.2, 0.2), description="shares of the groups in train, val and test"
    )
    split_seed: int = Field(0, description="seed of the split, where the data set defines none")
    folds: int | None = Field(
        None, ge=2, description="cross-validation: split the groups into N folds and ignore the splits of the data set"
    )
    fold: int | None = Field(None, ge=1, description="number of the fold, from 1 on, that is the test split")
    flips: bool = Field(True, description="flip training images horizontally and vertically at random")
    turns: bool = Field(True, description="rotate training images by random quarter turns")
    hed_jitter: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="change the stains of training images at random by up to this share (0.05: light, 0.2: strong)",
    )
    mpp: float | None = Field(
        None, gt=0, le=1000, description="µm/px of the patches, where their index.csv does not state it"
    )
    contamination: float = Field(
        0.0, ge=0, le=0.5, description="share of normal training images to replace by anomalous ones, labelled normal"
    )
    strict: bool = Field(False, description="fail at a broken image instead of skipping and listing it")

    @model_validator(mode="after")
    def _contaminated_normals(self) -> DataConfig:
        if self.contamination and self.label != "normal":
            raise ValueError(f"contamination is for data.label=normal, and label is {self.label}: leave it out")
        return self

    @model_validator(mode="after")
    def _fold_of_folds(self) -> DataConfig:
        if (self.folds is None) != (self.fold is None) or (self.fold or 1) > (self.folds or 1):
            raise ValueError(f"folds and fold go together, fold from 1 to folds; got {self.folds} and {self.fold}")
        return self

    @field_validator("normal_classes", mode="before")
    @classmethod
    def _numbers_are_names(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [str(name) if isinstance(name, int) and not isinstance(name, bool) else name for name in value]

    @field_validator("split_fractions")
    @classmethod
    def _sum_to_one(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) < 0 or abs(sum(value) - 1) > 1e-6:
            raise ValueError("must be three shares that add up to 1")
        return value

    @model_serializer(mode="wrap")
    def _without_unknown_scale(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `mpp` where it is not given: files of version 0.2 and before do not have it, and are compared with."""
        found: dict[str, Any] = handler(self)
        return {key: value for key, value in found.items() if key != "mpp" or value is not None}

    def of(self, path: str) -> DataConfig:
        """The same settings for the patches of `path`. Folds and µm/px belong to one data set: another has none."""
        same = self.path is not None and Path(path).resolve() == Path(self.path).resolve()
        return self.model_copy(update={"path": path} | ({} if same else {"folds": None, "fold": None, "mpp": None}))


class TrainingConfig(_Strict):
    """Settings of the training loop: how long, on which device, how often to write."""

    total_kimg: float = Field(
        ...,
        ge=0.001,
        description="length in kimg (thousands of real images). A scorer is fitted on at most so many normals",
    )
    batch: int = Field(64, ge=1, description="images per step, in all processes together")
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="images per forward pass in each process, to save memory. Default: its share of the batch",
    )
    seed: int = Field(0, ge=0, description="seed of every random choice")
    device: str = Field("auto", description="auto (CUDA if available), cpu, cuda, or cuda:N (the GPU of that number)")
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = Field(
        "auto",
        description="tf32: CUDA matrix units; bf16, fp16: autocast (fp16: on CUDA, networks that keep low resolutions in fp32); "
        "auto: the fastest that is tested; the run says which",
    )
    threads: int | None = Field(None, ge=1, description="CPU threads. Default: all cores of this process")
    tick_kimg: float = Field(1.0, gt=0, description="write a log line every N kimg")
    snapshot_kimg: float = Field(
        10.0, gt=0, description="write example images every N kimg, and early ones at 0, N/16 and N/4"
    )
    checkpoint_kimg: float = Field(10.0, gt=0, description="write a resumable checkpoint every N kimg")
    eval_kimg: float | None = Field(
        None, gt=0, description="validate the model every N kimg and at the end. Default: never"
    )
    eval_images: int = Field(10000, ge=2, description="maximum number of images per validation")
    eval_features: str = Field(
        "efficientnet_lite0",
        description="features for the Fréchet distance that validates a generator; inception: the FID",
    )
    patience: int | None = Field(
        None, ge=1, description="stop after N validations in a row without improvement. Default: never"
    )

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", value):
            raise ValueError("it should be 'auto', 'cpu', 'cuda' or 'cuda:N'")
        return value


class CorruptionConfig(_Strict):
    """Corruption of images before they are scored (`data/corruption.py`), to test how robust a detector is. Default: none."""

    haematoxylin: float = Field(0.0, ge=-0.9, le=2, description="relative change of this stain; -0.3: 30 % less")
    eosin: float = Field(0.0, ge=-0.9, le=2, description="relative change of this stain")
    blur: float = Field(0.0, ge=0, le=64, description="sigma of a Gaussian blur, in px at the run's resolution")
    jpeg: int | None = Field(None, ge=1, le=100, description="compress as JPEG of this quality")

    @property
    def words(self) -> str:
        """The corruption in words, such as `haematoxylin+0.3-jpeg30`; "" for none."""
        changes = [f"{name}{getattr(self, name):+g}" for name in ("haematoxylin", "eosin") if getattr(self, name)]
        changes += [f"blur{self.blur:g}"] if self.blur else []
        return "-".join(changes + ([] if self.jpeg is None else [f"jpeg{self.jpeg}"]))


class ScoringConfig(_Strict):
    """How a trained run scores images, unless overridden on the command line."""

    scorer: str = Field("gan_inversion", description="name of a registered scorer")
    inverter: str | None = Field(
        None, description="name of a registered inverter. Default: the trained encoder, else a search in z"
    )
    options: dict[str, Any] = Field(
        {},
        description="options of the scorer (combine, components, perceptual, smooth; fid: features) and of the inverter "
        "(steps, seed, kappa)",
    )
    threshold: str = Field("fpr:0.05", description="rule: fpr:A, quantile:Q, mean_std:K, youden or manual:V")
    calibration_images: int = Field(
        512, ge=2, description="maximum number of validation images for calibration and the threshold"
    )
    corruption: CorruptionConfig = Field(
        default_factory=CorruptionConfig,
        description="corruption of the scored images; calibration and threshold use uncorrupted validation images",
    )


class RunConfig(_Strict):
    """One experiment, fully resolved, as in `config.yaml` of a run folder."""

    name: str = Field(
        pattern=r"^[^/\\\x00-\x1f]+$", max_length=100, description="name of the run's folder, after its number"
    )
    model: str = Field(
        description="name of a registered network family. Without model and task, the scorer is fitted on normals"
    )
    task: str = Field(description="name of a registered training task")
    resolution: int = Field(64, ge=4, le=1024, description="side of the square images in px")
    network: dict[str, Any] = Field({}, description="options of the network family")
    optim: dict[str, Any] = Field({}, description="options of the task: learning rates, loss weights, EMA")
    generator: str | None = Field(None, description="run folder or model file of a trained generator (encoders only)")
    init_from: str | None = Field(
        None, description="run folder or model file of the same architecture to take initial weights from"
    )
    data: DataConfig = Field(default_factory=lambda: DataConfig())
    training: TrainingConfig
    scoring: ScoringConfig = Field(default_factory=lambda: ScoringConfig())

    @model_validator(mode="before")
    @classmethod
    def _scorer_alone(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and "scoring" in raw and not raw.keys() & {"model", "task"}:
            data = raw.get("data") or {}
            if isinstance(data, dict):  # a scorer is fitted on images without augmentation
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
    """Folder of the presets: inside the installed package, or `configs/` of a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "configs"


def presets() -> dict[str, Path]:
    """Every preset by its bare name."""
    return {file.stem: file for file in sorted(presets_dir().glob("*.yaml"))}


def trained_models() -> dict[str, Path]:
    """Every model file of `models/` by its bare name: in the checkout that the package runs from, else in the current folder."""
    checkout = Path(__file__).parents[1]
    folder = (checkout if presets_dir().parent == checkout else Path.cwd()) / "models"
    return {file.stem: file for file in sorted(folder.glob("*.safetensors"))}


def trained_model(path: str | Path) -> Path:
    """The path, or where it does not exist the model of `trained_models` that it names."""
    return Path(path) if Path(path).exists() else trained_models().get(str(path), Path(path))


def load_config(source: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Read a preset name or a YAML path, apply `key=value` overrides (dotted keys, YAML values), and check the result.

    Raises `UserError` for an unknown preset, unreadable YAML, an unknown key (with near matches) or a value out of range.
    """
    path = Path(source)
    if path.suffix not in {".yaml", ".yml"}:
        name = old_names.preset(str(source))
        if name not in presets():
            raise UserError(f"no preset is called {name!r} (and it is no .yaml file): {near(name, presets())}")
        for note in old_names.renamed([str(source)]):
            console.note(note)
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
    """Check a raw mapping after applying overrides; `context` names its origin in errors."""
    raw = copy.deepcopy({"name": default_name, **old_names.config(raw)})
    for override in overrides:
        _apply(raw, override)
    try:
        return RunConfig.model_validate(old_names.config(raw))
    except ValidationError as error:
        raise UserError(f"{context}: {_explain(error)}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping. Raises `UserError` for a file that is missing, broken, or not a mapping."""
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
        console.note(note)
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
    """Read 1e-4, which is text in YAML 1.1, as a number."""
    return float(text) if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", text) else text


def first_error(error: ValidationError) -> tuple[Any, str]:
    """The error to report, and in words how many more there are. An unknown key comes first; the key that it misspells, which is
    therefore missing, is not counted.
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
    reason = first["msg"].removeprefix("Value error, ")
    return f"{context}: {reason[0].lower()}{reason[1:]}, got {first['input']!r}{more}"
