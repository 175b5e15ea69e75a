"""`gan-uad weights`: the known files of pretrained weights, where they are, and whether their hashes are right."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from gan_uad import console
from gan_uad.errors import UserError
from gan_uad.features import weights


def list_weights(as_json: bool) -> None:
    """Print every known file with its licence and where it is on this machine."""
    rows = [(known, weights.places(known)) for known in map(weights.entry, weights.names())]
    if as_json:
        print(json.dumps([asdict(known) | {"places": [*map(str, found)]} for known, found in rows], indent=2))
        return
    for known, found in rows:
        print(f"{known.name:18s} {known.file} ({known.megabytes:.0f} MB): {known.what}")
        print(f"{'':18s} {found[0] if found else f'not here; from {known.url}'}; {known.licence}")


def fetch(name: str, out: Path | None) -> None:
    """Download the file of one network, unless it is here already, and print where it is."""
    path = weights.fetch(weights.entry(name), out)
    console.say(f"{name}: sha256 {weights.sha256(path)}")
    print(path)


def verify(what: str | None) -> int:
    """Compare files with their published hashes: of one network, one file, or all that are found. Returns 1 if one differs, else 0.

    A file with another name has no published hash: its own is printed. Raises `UserError` where there is nothing to verify.
    """
    files = _files(what)
    if not files:
        raise UserError(f"{what or 'weights'}: no such file on this machine; see `gan-uad weights list`")
    published = {known.file: known for known in map(weights.entry, weights.names())}
    wrong = 0
    for path in files:
        digest, known = weights.sha256(path), published.get(path.name)
        if known is None:
            print(f"UNKNOWN  {path}: sha256 {digest}; no hash is published for a file of this name")
        elif digest.startswith(known.sha256):
            print(f"OK       {path}: sha256 {digest}")
        else:
            wrong += 1
            print(f"WRONG    {path}: sha256 {digest}, expected {known.sha256}{'…' * (len(known.sha256) < 64)}")
    return int(wrong > 0)


def _files(what: str | None) -> list[Path]:
    if what is None:
        return [path for name in weights.names() for path in weights.places(weights.entry(name))]
    if what in weights.names():
        return weights.places(weights.entry(what))
    if not Path(what).is_file():
        raise UserError(f"{what} is neither a file nor one of {', '.join(weights.names())}")
    return [Path(what)]
