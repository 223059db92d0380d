"""The newest rows of all runs, and runs without rows, as `htc show` and `htc report` take them."""

from pathlib import Path

import pytest
from PIL import Image

from jobs.results.report.command import ReportRequest, write_report
from jobs.results.show import ShowRequest, show_overlays
from pipeline.errors import InputError, SpecError
from tests.support.builders.browsed_outputs import Found, write_photos, write_run


@pytest.fixture
def output(tmp_path: Path) -> str:
    """An output whose second run is incremental, over a changed and a new image."""
    photos = write_photos(tmp_path / "photos", ["a.png", "b.png"])
    write_run(photos, tmp_path / "out", "monday")
    Image.new("RGB", (80, 60), (9, 9, 9)).save(photos / "b.png")
    write_photos(photos, ["new.png"])
    found = {"b.png": (Found("dog", 0.9),)}
    write_run(photos, tmp_path / "out", "tuesday", found, mode="incremental")
    return str(tmp_path / "out")


def test_current_shows_the_newest_rows_of_all_runs(output: str, tmp_path: Path) -> None:
    def shown(run: str | None, **choices: tuple[str, ...]) -> list[str]:
        folder = tmp_path / f"{run}{len(list(tmp_path.iterdir()))}"
        assert show_overlays(output, ShowRequest(folder, run=run, **choices)) == 0
        return sorted(path.name for path in folder.iterdir())

    assert shown(None) == ["b.png", "new.png"]
    assert shown("current") == ["a.png", "b.png", "new.png"]
    assert shown("current", categories=("dog",)) == ["b.png"]
    assert shown("current", uris=("a.png",)) == ["a.png"]
    with pytest.raises(InputError, match=r"Run current has no image c\.png"):
        shown("current", uris=("c.png",))


def test_a_report_names_what_takes_current(output: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"A report is about one run.*`htc show`"):
        write_report(output, ReportRequest(tmp_path / "r.html", run="current"))


def test_a_run_without_rows_is_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_photos(tmp_path / "photos", ["a.png"])
    write_run(photos, tmp_path / "out", "begun", only_shards=0)
    with pytest.raises(InputError, match="Run begun has no rows yet; `htc status` shows how far it is"):
        show_overlays(str(tmp_path / "out"), ShowRequest(tmp_path / "shown"))
    write_report(str(tmp_path / "out"), ReportRequest(tmp_path / "r.html"))
    assert "Run begun has no rows yet" in capsys.readouterr().err
