"""Files are whole or not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tfmeta.files import replacing, replacing_folder


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


@pytest.mark.parametrize("old", [True, False])
def test_a_folder_appears_whole(old: bool, tmp_path: Path) -> None:
    if old:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "old.txt").write_text("old")
    with replacing_folder(tmp_path / "a") as beside:
        (beside / "new.txt").write_text("new")
        assert (tmp_path / "a" / "old.txt").exists() == old
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "new.txt"]


@pytest.mark.parametrize("moment", ["filling", "renaming"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_older_folder(
    moment: str, error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old.txt").write_text("old")
    rename = Path.rename

    def refuse_the_new(self: Path, target: Path) -> Path:
        if self.suffix == ".new":
            raise error("no")
        return rename(self, target)

    def fill() -> None:
        with replacing_folder(tmp_path / "a") as beside:
            (beside / "new.txt").write_text("half")
            if moment == "filling":
                raise error("no")

    monkeypatch.setattr(Path, "rename", refuse_the_new)
    with pytest.raises(error, match="no"):
        fill()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "old.txt"]
