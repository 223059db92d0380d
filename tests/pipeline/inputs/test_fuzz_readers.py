"""Mutated specs, tars, Parquet files and listings are read, or raise an HtcError."""

import io
import json
import tarfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import DamagedContainerError, HtcError, ImageError, NotFoundError, SpecError
from pipeline.inputs.containers.tar import index_tar
from pipeline.inputs.listing import SourceNotes, list_images
from pipeline.inputs.read import read_image
from pipeline.job_spec.job import InputSection, load_spec
from pipeline.storage.storage import Storage

# A busy machine is slow, which is not a failure.
settings.register_profile("readers", deadline=None, suppress_health_check=list(HealthCheck))
READERS = settings.get_profile("readers")
SPEC = {
    "input": {"uri": "/photos", "glob": "*.jpg", "limit": 7},
    "output": {"uri": "/out"},
    "model": {"preset": "htc_r50_fpn", "weights": "coco", "score_threshold": 0.3},
    "compute": {"workers": 2, "shard_images": 64},
    "retry": {"max_attempts": 3, "max_error_rate": 0.1},
    "images": {"max_pixels": 1000},
    "storage": {"anonymous": True},
}
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.dates()
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)


@st.composite
def mutated(draw: st.DrawFn, original: Callable[[], bytes]) -> bytes:
    """A file with bytes flipped, replaced, removed, doubled, or missing at its end."""
    content = bytearray(original())
    for _ in range(draw(st.integers(1, 6))):
        where = draw(st.integers(0, max(0, len(content) - 1)))
        length = draw(st.integers(1, 64))
        match draw(st.sampled_from(["flip", "replace", "cut", "double", "end"])):
            case "flip" if content:
                content[where] ^= 1 << draw(st.integers(0, 7))
            case "replace":
                content[where : where + length] = draw(st.binary(min_size=1, max_size=64))
            case "cut":
                del content[where : where + length]
            case "double":
                content[where:where] = content[where : where + length]
            case "end":
                del content[where:]
    return bytes(content)


@cache
def spec_text() -> bytes:
    return yaml.safe_dump(SPEC).encode()


@cache
def tar_file() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a.jpg", "ä/" * 60 + "b.png", "c.txt"):
            member = tarfile.TarInfo(name)
            member.size = 700
            tar.addfile(member, io.BytesIO(b"x" * 700))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "../../etc/passwd"
        tar.addfile(link)
    return sink.getvalue()


@cache
def parquet_images() -> bytes:
    sink = io.BytesIO()
    images = pa.array([{"bytes": b"x" * 40, "path": "a.jpg"}, None, {"bytes": None, "path": "b.jpg"}] * 4)
    pq.write_table(pa.table({"image": images, "label": list(range(12))}), sink, row_group_size=5)
    return sink.getvalue()


@cache
def parquet_names() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"url": [f"{index}.jpg" for index in range(9)] + [None, ""]}), sink)
    return sink.getvalue()


@cache
def csv_listing() -> bytes:
    return b'label,path\n1,a.jpg\n2,"b, c.jpg"\n3,"d ""e"".png"\n\n4,m.tar\n'


