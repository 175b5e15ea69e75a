"""The errors that a user can cause or meet: one line each (what, where, what to do) and an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import IO, Any

import click


class UserError(click.ClickException):
    """Bad input: the message says what was wrong, where, and what to do. Exit code 2."""

    exit_code = 2


class JobFailed(click.ClickException):
    """The input was understood but the work failed (diverged, disk full, files broken). Exit code 1."""

    exit_code = 1


class Interrupted(click.ClickException):
    """Ctrl-C or SIGTERM, after everything possible was saved. Exit code 130."""

    exit_code = 130

    def __init__(self, what: str, resume: str = "") -> None:
        """`what` happened, and how to resume. A caller that resumes in another way uses `what` alone."""
        super().__init__(f"{what}. {resume}" if resume else what)
        self.what = what

    def show(self, file: IO[Any] | None = None) -> None:
        """The message alone: a stop by the user is no error."""
        click.echo(self.format_message(), file=file, err=file is None)


def near(name: str, known: Iterable[str]) -> str:
    """A hint for a mistyped `name`: the closest known names, or all of them when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "known: " + ", ".join(names)


def refuse(options: Mapping[str, object], why: str) -> None:
    """Raise `UserError` for the first of these options that was given, so that none is ignored silently."""
    for name, value in options.items():
        if value is not None and value is not False:
            raise UserError(f"{name} {why}")
