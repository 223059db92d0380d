"""The code of docs/python.md, run in the order of the page; and `htc_batch.run`."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import htc_batch
from tests.support.builders.damaged_outputs import without_ray
from tests.support.paths import PHOTOS, ROOT

PAGE = ROOT / "docs" / "python.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with photos/, and workers in this process with a fake model."""
    (tmp_path / "photos").mkdir()
    for photo in sorted(PHOTOS.glob("*.jpg"))[:3]:
        shutil.copy(photo, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    with without_ray():
        yield tmp_path


# Pandas' own, of an older interface of its readers.
@pytest.mark.filterwarnings("default:::pandas")
def test_the_code_of_the_page_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    assert len(BLOCKS) == 7
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"{PAGE}:{number}", "exec"), names)
    assert capsys.readouterr().out.startswith("complete 3 ")
    assert (folder / "masks" / "images").is_dir()


def test_run_takes_an_input_and_an_output_or_a_spec(folder: Path) -> None:
    first = htc_batch.run("photos/", "out/", limit=2, run="one", overrides={"retry.max_attempts": 2})
    assert (first.status, first.images, first.exit_code) == ("complete", 2, 0)
    spec = htc_batch.load_spec(None, {"input.uri": "photos/", "output.uri": "out/"})
    assert htc_batch.run(spec, run="two", fresh=True).images == 3
    later = htc_batch.run("photos/", "out/", incremental=True)
    assert (later.images, later.run) == (0, later.run)
    assert htc_batch.open("out/").runs()[:2] == ["one", "two"]


def test_run_says_what_is_wrong(folder: Path) -> None:
    spec = htc_batch.load_spec(None, {"input.uri": "photos/", "output.uri": "out/"})
    with pytest.raises(htc_batch.HtcError, match="an input and an output"):
        htc_batch.run("photos/")
    with pytest.raises(htc_batch.HtcError, match="give changes to htc_batch"):
        htc_batch.run(spec, limit=2)
    with pytest.raises(htc_batch.HtcError, match=r"model.preset: .*htc_r50"):
        htc_batch.run("photos/", "out/", model="htc_r51_fpn")
    with pytest.raises(TypeError, match="worker_count"):
        htc_batch.run("photos/", "out/", worker_count=2)
    with pytest.raises(htc_batch.HtcError, match="holds no run"):
        htc_batch.open("photos/")
