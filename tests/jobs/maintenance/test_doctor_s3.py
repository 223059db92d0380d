"""`htc doctor` on a real S3 server: as on a disk, under a prefix with spaces."""

from pathlib import Path

import pytest

from jobs.maintenance.doctor import examine_and_report
from pipeline.errors import DamagedFileError
from pipeline.maintenance.compaction import compact_run
from pipeline.output.results import open_results
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from tests.support.builders.damaged_outputs import contents_of
from tests.support.builders.finished_runs import finish_run, write_inputs
from tests.support.servers.s3_server import S3Server

pytestmark = pytest.mark.xdist_group("s3")


def test_damage_in_a_bucket_is_found_and_repaired(
    tmp_path: Path, s3_server: S3Server, s3_bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    section = StorageSection(endpoint_url=s3_server.endpoint_url)
    storage = Storage(section)
    output, images = f"{s3_bucket}/masks of 2026 & more", write_inputs(tmp_path / "in", 8)
    finish_run(images, output, "r", storage=storage)
    finish_run(images, output, "large", day=1, storage=storage)
    compact_run(storage, output, "large", target_bytes=1 << 30, check=lambda: None)
    before = contents_of(output, storage)
    for name in ("images/run=r/part-00001.parquet", "runs/r/summary.json", "runs/r/run.json"):
        storage.write(f"{output}/{name}", storage.read(f"{output}/{name}")[:60])
    storage.delete(f"{output}/instances/run=r/part-00003.parquet")
    storage.write(f"{output}/images/run=r/part-00000.parquet/inner.txt", b"foreign")
    storage.write(f"{output}/images/run=large/parts-00000-00003.parquet", b"")
    with pytest.raises(DamagedFileError, match=r"htc doctor '"):
        open_results(output, storage).images("large")
    assert examine_and_report(f"{output}/", storage_section=section) == 1
    reported = capsys.readouterr().out
    assert all(name in reported for name in ("run=large/parts-00000-00003.parquet", "runs/r/run.json"))

    assert examine_and_report(output, is_repaired=True, storage_section=section) == 0
    assert examine_and_report(output, storage_section=section) == 0
    moved = {each.uri.removeprefix(f"{output}/quarantine/")[17:] for each in storage.list(f"{output}/quarantine")}
    assert {"images/run=r/part-00001.parquet", "images/run=large/parts-00000-00003.parquet", "runs/r/run.json"} <= moved
    results = open_results(output, storage)
    assert (results.committed_shards("r"), results.committed_shards("large")) == (2, 0)
    # What is sent back is done again under the same names, and then all is as it was.
    for night, run in enumerate(("r", "large")):
        finish_run(images, output, run, day=night, storage=storage)
    assert contents_of(output, storage) == before
    assert examine_and_report(output, storage_section=section) == 0
