"""What processes say to each other: how often, how much, in which order, and without waiting for a device."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fake_world import FakeWorld
from run_tools import Toy, same, state, toy_run, train_toy
from torch import Tensor, nn

from gan_uad.config import load_config
from gan_uad.errors import Interrupted, JobFailed
from gan_uad.run import Run
from gan_uad.training import distributed, engine
from gan_uad.training.train import build_task


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> FakeWorld:
    return FakeWorld().start(monkeypatch)


# ---------------------------------------------------------------- gradients


def layers(count: int = 4) -> tuple[nn.Sequential, list[nn.Parameter]]:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(count)))
    return net, list(net.parameters())


def test_one_process_gets_no_hooks() -> None:
    _, weights = layers()
    with distributed.averaging(weights):
        assert not any(p._post_accumulate_grad_hooks for p in weights)


def test_buckets_start_during_the_backward_pass_the_last_weights_first(
    two: FakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a bucket starts, earlier weights have no gradient yet."""
    net, weights = layers()
    monkeypatch.setattr(distributed, "BUCKET", 2 * weights[0].nbytes)
    there: list[list[bool]] = []
    reduce = two.all_reduce

    def spy(x: Tensor, async_op: bool = False) -> Any:
        there.append([p.grad is not None for p in weights])
        return reduce(x, async_op)

    monkeypatch.setattr(dist, "all_reduce", spy)
    with distributed.averaging(weights):
        net(torch.ones(2, 8)).sum().backward()
        assert len(there) == 2
    assert there == [[False, False, True, True], [True] * 4]
    assert not any(p._post_accumulate_grad_hooks for p in weights)


def test_a_bucket_waits_for_those_before_it(two: FakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is that of the weights, not of the backward pass: here the first weights have their gradients first."""
    _, weights = layers(2)
    monkeypatch.setattr(distributed, "BUCKET", weights[0].nbytes)
    order: list[Tensor] = []
    monkeypatch.setattr(dist, "all_reduce", lambda x, async_op: order.append(x.clone()) or two.all_reduce(x, async_op))
    with distributed.averaging(weights):
        weights[0].sum().backward()
        assert not order
        (2 * weights[1]).sum().backward()
    assert [float(x[0]) for x in order] == [2, 1]


def test_gradients_keep_their_values_strides_and_absence(two: FakeWorld) -> None:
    """Equal processes have their own gradient as the mean; a weight without one still travels, and has none after."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    unused, double = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(3, dtype=torch.float64))
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    weights = [*conv.parameters(), unused, double, frozen]
    x = torch.rand(2, 3, 8, 8)

    def backward() -> None:
        (conv(x).square().sum() + double.prod()).backward()

    backward()
    expected = [None if p.grad is None else p.grad.clone() for p in weights]
    for p in weights:
        p.grad = None
    with distributed.averaging(weights):
        backward()
    for p, grad in zip(weights, expected, strict=True):
        assert (p.grad is None) == (grad is None)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, grad)
            assert p.grad.stride() == p.stride()
    assert sum(size for _, size, _ in two.calls) == sum(p.nbytes for p in weights)


