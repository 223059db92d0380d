"""The door to storage on a real S3 server: the same promises as on local paths."""

import io
import tarfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import AccessDeniedError, InputError, NotFoundError, SpecError, StorageError
from pipeline.inputs.listing import list_images
from pipeline.inputs.read import read_image
from pipeline.job_spec.job import InputSection, load_spec
from pipeline.storage import retry as retrying
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from pipeline.storage.uris import join
from tests.support.servers.s3_server import PUBLIC_BUCKET, READER, WRITER, WRONG, Key, S3Server

pytestmark = pytest.mark.xdist_group("s3")
ODD_NAMES = [
    "a b.jpg",
    "ä.jpg",
    "a#b.jpg",
    "a%20b.jpg",
    "a+b.jpg",
    "a?b.jpg",
    "a&b=c.jpg",
    "A.jpg",
    "a.jpg",
    "[a]*?.jpg",
    "a::b.jpg",
    "a?versionId=3.jpg",
    "a\nb.jpg",
    "\U0001f600.jpg",
    "\uffee.jpg",
]


@pytest.fixture
def door(s3_server: S3Server, s3_bucket: str) -> Storage:
    return Storage(StorageSection(endpoint_url=s3_server.endpoint_url))


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "LONGEST_WAIT_S", 0.0)


def use_key(key: Key, monkeypatch: pytest.MonkeyPatch, server: S3Server) -> Storage:
    """A door for another key; clients remember the one they were opened with."""
    for name, value in key.environment().items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    return Storage(StorageSection(endpoint_url=server.endpoint_url))


def test_odd_names_write_list_and_read_back_exactly(door: Storage, s3_bucket: str, tmp_path: Path) -> None:
    for root in (join(s3_bucket, "photos"), str(tmp_path)):
        names = [name for name in ODD_NAMES if root.startswith("s3:") or len(name) < 250]
        for name in names:
            door.write(join(root, name), name.encode())
        listed = list(door.list(root))
        assert [each.uri for each in listed] == sorted((join(root, name) for name in names), key=str.encode)
        found = [each.uri.rpartition("/")[2] for each in listed]
        assert [door.read(each.uri).decode() for each in listed] == found
        assert [each.bytes for each in listed] == [len(name.encode()) for name in found]
        assert all(each.etag for each in listed)


def test_every_verb_says_what_is_there(door: Storage, s3_bucket: str) -> None:
    assert door.kind(join(s3_bucket, "x")) == "absent"
    uri = join(s3_bucket, "x/y.bin")
    door.write(uri, b"0123456789")
    assert [door.kind(join(s3_bucket, part)) for part in ("x", "x/", "x/y.bin", "x/y", "z")] == [
        "folder",
        "folder",
        "file",
        "absent",
        "absent",
    ]
    assert door.kind(s3_bucket) == "folder"
    assert (door.read(uri, 3, 4), door.read(uri, 7)) == (b"3456", b"789")
    with door.open_input(uri) as file:
        file.seek(8)
        assert file.read() == b"89"
    before = door.stat(uri)
    door.write(uri, b"new")
    assert door.read(uri) == b"new"
    assert (before.bytes, door.stat(uri).bytes) == (10, 3)
    assert before.etag != door.stat(uri).etag == next(door.list(s3_bucket)).etag
    door.delete(uri)
    door.delete(uri)
    assert not door.exists(uri)
    for failing in (door.read, door.stat, door.open_input, lambda uri: list(door.list(uri))):
        with pytest.raises(NotFoundError, match="does not exist"):
            failing(join(s3_bucket, "gone.jpg"))


def test_an_empty_file_and_a_large_one_read_back(door: Storage, s3_bucket: str) -> None:
    # s3fs takes to multipart uploads at 100 MB.
    large = bytes(range(256)) * 4096 * 104
    for name, payload in (("empty", b""), ("large", large)):
        door.write(join(s3_bucket, name), payload)
        assert door.read(join(s3_bucket, name)) == payload
        assert door.stat(join(s3_bucket, name)).bytes == len(payload)


