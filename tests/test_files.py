"""Files are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tfmeta.files import replacing


def test_the_file_appears_whole(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.txt") as beside:
        beside.write_text("new")
        assert beside.suffix == ".txt"
        assert not (tmp_path / "a.txt").exists()
    assert (tmp_path / "a.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_an_error_leaves_the_older_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")

    def run_out_of_disk() -> None:
        with replacing(tmp_path / "a.txt") as beside:
            beside.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run_out_of_disk()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
