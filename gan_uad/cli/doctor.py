"""`gan-uad doctor`: is this machine ready? One PASS, WARN or FAIL line per check, each with its fix.

Every check runs, whatever the others find. None changes anything: test files in folders are removed again.
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
_REINSTALL = "install gan_uad again from its checkout: pip install -e ."


@dataclass(frozen=True)
class Check:
    """One finding; `fix` says what to do, and is empty when there is nothing to do."""

    check: str
    status: Status
    detail: str
    fix: str = ""


def doctor(as_json: bool = False, data: str | None = None, out: str | Path = "runs") -> int:
    """Print all checks, as lines or as a JSON list of {check, status, detail, fix}; return 1 if any failed, else 0.

    `data`: a patch set to look for; `out`: the folder that runs will be written to.
    """
    found: list[Check] = []
    for name, probe in _probes(data, Path(out)).items():
        for check in _guarded(name, probe):
            found.append(check)
            if not as_json:  # print at once: importing torch alone takes seconds
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
        "slides": _slides,
        "cores": _cores,
        "memory": _memory,
        "runs folder": lambda: _folder("runs folder", out, "choose another with --out DIR"),
        "cache folder": _cache_folder,
        "environment": _environment,
    }
    if data is not None:
        probes["data"] = lambda: [_exists("data", data, "give the path of a folder, zip, .npz or .h5 of patches")]
    return probes


def _guarded(name: str, probe: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """A check that itself breaks is a finding too, and must not hide the ones after it."""
    try:
        yield from probe()
    except Exception as error:
        yield Check(name, "FAIL", f"the check broke: {_line(error)}", _REINSTALL)


def _print(check: Check) -> None:
    colour = {"PASS": "green", "WARN": "yellow", "FAIL": "red"}[check.status]
    click.echo(f"{click.style(check.status, fg=colour)}  {check.check}: {check.detail}")
    if check.fix:
        click.echo(f"      fix: {check.fix}")


def _python() -> Iterator[Check]:
    found, minimum = sys.version_info[:3], (3, 11)
    version = ".".join(map(str, found))
    if found >= minimum:
        yield Check("python", "PASS", f"{version} ({platform.system()} {platform.machine()})")
    else:
        yield Check("python", "FAIL", f"{version} is older than 3.11", "make the environment with Python 3.11 or later")


def _torch() -> Iterator[Check]:
    """torch, torchvision, whether they are a pair, and CUDA."""
    torch, broken = _import("torch")
    if broken:
        yield Check("torch", "FAIL", f"does not import: {broken}", _PAIR)
        return
    yield Check("torch", "PASS", f"{torch.__version__}")
    torchvision, broken = _import("torchvision")
    if not broken:
        try:
            torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
        except Exception as error:
            broken = _line(error)
    if broken:
        yield Check("torchvision", "FAIL", f"does not work with torch {torch.__version__}: {broken}", _PAIR)
    else:
        yield Check("torchvision", "PASS", f"{torchvision.__version__}, works with this torch")
    yield _cuda(torch)


def _cuda(torch: Any) -> Check:
    if torch.cuda.is_available():
        cards = ", ".join(_card(torch, i) for i in range(torch.cuda.device_count()))
        return Check("cuda", "PASS", f"{torch.version.cuda}: {cards}")
    use = "the CPU will be used"
    small = "for CPU training choose the presets whose names end in _small"
    driver = Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi")
    if torch.version.cuda is None and driver:
        return Check("cuda", "WARN", f"this torch is built without CUDA, though there is a driver; {use}", _PAIR)
    if driver:
        fix = f"update the NVIDIA driver to one that supports CUDA {torch.version.cuda}, or {small}"
        return Check("cuda", "WARN", f"torch cannot use the NVIDIA driver of this machine; {use}", fix)
    return Check("cuda", "WARN", f"no NVIDIA GPU; {use}", small)


def _card(torch: Any, index: int) -> str:
    card = torch.cuda.get_device_properties(index)
    units = "tf32 and bf16" if device.has_bf16(torch.device("cuda", index)) else "fp32 only"
    return f"{card.name} ({card.total_memory / _GIB:.0f} GiB, compute capability {card.major}.{card.minor}: {units})"


def _packages() -> Iterator[Check]:
    """Every package that gan_uad's own metadata requires, and its minimum version."""
    from packaging.requirements import Requirement

    try:
        required = [Requirement(line) for line in importlib.metadata.requires(DISTRIBUTION) or []]
    except importlib.metadata.PackageNotFoundError:
        yield Check("packages", "FAIL", f"{DISTRIBUTION} itself is not installed", _REINSTALL)
        return
    good = []
    for package in sorted(required, key=lambda package: package.name.lower()):
        if package.marker and not package.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(package.name)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        if version and package.specifier.contains(version, prereleases=True):
            good.append(f"{package.name} {version}")
        else:
            problem = f"{package.name} {version or 'is not installed'}, {package.specifier} is needed"
            yield Check("packages", "FAIL", problem, f'pip install --upgrade "{package.name}{package.specifier}"')
    yield Check("packages", "PASS", ", ".join(good))


