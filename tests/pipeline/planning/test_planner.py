"""The manifest: frozen, in order, with exact names, cut into shards of one size."""

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError, StorageError
from pipeline.inputs.image_ref import ImageRef
from pipeline.inputs.read import read_image
from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.planning import manifest as manifests
from pipeline.planning.manifest import ManifestReader
from pipeline.storage.storage import Storage
from tests.support.builders.planned_runs import plan_manifest, survey_of

ODD_NAMES = ["a b.jpg", "ä.png", "a#b.jpg", "a%20b.jpg", "a\nb.jpg", "A.jpg", "a.jpg", "[x]*?.webp", "a::b.bmp"]


def make_spec(tmp_path: Path, **overrides: object) -> JobSpec:
    flags = {name.replace("__", "."): value for name, value in overrides.items()}
    return load_spec(None, {"input.uri": str(tmp_path / "in"), "output.uri": str(tmp_path / "out"), **flags})


def make_images(tmp_path: Path, count: int) -> None:
    (tmp_path / "in").mkdir(exist_ok=True)
    for index in range(count):
        (tmp_path / "in" / f"{index:03d}.jpg").write_bytes(b"x" * index)


def all_images(reader: ManifestReader) -> list[ImageRef]:
    return [ref for index in range(reader.manifest.shard_count) for ref in reader.read_shard(index).images]


