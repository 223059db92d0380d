"""Compact, publish and prune on a real S3 server, as typed by a user."""

import json
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from pyiceberg.catalog import load_catalog

from jobs.cli import program as cli
from pipeline.output.json_files import write_json
from pipeline.runs.record_notifications import record_notifications
from pipeline.runs.summary import load_summary, summary_uri
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from tests.support.builders.finished_runs import finish_run, tables_of, write_inputs
from tests.support.servers.s3_server import READER, S3Server

Htc = Callable[..., tuple[int, str]]
pytestmark = pytest.mark.xdist_group("s3")


@pytest.fixture
def output(tmp_path: Path, s3_server: S3Server, s3_bucket: str) -> str:
    """Three complete nights in a bucket; one's name begins with another's."""
    images = write_inputs(tmp_path / "in", 6)
    uri = f"{s3_bucket}/masks of 2026"
    for night, run in enumerate(("night", "night2", "night3")):
        finish_run(images, uri, run, day=night, storage=door(s3_server))
    return uri


def door(server: S3Server) -> Storage:
    return Storage(StorageSection(endpoint_url=server.endpoint_url))


@pytest.fixture
def htc(s3_server: S3Server, capsys: pytest.CaptureFixture[str]) -> Htc:
    """Type a command; return its exit code and its output."""

    def type_it(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            cli.main([*arguments, "--endpoint-url", s3_server.endpoint_url])
        reported = capsys.readouterr()
        return int(leaving.value.code or 0), reported.out + reported.err

    return type_it


def keys_below(server: S3Server, uri: str) -> list[str]:
    found: list[str] = server.files().find(uri)
    return [key.partition("/")[2].partition("/")[2] for key in found]


def test_three_runs_on_s3(htc: Htc, output: str, s3_server: S3Server, tmp_path: Path) -> None:
    before = tables_of(output, storage=door(s3_server))
    catalog = f"sqlite:///{tmp_path}/catalog.db"
    code, reported = htc("compact", output)
    assert (code, "night2" in reported) == (0, True)
    assert tables_of(output, storage=door(s3_server)) == before
    assert "3 runs published." in htc("publish", output, "--iceberg", catalog)[1]
    assert "Nothing to publish." in htc("publish", output, "--iceberg", catalog)[1]

    properties = {"type": "sql", "uri": catalog, "s3.endpoint": s3_server.endpoint_url, "s3.region": "us-east-1"}
    # As pyiceberg reads by default, with pyarrow's own client.
    rows = load_catalog("htc", **properties).load_table("htc.instances").scan().to_arrow()
    assert sorted(map(str, rows.to_pylist())) == before["instances"]

    assert "published in" in htc("prune", output, "--keep-last", "1", "--yes")[1]
    freed = htc("prune", output, "--keep-last", "2", "--yes", "--iceberg", catalog)
    assert "Removed 1 run" in freed[1]
    kept = tables_of(output, "night2", door(s3_server))
    assert kept["images"] + tables_of(output, "night3", door(s3_server))["images"] == [
        row for run in ("night2", "night3") for row in before["images"] if f"'{run}'" in row
    ]
    assert not [key for key in keys_below(s3_server, output) if "run=night/" in key or "runs/night/" in key]
    rows = load_catalog("htc", **properties).load_table("htc.images").scan(selected_fields=("run",)).to_arrow()
    assert sorted(set(rows.column("run").to_pylist())) == ["night2", "night3"]

    listed = json.loads(htc("runs", output, "--json")[1])
    assert [(each["run"], each["state"], each["files"]) for each in listed] == [
        ("night2", "complete", 6),
        ("night3", "complete", 6),
    ]


def test_with_permission_to_read_only_nothing_changes(
    htc: Htc, output: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = keys_below(s3_server, output)
    for name, value in READER.environment().items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    for command in (("compact", output), ("prune", output, "--keep-last", "1", "--yes")):
        code, reported = htc(*command)
        assert code == 1
        assert reported.splitlines()[-1].startswith("No permission to write ")
    assert keys_below(s3_server, output) == keys


def test_metrics_of_a_bucket_need_no_cluster(htc: Htc, output: str, s3_server: S3Server) -> None:
    code, reported = htc("metrics", output)
    assert code == 0
    assert f'htc_last_run_state{{output="{output}",run="night3",state="complete"}} 1.0' in reported
    assert f'htc_output_runs{{output="{output}"}} 3.0' in reported
    assert "is not overdue" in htc("runs", output, "--overdue", "--expect-every", "36500d")[1]


def test_deliveries_are_noted_in_a_summary_of_a_bucket(output: str, s3_server: S3Server) -> None:
    storage = door(s3_server)
    ended = "2026-11-26T03:00:00+00:00"
    summary = load_summary(storage, output, "night3") or {}
    write_json(storage, summary_uri(output, "night3"), {**summary, "ended": ended})
    noted = {"webhook": "delivered"}
    assert record_notifications(storage, output, "night3", ended=ended, notifications=noted)
    assert not record_notifications(storage, output, "night3", ended="another", notifications={})
    assert (load_summary(storage, output, "night3") or {})["notifications"] == noted
