"""`gan-uad download`: public data sets over bad connections, verified, unpacked, chosen, and never incomplete."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import re
import resource
import shlex
import shutil
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from http_tools import Server, cut, no_ranges, other, serving, status, too_long, too_short
from patch_tools import refused
from PIL import Image
from score_tools import fails

from gan_uad.data import catalogue
from gan_uad.data import download as job
from gan_uad.data.catalogue import DataSet, Item
from gan_uad.errors import JobFailed
from gan_uad.http import SPARE

IMAGES = {"train": 16, "valid": 2, "test": 2}
STEM = "camelyonpatch_level_2_split_"


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving(monkeypatch) as made:
        yield made


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A PatchCamelyon of 20 patches: its unpacked files by name."""
    folder, rng = tmp_path_factory.mktemp("pcam"), np.random.default_rng(0)
    for split, n in IMAGES.items():
        arrays = {"x": rng.integers(0, 256, (n, 96, 96, 3), np.uint8), "y": np.arange(n).reshape(n, 1, 1, 1) % 2}
        for key, array in arrays.items():
            with h5py.File(folder / f"{STEM}{split}_{key}.h5", "w") as file:
                file[key] = array
        rows = [f"{k},{split}_{k}" for k in range(n)]
        (folder / f"{STEM}{split}_meta.csv").write_text("\n".join([",wsi", *rows]) + "\n")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def pcam(server: Server, patches: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> DataSet:
    """The catalogue's set, with files that the local server has."""
    known = catalogue.entry("pcam")
    items = []
    for item in known.items:
        content = patches[item.name]
        server.files[item.fetched] = packed = gzip.compress(content, 1) if item.unpacked else content
        unpacked = f"md5:{md5(content)}" if item.unpacked else ""
        items.append(
            replace(
                item,
                urls=(f"{server.root}/{item.fetched}?download=1",),
                digest=f"md5:{md5(packed)}",
                size=len(packed),
                unpacked=unpacked,
                kept=len(content),
            )
        )
    return use(replace(known, items=tuple(items)), monkeypatch)


def use(known: DataSet, monkeypatch: pytest.MonkeyPatch) -> DataSet:
    monkeypatch.setattr(catalogue, "entry", lambda name, side=None: known)
    return known


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def follow(cli: Any, stderr: str) -> Any:
    """Run the next command that a download prints."""
    (line,) = re.findall(r"^next: gan-uad (.*)$", stderr, re.MULTILINE)
    return cli(*shlex.split(line))


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_download_over_a_bad_connection(
    cli: Any, server: Server, pcam: DataSet, patches: dict[str, bytes], tmp_path: Path
) -> None:
    server.answers = [cut, status(503), no_ranges, too_long]
    result = cli("download", "pcam", "--out", tmp_path / "my data")
    folder = tmp_path / "my data" / "pcam"
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{folder}\n"
    assert {name: (folder / name).read_bytes() for name in names(folder)} == patches
    checked = follow(cli, result.stderr)
    assert checked.exit_code == 0, checked.stdout
    assert "20 images, read as PCam hdf5" in checked.stdout
    assert re.search(r"train +8 normal, 8 anomalous, 16 groups", checked.stdout)

    requests = len(server.ranges)
    again = cli("download", "pcam", "--out", tmp_path / "my data")
    assert again.exit_code == 0
    assert "\n9 files " in again.stderr
    assert len(server.ranges) == requests


def test_the_licence_is_printed_before_anything_is_downloaded(
    cli: Any, server: Server, pcam: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("click.echo", lambda text, **_: said.append(text))
    monkeypatch.setattr(job, "download", lambda *_: pytest.fail("fetched") if "CC0 1.0" not in said[0] else None)
    monkeypatch.setattr(job, "_unpack", lambda *_: None)
    job.fetch("pcam", tmp_path, None, (), ())
    assert catalogue.LOOKED_UP in said[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--split", "val"], {"valid_meta.csv", "valid_x.h5.gz", "valid_y.h5.gz"}),
        (["--only", "*_y.h5", "--split", "val", "--split", "test"], {"valid_y.h5.gz", "test_y.h5.gz"}),
    ],
)
def test_a_choice_of_files(
    cli: Any, server: Server, pcam: DataSet, tmp_path: Path, arguments: list[str], expected: set[str]
) -> None:
    result = cli("download", "pcam", "--out", tmp_path, *arguments)
    assert result.exit_code == 0, result.stderr
    assert {name.removeprefix(STEM) for name in server.asked} == expected
    listed = cli("download", "pcam", "--out", tmp_path, "--list").stdout.splitlines()
    assert {line.split("\t")[0].removeprefix(STEM) for line in listed if line.endswith("\there")} == {
        name.removesuffix(".gz") for name in expected
    }


def test_choices_that_fit_nothing(cli: Any, server: Server, pcam: DataSet, tmp_path: Path) -> None:
    fails(cli("download", "pcam", "--out", tmp_path, "--only", "tumor*"), "tumor*", "gan-uad download pcam --list")
    assert cli("download").exit_code == 2
    assert cli("download", "--list", "--split", "val").exit_code == 2
    assert server.asked == []


def test_another_file_of_that_name_is_kept(
    cli: Any, server: Server, pcam: DataSet, patches: dict[str, bytes], tmp_path: Path
) -> None:
    name = f"{STEM}test_x.h5"
    damaged = bytearray(patches[name])
    damaged[-1] ^= 1
    (tmp_path / "pcam").mkdir()
    (tmp_path / "pcam" / name).write_bytes(damaged)
    result = cli("download", "pcam", "--out", tmp_path)
    fails(result, str(tmp_path / "pcam" / name), md5(damaged), md5(patches[name]))
    assert (tmp_path / "pcam" / name).read_bytes() == damaged
    assert len(server.asked) == 8  # the others are downloaded
    assert names(tmp_path / "pcam") == sorted(patches)


@pytest.mark.parametrize("answer", [other, too_short], ids=["a log-in page", "truncated"])
def test_a_wrong_file_is_not_kept(cli: Any, server: Server, pcam: DataSet, tmp_path: Path, answer: Any) -> None:
    server.answers = [answer]
    result = cli("download", "pcam", "--out", tmp_path, "--only", "*train_x*")
    fails(result, pcam.items[0].digest.removeprefix("md5:"), code=1)
    assert names(tmp_path) == []


@pytest.mark.parametrize(("code", "requests"), [(404, 1), (500, 3)])
def test_a_server_that_refuses(
    cli: Any, server: Server, pcam: DataSet, tmp_path: Path, code: int, requests: int
) -> None:
    server.answers = [status(code)] * 10
    result = cli("download", "pcam", "--out", tmp_path, "--only", "*train_x*")
    fails(result, f"HTTP {code}", pcam.page, str(tmp_path / "pcam"), code=1)
    assert len(server.asked) == requests
    assert names(tmp_path) == []  # not even an empty beginning


def test_a_set_that_does_not_fit_is_not_started(
    cli: Any, server: Server, pcam: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = pcam.items
    need = sum(item.kept if item.unpacked else item.size for item in items) + max(item.size for item in items)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=SPARE + need - 1))
    result = cli("download", "pcam", "--out", tmp_path / "new")
    fails(result, "9 files", " 1.", str(tmp_path / "new" / "pcam"), "--out", "--only", code=1)
    assert server.asked == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=SPARE + need))
    assert cli("download", "pcam", "--out", tmp_path / "new").exit_code == 0


