"""Tar shards: where each image lies, so that reading one is a single range read."""

import errno
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, cast

from pipeline.errors import HtcError
from pipeline.storage import Storage

REFUSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")
"""Archives whose members cannot be read by a range: a compressed tar must be unpacked from its start."""

_BLOCK_BYTES = 512
LONGEST_HEADER_BYTES = 2**20
"""TarFile reads an extended header (a long name, attributes) whole; real ones have a few hundred bytes."""


class DamagedContainerError(HtcError):
    """A container ends early or is not what its name says; what was found before stands."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """A regular file of a tar: its name as stored, and where its bytes lie."""

    name: str
    offset: int
    bytes: int


class _HeaderReader:
    """What TarFile reads headers from; a header that says it is huge must not fill the memory."""

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
            # A member of 2**60 bytes puts the next header where no file system has an address.
            raise tarfile.ReadError(f"a member reaches to byte {offset}") from error

    def tell(self) -> int:
        return self._file.tell()


def _open_tar(file: IO[bytes]) -> tarfile.TarFile:
    # Of a file, an archive that is only read uses three methods.
    return tarfile.open(fileobj=cast(IO[bytes], _HeaderReader(file)), mode="r:")


def index_tar(uri: str, storage: Storage) -> Iterator[TarMember]:
    """List the regular files of an uncompressed tar, in its order.

    Raises:
        DamagedContainerError: after the members that are whole enough to be named.
    """
    try:
        with storage.reading(uri) as file, _open_tar(file) as tar:
            while (member := tar.next()) is not None:
                # TarFile remembers every member; a tar of a million images would fill the memory.
                tar.members = []  # type: ignore[attr-defined]
                if member.isreg() and not member.issparse():
                    yield TarMember(member.name, member.offset_data, member.size)
            # At a header it cannot read, TarFile stops as if the archive ended there.
            file.seek(tar.offset)
            if file.read(_BLOCK_BYTES).strip(b"\0"):
                raise DamagedContainerError(f"the tar is damaged at byte {tar.offset}")
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise DamagedContainerError(f"it is not a whole, uncompressed tar ({error})") from error
