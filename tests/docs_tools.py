"""Shared by the tests of the documentation: commands and files of its pages, and a small shell for the commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ("gan-uad", "torchrun", "python", "bash", "make", "pip", "pytest")
STARTS = re.compile(rf"(?:{'|'.join(PROGRAMS)})\s")
INNER = re.compile(r"\$\((gan-uad [^()]*)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its text, and the file's name where the first line is a comment with one."""

    language: str
    text: str

    @property
    def name(self) -> str | None:
        found = re.match(r"# ([\w./-]+\.(?:py|yaml|toml))\n", self.text)
        return found[1] if found else None


@dataclass(frozen=True)
class Command:
    """One command of a page. `inline`: in a sentence or a table, where arguments may be left out."""

    page: str
    text: str
    inline: bool

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"


def pages() -> dict[str, str]:
    """README.md and all of docs/, by path."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "models" / "README.md"]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in found}


def blocks(text: str) -> list[Block]:
    return [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)]


def write_files(text: str, folder: Path) -> dict[str, Path]:
    """The named blocks of a page as files; by name."""
    written = {}
    for block in blocks(text):
        if block.name:
            written[block.name] = folder / block.name
            (folder / block.name).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.name).write_text(block.text.partition("\n")[2], encoding="utf-8")
    return written


def commands(page: str, text: str) -> Iterator[Command]:
    """All commands of a page in their order: of fenced and indented blocks, and in sentences."""
    for part in re.split(r"(^```.*?^```$|(?:^    \S[^\n]*\n)+)", text, flags=re.M | re.S):
        if part.startswith("```"):
            language, _, body = part.removeprefix("```").removesuffix("```").partition("\n")
            if language in {"sh", "bash"}:
                yield from (Command(page, line, False) for line in lines(body))
        elif part.startswith("    "):
            yield from (Command(page, line, False) for line in lines(part) if STARTS.match(line))
        else:
            for span in re.findall(r"`([^`]+)`", part):
                if STARTS.match(span):
                    yield Command(page, " ".join(span.split()), True)


def lines(body: str) -> Iterator[str]:
    """The simple commands of a piece of shell: lines joined, comments removed, `for` loops and lists split."""
    body = re.sub(r"\\\n\s*", " ", body)
    for line in body.splitlines():
        for part in re.split(r"&&|;", _uncommented(line)):
            part = re.sub(r"^(do|then) ", "", part.strip())
            if part and part not in {"do", "done"} and not part.startswith("for "):
                yield part


def _uncommented(line: str) -> str:
    quote = ""
    for k, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter == "#" and (k == 0 or line[k - 1].isspace()):
            return line[:k]
    return line


def words(text: str, places: Mapping[str, str], inner: Callable[[str], str], folder: Path | None = None) -> list[str]:
    """Split a command as a shell does. `$(...)` becomes `inner` of it, names in capitals `places`, globs files of `folder`.

    Options in [brackets] are kept; "..." is dropped.
    """
    text = INNER.sub(lambda found: shlex.quote(inner(found[1])), text)
    text = re.sub(r"\[(-[^\]]*)\]", r"\1", text).replace(" ... ", " ")
    result = []
    for word in shlex.split(text):
        word = re.sub(r"\$(\w+)", lambda found: places.get(found[0], "1"), word)
        if word == "...":
            continue
        word = word.removesuffix("...") if re.fullmatch(r"[A-Z]+\.\.\.", word) else word
        before, equals, after = word.rpartition("=")
        word = f"{before}{equals}{places.get(after, after)}"
        if "*" in word and folder is not None and not before.startswith(("data.", "scoring.")):
            result += sorted(path.relative_to(folder).as_posix() for path in folder.glob(word)) or [word]
        else:
            result.append(word)
    return result


def run(cli: Callable[..., Any], arguments: list[str]) -> Any:
    """Run a command that must succeed; click's result."""
    result = cli(*arguments)
    assert result.exit_code == 0, f"gan-uad {shlex.join(arguments)}\n{result.output}{result.exception or ''}"
    return result
