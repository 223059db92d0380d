"""Indexes uncompressed tar files, so that reading a member is a single range read.

An example: `a.tar` holds the members `1.jpg`, `2.jpg`, `1.jpg` (appended later) and `3.jpg`, a soft link to `2.jpg`.
`read_tar` returns three members: `1.jpg` with the place of the later one (`replaced` is 1), `2.jpg`, and `3.jpg` with
the place of `2.jpg`. The link needs a second pass over the tar, as `2.jpg` need not be wanted itself.
"""

import errno
import posixpath
import tarfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import IO, cast

from pipeline.errors import DamagedContainerError
from pipeline.inputs.compression import ARCHIVES, COMPRESSIONS, match_format
from pipeline.storage.storage import Storage
from pipeline.storage.uris import suffix_of, without_query

_ARCHIVES = (
    *(f".tar.{packer}" for packer in ("gz", "bz2", "xz", "zst", "lz4", "lzma", "br", "z")),
    *(".tgz", ".tbz", ".tbz2", ".txz", ".tzst", ".tlz", ".taz", ".zip", ".7z", ".rar"),
)
UNREADABLE_ARCHIVE = (
    "cannot be read by ranges, as its members are compressed together; unpack it, or repack it as a plain .tar (images "
    "are compressed already)"
)
"""The reason for an archive that is not a plain tar: a compressed tar can only be read from its start."""

_RECORD_BYTES = 10_240
"""The unit in which tar writes by default (POSIX pax, "blocksize"); old versions do not clear the end of the last."""
_MOST_LINKS = 40
"""The longest chain of links that is followed, as in Linux (path_resolution(7))."""
_BLOCK_BYTES = 512
LONGEST_HEADER_BYTES = 2**20
"""TarFile reads an extended header (a long name, attributes) as a whole; real ones have a few hundred bytes."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """A file of a tar: its name as stored, and the place of its bytes.

    place: where its header begins. link: the name that it links to. is_hard: whether it is a hard link, whose name is
    relative to the tar's root. problem: why its bytes cannot be read as a range.
    """

    name: str
    offset: int
    bytes: int
    place: int = 0
    link: str | None = None
    is_hard: bool = False
    problem: str | None = None


@dataclass
class TarIndex:
    """The wanted members of a tar by their names, each with the place of its bytes or its problem.

    replaced: the number of members that a later one of the same name replaces. others: unwanted files, by extension.
    damage: the damage that ended the reading early.
    """

    members: dict[str, TarMember]
    replaced: int
    others: Counter[str]
    damage: DamagedContainerError | None = None


def archive_suffix(uri: str) -> str | None:
    """Return the extension of an archive that cannot be read by ranges; None for any other name."""
    name = (without_query(uri) if "?" in uri or "#" in uri else uri).lower()
    # Called for every line of a listing, so one `endswith` checks all suffixes first.
    return next(each for each in _ARCHIVES if name.endswith(each)) if name.endswith(_ARCHIVES) else None


class _HeaderReader:
    """The file that TarFile reads headers from; refuses headers that would fill the memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LONGEST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes; at most {LONGEST_HEADER_BYTES} are read")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset, whence)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # After a member of 2**60 bytes, the next header is beyond the largest offset of a file system.
            raise tarfile.ReadError(f"a member reaches to byte {offset}") from error

    def tell(self) -> int:
        return self._file.tell()


def _open_tar(file: IO[bytes]) -> tarfile.TarFile:
    # A TarFile that only reads uses three methods of its file.
    return tarfile.open(fileobj=cast(IO[bytes], _HeaderReader(file)), mode="r:")


def _compression_of(file: IO[bytes]) -> str | None:
    # Only called if the file cannot be read as a tar, as the first member's name may begin with these bytes too.
    formats = COMPRESSIONS | ARCHIVES
    file.seek(0)
    return match_format(formats, file.read(max(map(len, formats))))


def index_tar(uri: str, storage: Storage) -> Iterator[TarMember]:
    """Yield the files and links of an uncompressed tar, in its order; also of several concatenated tars.

    Raises:
        DamagedContainerError: the tar is damaged; the members before the damage have been yielded.
        StorageError: it cannot be read.
    """
    with storage.open(uri) as file:
        start: int | None = 0
        while start is not None:
            start = yield from _index_part(file, start)