@cache
def jsonl_listing() -> bytes:
    lines: list[object] = [
        "a.jpg",
        {"uri": "memory://b/c.jpg"},
        {"file_name": "d.png", "x": [1, {}]},
        {"path": "m.tar"},
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


@cache
def text_listing() -> bytes:
    return "a.jpg\nsub/ä b.png\r\nmemory://bucket/c#d%20.jpg\nm.tar\n\nmemory://e.jpg?x=1\n".encode()


def list_and_read(content: bytes, name: str) -> None:
    """List a file as an input and read its images, as a run does; only HtcErrors may be raised."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        storage = Storage()
        try:
            refs = list(list_images(InputSection(uri=str(path), limit=50), storage, notes=SourceNotes()))
        except HtcError:
            return
        for ref in refs:
            if ref.uri.startswith(("/", "tar:/")):
                with suppress(ImageError, NotFoundError):
                    read_image(ref, storage, max_bytes=10_000)
                # Whatever a container says, only files in the input's own folder are read.
                assert ref.container in (None, str(path))


@settings(READERS, max_examples=200)
@given(mutated(spec_text))
def test_a_mutated_spec_is_read_or_refused(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "spec.yaml"
        path.write_bytes(content)
        with suppress(SpecError):
            load_spec(path, {})


@settings(READERS, max_examples=100)
@given(st.dictionaries(st.sampled_from(sorted(SPEC)) | st.text(max_size=6), TREES, max_size=5))
def test_a_spec_of_anything_is_read_or_refused(tree: dict[str, Any]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "spec.yaml"
        path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
        with suppress(SpecError):
            load_spec(path, {})


@settings(READERS, max_examples=200)
@given(st.binary(max_size=80) | st.text(max_size=80).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_a_spec_of_random_bytes_is_read_or_refused(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "spec.yaml"
        path.write_bytes(content)
        with pytest.raises(SpecError):
            load_spec(path, {})


@settings(READERS, max_examples=300)
@given(mutated(tar_file))
def test_a_mutated_tar_is_listed_up_to_the_damage(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "in.tar"
        path.write_bytes(content)
        with suppress(DamagedContainerError):
            for member in index_tar(str(path), Storage()):
                assert member.offset >= 0
                assert member.bytes >= 0
    list_and_read(content, "in.tar")


@settings(READERS, max_examples=200)
@given(mutated(parquet_images))
def test_a_mutated_parquet_file_of_images_is_listed_and_read_or_refused(content: bytes) -> None:
    list_and_read(content, "in.parquet")


@settings(READERS, max_examples=200)
@given(mutated(parquet_names))
def test_a_mutated_parquet_file_of_names_is_listed_or_refused(content: bytes) -> None:
    list_and_read(content, "in.parquet")


@pytest.mark.parametrize(
    ("name", "original"), [("in.csv", csv_listing), ("in.jsonl", jsonl_listing), ("in.txt", text_listing)]
)
def test_a_mutated_listing_is_read_or_refused_by_its_line(name: str, original: Callable[[], bytes]) -> None:
    @settings(READERS, max_examples=250)
    @given(mutated(original) | st.binary(max_size=200))
    def check(content: bytes) -> None:
        list_and_read(content, name)

    check()


def test_the_originals_are_valid() -> None:
    """The files before mutation are read completely, so the tests above test the mutations."""
    assert load_spec(None, {"input.uri": "/photos", "output.uri": "/out"}).input.uri == "/photos"
    expected = {"in.tar": 3, "in.parquet": 12, "names.parquet": 11, "in.csv": 4, "in.jsonl": 4, "in.txt": 5}
    originals = [tar_file, parquet_images, parquet_names, csv_listing, jsonl_listing, text_listing]
    with TemporaryDirectory() as folder:
        for (name, count), original in zip(expected.items(), originals, strict=True):
            path = Path(folder) / name
            path.write_bytes(original())
            refs = list(list_images(InputSection(uri=str(path)), Storage()))
            assert len(refs) == count, name


def test_a_row_group_that_is_shorter_than_it_says_is_an_unreadable_image() -> None:
    """Found by fuzzing: the footer has more rows than the column."""
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": [b"x", b"y"]}), sink)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "in.parquet"
        path.write_bytes(sink.getvalue())
        refs = list(list_images(InputSection(uri=str(path)), Storage()))
        # The number of rows of the file, and of its row group, in Thrift's zigzag code: 4 for 2.
        says_four = sink.getvalue().replace(b"\x00\x16\x04\x19\x1c", b"\x00\x16\x08\x19\x1c")
        path.write_bytes(says_four.replace(b"\x16|\x16\x04&", b"\x16|\x16\x08&"))
        again = list(list_images(InputSection(uri=str(path)), Storage()))
        assert (len(refs), len(again)) == (2, 4)
        with pytest.raises(ImageError, match="fewer rows than it says"):
            read_image(again[3], Storage())
