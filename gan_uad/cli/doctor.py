"""`gan-uad doctor`: is this machine fit for the work? One PASS, WARN or FAIL line a check, each with its mend.

Every check runs whatever the others find, and none changes anything: probes of folders are removed again.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import click

from gan_uad import device

DISTRIBUTION = "gan_uad"
Status = Literal["PASS", "WARN", "FAIL"]

_GIB = 1 << 30
_PAIR = "pip uninstall -y torch torchvision; pip install torch torchvision   (in one command, so that pip picks a pair)"
_AGAIN = "install gan_uad again from its checkout: pip install -e ."


@dataclass(frozen=True)
class Check:
    """One finding; `mend` says what to do, and is empty when nothing need be done."""

    check: str
    status: Status
    detail: str
    mend: str = ""


def doctor(as_json: bool = False, data: str | None = None, out: str | Path = "runs") -> int:
    """Print all checks, as lines or as a JSON list of {check, status, detail, mend}; return 1 if any failed, else 0.

    `data`: a patch set to look for; `out`: the folder that runs are to be written to.
    """
    found: list[Check] = []
    for name, probe in _probes(data, Path(out)).items():
        for check in _guarded(name, probe):
            found.append(check)
            if not as_json:  # each line as it is known: importing torch alone takes seconds
                _print(check)
    if as_json:
        click.echo(json.dumps([asdict(check) for check in found], indent=2))
    else:
        count = {status: sum(check.status == status for check in found) for status in ("PASS", "WARN", "FAIL")}
        click.echo(", ".join(f"{n} {status}" for status, n in count.items()))
    return int(any(check.status == "FAIL" for check in found))


def _probes(data: str | None, out: Path) -> dict[str, Callable[[], Iterable[Check]]]:
    probes: dict[str, Callable[[], Iterable[Check]]] = {
        "python": _python,
        "torch": _torch,
        "packages": _packages,
        "numerics": _numerics,
        "slides": _slides,
        "presets": _presets,
        "cores": _cores,
        "memory": _memory,
        "shared memory": _shared_memory,
        "malloc": _malloc,
        "runs folder": lambda: _folder("runs folder", out, "choose another with --out DIR"),
        "cache folder": _cache_folder,
        "environment": _environment,
    }
    if data is not None:
        probes["data"] = lambda: [_exists("data", data, "give the path of a folder, zip, .npz or .h5 of patches")]
    return probes


def _guarded(name: str, probe: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """A probe that itself breaks is a finding too, and must not hide the ones after it."""
    try:
        yield from probe()
    except Exception as error:
        yield Check(name, "FAIL", f"the check broke: {_line(error)}", _AGAIN)


def _print(check: Check) -> None:
    colour = {"PASS": "green", "WARN": "yellow", "FAIL": "red"}[check.status]
    click.echo(f"{click.style(check.status, fg=colour)}  {check.check}: {check.detail}")
    if check.mend:
        click.echo(f"      mend: {check.mend}")


def _python() -> Iterator[Check]:
    version, least = sys.version_info[:3], (3, 11)
    text = ".".join(map(str, version))
    if version >= least:
        yield Check("python", "PASS", f"{text} ({platform.system()} {platform.machine()})")
    else:
        yield Check("python", "FAIL", f"{text} is older than 3.11", "make the environment with Python 3.11 or later")


def _torch() -> Iterator[Check]:
    """torch, torchvision, whether they belong together, and CUDA."""
    torch, broken = _import("torch")
    if broken:
        yield Check("torch", "FAIL", f"does not import: {broken}", _PAIR)
        return
    yield Check("torch", "PASS", f"{torch.__version__}")
    yield _torchvision(torch)
    yield _cuda(torch)


def _torchvision(torch: Any) -> Check:
    torchvision, broken = _import("torchvision")
    if broken:
        # The usual way here: a CPU-only torch from elsewhere beside the torchvision of the package index.
        return Check("torchvision", "FAIL", f"does not import beside torch {torch.__version__}: {broken}", _PAIR)
    try:
        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except Exception as error:
        detail = f"{torchvision.__version__} does not work with torch {torch.__version__}: {_line(error)}"
        return Check("torchvision", "FAIL", detail, _PAIR)
    return Check("torchvision", "PASS", f"{torchvision.__version__}, works with this torch")


def _cuda(torch: Any) -> Check:
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        detail = ", ".join(f"{card.name} ({card.total_memory / _GIB:.0f} GiB)" for card in cards)
        return Check("cuda", "PASS", f"{torch.version.cuda}: {detail}")
    use = "the CPU will be used"
    small = "for CPU training choose the presets whose names end in _small"
    driver = Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi")
    if torch.version.cuda is None and driver:
        return Check("cuda", "WARN", f"this torch is built without CUDA, though there is a driver; {use}", _PAIR)
    if driver:
        mend = f"update the NVIDIA driver to one that supports CUDA {torch.version.cuda}, or {small}"
        return Check("cuda", "WARN", f"torch cannot use the NVIDIA driver of this machine; {use}", mend)
    return Check("cuda", "WARN", f"no NVIDIA GPU; {use}", small)


def _packages() -> Iterator[Check]:
    """Every required package of the package's own metadata, against its least version."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        yield Check("packages", "FAIL", f"{DISTRIBUTION} itself is not installed", _AGAIN)
        return
    required = [Requirement(line) for line in lines]
    required = [r for r in required if r.marker is None or r.marker.evaluate({"extra": ""})]
    good = []
    for requirement in sorted(required, key=lambda r: r.name.lower()):
        mend = f'pip install --upgrade "{requirement.name}{requirement.specifier}"'
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Check("packages", "FAIL", f"{requirement.name} is not installed", mend)
            continue
        if requirement.specifier.contains(version, prereleases=True):
            good.append(f"{requirement.name} {version}")
        else:
            yield Check(
                "packages", "FAIL", f"{requirement.name} {version}, but {requirement.specifier} is needed", mend
            )
    yield Check("packages", "PASS", ", ".join(good))


