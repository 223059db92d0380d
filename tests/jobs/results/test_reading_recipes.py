"""The recipes of docs/reading.md, as printed there: what readers without htc see."""

import re
from pathlib import Path

import pytest

from pipeline.output.results import open_results
from tests.support.builders.finished_runs import finish_run, write_inputs
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "reading.md"
READERS = ("pandas", "pyarrow", "polars", "DuckDB", "Hugging Face datasets")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs; the second was killed between the two files of a shard."""
    root = tmp_path_factory.mktemp("a b#c%20 ü")
    images = write_inputs(root / "in", 6)
    finish_run(images, str(root / "out"), "monday")
    finish_run(images, str(root / "out"), "tuesday", day=1)
    (root / "out/images/run=tuesday/part-00001.parquet").unlink()
    return root / "out"


def recipe(reader: str) -> str:
    """Return the first block of Python below a reader's heading."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n### {reader}\n", 1)[1].split("\n### ", 1)[0]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found is not None, reader
    return found.group(1)


@pytest.mark.parametrize("reader", READERS)
def test_a_recipe_reads_what_ours_reads(
    reader: str, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    names: dict[str, object] = {"output": str(output), "cache": str(tmp_path / "cache")}
    exec(compile(recipe(reader), f"{PAGE}:{reader}", "exec"), names)
    rows = names["rows"]
    results = open_results(str(output)).instances().to_pylist()
    assert sorted(rows) == sorted((row["run"], row["image_id"], row["instance"]) for row in results)  # type: ignore[call-overload]
    assert len(results) == 20