def test_a_disk_that_fills_up(
    cli: Any, server: Server, pcam: DataSet, patches: dict[str, bytes], tmp_path: Path
) -> None:
    name = f"{STEM}train_x.h5"
    arguments = ("download", "pcam", "--out", tmp_path, "--only", "*train_x*")
    with disk_of(100_001):  # while it is downloaded
        result = cli(*arguments)
    fails(result, "no space left", name, code=1)
    assert names(tmp_path) == [f"pcam/{name}.gz.part"]
    size = len(server.files[f"{name}.gz"])
    with disk_of(size) if size < len(patches[name]) else disk_of(len(patches[name]) - 1):  # while it is unpacked
        result = cli(*arguments)
    fails(result, "no space left", name, code=1)
    assert server.ranges == [None, "bytes=100001-"]  # resumed
    assert cli(*arguments).exit_code == 0
    assert names(tmp_path) == [f"pcam/{name}"]


def test_a_packed_file_downloaded_by_hand(
    cli: Any, server: Server, pcam: DataSet, patches: dict[str, bytes], tmp_path: Path
) -> None:
    packed = tmp_path / "pcam" / f"{STEM}test_x.h5.gz"
    packed.parent.mkdir()
    left = packed.with_name(f".{STEM}test_x.h5.1.tmp")  # of an unpacking that was killed
    left.write_bytes(b"incomplete")
    packed.write_bytes(b"another")
    fails(cli("download", "pcam", "--out", tmp_path, "--only", "*test_x*"), str(packed), md5(b"another"))
    packed.write_bytes(server.files[packed.name])
    assert cli("download", "pcam", "--out", tmp_path, "--only", "*test_x*").exit_code == 0
    assert server.asked == []
    assert names(tmp_path) == [f"pcam/{STEM}test_x.h5"]
    assert (tmp_path / names(tmp_path)[0]).read_bytes() == patches[f"{STEM}test_x.h5"]


