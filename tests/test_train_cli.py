"""Bad input to `gan-uad train`: one line that says what, where and what to do; the right exit code; nothing made is lost."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from run_tools import same, state

import gan_uad
from gan_uad import checkpoint
from gan_uad.errors import UserError


def refused(result: Any, *messages: str, code: int = 2) -> str:
    """The error line of a failed command, which holds every pattern of `messages`."""
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    lines = result.stderr.splitlines()
    assert [line for line in lines if line.startswith("Error:")] == lines[-1:], result.stderr
    for message in messages:
        assert re.search(message, lines[-1]), lines[-1]
    return str(lines[-1])


def runs(out: Path) -> list[str]:
    return sorted(file.name for file in out.glob("*"))


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["-o", "training.bacth=8"], ["unknown key 'training.bacth'", "did you mean 'batch'"]),
        (["-o", "training.batch=none"], ["training.batch", "valid integer"]),
        (["-o", "network.chanel_base=8"], ["network dcgan has no option 'chanel_base'", "did you mean 'channel_base'"]),
        (["-o", "network.z_dim=0"], ["network dcgan: z_dim must be at least 1"]),
        (["-o", "network.z_dim=wide"], ["network dcgan, option z_dim", "got 'wide'"]),
        (["-o", "optim.n_critic=5"], ["task dcgan has no option 'n_critic'"]),
        (["-o", "optim.lr=-1"], ["task dcgan: .*learning rate"]),
        (["-o", "optim.lr=fast"], ["task dcgan, option lr", "got 'fast'"]),
        (["-o", "network.resolution=64"], ["the resolution is a key of its own"]),
        (["-o", "model=dcgam"], ["no network is called 'dcgam'", "did you mean 'dcgan'"]),
        (["-o", "task=wgan"], ["no task is called 'wgan'", "did you mean .*'wgan_gp'"]),
        (["-o", "resolution=48"], ["resolution must be a power of two"]),
        (["-o", "name=../up"], ["name"]),
        (["--data", "nowhere"], ["nowhere"]),
        (["-o", "data.label=anomalous", "-o", "data.split_fractions=[0, 0.5, 0.5]"], ["no anomalous image in the train split"]),
        (["--generator", "nowhere"], ["no such run folder or model file: .*nowhere"]),
        (["-o", "training.device=cuda"], ["device cuda was asked for"]),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_leaves_nothing_behind(
    tiny: Any, tmp_path: Path, words: list[str], messages: list[str]
) -> None:
    if "training.device=cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    refused(tiny.train(tiny.config("dcgan"), tmp_path / "runs", *words), *messages)
    assert not (tmp_path / "runs").exists()


def test_sources_that_are_none(tiny: Any, tmp_path: Path) -> None:
    refused(tiny.train("dcgan_46", tmp_path), "no preset is called 'dcgan_46'", "did you mean 'dcgan_64'")
    refused(tiny.train(tmp_path / "none.yaml", tmp_path), "no such configuration file")
    refused(tiny.train(tmp_path, tmp_path, "--resume"), "is not a run folder: it has no config.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    refused(tiny.train(tmp_path / "list.yaml", tmp_path), "list.yaml must hold `key: value` lines, not a list")
    raw = yaml.safe_load(tiny.config("dcgan").read_text())
    raw["data"] = {}
    (tmp_path / "no_data.yaml").write_text(yaml.safe_dump(raw))
    result = tiny.train(tmp_path / "no_data.yaml", tmp_path / "runs")
    refused(result, "no data is given", "--data")
    assert "dcgan to be trained by dcgan at 32 px" in result.stderr


def test_a_folder_that_cannot_be_written(tiny: Any, tmp_path: Path) -> None:
    """Below a regular file, where even root cannot write."""
    (tmp_path / "file").touch()
    refused(tiny.train(tiny.config("dcgan"), tmp_path / "file" / "runs"), "cannot write .*file/runs", "--out")
    refused(tiny.train(tiny.config("dcgan"), tmp_path / "file"), "cannot write .*file", "--out")
    refused(tiny.train(tiny.config("dcgan"), Path("/proc/runs")), "cannot write /proc/runs", "--out")


def test_a_dry_run_prints_what_would_be_trained_and_makes_nothing(tiny: Any, tmp_path: Path) -> None:
    result = tiny.train(tiny.config("izi_f"), tmp_path / "runs", "--generator", tiny.generator, "--dry-run", batch=7)
    assert result.exit_code == 0, result.output
    shown = yaml.safe_load(result.stdout)
    assert shown["training"]["batch"] == 7
    assert shown["network"]["z_dim"] == 4
    assert Path(shown["generator"]) == tiny.generator.resolve()
    assert shown["data"]["crop"] == "none"
    assert not (tmp_path / "runs").exists()


# ---------------------------------------------------------------- encoders and their generator


def test_an_encoder_needs_a_generator_that_fits(tiny: Any, tmp_path: Path) -> None:
    def attempt(*words: object) -> Any:
        return tiny.train(tiny.config("izi_f"), tmp_path / "runs", "--generator", tiny.generator, *words)

    refused(tiny.train(tiny.config("izi_f"), tmp_path / "runs"), "needs a trained generator: add --generator RUN")
    refused(
        tiny.train(tiny.config("dcgan"), tmp_path / "runs", "--generator", tiny.generator),
        "task dcgan trains no encoder and takes no generator",
    )
    refused(attempt("-o", "resolution=64"), "the generator makes 32 px images, this configuration says resolution 64")
    refused(
        attempt("-o", "network.z_dim=9"),
        r"the encoder \(z_dim 9, 32 px\) does not fit the generator \(z_dim 4, 32 px\)",
    )
    refused(attempt("-o", "data.crop=center"), "data.crop is 'center', but the generator was trained with 'none'")
    refused(attempt("-o", "data.grayscale=true"), "data.grayscale is True, but the generator was trained with False")
    refused(attempt("-o", "data.resize=box"), "data.resize is 'box', but the generator was trained with 'bicubic'")
    refused(attempt("-o", "optim.kappa=-1"), "kappa.*must not be negative")
    refused(attempt("-o", "optim.lr=-1"), "lr must not be negative")
    empty = tmp_path / "00000-empty"
    empty.mkdir()
    refused(
        tiny.train(tiny.config("izi_f"), tmp_path / "runs", "--generator", empty), "holds no model.safetensors", "empty"
    )
    assert not (tmp_path / "runs").exists()


def test_an_encoder_is_told_the_preprocessing_of_its_generator(tiny: Any, tmp_path: Path) -> None:
    words = ["-o", "data.crop=center", "-o", "data.crop_size=24", "-o", "data.grayscale=true"]
    made = tiny.train(tiny.config("wgan_gp"), tmp_path / "gan", *words, total_kimg=0.004)
    assert made.exit_code == 0, made.output
    generator = tmp_path / "gan" / "00000-wgan_gp"
    result = tiny.train(
        tiny.config("ziz"), tmp_path / "runs", "--generator", generator / "model.safetensors", total_kimg=0.008
    )
    assert result.exit_code == 0, result.output
    data = yaml.safe_load((tmp_path / "runs" / "00000-ziz" / "config.yaml").read_text())["data"]
    assert (data["crop"], data["crop_size"], data["grayscale"]) == ("center", 24, True)


# ---------------------------------------------------------------- resume


def test_a_run_cannot_go_on_as_another(tiny: Any, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny.generator, tmp_path / "00000-wgan_gp"))
    before = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    refused(tiny.train(run, tmp_path), "is a run folder: add --resume to go on with it")
    changes = {
        "training.batch": (4, 8),
        "training.seed": (0, 1),
        "training.precision": ("'fp32'", "bf16"),
        "data.crop": ("'none'", "center"),
        "resolution": (32, 64),
        "task": ("'wgan_gp'", "dcgan"),
        "name": ("'wgan_gp'", "other"),
    }
    for key, (was, now) in changes.items():
        refused(
            tiny.train(run, tmp_path, "--resume", "-o", f"{key}={now}"),
            f"was started with {key}={was}; it cannot go on with .*{now}.*Start a new run",
        )
    refused(tiny.train(run, tmp_path, "--resume", "-o", "optim.n_critic=1"), "was started with optim=", "cannot go on")
    refused(tiny.train(run, tmp_path, "--resume", "-o", "training.bacth=4"), "did you mean 'batch'")
    assert {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()} == before


def test_the_same_command_again_with_resume_goes_on(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With paths as a user types them, and from another folder."""
    shutil.copytree(tiny.generator, tmp_path / "gan")
    shutil.copytree(tiny.patches, tmp_path / "patches")
    monkeypatch.chdir(tmp_path)
    words = ["--generator", "gan", "--data", "patches"]
    assert tiny.train(tiny.config("izi_f"), Path("runs"), *words, total_kimg=0.008).exit_code == 0
    result = tiny.train(tiny.config("izi_f"), Path("runs"), *words, "--resume", total_kimg=0.012)
    assert result.exit_code == 0, result.output
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = tiny.train(tmp_path / "runs" / "00000-izi_f", Path("runs"), "--resume", total_kimg=0.016)
    assert result.exit_code == 0, result.output
    assert "going on at 0.012 kimg" in result.stderr
    assert runs(tmp_path / "runs") == ["00000-izi_f"]
    assert gan_uad.load(str(tmp_path / "runs" / "00000-izi_f")).nimg == 16


