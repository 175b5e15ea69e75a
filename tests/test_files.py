"""Files that several processes want at once."""

import os
from pathlib import Path
from typing import Any

import pytest

from gan_uad.files import alone


@pytest.mark.parametrize("moment", [1, 2])
def test_a_part_that_another_process_takes_away_is_begun_anew(
    moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waited for the lock looks whether the file still has its name; the name may go before that look or in its midst."""
    part, look, looks = tmp_path / "net.part", os.stat, []

    def stat(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if path == part:
            looks.append(path)
            if len(looks) == moment:
                part.unlink()  # the one before has finished, and renames it
        return look(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", stat)
    part.write_bytes(b"of another")
    with alone(part) as file:
        looks.extend([part, part])
        assert os.path.samestat(os.fstat(file.fileno()), look(part))
