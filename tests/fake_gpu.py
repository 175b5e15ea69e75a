"""A CUDA device where there is none: tensors that say they are on `cuda:0`, refuse to meet those of the CPU, and count what a GPU would do.

    with fake_gpu() as gpu:
        net = net.to("cuda")
        gpu.reset()
        net(x.to("cuda"))
    gpu.launches, gpu.waits, gpu.bytes

Data lies on the CPU, and its storage carries a mark. `torch.Tensor.device` and the functions that move or make tensors are replaced
while the block lasts, and a dispatch mode sees every operation, also those of a backward pass. With `values=False` data lies on torch's
meta device: shapes only, so that a step of any size is counted in seconds.

What fails, as it does on a GPU: a tensor of the CPU with dimensions beside one of the device, NumPy's view of a device tensor, a
generator of another device. What waits for the device, and is counted by place: reading a value, copies that block or come from
pageable memory, results whose size depends on values. What is not imitated: streams, memory, autocast of plain layers
(`torch.autocast("cuda")` does nothing to CPU tensors; networks that ask for its dtype themselves follow it), and kernels' rounding.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
SOURCES = ("/gan_uad/", "/encoders/")
_real_to = torch.Tensor.to
_real_device = torch._C.TensorBase.device
_Generator = torch.Generator

# Operations that start no kernel, beside views.
_FREE = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias", "lift_fresh", "_unsafe_view",
    "is_same_size", "set_", "resize_",
}  # fmt: skip
# The host needs a value to know the size of the result, or to raise an error.
_WAITING = {
    "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal", "is_nonzero", "bincount", "repeat_interleave",
    "_linalg_eigh", "linalg_eigh", "_linalg_svd", "linalg_cholesky_ex", "linalg_inv_ex", "histc",
}  # fmt: skip
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
_FACTORIES = (
    "zeros", "ones", "empty", "full", "rand", "randn", "randint", "arange", "tensor", "eye", "linspace", "randperm", "as_tensor",
    "scalar_tensor",
)  # fmt: skip
_LIKE = ("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like")


class DeviceMistake(RuntimeError):
    """What would fail on a GPU."""


class _FakeGenerator(torch.Generator):
    def __new__(cls, device: Any = "cpu") -> _FakeGenerator:
        made = super().__new__(cls, device="cpu")
        made.on = torch.device(device)
        return made

    device = property(lambda self: self.on)


class FakeGpu(TorchDispatchMode):
    """What was counted. `launches`: kernels by operation; `waits`: (kind, file:function) of each wait of the host; `bytes`: read and
    written by kernels; `ops`: the overloads used."""

    def __init__(self, values: bool) -> None:
        super().__init__()
        self.values = values
        self.ops: set[Any] = set()
        self.within = False  # an operation, where torch's own code must see the true device
        self.reset()

    def reset(self) -> None:
        """Count from zero."""
        self.launches: Counter[str] = Counter()
        self.waits: Counter[tuple[str, str]] = Counter()
        self.bytes = 0

    @property
    def waiting_places(self) -> dict[str, int]:
        """Waits by file:function."""
        found: Counter[str] = Counter()
        for (_, place), count in self.waits.items():
            found[place] += count
        return dict(found)

    def wait(self, kind: str) -> None:
        self.waits[kind, _place()] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        ours = any(_place_of(t) == "cuda" for t in tensors)
        if name == "_local_scalar_dense":
            return self._read(func, args[0], ours)
        if name in ("copy_", "_foreach_copy_"):
            if not self._copy(args, kwargs, tensors):
                return args[0]
        elif ours:
            self._check(func, name, args, tensors)
        out = self._done(func, args, kwargs)
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        ours = ours or any(_real_device.__get__(t).type == "meta" for t in results)
        self._mark(results, tensors, ours)
        if ours and not (func.is_view or name in _FREE):
            self.launches[name] += 1
            self.ops.add(func)
            self.bytes += sum(map(_bytes, [*tensors, *results]))
        return out

    def _done(self, func: Any, args: Any, kwargs: Any) -> Any:
        before, self.within = self.within, True
        try:
            return func(*args, **kwargs)
        finally:
            self.within = before

    def _read(self, func: Any, x: Tensor, ours: bool) -> Any:
        if ours:
            self.wait("value read")
            if not self.values:
                return 1.0 if x.is_floating_point() else 1
        return func(x)

    def _copy(self, args: Any, kwargs: Any, tensors: list[Tensor]) -> bool:
        """Count the wait of a copy into the first argument; return whether it can be done."""
        into, source = args[0], args[1]
        if not isinstance(into, Tensor):
            return True
        places = _place_of(into), _place_of(source)
        if "any" not in places and places[0] != places[1]:
            blocking = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
            host = source if places[0] == "cuda" else into
            if blocking or not getattr(host.untyped_storage(), "pinned", False):
                self.wait(f"copy {places[1]} to {places[0]}")
        return _real_device.__get__(source).type != "meta" or _real_device.__get__(into).type == "meta"

    def _check(self, func: Any, name: str, args: Any, tensors: list[Tensor]) -> None:
        strangers = [t for t in tensors if _place_of(t) == "cpu" and t.ndim]
        if name in _INDEXING:
            indices = [i for i in args[1] if isinstance(i, Tensor)]
            if any(i.dtype in (torch.bool, torch.uint8) for i in indices):
                self.wait("boolean index")
            if _place_of(args[0]) == "cuda":
                for i in indices:
                    if _place_of(i) == "cpu":
                        self.wait("copy cpu to cuda")
                strangers = [t for t in strangers if not any(t is i for i in indices)]
        if strangers:
            shapes = ", ".join(str(list(t.shape)) for t in strangers)
            raise DeviceMistake(f"{func}: tensors of the CPU ({shapes}) beside those of the device, at {_place()}")
        if name in _WAITING:
            self.wait(name)

    def _mark(self, results: list[Tensor], tensors: list[Tensor], ours: bool) -> None:
        known = {t.untyped_storage()._cdata for t in tensors}
        made_in_torch = not tensors  # a constant of a composite operation: whose device it has is not seen here
        for t in results:
            storage = t.untyped_storage()
            if storage._cdata not in known:
                storage.place = "cuda" if ours else "any" if made_in_torch else _first_place(tensors)  # type: ignore[attr-defined]


def _first_place(tensors: list[Tensor]) -> str:
    places = {_place_of(t) for t in tensors}
    return "cpu" if "cpu" in places else "any"


def _place_of(t: Tensor) -> str:
    """ "cuda", "cpu" or "any": made inside torch, so it follows its use."""
    if _real_device.__get__(t).type == "meta":
        return "cuda"
    return getattr(t.untyped_storage(), "place", "cpu")


def _put(t: Any, place: str) -> Any:
    if isinstance(t, Tensor):
        t.untyped_storage().place = place  # type: ignore[attr-defined]
    return t


def _bytes(t: Tensor) -> int:
    """Distinct bytes that a tensor holds: an expanded one is small."""
    count = t.element_size()
    for size, stride in zip(t.shape, t.stride(), strict=True):
        count *= size if stride else 1
    return count


def _place() -> str:
    """file:function of the innermost line of this project."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        for root in SOURCES:
            if root in name and "site-packages" not in name:
                return f"{root.strip('/')}/{name.rpartition(root)[2]}:{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "tests"


