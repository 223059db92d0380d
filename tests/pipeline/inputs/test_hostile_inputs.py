"""Hostile inputs: archives that escape their folder or expand without limit, specs that explode."""

import io
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from pipeline.errors import HtcError, ImageError, SpecError
from pipeline.inputs.image_ref import ImageRef
from pipeline.inputs.listing import SourceNotes, list_images
from pipeline.inputs.read import read_image
from pipeline.job_spec.job import InputSection, load_spec
from pipeline.storage.storage import Storage

MIB = 2**20


def listed(uri: Path) -> list[ImageRef]:
    return list(list_images(InputSection(uri=str(uri)), Storage(), notes=SourceNotes()))


def header(name: str, *, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size, member.linkname = kind, size, link
    return member.tobuf(tarfile.GNU_FORMAT)


def whole(name: str, payload: bytes) -> bytes:
    return header(name, size=len(payload)) + payload.ljust(-(-len(payload) // 512) * 512, b"\0")


def test_members_outside_the_folder_are_only_names(tmp_path: Path) -> None:
    box = tmp_path / "box"
    box.mkdir()
    (tmp_path / "secret.jpg").write_bytes(b"hidden")
    names = ["../secret.jpg", f"{tmp_path}/secret.jpg", "a/../../secret.jpg"]
    links = [
        header("link.jpg", kind=tarfile.SYMTYPE, link="../secret.jpg"),
        header("hard.jpg", kind=tarfile.LNKTYPE, link=f"{tmp_path}/secret.jpg"),
        header("pipe.jpg", kind=tarfile.FIFOTYPE),
        header("disk.jpg", kind=tarfile.BLKTYPE),
    ]
    content = b"".join([*(whole(name, b"inside") for name in names), *links, b"\0" * 1024])
    (box / "x.tar").write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    refs = listed(box / "x.tar")
    assert [ref.uri.split("::")[0] for ref in refs if ref.problem is None] == [
        f"tar://{name}" for name in [*names, "hard.jpg"]
    ]
    # The hard link's name is that of a member; the others become rows with their reason.
    assert {read_image(ref, Storage()) for ref in refs if ref.problem is None} == {b"inside"}
    assert [str(ref.problem).split(",")[0] for ref in refs if ref.problem is not None] == [
        "a link that leads out of the tar",
        "a device or pipe",
        "a device or pipe",
    ]
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "secret.jpg").read_bytes() == b"hidden"


@pytest.mark.parametrize("size", [3 * 2**30, 2**60])
def test_a_member_with_a_huge_size_is_a_row_and_takes_no_memory(tmp_path: Path, size: int) -> None:
    (tmp_path / "x.tar").write_bytes(whole("a.jpg", b"small") + header("b.jpg", size=size) + b"\0" * 4096)
    tracemalloc.start()
    try:
        refs = listed(tmp_path / "x.tar")
        assert read_image(refs[0], Storage()) == b"small"
        for ref in refs[1:]:
            with pytest.raises(ImageError):
                read_image(ref, Storage(), max_bytes=64 * MIB)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(refs) > 1
    assert peak < 80 * MIB


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_huge_extended_header_is_not_read(tmp_path: Path, kind: bytes) -> None:
    size = 400 * MIB
    with (tmp_path / "x.tar").open("wb") as file:
        file.write(whole("a.jpg", b"small") + header("swollen", kind=kind, size=size))
        # Sparse on the disk, but a reader gets all bytes.
        file.truncate(file.tell() + size + 1024)
    tracemalloc.start()
    try:
        first, damage = listed(tmp_path / "x.tar")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read_image(first, Storage()) == b"small"
    assert "header of 419430400 bytes" in str(damage.problem)
    assert peak < 20 * MIB


def test_a_compressed_tar_is_not_decompressed(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        member = tarfile.TarInfo("a.jpg")
        member.size = 50 * MIB
        tar.addfile(member, io.BytesIO(bytes(member.size)))
    (tmp_path / "x.tar").write_bytes(packed.getvalue())
    with pytest.raises(HtcError, match="compressed"):
        listed(tmp_path / "x.tar")


def test_a_spec_of_doubling_aliases_is_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    spec = tmp_path / "bomb.yaml"
    spec.write_text("\n".join([*lines, "input: {uri: *a11}", "output: {uri: out}"]))
    with pytest.raises(SpecError) as caught:
        load_spec(str(spec), {})
    assert len(str(caught.value)) < 5000


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system [true]", "!!python/name:os.system", "!!map [1]"])
def test_a_spec_cannot_name_code(tmp_path: Path, tag: str) -> None:
    spec = tmp_path / "code.yaml"
    spec.write_text(f"input: {{uri: {tag}}}\noutput: {{uri: out}}\n")
    with pytest.raises(SpecError, match="not valid YAML"):
        load_spec(str(spec), {})
