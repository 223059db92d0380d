"""`Storage` on a real S3 server: permissions, pages, inputs and large objects."""

import io
import tarfile

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import AccessDeniedError, InputError, SpecError, StorageError
from pipeline.inputs.listing import list_images
from pipeline.inputs.read import read_image
from pipeline.job_spec.job import InputSection, load_spec
from pipeline.storage import retry as retrying
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from pipeline.storage.uris import join
from tests.support.servers.s3_server import PUBLIC_BUCKET, READER, WRITER, WRONG, Key, S3Server

pytestmark = pytest.mark.xdist_group("s3")


@pytest.fixture
def storage(s3_server: S3Server, s3_bucket: str) -> Storage:
    return Storage(StorageSection(endpoint_url=s3_server.endpoint_url))


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "LONGEST_WAIT_S", 0.0)


def use_key(key: Key, monkeypatch: pytest.MonkeyPatch, server: S3Server) -> Storage:
    """Storage with another key; clients keep the key that they were opened with."""
    for name, value in key.environment().items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    return Storage(StorageSection(endpoint_url=server.endpoint_url))


def test_an_empty_file_and_a_large_one_read_back(storage: Storage, s3_bucket: str) -> None:
    # From 100 MB s3fs uploads in parts.
    large = bytes(range(256)) * 4096 * 104
    for name, payload in (("empty", b""), ("large", large)):
        storage.write(join(s3_bucket, name), payload)
        assert storage.read(join(s3_bucket, name)) == payload
        assert storage.stat(join(s3_bucket, name)).bytes == len(payload)


def test_a_listing_of_many_pages_is_complete_and_in_order(
    s3_server: S3Server, s3_bucket: str, storage: Storage
) -> None:
    names = [f"{folder}{number:04d}.jpg" for folder in ("a/", "a-", "b/c/") for number in range(420)]
    s3_server.files().pipe({join(s3_bucket, "in", name)[5:]: b"x" for name in [*names, ".hidden/x.jpg", "b/.x"]})
    listed = [each.uri.removeprefix(join(s3_bucket, "in/")) for each in storage.list(join(s3_bucket, "in"))]
    assert listed == sorted(names)
    assert [each.uri for each in storage.list(join(s3_bucket, "in"), "b/**/*7.jpg")] == [
        join(s3_bucket, "in", name) for name in names if name.startswith("b/") and name.endswith("7.jpg")
    ]


def test_pages_are_parsed_by_the_fast_parser(s3_bucket: str, storage: Storage) -> None:
    storage.write(join(s3_bucket, "a&b.jpg"), b"x")
    client, bucket = storage.client(s3_bucket)
    (found,) = client.call_s3("list_objects_v2", Bucket=bucket)["Contents"]
    assert found == {"Key": "a&b.jpg", "Size": 1, "ETag": f'"{storage.stat(join(s3_bucket, "a&b.jpg")).etag}"'}


def test_a_listing_holds_the_folder_and_not_its_namesakes(
    s3_server: S3Server, s3_bucket: str, storage: Storage
) -> None:
    names = ["photos/1.jpg", "photos-old/2.jpg", "photos.jpg", "other/3.jpg"]
    s3_server.files().pipe({join(s3_bucket, name)[5:]: b"x" for name in names})
    # Consoles create such an empty object for a "folder".
    s3_server.files().pipe(join(s3_bucket, "photos/")[5:], b"")
    assert [each.uri for each in storage.list(join(s3_bucket, "photos"))] == [join(s3_bucket, "photos/1.jpg")]
    assert [each.uri for each in storage.list(join(s3_bucket, "photos/"))] == [join(s3_bucket, "photos/1.jpg")]
    assert len(list(storage.list(s3_bucket))) == 4


