"""Where weights come from: looking, downloading over bad connections, verifying, and refusing what does not fit."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from http_tools import (
    BODY,
    DIGEST,
    Server,
    cut,
    no_ranges,
    other,
    serving,
    status,
    too_long,
    too_short,
    wrong_range,
)

from gan_uad import http as download
from gan_uad.errors import JobFailed, UserError
from gan_uad.features import weights
from gan_uad.features.load import load_features


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving(monkeypatch) as made:
        yield made


@pytest.mark.parametrize(
    ("answers", "ranges"),
    [
        ([], [None]),
        ([cut, cut], [None, "bytes=300000-", "bytes=600000-"]),
        ([cut, no_ranges], [None, "bytes=300000-"]),
        ([cut, wrong_range], [None, "bytes=300000-", None]),
        ([too_long, too_long], [None, f"bytes={len(BODY)}-"]),
        ([status(503), status(429)], [None, None, None]),
    ],
    ids=["plain", "cut twice", "ranges ignored", "another range", "less than promised", "busy"],
)
def test_a_file_arrives_whole_over_a_bad_connection(
    server: Server, tmp_path: Path, answers: list[Any], ranges: list[str | None]
) -> None:
    server.answers = answers
    download.download(server.url, tmp_path / "new" / "net.pth", DIGEST[:8])
    assert (tmp_path / "new" / "net.pth").read_bytes() == BODY
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["net.pth"]
    assert server.ranges == ranges


def test_a_download_continues_in_a_later_run(server: Server, tmp_path: Path) -> None:
    (tmp_path / "net.pth.part").write_bytes(BODY[:1000])
    download.download(server.url, tmp_path / "net.pth", DIGEST)
    assert server.ranges == ["bytes=1000-"]
    assert (tmp_path / "net.pth").read_bytes() == BODY
    (tmp_path / "again.pth.part").write_bytes(b"of another file")
    download.download(server.url, tmp_path / "again.pth", DIGEST)
    assert server.ranges[1:] == ["bytes=15-", None]
    assert (tmp_path / "again.pth").read_bytes() == BODY


@pytest.mark.parametrize("answer", [other, too_short])
def test_a_wrong_file_is_not_kept_and_its_hash_is_shown(server: Server, tmp_path: Path, answer: Any) -> None:
    server.answers = [answer, answer]
    got = b"<html>log in first</html>" if answer is other else BODY[:-1000]
    with pytest.raises(JobFailed) as error:
        download.download(server.url, tmp_path / "net.pth", DIGEST[:8])
    assert hashlib.sha256(got).hexdigest() in error.value.message
    assert DIGEST[:8] in error.value.message
    assert list(tmp_path.iterdir()) == []


def test_refusals(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers = [status(404)]
    with pytest.raises(JobFailed, match="HTTP 404"):
        download.download(server.url, tmp_path / "net.pth", DIGEST)
    assert len(server.ranges) == 1  # asking again would not help
    server.answers = [status(500)] * 10
    with pytest.raises(download.Unreachable, match="HTTP 500"):
        download.download(server.url, tmp_path / "net.pth", DIGEST)
    assert len(server.answers) == 10 - download.ATTEMPTS
    server.answers = []
    usage = shutil.disk_usage(tmp_path)._replace(free=download.SPARE + len(BODY) - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(JobFailed, match=r"needs 1 MB more .* are free"):
        download.download(server.url, tmp_path / "net.pth", DIGEST)
    assert not (tmp_path / "net.pth").exists()


def test_a_stalled_server_is_given_up(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    release = threading.Event()
    server.answers = [lambda handler, start: release.wait(5)] * download.ATTEMPTS
    with pytest.raises(download.Unreachable, match="timed out"):
        download.download(server.url, tmp_path / "net.pth", DIGEST)
    release.set()


def test_two_processes_fetch_once(server: Server, tmp_path: Path) -> None:
    """Locks of `flock` are of open files, so threads stand for processes here."""
    threads = [
        threading.Thread(target=download.download, args=(server.url, tmp_path / "net.pth", DIGEST)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.ranges == [None]
    assert [file.name for file in tmp_path.iterdir()] == ["net.pth"]


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No weights but the installed ones, an empty cache, and addresses that nobody listens at; gives the cache's folder."""
    monkeypatch.delenv(weights.VARIABLE, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(download, "WAIT", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    known = weights.entry
    monkeypatch.setattr(
        weights, "entry", lambda name: replace(known(name), url="http://127.0.0.1:9/x" if known(name).url else "")
    )
    return tmp_path / "home" / "hub" / "checkpoints"


def test_without_network_one_line_says_everything(cli: Any, nowhere: Path) -> None:
    result = cli("weights", "fetch", "vgg16")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    for word in (
        "vgg16-397923af.pth",
        "http://127.0.0.1:9/x",
        str(nowhere),
        "GAN_UAD_WEIGHTS",
        "--weights",
        "efficientnet_lite0",
    ):
        assert word in line
    with pytest.raises(UserError, match=r"vgg16-397923af\.pth"):  # and no other network is used instead
        load_features("vgg16")
    assert load_features().weights == "efficientnet-lite0-57934424.pth sha256:579344248a93e230"


def test_the_order_of_looking(nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = load_features("efficientnet_lite0").net.state_dict()  # any tensors
    user, given = tmp_path / "user", tmp_path / "given"
    names = ("vgg16-397923af.pth", "vgg16_features.pth")
    for folder in (user, given, nowhere):
        folder.mkdir(parents=True)
    torch.save(state, given / names[1])
    torch.save({"a": torch.zeros(1)}, user / names[0])
    torch.save({"b": torch.zeros(1)}, nowhere / names[0])
    with pytest.raises(
        UserError, match=r"vgg16-397923af.pth .* [0-9a-f]{64} .* 397923af.*weights fetch vgg16"
    ):  # a cached file is checked
        weights.find("vgg16")
    monkeypatch.setenv(weights.VARIABLE, str(user))
    assert weights.find("vgg16") == user / names[0]  # the user's own is not
    assert weights.find("vgg16", given) == given / names[1]
    assert weights.find("vgg16", given / names[1]) == given / names[1]
    for missing, message in ((given / "no.pth", "no.pth"), (tmp_path, names[0])):
        with pytest.raises(UserError, match=message):
            weights.find("vgg16", missing)
    monkeypatch.setenv(weights.VARIABLE, str(tmp_path / "no"))
    with pytest.raises(UserError, match=weights.VARIABLE):
        weights.find("vgg16")


def test_a_download_ends_in_the_cache(server: Server, nowhere: Path) -> None:
    known = weights.WeightFile("net", "net.pth", server.url, DIGEST[:8], 1.0, "", "")
    assert weights.fetch(known) == nowhere / "net.pth"
    assert weights.fetch(known) == nowhere / "net.pth"
    assert server.ranges == [None]
    (nowhere / "net.pth").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"net\.pth"):
        weights.fetch(known)


def test_files_that_do_not_fit(shared_weights: Path, tmp_path: Path) -> None:
    alexnet = torch.load(shared_weights / "alexnet_features.pth", weights_only=True)
    bad = tmp_path / "bad.pth"

    def message(content: object) -> str:
        if isinstance(content, bytes):
            bad.write_bytes(content)
        else:
            torch.save(content, bad)
        with pytest.raises(UserError) as error:
            load_features("alexnet", weights=bad)
        assert "\n" not in error.value.message
        return error.value.message

    whole_file = (shared_weights / "alexnet_features.pth").read_bytes()
    broken = whole_file[: len(whole_file) // 2]
    text = message(broken)
    assert hashlib.sha256(broken).hexdigest() in text
    assert "7be5be79" in text
    assert "alexnet" in message([1, 2])
    assert str(bad) in message({"a": bad})  # an object of a class: it would need pickled code
    assert "features.0.weight" in message({k: v for k, v in alexnet.items() if k != "features.0.weight"})
    assert "extra" in message(alexnet | {"extra": torch.zeros(1)})
    bias = alexnet["features.0.bias"]
    for wrong in (torch.zeros(3), bias.long(), bias > 0, bias / 0, bias.double() + 1e300):
        assert "features.0.bias" in message(alexnet | {"features.0.bias": wrong})


def test_list_and_verify(cli: Any, nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = json.loads(cli("weights", "list", "--json").stdout)
    assert [row["name"] for row in listed if row["places"]] == ["efficientnet_lite0"]
    assert all(row["licence"] and len(row["sha256"]) >= 8 and row["megabytes"] > 1 for row in listed)
    assert "vgg16-397923af.pth" in cli("weights", "list").stdout
    result = cli("weights", "verify")
    assert result.exit_code == 0
    assert result.stdout.startswith("OK ")
    wrong = tmp_path / "resnet34-b627a593.pth"
    wrong.write_bytes(b"x")
    result = cli("weights", "verify", wrong)
    assert result.exit_code == 1
    assert hashlib.sha256(b"x").hexdigest() in result.stdout
    assert "b627a593" in result.stdout
    monkeypatch.setenv(weights.VARIABLE, str(tmp_path))
    assert cli("weights", "verify", "resnet34").exit_code == 1
    (tmp_path / "mine.pth").write_bytes(b"x")
    result = cli("weights", "verify", tmp_path / "mine.pth")
    assert result.exit_code == 0
    assert result.stdout.startswith("UNKNOWN ")
    for nothing in ("vgg16", "vgg17"):
        assert cli("weights", "verify", nothing).exit_code == 2
    assert "'vgg16'" in cli("weights", "fetch", "vgg61").stderr
