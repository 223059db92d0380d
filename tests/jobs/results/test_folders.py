"""A command's results go into a new folder, or replace its earlier ones; other files are left alone."""

from pathlib import Path

import pytest

from jobs.results.folders import check_apart, make_own_folder
from pipeline.errors import SpecError
from pipeline.output.results import open_results
from pipeline.storage.storage import Storage
from tests.support.builders.browsed_outputs import write_photos, write_run


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


def test_nothing_is_written_among_images_or_into_an_output(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", ["a.png"])
    write_run(photos, tmp_path / "out", "monday")
    outputs = [open_results(str(tmp_path / "out"), Storage())]
    for inside in ("out", "out/new/deep", "photos/../out"):
        with pytest.raises(SpecError, match="lies inside the output"):
            check_apart(tmp_path / inside, outputs, has_pictures=False)
    with pytest.raises(SpecError, match="holds the images of the run"):
        check_apart(photos, outputs)
    check_apart(photos, outputs, has_pictures=False)
    check_apart(tmp_path / "output", outputs)
    check_apart(tmp_path, outputs)
