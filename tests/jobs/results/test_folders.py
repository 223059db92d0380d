"""A command's results go into a new folder, or replace its earlier ones; other files are left alone."""

from pathlib import Path

import pytest

from jobs.results.folders import make_own_folder
from pipeline.errors import SpecError


def test_a_new_an_empty_and_an_own_folder_are_taken(tmp_path: Path) -> None:
    for _ in range(2):
        make_own_folder(tmp_path / "new" / "deep", "diff.json")
    (tmp_path / "new" / "deep" / "images.parquet").touch()
    (tmp_path / "new" / "deep" / "diff.json").touch()
    make_own_folder(tmp_path / "new" / "deep", "diff.json")
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / ".DS_Store").touch()
    make_own_folder(tmp_path / "hidden", "diff.json")


def test_other_files_are_named_and_left(tmp_path: Path) -> None:
    (tmp_path / "images.parquet").write_text("mine")
    with pytest.raises(SpecError, match=r"holds other files, such as images\.parquet, .* name a new folder\."):
        make_own_folder(tmp_path, "diff.json")
    with pytest.raises(SpecError, match="cannot be created"):
        make_own_folder(tmp_path / "images.parquet", "diff.json")
