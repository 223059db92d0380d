"""Real-world tars: links, concatenated parts, sparse members, repeated names."""

import bz2
import gzip
import io
import lzma
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import ImageError, InputError
from pipeline.inputs.image_ref import ImageRef
from pipeline.inputs.listing import SourceNotes, list_images, locate_image
from pipeline.inputs.read import read_image
from pipeline.job_spec.job import InputSection
from pipeline.storage.storage import Storage


def listed(path: Path, notes: SourceNotes | None = None) -> list[ImageRef]:
    return list(list_images(InputSection(uri=str(path)), Storage(), notes=notes))


def add(
    tar: tarfile.TarFile, name: str, payload: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = ""
) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(payload), kind, link
    tar.addfile(member, io.BytesIO(payload))


def made(path: Path, fill: Callable[[tarfile.TarFile], None]) -> bytes:
    with tarfile.open(path, "w") as tar:
        fill(tar)
    return path.read_bytes()


def outcomes(refs: list[ImageRef]) -> dict[str, str]:
    found = {}
    for ref in refs:
        try:
            content = read_image(ref, Storage()).decode()
        except ImageError as error:
            content = error.reason.split(",")[0]
        assert ref.uri not in found
        found[ref.uri.removeprefix("tar://").split("::")[0]] = content
    return found


def fill_with_links(tar: tarfile.TarFile) -> None:
    add(tar, "d/a.jpg", b"a")
    add(tar, "./blob", b"blob")
    add(tar, "twice.jpg", b"old")
    for name, kind, link in [
        ("hard.jpg", tarfile.LNKTYPE, "d/a.jpg"),
        ("hard-old.jpg", tarfile.LNKTYPE, "twice.jpg"),
        ("d/soft.jpg", tarfile.SYMTYPE, "a.jpg"),
        ("d/e/up.jpg", tarfile.SYMTYPE, "../../late.jpg"),
        ("to-blob.jpg", tarfile.SYMTYPE, "blob"),
        ("chain.jpg", tarfile.SYMTYPE, "./d/soft.jpg"),
        ("through-blob.jpg", tarfile.SYMTYPE, "other-blob"),
        ("other-blob", tarfile.SYMTYPE, "blob"),
        ("soft-twice.jpg", tarfile.SYMTYPE, "twice.jpg"),
        ("dangling.jpg", tarfile.SYMTYPE, "none.jpg"),
        ("escaping.jpg", tarfile.SYMTYPE, "../../etc/a.jpg"),
        ("absolute.jpg", tarfile.SYMTYPE, "/etc/a.jpg"),
        ("round.jpg", tarfile.SYMTYPE, "about.jpg"),
        ("about.jpg", tarfile.SYMTYPE, "round.jpg"),
        ("notes.txt", tarfile.SYMTYPE, "d/a.jpg"),
    ]:
        add(tar, name, kind=kind, link=link)
    add(tar, "twice.jpg", b"new")
    add(tar, "late.jpg", b"late")


EXPECTED = {
    "d/a.jpg": "a",
    "hard.jpg": "a",
    "hard-old.jpg": "old",
    "d/soft.jpg": "a",
    "d/e/up.jpg": "late",
    "to-blob.jpg": "blob",
    "chain.jpg": "a",
    "through-blob.jpg": "blob",
    "soft-twice.jpg": "new",
    "dangling.jpg": "a link to none.jpg",
    "escaping.jpg": "a link that leads out of the tar",
    "absolute.jpg": "a link that leads out of the tar",
    "round.jpg": "a link that leads back to itself",
    "about.jpg": "a link that leads back to itself",
    "twice.jpg": "new",
    "late.jpg": "late",
}


def test_a_link_is_read_as_its_target_and_a_broken_one_is_a_row(tmp_path: Path) -> None:
    made(tmp_path / "x.tar", fill_with_links)
    notes = SourceNotes()
    refs = listed(tmp_path / "x.tar", notes)
    assert outcomes(refs) == EXPECTED
    assert outcomes([locate_image(ref.uri, Storage()) for ref in refs]) == EXPECTED
    assert notes.duplicates == 1
    assert notes.skipped == {"no extension": 2, ".txt": 1}
    assert notes.refused == {"inside a tar (links, sparse files)": 5}


def test_links_of_a_tar_that_changed_after_the_listing_are_found_again(tmp_path: Path) -> None:
    made(tmp_path / "x.tar", fill_with_links)
    refs = listed(tmp_path / "x.tar")

    def fill_otherwise(tar: tarfile.TarFile) -> None:
        add(tar, "first.jpg", b"x" * 2000)
        fill_with_links(tar)

    made(tmp_path / "x.tar", fill_otherwise)
    sound = [ref for ref in refs if ref.problem is None]
    assert outcomes(sound) == {name: EXPECTED[name] for name in outcomes(sound)}


