"""The checks of `gan-uad doctor`, and the device settings."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gan_uad import device
from gan_uad.cli import doctor as doctor_module
from gan_uad.cli.doctor import doctor
from gan_uad.errors import UserError


def findings(capsys: pytest.CaptureFixture[str], **options: Any) -> tuple[int, dict[str, list[dict[str, str]]]]:
    code = doctor(as_json=True, **options)
    found: dict[str, list[dict[str, str]]] = {}
    for check in json.loads(capsys.readouterr().out):
        found.setdefault(check["check"], []).append(check)
    return code, found


def test_this_environment_passes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, found = findings(capsys, out=tmp_path)
    checks = [check for group in found.values() for check in group]
    assert [check for check in checks if check["status"] == "FAIL"] == []
    assert code == 0
    assert all(set(check) == {"check", "status", "detail", "fix"} for check in checks)
    assert all(bool(check["fix"]) == (check["status"] == "WARN") for check in checks)
    wanted = {"python", "torch", "torchvision", "cuda", "packages", "slides", "cores", "memory", "runs folder"}
    assert wanted <= set(found)
    assert "numpy" in found["packages"][0]["detail"]
    assert list(tmp_path.iterdir()) == []


def test_lines_are_the_same_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    doctor(out=tmp_path, data=str(tmp_path / "nothing"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("PASS  python: 3.")
    (position,) = (k for k, line in enumerate(lines) if line.startswith(f"FAIL  data: {tmp_path / 'nothing'} "))
    assert lines[position + 1].startswith("      fix: ")
    assert lines[-1].endswith("1 FAIL")


def test_mismatched_torchvision_names_the_pair(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    code, found = findings(capsys, out=tmp_path)
    (check,) = found["torchvision"]
    assert (code, check["status"]) == (1, "FAIL")
    assert "nms does not exist" in check["detail"]
    assert "pip install torch torchvision" in check["fix"]
    assert found["torch"][0]["status"] == found["runs folder"][0]["status"] == "PASS"


def test_missing_torch_hides_nothing_else(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    code, found = findings(capsys)
    assert (code, found["torch"][0]["status"]) == (1, "FAIL")
    assert {"packages", "cores", "memory"} <= set(found)


def test_old_and_missing_packages(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["numpy>=999", "gan-uad-no-such-package>=1", 'other>=1; extra == "test"', "click>=8.1"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    code, found = findings(capsys)
    assert code == 1
    assert [check["status"] for check in found["packages"]] == ["FAIL", "FAIL", "PASS"]
    assert found["packages"][0]["fix"] == 'pip install --upgrade "gan-uad-no-such-package>=1"'
    assert "numpy" in found["packages"][1]["detail"]
    assert ">=999" in found["packages"][1]["detail"]
    assert found["packages"][2]["detail"].startswith("click ")


def test_slides_without_their_library(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (check,) = doctor_module._slides()
    assert check.status == "PASS"
    assert re.match(r"OpenSlide \d+\.\d+\.\d+, tifffile 20\d\d", check.detail)
    monkeypatch.setitem(sys.modules, "openslide", None)
    code, found = findings(capsys)
    assert (code, found["slides"][0]["status"]) == (1, "FAIL")
    assert "openslide-bin" in found["slides"][0]["fix"]


def test_folders_and_environment(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GAN_UAD_DATA", str(tmp_path / "gone"))
    monkeypatch.setenv("GAN_UAD_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("GAN_UAD_CACHE", str(tmp_path / "cache"))
    code, found = findings(capsys, out=tmp_path / "file" / "runs")
    assert code == 1
    assert found["runs folder"][0]["status"] == "FAIL"
    assert "--out" in found["runs folder"][0]["fix"]
    assert found["cache folder"][0]["detail"].startswith(f"{tmp_path / 'cache'} is writable")
    assert not (tmp_path / "cache").exists()
    assert found["GAN_UAD_DATA"][0]["status"] == "FAIL"
    assert found["GAN_UAD_WEIGHTS"][0]["status"] == "PASS"


def test_what_is_used_where_a_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("GAN_UAD_DATA", "GAN_UAD_WEIGHTS"):
        monkeypatch.delenv(variable, raising=False)
    data, weights = (check.detail for check in doctor_module._environment())
    assert "data/" in data
    assert "torch's cache" in weights


@pytest.mark.parametrize(("free", "status"), [(0, "FAIL"), (1 << 30, "WARN"), (9 << 30, "PASS")])
def test_disk_space(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, status: str) -> None:
    monkeypatch.setattr(doctor_module.shutil, "disk_usage", lambda path: SimpleNamespace(total=free, free=free))
    (check,) = doctor_module._folder("runs folder", tmp_path / "deep" / "runs", "another")
    assert check.status == status
    assert not (tmp_path / "deep").exists()


def test_a_check_that_breaks_is_a_finding(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError("no such call")

    monkeypatch.setattr(doctor_module, "_cores", broken)
    code, found = findings(capsys)
    assert code == 1
    assert "no such call" in found["cores"][0]["detail"]
    assert "memory" in found


def test_small_machine_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cores", lambda: 1)
    monkeypatch.setattr(doctor_module, "_available_memory", lambda: 1 << 30)
    checks = [*doctor_module._cores(), *doctor_module._memory()]
    assert [(check.status, bool(check.fix)) for check in checks] == [("WARN", True)] * 2


# --- gan_uad.device


def test_prepare_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    try:
        assert device.prepare("cpu", threads=1) == torch.device("cpu")
        assert torch.get_num_threads() == 1
        device.prepare("cpu")
        assert torch.get_num_threads() == device.cores()
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        device.prepare("cpu")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_siblings_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(device, "cores", lambda: 6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    try:
        device.prepare("cpu")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_cuda() -> None:
    before = torch.get_num_threads()
    try:
        assert device.prepare("auto") == torch.device("cpu")
        with pytest.raises(UserError, match=r"cuda.*device=cpu"):
            device.prepare("cuda")
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_cuda_precision_is_what_was_asked_for() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(512, 512, generator=generator)
    exact = a.double() @ a.double()
    error = {}
    for precision in ("tf32", "fp32"):
        cuda = device.prepare("cuda", threads=1, precision=precision)
        assert cuda.index is not None
        error[precision] = float(((a.to(cuda) @ a.to(cuda)).cpu() - exact).abs().max() / exact.abs().max())
    assert error["fp32"] < 1e-5 < error["tf32"]


@pytest.mark.parametrize("wrong", [{"device": "gpu"}, {"precision": "fp8"}, {"threads": 0}])
def test_prepare_rejects(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=str(next(iter(wrong.values())))):
        device.prepare(**wrong)


@pytest.mark.parametrize(
    ("text", "quota"),
    [("max 100000", None), ("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1), ("", None)],
)
def test_container_quota(tmp_path: Path, text: str, quota: int | None) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(text)
    assert device._cgroup_quota(file) == quota
    assert device._cgroup_quota(tmp_path / "missing") is None


@pytest.mark.skipif(not device.keep_freed_memory(), reason="not glibc")
def test_freed_memory_is_kept() -> None:
    """Taking and freeing 24 MiB again and again faults every page in each time, unless the allocator keeps them."""
    script = """if True:
        import resource, sys
        from gan_uad import device
        if sys.argv[1] == "keep":
            device.keep_freed_memory()
        def faults():
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        def turn():
            blocks = [bytearray(b"x") * (12 << 20) for _ in range(2)]
        turn()
        before = faults()
        for _ in range(10):
            turn()
        print(faults() - before)
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    environment["MALLOC_TRIM_THRESHOLD_"] = "131072"  # what a process has before its first large block
    faults = {
        mode: int(subprocess.run([sys.executable, "-c", script, mode], env=environment, check=True, stdout=-1).stdout)
        for mode in ("plain", "keep")
    }
    assert faults["keep"] < faults["plain"] / 10
