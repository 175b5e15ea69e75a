"""Odd patch sets, masks, slides and annotations through the command line: read right, refused in one line, or wrong.

    python scripts/odd_inputs [PATTERN] [--all]

Prints a table of totals by kind, and all that is wrong; with --all, every input with what was said. PATTERN chooses by "KIND NAME".
Exit code 1 if anything is wrong.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from odd_inputs import (  # noqa: F401
    annotation_files,
    annotations,
    common,
    masks,
    patch_files,
    patch_images,
    patch_names,
    scored,
    slides,
    slides_files,
    slides_ome,
)


def main() -> int:
    """Run the chosen inputs; returns the exit code."""
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    chosen = [case for case in common.CASES if re.search(words[0] if words else "", f"{case[1]} {case[0]}")]
    totals: Counter[tuple[str, str]] = Counter()
    for number, (name, kind, case) in enumerate(chosen, 1):
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = case(Path(folder).resolve())
            except Exception as error:  # of the case, or of what it calls
                found = common.Outcome("WRONG", f"{type(error).__name__}: {error}")
        totals[kind, found.verdict] += 1
        if found.verdict == "WRONG" or "--all" in sys.argv:
            print(f"| {number} | {kind} | {name} | {found.verdict} | {' '.join(found.why.split())[:300]} |", flush=True)
    print("\n| kind | read right | refused in one line | wrong |\n| --- | --: | --: | --: |")
    for kind in dict.fromkeys(kind for _, kind, _ in chosen):
        print(
            f"| {kind} | " + " | ".join(str(totals[kind, verdict]) for verdict in ("right", "refused", "WRONG")) + " |"
        )
    return int(any(verdict == "WRONG" for _, verdict in totals))


if __name__ == "__main__":
    sys.exit(main())
