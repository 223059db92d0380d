"""Addresses in listings and specs: a signature is no part of a name, and an invalid address becomes a failed row."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry as fsspec_registry

from jobs.cli.program import main
from pipeline.errors import (
    AccessDeniedError,
    ImageError,
    InputError,
    SpecError,
    StorageError,
    UnsupportedSchemeError,
)
from pipeline.inputs.image_ref import ImageRef
from pipeline.inputs.listing import SourceNotes, list_images
from pipeline.inputs.read import read_image
from pipeline.job_spec.job import InputSection, load_spec
from pipeline.messages import ImageFailure
from pipeline.storage.addresses import LONGEST_ADDRESS, read_address
from pipeline.storage.signed_urls import SignedAddresses
from pipeline.storage.storage import Storage
from pipeline.worker.error_boundaries import image_boundary
from tests.support.builders.planned_runs import survey_of

SIGNED = "https://b.s3.amazonaws.com/a.jpg"
AWS = "X-Amz-Algorithm=AWS4&X-Amz-Credential=AKIA%2F1&X-Amz-Date=2&X-Amz-Expires=9&X-Amz-SignedHeaders=host"


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        (f"{AWS}&X-Amz-Security-Token=hush&X-Amz-Signature=hush", ""),
        (f"versionId=7&{AWS}&X-Amz-Signature=hush&x-id=GetObject", "?versionId=7"),
        ("AWSAccessKeyId=AKIA&Signature=hush&Expires=5", ""),
        ("GoogleAccessId=me&Expires=5&Signature=hush&generation=3", "?generation=3"),
        ("X-Goog-Algorithm=G&X-Goog-Credential=c&X-Goog-Date=2&X-Goog-Signature=hush", ""),
        ("sv=2024&st=1&se=2&sr=b&sp=r&skoid=u&sig=hush%3D", ""),
        ("Policy=hush&Signature=hush&Key-Pair-Id=K", ""),
        ("id=7&token=hush", "?id=7"),
        ("access_token=hush&id=7&expires=3", "?id=7"),
        ("api_key=hush&w=640", "?w=640"),
        ("X%2DAmz%2DSignature=hush", ""),
        ("id=7&st=2&sp=3#top", "?id=7&st=2&sp=3#top"),
    ],
)
def test_a_signature_is_no_part_of_a_name(query: str, kept: str) -> None:
    address = read_address(f"{SIGNED}?{query}", "/lists")
    assert address.name == f"{SIGNED}{kept}"
    assert address.signed == (None if "hush" not in query else f"{SIGNED}?{query}")
    assert address.problem is None


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("https://hush@host/a.jpg", "user name, password or token"),
        ("https://me:hush@host/a.jpg?id=1", "user name, password or token"),
        ("s3://AKIA:hush@bucket/a.jpg", "user name, password or token"),
        ("s3://bucket/a.jpg?X-Amz-Signature=hush", "https:// only"),
        ("abfs://c@account/a.jpg?sig=hush", "https:// only"),
        ("hdfs://name/a.jpg?delegation_token=hush", "https:// only"),
        ("http://[::1", "not a valid URL"),
        ("http:///a.jpg", "no host"),
        ("http://host:99999/a.jpg", "Port"),
        ("http://ho st/a.jpg", "control character"),
        ("http://host/a\tb.jpg", "control character"),
        ("s3:///a.jpg", "no bucket"),
        ("s3://bucket", "no object"),
        ("gs://bucket/", "no object"),
        ("data:image/png;base64,iVBORw0KGgo=", "data:"),
        ("file://server/a.jpg", "machine server"),
        ("file:///a%00.jpg", "null character"),
        ("a\0.jpg", "null character"),
        (r"C:\photos\a.jpg", "drive letter"),
        ("D:/photos/a.jpg", "drive letter"),
        ("https://host/" + "x" * LONGEST_ADDRESS, "characters"),
    ],
)
def test_an_invalid_address_is_a_failed_row_without_its_secret(tmp_path: Path, entry: str, words: str) -> None:
    address = read_address(entry, "/lists")
    assert words in str(address.problem)
    assert "hush" not in repr(address)
    pq.write_table(pa.table({"url": [entry, "s.jpg"]}), tmp_path / "l.parquet")
    (tmp_path / "l.jsonl").write_text(f"{pa.scalar(entry).as_py()!r}\n".replace("'", '"').replace("\\x00", "\\u0000"))
    for name in ("l.parquet", "l.jsonl"):
        notes = SourceNotes()
        bad = next(iter(list_images(InputSection(uri=str(tmp_path / name)), Storage(), notes=notes)))
        failure = image_boundary(bad.uri, lambda ref=bad: read_image(ref, Storage()))  # type: ignore[misc]
        assert isinstance(failure, ImageFailure)
        assert failure.status == "unreadable"
        assert sum(notes.refused.values()) == 1
        assert "hush" not in repr((bad, notes, failure))
        assert len(bad.uri) < 3000


def test_the_container_in_an_azure_address_is_no_secret() -> None:
    assert read_address("abfs://images@account.dfs.core.windows.net/a.jpg", "/").problem is None
    assert read_address("s3://bucket/a@b:c.jpg", "/").problem is None


FOREIGN = {
    "hdfs": "hdfs",
    "webhdfs": "host",
    "github": "org, repo",
    "zip": "unpack",
    "simplecache": "unpack",
    "ftp": "host",
    "sftp": "paramiko",
    "gdrive": "gdrive_fs",
    "git": "pygit2",
    "smb": "smbprotocol",
    "nosuch": "not a known scheme",
    "gopher+x": "not a known scheme",
}


def test_a_foreign_address_among_good_ones_is_a_failed_row_and_named_in_the_notes(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    lines = [f"{scheme}://place/{number}.jpg" for scheme in FOREIGN for number in range(2)]
    (tmp_path / "l.txt").write_text("\n".join(["a.jpg", *lines, "hdfs://place/x.tar"]))
    storage, notes = Storage(), SourceNotes()
    first, *others = list_images(InputSection(uri=str(tmp_path / "l.txt")), storage, notes=notes)
    assert read_image(first, storage) == b"a"
    assert [ref.uri for ref in others] == [*lines, "hdfs://place/x.tar"]
    # A worker does not know which schemes the driver refused.
    for ref, scheme in zip(others[::2], FOREIGN, strict=False):
        failure = image_boundary(ref.uri, lambda ref=ref: read_image(ref, Storage()))  # type: ignore[misc]
        assert isinstance(failure, ImageFailure)
        assert failure.status == "failed"
        assert FOREIGN[scheme] in failure.reason
    named = {kind.split()[1].removesuffix(","): count for kind, count in notes.refused.items()}
    assert named == {f"{scheme}://": 2 + (scheme == "hdfs") for scheme in FOREIGN}


@pytest.mark.parametrize("scheme", FOREIGN)
def test_an_input_or_output_of_a_foreign_scheme_is_refused(tmp_path: Path, scheme: str) -> None:
    with pytest.raises(UnsupportedSchemeError, match=re.escape(scheme)):
        list(list_images(InputSection(uri=f"{scheme}://place/a"), Storage()))
    with pytest.raises(UnsupportedSchemeError, match=re.escape(scheme)):
        Storage().write(f"{scheme}://place/out/x", b"")


@pytest.mark.parametrize("key", ["input.uri", "output.uri", "model.weights", "storage.endpoint_url"])
@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("https://hush@host/x.pth", "credentials"),
        ("https://me:hush@host/x.pth", "credentials"),
        ("https://host/x.pth?X-Amz-Signature=hush", "X-Amz-Signature is a secret"),
        ("https://host/x.pth?sv=1&sig=hush", "sig is a secret"),
        ("https://host/x.pth?token=hush", "token is a secret"),
        ("http://[::1/x.pth", "not a valid URL"),
        ("s3:///x.pth", "no bucket"),
    ],
)
def test_a_spec_takes_no_secret_and_no_broken_address(key: str, uri: str, words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        load_spec(None, {"input.uri": "/photos", "output.uri": "/out", key: uri})
    assert "hush" not in str(caught.value)


def test_names_too_long_for_a_file_are_missing_at_once(tmp_path: Path) -> None:
    failure = image_boundary("x", lambda: read_image(ImageRef(f"{tmp_path}/{'x' * 300}.jpg"), Storage()))
    assert isinstance(failure, ImageFailure)
    assert failure.status == "missing"


def test_one_object_signed_twice_is_one_image_and_two_tokens_are_two(tmp_path: Path) -> None:
    lines = [f"{SIGNED}?{AWS}&X-Amz-Signature={each}" for each in "ab"]
    lines += [f"https://host/get?token={each}" for each in ("one", "two", "one")]
    (tmp_path / "l.txt").write_text("\n".join(lines))
    storage, notes = Storage(), SourceNotes()
    refs = list(list_images(InputSection(uri=str(tmp_path / "l.txt")), storage, notes=notes))
    assert [ref.uri for ref in refs] == [SIGNED, "https://host/get", "https://host/get#line=4"]
    assert notes.duplicates == 2
    assert [storage.signed.find(ref.uri) for ref in refs] == [lines[1], lines[4], lines[3]]


def test_signed_addresses_are_found_by_name() -> None:
    signed = SignedAddresses()
    assert not signed
    assert signed.find("x") is None
    names = {f"n{number}\udcff": f"a{number}?s" for number in range(1200)}
    signed.add(names)
    assert signed.find_all([*names, "absent"]) == names
    signed.add({"n1\udcff": "anew"})
    assert signed.find("n1\udcff") == "anew"


def test_errors_name_the_image_and_hide_its_signature(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("http://127.0.0.1:1/a.jpg?id=1&X-Amz-Signature=hush\n")
    spec = load_spec(
        None, {"input.uri": str(tmp_path / "l.txt"), "output.uri": str(tmp_path / "out"), "storage.patience_s": 0}
    )
    storage = Storage(spec.storage)
    survey = survey_of(spec, storage)
    assert survey.manifest.signed == 1
    with pytest.raises(StorageError, match=r"a\.jpg\?id=1") as caught:
        read_image(survey.sample[0], storage)
    assert "hush" not in str(caught.value)


def test_a_missing_listing_is_still_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        list(list_images(InputSection(uri=str(tmp_path / "l.csv")), Storage()))


def test_a_container_that_refuses_is_a_failed_row_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "l.txt").write_text("s3://bucket/x.tar\na.jpg\n")
    storage, stat = Storage(), Storage.stat

    def refuse(self: Storage, uri: str) -> object:
        if uri.startswith("s3://"):
            raise AccessDeniedError(f"No permission to read {uri}.")
        return stat(self, uri)

    monkeypatch.setattr(Storage, "stat", refuse)
    bad, good = list_images(InputSection(uri=str(tmp_path / "l.txt")), storage)
    assert read_image(good, storage) == b"a"
    with pytest.raises(ImageError, match="No permission"):
        read_image(bad, storage)


def test_an_unknown_store_fails_its_own_image_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(MemoryFileSystem):
        protocol = "odd"

        def cat_file(self, path: str, *_: object, **__: object) -> bytes:
            raise RuntimeError(f"an error of its own kind about {path}")

    monkeypatch.setitem(fsspec_registry, "odd", Odd)
    failure = image_boundary("odd://a/b.jpg", lambda: read_image(ImageRef("odd://a/b.jpg"), Storage()))
    assert isinstance(failure, ImageFailure)
    assert (failure.status, failure.traceback) == ("failed", None)
    assert "its own kind" in failure.reason


@pytest.mark.parametrize("place", ["input", "output"])
def test_a_store_that_cannot_be_opened_is_a_usage_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "in").mkdir()
    where = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out")} | {place: "nosuch://x/y"}
    with pytest.raises(SystemExit) as ended:
        main(["plan", where["input"], where["output"], "--no-model"])
    assert ended.value.code == 2
