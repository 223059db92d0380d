"""The column of a Parquet file is chosen by types, names and the first rows, or by the user."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.errors import ImageError, InputError, NotFoundError, SpecError
from pipeline.inputs.image_ref import ImageRef
from pipeline.inputs.listing import SourceNotes, list_images
from pipeline.inputs.read import read_image
from pipeline.job_spec.job import ComputeSection, InputSection, JobSpec
from pipeline.planning.manifest import Manifest, ManifestReader
from pipeline.planning.resume_point import find_resume_point
from pipeline.storage.storage import Storage
from tests.support.builders.planned_runs import planner_of, survey_of


def jpeg(shade: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (6, 4), (shade, shade, shade)).save(sink, "JPEG")
    return sink.getvalue()


IMAGES = [jpeg(shade) for shade in (0, 100, 200)]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def binary(values: list[bytes | None], kind: pa.DataType | None = None) -> pa.Array:
    return pa.array(values, kind or pa.binary())


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def listed(uri: Path, notes: SourceNotes | None = None, **section: Any) -> list[ImageRef]:
    return list(list_images(InputSection(uri=str(uri), **section), Storage(), notes=notes))


def read_all(refs: list[ImageRef]) -> list[bytes]:
    return [read_image(ref, Storage()) for ref in refs]


@pytest.mark.parametrize(
    "column",
    [
        binary(IMAGES),
        binary(IMAGES, pa.large_binary()),
        binary(IMAGES, pa.binary_view()),
        binary(IMAGES).dictionary_encode(),
        pa.array([{"bytes": each, "path": "x"} for each in IMAGES], STRUCT),
        pa.array([{"image": {"bytes": each, "path": "x"}} for each in IMAGES], pa.struct([("image", STRUCT)])),
        pa.array([{"bytes": each, "size": 1} for each in IMAGES]),
        pa.ExtensionArray.from_storage(pa.opaque(pa.binary(), "picture", "test"), binary(IMAGES)),
    ],
    ids=["binary", "large", "view", "dictionary", "struct", "nested", "without path", "extension"],
)
@pytest.mark.parametrize("name", ["image", "Photo", "my.image"])
def test_every_type_that_holds_bytes_is_read(tmp_path: Path, column: pa.Array, name: str) -> None:
    path = write(tmp_path / "x.parquet", {"id": [1, 2, 3], name: column})
    assert read_all(listed(path)) == IMAGES


def test_fixed_size_bytes_are_read_with_their_padding(tmp_path: Path) -> None:
    padded = [each.ljust(1000, b"\0") for each in IMAGES]
    path = write(tmp_path / "x.parquet", {"image": binary(padded, pa.binary(1000))})
    assert read_all(listed(path)) == padded


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        # A hash is not an image, whatever its type.
        ({"sha256": binary([b"x" * 32] * 3), "picture": binary(IMAGES)}, "picture"),
        ({"image": binary([b"x" * 32] * 3), "thumb": binary(IMAGES)}, "thumb"),
        ({"mask": binary(IMAGES), "image": binary(IMAGES)}, "image"),
        ({"Thumb": binary(IMAGES), "IMAGE": binary(IMAGES)}, "IMAGE"),
        # The first rows may have no image.
        ({"hash": binary([b"x"] * 3), "photo": binary([None, b"", IMAGES[0]])}, "photo"),
        # Unsupported formats are images too, and become rows with that reason.
        ({"hash": binary([b"x"] * 3), "photo": binary([b"8BPS" + bytes(9)] * 3)}, "photo"),
    ],
)
def test_the_first_rows_decide_between_columns(tmp_path: Path, columns: dict[str, Any], expected: str) -> None:
    assert {ref.column for ref in listed(write(tmp_path / "x.parquet", columns))} == {expected}


@pytest.mark.parametrize("name", ["url", "URL", "Image_URL", " path "])
def test_names_of_images_are_preferred_to_a_hash(tmp_path: Path, name: str) -> None:
    (tmp_path / "b.jpg").write_bytes(IMAGES[0])
    path = write(tmp_path / "x.parquet", {"sha256": binary([b"x" * 32]), name: ["b.jpg"], "caption": ["a"]})
    (ref,) = listed(path)
    assert (ref.uri, ref.column) == (f"{tmp_path}/b.jpg", None)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), None])
def test_every_text_type_names_images(tmp_path: Path, kind: pa.DataType | None) -> None:
    names = pa.array(["b.jpg", None, "c.jpg", ""])
    column = names.dictionary_encode() if kind is None else names.cast(kind)
    refs = listed(write(tmp_path / "x.parquet", {"url": column}))
    rows = [f"{tmp_path}/x.parquet#row={row}" for row in (1, 3)]
    assert [ref.uri for ref in refs] == [f"{tmp_path}/b.jpg", rows[0], f"{tmp_path}/c.jpg", rows[1]]
    assert ["url is empty" in (ref.problem or "") for ref in refs] == [False, True, False, True]


def test_each_row_of_a_hugging_face_file_has_its_own_outcome(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/b.jpg").write_bytes(IMAGES[2])
    (tmp_path / "far.jpg").write_bytes(IMAGES[1])
    rows = [
        {"bytes": IMAGES[0], "path": "gone.jpg"},
        None,
        {"bytes": None, "path": "b.jpg"},
        {"bytes": None, "path": f"{tmp_path}/far.jpg"},
        {"bytes": None, "path": "gone.jpg"},
        {"bytes": None, "path": None},
        {"bytes": None, "path": ""},
        {"bytes": None, "path": "memory://parquet-test/x.jpg"},
        {"bytes": b"", "path": "b.jpg"},
    ]
    Storage().write("memory://parquet-test/x.jpg", IMAGES[1])
    refs = listed(write(tmp_path / "in/x.parquet", {"image": pa.array(rows, STRUCT)}))
    outcomes: list[object] = []
    for ref in refs:
        try:
            outcomes.append(read_image(ref, Storage()))
        except (ImageError, NotFoundError) as error:
            outcomes.append(type(error))
    assert [ref.uri for ref in refs] == [f"{tmp_path}/in/x.parquet#row={row}" for row in range(9)]
    expected = [IMAGES[0], ImageError, IMAGES[2], IMAGES[1], NotFoundError, ImageError, ImageError, IMAGES[1], b""]
    assert outcomes == expected


@pytest.mark.parametrize("kind", [STRUCT, pa.struct([("path", pa.string())])])
def test_a_struct_of_names_is_read_from_the_files(tmp_path: Path, kind: pa.DataType) -> None:
    (tmp_path / "b.jpg").write_bytes(IMAGES[0])
    path = write(tmp_path / "x.parquet", {"image": pa.array([{"path": "b.jpg"}] * 2, kind), "hash": binary([b"x"] * 2)})
    # Each row is its own image, although both name one file.
    assert read_all(listed(path)) == [IMAGES[0]] * 2
    with pytest.raises(ImageError, match="max_bytes"):
        read_image(listed(path)[0], Storage(), max_bytes=10)


@pytest.mark.parametrize(
    ("columns", "word"),
    [
        ({"left": binary(IMAGES), "right": binary(IMAGES)}, "left and right.*--image-column"),
        ({"images": pa.array([IMAGES], pa.list_(pa.binary()))}, "lists of images"),
        ({"images": pa.array([[{"bytes": IMAGES[0]}]])}, "lists of images"),
        ({"image": ["/9j/4AAQSkZJRgABAQ"]}, "base64"),
        ({"jpg": ["/9j/4AAQSkZJRgABAQ"], "label": [1]}, "base64"),
        ({"sha256": binary([b"x" * 32]), "price": [1.5]}, r"sha256 \(binary\), price \(double\).*--uri-column"),
        ({"price": [1.5]}, r"price \(double\)"),
    ],
)
def test_a_file_without_a_usable_column_is_refused_alone_and_a_row_beside_others(
    tmp_path: Path, columns: dict[str, Any], word: str
) -> None:
    path = write(tmp_path / "in/x.parquet", columns)
    with pytest.raises(InputError, match=word):
        listed(path)
    write(tmp_path / "in/y.parquet", {"image": binary(IMAGES)})
    notes = SourceNotes()
    refs = listed(tmp_path / "in", notes)
    if "price" in columns:
        # A table of other data holds no image that could be lost; it is only noted.
        assert len(refs) == 3
        assert list(notes.without_images) == [str(path)]
        assert notes.skipped == {".parquet without images": 1}
    else:
        assert [ref.uri for ref in refs if ref.problem] == [str(path)]
        assert len(refs) == 4


def test_the_users_choice_is_used(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(IMAGES[1])
    columns = {
        "image": binary(IMAGES[:1]),
        "Mask": binary(IMAGES[2:]),
        "image_link": ["b.jpg"],
        "more": pa.array([{"x.y": {"bytes": IMAGES[1], "path": None}}], pa.struct([("x.y", STRUCT)])),
    }
    path = write(tmp_path / "x.parquet", columns)
    assert read_all(listed(path, image_column="Mask")) == IMAGES[2:]
    assert read_all(listed(path, image_column="mask")) == IMAGES[2:]
    assert read_all(listed(path, image_column="more.x.y")) == [IMAGES[1]]
    assert read_all(listed(path, image_column="more.x.y.bytes")) == [IMAGES[1]]
    assert read_all(listed(path, uri_column="IMAGE_LINK")) == [IMAGES[1]]
    for choice in ({"image_column": "image_link"}, {"image_column": "nowhere"}, {"uri_column": "nowhere"}):
        with pytest.raises(InputError, match=f"no column {next(iter(choice.values()))}"):
            listed(path, **choice)


def test_a_folder_of_files_that_name_images_has_each_image_once(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/b.jpg").write_bytes(IMAGES[0])
    write(tmp_path / "in/one.parquet", {"link": ["b.jpg", "c.jpg", "one.parquet"]})
    write(tmp_path / "in/two.parquet", {"link": ["c.jpg", "a.jpg"]})
    write(tmp_path / "in/zzz.parquet", {"other": ["d.jpg"]})
    notes = SourceNotes()
    refs = listed(tmp_path / "in", notes, uri_column="link")
    assert [Path(ref.uri).name for ref in refs] == ["b.jpg", "c.jpg", "a.jpg", "zzz.parquet"]
    assert "no column link" in str(refs[-1].problem)
    assert (notes.duplicates, notes.columns) == (2, {"link": 2})
    # A file that names itself is metadata in its own listing, and is not listed again.
    assert notes.skipped == {".parquet without images": 1}


def test_planning_of_named_images_resumes_without_losing_or_repeating_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.planning.manifest.FIRST_PART_IMAGES", 2)
    write(tmp_path / "in/one.parquet", {"link": ["z.jpg", "a.jpg", "m.jpg"]})
    write(tmp_path / "in/two.parquet", {"link": ["b.jpg", "z.jpg", "y.jpg"]})
    spec = spec_with(tmp_path / "in", uri_column="link").model_copy(update={"compute": ComputeSection(shard_images=1)})
    folder, names = str(tmp_path / "manifest"), ["z.jpg", "a.jpg", "m.jpg", "b.jpg", "y.jpg"]
    # The first part holds two images; planning ends behind it.
    next(planner_of(spec, Storage(), folder).parts())
    planned = find_resume_point(Storage(), folder)
    assert planned is not None
    manifest = list(planner_of(spec, Storage(), folder, planned=planned).parts())[-1]
    reader = ManifestReader(Storage(), folder, manifest)
    refs = [ref for shard in range(manifest.shard_count) for ref in reader.read_shard(shard).images]
    assert [Path(ref.uri).name for ref in refs] == names
    assert (manifest.image_count, manifest.duplicates, manifest.columns) == (5, 1, {"link": 2})


def spec_with(folder: Path, **section: Any) -> JobSpec:
    return JobSpec.model_validate({"input": {"uri": str(folder), **section}, "output": {"uri": str(folder / "out")}})


def test_the_manifest_notes_what_was_read_and_left_out(tmp_path: Path) -> None:
    for number in range(7):
        write(tmp_path / f"names-{number}.parquet", {"URL": ["b.jpg"]})
    with pytest.raises(InputError, match=r"7 \.parquet without images.*URL names images.*--uri-column"):
        survey_of(spec_with(tmp_path), Storage())
    write(tmp_path / "x.parquet", {"image": binary(IMAGES)})
    manifest = survey_of(spec_with(tmp_path), Storage()).manifest
    assert manifest.read_columns() == "image (1 file)"
    assert [line.split(" (")[0].rpartition("/")[2] for line in manifest.left_out()[1:]] == [
        f"names-{number}.parquet" for number in range(5)
    ]
    assert Manifest.from_dict(manifest.to_dict()) == manifest


def test_resumed_planning_keeps_the_notes(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"price": [1]})
    write(tmp_path / "x.parquet", {"image": binary(IMAGES)})
    planner = planner_of(spec_with(tmp_path), Storage(), str(tmp_path / "out/manifest"))
    (manifest,) = list(planner.parts())
    assert list(manifest.without_images) == [f"{tmp_path}/a.parquet"]


def test_chosen_columns_are_part_of_a_runs_identity(tmp_path: Path) -> None:
    assert not [key for key in spec_with(tmp_path).identity() if "column" in key]
    chosen = spec_with(tmp_path, image_column="mask").identity()
    assert chosen == {**spec_with(tmp_path).identity(), "input.image_column": "mask"}
    assert spec_with(tmp_path, uri_column="u").identity()["input.uri_column"] == "u"
    with pytest.raises(ValueError, match="exclude each other"):
        spec_with(tmp_path, image_column="a", uri_column="b")


def test_the_flags_reach_the_spec(tmp_path: Path) -> None:
    from jobs.cli.options import JobFlags, load_job_spec

    given = {"input_uri": str(tmp_path), "output_uri": str(tmp_path / "out")}
    assert load_job_spec(None, JobFlags(image_column="mask"), **given).input.image_column == "mask"
    assert load_job_spec(None, JobFlags(uri_column="link"), **given).input.uri_column == "link"
    with pytest.raises(SpecError, match="exclude"):
        load_job_spec(None, JobFlags(image_column="mask", uri_column="link"), **given)


@pytest.mark.parametrize("store_schema", [True, False])
def test_a_column_name_that_is_not_utf8_is_damage(tmp_path: Path, store_schema: bool) -> None:
    path = write(tmp_path / "x.parquet", {"imxge": binary(IMAGES)}, store_schema=store_schema)
    path.write_bytes(path.read_bytes().replace(b"imxge", b"im\xffge"))
    with pytest.raises(InputError, match="cannot be read"):
        listed(path)


def test_the_only_column_of_names_is_found_by_its_rows(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(IMAGES[1])
    hashes = binary([b"x" * 32, b"y" * 32])
    path = write(tmp_path / "one.parquet", {"link": [None, "b.jpg"], "caption": ["a dog", "a cat"], "sha": hashes})
    refs = listed(path)
    assert (refs[0].uri, refs[0].problem is not None) == (f"{path}#row=0", True)
    assert read_all(refs[1:]) == [IMAGES[1]]
    path = write(tmp_path / "struct.parquet", {"image": pa.array([{"path": "b.jpg", "width": 3}])})
    assert read_all(listed(path)) == [IMAGES[1]]
    for columns in ({"left": ["a.jpg"], "right": ["b.jpg"]}, {"caption": ["a dog"], "n": [1]}):
        path = write(tmp_path / "none.parquet", columns)
        with pytest.raises(InputError, match="--uri-column"):
            listed(path)


def test_a_folder_of_named_images_is_described(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.parquet", {"link": [f"{number}.jpg", "x.jpg"]})
    notes = SourceNotes()
    assert len(listed(tmp_path, notes, uri_column="link")) == 4
    assert notes.listing == "Parquet, names from the column link: 0.jpg, x.jpg"


def test_a_folder_without_a_known_column_names_the_way_out(tmp_path: Path) -> None:
    write(tmp_path / "0.parquet", {"left": ["0.jpg"], "right": ["x.jpg"]})
    with pytest.raises(InputError, match="--uri-column"):
        survey_of(spec_with(tmp_path), Storage())


def test_parquet_with_another_extension_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "x.pq", {"image": binary(IMAGES)})
    with pytest.raises(InputError, match=r"Parquet file.*\.parquet"):
        listed(tmp_path / "x.pq")


def test_damage_is_a_sentence_with_one_full_stop(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"no Parquet at all")
    with pytest.raises(InputError, match=r"[^.]\.$"):
        listed(tmp_path / "x.parquet")