def test_every_kind_of_input_is_listed_and_read(s3_bucket: str, storage: Storage) -> None:
    loose = {f"loose/{name}": name.encode() for name in ("1.jpg", "2.png", "d/3.jpg")}
    for name, payload in loose.items():
        storage.write(join(s3_bucket, name), payload)
    members = io.BytesIO()
    with tarfile.open(fileobj=members, mode="w") as tar:
        for number in range(3):
            header = tarfile.TarInfo(f"m/{number}.jpg")
            header.size = 5
            tar.addfile(header, io.BytesIO(b"tar-%d" % number))
    storage.write(join(s3_bucket, "shards/a.tar"), members.getvalue())
    table = io.BytesIO()
    pq.write_table(pa.table({"image": [{"bytes": b"row-0", "path": "0"}, {"bytes": b"row-1", "path": "1"}]}), table)
    storage.write(join(s3_bucket, "shards/b.parquet"), table.getvalue())
    listing = f"1.jpg\n{join(s3_bucket, 'loose/d/3.jpg')}\n../loose/2.png\n"
    storage.write(join(s3_bucket, "loose/some.txt"), listing.encode())

    def payloads(uri: str, glob: str | None = None) -> list[bytes]:
        section = InputSection(uri=join(s3_bucket, uri), glob=glob)
        return [read_image(ref, storage) for ref in list_images(section, storage)]

    assert payloads("loose") == payloads("loose/") == [b"1.jpg", b"2.png", b"d/3.jpg"]
    assert payloads("loose/**/*.jpg") == payloads("loose", "**/*.jpg") == [b"1.jpg", b"d/3.jpg"]
    assert payloads("loose/d/3.jpg") == [b"d/3.jpg"]
    assert payloads("loose/some.txt") == [b"1.jpg", b"d/3.jpg", b"2.png"]
    assert payloads("shards/a.tar") == [b"tar-0", b"tar-1", b"tar-2"]
    assert payloads("shards/b.parquet") == [b"row-0", b"row-1"]
    assert payloads("shards") == [b"tar-0", b"tar-1", b"tar-2", b"row-0", b"row-1"]
    with pytest.raises(InputError, match="does not exist"):
        payloads("nothing")


def test_a_wrong_secret_is_no_permission(s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    s3_server.files().pipe(join(s3_bucket, "a.jpg")[5:], b"x")
    storage = use_key(WRONG, monkeypatch, s3_server)
    attempts = (
        storage.read,
        storage.stat,
        storage.kind,
        storage.open,
        storage.delete,
        lambda uri: storage.write(uri, b"y"),
    )
    for attempt in (*attempts, lambda uri: list(storage.list(s3_bucket))):
        with pytest.raises(AccessDeniedError, match="check the credentials") as caught:
            attempt(join(s3_bucket, "a.jpg"))
        assert WRONG.secret not in str(caught.value)


def test_a_key_that_may_only_read_reads(s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    s3_server.files().pipe(join(s3_bucket, "a.jpg")[5:], b"x")
    storage = use_key(READER, monkeypatch, s3_server)
    assert [each.uri for each in storage.list(s3_bucket)] == [join(s3_bucket, "a.jpg")]
    assert storage.read(join(s3_bucket, "a.jpg")) == b"x"
    with pytest.raises(AccessDeniedError, match="No permission to write"):
        storage.write(join(s3_bucket, "b.jpg"), b"y")
    with pytest.raises(AccessDeniedError, match="No permission to delete"):
        storage.delete(join(s3_bucket, "a.jpg"))
    assert storage.exists(join(s3_bucket, "a.jpg"))


def test_a_public_bucket_needs_anonymous_and_no_credentials(
    s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = s3_server.make_bucket(PUBLIC_BUCKET)
    s3_server.files().pipe({join(bucket, "in/a.jpg")[5:]: b"x" for bucket in (public, s3_bucket)})
    storage = use_key(WRITER, monkeypatch, s3_server)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(AccessDeniedError, match=r"No valid credentials.*anonymous: true"):
        storage.read(join(public, "in/a.jpg"))
    anonymous = Storage(StorageSection(endpoint_url=s3_server.endpoint_url, anonymous=True))
    (listed,) = anonymous.list(join(public, "in"))
    assert anonymous.read(listed.uri) == b"x"
    with pytest.raises(AccessDeniedError, match="No permission to write"):
        anonymous.write(join(public, "b.jpg"), b"y")
    with pytest.raises(AccessDeniedError, match="No permission to read"):
        anonymous.read(join(s3_bucket, "in/a.jpg"))


def test_a_job_spec_is_read_and_a_missing_one_is_named(
    s3_server: S3Server, s3_bucket: str, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint_url)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    storage.write(join(s3_bucket, "job.yaml"), f"input: {{uri: {s3_bucket}/in}}\noutput: {{uri: out}}\n".encode())
    assert load_spec(join(s3_bucket, "job.yaml")).input.uri == f"{s3_bucket}/in"
    with pytest.raises(SpecError, match=f"^The job spec {s3_bucket}/none.yaml does not exist.$"):
        load_spec(join(s3_bucket, "none.yaml"))


def test_an_unreachable_server_is_reported_after_the_retries(s3_bucket: str, no_waiting: None) -> None:
    storage = Storage(StorageSection(endpoint_url="http://127.0.0.1:9"))
    with pytest.raises(StorageError, match=r"just now \(.*127\.0\.0\.1:9"):
        storage.read(join(s3_bucket, "a.jpg"))
