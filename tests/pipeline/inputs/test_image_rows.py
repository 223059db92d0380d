"""A shard's images as rows: what is sent is what was planned, and the driver decodes nothing."""

import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.inputs import image_rows
from pipeline.inputs.image_ref import ImageRef
from pipeline.inputs.image_rows import ImageRows
from pipeline.inputs.shard import Shard
from pipeline.planning.manifest import KEPT_PARTS, Manifest, ManifestReader, encode_manifest_part
from pipeline.storage.storage import Storage

NUMBERS = st.none() | st.integers(0, 2**62)
NAMES = st.binary(min_size=1, max_size=12).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
REFS = st.builds(
    ImageRef,
    uri=NAMES,
    bytes=NUMBERS,
    etag=st.none() | st.text(st.characters(codec="utf-8"), max_size=4),
    container=st.none() | NAMES,
    offset=NUMBERS,
    row=NUMBERS,
    column=st.none() | st.just("image.bytes"),
    problem=st.none() | st.just("it is damaged"),
    failed_before=st.none() | st.booleans(),
)


def reader_of(folder: Path, refs: list[ImageRef], *, shard_images: int, part_shards: int) -> ManifestReader:
    """Return the reader of a manifest whose parts hold `part_shards` shards each."""
    shards = -(-len(refs) // shard_images)
    plan = Manifest(len(refs), shards, shard_images, part_shards, 0, 0)
    folder.mkdir(exist_ok=True)
    step = shard_images * part_shards
    for number, first in enumerate(range(0, len(refs), step)):
        encoded = encode_manifest_part(refs[first : first + step], first, plan, {"name": "r"})
        (folder / f"part-{number:05d}.parquet").write_bytes(encoded)
    return ManifestReader(Storage(), str(folder), plan)


@settings(max_examples=30)
@given(st.lists(REFS, min_size=1, max_size=7))
def test_images_arrive_as_they_were_listed(tmp_path_factory: pytest.TempPathFactory, refs: list[ImageRef]) -> None:
    reader = reader_of(tmp_path_factory.mktemp("m"), refs, shard_images=3, part_shards=2)
    shards = [reader.read_shard(index) for index in range(reader.manifest.shard_count)]
    sent: list[Shard] = pickle.loads(pickle.dumps(shards))
    assert [ref for shard in sent for ref in shard.images] == refs
    assert [len(shard.images) for shard in sent] == [len(shard.images) for shard in shards]
    # Decoded ones are sent in the same form.
    assert [list(shard.images) for shard in pickle.loads(pickle.dumps(sent))] == [list(each.images) for each in shards]


def test_reading_and_sending_a_shard_decodes_none_of_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = [ImageRef(f"s3://photos/in/{number:09d}.jpg", number, "e" * 32) for number in range(512)]
    reader = reader_of(tmp_path, refs, shard_images=256, part_shards=2)
    decode, decoded = image_rows.refs_of, []
    monkeypatch.setattr(image_rows, "refs_of", lambda rows: decoded.append(len(rows)) or decode(rows))
    shard = reader.read_shard(1)
    payload = pickle.dumps(shard)
    assert (len(shard.images), decoded) == (256, [])
    assert isinstance(shard.images, ImageRows)
    assert shard.images.is_filled("etag")
    assert not shard.images.is_filled("container")
    sent: Shard = pickle.loads(payload)
    assert sent.images[3] == refs[259]
    assert list(sent.images[250:]) == refs[506:]
    assert decoded == [256]
    # Neither objects nor the record that the part carries.
    assert len(payload) < len(pickle.dumps(tuple(refs[256:]))) / 2
    assert b"htc_run" not in payload


def test_shards_read_in_order_read_each_part_once_and_few_parts_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = [ImageRef(f"{number:04d}.jpg") for number in range(120)]
    reader = reader_of(tmp_path, refs, shard_images=4, part_shards=3)
    read: list[str] = []
    storage_read = Storage.read
    monkeypatch.setattr(Storage, "read", lambda self, uri, **more: read.append(uri) or storage_read(self, uri, **more))
    for index in range(30):
        assert reader.read_shard(index).images[0] == refs[4 * index]
    assert len(read) == 10
    for index in range(30 - 3 * KEPT_PARTS, 30):
        reader.read_shard(index)
    assert len(read) == 10
    reader.read_shard(0)
    assert len(read) == 11
