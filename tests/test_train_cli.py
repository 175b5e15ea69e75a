"""Bad input to `gan-uad train`: an error of one line and the right exit code; no finished work is lost."""

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
        (["-o", "training.bacth=8"], ["training.bacth", "'batch'"]),
        (["-o", "training.batch=none"], ["training.batch"]),
        (["-o", "network.chanel_base=8"], ["network dcgan", "'chanel_base'", "'channel_base'"]),
        (["-o", "network.z_dim=0"], ["network dcgan", "z_dim"]),
        (["-o", "network.z_dim=wide"], ["network dcgan", "z_dim", "'wide'"]),
        (["-o", "optim.n_critic=5"], ["task dcgan", "'n_critic'"]),
        (["-o", "optim.lr=-1"], ["task dcgan", "-1"]),
        (["-o", "optim.lr=fast"], ["task dcgan", "lr", "'fast'"]),
        (["-o", "network.resolution=64"], ["resolution"]),
        (["-o", "model=dcgam"], ["'dcgam'", "'dcgan'"]),
        (["-o", "task=wgan"], ["'wgan'", "'wgan_gp'"]),
        (["-o", "resolution=48"], ["resolution", "48"]),
        (["-o", "name=../up"], ["name"]),
        (["--data", "nowhere"], ["nowhere"]),
        (["-o", "data.label=anomalous", "-o", "data.split_fractions=[0, 0.5, 0.5]"], ["anomalous", "train"]),
        (["--generator", "nowhere"], ["nowhere"]),
        (["-o", "training.device=cuda"], ["cuda"]),
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
    refused(tiny.train("dcgan_46", tmp_path), "'dcgan_46'", "'dcgan_64'")
    refused(tiny.train(tmp_path / "none.yaml", tmp_path), "none.yaml")
    refused(tiny.train(tmp_path, tmp_path, "--resume"), "config.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    refused(tiny.train(tmp_path / "list.yaml", tmp_path), "list.yaml")
    raw = yaml.safe_load(tiny.config("dcgan").read_text())
    raw["data"] = {}
    (tmp_path / "no_data.yaml").write_text(yaml.safe_dump(raw))
    result = tiny.train(tmp_path / "no_data.yaml", tmp_path / "runs")
    refused(result, "--data")
    assert result.stderr.startswith("no_data: ")


def test_a_folder_that_cannot_be_written(tiny: Any, tmp_path: Path) -> None:
    """Below a regular file, where even root cannot write."""
    (tmp_path / "file").touch()
    refused(tiny.train(tiny.config("dcgan"), tmp_path / "file" / "runs"), "file/runs", "--out")
    refused(tiny.train(tiny.config("dcgan"), tmp_path / "file"), "file", "--out")
    refused(tiny.train(tiny.config("dcgan"), Path("/proc/runs")), "/proc/runs", "--out")


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

    refused(tiny.train(tiny.config("izi_f"), tmp_path / "runs"), "--generator RUN")
    refused(
        tiny.train(tiny.config("dcgan"), tmp_path / "runs", "--generator", tiny.generator),
        "task dcgan",
        "--generator",
    )
    refused(attempt("-o", "resolution=64"), "resolution", "32", "64")
    refused(
        attempt("-o", "network.z_dim=9"),
        "z_dim 9",
        "z_dim 4",
    )
    refused(attempt("-o", "data.crop=center"), "data.crop", "'center'", "'none'")
    refused(attempt("-o", "data.grayscale=true"), "data.grayscale", "True", "False")
    refused(attempt("-o", "data.resize=box"), "data.resize", "'box'", "'bicubic'")
    refused(attempt("-o", "optim.kappa=-1"), "kappa")
    refused(attempt("-o", "optim.lr=-1"), "lr")
    empty = tmp_path / "00000-empty"
    empty.mkdir()
    refused(tiny.train(tiny.config("izi_f"), tmp_path / "runs", "--generator", empty), "model.safetensors", "empty")
    assert not (tmp_path / "runs").exists()


def test_an_encoder_inherits_the_preprocessing_of_its_generator(tiny: Any, tmp_path: Path) -> None:
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


def test_a_run_cannot_continue_with_other_settings(tiny: Any, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny.generator, tmp_path / "00000-wgan_gp"))
    before = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    refused(tiny.train(run, tmp_path), str(run), "--resume")
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
            f"{key}={was} .*{now}",
        )
    refused(tiny.train(run, tmp_path, "--resume", "-o", "optim.n_critic=1"), "optim=")
    refused(tiny.train(run, tmp_path, "--resume", "-o", "training.bacth=4"), "'batch'")
    assert {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()} == before


def test_the_same_command_with_resume_continues_the_run(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert "0.012 kimg" in result.stderr
    assert runs(tmp_path / "runs") == ["00000-izi_f"]
    assert gan_uad.load(str(tmp_path / "runs" / "00000-izi_f")).nimg == 16


def test_overridden_settings_of_a_resumed_run_are_recorded(tiny: Any, tmp_path: Path) -> None:
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
        r"'G.linear.weight' .*\[64, 4\] .*\[128, 4\]",
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
    load(tiny.generator / "state.pt", "safetensors")
    (tmp_path / "empty.safetensors").touch()
    load(tmp_path / "empty.safetensors", "safetensors")
    whole = (tiny.generator / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    load(tmp_path / "cut.safetensors", "safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    load(tmp_path / "foreign.safetensors", "foreign.safetensors")
    for text in ("no json", "[1]", "{}"):
        save_file({"a": torch.zeros(1)}, tmp_path / "odd.safetensors", metadata={"gan_uad": text})
        load(tmp_path / "odd.safetensors", "odd.safetensors")
    load(tmp_path / "nothing", "nothing")
    load(tmp_path, "model.safetensors")

    description, _ = checkpoint.read_model(tiny.generator / "model.safetensors")
    nets = gan_uad.load(str(tiny.generator)).networks
    given = {key: value for key, value in description.items() if key not in {"format", "networks"}}
    checkpoint.save_model(tmp_path / "later.safetensors", nets, given | {"format": 99})
    load(tmp_path / "later.safetensors", "format 99", "format 1")
    spec = nets["gan"].spec
    nets["gan"].spec = {"name": spec["name"], "options": spec["options"] | {"channel_max": 4}}
    checkpoint.save_model(tmp_path / "other.safetensors", nets, given)
    load(tmp_path / "other.safetensors", "'G.linear.weight'")
    nets["gan"].spec = {"name": "unheard_of", "options": {}}
    checkpoint.save_model(tmp_path / "unknown.safetensors", nets, given)
    load(tmp_path / "unknown.safetensors", "'unheard_of'")


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
    """Averaged and trained generator are the given one, the discriminator too; with new optimisers; the file may go afterwards."""
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

    refused(attempt("dcgan", tiny.generator), "init_from")
    refused(attempt("wgan_gp", tmp_path / "none"), str(tmp_path / "none"))
    refused(attempt("izi_f", tiny.generator, "--generator", tiny.generator), "init_from", "encoder")