def test_a_listing_goes_on_from_page_to_page_in_order(s3_server: S3Server, s3_bucket: str, door: Storage) -> None:
    names = [f"{folder}{number:04d}.jpg" for folder in ("a/", "a-", "b/c/") for number in range(420)]
    s3_server.files().pipe({join(s3_bucket, "in", name)[5:]: b"x" for name in [*names, ".hidden/x.jpg", "b/.x"]})
    listed = [each.uri.removeprefix(join(s3_bucket, "in/")) for each in door.list(join(s3_bucket, "in"))]
    assert listed == sorted(names)
    assert [each.uri for each in door.list(join(s3_bucket, "in"), "b/**/*7.jpg")] == [
        join(s3_bucket, "in", name) for name in names if name.startswith("b/") and name.endswith("7.jpg")
    ]


def test_pages_are_read_by_our_own_hand(s3_bucket: str, door: Storage) -> None:
    door.write(join(s3_bucket, "a&b.jpg"), b"x")
    client, bucket = door.client(s3_bucket)
    (found,) = client.call_s3("list_objects_v2", Bucket=bucket)["Contents"]
    assert found == {"Key": "a&b.jpg", "Size": 1, "ETag": f'"{door.stat(join(s3_bucket, "a&b.jpg")).etag}"'}


def test_a_listing_takes_the_folder_and_not_its_namesakes(s3_server: S3Server, s3_bucket: str, door: Storage) -> None:
    names = ["photos/1.jpg", "photos-old/2.jpg", "photos.jpg", "other/3.jpg"]
    s3_server.files().pipe({join(s3_bucket, name)[5:]: b"x" for name in names})
    # Consoles make such an empty object for a "folder".
    s3_server.files().pipe(join(s3_bucket, "photos/")[5:], b"")
    assert [each.uri for each in door.list(join(s3_bucket, "photos"))] == [join(s3_bucket, "photos/1.jpg")]
    assert [each.uri for each in door.list(join(s3_bucket, "photos/"))] == [join(s3_bucket, "photos/1.jpg")]
    assert len(list(door.list(s3_bucket))) == 4


def test_every_kind_of_input_is_listed_and_read(s3_bucket: str, door: Storage) -> None:
    loose = {f"loose/{name}": name.encode() for name in ("1.jpg", "2.png", "d/3.jpg")}
    for name, payload in loose.items():
        door.write(join(s3_bucket, name), payload)
    members = io.BytesIO()
    with tarfile.open(fileobj=members, mode="w") as tar:
        for number in range(3):
            header = tarfile.TarInfo(f"m/{number}.jpg")
            header.size = 5
            tar.addfile(header, io.BytesIO(b"tar-%d" % number))
    door.write(join(s3_bucket, "shards/a.tar"), members.getvalue())
    table = io.BytesIO()
    pq.write_table(pa.table({"image": [{"bytes": b"row-0", "path": "0"}, {"bytes": b"row-1", "path": "1"}]}), table)
    door.write(join(s3_bucket, "shards/b.parquet"), table.getvalue())
    listing = f"1.jpg\n{join(s3_bucket, 'loose/d/3.jpg')}\n../loose/2.png\n"
    door.write(join(s3_bucket, "loose/some.txt"), listing.encode())

    def payloads(uri: str, glob: str | None = None) -> list[bytes]:
        section = InputSection(uri=join(s3_bucket, uri), glob=glob)
        return [read_image(ref, door) for ref in list_images(section, door)]

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
    door = use_key(WRONG, monkeypatch, s3_server)
    attempts = (door.read, door.stat, door.kind, door.open_input, door.delete, lambda uri: door.write(uri, b"y"))
    for attempt in (*attempts, lambda uri: list(door.list(s3_bucket))):
        with pytest.raises(AccessDeniedError, match="check the credentials") as caught:
            attempt(join(s3_bucket, "a.jpg"))
        assert WRONG.secret not in str(caught.value)


