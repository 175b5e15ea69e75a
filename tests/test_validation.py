"""Validation during training: when it happens, what it keeps, writes and ends; a resumed run ends as an uninterrupted one."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_tools import Blank, Toy, errors, log, metrics_of, same, state, toy_run
from safetensors import safe_open

from gan_uad import checkpoint
from gan_uad.config import load_config
from gan_uad.errors import Interrupted, JobFailed
from gan_uad.run import Run
from gan_uad.training import engine

EVERY = {"eval_kimg": 0.02}  # of 0.2 kimg, in batches of 10
VALUES = {20: 5.0, 40: 3.0, 60: 4.0, 80: 2.5, 100: 2.5, 120: 9.0, 140: 3.0, 160: 2.0, 180: 7.0, 200: 8.0}


class Marks:
    """A validator with a given metric after so many images; remembers when it was called."""

    metric = "mark"

    def __init__(self, values: dict[int, float] | Callable[[int], float] = VALUES, larger: bool = False) -> None:
        self.value = values.__getitem__ if isinstance(values, dict) else values
        self.larger, self.asked = larger, []  # type: ignore[var-annotated]

    def validate(self, nimg: int) -> dict[str, float]:
        self.asked.append(nimg)
        return {"other": float(nimg), "mark": self.value(nimg)}


def fresh() -> Toy:
    """A task that starts from the same weights as any other."""
    torch.manual_seed(0)
    return Toy()


def run_toy(run: Run, validator: Marks | None, resume: bool = False, task: Toy | None = None) -> str:
    return engine.train(task or fresh(), Blank(), run, torch.device("cpu"), {"about": "toy"}, resume, validator)


def validations(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def best(run: Run) -> tuple[dict[str, Any], float]:
    """What best.safetensors says of itself, and the weight in it, which counts images."""
    with safe_open(run.best_path, framework="pt") as file:
        return json.loads(file.metadata()["gan_uad"]), file.get_tensor("net.weight").item()


def test_validation_at_its_interval_and_the_best_is_kept(tmp_path: Path) -> None:
    run, validator = toy_run(tmp_path, **EVERY), Marks()
    ended = run_toy(run, validator)
    assert validator.asked == list(VALUES)
    assert validations(run) == [
        {"nimg": n, "kimg": n / 1000, "other": n, "mark": value, "best": n in (20, 40, 80, 160)}
        for n, value in VALUES.items()
    ], "a tie is no better"
    about, weight = best(run)
    assert (about["nimg"], about["best"], about["about"]) == (160, {"figure": "mark", "value": 2.0}, "toy")
    assert weight == 160
    assert ended == "0.2 kimg; best mark 2 at 0.16 kimg: best.safetensors"
    assert run_toy(toy_run(tmp_path), None) == "0.2 kimg"


def test_larger_may_be_better(tmp_path: Path) -> None:
    run = toy_run(tmp_path, **EVERY)
    run_toy(run, Marks(larger=True))
    assert [row["nimg"] for row in validations(run) if row["best"]] == [20, 120]


def test_the_end_is_validated_even_between_two_dates(tmp_path: Path) -> None:
    run, validator = toy_run(tmp_path, eval_kimg=0.15), Marks(lambda nimg: nimg)
    run_toy(run, validator)
    assert validator.asked == [150, 200]
    run, validator = toy_run(tmp_path), Marks(lambda nimg: nimg)
    run_toy(run, validator)
    assert validator.asked == [200], "no eval_kimg"


def test_metrics_are_in_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = toy_run(tmp_path, **EVERY)
    run_toy(run, Marks())
    board = EventAccumulator(str(run.folder)).Reload()
    assert {event.step: event.value for event in board.Scalars("mark")} == VALUES


def test_patience_ends_the_training_without_an_error(tmp_path: Path) -> None:
    run, task = toy_run(tmp_path, **EVERY, patience=3), Toy()
    ended = run_toy(run, Marks(), task=task)
    assert task.steps[-1] == 130, "80 was the best; 100, 120 and 140 are not better"
    assert ended.startswith("0.14 kimg, stopped early")
    assert ended.endswith("best mark 2.5 at 0.08 kimg: best.safetensors")
    assert state(run.folder)["nimg"] == 140
    assert log(run.folder)[-1]["nimg"] == 140
    assert (run.folder / "fakes" / "000000.140.png").is_file()
    # Going on with it changes nothing, unless there is more patience.
    validator = Marks()
    assert run_toy(Run(run.folder), validator, resume=True) == ended
    assert validator.asked == []
    raw = run.config.model_dump()
    raw["training"]["patience"] = 4
    run.update_config(type(run.config)(**raw))
    assert run_toy(run, validator, resume=True).startswith("0.2 kimg; best mark 2 at 0.16")


@pytest.mark.parametrize("stop", [50, 90, 100, 130])
def test_a_resumed_run_stops_where_an_uninterrupted_one_does(tmp_path: Path, stop: int) -> None:
    settings = {**EVERY, "patience": 3, "checkpoint_kimg": 0.05}
    whole = toy_run(tmp_path / "whole", **settings)
    run_toy(whole, Marks())
    run, task = toy_run(tmp_path / "parts", **settings), fresh()
    task.after_step = lambda nimg: os.kill(os.getpid(), signal.SIGINT) if nimg == stop else None
    with pytest.raises(Interrupted):
        run_toy(run, Marks(), task=task)
    run_toy(run, Marks(), resume=True)
    same(state(run.folder), state(whole.folder))
    assert validations(run) == validations(whole)
    assert run.best_path.read_bytes() == whole.best_path.read_bytes()


def test_a_killed_run_validates_again_after_its_checkpoint(tmp_path: Path) -> None:
    whole = toy_run(tmp_path / "whole", **EVERY)
    run_toy(whole, Marks())
    run, task = toy_run(tmp_path / "parts", **EVERY), fresh()

    def die(nimg: int) -> None:
        if nimg == 150:  # 120 and 140 were validated and are no better; the last checkpoint is that of 100
            raise RuntimeError("killed")

    task.after_step = die
    with pytest.raises(RuntimeError, match="killed"):
        run_toy(run, Marks(), task=task)
    assert best(run)[0]["nimg"] == 80
    again = Marks()
    run_toy(run, again, resume=True)
    assert again.asked == [120, 140, 160, 180, 200]
    assert validations(run) == validations(whole)
    same(state(run.folder), state(whole.folder))
    assert metrics_of(run.folder) == metrics_of(whole.folder)


@pytest.mark.parametrize(("dies", "described"), [("state.pt", 80), ("best.safetensors", 80), ("", 160)])
def test_a_line_describes_the_best_model_whenever_a_run_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: str, described: int
) -> None:
    """Killed in place of writing one of the files when 160 was found best, or right after them; the checkpoint before is that of 100."""
    whole = toy_run(tmp_path / "whole", **EVERY)
    run_toy(whole, Marks())
    run, task = toy_run(tmp_path / "parts", **EVERY), fresh()
    seen = [0]

    def after_step(nimg: int) -> None:
        seen[0] = nimg
        if nimg == 170:
            raise RuntimeError("killed")

    def dying(save: Callable[..., None]) -> Callable[..., None]:
        def wrapped(path: Path, *rest: Any) -> None:
            if seen[0] == 160 and path.name == dies:
                raise RuntimeError("killed")
            save(path, *rest)

        return wrapped

    task.after_step = after_step
    with monkeypatch.context() as patch:
        for name in ("save_state", "save_model"):
            patch.setattr(checkpoint, name, dying(getattr(checkpoint, name)))
        with pytest.raises(RuntimeError, match="killed"):
            run_toy(run, Marks(), task=task)
    assert (best(run)[0]["nimg"], best(run)[1]) == (described, described)
    again = Marks(lambda nimg: 10.0)  # nothing more is better: the best model is what the killed process left
    run_toy(run, again, resume=True)
    kept = [row for row in validations(run) if row["best"]]
    left = 80 if dies == "state.pt" else 160
    assert kept == [row for row in validations(whole) if row["best"]][: 3 if left == 80 else 4]
    assert again.asked[0] == (120 if left == 80 else 180)
    assert (best(run)[0]["nimg"], best(run)[1], best(run)[0]["best"]["value"]) == (left, left, kept[-1]["mark"])


def test_a_metric_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    run = toy_run(tmp_path, **EVERY)
    with pytest.raises(JobFailed, match=r"mark is nan .*0.12 kimg .*0.1 kimg"):
        run_toy(run, Marks(lambda nimg: math.nan if nimg > 100 else 1.0))
    assert [row["nimg"] for row in validations(run)] == [20, 40, 60, 80, 100]
    assert best(run)[0]["nimg"] == 20


def test_a_state_of_before_validation_existed_resumes(tmp_path: Path) -> None:
    run = toy_run(tmp_path, total_kimg=0.1)
    run_toy(run, None)
    old = state(run.folder)
    del old["validation"]
    torch.save(old, run.folder / "state.pt")
    raw = run.config.model_dump()
    raw["training"] |= {"total_kimg": 0.2, **EVERY}
    run.update_config(type(run.config)(**raw))
    validator = Marks()
    run_toy(run, validator, resume=True)
    assert validator.asked == [120, 140, 160, 180, 200]


def test_patience_without_validation_is_refused(tiny: Any, tmp_path: Path) -> None:
    result = tiny.train(tiny.config("dcgan"), tmp_path, patience=3)
    assert result.exit_code == 2
    assert all(key in errors(result)[-1] for key in ("training.patience", "training.eval_kimg"))


def test_a_task_without_validation_is_refused(tiny: Any, tmp_path: Path) -> None:
    result = tiny.train(tiny.config("izi_f"), tmp_path, "--generator", tiny.generator, eval_kimg=0.016)
    assert result.exit_code == 2
    assert all(key in errors(result)[-1] for key in ("izi_f", "training.eval_kimg"))
    assert not list(tmp_path.iterdir())


def test_the_presets_of_classifiers_are_validated() -> None:
    for name in ("densenet121_64", "densenet121_512"):
        training = load_config(name).training
        assert training.patience is not None
        assert training.eval_kimg is not None
        assert training.eval_kimg * training.patience < training.total_kimg


def test_validated_in_full_precision_and_trained_as_asked(tmp_path: Path) -> None:
    backends: Any = torch.backends
    units = [backends.cuda.matmul, backends.cudnn.conv]
    before = [unit.fp32_precision for unit in units]
    seen: dict[str, list[str]] = {"validated": [], "trained": []}

    def value(nimg: int) -> float:
        seen["validated"] += [unit.fp32_precision for unit in units]
        assert not torch.is_autocast_enabled("cpu")
        return float(nimg)

    task = fresh()
    task.after_step = lambda nimg: seen["trained"].extend(unit.fp32_precision for unit in units)
    try:
        for unit in units:
            unit.fp32_precision = "tf32"
        run_toy(toy_run(tmp_path, precision="bf16", **EVERY), Marks(value), task=task)
    finally:
        for unit, precision in zip(units, before, strict=True):
            unit.fp32_precision = precision
    assert set(seen["validated"]) == {"ieee"}
    assert set(seen["trained"]) == {"tf32"}
