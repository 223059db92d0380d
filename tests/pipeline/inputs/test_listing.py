"""Every kind of input is listed and read: its images, their order, and the notes on what is left out."""

import csv
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ImageError, InputError, NotFoundError
from pipeline.inputs.image_ref import ImageRef
from pipeline.inputs.listing import SourceNotes, list_images, locate_image
from pipeline.inputs.read import read_image
from pipeline.job_spec.job import InputSection
from pipeline.storage.storage import Storage

ODD_NAMES = ["a b.jpg", "ä.png", "a#b.jpg", "a%20b.jpg", "a\nb.jpg", "A.JPG", "A.jpg", "[x]*?.webp", "a::b.bmp"]


def listed(uri: Path | str, notes: SourceNotes | None = None, **section: object) -> list[ImageRef]:
    return list(list_images(InputSection.model_validate({"uri": str(uri), **section}), Storage(), notes=notes))


def payloads(refs: Iterable[ImageRef]) -> list[bytes]:
    return [read_image(ref, Storage()) for ref in refs]


def names(refs: Iterable[ImageRef], root: Path) -> list[str]:
    return [ref.uri.removeprefix(f"{root}/") for ref in refs]


def make_files(root: Path, file_names: Iterable[str]) -> None:
    """Write files with their name as content."""
    for name in file_names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def make_tar(path: Path, members: list[tuple[str, bytes]], **options: int) -> bytes:
    with tarfile.open(path, "w", **options) as tar:  # type: ignore[call-overload]
        for name, payload in members:
            header = tarfile.TarInfo(name)
            header.size = len(payload)
            tar.addfile(header, io.BytesIO(payload))
    return path.read_bytes()


def test_a_folder_is_listed_recursively_in_order_and_other_files_are_counted(tmp_path: Path) -> None:
    make_files(tmp_path, ["b.jpg", "d/c.TIFF", "a.gif", "notes.txt", "d/LICENSE", ".cache/x.jpg", "d/old.tar.gz"])
    notes = SourceNotes()
    refs = listed(tmp_path, notes)
    assert names(refs, tmp_path) == ["a.gif", "b.jpg", "d/c.TIFF"]
    assert payloads(refs) == [b"a.gif", b"b.jpg", b"d/c.TIFF"]
    assert [ref.bytes for ref in refs] == [5, 5, 8]
    assert all(ref.etag for ref in refs)
    assert notes.skipped == {".txt": 1, "no extension": 1, ".tar.gz": 1}


def test_odd_names_are_kept_exactly(tmp_path: Path) -> None:
    make_files(tmp_path, ODD_NAMES)
    refs = listed(tmp_path)
    assert names(refs, tmp_path) == sorted(ODD_NAMES)
    assert payloads(refs) == [name.encode() for name in sorted(ODD_NAMES)]


def test_a_limit_and_excluded_folders_are_respected(tmp_path: Path) -> None:
    make_files(tmp_path, ["a.jpg", "b.jpg", "out/c.jpg", "output.jpg", "z.jpg"])
    section = InputSection(uri=str(tmp_path), limit=3)
    refs = list(list_images(section, Storage(), exclude=[f"{tmp_path}/out"]))
    assert names(refs, tmp_path) == ["a.jpg", "b.jpg", "output.jpg"]


def test_globs_inside_the_uri_and_beside_it(tmp_path: Path) -> None:
    make_files(tmp_path, ["set[1]/a.jpg", "set[1]/b.png", "set1/c.jpg", "set1/deep/d.jpg", "set1/noext"])
    assert names(listed(f"{tmp_path}/set[1]/*.jpg"), tmp_path) == ["set[1]/a.jpg"]
    assert names(listed(f"{tmp_path}/**/*.jpg"), tmp_path) == ["set1/c.jpg", "set1/deep/d.jpg", "set[1]/a.jpg"]
    assert names(listed(tmp_path, glob="set1/*"), tmp_path) == ["set1/c.jpg", "set1/noext"]
    assert names(listed(f"{tmp_path}/set[1]"), tmp_path) == ["set[1]/a.jpg", "set[1]/b.png"]


def test_a_single_image_is_an_input(tmp_path: Path) -> None:
    make_files(tmp_path, ["x*.jpg"])
    assert payloads(listed(tmp_path / "x*.jpg")) == [b"x*.jpg"]


