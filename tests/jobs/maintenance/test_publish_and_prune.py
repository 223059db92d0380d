"""`htc publish` with `prune` and `compact`: what is left out, what is withdrawn, what is refused."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from jobs.maintenance.compact import compact_output
from jobs.maintenance.prune import prune_output
from jobs.maintenance.publish import publish_output, withdraw_run
from pipeline.errors import InputError, SpecError, StorageError
from tests.support.builders.finished_runs import begin_run, finish_run, tables_of, write_inputs
from tests.support.iceberg_reading import LEFT_OUT, catalog_of, load, make_runs, publish, published, runs_in
from tests.support.without_torch import run_without_torch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two complete runs, and an unfinished one."""
    return make_runs(tmp_path)


def test_a_removed_run_is_withdrawn_from_the_tables(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(folder)
    for path in ("images/run=night-0", "instances/run=night-0", "runs/night-0"):
        shutil.rmtree(folder / "out" / path)
    assert publish(folder) == LEFT_OUT
    assert "The run night-0 is no longer in the output" in capsys.readouterr().out
    assert runs_in(folder) == runs_in(folder, "instances") == {"night-1"}


def test_published_runs_are_neither_pruned_nor_compacted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(folder)
    output = str(folder / "out")
    assert prune_output(output, keep_last=1, confirmed=True) == 0
    assert compact_output(output, run="night-0") == 1
    reported = capsys.readouterr()
    assert "published in sqlite" in reported.out
    assert "With --iceberg CATALOG" in reported.out
    assert "compact before publishing" in reported.err
    assert len(published(folder)) == 8


def test_pruning_withdraws_runs_from_the_catalog_first(folder: Path) -> None:
    publish(folder)
    output = str(folder / "out")
    assert prune_output(output, keep_last=1, confirmed=True, catalog=catalog_of(folder)) == 0
    assert runs_in(folder) == runs_in(folder, "instances") == {"night-1"}
    assert published(folder) == tables_of(output, "night-1")["images"]
    assert publish(folder) == LEFT_OUT
    assert runs_in(folder) == {"night-1"}


def test_a_run_is_withdrawn_by_name_and_can_be_published_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(folder)
    output, catalog = str(folder / "out"), catalog_of(folder)
    assert withdraw_run(output, catalog, "night-0") == 0
    assert withdraw_run(output, catalog, "night-0") == 0
    assert "was withdrawn.\nThe run night-0 was not in the tables.\n" in capsys.readouterr().out
    assert runs_in(folder) == {"night-1"}
    assert compact_output(output, run="night-0") == 0
    assert publish(folder) == LEFT_OUT
    assert runs_in(folder) == {"night-0", "night-1"}
    with pytest.raises(InputError, match="There is no run nights"):
        withdraw_run(output, catalog, "nights")


def test_a_run_over_its_error_budget_is_published_by_name_only(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = folder / "out" / "runs" / "night-1" / "summary.json"
    summary.write_text(summary.read_text().replace('"complete"', '"over_error_budget"'))
    publish(folder)
    assert "night-1 ended as over_error_budget; --run night-1 or --include-over-budget" in capsys.readouterr().err
    assert runs_in(folder) == {"night-0"}
    assert publish(folder, run="night-1") == 0
    assert runs_in(folder) == {"night-0", "night-1"}
    # Published by name, it is not left out any more.
    assert publish(folder) == LEFT_OUT
    assert "night-1" not in capsys.readouterr().err


@pytest.mark.parametrize("has_summary", [True, False])
def test_a_run_that_is_left_out_is_named_with_exit_code_1_and_published_with_the_flag(
    folder: Path, capsys: pytest.CaptureFixture[str], has_summary: bool
) -> None:
    finish_run(str(folder / "in"), str(folder / "out"), "cut", day=2)
    summary = folder / "out" / "runs" / "night-1" / "summary.json"
    text = summary.read_text()
    summary.unlink()
    if has_summary:
        summary.write_text(text.replace('"complete"', '"over_error_budget"'))
    assert publish(folder) == 1
    reported = capsys.readouterr()
    assert reported.err.startswith("Not published: the run night-1 ")
    assert runs_in(folder) == {"night-0", "cut"}
    assert publish(folder) == 1
    assert capsys.readouterr().out == "Nothing to publish but 1 run left out.\n"
    assert publish(folder, is_over_budget_included=True) == 0
    assert runs_in(folder) == {"night-0", "night-1", "cut"}
    assert publish(folder) == 0
    assert capsys.readouterr().out.endswith("Nothing to publish.\n")


def test_when_all_runs_are_left_out_the_exit_code_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_inputs(tmp_path / "in", 4)
    finish_run(images, str(tmp_path / "out"), "cut", only_shards=1)
    assert publish(tmp_path) == 1
    reported = capsys.readouterr()
    assert (reported.out, "the run cut is not finished" in reported.err) == (
        "Nothing to publish but 1 run left out.\n",
        True,
    )
    assert publish(tmp_path, is_over_budget_included=True) == 1


def test_tables_of_another_output_are_not_touched(folder: Path) -> None:
    publish(folder)
    other = folder / "other"
    finish_run(str(folder / "in"), str(other), "night-0")
    with pytest.raises(SpecError, match=r"is of the output .*out; name another --catalog-namespace"):
        publish_output(str(other), catalog_of(folder))
    assert publish_output(str(other), catalog_of(folder), namespace="second") == 0
    assert len(published(folder)) == 8


@pytest.mark.parametrize(
    ("catalog", "sentence"),
    [
        ("sqlite:///", "names no file"),
        ("sqlite:////nowhere/at/all.db", "the folder /nowhere/at does not exist"),
        ("postgresql://me:secret@host/db", "is not a catalog: --iceberg takes sqlite"),
        ("", "is not a catalog"),
        ("prod", "The catalog prod cannot be used: URI missing"),
    ],
)
def test_bad_catalogs_are_one_sentence(folder: Path, catalog: str, sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence) as caught:
        publish_output(str(folder / "out"), catalog)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_not_a_catalog_is_one_sentence(folder: Path) -> None:
    (folder / "catalog.db").write_text("no database at all, but long enough to be looked at as one" * 20)
    with pytest.raises(StorageError, match=r"cannot be used: file is not a database"):
        publish(folder)


def test_what_cannot_be_published_says_why(folder: Path) -> None:
    with pytest.raises(SpecError, match="The run cut is not finished"):
        publish(folder, run="cut")
    with pytest.raises(InputError, match="There is no run x"):
        publish(folder, run="x")
    with pytest.raises(SpecError, match="--catalog-namespace must be a name"):
        publish(folder, namespace="a-b")


def test_an_unfinished_run_that_is_finished_later_is_published_then(folder: Path) -> None:
    publish(folder)
    finish_run(str(folder / "in"), str(folder / "out"), "cut", day=2)
    assert begin_run(str(folder / "in"), str(folder / "out"), "cut", day=2).state == "complete"
    publish(folder)
    assert runs_in(folder) == {"night-0", "night-1", "cut"}


def test_the_command_needs_neither_torch_nor_ray(folder: Path) -> None:
    done = run_without_torch("publish", str(folder / "out"), "--iceberg", catalog_of(folder), "--run", "night-0")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"night-0 +4 +\d+ +\d+", done.stdout)


def test_without_the_extra_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiceberg.catalog", None)
    with pytest.raises(SpecError, match=r"pip install 'htc-batch\[iceberg\]'"):
        publish(folder)


def test_deletion_records_are_published_too(folder: Path) -> None:
    (folder / "in" / "0003.jpg").unlink()
    finish_run(str(folder / "in"), str(folder / "out"), "night-3", day=3, mode="incremental")
    publish(folder)
    (marked,) = load(folder, "deletions").scan().to_arrow().to_pylist()
    assert (Path(marked["uri"]).name, marked["last_ok_run"], marked["run"]) == ("0003.jpg", "night-1", "night-3")