def test_a_missing_gradient_travels_as_zeros(two: FakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as whatever was in memory."""
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    sent: list[Tensor] = []
    monkeypatch.setattr(torch, "empty", lambda size, **kind: torch.full((size,), torch.nan, **kind))
    monkeypatch.setattr(dist, "all_reduce", lambda x, async_op: sent.append(x.clone()) or two.all_reduce(x, async_op))
    with distributed.averaging([used, unused]):
        used.sum().backward()
    assert [x.tolist() for x in sent] == [[0, 0, 0, 1, 1]]


def test_a_gradient_penalty_reduces_once(two: FakeWorld) -> None:
    """The pass of `autograd.grad` inside the loss starts nothing, and several passes reduce only in the last."""
    net, weights = layers()
    task = Toy()
    optimizer = torch.optim.SGD(weights, 0.1)
    task.micro_batch = 2

    def loss(part: slice) -> tuple[Tensor, dict[str, Tensor]]:
        x = torch.ones(4, 8)[part].requires_grad_(True)
        (slope,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        assert not two.calls
        return slope.square().mean(), {}

    task.optimise(optimizer, 4, loss)
    assert two.calls == [("all_reduce", sum(p.nbytes for p in weights), "cpu")]


def test_no_gradient_is_read_on_the_host(two: FakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    net, weights = layers()
    unused = nn.Parameter(torch.ones(3))

    def read(*_: Any) -> Any:
        raise AssertionError("the host reads a tensor: on a GPU it would wait")

    for name in ("item", "tolist", "numpy", "cpu", "to", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(Tensor, name, read)
    monkeypatch.setattr(torch, "tensor", read)
    Toy().optimise(torch.optim.SGD([*weights, unused], 0.1), 4, lambda part: (net(torch.ones(4, 8)).sum(), {}))
    assert len(two.calls) == 1


def test_processes_that_update_different_weights_end_before_they_save(
    two: FakeWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the other process (rank 0 of two) has a gradient for `b`, this one has none."""
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    other, task = Toy(), Toy()
    other.optimise(torch.optim.SGD([a, b], 0.1), 1, lambda part: ((a + b).sum(), {}))
    task.optimise(torch.optim.SGD([a, b], 0.1), 1, lambda part: (a.sum(), {}))
    assert other.updated != task.updated
    monkeypatch.setattr(distributed, "from_first", lambda value: (1, other.updated))
    run = toy_run(tmp_path)
    loop = engine._Loop(task, run, torch.device("cpu"), {}, engine.ValidationTracker(None, run))
    with pytest.raises(JobFailed):
        loop.agree(0.1, 10)
    task.updated = other.updated
    loop.agree(0.1, 10)


# ---------------------------------------------------------------- how many collectives a step makes


@pytest.mark.parametrize(
    ("source", "overrides", "nimg", "most"),
    [
        # G, path, D, R1 in a bucket each; the means of w and of the path length
        (
            "stylegan2_64_small",
            ("resolution=32", "network.channel_max=16", "training.batch=4", "optim.path_weight=2"),
            0,
            6,
        ),
        (
            "stylegan2_64_small",
            ("resolution=32", "network.channel_max=16", "training.batch=4", "optim.path_weight=2"),
            4,
            3,
        ),
        ("wgan_gp_64_small", ("resolution=32", "training.batch=4", "optim.n_critic=1"), 0, 2),
    ],
)
def test_collectives_of_a_step(two: FakeWorld, source: str, overrides: tuple[str, ...], nimg: int, most: int) -> None:
    task = build_task(load_config(source, overrides), torch.device("cpu"))
    task.step(torch.zeros(2, 3, 32, 32), nimg)
    assert len(two.calls) == most
    assert {name for name, _, _ in two.calls} == {"all_reduce"}


def test_collectives_of_an_encoder_step(two: FakeWorld, tiny: Any) -> None:
    config = load_config(str(tiny.config("izi_f")), (f"generator={tiny.generator}", "network.z_dim=4"))
    task = build_task(config, torch.device("cpu"))
    task.step(torch.zeros(2, 3, 32, 32), 0)
    assert [name for name, _, _ in two.calls] == ["all_reduce"]


# ---------------------------------------------------------------- broadcasts


def test_many_tensors_travel_in_few_broadcasts(two: FakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = nn.Sequential(*(nn.BatchNorm2d(4) for _ in range(20)))
    distributed.broadcast(norms)
    assert len(two.calls) == 2  # float32 and batch norm's int64 counters
    assert sum(size for _, size, _ in two.calls) == sum(t.nbytes for t in norms.state_dict().values())
    two.calls.clear()
    monkeypatch.setattr(distributed, "BUCKET", 64)
    distributed.broadcast(norms)
    assert max(size for _, size, _ in two.calls) <= 64


class Pair:
    """Two threads that are the two processes of a group."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.barrier, self.box, self.own = threading.Barrier(2), [], threading.local()
        self.pickled: list[Any] = []
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_rank", lambda: self.own.rank)
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        monkeypatch.setattr(dist, "broadcast", lambda x, src: x.copy_(self.of_first(x)))
        monkeypatch.setattr(dist, "broadcast_object_list", self.objects)

    def of_first(self, value: Any) -> Any:
        if self.own.rank == 0:
            self.box = [value]
        self.barrier.wait(10)
        (found,) = self.box
        self.barrier.wait(10)
        return found

    def objects(self, box: list[Any], src: int, device: Any) -> None:
        box[0] = self.of_first(box[0])
        self.pickled.append(box[0])

    def run(self, work: Any) -> list[Any]:
        results: list[Any] = [None, None]

        def one(rank: int) -> None:
            self.own.rank = rank
            results[rank] = work(rank)

        threads = [threading.Thread(target=one, args=(rank,)) for rank in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return results


def test_a_state_arrives_whole_and_its_tensors_are_not_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(monkeypatch)
    monkeypatch.setattr(distributed, "BUCKET", 100)
    whole = {
        "nimg": 7,
        "list": [torch.arange(9), (torch.tensor(True), None, "text")],
        "nested": {"weights": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last), "empty": torch.zeros(0)},
        "half": torch.rand(70).bfloat16(),
        "bytes": torch.get_rng_state(),
    }
    first, second = pair.run(lambda rank: distributed.state_from_first(whole if rank == 0 else None))
    assert first is whole
    same(second, whole)
    assert second["nested"]["weights"].stride() == whole["nested"]["weights"].stride()
    found: list[Tensor] = []
    distributed._with_tensors(pair.pickled, found.append)
    assert {tensor.device.type for tensor in found} == {"meta"}


# ---------------------------------------------------------------- requests to stop


def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    questions: list[bool] = []
    monkeypatch.setattr(distributed, "any_of", lambda flag: questions.append(flag) or flag)
    return questions


def loop_of(tmp_path: Path) -> Any:
    run = toy_run(tmp_path)
    return engine._Loop(Toy(), run, torch.device("cpu"), {}, engine.ValidationTracker(None, run))


@pytest.mark.parametrize(("seconds", "times"), [(0.001, 2), (0.3, 5), (0.6, 16), (20, 16)])
def test_processes_ask_about_once_a_second(
    two: FakeWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, times: int
) -> None:
    """16 steps: every eighth at most, each one where steps are long."""
    loop = loop_of(tmp_path)
    loop.agree(seconds, 0)
    questions = asked(monkeypatch)
    for _ in range(16):
        loop.stopped(False, now=False)
    assert len(questions) == times
    loop.stopped(False, now=True)
    assert len(questions) == times + 1


def test_one_process_stops_at_each_step(tmp_path: Path) -> None:
    loop = loop_of(tmp_path)
    loop.agree(0.001, 0)
    assert [loop.stopped(k == 3, now=False) for k in range(5)] == [False, False, False, True, False]


# ---------------------------------------------------------------- torch's own random numbers


class Dropping(Toy):
    """Logs numbers of torch's global generator."""

    def step(self, real: Tensor, nimg: int) -> dict[str, Tensor]:
        self.drawn = [*getattr(self, "drawn", []), float(torch.rand(()))]
        return super().step(real, nimg)


def drawn(run: Run, resume: bool = False) -> list[float]:
    """The numbers of a training by this process; seeded alike in all, as `train` does."""
    torch.manual_seed(5)
    task = Dropping()
    train_toy(task, run, resume)
    return task.drawn


def test_processes_draw_different_numbers_and_rank_0_those_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = drawn(toy_run(tmp_path / "alone"))
    FakeWorld().start(monkeypatch)
    assert drawn(toy_run(tmp_path / "first")) == alone
    assert len(set(alone)) == 20
    monkeypatch.undo()
    ours = []
    for rank, nimg in ((1, None), (1, None), (2, None), (1, 100)):
        FakeWorld(rank=rank, size=3).start(monkeypatch)
        loop = loop_of(tmp_path / f"{len(ours)}")
        loop.saved_nimg = nimg
        loop.seed([{"cpu": torch.get_rng_state()}])
        ours.append(float(torch.rand(())))
        monkeypatch.undo()
    assert ours[0] == ours[1]
    assert len({alone[0], *ours}) == 4


def test_each_process_gets_its_own_state_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A checkpoint of two, resumed by three: two states are there, and one line says that the third is new."""
    states = []
    for k in range(2):
        torch.manual_seed(k)
        states.append({"cpu": torch.get_rng_state()})
    for rank, wanted in enumerate(states):
        FakeWorld(rank=rank, size=3).start(monkeypatch)
        loop = loop_of(tmp_path / str(rank))
        loop.saved_nimg = 100
        loop.seed(states)
        assert torch.equal(torch.get_rng_state(), wanted["cpu"])
        if rank == 0:
            assert len(capsys.readouterr().err.splitlines()) == 1
        monkeypatch.undo()


def test_a_checkpoint_holds_the_generators_of_all_and_one_before_it_still_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = drawn(toy_run(tmp_path / "whole"))
    run = toy_run(tmp_path / "cut")
    torch.manual_seed(5)
    task = Dropping()
    task.after_step = lambda nimg: os.kill(os.getpid(), signal.SIGTERM) if nimg == 50 else None
    with pytest.raises(Interrupted):
        train_toy(task, run)
    saved = state(run.folder)
    (generators,) = saved.pop("generators")
    saved["torch_rng"] = generators["cpu"]
    torch.save(saved, run.folder / "state.pt")
    assert task.drawn + drawn(run, resume=True) == whole
    FakeWorld().start(monkeypatch)
    by_two = toy_run(tmp_path / "two")
    drawn(by_two)
    assert len(state(by_two.folder)["generators"]) == 2