def _index_part(file: IO[bytes], start: int) -> Generator[TarMember, None, int | None]:
    """Yield the members from `start` to the end mark; return where the next tar begins, None if there is none."""
    try:
        file.seek(start)
        with _open_tar(file) as tar:
            while (member := tar.next()) is not None:
                # TarFile keeps every member; those of a tar of a million images would fill the memory.
                tar.members = []  # type: ignore[attr-defined]
                if not member.isdir():
                    yield _member(member)
            # At a header that it cannot read, TarFile stops as if the archive ended there.
            end = tar.offset
        file.seek(end)
        if file.read(_BLOCK_BYTES).strip(b"\0"):
            raise DamagedContainerError(f"the tar is damaged at byte {end}")
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        compression = _compression_of(file) if start == 0 else None
        if compression is not None:
            raise DamagedContainerError(f"it is compressed ({compression}) and {UNREADABLE_ARCHIVE}") from error
        place = f" at byte {start}" if start else ""
        raise DamagedContainerError(f"it is not a complete, uncompressed tar ({error}){place}") from error
    return _next_part(file, end)


def _next_part(file: IO[bytes], end: int) -> int | None:
    """Return where another tar begins after the end mark (`cat a.tar b.tar`); None if there is none."""
    file.seek(end)
    place = end
    while block := file.read(_RECORD_BYTES):
        if not block.strip(b"\0"):
            place += len(block)
            continue
        place += (len(block) - len(block.lstrip(b"\0"))) // _BLOCK_BYTES * _BLOCK_BYTES
        break
    else:
        return None
    file.seek(place)
    try:
        tarfile.TarInfo.frombuf(file.read(_BLOCK_BYTES), "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        if place < -(-(end + 2 * _BLOCK_BYTES) // _RECORD_BYTES) * _RECORD_BYTES:
            return None
        raise DamagedContainerError(f"after its end, at byte {place}, there is data that is not a tar") from error
    return place


def _member(member: tarfile.TarInfo) -> TarMember:
    problem = None
    if member.issparse():
        problem = "a sparse member of a tar, which cannot be read as a range; unpack it, and pack it again without -S"
    elif not (member.isreg() or member.islnk() or member.issym()):
        problem = "a device or pipe, not a file"
    is_link = member.islnk() or member.issym()
    return TarMember(
        member.name,
        member.offset_data,
        0 if is_link else member.size,
        place=member.offset,
        link=member.linkname if is_link else None,
        is_hard=member.islnk(),
        problem=problem,
    )


def read_tar(uri: str, storage: Storage, is_wanted: Callable[[str], bool]) -> TarIndex:
    """Index a tar's members with wanted names; a link has the bytes of the file that it leads to, under its own name.

    Damage of the tar is in the index; errors of storage are raised.
    """
    index = TarIndex({}, 0, Counter())
    links = False
    try:
        for member in index_tar(uri, storage):
            if not is_wanted(member.name):
                index.others[suffix_of(member.name) or "no extension"] += 1
                continue
            index.replaced += member.name in index.members
            links = links or member.link is not None
            index.members[member.name] = member
    except DamagedContainerError as error:
        index.damage = error
    if links:
        _follow_links(uri, storage, index)
    return index


def _follow_links(uri: str, storage: Storage, index: TarIndex) -> None:
    """Replace each link by the file that it leads to, which need not be a wanted member itself."""
    links = {name: member for name, member in index.members.items() if member.link is not None}
    everything: dict[str, list[TarMember]] = {}
    # The names that links lead to, and in turn those that these lead to; each pass over the tar may add names.
    wanted = {_plain(_target(member) or "") for member in links.values()}
    grown = -1
    while len(wanted) != grown:
        grown = len(wanted)
        everything = {}
        try:
            for member in index_tar(uri, storage):
                if _plain(member.name) in wanted:
                    everything.setdefault(_plain(member.name), []).append(member)
        except DamagedContainerError as error:
            index.damage = index.damage or error
        wanted |= {
            _plain(_target(each) or "") for some in everything.values() for each in some if each.link is not None
        }
    for name, link in links.items():
        index.members[name] = _resolved(link, everything)


def _resolved(link: TarMember, everything: dict[str, list[TarMember]]) -> TarMember:
    at = link
    for _ in range(_MOST_LINKS):
        target = _target(at)
        if target is None:
            return replace(link, problem=f"a link that leads out of the tar, to {at.link}")
        found = everything.get(_plain(target), [])
        # A hard link means the file that had the name when the link was packed; a soft link means the last one.
        found = [each for each in found if each.place < at.place] if at.is_hard else found
        if not found:
            return replace(link, problem=f"a link to {at.link}, which is not in this tar")
        at = found[-1]
        if at.link is None:
            return replace(link, offset=at.offset, bytes=at.bytes, problem=at.problem)
    return replace(link, problem=f"a link that leads back to itself, by {link.link}")


def _target(link: TarMember) -> str | None:
    """Return the name of the member that a link leads to; None if it is outside the tar."""
    name = link.link or ""
    if not link.is_hard:
        name = name if name.startswith("/") else posixpath.join(posixpath.dirname(link.name), name)
    plain = _plain(name)
    return None if plain == ".." or plain.startswith("../") or (name.startswith("/") and not link.is_hard) else name


def _plain(name: str) -> str:
    return posixpath.normpath(name).lstrip("/") if name else ""