def test_a_packed_file_with_another_content_is_refused(
    server: Server, pcam: DataSet, patches: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = replace(pcam.items[0], unpacked=f"md5:{md5(b'')}")
    use(replace(pcam, items=(first,)), monkeypatch)
    with refused(first.fetched, md5(patches[first.name]), md5(b""), error=JobFailed):
        job.fetch("pcam", tmp_path, None, (), ())
    assert names(tmp_path) == [f"pcam/{first.fetched}"]


def test_several_at_once_download_once(
    server: Server, pcam: DataSet, patches: dict[str, bytes], tmp_path: Path
) -> None:
    """`flock` locks open files, so threads behave like processes here."""
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda: codes.append(job.fetch("pcam", tmp_path, None, ("train",), ())))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0, 0, 0]
    assert len(server.asked) == 3
    assert names(tmp_path / "pcam") == [f"{STEM}train_{end}" for end in ("meta.csv", "x.h5", "y.h5")]


@pytest.fixture
def idc(server: Server, monkeypatch: pytest.MonkeyPatch) -> DataSet:
    """A set without published hash, at two addresses; images of five patients."""
    content, rng = io.BytesIO(), np.random.default_rng(0)
    with zipfile.ZipFile(content, "w") as archive:
        for patient in range(5):
            for k in range(8):
                image = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (50, 50, 3), np.uint8)).save(image, "png")
                name = f"{patient}/{k % 2}/{patient}_idx5_x{k}01_y1_class{k % 2}.png"
                archive.writestr(name, image.getvalue())
    server.files = {"second.zip": content.getvalue()}
    known = catalogue.entry("idc")
    item = replace(known.items[0], urls=(f"{server.root}/first.zip", f"{server.root}/second.zip"))
    return use(replace(known, items=(item,)), monkeypatch)


