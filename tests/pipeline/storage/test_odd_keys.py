"""Keys that are not tidy paths (repeated slashes, dots, spaces, marks) are listed, named and read unchanged."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.running.plan import decode_sample
from pipeline.inputs.listing import list_images
from pipeline.inputs.read import read_image
from pipeline.job_spec.job import InputSection, load_spec
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from tests.support.builders.planned_runs import survey_of
from tests.support.servers.plain_s3 import plain_s3

KEYS = [
    "/leading.jpg",
    "img//double.jpg",
    "img/./dot.jpg",
    "img/../up.jpg",
    "img/a b+c.jpg",
    "img/a%2Fb.jpg",
    "img/a#b?c=d.jpg",
    "img/[x]*.jpg",
    "img/caf\u00e9.jpg",
    "img/cafe\u0301.jpg",
    "img/d///deep.jpg",
    "img/new\nline.jpg",
    "img/plain.jpg",
    "img/ends in a dot.jpg.",
    "twice//one.jpg",
]
MARKERS = ["img/", "img/folder/"]
HIDDEN = ["img/.hidden/a.jpg", "img/..a.jpg"]


@pytest.fixture(scope="module")
def storage() -> Iterator[Storage]:
    objects = {key: key.encode() for key in [*KEYS, *HIDDEN]} | dict.fromkeys(MARKERS, b"")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with plain_s3(objects) as endpoint, pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "hush-hush")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield Storage(StorageSection(endpoint_url=endpoint))
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def keys(uri: str, storage: Storage, **section: str) -> list[str]:
    """The keys below a uri, each read back by its name."""
    refs = list(list_images(InputSection(uri=uri, **section), storage))
    for ref in refs:
        assert read_image(ref, storage).decode() == ref.uri.removeprefix("s3://bucket/")
    return [ref.uri.removeprefix("s3://bucket/") for ref in refs]


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/", "s3://bucket//", "s3://bucket///"])
def test_every_key_is_listed_named_and_read_unchanged(storage: Storage, uri: str) -> None:
    expected = sorted((key for key in KEYS if not key.endswith(".")), key=str.encode)
    assert keys(uri, storage) == expected
    assert sorted(keys(uri, storage, glob="**")) == sorted(KEYS)


@pytest.mark.parametrize("uri", ["s3://bucket/img/d", "s3://bucket/img/d/", "s3://bucket/img/d///"])
def test_a_prefix_of_several_slashes_is_taken_literally_where_it_holds_something(storage: Storage, uri: str) -> None:
    assert keys(uri, storage) == ["img/d///deep.jpg"]


def test_extra_slashes_are_ignored_where_nothing_is_there(storage: Storage) -> None:
    assert keys("s3://bucket/img/d///", storage) == ["img/d///deep.jpg"]
    assert keys("s3://bucket/img///", storage) == keys("s3://bucket/img/", storage) != []
    # A prefix of its own, which other keys do not have.
    assert keys("s3://bucket/img//", storage) == ["img//double.jpg"]
    assert keys("s3://bucket/twice//", storage) == keys("s3://bucket/twice", storage) == ["twice//one.jpg"]


def test_repeated_slashes_are_one_on_a_disk(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(b"a")
    refs = list(list_images(InputSection(uri=f"{tmp_path}/in//"), Storage()))
    assert [ref.uri for ref in refs] == [f"{tmp_path}/in/a.jpg"]


def test_a_name_that_was_never_listed_is_not_reported_as_gone(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("never.jpg\n")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/gone.jpg").write_bytes(b"x")
    row = pa.StructArray.from_arrays([pa.array([None], pa.binary()), pa.array(["never.jpg"])], ["bytes", "path"])
    pq.write_table(pa.table({"image": row}), tmp_path / "rows.parquet")
    reasons = {}
    for name in ("l.txt", "rows.parquet", "in"):
        spec = load_spec(None, {"input.uri": str(tmp_path / name), "output.uri": str(tmp_path / "out")})
        survey = survey_of(spec, Storage())
        (tmp_path / "in/gone.jpg").unlink() if name == "in" else None
        reasons[name] = decode_sample(spec, survey, Storage()).failures[0][1]
    assert reasons == {
        "l.txt": "missing: not found",
        "rows.parquet": "missing: not found",
        "in": "missing: it is gone since it was listed",
    }