def test_what_cannot_be_an_input_is_refused(tmp_path: Path) -> None:
    make_files(tmp_path, ["a.tar.gz", "a.zip", "a.jpg"])
    for name, words in [("a.tar.gz", "plain .tar"), ("a.zip", "plain .tar"), ("none", "does not exist")]:
        with pytest.raises(InputError, match=words):
            listed(tmp_path / name)
    with pytest.raises(InputError, match="needs a folder"):
        listed(tmp_path / "a.jpg", glob="*.jpg")


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_tar_members_are_read_by_ranges(tmp_path: Path, tar_format: int) -> None:
    odd = [*ODD_NAMES, "d/" * 60 + "deep.jpg"]
    members = [(name, name.encode() * 100) for name in odd]
    extra = [("0.json", b"{}"), ("0.cls", b"1"), ("d/._a.jpg", b"x")]
    make_tar(tmp_path / "x#1.tar", members + extra, format=tar_format)
    notes = SourceNotes()
    refs = listed(tmp_path / "x#1.tar", notes)
    assert [ref.uri for ref in refs] == [f"tar://{name}::{tmp_path}/x#1.tar" for name in odd]
    assert payloads(refs) == [payload for _, payload in members]
    assert payloads(locate_image(ref.uri, Storage()) for ref in refs) == payloads(refs)
    assert sum(notes.skipped.values()) == 3


def test_the_last_member_of_a_name_counts(tmp_path: Path) -> None:
    make_tar(tmp_path / "x.tar", [("a.jpg", b"old"), ("b.jpg", b"b"), ("a.jpg", b"new")])
    assert payloads(listed(tmp_path / "x.tar")) == [b"new", b"b"]


def test_a_truncated_tar_gives_its_complete_members_and_a_row_for_the_damage(tmp_path: Path) -> None:
    whole = make_tar(tmp_path / "x.tar", [("a.jpg", b"a" * 1000), ("b.jpg", b"b" * 5000)])
    (tmp_path / "x.tar").write_bytes(whole[:4000])
    first, second, damage = listed(tmp_path / "x.tar")
    assert read_image(first, Storage()) == b"a" * 1000
    with pytest.raises(ImageError, match="the tar ends inside it"):
        read_image(second, Storage())
    with pytest.raises(ImageError, match="not a complete, uncompressed tar"):
        read_image(damage, Storage())
    assert damage.uri == f"{tmp_path}/x.tar"


def test_a_tar_with_a_broken_header_in_the_middle_is_damaged(tmp_path: Path) -> None:
    whole = bytearray(make_tar(tmp_path / "x.tar", [("a.jpg", b"a"), ("b.jpg", b"b"), ("c.jpg", b"c")]))
    whole[1024:1100] = b"\xaa" * 76
    (tmp_path / "x.tar").write_bytes(whole)
    refs = listed(tmp_path / "x.tar")
    assert payloads(refs[:1]) == [b"a"]
    assert "damaged at byte 1024" in str(refs[-1].problem)


@pytest.mark.parametrize("name", ["x.tar", "x.parquet"])
@pytest.mark.parametrize("content", [b"", b"no container at all" * 100, b"PAR1"])
def test_an_input_that_is_one_broken_container_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        listed(tmp_path / name)
    make_files(tmp_path, ["y.jpg"])
    broken, loose = listed(tmp_path)
    assert (broken.problem is not None, loose.problem) == (True, None)


@pytest.mark.parametrize("style", ["huggingface", "plain", "large"])
def test_parquet_images_are_read_by_row(tmp_path: Path, style: str) -> None:
    images = [f"image {index}".encode() for index in range(25)]
    labels = list(range(25))
    if style == "huggingface":
        table = pa.table({"label": labels, "image": [{"bytes": each, "path": "a.jpg"} for each in images]})
    else:
        kind = pa.binary() if style == "plain" else pa.large_binary()
        table = pa.table({"label": labels, "jpg": pa.array(images, kind)})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=10)
    refs = listed(tmp_path / "x.parquet")
    assert [ref.uri for ref in refs][24] == f"{tmp_path}/x.parquet#row=24"
    assert payloads(refs) == images
    assert payloads(reversed(refs)) == images[::-1]
    assert read_image(locate_image(refs[13].uri, Storage()), Storage()) == images[13]


def test_parquet_rows_that_are_empty_or_missing_are_bad_images(tmp_path: Path) -> None:
    images = [{"bytes": b"x", "path": "a"}, {"bytes": None, "path": None}, None, {"bytes": None, "path": "gone"}]
    pq.write_table(pa.table({"image": images}), tmp_path / "x.parquet")
    first, second, third, fourth = listed(tmp_path / "x.parquet")
    assert read_image(first, Storage()) == b"x"
    for ref in (second, third):
        with pytest.raises(ImageError, match="null"):
            read_image(ref, Storage())
    with pytest.raises(NotFoundError, match="gone does not exist"):
        read_image(fourth, Storage())
    beyond = ImageRef("x", container=first.container, row=9, column=first.column)
    with pytest.raises(ImageError, match="has 4 rows now"):
        read_image(beyond, Storage())