@pytest.mark.parametrize("first", [status(404), other], ids=["gone", "a web page"])
def test_the_second_address_and_a_zip_without_hash(
    cli: Any, server: Server, idc: DataSet, tmp_path: Path, first: Any
) -> None:
    server.answers = [first, cut] if first is other else [first]
    result = cli("download", "idc", "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    assert names(tmp_path) == ["IDC_regular_ps50_idx5.zip"]
    checked = follow(cli, result.stderr)
    assert checked.exit_code == 0, checked.stdout
    assert "40 images, read as IDC file names" in checked.stdout
    assert "\n1 files " in cli("download", "idc", "--out", tmp_path).stderr
    file = tmp_path / "IDC_regular_ps50_idx5.zip"
    damaged = bytearray(file.read_bytes())
    damaged[5000] ^= 255
    file.write_bytes(damaged)
    fails(cli("download", "idc", "--out", tmp_path), str(file), ".png")  # the first damaged member


def test_a_truncated_zip_is_not_kept(cli: Any, server: Server, idc: DataSet, tmp_path: Path) -> None:
    server.answers = [status(404), too_short]
    fails(cli("download", "idc", "--out", tmp_path), "first.zip", "second.zip", code=1)
    assert names(tmp_path) == []


@pytest.fixture
def camelyon(server: Server, monkeypatch: pytest.MonkeyPatch) -> DataSet:
    """A bucket of four slides with its list of checksums."""
    slides = ("normal_001", "tumor_001", "tumor_002", "test_001")
    files = {f"images/{name}.tif": name.encode() * 100 for name in slides}
    files |= {f"masks/{name}_mask.tif": b"mask" for name in slides}
    files |= {f"annotations/{name}.xml": b"<xml/>" for name in slides[1:]}
    lines = [f"{md5(content)} *{name}" for name, content in files.items()]
    files |= {"checksums.md5": ("\n".join(lines) + "\n").encode()}
    server.files = {f"CAMELYON16/{name}": content for name, content in files.items()}
    return use(replace(catalogue.entry("camelyon16"), listing=f"{server.root}/CAMELYON16/checksums.md5"), monkeypatch)


def test_slides_by_their_list_of_checksums(cli: Any, server: Server, camelyon: DataSet, tmp_path: Path) -> None:
    result = cli("download", "camelyon16", "--out", tmp_path, "--only", "tumor_00*")
    assert result.exit_code == 0, result.stderr
    of_tumor = [
        f"{folder}/tumor_00{k}.{end}" for folder, end in (("annotations", "xml"), ("images", "tif")) for k in (1, 2)
    ]
    folder = tmp_path / "camelyon16"
    assert names(folder) == sorted([*of_tumor, "checksums.md5"])
    assert f"--annotations {folder}/annotations" in result.stderr
    server.answers, server.asked = [other], []
    (folder / "images" / "normal_001.tif").write_bytes(server.files["CAMELYON16/images/normal_001.tif"])
    result = cli("download", "camelyon16", "--out", tmp_path, "--split", "train")
    assert result.exit_code == 0  # all are here: not even the list is downloaded again
    assert server.asked == []
    result = cli("download", "camelyon16", "--out", tmp_path, "--split", "test")
    assert result.exit_code == 1  # a web page instead of a slide
    assert not (folder / "annotations" / "test_001.xml").exists()
    fails(cli("download", "camelyon16", "--out", tmp_path, "--split", "val"), "--split val", "test, train")


@pytest.mark.parametrize(
    "content", [b"<html>log in</html>", b"\xff\xfe", b"", b"0" * 32 + b" masks/test_001_mask.tif\n"]
)
def test_no_list_of_checksums(cli: Any, server: Server, camelyon: DataSet, tmp_path: Path, content: bytes) -> None:
    server.files["CAMELYON16/checksums.md5"] = content
    fails(cli("download", "camelyon16", "--out", tmp_path), "checksums.md5", code=1)
    assert names(tmp_path) == []


def test_paths_of_a_list_stay_inside(server: Server) -> None:
    lines = f"{'0' * 32} *images/normal_001.tif\n{'1' * 32}  ../../images/normal_002.tif\n{'2' * 32}  /images/normal_003.tif\n"
    assert [item.name for item in catalogue.listed(lines, "https://x/")] == ["images/normal_001.tif"]


def test_the_facts() -> None:
    """Hashes of PatchCamelyon against torchvision's, and the format of all others."""
    spec = importlib.util.find_spec("torchvision")  # read, not imported, which takes seconds
    assert spec is not None
    source = (Path(str(spec.origin)).parent / "datasets" / "pcam.py").read_text()
    theirs = {
        f"{name}.gz": digest for name, digest in re.findall(r'"(\S+\.h5)",.*?"([0-9a-f]{32})"', source, re.DOTALL)
    }
    assert len(theirs) == 6
    ours = {item.fetched: item.digest for item in catalogue.entry("pcam").items if item.unpacked}
    assert ours == {name: f"md5:{digest}" for name, digest in theirs.items()}
    assert "pathmnist_64.npz" in catalogue.entry("medmnist").items[0].urls[0]
    items: list[Item] = []
    for name in set(catalogue.names()) - {"medmnist"}:
        for side in catalogue.SIZES if name.endswith("mnist") else (None,):
            known = catalogue.entry(name, side)
            assert known.licence
            assert known.page.startswith("http")
            assert bool(known.items) + bool(known.listing) + bool(known.by_hand) == 1
            items += known.items
    digests = [digest for item in items for digest in (item.digest, item.unpacked) if digest]
    assert all(re.fullmatch("md5:[0-9a-f]{32}", digest) for digest in digests)
    assert len(set(digests)) == len(digests) == 8 * 4 + 9 + 6
    assert all(item.digest or item.name.endswith(".zip") for item in items)
    assert all(url.startswith("https://") for item in items for url in item.urls[:1])


def test_the_page_names_every_set() -> None:
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    assert [name for name in catalogue.names() if f"`{name}`" not in page] == []
    assert catalogue.LOOKED_UP in page
    for name in re.findall(r"gan-uad download (\w+)", page):
        assert name == "NAME" or catalogue.entry(name)


def test_listing_the_sets(cli: Any) -> None:
    listed = cli("download", "--list").stdout
    for word in (*catalogue.names(), "CC BY-NC 4.0", " GB", "by hand"):
        assert word in listed
    files = cli("download", "pathmnist", "--list", "--size", "224").stdout
    assert files.startswith("pathmnist_224.npz\tat most 16.1 GB\tall splits\tmd5:2c51a510bcdc9cf8ddb2af93af1eadec\t-")
    fails(cli("download", "pcam", "--list", "--size", "64"), "--size", "MedMNIST")
    fails(cli("download", "pathmist"), "'pathmnist'")


def test_the_dermoscopic_set_by_hand(cli: Any, tmp_path: Path) -> None:
    result = cli("download", "skin", "--out", tmp_path)
    assert result.exit_code == 1
    assert "kaggle.com/datasets/fanconic/skin-cancer-malignant-vs-benign" in result.stderr
    assert result.stdout == ""
    root, rng = tmp_path / "skin", np.random.default_rng(0)
    for split, n in (("train", 10), ("test", 3)):
        for klass in ("benign", "malignant"):
            folder = root / split / klass
            folder.mkdir(parents=True)
            for k in range(n):
                Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(folder / f"{k}.jpg")
    result = cli("download", "skin", "--out", tmp_path)
    assert result.exit_code == 0
    assert result.stdout == f"{root}\n"
    checked = follow(cli, result.stderr)
    assert checked.exit_code == 0, checked.stdout
    assert "read as split folders" in checked.stdout
    assert "normal: benign; anomalous: malignant" in checked.stdout
    assert re.search(r"test +3 normal, 3 anomalous", checked.stdout)
    assert "validation split" in checked.stdout
    shutil.copytree(root, root / "data")  # as the archive may hold it
    fails(cli("data", "check", root), str(root), "data")