def test_what_a_resumed_run_was_told_anew_is_recorded(tiny: Any, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny.generator, tmp_path / "00000-wgan_gp"))
    assert tiny.train(run, tmp_path, "--resume", total_kimg=0.02, checkpoint_kimg=5).exit_code == 0
    training = yaml.safe_load((run / "config.yaml").read_text())["training"]
    assert (training["total_kimg"], training["checkpoint_kimg"]) == (0.02, 5.0)
    assert gan_uad.load(str(run)).config.training.total_kimg == 0.02


def test_a_checkpoint_of_another_architecture(tiny: Any, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny.generator, tmp_path / "00000-wgan_gp"))
    wider = tiny.train(tiny.config("wgan_gp"), tmp_path / "wide", "-o", "network.channel_max=4", total_kimg=0.004)
    assert wider.exit_code == 0
    shutil.copy(tmp_path / "wide" / "00000-wgan_gp" / "state.pt", run / "state.pt")
    refused(
        tiny.train(run, tmp_path, "--resume", total_kimg=0.1),
        r"the checkpoint is of another architecture: 'G.linear.weight' is \[64, 4\] in the file, \[128, 4\] in the network",
    )


# ---------------------------------------------------------------- model files


def test_model_files_that_are_refused(tiny: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    def load(path: Path, *messages: str) -> None:
        with pytest.raises(UserError) as caught:
            gan_uad.load(str(path))
        assert "\n" not in caught.value.message
        for message in messages:
            assert re.search(message, caught.value.message), caught.value.message

    witness = tmp_path / "witness"
    torch.save({"model": _Evil(witness)}, tmp_path / "model.pkl")
    load(
        tmp_path / "model.pkl",
        "model.pkl is not a safetensors file",
        "Pickled checkpoints .* are not opened: code in them",
    )
    assert not witness.exists()
    load(tiny.generator / "state.pt", "is not a safetensors file")
    (tmp_path / "empty.safetensors").touch()
    load(tmp_path / "empty.safetensors", "is not a safetensors file")
    whole = (tiny.generator / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    load(tmp_path / "cut.safetensors", "is not a safetensors file")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    load(tmp_path / "foreign.safetensors", "was not written by gan_uad")
    for text in ("no json", "[1]", "{}"):
        save_file({"a": torch.zeros(1)}, tmp_path / "odd.safetensors", metadata={"gan_uad": text})
        load(tmp_path / "odd.safetensors", "odd.safetensors")
    load(tmp_path / "nothing", "no such run folder or model file")
    load(tmp_path, "holds no model.safetensors")

    description, _ = checkpoint.read_model(tiny.generator / "model.safetensors")
    nets = gan_uad.load(str(tiny.generator)).networks
    given = {key: value for key, value in description.items() if key not in {"format", "networks"}}
    checkpoint.save_model(tmp_path / "later.safetensors", nets, given | {"format": 99})
    load(tmp_path / "later.safetensors", "is of format 99; this program reads format 1. Update gan_uad")
    spec = nets["gan"].spec
    nets["gan"].spec = {"name": spec["name"], "options": spec["options"] | {"channel_max": 4}}
    checkpoint.save_model(tmp_path / "other.safetensors", nets, given)
    load(
        tmp_path / "other.safetensors", "of another architecture: 'G.linear.weight' is .*in the file, .* in the network"
    )
    nets["gan"].spec = {"name": "unheard_of", "options": {}}
    checkpoint.save_model(tmp_path / "unknown.safetensors", nets, given)
    load(tmp_path / "unknown.safetensors", "no network is called 'unheard_of'")


class _Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_half_precision_for_publishing_comes_back_as_float32(tiny: Any, tmp_path: Path) -> None:
    model = gan_uad.load(str(tiny.generator))
    description, _ = checkpoint.read_model(tiny.generator / "model.safetensors")
    given = {key: value for key, value in description.items() if key not in {"format", "networks"}}
    checkpoint.save_model(tmp_path / "half.safetensors", model.networks, given, half=True)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.75 * (tiny.generator / "model.safetensors").stat().st_size
    half = gan_uad.load(str(tmp_path / "half.safetensors"))
    assert {p.dtype for p in half.networks["gan"].parameters()} == {torch.float32}
    torch.testing.assert_close(half.generate([3]), model.generate([3]), rtol=0, atol=0.02)


# ---------------------------------------------------------------- a trained model to start from


def learned(tensors: dict[str, Any]) -> dict[str, Any]:
    """Without batch norm's statistics, which follow the batches even at a learning rate of 0."""
    return {name: tensor for name, tensor in tensors.items() if "running" not in name and "num_batches" not in name}


def test_a_training_starts_from_a_trained_model(tiny: Any, tmp_path: Path) -> None:
    """Averaged and trained generator are the given one, the discriminator too; the optimisers begin anew; the file may go afterwards."""
    given = Path(shutil.copytree(tiny.generator, tmp_path / "given"))
    words = ("-o", f"init_from={given}", "-o", "optim.lr=0", "-o", "optim.lr_D=0", "-o", "training.seed=7")
    made = tiny.train(tiny.config("wgan_gp"), tmp_path / "runs", *words, total_kimg=0.004)
    assert made.exit_code == 0, made.output
    run = tmp_path / "runs" / "00000-wgan_gp"
    theirs = learned(checkpoint.read_model(given / "model.safetensors")[1])
    same(learned(checkpoint.read_model(run / "model.safetensors")[1]), theirs)
    same(learned({f"gan.{name}": tensor for name, tensor in state(run)["task"]["model"].items()}), theirs)
    shutil.rmtree(given)
    again = tiny.train(run, tmp_path, "--resume", total_kimg=0.008)
    assert again.exit_code == 0, again.output


def test_a_start_from_another_architecture_is_refused(tiny: Any, tmp_path: Path) -> None:
    def attempt(name: str, initial: Path, *words: object) -> Any:
        return tiny.train(tiny.config(name), tmp_path / "runs", "-o", f"init_from={initial}", *words)

    refused(attempt("dcgan", tiny.generator), "init_from .* is of another architecture")
    refused(attempt("wgan_gp", tmp_path / "none"), "no such run folder or model file")
    refused(attempt("izi_f", tiny.generator, "--generator", tiny.generator), "init_from .* holds no encoder, only gan")