@pytest.mark.parametrize("shard_images", [1, 4, 10, 11, 64])
def test_shards_are_the_listing_cut_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_images: int
) -> None:
    monkeypatch.setattr(manifests, "FIRST_PART_IMAGES", 3)
    monkeypatch.setattr(manifests, "PART_IMAGES", 12)
    make_images(tmp_path, 33)
    spec, folder = make_spec(tmp_path, compute__shard_images=shard_images), str(tmp_path / "manifest")
    manifest = plan_manifest(spec, Storage(), folder)
    reader = ManifestReader(Storage(), folder, manifest)
    assert (manifest.image_count, manifest.shard_count) == (33, -(-33 // shard_images))
    assert (manifest.listed_bytes, manifest.unsized_images) == (sum(range(33)), 0)
    sizes = [len(reader.read_shard(index).images) for index in reversed(range(manifest.shard_count))]
    assert sizes[1:] == [shard_images] * (manifest.shard_count - 1)
    assert [ref.uri for ref in all_images(reader)] == [f"{tmp_path}/in/{index:03d}.jpg" for index in range(33)]
    with pytest.raises(IndexError):
        reader.read_shard(manifest.shard_count)


def test_odd_names_survive_the_manifest(tmp_path: Path) -> None:
    make_images(tmp_path, 0)
    raw_names = [os.fsencode(name) for name in ODD_NAMES] + [b"caf\xe9.jpg", b"caf\\xe9.jpg"]
    for name in raw_names:
        with open(os.fsencode(tmp_path / "in") + b"/" + name, "wb") as file:  # noqa: PTH123 - the name is bytes
            file.write(name)
    folder = str(tmp_path / "manifest")
    reader = ManifestReader(Storage(), folder, plan_manifest(make_spec(tmp_path), Storage(), folder))
    assert sorted(read_image(ref, Storage()) for ref in all_images(reader)) == sorted(raw_names)


# A line that names a container stands for the images in it.
LOOSE_NAMES = st.text(min_size=1, max_size=20).filter(lambda name: not name.lower().endswith((".parquet", ".tar")))


@settings(deadline=None)  # a busy machine writes slowly
@given(st.lists(LOOSE_NAMES, min_size=1, max_size=12, unique=True))
def test_any_name_in_a_listing_comes_back_from_the_manifest(names: list[str]) -> None:
    with TemporaryDirectory() as folder:
        listing = Path(folder) / "list.jsonl"
        uris = [f"s3://bucket/{name}" for name in names]
        listing.write_text("".join(json.dumps({"uri": uri}) + "\n" for uri in uris))
        spec = load_spec(None, {"input.uri": str(listing), "output.uri": f"{folder}/out", "compute.shard_images": 5})
        manifest = plan_manifest(spec, Storage(), f"{folder}/manifest")
        refs = all_images(ManifestReader(Storage(), f"{folder}/manifest", manifest))
        assert [ref.uri for ref in refs] == uris


def test_the_same_input_gives_the_same_manifest(tmp_path: Path) -> None:
    make_images(tmp_path, 20)
    for name in ("one", "two"):
        plan_manifest(make_spec(tmp_path), Storage(), str(tmp_path / name))
    assert (tmp_path / "one/part-00000.parquet").read_bytes() == (tmp_path / "two/part-00000.parquet").read_bytes()


def test_the_manifest_is_plain_parquet(tmp_path: Path) -> None:
    make_images(tmp_path, 3)
    plan_manifest(make_spec(tmp_path, compute__shard_images=2), Storage(), str(tmp_path / "manifest"))
    table = pq.read_table(tmp_path / "manifest")
    assert table.column("position").to_pylist() == [0, 1, 2]
    assert table.column("shard").to_pylist() == [0, 0, 1]
    assert table.column("uri").to_pylist()[2] == f"{tmp_path}/in/002.jpg"


def test_planning_again_leaves_no_part_of_a_longer_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "PART_IMAGES", 4)
    make_images(tmp_path, 9)
    plan_manifest(make_spec(tmp_path, compute__shard_images=2), Storage(), str(tmp_path / "manifest"))
    plan_manifest(make_spec(tmp_path, compute__shard_images=2, input__limit=3), Storage(), str(tmp_path / "manifest"))
    assert [path.name for path in (tmp_path / "manifest").iterdir()] == ["part-00000.parquet"]


def test_the_output_inside_the_input_is_not_input(tmp_path: Path) -> None:
    make_images(tmp_path, 2)
    (tmp_path / "in/out").mkdir()
    (tmp_path / "in/out/overlay.png").touch()
    spec = make_spec(tmp_path, output__uri=str(tmp_path / "in/out"))
    assert survey_of(spec, Storage()).manifest.image_count == 2


def test_a_survey_counts_and_writes_nothing(tmp_path: Path) -> None:
    make_images(tmp_path, 20)
    survey = survey_of(make_spec(tmp_path, compute__shard_images=256), Storage(), sample_images=3)
    assert (survey.manifest.image_count, survey.manifest.shard_count, len(survey.sample)) == (20, 1, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("found", "overrides", "words"),
    [
        ([], {}, "There are no images in"),
        (["a.txt", "b.txt"], {}, "not images (2 .txt)"),
        (["d/a.jpg"], {"input__glob": "*.jpg"}, "no images that match *.jpg"),
    ],
)
def test_an_empty_input_is_refused_with_what_was_found(
    tmp_path: Path, found: list[str], overrides: dict[str, object], words: str
) -> None:
    make_images(tmp_path, 0)
    for name in found:
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).touch()
    for refuse in (
        lambda spec: plan_manifest(spec, Storage(), str(tmp_path / "m")),
        lambda spec: survey_of(spec, Storage()),
    ):
        with pytest.raises(InputError) as caught:
            refuse(make_spec(tmp_path, **overrides))
        assert words in str(caught.value)


def test_a_wrong_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist") as caught:
        survey_of(make_spec(tmp_path), Storage())
    assert caught.value.exit_code == 2


def test_a_damaged_manifest_is_an_error(tmp_path: Path) -> None:
    make_images(tmp_path, 5)
    folder = tmp_path / "manifest"
    manifest = plan_manifest(make_spec(tmp_path, compute__shard_images=256), Storage(), str(folder))
    (folder / "part-00000.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(StorageError, match="damaged"):
        ManifestReader(Storage(), str(folder), manifest).read_shard(0)
    plan_manifest(make_spec(tmp_path, compute__shard_images=256, input__limit=2), Storage(), str(folder))
    with pytest.raises(StorageError, match="incomplete"):
        ManifestReader(Storage(), str(folder), manifest).read_shard(0)