def _is_cuda(device: Any) -> bool:
    return device is not None and not isinstance(device, int) and torch.device(device).type == "cuda"


def _target(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, list[Any], dict[str, Any]]:
    """The device that `Tensor.to` is asked for (None: the same), and its other arguments."""
    kwargs = dict(kwargs)
    other = kwargs.pop("other", None)
    device = kwargs.pop("device", None)
    rest: list[Any] = []
    for arg in args:
        if isinstance(arg, Tensor):
            other = arg
        elif isinstance(arg, torch.device | str):
            device = arg
        elif arg is not None:
            rest.append(arg)
    if other is not None:
        device, rest = other.device, [other.dtype, *rest]
    if kwargs.get("dtype", 0) is None:
        del kwargs["dtype"]
    return device, rest, kwargs


@contextmanager
def fake_gpu(values: bool = True) -> Iterator[FakeGpu]:
    """A block with one CUDA device. `values` False: shapes only, and a value that is read is 1."""
    gpu = FakeGpu(values)

    def onto(x: Tensor) -> Tensor:
        return _put(x.clone(), "cuda") if values else _real_to(x, "meta")

    def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        device, rest, kwargs = _target(args, kwargs)
        here = _place_of(self) == "cuda"
        there = here if device is None else _is_cuda(device)
        flags = [arg for arg in rest if isinstance(arg, bool)]
        non_blocking = bool(kwargs.pop("non_blocking", False) or (flags and flags[0]))
        rest = [arg for arg in rest if not isinstance(arg, bool)]
        if here == there:
            return _real_to(self, *rest, **kwargs) if rest or kwargs else self
        pinned = getattr(self.untyped_storage(), "pinned", False)
        if not (there and non_blocking and pinned):
            gpu.wait("copy cpu to cuda" if there else "copy cuda to cpu")
        if there:
            moved = onto(self)
        elif values:
            moved = _put(self.clone(), "cpu")
        else:
            moved = torch.ones(self.shape, dtype=self.dtype)
        return _real_to(moved, *rest, **kwargs) if rest or kwargs else moved

    def forbidden(self: Tensor, *_: Any, **__: Any) -> Any:
        if _place_of(self) == "cuda":
            raise DeviceMistake(f"NumPy cannot see a tensor of the device, at {_place()}")
        return None

    def guarded(real: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            forbidden(self)
            return real(self, *args, **kwargs)

        return method

    def tolist(self: Tensor) -> Any:
        if _place_of(self) == "cuda":
            gpu.wait("value read")
            if not values:
                return torch.ones(self.shape).tolist()
        return real_tolist(self)

    def deepcopy(self: Tensor, memo: Any) -> Tensor:
        return _put(real_deepcopy(self, memo), _place_of(self))  # the storage is copied without its mark

    def pin(self: Tensor, *_: Any) -> Tensor:
        if _place_of(self) == "cuda":
            raise DeviceMistake(f"only tensors of the CPU can be pinned, at {_place()}")
        pinned = _put(self.clone(), "cpu")
        pinned.untyped_storage().pinned = True
        return pinned

    def factory(name: str) -> Callable[..., Any]:
        real = getattr(torch, name)

        def made(*args: Any, **kwargs: Any) -> Any:
            device, generator = kwargs.pop("device", None), kwargs.get("generator")
            there = _is_cuda(device)
            if generator is not None and (generator.device.type == "cuda") != there:
                raise DeviceMistake(f"torch.{name}: a generator of another device, at {_place()}")
            if not there:
                given = {} if device is None else {"device": device}
                return _put(
                    real(*args, **kwargs, **given), "cpu" if not given or torch.device(device).type == "cpu" else "cuda"
                )
            if name in ("tensor", "as_tensor"):
                gpu.wait("copy cpu to cuda")
            if not values:
                kwargs.pop("generator", None)
                return real(*args, **kwargs, device="meta")
            if name not in ("empty", "tensor", "as_tensor"):
                gpu.launches[name] += 1
            return _put(real(*args, **kwargs), "cuda")

        return made

    def like(name: str) -> Callable[..., Any]:
        real = getattr(torch, name)

        def made(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            device = kwargs.pop("device", None)
            out: Tensor = real(x, *args, **kwargs)
            if device is None or _is_cuda(device) == (_place_of(x) == "cuda"):
                return out
            return onto(out) if _is_cuda(device) else _put(out.clone(), "cpu")

        return made

    def device_of(self: Tensor) -> torch.device:
        return CUDA if not gpu.within and _place_of(self) == "cuda" else _real_device.__get__(self)

    real_tolist, real_deepcopy = torch.Tensor.tolist, torch.Tensor.__deepcopy__
    methods = {
        "device": property(device_of),
        "is_cuda": property(lambda self: _place_of(self) == "cuda"),
        "is_cpu": property(lambda self: _place_of(self) != "cuda"),
        "is_meta": property(lambda self: False),
        "to": to,
        "cpu": lambda self, *_, **__: to(self, "cpu"),
        "cuda": lambda self, *_, **__: to(self, "cuda"),
        "type_as": lambda self, other: to(self, other),
        "numpy": guarded(torch.Tensor.numpy),
        "__array__": guarded(torch.Tensor.__array__),
        "tolist": tolist,
        "__deepcopy__": deepcopy,
        "pin_memory": pin,
        "is_pinned": lambda self, *_: bool(getattr(self.untyped_storage(), "pinned", False)),
    }
    cuda = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "set_device": lambda *_: None,
        "current_device": lambda: 0,
        "synchronize": lambda *_: gpu.wait("synchronize"),
        "is_bf16_supported": lambda *_, **__: True,
        "get_device_name": lambda *_: "fake",
        "get_device_capability": lambda *_: (9, 0),
        "max_memory_allocated": lambda *_: 0,
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
        "is_current_stream_capturing": lambda: False,
        "manual_seed_all": lambda *_: None,
    }
    functions: dict[str, Any] = {name: factory(name) for name in _FACTORIES} | {name: like(name) for name in _LIKE}
    with (
        mock.patch.multiple(torch.Tensor, create=True, **methods),
        mock.patch.multiple(torch.cuda, **cuda),
        mock.patch.object(
            torch.accelerator, "current_accelerator", return_value=None
        ),  # else optimisers ask for its stream
        mock.patch.multiple(torch, Generator=_FakeGenerator, **functions),
        gpu,
    ):
        yield gpu


def without_cuda_kernel(ops: set[Any]) -> list[str]:
    """Those of the operations that torch has for no CUDA device (of a torch that is built with CUDA)."""
    keys = ("CUDA", "CompositeExplicitAutograd", "CompositeImplicitAutograd", "CompositeExplicitAutogradNonFunctional")
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return sorted(op.name() for op in ops if not any(has(op.name(), key) for key in keys))