def test_a_folder_of_shards_and_images_and_metadata(tmp_path: Path) -> None:
    make_files(tmp_path, ["c.jpg"])
    make_tar(tmp_path / "b.tar", [("1.jpg", b"tar")])
    pq.write_table(pa.table({"image": [{"bytes": b"parquet"}]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"file_name": ["c.jpg"]}), tmp_path / "metadata.parquet")
    notes = SourceNotes()
    assert payloads(listed(tmp_path, notes)) == [b"parquet", b"tar", b"c.jpg"]
    assert notes.skipped == {".parquet without images": 1}


@pytest.mark.parametrize("kind", ["txt", "csv", "headless.csv", "jsonl", "strings.jsonl", "parquet"])
def test_listings_keep_their_order_and_name_each_image_once(tmp_path: Path, kind: str) -> None:
    make_files(tmp_path / "d", ODD_NAMES)
    entries = [f"d/{name}" for name in reversed(ODD_NAMES) if "\n" not in name or not kind.endswith("txt")]
    expected = [entry.removeprefix("d/").encode() for entry in entries]
    path = tmp_path / f"list.{kind}"
    write_listing(path, kind, [*entries, f"./d/../{entries[0]}", f"{tmp_path}/{entries[1]}"])
    notes = SourceNotes()
    assert payloads(listed(path, notes)) == expected
    assert notes.duplicates == 2


def write_listing(path: Path, kind: str, entries: list[str]) -> None:
    if kind == "parquet":
        pq.write_table(pa.table({"label": range(len(entries)), "path": entries}), path)
        return
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        if kind == "txt":
            file.write("".join(f"{entry}\r\n\n" for entry in entries))
        elif kind == "csv":
            csv.writer(file).writerows([["label", "file_name"], *([1, entry] for entry in entries)])
        elif kind == "headless.csv":
            csv.writer(file).writerows([[entry, 1] for entry in entries])
        elif kind == "jsonl":
            file.writelines(json.dumps({"id": 1, "uri": entry}) + "\n" for entry in entries)
        else:
            file.writelines(json.dumps(entry) + "\n" for entry in entries)


def test_listings_may_name_containers_and_missing_files(tmp_path: Path) -> None:
    make_tar(tmp_path / "b.tar", [("1.jpg", b"tar")])
    (tmp_path / "list.txt").write_text("b.tar\ngone.jpg\ngone.tar\n")
    inside, gone, gone_tar = listed(tmp_path / "list.txt")
    assert read_image(inside, Storage()) == b"tar"
    for ref in (gone, gone_tar):
        with pytest.raises(NotFoundError):
            read_image(ref, Storage())


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("l.jsonl", '{"uri": "a"}\n{oops}\n', "line 2 .* not valid JSON"),
        ("l.jsonl", '"a"\n"\\ud800.jpg"\n', "half a Unicode character"),
        ("l.csv", 'path\n"a.jpg\nb.jpg\n', "line 2 .* quotes"),
        ("l.csv", "label,path\n1\n2,b.jpg\n", "line 2 .* names are in column 2"),
    ],
)
def test_a_bad_line_of_a_listing_is_a_row_and_the_others_are_read(
    tmp_path: Path, name: str, content: str, words: str
) -> None:
    (tmp_path / name).write_text(content)
    notes = SourceNotes()
    bad, good = sorted(listed(tmp_path / name, notes), key=lambda ref: ref.problem is None)
    assert good.problem is None
    assert bad.uri == f"{tmp_path / name}#line=2"
    assert sum(notes.refused.values()) == 1
    with pytest.raises(ImageError, match=words):
        read_image(bad, Storage())


def test_a_listing_whose_entries_have_no_known_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.jsonl").write_text('{"label": 1}\n')
    with pytest.raises(InputError, match="uri_column"):
        listed(tmp_path / "l.jsonl")


def test_a_parquet_file_of_something_else_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"price": [1.5]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"its columns are price \(double\)"):
        listed(tmp_path / "x.parquet")


def test_a_missing_or_too_large_file_raises(tmp_path: Path) -> None:
    make_files(tmp_path, ["a.jpg", "b.jpg"])
    first, second = listed(tmp_path)
    with pytest.raises(ImageError, match="max_bytes = 3"):
        read_image(first, Storage(), max_bytes=3)
    with pytest.raises(ImageError, match="too_large"):
        read_image(ImageRef(first.uri), Storage(), max_bytes=3)
    assert read_image(first, Storage(), max_bytes=5) == b"a.jpg"
    Path(second.uri).unlink()
    with pytest.raises(NotFoundError):
        read_image(second, Storage())
