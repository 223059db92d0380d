"""Listings of signed URLs: every worker reads them, a run resumes with new signatures, and the output has none."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from htc_model.config import load_preset
from pipeline.errors import InputError
from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.messages import Assignment
from pipeline.output.results import open_results
from pipeline.runs.lease import take_lease
from pipeline.runs.open import open_run
from pipeline.runs.run import RunHandle
from pipeline.storage.storage import Storage
from pipeline.worker.commit_claim import CommitClaim
from pipeline.worker.shard_processor import ShardProcessor
from tests.support.fakes.models import FakeModel
from tests.support.fakes.shard_bench import resources_for
from tests.support.servers.signing_host import SigningHost, everything_in, signing_host

FINGERPRINT = {"preset": "htc_lite0_fpn", "weights_sha256": "a" * 64, "config_sha256": "c" * 64, "trained": True}
TOKEN = "hush-token-in-the-host"  # to be looked for
FIRST, SECOND, THIRD = "hush-first-0f0f0f0f", "hush-second-1e1e1e1e", "hush-third-2d2d2d2d"


@pytest.fixture
def host() -> Iterator[SigningHost]:
    with signing_host() as host:
        yield host


def spec_of(folder: Path, **overrides: object) -> JobSpec:
    values = {"input.uri": str(folder / "l.txt"), "output.uri": str(folder / "out"), "compute.shard_images": 4}
    return load_spec(None, values | {key.replace("__", "."): value for key, value in overrides.items()})


def open_it(spec: JobSpec) -> RunHandle:
    """Read as a driver that has just started."""
    storage = Storage(spec.storage)
    return open_run(
        spec, FINGERPRINT, storage, take_lease=lambda name: take_lease(storage, spec.output.uri, name), patience_s=None
    )


def work(run: RunHandle, spec: JobSpec, shards: list[int]) -> None:
    """Read as a worker, which has only what it is given."""
    resources = resources_for(spec, FakeModel(load_preset("htc_lite0_fpn")))
    processor = ShardProcessor(resources, output_uri=spec.output.uri, run=run.name, model_label="fake")
    for index in shards:
        processor.process(
            run.read_shard(index), Assignment(index, 1, True), claim=CommitClaim(), on_images=lambda _: None
        )


def test_signed_images_are_read_and_resumed_and_no_secret_is_kept(
    tmp_path: Path, host: SigningHost, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="pipeline")
    listing, spec = tmp_path / "l.txt", spec_of(tmp_path)
    credential = f"https://{TOKEN}@127.0.0.1:1/a.jpg"
    listing.write_text("\n".join([*host.sign(FIRST), credential]))
    begun = open_it(spec)
    assert begun.shard_count == 3
    work(begun, spec, [0])
    begun.close()

    # Signatures expire: the listing is signed again, and the same command resumes.
    listing.write_text("\n".join([*host.sign(SECOND), credential]))
    resumed = open_it(spec)
    assert (resumed.name, resumed.todo()) == (begun.name, [1, 2])
    work(resumed, spec, [1, 2])
    resumed.close()
    rows = open_results(str(spec.output.uri)).images().to_pylist()
    base = host.address
    names = [f"{base}/{number}.jpg" for number in range(6)] + [f"{base}/get?id=7", f"{base}/get?id=8"]
    assert [(row["uri"], row["status"]) for row in rows] == [
        *((name, "ok") for name in [*names, f"tar://m.jpg::{base}/x.tar"]),
        ("https://***@127.0.0.1:1/a.jpg", "unreadable"),
    ]

    # Signed a third time, an incremental run finds nothing new or changed except for the line that is not an address.
    listing.write_text("\n".join([*host.sign(THIRD), credential]))
    again = spec_of(tmp_path, select__mode="incremental")
    incremental = open_it(again)
    counts = incremental.manifest.selection
    assert (counts["new"], counts["changed"], counts["unchanged"], counts["deleted"]) == (0, 1, 9, 0)
    assert [ref.problem is None for ref in incremental.read_shard(0).images] == [False]
    incremental.close()

    texts = everything_in(tmp_path / "out") | {"log": caplog.text}
    for secret in (TOKEN, FIRST, SECOND, THIRD, "X-Amz-Signature"):
        assert not [name for name, text in texts.items() if secret in text]


def test_an_expired_signature_fails_only_its_image(tmp_path: Path, host: SigningHost) -> None:
    spec = spec_of(tmp_path)
    (tmp_path / "l.txt").write_text("\n".join(host.sign(FIRST)[:3]))
    run = open_it(spec)
    host.sign(SECOND)
    work(run, spec, [0])
    run.close()
    rows = open_results(str(spec.output.uri)).images().to_pylist()
    assert [row["status"] for row in rows] == ["failed"] * 3
    assert all("public, or signed" in row["error"] for row in rows)
    assert FIRST not in str(rows)


def test_a_run_whose_listing_is_missing_cannot_resume(tmp_path: Path, host: SigningHost) -> None:
    spec = spec_of(tmp_path)
    (tmp_path / "l.txt").write_text("\n".join(host.sign(FIRST)))
    open_it(spec).close()
    (tmp_path / "l.txt").unlink()
    with pytest.raises(InputError, match=r"l\.txt does not exist"):
        open_it(spec)
