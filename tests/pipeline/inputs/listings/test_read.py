"""Listings in any form are understood or refused, and a bad line becomes a row."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pytest

from pipeline.errors import ImageError, InputError
from pipeline.inputs.image_ref import ImageRef
from pipeline.inputs.listing import SourceNotes, list_images
from pipeline.inputs.read import read_image
from pipeline.job_spec.job import InputSection
from pipeline.storage.storage import Storage

TABLE = "url;label\na.jpg;1\nb.jpg;2\n"
LINES = "a.jpg\nb.jpg\n"
COCO = {"info": {}, "annotations": [{"id": 1}], "images": [{"id": 1, "file_name": "a.jpg"}, {"file_name": "b.jpg"}]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg", "c,d.jpg", "x y.jpg", "café.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def listed(path: Path, notes: SourceNotes | None = None, column: str | None = None) -> list[ImageRef]:
    return list(list_images(InputSection(uri=str(path), uri_column=column), Storage(), notes=notes))


def taken(folder: Path, name: str, content: str | bytes, column: str | None = None) -> tuple[list[str], SourceNotes]:
    """The names in a listing, relative to its folder, and the notes."""
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    notes = SourceNotes()
    return [ref.uri.removeprefix(f"{folder}/") for ref in listed(folder / name, notes, column)], notes


@pytest.mark.parametrize(
    ("name", "content", "description"),
    [
        ("l.csv", TABLE, "semicolons, names from the column url, UTF-8: a.jpg, b.jpg"),
        ("l.csv", TABLE.replace(";", "\t"), "tabs"),
        ("l.tsv", TABLE.replace(";", "\t"), "tabs"),
        ("l.csv", TABLE.replace(";", "|"), "bars"),
        ("l.csv", TABLE.replace("url", "URL"), "the column URL"),
        ("l.csv", TABLE.replace("\n", "\r\n") + "\r\n\r\n", "semicolons"),
        ("l.csv", "id,image_link\n1,a.jpg\n2,b.jpg\n", "the column image_link"),
        ("l.csv", "1,a.jpg\n2,b.jpg\n", "without a heading, names from column 2"),
        ("l.csv", "id,file_name\n1,a.jpg\n2,b.jpg\n", "the column file_name"),
        ("l.csv", 'caption,url\n"one, ""two""\nlines",a.jpg\nx,b.jpg\n', "the column url"),
        ("l.csv", f'caption,url\n"{"x" * 200_000}",a.jpg\nx,b.jpg\n', "the column url"),
        ("l.csv", 'url,caption\na.jpg,5" nails\nb.jpg,"x"y\n', "the column url"),
        ("l.csv", "url,caption\na.jpg,a dog, running\nb.jpg\n", "the column url"),
        *[("l.txt", LINES.encode(codec), "UTF-16") for codec in ("utf-16", "utf-16-le", "utf-16-be")],
        *[("l.txt", LINES.encode(codec), "UTF-32") for codec in ("utf-32", "utf-32-le")],
        ("l.csv", TABLE.encode("utf-16"), "semicolons, names from the column url, UTF-16"),
        ("l.csv", TABLE.encode("utf-8-sig"), "the column url, UTF-8"),
        ("l.csv", f"sep=;\n{TABLE}", "semicolons, names from the column url"),
        ("l.csv", "id, url\n1, a.jpg\n2, b.jpg\n", "commas, names from the column url"),
        ("l.csv", '"label","url"\n"1","a.jpg"\n"2","b.jpg"\n', "commas, names from the column url"),
        ("l.lst", LINES, "one name a line"),
        ("L.TXT", "\n# my list\n" + LINES.replace("\n", "\r"), "one name a line"),
        ("l.json", json.dumps(["a.jpg", "b.jpg"]), "JSON, an array"),
        ("l.json", json.dumps(COCO), "the array images"),
        ("l.json", json.dumps(COCO).encode("utf-16"), "UTF-16"),
        ("l.json", '{"file_name": "a.jpg"}\n{"file_name": "b.jpg"}\n', "JSON lines"),
        ("l.ndjson", '{"image": {"path": "a.jpg"}}\n{"image": {"path": "b.jpg"}}\n', "JSON lines"),
        ("l.jsonl", '{"id": 1, "link": "a.jpg"}\n\n{"id": 2, "link": "b.jpg"}\n', "the key link"),
        ("l.txt.gz", gzip.compress(LINES.encode(), mtime=0), "gzip, one name a line"),
        ("l.csv.bz2", bz2.compress(TABLE.encode()), "bzip2"),
        ("l.jsonl.xz", lzma.compress(b'"a.jpg"\n"b.jpg"\n'), "xz, JSON lines"),
    ],
)
def test_a_listing_is_understood_and_reported(folder: Path, name: str, content: str | bytes, description: str) -> None:
    names, notes = taken(folder, name, content)
    assert names == ["a.jpg", "b.jpg"]
    assert description in notes.listing
    assert [each.strip() for each in notes.listing.rpartition(": ")[2].split(",")] == ["a.jpg", "b.jpg"]
    assert not notes.refused


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.csv", "id,first,second\n1,a.jpg,b.jpg\n"),
        ("l.csv", "id,label\n1,cat\n2,dog\n"),
        ("l.csv", "image,link\n17,https://127.0.0.1/a.jpg\n"),
        ("l.csv", "photo1\nphoto2\n"),
        ("l.jsonl", '{"first": "a.jpg", "second": "b.jpg"}\n'),
        ("l.json", '{"first": {"second": ["a.jpg"]}}'),
        ("l.json", '{"data": {"images": ["a.jpg"]}}'),
        ("l.json", '{"images": {"1": "a.jpg"}}'),
        ("l.json", "{}"),
        ("l.json", "a.jpg"),
        ("l.json", "[" * 100_000),
        ("l.json", ""),
        ("l.dat", "a.jpg\nb.jpg\n"),
        ("l.txt.gz", b"\x1f\x8b\x08\0"),
        ("l.txt.zst", b"\x28\xb5\x2f\xfd\0\0"),
    ],
)
def test_an_unclear_listing_is_refused(folder: Path, name: str, content: str | bytes) -> None:
    with pytest.raises(InputError, match=name):
        taken(folder, name, content)


@pytest.mark.parametrize(
    ("content", "column", "expected"),
    [
        ("id,first,second\n1,a.jpg,b.jpg\n", "second", ["b.jpg"]),
        ("id,first,second\n1,a.jpg,b.jpg\n", "FIRST", ["a.jpg"]),
        ("1,a.jpg,b.jpg\n", "3", ["b.jpg"]),
        ("photo1\nphoto2\n", "1", ["photo1", "photo2"]),
        ("key;label\nphoto1;x\n", "key", ["photo1"]),
    ],
)
def test_the_users_column_is_used(folder: Path, content: str, column: str, expected: list[str]) -> None:
    assert taken(folder, "l.csv", content, column)[0] == expected
    with pytest.raises(InputError, match="no column nosuch"):
        taken(folder, "l.csv", content, "nosuch")


def test_the_users_key_is_used(folder: Path) -> None:
    content = json.dumps({"file_name": "a.jpg", "thumb": {"at": "b.jpg"}})
    assert taken(folder, "l.jsonl", content, "thumb.at")[0] == ["b.jpg"]
    assert taken(folder, "l.json", f"[{content}]", "thumb.at")[0] == ["b.jpg"]
    with pytest.raises(InputError, match="nosuch"):
        taken(folder, "l.jsonl", content, "nosuch")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("l.csv", 'url,label\n"a.jpg,1\nb.jpg,"2"\n', "quotes"),
        ("l.csv", "url,label\nc,d.jpg,1\nb.jpg,2\n", "3 columns instead of 2"),
        ("l.csv", "label,url\n1\n2,b.jpg\n", "names are in column 2"),
        ("l.csv", "label,url\n1,\n2,b.jpg\n", "empty"),
        ("l.jsonl", '{"url": "b.jpg"}\n{"url": 5}\n', "names no image"),
        ("l.json", '["b.jpg", {"label": 5}]', "names no image"),
        ("l.json", '["b.jpg", ', "damaged after item 1"),
        ("l.txt.gz", gzip.compress(b"b.jpg\n" * 3 + b"x" * 2**20, mtime=0)[:-400], "damaged after"),
    ],
)
def test_a_bad_entry_is_one_row_with_its_place_and_reason(
    folder: Path, name: str, content: str | bytes, words: str
) -> None:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    refs = [ref for ref in listed(folder / name) if len(ref.uri) < 1000]
    good = [ref for ref in refs if ref.problem is None]
    bad = [ref for ref in refs if ref.problem is not None]
    assert [read_image(ref, Storage()) for ref in good] == [b"b.jpg"]
    assert len(bad) == 1
    assert bad[0].uri.startswith(f"{folder / name}#")
    with pytest.raises(ImageError, match=words):
        read_image(bad[0], Storage())


def test_a_name_with_commas_in_a_table_of_one_column_is_a_name(folder: Path) -> None:
    assert taken(folder, "l.csv", "url\nc,d.jpg\n")[0] == ["c,d.jpg"]
    assert taken(folder, "l.csv", 'url\n"c,d.jpg"\n')[0] == ["c,d.jpg"]


def test_eight_bit_names_are_those_that_exist(folder: Path) -> None:
    names, notes = taken(folder, "l.txt", "café.jpg\n".encode("latin-1"))
    assert names == ["café.jpg"]
    assert "UTF-8" not in notes.listing
    (folder / "caf\udce9.jpg").write_bytes(b"old")
    assert taken(folder, "l.txt", "café.jpg\n".encode("latin-1"))[0] == ["caf\udce9.jpg"]
    assert taken(folder, "l.txt", b"none\xe9.jpg\n")[0] == ["none\udce9.jpg"]


def test_file_urls_are_decoded_and_name_the_file(folder: Path) -> None:
    lines = [f"file://{folder}/x%20y.jpg", f"file://localhost{folder}/a.jpg", f"file:{folder}/b.jpg", "b.jpg"]
    names, notes = taken(folder, "l.txt", "\n".join(lines))
    assert names == ["x y.jpg", "a.jpg", "b.jpg"]
    assert notes.duplicates == 1


def test_a_name_that_begins_with_a_hash_is_not_a_comment(folder: Path) -> None:
    names, notes = taken(folder, "l.txt", "# a.jpg\n#\n#1.jpg\n#remark\na.jpg\n")
    assert names == ["#1.jpg", "a.jpg"]
    assert notes.skipped == {"comment lines": 3}