def _slides() -> Iterator[Check]:
    """OpenSlide, whose library is a package of its own, and tifffile."""
    openslide, broken = _import("openslide")
    tifffile, also_broken = _import("tifffile")
    if broken or also_broken:
        fix = "pip install --upgrade openslide-python openslide-bin tifffile"
        yield Check("slides", "FAIL", f"slides cannot be read: {broken or also_broken}", fix)
        return
    versions = f"OpenSlide {openslide.__library_version__}, tifffile {tifffile.__version__}"
    missing = _import("imagecodecs")[1]
    codecs = "no imagecodecs (only compressed OME-TIFFs need it: pip install imagecodecs)" if missing else "imagecodecs"
    yield Check("slides", "PASS", f"{versions}, {codecs}")


def _cores() -> Iterator[Check]:
    count, total = device.cores(), os.cpu_count() or 1
    slow = "CPU training will be slow: allow more cores (taskset, --cpus), or use a GPU"
    detail = f"{count} of {total} CPU cores may be used{_instructions()}"
    yield Check("cores", "PASS", detail) if count > 1 else Check("cores", "WARN", detail, slow)


def _instructions() -> str:
    """Whether the CPU computes in bfloat16 itself; nothing where torch does not import."""
    torch, broken = _import("torch")
    if broken:
        return ""
    return ", with bfloat16 instructions" if device.has_bf16(torch.device("cpu")) else ", without bfloat16 instructions"


def _memory() -> Iterator[Check]:
    free = _available_memory()
    if free is None:
        yield Check("memory", "WARN", "cannot tell how much memory is free", "make sure that 4 GiB are free")
    elif free < 4 * _GIB:
        fix = "close other programs, or train with a smaller training.batch"
        yield Check("memory", "WARN", f"{free / _GIB:.1f} GiB free, 4 GiB are advised", fix)
    else:
        yield Check("memory", "PASS", f"{free / _GIB:.1f} GiB free")


def _available_memory() -> int | None:
    """Bytes that this process may still use, by the system and by its container."""
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


def _folder(name: str, folder: Path, other: str) -> Iterator[Check]:
    """Can a file be made in `folder` (or in its nearest existing parent), and is the disk large enough?"""
    folder = folder.expanduser().absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".gan_uad_doctor"):
            pass
    except OSError as error:
        yield Check(name, "FAIL", f"cannot write in {existing}: {error.strerror or error}", other)
        return
    free = shutil.disk_usage(existing).free
    detail = f"{folder} is writable, {free / _GIB:.1f} GiB free"
    if free < 5 * _GIB:
        status: Status = "FAIL" if free < _GIB // 4 else "WARN"
        yield Check(name, status, f"{detail}, 5 GiB are advised", f"free some disk space, or {other}")
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
        if value := os.environ.get(variable):
            yield _exists(variable, value, f"unset {variable}, or set it to the right folder")
        else:
            yield Check(variable, "PASS", f"not set: {instead}")


def _exists(name: str, path: str, fix: str) -> Check:
    if not Path(path).exists():
        return Check(name, "FAIL", f"{path} does not exist", fix)
    if not os.access(path, os.R_OK):
        return Check(name, "FAIL", f"no permission to read {path}", f"change its permissions, or {fix}")
    return Check(name, "PASS", path)


def _import(name: str) -> tuple[Any, str]:
    """The module and "", or None and why it does not import: a mismatched binary may raise anything."""
    try:
        return importlib.import_module(name), ""
    except Exception as error:
        return None, _line(error)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