def _numerics() -> Iterator[Check]:
    """One step of a small convolution, forward and backward, in float32 against float64 on the CPU."""
    torch, broken = _import("torch")
    if broken:
        return
    for name in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        error = _conv_error(torch, name)
        # float32 gives about 1e-6, TF32 about 1e-3; a broken kernel is off by orders of magnitude.
        if error < 5e-3:
            yield Check("numerics", "PASS", f"convolution on {name}: relative error {error:.1e}")
        else:
            yield Check("numerics", "FAIL", f"convolution on {name} is wrong: relative error {error:.1e}", _PAIR)


def _conv_error(torch: Any, name: str) -> float:
    """Largest relative error of output, input and weight gradient of a 3x3 convolution [2, 8, 16, 16]."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 8, 16, 16, generator=generator, dtype=torch.float64)
    kernel = torch.randn(8, 8, 3, 3, generator=generator, dtype=torch.float64)

    def run(device_name: str, dtype: Any) -> list[Any]:
        x = image.to(device_name, dtype).requires_grad_()
        weight = kernel.to(device_name, dtype).requires_grad_()
        y = torch.nn.functional.conv2d(x, weight, padding=1)
        y.square().mean().backward()
        return [tensor.detach().cpu().double() for tensor in (y, x.grad, weight.grad)]

    pairs = zip(run(name, torch.float32), run("cpu", torch.float64), strict=True)
    errors = [float((got - want).abs().max() / want.abs().max()) for got, want in pairs]
    return max(errors) if all(error == error for error in errors) else float("inf")


def _slides() -> Iterator[Check]:
    """OpenSlide's library, which is a package of its own, and a slide written by tifffile that it reads back."""
    mend = "pip install --upgrade openslide-python openslide-bin tifffile"
    openslide, broken = _import("openslide")
    if broken:
        yield Check("slides", "FAIL", f"OpenSlide does not load: {broken}", mend)
        return
    import numpy as np
    import tifffile

    from gan_uad.slides.reader import open_slide

    image = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    with tempfile.TemporaryDirectory(prefix="gan_uad_doctor") as folder:
        path = Path(folder) / "slide.tif"
        tifffile.imwrite(path, image, tile=(64, 64), photometric="rgb", metadata=None)
        with open_slide(path, mpp=0.5) as slide:
            right = bool(np.all(slide.read(0, 0, 64, 64, 0.5) == image))
    versions = f"OpenSlide {openslide.__library_version__}, tifffile {tifffile.__version__}"
    if not right:
        yield Check("slides", "FAIL", f"{versions}: a slide is read wrongly", mend)
        return
    _, without = _import("imagecodecs")
    codecs = (
        "without imagecodecs, which only compressed OME-TIFFs need (pip install imagecodecs)"
        if without
        else "imagecodecs"
    )
    yield Check("slides", "PASS", f"{versions}, {codecs}")