@pytest.mark.parametrize("zeros", [0, 512, 1024, 20_480])
def test_concatenated_tars_are_read_to_the_end(tmp_path: Path, zeros: int) -> None:
    parts = [
        made(tmp_path / f"{name}.tar", lambda tar, name=name: add(tar, f"{name}.jpg", name.encode())) for name in "abc"
    ]
    bare = [part.rstrip(b"\0") + b"\0" * (-len(part.rstrip(b"\0")) % 512) for part in parts]
    (tmp_path / "all.tar").write_bytes((b"\0" * zeros).join(bare) + b"\0" * zeros)
    assert outcomes(listed(tmp_path / "all.tar")) == {"a.jpg": "a", "b.jpg": "b", "c.jpg": "c"}
    (tmp_path / "cat.tar").write_bytes(b"".join(parts))
    assert outcomes(listed(tmp_path / "cat.tar")) == {"a.jpg": "a", "b.jpg": "b", "c.jpg": "c"}


def test_a_damaged_second_part_is_one_more_row(tmp_path: Path) -> None:
    whole = made(tmp_path / "a.tar", lambda tar: add(tar, "a.jpg", b"a"))
    for rest in (b"no tar at all " * 100, gzip.compress(whole), whole[:700]):
        (tmp_path / "x.tar").write_bytes(whole + rest)
        refs = listed(tmp_path / "x.tar")
        assert refs[0].problem is None
        assert refs[-1].uri == str(tmp_path / "x.tar")
        assert refs[-1].problem is not None


def test_old_data_in_the_last_record_is_not_damage(tmp_path: Path) -> None:
    whole = bytearray(made(tmp_path / "x.tar", lambda tar: add(tar, "a.jpg", b"a")))
    whole[4096:4200] = b"\xaa" * 104
    (tmp_path / "x.tar").write_bytes(whole)
    assert outcomes(listed(tmp_path / "x.tar")) == {"a.jpg": "a"}


def test_a_sparse_member_is_a_row_with_the_reason(tmp_path: Path) -> None:
    with (tmp_path / "s.jpg").open("wb") as file:
        file.seek(2**20)
        file.write(b"end")
    for number, tar_format in enumerate(("gnu", "pax")):
        command = ["tar", "-C", tmp_path, "-S", "-H", tar_format, "-cf", tmp_path / f"{number}.tar", "s.jpg"]
        subprocess.run(command, check=True)
        (ref,) = listed(tmp_path / f"{number}.tar")
        with pytest.raises(ImageError, match="sparse"):
            read_image(ref, Storage())


@pytest.mark.parametrize(
    "suffix", [".tar.gz", ".tgz", ".tar.zst", ".txz", ".tar.xz", ".tar.bz2", ".TAR.GZ", ".zip", ".7z"]
)
def test_a_compressed_archive_is_refused_or_noted_never_listed_as_an_image(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"x{suffix}").write_bytes(b"anything")
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "l.txt").write_text(f"x{suffix}\na.jpg\n")
    with pytest.raises(InputError, match="unpack it"):
        listed(tmp_path / f"x{suffix}")
    notes = SourceNotes()
    assert [ref.uri for ref in listed(tmp_path, notes)] == [str(tmp_path / "a.jpg")]
    assert notes.skipped[suffix.lower()] == 1
    bad, good = listed(tmp_path / "l.txt")
    with pytest.raises(ImageError, match="unpack it"):
        read_image(bad, Storage())
    assert read_image(good, Storage()) == b"a"


@pytest.mark.parametrize(("pack", "name"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")])
def test_a_compressed_tar_with_the_extension_of_a_plain_one_is_refused(
    tmp_path: Path, pack: Callable[[bytes], bytes], name: str
) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(pack(made(path, fill_with_links)))
    with pytest.raises(InputError, match=rf"compressed \({name}\).*unpack it"):
        listed(path)
    (problem,) = (ref.problem for ref in listed(tmp_path))
    assert problem is not None
    assert name in problem


def test_a_member_whose_name_begins_like_a_compressed_file_is_read(tmp_path: Path) -> None:
    made(tmp_path / "x.tar", lambda tar: add(tar, "BZh.jpg", b"b"))
    assert outcomes(listed(tmp_path / "x.tar")) == {"BZh.jpg": "b"}
