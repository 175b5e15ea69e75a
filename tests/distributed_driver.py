"""Several processes for the tests of test_distributed.py.

`distributed_driver.py OUT SPEC`, under torchrun or alone: train steps of a task, and keep what came out. SPEC is JSON, a list of
arguments of `steps`; the results are in OUT/RANK.pt.

`distributed_driver.py serve`: imports everything once, then forks groups of processes: for each line `[SIZE, FOLDER, ARGUMENTS,
MEMORY]` on stdin, SIZE processes of `gan-uad ARGUMENTS` with MEMORY further bytes each (or null), their output in
FOLDER/RANK.txt; answers with a line of their process ids and, when all have ended, one of their exit codes.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.utils.tensorboard
from torch import nn

from gan_uad.cli.main import main
from gan_uad.config import load_config
from gan_uad.training import distributed
from gan_uad.training.train import build_task


@contextmanager
def double() -> Iterator[None]:
    """In double precision rounding is nothing; in single precision it may turn a ReLU on or off, and with it a gradient."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@double()
def steps(source: str, overrides: tuple[str, ...] = (), count: int = 2, batch_norm: bool = False) -> dict[str, Any]:
    """Train a configuration (preset or file) for a few steps on random images, the same in any number of processes.

    In float64. Without `batch_norm` that is kept at its running statistics. Every optimiser is plain gradient descent: Adam makes
    a full step of a difference by rounding. Returns metrics (means over processes), gradients and the state.
    """
    config = load_config(source, tuple(overrides))
    torch.manual_seed(config.training.seed)
    task = build_task(config, torch.device("cpu"))
    task.micro_batch = config.training.micro_batch
    for net in task.modules():
        for layer in net.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and not batch_norm:
                layer.eval()
    for name, value in list(vars(task).items()):
        if isinstance(value, torch.optim.Optimizer):
            setattr(task, name, torch.optim.SGD(value.param_groups[0]["params"], 0.01))
    rng, batch, here = torch.Generator().manual_seed(1), config.training.batch, distributed.world()
    metrics = []
    for k in range(count):
        real = torch.rand(batch, 3, config.resolution, config.resolution, generator=rng) * 2 - 1
        logged = task.step(distributed.share(real, here), k * batch)
        metrics.append({name: float(distributed.mean(value)) for name, value in logged.items()})
    task.synchronise()
    gradients = {
        f"{role}.{name}": p.grad
        for role, net in vars(task).items()
        if isinstance(net, nn.Module)
        for name, p in net.named_parameters()
    }
    return {"metrics": metrics, "gradients": gradients, "state": task.state_dict()}


def work(out: Path, spec: list[dict[str, Any]]) -> None:
    """The steps of each entry of `spec`, in this process's place of the group."""
    torch.set_num_threads(1)
    with distributed.processes() as here:
        torch.save([steps(**entry) for entry in spec], out / f"{here.rank}.pt")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def group(size: int, folder: Path, arguments: list[str], memory: int | None) -> list[int]:
    """Fork a group of processes, each as torchrun would start it; their process ids."""
    common = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    common["MASTER_PORT"] = str(free_port())
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            os.environ |= common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            output = os.open(folder / f"{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            try:
                if memory is not None:
                    now = int(Path("/proc/self/statm").read_text().split()[5]) * os.sysconf("SC_PAGE_SIZE")
                    resource.setrlimit(resource.RLIMIT_DATA, (now + memory, -1))
                if arguments[0] == "steps":
                    work(folder, json.loads(arguments[1]))
                else:
                    main(arguments)
                os._exit(0)
            except SystemExit as end:
                sys.stdout.flush()
                os._exit(int(end.code or 0))
            except BaseException:
                traceback.print_exc()
                os._exit(70)
        children.append(child)
    return children


def serve(requests: Iterator[str]) -> None:
    """Answer requests until they end."""
    torch.set_num_threads(1)
    torch.optim.Adam([torch.zeros(1)])  # the first optimiser of a process imports for seconds
    for line in requests:
        size, folder, *request = json.loads(line)
        children = group(size, Path(folder), *request)
        print(json.dumps(children), flush=True)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(iter(sys.stdin.readline, ""))
    else:
        work(Path(sys.argv[1]), json.loads(sys.argv[2]))