def _presets() -> Iterator[Check]:
    from gan_uad import config

    found = config.presets()
    if not found:
        yield Check("presets", "FAIL", f"none in {config.presets_dir()}", _AGAIN)
        return
    broken = []
    for name in found:
        try:
            config.load_config(name)
        except click.ClickException as error:
            broken.append(f"{name} ({error.message})")
    if broken:
        yield Check("presets", "FAIL", "; ".join(broken), _AGAIN)
    else:
        yield Check("presets", "PASS", ", ".join(found))


def _cores() -> Iterator[Check]:
    count, there = device.cores(), os.cpu_count() or 1
    detail = f"{count} of {there} CPU cores may be used"
    if count > 1:
        yield Check("cores", "PASS", detail)
    else:
        yield Check(
            "cores", "WARN", detail, "CPU training will be slow: allow more cores (taskset, --cpus), or use a GPU"
        )


def _memory() -> Iterator[Check]:
    free = _available_memory()
    if free is None:
        yield Check("memory", "WARN", "cannot tell how much memory is free", "see that 4 GiB are free")
    elif free < 4 * _GIB:
        mend = "close other programs, or train with a smaller training.batch"
        yield Check("memory", "WARN", f"{free / _GIB:.1f} GiB free, 4 GiB are advised", mend)
    else:
        yield Check("memory", "PASS", f"{free / _GIB:.1f} GiB free")


def _available_memory() -> int | None:
    """Bytes that this process may still take, by the system and by its container."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no container, or "max": no limit
        return free
    return min(free, max(0, limit - used))


def _shared_memory() -> Iterator[Check]:
    """Worker processes hand batches over through /dev/shm, which containers make 64 MiB by default."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        yield Check("shared memory", "WARN", "there is no /dev/shm", "mount a tmpfs of 1 GiB there")
        return
    size = shutil.disk_usage(folder).total
    if size < _GIB:
        mend = "start the container with --shm-size=4g (or --ipc=host)"
        yield Check("shared memory", "WARN", f"/dev/shm has only {size / (1 << 20):.0f} MiB", mend)
    else:
        yield Check("shared memory", "PASS", f"/dev/shm has {size / _GIB:.1f} GiB")


def _malloc() -> Iterator[Check]:
    if device.keep_freed_memory():
        yield Check("malloc", "PASS", "glibc can be told to keep freed memory (CPU training is about 1.4 times faster)")
    else:
        mend = "use a Linux with glibc (not musl), or preload another allocator"
        yield Check("malloc", "WARN", "the C library's allocator cannot be tuned: CPU training will be slower", mend)


def _folder(name: str, folder: Path, other: str) -> Iterator[Check]:
    """Can a file be made in `folder` (or, where it is yet to be made, in its nearest parent), and is there room?"""
    folder = folder.expanduser().absolute()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".gan_uad_doctor"):
            pass
    except OSError as error:
        yield Check(name, "FAIL", f"cannot write in {there}: {error.strerror or error}", other)
        return
    free = shutil.disk_usage(there).free
    detail = f"{folder} is writable, {free / _GIB:.1f} GiB free"
    if free < _GIB // 4:
        yield Check(name, "FAIL", detail, f"free some disk space, or {other}")
    elif free < 5 * _GIB:
        yield Check(name, "WARN", f"{detail}, 5 GiB are advised", f"free some disk space, or {other}")
    else:
        yield Check(name, "PASS", detail)


def _cache_folder() -> Iterator[Check]:
    from gan_uad.data.cache import default_dir

    yield from _folder("cache folder", default_dir(), "set GAN_UAD_CACHE to another folder")


def _environment() -> Iterator[Check]:
    unset = {
        "GAN_UAD_DATA": "`benchmark` and `download` use data/ here",
        "GAN_UAD_WEIGHTS": "pretrained weights come from torch's cache",
    }
    for variable, instead in unset.items():
        value = os.environ.get(variable)
        if value:
            yield _exists(variable, value, f"unset {variable}, or set it to the folder that is meant")
        else:
            yield Check(variable, "PASS", f"not set: {instead}")


def _exists(name: str, path: str, mend: str) -> Check:
    if not Path(path).exists():
        return Check(name, "FAIL", f"{path} does not exist", mend)
    if not os.access(path, os.R_OK):
        return Check(name, "FAIL", f"{path} may not be read", f"change its permissions, or {mend}")
    return Check(name, "PASS", path)


def _import(name: str) -> tuple[Any, str]:
    """The module and "", or None and why it does not import: a mismatched binary may raise anything."""
    try:
        return importlib.import_module(name), ""
    except Exception as error:
        return None, _line(error)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