def test_a_key_that_may_only_read_reads(s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    s3_server.files().pipe(join(s3_bucket, "a.jpg")[5:], b"x")
    door = use_key(READER, monkeypatch, s3_server)
    assert [each.uri for each in door.list(s3_bucket)] == [join(s3_bucket, "a.jpg")]
    assert door.read(join(s3_bucket, "a.jpg")) == b"x"
    with pytest.raises(AccessDeniedError, match="No permission to write"):
        door.write(join(s3_bucket, "b.jpg"), b"y")
    with pytest.raises(AccessDeniedError, match="No permission to delete"):
        door.delete(join(s3_bucket, "a.jpg"))
    assert door.exists(join(s3_bucket, "a.jpg"))


def test_a_public_bucket_needs_no_credentials_but_the_word(
    s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = s3_server.make_bucket(PUBLIC_BUCKET)
    s3_server.files().pipe({join(bucket, "in/a.jpg")[5:]: b"x" for bucket in (public, s3_bucket)})
    door = use_key(WRITER, monkeypatch, s3_server)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(AccessDeniedError, match=r"No valid credentials.*anonymous: true"):
        door.read(join(public, "in/a.jpg"))
    anonymous = Storage(StorageSection(endpoint_url=s3_server.endpoint_url, anonymous=True))
    (listed,) = anonymous.list(join(public, "in"))
    assert anonymous.read(listed.uri) == b"x"
    with pytest.raises(AccessDeniedError, match="No permission to write"):
        anonymous.write(join(public, "b.jpg"), b"y")
    with pytest.raises(AccessDeniedError, match="No permission to read"):
        anonymous.read(join(s3_bucket, "in/a.jpg"))


def test_a_job_spec_is_read_and_missed_by_name(
    s3_server: S3Server, s3_bucket: str, door: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint_url)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    door.write(join(s3_bucket, "job.yaml"), f"input: {{uri: {s3_bucket}/in}}\noutput: {{uri: out}}\n".encode())
    assert load_spec(join(s3_bucket, "job.yaml")).input.uri == f"{s3_bucket}/in"
    with pytest.raises(SpecError, match=f"^The job spec {s3_bucket}/none.yaml does not exist.$"):
        load_spec(join(s3_bucket, "none.yaml"))


def test_an_unknown_bucket_is_named(door: Storage) -> None:
    for attempt in (door.read, door.stat, lambda uri: list(door.list(uri)), lambda uri: door.write(uri, b"")):
        with pytest.raises(NotFoundError, match="s3://no-such-bucket/a"):
            attempt("s3://no-such-bucket/a")
    assert door.kind("s3://no-such-bucket") == "absent"


def test_a_server_that_is_not_there_is_told_after_the_retries(s3_bucket: str, no_waiting: None) -> None:
    door = Storage(StorageSection(endpoint_url="http://127.0.0.1:9"))
    with pytest.raises(StorageError, match=r"just now \(.*127\.0\.0\.1:9"):
        door.read(join(s3_bucket, "a.jpg"))


def test_a_listing_goes_on_behind_any_name(s3_bucket: str, door: Storage, tmp_path: Path) -> None:
    names = [
        "a-/0.jpg",
        "a-.jpg",
        "a.jpg",
        "a/1.jpg",
        "a/b/2.jpg",
        "a/b/c/3.jpg",
        "a0.jpg",
        "b/4.jpg",
        "b.jpg",
        "ü/5.jpg",
    ]
    for root in (join(s3_bucket, "in"), str(tmp_path)):
        for name in names:
            door.write(join(root, name), b"x")
        everything = [each.uri for each in door.list(root)]
        assert len(everything) == len(names)
        for after in [*everything, join(root, "a"), join(root, "a/"), join(root, "a/b/b"), join(root, ""), root, "z"]:
            behind = [uri for uri in everything if uri.encode() > after.encode() or after in (root, "z")]
            assert [each.uri for each in door.list(root, after=after)] == behind, after
        assert [each.uri for each in door.list(root, "**/*.jpg", after=join(root, "a/b/2.jpg"))] == everything[5:]


@pytest.mark.parametrize("slashes", ["", "/", "//", "///"])
def test_slashes_at_the_end_of_a_prefix_lose_no_image(door: Storage, s3_bucket: str, slashes: str) -> None:
    # This server takes slashes in a row for one.
    names = ["a.jpg", "b c.jpg", "d/e.jpg"]
    for name in names:
        door.write(join(s3_bucket, "img", name), name.encode())
    refs = list(list_images(InputSection(uri=f"{s3_bucket}/img{slashes}"), door))
    assert [ref.uri for ref in refs] == [join(s3_bucket, "img", name) for name in names]
    assert [read_image(ref, door).decode() for ref in refs] == names
