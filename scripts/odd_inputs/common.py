"""A list of odd inputs, each with what is right, and the command line in this process."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner


@dataclass
class Outcome:
    """verdict: "right"; "refused" (in one line, or left out and said); "WRONG" (anything else in silence, or a traceback)."""

    verdict: str
    why: str = ""


CASES: list[tuple[str, str, Callable[[Path], Outcome]]] = []  # name, kind, what makes and judges it in an empty folder


def odd(name: str, kind: str) -> Callable[[Callable[[Path], Outcome]], Callable[[Path], Outcome]]:
    """Register a function that makes one odd input in a folder and judges what the program does with it."""

    def register(case: Callable[[Path], Outcome]) -> Callable[[Path], Outcome]:
        CASES.append((name, kind, case))
        return case

    return register


def run_cli(arguments: Sequence[str]) -> tuple[int, str]:
    """Exit code and output of `gan-uad`; an exception that gets out is in the output as a traceback."""
    from gan_uad.cli.main import main

    result = CliRunner().invoke(main, list(arguments))
    text = result.output
    if result.exception and not isinstance(result.exception, SystemExit):
        text += "".join(traceback.format_exception(result.exception))
    return result.exit_code, text
